/* The picture that a job starts from: read, encoded, noised, and kept where a mask says so. Order
 * and number of draws from the generators are those of diffusers' image-to-image and (four-channel)
 * inpainting pipelines of Stable Diffusion and SDXL. */
#include "guide.h"
#include "job_impl.h"
#include "resize.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t latent_values(const struct dpk_job *job) {
    return (size_t)job->h * job->w * job->channels;
}

int dpk_job_check_init(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    const uint32_t most = DPK_JOB_MAX_PIXELS;
    if (!p->init && p->mask) DPK_FAIL(err, DPK_EARG, "a mask, but no picture that it is for");
    if (!p->init) goto done;
    if (!p->init_width || !p->init_height || p->init_width > most || p->init_height > most)
        DPK_FAIL(err, DPK_EARG, "the picture to start from is %ux%u, want sides from 1 to %u",
                 p->init_width, p->init_height, most);
    if (p->mask && (p->mask_width != p->init_width || p->mask_height != p->init_height))
        DPK_FAIL(err, DPK_EARG, "the mask is %ux%u, the picture to start from is %ux%u",
                 p->mask_width, p->mask_height, p->init_width, p->init_height);
    if (!(p->strength > 0 && p->strength <= 1))
        DPK_FAIL(err, DPK_EARG, "strength is %g, want above 0, up to 1", p->strength);
    if (!dpk_file_program(&job->session->model->file, "encode"))
        DPK_FAIL(err, DPK_EUNSUPPORTED, "the model has no program encode: it can't take a picture");
done:
    return rc;
}

int dpk_job_plan_init(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    if (!job->params.init) goto done;
    struct dpk_shape image = dpk_job_shape(4, 1, job->paint_height, job->paint_width, 3);
    struct dpk_shape latent = dpk_job_shape(4, 1, job->h, job->w, job->channels);
    dpk_job_input(&job->encode_in[0], "image", DPK_F32, image);
    DPK_TRY(dpk_plan_add(&job->plan, "encode", job->encode_in, 1, -1, &job->encode, err));
    DPK_TRY(dpk_job_output(job, job->encode, "mean", &latent, &job->out_mean, err));
    DPK_TRY(dpk_job_output(job, job->encode, "logvar", &latent, &job->out_logvar, err));
done:
    return rc;
}

void dpk_job_cut_init(struct dpk_job *job) {
    if (!job->params.init) return;
    const uint64_t one = latent_values(job) * sizeof(float);
    job->init_image = dpk_job_cut(job, (uint64_t)job->paint_width * job->paint_height * 12);
    job->encode_in[0].data = job->init_image;
    job->init_mean = dpk_job_cut(job, one);
    job->init_logvar = dpk_job_cut(job, one);
    job->init_latent = dpk_job_cut(job, one * job->n_images);
    job->init_noise = dpk_job_cut(job, one * job->n_images);
    if (job->params.mask) job->repaint = dpk_job_cut(job, (uint64_t)job->w * job->h);
}

/* A picture at the size to paint; *out is malloc'ed. */
static int resize(const struct dpk_job *job, const uint8_t *in, uint32_t channels, uint8_t **out,
                  dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    const uint32_t w = job->paint_width, h = job->paint_height;
    *out = malloc((size_t)w * h * channels);
    if (!*out) DPK_FAIL(err, DPK_ENOMEM, "no memory for a picture of %ux%u", w, h);
    DPK_TRY(dpk_resize_lanczos(in, p->init_width, p->init_height, channels, *out, w, h, err));
done:
    return rc;
}

int dpk_job_read_init(struct dpk_job *job, dpk_error *err) {
    int rc = DPK_OK;
    const dpk_params *p = &job->params;
    uint8_t *image = NULL, *mask = NULL;
    const size_t n = (size_t)job->paint_width * job->paint_height * 3;
    if (!p->init) goto done;
    DPK_TRY(resize(job, p->init, 3, &image, err));
    for (size_t i = 0; i < n; i++) job->init_image[i] = 2 * ((float)image[i] / 255) - 1;
    if (!p->mask) goto done;
    DPK_TRY(resize(job, p->mask, 1, &mask, err));
    const size_t f = job->paint_width / job->w;
    for (size_t y = 0; y < job->h; y++)
        for (size_t x = 0; x < job->w; x++)
            job->repaint[y * job->w + x] = mask[(y * job->paint_width + x) * f] >= 128;
done:
    free(image);
    free(mask);
    return rc;
}

