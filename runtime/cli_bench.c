/* `diffpak bench`: time of each program, of its operators, of its threads. */
#include "cli.h"
#include "cli_plan.h"
#include "cli_profile.h"
#include "cli_trace.h"

#include "../formats/fail.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct request {
    const char *path, *program, *trace_path;
    uint32_t repeat;
    bool profile, json;
    dpk_session_options options;
    dpk_params params;
};

/* Everything around the programs that are timed. */
struct bench {
    const struct request *q;
    struct dpk_cli_plan plan;
    struct dpk_peaks peaks;     /* with --profile */
    struct dpk_cli_trace trace; /* with --chrome-trace */
    struct dpk_cli_json j;
    double began; /* dpk_cli_seconds */
    double load;  /* seconds from there until a program could run */
    bool one_thread;
};

/* Times of one program: the first run, the fastest, the one with the least CPU time, and every
 * operator's fastest. */
struct timing {
    struct bench *bench;
    const struct dpk_plan_stage *stage;
    double first, best, best_cpu; /* seconds */
    double since_start;           /* when the first run was done */
    double *best_op;              /* [n_ops], owned; then those of this run */
    double last;                  /* when the operator before ended; a device says itself */
};

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What operators are timed by: on one thread its own time, so that other work does not count. */
static double operator_clock(const struct bench *b) {
    return b->one_thread ? cpu_seconds() : dpk_cli_seconds();
}

static int after_operator(void *arg, const struct dpk_plan *plan, uint32_t stage, uint32_t op,
                          double share) {
    (void)stage, (void)share;
    struct timing *t = arg;
    double *took = &t->best_op[t->stage->program->n_ops + op];
    if (!plan->backend->run_timed) *took += operator_clock(t->bench) - t->last;
    if (t->bench->q->trace_path)
        dpk_cli_trace_operator(&t->bench->trace, op, plan->backend->run_timed ? *took : 0);
    t->last = operator_clock(t->bench);
    return 0;
}

static int run_encode(struct dpk_cli_plan *plan, const struct dpk_exec_hook *hook, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_value *v = &plan->encode.stages[0].values[0];
    float *image = calloc(1, v->bytes), *mean = NULL;
    uint32_t out = dpk_plan_find_output(&plan->encode.stages[0], plan->encode.file, "mean");
    if (!image) DPK_FAIL(err, DPK_ENOMEM, "no memory for a picture");
    for (uint64_t i = 0; i < v->bytes / sizeof *image; i++)
        image[i] = (float)(i * 2654435761u % 1000) / 500 - 1; /* anything but zeros */
    plan->image[0].data = image;
    DPK_TRY(dpk_exec_give_all(&plan->encode, 0, plan->image, 1, err));
    DPK_TRY(dpk_exec_run(&plan->encode, 0, hook, err));
    if (out == DPK_NONE) DPK_FAIL(err, DPK_EFORMAT, "encode: the program has no output mean");
    mean = malloc(plan->encode.stages[0].values[out].bytes);
    if (!mean) DPK_FAIL(err, DPK_ENOMEM, "no memory for a latent");
    DPK_TRY(dpk_exec_take(&plan->encode, 0, out, mean, err));
done:
    free(image);
    free(mean);
    return rc;
}

static int run_once(struct dpk_cli_plan *plan, const char *program,
                    const struct dpk_exec_hook *hook, dpk_error *err) {
    struct dpk_job *job = &plan->job;
    if (!strcmp(program, "text")) return dpk_job_text(job, hook, err);
    if (!strcmp(program, "setup")) return dpk_job_setup(job, hook, err);
    if (!strcmp(program, "step")) return dpk_job_step(job, 0, hook, err);
    if (!strcmp(program, "decode")) return dpk_job_decode(job, 0, job->image, hook, err);
    return run_encode(plan, hook, err);
}

/* What the text program would have made, drawn: the speed of the others does not depend on it. */
static void draw_text(struct dpk_job *job) {
    const struct dpk_plan_stage *s = &job->plan.stages[job->text];
    struct dpk_random random;
    dpk_random_seed(&random, DPK_RANDOM_CPU, 1, 0);
    dpk_random_normal(&random, DPK_F32, s->values[job->out_context].bytes / 4, job->text_context);
    if (job->text_pooled)
        dpk_random_normal(&random, DPK_F32, s->values[job->out_pooled].bytes / 4, job->text_pooled);
}

/* After a run: keep the fastest times. */
static void keep_best(struct timing *t, bool first, double took, double took_cpu) {
    uint32_t n = t->stage->program->n_ops;
    double *this_op = t->best_op + n;
    if (first) t->first = took, t->since_start = dpk_cli_seconds() - t->bench->began;
    if (first || took < t->best) t->best = took;
    if (first || took_cpu < t->best_cpu) t->best_cpu = took_cpu;
    for (uint32_t i = 0; i < n; i++)
        if (first || this_op[i] < t->best_op[i]) t->best_op[i] = this_op[i];
    memset(this_op, 0, n * sizeof *this_op);
}

