/* The pipelines of diffusers that convert: which components they have, how the text encoders'
 * outputs reach the denoiser, and the defaults of the class. */
#include "conversion_impl.h"

#include "arch.h"

#include "../formats/fail.h"
#include "../formats/tokenizer_blob.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const clip_classes[] = {"CLIPTextModel", NULL};
static const char *const clip_projection_classes[] = {"CLIPTextModelWithProjection", NULL};
static const char *const unet_classes[] = {"UNet2DConditionModel", NULL};
static const char *const t5_classes[] = {"T5EncoderModel", NULL};
/* Saved before diffusers 0.30 under the name of the class that it was part of. */
static const char *const pixart_classes[] = {"PixArtTransformer2DModel", "Transformer2DModel",
                                             NULL};
static const char *const vae_classes[] = {"AutoencoderKL", NULL};

/* transformers 5 saves CLIPTextModel without the prefix. */
static const struct dpk_rename clip_renames[] = {{"text_model.", ""}, {NULL, NULL}};
/* A tied table has two names. */
static const struct dpk_rename t5_renames[] = {{"shared.", "encoder.embed_tokens."}, {NULL, NULL}};
/* Attention of autoencoders saved before diffusers 0.16. */
static const struct dpk_rename vae_renames[] = {{".to_q.", ".query."},
                                                {".to_k.", ".key."},
                                                {".to_v.", ".value."},
                                                {".to_out.0.", ".proj_attn."},
                                                {NULL, NULL}};

struct defaults {
    int steps;
    double guidance;
    const char *negative;
    int width, height; /* of latents */
    int multiple;      /* latents: sizes are multiples of this */
};

static void add_defaults(struct dpk_conversion *c, const struct defaults *d,
                         const struct dpk_vae_result *vae) {
    struct dpk_builder *b = c->builder;
    dpk_builder_meta(b, "pipeline.steps", "%d", d->steps);
    dpk_builder_meta(b, "pipeline.guidance", "%g", d->guidance);
    dpk_builder_meta(b, "pipeline.negative", "%s", d->negative);
    dpk_builder_meta(b, "pipeline.width", "%d", d->width * vae->scale);
    dpk_builder_meta(b, "pipeline.height", "%d", d->height * vae->scale);
    dpk_builder_meta(b, "pipeline.vae_scale", "%d", vae->scale);
    dpk_builder_meta(b, "pipeline.size_multiple", "%d", d->multiple * vae->scale);
    dpk_builder_meta(b, "pipeline.latent_channels", "%d", vae->latent_channels);
    /* In the shortest spelling that reads back the same. */
    int digits = 6;
    while (digits < 17 &&
           strtod(dpk_namef("%.*g", digits, vae->scaling_factor).s, NULL) != vae->scaling_factor)
        digits++;
    dpk_builder_meta(b, "pipeline.scaling_factor", "%.*g", digits, vae->scaling_factor);
}

/* One CLIP encoder, its tokenizer and its input. */
static int add_clip(struct dpk_conversion *c, struct dpk_prog *text, const char *suffix,
                    const struct dpk_clip_opt *opt, struct dpk_clip_result *result,
                    dpk_error *err) {
    int rc = DPK_OK, tokens;
    struct dpk_component *part;
    const struct dpk_config *config;
    DPK_TRY(dpk_conversion_part(c, dpk_namef("text_encoder%s", suffix).s,
                                opt->projection ? clip_projection_classes : clip_classes,
                                clip_renames, &part, &config, err));
    DPK_TRY(dpk_config_int(config, "max_position_embeddings", 77, 2, 1 << 16, &tokens, err));
    dpk_build_component(text, part);
    const uint32_t ids =
        DPK_BUILD_INPUT(text, dpk_namef("ids%s", suffix).s, DPK_VALUE_I32, 0, tokens);
    DPK_TRY(dpk_arch_clip(text, config, opt, ids, result, err));
    DPK_TRY(dpk_conversion_tokenizer(c, dpk_namef("tokenizer%s", suffix).s, DPK_TOKENIZER_CLIP,
                                     (uint32_t)tokens, false, err));
done:
    return rc;
}

