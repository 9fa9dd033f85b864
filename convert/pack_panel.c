/* Weights into the layouts of formats/ops.h, a few panels at a time.
 *
 * A panel row of f32 and a pair of bf16 or f16 are both four bytes, so every panel is a transposition
 * of four-byte units: out[unit][lane] = row[lane][unit]. Rows are brought into the file's type and,
 * for a convolution, from [C][taps] to [taps][C'] first (C' is C rounded up to whole units). */
#include "weights.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16 };

void dpk_pack_scratch_free(struct dpk_pack_scratch *s) {
    free(s->rows);
    free(s->order);
    free(s->half);
    memset(s, 0, sizeof *s);
}

static int grow(void **p, size_t *have, size_t want, size_t element, dpk_error *err) {
    if (want <= *have) return DPK_OK;
    void *more = want > SIZE_MAX / element ? NULL : malloc(want * element);
    if (!more) return dpk_error_set(err, DPK_ENOMEM, "out of memory for rows of %zu values", want);
    free(*p);
    *p = more;
    *have = want;
    return DPK_OK;
}

static inline uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* The type's smallest magnitude, as float bits, that rounds to infinity. */
static uint32_t overflow_bits(int dtype) {
    return dtype == DPK_F16 ? 0x477ff000u : dtype == DPK_BF16 ? 0x7f7f8000u : 0x7f800000u;
}

static uint32_t largest_bits(const float *x, size_t n) {
    uint32_t top = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t u = bits_of(x[i]) & 0x7fffffffu;
        top = u > top ? u : top;
    }
    return top;
}

/* Name the first bad value of the rows [first, first + n) that lie at x. */
static int bad_value(const struct dpk_weight_plan *w, uint64_t first, const float *x, size_t n,
                     dpk_error *err) {
    const struct dpk_weight_units u = dpk_weight_units(w);
    const uint64_t step = w->shape.rank == 1 ? 1 : u.row;
    const uint64_t part_rows = (uint64_t)w->shape.dim[0] / (uint64_t)w->n_parts;
    size_t i = 0;
    while (i + 1 < n && (bits_of(x[i]) & 0x7fffffffu) < overflow_bits(w->dtype)) i++;
    const uint64_t row = first + i / step;
    const struct dpk_weight_part *part = &w->part[row / part_rows];
    const char *name = part->info ? part->info->name : part->name;
    const double value = (double)x[i];
    uint64_t at = (part->first_row + row % part_rows) * step + i % step;
    if (part->transposed) at = i % step * part->info->dim[1] + row % part_rows;
    char index[64];
    struct dpk_tensor_info where = {.rank = part->info ? part->info->rank : 1};
    for (int d = where.rank - 1; d >= 0; d--) {
        const uint64_t size = part->info ? part->info->dim[d] : UINT64_MAX;
        where.dim[d] = at % size;
        at /= size;
    }
    dpk_tensor_shape_text(&where, index, sizeof index);
    if (isfinite(value))
        return dpk_error_set(err, DPK_EUNSUPPORTED,
                             "%s: tensor %s: %g at %s is too large for %s, want --dtype bf16 or "
                             "f32",
                             w->from->prefix, name, value, index, dpk_dtype_name(w->dtype));
    return dpk_error_set(err, DPK_EFORMAT, "%s: tensor %s: %s at %s, wanted finite numbers",
                         w->from->prefix, name, isnan(value) ? "NaN" : "infinity", index);
}

/* Rows as float, checked. */
static int read_checked(const struct dpk_weight_plan *w, uint64_t first, uint64_t n, float *dst,
                        dpk_error *err) {
    int rc = DPK_OK;
    const size_t count = (size_t)(n * dpk_weight_units(w).row);
    DPK_TRY(dpk_weight_read_rows(w, first, n, dst, err));
    if (largest_bits(dst, count) >= overflow_bits(w->dtype))
        rc = bad_value(w, first, dst, count, err);
done:
    return rc;
}

/* Float to bfloat16 and half, round to nearest even; the values are known to fit. */
static void to_bf16(uint16_t *restrict dst, const float *restrict src, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t u = bits_of(src[i]);
        dst[i] = (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
    }
}

static void to_f16(uint16_t *restrict dst, const float *restrict src, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t u = bits_of(src[i]), a = u & 0x7fffffffu;
        const uint32_t common = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1)) >> 13;
        /* Below 2^-14 the adder does the rounding: halves have units of 2^-24 there. */
        const uint32_t small = bits_of(fabsf(src[i]) + 0.5f) - 0x3f000000u;
        dst[i] = (uint16_t)((u >> 16 & 0x8000u) | (a < 0x38800000u ? small : common));
    }
}

static void to_half(int dtype, uint16_t *dst, const float *src, size_t n) {
    if (dtype == DPK_F16) to_f16(dst, src, n);
    else to_bf16(dst, src, n);
}

