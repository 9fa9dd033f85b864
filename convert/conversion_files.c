/* Where a conversion finds configs, tokenizers and tensors: in a model folder, or in a checkpoint
 * and the folder of configs that goes with it. */
#include "conversion_impl.h"

#include "../formats/fail.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- Configs and tokenizers ------------------------------------------------------------------ */

/* The built-in text of a path. Texts of one folder belong together: if the user's has one of them,
 * none is built in. */
static const char *built_in(const struct dpk_conversion *c, const char *path) {
    const char *slash = strrchr(path, '/');
    const size_t n = slash ? (size_t)(slash + 1 - path) : 0;
    if (!c->family) return NULL;
    for (const char *const(*f)[2] = c->family->files; c->configs && (*f)[0]; f++) {
        const char *other = strrchr((*f)[0], '/');
        const size_t m = other ? (size_t)(other + 1 - (*f)[0]) : 0;
        if (n == m && strncmp((*f)[0], path, n) == 0 && dpk_source_has(c->configs, (*f)[0]))
            return NULL;
    }
    return dpk_ldm_file(c->family, path);
}

/* Where the file is to be read, *name being its name there; NULL: nowhere. The tokenizers of SDXL
 * have equal vocabularies, so one will do, also without a folder of its own. */
static struct dpk_source *find_file(const struct dpk_conversion *c, const char *path,
                                    struct dpk_name *name) {
    const char *file = strrchr(path, '/');
    *name = dpk_namef("%s", path);
    if (!c->checkpoint) return dpk_source_has(c->source, path) ? c->source : NULL;
    if (!c->configs) return NULL;
    if (dpk_source_has(c->configs, path)) return c->configs;
    if (!file || (strcmp(file, "/vocab.json") != 0 && strcmp(file, "/merges.txt") != 0))
        return NULL;
    *name = dpk_namef("tokenizer%s", file);
    if (dpk_source_has(c->configs, name->s)) return c->configs;
    *name = dpk_namef("%s", file + 1);
    return dpk_source_has(c->configs, name->s) ? c->configs : NULL;
}

bool dpk_conversion_has(const struct dpk_conversion *c, const char *path) {
    struct dpk_name name;
    return find_file(c, path, &name) || built_in(c, path);
}

int dpk_conversion_read(struct dpk_conversion *c, const char *path, char **data, size_t *n_bytes,
                        dpk_error *err) {
    struct dpk_name name;
    struct dpk_source *source = find_file(c, path, &name);
    const char *text = source ? NULL : built_in(c, path);
    if (!text)
        return dpk_source_read(source ? source : c->source, name.s, DPK_SOURCE_MAX_JSON, data,
                               n_bytes, err);
    *n_bytes = strlen(text);
    *data = strdup(text);
    return *data ? DPK_OK : dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", path);
}

int dpk_conversion_config(struct dpk_conversion *c, const char *path, struct dpk_config *config,
                          dpk_error *err) {
    struct dpk_name name;
    struct dpk_source *source = find_file(c, path, &name);
    const char *text = source ? NULL : built_in(c, path);
    if (text) return dpk_config_parse(config, path, text, err);
    return dpk_config_open(config, source ? source : c->source, name.s, err);
}

const char *dpk_conversion_mark(const struct dpk_conversion *c, const char *key) {
    /* Empty tensors by which trainers say what cannot be seen in the weights. A scheduler config of
     * the user's knows better. */
    static const char *const marks[][3] = {{"v_pred", "prediction_type", "v_prediction"},
                                           {"ztsnr", "rescale_betas_zero_snr", "true"},
                                           {"ztsnr", "timestep_spacing", "trailing"}};
    if (!c->checkpoint || !built_in(c, "scheduler/scheduler_config.json")) return NULL;
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (strcmp(key, marks[i][1]) == 0 && dpk_tensors_find(c->checkpoint, marks[i][0]))
            return marks[i][2];
    return NULL;
}

/* ---- Tensors --------------------------------------------------------------------------------- */

