/* Positions and numbers as vectors: sinusoid, pos_embed_2d, relative_bias. The roundings to float32
 * along the way are those of the reference implementations (diffusers, transformers), which matter
 * where an angle is large; functions are taken in double. */
#include "ops_cpu.h"
#include "scalar.h"

#include <math.h>

/* ---- sinusoid: get_timestep_embedding of diffusers ------------------------------------------ */

const uint32_t dpk_cpu_in_place_sinusoid = 0;

size_t dpk_cpu_scratch_sinusoid(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    (void)cpu, (void)call;
    return 0;
}

static void sinusoid_task(void *arg, int i, int worker) {
    const struct dpk_call *call = arg;
    const struct dpk_sinusoid_attrs *at = DPK_ATTRS(sinusoid, call->op);
    float t = ((const float *)call->in[DPK_IN(sinusoid, t)].data)[i];
    size_t half = (size_t)at->dim / 2, y = (size_t)i * (size_t)at->dim;
    size_t sines = at->flip ? y + half : y, cosines = at->flip ? y : y + half;
    float log_period = (float)-log((double)at->max_period);
    float steps = (float)((double)half - (double)at->freq_shift);
    (void)worker;
    for (size_t j = 0; j < half; j++) {
        float exponent = log_period * (float)j / steps;
        float angle = t * (float)exp((double)exponent);
        dpk_elem_put(call->out.data, call->out.dtype, sines + j, (float)sin((double)angle));
        dpk_elem_put(call->out.data, call->out.dtype, cosines + j, (float)cos((double)angle));
    }
}

int dpk_cpu_run_sinusoid(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    struct dpk_call copy = *call;
    int64_t n = dpk_shape_count(&call->in[DPK_IN(sinusoid, t)].shape);
    return dpk_run_tasks(cpu, n, sinusoid_task, &copy, err);
}

/* ---- pos_embed_2d: get_2d_sincos_pos_embed of diffusers ------------------------------------- */

const uint32_t dpk_cpu_in_place_pos_embed_2d = 1u << DPK_IN(pos_embed_2d, x);

struct pos_job {
    const struct dpk_kernels *k;
    const struct dpk_call *call;
    float *columns, *rows; /* [W][C/2], [H][C/2] */
};

/* Scratch holds the two tables, which x's map adds up pixel by pixel. */
size_t dpk_cpu_scratch_pos_embed_2d(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    const struct dpk_shape *x = &call->in[DPK_IN(pos_embed_2d, x)].shape;
    (void)cpu;
    return ((size_t)x->dim[1] + (size_t)x->dim[2]) * (size_t)(x->dim[3] / 2) * sizeof(float);
}

/* Task i < W is column i, then rows follow. */
static void pos_table_task(void *arg, int task, int worker) {
    const struct pos_job *job = arg;
    const struct dpk_pos_embed_2d_attrs *at = DPK_ATTRS(pos_embed_2d, job->call->op);
    const struct dpk_shape *x = &job->call->in[DPK_IN(pos_embed_2d, x)].shape;
    bool column = task < x->dim[2];
    int index = column ? task : task - x->dim[2], size = x->dim[column ? 2 : 1];
    int half = x->dim[3] / 2, quarter = half / 2;
    float *y = (column ? job->columns : job->rows) + (size_t)index * (size_t)half;
    float p = (float)index / (float)((double)size / (double)at->base) / at->interpolation;
    (void)worker;
    for (int i = 0; i < quarter; i++) {
        double angle = (double)p * (1.0 / pow(10000.0, (double)i / (double)quarter));
        y[i] = (float)sin(angle);
        y[quarter + i] = (float)cos(angle);
    }
}

