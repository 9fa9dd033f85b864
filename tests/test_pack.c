/* Weights on their way from source tensors into the file's layouts, against a packing written from
 * ops.h alone (support_pack.c): all types, layouts and tails, stacked sources, pieces of any size,
 * values that do not fit, drawn values. */
#include "support_files.h"
#include "support_guard.h"
#include "support_pack.h"

#include "../convert/weights.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_ELEMENTS = 1 << 16 };

static const int dtypes[] = {DPK_F32, DPK_BF16, DPK_F16};

/* A safetensors file in the making: `values` are what the reader should give back. */
struct file {
    char header[4096];
    size_t at, n_bytes;
    uint8_t data[MAX_ELEMENTS * 8];
};

static void add_tensor(struct file *f, const char *name, const char *dtype, const char *shape,
                       const float *values, size_t n) {
    const size_t begin = f->n_bytes;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)values[i];
        uint32_t bits = 0;
        if (strcmp(dtype, "F64") == 0) {
            memcpy(f->data + f->n_bytes, &d, 8);
            f->n_bytes += 8;
        } else if (strcmp(dtype, "F32") == 0) {
            memcpy(f->data + f->n_bytes, &values[i], 4);
            f->n_bytes += 4;
        } else {
            bits = test_encode(strcmp(dtype, "F16") == 0 ? DPK_F16 : DPK_BF16, values[i]);
            memcpy(f->data + f->n_bytes, &bits, 2);
            f->n_bytes += 2;
        }
    }
    f->at += (size_t)snprintf(f->header + f->at, sizeof f->header - f->at,
                              "%c\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                              f->at ? ',' : '{', name, dtype, shape, begin, f->n_bytes);
}

/* Close the header, write, open as component "part". */
static void open_file(struct file *f, const char *dir, struct dpk_component *part) {
    dpk_error err;
    const char *path = in_dir(dir, "w.safetensors");
    f->header[f->at++] = '}';
    f->header[f->at] = 0;
    put_safetensors(path, f->header, f->data, f->n_bytes);
    *part = (struct dpk_component){.prefix = "part"};
    if (dpk_tensors_open_file(&part->tensors, path, &err)) fail_msg("%s", err.msg);
}

static float *random_values(uint32_t *seed, size_t n, int dtype, float scale) {
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = scale * test_random_float(seed);
    if (dtype) test_round(dtype, x, n);
    return x;
}

/* Pack in pieces of random sizes and compare with `want`. */
static void check_bytes(const struct dpk_weight_plan *w, const void *want, size_t n_bytes,
                        uint32_t *seed) {
    dpk_error err;
    const struct dpk_weight_units u = dpk_weight_units(w);
    struct dpk_pack_scratch scratch = {0};
    assert_int_equal(u.n_units * u.unit_bytes, n_bytes);
    assert_int_equal(dpk_weight_bytes(w->dtype, w->layout, &w->shape), n_bytes);
    for (uint64_t first = 0, n; first < u.n_units; first += n) {
        n = (uint64_t)test_random_int(seed, 1, 3);
        if (n > u.n_units - first) n = u.n_units - first;
        const size_t bytes = (size_t)(n * u.unit_bytes);
        void *got = test_guard_alloc(bytes);
        if (dpk_weight_pack(w, first, n, got, &scratch, &err)) fail_msg("%s", err.msg);
        if (memcmp(got, (const char *)want + first * u.unit_bytes, bytes) != 0)
            fail_msg("%s %s %s: units %llu.. differ", w->name, dpk_dtype_name(w->dtype),
                     dpk_layout_name(w->layout), (unsigned long long)first);
        test_guard_free(got, bytes);
    }
    dpk_pack_scratch_free(&scratch);
}

/* One weight made of n_parts tensors of `rows` rows, as every type in every layout it can have.
 * shape: the logical one; source: a part's shape as text; values: the parts' values in the source's
 * order, logical: all of them in the file's logical order. */
