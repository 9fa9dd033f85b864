#include "weights.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Components ------------------------------------------------------------------------------ */

void dpk_component_close(struct dpk_component *c) {
    dpk_tensors_close(c->tensors);
    free(c->normal);
    memset(c, 0, sizeof *c);
}

struct dpk_tensor_info *dpk_component_find(const struct dpk_component *c, const char *name) {
    struct dpk_tensor_info *info = dpk_tensors_find(c->tensors, name);
    for (const struct dpk_rename *r = c->renames; !info && r && r->ours; r++) {
        const char *at = strstr(name, r->ours);
        char other[512];
        if (!at) continue;
        const int n = snprintf(other, sizeof other, "%.*s%s%s", (int)(at - name), name, r->theirs,
                               at + strlen(r->ours));
        if (n > 0 && (size_t)n < sizeof other) info = dpk_tensors_find(c->tensors, other);
    }
    return info;
}

static const char *shape_text(int rank, const uint64_t *dim, char buf[64]) {
    struct dpk_tensor_info info = {.rank = rank};
    memcpy(info.dim, dim, (size_t)rank * sizeof *dim);
    return dpk_tensor_shape_text(&info, buf, 64);
}

static bool is_float(int dtype) {
    return dtype == DPK_ST_F32 || dtype == DPK_ST_F16 || dtype == DPK_ST_BF16 ||
           dtype == DPK_ST_F64;
}

/* The dimensions are the same, or a matrix with two more of size 1. */
static bool same_shape(const struct dpk_tensor_info *info, int rank, const uint64_t *dim) {
    for (int i = 0; i < rank && i < info->rank; i++)
        if (info->dim[i] != dim[i]) return false;
    return info->rank == rank ||
           (rank == 2 && info->rank == 4 && info->dim[2] == 1 && info->dim[3] == 1);
}

int dpk_component_want(struct dpk_component *c, const char *name, int rank, const uint64_t *dim,
                       struct dpk_tensor_info **info, dpk_error *err) {
    int rc = DPK_OK;
    char want[64], found[64];
    uint64_t n = 1;
    for (int i = 0; i < rank; i++) n *= dim[i]; /* below 2^40, see dpk_weight_plan_make */
    c->n_params += n;
    c->n_tensors++;
    *info = NULL;
    if (!c->tensors) goto done;
    struct dpk_tensor_info *t = dpk_component_find(c, name);
    if (!t)
        DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s is missing (wanted %s)", c->prefix, name,
                 shape_text(rank, dim, want));
    if (!same_shape(t, rank, dim))
        DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s: found %s %s, wanted %s", c->prefix, t->name,
                 dpk_tensor_shape_text(t, found, sizeof found), dpk_st_dtype_name(t->dtype),
                 shape_text(rank, dim, want));
    if (!is_float(t->dtype))
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: tensor %s is %s, wanted F32, F16, BF16 or F64",
                 c->prefix, t->name, dpk_st_dtype_name(t->dtype));
    t->used = 1;
    *info = t;
done:
    return rc;
}

static bool ignorable(const char *name) {
    const size_t n = strlen(name);
    static const char ids[] = "position_ids";
    if (n >= sizeof ids - 1 && strcmp(name + n - (sizeof ids - 1), ids) == 0) return true;
    return strcmp(name, "logit_scale") == 0 || strcmp(name, "encoder.embed_tokens.weight") == 0 ||
           strncmp(name, "model_ema.", 10) == 0;
}

int dpk_component_check_used(const struct dpk_component *c, dpk_error *err) {
    int rc = DPK_OK;
    char list[256] = "";
    size_t n_unused = 0, at = 0;
    for (size_t i = 0; c->tensors && i < dpk_tensors_count(c->tensors); i++) {
        const struct dpk_tensor_info *t = dpk_tensors_get(c->tensors, i);
        if (t->used || ignorable(t->name)) continue;
        if (n_unused++ < 3 && at < sizeof list)
            at +=
                (size_t)snprintf(list + at, sizeof list - at, "%s%.100s", at ? ", " : "", t->name);
    }
    if (n_unused)
        DPK_FAIL(err, DPK_EFORMAT, "%s: found %zu tensor%s that the config has no place for: %s%s",
                 c->prefix, n_unused, n_unused == 1 ? "" : "s", list, n_unused > 3 ? ", ..." : "");
done:
    return rc;
}

/* ---- Plans ----------------------------------------------------------------------------------- */

void dpk_weight_plan_free(struct dpk_weight_plan *w) {
    free(w->name);
    free(w->source);
    for (int i = 0; i < w->n_parts; i++) free(w->part[i].name);
    memset(w, 0, sizeof *w);
}

/* The name of part `sub` of a fused layer: the layer's with its last component replaced. */
static char *part_name(const struct dpk_weight_want *want, const char *sub) {
    const char *dot = strrchr(want->layer, '.');
    const size_t parent = sub ? (dot ? (size_t)(dot + 1 - want->layer) : 0) : strlen(want->layer);
    char *name = NULL;
    if (asprintf(&name, "%.*s%s%s%s", (int)parent, want->layer, sub ? sub : "",
                 want->suffix ? "." : "", want->suffix ? want->suffix : "") < 0)
        return NULL;
    return name;
}

