/* Attention with queries as columns (contract: kernels_attention.h).
 *
 *     S [keys][queries] = K Q^T,  P = 2^(scale (S - m)),  l += sum P,  O [channels][queries] += V^T P
 *
 * Both products are tiles of 8 rows (keys, then channels: head sizes are multiples of 8, so nothing
 * is padded) and up to 48 columns: 24 accumulators, 3 of B, 1 broadcast; 11 loads for 24 products.
 * The exponential works on the accumulators: S is never in memory, and the rows of two keys become
 * pairs as the second product takes them as its B operand by one blend.
 *
 * Exponential: of y = 128 (127 + x) as an integer, bits 7 to 14 are the exponent of 2^x in bfloat16,
 * and the low seven bits index a table of its mantissa, 128 bytes in two registers. x is rounded to
 * 1/128, as coarse as the rounding of the result. Below 2^-127 the result is 0. */
#include "tiles.h"

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

static const uint8_t mantissas[128] = {
    0,   1,   1,   2,   3,   4,   4,   5,   6,   6,   7,   8,   9,   9,   10,  11,  12,  12,  13,
    14,  15,  15,  16,  17,  18,  19,  19,  20,  21,  22,  23,  23,  24,  25,  26,  27,  28,  28,
    29,  30,  31,  32,  33,  34,  34,  35,  36,  37,  38,  39,  40,  41,  42,  43,  43,  44,  45,
    46,  47,  48,  49,  50,  51,  52,  53,  54,  55,  56,  57,  58,  59,  60,  61,  62,  63,  64,
    65,  66,  67,  68,  69,  70,  72,  73,  74,  75,  76,  77,  78,  79,  80,  82,  83,  84,  85,
    86,  87,  88,  90,  91,  92,  93,  94,  96,  97,  98,  99,  100, 102, 103, 104, 105, 107, 108,
    109, 111, 112, 113, 115, 116, 117, 118, 120, 121, 123, 124, 125, 127};

#define ROWS(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7)
#define PANELS(F, r) F(r, 0) F(r, 1) F(r, 2)

#define ZERO(r) __m512 c##r##0 = _mm512_setzero_ps(), c##r##1 = c##r##0, c##r##2 = c##r##0;
#define DOT(r, p)                                                                                  \
    if (np > p) c##r##p = _mm512_dpbf16_ps(c##r##p, (__m512bh)x, b##p);
#define PAIR(r)                                                                                    \
    {                                                                                              \
        int32_t pair;                                                                              \
        memcpy(&pair, a + 4 * r, 4);                                                               \
        __m512i x = _mm512_set1_epi32(pair);                                                       \
        PANELS(DOT, r)                                                                             \
    }
#define LOAD_B(p) (__m512bh) _mm512_loadu_si512(b + p * panel)
/* c += A B over n pairs; a pair of B is `step` bytes from the next, a panel `panel` bytes. */
#define PRODUCTS(n)                                                                                \
    for (int32_t i = 0; i < n; i++, a += 32, b += step) {                                          \
        __m512bh b0 = LOAD_B(0), b1 = b0, b2 = b0;                                                 \
        if (np > 1) b1 = LOAD_B(1);                                                                \
        if (np > 2) b2 = LOAD_B(2);                                                                \
        ROWS(PAIR)                                                                                 \
    }

#define INLINE static inline __attribute__((always_inline))

struct exponential {
    __m512i low, high, mantissa; /* the table; the bits that come from it */
    __m512 scale, one, scale_up, one_up;
};

static struct exponential exponential_of(float scale) {
    return (struct exponential){
        .low = _mm512_loadu_si512(mantissas),
        .high = _mm512_loadu_si512(mantissas + 64),
        .mantissa = _mm512_set1_epi16(0x7f),
        .scale = _mm512_set1_ps(128.0f * scale),
        .one = _mm512_set1_ps(128.0f * 127.0f),
        /* The second key of a pair comes out in the upper half of 32 bits, which truncates. */
        .scale_up = _mm512_set1_ps(0x1p23f * scale),
        .one_up = _mm512_set1_ps(0x1p23f * 127.0f + 0x1p15f),
    };
}

