/* Names in LoRA files, and the settings of PEFT. */
#include "builder.h"
#include "lora_impl.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Names ----------------------------------------------------------------------------------- */

static const struct {
    const char *text;
    int kind;
} suffixes[] = {
    /* PEFT, and diffusers with it; ".default" is the adapter's name in a state dict */
    {".lora_A.weight", DPK_LORA_DOWN},
    {".lora_B.weight", DPK_LORA_UP},
    {".lora_A.default.weight", DPK_LORA_DOWN},
    {".lora_B.default.weight", DPK_LORA_UP},
    {".lora_magnitude_vector", DPK_LORA_MAGNITUDE},
    {".lora_magnitude_vector.weight", DPK_LORA_MAGNITUDE},
    {".lora_magnitude_vector.default.weight", DPK_LORA_MAGNITUDE},
    /* kohya, LyCORIS */
    {".lora_down.weight", DPK_LORA_DOWN},
    {".lora_up.weight", DPK_LORA_UP},
    {".lora_mid.weight", DPK_LORA_MID},
    {".alpha", DPK_LORA_ALPHA},
    {".dora_scale", DPK_LORA_DORA},
    /* diffusers before PEFT: of layers, of text encoders, of attention processors */
    {".lora.down.weight", DPK_LORA_DOWN},
    {".lora.up.weight", DPK_LORA_UP},
    {".lora_linear_layer.down.weight", DPK_LORA_DOWN},
    {".lora_linear_layer.up.weight", DPK_LORA_UP},
    {"_lora.down.weight", DPK_LORA_DOWN},
    {"_lora.up.weight", DPK_LORA_UP},
};

static const struct {
    const char *text;
    int scope;
} scopes[] = {
    {"unet.", DPK_LORA_DENOISER},
    {"transformer.", DPK_LORA_DENOISER},
    {"diffusion_model.", DPK_LORA_DENOISER},
    {"model.diffusion_model.", DPK_LORA_DENOISER},
    {"text_encoder.", DPK_LORA_TEXT},
    {"text_encoder_2.", DPK_LORA_TEXT_2},
    {"lora_unet_", DPK_LORA_DENOISER},
    {"lora_transformer_", DPK_LORA_DENOISER},
    {"lora_te_", DPK_LORA_TEXT},
    {"lora_te1_", DPK_LORA_TEXT},
    {"lora_te2_", DPK_LORA_TEXT_2},
};

int dpk_lora_scope_of(const char *component) {
    if (strcmp(component, "unet") == 0 || strcmp(component, "transformer") == 0)
        return DPK_LORA_DENOISER;
    if (strcmp(component, "text_encoder") == 0) return DPK_LORA_TEXT;
    if (strcmp(component, "text_encoder_2") == 0) return DPK_LORA_TEXT_2;
    return DPK_LORA_NO_SCOPE;
}

bool dpk_lora_flatten(const char *path, size_t length, char *out) {
    if (length >= 500) return false;
    for (size_t i = 0; i < length; i++) out[i] = path[i] == '.' ? '_' : path[i];
    out[length] = 0;
    return true;
}

static void replace_end(char *name, const char *end, const char *by) {
    const size_t n = strlen(name), m = strlen(end);
    if (n >= m && strcmp(name + n - m, end) == 0) strcpy(name + n - m, by);
}

/* Attention as its processors once named it. The ends grow by 4 bytes at most: there is room. */
static void modernise(char *layer, int scope) {
    static const char processor[] = "_processor";
    char *at = strstr(layer, processor);
    if (at) memmove(at, at + sizeof processor - 1, strlen(at + sizeof processor - 1) + 1);
    if (scope == DPK_LORA_DENOISER) {
        replace_end(layer, "_to_out", "_to_out_0");
        return;
    }
    replace_end(layer, "_to_q", "_q_proj");
    replace_end(layer, "_to_k", "_k_proj");
    replace_end(layer, "_to_v", "_v_proj");
    replace_end(layer, "_to_out", "_out_proj");
}

bool dpk_lora_parse_key(const char *name, struct dpk_lora_key *key) {
    static const char peft[] = "base_model.model.";
    const size_t n = strlen(name);
    size_t end = 0;
    for (size_t i = 0; !end && i < sizeof suffixes / sizeof *suffixes; i++) {
        const size_t m = strlen(suffixes[i].text);
        if (n <= m || strcmp(name + n - m, suffixes[i].text) != 0) continue;
        key->kind = suffixes[i].kind;
        end = n - m;
    }
    if (!end) return false;
    key->path = name;
    key->adapter = strncmp(name, peft, sizeof peft - 1) == 0;
    if (key->adapter) key->path += sizeof peft - 1;
    key->scope = DPK_LORA_DENOISER; /* the oldest files have the UNet alone, without its name */
    for (size_t i = 0; i < sizeof scopes / sizeof *scopes; i++) {
        const size_t m = strlen(scopes[i].text);
        if (strncmp(key->path, scopes[i].text, m) != 0) continue;
        key->scope = scopes[i].scope;
        key->path += m;
        break;
    }
    if (key->path >= name + end) return false;
    key->path_length = (size_t)(name + end - key->path);
    if (!dpk_lora_flatten(key->path, key->path_length, key->layer)) return false;
    modernise(key->layer, key->scope);
    return true;
}