static int add_unet(struct dpk_conversion *c, struct dpk_unet_result *result,
                    const struct dpk_config **config, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_component *part;
    DPK_TRY(dpk_conversion_part(c, "unet", unet_classes, NULL, &part, config, err));
    struct dpk_prog *setup = dpk_build_program(c->builder, "setup");
    struct dpk_prog *step = dpk_build_program(c->builder, "step");
    dpk_build_component(setup, part);
    dpk_build_component(step, part);
    DPK_TRY(dpk_arch_unet(setup, step, *config, result, err));
done:
    return rc;
}

static int add_vae(struct dpk_conversion *c, int channels, struct dpk_vae_result *result,
                   dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_component *part;
    const struct dpk_config *config;
    DPK_TRY(dpk_conversion_part(c, "vae", vae_classes, vae_renames, &part, &config, err));
    struct dpk_prog *decode = dpk_build_program(c->builder, "decode");
    struct dpk_prog *encode = dpk_build_program(c->builder, "encode");
    dpk_build_component(decode, part);
    dpk_build_component(encode, part);
    DPK_TRY(dpk_arch_vae(decode, encode, config, result, err));
    if (result->latent_channels != channels)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: latent_channels %d, the denoiser takes %d",
                 config->name, result->latent_channels, channels);
done:
    return rc;
}

/* Two encoders side by side, each without its last layer and final norm; the second also gives the
 * pooled vector. */
static int build_sdxl(struct dpk_conversion *c, dpk_error *err) {
    int rc = DPK_OK, zeros;
    struct dpk_clip_result one, two;
    struct dpk_unet_result unet;
    struct dpk_vae_result vae;
    const struct dpk_config *config;
    struct dpk_prog *text = dpk_build_program(c->builder, "text");
    DPK_TRY(add_clip(c, text, "", &(struct dpk_clip_opt){.skip = 1}, &one, err));
    DPK_TRY(
        add_clip(c, text, "_2", &(struct dpk_clip_opt){.skip = 1, .projection = true}, &two, err));
    if (one.tokens != two.tokens)
        DPK_FAIL(err, DPK_EFORMAT, "%s: text encoders of %d and %d tokens, wanted equal ones",
                 c->options.source, one.tokens, two.tokens);
    const uint32_t both = dpk_build_concat(text, one.context, two.context);
    dpk_build_output(text, "context", dpk_build_slice(text, both, DPK_VALUE_F32));
    dpk_build_output(text, "pooled", dpk_build_slice(text, two.pooled, DPK_VALUE_F32));
    DPK_TRY(add_unet(c, &unet, &config, err));
    DPK_TRY(add_vae(c, unet.channels, &vae, err));
    DPK_TRY(dpk_config_bool(&c->index, "force_zeros_for_empty_prompt", 1, &zeros, err));
    /* The pipeline's own default, where a UNet's config has none, is 128. */
    int *size = unet.sample_size;
    if (!dpk_config_item(config, "sample_size")) size[0] = size[1] = 128;
    add_defaults(c,
                 &(struct defaults){.steps = 50,
                                    .guidance = 5.0,
                                    .negative = zeros ? "zeros" : "encode",
                                    .width = size[1],
                                    .height = size[0],
                                    .multiple = 1},
                 &vae);
done:
    return rc;
}

/* UNets saved by diffusers before 0.9 say 32 or so whatever they were trained with; the pipeline
 * takes anything below 64 as 64 then. */
static bool is_before_0_9(const struct dpk_config *config) {
    const cJSON *version = dpk_config_item(config, "_diffusers_version");
    int major = 1, minor = 0;
    if (!cJSON_IsString(version) || sscanf(version->valuestring, "%d.%d", &major, &minor) != 2)
        return false;
    return major == 0 && minor < 9;
}

