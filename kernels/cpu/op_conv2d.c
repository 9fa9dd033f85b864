/* conv2d: y = act(conv(up(x), w) + b + temb) + residual, see ops.def.
 *
 * Direct convolution: a row of A is an output pixel, its segments are the taps' pixels, where they
 * lie in x. A tap in the padding points at a row of zeros; nearest upsampling and stride are in the
 * choice of the pixel. Pixels of few channels are gathered into one packed segment, since a segment
 * costs a tile about as much as 16 channels do.
 *
 * Integer products: a row is quantized as a whole, all taps of the output pixel by their largest
 * magnitude, so that a row has one scale and sums stay integers. */
#include "gemm.h"
#include "ops_cpu.h"
#include "winograd.h"

#include "../../formats/fail.h"

#include <string.h>

const uint32_t dpk_cpu_in_place_conv2d = 1u << DPK_IN(conv2d, residual);

struct conv {
    const struct dpk_cpu *cpu;
    const char *x, *zeros;
    int h, w, up_h, up_w; /* of x, and after upsampling */
    int out_h, out_w;
    int64_t first; /* row of all images' that the result begins with */
    int kh, kw, stride, pad_top, pad_left;
    size_t c;
    int x_dtype;
    const struct dpk_gemm *g;
};

struct pixel {
    int64_t image;
    int y, x; /* of the first tap, before padding is looked at */
};

static struct pixel find_pixel(const struct conv *v, int64_t m) {
    int64_t line = v->first + m / v->out_w;
    return (struct pixel){
        .image = line / v->out_h,
        .y = (int)(line % v->out_h) * v->stride - v->pad_top,
        .x = (int)(m % v->out_w) * v->stride - v->pad_left,
    };
}

static int source(int i, int n, int n_up) { return n == n_up ? i : (int)((int64_t)i * n / n_up); }

/* Where tap (ky, kx) of a pixel lies. */
static const char *find_tap(const struct conv *v, struct pixel p, int ky, int kx) {
    int y = p.y + ky, x = p.x + kx;
    if (y < 0 || y >= v->up_h || x < 0 || x >= v->up_w) return v->zeros;
    y = source(y, v->h, v->up_h);
    x = source(x, v->w, v->up_w);
    size_t at = ((size_t)p.image * (size_t)v->h + (size_t)y) * (size_t)v->w + (size_t)x;
    return v->x + at * v->c * dpk_dtype_bytes(v->x_dtype);
}

static void point_rows(const void *op, int64_t m0, int rows, int mr, const void **a, char *pack) {
    const struct conv *v = op;
    (void)pack;
    for (int r = 0; r < mr; r++) {
        struct pixel p = find_pixel(v, m0 + (r < rows ? r : rows - 1));
        const void **segment = a + r;
        for (int ky = 0; ky < v->kh; ky++) {
            for (int kx = 0; kx < v->kw; kx++, segment += mr) *segment = find_tap(v, p, ky, kx);
        }
    }
}

static void pack_rows(const void *op, int64_t m0, int rows, int mr, const void **a, char *pack) {
    const struct conv *v = op;
    size_t bytes = dpk_dtype_bytes(v->g->a_dtype), c_padded = v->g->c_padded;
    for (int r = 0; r < rows; r++) {
        struct pixel p = find_pixel(v, m0 + r);
        char *to = pack + (size_t)r * v->g->pack_bytes;
        for (int ky = 0; ky < v->kh; ky++) {
            for (int kx = 0; kx < v->kw; kx++, to += c_padded * bytes) {
                const char *from = find_tap(v, p, ky, kx);
                dpk_gemm_pack(v->cpu, to, v->g->a_dtype, from, v->x_dtype, v->c);
                memset(to + v->c * bytes, 0, (c_padded - v->c) * bytes);
            }
        }
    }
    for (int r = 0; r < mr; r++) {
        a[r] = pack + (size_t)(r < rows ? r : rows - 1) * v->g->pack_bytes;
    }
}

