/* Options, inputs and description of a picture: what `diffpak generate` and its files of prompts
 * share. */
#define XXH_INLINE_ALL

#include "cli_picture.h"

#include "../formats/fail.h"
#include "../formats/npy.h"
#include "../formats/xxhash.h"

#include <stdlib.h>
#include <string.h>

struct dpk_cli_picture dpk_cli_picture_default(void) {
    return (struct dpk_cli_picture){
        .rng = "cpu", .long_prompt = "truncate", .strength = -1, .params = dpk_params_default()};
}

void dpk_cli_picture_free(struct dpk_cli_picture *picture) {
    free(picture->prompts.at), free(picture->seeds.at);
    picture->prompts = picture->seeds = (struct dpk_cli_list){0};
}

void dpk_cli_picture_options(struct dpk_cli_picture *q, struct dpk_cli_option *options) {
    dpk_params *p = &q->params;
    const struct dpk_cli_option all[CLI_PICTURE_OPTIONS] = {
        {"--prompt", "-p", CLI_LIST, &q->prompts},
        {"--negative", "-n", CLI_TEXT, &p->negative},
        {"--steps", NULL, CLI_COUNT, &p->steps},
        {"--guidance", NULL, CLI_REAL, &p->guidance},
        {"--guidance-rescale", NULL, CLI_REAL, &p->guidance_rescale},
        {"--seed", NULL, CLI_LIST, &q->seeds},
        {"--width", NULL, CLI_COUNT, &p->width},
        {"--height", NULL, CLI_COUNT, &p->height},
        {"--scheduler", NULL, CLI_TEXT, &p->scheduler},
        {"--rng", NULL, CLI_TEXT, &q->rng},
        {"--init", NULL, CLI_TEXT, &q->init},
        {"--strength", NULL, CLI_EXACT, &q->strength},
        {"--mask", NULL, CLI_TEXT, &q->mask},
        {"--no-binning", NULL, CLI_FLAG, &q->no_binning},
        {"--long-prompt", NULL, CLI_TEXT, &q->long_prompt},
        {"--prompt-weights", NULL, CLI_FLAG, &q->weights},
        {"--latents", NULL, CLI_TEXT, &q->latents},
    };
    memcpy(options, all, sizeof all);
}

int dpk_cli_picture_settle(struct dpk_cli_picture *q, const char *command) {
    dpk_params *p = &q->params;
    uint64_t number;
    if (!q->prompts.n) return dpk_cli_usage(command, "a prompt is missing (-p PROMPT)");
    if (strcmp(q->rng, "cpu") && strcmp(q->rng, "cuda"))
        return dpk_cli_usage(command, "--rng %s: want cpu or cuda", q->rng);
    if (strcmp(q->long_prompt, "truncate") && strcmp(q->long_prompt, "chunks"))
        return dpk_cli_usage(command, "--long-prompt %s: want truncate or chunks", q->long_prompt);
    if (q->mask && !q->init) return dpk_cli_usage(command, "--mask without --init");
    if (q->strength >= 0 && !q->init) return dpk_cli_usage(command, "--strength without --init");
    for (uint32_t i = 0; i < q->seeds.n; i++)
        if (!dpk_cli_u64(q->seeds.at[i], &number))
            return dpk_cli_usage(command, "--seed %s: want a whole number from 0 to 2^64 - 1",
                                 q->seeds.at[i]);
    p->rng = strcmp(q->rng, "cpu") ? DPK_RNG_CUDA : DPK_RNG_CPU;
    p->prompts = q->prompts.at, p->n_prompts = q->prompts.n;
    p->n_seeds = q->seeds.n;
    if (q->strength >= 0) p->strength = q->strength;
    p->long_prompt = strcmp(q->long_prompt, "chunks") ? DPK_LONG_TRUNCATE : DPK_LONG_CHUNKS;
    p->no_binning = q->no_binning, p->prompt_weights = q->weights;
    return CLI_GOOD;
}

