/* Speed of the matrix operators against the machine's own peak.
 *
 *   bench_kernels [--json] [--isa LEVEL] [--threads N] [--repeat N] [--only TEXT] [--types TEXT]
 *                 [--no-dot]
 *
 * Weights: f32, bf16, f16; w8a8 (int8, rows of x quantized by the operator), rows (int8, x made as
 * quantized rows before), s8 and s4 (widened).
 * The last column is the speed as a multiple of that with bf16 weights, measured just before.
 * --no-dot leaves the dot products of bytes unused, as on machines that have none.
 * The peaks are those of kernels/cpu/peak.h. A shape's time is the least of its repeats; on one
 * thread it is the thread's own time, so that other work does not count. */
#include "../kernels/cpu/peak.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
    bool json, no_dot;
    const char *isa, *only, *types;
    int threads, repeat;
} opt = {.threads = 1, .repeat = 5};

static double seconds(void) {
    struct timespec t;
    clock_gettime(opt.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* GFLOP/s of one thread for a product with A of this type at this level (DPK_S8: quantized rows); 0
 * where nothing can be said (ref). */
static double measure_peak(int isa, int a_dtype) {
    return dpk_peak_measure(isa, a_dtype, !opt.no_dot) * 1e-9;
}

/* ---- Shapes --------------------------------------------------------------------------------- */

struct bench {
    const char *name;
    int opcode; /* DPK_OP_linear: m, n, k; DPK_OP_conv2d: side m, n, k channels, 3x3 */
    int m, n, k;
    bool glu, residual;
    int act;
};
static const struct bench benches[] = {
    {"linear 2048x1280x1280", DPK_OP_linear, 2048, 1280, 1280, false, true, 0},
    {"linear 2048x3840x1280", DPK_OP_linear, 2048, 3840, 1280, false, false, 0},
    {"linear 2048x10240x1280 geglu", DPK_OP_linear, 2048, 5120, 1280, true, false, DPK_ACT_GELU},
    {"linear 2048x1280x5120", DPK_OP_linear, 2048, 1280, 5120, false, true, 0},
    {"linear 2048x1280x4096", DPK_OP_linear, 2048, 1280, 4096, false, false, 0},
    {"linear 8192x640x640", DPK_OP_linear, 8192, 640, 640, false, true, 0},
    {"linear 8192x640x2560", DPK_OP_linear, 8192, 640, 2560, false, true, 0},
    {"linear 4096x320x320", DPK_OP_linear, 4096, 320, 320, false, true, 0},
    {"linear 77x1280x2048", DPK_OP_linear, 77, 1280, 2048, false, false, 0},
    {"linear 1x1280x1280 silu", DPK_OP_linear, 1, 1280, 1280, false, false, DPK_ACT_SILU},
    {"conv 128x128 320-320", DPK_OP_conv2d, 128, 320, 320, false, false, 0},
    {"conv 64x64 640-640", DPK_OP_conv2d, 64, 640, 640, false, true, 0},
    {"conv 32x32 1280-1280", DPK_OP_conv2d, 32, 1280, 1280, false, true, 0},
    {"conv 32x32 2560-1280", DPK_OP_conv2d, 32, 1280, 2560, false, false, 0},
    {"conv 256x256 256-256", DPK_OP_conv2d, 256, 256, 256, false, false, 0},
    {"conv 512x512 128-128", DPK_OP_conv2d, 512, 128, 128, false, false, 0},
    {"conv 128x128 4-320", DPK_OP_conv2d, 128, 320, 4, false, false, 0},
    {"conv 512x512 128-3", DPK_OP_conv2d, 512, 3, 128, false, false, 0},
};

/* An array of small numbers of both signs. */
static void *make(int dtype, size_t n) {
    size_t bytes = dtype == DPK_F32 ? 4 : dtype == DPK_S8 ? 1 : 2;
    void *p = aligned_alloc(64, (n * bytes + 63) / 64 * 64);
    uint32_t state = 1;
    if (!p) exit(1);
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        float f = (float)(int32_t)state * 0x1p-31f;
        if (dtype == DPK_S8) {
            ((uint8_t *)p)[i] = (uint8_t)(state >> 24);
        } else if (dtype == DPK_F32) {
            ((float *)p)[i] = f;
        } else if (dtype == DPK_BF16) {
            uint32_t u;
            memcpy(&u, &f, 4);
            ((uint16_t *)p)[i] = (uint16_t)(u >> 16);
        } else {
            ((uint16_t *)p)[i] = (uint16_t)((state >> 16 & 0x8000) | 0x3000 | (state >> 8 & 0x7ff));
        }
    }
    return p;
}

static struct dpk_tensor make_tensor(int dtype, struct dpk_shape shape) {
    return (struct dpk_tensor){
        .data = make(dtype, (size_t)dpk_shape_count(&shape)), .dtype = dtype, .shape = shape};
}

/* Types of a product. */
struct types {
    const char *name;
    int x, w;
    uint32_t flags;
    bool rows8; /* linears only */
};
static const struct types all_types[] = {
    {"bf16", DPK_BF16, DPK_BF16, 0, false},
    {"w8a8", DPK_BF16, DPK_S8, DPK_TENSOR_DYNAMIC, false},
    {"rows", DPK_BF16, DPK_S8, DPK_TENSOR_DYNAMIC, true},
    {"s8", DPK_BF16, DPK_S8, 0, false},
    {"s4", DPK_BF16, DPK_S4, 0, false},
    {"bf16", DPK_F32, DPK_BF16, 0, false},
    {"w8a8", DPK_F32, DPK_S8, DPK_TENSOR_DYNAMIC, false},
    {"rows", DPK_F32, DPK_S8, DPK_TENSOR_DYNAMIC, true},
    {"s8", DPK_F32, DPK_S8, 0, false},
    {"s4", DPK_F32, DPK_S4, 0, false},
    {"f32", DPK_F32, DPK_F32, 0, false},
    {"f16", DPK_F32, DPK_F16, 0, false},
};

/* An array for `bytes` bytes of panels and, of quantized ones, their companions. */
static void make_weight(struct dpk_weight *w, const struct types *types, size_t rows, size_t k) {
    size_t g = (size_t)dpk_panel_group(types->w), taps = 1, channels = k;
    if (w->shape.rank == 4) taps = 9, channels = k / 9;
    size_t n = (rows + 15) / 16 * 16 * taps * ((channels + g - 1) / g * g);
    w->dtype = types->w;
    w->flags = types->flags;
    w->data = make(types->w == DPK_S4 ? DPK_S8 : types->w, types->w == DPK_S4 ? n / 2 : n);
    if (types->w == DPK_S4) w->group = channels % 64 ? 32 : 64;
    if (types->w == DPK_S8 || types->w == DPK_S4) {
        w->scale = make(DPK_F32, types->w == DPK_S8 ? rows : rows * k / (size_t)w->group);
    }
    if (types->w == DPK_S8) w->colsum = make(DPK_F32, rows);
}

/* Operands of a bench; the caller frees data pointers and scratch. Returns FLOPs. */
static double set_up(const struct bench *b, const struct types *types, struct dpk_op *op,
                     struct dpk_call *call) {
    int rows = b->glu ? 2 * b->n : b->n, side = b->m, x_dtype = types->x;
    size_t results;
    struct dpk_weight *w = &call->wt[0];
    memset(op, 0, sizeof *op);
    memset(call, 0, sizeof *call);
    op->opcode = (uint32_t)b->opcode;
    call->op = op;
    if (b->opcode == DPK_OP_linear) {
        ((struct dpk_linear_attrs *)(void *)op->attr)->act = b->act;
        ((struct dpk_linear_attrs *)(void *)op->attr)->glu = b->glu;
        call->in[DPK_IN(linear, x)] =
            make_tensor(x_dtype, (struct dpk_shape){3, {1, b->m, b->k, 0}});
        w->shape = (struct dpk_shape){2, {rows, b->k, 0, 0}};
        call->out = make_tensor(x_dtype, (struct dpk_shape){3, {1, b->m, b->n, 0}});
        if (b->residual) call->in[DPK_IN(linear, residual)] = make_tensor(x_dtype, call->out.shape);
        results = (size_t)b->m * (size_t)rows * (size_t)b->k;
    } else {
        struct dpk_conv2d_attrs *attrs = (struct dpk_conv2d_attrs *)(void *)op->attr;
        attrs->stride = attrs->pad_top = attrs->pad_left = attrs->pad_bottom = attrs->pad_right = 1;
        attrs->act = b->act;
        call->in[DPK_IN(conv2d, x)] =
            make_tensor(x_dtype, (struct dpk_shape){4, {1, side, side, b->k}});
        w->shape = (struct dpk_shape){4, {b->n, 3, 3, b->k}};
        call->out = make_tensor(x_dtype, (struct dpk_shape){4, {1, side, side, b->n}});
        if (b->residual) call->in[DPK_IN(conv2d, residual)] = make_tensor(x_dtype, call->out.shape);
        results = (size_t)side * (size_t)side * (size_t)rows * 9 * (size_t)b->k;
    }
    w->layout = b->glu ? DPK_LAYOUT_PANEL_GLU : DPK_LAYOUT_PANEL;
    make_weight(w, types, (size_t)rows, (size_t)b->k * (w->shape.rank == 4 ? 9 : 1));
    call->wt[1] = (struct dpk_weight){.dtype = DPK_F32, .shape = {1, {rows, 0, 0, 0}}};
    call->wt[1].data = make(DPK_F32, (size_t)rows);
    return 2.0 * (double)results;
}

/* x as a layer norm makes it for the call's weight. */
static int quantize_x(struct dpk_backend *be, struct dpk_call *call, dpk_error *err) {
    struct dpk_op op = {.opcode = DPK_OP_layer_norm};
    struct dpk_call norm = {.op = &op};
    struct dpk_tensor *x = &call->in[DPK_IN(linear, x)];
    ((struct dpk_layer_norm_attrs *)(void *)op.attr)->eps = 1e-5f;
    norm.in[DPK_IN(layer_norm, x)] = norm.out = *x;
    norm.out.rows8 = x->rows8 = call->wt[0].flags;
    norm.out.data = aligned_alloc(64, (be->rows8_bytes(be, &norm) + 63) / 64 * 64);
    norm.scratch = aligned_alloc(64, (be->scratch_bytes(be, &norm) + 64) / 64 * 64);
    int rc = be->run(be, &norm, err);
    free(norm.scratch);
    free(x->data);
    x->data = norm.out.data;
    return rc;
}

static void free_call(struct dpk_call *call) {
    for (int i = 0; i < DPK_MAX_IN; i++) free(call->in[i].data);
    for (int i = 0; i < 2; i++) {
        free((void *)(uintptr_t)call->wt[i].data);
        free((void *)(uintptr_t)call->wt[i].scale);
        free((void *)(uintptr_t)call->wt[i].colsum);
    }
    free(call->out.data);
    free(call->scratch);
}

/* *plain: milliseconds with bf16 weights, set by such a bench. */
static int run_bench(struct dpk_backend *be, const struct bench *b, const struct types *types,
                     double *peak, double *plain, bool first) {
    int isa = ((struct dpk_cpu *)be)->isa;
    struct dpk_op op;
    struct dpk_call call;
    dpk_error err;
    double best = 1e9, flops = set_up(b, types, &op, &call);
    int rc = types->rows8 ? quantize_x(be, &call, &err) : DPK_OK;
    size_t scratch = be->scratch_bytes(be, &call);
    double now = measure_peak(isa, types->flags ? DPK_S8 : types->x); /* clocks rise and fall */
    if (now > *peak) *peak = now;
    call.scratch = aligned_alloc(64, (scratch + 64) / 64 * 64);
    for (int i = 0; i <= opt.repeat && rc == DPK_OK; i++) {
        double t = seconds();
        rc = be->run(be, &call, &err);
        t = seconds() - t;
        if (t < best) best = t;
    }
    if (rc != DPK_OK) fprintf(stderr, "%s: %s\n", b->name, err.msg);
    double rate = flops / best * 1e-9, share = *peak > 0 ? rate / *peak / opt.threads : 0;
    if (types->w == DPK_BF16) *plain = best * 1e3;
    double gain = *plain > 0 ? *plain / (best * 1e3) : 0;
    const char *x = dpk_dtype_name(types->x);
    if (opt.json) {
        printf("%s\n  {\"name\": \"%s\", \"isa\": \"%s\", \"x\": \"%s\", \"w\": \"%s\", "
               "\"threads\": %d, \"ms\": %.4f, \"gflops\": %.1f, \"peak\": %.1f, "
               "\"share\": %.3f, \"gain\": %.3f}",
               first ? "" : ",", b->name, be->detail, x, types->name, opt.threads, best * 1e3, rate,
               *peak * opt.threads, share, gain);
    } else {
        printf("%-30s %4s x %-4s %9.3f ms %8.1f GFLOP/s  %.2f  x%.2f\n", b->name, x, types->name,
               best * 1e3, rate, share, gain);
    }
    fflush(stdout);
    free_call(&call);
    return rc;
}

/* Is `name` in a list with commas? */
static bool listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *p = list; (p = strstr(p, name)); p += n) {
        if ((p == list || p[-1] == ',') && (!p[n] || p[n] == ',')) return true;
    }
    return false;
}

