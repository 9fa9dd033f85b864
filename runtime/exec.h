/* Running the stages of a bound plan. Nothing here allocates. */
#ifndef DPK_EXEC_H
#define DPK_EXEC_H

#include "plan.h"

/* Called after every operator has run (queued, on a device that queues), or some rows of it: share
 * is how much of its work that was. The shares of one run of a stage sum to 1, or more where the
 * plan makes rows again. Non-zero stops the run. */
struct dpk_exec_hook {
    int (*after)(void *arg, const struct dpk_plan *plan, uint32_t stage, uint32_t op, double share);
    void *arg;
    double *seconds; /* [n_ops] or NULL: what each operator takes is added here by a device that
                        queues them (and waited for) */
};

/* Give input number `input` of a stage: values[v].bytes of host memory. Row numbers are checked
 * first. Errors: DPK_EARG (a number outside its table: says which), DPK_EBACKEND. */
int dpk_exec_give(const struct dpk_plan *plan, uint32_t stage, uint32_t input, const void *data,
                  dpk_error *err);

/* Give every input of a stage that no earlier stage makes, by name, from `inputs` as dpk_plan_add
 * got them. */
int dpk_exec_give_all(const struct dpk_plan *plan, uint32_t stage,
                      const struct dpk_plan_input *inputs, size_t n_inputs, dpk_error *err);

/* Run all operators of a stage once. hook may be NULL. Errors: DPK_ECANCELLED, DPK_EBACKEND. */
int dpk_exec_run(const struct dpk_plan *plan, uint32_t stage, const struct dpk_exec_hook *hook,
                 dpk_error *err);

/* Fetch value number `value` of a stage after a run: values[v].bytes. Errors: DPK_EBACKEND. */
int dpk_exec_take(const struct dpk_plan *plan, uint32_t stage, uint32_t value, void *data,
                  dpk_error *err);

#endif
