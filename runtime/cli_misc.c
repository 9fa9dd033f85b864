/* Small commands: verify, tokens, schedule, noise. */
#include "cli_bundle.h"

#include "../formats/fail.h"
#include "../formats/npy.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const model_name[] = {"MODEL.dpk"};

/* ---- verify ------------------------------------------------------------------------------- */

static int show_bytes(void *arg, uint64_t done, uint64_t total) {
    dpk_cli_bar_show(arg, "verify", total ? (double)done / (double)total : 1);
    return 0;
}

int dpk_cli_verify(int argc, char **argv) {
    bool quiet = false;
    const char *path;
    char unpacked[32];
    const struct dpk_cli_option options[] = {{"--quiet", "-q", CLI_FLAG, &quiet}};
    dpk_error err = {0};
    dpk_model *model = NULL;
    struct dpk_cli_bar bar;
    int rc = 0, fd = -1;
    const int parsed = dpk_cli_parse(argc, argv, options, CLI_N(options), model_name, &path, 1);
    if (parsed) return parsed;
    bool bundle = DPK_HAS_archive && dpk_cli_is_bundle(path);
    if (DPK_HAS_archive && bundle) rc = dpk_cli_bundle_model(path, quiet, &fd, &err);
    snprintf(unpacked, sizeof unpacked, "/proc/self/fd/%d", fd);
    dpk_cli_bar_start(&bar, quiet);
    if (!rc && (rc = dpk_model_open(&model, bundle ? unpacked : path, &err)) && bundle) {
        const dpk_error why = err;
        const size_t n = strlen(unpacked);
        const bool led = !strncmp(why.msg, unpacked, n) && !strncmp(why.msg + n, ": ", 2);
        dpk_error_set(&err, rc, "%s: its model: %s", path, why.msg + (led ? n + 2 : 0));
    }
    if (!rc && (rc = dpk_model_verify(model, show_bytes, &bar, &err))) {
        dpk_error why = err;
        dpk_error_set(&err, rc, "%s: %s", path, why.msg);
    }
    dpk_cli_bar_end(&bar);
    if (!rc && !quiet)
        printf("%s: good, sum %016llx\n", path, (unsigned long long)dpk_model_sum(model));
    dpk_model_free(model);
    if (fd >= 0) close(fd);
    return rc ? dpk_cli_fail(&err) : dpk_cli_flush();
}

/* ---- tokens ------------------------------------------------------------------------------- */

static int print_tokens(const dpk_model *model, const char *prompt, bool json, dpk_error *err) {
    struct dpk_cli_json j = {stdout, false};
    if (json) dpk_cli_json_open(&j, NULL, '{');
    for (size_t t = 0; t < dpk_model_n_tokenizers(model); t++) {
        size_t n = dpk_model_n_ids(model, t), n_tokens;
        int32_t *ids = malloc((n + 1) * sizeof *ids);
        int rc = ids ? dpk_model_tokens(model, t, prompt, ids, &n_tokens, err) : DPK_ENOMEM;
        if (!ids) snprintf(err->msg, sizeof err->msg, "no memory for %zu ids", n);
        if (json && !rc) {
            dpk_cli_json_open(&j, dpk_model_tokenizer_name(model, t), '[');
            for (size_t i = 0; i < n; i++) dpk_cli_json_number(&j, NULL, ids[i]);
            dpk_cli_json_close(&j, ']');
        } else if (!rc) {
            for (size_t i = 0; i < n; i++) printf(i ? " %d" : "%d", ids[i]);
            putchar('\n');
        }
        free(ids);
        if (rc) return rc;
    }
    if (json) dpk_cli_json_close(&j, '}'), dpk_cli_json_line(&j);
    return DPK_OK;
}

int dpk_cli_tokens(int argc, char **argv) {
    bool json = false;
    const char *args[2];
    const char *const names[] = {"MODEL.dpk", "PROMPT"};
    const struct dpk_cli_option options[] = {{"--json", NULL, CLI_FLAG, &json}};
    dpk_error err;
    dpk_model *model = NULL;
    const int parsed = dpk_cli_parse(argc, argv, options, CLI_N(options), names, args, 2);
    if (parsed) return parsed;
    int status = CLI_GOOD;
    if (dpk_model_open(&model, args[0], &err) || print_tokens(model, args[1], json, &err))
        status = dpk_cli_fail(&err);
    dpk_model_free(model);
    return status ? status : dpk_cli_flush();
}

/* ---- schedule ----------------------------------------------------------------------------- */

