/* Transforms of Winograd convolution F(4x4,3x3) (contracts: kernels_winograd.h; method and scales:
 * winograd.h).
 *
 * Points 0, a, -a, b, -b, infinity. In one dimension, d of 6 to V of 6, g of 3 to U of 6, m of 6 to
 * Y of 4:
 *     V1,2 = (d4 - b^2 d2) +- a (d3 - b^2 d1)       U1,2 = g0 + a^2 g2 +- a g1
 *     V3,4 = (d4 - a^2 d2) +- b (d3 - a^2 d1)       U3,4 = g0 + b^2 g2 +- b g1
 *     V0 = d4 - (a^2 + b^2) d2 + a^2 b^2 d0         U0 = g0
 *     V5 = d5 - (a^2 + b^2) d3 + a^2 b^2 d1         U5 = g2
 *     Y0 = m0 + s + t, Y1 = a e + b f, Y2 = a^2 s + b^2 t, Y3 = a^3 e + b^3 f + m5
 *     with s, e = m1 +- m2 and t, f = m3 +- m4
 * U lacks the points' divisors, 1 / prod(p_j - p_l): they are put into its scales.
 *
 * Vectors go along channels (input) and filters (weights, output), where they lie side by side. */
#include "isa.h"
#include "vec.h"

#define A 0.65f
#define B 1.5f
#define A2 (A * A)
#define B2 (B * B)

/* The longest vector of integers. */
#define LONGEST 32700.0f
#define SHORTEST 1e-17f

/* DPK_WINO_POS in whole vectors. */
#define LENGTHS ((DPK_WINO_POS + VF_N - 1) / VF_N * VF_N)

/* Rounding to the nearest integer by adding 1.5 2^23: the low bits of the sum are the integer's. */
#define MAGIC 12582912.0f

/* Loops of constant length whose arrays are to be registers. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* x, or NaN where y is not finite. */
VF_INLINE vf spoil(vf x, vf y) { return vf_add(x, vf_sub(y, y)); }

/* ---- Pairs of 16-bit numbers ----------------------------------------------------------------
 * load_pairs: VF_N bfloat16 pairs to floats; store_pairs: back to pairs of rounded integers.
 * store_run: rounded integers, 2 VF_N in a row, from two vectors. What is stored is already x plus
 * MAGIC; numbers are in the range of 16 bits or do not matter. */

#if VF_N == 16
VF_INLINE void load_pairs(const uint16_t *p, vf *even, vf *odd) {
    __m512i u = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000)));
}
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
VF_INLINE void load_pairs(const uint16_t *p, vf *even, vf *odd) {
    __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)p);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32((int)0xffff0000)));
}
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
VF_INLINE void load_pairs(const uint16_t *p, vf *even, vf *odd) {
    uint32x4_t u = vreinterpretq_u32_u16(vld1q_u16(p));
    *even = vreinterpretq_f32_u32(vshlq_n_u32(u, 16));
    *odd = vreinterpretq_f32_u32(vandq_u32(u, vdupq_n_u32(0xffff0000)));
}
VF_INLINE void store_pairs(int16_t *p, vf even, vf odd) {
    uint32x4_t e = vreinterpretq_u32_f32(even), o = vreinterpretq_u32_f32(odd);
    vst1q_s16(p, vreinterpretq_s16_u32(vsliq_n_u32(e, o, 16)));
}
VF_INLINE void store_run(int16_t *p, vf x, vf y) {
    int16x4_t a = vmovn_s32(vreinterpretq_s32_f32(x)), b = vmovn_s32(vreinterpretq_s32_f32(y));
    vst1q_s16(p, vcombine_s16(a, b));
}
#else
VF_INLINE void load_pairs(const uint16_t *p, vf *even, vf *odd) {
    *even = dpk_bf16_f32(p[0]);
    *odd = dpk_bf16_f32(p[1]);
}
VF_INLINE int16_t low_bits(float x) {
    uint32_t u;
    int16_t i;
    memcpy(&u, &x, 4);
    uint16_t low = (uint16_t)u;
    memcpy(&i, &low, 2);
    return i;
}
VF_INLINE void store_pairs(int16_t *p, vf even, vf odd) {
    p[0] = low_bits(even);
    p[1] = low_bits(odd);
}
VF_INLINE void store_run(int16_t *p, vf x, vf y) { store_pairs(p, x, y); }
#endif

