/* Distances of numbers and of pictures. */
#include "measure_impl.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void dpk_quality_add(const float *a, const float *b, size_t n, double *signal, double *noise) {
    double s = 0, e = 0;
    for (size_t i = 0; i < n; i++) {
        const double v = a[i], d = (double)b[i] - v;
        s += v * v;
        e += d * d;
    }
    *signal += s;
    *noise += e;
}

static float from_bf16(uint16_t v) {
    const uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

void dpk_quality_add_typed(int dtype, const void *a, const void *b, size_t n, double *signal,
                           double *noise) {
    enum { PIECE = 256 };
    const uint16_t *x = a, *y = b;
    if (dtype == DPK_F32) {
        dpk_quality_add(a, b, n, signal, noise);
        return;
    }
    for (size_t at = 0; at < n; at += PIECE) {
        float p[PIECE], q[PIECE];
        const size_t m = n - at < PIECE ? n - at : PIECE;
        for (size_t i = 0; i < m; i++) {
            p[i] = from_bf16(x[at + i]);
            q[i] = from_bf16(y[at + i]);
        }
        dpk_quality_add(p, q, m, signal, noise);
    }
}

double dpk_quality_mse(const uint8_t *a, const uint8_t *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const int d = (int)a[i] - (int)b[i];
        sum += d * d;
    }
    return n ? sum / (double)n : 0;
}

double dpk_quality_psnr(double mse, double peak) {
    return mse > 0 ? 10.0 * log10(peak * peak / mse) : INFINITY;
}

/* ---- SSIM ------------------------------------------------------------------------------------ */

enum { WINDOW = 11, MOMENTS = 5 }; /* means of x, y, x^2, y^2, x y */

/* Gaussian weights of an odd window that sum to 1. */
static void gaussian(int n, double *weight) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const double x = (i - n / 2) / 1.5;
        sum += weight[i] = exp(-x * x / 2);
    }
    for (int i = 0; i < n; i++) weight[i] /= sum;
}

static double luma(const uint8_t *rgb) { return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]; }

/* Moments of row y's pixels under the horizontal window: row [w - n + 1][MOMENTS]. */
static void blur_row(const uint8_t *a, const uint8_t *b, uint32_t w, int n, const double *weight,
                     double *row) {
    for (uint32_t x = 0; x + (uint32_t)n <= w; x++) {
        double *m = row + (size_t)x * MOMENTS;
        memset(m, 0, MOMENTS * sizeof *m);
        for (int k = 0; k < n; k++) {
            const double p = luma(a + 3 * (x + (uint32_t)k)), q = luma(b + 3 * (x + (uint32_t)k));
            const double g = weight[k];
            m[0] += g * p;
            m[1] += g * q;
            m[2] += g * p * p;
            m[3] += g * q * q;
            m[4] += g * p * q;
        }
    }
}

static double similarity(const double m[MOMENTS]) {
    const double c1 = (0.01 * 255) * (0.01 * 255), c2 = (0.03 * 255) * (0.03 * 255);
    const double vx = m[2] - m[0] * m[0], vy = m[3] - m[1] * m[1], cov = m[4] - m[0] * m[1];
    return (2 * m[0] * m[1] + c1) * (2 * cov + c2) /
           ((m[0] * m[0] + m[1] * m[1] + c1) * (vx + vy + c2));
}

int dpk_quality_ssim(const uint8_t *a, const uint8_t *b, uint32_t w, uint32_t h, double *ssim,
                     dpk_error *err) {
    const uint32_t side = w < h ? w : h;
    const int n = side >= WINDOW ? WINDOW : (int)(side - (side % 2 == 0));
    double weight[WINDOW], sum = 0, *rows = NULL;
    int rc = DPK_OK;
    *ssim = 1;
    if (n < 1) goto done;
    const size_t across = w - (uint32_t)n + 1, down = h - (uint32_t)n + 1;
    gaussian(n, weight);
    rows = malloc(h * across * MOMENTS * sizeof *rows);
    if (!rows) DPK_FAIL(err, DPK_ENOMEM, "no memory to compare pictures of %u x %u", w, h);
    for (uint32_t y = 0; y < h; y++)
        blur_row(a + (size_t)y * w * 3, b + (size_t)y * w * 3, w, n, weight,
                 rows + y * across * MOMENTS);
    for (size_t y = 0; y < down; y++)
        for (size_t x = 0; x < across; x++) {
            double m[MOMENTS] = {0};
            for (int k = 0; k < n; k++)
                for (int i = 0; i < MOMENTS; i++)
                    m[i] += weight[k] * rows[((y + (size_t)k) * across + x) * MOMENTS + (size_t)i];
            sum += similarity(m);
        }
    *ssim = sum / (double)(across * down);
done:
    free(rows);
    return rc;
}
