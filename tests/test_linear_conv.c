/* linear and conv2d of the CPU backend: every level, every pair of types, shapes with every tail,
 * against double precision. */
#include "../kernels/backend.h"
#include "../kernels/cpu/cpu.h"
#include "support_guard.h"
#include "support_pack.h"
#include "support_ref_gemm.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_THREADS = 3 };
static struct dpk_backend *backends[DPK_N_ISAS][N_THREADS + 1];
static const int type_pairs[][2] = {{DPK_F32, DPK_F32},  {DPK_F32, DPK_BF16},  {DPK_F32, DPK_F16},
                                    {DPK_BF16, DPK_F32}, {DPK_BF16, DPK_BF16}, {DPK_BF16, DPK_F16}};
enum { N_PAIRS = sizeof type_pairs / sizeof type_pairs[0] };

static int set_up(void **state) {
    (void)state;
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        for (int n = 1; n <= N_THREADS && dpk_isa_available(isa); n++) {
            const struct dpk_cpu_options options = {
                .n_threads = n, .isa = dpk_isa_name(isa), .no_winograd = true};
            if (dpk_cpu_create_with(&backends[isa][n], &options, NULL)) return 1;
        }
    }
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        for (int n = 1; n <= N_THREADS; n++) {
            if (backends[isa][n]) backends[isa][n]->free(backends[isa][n]);
        }
    }
    return 0;
}

/* ---- Operands ------------------------------------------------------------------------------- */

/* A call under construction: the plain floats for the reference, and the guarded arrays for the
 * backend. */
struct operands {
    struct dpk_op op;
    struct dpk_call call;
    float *plain[DPK_MAX_IN + DPK_MAX_WT];
    size_t weight_bytes[DPK_MAX_WT];
    int x_dtype, w_dtype;
    uint32_t seed;
};

static float *random_floats(uint32_t *seed, size_t n, int dtype, float scale) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = test_random_float(seed) * scale;
    test_round(dtype, x, n);
    return x;
}

static void init_operands(struct operands *o, int opcode, int x_dtype, int w_dtype, uint32_t seed) {
    memset(o, 0, sizeof *o);
    o->op.opcode = (uint32_t)opcode;
    for (int i = 0; i < DPK_MAX_IN; i++) o->op.in[i] = DPK_NONE;
    for (int i = 0; i < DPK_MAX_WT; i++) o->op.wt[i] = DPK_NONE;
    o->call.op = &o->op;
    o->x_dtype = x_dtype;
    o->w_dtype = w_dtype;
    o->seed = seed;
}

static const float *add_input(struct operands *o, size_t i, struct dpk_shape shape) {
    size_t n = (size_t)dpk_shape_count(&shape);
    o->op.in[i] = 0;
    o->plain[i] = random_floats(&o->seed, n, o->x_dtype, 1.5f);
    o->call.in[i] = (struct dpk_tensor){.dtype = o->x_dtype, .shape = shape};
    o->call.in[i].data = test_encode_array(o->x_dtype, o->plain[i], n);
    return o->plain[i];
}

static const float *add_weight(struct operands *o, int layout, struct dpk_shape shape) {
    size_t n = (size_t)dpk_shape_count(&shape);
    float *w = random_floats(&o->seed, n, o->w_dtype, 1.0f);
    o->op.wt[0] = 0;
    o->plain[DPK_MAX_IN] = w;
    o->call.wt[0] = (struct dpk_weight){.dtype = o->w_dtype, .layout = layout, .shape = shape};
    o->call.wt[0].data = test_pack_weight(o->w_dtype, layout, &shape, w, &o->weight_bytes[0]);
    assert_int_equal(o->weight_bytes[0], dpk_weight_bytes(o->w_dtype, layout, &shape));
    return w;
}

static const float *add_bias(struct operands *o, int n) {
    float *b = random_floats(&o->seed, (size_t)n, DPK_F32, 2.0f);
    o->op.wt[1] = 0;
    o->plain[DPK_MAX_IN + 1] = b;
    o->call.wt[1] = (struct dpk_weight){.dtype = DPK_F32, .layout = DPK_LAYOUT_RAW};
    o->call.wt[1].shape = (struct dpk_shape){1, {n, 0, 0, 0}};
    o->call.wt[1].data = test_encode_array(DPK_F32, b, (size_t)n);
    o->weight_bytes[1] = (size_t)n * 4;
    return b;
}

