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

#endif
