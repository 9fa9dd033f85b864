/* Speed of the matrix operators against the machine's own peak.
 *
 *   bench_kernels [--json] [--isa LEVEL] [--threads N] [--repeat N] [--only TEXT]
 *
 * The peaks are loops of independent multiply-adds on registers, of the widest instruction that the
 * level uses for the types. A shape's time is the least of its repeats; on one thread it is the
 * thread's own time, so that other work does not count. */
#include "../kernels/cpu/cpu.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static struct {
    bool json;
    const char *isa, *only;
    int threads, repeat;
} opt = {.threads = 1, .repeat = 5};

static double seconds(void) {
    struct timespec t;
    clock_gettime(opt.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Peaks ---------------------------------------------------------------------------------- */

enum { PEAK_ROUNDS = 1 << 18 };

#if defined(__x86_64__)
#define REPEAT12(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define REPEAT24(F)                                                                                \
    REPEAT12(F)                                                                                    \
    F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23)

/* As many chains as there are registers for: fewer would measure the latency. */
#define PEAK(name, features, type, zero, repeat, instruction)                                      \
    __attribute__((target(features))) static void name(void) {                                     \
        type x = zero;                                                                             \
        repeat(DECLARE_##type) for (int i = 0; i < PEAK_ROUNDS;                                    \
                                    i++){repeat(instruction)} repeat(USE)                          \
    }
#define DECLARE___m256(i) __m256 c##i = _mm256_setzero_ps();
#define DECLARE___m512(i) __m512 c##i = _mm512_setzero_ps();
#define USE(i) __asm__ volatile("" : : "x"(c##i));
#define FMA_STEP(i) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(c##i) : "v"(x));
#define DOT_STEP(i) __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(c##i) : "v"(x));
PEAK(fma_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), REPEAT12, FMA_STEP)
PEAK(fma_avx512, "avx512f", __m512, _mm512_setzero_ps(), REPEAT24, FMA_STEP)
PEAK(dot_bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), REPEAT24, DOT_STEP)
#endif

/* GFLOP/s of one thread for a product of these types at this level; 0 where nothing can be said
 * (ref). */
static double measure_peak(int isa, int a_dtype) {
    double best = 1e9;
    void (*loop)(void) = NULL;
    int flops = 0; /* of a round */
#if defined(__x86_64__)
    if (isa == DPK_ISA_AVX2) loop = fma_avx2, flops = 16 * 12;
    if (isa >= DPK_ISA_AVX512) loop = fma_avx512, flops = 32 * 24;
    if (isa == DPK_ISA_AVX512BF16 && a_dtype == DPK_BF16) loop = dot_bf16, flops = 64 * 24;
#endif
    if (!loop) return 0;
    for (int i = 0; i < 12; i++) {
        double t = seconds();
        loop();
        t = seconds() - t;
        if (t < best) best = t;
    }
    return (double)flops * PEAK_ROUNDS / best * 1e-9;
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
    size_t bytes = dtype == DPK_F32 ? 4 : 2;
    void *p = aligned_alloc(64, (n * bytes + 63) / 64 * 64);
    uint32_t state = 1;
    if (!p) exit(1);
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        float f = (float)(int32_t)state * 0x1p-31f;
        if (dtype == DPK_F32) {
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
    return (struct dpk_tensor){make(dtype, (size_t)dpk_shape_count(&shape)), dtype, shape};
}

/* Operands of a bench; the caller frees data pointers and scratch. Returns FLOPs. */
static double set_up(const struct bench *b, int x_dtype, int w_dtype, struct dpk_op *op,
                     struct dpk_call *call) {
    int rows = b->glu ? 2 * b->n : b->n, side = b->m;
    size_t weights, results;
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
        weights = (size_t)(rows + 15) / 16 * 16 * (size_t)((b->k + 1) & ~1);
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
        weights = (size_t)(rows + 15) / 16 * 16 * 9 * (size_t)((b->k + 1) & ~1);
        results = (size_t)side * (size_t)side * (size_t)rows * 9 * (size_t)b->k;
    }
    w->dtype = w_dtype;
    w->layout = b->glu ? DPK_LAYOUT_PANEL_GLU : DPK_LAYOUT_PANEL;
    w->data = make(w_dtype, weights);
    call->wt[1] = (struct dpk_weight){.dtype = DPK_F32, .shape = {1, {rows, 0, 0, 0}}};
    call->wt[1].data = make(DPK_F32, (size_t)rows);
    return 2.0 * (double)results;
}

