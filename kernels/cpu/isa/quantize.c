/* Rows of activations to int8, and quantized panels back to floats (contracts: kernels.h).
 *
 * x / scale is computed as x * r, r = 1 / scale, and corrected by its remainder (Markstein: the
 * result is the rounded quotient), three operations for one division. */
#include "isa.h"
#include "vec.h"

/* ---- Integers of VF_N 32-bit lanes ----------------------------------------------------------- */

#if VF_N == 16
typedef __m512i vi;
VF_INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
VF_INLINE void vi_store(void *p, vi a) { _mm512_storeu_si512(p, a); }
VF_INLINE vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
VF_INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
VF_INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
VF_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
VF_INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
VF_INLINE vi vi_max16(vi a, vi b) { return _mm512_max_epu16(a, b); }
#define vi_shl(a, n) _mm512_slli_epi32(a, n)
#define vi_shr(a, n) _mm512_srli_epi32(a, n)
#define vi_sar(a, n) _mm512_srai_epi32(a, n)
VF_INLINE vf vi_float(vi a) { return _mm512_cvtepi32_ps(a); }
VF_INLINE vi vi_bits(vf a) { return _mm512_castps_si512(a); }
VF_INLINE int32_t vi_hmax(vi a) { return _mm512_reduce_max_epi32(a); }
#elif VF_N == 8
typedef __m256i vi;
VF_INLINE vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
VF_INLINE void vi_store(void *p, vi a) { _mm256_storeu_si256(p, a); }
VF_INLINE vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
VF_INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
VF_INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
VF_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
VF_INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
VF_INLINE vi vi_max16(vi a, vi b) { return _mm256_max_epu16(a, b); }
#define vi_shl(a, n) _mm256_slli_epi32(a, n)
#define vi_shr(a, n) _mm256_srli_epi32(a, n)
#define vi_sar(a, n) _mm256_srai_epi32(a, n)
VF_INLINE vf vi_float(vi a) { return _mm256_cvtepi32_ps(a); }
VF_INLINE vi vi_bits(vf a) { return _mm256_castps_si256(a); }
VF_INLINE int32_t vi_hmax(vi a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
#elif VF_N == 4
typedef int32x4_t vi;
VF_INLINE vi vi_load(const void *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
VF_INLINE void vi_store(void *p, vi a) { vst1q_u8(p, vreinterpretq_u8_s32(a)); }
VF_INLINE vi vi_set1(int32_t x) { return vdupq_n_s32(x); }
VF_INLINE vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
VF_INLINE vi vi_or(vi a, vi b) { return vorrq_s32(a, b); }
VF_INLINE vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
VF_INLINE vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
VF_INLINE vi vi_max16(vi a, vi b) {
    return vreinterpretq_s32_u16(vmaxq_u16(vreinterpretq_u16_s32(a), vreinterpretq_u16_s32(b)));
}
#define vi_shl(a, n) vshlq_n_s32(a, n)
#define vi_shr(a, n) vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), n))
#define vi_sar(a, n) vshrq_n_s32(a, n)
VF_INLINE vf vi_float(vi a) { return vcvtq_f32_s32(a); }
VF_INLINE vi vi_bits(vf a) { return vreinterpretq_s32_f32(a); }
VF_INLINE int32_t vi_hmax(vi a) { return vmaxvq_s32(a); }
#else
typedef int32_t vi;
VF_INLINE vi vi_load(const void *p) {
    vi a;
    memcpy(&a, p, 4);
    return a;
}
VF_INLINE void vi_store(void *p, vi a) { memcpy(p, &a, 4); }
VF_INLINE vi vi_set1(int32_t x) { return x; }
VF_INLINE vi vi_and(vi a, vi b) { return a & b; }
VF_INLINE vi vi_or(vi a, vi b) { return a | b; }
VF_INLINE vi vi_add(vi a, vi b) { return (vi)((uint32_t)a + (uint32_t)b); }
VF_INLINE vi vi_max(vi a, vi b) { return a > b ? a : b; }
VF_INLINE vi vi_max16(vi a, vi b) {
    uint32_t x = (uint32_t)a, y = (uint32_t)b, lo = 0xffff;
    uint32_t l = (x & lo) > (y & lo) ? x & lo : y & lo, h = (x > y ? x : y) & ~lo;
    return (vi)(h | l);
}
VF_INLINE vi vi_shl(vi a, int n) { return (vi)((uint32_t)a << n); }
VF_INLINE vi vi_shr(vi a, int n) { return (vi)((uint32_t)a >> n); }
VF_INLINE vi vi_sar(vi a, int n) { return a >> n; }
VF_INLINE vf vi_float(vi a) { return (float)a; }
VF_INLINE vi vi_bits(vf a) {
    vi b;
    memcpy(&b, &a, 4);
    return b;
}
VF_INLINE int32_t vi_hmax(vi a) { return a; }
#endif

/* Floats to bfloat16 in the upper half of each lane, to nearest even; finite. */
VF_INLINE vi round_high(vf a) {
    vi u = vi_bits(a), odd = vi_and(vi_shr(u, 16), vi_set1(1));
    u = vi_add(u, vi_add(odd, vi_set1(0x7fff)));
    return vi_and(u, vi_set1((int32_t)0xffff0000u));
}

/* ---- Magnitude ------------------------------------------------------------------------------- */

/* The bits of magnitudes order as integers, with infinity and the NaNs on top. */
static int32_t magnitude_f32(const float *x, size_t n) {
    const vi mask = vi_set1(0x7fffffff);
    vi a = vi_set1(0), b = a;
    size_t i = 0;
    for (; i + 2 * VF_N <= n; i += 2 * VF_N) {
        a = vi_max(a, vi_and(vi_load(x + i), mask));
        b = vi_max(b, vi_and(vi_load(x + i + VF_N), mask));
    }
    int32_t top = vi_hmax(vi_max(a, b));
    for (; i < n; i++) {
        int32_t u;
        memcpy(&u, x + i, 4);
        u &= 0x7fffffff;
        if (u > top) top = u;
    }
    return top;
}

static int32_t magnitude_bf16(const uint16_t *x, size_t n) {
    const vi mask = vi_set1(0x7fff7fff);
    vi a = vi_set1(0), b = a;
    size_t i = 0;
    for (; i + 4 * VF_N <= n; i += 4 * VF_N) {
        a = vi_max16(a, vi_and(vi_load(x + i), mask));
        b = vi_max16(b, vi_and(vi_load(x + i + 2 * VF_N), mask));
    }
    a = vi_max16(a, b);
    int32_t top = vi_hmax(vi_max(vi_shr(a, 16), vi_and(a, vi_set1(0xffff))));
    for (; i < n; i++) {
        int32_t u = x[i] & 0x7fff;
        if (u > top) top = u;
    }
    return (int32_t)((uint32_t)top << 16);
}

float DPK_LEVEL_FN(magnitude)(const void *x, int dtype, size_t n) {
    int32_t bits = dtype == DPK_BF16 ? magnitude_bf16(x, n) : magnitude_f32(x, n);
    float top;
    memcpy(&top, &bits, 4);
    return top;
}

/* ---- Rows ------------------------------------------------------------------------------------ */

/* Round VF_N quotients, limit them to -128 .. 127 and store n of them, n a multiple of 4 where
 * VF_N is. */
#if VF_N == 16
VF_INLINE void put(void *q, size_t i, int format, vf quotient, int n) {
    __m128i b = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(quotient));
    if (format == DPK_A_S16) {
        const __m256i order = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
        __m256i w = _mm256_shuffle_epi8(_mm256_cvtepi8_epi16(b), order);
        _mm256_mask_storeu_epi16((int16_t *)q + i, vf_tail_(n), w);
    } else {
        if (format == DPK_A_U8) b = _mm_xor_si128(b, _mm_set1_epi8((char)0x80));
        _mm_mask_storeu_epi8((int8_t *)q + i, vf_tail_(n), b);
    }
}
#elif VF_N == 8
VF_INLINE void put(void *q, size_t i, int format, vf quotient, int n) {
    const __m128i lo = _mm_set1_epi16(-128), hi = _mm_set1_epi16(127);
    __m256i u = _mm256_cvtps_epi32(quotient);
    __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
    w = _mm_min_epi16(_mm_max_epi16(w, lo), hi);
    if (format == DPK_A_S16) {
        w = _mm_shuffle_epi8(w,
                             _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
        char *to = (char *)q + 2 * i;
        if (n == 8) _mm_storeu_si128((__m128i *)(void *)to, w);
        else _mm_storel_epi64((__m128i *)(void *)to, w);
    } else {
        __m128i b = _mm_packs_epi16(w, w);
        if (format == DPK_A_U8) b = _mm_xor_si128(b, _mm_set1_epi8((char)0x80));
        char *to = (char *)q + i;
        if (n == 8) _mm_storel_epi64((__m128i *)(void *)to, b);
        else _mm_storeu_si32(to, b);
    }
}
#elif VF_N == 4
VF_INLINE void put(void *q, size_t i, int format, vf quotient, int n) {
    int16x4_t w = vqmovn_s32(vcvtnq_s32_f32(quotient));
    w = vmin_s16(vmax_s16(w, vdup_n_s16(-128)), vdup_n_s16(127));
    (void)n;
    if (format == DPK_A_S16) {
        vst1_s16((int16_t *)q + i, vuzp1_s16(w, vext_s16(w, w, 1)));
    } else {
        uint8x8_t b = vreinterpret_u8_s8(vmovn_s16(vcombine_s16(w, w)));
        if (format == DPK_A_U8) b = veor_u8(b, vdup_n_u8(0x80));
        uint32_t four = vget_lane_u32(vreinterpret_u32_u8(b), 0);
        memcpy((char *)q + i, &four, 4);
    }
}
#else
VF_INLINE void put(void *q, size_t i, int format, vf quotient, int n) {
    static const int order[4] = {0, 2, 1, 3};
    float v = vf_min(vf_set1(127.0f), vf_max(vf_set1(-128.0f), vf_round(quotient)));
    (void)n;
    if (format == DPK_A_S16) ((int16_t *)q)[i / 4 * 4 + (size_t)order[i % 4]] = (int16_t)v;
    else if (format == DPK_A_U8) ((uint8_t *)q)[i] = (uint8_t)((int)v + 128);
    else ((int8_t *)q)[i] = (int8_t)v;
}
#endif

VF_INLINE vf divide(vf x, vf scale, vf r, bool torchao) {
#if VF_N > 1
    vf q = vf_mul(x, r);
    if (torchao) return q;
    return vf_fma(vf_fma(vf_sub(vf_zero(), q), scale, x), r, q);
#else
    return torchao ? x * r : x / scale;
#endif
}

VF_INLINE void quantize(const struct dpk_quantize *t, int dtype, int format, bool torchao) {
    const vf scale = vf_set1(t->scale), r = vf_set1(1.0f / t->scale);
    size_t i = 0;
    for (; i + VF_N <= t->n; i += VF_N) {
        put(t->q, i, format, divide(vf_loada(t->x, dtype, i, VF_N), scale, r, torchao), VF_N);
    }
    if (i < t->n) {
        int n = (int)(t->n - i);
        vf x = vf_loada(t->x, dtype, i, n);
        put(t->q, i, format, divide(x, scale, r, torchao), (n + 3) / 4 * 4);
    }
    for (; VF_N == 1 && i % 4; i++) put(t->q, i, format, vf_zero(), 1);
}

VF_INLINE void by_format(const struct dpk_quantize *t, int dtype, bool torchao) {
    if (t->format == DPK_A_U8) quantize(t, dtype, DPK_A_U8, torchao);
    else if (t->format == DPK_A_S16) quantize(t, dtype, DPK_A_S16, torchao);
    else quantize(t, dtype, DPK_A_S8, torchao);
}

void DPK_LEVEL_FN(quantize)(const struct dpk_quantize *t) {
    if (t->dtype == DPK_BF16) {
        if (t->torchao) by_format(t, DPK_BF16, true);
        else by_format(t, DPK_BF16, false);
    } else {
        if (t->torchao) by_format(t, DPK_F32, true);
        else by_format(t, DPK_F32, false);
    }
}

/* ---- Panels ---------------------------------------------------------------------------------- */

/* Byte j of each lane as a float. */
#define BYTE(a, j) vi_float(vi_sar(vi_shl(a, 24 - 8 * (j)), 24))
/* An integer of 8 bits is exact in a bfloat16: the upper half of the float. */
#define BYTES(a, j) vi_or(vi_shr(vi_bits(BYTE(a, j)), 16), vi_and(vi_bits(BYTE(a, (j) + 1)), high))

void DPK_LEVEL_FN(widen_s8)(uint16_t *dst, const int8_t *src, size_t quads) {
    const vi high = vi_set1((int32_t)0xffff0000u);
    for (; quads > 0; quads--, src += 64, dst += 64) {
        for (int r = 0; r < 16; r += VF_N) {
            vi a = vi_load(src + 4 * r);
            vi_store(dst + 2 * r, BYTES(a, 0));
            vi_store(dst + 32 + 2 * r, BYTES(a, 2));
        }
    }
}

/* Value j of the eight of each lane, times scale. */
#define NIBBLE(j) vf_mul(vi_float(vi_sar(vi_shl(a, 28 - 4 * (j)), 28)), scale)
#define PAIR(j)                                                                                    \
    vi_store((uint16_t *)dst + 32 * ((j) / 2) + 2 * r,                                             \
             vi_or(vi_shr(round_high(NIBBLE(j)), 16), round_high(NIBBLE((j) + 1))));
#define SINGLE(j) vf_store((float *)dst + 16 * (j) + r, NIBBLE(j));

VF_INLINE void widen_octet(void *dst, int dtype, const uint8_t *src, const float *scales) {
    for (int r = 0; r < 16; r += VF_N) {
        const vi a = vi_load(src + 4 * r);
        const vf scale = vf_load(scales + r);
        if (dtype == DPK_BF16) {
            PAIR(0) PAIR(2) PAIR(4) PAIR(6)
        } else {
            SINGLE(0) SINGLE(1) SINGLE(2) SINGLE(3) SINGLE(4) SINGLE(5) SINGLE(6) SINGLE(7)
        }
    }
}

VF_INLINE void widen_octets(char *dst, int dtype, const uint8_t *src, size_t octets,
                            const float *scale, size_t group) {
    const size_t step = dtype == DPK_BF16 ? 256 : 512;
    for (size_t i = 0, left = group; i < octets; i++, src += 64, dst += step) {
        widen_octet(dst, dtype, src, scale);
        if (--left == 0) left = group, scale += 16;
    }
}

void DPK_LEVEL_FN(widen_s4)(void *dst, int dtype, const uint8_t *src, size_t octets,
                            const float *scale, size_t group) {
    if (dtype == DPK_BF16) widen_octets(dst, DPK_BF16, src, octets, scale, group);
    else widen_octets(dst, DPK_F32, src, octets, scale, group);
}
