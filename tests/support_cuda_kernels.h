/* Tests of the CUDA backend's kernels on the emulated device, below the plugin: a device, memory,
 * weights as the upload leaves them, numbers. Included once in a test program. */
#ifndef SUPPORT_CUDA_KERNELS_H
#define SUPPORT_CUDA_KERNELS_H

#include "../kernels/cuda/cuda.h"

#include <cuda_bf16.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

extern "C" {
#include <cmocka.h>
}

#include <cmath>
#include <string>
#include <vector>

static struct dpk_cuda cuda;
static inline std::vector<void *> allocations;
static struct dpk_cuda_weight weights[2];

const struct dpk_cuda_weight *dpk_cuda_find_weight(const struct dpk_cuda *,
                                                   const struct dpk_call *call, size_t i) {
    return &weights[call->op->wt[i]];
}

int dpk_cuda_fail(dpk_error *err, const char *what, cudaError_t e) {
    return dpk_error_set(err, DPK_EBACKEND, "%s: %s", what, cudaGetErrorName(e));
}

/* Ends where the region does, but for the 16 bytes that operands are aligned to: behind it is
 * memory that cannot be touched. */
static inline void *device(size_t n_bytes) {
    size_t region = (n_bytes + 255) / 256 * 256 + 256;
    void *p = NULL;
    assert_int_equal(cudaMalloc(&p, region), cudaSuccess);
    allocations.push_back(p);
    return (char *)p + region - (n_bytes + 15) / 16 * 16;
}

static inline void *to_device(const void *host, size_t n_bytes) {
    void *p = device(n_bytes);
    if (n_bytes)
        assert_int_equal(cudaMemcpy(p, host, n_bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return p;
}

static int set_up(void **) {
    cuda = dpk_cuda();
    cuda.sm = 80;
    cuda.n_sm = 4;
    cuda.l2_bytes = 1 << 16;
    cuda.workspace_bytes = 1 << 20;
    dpk_cuda_tune_open(&cuda);
    return cudaStreamCreateWithFlags(&cuda.stream, 0) || cublasLtCreate(&cuda.lt) ||
           cudaMalloc(&cuda.workspace, cuda.workspace_bytes);
}

static int tear_down(void **) {
    dpk_cuda_tune_close(&cuda);
    cudaFree(cuda.workspace);
    cublasLtDestroy(cuda.lt);
    cudaStreamDestroy(cuda.stream);
    return 0;
}

static inline void forget(void) {
    assert_int_equal(cudaStreamSynchronize(cuda.stream), cudaSuccess);
    for (void *p : allocations) assert_int_equal(cudaFree(p), cudaSuccess);
    allocations.clear();
}

/* ---- Numbers --------------------------------------------------------------------------------- */

static uint64_t state;
static inline int draw(int lo, int hi) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return lo + (int)((state >> 33) % (uint64_t)(hi - lo + 1));
}
static inline float draw_float(void) { return (float)draw(-100000, 100000) * 1.5e-5f; }

static inline float rounded(float v, int dtype) {
    return dtype == DPK_BF16 ? (float)__nv_bfloat16(v) : v;
}

static inline size_t bytes_of(int dtype) { return dtype == DPK_F32 ? 4 : 2; }

static inline std::vector<unsigned char> encoded(const std::vector<float> &v, int dtype) {
    std::vector<unsigned char> out(v.size() * bytes_of(dtype));
    for (size_t i = 0; i < v.size(); i++) {
        __nv_bfloat16 h(v[i]);
        if (dtype == DPK_F32) memcpy(&out[i * 4], &v[i], 4);
        else memcpy(&out[i * 2], &h, 2);
    }
    return out;
}

static inline struct dpk_shape shape_of(std::vector<int> dims) {
    struct dpk_shape s = {};
    s.rank = (int32_t)dims.size();
    for (size_t i = 0; i < dims.size(); i++) s.dim[i] = dims[i];
    return s;
}

/* n values of a result on the device, when all that is queued is done. */
static inline std::vector<float> decoded(const void *p, size_t n, int dtype) {
    std::vector<unsigned char> bytes(n * bytes_of(dtype));
    std::vector<float> v(n);
    assert_int_equal(cudaStreamSynchronize(cuda.stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(bytes.data(), p, bytes.size(), cudaMemcpyDeviceToHost),
                     cudaSuccess);
    for (size_t i = 0; i < n; i++) {
        __nv_bfloat16 h;
        memcpy(&h, &bytes[i * bytes_of(dtype)], 2);
        if (dtype == DPK_F32) memcpy(&v[i], &bytes[i * 4], 4);
        else v[i] = (float)h;
    }
    return v;
}

#endif
