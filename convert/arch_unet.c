/* The conditional UNet (diffusers' UNet2DConditionModel) of Stable Diffusion 1.x, XL and their kin;
 * its config decides channels, depths, heads and blocks.
 *
 * One walk over the network fills two programs. What depends on the prompt, the picture's size and
 * the timestep alone goes to `setup` as soon as its user is met: the keys and values of every
 * cross-attention ("kv.LAYER") and the projected time embedding of every resnet ("temb.LAYER", all
 * timesteps at once); `step` takes them as inputs. */
#include "arch.h"

#include "../formats/fail.h"

#include <string.h>

enum { MAX_LEVELS = 8, MAX_LAYERS = 16, MAX_SKIPS = MAX_LEVELS * (MAX_LAYERS + 1) + 1 };

static const float transformer_norm_eps = 1e-6f, layer_norm_eps = 1e-5f;

struct unet {
    struct dpk_prog *setup, *step;
    /* from the config */
    int levels, channels[MAX_LEVELS], layers[MAX_LEVELS], heads[MAX_LEVELS];
    int down_depth[MAX_LEVELS][MAX_LAYERS], up_depth[MAX_LEVELS][MAX_LAYERS + 1],
        mid_depth;         /* 0: no attention */
    int mid;               /* enum mid_kind */
    int linear_projection; /* around transformers; else 1x1 convolutions */
    int in, out, groups, context, time_dim, add_dim, pooled, conv_in, conv_out, down_pad, flip;
    double norm_eps, freq_shift;
    bool text_time; /* embeddings of pooled text and sizes are added to the time's */
    /* of the walk */
    uint32_t context_value, emb, index; /* emb and context in setup, index (which step) in step */
    uint32_t skip[MAX_SKIPS];
    int skip_channels[MAX_SKIPS], n_skips;
};

enum mid_kind { MID_NONE, MID_RESNET, MID_ATTENTION };

/* ---- Config --------------------------------------------------------------------------------- */

/* Options that change the network in ways that are not built here: each must have the value of the
 * models that are. */
static int check_options(const struct dpk_config *c, dpk_error *err) {
    static const char *const null_keys[] = {"class_embed_type",      "num_class_embeds",
                                            "time_cond_proj_dim",    "encoder_hid_dim",
                                            "encoder_hid_dim_type",  "timestep_post_act",
                                            "time_embedding_act_fn", "cross_attention_norm"};
    static const char *const false_keys[] = {"dual_cross_attention", "center_input_sample",
                                             "resnet_skip_time_act",
                                             "mid_block_only_cross_attention"};
    static const struct {
        const char *key, *only;
    } words[] = {{"time_embedding_type", "positional"},
                 {"resnet_time_scale_shift", "default"},
                 {"attention_type", "default"},
                 {"act_fn", "silu"}};
    static const char *const ones[] = {"resnet_out_scale_factor", "mid_block_scale_factor"};
    int rc = DPK_OK, value;
    for (size_t i = 0; i < sizeof null_keys / sizeof *null_keys; i++)
        if (dpk_config_item(c, null_keys[i]))
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: %s is set, supported: null", c->name,
                     null_keys[i]);
    for (size_t i = 0; i < sizeof false_keys / sizeof *false_keys; i++)
        DPK_TRY(dpk_config_false(c, false_keys[i], err));
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        const char *const choices[] = {words[i].only, NULL};
        DPK_TRY(dpk_config_choice(c, words[i].key, words[i].only, choices, &value, err));
    }
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) {
        double scale;
        DPK_TRY(dpk_config_double(c, ones[i], 1.0, -1e9, 1e9, &scale, err));
        if (scale != 1.0)
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: %s is %g, supported: 1", c->name, ones[i], scale);
    }
    const cJSON *only = dpk_config_item(c, "only_cross_attention"), *item;
    if (cJSON_IsTrue(only))
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: only_cross_attention is true, supported: false",
                 c->name);
    if (cJSON_IsArray(only))
        cJSON_ArrayForEach(item, only) if (cJSON_IsTrue(item)) DPK_FAIL(
            err, DPK_EUNSUPPORTED, "%s: only_cross_attention has true, supported: false", c->name);
done:
    return rc;
}

