/* Reading scheduler_config.json: class, keys with the class's defaults, the noise levels. What the
 * coefficient table cannot express is refused here, by key and value. */
#include "schedule.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CLASS_LIST                                                                                 \
    "DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, "                \
    "EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler, LMSDiscreteScheduler, "          \
    "PNDMScheduler, UniPCMultistepScheduler"
#define NAME_LIST                                                                                  \
    "euler, euler-a, ddim, pndm, dpm++2m, dpm++2m-karras, dpm++2m-sde, unipc, lcm, heun, lms"

struct class_info {
    const char *class_name;
    double beta_start, beta_end;
    bool scaled_linear; /* the default beta_schedule, else linear */
    int spacing;        /* the default timestep_spacing */
};

static const struct class_info classes[DPK_N_SCHEDULERS] = {
    [DPK_SCHEDULER_EULER] = {"EulerDiscreteScheduler", 0.0001, 0.02, false, DPK_SPACING_LINSPACE},
    [DPK_SCHEDULER_EULER_ANCESTRAL] = {"EulerAncestralDiscreteScheduler", 0.0001, 0.02, false,
                                       DPK_SPACING_LINSPACE},
    [DPK_SCHEDULER_DDIM] = {"DDIMScheduler", 0.0001, 0.02, false, DPK_SPACING_LEADING},
    [DPK_SCHEDULER_PNDM] = {"PNDMScheduler", 0.0001, 0.02, false, DPK_SPACING_LEADING},
    [DPK_SCHEDULER_DPMPP] = {"DPMSolverMultistepScheduler", 0.0001, 0.02, false,
                             DPK_SPACING_LINSPACE},
    [DPK_SCHEDULER_UNIPC] = {"UniPCMultistepScheduler", 0.0001, 0.02, false, DPK_SPACING_LINSPACE},
    [DPK_SCHEDULER_LCM] = {"LCMScheduler", 0.00085, 0.012, true, DPK_SPACING_LEADING},
    [DPK_SCHEDULER_HEUN] = {"HeunDiscreteScheduler", 0.00085, 0.012, false, DPK_SPACING_LINSPACE},
    [DPK_SCHEDULER_LMS] = {"LMSDiscreteScheduler", 0.0001, 0.02, false, DPK_SPACING_LINSPACE},
};

/* Names of the command line: a class and what it sets over the file's keys. */
struct name_info {
    const char *name;
    enum dpk_scheduler kind;
    const char *set[2][2];
};

static const struct name_info names[] = {
    {"euler", DPK_SCHEDULER_EULER, {{NULL}}},
    {"euler-a", DPK_SCHEDULER_EULER_ANCESTRAL, {{NULL}}},
    {"ddim", DPK_SCHEDULER_DDIM, {{"clip_sample", "false"}}},
    {"pndm", DPK_SCHEDULER_PNDM, {{"skip_prk_steps", "true"}}},
    {"dpm++2m", DPK_SCHEDULER_DPMPP, {{"algorithm_type", "dpmsolver++"}}},
    {"dpm++2m-karras",
     DPK_SCHEDULER_DPMPP,
     {{"algorithm_type", "dpmsolver++"}, {"use_karras_sigmas", "true"}}},
    {"dpm++2m-sde", DPK_SCHEDULER_DPMPP, {{"algorithm_type", "sde-dpmsolver++"}}},
    {"unipc", DPK_SCHEDULER_UNIPC, {{NULL}}},
    {"lcm", DPK_SCHEDULER_LCM, {{NULL}}},
    {"heun", DPK_SCHEDULER_HEUN, {{NULL}}},
    {"lms", DPK_SCHEDULER_LMS, {{NULL}}},
};

/* ---- Values --------------------------------------------------------------------------------- */

struct reader {
    const struct dpk_schedule_spec *spec;
    const struct name_info *name; /* NULL: the file's own class */
    const char *class_name;
    dpk_error *err;
};

