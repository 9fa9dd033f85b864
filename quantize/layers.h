/* The layers of a file that can be quantized, and what happens to each. */
#ifndef DPK_LAYERS_H
#define DPK_LAYERS_H

#include "../formats/dpk.h"
#include "filter.h"
#include "quantizer.h"

enum dpk_scheme_kind {
    DPK_SCHEME_INT8_DYNAMIC = 0,
    DPK_SCHEME_INT8_WEIGHT = 1,
    DPK_SCHEME_INT4_WEIGHT = 2,
};
struct dpk_scheme {
    int kind;
    int group;      /* int4: 32, 64 or 128; else 0 */
    int convention; /* enum dpk_convention; of int8 */
    bool convs;     /* k x k convolutions are layers, too */
};
/* "int8-dynamic", "int8-weight", "int4-weight" (group 64), "int4-weight:GROUP": kind and group; the
 * rest of *s is left as it is. Errors: DPK_EARG. */
int dpk_scheme_parse(struct dpk_scheme *s, const char *text, dpk_error *err);
/* The same text, into out (at least 32 bytes); returns out. */
const char *dpk_scheme_text(const struct dpk_scheme *s, char *out);

struct dpk_layer {
    char *name;         /* the component's and the layer's: the tensor's without ".weight" */
    const char *source; /* tensors that it was made of, in the file's strings */
    uint32_t tensor;
    int kind;        /* enum dpk_layer_kind */
    int64_t in, out; /* features; of a convolution its channels */
    uint64_t rows;   /* dpk_rows_infer */
    bool quantized;
    const char *reason;                 /* of the filter, or a constant */
    int group;                          /* int4: what the layer gets; divides its channels */
    uint64_t weights;                   /* how many */
    uint64_t bytes_before, bytes_after; /* after: with scales and sums */
    double signal, noise;               /* dpk_quantize_error; set by dpk_rewrite */
};
struct dpk_layers {
    size_t n, n_quantized;
    struct dpk_layer *layer; /* in the order of the file's tensors */
};

/* Find the layers of f and decide on each. f and filter must outlive the result.
 * Errors: DPK_EARG (the file is quantized already), DPK_EFORMAT, DPK_ENOMEM. */
int dpk_layers_make(struct dpk_layers *l, const struct dpk_file *f, const char *path,
                    const struct dpk_scheme *scheme, const struct dpk_filter *filter,
                    dpk_error *err);
void dpk_layers_free(struct dpk_layers *l); /* also of a zeroed struct */

#endif
