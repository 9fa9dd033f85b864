/* LoRA: low-rank changes to the weights of a model (Hu et al. 2021), merged while it is converted.
 *
 *     W' = W + s up down              s = scale alpha / rank (rslora: / sqrt(rank))
 *     W' = m (W + s up down) / |...|  DoRA (Liu et al. 2024), the norm being over each row
 *
 * computed in float when rows of W are read, so nothing of the model's size is held. A convolution
 * is the matrix of its flattened rows; with a Tucker core (LyCORIS' lora_mid) down stands for core
 * down.
 *
 * Read are the files of PEFT and diffusers, of diffusers before PEFT, and of kohya's scripts and
 * LyCORIS' LoRA (layers in diffusers' or the original names). */
#ifndef DPK_LORA_H
#define DPK_LORA_H

#include "weights.h"

struct dpk_lora; /* the changes of all files */
int dpk_lora_create(struct dpk_lora **lora, dpk_error *err);
void dpk_lora_free(struct dpk_lora *lora); /* NULL is fine; before the components' close */

struct dpk_lora_file {
    const char *path; /* of a .safetensors file */
    double scale;     /* strength; 1 is as trained */
    bool partial;     /* tensors that match no layer are left out; else they are an error */
    /* results */
    uint64_t hash; /* see dpk_tensors_hash */
    size_t n_layers, n_ignored;
};
/* Add a file: find the layers that its tensors change among those that the architectures asked the
 * components for. Files act in the order in which they are added. The components must stay where
 * they are. Errors: DPK_EARG if it was made for another model (tensors that match no layer, layers
 * of other sizes); DPK_EFORMAT if tensors are missing or twice there; DPK_EUNSUPPORTED. */
int dpk_lora_add_file(struct dpk_lora *lora, struct dpk_lora_file *file,
                      const struct dpk_component *components, int n_components, dpk_error *err);

/* Change `count` rows from row `first` on of the component's tensor NAME: w [count, row]. Does
 * nothing to tensors that no file changes. Several threads may call it at once. */
int dpk_lora_apply(const struct dpk_lora *lora, const struct dpk_component *component,
                   const char *name, uint64_t first, uint64_t count, size_t row, float *w,
                   dpk_error *err);

#endif
