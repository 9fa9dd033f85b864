/* Pictures to other sizes. */
#ifndef DPK_RESIZE_H
#define DPK_RESIZE_H

#include "../formats/dpk_error.h"

#include <stdint.h>

/* in [in_h,in_w,channels] to out [out_h,out_w,channels], 8 bits each, channels 1 or 3: Lanczos with
 * three lobes, stretched where the picture shrinks, in the fixed-point arithmetic of Pillow's
 * Image.resize, whose bytes these are. Sizes from 1 to 65535. Takes memory for its coefficients and
 * a picture between the two directions. Errors: DPK_ENOMEM. */
int dpk_resize_lanczos(const uint8_t *in, uint32_t in_w, uint32_t in_h, uint32_t channels,
                       uint8_t *out, uint32_t out_w, uint32_t out_h, dpk_error *err);

/* in [in_h,in_w,3] to out [out_h,out_w,3]: scaled alike in both directions until it covers the
 * other size (bilinear, corners not aligned, no smoothing where it shrinks), and the middle of that
 * (diffusers' resize_and_crop_tensor). Takes no memory. */
void dpk_resize_cover(const float *in, uint32_t in_w, uint32_t in_h, float *out, uint32_t out_w,
                      uint32_t out_h);

#endif
