/* Group normalisation. A mean is summed, then corrected by the sum of the distances from it, which
 * also corrects the sum of their squares (the corrected two-pass algorithm of Chan, Golub and
 * LeVeque 1983): nothing cancels, however far from zero the mean is. Nothing is added by atomics, so
 * results are the same every time.
 *
 * x is read twice from memory: pass 1 gives every chunk of pixels (some 32 KiB, which the second
 * look at it finds in the caches) to a block, that makes mean, distances and squares of each group
 * in the chunk; pass 2, a block a group, joins the chunks in double by the same paper's formula, and
 * makes three factors of every channel; pass 3 applies them, and the activation. Where an int8
 * product reads the result, pass 3 gives a warp a pixel, keeps it in registers and leaves integers.
 *     scratch: partial [B][chunks][groups][3], channel [B][C][3] */
#include "quantize.cuh"

enum { THREADS = 256, CHUNK_BYTES = 32 << 10, ROWS = 4 /* warps of a block of pass 3 */ };

struct group_job {
    const void *x, *x2;
    void *y;
    const float *gamma, *beta;
    float *partial, *channel;
    int64_t pixels;                           /* of an image */
    int images, c, c1, groups, chunks, chunk; /* chunk: pixels */
    int act;
    float eps;
    struct dpk_cuda_rows8 rows8; /* the result, where q is not NULL */
    int rule;                    /* of rows8: enum dpk_quantize_rule */
};

/* Channels v .. v + W - 1 of a pixel, of x or of x2. */
template <typename T, int W>
__device__ __forceinline__ void load_pixel(const struct group_job &job, int64_t pixel, int v,
                                           float *out) {
    const T *from = v < job.c1 ? (const T *)job.x + pixel * job.c1 + v
                               : (const T *)job.x2 + pixel * (job.c - job.c1) + (v - job.c1);
    const dpk_vec<T, W> in = *reinterpret_cast<const dpk_vec<T, W> *>(from);
#pragma unroll
    for (int j = 0; j < W; j++) out[j] = dpk_float(in.v[j]);
}

/* sums[0][row][c]: over the block's pixels, the distance from mean[group] (or from 0), and
 * sums[1][row][c] its square; then both for each group, over rows and channels, to e1 and e2. */
template <typename T, int W>
__device__ void sum_chunk(const struct group_job &job, int64_t first, int n, const float *mean,
                          float *sums, float *e1, float *e2) {
    const int vectors = job.c / W, lanes = vectors < THREADS ? vectors : THREADS;
    const int rows = THREADS / lanes, row = (int)threadIdx.x / lanes, per = job.c / job.groups;
    for (int v = (int)threadIdx.x % lanes; row < rows && v < vectors; v += lanes) {
        float a1[W], a2[W], in[W], m[W];
#pragma unroll
        for (int j = 0; j < W; j++) {
            a1[j] = a2[j] = 0.0f;
            m[j] = mean ? mean[(v * W + j) / per] : 0.0f;
        }
        for (int p = row; p < n; p += rows) {
            load_pixel<T, W>(job, first + p, v * W, in);
#pragma unroll
            for (int j = 0; j < W; j++) {
                const float d = in[j] - m[j];
                a1[j] += d;
                a2[j] += d * d;
            }
        }
#pragma unroll
        for (int j = 0; j < W; j++) {
            sums[row * job.c + v * W + j] = a1[j];
            sums[(rows + row) * job.c + v * W + j] = a2[j];
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 2 * job.groups; i += THREADS) {
        const int second = i >= job.groups, g = i - second * job.groups;
        float s = 0.0f;
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < per; j++) s += sums[(second * rows + r) * job.c + g * per + j];
        (second ? e2 : e1)[g] = s;
    }
    __syncthreads();
}

/* Block (chunk, image). Dynamic shared memory: sums [2][rows][c]; mean, e1, e2 [groups]. */
template <typename T, int W>
__global__ void __launch_bounds__(THREADS) group_partial_kernel(struct group_job job, int rows) {
    DPK_SHARED_DYNAMIC(float, sums);
    float *mean = sums + 2 * rows * job.c, *e1 = mean + job.groups, *e2 = e1 + job.groups;
    const int64_t start = (int64_t)blockIdx.x * job.chunk, left = job.pixels - start;
    const int n = left < job.chunk ? (int)left : job.chunk;
    const int64_t first = blockIdx.y * job.pixels + start;
    sum_chunk<T, W>(job, first, n, NULL, sums, mean, e2);
    for (int g = (int)threadIdx.x; g < job.groups; g += THREADS)
        mean[g] /= (float)n * (float)(job.c / job.groups);
    __syncthreads();
    sum_chunk<T, W>(job, first, n, mean, sums, e1, e2);
    float *out = job.partial + ((int64_t)blockIdx.y * job.chunks + blockIdx.x) * job.groups * 3;
    for (int g = (int)threadIdx.x; g < job.groups; g += THREADS) {
        out[3 * g] = mean[g];
        out[3 * g + 1] = e1[g];
        out[3 * g + 2] = e2[g];
    }
}

