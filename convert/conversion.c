#include "conversion_impl.h"

#include "pack_tokenizer.h"

#include "../formats/fail.h"
#include "../formats/version.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct dpk_builder *dpk_conversion_builder(const struct dpk_conversion *c) {
    return c->builder;
}

const struct dpk_component *dpk_conversion_component(const struct dpk_conversion *c, int i) {
    return i >= 0 && i < c->n_components ? &c->components[i] : NULL;
}

void dpk_conversion_close(struct dpk_conversion *c) {
    if (!c) return;
    dpk_builder_free(c->builder);
    dpk_lora_free(c->lora);
    for (int i = 0; i < c->n_components; i++) {
        dpk_component_close(&c->components[i]);
        dpk_config_close(&c->component_configs[i]);
    }
    dpk_config_close(&c->index);
    dpk_tensors_close(c->checkpoint);
    dpk_tensors_close(c->vae_checkpoint);
    dpk_source_close(c->configs);
    dpk_source_close(c->vae);
    dpk_source_close(c->source);
    free(c);
}

/* ---- Components ------------------------------------------------------------------------------ */

static void join_list(const char *const *names, char *out, size_t n_bytes) {
    size_t at = 0;
    out[0] = 0;
    for (int i = 0; names[i] && at < n_bytes; i++)
        at += (size_t)snprintf(out + at, n_bytes - at, "%s%s", i ? ", " : "", names[i]);
}

static int check_class(const char *where, const char *found, const char *const *classes,
                       dpk_error *err) {
    char list[256];
    for (int i = 0; classes[i]; i++)
        if (strcmp(found, classes[i]) == 0) return DPK_OK;
    join_list(classes, list, sizeof list);
    return dpk_error_set(err, DPK_EUNSUPPORTED, "%s: class %.80s, supported: %s", where, found,
                         list);
}

/* The class that model_index.json gives a component: [library, class]. */
static int index_class(const struct dpk_conversion *c, const char *name, const char **class_name,
                       dpk_error *err) {
    int rc = DPK_OK;
    const char *pair[2];
    int n;
    if (!dpk_config_item(&c->index, name))
        DPK_FAIL(err, DPK_EFORMAT, "%s: component %s is missing in model_index.json",
                 c->options.source, name);
    const cJSON *item = dpk_config_item(&c->index, name);
    if (cJSON_IsArray(item) && cJSON_IsNull(cJSON_GetArrayItem(item, 1)))
        DPK_FAIL(err, DPK_EFORMAT, "%s: component %s is null in model_index.json",
                 c->options.source, name);
    DPK_TRY(dpk_config_strings(&c->index, name, 2, pair, &n, err));
    if (n != 2)
        DPK_FAIL(err, DPK_EFORMAT, "%s: %s has %d entries, wanted [library, class]", c->index.name,
                 name, n);
    *class_name = pair[1];
done:
    return rc;
}

/* Where a component lies: in the model (*source NULL), or in the folder that --vae names (itself an
 * autoencoder, or a model that has one). A file that --vae names has weights and no config. */
static int locate(struct dpk_conversion *c, const char *name, struct dpk_source **source,
                  const char **folder, dpk_error *err) {
    int rc = DPK_OK;
    *source = NULL;
    *folder = name;
    if (strcmp(name, "vae") == 0 && c->options.vae) {
        if (!c->vae) DPK_TRY(dpk_source_open(&c->vae, c->options.vae, err));
        if (dpk_source_kind(c->vae) != DPK_SOURCE_FILE) *source = c->vae;
        if (*source && !dpk_source_has(c->vae, "vae/config.json")) *folder = "";
    }
    const struct dpk_name file = dpk_namef("%s%sconfig.json", *folder, **folder ? "/" : "");
    if (*source ? !dpk_source_has(*source, file.s) : !dpk_conversion_has(c, file.s))
        DPK_FAIL(err, DPK_EFORMAT, "%s: component %s is missing: no %s%s",
                 *source ? c->options.vae : c->options.source, name, file.s,
                 c->checkpoint && !*source ? " (a folder that has it: --config DIR)" : "");
done:
    return rc;
}

