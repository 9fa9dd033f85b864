/* linear: y = epilogue(concat(x, x2) w^T), see ops.def.
 *
 * Rows of x are multiplied where they are; concatenation is a second segment. They are packed
 * (copied, widened) into the worker's scratch when the tile wants float32 of bfloat16 rows, when x
 * ends between the two k's of a pair, or when rows lie a multiple of 4 KiB apart: the rows of a
 * tile then compete for the same lines of L1. Rows of integer products are packed as integers,
 * unless they come quantized. */
#include "gemm.h"
#include "ops_cpu.h"

#include "../../formats/fail.h"

#include <string.h>

const uint32_t dpk_cpu_in_place_linear = 1u << DPK_IN(linear, residual);

struct linear {
    const struct dpk_cpu *cpu;
    const char *x, *x2;
    size_t k1, k2;
    size_t x_stride; /* of quantized rows */
    int x_dtype;
    const struct dpk_gemm *g;
};

static void point_rows(const void *op, int64_t m0, int rows, int mr, const void **a, char *pack) {
    const struct linear *l = op;
    size_t bytes = dpk_dtype_bytes(l->x_dtype);
    (void)pack;
    for (int r = 0; r < mr; r++) {
        size_t m = (size_t)m0 + (size_t)(r < rows ? r : rows - 1);
        a[r] = l->x + m * l->k1 * bytes;
        if (l->x2) a[mr + r] = l->x2 + m * l->k2 * bytes;
    }
}

static void pack_rows(const void *op, int64_t m0, int rows, int mr, const void **a, char *pack) {
    const struct linear *l = op;
    size_t bytes = dpk_dtype_bytes(l->x_dtype), packed = dpk_dtype_bytes(l->g->a_dtype);
    for (int r = 0; r < rows; r++) {
        size_t m = (size_t)m0 + (size_t)r;
        char *row = pack + (size_t)r * l->g->pack_bytes;
        dpk_gemm_pack(l->cpu, row, l->g->a_dtype, l->x + m * l->k1 * bytes, l->x_dtype, l->k1);
        if (l->x2) {
            dpk_gemm_pack(l->cpu, row + l->k1 * packed, l->g->a_dtype, l->x2 + m * l->k2 * bytes,
                          l->x_dtype, l->k2);
        }
    }
    for (int r = 0; r < mr; r++) {
        a[r] = pack + (size_t)(r < rows ? r : rows - 1) * l->g->pack_bytes;
    }
}

/* x ends inside a group of four k's: both rows are first copied behind the packed one. */
static bool is_split(const struct linear *l) { return l->k2 && l->k1 % 4; }

static size_t packed_row_bytes(const struct linear *l, const struct dpk_gemm *g) {
    size_t k = l->k1 + l->k2, n = dpk_rows8_stride(&g->rows8, k);
    if (is_split(l)) n += dpk_round_up(k * dpk_dtype_bytes(l->x_dtype), 64);
    return n % 4096 == 0 ? n + 64 : n;
}

static void quantize_row(const struct linear *l, size_t m, char *row) {
    const struct dpk_rows8 *r = &l->g->rows8;
    size_t bytes = dpk_dtype_bytes(l->x_dtype), k1 = l->k1, k2 = l->k2;
    const char *x = l->x + m * k1 * bytes, *x2 = l->x2 ? l->x2 + m * k2 * bytes : NULL;
    if (!x2) {
        dpk_rows8_put(r, row, x, k1);
    } else if (is_split(l)) {
        char *copy = row + dpk_rows8_stride(r, k1 + k2);
        memcpy(copy, x, k1 * bytes);
        memcpy(copy + k1 * bytes, x2, k2 * bytes);
        dpk_rows8_put(r, row, copy, k1 + k2);
    } else {
        const struct dpk_kernels *k = l->g->k;
        char *q = row + DPK_ROW_HEAD;
        float top = dpk_larger(k->magnitude(x, l->x_dtype, k1), k->magnitude(x2, l->x_dtype, k2));
        float scale = dpk_rows8_scale(r, top);
        memcpy(row, &scale, sizeof scale);
        dpk_rows8_integers(r, q, scale, x, k1);
        dpk_rows8_integers(r, q + dpk_rows8_bytes(r, k1), scale, x2, k2);
    }
}

static void quantize_rows(const void *op, int64_t m0, int rows, int mr, const void **a,
                          char *pack) {
    const struct linear *l = op;
    size_t stride = l->g->pack_bytes;
    for (int r = 0; r < rows; r++) {
        quantize_row(l, (size_t)m0 + (size_t)r, pack + (size_t)r * stride);
    }
    for (int r = 0; r < mr; r++) {
        a[r] = pack + (size_t)(r < rows ? r : rows - 1) * stride + DPK_ROW_HEAD;
    }
}

/* x made as quantized rows. */
static void point_quantized(const void *op, int64_t m0, int rows, int mr, const void **a,
                            char *pack) {
    const struct linear *l = op;
    (void)pack;
    for (int r = 0; r < mr; r++) {
        size_t m = (size_t)m0 + (size_t)(r < rows ? r : rows - 1);
        a[r] = l->x + m * l->x_stride + DPK_ROW_HEAD;
    }
}

static bool need_pack(const struct linear *l, const struct dpk_gemm *g) {
    if (g->a_dtype != l->x_dtype) return true;
    if (l->k2 && l->k1 % (size_t)g->tile_group) return true;
    return (l->k1 * dpk_dtype_bytes(l->x_dtype)) % 4096 == 0;
}

