/* Models: the file, and the tokenizers made from it; all that needs a model only. */
#include "session.h"
#include "random.h"

#include "../formats/fail.h"
#include "../formats/version.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)DPK_ARRAY_F32 == (int)DPK_F32 && (int)DPK_ARRAY_BF16 == (int)DPK_BF16 &&
                   (int)DPK_ARRAY_F16 == (int)DPK_F16 && (int)DPK_ARRAY_I32 == (int)DPK_I32,
               "the public array types are enum dpk_dtype's");
_Static_assert((int)DPK_RNG_CPU == (int)DPK_RANDOM_CPU && (int)DPK_RNG_CUDA == (int)DPK_RANDOM_CUDA,
               "the public generators are enum dpk_random_kind's");

const char *dpk_version(void) { return DPK_PROJECT_VERSION; }

int dpk_model_open(dpk_model **model, const char *path, dpk_error *err) {
    return dpk_model_open_with(model, path, NULL, err);
}

int dpk_model_open_with(dpk_model **model, const char *path, const dpk_model_options *options,
                        dpk_error *err) {
    int rc = DPK_OK;
    dpk_model_options o = dpk_model_options_default();
    struct dpk_model *m = NULL;
    dpk_error why;
    *model = NULL;
    if (options) {
        if (options->struct_size < sizeof(size_t) || options->struct_size > sizeof o)
            DPK_FAIL(err, DPK_EARG, "model options of %zu bytes, want at most %zu",
                     options->struct_size, sizeof o);
        memcpy(&o, options, options->struct_size);
    }
    const unsigned flags =
        (o.in_memory ? DPK_OPEN_IN_MEMORY : 0u) | (o.guard ? DPK_OPEN_GUARDED : 0u);
    m = calloc(1, sizeof *m);
    if (!m) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for a model", path);
    m->share = calloc(1, sizeof *m->share);
    if (!m->share) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for a model", path);
    pthread_mutex_init(&m->share->lock, NULL);
    DPK_TRY(dpk_file_open_with(&m->file, path, flags, err));
    if (m->file.n_tokenizers > DPK_MAX_TOKENIZERS)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: %u tokenizers, at most %d are known what for", path,
                 m->file.n_tokenizers, DPK_MAX_TOKENIZERS);
    for (uint32_t i = 0; i < m->file.n_tokenizers; i++) {
        size_t n_bytes;
        const void *blob = dpk_file_blob(&m->file, i, &n_bytes);
        rc = dpk_tokenizer_open(&m->tokenizers[i], m->file.tokenizers[i].kind, blob, n_bytes, &why);
        if (rc)
            DPK_FAIL(err, rc, "%.200s: %.60s: %s", path,
                     dpk_file_string(&m->file, m->file.tokenizers[i].name), why.msg);
        m->n_tokenizers++;
    }
    *model = m;
    m = NULL;
done:
    dpk_model_free(m);
    return rc;
}

void dpk_model_free(dpk_model *model) {
    if (!model) return;
    for (uint32_t i = 0; i < model->n_tokenizers; i++) dpk_tokenizer_free(model->tokenizers[i]);
    dpk_file_close(&model->file);
    if (model->share) pthread_mutex_destroy(&model->share->lock);
    free(model->share);
    free(model);
}

int dpk_model_verify(const dpk_model *model, int (*progress)(void *, uint64_t, uint64_t), void *arg,
                     dpk_error *err) {
    return dpk_file_verify(&model->file, progress, arg, err);
}

const char *dpk_model_meta(const dpk_model *model, const char *key) {
    return dpk_file_meta(&model->file, key);
}

const char *dpk_model_meta_at(const dpk_model *model, size_t i, const char **value) {
    if (i >= model->file.n_pairs) return NULL;
    if (value) *value = dpk_file_string(&model->file, model->file.pairs[i].value);
    return dpk_file_string(&model->file, model->file.pairs[i].key);
}

uint64_t dpk_model_sum(const dpk_model *model) { return dpk_file_sum(&model->file); }

/* ---- Tokens ------------------------------------------------------------------------------- */

int dpk_model_find_tokenizer(const struct dpk_model *model, const char *name) {
    for (uint32_t i = 0; i < model->n_tokenizers; i++)
        if (!strcmp(dpk_model_tokenizer_name(model, i), name)) return (int)i;
    return -1;
}

