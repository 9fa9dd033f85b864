/* Shape rules of ops.def. One function an operator; what needs no input shapes is in ops_check.c
 * and was checked before these run. */
#include "ops_rules.h"

#include "fail.h"

#define TEXT(shape) (dpk_shape_print(shape).s)

static bool has(const struct dpk_op_case *c, size_t i) { return c->op->in[i] != DPK_NONE; }

static int32_t last(const struct dpk_shape *s) { return s->dim[s->rank - 1]; }

static bool same(const struct dpk_shape *a, const struct dpk_shape *b) {
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

static bool same_leading(const struct dpk_shape *a, const struct dpk_shape *b) {
    if (a->rank != b->rank) return false;
    for (int i = 0; i + 1 < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

static int want_rank(const struct dpk_op_case *c, size_t i, int lo, int hi) {
    if (c->in[i].rank >= lo && c->in[i].rank <= hi) return DPK_OK;
    return dpk_op_bad(c, "%s is %s, want rank %d to %d", c->info->in[i].name, TEXT(&c->in[i]), lo,
                      hi);
}

static int want_same(const struct dpk_op_case *c, size_t i, const struct dpk_shape *want) {
    if (!has(c, i) || same(&c->in[i], want)) return DPK_OK;
    return dpk_op_bad(c, "%s is %s, want %s", c->info->in[i].name, TEXT(&c->in[i]), TEXT(want));
}

/* Set the last dimension of `out`, which may not fit. */
static int set_dim(const struct dpk_op_case *c, struct dpk_shape *out, int i, int64_t dim) {
    if (dim < 1 || dim > INT32_MAX)
        return dpk_op_bad(c, "dimension %d of the result is %lld", i, (long long)dim);
    out->dim[i] = (int32_t)dim;
    return DPK_OK;
}

/* Input i holds per-image rows: [B, M] or [1, M] with at least `end` channels. */
static int want_rows(const struct dpk_op_case *c, size_t i, int32_t batch, int64_t end) {
    const struct dpk_shape *s = &c->in[i];
    if (s->rank == 2 && (s->dim[0] == batch || s->dim[0] == 1) && s->dim[1] >= end) return DPK_OK;
    return dpk_op_bad(c, "%s is %s, want [%d or 1, at least %lld]", c->info->in[i].name, TEXT(s),
                      batch, (long long)end);
}

/* Channels of concat(x, x2), which must be `want`. */
static int want_channels(const struct dpk_op_case *c, size_t x, size_t x2, int64_t want,
                         const char *whose) {
    int64_t channels = last(&c->in[x]);
    if (has(c, x2)) {
        if (!same_leading(&c->in[x], &c->in[x2]))
            return dpk_op_bad(c, "x2 is %s, x is %s: only the last dimension may differ",
                              TEXT(&c->in[x2]), TEXT(&c->in[x]));
        channels += last(&c->in[x2]);
    }
    if (channels == want) return DPK_OK;
    return dpk_op_bad(c, "%s has %lld channels, %s wants %lld", has(c, x2) ? "concat(x, x2)" : "x",
                      (long long)channels, whose, (long long)want);
}

static int shape_linear(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_linear_attrs *a = DPK_ATTRS(linear, c->op);
    const struct dpk_shape *x = &c->in[DPK_IN(linear, x)], *w = &c->wt[DPK_WT(linear, w)];
    const size_t gate = DPK_IN(linear, gate);
    int rc = DPK_OK;
    DPK_TRY(want_channels(c, DPK_IN(linear, x), DPK_IN(linear, x2), w->dim[1], "w"));
    *out = *x;
    DPK_TRY(set_dim(c, out, x->rank - 1, a->glu ? w->dim[0] / 2 : w->dim[0]));
    DPK_TRY(want_same(c, DPK_IN(linear, residual), out));
    if (has(c, gate)) {
        DPK_TRY(want_rank(c, DPK_IN(linear, x), 2, DPK_MAX_RANK));
        DPK_TRY(want_rows(c, gate, x->dim[0], (int64_t)a->gate_off + last(out)));
    }
done:
    return rc;
}

static int shape_conv2d(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_conv2d_attrs *a = DPK_ATTRS(conv2d, c->op);
    const struct dpk_shape *x = &c->in[DPK_IN(conv2d, x)], *w = &c->wt[DPK_WT(conv2d, w)];
    const struct dpk_shape *like = &c->in[DPK_IN(conv2d, like)];
    const size_t temb = DPK_IN(conv2d, temb);
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, DPK_IN(conv2d, x), 4, 4));
    if (x->dim[3] != w->dim[3]) {
        rc = dpk_op_bad(c, "x has %d channels, w wants %d", x->dim[3], w->dim[3]);
        goto done;
    }
    *out = *x;
    DPK_TRY(set_dim(c, out, 3, w->dim[0]));
    for (int i = 0; i < 2; i++) { /* height, width */
        int64_t size = x->dim[1 + i];
        if (has(c, DPK_IN(conv2d, like))) {
            if (like->rank != 4 || like->dim[0] != x->dim[0] || like->dim[1 + i] < size) {
                rc = dpk_op_bad(c, "like is %s, want rank 4, x's batch and at least x's size %s",
                                TEXT(like), TEXT(x));
                goto done;
            }
            size = like->dim[1 + i];
        } else if (a->upsample) {
            size *= 2;
        }
        if (size > INT32_MAX) {
            rc = dpk_op_bad(c, "x %s is too large to enlarge", TEXT(x));
            goto done;
        }
        const int64_t padded =
            size + (i ? a->pad_left : a->pad_top) + (int64_t)(i ? a->pad_right : a->pad_bottom);
        if (padded < w->dim[1 + i]) {
            rc = dpk_op_bad(c, "x %s with its padding is smaller than the kernel %dx%d", TEXT(x),
                            w->dim[1], w->dim[2]);
            goto done;
        }
        DPK_TRY(set_dim(c, out, 1 + i, (padded - w->dim[1 + i]) / a->stride + 1));
    }
    DPK_TRY(want_same(c, DPK_IN(conv2d, residual), out));
    if (has(c, temb)) {
        DPK_TRY(want_rows(c, temb, x->dim[0], out->dim[3]));
        if (c->in[temb].dim[1] != out->dim[3])
            rc = dpk_op_bad(c, "temb is %s, want %d channels", TEXT(&c->in[temb]), out->dim[3]);
    }
done:
    return rc;
}

static int shape_group_norm(const struct dpk_op_case *c, struct dpk_shape *out) {
    const size_t x = DPK_IN(group_norm, x), x2 = DPK_IN(group_norm, x2);
    const int32_t channels = c->wt[DPK_WT(group_norm, gamma)].dim[0];
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, x, 2, DPK_MAX_RANK));
    DPK_TRY(want_channels(c, x, x2, channels, "gamma"));
    *out = c->in[x];
    DPK_TRY(set_dim(c, out, out->rank - 1, channels));
