/* Group normalisation over concat(x, x2) on channels, in three passes:
 *
 *   1. blocks of pixels, one task each: mean and sum of squared distances of every group (kernel
 *      norm_stats, its channels combined in double). Blocks of a map lie within bands of
 *      DPK_ROWS_STEP rows, so that they are the same when rows come a few at a time
 *   2. groups, one task each: the blocks combined in their order, in double, by the formula of
 *      Chan, Golub and LeVeque (1983), to three factors a channel
 *   3. blocks again: y = act((x - mean) * mul + add)
 *
 * mean is the float32 nearest to the mean and what it lacks is in add, so a mean far from zero
 * costs no accuracy. Blocks depend on the shape alone, so the result does not depend on the number
 * of threads.
 *
 * Scratch: double stats [B][blocks][groups][2]; float factors [B][3][C]; float sums [3][C] for each
 * worker. A pixel that is to be quantized is made in the worker's sums. */
#include "ops_cpu.h"
#include "rows8.h"
#include "scalar.h"

#include <math.h>

enum {
    BLOCK_ELEMENTS = 32768
}; /* of a block, so that its second reading comes from the L2 cache */

const uint32_t dpk_cpu_in_place_group_norm = 1u << DPK_IN(group_norm, x);

struct group_job {
    const struct dpk_cpu *cpu;
    const struct dpk_kernels *k;
    const struct dpk_call *call;
    int64_t pixels, band, each; /* of an image, of a band of it, of a block of that */
    int64_t parts, blocks;      /* blocks of a band, of an image */
    int64_t first;              /* block of all images that task 0 has */
    int images, groups, c1, c;
    double *stats;
    float *factors, *sums;
};

static void plan_job(struct group_job *job, const struct dpk_cpu *cpu,
                     const struct dpk_call *call) {
    const struct dpk_shape *x = &call->in[DPK_IN(group_norm, x)].shape;
    const struct dpk_shape *x2 = &call->in[DPK_IN(group_norm, x2)].shape;
    job->cpu = cpu;
    job->k = cpu->k;
    job->call = call;
    job->c1 = x->dim[x->rank - 1];
    job->c = job->c1 + (x2->rank ? x2->dim[x2->rank - 1] : 0);
    job->images = x->rank > 1 ? x->dim[0] : 1;
    job->pixels = dpk_shape_count(x) / job->c1 / job->images;
    job->band = x->rank == 4 ? (int64_t)x->dim[2] * DPK_ROWS_STEP : job->pixels;
    job->each = dpk_task_size(job->band, job->c, BLOCK_ELEMENTS);
    if (job->each > 1024) job->each = 1024;
    job->parts = dpk_task_count(job->band, job->each);
    job->each = dpk_task_count(job->band, job->parts);
    job->blocks = dpk_task_count(job->pixels, job->band) * job->parts;
    job->groups = DPK_ATTRS(group_norm, call->op)->groups;
    job->stats = call->scratch;
}

/* Pixels of an image that its block i has, from *first on; none at the end of a short last band. */
static int block_pixels(const struct group_job *job, int64_t i, int64_t *first) {
    int64_t band = i / job->parts * job->band, begin = i % job->parts * job->each;
    int64_t end = dpk_min_i64(dpk_min_i64(begin + job->each, job->band), job->pixels - band);
    *first = band + begin;
    return end > begin ? (int)(end - begin) : 0;
}

static size_t stats_count(const struct group_job *job) {
    return (size_t)job->images * (size_t)job->blocks * (size_t)job->groups * 2;
}

size_t dpk_cpu_scratch_group_norm(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    struct group_job job = {0};
    plan_job(&job, cpu, call);
    size_t vectors = (size_t)job.images + (size_t)dpk_pool_workers(cpu->pool);
    return stats_count(&job) * sizeof(double) + vectors * 3 * (size_t)job.c * sizeof(float);
}

/* One group of one block from its channels' sums: result[0] the mean, result[1] the sum of squared
 * distances from it. */