/* ---- Settings -------------------------------------------------------------------------------- */

static int open_beside(struct dpk_lora_settings *s, const char *path, dpk_error *err) {
    static const char name[] = "adapter_config.json";
    int rc = DPK_OK;
    struct dpk_source *folder = NULL;
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, (size_t)(slash + 1 - path)) : strdup(".");
    if (!dir) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    DPK_TRY(dpk_source_open(&folder, dir, err));
    if (!dpk_source_has(folder, name))
        DPK_FAIL(err, DPK_EFORMAT, "%s: an adapter of PEFT, its strength is in %s: not beside it",
                 path, name);
    DPK_TRY(dpk_config_open(&s->config, folder, name, err));
    static const char *const types[] = {"LORA", NULL};
    int type;
    DPK_TRY(dpk_config_choice(&s->config, "peft_type", "LORA", types, &type, err));
done:
    dpk_source_close(folder);
    free(dir);
    return rc;
}

int dpk_lora_settings_open(struct dpk_lora_settings *s, const char *path,
                           const struct dpk_tensors *tensors, bool adapter, dpk_error *err) {
    int rc = DPK_OK;
    const char *text = dpk_tensors_meta(tensors, "lora_adapter_metadata");
    memset(s, 0, sizeof *s);
    if (text) {
        const char *slash = strrchr(path, '/');
        DPK_TRY(dpk_config_parse(&s->config,
                                 dpk_namef("%s: lora_adapter_metadata", slash ? slash + 1 : path).s,
                                 text, err));
    } else if (adapter) {
        s->adapter = true;
        DPK_TRY(open_beside(s, path, err));
    }
done:
    return rc;
}

/* The entry of a pattern table (alpha_pattern) for a layer: its name or the end of it, a dot
 * before, as PEFT's get_pattern_key. PEFT's keys are regular expressions; those that are more than
 * a name are refused. */
static int find_pattern(const struct dpk_config *config, const char *table, const char *path,
                        size_t length, double *value, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_config sub = {0};
    const cJSON *item;
    DPK_TRY(dpk_config_object(config, table, &sub, err));
    if (!sub.json) goto done;
    cJSON_ArrayForEach(item, sub.json) {
        const char *key = item->string + (item->string[0] == '^');
        const size_t n = strlen(key);
        if (strpbrk(key, "*+?[](){}|\\$^"))
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: %s has the pattern %.80s, supported: names",
                     config->name, table, item->string);
        if (n > length || memcmp(path + length - n, key, n) != 0) continue;
        if (n < length && (path[length - n - 1] != '.' || key != item->string)) continue;
        DPK_TRY(dpk_config_double(&sub, item->string, *value, -1e9, 1e9, value, err));
        break;
    }
done:
    return rc;
}

int dpk_lora_settings_ratio(const struct dpk_lora_settings *s, const struct dpk_lora_key *key,
                            uint64_t rank, double *ratio, dpk_error *err) {
    static const char *const denoisers[] = {"unet.", "transformer."};
    int rc = DPK_OK, rslora = 0;
    const char *prefix = "";
    double alpha =
        s->adapter ? 8 : (double)rank; /* PEFT's LoraConfig; diffusers writes it always */
    *ratio = 1.0;
    if (!s->config.json) goto done;
    if (!s->adapter) {
        prefix = key->scope == DPK_LORA_TEXT     ? "text_encoder."
                 : key->scope == DPK_LORA_TEXT_2 ? "text_encoder_2."
                                                 : denoisers[0];
        if (prefix == denoisers[0] && !dpk_config_item(&s->config, "unet.lora_alpha"))
            prefix = denoisers[1];
    }
    const struct dpk_name alphas = dpk_namef("%salpha_pattern", prefix);
    DPK_TRY(dpk_config_double(&s->config, dpk_namef("%slora_alpha", prefix).s, alpha, -1e9, 1e9,
                              &alpha, err));
    DPK_TRY(find_pattern(&s->config, alphas.s, key->path, key->path_length, &alpha, err));
    DPK_TRY(dpk_config_bool(&s->config, dpk_namef("%suse_rslora", prefix).s, 0, &rslora, err));
    *ratio = alpha / (rslora ? sqrt((double)rank) : (double)rank);
done:
    return rc;
}
