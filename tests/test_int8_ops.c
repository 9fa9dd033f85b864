/* Operators with quantized weights, at every level, with and without dot products of bytes: against
 * exact integer sums, double precision and goldens of torchao. */
#include "../formats/tensors.h"
#include "../quantize/quantizer.h"
#include "../runtime/plan.h"
#include "support_guard.h"
#include "support_int8.h"
#include "support_pack.h"
#include "support_ref_gemm.h"

#include <math.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Checks -------------------------------------------------------------------------------- */

/* Every variant within `relative` of the magnitude (and the result's rounding); all numbers of
 * threads, and in place, the same bits. */
static void check(const struct int8_call *c, size_t n, const double *want, const double *magnitude,
                  double relative, int residual, const char *what) {
    int dtype = c->call.out.dtype;
    size_t bytes = n * test_dtype_bytes(dtype);
    for (int v = 0; v < INT8_VARIANTS; v++) {
        if (!int8_backends[v][1]) continue;
        void *first = int8_run(int8_backends[v][1], c, n, -1);
        float *got = test_decode_array(dtype, first, n);
        for (size_t i = 0; i < n; i++) {
            double tolerance = relative * magnitude[i] + 1e-20;
            if (dtype == DPK_BF16) tolerance += fabs(want[i]) * 0x1.02p-8;
            if (!(fabs(got[i] - want[i]) <= tolerance))
                fail_msg("%s %s %s: element %zu is %.9g, want %.9g within %.2g",
                         int8_variant_name(v), what, dpk_dtype_name(dtype), i, got[i], want[i],
                         tolerance);
        }
        free(got);
        for (int t = 2; t <= INT8_THREADS + (residual >= 0); t++) {
            bool last = t > INT8_THREADS;
            void *again = int8_run(int8_backends[v][last ? 2 : t], c, n, last ? residual : -1);
            if (memcmp(first, again, bytes) != 0)
                fail_msg("%s %s: other bits %s", int8_variant_name(v), what,
                         last ? "in place" : "with more threads");
            test_guard_free(again, bytes);
        }
        test_guard_free(first, bytes);
    }
}

/* ---- Linear ---------------------------------------------------------------------------------- */

struct linear_case {
    int images, rows, k1, k2, n;
    bool bias, gate, residual;
    struct dpk_linear_attrs attrs;
};
/* What a weight is, and the tolerance of float sums. */
struct kind {
    const char *name;
    int dtype, group;
    uint32_t flags;
};
static const struct kind kinds[] = {
    {"w8a8", DPK_S8, 0, DPK_TENSOR_DYNAMIC},
    {"w8a8 torchao", DPK_S8, 0, DPK_TENSOR_DYNAMIC | DPK_TENSOR_TORCHAO},
    {"s8", DPK_S8, 0, 0},
    {"s4:32", DPK_S4, 32, 0},
    {"s4:64", DPK_S4, 64, 0},
    {"s4:128", DPK_S4, 128, 0},
};
enum { N_KINDS = sizeof kinds / sizeof kinds[0] };

/* Rows of x as the product takes them: of W8A8 the integers, otherwise the values. scale [m]. */
struct rows {
    double *a, *scale;
};
static struct rows effective(const struct kind *kind, const float *x, const float *x2, int k1,
                             int k2, size_t m, int dtype) {
    size_t k = (size_t)(k1 + k2);
    float *row = int8_need(k * sizeof *row);
    int8_t *q = int8_need(k);
    struct rows r = {int8_need(m * k * sizeof(double)), int8_need(m * sizeof(double))};
    for (size_t i = 0; i < m; i++) {
        float scale = 1;
        memcpy(row, x + i * (size_t)k1, (size_t)k1 * sizeof *row);
        if (k2) memcpy(row + k1, x2 + i * (size_t)k2, (size_t)k2 * sizeof *row);
        if (kind->flags) {
            bool torchao = kind->flags & DPK_TENSOR_TORCHAO;
            int rule = torchao ? DPK_CONVENTION_TORCHAO : DPK_CONVENTION_DIFFUSION_FAST;
            dpk_quantize_activation_s8(rule, dtype, row, k, q, &scale);
        }
        r.scale[i] = (double)scale;
        for (size_t j = 0; j < k; j++) r.a[i * k + j] = kind->flags ? q[j] : (double)row[j];
    }
    free(row), free(q);
    return r;
}

