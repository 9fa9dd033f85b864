/* Quantizers and panels: integers and scales against torchao's, and the corners by hand. */
#include "../quantize/panel.h"
#include "../quantize/quantizer.h"
#include "support_files.h"

#include "../formats/source.h"
#include "../formats/tensors.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Goldens --------------------------------------------------------------------------------- */

static struct dpk_tensors *goldens;

static int open_goldens(void **state) {
    dpk_error err;
    (void)state;
    if (dpk_tensors_open_file(&goldens, "tests/data/golden/quant.safetensors", &err))
        fail_msg("%s", err.msg);
    return 0;
}
static int close_goldens(void **state) {
    (void)state;
    dpk_tensors_close(goldens);
    return 0;
}

struct array {
    size_t rows, columns;
    float *f;  /* floats, or */
    int8_t *i; /* int8 */
};

static void array_free(struct array *a) {
    free(a->f);
    free(a->i);
}

/* "<name><suffix>"; a vector is one column. */
static struct array golden(const char *name, const char *suffix) {
    char full[128];
    dpk_error err;
    struct array a = {.columns = 1};
    snprintf(full, sizeof full, "%s%s", name, suffix);
    struct dpk_tensor_info *info = dpk_tensors_find(goldens, full);
    if (!info) fail_msg("no golden %s", full);
    a.rows = (size_t)info->dim[0];
    if (info->rank == 2) a.columns = (size_t)info->dim[1];
    const size_t n = (size_t)info->n_elements;
    int rc;
    if (info->dtype == DPK_ST_I8) {
        a.i = malloc(n);
        rc = dpk_tensors_read(goldens, info, 0, a.i, n, &err);
    } else {
        a.f = malloc(n * sizeof *a.f);
        rc = dpk_tensors_read_f32(goldens, info, 0, n, a.f, &err);
    }
    if (rc) fail_msg("%s", err.msg);
    return a;
}

static void check_scale(const char *what, size_t row, float got, float want) {
    int32_t a, b;
    memcpy(&a, &got, 4);
    memcpy(&b, &want, 4);
    if (abs(a - b) > 1) fail_msg("%s: row %zu: scale %.9g, want %.9g", what, row, got, want);
}

static void check_integers(const char *what, size_t row, const int8_t *got, const int8_t *want,
                           size_t n) {
    for (size_t i = 0; i < n; i++)
        if (got[i] != want[i])
            fail_msg("%s: row %zu, value %zu: %d, want %d", what, row, i, got[i], want[i]);
}

typedef void quantize_row(int convention, int dtype, const float *x, size_t k, int8_t *q,
                          float *scale);
static void weight_row(int convention, int dtype, const float *x, size_t k, int8_t *q,
                       float *scale) {
    assert_true(dpk_quantize_row_s8(convention, dtype, x, k, q, scale));
}

/* Every row of x against the goldens named prefix + "q"/"s" + letter. Returns the integers. */
static int8_t *check_rows(const char *prefix, char letter, const struct array *x, int convention,
                          int dtype, quantize_row *quantize, float *scales) {
    const char q_name[] = {'q', letter, 0}, s_name[] = {'s', letter, 0};
    struct array want_q = golden(prefix, q_name), want_s = golden(prefix, s_name);
    int8_t *q = malloc(x->rows * x->columns);
    assert_int_equal(want_q.rows, x->rows);
    assert_int_equal(want_q.columns, x->columns);
    for (size_t i = 0; i < x->rows; i++) {
        const size_t at = i * x->columns;
        quantize(convention, dtype, x->f + at, x->columns, q + at, &scales[i]);
        check_scale(prefix, i, scales[i], want_s.f[i]);
        check_integers(prefix, i, q + at, want_q.i + at, x->columns);
    }
    array_free(&want_q);
    array_free(&want_s);
    return q;
}