/* Dimensions of a part in the source's order: [N,K], [N,C,kh,kw], [n]. */
static int source_shape(const struct dpk_weight_want *want, int n_parts, uint64_t dim[4]) {
    const struct dpk_shape *s = &want->shape;
    for (int i = 0; i < s->rank; i++) dim[i] = (uint64_t)s->dim[i];
    if (s->rank == 4) {
        dim[1] = (uint64_t)s->dim[3];
        dim[2] = (uint64_t)s->dim[1];
        dim[3] = (uint64_t)s->dim[2];
    }
    dim[0] /= (uint64_t)n_parts;
    if (want->table_rows) {
        dim[1] = dim[0] / (uint64_t)want->table_rows;
        dim[0] = (uint64_t)want->table_rows;
        return 2;
    }
    return s->rank;
}

int dpk_weight_plan_make(struct dpk_weight_plan *w, struct dpk_component *from,
                         const struct dpk_weight_want *want, dpk_error *err) {
    int rc = DPK_OK;
    uint64_t dim[4];
    char *list = NULL;
    memset(w, 0, sizeof *w);
    w->from = from;
    w->role = want->role, w->dtype = want->dtype, w->layout = want->layout;
    w->flags = want->flags;
    w->shape = want->shape;
    w->number = DPK_NONE;
    if (dpk_weight_bytes(w->dtype, w->layout, &w->shape) == 0)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: layer %s is empty or too large", from->prefix,
                 want->layer);
    int n_parts = 0;
    while (want->stack && n_parts < DPK_MAX_PARTS && want->stack[n_parts]) n_parts++;
    const bool stacked = n_parts > 0;
    if (!stacked) n_parts = 1;
    const int rank = source_shape(want, n_parts, dim);
    const char *prefix = from->prefix;
    if (asprintf(&w->name, "%s.%s%s%s", prefix, want->layer, want->suffix ? "." : "",
                 want->suffix ? want->suffix : "") < 0) {
        w->name = NULL;
        DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", prefix);
    }
    if (strlen(w->name) > DPK_MAX_NAME)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: the name of layer %.60s... is too long", prefix,
                 want->layer);
    for (int i = 0; i < n_parts; i++) {
        struct dpk_weight_part *part = &w->part[i];
        part->name = part_name(want, stacked ? want->stack[i] : NULL);
        w->n_parts = i + 1;
        if (!part->name) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", prefix);
        DPK_TRY(dpk_component_want(from, part->name, rank, dim, &part->info, err));
        const int n = asprintf(&list, "%s%s%s.%s", w->source ? w->source : "", w->source ? " " : "",
                               prefix, part->info ? part->info->name : part->name);
        if (n < 0) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", prefix);
        free(w->source);
        w->source = list;
    }
done:
    if (rc != DPK_OK) dpk_weight_plan_free(w);
    return rc;
}

/* ---- Values ---------------------------------------------------------------------------------- */

struct dpk_weight_units dpk_weight_units(const struct dpk_weight_plan *w) {
    const struct dpk_shape *s = &w->shape;
    struct dpk_weight_units u = {.unit_rows = 1, .n_units = 1, .row = 1};
    const uint64_t bytes = dpk_weight_bytes(w->dtype, w->layout, s);
    for (int i = s->rank == 1 ? 0 : 1; i < s->rank; i++) u.row *= (uint64_t)s->dim[i];
    const uint64_t rows = s->rank == 1 ? 1 : (uint64_t)s->dim[0];
    if (w->layout == DPK_LAYOUT_RAW) {
        u.n_units = rows;
    } else {
        u.unit_rows = 16;
        u.n_units = w->layout == DPK_LAYOUT_PANEL_GLU ? (rows / 2 + 7) / 8 : (rows + 15) / 16;
    }
    u.unit_bytes = bytes / u.n_units;
    return u;
}

static void draw(const struct dpk_weight_plan *w, const struct dpk_weight_part *part,
                 uint64_t first, size_t n, float *dst) {
    char name[2 * DPK_MAX_PARTS + 600];
    float mean = 0.0f, deviation = 0.02f;
    if (w->role == DPK_ROLE_MATRIX) deviation = 1.0f / sqrtf((float)dpk_weight_units(w).row);
    else if (w->role == DPK_ROLE_GAMMA) mean = 1.0f, deviation = 0.1f;
    snprintf(name, sizeof name, "%s.%s", w->from->prefix, part->name);
    dpk_random_fill(w->from->normal, name, w->from->seed, first, n, mean, deviation, dst);
}

int dpk_weight_read_rows(const struct dpk_weight_plan *w, uint64_t first, uint64_t n, float *dst,
                         dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_weight_units u = dpk_weight_units(w);
    /* A vector counts as one row; a stacked one is read part by part. */
    const bool vector = w->shape.rank == 1;
    const uint64_t step = vector ? 1 : u.row;
    const uint64_t part_rows = (uint64_t)w->shape.dim[0] / (uint64_t)w->n_parts;
    uint64_t row = vector ? 0 : first, end = vector ? u.row : first + n;
    while (row < end) {
        const struct dpk_weight_part *part = &w->part[row / part_rows];
        const uint64_t at = row % part_rows;
        uint64_t count = part_rows - at;
        if (count > end - row) count = end - row;
        if (w->from->tensors)
            DPK_TRY(dpk_tensors_read_f32(w->from->tensors, part->info, at * step,
                                         (size_t)(count * step), dst, err));
        else draw(w, part, at * step, (size_t)(count * step), dst);
        dst += count * step;
        row += count;
    }
done:
    return rc;
}
