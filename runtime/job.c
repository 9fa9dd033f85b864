/* Text-to-image jobs: parameters, plan and memory. The stages themselves are in pipeline.c. */
#include "job_impl.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_IMAGES = 4096 };

dpk_params dpk_params_default(void) {
    return (dpk_params){.struct_size = sizeof(dpk_params),
                        .n_prompts = 1,
                        .images_per_prompt = 1,
                        .guidance = -1,
                        .strength = 0.8};
}

static int resolve_params(struct dpk_job *job, const dpk_params *params, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_model *m = job->session->model;
    dpk_params *p = &job->params;
    *p = dpk_params_default();
    if (params->struct_size < sizeof(size_t) || params->struct_size > sizeof *p)
        DPK_FAIL(err, DPK_EARG, "parameters of %zu bytes, this library knows %zu",
                 params->struct_size, sizeof *p);
    memcpy(p, params, params->struct_size);
    if (!p->n_prompts || !p->images_per_prompt ||
        (uint64_t)p->n_prompts * p->images_per_prompt > MAX_IMAGES)
        DPK_FAIL(err, DPK_EARG, "%u prompts with %u images each, want 1 to %d images", p->n_prompts,
                 p->images_per_prompt, MAX_IMAGES);
    job->n_images = p->n_prompts * p->images_per_prompt;
    if (p->n_seeds > 1 && p->n_seeds != job->n_images)
        DPK_FAIL(err, DPK_EARG, "%u seeds for %u images, want one, or one an image", p->n_seeds,
                 job->n_images);
    if (p->rng != DPK_RNG_CPU && p->rng != DPK_RNG_CUDA)
        DPK_FAIL(err, DPK_EARG, "generator %d, want DPK_RNG_CPU or DPK_RNG_CUDA", p->rng);
    if (!DPK_HAS_philox && p->rng == DPK_RNG_CUDA)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "generator cuda: this build is without philox");
    DPK_TRY(dpk_settings_read(&m->file, &job->settings, err));
    DPK_TRY(dpk_job_check_init(job, err));
    DPK_TRY(dpk_job_size(job, err));
    if (p->guidance < 0) p->guidance = (float)job->settings.guidance;
    if (!isfinite(p->guidance) || !(p->guidance_rescale >= 0 && p->guidance_rescale <= 1))
        DPK_FAIL(err, DPK_EARG, "guidance %g and its rescale %g, want finite and 0 to 1",
                 (double)p->guidance, (double)p->guidance_rescale);
    job->guided = p->guidance > 1;
    const char *rule = dpk_model_meta(m, "pipeline.negative");
    job->negative_zeros = !p->negative && rule && !strcmp(rule, "zeros");
    job->rows = job->n_images * (job->guided ? 2 : 1);
    job->text_rows = p->n_prompts + (job->guided && !job->negative_zeros);
    if (!p->steps) p->steps = (uint32_t)job->settings.steps;
    DPK_TRY(dpk_model_schedule(m, p->scheduler, p->steps, p->init ? p->strength : 1, &job->schedule,
                               err));
    p->steps = job->schedule->steps;
    DPK_TRY(dpk_job_count_chunks(job, err));
done:
    return rc;
}

struct dpk_shape dpk_job_shape(int rank, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    return (struct dpk_shape){rank, {(int32_t)a, (int32_t)b, (int32_t)c, (int32_t)d}};
}

void dpk_job_input(struct dpk_plan_input *in, const char *name, int32_t dtype,
                   struct dpk_shape shape) {
    *in = (struct dpk_plan_input){.name = name, .dtype = dtype, .shape = shape};
}

int dpk_job_output(struct dpk_job *job, uint32_t stage, const char *name,
                   const struct dpk_shape *want, uint32_t *value, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &job->plan.stages[stage];
    *value = dpk_plan_find_output(s, job->plan.file, name);
    if (*value == DPK_NONE)
        DPK_FAIL(err, DPK_EFORMAT, "%s: the program has no output %s", s->program->name, name);
    const struct dpk_plan_value *v = &s->values[*value];
    if (s->program->values[*value].type != DPK_VALUE_F32)
        DPK_FAIL(err, DPK_EFORMAT, "%s: output %s is act, want f32", s->program->name, name);
    bool fits = v->shape.rank == want->rank;
    for (int i = 0; fits && i < want->rank; i++)
        fits = !want->dim[i] || v->shape.dim[i] == want->dim[i];
    if (!fits) {
        char a[64], b[64];
        DPK_FAIL(err, DPK_EFORMAT, "%s: output %s is %s, want %s (0: any size)", s->program->name,
                 name, dpk_plan_shape_text(&v->shape, a, sizeof a),
                 dpk_plan_shape_text(want, b, sizeof b));
    }
done:
    return rc;
}

