#include "card.h"

#include "../formats/fail.h"
#include "rewrite.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    /* Metadata written at the end may move the weights by pages: what a budget leaves for them. */
    FRONT_RESERVE = 8192,
    FRONT_A_SHAPE = 256,
    MAX_FIXED_PAIRS = 8,
    MAX_TEXT = 640,
};

struct making {
    struct dpk_card *card;
    const struct dpk_file *f;
    const struct dpk_card_options *o;
    char *candidate; /* owned path; the file is removed in the end */
    struct dpk_rewrite_pair *pairs;
    size_t n_pairs;
    char (*text)[MAX_TEXT]; /* what the pairs point to: a key and a value each */
    dpk_error *err;
};

static int rewrite(struct making *m, const char *path) {
    const struct dpk_rewrite_options options = {.scheme = m->o->scheme,
                                                .filter_id = dpk_filter_id(m->o->filter),
                                                .progress = m->o->progress,
                                                .progress_arg = m->o->progress_arg,
                                                .pairs = m->pairs,
                                                .n_pairs = m->n_pairs,
                                                .threads = m->o->how.threads};
    return dpk_rewrite(m->f, path, &m->card->layers, &options, m->err);
}

static uint64_t size_of(const char *path) {
    struct stat st;
    return path && stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* ---- Trying ---------------------------------------------------------------------------------- */

static int name_candidate(struct making *m) {
    const char *folder = getenv("TMPDIR");
    int n, rc = DPK_OK;
    if (m->o->output) n = asprintf(&m->candidate, "%s.try-%ld", m->o->output, (long)getpid());
    else
        n = asprintf(&m->candidate, "%s/diffpak-quantize-%ld.dpk",
                     folder && *folder ? folder : "/tmp", (long)getpid());
    if (n < 0) {
        m->candidate = NULL;
        DPK_FAIL(m->err, DPK_ENOMEM, "no memory for a file name");
    }
    if (access(m->candidate, F_OK) == 0) {
        rc = dpk_error_set(m->err, DPK_EIO, "%s: is there already", m->candidate);
        free(m->candidate); /* not ours to remove */
        m->candidate = NULL;
    }
done:
    return rc;
}

static int choose(struct making *m) {
    struct dpk_card *c = m->card;
    struct dpk_budget budget = {0};
    const size_t before = c->layers.n_quantized;
    int rc = DPK_OK;
    if (!m->o->sensitivity && !m->o->budget) goto done;
    if (m->o->budget) DPK_TRY(dpk_budget_parse(&budget, m->o->budget, m->err));
    DPK_TRY(dpk_alone_measure(
        &c->alone, m->o->input, m->candidate, &c->layers, m->o->budget ? &budget : NULL,
        size_of(m->candidate) + FRONT_RESERVE + FRONT_A_SHAPE * c->timed.n, &m->o->how, m->err));
    c->subject.alone = &c->alone;
    if (c->layers.n_quantized != before) DPK_TRY(rewrite(m, m->candidate));
done:
    return rc;
}

static int measure(struct making *m) {
    struct dpk_card *c = m->card;
    int rc = DPK_OK;
    if (!m->o->measure && m->o->max_error < 0) goto done;
    DPK_TRY(
        dpk_measure_files(&c->measure, m->o->input, m->candidate, &c->layers, &m->o->how, m->err));
    c->subject.measure = &c->measure;
    if (m->o->max_error >= 0 && !(c->measure.latent_error <= m->o->max_error))
        DPK_FAIL(m->err, DPK_EARG, "%s: the latent's error is %.6g, at most %.6g was asked for",
                 m->o->input, c->measure.latent_error, m->o->max_error);
done:
    return rc;
}

/* ---- Metadata -------------------------------------------------------------------------------- */

static void add_pair(struct making *m, const char *key, const char *value) {
    char *k = m->text[2 * m->n_pairs], *v = m->text[2 * m->n_pairs + 1];
    snprintf(k, MAX_TEXT, "%s", key);
    snprintf(v, MAX_TEXT, "%s", value);
    m->pairs[m->n_pairs++] = (struct dpk_rewrite_pair){k, v};
}

static void add_number(struct making *m, const char *key, double v) {
    char text[32];
    snprintf(text, sizeof text, isfinite(v) ? "%.5g" : "equal", v);
    add_pair(m, key, text);
}

static void add_measure(struct making *m) {
    const struct dpk_measure *q = &m->card->measure;
    char text[MAX_TEXT];
    size_t worst = 0;
    snprintf(text, sizeof text, "%" PRIu32 " of %" PRIu32 "x%" PRIu32 ", %" PRIu32 " steps, %s",
             q->n_pictures, q->width, q->height, q->steps, q->scheduler);
    add_pair(m, "quant.card.pictures", text);
    add_number(m, "quant.card.latent_error", q->latent_error);
    add_number(m, "quant.card.psnr", q->psnr);
    add_number(m, "quant.card.ssim", q->ssim);
    for (size_t i = 0; i < q->n_layers; i++)
        if (dpk_measure_layer_error(q, i) > dpk_measure_layer_error(q, worst)) worst = i;
    if (!q->n_layers || !(dpk_measure_layer_error(q, worst) > 0)) return;
    snprintf(text, sizeof text, "%s %.5g", m->card->layers.layer[worst].name,
             dpk_measure_layer_error(q, worst));
    add_pair(m, "quant.card.worst", text);
}

static int make_pairs(struct making *m) {
    const struct dpk_timed_shapes *t = &m->card->timed;
    const size_t most = MAX_FIXED_PAIRS + t->n;
    int rc = DPK_OK;
    m->pairs = calloc(most, sizeof *m->pairs);
    m->text = calloc(2 * most, sizeof *m->text);
    if (!m->pairs || !m->text) DPK_FAIL(m->err, DPK_ENOMEM, "no memory for metadata");
    if (m->o->budget) add_pair(m, "quant.budget", m->o->budget);
    if (m->card->subject.measure) add_measure(m);
    if (m->card->subject.timed) add_pair(m, "quant.auto.machine", t->machine);
    for (size_t i = 0; i < t->n; i++) {
        char key[40];
        snprintf(key, sizeof key, "quant.auto.%03zu", i);
        add_pair(m, key, t->shape[i].text);
    }
done:
    return rc;
}

/* ---- All of it ------------------------------------------------------------------------------- */

static void describe(struct making *m) {
    m->card->subject = (struct dpk_report_subject){.source_path = m->o->input,
                                                   .source_sum = dpk_file_sum(m->f),
                                                   .model = dpk_file_meta(m->f, "model.name"),
                                                   .scheme = m->o->scheme,
                                                   .filter_id = dpk_filter_id(m->o->filter),
                                                   .file_before = m->f->file_bytes};
}

int dpk_card_make(struct dpk_card *c, const struct dpk_file *f,
                  const struct dpk_card_options *options, dpk_error *err) {
    struct making m = {.card = c, .f = f, .o = options, .err = err};
    struct dpk_budget budget;
    int rc = DPK_OK;
    *c = (struct dpk_card){0};
    describe(&m);
    if (options->budget) DPK_TRY(dpk_budget_parse(&budget, options->budget, err));
    DPK_TRY(dpk_layers_make(&c->layers, f, options->input, options->scheme, options->filter, err));
    if (strcmp(dpk_filter_id(options->filter), "auto") == 0) {
        DPK_TRY(dpk_measure_shapes(&c->timed, options->input, &c->layers, options->scheme,
                                   &options->how, err));
        c->subject.timed = &c->timed;
    }
    if (options->measure || options->max_error >= 0 || options->sensitivity || options->budget) {
        DPK_TRY(name_candidate(&m));
        DPK_TRY(rewrite(&m, m.candidate));
        DPK_TRY(choose(&m));
        DPK_TRY(measure(&m));
    }
    if (options->output) {
        DPK_TRY(make_pairs(&m));
        DPK_TRY(rewrite(&m, options->output));
    }
    c->subject.file_after = size_of(options->output ? options->output : m.candidate);
done:
    if (m.candidate) unlink(m.candidate);
    free(m.candidate);
    free(m.pairs);
    free(m.text);
    if (rc != DPK_OK) dpk_card_free(c);
    return rc;
}

void dpk_card_free(struct dpk_card *c) {
    dpk_measure_free(&c->measure);
    dpk_alone_free(&c->alone);
    dpk_layers_free(&c->layers);
    dpk_timed_shapes_free(&c->timed); /* after the layers, whose reasons it holds */
    *c = (struct dpk_card){0};
}
