/* Winograd convolution F(4x4,3x3) in 16-bit integers: scales and transforms of weights and input
 * (contracts: kernels_winograd.h; method and scales: winograd.h of the folder above). U lacks the
 * points' divisors: they are put into its scales. */
#include "winograd.h"

/* The longest vector of integers. */
#define LONGEST 32700.0f
#define SHORTEST 1e-17f

/* DPK_WINO_POS in whole vectors. */
#define LENGTHS ((DPK_WINO_POS + VF_N - 1) / VF_N * VF_N)

/* Rounding to the nearest integer by adding 1.5 2^23: the low bits of the sum are the integer's. */
#define MAGIC 12582912.0f

/* x, or NaN where y is not finite. */
VF_INLINE vf spoil(vf x, vf y) { return vf_add(x, vf_sub(y, y)); }

/* ---- Pairs of 16-bit numbers ----------------------------------------------------------------
 * store_pairs: two vectors of rounded integers to VF_N pairs; store_run: to 2 VF_N in a row. What
 * is stored is already x plus MAGIC; numbers are in the range of 16 bits or do not matter. */

#if VF_N == 16
VF_INLINE void store_pairs(int16_t *p, vf even, vf odd) {
    const __m512i up =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 0, 1, 0, 1, 4, 5, 0, 1, 8, 9, 0, 1, 12, 13));
    __m512i e = _mm512_castps_si512(even), o = _mm512_castps_si512(odd);
    _mm512_storeu_si512(p, _mm512_mask_shuffle_epi8(e, 0xcccccccccccccccc, o, up));
}
VF_INLINE void store_run(int16_t *p, vf x, vf y) {
    __m512i a = _mm512_castps_si512(x), b = _mm512_castps_si512(y);
    const __m512i even =
        _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                         24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(a, even, b));
}
#elif VF_N == 8
VF_INLINE void store_pairs(int16_t *p, vf even, vf odd) {
    __m256i e = _mm256_castps_si256(even), o = _mm256_castps_si256(odd);
    e = _mm256_blend_epi16(e, _mm256_slli_epi32(o, 16), 0xaa);
    _mm256_storeu_si256((__m256i *)(void *)p, e);
}
VF_INLINE void store_run(int16_t *p, vf x, vf y) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    __m256i a = _mm256_and_si256(_mm256_castps_si256(x), low);
    __m256i b = _mm256_and_si256(_mm256_castps_si256(y), low);
    a = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    _mm256_storeu_si256((__m256i *)(void *)p, a);
}
#elif VF_N == 4
VF_INLINE void store_pairs(int16_t *p, vf even, vf odd) {
    uint32x4_t e = vreinterpretq_u32_f32(even), o = vreinterpretq_u32_f32(odd);
    vst1q_s16(p, vreinterpretq_s16_u32(vsliq_n_u32(e, o, 16)));
}
VF_INLINE void store_run(int16_t *p, vf x, vf y) {
    int16x4_t a = vmovn_s32(vreinterpretq_s32_f32(x)), b = vmovn_s32(vreinterpretq_s32_f32(y));
    vst1q_s16(p, vcombine_s16(a, b));
}
#else
VF_INLINE void store_pairs(int16_t *p, vf even, vf odd) {
    float e[VF_N], o[VF_N];
    vf_store(e, even);
    vf_store(o, odd);
    for (int i = 0; i < VF_N; i++) {
        memcpy(p + 2 * i, e + i, 2); /* little-endian */
        memcpy(p + 2 * i + 1, o + i, 2);
    }
}
VF_INLINE void store_run(int16_t *p, vf x, vf y) {
    float f[2 * VF_N];
    vf_store(f, x);
    vf_store(f + VF_N, y);
    for (int i = 0; i < 2 * VF_N; i++) memcpy(p + i, f + i, 2);
}
#endif

/* ---- Weights -------------------------------------------------------------------------------- */