int dpk_conversion_part(struct dpk_conversion *c, const char *name, const char *const *classes,
                        const struct dpk_rename *renames, struct dpk_component **component,
                        const struct dpk_config **config, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_source *source;
    const char *folder, *class_name;
    struct dpk_component *part = &c->components[c->n_components];
    struct dpk_config *json = &c->component_configs[c->n_components];
    if (!(strcmp(name, "vae") == 0 && c->options.vae)) {
        const struct dpk_name where = dpk_namef("%s: %s", c->options.source, name);
        DPK_TRY(index_class(c, name, &class_name, err));
        DPK_TRY(check_class(where.s, class_name, classes, err));
    }
    DPK_TRY(locate(c, name, &source, &folder, err));
    c->n_components++; /* from here on it is closed with the others */
    snprintf(part->prefix, sizeof part->prefix, "%s", name);
    part->renames = renames;
    const struct dpk_name file = dpk_namef("%s%sconfig.json", folder, *folder ? "/" : "");
    DPK_TRY(source ? dpk_config_open(json, source, file.s, err)
                   : dpk_conversion_config(c, file.s, json, err));
    DPK_TRY(dpk_config_string(json, "_class_name", classes[0], &class_name, err));
    const struct dpk_name read = dpk_namef(source ? "--vae %s: %s" : "%s: %s",
                                           source ? c->options.vae : c->options.source, json->name);
    DPK_TRY(check_class(read.s, class_name, classes, err));
    DPK_TRY(dpk_conversion_open_weights(c, source, folder, err));
    *component = part;
    *config = json;
done:
    return rc;
}

/* Nothing is left over, and a record of what was read. */
static int finish_part(struct dpk_conversion *c, const struct dpk_component *part, dpk_error *err) {
    int rc = DPK_OK;
    const char *name = part->prefix;
    struct dpk_builder *b = c->builder;
    DPK_TRY(dpk_component_check_used(part, err));
    dpk_builder_meta(b, dpk_namef("source.%s.parameters", name).s, "%" PRIu64, part->n_params);
    dpk_builder_meta(b, dpk_namef("source.%s.tensors", name).s, "%" PRIu64, part->n_tensors);
    if (!part->tensors) {
        dpk_builder_meta(b, dpk_namef("source.%s.random_seed", name).s, "%" PRIu64, part->seed);
        goto done;
    }
    dpk_builder_meta(b, dpk_namef("source.%s.hash", name).s, "%016" PRIx64,
                     dpk_tensors_hash(part->tensors));
    const char *variant = dpk_tensors_variant(part->tensors);
    if (*variant) dpk_builder_meta(b, dpk_namef("source.%s.variant", name).s, "%s", variant);
done:
    return rc;
}

/* ---- Tokenizers and scheduler ---------------------------------------------------------------- */

static int read_optional(struct dpk_conversion *c, const char *folder, const char *file,
                         struct dpk_pack_text *text, char **owned, dpk_error *err) {
    const struct dpk_name name = dpk_namef("%s/%s", folder, file);
    if (!dpk_conversion_has(c, name.s)) return DPK_OK;
    const int rc = dpk_conversion_read(c, name.s, owned, &text->n_bytes, err);
    text->data = *owned;
    return rc;
}

int dpk_conversion_tokenizer(struct dpk_conversion *c, const char *name, uint32_t kind,
                             uint32_t max_length, bool lower_strip, dpk_error *err) {
    static const char *const clip[] = {"CLIPTokenizer", "CLIPTokenizerFast", NULL};
    static const char *const t5[] = {"T5Tokenizer", "T5TokenizerFast", NULL};
    enum { N_FILES = 7 };
    struct dpk_pack_tokenizer pack = {
        .name = name, .kind = kind, .max_length = max_length, .lower_strip = lower_strip};
    const struct {
        const char *file;
        struct dpk_pack_text *text;
    } files[N_FILES] = {{"tokenizer_config.json", &pack.config},
                        {"special_tokens_map.json", &pack.special_tokens},
                        {"added_tokens.json", &pack.added_tokens},
                        {"vocab.json", &pack.vocab},
                        {"merges.txt", &pack.merges},
                        {"spiece.model", &pack.spiece},
                        {"tokenizer.json", &pack.tokenizer}};
    char *owned[N_FILES] = {0};
    int rc = DPK_OK;
    const char *class_name;
    void *blob = NULL;
    size_t n_bytes;
    DPK_TRY(index_class(c, name, &class_name, err));
    DPK_TRY(check_class(dpk_namef("%s: %s", c->options.source, name).s, class_name,
                        kind == DPK_TOKENIZER_CLIP ? clip : t5, err));
    for (int i = 0; i < N_FILES; i++)
        DPK_TRY(read_optional(c, name, files[i].file, files[i].text, &owned[i], err));
    if (c->checkpoint && !pack.tokenizer.data &&
        !(kind == DPK_TOKENIZER_CLIP ? pack.vocab.data && pack.merges.data
                                     : pack.spiece.data != NULL))
        DPK_FAIL(err, DPK_EARG,
                 "%s: a checkpoint has no tokenizer, %s/%s is missing: give a folder that has the "
                 "model's with --config DIR",
                 c->options.source, name,
                 kind == DPK_TOKENIZER_T5 ? "spiece.model"
                 : pack.vocab.data        ? "merges.txt"
                                          : "vocab.json");
    DPK_TRY(dpk_pack_tokenizer(&pack, &blob, &n_bytes, err));
    dpk_builder_blob(c->builder, name, kind, blob, n_bytes);
done:
    for (int i = 0; i < N_FILES; i++) free(owned[i]);
    return rc;
}

