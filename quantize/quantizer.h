/* Symmetric quantizers, on rows of float32 in memory.
 *
 * int8, one scale a row: two rules, which differ in the last place and in the range.
 *   diffusion-fast  apply_dynamic_quant of torchao in early 2024, as that recipe ran it:
 *                   weights      s = max(|w|max / 127.5, 2^-23), q = clamp(round(w / s), -128, 127)
 *                   activations  s = max(|x|max, 1e-5) / 127,    q = clamp(round(x / s), -127, 127)
 *   torchao         Int8DynamicActivationInt8WeightConfig of torchao, version 2: weights and
 *                   activations s = max(|x|max / 127.5 rounded to x's type, 2^-23),
 *                   q = clamp(round(x * (1 / s)), -128, 127)
 * int4, one scale a group of adjacent k (IntxWeightOnlyConfig, MappingType.SYMMETRIC):
 *   s = max(|w|max / 7.5, 2^-126), q = clamp(round(w * (1 / s)), -8, 7)
 * Everything is float32 arithmetic, rounding is to nearest even, and the largest positive value is
 * clipped by half a step (127.5 to 127, 7.5 to 7). A value is q * s. */
#ifndef DPK_QUANTIZER_H
#define DPK_QUANTIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dpk_convention {
    DPK_CONVENTION_DIFFUSION_FAST = 0,
    DPK_CONVENTION_TORCHAO = 1,
};
const char *dpk_convention_name(int convention); /* as in the command line */

/* One row of weights, w [k], to q [k] and its scale. dtype (DPK_F32, DPK_BF16, DPK_F16) is the type
 * that w was stored in; it matters to the scale of torchao's rule alone. Returns false, with *scale
 * and q undefined, if a value is not finite. */
bool dpk_quantize_row_s8(int convention, int dtype, const float *w, size_t k, int8_t *q,
                         float *scale);

/* One row of activations, x [k], to q [k] and its scale: the reference for the kernels, which keep
 * scales in float32 (dtype DPK_F32) whatever type the activations have. dtype matters to torchao's
 * rule alone. A row with a value that is not finite gets the scale NaN and zeros, so that the
 * product is NaN in every column: bad values are passed on, never hidden. */
void dpk_quantize_activation_s8(int convention, int dtype, const float *x, size_t k, int8_t *q,
                                float *scale);

/* One row of weights, w [k], to q [k] in -8..7 and scales [k / group]; group divides k. Returns
 * false if a value is not finite. */
bool dpk_quantize_row_s4(const float *w, size_t k, size_t group, int8_t *q, float *scales);

/* Sum of a row of integers; k below 2^24. */
int32_t dpk_quantized_sum(const int8_t *q, size_t k);

/* Error of a quantized row: sums of w^2 and of (w - q s)^2 are added to *signal and *noise. group:
 * values per scale (k for one scale a row). */
void dpk_quantize_error(const float *w, const int8_t *q, const float *scales, size_t k,
                        size_t group, double *signal, double *noise);
/* Signal to quantization noise in decibels; INFINITY without noise. */
double dpk_sqnr_db(double signal, double noise);

#endif
