/* Inside of the builder: shared by builder.c, builder_ops.c, builder_seal.c and builder_write.c. */
#ifndef DPK_BUILDER_IMPL_H
#define DPK_BUILDER_IMPL_H

#include "builder.h"

/* Value numbers while programs are open: inputs are DPK_BUILD_IS_INPUT + index, since their count
 * is not known yet, and what operator i makes is 1 + i. */
#define DPK_BUILD_IS_INPUT UINT32_C(0x40000000)

struct dpk_build_input {
    char *name;
    struct dpk_value value; /* name unset */
};
struct dpk_build_op {
    char *name;       /* owned; NULL: none */
    char *output;     /* owned; NULL: not an output */
    int type;         /* of the value that it makes */
    struct dpk_op op; /* in: value numbers as above, DPK_NONE absent; wt: indices of plans */
};

struct dpk_prog {
    struct dpk_builder *b;
    struct dpk_component *component;
    char *name;
    struct dpk_build_input *inputs;
    struct dpk_build_op *ops;
    size_t n_inputs, n_ops, room_inputs, room_ops;
    struct dpk_prog *next;
};

struct dpk_build_meta {
    char *key, *value;
};
struct dpk_build_blob {
    char *name;
    uint32_t kind;
    void *data;
    size_t n_bytes;
};

struct dpk_builder {
    int dtype;
    int rc; /* the first error */
    dpk_error err;
    bool sealed;
    struct dpk_prog *programs;       /* in order */
    struct dpk_prog dummy;           /* where calls go when there is no memory for a program */
    struct dpk_weight_plan *weights; /* in order of planning */
    size_t n_weights, room_weights;
    uint32_t *slots; /* hash table by name: index + 1, 0 empty */
    size_t n_slots;
    uint32_t *order; /* sealed: the file's tensor i is weights[order[i]] */
    uint64_t weight_bytes;
    struct dpk_build_meta *metas;
    size_t n_metas, room_metas;
    struct dpk_build_blob *blobs;
    size_t n_blobs, room_blobs;
};

/* Set the sticky error if there is none, and return it. */
int dpk_builder_fail(struct dpk_builder *b, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The plan of a weight of the current component, made if it is new; DPK_NONE after an error. */
uint32_t dpk_builder_want(struct dpk_prog *p, const struct dpk_weight_want *want);

/* Add an operator; name may be NULL. op->in holds value numbers with 0 for absent ones, which are
 * turned to DPK_NONE. Returns the value, 0 after an error. */
uint32_t dpk_builder_add(struct dpk_prog *p, const char *name, int type, const struct dpk_op *op);

#endif
