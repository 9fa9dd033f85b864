/* Elementwise operators: outer_add, slice, add. */
#include "ops_cpu.h"
#include "scalar.h"

enum { TASK_ELEMENTS = 16384 }; /* of a task: small enough to stay in the caches of its core */

/* ---- outer_add: y[t, b] = act(a[t] + c[b]) -------------------------------------------------- */

const uint32_t dpk_cpu_in_place_outer_add = 0;

size_t dpk_cpu_scratch_outer_add(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    (void)cpu, (void)call;
    return 0;
}

struct outer_job {
    const struct dpk_kernels *k;
    const struct dpk_call *call;
    int act;
};

static void outer_task(void *arg, int task, int worker) {
    const struct outer_job *job = arg;
    const struct dpk_call *call = job->call;
    const struct dpk_tensor *a = &call->in[DPK_IN(outer_add, a)];
    const struct dpk_tensor *c = &call->in[DPK_IN(outer_add, c)];
    size_t n = (size_t)a->shape.dim[a->shape.rank - 1], size = dpk_elem_bytes(a->dtype);
    size_t rows = (size_t)(dpk_shape_count(&c->shape) / (int64_t)n), t = (size_t)task;
    (void)worker;
    for (size_t b = 0; b < rows; b++) {
        job->k->add((char *)call->out.data + (t * rows + b) * n * size,
                    (const char *)a->data + t * n * size, (const char *)c->data + b * n * size,
                    a->dtype, a->dtype, n, job->act);
    }
}

int dpk_cpu_run_outer_add(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    struct outer_job job = {cpu->k, call, DPK_ATTRS(outer_add, call->op)->act};
    const struct dpk_shape *a = &call->in[DPK_IN(outer_add, a)].shape;
    int64_t n_tasks = dpk_shape_count(a) / a->dim[a->rank - 1];
    return dpk_run_tasks(cpu, n_tasks, outer_task, &job, err);
}

/* ---- slice: y = clamp(mul * x[..., off : off + count] + add, lo, hi), also a change of type -- */

const uint32_t dpk_cpu_in_place_slice = 0;

size_t dpk_cpu_scratch_slice(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    (void)cpu, (void)call;
    return 0;
}

struct slice_job {
    const struct dpk_kernels *k;
    struct dpk_affine affine; /* n: elements of a row */
    int64_t rows, rows_each, stride, off;
};

static void slice_task(void *arg, int task, int worker) {
    const struct slice_job *job = arg;
    int64_t r0 = task * job->rows_each, r1 = dpk_min_i64(r0 + job->rows_each, job->rows);
    size_t x_size = dpk_elem_bytes(job->affine.x_dtype),
           y_size = dpk_elem_bytes(job->affine.y_dtype);
    (void)worker;
    for (int64_t r = r0; r < r1; r++) {
        struct dpk_affine row = job->affine;
        row.x = (const char *)row.x + (size_t)(r * job->stride + job->off) * x_size;
        row.y = (char *)row.y + (size_t)r * row.n * y_size;
        job->k->affine(&row);
    }
}

int dpk_cpu_run_slice(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_slice_attrs *at = DPK_ATTRS(slice, call->op);
    const struct dpk_tensor *x = &call->in[DPK_IN(slice, x)];
    int64_t total = dpk_shape_count(&x->shape), width = x->shape.dim[x->shape.rank - 1];
    int64_t n = call->out.shape.dim[call->out.shape.rank - 1];
    struct slice_job job = {
        .k = cpu->k,
        .affine = {call->out.data, x->data, (size_t)n, call->out.dtype, x->dtype, at->mul, at->add,
                   at->lo, at->hi},
        .rows = total / width,
        .stride = width,
        .off = at->off,
    };
    if (n == width) { /* all channels: any cut into pieces will do */
        int64_t piece = 1024;
        while (piece > 1 && total % piece) piece /= 2;
        if (piece < 64) piece = total <= TASK_ELEMENTS ? total : width;
        job.affine.n = (size_t)piece;
        job.rows = total / piece;
        job.stride = piece;
    }
    job.rows_each = dpk_task_size(job.rows, (int64_t)job.affine.n, TASK_ELEMENTS);
    int64_t n_tasks = dpk_task_count(job.rows, job.rows_each);
    return dpk_run_tasks(cpu, n_tasks, slice_task, &job, err);
}

/* ---- add: y = a + c, c repeated over a's first dimensions ------------------------------------ */

const uint32_t dpk_cpu_in_place_add = 1u << DPK_IN(add, a);

size_t dpk_cpu_scratch_add(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    (void)cpu, (void)call;
    return 0;
}

struct add_job {
    const struct dpk_kernels *k;
    char *y;
    const char *a, *c;
    int dtype, c_dtype;
    int64_t n, period, each;
};

static void add_task(void *arg, int task, int worker) {
    const struct add_job *job = arg;
    int64_t i = task * job->each, end = dpk_min_i64(i + job->each, job->n);
    size_t size = dpk_elem_bytes(job->dtype), c_size = dpk_elem_bytes(job->c_dtype);
    (void)worker;
    while (i < end) {
        int64_t at = i % job->period, n = dpk_min_i64(end - i, job->period - at);
        job->k->add(job->y + (size_t)i * size, job->a + (size_t)i * size,
                    job->c + (size_t)at * c_size, job->dtype, job->c_dtype, (size_t)n,
                    DPK_ACT_NONE);
        i += n;
    }
}

int dpk_cpu_run_add(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *a = &call->in[DPK_IN(add, a)], *c = &call->in[DPK_IN(add, c)];
    const struct dpk_weight *table = &call->wt[DPK_WT(add, table)];
    bool by_table = c->shape.rank == 0;
    int64_t n = dpk_shape_count(&a->shape);
    struct add_job job = {
        .k = cpu->k,
        .y = call->out.data,
        .a = a->data,
        .c = by_table ? table->data : c->data,
        .dtype = a->dtype,
        .c_dtype = by_table ? DPK_F32 : c->dtype,
        .n = n,
        .period = dpk_shape_count(by_table ? &table->shape : &c->shape),
        .each = dpk_task_size(n, 1, TASK_ELEMENTS),
    };
    return dpk_run_tasks(cpu, dpk_task_count(n, job.each), add_task, &job, err);
}
