/* CLIP text encoders (transformers' CLIPTextModel, CLIPTextModelWithProjection): learned positions,
 * causal pre-norm blocks. The query, key and value projections of a block become one linear. */
#include "arch.h"

#include "../formats/fail.h"

struct clip {
    int width, ff, vocab, positions, layers, heads, projection, eos, act;
    double eps;
};

static int read_config(struct clip *t, const struct dpk_config *c, dpk_error *err) {
    static const char *const acts[] = {"quick_gelu", "gelu", "gelu_new", "silu", NULL};
    static const int act_of[] = {DPK_ACT_QUICK_GELU, DPK_ACT_GELU, DPK_ACT_GELU_TANH, DPK_ACT_SILU};
    int rc = DPK_OK, act;
    DPK_TRY(dpk_config_false(c, "use_attention_mask", err));
    DPK_TRY(dpk_config_int(c, "hidden_size", 512, 1, 1 << 16, &t->width, err));
    DPK_TRY(dpk_config_int(c, "intermediate_size", 2048, 1, 1 << 18, &t->ff, err));
    DPK_TRY(dpk_config_int(c, "vocab_size", 49408, 1, 1 << 24, &t->vocab, err));
    DPK_TRY(dpk_config_int(c, "max_position_embeddings", 77, 2, 1 << 16, &t->positions, err));
    DPK_TRY(dpk_config_int(c, "num_hidden_layers", 12, 1, 1024, &t->layers, err));
    DPK_TRY(dpk_config_int(c, "num_attention_heads", 8, 1, 1024, &t->heads, err));
    DPK_TRY(dpk_config_int(c, "projection_dim", 512, 1, 1 << 16, &t->projection, err));
    DPK_TRY(dpk_config_int(c, "eos_token_id", 49407, 0, 1 << 24, &t->eos, err));
    DPK_TRY(dpk_config_double(c, "layer_norm_eps", 1e-5, 1e-12, 1.0, &t->eps, err));
    DPK_TRY(dpk_config_choice(c, "hidden_act", "quick_gelu", acts, &act, err));
    t->act = act_of[act];
    if (t->width % t->heads != 0)
        DPK_FAIL(err, DPK_EFORMAT, "%s: hidden_size %d is not a multiple of num_attention_heads %d",
                 c->name, t->width, t->heads);
done:
    return rc;
}

static uint32_t layer(struct dpk_prog *p, const struct clip *t, int i, uint32_t x) {
    struct dpk_name name = dpk_namef("text_model.encoder.layers.%d", i);
    struct dpk_name attn = dpk_namef("%s.self_attn", name.s);
    int d = t->width;
    float eps = (float)t->eps;
    uint32_t h = dpk_build_layer_norm(p, DPK_SUB(name.s, "layer_norm1"), x, d, eps);
    h = dpk_build_linear(p, DPK_SUB(attn.s, "qkv_proj"), h, 3 * d, d,
                         .stack = {"q_proj", "k_proj", "v_proj"});
    h = dpk_build_attention(p, attn.s, h, h, h, t->heads, d / t->heads, .k_off = d, .v_off = 2 * d,
                            .causal = true);
    x = dpk_build_linear(p, DPK_SUB(attn.s, "out_proj"), h, d, d, .residual = x);
    h = dpk_build_layer_norm(p, DPK_SUB(name.s, "layer_norm2"), x, d, eps);
    h = dpk_build_linear(p, DPK_SUB(name.s, "mlp.fc1"), h, t->ff, d, .act = t->act);
    return dpk_build_linear(p, DPK_SUB(name.s, "mlp.fc2"), h, d, t->ff, .residual = x);
}

int dpk_arch_clip(struct dpk_prog *p, const struct dpk_config *config,
                  const struct dpk_clip_opt *opt, uint32_t ids, struct dpk_clip_result *result,
                  dpk_error *err) {
    const char *final_norm = "text_model.final_layer_norm";
    int rc = DPK_OK;
    struct clip t;
    DPK_TRY(read_config(&t, config, err));
    if (opt->skip < 0 || opt->skip > t.layers)
        DPK_FAIL(err, DPK_EARG, "%s: clip skip %d of %d layers", config->name, opt->skip, t.layers);
    /* a layer beyond the context is needed for the pooled state alone */
    int needed = opt->projection ? t.layers : t.layers - opt->skip;
    uint32_t x =
        dpk_build_embedding(p, "text_model.embeddings.token_embedding", t.vocab,
                            "text_model.embeddings.position_embedding", t.positions, t.width, ids);
    *result = (struct dpk_clip_result){.width = t.width, .tokens = t.positions};
    for (int i = 0; i <= needed; i++) {
        if (i == t.layers - opt->skip) result->context = x;
        if (i < needed) x = layer(p, &t, i, x);
    }
    if (opt->final_norm)
        result->context =
            dpk_build_layer_norm(p, final_norm, result->context, t.width, (float)t.eps);
    else if (!opt->projection) dpk_build_unused_norm(p, final_norm, t.width);
    for (int i = needed; i < t.layers; i++) {
        struct dpk_name name = dpk_namef("text_model.encoder.layers.%d", i);
        static const char *const square[] = {"q_proj", "k_proj", "v_proj", "out_proj"};
        for (int j = 0; j < 4; j++)
            dpk_build_unused_linear(p, dpk_namef("%s.self_attn.%s", name.s, square[j]).s, t.width,
                                    t.width, true);
        dpk_build_unused_linear(p, DPK_SUB(name.s, "mlp.fc1"), t.ff, t.width, true);
        dpk_build_unused_linear(p, DPK_SUB(name.s, "mlp.fc2"), t.width, t.ff, true);
        dpk_build_unused_norm(p, DPK_SUB(name.s, "layer_norm1"), t.width);
        dpk_build_unused_norm(p, DPK_SUB(name.s, "layer_norm2"), t.width);
    }
    if (opt->projection) {
        uint32_t h = dpk_build_layer_norm(p, final_norm, x, t.width, (float)t.eps);
        /* configs from before transformers 4.30 say 2 whatever the vocabulary; it stands for the
         * largest id */
        h = dpk_build_eos_pool(p, h, ids, t.eos == 2 ? -1 : t.eos);
        result->pooled =
            dpk_build_linear(p, "text_projection", h, t.projection, t.width, .no_bias = true);
    }
done:
    return rc;
}
