/* Operator tests: an operator with random operands, its plain reference in double, and the check of
 * a backend against it.
 *
 *     struct ref_case c;
 *     ref_open(&c, seed, DPK_OP_layer_norm, DPK_BF16);      // type of the ACT values
 *     ref_in(&c, DPK_IN(layer_norm, x), ref_shape(3, 2, 5, 40), 1.0, 0.0);
 *     c.op.attr[...] = ...
 *     ref_check(&c, ref_layer_norm, 1e-5);                   // fails the test if anything is wrong
 *     ref_close(&c); */
#ifndef SUPPORT_REF_H
#define SUPPORT_REF_H

#include "../kernels/backend.h"

#include <stdarg.h>
#include <stddef.h>

/* ---- Random numbers (SplitMix64), the same on every machine -----------------------------------
 */

struct ref_rng {
    uint64_t state;
};
uint64_t ref_random(struct ref_rng *r);
double ref_normal(struct ref_rng *r);
int ref_range(struct ref_rng *r, int lo, int hi); /* lo <= result <= hi */

/* ---- Guarded memory
 * ------------------------------------------------------------------------------- */

/* n_bytes at a multiple of 64 between two guards of NaN bit patterns; under AddressSanitizer the
 * guards are poisoned. */
struct ref_buffer {
    void *data;
    size_t n_bytes;
    void *base;
};
void ref_buffer_open(struct ref_buffer *b, size_t n_bytes); /* filled with NaN */
int ref_buffer_intact(const struct ref_buffer *b);
void ref_buffer_close(struct ref_buffer *b);

/* ---- Cases
 * ------------------------------------------------------------------------------------------ */

enum { REF_MAX_BUFFERS = DPK_MAX_IN + DPK_MAX_WT };
struct ref_case {
    struct ref_rng rng;
    struct dpk_op op;
    struct dpk_call call; /* out: the shape by the shape rule once checked */
    int dtype;            /* of ACT values */
    int out_dtype;        /* 0: dtype */
    double *in[DPK_MAX_IN],
        *wt[DPK_MAX_WT]; /* operands as stored, after rounding; NULL if absent */
    struct ref_buffer buffer[REF_MAX_BUFFERS];
    int n_buffers;
};
/* The attributes of a case, to be set: REF_ATTRS(linear, &c)->act = ... */
#define REF_ATTRS(name, c) ((struct dpk_##name##_attrs *)(void *)(c)->op.attr)
void ref_open(struct ref_case *c, uint64_t seed, int opcode, int dtype);
void ref_close(struct ref_case *c);

struct dpk_shape ref_shape(int rank, ...);

/* Operands. Normal values of this deviation and mean, rounded to the type they are stored in (ACT:
 * c->dtype). The arrays may be changed until ref_check with ref_set. */
void ref_in(struct ref_case *c, size_t i, struct dpk_shape s, double deviation, double mean);
void ref_in_f32(struct ref_case *c, size_t i, struct dpk_shape s, double deviation, double mean);
void ref_in_ids(struct ref_case *c, size_t i, struct dpk_shape s, int lo, int hi);
void ref_in_same(struct ref_case *c, size_t i, size_t as); /* the same value as another input */
void ref_vec(struct ref_case *c, size_t i, int n, double deviation, double mean);
void ref_raw(struct ref_case *c, size_t i, int dtype, struct dpk_shape s, double deviation);
void ref_set(struct ref_case *c, size_t input, size_t element, double value);

/* Fill y with the result of the case in double; `shape` is the result's. */
typedef void ref_fn(const struct ref_case *c, const struct dpk_shape *shape, double *y);

/* Run the case at every level of this machine with 1, 2 and 3 threads. Fails the test unless the
 * guards around operands, result and scratch are whole, operands unchanged, results for all numbers
 * of threads bitwise equal and finite, and the relative L2 distance from the reference at most
 * `tolerance` (0: equal after rounding). Also runs in place where the backend allows it. And all
 * that on the emulated CUDA device, where the orders of threads and blocks vary instead. */
void ref_check(struct ref_case *c, ref_fn *reference, double tolerance);
/* The run must fail with this code, and with a one-line message. */
void ref_check_fails(struct ref_case *c, int code);

double ref_round(double v, int dtype); /* to the nearest value of the type */
double ref_relative(const double *got, const double *want, size_t n);

/* ---- References
 * --------------------------------------------------------------------------------------- */

double ref_act(double x, int act);
ref_fn ref_attention, ref_group_norm, ref_layer_norm, ref_embedding, ref_eos_pool, ref_sinusoid,
    ref_outer_add, ref_select, ref_concat, ref_slice, ref_add, ref_pos_embed_2d, ref_unpatchify,
    ref_relative_bias;

#endif