/* A device works while the host goes on: time begins and ends where it has nothing left to do. */
static int settle(struct dpk_backend *be, dpk_error *err) {
    int rc = DPK_OK;
    if (!be->wait) goto done;
    DPK_TRY(be->mark(be, 0, err));
    DPK_TRY(be->wait(be, 0, err));
done:
    return rc;
}

/* Run a program `repeat` times, each on fresh noise where it reads the latent. */
static int time_program(struct bench *b, const char *program, struct timing *t, dpk_error *err) {
    int rc = DPK_OK;
    const struct request *q = b->q;
    struct dpk_backend *be = b->plan.job.session->backend;
    struct dpk_exec_hook hook = {after_operator, t, NULL};
    bool hooked = q->profile || q->trace_path;
    *t = (struct timing){.bench = b, .stage = dpk_cli_plan_stage(&b->plan, program)};
    t->best_op = calloc(2 * (size_t)t->stage->program->n_ops + 1, sizeof *t->best_op);
    if (!t->best_op) DPK_FAIL(err, DPK_ENOMEM, "no memory for times");
    hook.seconds = t->best_op + t->stage->program->n_ops;
    for (uint32_t i = 0; i < q->repeat; i++) {
        DPK_TRY(dpk_job_noise(&b->plan.job, err));
        DPK_TRY(settle(be, err));
        if (q->trace_path) dpk_cli_trace_begin(&b->trace, t->stage);
        double begin = dpk_cli_seconds(), begin_cpu = cpu_seconds();
        t->last = operator_clock(b);
        rc = run_once(&b->plan, program, hooked ? &hook : NULL, err);
        if (rc == DPK_OK) rc = settle(be, err);
        double took = dpk_cli_seconds() - begin, took_cpu = cpu_seconds() - begin_cpu;
        if (q->trace_path) dpk_cli_trace_end(&b->trace);
        DPK_TRY(rc);
        keep_best(t, !i, took, took_cpu);
    }
done:
    return rc;
}

/* ---- Results ------------------------------------------------------------------------------ */

static int print_program(struct bench *b, const char *name, const struct timing *t,
                         dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_cli_profile profile = {b->plan.job.plan.file, t->stage, b->peaks, t->best_op};
    struct dpk_cli_total total = {.calls = t->stage->program->n_ops,
                                  .seconds = b->one_thread ? t->best_cpu : t->best,
                                  .cost = dpk_cli_stage_cost(t->stage)};
    snprintf(total.name, sizeof total.name, "%s", name);
    for (uint32_t i = 0; b->q->profile && i < total.calls; i++)
        total.ideal += dpk_cli_profile_operator(&profile, i).ideal;
    if (b->q->json) {
        dpk_cli_total_json(&b->j, &total);
        dpk_cli_json_number(&b->j, "wall_ms", t->best * 1e3);
        dpk_cli_json_number(&b->j, "cpu_ms", t->best_cpu * 1e3);
        dpk_cli_json_number(&b->j, "first_ms", t->first * 1e3);
        dpk_cli_json_number(&b->j, "since_start_ms", t->since_start * 1e3);
        dpk_cli_json_number(&b->j, "flops", total.cost.flops);
        if (b->q->profile) DPK_TRY(dpk_cli_profile_json(&profile, &b->j, err));
        dpk_cli_json_close(&b->j, '}');
    } else {
        dpk_cli_total_print(&total, total.seconds);
        printf("  %.3f ms on the clock\n", t->best * 1e3);
        if (b->q->profile) DPK_TRY(dpk_cli_profile_print(&profile, err));
        fflush(stdout);
    }
done:
    return rc;
}

static void print_head(struct bench *b, const dpk_session *session) {
    const struct dpk_job *job = &b->plan.job;
    const dpk_params *p = &job->params;
    if (!b->q->json) {
        printf("%s: %ux%u, batch %u (%u rows), the fastest of %u; ready in %.0f ms\n",
               dpk_session_describe(session), p->width, p->height, job->n_images, job->rows,
               b->q->repeat, b->load * 1e3);
        return;
    }
    dpk_cli_json_open(&b->j, NULL, '{');
    dpk_cli_json_text(&b->j, "machine", dpk_session_describe(session));
    dpk_cli_json_number(&b->j, "width", p->width);
    dpk_cli_json_number(&b->j, "height", p->height);
    dpk_cli_json_number(&b->j, "batch", job->n_images);
    dpk_cli_json_number(&b->j, "rows", job->rows);
    dpk_cli_json_number(&b->j, "repeat", b->q->repeat);
    dpk_cli_json_number(&b->j, "load_ms", b->load * 1e3);
    dpk_cli_json_open(&b->j, "programs", '[');
}