struct sum {
    double value, magnitude;
};

/* Row m by row r of the weight, plus its bias. The magnitude is that of a float sum, or of W8A8,
 * whose sum is exact, that of the sum. */
static struct sum dot(const struct int8_call *c, const struct kind *kind, const struct rows *rows,
                      size_t m, size_t r) {
    struct sum s = {0, 0};
    size_t group = kind->group ? (size_t)kind->group : c->k;
    for (size_t first = 0; first < c->k; first += group) {
        double sum = 0, size = 0, scale = (double)c->scale[(r * c->k + first) / group];
        for (size_t k = first; k < first + group; k++) {
            double p = rows->a[m * c->k + k] * c->q[r * c->k + k];
            sum += p;
            size += fabs(p);
        }
        s.value += sum * scale * rows->scale[m];
        s.magnitude += (kind->flags ? fabs(sum) * rows->scale[m] : size) * scale;
    }
    if (c->b) {
        s.value += (double)c->b[r];
        s.magnitude += fabs((double)c->b[r]);
    }
    return s;
}

static struct sum activate(struct sum s, int act) {
    if (act) s = (struct sum){test_ref_act(act, s.value), 1.2 * s.magnitude};
    return s;
}

static void reference(const struct int8_call *c, const struct linear_case *l,
                      const struct kind *kind, const struct rows *a, double *want,
                      double *magnitude) {
    size_t n = (size_t)l->n;
    const float *gate = c->in[DPK_IN(linear, gate)], *res = c->in[DPK_IN(linear, residual)];
    for (size_t i = 0; i < (size_t)(l->images * l->rows) * n; i++) {
        size_t m = i / n, j = i % n;
        struct sum s = dot(c, kind, a, m, j);
        if (l->attrs.glu) {
            struct sum g = activate(dot(c, kind, a, m, n + j), l->attrs.act);
            s.magnitude = s.magnitude * fabs(g.value) + fabs(s.value) * g.magnitude;
            s.value *= g.value;
        } else {
            s = activate(s, l->attrs.act);
        }
        if (gate) {
            double g = (double)gate[m / (size_t)l->rows * (n + 2) + 1 + j];
            s.value *= g;
            s.magnitude *= fabs(g);
        }
        if (res) {
            s.value += (double)res[i];
            s.magnitude += fabs((double)res[i]);
        }
        want[i] = s.value;
        magnitude[i] = s.magnitude;
    }
}

static double tolerance(const struct kind *kind, int dtype, bool act) {
    if (kind->flags) return act ? 2e-6 : 1e-6;
    /* Weights of 4 bits are rounded to bfloat16 where the product is one of bfloat16. */
    return kind->dtype == DPK_S4 && dtype == DPK_BF16 ? 4e-6 + 0x1p-9 : 4e-6;
}

static void check_linear(const struct linear_case *l, const struct kind *kind, int dtype,
                         uint32_t seed) {
    struct int8_call c;
    char what[160];
    int rows_of_w = l->attrs.glu ? 2 * l->n : l->n;
    int8_open(&c, DPK_OP_linear, seed);
    memcpy(c.op.attr, &l->attrs, offsetof(struct dpk_linear_attrs, end_));
    const float *x2 = NULL,
                *x = int8_give(&c, DPK_IN(linear, x), dtype,
                               (struct dpk_shape){3, {l->images, l->rows, l->k1}}, true);
    if (l->k2)
        x2 = int8_give(&c, DPK_IN(linear, x2), dtype,
                       (struct dpk_shape){3, {l->images, l->rows, l->k2}}, true);
    struct dpk_shape out = {3, {l->images, l->rows, l->n}};
    if (l->residual) int8_give(&c, DPK_IN(linear, residual), dtype, out, false);
    if (l->gate) {
        c.op.attr[offsetof(struct dpk_linear_attrs, gate_off) / 4].i = 1;
        int8_give(&c, DPK_IN(linear, gate), dtype, (struct dpk_shape){2, {l->images, l->n + 2}},
                  false);
    }
    int8_give_weight(&c, kind->dtype, kind->flags, kind->group, l->attrs.glu,
                     (struct dpk_shape){2, {rows_of_w, l->k1 + l->k2}});
    if (l->bias) int8_give_bias(&c);
    size_t n = int8_finish(&c, dtype);
    struct rows a = effective(kind, x, x2, l->k1, l->k2, (size_t)(l->images * l->rows), dtype);
    double *want = int8_need(2 * n * sizeof *want);
    reference(&c, l, kind, &a, want, want + n);
    snprintf(what, sizeof what, "%s linear %dx%d k %d+%d n %d act %d glu %d%s%s%s", kind->name,
             l->images, l->rows, l->k1, l->k2, l->n, l->attrs.act, l->attrs.glu,
             l->bias ? " bias" : "", l->gate ? " gate" : "", l->residual ? " residual" : "");
    check(&c, n, want, want + n, tolerance(kind, dtype, l->attrs.act != 0),
          l->residual ? (int)DPK_IN(linear, residual) : -1, what);
    free(a.a), free(a.scale), free(want);
    int8_close(&c);
}

