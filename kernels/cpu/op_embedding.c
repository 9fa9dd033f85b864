/* y[b, l] = table[ids[b, l]] + pos[l]: rows of a table in any float type. Bound by memory, and
 * short: scalar code. */
#include "ops_cpu.h"
#include "scalar.h"

#include "../../formats/fail.h"

const uint32_t dpk_cpu_in_place_embedding = 0;

size_t dpk_cpu_scratch_embedding(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    (void)cpu, (void)call;
    return 0;
}

static void embed_task(void *arg, int row, int worker) {
    const struct dpk_call *call = arg;
    const struct dpk_tensor *ids = &call->in[DPK_IN(embedding, ids)];
    const struct dpk_weight *table = &call->wt[DPK_WT(embedding, table)];
    const struct dpk_weight *pos = &call->wt[DPK_WT(embedding, pos)];
    size_t n = (size_t)table->shape.dim[1], l = (size_t)(row % ids->shape.dim[ids->shape.rank - 1]);
    size_t from = (size_t)((const int32_t *)ids->data)[row] * n, to = (size_t)row * n;
    bool with_pos = pos->shape.rank > 0;
    (void)worker;
    for (size_t c = 0; c < n; c++) {
        float v = dpk_elem_get(table->data, table->dtype, from + c);
        if (with_pos) v += dpk_elem_get(pos->data, pos->dtype, l * n + c);
        dpk_elem_put(call->out.data, call->out.dtype, to + c, v);
    }
}

int dpk_cpu_run_embedding(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *ids = &call->in[DPK_IN(embedding, ids)];
    int32_t rows = call->wt[DPK_WT(embedding, table)].shape.dim[0];
    int64_t n = dpk_shape_count(&ids->shape);
    const int32_t *id = ids->data;
    struct dpk_call copy = *call;
    int rc = DPK_OK;
    for (int64_t i = 0; i < n; i++) {
        if (id[i] < 0 || id[i] >= rows) {
            DPK_FAIL(err, DPK_EARG, "embedding: id %d, want 0 to %d", id[i], rows - 1);
        }
    }
    DPK_TRY(dpk_run_tasks(cpu, n, embed_task, &copy, err));
done:
    return rc;
}
