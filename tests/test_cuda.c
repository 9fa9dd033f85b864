/* The CUDA backend as a whole, on the emulated device: pictures as the CPU paints them, what the
 * host does between the first step and the last (nothing), graphs, shared weights, noise, errors.
 * Operators are tested with the CPU's (support_ref.c and others), components in test_parity.c. */
#include "../runtime/job.h"
#include "../runtime/plugin.h"
#include "../runtime/random.h"
#include "cuda_emu/emu_log.h"
#include "support_cuda.h"
#include "support_golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static dpk_model *model; /* models/shapes-xl in float32, smallest pictures */
enum { SIDE = 64, WEIGHTS = 4 << 20 /* bytes of them, at least */ };

static int set_up(void **state) {
    (void)state;
    if (support_cuda_available())
        model = golden_model("shapes-xl-cuda", "models/shapes-xl", "--dtype f32");
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    dpk_model_free(model);
    return 0;
}

static void *symbol(const char *name) {
    void *p = support_cuda_symbol(name);
    if (!p) skip(); /* a real device keeps no log */
    return p;
}

static size_t log_entries(const struct dpk_emu_entry **list) {
    size_t (*get)(const struct dpk_emu_entry **);
    *(void **)&get = symbol("dpk_emu_log");
    return get(list);
}

static void log_start(void) {
    void (*start)(void);
    *(void **)&start = symbol("dpk_emu_log_start");
    start();
}

static size_t in_use(void) {
    size_t (*get)(void);
    *(void **)&get = symbol("dpk_emu_in_use");
    return get();
}

static dpk_session *open_session_of(const dpk_model *m, const char *backend) {
    dpk_error err;
    dpk_session *s = NULL;
    dpk_session_options o = dpk_session_options_default();
    o.backend = backend;
    if (dpk_session_create(&s, m, &o, &err)) fail_msg("%s", err.msg);
    return s;
}

static dpk_session *open_session(const char *backend) { return open_session_of(model, backend); }

/* ---- Pictures ------------------------------------------------------------------------------ */

enum { MAX_LATENTS = 8 };
struct traced {
    float *at[MAX_LATENTS];
    size_t n, values;
    size_t enough; /* latents after which the picture is given up; 0: it is finished */
};

static int keep_latent(void *arg, const dpk_array *a) {
    struct traced *t = arg;
    if (strncmp(a->name, "latent_", 7) != 0 || t->n == MAX_LATENTS) return 0;
    t->values = golden_count(a);
    t->at[t->n] = malloc(t->values * sizeof(float));
    memcpy(t->at[t->n++], a->data, t->values * sizeof(float));
    return t->n == t->enough;
}

static dpk_params small_params(void) {
    static const char *const prompts[] = {"a large red circle on a blue background"};
    dpk_params p = dpk_params_default();
    p.prompts = prompts;
    p.width = p.height = SIDE;
    p.steps = 3;
    return p;
}

static void paint(dpk_session *s, const dpk_params *params, struct traced *t) {
    dpk_params p = *params;
    dpk_error err;
    dpk_images *images = NULL;
    p.trace = keep_latent;
    p.trace_arg = t;
    int rc = dpk_generate(s, &p, &images, &err);
    if (rc != (t->enough ? DPK_ECANCELLED : DPK_OK)) fail_msg("%s", err.msg);
    dpk_images_free(images);
}

static void free_traced(struct traced *t) {
    for (size_t i = 0; i < t->n; i++) free(t->at[i]);
}

/* Latents after every step, on both. */
static void check_same(const char *what, const dpk_params *p) {
    dpk_session *cpu = open_session("cpu"), *cuda = open_session("cuda");
    struct traced want = {.n = 0}, got = want;
    paint(cpu, p, &want);
    got.enough = want.n;
    paint(cuda, p, &got);
    assert_true(want.n >= 2);
    assert_int_equal(got.n, want.n);
    for (size_t i = 0; i < want.n; i++) {
        double error = golden_relative(got.at[i], want.at[i], want.values);
        printf("%s: latent %zu: %.2e\n", what, i, error);
        if (!(error <= 1e-4)) fail_msg("%s: latent %zu is off by %g", what, i, error);
    }
    free_traced(&want), free_traced(&got);
    dpk_session_free(cpu), dpk_session_free(cuda);
}

static void test_guided(void **state) {
    (void)state;
    if (!model) skip();
    dpk_params p = small_params();
    p.guidance_rescale = 0.6f;
    check_same("guided and rescaled, dpm++2m", (p.scheduler = "dpm++2m", &p));
}