static struct dpk_shape context_shape(const struct dpk_job *job) {
    const struct dpk_shape *s = &job->plan.stages[job->text].values[job->out_context].shape;
    return dpk_job_shape(3, job->rows, (uint64_t)s->dim[1] * job->n_chunks, (uint64_t)s->dim[2], 0);
}

static struct dpk_shape pooled_shape(const struct dpk_job *job) {
    const struct dpk_shape *s = &job->plan.stages[job->text].values[job->out_pooled].shape;
    return dpk_job_shape(2, job->rows, (uint64_t)s->dim[1], 0, 0);
}

static int plan_network(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_plan_input *in = job->net_in;
    uint64_t rows = job->rows;
    struct dpk_shape latent = dpk_job_shape(4, rows, job->h, job->w, job->channels);
    size_t n = 0;
    dpk_job_input(&in[n++], "latent", DPK_F32, latent);
    dpk_job_input(&in[n++], "step", DPK_I32, dpk_job_shape(1, 1, 0, 0, 0));
    dpk_job_input(&in[n++], "context", DPK_F32, context_shape(job));
    dpk_job_input(&in[n++], "time_ids", DPK_F32, dpk_job_shape(2, rows, 6, 0, 0));
    dpk_job_input(&in[n++], "timesteps", DPK_F32, dpk_job_shape(1, job->schedule->n_rows, 0, 0, 0));
    uint64_t length = (uint64_t)job->text_in[2].shape.dim[1];
    dpk_job_input(&in[n++], "mask", DPK_I32, dpk_job_shape(2, rows, length, 0, 0));
    dpk_job_input(&in[n++], "resolution", DPK_F32, dpk_job_shape(2, rows, 2, 0, 0));
    dpk_job_input(&in[n++], "aspect_ratio", DPK_F32, dpk_job_shape(2, rows, 1, 0, 0));
    if (job->out_pooled != DPK_NONE) dpk_job_input(&in[n++], "pooled", DPK_F32, pooled_shape(job));
    else dpk_job_input(&in[n++], "", DPK_F32, dpk_job_shape(1, 1, 0, 0, 0));
    DPK_TRY(dpk_plan_add(&job->plan, "setup", in, n, -1, &job->setup, err));
    DPK_TRY(dpk_plan_add(&job->plan, "step", in, n, (int)job->setup, &job->step, err));
    DPK_TRY(dpk_job_output(job, job->step, "noise", &latent, &job->out_noise, err));

    latent.dim[0] = 1;
    dpk_job_input(&job->decode_in[0], "latent", DPK_F32, latent);
    DPK_TRY(dpk_plan_add(&job->plan, "decode", job->decode_in, 1, -1, &job->decode, err));
    struct dpk_shape image = dpk_job_shape(4, 1, job->paint_height, job->paint_width, 3);
    DPK_TRY(dpk_job_output(job, job->decode, "image", &image, &job->out_image, err));
done:
    return rc;
}

/* ---- Host buffers -------------------------------------------------------------------------- */

void *dpk_job_cut(struct dpk_job *job, uint64_t bytes) {
    void *p = job->host ? job->host + job->host_bytes : NULL;
    job->host_bytes += (bytes + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    return p;
}

/* Does the stage take it from the host? */
static bool takes(const struct dpk_plan *plan, uint32_t stage, const char *name) {
    const struct dpk_plan_stage *s = &plan->stages[stage];
    const uint32_t v = dpk_plan_find_input(s, plan->file, name);
    return v != DPK_NONE && !s->values[v].from_stage;
}

void *dpk_job_cut_input(struct dpk_job *job, uint32_t stage_a, uint32_t stage_b,
                        struct dpk_plan_input *inputs, size_t n, const char *name) {
    const struct dpk_plan *plan = &job->plan;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(inputs[i].name, name)) continue;
        if (!takes(plan, stage_a, name) && !takes(plan, stage_b, name)) return NULL;
        void *p = dpk_job_cut(job, (uint64_t)dpk_shape_count(&inputs[i].shape) * 4);
        inputs[i].data = p;
        return p;
    }
    return NULL;
}