static int run_level(int isa, bool *first) {
    enum { N_TYPES = sizeof all_types / sizeof *all_types };
    double peak[N_TYPES] = {0};
    struct dpk_backend *be;
    dpk_error err;
    const struct dpk_cpu_options options = {
        .n_threads = opt.threads, .isa = dpk_isa_name(isa), .no_dot = opt.no_dot};
    int rc = dpk_cpu_create_with(&be, &options, &err);
    if (rc != DPK_OK) {
        fprintf(stderr, "%s\n", err.msg);
        return rc;
    }
    if (!opt.json) {
        double f = measure_peak(isa, isa == DPK_ISA_AVX512BF16 ? DPK_BF16 : DPK_F32);
        printf("-- %s, peaks a thread %.1f GFLOP/s, integers %.1f\n", be->detail, f,
               measure_peak(isa, DPK_S8));
    }
    for (size_t i = 0; i < sizeof benches / sizeof benches[0] && rc == DPK_OK; i++) {
        double plain = 0;
        if (opt.only && !strstr(benches[i].name, opt.only)) continue;
        for (size_t t = 0; t < N_TYPES && rc == DPK_OK; t++) {
            const struct types *types = &all_types[t];
            /* Each level shows what its programs use: bf16 activations where it multiplies them. */
            if ((types->x == DPK_BF16) != (isa == DPK_ISA_AVX512BF16)) continue;
            if (opt.types && !listed(opt.types, types->name)) continue;
            if (types->w == DPK_S4 && benches[i].k % 32) continue;
            if (types->rows8 && benches[i].opcode != DPK_OP_linear) continue;
            rc = run_bench(be, &benches[i], types, &peak[t], &plain, *first);
            *first = false;
        }
    }
    be->free(be);
    return rc;
}

int main(int argc, char **argv) {
    bool first = true;
    int rc = DPK_OK;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--json")) opt.json = true;
        else if (!strcmp(argv[i], "--isa") && value) opt.isa = argv[++i];
        else if (!strcmp(argv[i], "--only") && value) opt.only = argv[++i];
        else if (!strcmp(argv[i], "--types") && value) opt.types = argv[++i];
        else if (!strcmp(argv[i], "--no-dot")) opt.no_dot = true;
        else if (!strcmp(argv[i], "--threads") && value) opt.threads = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--repeat") && value) opt.repeat = atoi(argv[++i]);
        else {
            fprintf(stderr, "unknown option %s\n", argv[i]);
            return 2;
        }
    }
    if (opt.json) printf("[");
    for (int isa = DPK_N_ISAS - 1; isa >= DPK_ISA_REF && rc == DPK_OK; isa--) {
        if (!dpk_isa_available(isa)) continue;
        if (opt.isa ? strcmp(opt.isa, dpk_isa_name(isa)) : isa == DPK_ISA_REF) continue;
        rc = run_level(isa, &first);
    }
    if (opt.json) printf("\n]\n");
    return rc == DPK_OK ? 0 : 1;
}
