/* The matrices of Winograd's F(4x4,3x3) in double, from its points 0, +-0.65, +-1.5 and infinity
 * (kernels/cpu/winograd.h). */
#ifndef SUPPORT_WINOGRAD_H
#define SUPPORT_WINOGRAD_H

#include <stdint.h>

/* G [6][3]: row i is (1, p, p^2) over the product of p's distances from the other points; the last
 * row (0, 0, 1). */
double test_wino_g(int i, int k);
/* B^T [6][6]: row i holds the coefficients of the product of x - q over the other points q; the
 * last row those over all points. */
double test_wino_b(int i, int k);

/* A random number of mean 0 and deviation 1. */
float test_normal(uint32_t *state);

#endif
