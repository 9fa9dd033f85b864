/* The PixArt-alpha transformer (diffusers' PixArtTransformer2DModel; Transformer2DModel with
 * ada_norm_single in older configs). What depends on the prompt, the size and the timestep alone is
 * done in `setup`: the caption's keys and values for every block, and the modulation vectors of
 * every step. */
#include "arch.h"

#include "../formats/fail.h"

struct pixart {
    int width, heads, head_dim, layers, patch, in, out, caption, sample_size;
    int sizes; /* does it take resolution and aspect ratio? */
    int base;  /* patches along one side at the trained size */
    double interpolation, eps;
    int act;
};

static int read_config(struct pixart *x, const struct dpk_config *c, dpk_error *err) {
    static const char *const norms[] = {"ada_norm_single", NULL};
    static const char *const acts[] = {"gelu-approximate", "gelu", NULL};
    static const int act_of[] = {DPK_ACT_GELU_TANH, DPK_ACT_GELU};
    static const char *const attentions[] = {"default", NULL};
    int rc = DPK_OK, i, cross;
    DPK_TRY(dpk_config_false(c, "double_self_attention", err));
    DPK_TRY(dpk_config_false(c, "only_cross_attention", err));
    DPK_TRY(dpk_config_false(c, "norm_elementwise_affine", err));
    DPK_TRY(dpk_config_choice(c, "attention_type", "default", attentions, &i, err));
    DPK_TRY(dpk_config_choice(c, "norm_type", "ada_norm_single", norms, &i, err));
    DPK_TRY(dpk_config_choice(c, "activation_fn", "gelu-approximate", acts, &i, err));
    x->act = act_of[i];
    DPK_TRY(dpk_config_int(c, "num_attention_heads", 16, 1, 1024, &x->heads, err));
    DPK_TRY(dpk_config_int(c, "attention_head_dim", 72, 1, 4096, &x->head_dim, err));
    DPK_TRY(dpk_config_int(c, "num_layers", 28, 1, 1024, &x->layers, err));
    DPK_TRY(dpk_config_int(c, "patch_size", 2, 1, 64, &x->patch, err));
    DPK_TRY(dpk_config_int(c, "in_channels", 4, 1, 1024, &x->in, err));
    DPK_TRY(dpk_config_int(c, "out_channels", 8, x->in, 2048, &x->out, err));
    DPK_TRY(dpk_config_require(c, "caption_channels", err));
    DPK_TRY(dpk_config_int(c, "caption_channels", 0, 1, 1 << 16, &x->caption, err));
    DPK_TRY(dpk_config_int(c, "sample_size", 128, 1, 4096, &x->sample_size, err));
    DPK_TRY(dpk_config_double(c, "norm_eps", 1e-6, 1e-12, 1.0, &x->eps, err));
    x->width = x->heads * x->head_dim;
    DPK_TRY(dpk_config_int(c, "cross_attention_dim", x->width, 1, 1 << 16, &cross, err));
    if (cross != x->width || x->width % 4 != 0)
        DPK_FAIL(err, DPK_EUNSUPPORTED,
                 "%s: cross_attention_dim %d with width %d, supported: equal multiples of 4",
                 c->name, cross, x->width);
    DPK_TRY(dpk_config_bool(c, "use_additional_conditions", x->sample_size == 128, &x->sizes, err));
    if (x->sizes && x->width % 3 != 0)
        DPK_FAIL(err, DPK_EFORMAT, "%s: width %d of the size embedding is not a multiple of 3",
                 c->name, x->width);
    double scale = x->sample_size / 64 > 1 ? x->sample_size / 64 : 1;
    DPK_TRY(dpk_config_double(c, "interpolation_scale", scale, 1e-3, 1e3, &x->interpolation, err));
    x->base = x->sample_size / x->patch;
done:
    return rc;
}

/* Linear, SiLU, Linear of one sinusoidal embedding of 256 channels. */
static uint32_t embedder(struct dpk_prog *p, const char *name, uint32_t sin256, int width,
                         int last_act) {
    uint32_t h =
        dpk_build_linear(p, DPK_SUB(name, "linear_1"), sin256, width, 256, .act = DPK_ACT_SILU);
    return dpk_build_linear(p, DPK_SUB(name, "linear_2"), h, width, width, .act = last_act);
}

