/* linear and conv2d in double precision, straight from their rows in ops.def: the reference of the
 * tests. */
#ifndef DPK_TEST_REF_GEMM_H
#define DPK_TEST_REF_GEMM_H

#include "../formats/ops.h"

/* Operands as plain floats, row-major; NULL where absent. Beside every result stands its magnitude:
 * what it would be if every product and sum had its absolute value, the scale of rounding
 * errors. */
struct test_linear {
    int images, rows; /* x has images * rows rows */
    int k1, k2, n;    /* n results (with glu, w has 2n rows) */
    const float *x, *x2, *w, *b, *gate, *residual;
    int gate_images, gate_width; /* gate [gate_images][gate_width] */
    struct dpk_linear_attrs attrs;
};
void test_ref_linear(const struct test_linear *t, double *y, double *magnitude);

struct test_conv {
    int images, h, w, c, n, kh, kw;
    int up_h, up_w, out_h, out_w; /* sizes after upsampling, and of the result */
    const float *x, *weight, *b, *temb, *residual;
    int temb_images;
    struct dpk_conv2d_attrs attrs;
};
void test_ref_conv(const struct test_conv *t, double *y, double *magnitude);

/* An activation (enum dpk_act) in double. */
double test_ref_act(int act, double x);

#endif
