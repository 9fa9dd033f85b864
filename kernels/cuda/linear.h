/* Between the files that run linears and convolutions: their sizes, taken from a call once, and the
 * kinds of products. A convolution is a product whose rows are output pixels. */
#ifndef DPK_LINEAR_H
#define DPK_LINEAR_H

#include "epilogue.cuh"
#include "gemm.cuh"
#include "loaders.cuh"

enum dpk_product_kind {
    DPK_PRODUCT_LT,       /* cuBLASLt, its own epilogue: float weights of linears */
    DPK_PRODUCT_LT_SUMS,  /* cuBLASLt to float32 sums in scratch, then our epilogue */
    DPK_PRODUCT_BF16,     /* our tensor-core kernel */
    DPK_PRODUCT_F32,      /* our float32 kernel, any types */
    DPK_PRODUCT_S8,       /* rows quantized to int8, integer tensor cores */
    DPK_PRODUCT_QUANTIZED /* s8 or s4 weights, widened to bfloat16 in the kernel */
};

struct dpk_linear {
    const struct dpk_call *call;
    const void *x, *x2;
    int x_dtype;
    int m, n; /* of the result */
    int k, k2;
    int n_w; /* rows of the weight on the device: with glu 2 F, rounded up to 16 */
    bool glu, conv;
    bool aligned;           /* rows of bfloat16, and pixels, lie at multiples of 16 bytes */
    dpk_pixels_args pixels; /* conv: all but chunks, scale and rule */
    int c_pad;              /* k's of a tap in the weight; a linear has one tap */
};

/* The sizes of a linear or conv2d call; pointers as they are in the call (NULL while planning).
 * DPK_EUNSUPPORTED for more rows than 2^31 - 1, or sums too long for integers. */
int dpk_linear_describe(const struct dpk_call *call, struct dpk_linear *l, dpk_error *err);
/* Tile and splits of a product whose elements have this many bytes in shared memory. */
dpk_gemm_plan dpk_linear_plan(const struct dpk_cuda *cuda, const struct dpk_linear *l,
                              int element_bytes);
dpk_epilogue_args dpk_linear_epilogue(const struct dpk_cuda *cuda, const struct dpk_linear *l);

/* A quantized weight as the loaders take it. */
dpk_dequant_args dpk_dequant_of(const struct dpk_cuda_weight *w, const struct dpk_linear *l);

/* One kind of product: bytes of scratch, and the run (scratch: l->call->scratch). */
size_t dpk_linear_scratch_s8(const struct dpk_cuda *cuda, const struct dpk_linear *l);
int dpk_linear_run_s8(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err);
size_t dpk_linear_scratch_bf16(const struct dpk_cuda *cuda, const struct dpk_linear *l);
int dpk_linear_run_quantized(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err);
int dpk_linear_run_f32(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err);

#endif
