#include "support_winograd.h"

#include "support_guard.h"
#include "support_pack.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const double points[5] = {0, 0.65f, -0.65f, 1.5, -1.5};

double test_wino_g(int i, int k) {
    double divisor = 1;
    if (i == 5) return k == 2;
    for (int j = 0; j < 5; j++) divisor *= j == i ? 1 : points[i] - points[j];
    return pow(points[i], k) / divisor;
}

double test_wino_b(int i, int k) {
    double c[7] = {1};
    int degree = 0;
    for (int j = 0; j < 5; j++) {
        if (j == i) continue;
        for (int m = ++degree; m >= 0; m--) c[m] = (m ? c[m - 1] : 0) - points[j] * c[m];
    }
    return c[k];
}

float test_normal(uint32_t *s) {
    float sum = 0;
    for (int i = 0; i < 12; i++) sum += test_random_float(s);
    return sum / 2;
}

void *test_wino_allocate(size_t n, size_t bytes) {
    void *p = calloc(n ? n : 1, bytes);
    assert_non_null(p);
    return p;
}

struct dpk_backend *test_wino_backends[DPK_N_ISAS][TEST_WINO_THREADS + 1];

bool test_wino_here(int isa, int dtype) {
    return test_wino_backends[isa][1] && (dtype == DPK_F32 || dpk_kernels_get(isa)->tile_s16.fn);
}

int test_wino_set_up(void **state) {
    (void)state;
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        if (!dpk_isa_available(isa)) continue;
        for (int n = 0; n <= TEST_WINO_THREADS; n++) {
            struct dpk_backend **be = &test_wino_backends[isa][n];
            const struct dpk_cpu_options options = {
                .n_threads = n ? n : 1, .isa = dpk_isa_name(isa), .no_winograd = n == 0};
            if (dpk_cpu_create_with(be, &options, NULL) != DPK_OK) return 1;
        }
    }
    return 0;
}

int test_wino_tear_down(void **state) {
    (void)state;
    for (int isa = 0; isa < DPK_N_ISAS; isa++) {
        for (int n = 0; n <= TEST_WINO_THREADS; n++) {
            if (test_wino_backends[isa][n])
                test_wino_backends[isa][n]->free(test_wino_backends[isa][n]);
        }
    }
    return 0;
}

/* Noise; a smooth map after SiLU, its channels of different sizes; the same with a channel 40 times
 * and a pixel 20 times as large. */
static float *make_map(const struct test_wino_case *c, uint32_t *s) {
    size_t n = (size_t)c->images * (size_t)c->h * (size_t)c->w * (size_t)c->c;
    float *x = test_wino_allocate(n, 4);
    for (size_t i = 0; i < n; i++) {
        int k = (int)(i % (size_t)c->c), column = (int)(i / (size_t)c->c % (size_t)c->w);
        int row = (int)(i / (size_t)c->c / (size_t)c->w % (size_t)c->h);
        if (c->kind == 0) {
            x[i] = test_normal(s);
            continue;
        }
        float wave = sinf(0.2f * (float)row + (float)k) + cosf(0.3f * (float)column + 2 * (float)k);
        wave = wave * (0.3f + (float)(k % 7) / 7) + 0.05f * test_normal(s);
        x[i] = wave / (1 + expf(-wave));
        if (c->kind == 2 && k == 3) x[i] *= 40;
        if (c->kind == 2 && row == c->h / 2 && column == c->w / 2) x[i] *= 20;
    }
    test_round(c->dtype, x, n);
    return x;
}

static float *make_noise(size_t n, float size, int dtype, uint32_t *s) {
    float *x = test_wino_allocate(n, 4);
    for (size_t i = 0; i < n; i++) x[i] = size * test_normal(s);
    test_round(dtype, x, n);
    return x;
}

static void add_input(struct test_wino *o, size_t i, struct dpk_shape shape, const float *plain) {
    o->op.in[i] = 0;
    o->call.in[i] = (struct dpk_tensor){.dtype = o->dtype, .shape = shape};
    o->call.in[i].data =
        test_encode_array(o->dtype, plain, (size_t)dpk_shape_count(&o->call.in[i].shape));
}

