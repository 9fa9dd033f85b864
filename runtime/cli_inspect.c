/* `diffpak inspect`: what a model file holds, and what running it takes. */
#include "cli.h"
#include "cli_plan.h"

#include "../formats/fail.h"
#include "../formats/utf8.h"

#include <stdlib.h>
#include <string.h>

struct request {
    const char *path, *program, *backend;
    bool tensors, json;
    uint32_t width, height, batch;
    uint64_t limit, least; /* bytes; least is filled in where there is a limit */
};

/* ---- Sizes -------------------------------------------------------------------------------- */

/* Tensors of a component: their names up to the first dot. */
struct component {
    const char *name;
    size_t length;
    uint32_t first, n_tensors;
    double n, bytes; /* parameters */
};

static int by_name(const void *a, const void *b) {
    const struct component *x = a, *y = b;
    const int order = memcmp(x->name, y->name, x->length < y->length ? x->length : y->length);
    if (order) return order;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    return x->first < y->first ? -1 : 1;
}

static int by_first(const void *a, const void *b) {
    const struct component *x = a, *y = b;
    return x->first < y->first ? -1 : 1;
}

/* Scales and sums of quantized tensors are not parameters of the model. */
static void leave_out_extras(const struct dpk_file *f, struct component *each) {
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        if (f->tensors[i].scale != DPK_NONE) each[f->tensors[i].scale].n = 0;
        if (f->tensors[i].colsum != DPK_NONE) each[f->tensors[i].colsum].n = 0;
    }
}

/* The components in the order of their first tensors, and behind them their sum; NULL without
 * memory. The caller frees. */
static struct component *count_components(const struct dpk_file *f, uint32_t *n_components) {
    struct component *c = calloc((size_t)f->n_tensors + 1, sizeof *c), all = {0};
    uint32_t n = 0;
    if (!c) return NULL;
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        const struct dpk_shape shape = dpk_tensor_shape(&f->tensors[i]);
        const char *name = dpk_file_string(f, f->tensors[i].name);
        c[i] = (struct component){.name = name,
                                  .length = strcspn(name, "."),
                                  .first = i,
                                  .n_tensors = 1,
                                  .n = (double)dpk_shape_count(&shape),
                                  .bytes = (double)f->tensors[i].bytes};
    }
    leave_out_extras(f, c);
    qsort(c, f->n_tensors, sizeof *c, by_name);
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        const struct component one = c[i];
        const bool more =
            n && c[n - 1].length == one.length && !memcmp(c[n - 1].name, one.name, one.length);
        if (!more) c[n++] = (struct component){one.name, one.length, one.first, 0, 0, 0};
        c[n - 1].n_tensors++, all.n_tensors++;
        c[n - 1].n += one.n, all.n += one.n;
        c[n - 1].bytes += one.bytes, all.bytes += one.bytes;
    }
    qsort(c, n, sizeof *c, by_first);
    c[n] = all;
    *n_components = n;
    return c;
}

/* ---- For people --------------------------------------------------------------------------- */

static void print_sizes(const struct dpk_file *f) {
    uint32_t n = 0;
    struct component *c = count_components(f, &n);
    printf("\n%-28s %16s %14s %8s\n", "component", "parameters", "MB", "tensors");
    for (uint32_t i = 0; c && i < n; i++)
        printf("%-28.*s %16.0f %14.3f %8u\n", (int)c[i].length, c[i].name, c[i].n, c[i].bytes / 1e6,
               c[i].n_tensors);
    if (c) printf("%-28s %16.0f %14.3f %8u\n", "all", c[n].n, c[n].bytes / 1e6, c[n].n_tensors);
    free(c);
}

/* A text of the file: on a terminal it must not act. */
static void print_text(const char *text) {
    for (size_t left = strlen(text), n; left > 0; text += n, left -= n) {
        const unsigned char *c = (const unsigned char *)text;
        n = dpk_utf8_length(c, left);
        if (n && !dpk_utf8_is_control(c, n)) printf("%.*s", (int)n, text);
        else putchar('?');
        n = n ? n : 1;
    }
}