static void combine_channels(const float *mean, const float *e1, const float *e2, int n,
                             double rows, double result[2]) {
    double total = 0, squares = 0;
    for (int c = 0; c < n; c++) total += (double)mean[c] + (double)e1[c] / rows;
    double m = total / n;
    for (int c = 0; c < n; c++) {
        double off = (double)e1[c] / rows, d = (double)mean[c] + off - m;
        squares += (double)e2[c] - (double)e1[c] * off + rows * d * d;
    }
    result[0] = m;
    result[1] = squares;
}

static void stats_task(void *arg, int task, int worker) {
    const struct group_job *job = arg;
    const struct dpk_tensor *x = &job->call->in[DPK_IN(group_norm, x)];
    const struct dpk_tensor *x2 = &job->call->in[DPK_IN(group_norm, x2)];
    int64_t block = job->first + task, b = block / job->blocks, p;
    int rows = block_pixels(job, block % job->blocks, &p), c1 = job->c1, c2 = job->c - c1;
    size_t pixel = (size_t)(b * job->pixels + p), size = dpk_elem_bytes(x->dtype);
    float *mean = job->sums + (size_t)worker * 3 * (size_t)job->c;
    float *e1 = mean + job->c, *e2 = e1 + job->c;
    if (!rows) return;
    job->k->norm_stats((const char *)x->data + pixel * (size_t)c1 * size, x->dtype, (size_t)c1,
                       rows, c1, mean, e1, e2);
    if (c2 > 0) {
        job->k->norm_stats((const char *)x2->data + pixel * (size_t)c2 * size, x->dtype, (size_t)c2,
                           rows, c2, mean + c1, e1 + c1, e2 + c1);
    }
    int n = job->c / job->groups;
    double *stats = job->stats + (size_t)block * (size_t)job->groups * 2;
    for (int g = 0; g < job->groups; g++) {
        combine_channels(mean + g * n, e1 + g * n, e2 + g * n, n, rows, stats + g * 2);
    }
}

static void factors_task(void *arg, int task, int worker) {
    const struct group_job *job = arg;
    int b = (int)(job->first / job->blocks) + task / job->groups, g = task % job->groups;
    int n = job->c / job->groups;
    int64_t p;
    const double *stats =
        job->stats + ((size_t)b * (size_t)job->blocks * (size_t)job->groups + (size_t)g) * 2;
    size_t step = (size_t)job->groups * 2;
    double total = 0, squares = 0;
    (void)worker;
    for (int64_t i = 0; i < job->blocks; i++) {
        int rows = block_pixels(job, i, &p);
        if (rows) total += rows * stats[(size_t)i * step];
    }
    double mean = total / (double)job->pixels;
    for (int64_t i = 0; i < job->blocks; i++) {
        double rows = block_pixels(job, i, &p), d = stats[(size_t)i * step] - mean;
        if (rows > 0) squares += stats[(size_t)i * step + 1] + rows * n * d * d;
    }
    double eps = (double)DPK_ATTRS(group_norm, job->call->op)->eps;
    double inv = 1.0 / sqrt(squares / ((double)job->pixels * n) + eps);
    const float *gamma = job->call->wt[DPK_WT(group_norm, gamma)].data;
    const float *beta = job->call->wt[DPK_WT(group_norm, beta)].data;
    float *f = job->factors + (size_t)b * 3 * (size_t)job->c;
    for (int c = g * n; c < (g + 1) * n; c++) {
        double mul = inv * (double)gamma[c];
        f[c] = (float)mean;
        f[(size_t)job->c + (size_t)c] = (float)mul;
        f[2 * (size_t)job->c + (size_t)c] = (float)((double)beta[c] - (mean - (double)f[c]) * mul);
    }
}