/* Rows of a matrix as they go into panels: K elements each, channels padded to whole units. */
struct geometry {
    size_t taps, c, c_pad; /* K = taps * c in the source, taps * c_pad in the file */
    size_t units;          /* four-byte units of a row */
    int group;
};

static struct geometry geometry_of(const struct dpk_weight_plan *w) {
    const struct dpk_shape *s = &w->shape;
    struct geometry g = {.taps = 1, .c = (size_t)s->dim[1], .group = dpk_panel_group(w->dtype)};
    if (s->rank == 4) g.taps = (size_t)s->dim[1] * (size_t)s->dim[2], g.c = (size_t)s->dim[3];
    const size_t group = (size_t)g.group;
    g.c_pad = (g.c + group - 1) / group * group;
    g.units = g.taps * g.c_pad / group;
    return g;
}

/* One row [c][taps] to [taps][c_pad]. */
static void reorder(const struct geometry *g, const float *src, float *dst) {
    for (size_t t = 0; t < g->taps; t++) {
        float *to = dst + t * g->c_pad;
        for (size_t c = 0; c < g->c; c++) to[c] = src[c * g->taps + t];
        for (size_t c = g->c; c < g->c_pad; c++) to[c] = 0.0f;
    }
}

/* Put `n` rows of the weight, from row `first` on, into lanes lane.. of a panel. */
static int fill_lanes(const struct dpk_weight_plan *w, uint64_t first, size_t n, size_t lane,
                      uint32_t *panel, struct dpk_pack_scratch *s, dpk_error *err) {
    int rc = DPK_OK;
    const struct geometry g = geometry_of(w);
    const size_t row = g.taps * g.c, row_pad = g.taps * g.c_pad;
    DPK_TRY(grow((void **)&s->rows, &s->n_rows, n * row, sizeof(float), err));
    DPK_TRY(grow((void **)&s->order, &s->n_order, n * row_pad, sizeof(float), err));
    DPK_TRY(grow((void **)&s->half, &s->n_half, n * row_pad, sizeof(uint16_t), err));
    DPK_TRY(read_checked(w, first, n, s->rows, err));
    const float *values = s->rows;
    if (row != row_pad || g.taps > 1) {
        for (size_t i = 0; i < n; i++) reorder(&g, s->rows + i * row, s->order + i * row_pad);
        values = s->order;
    }
    const unsigned char *units = (const unsigned char *)values;
    if (g.group == 2) {
        to_half(w->dtype, s->half, values, n * row_pad);
        units = (const unsigned char *)s->half;
    }
    for (size_t u0 = 0; u0 < g.units; u0 += LANES) { /* 16 x 16 at a time, for the cache */
        const size_t u1 = u0 + LANES < g.units ? u0 + LANES : g.units;
        for (size_t i = 0; i < n; i++) {
            const unsigned char *src = units + i * g.units * 4;
            for (size_t u = u0; u < u1; u++) memcpy(&panel[u * LANES + lane + i], src + u * 4, 4);
        }
    }
done:
    return rc;
}

static int pack_panel(const struct dpk_weight_plan *w, uint64_t p, uint32_t *panel, size_t bytes,
                      struct dpk_pack_scratch *s, dpk_error *err) {
    int rc = DPK_OK;
    const bool glu = w->layout == DPK_LAYOUT_PANEL_GLU;
    const uint64_t rows = (uint64_t)w->shape.dim[0] / (glu ? 2 : 1), width = glu ? 8 : LANES;
    const uint64_t first = p * width;
    const uint64_t n = rows - first < width ? rows - first : width;
    if (n < width) memset(panel, 0, bytes);
    DPK_TRY(fill_lanes(w, first, (size_t)n, 0, panel, s, err));
    if (glu) DPK_TRY(fill_lanes(w, rows + first, (size_t)n, 8, panel, s, err));
done:
    return rc;
}

int dpk_weight_pack(const struct dpk_weight_plan *w, uint64_t first, uint64_t n, void *out,
                    struct dpk_pack_scratch *scratch, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_weight_units u = dpk_weight_units(w);
    if (w->layout != DPK_LAYOUT_RAW) {
        for (uint64_t i = 0; i < n; i++)
            DPK_TRY(pack_panel(w, first + i,
                               (uint32_t *)(void *)((unsigned char *)out + i * u.unit_bytes),
                               (size_t)u.unit_bytes, scratch, err));
        goto done;
    }
    if (w->dtype == DPK_F32) {
        DPK_TRY(read_checked(w, first, n, out, err));
        goto done;
    }
    const size_t count = (size_t)(n * u.row);
    DPK_TRY(grow((void **)&scratch->rows, &scratch->n_rows, count, sizeof(float), err));
    DPK_TRY(read_checked(w, first, n, scratch->rows, err));
    to_half(w->dtype, out, scratch->rows, count);
done:
    return rc;
}
