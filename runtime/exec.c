/* Running the stages of a bound plan. */
#include "exec.h"
#include "arena_guard.h"
#include "paging.h"
#include "walk.h"

#include "../formats/fail.h"

#include <string.h>

static void *value_data(const struct dpk_plan *plan, const struct dpk_plan_value *v) {
    return (uint8_t *)plan->arena + plan->blocks[v->block].offset;
}

/* Bytes that operators may touch: of a stream, the window. */
static uint64_t value_room(const struct dpk_plan *plan, const struct dpk_plan_value *v) {
    uint64_t room = plan->blocks[v->block].bytes - DPK_RED_ZONE;
    return room < v->bytes ? room : v->bytes;
}

static int check_numbers(const struct dpk_plan *plan, const struct dpk_plan_stage *s,
                         const struct dpk_plan_check *check, const int32_t *numbers,
                         dpk_error *err) {
    int rc = DPK_OK;
    int64_t n = dpk_shape_count(&s->values[check->input].shape);
    for (int64_t i = 0; i < n; i++)
        if (numbers[i] < 0 || numbers[i] >= check->limit)
            DPK_FAIL(err, DPK_EARG, "%s: %s[%lld] is %d, the table has %d rows", s->program->name,
                     dpk_file_string(plan->file, s->program->values[check->input].name),
                     (long long)i, numbers[i], check->limit);
done:
    return rc;
}

int dpk_exec_give(const struct dpk_plan *plan, uint32_t stage, uint32_t input, const void *data,
                  dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &plan->stages[stage];
    const struct dpk_plan_value *v = &s->values[input];
    for (uint32_t i = 0; i < s->n_checks; i++)
        if (s->checks[i].input == input) DPK_TRY(check_numbers(plan, s, &s->checks[i], data, err));
    dpk_arena_allow_all(plan);
    DPK_TRY(plan->backend->upload(plan->backend, value_data(plan, v), data, v->bytes, err));
done:
    return rc;
}

int dpk_exec_give_all(const struct dpk_plan *plan, uint32_t stage,
                      const struct dpk_plan_input *inputs, size_t n_inputs, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &plan->stages[stage];
    for (uint32_t v = 0; v < s->program->n_inputs; v++) {
        if (s->values[v].from_stage) continue;
        const char *name = dpk_file_string(plan->file, s->program->values[v].name);
        for (size_t i = 0; i < n_inputs; i++)
            if (!strcmp(inputs[i].name, name)) {
                DPK_TRY(dpk_exec_give(plan, stage, v, inputs[i].data, err));
                break;
            }
    }
done:
    return rc;
}

/* A run of a stage. */
struct run {
    const struct dpk_plan *plan;
    const struct dpk_plan_stage *stage;
    uint32_t number; /* of the stage */
    const struct dpk_exec_hook *hook;
};

static int tell(const struct run *r, uint32_t op, double share, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_exec_hook *h = r->hook;
    if (h && h->after(h->arg, r->plan, r->number, op, share))
        DPK_FAIL(err, DPK_ECANCELLED, "%s: stopped by the caller", r->stage->program->name);
done:
    return rc;
}

/* Before an operator: its operands, result and scratch are all it may touch. */
static void guard_operator(const struct run *r, uint32_t op) {
    const struct dpk_plan_stage *s = r->stage;
    const struct dpk_call *call = &s->calls[op];
    dpk_arena_forbid(r->plan);
    for (int k = 0; k < DPK_MAX_IN; k++)
        if (call->op->in[k] != DPK_NONE)
            dpk_arena_allow(call->in[k].data, value_room(r->plan, &s->values[call->op->in[k]]));
    dpk_arena_allow(call->out.data, value_room(r->plan, &s->values[s->program->n_inputs + op]));
    dpk_arena_allow(call->scratch, s->scratch_bytes[op]);
}

static int run_operator(const struct run *r, uint32_t op, dpk_error *err) {
    int rc = DPK_OK;
    guard_operator(r, op);
    struct dpk_backend *be = r->plan->backend;
    DPK_TRY(be->run(be, &r->stage->calls[op], err));
    DPK_TRY(tell(r, op, 1, err));
done:
    return rc;
}