/* Block types of one side: cross[i] says whether block i has attention. */
static int read_blocks(const struct dpk_config *c, const char *key, const char *plain,
                       const char *cross_attn, int levels, bool cross[MAX_LEVELS], dpk_error *err) {
    int rc = DPK_OK, n;
    const char *types[MAX_LEVELS];
    DPK_TRY(dpk_config_strings(c, key, MAX_LEVELS, types, &n, err));
    if (n != levels)
        DPK_FAIL(err, DPK_EFORMAT, "%s: %s has %d entries, block_out_channels %d", c->name, key, n,
                 levels);
    for (int i = 0; i < n; i++) {
        cross[i] = strcmp(types[i], cross_attn) == 0;
        if (!cross[i] && strcmp(types[i], plain) != 0)
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: %s has %s, supported: %s, %s", c->name, key,
                     types[i], plain, cross_attn);
    }
done:
    return rc;
}

/* How many transformer blocks every layer has. Without a list of its own the way up mirrors the way
 * down. */
static int read_depths(struct unet *u, const struct dpk_config *c, dpk_error *err) {
    const char *key = "transformer_layers_per_block",
               *reverse = "reverse_transformer_layers_per_block";
    int rc = DPK_OK;
    bool cross[MAX_LEVELS];
    DPK_TRY(read_blocks(c, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D", u->levels,
                        cross, err));
    for (int i = 0; i < u->levels; i++)
        if (cross[i])
            DPK_TRY(dpk_config_nested_ints(c, key, 1, 1, 256, u->levels, i, u->layers[i],
                                           u->down_depth[i], err));
    DPK_TRY(
        read_blocks(c, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D", u->levels, cross, err));
    for (int i = 0; i < u->levels; i++) {
        int from = u->levels - 1 - i, n = u->layers[from] + 1;
        if (!cross[i]) continue;
        if (dpk_config_item(c, reverse)) {
            DPK_TRY(dpk_config_nested_ints(c, reverse, 1, 1, 256, u->levels, i, n, u->up_depth[i],
                                           err));
        } else {
            int depth;
            DPK_TRY(dpk_config_nested_ints(c, key, 1, 1, 256, u->levels, from, 1, &depth, err));
            for (int j = 0; j < n; j++) u->up_depth[i][j] = depth;
        }
    }
    if (u->mid == MID_ATTENTION)
        DPK_TRY(dpk_config_nested_ints(c, key, 1, 1, 256, u->levels, u->levels - 1, 1,
                                       &u->mid_depth, err));
done:
    return rc;
}

static int read_mid(struct unet *u, const struct dpk_config *c, dpk_error *err) {
    static const char *const mids[] = {"UNetMidBlock2DCrossAttn", "UNetMidBlock2D", NULL};
    static const int kinds[] = {MID_ATTENTION, MID_RESNET};
    int rc = DPK_OK, mid;
    /* an explicit null means no block at all */
    if (cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(c->json, "mid_block_type"))) {
        u->mid = MID_NONE;
        goto done;
    }
    DPK_TRY(dpk_config_choice(c, "mid_block_type", mids[0], mids, &mid, err));
    u->mid = kinds[mid];
done:
    return rc;
}

static int read_conditions(struct unet *u, const struct dpk_config *c, dpk_error *err) {
    static const char *const additions[] = {"text_time", NULL};
    int rc = DPK_OK, value;
    DPK_TRY(dpk_config_int(c, "cross_attention_dim", 1280, 1, 1 << 16, &u->context, err));
    DPK_TRY(
        dpk_config_int(c, "time_embedding_dim", 4 * u->channels[0], 1, 1 << 18, &u->time_dim, err));
    DPK_TRY(dpk_config_bool(c, "flip_sin_to_cos", 1, &u->flip, err));
    DPK_TRY(dpk_config_double(c, "freq_shift", 0.0, -1e3, 1e3, &u->freq_shift, err));
    u->text_time = dpk_config_item(c, "addition_embed_type") != NULL;
    if (u->text_time) {
        DPK_TRY(dpk_config_choice(c, "addition_embed_type", NULL, additions, &value, err));
        DPK_TRY(dpk_config_require(c, "addition_time_embed_dim", err));
        DPK_TRY(dpk_config_int(c, "addition_time_embed_dim", 256, 2, 1 << 14, &u->add_dim, err));
        DPK_TRY(dpk_config_require(c, "projection_class_embeddings_input_dim", err));
        DPK_TRY(dpk_config_int(c, "projection_class_embeddings_input_dim", 2816, 6 * u->add_dim + 1,
                               1 << 20, &value, err));
        u->pooled = value - 6 * u->add_dim;
    }
done:
    return rc;
}

static int read_config(struct unet *u, const struct dpk_config *c, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(check_options(c, err));
    DPK_TRY(dpk_config_length(c, "block_out_channels", MAX_LEVELS, &u->levels, err));
    if (u->levels < 1) DPK_FAIL(err, DPK_EFORMAT, "%s: block_out_channels is missing", c->name);
    DPK_TRY(dpk_config_ints(c, "block_out_channels", 320, 1, 1 << 16, u->levels, u->channels, err));
    DPK_TRY(dpk_config_ints(c, "layers_per_block", 2, 1, MAX_LAYERS, u->levels, u->layers, err));
    /* the key that is called head_dim holds the number of heads; num_attention_heads came later and
     * wins */
    const char *heads =
        dpk_config_item(c, "num_attention_heads") ? "num_attention_heads" : "attention_head_dim";
    DPK_TRY(dpk_config_ints(c, heads, 8, 1, 1024, u->levels, u->heads, err));
    for (int i = 0; i < u->levels; i++)
        if (u->channels[i] % u->heads[i] != 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: %d channels do not divide into %d heads", c->name,
                     u->channels[i], u->heads[i]);
    DPK_TRY(dpk_config_int(c, "in_channels", 4, 1, 256, &u->in, err));
    DPK_TRY(dpk_config_int(c, "out_channels", 4, 1, 256, &u->out, err));
    if (u->in != u->out)
        DPK_FAIL(err, DPK_EUNSUPPORTED,
                 "%s: in_channels %d, out_channels %d, supported: equal ones", c->name, u->in,
                 u->out);
    DPK_TRY(dpk_config_int(c, "norm_num_groups", 32, 1, 1 << 16, &u->groups, err));
    DPK_TRY(dpk_config_double(c, "norm_eps", 1e-5, 1e-12, 1.0, &u->norm_eps, err));
    DPK_TRY(dpk_config_bool(c, "use_linear_projection", 0, &u->linear_projection, err));
    DPK_TRY(dpk_config_int(c, "conv_in_kernel", 3, 1, 15, &u->conv_in, err));
    DPK_TRY(dpk_config_int(c, "conv_out_kernel", 3, 1, 15, &u->conv_out, err));
    DPK_TRY(dpk_config_int(c, "downsample_padding", 1, 1, 1, &u->down_pad, err));
    DPK_TRY(read_conditions(u, c, err));
    DPK_TRY(read_mid(u, c, err));
    DPK_TRY(read_depths(u, c, err));
done:
    return rc;
}

/* ---- Parts ---------------------------------------------------------------------------------- */

/* The time embedding of every step, with the embeddings of pooled text and sizes added, through
 * SiLU: [T, B, D] or, without those, [T, D]. Every user takes it through SiLU. */
static void time_embedding(struct unet *u) {
    struct dpk_prog *p = u->setup;
    int d = u->time_dim;
    uint32_t t = DPK_BUILD_INPUT(p, "timesteps", DPK_VALUE_F32, 0);
    t = dpk_build_sinusoid(p, t, u->channels[0], u->flip, (float)u->freq_shift);
    t = dpk_build_linear(p, "time_embedding.linear_1", t, d, u->channels[0], .act = DPK_ACT_SILU);
    t = dpk_build_linear(p, "time_embedding.linear_2", t, d, d,
                         .act = u->text_time ? DPK_ACT_NONE : DPK_ACT_SILU);
    if (u->text_time) {
        uint32_t pooled = DPK_BUILD_INPUT(p, "pooled", DPK_VALUE_F32, 0, u->pooled);
        uint32_t ids = DPK_BUILD_INPUT(p, "time_ids", DPK_VALUE_F32, 0, 6);
        ids = dpk_build_sinusoid(p, ids, u->add_dim, u->flip, (float)u->freq_shift);
        uint32_t a = dpk_build_concat(p, dpk_build_slice(p, pooled, DPK_VALUE_ACT), ids);
        a = dpk_build_linear(p, "add_embedding.linear_1", a, d, u->pooled + 6 * u->add_dim,
                             .act = DPK_ACT_SILU);
        a = dpk_build_linear(p, "add_embedding.linear_2", a, d, d);
        t = dpk_build_outer_add(p, t, a, DPK_ACT_SILU);
    }
    u->emb = t;
}

/* A resnet's share of the time embedding, of the step that runs: [B, n] or [1, n]. */
static uint32_t time_projection(struct unet *u, const char *resnet, int n) {
    struct dpk_name name = dpk_namef("temb.%s", resnet);
    dpk_build_output(
        u->setup, name.s,
        dpk_build_linear(u->setup, DPK_SUB(resnet, "time_emb_proj"), u->emb, n, u->time_dim));
    uint32_t all = u->text_time ? DPK_BUILD_INPUT(u->step, name.s, DPK_VALUE_ACT, 0, 0, n)
                                : DPK_BUILD_INPUT(u->step, name.s, DPK_VALUE_ACT, 0, n);
    return dpk_build_select(u->step, all, u->index);
}

/* x2: a skip of c2 channels that stands beside x, or 0. */
static uint32_t resnet(struct unet *u, const char *name, uint32_t x, int c1, uint32_t x2, int c2,
                       int out) {
    struct dpk_prog *p = u->step;
    int in = c1 + c2;
    float eps = (float)u->norm_eps;
    uint32_t temb = time_projection(u, name, out);
    uint32_t h =
        dpk_build_group_norm(p, DPK_SUB(name, "norm1"), x, x2, in, u->groups, eps, DPK_ACT_SILU);
    h = dpk_build_conv2d(p, DPK_SUB(name, "conv1"), h, out, in, .temb = temb);
    h = dpk_build_group_norm(p, DPK_SUB(name, "norm2"), h, 0, out, u->groups, eps, DPK_ACT_SILU);
    if (x2 || in != out)
        x = dpk_build_linear(p, DPK_SUB(name, "conv_shortcut"), x, out, in, .x2 = x2,
                             .conv1x1 = true);
    return dpk_build_conv2d(p, DPK_SUB(name, "conv2"), h, out, out, .residual = x);
}

static uint32_t transformer_block(struct unet *u, const char *name, uint32_t x, int c, int heads) {
    struct dpk_prog *p = u->step;
    struct dpk_name attn1 = dpk_namef("%s.attn1", name), attn2 = dpk_namef("%s.attn2", name);
    struct dpk_name kv_name = dpk_namef("kv.%s", attn2.s);
    int d = c / heads;
    uint32_t h = dpk_build_layer_norm(p, DPK_SUB(name, "norm1"), x, c, layer_norm_eps);
    h = dpk_build_linear(p, DPK_SUB(attn1.s, "to_qkv"), h, 3 * c, c, .no_bias = true,
                         .stack = {"to_q", "to_k", "to_v"});
    h = dpk_build_attention(p, attn1.s, h, h, h, heads, d, .k_off = c, .v_off = 2 * c);
    x = dpk_build_linear(p, DPK_SUB(attn1.s, "to_out.0"), h, c, c, .residual = x);

    uint32_t kv = dpk_build_linear(u->setup, DPK_SUB(attn2.s, "to_kv"), u->context_value, 2 * c,
                                   u->context, .no_bias = true, .stack = {"to_k", "to_v"});
    dpk_build_output(u->setup, kv_name.s, kv);
    kv = DPK_BUILD_INPUT(p, kv_name.s, DPK_VALUE_ACT, 0, 0, 2 * c);
    h = dpk_build_layer_norm(p, DPK_SUB(name, "norm2"), x, c, layer_norm_eps);
    h = dpk_build_linear(p, DPK_SUB(attn2.s, "to_q"), h, c, c, .no_bias = true);
    h = dpk_build_attention(p, attn2.s, h, kv, kv, heads, d, .v_off = c);
    x = dpk_build_linear(p, DPK_SUB(attn2.s, "to_out.0"), h, c, c, .residual = x);

    h = dpk_build_layer_norm(p, DPK_SUB(name, "norm3"), x, c, layer_norm_eps);
    h = dpk_build_linear(p, DPK_SUB(name, "ff.net.0.proj"), h, 8 * c, c, .glu = true,
                         .act = DPK_ACT_GELU);
    return dpk_build_linear(p, DPK_SUB(name, "ff.net.2"), h, c, 4 * c, .residual = x);
}

/* A map is the sequence of its pixels, so nothing is flattened; a 1x1 convolution as projection is
 * a linear. */
static uint32_t transformer(struct unet *u, const char *name, uint32_t x, int c, int heads,
                            int depth) {
    struct dpk_prog *p = u->step;
    uint32_t h = dpk_build_group_norm(p, DPK_SUB(name, "norm"), x, 0, c, u->groups,
                                      transformer_norm_eps, DPK_ACT_NONE);
    h = dpk_build_linear(p, DPK_SUB(name, "proj_in"), h, c, c, .conv1x1 = !u->linear_projection);
    for (int i = 0; i < depth; i++)
        h = transformer_block(u, dpk_namef("%s.transformer_blocks.%d", name, i).s, h, c, heads);
    return dpk_build_linear(p, DPK_SUB(name, "proj_out"), h, c, c, .residual = x,
                            .conv1x1 = !u->linear_projection);
}

/* ---- The walk ------------------------------------------------------------------------------- */

static void push_skip(struct unet *u, uint32_t x, int c) {
    u->skip[u->n_skips] = x;
    u->skip_channels[u->n_skips++] = c;
}

static uint32_t down_blocks(struct unet *u, uint32_t x) {
    int c = u->channels[0];
    push_skip(u, x, c);
    for (int i = 0; i < u->levels; i++) {
        struct dpk_name block = dpk_namef("down_blocks.%d", i);
        int out = u->channels[i];
        for (int j = 0; j < u->layers[i]; j++, c = out) {
            x = resnet(u, dpk_namef("%s.resnets.%d", block.s, j).s, x, c, 0, 0, out);
            if (u->down_depth[i][j])
                x = transformer(u, dpk_namef("%s.attentions.%d", block.s, j).s, x, out, u->heads[i],
                                u->down_depth[i][j]);
            push_skip(u, x, out);
        }
        if (i + 1 == u->levels) continue;
        x = dpk_build_conv2d(u->step, DPK_SUB(block.s, "downsamplers.0.conv"), x, c, c,
                             .stride = 2);
        push_skip(u, x, c);
    }
    return x;
}

static uint32_t mid_block(struct unet *u, uint32_t x) {
    int last = u->levels - 1, c = u->channels[last];
    if (u->mid == MID_NONE) return x;
    x = resnet(u, "mid_block.resnets.0", x, c, 0, 0, c);
    if (u->mid == MID_RESNET) return x;
    x = transformer(u, "mid_block.attentions.0", x, c, u->heads[last], u->mid_depth);
    return resnet(u, "mid_block.resnets.1", x, c, 0, 0, c);
}

static uint32_t up_blocks(struct unet *u, uint32_t x) {
    int c = u->channels[u->levels - 1];
    for (int i = 0; i < u->levels; i++) {
        struct dpk_name block = dpk_namef("up_blocks.%d", i);
        int level = u->levels - 1 - i, out = u->channels[level];
        for (int j = 0; j <= u->layers[level]; j++, c = out) {
            int top = --u->n_skips;
            x = resnet(u, dpk_namef("%s.resnets.%d", block.s, j).s, x, c, u->skip[top],
                       u->skip_channels[top], out);
            if (u->up_depth[i][j])
                x = transformer(u, dpk_namef("%s.attentions.%d", block.s, j).s, x, out,
                                u->heads[level], u->up_depth[i][j]);
        }
        /* to the size of the skip that comes next: sizes need not halve evenly */
        if (i + 1 < u->levels)
            x = dpk_build_conv2d(u->step, DPK_SUB(block.s, "upsamplers.0.conv"), x, c, c,
                                 .upsample = true, .like = u->skip[u->n_skips - 1]);
    }
    return x;
}

int dpk_arch_unet(struct dpk_prog *setup, struct dpk_prog *step, const struct dpk_config *config,
                  struct dpk_unet_result *result, dpk_error *err) {
    int rc = DPK_OK;
    struct unet u = {.setup = setup, .step = step};
    DPK_TRY(read_config(&u, config, err));
    uint32_t context = DPK_BUILD_INPUT(setup, "context", DPK_VALUE_F32, 0, 0, u.context);
    u.context_value = dpk_build_slice(setup, context, DPK_VALUE_ACT);
    time_embedding(&u);
    uint32_t latent = DPK_BUILD_INPUT(step, "latent", DPK_VALUE_F32, 0, 0, 0, u.in);
    u.index = DPK_BUILD_INPUT(step, "step", DPK_VALUE_I32, 1);
    /* at low noise the answer is little more than what the latent's last bits say: it goes in as it
     * is */
    uint32_t x =
        dpk_build_conv2d(step, "conv_in", latent, u.channels[0], u.in, .kernel = u.conv_in);
    x = down_blocks(&u, x);
    x = mid_block(&u, x);
    x = up_blocks(&u, x);
    x = dpk_build_group_norm(step, "conv_norm_out", x, 0, u.channels[0], u.groups,
                             (float)u.norm_eps, DPK_ACT_SILU);
    x = dpk_build_conv2d(step, "conv_out", x, u.out, u.channels[0], .kernel = u.conv_out);
    dpk_build_output(step, "noise", dpk_build_slice(step, x, DPK_VALUE_F32));
    result->channels = u.in;
    DPK_TRY(dpk_config_ints(config, "sample_size", 64, 1, 4096, 2, result->sample_size, err));
done:
    return rc;
}
