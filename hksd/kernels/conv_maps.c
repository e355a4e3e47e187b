/* 3x3 convolutions of bfloat16 maps in channels_last order, forward and backward to the maps, for networks of few
 * channels.
 *
 * A processor with AVX512-BF16 multiplies 16 pairs of numbers and adds each pair to one of 16 sums in one instruction.
 * Here a vector of sums is 16 channels of the result at one position. Pairs of channels of the source are read where
 * they lie and go to all lanes, so maps need no other layout, and few channels fill the vectors.
 *
 * Positions that are summed together lie in one row. Where rows are too short, they are the same position of
 * neighbouring images.
 *
 * Which positions of the source a result reads, with which of the 9 filters, is a list of taps. A gradient of a
 * convolution with stride s is s * s such lists, each for every s-th row and column.
 *
 * Sums are float, each by one thread in one order.
 */

#include "conv.h"

#ifdef __AVX512BF16__

enum { EACH = 4, SUMS = 16, STACK = 16 }; /* positions of a group; vectors of sums at once; images of a stack */

/* Row and column of the source, relative to the first that is read, and the filter. */
typedef struct { int row, column, filter; } Tap;

/* Results at `height` x `width` positions. Position (y, x) reads the source, which has a border of one, from
 * (y, x) * stride, and is written to (first_y, first_x) + (y, x) * spread. */
typedef struct {
    int count;
    Tap taps[TAPS];
    long height, width, stride, first_y, first_x, spread;
} List;

/* Maps and what is the same for all of them. */
typedef struct {
    long images, height, width, channels;     /* of the source */
    long out_height, out_width, out_channels; /* of the result */
    long row, padded;                         /* bytes of a row and of an image of the source with its border */
    long stack;                               /* images that are neighbours, or 1: neighbours lie in a row */
} Shape;

/* What the sums of a tile read: groups of positions, bytes between positions and of a tap, where taps begin. */
typedef struct {
    const char *groups[4];
    long step, tap_bytes;
    const long *offsets;
    int taps;
} Source;

#define ADD(k, filter, pair) sums[k] = _mm512_dpbf16_ps(sums[k], (__m512bh)(filter), pair)

/* Four groups of positions, 16 results each. */
INLINE void one_block(const Source *s, const char *filters, __m512 *sums) {
    const long step = s->step;
    for (int i = 0; i < SUMS; i++) sums[i] = _mm512_setzero_ps();
    for (int tap = 0; tap < s->taps; tap++) {
        const char *a = s->groups[0] + s->offsets[tap], *b = s->groups[1] + s->offsets[tap],
                   *c = s->groups[2] + s->offsets[tap], *d = s->groups[3] + s->offsets[tap], *end = a + s->tap_bytes;
        do {
            const __m512i f = _mm512_load_si512(filters);
#define FOUR(k, at)                                                  \
    ADD(k, f, pair_at(at)), ADD(k + 1, f, pair_at(at + step)),       \
        ADD(k + 2, f, pair_at(at + 2 * step)), ADD(k + 3, f, pair_at(at + 3 * step))
            FOUR(0, a), FOUR(4, b), FOUR(8, c), FOUR(12, d);
#undef FOUR
            filters += VECTOR, a += 4, b += 4, c += 4, d += 4;
        } while (a != end);
    }
}

/* Two groups of positions, 32 results each: fewer reads for each sum. */
INLINE void two_blocks(const Source *s, const char *filters, long block_bytes, __m512 *sums) {
    const long step = s->step;
    for (int i = 0; i < SUMS; i++) sums[i] = _mm512_setzero_ps();
    for (int tap = 0; tap < s->taps; tap++) {
        const char *a = s->groups[0] + s->offsets[tap], *b = s->groups[1] + s->offsets[tap], *end = a + s->tap_bytes;
        do {
            const __m512i f = _mm512_load_si512(filters), g = _mm512_load_si512(filters + block_bytes);
            __m512bh pair;
#define TWICE(k, at) pair = pair_at(at), ADD(k, f, pair), ADD(k + 1, g, pair)
#define FOUR(k, at) TWICE(k, at), TWICE(k + 2, at + step), TWICE(k + 4, at + 2 * step), TWICE(k + 6, at + 3 * step)
            FOUR(0, a), FOUR(8, b);
#undef FOUR
#undef TWICE
            filters += VECTOR, a += 4, b += 4;
        } while (a != end);
    }
}

