/* Plain references of the operators, in double: formulas of ops.def, nothing shared with the
 * kernels. */
#include "support_ref.h"

#include <math.h>
#include <stdlib.h>

static size_t count(const struct dpk_shape *s) { return (size_t)dpk_shape_count(s); }
static size_t last(const struct dpk_shape *s) { return (size_t)s->dim[s->rank - 1]; }

double ref_act(double x, int act) {
    switch (act) {
    case DPK_ACT_SILU:
        return x / (1 + exp(-x));
    case DPK_ACT_GELU:
        return 0.5 * x * erfc(-x / sqrt(2.0));
    case DPK_ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case DPK_ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    default:
        return x;
    }
}

/* Softmax over the logits that are above -inf, then the sum of values; zeros if there is none. */
static void attend(const double *logits, const double *v, size_t lk, size_t stride, size_t d,
                   double *y) {
    double top = -INFINITY, sum = 0;
    for (size_t j = 0; j < lk; j++) top = fmax(top, logits[j]);
    for (size_t c = 0; c < d; c++) y[c] = 0;
    if (top == -INFINITY) return;
    for (size_t j = 0; j < lk; j++) {
        double p = exp(logits[j] - top);
        sum += p;
        for (size_t c = 0; c < d; c++) y[c] += p * v[j * stride + c];
    }
    for (size_t c = 0; c < d; c++) y[c] /= sum;
}

void ref_attention(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    const struct dpk_attention_attrs *a = DPK_ATTRS(attention, &t->op);
    const struct dpk_shape *qs = &t->call.in[0].shape, *ks = &t->call.in[1].shape;
    const double *mask = t->in[DPK_IN(attention, mask)], *bias = t->in[DPK_IN(attention, bias)];
    size_t cq = last(qs), ck = last(ks), cv = last(&t->call.in[2].shape);
    size_t n_b = (size_t)qs->dim[0], lq = count(qs) / cq / n_b, lk = count(ks) / ck / n_b;
    size_t d = (size_t)a->head_dim, heads = (size_t)a->heads;
    double scale = a->scale == 0.0f ? 1 / sqrt((double)d) : (double)a->scale;
    double *logits = malloc(lk * sizeof *logits);
    (void)shape;
    if (!logits) abort();
    for (size_t row = 0; row < n_b * lq * heads; row++) {
        size_t h = row % heads, i = row / heads % lq, b = row / heads / lq;
        const double *q = t->in[0] + (b * lq + i) * cq + (size_t)a->q_off + h * d;
        const double *k = t->in[1] + b * lk * ck + (size_t)a->k_off + h * d;
        for (size_t j = 0; j < lk; j++) {
            double s = 0;
            for (size_t c = 0; c < d; c++) s += q[c] * k[j * ck + c];
            s *= scale;
            if (bias) s += bias[(h * lq + i) * lk + j];
            if ((a->causal && j > i) || (mask && mask[b * lk + j] == 0)) s = -INFINITY;
            logits[j] = s;
        }
        attend(logits, t->in[2] + b * lk * cv + (size_t)a->v_off + h * d, lk, cv, d, y + row * d);
    }
    free(logits);
}

