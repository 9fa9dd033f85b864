/* Winograd convolution of the CPU backend: the operator against double precision and against the
 * direct convolution's error, sums at their bounds, what is not finite. Products
 * are of integers where activations are bfloat16, else of floats. */
#include "../kernels/backend.h"
#include "../kernels/cpu/cpu.h"
#include "support_guard.h"
#include "support_pack.h"
#include "support_ref_gemm.h"
#include "support_winograd.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static double worst_integers, worst_floats; /* in the direct convolution's error */

/* Error, and the largest of a single result, near the direct convolution's. bfloat16: at most 1.6
 * times it (what is documented is 1.25 for the whole of large maps). Floats: no more than 3e-6. */
static void check_error(const struct test_wino *o, const void *y, const void *direct,
                        const double *want, const char *what) {
    double far_direct, far_off, rms = 0, slack = o->dtype == DPK_F32 ? 5e-5 : 0.02;
    double base = test_wino_distance(o, direct, want, &far_direct),
           error = test_wino_distance(o, y, want, &far_off);
    double *worst = o->dtype == DPK_F32 ? &worst_floats : &worst_integers;
    bool quantized = o->call.wt[0].flags & DPK_TENSOR_DYNAMIC; /* the direct rows */
    for (size_t i = 0; i < o->n; i++) rms += want[i] * want[i] / (double)o->n;
    if (!quantized && error / base > *worst) *worst = error / base;
    if (!(error <= (o->dtype == DPK_F32 ? 3e-6 : 1.6 * base))) {
        fail_msg("%s: error %g, direct %g", what, error, base);
    }
    if (!(far_off <= 2 * far_direct + slack * sqrt(rms))) {
        fail_msg("%s: off by %g, direct by %g", what, far_off, far_direct);
    }
}

/* Every level and number of threads: error as above, same bits. */
static void check_case(const struct test_wino_case *c, uint32_t seed) {
    struct test_wino o;
    char shape[160], what[200];
    test_wino_open(&o, c, seed);
    double *want = test_wino_allocate(2 * o.n, sizeof *want);
    test_ref_conv(&o.t, want, want + o.n);
    snprintf(shape, sizeof shape, "%s x %s %dx%dx%dx%d to %dx%dx%d kind %d act %d%s%s%s",
             dpk_dtype_name(o.dtype), dpk_dtype_name(o.w_dtype), c->images, c->h, c->w, c->c,
             o.t.out_h, o.t.out_w, c->n, c->kind, c->act, c->bias ? " bias" : "",
             c->temb ? " temb" : "", c->residual ? " residual" : "");
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        if (!test_wino_here(isa, o.dtype)) continue;
        void *direct = test_wino_run(test_wino_backends[isa][0], &o, false),
             *y = test_wino_run(test_wino_backends[isa][1], &o, false);
        snprintf(what, sizeof what, "%s %s", dpk_isa_name(isa), shape);
        if (memcmp(y, direct, o.n * o.bytes) == 0) fail_msg("%s: was not for Winograd", what);
        check_error(&o, y, direct, want, what);
        for (int t = 2; t <= TEST_WINO_THREADS + c->residual; t++) {
            bool last = t > TEST_WINO_THREADS;
            void *again = test_wino_run(test_wino_backends[isa][last ? 2 : t], &o, last);
            if (memcmp(y, again, o.n * o.bytes) != 0) {
                fail_msg("%s: %s gives other bits", what,
                         last ? "in place" : "another number of threads");
            }
            test_guard_free(again, o.n * o.bytes);
        }
        test_guard_free(direct, o.n * o.bytes);
        test_guard_free(y, o.n * o.bytes);
    }
    free(want);
    test_wino_close(&o);
}

/* Types of activations and weights. */
static const struct {
    int dtype, w_dtype;
} types[] = {{DPK_BF16, DPK_BF16}, {DPK_F32, DPK_BF16}, {DPK_F32, DPK_F32},
             {DPK_BF16, DPK_S8},   {DPK_F32, DPK_F16},  {DPK_F32, DPK_S8}};
enum { N_TYPES = sizeof types / sizeof *types };

