/* What quantizing a layer alone does to the picture, and choosing layers by that.
 *
 * A run of the unquantized model in which the operators of some layers take their weight from the
 * quantized file: a set of layers is tried without writing a file. Choosing is greedy: units in the
 * order of picture error a byte saved (as in mixed-precision searches such as Dong et al., HAWQ,
 * 2019, with the measured error in place of the curvature), and the longest prefix of that order
 * that holds the budget is found by bisection on measured pictures. */
#include "measure_impl.h"

#include "../formats/fail.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_UNITS = 160 }; /* more layers than that are tried in groups */

int dpk_budget_parse(struct dpk_budget *b, const char *text, dpk_error *err) {
    static const struct {
        const char *name;
        double factor;
    } units[] = {{"", 1},     {"B", 1},    {"kB", 1e3},   {"KB", 1e3},
                 {"MB", 1e6}, {"GB", 1e9}, {"KiB", 1024}, {"MiB", 1048576},
                 {"k", 1e3},  {"M", 1e6},  {"G", 1e9},    {"GiB", 1073741824}};
    double v;
    int rc = DPK_OK;
    *b = (struct dpk_budget){0};
    const char *end = dpk_parse_number(text, &v);
    if (!end || !isfinite(v) || !(v > 0)) end = "?";
    while (*end == ' ') end++;
    if (strcmp(end, "dB") == 0 || strcmp(end, "db") == 0) b->psnr_db = v;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(end, units[i].name) == 0 && v * units[i].factor < 1e18)
            b->bytes = (uint64_t)(v * units[i].factor);
    if (!b->bytes && !(b->psnr_db > 0))
        DPK_FAIL(err, DPK_EARG, "budget %.60s: want decibels (30dB) or a file size (500MB)", text);
done:
    return rc;
}

/* ---- Units ----------------------------------------------------------------------------------- */

/* Equal but for digits? */
static bool alike(const char *a, const char *b) {
    while (*a && *b) {
        const bool da = isdigit((unsigned char)*a), db = isdigit((unsigned char)*b);
        if (da != db || (!da && *a != *b)) return false;
        if (!da) {
            a++, b++;
            continue;
        }
        while (isdigit((unsigned char)*a)) a++;
        while (isdigit((unsigned char)*b)) b++;
    }
    return *a == *b;
}

static int make_units(struct dpk_alone *a, const struct dpk_layers *layers, dpk_error *err) {
    const bool group = layers->n_quantized > MAX_UNITS;
    int rc = DPK_OK;
    a->n_layers = layers->n;
    a->unit = calloc(layers->n + 1, sizeof *a->unit);
    a->order = calloc(layers->n + 1, sizeof *a->order);
    a->unit_of = calloc(layers->n + 1, sizeof *a->unit_of);
    if (!a->unit || !a->order || !a->unit_of)
        DPK_FAIL(err, DPK_ENOMEM, "no memory to rank %zu layers", layers->n);
    for (size_t i = 0; i < layers->n; i++) {
        const struct dpk_layer *l = &layers->layer[i];
        size_t u = a->n_units;
        a->unit_of[i] = DPK_NONE;
        if (!l->quantized) continue;
        for (size_t k = 0; group && u == a->n_units && k < i; k++) {
            const struct dpk_layer *o = &layers->layer[k];
            if (o->quantized && o->kind == l->kind && o->in == l->in && o->out == l->out &&
                alike(o->name, l->name))
                u = a->unit_of[k];
        }
        if (u == a->n_units) a->unit[a->n_units++].name = l->name;
        a->unit_of[i] = (uint32_t)u;
        a->unit[u].n_layers++;
        a->unit[u].bytes_saved += l->bytes_before - l->bytes_after;
    }
done:
    return rc;
}

/* ---- A model of mixed weights ---------------------------------------------------------------- */

