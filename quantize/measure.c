/* Whole runs of two files on the same prompts and seeds, and what they differ in. */
#include "measure_impl.h"

#include "../formats/fail.h"
#include "../runtime/guide.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEFAULT_SIDE = 512, PROBED_PROMPTS = 3, MIN_TIMED = 3 };
#define SECONDS_MORE 2.0 /* after which no call is made for its time alone */

double dpk_side_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int dpk_side_open(struct dpk_side *s, const char *path, int threads, dpk_error *err) {
    dpk_session_options o = dpk_session_options_default();
    int rc = DPK_OK;
    *s = (struct dpk_side){0};
    o.threads = threads;
    DPK_TRY(dpk_model_open(&s->model, path, err));
    DPK_TRY(dpk_session_create(&s->session, s->model, &o, err));
    s->session->whole_maps = true; /* results are looked at, operators run once more */
done:
    if (rc != DPK_OK) dpk_side_close(s);
    return rc;
}

void dpk_side_close(struct dpk_side *s) {
    dpk_session_free(s->session);
    dpk_model_free(s->model);
    *s = (struct dpk_side){0};
}

uint32_t dpk_side_weight(const struct dpk_op *op) {
    if (op->opcode == DPK_OP_linear) return op->wt[DPK_WT(linear, w)];
    if (op->opcode == DPK_OP_conv2d) return op->wt[DPK_WT(conv2d, w)];
    return DPK_NONE;
}

int dpk_side_check_pair(const struct dpk_side *before, const struct dpk_side *after,
                        dpk_error *err) {
    const struct dpk_file *a = &before->model->file, *b = &after->model->file;
    bool same = a->n_programs == b->n_programs;
    int rc = DPK_OK;
    for (uint32_t i = 0; same && i < a->n_programs; i++) {
        const struct dpk_program *p = &a->programs[i], *q = &b->programs[i];
        same = !strcmp(p->name, q->name) && p->n_inputs == q->n_inputs && p->n_ops == q->n_ops;
        for (uint32_t k = 0; same && k < p->n_ops; k++) same = p->ops[k].opcode == q->ops[k].opcode;
    }
    if (!same) DPK_FAIL(err, DPK_EARG, "the quantized file does not run the same operators");
done:
    return rc;
}

uint32_t *dpk_side_layer_of(const struct dpk_file *f, const struct dpk_layers *layers) {
    uint32_t *of = malloc(((size_t)f->n_tensors + 1) * sizeof *of);
    for (uint32_t i = 0; of && i < f->n_tensors; i++) of[i] = DPK_NONE;
    for (size_t i = 0; of && i < layers->n; i++)
        if (layers->layer[i].quantized && layers->layer[i].tensor < f->n_tensors)
            of[layers->layer[i].tensor] = (uint32_t)i;
    return of;
}

/* ---- Parameters of a run --------------------------------------------------------------------- */

static uint32_t fit(uint32_t side, uint32_t longest, uint32_t want, uint32_t multiple) {
    const uint64_t scaled = (uint64_t)side * want / longest;
    const uint32_t n = (uint32_t)(scaled / multiple) * multiple;
    return n ? n : multiple;
}

int dpk_side_params(const struct dpk_side *s, const struct dpk_measure_options *options,
                    uint32_t prompt, dpk_params *params, dpk_error *err) {
    struct dpk_settings set;
    int rc = DPK_OK;
    *params = dpk_params_default();
    DPK_TRY(dpk_settings_read(&s->model->file, &set, err));
    const uint32_t width = (uint32_t)set.width, height = (uint32_t)set.height;
    const uint32_t longest = width > height ? width : height;
    uint32_t want = options->size;
    if (!want) want = longest < DEFAULT_SIDE ? longest : DEFAULT_SIDE;
    params->width = fit(width, longest, want, (uint32_t)set.size_multiple);
    params->height = fit(height, longest, want, (uint32_t)set.size_multiple);
    params->prompts = &options->prompts[prompt];
    params->n_prompts = 1;
    params->steps = options->steps;
    params->no_binning = 1;
done:
    return rc;
}

