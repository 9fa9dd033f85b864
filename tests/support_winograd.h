/* What the tests of Winograd convolution share: the matrices of F(4x4,3x3) in double, from its
 * points 0, +-0.65, +-1.5 and infinity (kernels/cpu/winograd.h); backends of every level; a
 * convolution with its operands. */
#ifndef SUPPORT_WINOGRAD_H
#define SUPPORT_WINOGRAD_H

#include "../kernels/backend.h"
#include "../kernels/cpu/cpu.h"
#include "support_ref_gemm.h"

#include <stddef.h>
#include <stdint.h>

/* G [6][3]: row i is (1, p, p^2) over the product of p's distances from the other points; the last
 * row (0, 0, 1). */
double test_wino_g(int i, int k);
/* B^T [6][6]: row i holds the coefficients of the product of x - q over the other points q; the
 * last row those over all points. */
double test_wino_b(int i, int k);

/* A random number of mean 0 and deviation 1. */
float test_normal(uint32_t *state);

/* Zeroed; fails the test where there is no memory. */
void *test_wino_allocate(size_t n, size_t bytes);

/* Backends of the levels of this machine by threads; [0]: direct, 1 thread. */
enum { TEST_WINO_THREADS = 3 };
extern struct dpk_backend *test_wino_backends[DPK_N_ISAS][TEST_WINO_THREADS + 1];
int test_wino_set_up(void **state); /* of a group of tests */
int test_wino_tear_down(void **state);
/* Has this level products for such activations? */
bool test_wino_here(int isa, int dtype);

struct test_wino_case {
    int images, h, w, c, n;
    int like_h, like_w; /* 0: none */
    bool upsample, bias, temb, one_temb, residual;
    int act, kind;
    int dtype, w_dtype; /* of activations, of weights; 0: bfloat16 */
    uint32_t flags;     /* of weights of integers */
};

struct test_wino {
    struct dpk_op op;
    struct dpk_call call;
    struct test_conv t;
    float *plain[5]; /* x, w, temb, residual, bias */
    float *scale;    /* of weights of integers */
    int dtype, w_dtype;
    size_t w_bytes, n, bytes; /* bytes: of an activation */
};

/* A call with operands drawn from `seed`. */
void test_wino_open(struct test_wino *o, const struct test_wino_case *c, uint32_t seed);
void test_wino_close(struct test_wino *o);
/* After plain[1], floats, was changed. */
void test_wino_set_weights(struct test_wino *o);
/* The result in a guarded array, with scratch of exactly the size asked for; over the residual if
 * in_place. */
void *test_wino_run(struct dpk_backend *be, const struct test_wino *o, bool in_place);
/* Relative distance (L2) of a result from what it should be, and the largest of an element. */
double test_wino_distance(const struct test_wino *o, const void *got, const double *want,
                          double *largest);

#endif
