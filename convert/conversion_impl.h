/* Inside of the conversion: what the pipelines of pipeline.c use. */
#ifndef DPK_CONVERSION_IMPL_H
#define DPK_CONVERSION_IMPL_H

#include "conversion.h"
#include "ldm.h"

#include "../formats/config.h"

enum { DPK_MAX_COMPONENTS = 6 };

struct dpk_conversion {
    struct dpk_convert_options options;
    struct dpk_source *source, *vae; /* vae: NULL without the option */
    /* Of a model in one file: its tensors, what it was recognised as, and where its configs are,
     * NULL without the option. */
    struct dpk_tensors *checkpoint;
    const struct dpk_ldm_family *family;
    struct dpk_source *configs;
    struct dpk_tensors *vae_checkpoint; /* the same of the autoencoder of the option */
    struct dpk_lora *lora;
    struct dpk_config index; /* model_index.json */
    const char *class_name;  /* of the pipeline */
    struct dpk_builder *builder;
    struct dpk_component components[DPK_MAX_COMPONENTS];
    struct dpk_config component_configs[DPK_MAX_COMPONENTS];
    struct dpk_names names[DPK_MAX_COMPONENTS]; /* of components in checkpoints */
    int n_components;
};

/* ---- Files (conversion_files.c) -------------------------------------------------------------- */

/* Configs and tokenizers are in the model's folder. Those of a checkpoint are in the folder of
 * --config; what that does not have is built in, if anything is. `path` is one of a diffusers
 * folder. */
bool dpk_conversion_has(const struct dpk_conversion *c, const char *path);
int dpk_conversion_read(struct dpk_conversion *c, const char *path, char **data, size_t *n_bytes,
                        dpk_error *err);
int dpk_conversion_config(struct dpk_conversion *c, const char *path, struct dpk_config *config,
                          dpk_error *err);
/* Open the model as a checkpoint. */
int dpk_conversion_open_checkpoint(struct dpk_conversion *c, dpk_error *err);
/* Open the tensors of the last component: in the folder of `source`, or, that being NULL, wherever
 * the model has them. */
int dpk_conversion_open_weights(struct dpk_conversion *c, struct dpk_source *source,
                                const char *folder, dpk_error *err);
/* The value that marks in the checkpoint give a key of the scheduler; NULL: none. */
const char *dpk_conversion_mark(const struct dpk_conversion *c, const char *key);
/* Merge the LoRA files. After all weights were asked for. */
int dpk_conversion_merge(struct dpk_conversion *c, dpk_error *err);

/* ---- Parts ----------------------------------------------------------------------------------- */

/* Open a component: its entry in model_index.json must be one of `classes` (NULL-terminated). The
 * results belong to the conversion. */
int dpk_conversion_part(struct dpk_conversion *c, const char *name, const char *const *classes,
                        const struct dpk_rename *renames, struct dpk_component **component,
                        const struct dpk_config **config, dpk_error *err);
/* Pack the tokenizer in the folder of that name. */
int dpk_conversion_tokenizer(struct dpk_conversion *c, const char *name, uint32_t kind,
                             uint32_t max_length, bool lower_strip, dpk_error *err);

/* Build a pipeline's programs, tokenizers and defaults; one function a pipeline class. */
typedef int dpk_pipeline_build(struct dpk_conversion *c, dpk_error *err);
struct dpk_pipeline {
    const char *class_name, *family;
    dpk_pipeline_build *build;
};
extern const struct dpk_pipeline dpk_pipelines[]; /* ended by a NULL class_name */

#endif