/* Pixels first .. first + rows of image b, normalised, to y. */
static void apply_pixels(const struct group_job *job, int64_t b, int64_t first, int32_t rows,
                         void *y) {
    const struct dpk_tensor *x = &job->call->in[DPK_IN(group_norm, x)];
    const struct dpk_tensor *x2 = &job->call->in[DPK_IN(group_norm, x2)];
    size_t pixel = (size_t)(b * job->pixels + first), size = dpk_elem_bytes(x->dtype);
    size_t c = (size_t)job->c, c1 = (size_t)job->c1;
    const float *f = job->factors + (size_t)b * 3 * c;
    struct dpk_norm_apply a = {
        .y = y,
        .x = (const char *)x->data + pixel * c1 * size,
        .y_stride = c,
        .x_stride = c1,
        .mean = f,
        .mul = f + c,
        .add = f + 2 * c,
        .dtype = x->dtype,
        .rows = rows,
        .n = job->c1,
        .act = DPK_ATTRS(group_norm, job->call->op)->act,
    };
    job->k->norm_apply(&a);
    if (c > c1) {
        a.y = (char *)a.y + c1 * size;
        a.x = (const char *)x2->data + pixel * (c - c1) * size;
        a.x_stride = c - c1;
        a.mean += c1;
        a.mul += c1;
        a.add += c1;
        a.n = (int32_t)(c - c1);
        job->k->norm_apply(&a);
    }
}

static void apply_task(void *arg, int task, int worker) {
    const struct group_job *job = arg;
    const struct dpk_tensor *out = &job->call->out;
    int64_t block = job->first + task, b = block / job->blocks, p;
    int32_t rows = block_pixels(job, block % job->blocks, &p);
    size_t c = (size_t)job->c, pixel = (size_t)(b * job->pixels + p);
    if (!out->rows8) {
        size_t row = c * dpk_elem_bytes(out->dtype);
        apply_pixels(job, b, p, rows, (char *)out->data + pixel * row);
        return;
    }
    const struct dpk_rows8 made = dpk_rows8_of(job->cpu, out->dtype, out->rows8);
    size_t stride = dpk_rows8_stride(&made, c);
    char *to = (char *)out->data + pixel * stride;
    float *one = job->sums + (size_t)worker * 3 * c; /* free by now */
    for (int32_t r = 0; r < rows; r++, to += stride) {
        apply_pixels(job, b, p + r, 1, one);
        dpk_rows8_put(&made, to, one, c);
    }
}

static void begin_job(struct group_job *job, struct dpk_cpu *cpu, const struct dpk_call *call) {
    plan_job(job, cpu, call);
    job->factors = (float *)(void *)(job->stats + stats_count(job));
    job->sums = job->factors + (size_t)job->images * 3 * (size_t)job->c;
}

int dpk_cpu_run_group_norm(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err) {
    struct group_job job = {0};
    int rc = DPK_OK;
    begin_job(&job, cpu, call);
    int64_t blocks = job.images * job.blocks, groups = (int64_t)job.images * job.groups;
    DPK_TRY(dpk_run_tasks(cpu, blocks, stats_task, &job, err));
    DPK_TRY(dpk_run_tasks(cpu, groups, factors_task, &job, err));
    DPK_TRY(dpk_run_tasks(cpu, blocks, apply_task, &job, err));
done:
    return rc;
}

int dpk_cpu_rows_group_norm(struct dpk_cpu *cpu, const struct dpk_call *call,
                            const struct dpk_rows *rows, dpk_error *err) {
    struct group_job job = {0};
    int rc = DPK_OK;
    begin_job(&job, cpu, call);
    int64_t h = call->out.shape.dim[1], image = rows->first / h, y = rows->first % h;
    int64_t n = rows->end - rows->first;
    int64_t blocks = dpk_task_count(n, DPK_ROWS_STEP) * job.parts;
    job.first = image * job.blocks + y / DPK_ROWS_STEP * job.parts;
    DPK_TRY(dpk_run_tasks(cpu, blocks, rows->measure ? stats_task : apply_task, &job, err));
    if (rows->measure && y + n == h) {
        DPK_TRY(dpk_run_tasks(cpu, job.groups, factors_task, &job, err));
    }
done:
    return rc;
}
