/* Lifetimes, and offsets in the arena: greedy by size, best fit.
 *
 * Blocks are taken from the largest to the smallest, and each goes into the smallest gap between
 * the blocks that live at the same time and are placed already, or behind them all ("Greedy by Size
 * for Offset Calculation": Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net
 * Inference, arXiv 2001.03288). Large blocks set the peak; small ones disappear in the gaps. */
#include "plan.h"

#include "../formats/fail.h"

#include <stdlib.h>

struct entry {
    uint64_t bytes;
    uint32_t first, index;
};

/* Total order, so that the result does not depend on the sorting algorithm. */
static int compare_entries(const void *pa, const void *pb) {
    const struct entry *a = pa, *b = pb;
    if (a->bytes != b->bytes) return a->bytes > b->bytes ? -1 : 1;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* Offset for `block` among the placed blocks order[0..n), which are sorted by offset. */
static uint64_t best_offset(const struct dpk_plan_block *blocks, const uint32_t *order, uint32_t n,
                            const struct dpk_plan_block *block) {
    uint64_t end = 0, best = 0, best_gap = UINT64_MAX;
    for (uint32_t i = 0; i < n; i++) {
        const struct dpk_plan_block *p = &blocks[order[i]];
        if (p->last < block->first || p->first > block->last) continue;
        if (p->offset > end && p->offset - end >= block->bytes && p->offset - end < best_gap) {
            best_gap = p->offset - end;
            best = end;
        }
        if (p->offset + p->bytes > end) end = p->offset + p->bytes;
    }
    return best_gap == UINT64_MAX ? end : best;
}

int dpk_plan_place_blocks(struct dpk_plan_block *blocks, uint32_t n, uint64_t *total,
                          dpk_error *err) {
    int rc = DPK_OK;
    struct entry *entries = malloc((n + 1) * sizeof *entries);
    uint32_t *order = malloc((n + 1) * sizeof *order);
    if (!entries || !order) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u blocks", n);

    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        entries[i] = (struct entry){blocks[i].bytes, blocks[i].first, i};
        if (__builtin_add_overflow(sum, blocks[i].bytes, &sum))
            DPK_FAIL(err, DPK_ENOMEM, "plan: the values' bytes overflow");
    }
    qsort(entries, n, sizeof *entries, compare_entries);

    *total = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct dpk_plan_block *b = &blocks[entries[i].index];
        b->offset = best_offset(blocks, order, i, b);
        uint32_t at = i;
        while (at > 0 && blocks[order[at - 1]].offset > b->offset) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = entries[i].index;
        if (b->offset + b->bytes > *total) *total = b->offset + b->bytes;
    }
done:
    free(entries);
    free(order);
    return rc;
}

