/* The CUDA backend object: creation, memory, copies, and the dispatch of calls to operators. */
#include "backend_cuda.h"

struct op_entry {
    int (*run)(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err);
    size_t (*scratch)(const struct dpk_cuda *cuda, const struct dpk_call *call);
    int (*prepare)(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err);
    uint32_t in_place;
};

/* The row of kernels.def, or NULL. */
static const struct op_entry *find_entry(uint32_t opcode) {
#define SCRATCH(name) dpk_cuda_scratch_##name
#define PREPARE(name) dpk_cuda_prepare_##name
#define NONE(name) NULL
#define DPK_CUDA_OP(name, scratch, prepare, in_place)                                              \
    case DPK_OP_##name: {                                                                          \
        static const struct op_entry entry = {dpk_cuda_run_##name, scratch(name), prepare(name),   \
                                              (uint32_t)(in_place)};                               \
        return &entry;                                                                             \
    }
    switch (opcode) {
#include "kernels.def"
    default:
        return NULL;
    }
#undef DPK_CUDA_OP
#undef SCRATCH
#undef PREPARE
#undef NONE
}

static struct dpk_cuda *cuda_of(struct dpk_backend *be) { return (struct dpk_cuda *)be; }
static const struct dpk_cuda *cuda_of(const struct dpk_backend *be) {
    return (const struct dpk_cuda *)be;
}

int dpk_cuda_fail(dpk_error *err, const char *what, cudaError_t e) {
    cudaGetLastError(); /* the next call is not to blame */
    return dpk_error_set(err, e == cudaErrorMemoryAllocation ? DPK_ENOMEM : DPK_EBACKEND,
                         "cuda: %s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
}

/* ---- Memory -------------------------------------------------------------------------------- */

static int cuda_act_dtype(const struct dpk_backend *be, int weight_dtype) {
    const struct dpk_cuda *cuda = cuda_of(be);
    if (cuda->forced_dtype) return cuda->forced_dtype;
    return weight_dtype == DPK_F32 ? DPK_F32 : DPK_BF16;
}

static void *cuda_alloc(struct dpk_backend *be, size_t n_bytes) {
    void *p = NULL;
    if (cudaSetDevice(cuda_of(be)->device) || cudaMalloc(&p, n_bytes ? n_bytes : 1)) {
        cudaGetLastError();
        return NULL;
    }
    return p;
}

static void cuda_release(struct dpk_backend *be, void *p, size_t) {
    cudaSetDevice(cuda_of(be)->device);
    cudaStreamSynchronize(cuda_of(be)->stream);
    cudaFree(p);
}

static int cuda_upload(struct dpk_backend *be, void *dst, const void *host_src, size_t n_bytes,
                       dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    DPK_CUDA_TRY(cudaMemcpyAsync(dst, host_src, n_bytes, cudaMemcpyHostToDevice, cuda->stream),
                 "upload", err);
    return DPK_OK;
}

static int cuda_download(struct dpk_backend *be, void *host_dst, const void *src, size_t n_bytes,
                         dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    DPK_CUDA_TRY(cudaMemcpyAsync(host_dst, src, n_bytes, cudaMemcpyDeviceToHost, cuda->stream),
                 "download", err);
    DPK_CUDA_TRY(cudaStreamSynchronize(cuda->stream), "download", err);
    return DPK_OK;
}

static int cuda_copy(struct dpk_backend *be, void *dst, const void *src, size_t n_bytes,
                     dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    DPK_CUDA_TRY(cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDeviceToDevice, cuda->stream), "copy",
                 err);
    return DPK_OK;
}

static int cuda_attach(struct dpk_backend *be, const struct dpk_file *file, int act_dtype,
                       struct dpk_share *share, dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    cuda->act_dtype = act_dtype;
    return dpk_cuda_attach(cuda, file, share, err);
}

static uint64_t cuda_held_bytes(const struct dpk_backend *be) {
    return dpk_cuda_weight_bytes(cuda_of(be)) + cuda_of(be)->workspace_bytes;
}

