/* Operators that only move rows of bytes: eos_pool, select, concat, unpatchify. */
#include "ops_cpu.h"
#include "scalar.h"

#include "../../formats/fail.h"

enum { TASK_BYTES = 65536 };

/* The common frame: rows 0 .. rows-1, cut into tasks, each moved by copy(). */
struct move_job {
    void (*copy)(const struct move_job *job, int64_t row);
    const struct dpk_call *call;
    int64_t rows, rows_each;
    size_t row_bytes;
    int64_t p, w; /* unpatchify: side of a patch, patches in a row of the map */
};

static void move_task(void *arg, int task, int worker) {
    const struct move_job *job = arg;
    int64_t r0 = task * job->rows_each, r1 = dpk_min_i64(r0 + job->rows_each, job->rows);
    (void)worker;
    for (int64_t r = r0; r < r1; r++) job->copy(job, r);
}

static int move(struct dpk_cpu *cpu, struct move_job *job, dpk_error *err) {
    job->rows_each = dpk_task_size(job->rows, (int64_t)job->row_bytes, TASK_BYTES);
    return dpk_run_tasks(cpu, dpk_task_count(job->rows, job->rows_each), move_task, job, err);
}

static size_t bytes_of(const struct dpk_tensor *t) {
    return (size_t)dpk_shape_count(&t->shape) * dpk_elem_bytes(t->dtype);
}

static size_t row_bytes_of(const struct dpk_tensor *t) {
    return (size_t)t->shape.dim[t->shape.rank - 1] * dpk_elem_bytes(t->dtype);
}

#define NO_SCRATCH(name)                                                                           \
    size_t dpk_cpu_scratch_##name(const struct dpk_cpu *cpu, const struct dpk_call *call) {        \
        (void)cpu, (void)call;                                                                     \
        return 0;                                                                                  \
    }

/* ---- eos_pool ------------------------------------------------------------------------------- */

const uint32_t dpk_cpu_in_place_eos_pool = 0;
NO_SCRATCH(eos_pool)

static void eos_pool_row(const struct move_job *job, int64_t b) {
    const struct dpk_call *call = job->call;
    const struct dpk_tensor *x = &call->in[DPK_IN(eos_pool, x)];
    int64_t n = x->shape.dim[1], at = 0;
    const int32_t *ids = (const int32_t *)call->in[DPK_IN(eos_pool, ids)].data + b * n;
    int32_t eos = DPK_ATTRS(eos_pool, call->op)->eos_id;
    for (int64_t i = 0; i < n; i++) {
        if (eos == -1 ? ids[i] > ids[at] : ids[i] == eos) {
            at = i;
            if (eos != -1) break;
        }
    }
    memcpy((char *)call->out.data + (size_t)b * job->row_bytes,
           (const char *)x->data + (size_t)(b * n + at) * job->row_bytes, job->row_bytes);
}

int dpk_cpu_run_eos_pool(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *x = &call->in[DPK_IN(eos_pool, x)];
    struct move_job job = {.copy = eos_pool_row, .call = call, .rows = x->shape.dim[0]};
    job.row_bytes = row_bytes_of(x);
    return move(cpu, &job, err);
}

/* ---- select --------------------------------------------------------------------------------- */

const uint32_t dpk_cpu_in_place_select = 0;
NO_SCRATCH(select)

int dpk_cpu_run_select(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_tensor *x = &call->in[DPK_IN(select, x)];
    int32_t index = *(const int32_t *)call->in[DPK_IN(select, index)].data;
    int rc = DPK_OK;
    (void)cpu;
    if (index < 0 || index >= x->shape.dim[0]) {
        DPK_FAIL(err, DPK_EARG, "select: index %d, want 0 to %d", index, x->shape.dim[0] - 1);
    }
    size_t n = bytes_of(x) / (size_t)x->shape.dim[0];
    memcpy(call->out.data, (const char *)x->data + (size_t)index * n, n);
done:
    return rc;
}

/* ---- concat --------------------------------------------------------------------------------- */

const uint32_t dpk_cpu_in_place_concat = 0;
NO_SCRATCH(concat)

static void concat_row(const struct move_job *job, int64_t r) {
    const struct dpk_tensor *a = &job->call->in[DPK_IN(concat, a)];
    const struct dpk_tensor *c = &job->call->in[DPK_IN(concat, c)];
    size_t n = row_bytes_of(a), m = row_bytes_of(c);
    char *y = (char *)job->call->out.data + (size_t)r * job->row_bytes;
    memcpy(y, (const char *)a->data + (size_t)r * n, n);
    memcpy(y + n, (const char *)c->data + (size_t)r * m, m);
}

int dpk_cpu_run_concat(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    struct move_job job = {.copy = concat_row, .call = call};
    job.row_bytes = row_bytes_of(&call->out);
    job.rows = (int64_t)(bytes_of(&call->out) / job.row_bytes);
    return move(cpu, &job, err);
}

/* ---- unpatchify ------------------------------------------------------------------------------ */

const uint32_t dpk_cpu_in_place_unpatchify = 0;
NO_SCRATCH(unpatchify)

/* One row of patches of one row of pixels: y[b, h*p + i, w*p + j, c] = x[b, h, w, (i*p + j)*C + c].
 */
static void unpatchify_row(const struct move_job *job, int64_t r) {
    int64_t map_row = r / job->p, i = r % job->p;
    size_t run = job->row_bytes / (size_t)job->w; /* p * C elements */
    const char *x = job->call->in[DPK_IN(unpatchify, x)].data;
    char *y = (char *)job->call->out.data + (size_t)r * job->row_bytes;
    for (int64_t w = 0; w < job->w; w++) {
        size_t patch = (size_t)(map_row * job->w + w);
        memcpy(y + (size_t)w * run, x + (patch * (size_t)job->p + (size_t)i) * run, run);
    }
}

int dpk_cpu_run_unpatchify(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_shape *x = &call->in[DPK_IN(unpatchify, x)].shape;
    struct move_job job = {.copy = unpatchify_row, .call = call};
    job.p = DPK_ATTRS(unpatchify, call->op)->patch;
    job.w = x->dim[2];
    job.rows = (int64_t)x->dim[0] * x->dim[1] * job.p;
    job.row_bytes = bytes_of(&call->out) / (size_t)job.rows;
    return move(cpu, &job, err);
}
