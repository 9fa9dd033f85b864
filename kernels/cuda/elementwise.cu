/* Operators whose elements have nothing to do with each other: add, outer_add, slice, concat,
 * unpatchify, select. Bound by memory: a thread takes W adjacent elements (16 bytes of the
 * activations) where all rows allow that, else one. */
#include "device.cuh"

enum { THREADS = 256 };

static unsigned grid_for(const struct dpk_cuda *cuda, int64_t n) {
    unsigned blocks = dpk_cuda_blocks(n, THREADS), most = (unsigned)cuda->n_sm * 16;
    return blocks < most ? blocks : most;
}

/* W elements at p as floats, and back: 16 bytes of T, or as many elements of another type. */
template <typename T, int W> __device__ __forceinline__ void load(const T *p, float *v) {
    const dpk_vec<T, W> in = *reinterpret_cast<const dpk_vec<T, W> *>(p);
#pragma unroll
    for (int j = 0; j < W; j++) v[j] = dpk_float(in.v[j]);
}
template <typename T, int W> __device__ __forceinline__ void store(T *p, const float *v) {
    dpk_vec<T, W> out;
#pragma unroll
    for (int j = 0; j < W; j++) out.v[j] = dpk_round<T>(v[j]);
    *reinterpret_cast<dpk_vec<T, W> *>(p) = out;
}

static int64_t width_of(const struct dpk_tensor *t) { return t->shape.dim[t->shape.rank - 1]; }

/* ---- add: y[i] = a[i] + c[i % period] ------------------------------------------------------ */

template <typename T, typename C, int W>
__global__ void add_kernel(T *y, const T *a, const C *c, int64_t n, int64_t period) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        float u[W], v[W];
        load<T, W>(a + i * W, u);
        load<C, W>(c + i * W % period, v);
#pragma unroll
        for (int j = 0; j < W; j++) u[j] += v[j];
        store<T, W>(y + i * W, u);
    }
}

template <typename T, typename C>
static cudaError_t launch_add(struct dpk_cuda *cuda, const struct dpk_call *call, const void *c,
                              int64_t period) {
    constexpr int W = 4;
    const int64_t n = dpk_shape_count(&call->out.shape);
    T *y = (T *)call->out.data;
    const T *a = (const T *)call->in[DPK_IN(add, a)].data;
    if (period % W == 0)
        return DPK_LAUNCH((add_kernel<T, C, W>), grid_for(cuda, n / W), THREADS, 0, cuda->stream, y,
                          a, (const C *)c, n / W, period);
    return DPK_LAUNCH((add_kernel<T, C, 1>), grid_for(cuda, n), THREADS, 0, cuda->stream, y, a,
                      (const C *)c, n, period);
}

int dpk_cuda_run_add(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *c = &call->in[DPK_IN(add, c)];
    const bool table = !dpk_cuda_has_input(call, DPK_IN(add, c));
    const void *data = table ? dpk_cuda_find_weight(cuda, call, DPK_WT(add, table))->data : c->data;
    const int64_t period = dpk_shape_count(table ? &call->wt[DPK_WT(add, table)].shape : &c->shape);
    cudaError_t e;
    if (call->out.dtype == DPK_F32) e = launch_add<float, float>(cuda, call, data, period);
    else if (table) e = launch_add<dpk_bf16, float>(cuda, call, data, period);
    else e = launch_add<dpk_bf16, dpk_bf16>(cuda, call, data, period);
    DPK_CUDA_TRY(e, "add", err);
    return DPK_OK;
}

/* ---- outer_add: y[t, b] = act(a[t] + c[b]) ------------------------------------------------- */

template <typename T>
__global__ void outer_add_kernel(T *y, const T *a, const T *c, int64_t n, int64_t width,
                                 int64_t rows, int act) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const int64_t col = i % width, b = i / width % rows, t = i / width / rows;
        y[i] = dpk_round<T>(
            dpk_act(dpk_float(a[t * width + col]) + dpk_float(c[b * width + col]), act));
    }
}