static void print_programs(const struct dpk_file *f) {
    for (uint32_t i = 0; i < f->n_programs; i++) {
        const struct dpk_program *p = &f->programs[i];
        printf("\nprogram %s: %u operators\n", p->name, p->n_ops);
        for (uint32_t v = 0, shown = 0; v < p->n_inputs; v++) {
            char shape[64];
            struct dpk_shape s = {.rank = p->values[v].rank};
            memcpy(s.dim, p->values[v].dim, sizeof s.dim);
            if (p->values[v].type == DPK_VALUE_ACT) continue; /* from another program */
            printf("%s %s %s", shown++ ? "," : "    takes", dpk_file_string(f, p->values[v].name),
                   dpk_plan_shape_text(&s, shape, sizeof shape));
        }
        uint32_t given = 0, shown = 0;
        for (uint32_t v = 0; v < p->n_inputs; v++) given += p->values[v].type == DPK_VALUE_ACT;
        if (given) printf(", and %u values of setup", given);
        printf("\n    makes");
        if (p->n_outputs > 8) printf(" %u values\n", p->n_outputs);
        for (uint32_t v = 0; p->n_outputs <= 8 && v < p->n_inputs + p->n_ops; v++)
            if (p->values[v].flags & DPK_VALUE_OUTPUT)
                printf("%s %s", shown++ ? "," : "", dpk_file_string(f, p->values[v].name));
        if (p->n_outputs <= 8) putchar('\n');
    }
}

static void print_tensors(const struct dpk_file *f) {
    printf("\n%-10s %-5s %-20s %12s  %s\n", "layout", "type", "shape", "bytes", "tensor");
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        const struct dpk_tensor_record *t = &f->tensors[i];
        struct dpk_shape s = dpk_tensor_shape(t);
        char shape[64];
        printf("%-10s %-5s %-20s %12llu  %s\n", dpk_layout_name((int)t->layout),
               dpk_dtype_name((int)t->dtype), dpk_plan_shape_text(&s, shape, sizeof shape),
               (unsigned long long)t->bytes, dpk_file_string(f, t->name));
    }
}

static void print_attributes(const struct dpk_op *op, const struct dpk_op_info *info) {
    for (int k = 0; k < info->n_attr; k++) {
        if (!op->attr[k].i) continue;
        if (info->attr[k].kind == 'f') printf(" %s=%g", info->attr[k].name, (double)op->attr[k].f);
        else if (info->attr[k].kind == 'a')
            printf(" %s=%s", info->attr[k].name, dpk_act_name(op->attr[k].i));
        else printf(" %s=%d", info->attr[k].name, op->attr[k].i);
    }
}

static void print_operators(const struct dpk_file *f, const struct dpk_program *p,
                            const struct dpk_plan_stage *s) {
    printf("\nprogram %s\n", p->name);
    for (uint32_t v = 0; v < p->n_inputs; v++) {
        char shape[64];
        printf("%%%u = input %s %s\n", v, dpk_file_string(f, p->values[v].name),
               s ? dpk_plan_shape_text(&s->values[v].shape, shape, sizeof shape) : "");
    }
    for (uint32_t i = 0; i < p->n_ops; i++) {
        const struct dpk_op *op = &p->ops[i];
        const struct dpk_op_info *info = dpk_op_info_get(op->opcode);
        char shape[64];
        printf("%%%u = %s", p->n_inputs + i, info->name);
        for (int k = 0; k < info->n_in; k++)
            if (op->in[k] != DPK_NONE) printf(" %s=%%%u", info->in[k].name, op->in[k]);
        for (int k = 0; k < info->n_wt; k++) {
            if (op->wt[k] == DPK_NONE) continue;
            struct dpk_shape w = dpk_tensor_shape(&f->tensors[op->wt[k]]);
            printf(" %s:%s%s", info->wt[k].name, dpk_dtype_name((int)f->tensors[op->wt[k]].dtype),
                   dpk_plan_shape_text(&w, shape, sizeof shape));
        }
        print_attributes(op, info);
        if (s)
            printf(" -> %s  %.3f MFLOP %.3f MB",
                   dpk_plan_shape_text(&s->values[p->n_inputs + i].shape, shape, sizeof shape),
                   s->costs[i].flops / 1e6, s->costs[i].bytes / 1e6);
        const char *made = dpk_file_string(f, p->values[p->n_inputs + i].name);
        printf("  %s%s%s\n", dpk_file_string(f, op->name), *made ? "  => " : "", made);
    }
}

