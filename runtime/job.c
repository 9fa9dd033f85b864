/* Text-to-image jobs: parameters, plan and memory. The stages themselves are in pipeline.c. */
#include "job.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PIXELS = 32768, MAX_IMAGES = 4096 };

dpk_params dpk_params_default(void) {
    return (dpk_params){
        .struct_size = sizeof(dpk_params), .n_prompts = 1, .images_per_prompt = 1, .guidance = -1};
}

static int resolve_size(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_model *m = job->session->model;
    dpk_params *p = &job->params;
    double width, height, scale, multiple, channels;
    DPK_TRY(dpk_model_meta_number(m, "pipeline.width", 1024, 1, MAX_PIXELS, &width, err));
    DPK_TRY(dpk_model_meta_number(m, "pipeline.height", 1024, 1, MAX_PIXELS, &height, err));
    DPK_TRY(dpk_model_meta_number(m, "pipeline.vae_scale", 8, 1, 256, &scale, err));
    DPK_TRY(dpk_model_meta_number(m, "pipeline.size_multiple", scale, 1, 1024, &multiple, err));
    DPK_TRY(dpk_model_meta_number(m, "pipeline.latent_channels", 4, 1, 1024, &channels, err));
    uint32_t by = (uint32_t)multiple, f = (uint32_t)scale;
    if (by % f)
        DPK_FAIL(err, DPK_EFORMAT,
                 "metadata pipeline.size_multiple %u is no multiple of vae_scale %u", by, f);
    if (!p->width) p->width = (uint32_t)width;
    if (!p->height) p->height = (uint32_t)height;
    if (p->width % by || p->width > MAX_PIXELS)
        DPK_FAIL(err, DPK_EARG, "width is %u, want a multiple of %u up to %d", p->width, by,
                 MAX_PIXELS);
    if (p->height % by || p->height > MAX_PIXELS)
        DPK_FAIL(err, DPK_EARG, "height is %u, want a multiple of %u up to %d", p->height, by,
                 MAX_PIXELS);
    job->w = p->width / f, job->h = p->height / f, job->channels = (uint32_t)channels;
done:
    return rc;
}

static int resolve_params(struct dpk_job *job, const dpk_params *params, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_model *m = job->session->model;
    dpk_params *p = &job->params;
    double guidance;
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
    DPK_TRY(resolve_size(job, err));
    DPK_TRY(dpk_model_meta_number(m, "pipeline.guidance", 7.5, 0, 1e4, &guidance, err));
    if (p->guidance < 0) p->guidance = (float)guidance;
    if (!isfinite(p->guidance) || !(p->guidance_rescale >= 0 && p->guidance_rescale <= 1))
        DPK_FAIL(err, DPK_EARG, "guidance %g and its rescale %g, want finite and 0 to 1",
                 (double)p->guidance, (double)p->guidance_rescale);
    job->guided = p->guidance > 1;
    const char *rule = dpk_model_meta(m, "pipeline.negative");
    job->negative_zeros = !p->negative && rule && !strcmp(rule, "zeros");
    job->rows = job->n_images * (job->guided ? 2 : 1);
    job->text_rows = p->n_prompts + (job->guided && !job->negative_zeros);
    DPK_TRY(dpk_model_schedule(m, p->scheduler, p->steps, &job->schedule, err));
    p->steps = job->schedule->steps;
done:
    return rc;
}

static struct dpk_shape shape_of(int rank, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    return (struct dpk_shape){rank, {(int32_t)a, (int32_t)b, (int32_t)c, (int32_t)d}};
}

static void set_input(struct dpk_plan_input *in, const char *name, int32_t dtype,
                      struct dpk_shape shape) {
    *in = (struct dpk_plan_input){.name = name, .dtype = dtype, .shape = shape};
}