/* ---- Draws -------------------------------------------------------------------------------- */

void dpk_job_draw(struct dpk_job *job, uint32_t n, float *out) {
    const size_t pixels = (size_t)job->h * job->w, one = pixels * job->channels;
    if (job->params.n_seeds <= 1) dpk_random_normal(&job->random[0], DPK_F32, one * n, job->drawn);
    else
        for (uint32_t i = 0; i < n; i++)
            dpk_random_normal(&job->random[i], DPK_F32, one, job->drawn + i * one);
    dpk_guide_to_nhwc(n, job->channels, pixels, job->drawn, out);
}

/* A sample of what the encoder says, times the scaling factor; out holds the noise before. */
static void sample(const struct dpk_job *job, float *out) {
    const float factor = (float)job->settings.scaling_factor;
    for (size_t i = 0; i < latent_values(job); i++) {
        float logvar = fminf(fmaxf(job->init_logvar[i], -30), 20);
        out[i] = factor * (job->init_mean[i] + expf(0.5f * logvar) * out[i]);
    }
}

int dpk_job_encode(struct dpk_job *job, const struct dpk_exec_hook *hook, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan *plan = &job->plan;
    if (!job->params.init) goto done;
    DPK_TRY(dpk_exec_give_all(plan, job->encode, job->encode_in, 1, err));
    DPK_TRY(dpk_exec_run(plan, job->encode, hook, err));
    DPK_TRY(dpk_exec_take(plan, job->encode, job->out_mean, job->init_mean, err));
    DPK_TRY(dpk_exec_take(plan, job->encode, job->out_logvar, job->init_logvar, err));
done:
    return rc;
}

/* Samples of the encoded picture: with a seed an image, one for each from its own generator; else,
 * and with a mask, one for all from the first. */
static void sample_all(struct dpk_job *job) {
    const size_t one = latent_values(job);
    const uint32_t n = job->params.n_seeds > 1 && !job->params.mask ? job->n_images : 1;
    dpk_job_draw(job, n, job->init_latent);
    for (uint32_t i = 0; i < n; i++) sample(job, job->init_latent + i * one);
    for (uint32_t i = n; i < job->n_images; i++)
        memcpy(job->init_latent + i * one, job->init_latent, one * sizeof(float));
}

int dpk_job_noise(struct dpk_job *job, dpk_error *err) {
    (void)err;
    const dpk_params *p = &job->params;
    const size_t n = job->n_images * latent_values(job);
    double signal = 0, level = job->schedule->init_noise_sigma;
    if (p->init) sample_all(job);
    float *noise = p->init ? job->init_noise : job->x;
    if (p->latents) memcpy(noise, p->latents, n * sizeof *noise);
    else dpk_job_draw(job, job->n_images, noise);
    /* The inpainting pipelines also encode the picture without what is repainted, which only
     * networks of nine channels look at: the generator moves on. */
    if (p->mask) dpk_job_draw(job, 1, job->noise);
    if (p->init && !(p->mask && p->strength == 1))
        dpk_schedule_level(job->schedule, 0, &signal, &level);
    for (size_t i = 0; i < n; i++) {
        float x = noise[i] * (float)level;
        job->x[i] = signal != 0 ? (float)signal * job->init_latent[i] + x : x;
    }
    return DPK_OK;
}

void dpk_job_keep(struct dpk_job *job, uint32_t row) {
    if (!job->params.mask) return;
    double signal, level;
    dpk_schedule_level(job->schedule, row + 1, &signal, &level);
    const size_t c = job->channels, n = job->n_images * latent_values(job);
    const size_t pixels = (size_t)job->w * job->h;
    for (size_t i = 0; i < n; i++)
        if (!job->repaint[i / c % pixels])
            job->x[i] = (float)signal * job->init_latent[i] + (float)level * job->init_noise[i];
}
