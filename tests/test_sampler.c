/* Samplers against diffusers' schedulers (tests/data/golden/schedulers.*), and what they refuse. */
#include "support_golden.h"

#include "../formats/ops.h"
#include "../formats/tensors.h"
#include "../runtime/random.h"
#include "../runtime/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "tests/data/golden/schedulers"
enum { N = 64, MAX_KEYS = 48 };

static struct dpk_tensors *golden;
static cJSON *root;

static cJSON *read_json(const char *path) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    for (int c; (c = fgetc(f)) != EOF;) {
        if (n % 4096 == 0) text = realloc(text, n + 4097);
        text[n++] = (char)c;
    }
    fclose(f);
    cJSON *json = cJSON_ParseWithLength(text, n);
    free(text);
    return json;
}

static int setup(void **state) {
    (void)state;
    dpk_error err;
    if (dpk_tensors_open_file(&golden, GOLDEN ".safetensors", &err)) {
        print_error("%s\n", err.msg);
        return -1;
    }
    root = read_json(GOLDEN ".json");
    return root ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dpk_tensors_close(golden);
    cJSON_Delete(root);
    return 0;
}

/* A configuration as the sampler asks for it: texts. */
struct config {
    int n;
    struct {
        char key[40], value[80];
    } pair[MAX_KEYS];
};

static const char *get(void *arg, const char *key) {
    struct config *c = arg;
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->pair[i].key, key) == 0) return c->pair[i].value;
    return NULL;
}

static void set(struct config *c, const char *key, const char *value) {
    int i = 0;
    while (i < c->n && strcmp(c->pair[i].key, key) != 0) i++;
    assert_true(i < MAX_KEYS);
    if (i == c->n) c->n++;
    snprintf(c->pair[i].key, sizeof c->pair[i].key, "%s", key);
    snprintf(c->pair[i].value, sizeof c->pair[i].value, "%s", value);
}

static void set_json(struct config *c, const cJSON *object) {
    const cJSON *v;
    cJSON_ArrayForEach(v, object) {
        char *text = cJSON_IsString(v) ? strdup(v->valuestring) : cJSON_PrintUnformatted(v);
        set(c, v->string, text);
        free(text);
    }
}

static struct dpk_schedule *create(struct config *c, const char *name, uint32_t steps,
                                   uint32_t start) {
    struct dpk_schedule_spec spec = {get, c, name, steps, start};
    struct dpk_schedule *s = NULL;
    dpk_error err = {0};
    if (dpk_schedule_create(&s, &spec, &err)) fail_msg("%s", err.msg);
    return s;
}

static double relative(const float *got, const float *want, size_t n) {
    double num = 0, den = 0;
    for (size_t i = 0; i < n; i++) {
        num += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        den += (double)want[i] * want[i];
    }
    return sqrt(num / (den > 0 ? den : 1));
}

/* The driver of the goldens: eps = a in + b sin(t / c). The state starts as NaN: what a row
 * reads it must have written. */
static void run(const struct dpk_schedule *s, float *x, float *trail, struct dpk_random *rng) {
    const cJSON *m = cJSON_GetObjectItem(root, "model");
    const float a = (float)cJSON_GetNumberValue(cJSON_GetObjectItem(m, "a"));
    const float b = (float)cJSON_GetNumberValue(cJSON_GetObjectItem(m, "b"));
    const float c = (float)cJSON_GetNumberValue(cJSON_GetObjectItem(m, "c"));
    const size_t n_state = dpk_sampler_state_size(s, N);
    float *state = malloc(n_state * sizeof *state), e[N], noise[N];
    for (size_t i = 0; i < n_state; i++) state[i] = NAN;
    for (uint32_t k = 0; k < s->n_rows; k++) {
        const struct dpk_sampler_row *row = &s->rows[k];
        for (size_t i = 0; i < N; i++)
            e[i] = a * (float)(x[i] * row->input_scale) + b * sinf((float)row->timestep / c);
        if (row->draws_noise) dpk_random_normal(rng, DPK_F32, N, noise);
        dpk_sampler_apply(row, N, x, e, row->draws_noise ? noise : NULL, state);
        memcpy(trail + (size_t)k * N, x, N * sizeof *x);
    }
    free(state);
}

