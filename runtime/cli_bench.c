/* `diffpak bench`: time of each program, and of its operators. */
#include "cli.h"
#include "cli_plan.h"

#include "../formats/fail.h"

#include <stdlib.h>
#include <string.h>

enum { TOP = 20 }; /* operators listed by --profile */

struct request {
    const char *path, *program;
    uint32_t repeat;
    bool profile, json;
    dpk_session_options options;
    dpk_params params;
};

/* Times of one program: the fastest run, and every operator's fastest time. */
struct timing {
    const struct dpk_plan_stage *stage;
    double best;     /* seconds */
    double *best_op; /* [n_ops], owned */
    double last;     /* when the operator before ended */
};

static int after_operator(void *arg, const struct dpk_plan *plan, uint32_t stage, uint32_t op) {
    (void)plan, (void)stage;
    struct timing *t = arg;
    double now = dpk_cli_seconds(), took = now - t->last;
    if (!t->best_op[op] || took < t->best_op[op]) t->best_op[op] = took;
    t->last = now;
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

/* Run a program `repeat` times, each on fresh noise where it reads the latent. */
static int time_program(struct dpk_cli_plan *plan, const char *program, const struct request *q,
                        struct timing *t, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_exec_hook hook = {after_operator, t};
    t->stage = dpk_cli_plan_stage(plan, program);
    t->best_op = calloc(t->stage->program->n_ops + 1, sizeof *t->best_op);
    if (!t->best_op) DPK_FAIL(err, DPK_ENOMEM, "no memory for times");
    for (uint32_t i = 0; i < q->repeat; i++) {
        DPK_TRY(dpk_job_noise(&plan->job, err));
        double begin = t->last = dpk_cli_seconds();
        DPK_TRY(run_once(plan, program, q->profile ? &hook : NULL, err));
        double took = dpk_cli_seconds() - begin;
        if (!i || took < t->best) t->best = took;
    }
done:
    return rc;
}

/* ---- Results ------------------------------------------------------------------------------ */

struct kind { /* all operators of one opcode */
    uint32_t opcode, calls;
    double seconds;
    struct dpk_cost cost;
};

static int slower_kind(const void *a, const void *b) {
    double x = ((const struct kind *)a)->seconds, y = ((const struct kind *)b)->seconds;
    return x < y ? 1 : x > y ? -1 : 0;
}

static void sum_kinds(const struct timing *t, struct kind *kinds) {
    const struct dpk_program *p = t->stage->program;
    memset(kinds, 0, DPK_N_OPCODES * sizeof *kinds);
    for (uint32_t i = 0; i < p->n_ops; i++) {
        struct kind *k = &kinds[p->ops[i].opcode];
        k->opcode = p->ops[i].opcode;
        k->calls++;
        k->seconds += t->best_op[i];
        k->cost.flops += t->stage->costs[i].flops;
        k->cost.bytes += t->stage->costs[i].bytes;
    }
    qsort(kinds, DPK_N_OPCODES, sizeof *kinds, slower_kind);
}

/* The slowest operators, slowest first. Returns how many. */
static uint32_t find_slowest(const struct timing *t, uint32_t *top) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->stage->program->n_ops; i++) {
        uint32_t at = n < TOP ? n++ : TOP - 1;
        if (at == TOP - 1 && n == TOP && i >= TOP && t->best_op[i] <= t->best_op[top[at]]) continue;
        while (at > 0 && t->best_op[top[at - 1]] < t->best_op[i]) {
            top[at] = top[at - 1];
            at--;
        }
        top[at] = i;
    }
    return n;
}

static double rate(double amount, double seconds) {
    return seconds > 0 ? amount / seconds / 1e9 : 0;
}

static void print_row(const char *name, uint32_t calls, double s, struct dpk_cost c, double all) {
    printf("    %-12s %6u %10.3f ms %9.1f GFLOP/s %8.1f GB/s %5.1f %%", name, calls, s * 1e3,
           rate(c.flops, s), rate(c.bytes, s), all > 0 ? 100 * s / all : 0);
}

static void print_profile(const struct dpk_file *f, const struct timing *t) {
    struct kind kinds[DPK_N_OPCODES];
    uint32_t top[TOP], n = find_slowest(t, top);
    double all = 0;
    const struct dpk_program *p = t->stage->program;
    for (uint32_t i = 0; i < p->n_ops; i++) all += t->best_op[i];
    sum_kinds(t, kinds);
    for (int i = 0; i < DPK_N_OPCODES && kinds[i].calls; i++) {
        print_row(dpk_op_info_get(kinds[i].opcode)->name, kinds[i].calls, kinds[i].seconds,
                  kinds[i].cost, all);
        putchar('\n');
    }
    printf("  slowest operators\n");
    for (uint32_t i = 0; i < n; i++) {
        char shape[64];
        print_row(dpk_op_info_get(p->ops[top[i]].opcode)->name, 1, t->best_op[top[i]],
                  t->stage->costs[top[i]], all);
        printf("  %s %s\n", dpk_file_string(f, p->ops[top[i]].name),
               dpk_plan_shape_text(&t->stage->values[p->n_inputs + top[i]].shape, shape,
                                   sizeof shape));
    }
}

