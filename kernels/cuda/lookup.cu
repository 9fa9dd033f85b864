/* Operators that look up and compute positions: embedding, eos_pool, sinusoid, pos_embed_2d,
 * relative_bias. All are short. The roundings to float32 on the way are those of the reference
 * implementations, as in kernels/cpu/op_position.c; functions are taken in double. */
#include "device.cuh"

enum { THREADS = 128 };

static unsigned grid_for(const struct dpk_cuda *cuda, int64_t n) {
    unsigned blocks = dpk_cuda_blocks(n, THREADS), most = (unsigned)cuda->n_sm * 16;
    return blocks < most ? blocks : most;
}

/* Element i of a table in the file's type. */
__device__ __forceinline__ float table_at(const void *table, int dtype, int64_t i) {
    if (dtype == DPK_F32) return ((const float *)table)[i];
    if (dtype == DPK_BF16) return dpk_float(((const dpk_bf16 *)table)[i]);
    return dpk_float(((const __half *)table)[i]);
}

/* ---- embedding ----------------------------------------------------------------------------- */

struct embedding_job {
    const int32_t *ids;
    const void *table, *pos;
    int table_type, pos_type;
    int rows, length; /* ids outside are kept within the table: the host has checked them */
    int64_t n, width;
};

template <typename T> __global__ void embedding_kernel(T *y, struct embedding_job job) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.n; i += stride) {
        const int64_t at = i / job.width, c = i % job.width;
        const int64_t id = min(max(job.ids[at], 0), job.rows - 1);
        float v = table_at(job.table, job.table_type, id * job.width + c);
        if (job.pos) v += table_at(job.pos, job.pos_type, at % job.length * job.width + c);
        y[i] = dpk_round<T>(v);
    }
}

int dpk_cuda_run_embedding(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *ids = &call->in[DPK_IN(embedding, ids)];
    const struct dpk_cuda_weight *table =
        dpk_cuda_find_weight(cuda, call, DPK_WT(embedding, table));
    struct embedding_job job = {};
    job.ids = (const int32_t *)ids->data;
    job.table = table->data;
    job.table_type = table->dtype;
    if (dpk_cuda_has_weight(call, DPK_WT(embedding, pos))) {
        const struct dpk_cuda_weight *pos =
            dpk_cuda_find_weight(cuda, call, DPK_WT(embedding, pos));
        job.pos = pos->data;
        job.pos_type = pos->dtype;
    }
    job.rows = call->wt[DPK_WT(embedding, table)].shape.dim[0];
    job.length = ids->shape.dim[ids->shape.rank - 1];
    job.n = dpk_shape_count(&call->out.shape);
    job.width = call->out.shape.dim[call->out.shape.rank - 1];
    DPK_CUDA_TRY(call->out.dtype == DPK_F32
                     ? DPK_LAUNCH(embedding_kernel<float>, grid_for(cuda, job.n), THREADS, 0,
                                  cuda->stream, (float *)call->out.data, job)
                     : DPK_LAUNCH(embedding_kernel<dpk_bf16>, grid_for(cuda, job.n), THREADS, 0,
                                  cuda->stream, (dpk_bf16 *)call->out.data, job),
                 "embedding", err);
    return DPK_OK;
}

/* ---- eos_pool: a block for each sequence --------------------------------------------------- */

template <typename U>
__global__ void eos_pool_kernel(U *y, const U *x, const int32_t *ids, int length, int64_t width,
                                int eos) {
    DPK_SHARED(int, at, [1]);
    ids += (int64_t)blockIdx.x * length;
    if (threadIdx.x == 0) {
        int found = 0;
        for (int i = 0; i < length; i++) {
            if (eos == -1 ? ids[i] > ids[found] : ids[i] == eos) {
                found = i;
                if (eos != -1) break;
            }
        }
        at[0] = found;
    }
    __syncthreads();
    const U *from = x + ((int64_t)blockIdx.x * length + at[0]) * width;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) y[blockIdx.x * width + i] = from[i];
}

