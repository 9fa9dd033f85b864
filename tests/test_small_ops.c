/* Elementwise operators, moves, lookups and positions at every level against the plain references,
 * and the positions also against values of the reference implementations (diffusers 0.42,
 * transformers 5, float32 on a CPU). */
#include "support_ref.h"

#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

static const int types[2] = {DPK_F32, DPK_BF16};
static double tolerance(int dtype) { return dtype == DPK_BF16 ? 5e-3 : 1e-6; }

/* ---- Elementwise ---------------------------------------------------------------------------- */

static void test_outer_add(void **state) {
    (void)state;
    for (int i = 0; i < 30; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_outer_add, types[i % 2]);
        int n = i < 4 ? 1280 : ref_range(&c.rng, 1, 150);
        REF_ATTRS(outer_add, &c)->act = i / 2 % DPK_N_ACTS;
        ref_in(&c, 0, ref_shape(2, ref_range(&c.rng, 1, 20), n), 1, 0);
        ref_in(&c, 1, ref_shape(2, ref_range(&c.rng, 1, 4), n), 1, 0);
        ref_check(&c, ref_outer_add, tolerance(c.dtype));
        ref_close(&c);
    }
}

/* from, to: types of operand and result. */
static void slice_case(uint64_t seed, int act, int from, int to, struct dpk_shape x, int off, int n,
                       bool plain) {
    struct ref_case c;
    ref_open(&c, seed, DPK_OP_slice, act);
    struct dpk_slice_attrs *a = REF_ATTRS(slice, &c);
    *a =
        (struct dpk_slice_attrs){.off = off, .count = n, .mul = 1, .lo = -INFINITY, .hi = INFINITY};
    if (!plain) {
        a->mul = 1.7f;
        a->add = -0.3f;
        a->lo = -0.9f;
        a->hi = 1.1f;
    }
    c.out_dtype = to;
    if (from == DPK_F32) ref_in_f32(&c, 0, x, 1, 0);
    else ref_in(&c, 0, x, 1, 0);
    ref_check(&c, ref_slice, plain ? 0 : tolerance(to));
    ref_close(&c);
}

static void test_slice(void **state) {
    struct ref_rng r = {5};
    (void)state;
    for (int i = 0; i < 60; i++) {
        int act = types[i % 2], from = i & 2 ? act : DPK_F32, to = i & 4 ? act : DPK_F32;
        int c = ref_range(&r, 1, 90), off = i % 3 ? ref_range(&r, 0, c - 1) : 0;
        int n = i % 3 == 1 ? ref_range(&r, 1, c - off) : 0;
        struct dpk_shape x =
            ref_shape(4, ref_range(&r, 1, 3), ref_range(&r, 1, 20), ref_range(&r, 1, 20), c);
        slice_case((uint64_t)i, act, from, to, x, off, n, i & 8);
    }
    slice_case(70, DPK_BF16, DPK_F32, DPK_BF16, ref_shape(3, 2, 1024, 64), 0, 0, true);
    slice_case(71, DPK_BF16, DPK_BF16, DPK_F32, ref_shape(1, 40009), 0, 0, true);
    slice_case(72, DPK_F32, DPK_F32, DPK_F32, ref_shape(2, 40009, 3), 1, 1, true);
}

static void test_add(void **state) {
    (void)state;
    for (int i = 0; i < 60; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_add, types[i % 2]);
        int b = ref_range(&c.rng, 1, 3), h = ref_range(&c.rng, 1, 30), n = ref_range(&c.rng, 1, 99);
        struct dpk_shape a = ref_shape(4, b, h, 7, n), other = a;
        ref_in(&c, 0, a, 1, 0);
        if (i / 2 % 6 == 1) other = ref_shape(1, n);
        if (i / 2 % 6 == 2) other = ref_shape(2, 7, n);
        if (i / 2 % 6 == 3) other.dim[0] = 1;
        if (i / 2 % 6 == 4) ref_vec(&c, 0, n, 1, 0);
        else if (i / 2 % 6 == 5) ref_vec(&c, 0, 7 * n, 1, 0);
        else ref_in(&c, 1, other, 1, 0);
        ref_check(&c, ref_add, tolerance(c.dtype));
        ref_close(&c);
    }
}

/* ---- Moves ---------------------------------------------------------------------------------- */