void ref_group_norm(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    const struct dpk_group_norm_attrs *a = DPK_ATTRS(group_norm, &t->op);
    size_t c1 = last(&t->call.in[0].shape), c = last(shape), c2 = c - c1;
    size_t images = (size_t)shape->dim[0], pixels = count(shape) / c / images;
    size_t n = c / (size_t)a->groups;
    for (size_t p = 0; p < images * pixels; p++) {
        for (size_t i = 0; i < c1; i++) y[p * c + i] = t->in[0][p * c1 + i];
        for (size_t i = 0; i < c2; i++) y[p * c + c1 + i] = t->in[1][p * c2 + i];
    }
    for (size_t b = 0; b < images; b++) {
        for (size_t g = 0; g < (size_t)a->groups; g++) {
            double *x = y + b * pixels * c + g * n, mean = 0, variance = 0;
            for (size_t p = 0; p < pixels; p++) {
                for (size_t i = 0; i < n; i++) mean += x[p * c + i] / (double)(pixels * n);
            }
            for (size_t p = 0; p < pixels; p++) {
                for (size_t i = 0; i < n; i++) {
                    variance += pow(x[p * c + i] - mean, 2) / (double)(pixels * n);
                }
            }
            double inv = 1 / sqrt(variance + (double)a->eps);
            for (size_t p = 0; p < pixels; p++) {
                for (size_t i = 0; i < n; i++) {
                    double v = (x[p * c + i] - mean) * inv * t->wt[0][g * n + i];
                    x[p * c + i] = ref_act(v + t->wt[1][g * n + i], a->act);
                }
            }
        }
    }
}

void ref_layer_norm(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    const struct dpk_layer_norm_attrs *a = DPK_ATTRS(layer_norm, &t->op);
    const double *mod = t->in[DPK_IN(layer_norm, mod)];
    size_t n = last(shape), rows = count(shape) / n, image = rows / (size_t)shape->dim[0];
    for (size_t r = 0; r < rows; r++) {
        const double *x = t->in[0] + r * n, *m = mod;
        double mean = 0, variance = 0;
        for (size_t c = 0; c < n && !a->rms; c++) mean += x[c] / (double)n;
        for (size_t c = 0; c < n; c++) variance += (x[c] - mean) * (x[c] - mean) / (double)n;
        double inv = 1 / sqrt(variance + (double)a->eps);
        if (mod && t->call.in[1].shape.dim[0] > 1) m += r / image * last(&t->call.in[1].shape);
        for (size_t c = 0; c < n; c++) {
            double v = (x[c] - mean) * inv;
            if (t->wt[0]) v *= t->wt[0][c];
            if (t->wt[1]) v += t->wt[1][c];
            if (m) v = v * (1 + m[(size_t)a->scale_off + c]) + m[(size_t)a->shift_off + c];
            y[r * n + c] = v;
        }
    }
}

void ref_embedding(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    size_t n = last(shape), l = (size_t)shape->dim[1];
    for (size_t i = 0; i < count(shape); i++) {
        y[i] = t->wt[0][(size_t)t->in[0][i / n] * n + i % n];
        if (t->wt[1]) y[i] += t->wt[1][i / n % l * n + i % n];
    }
}

void ref_eos_pool(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    double eos = DPK_ATTRS(eos_pool, &t->op)->eos_id;
    size_t l = (size_t)t->call.in[0].shape.dim[1], n = last(shape);
    for (size_t b = 0; b < (size_t)shape->dim[0]; b++) {
        const double *ids = t->in[1] + b * l;
        size_t at = l;
        double most = -INFINITY;
        for (size_t i = 0; i < l; i++) most = fmax(most, ids[i]);
        for (size_t i = l; i-- > 0;) {
            if (ids[i] == (eos == -1 ? most : eos)) at = i;
        }
        if (at == l) at = 0;
        for (size_t c = 0; c < n; c++) y[b * n + c] = t->in[0][(b * l + at) * n + c];
    }
}

void ref_sinusoid(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    const struct dpk_sinusoid_attrs *a = DPK_ATTRS(sinusoid, &t->op);
    size_t dim = (size_t)a->dim, half = dim / 2;
    for (size_t i = 0; i < count(shape); i++) {
        size_t j = i % dim;
        double f = exp(-log((double)a->max_period) * (double)(j % half) /
                       ((double)half - (double)a->freq_shift));
        bool sine = (j < half) != (a->flip != 0);
        y[i] = sine ? sin(t->in[0][i / dim] * f) : cos(t->in[0][i / dim] * f);
    }
}

