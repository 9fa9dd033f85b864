/* Architectures: each function adds the operators of one component to a program. They read the
 * component's config, take values and give values back; the weights come from the component that
 * dpk_build_component set. */
#ifndef DPK_ARCH_H
#define DPK_ARCH_H

#include "builder.h"

#include "../formats/config.h"

/* CLIPTextModel and CLIPTextModelWithProjection. */
struct dpk_clip_opt {
    /* The context: hidden states after layer n - skip, 0 being the last one; with final_norm
     * through the final layer norm. */
    int skip;
    bool final_norm;
    bool projection; /* also the projected state at the end of the text */
};
struct dpk_clip_result {
    uint32_t context, pooled; /* ACT; pooled 0 without projection */
    int width, tokens;
};
int dpk_arch_clip(struct dpk_prog *p, const struct dpk_config *config,
                  const struct dpk_clip_opt *opt, uint32_t ids, struct dpk_clip_result *result,
                  dpk_error *err);

/* T5EncoderModel; mask may be 0. */
int dpk_arch_t5(struct dpk_prog *p, const struct dpk_config *config, uint32_t ids, uint32_t mask,
                uint32_t *context, int *width, dpk_error *err);

/* UNet2DConditionModel, into the programs setup and step. */
struct dpk_unet_result {
    int channels;
    int sample_size[2]; /* height, width */
};
int dpk_arch_unet(struct dpk_prog *setup, struct dpk_prog *step, const struct dpk_config *config,
                  struct dpk_unet_result *result, dpk_error *err);

/* PixArtTransformer2DModel, into the programs setup and step. */
int dpk_arch_pixart(struct dpk_prog *setup, struct dpk_prog *step, const struct dpk_config *config,
                    int *sample_size, dpk_error *err);

/* AutoencoderKL, into the programs decode and encode. */
struct dpk_vae_result {
    int latent_channels, scale; /* pixels per latent */
    double scaling_factor;
};
int dpk_arch_vae(struct dpk_prog *decode, struct dpk_prog *encode, const struct dpk_config *config,
                 struct dpk_vae_result *result, dpk_error *err);

/* Metadata pipeline.bins: the sizes of a model of side x side pixels (1024, 512 or 256; others have
 * none). */
void dpk_arch_pixart_bins(struct dpk_builder *b, int side);

#endif