/* 2^(scale (s - m)) of two keys. */
INLINE __m512i exponentials(const struct exponential *e, __m512 s0, __m512 s1, __m512 m) {
    __m512 zero = _mm512_setzero_ps();
    __m512 y0 = _mm512_fmadd_ps(_mm512_sub_ps(s0, m), e->scale, e->one);
    __m512 y1 = _mm512_fmadd_ps(_mm512_sub_ps(s1, m), e->scale_up, e->one_up);
    __m512i i0 = _mm512_cvtps_epi32(_mm512_max_ps(y0, zero)); /* NaN: 0 */
    __m512i i1 = _mm512_cvtps_epi32(_mm512_max_ps(y1, zero));
    __m512i y = _mm512_mask_blend_epi16(0xaaaaaaaa, i0, i1);
    __m512i t = _mm512_permutex2var_epi8(e->low, y, e->high);
    return _mm512_ternarylogic_epi32(e->mantissa, t, y, 0xca); /* mantissa ? t : y */
}

#define EXPONENTIALS(r0, r1, p)                                                                    \
    if (np > p) {                                                                                  \
        __m512i w = exponentials(e, c##r0##p, c##r1##p, m##p);                                     \
        _mm512_storeu_si512(out + (r0 / 2 * np + p) * 64, w);                                      \
        l##p = _mm512_dpbf16_ps(l##p, (__m512bh)w, (__m512bh)_mm512_set1_epi32(count[r0 / 2]));    \
    }
#define EXPONENTIAL_ROWS(r0, r1)                                                                   \
    EXPONENTIALS(r0, r1, 0) EXPONENTIALS(r0, r1, 1) EXPONENTIALS(r0, r1, 2)

/* Probabilities of 8 keys. count: for each pair of keys bfloat16 1 where the key is one, else 0. */
INLINE void key_tile(const struct dpk_attn_columns *t, const struct exponential *e, const char *a,
                     char *out, const int32_t *count, const int np) {
    const char *b = (const char *)t->q;
    const size_t step = 64, panel = (size_t)t->pairs * 64;
    ROWS(ZERO)
    PRODUCTS(t->pairs)
    __m512 m0 = _mm512_loadu_ps(t->m), m1 = m0, m2 = m0;
    __m512 l0 = _mm512_loadu_ps(t->l), l1 = l0, l2 = l0;
    if (np > 1) m1 = _mm512_loadu_ps(t->m + 16), l1 = _mm512_loadu_ps(t->l + 16);
    if (np > 2) m2 = _mm512_loadu_ps(t->m + 32), l2 = _mm512_loadu_ps(t->l + 32);
    EXPONENTIAL_ROWS(0, 1)
    EXPONENTIAL_ROWS(2, 3)
    EXPONENTIAL_ROWS(4, 5)
    EXPONENTIAL_ROWS(6, 7)
    _mm512_storeu_ps(t->l, l0);
    if (np > 1) _mm512_storeu_ps(t->l + 16, l1);
    if (np > 2) _mm512_storeu_ps(t->l + 32, l2);
}

#define LOAD_O(r)                                                                                  \
    __m512 c##r##0 = _mm512_loadu_ps(o + r * 16 * np), c##r##1 = c##r##0, c##r##2 = c##r##0;       \
    if (np > 1) c##r##1 = _mm512_loadu_ps(o + r * 16 * np + 16);                                   \
    if (np > 2) c##r##2 = _mm512_loadu_ps(o + r * 16 * np + 32);
#define STORE_O(r)                                                                                 \
    _mm512_storeu_ps(o + r * 16 * np, c##r##0);                                                    \
    if (np > 1) _mm512_storeu_ps(o + r * 16 * np + 16, c##r##1);                                   \
    if (np > 2) _mm512_storeu_ps(o + r * 16 * np + 32, c##r##2);

/* Eight channels of O. */
INLINE void channel_tile(const struct dpk_attn_columns *t, const char *a, float *o, const int np) {
    const char *b = (const char *)t->p;
    const size_t step = 64 * (size_t)np, panel = 64;
    const int32_t n = (t->n + 1) / 2;
    ROWS(LOAD_O)
    PRODUCTS(n)
    ROWS(STORE_O)
}

INLINE void block(const struct dpk_attn_columns *t, const int np) {
    static const int32_t all[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    const struct exponential e = exponential_of(t->scale);
    const size_t key_bytes = (size_t)t->pairs * 32, out_bytes = 4 * 64 * (size_t)np;
    const char *a = (const char *)t->k;
    char *out = (char *)t->p;
    int32_t j = 0, some[4];
    for (; j + 8 <= t->n; j += 8, a += key_bytes, out += out_bytes) {
        key_tile(t, &e, a, out, all, np);
    }
    if (j < t->n) {
        for (int i = 0; i < 4; i++) {
            int left = t->n - j - 2 * i;
            some[i] = left >= 2 ? 0x3f803f80 : left == 1 ? 0x3f80 : 0;
        }
        key_tile(t, &e, a, out, some, np);
    }
    for (int32_t c = 0; c < t->groups; c++) {
        channel_tile(t, (const char *)t->v + (size_t)c * t->v_stride * 32,
                     t->o + (ptrdiff_t)c * 8 * 16 * np, np);
    }
}

static void run_block(const struct dpk_attn_columns *t) {
    if (t->panels == 1) block(t, 1);
    else if (t->panels == 2) block(t, 2);
    else block(t, 3);
}

#define TOP(r, p)                                                                                  \
    if (np > p) m##p = _mm512_max_ps(c##r##p, m##p);
#define TOPS(r) PANELS(TOP, r)

INLINE void top(const struct dpk_attn_columns *t, const int np) {
    const size_t step = 64, panel = (size_t)t->pairs * 64;
    __m512 m0 = _mm512_loadu_ps(t->m), m1 = m0, m2 = m0;
    if (np > 1) m1 = _mm512_loadu_ps(t->m + 16);
    if (np > 2) m2 = _mm512_loadu_ps(t->m + 32);
    const char *a = (const char *)t->k;
    for (int32_t j = 0; j < t->n; j += 8) {
        const char *b = (const char *)t->q;
        ROWS(ZERO)
        PRODUCTS(t->pairs)
        ROWS(TOPS)
    }
    _mm512_storeu_ps(t->m, m0);
    if (np > 1) _mm512_storeu_ps(t->m + 16, m1);
    if (np > 2) _mm512_storeu_ps(t->m + 32, m2);
}

static void run_top(const struct dpk_attn_columns *t) {
    if (t->panels == 1) top(t, 1);
    else if (t->panels == 2) top(t, 2);
    else top(t, 3);
}

/* ---- Packing and unpacking ------------------------------------------------------------------ */

#define UNROLL _Pragma("GCC unroll 8")

/* Columns of an 8x8 matrix of 32-bit units. */
INLINE void transpose(__m256 *r) {
    __m256 t[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    UNROLL for (int i = 0; i < 8; i++) r[i] = t[i];
}

static float pack_key(uint16_t *dst, const uint16_t *const *rows, int cols) {
    __m256 sum = _mm256_setzero_ps();
    for (int c = 0; c < cols; c += 16) {
        __mmask16 some = (__mmask16)(cols - c < 16 ? (1u << (cols - c)) - 1 : 0xffff);
        int pairs = cols - c < 16 ? (cols - c + 1) / 2 : 8;
        __m256 r[8];
        UNROLL for (int i = 0; i < 8; i++) {
            r[i] = _mm256_castsi256_ps(_mm256_maskz_loadu_epi16(some, rows[i] + c));
        }
        transpose(r);
        for (int i = 0; i < pairs; i++, dst += 16) {
            _mm256_storeu_ps((float *)(void *)dst, r[i]);
            sum = _mm256_dpbf16_ps(sum, (__m256bh)r[i], (__m256bh)r[i]);
        }
    }
    return _mm512_reduce_max_ps(
        _mm512_insertf32x8(_mm512_setzero_ps(), _mm256_max_ps(sum, _mm256_setzero_ps()), 0));
}

/* Zeros where the row is NULL. */
INLINE __m128i load8(const uint16_t *row, int c, __mmask8 some) {
    return _mm_maskz_loadu_epi16(row ? some : 0, row ? row + c : row);
}

static void pack_value(uint16_t *dst, size_t v_stride, const uint16_t *const *rows, int cols) {
    for (int c = 0; c < cols; c += 8, dst += 16 * v_stride) {
        __mmask8 some = (__mmask8)(cols - c < 8 ? (1u << (cols - c)) - 1 : 0xff);
        UNROLL for (int i = 0; i < 4; i++) {
            __m128i x = load8(rows[2 * i], c, some), y = load8(rows[2 * i + 1], c, some);
            _mm_storeu_si128((__m128i *)(void *)(dst + 16 * i), _mm_unpacklo_epi16(x, y));
            _mm_storeu_si128((__m128i *)(void *)(dst + 16 * i + 8), _mm_unpackhi_epi16(x, y));
        }
    }
}

static void lengths(float *out, const uint16_t *q, int pairs) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < pairs; i++) {
        __m512bh x = (__m512bh)_mm512_loadu_si512(q + 32 * i);
        sum = _mm512_dpbf16_ps(sum, x, x);
    }
    _mm512_storeu_ps(out, sum);
}

/* Eight channels of 16 queries, the first n of them stored: rows of channels to rows of queries. */
INLINE __mmask16 finish_tile(uint16_t *y, size_t y_stride, const float *o, size_t o_stride,
                             __m512 mul, int n, int cols) {
    __m512i w[4], t[4];
    __mmask16 finite = 0xffff;
    __mmask8 some = (__mmask8)(cols < 8 ? (1u << cols) - 1 : 0xff);
    UNROLL for (int i = 0; i < 4; i++) {
        __m512 a = _mm512_loadu_ps(o + (size_t)(2 * i) * o_stride);
        __m512 b = _mm512_loadu_ps(o + (size_t)(2 * i + 1) * o_stride);
        finite &= _mm512_cmp_ps_mask(_mm512_sub_ps(a, a), _mm512_sub_ps(b, b),
                                     _CMP_EQ_OQ); /* NaN of inf */
        a = _mm512_mul_ps(a, mul);
        b = _mm512_mul_ps(b, mul);
        __m512i lo = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
        __m512i hi = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
        w[i] = _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16));
    }
    t[0] = _mm512_unpacklo_epi32(w[0], w[1]);
    t[1] = _mm512_unpackhi_epi32(w[0], w[1]);
    t[2] = _mm512_unpacklo_epi32(w[2], w[3]);
    t[3] = _mm512_unpackhi_epi32(w[2], w[3]);
    w[0] = _mm512_unpacklo_epi64(t[0], t[2]); /* queries 0, 4, 8, 12 */
    w[1] = _mm512_unpackhi_epi64(t[0], t[2]); /* 1, 5, 9, 13 */
    w[2] = _mm512_unpacklo_epi64(t[1], t[3]);
    w[3] = _mm512_unpackhi_epi64(t[1], t[3]);
    if (n == 16 && cols >= 8) {
        UNROLL for (int i = 0; i < 4; i++, y += y_stride) {
            _mm_storeu_si128((__m128i *)(void *)y, _mm512_castsi512_si128(w[i]));
            _mm_storeu_si128((__m128i *)(void *)(y + 4 * y_stride),
                             _mm512_extracti32x4_epi32(w[i], 1));
            _mm_storeu_si128((__m128i *)(void *)(y + 8 * y_stride),
                             _mm512_extracti32x4_epi32(w[i], 2));
            _mm_storeu_si128((__m128i *)(void *)(y + 12 * y_stride),
                             _mm512_extracti32x4_epi32(w[i], 3));
        }
        return finite;
    }
    for (int i = 0; i < n; i++) {
        __m128i v;
        memcpy(&v, (const char *)&w[i % 4] + 16 * (i / 4), 16);
        _mm_mask_storeu_epi16(y + (size_t)i * y_stride, some, v);
    }
    return finite;
}

static bool finish(uint16_t *y, size_t y_stride, const struct dpk_attn_columns *t, int n,
                   int cols) {
    size_t o_stride = 16 * (size_t)t->panels;
    unsigned good = 1;
    for (int p = 0; 16 * p < n; p++) {
        __m512 l = _mm512_loadu_ps(t->l + 16 * p);
        __mmask16 seen = _mm512_cmp_ps_mask(l, _mm512_setzero_ps(), _CMP_GT_OQ);
        __m512 mul = _mm512_maskz_div_ps(seen, _mm512_set1_ps(1.0f), l);
        int rows = n - 16 * p < 16 ? n - 16 * p : 16;
        unsigned real = (1u << rows) - 1;
        for (int c = 0; c < cols; c += 8) {
            __mmask16 finite =
                finish_tile(y + (size_t)(16 * p) * y_stride + c, y_stride,
                            t->o + (size_t)c * o_stride + 16 * p, o_stride, mul, rows, cols - c);
            good &= (finite & real) == real;
        }
    }
    return good;
}

const struct dpk_attn_columns_kernels dpk_attn_columns_avx512bf16 = {
    .key = pack_key,
    .value = pack_value,
    .length = lengths,
    .block = run_block,
    .top = run_top,
    .finish = finish,
};