/* Block (group, image). */
__global__ void group_join_kernel(struct group_job job) {
    DPK_SHARED(double, sums, [32]);
    const int g = (int)blockIdx.x, per = job.c / job.groups;
    const float *in = job.partial + ((int64_t)blockIdx.y * job.chunks * job.groups + g) * 3;
    const double total = (double)job.pixels * (double)per;
    double mean = 0, square = 0;
    for (int k = (int)threadIdx.x; k < job.chunks; k += (int)blockDim.x) {
        const float *part = in + (int64_t)k * job.groups * 3;
        const int64_t left = job.pixels - (int64_t)k * job.chunk;
        const double n = (double)(left < job.chunk ? left : job.chunk) * (double)per;
        mean += n * (double)part[0] + (double)part[1];
    }
    mean = dpk_block_sum(mean, sums) / total;
    for (int k = (int)threadIdx.x; k < job.chunks; k += (int)blockDim.x) {
        const float *part = in + (int64_t)k * job.groups * 3;
        const int64_t left = job.pixels - (int64_t)k * job.chunk;
        const double n = (double)(left < job.chunk ? left : job.chunk) * (double)per;
        const double e1 = (double)part[1], d = (double)part[0] + e1 / n - mean;
        square += (double)part[2] - e1 * e1 / n + n * d * d;
    }
    square = dpk_block_sum(square, sums);
    const float factor = (float)(1.0 / sqrt(square / total + (double)job.eps));
    const float high = (float)mean, low = (float)(mean - (double)high);
    for (int j = (int)threadIdx.x; j < per; j += (int)blockDim.x) {
        const int c = g * per + j;
        float *out = job.channel + ((int64_t)blockIdx.y * job.c + c) * 3;
        out[0] = high;
        out[1] = factor * job.gamma[c];
        out[2] = job.beta[c] - low * out[1];
    }
}

/* v = the result at channels c .. c + W - 1 of a pixel. */
template <typename T, int W>
__device__ __forceinline__ void normalise(const struct group_job &job, int64_t pixel, int c,
                                          float *v) {
    const float *channel = job.channel + (pixel / job.pixels * job.c + c) * 3;
    load_pixel<T, W>(job, pixel, c, v);
#pragma unroll
    for (int j = 0; j < W; j++)
        v[j] = dpk_act((v[j] - channel[3 * j]) * channel[3 * j + 1] + channel[3 * j + 2], job.act);
}

template <typename T, int W> __global__ void group_apply_kernel(struct group_job job) {
    const int64_t n = job.images * job.pixels * (job.c / W);
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const int c = (int)(i % (job.c / W)) * W;
        const int64_t pixel = i / (job.c / W);
        float v[W];
        dpk_vec<T, W> out;
        normalise<T, W>(job, pixel, c, v);
#pragma unroll
        for (int j = 0; j < W; j++) out.v[j] = dpk_round<T>(v[j]);
        *reinterpret_cast<dpk_vec<T, W> *>((T *)job.y + pixel * job.c + c) = out;
    }
}

/* A warp a pixel, a lane keeps runs of W values, 32 W apart. */
template <typename T, int W>
__global__ void __launch_bounds__(32 * ROWS) group_rows8_kernel(struct group_job job) {
    const int lane = (int)threadIdx.x % 32;
    const int64_t pixel = (int64_t)blockIdx.x * ROWS + threadIdx.x / 32;
    if (pixel >= job.images * job.pixels) return;
    float v[DPK_ROW_KEPT / W][W];
#pragma unroll
    for (int r = 0; r < DPK_ROW_KEPT / W; r++) {
        const int c = (r * 32 + lane) * W;
        if (c >= job.c) break;
        normalise<T, W>(job, pixel, c, v[r]);
    }
    dpk_put_row8<T, W>(job.rows8, job.rule, pixel, job.c, lane, v);
}

static int rows_of(const struct group_job *job, int w) {
    const int vectors = job->c / w;
    return vectors < THREADS ? THREADS / vectors : 1;
}

