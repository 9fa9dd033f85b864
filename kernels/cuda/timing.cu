/* Times by the device's own clock: of operators one by one, and of the most that the device can do,
 * which they are held against. */
#include "backend_cuda.h"
#include "lt.h"

#include <vector>

enum { ROUNDS = 5 };

/* Events that are destroyed with it. */
struct marks {
    std::vector<cudaEvent_t> at;
    ~marks() {
        for (cudaEvent_t e : at) cudaEventDestroy(e);
    }
};

static int open_marks(marks *m, size_t n, dpk_error *err) {
    for (size_t i = 0; i < n; i++) {
        cudaEvent_t e;
        DPK_CUDA_TRY(cudaEventCreateWithFlags(&e, 0), "event", err);
        m->at.push_back(e);
    }
    return DPK_OK;
}

int dpk_cuda_run_timed(struct dpk_cuda *cuda, const struct dpk_call *calls, size_t n,
                       double *seconds, dpk_error *err) {
    marks m;
    DPK_TRY(open_marks(&m, n + 1, err));
    for (size_t i = 0; i < n; i++) DPK_TRY(dpk_cuda_prepare(cuda, &calls[i], err));
    DPK_CUDA_TRY(cudaEventRecord(m.at[0], cuda->stream), "event", err);
    for (size_t i = 0; i < n; i++) {
        DPK_TRY(dpk_cuda_run(cuda, &calls[i], err));
        DPK_CUDA_TRY(cudaEventRecord(m.at[i + 1], cuda->stream), "event", err);
    }
    DPK_CUDA_TRY(cudaStreamSynchronize(cuda->stream), "operators", err);
    for (size_t i = 0; i < n; i++) {
        float ms;
        DPK_CUDA_TRY(cudaEventElapsedTime(&ms, m.at[i], m.at[i + 1]), "event", err);
        seconds[i] += (double)ms * 1e-3;
    }
    return DPK_OK;
}

/* ---- Peaks ----------------------------------------------------------------------------------- */

/* *seconds: the least time of what `queue` queues. */
template <typename Queue>
static int least_time(struct dpk_cuda *cuda, double *seconds, dpk_error *err, Queue queue) {
    marks m;
    *seconds = INFINITY;
    DPK_TRY(open_marks(&m, 2, err));
    for (int round = -1; round < ROUNDS; round++) {
        float ms;
        DPK_CUDA_TRY(cudaEventRecord(m.at[0], cuda->stream), "event", err);
        DPK_TRY(queue());
        DPK_CUDA_TRY(cudaEventRecord(m.at[1], cuda->stream), "event", err);
        DPK_CUDA_TRY(cudaEventSynchronize(m.at[1]), "peak", err);
        DPK_CUDA_TRY(cudaEventElapsedTime(&ms, m.at[0], m.at[1]), "event", err);
        if (round >= 0 && (double)ms * 1e-3 < *seconds) *seconds = (double)ms * 1e-3;
    }
    return DPK_OK;
}

/* Products of n x n matrices, which fill the multiprocessors, by cuBLASLt; memory holds three of
 * float32. */
static int product_peak(struct dpk_cuda *cuda, char *memory, int64_t n, int dtype, int out_dtype,
                        double *peak, dpk_error *err) {
    struct dpk_lt_product p = {};
    double seconds;
    p.m = p.n = p.k = p.lda = p.ldb = p.ldd = n;
    p.batch = 1;
    p.dtype = dtype;
    p.out_dtype = out_dtype;
    p.alpha = 1.0f;
    char *b = memory + n * n * 4, *d = b + n * n * 4;
    DPK_TRY(dpk_lt_prepare(cuda, &p, err));
    DPK_TRY(least_time(cuda, &seconds, err,
                       [&] { return dpk_lt_run(cuda, &p, memory, b, NULL, d, NULL, err); }));
    *peak = 2.0 * (double)n * (double)n * (double)n / seconds;
    return DPK_OK;
}

static int measure(struct dpk_cuda *cuda, char *memory, int64_t n, size_t bytes,
                   struct dpk_peaks *peaks, dpk_error *err) {
    double seconds;
    /* Small numbers of every type. */
    DPK_CUDA_TRY(cudaMemsetAsync(memory, 0x3c, 2 * bytes, cuda->stream), "peak", err);
    DPK_TRY(least_time(cuda, &seconds, err, [&]() -> int {
        DPK_CUDA_TRY(
            cudaMemcpyAsync(memory + bytes, memory, bytes, cudaMemcpyDeviceToDevice, cuda->stream),
            "peak", err);
        return DPK_OK;
    }));
    peaks->bytes = 2.0 * (double)bytes / seconds;
    DPK_TRY(product_peak(cuda, memory, n, DPK_F32, DPK_F32, &peaks->f32, err));
    DPK_TRY(product_peak(cuda, memory, n, DPK_BF16, DPK_BF16, &peaks->bf16, err));
    return product_peak(cuda, memory, n, DPK_S8, DPK_I32, &peaks->s8, err);
}

int dpk_cuda_peaks(struct dpk_cuda *cuda, struct dpk_peaks *peaks, dpk_error *err) {
    const int64_t n = 64 * (int64_t)cuda->n_sm;
    size_t bytes = (size_t)n * (size_t)n * 6, beyond_l2 = (size_t)cuda->l2_bytes * 4;
    char *memory = NULL;
    *peaks = dpk_peaks();
    if (bytes < beyond_l2) bytes = beyond_l2;
    DPK_CUDA_TRY(cudaMalloc((void **)&memory, 2 * bytes), "peak", err);
    int rc = measure(cuda, memory, n, bytes, peaks, err);
    cudaStreamSynchronize(cuda->stream);
    cudaFree(memory);
    return rc;
}