struct matrix {
    const char *layer, *suffix;
    const char *const *stack;
    struct dpk_shape shape;
    int n_parts;
};
static void check_matrix(const char *dir, const struct matrix *m, const char *source_type,
                         const char *source_shape, const float *values, const float *logical,
                         bool glu, uint32_t *seed) {
    const size_t n = (size_t)dpk_shape_count(&m->shape);
    dpk_error err;
    for (size_t t = 0; t < 3; t++) {
        static struct file f;
        struct dpk_component part;
        struct dpk_weight_plan w;
        char name[64];
        size_t n_bytes;
        memset(&f, 0, sizeof f);
        for (int i = 0; i < m->n_parts; i++) {
            snprintf(name, sizeof name, "a.%s.%s", m->stack ? m->stack[i] : "all", m->suffix);
            add_tensor(&f, name, source_type, source_shape, values + (size_t)i * (n / m->n_parts),
                       n / (size_t)m->n_parts);
        }
        open_file(&f, dir, &part);
        const struct dpk_weight_want want = {.layer = m->layer,
                                             .suffix = m->suffix,
                                             .stack = m->stack,
                                             .dtype = dtypes[t],
                                             .layout =
                                                 glu ? DPK_LAYOUT_PANEL_GLU : DPK_LAYOUT_PANEL,
                                             .shape = m->shape};
        if (dpk_weight_plan_make(&w, &part, &want, &err)) fail_msg("%s", err.msg);
        assert_int_equal(part.n_params, n);
        void *packed = test_pack_weight(dtypes[t], want.layout, &m->shape, logical, &n_bytes);
        check_bytes(&w, packed, n_bytes, seed);
        test_guard_free(packed, n_bytes);
        dpk_weight_plan_free(&w);
        dpk_component_close(&part);
    }
}

static const char *const stack3[] = {"to_q", "to_k", "to_v"};
static const char *const stack2[] = {"to_k", "to_v", NULL};
static const char *const types[] = {"F32", "F16", "BF16", "F64"};

/* What the source type keeps of a value; F64 and F32 keep all. */
static int rounding_of(const char *type) {
    return strcmp(type, "F16") == 0 ? DPK_F16 : strcmp(type, "BF16") == 0 ? DPK_BF16 : 0;
}

static void test_linear_shapes(void **state) {
    uint32_t seed = 1;
    for (int i = 0; i < 60; i++) {
        const char *type = types[i % 4];
        const int parts = i % 3 + 1, glu = parts == 1 && i % 2;
        int rows = test_random_int(&seed, 1, 40), k = test_random_int(&seed, 1, 70);
        if (glu) rows *= 2;
        const struct matrix m = {.layer = parts == 1 ? "a.all" : "a.fused",
                                 .suffix = "weight",
                                 .stack = parts == 3   ? stack3
                                          : parts == 2 ? stack2
                                                       : NULL,
                                 .shape = {2, {rows * parts, k}},
                                 .n_parts = parts};
        char shape[64];
        /* every third comes as a 1x1 convolution */
        snprintf(shape, sizeof shape, i % 3 ? "[%d,%d]" : "[%d,%d,1,1]", rows, k);
        float *x = random_values(&seed, (size_t)(rows * parts * k), rounding_of(type), 2.0f);
        check_matrix(*state, &m, type, shape, x, x, glu, &seed);
        free(x);
    }
}

static void test_convolution_shapes(void **state) {
    uint32_t seed = 2;
    for (int i = 0; i < 40; i++) {
        const char *type = types[i % 4];
        const int n = test_random_int(&seed, 1, 40), c = test_random_int(&seed, 1, 20);
        const int kh = test_random_int(&seed, 1, 4), kw = test_random_int(&seed, 1, 4);
        const struct matrix m = {
            .layer = "a.all", .suffix = "weight", .shape = {4, {n, kh, kw, c}}, .n_parts = 1};
        char shape[64];
        snprintf(shape, sizeof shape, "[%d,%d,%d,%d]", n, c, kh, kw);
        float *x = random_values(&seed, (size_t)(n * c * kh * kw), rounding_of(type), 0.3f);
        float *logical = malloc(sizeof *x * (size_t)(n * c * kh * kw));
        assert_non_null(logical);
        for (int r = 0; r < n; r++)
            for (int ch = 0; ch < c; ch++)
                for (int t = 0; t < kh * kw; t++)
                    logical[(r * kh * kw + t) * c + ch] = x[(r * c + ch) * kh * kw + t];
        check_matrix(*state, &m, type, shape, x, logical, false, &seed);
        free(logical);
        free(x);
    }
}

