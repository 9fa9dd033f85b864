/* Rows of the one-step schedulers. In sigma space (Euler, Euler ancestral, Heun, LMS: x = x0 +
 * sigma noise) the solver works with the derivative dx/dsigma = (x - x0) / sigma; in alpha space
 * (DDIM, PNDM, LCM: x = sqrt(abar) x0 + sqrt(1 - abar) noise) with what the comments say. */
#include "schedule.h"

#include "../formats/fail.h"

#include <math.h>

struct dpk_form dpk_form_x0(int prediction, double alpha, double sigma) {
    switch (prediction) {
    case DPK_PREDICT_EPSILON:
        return (struct dpk_form){1 / alpha, -sigma / alpha};
    case DPK_PREDICT_V:
        return (struct dpk_form){alpha, -sigma};
    default:
        return (struct dpk_form){0, 1};
    }
}

struct dpk_form dpk_form_noise(int prediction, double alpha, double sigma) {
    switch (prediction) {
    case DPK_PREDICT_EPSILON:
        return (struct dpk_form){0, 1};
    case DPK_PREDICT_V:
        return (struct dpk_form){sigma, alpha};
    default:
        return (struct dpk_form){1 / sigma, -alpha / sigma};
    }
}

int dpk_ring_store(struct dpk_ring *r) {
    return r->n_slots ? (int)(r->n_stored++ % r->n_slots) : -1;
}

uint32_t dpk_ring_slot(const struct dpk_ring *r, uint32_t back) {
    return (r->n_stored - back) % r->n_slots;
}

/* ---- Sigma space
 * ------------------------------------------------------------------------------ */

/* m = (x - x0) / sigma. In this space x is scaled by sqrt(sigma^2 + 1) against alpha space. */
static void set_derivative(const struct dpk_schedule_config *c, double sigma,
                           struct dpk_sampler_row *row) {
    row->sigma = sigma;
    row->input_scale = 1 / sqrt(sigma * sigma + 1);
    switch (c->prediction) {
    case DPK_PREDICT_EPSILON:
        row->m_x = 0, row->m_e = 1;
        break;
    case DPK_PREDICT_V:
        row->m_x = sigma / (sigma * sigma + 1);
        row->m_e = 1 / sqrt(sigma * sigma + 1);
        break;
    default:
        row->m_x = 1 / sigma, row->m_e = -1 / sigma;
        break;
    }
}

static void euler_ancestral_row(double from, double to, struct dpk_sampler_row *row) {
    double up = sqrt(to * to * (from * from - to * to) / (from * from));
    double down = sqrt(to * to - up * up);
    row->next.x = 1;
    row->next.m = down - from;
    row->next.noise = up;
    row->draws_noise = true;
}

/* Linear multistep (Adams-Bashforth on uneven sigmas), order 4: each past derivative weighs the
 * integral of its Lagrange polynomial over the step. */
static double lms_weight(const double *sigmas, uint32_t i, uint32_t order, uint32_t which) {
    /* Gauss-Legendre with two points is exact up to degree 3. */
    double half = (sigmas[i + 1] - sigmas[i]) / 2, mid = (sigmas[i + 1] + sigmas[i]) / 2, sum = 0;
    for (int side = -1; side <= 1; side += 2) {
        double tau = mid + side * half / sqrt(3.0), p = 1;
        for (uint32_t k = 0; k < order; k++)
            if (k != which) p *= (tau - sigmas[i - k]) / (sigmas[i - which] - sigmas[i - k]);
        sum += p;
    }
    return sum * half;
}

static void lms_row(const double *sigmas, uint32_t i, struct dpk_ring *ring,
                    struct dpk_sampler_row *row) {
    /* Counted from the schedule's first step also where the run starts later (as diffusers does:
     * it then has fewer derivatives than the order says, and takes those for zero). */
    uint32_t order = i + 1 < 4 ? i + 1 : 4;
    row->next.x = 1;
    row->next.m = lms_weight(sigmas, i, order, 0);
    for (uint32_t k = 1; k < order && k <= ring->n_stored; k++)
        row->next.slot[dpk_ring_slot(ring, k)] = lms_weight(sigmas, i, order, k);
    row->store = dpk_ring_store(ring);
}

