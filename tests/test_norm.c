/* Group and layer normalisation at every level against the plain reference. */
#include "support_ref.h"

#include <setjmp.h>
#include <cmocka.h>

static const int types[2] = {DPK_F32, DPK_BF16};
static double tolerance(int dtype) { return dtype == DPK_BF16 ? 5e-3 : 1e-5; }

/* x of c1 channels, x2 of c2 (none if 0). */
static void group_case(uint64_t seed, int dtype, struct dpk_shape x, int c2, int groups, int act,
                       double deviation, double mean) {
    struct ref_case c;
    struct dpk_shape x2 = x;
    int c1 = x.dim[x.rank - 1];
    x2.dim[x.rank - 1] = c2;
    ref_open(&c, seed, DPK_OP_group_norm, dtype);
    REF_ATTRS(group_norm, &c)->groups = groups;
    REF_ATTRS(group_norm, &c)->eps = 1e-6f;
    REF_ATTRS(group_norm, &c)->act = act;
    ref_in(&c, 0, x, deviation, mean);
    if (c2) ref_in(&c, 1, x2, 2 * deviation, mean);
    ref_vec(&c, 0, c1 + c2, 1, 0.5);
    ref_vec(&c, 1, c1 + c2, 1, 0);
    ref_check(&c, ref_group_norm, tolerance(dtype));
    ref_close(&c);
}

static void test_group_norm(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        for (int act = 0; act < DPK_N_ACTS; act++) {
            group_case(1, types[t], ref_shape(4, 2, 9, 7, 64), 0, 32, act, 1, 0.2);
            group_case(2, types[t], ref_shape(4, 1, 5, 3, 39), 0, 3, act, 3, -1);
        }
        group_case(3, types[t], ref_shape(4, 3, 1, 1, 5), 0, 5, DPK_ACT_NONE, 1, 0);
        group_case(4, types[t], ref_shape(3, 2, 31, 96), 0, 1, DPK_ACT_SILU, 1, 0);
        group_case(5, types[t], ref_shape(2, 4, 24), 0, 6, DPK_ACT_NONE, 1, 0);
        group_case(6, types[t], ref_shape(4, 1, 70, 61, 128), 0, 32, DPK_ACT_SILU, 1, 0);
        group_case(7, types[t], ref_shape(4, 1, 2, 3, 2560), 0, 32, DPK_ACT_SILU, 1, 0);
    }
}

/* Groups that cross the seam between x and x2, and seams off every vector boundary. */
static void test_group_norm_two_inputs(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        group_case(10, types[t], ref_shape(4, 2, 6, 5, 40), 56, 8, DPK_ACT_SILU, 1, 0.5);
        group_case(11, types[t], ref_shape(4, 2, 33, 29, 64), 32, 32, DPK_ACT_SILU, 1, 0.5);
        group_case(12, types[t], ref_shape(4, 1, 4, 4, 7), 13, 2, DPK_ACT_NONE, 1, 0);
        group_case(13, types[t], ref_shape(3, 3, 100, 1), 62, 3, DPK_ACT_NONE, 1, 0);
    }
}

static void test_group_norm_random(void **state) {
    struct ref_rng r = {3};
    (void)state;
    for (int i = 0; i < 24; i++) {
        int groups = ref_range(&r, 1, 8), n = ref_range(&r, 1, 20) * groups;
        int c2 = i % 3 == 0 && n > 1 ? ref_range(&r, 1, n - 1) : 0;
        group_case(
            20 + (uint64_t)i, types[i % 2],
            ref_shape(4, ref_range(&r, 1, 3), ref_range(&r, 1, 40), ref_range(&r, 1, 40), n - c2),
            c2, groups, ref_range(&r, 0, DPK_N_ACTS - 1), 1, ref_normal(&r));
    }
}

/* Means of 10^5 and 10^6 deviations: naive sums of squares keep no digit of the variance in float32. */
static void test_group_norm_no_cancellation(void **state) {
    (void)state;
    group_case(50, DPK_F32, ref_shape(4, 2, 37, 41, 64), 0, 32, DPK_ACT_NONE, 1e-2, 1000);
    group_case(51, DPK_F32, ref_shape(4, 1, 8, 8, 33), 0, 3, DPK_ACT_NONE, 1e-2, -1000);
    group_case(52, DPK_F32, ref_shape(4, 1, 64, 64, 20), 12, 4, DPK_ACT_SILU, 1e-2, 1000);
    group_case(53, DPK_F32, ref_shape(4, 2, 30, 30, 96), 0, 32, DPK_ACT_NONE, 1, 1e6);
    group_case(54, DPK_F32, ref_shape(3, 5, 3, 24), 0, 24, DPK_ACT_NONE, 1, 1e6);
}

