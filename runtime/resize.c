/* Pictures to other sizes. */
#include "resize.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* ---- Lanczos ------------------------------------------------------------------------------ */

enum { LOBES = 3, BITS = 22 }; /* coefficients in units of 2^-22, as Pillow has them */

static double sinc(double x) { return x == 0 ? 1 : sin(M_PI * x) / (M_PI * x); }
static double lanczos(double x) { return x >= -LOBES && x < LOBES ? sinc(x) * sinc(x / LOBES) : 0; }

/* What each place of a line takes from the line it is made of. */
struct taps {
    uint32_t most;   /* taps of a place, at most */
    uint32_t *first; /* [n] */
    uint32_t *count; /* [n] */
    int32_t *weight; /* [n,most] */
    double *exact;   /* [most] */
};

static void free_taps(struct taps *t) {
    free(t->first);
    free(t->count);
    free(t->weight);
    free(t->exact);
}

static int make_taps(struct taps *t, uint32_t from, uint32_t to, dpk_error *err) {
    int rc = DPK_OK;
    const double scale = (double)from / to, stretch = scale > 1 ? scale : 1;
    const double reach = LOBES * stretch;
    *t = (struct taps){.most = (uint32_t)ceil(reach) * 2 + 1};
    t->first = calloc(to, sizeof *t->first);
    t->count = calloc(to, sizeof *t->count);
    t->weight = calloc((size_t)to * t->most, sizeof *t->weight);
    t->exact = calloc(t->most, sizeof *t->exact);
    if (!t->first || !t->count || !t->weight || !t->exact)
        DPK_FAIL(err, DPK_ENOMEM, "picture: no memory to resize %u to %u", from, to);
    for (uint32_t i = 0; i < to; i++) {
        const double middle = (i + 0.5) * scale;
        double begin = middle - reach + 0.5, end = middle + reach + 0.5, sum = 0;
        uint32_t first = begin > 0 ? (uint32_t)begin : 0;
        uint32_t count = (end < from ? (uint32_t)end : from) - first;
        for (uint32_t k = 0; k < count; k++)
            sum += t->exact[k] = lanczos((k + first - middle + 0.5) * (1 / stretch));
        for (uint32_t k = 0; k < count; k++) {
            double w = (sum != 0 ? t->exact[k] / sum : t->exact[k]) * (1 << BITS);
            t->weight[(size_t)i * t->most + k] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
        }
        t->first[i] = first;
        t->count[i] = count;
    }
done:
    return rc;
}

/* One pass over `lines` lines of `to` places: element `place` of line `line` is at
 * line * line_step + place * step, for the channel c plus c. */
static void pass(const struct taps *t, uint32_t channels, uint32_t to, uint32_t lines,
                 const uint8_t *in, size_t in_line, size_t in_step, uint8_t *out, size_t out_line,
                 size_t out_step) {
    for (uint32_t line = 0; line < lines; line++)
        for (uint32_t i = 0; i < to; i++)
            for (uint32_t c = 0; c < channels; c++) {
                const uint8_t *p = in + line * in_line + t->first[i] * in_step + c;
                const int32_t *w = t->weight + (size_t)i * t->most;
                int64_t sum = 1 << (BITS - 1);
                for (uint32_t k = 0; k < t->count[i]; k++, p += in_step) sum += (int64_t)*p * w[k];
                sum >>= BITS;
                out[line * out_line + i * out_step + c] = (uint8_t)(sum < 0     ? 0
                                                                    : sum > 255 ? 255
                                                                                : sum);
            }
}

/* Along lines, or along columns, to `to` places a line. */
static int resize_lines(const uint8_t *in, uint32_t w, uint32_t h, uint32_t channels, uint8_t *out,
                        uint32_t to, dpk_error *err) {
    int rc = DPK_OK;
    struct taps t = {0};
    DPK_TRY(make_taps(&t, w, to, err));
    pass(&t, channels, to, h, in, (size_t)w * channels, channels, out, (size_t)to * channels,
         channels);
done:
    free_taps(&t);
    return rc;
}

