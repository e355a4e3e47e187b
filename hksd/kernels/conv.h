/* What the convolutions share: vectors, memory, constants. See conv_maps.c. */

#ifndef HKSD_CONV_H
#define HKSD_CONV_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16, VECTOR = 64, TAPS = 9 }; /* floats and bytes of a vector; filters of a pair of channels */

#ifdef __AVX512BF16__
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

static inline long up(long value, long to) { return (value + to - 1) / to * to; }

/* Memory at an address that vectors can be read from, or NULL. */
static inline void *room(long bytes) { return aligned_alloc(VECTOR, (size_t)up(bytes + 1, VECTOR)); }

/* The lanes that `left` elements fill. */
static inline __mmask16 lanes_of(long left) { return (__mmask16)(left < LANES ? (1 << left) - 1 : 0xffff); }

/* A pair of numbers at an address, in all lanes. */
INLINE __m512bh pair_at(const char *at) { return (__m512bh)_mm512_set1_epi32(*(const int32_t *)at); }

#endif
#endif
