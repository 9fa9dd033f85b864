/* Weights of the file: where their values come from, and how they are brought into a kernel's layout
 * piece by piece. Nothing here holds a whole tensor. */
#ifndef DPK_WEIGHTS_H
#define DPK_WEIGHTS_H

#include "../formats/dpk.h"
#include "../formats/tensors.h"

enum { DPK_MAX_PARTS = 3 };

/* Another spelling of tensor names: where `ours` stands in a name, a file may have `theirs`. */
struct dpk_rename {
    const char *ours, *theirs;
};

/* One component of a model: a prefix of names and a source of values. */
struct dpk_component {
    char prefix[32];             /* "unet": in the file "conv_in.weight" is "unet.conv_in.weight" */
    struct dpk_tensors *tensors; /* owned; NULL: values are drawn */
    uint64_t seed;               /* of drawn values */
    float *normal;               /* owned: the table of dpk_random_fill; NULL: values are read */
    const struct dpk_rename *renames; /* ended by {NULL, NULL}; may be NULL */
    uint64_t n_params, n_tensors;     /* asked for so far */
};
void dpk_component_close(struct dpk_component *c); /* also of a zeroed struct */
/* The source tensor of that name, or of another spelling of it; NULL if absent. */
struct dpk_tensor_info *dpk_component_find(const struct dpk_component *c, const char *name);
/* Find a tensor of exactly these dimensions (a matrix may have two more dimensions of 1) and mark
 * it used. *info is NULL if values are drawn. Errors: missing, other shape, not a float type. */
int dpk_component_want(struct dpk_component *c, const char *name, int rank, const uint64_t *dim,
                       struct dpk_tensor_info **info, dpk_error *err);
/* DPK_EFORMAT, naming the first, if tensors were not asked for; those that a checkpoint may carry
 * besides its weights (position_ids, logit_scale, EMA copies) do not count. */
int dpk_component_check_used(const struct dpk_component *c, dpk_error *err);

/* What a weight is for decides the distribution of drawn values. */
enum dpk_weight_role {
    DPK_ROLE_MATRIX, /* normal, standard deviation 1/sqrt(fan in) */
    DPK_ROLE_GAMMA,  /* 1 + 0.1 normal */
    DPK_ROLE_BIAS,   /* 0.02 normal */
    DPK_ROLE_TABLE,  /* 0.02 normal */
};

struct dpk_weight_part {
    char *name; /* of the source tensor, as the architecture calls it */
    struct dpk_tensor_info *info;
};
struct dpk_weight_plan {
    char *name, *source; /* of struct dpk_tensor_record */
    const struct dpk_component *from;
    int role, dtype, layout;
    uint32_t flags;         /* enum dpk_tensor_flags */
    struct dpk_shape shape; /* logical, see ops.h */
    int n_parts;            /* stacked by rows, equally many each */
    struct dpk_weight_part part[DPK_MAX_PARTS];
    uint32_t number; /* in the file's table; DPK_NONE before it is known */
};

/* Plan a weight: name its source tensors and check them. `layer` is the name in the component,
 * `suffix` "weight" or "bias" (or NULL: layer is the whole name); stack may be NULL (see
 * dpk_linear_opt). On failure *w is empty. */
struct dpk_weight_want {
    const char *layer, *suffix;
    const char *const *stack; /* [DPK_MAX_PARTS], unused ones NULL */
    int role, dtype, layout;
    uint32_t flags;
    struct dpk_shape shape;
    /* Not 0: the source has the vector as a matrix of so many rows. */
    int table_rows;
};
int dpk_weight_plan_make(struct dpk_weight_plan *w, struct dpk_component *from,
                         const struct dpk_weight_want *want, dpk_error *err);
void dpk_weight_plan_free(struct dpk_weight_plan *w); /* also of a zeroed struct */

/* Rows [first, first + n) of the weight as float, in the source's order of elements: a row of a
 * convolution is [C][kh][kw], a vector is one row. Several threads may read at once. */
int dpk_weight_read_rows(const struct dpk_weight_plan *w, uint64_t first, uint64_t n, float *dst,
                         dpk_error *err);

/* ---- Layouts --------------------------------------------------------------------------------- */

/* How the bytes of a weight divide into pieces that can be made independently and in any order:
 * n_units units (panels, or rows), unit_bytes each, one after the other. */
struct dpk_weight_units {
    uint64_t n_units, unit_bytes;
    uint64_t unit_rows; /* 16 for panels, 1 for rows */
    uint64_t row;       /* elements of a source row */
};
struct dpk_weight_units dpk_weight_units(const struct dpk_weight_plan *w);

/* Working memory of dpk_weight_pack, which grows it. One a thread. */
struct dpk_pack_scratch {
    float *rows, *order;
    uint16_t *half;
    size_t n_rows, n_order, n_half; /* elements */
};
void dpk_pack_scratch_free(struct dpk_pack_scratch *s);

/* Make units [first, first + n): n * unit_bytes bytes at out. A value that is not finite, or not
 * finite in the weight's type, is an error naming the source tensor and the index. */
int dpk_weight_pack(const struct dpk_weight_plan *w, uint64_t first, uint64_t n, void *out,
                    struct dpk_pack_scratch *scratch, dpk_error *err);

/* ---- Drawn values ---------------------------------------------------------------------------- */

/* Quantiles of the standard normal distribution, the same on every machine. */
enum { DPK_RANDOM_SEGMENTS = 4096 };
void dpk_random_table(float table[DPK_RANDOM_SEGMENTS + 1]);

/* Elements [first, first + n) of the tensor NAME as it would stand in a source: mean + deviation *
 * z, z standard normal. A value depends on name, seed and index alone, and is the same on every
 * machine. */
void dpk_random_fill(const float table[DPK_RANDOM_SEGMENTS + 1], const char *name, uint64_t seed,
                     uint64_t first, size_t n, float mean, float deviation, float *dst);

#endif