/* The text of a key, NULL when absent or null (then the class's default holds). */
static const char *find(const struct reader *r, const char *key) {
    for (int i = 0; r->name && i < 2; i++) {
        const char *const *set = r->name->set[i];
        if (set[0] && strcmp(set[0], key) == 0) return set[1];
    }
    const char *v = r->spec->get(r->spec->arg, key);
    return v && strcmp(v, "null") != 0 ? v : NULL;
}

static int bad(const struct reader *r, const char *key, const char *v, const char *want) {
    return dpk_error_set(r->err, DPK_EFORMAT, "scheduler %s: %s is \"%.40s\", want %s",
                         r->class_name, key, v, want);
}

static int unsupported(const struct reader *r, const char *key, const char *v, const char *want) {
    return dpk_error_set(r->err, DPK_EUNSUPPORTED,
                         "scheduler %s: %s is \"%.40s\", which is not supported (%s is)",
                         r->class_name, key, v, want);
}

/* A JSON number, independent of the locale. Exact for up to 15 digits and small exponents
 * (Clinger's fast path), else to the last bit or two. Returns the end, NULL if there is none. */
static const char *parse_number(const char *s, double *out) {
    bool neg = *s == '-';
    if (neg) s++;
    if (strncmp(s, "Infinity", 8) == 0) {
        *out = neg ? -INFINITY : INFINITY;
        return s + 8;
    }
    uint64_t mant = 0;
    int exp10 = 0, digits = 0;
    bool dot = false;
    for (;; s++) {
        if (*s == '.' && !dot) {
            dot = true;
        } else if (*s >= '0' && *s <= '9') {
            digits++;
            if (mant < UINT64_MAX / 10 - 1) {
                mant = mant * 10 + (uint64_t)(*s - '0');
                exp10 -= dot;
            } else {
                exp10 += !dot;
            }
        } else {
            break;
        }
    }
    if (!digits) return NULL;
    if (*s == 'e' || *s == 'E') {
        s++;
        bool eneg = *s == '-';
        if (*s == '-' || *s == '+') s++;
        if (*s < '0' || *s > '9') return NULL;
        int e = 0;
        for (; *s >= '0' && *s <= '9'; s++)
            if (e < 10000) e = e * 10 + (*s - '0');
        exp10 += eneg ? -e : e;
    }
    double v;
    if (mant <= (UINT64_C(1) << 53) && exp10 >= -22 && exp10 <= 22) {
        double p = 1;
        for (int i = 0; i < abs(exp10); i++) p *= 10; /* exact up to 1e22 */
        v = exp10 < 0 ? (double)mant / p : (double)mant * p;
    } else {
        v = (double)((long double)mant * powl(10.0L, (long double)exp10));
    }
    *out = neg ? -v : v;
    return s;
}

static int get_number(const struct reader *r, const char *key, double fallback, double *out) {
    const char *v = find(r, key);
    *out = fallback;
    if (!v) return DPK_OK;
    const char *end = parse_number(v, out);
    if (!end || *end) return bad(r, key, v, "a number");
    return DPK_OK;
}

static int get_int(const struct reader *r, const char *key, int fallback, int lo, int hi,
                   int *out) {
    double d;
    int rc = get_number(r, key, fallback, &d);
    if (rc) return rc;
    if (!(d >= lo && d <= hi) || d != floor(d))
        return dpk_error_set(r->err, DPK_EFORMAT,
                             "scheduler %s: %s is %.17g, want an integer %d..%d", r->class_name,
                             key, d, lo, hi);
    *out = (int)d;
    return DPK_OK;
}

static int get_bool(const struct reader *r, const char *key, bool fallback, bool *out) {
    const char *v = find(r, key);
    *out = fallback;
    if (!v) return DPK_OK;
    if (strcmp(v, "true") == 0) *out = true;
    else if (strcmp(v, "false") == 0) *out = false;
    else return bad(r, key, v, "true or false");
    return DPK_OK;
}

