/* `diffpak run`: one component of a model on arrays from files. */
#include "cli.h"

#include "../formats/fail.h"
#include "../formats/npy.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_ARRAYS = 16 };

/* "NAME=FILE": the name into `name`, the file as result; NULL if it is not of that form. */
static const char *split(const char *arg, char *name, size_t size) {
    const char *equals = strchr(arg, '=');
    if (!equals || equals == arg || !equals[1] || (size_t)(equals - arg) >= size) return NULL;
    memcpy(name, arg, (size_t)(equals - arg));
    name[equals - arg] = 0;
    return equals + 1;
}

static bool holds_integers(const char *name) {
    return !strcmp(name, "ids") || !strcmp(name, "ids_2") || !strcmp(name, "mask");
}

static int read_array(const char *name, const char *path, dpk_array *a, dpk_error *err) {
    struct dpk_npy npy = {0};
    bool integers = holds_integers(name);
    int rc = dpk_npy_read(&npy, path, integers ? DPK_NPY_I32 : DPK_NPY_F32, SIZE_MAX / 2, err);
    if (rc) return rc;
    bool fits = npy.rank >= 1 && npy.rank <= 4;
    for (int i = 0; fits && i < npy.rank; i++) fits = npy.dim[i] <= INT32_MAX;
    if (!fits) {
        dpk_error_set(err, DPK_EARG, "%.300s: %d dimensions, want 1 to 4, each below 2^31", path,
                      npy.rank);
        dpk_npy_free(&npy);
        return DPK_EARG;
    }
    *a = (dpk_array){.name = name, .type = integers ? DPK_ARRAY_I32 : DPK_ARRAY_F32};
    a->rank = npy.rank;
    for (int i = 0; i < npy.rank; i++) a->dim[i] = (int32_t)npy.dim[i];
    a->data = npy.data; /* taken over */
    return DPK_OK;
}

static int write_array(const dpk_array *a, const char *path, dpk_error *err) {
    size_t dim[4];
    for (int i = 0; i < a->rank; i++) dim[i] = (size_t)a->dim[i];
    return dpk_npy_write(path, a->type == DPK_ARRAY_I32 ? DPK_NPY_I32 : DPK_NPY_F32, a->rank, dim,
                         a->data, err);
}

static int write_outputs(const struct dpk_cli_list *list, const char *component,
                         const dpk_arrays *out, dpk_error *err) {
    for (uint32_t i = 0; i < list->n; i++) {
        char name[64];
        const char *path = split(list->at[i], name, sizeof name);
        const dpk_array *found = NULL;
        for (size_t k = 0; k < out->n; k++)
            if (!strcmp(out->at[k].name, name)) found = &out->at[k];
        if (!found) {
            char there[200] = "";
            for (size_t k = 0, at = 0; k < out->n && at < sizeof there; k++)
                at += (size_t)snprintf(there + at, sizeof there - at, "%s%s", k ? ", " : "",
                                       out->at[k].name);
            return dpk_error_set(err, DPK_EARG, "%s has no output %s: want %s", component, name,
                                 there);
        }
        if (write_array(found, path, err)) return err->code;
    }
    return DPK_OK;
}

struct request {
    const char *path, *component;
    struct dpk_cli_list in, out;
    bool no_mmap;
    dpk_session_options options;
};

static int run(const struct request *q, dpk_error *err) {
    dpk_model *model = NULL;
    dpk_session *session = NULL;
    dpk_array in[MAX_ARRAYS];
    char names[MAX_ARRAYS][64];
    dpk_arrays *out = NULL;
    uint32_t n = 0;
    int rc = DPK_OK;
    for (uint32_t i = 0; !rc && i < q->out.n; i++) {
        char name[64];
        rc = dpk_cli_check_output(split(q->out.at[i], name, sizeof name), err);
    }
    if (!rc) rc = dpk_cli_open_model(&model, q->path, q->no_mmap, err);
    while (!rc && n < q->in.n) {
        const char *path = split(q->in.at[n], names[n], sizeof names[n]);
        rc = read_array(names[n], path, &in[n], err);
        n += !rc;
    }
    if (!rc) rc = dpk_session_create(&session, model, &q->options, err);
    if (!rc) rc = dpk_session_run(session, q->component, in, n, &out, err);
    if (!rc) rc = write_outputs(&q->out, q->component, out, err);
    while (n) free(in[--n].data);
    dpk_arrays_free(out);
    dpk_session_free(session);
    dpk_model_free(model);
    return rc;
}

int dpk_cli_run(int argc, char **argv) {
    struct request q = {.options = dpk_session_options_default()};
    const char *args[2], *const names[] = {"MODEL.dpk", "text|denoise|decode|encode"};
    uint32_t threads = 0;
    const struct dpk_cli_option options[] = {
        {"--in", NULL, CLI_LIST, &q.in},
        {"--out", NULL, CLI_LIST, &q.out},
        {"--threads", NULL, CLI_COUNT, &threads},
        {"--no-mmap", NULL, CLI_FLAG, &q.no_mmap},
        {"--backend", NULL, CLI_TEXT, &q.options.backend},
        {"--memory-limit", NULL, CLI_BYTES, &q.options.memory_limit},
    };
    dpk_error err = {0};
    char name[64];
    int status = dpk_cli_parse(argc, argv, options, CLI_N(options), names, args, 2);
    for (uint32_t i = 0; !status && i < q.in.n + q.out.n; i++) {
        const char *arg = i < q.in.n ? q.in.at[i] : q.out.at[i - q.in.n];
        if (!split(arg, name, sizeof name))
            status = dpk_cli_usage(argv[0], "%s: want NAME=FILE.npy", arg);
    }
    static const char *const components[] = {"text", "denoise", "decode", "encode"};
    bool known = false;
    for (size_t i = 0; !status && i < CLI_N(components); i++)
        known |= !strcmp(args[1], components[i]);
    if (!status && !known)
        status =
            dpk_cli_usage(argv[0], "component %s: want text, denoise, decode or encode", args[1]);
    if (!status && q.in.n > MAX_ARRAYS)
        status = dpk_cli_usage(argv[0], "more than %d inputs", MAX_ARRAYS);
    if (!status && (!q.in.n || !q.out.n))
        status = dpk_cli_usage(argv[0], "--%s NAME=FILE.npy is missing", q.in.n ? "out" : "in");
    if (!status) {
        q.path = args[0], q.component = args[1];
        q.options.threads = (int)threads;
        if (run(&q, &err)) status = dpk_cli_fail(&err);
    }
    free(q.in.at);
    free(q.out.at);
    return status;
}
