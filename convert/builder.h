/* The program builder: an architecture file calls one function an operator and gets value numbers
 * back; what it collects becomes the programs, the tensor table and the weights of a .dpk.
 *
 * Errors are sticky: after the first one every call does nothing and returns 0, and the error comes
 * out of dpk_builder_status. So an architecture file reads like the module that it reproduces.
 * Weights are planned here (name, shape, layout, source tensors, all checked) and moved later,
 * piece by piece, in the order in which the programs use them. */
#ifndef DPK_BUILDER_H
#define DPK_BUILDER_H

#include "weights.h"

#include "../formats/dpk.h"

#include <math.h>

/* A name made on the spot; it lives until the end of the full expression. */
struct dpk_name {
    char s[DPK_MAX_NAME + 1];
};
struct dpk_name dpk_namef(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define DPK_SUB(name, sub) (dpk_namef("%s.%s", (name), (sub)).s)

struct dpk_builder;
/* dtype: of matrices and tables, DPK_F32, DPK_BF16 or DPK_F16. */
int dpk_builder_create(struct dpk_builder **b, int dtype, dpk_error *err);
void dpk_builder_free(struct dpk_builder *b); /* NULL is fine */
/* The first error, or DPK_OK. */
int dpk_builder_status(const struct dpk_builder *b, dpk_error *err);

/* ---- Programs ------------------------------------------------------------------------------- */

/* A program under construction; programs stand in the file in the order in which they were begun.
 * Several may be open at once. Belongs to the builder. Never NULL (a dummy after an error). */
struct dpk_prog;
struct dpk_prog *dpk_build_program(struct dpk_builder *b, const char *name);
/* Layers named from now on are this component's. */
void dpk_build_component(struct dpk_prog *p, struct dpk_component *component);

/* Values are numbers from 1; 0 is "none". */

/* An input; dimensions: 0 for any size. An input of that name that is there already is returned. */
uint32_t dpk_build_input(struct dpk_prog *p, const char *name, int type, int rank,
                         const int32_t *dim);
#define DPK_BUILD_INPUT(p, name, type, ...)                                                        \
    dpk_build_input(p, name, type, (int)(sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)),      \
                    (const int32_t[]){__VA_ARGS__})
/* Mark a value that an operator made as output. */
void dpk_build_output(struct dpk_prog *p, const char *name, uint32_t value);

/* ---- Operators: formats/ops.def says what they compute --------------------------------------- */

/* name is the layer's within the component: "conv_in" has the tensors "conv_in.weight" and
 * "conv_in.bias". */

/* [N, K] linear; the source may also be a 1x1 convolution [N, K, 1, 1]. */
struct dpk_linear_opt {
    int unused_;
    uint32_t x2, residual, gate;
    int act, gate_off;
    bool glu, no_bias;
    bool conv1x1; /* a 1x1 convolution in the architecture that is reproduced */
    /* The layer is these of the same parent on top of each other, N/count rows each: "x.to_kv" with
     * stack {"to_k", "to_v"} is x.to_k and x.to_v. */
    const char *stack[DPK_MAX_PARTS];
};
uint32_t dpk_build_linear_opt(struct dpk_prog *p, const char *name, uint32_t x, int n, int k,
                              const struct dpk_linear_opt *opt);
#define dpk_build_linear(p, name, x, n, k, ...)                                                    \
    dpk_build_linear_opt(p, name, x, n, k, &(struct dpk_linear_opt){.unused_ = 0, __VA_ARGS__})

/* kernel x kernel convolution of c to n channels; pad: top, left, bottom, right. Without the pad
 * option the padding is kernel/2 all round. */
struct dpk_conv2d_opt {
    int unused_;
    uint32_t temb, residual, like;
    int kernel, stride; /* 0: 3 and 1 */
    const int *pad;     /* [4] */
    bool upsample, no_bias;
    int act;
};
uint32_t dpk_build_conv2d_opt(struct dpk_prog *p, const char *name, uint32_t x, int n, int c,
                              const struct dpk_conv2d_opt *opt);
#define dpk_build_conv2d(p, name, x, n, c, ...)                                                    \
    dpk_build_conv2d_opt(p, name, x, n, c, &(struct dpk_conv2d_opt){.unused_ = 0, __VA_ARGS__})

uint32_t dpk_build_group_norm(struct dpk_prog *p, const char *name, uint32_t x, uint32_t x2, int c,
                              int groups, float eps, int act);

struct dpk_layer_norm_opt {
    int unused_;
    uint32_t mod;
    int shift_off, scale_off;
    bool rms, no_affine;
};
uint32_t dpk_build_layer_norm_opt(struct dpk_prog *p, const char *name, uint32_t x, int c,
                                  float eps, const struct dpk_layer_norm_opt *opt);