static void check_case(const cJSON *c, struct config *config, double *worst) {
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(c, "name"));
    const uint32_t steps = (uint32_t)cJSON_GetNumberValue(cJSON_GetObjectItem(c, "steps"));
    struct dpk_schedule *s = create(config, NULL, steps, 0);
    if (s->n_rows != (uint32_t)cJSON_GetNumberValue(cJSON_GetObjectItem(c, "calls")))
        fail_msg("%s: %u calls", name, s->n_rows);
    double init = cJSON_GetNumberValue(cJSON_GetObjectItem(c, "init_noise_sigma"));
    if (fabs(s->init_noise_sigma - init) > 1e-6 * init)
        fail_msg("%s: init_noise_sigma %.9g, want %.9g", name, s->init_noise_sigma, init);

    size_t n, n_x;
    float *t = golden_floats(golden, name, ".timesteps", &n);
    assert_non_null(t);
    assert_int_equal(n, s->n_rows);
    for (size_t i = 0; i < n; i++) {
        /* Whole timesteps are exact. Interpolated ones hang on the last bits of NumPy's float32
         * logarithm. */
        double d = fabs(s->rows[i].timestep - t[i]);
        if (d > (t[i] == rintf(t[i]) ? 0 : 1e-6 * 1000))
            fail_msg("%s: timestep %zu is %.9g, want %.9g", name, i, s->rows[i].timestep, t[i]);
    }
    free(t);
    float *sigmas = golden_floats(golden, name, ".sigmas", &n);
    /* Rescaled levels hang on PyTorch's float32 square root, which is not correctly rounded. */
    const double loose = strstr(name, ".zero_snr.") ? 5e-6 : 1e-6;
    if (sigmas && s->n_sigmas) {
        /* Heun's list has the inner ones twice. */
        assert_int_equal(n, s->order == 2 ? 2 * s->n_sigmas - 2 : s->n_sigmas);
        for (size_t i = 0; i < n; i++) {
            double got = s->sigmas[s->order == 2 ? (i + 1) / 2 : i];
            if (fabs(got - sigmas[i]) > loose * fabs(sigmas[i]))
                fail_msg("%s: sigma %zu is %.9g, want %.9g", name, i, got, sigmas[i]);
        }
    }
    free(sigmas);

    float *x0 = golden_floats(golden, "x0", "", &n_x), *want = golden_floats(golden, name, ".trajectory", &n);
    assert_non_null(x0);
    assert_non_null(want);
    assert_int_equal(n_x, N);
    float x[N], *trail = malloc((size_t)s->n_rows * N * sizeof *trail);
    for (size_t i = 0; i < N; i++) x[i] = x0[i] * (float)s->init_noise_sigma;
    struct dpk_random rng;
    dpk_random_seed(&rng, DPK_RANDOM_CPU,
                    (uint64_t)cJSON_GetNumberValue(cJSON_GetObjectItem(root, "noise_seed")), 0);
    run(s, x, trail, &rng);
    assert_true(n == N || n == (size_t)s->n_rows * N);
    /* There the first sigma is 4096 and the first step cancels almost all of it: the golden itself,
     * made in float32, is 2.6e-5 away from the same formulas in float64. */
    const double tolerance = strstr(name, ".euler.zero_snr.") ? 4e-5 : 1e-5;
    for (size_t k = 0; k < n / N; k++) {
        size_t at = n == N ? s->n_rows - 1 : k;
        double d = relative(trail + at * N, want + k * N, N);
        if (!(d <= tolerance)) fail_msg("%s: after call %zu off by %.3g", name, at, d);
        if (tolerance == 1e-5 && d > *worst) *worst = d;
    }
    free(trail);
    free(want);
    free(x0);
    dpk_schedule_free(s);
}

