/* Arithmetic of the text-to-image loop on host arrays. */
#include "guide.h"

#include <math.h>

/* Standard deviation with n - 1 below, as torch.std has it. */
static double deviation(const float *x, size_t n) {
    double mean = 0, sum = 0;
    for (size_t i = 0; i < n; i++) mean += x[i];
    mean /= (double)n;
    for (size_t i = 0; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    return sqrt(sum / (double)(n > 1 ? n - 1 : 1));
}

void dpk_guide_combine(size_t n_images, size_t n, const float *neg, const float *pos,
                       float guidance, float rescale, float *out) {
    for (size_t i = 0; i < n_images * n; i++) out[i] = neg[i] + guidance * (pos[i] - neg[i]);
    if (!(rescale > 0)) return;
    for (size_t b = 0; b < n_images; b++) {
        float *o = out + b * n;
        double ratio = deviation(pos + b * n, n) / deviation(o, n);
        for (size_t i = 0; i < n; i++) {
            float scaled = o[i] * (float)ratio;
            o[i] = rescale * scaled + (1 - rescale) * o[i];
        }
    }
}

void dpk_guide_to_nhwc(size_t batch, size_t channels, size_t pixels, const float *in, float *out) {
    for (size_t b = 0; b < batch; b++)
        for (size_t p = 0; p < pixels; p++)
            for (size_t c = 0; c < channels; c++)
                out[(b * pixels + p) * channels + c] = in[(b * channels + c) * pixels + p];
}

void dpk_guide_to_rgb(size_t n, const float *x, uint8_t *rgb) {
    for (size_t i = 0; i < n; i++) {
        float v = x[i] / 2 + 0.5f;
        v = v > 0 ? v : 0; /* also NaN */
        v = v < 1 ? v : 1;
        rgb[i] = (uint8_t)rintf(255 * v);
    }
}