static void check_w8a8(const char *name, int convention, int dtype) {
    char prefix[64], y_name[80];
    struct array w = golden(name, ".w"), x = golden(name, ".x");
    float *sw = malloc(w.rows * sizeof *sw), *sx = malloc(x.rows * sizeof *sx);
    const bool ao = convention == DPK_CONVENTION_TORCHAO;
    snprintf(prefix, sizeof prefix, "%s.%s.", name, ao ? "ao" : "2023");
    /* The 2023 rule was computed in float32 from the bf16 values: their type does not matter. */
    int8_t *qw = check_rows(prefix, 'w', &w, convention, dtype, weight_row, sw);
    int8_t *qx = check_rows(prefix, 'x', &x, convention, dtype, dpk_quantize_activation_s8, sx);

    /* The product, where its rounding is float32's alone. */
    snprintf(y_name, sizeof y_name, "%sy", prefix);
    struct array y = golden(y_name, ""), b = {0};
    char b_name[80];
    snprintf(b_name, sizeof b_name, "%s.b", name);
    if (dpk_tensors_find(goldens, b_name)) b = golden(b_name, "");
    const double tolerance = ao && dtype == DPK_BF16 ? 1.0 / 128 : 1e-5;
    double top = 0;
    for (size_t i = 0; i < y.rows * y.columns; i++) top = fmax(top, fabs((double)y.f[i]));
    for (size_t i = 0; i < x.rows; i++)
        for (size_t o = 0; o < w.rows; o++) {
            int32_t dot = 0;
            for (size_t k = 0; k < w.columns; k++)
                dot += qw[o * w.columns + k] * qx[i * w.columns + k];
            const double v = (double)dot * sx[i] * sw[o] + (b.f ? b.f[o] : 0);
            if (fabs(v - y.f[i * w.rows + o]) > tolerance * top)
                fail_msg("%s: y[%zu,%zu] %g, want %g", prefix, i, o, v, y.f[i * w.rows + o]);
        }
    array_free(&w), array_free(&x), array_free(&y), array_free(&b);
    free(sw), free(sx), free(qw), free(qx);
}

static void test_w8a8_goldens(void **state) {
    static const char *const names[] = {"w8a8.0.fp32", "w8a8.1.fp32", "w8a8.1.bf16", "w8a8.2.fp32",
                                        "w8a8.3.fp32", "w8a8.4.fp32", "w8a8.4.bf16", "w8a8.5.fp32"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const int dtype = strstr(names[i], "bf16") ? DPK_BF16 : DPK_F32;
        check_w8a8(names[i], DPK_CONVENTION_DIFFUSION_FAST, dtype);
        check_w8a8(names[i], DPK_CONVENTION_TORCHAO, dtype);
    }
}

static void test_weight_only_goldens(void **state) {
    (void)state;
    for (int c = 0; c < 2; c++) {
        char name[32], prefix[64];
        snprintf(name, sizeof name, "wo.%d", c);
        struct array w = golden(name, ".w");
        float *scales = malloc(w.rows * w.columns * sizeof *scales);
        int8_t *q = malloc(w.columns);
        snprintf(prefix, sizeof prefix, "%s.int8.", name);
        free(check_rows(prefix, 'w', &w, DPK_CONVENTION_TORCHAO, DPK_F32, weight_row, scales));
        for (size_t group = 32; group <= 128; group *= 2) {
            snprintf(prefix, sizeof prefix, "%s.int4.g%zu.symmetric.", name, group);
            struct array want_q = golden(prefix, "qw"), want_s = golden(prefix, "sw");
            const size_t n = w.columns / group;
            assert_int_equal(want_s.columns, n);
            for (size_t i = 0; i < w.rows; i++) {
                const float *row = w.f + i * w.columns;
                assert_true(dpk_quantize_row_s4(row, w.columns, group, q, scales));
                check_integers(prefix, i, q, want_q.i + i * w.columns, w.columns);
                for (size_t k = 0; k < n; k++)
                    check_scale(prefix, i, scales[k], want_s.f[i * n + k]);
            }
            array_free(&want_q);
            array_free(&want_s);
        }
        array_free(&w);
        free(scales);
        free(q);
    }
}

/* ---- Corners --------------------------------------------------------------------------------- */

static void test_ties_and_clipping(void **state) {
    (void)state;
    /* |max| 127.5 makes the scale 1: ties go to the even integer, the top is clipped, the bottom
     * is not. */
    const float w[] = {127.5f, -127.5f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -126.5f, 0};
    const int8_t want[] = {127, -128, 0, 2, 2, 0, -2, -2, 126, -126, 0};
    enum { N = sizeof want };
    for (int convention = 0; convention < 2; convention++) {
        int8_t q[N];
        float s;
        assert_true(dpk_quantize_row_s8(convention, DPK_F32, w, N, q, &s));
        assert_true(s == 1.0f);
        check_integers("weights", 0, q, want, N);
    }
    int8_t q[N];
    float s;
    const float x[] = {127, -127, 0.5f, 1.5f, -2.5f, 3};
    const int8_t want_x[] = {127, -127, 0, 2, -2, 3};
    dpk_quantize_activation_s8(DPK_CONVENTION_DIFFUSION_FAST, DPK_F32, x, 6, q, &s);
    assert_true(s == 1.0f);
    check_integers("activations", 0, q, want_x, 6);

    float v[32] = {7.5f, -7.5f, 0.5f, 1.5f, -2.5f, 6.5f, -6.5f};
    const int8_t want_v[32] = {7, -8, 0, 2, -2, 6, -6};
    int8_t q4[32];
    assert_true(dpk_quantize_row_s4(v, 32, 32, q4, &s));
    assert_true(s == 1.0f);
    check_integers("int4", 0, q4, want_v, 32);
}

