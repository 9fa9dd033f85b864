/* Inside of the CUDA backend (host side). Sources are C++17 for nvcc, and for any C++ compiler with
 * tests/cuda_emu/ in front of the include path.
 *
 * Every operator only queues work on cuda->stream: it never allocates, waits or copies from or to
 * the host, so that a list of operators can be captured as a graph. All operands are device memory;
 * weights are found with dpk_cuda_find_weight(), re-laid out as struct dpk_cuda_weight says. ACT values
 * are DPK_BF16 or DPK_F32 (then everything is float32, without TF32). */
#ifndef DPK_CUDA_H
#define DPK_CUDA_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cublasLt.h>
#include <cuda_runtime.h>

extern "C" {
#include "../../formats/fail.h"
#include "../backend.h"
}

/* Local variables of C++ may not be jumped over: here a failure returns. */
#undef DPK_TRY
#undef DPK_FAIL
#define DPK_FAIL(err, code, ...) return dpk_error_set((err), (code), __VA_ARGS__)
#define DPK_TRY(call)                                                                              \
    do {                                                                                           \
        int try_rc_ = (call);                                                                      \
        if (try_rc_ != DPK_OK) return try_rc_;                                                     \
    } while (0)
/* A call of the runtime: DPK_CUDA_TRY(cudaMemsetAsync(...), "group_norm", err). */
#define DPK_CUDA_TRY(call, what, err)                                                              \
    do {                                                                                           \
        cudaError_t cuda_rc_ = (call);                                                             \
        if (cuda_rc_ != cudaSuccess) return dpk_cuda_fail((err), (what), cuda_rc_);                \
    } while (0)

/* A weight on the device.
 *   matrices (PANEL, PANEL_GLU): rows of `pitch` elements, rows [n_rows][pitch] in the panels'
 *     order: for PANEL the logical order, for GLU 8 value rows, 8 gate rows, 8 value rows, ...
 *     n_rows is a multiple of 16, padding rows are zero. A row holds `taps` runs of c_pad elements
 *     (a linear: one), of which the first c are real and the others zero; pitch = taps * c_pad and
 *     c_pad * (bits of an element) is a multiple of 128, so rows are aligned to 16 bytes.
 *     dtype: the file's f32, bf16 and f16 become the session's ACT type; s8 and s4 stay (s4: two
 *     in a byte, the even k in the low half, two's complement; pitch still counts elements)
 *   VEC, RAW: as in the file. */
struct dpk_cuda_weight {
    const void *data;
    int32_t dtype, layout;
    int32_t n_rows, pitch, taps, c, c_pad; /* of matrices */
    const float *scale;                    /* as in the file: s8 [N], s4 [N, K/group]; else NULL */
    int32_t group;
    uint32_t flags; /* enum dpk_tensor_flags */
};

struct dpk_cuda_weights;
struct dpk_cuda_graphs;
struct dpk_cuda_tune;

struct dpk_cuda {
    struct dpk_backend base; /* first: a dpk_backend * is a dpk_cuda * */
    int device;
    int sm;   /* 80, 86, 89, 90, 100, 120 */
    int n_sm; /* multiprocessors */
    int l2_bytes;
    int forced_dtype; /* of activations; 0: by the file */
    int act_dtype;    /* of the attached file's sessions; 0: not attached */
    cudaStream_t stream;
    cublasLtHandle_t lt;
    void *workspace; /* for cuBLASLt: contents die with the operator */
    size_t workspace_bytes;
    struct dpk_cuda_weights *weights; /* shared between the sessions of a model */
    struct dpk_share *share;
    struct dpk_cuda_graphs *graphs;
    cudaEvent_t marks[DPK_MARKS];
    struct dpk_cuda_tune *tune; /* tune.cu; may be NULL */
    char detail[320];
};

/* "what: no kernel image is available (cudaErrorNoKernelImageForDevice)" as DPK_EBACKEND. */
int dpk_cuda_fail(dpk_error *err, const char *what, cudaError_t e);

/* Weight i of a call, which must be there (shape.rank > 0). */
const struct dpk_cuda_weight *dpk_cuda_find_weight(const struct dpk_cuda *cuda,
                                                   const struct dpk_call *call, size_t i);
static inline bool dpk_cuda_has_weight(const struct dpk_call *call, size_t i) {
    return call->wt[i].shape.rank > 0;
}
static inline bool dpk_cuda_has_input(const struct dpk_call *call, size_t i) {
    return call->in[i].shape.rank > 0;
}

/* How a value lies that is quantized rows (dpk_tensor.rows8): integers [rows][pitch], zeros beyond
 * the width, as the products of integers take them; then the scales of the rows. */
struct dpk_cuda_rows8 {
    int8_t *q;
    float *scale;
    int32_t pitch; /* the width rounded up to 16 */
    size_t n_bytes;
};
static inline struct dpk_cuda_rows8 dpk_cuda_rows8_of(const struct dpk_tensor *t) {
    const int32_t width = t->shape.dim[t->shape.rank - 1];
    const size_t rows = (size_t)(dpk_shape_count(&t->shape) / width);
    struct dpk_cuda_rows8 r = {};
    r.pitch = (width + 15) / 16 * 16;
    const size_t scales = (rows * (size_t)r.pitch + 63) / 64 * 64;
    r.n_bytes = scales + rows * sizeof(float);
    if (t->data) {
        r.q = (int8_t *)t->data;
        r.scale = (float *)((char *)t->data + scales);
    }
    return r;
}

/* ---- Operators ------------------------------------------------------------------------------
 * run: queue the operator. Operands were checked by dpk_op_shape; call->scratch holds as many bytes
 * as scratch said, aligned to 64. The result may lie where an input of in_place lies.
 * scratch: data pointers are NULL, no weights are attached when it is asked.
 * prepare: outside of captures, before a call runs for the first time; may allocate, wait and
 * measure, but must not write to the call's operands. */
#define DPK_CUDA_OP(name, scratch, prepare, in_place)                                              \
    int dpk_cuda_run_##name(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err);   \
    size_t dpk_cuda_scratch_##name(const struct dpk_cuda *cuda, const struct dpk_call *call);      \
    int dpk_cuda_prepare_##name(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err);
#include "kernels.def"
#undef DPK_CUDA_OP

/* Can this call make its result as quantized rows? No other operator can: a row of theirs is made by
 * several blocks, and its scale is known when the last of them is done. */
bool dpk_cuda_rows8_group_norm(const struct dpk_cuda *cuda, const struct dpk_call *call);
bool dpk_cuda_rows8_layer_norm(const struct dpk_cuda *cuda, const struct dpk_call *call);

/* tune.cu: which algorithm cuBLASLt takes for a shape. open may leave cuda->tune NULL. */
void dpk_cuda_tune_open(struct dpk_cuda *cuda);
void dpk_cuda_tune_close(struct dpk_cuda *cuda);

#endif