static void test_linear_random(void **state) {
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++) {
        uint32_t s = (uint32_t)(kind + 1) * 7919;
        for (int i = 0; i < 80; i++) {
            struct linear_case l = {
                .images = test_random_int(&s, 1, 3),
                .rows = test_random_int(&s, 1, 13),
                .k1 = test_random_int(&s, 1, 70),
                .k2 = test_random_int(&s, 0, 2) ? 0 : test_random_int(&s, 1, 40),
                .n = test_random_int(&s, 1, 150),
                .bias = test_random_int(&s, 0, 1),
                .gate = test_random_int(&s, 0, 2) == 0,
                .residual = test_random_int(&s, 0, 1),
                .attrs = {.act = test_random_int(&s, 0, DPK_N_ACTS - 1)},
            };
            l.attrs.glu = test_random_int(&s, 0, 2) == 0;
            int group = kinds[kind].group;
            if (group) {
                int k = group * test_random_int(&s, 1, 5);
                l.k1 = l.k2 ? test_random_int(&s, 1, k - 1) : k;
                l.k2 = l.k2 ? k - l.k1 : 0;
            }
            check_linear(&l, &kinds[kind], i % 2 ? DPK_BF16 : DPK_F32, s);
        }
    }
}

/* Long sums, several blocks of rows and columns, rows quantized once for several tasks. */
static void test_linear_large(void **state) {
    static const struct linear_case cases[] = {
        {.images = 1, .rows = 13, .k1 = 10240, .n = 70, .bias = true},
        {.images = 2, .rows = 331, .k1 = 64, .k2 = 64, .n = 300, .bias = true, .residual = true},
        {.images = 1, .rows = 7, .k1 = 4096, .n = 33, .bias = true, .attrs = {.act = 1}},
        {.images = 3, .rows = 40, .k1 = 128, .n = 150, .gate = true, .attrs = {.glu = 1, .act = 2}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int kind = 0; kind < N_KINDS; kind++)
            for (int d = 0; d < 2; d++)
                check_linear(&cases[i], &kinds[kind], d ? DPK_BF16 : DPK_F32, (uint32_t)i + 1);
}

/* A row with a value that is not finite makes that row of the result so, and no other. */
static void test_not_finite(void **state) {
    struct linear_case l = {.images = 1, .rows = 9, .k1 = 50, .n = 40};
    (void)state;
    for (int kind = 0; kind < 2; kind++)
        for (int v = 0; v < INT8_VARIANTS; v++) {
            if (!int8_backends[v][1]) continue;
            struct int8_call c;
            int8_open(&c, DPK_OP_linear, 3);
            int8_give(&c, 0, DPK_F32, (struct dpk_shape){2, {l.rows, l.k1}}, false);
            ((float *)c.call.in[0].data)[2 * l.k1 + 7] = NAN;
            ((float *)c.call.in[0].data)[5 * l.k1 + 49] = -INFINITY;
            int8_give_weight(&c, DPK_S8, kinds[kind].flags, 0, false,
                             (struct dpk_shape){2, {l.n, l.k1}});
            size_t n = int8_finish(&c, DPK_F32);
            float *y = int8_run(int8_backends[v][1], &c, n, -1);
            for (size_t i = 0; i < n; i++) {
                size_t row = i / (size_t)l.n;
                assert_int_equal(isnan(y[i]) != 0, row == 2 || row == 5);
            }
            test_guard_free(y, n * 4);
            int8_close(&c);
        }
}

/* Sums that 32 bits might not hold are refused. */
static void test_too_long(void **state) {
    struct dpk_op op = {.opcode = DPK_OP_linear};
    struct dpk_call call = {.op = &op};
    dpk_error err = {0};
    (void)state;
    call.in[0] = (struct dpk_tensor){.dtype = DPK_F32, .shape = {2, {1, DPK_MAX_INT8_K}}};
    call.wt[0] = (struct dpk_weight){.dtype = DPK_S8, .shape = {2, {16, DPK_MAX_INT8_K}}};
    call.wt[0].flags = DPK_TENSOR_DYNAMIC;
    call.out = (struct dpk_tensor){.dtype = DPK_F32, .shape = {2, {1, 16}}};
    for (int v = 0; v < INT8_VARIANTS; v++) {
        struct dpk_backend *be = int8_backends[v][1];
        if (be) assert_int_equal(be->run(be, &call, &err), DPK_EUNSUPPORTED);
    }
}

/* ---- Convolution ----------------------------------------------------------------------------- */

struct conv_case {
    int images, h, w, c, n, kh, kw;
    bool bias, temb, residual, up;
    int stride, pad;
};

/* The taps of every output pixel, zeros in the padding: rows [.][kh * kw * c]. */
static float *patches(const struct conv_case *v, const float *x, const struct dpk_shape *out) {
    size_t c = (size_t)v->c, taps = (size_t)(v->kh * v->kw), at = 0;
    int up = v->up ? 2 : 1;
    float *rows = calloc((size_t)(v->images * out->dim[1] * out->dim[2]) * taps * c, sizeof *rows);
    assert_non_null(rows);
    for (int i = 0; i < v->images * out->dim[1] * out->dim[2]; i++) {
        int image = i / (out->dim[1] * out->dim[2]), y0 = i / out->dim[2] % out->dim[1];
        for (int t = 0; t < v->kh * v->kw; t++, at += c) {
            int y = y0 * v->stride - v->pad + t / v->kw;
            int px = i % out->dim[2] * v->stride - v->pad + t % v->kw;
            if (y < 0 || y >= v->h * up || px < 0 || px >= v->w * up) continue;
            size_t pixel = (size_t)((image * v->h + y / up) * v->w + px / up);
            memcpy(rows + at, x + pixel * c, c * sizeof *rows);
        }
    }
    return rows;
}

/* A convolution is the linear of its patches. */
static void check_conv(const struct conv_case *v, const struct kind *kind, int dtype,
                       uint32_t seed) {
    struct int8_call c;
    char what[160];
    int8_open(&c, DPK_OP_conv2d, seed);
    struct dpk_conv2d_attrs attrs = {.stride = v->stride, .upsample = v->up, .act = DPK_ACT_SILU};
    attrs.pad_top = attrs.pad_left = attrs.pad_bottom = attrs.pad_right = v->pad;
    memcpy(c.op.attr, &attrs, offsetof(struct dpk_conv2d_attrs, end_));
    const float *x = int8_give(&c, DPK_IN(conv2d, x), dtype,
                               (struct dpk_shape){4, {v->images, v->h, v->w, v->c}}, true);
    int8_give_weight(&c, kind->dtype, kind->flags, kind->group, false,
                     (struct dpk_shape){4, {v->n, v->kh, v->kw, v->c}});
    if (v->bias) int8_give_bias(&c);
    const float *temb = NULL, *res = NULL;
    if (v->temb)
        temb = int8_give(&c, DPK_IN(conv2d, temb), dtype, (struct dpk_shape){2, {v->images, v->n}},
                         false);
    size_t n = int8_finish(&c, dtype), pixels = n / (size_t)v->n;
    if (v->residual) res = int8_give(&c, DPK_IN(conv2d, residual), dtype, c.call.out.shape, false);
    float *rows = patches(v, x, &c.call.out.shape);
    struct rows a = effective(kind, rows, NULL, (int)c.k, 0, pixels, dtype);
    double *want = int8_need(2 * n * sizeof *want);
    for (size_t i = 0; i < n; i++) {
        size_t m = i / (size_t)v->n, j = i % (size_t)v->n;
        struct sum s = dot(&c, kind, &a, m, j);
        if (temb) {
            double t = (double)temb[m / (pixels / (size_t)v->images) * (size_t)v->n + j];
            s.value += t;
            s.magnitude += fabs(t);
        }
        s = activate(s, DPK_ACT_SILU);
        if (res) s.value += (double)res[i], s.magnitude += fabs((double)res[i]);
        want[i] = s.value;
        want[n + i] = s.magnitude;
    }
    snprintf(what, sizeof what, "%s conv %dx%dx%dx%d n %d kernel %dx%d stride %d pad %d up %d",
             kind->name, v->images, v->h, v->w, v->c, v->n, v->kh, v->kw, v->stride, v->pad, v->up);
    check(&c, n, want, want + n, tolerance(kind, dtype, true),
          v->residual ? (int)DPK_IN(conv2d, residual) : -1, what);
    free(rows), free(a.a), free(a.scale), free(want);
    int8_close(&c);
}

static void test_conv(void **state) {
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++) {
        uint32_t s = (uint32_t)(kind + 1) * 104729;
        for (int i = 0; i < 40; i++) {
            struct conv_case v = {
                .images = test_random_int(&s, 1, 2),
                .h = test_random_int(&s, 3, 9),
                .w = test_random_int(&s, 3, 9),
                .c = test_random_int(&s, 0, 1) ? test_random_int(&s, 1, 9)
                                               : test_random_int(&s, 30, 67),
                .n = test_random_int(&s, 1, 80),
                .kh = test_random_int(&s, 1, 3),
                .bias = test_random_int(&s, 0, 1),
                .temb = test_random_int(&s, 0, 1),
                .residual = test_random_int(&s, 0, 1),
                .up = test_random_int(&s, 0, 2) == 0,
                .stride = test_random_int(&s, 1, 2),
            };
            v.kw = test_random_int(&s, 1, 3);
            v.pad = test_random_int(&s, 0, (v.kh < v.kw ? v.kh : v.kw) - 1);
            if (kinds[kind].group) v.c = kinds[kind].group * test_random_int(&s, 1, 2);
            check_conv(&v, &kinds[kind], i % 2 ? DPK_BF16 : DPK_F32, s);
        }
        struct conv_case many = {.images = 1, .h = 9, .w = 9, .c = 5, .n = 20, .kh = 9, .kw = 8};
        many.stride = 1;
        many.pad = 4;
        if (!kinds[kind].group) check_conv(&many, &kinds[kind], DPK_F32, 1);
    }
}

