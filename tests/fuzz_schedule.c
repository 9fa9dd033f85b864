/* Schedulers as the metadata of a .dpk describes them. Byte 0: the scheduler's name, or none; byte
 * 1: steps; byte 2: strength; then lines "key=value". A schedule that comes out is run. */
#include "support_fuzz.h"

#include "../runtime/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_KEYS = 32, N = 3 };

struct keys {
    const char *key[MAX_KEYS], *value[MAX_KEYS];
    size_t n;
};

static const char *get(void *arg, const char *key) {
    const struct keys *k = arg;
    for (size_t i = 0; i < k->n; i++)
        if (strcmp(k->key[i], key) == 0) return k->value[i];
    return NULL;
}

static struct keys split(char *text) {
    struct keys k = {.n = 0};
    for (char *line = strtok(text, "\n"); line && k.n < MAX_KEYS; line = strtok(NULL, "\n")) {
        char *equals = strchr(line, '=');
        if (!equals) continue;
        *equals = 0;
        k.key[k.n] = line;
        k.value[k.n++] = equals + 1;
    }
    return k;
}

static void run(const struct dpk_schedule *s) {
    float x[N] = {1, -2, 0.5f}, *state = malloc(dpk_sampler_state_size(s, N) * sizeof *state);
    const float e[N] = {0.1f, 0.2f, -0.3f}, noise[N] = {1, 0, -1};
    double signal, level;
    fuzz_require(state != NULL, "memory");
    fuzz_require(s->n_rows > 0 && s->n_slots <= DPK_SAMPLER_SLOTS, "a schedule has rows");
    fuzz_require(s->start || isfinite(s->init_noise_sigma), "the noise at the start is finite");
    for (uint32_t i = 0; i < s->n_rows; i++) {
        const struct dpk_sampler_row *row = &s->rows[i];
        fuzz_require(row->store < (int)s->n_slots, "a slot that is there");
        fuzz_require(isfinite(row->timestep) && row->timestep > -1, "a time that is one");
        dpk_schedule_level(s, i, &signal, &level);
        fuzz_require(isfinite(signal) && isfinite(level), "a level that is one");
        dpk_sampler_apply(row, N, x, e, row->draws_noise ? noise : NULL, state);
    }
    free(state);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *const names[] = {
        NULL,          "euler", "euler-a", "ddim", "pndm", "dpm++2m", "dpm++2m-karras",
        "dpm++2m-sde", "unipc", "lcm",     "heun", "lms",  "nothing", NULL,
        NULL,          NULL};
    struct fuzz_bytes in = {data, n_bytes};
    const char *name = names[fuzz_take(&in, 1) & 15];
    const uint32_t steps = (uint32_t)fuzz_take(&in, 1);
    const double strength = (double)fuzz_take(&in, 1) / 255;
    char *text = malloc(in.n + 1);
    struct dpk_schedule *s = NULL;
    dpk_error err;
    fuzz_require(text != NULL, "memory");
    memcpy(text, in.at, in.n);
    text[in.n] = 0;
    struct keys k = split(text);
    const struct dpk_schedule_spec spec = {.get = get,
                                           .arg = &k,
                                           .name = name,
                                           .steps = steps,
                                           .start = dpk_schedule_start(steps, 1 - strength)};
    int rc = dpk_schedule_create(&s, &spec, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) run(s);
    dpk_schedule_free(s);
    free(text);
    return 0;
}
