/* Rules of ops.def that need no input shapes: operands that must be there, ranges of attributes,
 * shapes of weights. One function an operator; a new row of ops.def does not link without one. */
#include "ops_rules.h"

#include "fail.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

int dpk_op_bad(const struct dpk_op_case *c, const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const char *layer = c->layer ? c->layer : "";
    return dpk_error_set(c->err, DPK_EFORMAT, "%s%s%.100s: %s", c->info->name, *layer ? " " : "",
                         layer, text);
}

struct dpk_shape_text dpk_shape_print(const struct dpk_shape *s) {
    struct dpk_shape_text t = {"["};
    size_t n = 1;
    for (int i = 0; i < s->rank && i < DPK_MAX_RANK; i++)
        n += (size_t)snprintf(t.s + n, sizeof t.s - n, "%s%d", i ? "," : "", s->dim[i]);
    snprintf(t.s + n, sizeof t.s - n, "]");
    return t;
}

static bool has_in(const struct dpk_op_case *c, size_t i) { return c->op->in[i] != DPK_NONE; }
static bool has_wt(const struct dpk_op_case *c, size_t i) { return c->op->wt[i] != DPK_NONE; }

/* The attributes of an operator in their struct, whatever it is called. */
#define ATTRS(name) const struct dpk_##name##_attrs *a = DPK_ATTRS(name, c->op)

static int positive_int(const struct dpk_op_case *c, const char *what, int32_t v) {
    return v >= 1 ? DPK_OK : dpk_op_bad(c, "%s is %d, want at least 1", what, v);
}

static int offset_int(const struct dpk_op_case *c, const char *what, int32_t v) {
    return v >= 0 ? DPK_OK : dpk_op_bad(c, "%s is %d, want at least 0", what, v);
}

static int positive_float(const struct dpk_op_case *c, const char *what, float v) {
    if (isfinite(v) && v > 0) return DPK_OK;
    return dpk_op_bad(c, "%s is %g, want a positive finite number", what, (double)v);
}

/* An optional vector weight has n values. */
static int vector(const struct dpk_op_case *c, size_t i, int64_t n) {
    if (!has_wt(c, i) || (c->wt[i].rank == 1 && c->wt[i].dim[0] == n)) return DPK_OK;
    return dpk_op_bad(c, "%s is %s, want [%lld]", c->info->wt[i].name, dpk_shape_print(&c->wt[i]).s,
                      (long long)n);
}

static int rank_wt(const struct dpk_op_case *c, size_t i, int rank) {
    if (c->wt[i].rank == rank) return DPK_OK;
    return dpk_op_bad(c, "%s is %s, want rank %d", c->info->wt[i].name,
                      dpk_shape_print(&c->wt[i]).s, rank);
}

static int check_linear(const struct dpk_op_case *c) {
    ATTRS(linear);
    const struct dpk_shape *w = &c->wt[DPK_WT(linear, w)];
    int rc = DPK_OK;
    DPK_TRY(rank_wt(c, DPK_WT(linear, w), 2));
    DPK_TRY(vector(c, DPK_WT(linear, b), w->dim[0]));
    DPK_TRY(offset_int(c, "gate_off", a->gate_off));
    if (a->glu && w->dim[0] % 2)
        rc = dpk_op_bad(c, "glu with w %s, want an even number of rows", dpk_shape_print(w).s);
    else if (a->gate_off && !has_in(c, DPK_IN(linear, gate)))
        rc = dpk_op_bad(c, "gate_off is %d without a gate, want 0", a->gate_off);
done:
    return rc;
}

static int check_conv2d(const struct dpk_op_case *c) {
    ATTRS(conv2d);
    const struct dpk_shape *w = &c->wt[DPK_WT(conv2d, w)];
    int rc = DPK_OK;
    DPK_TRY(rank_wt(c, DPK_WT(conv2d, w), 4));
    DPK_TRY(vector(c, DPK_WT(conv2d, b), w->dim[0]));
    DPK_TRY(positive_int(c, "stride", a->stride));
    const int32_t pads[4] = {a->pad_top, a->pad_bottom, a->pad_left, a->pad_right};
    for (int i = 0; i < 4; i++) {
        static const char *const names[4] = {"pad_top", "pad_bottom", "pad_left", "pad_right"};
        const int32_t kernel = w->dim[i < 2 ? 1 : 2];
        if (pads[i] >= 0 && pads[i] < kernel) continue;
        rc = dpk_op_bad(c, "%s is %d, want 0 to %d (kernel %d)", names[i], pads[i], kernel - 1,
                        kernel);
        goto done;
    }
    if (has_in(c, DPK_IN(conv2d, like)) && !a->upsample)
        rc = dpk_op_bad(c, "like is given without upsample");
done:
    return rc;
}