static void test_goldens(void **state) {
    (void)state;
    const cJSON *c;
    struct config config = {0};
    int n = 0;
    double worst = 0;
    cJSON_ArrayForEach(c, cJSON_GetObjectItem(root, "cases")) {
        const cJSON *keys = cJSON_GetObjectItem(c, "config");
        if (keys) {
            config.n = 0;
            set_json(&config, keys);
            set(&config, "_class_name", cJSON_GetStringValue(cJSON_GetObjectItem(c, "class")));
        }
        check_case(c, &config, &worst);
        n++;
    }
    assert_true(n >= 300);
    print_message("%d schedules, the farthest trajectory %.2g\n", n, worst);
}

/* Each --scheduler name on the bases' own files gives what the golden of that class has. */
static void test_names(void **state) {
    (void)state;
    static const char *const names[][2] = {
        {"euler", "euler"},      {"euler-a", "euler_ancestral"},
        {"ddim", "ddim"},        {"pndm", "pndm"},
        {"dpm++2m", "dpmpp_2m"}, {"dpm++2m-karras", "dpmpp_2m_karras"},
        {"unipc", "unipc"},      {"dpm++2m-sde", "dpmpp_2m_sde"},
        {"lcm", "lcm"},          {"heun", "heun"},
        {"lms", "lms"},
    };
    const cJSON *base;
    int n = 0;
    cJSON_ArrayForEach(base, cJSON_GetObjectItem(root, "bases")) {
        char path[256];
        snprintf(path, sizeof path, "tests/data/%s", base->valuestring);
        FILE *f = fopen(path, "rb");
        assert_non_null(f);
        char text[4096];
        size_t len = fread(text, 1, sizeof text - 1, f);
        fclose(f);
        text[len] = 0;
        char *inf = strstr(text, "-Infinity"); /* Python's JSON */
        if (inf) memcpy(inf, "\"-Infty\" ", 9);
        cJSON *json = cJSON_Parse(text);
        assert_non_null(json);
        struct config config = {0};
        set_json(&config, json);
        if (inf) set(&config, "lambda_min_clipped", "-Infinity");
        cJSON_Delete(json);
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            char name[80];
            size_t m;
            snprintf(name, sizeof name, "%s.%s.default.20", base->string, names[i][1]);
            float *want = golden_floats(golden, name, ".trajectory", &m), *x0 = golden_floats(golden, "x0", "", &m);
            if (!want) fail_msg("no golden %s", name);
            struct dpk_schedule *s = create(&config, names[i][0], 20, 0);
            float x[N], trail[50 * N];
            for (size_t j = 0; j < N; j++) x[j] = x0[j] * (float)s->init_noise_sigma;
            struct dpk_random rng;
            dpk_random_seed(&rng, DPK_RANDOM_CPU, 1234, 0);
            run(s, x, trail, &rng);
            double d = relative(x, want, N);
            if (!(d <= 1e-5)) fail_msg("%s: off by %.3g", name, d);
            dpk_schedule_free(s);
            free(want);
            free(x0);
            n++;
        }
    }
    assert_int_equal(n, 33);
}

