/* Layer and root-mean-square normalisation: rows in tasks of fixed size, none across two images
 * (each has its own modulation). */
#include "ops_cpu.h"
#include "scalar.h"

enum { TASK_ELEMENTS = 32768 };

const uint32_t dpk_cpu_in_place_layer_norm = 1u << DPK_IN(layer_norm, x);

size_t dpk_cpu_scratch_layer_norm(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    (void)cpu, (void)call;
    return 0;
}

struct layer_job {
    const struct dpk_kernels *k;
    const struct dpk_call *call;
    int64_t rows, each; /* rows of an image, rows of a task */
    int64_t tasks;      /* of an image */
};

static void layer_task(void *arg, int task, int worker) {
    const struct layer_job *job = arg;
    const struct dpk_call *call = job->call;
    const struct dpk_layer_norm_attrs *at = DPK_ATTRS(layer_norm, call->op);
    const struct dpk_tensor *x = &call->in[DPK_IN(layer_norm, x)];
    const struct dpk_tensor *mod = &call->in[DPK_IN(layer_norm, mod)];
    int64_t b = task / job->tasks, r = task % job->tasks * job->each;
    int32_t n = x->shape.dim[x->shape.rank - 1];
    size_t size = dpk_elem_bytes(x->dtype), offset = (size_t)(b * job->rows + r) * (size_t)n * size;
    (void)worker;
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
    job->k->layer_norm(&p);
}

int dpk_cpu_run_layer_norm(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_shape *x = &call->in[DPK_IN(layer_norm, x)].shape;
    int32_t n = x->dim[x->rank - 1], images = x->rank > 1 ? x->dim[0] : 1;
    struct layer_job job = {.k = cpu->k, .call = call};
    job.rows = dpk_shape_count(x) / n / images;
    job.each = dpk_task_size(job.rows, n, TASK_ELEMENTS);
    job.tasks = dpk_task_count(job.rows, job.each);
    return dpk_run_tasks(cpu, images * job.tasks, layer_task, &job, err);
}