static void test_vectors_and_tables(void **state) {
    static struct file f;
    dpk_error err;
    uint32_t seed = 3;
    struct dpk_component part;
    struct dpk_weight_plan w;
    float *x = random_values(&seed, 3 * 37 + 29 * 13, DPK_F16, 1.0f);
    memset(&f, 0, sizeof f);
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "a.%s.bias", stack3[i]);
        add_tensor(&f, name, "F16", "[37]", x + 37 * i, 37);
    }
    add_tensor(&f, "table.weight", "F16", "[29,13]", x + 3 * 37, 29 * 13);
    open_file(&f, *state, &part);

    const struct dpk_weight_want bias = {.layer = "a.to_qkv",
                                         .suffix = "bias",
                                         .stack = stack3,
                                         .dtype = DPK_F32,
                                         .layout = DPK_LAYOUT_RAW,
                                         .shape = {1, {3 * 37}}};
    if (dpk_weight_plan_make(&w, &part, &bias, &err)) fail_msg("%s", err.msg);
    assert_string_equal(w.name, "part.a.to_qkv.bias");
    assert_string_equal(w.source, "part.a.to_q.bias part.a.to_k.bias part.a.to_v.bias");
    check_bytes(&w, x, 3 * 37 * sizeof *x, &seed);
    dpk_weight_plan_free(&w);

    /* a table of rows that operators see as one vector */
    const struct dpk_weight_want rows = {.layer = "table.weight",
                                         .dtype = DPK_F32,
                                         .layout = DPK_LAYOUT_RAW,
                                         .shape = {1, {29 * 13}},
                                         .table_rows = 29};
    if (dpk_weight_plan_make(&w, &part, &rows, &err)) fail_msg("%s", err.msg);
    check_bytes(&w, x + 3 * 37, 29 * 13 * sizeof *x, &seed);
    dpk_weight_plan_free(&w);

    for (size_t t = 0; t < 3; t++) {
        const size_t n_bytes = 29 * 13 * test_dtype_bytes(dtypes[t]);
        const struct dpk_weight_want table = {.layer = "table",
                                              .suffix = "weight",
                                              .dtype = dtypes[t],
                                              .layout = DPK_LAYOUT_RAW,
                                              .shape = {2, {29, 13}}};
        if (dpk_weight_plan_make(&w, &part, &table, &err)) fail_msg("%s", err.msg);
        void *want = test_encode_array(dtypes[t], x + 3 * 37, 29 * 13);
        check_bytes(&w, want, n_bytes, &seed);
        test_guard_free(want, n_bytes);
        dpk_weight_plan_free(&w);
    }
    dpk_component_close(&part);
    free(x);
}

/* Every half goes through unchanged; ties, subnormals and neighbours of both round to even. */
static void test_rounding(void **state) {
    static float x[MAX_ELEMENTS];
    static struct file f;
    uint32_t seed = 4;
    dpk_error err;
    for (size_t t = 1; t < 3; t++) {
        struct dpk_component part;
        struct dpk_weight_plan w;
        size_t n = 0;
        for (uint32_t bits = 0; bits < 0x10000; bits += 5) {
            const float v = test_decode(dtypes[t], bits);
            const float next = test_decode(dtypes[t], bits + 1);
            const uint32_t largest = t == 1 ? 0x7f7f : 0x7bff;
            if ((bits & 0x7fff) >= largest) continue;
            const float tie = (float)(((double)v + (double)next) / 2);
            x[n++] = v;
            x[n++] = tie;
            x[n++] = nextafterf(tie, -INFINITY);
            x[n++] = nextafterf(tie, INFINITY);
        }
        x[n++] = dtypes[t] == DPK_F16 ? 65519.0f : 3.38953e38f; /* the largest that fit */
        x[n++] = FLT_TRUE_MIN;
        x[n++] = -0.0f;
        assert_true(n > 50000 && n <= MAX_ELEMENTS);
        char shape[32];
        snprintf(shape, sizeof shape, "[1,%zu]", n);
        memset(&f, 0, sizeof f);
        add_tensor(&f, "t.weight", "F32", shape, x, n);
        open_file(&f, *state, &part);
        const struct dpk_weight_want table = {.layer = "t",
                                              .suffix = "weight",
                                              .dtype = dtypes[t],
                                              .layout = DPK_LAYOUT_RAW,
                                              .shape = {2, {1, (int32_t)n}}};
        if (dpk_weight_plan_make(&w, &part, &table, &err)) fail_msg("%s", err.msg);
        void *want = test_encode_array(dtypes[t], x, n);
        check_bytes(&w, want, n * 2, &seed);
        test_guard_free(want, n * 2);
        dpk_weight_plan_free(&w);
        dpk_component_close(&part);
    }
}

/* ---- Values that do not fit ------------------------------------------------------------------ */