/* Fresh noise at every step, drawn on the device; two pictures. */
static void test_device_noise(void **state) {
    static const uint64_t seeds[2] = {7, 12345678901u};
    (void)state;
    if (!model) skip();
    dpk_params p = small_params();
    p.scheduler = "euler-a";
    p.rng = DPK_RNG_CUDA;
    p.images_per_prompt = 2;
    p.seeds = seeds;
    p.n_seeds = 2;
    p.guidance = 1;
    p.steps = 2;
    check_same("noise of a device", &p);
}

static void test_masked(void **state) {
    static uint8_t picture[SIDE * SIDE * 3], mask[SIDE * SIDE];
    (void)state;
    if (!model) skip();
    for (int i = 0; i < SIDE * SIDE; i++) {
        picture[3 * i] = (uint8_t)(i % SIDE * 4);
        picture[3 * i + 1] = (uint8_t)(i / SIDE * 4);
        mask[i] = i % SIDE > SIDE / 3 ? 255 : 0;
    }
    dpk_params p = small_params();
    p.init = picture;
    p.init_width = p.init_height = SIDE;
    p.mask = mask;
    p.mask_width = p.mask_height = SIDE;
    p.strength = 0.7;
    p.guidance = 1;
    p.scheduler = "lcm";
    check_same("masked", &p);
}

/* ---- Quantized files ------------------------------------------------------------------------- */

static dpk_model *quantized(const char *options) {
    dpk_error err;
    dpk_model *m = NULL;
    char path[1100], made[1200];
    dpk_model_free(golden_model("cuda-bf16", "models/shapes-xl", "--dtype bf16"));
    snprintf(path, sizeof path, "%s", golden_build_path("tests/cuda-bf16.dpk"));
    snprintf(made, sizeof made, "%s.quantized", path);
    if (golden_shell("%s %s -o %s %s >/dev/null", golden_build_path("bin/diffpak-quantize"), path,
                     made, options))
        fail_msg("quantizing failed: %s", options);
    if (dpk_model_open(&m, made, &err)) fail_msg("%s", err.msg);
    return m;
}

/* How many results of such operators in a picture are quantized rows. */
static size_t count_rows(dpk_session *session, const dpk_params *params, uint32_t opcode) {
    dpk_error err;
    struct dpk_job job;
    size_t n = 0;
    if (dpk_job_plan(&job, session, params, &err)) fail_msg("%s", err.msg);
    for (uint32_t s = 0; s < job.plan.n_stages; s++)
        for (uint32_t i = 0; i < job.plan.stages[s].program->n_ops; i++)
            n += job.plan.stages[s].calls[i].out.rows8 &&
                 job.plan.stages[s].program->ops[i].opcode == opcode;
    dpk_job_free(&job);
    return n;
}

/* One step by integers, layers' norms quantizing their rows or not, and by widened weights; as near
 * to the CPU as bfloat16 is. */
static void test_quantized(void **state) {
    static const char *const options[] = {
        "--scheme int8-dynamic --convs --filter all --convention torchao",
        "--scheme int8-dynamic --filter all --convention diffusion-fast",
        "--scheme int8-weight --filter all",
        "--scheme int4-weight:32 --filter all",
    };
    (void)state;
    if (!model) skip();
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        dpk_model *m = quantized(options[i]);
        dpk_session *cpu = open_session_of(m, "cpu"), *cuda = open_session_of(m, "cuda");
        struct traced want = {.enough = 2}, got = want, apart = want;
        dpk_params p = small_params();
        p.guidance = 1;
        p.steps = 1;
        paint(cpu, &p, &want);
        assert_int_equal(count_rows(cuda, &p, DPK_OP_layer_norm) != 0, i < 2);
        assert_int_equal(count_rows(cuda, &p, DPK_OP_group_norm) != 0, i < 2);
        paint(cuda, &p, &got);
        double error = golden_relative(got.at[1], want.at[1], want.values);
        printf("%s: %.2e\n", options[i], error);
        if (!(error <= 2e-2)) fail_msg("%s: off by %g", options[i], error);
        if (i < 2) {
            dpk_session *numbers = open_session_of(m, "cuda");
            numbers->backend->rows8_bytes = NULL;
            paint(numbers, &p, &apart);
            assert_memory_equal(apart.at[1], got.at[1], got.values * sizeof(float));
            free_traced(&apart);
            dpk_session_free(numbers);
        }
        free_traced(&want), free_traced(&got);
        dpk_session_free(cpu), dpk_session_free(cuda);
        dpk_model_free(m);
    }
}

