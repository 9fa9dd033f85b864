/* What kernels share: launching, shared memory, types, vector loads, reductions. */
#ifndef DPK_DEVICE_CUH
#define DPK_DEVICE_CUH

#include "cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <utility>

typedef __nv_bfloat16 dpk_bf16;

/* ---- Launching ------------------------------------------------------------------------------
 * DPK_LAUNCH((kernel<float, 8>), grid, block, shared_bytes, stream, args...) is a cudaError_t.
 * Arguments are converted to the kernel's parameter types. */
template <typename... Params, typename... Args>
static inline cudaError_t dpk_cuda_launch(const char *name, void (*kernel)(Params...), dim3 grid,
                                          dim3 block, size_t shared_bytes, cudaStream_t stream,
                                          Args &&...args) {
    if (shared_bytes > (48u << 10)) {
        cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)shared_bytes);
        if (e != cudaSuccess) return e;
    }
#ifdef DPK_CUDA_EMU
    dpk_emu_name(name);
    cudaLaunchConfig_t config = dpk_emu_config(grid, block, shared_bytes, stream);
#else
    (void)name;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
#endif
    return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}
#define DPK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    dpk_cuda_launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

/* Blocks of `each` for n things; at most 2^31 - 1 of them. */
static inline unsigned dpk_cuda_blocks(int64_t n, int64_t each) {
    int64_t blocks = (n + each - 1) / each;
    return (unsigned)(blocks < 2147483647 ? blocks : 2147483647);
}

/* ---- Shared memory --------------------------------------------------------------------------
 * DPK_SHARED(float, tile, [32][33]); DPK_SHARED_DYNAMIC(float, buffer); the dynamic part is aligned
 * to 128 bytes. Names are unique in a kernel. */
#ifdef DPK_CUDA_EMU
#define DPK_SHARED(type, name, dims)                                                               \
    static char name##_key;                                                                        \
    typedef type name##_type dims;                                                                 \
    name##_type &name = *(name##_type *)dpk_emu_shared(&name##_key, sizeof(name##_type))
#define DPK_SHARED_DYNAMIC(type, name) type *name = (type *)dpk_emu_shared_dynamic()
#else
extern __shared__ __align__(128) unsigned char dpk_dynamic_shared[];
#define DPK_SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define DPK_SHARED_DYNAMIC(type, name) type *name = reinterpret_cast<type *>(dpk_dynamic_shared)
#endif

/* ---- Types ---------------------------------------------------------------------------------- */

__device__ __forceinline__ float dpk_float(float v) { return v; }
__device__ __forceinline__ float dpk_float(dpk_bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float dpk_float(__half v) { return __half2float(v); }

template <typename T> __device__ __forceinline__ T dpk_round(float v);
template <> __device__ __forceinline__ float dpk_round<float>(float v) { return v; }
template <> __device__ __forceinline__ dpk_bf16 dpk_round<dpk_bf16>(float v) {
    return __float2bfloat16(v);
}

/* N adjacent elements, aligned to their size: one access of up to 16 bytes. */
template <typename T, int N> struct __align__(sizeof(T) * N) dpk_vec { T v[N]; };
/* Elements in 16 bytes. */
template <typename T> __host__ __device__ constexpr int dpk_width() { return 16 / (int)sizeof(T); }

/* 16 bytes at p to floats, and back. p is aligned to 16 bytes. */
__device__ __forceinline__ void dpk_load16(const float *p, float *out) {
    float4 v = *reinterpret_cast<const float4 *>(p);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
__device__ __forceinline__ void dpk_load16(const dpk_bf16 *p, float *out) {
    uint4 v = *reinterpret_cast<const uint4 *>(p);
    unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(w[i] << 16);
        out[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void dpk_store16(float *p, const float *in) {
    *reinterpret_cast<float4 *>(p) = make_float4(in[0], in[1], in[2], in[3]);
}
__device__ __forceinline__ void dpk_store16(dpk_bf16 *p, const float *in) {
    unsigned w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(in[2 * i], in[2 * i + 1]);
        memcpy(&w[i], &pair, 4);
    }
    *reinterpret_cast<uint4 *>(p) = make_uint4(w[0], w[1], w[2], w[3]);
}

/* ---- Functions ------------------------------------------------------------------------------ */

/* enum dpk_act */
__device__ __forceinline__ float dpk_act(float x, int act) {
    switch (act) {
    case DPK_ACT_SILU:
        return x / (1.0f + __expf(-x));
    case DPK_ACT_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case DPK_ACT_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case DPK_ACT_QUICK_GELU:
        return x / (1.0f + __expf(-1.702f * x));
    default:
        return x;
    }
}

/* ---- Reductions ----------------------------------------------------------------------------- */

template <typename T> __device__ __forceinline__ T dpk_warp_sum(T v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
__device__ __forceinline__ float dpk_warp_max(float v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}

/* Over all threads of a block (a multiple of 32, at most 1024; blockDim.y = blockDim.z = 1), the
 * same result for each; `partial` is shared memory for 32 values, used again at once. */
template <typename T> __device__ __forceinline__ T dpk_block_sum(T v, T *partial) {
    v = dpk_warp_sum(v);
    __syncthreads(); /* of an earlier use */
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : T(0);
    return dpk_warp_sum(v);
}
__device__ __forceinline__ float dpk_block_max(float v, float *partial) {
    v = dpk_warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : -INFINITY;
    return dpk_warp_max(v);
}

#endif
