/* Inside of the conversion: what the pipelines of pipeline.c use. */
#ifndef DPK_CONVERSION_IMPL_H
#define DPK_CONVERSION_IMPL_H

#include "conversion.h"

#include "../formats/config.h"

enum { DPK_MAX_COMPONENTS = 6 };

struct dpk_conversion {
    struct dpk_convert_options options;
    struct dpk_source *source, *vae; /* vae: NULL without the option */
    struct dpk_config index;         /* model_index.json */
    const char *class_name;          /* of the pipeline */
    struct dpk_builder *builder;
    struct dpk_component components[DPK_MAX_COMPONENTS];
    struct dpk_config configs[DPK_MAX_COMPONENTS];
    int n_components;
};

/* Open a component: its entry in model_index.json must be one of `classes` (NULL-terminated). The
 * results belong to the conversion. */
int dpk_conversion_part(struct dpk_conversion *c, const char *name, const char *const *classes,
                        const struct dpk_rename *renames, struct dpk_component **component,
                        const struct dpk_config **config, dpk_error *err);
/* Pack the tokenizer in the folder of that name. */
int dpk_conversion_tokenizer(struct dpk_conversion *c, const char *name, uint32_t kind,
                             uint32_t max_length, bool lower_strip, dpk_error *err);
/* Copy scheduler_config.json into the metadata. */
int dpk_conversion_scheduler(struct dpk_conversion *c, dpk_error *err);

/* Build a pipeline's programs, tokenizers and defaults; one function a pipeline class. */
typedef int dpk_pipeline_build(struct dpk_conversion *c, dpk_error *err);
struct dpk_pipeline {
    const char *class_name, *family;
    dpk_pipeline_build *build;
};
extern const struct dpk_pipeline dpk_pipelines[]; /* ended by a NULL class_name */

#endif
