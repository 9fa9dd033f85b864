/* Attention at every level against the plain reference: head sizes with and without tails, fused
 * and separate operands, masks, biases, causal, large logits. */
#include "support_ref.h"

#include <setjmp.h>
#include <cmocka.h>

#include <math.h>

static const int types[2] = {DPK_F32, DPK_BF16};
static double tolerance(int dtype) { return dtype == DPK_BF16 ? 5e-3 : 1e-5; }

enum { MASK = 1, BIAS = 2, CAUSAL = 4, FUSED = 8, SCALE = 16 };

/* b images, lq queries, lk keys, heads of d channels; operands with room before, between and after
 * what is used. */
static void run_case(uint64_t seed, int dtype, int b, int lq, int lk, int heads, int d, int what,
                     double deviation) {
    struct ref_case c;
    int n = heads * d;
    ref_open(&c, seed, DPK_OP_attention, dtype);
    struct dpk_attention_attrs *a = REF_ATTRS(attention, &c);
    a->heads = heads;
    a->head_dim = d;
    a->causal = (what & CAUSAL) != 0;
    a->scale = what & SCALE ? 0.37f : 0.0f;
    if (what & FUSED) { /* [q, k, v] of every token in one value */
        ref_in(&c, 0, ref_shape(3, b, lk, 3 * n), deviation, 0);
        ref_in_same(&c, 1, 0);
        ref_in_same(&c, 2, 0);
        a->k_off = n;
        a->v_off = 2 * n;
    } else {
        a->q_off = ref_range(&c.rng, 0, 5);
        a->k_off = ref_range(&c.rng, 0, 5);
        a->v_off = ref_range(&c.rng, 0, 5);
        ref_in(&c, 0, ref_shape(3, b, lq, n + a->q_off + ref_range(&c.rng, 0, 3)), deviation, 0);
        ref_in(&c, 1, ref_shape(3, b, lk, n + a->k_off + ref_range(&c.rng, 0, 3)), deviation, 0);
        ref_in(&c, 2, ref_shape(3, b, lk, n + a->v_off + ref_range(&c.rng, 0, 3)), 1, 0.3);
    }
    if (what & MASK) ref_in_ids(&c, DPK_IN(attention, mask), ref_shape(2, b, lk), 0, 1);
    if (what & BIAS) {
        int rows = what & FUSED ? lk : lq;
        ref_in(&c, DPK_IN(attention, bias), ref_shape(3, heads, rows, lk), 2, 0);
    }
    ref_check(&c, ref_attention, tolerance(dtype));
    ref_close(&c);
}

static void test_head_sizes(void **state) {
    static const int sizes[] = {1, 3, 8, 16, 17, 32, 33, 40, 64, 72, 80, 96, 127, 160};
    (void)state;
    for (int t = 0; t < 2; t++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            run_case(i, types[t], 1 + (int)(i % 3), 19 + (int)i, 35 + (int)i, 2, sizes[i], 0, 1);
        }
    }
}

static void test_lengths(void **state) {
    static const int lengths[][2] = {{1, 1},    {1, 77},   {5, 2},     {6, 16},    {121, 77},
                                     {120, 64}, {64, 513}, {131, 512}, {33, 1025}, {250, 7}};
    (void)state;
    for (int t = 0; t < 2; t++) {
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            run_case(100 + i, types[t], 2, lengths[i][0], lengths[i][1], 2, 24, 0, 1);
        }
    }
}

static void test_one_head_of_512(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) run_case(200, types[t], 1, 49, 600, 1, 512, 0, 1);
}

static void test_options_combined(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        for (int what = 0; what < 32; what++) {
            int l = 3 + (what * 37) % 150;
            run_case(300 + (uint64_t)what, types[t], 2, l, 17 + (what * 61) % 90, 3, 20, what, 1);
        }
        run_case(350, types[t], 1, 530, 700, 1, 16, CAUSAL | MASK, 1);
        run_case(351, types[t], 2, 700, 700, 1, 32, CAUSAL | FUSED, 1);
        run_case(352, types[t], 2, 77, 77, 12, 64, CAUSAL | FUSED, 1);
        run_case(353, types[t], 1, 600, 600, 2, 9, MASK | BIAS, 1);
    }
}

static void test_random(void **state) {
    struct ref_rng r = {7};
    (void)state;
    for (int i = 0; i < 24; i++) {
        run_case(400 + (uint64_t)i, types[i % 2], ref_range(&r, 1, 3), ref_range(&r, 1, 200),
                 ref_range(&r, 1, 200), ref_range(&r, 1, 4), ref_range(&r, 1, 90),
                 ref_range(&r, 0, 31), 1);
    }
}

/* A map [B, H, W, C] is a sequence of H*W, as query, key or value. */
static void test_maps(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        struct ref_case c;
        ref_open(&c, 500, DPK_OP_attention, types[t]);
        REF_ATTRS(attention, &c)->heads = 2;
        REF_ATTRS(attention, &c)->head_dim = 10;
        ref_in(&c, 0, ref_shape(4, 2, 5, 7, 20), 1, 0);
        ref_in(&c, 1, ref_shape(3, 2, 33, 20), 1, 0);
        ref_in(&c, 2, ref_shape(4, 2, 3, 11, 20), 1, 0);
        ref_check(&c, ref_attention, tolerance(types[t]));
        ref_close(&c);
    }
}

