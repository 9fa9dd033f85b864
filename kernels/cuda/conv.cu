/* conv2d: y = act(conv(up(x), w) + b + temb) + residual, see ops.def.
 *
 * Implicit product on the tensor cores (gemm.cuh): M = output pixels, K = taps x channels (the
 * channels of a tap padded to 16 bytes), N = output channels; x NHWC, w [N][kh][kw][c_pad]. A
 * thread keeps the pixels of its two or three rows and walks (tap, chunk of 8 channels); padding,
 * stride and nearest upsampling are in the choice of the pixel, cp.async writes the zeros. Bias,
 * time embedding and residual are in the epilogue. No division in the loop but by an upsampling
 * that is not by 2. A 1x1 convolution is a linear in the file.
 *
 * Ways: bfloat16 (any C: a multiple of 8 by 16-byte copies, else element by element), W8A8
 * (gemm_s8.cu), int8 or int4 weights (gemm_weight_only.cu), float32 input or files (gemm_f32.cu).
 * Budgets: gemm.cuh. Floor of SDXL's (32768, 320, 2880): 76 us at 790 TFLOP/s; not measured. */
#include "linear.h"

static int choose_kind(const struct dpk_linear *l) {
    const struct dpk_weight *w = &l->call->wt[DPK_WT(conv2d, w)];
    if (w->dtype == DPK_S8 && w->flags & DPK_TENSOR_DYNAMIC) return DPK_PRODUCT_S8;
    if (l->x_dtype == DPK_F32) return DPK_PRODUCT_F32;
    return w->dtype == DPK_S8 || w->dtype == DPK_S4 ? DPK_PRODUCT_QUANTIZED : DPK_PRODUCT_BF16;
}

size_t dpk_cuda_scratch_conv2d(const struct dpk_cuda *cuda, const struct dpk_call *call) {
    struct dpk_linear l;
    if (dpk_linear_describe(call, &l, NULL) != DPK_OK) return 0;
    switch (choose_kind(&l)) {
    case DPK_PRODUCT_S8:
        return dpk_linear_scratch_s8(cuda, &l);
    case DPK_PRODUCT_F32:
        return 0;
    default:
        return dpk_linear_scratch_bf16(cuda, &l);
    }
}

static int run_bf16(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err) {
    const struct dpk_cuda_weight *w = dpk_cuda_find_weight(cuda, l->call, DPK_WT(conv2d, w));
    dpk_gemm_plan plan = dpk_linear_plan(cuda, l, 2);
    dpk_epilogue_args e = dpk_linear_epilogue(cuda, l);
    dpk_rows_args b = dpk_weight_rows(w->data, (long long)w->pitch * 2, w->n_rows);
    dpk_pixels_args a = l->pixels;
    a.chunks = l->c_pad / 8;
    return l->aligned ? dpk_gemm_launch<dpk_bf16, dpk_load_pixels, dpk_load_rows, false>(
                            cuda, plan, l->m, l->n_w, l->call->scratch, a, b, e, err)
                      : dpk_gemm_launch<dpk_bf16, dpk_load_channels, dpk_load_rows, false>(
                            cuda, plan, l->m, l->n_w, l->call->scratch, a, b, e, err);
}

int dpk_cuda_run_conv2d(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    struct dpk_linear l;
    DPK_TRY(dpk_linear_describe(call, &l, err));
    switch (choose_kind(&l)) {
    case DPK_PRODUCT_S8:
        return dpk_linear_run_s8(cuda, &l, err);
    case DPK_PRODUCT_F32:
        return dpk_linear_run_f32(cuda, &l, err);
    case DPK_PRODUCT_QUANTIZED:
        return dpk_linear_run_quantized(cuda, &l, err);
    default:
        return run_bf16(cuda, &l, err);
    }
}