/* The output must be float32 and of this shape; dimensions that are 0 there may have any size. */
static int find_output(struct dpk_job *job, uint32_t stage, const char *name,
                       const struct dpk_shape *want, uint32_t *value, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &job->plan.stages[stage];
    *value = dpk_plan_find_output(s, job->plan.file, name);
    if (*value == DPK_NONE)
        DPK_FAIL(err, DPK_EFORMAT, "%s: the program has no output %s", s->program->name, name);
    const struct dpk_plan_value *v = &s->values[*value];
    if (v->dtype != DPK_F32)
        DPK_FAIL(err, DPK_EFORMAT, "%s: output %s is %s, want f32", s->program->name, name,
                 dpk_dtype_name(v->dtype));
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

static int plan_text(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_model *m = job->session->model;
    static const char *const names[2] = {"tokenizer", "tokenizer_2"};
    size_t length[2] = {1, 1};
    for (int i = 0; i < 2; i++) {
        int t = dpk_model_find_tokenizer(m, names[i]);
        if (t >= 0) length[i] = dpk_model_n_ids(m, (size_t)t);
        else if (i == 0) DPK_FAIL(err, DPK_EFORMAT, "the model has no tokenizer");
    }
    set_input(&job->text_in[0], "ids", DPK_I32, shape_of(2, job->text_rows, length[0], 0, 0));
    set_input(&job->text_in[1], "ids_2", DPK_I32, shape_of(2, job->text_rows, length[1], 0, 0));
    set_input(&job->text_in[2], "mask", DPK_I32, shape_of(2, job->text_rows, length[0], 0, 0));
    DPK_TRY(dpk_plan_add(&job->plan, "text", job->text_in, 3, -1, &job->text, err));
    struct dpk_shape context = shape_of(3, job->text_rows, 0, 0, 0);
    struct dpk_shape pooled = shape_of(2, job->text_rows, 0, 0, 0);
    DPK_TRY(find_output(job, job->text, "context", &context, &job->out_context, err));
    job->out_pooled = dpk_plan_find_output(&job->plan.stages[job->text], job->plan.file, "pooled");
    if (job->out_pooled != DPK_NONE)
        DPK_TRY(find_output(job, job->text, "pooled", &pooled, &job->out_pooled, err));
done:
    return rc;
}

/* The shape of a text output with the network's rows. */
static struct dpk_shape with_rows(const struct dpk_job *job, uint32_t value) {
    struct dpk_shape s = job->plan.stages[job->text].values[value].shape;
    s.dim[0] = (int32_t)job->rows;
    return s;
}

static int plan_network(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    struct dpk_plan_input *in = job->net_in;
    uint64_t rows = job->rows;
    struct dpk_shape latent = shape_of(4, rows, job->h, job->w, job->channels);
    size_t n = 0;
    set_input(&in[n++], "latent", DPK_F32, latent);
    set_input(&in[n++], "step", DPK_I32, shape_of(1, 1, 0, 0, 0));
    set_input(&in[n++], "context", DPK_F32, with_rows(job, job->out_context));
    set_input(&in[n++], "time_ids", DPK_F32, shape_of(2, rows, 6, 0, 0));
    set_input(&in[n++], "timesteps", DPK_F32, shape_of(1, job->schedule->n_rows, 0, 0, 0));
    uint64_t length = (uint64_t)job->text_in[2].shape.dim[1];
    set_input(&in[n++], "mask", DPK_I32, shape_of(2, rows, length, 0, 0));
    set_input(&in[n++], "resolution", DPK_F32, shape_of(2, rows, 2, 0, 0));
    set_input(&in[n++], "aspect_ratio", DPK_F32, shape_of(2, rows, 1, 0, 0));
    if (job->out_pooled != DPK_NONE)
        set_input(&in[n++], "pooled", DPK_F32, with_rows(job, job->out_pooled));
    else set_input(&in[n++], "", DPK_F32, shape_of(1, 1, 0, 0, 0));
    DPK_TRY(dpk_plan_add(&job->plan, "setup", in, n, -1, &job->setup, err));
    DPK_TRY(dpk_plan_add(&job->plan, "step", in, n, (int)job->setup, &job->step, err));
    DPK_TRY(find_output(job, job->step, "noise", &latent, &job->out_noise, err));

    latent.dim[0] = 1;
    set_input(&job->decode_in[0], "latent", DPK_F32, latent);
    DPK_TRY(dpk_plan_add(&job->plan, "decode", job->decode_in, 1, -1, &job->decode, err));
    struct dpk_shape image = shape_of(4, 1, p->height, p->width, 3);
    DPK_TRY(find_output(job, job->decode, "image", &image, &job->out_image, err));
done:
    return rc;
}

/* ---- Host buffers ---------------------------------------------------------------------------
 * One block, cut in the same order twice: first to count (host is NULL), then to hand out. */

static void *cut(struct dpk_job *job, uint64_t bytes) {
    void *p = job->host ? job->host + job->host_bytes : NULL;
    job->host_bytes += (bytes + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    return p;
}

/* A buffer for the input of this name, if a stage takes it. */
static void *cut_input(struct dpk_job *job, uint32_t stage_a, uint32_t stage_b,
                       struct dpk_plan_input *inputs, size_t n, const char *name) {
    const struct dpk_plan *plan = &job->plan;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(inputs[i].name, name)) continue;
        if (dpk_plan_find_input(&plan->stages[stage_a], plan->file, name) == DPK_NONE &&
            dpk_plan_find_input(&plan->stages[stage_b], plan->file, name) == DPK_NONE)
            return NULL;
        void *p = cut(job, (uint64_t)dpk_shape_count(&inputs[i].shape) * 4);
        inputs[i].data = p;
        return p;
    }
    return NULL;
}

