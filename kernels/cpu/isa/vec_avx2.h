/* vec.h with AVX2, FMA and F16C: 8 lanes, tails by masked moves (float) or a buffer (16-bit). */
#ifndef DPK_VEC_AVX2_H
#define DPK_VEC_AVX2_H

#include <immintrin.h>

#define VF_N 8
typedef __m256 vf;

VF_INLINE __m256i vf_tail_(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

VF_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
VF_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
VF_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
VF_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
VF_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
VF_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
VF_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); } /* a b + c */
VF_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }            /* b if either is NaN */
VF_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }            /* b if either is NaN */
VF_INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
VF_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
VF_INLINE vf vf_round(vf a) { return _mm256_round_ps(a, 8); } /* nearest even */
/* a 2^n, n integral in -252 .. 254, in two steps so that results may be subnormal or infinite */
VF_INLINE vf vf_scale2(vf a, vf n) {
    __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1),
            bias = _mm256_set1_epi32(127);
    __m256i s = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i t = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(s)), _mm256_castsi256_ps(t));
}
/* a < b ? x : y, lane by lane; y where a or b is NaN */
VF_INLINE vf vf_if_lt(vf a, vf b, vf x, vf y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
VF_INLINE float vf_sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
VF_INLINE float vf_hmax(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

VF_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
VF_INLINE vf vf_loadn(const float *p, int n) { return _mm256_maskload_ps(p, vf_tail_(n)); }
VF_INLINE void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
VF_INLINE void vf_storen(float *p, vf v, int n) { _mm256_maskstore_ps(p, vf_tail_(n), v); }

VF_INLINE vf vf_from_bf16_(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
VF_INLINE __m128i vf_to_bf16_(vf v) {
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
    r = _mm256_srli_epi32(r, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
/* The first n of 8 16-bit elements; the rest 0. */
VF_INLINE __m128i vf_loadn16_(const uint16_t *p, int n) {
    uint16_t buffer[8] = {0};
    for (int i = 0; i < n; i++) buffer[i] = p[i];
    return _mm_loadu_si128((const __m128i *)(const void *)buffer);
}
VF_INLINE vf vf_load_bf16(const uint16_t *p) {
    return vf_from_bf16_(_mm_loadu_si128((const __m128i *)(const void *)p));
}
VF_INLINE vf vf_loadn_bf16(const uint16_t *p, int n) { return vf_from_bf16_(vf_loadn16_(p, n)); }
VF_INLINE void vf_store_bf16(uint16_t *p, vf v) {
    _mm_storeu_si128((__m128i *)(void *)p, vf_to_bf16_(v));
}
VF_INLINE void vf_storen_bf16(uint16_t *p, vf v, int n) {
    uint16_t buffer[8];
    _mm_storeu_si128((__m128i *)(void *)buffer, vf_to_bf16_(v));
    for (int i = 0; i < n; i++) p[i] = buffer[i];
}
VF_INLINE vf vf_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
VF_INLINE vf vf_loadn_f16(const uint16_t *p, int n) { return _mm256_cvtph_ps(vf_loadn16_(p, n)); }

#endif
