/* Where a run stops on the way from noise to picture: timesteps and sigmas of each class, in the
 * same roundings as diffusers (NumPy double, then float32 or integers). */
#include "schedule.h"

#include "../formats/fail.h"

#include <math.h>
#include <string.h>

static double level_sigma(const struct dpk_schedule_config *c, uint32_t i) {
    float a = c->abar[i];
    return sqrtf((1.0f - a) / a);
}

/* numpy.interp over 0..train_steps-1 */
static double sigma_at(const struct dpk_schedule_config *c, double t) {
    if (t <= 0) return level_sigma(c, 0);
    if (t >= c->train_steps - 1) return level_sigma(c, c->train_steps - 1);
    uint32_t i = (uint32_t)t;
    double a = level_sigma(c, i), b = level_sigma(c, i + 1);
    return a + (b - a) * (t - i);
}

/* The timestep whose sigma this is, by linear interpolation of the logarithms. */
static double t_of_sigma(const struct dpk_schedule_config *c, double sigma) {
    const uint32_t n = c->train_steps;
    const double want = log(fmax(sigma, 1e-10));
    /* Last level at or below it; sigmas grow with t. */
    uint32_t lo = 0, hi = n;
    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;
        if ((float)log(level_sigma(c, mid)) <= want) lo = mid;
        else hi = mid;
    }
    if (lo > n - 2) lo = n - 2;
    double a = (float)log(level_sigma(c, lo)), b = (float)log(level_sigma(c, lo + 1));
    double w = fmin(fmax((a - want) / (a - b), 0), 1);
    return (1 - w) * lo + w * (lo + 1);
}

/* Replace sigmas[0..n) by another curve between their ends. */
static void bend(const struct dpk_schedule_config *c, double hi, double lo, uint32_t n,
                 double *sigmas) {
    if (!isnan(c->sigma_max)) hi = c->sigma_max;
    if (!isnan(c->sigma_min)) lo = c->sigma_min;
    for (uint32_t i = 0; i < n; i++) {
        double ramp = n > 1 ? i / (double)(n - 1) : 0;
        if (c->sigmas == DPK_SIGMAS_KARRAS) { /* Karras et al. 2022, equation 5, rho = 7 */
            double a = pow(hi, 1 / 7.0), b = pow(lo, 1 / 7.0);
            sigmas[i] = pow(a + ramp * (b - a), 7);
        } else { /* even steps of log sigma; "lu" is the same with rho = 1 */
            sigmas[i] = exp(log(hi) + ramp * (log(lo) - log(hi)));
        }
    }
}

/* Levels that lambda_min_clipped leaves: lambda = log(alpha / sigma) must not be below it. */
static uint32_t usable_levels(const struct dpk_schedule_config *c) {
    uint32_t n = c->train_steps;
    if (c->kind != DPK_SCHEDULER_DPMPP) return n;
    while (n > 0) {
        float a = c->abar[n - 1];
        if (logf(sqrtf(a)) - logf(sqrtf(1.0f - a)) >= c->lambda_min_clipped) break;
        n--;
    }
    return n;
}