static void json_row(struct dpk_cli_json *j, const char *name, const char *layer, uint32_t calls,
                     double s, struct dpk_cost c) {
    dpk_cli_json_line(j);
    dpk_cli_json_open(j, NULL, '{');
    dpk_cli_json_text(j, "name", name);
    if (layer) dpk_cli_json_text(j, "layer", layer);
    dpk_cli_json_number(j, "calls", calls);
    dpk_cli_json_number(j, "ms", s * 1e3);
    dpk_cli_json_number(j, "gflops", rate(c.flops, s));
    dpk_cli_json_number(j, "gbps", rate(c.bytes, s));
}

static void json_profile(struct dpk_cli_json *j, const struct dpk_file *f, const struct timing *t) {
    struct kind kinds[DPK_N_OPCODES];
    const struct dpk_program *p = t->stage->program;
    sum_kinds(t, kinds);
    dpk_cli_json_open(j, "kinds", '[');
    for (int i = 0; i < DPK_N_OPCODES && kinds[i].calls; i++) {
        json_row(j, dpk_op_info_get(kinds[i].opcode)->name, NULL, kinds[i].calls, kinds[i].seconds,
                 kinds[i].cost);
        dpk_cli_json_close(j, '}');
    }
    dpk_cli_json_close(j, ']');
    dpk_cli_json_open(j, "operators", '[');
    for (uint32_t i = 0; i < p->n_ops; i++) {
        json_row(j, dpk_op_info_get(p->ops[i].opcode)->name, dpk_file_string(f, p->ops[i].name), 1,
                 t->best_op[i], t->stage->costs[i]);
        dpk_cli_json_close(j, '}');
    }
    dpk_cli_json_close(j, ']');
}

/* ---- Command ------------------------------------------------------------------------------ */

static int bench_programs(const struct request *q, struct dpk_cli_plan *plan,
                          struct dpk_cli_json *j, dpk_error *err) {
    int rc = DPK_OK;
    static const char *const programs[] = {"text", "setup", "step", "decode", "encode"};
    const struct dpk_file *f = plan->job.plan.file;
    struct timing t = {0};
    for (size_t i = 0; i < CLI_N(programs); i++) {
        const char *name = programs[i];
        bool wanted = !q->program || !strcmp(q->program, name);
        if (!dpk_cli_plan_stage(plan, name)) continue;
        if (!wanted) {
            /* A step needs what setup makes, and that the text; the others need nothing. */
            if (q->program && !strcmp(q->program, "encode")) continue;
            if (i < 2) DPK_TRY(run_once(plan, name, NULL, err));
            if (q->program && !strcmp(q->program, "text")) break;
            continue;
        }
        DPK_TRY(time_program(plan, name, q, &t, err));
        struct dpk_cost cost = dpk_cli_stage_cost(t.stage);
        if (j) {
            json_row(j, name, NULL, t.stage->program->n_ops, t.best, cost);
            dpk_cli_json_number(j, "flops", cost.flops);
            if (q->profile) json_profile(j, f, &t);
            dpk_cli_json_close(j, '}');
        } else {
            print_row(name, t.stage->program->n_ops, t.best, cost, t.best);
            putchar('\n');
            if (q->profile) print_profile(f, &t);
            fflush(stdout);
        }
        free(t.best_op);
        t = (struct timing){0};
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
    struct dpk_cli_plan plan = {0};
    struct dpk_cli_json j = {stdout, false};
    q->params.prompts = prompt;
    DPK_TRY(dpk_model_open(&model, q->path, err));
    if (q->program && !dpk_file_program(dpk_cli_model_file(model), q->program))
        DPK_FAIL(err, DPK_EARG, "%s: no program %.40s", q->path, q->program);
    DPK_TRY(dpk_session_create(&session, model, &q->options, err));
    DPK_TRY(dpk_cli_plan_make(&plan, session, &q->params, q->program, err));
    DPK_TRY(dpk_job_begin(&plan.job, err));
    if (plan.encode.n_stages) DPK_TRY(dpk_session_take(session, &plan.encode, 0, "encode", err));
    const dpk_params *p = &plan.job.params;
    if (q->json) {
        dpk_cli_json_open(&j, NULL, '{');
        dpk_cli_json_text(&j, "machine", dpk_session_describe(session));
        dpk_cli_json_number(&j, "width", p->width);
        dpk_cli_json_number(&j, "height", p->height);
        dpk_cli_json_number(&j, "batch", plan.job.n_images);
        dpk_cli_json_number(&j, "rows", plan.job.rows);
        dpk_cli_json_number(&j, "repeat", q->repeat);
        dpk_cli_json_open(&j, "programs", '[');
    } else {
        printf("%s: %ux%u, batch %u (%u rows), the fastest of %u\n",
               dpk_session_describe(session), p->width, p->height, plan.job.n_images, plan.job.rows,
               q->repeat);
    }
    DPK_TRY(bench_programs(q, &plan, q->json ? &j : NULL, err));
    if (q->json) {
        dpk_cli_json_close(&j, ']');
        dpk_cli_json_close(&j, '}');
        dpk_cli_json_line(&j);
    }
done:
    dpk_cli_plan_free(&plan);
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
        {"--json", NULL, CLI_FLAG, &q.json},
    };
    dpk_error err;
    if (dpk_cli_parse(argc, argv, options, CLI_N(options), names, &q.path, 1)) return CLI_USAGE;
    q.options.threads = (int)threads;
    if (bench(&q, &err)) return dpk_cli_fail(&err);
    return dpk_cli_flush();
}