/* ---- Weights -------------------------------------------------------------------------------- */

/* One factor of a transformed filter: (1, p, p^2) for the points, (0, 0, 1) for infinity. */
static const float g_rows[6][3] = {{1, 0, 0},  {1, A, A2},  {1, -A, A2},
                                   {1, B, B2}, {1, -B, B2}, {0, 0, 1}};
static const float divisors[6] = {A2 * B2,           2 * A2 *(A2 - B2), 2 * A2 *(A2 - B2),
                                  2 * B2 *(B2 - A2), 2 * B2 *(B2 - A2), 1};

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
    load_pairs(p, &x.even, &x.odd);
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
    F(0, 2) F(0, 3) F(0, 4) F(0, 5) F(0, 6) F(0, 7) F(0, 8) F(1, 1) F(1, 2) F(1, 3) F(1, 4)        \
        F(1, 5) F(1, 6)
#define SWEEP_1(F)                                                                                 \
    F(1, 7)                                                                                        \
    F(1, 8)                                                                                        \
    F(2, 2) F(2, 3) F(2, 4) F(2, 5) F(2, 6) F(2, 7) F(2, 8) F(3, 3) F(3, 4) F(3, 5) F(3, 6)        \
        F(3, 7) F(3, 8)
#define SWEEP_2(F)                                                                                 \
    F(4, 4)                                                                                        \
    F(4, 5)                                                                                        \
    F(4, 6) F(4, 7) F(4, 8) F(5, 5) F(5, 6) F(5, 7) F(5, 8) F(6, 6) F(6, 7) F(6, 8) F(7, 7)        \
        F(7, 8) F(8, 8)
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

/* 1 / scale of VF_N filters, from the longest of their segments. */
static void measure(const struct dpk_wino_weights *w, const uint16_t *panel, size_t tap, vf *unit) {
    vf gram[81], root[9];
    for (int p = 0; p < DPK_WINO_POS; p++) unit[p] = vf_set1(SHORTEST * SHORTEST);
    for (int32_t k = 0; k < w->c; k += DPK_WINO_SEGMENT) {
        int32_t n = w->c - k < DPK_WINO_SEGMENT ? w->c - k : DPK_WINO_SEGMENT;
        make_gram(panel + (size_t)k * 16, tap, n / 2, gram);
        for (int x = 0; x < 9; x++) root[x] = vf_sqrt(gram[10 * x]);
        for (int p = 0; p < DPK_WINO_POS; p++) {
            vf now = length2(gram, root, p / 6, p % 6);
            unit[p] = spoil(vf_if_lt(unit[p], now, now, unit[p]), now);
        }
    }
    for (int p = 0; p < DPK_WINO_POS; p++) {
        unit[p] = vf_div(vf_set1(LONGEST), vf_sqrt(unit[p]));
    }
}

/* g of 3, a step of 1, to U of 6. */
VF_INLINE void transform_g(vf g0, vf g1, vf g2, vf *u) {
    vf e = vf_fma(g2, vf_set1(A2), g0), f = vf_fma(g2, vf_set1(B2), g0);
    u[0] = g0;
    u[1] = vf_fma(g1, vf_set1(A), e);
    u[2] = vf_fma(g1, vf_set1(-A), e);
    u[3] = vf_fma(g1, vf_set1(B), f);
    u[4] = vf_fma(g1, vf_set1(-B), f);
    u[5] = g2;
}

