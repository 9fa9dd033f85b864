/* Peaks of this machine, a core: what shares in the other benchmarks are shares of.
 *
 *   bench_peak [--json] [--threads N]
 *
 * With N threads (default 1, then one a core) every one measures at the same time, and the mean is
 * shown: cores that share power or a core's units do less together. Billions of operations a
 * second (a multiply-add is two), of the thread's own time. */
#include "../kernels/cpu/peak.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct kind {
    const char *name, *what;
    int dtype;
    bool dot;
} kinds[] = {{"f32", "f32 fused multiply-add", DPK_F32, false},
             {"bf16", "bf16 dot product", DPK_BF16, false},
             {"madd", "16-bit multiply-add", DPK_S8, false},
             {"int8", "int8 dot product", DPK_S8, true}};
enum { N_KINDS = sizeof kinds / sizeof *kinds, MAX_THREADS = 256 };

struct job {
    int isa;
    const struct kind *kind;
    double rate;
};

static void *measure(void *arg) {
    struct job *job = arg;
    job->rate = dpk_peak_measure(job->isa, job->kind->dtype, job->kind->dot);
    return NULL;
}

/* The mean over n threads at once; 0 if there is nothing to measure or a thread cannot start. */
static double measure_on(int n, int isa, const struct kind *kind) {
    static struct job jobs[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    double sum = 0;
    int started = 0;
    for (int i = 0; i < n; i++) {
        jobs[i] = (struct job){isa, kind, 0};
        if (pthread_create(&threads[i], NULL, measure, &jobs[i])) break;
        started++;
    }
    for (int i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
        sum += jobs[i].rate;
    }
    return started == n ? sum / n : 0;
}

/* Does the level do this kind by instructions of its own? */
static bool has(int isa, const struct kind *kind) {
    if (kind->dtype == DPK_BF16) return isa == DPK_ISA_AVX512BF16;
    return !kind->dot || dpk_isa_has_dot(isa);
}

static void print_level(int isa, int n, bool json, bool *first) {
    if (json)
        printf("%s\n  {\"isa\": \"%s\", \"threads\": %d", *first ? "" : ",", dpk_isa_name(isa), n);
    for (int i = 0; i < N_KINDS; i++) {
        double rate = has(isa, &kinds[i]) ? measure_on(n, isa, &kinds[i]) * 1e-9 : 0;
        if (rate <= 0) continue;
        if (json) printf(", \"%s\": %.1f", kinds[i].name, rate);
        else
            printf("%-11s %3d %s  %-24s %8.1f G/s a core\n", dpk_isa_name(isa), n,
                   n > 1 ? "threads" : "thread ", kinds[i].what, rate);
    }
    if (json) printf("}");
    *first = false;
}

int main(int argc, char **argv) {
    bool json = false, first = true;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int threads = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json")) json = true;
        else if (!strcmp(argv[i], "--threads") && i + 1 < argc) threads = atoi(argv[++i]);
        else threads = -1;
    }
    if (threads < 0 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: bench_peak [--json] [--threads N], N from 1 to %d\n", MAX_THREADS);
        return 2;
    }
    if (json) printf("[");
    for (int isa = dpk_isa_best(); isa > DPK_ISA_REF; isa--) {
        if (!dpk_isa_available(isa)) continue;
        print_level(isa, threads ? threads : 1, json, &first);
        if (!threads && cores > 1)
            print_level(isa, cores < MAX_THREADS ? (int)cores : MAX_THREADS, json, &first);
    }
    if (json) printf("\n]\n");
    return 0;
}
