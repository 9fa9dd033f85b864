/* `diffpak generate`: prompts to PNG files, with all that is needed to make them again. */
#include "cli.h"

#include "../formats/atomic_file.h"
#include "../formats/npy.h"
#include "../formats/png.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

struct request {
    const char *path, *out, *latents, *trace, *init, *mask;
    struct dpk_cli_list prompts, seeds;
    uint64_t *seed_numbers; /* [seeds.n] */
    dpk_session_options options;
    dpk_params params;
    bool quiet, no_binning, weights;
    struct dpk_png init_picture;
    struct dpk_png mask_picture; /* its rgb begins with one byte a pixel after read_pictures */
};

static int set_error(dpk_error *err, const char *what, const char *path) {
    err->code = DPK_EIO;
    snprintf(err->msg, sizeof err->msg, "%.300s: %s: %s", path, what, strerror(errno));
    return err->code;
}

/* ---- Files -------------------------------------------------------------------------------- */

/* Find out before the work whether the result can be written. */
static int check_folder(const char *path, dpk_error *err) {
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    char *folder = length ? strndup(path, length) : strdup(slash ? "/" : ".");
    int rc = folder && access(folder, W_OK | X_OK) ? set_error(err, "cannot write there", path) : 0;
    free(folder);
    return rc;
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

static bool has_shape(const struct dpk_npy *a, size_t n, size_t x, size_t y, size_t z) {
    return a->rank == 4 && a->dim[0] == n && a->dim[1] == x && a->dim[2] == y && a->dim[3] == z;
}

/* Noise to start from, [N,h,w,C]; of shape [N,C,h,w], as `diffpak noise` writes it, transposed. */
static int read_latents(const char *path, const dpk_info *info, float **latents, dpk_error *err) {
    struct dpk_npy a = {0};
    size_t n = info->n_images, h = info->latent_height, w = info->latent_width;
    size_t channels = info->latent_channels;
    int rc = dpk_npy_read(&a, path, DPK_NPY_F32, SIZE_MAX / 2, err);
    if (rc) return rc;
    bool nhwc = has_shape(&a, n, h, w, channels);
    float *made = malloc(n * h * w * channels * sizeof *made);
    if (!nhwc && !has_shape(&a, n, channels, h, w)) {
        snprintf(err->msg, sizeof err->msg,
                 "%.300s: %zu numbers in %d dimensions, want [%zu,%zu,%zu,%zu]", path, a.n, a.rank,
                 n, h, w, channels);
        rc = err->code = DPK_EARG;
    } else if (!made) {
        snprintf(err->msg, sizeof err->msg, "%.300s: no memory for %zu numbers", path, a.n);
        rc = err->code = DPK_ENOMEM;
    } else {
        const float *from = a.data;
        for (size_t i = 0; i < a.n; i++) {
            size_t c = i % channels, p = i / channels % (h * w), b = i / channels / (h * w);
            made[i] = nhwc ? from[i] : from[(b * channels + c) * h * w + p];
        }
        *latents = made;
        made = NULL;
    }
    free(made);
    dpk_npy_free(&a);
    return rc;
}

/* The picture to start from, and the mask made grey (ITU-R 601, as Pillow rounds it). */
static int read_pictures(struct request *q, dpk_error *err) {
    enum { MOST = 1 << 28 };
    struct dpk_png *init = &q->init_picture, *mask = &q->mask_picture;
    dpk_params *p = &q->params;
    int rc = q->init ? dpk_png_read(init, q->init, MOST, err) : DPK_OK;
    if (!rc && q->mask) rc = dpk_png_read(mask, q->mask, MOST, err);
    if (rc) return rc;
    for (size_t i = 0; i < (size_t)mask->width * mask->height; i++) {
        const uint8_t *c = mask->rgb + 3 * i;
        mask->rgb[i] = (uint8_t)((19595u * c[0] + 38470u * c[1] + 7471u * c[2] + 0x8000) >> 16);
    }
    p->init = init->rgb, p->init_width = init->width, p->init_height = init->height;
    p->mask = mask->rgb, p->mask_width = mask->width, p->mask_height = mask->height;
    return DPK_OK;
}

/* ---- Pictures ----------------------------------------------------------------------------- */

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int write_picture(const struct request *q, const dpk_model *model, const dpk_info *info,
                         const dpk_images *images, uint32_t index, dpk_error *err) {
    char seed[24], steps[16], guidance[32], rescale[32], strength[32], sum[24], place[32];
    struct dpk_png_text texts[24];
    size_t n = 0;
    const dpk_params *p = &q->params;
    const char *name = dpk_model_meta(model, "model.name");
    uint64_t number = p->n_seeds ? p->seeds[p->n_seeds > 1 ? index : 0] : 0;
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)number);
    snprintf(steps, sizeof steps, "%u", info->steps);
    snprintf(guidance, sizeof guidance, "%.9g", (double)info->guidance);
    snprintf(rescale, sizeof rescale, "%.9g", (double)p->guidance_rescale);
    snprintf(strength, sizeof strength, "%.17g", p->strength);
    snprintf(sum, sizeof sum, "%016llx", (unsigned long long)dpk_model_sum(model));
    snprintf(place, sizeof place, "%u of %u", index, images->n);
