/* Product tile of 16-bit integers by VPDPWSSD: 6 rows, 1 to 4 panels (contract: struct
 * dpk_tile_s16).
 *
 * As tile_avx512bf16.c: 24 named accumulators, 4 registers of B, 1 broadcast pair of A. At the
 * end the sums are converted, scaled by row and added to C in memory, about 40 cycles in the 1920
 * of 320 channels.
 * The product is an assembler statement: gcc 12 keeps accumulators of the intrinsic on the stack.
 * Share of the instruction's peak inside whole convolutions (Zen 5): 0.93 to 0.99.
 * Tails: missing rows repeat the last one. */
#include "tiles.h"

#include <immintrin.h>
#include <string.h>

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define POINT(r) const int16_t *a##r = t->a + (size_t)(r < t->rows ? r : t->rows - 1) * t->a_stride;
#define DECLARE(r)                                                                                 \
    __m512i c##r##0 = _mm512_setzero_si512(), c##r##1 = c##r##0, c##r##2 = c##r##0,                \
            c##r##3 = c##r##0;
#define LOAD_B(p) _mm512_loadu_si512(b + p * stride)
#define DOT(r, p)                                                                                  \
    if (np > p) __asm__("vpdpwssd %2, %1, %0" : "+v"(c##r##p) : "v"(x), "v"(b##p));
#define PAIR(r)                                                                                    \
    {                                                                                              \
        int32_t pair;                                                                              \
        memcpy(&pair, a##r + k, 4);                                                                \
        __m512i x = _mm512_set1_epi32(pair);                                                       \
        DOT(r, 0) DOT(r, 1) DOT(r, 2) DOT(r, 3)                                                    \
    }
#define ADD(r, p)                                                                                  \
    if (np > p) {                                                                                  \
        __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(c##r##p), s);                                \
        if (t->add) sum = _mm512_add_ps(_mm512_loadu_ps(c + 16 * p), sum);                         \
        _mm512_storeu_ps(c + 16 * p, sum);                                                         \
    }
#define FINISH(r)                                                                                  \
    {                                                                                              \
        float *c = t->c + r * t->c_stride;                                                         \
        __m512 s = _mm512_set1_ps(t->scale[r < t->rows ? r : t->rows - 1]);                        \
        ADD(r, 0) ADD(r, 1) ADD(r, 2) ADD(r, 3)                                                    \
    }
#define LOADS_B                                                                                    \
    __m512i b0 = LOAD_B(0), b1 = b0, b2 = b0, b3 = b0;                                             \
    if (np > 1) b1 = LOAD_B(1);                                                                    \
    if (np > 2) b2 = LOAD_B(2);                                                                    \
    if (np > 3) b3 = LOAD_B(3);

static inline __attribute__((always_inline)) void tile(const struct dpk_tile_s16 *t, const int np) {
    const int16_t *b = t->b;
    const size_t stride = t->b_stride;
    ROWS(POINT)
    ROWS(DECLARE)
    for (ptrdiff_t k = 0; k < t->k; k += 2, b += 32) {
        LOADS_B
        ROWS(PAIR)
    }
    ROWS(FINISH)
}

void dpk_tile_s16_avx512bf16(const struct dpk_tile_s16 *t) { DPK_BY_PANELS(tile, t) }