#ifdef DPK_LEVEL_avx512bf16
typedef __m512bh pairs;
VF_INLINE pairs load_taps(const uint16_t *p) { return (__m512bh)_mm512_loadu_si512(p); }
VF_INLINE vf dot(vf sum, pairs x, pairs y) { return _mm512_dpbf16_ps(sum, x, y); }
#else
typedef struct {
    vf even, odd;
} pairs;
VF_INLINE pairs load_taps(const uint16_t *p) {
    pairs x;
    load_pairs(p, DPK_BF16, &x.even, &x.odd);
    return x;
}
VF_INLINE vf dot(vf sum, pairs x, pairs y) {
    return vf_fma(x.odd, y.odd, vf_fma(x.even, y.even, sum));
}
#endif

/* The products of every two of the 9 taps, summed over channels, 45 numbers a filter: three sweeps
 * of 15 accumulators. gram[9 x + y], x <= y. */
#define SWEEP_0(F)                                                                                 \
    F(0, 0)                                                                                        \
    F(0, 1)                                                                                        \
    F(0, 2)                                                                                        \
    F(0, 3) F(0, 4) F(0, 5) F(0, 6) F(0, 7) F(0, 8) F(1, 1) F(1, 2) F(1, 3) F(1, 4) F(1, 5) F(1, 6)
#define SWEEP_1(F)                                                                                 \
    F(1, 7)                                                                                        \
    F(1, 8)                                                                                        \
    F(2, 2)                                                                                        \
    F(2, 3) F(2, 4) F(2, 5) F(2, 6) F(2, 7) F(2, 8) F(3, 3) F(3, 4) F(3, 5) F(3, 6) F(3, 7) F(3, 8)
#define SWEEP_2(F)                                                                                 \
    F(4, 4)                                                                                        \
    F(4, 5)                                                                                        \
    F(4, 6)                                                                                        \
    F(4, 7) F(4, 8) F(5, 5) F(5, 6) F(5, 7) F(5, 8) F(6, 6) F(6, 7) F(6, 8) F(7, 7) F(7, 8) F(8, 8)
#define TAP(i) const pairs t##i = load_taps(p + i * tap);
#define TAPS_2 TAP(4) TAP(5) TAP(6) TAP(7) TAP(8)
#define TAPS_1 TAP(1) TAP(2) TAP(3) TAPS_2
#define TAPS_0 TAP(0) TAPS_1
#define ZERO(x, y) vf s##x##y = vf_zero();
#define DOT(x, y) s##x##y = dot(s##x##y, t##x, t##y);
#define KEEP(x, y) gram[9 * x + y] = s##x##y;
/* clang-format off */
#define SWEEP(number)                                                                              \
    do {                                                                                           \
        const uint16_t *p = first;                                                                 \
        SWEEP_##number(ZERO)                                                                       \
        for (int32_t k = 0; k < n_pairs; k++, p += 32) {                                           \
            TAPS_##number                                                                          \
            SWEEP_##number(DOT)                                                                    \
        }                                                                                          \
        SWEEP_##number(KEEP)                                                                       \
    } while (0)
/* clang-format on */

static void make_gram(const uint16_t *first, size_t tap, int32_t n_pairs, vf *gram) {
    SWEEP(0);
    SWEEP(1);
    SWEEP(2);
}

/* Lengths squared of the transformed filters at position (i, j), a little too much: the sums of the
 * quadratic form may cancel, and are then wrong by up to 3e-5 of `most`. */
VF_INLINE vf length2(const vf *gram, const vf *root, int i, int j) {
    float w[9];
    vf sum = vf_zero(), most = vf_zero();
    for (int x = 0; x < 9; x++) w[x] = g_rows[i][x / 3] * g_rows[j][x % 3];
    for (int x = 0; x < 9; x++) {
        if (w[x] == 0) continue;
        vf row = vf_mul(gram[10 * x], vf_set1(w[x]));
        for (int y = x + 1; y < 9; y++) row = vf_fma(gram[9 * x + y], vf_set1(2 * w[y]), row);
        sum = vf_fma(row, vf_set1(w[x]), sum);
        most = vf_fma(root[x], vf_set1(fabsf(w[x])), most);
    }
    return vf_fma(vf_mul(most, most), vf_set1(1e-4f), vf_max(vf_zero(), sum));
}