static void print_memory(const struct request *q, const struct dpk_job *job) {
    const uint64_t need = job->plan.arena_bytes + job->host_bytes + job->loop_bytes;
    for (uint32_t i = 0; i < job->plan.n_stages; i++) {
        const struct dpk_plan_stage *s = &job->plan.stages[i];
        const struct dpk_cli_memory m = dpk_cli_stage_memory(&job->plan, s);
        printf("    %-8s %12.3f MB at once", s->program->name, (double)m.alive_bytes / 1e6);
        if (m.n_parts)
            printf("; %u part%s row by row, %d or more at a time", m.n_parts,
                   m.n_parts > 1 ? "s" : "", m.rows);
        if (m.again > 0) printf(", %.1f %% of the work again", 100 * m.again);
        putchar('\n');
    }
    printf("    planned peak memory %.3f MB: arena %.3f MB, host buffers %.3f MB\n",
           (double)need / 1e6, (double)job->plan.arena_bytes / 1e6, (double)job->host_bytes / 1e6);
    if (!q->limit) return;
    printf("    memory limit %.3f MB%s; the least that can be met is %llu bytes\n",
           (double)q->limit / 1e6, need > q->limit ? " is too low" : "",
           (unsigned long long)q->least);
}

static void print_plan(const struct request *q, const struct dpk_cli_plan *c) {
    const struct dpk_job *job = &c->job;
    printf("\n%ux%u, %u picture%s, guidance %g, %u steps:\n", job->params.width, job->params.height,
           job->n_images, job->n_images > 1 ? "s" : "", (double)job->params.guidance,
           job->params.steps);
    for (uint32_t i = 0; i < job->plan.n_stages; i++) {
        struct dpk_cost cost = dpk_cli_stage_cost(&job->plan.stages[i]);
        printf("    %-8s %5u operators %12.3f GFLOP %10.3f GB moved\n",
               job->plan.stages[i].program->name, job->plan.stages[i].program->n_ops,
               cost.flops / 1e9, cost.bytes / 1e9);
    }
    print_memory(q, job);
    const uint64_t device = dpk_job_device_bytes(job);
    if (device)
        printf("    of it on the device, with %.3f MB of weights and workspace: %.3f MB\n",
               (double)(device - job->plan.arena_bytes - job->loop_bytes) / 1e6,
               (double)device / 1e6);
}

static void print_all(const struct request *q, const dpk_model *model,
                      const struct dpk_cli_plan *plan) {
    const struct dpk_file *f = dpk_cli_model_file(model);
    const char *key, *value;
    printf("%s: %.3f MB, version %d, sum %016llx\n\n", q->path, (double)f->file_bytes / 1e6,
           DPK_VERSION, (unsigned long long)dpk_model_sum(model));
    for (size_t i = 0; (key = dpk_model_meta_at(model, i, &value)); i++)
        printf("%-40s ", key), print_text(value), putchar('\n');
    for (size_t i = 0; i < dpk_model_n_tokenizers(model); i++)
        printf("%-40s %zu ids\n", dpk_model_tokenizer_name(model, i), dpk_model_n_ids(model, i));
    print_sizes(f);
    print_programs(f);
    if (q->tensors) print_tensors(f);
    if (q->program)
        print_operators(f, dpk_file_program(f, q->program),
                        plan ? dpk_cli_plan_stage(plan, q->program) : NULL);
    if (plan) print_plan(q, plan);
}

/* ---- For programs ------------------------------------------------------------------------- */

static void json_shape(struct dpk_cli_json *j, const char *key, int rank, const int32_t *dim) {
    dpk_cli_json_open(j, key, '[');
    for (int i = 0; i < rank; i++) dpk_cli_json_number(j, NULL, dim[i]);
    dpk_cli_json_close(j, ']');
}

