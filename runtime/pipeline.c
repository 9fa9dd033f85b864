/* The loop: a picture to start from, text, setup, then network and sampler in turn, the decoder. */
#include "guide.h"
#include "job_impl.h"
#include "resize.h"

#include "../formats/fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Stages ------------------------------------------------------------------------------- */

/* Text row of image i's prompt, and of the negative prompt. */
static uint32_t positive_row(const struct dpk_job *job, uint32_t image) {
    return image / job->params.images_per_prompt;
}

/* Rows of text output [text_rows,n] to rows of the network [rows,n]: negative ones first. */
static void spread_rows(const struct dpk_job *job, size_t row_bytes, const void *text, void *net) {
    const uint8_t *from = text;
    uint8_t *to = net;
    uint32_t n = job->n_images, first = job->guided ? n : 0;
    for (uint32_t i = 0; i < first; i++) {
        if (job->negative_zeros) memset(to + i * row_bytes, 0, row_bytes);
        else memcpy(to + i * row_bytes, from + job->params.n_prompts * row_bytes, row_bytes);
    }
    for (uint32_t i = 0; i < n; i++)
        memcpy(to + (first + i) * row_bytes, from + positive_row(job, i) * row_bytes, row_bytes);
}

static void fill_network_inputs(struct dpk_job *job) {
    float width = (float)job->paint_width, height = (float)job->paint_height;
    if (job->context) spread_rows(job, dpk_job_context_bytes(job), job->text_context, job->context);
    if (job->pooled) spread_rows(job, dpk_job_pooled_bytes(job), job->text_pooled, job->pooled);
    if (job->mask) {
        size_t length = (size_t)job->text_in[2].shape.dim[1];
        spread_rows(job, length * sizeof *job->mask, job->text_mask, job->mask);
    }
    for (uint32_t i = 0; i < job->rows; i++) {
        /* Original size, corner of the crop, target size: all height before width. */
        const float ids[6] = {height, width, 0, 0, height, width};
        if (job->time_ids) memcpy(job->time_ids + 6 * i, ids, sizeof ids);
        if (job->resolution) job->resolution[2 * i] = height, job->resolution[2 * i + 1] = width;
        if (job->aspect_ratio) job->aspect_ratio[i] = height / width;
    }
    if (job->timesteps)
        for (uint32_t i = 0; i < job->schedule->n_rows; i++)
            job->timesteps[i] = (float)job->schedule->rows[i].timestep;
}

int dpk_job_setup(struct dpk_job *job, const struct dpk_exec_hook *hook, dpk_error *err) {
    int rc = DPK_OK;
    fill_network_inputs(job);
    DPK_TRY(dpk_exec_give_all(&job->plan, job->setup, job->net_in,
                              sizeof job->net_in / sizeof *job->net_in, err));
    DPK_TRY(dpk_exec_run(&job->plan, job->setup, hook, err));
done:
    return rc;
}

int dpk_job_step(struct dpk_job *job, uint32_t row, const struct dpk_exec_hook *hook,
                 dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_plan *plan = &job->plan;
    const struct dpk_sampler_row *r = &job->schedule->rows[row];
    size_t one = (size_t)job->h * job->w * job->channels, n = one * job->n_images;
    float scale = (float)r->input_scale;
    for (size_t i = 0; i < n; i++) job->latent[i] = job->x[i] * scale;
    if (job->guided) memcpy(job->latent + n, job->latent, n * sizeof *job->latent);
    if (job->step_index) *job->step_index = (int32_t)row;
    DPK_TRY(dpk_exec_give_all(plan, job->step, job->net_in,
                              sizeof job->net_in / sizeof *job->net_in, err));
    DPK_TRY(dpk_exec_run(plan, job->step, hook, err));
    DPK_TRY(dpk_exec_take(plan, job->step, job->out_noise, job->output, err));
    const float *e = job->output;
    if (job->guided) {
        dpk_guide_combine(job->n_images, one, job->output, job->output + n, job->params.guidance,
                          job->params.guidance_rescale, job->e);
        e = job->e;
    }
    if (r->draws_noise) dpk_job_draw(job, job->n_images, job->noise);
    dpk_sampler_apply(r, n, job->x, e, job->noise, job->state);
    dpk_job_keep(job, row);
done:
    return rc;
}

