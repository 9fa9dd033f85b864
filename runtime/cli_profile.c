/* Profiles of `diffpak bench`. */
#include "cli_profile.h"

#include "../formats/fail.h"
#include "../kernels/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

enum { TOP = 20 }; /* layers listed as text */

int dpk_cli_threads(const struct dpk_backend *backend) {
    if (strcmp(backend->name, "cpu")) return 0;
    return dpk_pool_workers(((const struct dpk_cpu *)backend)->pool);
}

static double rate(double amount, double seconds) {
    return seconds > 0 ? amount / seconds / 1e9 : 0;
}

/* ---- Operators ---------------------------------------------------------------------------- */

static bool is_dynamic(const struct dpk_weight *w) {
    return w->shape.rank && w->dtype == DPK_S8 && w->flags & DPK_TENSOR_DYNAMIC;
}

/* An operator is held against the peak of what it multiplies with. */
static double operator_peak(const struct dpk_peaks *peaks, const struct dpk_call *call) {
    if (is_dynamic(&call->wt[0])) return peaks->s8;
    return call->in[0].dtype == DPK_BF16 ? peaks->bf16 : peaks->f32;
}

static const char *weight_name(const struct dpk_weight *w) {
    return is_dynamic(w) ? "w8a8" : dpk_dtype_name(w->dtype);
}

/* What sets the kernel: types, form, for attention the sizes that decide its speed. */
static void name_kernel(const struct dpk_call *call, char *name, size_t size) {
    const struct dpk_op *op = call->op;
    const char *kind = dpk_op_info_get(op->opcode)->name, *x = dpk_dtype_name(call->in[0].dtype);
    const struct dpk_weight *w = &call->wt[0];
    if (op->opcode == DPK_OP_linear) {
        snprintf(name, size, "%s %s x %s%s", kind, x, weight_name(w),
                 DPK_ATTRS(linear, op)->glu ? " glu" : "");
    } else if (op->opcode == DPK_OP_conv2d) {
        const struct dpk_conv2d_attrs *a = DPK_ATTRS(conv2d, op);
        snprintf(name, size, "%s %s x %s %dx%d%s%s", kind, x, weight_name(w), w->shape.dim[1],
                 w->shape.dim[2], a->stride > 1 ? " down" : "", a->upsample ? " up" : "");
    } else if (op->opcode == DPK_OP_attention) {
        int64_t n[2];
        for (int i = 0; i < 2; i++) {
            const struct dpk_shape *s = &call->in[i].shape;
            n[i] = dpk_shape_count(s) / s->dim[0] / s->dim[s->rank - 1];
        }
        snprintf(name, size, "%s %s %lldx%lld d %d", kind, x, (long long)n[0], (long long)n[1],
                 DPK_ATTRS(attention, op)->head_dim);
    } else {
        snprintf(name, size, "%s %s", kind, x);
    }
}

struct dpk_cli_total dpk_cli_profile_operator(const struct dpk_cli_profile *p, uint32_t op) {
    const struct dpk_plan_stage *s = p->stage;
    const struct dpk_call *call = &s->calls[op];
    double peak = operator_peak(&p->peaks, call);
    struct dpk_cli_total t = {.calls = 1, .seconds = p->seconds[op], .cost = s->costs[op]};
    double moving = p->peaks.bytes > 0 ? t.cost.bytes / p->peaks.bytes : 0;
    t.ideal = peak > 0 ? t.cost.flops / peak : 0;
    if (moving > t.ideal) t.ideal = moving;
    snprintf(t.name, sizeof t.name, "%s", dpk_op_info_get(call->op->opcode)->name);
    return t;
}

/* ---- Rows --------------------------------------------------------------------------------- */

void dpk_cli_total_print(const struct dpk_cli_total *t, double all) {
    printf("    %-28s %5u %10.3f ms %8.1f GFLOP/s %7.1f GB/s", t->name, t->calls, t->seconds * 1e3,
           rate(t->cost.flops, t->seconds), rate(t->cost.bytes, t->seconds));
    if (t->ideal > 0) printf(" %6.2f of peak", t->ideal / t->seconds);
    else printf(" %14s", "");
    printf(" %5.1f %%", all > 0 ? 100 * t->seconds / all : 0);
}

void dpk_cli_total_json(struct dpk_cli_json *j, const struct dpk_cli_total *t) {
    dpk_cli_json_line(j);
    dpk_cli_json_open(j, NULL, '{');
    dpk_cli_json_text(j, "name", t->name);
    dpk_cli_json_number(j, "calls", t->calls);
    dpk_cli_json_number(j, "ms", t->seconds * 1e3);
    dpk_cli_json_number(j, "gflops", rate(t->cost.flops, t->seconds));
    dpk_cli_json_number(j, "gbps", rate(t->cost.bytes, t->seconds));
    if (t->ideal > 0) dpk_cli_json_number(j, "of_peak", t->ideal / t->seconds);
}