/* ---- Goldens --------------------------------------------------------------------------------- */

static struct dpk_tensors *goldens;

static struct dpk_tensor_info *find(const char *name, const char *suffix) {
    char full[128];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return dpk_tensors_find(goldens, full);
}

static float *golden(const char *name, const char *suffix) {
    struct dpk_tensor_info *info = find(name, suffix);
    dpk_error err;
    if (!info) fail_msg("no golden %s%s", name, suffix);
    float *p = int8_need(info->n_elements * sizeof *p);
    if (dpk_tensors_read_f32(goldens, info, 0, info->n_elements, p, &err)) fail_msg("%s", err.msg);
    return p;
}

/* Inputs <base>.x and .b, integers and results <prefix>qw, sw and y. */
static void check_golden(const char *base, const char *prefix, const struct kind *kind, int dtype,
                         double relative) {
    struct dpk_tensor_info *qw = find(prefix, "qw");
    assert_non_null(qw);
    int rows = (int)find(base, ".x")->dim[0], n = (int)qw->dim[0], k = (int)qw->dim[1];
    struct int8_call c;
    dpk_error err;
    float *x = golden(base, ".x"), *y = golden(prefix, "y"), *scale = golden(prefix, "sw");
    double *want = int8_need(2 * (size_t)(rows * n) * sizeof *want), top = 0;
    int8_open(&c, DPK_OP_linear, 1);
    int8_give(&c, 0, dtype, (struct dpk_shape){2, {rows, k}}, false);
    test_guard_free(c.call.in[0].data, (size_t)(rows * k) * test_dtype_bytes(dtype));
    c.call.in[0].data = test_encode_array(dtype, x, (size_t)(rows * k));
    int8_give_weight(&c, kind->dtype, kind->flags, kind->group, false,
                     (struct dpk_shape){2, {n, k}});
    assert_int_equal(dpk_tensors_read(goldens, qw, 0, c.q, (size_t)(n * k), &err), DPK_OK);
    memcpy(c.scale, scale, c.n_scales * 4);
    for (int r = 0; c.colsum && r < n; r++) c.colsum[r] = dpk_quantized_sum(c.q + r * k, (size_t)k);
    test_guard_free((void *)(uintptr_t)c.call.wt[0].data, c.w_bytes);
    c.call.wt[0].data =
        test_pack_integers(kind->dtype, DPK_LAYOUT_PANEL, &c.call.wt[0].shape, c.q, &c.w_bytes);
    if (find(base, ".b")) {
        float *b = golden(base, ".b");
        int8_give_bias(&c);
        memcpy((void *)(uintptr_t)c.call.wt[1].data, b, c.rows * 4);
        free(b);
    }
    size_t count = int8_finish(&c, dtype);
    for (size_t i = 0; i < count; i++) top = fmax(top, fabs((double)y[i]));
    for (size_t i = 0; i < count; i++) want[i] = (double)y[i], want[count + i] = top;
    check(&c, count, want, want + count, relative, -1, prefix);
    int8_close(&c);
    free(x), free(y), free(scale), free(want);
}

