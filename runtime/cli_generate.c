/* `diffpak generate`: prompts to PNG files, with all that is needed to make them again. */
#include "cli_batch.h"

#include "../formats/atomic_file.h"
#include "../formats/npy.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct request {
    const char *path, *out, *trace, *prompts, *shard;
    struct dpk_cli_picture picture;
    dpk_session_options options;
    bool quiet, no_mmap;
};

static int set_error(dpk_error *err, const char *what, const char *path) {
    return dpk_error_set(err, DPK_EIO, "%.300s: %s: %s", path, what, strerror(errno));
}

/* OUT.png, or OUT_2.png for the third of several. */
static char *picture_path(const char *out, uint32_t index, uint32_t n) {
    size_t length = strlen(out), size = length + 16;
    char *path = malloc(size);
    const char *end = length > 4 && !strcasecmp(out + length - 4, ".png") ? out + length - 4 : NULL;
    if (!path) return NULL;
    if (n == 1) snprintf(path, size, "%s", out);
    else if (end) snprintf(path, size, "%.*s_%u%s", (int)(end - out), out, index, end);
    else snprintf(path, size, "%s_%u", out, index);
    return path;
}

struct tracer {
    const char *folder;
    dpk_error err; /* of a file that could not be written */
};

static int write_trace(void *arg, const dpk_array *a) {
    struct tracer *t = arg;
    size_t dim[4], size = strlen(t->folder) + strlen(a->name) + 8;
    char *path = malloc(size);
    if (!path) return 1;
    snprintf(path, size, "%s/%s.npy", t->folder, a->name);
    for (int i = 0; i < a->rank; i++) dim[i] = (size_t)a->dim[i];
    int rc = dpk_npy_write(path, DPK_NPY_F32, a->rank, dim, a->data, &t->err);
    free(path);
    return rc;
}

static int write_picture(const struct request *q, const struct dpk_cli_inputs *in,
                         const dpk_model *model, const dpk_info *info, const dpk_images *images,
                         uint32_t index, dpk_error *err) {
    struct dpk_cli_texts texts;
    size_t bytes = (size_t)images->width * images->height * 3;
    char *path = picture_path(q->out, index, images->n);
    dpk_cli_picture_describe(&q->picture, in, model, q->path, info, index, &texts);
    int rc = !path ? set_error(err, "no memory", q->out)
                   : dpk_png_write(path, images->width, images->height, images->rgb + index * bytes,
                                   texts.at, texts.n, err);
    free(path);
    return rc;
}

static int show_progress(void *arg, const dpk_progress *p) {
    char what[32];
    snprintf(what, sizeof what, p->stage[0] == 's' && p->stage[1] == 't' ? "%s %u/%u" : "%s",
             p->stage, p->step, p->n_steps);
    dpk_cli_bar_show(arg, what, p->fraction);
    return 0;
}

static void show_notice(void *arg, const char *line) {
    (void)arg;
    fprintf(stderr, "diffpak: %s\n", line);
}

static int paint(struct request *q, const dpk_model *model, dpk_session *session, dpk_error *err) {
    dpk_images *images = NULL;
    dpk_info info = {0};
    struct dpk_cli_inputs in = {0};
    struct dpk_cli_bar bar;
    struct tracer tracer = {q->trace, {0}};
    dpk_params *p = &q->picture.params;
    dpk_cli_bar_start(&bar, q->quiet);
    p->progress = show_progress, p->progress_arg = &bar;
    if (q->trace) p->trace = write_trace, p->trace_arg = &tracer;
    int rc = dpk_cli_picture_read(&q->picture, &in, session, &info, err);
    if (!rc) rc = dpk_generate(session, p, &images, err);
    dpk_cli_bar_end(&bar);
    if (rc && tracer.err.code) *err = tracer.err;
    for (uint32_t i = 0; !rc && i < images->n; i++)
        rc = write_picture(q, &in, model, &info, images, i, err);
    dpk_cli_inputs_free(&in);
    dpk_images_free(images);
    return rc;
}