static void test_concat(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_concat, types[i % 2]);
        int b = ref_range(&c.rng, 1, 3), l = ref_range(&c.rng, 1, 200);
        ref_in(&c, 0, ref_shape(3, b, l, ref_range(&c.rng, 1, 300)), 1, 0);
        ref_in(&c, 1, ref_shape(3, b, l, ref_range(&c.rng, 1, 300)), 1, 0);
        ref_check(&c, ref_concat, 0);
        ref_close(&c);
    }
}

static void test_select(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_select, types[i % 2]);
        int t = ref_range(&c.rng, 1, 30), n = ref_range(&c.rng, 1, 90);
        struct dpk_shape x = i & 2   ? ref_shape(2, t, n)
                             : i & 4 ? ref_shape(3, t, 2, n)
                                     : ref_shape(4, t, 2, 3, n);
        ref_in(&c, 0, x, 1, 0);
        ref_in_ids(&c, 1, ref_shape(1, 1), 0, t - 1);
        if (i == 0) ref_set(&c, 1, 0, t - 1);
        ref_check(&c, ref_select, 0);
        ref_set(&c, 1, 0, t);
        ref_check_fails(&c, DPK_EARG);
        ref_set(&c, 1, 0, -1);
        ref_check_fails(&c, DPK_EARG);
        ref_close(&c);
    }
}

static void test_eos_pool(void **state) {
    (void)state;
    for (int i = 0; i < 40; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_eos_pool, types[i % 2]);
        int b = ref_range(&c.rng, 1, 4), l = i < 2 ? 1 : ref_range(&c.rng, 1, 77);
        REF_ATTRS(eos_pool, &c)->eos_id = i % 3 ? ref_range(&c.rng, 0, 12) : -1;
        ref_in(&c, 0, ref_shape(3, b, l, ref_range(&c.rng, 1, 99)), 1, 0);
        ref_in_ids(&c, 1, ref_shape(2, b, l), 0, 9); /* repeats; ids 10 .. 12 are never there */
        ref_check(&c, ref_eos_pool, 0);
        ref_close(&c);
    }
}

static void test_unpatchify(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_unpatchify, types[i % 2]);
        int p = ref_range(&c.rng, 1, 4), n = ref_range(&c.rng, 1, 9);
        REF_ATTRS(unpatchify, &c)->patch = p;
        ref_in(&c, 0,
               ref_shape(4, ref_range(&c.rng, 1, 3), ref_range(&c.rng, 1, 20),
                         ref_range(&c.rng, 1, 20), p * p * n),
               1, 0);
        ref_check(&c, ref_unpatchify, 0);
        ref_close(&c);
    }
}

/* ---- Lookups -------------------------------------------------------------------------------- */

static void test_embedding(void **state) {
    static const int tables[3] = {DPK_F32, DPK_BF16, DPK_F16};
    (void)state;
    for (int i = 0; i < 36; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_embedding, types[i % 2]);
        int v = ref_range(&c.rng, 1, 50), n = ref_range(&c.rng, 1, 130);
        int b = ref_range(&c.rng, 1, 3), l = ref_range(&c.rng, 1, 77);
        bool pos = i / 6 % 2;
        ref_in_ids(&c, 0, ref_shape(2, b, l), 0, v - 1);
        ref_raw(&c, 0, tables[i / 2 % 3], ref_shape(2, v, n), i % 5 ? 1 : 1e-5);
        if (pos) ref_raw(&c, 1, tables[i % 3], ref_shape(2, l + i % 4, n), 1);
        ref_check(&c, ref_embedding, pos ? tolerance(c.dtype) : 0);
        ref_set(&c, 0, (size_t)(b * l - 1), v);
        ref_check_fails(&c, DPK_EARG);
        ref_set(&c, 0, (size_t)(b * l - 1), -1);
        ref_check_fails(&c, DPK_EARG);
        ref_close(&c);
    }
}

static void bias_case(uint64_t seed, int dtype, int table, int l, int buckets, int max_distance) {
    struct ref_case c;
    ref_open(&c, seed, DPK_OP_relative_bias, dtype);
    REF_ATTRS(relative_bias, &c)->buckets = buckets;
    REF_ATTRS(relative_bias, &c)->max_distance = max_distance;
    ref_in_ids(&c, 0, ref_shape(2, 2, l), 0, 100);
    ref_raw(&c, 0, table, ref_shape(2, buckets, ref_range(&c.rng, 1, 8)), 1);
    ref_check(&c, ref_relative_bias, 0);
    ref_close(&c);
}

