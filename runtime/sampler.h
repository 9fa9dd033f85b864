/* Samplers as tables of coefficients: every supported scheduler makes its next latent as a
 * linear combination of the latent, the network's last outputs and fresh noise. A schedule is
 * computed once, in double precision, from the scheduler configuration in the file's metadata; a
 * row of it is applied after each call of the network.
 *
 *     x = noise * schedule->init_noise_sigma      (img2img: see start_signal)
 *     for each row:
 *         in = x * row->input_scale;  e = network(in, row->timestep)
 *         if (row->draws_noise) noise = randn(shape of x)
 *         dpk_sampler_apply(row, n, x, e, noise, state)
 */
#ifndef DPK_SAMPLER_H
#define DPK_SAMPLER_H

#include "../formats/dpk_error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DPK_SAMPLER_SLOTS = 4 };

/* Coefficients of one linear combination: x, kept, m, slot[0..3] as before the call; noise. */
struct dpk_sampler_terms {
    double x, kept, m, noise;
    double slot[DPK_SAMPLER_SLOTS];
};

/* One call of the network. e is its output. With x, kept and slot as they are before the call,
 * element by element:
 *     m     = m_x * x + m_e * e               the output converted to what the solver works with
 *     x'    = sum over next of coefficient times operand
 *     kept' = sum over keep of coefficient times operand
 *     slot'[store] = m */
struct dpk_sampler_row {
    double timestep;    /* what the network is told, a float32 value */
    double sigma;       /* of the class's sigma list, or sqrt((1 - abar) / abar) at the timestep */
    double input_scale; /* network input = x * input_scale */
    double m_x, m_e;
    struct dpk_sampler_terms next, keep;
    int store;        /* slot that gets m, or -1 */
    bool draws_noise; /* the scheduler draws randn of x's shape here, even if next.noise is 0 */
    bool step_ends;   /* false: the first half of a Heun step */
};

struct dpk_schedule {
    const char *name; /* class name, static */
    uint32_t steps;   /* asked for */
    uint32_t order;   /* network calls per step: Heun 2, others 1 */
    uint32_t start;   /* steps left out at the beginning (img2img) */
    uint32_t n_rows;  /* calls of the network */
    uint32_t n_slots; /* history slots that the rows use: slot[0..n_slots) */
    uint32_t n_sigmas;
    struct dpk_sampler_row *rows;
    double *sigmas;          /* the class's list for the whole run; none for DDIM, PNDM, LCM */
    double init_noise_sigma; /* x at the start = noise * init_noise_sigma */
    /* img2img: x at rows[0] = start_signal * latent + start_noise * noise */
    double start_signal, start_noise;
    bool exploding; /* x = x0 + sigma noise; else x = sqrt(abar) x0 + sqrt(1 - abar) noise */
};

struct dpk_schedule_spec {
    /* The text of scheduler_config.json's `key`, or NULL if it is absent: strings without
     * quotes, null, true, false, numbers, arrays as JSON text. "_class_name" names the class. */
    const char *(*get)(void *arg, const char *key);
    void *arg;
    /* NULL: the file's own class. Else euler, euler-a, ddim, pndm, dpm++2m, dpm++2m-karras,
     * dpm++2m-sde, unipc, lcm, heun or lms, made from the file's config as diffusers' from_config
     * does: keys in the file carry over, others are the new class's defaults. */
    const char *name;
    uint32_t steps; /* 1 .. num_train_timesteps */
    uint32_t start; /* steps to leave out (dpk_schedule_start), below steps; 0 for txt2img */
};

/* Errors: DPK_EARG (unknown name, steps out of range for it), DPK_EUNSUPPORTED (a class, or a
 * key and value, that the table cannot express), DPK_EFORMAT (a value is not what its key
 * takes), DPK_ENOMEM. */
int dpk_schedule_create(struct dpk_schedule **s, const struct dpk_schedule_spec *spec,
                        dpk_error *err);
void dpk_schedule_free(struct dpk_schedule *s); /* NULL is fine */

/* Steps that image-to-image with `strength` in 0..1 leaves out at the beginning (diffusers'
 * get_timesteps). */
uint32_t dpk_schedule_start(uint32_t steps, double strength);

/* What a clean latent is where the network is called the `row`th time: signal * latent + noise *
 * noise (diffusers' add_noise at that timestep). row n_rows: after the last call, 1 and 0. */
void dpk_schedule_level(const struct dpk_schedule *s, uint32_t row, double *signal, double *noise);

/* Floats of state that a run over n values needs: kept [n], then slot[0] [n], slot[1] [n], ...
 * Initial contents do not matter. */
size_t dpk_sampler_state_size(const struct dpk_schedule *s, size_t n);

/* Apply one row in place to all n values: x [n] and state [dpk_sampler_state_size] change, e [n]
 * and noise [n] are read (noise may be NULL unless row->draws_noise). Sums are made in double
 * and rounded once. An operand whose coefficient is 0 is not read. Elementwise: any layout of x
 * will do, the same for e and noise. */
void dpk_sampler_apply(const struct dpk_sampler_row *row, size_t n, float *x, const float *e,
                       const float *noise, float *state);

#endif