/* Scales but for the divisors of VF_N filters, from the longest of their segments. */
VF_INLINE void measure(const struct dpk_wino_weights *w, const uint16_t *panel, vf *scale) {
    vf gram[81], root[9];
    for (int p = 0; p < DPK_WINO_POS; p++) scale[p] = vf_set1(SHORTEST * SHORTEST);
    for (int32_t k = 0; k < w->c; k += w->segment) {
        int32_t n = w->c - k < w->segment ? w->c - k : w->segment;
        make_gram(panel + (size_t)k * 16, w->tap, n / 2, gram);
        for (int x = 0; x < 9; x++) root[x] = vf_sqrt(gram[10 * x]);
        for (int p = 0; p < DPK_WINO_POS; p++) {
            vf now = length2(gram, root, p / 6, p % 6);
            scale[p] = spoil(vf_if_lt(scale[p], now, now, scale[p]), now);
        }
    }
    for (int p = 0; p < DPK_WINO_POS; p++) {
        scale[p] = vf_mul(vf_sqrt(scale[p]), vf_set1(1 / LONGEST));
    }
}

void DPK_LEVEL_FN(wino_scales)(const struct dpk_wino_weights *w) {
    vf scale[DPK_WINO_POS];
    for (int n = 0; n < 16; n += VF_N) {
        measure(w, (const uint16_t *)w->panel + 2 * n, scale);
        for (int p = 0; p < DPK_WINO_POS; p++) {
            vf d = vf_mul(load_gain(w, n), vf_set1(1 / (divisors[p / 6] * divisors[p % 6])));
            vf_store(w->scale + (size_t)p * w->scale_pos + n, vf_mul(scale[p], d));
        }
    }
}

/* g of 3, a step of 1, to U of 6. */
VF_INLINE void transform_g(const vf *g, vf *u) {
    vf e = vf_fma(g[2], vf_set1(A2), g[0]), f = vf_fma(g[2], vf_set1(B2), g[0]);
    u[0] = g[0];
    u[1] = vf_fma(g[1], vf_set1(A), e);
    u[2] = vf_fma(g[1], vf_set1(-A), e);
    u[3] = vf_fma(g[1], vf_set1(B), f);
    u[4] = vf_fma(g[1], vf_set1(-B), f);
    u[5] = g[2];
}

VF_INLINE void transform_row(const struct dpk_wino_weights *w, bool inner) {
    const vf magic = vf_set1(MAGIC);
    vf g[3], unit[6], even[3], odd[3], e[6], o[6];
    for (int n = 0; n < 16; n += VF_N) {
        int16_t *u = (int16_t *)w->u + 2 * n;
        load_factors(w, n, 1 / divisors[w->row], g);
        for (int j = 0; j < 6; j++) {
            vf s = vf_load(w->scale + (size_t)(6 * w->row + j) * w->scale_pos + n);
            unit[j] = vf_div(vf_set1(1 / divisors[j]), s);
        }
        for (int32_t k = w->first; k < w->first + w->n; k += 2, u += 32) {
            sum_taps(w, DPK_BF16, inner, k, n, g, even, odd);
            transform_g(even, e);
            transform_g(odd, o);
            UNROLL
            for (int j = 0; j < 6; j++) {
                store_pairs(u + (size_t)j * w->u_pos, vf_fma(e[j], unit[j], magic),
                            vf_fma(o[j], unit[j], magic));
            }
        }
    }
}

void DPK_LEVEL_FN(wino_weights)(const struct dpk_wino_weights *weights) {
    const struct dpk_wino_weights w = *weights; /* u cannot overlap a copy */
    if (w.row == 0 || w.row == 5) transform_row(&w, false);
    else transform_row(&w, true);
}

/* ---- Input ---------------------------------------------------------------------------------- */

/* sums[i] = the sum of v[i], i < VF_N: a tree of additions that transposes on the way. */
#if VF_N == 16
VF_INLINE vf sum_pairs(vf x, vf y) {
    return _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
}
VF_INLINE vf sum_fours(vf x, vf y) {
    __m512d a = _mm512_castps_pd(x), b = _mm512_castps_pd(y);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}
