/* Sizes, tiles and splits of products (contracts: linear.h, gemm.cuh). */
#include "linear.h"

enum { MAX_INT8_K = 131071 }; /* times 2^14 is below 2^31 */

static int round_up(int n, int to) { return (n + to - 1) / to * to; }

/* k's of a tap in the weight on the device: see struct dpk_cuda_weight. */
static int padded_k(int weight_dtype, int act_dtype, int c) {
    int bits = weight_dtype == DPK_S4   ? 4
               : weight_dtype == DPK_S8 ? 8
               : act_dtype == DPK_F32   ? 32
                                        : 16;
    return round_up(c, 128 / bits);
}

static void describe_pixels(const struct dpk_call *call, struct dpk_linear *l) {
    const struct dpk_conv2d_attrs *a = DPK_ATTRS(conv2d, call->op);
    const struct dpk_tensor *x = &call->in[DPK_IN(conv2d, x)];
    const struct dpk_tensor *like = &call->in[DPK_IN(conv2d, like)];
    const struct dpk_shape *w = &call->wt[DPK_WT(conv2d, w)].shape, *out = &call->out.shape;
    dpk_pixels_args p = {};
    bool by_like = a->upsample && like->shape.rank;
    p.x = x->data;
    p.dtype = x->dtype;
    p.c = x->shape.dim[3];
    p.h = x->shape.dim[1], p.w = x->shape.dim[2];
    p.up_h = by_like ? like->shape.dim[1] : p.h * (a->upsample ? 2 : 1);
    p.up_w = by_like ? like->shape.dim[2] : p.w * (a->upsample ? 2 : 1);
    p.out_h = out->dim[1], p.out_w = out->dim[2];
    p.kh = w->dim[1], p.kw = w->dim[2];
    p.stride = a->stride;
    p.pad_top = a->pad_top, p.pad_left = a->pad_left;
    p.rows = l->m;
    l->pixels = p;
}

int dpk_linear_describe(const struct dpk_call *call, struct dpk_linear *l, dpk_error *err) {
    const struct dpk_tensor *x = &call->in[0];
    const struct dpk_weight *w = &call->wt[0];
    int64_t n = call->out.shape.dim[call->out.shape.rank - 1];
    int64_t m = dpk_shape_count(&call->out.shape) / n, taps = 1;
    *l = dpk_linear();
    l->call = call;
    l->conv = call->op->opcode == DPK_OP_conv2d;
    if (m > INT32_MAX || dpk_shape_count(&x->shape) / x->shape.dim[x->shape.rank - 1] > INT32_MAX) {
        DPK_FAIL(err, DPK_EUNSUPPORTED, "cuda: a product of %lld rows, want at most %d",
                 (long long)m, INT32_MAX);
    }
    l->m = (int)m, l->n = (int)n;
    l->x = x->data;
    l->x_dtype = x->dtype;
    l->k = x->shape.dim[x->shape.rank - 1];
    if (l->conv) {
        describe_pixels(call, l);
        taps = (int64_t)l->pixels.kh * l->pixels.kw;
        if ((int64_t)l->pixels.h * l->pixels.up_h > INT32_MAX ||
            (int64_t)l->pixels.w * l->pixels.up_w > INT32_MAX) {
            DPK_FAIL(err, DPK_EUNSUPPORTED, "cuda conv2d: a map of %d x %d, want less",
                     l->pixels.up_h, l->pixels.up_w);
        }
    } else {
        const struct dpk_tensor *x2 = &call->in[DPK_IN(linear, x2)];
        l->glu = DPK_ATTRS(linear, call->op)->glu;
        if (x2->shape.rank) {
            l->x2 = x2->data;
            l->k2 = x2->shape.dim[x2->shape.rank - 1];
        }
    }
    l->aligned = l->k % 8 == 0 && l->k2 % 8 == 0;
    l->n_w = l->glu ? 2 * round_up(l->n, 8) : round_up(l->n, 16);
    l->c_pad = padded_k(w->dtype, call->out.dtype, l->k + l->k2);
    if (taps * l->c_pad > (w->dtype == DPK_S8 ? MAX_INT8_K : INT32_MAX / 4)) {
        DPK_FAIL(err, DPK_EUNSUPPORTED, "cuda: sums of %lld products, want less",
                 (long long)(taps * l->c_pad));
    }
    return DPK_OK;
}

dpk_gemm_plan dpk_linear_plan(const struct dpk_cuda *cuda, const struct dpk_linear *l,
                              int element_bytes) {
    const struct dpk_weight *w = &l->call->wt[0];
    int64_t taps = l->conv ? (int64_t)l->pixels.kh * l->pixels.kw : 1;
    int k_tiles = (int)((taps * l->c_pad * element_bytes + 63) / 64);
    int tiles = element_bytes == 2 && !l->aligned ? DPK_TILES_SMALL
                : element_bytes == 2 && (w->dtype == DPK_S8 || w->dtype == DPK_S4)
                    ? DPK_TILES_NARROW
                    : DPK_TILES_ALL;
    return dpk_gemm_choose(cuda->n_sm, l->m, l->n_w, k_tiles, tiles);
}