/* ---- The host's part ----------------------------------------------------------------------- */

/* A picture without trace or progress: after the first step is queued, until the picture is
 * fetched, the host queues graphs and copies within the device, and nothing else. */
static void test_nothing_between_steps(void **state) {
    (void)state;
    if (!model) skip();
    const struct dpk_emu_entry *list;
    dpk_error err;
    dpk_images *images = NULL;
    dpk_session *s = open_session("cuda");
    dpk_params p = small_params();
    p.guidance = 1;
    if (dpk_generate(s, &p, &images, &err)) fail_msg("%s", err.msg);
    dpk_images_free(images);
    log_start();
    if (dpk_generate(s, &p, &images, &err)) fail_msg("%s", err.msg);
    dpk_images_free(images);
    size_t n = log_entries(&list), last_in = 0, graphs = 0, outs = 0, syncs = 0;
    for (size_t i = 0; i < n; i++) {
        enum dpk_emu_kind k = list[i].kind;
        if (k == DPK_EMU_ALLOC || k == DPK_EMU_FREE || k == DPK_EMU_CAPTURE)
            fail_msg("a second picture allocates, frees or captures (%d, %s)", (int)k,
                     list[i].name);
        if (k == DPK_EMU_COPY_IN) last_in = i;
    }
    for (size_t i = last_in + 1; i < n; i++) {
        graphs += list[i].kind == DPK_EMU_GRAPH;
        outs += list[i].kind == DPK_EMU_COPY_OUT;
        syncs += list[i].kind == DPK_EMU_SYNC;
        if (graphs && graphs <= p.steps && (outs || syncs))
            fail_msg("the host waits or fetches after %zu graphs", graphs);
    }
    assert_int_equal(graphs, p.steps + 1); /* and the decoder */
    assert_int_equal(outs, 1);
    dpk_session_free(s);
}

/* Weights that were attached anew lie elsewhere: no graph of before is replayed. */
static void test_attached_anew(void **state) {
    (void)state;
    if (!model) skip();
    const struct dpk_emu_entry *list;
    dpk_error err;
    struct traced first = {.enough = 2}, second = first;
    dpk_session *s = open_session("cuda");
    struct dpk_backend *be = s->backend;
    struct dpk_share share = {.first = NULL};
    pthread_mutex_init(&share.lock, NULL);
    dpk_params p = small_params();
    p.guidance = 1;
    p.steps = 1;
    paint(s, &p, &first);
    if (be->attach(be, &model->file, DPK_F32, &share, &err)) fail_msg("%s", err.msg);
    log_start();
    paint(s, &p, &second);
    size_t n = log_entries(&list), captures = 0;
    for (size_t i = 0; i < n; i++) captures += list[i].kind == DPK_EMU_CAPTURE;
    assert_true(captures >= 2); /* setup, a step */
    assert_memory_equal(first.at[1], second.at[1], first.values * sizeof(float));
    free_traced(&first), free_traced(&second);
    dpk_session_free(s);
    pthread_mutex_destroy(&share.lock);
}

struct told {
    uint32_t steps;
    int stop_at;
};

static int tell(void *arg, const dpk_progress *p) {
    struct told *t = arg;
    if (!strcmp(p->stage, "step")) t->steps = p->step;
    return t->stop_at && (int)p->step >= t->stop_at;
}

/* Progress comes step by step, and can stop the picture; the session goes on to work. */
static void test_progress(void **state) {
    (void)state;
    if (!model) skip();
    dpk_error err;
    dpk_images *images = NULL;
    dpk_session *s = open_session("cuda");
    struct told told = {0, 1};
    dpk_params p = small_params();
    p.guidance = 1;
    p.progress = tell;
    p.progress_arg = &told;
    assert_int_equal(dpk_generate(s, &p, &images, &err), DPK_ECANCELLED);
    told.stop_at = 0;
    if (dpk_generate(s, &p, &images, &err)) fail_msg("%s", err.msg);
    assert_int_equal(told.steps, p.steps);
    dpk_images_free(images);
    dpk_session_free(s);
}

/* Two sessions of a model hold its weights once; when all are gone, so is the device's memory. */
static void test_shared_weights(void **state) {
    (void)state;
    if (!model) skip();
    size_t none = in_use();
    dpk_session *first = open_session("cuda");
    size_t one = in_use() - none;
    dpk_session *second = open_session("cuda");
    size_t two = in_use() - none - one;
    assert_true(two > 0 && one > two + WEIGHTS);
    dpk_session_free(first);
    dpk_session_free(second);
    assert_int_equal(in_use(), none);
}