/* Height, width and aspect ratio, each through its embedder, side by side: [B, width]. */
static uint32_t size_embedding(struct dpk_prog *p, const struct pixart *x) {
    const char *resolution = "adaln_single.emb.resolution_embedder";
    int third = x->width / 3;
    uint32_t hw = dpk_build_sinusoid(p, DPK_BUILD_INPUT(p, "resolution", DPK_VALUE_F32, 0, 2), 256,
                                     true, 0.0f);
    uint32_t ar = dpk_build_sinusoid(p, DPK_BUILD_INPUT(p, "aspect_ratio", DPK_VALUE_F32, 0, 1),
                                     256, true, 0.0f);
    uint32_t h = dpk_build_slice(p, hw, DPK_VALUE_ACT, .off = 0, .count = 256);
    uint32_t w = dpk_build_slice(p, hw, DPK_VALUE_ACT, .off = 256, .count = 256);
    h = embedder(p, resolution, h, third, DPK_ACT_NONE);
    w = embedder(p, resolution, w, third, DPK_ACT_NONE);
    ar = embedder(p, "adaln_single.emb.aspect_ratio_embedder", ar, third, DPK_ACT_NONE);
    return dpk_build_concat(p, dpk_build_concat(p, h, w), ar);
}

static void setup(struct dpk_prog *p, const struct pixart *x) {
    const char *timestep = "adaln_single.emb.timestep_embedder";
    uint32_t context = DPK_BUILD_INPUT(p, "context", DPK_VALUE_F32, 0, 0, x->caption);
    uint32_t sin =
        dpk_build_sinusoid(p, DPK_BUILD_INPUT(p, "timesteps", DPK_VALUE_F32, 0), 256, true, 0.0f);
    uint32_t e, silu;
    if (x->sizes) {
        uint32_t t = embedder(p, timestep, sin, x->width, DPK_ACT_NONE);
        uint32_t size = size_embedding(p, x);
        e = dpk_build_outer_add(p, t, size, DPK_ACT_NONE);
        silu = dpk_build_outer_add(p, t, size, DPK_ACT_SILU);
    } else {
        e = embedder(p, timestep, sin, x->width, DPK_ACT_NONE);
        silu = embedder(p, timestep, sin, x->width, DPK_ACT_SILU);
    }
    dpk_build_output(p, "mod",
                     dpk_build_linear(p, "adaln_single.linear", silu, 6 * x->width, x->width));
    dpk_build_output(
        p, "mod_out",
        dpk_build_add_table(p, "scale_shift_table", dpk_build_concat(p, e, e), 2, x->width));
    uint32_t c = dpk_build_slice(p, context, DPK_VALUE_ACT);
    c = dpk_build_linear(p, "caption_projection.linear_1", c, x->width, x->caption,
                         .act = DPK_ACT_GELU_TANH);
    c = dpk_build_linear(p, "caption_projection.linear_2", c, x->width, x->width);
    for (int i = 0; i < x->layers; i++) {
        uint32_t kv = dpk_build_linear(p, dpk_namef("transformer_blocks.%d.attn2.to_kv", i).s, c,
                                       2 * x->width, x->width, .stack = {"to_k", "to_v"});
        dpk_build_output(p, dpk_namef("kv.%d", i).s, kv);
    }
}

/* One block; mod [B, 6 * width]: shift, scale and gate of the attention, then of the
 * feed-forward. */
