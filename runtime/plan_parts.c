/* Which operators of a stage run together, a few rows at a time. */
#include "walk.h"

enum {
    STREAM_BYTES = 64 << 20, /* maps worth it: what they take as a whole */
    WINDOW_BYTES = 8 << 20,  /* usual size of a window: in the outer caches */
};

static uint64_t row_bytes(const struct dpk_plan_value *v) {
    return v->bytes / (uint64_t)v->shape.dim[0] / (uint64_t)v->shape.dim[1];
}

static bool can_part(const struct dpk_plan *plan, const struct dpk_call *call) {
    const struct dpk_backend *be = plan->backend;
    const struct dpk_rows rows = {0, DPK_ROWS_STEP, false};
    size_t bytes;
    if (!be->run_rows || plan->whole) return false;
    if (call->out.shape.rank != 4 || call->out.shape.dim[1] <= DPK_ROWS_STEP) return false;
    for (int k = 0; k < DPK_MAX_IN; k++) {
        const struct dpk_shape *in = &call->in[k].shape;
        if (call->in[k].rows8 || (in->rank == 4 && in->dim[0] != call->out.shape.dim[0]))
            return false;
    }
    return be->rows_scratch(be, call, &rows, &bytes);
}

/* What only operators of the part read is streamed. */
static void find_streams(const struct dpk_plan_stage *s, struct dpk_plan_part *part) {
    part->streamed = part->measured = 0;
    part->tallest = 1;
    for (uint32_t i = 0; i < part->n_ops; i++) {
        uint32_t op = part->first + i, reader = s->reader[s->program->n_inputs + op];
        int32_t h = s->calls[op].out.shape.dim[1];
        if (reader < part->first + part->n_ops) part->streamed |= 1u << i;
        if (s->calls[op].op->opcode == DPK_OP_group_norm) part->measured |= 1u << i;
        if (h > part->tallest) part->tallest = h;
    }
}

/* Some map that is read in another part can't be made again and again. */
static bool is_sound(const struct dpk_plan_stage *s, const struct dpk_plan_part *part) {
    for (uint32_t i = 0; i < part->n_ops; i++) {
        uint32_t others = dpk_walk_ancestors(s, part, i) & ~(1u << i);
        if (part->measured >> i & 1 && others & ~part->streamed) return false;
    }
    return true;
}

/* Rows at a time: such that windows of the widest map have their usual size. */
static int32_t usual_rows(const struct dpk_plan_stage *s, const struct dpk_plan_part *part) {
    int32_t least = part->tallest;
    for (uint32_t i = 0; i < part->n_ops; i++) {
        const struct dpk_plan_value *v = &s->values[s->program->n_inputs + part->first + i];
        uint64_t rows = WINDOW_BYTES / row_bytes(v) * (uint64_t)part->tallest;
        rows /= (uint64_t)v->shape.dim[1];
        if (rows < (uint64_t)least) least = (int32_t)rows;
    }
    least = least / DPK_ROWS_STEP * DPK_ROWS_STEP;
    return least < DPK_ROWS_STEP ? DPK_ROWS_STEP : least;
}

/* Operators from `first` on that can go row by row with nothing made twice: up to the next group
 * norm of what they make. With rows 0, and alone, the operator that cannot. */
static struct dpk_plan_part next_part(const struct dpk_plan *plan, const struct dpk_plan_stage *s,
                                      uint32_t first) {
    struct dpk_plan_part part = {.first = first, .n_ops = 1};
    if (!can_part(plan, &s->calls[first])) return part;
    while (first + part.n_ops < s->program->n_ops && part.n_ops < DPK_PART_MAX) {
        const struct dpk_call *call = &s->calls[first + part.n_ops];
        if (!can_part(plan, call)) break;
        if (call->out.shape.dim[0] != s->calls[first].out.shape.dim[0]) break;
        part.n_ops++;
        bool reads = dpk_walk_ancestors(s, &part, part.n_ops - 1) != 1u << (part.n_ops - 1);
        if (call->op->opcode != DPK_OP_group_norm || !reads) continue;
        part.n_ops--;
        break;
    }
    find_streams(s, &part);
    part.rows = usual_rows(s, &part);
    return part;
}

static bool is_worthwhile(const struct dpk_plan_stage *s, const struct dpk_plan_part *part) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < part->n_ops; i++)
        if (part->streamed >> i & 1)
            bytes += s->values[s->program->n_inputs + part->first + i].bytes;
    return bytes >= STREAM_BYTES && part->rows < part->tallest;
}

void dpk_plan_cut(const struct dpk_plan *plan, struct dpk_plan_stage *stage) {
    stage->n_parts = 0;
    for (uint32_t i = 0; i < stage->program->n_ops;) {
        struct dpk_plan_part part = next_part(plan, stage, i);
        if (!is_worthwhile(stage, &part)) part = (struct dpk_plan_part){.first = i, .n_ops = 1};
        stage->parts[stage->n_parts++] = part;
        i += part.n_ops;
    }
}

/* n parts from number `at` on become this one. */
static void replace(struct dpk_plan_stage *s, uint32_t at, uint32_t n, struct dpk_plan_part by) {
    s->parts[at] = by;
    s->n_parts -= n - 1;
    for (uint32_t i = at + 1; i < s->n_parts; i++) s->parts[i] = s->parts[i + n - 1];
}

bool dpk_plan_complete(const struct dpk_plan *plan, struct dpk_plan_stage *stage, uint32_t *n) {
    const uint32_t op = stage->parts[*n].first;
    if (!can_part(plan, &stage->calls[op])) return false;
    if (stage->parts[*n].n_ops > 1) return true;
    struct dpk_plan_part part = {0};
    while (part.first + part.n_ops <= op) part = next_part(plan, stage, part.first + part.n_ops);
    while (stage->parts[*n].first > part.first) --*n;
    uint32_t end = *n;
    while (end < stage->n_parts && stage->parts[end].first < part.first + part.n_ops) end++;
    replace(stage, *n, end - *n, part);
    return true;
}

bool dpk_plan_join(const struct dpk_plan *plan, struct dpk_plan_stage *stage, uint32_t n) {
    if (n + 1 >= stage->n_parts) return false;
    const struct dpk_plan_part *a = &stage->parts[n], *b = a + 1;
    struct dpk_plan_part part = {.first = a->first, .n_ops = a->n_ops + b->n_ops};
    int32_t images = stage->calls[a->first].out.shape.dim[0];
    if (part.n_ops > DPK_PART_MAX) return false;
    for (uint32_t i = part.first; i < part.first + part.n_ops; i++)
        if (!can_part(plan, &stage->calls[i]) || stage->calls[i].out.shape.dim[0] != images)
            return false;
    find_streams(stage, &part);
    if (!part.streamed || !is_sound(stage, &part)) return false;
    part.rows = usual_rows(stage, &part);
    replace(stage, n, 2, part);
    return true;
}

double dpk_plan_extra(const struct dpk_plan_stage *stage, const struct dpk_plan_part *part) {
    double flops = 0;
    for (uint32_t i = 0; i < part->n_ops && part->rows; i++) {
        uint32_t others = dpk_walk_ancestors(stage, part, i) & ~(1u << i);
        for (uint32_t j = 0; j < i && part->measured >> i & 1; j++)
            if (others >> j & 1) flops += stage->costs[part->first + j].flops;
    }
    return flops;
}
