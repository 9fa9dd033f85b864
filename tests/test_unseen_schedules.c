/* Schedulers in configurations that the shipped models do not have, against diffusers
 * (tests/data/unseen_schedules.json): every class with its other options, and --scheduler names on
 * other classes' files. The driver is that of the other schedule goldens: the network's output is
 * a * input + b * sin(t / c). */
#include "../formats/ops.h"
#include "../runtime/random.h"
#include "../runtime/sampler.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "tests/data/unseen_schedules.json"
enum { N = 16 };

static cJSON *root;

static int setup(void **state) {
    (void)state;
    FILE *f = fopen(GOLDEN, "rb");
    if (!f) return -1;
    fseek(f, 0, SEEK_END);
    const long n = ftell(f);
    char *text = n > 0 ? malloc((size_t)n) : NULL;
    rewind(f);
    if (text && fread(text, 1, (size_t)n, f) == (size_t)n)
        root = cJSON_ParseWithLength(text, (size_t)n);
    free(text);
    fclose(f);
    return root ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    cJSON_Delete(root);
    return 0;
}

/* Keys of a config as texts, the way that a packed file keeps them. */
struct config {
    const cJSON *json;
    char *texts[64];
    int n;
};

static const char *get(void *arg, const char *key) {
    struct config *c = arg;
    const cJSON *v = cJSON_GetObjectItem(c->json, key);
    if (!v) return NULL;
    if (cJSON_IsString(v)) return v->valuestring;
    assert_true(c->n < 64);
    return c->texts[c->n++] = cJSON_PrintUnformatted(v);
}

static void read_floats(const cJSON *array, float out[N]) {
    assert_int_equal(cJSON_GetArraySize(array), N);
    for (int i = 0; i < N; i++) out[i] = (float)cJSON_GetNumberValue(cJSON_GetArrayItem(array, i));
}

/* The state starts as NaN: what a row reads it must have written. */
static void run(const struct dpk_schedule *s, float x[N]) {
    const float a = (float)cJSON_GetNumberValue(cJSON_GetObjectItem(root, "a"));
    const float b = (float)cJSON_GetNumberValue(cJSON_GetObjectItem(root, "b"));
    const float c = (float)cJSON_GetNumberValue(cJSON_GetObjectItem(root, "c"));
    const size_t n_state = dpk_sampler_state_size(s, N);
    float *state = malloc(n_state * sizeof *state), e[N], noise[N];
    struct dpk_random rng;
    dpk_random_seed(&rng, DPK_RANDOM_CPU,
                    (uint64_t)cJSON_GetNumberValue(cJSON_GetObjectItem(root, "noise_seed")), 0);
    for (size_t i = 0; i < n_state; i++) state[i] = NAN;
    for (uint32_t k = 0; k < s->n_rows; k++) {
        const struct dpk_sampler_row *row = &s->rows[k];
        for (int i = 0; i < N; i++)
            e[i] = a * (float)(x[i] * row->input_scale) + b * sinf((float)row->timestep / c);
        if (row->draws_noise) dpk_random_normal(&rng, DPK_F32, N, noise);
        dpk_sampler_apply(row, N, x, e, row->draws_noise ? noise : NULL, state);
    }
    free(state);
}

/* Returns the distance of the last latent, or a large number after a message. */
static double check(const cJSON *c, const char *label) {
    struct config config = {.json = cJSON_GetObjectItem(c, "config")};
    const cJSON *times = cJSON_GetObjectItem(c, "timesteps");
    const double init = cJSON_GetNumberValue(cJSON_GetObjectItem(c, "init"));
    struct dpk_schedule_spec spec = {
        .get = get,
        .arg = &config,
        .name = cJSON_GetStringValue(cJSON_GetObjectItem(c, "name")),
        .steps = (uint32_t)cJSON_GetNumberValue(cJSON_GetObjectItem(c, "steps")),
    };
    struct dpk_schedule *s = NULL;
    dpk_error err = {0};
    double worst = INFINITY, num = 0, den = 0;
    float x[N], want[N];
    if (dpk_schedule_create(&s, &spec, &err)) {
        print_error("%s: %s\n", label, err.msg);
        goto done;
    }
    if (s->n_rows != (uint32_t)cJSON_GetArraySize(times) ||
        fabs(s->init_noise_sigma - init) > 1e-6 * init) {
        print_error("%s: %u calls, init_noise_sigma %.9g, want %d, %.9g\n", label, s->n_rows,
                    s->init_noise_sigma, cJSON_GetArraySize(times), init);
        goto done;
    }
    for (uint32_t i = 0; i < s->n_rows; i++) {
        const double t = cJSON_GetNumberValue(cJSON_GetArrayItem(times, (int)i));
        if (fabs(s->rows[i].timestep - t) <= (t == rint(t) ? 0 : 1e-3)) continue;
        print_error("%s: timestep %u is %.9g, want %.9g\n", label, i, s->rows[i].timestep, t);
        goto done;
    }
    read_floats(cJSON_GetObjectItem(root, "x0"), x);
    read_floats(cJSON_GetObjectItem(c, "last"), want);
    for (int i = 0; i < N; i++) x[i] *= (float)s->init_noise_sigma;
    run(s, x);
    for (int i = 0; i < N; i++) {
        num += ((double)x[i] - want[i]) * ((double)x[i] - want[i]);
        den += (double)want[i] * want[i];
    }
    worst = sqrt(num / den);
done:
    for (int i = 0; i < config.n; i++) free(config.texts[i]);
    dpk_schedule_free(s);
    return worst;
}

static void test_goldens(void **state) {
    (void)state;
    const cJSON *c;
    int n = 0, bad = 0;
    double most = 0;
    cJSON_ArrayForEach(c, cJSON_GetObjectItem(root, "cases")) {
        const cJSON *config = cJSON_GetObjectItem(c, "config");
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(c, "name"));
        const bool zero_snr = cJSON_IsTrue(cJSON_GetObjectItem(config, "rescale_betas_zero_snr"));
        char label[160];
        snprintf(label, sizeof label, "case %d, %s %s, %g steps", n,
                 cJSON_GetStringValue(cJSON_GetObjectItem(config, "_class_name")), name ? name : "",
                 cJSON_GetNumberValue(cJSON_GetObjectItem(c, "steps")));
        const double d = check(c, label);
        /* A first sigma of 4096 cancels almost all of the latent, and the fewer the steps, the more
         * of it at once: float32 goldens are that far from the formulas. */
        if (!(d <= (zero_snr ? 5e-4 : 1e-5))) {
            print_error("%s: off by %.3g\n", label, d);
            bad++;
        } else if (!zero_snr && d > most) {
            most = d;
        }
        n++;
    }
    assert_int_equal(bad, 0);
    assert_true(n >= 150);
    print_message("%d schedules, the farthest %.2g\n", n, most);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goldens)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