/* Heun: an Euler step to sigma', the derivative there, then the step again with their mean. */
static void heun_rows(const struct dpk_schedule_config *c, const double *sigmas, const double *t,
                      uint32_t i, uint32_t steps, struct dpk_sampler_row *row) {
    double dt = sigmas[i + 1] - sigmas[i];
    set_derivative(c, sigmas[i], &row[0]);
    row[0].timestep = t[i];
    row[0].next = (struct dpk_sampler_terms){.x = 1, .m = dt};
    if (i + 1 == steps) {
        row[0].step_ends = true;
        return;
    }
    row[0].keep.x = 1;
    row[0].store = 0;
    row[0].step_ends = false;
    set_derivative(c, sigmas[i + 1], &row[1]);
    row[1].timestep = t[i + 1];
    row[1].next = (struct dpk_sampler_terms){.kept = 1, .m = dt / 2, .slot = {dt / 2}};
}

void dpk_schedule_rows_sigma(const struct dpk_schedule_config *c, struct dpk_schedule *s,
                             const double *t) {
    struct dpk_ring ring = {.n_slots = c->kind == DPK_SCHEDULER_LMS ? 3 : 0};
    s->n_slots = c->kind == DPK_SCHEDULER_HEUN ? 1 : ring.n_slots;
    const double *sigmas = s->sigmas;
    double top = 0;
    for (uint32_t i = 0; i <= s->steps; i++) top = fmax(top, sigmas[i]);
    s->init_noise_sigma = c->spacing == DPK_SPACING_LEADING ? sqrt(top * top + 1) : top;
    s->exploding = true;
    s->start_signal = 1;
    s->start_noise = sigmas[s->start];
    for (uint32_t i = s->start; i < s->steps; i++) {
        struct dpk_sampler_row *row = &s->rows[(i - s->start) * s->order];
        if (c->kind == DPK_SCHEDULER_HEUN) {
            heun_rows(c, sigmas, t, i, s->steps, row);
            continue;
        }
        row->timestep = t[i];
        set_derivative(c, sigmas[i], row);
        if (c->kind == DPK_SCHEDULER_LMS) lms_row(sigmas, i, &ring, row);
        else if (c->kind == DPK_SCHEDULER_EULER_ANCESTRAL)
            euler_ancestral_row(sigmas[i], sigmas[i + 1], row);
        else row->next = (struct dpk_sampler_terms){.x = 1, .m = sigmas[i + 1] - sigmas[i]};
    }
}

/* ---- Alpha space
 * ------------------------------------------------------------------------------ */

static double level(const struct dpk_schedule_config *c, double t) {
    if (t >= 0) return c->abar[(uint32_t)t];
    return c->alpha_to_one ? 1 : c->abar[0];
}

/* DDIM with eta 0: x' = sqrt(abar') x0 + sqrt(1 - abar') noise; m = x'. */
static void ddim_row(const struct dpk_schedule_config *c, double a, double a_next,
                     struct dpk_sampler_row *row) {
    struct dpk_form x0 = dpk_form_x0(c->prediction, sqrt(a), sqrt(1 - a));
    struct dpk_form noise = dpk_form_noise(c->prediction, sqrt(a), sqrt(1 - a));
    row->m_x = sqrt(a_next) * x0.x + sqrt(1 - a_next) * noise.x;
    row->m_e = sqrt(a_next) * x0.e + sqrt(1 - a_next) * noise.e;
    row->next.m = 1;
}

/* LCM: the consistency function c_skip x + c_out x0, then noise again up to the next level; m =
 * x0. */
static void lcm_row(const struct dpk_schedule_config *c, double t, double a, double a_next,
                    bool last, struct dpk_sampler_row *row) {
    struct dpk_form x0 = dpk_form_x0(c->prediction, sqrt(a), sqrt(1 - a));
    const double data = 0.5, st = t * c->lcm_scaling;
    const double skip = data * data / (st * st + data * data);
    const double out = st / sqrt(st * st + data * data);
    const double signal = last ? 1 : sqrt(a_next);
    row->m_x = x0.x;
    row->m_e = x0.e;
    row->next.x = signal * skip;
    row->next.m = signal * out;
    row->next.noise = last ? 0 : sqrt(1 - a_next);
    row->draws_noise = !last;
}