static void json_value(struct dpk_cli_json *j, const struct dpk_file *f,
                       const struct dpk_value *v) {
    dpk_cli_json_open(j, NULL, '{');
    dpk_cli_json_text(j, "name", dpk_file_string(f, v->name));
    dpk_cli_json_text(j, "type",
                      v->type == DPK_VALUE_ACT   ? "act"
                      : v->type == DPK_VALUE_I32 ? "i32"
                                                 : "f32");
    if (v->rank) json_shape(j, "shape", v->rank, v->dim);
    dpk_cli_json_close(j, '}');
}

static void json_programs(struct dpk_cli_json *j, const struct dpk_file *f) {
    dpk_cli_json_open(j, "programs", '[');
    for (uint32_t i = 0; i < f->n_programs; i++) {
        const struct dpk_program *p = &f->programs[i];
        dpk_cli_json_line(j);
        dpk_cli_json_open(j, NULL, '{');
        dpk_cli_json_text(j, "name", p->name);
        dpk_cli_json_number(j, "operators", p->n_ops);
        dpk_cli_json_open(j, "inputs", '[');
        for (uint32_t v = 0; v < p->n_inputs; v++) json_value(j, f, &p->values[v]);
        dpk_cli_json_close(j, ']');
        dpk_cli_json_open(j, "outputs", '[');
        for (uint32_t v = 0; v < p->n_inputs + p->n_ops; v++)
            if (p->values[v].flags & DPK_VALUE_OUTPUT) json_value(j, f, &p->values[v]);
        dpk_cli_json_close(j, ']');
        dpk_cli_json_close(j, '}');
    }
    dpk_cli_json_close(j, ']');
}

static void json_sizes(struct dpk_cli_json *j, const struct dpk_file *f) {
    uint32_t n = 0;
    struct component *c = count_components(f, &n);
    if (!c) return;
    dpk_cli_json_number(j, "parameters", c[n].n);
    dpk_cli_json_number(j, "weight_bytes", c[n].bytes);
    dpk_cli_json_open(j, "components", '[');
    for (uint32_t i = 0; i < n; i++) {
        char *name = strndup(c[i].name, c[i].length);
        dpk_cli_json_open(j, NULL, '{');
        dpk_cli_json_text(j, "name", name ? name : "");
        dpk_cli_json_number(j, "parameters", c[i].n);
        dpk_cli_json_number(j, "bytes", c[i].bytes);
        dpk_cli_json_number(j, "tensors", c[i].n_tensors);
        dpk_cli_json_close(j, '}');
        free(name);
    }
    dpk_cli_json_close(j, ']');
    free(c);
}

static void json_tensors(struct dpk_cli_json *j, const struct dpk_file *f) {
    dpk_cli_json_open(j, "tensors", '[');
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        const struct dpk_tensor_record *t = &f->tensors[i];
        char hash[24];
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)t->hash);
        dpk_cli_json_line(j);
        dpk_cli_json_open(j, NULL, '{');
        dpk_cli_json_text(j, "name", dpk_file_string(f, t->name));
        dpk_cli_json_text(j, "source", dpk_file_string(f, t->source));
        dpk_cli_json_text(j, "dtype", dpk_dtype_name((int)t->dtype));
        dpk_cli_json_text(j, "layout", dpk_layout_name((int)t->layout));
        json_shape(j, "shape", (int)t->rank, t->dim);
        dpk_cli_json_number(j, "bytes", (double)t->bytes);
        dpk_cli_json_text(j, "hash", hash);
        dpk_cli_json_close(j, '}');
    }
    dpk_cli_json_close(j, ']');
}