static int check_group_norm(const struct dpk_op_case *c) {
    ATTRS(group_norm);
    const struct dpk_shape *gamma = &c->wt[DPK_WT(group_norm, gamma)];
    int rc = DPK_OK;
    DPK_TRY(rank_wt(c, DPK_WT(group_norm, gamma), 1));
    DPK_TRY(vector(c, DPK_WT(group_norm, beta), gamma->dim[0]));
    DPK_TRY(positive_float(c, "eps", a->eps));
    DPK_TRY(positive_int(c, "groups", a->groups));
    if (gamma->dim[0] % a->groups)
        rc = dpk_op_bad(c, "%d groups do not divide %d channels", a->groups, gamma->dim[0]);
done:
    return rc;
}

static int check_layer_norm(const struct dpk_op_case *c) {
    ATTRS(layer_norm);
    const size_t gamma = DPK_WT(layer_norm, gamma), beta = DPK_WT(layer_norm, beta);
    int rc = DPK_OK;
    if (has_wt(c, gamma)) DPK_TRY(rank_wt(c, gamma, 1));
    if (has_wt(c, beta)) DPK_TRY(rank_wt(c, beta, 1));
    if (has_wt(c, gamma)) DPK_TRY(vector(c, beta, c->wt[gamma].dim[0]));
    DPK_TRY(positive_float(c, "eps", a->eps));
    DPK_TRY(offset_int(c, "shift_off", a->shift_off));
    DPK_TRY(offset_int(c, "scale_off", a->scale_off));
    if (a->rms && has_wt(c, beta)) rc = dpk_op_bad(c, "beta is given with rms");
    else if (!has_in(c, DPK_IN(layer_norm, mod)) && (a->shift_off || a->scale_off))
        rc = dpk_op_bad(c, "shift_off %d and scale_off %d without mod, want 0", a->shift_off,
                        a->scale_off);
done:
    return rc;
}

static int check_attention(const struct dpk_op_case *c) {
    ATTRS(attention);
    int rc = DPK_OK;
    DPK_TRY(positive_int(c, "heads", a->heads));
    DPK_TRY(positive_int(c, "head_dim", a->head_dim));
    DPK_TRY(offset_int(c, "q_off", a->q_off));
    DPK_TRY(offset_int(c, "k_off", a->k_off));
    DPK_TRY(offset_int(c, "v_off", a->v_off));
    if ((int64_t)a->heads * a->head_dim > INT32_MAX)
        rc = dpk_op_bad(c, "%d heads of %d channels are too many", a->heads, a->head_dim);
    else if (!isfinite(a->scale) || a->scale < 0)
        rc = dpk_op_bad(c, "scale is %g, want a finite number of 0 or more", (double)a->scale);
done:
    return rc;
}

static int check_embedding(const struct dpk_op_case *c) {
    const size_t table = DPK_WT(embedding, table), pos = DPK_WT(embedding, pos);
    int rc = DPK_OK;
    DPK_TRY(rank_wt(c, table, 2));
    if (!has_wt(c, pos)) goto done;
    DPK_TRY(rank_wt(c, pos, 2));
    if (c->wt[pos].dim[1] != c->wt[table].dim[1])
        rc = dpk_op_bad(c, "pos has %d channels, table %d", c->wt[pos].dim[1], c->wt[table].dim[1]);
done:
    return rc;
}

static int check_eos_pool(const struct dpk_op_case *c) {
    ATTRS(eos_pool);
    return a->eos_id >= -1 ? DPK_OK : dpk_op_bad(c, "eos_id is %d, want -1 or more", a->eos_id);
}

static int check_sinusoid(const struct dpk_op_case *c) {
    ATTRS(sinusoid);
    if (a->dim < 2 || a->dim % 2)
        return dpk_op_bad(c, "dim is %d, want a positive even number", a->dim);
    if (!(a->freq_shift >= 0 && a->freq_shift < (float)(a->dim / 2)))
        return dpk_op_bad(c, "freq_shift is %g, want 0 or more and below dim/2 = %d",
                          (double)a->freq_shift, a->dim / 2);
    return positive_float(c, "max_period", a->max_period);
}

static int check_outer_add(const struct dpk_op_case *c) {
    (void)c;
    return DPK_OK;
}

static int check_select(const struct dpk_op_case *c) {
    (void)c;
    return DPK_OK;
}

static int check_concat(const struct dpk_op_case *c) {
    (void)c;
    return DPK_OK;
}

