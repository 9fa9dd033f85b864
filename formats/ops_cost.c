/* Arithmetic and traffic of an operator, for `inspect`, the profiler and the benchmarks. */
#include "ops.h"

static bool has(const struct dpk_op *op, size_t i) { return op->in[i] != DPK_NONE; }

static double count(const struct dpk_shape *s) { return (double)dpk_shape_count(s); }

static double tokens(const struct dpk_shape *s) {
    return s->rank == 4 ? (double)s->dim[1] * s->dim[2] : s->dim[1];
}

/* Pairs of query and key that take part, of one head of one image. */
static double attention_pairs(double lq, double lk, bool causal) {
    if (!causal) return lq * lk;
    const double short_side = lq < lk ? lq : lk; /* query i sees min(i + 1, lk) keys */
    return short_side * (short_side + 1) / 2 + (lq - short_side) * lk;
}

static double op_flops(const struct dpk_op *op, const struct dpk_shape in[DPK_MAX_IN],
                       const struct dpk_shape wt[DPK_MAX_WT], const struct dpk_shape *out) {
    const double n_out = count(out);
    switch (op->opcode) {
    case DPK_OP_linear: {
        const struct dpk_linear_attrs *a = DPK_ATTRS(linear, op);
        const struct dpk_shape *w = &wt[DPK_WT(linear, w)];
        const double rows = n_out / out->dim[out->rank - 1];
        double each = (a->act != DPK_ACT_NONE) + (a->glu != 0);
        each += (op->wt[DPK_WT(linear, b)] != DPK_NONE) * (a->glu ? 2 : 1);
        each += has(op, DPK_IN(linear, residual)) + has(op, DPK_IN(linear, gate));
        return 2 * rows * count(w) + each * n_out;
    }
    case DPK_OP_conv2d: {
        const struct dpk_shape *w = &wt[DPK_WT(conv2d, w)];
        double each = (DPK_ATTRS(conv2d, op)->act != DPK_ACT_NONE);
        each += op->wt[DPK_WT(conv2d, b)] != DPK_NONE;
        each += has(op, DPK_IN(conv2d, temb)) + has(op, DPK_IN(conv2d, residual));
        return n_out * (2 * count(w) / w->dim[0] + each);
    }
    /* Mean, squared distance (2), scale and shift (4). */
    case DPK_OP_group_norm:
        return n_out * (7 + (DPK_ATTRS(group_norm, op)->act != DPK_ACT_NONE));
    case DPK_OP_layer_norm:
        return n_out * (7 + 2 * has(op, DPK_IN(layer_norm, mod)));
    case DPK_OP_attention: {
        const struct dpk_attention_attrs *a = DPK_ATTRS(attention, op);
        const double pairs = attention_pairs(tokens(&in[0]), tokens(&in[1]), a->causal);
        /* Two products; maximum, subtraction, exponential, sum, bias. */
        return in[0].dim[0] * (double)a->heads * pairs * (4.0 * a->head_dim + 5);
    }
    case DPK_OP_sinusoid:
        return n_out * 2;
    case DPK_OP_outer_add:
        return n_out * (1 + (DPK_ATTRS(outer_add, op)->act != DPK_ACT_NONE));
    case DPK_OP_embedding:
        return op->wt[DPK_WT(embedding, pos)] != DPK_NONE ? n_out : 0;
    case DPK_OP_slice:
        return n_out * 4;
    case DPK_OP_add:
        return n_out;
    case DPK_OP_pos_embed_2d:
        return n_out * 3;
    default:
        return 0; /* moves data only */
    }
}

/* Elements of input i that are read; each counts once, however often a kernel reads it. */
static double in_elements(const struct dpk_op *op, const struct dpk_shape in[DPK_MAX_IN],
                          const struct dpk_shape *out, size_t i) {
    const double all = count(&in[i]);
    switch (op->opcode) {
    case DPK_OP_linear:
        if (i == DPK_IN(linear, gate)) return (double)in[i].dim[0] * out->dim[out->rank - 1];
        return all;
    case DPK_OP_conv2d:
        return i == DPK_IN(conv2d, like) ? 0 : all;
    case DPK_OP_layer_norm:
        if (i == DPK_IN(layer_norm, mod)) return 2.0 * in[i].dim[0] * out->dim[out->rank - 1];
        return all;
    case DPK_OP_attention: {
        const struct dpk_attention_attrs *a = DPK_ATTRS(attention, op);
        if (i > DPK_IN(attention, v)) return all;
        return in[i].dim[0] * tokens(&in[i]) * a->heads * a->head_dim;
    }
    case DPK_OP_eos_pool:
        return i == DPK_IN(eos_pool, x) ? count(out) : all;
    case DPK_OP_select:
        return i == DPK_IN(select, x) ? count(out) : all;
    case DPK_OP_slice:
        return count(out);
    case DPK_OP_relative_bias:
        return 0; /* only its shape */
    default:
        return all;
    }
}

struct dpk_cost dpk_op_cost(const struct dpk_op *op, const struct dpk_shape in[DPK_MAX_IN],
                            const struct dpk_shape wt[DPK_MAX_WT], const struct dpk_shape *out,
                            int act_bytes, const uint64_t wt_bytes[DPK_MAX_WT]) {
    const struct dpk_op_info *info = dpk_op_info_get(op->opcode);
    struct dpk_cost cost = {0, 0};
    if (!info) return cost;
    cost.flops = op_flops(op, in, wt, out);
    cost.bytes = count(out) * act_bytes;
    for (size_t i = 0; i < (size_t)info->n_in; i++) {
        if (!has(op, i)) continue;
        const int type = info->in[i].type;
        const int size = type == DPK_VALUE_F32 || type == DPK_VALUE_I32 ? 4 : act_bytes;
        cost.bytes += size * in_elements(op, in, out, i);
    }
    for (size_t i = 0; i < (size_t)info->n_wt; i++) {
        if (op->wt[i] == DPK_NONE) continue;
        double share = 1; /* of the weight that is read: an embedding reads a row per id at most */
        if (op->opcode == DPK_OP_embedding) {
            const double rows = i == DPK_WT(embedding, table) ? count(&in[0]) : in[0].dim[1];
            if (rows < wt[i].dim[0]) share = rows / wt[i].dim[0];
        }
        cost.bytes += share * (double)wt_bytes[i];
    }
    return cost;
}
