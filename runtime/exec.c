/* Running the stages of a bound plan.
 *
 * Under AddressSanitizer the arena of a CPU is forbidden ground but for the operands, the result
 * and the scratch of the operator that runs: an operator that strays from them is found at once. */
#include "exec.h"
#include "paging.h"

#include "../formats/fail.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define DPK_GUARD 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DPK_GUARD 1
#endif
#endif

#ifdef DPK_GUARD
#include <sanitizer/asan_interface.h>

static void guard_all(const struct dpk_plan *plan) {
    if (!strcmp(plan->backend->name, "cpu"))
        ASAN_POISON_MEMORY_REGION(plan->arena, plan->arena_bytes);
}

static void guard_none(const struct dpk_plan *plan) {
    if (!strcmp(plan->backend->name, "cpu"))
        ASAN_UNPOISON_MEMORY_REGION(plan->arena, plan->arena_bytes);
}

static void guard_open(const void *data, uint64_t bytes) {
    if (data) ASAN_UNPOISON_MEMORY_REGION(data, bytes);
}
#else
static void guard_all(const struct dpk_plan *plan) { (void)plan; }
static void guard_none(const struct dpk_plan *plan) { (void)plan; }
static void guard_open(const void *data, uint64_t bytes) { (void)data, (void)bytes; }
#endif

static void *value_data(const struct dpk_plan *plan, const struct dpk_plan_value *v) {
    return (uint8_t *)plan->arena + plan->blocks[v->block].offset;
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
    guard_none(plan);
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

int dpk_exec_run(const struct dpk_plan *plan, uint32_t stage, const struct dpk_exec_hook *hook,
                 dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &plan->stages[stage];
    const struct dpk_program *p = s->program;
    if (plan->backend->run_list) {
        DPK_TRY(plan->backend->run_list(plan->backend, s->calls, p->n_ops, NULL, err));
        for (uint32_t i = 0; i < p->n_ops && hook; i++)
            if (hook->after(hook->arg, plan, stage, i))
                DPK_FAIL(err, DPK_ECANCELLED, "%s: stopped by the caller", p->name);
        goto done;
    }
    for (uint32_t i = 0; i < p->n_ops; i++) {
        const struct dpk_call *call = &s->calls[i];
        guard_all(plan);
        for (int k = 0; k < DPK_MAX_IN; k++)
            if (p->ops[i].in[k] != DPK_NONE)
                guard_open(call->in[k].data, s->values[p->ops[i].in[k]].bytes);
        guard_open(call->out.data, s->values[p->n_inputs + i].bytes);
        guard_open(call->scratch, s->scratch_bytes[i]);
        if (s->once) dpk_paging_ask(plan, s, i + 1);
        DPK_TRY(plan->backend->run(plan->backend, call, err));
        if (s->once) dpk_paging_drop(plan, s, i);
        if (hook && hook->after(hook->arg, plan, stage, i))
            DPK_FAIL(err, DPK_ECANCELLED, "%s: stopped by the caller", p->name);
    }
done:
    guard_none(plan);
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
