/* Between plugin.cu, upload.cu, graph.cu, timing.cu and sampler.cu. Operators use cuda.h. */
#ifndef DPK_BACKEND_CUDA_H
#define DPK_BACKEND_CUDA_H

#include "cuda.h"

/* ---- plugin.cu: one operator --------------------------------------------------------------- */
int dpk_cuda_run(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err);
int dpk_cuda_prepare(struct dpk_cuda *cuda, const struct dpk_call *call, dpk_error *err);

/* ---- upload.cu ----------------------------------------------------------------------------- */
/* Weights of the file for cuda->act_dtype: those that `share` has, or else uploaded. */
int dpk_cuda_attach(struct dpk_cuda *cuda, const struct dpk_file *file, struct dpk_share *share,
                    dpk_error *err);
void dpk_cuda_detach(struct dpk_cuda *cuda); /* also if nothing is attached */
uint64_t dpk_cuda_weight_bytes(const struct dpk_cuda *cuda);

/* ---- graph.cu: lists of calls as graphs ---------------------------------------------------- */
int dpk_cuda_graph_open(struct dpk_cuda *cuda, dpk_error *err);
void dpk_cuda_graph_close(struct dpk_cuda *cuda);
/* All graphs: weights are no longer where they were. */
void dpk_cuda_graph_forget(struct dpk_cuda *cuda);
/* backend.h's run_list. */
int dpk_cuda_graph_run(struct dpk_cuda *cuda, const struct dpk_call *calls, size_t n,
                       const struct dpk_loop *loop, dpk_error *err);

/* ---- timing.cu: backend.h's run_timed and peaks -------------------------------------------- */
int dpk_cuda_run_timed(struct dpk_cuda *cuda, const struct dpk_call *calls, size_t n,
                       double *seconds, dpk_error *err);
int dpk_cuda_peaks(struct dpk_cuda *cuda, struct dpk_peaks *peaks, dpk_error *err);

/* ---- sampler.cu ---------------------------------------------------------------------------- */
/* What struct dpk_loop does before the calls, and after them. */
int dpk_cuda_loop_before(struct dpk_cuda *cuda, const struct dpk_loop *loop, dpk_error *err);
int dpk_cuda_loop_after(struct dpk_cuda *cuda, const struct dpk_loop *loop, dpk_error *err);
int dpk_cuda_normal(struct dpk_cuda *cuda, const struct dpk_normal *normal, dpk_error *err);

#endif
