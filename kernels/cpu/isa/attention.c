/* Attention kernels beside the two products: packing of keys and values, online softmax, rescaling.
 *
 * Softmax works in powers of two: 2^x = 2^n 2^f with n = round(x), |f| <= 1/2; 2^f by a polynomial
 * whose relative error is 1e-7 (float32 probabilities) or 8e-5 (bfloat16 probabilities, whose
 * rounding is 2e-3). Below 2^-126 the result is zero, which also makes 2^-inf = 0. In the usual
 * case (no bias, no mask) a row is read twice and nothing but probabilities is written. */
#include "isa.h"
#include "vec.h"

#include <float.h>

/* ---- Packing -------------------------------------------------------------------------------- */

#if VF_N >= 8
#define UNROLL _Pragma("GCC unroll 8")
/* An 8x8 transpose of 32-bit units: row i from src + i * stride_bytes, column j to dst + 16 * j. */
VF_INLINE void transpose_8x8(uint32_t *dst, const char *src, size_t stride_bytes) {
    __m256 r[8], t[8];
    UNROLL for (int i = 0; i < 8; i++) {
        r[i] = _mm256_loadu_ps((const float *)(const void *)(src + (size_t)i * stride_bytes));
    }
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
        _mm256_storeu_ps((float *)(void *)(dst + 16 * i),
                         _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps((float *)(void *)(dst + 16 * (i + 4)),
                         _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}
/* Eight units of 16 rows: columns of dst. */
VF_INLINE void transpose_16x8(uint32_t *dst, const char *src, size_t stride_bytes) {
    transpose_8x8(dst, src, stride_bytes);
    transpose_8x8(dst + 8, src + 8 * stride_bytes, stride_bytes);
}
#elif VF_N == 4
VF_INLINE void transpose_4x4(uint32_t *dst, const char *src, size_t stride_bytes) {
    uint32x4_t r[4];
    for (int i = 0; i < 4; i++) {
        r[i] = vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)src + (size_t)i * stride_bytes));
    }
    uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(r[0], r[1]));
    uint64x2_t b = vreinterpretq_u64_u32(vtrn2q_u32(r[0], r[1]));
    uint64x2_t c = vreinterpretq_u64_u32(vtrn1q_u32(r[2], r[3]));
    uint64x2_t d = vreinterpretq_u64_u32(vtrn2q_u32(r[2], r[3]));
    vst1q_u32(dst, vreinterpretq_u32_u64(vtrn1q_u64(a, c)));
    vst1q_u32(dst + 16, vreinterpretq_u32_u64(vtrn1q_u64(b, d)));
    vst1q_u32(dst + 32, vreinterpretq_u32_u64(vtrn2q_u64(a, c)));
    vst1q_u32(dst + 48, vreinterpretq_u32_u64(vtrn2q_u64(b, d)));
}
VF_INLINE void transpose_16x8(uint32_t *dst, const char *src, size_t stride_bytes) {
    for (int r = 0; r < 16; r += 4, src += 4 * stride_bytes) {
        transpose_4x4(dst + r, src, stride_bytes);
        transpose_4x4(dst + r + 64, src + 16, stride_bytes);
    }
}
#endif

/* Both types are a transpose of 32-bit units: one float, or a pair of bfloat16. */
void DPK_LEVEL_FN(attn_pack_k)(void *dst, const void *src, int dtype, size_t stride, int rows,
                               int cols) {
    uint32_t *d = dst;
    int g = dtype == DPK_BF16 ? 2 : 1, units = cols / g, j = 0;
    size_t stride_bytes = stride * (dtype == DPK_BF16 ? 2 : 4);
    if (rows < 16) memset(d, 0, (size_t)((cols + g - 1) / g) * 64);
#if VF_N > 1
    if (rows == 16) {
        for (; j + 8 <= units; j += 8) {
            transpose_16x8(d + j * 16, (const char *)src + (size_t)j * 4, stride_bytes);
        }
    }
#endif
    for (; j < units; j++) {
        for (int r = 0; r < rows; r++) {
            memcpy(&d[j * 16 + r], (const char *)src + (size_t)r * stride_bytes + (size_t)j * 4, 4);
        }
    }
    if (units * g < cols) { /* an odd last channel, its partner zero */
        for (int r = 0; r < rows; r++) {
            d[j * 16 + r] = ((const uint16_t *)src)[(size_t)r * stride + (size_t)cols - 1];
        }
    }
}

/* Sixteen pairs (a[i], b[i]) of bfloat16, a first in memory. */
VF_INLINE void zip16(uint16_t *dst, const uint16_t *a, const uint16_t *b) {
#if VF_N >= 8
    for (int h = 0; h < 16; h += 8) {
        __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(a + h));
        __m128i y = _mm_loadu_si128((const __m128i *)(const void *)(b + h));
        _mm_storeu_si128((__m128i *)(void *)(dst + 2 * h), _mm_unpacklo_epi16(x, y));
        _mm_storeu_si128((__m128i *)(void *)(dst + 2 * h + 8), _mm_unpackhi_epi16(x, y));
    }