static void test_relative_bias(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        bias_case(1, types[t], DPK_F32, 1, 32, 128);
        bias_case(2, types[t], DPK_BF16, 77, 32, 128);
        bias_case(3, types[t], DPK_F16, 120, 32, 128);
        bias_case(4, types[t], DPK_F32, 300, 32, 128);
        bias_case(5, types[t], DPK_F32, 61, 16, 50);
        bias_case(6, types[t], DPK_F32, 40, 4, 20);
    }
}

/* ---- Positions ------------------------------------------------------------------------------ */

static void test_sinusoid(void **state) {
    (void)state;
    for (int i = 0; i < 40; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_sinusoid, types[i % 2]);
        struct dpk_sinusoid_attrs *a = REF_ATTRS(sinusoid, &c);
        a->dim = i < 4 ? 320 : 2 * ref_range(&c.rng, 2, 200);
        a->flip = i / 2 % 2;
        a->freq_shift = i / 4 % 2 ? 1.0f : 0.0f;
        a->max_period = i % 5 ? 10000.0f : 500.0f;
        int b = ref_range(&c.rng, 1, 6);
        ref_in_f32(&c, 0, i % 3 ? ref_shape(2, b, ref_range(&c.rng, 1, 6)) : ref_shape(1, b), 300,
                   500);
        /* the angle is rounded to float32, as the reference implementation has it: 2^-24 of 1000
         * and more */
        ref_check(&c, ref_sinusoid, c.dtype == DPK_BF16 ? 5e-3 : 1e-4);
        ref_close(&c);
    }
}

static const float *golden;
static void give_golden(const struct ref_case *c, const struct dpk_shape *shape, double *y) {
    (void)c;
    for (int64_t i = 0; i < dpk_shape_count(shape); i++) y[i] = (double)golden[i];
}

/* get_timestep_embedding(torch.tensor([t]), dim, flip_sin_to_cos, downscale_freq_shift) */
static void test_sinusoid_as_diffusers(void **state) {
    static const float t981[24] = {
        0.679957211f,  -0.981803417f, -0.649899542f, -0.757958531f, 0.0191033632f, -0.65535301f,
        -0.926715195f, -0.15831998f,  -0.516453564f, 0.556191802f,  0.898111641f,  0.977748573f,
        0.73325181f,   0.189900205f,  -0.760020137f, -0.652302742f, 0.999817491f,  0.755322754f,
        -0.37576443f,  -0.987387836f, 0.856315196f,  0.831053972f,  0.43976748f,   0.209780097f};
    static const float t499[16] = {0.0132315345f, 0.885613203f,  -0.983840823f, -0.217309356f,
                                   0.526471257f,  0.639657557f,  0.185119346f,  0.0499292277f,
                                   -0.999912441f, -0.464423567f, -0.179045424f, -0.976102769f,
                                   -0.850192904f, 0.768660009f,  0.982716024f,  0.998752773f};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct ref_case c;
        ref_open(&c, 1, DPK_OP_sinusoid, DPK_F32);
        *REF_ATTRS(sinusoid, &c) =
            (struct dpk_sinusoid_attrs){i ? 16 : 24, !i, i ? 1.0f : 0.0f, 10000.0f, 0};
        ref_in_f32(&c, 0, ref_shape(1, 1), 0, i ? 499.5 : 981);
        golden = i ? t499 : t981;
        ref_check(&c, give_golden, 2e-6);
        ref_close(&c);
    }
}

static void test_pos_embed_2d(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct ref_case c;
        ref_open(&c, (uint64_t)i, DPK_OP_pos_embed_2d, types[i % 2]);
        REF_ATTRS(pos_embed_2d, &c)->base = i & 2 ? 64 : 7;
        REF_ATTRS(pos_embed_2d, &c)->interpolation = i & 4 ? 2.0f : 1.0f;
        ref_in(&c, 0,
               ref_shape(4, ref_range(&c.rng, 1, 3), ref_range(&c.rng, 1, 33),
                         ref_range(&c.rng, 1, 33), 4 * ref_range(&c.rng, 1, 40)),
               1, 0);
        ref_check(&c, ref_pos_embed_2d, tolerance(c.dtype));
        ref_close(&c);
    }
}

/* get_2d_sincos_pos_embed(8, (3, 5), base_size=64, interpolation_scale=2): a column takes sin, sin,
 * cos, cos of its position at the frequencies 1 and 1/100, then a row does. */
