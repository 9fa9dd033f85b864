/* Models as one file: checkpoints in the names of the code that they were trained with (CompVis'
 * latent diffusion and its descendants, "LDM"; PixArt-alpha's own). The mapping of names follows
 * diffusers' single_file_utils.py and convert_pixart_alpha_to_diffusers.py, read backwards: from
 * the name that an architecture asks for to where the checkpoint has it.
 *
 * A checkpoint has weights and nothing else. Configs of the models that are recognised are built
 * in; tokenizer files are not, they are too large. */
#ifndef DPK_LDM_H
#define DPK_LDM_H

#include "weights.h"

/* Where a checkpoint has a tensor. */
struct dpk_place {
    char name[DPK_MAX_NAME + 1]; /* without the component's prefix */
    int part, n_parts;           /* rows: this is part `part` of n_parts equal ones */
    bool transposed;             /* stored as [columns][rows] */
};

struct dpk_names;
/* Fill *place with the alternative'th place (0, 1, ...) in which the tensor NAME, or the module if
 * NAME has no ".weight" or ".bias", may be; false if there are no more. */
typedef bool dpk_place_of(const struct dpk_names *names, const char *name, int alternative,
                          struct dpk_place *place);
struct dpk_names {
    char prefix[64];
    dpk_place_of *place;
    int vae_levels; /* the decoder's levels are numbered from the other end */
    bool ema;       /* the running averages, which lie beside the weights */
};

/* The places of components; `names` is read by the autoencoder's alone. */
dpk_place_of dpk_ldm_unet, dpk_ldm_vae, dpk_ldm_clip, dpk_ldm_open_clip, dpk_ldm_pixart;

/* A kind of model that is recognised. */
struct dpk_ldm_family {
    const char *name, *class_name; /* class of the pipeline in diffusers */
    struct {
        const char *component, *prefix;
        dpk_place_of *place;
    } parts[4];
    const char *const (*files)[2]; /* path in a model folder, its text; ended by NULL */
};

/* Tell the family from the names of the tensors. Errors: DPK_EUNSUPPORTED for models known but not
 * supported, and for files that are not a whole model; `path` is for messages. */
int dpk_ldm_recognise(struct dpk_tensors *checkpoint, const char *path,
                      const struct dpk_ldm_family **family, dpk_error *err);
/* The built-in text of "unet/config.json" and the like; NULL: none. */
const char *dpk_ldm_file(const struct dpk_ldm_family *family, const char *path);
/* The names of a component; false if the checkpoint does not have it. */
bool dpk_ldm_names(const struct dpk_ldm_family *family, struct dpk_tensors *checkpoint,
                   const char *component, struct dpk_names *names);
/* The same of an autoencoder alone in its file; false if it has diffusers' names. */
bool dpk_ldm_vae_names(struct dpk_tensors *checkpoint, struct dpk_names *names);

extern const char *const dpk_ldm_files_sd15[][2], *const dpk_ldm_files_sdxl[][2],
                                                      *const dpk_ldm_files_ssd1b[][2],
                                                          *const dpk_ldm_files_pixart[][2];

#endif