struct mix {
    struct dpk_alone *a;
    const struct dpk_measure_options *options;
    struct dpk_side side[2];
    struct dpk_job job, quantized;               /* the second is a plan only */
    uint32_t *layer_of;                          /* by tensor */
    struct dpk_weight *own[DPK_PLAN_MAX_STAGES]; /* the job's weights, by operator */
    bool *chosen;                                /* [n_units] */
    void *scratch;
    struct dpk_random random; /* the generator at the start */
    float *noise, *picture;   /* what every run starts from; the unquantized picture */
    size_t n_pixels;
    bool text_changed; /* the text in the host buffers was made with quantized weights */
    uint32_t total;    /* runs expected */
};

static int take_scratch(struct mix *m, dpk_error *err) {
    const struct dpk_backend *be = m->job.plan.backend;
    uint64_t most = DPK_ALIGN;
    int rc = DPK_OK;
    for (uint32_t s = 0; s < m->job.plan.n_stages; s++)
        for (uint32_t i = 0; i < m->job.plan.stages[s].program->n_ops; i++) {
            const struct dpk_call *call = &m->job.plan.stages[s].calls[i];
            struct dpk_call other = *call;
            other.wt[0] = m->quantized.plan.stages[s].calls[i].wt[0];
            const size_t a = be->scratch_bytes(be, call), b = be->scratch_bytes(be, &other);
            if (a > most) most = a;
            if (b > most) most = b;
        }
    most = (most + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    m->scratch = aligned_alloc(DPK_ALIGN, most);
    if (!m->scratch) DPK_FAIL(err, DPK_ENOMEM, "no memory for scratch");
done:
    return rc;
}

static int keep_weights(struct mix *m, dpk_error *err) {
    int rc = DPK_OK;
    for (uint32_t s = 0; s < m->job.plan.n_stages; s++) {
        struct dpk_plan_stage *stage = &m->job.plan.stages[s];
        const uint32_t n = stage->program->n_ops;
        m->own[s] = calloc((size_t)n + 1, sizeof *m->own[s]);
        if (!m->own[s]) DPK_FAIL(err, DPK_ENOMEM, "no memory for %" PRIu32 " operators", n);
        for (uint32_t i = 0; i < n; i++) {
            m->own[s][i] = stage->calls[i].wt[0];
            stage->calls[i].scratch = m->scratch;
            stage->scratch_bytes[i] = 0; /* it is not the arena's */
        }
    }
done:
    return rc;
}

/* Give every operator the weight that `chosen` says. Returns whether the text program has a
 * quantized one. */
static bool set_weights(struct mix *m) {
    bool text = false;
    for (uint32_t s = 0; s < m->job.plan.n_stages; s++) {
        struct dpk_plan_stage *stage = &m->job.plan.stages[s];
        for (uint32_t i = 0; i < stage->program->n_ops; i++) {
            const uint32_t tensor = dpk_side_weight(&stage->program->ops[i]);
            if (tensor == DPK_NONE || m->layer_of[tensor] == DPK_NONE) continue;
            const bool on = m->chosen[m->a->unit_of[m->layer_of[tensor]]];
            stage->calls[i].wt[0] = on ? m->quantized.plan.stages[s].calls[i].wt[0] : m->own[s][i];
            text |= on && s == m->job.text;
        }
    }
    return text;
}

static int paint(struct mix *m, const char *what, dpk_error *err) {
    struct dpk_job *job = &m->job;
    const bool text = set_weights(m);
    char line[160];
    int rc = DPK_OK;
    snprintf(line, sizeof line, "layers alone, run %" PRIu32 " of about %" PRIu32 ", %.80s",
             m->a->runs + 1, m->total, what);
    if (m->options->progress &&
        m->options->progress(m->options->progress_arg, line, (double)m->a->runs / m->total))
        DPK_FAIL(err, DPK_ECANCELLED, "measuring was stopped: %s", line);
    if (text || m->text_changed || !m->a->runs) DPK_TRY(dpk_job_text(job, NULL, err));
    m->text_changed = text;
    DPK_TRY(dpk_job_setup(job, NULL, err));
    const size_t n = (size_t)job->h * job->w * job->channels;
    if (!m->a->runs) {
        DPK_TRY(dpk_job_noise(job, err));
        memcpy(m->noise, job->x, n * sizeof *m->noise);
        m->random = *job->random;
    }
    memcpy(job->x, m->noise, n * sizeof *m->noise);
    *job->random = m->random;
    for (uint32_t row = 0; row < job->schedule->n_rows; row++)
        DPK_TRY(dpk_job_step(job, row, NULL, err));
    DPK_TRY(dpk_job_decode(job, 0, job->image, NULL, err));
    for (size_t i = 0; i < m->n_pixels; i++)
        job->image[i] = job->image[i] > 1 ? 1 : job->image[i] > -1 ? job->image[i] : -1;
    if (!m->a->runs) memcpy(m->picture, job->image, m->n_pixels * sizeof *m->picture);
    m->a->runs++;
done:
    return rc;
}

static double picture_error(const struct mix *m) {
    double signal = 0, noise = 0;
    dpk_quality_add(m->picture, m->job.image, m->n_pixels, &signal, &noise);
    return noise / (double)m->n_pixels;
}

static int mix_open(struct mix *m, const char *before, const char *after,
                    const struct dpk_layers *layers, dpk_error *err) {
    dpk_params params;
    int rc = DPK_OK;
    DPK_TRY(dpk_side_open(&m->side[0], before, m->options->threads, err));
    DPK_TRY(dpk_side_open(&m->side[1], after, m->options->threads, err));
    DPK_TRY(dpk_side_check_pair(&m->side[0], &m->side[1], err));
    DPK_TRY(dpk_side_params(&m->side[0], m->options, 0, &params, err));
    DPK_TRY(dpk_job_plan(&m->job, m->side[0].session, &params, err));
    DPK_TRY(dpk_job_plan(&m->quantized, m->side[1].session, &params, err));
    m->n_pixels = (size_t)m->job.paint_width * m->job.paint_height * 3;
    m->layer_of = dpk_side_layer_of(&m->side[0].model->file, layers);
    m->chosen = calloc(m->a->n_units + 1, sizeof *m->chosen);
    m->noise = malloc((size_t)m->job.h * m->job.w * m->job.channels * sizeof *m->noise);
    m->picture = malloc(m->n_pixels * sizeof *m->picture);
    if (!m->layer_of || !m->chosen || !m->noise || !m->picture)
        DPK_FAIL(err, DPK_ENOMEM, "no memory to try layers alone");
    DPK_TRY(take_scratch(m, err));
    DPK_TRY(dpk_job_begin(&m->job, err));
    DPK_TRY(keep_weights(m, err));
done:
    return rc;
}

static void mix_close(struct mix *m) {
    for (int s = 0; s < DPK_PLAN_MAX_STAGES; s++) free(m->own[s]);
    free(m->layer_of);
    free(m->chosen);
    free(m->scratch);
    free(m->noise);
    free(m->picture);
    dpk_job_free(&m->job);
    dpk_job_free(&m->quantized);
    dpk_side_close(&m->side[0]);
    dpk_side_close(&m->side[1]);
}

/* ---- Ranking and choosing -------------------------------------------------------------------- */

static double price(const struct dpk_alone_unit *u) {
    return u->error / (double)(u->bytes_saved ? u->bytes_saved : 1);
}

static void rank(struct dpk_alone *a) {
    for (uint32_t i = 0; i < a->n_units; i++) {
        uint32_t at = i; /* equal prices keep their order */
        while (at > 0 && price(&a->unit[a->order[at - 1]]) > price(&a->unit[i])) {
            a->order[at] = a->order[at - 1];
            at--;
        }
        a->order[at] = i;
    }
    for (uint32_t i = 0; i < a->n_units; i++) a->unit[a->order[i]].rank = i;
}

static int try_prefix(struct mix *m, size_t n, double *psnr, dpk_error *err) {
    char what[64];
    int rc = DPK_OK;
    for (size_t i = 0; i < m->a->n_units; i++) m->chosen[m->a->order[i]] = i < n;
    snprintf(what, sizeof what, "the first %zu of %zu", n, m->a->n_units);
    DPK_TRY(paint(m, what, err));
    *psnr = dpk_quality_psnr(picture_error(m), 2);
done:
    return rc;
}

/* The longest prefix with a picture that good. */
static int choose_by_picture(struct mix *m, double psnr_db, size_t *n, dpk_error *err) {
    size_t low = 0, high = m->a->n_units; /* `low` units are fine */
    double psnr;
    int rc = DPK_OK;
    DPK_TRY(try_prefix(m, high, &psnr, err));
    if (psnr >= psnr_db) low = high;
    while (low + 1 < high) {
        const size_t middle = (low + high) / 2;
        DPK_TRY(try_prefix(m, middle, &psnr, err));
        if (psnr >= psnr_db) low = middle;
        else high = middle;
    }
    *n = low;
done:
    return rc;
}

/* The shortest prefix that makes the file that small. file_bytes: with all of them. */
static int choose_by_bytes(const struct dpk_alone *a, uint64_t bytes, uint64_t file_bytes,
                           size_t *n, dpk_error *err) {
    uint64_t now = file_bytes;
    int rc = DPK_OK;
    if (file_bytes > bytes)
        DPK_FAIL(err, DPK_EARG, "budget of %" PRIu64 " bytes: the smallest file has %" PRIu64,
                 bytes, file_bytes);
    size_t last = a->n_units; /* units from there on can be left alone */
    while (last > 0) {
        const uint64_t more = a->unit[a->order[last - 1]].bytes_saved;
        if (more > bytes - now) break;
        now += more;
        last--;
    }
    *n = last;
done:
    return rc;
}

static void leave_rest(const struct dpk_alone *a, struct dpk_layers *layers, size_t n) {
    for (size_t i = 0; i < layers->n; i++) {
        struct dpk_layer *l = &layers->layer[i];
        if (a->unit_of[i] == DPK_NONE || a->unit[a->unit_of[i]].rank < n) continue;
        l->quantized = false;
        l->reason = "over the budget";
        l->bytes_after = l->bytes_before;
        l->group = 0;
        l->signal = l->noise = 0;
        layers->n_quantized--;
    }
}

int dpk_alone_measure(struct dpk_alone *a, const char *before, const char *after,
                      struct dpk_layers *layers, const struct dpk_budget *budget,
                      uint64_t file_bytes, const struct dpk_measure_options *options,
                      dpk_error *err) {
    struct mix m = {.a = a, .options = options};
    size_t n;
    int rc = DPK_OK;
    *a = (struct dpk_alone){0};
    DPK_TRY(make_units(a, layers, err));
    n = a->n_units;
    m.total =
        (uint32_t)n + 1 + (budget && budget->psnr_db > 0 ? 2 + (uint32_t)log2((double)n + 1) : 0);
    DPK_TRY(mix_open(&m, before, after, layers, err));
    DPK_TRY(paint(&m, "unquantized", err));
    for (size_t i = 0; i < n; i++) {
        m.chosen[i] = true;
        DPK_TRY(paint(&m, a->unit[i].name, err));
        m.chosen[i] = false;
        a->unit[i].error = picture_error(&m);
    }
    rank(a);
    if (budget && budget->psnr_db > 0) DPK_TRY(choose_by_picture(&m, budget->psnr_db, &n, err));
    else if (budget && budget->bytes)
        DPK_TRY(choose_by_bytes(a, budget->bytes, file_bytes, &n, err));
    leave_rest(a, layers, n);
done:
    mix_close(&m);
    if (rc != DPK_OK) dpk_alone_free(a);
    return rc;
}

double dpk_alone_psnr(const struct dpk_alone_unit *u) { return dpk_quality_psnr(u->error, 2); }

void dpk_alone_free(struct dpk_alone *a) {
    free(a->unit);
    free(a->order);
    free(a->unit_of);
    *a = (struct dpk_alone){0};
}