static void test_pos_embed_2d_as_diffusers(void **state) {
    static const float columns[5][4] = {{0, 0, 1, 1},
                                        {0.116549298f, 0.0639563203f, 0.993184924f, 0.9979527f},
                                        {0.231510013f, 0.127650768f, 0.972832501f, 0.991819203f},
                                        {0.343315631f, 0.190822527f, 0.939220071f, 0.981624544f},
                                        {0.450440943f, 0.253212959f, 0.892806232f, 0.967410564f}};
    static const float rows[3][4] = {{0, 0, 1, 1},
                                     {-0.946395874f, 0.106464513f, -0.323009104f, 0.994316518f},
                                     {0.611388922f, 0.211718842f, -0.791330218f, 0.977330625f}};
    float all[3][5][8];
    struct ref_case c;
    (void)state;
    for (int h = 0; h < 3; h++) {
        for (int w = 0; w < 5; w++) {
            memcpy(all[h][w], columns[w], sizeof columns[w]);
            memcpy(all[h][w] + 4, rows[h], sizeof rows[h]);
        }
    }
    ref_open(&c, 1, DPK_OP_pos_embed_2d, DPK_F32);
    REF_ATTRS(pos_embed_2d, &c)->base = 64;
    REF_ATTRS(pos_embed_2d, &c)->interpolation = 2.0f;
    ref_in(&c, 0, ref_shape(4, 1, 3, 5, 8), 0, 0);
    golden = &all[0][0][0];
    ref_check(&c, give_golden, 1e-7);
    ref_close(&c);
}

/* T5Attention._relative_position_bucket(distance, True, buckets, max_distance): from which distance
 * on each bucket holds. */
static void test_relative_bias_as_transformers(void **state) {
    static const int steps[2][31][2] = {
        {{-200, 15}, {-90, 14}, {-63, 13}, {-45, 12}, {-31, 11}, {-22, 10}, {-15, 9}, {-11, 8},
         {-7, 7},    {-6, 6},   {-5, 5},   {-4, 4},   {-3, 3},   {-2, 2},   {-1, 1},  {0, 0},
         {1, 17},    {2, 18},   {3, 19},   {4, 20},   {5, 21},   {6, 22},   {7, 23},  {8, 24},
         {12, 25},   {16, 26},  {23, 27},  {32, 28},  {46, 29},  {64, 30},  {91, 31}},
        {{-200, 7},
         {-26, 6},
         {-14, 5},
         {-7, 4},
         {-3, 3},
         {-2, 2},
         {-1, 1},
         {0, 0},
         {1, 9},
         {2, 10},
         {3, 11},
         {4, 12},
         {8, 13},
         {15, 14},
         {27, 15}}};
    enum { L = 201 };
    static float all[L][L];
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        struct ref_case c;
        int n = kind ? 15 : 31, buckets = kind ? 16 : 32;
        for (int i = 0; i < L; i++) {
            for (int j = 0; j < L; j++) {
                for (int s = 0; s < n; s++) {
                    if (j - i >= steps[kind][s][0]) all[i][j] = (float)steps[kind][s][1];
                }
            }
        }
        ref_open(&c, 1, DPK_OP_relative_bias, DPK_F32);
        REF_ATTRS(relative_bias, &c)->buckets = buckets;
        REF_ATTRS(relative_bias, &c)->max_distance = kind ? 50 : 128;
        ref_in_ids(&c, 0, ref_shape(2, 1, L), 0, 0);
        ref_raw(&c, 0, DPK_F32, ref_shape(2, buckets, 1), 0);
        for (int i = 0; i < buckets; i++) ((float *)c.buffer[1].data)[i] = (float)i;
        golden = &all[0][0];
        ref_check(&c, give_golden, 0);
        ref_close(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outer_add),     cmocka_unit_test(test_slice),
        cmocka_unit_test(test_add),           cmocka_unit_test(test_concat),
        cmocka_unit_test(test_select),        cmocka_unit_test(test_eos_pool),
        cmocka_unit_test(test_unpatchify),    cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_relative_bias), cmocka_unit_test(test_relative_bias_as_transformers),
        cmocka_unit_test(test_sinusoid),      cmocka_unit_test(test_sinusoid_as_diffusers),
        cmocka_unit_test(test_pos_embed_2d),  cmocka_unit_test(test_pos_embed_2d_as_diffusers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