#define TEXT(k, v) texts[n++] = (struct dpk_png_text){(char *)(k), (char *)(v)}
    TEXT("prompt", p->prompts[index / p->images_per_prompt]);
    if (p->negative) TEXT("negative", p->negative);
    TEXT("seed", seed);
    TEXT("steps", steps);
    TEXT("guidance", guidance);
    if (p->guidance_rescale > 0) TEXT("guidance_rescale", rescale);
    TEXT("scheduler", p->scheduler ? p->scheduler : info->scheduler);
    if (p->rng == DPK_RNG_CUDA) TEXT("rng", "cuda");
    if (q->latents) TEXT("latents", base_name(q->latents));
    if (q->init) TEXT("init", base_name(q->init));
    if (q->init) TEXT("strength", strength);
    if (q->mask) TEXT("mask", base_name(q->mask));
    if (p->no_binning) TEXT("binning", "off");
    if (p->long_prompt == DPK_LONG_CHUNKS) TEXT("long_prompt", "chunks");
    if (p->prompt_weights) TEXT("prompt_weights", "on");
    TEXT("model", name && *name ? name : base_name(q->path));
    TEXT("model_sum", sum);
    if (images->n > 1) TEXT("picture", place); /* its noise depends on its place in the batch */
    TEXT("software", "diffpak");
#undef TEXT
    char *path = picture_path(q->out, index, images->n);
    size_t bytes = (size_t)images->width * images->height * 3;
    int rc = !path ? set_error(err, "no memory", q->out)
                   : dpk_png_write(path, images->width, images->height, images->rgb + index * bytes,
                                   texts, n, err);
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
    const struct request *q = arg;
    if (!q->quiet) fprintf(stderr, "diffpak: %s\n", line);
}

static int paint(struct request *q, dpk_error *err) {
    dpk_model *model = NULL;
    dpk_session *session = NULL;
    dpk_images *images = NULL;
    dpk_info info = {0};
    float *latents = NULL;
    struct dpk_cli_bar bar;
    struct tracer tracer = {q->trace, {0}};
    dpk_cli_bar_start(&bar, q->quiet);
    q->params.progress = show_progress, q->params.progress_arg = &bar;
    if (q->trace) q->params.trace = write_trace, q->params.trace_arg = &tracer;
    q->params.notice = show_notice, q->params.notice_arg = q;
    int rc = check_folder(q->out, err);
    if (!rc && dpk_atomic_is_model(q->out))
        rc = dpk_error_set(err, DPK_EIO, "%s: cannot write: it is a packed model", q->out);
    if (!rc && q->trace && mkdir(q->trace, 0777) && errno != EEXIST)
        rc = set_error(err, "cannot make the folder", q->trace);
    if (!rc) rc = read_pictures(q, err);
    if (!rc) rc = dpk_model_open(&model, q->path, err);
    if (!rc) rc = dpk_session_create(&session, model, &q->options, err);
    if (!rc) rc = dpk_session_plan(session, &q->params, &info, err);
    if (!rc && q->latents) rc = read_latents(q->latents, &info, &latents, err);
    q->params.latents = latents;
    if (!rc) rc = dpk_generate(session, &q->params, &images, err);
    dpk_cli_bar_end(&bar);
    if (rc && tracer.err.code) *err = tracer.err;
    for (uint32_t i = 0; !rc && i < images->n; i++)
        rc = write_picture(q, model, &info, images, i, err);
    free(latents);
    dpk_images_free(images);
    dpk_session_free(session);
    dpk_model_free(model);
    return rc;
}