int dpk_cuda_run_eos_pool(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *x = &call->in[DPK_IN(eos_pool, x)];
    const int32_t *ids = (const int32_t *)call->in[DPK_IN(eos_pool, ids)].data;
    const int eos = DPK_ATTRS(eos_pool, call->op)->eos_id;
    const unsigned rows = (unsigned)x->shape.dim[0];
    const int length = x->shape.dim[1];
    const int64_t width = x->shape.dim[2];
    DPK_CUDA_TRY(call->out.dtype == DPK_F32
                     ? DPK_LAUNCH(eos_pool_kernel<uint32_t>, rows, THREADS, 0, cuda->stream,
                                  (uint32_t *)call->out.data, (const uint32_t *)x->data, ids,
                                  length, width, eos)
                     : DPK_LAUNCH(eos_pool_kernel<uint16_t>, rows, THREADS, 0, cuda->stream,
                                  (uint16_t *)call->out.data, (const uint16_t *)x->data, ids,
                                  length, width, eos),
                 "eos_pool", err);
    return DPK_OK;
}

/* ---- sinusoid ------------------------------------------------------------------------------ */

struct sinusoid_job {
    int64_t n; /* numbers times half */
    int half;
    bool flip;
    float log_period, steps;
};

template <typename T>
__global__ void sinusoid_kernel(T *y, const float *t, struct sinusoid_job job) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.n; i += stride) {
        const int64_t number = i / job.half, j = i % job.half;
        const float exponent = __fdiv_rn(__fmul_rn(job.log_period, (float)j), job.steps);
        const float angle = __fmul_rn(t[number], (float)exp((double)exponent));
        T *to = y + number * 2 * job.half + j;
        to[job.flip ? job.half : 0] = dpk_round<T>((float)sin((double)angle));
        to[job.flip ? 0 : job.half] = dpk_round<T>((float)cos((double)angle));
    }
}

int dpk_cuda_run_sinusoid(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_sinusoid_attrs *at = DPK_ATTRS(sinusoid, call->op);
    struct sinusoid_job job;
    job.half = at->dim / 2;
    job.n = dpk_shape_count(&call->out.shape) / 2;
    job.flip = at->flip != 0;
    job.log_period = (float)-log((double)at->max_period);
    job.steps = (float)((double)job.half - (double)at->freq_shift);
    const float *t = (const float *)call->in[DPK_IN(sinusoid, t)].data;
    DPK_CUDA_TRY(call->out.dtype == DPK_F32
                     ? DPK_LAUNCH(sinusoid_kernel<float>, grid_for(cuda, job.n), THREADS, 0,
                                  cuda->stream, (float *)call->out.data, t, job)
                     : DPK_LAUNCH(sinusoid_kernel<dpk_bf16>, grid_for(cuda, job.n), THREADS, 0,
                                  cuda->stream, (dpk_bf16 *)call->out.data, t, job),
                 "sinusoid", err);
    return DPK_OK;
}

/* ---- pos_embed_2d: a table of columns and one of rows in the scratch, then one pass -------- */

struct pos_job {
    int h, w, half;
    float step_x, step_y; /* size of the axis over base */
    float interpolation;
    float *table; /* [w + h][half] */
    int64_t n;    /* values of x */
};

__global__ void pos_table_kernel(struct pos_job job) {
    const int quarter = job.half / 2;
    const int64_t n = ((int64_t)job.w + job.h) * quarter;
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const int line = (int)(i / quarter), j = (int)(i % quarter);
        const int index = line < job.w ? line : line - job.w;
        const float step = line < job.w ? job.step_x : job.step_y;
        const float p = __fdiv_rn(__fdiv_rn((float)index, step), job.interpolation);
        const double angle = (double)p * (1.0 / pow(10000.0, (double)j / (double)quarter));
        float *to = job.table + (int64_t)line * job.half + j;
        to[0] = (float)sin(angle);
        to[quarter] = (float)cos(angle);
    }
}

template <typename T> __global__ void pos_add_kernel(T *y, const T *x, struct pos_job job) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.n; i += stride) {
        const int c = (int)(i % (2 * job.half));
        const int64_t pixel = i / (2 * job.half);
        const int line = c < job.half ? (int)(pixel % job.w) : job.w + (int)(pixel / job.w % job.h);
        const float v = job.table[(int64_t)line * job.half + c % job.half];
        y[i] = dpk_round<T>(dpk_float(x[i]) + v);
    }
}