/* The result's shape by the operator table, so that a case the table refuses cannot be tested by
 * mistake. */
static size_t finish_operands(struct operands *o) {
    struct dpk_shape in[DPK_MAX_IN], wt[DPK_MAX_WT];
    dpk_error err = {0};
    for (int i = 0; i < DPK_MAX_IN; i++) in[i] = o->call.in[i].shape;
    for (int i = 0; i < DPK_MAX_WT; i++) wt[i] = o->call.wt[i].shape;
    int rc = dpk_op_shape(&o->op, "test", in, wt, &o->call.out.shape, &err);
    if (rc != DPK_OK) fail_msg("%s", err.msg);
    o->call.out.dtype = o->x_dtype;
    return (size_t)dpk_shape_count(&o->call.out.shape);
}

static void free_operands(struct operands *o) {
    for (int i = 0; i < DPK_MAX_IN; i++) {
        struct dpk_tensor *t = &o->call.in[i];
        if (!t->data) continue;
        test_guard_free(t->data, (size_t)dpk_shape_count(&t->shape) * test_dtype_bytes(o->x_dtype));
    }
    for (int i = 0; i < DPK_MAX_WT; i++) {
        test_guard_free((void *)(uintptr_t)o->call.wt[i].data, o->weight_bytes[i]);
    }
    for (int i = 0; i < DPK_MAX_IN + DPK_MAX_WT; i++) free(o->plain[i]);
}

/* Result of the call in a guarded array of n elements, with scratch of exactly the size asked for.
 * With in_place >= 0 the result is written over a copy of that input. */
static void *run_call(struct dpk_backend *be, const struct operands *o, size_t n, int in_place) {
    struct dpk_call call = o->call;
    size_t bytes = n * test_dtype_bytes(o->x_dtype);
    size_t scratch = (be->scratch_bytes(be, &call) + 63) / 64 * 64;
    dpk_error err = {0};
    call.out.data = test_guard_alloc(bytes);
    call.scratch = test_guard_alloc(scratch);
    if (in_place >= 0) {
        assert_true(be->in_place(be, &call, in_place));
        memcpy(call.out.data, call.in[in_place].data, bytes);
        call.in[in_place].data = call.out.data;
    }
    if (be->run(be, &call, &err) != DPK_OK) fail_msg("%s", err.msg);
    test_guard_free(call.scratch, scratch);
    return call.out.data;
}

/* Every level and thread count against the reference. */
static void check_call(const struct operands *o, size_t n, const double *want,
                       const double *magnitude, int in_place, const char *what) {
    size_t bytes = n * test_dtype_bytes(o->x_dtype);
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        if (!backends[isa][1]) continue;
        void *first = run_call(backends[isa][1], o, n, -1);
        float *got = test_decode_array(o->x_dtype, first, n);
        for (size_t i = 0; i < n; i++) {
            double tolerance = 4e-6 * magnitude[i] + 1e-30;
            if (o->x_dtype == DPK_BF16) tolerance += fabs(want[i]) * 0x1.02p-8;
            if (!(fabs(got[i] - want[i]) <= tolerance)) {
                fail_msg("%s %s %s x %s: element %zu is %.9g, want %.9g within %.2g",
                         dpk_isa_name(isa), what, dpk_dtype_name(o->x_dtype),
                         dpk_dtype_name(o->w_dtype), i, got[i], want[i], tolerance);
            }
        }
        free(got);
        for (int t = 2; t <= N_THREADS + (in_place >= 0); t++) {
            bool last = t > N_THREADS;
            void *again = run_call(backends[isa][last ? 2 : t], o, n, last ? in_place : -1);
            if (memcmp(first, again, bytes) != 0) {
                fail_msg("%s %s: %s gives other bits", dpk_isa_name(isa), what,
                         last ? "in place" : "another number of threads");
            }
            test_guard_free(again, bytes);
        }
        test_guard_free(first, bytes);
    }
}

/* ---- Linear --------------------------------------------------------------------------------- */

struct linear_case {
    int images, rows, k1, k2, n;
    bool bias, gate, one_gate, residual;
    struct dpk_linear_attrs attrs;
};

