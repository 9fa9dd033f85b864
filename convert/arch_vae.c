/* The variational autoencoder (diffusers' AutoencoderKL): `decode` turns a sampler's latent into an
 * image, `encode` an image into mean and log variance of the latent before scaling. */
#include "arch.h"

#include "../formats/fail.h"

#include <string.h>

enum { MAX_LEVELS = 8 };

struct vae {
    int levels, channels[MAX_LEVELS], layers, groups, in, out, latent, attention, quant, post_quant;
    double scaling;
};

static const float norm_eps = 1e-6f;

static int check_blocks(const struct vae *v, const struct dpk_config *c, const char *key,
                        const char *type, dpk_error *err) {
    int rc = DPK_OK, n = 0;
    const char *names[MAX_LEVELS];
    DPK_TRY(dpk_config_strings(c, key, MAX_LEVELS, names, &n, err));
    if (n != v->levels)
        DPK_FAIL(err, DPK_EFORMAT, "%s: %s has %d entries, block_out_channels %d", c->name, key, n,
                 v->levels);
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], type) != 0)
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: %s has %s, supported: %s", c->name, key, names[i],
                     type);
done:
    return rc;
}

static int read_config(struct vae *v, const struct dpk_config *c, dpk_error *err) {
    static const char *const acts[] = {"silu", "swish", NULL};
    int rc = DPK_OK, act;
    double shift;
    DPK_TRY(dpk_config_length(c, "block_out_channels", MAX_LEVELS, &v->levels, err));
    if (v->levels < 1) DPK_FAIL(err, DPK_EFORMAT, "%s: block_out_channels is missing", c->name);
    DPK_TRY(dpk_config_ints(c, "block_out_channels", 64, 1, 1 << 16, v->levels, v->channels, err));
    DPK_TRY(dpk_config_int(c, "layers_per_block", 1, 1, 64, &v->layers, err));
    DPK_TRY(dpk_config_int(c, "norm_num_groups", 32, 1, 1 << 16, &v->groups, err));
    DPK_TRY(dpk_config_int(c, "in_channels", 3, 3, 3, &v->in, err));
    DPK_TRY(dpk_config_int(c, "out_channels", 3, 3, 3, &v->out, err));
    DPK_TRY(dpk_config_int(c, "latent_channels", 4, 1, 256, &v->latent, err));
    DPK_TRY(dpk_config_bool(c, "mid_block_add_attention", 1, &v->attention, err));
    DPK_TRY(dpk_config_bool(c, "use_quant_conv", 1, &v->quant, err));
    DPK_TRY(dpk_config_bool(c, "use_post_quant_conv", 1, &v->post_quant, err));
    DPK_TRY(dpk_config_double(c, "scaling_factor", 0.18215, 1e-6, 1e6, &v->scaling, err));
    DPK_TRY(dpk_config_double(c, "shift_factor", 0.0, -1e6, 1e6, &shift, err));
    DPK_TRY(dpk_config_choice(c, "act_fn", "silu", acts, &act, err));
    if (shift != 0)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: shift_factor is %g, supported: 0", c->name, shift);
    if (dpk_config_item(c, "latents_mean"))
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: latents_mean is given, supported: null", c->name);
    DPK_TRY(check_blocks(v, c, "down_block_types", "DownEncoderBlock2D", err));
    DPK_TRY(check_blocks(v, c, "up_block_types", "UpDecoderBlock2D", err));
done:
    return rc;
}

static uint32_t resnet(struct dpk_prog *p, const struct vae *v, const char *name, uint32_t x,
                       int in, int out) {
    uint32_t h = dpk_build_group_norm(p, DPK_SUB(name, "norm1"), x, 0, in, v->groups, norm_eps,
                                      DPK_ACT_SILU);
    h = dpk_build_conv2d(p, DPK_SUB(name, "conv1"), h, out, in);
    h = dpk_build_group_norm(p, DPK_SUB(name, "norm2"), h, 0, out, v->groups, norm_eps,
                             DPK_ACT_SILU);
    if (in != out)
        x = dpk_build_linear(p, DPK_SUB(name, "conv_shortcut"), x, out, in, .conv1x1 = true);
    return dpk_build_conv2d(p, DPK_SUB(name, "conv2"), h, out, out, .residual = x);
}

