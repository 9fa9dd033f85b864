/* Rows of operators in turn (method: walk.h). */
#include "walk.h"

/* ---- Which rows depend on which ------------------------------------------------------------ */

static bool is_map(const struct dpk_call *call, int k) {
    return call->op->in[k] != DPK_NONE && call->in[k].shape.rank == 4 &&
           !(call->op->opcode == DPK_OP_conv2d && k == DPK_IN(conv2d, like));
}

/* Height of a convolution's input, enlarged if it is. */
static int64_t enlarged(const struct dpk_call *call) {
    const struct dpk_tensor *like = &call->in[DPK_IN(conv2d, like)];
    int64_t h = call->in[DPK_IN(conv2d, x)].shape.dim[1];
    if (!DPK_ATTRS(conv2d, call->op)->upsample) return h;
    return like->shape.rank ? like->shape.dim[1] : 2 * h;
}

static int64_t clamp(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : v; }

int64_t dpk_walk_from(const struct dpk_call *call, int k, int64_t row) {
    if (!is_map(call, k)) return call->in[k].shape.dim[1];
    if (call->op->opcode != DPK_OP_conv2d || k != DPK_IN(conv2d, x)) return row;
    const struct dpk_conv2d_attrs *a = DPK_ATTRS(conv2d, call->op);
    int64_t h = call->in[k].shape.dim[1], up = enlarged(call);
    return clamp(row * a->stride - a->pad_top, 0, up) * h / up;
}

int64_t dpk_walk_until(const struct dpk_call *call, int k, int64_t row) {
    if (!is_map(call, k) || row == 0) return 0;
    if (call->op->opcode != DPK_OP_conv2d || k != DPK_IN(conv2d, x)) return row;
    const struct dpk_conv2d_attrs *a = DPK_ATTRS(conv2d, call->op);
    int64_t h = call->in[k].shape.dim[1], up = enlarged(call);
    int64_t taps = call->wt[DPK_WT(conv2d, w)].shape.dim[1];
    int64_t end = clamp((row - 1) * a->stride - a->pad_top + taps, 0, up);
    return end ? (end - 1) * h / up + 1 : 0;
}

uint32_t dpk_walk_maker(const struct dpk_plan_stage *stage, const struct dpk_plan_part *part,
                        uint32_t i, int k) {
    const struct dpk_call *call = &stage->calls[part->first + i];
    if (!is_map(call, k)) return DPK_NONE;
    uint32_t begin = stage->program->n_inputs + part->first, v = call->op->in[k];
    return v >= begin && v < begin + part->n_ops ? v - begin : DPK_NONE;
}

uint32_t dpk_walk_ancestors(const struct dpk_plan_stage *stage, const struct dpk_plan_part *part,
                            uint32_t i) {
    uint32_t all = 1u << i;
    for (uint32_t j = i + 1; j-- > 0;)
        for (int k = 0; k < DPK_MAX_IN && all >> j & 1; k++) {
            uint32_t maker = dpk_walk_maker(stage, part, j, k);
            if (maker != DPK_NONE) all |= 1u << maker;
        }
    return all;
}

/* ---- The walk ------------------------------------------------------------------------------ */

static const struct dpk_call *call_of(const struct dpk_walk *w, uint32_t i) {
    return &w->stage->calls[w->part->first + i];
}

static int64_t height(const struct dpk_walk *w, uint32_t i) {
    return call_of(w, i)->out.shape.dim[1];
}

/* Rows of its own map that operator i makes at a time: in proportion to the tallest. */
static int64_t portion(const struct dpk_walk *w, uint32_t i) {
    int64_t rows = w->part->rows * height(w, i) / w->part->tallest;
    return rows < DPK_ROWS_STEP ? DPK_ROWS_STEP : rows / DPK_ROWS_STEP * DPK_ROWS_STEP;
}

/* Begin the pass that measures the first group norm from `from` on, or the last pass. */
static void begin_pass(struct dpk_walk *w, uint32_t from) {
    const struct dpk_plan_part *part = w->part;
    w->target = from;
    while (w->target < part->n_ops && !(part->measured >> w->target & 1)) w->target++;
    bool last = w->target == part->n_ops;
    w->active = last ? (uint32_t)(((uint64_t)1 << part->n_ops) - 1)
                     : dpk_walk_ancestors(w->stage, part, w->target);
    w->turn = 0;
    for (uint32_t i = 0; i < part->n_ops; i++) w->done[i] = w->start[i] = 0;
}

void dpk_walk_begin(struct dpk_walk *walk, const struct dpk_plan_stage *stage,
                    const struct dpk_plan_part *part) {
    *walk = (struct dpk_walk){.stage = stage, .part = part};
    walk->n_images = stage->calls[part->first].out.shape.dim[0];
    begin_pass(walk, 0);
}

/* Can operator i have made its rows before `end`, with what there is? */
static bool can_reach(const struct dpk_walk *w, uint32_t i, int64_t end) {
    for (int k = 0; k < DPK_MAX_IN; k++) {
        uint32_t maker = dpk_walk_maker(w->stage, w->part, i, k);
        if (maker != DPK_NONE && dpk_walk_until(call_of(w, i), k, end) > w->done[maker])
            return false;
    }
    return true;
}

/* The end of the rows that operator i makes now. */
static int64_t find_end(const struct dpk_walk *w, uint32_t i) {
    int64_t h = height(w, i), end = w->done[i] + portion(w, i);
    if (end >= h) {
        if (can_reach(w, i, h)) return h;
        end = (h - 1) / DPK_ROWS_STEP * DPK_ROWS_STEP;
    }
    while (end > w->done[i] && !can_reach(w, i, end)) end -= DPK_ROWS_STEP;
    return end;
}

/* First row of stream i that any operator will still read. */
static int64_t find_start(const struct dpk_walk *w, uint32_t i) {
    int64_t start = w->done[i];
    for (uint32_t j = i + 1; j < w->part->n_ops; j++)
        for (int k = 0; k < DPK_MAX_IN && w->active >> j & 1; k++) {
            if (dpk_walk_maker(w->stage, w->part, j, k) != i || w->done[j] == height(w, j))
                continue;
            int64_t from = dpk_walk_from(call_of(w, j), k, w->done[j]);
            if (from < start) start = from;
        }
    return start;
}

bool dpk_walk_next(struct dpk_walk *w, struct dpk_walk_step *step) {
    const struct dpk_plan_part *part = w->part;
    for (;;) {
        if (w->turn == part->n_ops) {
            bool ready = true;
            for (uint32_t i = 0; i < part->n_ops; i++)
                ready &= !(w->active >> i & 1) || w->done[i] == height(w, i);
            w->turn = 0;
            if (ready && w->target < part->n_ops) {
                begin_pass(w, w->target + 1);
            } else if (ready) {
                if (++w->image == w->n_images) return false;
                begin_pass(w, 0);
            }
        }
        uint32_t i = w->turn++;
        if (!(w->active >> i & 1) || w->done[i] == height(w, i)) continue;
        int64_t end = find_end(w, i), row0 = w->image * height(w, i);
        if (end == w->done[i]) continue;
        *step = (struct dpk_walk_step){.op = i,
                                       .rows = {row0 + w->done[i], row0 + end, i == w->target}};
        if (part->streamed >> i & 1 && !step->rows.measure) {
            step->start = find_start(w, i);
            step->kept = w->done[i] - step->start;
            step->moved = step->start - w->start[i];
            w->start[i] = step->start;
        }
        w->done[i] = end;
        return true;
    }
}