dpk_epilogue_args dpk_linear_epilogue(const struct dpk_cuda *cuda, const struct dpk_linear *l) {
    const struct dpk_call *call = l->call;
    const struct dpk_cuda_weight *w = dpk_cuda_find_weight(cuda, call, 0);
    const struct dpk_tensor *residual =
        &call->in[l->conv ? DPK_IN(conv2d, residual) : DPK_IN(linear, residual)];
    const struct dpk_tensor *image =
        &call->in[l->conv ? DPK_IN(conv2d, temb) : DPK_IN(linear, gate)];
    dpk_epilogue_args e = {};
    e.out = call->out.data;
    e.dtype = call->out.dtype;
    e.n = l->n;
    e.act = l->conv ? DPK_ATTRS(conv2d, call->op)->act : DPK_ATTRS(linear, call->op)->act;
    e.glu = l->glu;
    if (residual->shape.rank) e.residual = residual->data;
    if (dpk_cuda_has_weight(call, 1)) {
        e.bias = (const float *)dpk_cuda_find_weight(cuda, call, 1)->data;
    }
    if (w->dtype == DPK_S8) e.scale_n = w->scale;
    e.rows_per_image = l->m / call->out.shape.dim[0];
    if (image->shape.rank) {
        int offset = l->conv ? 0 : DPK_ATTRS(linear, call->op)->gate_off;
        e.image = (const char *)image->data + (size_t)offset * (e.dtype == DPK_F32 ? 4 : 2);
        e.image_gates = !l->conv;
        e.image_stride = image->shape.dim[0] > 1 ? image->shape.dim[1] : 0;
    }
    return e;
}

dpk_dequant_args dpk_dequant_of(const struct dpk_cuda_weight *w, const struct dpk_linear *l) {
    dpk_dequant_args b = {};
    b.w = (const uint8_t *)w->data;
    b.stride = w->dtype == DPK_S4 ? w->pitch / 2 : w->pitch;
    b.rows = w->n_rows;
    b.n = l->call->wt[0].shape.dim[0];
    b.c = w->c, b.c_pad = w->c_pad, b.pitch = w->pitch;
    b.scale = w->scale;
    b.group = w->group;
    if (w->group) b.groups = w->taps * (w->c / w->group);
    b.glu_rows = l->glu ? l->n : 0;
    return b;
}

/* Time of a choice in units of one step of 64 bytes of a 128 x 128 tile: the waves it takes, times
 * the steps of a block and what a block costs beside them. The small tile reads twice as much from
 * shared memory for its sums, but four of it are on a multiprocessor at once. */
static double cost(int n_sm, const struct dpk_gemm_shape &s, int tile, int splits) {
    static const struct {
        int bm, bn, per_sm;
        double step;
    } tiles[DPK_N_TILES] = {{128, 160, 1, 1.22}, {128, 128, 1, 1.0}, {64, 64, 4, 1.25}};
    double blocks = (double)((s.m + tiles[tile].bm - 1) / tiles[tile].bm) *
                    ((s.n_w + tiles[tile].bn - 1) / tiles[tile].bn) * splits;
    double steps = (s.k_tiles + splits - 1) / splits + 6.0;
    double places = (double)n_sm * tiles[tile].per_sm, waves = ceil(blocks / places);
    /* The last wave of small tiles shares its multiprocessors among fewer blocks; one alone cannot
     * use more than half of its own. */
    if (tiles[tile].per_sm > 1) {
        double last = blocks - (waves - 1) * places;
        waves += fmax(ceil(last / n_sm) / tiles[tile].per_sm, 0.5) - 1;
    }
    double sums = splits > 1 ? 8.0 + (double)s.m * s.n_w * splits / (n_sm * 16384.0) : 0.0;
    return waves * steps * tiles[tile].step + sums;
}

dpk_gemm_plan dpk_gemm_choose(int n_sm, int m, int n_w, int k_tiles, int tiles) {
    const size_t most = (size_t)64 << 20;
    struct dpk_gemm_shape s = {m, n_w, k_tiles, 0, 0, 1, NULL, (n_w + 15) / 16 * 16};
    dpk_gemm_plan best = {DPK_TILE_SMALL, 1, k_tiles, 0};
    double least = cost(n_sm, s, DPK_TILE_SMALL, 1);
    for (int tile = 0; tile < DPK_N_TILES; tile++) {
        if (!(tiles >> tile & 1)) continue;
        for (int splits = 1; splits <= 16 && splits * 8 <= (k_tiles > 8 ? k_tiles : 8); splits++) {
            size_t bytes = splits > 1 ? (size_t)splits * (size_t)m * (size_t)s.partial_n * 4 : 0;
            double c = cost(n_sm, s, tile, splits);
            int per = (k_tiles + splits - 1) / splits;
            if (bytes > most || per * (splits - 1) >= k_tiles || c >= least) continue;
            least = c;
            best = {tile, splits, k_tiles, bytes};
        }
    }
    return best;
}