/* An outlier of 1000 deviations as the very first pixel, where a shift taken from the data would be
 * worst. */
static void test_group_norm_outlier(void **state) {
    struct ref_case c;
    (void)state;
    ref_open(&c, 60, DPK_OP_group_norm, DPK_F32);
    REF_ATTRS(group_norm, &c)->groups = 4;
    REF_ATTRS(group_norm, &c)->eps = 1e-6f;
    ref_in(&c, 0, ref_shape(4, 1, 50, 50, 32), 1, 10);
    for (size_t i = 0; i < 32; i++) ref_set(&c, 0, i, 1000);
    ref_vec(&c, 0, 32, 1, 0);
    ref_vec(&c, 1, 32, 0.1, 0);
    ref_check(&c, ref_group_norm, 1e-5);
    ref_close(&c);
}

enum { GAMMA = 1, BETA = 2, MOD = 4, MOD_ONE = 8, RMS = 16 };

static void layer_case(uint64_t seed, int dtype, struct dpk_shape x, int what, double deviation,
                       double mean) {
    struct ref_case c;
    int n = x.dim[x.rank - 1];
    ref_open(&c, seed, DPK_OP_layer_norm, dtype);
    struct dpk_layer_norm_attrs *a = REF_ATTRS(layer_norm, &c);
    a->eps = 1e-5f;
    a->rms = (what & RMS) != 0;
    ref_in(&c, 0, x, deviation, mean);
    if (what & (MOD | MOD_ONE)) {
        a->shift_off = ref_range(&c.rng, 0, 9);
        a->scale_off = a->shift_off + n + ref_range(&c.rng, 0, 9);
        ref_in(&c, 1, ref_shape(2, what & MOD_ONE ? 1 : x.dim[0], a->scale_off + n + 3), 0.5, 0);
    }
    if (what & GAMMA) ref_vec(&c, 0, n, 1, 0.5);
    if ((what & BETA) && !a->rms) ref_vec(&c, 1, n, 1, 0);
    ref_check(&c, ref_layer_norm, tolerance(dtype));
    ref_close(&c);
}

static void test_layer_norm(void **state) {
    static const int widths[] = {1, 2, 7, 8, 15, 16, 17, 31, 40, 64, 65, 127, 320, 768, 1280, 4096};
    (void)state;
    for (int t = 0; t < 2; t++) {
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
            layer_case(100 + i, types[t], ref_shape(3, 2, 1 + (int)i, widths[i]), GAMMA | BETA, 1,
                       0.3);
        }
        for (int what = 0; what < 32; what++) {
            layer_case(200 + (uint64_t)what, types[t], ref_shape(3, 3, 11, 30 + what), what, 2, 1);
        }
        layer_case(240, types[t], ref_shape(4, 2, 9, 13, 48), MOD, 1, 0);
        layer_case(241, types[t], ref_shape(2, 5, 48), MOD | GAMMA, 1, 0);
        layer_case(242, types[t], ref_shape(1, 48), GAMMA | BETA, 1, 0);
        layer_case(243, types[t], ref_shape(3, 2, 1500, 72), MOD, 1, 0);
    }
}

static void test_layer_norm_no_cancellation(void **state) {
    (void)state;
    layer_case(300, DPK_F32, ref_shape(3, 2, 21, 640), GAMMA | BETA, 1e-2, 1000);
    layer_case(301, DPK_F32, ref_shape(3, 2, 21, 77), MOD, 1e-2, -1000);
    layer_case(303, DPK_F32, ref_shape(3, 2, 50, 320), GAMMA | BETA, 1, 1e6);
    layer_case(302, DPK_F32, ref_shape(3, 1, 9, 4096), RMS | GAMMA, 1e3, 1e4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_norm),
        cmocka_unit_test(test_group_norm_two_inputs),
        cmocka_unit_test(test_group_norm_random),
        cmocka_unit_test(test_group_norm_no_cancellation),
        cmocka_unit_test(test_group_norm_outlier),
        cmocka_unit_test(test_layer_norm),
        cmocka_unit_test(test_layer_norm_no_cancellation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