/* ---- Arguments ---------------------------------------------------------------------------- */

static int read_arguments(int argc, char **argv, struct request *q) {
    const char *rng = "cpu", *long_prompt = "truncate";
    const char *const names[] = {"MODEL.dpk"};
    dpk_params *p = &q->params;
    uint32_t threads = 0;
    const struct dpk_cli_option options[] = {
        {"--prompt", "-p", CLI_LIST, &q->prompts},
        {"--negative", "-n", CLI_TEXT, &p->negative},
        {"--output", "-o", CLI_TEXT, &q->out},
        {"--steps", NULL, CLI_COUNT, &p->steps},
        {"--guidance", NULL, CLI_REAL, &p->guidance},
        {"--guidance-rescale", NULL, CLI_REAL, &p->guidance_rescale},
        {"--seed", NULL, CLI_LIST, &q->seeds},
        {"--width", NULL, CLI_COUNT, &p->width},
        {"--height", NULL, CLI_COUNT, &p->height},
        {"--scheduler", NULL, CLI_TEXT, &p->scheduler},
        {"--rng", NULL, CLI_TEXT, &rng},
        {"--batch", NULL, CLI_COUNT, &p->images_per_prompt},
        {"--threads", NULL, CLI_COUNT, &threads},
        {"--backend", NULL, CLI_TEXT, &q->options.backend},
        {"--memory-limit", NULL, CLI_BYTES, &q->options.memory_limit},
        {"--init", NULL, CLI_TEXT, &q->init},
        {"--strength", NULL, CLI_EXACT, &p->strength},
        {"--mask", NULL, CLI_TEXT, &q->mask},
        {"--no-binning", NULL, CLI_FLAG, &q->no_binning},
        {"--long-prompt", NULL, CLI_TEXT, &long_prompt},
        {"--prompt-weights", NULL, CLI_FLAG, &q->weights},
        {"--latents", NULL, CLI_TEXT, &q->latents},
        {"--trace", NULL, CLI_TEXT, &q->trace},
        {"--quiet", "-q", CLI_FLAG, &q->quiet},
    };
    if (dpk_cli_parse(argc, argv, options, CLI_N(options), names, &q->path, 1)) return CLI_USAGE;
    if (!q->prompts.n) return dpk_cli_usage(argv[0], "-p PROMPT is missing");
    if (!q->out) return dpk_cli_usage(argv[0], "-o OUT.png is missing");
    if (strcmp(rng, "cpu") && strcmp(rng, "cuda"))
        return dpk_cli_usage(argv[0], "--rng %s: want cpu or cuda", rng);
    if (strcmp(long_prompt, "truncate") && strcmp(long_prompt, "chunks"))
        return dpk_cli_usage(argv[0], "--long-prompt %s: want truncate or chunks", long_prompt);
    if (q->mask && !q->init) return dpk_cli_usage(argv[0], "--mask without --init");
    q->seed_numbers = calloc(q->seeds.n + 1, sizeof *q->seed_numbers);
    if (!q->seed_numbers) return dpk_cli_usage(argv[0], "no memory for the arguments");
    for (uint32_t i = 0; i < q->seeds.n; i++)
        if (!dpk_cli_u64(q->seeds.at[i], &q->seed_numbers[i]))
            return dpk_cli_usage(argv[0], "--seed %s: want a whole number from 0", q->seeds.at[i]);
    p->rng = strcmp(rng, "cpu") ? DPK_RNG_CUDA : DPK_RNG_CPU;
    p->prompts = q->prompts.at, p->n_prompts = q->prompts.n;
    p->seeds = q->seed_numbers, p->n_seeds = q->seeds.n;
    q->options.threads = (int)threads;
    p->long_prompt = strcmp(long_prompt, "chunks") ? DPK_LONG_TRUNCATE : DPK_LONG_CHUNKS;
    p->no_binning = q->no_binning, p->prompt_weights = q->weights;
    return CLI_GOOD;
}

int dpk_cli_generate(int argc, char **argv) {
    struct request q = {.options = dpk_session_options_default(), .params = dpk_params_default()};
    dpk_error err = {0};
    int status = read_arguments(argc, argv, &q);
    if (!status && paint(&q, &err)) status = dpk_cli_fail(&err);
    dpk_png_free(&q.init_picture), dpk_png_free(&q.mask_picture);
    free(q.seed_numbers);
    free(q.prompts.at);
    free(q.seeds.at);
    return status;
}
