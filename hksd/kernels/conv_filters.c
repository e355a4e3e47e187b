/* Gradients of the filters of 3x3 convolutions of bfloat16 maps in channels_last order; see conv_maps.c.
 *
 * Here a vector of sums is one filter for 16 channels of the source, and a pair of numbers two neighbouring positions.
 * Both maps of an image are laid out as such pairs first: the source once for each column of the filters.
 *
 * Sums are float. Images are cut into PARTS whatever the number of threads, so that sums do not depend on it.
 */

#include "conv.h"

#ifdef __AVX512BF16__

enum { OUTPUTS = 8, COLUMNS = 3, PARTS = 4, UNIT = OUTPUTS * COLUMNS * LANES };

typedef struct {
    long height, width, f_in, stride;       /* of the source */
    long out_height, out_width, f_out;      /* of the gradient */
    long pairs, in_blocks, out_blocks;      /* pairs of a row of the gradient; blocks of LANES sources, of OUTPUTS */
    long streams, slots;                    /* layouts of a row of the source (see `pack_source`); pairs in each */
} Plan;

/* Adds to the sums of `outputs` channels of the gradient and three columns of the filters, over pairs of one row. */
INLINE void one_row(int outputs, const char *grad, long grad_step, const char *const source[COLUMNS], long pairs,
                    __m512 *sums) {
    const char *a = source[0], *b = source[1], *c = source[2];
    for (long j = 0; j < pairs; j++) {
        const __m512bh left = (__m512bh)_mm512_load_si512(a), middle = (__m512bh)_mm512_load_si512(b),
                       right = (__m512bh)_mm512_load_si512(c);
#pragma GCC unroll 8
        for (int o = 0; o < outputs; o++) {
            const __m512bh slope = pair_at(grad + 4 * o);
            sums[3 * o] = _mm512_dpbf16_ps(sums[3 * o], left, slope);
            sums[3 * o + 1] = _mm512_dpbf16_ps(sums[3 * o + 1], middle, slope);
            sums[3 * o + 2] = _mm512_dpbf16_ps(sums[3 * o + 2], right, slope);
        }
        grad += grad_step, a += VECTOR, b += VECTOR, c += VECTOR;
    }
}

/* Two positions of at most 16 channels as pairs; NULL is a border. */
INLINE __m512i paired(const uint16_t *first, const uint16_t *second, __mmask16 lanes) {
    const __m512i none = _mm512_setzero_si512();
    const __m512i low = first ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, first)) : none;
    const __m512i high = second ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, second)) : none;
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* One image of the source as (row, block, stream, pair): pair j of stream k is that of columns 2 j * stride + k - 1 and
 * stride further. With stride 1 the third stream is the first from its second pair on, and is left out. */
static void pack_source(const Plan *p, const uint16_t *image, char *packed) {
    for (long y = 0; y < p->height; y++)
        for (long block = 0; block < p->in_blocks; block++) {
            const __mmask16 lanes = lanes_of(p->f_in - block * LANES);
            const uint16_t *row = image + y * p->width * p->f_in + block * LANES;
            for (long stream = 0; stream < p->streams; stream++)
                for (long j = 0; j < p->slots; j++, packed += VECTOR) {
                    const long first = 2 * j * p->stride + stream - 1, second = first + p->stride;
                    const uint16_t *one = first >= 0 && first < p->width ? row + first * p->f_in : NULL;
                    const uint16_t *two = second >= 0 && second < p->width ? row + second * p->f_in : NULL;
                    _mm512_store_si512(packed, paired(one, two, lanes));
                }
        }
}

/* One image of the gradient as (row, pair, channel). */
static void pack_grad(const Plan *p, const uint16_t *image, char *packed) {
    for (long y = 0; y < p->out_height; y++)
        for (long x = 0; x < p->out_width; x += 2)
            for (long c = 0; c < p->f_out; c += LANES, packed += VECTOR) {
                const uint16_t *one = image + (y * p->out_width + x) * p->f_out + c;
                const uint16_t *two = x + 1 < p->out_width ? one + p->f_out : NULL;
                _mm512_store_si512(packed, paired(one, two, lanes_of(p->f_out - c)));
            }
}

