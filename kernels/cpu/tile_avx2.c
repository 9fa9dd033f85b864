/* Product tiles f32 x {f32, bf16, f16} by AVX2 FMA: 6 rows, 1 panel (contract: struct dpk_tile in
 * cpu.h).
 *
 * A: broadcasts of one float from raw rows. B: a panel's k is two registers (f32); a k-pair of
 * 16-bit elements is split into its even and odd k: bf16 by a shift and an AND, f16 by a byte
 * shuffle and conversion.
 * Registers: 12 accumulators, 2 of B, 1 broadcast, 1 mask = 16 of 16. Accumulators are named, and
 * the FMA is one line of assembly: left to itself gcc spills some of them.
 * Tail: an odd last k takes the even half only. Rounding: float32 FMA.
 * Share of the FMA peak, whole operators (Zen 5): f32 and bf16 weights 0.80-0.99, f16 0.58-0.67
 * (conversion takes the ports of the products). */
#include "tiles.h"

#include <immintrin.h>

/* Bytes of B that are asked for ahead: a long panel comes from L2, and beside six rows of A the
 * hardware alone is late (linears of K = 1280 to 5120: 3 to 5 %). */
enum { AHEAD = 1536 };

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define DECLARE(r) __m256 c##r##0 = _mm256_setzero_ps(), c##r##1 = _mm256_setzero_ps();
#define POINT(r) const float *a##r = rows[r];
#define FMA(acc, x, y) __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(x), "x"(y))
#define ROW(r)                                                                                     \
    {                                                                                              \
        __m256 x = _mm256_broadcast_ss(a##r + k);                                                  \
        FMA(c##r##0, x, b0);                                                                       \
        FMA(c##r##1, x, b1);                                                                       \
    }
#define STORE(r)                                                                                   \
    _mm256_storeu_ps(t->c + r * (ptrdiff_t)t->c_stride, c##r##0);                                  \
    _mm256_storeu_ps(t->c + r * (ptrdiff_t)t->c_stride + 8, c##r##1);
/* One k of all rows: LOAD gives 8 columns of B. */
#define STEP(LOAD, from)                                                                           \
    {                                                                                              \
        __m256 b0 = LOAD(from), b1 = LOAD((from) + 32);                                            \
        ROWS(ROW)                                                                                  \
    }

static inline __m256i load_pairs(const char *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
static inline __m256 load_f32(const char *p) {
    return _mm256_loadu_ps((const float *)(const void *)p);
}
static inline __m256 bf16_even(const char *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(p), 16));
}
static inline __m256 bf16_odd(const char *p) {
    __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    return _mm256_castsi256_ps(_mm256_and_si256(load_pairs(p), high));
}
/* The same pointer, of which the compiler does not know that it is: it would keep the pairs for
 * their odd half, in memory. */
static inline const char *reload(const char *p) {
    __asm__("" : "+r"(p));
    return p;
}
/* The lower 16 bits of 8 pairs. */
static inline __m128i lower_halves(__m256i pairs) {
    const __m256i pick = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13, 0, 1,
                                          4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13);
    pairs = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(pairs, pick), 0x08);
    return _mm256_castsi256_si128(pairs);
}
static inline __m256 f16_even(const char *p) {
    return _mm256_cvtph_ps(lower_halves(load_pairs(p)));
}
static inline __m256 f16_odd(const char *p) {
    return _mm256_cvtph_ps(lower_halves(_mm256_srli_epi32(load_pairs(p), 16)));
}

#define TILE(name, group, EVEN, ODD)                                                               \
    void dpk_tile_##name##_avx2(const struct dpk_tile *t) {                                        \
        ROWS(DECLARE)                                                                              \
        const char *b = t->b;                                                                      \
        for (int32_t s = 0; s < t->n_seg; s++) {                                                   \
            const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_AVX2;                           \
            ROWS(POINT)                                                                            \
            const ptrdiff_t n = t->k_len[s], end = n / group * group;                              \
            ptrdiff_t k = 0;                                                                       \
            while (k < end) {                                                                      \
                _mm_prefetch(b + AHEAD, _MM_HINT_T0);                                              \
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
    }

TILE(f32_f32, 1, load_f32, load_f32)
TILE(f32_bf16, 2, bf16_even, bf16_odd)
TILE(f32_f16, 2, f16_even, f16_odd)