static void quantize_pixel(const struct conv *v, struct pixel p, char *row) {
    const struct dpk_gemm *g = v->g;
    size_t tap_bytes = dpk_rows8_bytes(&g->rows8, v->c);
    float top = 0.0f;
    for (int ky = 0; ky < v->kh; ky++) {
        for (int kx = 0; kx < v->kw; kx++) {
            const char *from = find_tap(v, p, ky, kx);
            if (from == v->zeros) continue;
            top = dpk_larger(top, g->k->magnitude(from, v->x_dtype, v->c));
        }
    }
    float scale = dpk_rows8_scale(&g->rows8, top);
    memcpy(row, &scale, sizeof scale);
    row += DPK_ROW_HEAD;
    for (int ky = 0; ky < v->kh; ky++) {
        for (int kx = 0; kx < v->kw; kx++, row += tap_bytes) {
            dpk_rows8_integers(&g->rows8, row, scale, find_tap(v, p, ky, kx), v->c);
        }
    }
}

static void quantize_rows(const void *op, int64_t m0, int rows, int mr, const void **a,
                          char *pack) {
    const struct conv *v = op;
    size_t stride = v->g->pack_bytes;
    for (int r = 0; r < rows; r++) {
        quantize_pixel(v, find_pixel(v, m0 + r), pack + (size_t)r * stride);
    }
    for (int r = 0; r < mr; r++) {
        a[r] = pack + (size_t)(r < rows ? r : rows - 1) * stride + DPK_ROW_HEAD;
    }
}

/* Sizes of the product; false if no kernel takes these types, or sums this long. */
static bool describe(const struct dpk_cpu *cpu, const struct dpk_call *call, struct conv *v,
                     struct dpk_gemm *g) {
    const struct dpk_tensor *x = &call->in[DPK_IN(conv2d, x)];
    const struct dpk_tensor *like = &call->in[DPK_IN(conv2d, like)];
    const struct dpk_weight *w = &call->wt[DPK_WT(conv2d, w)];
    const struct dpk_conv2d_attrs *attrs = DPK_ATTRS(conv2d, call->op);
    *v = (struct conv){
        .cpu = cpu,
        .x = x->data,
        .x_dtype = x->dtype,
        .h = x->shape.dim[1],
        .w = x->shape.dim[2],
        .out_h = call->out.shape.dim[1],
        .out_w = call->out.shape.dim[2],
        .kh = w->shape.dim[1],
        .kw = w->shape.dim[2],
        .stride = attrs->stride,
        .pad_top = attrs->pad_top,
        .pad_left = attrs->pad_left,
        .c = (size_t)x->shape.dim[3],
        .g = g,
    };
    bool by_like = attrs->upsample && like->shape.rank;
    v->up_h = by_like ? like->shape.dim[1] : v->h * (attrs->upsample ? 2 : 1);
    v->up_w = by_like ? like->shape.dim[2] : v->w * (attrs->upsample ? 2 : 1);
    *g = (struct dpk_gemm){.op = v};
    if (!dpk_gemm_weight(g, cpu, w, x->dtype)) return false;
    size_t taps = (size_t)v->kh * (size_t)v->kw;
    g->n = call->out.shape.dim[3];
    g->m = dpk_shape_count(&call->out.shape) / g->n;
    g->panels = (int32_t)(((int64_t)g->n + 15) / 16);
    g->n_seg = 1;
    g->k_len[0] = (int32_t)g->k_padded;
    if (g->a_dtype == DPK_S8) {
        g->pack_bytes = dpk_rows8_stride(&g->rows8, g->k_padded);
        g->a_row_bytes = g->pack_bytes;
        g->rows = quantize_rows;
    } else if (g->a_dtype != v->x_dtype || v->c < 32 || taps > DPK_MAX_SEG ||
               (g->strip_dtype && v->c != g->c_padded)) {
        g->pack_bytes = dpk_round_up(g->k_padded * dpk_dtype_bytes(g->a_dtype), 64) + 64;
        g->a_row_bytes = g->pack_bytes;
        g->rows = pack_rows;
    } else {
        g->n_seg = (int32_t)taps;
        for (int s = 0; s < g->n_seg; s++) g->k_len[s] = (int32_t)v->c;
        g->a_row_bytes = v->c * dpk_dtype_bytes(g->a_dtype) * (size_t)v->stride * (size_t)v->stride;
        g->rows = point_rows;
    }
    return true;
}