static int run(struct request *q, struct dpk_cli_batch *batch, dpk_error *err) {
    dpk_model *model = NULL;
    dpk_session *session = NULL;
    int rc = batch ? DPK_OK : dpk_cli_check_output(q->out, err);
    if (!q->quiet) q->picture.params.notice = show_notice;
    if (!rc && q->trace && mkdir(q->trace, 0777) && errno != EEXIST)
        rc = set_error(err, "cannot make the folder", q->trace);
    if (!rc) rc = dpk_cli_open_model(&model, q->path, q->no_mmap, err);
    if (!rc) rc = dpk_session_create(&session, model, &q->options, err);
    if (!rc)
        rc = batch ? dpk_cli_batch_paint(batch, q->path, model, session, q->out, q->quiet, err)
                   : paint(q, model, session, err);
    dpk_session_free(session);
    dpk_model_free(model);
    return rc;
}

/* Someone expects another format, or the picture on standard output. */
static bool is_other_format(const char *path) {
    static const char *const ends[] = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"};
    const char *end = strrchr(path, '.');
    bool other = !strcmp(path, "-");
    for (size_t i = 0; end && i < CLI_N(ends); i++) other |= !strcasecmp(end, ends[i]);
    return other;
}

static int read_arguments(int argc, char **argv, struct request *q) {
    const char *const names[] = {"MODEL.dpk"};
    uint32_t threads = 0;
    struct dpk_cli_option options[CLI_PICTURE_OPTIONS + 10] = {
        {"--output", "-o", CLI_TEXT, &q->out},
        {"--batch", NULL, CLI_COUNT, &q->picture.params.images_per_prompt},
        {"--prompts", NULL, CLI_TEXT, &q->prompts},
        {"--shard", NULL, CLI_TEXT, &q->shard},
        {"--threads", NULL, CLI_COUNT, &threads},
        {"--backend", NULL, CLI_TEXT, &q->options.backend},
        {"--memory-limit", NULL, CLI_BYTES, &q->options.memory_limit},
        {"--no-mmap", NULL, CLI_FLAG, &q->no_mmap},
        {"--trace", NULL, CLI_TEXT, &q->trace},
        {"--quiet", "-q", CLI_FLAG, &q->quiet},
    };
    dpk_cli_picture_options(&q->picture, options + 10);
    const int parsed = dpk_cli_parse(argc, argv, options, CLI_N(options), names, &q->path, 1);
    if (parsed) return parsed;
    q->options.threads = (int)threads;
    if (!q->out)
        return dpk_cli_usage(argv[0],
                             q->prompts ? "-o FOLDER is missing" : "-o OUT.png is missing");
    if (!q->prompts && q->shard) return dpk_cli_usage(argv[0], "--shard without --prompts");
    if (!q->prompts && is_other_format(q->out))
        return dpk_cli_usage(argv[0], "-o %s: pictures are PNG files, want a name in .png", q->out);
    if (!q->prompts) return dpk_cli_picture_settle(&q->picture, argv[0]);
    if (q->picture.prompts.n) return dpk_cli_usage(argv[0], "-p and --prompts: want one of them");
    if (q->picture.seeds.n > 1) return dpk_cli_usage(argv[0], "--prompts with several seeds");
    if (q->picture.params.images_per_prompt > 1 || q->trace)
        return dpk_cli_usage(argv[0], "--prompts with --batch or --trace");
    /* What the lines begin with, as if it were a picture. */
    const char *some = "";
    struct dpk_cli_picture picture = q->picture;
    picture.prompts = (struct dpk_cli_list){&some, 1};
    if (!picture.init) picture.mask = NULL, picture.strength = -1; /* a line may have the other */
    return dpk_cli_picture_settle(&picture, argv[0]);
}

int dpk_cli_generate(int argc, char **argv) {
    struct request q = {.options = dpk_session_options_default(),
                        .picture = dpk_cli_picture_default()};
    struct dpk_cli_batch batch = {0};
    dpk_error err = {0};
    int status = read_arguments(argc, argv, &q);
    if (!status && q.prompts)
        status = dpk_cli_batch_read(&batch, q.prompts, q.shard, &q.picture, argv[0]);
    if (!status && run(&q, q.prompts ? &batch : NULL, &err)) status = dpk_cli_fail(&err);
    dpk_cli_batch_free(&batch);
    dpk_cli_picture_free(&q.picture);
    return status;
}
