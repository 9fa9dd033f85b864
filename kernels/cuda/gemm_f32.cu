/* Products in float32 without tensor cores: y = epilogue(A w^T), for everything that the others do
 * not take: convolutions of float32 files, the first convolution of all (its input is float32, see
 * ops.def), quantized weights with float32 activations.
 *
 * A block makes 64 x 64 sums with 256 threads of 4 x 4, K in steps of 16 through shared memory, the
 * next step's elements on their way in registers. Elements are fetched in fours that never cross a
 * tap or a row's end in memory; their types are looked at as they come. 34 KiB of shared memory.
 * Floor: half of the float32 FMA rate (four loads of 16 bytes from shared memory for 64 FMA); the
 * first convolution of SDXL (32768 x 320 x 36) takes 0.75 GFLOP. Not measured. */
#include "linear.h"

enum { TILE = 64, STEP = 16, PITCH = TILE + 4, SUMS_PITCH = TILE + 8 };

struct f32_args {
    dpk_pixels_args pixels; /* a convolution's rows */
    const void *x, *x2;     /* a linear's */
    int dtype, conv, k, k2, m;
    int w_dtype, c_pad, pitch, n_w;
    const uint8_t *w;
    dpk_dequant_args quantized; /* the scales of s4 */
};

/* Four k's of row m from k on. */
__device__ __forceinline__ void fetch_a(const f32_args &a, int m, int k, float v[4]) {
    v[0] = v[1] = v[2] = v[3] = 0.0f;
    if (m >= a.m || k >= a.pitch) return;
    if (!a.conv) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int j = k + i;
            if (j < a.k) dpk_load8(v + i, a.x, a.dtype, (long long)m * a.k + j, 1);
            else if (j < a.k + a.k2) {
                dpk_load8(v + i, a.x2, a.dtype, (long long)m * a.k2 + (j - a.k), 1);
            }
        }
        return;
    }
    const dpk_pixels_args &p = a.pixels;
    int tap = k / a.c_pad, c = k % a.c_pad, line = m / p.out_w;
    int y = line % p.out_h * p.stride - p.pad_top + tap / p.kw;
    int x = m % p.out_w * p.stride - p.pad_left + tap % p.kw;
    if (y < 0 || y >= p.up_h || x < 0 || x >= p.up_w) return;
    long long pixel = ((long long)(line / p.out_h) * p.h + dpk_nearest(y, p.h, p.up_h)) * p.w +
                      dpk_nearest(x, p.w, p.up_w);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (c + i < p.c) dpk_load8(v + i, p.x, p.dtype, pixel * p.c + c + i, 1);
    }
}

/* Four k's of row n of the weight. */
__device__ __forceinline__ void fetch_w(const f32_args &a, int n, int k, float v[4]) {
    v[0] = v[1] = v[2] = v[3] = 0.0f;
    if (n >= a.n_w || k >= a.pitch) return;
    long long at = (long long)n * a.pitch + k;
    if (a.w_dtype == DPK_F32) {
        dpk_load16((const float *)a.w + at, v);
    } else if (a.w_dtype == DPK_BF16) {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = __bfloat162float(((const dpk_bf16 *)a.w)[at + i]);
    } else if (a.w_dtype == DPK_S8) {
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = (float)((const int8_t *)a.w)[at + i];
    } else {
        const dpk_dequant_args &q = a.quantized;
        int tap = k / a.c_pad, c = k % a.c_pad, logical = dpk_logical_row(n, q.glu_rows);
        if (logical < 0 || logical >= q.n || c >= q.c) return;
        float scale = q.scale[(long long)logical * q.groups + tap * (q.c / q.group) + c / q.group];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned byte = a.w[(at + i) / 2];
            v[i] = (float)((int)(byte << (28 - 4 * (i % 2))) >> 28) * scale;
        }
    }
}

/* Element [k][row] of a step in shared memory. */
__device__ __forceinline__ void put4(float *tile, int row, int k, const float v[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) tile[(k + i) * PITCH + row] = v[i];
}

template <bool GLU>
__global__ void __launch_bounds__(256) gemm_f32(const f32_args a, const dpk_epilogue_args e) {
    DPK_SHARED(float, tile_a, [STEP * PITCH]);
    DPK_SHARED(float, tile_b, [STEP * PITCH]);
    DPK_SHARED(float, sums, [TILE * SUMS_PITCH]);
    int tiles_n = (a.n_w + TILE - 1) / TILE;
    int m0 = blockIdx.x / tiles_n * TILE, n0 = blockIdx.x % tiles_n * TILE;
    int row = threadIdx.x / 4, k4 = (threadIdx.x & 3) * 4;
    int ty = threadIdx.x / 16 * 4, tx = (threadIdx.x & 15) * 4;
    float acc[4][4] = {}, va[4], vb[4];
    fetch_a(a, m0 + row, k4, va);
    fetch_w(a, n0 + row, k4, vb);
    for (int k = 0; k < a.pitch; k += STEP) {
        __syncthreads();
        put4(tile_a, row, k4, va);
        put4(tile_b, row, k4, vb);
        __syncthreads();
        if (k + STEP < a.pitch) {
            fetch_a(a, m0 + row, k + STEP + k4, va);
            fetch_w(a, n0 + row, k + STEP + k4, vb);
        }
#pragma unroll
        for (int kk = 0; kk < STEP; kk++) {
            float x[4], w[4];
            dpk_load16(tile_a + kk * PITCH + ty, x);
            dpk_load16(tile_b + kk * PITCH + tx, w);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] += x[i] * w[j];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) dpk_store16(sums + (ty + i) * SUMS_PITCH + tx, acc[i]);
    __syncthreads();
    enum { W = GLU ? 16 : 8, UNITS = TILE / W };
#pragma unroll 1
    for (int u = threadIdx.x; u < TILE * UNITS; u += 256) {
        int m = m0 + u / UNITS, c = u % UNITS * W, j = GLU ? (n0 + c) / 2 : n0 + c;
        if (m >= a.m || j >= e.n) continue;
        dpk_epilogue8<GLU>(e, m, j, sums + u / UNITS * SUMS_PITCH + c);
    }
}

int dpk_linear_run_f32(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err) {
    const struct dpk_cuda_weight *w = dpk_cuda_find_weight(cuda, l->call, 0);
    dpk_epilogue_args e = dpk_linear_epilogue(cuda, l);
    f32_args a = {};
    a.pixels = l->pixels;
    a.x = l->x, a.x2 = l->x2;
    a.dtype = l->x_dtype, a.conv = l->conv;
    a.k = l->k, a.k2 = l->k2, a.m = l->m;
    a.w_dtype = w->dtype, a.c_pad = w->c_pad, a.pitch = w->pitch, a.n_w = w->n_rows;
    a.w = (const uint8_t *)w->data;
    a.quantized = dpk_dequant_of(w, l);
    int64_t blocks = ((int64_t)l->m + TILE - 1) / TILE * ((w->n_rows + TILE - 1) / TILE);
    if (blocks > INT32_MAX) {
        DPK_FAIL(err, DPK_EUNSUPPORTED, "cuda: a product of %lld tiles, want at most %d",
                 (long long)blocks, INT32_MAX);
    }
    DPK_CUDA_TRY(
        l->glu
            ? DPK_LAUNCH(gemm_f32<true>, dim3((unsigned)blocks), dim3(256), 0, cuda->stream, a, e)
            : DPK_LAUNCH(gemm_f32<false>, dim3((unsigned)blocks), dim3(256), 0, cuda->stream, a, e),
        "a product in float32", err);
    return DPK_OK;
}
