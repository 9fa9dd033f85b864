/* Blocks, tasks and the tile loop of the product (contract: gemm.h). */
#include "gemm.h"
#include "scalar.h"

#include <string.h>

void dpk_gemm_pack(const struct dpk_cpu *cpu, void *dst, int a_dtype, const void *src, int x_dtype,
                   size_t n) {
    if (a_dtype == x_dtype) memcpy(dst, src, n * dpk_dtype_bytes(a_dtype));
    else if (a_dtype == DPK_F32) cpu->k->widen(dst, src, n);
    else
        for (size_t i = 0; i < n; i++) dpk_elem_put(dst, DPK_BF16, i, ((const float *)src)[i]);
}

enum { MAX_SHARED = 64 << 20 };

static int64_t round_rows(int64_t rows, int mr) { return (rows + mr - 1) / mr * mr; }

static int64_t clamp(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Bytes of a worker's scratch: the tiles' row pointers, then the packed rows, the results
 * that will be quantized, a group of columns. */
static size_t pointer_bytes(const struct dpk_gemm *g) {
    return dpk_round_up((size_t)g->block_rows * (size_t)g->n_seg * sizeof(void *), 64);
}
static size_t made_bytes(const struct dpk_gemm *g) {
    size_t row = g->made.k ? g->epilogue.stride * dpk_dtype_bytes(g->made.dtype) : 0;
    return (size_t)g->block_rows * row;
}
static size_t pack_bytes(const struct dpk_gemm *g) {
    return g->shared_bytes ? 0 : dpk_round_up((size_t)g->block_rows * g->pack_bytes, 64);
}

/* Rows of a block: what three quarters of L2 hold beside one group of panels; where the group alone
 * is larger, enough rows to pay for bringing it in. */
size_t dpk_gemm_plan(const struct dpk_cpu *cpu, struct dpk_gemm *g) {
    int mr = g->tile->mr, np = g->tile->np, workers = dpk_pool_workers(cpu->pool);
    size_t l2 = cpu->l2_bytes / 4 * 3, group = g->tile_stride * (size_t)np;
    size_t room = group < l2 ? l2 - group : 0;
    size_t row = g->a_row_bytes > 0 ? g->a_row_bytes : 1;
    int64_t rows = clamp((int64_t)(room / row), 192, 576);
    int64_t groups = (g->panels + np - 1) / np;
    g->block_rows = round_rows(rows < g->m ? rows : g->m, mr);
    /* A few tasks for each worker: first by splitting the panels, then the rows. */
    int64_t want = workers == 1 ? 1 : 4 * workers;
    int64_t row_blocks = (g->m + g->block_rows - 1) / g->block_rows;
    int64_t splits = g->made.k ? 1 : clamp((want + row_blocks - 1) / row_blocks, 1, groups);
    g->block_panels = (int32_t)((groups + splits - 1) / splits * np);
    splits = (g->panels + g->block_panels - 1) / g->block_panels;
    if (row_blocks * splits < want) {
        int64_t blocks = (want + splits - 1) / splits;
        g->block_rows = clamp(round_rows((g->m + blocks - 1) / blocks, mr), mr, g->block_rows);
    }
    /* Where several tasks take the same rows, they are quantized once for all, if that is not too
     * much memory. */
    splits = (g->panels + g->block_panels - 1) / g->block_panels;
    size_t all = (size_t)round_rows(g->m, mr) * g->pack_bytes;
    g->shared_bytes = g->a_dtype == DPK_S8 && splits > 1 && all <= MAX_SHARED ? all : 0;
    g->worker_bytes = pointer_bytes(g) + pack_bytes(g) + made_bytes(g) + dpk_gemm_columns_bytes(g);
    return g->worker_bytes * (size_t)workers + g->shared_bytes;
}

/* Rows m0 .. m0 + rows of the operand that belongs to their images, from column n0 on. */
static void image_rows(const struct dpk_gemm *g, const void *base, int64_t m0, int rows, int32_t n0,
                       const void **out) {
    size_t bytes = dpk_dtype_bytes(g->epilogue.dtype);
    for (int r = 0; r < rows; r++) {
        size_t image = g->image_stride ? (size_t)((m0 + r) / g->rows_per_image) : 0;
        out[r] = (const char *)base + (image * g->image_stride + (size_t)n0) * bytes;
    }
}

/* The residual comes from memory while the tile multiplies (8192x640x640: 0.79 to 0.89 of peak). */
static void prefetch_rows(const char *row, int rows, size_t n_bytes, size_t stride_bytes) {
    for (int r = 0; r < rows; r++, row += stride_bytes) {
        for (size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(row + i);
    }
}

/* The rows of a tile: m .. m + n, their results from out on. */
struct tile_rows {
    int64_t m;
    int n;
    const void *const *a;
    char *out;
};

/* One tile: panels p .. p + np. */
static void run_tile(const struct dpk_gemm *g, const struct tile_rows *rows, int32_t p, int32_t np,
                     const struct dpk_gemm_columns *columns, float *c) {
    float scale_a[DPK_MAX_MR];
    struct dpk_tile t = {
        .a = rows->a,
        .k_len = g->k_len,
        .n_seg = g->n_seg,
        .n_panels = np,
        .b = columns->b,
        .b_stride = g->tile_stride,
        .c = c,
        .c_stride = 16 * np,
    };
    if (g->a_dtype == DPK_S8) {
        for (int r = 0; r < g->tile->mr; r++) {
            memcpy(&scale_a[r], (const char *)rows->a[r] - DPK_ROW_HEAD, sizeof scale_a[r]);
        }
        t.offset = columns->offset;
        t.scale_a = scale_a;
        t.scale_b = columns->scale;
    }
    struct dpk_epilogue e = g->epilogue;
    int32_t width = e.glu ? 8 : 16, n0 = p * width;
    size_t bytes = dpk_dtype_bytes(e.dtype);
    e.c = c;
    e.c_stride = t.c_stride;
    e.rows = rows->n;
    e.n = g->n - n0 < np * width ? g->n - n0 : np * width;
    if (columns->scaled) e.scale = columns->scale;
    if (e.bias) e.bias += n0;
    if (e.bias_glu) e.bias_glu += n0;
    if (g->temb) image_rows(g, g->temb, rows->m, rows->n, n0, e.temb);
    if (g->gate) image_rows(g, g->gate, rows->m, rows->n, n0, e.gate);
    if (e.residual) {
        e.residual = (const char *)e.residual + ((size_t)rows->m * e.stride + (size_t)n0) * bytes;
        prefetch_rows(e.residual, rows->n, (size_t)e.n * bytes, e.stride * bytes);
    }
    e.out = rows->out + (size_t)n0 * bytes;
    g->tile->fn(&t);
    g->k->epilogue(&e);
}

struct job {
    const struct dpk_gemm *g;
    int64_t row_blocks;
    char *scratch, *shared;
};

/* Rows of all tasks at once: a task packs those of one tile. */
static void pack_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_gemm *g = job->g;
    int mr = g->tile->mr;
    int64_t m = (int64_t)task * mr;
    const void *a[DPK_MAX_MR];
    (void)worker;
    g->rows(g->op, m, (int)(g->m - m < mr ? g->m - m : mr), mr, a,
            job->shared + (size_t)m * g->pack_bytes);
}

/* What g->rows would point at, after pack_task. */
static void point_packed(const struct job *job, int64_t m, int rows, const void **a) {
    for (int r = 0; r < job->g->tile->mr; r++) {
        size_t row = (size_t)m + (size_t)(r < rows ? r : rows - 1);
        a[r] = job->shared + row * job->g->pack_bytes + DPK_ROW_HEAD;
    }
}

static void run_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_gemm *g = job->g;
    int mr = g->tile->mr, np = g->tile->np;
    int64_t begin = task % job->row_blocks * g->block_rows;
    int64_t end = begin + g->block_rows < g->m ? begin + g->block_rows : g->m;
    int32_t p0 = (int32_t)(task / job->row_blocks) * g->block_panels;
    int32_t p1 = p0 + g->block_panels < g->panels ? p0 + g->block_panels : g->panels;
    char *mine = job->scratch + (size_t)worker * g->worker_bytes;
    const void **pointers = (const void **)(void *)mine;
    char *pack = mine + pointer_bytes(g), *made = pack + pack_bytes(g);
    char *strip = made + made_bytes(g);
    size_t row_bytes = g->epilogue.stride * dpk_dtype_bytes(g->epilogue.dtype);
    char *out = g->made.k ? made : (char *)g->epilogue.out + (size_t)begin * row_bytes;
    struct dpk_gemm_columns columns;
    _Alignas(64) float c[DPK_MAX_MR * 64];
    size_t per_tile = (size_t)g->n_seg * (size_t)mr;

    for (int64_t m = begin, t = 0; m < end; m += mr, t++) {
        int rows = (int)(end - m < mr ? end - m : mr);
        const void **a = pointers + (size_t)t * per_tile;
        if (g->shared_bytes) point_packed(job, m, rows, a);
        else g->rows(g->op, m, rows, mr, a, pack + (size_t)(m - begin) * g->pack_bytes);
    }
    for (int32_t p = p0; p < p1; p += np) {
        int32_t n = p1 - p < np ? p1 - p : np;
        dpk_gemm_columns(g, p, n, strip, &columns);
        for (int64_t m = begin, t = 0; m < end; m += mr, t++) {
            struct tile_rows rows = {
                .m = m,
                .n = (int)(end - m < mr ? end - m : mr),
                .a = pointers + (size_t)t * per_tile,
                .out = out + (size_t)(m - begin) * row_bytes,
            };
            run_tile(g, &rows, p, n, &columns, c);
        }
    }
    if (!g->made.k) return;
    size_t n = (size_t)g->n, stride = dpk_rows8_stride(&g->made, n);
    char *to = (char *)g->epilogue.out + (size_t)begin * stride;
    for (int64_t m = begin; m < end; m++, to += stride, made += row_bytes) {
        dpk_rows8_put(&g->made, to, made, n);
    }
}

void dpk_gemm_run(struct dpk_cpu *cpu, const struct dpk_gemm *g, void *scratch) {
    struct job job = {g, (g->m + g->block_rows - 1) / g->block_rows, scratch, scratch};
    int64_t panel_blocks = (g->panels + g->block_panels - 1) / g->block_panels;
    job.shared += g->worker_bytes * (size_t)dpk_pool_workers(cpu->pool);
    if (g->shared_bytes) {
        int64_t tiles = (g->m + g->tile->mr - 1) / g->tile->mr;
        dpk_pool_run(cpu->pool, (int)tiles, pack_task, &job);
    }
    dpk_pool_run(cpu->pool, (int)(job.row_blocks * panel_blocks), run_task, &job);
}
