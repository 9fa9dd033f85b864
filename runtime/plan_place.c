/* Lifetimes: which blocks there are, from when to when. Their offsets: plan_blocks.c. */
#include "arena_guard.h"
#include "walk.h"

#include "../formats/fail.h"

#include <stdlib.h>

/* What is needed while a stage's blocks are made. */
struct placing {
    struct dpk_plan *plan;
    struct dpk_plan_stage *stage;
    uint32_t *until; /* [n_ops] the end of the operator's part */
};

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
    bytes = (bytes + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN + DPK_RED_ZONE;
    *index = plan->n_blocks;
    plan->blocks[plan->n_blocks++] = (struct dpk_plan_block){bytes, 0, first, last, DPK_NONE, 0, 0};
done:
    return rc;
}

/* The time of a value's last reader within its stage. */
static uint32_t find_last(const struct placing *g, uint32_t v) {
    const struct dpk_plan_stage *s = g->stage;
    uint32_t reader = s->reader[v], n_inputs = s->program->n_inputs;
    if (reader == s->program->n_ops) return s->end;
    if (reader != DPK_NONE) return g->until[reader];
    return v < n_inputs ? s->begin : g->until[v - n_inputs];
}

/* ---- Single operators ---------------------------------------------------------------------- */

static int count_uses(const struct dpk_op *op, uint32_t v) {
    int uses = 0;
    for (int k = 0; k < DPK_MAX_IN; k++) uses += op->in[k] == v;
    return uses;
}

/* The operand of operator i whose bytes its result may take over, or DPK_NONE. */
static uint32_t dying_operand(const struct placing *g, uint32_t i) {
    const struct dpk_plan_stage *s = g->stage;
    const struct dpk_op *op = &s->program->ops[i];
    const struct dpk_plan_value *out = &s->values[s->program->n_inputs + i];
    if (s->calls[i].out.rows8) return DPK_NONE;
    for (int k = 0; k < DPK_MAX_IN; k++) {
        uint32_t v = op->in[k];
        if (v == DPK_NONE || find_last(g, v) != g->until[i]) continue;
        if (s->values[v].from_stage || s->values[v].bytes != out->bytes) continue;
        if (count_uses(op, v) == 1 && g->plan->backend->in_place(g->plan->backend, &s->calls[i], k))
            return v;
    }
    return DPK_NONE;
}

static int place_operator(const struct placing *g, uint32_t i, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_plan *plan = g->plan;
    struct dpk_plan_stage *s = g->stage;
    uint32_t now = g->until[i], v = s->program->n_inputs + i;
    uint32_t last = find_last(g, v), heir = dying_operand(g, i);
    if (heir != DPK_NONE) {
        s->values[v].block = s->values[heir].block;
        plan->blocks[s->values[v].block].last = last;
    } else {
        DPK_TRY(add_block(plan, s->values[v].bytes, now, last, &s->values[v].block, err));
    }
    size_t scratch = plan->backend->scratch_bytes(plan->backend, &s->calls[i]);
    s->scratch[i] = DPK_NONE;
    s->scratch_bytes[i] = scratch;
    if (scratch) DPK_TRY(add_block(plan, scratch, now, now, &s->scratch[i], err));
done:
    return rc;
}

/* ---- Parts that go row by row -------------------------------------------------------------- */

static uint64_t row_bytes(const struct dpk_plan_value *v) {
    return v->bytes / (uint64_t)v->shape.dim[0] / (uint64_t)v->shape.dim[1];
}

/* How far behind the begin of the part's result the rows of operand v, which dies here, must lie,
 * so that none is overwritten that is still read; -1: the result has no rows behind those of v.
 * exact: the operator that makes the result reads v in the place where it writes, and no other may
 * read there then. */
static int64_t find_delta(const struct dpk_plan_stage *s, const struct dpk_plan_part *part,
                          uint32_t result, uint32_t v, bool exact) {
    struct dpk_walk walk;
    struct dpk_walk_step step;
    int64_t need = 0, n_images = s->values[v].shape.dim[0], h = s->values[v].shape.dim[1];
    const struct dpk_plan_value *out = &s->values[s->program->n_inputs + part->first + result];
    int64_t in_row = (int64_t)row_bytes(&s->values[v]), out_row = (int64_t)row_bytes(out);
    dpk_walk_begin(&walk, s, part);
    walk.n_images = 1; /* the others go alike */
    while (dpk_walk_next(&walk, &step)) {
        if (step.op != result || step.rows.measure) continue;
        int64_t live = h;
        for (uint32_t j = 0; j < part->n_ops; j++) {
            const struct dpk_call *call = &s->calls[part->first + j];
            int64_t from = j == result ? step.rows.first : walk.done[j];
            if ((j == result && exact) || from == call->out.shape.dim[1]) continue;
            for (int k = 0; k < DPK_MAX_IN; k++) {
                if (call->op->in[k] != v) continue;
                int64_t first = dpk_walk_from(call, k, from);
                if (first < live) live = first;
            }
        }
        int64_t beyond = (n_images - 1) * (out->shape.dim[1] * out_row - h * in_row);
        int64_t delta = step.rows.end * out_row - live * in_row + (beyond > 0 ? beyond : 0);
        if (delta > need) need = delta;
    }
    return need;
}

