/* Inside the samplers: the configuration of a scheduler and the parts that its coefficients are
 * made of. Callers use sampler.h. */
#ifndef DPK_SCHEDULE_H
#define DPK_SCHEDULE_H

#include "sampler.h"

enum dpk_scheduler {
    DPK_SCHEDULER_EULER,
    DPK_SCHEDULER_EULER_ANCESTRAL,
    DPK_SCHEDULER_DDIM,
    DPK_SCHEDULER_PNDM,
    DPK_SCHEDULER_DPMPP, /* DPM-Solver++ multistep, deterministic or SDE */
    DPK_SCHEDULER_UNIPC,
    DPK_SCHEDULER_LCM,
    DPK_SCHEDULER_HEUN,
    DPK_SCHEDULER_LMS,
    DPK_N_SCHEDULERS
};

enum { DPK_PREDICT_EPSILON, DPK_PREDICT_V, DPK_PREDICT_SAMPLE };
enum { DPK_SPACING_LINSPACE, DPK_SPACING_LEADING, DPK_SPACING_TRAILING };
enum { DPK_SIGMAS_PLAIN, DPK_SIGMAS_KARRAS, DPK_SIGMAS_EXPONENTIAL, DPK_SIGMAS_LU };

/* scheduler_config.json, read with the defaults of its class. */
struct dpk_schedule_config {
    enum dpk_scheduler kind;
    const char *class_name;
    uint32_t train_steps;
    int prediction, spacing, sigmas;
    int32_t steps_offset;
    bool cosine_betas;           /* beta_schedule is squaredcos_cap_v2 */
    bool log_linear;             /* Euler: interpolation_type */
    double sigma_min, sigma_max; /* NaN: not given */
    bool final_sigma_min;        /* final_sigmas_type: sigma_min, else zero */
    double lambda_min_clipped;
    int solver_order;
    bool sde, solver_heun, lower_order_final, euler_at_final; /* DPM-Solver++ */
    bool predict_x0, bh1;                                     /* UniPC */
    bool alpha_to_one;
    uint32_t lcm_steps;
    double lcm_scaling;
    float *abar; /* [train_steps] cumulative product of 1 - beta, float32 as PyTorch computes it */
};

int dpk_schedule_config_read(struct dpk_schedule_config *c, const struct dpk_schedule_spec *spec,
                             dpk_error *err);
void dpk_schedule_config_free(struct dpk_schedule_config *c);

/* The class's float32 timesteps of the whole run: `steps` of them (LCM: of its own grid),
 * descending. t [steps + 1]. sigmas [steps + 1], ending in the final one, float32 values; NULL
 * for the classes without. */
int dpk_schedule_grid(const struct dpk_schedule_config *c, uint32_t steps, double *t,
                      double *sigmas, dpk_error *err);

/* A linear form in the latent and the network's output. */
struct dpk_form {
    double x, e;
};
/* The predicted x0 and noise where x = alpha x0 + sigma noise and e is what the network
 * predicts. */
struct dpk_form dpk_form_x0(int prediction, double alpha, double sigma);
struct dpk_form dpk_form_noise(int prediction, double alpha, double sigma);

/* Ring of history slots: the numbers of the last outputs stored. */
struct dpk_ring {
    uint32_t n_slots, n_stored;
};
int dpk_ring_store(struct dpk_ring *r);                          /* slot for the next one */
uint32_t dpk_ring_slot(const struct dpk_ring *r, uint32_t back); /* back = 1: stored last */

/* Fill s->rows (zeroed, s->n_rows of them, from step s->start on), s->n_slots and what else the
 * class decides, from the grid. */
void dpk_schedule_rows_sigma(const struct dpk_schedule_config *c, struct dpk_schedule *s,
                             const double *t);
int dpk_schedule_rows_alpha(const struct dpk_schedule_config *c, struct dpk_schedule *s,
                            const double *t, dpk_error *err);
void dpk_schedule_rows_dpmpp(const struct dpk_schedule_config *c, struct dpk_schedule *s,
                             const double *t);
void dpk_schedule_rows_unipc(const struct dpk_schedule_config *c, struct dpk_schedule *s,
                             const double *t);

#endif
