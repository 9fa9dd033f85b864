#include "settings.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

/* strtod would follow the program's locale. */
const char *dpk_parse_number(const char *p, double *out) {
    double sign = *p == '-' ? -1 : 1, value = 0;
    int exponent = 0;
    bool digits = false;
    if (*p == '-') p++;
    for (; *p >= '0' && *p <= '9'; p++, digits = true) value = value * 10 + (*p - '0');
    if (*p == '.')
        for (p++; *p >= '0' && *p <= '9'; p++, digits = true, exponent--)
            value = value * 10 + (*p - '0');
    if (digits && (*p == 'e' || *p == 'E')) {
        int e = 0, e_sign = p[1] == '-' ? -1 : 1;
        p += p[1] == '-' || p[1] == '+' ? 2 : 1;
        digits = *p >= '0' && *p <= '9';
        for (; *p >= '0' && *p <= '9'; p++) e = e < 1000 ? e * 10 + (*p - '0') : e;
        exponent += e_sign * e;
    }
    *out = sign * (exponent < 0 ? value / pow(10, -exponent) : value * pow(10, exponent));
    return digits ? p : NULL;
}

static const struct {
    const char *key;
    size_t at; /* in struct dpk_settings */
    double standard, low, high;
    bool whole;
} rows[] = {
#define ROW(name, ...)                                                                             \
    { "pipeline." #name, offsetof(struct dpk_settings, name), __VA_ARGS__ }
    ROW(width, 1024, 1, DPK_JOB_MAX_PIXELS, true),
    ROW(height, 1024, 1, DPK_JOB_MAX_PIXELS, true),
    ROW(vae_scale, 8, 1, 256, true),
    ROW(size_multiple, 0, 1, 1024, true),
    ROW(latent_channels, 4, 1, 1024, true),
    ROW(steps, 50, 1, 1e6, true),
    ROW(guidance, 7.5, 0, 1e4, false),
    ROW(scaling_factor, 0.18215, 1e-6, 1e6, false),
#undef ROW
};

int dpk_settings_read(const struct dpk_file *file, struct dpk_settings *s, dpk_error *err) {
    int rc = DPK_OK;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double *v = (double *)(void *)((char *)s + rows[i].at);
        const char *text = dpk_file_meta(file, rows[i].key);
        *v = rows[i].standard;
        if (!text) continue;
        const char *end = dpk_parse_number(text, v);
        if (!end || *end || !(*v >= rows[i].low && *v <= rows[i].high) ||
            (rows[i].whole && *v != floor(*v)))
            DPK_FAIL(err, DPK_EFORMAT,
                     "the model's metadata %s: \"%.40s\", want a %snumber from %g to %g",
                     rows[i].key, text, rows[i].whole ? "whole " : "", rows[i].low, rows[i].high);
    }
    if (s->size_multiple == 0) /* not given */
        s->size_multiple = s->vae_scale;
    if (fmod(s->size_multiple, s->vae_scale) != 0)
        DPK_FAIL(
            err, DPK_EFORMAT,
            "the model's metadata pipeline.size_multiple: %g, want a multiple of vae_scale, %g",
            s->size_multiple, s->vae_scale);
done:
    return rc;
}