static void check_linear(const struct linear_case *c, int x_dtype, int w_dtype, uint32_t seed) {
    struct operands o;
    char what[160];
    int rows_of_w = c->attrs.glu ? 2 * c->n : c->n;
    init_operands(&o, DPK_OP_linear, x_dtype, w_dtype, seed);
    memcpy(o.op.attr, &c->attrs, offsetof(struct dpk_linear_attrs, end_));
    struct test_linear t = {.images = c->images, .rows = c->rows, .k1 = c->k1, .k2 = c->k2};
    t.n = c->n;
    t.attrs = c->attrs;
    t.x = add_input(&o, DPK_IN(linear, x), (struct dpk_shape){3, {c->images, c->rows, c->k1}});
    if (c->k2) {
        struct dpk_shape shape = {3, {c->images, c->rows, c->k2}};
        t.x2 = add_input(&o, DPK_IN(linear, x2), shape);
    }
    if (c->residual) {
        struct dpk_shape shape = {3, {c->images, c->rows, c->n}};
        t.residual = add_input(&o, DPK_IN(linear, residual), shape);
    }
    if (c->gate) {
        t.gate_images = c->one_gate ? 1 : c->images;
        t.gate_width = c->attrs.gate_off + c->n + 3;
        struct dpk_shape shape = {2, {t.gate_images, t.gate_width}};
        t.gate = add_input(&o, DPK_IN(linear, gate), shape);
    }
    t.w = add_weight(&o, c->attrs.glu ? DPK_LAYOUT_PANEL_GLU : DPK_LAYOUT_PANEL,
                     (struct dpk_shape){2, {rows_of_w, c->k1 + c->k2}});
    if (c->bias) t.b = add_bias(&o, rows_of_w);
    size_t n = finish_operands(&o);
    double *want = malloc(2 * n * sizeof *want);
    assert_non_null(want);
    test_ref_linear(&t, want, want + n);
    snprintf(what, sizeof what, "linear %dx%d k %d+%d n %d act %d glu %d%s%s%s", c->images, c->rows,
             c->k1, c->k2, c->n, c->attrs.act, c->attrs.glu, c->bias ? " bias" : "",
             c->gate ? " gate" : "", c->residual ? " residual" : "");
    check_call(&o, n, want, want + n, c->residual ? (int)DPK_IN(linear, residual) : -1, what);
    free(want);
    free_operands(&o);
}

static void test_linear_random(void **state) {
    (void)state;
    for (int pair = 0; pair < N_PAIRS; pair++) {
        uint32_t s = (uint32_t)(pair + 1) * 7919;
        for (int i = 0; i < 90; i++) {
            struct linear_case c = {
                .images = test_random_int(&s, 1, 3),
                .rows = test_random_int(&s, 1, 13),
                .k1 = test_random_int(&s, 1, 70),
                .k2 = test_random_int(&s, 0, 2) ? 0 : test_random_int(&s, 1, 40),
                .n = test_random_int(&s, 1, 150),
                .bias = test_random_int(&s, 0, 1),
                .gate = test_random_int(&s, 0, 1),
                .one_gate = test_random_int(&s, 0, 1),
                .residual = test_random_int(&s, 0, 1),
                .attrs = {.act = test_random_int(&s, 0, DPK_N_ACTS - 1)},
            };
            c.attrs.glu = test_random_int(&s, 0, 2) == 0;
            if (c.gate) c.attrs.gate_off = test_random_int(&s, 0, 20);
            check_linear(&c, type_pairs[pair][0], type_pairs[pair][1], s);
        }
    }
}

/* Several blocks of rows and panels, packing for rows 4 KiB apart, long sums. */
static void test_linear_large(void **state) {
    static const struct linear_case cases[] = {
        {.images = 2, .rows = 331, .k1 = 64, .n = 200, .bias = true, .residual = true},
        {.images = 1, .rows = 7, .k1 = 1024, .n = 33, .bias = true},
        {.images = 1, .rows = 8, .k1 = 2048, .k2 = 96, .n = 80, .residual = true},
        {.images = 1, .rows = 9, .k1 = 5001, .n = 70, .bias = true, .attrs = {.act = DPK_ACT_SILU}},
        {.images = 3, .rows = 100, .k1 = 96, .n = 150, .gate = true, .attrs = {.glu = 1, .act = 2}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int pair = 0; pair < N_PAIRS; pair++) {
            check_linear(&cases[i], type_pairs[pair][0], type_pairs[pair][1], (uint32_t)i + 1);
        }
    }
}