done:
    return rc;
}

static int shape_layer_norm(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_layer_norm_attrs *a = DPK_ATTRS(layer_norm, c->op);
    const struct dpk_shape *x = &c->in[DPK_IN(layer_norm, x)];
    int rc = DPK_OK;
    for (size_t i = 0; i < 2; i++) /* gamma, beta */
        if (c->op->wt[i] != DPK_NONE && c->wt[i].dim[0] != last(x)) {
            rc = dpk_op_bad(c, "x has %d channels, %s wants %d", last(x), c->info->wt[i].name,
                            c->wt[i].dim[0]);
            goto done;
        }
    if (has(c, DPK_IN(layer_norm, mod))) {
        const int64_t off = a->shift_off > a->scale_off ? a->shift_off : a->scale_off;
        DPK_TRY(want_rank(c, DPK_IN(layer_norm, x), 2, DPK_MAX_RANK));
        DPK_TRY(want_rows(c, DPK_IN(layer_norm, mod), x->dim[0], off + last(x)));
    }
    *out = *x;
done:
    return rc;
}

/* [B, L, C] or [B, H, W, C]: L or H*W. */
static int64_t tokens(const struct dpk_shape *s) {
    return s->rank == 4 ? (int64_t)s->dim[1] * s->dim[2] : s->dim[1];
}

