/* From the names of diffusers and transformers to those of original checkpoints. */
#include "ldm.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The parts of the names that stay are replaced one after the other. */
struct word {
    const char *ours, *theirs;
};

/* The name after `prefix`, or NULL if it begins otherwise. */
static const char *after(const char *name, const char *prefix) {
    const size_t n = strlen(prefix);
    return strncmp(name, prefix, n) == 0 ? name + n : NULL;
}

/* The same, the prefix being a whole word: the end or a dot follows it. */
static const char *after_word(const char *name, const char *word) {
    const char *rest = after(name, word);
    return rest && (!*rest || *rest == '.') ? rest : NULL;
}

static bool place_at(struct dpk_place *place, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static bool place_at(struct dpk_place *place, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(place->name, sizeof place->name, format, args);
    va_end(args);
    place->part = 0;
    place->n_parts = 1;
    place->transposed = false;
    return n > 0 && (size_t)n < sizeof place->name;
}

/* If a word of the table begins the name: its replacement and the rest, behind `head`. */
static bool replace_first(struct dpk_place *place, const char *head, const char *name,
                          const struct word *words) {
    for (; words->ours; words++) {
        const char *rest = after_word(name, words->ours);
        if (rest) return place_at(place, "%s%s%s", head, words->theirs, rest);
    }
    return place_at(place, "%s%s", head, name);
}

/* ---- UNet ------------------------------------------------------------------------------------ */

/* Levels of two layers and a resampling one, as all these models have: three numbers a level. */
static bool place_unet_block(const char *name, int alternative, struct dpk_place *place) {
    static const struct word resnet[] = {{"norm1", "in_layers.0"},
                                         {"conv1", "in_layers.2"},
                                         {"time_emb_proj", "emb_layers.1"},
                                         {"norm2", "out_layers.0"},
                                         {"conv2", "out_layers.3"},
                                         {"conv_shortcut", "skip_connection"},
                                         {NULL, NULL}};
    static const struct word same[] = {{NULL, NULL}};
    unsigned b, l;
    int n = 0;
    char head[64];
    if (sscanf(name, "down_blocks.%3u.resnets.%3u.%n", &b, &l, &n) == 2 && n) {
        snprintf(head, sizeof head, "input_blocks.%u.0.", 1 + 3 * b + l);
        return replace_first(place, head, name + n, resnet);
    }
    if (sscanf(name, "down_blocks.%3u.attentions.%3u.%n", &b, &l, &n) == 2 && n) {
        snprintf(head, sizeof head, "input_blocks.%u.1.", 1 + 3 * b + l);
        return replace_first(place, head, name + n, same);
    }
    if (sscanf(name, "down_blocks.%3u.downsamplers.0.conv%n", &b, &n) == 1 && n)
        return place_at(place, "input_blocks.%u.0.op%s", 3 * b + 3, name + n);
    if (sscanf(name, "up_blocks.%3u.resnets.%3u.%n", &b, &l, &n) == 2 && n) {
        snprintf(head, sizeof head, "output_blocks.%u.0.", 3 * b + l);
        return replace_first(place, head, name + n, resnet);
    }
    if (sscanf(name, "up_blocks.%3u.attentions.%3u.%n", &b, &l, &n) == 2 && n) {
        snprintf(head, sizeof head, "output_blocks.%u.1.", 3 * b + l);
        return replace_first(place, head, name + n, same);
    }
    /* behind the attention, or where that would be */
    if (sscanf(name, "up_blocks.%3u.upsamplers.0.conv%n", &b, &n) == 1 && n)
        return place_at(place, "output_blocks.%u.%d.conv%s", 3 * b + 2, 2 - alternative, name + n);
    if (sscanf(name, "mid_block.resnets.%3u.%n", &l, &n) == 1 && n) {
        snprintf(head, sizeof head, "middle_block.%u.", 2 * l);
        return replace_first(place, head, name + n, resnet);
    }
    const char *rest = after(name, "mid_block.attentions.0.");
    return rest && place_at(place, "middle_block.1.%s", rest);
}

bool dpk_ldm_unet(const struct dpk_names *names, const char *name, int alternative,
                  struct dpk_place *place) {
    static const struct word outer[] = {{"time_embedding.linear_1", "time_embed.0"},
                                        {"time_embedding.linear_2", "time_embed.2"},
                                        {"add_embedding.linear_1", "label_emb.0.0"},
                                        {"add_embedding.linear_2", "label_emb.0.2"},
                                        {"conv_in", "input_blocks.0.0"},
                                        {"conv_norm_out", "out.0"},
                                        {"conv_out", "out.2"},
                                        {NULL, NULL}};
    (void)names;
    if (alternative > (strstr(name, ".upsamplers.") ? 1 : 0)) return false;
    if (place_unet_block(name, alternative, place)) return true;
    return replace_first(place, "", name, outer);
}

/* ---- Autoencoder ----------------------------------------------------------------------------- */

static const struct word vae_resnet[] = {{"conv_shortcut", "nin_shortcut"}, {NULL, NULL}};

static bool place_vae_half(const struct dpk_names *names, const char *half, const char *name,
                           struct dpk_place *place) {
    static const struct word attention[] = {
        {"group_norm", "norm"},   {"to_q", "q"}, {"to_k", "k"}, {"to_v", "v"},
        {"to_out.0", "proj_out"}, {NULL, NULL}};
    static const struct word outer[] = {{"conv_norm_out", "norm_out"}, {NULL, NULL}};
    unsigned b, l;
    int n = 0;
    char head[64];
    if (sscanf(name, "down_blocks.%3u.resnets.%3u.%n", &b, &l, &n) == 2 && n) {
        snprintf(head, sizeof head, "%s.down.%u.block.%u.", half, b, l);
        return replace_first(place, head, name + n, vae_resnet);
    }
    if (sscanf(name, "down_blocks.%3u.downsamplers.0.%n", &b, &n) == 1 && n)
        return place_at(place, "%s.down.%u.downsample.%s", half, b, name + n);
    if (sscanf(name, "up_blocks.%3u.resnets.%3u.%n", &b, &l, &n) == 2 && n) {
        snprintf(head, sizeof head, "%s.up.%d.block.%u.", half, names->vae_levels - 1 - (int)b, l);
        return replace_first(place, head, name + n, vae_resnet);
    }
    if (sscanf(name, "up_blocks.%3u.upsamplers.0.%n", &b, &n) == 1 && n)
        return place_at(place, "%s.up.%d.upsample.%s", half, names->vae_levels - 1 - (int)b,
                        name + n);
    if (sscanf(name, "mid_block.resnets.%3u.%n", &l, &n) == 1 && n) {
        snprintf(head, sizeof head, "%s.mid.block_%u.", half, l + 1);
        return replace_first(place, head, name + n, vae_resnet);
    }
    const char *rest = after(name, "mid_block.attentions.0.");
    if (rest) {
        snprintf(head, sizeof head, "%s.mid.attn_1.", half);
        return replace_first(place, head, rest, attention);
    }
    snprintf(head, sizeof head, "%s.", half);
    return replace_first(place, head, name, outer);
}

bool dpk_ldm_vae(const struct dpk_names *names, const char *name, int alternative,
                 struct dpk_place *place) {
    static const char *const halves[] = {"encoder", "decoder"};
    if (alternative > 0) return false;
    for (int i = 0; i < 2; i++) {
        const char *rest = after_word(name, halves[i]);
        if (rest && *rest) return place_vae_half(names, halves[i], rest + 1, place);
    }
    return place_at(place, "%s", name); /* quant_conv, post_quant_conv */
}

/* ---- Text encoders --------------------------------------------------------------------------- */

bool dpk_ldm_clip(const struct dpk_names *names, const char *name, int alternative,
                  struct dpk_place *place) {
    (void)names;
    if (alternative == 0) return place_at(place, "%s", name);
    const char *rest = after(name, "text_model."); /* as some versions of transformers save it */
    return alternative == 1 && rest && place_at(place, "%s", rest);
}

/* open_clip's text tower; its blocks have torch.nn.MultiheadAttention with one fused projection. */
static bool place_open_clip_layer(const char *name, struct dpk_place *place) {
    static const struct word layer[] = {{"self_attn.out_proj", "attn.out_proj"},
                                        {"layer_norm1", "ln_1"},
                                        {"layer_norm2", "ln_2"},
                                        {"mlp.fc1", "mlp.c_fc"},
                                        {"mlp.fc2", "mlp.c_proj"},
                                        {NULL, NULL}};
    static const char *const fused[] = {"self_attn.q_proj.", "self_attn.k_proj.",
                                        "self_attn.v_proj."};
    unsigned l;
    int n = 0;
    char head[64];
    if (sscanf(name, "text_model.encoder.layers.%4u.%n", &l, &n) != 1 || !n) return false;
    snprintf(head, sizeof head, "transformer.resblocks.%u.", l);
    for (int i = 0; i < 3; i++) {
        const char *rest = after(name + n, fused[i]);
        if (!rest) continue;
        const bool fits = place_at(place, "%sattn.in_proj_%s", head, rest);
        place->part = i;
        place->n_parts = 3;
        return fits;
    }
    return replace_first(place, head, name + n, layer);
}

bool dpk_ldm_open_clip(const struct dpk_names *names, const char *name, int alternative,
                       struct dpk_place *place) {
    static const struct word outer[] = {
        {"text_model.embeddings.token_embedding", "token_embedding"},
        {"text_model.embeddings.position_embedding.weight", "positional_embedding"},
        {"text_model.final_layer_norm", "ln_final"},
        {NULL, NULL}};
    (void)names;
    if (strcmp(name, "text_projection.weight") == 0) {
        if (alternative == 1) return place_at(place, "%s", name);
        const bool fits = place_at(place, "text_projection");
        place->transposed = true;
        return fits && alternative == 0;
    }
    if (alternative > 0) return false;
    return place_open_clip_layer(name, place) || replace_first(place, "", name, outer);
}

/* ---- PixArt-alpha ---------------------------------------------------------------------------- */

static bool place_pixart_block(const char *name, struct dpk_place *place) {
    static const struct word block[] = {{"attn1.to_out.0", "attn.proj"},
                                        {"attn2.to_q", "cross_attn.q_linear"},
                                        {"attn2.to_out.0", "cross_attn.proj"},
                                        {"ff.net.0.proj", "mlp.fc1"},
                                        {"ff.net.2", "mlp.fc2"},
                                        {NULL, NULL}};
    static const struct {
        const char *ours, *theirs;
        int part, n_parts;
    } fused[] = {{"attn1.to_q", "attn.qkv", 0, 3},
                 {"attn1.to_k", "attn.qkv", 1, 3},
                 {"attn1.to_v", "attn.qkv", 2, 3},
                 {"attn2.to_k", "cross_attn.kv_linear", 0, 2},
                 {"attn2.to_v", "cross_attn.kv_linear", 1, 2}};
    unsigned l;
    int n = 0;
    char head[64];
    if (sscanf(name, "transformer_blocks.%4u.%n", &l, &n) != 1 || !n) return false;
    snprintf(head, sizeof head, "blocks.%u.", l);
    for (size_t i = 0; i < sizeof fused / sizeof *fused; i++) {
        const char *rest = after_word(name + n, fused[i].ours);
        if (!rest) continue;
        const bool fits = place_at(place, "%s%s%s", head, fused[i].theirs, rest);
        place->part = fused[i].part;
        place->n_parts = fused[i].n_parts;
        return fits;
    }
    return replace_first(place, head, name + n, block);
}

bool dpk_ldm_pixart(const struct dpk_names *names, const char *name, int alternative,
                    struct dpk_place *place) {
    static const struct word outer[] = {
        {"pos_embed.proj", "x_embedder.proj"},
        {"caption_projection.linear_1", "y_embedder.y_proj.fc1"},
        {"caption_projection.linear_2", "y_embedder.y_proj.fc2"},
        {"adaln_single.emb.timestep_embedder.linear_1", "t_embedder.mlp.0"},
        {"adaln_single.emb.timestep_embedder.linear_2", "t_embedder.mlp.2"},
        {"adaln_single.emb.resolution_embedder.linear_1", "csize_embedder.mlp.0"},
        {"adaln_single.emb.resolution_embedder.linear_2", "csize_embedder.mlp.2"},
        {"adaln_single.emb.aspect_ratio_embedder.linear_1", "ar_embedder.mlp.0"},
        {"adaln_single.emb.aspect_ratio_embedder.linear_2", "ar_embedder.mlp.2"},
        {"adaln_single.linear", "t_block.1"},
        {"proj_out", "final_layer.linear"},
        {"scale_shift_table", "final_layer.scale_shift_table"},
        {NULL, NULL}};
    (void)names;
    if (alternative > 0) return false;
    return place_pixart_block(name, place) || replace_first(place, "", name, outer);
}
