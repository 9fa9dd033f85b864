/* W8A8 products: y = epilogue((q w^T) * scale_m * scale_n), q the rows of x quantized to int8.
 *
 * A linear's rows come quantized from the norm that made them (dpk_cuda_rows8_of), or are
 * quantized here once, by a warp each: the magnitude of the row, then its integers,
 * read again from L1. Two passes over x from memory at worst: 3 bytes of traffic an element, (2048,
 * 1280) in 1.8 us at 4.3 TB/s. The product is gemm.cuh's with int8 fragments (m16n8k32, sums exact
 * in 32 bits up to K = 131071), scales, bias, activation, gate and residual in its epilogue, so
 * that no int32 goes through memory: cuBLASLt would write (and we read) 4 bytes a sum, 39 us for
 * (2048, 10240) against a product of 34.
 *
 * A convolution's row is all taps of an output pixel and has one scale: the magnitude of every
 * input pixel first, then the largest of the taps' for each output pixel, then pixels are quantized
 * on their way to shared memory, once for each tap (dpk_load_quantized): about 130 instructions a
 * thread and k-step beside 40 mma a warp. */
#include "linear.h"

static size_t align_up(size_t n) { return (n + 255) / 256 * 256; }

/* ---- Rows of a linear ------------------------------------------------------------------------ */

struct rows_args {
    const void *x, *x2; /* [rows][k], [rows][k2] of dtype */
    int dtype, k, k2, pitch, rows, rule;
    int8_t *q;    /* [rows][pitch], zeros from k + k2 on */
    float *scale; /* [rows] */
};

/* Elements c .. c + 16 of a row of concat(x, x2), zeros beyond. */
__device__ __forceinline__ void load_row16(const rows_args &a, long long r, int c, float v[16]) {
    if (c + 16 <= a.k || a.k2 == 0) {
        dpk_load_up_to_16(v, a.x, a.dtype, r * a.k + c, a.k - c);
    } else if (c >= a.k) {
        dpk_load_up_to_16(v, a.x2, a.dtype, r * a.k2 + (c - a.k), a.k + a.k2 - c);
    } else {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int j = c + i;
            v[i] = 0.0f;
            if (j < a.k) dpk_load8(v + i, a.x, a.dtype, r * a.k + j, 1);
            else if (j < a.k + a.k2) dpk_load8(v + i, a.x2, a.dtype, r * a.k2 + (j - a.k), 1);
        }
    }
}

static __global__ void __launch_bounds__(256) quantize_rows(const rows_args a) {
    int lane = threadIdx.x & 31;
    long long r = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (r >= a.rows) return;
    unsigned top = 0;
    float v[16];
    for (int c = lane * 16; c < a.pitch; c += 512) {
        load_row16(a, r, c, v);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            unsigned u = dpk_magnitude(v[i]);
            top = u > top ? u : top;
        }
    }
    float scale = dpk_row_scale(__uint_as_float(dpk_warp_magnitude(top)), a.dtype, a.rule);
    if (lane == 0) a.scale[r] = scale;
    for (int c = lane * 16; c < a.pitch; c += 512) {
        load_row16(a, r, c, v);
        *(uint4 *)(a.q + r * a.pitch + c) = dpk_quantize16(v, scale, a.rule);
    }
}

/* ---- Pixels of a convolution ----------------------------------------------------------------- */

/* Bits of the largest magnitude of each of n pixels of c channels: a warp a pixel. */
static __global__ void __launch_bounds__(256)
    pixel_magnitudes(const void *x, int dtype, int c, long long n, unsigned *out) {
    int lane = threadIdx.x & 31;
    long long pixel = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (pixel >= n) return;
    unsigned top = 0;
    for (int i = lane * 8; i < c; i += 256) {
        float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        dpk_load8(v, x, dtype, pixel * c + i, c - i < 8 ? c - i : 8);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            unsigned u = dpk_magnitude(v[j]);
            top = u > top ? u : top;
        }
    }
    top = dpk_warp_magnitude(top);
    if (lane == 0) out[pixel] = top;
}

static __global__ void __launch_bounds__(256)
    pixel_scales(const dpk_pixels_args a, const unsigned *magnitudes, float *scale) {
    int m = blockIdx.x * 256 + threadIdx.x;
    if (m >= a.rows) return;
    int line = m / a.out_w, image = line / a.out_h;
    int y0 = line % a.out_h * a.stride - a.pad_top, x0 = m % a.out_w * a.stride - a.pad_left;
    unsigned top = 0;
    for (int tap = 0; tap < a.kh * a.kw; tap++) {
        int y = y0 + tap / a.kw, x = x0 + tap % a.kw;
        if (y < 0 || y >= a.up_h || x < 0 || x >= a.up_w) continue;
        long long at = ((long long)image * a.h + dpk_nearest(y, a.h, a.up_h)) * a.w +
                       dpk_nearest(x, a.w, a.up_w);
        top = magnitudes[at] > top ? magnitudes[at] : top;
    }
    scale[m] = dpk_row_scale(__uint_as_float(top), a.dtype, a.rule);
}