static void *cut_net(struct dpk_job *job, const char *name) {
    return cut_input(job, job->setup, job->step, job->net_in,
                     sizeof job->net_in / sizeof *job->net_in, name);
}

static void cut_host(struct dpk_job *job) {
    const struct dpk_plan_stage *text = &job->plan.stages[job->text];
    const dpk_params *p = &job->params;
    job->host_bytes = 0;
    job->text_ids[0] = cut_input(job, job->text, job->text, job->text_in, 3, "ids");
    job->text_ids[1] = cut_input(job, job->text, job->text, job->text_in, 3, "ids_2");
    /* The tokenizer's mask is wanted also when only the network takes one. */
    job->text_mask = cut(job, (uint64_t)dpk_shape_count(&job->text_in[2].shape) * 4);
    job->text_in[2].data = job->text_mask;
    job->text_context = cut(job, text->values[job->out_context].bytes);
    if (job->out_pooled != DPK_NONE)
        job->text_pooled = cut(job, text->values[job->out_pooled].bytes);
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
    job->output = cut(job, one * job->rows * 4);
    job->random = cut(job, (p->n_seeds ? p->n_seeds : 1) * sizeof *job->random);
    job->x = cut(job, n * 4);
    job->e = cut(job, n * 4);
    job->noise = cut(job, n * 4);
    job->drawn = cut(job, n * 4);
    job->state = cut(job, (uint64_t)dpk_sampler_state_size(job->schedule, n) * 4);
    job->image = cut(job, (uint64_t)p->width * p->height * 12 * (p->trace ? job->n_images : 1));
}

int dpk_job_plan(struct dpk_job *job, struct dpk_session *session, const dpk_params *params,
                 dpk_error *err) {
    int rc = DPK_OK;
    *job = (struct dpk_job){.session = session};
    DPK_TRY(resolve_params(job, params, err));
    dpk_plan_init(&job->plan, session->backend, &session->model->file, session->act_dtype);
    DPK_TRY(plan_text(job, err));
    DPK_TRY(plan_network(job, err));
    DPK_TRY(dpk_plan_place(&job->plan, err));
    cut_host(job);
    const struct dpk_plan_stage *s = job->plan.stages;
    job->work_total = s[job->text].work + s[job->setup].work +
                      s[job->step].work * job->schedule->n_rows +
                      s[job->decode].work * job->n_images;
done:
    return rc;
}

static int encode_prompt(struct dpk_job *job, const char *prompt, uint32_t row, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_model *m = job->session->model;
    for (int i = 0; i < 2; i++) {
        if (!job->text_ids[i]) continue;
        int t = dpk_model_find_tokenizer(m, i ? "tokenizer_2" : "tokenizer");
        if (t < 0) DPK_FAIL(err, DPK_EFORMAT, "the model has no tokenizer_2");
        size_t length = dpk_model_n_ids(m, (size_t)t);
        DPK_TRY(dpk_tokenizer_encode(m->tokenizers[t], prompt, strlen(prompt),
                                     job->text_ids[i] + row * length,
                                     i ? NULL : job->text_mask + row * length, NULL, err));
    }
done:
    return rc;
}

int dpk_job_begin(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    char what[64];
    snprintf(what, sizeof what, "%u image%s of %ux%u", job->n_images, job->n_images > 1 ? "s" : "",
             p->width, p->height);
    DPK_TRY(dpk_session_take(job->session, &job->plan, job->host_bytes, what, err));
    job->host = aligned_alloc(DPK_ALIGN, job->host_bytes);
    if (!job->host)
        DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for host buffers of %llu bytes", what,
                 (unsigned long long)job->host_bytes);
    memset(job->host, 0, job->host_bytes);
    cut_host(job);
    if (!p->prompts) DPK_FAIL(err, DPK_EARG, "no prompts");
    for (uint32_t i = 0; i < p->n_prompts; i++) {
        if (!p->prompts[i]) DPK_FAIL(err, DPK_EARG, "prompt %u is missing", i);
        DPK_TRY(encode_prompt(job, p->prompts[i], i, err));
    }
    if (job->text_rows > p->n_prompts)
        DPK_TRY(encode_prompt(job, p->negative ? p->negative : "", p->n_prompts, err));
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