/* ---- Inputs ------------------------------------------------------------------------------- */

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
        rc = dpk_error_set(err, DPK_EARG,
                           "%.300s: %zu numbers in %d dimensions, want [%zu,%zu,%zu,%zu] or "
                           "[%zu,%zu,%zu,%zu]",
                           path, a.n, a.rank, n, h, w, channels, n, channels, h, w);
    } else if (!made) {
        rc = dpk_error_set(err, DPK_ENOMEM, "%.300s: no memory for %zu numbers", path, a.n);
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
static int read_pictures(struct dpk_cli_picture *q, struct dpk_cli_inputs *in, dpk_error *err) {
    enum { MOST = 1 << 28 };
    struct dpk_png *init = &in->init, *mask = &in->mask;
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

int dpk_cli_picture_read(struct dpk_cli_picture *q, struct dpk_cli_inputs *in, dpk_session *session,
                         dpk_info *info, dpk_error *err) {
    int rc = DPK_OK;
    in->seeds = calloc(q->seeds.n + 1, sizeof *in->seeds);
    if (!in->seeds) DPK_FAIL(err, DPK_ENOMEM, "no memory for %u seeds", q->seeds.n);
    for (uint32_t i = 0; i < q->seeds.n; i++) dpk_cli_u64(q->seeds.at[i], &in->seeds[i]);
    q->params.seeds = in->seeds;
    DPK_TRY(read_pictures(q, in, err));
    DPK_TRY(dpk_session_plan(session, &q->params, info, err));
    if (q->latents) DPK_TRY(read_latents(q->latents, info, &in->latents, err));
    q->params.latents = in->latents;
done:
    return rc;
}

void dpk_cli_inputs_free(struct dpk_cli_inputs *in) {
    free(in->seeds), free(in->latents);
    dpk_png_free(&in->init), dpk_png_free(&in->mask);
    *in = (struct dpk_cli_inputs){0};
}

/* ---- Description -------------------------------------------------------------------------- */

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void add(struct dpk_cli_texts *t, const char *key, const char *value) {
    t->at[t->n++] = (struct dpk_png_text){(char *)key, (char *)value};
}

#define ADD_NUMBER(t, key, ...)                                                                    \
    (snprintf((t)->numbers[(t)->n], sizeof *(t)->numbers, __VA_ARGS__),                            \
     add(t, key, (t)->numbers[(t)->n]))

static void add_sum(struct dpk_cli_texts *t, const char *key, const void *data, size_t n_bytes) {
    ADD_NUMBER(t, key, "%016llx", (unsigned long long)XXH3_64bits(data, n_bytes));
}

void dpk_cli_picture_describe(const struct dpk_cli_picture *q, const struct dpk_cli_inputs *in,
                              const dpk_model *model, const char *model_path, const dpk_info *info,
                              uint32_t index, struct dpk_cli_texts *t) {
    const dpk_params *p = &q->params;
    const char *name = dpk_model_meta(model, "model.name");
    uint64_t seed = p->n_seeds ? in->seeds[p->n_seeds > 1 ? index : 0] : 0;
    size_t latents =
        (size_t)info->n_images * info->latent_height * info->latent_width * info->latent_channels;
    t->n = 0;
    add(t, "prompt", p->prompts[index / p->images_per_prompt]);
    if (p->negative) add(t, "negative", p->negative);
    ADD_NUMBER(t, "seed", "%llu", (unsigned long long)seed);
    ADD_NUMBER(t, "steps", "%u", info->steps);
    ADD_NUMBER(t, "guidance", "%.9g", (double)info->guidance);
    if (p->guidance_rescale > 0)
        ADD_NUMBER(t, "guidance_rescale", "%.9g", (double)p->guidance_rescale);
    add(t, "scheduler", p->scheduler ? p->scheduler : info->scheduler);
    if (p->rng == DPK_RNG_CUDA) add(t, "rng", "cuda");
    if (q->latents) {
        add(t, "latents", base_name(q->latents));
        add_sum(t, "latents_sum", in->latents, latents * sizeof *in->latents);
    }
    if (q->init) {
        add(t, "init", base_name(q->init));
        add_sum(t, "init_sum", in->init.rgb, (size_t)3 * in->init.width * in->init.height);
        ADD_NUMBER(t, "strength", "%.17g", p->strength);
    }
    if (q->mask) {
        add(t, "mask", base_name(q->mask));
        add_sum(t, "mask_sum", in->mask.rgb, (size_t)in->mask.width * in->mask.height);
    }
    if (p->no_binning) add(t, "binning", "off");
    if (p->long_prompt == DPK_LONG_CHUNKS) add(t, "long_prompt", "chunks");
    if (p->prompt_weights) add(t, "prompt_weights", "on");
    add(t, "model", name && *name ? name : base_name(model_path));
    ADD_NUMBER(t, "model_sum", "%016llx", (unsigned long long)dpk_model_sum(model));
    if (info->n_images > 1) /* its noise depends on its place in the batch */
        ADD_NUMBER(t, "picture", "%u of %u", index, info->n_images);
    add(t, "software", "diffpak");
}