static int slower(const void *a, const void *b) {
    double x = ((const struct dpk_cli_total *)a)->seconds;
    double y = ((const struct dpk_cli_total *)b)->seconds;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Sum up the rows of the same name, slowest first. rows: [n_ops]; returns how many there are. */
static uint32_t sum_rows(const struct dpk_cli_profile *p, bool kernels,
                         struct dpk_cli_total *rows) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->stage->program->n_ops; i++) {
        struct dpk_cli_total one = dpk_cli_profile_operator(p, i);
        uint32_t at = 0;
        if (kernels) name_kernel(&p->stage->calls[i], one.name, sizeof one.name);
        while (at < n && strcmp(rows[at].name, one.name)) at++;
        if (at == n) {
            rows[n++] = one;
            continue;
        }
        rows[at].calls++;
        rows[at].seconds += one.seconds;
        rows[at].ideal += one.ideal;
        rows[at].cost.flops += one.cost.flops;
        rows[at].cost.bytes += one.cost.bytes;
    }
    qsort(rows, n, sizeof *rows, slower);
    return n;
}

/* The slowest operators, slowest first. Returns how many. */
static uint32_t find_slowest(const struct dpk_cli_profile *p, uint32_t *top) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->stage->program->n_ops; i++) {
        uint32_t at = n;
        while (at > 0 && p->seconds[top[at - 1]] < p->seconds[i]) at--;
        if (at == TOP) continue;
        if (n < TOP) n++;
        memmove(top + at + 1, top + at, (n - 1 - at) * sizeof *top);
        top[at] = i;
    }
    return n;
}

/* ---- Output ------------------------------------------------------------------------------- */

int dpk_cli_profile_print(const struct dpk_cli_profile *p, dpk_error *err) {
    int rc = DPK_OK;
    static const char *const titles[] = {"  by operator", "  by kernel"};
    const struct dpk_program *program = p->stage->program;
    uint32_t top[TOP], n = find_slowest(p, top);
    double all = 0;
    struct dpk_cli_total *rows = calloc(program->n_ops + 1, sizeof *rows);
    if (!rows) DPK_FAIL(err, DPK_ENOMEM, "no memory for a profile");
    for (uint32_t i = 0; i < program->n_ops; i++) all += p->seconds[i];
    for (int kernels = 0; kernels < 2; kernels++) {
        uint32_t n_rows = sum_rows(p, kernels, rows);
        puts(titles[kernels]);
        for (uint32_t i = 0; i < n_rows; i++) {
            dpk_cli_total_print(&rows[i], all);
            putchar('\n');
        }
    }
    puts("  slowest operators");
    for (uint32_t i = 0; i < n; i++) {
        char shape[64];
        struct dpk_cli_total one = dpk_cli_profile_operator(p, top[i]);
        dpk_cli_total_print(&one, all);
        printf("  %s %s\n", dpk_file_string(p->file, program->ops[top[i]].name),
               dpk_plan_shape_text(&p->stage->values[program->n_inputs + top[i]].shape, shape,
                                   sizeof shape));
    }
done:
    free(rows);
    return rc;
}

int dpk_cli_profile_json(const struct dpk_cli_profile *p, struct dpk_cli_json *j, dpk_error *err) {
    int rc = DPK_OK;
    static const char *const titles[] = {"kinds", "kernels"};
    const struct dpk_program *program = p->stage->program;
    struct dpk_cli_total *rows = calloc(program->n_ops + 1, sizeof *rows);
    if (!rows) DPK_FAIL(err, DPK_ENOMEM, "no memory for a profile");
    for (int kernels = 0; kernels < 2; kernels++) {
        uint32_t n_rows = sum_rows(p, kernels, rows);
        dpk_cli_json_open(j, titles[kernels], '[');
        for (uint32_t i = 0; i < n_rows; i++) {
            dpk_cli_total_json(j, &rows[i]);
            dpk_cli_json_close(j, '}');
        }
        dpk_cli_json_close(j, ']');
    }
    dpk_cli_json_open(j, "operators", '[');
    for (uint32_t i = 0; i < program->n_ops; i++) {
        struct dpk_cli_total one = dpk_cli_profile_operator(p, i);
        dpk_cli_total_json(j, &one);
        dpk_cli_json_text(j, "layer", dpk_file_string(p->file, program->ops[i].name));
        dpk_cli_json_close(j, '}');
    }
    dpk_cli_json_close(j, ']');
done:
    free(rows);
    return rc;
}