int dpk_job_decode(struct dpk_job *job, uint32_t index, float *image,
                   const struct dpk_exec_hook *hook, dpk_error *err) {
    int rc = DPK_OK;
    job->decode_in[0].data = job->x + (size_t)index * job->h * job->w * job->channels;
    if (job->on_device) DPK_TRY(dpk_job_loop_give(job, index, err));
    else DPK_TRY(dpk_exec_give_all(&job->plan, job->decode, job->decode_in, 1, err));
    DPK_TRY(dpk_exec_run(&job->plan, job->decode, hook, err));
    DPK_TRY(dpk_exec_take(&job->plan, job->decode, job->out_image, image, err));
done:
    return rc;
}

/* ---- Progress and trace ------------------------------------------------------------------- */

static int report(struct dpk_job *job, double fraction) {
    const dpk_params *p = &job->params;
    dpk_progress progress = {job->stage_name, job->calls_done, job->schedule->n_rows, fraction};
    return p->progress ? p->progress(p->progress_arg, &progress) : 0;
}

static int after_operator(void *arg, const struct dpk_plan *plan, uint32_t stage, uint32_t op,
                          double share) {
    struct dpk_job *job = arg;
    const struct dpk_cost *c = &plan->stages[stage].costs[op];
    job->work_done += dpk_plan_work(c) * share;
    double fraction = job->work_total > 0 ? job->work_done / job->work_total : 0;
    return report(job, fraction < 0.999 ? fraction : 0.999); /* 1 is said once, when all is done */
}

static int trace(const struct dpk_job *job, const char *name, struct dpk_shape shape, void *data,
                 dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    dpk_array a = {.name = name, .type = DPK_ARRAY_F32, .rank = shape.rank, .data = data};
    memcpy(a.dim, shape.dim, sizeof a.dim);
    if (p->trace && p->trace(p->trace_arg, &a))
        DPK_FAIL(err, DPK_ECANCELLED, "%s: stopped by the caller", name);
done:
    return rc;
}

static int trace_text(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &job->plan.stages[job->text];
    struct dpk_shape shape = s->values[job->out_context].shape;
    uint32_t n = job->params.n_prompts;
    size_t negative = n * dpk_job_context_bytes(job) / sizeof *job->text_context;
    shape.dim[0] = (int32_t)n;
    shape.dim[1] *= (int32_t)job->n_chunks;
    DPK_TRY(trace(job, "context", shape, job->text_context, err));
    if (job->text_rows > n) {
        shape.dim[0] = 1;
        DPK_TRY(trace(job, "negative_context", shape, job->text_context + negative, err));
    }
    if (job->text_pooled) {
        shape = s->values[job->out_pooled].shape;
        shape.dim[0] = (int32_t)n;
        DPK_TRY(trace(job, "pooled", shape, job->text_pooled, err));
    }
done:
    return rc;
}

static int trace_latent(struct dpk_job *job, uint32_t step, dpk_error *err) {
    char name[32];
    struct dpk_shape shape = {
        4, {(int32_t)job->n_images, (int32_t)job->h, (int32_t)job->w, (int32_t)job->channels}};
    snprintf(name, sizeof name, "latent_%03u", step);
    return trace(job, name, shape, job->x, err);
}

/* ---- The loop on a device of its own ------------------------------------------------------- */

enum { AHEAD = DPK_MARKS - 2 }; /* rows that are queued when one is reported */

static int report_row(struct dpk_job *job, uint32_t row, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(dpk_job_loop_wait(job, row, err));
    job->calls_done = row + 1;
    job->work_done += job->plan.stages[job->step].work;
    double fraction = job->work_total > 0 ? job->work_done / job->work_total : 0;
    if (report(job, fraction < 0.999 ? fraction : 0.999))
        DPK_FAIL(err, DPK_ECANCELLED, "step: stopped by the caller");
done:
    return rc;
}

/* All rows are queued before the host waits; with a progress callback it stays AHEAD rows ahead, so
 * that the device has work while the caller thinks. */
static int sample_on_device(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t steps = 0;
    const uint32_t n = job->schedule->n_rows;
    const bool reports = job->params.progress != NULL;
    DPK_TRY(dpk_job_loop_begin(job, err));
    for (uint32_t row = 0; row < n; row++) {
        DPK_TRY(dpk_job_loop_row(job, row, err));
        if (job->params.trace && job->schedule->rows[row].step_ends) {
            DPK_TRY(dpk_job_loop_fetch(job, err));
            DPK_TRY(trace_latent(job, ++steps, err));
        }
        if (reports && row >= AHEAD) DPK_TRY(report_row(job, row - AHEAD, err));
    }
    for (uint32_t row = n > AHEAD ? n - AHEAD : 0; reports && row < n; row++)
        DPK_TRY(report_row(job, row, err));
    job->calls_done = n;
done:
    return rc;
}