/* Bytes of the row of zeros that stands first in the scratch. */
static size_t zero_bytes(const struct conv *v) {
    return dpk_round_up(v->c * dpk_dtype_bytes(v->x_dtype), 64);
}

/* A convolution by Winograd, and its weights as it takes them. */
struct winograd {
    struct dpk_wino wino;
    struct dpk_weight weight;
    struct dpk_gemm weights;
};

/* Direct products of quantized rows are this much faster than those of floats (of bfloat16 where
 * Winograd multiplies integers). */
static double quantized_gain(const struct dpk_cpu *cpu, bool integers) {
    return integers ? 2.0 : cpu->dot ? 3.7 : 1.6;
}

/* Is this one for Winograd? Then its sizes. Rows of x stay as they are where the direct way would
 * quantize them: what is only there to be fast is not done where it is slower. */
static bool describe_winograd(const struct dpk_cpu *cpu, const struct dpk_call *call,
                              struct winograd *v) {
    const struct dpk_tensor *x = &call->in[DPK_IN(conv2d, x)];
    const struct dpk_weight *w = &call->wt[DPK_WT(conv2d, w)];
    const struct dpk_conv2d_attrs *a = DPK_ATTRS(conv2d, call->op);
    if (!cpu->winograd || call->out.dtype != x->dtype) return false;
    if (w->shape.dim[1] != 3 || w->shape.dim[2] != 3 || a->stride != 1) return false;
    if (a->pad_top != 1 || a->pad_left != 1 || a->pad_bottom != 1 || a->pad_right != 1) {
        return false;
    }
    v->weight = *w;
    v->weight.flags &= ~(uint32_t)DPK_TENSOR_DYNAMIC;
    v->weights = (struct dpk_gemm){0};
    if (!dpk_gemm_weight(&v->weights, cpu, &v->weight, x->dtype)) return false;
    int panels = v->weights.strip_dtype ? v->weights.strip_dtype : w->dtype;
    v->wino = (struct dpk_wino){
        .dtype = x->dtype,
        .images = x->shape.dim[0],
        .h = x->shape.dim[1],
        .w = x->shape.dim[2],
        .out_h = call->out.shape.dim[1],
        .out_w = call->out.shape.dim[2],
        .c = x->shape.dim[3],
        .n = call->out.shape.dim[3],
        .integers = cpu->k->tile_s16.fn && x->dtype == DPK_BF16 && panels == DPK_BF16,
        .weights = &v->weights,
    };
    if (!DPK_HAS_f32 && !v->wino.integers) return false;
    if (w->flags & DPK_TENSOR_DYNAMIC) {
        v->wino.direct_gain = quantized_gain(cpu, v->wino.integers);
    }
    return dpk_wino_pays(&v->wino);
}

static int run_winograd(struct dpk_cpu *cpu, const struct dpk_call *call, struct dpk_wino *wino) {
    const struct dpk_tensor *temb = &call->in[DPK_IN(conv2d, temb)];
    const struct dpk_tensor *residual = &call->in[DPK_IN(conv2d, residual)];
    const struct dpk_weight *b = &call->wt[DPK_WT(conv2d, b)];
    dpk_wino_plan(cpu, wino);
    wino->x = call->in[DPK_IN(conv2d, x)].data;
    wino->act = DPK_ATTRS(conv2d, call->op)->act;
    wino->bias = b->shape.rank ? b->data : NULL;
    wino->residual = residual->shape.rank ? residual->data : NULL;
    wino->out = call->out.data;
    if (temb->shape.rank) {
        wino->temb = temb->data;
        wino->temb_stride = temb->shape.dim[0] > 1 ? (size_t)temb->shape.dim[1] : 0;
    }
    dpk_wino_run(cpu, wino, call->scratch);
    return DPK_OK;
}

