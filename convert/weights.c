#include "weights.h"

#include "ldm.h"
#include "lora.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Components ------------------------------------------------------------------------------ */

void dpk_component_close(struct dpk_component *c) {
    if (!c->names) dpk_tensors_close(c->tensors);
    for (uint64_t i = 0; i < c->n_tensors; i++) free(c->asked[i].name);
    free(c->asked);
    free(c->normal);
    memset(c, 0, sizeof *c);
}

/* "model_ema." and the name without its first word and its dots, as CompVis' LitEma names buffers.
 */
static struct dpk_tensor_info *find_average(const struct dpk_component *c, const char *full) {
    char name[DPK_MAX_NAME + 80] = "model_ema.";
    const char *from = strchr(full, '.');
    size_t n = strlen(name);
    if (!from) return NULL;
    for (; *from && n + 1 < sizeof name; from++)
        if (*from != '.') name[n++] = *from;
    name[n] = 0;
    return dpk_tensors_find(c->tensors, name);
}

static void find_in_checkpoint(const struct dpk_component *c, const char *name, uint64_t rows,
                               struct dpk_weight_part *part) {
    struct dpk_place place = {.n_parts = 1};
    char full[DPK_MAX_NAME + 80];
    for (int i = 0; !part->info && c->names->place(c->names, name, i, &place); i++) {
        snprintf(full, sizeof full, "%s%s", c->names->prefix, place.name);
        struct dpk_tensor_info *info = dpk_tensors_find(c->tensors, full);
        if (info && c->names->ema) {
            info->used = 1; /* its average stands for it */
            info = find_average(c, full);
        }
        part->info = info;
        part->n_parts = place.n_parts;
        part->first_row = rows * (uint64_t)place.part;
        part->transposed = place.transposed;
    }
}

void dpk_component_find(const struct dpk_component *c, const char *name, uint64_t rows,
                        struct dpk_weight_part *part) {
    part->info = NULL;
    part->n_parts = 1;
    part->first_row = 0;
    part->transposed = false;
    if (c->names) {
        find_in_checkpoint(c, name, rows, part);
        return;
    }
    part->info = dpk_tensors_find(c->tensors, name);
    for (const struct dpk_rename *r = c->renames; !part->info && r && r->ours; r++) {
        const char *at = strstr(name, r->ours);
        char other[512];
        if (!at) continue;
        const int n = snprintf(other, sizeof other, "%.*s%s%s", (int)(at - name), name, r->theirs,
                               at + strlen(r->ours));
        if (n > 0 && (size_t)n < sizeof other) part->info = dpk_tensors_find(c->tensors, other);
    }
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

/* The dimensions are the same, or a matrix with two more of size 1; the tensor is taller if only
 * part of it is meant. */
static bool same_shape(const struct dpk_weight_part *part, int rank, const uint64_t *dim) {
    const struct dpk_tensor_info *info = part->info;
    if (info->rank != rank &&
        !(rank == 2 && info->rank == 4 && info->dim[2] == 1 && info->dim[3] == 1))
        return false;
    if (part->transposed) return rank == 2 && info->dim[0] == dim[1] && info->dim[1] == dim[0];
    for (int i = 1; i < rank; i++)
        if (info->dim[i] != dim[i]) return false;
    return info->dim[0] == dim[0] * (uint64_t)part->n_parts;
}

static int remember(struct dpk_component *c, const char *name, int rank, const uint64_t *dim,
                    dpk_error *err) {
    if (c->n_tensors == c->room_asked) {
        const size_t room = c->room_asked ? 2 * c->room_asked : 256;
        struct dpk_asked *more = realloc(c->asked, room * sizeof *more);
        if (!more) return dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", c->prefix);
        c->asked = more;
        c->room_asked = room;
    }
    struct dpk_asked *a = &c->asked[c->n_tensors];
    a->name = strdup(name);
    if (!a->name) return dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", c->prefix);
    a->rank = rank;
    memcpy(a->dim, dim, (size_t)rank * sizeof *dim);
    c->n_tensors++;
    return DPK_OK;
}

int dpk_component_want(struct dpk_component *c, const char *name, int rank, const uint64_t *dim,
                       struct dpk_weight_part *part, dpk_error *err) {
    int rc = DPK_OK;
    char want[64], found[64];
    uint64_t n = 1;
    for (int i = 0; i < rank; i++) n *= dim[i]; /* below 2^40, see dpk_weight_plan_make */
    DPK_TRY(remember(c, name, rank, dim, err));
    c->n_params += n;
    part->info = NULL;
    if (!c->tensors) goto done;
    dpk_component_find(c, name, dim[0], part);
    struct dpk_tensor_info *t = part->info;
    if (!t)
        DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s is missing%s (wanted %s)", c->prefix, name,
                 c->names && c->names->ema ? " among the running averages" : "",
                 shape_text(rank, dim, want));
    if (!same_shape(part, rank, dim))
        DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s: found %s %s, wanted %s", c->prefix, t->name,
                 dpk_tensor_shape_text(t, found, sizeof found), dpk_st_dtype_name(t->dtype),
                 shape_text(rank, dim, want));
    if (!is_float(t->dtype))
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: tensor %s is %s, wanted F32, F16, BF16 or F64",
                 c->prefix, t->name, dpk_st_dtype_name(t->dtype));
    t->used = 1;
