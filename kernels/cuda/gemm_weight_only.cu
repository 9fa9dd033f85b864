/* Products with int8 or int4 weights and bfloat16 activations: y = epilogue(x dequant(w)^T).
 *
 * Weights are widened to bfloat16 between their global load and shared memory, once for each block
 * of rows (dpk_load_s8, dpk_load_s4); the product is gemm.cuh's of bfloat16. Integers of 8 bits are
 * exact in bfloat16 and their scale waits for the epilogue; those of 4 bits are multiplied by the
 * scale of their group and rounded, as on the CPU. Traffic of weights: 1 or 1/2 byte an element;
 * what it costs beside the product, about 20 conversions a thread and k-step, was not measured. */
#include "linear.h"

/* The rows of A by `Load`, the weight by its type. */
template <template <int, int> class Load, bool CONV, class Args>
static int run(struct dpk_cuda *cuda, const struct dpk_linear *l, const Args &a, dpk_error *err) {
    const struct dpk_cuda_weight *w = dpk_cuda_find_weight(cuda, l->call, 0);
    dpk_gemm_plan plan = dpk_linear_plan(cuda, l, 2);
    dpk_epilogue_args e = dpk_linear_epilogue(cuda, l);
    dpk_dequant_args b = dpk_dequant_of(w, l);
    void *partial = l->call->scratch;
    bool s8 = w->dtype == DPK_S8;
    if constexpr (!CONV) {
        if (l->glu) {
            return s8 ? dpk_gemm_launch<dpk_bf16, Load, dpk_load_s8, true>(cuda, plan, l->m, l->n_w,
                                                                           partial, a, b, e, err)
                      : dpk_gemm_launch<dpk_bf16, Load, dpk_load_s4, true>(cuda, plan, l->m, l->n_w,
                                                                           partial, a, b, e, err);
        }
    }
    return s8 ? dpk_gemm_launch<dpk_bf16, Load, dpk_load_s8, false>(cuda, plan, l->m, l->n_w,
                                                                    partial, a, b, e, err)
              : dpk_gemm_launch<dpk_bf16, Load, dpk_load_s4, false>(cuda, plan, l->m, l->n_w,
                                                                    partial, a, b, e, err);
}

int dpk_linear_run_quantized(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err) {
    if (l->conv) {
        dpk_pixels_args a = l->pixels;
        a.chunks = l->c_pad / 8;
        return l->aligned ? run<dpk_load_pixels, true>(cuda, l, a, err)
                          : run<dpk_load_channels, true>(cuda, l, a, err);
    }
    if (l->aligned) {
        dpk_rows_args a = {(const char *)l->x,
                           (const char *)l->x2,
                           (long long)l->k * 2,
                           (long long)l->k2 * 2,
                           l->k / 8,
                           l->k2 / 8,
                           l->m};
        return run<dpk_load_rows, false>(cuda, l, a, err);
    }
    dpk_elements_args a = {(const dpk_bf16 *)l->x, (const dpk_bf16 *)l->x2, l->k, l->k2, l->m};
    return run<dpk_load_elements, false>(cuda, l, a, err);
}