/* ---- Noise --------------------------------------------------------------------------------- */

static void test_normal(void **state) {
    enum { IMAGES = 3, C = 4, PIXELS = 391, N = IMAGES * C * PIXELS };
    static float want[N], got[N];
    (void)state;
    if (!model) skip();
    dpk_error err;
    struct dpk_backend *be = NULL;
    if (dpk_plugin_open(&be, 0, &err)) fail_msg("%s", err.msg);
    for (int i = 0; i < 3; i++) {
        struct dpk_random r, skipped;
        dpk_random_seed(&r, DPK_RANDOM_CUDA, 0x123456789abcu * (uint64_t)(i + 1), i ? 256u : 0);
        if (i == 2) dpk_random_normal(&r, DPK_F32, 1000, want);
        skipped = r;
        float *out = be->alloc(be, sizeof want);
        assert_non_null(out);
        const struct dpk_normal normal = {out, r.seed, r.offset, r.threads, IMAGES, PIXELS, C};
        if (be->normal(be, &normal, &err) || be->download(be, got, out, sizeof got, &err))
            fail_msg("%s", err.msg);
        dpk_random_normal(&r, DPK_F32, N, want);
        dpk_random_skip(&skipped, N);
        assert_int_equal(skipped.offset, r.offset);
        for (int k = 0; k < N; k++) {
            int image = k / (C * PIXELS), c = k / PIXELS % C, pixel = k % PIXELS;
            float v = got[(image * PIXELS + pixel) * C + c];
            if (!(fabsf(v - want[k]) <= 1e-6f))
                fail_msg("value %d is %.9g, want %.9g", k, (double)v, (double)want[k]);
        }
        be->release(be, out, sizeof want);
    }
    be->free(be);
}

/* ---- Errors -------------------------------------------------------------------------------- */

static void check_fails(int code, const char *part) {
    dpk_error err = {0};
    struct dpk_backend *be = NULL;
    assert_int_equal(dpk_plugin_open(&be, 0, &err), code);
    assert_null(be);
    assert_false(strchr(err.msg, '\n'));
    if (!strstr(err.msg, part)) fail_msg("\"%s\" does not say \"%s\"", err.msg, part);
}

static void test_errors(void **state) {
    (void)state;
    if (!model) skip();
    symbol("dpk_emu_log");
    char *path = strdup(getenv("DPK_CUDA_PLUGIN"));
    setenv("DPK_EMU_NO_DRIVER", "1", 1);
    check_fails(DPK_EBACKEND, "no NVIDIA driver");
    unsetenv("DPK_EMU_NO_DRIVER");
    setenv("DPK_EMU_NO_DEVICE", "1", 1);
    check_fails(DPK_EBACKEND, "no device");
    unsetenv("DPK_EMU_NO_DEVICE");
    setenv("DPK_CUDA_PLUGIN", "/nowhere/libdiffpak-cuda.so", 1);
    check_fails(DPK_EUNSUPPORTED, "/nowhere/libdiffpak-cuda.so");
    setenv("DPK_CUDA_PLUGIN", "libm.so.6", 1);
    check_fails(DPK_EUNSUPPORTED, "is no plugin");
    setenv("DPK_CUDA_PLUGIN", path, 1);
    free(path);
}

/* A device too small for the weights, or for the arena: an error, and nothing is left behind. */
static void test_no_memory(void **state) {
    (void)state;
    if (!model) skip();
    void (*set)(size_t);
    *(void **)&set = symbol("dpk_emu_set_memory");
    dpk_error err = {0};
    dpk_session *s = NULL;
    dpk_session_options o = dpk_session_options_default();
    const size_t none = in_use();
    o.backend = "cuda";
    set(none + ((size_t)32 << 20) + WEIGHTS); /* room for the workspace, not for the weights */
    assert_int_equal(dpk_session_create(&s, model, &o, &err), DPK_ENOMEM);
    assert_null(s);
    assert_int_equal(in_use(), none);
    set((size_t)4 << 30);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normal),         cmocka_unit_test(test_guided),
        cmocka_unit_test(test_device_noise),   cmocka_unit_test(test_masked),
        cmocka_unit_test(test_progress),       cmocka_unit_test(test_nothing_between_steps),
        cmocka_unit_test(test_shared_weights), cmocka_unit_test(test_errors),
        cmocka_unit_test(test_no_memory),      cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_attached_anew),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