static int check_slice(const struct dpk_op_case *c) {
    ATTRS(slice);
    int rc = DPK_OK;
    DPK_TRY(offset_int(c, "off", a->off));
    DPK_TRY(offset_int(c, "count", a->count));
    if (!isfinite(a->mul) || !isfinite(a->add))
        rc = dpk_op_bad(c, "mul is %g and add is %g, want finite numbers", (double)a->mul,
                        (double)a->add);
    else if (!(a->lo <= a->hi))
        rc = dpk_op_bad(c, "lo is %g and hi is %g, want lo <= hi", (double)a->lo, (double)a->hi);
done:
    return rc;
}

static int check_add(const struct dpk_op_case *c) {
    const size_t table = DPK_WT(add, table);
    if (has_in(c, DPK_IN(add, c)) == has_wt(c, table))
        return dpk_op_bad(c, "want either c or table");
    return has_wt(c, table) ? rank_wt(c, table, 1) : DPK_OK;
}

static int check_pos_embed_2d(const struct dpk_op_case *c) {
    ATTRS(pos_embed_2d);
    int rc = DPK_OK;
    DPK_TRY(positive_int(c, "base", a->base));
    DPK_TRY(positive_float(c, "interpolation", a->interpolation));
done:
    return rc;
}

static int check_unpatchify(const struct dpk_op_case *c) {
    ATTRS(unpatchify);
    return positive_int(c, "patch", a->patch);
}

static int check_relative_bias(const struct dpk_op_case *c) {
    ATTRS(relative_bias);
    const struct dpk_shape *table = &c->wt[DPK_WT(relative_bias, table)];
    int rc = DPK_OK;
    DPK_TRY(rank_wt(c, DPK_WT(relative_bias, table), 2));
    if (a->buckets < 4 || a->buckets % 2)
        rc = dpk_op_bad(c, "buckets is %d, want an even number of 4 or more", a->buckets);
    else if (a->buckets != table->dim[0])
        rc = dpk_op_bad(c, "buckets is %d, table is %s", a->buckets, dpk_shape_print(table).s);
    else if (a->max_distance <= a->buckets / 4)
        rc = dpk_op_bad(c, "max_distance is %d, want more than buckets/4 = %d", a->max_distance,
                        a->buckets / 4);
done:
    return rc;
}

/* Rules that hold for every operator, from the table. */
static int check_common(const struct dpk_op_case *c) {
    const struct dpk_op_info *info = c->info;
    for (int i = 0; i < info->n_in; i++)
        if (!has_in(c, (size_t)i) && !info->in[i].optional)
            return dpk_op_bad(c, "input %s is missing", info->in[i].name);
    for (int i = 0; i < info->n_wt; i++) {
        if (has_wt(c, (size_t)i)) {
            if (dpk_shape_count(&c->wt[i]) == 0)
                return dpk_op_bad(c, "weight %s has the shape %s", info->wt[i].name,
                                  dpk_shape_print(&c->wt[i]).s);
        } else if (!info->wt[i].optional) {
            return dpk_op_bad(c, "weight %s is missing", info->wt[i].name);
        }
    }
    for (int i = 0; i < info->n_attr; i++) {
        const int32_t v = c->op->attr[i].i;
        const char *name = info->attr[i].name;
        switch (info->attr[i].kind) {
        case 'b':
            if (v != 0 && v != 1) return dpk_op_bad(c, "%s is %d, want 0 or 1", name, v);
            break;
        case 'a':
            if (v < 0 || v >= DPK_N_ACTS)
                return dpk_op_bad(c, "%s is %d, want 0 to %d", name, v, DPK_N_ACTS - 1);
            break;
        case 'f':
            if (isnan(c->op->attr[i].f)) return dpk_op_bad(c, "%s is not a number", name);
            break;
        default:
            break;
        }
    }
    return DPK_OK;
}

int dpk_op_check(const struct dpk_op *op, const char *layer, const struct dpk_shape wt[DPK_MAX_WT],
                 dpk_error *err) {
    static int (*const checks[DPK_N_OPCODES])(const struct dpk_op_case *) = {
#define DPK_OP(number, name, ins, wts, attrs) [number] = check_##name,
#include "ops.def"
#undef DPK_OP
    };
    const struct dpk_op_case c = {
        .op = op, .info = dpk_op_info_get(op->opcode), .layer = layer, .wt = wt, .err = err};
    if (!c.info)
        return dpk_error_set(err, DPK_EFORMAT, "opcode %u is unknown", (unsigned)op->opcode);
    const int rc = check_common(&c);
    return rc == DPK_OK ? checks[op->opcode](&c) : rc;
}
