/* What the files of a job share: sizes (job_size.c), prompts (job_text.c), the picture to start
 * from (job_image.c), and plan and memory of it all (job.c). Others use job.h. */
#ifndef DPK_JOB_IMPL_H
#define DPK_JOB_IMPL_H

#include "job.h"

/* ---- job.c -------------------------------------------------------------------------------- */
struct dpk_shape dpk_job_shape(int rank, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
void dpk_job_input(struct dpk_plan_input *in, const char *name, int32_t dtype,
                   struct dpk_shape shape);
/* The output must be there, float32 and of this shape; dimensions that are 0 there may have any
 * size. Errors: DPK_EFORMAT. */
int dpk_job_output(struct dpk_job *job, uint32_t stage, const char *name,
                   const struct dpk_shape *want, uint32_t *value, dpk_error *err);

/* Host buffers are one block, cut in the same order twice: first to count (job->host is NULL), then
 * to hand out. */
void *dpk_job_cut(struct dpk_job *job, uint64_t bytes);
/* A buffer for the input of this name, if one of the two stages takes it; else NULL. */
void *dpk_job_cut_input(struct dpk_job *job, uint32_t stage_a, uint32_t stage_b,
                        struct dpk_plan_input *inputs, size_t n, const char *name);

/* ---- job_size.c --------------------------------------------------------------------------- */

/* Sizes asked for, to paint, and of the latent. Errors: DPK_EARG, DPK_EFORMAT. */
int dpk_job_size(struct dpk_job *job, dpk_error *err);

/* ---- job_text.c --------------------------------------------------------------------------- */

/* How many chunks each prompt gets. Errors: DPK_EARG, DPK_EUNSUPPORTED, DPK_ENOMEM. */
int dpk_job_count_chunks(struct dpk_job *job, dpk_error *err);
int dpk_job_plan_text(struct dpk_job *job, dpk_error *err);
void dpk_job_cut_text(struct dpk_job *job);
int dpk_job_tokens(struct dpk_job *job, dpk_error *err);
/* Bytes of one prompt's context, and of its pooled vector. */
size_t dpk_job_context_bytes(const struct dpk_job *job);
size_t dpk_job_pooled_bytes(const struct dpk_job *job);

/* ---- job_loop.c: where the backend has run_list ---------------------------------------------- */

/* Set job->loop_bytes. */
void dpk_job_plan_loop(struct dpk_job *job);
/* After dpk_job_noise: take the device's memory and fill it. */
int dpk_job_loop_begin(struct dpk_job *job, dpk_error *err);
/* Queue the network's call number `row`, and the sampler's row. */
int dpk_job_loop_row(struct dpk_job *job, uint32_t row, dpk_error *err);
/* Wait for one of the last DPK_MARKS rows queued. */
int dpk_job_loop_wait(struct dpk_job *job, uint32_t row, dpk_error *err);
/* Wait for all, and bring x to job->x. */
int dpk_job_loop_fetch(struct dpk_job *job, dpk_error *err);
/* Give image number `index` of x to the decoder. */
int dpk_job_loop_give(struct dpk_job *job, uint32_t index, dpk_error *err);

/* ---- job_image.c: nothing without params.init ----------------------------------------------- */
int dpk_job_check_init(struct dpk_job *job, dpk_error *err);
int dpk_job_plan_init(struct dpk_job *job, dpk_error *err);
void dpk_job_cut_init(struct dpk_job *job);
int dpk_job_read_init(struct dpk_job *job, dpk_error *err);
/* Draw normal noise for latents of images [n,h,w,C], as diffusers does: from the first generator
 * for all, or (with a seed an image) from each its own. */
void dpk_job_draw(struct dpk_job *job, uint32_t n, float *out);
/* After the sampler's row: put back what is kept. Nothing without params.mask. */
void dpk_job_keep(struct dpk_job *job, uint32_t row);

#endif