/* A new block living from `first` to `last`. */
static int add_block(struct dpk_plan *plan, uint64_t bytes, uint32_t first, uint32_t last,
                     uint32_t *index, dpk_error *err) {
    int rc = DPK_OK;
    if (plan->n_blocks == plan->cap_blocks) {
        uint32_t cap = plan->cap_blocks ? 2 * plan->cap_blocks : 256;
        void *grown = realloc(plan->blocks, cap * sizeof *plan->blocks);
        if (!grown) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u blocks", cap);
        plan->blocks = grown;
        plan->cap_blocks = cap;
    }
    bytes = (bytes + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    *index = plan->n_blocks;
    plan->blocks[plan->n_blocks++] = (struct dpk_plan_block){bytes, 0, first, last};
done:
    return rc;
}

/* last[v]: the time of the last reader of value v within its stage. */
static void find_last_reads(const struct dpk_plan_stage *s, uint32_t *last) {
    const struct dpk_program *p = s->program;
    for (uint32_t v = 0; v < p->n_inputs + p->n_ops; v++)
        last[v] = v < p->n_inputs ? s->begin : s->begin + 1 + (v - p->n_inputs);
    for (uint32_t i = 0; i < p->n_ops; i++)
        for (int k = 0; k < DPK_MAX_IN; k++)
            if (p->ops[i].in[k] != DPK_NONE) last[p->ops[i].in[k]] = s->begin + 1 + i;
    for (uint32_t v = 0; v < p->n_inputs + p->n_ops; v++)
        if (p->values[v].flags & DPK_VALUE_OUTPUT) last[v] = s->end;
}

/* The operand of operator i whose bytes its result may take over, or DPK_NONE. */
static uint32_t dying_operand(const struct dpk_plan *plan, const struct dpk_plan_stage *s,
                              uint32_t i, const uint32_t *last) {
    const struct dpk_op *op = &s->program->ops[i];
    const struct dpk_plan_value *out = &s->values[s->program->n_inputs + i];
    if (s->calls[i].out.rows8) return DPK_NONE;
    for (int k = 0; k < DPK_MAX_IN; k++) {
        uint32_t v = op->in[k];
        if (v == DPK_NONE || last[v] != s->begin + 1 + i) continue;
        if (s->values[v].from_stage || s->values[v].bytes != out->bytes) continue;
        int uses = 0;
        for (int j = 0; j < DPK_MAX_IN; j++) uses += op->in[j] == v;
        if (uses == 1 && plan->backend->in_place(plan->backend, &s->calls[i], k)) return v;
    }
    return DPK_NONE;
}

static int place_stage(struct dpk_plan *plan, struct dpk_plan_stage *s, uint32_t *last,
                       dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_program *p = s->program;
    find_last_reads(s, last);
    for (uint32_t v = 0; v < p->n_inputs; v++) {
        struct dpk_plan_value *value = &s->values[v];
        if (value->from_stage) { /* as long as this stage may run again */
            struct dpk_plan_block *b = &plan->blocks[value->block];
            if (b->last < s->end) b->last = s->end;
        } else {
            DPK_TRY(add_block(plan, value->bytes, s->begin, last[v], &value->block, err));
        }
    }
    for (uint32_t i = 0; i < p->n_ops; i++) {
        uint32_t now = s->begin + 1 + i, v = p->n_inputs + i;
        uint32_t heir = dying_operand(plan, s, i, last);
        if (heir != DPK_NONE) {
            s->values[v].block = s->values[heir].block;
            plan->blocks[s->values[v].block].last = last[v];
        } else {
            DPK_TRY(add_block(plan, s->values[v].bytes, now, last[v], &s->values[v].block, err));
        }
        size_t scratch = plan->backend->scratch_bytes(plan->backend, &s->calls[i]);
        s->scratch[i] = DPK_NONE;
        s->scratch_bytes[i] = scratch;
        if (scratch) DPK_TRY(add_block(plan, scratch, now, now, &s->scratch[i], err));
    }
done:
    return rc;
}

/* Replace the value numbers that dpk_plan_add left in inputs from earlier stages by blocks. */
static void link_stage(struct dpk_plan *plan, uint32_t stage) {
    struct dpk_plan_stage *s = &plan->stages[stage];
    for (uint32_t v = 0; v < s->program->n_inputs; v++)
        if (s->values[v].from_stage)
            s->values[v].block = plan->stages[s->from].values[s->values[v].block].block;
}

/* Most bytes alive at one time, by a sweep over the ends of lifetimes. */
static int count_live(struct dpk_plan *plan, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t n_times = plan->stages[plan->n_stages - 1].end + 2;
    int64_t *change = calloc(n_times, sizeof *change);
    if (!change) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u times", n_times);
    for (uint32_t i = 0; i < plan->n_blocks; i++) {
        change[plan->blocks[i].first] += (int64_t)plan->blocks[i].bytes;
        change[plan->blocks[i].last + 1] -= (int64_t)plan->blocks[i].bytes;
    }
    int64_t live = 0, most = 0;
    for (uint32_t t = 0; t < n_times; t++) {
        live += change[t];
        if (live > most) most = live;
    }
    plan->live_bytes = (uint64_t)most;
done:
    free(change);
    return rc;
}

int dpk_plan_place(struct dpk_plan *plan, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t *last = NULL, n_values = 0;
    for (uint32_t i = 0; i < plan->n_stages; i++) {
        const struct dpk_program *p = plan->stages[i].program;
        if (p->n_inputs + p->n_ops > n_values) n_values = p->n_inputs + p->n_ops;
    }
    last = malloc((n_values + 1) * sizeof *last);
    if (!last) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u values", n_values);
    for (uint32_t i = 0; i < plan->n_stages; i++) {
        link_stage(plan, i);
        DPK_TRY(place_stage(plan, &plan->stages[i], last, err));
    }
    DPK_TRY(dpk_plan_place_blocks(plan->blocks, plan->n_blocks, &plan->arena_bytes, err));
    DPK_TRY(count_live(plan, err));
done:
    free(last);
    return rc;
}