static void *cut_net(struct dpk_job *job, const char *name) {
    return dpk_job_cut_input(job, job->setup, job->step, job->net_in,
                             sizeof job->net_in / sizeof *job->net_in, name);
}

static void cut_host(struct dpk_job *job) {
    const dpk_params *p = &job->params;
    job->host_bytes = 0;
    dpk_job_cut_text(job);
    dpk_job_cut_init(job);
    job->context = cut_net(job, "context");
    job->pooled = cut_net(job, "pooled");
    job->time_ids = cut_net(job, "time_ids");
    job->timesteps = cut_net(job, "timesteps");
    job->mask = cut_net(job, "mask");
    job->resolution = cut_net(job, "resolution");
    job->aspect_ratio = cut_net(job, "aspect_ratio");
    job->latent = cut_net(job, "latent");
    job->step_index = cut_net(job, "step");
    uint64_t one = (uint64_t)job->h * job->w * job->channels, n = one * job->n_images;
    job->output = dpk_job_cut(job, one * job->rows * 4);
    job->random = dpk_job_cut(job, (p->n_seeds ? p->n_seeds : 1) * sizeof *job->random);
    job->x = dpk_job_cut(job, n * 4);
    job->e = dpk_job_cut(job, n * 4);
    job->noise = dpk_job_cut(job, n * 4);
    job->drawn = dpk_job_cut(job, n * 4);
    job->state = dpk_job_cut(job, (uint64_t)dpk_sampler_state_size(job->schedule, n) * 4);
    const uint64_t painted = (uint64_t)job->paint_width * job->paint_height * 12;
    const uint64_t asked = (uint64_t)p->width * p->height * 12 * (p->trace ? job->n_images : 1);
    job->image = dpk_job_cut(job, job->fitted ? painted : asked);
    if (job->session->backend->run_list)
        job->loop_rows = dpk_job_cut(job, job->schedule->n_rows * sizeof *job->loop_rows);
    if (job->fitted) job->shown = dpk_job_cut(job, asked);
}

int dpk_job_plan(struct dpk_job *job, struct dpk_session *session, const dpk_params *params,
                 dpk_error *err) {
    int rc = DPK_OK;
    *job = (struct dpk_job){.session = session};
    DPK_TRY(resolve_params(job, params, err));
    dpk_plan_init(&job->plan, session->backend, &session->model->file, session->act_dtype);
    job->plan.whole = session->whole_maps;
    DPK_TRY(dpk_job_plan_init(job, err));
    DPK_TRY(dpk_job_plan_text(job, err));
    DPK_TRY(plan_network(job, err));
    cut_host(job);
    DPK_TRY(dpk_session_fit(session, &job->plan, job->host_bytes, err));
    dpk_session_page(session, &job->plan, job->step);
    dpk_job_plan_loop(job);
    const struct dpk_plan_stage *s = job->plan.stages;
    job->work_total = s[job->text].work + s[job->setup].work +
                      s[job->step].work * job->schedule->n_rows +
                      s[job->decode].work * job->n_images;
    if (params->init) job->work_total += s[job->encode].work;
done:
    return rc;
}

int dpk_job_begin(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    char what[64];
    snprintf(what, sizeof what, "%u image%s of %ux%u", job->n_images, job->n_images > 1 ? "s" : "",
             p->width, p->height);
    DPK_TRY(dpk_session_take(job->session, &job->plan, job->host_bytes + job->loop_bytes, what,
                             err));
    job->host = aligned_alloc(DPK_ALIGN, job->host_bytes);
    if (!job->host)
        DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for host buffers of %llu bytes", what,
                 (unsigned long long)job->host_bytes);
    memset(job->host, 0, job->host_bytes);
    cut_host(job);
    DPK_TRY(dpk_job_tokens(job, err));
    DPK_TRY(dpk_job_read_init(job, err));
    for (uint32_t i = 0; i < (p->n_seeds ? p->n_seeds : 1); i++)
        dpk_random_seed(&job->random[i], (enum dpk_random_kind)p->rng, p->n_seeds ? p->seeds[i] : 0,
                        0);
done:
    return rc;
}

void dpk_job_free(struct dpk_job *job) {
    dpk_schedule_free(job->schedule);
    dpk_plan_free(&job->plan);
    free(job->host);
    *job = (struct dpk_job){0};
}