template <typename T>
static cudaError_t launch_outer_add(struct dpk_cuda *cuda, const struct dpk_call *call) {
    const struct dpk_tensor *a = &call->in[DPK_IN(outer_add, a)];
    const struct dpk_tensor *c = &call->in[DPK_IN(outer_add, c)];
    const int64_t n = dpk_shape_count(&call->out.shape), width = width_of(a);
    return DPK_LAUNCH(outer_add_kernel<T>, grid_for(cuda, n), THREADS, 0, cuda->stream,
                      (T *)call->out.data, (const T *)a->data, (const T *)c->data, n, width,
                      dpk_shape_count(&c->shape) / width, DPK_ATTRS(outer_add, call->op)->act);
}

int dpk_cuda_run_outer_add(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    DPK_CUDA_TRY(call->out.dtype == DPK_F32 ? launch_outer_add<float>(cuda, call)
                                            : launch_outer_add<dpk_bf16>(cuda, call),
                 "outer_add", err);
    return DPK_OK;
}

/* ---- slice --------------------------------------------------------------------------------- */

struct slice_job {
    int64_t n;                 /* runs of W elements */
    int64_t count, width, off; /* in elements */
    float mul, add, lo, hi;
};

template <typename T, typename X, int W>
__global__ void slice_kernel(T *y, const X *x, struct slice_job job) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.n; i += stride) {
        float v[W];
        const int64_t row = i * W / job.count, col = i * W % job.count;
        load<X, W>(x + row * job.width + job.off + col, v);
#pragma unroll
        for (int j = 0; j < W; j++) {
            const float f = __fadd_rn(__fmul_rn(job.mul, v[j]), job.add);
            v[j] = f < job.lo ? job.lo : f > job.hi ? job.hi : f;
        }
        store<T, W>(y + i * W, v);
    }
}

template <typename T, typename X>
static cudaError_t launch_slice(struct dpk_cuda *cuda, const struct dpk_call *call) {
    constexpr int W = 4;
    const struct dpk_slice_attrs *at = DPK_ATTRS(slice, call->op);
    const struct dpk_tensor *x = &call->in[DPK_IN(slice, x)];
    const int64_t n = dpk_shape_count(&call->out.shape);
    struct slice_job job = {
        n, width_of(&call->out), width_of(x), at->off, at->mul, at->add, at->lo, at->hi};
    if (job.count == job.width) job.count = job.width = n; /* one long row */
    const bool wide = job.count % W == 0 && job.width % W == 0 && job.off % W == 0;
    if (wide) {
        job.n = n / W;
        return DPK_LAUNCH((slice_kernel<T, X, W>), grid_for(cuda, job.n), THREADS, 0, cuda->stream,
                          (T *)call->out.data, (const X *)x->data, job);
    }
    return DPK_LAUNCH((slice_kernel<T, X, 1>), grid_for(cuda, n), THREADS, 0, cuda->stream,
                      (T *)call->out.data, (const X *)x->data, job);
}

int dpk_cuda_run_slice(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const bool from = call->in[DPK_IN(slice, x)].dtype == DPK_F32, to = call->out.dtype == DPK_F32;
    cudaError_t e = from ? to ? launch_slice<float, float>(cuda, call)
                              : launch_slice<dpk_bf16, float>(cuda, call)
                    : to ? launch_slice<float, dpk_bf16>(cuda, call)
                         : launch_slice<dpk_bf16, dpk_bf16>(cuda, call);
    DPK_CUDA_TRY(e, "slice", err);
    return DPK_OK;
}

/* ---- concat, select, unpatchify: elements moved as they are -------------------------------- */

/* y row r is a row r, then c row r; widths in words of 2 or 4 bytes. */
template <typename U>
__global__ void concat_kernel(U *y, const U *a, const U *c, int64_t n, int64_t wa, int64_t wc) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const int64_t row = i / (wa + wc), col = i % (wa + wc);
        y[i] = col < wa ? a[row * wa + col] : c[row * wc + col - wa];
    }
}

/* The widest word that divides all of these numbers of bytes, which are multiples of 2. */
static int word_of(int64_t a, int64_t c) {
    const int64_t both = a | c;
    return both % 16 == 0 ? 16 : both % 4 == 0 ? 4 : 2;
}

