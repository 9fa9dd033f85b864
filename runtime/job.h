/* A job: parameters resolved, plan, host buffers, and the stages to run one by one.
 * dpk_generate runs all of them; `diffpak bench` times each.
 *
 * Rows: the text program runs on one row a prompt (or a row for each of its chunks), then one for
 * the negative prompt if that is encoded. The network runs on one row an image, with guidance
 * twice: all negative rows, then all positive ones, as diffusers orders them. Pictures are decoded
 * one at a time: a decoder needs far more memory for a picture than a step of the network. */
#ifndef DPK_JOB_H
#define DPK_JOB_H

#include "exec.h"
#include "random.h"
#include "session.h"

struct dpk_job {
    struct dpk_session *session;
    dpk_params params; /* defaults filled in, but for prompts */
    struct dpk_settings settings;
    uint32_t n_images, text_rows, rows;
    bool guided, negative_zeros;
    uint32_t paint_width, paint_height; /* what the model paints */
    bool fitted;                        /* that is then resized to params.width, height */
    uint32_t w, h, channels;            /* of the latent */
    uint32_t n_chunks;                  /* rows of the text program for a row of prompt */
    struct dpk_schedule *schedule;
    struct dpk_plan plan;
    uint32_t encode, text, setup, step, decode;             /* stages; encode with params.init */
    uint32_t out_context, out_pooled, out_noise, out_image; /* values; pooled may be DPK_NONE */

    /* Host buffers, one block. Those that the model does not take are NULL. */
    uint8_t *host;
    uint64_t host_bytes;
    struct dpk_plan_input text_in[3]; /* ids, ids_2, mask */
    /* [text_rows,n_chunks,L], [text_rows,n_chunks,L,D], [text_rows,P]; weights with
     * params.prompt_weights */
    int32_t *text_ids[2], *text_mask;
    float *text_weights, *text_context, *text_pooled;
    struct dpk_plan_input net_in[9]; /* of setup and step; see enum */
    float *context, *pooled, *time_ids, *timesteps, *resolution, *aspect_ratio; /* [rows,...] */
    int32_t *mask, *step_index;
    float *latent; /* [rows,h,w,C] what the network sees */
    float *output; /* [rows,h,w,C] what it says */
    struct dpk_plan_input decode_in[1];
    struct dpk_random *random;            /* [params.n_seeds] */
    float *x, *e, *noise, *drawn, *state; /* [n_images,h,w,C]; drawn [n_images,C,h,w] */
    float *image; /* [1 or n_images,H,W,3] as asked for, at least one as painted */
    float *shown; /* [1 or n_images,H,W,3], if fitted */

    /* With params.init */
    uint32_t out_mean, out_logvar;
    struct dpk_plan_input encode_in[1];
    float *init_image;              /* [paint_height,paint_width,3], -1 .. 1 */
    float *init_mean, *init_logvar; /* [h,w,C] */
    float *init_latent;             /* [n_images,h,w,C] */
    float *init_noise;              /* [n_images,h,w,C] */
    uint8_t *repaint;               /* [h,w] 1 where the mask says so; NULL without */

    /* On a device that works on its own (job_loop.c) */
    uint64_t loop_bytes; /* of its memory; 0: the loop is the host's */
    struct dpk_loop loop;
    struct dpk_loop_row *loop_rows; /* [n_rows] */
    bool on_device;                 /* x is there, not here */

    double work_done, work_total;
    uint32_t calls_done;
    const char *stage_name;
};

/* Fill in defaults, check everything, plan. prompts may be NULL. Takes no arena, no host buffers.
 * params is copied; what it points to is borrowed. dpk_job_free also after failure. */
int dpk_job_plan(struct dpk_job *job, struct dpk_session *session, const dpk_params *params,
                 dpk_error *err);
/* Take memory (limit checked), encode the prompts to ids, start the generators. */
int dpk_job_begin(struct dpk_job *job, dpk_error *err);
void dpk_job_free(struct dpk_job *job);

/* Bytes of device memory that the planned job takes, weights included; 0 where the host's memory is
 * the device's. */
uint64_t dpk_job_device_bytes(const struct dpk_job *job);

/* The stages, in this order; each may be repeated before the next. hook may be NULL. */
int dpk_job_encode(struct dpk_job *job, const struct dpk_exec_hook *hook, dpk_error *err);
int dpk_job_text(struct dpk_job *job, const struct dpk_exec_hook *hook, dpk_error *err);
int dpk_job_setup(struct dpk_job *job, const struct dpk_exec_hook *hook, dpk_error *err);
int dpk_job_noise(struct dpk_job *job, dpk_error *err); /* x = what the sampler starts from */
/* One call of the network and one row of the sampler: x to x; then what a mask keeps. */
int dpk_job_step(struct dpk_job *job, uint32_t row, const struct dpk_exec_hook *hook,
                 dpk_error *err);
/* Image number `index` of x to `image` [paint_height,paint_width,3]. */
int dpk_job_decode(struct dpk_job *job, uint32_t index, float *image,
                   const struct dpk_exec_hook *hook, dpk_error *err);

#endif