/* ---- Command ------------------------------------------------------------------------------ */

static int bench_programs(struct bench *b, dpk_error *err) {
    int rc = DPK_OK;
    static const char *const programs[] = {"text", "setup", "step", "decode", "encode"};
    const char *only = b->q->program;
    struct timing t = {0};
    draw_text(&b->plan.job);
    for (size_t i = 0; i < CLI_N(programs); i++) {
        const char *name = programs[i];
        if (!dpk_cli_plan_stage(&b->plan, name)) continue;
        if (only && strcmp(only, name)) {
            /* A step needs what setup makes; the others need nothing. */
            if (!strcmp(only, "step") && !strcmp(name, "setup"))
                DPK_TRY(run_once(&b->plan, name, NULL, err));
            continue;
        }
        DPK_TRY(time_program(b, name, &t, err));
        DPK_TRY(print_program(b, name, &t, err));
        free(t.best_op);
        t.best_op = NULL;
    }
done:
    free(t.best_op);
    return rc;
}

static int bench(struct request *q, dpk_error *err) {
    int rc = DPK_OK;
    static const char *const prompt[1] = {"a photograph of an astronaut riding a horse"};
    dpk_model *model = NULL;
    dpk_session *session = NULL;
    struct bench b = {.q = q, .j = {stdout, false}, .began = dpk_cli_seconds()};
    q->params.prompts = prompt;
    if (q->trace_path) DPK_TRY(dpk_cli_check_output(q->trace_path, err));
    DPK_TRY(dpk_model_open(&model, q->path, err));
    if (q->program && !dpk_file_program(dpk_cli_model_file(model), q->program))
        DPK_FAIL(err, DPK_EARG, "%s: no program %.40s", q->path, q->program);
    DPK_TRY(dpk_session_create(&session, model, &q->options, err));
    DPK_TRY(dpk_cli_plan_make(&b.plan, session, &q->params, q->program, err));
    DPK_TRY(dpk_job_begin(&b.plan.job, err));
    if (b.plan.encode.n_stages)
        DPK_TRY(dpk_session_take(session, &b.plan.encode, 0, "encode", err));
    b.load = dpk_cli_seconds() - b.began;
    b.one_thread = dpk_cli_threads(session->backend) == 1;
    if (q->profile) DPK_TRY(session->backend->peaks(session->backend, &b.peaks, err));
    if (q->trace_path) DPK_TRY(dpk_cli_trace_start(&b.trace, session->backend, err));
    print_head(&b, session);
    DPK_TRY(bench_programs(&b, err));
    if (q->json) {
        dpk_cli_json_close(&b.j, ']');
        dpk_cli_json_close(&b.j, '}');
        dpk_cli_json_line(&b.j);
    }
    if (q->trace_path)
        DPK_TRY(dpk_cli_trace_write(&b.trace, b.plan.job.plan.file, q->trace_path, err));
done:
    dpk_cli_trace_free(&b.trace);
    dpk_cli_plan_free(&b.plan);
    dpk_session_free(session);
    dpk_model_free(model);
    return rc;
}

int dpk_cli_bench(int argc, char **argv) {
    struct request q = {
        .repeat = 3, .options = dpk_session_options_default(), .params = dpk_params_default()};
    const char *const names[] = {"MODEL.dpk"};
    uint32_t threads = 0;
    const struct dpk_cli_option options[] = {
        {"--program", NULL, CLI_TEXT, &q.program},
        {"--width", NULL, CLI_COUNT, &q.params.width},
        {"--height", NULL, CLI_COUNT, &q.params.height},
        {"--batch", NULL, CLI_COUNT, &q.params.images_per_prompt},
        {"--guidance", NULL, CLI_REAL, &q.params.guidance},
        {"--threads", NULL, CLI_COUNT, &threads},
        {"--backend", NULL, CLI_TEXT, &q.options.backend},
        {"--repeat", NULL, CLI_COUNT, &q.repeat},
        {"--profile", NULL, CLI_FLAG, &q.profile},
        {"--chrome-trace", NULL, CLI_TEXT, &q.trace_path},
        {"--json", NULL, CLI_FLAG, &q.json},
    };
    dpk_error err;
    const int parsed = dpk_cli_parse(argc, argv, options, CLI_N(options), names, &q.path, 1);
    if (parsed) return parsed;
    q.options.threads = (int)threads;
    if (bench(&q, &err)) return dpk_cli_fail(&err);
    return dpk_cli_flush();
}