/* Two resnets with one head of attention over all pixels between them. */
static uint32_t mid_block(struct dpk_prog *p, const struct vae *v, const char *half, uint32_t x,
                          int c) {
    struct dpk_name name = dpk_namef("%s.mid_block", half);
    struct dpk_name attn = dpk_namef("%s.attentions.0", name.s);
    x = resnet(p, v, DPK_SUB(name.s, "resnets.0"), x, c, c);
    if (v->attention) {
        uint32_t h = dpk_build_group_norm(p, DPK_SUB(attn.s, "group_norm"), x, 0, c, v->groups,
                                          norm_eps, DPK_ACT_NONE);
        h = dpk_build_linear(p, DPK_SUB(attn.s, "to_qkv"), h, 3 * c, c,
                             .stack = {"to_q", "to_k", "to_v"});
        h = dpk_build_attention(p, attn.s, h, h, h, 1, c, .k_off = c, .v_off = 2 * c);
        x = dpk_build_linear(p, DPK_SUB(attn.s, "to_out.0"), h, c, c, .residual = x);
    }
    return resnet(p, v, DPK_SUB(name.s, "resnets.1"), x, c, c);
}

static void decoder(struct dpk_prog *p, const struct vae *v) {
    int c = v->channels[v->levels - 1];
    uint32_t latent = DPK_BUILD_INPUT(p, "latent", DPK_VALUE_F32, 0, 0, 0, v->latent);
    uint32_t x = dpk_build_slice(p, latent, DPK_VALUE_ACT, .mul = (float)(1.0 / v->scaling));
    if (v->post_quant)
        x = dpk_build_linear(p, "post_quant_conv", x, v->latent, v->latent, .conv1x1 = true);
    x = dpk_build_conv2d(p, "decoder.conv_in", x, c, v->latent);
    x = mid_block(p, v, "decoder", x, c);
    for (int i = 0; i < v->levels; i++) {
        int out = v->channels[v->levels - 1 - i];
        for (int j = 0; j <= v->layers; j++, c = out)
            x = resnet(p, v, dpk_namef("decoder.up_blocks.%d.resnets.%d", i, j).s, x, c, out);
        if (i + 1 < v->levels)
            x = dpk_build_conv2d(p, dpk_namef("decoder.up_blocks.%d.upsamplers.0.conv", i).s, x, c,
                                 c, .upsample = true);
    }
    x = dpk_build_group_norm(p, "decoder.conv_norm_out", x, 0, c, v->groups, norm_eps,
                             DPK_ACT_SILU);
    x = dpk_build_conv2d(p, "decoder.conv_out", x, v->out, c);
    dpk_build_output(p, "image", dpk_build_slice(p, x, DPK_VALUE_F32));
}

static void encoder(struct dpk_prog *p, const struct vae *v) {
    static const int down_pad[4] = {0, 0, 1, 1};
    int c = v->channels[0];
    uint32_t image = DPK_BUILD_INPUT(p, "image", DPK_VALUE_F32, 0, 0, 0, v->in);
    uint32_t x = dpk_build_conv2d(p, "encoder.conv_in", image, c, v->in);
    for (int i = 0; i < v->levels; i++) {
        int out = v->channels[i];
        for (int j = 0; j < v->layers; j++, c = out)
            x = resnet(p, v, dpk_namef("encoder.down_blocks.%d.resnets.%d", i, j).s, x, c, out);
        if (i + 1 < v->levels)
            x = dpk_build_conv2d(p, dpk_namef("encoder.down_blocks.%d.downsamplers.0.conv", i).s, x,
                                 c, c, .stride = 2, .pad = down_pad);
    }
    x = mid_block(p, v, "encoder", x, c);
    x = dpk_build_group_norm(p, "encoder.conv_norm_out", x, 0, c, v->groups, norm_eps,
                             DPK_ACT_SILU);
    x = dpk_build_conv2d(p, "encoder.conv_out", x, 2 * v->latent, c);
    if (v->quant)
        x = dpk_build_linear(p, "quant_conv", x, 2 * v->latent, 2 * v->latent, .conv1x1 = true);
    dpk_build_output(p, "mean", dpk_build_slice(p, x, DPK_VALUE_F32, .count = v->latent));
    dpk_build_output(p, "logvar",
                     dpk_build_slice(p, x, DPK_VALUE_F32, .off = v->latent, .count = v->latent,
                                     .lo = -30, .hi = 20));
}

int dpk_arch_vae(struct dpk_prog *decode, struct dpk_prog *encode, const struct dpk_config *config,
                 struct dpk_vae_result *result, dpk_error *err) {
    int rc = DPK_OK;
    struct vae v;
    DPK_TRY(read_config(&v, config, err));
    decoder(decode, &v);
    encoder(encode, &v);
    *result = (struct dpk_vae_result){v.latent, 1 << (v.levels - 1), v.scaling};
done:
    return rc;
}
