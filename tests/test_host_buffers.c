/* What lies in host memory. Buffers for what a job gives to its programs: none for what one of them
 * makes, since a hostile file may have the network take its context, say, from setup, and nothing
 * has checked the shape that it would have had from the host. Types of what programs give back. */
#include "support_golden.h"

#include "../runtime/job_impl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* An input of the step program that setup makes (or, if not, that the host gives). */
static const char *find_input(const struct dpk_job *job, bool made) {
    const struct dpk_plan_stage *s = &job->plan.stages[job->step];
    for (uint32_t v = 0; v < s->program->n_inputs; v++)
        if (s->values[v].from_stage == made)
            return dpk_file_string(job->plan.file, s->program->values[v].name);
    fail_msg("no such input");
    return NULL;
}

static void test_made_inputs(void **state) {
    static const struct dpk_shape shapes[] = {
        {3, {1, 2, 3, 0}},
        {4, {1 << 15, 1 << 15, 1 << 15, 4}}, /* which has no count */
        {2, {1, -1, 0, 0}},
    };
    static char memory[1024];
    dpk_model *model = golden_model("host-buffers", "tests/data/tiny-sd15", "");
    dpk_session_options options = dpk_session_options_default();
    dpk_params params = dpk_params_default();
    dpk_session *session = NULL;
    struct dpk_job job;
    dpk_error err;
    (void)state;
    options.threads = 1;
    params.width = params.height = 64, params.steps = 1;
    if (dpk_session_create(&session, model, &options, &err) ||
        dpk_job_plan(&job, session, &params, &err))
        fail_msg("%s", err.msg);
    job.host = (void *)memory;
    job.host_bytes = 0;
    const char *names[] = {find_input(&job, true), find_input(&job, false)};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct dpk_plan_input in = {names[0], DPK_F32, shapes[i], NULL};
        assert_null(dpk_job_cut_input(&job, job.setup, job.step, &in, 1, names[0]));
        assert_null(in.data);
        assert_int_equal(job.host_bytes, 0);
    }
    struct dpk_plan_input in = {names[1], DPK_F32, shapes[0], NULL};
    assert_non_null(dpk_job_cut_input(&job, job.setup, job.step, &in, 1, names[1]));
    assert_ptr_equal(in.data, memory);
    assert_int_equal(job.host_bytes, DPK_ALIGN);
    assert_null(dpk_job_cut_input(&job, job.setup, job.step, &in, 1, "nothing"));
    job.host = NULL;
    dpk_job_free(&job);
    dpk_session_free(session);
    dpk_model_free(model);
}

/* Outputs for the host have to be float32: one of the activations' type would be bfloat16 on one
 * machine and float32 on the other. */
static void test_outputs_of_activations(void **state) {
    static const char *const outputs[][2] = {
        {"text", "context"}, {"step", "noise"}, {"decode", "image"}};
    static float latent[2 * 2 * 4];
    const dpk_array in = {
        .name = "latent", .type = DPK_ARRAY_F32, .rank = 4, .dim = {1, 2, 2, 4}, .data = latent};
    dpk_model *model = golden_model("host-buffers", "tests/data/tiny-sd15", "");
    dpk_session *session = NULL;
    dpk_params params = dpk_params_default();
    dpk_error err;
    (void)state;
    params.width = params.height = 64, params.steps = 1;
    if (dpk_session_create(&session, model, NULL, &err)) fail_msg("%s", err.msg);
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        const struct dpk_program *p = dpk_file_program(&model->file, outputs[i][0]);
        char want[80];
        dpk_info info;
        dpk_arrays *out = NULL;
        snprintf(want, sizeof want, "%s: output %s is act", outputs[i][0], outputs[i][1]);
        for (uint32_t v = p->n_inputs; v < p->n_inputs + p->n_ops; v++) {
            struct dpk_value *value = (struct dpk_value *)&p->values[v];
            if (!(value->flags & DPK_VALUE_OUTPUT)) continue;
            assert_int_equal(value->type, DPK_VALUE_F32);
            value->type = DPK_VALUE_ACT;
            assert_int_equal(dpk_session_plan(session, &params, &info, &err), DPK_EFORMAT);
            if (!strstr(err.msg, want)) fail_msg("%s: want \"%s\"", err.msg, want);
            if (!strcmp(outputs[i][0], "decode")) {
                assert_int_equal(dpk_session_run(session, "decode", &in, 1, &out, &err),
                                 DPK_EFORMAT);
                if (!strstr(err.msg, want)) fail_msg("%s: want \"%s\"", err.msg, want);
            }
            value->type = DPK_VALUE_F32;
        }
    }
    if (dpk_session_plan(session, &params, &(dpk_info){0}, &err)) fail_msg("%s", err.msg);
    dpk_session_free(session);
    dpk_model_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_made_inputs),
                                       cmocka_unit_test(test_outputs_of_activations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