static int resize_columns(const uint8_t *in, uint32_t w, uint32_t h, uint32_t channels,
                          uint8_t *out, uint32_t to, dpk_error *err) {
    int rc = DPK_OK;
    struct taps t = {0};
    const size_t row = (size_t)w * channels;
    DPK_TRY(make_taps(&t, h, to, err));
    pass(&t, channels, to, w, in, channels, row, out, channels, row);
done:
    free_taps(&t);
    return rc;
}

int dpk_resize_lanczos(const uint8_t *in, uint32_t in_w, uint32_t in_h, uint32_t channels,
                       uint8_t *out, uint32_t out_w, uint32_t out_h, dpk_error *err) {
    int rc = DPK_OK;
    uint8_t *between = NULL;
    const int64_t less_w = (int64_t)in_w - out_w, less_h = (int64_t)in_h - out_h;
    /* Bytes are rounded between the passes, so their order shows: this is Pillow 13's. */
    const bool columns_first = less_h > 0 && less_h > 2 * less_w;
    if (!less_w && !less_h) {
        memcpy(out, in, (size_t)in_w * in_h * channels);
    } else if (!less_h) {
        DPK_TRY(resize_lines(in, in_w, in_h, channels, out, out_w, err));
    } else if (!less_w) {
        DPK_TRY(resize_columns(in, in_w, in_h, channels, out, out_h, err));
    } else {
        between = malloc((size_t)(columns_first ? in_w : out_w) * (columns_first ? out_h : in_h) *
                         channels);
        if (!between) DPK_FAIL(err, DPK_ENOMEM, "picture: no memory to resize %ux%u", in_w, in_h);
        if (columns_first) {
            DPK_TRY(resize_columns(in, in_w, in_h, channels, between, out_h, err));
            DPK_TRY(resize_lines(between, in_w, out_h, channels, out, out_w, err));
        } else {
            DPK_TRY(resize_lines(in, in_w, in_h, channels, between, out_w, err));
            DPK_TRY(resize_columns(between, out_w, in_h, channels, out, out_h, err));
        }
    }
done:
    free(between);
    return rc;
}

/* ---- Bilinear, and cropped ------------------------------------------------------------------ */

/* The two places that place i of `to` lies between, of `from`. */
struct between {
    uint32_t low, high;
    float part; /* of the high one */
};

static struct between find_between(uint32_t i, uint32_t from, uint32_t to) {
    float at = ((float)from / (float)to) * ((float)i + 0.5f) - 0.5f;
    if (at < 0) at = 0;
    struct between b = {.low = (uint32_t)at};
    if (b.low > from - 1) b.low = from - 1;
    b.high = b.low + (b.low < from - 1);
    b.part = at - (float)b.low;
    return b;
}

void dpk_resize_cover(const float *in, uint32_t in_w, uint32_t in_h, float *out, uint32_t out_w,
                      uint32_t out_h) {
    const double across = (double)out_w / in_w, down = (double)out_h / in_h;
    const double ratio = across > down ? across : down;
    uint32_t w = (uint32_t)(in_w * ratio), h = (uint32_t)(in_h * ratio);
    /* A quotient times its divisor may come out just below the number that it was. */
    w = w < out_w ? out_w : w;
    h = h < out_h ? out_h : h;
    const uint32_t left = (w - out_w) / 2, top = (h - out_h) / 2;
    for (uint32_t y = 0; y < out_h; y++) {
        const struct between v = find_between(y + top, in_h, h);
        const float *upper = in + (size_t)v.low * in_w * 3, *lower = in + (size_t)v.high * in_w * 3;
        for (uint32_t x = 0; x < out_w; x++) {
            const struct between u = find_between(x + left, in_w, w);
            for (uint32_t c = 0; c < 3; c++) {
                float a = upper[3 * u.low + c], b = upper[3 * u.high + c];
                float d = lower[3 * u.low + c], e = lower[3 * u.high + c];
                *out++ = (1 - v.part) * ((1 - u.part) * a + u.part * b) +
                         v.part * ((1 - u.part) * d + u.part * e);
            }
        }
    }
}