static void expect_error(const char *dir, int dtype, float bad, int code, const char *message) {
    static struct file f;
    static float x[40 * 8 * 9];
    char out[65536];
    dpk_error err;
    struct dpk_component part;
    struct dpk_weight_plan w;
    struct dpk_pack_scratch scratch = {0};
    memset(&f, 0, sizeof f);
    memset(x, 0, sizeof x);
    x[((17 * 8 + 3) * 3 + 2) * 3 + 1] = bad;
    add_tensor(&f, "c.weight", "F32", "[40,8,3,3]", x, 40 * 8 * 9);
    open_file(&f, dir, &part);
    const struct dpk_weight_want want = {.layer = "c",
                                         .suffix = "weight",
                                         .dtype = dtype,
                                         .layout = DPK_LAYOUT_PANEL,
                                         .shape = {4, {40, 3, 3, 8}}};
    if (dpk_weight_plan_make(&w, &part, &want, &err)) fail_msg("%s", err.msg);
    const int rc = dpk_weight_pack(&w, 0, dpk_weight_units(&w).n_units, out, &scratch, &err);
    assert_int_equal(rc, code);
    if (rc != DPK_OK) assert_string_equal(err.msg, message);
    dpk_pack_scratch_free(&scratch);
    dpk_weight_plan_free(&w);
    dpk_component_close(&part);
}

static void test_bad_values(void **state) {
    for (size_t t = 0; t < 3; t++) {
        expect_error(*state, dtypes[t], NAN, DPK_EFORMAT,
                     "part: tensor c.weight: NaN at [17, 3, 2, 1], wanted finite numbers");
        expect_error(*state, dtypes[t], -INFINITY, DPK_EFORMAT,
                     "part: tensor c.weight: infinity at [17, 3, 2, 1], wanted finite numbers");
    }
    expect_error(*state, DPK_F16, 65519.0f, DPK_OK, NULL);
    expect_error(*state, DPK_F16, -65520.0f, DPK_EUNSUPPORTED,
                 "part: tensor c.weight: -65520 at [17, 3, 2, 1] is too large for f16, want "
                 "--dtype bf16 or f32");
    expect_error(*state, DPK_BF16, 70000.0f, DPK_OK, NULL);
    expect_error(*state, DPK_BF16, FLT_MAX, DPK_EUNSUPPORTED,
                 "part: tensor c.weight: 3.40282e+38 at [17, 3, 2, 1] is too large for bf16, want "
                 "--dtype bf16 or f32");
    expect_error(*state, DPK_F32, FLT_MAX, DPK_OK, NULL);
}

static void test_wrong_tensors(void **state) {
    static struct file f;
    static const float x[12];
    dpk_error err;
    struct dpk_component part;
    struct dpk_weight_plan w;
    memset(&f, 0, sizeof f);
    add_tensor(&f, "a.weight", "F16", "[3,4]", x, 12);
    add_tensor(&f, "b.weight", "I32", "[3,4]", x, 12);
    f.header[0] = '{';
    /* I32 has F32's size; add_tensor wrote halves for it */
    f.n_bytes += 24;
    char *offsets = strstr(f.header, "[24,48]");
    assert_non_null(offsets);
    memcpy(offsets, "[24,72]", 7);
    open_file(&f, *state, &part);
    struct dpk_weight_want want = {
        .suffix = "weight", .dtype = DPK_F32, .layout = DPK_LAYOUT_PANEL, .shape = {2, {3, 4}}};
    want.layer = "c";
    assert_int_equal(dpk_weight_plan_make(&w, &part, &want, &err), DPK_EFORMAT);
    assert_string_equal(err.msg, "part: tensor c.weight is missing (wanted [3, 4])");
    want.layer = "b";
    assert_int_equal(dpk_weight_plan_make(&w, &part, &want, &err), DPK_EUNSUPPORTED);
    assert_string_equal(err.msg, "part: tensor b.weight is I32, wanted F32, F16, BF16 or F64");
    want.layer = "a";
    want.shape = (struct dpk_shape){2, {4, 3}};
    assert_int_equal(dpk_weight_plan_make(&w, &part, &want, &err), DPK_EFORMAT);
    assert_string_equal(err.msg, "part: tensor a.weight: found [3, 4] F16, wanted [4, 3]");
    want.shape = (struct dpk_shape){4, {3, 1, 1, 4}}; /* a matrix is no convolution */
    assert_int_equal(dpk_weight_plan_make(&w, &part, &want, &err), DPK_EFORMAT);
    want.shape = (struct dpk_shape){2, {INT32_MAX, INT32_MAX}};
    assert_int_equal(dpk_weight_plan_make(&w, &part, &want, &err), DPK_EUNSUPPORTED);
    assert_int_equal(dpk_component_check_used(&part, &err), DPK_EFORMAT);
    assert_string_equal(err.msg, "part: found 2 tensors that the config has no place for: "
                                 "a.weight, b.weight");
    dpk_component_close(&part);
}