static int64_t bytes_of(int dtype) { return dtype == DPK_BF16 ? 2 : 4; }

template <typename U>
static cudaError_t launch_concat(struct dpk_cuda *cuda, const struct dpk_call *call) {
    const int64_t size = bytes_of(call->out.dtype), word = (int64_t)sizeof(U);
    const struct dpk_tensor *a = &call->in[DPK_IN(concat, a)], *c = &call->in[DPK_IN(concat, c)];
    const int64_t n = dpk_shape_count(&call->out.shape) * size / word;
    return DPK_LAUNCH(concat_kernel<U>, grid_for(cuda, n), THREADS, 0, cuda->stream,
                      (U *)call->out.data, (const U *)a->data, (const U *)c->data, n,
                      width_of(a) * size / word, width_of(c) * size / word);
}

int dpk_cuda_run_concat(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const int64_t size = bytes_of(call->out.dtype);
    const int word = word_of(width_of(&call->in[DPK_IN(concat, a)]) * size,
                             width_of(&call->in[DPK_IN(concat, c)]) * size);
    DPK_CUDA_TRY(word == 16  ? launch_concat<uint4>(cuda, call)
                 : word == 4 ? launch_concat<uint32_t>(cuda, call)
                             : launch_concat<uint16_t>(cuda, call),
                 "concat", err);
    return DPK_OK;
}

/* The index was checked where the host gave it; what a kernel counted is kept within the table. */
template <typename U>
__global__ void select_kernel(U *y, const U *x, const int32_t *index, int rows, int64_t n) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    const int64_t row = min(max(index[0], 0), rows - 1);
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        y[i] = x[row * n + i];
}

template <typename U>
static cudaError_t launch_select(struct dpk_cuda *cuda, const struct dpk_call *call, int64_t n) {
    const struct dpk_tensor *x = &call->in[DPK_IN(select, x)];
    return DPK_LAUNCH(select_kernel<U>, grid_for(cuda, n), THREADS, 0, cuda->stream,
                      (U *)call->out.data, (const U *)x->data,
                      (const int32_t *)call->in[DPK_IN(select, index)].data, x->shape.dim[0], n);
}

int dpk_cuda_run_select(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const int64_t bytes = dpk_shape_count(&call->out.shape) * bytes_of(call->out.dtype);
    const int word = word_of(bytes, 0);
    DPK_CUDA_TRY(word == 16  ? launch_select<uint4>(cuda, call, bytes / 16)
                 : word == 4 ? launch_select<uint32_t>(cuda, call, bytes / 4)
                             : launch_select<uint16_t>(cuda, call, bytes / 2),
                 "select", err);
    return DPK_OK;
}

/* y[b, h*p + i, w*p + j, c] = x[b, h, w, (i*p + j)*C + c]; run = p * C elements move together. */
template <typename U>
__global__ void unpatchify_kernel(U *y, const U *x, int64_t n, int64_t run, int64_t width, int p) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < n; at += stride) {
        const int64_t col = at % run, w = at / run % width, line = at / run / width;
        const int64_t patch = line / p * width + w;
        y[at] = x[(patch * p + line % p) * run + col];
    }
}

int dpk_cuda_run_unpatchify(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *x = &call->in[DPK_IN(unpatchify, x)];
    const int p = DPK_ATTRS(unpatchify, call->op)->patch;
    const int64_t n = dpk_shape_count(&x->shape), run = width_of(x) / p, width = x->shape.dim[2];
    DPK_CUDA_TRY(
        call->out.dtype == DPK_F32
            ? DPK_LAUNCH(unpatchify_kernel<uint32_t>, grid_for(cuda, n), THREADS, 0, cuda->stream,
                         (uint32_t *)call->out.data, (const uint32_t *)x->data, n, run, width, p)
            : DPK_LAUNCH(unpatchify_kernel<uint16_t>, grid_for(cuda, n), THREADS, 0, cuda->stream,
                         (uint16_t *)call->out.data, (const uint16_t *)x->data, n, run, width, p),
        "unpatchify", err);
    return DPK_OK;
}