/* timestep_spacing: t [steps], descending. */
static int spread(const struct dpk_schedule_config *c, uint32_t steps, double *t, dpk_error *err) {
    const uint32_t train = c->train_steps;
    const uint32_t usable = usable_levels(c);
    /* The multistep solvers space one step more and leave the last out: it is the final sigma. */
    const bool multi = c->kind == DPK_SCHEDULER_DPMPP || c->kind == DPK_SCHEDULER_UNIPC;
    const uint32_t points = steps + multi;
    const bool whole = multi || c->kind == DPK_SCHEDULER_DDIM || c->kind == DPK_SCHEDULER_PNDM;
    if (usable < 2)
        return dpk_error_set(err, DPK_EUNSUPPORTED,
                             "scheduler %s: lambda_min_clipped %g leaves %u of %u timesteps",
                             c->class_name, c->lambda_min_clipped, usable, train);
    for (uint32_t i = 0; i < steps; i++) {
        uint32_t j = points - 1 - i; /* the i-th from above */
        double v = 0;
        switch (c->spacing) {
        case DPK_SPACING_LINSPACE:
            v = points > 1 ? j * ((usable - 1) / (double)(points - 1)) : 0;
            if (i == 0 && points > 1) v = usable - 1;
            v = whole ? rint(v) : (double)(float)v;
            break;
        case DPK_SPACING_LEADING:
            v = (double)j * (usable / points) + c->steps_offset;
            break;
        case DPK_SPACING_TRAILING: {
            double top = usable, delta = top - train / (double)steps - top;
            v = rint(top + i * delta) - 1;
            break;
        }
        }
        if (v < 0 || v > train - 1)
            return dpk_error_set(err, DPK_EARG,
                                 "scheduler %s: %u steps give timestep %g, want 0..%u",
                                 c->class_name, steps, v, train - 1);
        t[i] = v;
    }
    return DPK_OK;
}

/* Every k-th of the timesteps that the model was distilled on. */
static int spread_lcm(const struct dpk_schedule_config *c, uint32_t steps, double *t,
                      dpk_error *err) {
    const uint32_t k = c->train_steps / c->lcm_steps;
    if (steps > c->lcm_steps)
        return dpk_error_set(err, DPK_EARG,
                             "scheduler %s: %u steps, want at most original_inference_steps %u",
                             c->class_name, steps, c->lcm_steps);
    const double stride = c->lcm_steps / (double)steps;
    for (uint32_t i = 0; i < steps; i++) {
        uint32_t from_top = (uint32_t)floor(i * stride);
        t[i] = (double)(c->lcm_steps - from_top) * k - 1;
    }
    return DPK_OK;
}

int dpk_schedule_grid(const struct dpk_schedule_config *c, uint32_t steps, double *t,
                      double *sigmas, dpk_error *err) {
    const bool multi = c->kind == DPK_SCHEDULER_DPMPP || c->kind == DPK_SCHEDULER_UNIPC;
    int rc = DPK_OK;
    if (c->kind == DPK_SCHEDULER_LCM) return spread_lcm(c, steps, t, err);
    DPK_TRY(spread(c, steps, t, err));
    if (!sigmas) return DPK_OK;

    const double s0 = level_sigma(c, 0), top = level_sigma(c, c->train_steps - 1);
    if (c->log_linear) {
        for (uint32_t i = 0; i < steps; i++)
            sigmas[i] = exp(log(top) + (log(s0) - log(top)) * i / steps);
    } else {
        for (uint32_t i = 0; i < steps; i++) sigmas[i] = sigma_at(c, t[i]);
    }
    if (c->sigmas != DPK_SIGMAS_PLAIN) {
        /* The multistep solvers bend the whole range, the others what the spacing left. */
        bend(c, multi ? top : sigmas[0], multi ? s0 : sigmas[steps - 1], steps, sigmas);
        bool rounded = c->kind == DPK_SCHEDULER_UNIPC
                           ? c->sigmas == DPK_SIGMAS_KARRAS
                           : c->sigmas != DPK_SIGMAS_EXPONENTIAL && !c->cosine_betas;
        for (uint32_t i = 0; i < steps; i++) {
            t[i] = t_of_sigma(c, sigmas[i]);
            if (multi) t[i] = rounded ? rint(t[i]) : floor(t[i]);
            t[i] = (double)(float)t[i];
        }
    }
    sigmas[steps] = 0;
    if (c->final_sigma_min) {
        bool own = c->kind == DPK_SCHEDULER_UNIPC && c->sigmas != DPK_SIGMAS_PLAIN;
        sigmas[steps] = own ? sigmas[steps - 1] : s0;
    }
    for (uint32_t i = 0; i <= steps; i++) sigmas[i] = (double)(float)sigmas[i];
done:
    return rc;
}