static uint32_t block(struct dpk_prog *p, const struct pixart *x, int i, uint32_t h, uint32_t mod,
                      uint32_t mask) {
    struct dpk_name name = dpk_namef("transformer_blocks.%d", i);
    struct dpk_name attn1 = dpk_namef("%s.attn1", name.s), attn2 = dpk_namef("%s.attn2", name.s);
    int d = x->width;
    uint32_t kv = DPK_BUILD_INPUT(p, dpk_namef("kv.%d", i).s, DPK_VALUE_ACT, 0, 0, 2 * d);
    mod = dpk_build_add_table(p, DPK_SUB(name.s, "scale_shift_table"), mod, 6, d);
    uint32_t y =
        dpk_build_layer_norm(p, DPK_SUB(name.s, "norm1"), h, d, (float)x->eps, .no_affine = true,
                             .mod = mod, .shift_off = 0, .scale_off = d);
    y = dpk_build_linear(p, DPK_SUB(attn1.s, "to_qkv"), y, 3 * d, d,
                         .stack = {"to_q", "to_k", "to_v"});
    y = dpk_build_attention(p, attn1.s, y, y, y, x->heads, x->head_dim, .k_off = d, .v_off = 2 * d);
    h = dpk_build_linear(p, DPK_SUB(attn1.s, "to_out.0"), y, d, d, .residual = h, .gate = mod,
                         .gate_off = 2 * d);
    y = dpk_build_linear(p, DPK_SUB(attn2.s, "to_q"), h, d, d);
    y = dpk_build_attention(p, attn2.s, y, kv, kv, x->heads, x->head_dim, .v_off = d, .mask = mask);
    h = dpk_build_linear(p, DPK_SUB(attn2.s, "to_out.0"), y, d, d, .residual = h);
    y = dpk_build_layer_norm(p, DPK_SUB(name.s, "norm2"), h, d, (float)x->eps, .no_affine = true,
                             .mod = mod, .shift_off = 3 * d, .scale_off = 4 * d);
    y = dpk_build_linear(p, DPK_SUB(name.s, "ff.net.0.proj"), y, 4 * d, d, .act = x->act);
    return dpk_build_linear(p, DPK_SUB(name.s, "ff.net.2"), y, d, 4 * d, .residual = h, .gate = mod,
                            .gate_off = 5 * d);
}

static void step(struct dpk_prog *p, const struct pixart *x) {
    static const int no_pad[4] = {0, 0, 0, 0};
    int d = x->width;
    uint32_t latent = DPK_BUILD_INPUT(p, "latent", DPK_VALUE_F32, 0, 0, 0, x->in);
    uint32_t index = DPK_BUILD_INPUT(p, "step", DPK_VALUE_I32, 1);
    uint32_t mask = DPK_BUILD_INPUT(p, "mask", DPK_VALUE_I32, 0, 0);
    uint32_t mods, mod_out;
    if (x->sizes) {
        mods = DPK_BUILD_INPUT(p, "mod", DPK_VALUE_ACT, 0, 0, 6 * d);
        mod_out = DPK_BUILD_INPUT(p, "mod_out", DPK_VALUE_ACT, 0, 0, 2 * d);
    } else {
        mods = DPK_BUILD_INPUT(p, "mod", DPK_VALUE_ACT, 0, 6 * d);
        mod_out = DPK_BUILD_INPUT(p, "mod_out", DPK_VALUE_ACT, 0, 2 * d);
    }
    uint32_t mod = dpk_build_select(p, mods, index);
    uint32_t h = dpk_build_conv2d(p, "pos_embed.proj", latent, d, x->in, .kernel = x->patch,
                                  .stride = x->patch, .pad = no_pad);
    h = dpk_build_pos_embed_2d(p, h, x->base, (float)x->interpolation);
    for (int i = 0; i < x->layers; i++) h = block(p, x, i, h, mod, mask);
    h = dpk_build_layer_norm(p, "norm_out", h, d, 1e-6f, .no_affine = true,
                             .mod = dpk_build_select(p, mod_out, index), .shift_off = 0,
                             .scale_off = d);
    h = dpk_build_linear(p, "proj_out", h, x->patch * x->patch * x->out, d);
    h = dpk_build_unpatchify(p, h, x->patch);
    /* the other half of the channels is the learned variance, which no sampler here uses */
    dpk_build_output(p, "noise", dpk_build_slice(p, h, DPK_VALUE_F32, .off = 0, .count = x->in));
}

int dpk_arch_pixart(struct dpk_prog *setup_program, struct dpk_prog *step_program,
                    const struct dpk_config *config, int *sample_size, dpk_error *err) {
    int rc = DPK_OK;
    struct pixart x;
    DPK_TRY(read_config(&x, config, err));
    setup(setup_program, &x);
    step(step_program, &x);
    *sample_size = x.sample_size;
done:
    return rc;
}