/* One of the words of `choices`, NULL-terminated; anything else is not supported. */
static int get_choice(const struct reader *r, const char *key, const char *const *choices,
                      int fallback, int *out) {
    const char *v = find(r, key);
    *out = fallback;
    if (!v) return DPK_OK;
    for (int i = 0; choices[i]; i++) {
        if (strcmp(v, choices[i]) == 0) {
            *out = i;
            return DPK_OK;
        }
    }
    char list[160] = "";
    for (int i = 0; choices[i]; i++) {
        size_t n = strlen(list);
        if (n + strlen(choices[i]) + 3 > sizeof list) break;
        if (i) strcat(list, ", ");
        strcat(list, choices[i]);
    }
    return unsupported(r, key, v, list);
}

/* A switch that must be off (or on). */
static int want_bool(const struct reader *r, const char *key, bool fallback, bool want) {
    bool v;
    int rc = get_bool(r, key, fallback, &v);
    if (rc) return rc;
    return v == want ? DPK_OK : unsupported(r, key, v ? "true" : "false", want ? "true" : "false");
}

/* ---- Noise levels
 * ----------------------------------------------------------------------------- */

/* torch.linspace in float32: from both ends to the middle, with fused multiply-adds. */
static void linspace(float *out, uint32_t n, double start, double end) {
    const float a = (float)start, b = (float)end;
    const float step = n > 1 ? (b - a) / (float)(n - 1) : 0;
    for (uint32_t i = 0; i < n; i++)
        out[i] = i < n / 2 ? fmaf(step, (float)i, a) : fmaf(-step, (float)(n - 1 - i), b);
    if (n == 1) out[0] = a;
}

static double cosine_alpha_bar(double t) {
    double c = cos((t + 0.008) / 1.008 * M_PI / 2);
    return c * c;
}

static int parse_betas(const struct reader *r, const char *v, float *beta, uint32_t n) {
    const char *p = v;
    uint32_t i = 0;
    for (; *p == ' ' || *p == '['; p++) {}
    while (i < n) {
        double d;
        p = parse_number(p, &d);
        if (!p) break;
        if (!(d > 0 && d < 1)) break;
        beta[i++] = (float)d;
        for (; *p == ' ' || *p == ',' || *p == '\n'; p++) {}
        if (*p == ']') break;
    }
    if (i == n && p && p[0] == ']' && p[1] == 0) return DPK_OK;
    return dpk_error_set(r->err, DPK_EFORMAT,
                         "scheduler %s: trained_betas is not an array of %u numbers in 0..1 "
                         "(stopped after %u)",
                         r->class_name, n, i);
}

/* torch.cumprod(1 - beta) in float32: products are kept in double, each result rounded. */
static void cumprod(const float *beta, float *abar, uint32_t n) {
    double p = 1;
    for (uint32_t i = 0; i < n; i++) {
        p *= (double)(1.0f - beta[i]);
        abar[i] = (float)p;
    }
}

/* Shift and scale sqrt(abar) so that the last is 0 (Lin et al. 2023, algorithm 1), in float32. */
static void zero_terminal_snr(float *beta, float *abar, uint32_t n) {
    cumprod(beta, abar, n);
    const float first = sqrtf(abar[0]), last = sqrtf(abar[n - 1]);
    const float scale = first / (first - last);
    float before = 1;
    for (uint32_t i = 0; i < n; i++) {
        float s = (sqrtf(abar[i]) - last) * scale;
        s *= s;
        beta[i] = 1.0f - (i ? s / before : s);
        before = s;
    }
}