/* A run that starts later has the timesteps of the whole run's end, and its first levels. */
static void test_start(void **state) {
    (void)state;
    static const char *const names[] = {"euler",       "euler-a", "ddim", "pndm",
                                        "dpm++2m",     "unipc",   "lcm",  "dpm++2m-karras",
                                        "dpm++2m-sde", "heun",    "lms"};
    assert_int_equal(dpk_schedule_start(50, 0.3), 35);
    assert_int_equal(dpk_schedule_start(50, 1), 0);
    assert_int_equal(dpk_schedule_start(50, 0), 50);
    assert_int_equal(dpk_schedule_start(7, 0.999), 1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct config config = {0};
        set(&config, "beta_schedule", "scaled_linear");
        set(&config, "beta_start", "0.00085");
        set(&config, "beta_end", "0.012");
        struct dpk_schedule *all = create(&config, names[i], 12, 0);
        struct dpk_schedule *s = create(&config, names[i], 12, 5);
        assert_int_equal(s->n_rows, all->n_rows - 5 * all->order);
        for (uint32_t k = 0; k < s->n_rows; k++)
            assert_true(s->rows[k].timestep == all->rows[k + 5 * all->order].timestep);
        const double sigma = s->rows[0].sigma, ratio = s->start_noise / s->start_signal;
        assert_true(fabs(ratio - sigma) < 1e-6 * sigma);
        const double power = s->start_signal * s->start_signal + s->start_noise * s->start_noise;
        assert_true(s->start_signal == 1 || fabs(power - 1) < 1e-6);
        float x[N], trail[32 * N];
        struct dpk_random rng;
        dpk_random_seed(&rng, DPK_RANDOM_CPU, 3, 0);
        dpk_random_normal(&rng, DPK_F32, N, x);
        run(s, x, trail, &rng);
        for (size_t j = 0; j < N; j++) assert_true(isfinite(x[j]));
        dpk_schedule_free(s);
        dpk_schedule_free(all);
    }
}

/* With a perfect network every deterministic sampler ends near the picture. */
static void test_converges(void **state) {
    (void)state;
    static const char *const names[] = {"euler", "ddim", "pndm", "dpm++2m",
                                        "unipc", "heun", "lms",  "dpm++2m-karras"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct config config = {0};
        set(&config, "beta_schedule", "scaled_linear");
        set(&config, "beta_start", "0.00085");
        set(&config, "beta_end", "0.012");
        struct dpk_schedule *s = create(&config, names[i], 40, 0);
        float *state_ = calloc(dpk_sampler_state_size(s, 1), sizeof *state_);
        const double target = 0.7;
        float x = 1.3f * (float)s->init_noise_sigma;
        for (uint32_t k = 0; k < s->n_rows; k++) {
            const struct dpk_sampler_row *r = &s->rows[k];
            double a = s->n_sigmas && r->input_scale != 1 ? 1 : 1 / sqrt(r->sigma * r->sigma + 1);
            float e = (float)((x - a * target) / (a * r->sigma));
            dpk_sampler_apply(r, 1, &x, &e, NULL, state_);
        }
        if (fabs(x - target) > 0.1) fail_msg("%s ends at %g", names[i], (double)x);
        free(state_);
        dpk_schedule_free(s);
    }
}

static void refuse(struct config *c, const char *name, uint32_t steps, uint32_t start, int code,
                   const char *word) {
    struct dpk_schedule_spec spec = {get, c, name, steps, start};
    struct dpk_schedule *s = NULL;
    dpk_error err = {0};
    int rc = dpk_schedule_create(&s, &spec, &err);
    if (rc != code || !strstr(err.msg, word)) fail_msg("code %d: %s (want %s)", rc, err.msg, word);
    assert_int_equal(err.code, code);
    assert_null(s);
    assert_int_equal(dpk_schedule_create(&s, &spec, NULL), code);
}

