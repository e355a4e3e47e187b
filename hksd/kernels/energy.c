/* Energy of maps in channels_last order: the mean of the squares over the channels of every position.
 *
 * A map is (rows, channels): rows are images and positions; bfloat16 with `half`, else float.
 */

#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum { WIDTH = 16 };

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t uvec __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t hvec __attribute__((vector_size(2 * WIDTH)));

INLINE vec load(const void *map, long at, long count, int half) {
    if (half) {
        hvec h = {0};
        memcpy(&h, (const uint16_t *)map + at, 2 * (size_t)count);
        uvec bits = __builtin_convertvector(h, uvec) << 16;
        return (vec)bits;
    }
    vec v = {0};
    memcpy(&v, (const float *)map + at, 4 * (size_t)count);
    return v;
}

INLINE void store(void *map, long at, long count, int half, vec v) {
    if (!half) {
        memcpy((float *)map + at, &v, 4 * (size_t)count);
        return;
    }
#ifdef __AVX512BF16__
    hvec h = (hvec)_mm512_cvtneps_pbh((__m512)v);
#else
    uvec bits = (uvec)v, quiet_nan = (bits >> 16) | 0x40, is_nan = (uvec)(v != v);
    uvec nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    hvec h = __builtin_convertvector((nearest_even & ~is_nan) | (quiet_nan & is_nan), hvec);
#endif
    memcpy((uint16_t *)map + at, &h, 2 * (size_t)count);
}

INLINE float total(vec v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sum = 0;
    for (int lane = 0; lane < WIDTH; lane++) sum += v[lane];
    return sum;
#endif
}

INLINE void energy_of(const void *maps, float *means, long rows, long channels, int half, int threads) {
    const float share = 1.0f / (float)channels;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long row = 0; row < rows; row++) {
        vec sums = {0};
        long c = 0;
        for (; c + WIDTH <= channels; c += WIDTH) {
            vec v = load(maps, row * channels + c, WIDTH, half);
            sums += v * v;
        }
        if (c < channels) {
            vec v = load(maps, row * channels + c, channels - c, half);
            sums += v * v;
        }
        means[row] = total(sums) * share;
    }
}

/* means[row] = mean over channels of maps[row]^2 */
void energy_forward(const void *maps, float *means, long rows, long channels, int half, int threads) {
    if (half && channels == WIDTH)
        energy_of(maps, means, rows, WIDTH, 1, threads);
    else if (half && channels == 2 * WIDTH)
        energy_of(maps, means, rows, 2 * WIDTH, 1, threads);
    else if (half)
        energy_of(maps, means, rows, channels, 1, threads);
    else
        energy_of(maps, means, rows, channels, 0, threads);
}

INLINE void slope_of(const void *maps, const float *grads, void *out, long rows, long channels, int half, int threads) {
    const float share = 2.0f / (float)channels;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long row = 0; row < rows; row++) {
        const float slope = grads[row] * share;
        long c = 0;
        for (; c + WIDTH <= channels; c += WIDTH)
            store(out, row * channels + c, WIDTH, half, load(maps, row * channels + c, WIDTH, half) * slope);
        if (c < channels)
            store(out, row * channels + c, channels - c, half, load(maps, row * channels + c, channels - c, half) * slope);
    }
}

/* out[row] = 2 / channels * grads[row] * maps[row] */
void energy_backward(const void *maps, const float *grads, void *out, long rows, long channels, int half, int threads) {
    if (half && channels == WIDTH)
        slope_of(maps, grads, out, rows, WIDTH, 1, threads);
    else if (half)
        slope_of(maps, grads, out, rows, channels, 1, threads);
    else
        slope_of(maps, grads, out, rows, channels, 0, threads);
}