int dpk_conversion_open_checkpoint(struct dpk_conversion *c, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_convert_options *o = &c->options;
    if (o->random)
        DPK_FAIL(err, DPK_EARG, "%s: drawn weights want a folder with configs, not a checkpoint",
                 o->source);
    DPK_TRY(dpk_tensors_open_member(&c->checkpoint, c->source, "", err));
    DPK_TRY(dpk_ldm_recognise(c->checkpoint, o->source, &c->family, err));
    if (o->ema && !dpk_tensors_find(c->checkpoint, "model_ema.num_updates") &&
        !dpk_tensors_find(c->checkpoint, "model_ema.decay"))
        DPK_FAIL(err, DPK_EARG, "%s: no running averages (model_ema.) for --ema in it", o->source);
    if (!o->configs) goto done;
    DPK_TRY(dpk_source_open(&c->configs, o->configs, err));
    if (dpk_source_kind(c->configs) == DPK_SOURCE_FILE)
        DPK_FAIL(err, DPK_EARG, "--config %s: one file, want a folder with configs and tokenizers",
                 o->configs);
done:
    return rc;
}

static int open_random(const struct dpk_conversion *c, struct dpk_component *part, dpk_error *err) {
    part->seed = c->options.seed;
    part->normal = malloc((DPK_RANDOM_SEGMENTS + 1) * sizeof *part->normal);
    if (!part->normal) return dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", part->prefix);
    dpk_random_table(part->normal);
    return DPK_OK;
}

/* The autoencoder of --vae in a file of its own, in either naming. */
static int open_vae_file(struct dpk_conversion *c, struct dpk_component *part,
                         struct dpk_names *names, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_tensors *tensors = NULL;
    DPK_TRY(dpk_tensors_open_member(&tensors, c->vae, "", err));
    part->tensors = tensors;
    if (!dpk_ldm_vae_names(tensors, names)) goto done; /* it has diffusers' names */
    c->vae_checkpoint = tensors;
    part->names = names;
done:
    return rc;
}

static int open_from_checkpoint(struct dpk_conversion *c, struct dpk_component *part,
                                struct dpk_names *names, dpk_error *err) {
    int rc = DPK_OK;
    const char *name = part->prefix;
    if (dpk_ldm_names(c->family, c->checkpoint, name, names)) {
        part->tensors = c->checkpoint;
        part->names = names;
        names->ema = c->options.ema && names->place == dpk_ldm_unet;
        goto done;
    }
    if (!c->configs)
        DPK_FAIL(err, DPK_EFORMAT, "%s: it has no %s: give a folder that has one with %s",
                 c->options.source, name, strcmp(name, "vae") ? "--config DIR" : "--vae DIR");
    DPK_TRY(dpk_tensors_open(&part->tensors, c->configs, name, c->options.variant, err));
done:
    return rc;
}

int dpk_conversion_open_weights(struct dpk_conversion *c, struct dpk_source *source,
                                const char *folder, dpk_error *err) {
    const int i = c->n_components - 1;
    struct dpk_component *part = &c->components[i];
    if (c->options.random) return open_random(c, part, err);
    if (source) return dpk_tensors_open(&part->tensors, source, folder, c->options.variant, err);
    if (strcmp(part->prefix, "vae") == 0 && c->vae)
        return open_vae_file(c, part, &c->names[i], err);
    if (c->checkpoint) return open_from_checkpoint(c, part, &c->names[i], err);
    return dpk_tensors_open(&part->tensors, c->source, folder, c->options.variant, err);
}

/* ---- LoRA ------------------------------------------------------------------------------------ */

int dpk_conversion_merge(struct dpk_conversion *c, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_builder *b = c->builder;
    if (c->options.n_loras == 0) goto done;
    DPK_TRY(dpk_lora_create(&c->lora, err));
    for (int i = 0; i < c->options.n_loras; i++) {
        struct dpk_lora_file file = c->options.loras[i];
        DPK_TRY(dpk_lora_add_file(c->lora, &file, c->components, c->n_components, err));
        const char *slash = strrchr(file.path, '/');
        const struct dpk_name key = dpk_namef("convert.lora.%d", i);
        dpk_builder_meta(b, DPK_SUB(key.s, "file"), "%s", slash ? slash + 1 : file.path);
        dpk_builder_meta(b, DPK_SUB(key.s, "scale"), "%.9g", file.scale);
        dpk_builder_meta(b, DPK_SUB(key.s, "hash"), "%016" PRIx64, file.hash);
        dpk_builder_meta(b, DPK_SUB(key.s, "layers"), "%zu", file.n_layers);
        if (file.n_ignored)
            dpk_builder_meta(b, DPK_SUB(key.s, "ignored_tensors"), "%zu", file.n_ignored);
    }
    for (int i = 0; i < c->n_components; i++) c->components[i].lora = c->lora;
done:
    return rc;
}
