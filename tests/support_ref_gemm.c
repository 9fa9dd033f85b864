#include "support_ref_gemm.h"

#include <math.h>
#include <stddef.h>

double test_ref_act(int act, double x) {
    switch (act) {
    case DPK_ACT_SILU:
        return x / (1 + exp(-x));
    case DPK_ACT_GELU:
        return 0.5 * x * erfc(-x / sqrt(2.0));
    case DPK_ACT_GELU_TANH: /* 1 + tanh(u) = 2 / (1 + exp(-2u)), which does not cancel */
        return x / (1 + exp(-2 * sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case DPK_ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    default:
        return x;
    }
}

struct sum {
    double value, magnitude;
};

static void add_product(struct sum *s, double a, double b) {
    s->value += a * b;
    s->magnitude += fabs(a * b);
}

/* Row `row` of w with the concatenated row m of x and x2, plus bias. */
static struct sum dot(const struct test_linear *t, size_t m, size_t row) {
    struct sum s = {0, 0};
    size_t k1 = (size_t)t->k1, k2 = (size_t)t->k2;
    const float *w = t->w + row * (k1 + k2);
    for (size_t k = 0; k < k1; k++) add_product(&s, t->x[m * k1 + k], w[k]);
    for (size_t k = 0; k < k2; k++) add_product(&s, t->x2[m * k2 + k], w[k1 + k]);
    if (t->b) add_product(&s, t->b[row], 1);
    return s;
}

/* act has slopes up to 1.13. */
static struct sum activate(struct sum s, int act) {
    return (struct sum){test_ref_act(act, s.value), 1.2 * s.magnitude};
}

void test_ref_linear(const struct test_linear *t, double *y, double *magnitude) {
    size_t n = (size_t)t->n, rows = (size_t)t->rows, total = (size_t)t->images * rows;
    for (size_t m = 0; m < total; m++) {
        for (size_t j = 0; j < n; j++) {
            struct sum s = dot(t, m, j);
            if (t->attrs.glu) {
                struct sum g = activate(dot(t, m, n + j), t->attrs.act);
                s.magnitude = s.magnitude * fabs(g.value) + fabs(s.value) * g.magnitude;
                s.value *= g.value;
            } else {
                s = activate(s, t->attrs.act);
            }
            if (t->gate) {
                size_t image = t->gate_images > 1 ? m / rows : 0;
                size_t at = image * (size_t)t->gate_width + (size_t)t->attrs.gate_off + j;
                s.value *= t->gate[at];
                s.magnitude *= fabs(t->gate[at]);
            }
            if (t->residual) add_product(&s, t->residual[m * n + j], 1);
            y[m * n + j] = s.value;
            magnitude[m * n + j] = s.magnitude;
        }
    }
}

static struct sum conv_at(const struct test_conv *t, int image, int oy, int ox, int j) {
    struct sum s = {0, 0};
    for (int ky = 0; ky < t->kh; ky++) {
        for (int kx = 0; kx < t->kw; kx++) {
            int y = oy * t->attrs.stride + ky - t->attrs.pad_top;
            int x = ox * t->attrs.stride + kx - t->attrs.pad_left;
            if (y < 0 || y >= t->up_h || x < 0 || x >= t->up_w) continue;
            y = y * t->h / t->up_h;
            x = x * t->w / t->up_w;
            const float *pixel =
                t->x + (((size_t)image * (size_t)t->h + (size_t)y) * (size_t)t->w + (size_t)x) *
                           (size_t)t->c;
            const float *w =
                t->weight + ((size_t)(j * t->kh + ky) * (size_t)t->kw + (size_t)kx) * (size_t)t->c;
            for (int c = 0; c < t->c; c++) add_product(&s, pixel[c], w[c]);
        }
    }
    return s;
}

void test_ref_conv(const struct test_conv *t, double *y, double *magnitude) {
    size_t at = 0;
    for (int image = 0; image < t->images; image++) {
        for (int i = 0; i < t->out_h * t->out_w; i++) {
            for (int j = 0; j < t->n; j++, at++) {
                struct sum s = conv_at(t, image, i / t->out_w, i % t->out_w, j);
                int row = t->temb_images > 1 ? image : 0;
                if (t->b) add_product(&s, t->b[j], 1);
                if (t->temb) add_product(&s, t->temb[row * t->n + j], 1);
                s = activate(s, t->attrs.act);
                if (t->residual) add_product(&s, t->residual[at], 1);
                y[at] = s.value;
                magnitude[at] = s.magnitude;
            }
        }
    }
}