/* Give the result of a part its block: if it can, over an operand that dies here. */
static int place_result(const struct placing *g, const struct dpk_plan_part *part, uint32_t result,
                        dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_plan *plan = g->plan;
    struct dpk_plan_stage *s = g->stage;
    const uint32_t begin = s->program->n_inputs + part->first, v = begin + result;
    const uint32_t first = s->begin + 1 + part->first, now = g->until[part->first];
    struct dpk_plan_value *out = &s->values[v];
    uint32_t best = DPK_NONE;
    int64_t best_delta = INT64_MAX;
    for (uint32_t i = 0; i < part->n_ops; i++) {
        const struct dpk_call *call = &s->calls[part->first + i];
        for (int k = 0; k < DPK_MAX_IN; k++) {
            uint32_t u = call->op->in[k];
            if (u >= begin || call->in[k].shape.rank != 4 || find_last(g, u) != now) continue;
            if (s->values[u].from_stage || plan->blocks[s->values[u].block].under != DPK_NONE)
                continue;
            bool exact = i == result && row_bytes(&s->values[u]) == row_bytes(out) &&
                         count_uses(call->op, u) == 1 &&
                         plan->backend->in_place(plan->backend, call, k) &&
                         find_delta(s, part, result, u, true) == 0;
            int64_t delta = exact ? 0 : find_delta(s, part, result, u, false);
            /* Of equals the largest. */
            if (delta > best_delta ||
                (delta == best_delta && s->values[u].bytes <= s->values[best].bytes))
                continue;
            best = u, best_delta = delta;
        }
    }
    uint32_t last = find_last(g, v);
    DPK_TRY(add_block(plan, out->bytes, first, last, &out->block, err));
    if (best == DPK_NONE || (uint64_t)best_delta >= out->bytes) goto done;
    struct dpk_plan_block *under = &plan->blocks[s->values[best].block];
    under->under = out->block;
    under->delta = ((uint64_t)best_delta + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
done:
    return rc;
}

/* Windows and scratch. */
static int place_windows(const struct placing *g, const struct dpk_plan_part *part,
                         dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_plan *plan = g->plan;
    struct dpk_plan_stage *s = g->stage;
    const uint32_t first = s->begin + 1 + part->first, now = g->until[part->first];
    int64_t rows[DPK_PART_MAX] = {0}, asked[DPK_PART_MAX] = {0};
    uint64_t most = 0;
    struct dpk_walk walk;
    struct dpk_walk_step step;
    for (uint32_t i = 0; i < part->n_ops; i++) s->scratch_bytes[part->first + i] = 0;
    dpk_walk_begin(&walk, s, part);
    walk.n_images = 1;
    while (dpk_walk_next(&walk, &step)) {
        uint32_t op = part->first + step.op;
        int64_t n = step.rows.end - step.rows.first;
        size_t bytes;
        if (step.kept + n > rows[step.op]) rows[step.op] = step.kept + n;
        if (part->measured >> step.op & 1 || asked[step.op] == n) continue;
        asked[step.op] = n;
        if (!plan->backend->rows_scratch(plan->backend, &s->calls[op], &step.rows, &bytes))
            DPK_FAIL(err, DPK_EBACKEND, "%s: an operator changed its mind", s->program->name);
        if (bytes > s->scratch_bytes[op]) s->scratch_bytes[op] = bytes;
        if (bytes > most) most = bytes;
    }
    uint32_t shared = DPK_NONE;
    if (most) DPK_TRY(add_block(plan, most, first, now, &shared, err));
    for (uint32_t i = 0; i < part->n_ops; i++) {
        uint32_t op = part->first + i;
        struct dpk_plan_value *v = &s->values[s->program->n_inputs + op];
        s->scratch[op] = shared;
        if (part->streamed >> i & 1)
            DPK_TRY(add_block(plan, row_bytes(v) * (uint64_t)rows[i], first, now, &v->block, err));
        if (!(part->measured >> i & 1)) continue;
        s->scratch_bytes[op] = plan->backend->scratch_bytes(plan->backend, &s->calls[op]);
        DPK_TRY(add_block(plan, s->scratch_bytes[op], first, now, &s->scratch[op], err));
    }
done:
    return rc;
}

/* ---- Stages -------------------------------------------------------------------------------- */

static int place_stage(struct placing *g, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_plan *plan = g->plan;
    struct dpk_plan_stage *s = g->stage;
    for (uint32_t n = 0; n < s->n_parts; n++)
        for (uint32_t i = 0; i < s->parts[n].n_ops; i++)
            g->until[s->parts[n].first + i] = s->begin + s->parts[n].first + s->parts[n].n_ops;
    for (uint32_t v = 0; v < s->program->n_inputs; v++) {
        struct dpk_plan_value *value = &s->values[v];
        if (value->from_stage) { /* as long as this stage may run again */
            struct dpk_plan_block *b = &plan->blocks[value->block];
            if (b->last < s->end) b->last = s->end;
            b->kept = true;
        } else {
            DPK_TRY(add_block(plan, value->bytes, s->begin, find_last(g, v), &value->block, err));
        }
    }
    for (uint32_t n = 0; n < s->n_parts; n++) {
        const struct dpk_plan_part *part = &s->parts[n];
        if (!part->rows) {
            DPK_TRY(place_operator(g, part->first, err));
            continue;
        }
        for (uint32_t i = 0; i < part->n_ops; i++)
            if (!(part->streamed >> i & 1)) DPK_TRY(place_result(g, part, i, err));
        DPK_TRY(place_windows(g, part, err));
    }
done:
    return rc;
}

/* Inputs from an earlier stage lie where that made them. */
static void link_stage(struct dpk_plan *plan, uint32_t stage) {
    struct dpk_plan_stage *s = &plan->stages[stage];
    const struct dpk_plan_stage *from = s->from < 0 ? NULL : &plan->stages[s->from];
    for (uint32_t v = 0; v < s->program->n_inputs; v++)
        if (s->values[v].from_stage) s->values[v].block = from->values[s->values[v].source].block;
}

/* Bytes alive at each time, by a sweep over the ends of lifetimes. */
static int count_live(struct dpk_plan *plan, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t n_times = plan->stages[plan->n_stages - 1].end + 2;
    int64_t *change = calloc(n_times, sizeof *change);
    if (!plan->live) plan->live = malloc(n_times * sizeof *plan->live);
    if (!change || !plan->live) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u times", n_times);
    for (uint32_t i = 0; i < plan->n_blocks; i++) {
        const struct dpk_plan_block *b = &plan->blocks[i];
        change[b->first] += (int64_t)b->bytes;
        change[b->last + 1] -= (int64_t)b->bytes;
        if (b->under == DPK_NONE) continue; /* what is under the result counts once */
        const struct dpk_plan_block *over = &plan->blocks[b->under];
        uint64_t begin = b->delta < over->bytes ? b->delta : over->bytes;
        uint64_t end = b->delta + b->bytes < over->bytes ? b->delta + b->bytes : over->bytes;
        change[over->first] -= (int64_t)(end - begin);
        change[b->last + 1] += (int64_t)(end - begin);
    }
    int64_t live = 0;
    plan->live_bytes = 0;
    for (uint32_t t = 0; t < n_times; t++) {
        plan->live[t] = (uint64_t)(live += change[t]);
        if (plan->live[t] > plan->live_bytes) plan->live_bytes = plan->live[t];
    }
done:
    free(change);
    return rc;
}

int dpk_plan_find_lives(struct dpk_plan *plan, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t n_ops = 0;
    struct placing g = {.plan = plan};
    for (uint32_t i = 0; i < plan->n_stages; i++)
        if (plan->stages[i].program->n_ops > n_ops) n_ops = plan->stages[i].program->n_ops;
    g.until = malloc((n_ops + 1) * sizeof *g.until);
    if (!g.until) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u operators", n_ops);
    plan->n_blocks = 0;
    for (uint32_t i = 0; i < plan->n_stages; i++) {
        g.stage = &plan->stages[i];
        link_stage(plan, i);
        DPK_TRY(place_stage(&g, err));
    }
    DPK_TRY(count_live(plan, err));
done:
    free(g.until);
    return rc;
}

int dpk_plan_place(struct dpk_plan *plan, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(dpk_plan_find_lives(plan, err));
    DPK_TRY(dpk_plan_place_blocks(plan->blocks, plan->n_blocks, &plan->arena_bytes, err));
done:
    return rc;
}