/* ---- One run --------------------------------------------------------------------------------- */

struct run {
    const struct dpk_measure_options *options;
    const char *which; /* "unquantized", "quantized" */
    uint32_t prompt;
    double begin, share; /* of the whole measurement */
    struct dpk_side *side;
    const struct dpk_side *other; /* whose weights the probe compares with; NULL: no probe */
    const uint32_t *layer_of;
    struct dpk_measure_layer *layer;
    float *latent; /* result, owned by the caller of run() */
    size_t n_latent;
    uint8_t *rgb;
    uint32_t width, height;
    double step_seconds; /* the fastest call; 0: none was timed */
    uint32_t n_timed;
};

static int tell(const struct run *r, const char *stage, double fraction, dpk_error *err) {
    char what[160];
    if (!r->options->progress) return DPK_OK;
    snprintf(what, sizeof what, "%s, prompt %" PRIu32 " of %" PRIu32 ", %s", r->which,
             r->prompt + 1, r->options->n_prompts, stage);
    if (!r->options->progress(r->options->progress_arg, what, r->begin + r->share * fraction))
        return DPK_OK;
    return dpk_error_set(err, DPK_ECANCELLED, "measuring was stopped: %s", what);
}

/* The layers are compared in the first prompts' runs, at two of their calls: the first, where all is
 * noise, and one in the middle. */
static bool probes_row(const struct run *r, uint32_t row, uint32_t n_rows) {
    return r->other && (row == 0 || row == n_rows / 2);
}

static void keep_time(struct run *r, double seconds) {
    if (r->n_timed++ == 0 || seconds < r->step_seconds) r->step_seconds = seconds;
}

static int sample(struct run *r, struct dpk_job *job, const struct dpk_exec_hook *hook,
                  dpk_error *err) {
    const uint32_t n = job->schedule->n_rows;
    int rc = DPK_OK;
    DPK_TRY(dpk_job_noise(job, err));
    for (uint32_t row = 0; row < n; row++) {
        char stage[64];
        const bool probed = probes_row(r, row, n);
        snprintf(stage, sizeof stage, "step %" PRIu32 " of %" PRIu32, row + 1, n);
        DPK_TRY(tell(r, stage, 0.1 + 0.8 * row / n, err));
        const double begin = dpk_side_seconds();
        DPK_TRY(dpk_job_step(job, row, probed ? hook : NULL, err));
        if (!probed) keep_time(r, dpk_side_seconds() - begin);
    }
done:
    return rc;
}

/* A run in which few calls were timed, or none because all were probed: time some more, whose
 * results are not used. */
static int time_step(struct run *r, struct dpk_job *job, dpk_error *err) {
    const double first = dpk_side_seconds();
    int rc = DPK_OK;
    while (r->n_timed == 0 ||
           (r->n_timed < MIN_TIMED && dpk_side_seconds() - first < SECONDS_MORE)) {
        const double begin = dpk_side_seconds();
        DPK_TRY(dpk_job_step(job, 0, NULL, err));
        keep_time(r, dpk_side_seconds() - begin);
    }
done:
    return rc;
}

static int keep_result(struct run *r, struct dpk_job *job, const struct dpk_exec_hook *hook,
                       dpk_error *err) {
    int rc = DPK_OK;
    const size_t n = (size_t)job->h * job->w * job->channels;
    const size_t pixels = (size_t)job->paint_width * job->paint_height * 3;
    r->latent = malloc(n * sizeof *r->latent);
    r->rgb = malloc(pixels);
    if (!r->latent || !r->rgb) DPK_FAIL(err, DPK_ENOMEM, "no memory for a picture");
    memcpy(r->latent, job->x, n * sizeof *r->latent);
    r->n_latent = n;
    r->width = job->paint_width;
    r->height = job->paint_height;
    DPK_TRY(tell(r, "decoding", 0.9, err));
    DPK_TRY(dpk_job_decode(job, 0, job->image, hook, err));
    dpk_guide_to_rgb(pixels, job->image, r->rgb);
done:
    return rc;
}