#define dpk_build_layer_norm(p, name, x, c, eps, ...)                                              \
    dpk_build_layer_norm_opt(p, name, x, c, eps,                                                   \
                             &(struct dpk_layer_norm_opt){.unused_ = 0, __VA_ARGS__})

struct dpk_attention_opt {
    int unused_;
    uint32_t mask, bias;
    int q_off, k_off, v_off;
    bool causal;
    float scale; /* 0: 1/sqrt(head_dim) */
};
uint32_t dpk_build_attention_opt(struct dpk_prog *p, const char *name, uint32_t q, uint32_t k,
                                 uint32_t v, int heads, int head_dim,
                                 const struct dpk_attention_opt *opt);
#define dpk_build_attention(p, name, q, k, v, heads, head_dim, ...)                                \
    dpk_build_attention_opt(p, name, q, k, v, heads, head_dim,                                     \
                            &(struct dpk_attention_opt){.unused_ = 0, __VA_ARGS__})

/* table [n, c]; pos [n_pos, c], "" for none: the names of the modules, tensors are NAME.weight. */
uint32_t dpk_build_embedding(struct dpk_prog *p, const char *table, int n, const char *pos,
                             int n_pos, int c, uint32_t ids);
uint32_t dpk_build_eos_pool(struct dpk_prog *p, uint32_t x, uint32_t ids, int eos_id);
uint32_t dpk_build_sinusoid(struct dpk_prog *p, uint32_t t, int dim, bool flip, float freq_shift);
uint32_t dpk_build_outer_add(struct dpk_prog *p, uint32_t a, uint32_t c, int act);
uint32_t dpk_build_select(struct dpk_prog *p, uint32_t x, uint32_t index);
uint32_t dpk_build_concat(struct dpk_prog *p, uint32_t a, uint32_t c);

/* clamp(mul * x[off : off + count] + add, lo, hi) with values of `type`. Zeros are the defaults:
 * all channels, mul 1, no limits (lo and hi both 0). */
struct dpk_slice_opt {
    int unused_;
    int off, count;
    float mul, add, lo, hi;
};
uint32_t dpk_build_slice_opt(struct dpk_prog *p, uint32_t x, int type,
                             const struct dpk_slice_opt *opt);
#define dpk_build_slice(p, x, type, ...)                                                           \
    dpk_build_slice_opt(p, x, type, &(struct dpk_slice_opt){.unused_ = 0, __VA_ARGS__})

/* x + the tensor NAME [rows, c] (or [c] for rows 0), to the last dimension of rows * c (c). */
uint32_t dpk_build_add_table(struct dpk_prog *p, const char *name, uint32_t x, int rows, int c);
uint32_t dpk_build_pos_embed_2d(struct dpk_prog *p, uint32_t x, int base, float interpolation);
uint32_t dpk_build_unpatchify(struct dpk_prog *p, uint32_t x, int patch);
/* table [buckets, heads], the tensor NAME.weight. */
uint32_t dpk_build_relative_bias(struct dpk_prog *p, const char *name, uint32_t ids, int buckets,
                                 int heads, int max_distance);

/* A layer that the programs have no use for: its tensors are checked and counted, not kept. */
void dpk_build_unused_linear(struct dpk_prog *p, const char *name, int n, int k, bool bias);
void dpk_build_unused_norm(struct dpk_prog *p, const char *name, int c);

/* ---- What else goes into the file ------------------------------------------------------------ */

void dpk_builder_meta(struct dpk_builder *b, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Takes over data, which was malloc'ed. */
void dpk_builder_blob(struct dpk_builder *b, const char *name, uint32_t kind, void *data,
                      size_t n_bytes);

/* ---- Results --------------------------------------------------------------------------------- */

/* Number the weights in order of use, and run the shape rules over every program with small inputs,
 * so that a config whose parts do not fit together is an error here and not when a picture is made.
 * No operator may be added afterwards. */
int dpk_builder_seal(struct dpk_builder *b, dpk_error *err);

size_t dpk_builder_n_weights(const struct dpk_builder *b);
/* Weight i of the file's table; after seal. */
const struct dpk_weight_plan *dpk_builder_weight(const struct dpk_builder *b, size_t i);
size_t dpk_builder_n_ops(const struct dpk_builder *b);
const char *dpk_builder_meta_get(const struct dpk_builder *b, const char *key); /* NULL: none */

/* The file that would be written, opened, but for its weights (f->weights is NULL).
 * Nothing is written. Close it. */
int dpk_builder_view(const struct dpk_builder *b, struct dpk_file *f, dpk_error *err);

/* Write the file. threads 0: one per core. progress may be NULL; it gets bytes of weights, and
 * non-zero from it stops with DPK_ECANCELLED. No partial file is left behind by a failure. */
typedef int dpk_build_progress(void *arg, uint64_t done, uint64_t total);
int dpk_builder_write(const struct dpk_builder *b, const char *path, int threads,
                      dpk_build_progress *progress, void *arg, dpk_error *err);

#endif
