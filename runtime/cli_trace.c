/* Timelines: spans are collected by lane while programs run, and written at the end. */
#include "cli_trace.h"

#include "../formats/atomic_file.h"
#include "../formats/fail.h"
#include "../kernels/cpu/cpu.h"

static void add_span(struct dpk_cli_lane *lane, struct dpk_cli_span span) {
    if (lane->n == lane->cap) {
        size_t cap = lane->cap ? 2 * lane->cap : 1024;
        struct dpk_cli_span *grown = realloc(lane->spans, cap * sizeof *grown);
        if (!grown) {
            lane->lost = true;
            return;
        }
        lane->spans = grown;
        lane->cap = cap;
    }
    lane->spans[lane->n++] = span;
}

/* Called by thread `worker` of the pool, which alone writes its lane. What it worked at is known
 * when the operator is done. */
static void add_share(void *arg, int worker, double begin, double end) {
    struct dpk_cli_trace *t = arg;
    if (t->stage)
        add_span(&t->lanes[1 + worker], (struct dpk_cli_span){t->stage, DPK_NONE, begin, end});
}

int dpk_cli_trace_start(struct dpk_cli_trace *trace, struct dpk_backend *backend, dpk_error *err) {
    int rc = DPK_OK;
    *trace = (struct dpk_cli_trace){.n_lanes = 1};
    if (!strcmp(backend->name, "cpu")) {
        trace->pool = ((struct dpk_cpu *)backend)->pool;
        trace->n_lanes += dpk_pool_workers(trace->pool);
    }
    trace->lanes = calloc((size_t)trace->n_lanes, sizeof *trace->lanes);
    if (!trace->lanes) DPK_FAIL(err, DPK_ENOMEM, "no memory for a timeline");
    if (trace->pool) dpk_pool_watch(trace->pool, (struct dpk_pool_watch){add_share, trace});
done:
    return rc;
}

void dpk_cli_trace_free(struct dpk_cli_trace *trace) {
    if (trace->pool) dpk_pool_watch(trace->pool, (struct dpk_pool_watch){NULL, NULL});
    for (int i = 0; trace->lanes && i < trace->n_lanes; i++) free(trace->lanes[i].spans);
    free(trace->lanes);
    *trace = (struct dpk_cli_trace){0};
}

void dpk_cli_trace_begin(struct dpk_cli_trace *trace, const struct dpk_plan_stage *stage) {
    trace->stage = stage;
    trace->program_began = trace->op_began = dpk_cli_seconds();
}

void dpk_cli_trace_operator(struct dpk_cli_trace *trace, uint32_t op, double took) {
    double now = took > 0 ? trace->op_began + took : dpk_cli_seconds();
    add_span(&trace->lanes[0], (struct dpk_cli_span){trace->stage, op, trace->op_began, now});
    for (int i = 1; i < trace->n_lanes; i++) {
        struct dpk_cli_lane *lane = &trace->lanes[i];
        while (lane->named < lane->n) lane->spans[lane->named++].op = op;
    }
    trace->op_began = now;
}

void dpk_cli_trace_end(struct dpk_cli_trace *trace) {
    double now = dpk_cli_seconds(), end = now > trace->op_began ? now : trace->op_began;
    add_span(&trace->lanes[0],
             (struct dpk_cli_span){trace->stage, DPK_NONE, trace->program_began, end});
    trace->stage = NULL;
}

/* ---- Writing ------------------------------------------------------------------------------ */

static const char *span_name(const struct dpk_cli_span *s) {
    const struct dpk_program *p = s->stage->program;
    return s->op == DPK_NONE ? p->name : dpk_op_info_get(p->ops[s->op].opcode)->name;
}