/* ---- Operators ----------------------------------------------------------------------------- */

static size_t cuda_scratch_bytes(const struct dpk_backend *be, const struct dpk_call *call) {
    const struct op_entry *entry = find_entry(call->op->opcode);
    return entry && entry->scratch ? entry->scratch(cuda_of(be), call) : 0;
}

static bool cuda_in_place(const struct dpk_backend *, const struct dpk_call *call, int i) {
    const struct op_entry *entry = find_entry(call->op->opcode);
    return entry && i >= 0 && i < DPK_MAX_IN && (entry->in_place >> i & 1);
}

static uint64_t cuda_rows8_bytes(const struct dpk_backend *be, const struct dpk_call *call) {
    const uint32_t opcode = call->op->opcode;
    bool made = false;
    if (opcode == DPK_OP_group_norm) made = dpk_cuda_rows8_group_norm(cuda_of(be), call);
    if (opcode == DPK_OP_layer_norm) made = dpk_cuda_rows8_layer_norm(cuda_of(be), call);
    return made ? dpk_cuda_rows8_of(&call->out).n_bytes : 0;
}

int dpk_cuda_run(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct op_entry *entry = find_entry(call->op->opcode);
    if (!entry)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "cuda: operator %u, this build has none", call->op->opcode);
    return entry->run(cuda, call, err);
}

int dpk_cuda_prepare(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    const struct op_entry *entry = find_entry(call->op->opcode);
    return entry && entry->prepare ? entry->prepare(cuda, call, err) : DPK_OK;
}

static int cuda_run(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    DPK_TRY(dpk_cuda_prepare(cuda, call, err));
    return dpk_cuda_run(cuda, call, err);
}

static int cuda_run_list(struct dpk_backend *be, const struct dpk_call *calls, size_t n,
                         const struct dpk_loop *loop, dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    return dpk_cuda_graph_run(cuda, calls, n, loop, err);
}

static int cuda_run_timed(struct dpk_backend *be, const struct dpk_call *calls, size_t n,
                          double *seconds, dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    return dpk_cuda_run_timed(cuda, calls, n, seconds, err);
}

static int cuda_peaks(struct dpk_backend *be, struct dpk_peaks *peaks, dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    return dpk_cuda_peaks(cuda, peaks, err);
}

static int cuda_normal(struct dpk_backend *be, const struct dpk_normal *normal, dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    return dpk_cuda_normal(cuda, normal, err);
}

static int cuda_mark(struct dpk_backend *be, int number, dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    DPK_CUDA_TRY(cudaEventRecord(cuda->marks[number], cuda->stream), "mark", err);
    return DPK_OK;
}

static int cuda_wait(struct dpk_backend *be, int number, dpk_error *err) {
    struct dpk_cuda *cuda = cuda_of(be);
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device", err);
    DPK_CUDA_TRY(cudaEventSynchronize(cuda->marks[number]), "wait", err);
    return DPK_OK;
}

/* ---- Creation ------------------------------------------------------------------------------ */

static void cuda_free(struct dpk_backend *be) {
    struct dpk_cuda *cuda = cuda_of(be);
    if (!cuda) return;
    cudaSetDevice(cuda->device);
    if (cuda->stream) cudaStreamSynchronize(cuda->stream);
    dpk_cuda_graph_close(cuda);
    dpk_cuda_tune_close(cuda);
    dpk_cuda_detach(cuda);
    for (int i = 0; i < DPK_MARKS; i++)
        if (cuda->marks[i]) cudaEventDestroy(cuda->marks[i]);
    if (cuda->lt) cublasLtDestroy(cuda->lt);
    cudaFree(cuda->workspace);
    if (cuda->stream) cudaStreamDestroy(cuda->stream);
    free(cuda);
}

