/* Results made as quantized rows: what a linear makes of them is, bit for bit, what it makes of the
 * numbers; for every operator that can, at every level, with every number of threads. And the plan
 * that asks for them. */
#include "../runtime/job.h"
#include "support_cuda.h"
#include "support_golden.h"
#include "support_guard.h"
#include "support_int8.h"
#include "support_pack.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_READER = 19 };

static const uint32_t rules[2] = {DPK_TENSOR_DYNAMIC, DPK_TENSOR_DYNAMIC | DPK_TENSOR_TORCHAO};

/* What the reader makes of x, numbers or quantized rows; a guarded array. */
static void *read_rows(struct dpk_backend *be, struct int8_call *reader, const struct dpk_tensor *x,
                       size_t n) {
    reader->call.in[0] = *x;
    return int8_run(be, reader, n, -1);
}

/* The result of the call as quantized rows of a rule; *n_bytes 0 and NULL if the backend makes
 * none. */
static void *make_rows(struct dpk_backend *be, const struct int8_call *c, uint32_t rule,
                       uint64_t *n_bytes) {
    struct dpk_call call = c->call;
    dpk_error err = {0};
    call.out.rows8 = rule;
    *n_bytes = be->rows8_bytes(be, &call);
    if (!*n_bytes) return NULL;
    size_t scratch = (be->scratch_bytes(be, &call) + 63) / 64 * 64;
    call.out.data = test_guard_alloc(*n_bytes);
    call.scratch = test_guard_alloc(scratch);
    if (be->run(be, &call, &err)) fail_msg("%s", err.msg);
    test_guard_free(call.scratch, scratch);
    return call.out.data;
}

/* The CUDA backend for results of a type, opened once; NULL if there is none. */
static struct dpk_backend *cuda_for(int dtype) {
    static struct dpk_backend *backends[2];
    struct dpk_backend **be = &backends[dtype == DPK_BF16];
    if (!*be) *be = support_cuda_open(dtype);
    return *be;
}
static int cuda_made; /* results that it made as rows */

/* What the reader makes of the call's result as numbers. */
static void *read_numbers(struct dpk_backend *be, const struct int8_call *c,
                          struct int8_call *reader) {
    const size_t n = (size_t)dpk_shape_count(&c->call.out.shape);
    struct dpk_tensor x = c->call.out;
    x.data = int8_run(be, c, n, -1);
    void *made = read_rows(be, reader, &x, (size_t)dpk_shape_count(&reader->call.out.shape));
    test_guard_free(x.data, n * test_dtype_bytes(x.dtype));
    return made;
}

/* The reader makes the same bits of the call's result as rows: `want`. False: no rows are made. */
static bool check_backend(struct dpk_backend *be, const struct int8_call *c,
                          struct int8_call *reader, uint32_t rule, const void *want,
                          const char *what) {
    const int dtype = c->call.out.dtype;
    const size_t k = (size_t)c->call.out.shape.dim[c->call.out.shape.rank - 1];
    const size_t n = (size_t)dpk_shape_count(&c->call.out.shape);
    const size_t n_read = (size_t)dpk_shape_count(&reader->call.out.shape);
    const size_t bytes = n_read * test_dtype_bytes(dtype);
    struct dpk_tensor x = c->call.out;
    uint64_t n_rows;
    x.rows8 = rule;
    x.data = make_rows(be, c, rule, &n_rows);
    if (!x.data) return false;
    /* Integers of 16 bits at the most. */
    if (k >= 256 && n_rows >= n * 3) fail_msg("%s: %llu bytes", what, (unsigned long long)n_rows);
    void *got = read_rows(be, reader, &x, n_read);
    test_guard_free(x.data, n_rows);
    if (memcmp(got, want, bytes) != 0)
        fail_msg("%s %s %s: other bits than from numbers", be->detail, what, dpk_dtype_name(dtype));
    test_guard_free(got, bytes);
    return true;
}

/* Everything above for one call; its operands are given, its result's type is `dtype`. Fails unless
 * rows can be made with one thread at least. */