static int read_levels(const struct reader *r, struct dpk_schedule_config *c) {
    static const char *const schedules[] = {"linear", "scaled_linear", "squaredcos_cap_v2", NULL};
    const struct class_info *info = &classes[c->kind];
    const uint32_t n = c->train_steps;
    int rc = DPK_OK, schedule;
    float *beta = NULL;
    double b0, b1;
    bool rescale = false;
    const char *trained = find(r, "trained_betas");
    DPK_TRY(get_choice(r, "beta_schedule", schedules, info->scaled_linear ? 1 : 0, &schedule));
    DPK_TRY(get_number(r, "beta_start", info->beta_start, &b0));
    DPK_TRY(get_number(r, "beta_end", info->beta_end, &b1));
    if (!(b0 > 0 && b0 < 1 && b1 > 0 && b1 < 1))
        DPK_FAIL(r->err, DPK_EFORMAT, "scheduler %s: beta_start %g, beta_end %g, want both in 0..1",
                 r->class_name, b0, b1);
    c->cosine_betas = schedule == 2;
    if (c->kind != DPK_SCHEDULER_PNDM && c->kind != DPK_SCHEDULER_HEUN &&
        c->kind != DPK_SCHEDULER_LMS)
        DPK_TRY(get_bool(r, "rescale_betas_zero_snr", false, &rescale));

    beta = malloc(n * sizeof *beta);
    c->abar = malloc(n * sizeof *c->abar);
    if (!beta || !c->abar) DPK_FAIL(r->err, DPK_ENOMEM, "scheduler: out of memory");
    if (trained) {
        DPK_TRY(parse_betas(r, trained, beta, n));
    } else if (schedule == 0) {
        linspace(beta, n, b0, b1);
    } else if (schedule == 1) {
        linspace(beta, n, pow(b0, 0.5), pow(b1, 0.5));
        for (uint32_t i = 0; i < n; i++) beta[i] *= beta[i];
    } else {
        for (uint32_t i = 0; i < n; i++) {
            double b = 1 - cosine_alpha_bar((i + 1) / (double)n) / cosine_alpha_bar(i / (double)n);
            beta[i] = (float)fmin(b, 0.999);
        }
    }
    if (rescale) zero_terminal_snr(beta, c->abar, n);
    cumprod(beta, c->abar, n);
    /* The classes that divide by it do not let the last one be 0. */
    if (rescale && c->kind != DPK_SCHEDULER_DDIM && c->kind != DPK_SCHEDULER_LCM)
        c->abar[n - 1] = 0x1p-24f;
done:
    free(beta);
    return rc;
}

/* ---- Keys
 * ------------------------------------------------------------------------------------- */

static int read_sigmas(const struct reader *r, struct dpk_schedule_config *c) {
    static const char *const finals[] = {"zero", "sigma_min", NULL};
    static const char *const types[] = {"linear", "log_linear", NULL};
    int rc = DPK_OK, v;
    bool karras = false, exponential = false, lu = false;
    const bool euler = c->kind == DPK_SCHEDULER_EULER, dpm = c->kind == DPK_SCHEDULER_DPMPP;
    DPK_TRY(get_bool(r, "use_karras_sigmas", false, &karras));
    DPK_TRY(get_bool(r, "use_exponential_sigmas", false, &exponential));
    DPK_TRY(want_bool(r, "use_beta_sigmas", false, false));
    if (dpm) DPK_TRY(get_bool(r, "use_lu_lambdas", false, &lu));
    if (karras && exponential)
        DPK_FAIL(r->err, DPK_EFORMAT,
                 "scheduler %s: use_karras_sigmas and use_exponential_sigmas are both true",
                 r->class_name);
    if (karras) c->sigmas = DPK_SIGMAS_KARRAS;
    else if (lu) c->sigmas = DPK_SIGMAS_LU;
    else if (exponential) c->sigmas = DPK_SIGMAS_EXPONENTIAL;
    /* Ends of the other spacings; diffusers takes them from any config that has them, also where
     * the class has no such option, but for the Karras sigmas of LMS. */
    if (c->kind != DPK_SCHEDULER_LMS || !karras) {
        DPK_TRY(get_number(r, "sigma_min", NAN, &c->sigma_min));
        DPK_TRY(get_number(r, "sigma_max", NAN, &c->sigma_max));
    }
    if (c->sigma_min <= 0 || c->sigma_max <= 0)
        DPK_FAIL(r->err, DPK_EFORMAT, "scheduler %s: sigma_min %g, sigma_max %g, want above 0",
                 r->class_name, c->sigma_min, c->sigma_max);
    if (euler || dpm || c->kind == DPK_SCHEDULER_UNIPC) {
        DPK_TRY(get_choice(r, "final_sigmas_type", finals, 0, &v));
        c->final_sigma_min = v == 1;
    }
    if (euler) {
        static const char *const discrete[] = {"discrete", NULL};
        DPK_TRY(get_choice(r, "timestep_type", discrete, 0, &v));
        DPK_TRY(get_choice(r, "interpolation_type", types, 0, &v));
        c->log_linear = v == 1;
    } else if (dpm || c->kind == DPK_SCHEDULER_UNIPC) {
        DPK_TRY(want_bool(r, "use_flow_sigmas", false, false));
        DPK_TRY(want_bool(r, "use_dynamic_shifting", false, false));
    }
done:
    return rc;
}

