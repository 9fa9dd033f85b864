/* From a model in Hugging Face layout to a .dpk: opened (recognised, read, planned), then
 * written. */
#ifndef DPK_CONVERSION_H
#define DPK_CONVERSION_H

#include "builder.h"
#include "lora.h"

struct dpk_convert_options {
    const char *source;  /* a folder, an archive of one, or a checkpoint in one file */
    const char *variant; /* "fp16"; NULL: none */
    const char *vae;     /* another autoencoder's folder or file; NULL: the model's own */
    const char *configs; /* a checkpoint's configs and tokenizers: a folder or an archive; NULL */
    bool ema;            /* take a checkpoint's running averages of the denoiser's weights */
    const struct dpk_lora_file *loras; /* [n_loras], merged in this order */
    int n_loras;
    int dtype;   /* DPK_F32, DPK_BF16 or DPK_F16 */
    bool random; /* draw the weights: the source needs only configs and tokenizers */
    uint64_t seed;
};

struct dpk_conversion; /* opaque */

/* Everything but the moving of weights: configs, the names and shapes of all tensors, programs,
 * tokenizers, metadata. Errors name the component, the key or the tensor. */
int dpk_conversion_open(struct dpk_conversion **c, const struct dpk_convert_options *options,
                        dpk_error *err);
void dpk_conversion_close(struct dpk_conversion *c); /* NULL is fine */
/* Sealed; dpk_builder_write writes it as often as one likes. */
const struct dpk_builder *dpk_conversion_builder(const struct dpk_conversion *c);
/* Component i: its name and the parameters and tensors that its architecture has, whether or not
 * the programs use all of them. NULL past the end. */
const struct dpk_component *dpk_conversion_component(const struct dpk_conversion *c, int i);

#endif