/* The linear multistep form of PNDM (Liu et al. 2022, PLMS), call by call; m = e, the raw
 * output. */
static int pndm_row(const struct dpk_schedule_config *c, uint32_t call, double t, uint32_t ratio,
                    struct dpk_ring *ring, struct dpk_sampler_row *row, dpk_error *err) {
    static const double weights[4][4] = {
        {1, 0, 0, 0},
        {3 / 2.0, -1 / 2.0, 0, 0},
        {23 / 12.0, -16 / 12.0, 5 / 12.0, 0},
        {55 / 24.0, -59 / 24.0, 37 / 24.0, -9 / 24.0},
    };
    /* Call 1 repeats the first step from the kept latent, with the mean of the slopes at its
     * ends. */
    const bool again = call == 1;
    const double from = again ? t + ratio : t, to = again ? t : t - ratio;
    if (from > c->train_steps - 1)
        return dpk_error_set(err, DPK_EARG, "scheduler %s: timestep %g, want at most %u",
                             c->class_name, from, c->train_steps - 1);
    const double a = level(c, from), a_next = level(c, to);
    double scale = sqrt(a_next / a);
    double slope = -(a_next - a) / (a * sqrt(1 - a_next) + sqrt(a * (1 - a) * a_next));
    if (c->prediction == DPK_PREDICT_V) {
        scale += slope * sqrt(1 - a);
        slope *= sqrt(a);
    }
    row->timestep = t;
    row->m_e = 1;
    if (again) {
        row->next.kept = scale;
        row->next.m = slope / 2;
        row->next.slot[dpk_ring_slot(ring, 1)] = slope / 2;
    } else {
        const double *w = weights[ring->n_stored < 3 ? ring->n_stored : 3];
        row->next.x = scale;
        row->next.m = slope * w[0];
        for (uint32_t k = 1; k <= 3 && k <= ring->n_stored; k++)
            row->next.slot[dpk_ring_slot(ring, k)] = slope * w[k];
        row->keep.x = call == 0;
        row->store = dpk_ring_store(ring);
    }
    return DPK_OK;
}

static int pndm_rows(const struct dpk_schedule_config *c, struct dpk_schedule *s, const double *t,
                     dpk_error *err) {
    struct dpk_ring ring = {.n_slots = 3};
    s->n_slots = 3;
    for (uint32_t call = 0; call < s->n_rows; call++) {
        /* The second timestep comes twice. */
        uint32_t i = s->start + call;
        double now = t[i < 2 ? i : i - 1];
        int rc = pndm_row(c, call, now, c->train_steps / s->steps, &ring, &s->rows[call], err);
        if (rc) return rc;
    }
    return DPK_OK;
}

int dpk_schedule_rows_alpha(const struct dpk_schedule_config *c, struct dpk_schedule *s,
                            const double *t, dpk_error *err) {
    const uint32_t ratio = c->train_steps / s->steps;
    s->init_noise_sigma = 1;
    int rc = DPK_OK;
    if (c->kind == DPK_SCHEDULER_PNDM) {
        rc = pndm_rows(c, s, t, err);
    } else {
        for (uint32_t i = s->start; i < s->steps; i++) {
            struct dpk_sampler_row *row = &s->rows[i - s->start];
            row->timestep = t[i];
            const bool last = i + 1 == s->steps;
            if (c->kind == DPK_SCHEDULER_DDIM)
                ddim_row(c, level(c, t[i]), level(c, t[i] - ratio), row);
            else lcm_row(c, t[i], level(c, t[i]), level(c, last ? t[i] : t[i + 1]), last, row);
        }
    }
    for (uint32_t i = 0; i < s->n_rows; i++) {
        struct dpk_sampler_row *row = &s->rows[i];
        double a = level(c, row->timestep);
        row->input_scale = 1;
        row->sigma = sqrt((1 - a) / a);
    }
    const double a = level(c, s->rows[0].timestep);
    s->start_signal = sqrt(a);
    s->start_noise = sqrt(1 - a);
    return rc;
}