void test_wino_set_weights(struct test_wino *o) {
    struct dpk_weight *w = &o->call.wt[0];
    test_guard_free((void *)(uintptr_t)w->data, o->w_bytes);
    w->data = test_pack_weight(o->w_dtype, DPK_LAYOUT_PANEL, &w->shape, o->plain[1], &o->w_bytes);
}

/* Weights of integers of 8 bits; the plain ones become those times their scales. */
static void quantize_weights(struct test_wino *o, uint32_t flags, uint32_t *s) {
    struct dpk_weight *w = &o->call.wt[0];
    size_t n = (size_t)o->t.n, k = (size_t)(9 * o->t.c);
    int8_t *q = test_wino_allocate(n * k, 1);
    int32_t *sums = test_wino_allocate(n, sizeof *sums);
    o->scale = test_wino_allocate(n, sizeof *o->scale);
    for (size_t i = 0; i < n * k; i++) {
        if (i % k == 0) o->scale[i / k] = (1.5f + test_random_float(s)) / 70 / sqrtf((float)k);
        q[i] = (int8_t)test_random_int(s, -127, 127);
        sums[i / k] += q[i];
        o->plain[1][i] = (float)q[i] * o->scale[i / k];
    }
    w->scale = o->scale;
    w->colsum = sums;
    w->flags = flags;
    w->data = test_pack_integers(DPK_S8, DPK_LAYOUT_PANEL, &w->shape, q, &o->w_bytes);
    free(q);
}

void test_wino_open(struct test_wino *o, const struct test_wino_case *c, uint32_t seed) {
    struct dpk_shape in[DPK_MAX_IN] = {{0}}, wt[DPK_MAX_WT] = {{0}};
    struct dpk_conv2d_attrs attrs = {.stride = 1, .pad_top = 1, .pad_left = 1};
    dpk_error err = {0};
    memset(o, 0, sizeof *o);
    o->dtype = c->dtype ? c->dtype : DPK_BF16;
    o->w_dtype = c->w_dtype ? c->w_dtype : DPK_BF16;
    o->bytes = test_dtype_bytes(o->dtype);
    attrs.pad_bottom = attrs.pad_right = 1;
    attrs.upsample = c->upsample;
    attrs.act = c->act;
    o->op.opcode = DPK_OP_conv2d;
    memcpy(o->op.attr, &attrs, offsetof(struct dpk_conv2d_attrs, end_));
    for (int i = 0; i < DPK_MAX_IN; i++) o->op.in[i] = DPK_NONE;
    for (int i = 0; i < DPK_MAX_WT; i++) o->op.wt[i] = DPK_NONE;
    o->call.op = &o->op;
    o->t = (struct test_conv){c->images, c->h, c->w, c->c, c->n, 3, 3, .attrs = attrs};
    o->plain[0] = make_map(c, &seed);
    add_input(o, DPK_IN(conv2d, x), (struct dpk_shape){4, {c->images, c->h, c->w, c->c}},
              o->plain[0]);
    o->t.up_h = c->like_h ? c->like_h : c->upsample ? 2 * c->h : c->h;
    o->t.up_w = c->like_w ? c->like_w : c->upsample ? 2 * c->w : c->w;
    if (c->like_h) {
        float *like = test_wino_allocate((size_t)(c->images * c->like_h * c->like_w), 4);
        add_input(o, DPK_IN(conv2d, like),
                  (struct dpk_shape){4, {c->images, c->like_h, c->like_w, 1}}, like);
        free(like);
    }
    o->plain[1] = make_noise((size_t)(c->n * 9 * c->c), 1 / sqrtf((float)(9 * c->c)),
                             o->w_dtype == DPK_S8 ? DPK_F32 : o->w_dtype, &seed);
    o->op.wt[0] = 0;
    o->call.wt[0] = (struct dpk_weight){.dtype = o->w_dtype, .layout = DPK_LAYOUT_PANEL};
    o->call.wt[0].shape = (struct dpk_shape){4, {c->n, 3, 3, c->c}};
    if (o->w_dtype == DPK_S8) quantize_weights(o, c->flags, &seed);
    else test_wino_set_weights(o);
    if (c->temb) {
        o->t.temb_images = c->one_temb ? 1 : c->images;
        o->plain[2] = make_noise((size_t)(o->t.temb_images * c->n), 1, o->dtype, &seed);
        add_input(o, DPK_IN(conv2d, temb), (struct dpk_shape){2, {o->t.temb_images, c->n}},
                  o->plain[2]);
    }
    if (c->bias) {
        o->plain[4] = make_noise((size_t)c->n, 1, DPK_F32, &seed);
        o->op.wt[1] = 0;
        o->call.wt[1] = (struct dpk_weight){.dtype = DPK_F32, .shape = {1, {c->n}}};
        o->call.wt[1].data = test_encode_array(DPK_F32, o->plain[4], (size_t)c->n);
    }
    for (int i = 0; i < DPK_MAX_IN; i++) in[i] = o->call.in[i].shape;
    for (int i = 0; i < DPK_MAX_WT; i++) wt[i] = o->call.wt[i].shape;
    int rc = dpk_op_shape(&o->op, "test", in, wt, &o->call.out.shape, &err);
    if (rc != DPK_OK) fail_msg("%s", err.msg);
    o->call.out.dtype = o->dtype;
    o->n = (size_t)dpk_shape_count(&o->call.out.shape);
    if (c->residual) {
        o->plain[3] = make_noise(o->n, 1, o->dtype, &seed);
        add_input(o, DPK_IN(conv2d, residual), o->call.out.shape, o->plain[3]);
    }
    o->t.out_h = o->t.up_h;
    o->t.out_w = o->t.up_w;
    o->t.x = o->plain[0];
    o->t.weight = o->plain[1];
    o->t.temb = o->plain[2];
    o->t.residual = o->plain[3];
    o->t.b = o->plain[4];
}

