/* Contract: cublasLt.h. */
#include "cublasLt.h"
#include "cuda_bf16.h"

#include <string.h>
#include <vector>

struct cublasLtContext {
    int open;
};
struct dpk_emu_lt_desc {
    cublasComputeType_t compute;
    cudaDataType_t scale, bias_type;
    cublasOperation_t op_a, op_b;
    cublasLtEpilogue_t epilogue;
    const void *bias;
    bool typed_bias;
};
struct dpk_emu_lt_layout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld, stride;
    int32_t batch;
};
struct dpk_emu_lt_preference {
    uint64_t workspace;
    uint32_t align[4];
};

/* What a problem is to an algorithm: one chosen for another problem is refused. */
struct problem {
    dpk_emu_lt_desc desc;
    dpk_emu_lt_layout a, b, c, d;
};
enum { ID, ALIGN, WORKSPACE, SUM, MAGIC };
static const uint64_t magic = 0x6c7420656d753031u;
static size_t runs[DPK_EMU_LT_ALGOS];

size_t dpk_emu_lt_runs(int algo) { return runs[algo]; }
size_t cublasLtGetVersion(void) { return 120803; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = new cublasLtContext();
    (*handle)->open = 1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- Descriptions -------------------------------------------------------------------------- */

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    *desc = new dpk_emu_lt_desc();
    (*desc)->compute = compute;
    (*desc)->scale = scale;
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

template <class T> static cublasStatus_t set(T *to, const void *buf, size_t n_bytes) {
    if (!buf || n_bytes != sizeof *to) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, buf, sizeof *to);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attr, const void *buf,
                                              size_t n_bytes) {
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attr) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return set(&desc->op_a, buf, n_bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return set(&desc->op_b, buf, n_bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return set(&desc->epilogue, buf, n_bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return set(&desc->bias, buf, n_bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        desc->typed_bias = true;
        return set(&desc->bias_type, buf, n_bytes);
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    *layout = new dpk_emu_lt_layout();
    **layout = dpk_emu_lt_layout{type, rows, cols, ld, 0, 1};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attr,
                                                const void *buf, size_t n_bytes) {
    if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
    if (attr == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) return set(&layout->batch, buf, n_bytes);
    if (attr == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET)
        return set(&layout->stride, buf, n_bytes);
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *pref) {
    *pref = new dpk_emu_lt_preference{0, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref) {
    delete pref;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                    cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *buf, size_t n_bytes) {
    int i = attr - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    if (!pref) return CUBLAS_STATUS_INVALID_VALUE;
    if (attr == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        return set(&pref->workspace, buf, n_bytes);
    return i >= 0 && i < 4 ? set(&pref->align[i], buf, n_bytes) : CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- Rules --------------------------------------------------------------------------------- */

static uint64_t bytes_of(cudaDataType type) {
    return type == CUDA_R_16BF ? 2 : type == CUDA_R_8I ? 1 : 4;
}

static cublasStatus_t check_layout(const dpk_emu_lt_layout *l, uint64_t rows, uint64_t cols,
                                   int32_t batch) {
    if (!l || l->rows != rows || l->cols != cols || !rows || !cols || l->batch != batch)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (l->ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    if (l->type == CUDA_R_16F) return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t describe(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                               cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                               cublasLtMatrixLayout_t d, problem *p) {
    if (!desc || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
    uint64_t m = d->rows, n = d->cols, k = desc->op_a == CUBLAS_OP_T ? a->rows : a->cols;
    bool ta = desc->op_a == CUBLAS_OP_T, tb = desc->op_b == CUBLAS_OP_T;
    cublasStatus_t s = check_layout(d, m, n, d->batch);
    if (!s) s = check_layout(a, ta ? k : m, ta ? m : k, d->batch);
    if (!s) s = check_layout(b, tb ? n : k, tb ? k : n, d->batch);
    if (!s) s = check_layout(c, m, n, d->batch);
    if (s) return s;
    const bool integers = a->type == CUDA_R_8I;
    if (desc->compute != (integers ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F) ||
        desc->scale != (integers ? CUDA_R_32I : CUDA_R_32F) || a->type != b->type ||
        c->type != d->type || a->type == CUDA_R_32I || d->type == CUDA_R_8I ||
        integers != (d->type == CUDA_R_32I) || (a->type == CUDA_R_32F && d->type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    /* Regular integer products: the TN form, sizes and strides of four. */
    if (integers && (!ta || tb || k % 4 || m % 4 || a->ld % 4 || b->ld % 4 || d->ld % 4 ||
                     desc->epilogue != CUBLASLT_EPILOGUE_DEFAULT))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    /* The bias has D's type; another is refused. */
    if (desc->epilogue == CUBLASLT_EPILOGUE_BIAS && desc->typed_bias && desc->bias_type != d->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    /* Products of 16-bit operands whose rows are not aligned exist, but nobody wants them. */
    if (a->type == CUDA_R_16BF && (a->ld % 8 || b->ld % 8 || d->ld * bytes_of(d->type) % 16))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memset((void *)p, 0, sizeof *p);
    p->desc = *desc;
    p->desc.bias = NULL;
    p->a = *a, p->b = *b, p->c = *c, p->d = *d;
    return CUBLAS_STATUS_SUCCESS;
}

static uint64_t sum_of(const problem *p) {
    uint64_t parts[] = {(uint64_t)p->desc.op_a,
                        (uint64_t)p->desc.op_b,
                        (uint64_t)p->desc.epilogue,
                        (uint64_t)p->a.type,
                        (uint64_t)p->d.type,
                        p->d.rows,
                        p->d.cols,
                        p->a.rows,
                        p->a.cols,
                        (uint64_t)p->a.ld,
                        (uint64_t)p->b.ld,
                        (uint64_t)p->d.ld,
                        (uint64_t)p->a.stride,
                        (uint64_t)p->b.stride,
                        (uint64_t)p->d.stride,
                        (uint64_t)p->d.batch};
    uint64_t h = 14695981039346656037u;
    for (uint64_t part : parts) h = (h ^ part) * 1099511628211u;
    return h;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t pref, int n_requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *n_results) {
    problem p;
    *n_results = 0;
    if (!handle || !pref || n_requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t s = describe(desc, a, b, c, d, &p);
    if (s) return s;
    uint32_t align = 256;
    for (uint32_t each : pref->align)
        if (each < align) align = each;
    uint64_t sums = p.d.rows * p.d.cols * 4 * 2;
    for (int i = 0; i < DPK_EMU_LT_ALGOS && *n_results < n_requested; i++) {
        int id = (int)((sum_of(&p) / 7 + (uint64_t)i) % DPK_EMU_LT_ALGOS);
        uint64_t workspace = id == 1 ? sums : 0, want = id == 2 ? 16 : 4;
        if (workspace > pref->workspace || want > align) continue;
        cublasLtMatmulHeuristicResult_t *r = &results[(*n_results)++];
        memset(r, 0, sizeof *r);
        r->algo.data[ID] = (uint64_t)id;
        r->algo.data[ALIGN] = want;
        r->algo.data[WORKSPACE] = workspace;
        r->algo.data[SUM] = sum_of(&p);
        r->algo.data[MAGIC] = magic;
        r->workspaceSize = workspace;
        r->wavesCount = 1.0f;
    }
    return *n_results ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* ---- Products ------------------------------------------------------------------------------ */

struct job {
    problem p;
    const void *a, *b, *c;
    void *d;
    float *workspace;
    size_t workspace_bytes;
    float alpha, beta;
    int id;
};

static float get(const void *p, cudaDataType type, uint64_t i) {
    if (type == CUDA_R_8I) return ((const int8_t *)p)[i];
    return type == CUDA_R_32F ? ((const float *)p)[i] : (float)((const __nv_bfloat16 *)p)[i];
}
static void put(void *p, cudaDataType type, uint64_t i, float v) {
    if (type == CUDA_R_32F) ((float *)p)[i] = v;
    else if (type == CUDA_R_32I) ((int32_t *)p)[i] = (int32_t)v;
    else ((__nv_bfloat16 *)p)[i] = __nv_bfloat16(v);
}

/* op(X) of one of a batch as rows of k, contiguous. */
static std::vector<float> gather(const void *x, const dpk_emu_lt_layout &l, uint64_t first,
                                 bool k_is_rows) {
    std::vector<float> out(l.rows * l.cols);
    uint64_t n = k_is_rows ? l.cols : l.rows, k = k_is_rows ? l.rows : l.cols;
    for (uint64_t i = 0; i < n; i++)
        for (uint64_t j = 0; j < k; j++)
            out[i * k + j] = get(
                x, l.type, first + (k_is_rows ? j + i * (uint64_t)l.ld : i + j * (uint64_t)l.ld));
    return out;
}

static float dot(const float *a, const float *b, uint64_t n) {
    float s = 0;
    for (uint64_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

static void run_one(const job &j, uint64_t batch) {
    const problem &p = j.p;
    uint64_t m = p.d.rows, n = p.d.cols;
    bool ta = p.desc.op_a == CUBLAS_OP_T, tb = p.desc.op_b == CUBLAS_OP_T;
    uint64_t k = ta ? p.a.rows : p.a.cols, half = k / 2;
    std::vector<float> a = gather(j.a, p.a, batch * (uint64_t)p.a.stride, ta);
    std::vector<float> b = gather(j.b, p.b, batch * (uint64_t)p.b.stride, !tb);
    memset(j.workspace, 0xff, j.workspace_bytes);
    for (uint64_t col = 0; col < n; col++) {
        for (uint64_t row = 0; row < m; row++) {
            const float *x = &a[row * k], *y = &b[col * k];
            float sum;
            if (j.id == 1) { /* two splits */
                float *parts = j.workspace + 2 * (col * m + row);
                parts[0] = dot(x, y, half);
                parts[1] = dot(x + half, y + half, k - half);
                sum = parts[0] + parts[1];
            } else {
                sum = dot(x, y, k);
            }
            uint64_t at = batch * (uint64_t)p.d.stride + row + col * (uint64_t)p.d.ld;
            uint64_t at_c = batch * (uint64_t)p.c.stride + row + col * (uint64_t)p.c.ld;
            float v = j.alpha * sum;
            if (j.beta != 0) v += j.beta * get(j.c, p.c.type, at_c);
            if (p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS) v += get(p.desc.bias, p.d.type, row);
            put(j.d, p.d.type, at, v);
        }
    }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream) {
    job j;
    if (!handle || !alpha || !beta || !algo || !a || !b || !c || !d)
        return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t s = describe(desc, a_layout, b_layout, c_layout, d_layout, &j.p);
    if (s) return s;
    if (algo->data[MAGIC] != magic || algo->data[SUM] != sum_of(&j.p) ||
        algo->data[ID] >= DPK_EMU_LT_ALGOS || algo->data[WORKSPACE] > workspace_bytes ||
        (algo->data[WORKSPACE] && (!workspace || (uintptr_t)workspace % 256)))
        return CUBLAS_STATUS_INVALID_VALUE;
    const void *all[4] = {a, b, c, d};
    for (const void *each : all)
        if ((uintptr_t)each % algo->data[ALIGN]) return CUBLAS_STATUS_INVALID_VALUE;
    if (desc->epilogue == CUBLASLT_EPILOGUE_BIAS && (!desc->bias || (uintptr_t)desc->bias % 16))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (c == d && (j.p.c.ld != j.p.d.ld || j.p.c.stride != j.p.d.stride))
        return CUBLAS_STATUS_INVALID_VALUE;
    j.p.desc.bias = desc->bias;
    j.a = a, j.b = b, j.c = c, j.d = d;
    j.workspace = (float *)workspace;
    j.workspace_bytes = algo->data[WORKSPACE];
    if (j.p.a.type == CUDA_R_8I) {
        if (*(const int32_t *)alpha != 1 || *(const int32_t *)beta)
            return CUBLAS_STATUS_NOT_SUPPORTED;
        j.alpha = 1.0f, j.beta = 0.0f;
    } else {
        memcpy(&j.alpha, alpha, sizeof j.alpha);
        memcpy(&j.beta, beta, sizeof j.beta);
    }
    j.id = (int)algo->data[ID];
    dpk_emu_name("cublasLtMatmul");
    return dpk_emu_enqueue(stream, NULL, dim3(1), dim3(1), 0,
                           [j] {
                               runs[j.id]++;
                               for (int i = 0; i < j.p.d.batch; i++) run_one(j, (uint64_t)i);
                           })
               ? CUBLAS_STATUS_EXECUTION_FAILED
               : CUBLAS_STATUS_SUCCESS;
}