static void test_goldens(void **state) {
    static const char *const w8a8[] = {"w8a8.0.fp32", "w8a8.1.fp32", "w8a8.1.bf16", "w8a8.2.fp32",
                                       "w8a8.3.fp32", "w8a8.4.fp32", "w8a8.4.bf16", "w8a8.5.fp32"};
    char prefix[96];
    dpk_error err;
    (void)state;
    if (dpk_tensors_open_file(&goldens, "tests/data/golden/quant.safetensors", &err))
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < sizeof w8a8 / sizeof *w8a8; i++) {
        int dtype = strstr(w8a8[i], "bf16") ? DPK_BF16 : DPK_F32;
        snprintf(prefix, sizeof prefix, "%s.2023.", w8a8[i]);
        check_golden(w8a8[i], prefix, &kinds[0], dtype, 1e-6);
        /* torchao rounds the product to bfloat16 before the scale of the column. */
        snprintf(prefix, sizeof prefix, "%s.ao.", w8a8[i]);
        check_golden(w8a8[i], prefix, &kinds[1], dtype, dtype == DPK_BF16 ? 0x1p-7 : 1e-6);
    }
    for (int i = 0; i < 2; i++) {
        char base[16];
        snprintf(base, sizeof base, "wo.%d", i);
        snprintf(prefix, sizeof prefix, "%s.int8.", base);
        check_golden(base, prefix, &kinds[2], DPK_F32, 2e-6);
        for (int k = 3; k < N_KINDS; k++) {
            snprintf(prefix, sizeof prefix, "%s.int4.g%d.symmetric.", base, kinds[k].group);
            check_golden(base, prefix, &kinds[k], DPK_F32, 2e-6);
        }
    }
    dpk_tensors_close(goldens);
}

