/* Which layers are quantized. A filter sees the source's layers: names with the component in front,
 * self-attention's q, k and v as one `to_qkv`, cross-attention's k and v as one `to_kv`.
 *
 * Presets:
 *   diffusion-fast  the list of huggingface/diffusion-fast: of the denoiser and the autoencoder,
 *                   linears with more than 16 inputs whose (in, out) is not one of 19 pairs; and
 *                   1x1 convolutions with 128 among (in, out), by the same rule. Text encoders and
 *                   other 1x1 convolutions are left alone
 *   all, none       every layer; no layer
 *   auto            every layer, for dpk_measure_shapes to leave those alone that do not gain
 * A filter file has one rule a line; `#` begins a comment. The first rule that matches a layer
 * decides; a layer that no rule matches is quantized.
 *   quantize WHAT...    skip WHAT...      all of WHAT must hold:
 *     GLOB              of the layer's name: `*` any characters, `?` any one
 *     IN OUT            two numbers: the shape
 *     in>=N  out%N  rows<N  kind=conv1x1    a comparison (= != < <= > >=; % is "is a multiple of")
 *                       of the inputs, outputs, rows a step; kinds are linear, conv1x1 and conv
 *   min_in_features N   skip in<N */
#ifndef DPK_FILTER_H
#define DPK_FILTER_H

#include "../formats/dpk_error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dpk_layer_kind {
    DPK_LAYER_LINEAR = 0,
    DPK_LAYER_CONV1X1 = 1,
    DPK_LAYER_CONV = 2,
};
const char *dpk_layer_kind_name(int kind); /* "linear", "conv1x1", "conv" */

struct dpk_filter_layer {
    const char *name; /* "unet.mid_block.attentions.0.proj_in" */
    int kind;
    int64_t in, out, rows; /* rows 0: unknown, then no comparison of rows holds */
};

struct dpk_filter; /* opaque */
/* spec: the name of a preset, or of a file (a name with a '/' is a file, whatever it says).
 * Errors: DPK_EARG (neither), DPK_EIO, DPK_EFORMAT (names the line), DPK_ENOMEM. */
int dpk_filter_open(struct dpk_filter **f, const char *spec, dpk_error *err);
/* The text of a filter file; name is for messages. n_bytes may be 0; text need not end in NUL. */
int dpk_filter_parse(struct dpk_filter **f, const char *name, const char *text, size_t n_bytes,
                     dpk_error *err);
void dpk_filter_free(struct dpk_filter *f); /* NULL is fine */

/* Is the layer quantized? *reason, if not NULL, gets a short text that lives as long as the
 * filter. */
bool dpk_filter_decide(const struct dpk_filter *f, const struct dpk_filter_layer *layer,
                       const char **reason);
/* For the file's metadata: the preset's name, or "file:" and the sum of its text. */
const char *dpk_filter_id(const struct dpk_filter *f);

/* Does `name` match `glob`, where '*' is any characters and '?' one? Bytes; time O(n * m). */
bool dpk_glob_match(const char *glob, const char *name);

#endif