/* Activations alone: a product with the identity is exact, so what is left is their own error. */
static void test_activations(void **state) {
    enum { ROWS = 2500, N = 16 };
    struct dpk_shape square = {2, {N, N}}, shape = {2, {ROWS, N}};
    float identity[N * N] = {0}, *x = malloc(sizeof *x * ROWS * N);
    size_t w_bytes;
    (void)state;
    assert_non_null(x);
    for (int i = 0; i < N; i++) identity[i * N + i] = 1;
    for (int i = 0; i < ROWS * N; i++) x[i] = (float)(i - ROWS * N / 2) * (13.0f / (ROWS * N / 2));
    struct operands o;
    init_operands(&o, DPK_OP_linear, DPK_F32, DPK_F32, 1);
    o.op.in[0] = o.op.wt[0] = 0;
    o.call.in[0] = (struct dpk_tensor){
        .data = test_encode_array(DPK_F32, x, ROWS * N), .dtype = DPK_F32, .shape = shape};
    o.call.wt[0] = (struct dpk_weight){.dtype = DPK_F32, .layout = DPK_LAYOUT_PANEL};
    o.call.wt[0].shape = square;
    o.call.wt[0].data = test_pack_weight(DPK_F32, DPK_LAYOUT_PANEL, &square, identity, &w_bytes);
    o.weight_bytes[0] = w_bytes;
    for (int act = 0; act < DPK_N_ACTS; act++) {
        o.op.attr[0].i = act;
        size_t n = finish_operands(&o);
        for (int isa = 0; isa < DPK_N_ISAS; isa++) {
            if (!backends[isa][1]) continue;
            float *y = run_call(backends[isa][1], &o, n, -1);
            for (size_t i = 0; i < n; i++) {
                double want = test_ref_act(act, x[i]);
                double tolerance = fabs(want) * (1e-6 + 1.5e-7 * x[i] * x[i]) + 1e-37;
                if (!(fabs(y[i] - want) <= tolerance)) {
                    fail_msg("%s %s(%.9g) is %.9g, want %.9g", dpk_isa_name(isa), dpk_act_name(act),
                             x[i], y[i], want);
                }
            }
            test_guard_free(y, n * 4);
        }
    }
    free(x);
    free_operands(&o);
}

/* ---- Convolution ---------------------------------------------------------------------------- */

struct conv_case {
    int images, h, w, c, n, kh, kw;
    int like_h, like_w; /* 0: none */
    bool bias, temb, one_temb, residual;
    struct dpk_conv2d_attrs attrs;
};

static void check_conv(const struct conv_case *c, int x_dtype, int w_dtype, uint32_t seed) {
    struct operands o;
    char what[200];
    struct test_conv t = {.images = c->images, .h = c->h, .w = c->w, .c = c->c, .n = c->n};
    t.kh = c->kh;
    t.kw = c->kw;
    t.attrs = c->attrs;
    init_operands(&o, DPK_OP_conv2d, x_dtype, w_dtype, seed);
    memcpy(o.op.attr, &c->attrs, offsetof(struct dpk_conv2d_attrs, end_));
    t.x = add_input(&o, DPK_IN(conv2d, x), (struct dpk_shape){4, {c->images, c->h, c->w, c->c}});
    t.up_h = c->attrs.upsample ? 2 * c->h : c->h;
    t.up_w = c->attrs.upsample ? 2 * c->w : c->w;
    if (c->like_h) {
        add_input(&o, DPK_IN(conv2d, like),
                  (struct dpk_shape){4, {c->images, c->like_h, c->like_w, 2}});
        t.up_h = c->like_h;
        t.up_w = c->like_w;
    }
    if (c->temb) {
        t.temb_images = c->one_temb ? 1 : c->images;
        t.temb = add_input(&o, DPK_IN(conv2d, temb), (struct dpk_shape){2, {t.temb_images, c->n}});
    }
    t.weight = add_weight(&o, DPK_LAYOUT_PANEL, (struct dpk_shape){4, {c->n, c->kh, c->kw, c->c}});
    if (c->bias) t.b = add_bias(&o, c->n);
    size_t n = finish_operands(&o);
    if (c->residual) t.residual = add_input(&o, DPK_IN(conv2d, residual), o.call.out.shape);
    t.out_h = o.call.out.shape.dim[1];
    t.out_w = o.call.out.shape.dim[2];
    double *want = malloc(2 * n * sizeof *want);
    assert_non_null(want);
    test_ref_conv(&t, want, want + n);
    snprintf(
        what, sizeof what,
        "conv %dx%dx%dx%d n %d kernel %dx%d stride %d pads %d %d %d %d up %d like %dx%d act %d",
        c->images, c->h, c->w, c->c, c->n, c->kh, c->kw, c->attrs.stride, c->attrs.pad_top,
        c->attrs.pad_left, c->attrs.pad_bottom, c->attrs.pad_right, c->attrs.upsample, c->like_h,
        c->like_w, c->attrs.act);
    check_call(&o, n, want, want + n, c->residual ? (int)DPK_IN(conv2d, residual) : -1, what);
    free(want);
    free_operands(&o);
}