/* One pair of channels of VF_N filters. */
VF_INLINE void transform_pair(const uint16_t *p, size_t tap, const vf *unit, int16_t *u,
                              size_t u_pos) {
    vf even[3][6], odd[3][6]; /* [x][i]: columns of the filter transformed */
    UNROLL
    for (int x = 0; x < 3; x++) {
        vf e[3], o[3];
        UNROLL
        for (int y = 0; y < 3; y++) load_pairs(p + (size_t)(3 * y + x) * tap, &e[y], &o[y]);
        transform_g(e[0], e[1], e[2], even[x]);
        transform_g(o[0], o[1], o[2], odd[x]);
    }
    UNROLL
    for (int i = 0; i < 6; i++) {
        vf e[6], o[6], magic = vf_set1(MAGIC);
        transform_g(even[0][i], even[1][i], even[2][i], e);
        transform_g(odd[0][i], odd[1][i], odd[2][i], o);
        UNROLL
        for (int j = 0; j < 6; j++) {
            int at = 6 * i + j;
            store_pairs(u + (size_t)at * u_pos, vf_fma(e[j], unit[at], magic),
                        vf_fma(o[j], unit[at], magic));
        }
    }
}

void DPK_LEVEL_FN(wino_weights)(const struct dpk_wino_weights *w) {
    size_t tap = (size_t)w->c * 16;
    vf unit[DPK_WINO_POS];
    for (int n = 0; n < 16; n += VF_N) {
        const uint16_t *panel = w->panel + 2 * n;
        measure(w, panel, tap, unit);
        for (size_t k = 0; k < tap; k += 32) {
            transform_pair(panel + k, tap, unit, w->u + 2 * n + k, w->u_pos);
        }
        for (int p = 0; p < DPK_WINO_POS; p++) {
            vf d = vf_set1(divisors[p / 6] * divisors[p % 6]);
            vf_store(w->scale + (size_t)p * w->scale_pos + n,
                     vf_div(vf_set1(1.0f), vf_mul(d, unit[p])));
        }
    }
}

/* ---- Input ---------------------------------------------------------------------------------- */

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

/* The line of channel k of those pixels of the next tile that this one has not. */
VF_INLINE void prefetch_next(const struct dpk_wino_input *in, int32_t k) {
    for (int y = 0; y < 6; y++) {
        UNROLL
        for (int x = 2; x < 6; x++) __builtin_prefetch(in->next[6 * y + x] + in->first + k);
    }
}