static void write_name(struct dpk_cli_json *j, const char *what, int lane, const char *name) {
    dpk_cli_json_line(j);
    dpk_cli_json_open(j, NULL, '{');
    dpk_cli_json_text(j, "ph", "M");
    dpk_cli_json_text(j, "name", what);
    dpk_cli_json_number(j, "pid", 1);
    dpk_cli_json_number(j, "tid", lane);
    dpk_cli_json_open(j, "args", '{');
    dpk_cli_json_text(j, "name", name);
    dpk_cli_json_close(j, '}');
    dpk_cli_json_close(j, '}');
}

static void write_span(struct dpk_cli_json *j, const struct dpk_file *file, int lane, double zero,
                       const struct dpk_cli_span *s) {
    dpk_cli_json_line(j);
    dpk_cli_json_open(j, NULL, '{');
    dpk_cli_json_text(j, "ph", "X");
    dpk_cli_json_text(j, "name", span_name(s));
    dpk_cli_json_text(j, "cat", s->stage->program->name);
    dpk_cli_json_number(j, "pid", 1);
    dpk_cli_json_number(j, "tid", lane);
    dpk_cli_json_number(j, "ts", (s->begin - zero) * 1e6);
    dpk_cli_json_number(j, "dur", (s->end - s->begin) * 1e6);
    if (!lane && s->op != DPK_NONE) {
        const struct dpk_program *p = s->stage->program;
        const struct dpk_cost *cost = &s->stage->costs[s->op];
        double seconds = s->end > s->begin ? s->end - s->begin : 1e-9;
        char shape[64];
        dpk_plan_shape_text(&s->stage->values[p->n_inputs + s->op].shape, shape, sizeof shape);
        dpk_cli_json_open(j, "args", '{');
        dpk_cli_json_text(j, "layer", dpk_file_string(file, p->ops[s->op].name));
        dpk_cli_json_text(j, "shape", shape);
        dpk_cli_json_number(j, "gflops", cost->flops / seconds * 1e-9);
        dpk_cli_json_number(j, "gbps", cost->bytes / seconds * 1e-9);
        dpk_cli_json_close(j, '}');
    }
    dpk_cli_json_close(j, '}');
}

static void write_events(struct dpk_cli_json *j, const struct dpk_cli_trace *trace,
                         const struct dpk_file *file) {
    double zero = trace->lanes[0].n ? trace->lanes[0].spans[0].begin : 0;
    write_name(j, "process_name", 0, "diffpak");
    for (int lane = 0; lane < trace->n_lanes; lane++) {
        const struct dpk_cli_lane *l = &trace->lanes[lane];
        char name[32] = "programs, operators";
        if (lane) snprintf(name, sizeof name, "thread %d", lane);
        write_name(j, "thread_name", lane, name);
        for (size_t i = 0; i < l->n; i++) write_span(j, file, lane, zero, &l->spans[i]);
    }
}

int dpk_cli_trace_write(const struct dpk_cli_trace *trace, const struct dpk_file *file,
                        const char *path, dpk_error *err) {
    int rc = DPK_OK;
    char *text = NULL;
    size_t n = 0;
    struct dpk_atomic_file out = {.fd = -1};
    FILE *memory = open_memstream(&text, &n);
    struct dpk_cli_json j = {memory, false};
    for (int i = 0; i < trace->n_lanes; i++)
        if (trace->lanes[i].lost) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for a timeline", path);
    if (!memory) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for a timeline", path);
    dpk_cli_json_open(&j, NULL, '{');
    dpk_cli_json_text(&j, "displayTimeUnit", "ms");
    dpk_cli_json_open(&j, "traceEvents", '[');
    write_events(&j, trace, file);
    dpk_cli_json_close(&j, ']');
    dpk_cli_json_close(&j, '}');
    bool whole = !ferror(memory);
    whole = !fclose(memory) && whole;
    memory = NULL;
    if (!whole) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for a timeline", path);
    DPK_TRY(dpk_atomic_open(&out, path, err));
    rc = dpk_atomic_close(&out, dpk_atomic_write(&out, text, n, err), err);
done:
    if (memory) fclose(memory);
    free(text);
    return rc;
}