/* One unit of `one_image`, for one block of at most OUTPUTS channels of the gradient. */
INLINE void one_unit(int outputs, const Plan *p, long k, const char *source, const char *grad, float *total) {
    const long stream = VECTOR * p->slots, row = stream * p->streams * p->in_blocks, step = 4 * up(p->f_out, LANES);
    __m512 sums[OUTPUTS * COLUMNS];
    for (int n = 0; n < outputs * COLUMNS; n++) sums[n] = _mm512_load_ps(total + n * LANES);
    for (long y = 0; y < p->out_height; y++) {
        const long from = y * p->stride + k - 1;
        if (from < 0 || from >= p->height) continue;
        const char *a = source + from * row;
        const char *columns[COLUMNS] = {a, a + stream, p->streams == COLUMNS ? a + 2 * stream : a + VECTOR};
        one_row(outputs, grad + y * p->pairs * step, step, columns, p->pairs, sums);
    }
    for (int n = 0; n < outputs * COLUMNS; n++) _mm512_store_ps(total + n * LANES, sums[n]);
}

/* Adds one image to sums (block of OUTPUTS, row of the filters, block of LANES sources), each a unit (OUTPUTS, COLUMNS,
 * LANES). */
static void one_image(const Plan *p, const char *source, const char *grad, float *total) {
    for (long o = 0; o < p->out_blocks; o++)
        for (long k = 0; k < COLUMNS; k++)
            for (long i = 0; i < p->in_blocks; i++, total += UNIT) {
                const char *from = source + i * VECTOR * p->slots * p->streams, *slope = grad + o * 4 * OUTPUTS;
                if (p->f_out - o * OUTPUTS > OUTPUTS / 2)
                    one_unit(OUTPUTS, p, k, from, slope, total);
                else
                    one_unit(OUTPUTS / 2, p, k, from, slope, total);
            }
}

/* Puts the sums of all parts together as filters (F_out, 3, 3, F_in). */
static void gather(const Plan *p, const float *totals, int parts, long size, float *gweight) {
    for (long unit = 0; unit < size / UNIT; unit++) {
        const long i = unit % p->in_blocks, k = unit / p->in_blocks % COLUMNS, o = unit / p->in_blocks / COLUMNS;
        const long left = p->f_out - o * OUTPUTS;
        for (long n = 0; n < (left < OUTPUTS ? left : OUTPUTS) * COLUMNS; n++) {
            const float *from = totals + unit * UNIT + n * LANES;
            __m512 sum = _mm512_load_ps(from);
            for (int part = 1; part < parts; part++) sum = _mm512_add_ps(sum, _mm512_load_ps(from + part * size));
            const long filter = (o * OUTPUTS + n / COLUMNS) * TAPS + COLUMNS * k + n % COLUMNS;
            float *to = gweight + filter * p->f_in + i * LANES;
            _mm512_mask_storeu_ps(to, lanes_of(p->f_in - i * LANES), sum);
        }
    }
}

/* What Python calls: the gradient of filters (F_out, 3, 3, F_in) in float, from maps (images, height, width, F_in) and
 * the gradient of the results. Returns 0, or -1 without memory. */
int conv_backward_filters(const void *x, const void *grad, float *gweight, long images, long height, long width,
                          long f_in, long f_out, long stride, int threads) {
    const long low = (height + stride - 1) / stride, thin = (width + stride - 1) / stride, pairs = (thin + 1) / 2;
    const Plan p = {height, width, f_in, stride, low, thin, f_out, pairs, up(f_in, LANES) / LANES,
                    up(f_out, OUTPUTS) / OUTPUTS, stride == 1 ? 2 : COLUMNS, pairs + (stride == 1)};
    const long size = p.out_blocks * COLUMNS * p.in_blocks * UNIT;
    const long source_bytes = VECTOR * p.slots * p.streams * p.in_blocks * height;
    const long grad_bytes = 4 * up(f_out, LANES) * pairs * low;
    const int parts = images < PARTS ? (int)images : PARTS;
    float *totals = room(4 * size * parts);
    int failed = !totals;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(| : failed)
    for (int part = 0; part < parts; part++) {
        char *source = room(source_bytes), *slope = room(grad_bytes);
        if (source && slope && totals) {
            memset(totals + part * size, 0, 4 * (size_t)size);
            for (long n = images * part / parts; n < images * (part + 1) / parts; n++) {
                pack_source(&p, (const uint16_t *)x + n * height * width * f_in, source);
                pack_grad(&p, (const uint16_t *)grad + n * low * thin * f_out, slope);
                one_image(&p, source, slope, totals + part * size);
            }
        } else
            failed = 1;
        free(source);
        free(slope);
    }
    if (!failed) gather(&p, totals, parts, size, gweight);
    free(totals);
    return failed ? -1 : 0;
}

#endif
