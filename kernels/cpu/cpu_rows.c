/* Rows of an operator's result (contract: dpk_backend.run_rows). Convolutions and group norms know
 * about rows; of operators on pixels, a few rows of a map are a map. */
#include "ops_cpu.h"

/* Every operand is a map of the result's size, or has a row for each image; a table is for each row
 * of the map the same. */
static bool is_pixelwise(const struct dpk_call *call) {
    uint32_t opcode = call->op->opcode;
    if (opcode != DPK_OP_linear && opcode != DPK_OP_slice && opcode != DPK_OP_add) return false;
    if (opcode == DPK_OP_add && call->op->wt[DPK_WT(add, table)] != DPK_NONE) {
        const int64_t row = (int64_t)call->out.shape.dim[2] * call->out.shape.dim[3];
        if (call->wt[DPK_WT(add, table)].shape.dim[0] > row) return false;
    }
    for (int k = 0; k < DPK_MAX_IN; k++) {
        const struct dpk_shape *s = &call->in[k].shape;
        if (s->rank == 0 || (s->rank == 2 && opcode == DPK_OP_linear)) continue;
        if (s->rank != 4) return false;
        for (int i = 0; i < 3; i++) {
            if (s->dim[i] != call->out.shape.dim[i]) return false;
        }
    }
    return true;
}

/* The rows of a map as a map of one image; of an operand with a row for each image, its own. */
static void cut_tensor(struct dpk_tensor *t, const struct dpk_rows *rows, int64_t image) {
    size_t bytes = t->dtype == DPK_BF16 ? 2 : 4;
    if (t->shape.rank == 4) {
        bytes *= (size_t)t->shape.dim[2] * (size_t)t->shape.dim[3] * (size_t)rows->first;
        t->shape.dim[1] = (int32_t)(rows->end - rows->first);
    } else if (t->shape.rank == 2 && t->shape.dim[0] > 1) {
        bytes *= (size_t)t->shape.dim[1] * (size_t)image;
    } else {
        return;
    }
    t->shape.dim[0] = 1;
    if (t->data) t->data = (char *)t->data + bytes;
}

static struct dpk_call cut_call(const struct dpk_call *call, const struct dpk_rows *rows) {
    struct dpk_call part = *call;
    int64_t image = rows->first / call->out.shape.dim[1];
    for (int k = 0; k < DPK_MAX_IN; k++) cut_tensor(&part.in[k], rows, image);
    cut_tensor(&part.out, rows, image);
    return part;
}

bool dpk_cpu_rows_scratch(const struct dpk_backend *be, const struct dpk_call *call,
                          const struct dpk_rows *rows, size_t *bytes) {
    const struct dpk_cpu *cpu = (const struct dpk_cpu *)be;
    *bytes = 0;
    if (call->out.shape.rank != 4 || call->out.rows8) return false;
    if (call->op->opcode == DPK_OP_conv2d) {
        *bytes = dpk_cpu_rows_scratch_conv2d(cpu, call, rows);
        return true;
    }
    if (call->op->opcode == DPK_OP_group_norm) return true;
    if (!is_pixelwise(call)) return false;
    struct dpk_call part = cut_call(call, rows);
    *bytes = be->scratch_bytes(be, &part);
    return true;
}

int dpk_cpu_run_rows(struct dpk_backend *be, const struct dpk_call *call,
                     const struct dpk_rows *rows, dpk_error *err) {
    struct dpk_cpu *cpu = (struct dpk_cpu *)be;
    if (call->op->opcode == DPK_OP_conv2d) return dpk_cpu_rows_conv2d(cpu, call, rows, err);
    if (call->op->opcode == DPK_OP_group_norm) return dpk_cpu_rows_group_norm(cpu, call, rows, err);
    struct dpk_call part = cut_call(call, rows);
    return be->run(be, &part, err);
}