static void test_small_rows(void **state) {
    (void)state;
    const float zero[40] = {0};
    float tiny[40] = {1e-30f, -1e-30f, FLT_MIN, 1e-42f};
    int8_t q[40];
    float s[2];
    for (int convention = 0; convention < 2; convention++)
        for (int t = 0; t < 2; t++) {
            const float *w = t ? tiny : zero;
            memset(q, 1, sizeof q);
            assert_true(dpk_quantize_row_s8(convention, DPK_BF16, w, 40, q, s));
            assert_true(s[0] == 0x1p-23f);
            for (int i = 0; i < 40; i++) assert_int_equal(q[i], 0);
            memset(q, 1, sizeof q);
            dpk_quantize_activation_s8(convention, DPK_BF16, w, 40, q, s);
            assert_true(s[0] == (convention ? 0x1p-23f : 1e-5f / 127.0f));
            for (int i = 0; i < 40; i++) assert_int_equal(q[i], 0);
        }
    assert_true(dpk_quantize_row_s4(zero, 32, 16, q, s));
    assert_true(s[0] == 0x1p-126f && s[1] == 0x1p-126f);
    for (int i = 0; i < 32; i++) assert_int_equal(q[i], 0);
}

static void test_not_finite(void **state) {
    (void)state;
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 4; i++)
        for (int at = 0; at < 64; at += 21) {
            float w[64], s[2] = {1, 1};
            int8_t q[64];
            for (int k = 0; k < 64; k++) w[k] = (float)k - 20;
            w[at] = bad[i];
            for (int convention = 0; convention < 2; convention++) {
                assert_false(dpk_quantize_row_s8(convention, DPK_F32, w, 64, q, s));
                memset(q, 1, sizeof q);
                dpk_quantize_activation_s8(convention, DPK_F32, w, 64, q, s);
                assert_true(isnan(s[0]));
                for (int k = 0; k < 64; k++) assert_int_equal(q[k], 0);
            }
            assert_false(dpk_quantize_row_s4(w, 64, 32, q, s));
        }
    /* The largest numbers there are. */
    const float huge[] = {FLT_MAX, -FLT_MAX, FLT_MAX / 2, 0};
    int8_t q[4];
    float s;
    assert_true(dpk_quantize_row_s8(DPK_CONVENTION_DIFFUSION_FAST, DPK_F32, huge, 4, q, &s));
    assert_true(isfinite(s) && q[0] == 127 && q[1] == -128 && q[2] == 64);
}