size_t dpk_model_n_tokenizers(const dpk_model *model) { return model->n_tokenizers; }

const char *dpk_model_tokenizer_name(const dpk_model *model, size_t tokenizer) {
    if (tokenizer >= model->n_tokenizers) return NULL;
    return dpk_file_string(&model->file, model->file.tokenizers[tokenizer].name);
}

size_t dpk_model_n_ids(const dpk_model *model, size_t tokenizer) {
    return tokenizer < model->n_tokenizers ? dpk_tokenizer_max_length(model->tokenizers[tokenizer])
                                           : 0;
}

int dpk_model_tokens(const dpk_model *model, size_t tokenizer, const char *prompt, int32_t *ids,
                     size_t *n_tokens, dpk_error *err) {
    int rc = DPK_OK;
    if (tokenizer >= model->n_tokenizers)
        DPK_FAIL(err, DPK_EARG, "tokenizer %zu: the model has %u", tokenizer, model->n_tokenizers);
    DPK_TRY(dpk_tokenizer_encode(model->tokenizers[tokenizer], prompt, strlen(prompt), ids, NULL,
                                 n_tokens, err));
done:
    return rc;
}

/* ---- Schedules ---------------------------------------------------------------------------- */

static const char *scheduler_key(void *arg, const char *key) {
    const struct dpk_model *model = arg;
    char full[128];
    int n = snprintf(full, sizeof full, "scheduler.%s", key);
    return n < (int)sizeof full ? dpk_file_meta(&model->file, full) : NULL;
}

int dpk_model_schedule(const struct dpk_model *model, const char *scheduler, uint32_t steps,
                       double strength, struct dpk_schedule **schedule, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_schedule_spec spec = {
        .get = scheduler_key, .arg = (void *)model, .name = scheduler, .steps = steps};
    spec.start = dpk_schedule_start(spec.steps, strength);
    if (spec.start == spec.steps)
        DPK_FAIL(err, DPK_EARG, "strength %g of %u steps is less than one", strength, spec.steps);
    DPK_TRY(dpk_schedule_create(schedule, &spec, err));
done:
    return rc;
}

int dpk_model_timetable(const dpk_model *model, const char *scheduler, uint32_t steps,
                        dpk_timetable **table, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_schedule *s = NULL;
    struct dpk_settings settings;
    *table = NULL;
    DPK_TRY(dpk_settings_read(&model->file, &settings, err));
    if (!steps) steps = (uint32_t)settings.steps;
    DPK_TRY(dpk_model_schedule(model, scheduler, steps, 1, &s, err));
    dpk_timetable *t = malloc(sizeof *t + ((size_t)s->n_rows + s->n_sigmas) * sizeof *t->timesteps);
    if (!t) DPK_FAIL(err, DPK_ENOMEM, "schedule: no memory for %u calls", s->n_rows);
    *t = (dpk_timetable){.n_timesteps = s->n_rows,
                         .n_sigmas = s->n_sigmas,
                         .timesteps = (double *)(t + 1),
                         .sigmas = (double *)(t + 1) + s->n_rows,
                         .init_noise_sigma = s->init_noise_sigma};
    for (uint32_t i = 0; i < s->n_rows; i++) t->timesteps[i] = s->rows[i].timestep;
    for (uint32_t i = 0; i < s->n_sigmas; i++) t->sigmas[i] = s->sigmas[i];
    *table = t;
done:
    dpk_schedule_free(s);
    return rc;
}

void dpk_timetable_free(dpk_timetable *table) { free(table); }

int dpk_noise(uint64_t seed, int rng, int dtype, size_t n, float *out, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_random r;
    if (rng != DPK_RNG_CPU && rng != DPK_RNG_CUDA)
        DPK_FAIL(err, DPK_EARG, "noise: generator %d, want DPK_RNG_CPU or DPK_RNG_CUDA", rng);
    if (!DPK_HAS_philox && rng == DPK_RNG_CUDA)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "noise: generator cuda: this build is without philox");
    if (dtype != DPK_F32 && dtype != DPK_F16 && dtype != DPK_BF16)
        DPK_FAIL(err, DPK_EARG, "noise: type %d, want f32, f16 or bf16", dtype);
    dpk_random_seed(&r, (enum dpk_random_kind)rng, seed, 0);
    dpk_random_normal(&r, dtype, n, out);
done:
    return rc;
}