/* The next `blocks` blocks of 16 results, of one list and one image or stack. */
INLINE void some_blocks(int blocks, const List *list, const Shape *shape, const char *padded, const char *filters,
                        uint16_t *restrict out, long left) {
    const int groups = SUMS / EACH / blocks, stacked = shape->stack > 1;
    const long rows = list->stride * shape->row, columns = list->stride * 2 * shape->channels;
    const long out_column = list->spread * shape->out_channels, out_row = out_column * shape->out_width;
    /* Lines of neighbours: rows, or positions of stacked images. */
    const long lines = list->height * (stacked ? list->width : 1), inner = stacked ? list->width : 1;
    const long neighbours = stacked ? shape->stack : list->width;
    const long apart = stacked ? shape->out_height * shape->out_width * shape->out_channels : out_column;
    const long block_bytes = list->count * shape->channels / 2 * VECTOR;
    const __mmask16 last = lanes_of(left - (blocks - 1) * LANES);
    long offsets[TAPS];
    for (int i = 0; i < list->count; i++)
        offsets[i] = list->taps[i].row * shape->row + list->taps[i].column * 2 * shape->channels;
    Source source = {{0}, stacked ? shape->padded : columns, 2 * shape->channels, offsets, list->count};
    out += (list->first_y * shape->out_width + list->first_x) * shape->out_channels;
    long line = 0, next = 0; /* of the next group; the last of all is repeated where groups are missing */
    while (line < lines) {
        uint16_t *to[4];
        for (int g = 0; g < groups; g++) {
            const long first = next + EACH > neighbours ? neighbours - EACH : next; /* overlaps: no shorter groups */
            source.groups[g] = padded + line / inner * rows + line % inner * columns + first * source.step;
            to[g] = out + line / inner * out_row + line % inner * out_column + first * apart;
            if (g == groups - 1 || line < lines - 1 || next + EACH < neighbours) next += EACH;
            if (next >= neighbours) next = 0, line++;
        }
        __m512 sums[SUMS];
        if (blocks == 1)
            one_block(&source, filters, sums);
        else
            two_blocks(&source, filters, block_bytes, sums);
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++) {
            const int position = i / blocks, block = i % blocks;
            uint16_t *at = to[position / EACH] + position % EACH * apart + block * LANES;
            _mm256_mask_storeu_epi16(at, block == blocks - 1 ? last : 0xffff, (__m256i)_mm512_cvtneps_pbh(sums[i]));
        }
    }
}

static void one_list(const List *list, const Shape *shape, const char *padded, const char *filters, uint16_t *out) {
    const long block_bytes = list->count * shape->channels / 2 * VECTOR;
    long left = shape->out_channels;
    for (; left > LANES; left -= 2 * LANES, filters += 2 * block_bytes, out += 2 * LANES)
        some_blocks(2, list, shape, padded, filters, out, left);
    if (left > 0) some_blocks(1, list, shape, padded, filters, out, left);
}

static Shape shape_of(long images, long height, long width, long channels, long out_height, long out_width,
                      long out_channels, int short_rows) {
    const long row = 2 * channels * (width + 2), stack = images < STACK ? images : STACK;
    return (Shape){images,    height,       width, channels,           out_height,
                   out_width, out_channels, row,   row * (height + 2), short_rows ? stack : 1};
}

/* All lists over all images. Returns 0, or -1 without memory. */
static int all_lists(const List *lists, int count, char *const *filters, const Shape *s, const uint16_t *in,
                     uint16_t *out, int threads) {
    const long line = s->width * s->channels, each = s->out_height * s->out_width * s->out_channels;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        char *padded = room(s->padded * s->stack);
        failed = !padded;
        if (padded) memset(padded, 0, (size_t)(s->padded * s->stack));
#pragma omp for schedule(static)
        for (long stack = 0; stack < (s->images + s->stack - 1) / s->stack; stack++) {
            if (!padded) continue;
            /* The last stack overlaps the one before: what both write is the same. */
            const long past = (stack + 1) * s->stack, image = (past > s->images ? s->images : past) - s->stack;
            for (long i = 0; i < s->stack; i++)
                for (long y = 0; y < s->height; y++)
                    memcpy(padded + i * s->padded + (y + 1) * s->row + 2 * s->channels,
                           in + ((image + i) * s->height + y) * line, 2 * (size_t)line);
            for (int l = 0; l < count; l++) one_list(&lists[l], s, padded, filters[l], out + image * each);
        }
        free(padded);
    }
    return failed ? -1 : 0;
}