static float half_value(unsigned h) {
    const unsigned e = h >> 10, m = h & 1023;
    return e ? ldexpf((float)(1024 + m), (int)e - 25) : ldexpf((float)m, -24);
}
static float bfloat_value(unsigned h) {
    const uint32_t u = h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* The value of a 16-bit type (patterns rise) nearest to x; of two, that with the even pattern. */
static float nearest(float (*value)(unsigned), unsigned last, float x) {
    unsigned lo = 0, hi = last;
    while (lo < hi) {
        const unsigned mid = (lo + hi + 1) / 2;
        if (value(mid) <= x) lo = mid;
        else hi = mid - 1;
    }
    const double below = (double)x - value(lo), above = (double)value(lo + 1) - x;
    if (lo == last || below < above || (below == above && lo % 2 == 0)) return value(lo);
    return value(lo + 1);
}

static void test_scale_in_type(void **state) {
    (void)state;
    uint64_t seed = 77;
    for (int i = 0; i < 20000; i++) {
        const float top =
            ldexpf(1.0f + (float)(noise(&seed) >> 9) * 0x1p-23f, (int)(noise(&seed) % 32) - 17);
        const float w[] = {-top, top / 3}, ratio = top / 127.5f;
        int8_t q[2];
        float s;
        assert_true(dpk_quantize_row_s8(DPK_CONVENTION_TORCHAO, DPK_F16, w, 2, q, &s));
        assert_true(s == fmaxf(nearest(half_value, 0x7bff, ratio), 0x1p-23f));
        assert_true(dpk_quantize_row_s8(DPK_CONVENTION_TORCHAO, DPK_BF16, w, 2, q, &s));
        assert_true(s == fmaxf(nearest(bfloat_value, 0x7f7f, ratio), 0x1p-23f));
        if (top > 0.01f) assert_true(q[0] == -127 || q[0] == -128);
    }
}

static void test_round_trip_error(void **state) {
    (void)state;
    enum { K = 384 };
    uint64_t seed = 5;
    for (int round = 0; round < 200; round++) {
        float w[K], s[K / 32];
        int8_t q[K];
        double signal = 0, noise_sum = 0, want_signal = 0, want_noise = 0;
        for (int i = 0; i < K; i++)
            w[i] = ((float)(noise(&seed) >> 8) * 0x1p-23f - 1.0f) * ldexpf(1, round % 30 - 10);
        const int convention = round % 2;
        const size_t group = round % 3 ? K : 32;
        if (group == K) assert_true(dpk_quantize_row_s8(convention, DPK_F32, w, K, q, s));
        else assert_true(dpk_quantize_row_s4(w, K, group, q, s));
        int32_t sum = 0;
        for (size_t i = 0; i < K; i++) {
            const double e = w[i] - (double)q[i] * s[i / group];
            /* Half a step, also where the top value is clipped. */
            assert_true(fabs(e) <= 0.5001 * s[i / group]);
            want_signal += (double)w[i] * w[i];
            want_noise += e * e;
            sum += q[i];
        }
        assert_int_equal(dpk_quantized_sum(q, K), sum);
        dpk_quantize_error(w, q, s, K, group, &signal, &noise_sum);
        assert_true(fabs(signal - want_signal) <= 1e-9 * want_signal);
        assert_true(fabs(noise_sum - want_noise) <= 1e-9 * want_noise);
        const double db = dpk_sqnr_db(signal, noise_sum);
        /* A uniform row: 20 log10(127.5 * sqrt(12) / sqrt(3)) = 48, and 23.5 with 7.5. */
        if (group == K) assert_true(db > 46 && db < 50);
        else assert_true(db > 22 && db < 26);
    }
    assert_true(isinf(dpk_sqnr_db(1, 0)));
    assert_true(fabs(dpk_sqnr_db(100, 1) - 20) < 1e-12);
}

/* ---- Panels ---------------------------------------------------------------------------------- */

/* Where value (row, tap, c) stands, in elements of the whole tensor, by the definition. */
static size_t place_of(const struct dpk_panels *p, size_t g, size_t row, size_t tap, size_t c) {
    size_t panel = row / 16, r = row % 16;
    if (p->layout == DPK_LAYOUT_PANEL_GLU) {
        const size_t half = (size_t)p->rows / 2, f = row % half;
        panel = f / 8;
        r = f % 8 + (row >= half ? 8 : 0);
    }
    const size_t k = tap * (size_t)(p->padded_k / p->taps) + c;
    return ((panel * (size_t)p->padded_k / g + k / g) * 16 + r) * g + k % g;
}

static const struct panel_case {
    int layout;
    struct dpk_shape shape;
} panel_cases[] = {
    {DPK_LAYOUT_PANEL, {2, {1, 1}}},           {DPK_LAYOUT_PANEL, {2, {16, 32}}},
    {DPK_LAYOUT_PANEL, {2, {37, 45}}},         {DPK_LAYOUT_PANEL, {2, {320, 7}}},
    {DPK_LAYOUT_PANEL, {4, {21, 3, 3, 13}}},   {DPK_LAYOUT_PANEL, {4, {5, 1, 2, 16}}},
    {DPK_LAYOUT_PANEL_GLU, {2, {2, 3}}},       {DPK_LAYOUT_PANEL_GLU, {2, {32, 24}}},
    {DPK_LAYOUT_PANEL_GLU, {2, {2 * 27, 19}}},
};

static void check_integers_panels(const struct panel_case *c, int dtype, uint64_t *seed) {
    struct dpk_panels p;
    assert_true(dpk_panels_make(&p, dtype, c->layout, &c->shape));
    const size_t n = (size_t)p.count * (size_t)p.bytes, k = (size_t)p.k;
    const size_t g = (size_t)dpk_panel_group(dtype);
    uint8_t *packed = malloc(n);
    int8_t *q = malloc((size_t)p.rows * k), *rows = malloc(16 * k), *back = malloc(16 * k);
    for (size_t i = 0; i < (size_t)p.rows * k; i++)
        q[i] = (int8_t)(dtype == DPK_S8 ? (int)(noise(seed) % 256) - 128
                                        : (int)(noise(seed) % 16) - 8);
    for (uint64_t panel = 0; panel < p.count; panel++) {
        memset(rows, 0, 16 * k);
        for (int r = 0; r < 16; r++) {
            const int64_t row = dpk_panels_row(&p, panel, r);
            if (row >= 0) memcpy(rows + (size_t)r * k, q + (size_t)row * k, k);
        }
        dpk_panels_pack(&p, rows, packed + panel * p.bytes);
        dpk_panels_integers(&p, packed + panel * p.bytes, back);
        assert_memory_equal(rows, back, 16 * k);
    }
    /* Every value where the definition says, and nothing anywhere else. */
    int64_t sum = 0, packed_sum = 0;
    for (size_t row = 0; row < p.rows; row++)
        for (size_t i = 0; i < k; i++) {
            const size_t at = place_of(&p, g, row, i / p.channels, i % p.channels);
            const int v = dtype == DPK_S8 ? packed[at] : packed[at / 2] >> (at % 2 * 4) & 15;
            const int want = q[row * k + i] & (dtype == DPK_S8 ? 255 : 15);
            assert_int_equal(v, want);
            sum += want;
        }
    for (size_t i = 0; i < n; i++)
        packed_sum += dtype == DPK_S8 ? packed[i] : (packed[i] & 15) + (packed[i] >> 4);
    assert_int_equal(sum, packed_sum);
    free(packed), free(q), free(rows), free(back);
}

static void check_float_panels(const struct panel_case *c, int dtype, uint64_t *seed) {
    struct dpk_panels p;
    assert_true(dpk_panels_make(&p, dtype, c->layout, &c->shape));
    const size_t n = (size_t)p.count * (size_t)p.bytes, k = (size_t)p.k;
    const size_t g = (size_t)dpk_panel_group(dtype);
    uint8_t *packed = calloc(n, 1);
    float *want = malloc((size_t)p.rows * k * sizeof *want), *rows = malloc(16 * k * sizeof *rows);
    for (size_t row = 0; row < p.rows; row++)
        for (size_t i = 0; i < k; i++) {
            const size_t at = place_of(&p, g, row, i / p.channels, i % p.channels);
            /* Any positive finite pattern: subnormals, too. */
            const uint16_t h = (uint16_t)(noise(seed) % (dtype == DPK_F16 ? 0x7c00 : 0x7f80));
            float v = dtype == DPK_F16 ? half_value(h) : bfloat_value(h);
            const uint16_t sign = noise(seed) & 0x8000;
            if (sign) v = -v;
            want[row * k + i] = v;
            const uint16_t bits = h | sign;
            if (dtype == DPK_F32) memcpy(packed + at * 4, &v, 4);
            else memcpy(packed + at * 2, &bits, 2);
        }
    size_t seen = 0;
    for (uint64_t panel = 0; panel < p.count; panel++) {
        dpk_panels_unpack(&p, packed + panel * p.bytes, rows);
        for (int r = 0; r < 16; r++) {
            const int64_t row = dpk_panels_row(&p, panel, r);
            if (row < 0) continue;
            assert_memory_equal(rows + (size_t)r * k, want + (size_t)row * k, k * sizeof *rows);
            seen++;
        }
    }
    assert_int_equal(seen, p.rows);
    free(packed), free(want), free(rows);
}

static void test_panels(void **state) {
    (void)state;
    uint64_t seed = 11;
    for (size_t i = 0; i < sizeof panel_cases / sizeof *panel_cases; i++) {
        check_integers_panels(&panel_cases[i], DPK_S8, &seed);
        check_integers_panels(&panel_cases[i], DPK_S4, &seed);
        check_float_panels(&panel_cases[i], DPK_F32, &seed);
        check_float_panels(&panel_cases[i], DPK_BF16, &seed);
        check_float_panels(&panel_cases[i], DPK_F16, &seed);
    }
    struct dpk_panels p;
    const struct dpk_shape odd = {2, {5, 4}}, vec = {1, {5}};
    assert_false(dpk_panels_make(&p, DPK_S8, DPK_LAYOUT_PANEL_GLU, &odd));
    assert_false(dpk_panels_make(&p, DPK_F32, DPK_LAYOUT_RAW, &odd));
    assert_false(dpk_panels_make(&p, DPK_F32, DPK_LAYOUT_PANEL, &vec));
    assert_false(dpk_panels_make(&p, DPK_I32, DPK_LAYOUT_PANEL, &odd));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_w8a8_goldens, open_goldens, close_goldens),
        cmocka_unit_test_setup_teardown(test_weight_only_goldens, open_goldens, close_goldens),
        cmocka_unit_test(test_ties_and_clipping),
        cmocka_unit_test(test_small_rows),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_scale_in_type),
        cmocka_unit_test(test_round_trip_error),
        cmocka_unit_test(test_panels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