static void test_errors(void **state) {
    (void)state;
    static const struct {
        const char *name, *key, *value;
        int code;
        const char *word;
    } bad[] = {
        {"euler", "prediction_type", "flow", DPK_EUNSUPPORTED, "prediction_type is \"flow\""},
        {"euler", "beta_schedule", "sigmoid", DPK_EUNSUPPORTED, "sigmoid"},
        {"euler", "use_beta_sigmas", "true", DPK_EUNSUPPORTED, "use_beta_sigmas"},
        {"euler", "timestep_type", "continuous", DPK_EUNSUPPORTED, "continuous"},
        {"euler", "use_karras_sigmas", "1", DPK_EFORMAT, "use_karras_sigmas"},
        {"euler", "beta_start", "0.1x", DPK_EFORMAT, "beta_start"},
        {"euler", "beta_start", "-0.1", DPK_EFORMAT, "beta_start"},
        {"euler", "num_train_timesteps", "1e9", DPK_EFORMAT, "num_train_timesteps"},
        {"euler", "num_train_timesteps", "10", DPK_EARG, "steps"},
        {"euler", "steps_offset", "1.5", DPK_EFORMAT, "steps_offset"},
        {"euler", "trained_betas", "[0.1,0.2]", DPK_EFORMAT, "trained_betas"},
        {"dpm++2m", "thresholding", "true", DPK_EUNSUPPORTED, "thresholding"},
        {"dpm++2m", "solver_order", "4", DPK_EFORMAT, "solver_order"},
        {"dpm++2m", "variance_type", "learned", DPK_EUNSUPPORTED, "variance_type"},
        {"dpm++2m", "use_flow_sigmas", "true", DPK_EUNSUPPORTED, "use_flow_sigmas"},
        {"unipc", "disable_corrector", "[0]", DPK_EUNSUPPORTED, "disable_corrector"},
        {"unipc", "lower_order_final", "false", DPK_EUNSUPPORTED, "divides by zero"},
        {"lcm", "original_inference_steps", "10", DPK_EARG, "original_inference_steps"},
        {"lcm", "clip_sample", "true", DPK_EUNSUPPORTED, "clip_sample"},
        {"pndm", "prediction_type", "sample", DPK_EUNSUPPORTED, "sample"},
        {"ddim", "steps_offset", "100", DPK_EARG, "timestep"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct config c = {0};
        set(&c, bad[i].key, bad[i].value);
        refuse(&c, bad[i].name, 20, 0, bad[i].code, bad[i].word);
    }
    struct config c = {0};
    refuse(&c, NULL, 20, 0, DPK_EFORMAT, "_class_name");
    refuse(&c, "euler2", 20, 0, DPK_EARG, "dpm++2m-karras");
    refuse(&c, "euler", 0, 0, DPK_EARG, "0 steps");
    refuse(&c, "euler", 1001, 0, DPK_EARG, "1001 steps");
    refuse(&c, "euler", 20, 20, DPK_EARG, "left out");
    set(&c, "_class_name", "FlowMatchEulerDiscreteScheduler");
    refuse(&c, NULL, 20, 0, DPK_EUNSUPPORTED, "DDIMScheduler, DPMSolverMultistepScheduler");
    set(&c, "_class_name", "DDIMScheduler"); /* clips unless told not to */
    refuse(&c, NULL, 20, 0, DPK_EUNSUPPORTED, "clip_sample");
    set(&c, "_class_name", "PNDMScheduler");
    refuse(&c, NULL, 20, 0, DPK_EUNSUPPORTED, "skip_prk_steps");
}

/* Every count of steps gives finite tables, or a clear error. */
static void test_all_steps(void **state) {
    (void)state;
    static const char *const names[] = {"euler",       "euler-a", "ddim", "pndm",
                                        "dpm++2m",     "unipc",   "lcm",  "dpm++2m-karras",
                                        "dpm++2m-sde", "heun",    "lms"};
    static const char *const spacings[] = {"leading", "linspace", "trailing"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (int k = 0; k < 3; k++) {
            struct config c = {0};
            set(&c, "timestep_spacing", spacings[k]);
            for (uint32_t steps = 1; steps <= 1000;
                 steps = steps < 70 ? steps + 1 : steps * 5 / 4) {
                struct dpk_schedule_spec spec = {get, &c, names[i], steps, 0};
                struct dpk_schedule *s = NULL;
                dpk_error err = {0};
                int rc = dpk_schedule_create(&s, &spec, &err);
                assert_true(rc == DPK_OK || rc == DPK_EARG || rc == DPK_EUNSUPPORTED);
                if (steps > 1 && steps <= 50 && rc) fail_msg("%s", err.msg);
                dpk_schedule_free(s);
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),   cmocka_unit_test(test_names),
        cmocka_unit_test(test_start),     cmocka_unit_test(test_converges),
        cmocka_unit_test(test_all_steps), cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