/* Key masks that leave nothing: whole images, and every key a causal row may see; the result is
 * zero there. */
static void test_masked_rows(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        struct ref_case c;
        const int l = 1100, d = 12;
        ref_open(&c, 600, DPK_OP_attention, types[t]);
        REF_ATTRS(attention, &c)->heads = 1;
        REF_ATTRS(attention, &c)->head_dim = d;
        REF_ATTRS(attention, &c)->causal = 1;
        ref_in(&c, 0, ref_shape(3, 3, l, d), 1, 0);
        ref_in_same(&c, 1, 0);
        ref_in_same(&c, 2, 0);
        ref_in_ids(&c, DPK_IN(attention, mask), ref_shape(2, 3, l), 1, 5);
        for (int j = 0; j < l; j++) {
            ref_set(&c, DPK_IN(attention, mask), (size_t)j, 0);
            if (j < 520 || j > 1030) ref_set(&c, DPK_IN(attention, mask), (size_t)(l + j), 0);
        }
        ref_check(&c, ref_attention, tolerance(types[t]));
        ref_close(&c);
    }
}

/* Logits of hundreds: the largest key takes all; the maximum rises from block to block. */
static void test_large_logits(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        struct ref_case c;
        const int lk = 1300, d = 16;
        run_case(700, types[t], 1, 40, 700, 2, 16, 0, 12);
        ref_open(&c, 701, DPK_OP_attention, types[t]);
        REF_ATTRS(attention, &c)->heads = 1;
        REF_ATTRS(attention, &c)->head_dim = d;
        REF_ATTRS(attention, &c)->scale = 1.0f;
        ref_in(&c, 0, ref_shape(3, 1, 9, d), 0, 1);
        ref_in(&c, 1, ref_shape(3, 1, lk, d), 0, 1);
        ref_in(&c, 2, ref_shape(3, 1, lk, d), 1, 0);
        for (int j = 0; j < lk; j++) ref_set(&c, 1, (size_t)(j * d), j / 4);
        ref_check(&c, ref_attention, tolerance(types[t]));
        ref_close(&c);
    }
}

static void zeros(const struct ref_case *c, const struct dpk_shape *shape, double *y) {
    (void)c;
    for (int64_t i = 0; i < dpk_shape_count(shape); i++) y[i] = 0;
}

/* Products that overflow float32, to infinity and to infinity - infinity: whatever the weights,
 * they are finite and at least 0, so that zero values give exactly zero and no NaN comes out. */
static void test_overflowing_logits(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        for (int what = 0; what < 4; what++) {
            struct ref_case c;
            const int lq = 13, lk = 70, d = 18;
            ref_open(&c, 800, DPK_OP_attention, types[t]);
            REF_ATTRS(attention, &c)->heads = 1;
            REF_ATTRS(attention, &c)->head_dim = d;
            ref_in(&c, 0, ref_shape(3, 1, lq, d), 1e25, what & 1 ? 1e26 : 0);
            ref_in(&c, 1, ref_shape(3, 1, lk, d), 1e25, what & 1 ? -1e26 : 0);
            ref_in(&c, 2, ref_shape(3, 1, lk, d), 0, 0);
            if (what & 2) ref_in_ids(&c, DPK_IN(attention, mask), ref_shape(2, 1, lk), 0, 1);
            ref_check(&c, zeros, 0);
            ref_close(&c);
        }
    }
}

/* Keys of which one is far longer than the others and across the queries: a bound on the logits
 * from lengths alone would lose all. Values so large that only true probabilities keep them. */
static void test_outliers(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        for (int what = 0; what < 3; what++) {
            struct ref_case c;
            const int lq = 101, lk = 310, d = 24;
            ref_open(&c, 900 + (uint64_t)what, DPK_OP_attention, types[t]);
            REF_ATTRS(attention, &c)->heads = 1;
            REF_ATTRS(attention, &c)->head_dim = d;
            ref_in(&c, 0, ref_shape(3, 2, lq, d), 1, 0);
            ref_in(&c, 1, ref_shape(3, 2, lk, d), 1, 0);
            ref_in(&c, 2, ref_shape(3, 2, lk, d), what == 1 ? 1e36 : 1, 0);
            for (int i = 0; what != 1 && i < 2 * lq; i++) ref_set(&c, 0, (size_t)(i * d), 0);
            if (what != 1) ref_set(&c, 1, (size_t)(7 * d), 1e6);
            if (what == 2) ref_in_ids(&c, DPK_IN(attention, mask), ref_shape(2, 2, lk), 0, 1);
            ref_check(&c, ref_attention, tolerance(types[t]));
            ref_close(&c);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head_sizes),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_one_head_of_512),
        cmocka_unit_test(test_options_combined),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_masked_rows),
        cmocka_unit_test(test_large_logits),
        cmocka_unit_test(test_overflowing_logits),
        cmocka_unit_test(test_outliers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
