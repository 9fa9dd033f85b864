/* Product tiles f32 x {f32, bf16, f16} by AVX-512 FMA: 6 rows, 1 to 4 panels (contract: struct
 * dpk_tile in cpu.h).
 *
 * A: broadcasts of one float from raw rows. B: a panel's k is one register (f32); a k-pair of
 * 16-bit elements is split into its even and odd k: bf16 by a shift and an AND, f16 by truncating
 * moves and conversion.
 * Registers: 24 accumulators, 4 of B, 1 broadcast, 1 mask = 30 of 32. Accumulators are named (an
 * array of them goes to the stack in some compilers), and the FMA is one line of assembly: left to
 * themselves gcc and clang spill some.
 * Tail: an odd last k takes the even half only. Rounding: float32 FMA.
 * Share of the FMA peak, whole operators (Zen 5): bf16 weights 0.86-0.97, f32 0.78-0.94, f16
 * 0.70-0.89. */
#include "tiles.h"

#include <immintrin.h>

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define DECLARE(r)                                                                                 \
    __m512 c##r##0 = _mm512_setzero_ps(), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0;
#define POINT(r) const float *a##r = rows[r];
#define FMA(r, p)                                                                                  \
    if (np > p) __asm__("vfmadd231ps %2, %1, %0" : "+v"(c##r##p) : "v"(x), "v"(b##p));
#define ROW(r)                                                                                     \
    {                                                                                              \
        __m512 x = _mm512_set1_ps(a##r[k]);                                                        \
        FMA(r, 0) FMA(r, 1) FMA(r, 2) FMA(r, 3)                                                    \
    }
#define STORE(r)                                                                                   \
    {                                                                                              \
        float *c = t->c + r * (ptrdiff_t)t->c_stride;                                              \
        _mm512_storeu_ps(c, c##r##0);                                                              \
        if (np > 1) _mm512_storeu_ps(c + 16, c##r##1);                                             \
        if (np > 2) _mm512_storeu_ps(c + 32, c##r##2);                                             \
        if (np > 3) _mm512_storeu_ps(c + 48, c##r##3);                                             \
    }
/* One k of all rows: B's registers from what LOAD gives for a panel. */
#define STEP(LOAD, from)                                                                           \
    {                                                                                              \
        __m512 b0 = LOAD(from), b1 = b0, b2 = b0, b3 = b0;                                         \
        if (np > 1) b1 = LOAD((from) + stride);                                                    \
        if (np > 2) b2 = LOAD((from) + 2 * stride);                                                \
        if (np > 3) b3 = LOAD((from) + 3 * stride);                                                \
        ROWS(ROW)                                                                                  \
    }

/* The same pointer, of which the compiler does not know that it is: it would keep the pairs for
 * their odd half, in memory. */
static inline const char *reload(const char *p) {
    __asm__("" : "+r"(p));
    return p;
}
static inline __m512 load_f32(const char *p) { return _mm512_loadu_ps(p); }
static inline __m512 bf16_even(const char *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
static inline __m512 bf16_odd(const char *p) {
    __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), high));
}
static inline __m512 f16_even(const char *p) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_loadu_si512(p)));
}
static inline __m512 f16_odd(const char *p) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_loadu_si512(p), 16)));
}

#define TILE(name, group, EVEN, ODD)                                                               \
    static inline __attribute__((always_inline)) void name(const struct dpk_tile *t, int np) {     \
        ROWS(DECLARE)                                                                              \
        const char *b = t->b;                                                                      \
        const size_t stride = t->b_stride;                                                         \
        for (int32_t s = 0; s < t->n_seg; s++) {                                                   \
            const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_AVX512;                         \
            ROWS(POINT)                                                                            \
            const ptrdiff_t n = t->k_len[s], end = n / group * group;                              \
            ptrdiff_t k = 0;                                                                       \
            while (k < end) {                                                                      \
                STEP(EVEN, b)                                                                      \
                k++;                                                                               \
                if (group == 2) {                                                                  \
                    const char *again = reload(b);                                                 \
                    STEP(ODD, again)                                                               \
                    k++;                                                                           \
                }                                                                                  \
                b += 64;                                                                           \
            }                                                                                      \
            if (k < n) {                                                                           \
                STEP(EVEN, b)                                                                      \
                b += 64;                                                                           \
            }                                                                                      \
        }                                                                                          \
        ROWS(STORE)                                                                                \
    }                                                                                              \
    void dpk_tile_##name##_avx512(const struct dpk_tile *t) { DPK_BY_PANELS(name, t) }

TILE(f32_f32, 1, load_f32, load_f32)
TILE(f32_bf16, 2, bf16_even, bf16_odd)
TILE(f32_f16, 2, f16_even, f16_odd)