done:
    return rc;
}

static bool ignorable(const char *name) {
    /* buffers; tied copies; and what PixArt's own checkpoints have to train with */
    static const char *const names[] = {"logit_scale", "encoder.embed_tokens.weight", "pos_embed",
                                        "y_embedder.y_embedding"};
    static const char ids[] = "position_ids";
    const size_t n = strlen(name);
    if (n >= sizeof ids - 1 && strcmp(name + n - (sizeof ids - 1), ids) == 0) return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return strncmp(name, "model_ema.", 10) == 0 || strncmp(name, "loss.", 5) == 0;
}

int dpk_component_check_used(const struct dpk_component *c, dpk_error *err) {
    int rc = DPK_OK;
    char list[256] = "";
    size_t n_unused = 0, at = 0;
    const char *prefix = c->names ? c->names->prefix : "";
    for (size_t i = 0; c->tensors && i < dpk_tensors_count(c->tensors); i++) {
        const struct dpk_tensor_info *t = dpk_tensors_get(c->tensors, i);
        if (t->used || strncmp(t->name, prefix, strlen(prefix)) != 0) continue;
        const char *name = t->name + strlen(prefix);
        /* Tools write it for every CLIP, whether or not the model projects. */
        if (c->names && strcmp(name, "text_projection.weight") == 0) continue;
        if (ignorable(name)) continue;
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
        DPK_TRY(dpk_component_want(from, part->name, rank, dim, part, err));
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
    struct dpk_weight_units u = {.n_units = 1, .row = 1};
    const uint64_t bytes = dpk_weight_bytes(w->dtype, w->layout, s);
    for (int i = s->rank == 1 ? 0 : 1; i < s->rank; i++) u.row *= (uint64_t)s->dim[i];
    const uint64_t rows = s->rank == 1 ? 1 : (uint64_t)s->dim[0];
    if (w->layout == DPK_LAYOUT_RAW) u.n_units = rows;
    else if (w->layout == DPK_LAYOUT_PANEL_GLU) u.n_units = (rows / 2 + 7) / 8;
    else u.n_units = (rows + 15) / 16;
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

/* Elements of `count` rows of `step`, from row `at` of the tensor on. */
static int read_stored(const struct dpk_weight_plan *w, const struct dpk_weight_part *part,
                       uint64_t at, uint64_t count, uint64_t step, float *dst, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_tensors *tensors = w->from->tensors;
    float column[256];
    if (!part->transposed) {
        rc = dpk_tensors_read_f32(tensors, part->info, (part->first_row + at) * step,
                                  (size_t)(count * step), dst, err);
        goto done;
    }
    const uint64_t width = part->info->dim[1];
    for (uint64_t k = 0; k < step; k++)
        for (uint64_t i = 0; i < count; i += 256) {
            const size_t n = count - i < 256 ? (size_t)(count - i) : 256;
            DPK_TRY(dpk_tensors_read_f32(tensors, part->info, k * width + at + i, n, column, err));
            for (size_t j = 0; j < n; j++) dst[(i + j) * step + k] = column[j];
        }
done:
    return rc;
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
        if (w->from->tensors) DPK_TRY(read_stored(w, part, at, count, step, dst, err));
        else draw(w, part, at * step, (size_t)(count * step), dst);
        if (w->from->lora && !vector)
            DPK_TRY(dpk_lora_apply(w->from->lora, w->from, part->name, at, count, (size_t)step, dst,
                                   err));
        dst += count * step;
        row += count;
    }
done:
    return rc;
}