static int run(struct run *r, const dpk_params *params, dpk_error *err) {
    struct dpk_job job = {0}, other = {0};
    struct dpk_probe probe = {0};
    const struct dpk_exec_hook to_probe = {.after = dpk_probe_after, .arg = &probe};
    const struct dpk_exec_hook *hook = r->other ? &to_probe : NULL;
    int rc = DPK_OK;
    DPK_TRY(dpk_job_plan(&job, r->side->session, params, err));
    if (r->other) {
        DPK_TRY(dpk_job_plan(&other, r->other->session, params, err));
        DPK_TRY(dpk_probe_make(&probe, &job.plan, &other.plan, r->layer_of, r->layer, err));
    }
    DPK_TRY(dpk_job_begin(&job, err));
    DPK_TRY(tell(r, "text", 0, err));
    DPK_TRY(dpk_job_text(&job, hook, err));
    DPK_TRY(dpk_job_setup(&job, hook, err));
    DPK_TRY(sample(r, &job, hook, err));
    DPK_TRY(keep_result(r, &job, hook, err));
    DPK_TRY(dpk_job_setup(&job, NULL, err)); /* decoding may have taken its place in the arena */
    DPK_TRY(time_step(r, &job, err));
done:
    if (probe.rc != DPK_OK) {
        rc = probe.rc;
        if (err) *err = probe.err;
    }
    dpk_probe_free(&probe);
    dpk_job_free(&other);
    dpk_job_free(&job);
    dpk_session_release(r->side->session); /* the other side's is as large */
    return rc;
}

/* ---- All of it ------------------------------------------------------------------------------- */

struct totals {
    double signal, noise, mse;
};

static int compare_runs(struct dpk_measure *m, struct dpk_measure_picture *p, struct run *a,
                        struct run *b, struct totals *t, dpk_error *err) {
    double signal = 0, noise = 0;
    int rc = DPK_OK;
    if (a->n_latent != b->n_latent || a->width != b->width || a->height != b->height)
        DPK_FAIL(err, DPK_EARG, "the two files paint pictures of different sizes");
    const size_t n = (size_t)a->width * a->height * 3;
    dpk_quality_add(a->latent, b->latent, a->n_latent, &signal, &noise);
    p->latent_error = signal > 0 ? sqrt(noise / signal) : noise > 0 ? INFINITY : 0;
    const double mse = dpk_quality_mse(a->rgb, b->rgb, n);
    p->psnr = dpk_quality_psnr(mse, 255);
    DPK_TRY(dpk_quality_ssim(a->rgb, b->rgb, a->width, a->height, &p->ssim, err));
    t->signal += signal;
    t->noise += noise;
    t->mse += mse / m->n_pictures;
    m->ssim += p->ssim / m->n_pictures;
    m->width = a->width;
    m->height = a->height;
    p->before = a->rgb;
    p->after = b->rgb;
    a->rgb = b->rgb = NULL;
done:
    return rc;
}

static void keep_faster(double *best, double seconds) {
    if (seconds > 0 && (*best <= 0 || seconds < *best)) *best = seconds;
}

static int measure_prompt(struct dpk_measure *m, struct dpk_side side[2], const uint32_t *layer_of,
                          const struct dpk_measure_options *o, uint32_t i, struct totals *t,
                          dpk_error *err) {
    struct dpk_measure_picture *p = &m->picture[i];
    struct run r[2] = {{0}};
    dpk_params params;
    int rc = DPK_OK;
    p->prompt = o->prompts[i];
    p->seed = i;
    for (int k = 0; k < 2; k++) {
        r[k] = (struct run){.options = o, .which = k ? "quantized" : "unquantized", .prompt = i};
        r[k].share = 0.5 / o->n_prompts;
        r[k].begin = ((double)i + 0.5 * k) / o->n_prompts;
        r[k].side = &side[k];
        r[k].layer_of = layer_of;
        r[k].layer = m->layer;
        if (i < PROBED_PROMPTS && k == 0) r[k].other = &side[1];
        DPK_TRY(dpk_side_params(&side[0], o, i, &params, err));
        params.seeds = &p->seed;
        params.n_seeds = 1;
        DPK_TRY(run(&r[k], &params, err));
        keep_faster(k ? &m->step_after : &m->step_before, r[k].step_seconds);
    }
    DPK_TRY(compare_runs(m, p, &r[0], &r[1], t, err));
done:
    for (int k = 0; k < 2; k++) {
        free(r[k].latent);
        free(r[k].rgb);
    }
    return rc;
}

