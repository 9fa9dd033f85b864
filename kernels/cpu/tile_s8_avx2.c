/* Product tiles of integers by AVX2: 6 rows, 1 panel (contract: struct dpk_tile in cpu.h).
 *
 * B: 8 columns of four s8 k's are one register as they lie.
 *   s8    B widened to 16 bits as its even k's (shift up, shift down) and its odd k's (shift down),
 *         VPMADDWD with 16-bit A in the order 0, 2, 1, 3, VPADDD. A pair's sum is at most 2^15:
 *         exact for all of -128 .. 127, where VPMADDUBSW saturates (255 * 127 * 2 > 32767) and the
 *         way by absolute values and signs fails at -128. It has as many instructions.
 *   dot   VPDPBUSD of AVX-VNNI: u8 of A times s8 of B, four products into 32 bits, no saturation.
 *         A: rows plus 128; what that adds is taken off by `offset`.
 * Registers: 12 accumulators, 2 of B, 1 broadcast, 1 product (s8) = 15 or 16 of 16. Accumulators
 * are named, and products are lines of assembly: left to themselves compilers spill some.
 * Tails: none, rows and panels are padded to fours. Rounding: at the end, conversion to float32
 * and two products.
 * Share of the instructions' peaks, whole operators with the quantization of rows (Zen 5): s8
 * 0.74-0.81 (K = 320: 0.69), dot 0.69-0.85 (320: 0.55). */
#include "tiles.h"

#include <immintrin.h>
#include <string.h>

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define DECLARE(r) __m256i c##r##0 = _mm256_setzero_si256(), c##r##1 = _mm256_setzero_si256();
#define POINT(r) const char *a##r = rows[r];
/* A register of four k's (or two, of 16 bits) of row r, in every lane. */
#define BROADCAST(r, at)                                                                           \
    int32_t four;                                                                                  \
    memcpy(&four, a##r + (at), 4);                                                                 \
    __m256i x = _mm256_set1_epi32(four);
#define DOT(c, b) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(c) : "x"(x), "x"(b));
#define MADD(c, b)                                                                                 \
    {                                                                                              \
        __m256i two;                                                                               \
        __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"                                         \
                : "+x"(c), "=&x"(two)                                                              \
                : "x"(x), "x"(b));                                                                 \
    }
#define DOT_ROW(r)                                                                                 \
    {                                                                                              \
        BROADCAST(r, k)                                                                            \
        DOT(c##r##0, b0)                                                                           \
        DOT(c##r##1, b1)                                                                           \
    }
#define EVEN_ROW(r)                                                                                \
    {                                                                                              \
        BROADCAST(r, 2 * k)                                                                        \
        MADD(c##r##0, b0)                                                                          \
        MADD(c##r##1, b1)                                                                          \
    }
#define ODD_ROW(r)                                                                                 \
    {                                                                                              \
        BROADCAST(r, 2 * k + 4)                                                                    \
        MADD(c##r##0, b0)                                                                          \
        MADD(c##r##1, b1)                                                                          \
    }
#define STORE(r)                                                                                   \
    store(t, r, 0, c##r##0);                                                                       \
    store(t, r, 8, c##r##1);
#define STORE_OFFSET(r)                                                                            \
    store(t, r, 0, _mm256_add_epi32(c##r##0, load((const char *)t->offset)));                      \
    store(t, r, 8, _mm256_add_epi32(c##r##1, load((const char *)t->offset + 32)));

static inline __m256i load(const char *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
static inline __m256i load_even(const char *p) {
    return _mm256_srai_epi16(_mm256_slli_epi16(load(p), 8), 8);
}
static inline __m256i load_odd(const char *p) { return _mm256_srai_epi16(load(p), 8); }
/* The same pointer, of which the compiler does not know that it is: it would keep the bytes for
 * their odd half, in memory. */
static inline const char *reload(const char *p) {
    __asm__("" : "+r"(p));
    return p;
}

static inline __attribute__((always_inline)) void store(const struct dpk_tile *t, int r, int column,
                                                        __m256i sum) {
    float *c = t->c + r * (ptrdiff_t)t->c_stride + column;
    if (t->scale_a) {
        __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(t->scale_a[r]));
        _mm256_storeu_ps(c, _mm256_mul_ps(v, _mm256_loadu_ps(t->scale_b + column)));
    } else {
        _mm256_storeu_si256((__m256i *)(void *)c, sum);
    }
}

void dpk_tile_s8_dot_avx2(const struct dpk_tile *t) {
    ROWS(DECLARE)
    const char *b = t->b;
    for (int32_t s = 0; s < t->n_seg; s++) {
        const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_AVX2;
        ROWS(POINT)
        const ptrdiff_t end = t->k_len[s];
        for (ptrdiff_t k = 0; k < end; k += 4, b += 64) {
            __m256i b0 = load(b), b1 = load(b + 32);
            ROWS(DOT_ROW)
        }
    }
    ROWS(STORE_OFFSET)
}

void dpk_tile_s8_avx2(const struct dpk_tile *t) {
    ROWS(DECLARE)
    const char *b = t->b;
    for (int32_t s = 0; s < t->n_seg; s++) {
        const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_AVX2;
        ROWS(POINT)
        const ptrdiff_t end = t->k_len[s];
        for (ptrdiff_t k = 0; k < end; k += 4, b += 64) {
            {
                __m256i b0 = load_even(b), b1 = load_even(b + 32);
                ROWS(EVEN_ROW)
            }
            b = reload(b);
            {
                __m256i b0 = load_odd(b), b1 = load_odd(b + 32);
                ROWS(ODD_ROW)
            }
        }
    }
    ROWS(STORE)
}