static void test_random_shapes(void **state) {
    uint32_t s = 77;
    (void)state;
    for (int i = 0; i < 72; i++) {
        struct test_wino_case c = {
            .images = test_random_int(&s, 1, 3),
            .h = test_random_int(&s, 8, 21),
            .w = test_random_int(&s, 12, 21),
            .c = 2 * test_random_int(&s, 16, 40),
            .n = test_random_int(&s, 1, i % 4 ? 30 : 150),
            .upsample = test_random_int(&s, 0, 3) == 0,
            .bias = test_random_int(&s, 0, 1),
            .temb = test_random_int(&s, 0, 1),
            .one_temb = test_random_int(&s, 0, 1),
            .residual = test_random_int(&s, 0, 1),
            .act = test_random_int(&s, 0, 2) ? DPK_ACT_NONE : DPK_ACT_SILU,
            .kind = i / N_TYPES % 3,
            .dtype = types[i % N_TYPES].dtype,
            .w_dtype = types[i % N_TYPES].w_dtype,
        };
        if (c.upsample) {
            c.h /= 2;
            c.w /= 2;
            if (test_random_int(&s, 0, 1)) {
                c.like_h = 2 * c.h + test_random_int(&s, 0, 1);
                c.like_w = 2 * c.w + test_random_int(&s, 0, 1);
            }
        }
        if (c.h * c.w * (c.upsample ? 4 : 1) < 240) c.images = 3;
        check_case(&c, s);
    }
}

/* Several segments of channels, several chunks and slabs. */
static void test_large(void **state) {
    static const struct test_wino_case cases[] = {
        {.images = 1, .h = 16, .w = 16, .c = 320, .n = 20, .bias = true},
        {.images = 1, .h = 16, .w = 13, .c = 322, .n = 17, .residual = true, .kind = 2},
        {.images = 1, .h = 16, .w = 16, .c = 960, .n = 16, .bias = true, .kind = 1},
        {.images = 2, .h = 40, .w = 37, .c = 32, .n = 130, .bias = true, .temb = true},
        {.images = 2, .h = 12, .w = 13, .c = 1280, .n = 130, .temb = true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases * N_TYPES; i++) {
        struct test_wino_case c = cases[i / N_TYPES];
        c.dtype = types[i % N_TYPES].dtype;
        c.w_dtype = types[i % N_TYPES].w_dtype;
        if (i / N_TYPES == 4 && i % N_TYPES > 1) continue; /* takes time at level ref */
        check_case(&c, (uint32_t)i + 1);
    }
    printf("largest error in the direct convolution's: %.2f integers, %.2f floats\n",
           worst_integers, worst_floats);
}

/* Large enough to pay where the direct way would quantize rows; error as if it did not. */
static void test_dynamic(void **state) {
    struct test_wino_case c = {.images = 2, .h = 25, .w = 24, .c = 36, .n = 20, .bias = true};
    struct test_wino o;
    double far_off;
    (void)state;
    c.w_dtype = DPK_S8;
    c.flags = DPK_TENSOR_DYNAMIC;
    for (int i = 0; i < 2; i++) {
        c.dtype = i ? DPK_F32 : DPK_BF16;
        test_wino_open(&o, &c, 3);
        double *want = test_wino_allocate(2 * o.n, sizeof *want);
        test_ref_conv(&o.t, want, want + o.n);
        for (int isa = 0; isa < DPK_N_ISAS; isa++) {
            if (!test_wino_here(isa, o.dtype)) continue;
            void *direct = test_wino_run(test_wino_backends[isa][0], &o, false),
                 *y = test_wino_run(test_wino_backends[isa][1], &o, false);
            bool same = memcmp(y, direct, o.n * o.bytes) == 0;
            double error = test_wino_distance(&o, y, want, &far_off);
            assert_true(test_wino_distance(&o, direct, want, &far_off) > 5e-3);
            assert_true(same == (i && dpk_isa_has_dot(isa)));
            if (!same && !(error < (i ? 3e-6 : 4e-3))) fail_msg("error %g", error);
            test_guard_free(direct, o.n * o.bytes);
            test_guard_free(y, o.n * o.bytes);
        }
        free(want);
        test_wino_close(&o);
    }
}

/* ---- Bounds --------------------------------------------------------------------------------- */

static int sign_of(double x) { return (x > 0) - (x < 0); }

/* Position p with its sums at the bound: a tile of the input and all filters such that both
 * transformed vectors are as long as they may be at p, and parallel. */
static void drive_position(int p, int c, float size, int channels) {
    struct test_wino_case shape = {.images = 1, .h = 12, .w = 12, .c = c, .n = 16};
    struct test_wino o;
    double largest = 0, far_off;
    test_wino_open(&o, &shape, (uint32_t)p + 1);
    float *x = o.plain[0], *w = o.plain[1];
    memset(x, 0, (size_t)(144 * c) * 4);
    memset(w, 0, (size_t)(16 * 9 * c) * 4);
    for (int i = 0; i < 36; i++) { /* the tile in the middle */
        int at = (3 + i / 6) * 12 + 3 + i % 6;
        for (int k = 0; k < channels; k++) {
            x[at * c + k] =
                size * (float)sign_of(test_wino_b(p / 6, i / 6) * test_wino_b(p % 6, i % 6));
        }
    }
    for (int i = 0; i < 16 * 9; i++) {
        for (int k = 0; k < channels; k++) {
            w[i * c + k] =
                size *
                (float)sign_of(test_wino_g(p / 6, i % 9 / 3) * test_wino_g(p % 6, i % 9 % 3)) *
                (i / 9 % 2 ? -1 : 1);
        }
    }
    test_guard_free(o.call.in[0].data, (size_t)(144 * c) * 2);
    o.call.in[0].data = test_encode_array(DPK_BF16, x, (size_t)(144 * c));
    test_wino_set_weights(&o);
    double *want = test_wino_allocate(2 * o.n, sizeof *want);
    test_ref_conv(&o.t, want, want + o.n);
    for (size_t i = 0; i < o.n; i++) largest = fmax(largest, fabs(want[i]));
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        if (!test_wino_here(isa, DPK_BF16)) continue;
        uint16_t *y = test_wino_run(test_wino_backends[isa][1], &o, false);
        test_wino_distance(&o, y, want, &far_off);
        if (!(far_off <= 6e-3 * largest)) {
            fail_msg("%s position %d, %d of %d channels of %g: off by %g of %g", dpk_isa_name(isa),
                     p, channels, c, size, far_off, largest);
        }
        test_guard_free(y, o.n * 2);
    }
    free(want);
    test_wino_close(&o);
}