static int shape_attention(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_attention_attrs *a = DPK_ATTRS(attention, c->op);
    const struct dpk_shape *q = &c->in[0], *k = &c->in[1], *v = &c->in[2];
    const int64_t channels = (int64_t)a->heads * a->head_dim;
    const int32_t offs[3] = {a->q_off, a->k_off, a->v_off};
    const size_t mask = DPK_IN(attention, mask), bias = DPK_IN(attention, bias);
    int rc = DPK_OK;
    for (size_t i = 0; i < 3; i++) {
        DPK_TRY(want_rank(c, i, 3, 4));
        if (offs[i] + channels > last(&c->in[i])) {
            rc = dpk_op_bad(c, "%s is %s, want at least %lld channels (%d + %d heads of %d)",
                            c->info->in[i].name, TEXT(&c->in[i]), (long long)(offs[i] + channels),
                            offs[i], a->heads, a->head_dim);
            goto done;
        }
    }
    if (k->dim[0] != q->dim[0] || v->dim[0] != q->dim[0] || tokens(k) != tokens(v)) {
        rc = dpk_op_bad(c, "q is %s, k %s, v %s: want one batch, and k and v of one length",
                        TEXT(q), TEXT(k), TEXT(v));
        goto done;
    }
    const struct dpk_shape *m = &c->in[mask], *b = &c->in[bias];
    if (has(c, mask) && (m->rank != 2 || m->dim[0] != q->dim[0] || m->dim[1] != tokens(k))) {
        rc = dpk_op_bad(c, "mask is %s, want [%d,%lld]", TEXT(m), q->dim[0], (long long)tokens(k));
        goto done;
    }
    if (has(c, bias) && (b->rank != 3 || b->dim[0] != a->heads || b->dim[1] != tokens(q) ||
                         b->dim[2] != tokens(k))) {
        rc = dpk_op_bad(c, "bias is %s, want [%d,%lld,%lld]", TEXT(b), a->heads,
                        (long long)tokens(q), (long long)tokens(k));
        goto done;
    }
    *out = *q;
    DPK_TRY(set_dim(c, out, q->rank - 1, channels));
done:
    return rc;
}

static int shape_embedding(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *ids = &c->in[0], *table = &c->wt[DPK_WT(embedding, table)];
    const size_t pos = DPK_WT(embedding, pos);
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, 0, 2, 2));
    if (c->op->wt[pos] != DPK_NONE && ids->dim[1] > c->wt[pos].dim[0]) {
        rc = dpk_op_bad(c, "%d ids, only %d positions", ids->dim[1], c->wt[pos].dim[0]);
        goto done;
    }
    *out = (struct dpk_shape){3, {ids->dim[0], ids->dim[1], table->dim[1]}};
done:
    return rc;
}

static int shape_eos_pool(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *x = &c->in[0];
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, 0, 3, 3));
    DPK_TRY(want_same(c, 1, &(struct dpk_shape){2, {x->dim[0], x->dim[1]}}));
    *out = (struct dpk_shape){2, {x->dim[0], x->dim[2]}};
done:
    return rc;
}

static int shape_sinusoid(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *t = &c->in[0];
    const int64_t dim = DPK_ATTRS(sinusoid, c->op)->dim;
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, 0, 1, 2));
    *out = (struct dpk_shape){2, {t->dim[0]}};
    DPK_TRY(set_dim(c, out, 1, t->rank == 2 ? t->dim[1] * dim : dim));
done:
    return rc;
}

static int shape_outer_add(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *a = &c->in[0], *b = &c->in[1];
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, 0, 2, 2));
    DPK_TRY(want_rank(c, 1, 2, 2));
    if (a->dim[1] != b->dim[1]) {
        rc = dpk_op_bad(c, "a has %d channels, c %d", a->dim[1], b->dim[1]);
        goto done;
    }
    *out = (struct dpk_shape){3, {a->dim[0], b->dim[0], a->dim[1]}};
done:
    return rc;
}

static int shape_select(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *x = &c->in[0];
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, 0, 2, DPK_MAX_RANK));
    DPK_TRY(want_same(c, 1, &(struct dpk_shape){1, {1}}));
    *out = *x;
    out->dim[0] = 1;
    if (x->rank == 2) goto done;
    out->rank = x->rank - 1;
    for (int i = 0; i < DPK_MAX_RANK; i++) out->dim[i] = i < out->rank ? x->dim[i + 1] : 0;
done:
    return rc;
}

static int shape_concat(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *a = &c->in[0], *b = &c->in[1];
    if (!same_leading(a, b))
        return dpk_op_bad(c, "a is %s, c is %s: only the last dimension may differ", TEXT(a),
                          TEXT(b));
    *out = *a;
    return set_dim(c, out, a->rank - 1, (int64_t)last(a) + last(b));
}

