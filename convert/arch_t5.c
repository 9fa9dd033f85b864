/* The T5 v1.1 encoder (transformers' T5EncoderModel): relative position bias of the first block
 * shared by all, root-mean-square norms, attention without scaling, gated feed-forward. */
#include "arch.h"

#include "../formats/fail.h"

struct t5 {
    int width, inner, ff, vocab, layers, heads, d_kv, buckets, max_distance;
    double eps;
    int act;
};

static int read_config(struct t5 *t, const struct dpk_config *c, dpk_error *err) {
    int rc = DPK_OK, gated, same;
    static const char *const kinds[] = {"gated-gelu", "gated-silu", NULL};
    static const char *const dense[][2] = {{"gelu_new"}, {"silu"}}; /* what each of them says */
    static const int acts[] = {DPK_ACT_GELU_TANH, DPK_ACT_SILU};
    DPK_TRY(dpk_config_int(c, "d_model", 512, 1, 1 << 16, &t->width, err));
    DPK_TRY(dpk_config_int(c, "d_ff", 2048, 1, 1 << 18, &t->ff, err));
    DPK_TRY(dpk_config_int(c, "d_kv", 64, 1, 4096, &t->d_kv, err));
    DPK_TRY(dpk_config_int(c, "num_heads", 8, 1, 1024, &t->heads, err));
    DPK_TRY(dpk_config_int(c, "num_layers", 6, 1, 1024, &t->layers, err));
    DPK_TRY(dpk_config_int(c, "vocab_size", 32128, 1, 1 << 24, &t->vocab, err));
    DPK_TRY(dpk_config_int(c, "relative_attention_num_buckets", 32, 4, 4096, &t->buckets, err));
    DPK_TRY(dpk_config_int(c, "relative_attention_max_distance", 128, 2, 1 << 20, &t->max_distance,
                           err));
    DPK_TRY(dpk_config_double(c, "layer_norm_epsilon", 1e-6, 1e-12, 1.0, &t->eps, err));
    DPK_TRY(dpk_config_choice(c, "feed_forward_proj", "relu", kinds, &gated, err));
    DPK_TRY(dpk_config_choice(c, "dense_act_fn", dense[gated][0], dense[gated], &same, err));
    t->act = acts[gated];
    t->inner = t->heads * t->d_kv;
done:
    return rc;
}

static uint32_t attention(struct dpk_prog *p, const struct t5 *t, const char *layer, uint32_t x,
                          uint32_t bias, uint32_t mask) {
    uint32_t h = dpk_build_layer_norm(p, DPK_SUB(layer, "layer_norm"), x, t->width, (float)t->eps,
                                      .rms = true);
    struct dpk_name name = dpk_namef("%s.SelfAttention", layer);
    h = dpk_build_linear(p, DPK_SUB(name.s, "qkv"), h, 3 * t->inner, t->width, .no_bias = true,
                         .stack = {"q", "k", "v"});
    h = dpk_build_attention(p, name.s, h, h, h, t->heads, t->d_kv, .mask = mask, .bias = bias,
                            .k_off = t->inner, .v_off = 2 * t->inner, .scale = 1.0f);
    return dpk_build_linear(p, DPK_SUB(name.s, "o"), h, t->width, t->inner, .no_bias = true,
                            .residual = x);
}

/* The value half of the gated unit is wi_1, the gate wi_0. */
static uint32_t feed_forward(struct dpk_prog *p, const struct t5 *t, const char *layer,
                             uint32_t x) {
    uint32_t h = dpk_build_layer_norm(p, DPK_SUB(layer, "layer_norm"), x, t->width, (float)t->eps,
                                      .rms = true);
    struct dpk_name name = dpk_namef("%s.DenseReluDense", layer);
    h = dpk_build_linear(p, DPK_SUB(name.s, "wi"), h, 2 * t->ff, t->width, .no_bias = true,
                         .glu = true, .act = t->act, .stack = {"wi_1", "wi_0"});
    return dpk_build_linear(p, DPK_SUB(name.s, "wo"), h, t->width, t->ff, .no_bias = true,
                            .residual = x);
}

int dpk_arch_t5(struct dpk_prog *p, const struct dpk_config *config, uint32_t ids, uint32_t mask,
                uint32_t *context, int *width, dpk_error *err) {
    int rc = DPK_OK;
    struct t5 t;
    DPK_TRY(read_config(&t, config, err));
    uint32_t x = dpk_build_embedding(p, "shared", t.vocab, "", 0, t.width, ids);
    uint32_t bias =
        dpk_build_relative_bias(p, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
                                ids, t.buckets, t.heads, t.max_distance);
    for (int i = 0; i < t.layers; i++) {
        x = attention(p, &t, dpk_namef("encoder.block.%d.layer.0", i).s, x, bias, mask);
        x = feed_forward(p, &t, dpk_namef("encoder.block.%d.layer.1", i).s, x);
    }
    *context =
        dpk_build_layer_norm(p, "encoder.final_layer_norm", x, t.width, (float)t.eps, .rms = true);
    *width = t.width;
done:
    return rc;
}