static int describe(struct dpk_measure *m, const struct dpk_side *side,
                    const struct dpk_measure_options *o, dpk_error *err) {
    dpk_params params;
    dpk_info info;
    int rc = DPK_OK;
    DPK_TRY(dpk_side_params(side, o, 0, &params, err));
    DPK_TRY(dpk_session_plan(side->session, &params, &info, err));
    m->steps = info.steps;
    snprintf(m->scheduler, sizeof m->scheduler, "%s", info.scheduler);
    snprintf(m->machine, sizeof m->machine, "%s", dpk_session_describe(side->session));
done:
    return rc;
}

int dpk_measure_files(struct dpk_measure *m, const char *before, const char *after,
                      const struct dpk_layers *layers, const struct dpk_measure_options *options,
                      dpk_error *err) {
    struct dpk_side side[2] = {{0}};
    struct totals t = {0};
    uint32_t *layer_of = NULL;
    int rc = DPK_OK;
    *m = (struct dpk_measure){0};
    if (options->n_prompts < 1 || options->n_prompts > DPK_MEASURE_MAX_PROMPTS)
        DPK_FAIL(err, DPK_EARG, "%" PRIu32 " prompts to measure with, want 1 to %d",
                 options->n_prompts, DPK_MEASURE_MAX_PROMPTS);
    DPK_TRY(dpk_side_open(&side[0], before, options->threads, err));
    DPK_TRY(dpk_side_open(&side[1], after, options->threads, err));
    DPK_TRY(dpk_side_check_pair(&side[0], &side[1], err));
    m->picture = calloc(options->n_prompts, sizeof *m->picture);
    m->layer = calloc(layers->n + 1, sizeof *m->layer);
    layer_of = dpk_side_layer_of(&side[0].model->file, layers);
    if (!m->picture || !m->layer || !layer_of)
        DPK_FAIL(err, DPK_ENOMEM, "no memory for measurements of %zu layers", layers->n);
    m->n_pictures = options->n_prompts;
    m->n_layers = layers->n;
    DPK_TRY(describe(m, &side[0], options, err));
    for (uint32_t i = 0; i < m->n_pictures; i++)
        DPK_TRY(measure_prompt(m, side, layer_of, options, i, &t, err));
    m->latent_error = t.signal > 0 ? sqrt(t.noise / t.signal) : t.noise > 0 ? INFINITY : 0;
    m->psnr = dpk_quality_psnr(t.mse, 255);
done:
    free(layer_of);
    dpk_side_close(&side[0]);
    dpk_side_close(&side[1]);
    if (rc != DPK_OK) dpk_measure_free(m);
    return rc;
}

void dpk_measure_free(struct dpk_measure *m) {
    for (uint32_t i = 0; m->picture && i < m->n_pictures; i++) {
        free(m->picture[i].before);
        free(m->picture[i].after);
    }
    free(m->picture);
    free(m->layer);
    *m = (struct dpk_measure){0};
}

double dpk_measure_layer_error(const struct dpk_measure *m, size_t i) {
    const struct dpk_measure_layer *l = &m->layer[i];
    return l->signal > 0 ? sqrt(l->noise / l->signal) : 0;
}

double dpk_measure_layer_share(const struct dpk_measure *m, size_t i) {
    double sum = 0;
    for (size_t k = 0; k < m->n_layers; k++) {
        const double e = dpk_measure_layer_error(m, k);
        sum += e * e;
    }
    const double own = dpk_measure_layer_error(m, i);
    return sum > 0 ? own * own / sum : 0;
}
