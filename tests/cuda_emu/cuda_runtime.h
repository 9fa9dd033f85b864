/* The part of the CUDA runtime that the backend uses, on an emulated device: see emu.h. */
#ifndef DPK_EMU_CUDA_RUNTIME_H
#define DPK_EMU_CUDA_RUNTIME_H

#include "emu.h"

#include <math.h>
#include <string.h>
#include <tuple>
#include <utility>

#define CUDART_VERSION 12080

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

/* ---- Vector types -------------------------------------------------------------------------- */

#define DPK_EMU_VECTOR2(T, N)                                                                      \
    struct alignas(2 * sizeof(T)) N {                                                              \
        T x, y;                                                                                    \
    };                                                                                             \
    static inline N make_##N(T x, T y) { return N{x, y}; }
#define DPK_EMU_VECTOR4(T, N)                                                                      \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) N {                                    \
        T x, y, z, w;                                                                              \
    };                                                                                             \
    static inline N make_##N(T x, T y, T z, T w) { return N{x, y, z, w}; }
DPK_EMU_VECTOR2(float, float2)
DPK_EMU_VECTOR4(float, float4)
DPK_EMU_VECTOR2(int, int2)
DPK_EMU_VECTOR4(int, int4)
DPK_EMU_VECTOR2(unsigned, uint2)
DPK_EMU_VECTOR4(unsigned, uint4)
DPK_EMU_VECTOR2(short, short2)
DPK_EMU_VECTOR4(signed char, char4)
DPK_EMU_VECTOR4(unsigned char, uchar4)
DPK_EMU_VECTOR2(double, double2)

/* ---- Device functions ---------------------------------------------------------------------- */

static inline void __syncthreads(void) { dpk_emu_block_barrier(0); }
static inline int __syncthreads_or(int p) { return dpk_emu_block_barrier(p != 0) != 0; }
static inline int __syncthreads_count(int p) { return (int)dpk_emu_block_barrier(p != 0); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    dpk_emu_warp_meet(mask, NULL, 0, NULL, NULL);
}
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}

template <typename T> static inline T dpk_emu_from(unsigned mask, T v, unsigned lane) {
    static_assert(sizeof(T) <= DPK_EMU_SLOT, "a slot holds it");
    unsigned char *slots = dpk_emu_warp_meet(mask, &v, sizeof v, NULL, NULL);
    if (!(mask >> lane & 1)) return v; /* undefined on a device */
    T from;
    memcpy(&from, slots + lane * DPK_EMU_SLOT, sizeof from);
    return from;
}
template <typename T> static inline T __shfl_sync(unsigned m, T v, int lane, int width = 32) {
    unsigned self = dpk_emu_lane(), w = (unsigned)width;
    return dpk_emu_from(m, v, (self & ~(w - 1)) | ((unsigned)lane & (w - 1)));
}
template <typename T> static inline T __shfl_xor_sync(unsigned m, T v, int x, int width = 32) {
    unsigned self = dpk_emu_lane(), lane = self ^ (unsigned)x;
    bool in = (lane & ~((unsigned)width - 1)) <= (self & ~((unsigned)width - 1));
    return dpk_emu_from(m, v, in ? lane : self);
}
template <typename T>
static inline T __shfl_down_sync(unsigned m, T v, unsigned d, int width = 32) {
    unsigned self = dpk_emu_lane(), w = (unsigned)width;
    return dpk_emu_from(m, v, (self & (w - 1)) + d < w ? self + d : self);
}
template <typename T> static inline T __shfl_up_sync(unsigned m, T v, unsigned d, int width = 32) {
    unsigned self = dpk_emu_lane(), w = (unsigned)width;
    return dpk_emu_from(m, v, (self & (w - 1)) >= d ? self - d : self);
}
static inline unsigned __ballot_sync(unsigned mask, int p) {
    unsigned mine = p != 0, all = 0;
    unsigned char *slots = dpk_emu_warp_meet(mask, &mine, sizeof mine, NULL, NULL);
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1) all |= (unsigned)(slots[l * DPK_EMU_SLOT] & 1) << l;
    return all;
}
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }

template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T, typename U> static inline T atomicAdd(T *p, U v) {
    T old = *p;
    *p = (T)(old + v);
    return old;
}
template <typename T> static inline T atomicMax(T *p, T v) {
    T old = *p;
    if (v > old) *p = v;
    return old;
}

template <typename To, typename From> static inline To dpk_emu_bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To t;
    memcpy(&t, &v, sizeof t);
    return t;
}
static inline int __float_as_int(float f) { return dpk_emu_bits<int>(f); }
static inline unsigned __float_as_uint(float f) { return dpk_emu_bits<unsigned>(f); }
static inline float __int_as_float(int i) { return dpk_emu_bits<float>(i); }
static inline float __uint_as_float(unsigned i) { return dpk_emu_bits<float>(i); }
static inline int __float2int_rn(float f) { return (int)lrintf(f); }
static inline int __float2int_rz(float f) { return (int)f; }
static inline float __int2float_rn(int i) { return (float)i; }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
#define __expf expf
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
    return c;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= (unsigned)(both >> (8 * (s >> 4 * i & 7)) & 0xff) << 8 * i;
    return r;
}
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline long min(long a, long b) { return a < b ? a : b; }
static inline long max(long a, long b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

/* ---- Host functions ------------------------------------------------------------------------ */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaStreamCaptureModeRelaxed = 2,
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrL2CacheSize = 38,
};
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount, l2CacheSize, maxThreadsPerMultiProcessor;
    size_t sharedMemPerBlockOptin;
};

const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaGetLastError(void);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaMalloc(void **p, size_t n_bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaHostAlloc(void **p, size_t n_bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpy(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t s);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t n_bytes, cudaStream_t s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);

template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int n_bytes) {
    return (cudaError_t)dpk_emu_allow_shared((const void *)kernel, n_bytes);
}
template <typename F>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, F *, int, size_t) {
    *n = 2;
    return cudaSuccess;
}

/* The members are named as built-in variables of a kernel are. */
#undef gridDim
#undef blockDim
struct cudaLaunchAttribute {
    int id;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
static inline dim3 dpk_emu_grid(const cudaLaunchConfig_t *c) { return c->gridDim; }
static inline dim3 dpk_emu_block(const cudaLaunchConfig_t *c) { return c->blockDim; }
static inline cudaLaunchConfig_t dpk_emu_config(dim3 grid, dim3 block, size_t shared,
                                                cudaStream_t stream) {
    cudaLaunchConfig_t c = {grid, block, shared, stream, NULL, 0};
    return c;
}
#define blockDim (dpk_emu_self->block_dim)
#define gridDim (dpk_emu_self->grid_dim)

template <typename... Params, typename... Args>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *c, void (*kernel)(Params...),
                                             Args &&...args) {
    static_assert((sizeof(Params) + ... + 0) <= 4096, "parameters of a kernel");
    std::tuple<typename std::decay<Params>::type...> copy(std::forward<Args>(args)...);
    return (cudaError_t)dpk_emu_enqueue(c->stream, (const void *)kernel, dpk_emu_grid(c),
                                        dpk_emu_block(c), c->dynamicSmemBytes,
                                        [kernel, copy] { std::apply(kernel, copy); });
}

#endif
