#include "support_int8.h"

#include "support_guard.h"
#include "support_pack.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct dpk_backend *int8_backends[INT8_VARIANTS][INT8_THREADS + 1];

const char *int8_variant_name(int v) {
    static char name[32];
    snprintf(name, sizeof name, "%s%s", dpk_isa_name(v / 2), v % 2 ? " dot" : "");
    return name;
}

int int8_set_up(void **state) {
    (void)state;
    for (int v = 0; v < INT8_VARIANTS; v++) {
        if (!dpk_isa_available(v / 2) || (v % 2 && !dpk_isa_has_dot(v / 2))) continue;
        for (int n = 1; n <= INT8_THREADS; n++) {
            /* Winograd would multiply what is not quantized. */
            const struct dpk_cpu_options options = {.n_threads = n,
                                                    .isa = dpk_isa_name(v / 2),
                                                    .no_dot = v % 2 == 0,
                                                    .no_winograd = true};
            if (dpk_cpu_create_with(&int8_backends[v][n], &options, NULL)) return 1;
        }
    }
    return 0;
}

int int8_tear_down(void **state) {
    (void)state;
    for (int v = 0; v < INT8_VARIANTS; v++)
        for (int n = 1; n <= INT8_THREADS; n++)
            if (int8_backends[v][n]) int8_backends[v][n]->free(int8_backends[v][n]);
    return 0;
}

void *int8_need(size_t n_bytes) {
    void *p = malloc(n_bytes ? n_bytes : 1);
    assert_non_null(p);
    return p;
}

void int8_draw_row(uint32_t *seed, float *x, size_t n, int dtype, int kind) {
    float size = kind == 1 ? 1e-7f : kind == 2 ? 3e37f : kind == 3 ? 1e-40f : 1.5f;
    for (size_t i = 0; i < n; i++) x[i] = kind == 4 ? 0.0f : test_random_float(seed) * size;
    if (kind == 5) { /* halves of the step, and their neighbours */
        for (size_t i = 1; i < n; i++) {
            float h = (float)test_random_int(seed, -127, 126) + 0.5f;
            x[i] = nextafterf(h, (float)test_random_int(seed, -1, 1) * FLT_MAX);
            if (test_random_int(seed, 0, 1)) x[i] = h;
        }
        x[0] = 127.0f;
    }
    if (kind == 6) x[test_random(seed) % n] = 90.0f;
    if (kind == 7) x[test_random(seed) % n] = -FLT_MAX;
    if (kind == 2 || kind == 7) /* stays finite in bfloat16 */
        for (size_t i = 0; i < n; i++) x[i] *= 0.5f;
    test_round(dtype, x, n);
}

void int8_open(struct int8_call *c, int opcode, uint32_t seed) {
    memset(c, 0, sizeof *c);
    c->op.opcode = (uint32_t)opcode;
    for (int i = 0; i < DPK_MAX_IN; i++) c->op.in[i] = DPK_NONE;
    for (int i = 0; i < DPK_MAX_WT; i++) c->op.wt[i] = DPK_NONE;
    c->call.op = &c->op;
    c->seed = seed;
}

const float *int8_give(struct int8_call *c, size_t i, int dtype, struct dpk_shape shape,
                       bool rows) {
    size_t n = (size_t)dpk_shape_count(&shape), k = (size_t)shape.dim[shape.rank - 1];
    float *x = int8_need(n * sizeof *x);
    for (size_t j = 0; j < n; j++) x[j] = test_random_float(&c->seed) * 1.5f;
    for (size_t j = 0; rows && j < n / k; j++) {
        static const int kinds[] = {0, 0, 6, 4, 5, 1};
        int8_draw_row(&c->seed, x + j * k, k, dtype, kinds[test_random_int(&c->seed, 0, 5)]);
    }
    test_round(dtype, x, n);
    c->in[i] = x;
    c->op.in[i] = 0;
    c->call.in[i] =
        (struct dpk_tensor){.data = test_encode_array(dtype, x, n), .dtype = dtype, .shape = shape};
    return x;
}