static int read_dpmpp(const struct reader *r, struct dpk_schedule_config *c) {
    /* diffusers takes the other solvers' words for the nearest of its own. */
    static const char *const algorithms[] = {"dpmsolver++", "sde-dpmsolver++", "deis", NULL};
    static const char *const types[] = {"midpoint", "heun", "logrho", "bh1", "bh2", NULL};
    int rc = DPK_OK, v;
    DPK_TRY(get_int(r, "solver_order", 2, 1, 3, &c->solver_order));
    DPK_TRY(get_choice(r, "algorithm_type", algorithms, 0, &v));
    c->sde = v == 1;
    DPK_TRY(get_choice(r, "solver_type", types, 0, &v));
    c->solver_heun = v == 1;
    DPK_TRY(get_bool(r, "lower_order_final", true, &c->lower_order_final));
    DPK_TRY(get_bool(r, "euler_at_final", false, &c->euler_at_final));
    DPK_TRY(get_number(r, "lambda_min_clipped", -INFINITY, &c->lambda_min_clipped));
    DPK_TRY(want_bool(r, "thresholding", false, false));
    const char *variance = find(r, "variance_type");
    if (variance) rc = unsupported(r, "variance_type", variance, "null");
done:
    return rc;
}

static int read_unipc(const struct reader *r, struct dpk_schedule_config *c) {
    static const char *const types[] = {"bh2", "bh1", "midpoint", "heun", "logrho", NULL};
    int rc = DPK_OK, v;
    DPK_TRY(get_int(r, "solver_order", 2, 1, 3, &c->solver_order));
    DPK_TRY(get_choice(r, "solver_type", types, 0, &v));
    c->bh1 = v == 1;
    DPK_TRY(get_bool(r, "predict_x0", true, &c->predict_x0));
    DPK_TRY(get_bool(r, "lower_order_final", true, &c->lower_order_final));
    DPK_TRY(want_bool(r, "thresholding", false, false));
    const char *off = find(r, "disable_corrector");
    if (off && strcmp(off, "[]") != 0)
        DPK_TRY(unsupported(r, "disable_corrector", off, "an empty array"));
    const char *solver = find(r, "solver_p");
    if (solver) rc = unsupported(r, "solver_p", solver, "null");
done:
    return rc;
}