/* ---- All of it ---------------------------------------------------------------------------- */

static int sample(struct dpk_job *job, const struct dpk_exec_hook *hook, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t steps = 0;
    job->stage_name = "step";
    DPK_TRY(dpk_job_noise(job, err));
    DPK_TRY(trace_latent(job, 0, err));
    if (job->loop_bytes) {
        DPK_TRY(sample_on_device(job, err));
        goto done;
    }
    for (uint32_t row = 0; row < job->schedule->n_rows; row++) {
        DPK_TRY(dpk_job_step(job, row, hook, err));
        job->calls_done = row + 1;
        if (job->schedule->rows[row].step_ends) DPK_TRY(trace_latent(job, ++steps, err));
    }
done:
    return rc;
}

static int decode(struct dpk_job *job, const struct dpk_exec_hook *hook, dpk_images *images,
                  dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    size_t n = (size_t)p->width * p->height * 3;
    job->stage_name = "decode";
    float *all = job->fitted ? job->shown : job->image;
    for (uint32_t i = 0; i < job->n_images; i++) {
        float *image = all + (p->trace ? i * n : 0);
        DPK_TRY(dpk_job_decode(job, i, job->fitted ? job->image : image, hook, err));
        if (job->fitted)
            dpk_resize_cover(job->image, job->paint_width, job->paint_height, image, p->width,
                             p->height);
        dpk_guide_to_rgb(n, image, images->rgb + i * n);
    }
    if (p->trace) {
        struct dpk_shape shape = {
            4, {(int32_t)job->n_images, (int32_t)p->height, (int32_t)p->width, 3}};
        DPK_TRY(trace(job, "image", shape, all, err));
    }
done:
    return rc;
}

static int make_images(const struct dpk_job *job, dpk_images **images, dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    size_t n = (size_t)job->n_images * p->width * p->height * 3;
    dpk_images *m = malloc(sizeof *m + n);
    if (!m) DPK_FAIL(err, DPK_ENOMEM, "no memory for pictures of %zu bytes", n);
    *m = (dpk_images){job->n_images, p->width, p->height, (uint8_t *)(m + 1)};
    *images = m;
done:
    return rc;
}

int dpk_generate(dpk_session *session, const dpk_params *params, dpk_images **images,
                 dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_job job;
    dpk_images *made = NULL;
    *images = NULL;
    DPK_TRY(dpk_job_plan(&job, session, params, err));
    DPK_TRY(dpk_job_begin(&job, err));
    DPK_TRY(make_images(&job, &made, err));
    struct dpk_exec_hook hook = {after_operator, &job, NULL};
    const struct dpk_exec_hook *h = job.params.progress ? &hook : NULL;
    job.stage_name = job.params.init ? "encode" : "text";
    if (report(&job, 0)) DPK_FAIL(err, DPK_ECANCELLED, "%s: stopped by the caller", job.stage_name);
    DPK_TRY(dpk_job_encode(&job, h, err));
    job.stage_name = "text";
    DPK_TRY(dpk_job_text(&job, h, err));
    DPK_TRY(trace_text(&job, err));
    job.stage_name = "setup";
    DPK_TRY(dpk_job_setup(&job, h, err));
    DPK_TRY(sample(&job, h, err));
    DPK_TRY(decode(&job, h, made, err));
    report(&job, 1); /* nothing is left to stop */
    *images = made;
    made = NULL;
done:
    dpk_images_free(made);
    dpk_job_free(&job);
    return rc;
}

void dpk_images_free(dpk_images *images) { free(images); }

int dpk_session_plan(dpk_session *session, const dpk_params *params, dpk_info *info,
                     dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_job job;
    DPK_TRY(dpk_job_plan(&job, session, params, err));
    *info = (dpk_info){.n_images = job.n_images,
                       .width = job.params.width,
                       .height = job.params.height,
                       .paint_width = job.paint_width,
                       .paint_height = job.paint_height,
                       .n_chunks = job.n_chunks,
                       .latent_width = job.w,
                       .latent_height = job.h,
                       .latent_channels = job.channels,
                       .steps = job.params.steps,
                       .n_calls = job.schedule->n_rows,
                       .guidance = job.params.guidance,
                       .scheduler = job.schedule->name,
                       .arena_bytes = job.plan.arena_bytes,
                       .host_bytes = job.host_bytes,
                       .peak_bytes = job.plan.arena_bytes + job.host_bytes + job.loop_bytes};
done:
    dpk_job_free(&job);
    return rc;
}
