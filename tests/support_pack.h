/* Number formats and weight layouts for tests, written from ops.h and not from the code under
 * test. */
#ifndef DPK_TEST_PACK_H
#define DPK_TEST_PACK_H

#include "../formats/ops.h"

#include <stddef.h>

/* To and from DPK_F32, DPK_BF16 and DPK_F16, rounding to nearest even. Finite numbers; f16 results
 * must be in its range. */
uint32_t test_encode(int dtype, float x);
float test_decode(int dtype, uint32_t bits);
size_t test_dtype_bytes(int dtype);

/* Round n floats to what dtype can hold. */
void test_round(int dtype, float *x, size_t n);
/* A guarded array (support_guard.h) of n elements of dtype from floats; and back. */
void *test_encode_array(int dtype, const float *x, size_t n);
float *test_decode_array(int dtype, const void *p, size_t n); /* malloc */

/* Weight in PANEL or PANEL_GLU layout from row-major floats of `shape` (linear [N,K], GLU [2F,K],
 * convolution [N,kh,kw,C]). A guarded array of *n_bytes bytes. */
void *test_pack_weight(int dtype, int layout, const struct dpk_shape *shape, const float *w,
                       size_t *n_bytes);

/* The same of integers, for DPK_S8 and DPK_S4 (values -8 .. 7). */
void *test_pack_integers(int dtype, int layout, const struct dpk_shape *shape, const int8_t *q,
                         size_t *n_bytes);

/* Deterministic random numbers. */
uint32_t test_random(uint32_t *state);
int test_random_int(uint32_t *state, int lo, int hi); /* lo .. hi, both included */
float test_random_float(uint32_t *state);             /* -1 .. 1 */

#endif