/* ---- Activations ----------------------------------------------------------------------------- */

/* A file of which every matrix is quantized has the activations that it had before. */
static void test_activations(void **state) {
    static const char text[] = "\0convert.dtype\0bf16\0f32";
    struct dpk_tensor_record tensor = {.dtype = DPK_S8, .layout = DPK_LAYOUT_PANEL, .bytes = 64};
    struct dpk_pair pair = {1, 15};
    struct dpk_file file = {.strings = text, .pairs = &pair, .n_tensors = 1, .tensors = &tensor};
    const struct dpk_backend *be = int8_backends[2 * dpk_isa_best()][1];
    if (!be) be = int8_backends[2 * dpk_isa_best() + 1][1];
    (void)state;
    assert_int_equal(dpk_plan_act_dtype(be, &file), DPK_F32);
    file.n_pairs = 1;
    assert_int_equal(dpk_plan_act_dtype(be, &file), be->act_dtype(be, DPK_BF16));
    pair.value = 20;
    assert_int_equal(dpk_plan_act_dtype(be, &file), DPK_F32);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_random), cmocka_unit_test(test_linear_large),
        cmocka_unit_test(test_not_finite),    cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_conv),          cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_activations),
    };
    return cmocka_run_group_tests(tests, int8_set_up, int8_tear_down);
}
