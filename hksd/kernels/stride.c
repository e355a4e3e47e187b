/* Sum of small maps into every stride-th position of large ones, both in channels_last order. */

#include <stdint.h>
#include <string.h>

static float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t narrowed(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet_nan = (bits >> 16) | 0x40;
    return (uint16_t)(value != value ? quiet_nan : nearest_even);
}

/* large (images, height, width, channels) += small (images, ceil(height / stride), ceil(width / stride), channels) at
 * rows and columns 0, stride, 2 stride, ...; bfloat16 with `half`, else float.
 */
void add_at_stride(void *large, const void *small, long images, long height, long width, long channels, long stride,
                   int half, int threads) {
    const long down = (height + stride - 1) / stride, right = (width + stride - 1) / stride;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long line = 0; line < images * down; line++)
        for (long column = 0; column < right; column++) {
            const long from = (line * right + column) * channels;
            const long to = ((line / down * height + line % down * stride) * width + column * stride) * channels;
            if (half) {
                uint16_t *sum = (uint16_t *)large + to;
                const uint16_t *more = (const uint16_t *)small + from;
                for (long c = 0; c < channels; c++) sum[c] = narrowed(widened(sum[c]) + widened(more[c]));
            } else {
                float *sum = (float *)large + to;
                const float *more = (const float *)small + from;
                for (long c = 0; c < channels; c++) sum[c] += more[c];
            }
        }
}