static void print_timetable(const dpk_timetable *t, bool json) {
    struct dpk_cli_json j = {stdout, false};
    if (json) {
        dpk_cli_json_open(&j, NULL, '{');
        dpk_cli_json_open(&j, "timesteps", '[');
        for (size_t i = 0; i < t->n_timesteps; i++) dpk_cli_json_number(&j, NULL, t->timesteps[i]);
        dpk_cli_json_close(&j, ']');
        dpk_cli_json_open(&j, "sigmas", '[');
        for (size_t i = 0; i < t->n_sigmas; i++) dpk_cli_json_number(&j, NULL, t->sigmas[i]);
        dpk_cli_json_close(&j, ']');
        dpk_cli_json_number(&j, "init_noise_sigma", t->init_noise_sigma);
        dpk_cli_json_close(&j, '}');
        dpk_cli_json_line(&j);
        return;
    }
    printf("init_noise_sigma %.9g\n%4s %14s %14s\n", t->init_noise_sigma, "call", "timestep",
           "sigma");
    for (size_t i = 0; i < t->n_timesteps || i < t->n_sigmas; i++) {
        printf("%4zu", i);
        if (i < t->n_timesteps) printf(" %14.9g", t->timesteps[i]);
        else printf(" %14s", "");
        if (i < t->n_sigmas) printf(" %14.9g", t->sigmas[i]);
        putchar('\n');
    }
}

int dpk_cli_schedule(int argc, char **argv) {
    bool json = false;
    uint32_t steps = 0;
    const char *path, *scheduler = NULL;
    const struct dpk_cli_option options[] = {{"--json", NULL, CLI_FLAG, &json},
                                             {"--steps", NULL, CLI_COUNT, &steps},
                                             {"--scheduler", NULL, CLI_TEXT, &scheduler}};
    dpk_error err;
    dpk_model *model = NULL;
    dpk_timetable *table = NULL;
    const int parsed = dpk_cli_parse(argc, argv, options, CLI_N(options), model_name, &path, 1);
    if (parsed) return parsed;
    int status = CLI_GOOD;
    if (dpk_model_open(&model, path, &err) ||
        dpk_model_timetable(model, scheduler, steps, &table, &err))
        status = dpk_cli_fail(&err);
    else print_timetable(table, json);
    dpk_timetable_free(table);
    dpk_model_free(model);
    return status ? status : dpk_cli_flush();
}

/* ---- noise -------------------------------------------------------------------------------- */

static int write_noise(uint64_t seed, int rng, int dtype, const size_t *dim, size_t rank,
                       const char *path, dpk_error *err) {
    size_t n = 1;
    for (size_t i = 0; i < rank; i++)
        if (__builtin_mul_overflow(n, dim[i], &n)) n = SIZE_MAX / 8;
    float *out = n < SIZE_MAX / 8 ? malloc(n * sizeof *out) : NULL;
    int rc = out ? dpk_noise(seed, rng, dtype, n, out, err)
                 : dpk_error_set(err, DPK_ENOMEM, "no memory for %zu numbers", n);
    if (!rc) rc = dpk_npy_write(path, DPK_NPY_F32, (int)rank, dim, out, err);
    free(out);
    return rc;
}

int dpk_cli_noise(int argc, char **argv) {
    const char *seed = NULL, *shape = NULL, *rng = "cpu", *dtype = "f32", *out = NULL;
    const struct dpk_cli_option options[] = {
        {"--seed", NULL, CLI_TEXT, &seed},  {"--shape", NULL, CLI_TEXT, &shape},
        {"--rng", NULL, CLI_TEXT, &rng},    {"--dtype", NULL, CLI_TEXT, &dtype},
        {"--output", "-o", CLI_TEXT, &out},
    };
    static const struct {
        const char *name;
        int dtype;
    } dtypes[] = {{"f32", DPK_ARRAY_F32}, {"f16", DPK_ARRAY_F16}, {"bf16", DPK_ARRAY_BF16}};
    uint64_t number;
    size_t dim[8], rank;
    int type = 0;
    const int parsed = dpk_cli_parse(argc, argv, options, CLI_N(options), NULL, NULL, 0);
    if (parsed) return parsed;
    if (!seed) return dpk_cli_usage(argv[0], "--seed S is missing");
    if (!dpk_cli_u64(seed, &number))
        return dpk_cli_usage(argv[0], "--seed %s: want a whole number from 0 to 2^64 - 1", seed);
    if (!shape) return dpk_cli_usage(argv[0], "--shape N,C,H,W is missing");
    if (!(rank = dpk_cli_sizes(shape, dim, 8)))
        return dpk_cli_usage(argv[0], "--shape %s: want sizes as 1,4,128,128", shape);
    if (strcmp(rng, "cpu") && strcmp(rng, "cuda"))
        return dpk_cli_usage(argv[0], "--rng %s: want cpu or cuda", rng);
    for (size_t i = 0; i < CLI_N(dtypes); i++)
        if (!strcmp(dtype, dtypes[i].name)) type = dtypes[i].dtype;
    if (!type) return dpk_cli_usage(argv[0], "--dtype %s: want f32, f16 or bf16", dtype);
    if (!out) return dpk_cli_usage(argv[0], "-o FILE.npy is missing");
    dpk_error err;
    if (write_noise(number, strcmp(rng, "cpu") ? DPK_RNG_CUDA : DPK_RNG_CPU, type, dim, rank, out,
                    &err))
        return dpk_cli_fail(&err);
    return CLI_GOOD;
}