void int8_give_weight(struct int8_call *c, int dtype, uint32_t flags, int group, bool glu,
                      struct dpk_shape shape) {
    int lo = dtype == DPK_S4 ? -8 : -128, hi = dtype == DPK_S4 ? 7 : 127;
    size_t n = (size_t)dpk_shape_count(&shape), k;
    c->rows = (size_t)shape.dim[0];
    c->k = k = n / c->rows;
    size_t per_scale = group ? (size_t)group : k;
    c->n_scales = n / per_scale;
    c->q = int8_need(n);
    c->w = int8_need(n * sizeof *c->w);
    c->scale = test_guard_alloc(c->n_scales * 4);
    if (dtype == DPK_S8) c->colsum = test_guard_alloc(c->rows * 4);
    for (size_t i = 0; i < c->n_scales; i++)
        c->scale[i] = 1e-3f * (1.1f + test_random_float(&c->seed));
    for (size_t r = 0; r < c->rows; r++) {
        int kind = test_random_int(&c->seed, 0, 9), sum = 0;
        for (size_t i = 0; i < k; i++) {
            int v = kind == 0   ? lo
                    : kind == 1 ? hi
                    : kind == 2 ? 0
                                : test_random_int(&c->seed, lo, hi);
            c->q[r * k + i] = (int8_t)v;
            c->w[r * k + i] = (float)v * c->scale[(r * k + i) / per_scale];
            sum += v;
        }
        if (c->colsum) c->colsum[r] = sum;
    }
    c->op.wt[0] = 0;
    c->call.wt[0] = (struct dpk_weight){.dtype = dtype, .shape = shape, .group = group};
    c->call.wt[0].layout = glu ? DPK_LAYOUT_PANEL_GLU : DPK_LAYOUT_PANEL;
    c->call.wt[0].flags = flags;
    c->call.wt[0].scale = c->scale;
    c->call.wt[0].colsum = c->colsum;
    c->call.wt[0].data = test_pack_integers(dtype, c->call.wt[0].layout, &shape, c->q, &c->w_bytes);
    assert_int_equal(c->w_bytes, dpk_weight_bytes(dtype, c->call.wt[0].layout, &shape));
}

void int8_give_bias(struct int8_call *c) {
    c->b = int8_need(c->rows * sizeof *c->b);
    for (size_t i = 0; i < c->rows; i++) c->b[i] = test_random_float(&c->seed);
    c->op.wt[1] = 0;
    c->call.wt[1] = (struct dpk_weight){.dtype = DPK_F32, .shape = {1, {(int32_t)c->rows}}};
    c->call.wt[1].data = test_encode_array(DPK_F32, c->b, c->rows);
}

size_t int8_finish(struct int8_call *c, int dtype) {
    struct dpk_shape in[DPK_MAX_IN], wt[DPK_MAX_WT];
    dpk_error err = {0};
    for (int i = 0; i < DPK_MAX_IN; i++) in[i] = c->call.in[i].shape;
    for (int i = 0; i < DPK_MAX_WT; i++) wt[i] = c->call.wt[i].shape;
    if (dpk_op_shape(&c->op, "test", in, wt, &c->call.out.shape, &err)) fail_msg("%s", err.msg);
    c->call.out.dtype = dtype;
    return (size_t)dpk_shape_count(&c->call.out.shape);
}

void int8_close(struct int8_call *c) {
    for (int i = 0; i < DPK_MAX_IN; i++) {
        const struct dpk_tensor *t = &c->call.in[i];
        if (c->in[i])
            test_guard_free(t->data,
                            (size_t)dpk_shape_count(&t->shape) * test_dtype_bytes(t->dtype));
        free(c->in[i]);
    }
    test_guard_free((void *)(uintptr_t)c->call.wt[0].data, c->w_bytes);
    test_guard_free(c->scale, c->n_scales * 4);
    test_guard_free(c->colsum, c->rows * 4);
    test_guard_free((void *)(uintptr_t)c->call.wt[1].data, c->rows * 4);
    free(c->q), free(c->w), free(c->b);
}

void *int8_run(struct dpk_backend *be, const struct int8_call *c, size_t n, int in_place) {
    struct dpk_call call = c->call;
    size_t bytes = n * test_dtype_bytes(call.out.dtype);
    size_t scratch = (be->scratch_bytes(be, &call) + 63) / 64 * 64;
    dpk_error err = {0};
    call.out.data = test_guard_alloc(bytes);
    call.scratch = test_guard_alloc(scratch);
    if (in_place >= 0) {
        memcpy(call.out.data, call.in[in_place].data, bytes);
        call.in[in_place].data = call.out.data;
    }
    if (be->run(be, &call, &err)) fail_msg("%s", err.msg);
    test_guard_free(call.scratch, scratch);
    return call.out.data;
}
