/* The order of the weights, and a trial of the shape rules. */
#include "builder_impl.h"

#include "../formats/fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sizes that stand for "any" in the trial: the batch (an input's first dimension) and the others.
 * 64 halves often enough for every autoencoder. */
enum { TRIAL_BATCH = 2, TRIAL_SIZE = 64 };

static int number_weights(struct dpk_builder *b, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t n = 0;
    b->order = calloc(b->n_weights + 1, sizeof *b->order);
    if (!b->order) DPK_FAIL(err, DPK_ENOMEM, "out of memory for %zu tensors", b->n_weights);
    for (const struct dpk_prog *p = b->programs; p; p = p->next)
        for (size_t i = 0; i < p->n_ops; i++)
            for (int k = 0; k < DPK_MAX_WT; k++) {
                const uint32_t w = p->ops[i].op.wt[k];
                if (w == DPK_NONE || b->weights[w].number != DPK_NONE) continue;
                b->weights[w].number = n;
                b->order[n++] = w;
                b->weight_bytes += dpk_weight_bytes(b->weights[w].dtype, b->weights[w].layout,
                                                    &b->weights[w].shape);
            }
done:
    return rc;
}

/* What earlier programs say about a value of that name: the shape of an output, or the sizes of an
 * input. Both are false if there is none. */
struct known {
    const struct dpk_shape *output;
    const struct dpk_build_input *input;
};
static struct known find_known(const struct dpk_builder *b, const struct dpk_prog *end,
                               const char *name, struct dpk_shape *const *made) {
    struct known known = {NULL, NULL};
    size_t k = 0;
    for (const struct dpk_prog *p = b->programs; p != end; p = p->next, k++) {
        for (size_t i = 0; i < p->n_inputs; i++)
            if (strcmp(p->inputs[i].name, name) == 0) known.input = &p->inputs[i];
        for (size_t i = 0; i < p->n_ops; i++)
            if (p->ops[i].output && strcmp(p->ops[i].output, name) == 0) known.output = &made[k][i];
    }
    return known;
}

static struct dpk_shape trial_shape(const struct dpk_build_input *in) {
    struct dpk_shape s = {.rank = in->value.rank};
    for (int i = 0; i < s.rank; i++)
        s.dim[i] = in->value.dim[i] ? in->value.dim[i] : i == 0 ? TRIAL_BATCH : TRIAL_SIZE;
    return s;
}

static int input_shape(const struct dpk_prog *p, const struct dpk_build_input *in,
                       struct known known, struct dpk_shape *shape, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_shape given = trial_shape(known.input ? known.input : in);
    if (known.output) given = *known.output;
    *shape = trial_shape(in);
    if (given.rank != shape->rank)
        DPK_FAIL(err, DPK_EFORMAT, "program %s: input %s has rank %d, it is made with rank %d",
                 p->name, in->name, shape->rank, given.rank);
    for (int i = 0; i < shape->rank; i++) {
        if (in->value.dim[i] && given.dim[i] != in->value.dim[i])
            DPK_FAIL(err, DPK_EFORMAT, "program %s: input %s wants size %d, it is made with %d",
                     p->name, in->name, in->value.dim[i], given.dim[i]);
        shape->dim[i] = given.dim[i];
    }
done:
    return rc;
}

/* Shapes of all values of one program; made[k] of earlier programs are known. */
static int try_program(const struct dpk_builder *b, const struct dpk_prog *p,
                       struct dpk_shape *const *made, struct dpk_shape *out, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_shape *inputs = calloc(p->n_inputs + 1, sizeof *inputs);
    if (!inputs) DPK_FAIL(err, DPK_ENOMEM, "out of memory for %zu inputs", p->n_inputs);
    for (size_t i = 0; i < p->n_inputs; i++)
        DPK_TRY(input_shape(p, &p->inputs[i], find_known(b, p, p->inputs[i].name, made), &inputs[i],
                            err));
    for (size_t i = 0; i < p->n_ops; i++) {
        const struct dpk_build_op *o = &p->ops[i];
        struct dpk_shape in[DPK_MAX_IN] = {0}, wt[DPK_MAX_WT] = {0};
        for (int k = 0; k < DPK_MAX_IN; k++) {
            const uint32_t v = o->op.in[k];
            if (v == DPK_NONE) continue;
            in[k] = v >= DPK_BUILD_IS_INPUT ? inputs[v - DPK_BUILD_IS_INPUT] : out[v - 1];
        }
        for (int k = 0; k < DPK_MAX_WT; k++)
            if (o->op.wt[k] != DPK_NONE) wt[k] = b->weights[o->op.wt[k]].shape;
        DPK_TRY(dpk_op_shape(&o->op, o->name, in, wt, &out[i], err));
    }
done:
    free(inputs);
    return rc;
}

static int try_shapes(const struct dpk_builder *b, dpk_error *err) {
    int rc = DPK_OK;
    size_t n = 0, k = 0;
    for (const struct dpk_prog *p = b->programs; p; p = p->next) n++;
    struct dpk_shape **made = calloc(n + 1, sizeof *made);
    if (!made) DPK_FAIL(err, DPK_ENOMEM, "out of memory for %zu programs", n);
    for (const struct dpk_prog *p = b->programs; p; p = p->next, k++) {
        made[k] = calloc(p->n_ops + 1, sizeof **made);
        if (!made[k]) DPK_FAIL(err, DPK_ENOMEM, "out of memory for %zu values", p->n_ops);
        DPK_TRY(try_program(b, p, made, made[k], err));
    }
done:
    for (size_t i = 0; made && i < n; i++) free(made[i]);
    free(made);
    return rc;
}

int dpk_builder_seal(struct dpk_builder *b, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(dpk_builder_status(b, err));
    if (b->sealed) goto done;
    DPK_TRY(number_weights(b, err));
    DPK_TRY(try_shapes(b, err));
    b->sealed = true;
done:
    return rc;
}