static struct conv_case random_conv(uint32_t *s) {
    struct conv_case c = {
        .images = test_random_int(s, 1, 3),
        .h = test_random_int(s, 1, 9),
        .w = test_random_int(s, 1, 9),
        .c = test_random_int(s, 0, 1) ? test_random_int(s, 1, 9) : test_random_int(s, 30, 67),
        .n = test_random_int(s, 1, 80),
        .kh = test_random_int(s, 1, 3),
        .kw = test_random_int(s, 1, 3),
        .bias = test_random_int(s, 0, 1),
        .temb = test_random_int(s, 0, 1),
        .one_temb = test_random_int(s, 0, 1),
        .residual = test_random_int(s, 0, 1),
        .attrs = {.stride = test_random_int(s, 1, 2)},
    };
    c.attrs.pad_top = test_random_int(s, 0, c.kh - 1);
    c.attrs.pad_bottom = test_random_int(s, 0, c.kh - 1);
    c.attrs.pad_left = test_random_int(s, 0, c.kw - 1);
    c.attrs.pad_right = test_random_int(s, 0, c.kw - 1);
    c.attrs.upsample = test_random_int(s, 0, 2) == 0;
    c.attrs.act = test_random_int(s, 0, 1) ? DPK_ACT_NONE : DPK_ACT_SILU;
    if (c.attrs.upsample && test_random_int(s, 0, 1)) {
        c.like_h = c.h + test_random_int(s, 0, c.h + 1);
        c.like_w = c.w + test_random_int(s, 0, c.w + 1);
    }
    int up = c.attrs.upsample && !c.like_h ? 2 : 1;
    int height = c.like_h ? c.like_h : c.h * up, width = c.like_w ? c.like_w : c.w * up;
    if (height + c.attrs.pad_top + c.attrs.pad_bottom < c.kh)
        c.kh = 1, c.attrs.pad_top = c.attrs.pad_bottom = 0;
    if (width + c.attrs.pad_left + c.attrs.pad_right < c.kw)
        c.kw = 1, c.attrs.pad_left = c.attrs.pad_right = 0;
    return c;
}

static void test_conv_random(void **state) {
    (void)state;
    for (int pair = 0; pair < N_PAIRS; pair++) {
        uint32_t s = (uint32_t)(pair + 1) * 104729;
        for (int i = 0; i < 70; i++) {
            struct conv_case c = random_conv(&s);
            check_conv(&c, type_pairs[pair][0], type_pairs[pair][1], s);
        }
    }
}

static void test_conv_large(void **state) {
    static const struct conv_case cases[] = {
        {.images = 2,
         .h = 21,
         .w = 19,
         .c = 64,
         .n = 80,
         .kh = 3,
         .kw = 3,
         .bias = true,
         .residual = true,
         .temb = true,
         .attrs = {.stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1}},
        {.images = 1,
         .h = 33,
         .w = 30,
         .c = 33,
         .n = 20,
         .kh = 3,
         .kw = 3,
         .bias = true,
         .attrs = {.stride = 2, .pad_bottom = 1, .pad_right = 1}},
        {.images = 1,
         .h = 30,
         .w = 31,
         .c = 4,
         .n = 96,
         .kh = 3,
         .kw = 3,
         .bias = true,
         .attrs = {.stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1}},
        {.images = 1,
         .h = 24,
         .w = 24,
         .c = 5,
         .n = 70,
         .kh = 9,
         .kw = 8,
         .bias = true,
         .attrs = {.stride = 3, .pad_top = 4, .pad_left = 4, .pad_bottom = 4, .pad_right = 3}},
        {.images = 1,
         .h = 12,
         .w = 11,
         .c = 40,
         .n = 9,
         .kh = 9,
         .kw = 8,
         .attrs = {.stride = 1, .pad_top = 4, .pad_left = 4, .pad_bottom = 4, .pad_right = 3}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int pair = 0; pair < N_PAIRS; pair++) {
            check_conv(&cases[i], type_pairs[pair][0], type_pairs[pair][1], (uint32_t)i + 1);
        }
    }
}