static void pos_add_task(void *arg, int task, int worker) {
    const struct pos_job *job = arg;
    const struct dpk_tensor *x = &job->call->in[DPK_IN(pos_embed_2d, x)];
    int h = x->shape.dim[1], w = x->shape.dim[2];
    size_t half = (size_t)x->shape.dim[3] / 2, size = dpk_elem_bytes(x->dtype);
    const float *row = job->rows + (size_t)(task % h) * half;
    (void)worker;
    for (int i = 0; i < w; i++) {
        size_t at = ((size_t)task * (size_t)w + (size_t)i) * 2 * half * size;
        const char *from = (const char *)x->data + at;
        char *to = (char *)job->call->out.data + at;
        job->k->add(to, from, job->columns + (size_t)i * half, x->dtype, DPK_F32, half, 0);
        job->k->add(to + half * size, from + half * size, row, x->dtype, DPK_F32, half, 0);
    }
}

int dpk_cpu_run_pos_embed_2d(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_shape *x = &call->in[DPK_IN(pos_embed_2d, x)].shape;
    struct pos_job job = {.k = cpu->k, .call = call, .columns = call->scratch};
    int64_t lines = (int64_t)x->dim[1] + x->dim[2], rows = (int64_t)x->dim[0] * x->dim[1];
    int rc = DPK_OK;
    job.rows = job.columns + (size_t)x->dim[2] * (size_t)(x->dim[3] / 2);
    DPK_TRY(dpk_run_tasks(cpu, lines, pos_table_task, &job, err));
    DPK_TRY(dpk_run_tasks(cpu, rows, pos_add_task, &job, err));
done:
    return rc;
}

/* ---- relative_bias: T5Attention._relative_position_bucket, bidirectional ----------------------
 */

const uint32_t dpk_cpu_in_place_relative_bias = 0;

/* Scratch: the bucket of every distance key - query, -(L-1) .. L-1. */
size_t dpk_cpu_scratch_relative_bias(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    const struct dpk_shape *ids = &call->in[DPK_IN(relative_bias, ids)].shape;
    (void)cpu;
    return ((size_t)ids->dim[ids->rank - 1] * 2 - 1) * sizeof(int32_t);
}

/* Half of the buckets for each sign; of a half, the lower half is exact, the rest logarithmic up to
 * max_distance. */
static int32_t bucket_of(int32_t distance, int32_t buckets, int32_t max_distance) {
    int32_t half = buckets / 2, exact = half / 2, base = distance > 0 ? half : 0;
    int32_t a = distance < 0 ? -distance : distance;
    if (a < exact) return base + a;
    if (exact == 0) return base;
    float log_range = (float)log((double)max_distance / (double)exact);
    float f = (float)log((double)((float)a / (float)exact)) / log_range * (float)(half - exact);
    if (!(f < (float)(half - exact))) return base + half - 1;
    return base + exact + (int32_t)f;
}

struct bias_job {
    const struct dpk_call *call;
    int32_t *bucket; /* [2L - 1], of distance d at d + L - 1 */
    int length, heads;
};

static void bias_task(void *arg, int task, int worker) {
    const struct bias_job *job = arg;
    const struct dpk_weight *table = &job->call->wt[DPK_WT(relative_bias, table)];
    struct dpk_tensor out = job->call->out;
    int h = task / job->length, i = task % job->length;
    size_t at = (size_t)task * (size_t)job->length;
    const int32_t *bucket = job->bucket + (job->length - 1 - i);
    (void)worker;
    for (int j = 0; j < job->length; j++) {
        size_t from = (size_t)bucket[j] * (size_t)job->heads + (size_t)h;
        dpk_elem_put(out.data, out.dtype, at + (size_t)j,
                     dpk_elem_get(table->data, table->dtype, from));
    }
}

int dpk_cpu_run_relative_bias(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    const struct dpk_relative_bias_attrs *at = DPK_ATTRS(relative_bias, call->op);
    struct bias_job job = {.call = call, .bucket = call->scratch};
    const struct dpk_shape *out = &call->out.shape;
    job.length = out->dim[out->rank - 1];
    job.heads = out->dim[0];
    for (int32_t d = 1 - job.length; d < job.length; d++) {
        job.bucket[d + job.length - 1] = bucket_of(d, at->buckets, at->max_distance);
    }
    return dpk_run_tasks(cpu, (int64_t)job.heads * job.length, bias_task, &job, err);
}