/* What a pipeline makes of its scheduler's config, whatever that says (StableDiffusionPipeline's
 * __init__ in diffusers). */
static const struct {
    const char *family, *key, *value;
} imposed[] = {{"sd", "steps_offset", "1"}, {"sd", "clip_sample", "false"}};

static bool is_imposed(const char *family, const char *key) {
    for (size_t i = 0; i < sizeof imposed / sizeof *imposed; i++)
        if (!strcmp(imposed[i].family, family) && !strcmp(imposed[i].key, key)) return true;
    return false;
}

/* Copy scheduler_config.json into the metadata, with what pipelines of the family impose on it. */
static int convert_scheduler(struct dpk_conversion *c, const char *family, dpk_error *err) {
    static const char *const marked[] = {"prediction_type", "rescale_betas_zero_snr",
                                         "timestep_spacing"};
    int rc = DPK_OK;
    const char *class_name;
    struct dpk_config config = {0};
    DPK_TRY(index_class(c, "scheduler", &class_name, err));
    if (!dpk_conversion_has(c, "scheduler/scheduler_config.json"))
        DPK_FAIL(err, DPK_EFORMAT,
                 "%s: component scheduler is missing: no scheduler/scheduler_config.json",
                 c->options.source);
    DPK_TRY(dpk_conversion_config(c, "scheduler/scheduler_config.json", &config, err));
    /* The index's class is what runs, also with another one's config. */
    dpk_builder_meta(c->builder, "scheduler._class_name", "%s", class_name);
    for (size_t i = 0; i < sizeof imposed / sizeof *imposed; i++)
        if (!strcmp(imposed[i].family, family))
            dpk_builder_meta(c->builder, dpk_namef("scheduler.%s", imposed[i].key).s, "%s",
                             imposed[i].value);
    for (size_t i = 0; i < sizeof marked / sizeof *marked; i++) {
        const char *mark = dpk_conversion_mark(c, marked[i]);
        if (mark) dpk_builder_meta(c->builder, dpk_namef("scheduler.%s", marked[i]).s, "%s", mark);
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, config.json) {
        if (dpk_conversion_mark(c, item->string) || is_imposed(family, item->string) ||
            !strcmp(item->string, "_class_name"))
            continue;
        char *text = dpk_config_text(item);
        if (!text) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", config.name);
        dpk_builder_meta(c->builder, dpk_namef("scheduler.%s", item->string).s, "%s", text);
        free(text);
    }
done:
    dpk_config_close(&config);
    return rc;
}

/* ---- The whole ------------------------------------------------------------------------------- */