static void json_operator(struct dpk_cli_json *j, const struct dpk_file *f,
                          const struct dpk_program *p, uint32_t i, const struct dpk_plan_stage *s) {
    const struct dpk_op *op = &p->ops[i];
    const struct dpk_op_info *info = dpk_op_info_get(op->opcode);
    dpk_cli_json_line(j);
    dpk_cli_json_open(j, NULL, '{');
    dpk_cli_json_number(j, "value", p->n_inputs + i);
    dpk_cli_json_text(j, "operator", info->name);
    dpk_cli_json_text(j, "layer", dpk_file_string(f, op->name));
    dpk_cli_json_open(j, "inputs", '{');
    for (int k = 0; k < info->n_in; k++)
        if (op->in[k] != DPK_NONE) dpk_cli_json_number(j, info->in[k].name, op->in[k]);
    dpk_cli_json_close(j, '}');
    dpk_cli_json_open(j, "weights", '{');
    for (int k = 0; k < info->n_wt; k++)
        if (op->wt[k] != DPK_NONE)
            dpk_cli_json_text(j, info->wt[k].name, dpk_file_string(f, f->tensors[op->wt[k]].name));
    dpk_cli_json_close(j, '}');
    dpk_cli_json_open(j, "attributes", '{');
    for (int k = 0; k < info->n_attr; k++) {
        if (info->attr[k].kind == 'a')
            dpk_cli_json_text(j, info->attr[k].name, dpk_act_name(op->attr[k].i));
        else
            dpk_cli_json_number(j, info->attr[k].name,
                                info->attr[k].kind == 'f' ? (double)op->attr[k].f : op->attr[k].i);
    }
    dpk_cli_json_close(j, '}');
    if (s) {
        const struct dpk_shape *shape = &s->values[p->n_inputs + i].shape;
        json_shape(j, "shape", shape->rank, shape->dim);
        dpk_cli_json_number(j, "flops", s->costs[i].flops);
        dpk_cli_json_number(j, "bytes", s->costs[i].bytes);
    }
    dpk_cli_json_close(j, '}');
}

static void json_plan(struct dpk_cli_json *j, const struct request *q, const struct dpk_job *job) {
    dpk_cli_json_line(j);
    dpk_cli_json_open(j, "plan", '{');
    dpk_cli_json_number(j, "width", job->params.width);
    dpk_cli_json_number(j, "height", job->params.height);
    dpk_cli_json_number(j, "batch", job->n_images);
    dpk_cli_json_number(j, "steps", job->params.steps);
    dpk_cli_json_number(j, "arena_bytes", (double)job->plan.arena_bytes);
    dpk_cli_json_number(j, "live_bytes", (double)job->plan.live_bytes);
    dpk_cli_json_number(j, "host_bytes", (double)job->host_bytes);
    dpk_cli_json_number(j, "peak_bytes",
                        (double)(job->plan.arena_bytes + job->host_bytes + job->loop_bytes));
    if (dpk_job_device_bytes(job))
        dpk_cli_json_number(j, "device_bytes", (double)dpk_job_device_bytes(job));
    if (q->limit) dpk_cli_json_number(j, "limit_bytes", (double)q->limit);
    if (q->limit) dpk_cli_json_number(j, "least_bytes", (double)q->least);
    dpk_cli_json_open(j, "stages", '[');
    for (uint32_t i = 0; i < job->plan.n_stages; i++) {
        struct dpk_cost cost = dpk_cli_stage_cost(&job->plan.stages[i]);
        dpk_cli_json_open(j, NULL, '{');
        dpk_cli_json_text(j, "program", job->plan.stages[i].program->name);
        dpk_cli_json_number(j, "operators", job->plan.stages[i].program->n_ops);
        dpk_cli_json_number(j, "flops", cost.flops);
        dpk_cli_json_number(j, "bytes", cost.bytes);
        const struct dpk_cli_memory m = dpk_cli_stage_memory(&job->plan, &job->plan.stages[i]);
        dpk_cli_json_number(j, "alive_bytes", (double)m.alive_bytes);
        dpk_cli_json_number(j, "parts_by_rows", m.n_parts);
        dpk_cli_json_number(j, "rows", m.rows);
        dpk_cli_json_number(j, "work_again", m.again);
        dpk_cli_json_close(j, '}');
    }
    dpk_cli_json_close(j, ']');
    dpk_cli_json_close(j, '}');
}

