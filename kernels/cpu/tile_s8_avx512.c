/* Product tiles of integers by AVX-512: 6 rows, 1 to 4 panels (contract: struct dpk_tile in cpu.h).
 *
 * B: 16 columns of four s8 k's are one register as they lie.
 *   dot   VPDPBUSD (AVX512-VNNI): u8 of A times s8 of B, four products into 32 bits, no saturation.
 *         A: 32-bit broadcasts of rows plus 128; what that adds is taken off by `offset`.
 *   s8    without VNNI: B widened to 16 bits as its even k's (shift up, shift down) and its odd k's
 *         (shift down), VPMADDWD with 16-bit A in the order 0, 2, 1, 3, VPADDD. A pair's sum is at
 *         most 2^15, so nothing can saturate.
 * Registers: 24 accumulators, 4 of B, 1 broadcast, 1 product (s8) = 29 or 30 of 32. Accumulators
 * are named, and products are lines of assembly: left to themselves compilers spill some.
 * Tails: none, rows and panels are padded to fours. Rounding: at the end, conversion to float32
 * and two products.
 * Share of the instructions' peaks, whole operators with the quantization of rows (Zen 5): dot
 * 0.81-0.89 (K = 640: 0.71, 320: 0.63), s8 0.69-0.76 (320: 0.65). */
#include "tiles.h"

#include <immintrin.h>
#include <string.h>

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5)

#define DECLARE(r)                                                                                 \
    __m512i c##r##0 = _mm512_setzero_si512(), c##r##1 = c##r##0, c##r##2 = c##r##0,                \
            c##r##3 = c##r##0;
#define POINT(r) const char *a##r = rows[r];
#define LOADS(LOAD)                                                                                \
    __m512i b0 = LOAD(b), b1 = b0, b2 = b0, b3 = b0;                                               \
    if (np > 1) b1 = LOAD(b + stride);                                                             \
    if (np > 2) b2 = LOAD(b + 2 * stride);                                                         \
    if (np > 3) b3 = LOAD(b + 3 * stride);
/* A register of four k's (or two, of 16 bits) of row r, in every lane. */
#define BROADCAST(r, at)                                                                           \
    int32_t four;                                                                                  \
    memcpy(&four, a##r + (at), 4);                                                                 \
    __m512i x = _mm512_set1_epi32(four);

#define DOT(r, p) __asm__("vpdpbusd %2, %1, %0" : "+v"(c##r##p) : "v"(x), "v"(b##p));
#define MADD(r, p)                                                                                 \
    {                                                                                              \
        __m512i two;                                                                               \
        __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"                                         \
                : "+v"(c##r##p), "=&v"(two)                                                        \
                : "v"(x), "v"(b##p));                                                              \
    }
#define PANELS(F, r) F(r, 0) if (np > 1) F(r, 1) if (np > 2) F(r, 2) if (np > 3) F(r, 3)
#define DOT_ROW(r)                                                                                 \
    {                                                                                              \
        BROADCAST(r, k)                                                                            \
        PANELS(DOT, r)                                                                             \
    }
#define EVEN_ROW(r)                                                                                \
    {                                                                                              \
        BROADCAST(r, 2 * k)                                                                        \
        PANELS(MADD, r)                                                                            \
    }
#define ODD_ROW(r)                                                                                 \
    {                                                                                              \
        BROADCAST(r, 2 * k + 4)                                                                    \
        PANELS(MADD, r)                                                                            \
    }
#define STORE(r)                                                                                   \
    store(t, r, 0, c##r##0);                                                                       \
    if (np > 1) store(t, r, 1, c##r##1);                                                           \
    if (np > 2) store(t, r, 2, c##r##2);                                                           \
    if (np > 3) store(t, r, 3, c##r##3);
/* Panel p of the offsets is added to its column of accumulators. */
#define ADD(r, p) c##r##p = _mm512_add_epi32(c##r##p, offset);
#define ADD_PANEL(p)                                                                               \
    if (np > p) {                                                                                  \
        __m512i offset = _mm512_loadu_si512(t->offset + 16 * p);                                   \
        ADD(0, p) ADD(1, p) ADD(2, p) ADD(3, p) ADD(4, p) ADD(5, p)                                \
    }

static inline __attribute__((always_inline)) void store(const struct dpk_tile *t, int r, int p,
                                                        __m512i sum) {
    float *c = t->c + r * (ptrdiff_t)t->c_stride + 16 * p;
    if (t->scale_a) {
        __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(t->scale_a[r]));
        _mm512_storeu_ps(c, _mm512_mul_ps(v, _mm512_loadu_ps(t->scale_b + 16 * p)));
    } else {
        _mm512_storeu_si512(c, sum);
    }
}

static inline __m512i load(const char *p) { return _mm512_loadu_si512(p); }
static inline __m512i load_even(const char *p) {
    return _mm512_srai_epi16(_mm512_slli_epi16(_mm512_loadu_si512(p), 8), 8);
}
static inline __m512i load_odd(const char *p) {
    return _mm512_srai_epi16(_mm512_loadu_si512(p), 8);
}
/* The same pointer, of which the compiler does not know that it is: it would keep the bytes for
 * their odd half, in memory. */
static inline const char *reload(const char *p) {
    __asm__("" : "+r"(p));
    return p;
}

static inline __attribute__((always_inline)) void tile_dot(const struct dpk_tile *t, const int np) {
    ROWS(DECLARE)
    const char *b = t->b;
    const size_t stride = t->b_stride;
    for (int32_t s = 0; s < t->n_seg; s++) {
        const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_AVX512;
        ROWS(POINT)
        const ptrdiff_t end = t->k_len[s];
        for (ptrdiff_t k = 0; k < end; k += 4, b += 64) {
            LOADS(load)
            ROWS(DOT_ROW)
        }
    }
    ADD_PANEL(0) ADD_PANEL(1) ADD_PANEL(2) ADD_PANEL(3) ROWS(STORE)
}

static inline __attribute__((always_inline)) void tile_madd(const struct dpk_tile *t,
                                                            const int np) {
    ROWS(DECLARE)
    const char *b = t->b;
    const size_t stride = t->b_stride;
    for (int32_t s = 0; s < t->n_seg; s++) {
        const void *const *rows = t->a + (ptrdiff_t)s * DPK_MR_AVX512;
        ROWS(POINT)
        const ptrdiff_t end = t->k_len[s];
        for (ptrdiff_t k = 0; k < end; k += 4, b += 64) {
            {LOADS(load_even) ROWS(EVEN_ROW)} b = reload(b);
            {
                LOADS(load_odd)
                ROWS(ODD_ROW)
            }
        }
    }
    ROWS(STORE)
}

void dpk_tile_s8_dot_avx512(const struct dpk_tile *t) { DPK_BY_PANELS(tile_dot, t) }
void dpk_tile_s8_avx512(const struct dpk_tile *t) { DPK_BY_PANELS(tile_madd, t) }