static void test_bounds(void **state) {
    (void)state;
    for (int p = 0; p < 36; p++) {
        drive_position(p, 32, 1, 32);
        drive_position(p, 64, 1e6f, 1); /* one channel: elements at their bound */
        drive_position(p, 320, 3, 320);
        drive_position(p, 400, 1e-6f, 400);
    }
}

/* ---- Not finite ----------------------------------------------------------------------------- */

/* Is pixel (y, x) one that position (py, px) of the input touches: in the 3 x 3 around it, or in a
 * 4 x 4 tile with one of those? */
static bool touches(int y, int x, int py, int px, bool by_tile) {
    if (!by_tile) return abs(y - py) <= 1 && abs(x - px) <= 1;
    for (int i = -1; i <= 1; i++) {
        for (int j = -1; j <= 1; j++) {
            if (y / 4 == (py + i) / 4 && x / 4 == (px + j) / 4) return true;
        }
    }
    return false;
}

/* Integers know only NaN; of floats an infinity may stay one. */
static bool is_spoilt(int dtype, float y) { return dtype == DPK_F32 ? !isfinite(y) : isnan(y); }

/* Run at level isa, the result as floats. */
static float *run_plain(int isa, const struct test_wino *o) {
    void *y = test_wino_run(test_wino_backends[isa][1], o, false);
    float *plain = test_decode_array(o->dtype, y, o->n);
    test_guard_free(y, o->n * o->bytes);
    return plain;
}

static void put(const struct test_wino *o, size_t element, float x) {
    uint32_t bits = test_encode(o->dtype, isfinite(x) ? x : 1.0f), special = 0x7f800000;
    if (!isfinite(x)) bits = (isnan(x) ? 0x7fc00000 : special) >> (o->dtype == DPK_F32 ? 0 : 16);
    if (isinf(x) && x < 0) bits |= o->dtype == DPK_F32 ? 0x80000000 : 0x8000;
    memcpy((char *)o->call.in[0].data + element * o->bytes, &bits, o->bytes);
}