/* n <= VF_N channels from k on. */
VF_INLINE void transform_tile(const struct dpk_wino_input *in, int32_t k, int n) {
    vf columns[6][6]; /* [x][i] */
    UNROLL
    for (int x = 0; x < 6; x++) {
        vf d[6];
        UNROLL
        for (int y = 0; y < 6; y++) {
            d[y] = vf_loada(in->pixel[6 * y + x], DPK_BF16, (size_t)(in->first + k), n);
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
        for (int j = 0; j < 6; j++) vf_store(in->buffer + (6 * i + j) * DPK_WINO_ROW + k, v[j]);
    }
}

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

void DPK_LEVEL_FN(wino_input)(const struct dpk_wino_input *in) {
    int32_t k = 0, padded = (in->n + 31) & ~31;
    for (; k + VF_N <= in->n; k += VF_N) {
        if (k % 32 == 0) prefetch_next(in, k);
        transform_tile(in, k, VF_N);
    }
    if (k < in->n) transform_tile(in, k, in->n - k), k += VF_N;
    for (; k < padded; k += VF_N) {
        for (int p = 0; p < DPK_WINO_POS; p++)
            vf_store(in->buffer + p * DPK_WINO_ROW + k, vf_zero());
    }
    _Alignas(64) float unit[LENGTHS];
    measure_rows(in, padded, unit);
    vf magic = vf_set1(MAGIC);
    for (int p = 0; p < DPK_WINO_POS; p++) {
        const float *row = in->buffer + p * DPK_WINO_ROW;
        int16_t *v = in->v + (size_t)p * in->v_pos;
        vf u = vf_set1(unit[p]);
        for (k = 0; k < padded; k += 2 * VF_N) {
            store_run(v + k, vf_fma(vf_load(row + k), u, magic),
                      vf_fma(vf_load(row + k + VF_N), u, magic));
        }
    }
}

/* ---- Output --------------------------------------------------------------------------------- */

/* m of 6 to Y of 4. */
VF_INLINE void transform_m(const vf *m, vf *y) {
    vf s = vf_add(m[1], m[2]), e = vf_sub(m[1], m[2]);
    vf t = vf_add(m[3], m[4]), f = vf_sub(m[3], m[4]);
    y[0] = vf_add(vf_add(m[0], s), t);
    y[1] = vf_fma(e, vf_set1(A), vf_mul(f, vf_set1(B)));
    y[2] = vf_fma(s, vf_set1(A2), vf_mul(t, vf_set1(B2)));
    y[3] = vf_fma(e, vf_set1(A2 * A), vf_fma(f, vf_set1(B2 * B), m[5]));
}

/* Channels n .. n + count. All of the residual is read before anything is written: lines of pixels
 * are often a multiple of 4 KiB apart, and a load waits for every store before it that has the same
 * low bits in its address. */
VF_INLINE void finish(const struct dpk_wino_output *o, int32_t n, int count, bool whole, int act) {
    vf rows[4][6], y[4][4]; /* [s][i], [s][r] */
    vf add = vf_zero();
    UNROLL
    for (int i = 0; i < 6; i++) {
        vf m[6], t[4];
        UNROLL
        for (int j = 0; j < 6; j++) {
            size_t p = (size_t)(6 * i + j);
            const float *from = o->m + p * o->m_pos + n;
            __builtin_prefetch(from + o->m_tile);
            m[j] = vf_mul(vf_load(from), vf_load(o->scale + p * o->scale_pos + n));
        }
        transform_m(m, t);
        UNROLL
        for (int s = 0; s < 4; s++) rows[s][i] = t[s];
    }
    if (o->bias) add = vf_loada(o->bias, DPK_F32, (size_t)n, count);
    if (o->temb) add = vf_add(add, vf_loada(o->temb, DPK_BF16, (size_t)n, count));
    UNROLL
    for (int s = 0; s < 4; s++) {
        transform_m(rows[s], y[s]);
        UNROLL
        for (int r = 0; r < 4; r++) y[s][r] = vf_act(vf_add(y[s][r], add), act);
    }
    if (o->residual) {
        UNROLL
        for (int i = 0; i < 16; i++) {
            int r = i / 4, s = i % 4;
            size_t at = (size_t)r * o->line + (size_t)s * o->pixel + (size_t)n;
            if (!whole && (r >= o->rows || s >= o->columns)) continue;
            y[s][r] = vf_add(y[s][r], vf_loada(o->residual, DPK_BF16, at, count));
        }
    }
    UNROLL
    for (int i = 0; i < 16; i++) {
        int r = i / 4, s = i % 4;
        size_t at = (size_t)r * o->line + (size_t)s * o->pixel + (size_t)n;
        if (!whole && (r >= o->rows || s >= o->columns)) continue;
        vf_storea(o->out, DPK_BF16, at, y[s][r], count);
    }
}

void DPK_LEVEL_FN(wino_output)(const struct dpk_wino_output *o) {
    int32_t n = 0;
    if (o->act == DPK_ACT_NONE && o->rows == 4 && o->columns == 4) {
        for (; n + VF_N <= o->n; n += VF_N) finish(o, n, VF_N, true, DPK_ACT_NONE);
    }
    for (; n < o->n; n += VF_N) {
        finish(o, n, o->n - n < VF_N ? o->n - n : VF_N, false, o->act);
    }
}