static int read_kind(const struct reader *r, struct dpk_schedule_config *c) {
    int rc = DPK_OK, v;
    switch (c->kind) {
    case DPK_SCHEDULER_EULER:
    case DPK_SCHEDULER_LMS:
        return read_sigmas(r, c);
    case DPK_SCHEDULER_HEUN:
        DPK_TRY(want_bool(r, "clip_sample", false, false));
        return read_sigmas(r, c);
    case DPK_SCHEDULER_DPMPP:
        DPK_TRY(read_dpmpp(r, c));
        return read_sigmas(r, c);
    case DPK_SCHEDULER_UNIPC:
        DPK_TRY(read_unipc(r, c));
        return read_sigmas(r, c);
    case DPK_SCHEDULER_DDIM:
        DPK_TRY(want_bool(r, "clip_sample", true, false));
        DPK_TRY(want_bool(r, "thresholding", false, false));
        return get_bool(r, "set_alpha_to_one", true, &c->alpha_to_one);
    case DPK_SCHEDULER_PNDM:
        DPK_TRY(want_bool(r, "skip_prk_steps", false, true));
        return get_bool(r, "set_alpha_to_one", false, &c->alpha_to_one);
    case DPK_SCHEDULER_LCM:
        DPK_TRY(want_bool(r, "clip_sample", false, false));
        DPK_TRY(want_bool(r, "thresholding", false, false));
        DPK_TRY(get_int(r, "original_inference_steps", 50, 1, (int)c->train_steps, &v));
        c->lcm_steps = (uint32_t)v;
        return get_number(r, "timestep_scaling", 10, &c->lcm_scaling);
    case DPK_SCHEDULER_EULER_ANCESTRAL:
    case DPK_N_SCHEDULERS:
        break;
    }
done:
    return rc;
}

/* Which class: by the caller's name, or by the file's. */
static int find_class(struct reader *r, struct dpk_schedule_config *c) {
    const char *want = r->spec->name;
    if (want) {
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            if (strcmp(want, names[i].name) != 0) continue;
            r->name = &names[i];
            c->kind = names[i].kind;
            c->class_name = classes[c->kind].class_name;
            return DPK_OK;
        }
        return dpk_error_set(r->err, DPK_EARG, "scheduler \"%.60s\" is not known, want one of: %s",
                             want, NAME_LIST);
    }
    want = r->spec->get(r->spec->arg, "_class_name");
    if (!want) return dpk_error_set(r->err, DPK_EFORMAT, "scheduler: there is no _class_name");
    for (int i = 0; i < DPK_N_SCHEDULERS; i++) {
        if (strcmp(want, classes[i].class_name) != 0) continue;
        c->kind = (enum dpk_scheduler)i;
        c->class_name = classes[i].class_name;
        return DPK_OK;
    }
    return dpk_error_set(r->err, DPK_EUNSUPPORTED,
                         "scheduler %.60s is not supported, these are: %s", want, CLASS_LIST);
}

int dpk_schedule_config_read(struct dpk_schedule_config *c, const struct dpk_schedule_spec *spec,
                             dpk_error *err) {
    static const char *const predictions[] = {"epsilon", "v_prediction", "sample", NULL};
    static const char *const no_sample[] = {"epsilon", "v_prediction", NULL};
    static const char *const spacings[] = {"linspace", "leading", "trailing", NULL};
    struct reader r = {.spec = spec, .class_name = "", .err = err};
    int rc = DPK_OK, v;
    memset(c, 0, sizeof *c);
    c->sigma_min = c->sigma_max = NAN;
    DPK_TRY(find_class(&r, c));
    r.class_name = c->class_name;
    DPK_TRY(get_int(&r, "num_train_timesteps", 1000, 2, 100000, &v));
    c->train_steps = (uint32_t)v;
    bool sample = c->kind != DPK_SCHEDULER_PNDM && c->kind != DPK_SCHEDULER_EULER_ANCESTRAL;
    DPK_TRY(get_choice(&r, "prediction_type", sample ? predictions : no_sample, DPK_PREDICT_EPSILON,
                       &c->prediction));
    DPK_TRY(get_choice(&r, "timestep_spacing", spacings, classes[c->kind].spacing, &c->spacing));
    DPK_TRY(get_int(&r, "steps_offset", 0, -1000, 1000, &v));
    c->steps_offset = v;
    DPK_TRY(read_kind(&r, c));
    DPK_TRY(read_levels(&r, c));
done:
    if (rc) dpk_schedule_config_free(c);
    return rc;
}

void dpk_schedule_config_free(struct dpk_schedule_config *c) {
    free(c->abar);
    c->abar = NULL;
}
