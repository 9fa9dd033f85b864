/* Speed of attention, norms and elementwise operators.
 *
 *   bench_ops [--isa LEVEL] [--threads N] [--repeat N] [--only TEXT]
 *
 * Attention in GFLOP/s, 4 Lq Lk d a head (half if causal), without padding, and beside it the rate
 * of the product tile alone on operands in the L1 cache: their quotient is what packing, softmax
 * and edges leave. The rest in ns per element of the result. Times are the least of the repeats; on
 * one thread the thread's own time, so that other work does not count. */
#include "../kernels/cpu/cpu.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
    const char *isa, *only;
    int threads, repeat;
} opt = {.threads = 1, .repeat = 5};

static double seconds(void) {
    struct timespec t;
    clock_gettime(opt.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* An array of small numbers of both signs. */
static void *make(int dtype, size_t n) {
    size_t bytes = dtype == DPK_F32 ? 4 : 2;
    void *p = aligned_alloc(64, (n * bytes + 127) / 64 * 64);
    uint32_t state = 1;
    if (!p) exit(1);
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        float f = (float)(int32_t)state * 0x1p-30f;
        uint32_t u;
        memcpy(&u, &f, 4);
        if (dtype == DPK_F32) ((float *)p)[i] = f;
        else ((uint16_t *)p)[i] = (uint16_t)(u >> 16);
    }
    return p;
}

/* The product tile on its largest size and k = 64, in GFLOP/s. */
static double tile_rate(int isa, int dtype) {
    const struct dpk_tile_kernel *tile = dpk_cpu_tile(isa, dtype, dtype);
    enum { K = 64, ROUNDS = 20000 };
    size_t panels = (size_t)tile->np, mr = (size_t)tile->mr, size = dtype == DPK_F32 ? 4 : 2;
    char *a = make(dtype, mr * K), *b = make(dtype, panels * 16 * K);
    float *c = make(DPK_F32, mr * panels * 16);
    const void *rows[64];
    int32_t k_len = K;
    double best = 1e9;
    for (size_t r = 0; r < mr; r++) rows[r] = a + r * K * size;
    struct dpk_tile t = {.a = rows,
                         .k_len = &k_len,
                         .n_seg = 1,
                         .n_panels = tile->np,
                         .b = b,
                         .b_stride = 16 * K * size,
                         .c = c,
                         .c_stride = 16 * tile->np};
    for (int i = 0; i < 8; i++) {
        double start = seconds();
        for (int j = 0; j < ROUNDS; j++) tile->fn(&t);
        double took = seconds() - start;
        if (took < best) best = took;
    }
    free(a);
    free(b);
    free(c);
    return 2.0 * (double)(mr * panels * 16) * K * ROUNDS / best * 1e-9;
}

struct bench {
    const char *name;
    int opcode;
    int b, lq, lk, n; /* images, rows (queries), keys, channels (heads * head_dim) */
    int heads;        /* or groups */
    int flag;         /* attention: causal; others: activation */
};
static const struct bench benches[] = {
    {"attention 4096x4096 d64", DPK_OP_attention, 1, 4096, 4096, 128, 2, 0},
    {"attention 1024x1024 d64", DPK_OP_attention, 2, 1024, 1024, 640, 10, 0},
    {"attention 4096x77 d64", DPK_OP_attention, 1, 4096, 77, 640, 10, 0},
    {"attention 77x77 d64 causal", DPK_OP_attention, 2, 77, 77, 768, 12, 1},
    {"attention 4096x4096 d40", DPK_OP_attention, 1, 4096, 4096, 80, 2, 0},
    {"attention 4096x4096 d72", DPK_OP_attention, 1, 4096, 4096, 144, 2, 0},
    {"attention 1024x1024 d80", DPK_OP_attention, 1, 1024, 1024, 640, 8, 0},
    {"attention 256x256 d160", DPK_OP_attention, 2, 256, 256, 1280, 8, 0},
    {"attention 4096x4096 d512", DPK_OP_attention, 1, 4096, 4096, 512, 1, 0},
    {"group_norm 4096x640 silu", DPK_OP_group_norm, 1, 4096, 0, 640, 32, DPK_ACT_SILU},
    {"group_norm 1024x1280", DPK_OP_group_norm, 1, 1024, 0, 1280, 32, 0},
    {"group_norm 262144x128 silu", DPK_OP_group_norm, 1, 262144, 0, 128, 32, DPK_ACT_SILU},
    {"layer_norm 4096x640", DPK_OP_layer_norm, 1, 4096, 0, 640, 0, 0},
    {"layer_norm 1024x1280", DPK_OP_layer_norm, 1, 1024, 0, 1280, 0, 0},
    {"add 4096x640", DPK_OP_add, 1, 4096, 0, 640, 0, 0},
    {"concat 4096x640", DPK_OP_concat, 1, 4096, 0, 640, 0, 0},
    {"slice 4096x640", DPK_OP_slice, 1, 4096, 0, 640, 0, 0},
    {"pos_embed_2d 64x64x1152", DPK_OP_pos_embed_2d, 1, 4096, 0, 1152, 0, 0},
};

static struct dpk_tensor make_tensor(int dtype, int b, int rows, int n) {
    struct dpk_shape s = {3, {b, rows, n}};
    return (struct dpk_tensor){
        .data = make(dtype, (size_t)dpk_shape_count(&s)), .dtype = dtype, .shape = s};
}

static struct dpk_weight make_vec(int n) {
    return (struct dpk_weight){
        .data = make(DPK_F32, (size_t)n), .dtype = DPK_F32, .shape = {1, {n}}};
}

static void set_up(const struct bench *b, int dtype, struct dpk_op *op, struct dpk_call *call) {
    memset(op, 0, sizeof *op);
    memset(call, 0, sizeof *call);
    op->opcode = (uint32_t)b->opcode;
    call->op = op;
    call->in[0] = make_tensor(dtype, b->b, b->lq, b->n);
    call->out = make_tensor(dtype, b->b, b->lq, b->opcode == DPK_OP_concat ? 2 * b->n : b->n);
    if (b->opcode == DPK_OP_attention) {
        struct dpk_attention_attrs *a = (struct dpk_attention_attrs *)(void *)op->attr;
        *a = (struct dpk_attention_attrs){.heads = b->heads, .head_dim = b->n / b->heads};
        a->causal = b->flag;
        call->in[1] = make_tensor(dtype, b->b, b->lk, b->n);
        call->in[2] = make_tensor(dtype, b->b, b->lk, b->n);
    } else if (b->opcode == DPK_OP_group_norm) {
        struct dpk_group_norm_attrs *a = (struct dpk_group_norm_attrs *)(void *)op->attr;
        *a = (struct dpk_group_norm_attrs){.groups = b->heads, .eps = 1e-5f, .act = b->flag};
    } else if (b->opcode == DPK_OP_layer_norm) {
        ((struct dpk_layer_norm_attrs *)(void *)op->attr)->eps = 1e-5f;
    } else if (b->opcode == DPK_OP_add || b->opcode == DPK_OP_concat) {
        call->in[1] = make_tensor(dtype, b->b, b->lq, b->n);
    } else if (b->opcode == DPK_OP_slice) {
        struct dpk_slice_attrs *a = (struct dpk_slice_attrs *)(void *)op->attr;
        *a = (struct dpk_slice_attrs){.mul = 1, .lo = -1e30f, .hi = 1e30f};
    } else if (b->opcode == DPK_OP_pos_embed_2d) {
        struct dpk_pos_embed_2d_attrs *a = (struct dpk_pos_embed_2d_attrs *)(void *)op->attr;
        *a = (struct dpk_pos_embed_2d_attrs){.base = 64, .interpolation = 2};
        call->in[0].shape = call->out.shape = (struct dpk_shape){4, {b->b, 64, b->lq / 64, b->n}};
    }
    if (b->opcode == DPK_OP_group_norm || b->opcode == DPK_OP_layer_norm) {
        call->wt[0] = make_vec(b->n);
        call->wt[1] = make_vec(b->n);
    }
}

static int run_bench(struct dpk_backend *be, const struct bench *b, int dtype, double tile) {
    struct dpk_op op;
    struct dpk_call call;
    dpk_error err;
    double best = 1e9;
    int rc = DPK_OK;
    set_up(b, dtype, &op, &call);
    call.scratch = aligned_alloc(64, (be->scratch_bytes(be, &call) + 64) / 64 * 64);
    for (int i = 0; i <= opt.repeat && rc == DPK_OK; i++) {
        double t = seconds();
        rc = be->run(be, &call, &err);
        t = seconds() - t;
        if (t < best) best = t;
    }
    if (rc != DPK_OK) fprintf(stderr, "%s: %s\n", b->name, err.msg);
    printf("%-28s %4s %9.3f ms ", b->name, dpk_dtype_name(dtype), best * 1e3);
    if (b->opcode == DPK_OP_attention) {
        double pairs = b->flag ? 0.5 * b->lq * (b->lq + 1) : (double)b->lq * b->lk;
        double rate = 4.0 * b->b * b->n * pairs / best * 1e-9;
        printf("%8.1f GFLOP/s  %.2f of the tile\n", rate, rate / tile / opt.threads);
    } else {
        printf("%8.3f ns/element\n", best * 1e9 / (double)dpk_shape_count(&call.out.shape));
    }
    fflush(stdout);
    for (int i = 0; i < DPK_MAX_IN; i++) free(call.in[i].data);
    for (int i = 0; i < DPK_MAX_WT; i++) free((void *)(uintptr_t)call.wt[i].data);
    free(call.out.data);
    free(call.scratch);
    return rc;
}

static int run_level(int isa) {
    struct dpk_backend *be;
    dpk_error err;
    int rc = dpk_cpu_create(&be, opt.threads, dpk_isa_name(isa), 0, &err);
    if (rc != DPK_OK) {
        fprintf(stderr, "%s\n", err.msg);
        return rc;
    }
    int dtype = be->act_dtype(be, DPK_BF16);
    double tile = tile_rate(isa, dtype);
    printf("-- %s, tile %.1f GFLOP/s a thread\n", be->detail, tile);
    for (size_t i = 0; i < sizeof benches / sizeof benches[0] && rc == DPK_OK; i++) {
        if (opt.only && !strstr(benches[i].name, opt.only)) continue;
        rc = run_bench(be, &benches[i], dtype, tile);
    }
    be->free(be);
    return rc;
}

int main(int argc, char **argv) {
    int rc = DPK_OK;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--isa") && value) opt.isa = argv[++i];
        else if (!strcmp(argv[i], "--only") && value) opt.only = argv[++i];
        else if (!strcmp(argv[i], "--threads") && value) opt.threads = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--repeat") && value) opt.repeat = atoi(argv[++i]);
        else {
            fprintf(stderr, "unknown option %s\n", argv[i]);
            return 2;
        }
    }
    for (int isa = DPK_N_ISAS - 1; isa >= DPK_ISA_REF && rc == DPK_OK; isa--) {
        if (!dpk_isa_available(isa)) continue;
        if (opt.isa ? strcmp(opt.isa, dpk_isa_name(isa)) : isa == DPK_ISA_REF) continue;
        rc = run_level(isa);
    }
    return rc == DPK_OK ? 0 : 1;
}