#else
    for (int i = 0; i < 16; i++) {
        dst[2 * i] = a[i];
        dst[2 * i + 1] = b[i];
    }
#endif
}

VF_INLINE void pack_v_bf16(uint16_t *dst, const uint16_t *src, size_t stride, int rows, int n) {
    for (int r = 0; r < rows; r += 2, dst += 32) {
        const uint16_t *a = src + (size_t)r * stride, *b = a + stride;
        bool pair = r + 1 < rows;
        if (n == 16 && pair) {
            zip16(dst, a, b);
            continue;
        }
        memset(dst, 0, 64);
        for (int i = 0; i < n; i++) {
            dst[2 * i] = a[i];
            if (pair) dst[2 * i + 1] = b[i];
        }
    }
}

VF_INLINE void pack_v_f32(float *dst, const float *src, size_t stride, int rows, int n) {
    for (int r = 0; r < rows; r++, dst += 16) {
        if (n < 16) memset(dst, 0, 64);
        memcpy(dst, src + (size_t)r * stride, (size_t)n * 4);
    }
}

void DPK_LEVEL_FN(attn_pack_v)(void *dst, size_t panel, const void *src, int dtype, size_t stride,
                               int rows, int cols) {
    for (int c = 0; c < cols; c += 16) {
        int n = cols - c < 16 ? cols - c : 16;
        size_t at = (size_t)(c / 16) * panel;
        if (dtype == DPK_BF16) {
            pack_v_bf16((uint16_t *)dst + at, (const uint16_t *)src + c, stride, rows, n);
        } else {
            pack_v_f32((float *)dst + at, (const float *)src + c, stride, rows, n);
        }
    }
}

/* ---- Softmax -------------------------------------------------------------------------------- */

#if VF_N > 1
VF_INLINE vf exp2_nonpositive(vf x, int dtype) {
    vf n = vf_round(x), f = vf_sub(x, n), p;
    if (dtype == DPK_BF16) {
        p = vf_fma(vf_set1(0.05517167f), f, vf_set1(0.24261113f));
        p = vf_fma(p, f, vf_set1(0.69326099f));
        p = vf_fma(p, f, vf_set1(0.99992807f));
    } else {
        p = vf_fma(vf_set1(1.535336188e-4f), f, vf_set1(1.339887440e-3f));
        p = vf_fma(p, f, vf_set1(9.618437358e-3f));
        p = vf_fma(p, f, vf_set1(5.550332471e-2f));
        p = vf_fma(p, f, vf_set1(2.402264791e-1f));
        p = vf_fma(p, f, vf_set1(6.931472029e-1f));
        p = vf_fma(p, f, vf_set1(1.0f));
    }
    return vf_if_lt(x, vf_set1(-126.0f), vf_zero(), vf_scale2(p, n));
}
/* v as it will be read back from the probabilities. */
VF_INLINE vf rounded(vf v, int dtype) {
    return dtype == DPK_BF16 ? vf_from_bf16_(vf_to_bf16_(v)) : v;
}
#else
VF_INLINE vf exp2_nonpositive(vf x, int dtype) {
    (void)dtype;
    return x < -126.0f ? 0.0f : exp2f(x);
}
VF_INLINE vf rounded(vf v, int dtype) {
    return dtype == DPK_BF16 ? dpk_bf16_f32(dpk_f32_bf16(v)) : v;
}
#endif

/* Lanes from n on do not count: they become `fill`. */
VF_INLINE vf fill_from(vf v, int n, float fill) {
    static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return vf_if_lt(vf_load(lane), vf_set1((float)n), v, vf_set1(fill));
}

/* The finite logits of keys j .. j+k of row r, all terms added; lanes from k on are -inf. */
VF_INLINE vf logits(const struct dpk_attn_softmax *p, int dtype, int r, int j, int k) {
    vf big = vf_set1(FLT_MAX), small = vf_set1(-FLT_MAX);
    const float *s = p->s + (size_t)r * p->s_stride + j;
    vf t = vf_mul(k == VF_N ? vf_load(s) : vf_loadn(s, k), vf_set1(p->scale));
    t = vf_max(vf_min(t, big), small); /* NaN, of inf - inf in the product, becomes the largest */
    if (p->bias) {
        vf b = vf_loada(p->bias, dtype, (size_t)r * p->bias_stride + (size_t)j, k);
        t = vf_fma(b, vf_set1(1.44269504f), t);
        t = vf_max(vf_min(t, big), small);
    }
    if (p->mask) t = vf_add(t, k == VF_N ? vf_load(p->mask + j) : vf_loadn(p->mask + j, k));
    return k == VF_N ? t : fill_from(t, k, -INFINITY);
}