static int shape_slice(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_slice_attrs *a = DPK_ATTRS(slice, c->op);
    const struct dpk_shape *x = &c->in[0];
    const int64_t count = a->count ? a->count : (int64_t)last(x) - a->off;
    if (count < 1 || a->off + count > last(x))
        return dpk_op_bad(c, "off %d and count %d on %s", a->off, a->count, TEXT(x));
    *out = *x;
    return set_dim(c, out, x->rank - 1, count);
}

static int shape_add(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *a = &c->in[0], *b = &c->in[DPK_IN(add, c)];
    *out = *a;
    if (!has(c, DPK_IN(add, c))) {
        const int64_t n = c->wt[DPK_WT(add, table)].dim[0];
        int64_t product = 1;
        for (int i = a->rank - 1; i >= 0 && product < n; i--) product *= a->dim[i];
        if (product == n) return DPK_OK;
        return dpk_op_bad(c, "table has %lld values, which is no product of the last of %s",
                          (long long)n, TEXT(a));
    }
    bool fits = b->rank <= a->rank;
    for (int i = 0; fits && i < b->rank; i++) {
        const int32_t want = a->dim[a->rank - b->rank + i];
        fits = b->dim[i] == want || (i == 0 && b->rank == a->rank && b->dim[0] == 1);
    }
    if (fits) return DPK_OK;
    return dpk_op_bad(c, "c is %s, want %s, its last dimensions, or 1 for its first", TEXT(b),
                      TEXT(a));
}

static int shape_pos_embed_2d(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *x = &c->in[0];
    *out = *x;
    if (x->rank == 4 && x->dim[3] % 4 == 0) return DPK_OK;
    return dpk_op_bad(c, "x is %s, want rank 4 and channels a multiple of 4", TEXT(x));
}

static int shape_unpatchify(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *x = &c->in[0];
    const int64_t p = DPK_ATTRS(unpatchify, c->op)->patch;
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, 0, 4, 4));
    if (x->dim[3] % (p * p)) { /* p < 2^31: the square fits */
        rc =
            dpk_op_bad(c, "x is %s, want channels a multiple of %lld", TEXT(x), (long long)(p * p));
        goto done;
    }
    *out = *x;
    DPK_TRY(set_dim(c, out, 1, x->dim[1] * p));
    DPK_TRY(set_dim(c, out, 2, x->dim[2] * p));
    DPK_TRY(set_dim(c, out, 3, x->dim[3] / (p * p)));
done:
    return rc;
}

static int shape_relative_bias(const struct dpk_op_case *c, struct dpk_shape *out) {
    const struct dpk_shape *ids = &c->in[0], *table = &c->wt[DPK_WT(relative_bias, table)];
    int rc = DPK_OK;
    DPK_TRY(want_rank(c, 0, 2, 2));
    *out = (struct dpk_shape){3, {table->dim[1], ids->dim[1], ids->dim[1]}};
done:
    return rc;
}

int dpk_op_shape(const struct dpk_op *op, const char *layer, const struct dpk_shape in[DPK_MAX_IN],
                 const struct dpk_shape wt[DPK_MAX_WT], struct dpk_shape *out, dpk_error *err) {
    static int (*const shapes[DPK_N_OPCODES])(const struct dpk_op_case *, struct dpk_shape *) = {
#define DPK_OP(number, name, ins, wts, attrs) [number] = shape_##name,
#include "ops.def"
#undef DPK_OP
    };
    int rc = DPK_OK;
    DPK_TRY(dpk_op_check(op, layer, wt, err));
    const struct dpk_op_case c = {.op = op,
                                  .info = dpk_op_info_get(op->opcode),
                                  .layer = layer,
                                  .in = in,
                                  .wt = wt,
                                  .err = err};
    for (int i = 0; i < c.info->n_in; i++)
        if (has(&c, (size_t)i) && dpk_shape_count(&in[i]) == 0) {
            rc = dpk_op_bad(&c, "%s has the shape %s, want 1 to 2^40 - 1 elements",
                            c.info->in[i].name, TEXT(&in[i]));
            goto done;
        }
    struct dpk_shape result = {0};
    DPK_TRY(shapes[op->opcode](&c, &result));
    if (dpk_shape_count(&result) == 0)
        rc = dpk_op_bad(&c, "the result %s has 2^40 elements or more", TEXT(&result));
    if (rc != DPK_OK) goto done;
    for (int i = result.rank; i < DPK_MAX_RANK; i++) result.dim[i] = 0;
    *out = result;
done:
    return rc;
}
