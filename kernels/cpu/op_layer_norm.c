/* Layer and root-mean-square normalisation: rows in tasks of fixed size, none across two images
 * (each has its own modulation). A row that is to be quantized is made in the worker's scratch. */
#include "ops_cpu.h"
#include "rows8.h"
#include "scalar.h"

enum { TASK_ELEMENTS = 32768 };

const uint32_t dpk_cpu_in_place_layer_norm = 1u << DPK_IN(layer_norm, x);

/* Bytes of a worker's scratch. */
static size_t scratch_row(const struct dpk_tensor *out) {
    size_t n = (size_t)out->shape.dim[out->shape.rank - 1] * dpk_elem_bytes(out->dtype);
    return (n + 63) / 64 * 64;
}

size_t dpk_cpu_scratch_layer_norm(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    if (!call->out.rows8) return 0;
    return scratch_row(&call->out) * (size_t)dpk_pool_workers(cpu->pool);
}

struct layer_job {
    const struct dpk_cpu *cpu;
    const struct dpk_call *call;
    int64_t rows, each; /* rows of an image, rows of a task */
    int64_t tasks;      /* of an image */
};

/* Rows of p, one after the other in the worker's scratch, to quantized rows from number `first`. */
static void layer_rows8(const struct layer_job *job, struct dpk_layer_norm p, int64_t first,
                        int worker) {
    const struct dpk_tensor *out = &job->call->out;
    const struct dpk_rows8 rows = dpk_rows8_of(job->cpu, out->dtype, out->rows8);
    size_t n = (size_t)p.n, stride = dpk_rows8_stride(&rows, n);
    char *to = (char *)out->data + (size_t)first * stride;
    int32_t count = p.rows;
    p.y = (char *)job->call->scratch + (size_t)worker * scratch_row(out);
    p.rows = 1;
    for (int32_t r = 0; r < count; r++, to += stride) {
        job->cpu->k->layer_norm(&p);
        dpk_rows8_put(&rows, to, p.y, n);
        p.x = (const char *)p.x + n * dpk_elem_bytes(p.dtype);
    }
}

static void layer_task(void *arg, int task, int worker) {
    const struct layer_job *job = arg;
    const struct dpk_call *call = job->call;
    const struct dpk_layer_norm_attrs *at = DPK_ATTRS(layer_norm, call->op);
    const struct dpk_tensor *x = &call->in[DPK_IN(layer_norm, x)];
    const struct dpk_tensor *mod = &call->in[DPK_IN(layer_norm, mod)];
    int64_t b = task / job->tasks, r = task % job->tasks * job->each;
    int32_t n = x->shape.dim[x->shape.rank - 1];
    size_t size = dpk_elem_bytes(x->dtype), offset = (size_t)(b * job->rows + r) * (size_t)n * size;
    struct dpk_layer_norm p = {
        .y = (char *)call->out.data + offset,
        .x = (const char *)x->data + offset,
        .gamma = call->wt[DPK_WT(layer_norm, gamma)].data,
        .beta = call->wt[DPK_WT(layer_norm, beta)].data,
        .dtype = x->dtype,
        .rows = (int32_t)dpk_min_i64(job->each, job->rows - r),
        .n = n,
        .rms = at->rms,
        .eps = at->eps,
    };
    if (call->wt[DPK_WT(layer_norm, gamma)].shape.rank == 0) p.gamma = NULL;
    if (call->wt[DPK_WT(layer_norm, beta)].shape.rank == 0 || at->rms) p.beta = NULL;
    if (mod->shape.rank > 0) {
        int64_t row = mod->shape.dim[0] == 1 ? 0 : b * mod->shape.dim[mod->shape.rank - 1];
        p.scale = (const char *)mod->data + (size_t)(row + at->scale_off) * size;
        p.shift = (const char *)mod->data + (size_t)(row + at->shift_off) * size;
    }
    if (call->out.rows8) layer_rows8(job, p, b * job->rows + r, worker);
    else job->cpu->k->layer_norm(&p);
}

int dpk_cpu_run_layer_norm(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_shape *x = &call->in[DPK_IN(layer_norm, x)].shape;
    int32_t n = x->dim[x->rank - 1], images = x->rank > 1 ? x->dim[0] : 1;
    struct layer_job job = {.cpu = cpu, .call = call};
    job.rows = dpk_shape_count(x) / n / images;
    job.each = dpk_task_size(job.rows, n, TASK_ELEMENTS);
    job.tasks = dpk_task_count(job.rows, job.each);
    return dpk_run_tasks(cpu, images * job.tasks, layer_task, &job, err);
}
