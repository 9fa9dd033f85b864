/* What the tests of quantized products share: backends of every level, with and without dot
 * products of bytes, and rows that ask a quantizer's questions. */
#ifndef SUPPORT_INT8_H
#define SUPPORT_INT8_H

#include "../kernels/cpu/cpu.h"

#include <stddef.h>

/* A variant is level * 2 + dot. backends[v][n] has n threads; NULL where the machine has none. */
enum { INT8_THREADS = 3, INT8_VARIANTS = 2 * DPK_N_ISAS };
extern struct dpk_backend *int8_backends[INT8_VARIANTS][INT8_THREADS + 1];
const char *int8_variant_name(int v);
int int8_set_up(void **state); /* of a group of tests */
int int8_tear_down(void **state);

void *int8_need(size_t n_bytes); /* malloc that fails the test */

/* n values that dtype holds: ordinary ones, or by kind 1 very small, 2 very large, 3 subnormal, 4
 * zeros, 5 halves of the step and their neighbours, 6 an outlier, 7 the largest finite. */
void int8_draw_row(uint32_t *seed, float *x, size_t n, int dtype, int kind);

/* A call with the plain arrays of its operands; w is the integers times their scales. */
struct int8_call {
    struct dpk_op op;
    struct dpk_call call;
    float *in[DPK_MAX_IN], *w, *b, *scale;
    int8_t *q;
    int32_t *colsum;
    size_t w_bytes, n_scales, rows, k; /* of w */
    uint32_t seed;
};

/* A call of this operator, its operands drawn from `seed`. */
void int8_open(struct int8_call *c, int opcode, uint32_t seed);
void int8_close(struct int8_call *c);
/* Input i: numbers that dtype holds; with `rows`, rows of every kind of int8_draw_row. */
const float *int8_give(struct int8_call *c, size_t i, int dtype, struct dpk_shape shape, bool rows);
/* Weight 0: integers of the whole range, rows of extremes and of zeros among them, and scales. */
void int8_give_weight(struct int8_call *c, int dtype, uint32_t flags, int group, bool glu,
                      struct dpk_shape shape);
void int8_give_bias(struct int8_call *c); /* weight 1 */
/* The result's shape, by the shape rule, and type; returns its elements. */
size_t int8_finish(struct int8_call *c, int dtype);
/* The result, a guarded array of n elements; with in_place >= 0 that input's bytes are the
 * result's. */
void *int8_run(struct dpk_backend *be, const struct int8_call *c, size_t n, int in_place);

#endif
