/* Arithmetic of the text-to-image loop on host arrays. */
#ifndef DPK_GUIDE_H
#define DPK_GUIDE_H

#include <stddef.h>
#include <stdint.h>

/* Classifier-free guidance: out = neg + guidance * (pos - neg); all [n_images, n]. With rescale
 * above 0, then out = rescale * out * std(pos) / std(out) + (1 - rescale) * out, with the standard
 * deviation over an image (Lin et al., Common Diffusion Noise Schedules and Sample Steps Are
 * Flawed, arXiv 2305.08891; diffusers' rescale_noise_cfg). */
void dpk_guide_combine(size_t n_images, size_t n, const float *neg, const float *pos,
                       float guidance, float rescale, float *out);

/* in [B,C,H*W] to out [B,H*W,C]. */
void dpk_guide_to_nhwc(size_t batch, size_t channels, size_t pixels, const float *in, float *out);

/* rgb[i] = round(255 * clamp(x[i] / 2 + 0.5, 0, 1)), half to even; NaN is 0. */
void dpk_guide_to_rgb(size_t n, const float *x, uint8_t *rgb);

#endif