void ref_outer_add(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    size_t n = last(shape), rows = (size_t)shape->dim[1];
    for (size_t i = 0; i < count(shape); i++) {
        double v = t->in[0][i / n / rows * n + i % n] + t->in[1][i / n % rows * n + i % n];
        y[i] = ref_act(v, DPK_ATTRS(outer_add, &t->op)->act);
    }
}

void ref_select(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    size_t n = count(shape), index = (size_t)t->in[1][0];
    for (size_t i = 0; i < n; i++) y[i] = t->in[0][index * n + i];
}

void ref_concat(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    size_t n = last(shape), n1 = last(&t->call.in[0].shape), n2 = n - n1;
    for (size_t i = 0; i < count(shape); i++) {
        size_t r = i / n, c = i % n;
        y[i] = c < n1 ? t->in[0][r * n1 + c] : t->in[1][r * n2 + c - n1];
    }
}

void ref_slice(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    const struct dpk_slice_attrs *a = DPK_ATTRS(slice, &t->op);
    size_t n = last(shape), width = last(&t->call.in[0].shape);
    for (size_t i = 0; i < count(shape); i++) {
        double v = t->in[0][i / n * width + (size_t)a->off + i % n];
        y[i] = fmin(fmax(v * (double)a->mul + (double)a->add, (double)a->lo), (double)a->hi);
    }
}

void ref_add(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    const double *c = t->in[1] ? t->in[1] : t->wt[0];
    size_t n = t->in[1] ? count(&t->call.in[1].shape) : count(&t->call.wt[0].shape);
    for (size_t i = 0; i < count(shape); i++) y[i] = t->in[0][i] + c[i % n];
}

void ref_pos_embed_2d(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    const struct dpk_pos_embed_2d_attrs *a = DPK_ATTRS(pos_embed_2d, &t->op);
    size_t h = (size_t)shape->dim[1], w = (size_t)shape->dim[2], n = last(shape), quarter = n / 4;
    for (size_t i = 0; i < count(shape); i++) {
        size_t c = i % n, column = i / n % w, row = i / n / w % h;
        double index = c < n / 2 ? (double)column : (double)row;
        double size = c < n / 2 ? (double)w : (double)h;
        double p = index * ((double)a->base / size) / (double)a->interpolation;
        double angle = p * pow(10000.0, -(double)(c % quarter) / (double)quarter);
        y[i] = t->in[0][i] + (c / quarter % 2 ? cos(angle) : sin(angle));
    }
}

void ref_unpatchify(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    size_t p = (size_t)DPK_ATTRS(unpatchify, &t->op)->patch;
    size_t c = last(shape), w = (size_t)shape->dim[2], h = (size_t)shape->dim[1];
    for (size_t i = 0; i < count(shape); i++) {
        size_t ch = i % c, px = i / c % w, py = i / c / w % h, b = i / c / w / h;
        size_t patch = (b * (h / p) + py / p) * (w / p) + px / p;
        y[i] = t->in[0][((patch * p + py % p) * p + px % p) * c + ch];
    }
}

void ref_relative_bias(const struct ref_case *t, const struct dpk_shape *shape, double *y) {
    const struct dpk_relative_bias_attrs *a = DPK_ATTRS(relative_bias, &t->op);
    size_t l = last(shape), heads = (size_t)shape->dim[0];
    int half = a->buckets / 2, exact = half / 2;
    for (size_t i = 0; i < count(shape); i++) {
        int distance = (int)(i % l) - (int)(i / l % l), bucket = distance > 0 ? half : 0;
        int far = distance < 0 ? -distance : distance;
        if (far < exact) {
            bucket += far;
        } else {
            double place = log((double)far / exact) / log((double)a->max_distance / exact);
            int step = exact + (int)(place * (half - exact) + 1e-6);
            bucket += step < half ? step : half - 1;
        }
        y[i] = t->wt[0][(size_t)bucket * heads + i / l / l];
    }
}