VF_INLINE vf sum_lanes(vf x, vf y) { /* of 128 bits */
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}
VF_INLINE void sum_rows(const vf *v, float *sums) {
    vf s[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        s[i] = sum_fours(sum_pairs(v[4 * i], v[4 * i + 1]), sum_pairs(v[4 * i + 2], v[4 * i + 3]));
    }
    vf_store(sums, sum_lanes(sum_lanes(s[0], s[1]), sum_lanes(s[2], s[3])));
}
#else
VF_INLINE void sum_rows(const vf *v, float *sums) {
    for (int i = 0; i < VF_N; i++) sums[i] = vf_sum(v[i]);
}
#endif

/* 1 / scale of each position, and the scales. */
VF_INLINE void measure_rows(const struct dpk_wino_input *in, int32_t padded, float *unit) {
    vf sums[LENGTHS];
    for (int p = 0; p < DPK_WINO_POS; p++) {
        const float *row = in->buffer + p * DPK_WINO_ROW;
        vf s0 = vf_zero(), s1 = s0;
        for (int32_t k = 0; k < padded; k += 2 * VF_N) {
            vf x = vf_load(row + k), y = vf_load(row + k + VF_N);
            s0 = vf_fma(x, x, s0);
            s1 = vf_fma(y, y, s1);
        }
        sums[p] = vf_add(s0, s1);
    }
    for (int p = DPK_WINO_POS; p < LENGTHS; p++) sums[p] = vf_zero();
    for (int p = 0; p < LENGTHS; p += VF_N) {
        sum_rows(sums + p, unit + p);
        vf sum = vf_load(unit + p), least = vf_set1(SHORTEST * SHORTEST);
        vf length = vf_sqrt(spoil(vf_if_lt(least, sum, sum, least), sum));
        _Alignas(64) float scale[VF_N];
        vf_store(scale, vf_mul(length, vf_set1(1 / LONGEST)));
        vf_store(unit + p, vf_div(vf_set1(LONGEST), length));
        for (int i = 0; i < VF_N && p + i < DPK_WINO_POS; i++) {
            in->scale[(size_t)(p + i) * in->scale_pos] = scale[i];
        }
    }
}

VF_INLINE void transform(const struct dpk_wino_input *in, int dtype) {
    const int32_t padded = (in->n + 31) & ~31, size = dtype == DPK_BF16 ? 2 : 4;
    int32_t k = 0;
    for (; k + VF_N <= in->n; k += VF_N) {
        if (k * size % 64 == 0) prefetch_next(in, dtype, k);
        transform_tile(in, dtype, k, VF_N, in->buffer + k, DPK_WINO_ROW);
    }
    if (k < in->n) {
        transform_tile(in, dtype, k, in->n - k, in->buffer + k, DPK_WINO_ROW);
        k += VF_N;
    }
    for (; k < padded; k += VF_N) {
        for (int p = 0; p < DPK_WINO_POS; p++)
            vf_store(in->buffer + p * DPK_WINO_ROW + k, vf_zero());
    }
    _Alignas(64) float unit[LENGTHS];
    measure_rows(in, padded, unit);
    vf magic = vf_set1(MAGIC);
    for (int p = 0; p < DPK_WINO_POS; p++) {
        const float *row = in->buffer + p * DPK_WINO_ROW;
        int16_t *v = (int16_t *)in->v + (size_t)p * in->v_pos;
        vf u = vf_set1(unit[p]);
        for (k = 0; k < padded; k += 2 * VF_N) {
            store_run(v + k, vf_fma(vf_load(row + k), u, magic),
                      vf_fma(vf_load(row + k + VF_N), u, magic));
        }
    }
}

void DPK_LEVEL_FN(wino_input)(const struct dpk_wino_input *in) {
    if (in->dtype == DPK_BF16) transform(in, DPK_BF16);
    else transform(in, DPK_F32);
}