void test_wino_close(struct test_wino *o) {
    for (int i = 0; i < DPK_MAX_IN; i++) {
        struct dpk_tensor *t = &o->call.in[i];
        if (t->data) test_guard_free(t->data, (size_t)dpk_shape_count(&t->shape) * o->bytes);
    }
    test_guard_free((void *)(uintptr_t)o->call.wt[0].data, o->w_bytes);
    if (o->plain[4]) {
        test_guard_free((void *)(uintptr_t)o->call.wt[1].data, (size_t)o->t.n * 4);
    }
    for (int i = 0; i < 5; i++) free(o->plain[i]);
    free(o->scale);
    free((void *)(uintptr_t)o->call.wt[0].colsum);
}

void *test_wino_run(struct dpk_backend *be, const struct test_wino *o, bool in_place) {
    struct dpk_call call = o->call;
    size_t scratch = (be->scratch_bytes(be, &call) + 63) / 64 * 64;
    struct dpk_tensor *residual = &call.in[DPK_IN(conv2d, residual)];
    dpk_error err = {0};
    call.out.data = test_guard_alloc(o->n * o->bytes);
    call.scratch = test_guard_alloc(scratch);
    if (in_place) {
        memcpy(call.out.data, residual->data, o->n * o->bytes);
        residual->data = call.out.data;
    }
    if (be->run(be, &call, &err) != DPK_OK) fail_msg("%s", err.msg);
    test_guard_free(call.scratch, scratch);
    return call.out.data;
}

double test_wino_distance(const struct test_wino *o, const void *got, const double *want,
                          double *largest) {
    double diff = 0, all = 0;
    float *y = test_decode_array(o->dtype, got, o->n);
    *largest = 0;
    for (size_t i = 0; i < o->n; i++) {
        double d = (double)y[i] - want[i];
        if (!(fabs(d) <= *largest)) *largest = fabs(d);
        diff += d * d;
        all += want[i] * want[i];
    }
    free(y);
    return sqrt(diff / (all > 0 ? all : 1));
}
