/* linear: y = epilogue(concat(x, x2) w^T), see ops.def.
 *
 * Float weights go one of these ways:
 *   LT        cuBLASLt to the result: nothing follows the product but a residual (its beta = 1), or
 *             of float32 a bias. cuBLASLt wants biases in the result's type, ours are float32: in
 *             bfloat16 they would be rounded before they are added.
 *   LT_SUMS   cuBLASLt to float32 sums in scratch, then our epilogue, a pass over memory that is
 *             mostly L2: where the device's own instructions (wgmma, tcgen05) are much faster than
 *             mma.sync. concat is two products, the second added to the first.
 *   BF16      our mma.sync kernel, everything in its epilogue (gemm.cuh).
 * Which of the last two is a matter of the device, or of measurement (tune.cu). Layouts: x [m][k],
 * w [n_w][pitch] (cuda.h), both K-contiguous. Budgets: gemm.cuh. Floor of SDXL's (2048, 10240,
 * 1280): 68 us at 790 TFLOP/s; the sums of LT_SUMS add 84 MB written and read. */
#include "linear.h"
#include "lt.h"

static bool is_quantized(const struct dpk_weight *w) {
    return w->dtype == DPK_S8 || w->dtype == DPK_S4;
}

/* Does cuBLASLt have the whole epilogue? */
static bool lt_suffices(const struct dpk_linear *l) {
    const struct dpk_call *call = l->call;
    bool bias = dpk_cuda_has_weight(call, DPK_WT(linear, b));
    if (l->glu || l->k2 || DPK_ATTRS(linear, call->op)->act) return false;
    if (dpk_cuda_has_input(call, DPK_IN(linear, gate))) return false;
    return l->x_dtype == DPK_F32 || (!bias && l->n % 8 == 0);
}

struct dpk_lt_product dpk_linear_lt(const struct dpk_linear *l, bool sums) {
    const struct dpk_call *call = l->call;
    struct dpk_lt_product p = {};
    p.m = l->m;
    p.n = sums ? l->n_w : l->n;
    p.k = l->k;
    p.dtype = l->x_dtype;
    p.out_dtype = sums ? DPK_F32 : l->x_dtype;
    p.lda = l->k;
    p.ldb = l->c_pad;
    p.ldd = p.n;
    p.batch = 1;
    p.alpha = 1.0f;
    if (!sums) {
        p.bias = dpk_cuda_has_weight(call, DPK_WT(linear, b));
        p.add = dpk_cuda_has_input(call, DPK_IN(linear, residual));
    }
    return p;
}

static struct dpk_lt_product second_segment(const struct dpk_linear *l) {
    struct dpk_lt_product p = dpk_linear_lt(l, true);
    p.k = p.lda = l->k2;
    p.add = true;
    if (l->k % 4) p.align = 4; /* its weights begin at l->k, of float32 */
    return p;
}

static size_t sums_bytes(const struct dpk_linear *l) { return (size_t)l->m * (size_t)l->n_w * 4; }

/* The way without a measurement: LT_SUMS where mma.sync is not the device's own instruction and the
 * product is long enough to pay for a pass over its sums. */
static int default_kind(const struct dpk_cuda *cuda, const struct dpk_linear *l) {
    bool own = cuda->sm >= 90 && cuda->sm < 120;
    if (l->x_dtype == DPK_F32) return DPK_PRODUCT_LT_SUMS;
    if (!l->aligned) return DPK_PRODUCT_BF16;
    return own && (l->k + l->k2) >= 1024 && l->m >= 256 ? DPK_PRODUCT_LT_SUMS : DPK_PRODUCT_BF16;
}

static int choose_kind(const struct dpk_cuda *cuda, const struct dpk_linear *l) {
    const struct dpk_weight *w = &l->call->wt[DPK_WT(linear, w)];
    if (w->dtype == DPK_S8 && w->flags & DPK_TENSOR_DYNAMIC) return DPK_PRODUCT_S8;
    if (is_quantized(w)) {
        return l->x_dtype == DPK_BF16 ? DPK_PRODUCT_QUANTIZED : DPK_PRODUCT_F32;
    }
    if (lt_suffices(l) && (l->x_dtype == DPK_F32 || l->aligned)) return DPK_PRODUCT_LT;
    return default_kind(cuda, l);
}

size_t dpk_linear_scratch_bf16(const struct dpk_cuda *cuda, const struct dpk_linear *l) {
    return dpk_linear_plan(cuda, l, 2).partial_bytes;
}

size_t dpk_cuda_scratch_linear(const struct dpk_cuda *cuda, const struct dpk_call *call) {
    struct dpk_linear l;
    if (dpk_linear_describe(call, &l, NULL) != DPK_OK) return 0;
    switch (choose_kind(cuda, &l)) {
    case DPK_PRODUCT_S8:
        return dpk_linear_scratch_s8(cuda, &l);
    case DPK_PRODUCT_LT_SUMS:
        return sums_bytes(&l);
    case DPK_PRODUCT_BF16:
    case DPK_PRODUCT_QUANTIZED:
        return dpk_linear_scratch_bf16(cuda, &l);
    default:
        return 0;
    }
}

