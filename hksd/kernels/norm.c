/* Batch normalisation, sum with a residual, and ReLU over maps in channels_last order, forward and backward.
 *
 * A map is (rows, channels): rows are images and positions. Maps are bfloat16 or float, everything else is float, and
 * sums over rows are kept as float over at most BLOCK rows, as double beyond. Rows are cut into CHUNKS parts whatever
 * the number of threads, so that the sums do not depend on it.
 *
 * Several rows of few channels are taken together as one wide row (its lanes are its elements), so that vectors are
 * always full; what belongs to a channel is then repeated along the lanes.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { WIDTH = 16, TILE = 4, BLOCK = 128, CHUNKS = 32, MOST_LANES = 4096 };
enum { HALF = 1, RELU = 2, BATCH = 4 }; /* bfloat16 maps; ReLU at the end; statistics of the batch */

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t uvec __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t hvec __attribute__((vector_size(2 * WIDTH)));

#define INLINE static inline __attribute__((always_inline))

/* --- elements of maps */

INLINE vec widen(hvec h) {
#ifdef __AVX512F__
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    uvec bits = __builtin_convertvector(h, uvec) << 16;
    return (vec)bits;
#endif
}

INLINE hvec narrow(vec v) {
#ifdef __AVX512BF16__
    return (hvec)_mm512_cvtneps_pbh((__m512)v);
#else
    uvec bits = (uvec)v;
    uvec nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uvec quiet_nan = (bits >> 16) | 0x40;
    uvec is_nan = (uvec)(v != v);
    return __builtin_convertvector((nearest_even & ~is_nan) | (quiet_nan & is_nan), hvec);
#endif
}

/* The first `count` lanes of a vector at element `at`; the others are 0. */
INLINE vec load(const void *map, long at, long count, int half) {
    if (half) {
        hvec h = {0};
        memcpy(&h, (const uint16_t *)map + at, count == WIDTH ? sizeof h : 2 * (size_t)count);
        return widen(h);
    }
    vec v = {0};
    memcpy(&v, (const float *)map + at, count == WIDTH ? sizeof v : 4 * (size_t)count);
    return v;
}

INLINE void store(void *map, long at, long count, int half, vec v) {
    if (half) {
        hvec h = narrow(v);
        memcpy((uint16_t *)map + at, &h, count == WIDTH ? sizeof h : 2 * (size_t)count);
    } else {
        memcpy((float *)map + at, &v, count == WIDTH ? sizeof v : 4 * (size_t)count);
    }
}

INLINE vec constants(const float *lanes, long at) {
    vec v;
    memcpy(&v, lanes + at, sizeof v);
    return v;
}

/* `v` where `gate` is above 0, else 0; what is not a number stays visible. */
INLINE vec gated(vec v, vec gate) { return (vec)((ivec)v & ~(gate <= 0)); }

/* --- wide rows */

typedef struct {
    long rows, channels; /* of the map */
    long lanes;          /* of a wide row: a multiple of `channels` */
    long wides;          /* whole wide rows; the remaining rows are a shorter one */
    int threads;
} Shape;

static Shape shape_of(long rows, long channels, int threads) {
    long together = WIDTH * TILE; /* rows that fill whole tiles: TILE * WIDTH / gcd(TILE * WIDTH, channels) */
    for (long c = channels; c % 2 == 0 && together > 1; c /= 2) together /= 2;
    if (together * channels > MOST_LANES) together = 1;
    Shape s = {rows, channels, together * channels, rows / together, threads};
    return s;
}

