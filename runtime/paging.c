/* Weights that come and go. Advice only: where the system does not follow it, nothing breaks. */
#include "paging.h"

#include <sys/mman.h>
#include <unistd.h>

/* Whole pages around a tensor, clipped to the mapping. */
static void advise(const struct dpk_file *f, uint32_t tensor, int advice) {
    if (f->flags & DPK_OPEN_IN_MEMORY) return; /* what is dropped would not come back */
    const struct dpk_tensor_record *t = &f->tensors[tensor];
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t map = (uintptr_t)f->map, map_end = map + f->map_bytes;
    uintptr_t begin = (uintptr_t)(f->weights + t->offset) / page * page;
    uintptr_t end = ((uintptr_t)(f->weights + t->offset + t->bytes) + page - 1) / page * page;
    if (begin < map) begin = map;
    if (end > map_end) end = map_end;
    if (begin < end) madvise((void *)begin, end - begin, advice);
}

static bool has_weights(const struct dpk_op *op) {
    for (int k = 0; k < DPK_MAX_WT; k++)
        if (op->wt[k] != DPK_NONE) return true;
    return false;
}

static void advise_op(const struct dpk_file *f, const struct dpk_op *op, int advice) {
    for (int k = 0; k < DPK_MAX_WT; k++) {
        if (op->wt[k] == DPK_NONE) continue;
        const struct dpk_tensor_record *t = &f->tensors[op->wt[k]];
        advise(f, op->wt[k], advice);
        if (t->scale != DPK_NONE) advise(f, t->scale, advice);
        if (t->colsum != DPK_NONE) advise(f, t->colsum, advice);
    }
}

void dpk_paging_ask(const struct dpk_plan *plan, const struct dpk_plan_stage *stage, uint32_t op) {
    if (op >= stage->program->n_ops) return;
    const struct dpk_op *o = &stage->program->ops[op];
    if (o->opcode != DPK_OP_embedding) advise_op(plan->file, o, MADV_WILLNEED);
}

void dpk_paging_drop(const struct dpk_plan *plan, const struct dpk_plan_stage *stage, uint32_t op) {
    const struct dpk_op *ops = stage->program->ops;
    advise_op(plan->file, &ops[op], MADV_DONTNEED);
    if (!has_weights(&ops[op])) return;
    /* Where a page is read the system maps some around it as well: with the first of these weights
     * the last of those before, which lie beside them, have come back. */
    while (op > 0 && !has_weights(&ops[op - 1])) op--;
    if (op > 0) advise_op(plan->file, &ops[op - 1], MADV_DONTNEED);
}