/* ---- Host ------------------------------------------------------------------------------------ */

/* Scratch: partial sums, scales of rows, then the quantized rows, or the pixels' magnitudes. */
struct layout {
    dpk_gemm_plan plan;
    size_t scales, data, n_bytes;
};

static int64_t input_pixels(const struct dpk_linear *l) {
    const struct dpk_tensor *x = &l->call->in[0];
    return dpk_shape_count(&x->shape) / l->k;
}

static struct layout plan_s8(const struct dpk_cuda *cuda, const struct dpk_linear *l) {
    struct layout p = {};
    p.plan = dpk_linear_plan(cuda, l, 1);
    p.n_bytes = p.plan.partial_bytes;
    if (l->call->in[0].rows8) return p;
    p.scales = align_up(p.plan.partial_bytes);
    p.data = p.scales + align_up((size_t)l->m * 4);
    p.n_bytes = p.data + (l->conv ? (size_t)input_pixels(l) * 4 : (size_t)l->m * (size_t)l->c_pad);
    return p;
}

size_t dpk_linear_scratch_s8(const struct dpk_cuda *cuda, const struct dpk_linear *l) {
    return plan_s8(cuda, l).n_bytes;
}

static int run_conv(struct dpk_cuda *cuda, const struct dpk_linear *l, const struct layout *p,
                    const dpk_rows_args &b, const dpk_epilogue_args &e, dpk_error *err) {
    char *scratch = (char *)l->call->scratch;
    unsigned *magnitudes = (unsigned *)(scratch + p->data);
    float *scale = (float *)(scratch + p->scales);
    int64_t pixels = input_pixels(l);
    dpk_pixels_args a = l->pixels;
    a.chunks = l->c_pad / 16;
    a.scale = scale;
    a.rule = dpk_rule_of(l->call->wt[0].flags);
    DPK_CUDA_TRY(DPK_LAUNCH(pixel_magnitudes, dim3(dpk_cuda_blocks(pixels, 8)), dim3(256), 0,
                            cuda->stream, a.x, a.dtype, a.c, (long long)pixels, magnitudes),
                 "conv2d", err);
    DPK_CUDA_TRY(DPK_LAUNCH(pixel_scales, dim3(dpk_cuda_blocks(l->m, 256)), dim3(256), 0,
                            cuda->stream, a, magnitudes, scale),
                 "conv2d", err);
    return dpk_gemm_launch<int8_t, dpk_load_quantized, dpk_load_rows, false>(
        cuda, p->plan, l->m, l->n_w, scratch, a, b, e, err);
}

/* The rows of a linear as integers, quantized now where they are not yet; *scale: theirs. */
static int quantized_rows(struct dpk_cuda *cuda, const struct dpk_linear *l, const struct layout *p,
                          dpk_rows_args *a, const float **scale, dpk_error *err) {
    const struct dpk_tensor *x = &l->call->in[0];
    char *scratch = (char *)l->call->scratch;
    if (x->rows8) {
        const struct dpk_cuda_rows8 made = dpk_cuda_rows8_of(x);
        *a = dpk_weight_rows(made.q, made.pitch, l->m);
        *scale = made.scale;
        return DPK_OK;
    }
    rows_args rows = {};
    rows.x = l->x, rows.x2 = l->x2;
    rows.dtype = l->x_dtype;
    rows.k = l->k, rows.k2 = l->k2, rows.pitch = l->c_pad;
    rows.rows = l->m;
    rows.rule = dpk_rule_of(l->call->wt[0].flags);
    rows.q = (int8_t *)(scratch + p->data);
    rows.scale = (float *)(scratch + p->scales);
    DPK_CUDA_TRY(
        DPK_LAUNCH(quantize_rows, dim3(dpk_cuda_blocks(l->m, 8)), dim3(256), 0, cuda->stream, rows),
        "linear", err);
    *a = dpk_weight_rows(rows.q, l->c_pad, l->m);
    *scale = rows.scale;
    return DPK_OK;
}

int dpk_linear_run_s8(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err) {
    const struct dpk_cuda_weight *w = dpk_cuda_find_weight(cuda, l->call, 0);
    struct layout p = plan_s8(cuda, l);
    char *scratch = (char *)l->call->scratch;
    dpk_epilogue_args e = dpk_linear_epilogue(cuda, l);
    dpk_rows_args a, b = dpk_weight_rows(w->data, w->pitch, w->n_rows);
    if (l->conv) {
        e.scale_m = (float *)(scratch + p.scales);
        return run_conv(cuda, l, &p, b, e, err);
    }
    DPK_TRY(quantized_rows(cuda, l, &p, &a, &e.scale_m, err));
    return l->glu ? dpk_gemm_launch<int8_t, dpk_load_rows, dpk_load_rows, true>(
                        cuda, p.plan, l->m, l->n_w, scratch, a, b, e, err)
                  : dpk_gemm_launch<int8_t, dpk_load_rows, dpk_load_rows, false>(
                        cuda, p.plan, l->m, l->n_w, scratch, a, b, e, err);
}
