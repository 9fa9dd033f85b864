/* Rows of the multistep solvers in log-SNR time: DPM-Solver++ (Lu et al. 2022, "DPM-Solver++",
 * 2M and 3M, its SDE form) and UniPC (Zhao et al. 2023). lambda = log(alpha / sigma). */
#include "schedule.h"

#include <math.h>
#include <string.h>

enum { MAX_ORDER = 3 };

struct point {
    double alpha, sigma, lambda;
};

/* alpha^2 + sigma^2 = 1 with the given ratio sigma / alpha. At 0: alpha 1, lambda infinite. */
static struct point point_at(double ratio) {
    struct point p;
    p.alpha = 1 / sqrt(ratio * ratio + 1);
    p.sigma = ratio * p.alpha;
    p.lambda = -log(ratio);
    return p;
}

static void set_start(struct dpk_schedule *s) {
    const struct point p = point_at(s->sigmas[s->start]);
    s->init_noise_sigma = 1;
    s->start_signal = p.alpha;
    s->start_noise = p.sigma;
}

/* ---- DPM-Solver++
 * ----------------------------------------------------------------------------- */

/* x' = x_c x + d0 D0 + d1 D1 + d2 D2 + noise; D the differences of the predicted x0s. */
static void dpmpp_row(const struct dpk_schedule_config *c, const double *sigmas, uint32_t i,
                      int order, struct dpk_ring *ring, struct dpk_sampler_row *row) {
    const struct point t = point_at(sigmas[i + 1]), s0 = point_at(sigmas[i]);
    const double h = t.lambda - s0.lambda;
    const double f = c->sde ? -2 * h : -h; /* exponent of the integrating factor */
    const double g = expm1(f);
    const bool heun = c->solver_heun || order == 3;
    struct dpk_form x0 = dpk_form_x0(c->prediction, s0.alpha, s0.sigma);
    row->m_x = x0.x;
    row->m_e = x0.e;
    row->next.x = t.sigma / s0.sigma;
    if (c->sde) {
        row->next.x *= exp(-h);
        row->next.noise = t.sigma * sqrt(-g);
        row->draws_noise = true;
    }
    row->next.m = -t.alpha * g;
    if (order > 1) {
        const double d1 = heun ? t.alpha * (1 - g / f) : -t.alpha * g / 2;
        const double r0 = (s0.lambda - point_at(sigmas[i - 1]).lambda) / h;
        double *m1 = &row->next.slot[dpk_ring_slot(ring, 1)];
        if (order == 2) {
            row->next.m += d1 / r0;
            *m1 -= d1 / r0;
        } else {
            const double l1 = point_at(sigmas[i - 1]).lambda, l2 = point_at(sigmas[i - 2]).lambda;
            const double r1 = (l1 - l2) / h;
            const double d2 = c->sde ? t.alpha * ((-g - 2 * h) / (4 * h * h) - 0.5)
                                     : -t.alpha * ((g + h) / (h * h) - 0.5);
            /* D1 = a + r0 / (r0 + r1) (a - b), D2 = (a - b) / (r0 + r1), with
             * a = (m0 - m1) / r0 and b = (m1 - m2) / r1 */
            const double k = (d1 * r0 + d2) / (r0 + r1);
            const double wa = (d1 + k) / r0, wb = k / r1;
            row->next.m += wa;
            *m1 -= wa + wb;
            row->next.slot[dpk_ring_slot(ring, 2)] += wb;
        }
    }
    row->store = dpk_ring_store(ring);
}

void dpk_schedule_rows_dpmpp(const struct dpk_schedule_config *c, struct dpk_schedule *s,
                             const double *t) {
    const uint32_t n = s->steps;
    struct dpk_ring ring = {.n_slots = (uint32_t)c->solver_order - 1};
    s->n_slots = ring.n_slots;
    set_start(s);
    for (uint32_t i = s->start; i < n; i++) {
        struct dpk_sampler_row *row = &s->rows[i - s->start];
        const bool few = c->lower_order_final && n < 15;
        const uint32_t known = i - s->start;
        int order = c->solver_order;
        if (known + 1 < (uint32_t)order) order = (int)known + 1;
        if (i + 2 == n && few && order > 2) order = 2;
        if (i + 1 == n && (c->euler_at_final || few || !c->final_sigma_min)) order = 1;
        row->timestep = t[i];
        row->sigma = s->sigmas[i];
        row->input_scale = 1;
        dpmpp_row(c, s->sigmas, i, order, &ring, row);
    }
}

/* ---- UniPC
 * ------------------------------------------------------------------------------------ */

/* Solve the n x n system a y = b (n <= 3) by elimination with row exchanges. */
static void solve(uint32_t n, double a[MAX_ORDER][MAX_ORDER], double b[MAX_ORDER]) {
    for (uint32_t col = 0; col < n; col++) {
        uint32_t top = col;
        for (uint32_t i = col + 1; i < n; i++)
            if (fabs(a[i][col]) > fabs(a[top][col])) top = i;
        for (uint32_t j = 0; j < n; j++) {
            double v = a[col][j];
            a[col][j] = a[top][j];
            a[top][j] = v;
        }
        double v = b[col];
        b[col] = b[top];
        b[top] = v;
        for (uint32_t i = 0; i < n; i++) {
            if (i == col) continue;
            double f = a[i][col] / a[col][col];
            for (uint32_t j = col; j < n; j++) a[i][j] -= f * a[col][j];
            b[i] -= f * b[col];
        }
    }
    for (uint32_t i = 0; i < n; i++) b[i] /= a[i][i];
}