static void check_rows(struct int8_call *c, int dtype, uint32_t rule, const char *what) {
    struct int8_call reader;
    int8_finish(c, dtype);
    int8_open(&reader, DPK_OP_linear, c->seed);
    reader.op.in[0] = 0;
    const int k = c->call.out.shape.dim[c->call.out.shape.rank - 1];
    int8_give_weight(&reader, DPK_S8, rule, 0, false, (struct dpk_shape){2, {N_READER, k}});
    reader.call.in[0] = c->call.out;
    const size_t bytes = int8_finish(&reader, dtype) * test_dtype_bytes(dtype);
    struct dpk_backend *cuda = cuda_for(dtype);
    for (int v = 0; v < INT8_VARIANTS; v++) {
        if (!int8_backends[v][1]) continue;
        void *want = read_numbers(int8_backends[v][1], c, &reader); /* for any number of threads */
        for (int t = 1; t <= INT8_THREADS; t++)
            if (!check_backend(int8_backends[v][t], c, &reader, rule, want, what) && t == 1)
                fail_msg("%s %s: makes no rows", int8_variant_name(v), what);
        test_guard_free(want, bytes);
    }
    if (cuda) {
        void *want = read_numbers(cuda, c, &reader);
        cuda_made += check_backend(cuda, c, &reader, rule, want, what);
        test_guard_free(want, bytes);
    }
    reader.call.in[0] = (struct dpk_tensor){0};
    int8_close(&reader);
}

/* Weight i as a vector of n; int8_close knows the sizes of weights 0 and 1 by these members. */
static void give_vec(struct int8_call *c, int i, int n) {
    float *v = int8_need((size_t)n * sizeof *v);
    for (int j = 0; j < n; j++) v[j] = test_random_float(&c->seed) + 0.5f;
    c->op.wt[i] = 0;
    c->call.wt[i] = (struct dpk_weight){.dtype = DPK_F32, .shape = {1, {n}}};
    c->call.wt[i].data = test_encode_array(DPK_F32, v, (size_t)n);
    if (i == 0) c->w_bytes = (size_t)n * 4;
    else c->rows = (size_t)n;
    free(v);
}

static int width(uint32_t *s, int i) {
    return i % 4 == 0   ? test_random_int(s, 1, 40)
           : i % 4 == 1 ? 64 * test_random_int(s, 1, 6)
           : i % 4 == 2 ? 4032 /* a row of bytes is a multiple of 4 KiB */
                        : test_random_int(s, 200, 500);
}

static void test_layer_norm(void **state) {
    uint32_t s = 77;
    (void)state;
    cuda_made = 0;
    for (int i = 0; i < 24; i++) {
        int n = width(&s, i), images = test_random_int(&s, 1, 3),
            dtype = i & 1 ? DPK_BF16 : DPK_F32;
        struct int8_call c;
        int8_open(&c, DPK_OP_layer_norm, s);
        struct dpk_layer_norm_attrs a = {.eps = 1e-5f, .rms = i % 5 == 4};
        struct dpk_shape x = {3, {images, test_random_int(&s, 1, 19), n}};
        float *bad = (float *)(uintptr_t)int8_give(&c, 0, dtype, x, true);
        if (i == 6) ((float *)c.call.in[0].data)[0] = bad[0] = NAN; /* float32; passed on */
        if (i % 3 == 1) {
            a.shift_off = 3, a.scale_off = 5 + n;
            int8_give(&c, 1, dtype, (struct dpk_shape){2, {i % 2 ? images : 1, 2 * n + 5}}, false);
        }
        memcpy(c.op.attr, &a, offsetof(struct dpk_layer_norm_attrs, end_));
        if (i % 3 == 0) give_vec(&c, 0, n);
        if (i % 3 == 0 && !a.rms) give_vec(&c, 1, n);
        check_rows(&c, dtype, rules[i / 2 % 2], "layer_norm");
        int8_close(&c);
    }
    if (support_cuda_available()) assert_true(cuda_made >= 6);
}

