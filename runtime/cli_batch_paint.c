/* Painting a file of prompts: what is there already is kept, the rest painted, all listed. */
#include "cli_batch.h"

#include "../formats/atomic_file.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_PIXELS = 1 << 28, LIST_SECONDS = 10 };

struct run {
    struct dpk_cli_batch *batch;
    const char *model_path, *folder;
    const dpk_model *model;
    dpk_session *session;
    struct dpk_cli_bar bar;
    size_t done; /* lines */
    uint32_t n_painted, n_kept;
    FILE *list; /* the manifest, in memory */
    char *list_text;
    size_t list_size;
};

/* ---- Checking ----------------------------------------------------------------------------- */

static bool same_text(const char *a, const char *b) { return a == b || (a && b && !strcmp(a, b)); }

/* Whether a plan that works for a works for b. A picture or array to start from is looked at on its
 * own. */
static bool same_plan(const struct dpk_cli_picture *a, const struct dpk_cli_picture *b) {
    const dpk_params *p = &a->params, *q = &b->params;
    if (p->long_prompt == DPK_LONG_CHUNKS) return false; /* as long as the prompt */
    return !a->init && !b->init && !a->latents && !b->latents && p->width == q->width &&
           p->height == q->height && p->steps == q->steps && p->guidance == q->guidance &&
           p->guidance_rescale == q->guidance_rescale && p->long_prompt == q->long_prompt &&
           p->prompt_weights == q->prompt_weights && p->no_binning == q->no_binning &&
           !p->negative == !q->negative && same_text(p->scheduler, q->scheduler);
}

/* Plan each kind of picture, so that an option that the model does not take is known before hours
 * have been spent. */
static int check_lines(struct run *r, dpk_error *err) {
    const struct dpk_cli_picture *checked = NULL;
    int rc = DPK_OK;
    for (size_t i = 0; !rc && i < r->batch->n; i++) {
        struct dpk_cli_line *line = &r->batch->lines[i];
        struct dpk_cli_inputs in = {0};
        dpk_info info;
        dpk_error why = {0};
        if (checked && same_plan(checked, &line->picture)) continue;
        rc = dpk_cli_picture_read(&line->picture, &in, r->session, &info, &why);
        dpk_cli_inputs_free(&in);
        if (rc) dpk_error_set(err, rc, "%s line %u: %s", r->batch->path, line->number, why.msg);
        checked = &line->picture;
    }
    return rc;
}

/* ---- Painting ----------------------------------------------------------------------------- */

/* Whether the file is a whole picture made from just these inputs. */
static bool is_finished(const char *path, const dpk_info *info, const struct dpk_cli_texts *texts) {
    struct dpk_png png;
    dpk_error err;
    if (dpk_png_read(&png, path, MOST_PIXELS, &err)) return false;
    bool same = png.width == info->width && png.height == info->height && png.n_texts == texts->n;
    for (size_t i = 0; same && i < texts->n; i++)
        same = same_text(dpk_png_find(&png, texts->at[i].key), texts->at[i].value);
    dpk_png_free(&png);
    return same;
}

static void list_picture(struct run *r, const struct dpk_cli_line *line, const char *path,
                         const dpk_info *info, const struct dpk_cli_texts *texts) {
    struct dpk_cli_json j = {r->list, false};
    dpk_cli_json_open(&j, NULL, '{');
    dpk_cli_json_text(&j, "file", strrchr(path, '/') + 1);
    dpk_cli_json_number(&j, "line", line->number);
    dpk_cli_json_number(&j, "width", info->width);
    dpk_cli_json_number(&j, "height", info->height);
    for (size_t i = 0; i < texts->n; i++)
        dpk_cli_json_text(&j, texts->at[i].key, texts->at[i].value);
    dpk_cli_json_close(&j, '}');
    dpk_cli_json_line(&j);
}

static int show_progress(void *arg, const dpk_progress *p) {
    struct run *r = arg;
    char what[48];
    snprintf(what, sizeof what, "picture %zu/%zu", r->done + 1, r->batch->n);
    dpk_cli_bar_show(&r->bar, what, ((double)r->done + p->fraction) / (double)r->batch->n);
    return 0;
}