size_t dpk_cuda_scratch_pos_embed_2d(const struct dpk_cuda *, const struct dpk_call *call) {
    const struct dpk_shape *x = &call->in[DPK_IN(pos_embed_2d, x)].shape;
    return ((size_t)x->dim[1] + (size_t)x->dim[2]) * (size_t)(x->dim[3] / 2) * sizeof(float);
}

int dpk_cuda_run_pos_embed_2d(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_pos_embed_2d_attrs *at = DPK_ATTRS(pos_embed_2d, call->op);
    const struct dpk_tensor *x = &call->in[DPK_IN(pos_embed_2d, x)];
    struct pos_job job;
    job.h = x->shape.dim[1];
    job.w = x->shape.dim[2];
    job.half = x->shape.dim[3] / 2;
    job.step_x = (float)((double)job.w / (double)at->base);
    job.step_y = (float)((double)job.h / (double)at->base);
    job.interpolation = at->interpolation;
    job.table = (float *)call->scratch;
    job.n = dpk_shape_count(&x->shape);
    const int64_t entries = ((int64_t)job.w + job.h) * job.half / 2;
    DPK_CUDA_TRY(
        DPK_LAUNCH(pos_table_kernel, grid_for(cuda, entries), THREADS, 0, cuda->stream, job),
        "pos_embed_2d", err);
    DPK_CUDA_TRY(
        call->out.dtype == DPK_F32
            ? DPK_LAUNCH(pos_add_kernel<float>, grid_for(cuda, job.n), THREADS, 0, cuda->stream,
                         (float *)call->out.data, (const float *)x->data, job)
            : DPK_LAUNCH(pos_add_kernel<dpk_bf16>, grid_for(cuda, job.n), THREADS, 0, cuda->stream,
                         (dpk_bf16 *)call->out.data, (const dpk_bf16 *)x->data, job),
        "pos_embed_2d", err);
    return DPK_OK;
}

/* ---- relative_bias ------------------------------------------------------------------------- */

struct bias_job {
    const void *table;
    int table_type, length, heads, buckets;
    float log_range;
    int64_t n;
};

/* Half of the buckets for each sign; of a half, the lower half is exact, the rest logarithmic. */
__device__ __forceinline__ int bucket_of(int distance, const struct bias_job &job) {
    const int side = job.buckets / 2, exact = side / 2, base = distance > 0 ? side : 0;
    const int a = distance < 0 ? -distance : distance;
    if (a < exact) return base + a;
    if (exact == 0) return base;
    const float part = __fdiv_rn((float)a, (float)exact);
    const float f =
        __fmul_rn(__fdiv_rn((float)log((double)part), job.log_range), (float)(side - exact));
    if (!(f < (float)(side - exact))) return base + side - 1;
    return base + exact + (int)f;
}

template <typename T> __global__ void relative_bias_kernel(T *y, struct bias_job job) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.n; i += stride) {
        const int key = (int)(i % job.length), query = (int)(i / job.length % job.length);
        const int64_t head = i / job.length / job.length;
        const int64_t bucket = bucket_of(key - query, job);
        y[i] = dpk_round<T>(table_at(job.table, job.table_type, bucket * job.heads + head));
    }
}

int dpk_cuda_run_relative_bias(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_relative_bias_attrs *at = DPK_ATTRS(relative_bias, call->op);
    const struct dpk_cuda_weight *table =
        dpk_cuda_find_weight(cuda, call, DPK_WT(relative_bias, table));
    const int exact = at->buckets / 4;
    struct bias_job job = {};
    job.table = table->data;
    job.table_type = table->dtype;
    job.heads = call->out.shape.dim[0];
    job.length = call->out.shape.dim[1];
    job.buckets = at->buckets;
    if (exact) job.log_range = (float)log((double)at->max_distance / (double)exact);
    job.n = dpk_shape_count(&call->out.shape);
    DPK_CUDA_TRY(call->out.dtype == DPK_F32
                     ? DPK_LAUNCH(relative_bias_kernel<float>, grid_for(cuda, job.n), THREADS, 0,
                                  cuda->stream, (float *)call->out.data, job)
                     : DPK_LAUNCH(relative_bias_kernel<dpk_bf16>, grid_for(cuda, job.n), THREADS, 0,
                                  cuda->stream, (dpk_bf16 *)call->out.data, job),
                 "relative_bias", err);
    return DPK_OK;
}