static int build_sd(struct dpk_conversion *c, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_clip_result one;
    struct dpk_unet_result unet;
    struct dpk_vae_result vae;
    const struct dpk_config *config;
    struct dpk_prog *text = dpk_build_program(c->builder, "text");
    DPK_TRY(add_clip(c, text, "", &(struct dpk_clip_opt){.final_norm = true}, &one, err));
    dpk_build_output(text, "context", dpk_build_slice(text, one.context, DPK_VALUE_F32));
    DPK_TRY(add_unet(c, &unet, &config, err));
    DPK_TRY(add_vae(c, unet.channels, &vae, err));
    int *size = unet.sample_size;
    const bool pair = cJSON_IsArray(dpk_config_item(config, "sample_size"));
    if (!pair && size[0] < 64 && is_before_0_9(config)) size[0] = size[1] = 64;
    add_defaults(c,
                 &(struct defaults){.steps = 50,
                                    .guidance = 7.5,
                                    .negative = "encode",
                                    .width = size[1],
                                    .height = size[0],
                                    .multiple = 1},
                 &vae);
done:
    return rc;
}

/* T5 and a transformer over patches. The prompt is lower-cased and stripped, as the pipeline does
 * with clean_caption off (which it is without two optional Python packages). */
static int build_pixart(struct dpk_conversion *c, dpk_error *err) {
    enum { TOKENS = 120 };
    int rc = DPK_OK, width, size, channels, patch;
    uint32_t context;
    struct dpk_vae_result vae;
    struct dpk_component *part;
    const struct dpk_config *config;
    struct dpk_prog *text = dpk_build_program(c->builder, "text");
    DPK_TRY(dpk_conversion_part(c, "text_encoder", t5_classes, t5_renames, &part, &config, err));
    dpk_build_component(text, part);
    const uint32_t ids = DPK_BUILD_INPUT(text, "ids", DPK_VALUE_I32, 0, TOKENS);
    const uint32_t mask = DPK_BUILD_INPUT(text, "mask", DPK_VALUE_I32, 0, TOKENS);
    DPK_TRY(dpk_arch_t5(text, config, ids, mask, &context, &width, err));
    dpk_build_output(text, "context", dpk_build_slice(text, context, DPK_VALUE_F32));
    DPK_TRY(dpk_conversion_tokenizer(c, "tokenizer", DPK_TOKENIZER_T5, TOKENS, true, err));

    DPK_TRY(dpk_conversion_part(c, "transformer", pixart_classes, NULL, &part, &config, err));
    struct dpk_prog *setup = dpk_build_program(c->builder, "setup");
    struct dpk_prog *step = dpk_build_program(c->builder, "step");
    dpk_build_component(setup, part);
    dpk_build_component(step, part);
    DPK_TRY(dpk_arch_pixart(setup, step, config, &size, err));
    DPK_TRY(dpk_config_int(config, "in_channels", 4, 1, 1024, &channels, err));
    DPK_TRY(dpk_config_int(config, "patch_size", 2, 1, 64, &patch, err));
    DPK_TRY(add_vae(c, channels, &vae, err));
    add_defaults(c,
                 &(struct defaults){.steps = 20,
                                    .guidance = 4.5,
                                    .negative = "encode",
                                    .width = size,
                                    .height = size,
                                    .multiple = patch},
                 &vae);
    dpk_arch_pixart_bins(c->builder, size * vae.scale);
done:
    return rc;
}

const struct dpk_pipeline dpk_pipelines[] = {
    {"StableDiffusionXLPipeline", "sdxl", build_sdxl},
    {"StableDiffusionPipeline", "sd", build_sd},
    {"PixArtAlphaPipeline", "pixart", build_pixart},
    {NULL, NULL, NULL},
};
