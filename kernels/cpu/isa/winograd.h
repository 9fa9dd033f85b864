/* Transforms of Winograd convolution F(4x4,3x3) that its two kinds of products share (contracts:
 * kernels_winograd.h; method: winograd.h of the folder above).
 *
 * Points 0, a, -a, b, -b, infinity. In one dimension, d of 6 to V of 6, g of 3 to U of 6, m of 6 to
 * Y of 4:
 *     V1,2 = (d4 - b^2 d2) +- a (d3 - b^2 d1)       U1,2 = g0 + a^2 g2 +- a g1
 *     V3,4 = (d4 - a^2 d2) +- b (d3 - a^2 d1)       U3,4 = g0 + b^2 g2 +- b g1
 *     V0 = d4 - (a^2 + b^2) d2 + a^2 b^2 d0         U0 = g0
 *     V5 = d5 - (a^2 + b^2) d3 + a^2 b^2 d1         U5 = g2
 *     Y0 = m0 + s + t, Y1 = a e + b f, Y2 = a^2 s + b^2 t, Y3 = a^3 e + b^3 f + m5
 *     with s, e = m1 +- m2 and t, f = m3 +- m4
 * U also wants the points' divisors, 1 / prod(p_j - p_l).
 *
 * Vectors go along channels (input) and filters (weights, output), where they lie side by side. */
#ifndef DPK_ISA_WINOGRAD_H
#define DPK_ISA_WINOGRAD_H

#include "isa.h"
#include "vec.h"

#define A 0.65f
#define B 1.5f
#define A2 (A * A)
#define B2 (B * B)

/* Loops of constant length whose arrays are to be registers. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* One factor of a transformed filter: (1, p, p^2) for the points, (0, 0, 1) for infinity. */
static const float g_rows[6][3] = {{1, 0, 0},  {1, A, A2},  {1, -A, A2},
                                   {1, B, B2}, {1, -B, B2}, {0, 0, 1}};
static const float divisors[6] = {A2 * B2,           2 * A2 *(A2 - B2), 2 * A2 *(A2 - B2),
                                  2 * B2 *(B2 - A2), 2 * B2 *(B2 - A2), 1};

/* VF_N pairs of 16-bit numbers, bfloat16 or half precision, to floats. */
#if VF_N == 16
VF_INLINE void load_pairs(const uint16_t *p, int dtype, vf *even, vf *odd) {
    __m512i u = _mm512_loadu_si512(p);
    if (dtype == DPK_BF16) {
        *even = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
        *odd = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000)));
    } else {
        *even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(u));
        *odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
    }
}
#elif VF_N == 8
VF_INLINE __m256 load_halves_(__m256i pairs) { /* the lower 16 bits of each pair */
    pairs = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff));
    pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(pairs, pairs), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(pairs));
}
VF_INLINE void load_pairs(const uint16_t *p, int dtype, vf *even, vf *odd) {
    __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)p);
    if (dtype == DPK_BF16) {
        *even = _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
        *odd = _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32((int)0xffff0000)));
    } else {
        *even = load_halves_(u);
        *odd = load_halves_(_mm256_srli_epi32(u, 16));
    }
}
#elif VF_N == 4
VF_INLINE void load_pairs(const uint16_t *p, int dtype, vf *even, vf *odd) {
    uint32x4_t u = vreinterpretq_u32_u16(vld1q_u16(p));
    if (dtype == DPK_BF16) {
        *even = vreinterpretq_f32_u32(vshlq_n_u32(u, 16));
        *odd = vreinterpretq_f32_u32(vandq_u32(u, vdupq_n_u32(0xffff0000)));
    } else {
        *even = vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(u)));
        *odd = vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(u, 16)));
    }
}
#else
VF_INLINE void load_pairs(const uint16_t *p, int dtype, vf *even, vf *odd) {
    uint16_t e[VF_N], o[VF_N];
    for (int i = 0; i < VF_N; i++) e[i] = p[2 * i], o[i] = p[2 * i + 1];
    *even = dtype == DPK_BF16 ? vf_load_bf16(e) : vf_load_f16(e);
    *odd = dtype == DPK_BF16 ? vf_load_bf16(o) : vf_load_f16(o);
}
#endif

VF_INLINE vf load_gain(const struct dpk_wino_weights *w, int n) {
    return w->gain ? vf_load(w->gain + n) : vf_set1(1.0f);
}