static void test_group_norm(void **state) {
    uint32_t s = 78;
    (void)state;
    cuda_made = 0;
    for (int i = 0; i < 20; i++) {
        const bool kept = i >= 16; /* rows that a device's warp keeps */
        int n = kept ? 64 * test_random_int(&s, 1, 6) : width(&s, i) + 1;
        int n2 = i % 3 == 2 ? test_random_int(&s, 1, n - 1) : 0;
        if (kept) n2 = n2 / 8 * 8;
        int images = test_random_int(&s, 1, 2), dtype = i & 1 ? DPK_BF16 : DPK_F32;
        int h = test_random_int(&s, 1, 9), w = test_random_int(&s, 1, 9);
        struct int8_call c;
        int8_open(&c, DPK_OP_group_norm, s);
        struct dpk_group_norm_attrs a = {.groups = n % 2 ? 1 : 2, .eps = 1e-5f, .act = i / 4 % 2};
        memcpy(c.op.attr, &a, offsetof(struct dpk_group_norm_attrs, end_));
        int8_give(&c, 0, dtype, (struct dpk_shape){4, {images, h, w, n - n2}}, false);
        if (n2) int8_give(&c, 1, dtype, (struct dpk_shape){4, {images, h, w, n2}}, false);
        give_vec(&c, 0, n);
        give_vec(&c, 1, n);
        check_rows(&c, dtype, rules[i / 2 % 2], "group_norm");
        int8_close(&c);
    }
    if (support_cuda_available()) assert_true(cuda_made >= 4);
}

static void test_linear(void **state) {
    static const struct {
        int dtype, group;
        uint32_t flags;
    } weights[] = {{DPK_S8, 0, DPK_TENSOR_DYNAMIC}, {DPK_S8, 0, 0}, {DPK_S4, 32, 0}};
    uint32_t s = 79;
    (void)state;
    for (int i = 0; i < 24; i++) {
        int n = width(&s, i), k = 32 * test_random_int(&s, 1, 4), m = test_random_int(&s, 60, 200);
        int dtype = i & 1 ? DPK_BF16 : DPK_F32, images = test_random_int(&s, 1, 2);
        struct int8_call c;
        int8_open(&c, DPK_OP_linear, s);
        struct dpk_linear_attrs a = {.act = test_random_int(&s, 0, 3), .glu = i % 3 == 1};
        int8_give(&c, 0, dtype, (struct dpk_shape){3, {images, m, k}}, true);
        if (i % 4 == 3) {
            a.gate_off = 1;
            int8_give(&c, DPK_IN(linear, gate), dtype, (struct dpk_shape){2, {images, n + 2}},
                      false);
        }
        memcpy(c.op.attr, &a, offsetof(struct dpk_linear_attrs, end_));
        int8_give_weight(&c, weights[i / 2 % 3].dtype, weights[i / 2 % 3].flags,
                         weights[i / 2 % 3].group, a.glu,
                         (struct dpk_shape){2, {a.glu ? 2 * n : n, k}});
        int8_give_bias(&c);
        check_rows(&c, dtype, rules[i / 6 % 2], "linear");
        int8_close(&c);
    }
}

/* Spans of one block and of several, whole and not; and causal ones. */
static void test_attention(void **state) {
    uint32_t s = 80;
    (void)state;
    for (int i = 0; i < 10; i++) {
        int heads = test_random_int(&s, 1, 3), d = 8 * test_random_int(&s, 1, 5) + i % 3;
        int lq = i < 8 ? test_random_int(&s, 400, 700) : 2100, lk = test_random_int(&s, 1, 90);
        int images = lq < 500 ? 3 : 2, dtype = i & 1 ? DPK_BF16 : DPK_F32;
        struct int8_call c;
        int8_open(&c, DPK_OP_attention, s);
        struct dpk_attention_attrs a = {.heads = heads, .head_dim = d, .causal = i % 5 == 3};
        a.q_off = 1;
        memcpy(c.op.attr, &a, offsetof(struct dpk_attention_attrs, end_));
        int8_give(&c, 0, dtype, (struct dpk_shape){3, {images, lq, heads * d + 2}}, false);
        int8_give(&c, 1, dtype, (struct dpk_shape){3, {images, lk, heads * d}}, false);
        int8_give(&c, 2, dtype, (struct dpk_shape){3, {images, lk, heads * d}}, false);
        check_rows(&c, dtype, rules[i / 2 % 2], "attention");
        int8_close(&c);
    }
}