static int paint_line(struct run *r, struct dpk_cli_line *line, bool paint, dpk_error *err) {
    struct dpk_cli_inputs in = {0};
    struct dpk_cli_texts texts;
    struct dpk_cli_picture *q = &line->picture;
    dpk_images *images = NULL;
    dpk_info info;
    char *path = NULL;
    int rc = DPK_OK;
    if (asprintf(&path, "%s/%05u.png", r->folder, line->index) < 0) {
        path = NULL;
        DPK_FAIL(err, DPK_ENOMEM, "no memory for a path");
    }
    q->params.progress = show_progress, q->params.progress_arg = r;
    DPK_TRY(dpk_cli_picture_read(q, &in, r->session, &info, err));
    dpk_cli_picture_describe(q, &in, r->model, r->model_path, &info, 0, &texts);
    if (is_finished(path, &info, &texts)) {
        r->n_kept++;
    } else if (!paint) {
        goto done;
    } else {
        DPK_TRY(dpk_generate(r->session, &q->params, &images, err));
        DPK_TRY(dpk_png_write(path, images->width, images->height, images->rgb, texts.at, texts.n,
                              err));
        r->n_painted++;
    }
    list_picture(r, line, path, &info, &texts);
done:
    dpk_images_free(images);
    dpk_cli_inputs_free(&in);
    free(path);
    return rc;
}

/* ---- The manifest ------------------------------------------------------------------------- */

static int write_list(struct run *r, dpk_error *err) {
    struct dpk_atomic_file file = {.fd = -1};
    const struct dpk_cli_batch *b = r->batch;
    char part[40] = "", *path = NULL;
    int rc = DPK_OK;
    if (b->n_shards > 1) snprintf(part, sizeof part, "-%u-of-%u", b->shard, b->n_shards);
    if (fflush(r->list) || ferror(r->list)) DPK_FAIL(err, DPK_ENOMEM, "no memory for the manifest");
    if (asprintf(&path, "%s/manifest%s.jsonl", r->folder, part) < 0) {
        path = NULL;
        DPK_FAIL(err, DPK_ENOMEM, "no memory for a path");
    }
    DPK_TRY(dpk_atomic_open(&file, path, err));
    DPK_TRY(dpk_atomic_write(&file, r->list_text, r->list_size, err));
done:
    rc = dpk_atomic_close(&file, rc, err);
    free(path);
    return rc;
}

/* After a line that fails, those behind it that are finished are still listed; the list is kept up while
 * hours go by. */
static int paint_lines(struct run *r, dpk_error *err) {
    time_t written = time(NULL);
    int rc = DPK_OK;
    for (r->done = 0; r->done < r->batch->n; r->done++) {
        struct dpk_cli_line *line = &r->batch->lines[r->done];
        const uint32_t n_painted = r->n_painted;
        dpk_error why = {0};
        const int one = paint_line(r, line, !rc, &why);
        if (!rc && one)
            rc = dpk_error_set(err, one, "%s line %u: %s", r->batch->path, line->number, why.msg);
        if (r->n_painted > n_painted && time(NULL) - written >= LIST_SECONDS) {
            if (!rc) rc = write_list(r, err);
            written = time(NULL);
        }
    }
    return rc;
}

int dpk_cli_batch_paint(struct dpk_cli_batch *batch, const char *model_path, const dpk_model *model,
                        dpk_session *session, const char *folder, bool quiet, dpk_error *err) {
    struct run r = {.batch = batch,
                    .model_path = model_path,
                    .folder = folder,
                    .model = model,
                    .session = session};
    dpk_error list_err = {0};
    struct stat st;
    int rc = DPK_OK, list_rc;
    r.list = open_memstream(&r.list_text, &r.list_size);
    if (!r.list) DPK_FAIL(err, DPK_ENOMEM, "no memory for the manifest");
    DPK_TRY(check_lines(&r, err));
    if (mkdir(folder, 0777) && errno != EEXIST)
        DPK_FAIL(err, DPK_EIO, "%s: cannot make the folder: %s", folder, strerror(errno));
    if (stat(folder, &st) == 0 && !S_ISDIR(st.st_mode))
        DPK_FAIL(err, DPK_EIO, "%s: is a file, want a folder to write to", folder);
    if (access(folder, W_OK | X_OK))
        DPK_FAIL(err, DPK_EIO, "%s: cannot write there: %s", folder, strerror(errno));
    dpk_cli_bar_start(&r.bar, quiet);
    rc = paint_lines(&r, err);
    dpk_cli_bar_end(&r.bar);
    list_rc = write_list(&r, &list_err);
    if (!rc && list_rc) *err = list_err, rc = list_rc;
    if (!quiet && !rc)
        fprintf(stderr, "diffpak: %s: %u painted, %u were there\n", folder, r.n_painted, r.n_kept);
done:
    if (r.list) fclose(r.list);
    free(r.list_text);
    return rc;
}