/* Room for what belongs to a channel, repeated along the lanes and up to a whole vector. */
static float *repeated(const Shape *s, int count) {
    size_t bytes = sizeof(float) * (size_t)(s->lanes + WIDTH) * (size_t)count;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static void repeat(const Shape *s, float *lanes) {
    for (long lane = s->channels; lane < s->lanes + WIDTH; lane++) lanes[lane] = lanes[lane - s->channels];
}

/* What a sweep reads and writes; what it does not use is NULL. */
typedef struct {
    const void *x, *other, *grad;    /* maps: input; residual or result; gradient of the result */
    void *out, *masked;              /* maps: result or gradient of the input; gradient before the normalisation */
    const float *scale, *shift;      /* lanes: normalisation as x * scale + shift */
    const float *center, *slope, *constant; /* lanes: see `spread` */
} Maps;

/* One vector of a sweep; adds to the sums a and b, or writes. `kind` and `flags` are constants after inlining. */
enum { MOMENTS, APPLY, SUMS, SPREAD };

INLINE void element(int kind, int flags, int residual, const Maps *m, long at, long lane, long n, vec *a, vec *b) {
    const int half = flags & HALF;
    vec x = load(m->x, at, n, half);
    if (kind == MOMENTS) {
        vec d = x - constants(m->center, lane);
        *a += d;
        *b += d * d;
    } else if (kind == APPLY) {
        vec y = x * constants(m->scale, lane) + constants(m->shift, lane);
        if (residual) y += load(m->other, at, n, half);
        store(m->out, at, n, half, flags & RELU ? gated(y, y) : y);
    } else {
        vec g = load(m->grad, at, n, half);
        if (flags & RELU) {
            vec y = residual ? load(m->other, at, n, half)
                             : x * constants(m->scale, lane) + constants(m->shift, lane);
            g = gated(g, y);
        }
        vec d = x - constants(m->center, lane);
        if (kind == SUMS) {
            if (m->masked) store(m->masked, at, n, half, g);
            *a += g;
            *b += g * d;
        } else {
            vec v = g * constants(m->scale, lane);
            if (flags & BATCH) v += d * constants(m->slope, lane) + constants(m->constant, lane);
            store(m->out, at, n, half, v);
        }
    }
}

INLINE void add(double *sums, vec v, long n) {
    float part[WIDTH];
    memcpy(part, &v, sizeof part);
    for (long i = 0; i < n; i++) sums[i] += part[i];
}

/* At most BLOCK wide rows of `lanes` lanes from element `first`; sums are added to (2, s->lanes). */
INLINE void block(int kind, int flags, int residual, const Shape *s, const Maps *m, long first, long wides, long lanes,
                  double *sums) {
    const int summing = kind == MOMENTS || kind == SUMS;
    long lane = 0;
    for (; lane + TILE * WIDTH <= lanes; lane += TILE * WIDTH) {
        vec a[TILE] = {0}, b[TILE] = {0};
        for (long r = 0; r < wides; r++)
#pragma GCC unroll 4
            for (int k = 0; k < TILE; k++)
                element(kind, flags, residual, m, first + r * lanes + lane + k * WIDTH, lane + k * WIDTH, WIDTH, &a[k],
                        &b[k]);
        for (int k = 0; summing && k < TILE; k++) {
            add(sums + lane + k * WIDTH, a[k], WIDTH);
            add(sums + s->lanes + lane + k * WIDTH, b[k], WIDTH);
        }
    }
    for (; lane < lanes; lane += WIDTH) {
        long n = lanes - lane < WIDTH ? lanes - lane : WIDTH;
        vec a = {0}, b = {0};
        for (long r = 0; r < wides; r++)
            element(kind, flags, residual, m, first + r * lanes + lane, lane, n, &a, &b);
        if (summing) {
            add(sums + lane, a, n);
            add(sums + s->lanes + lane, b, n);
        }
    }
}

/* `block` for a mode known when it runs: flags, and RESIDUAL. The compiler makes one version of each. */
enum { RESIDUAL = 8 };

#define CASE(kind, mode) \
    case mode: block(kind, (mode) & ~RESIDUAL, (mode) & RESIDUAL, s, m, first, wides, lanes, sums); break;
#define CASES(kind, mode) CASE(kind, mode) CASE(kind, (mode) | HALF)

static void any_block(int kind, int mode, const Shape *s, const Maps *m, long first, long wides, long lanes,
                      double *sums) {
    if (kind == MOMENTS) {
        switch (mode) { CASES(MOMENTS, 0) }
    } else if (kind == APPLY) {
        switch (mode) { CASES(APPLY, 0) CASES(APPLY, RELU) CASES(APPLY, RESIDUAL) CASES(APPLY, RESIDUAL | RELU) }
    } else if (kind == SUMS) {
        switch (mode) { CASES(SUMS, 0) CASES(SUMS, RELU) CASES(SUMS, RESIDUAL | RELU) }
    } else {
        switch (mode) { CASES(SPREAD, 0) CASES(SPREAD, RELU) CASES(SPREAD, BATCH) CASES(SPREAD, BATCH | RELU) }
    }
}

/* All rows; with sums, `totals` (2, channels) gets them. Returns 0, or -1 without memory. */
static int sweep(int kind, int mode, const Shape *s, const Maps *m, double *totals) {
    const long blocks = (s->wides + BLOCK - 1) / BLOCK, chunks = blocks < CHUNKS ? (blocks ? blocks : 1) : CHUNKS;
    const long size = totals ? 2 * s->lanes : 0, rest = s->rows * s->channels - s->wides * s->lanes;
    double *partial = calloc((size_t)(chunks * size + 1), sizeof(double));
    if (!partial) return -1;
#pragma omp parallel for num_threads(s->threads) schedule(static) if (s->threads > 1)
    for (long chunk = 0; chunk < chunks; chunk++) {
        double *sums = partial + chunk * size;
        for (long i = blocks * chunk / chunks; i < blocks * (chunk + 1) / chunks; i++) {
            long wide = i * BLOCK, count = s->wides - wide < BLOCK ? s->wides - wide : BLOCK;
            any_block(kind, mode, s, m, wide * s->lanes, count, s->lanes, sums);
        }
        if (chunk == chunks - 1 && rest) any_block(kind, mode, s, m, s->wides * s->lanes, 1, rest, sums);
    }
    if (totals) {
        for (long chunk = 1; chunk < chunks; chunk++)
            for (long i = 0; i < size; i++) partial[i] += partial[chunk * size + i];
        memset(totals, 0, 2 * (size_t)s->channels * sizeof(double));
        for (int which = 0; which < 2; which++)
            for (long lane = 0; lane < s->lanes; lane++)
                totals[which * s->channels + lane % s->channels] += partial[which * s->lanes + lane];
    }
    free(partial);
    return 0;
}

/* --- what Python calls */

/* y = relu(normalise(x) + residual).
 *
 * With BATCH, mean and invstd (channels,) are written and the running statistics updated with `momentum`, with the
 * unbiased variance; else they are read from the running ones and written too. residual may be NULL.
 * Returns 0, or -1 without memory.
 */
int norm_forward(const void *x, const void *residual, void *y, const float *weight, const float *bias,
                 float *running_mean, float *running_var, float *mean, float *invstd, long rows, long channels,
                 float eps, float momentum, int flags, int threads) {
    Shape s = shape_of(rows, channels, threads);
    float *lanes = repeated(&s, 3);
    double *totals = malloc(2 * (size_t)channels * sizeof(double));
    int failed = !lanes || !totals;
    float *scale = lanes, *shift = lanes + s.lanes + WIDTH, *center = shift + s.lanes + WIDTH;
    Maps m = {.x = x, .other = residual, .out = y, .scale = scale, .shift = shift, .center = center};
    if (!failed && flags & BATCH) {
        /* Deviations from the first row, not from 0: squares of what is far from 0 would drown the variance. */
        for (long c = 0; c < channels; c++) center[c] = load(x, c, 1, flags & HALF)[0];
        repeat(&s, center);
        failed = sweep(MOMENTS, flags & HALF, &s, &m, totals);
    }
    for (long c = 0; !failed && c < channels; c++) {
        double average = running_mean[c], variance = running_var[c];
        if (flags & BATCH) {
            double off = totals[c] / rows;
            average = center[c] + off;
            variance = totals[channels + c] / rows - off * off;
            if (variance < 0) variance = 0;
            running_mean[c] = (float)((1 - (double)momentum) * running_mean[c] + momentum * average);
            running_var[c] = (float)((1 - (double)momentum) * running_var[c] + momentum * variance * rows / (rows - 1));
        }
        double inverse = 1 / sqrt(variance + eps);
        mean[c] = (float)average;
        invstd[c] = (float)inverse;
        scale[c] = (float)(weight[c] * inverse);
        shift[c] = (float)(bias[c] - average * weight[c] * inverse);
    }
    if (!failed) {
        repeat(&s, scale);
        repeat(&s, shift);
        failed = sweep(APPLY, (flags & ~BATCH) | (residual ? RESIDUAL : 0), &s, &m, NULL);
    }
    free(lanes);
    free(totals);
    return failed ? -1 : 0;
}

/* Gradients of norm_forward for `grad` of y.
 *
 * y is needed with RELU and a residual, else NULL: the sign of y is then that of the normalised x. masked (or NULL)
 * gets the gradient of the residual; gx (or NULL) that of x; gweight and gbias (channels,) those of the parameters.
 * Returns 0, or -1 without memory.
 */
int norm_backward(const void *grad, const void *x, const void *y, void *masked, void *gx, const float *weight,
                  const float *bias, const float *mean, const float *invstd, float *gweight, float *gbias, long rows,
                  long channels, int flags, int threads) {
    Shape s = shape_of(rows, channels, threads);
    float *lanes = repeated(&s, 5);
    double *totals = malloc(2 * (size_t)channels * sizeof(double));
    int failed = !lanes || !totals;
    long step = s.lanes + WIDTH;
    float *scale = lanes, *shift = lanes + step, *center = lanes + 2 * step, *slope = lanes + 3 * step,
          *constant = lanes + 4 * step;
    Maps m = {x, y, grad, gx, masked, scale, shift, center, slope, constant};
    for (long c = 0; !failed && c < channels; c++) {
        scale[c] = weight[c] * invstd[c];
        shift[c] = (float)(bias[c] - (double)mean[c] * weight[c] * invstd[c]);
        center[c] = mean[c];
    }
    if (!failed) {
        repeat(&s, scale);
        repeat(&s, shift);
        repeat(&s, center);
        failed = sweep(SUMS, (flags & ~BATCH) | (y ? RESIDUAL : 0), &s, &m, totals);
    }
    for (long c = 0; !failed && c < channels; c++) {
        double sum = totals[c], product = totals[channels + c], inverse = invstd[c];
        gbias[c] = (float)sum;
        gweight[c] = (float)(product * inverse);
        slope[c] = (float)(-scale[c] * product * inverse * inverse / rows);
        constant[c] = (float)(-scale[c] * sum / rows);
    }
    if (!failed && gx) {
        repeat(&s, slope);
        repeat(&s, constant);
        if (masked) { /* the gradient is gated already */
            m.grad = masked;
            flags &= ~RELU;
        }
        failed = sweep(SPREAD, flags, &s, &m, NULL);
    }
    free(lanes);
    free(totals);
    return failed ? -1 : 0;
}