/* Not made: rows that a residual is added to, and fewer than all workers can share. */
static void test_linear_refuses(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct int8_call c;
        int8_open(&c, DPK_OP_linear, 5);
        struct dpk_shape x = {3, {1, i == 1 ? 6 : 200, 64}};
        int8_give(&c, 0, DPK_F32, x, false);
        if (i == 2) int8_give(&c, DPK_IN(linear, residual), DPK_F32, x, false);
        int8_give_weight(&c, DPK_S8, DPK_TENSOR_DYNAMIC, 0, false, (struct dpk_shape){2, {64, 64}});
        int8_finish(&c, DPK_F32);
        c.call.out.rows8 = DPK_TENSOR_DYNAMIC;
        for (int v = 0; v < INT8_VARIANTS; v++) {
            struct dpk_backend *be = int8_backends[v][3];
            if (be) assert_int_equal(be->rows8_bytes(be, &c.call) != 0, i == 0);
        }
        int8_close(&c);
    }
}

/* x as rows and the result as rows, in one call. */
static void test_chain(void **state) {
    (void)state;
    for (int v = 0; v < INT8_VARIANTS; v++)
        for (int t = 1; int8_backends[v][1] && t <= INT8_THREADS; t++) {
            struct dpk_backend *be = int8_backends[v][t];
            struct int8_call norm, c;
            struct dpk_shape x = {3, {2, 90, 96}};
            int8_open(&norm, DPK_OP_layer_norm, 11);
            norm.op.attr[0].f = 1e-5f;
            int8_give(&norm, 0, DPK_BF16, x, true);
            size_t n = int8_finish(&norm, DPK_BF16);
            int8_open(&c, DPK_OP_linear, 12);
            c.op.in[0] = 0;
            c.call.in[0] = norm.call.out;
            int8_give_weight(&c, DPK_S8, rules[1], 0, false, (struct dpk_shape){2, {100, 96}});
            int8_give_bias(&c);
            int8_finish(&c, DPK_BF16);
            uint64_t n_x, n_want, n_got;
            c.call.in[0].data = int8_run(be, &norm, n, -1);
            void *want = make_rows(be, &c, rules[0], &n_want);
            test_guard_free(c.call.in[0].data, n * 2);
            c.call.in[0].data = make_rows(be, &norm, rules[1], &n_x);
            c.call.in[0].rows8 = rules[1];
            void *got = make_rows(be, &c, rules[0], &n_got);
            assert_int_equal(n_got, n_want);
            for (uint64_t row = 0, stride = n_got / 180; row < 180; row++) { /* scale, integers */
                const char *a = (char *)got + row * stride, *b = (char *)want + row * stride;
                assert_memory_equal(a, b, 4);
                assert_memory_equal(a + 64, b + 64, 100);
            }
            test_guard_free(c.call.in[0].data, n_x);
            test_guard_free(got, n_got);
            test_guard_free(want, n_want);
            c.call.in[0] = (struct dpk_tensor){0};
            int8_close(&c);
            int8_close(&norm);
        }
}

/* ---- A model --------------------------------------------------------------------------------- */

/* What the plan of a picture has of quantized rows: results, by opcode, and readers. */
struct census {
    uint32_t made[DPK_N_OPCODES], n_made, n_read;
};