/* x at a few places of the input. */
static void spoil_input(int isa, const struct test_wino *o, float x) {
    const int w = o->t.w, n = o->t.n;
    float *clean = run_plain(isa, o);
    for (int at = 1; at < o->t.h * w; at += 29) {
        size_t element = (size_t)(at * o->t.c) + 7;
        put(o, element, x);
        float *y = run_plain(isa, o);
        put(o, element, o->plain[0][element]);
        for (int k = 0; k < o->t.h * w * n; k++) {
            int row = k / n / w, column = k / n % w;
            if (touches(row, column, at / w, at % w, false)) {
                if (!is_spoilt(o->dtype, y[k])) {
                    fail_msg("%s %s: a pixel of %g left %g beside it", dpk_isa_name(isa),
                             dpk_dtype_name(o->dtype), x, y[k]);
                }
            } else if (!touches(row, column, at / w, at % w, true)) {
                assert_true(y[k] == clean[k]);
            }
        }
        free(y);
    }
    free(clean);
}

static void test_not_finite(void **state) {
    static const float spoilers[] = {NAN, INFINITY, -INFINITY, 1.7e38f}; /* the last: integers */
    struct test_wino_case c = {.images = 1, .h = 13, .w = 14, .c = 36, .n = 20, .bias = true};
    (void)state;
    for (int i = 0; i < 7; i++) {
        struct test_wino o;
        c.dtype = i % 2 ? DPK_F32 : DPK_BF16;
        test_wino_open(&o, &c, 5);
        for (int isa = 0; isa < DPK_N_ISAS; isa++) {
            if (test_wino_here(isa, c.dtype)) spoil_input(isa, &o, spoilers[i / 2]);
        }
        test_wino_close(&o);
    }
}

static void test_weights_not_finite(void **state) {
    static const uint16_t spoilers[] = {0x7fc0, 0x7f80, 0x7e96}; /* 1e38: integers */
    struct test_wino_case c = {.images = 1, .h = 12, .w = 12, .c = 330, .n = 20};
    (void)state;
    for (int i = 0; i < 5; i++) {
        struct test_wino o;
        c.dtype = i % 2 ? DPK_F32 : DPK_BF16;
        test_wino_open(&o, &c, 5);
        for (int isa = 0; isa < DPK_N_ISAS; isa++) {
            if (!test_wino_here(isa, c.dtype)) continue;
            float *clean = run_plain(isa, &o);
            /* panel 1, tap 4, pair 1, filter 1, odd channel */
            size_t at = (size_t)(16 * 9 * c.c) + (size_t)(4 * c.c * 16) + 32 + 2 + 1;
            uint16_t *panels = (uint16_t *)(uintptr_t)o.call.wt[0].data, kept = panels[at];
            assert_int_equal(kept, test_encode(DPK_BF16, o.plain[1][(17 * 9 + 4) * c.c + 3]));
            panels[at] = spoilers[i / 2];
            float *y = run_plain(isa, &o);
            panels[at] = kept;
            for (size_t k = 0; k < o.n; k++) {
                if (k % 20 == 17) assert_true(is_spoilt(c.dtype, y[k]));
                else assert_true(y[k] == clean[k]);
            }
            free(y);
            free(clean);
        }
        test_wino_close(&o);
    }
}

/* A map of zeros: the bias and nothing else. */
static void test_zeros(void **state) {
    struct test_wino_case c = {.images = 1, .h = 12, .w = 12, .c = 32, .n = 18, .bias = true};
    struct test_wino o;
    (void)state;
    for (int f = 0; f < 2; f++) {
        c.dtype = f ? DPK_F32 : DPK_BF16;
        test_wino_open(&o, &c, 1);
        memset(o.call.in[0].data, 0, (size_t)(144 * 32) * o.bytes);
        for (int isa = 0; isa < DPK_N_ISAS; isa++) {
            if (!test_wino_here(isa, c.dtype)) continue;
            float *y = run_plain(isa, &o);
            for (size_t i = 0; i < o.n; i++) {
                float want = o.plain[4][i % 18];
                test_round(c.dtype, &want, 1);
                assert_true(y[i] == want);
            }
            free(y);
        }
        test_wino_close(&o);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {

        cmocka_unit_test(test_random_shapes), cmocka_unit_test(test_large),
        cmocka_unit_test(test_dynamic),       cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_not_finite),    cmocka_unit_test(test_weights_not_finite),
        cmocka_unit_test(test_zeros),
    };
    return cmocka_run_group_tests(tests, test_wino_set_up, test_wino_tear_down);
}
