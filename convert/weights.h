/* Weights of the file: where their values come from, and how they are brought into a kernel's
 * layout piece by piece. Nothing here holds a whole tensor. */
#ifndef DPK_WEIGHTS_H
#define DPK_WEIGHTS_H

#include "../formats/dpk.h"
#include "../formats/tensors.h"

enum { DPK_MAX_PARTS = 3 };

/* Another spelling of tensor names: where `ours` stands in a name, a file may have `theirs`. */
struct dpk_rename {
    const char *ours, *theirs;
};

/* A tensor that an architecture asked for. */
struct dpk_asked {
    char *name;
    int rank;
    uint64_t dim[4]; /* in the source's order: [N,K], [N,C,kh,kw], [n] */
};

struct dpk_names; /* see ldm.h */
struct dpk_lora;  /* see lora.h */

/* One component of a model: a prefix of names and a source of values. */
struct dpk_component {
    char prefix[32];             /* "unet": in the file "conv_in.weight" is "unet.conv_in.weight" */
    struct dpk_tensors *tensors; /* NULL: values are drawn; owned if names is NULL */
    /* Not NULL: tensors is a checkpoint of the whole model, which has this component under other
     * names. Borrowed, like the checkpoint. */
    const struct dpk_names *names;
    const struct dpk_lora *lora; /* added to the values that are read; borrowed, may be NULL */
    uint64_t seed;               /* of drawn values */
    float *normal;               /* owned: the table of dpk_random_fill; NULL: values are read */
    const struct dpk_rename *renames; /* ended by {NULL, NULL}; may be NULL */
    uint64_t n_params, n_tensors;     /* asked for so far */
    struct dpk_asked *asked;          /* owned: n_tensors of them, in order */
    size_t room_asked;
};
void dpk_component_close(struct dpk_component *c); /* also of a zeroed struct */

/* Where the values of a tensor are. */
struct dpk_weight_part {
    char *name;                   /* as the architecture calls it; owned */
    struct dpk_tensor_info *info; /* NULL: the values are drawn, or there is no such tensor */
    int n_parts;                  /* more than 1: rows of a tensor so many times as tall */
    uint64_t first_row;           /* where they begin */
    bool transposed;              /* stored as [columns][rows] */
};

/* Find the source tensor of that name, or of another spelling of it, for a tensor of `rows` rows.
 * Fills all of *part but its name; part->info is NULL if it is absent. */
void dpk_component_find(const struct dpk_component *c, const char *name, uint64_t rows,
                        struct dpk_weight_part *part);
/* Find a tensor of exactly these dimensions (a matrix may have two more dimensions of 1) and mark
 * it used. Fills all of *part but its name. Errors: missing, other shape, not a float type. */
int dpk_component_want(struct dpk_component *c, const char *name, int rank, const uint64_t *dim,
                       struct dpk_weight_part *part, dpk_error *err);
/* DPK_EFORMAT, naming the first, if tensors were not asked for; those that a checkpoint may carry
 * besides its weights (position_ids, logit_scale, EMA copies) do not count, nor what a checkpoint
 * of a whole model has outside of this component. */
int dpk_component_check_used(const struct dpk_component *c, dpk_error *err);

/* What a weight is for decides the distribution of drawn values. */
enum dpk_weight_role {
    DPK_ROLE_MATRIX, /* normal, standard deviation 1/sqrt(fan in) */
    DPK_ROLE_GAMMA,  /* 1 + 0.1 normal */
    DPK_ROLE_BIAS,   /* 0.02 normal */
    DPK_ROLE_TABLE,  /* 0.02 normal */
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
    uint64_t row; /* elements of a source row */
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