/* ---- Creation ------------------------------------------------------------------------------- */

static void test_create(void **state) {
    struct dpk_backend *be = NULL;
    dpk_error err = {0};
    (void)state;
    assert_int_equal(dpk_cpu_create(&be, 1, "mmx", 0, &err), DPK_EARG);
    assert_non_null(strstr(err.msg, "mmx"));
    assert_int_equal(dpk_cpu_create(&be, 1, NULL, DPK_S8, &err), DPK_EARG);
    assert_int_equal(dpk_cpu_create(&be, -1, NULL, 0, &err), DPK_EARG);
    assert_null(be);
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        if (dpk_isa_available(isa)) continue;
        assert_int_equal(dpk_cpu_create(&be, 1, dpk_isa_name(isa), 0, &err), DPK_EARG);
    }
    setenv("DPK_ISA", "ref", 1);
    assert_int_equal(dpk_cpu_create(&be, 0, NULL, 0, &err), DPK_OK);
    assert_non_null(strstr(be->detail, "ref"));
    assert_int_equal(be->act_dtype(be, DPK_BF16), DPK_F32);
    be->free(be);
    setenv("DPK_ISA", "none such", 1);
    assert_int_equal(dpk_cpu_create(&be, 0, NULL, 0, &err), DPK_EARG);
    unsetenv("DPK_ISA");
    assert_int_equal(dpk_cpu_create(&be, 2, "ref", DPK_BF16, &err), DPK_OK);
    assert_int_equal(be->act_dtype(be, DPK_F32), DPK_BF16);
    be->free(be);
}

/* Weights that no kernel multiplies are refused, not guessed at. */
static void test_refusal(void **state) {
    struct dpk_op op = {.opcode = DPK_OP_linear};
    struct dpk_call call = {.op = &op};
    dpk_error err = {0};
    (void)state;
    call.in[0] = (struct dpk_tensor){.dtype = DPK_F32, .shape = {2, {1, 4}}};
    call.wt[0] = (struct dpk_weight){.dtype = DPK_I32, .shape = {2, {16, 4}}};
    call.out = (struct dpk_tensor){.dtype = DPK_F32, .shape = {2, {1, 16}}};
    struct dpk_backend *be = backends[0][1];
    assert_int_equal(be->run(be, &call, &err), DPK_EUNSUPPORTED);
    op.opcode = 9999;
    assert_int_equal(be->run(be, &call, &err), DPK_EUNSUPPORTED);
    assert_int_equal(be->scratch_bytes(be, &call), 0);
}

/* Each task once, on workers in range, for many runs in a row. */
static void count_task(void *arg, int task, int worker) {
    int *counts = arg;
    if (worker >= 0 && worker < N_THREADS) counts[task]++;
}

static void test_pool(void **state) {
    struct dpk_pool *pool;
    int counts[50];
    (void)state;
    assert_int_equal(dpk_pool_create(&pool, N_THREADS, NULL), DPK_OK);
    for (int run = 0; run < 2000; run++) {
        int n = run % 51;
        memset(counts, 0, sizeof counts);
        dpk_pool_run(pool, n, count_task, counts);
        for (int i = 0; i < 50; i++) assert_int_equal(counts[i], i < n);
    }
    dpk_pool_free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),        cmocka_unit_test(test_refusal),
        cmocka_unit_test(test_pool),          cmocka_unit_test(test_activations),
        cmocka_unit_test(test_linear_random), cmocka_unit_test(test_linear_large),
        cmocka_unit_test(test_conv_random),   cmocka_unit_test(test_conv_large),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