/* The device to use: the first that is visible (CUDA_VISIBLE_DEVICES chooses). */
static int find_device(struct dpk_cuda *cuda, dpk_error *err) {
    int driver = 0, runtime = 0, n = 0;
    struct cudaDeviceProp p;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (!driver) DPK_FAIL(err, DPK_EBACKEND, "cuda: no NVIDIA driver on this machine");
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver)
        DPK_FAIL(err, DPK_EBACKEND, "cuda: the driver is for CUDA %d.%d, this build is of %d.%d",
                 driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (e != cudaSuccess || n < 1)
        DPK_FAIL(err, DPK_EBACKEND, "cuda: no device: %s", cudaGetErrorString(e));
    DPK_CUDA_TRY(cudaSetDevice(cuda->device), "device 0", err);
    DPK_CUDA_TRY(cudaGetDeviceProperties(&p, cuda->device), "device 0", err);
    cuda->sm = p.major * 10 + p.minor;
    if (cuda->sm < 80)
        DPK_FAIL(err, DPK_EUNSUPPORTED,
                 "cuda: %s has compute capability %d.%d, want 8.0 (Ampere) or later", p.name,
                 p.major, p.minor);
    cuda->n_sm = p.multiProcessorCount;
    cuda->l2_bytes = p.l2CacheSize;
    snprintf(cuda->detail, sizeof cuda->detail, "%s, compute capability %d.%d, %llu MiB", p.name,
             p.major, p.minor, (unsigned long long)p.totalGlobalMem >> 20);
    return DPK_OK;
}

static int open_device(struct dpk_cuda *cuda, dpk_error *err) {
    DPK_TRY(find_device(cuda, err));
    DPK_CUDA_TRY(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "stream", err);
    cublasStatus_t s = cublasLtCreate(&cuda->lt);
    if (s != CUBLAS_STATUS_SUCCESS)
        DPK_FAIL(err, DPK_EBACKEND, "cuda: cuBLASLt cannot be started (status %d)", (int)s);
    cuda->workspace_bytes = 32u << 20;
    DPK_CUDA_TRY(cudaMalloc(&cuda->workspace, cuda->workspace_bytes), "workspace", err);
    for (int i = 0; i < DPK_MARKS; i++)
        DPK_CUDA_TRY(cudaEventCreateWithFlags(&cuda->marks[i], cudaEventDisableTiming), "event",
                     err);
    DPK_TRY(dpk_cuda_graph_open(cuda, err));
    dpk_cuda_tune_open(cuda);
    return DPK_OK;
}

static int cuda_create(struct dpk_backend **be, int act_dtype, dpk_error *err) {
    *be = NULL;
    struct dpk_cuda *cuda = (struct dpk_cuda *)calloc(1, sizeof *cuda);
    if (!cuda) DPK_FAIL(err, DPK_ENOMEM, "cuda backend: out of memory");
    cuda->forced_dtype = act_dtype;
    cuda->base.name = "cuda";
    cuda->base.detail = cuda->detail;
    cuda->base.free = cuda_free;
    cuda->base.act_dtype = cuda_act_dtype;
    cuda->base.alloc = cuda_alloc;
    cuda->base.release = cuda_release;
    cuda->base.upload = cuda_upload;
    cuda->base.download = cuda_download;
    cuda->base.attach = cuda_attach;
    cuda->base.scratch_bytes = cuda_scratch_bytes;
    cuda->base.in_place = cuda_in_place;
    cuda->base.rows8_bytes = cuda_rows8_bytes;
    cuda->base.run = cuda_run;
    cuda->base.peaks = cuda_peaks;
    cuda->base.run_list = cuda_run_list;
    cuda->base.run_timed = cuda_run_timed;
    cuda->base.copy = cuda_copy;
    cuda->base.normal = cuda_normal;
    cuda->base.mark = cuda_mark;
    cuda->base.wait = cuda_wait;
    cuda->base.held_bytes = cuda_held_bytes;
    int rc = open_device(cuda, err);
    if (rc != DPK_OK) {
        cuda_free(&cuda->base);
        return rc;
    }
    *be = &cuda->base;
    return DPK_OK;
}

extern "C" {
__attribute__((visibility("default"))) extern const struct dpk_plugin dpk_plugin;
const struct dpk_plugin dpk_plugin = {DPK_PLUGIN_VERSION, cuda_create};
}