static int open_index(struct dpk_conversion *c, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_convert_options *o = &c->options;
    DPK_TRY(dpk_source_open(&c->source, o->source, err));
    if (dpk_source_kind(c->source) == DPK_SOURCE_FILE) {
        DPK_TRY(dpk_conversion_open_checkpoint(c, err));
    } else {
        if (o->configs || o->ema)
            DPK_FAIL(err, DPK_EARG, "%s: a model folder, --%s is for checkpoints in one file",
                     o->source, o->configs ? "config" : "ema");
        if (!dpk_source_has(c->source, "model_index.json"))
            DPK_FAIL(err, DPK_EFORMAT, "%s: no diffusers model: model_index.json is missing",
                     o->source);
    }
    DPK_TRY(dpk_conversion_config(c, "model_index.json", &c->index, err));
    DPK_TRY(dpk_config_require(&c->index, "_class_name", err));
    DPK_TRY(dpk_config_string(&c->index, "_class_name", NULL, &c->class_name, err));
    if (c->family && strcmp(c->class_name, c->family->class_name) != 0)
        DPK_FAIL(err, DPK_EARG, "%s: a checkpoint of %s, but %s has the configs of a %.60s",
                 o->source, c->family->name, o->configs ? o->configs : "it", c->class_name);
done:
    return rc;
}

static int find_pipeline(const struct dpk_conversion *c, const struct dpk_pipeline **pipeline,
                         dpk_error *err) {
    const char *names[16] = {0};
    for (int i = 0; dpk_pipelines[i].class_name && i < 15; i++) {
        *pipeline = &dpk_pipelines[i];
        names[i] = dpk_pipelines[i].class_name;
        if (strcmp(c->class_name, names[i]) == 0) return DPK_OK;
    }
    return check_class(c->options.source, c->class_name, names, err);
}

/* The last part of the path, without the ending of a file. */
static void add_name(struct dpk_conversion *c) {
    static const char *const endings[] = {".gz",  ".zst", ".xz",          ".bz2", ".tar",
                                          ".tgz", ".zip", ".safetensors", NULL};
    char *full = realpath(c->options.source, NULL);
    const char *path = full ? full : c->options.source, *slash = strrchr(path, '/');
    struct dpk_name name = dpk_namef("%s", slash ? slash + 1 : path);
    for (int i = 0; dpk_source_kind(c->source) != DPK_SOURCE_FOLDER && endings[i]; i++) {
        const size_t n = strlen(name.s), e = strlen(endings[i]);
        if (n > e && strcmp(name.s + n - e, endings[i]) == 0) name.s[n - e] = 0;
    }
    dpk_builder_meta(c->builder, "model.name", "%s", *name.s ? name.s : "model");
    free(full);
}

static int build(struct dpk_conversion *c, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_convert_options *o = &c->options;
    const struct dpk_pipeline *pipeline = NULL;
    struct dpk_builder *b = c->builder;
    DPK_TRY(find_pipeline(c, &pipeline, err));
    add_name(c);
    dpk_builder_meta(b, "model.class", "%s", c->class_name);
    dpk_builder_meta(b, "model.family", "%s", pipeline->family);
    dpk_builder_meta(b, "convert.version", "%s", DPK_PROJECT_VERSION);
    dpk_builder_meta(b, "convert.dtype", "%s", dpk_dtype_name(o->dtype));
    if (o->variant) dpk_builder_meta(b, "convert.variant", "%s", o->variant);
    if (o->random) dpk_builder_meta(b, "convert.random_seed", "%" PRIu64, o->seed);
    if (o->vae) dpk_builder_meta(b, "convert.vae", "replaced");
    if (o->ema) dpk_builder_meta(b, "convert.ema", "true");
    if (c->family) dpk_builder_meta(b, "source.checkpoint", "%s", c->family->name);
    DPK_TRY(pipeline->build(c, err));
    DPK_TRY(convert_scheduler(c, pipeline->family, err));
    DPK_TRY(dpk_builder_status(b, err)); /* before the leftovers, which an error leaves behind */
    for (int i = 0; i < c->n_components; i++) DPK_TRY(finish_part(c, &c->components[i], err));
    DPK_TRY(dpk_conversion_merge(c, err));
    DPK_TRY(dpk_builder_seal(b, err));
done:
    return rc;
}

int dpk_conversion_open(struct dpk_conversion **out, const struct dpk_convert_options *options,
                        dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_conversion *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", options->source);
    c->options = *options;
    if (options->variant && !*options->variant) c->options.variant = NULL;
    DPK_TRY(open_index(c, err));
    DPK_TRY(dpk_builder_create(&c->builder, options->dtype, err));
    DPK_TRY(build(c, err));
    *out = c;
    c = NULL;
done:
    dpk_conversion_close(c);
    return rc;
}