/* Write 2^(s * scale - m) of n logits and return their sum; n includes a tail. */
VF_INLINE float exponentials(const float *s, void *out, int dtype, size_t at, int n, float scale,
                             float m) {
    vf vs = vf_set1(scale), vm = vf_set1(-m), a = vf_zero(), b = vf_zero();
    int j = 0;
    for (; j + 2 * VF_N <= n; j += 2 * VF_N) {
        vf x = exp2_nonpositive(vf_fma(vf_load(s + j), vs, vm), dtype);
        vf y = exp2_nonpositive(vf_fma(vf_load(s + j + VF_N), vs, vm), dtype);
        vf_storea(out, dtype, at + (size_t)j, x, VF_N);
        vf_storea(out, dtype, at + (size_t)(j + VF_N), y, VF_N);
        a = vf_add(a, rounded(x, dtype));
        b = vf_add(b, rounded(y, dtype));
    }
    for (; j < n; j += VF_N) {
        int k = n - j < VF_N ? n - j : VF_N;
        vf x = exp2_nonpositive(vf_fma(vf_loadn(s + j, k), vs, vm), dtype);
        if (k < VF_N) x = fill_from(x, k, 0.0f);
        vf_storea(out, dtype, at + (size_t)j, x, k);
        a = vf_add(a, rounded(x, dtype));
    }
    return vf_sum(vf_add(a, b));
}

/* The largest s * scale of n logits (NaN is passed over). */
VF_INLINE float largest(const float *s, int n, float scale) {
    vf vs = vf_set1(scale), a = vf_set1(-INFINITY), b = a;
    int j = 0;
    for (; j + 2 * VF_N <= n; j += 2 * VF_N) {
        a = vf_max(vf_mul(vf_load(s + j), vs), a);
        b = vf_max(vf_mul(vf_load(s + j + VF_N), vs), b);
    }
    for (; j < n; j += VF_N) {
        int k = n - j < VF_N ? n - j : VF_N;
        vf t = vf_mul(vf_loadn(s + j, k), vs);
        a = vf_max(k < VF_N ? fill_from(t, k, -INFINITY) : t, a);
    }
    return vf_hmax(vf_max(a, b));
}

/* Replace the logits of a row by finite ones with bias and mask in; their largest. */
VF_INLINE float prepare(const struct dpk_attn_softmax *p, int dtype, int r, int n) {
    float *s = p->s + (size_t)r * p->s_stride;
    vf a = vf_set1(-INFINITY);
    for (int j = 0; j < n; j += VF_N) {
        int k = n - j < VF_N ? n - j : VF_N;
        vf t = logits(p, dtype, r, j, k);
        vf_storen(s + j, t, k);
        a = vf_max(t, a);
    }
    return vf_hmax(a);
}

/* One row on finite prepared logits, or on raw ones: then false if they were not all finite
 * (nothing is changed). */
VF_INLINE bool row(const struct dpk_attn_softmax *p, int dtype, int r, int n, float top,
                   float scale) {
    float before = p->m[r], m = top > before ? top : before;
    float sum = exponentials(p->s + (size_t)r * p->s_stride, p->p, dtype, (size_t)r * p->p_stride,
                             n, scale, m > -INFINITY ? m : 0.0f);
    if (!(sum < INFINITY)) return false;
    p->alpha[r] = before > -INFINITY ? exp2f(before - m) : 0.0f;
    p->l[r] = p->l[r] * p->alpha[r] + sum;
    p->m[r] = m;
    return true;
}

VF_INLINE void softmax(const struct dpk_attn_softmax *p, int dtype) {
    size_t size = dtype == DPK_BF16 ? 2 : 4;
    for (int r = 0; r < p->rows; r++) {
        int64_t sees = p->first + (int64_t)r * p->more;
        int n = sees < 0 ? 0 : sees < p->n ? (int)sees : p->n;
        bool done = false;
        if (!p->bias && !p->mask) {
            float top = largest(p->s + (size_t)r * p->s_stride, n, p->scale);
            done = (n == 0 || top > -INFINITY) && row(p, dtype, r, n, top, p->scale);
        }
        if (!done) row(p, dtype, r, n, prepare(p, dtype, r, n), 1.0f);
        memset((char *)p->p + ((size_t)r * p->p_stride + (size_t)n) * size, 0,
               (size_t)(p->n - n) * size);
    }
}

void DPK_LEVEL_FN(attn_softmax)(const struct dpk_attn_softmax *p) {
    if (p->dtype == DPK_BF16) softmax(p, DPK_BF16);
    else softmax(p, DPK_F32);
}

void DPK_LEVEL_FN(attn_rescale)(float *o, size_t o_stride, const float *t, size_t t_stride,
                                int rows, int n, const float *alpha) {
    for (int r = 0; r < rows; r++, o += o_stride, t += t_stride) {
        vf a = vf_set1(alpha[r]);
        int c = 0;
        for (; c + VF_N <= n; c += VF_N) {
            vf_store(o + c, vf_fma(vf_load(o + c), a, vf_load(t + c)));
        }
        if (c < n) {
            int k = n - c;
            vf_storen(o + c, vf_fma(vf_loadn(o + c, k), a, vf_loadn(t + c, k)), k);
        }
    }
}
