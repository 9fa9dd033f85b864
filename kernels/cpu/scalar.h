/* Single elements of any float type, for the operators whose cost is not in arithmetic (tables,
 * positions), and the cutting of long arrays into tasks. */
#ifndef DPK_SCALAR_H
#define DPK_SCALAR_H

#include "cpu.h"
#include "half.h"

#include "../../formats/fail.h"

#include <stddef.h>
#include <string.h>

/* Bytes of an element of DPK_F32, DPK_I32, DPK_BF16 or DPK_F16. */
static inline size_t dpk_elem_bytes(int dtype) {
    return dtype == DPK_F32 || dtype == DPK_I32 ? 4 : 2;
}

/* Element i of an array of DPK_F32, DPK_BF16 or DPK_F16. */
static inline float dpk_elem_get(const void *p, int dtype, size_t i) {
    if (dtype == DPK_F32) return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    return dtype == DPK_F16 ? dpk_f16_f32(h) : dpk_bf16_f32(h);
}

/* Store to an array of DPK_F32 or DPK_BF16, rounding to nearest even; NaN stays NaN. */
static inline void dpk_elem_put(void *p, int dtype, size_t i, float f) {
    if (dtype == DPK_F32) ((float *)p)[i] = f;
    else ((uint16_t *)p)[i] = dpk_f32_bf16(f);
}

/* Tasks of at most `each` for n things; 0 tasks for n = 0. */
static inline int64_t dpk_task_count(int64_t n, int64_t each) { return (n + each - 1) / each; }

/* Things per task so that a task has about `target` elements: at least 1, and no more than 2^30
 * tasks. */
static inline int64_t dpk_task_size(int64_t n, int64_t elements_each, int64_t target) {
    int64_t size = elements_each > 0 ? target / elements_each : target;
    if (size < n >> 30) size = n >> 30;
    return size > 1 ? size : 1;
}

/* dpk_pool_run, for a number of tasks that comes from shapes: DPK_EUNSUPPORTED where it is too
 * large to count. */
static inline int dpk_run_tasks(struct dpk_cpu *cpu, int64_t n, void (*fn)(void *, int, int),
                                void *arg, dpk_error *err) {
    if (n > INT32_MAX) {
        return dpk_error_set(err, DPK_EUNSUPPORTED,
                             "cpu: an operator of %lld tasks, want at most %d", (long long)n,
                             INT32_MAX);
    }
    dpk_pool_run(cpu->pool, (int)n, fn, arg);
    return DPK_OK;
}

static inline int64_t dpk_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