/* Factors of the taps of filters n .. n + VF_N at row w->row, times `scale`: of its first tap where
 * there is but one. */
VF_INLINE void load_factors(const struct dpk_wino_weights *w, int n, float scale, vf *g) {
    const int first = w->row == 5 ? 2 : 0;
    for (int y = 0; y + first < 3; y++) {
        g[y] = vf_mul(load_gain(w, n), vf_set1(g_rows[w->row][y + first] * scale));
    }
}

/* Columns of the transformed filters at row w->row, channels k and k + 1 of filters n .. n + VF_N:
 * even[x], odd[x] = sum over y of g[y] times tap (y, x). `inner`: rows 1 to 4, of all three y. */
VF_INLINE void sum_taps(const struct dpk_wino_weights *w, int dtype, bool inner, int32_t k, int n,
                        const vf *g, vf *even, vf *odd) {
    const size_t at = (size_t)k * 16 + (size_t)n * (dtype == DPK_F32 ? 1 : 2);
    const size_t first = !inner && w->row == 5 ? 6 * w->tap : 0;
    UNROLL
    for (int x = 0; x < 3; x++) {
        UNROLL
        for (int y = 0; y < 3; y++) {
            if (y && !inner) continue;
            const size_t tap = first + (size_t)(3 * y + x) * w->tap + at;
            vf e, o;
            if (dtype == DPK_F32) {
                const float *p = (const float *)w->panel + tap;
                e = vf_load(p);
                o = vf_load(p + 16);
                __builtin_prefetch(p + 256);
            } else {
                const uint16_t *p = (const uint16_t *)w->panel + tap;
                load_pairs(p, dtype, &e, &o);
                __builtin_prefetch(p + 256);
            }
            even[x] = y ? vf_fma(e, g[y], even[x]) : vf_mul(e, g[0]);
            odd[x] = y ? vf_fma(o, g[y], odd[x]) : vf_mul(o, g[0]);
        }
    }
}

/* d of 6 to V of 6. */
VF_INLINE void transform_d(const vf *d, vf *v) {
    vf t1 = vf_fma(d[2], vf_set1(-B2), d[4]), t2 = vf_fma(d[1], vf_set1(-B2), d[3]);
    vf t3 = vf_fma(d[2], vf_set1(-A2), d[4]), t4 = vf_fma(d[1], vf_set1(-A2), d[3]);
    v[0] = vf_fma(d[0], vf_set1(A2 * B2), vf_fma(d[2], vf_set1(-A2 - B2), d[4]));
    v[1] = vf_fma(t2, vf_set1(A), t1);
    v[2] = vf_fma(t2, vf_set1(-A), t1);
    v[3] = vf_fma(t4, vf_set1(B), t3);
    v[4] = vf_fma(t4, vf_set1(-B), t3);
    v[5] = vf_fma(d[1], vf_set1(A2 * B2), vf_fma(d[3], vf_set1(-A2 - B2), d[5]));
}

/* The lines at channel `first` + k of those pixels of the next tile that this one has not. */
VF_INLINE void prefetch_next(const struct dpk_wino_input *in, int dtype, int32_t k) {
    size_t at = (size_t)(in->first + k) * (dtype == DPK_BF16 ? 2 : 4);
    for (int y = 0; y < 6; y++) {
        UNROLL
        for (int x = 2; x < 6; x++) __builtin_prefetch((const char *)in->next[6 * y + x] + at);
    }
}

/* n <= VF_N channels from k on, to to[p * stride] for each position. */
VF_INLINE void transform_tile(const struct dpk_wino_input *in, int dtype, int32_t k, int n,
                              float *to, size_t stride) {
    vf columns[6][6]; /* [x][i] */
    UNROLL
    for (int x = 0; x < 6; x++) {
        vf d[6];
        UNROLL
        for (int y = 0; y < 6; y++) {
            d[y] = vf_loada(in->pixel[6 * y + x], dtype, (size_t)(in->first + k), n);
        }
        transform_d(d, columns[x]);
    }
    UNROLL
    for (int i = 0; i < 6; i++) {
        vf d[6], v[6];
        UNROLL
        for (int x = 0; x < 6; x++) d[x] = columns[x][i];
        transform_d(d, v);
        UNROLL
        for (int j = 0; j < 6; j++) vf_store(to + (size_t)(6 * i + j) * stride, v[j]);
    }
}

#endif