/* ---- Drawn values ---------------------------------------------------------------------------- */

static void test_random_values(void **state) {
    (void)state;
    enum { N = 1 << 20 };
    /* made once, checked on two compilers and without optimisation */
    static const float golden[6] = {0.0695171729f, 0.392330408f,   -1.4664259f,
                                    0.725438237f,  -0.0806540102f, 1.83836198f};
    static const float late[3] = {0.900619626f, 0.847979069f, 1.0756135f};
    static float table[DPK_RANDOM_SEGMENTS + 1], x[N], y[N];
    dpk_random_table(table);
    assert_true(table[DPK_RANDOM_SEGMENTS / 2] == 0.0f);
    assert_true(fabsf(table[DPK_RANDOM_SEGMENTS * 3 / 4] - 0.6744898f) < 5e-4f); /* a quartile */
    dpk_random_fill(table, "unet.conv_in.weight", 7, 0, N, 0.0f, 1.0f, x);
    assert_memory_equal(x, golden, sizeof golden);
    dpk_random_fill(table, "vae.decoder.conv_in.bias", UINT64_MAX, 1000000007, 3, 1.0f, 0.1f, y);
    assert_memory_equal(y, late, sizeof late);

    double sum = 0, square = 0, cube = 0, fourth = 0, lag = 0;
    for (int i = 0; i < N; i++) {
        const double v = (double)x[i];
        sum += v, square += v * v, cube += v * v * v, fourth += v * v * v * v;
        if (i) lag += v * (double)x[i - 1];
    }
    assert_true(fabs(sum / N) < 4.0 / 1024); /* four standard errors */
    assert_true(fabs(square / N - 1) < 4.0 * sqrt(2) / 1024);
    assert_true(fabs(cube / N) < 4.0 * sqrt(15) / 1024);
    assert_true(fabs(fourth / N - 3) < 4.0 * sqrt(96) / 1024);
    assert_true(fabs(lag / N) < 4.0 / 1024);

    /* any split gives the same */
    uint32_t seed = 5;
    for (size_t first = 0, n; first < N; first += n) {
        n = (size_t)test_random_int(&seed, 0, 5000);
        if (n > N - first) n = N - first;
        dpk_random_fill(table, "unet.conv_in.weight", 7, first, n, 0.0f, 1.0f, y + first);
    }
    assert_memory_equal(x, y, sizeof x);
    /* another name, another seed: nothing in common */
    dpk_random_fill(table, "unet.conv_in.weighs", 7, 0, N, 0.0f, 1.0f, y);
    for (int i = 0; i < 100; i++) assert_true(x[i] != y[i]);
    dpk_random_fill(table, "unet.conv_in.weight", 8, 0, N, 0.0f, 1.0f, y);
    for (int i = 0; i < 100; i++) assert_true(x[i] != y[i]);
}

/* Fusing and packing do not change what is drawn. */
static void test_random_fused(void **state) {
    (void)state;
    enum { ROWS = 9, K = 10 };
    dpk_error err;
    uint32_t seed = 6;
    struct dpk_weight_plan w;
    struct dpk_component part = {.prefix = "unet", .seed = 11};
    float want[3 * ROWS * K];
    part.normal = malloc((DPK_RANDOM_SEGMENTS + 1) * sizeof *part.normal);
    assert_non_null(part.normal);
    dpk_random_table(part.normal);
    const struct dpk_weight_want matrix = {.layer = "x.to_qkv",
                                           .suffix = "weight",
                                           .stack = stack3,
                                           .role = DPK_ROLE_MATRIX,
                                           .dtype = DPK_BF16,
                                           .layout = DPK_LAYOUT_PANEL,
                                           .shape = {2, {3 * ROWS, K}}};
    if (dpk_weight_plan_make(&w, &part, &matrix, &err)) fail_msg("%s", err.msg);
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "unet.x.%s.weight", stack3[i]);
        dpk_random_fill(part.normal, name, 11, 0, ROWS * K, 0.0f, 1.0f / sqrtf(K),
                        want + i * ROWS * K);
    }
    size_t n_bytes;
    void *packed = test_pack_weight(DPK_BF16, DPK_LAYOUT_PANEL, &matrix.shape, want, &n_bytes);
    check_bytes(&w, packed, n_bytes, &seed);
    test_guard_free(packed, n_bytes);
    dpk_weight_plan_free(&w);
    dpk_component_close(&part);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_linear_shapes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_convolution_shapes, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_vectors_and_tables, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_rounding, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_bad_values, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_wrong_tensors, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_random_values),
        cmocka_unit_test(test_random_fused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