/* The direct way: rows first .. of the product, which is described. */
static int run_direct(struct dpk_cpu *cpu, const struct dpk_call *call, struct conv *v,
                      struct dpk_gemm *g) {
    const struct dpk_tensor *temb = &call->in[DPK_IN(conv2d, temb)];
    const struct dpk_tensor *residual = &call->in[DPK_IN(conv2d, residual)];
    const struct dpk_weight *b = &call->wt[DPK_WT(conv2d, b)];
    size_t skipped =
        (size_t)(v->first * v->out_w) * (size_t)g->n * dpk_dtype_bytes(call->out.dtype);
    dpk_gemm_plan(cpu, g);
    v->zeros = call->scratch;
    memset(call->scratch, 0, zero_bytes(v));
    g->epilogue = (struct dpk_epilogue){
        .act = DPK_ATTRS(conv2d, call->op)->act,
        .dtype = call->out.dtype,
        .bias = b->shape.rank ? b->data : NULL,
        .residual = residual->shape.rank ? (const char *)residual->data + skipped : NULL,
        .out = (char *)call->out.data + skipped,
        .stride = (size_t)g->n,
    };
    if (temb->shape.rank) {
        size_t image = temb->shape.dim[0] > 1 ? (size_t)(v->first / v->out_h) : 0;
        g->temb = (const char *)temb->data +
                  image * (size_t)temb->shape.dim[1] * dpk_dtype_bytes(temb->dtype);
        g->image_stride = temb->shape.dim[0] > 1 ? (size_t)temb->shape.dim[1] : 0;
        g->rows_per_image = (int64_t)v->out_h * v->out_w;
    }
    dpk_gemm_run(cpu, g, (char *)call->scratch + zero_bytes(v));
    return DPK_OK;
}

/* Describe a call as one or the other; these rows of it, unless NULL. */
struct either {
    bool winograd, direct; /* neither: no kernel takes these types */
    struct winograd wino;
    struct conv conv;
    struct dpk_gemm gemm;
};

static void describe_either(const struct dpk_cpu *cpu, const struct dpk_call *call,
                            const struct dpk_rows *rows, struct either *e) {
    e->winograd = describe_winograd(cpu, call, &e->wino);
    e->direct = !e->winograd && describe(cpu, call, &e->conv, &e->gemm);
    if (!rows) return;
    if (e->winograd) dpk_wino_rows(&e->wino.wino, rows);
    if (e->direct) {
        e->conv.first = rows->first;
        e->gemm.m = (rows->end - rows->first) * e->conv.out_w;
    }
}

size_t dpk_cpu_rows_scratch_conv2d(const struct dpk_cpu *cpu, const struct dpk_call *call,
                                   const struct dpk_rows *rows) {
    struct either e;
    describe_either(cpu, call, rows, &e);
    if (e.winograd) return dpk_wino_plan(cpu, &e.wino.wino);
    return e.direct ? zero_bytes(&e.conv) + dpk_gemm_plan(cpu, &e.gemm) : 0;
}

size_t dpk_cpu_scratch_conv2d(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    return dpk_cpu_rows_scratch_conv2d(cpu, call, NULL);
}

int dpk_cpu_rows_conv2d(struct dpk_cpu *cpu, const struct dpk_call *call,
                        const struct dpk_rows *rows, dpk_error *err) {
    struct either e;
    describe_either(cpu, call, rows, &e);
    if (e.winograd) return run_winograd(cpu, call, &e.wino.wino);
    if (e.direct) return run_direct(cpu, call, &e.conv, &e.gemm);
    return dpk_error_set(err, DPK_EUNSUPPORTED, "cpu conv2d: no kernel for %s weights",
                         dpk_dtype_name(call->wt[DPK_WT(conv2d, w)].dtype));
}

int dpk_cpu_run_conv2d(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    return dpk_cpu_rows_conv2d(cpu, call, NULL, err);
}
