/* Between the files of attention: what a call is, and a logit with everything added. */
#ifndef DPK_ATTENTION_CUH
#define DPK_ATTENTION_CUH

#include "epilogue.cuh"

#include <float.h>

struct dpk_attention_args {
    const void *q, *k, *v;                  /* at the first channel of head 0 */
    void *out;                              /* [images][lq][heads * d] */
    const int *mask;                        /* [images][lk] or NULL */
    const void *bias;                       /* [heads][lq][lk] or NULL */
    long long q_stride, k_stride, v_stride; /* elements between rows */
    int images, lq, lk, heads, d;
    int causal, aligned; /* aligned: every chunk of 8 channels is whole and at 16 bytes */
    float scale;         /* times log2(e) */
};

#define DPK_LOG2E 1.4426950408889634f

#ifdef DPK_CUDA_EMU
static inline float dpk_exp2(float x) { return exp2f(x); }
#else
__device__ __forceinline__ float dpk_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

__device__ __forceinline__ float dpk_finite(float x) { return fmaxf(fminf(x, FLT_MAX), -FLT_MAX); }

/* The logit of a query and a key in powers of two, all terms added; -infinity: not seen. T: of the
 * bias. */
template <class T>
__device__ __forceinline__ float dpk_full_logit(const dpk_attention_args &a, int image, int head,
                                                int row, int key, float s) {
    if (key >= a.lk || row >= a.lq || (a.causal && key > row)) return -INFINITY;
    if (a.mask && !a.mask[(long long)image * a.lk + key]) return -INFINITY;
    float t = dpk_finite(s * a.scale);
    if (a.bias) {
        long long at = ((long long)head * a.lq + row) * a.lk + key;
        t = dpk_finite(t + dpk_float(((const T *)a.bias)[at]) * DPK_LOG2E);
    }
    return t;
}

/* ---- attention_plain.cu: heads too long for flash attention, and float32 --------------------- */

/* Heads of any length, of DPK_F32 or DPK_BF16. */
int dpk_attention_run_plain(struct dpk_cuda *cuda, const dpk_attention_args *a, int dtype,
                            dpk_error *err);
/* Aligned heads of bfloat16, through cuBLASLt. */
size_t dpk_attention_scratch_long(const dpk_attention_args *a);
int dpk_attention_prepare_long(struct dpk_cuda *cuda, const dpk_attention_args *a, dpk_error *err);
int dpk_attention_run_long(struct dpk_cuda *cuda, const dpk_attention_args *a, void *scratch,
                           dpk_error *err);

#endif
