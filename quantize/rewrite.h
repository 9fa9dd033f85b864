/* A file's copy with some layers quantized. Tensors pass through one at a time, a few
 * panels for each thread, so that memory is bounded by those of the widest layer and the scales of
 * the largest; the output depends on the input's bytes and the arguments alone, and appears whole or not at all. */
#ifndef DPK_REWRITE_H
#define DPK_REWRITE_H

#include "layers.h"

/* f, of the layers: their decisions are followed, their signal and noise are set. Every tensor is
 * compared with its sum before it is used, so that damage is not sealed in with a new sum. The
 * companions of NAME are NAME_scale and NAME_colsum. Metadata of the source is kept, and these keys
 * are added:
 *   quant.scheme, quant.convention (int8), quant.filter (dpk_filter_id), quant.source_sum (16
 *   hexadecimal digits, dpk_file_sum), quant.layers ("397 of 533"), quant.bits (average per weight
 *   of all layers, with scales)
 * progress may be NULL; it gets bytes of the source's weights, and non-zero from it stops with
 * DPK_ECANCELLED. out_path NULL: nothing is written, errors of quantization are measured all the
 * same.
 * Errors: DPK_EFORMAT (damage, a weight that is not finite), DPK_EIO, DPK_ENOMEM, DPK_EARG. */
struct dpk_rewrite_pair {
    const char *key, *value;
};
struct dpk_rewrite_options {
    const struct dpk_scheme *scheme;
    const char *filter_id;
    int (*progress)(void *arg, uint64_t done, uint64_t total);
    void *progress_arg;
    const struct dpk_rewrite_pair *pairs; /* [n_pairs] more metadata */
    size_t n_pairs;
    int threads; /* 0: one per core; the file does not depend on it */
};
int dpk_rewrite(const struct dpk_file *f, const char *out_path, struct dpk_layers *layers,
                const struct dpk_rewrite_options *options, dpk_error *err);

#endif