int dpk_cuda_prepare_linear(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    struct dpk_linear l;
    DPK_TRY(dpk_linear_describe(call, &l, err));
    int kind = choose_kind(cuda, &l);
    bool sums = kind == DPK_PRODUCT_LT_SUMS;
    if (!sums && kind != DPK_PRODUCT_LT) return DPK_OK;
    struct dpk_lt_product p = dpk_linear_lt(&l, sums);
    DPK_TRY(dpk_lt_prepare(cuda, &p, err));
    if (!l.k2) return DPK_OK;
    p = second_segment(&l);
    return dpk_lt_prepare(cuda, &p, err);
}

static int run_lt(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err) {
    const struct dpk_call *call = l->call;
    const struct dpk_cuda_weight *w = dpk_cuda_find_weight(cuda, call, DPK_WT(linear, w));
    struct dpk_lt_product p = dpk_linear_lt(l, false);
    const void *bias = p.bias ? dpk_cuda_find_weight(cuda, call, DPK_WT(linear, b))->data : NULL;
    return dpk_lt_run(cuda, &p, l->x, w->data, call->in[DPK_IN(linear, residual)].data,
                      call->out.data, (const float *)bias, err);
}

static int run_lt_sums(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err) {
    const struct dpk_cuda_weight *w = dpk_cuda_find_weight(cuda, l->call, DPK_WT(linear, w));
    void *sums = l->call->scratch;
    struct dpk_lt_product p = dpk_linear_lt(l, true);
    DPK_TRY(dpk_lt_run(cuda, &p, l->x, w->data, NULL, sums, NULL, err));
    if (l->k2) {
        size_t offset = (size_t)l->k * (l->x_dtype == DPK_F32 ? 4 : 2);
        p = second_segment(l);
        DPK_TRY(dpk_lt_run(cuda, &p, l->x2, (const char *)w->data + offset, sums, sums, NULL, err));
    }
    struct dpk_gemm_shape s = {l->m, l->n_w, 0, 0, 0, 1, sums, l->n_w};
    dpk_epilogue_args e = dpk_linear_epilogue(cuda, l);
    return l->glu ? dpk_gemm_launch_sums<float, true>(cuda, s, e, err)
                  : dpk_gemm_launch_sums<float, false>(cuda, s, e, err);
}

static int run_bf16(struct dpk_cuda *cuda, const struct dpk_linear *l, dpk_error *err) {
    const struct dpk_cuda_weight *w = dpk_cuda_find_weight(cuda, l->call, DPK_WT(linear, w));
    dpk_gemm_plan plan = dpk_linear_plan(cuda, l, 2);
    dpk_epilogue_args e = dpk_linear_epilogue(cuda, l);
    dpk_rows_args b = dpk_weight_rows(w->data, (long long)w->pitch * 2, w->n_rows);
    void *partial = l->call->scratch;
    if (l->aligned) {
        dpk_rows_args a = {(const char *)l->x,
                           (const char *)l->x2,
                           (long long)l->k * 2,
                           (long long)l->k2 * 2,
                           l->k / 8,
                           l->k2 / 8,
                           l->m};
        return l->glu ? dpk_gemm_launch<dpk_bf16, dpk_load_rows, dpk_load_rows, true>(
                            cuda, plan, l->m, l->n_w, partial, a, b, e, err)
                      : dpk_gemm_launch<dpk_bf16, dpk_load_rows, dpk_load_rows, false>(
                            cuda, plan, l->m, l->n_w, partial, a, b, e, err);
    }
    dpk_elements_args a = {(const dpk_bf16 *)l->x, (const dpk_bf16 *)l->x2, l->k, l->k2, l->m};
    return l->glu ? dpk_gemm_launch<dpk_bf16, dpk_load_elements, dpk_load_rows, true>(
                        cuda, plan, l->m, l->n_w, partial, a, b, e, err)
                  : dpk_gemm_launch<dpk_bf16, dpk_load_elements, dpk_load_rows, false>(
                        cuda, plan, l->m, l->n_w, partial, a, b, e, err);
}

int dpk_cuda_run_linear(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err) {
    struct dpk_linear l;
    DPK_TRY(dpk_linear_describe(call, &l, err));
    switch (choose_kind(cuda, &l)) {
    case DPK_PRODUCT_LT:
        return run_lt(cuda, &l, err);
    case DPK_PRODUCT_LT_SUMS:
        return run_lt_sums(cuda, &l, err);
    case DPK_PRODUCT_BF16:
        return run_bf16(cuda, &l, err);
    case DPK_PRODUCT_S8:
        return dpk_linear_run_s8(cuda, &l, err);
    case DPK_PRODUCT_QUANTIZED:
        return dpk_linear_run_quantized(cuda, &l, err);
    default:
        return dpk_linear_run_f32(cuda, &l, err);
    }
}