static void json_all(const struct request *q, const dpk_model *model,
                     const struct dpk_cli_plan *plan) {
    const struct dpk_file *f = dpk_cli_model_file(model);
    struct dpk_cli_json j = {stdout, false};
    const char *key, *value;
    char sum[24];
    snprintf(sum, sizeof sum, "%016llx", (unsigned long long)dpk_model_sum(model));
    dpk_cli_json_open(&j, NULL, '{');
    dpk_cli_json_text(&j, "file", q->path);
    dpk_cli_json_number(&j, "bytes", (double)f->file_bytes);
    dpk_cli_json_number(&j, "version", DPK_VERSION);
    dpk_cli_json_text(&j, "sum", sum);
    dpk_cli_json_line(&j);
    dpk_cli_json_open(&j, "metadata", '{');
    for (size_t i = 0; (key = dpk_model_meta_at(model, i, &value)); i++)
        dpk_cli_json_text(&j, key, value);
    dpk_cli_json_close(&j, '}');
    dpk_cli_json_open(&j, "tokenizers", '{');
    for (size_t i = 0; i < dpk_model_n_tokenizers(model); i++)
        dpk_cli_json_number(&j, dpk_model_tokenizer_name(model, i),
                            (double)dpk_model_n_ids(model, i));
    dpk_cli_json_close(&j, '}');
    json_sizes(&j, f);
    json_programs(&j, f);
    if (q->tensors) json_tensors(&j, f);
    if (q->program) {
        const struct dpk_program *p = dpk_file_program(f, q->program);
        dpk_cli_json_open(&j, "operators", '[');
        for (uint32_t i = 0; i < p->n_ops; i++)
            json_operator(&j, f, p, i, plan ? dpk_cli_plan_stage(plan, q->program) : NULL);
        dpk_cli_json_close(&j, ']');
    }
    if (plan) json_plan(&j, q, &plan->job);
    dpk_cli_json_close(&j, '}');
    dpk_cli_json_line(&j);
}

/* ---- Command ------------------------------------------------------------------------------ */

static int inspect(struct request *q, dpk_error *err) {
    int rc = DPK_OK;
    dpk_model *model = NULL;
    dpk_session *session = NULL;
    struct dpk_cli_plan plan = {0}, *planned = NULL;
    DPK_TRY(dpk_model_open(&model, q->path, err));
    if (q->program && !dpk_file_program(dpk_cli_model_file(model), q->program))
        DPK_FAIL(err, DPK_EARG, "%s: no program %.40s", q->path, q->program);
    if (q->width || q->height || q->batch || q->limit || q->backend) {
        dpk_params params = dpk_params_default();
        dpk_session_options options = dpk_session_options_default();
        options.memory_limit = q->limit;
        params.width = q->width, params.height = q->height;
        if (q->batch) params.images_per_prompt = q->batch;
        options.backend = q->backend;
        DPK_TRY(dpk_session_create(&session, model, &options, err));
        DPK_TRY(dpk_cli_plan_make(&plan, session, &params, q->program, err));
        if (q->limit) DPK_TRY(dpk_cli_plan_least(session, &params, &q->least, err));
        planned = &plan;
    }
    if (q->json) json_all(q, model, planned);
    else print_all(q, model, planned);
done:
    dpk_cli_plan_free(&plan);
    dpk_session_free(session);
    dpk_model_free(model);
    return rc;
}

int dpk_cli_inspect(int argc, char **argv) {
    struct request q = {0};
    const char *const names[] = {"MODEL.dpk"};
    const struct dpk_cli_option options[] = {
        {"--tensors", NULL, CLI_FLAG, &q.tensors},     {"--program", NULL, CLI_TEXT, &q.program},
        {"--json", NULL, CLI_FLAG, &q.json},           {"--width", NULL, CLI_COUNT, &q.width},
        {"--height", NULL, CLI_COUNT, &q.height},      {"--batch", NULL, CLI_COUNT, &q.batch},
        {"--memory-limit", NULL, CLI_BYTES, &q.limit}, {"--backend", NULL, CLI_TEXT, &q.backend},
    };
    dpk_error err;
    const int parsed = dpk_cli_parse(argc, argv, options, CLI_N(options), names, &q.path, 1);
    if (parsed) return parsed;
    if (inspect(&q, &err)) return dpk_cli_fail(&err);
    return dpk_cli_flush();
}