static struct census count_rows(dpk_session *session, const dpk_params *params) {
    struct census c = {0};
    struct dpk_job job;
    dpk_error err;
    if (dpk_job_plan(&job, session, params, &err)) fail_msg("%s", err.msg);
    for (uint32_t s = 0; s < job.plan.n_stages; s++) {
        const struct dpk_plan_stage *stage = &job.plan.stages[s];
        const struct dpk_program *p = stage->program;
        for (uint32_t i = 0; i < p->n_ops; i++) {
            const struct dpk_call *call = &stage->calls[i];
            if (call->out.rows8) {
                assert_int_equal(stage->values[p->n_inputs + i].bytes,
                                 session->backend->rows8_bytes(session->backend, call));
                assert_false(p->values[p->n_inputs + i].flags & DPK_VALUE_OUTPUT);
                c.made[p->ops[i].opcode]++;
                c.n_made++;
            }
            for (int k = 0; k < DPK_MAX_IN; k++) {
                uint32_t v = p->ops[i].in[k];
                bool made =
                    v != DPK_NONE && v >= p->n_inputs && stage->calls[v - p->n_inputs].out.rows8;
                assert_int_equal(call->in[k].rows8 != 0, made);
                if (!made) continue;
                assert_int_equal(p->ops[i].opcode, DPK_OP_linear);
                assert_int_equal(k, DPK_IN(linear, x));
                assert_true(call->wt[0].flags & DPK_TENSOR_DYNAMIC);
                c.n_read++;
            }
        }
    }
    dpk_job_free(&job);
    return c;
}

enum { SIDE = 64 };

static dpk_images *paint(const dpk_model *model, int isa, bool with_rows, struct census *c) {
    static const char *const prompt = "a large red circle";
    dpk_session_options options = dpk_session_options_default();
    dpk_params params = dpk_params_default();
    dpk_session *session;
    dpk_images *images;
    dpk_error err;
    params.prompts = &prompt;
    params.steps = 2;
    params.width = params.height = SIDE;
    options.isa = dpk_isa_name(isa);
    options.threads = with_rows ? 2 : 1;
    if (dpk_session_create(&session, model, &options, &err)) fail_msg("%s", err.msg);
    if (!with_rows) session->backend->rows8_bytes = NULL;
    *c = count_rows(session, &params);
    if (dpk_generate(session, &params, &images, &err)) fail_msg("%s", err.msg);
    dpk_session_free(session);
    return images;
}

/* A picture of a quantized file is the same with and without, at every level. */
static void test_model(void **state) {
    char path[1100];
    dpk_error err;
    (void)state;
    dpk_model_free(golden_model("rows8", "models/shapes-xl", "--dtype bf16"));
    snprintf(path, sizeof path, "%s", golden_build_path("tests/rows8.dpk"));
    for (int rule = 0; rule < 2; rule++) {
        dpk_model *model;
        char made[1200];
        snprintf(made, sizeof made, "%s.int8", path);
        if (golden_shell(
                "%s %s -o %s --scheme int8-dynamic --filter all --convention %s >/dev/null",
                golden_build_path("bin/diffpak-quantize"), path, made,
                rule ? "torchao" : "diffusion-fast"))
            fail_msg("quantizing failed");
        if (dpk_model_open(&model, made, &err)) fail_msg("%s", err.msg);
        for (int isa = DPK_ISA_REF; isa < DPK_N_ISAS; isa++) {
            struct census plain, rows;
            if (!dpk_isa_available(isa)) continue;
            dpk_images *a = paint(model, isa, false, &plain), *b = paint(model, isa, true, &rows);
            assert_int_equal(plain.n_made + plain.n_read, 0);
            assert_true(rows.n_read >= rows.n_made);
            assert_true(rows.made[DPK_OP_layer_norm] > 0 && rows.made[DPK_OP_group_norm] > 0);
            assert_true(rows.made[DPK_OP_linear] > 0);
            assert_memory_equal(a->rgb, b->rgb, SIDE * SIDE * 3);
            dpk_images_free(a);
            dpk_images_free(b);
        }
        dpk_model_free(model);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layer_norm),     cmocka_unit_test(test_group_norm),
        cmocka_unit_test(test_linear),         cmocka_unit_test(test_attention),
        cmocka_unit_test(test_linear_refuses), cmocka_unit_test(test_chain),
        cmocka_unit_test(test_model),
    };
    return cmocka_run_group_tests(tests, int8_set_up, int8_tear_down);
}
