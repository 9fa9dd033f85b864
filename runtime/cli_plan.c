/* Plans for `inspect` and `bench`. */
#include "cli_plan.h"

#include "../formats/fail.h"

#include <string.h>

int dpk_cli_plan_make(struct dpk_cli_plan *plan, dpk_session *session, const dpk_params *params,
                      const char *program, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t stage;
    *plan = (struct dpk_cli_plan){0};
    DPK_TRY(dpk_job_plan(&plan->job, session, params, err));
    if (!program || strcmp(program, "encode")) goto done;
    const dpk_params *p = &plan->job.params;
    plan->image[0] = (struct dpk_plan_input){
        .name = "image",
        .dtype = DPK_F32,
        .shape = {4, {(int32_t)plan->job.n_images, (int32_t)p->height, (int32_t)p->width, 3}}};
    dpk_plan_init(&plan->encode, session->backend, &session->model->file, session->act_dtype);
    DPK_TRY(dpk_plan_add(&plan->encode, "encode", plan->image, 1, -1, &stage, err));
    DPK_TRY(dpk_plan_place(&plan->encode, err));
done:
    return rc;
}

void dpk_cli_plan_free(struct dpk_cli_plan *plan) {
    dpk_plan_free(&plan->encode);
    dpk_job_free(&plan->job);
}

const struct dpk_plan_stage *dpk_cli_plan_stage(const struct dpk_cli_plan *plan,
                                                const char *program) {
    const struct dpk_plan *plans[2] = {&plan->job.plan, &plan->encode};
    for (int k = 0; k < 2; k++)
        for (uint32_t i = 0; i < plans[k]->n_stages; i++)
            if (!strcmp(plans[k]->stages[i].program->name, program)) return &plans[k]->stages[i];
    return NULL;
}

struct dpk_cost dpk_cli_stage_cost(const struct dpk_plan_stage *stage) {
    struct dpk_cost sum = {0, 0};
    for (uint32_t i = 0; i < stage->program->n_ops; i++) {
        sum.flops += stage->costs[i].flops;
        sum.bytes += stage->costs[i].bytes;
    }
    return sum;
}

struct dpk_cli_memory dpk_cli_stage_memory(const struct dpk_plan *plan,
                                           const struct dpk_plan_stage *stage) {
    struct dpk_cli_memory m = {0};
    const double flops = dpk_cli_stage_cost(stage).flops;
    for (uint32_t t = stage->begin; t <= stage->end; t++)
        if (plan->live[t] > m.alive_bytes) m.alive_bytes = plan->live[t];
    for (uint32_t i = 0; i < stage->n_parts; i++) {
        const struct dpk_plan_part *p = &stage->parts[i];
        if (!p->rows) continue;
        m.n_parts++;
        if (!m.rows || p->rows < m.rows) m.rows = p->rows;
        m.again += dpk_plan_extra(stage, p) / flops;
    }
    return m;
}

int dpk_cli_plan_least(dpk_session *session, const dpk_params *params, uint64_t *n_bytes,
                       dpk_error *err) {
    int rc = DPK_OK;
    dpk_info info;
    const uint64_t limit = session->memory_limit;
    session->memory_limit = 1;
    DPK_TRY(dpk_session_plan(session, params, &info, err));
    *n_bytes = info.peak_bytes;
done:
    session->memory_limit = limit;
    return rc;
}

const struct dpk_file *dpk_cli_model_file(const dpk_model *model) { return &model->file; }
