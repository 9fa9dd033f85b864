/* Product tile bf16 x bf16 by VDPBF16PS: 6 rows, 1 to 4 panels (contract: struct dpk_tile in
 * cpu.h).
 *
 * A: 32-bit broadcasts of k-pairs from raw rows. B: a panel's k-pair is one register as it lies.
 * Registers: 24 accumulators, 4 of B, 1 broadcast = 29 of 32; 10 loads for 24 products.
 * Accumulators are named: an array of them goes to the stack in some compilers.
 * Tail: an odd last k is loaded alone, its partner is zero (as is the panel's padding).
 * Rounding: each of a pair's products is added with rounding to nearest even, subnormals as 0.
 * Share of the instruction's peak, whole operators (Zen 5): linears 0.86 to 0.95, 3x3 convolutions
 * 0.80 (1280 channels and more: the panels of 64 columns exceed L2) to 0.96. */
#include "tiles.h"

#include <immintrin.h>
#include <string.h>

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define DECLARE(r)                                                                                 \
    __m512 c##r##0 = _mm512_setzero_ps(), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0;
#define POINT(r) const char *a##r = rows[r];
#define LOAD_B(p) (__m512bh) _mm512_loadu_si512(b + p * stride)
#define DOT(r, p)                                                                                  \
    if (np > p) c##r##p = _mm512_dpbf16_ps(c##r##p, (__m512bh)x, b##p);
#define DOTS(r) DOT(r, 0) DOT(r, 1) DOT(r, 2) DOT(r, 3)
#define PAIR(r)                                                                                    \
    {                                                                                              \
        int32_t pair;                                                                              \
        memcpy(&pair, a##r + k, 4);                                                                \
        __m512i x = _mm512_set1_epi32(pair);                                                       \
        DOTS(r)                                                                                    \
    }
#define LAST(r)                                                                                    \
    {                                                                                              \
        uint16_t half;                                                                             \
        memcpy(&half, a##r + k, 2);                                                                \
        __m512i x = _mm512_set1_epi32(half);                                                       \
        DOTS(r)                                                                                    \
    }
#define STORE(r)                                                                                   \
    {                                                                                              \
        float *c = t->c + r * (ptrdiff_t)t->c_stride;                                              \
        _mm512_storeu_ps(c, c##r##0);                                                              \
        if (np > 1) _mm512_storeu_ps(c + 16, c##r##1);                                             \
        if (np > 2) _mm512_storeu_ps(c + 32, c##r##2);                                             \
        if (np > 3) _mm512_storeu_ps(c + 48, c##r##3);                                             \
    }
#define LOADS_B                                                                                    \
    __m512bh b0 = LOAD_B(0), b1 = b0, b2 = b0, b3 = b0;                                            \
    if (np > 1) b1 = LOAD_B(1);                                                                    \
    if (np > 2) b2 = LOAD_B(2);                                                                    \
    if (np > 3) b3 = LOAD_B(3);

static inline __attribute__((always_inline)) void tile(const struct dpk_tile *t, const int np) {
    ROWS(DECLARE)
    const char *b = t->b;
    const size_t stride = t->b_stride;
    for (int32_t s = 0; s < t->n_seg; s++) {
        const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_AVX512;
        ROWS(POINT)
        const ptrdiff_t end = (ptrdiff_t)(t->k_len[s] & ~1) * 2;
        ptrdiff_t k = 0;
        for (; k < end; k += 4, b += 64) {
            LOADS_B
            ROWS(PAIR)
        }
        if (t->k_len[s] & 1) {
            LOADS_B
            ROWS(LAST)
            b += 64;
        }
    }
    ROWS(STORE)
}

void dpk_tile_bf16_bf16_avx512bf16(const struct dpk_tile *t) { DPK_BY_PANELS(tile, t) }