/* Where row 0 of a stream would lie whose window begins with this row of all images'. */
static void *shift(const struct dpk_tensor *window, int64_t row) {
    int64_t row_bytes = (int64_t)window->shape.dim[2] * window->shape.dim[3];
    row_bytes *= window->dtype == DPK_BF16 ? 2 : 4;
    return (void *)((uintptr_t)window->data - (uintptr_t)(row * row_bytes));
}

static int run_rows(const struct run *r, const struct dpk_walk *walk,
                    const struct dpk_walk_step *step, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_part *part = walk->part;
    const uint32_t op = part->first + step->op;
    const struct dpk_call *whole = &r->stage->calls[op];
    struct dpk_call call = *whole;
    int64_t h = call.out.shape.dim[1], row_bytes;
    guard_operator(r, op);
    for (int k = 0; k < DPK_MAX_IN; k++) {
        uint32_t maker = dpk_walk_maker(r->stage, part, step->op, k);
        if (maker == DPK_NONE || !(part->streamed >> maker & 1)) continue;
        int64_t first = walk->image * call.in[k].shape.dim[1] + walk->start[maker];
        call.in[k].data = shift(&whole->in[k], first);
    }
    if (part->streamed >> step->op & 1 && !step->rows.measure) {
        row_bytes = (int64_t)((uintptr_t)whole->out.data - (uintptr_t)shift(&whole->out, 1));
        if (step->moved && step->kept)
            memmove(whole->out.data, (uint8_t *)whole->out.data + step->moved * row_bytes,
                    (size_t)(step->kept * row_bytes));
        call.out.data = shift(&whole->out, walk->image * h + step->start);
    }
    DPK_TRY(r->plan->backend->run_rows(r->plan->backend, &call, &step->rows, err));
    double share = (double)(step->rows.end - step->rows.first) / (double)(walk->n_images * h);
    DPK_TRY(tell(r, op, step->rows.measure ? 0 : share, err));
done:
    return rc;
}

int dpk_exec_run(const struct dpk_plan *plan, uint32_t stage, const struct dpk_exec_hook *hook,
                 dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &plan->stages[stage];
    const struct run r = {plan, s, stage, hook};
    struct dpk_backend *be = plan->backend;
    if (be->run_list) {
        if (hook && hook->seconds)
            DPK_TRY(be->run_timed(be, s->calls, s->program->n_ops, hook->seconds, err));
        else DPK_TRY(be->run_list(be, s->calls, s->program->n_ops, NULL, err));
        for (uint32_t i = 0; i < s->program->n_ops; i++) DPK_TRY(tell(&r, i, 1, err));
        goto done;
    }
    for (uint32_t n = 0; n < s->n_parts; n++) {
        const struct dpk_plan_part *part = &s->parts[n];
        const uint32_t end = part->first + part->n_ops;
        if (s->once) dpk_paging_ask(plan, s, end);
        if (part->rows) {
            struct dpk_walk walk;
            struct dpk_walk_step step;
            dpk_walk_begin(&walk, s, part);
            while (dpk_walk_next(&walk, &step)) DPK_TRY(run_rows(&r, &walk, &step, err));
        } else {
            DPK_TRY(run_operator(&r, part->first, err));
        }
        for (uint32_t i = part->first; i < end && s->once; i++) dpk_paging_drop(plan, s, i);
    }
done:
    dpk_arena_allow_all(plan);
    return rc;
}

int dpk_exec_take(const struct dpk_plan *plan, uint32_t stage, uint32_t value, void *data,
                  dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_value *v = &plan->stages[stage].values[value];
    DPK_TRY(plan->backend->download(plan->backend, data, value_data(plan, v), v->bytes, err));
    /* What was made from weights that were not there is not given out. */
    DPK_TRY(dpk_file_check_whole(plan->file, err));
done:
    return rc;
}