static int run_bench(struct dpk_backend *be, const struct bench *b, int x_dtype, int w_dtype,
                     double peak, bool first) {
    struct dpk_op op;
    struct dpk_call call;
    dpk_error err;
    double best = 1e9, flops = set_up(b, x_dtype, w_dtype, &op, &call);
    size_t scratch = be->scratch_bytes(be, &call);
    int rc = DPK_OK;
    call.scratch = aligned_alloc(64, (scratch + 64) / 64 * 64);
    for (int i = 0; i <= opt.repeat && rc == DPK_OK; i++) {
        double t = seconds();
        rc = be->run(be, &call, &err);
        t = seconds() - t;
        if (t < best) best = t;
    }
    if (rc != DPK_OK) fprintf(stderr, "%s: %s\n", b->name, err.msg);
    double rate = flops / best * 1e-9, share = peak > 0 ? rate / peak / opt.threads : 0;
    if (opt.json) {
        printf("%s\n  {\"name\": \"%s\", \"isa\": \"%s\", \"x\": \"%s\", \"w\": \"%s\", "
               "\"threads\": %d, \"ms\": %.4f, \"gflops\": %.1f, \"peak\": %.1f, \"share\": %.3f}",
               first ? "" : ",", b->name, be->detail, dpk_dtype_name(x_dtype),
               dpk_dtype_name(w_dtype), opt.threads, best * 1e3, rate, peak * opt.threads, share);
    } else {
        printf("%-30s %4s x %-4s %9.3f ms %8.1f GFLOP/s  %.2f\n", b->name, dpk_dtype_name(x_dtype),
               dpk_dtype_name(w_dtype), best * 1e3, rate, share);
    }
    fflush(stdout);
    for (int i = 0; i < DPK_MAX_IN; i++) free(call.in[i].data);
    free((void *)(uintptr_t)call.wt[0].data);
    free((void *)(uintptr_t)call.wt[1].data);
    free(call.out.data);
    free(call.scratch);
    return rc;
}

static int run_level(int isa, bool *first) {
    static const int types[][2] = {
        {DPK_BF16, DPK_BF16}, {DPK_F32, DPK_F32}, {DPK_F32, DPK_BF16}, {DPK_F32, DPK_F16}};
    struct dpk_backend *be;
    dpk_error err;
    int rc = dpk_cpu_create(&be, opt.threads, dpk_isa_name(isa), 0, &err);
    if (rc != DPK_OK) {
        fprintf(stderr, "%s\n", err.msg);
        return rc;
    }
    for (size_t t = 0; t < sizeof types / sizeof types[0] && rc == DPK_OK; t++) {
        /* Each level shows what its programs use: bf16 activations where it multiplies them. */
        if ((types[t][0] == DPK_BF16) != (isa == DPK_ISA_AVX512BF16)) continue;
        double peak = measure_peak(isa, types[t][0]);
        if (!opt.json) printf("-- %s, peak %.1f GFLOP/s a thread\n", be->detail, peak);
        for (size_t i = 0; i < sizeof benches / sizeof benches[0] && rc == DPK_OK; i++) {
            if (opt.only && !strstr(benches[i].name, opt.only)) continue;
            double now = measure_peak(isa, types[t][0]); /* clocks rise and fall during a run */
            if (now > peak) peak = now;
            rc = run_bench(be, &benches[i], types[t][0], types[t][1], peak, *first);
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