/* One B(h) update from sigmas[from] to sigmas[from + 1]: weights of x, of the output m0 at
 * `from`, of the order-1 outputs before it (back[0] the latest), and, for the corrector, of the
 * output at the new point. */
struct unipc_weights {
    double x, m0, back[MAX_ORDER], fresh;
};

static struct unipc_weights unipc_update(const struct dpk_schedule_config *c, const double *sigmas,
                                         uint32_t from, uint32_t order, bool corrector) {
    struct unipc_weights w = {0};
    const struct point t = point_at(sigmas[from + 1]), s0 = point_at(sigmas[from]);
    const double h = t.lambda - s0.lambda, hh = c->predict_x0 ? -h : h;
    const double scale = c->predict_x0 ? t.alpha : t.sigma;
    const double phi1 = expm1(hh), bh = c->bh1 ? hh : phi1;
    double r[MAX_ORDER], a[MAX_ORDER][MAX_ORDER], rho[MAX_ORDER];
    for (uint32_t k = 1; k < order; k++)
        r[k - 1] = (point_at(sigmas[from - k]).lambda - s0.lambda) / h;
    r[order - 1] = 1;
    double phi = phi1 / hh - 1, factorial = 1;
    for (uint32_t k = 0; k < order; k++) {
        for (uint32_t j = 0; j < order; j++) a[k][j] = pow(r[j], k);
        rho[k] = phi * factorial / bh;
        factorial *= k + 2;
        phi = phi / hh - 1 / factorial;
    }
    if (corrector) {
        if (order == 1) rho[0] = 0.5;
        else solve(order, a, rho);
    } else if (order == 2) {
        rho[0] = 0.5;
    } else if (order > 2) {
        solve(order - 1, a, rho);
    }
    w.x = c->predict_x0 ? t.sigma / s0.sigma : t.alpha / s0.alpha;
    w.m0 = -scale * phi1;
    for (uint32_t k = 0; k + 1 < order; k++) {
        w.back[k] = -scale * bh * rho[k] / r[k];
        w.m0 -= w.back[k];
    }
    if (corrector) {
        w.fresh = -scale * bh * rho[order - 1];
        w.m0 -= w.fresh;
    }
    return w;
}

/* keep = the corrected latent, a form in what was there before the call; next = the predictor on
 * it. */
static void unipc_row(const struct dpk_schedule_config *c, const double *sigmas, uint32_t i,
                      uint32_t order, uint32_t order_before, struct dpk_ring *ring,
                      struct dpk_sampler_row *row) {
    struct dpk_sampler_terms now = {.x = 1};
    if (order_before > 0) {
        struct unipc_weights w = unipc_update(c, sigmas, i - 1, order_before, true);
        memset(&now, 0, sizeof now);
        now.kept = w.x;
        now.m = w.fresh;
        now.slot[dpk_ring_slot(ring, 1)] += w.m0;
        for (uint32_t k = 0; k + 1 < order_before; k++)
            now.slot[dpk_ring_slot(ring, k + 2)] += w.back[k];
    }
    struct unipc_weights w = unipc_update(c, sigmas, i, order, false);
    struct dpk_sampler_terms next = now;
    next.x *= w.x;
    next.kept *= w.x;
    next.m = now.m * w.x + w.m0;
    for (int k = 0; k < DPK_SAMPLER_SLOTS; k++) next.slot[k] *= w.x;
    for (uint32_t k = 0; k + 1 < order; k++) next.slot[dpk_ring_slot(ring, k + 1)] += w.back[k];
    row->keep = now;
    row->next = next;
    row->store = dpk_ring_store(ring);
}

void dpk_schedule_rows_unipc(const struct dpk_schedule_config *c, struct dpk_schedule *s,
                             const double *t) {
    const uint32_t n = s->steps, top = (uint32_t)c->solver_order;
    struct dpk_ring ring = {.n_slots = top};
    uint32_t before = 0;
    s->n_slots = top;
    set_start(s);
    for (uint32_t i = s->start; i < n; i++) {
        struct dpk_sampler_row *row = &s->rows[i - s->start];
        const struct point p = point_at(s->sigmas[i]);
        struct dpk_form m = c->predict_x0 ? dpk_form_x0(c->prediction, p.alpha, p.sigma)
                                          : dpk_form_noise(c->prediction, p.alpha, p.sigma);
        uint32_t order = top, known = i - s->start + 1;
        if (c->lower_order_final && n - i < order) order = n - i;
        if (known < order) order = known;
        row->timestep = t[i];
        row->sigma = s->sigmas[i];
        row->input_scale = 1;
        row->m_x = m.x;
        row->m_e = m.e;
        unipc_row(c, s->sigmas, i, order, before, &ring, row);
        before = order;
    }
}
