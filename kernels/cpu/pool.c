/* The thread pool: workers take task numbers from one counter; between runs they spin a little and
 * then sleep.
 *
 * A run is a generation. The caller publishes the job, raises `generation`, works itself, and then
 * waits until every worker has said that it is out of the job (`busy` is 0), so that the next run
 * may overwrite the job's fields. */
#include "cpu.h"

#include "../../formats/fail.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SPINS = 4000 }; /* tens of microseconds: longer than the gaps between operators */

struct dpk_pool {
    int n_workers, n_started;
    pthread_t *threads; /* [n_workers - 1] */
    struct worker *workers;
    pthread_mutex_t mutex;
    pthread_cond_t go, done;
    atomic_uint generation; /* raised under mutex */
    atomic_bool stop;
    atomic_int next, busy;
    int n_tasks;
    void (*fn)(void *arg, int task, int worker);
    void *arg;
    struct dpk_pool_watch watch;
};

struct worker {
    struct dpk_pool *pool;
    int index;
};

static void pause_cpu(void) {
#if defined(__x86_64__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static double watch_clock(const struct dpk_pool *pool) {
    struct timespec t = {0, 0};
    if (pool->watch.share) clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void end_share(const struct dpk_pool *pool, int worker, double begin) {
    if (pool->watch.share) pool->watch.share(pool->watch.arg, worker, begin, watch_clock(pool));
}

static void take_tasks(struct dpk_pool *pool, int worker) {
    double begin = watch_clock(pool);
    int task = atomic_fetch_add(&pool->next, 1);
    if (task >= pool->n_tasks) return;
    for (; task < pool->n_tasks; task = atomic_fetch_add(&pool->next, 1))
        pool->fn(pool->arg, task, worker);
    end_share(pool, worker, begin);
}

static void wait_generation(struct dpk_pool *pool, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool->generation) != seen) return;
        pause_cpu();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->go, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void *work(void *arg) {
    struct worker *me = arg;
    struct dpk_pool *pool = me->pool;
    for (unsigned seen = 0;;) {
        wait_generation(pool, seen);
        seen++;
        if (atomic_load(&pool->stop)) return NULL;
        take_tasks(pool, me->index);
        if (atomic_fetch_sub(&pool->busy, 1) == 1) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}

static void start_generation(struct dpk_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->go);
    pthread_mutex_unlock(&pool->mutex);
}

void dpk_pool_run(struct dpk_pool *pool, int n_tasks, void (*fn)(void *, int, int), void *arg) {
    if (pool->n_workers == 1 || n_tasks <= 1) {
        double begin = watch_clock(pool);
        for (int task = 0; task < n_tasks; task++) fn(arg, task, 0);
        end_share(pool, 0, begin);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->n_tasks = n_tasks;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->busy, pool->n_workers - 1);
    start_generation(pool);
    take_tasks(pool, 0);
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool->busy) == 0) return;
        pause_cpu();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(&pool->busy) > 0) pthread_cond_wait(&pool->done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

void dpk_pool_watch(struct dpk_pool *pool, struct dpk_pool_watch watch) { pool->watch = watch; }

int dpk_pool_workers(const struct dpk_pool *pool) { return pool->n_workers; }

void dpk_pool_free(struct dpk_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, true);
    start_generation(pool);
    for (int i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->go);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->threads);
    free(pool->workers);
    free(pool);
}

/* Cores that the process may run on. */
static int count_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

int dpk_pool_create(struct dpk_pool **out, int n_workers, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_pool *pool = NULL;
    *out = NULL;
    if (n_workers == 0) n_workers = count_cores();
    if (n_workers < 1 || n_workers > 4096) {
        DPK_FAIL(err, DPK_EARG, "threads: %d, want 1 to 4096, or 0 for one a core", n_workers);
    }
    pool = calloc(1, sizeof *pool);
    if (!pool) DPK_FAIL(err, DPK_ENOMEM, "thread pool: out of memory");
    pool->n_workers = n_workers;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->go, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->threads = calloc((size_t)n_workers, sizeof *pool->threads);
    pool->workers = calloc((size_t)n_workers, sizeof *pool->workers);
    if (!pool->threads || !pool->workers) DPK_FAIL(err, DPK_ENOMEM, "thread pool: out of memory");
    for (int i = 1; i < n_workers; i++) {
        struct worker *w = &pool->workers[i - 1];
        w->pool = pool;
        w->index = i;
        int e = pthread_create(&pool->threads[i - 1], NULL, work, w);
        if (e) DPK_FAIL(err, DPK_ENOMEM, "thread %d of %d: %s", i + 1, n_workers, strerror(e));
        pool->n_started++;
    }
    *out = pool;
    pool = NULL;
done:
    dpk_pool_free(pool);
    return rc;
}