/* Elements from row to row of results before they are quantized. */
static size_t made_stride(size_t n, int dtype) {
    size_t bytes = dpk_dtype_bytes(dtype), stride = dpk_round_up(n * bytes, 64);
    return (stride % 4096 == 0 ? stride + 64 : stride) / bytes;
}

/* Sizes of the product; false if no kernel takes these types, or sums this long. */
static bool describe(const struct dpk_cpu *cpu, const struct dpk_call *call, struct linear *l,
                     struct dpk_gemm *g) {
    const struct dpk_tensor *x = &call->in[DPK_IN(linear, x)], *x2 = &call->in[DPK_IN(linear, x2)];
    const struct dpk_weight *w = &call->wt[DPK_WT(linear, w)];
    const struct dpk_linear_attrs *attrs = DPK_ATTRS(linear, call->op);
    *l = (struct linear){.cpu = cpu, .x = x->data, .x_dtype = x->dtype, .g = g};
    *g = (struct dpk_gemm){.op = l};
    if (!dpk_gemm_weight(g, cpu, w, x->dtype)) return false;
    l->k1 = (size_t)x->shape.dim[x->shape.rank - 1];
    if (x2->shape.rank) {
        l->x2 = x2->data;
        l->k2 = (size_t)x2->shape.dim[x2->shape.rank - 1];
    }
    size_t k = l->k1 + l->k2;
    g->n = call->out.shape.dim[call->out.shape.rank - 1];
    g->m = dpk_shape_count(&call->out.shape) / g->n;
    g->panels = (int32_t)(((int64_t)g->n + (attrs->glu ? 7 : 15)) / (attrs->glu ? 8 : 16));
    g->n_seg = 1;
    g->k_len[0] = (int32_t)k;
    g->rows = point_rows;
    g->epilogue.stride = (size_t)g->n;
    if (call->out.rows8) {
        g->made = dpk_rows8_of(cpu, call->out.dtype, call->out.rows8);
        g->epilogue.stride = made_stride((size_t)g->n, call->out.dtype);
    }
    if (g->a_dtype == DPK_S8) {
        g->k_len[0] = (int32_t)g->k_padded;
        l->x_stride = dpk_rows8_stride(&g->rows8, k);
        g->pack_bytes = x->rows8 ? 0 : packed_row_bytes(l, g);
        g->a_row_bytes = l->x_stride;
        g->rows = x->rows8 ? point_quantized : quantize_rows;
        return true;
    }
    g->a_row_bytes = k * dpk_dtype_bytes(g->a_dtype);
    if (need_pack(l, g)) {
        /* One line more than the row: packed rows of a tile start in different sets of L1. */
        g->pack_bytes = dpk_round_up(g->a_row_bytes, 64) + 64;
        g->rows = pack_rows;
    } else if (l->k2) {
        g->n_seg = 2;
        g->k_len[0] = (int32_t)l->k1;
        g->k_len[1] = (int32_t)l->k2;
    }
    return true;
}

/* A task then makes whole rows, so there must be enough for all workers. */
bool dpk_cpu_rows8_linear(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    struct linear l;
    struct dpk_gemm g;
    if (call->in[DPK_IN(linear, residual)].shape.rank || !describe(cpu, call, &l, &g)) return false;
    return g.m >= (int64_t)dpk_pool_workers(cpu->pool) * 4 * g.tile->mr;
}

size_t dpk_cpu_scratch_linear(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    struct linear l;
    struct dpk_gemm g;
    return describe(cpu, call, &l, &g) ? dpk_gemm_plan(cpu, &g) : 0;
}

int dpk_cpu_run_linear(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *gate = &call->in[DPK_IN(linear, gate)];
    const struct dpk_tensor *residual = &call->in[DPK_IN(linear, residual)];
    const struct dpk_tensor *x = &call->in[DPK_IN(linear, x)];
    const struct dpk_weight *w = &call->wt[DPK_WT(linear, w)], *b = &call->wt[DPK_WT(linear, b)];
    const struct dpk_linear_attrs *attrs = DPK_ATTRS(linear, call->op);
    struct linear l;
    struct dpk_gemm g;
    if (!describe(cpu, call, &l, &g)) {
        return dpk_error_set(err, DPK_EUNSUPPORTED, "cpu linear: no kernel for %s weights",
                             dpk_dtype_name(w->dtype));
    }
    dpk_gemm_plan(cpu, &g);
    g.epilogue = (struct dpk_epilogue){
        .act = attrs->act,
        .glu = attrs->glu,
        .dtype = call->out.dtype,
        .bias = b->shape.rank ? b->data : NULL,
        .residual = residual->shape.rank ? residual->data : NULL,
        .out = call->out.data,
        .stride = g.epilogue.stride,
    };
    if (attrs->glu && g.epilogue.bias) g.epilogue.bias_glu = g.epilogue.bias + g.n;
    if (gate->shape.rank) {
        size_t offset = (size_t)attrs->gate_off * dpk_dtype_bytes(gate->dtype);
        g.gate = (const char *)gate->data + offset;
        g.image_stride = gate->shape.dim[0] > 1 ? (size_t)gate->shape.dim[1] : 0;
        g.rows_per_image = g.m / x->shape.dim[0];
    }
    dpk_gemm_run(cpu, &g, call->scratch);
    return DPK_OK;
}