template <typename T, int W>
static cudaError_t launch_group_norm(struct dpk_cuda *cuda, const struct group_job *job) {
    const int rows = rows_of(job, W);
    const size_t shared = (2 * (size_t)rows * (size_t)job->c + 3 * (size_t)job->groups) * 4;
    const int64_t n = job->images * job->pixels * (job->c / W);
    unsigned blocks = dpk_cuda_blocks(n, THREADS), most = (unsigned)cuda->n_sm * 16;
    cudaError_t e =
        DPK_LAUNCH((group_partial_kernel<T, W>), dim3((unsigned)job->chunks, (unsigned)job->images),
                   THREADS, shared, cuda->stream, *job, rows);
    if (e == cudaSuccess)
        e = DPK_LAUNCH(group_join_kernel, dim3((unsigned)job->groups, (unsigned)job->images), 128,
                       0, cuda->stream, *job);
    if (e != cudaSuccess) return e;
    if constexpr (W > 1)
        if (job->rows8.q)
            return DPK_LAUNCH((group_rows8_kernel<T, W>),
                              dpk_cuda_blocks(job->images * job->pixels, ROWS), 32 * ROWS, 0,
                              cuda->stream, *job);
    return DPK_LAUNCH((group_apply_kernel<T, W>), blocks < most ? blocks : most, THREADS, 0,
                      cuda->stream, *job);
}

/* Shapes, and how pixels are cut: the same for scratch and run. */
static struct group_job plan_group_norm(const struct dpk_cuda *cuda, const struct dpk_call *call) {
    const struct dpk_group_norm_attrs *at = DPK_ATTRS(group_norm, call->op);
    const struct dpk_tensor *x = &call->in[DPK_IN(group_norm, x)];
    struct group_job job = {};
    job.images = x->shape.dim[0];
    job.c = call->out.shape.dim[call->out.shape.rank - 1];
    job.c1 = x->shape.dim[x->shape.rank - 1];
    job.groups = at->groups;
    job.act = at->act;
    job.eps = at->eps;
    job.pixels = dpk_shape_count(&x->shape) / job.images / job.c1;
    const int64_t row = (int64_t)job.c * (x->dtype == DPK_BF16 ? 2 : 4);
    int64_t chunk = CHUNK_BYTES / row;                                   /* for the caches */
    const int64_t even = job.pixels * job.images / (2 * cuda->n_sm) + 1; /* for all processors */
    if (chunk > even) chunk = even;
    if (chunk < 1) chunk = 1;
    while ((job.pixels + chunk - 1) / chunk > 65536) chunk *= 2;
    job.chunk = (int)chunk;
    job.chunks = (int)((job.pixels + chunk - 1) / chunk);
    return job;
}

static size_t partial_floats(const struct group_job *job) {
    return (size_t)job->images * (size_t)job->chunks * (size_t)job->groups * 3;
}

size_t dpk_cuda_scratch_group_norm(const struct dpk_cuda *cuda, const struct dpk_call *call) {
    const struct group_job job = plan_group_norm(cuda, call);
    return (partial_floats(&job) + (size_t)job.images * (size_t)job.c * 3) * sizeof(float);
}

/* 16 bytes of a row are of one input. */
static bool is_wide(const struct group_job *job, int dtype) {
    const int w = dtype == DPK_F32 ? 4 : 8;
    return job->c % w == 0 && job->c1 % w == 0;
}

bool dpk_cuda_rows8_group_norm(const struct dpk_cuda *cuda, const struct dpk_call *call) {
    const struct group_job job = plan_group_norm(cuda, call);
    return is_wide(&job, call->out.dtype) && dpk_row_is_kept(job.c, call->out.dtype);
}

int dpk_cuda_run_group_norm(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    struct group_job job = plan_group_norm(cuda, call);
    const bool wide = is_wide(&job, call->out.dtype);
    job.x = call->in[DPK_IN(group_norm, x)].data;
    if (dpk_cuda_has_input(call, DPK_IN(group_norm, x2)))
        job.x2 = call->in[DPK_IN(group_norm, x2)].data;
    job.y = call->out.data;
    job.gamma = (const float *)dpk_cuda_find_weight(cuda, call, DPK_WT(group_norm, gamma))->data;
    job.beta = (const float *)dpk_cuda_find_weight(cuda, call, DPK_WT(group_norm, beta))->data;
    job.partial = (float *)call->scratch;
    job.channel = job.partial + partial_floats(&job);
    job.rows8 = dpk_cuda_made_rows8(&call->out);
    job.rule = dpk_rule_of(call->out.rows8);
    if (job.images > 65535)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "cuda: group_norm of %d images, at most 65535", job.images);
    cudaError_t e = call->out.dtype == DPK_F32 ? wide ? launch_group_norm<float, 4>(cuda, &job)
                                                      : launch_group_norm<float, 1>(cuda, &job)
                    : wide ? launch_group_norm<dpk_bf16, 8>(cuda, &job)
                                               : launch_group_norm<dpk_bf16, 1>(cuda, &job);
    DPK_CUDA_TRY(e, "group_norm", err);
    return DPK_OK;
}
