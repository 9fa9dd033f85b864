/* Layer normalisation, by the algorithm of group_norm.cu: a warp a row. Rows of up to 2048 bfloat16
 * or 1024 float32 stay in registers; longer ones, and widths that 16 bytes do not divide, are read
 * three times through the cache. Where an int8 product reads the result, rows that stay in registers
 * leave them as integers. */
#include "quantize.cuh"

struct layer_job {
    const void *x, *mod;
    void *y;
    const float *gamma, *beta; /* NULL: 1 and 0 */
    int64_t rows, rows_image;  /* rows of one row of mod */
    int64_t mod_width;         /* 0: one row for all */
    int c, shift, scale;
    bool rms;
    float eps;
    int rule; /* of quantized rows: enum dpk_quantize_rule */
    struct dpk_cuda_rows8 rows8;
};

enum { ROWS = 4 /* warps of a block */ };

template <typename T>
__device__ __forceinline__ float finish(const struct layer_job &job, const T *mod, int c, float v) {
    if (job.gamma) v *= job.gamma[c];
    if (job.beta) v += job.beta[c];
    if (mod) v = v * (1.0f + dpk_float(mod[job.scale + c])) + dpk_float(mod[job.shift + c]);
    return v;
}

/* A lane keeps runs of W values, 32 W apart. MADE: the result is quantized rows. */
template <typename T, int W, bool MADE>
__global__ void __launch_bounds__(32 * ROWS) layer_norm_kernel(struct layer_job job) {
    constexpr int RUNS = DPK_ROW_KEPT / W;
    const int lane = (int)threadIdx.x % 32;
    const int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / 32;
    if (row >= job.rows) return;
    const T *x = (const T *)job.x + row * job.c;
    const T *mod = (const T *)job.mod + (job.mod ? row / job.rows_image * job.mod_width : 0);
    if (!job.mod) mod = NULL;
    float v[RUNS][W], sum = 0.0f, square = 0.0f, mean = 0.0f, rest = 0.0f;
#pragma unroll
    for (int r = 0; r < RUNS; r++) {
        const int c = (r * 32 + lane) * W;
        if (c >= job.c) break;
        dpk_load16(x + c, v[r]);
#pragma unroll
        for (int j = 0; j < W; j++) sum += v[r][j];
    }
    if (!job.rms) mean = dpk_warp_sum(sum) / (float)job.c;
#pragma unroll
    for (int r = 0; r < RUNS; r++) {
        if ((r * 32 + lane) * W >= job.c) break;
#pragma unroll
        for (int j = 0; j < W; j++) {
            v[r][j] -= mean;
            rest += v[r][j];
            square += v[r][j] * v[r][j];
        }
    }
    rest = job.rms ? 0.0f : dpk_warp_sum(rest) / (float)job.c;
    const float variance = dpk_warp_sum(square) / (float)job.c - rest * rest;
    const float factor = 1.0f / sqrtf(variance + job.eps);
#pragma unroll
    for (int r = 0; r < RUNS; r++) {
        const int c = (r * 32 + lane) * W;
        if (c >= job.c) break;
#pragma unroll
        for (int j = 0; j < W; j++) v[r][j] = finish(job, mod, c + j, (v[r][j] - rest) * factor);
        if (!MADE) dpk_store16((T *)job.y + row * job.c + c, v[r]);
    }
    if (MADE) dpk_put_row8<T, W>(job.rows8, job.rule, row, job.c, lane, v);
}

/* Any width. */
template <typename T>
__global__ void __launch_bounds__(32 * ROWS) layer_norm_any_kernel(struct layer_job job) {
    const int lane = (int)threadIdx.x % 32;
    const int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / 32;
    if (row >= job.rows) return;
    const T *x = (const T *)job.x + row * job.c;
    const T *mod = job.mod ? (const T *)job.mod + row / job.rows_image * job.mod_width : NULL;
    float sum = 0.0f, square = 0.0f, mean = 0.0f, rest = 0.0f;
    if (!job.rms) {
        for (int c = lane; c < job.c; c += 32) sum += dpk_float(x[c]);
        mean = dpk_warp_sum(sum) / (float)job.c;
    }
    for (int c = lane; c < job.c; c += 32) {
        const float d = dpk_float(x[c]) - mean;
        rest += d;
        square += d * d;
    }
    rest = job.rms ? 0.0f : dpk_warp_sum(rest) / (float)job.c;
    const float variance = dpk_warp_sum(square) / (float)job.c - rest * rest;
    const float factor = 1.0f / sqrtf(variance + job.eps);
    for (int c = lane; c < job.c; c += 32)
        ((T *)job.y)[row * job.c + c] =
            dpk_round<T>(finish(job, mod, c, (dpk_float(x[c]) - mean - rest) * factor));
}

bool dpk_cuda_rows8_layer_norm(const struct dpk_cuda *, const struct dpk_call *call) {
    const struct dpk_shape *s = &call->out.shape;
    return dpk_row_is_kept(s->dim[s->rank - 1], call->out.dtype);
}

template <typename T>
static cudaError_t launch_layer_norm(struct dpk_cuda *cuda, const struct layer_job *job) {
    constexpr int W = dpk_width<T>();
    const unsigned blocks = dpk_cuda_blocks(job->rows, ROWS);
    if (job->rows8.q)
        return DPK_LAUNCH((layer_norm_kernel<T, W, true>), blocks, 32 * ROWS, 0, cuda->stream,
                          *job);
    if (dpk_row_is_kept(job->c, sizeof(T) == 4 ? DPK_F32 : DPK_BF16))
        return DPK_LAUNCH((layer_norm_kernel<T, W, false>), blocks, 32 * ROWS, 0, cuda->stream,
                          *job);
    return DPK_LAUNCH(layer_norm_any_kernel<T>, blocks, 32 * ROWS, 0, cuda->stream, *job);
}

int dpk_cuda_run_layer_norm(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_layer_norm_attrs *at = DPK_ATTRS(layer_norm, call->op);
    const struct dpk_tensor *x = &call->in[DPK_IN(layer_norm, x)];
    const struct dpk_tensor *mod = &call->in[DPK_IN(layer_norm, mod)];
    struct layer_job job = {};
    job.x = x->data;
    job.y = call->out.data;
    job.c = x->shape.dim[x->shape.rank - 1];
    job.rows = dpk_shape_count(&x->shape) / job.c;
    job.rms = at->rms != 0;
    job.eps = at->eps;
    if (dpk_cuda_has_weight(call, DPK_WT(layer_norm, gamma)))
        job.gamma =
            (const float *)dpk_cuda_find_weight(cuda, call, DPK_WT(layer_norm, gamma))->data;
    if (dpk_cuda_has_weight(call, DPK_WT(layer_norm, beta)))
        job.beta = (const float *)dpk_cuda_find_weight(cuda, call, DPK_WT(layer_norm, beta))->data;
    if (dpk_cuda_has_input(call, DPK_IN(layer_norm, mod))) {
        job.mod = mod->data;
        job.rows_image = job.rows / x->shape.dim[0];
        job.mod_width = mod->shape.dim[0] > 1 ? mod->shape.dim[1] : 0;
        job.shift = at->shift_off;
        job.scale = at->scale_off;
    }
    job.rows8 = dpk_cuda_made_rows8(&call->out);
    job.rule = dpk_rule_of(call->out.rows8);
    DPK_CUDA_TRY(call->out.dtype == DPK_F32 ? launch_layer_norm<float>(cuda, &job)
                                            : launch_layer_norm<dpk_bf16>(cuda, &job),
                 "layer_norm", err);
    return DPK_OK;
}
