/* Schedules: made from a configuration, and applied row by row. */
#include "sampler.h"

#include "schedule.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdlib.h>

uint32_t dpk_schedule_start(uint32_t steps, double strength) {
    double kept = floor(steps * strength);
    if (!(kept > 0)) return steps;
    return kept >= steps ? 0 : steps - (uint32_t)kept;
}

void dpk_schedule_level(const struct dpk_schedule *s, uint32_t row, double *signal, double *noise) {
    *signal = 1;
    *noise = 0;
    if (row >= s->n_rows) return;
    if (row == 0) {
        *signal = s->start_signal;
        *noise = s->start_noise;
        return;
    }
    const double sigma = s->rows[row].sigma;
    if (!s->exploding) *signal = 1 / sqrt(sigma * sigma + 1);
    *noise = isinf(sigma) ? 1 : sigma * *signal; /* abar 0: nothing but noise */
}

static bool finite_terms(const struct dpk_sampler_terms *t) {
    bool ok = isfinite(t->x) && isfinite(t->kept) && isfinite(t->m) && isfinite(t->noise);
    for (int j = 0; j < DPK_SAMPLER_SLOTS; j++) ok = ok && isfinite(t->slot[j]);
    return ok;
}

static int check_rows(const struct dpk_schedule *s, dpk_error *err) {
    for (uint32_t i = 0; i < s->n_rows; i++) {
        const struct dpk_sampler_row *r = &s->rows[i];
        if (isfinite(r->m_x) && isfinite(r->m_e) && isfinite(r->input_scale) &&
            finite_terms(&r->next) && finite_terms(&r->keep))
            continue;
        return dpk_error_set(err, DPK_EUNSUPPORTED,
                             "scheduler %s: call %u of %u (timestep %g) divides by zero with this "
                             "configuration",
                             s->name, i, s->n_rows, r->timestep);
    }
    return DPK_OK;
}

static uint32_t count_calls(const struct dpk_schedule_config *c, uint32_t steps, uint32_t start) {
    switch (c->kind) {
    case DPK_SCHEDULER_HEUN:
        return 2 * (steps - start) - 1;
    case DPK_SCHEDULER_PNDM:
        return steps - start + (steps > 1);
    default:
        return steps - start;
    }
}

int dpk_schedule_create(struct dpk_schedule **out, const struct dpk_schedule_spec *spec,
                        dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_schedule_config c = {0};
    struct dpk_schedule *s = calloc(1, sizeof *s);
    double *t = NULL;
    *out = NULL;
    if (!s) DPK_FAIL(err, DPK_ENOMEM, "scheduler: out of memory");
    DPK_TRY(dpk_schedule_config_read(&c, spec, err));
    const uint32_t steps = spec->steps;
    if (steps < 1 || steps > c.train_steps)
        DPK_FAIL(err, DPK_EARG, "scheduler %s: %u steps, want 1..%u", c.class_name, steps,
                 c.train_steps);
    if (spec->start >= steps)
        DPK_FAIL(err, DPK_EARG, "scheduler %s: %u of %u steps left out, want fewer", c.class_name,
                 spec->start, steps);
    s->name = c.class_name;
    s->steps = steps;
    s->start = spec->start;
    s->order = c.kind == DPK_SCHEDULER_HEUN ? 2 : 1;
    s->n_rows = count_calls(&c, steps, spec->start);
    const bool alpha =
        c.kind == DPK_SCHEDULER_DDIM || c.kind == DPK_SCHEDULER_PNDM || c.kind == DPK_SCHEDULER_LCM;
    s->n_sigmas = alpha ? 0 : steps + 1;
    s->rows = calloc(s->n_rows, sizeof *s->rows);
    s->sigmas = alpha ? NULL : calloc(steps + 1, sizeof *s->sigmas);
    t = calloc(steps + 1, sizeof *t);
    if (!s->rows || !t || (!alpha && !s->sigmas))
        DPK_FAIL(err, DPK_ENOMEM, "scheduler: out of memory");
    for (uint32_t i = 0; i < s->n_rows; i++) {
        s->rows[i].store = -1;
        s->rows[i].step_ends = true;
    }
    DPK_TRY(dpk_schedule_grid(&c, steps, t, s->sigmas, err));
    if (alpha) DPK_TRY(dpk_schedule_rows_alpha(&c, s, t, err));
    else if (c.kind == DPK_SCHEDULER_DPMPP) dpk_schedule_rows_dpmpp(&c, s, t);
    else if (c.kind == DPK_SCHEDULER_UNIPC) dpk_schedule_rows_unipc(&c, s, t);
    else dpk_schedule_rows_sigma(&c, s, t);
    DPK_TRY(check_rows(s, err));
    *out = s;
    s = NULL;
done:
    free(t);
    dpk_schedule_config_free(&c);
    dpk_schedule_free(s);
    return rc;
}

void dpk_schedule_free(struct dpk_schedule *s) {
    if (!s) return;
    free(s->rows);
    free(s->sigmas);
    free(s);
}

size_t dpk_sampler_state_size(const struct dpk_schedule *s, size_t n) {
    return n * (1 + (size_t)s->n_slots);
}

/* The operands of a combination whose coefficients are not 0. */
struct terms {
    const float *a[3 + DPK_SAMPLER_SLOTS];
    double k[3 + DPK_SAMPLER_SLOTS];
    int n;
    double m;
};

static void add_term(struct terms *t, const float *a, double k) {
    if (k == 0) return;
    t->a[t->n] = a;
    t->k[t->n++] = k;
}

static struct terms gather(const struct dpk_sampler_terms *c, size_t n, const float *x,
                           const float *noise, const float *state) {
    struct terms t = {.m = c->m};
    add_term(&t, x, c->x);
    add_term(&t, state, c->kept);
    for (size_t j = 0; j < DPK_SAMPLER_SLOTS; j++)
        if (c->slot[j] != 0) add_term(&t, state + (1 + j) * n, c->slot[j]);
    add_term(&t, noise, c->noise);
    return t;
}

static double sum_terms(const struct terms *t, size_t i, double m) {
    double s = t->m * m;
    for (int j = 0; j < t->n; j++) s += t->k[j] * (double)t->a[j][i];
    return s;
}

void dpk_sampler_apply(const struct dpk_sampler_row *row, size_t n, float *x, const float *e,
                       const float *noise, float *state) {
    const struct dpk_sampler_terms *k = &row->keep;
    bool keeps = k->x != 0 || k->m != 0 || k->kept != 0;
    for (int j = 0; j < DPK_SAMPLER_SLOTS; j++) keeps = keeps || k->slot[j] != 0;
    const struct terms next = gather(&row->next, n, x, noise, state);
    const struct terms keep = gather(k, n, x, NULL, state);
    float *store = row->store < 0 ? NULL : state + (1 + (size_t)row->store) * n;
    for (size_t i = 0; i < n; i++) {
        double m = row->m_e * (double)e[i];
        if (row->m_x != 0) m += row->m_x * (double)x[i];
        double new_x = sum_terms(&next, i, m);
        if (keeps) state[i] = (float)sum_terms(&keep, i, m);
        if (store) store[i] = (float)m;
        x[i] = (float)new_x;
    }
}