/* Filters as the sums read them: (block of 16 results, tap, pair of sources, result, which of the pair) in bfloat16,
 * from float filters (F_out, 3, 3, F_in). Backward the results are F_in, the sources F_out. NULL without memory. */
static char *ordered(const float *weight, const List *list, long f_out, long f_in, int backward) {
    const long results = backward ? f_in : f_out, sources = backward ? f_out : f_in, apart = TAPS * f_in;
    const __m512i rows = _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi64(apart * 4));
    char *filters = room(up(results, LANES) * list->count * sources * 2), *to = filters;
    if (!filters) return NULL;
    for (long block = 0; block < results; block += LANES) {
        const __mmask16 lanes = lanes_of(results - block);
        for (int t = 0; t < list->count; t++) {
            const float *from = weight + list->taps[t].filter * f_in;
            for (long s = 0; s < sources; s += 2, to += VECTOR) {
                __m256i low, high; /* the first and second 8 pairs; backward the first and second of each pair */
                if (backward) {
                    low = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, from + s * apart + block));
                    high = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, from + (s + 1) * apart + block));
                    const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
                    _mm512_store_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(low), upper));
                    continue;
                }
                const float *first = from + block * apart + s, *second = first + 8 * apart;
                const __m512d none = _mm512_setzero_pd();
                low = (__m256i)_mm512_cvtneps_pbh((__m512)_mm512_mask_i64gather_pd(none, lanes & 0xff, rows, first, 1));
                high = (__m256i)_mm512_cvtneps_pbh((__m512)_mm512_mask_i64gather_pd(none, lanes >> 8, rows, second, 1));
                _mm256_store_si256((__m256i *)to, low);
                _mm256_store_si256((__m256i *)(to + VECTOR / 2), high);
            }
        }
    }
    return filters;
}

/* What Python calls. Maps are (images, height, width, channels), filters (F_out, 3, 3, F_in) in float; the border is
 * one. `height`, `width` and `f_in` are those of the input x also backward. F_in (forward) and F_out (backward) are
 * even. Rows of less than EACH results need as many images. Both return 0, or -1 without memory. */

int conv_forward(const void *x, const float *weight, void *y, long images, long height, long width, long f_in,
                 long f_out, long stride, int threads) {
    List list = {TAPS, {{0}}, (height + stride - 1) / stride, (width + stride - 1) / stride, stride, 0, 0, 1};
    for (int t = 0; t < TAPS; t++) list.taps[t] = (Tap){t / 3, t % 3, t};
    const Shape shape = shape_of(images, height, width, f_in, list.height, list.width, f_out, list.width < EACH);
    char *filters = ordered(weight, &list, f_out, f_in, 0);
    const int failed = !filters || all_lists(&list, 1, &filters, &shape, x, y, threads);
    free(filters);
    return failed ? -1 : 0;
}

int conv_backward_maps(const void *grad, const float *weight, void *gx, long images, long height, long width, long f_in,
                       long f_out, long stride, int threads) {
    const long low = (height + stride - 1) / stride, thin = (width + stride - 1) / stride;
    const Shape shape = shape_of(images, low, thin, f_out, height, width, f_in, width / stride < EACH);
    List lists[4];
    char *filters[4] = {0};
    int count = 0, failed = 0;
    for (long py = 0; py < stride; py++)
        for (long px = 0; px < stride; px++, count++) {
            const long rows = (height - py + stride - 1) / stride, columns = (width - px + stride - 1) / stride;
            List list = {0, {{0}}, rows, columns, 1, py, px, stride};
            for (int t = 0; t < TAPS; t++) { /* filter row k met row y where (y + 1 - k) is a multiple of the stride */
                const long dy = py + 1 - t / 3, dx = px + 1 - t % 3;
                if (dy % stride || dx % stride) continue;
                list.taps[list.count++] = (Tap){(int)(dy / stride) + 1, (int)(dx / stride) + 1, t};
            }
            lists[count] = list;
            filters[count] = ordered(weight, &list, f_out, f_in, 1);
            failed |= !filters[count];
        }
    failed = failed || all_lists(lists, count, filters, &shape, grad, gx, threads);
    for (int i = 0; i < count; i++) free(filters[i]);
    return failed ? -1 : 0;
}

#endif
