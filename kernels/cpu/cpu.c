/* The CPU backend object: creation, memory, and the dispatch of calls to operators. */
#include "ops_cpu.h"
#include "peak.h"
#include "rows8.h"

#include "../../formats/fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct op_entry {
    int (*run)(struct dpk_cpu *cpu, const struct dpk_call *call, dpk_error *err);
    size_t (*scratch)(const struct dpk_cpu *cpu, const struct dpk_call *call);
    const uint32_t *in_place;
};

static const struct op_entry entries[DPK_N_OPCODES] = {
#define DPK_OP(number, name, ins, wts, attrs)                                                      \
    [number] = {dpk_cpu_run_##name, dpk_cpu_scratch_##name, &dpk_cpu_in_place_##name},
#include "../../formats/ops.def"
#undef DPK_OP
};

static const struct op_entry *find_entry(const struct dpk_call *call) {
    uint32_t opcode = call->op->opcode;
    return opcode < DPK_N_OPCODES && entries[opcode].run ? &entries[opcode] : NULL;
}

static int cpu_act_dtype(const struct dpk_backend *be, int weight_dtype) {
    const struct dpk_cpu *cpu = (const struct dpk_cpu *)be;
    if (cpu->act_dtype) return cpu->act_dtype;
    if (!DPK_HAS_f32) return DPK_BF16;
    return weight_dtype == DPK_BF16 && dpk_isa_act_bf16(cpu->isa) ? DPK_BF16 : DPK_F32;
}

enum { HUGE_PAGE = 2 << 20 };

/* Fresh pages from the system, huge ones where it has them. */
static void *cpu_alloc(struct dpk_backend *be, size_t n_bytes) {
    (void)be;
    if (n_bytes > SIZE_MAX - 2 * HUGE_PAGE) return NULL;
    size_t size = (n_bytes / HUGE_PAGE + 1) * HUGE_PAGE;
    char *p =
        mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t before = HUGE_PAGE - 1 - ((uintptr_t)p - 1) % HUGE_PAGE;
    if (before) munmap(p, before);
    if (before < HUGE_PAGE) munmap(p + before + size, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    if (n_bytes >= HUGE_PAGE) madvise(p + before, size, MADV_HUGEPAGE); /* advice: it may fail */
#endif
    return p + before;
}

static void cpu_release(struct dpk_backend *be, void *p, size_t n_bytes) {
    (void)be;
    if (p) munmap(p, (n_bytes / HUGE_PAGE + 1) * HUGE_PAGE);
}

static int cpu_copy(struct dpk_backend *be, void *dst, const void *src, size_t n_bytes,
                    dpk_error *err) {
    (void)be, (void)err;
    if (n_bytes) memcpy(dst, src, n_bytes);
    return DPK_OK;
}

static int cpu_attach(struct dpk_backend *be, const struct dpk_file *file, int act_dtype,
                      struct dpk_share *share, dpk_error *err) {
    (void)be, (void)file, (void)act_dtype, (void)share, (void)err;
    return DPK_OK;
}

static size_t cpu_scratch_bytes(const struct dpk_backend *be, const struct dpk_call *call) {
    const struct op_entry *entry = find_entry(call);
    return entry ? entry->scratch((const struct dpk_cpu *)be, call) : 0;
}

static bool cpu_in_place(const struct dpk_backend *be, const struct dpk_call *call, int i) {
    const struct op_entry *entry = find_entry(call);
    (void)be;
    return entry && i >= 0 && i < DPK_MAX_IN && (*entry->in_place >> i & 1);
}

static bool always(const struct dpk_cpu *cpu, const struct dpk_call *call) {
    (void)cpu, (void)call;
    return true;
}

/* Operators that make quantized rows, and when. */
static bool (*const makes_rows8[DPK_N_OPCODES])(const struct dpk_cpu *, const struct dpk_call *) = {
    [DPK_OP_linear] = dpk_cpu_rows8_linear,
    [DPK_OP_attention] = dpk_cpu_rows8_attention,
    [DPK_OP_group_norm] = always,
    [DPK_OP_layer_norm] = always,
};

static uint64_t cpu_rows8_bytes(const struct dpk_backend *be, const struct dpk_call *call) {
    const struct dpk_cpu *cpu = (const struct dpk_cpu *)be;
    uint32_t opcode = call->op->opcode;
    if (opcode >= DPK_N_OPCODES || !makes_rows8[opcode] || !makes_rows8[opcode](cpu, call)) {
        return 0;
    }
    const struct dpk_shape *s = &call->out.shape;
    int64_t n = s->dim[s->rank - 1];
    struct dpk_rows8 rows = dpk_rows8_of(cpu, call->out.dtype, call->out.rows8);
    return (uint64_t)(dpk_shape_count(s) / n) * dpk_rows8_stride(&rows, (size_t)n);
}

static int cpu_run(struct dpk_backend *be, const struct dpk_call *call, dpk_error *err) {
    const struct op_entry *entry = find_entry(call);
    if (!entry) {
        return dpk_error_set(err, DPK_EUNSUPPORTED, "cpu: operator %u, this build has none",
                             call->op->opcode);
    }
    return entry->run((struct dpk_cpu *)be, call, err);
}

static int cpu_peaks(struct dpk_backend *be, struct dpk_peaks *peaks, dpk_error *err) {
    const struct dpk_cpu *cpu = (const struct dpk_cpu *)be;
    const int n = dpk_pool_workers(cpu->pool);
    (void)err;
    *peaks = (struct dpk_peaks){.f32 = n * dpk_peak_measure(cpu->isa, DPK_F32, cpu->dot),
                                .bf16 = n * dpk_peak_measure(cpu->isa, DPK_BF16, cpu->dot),
                                .s8 = n * dpk_peak_measure(cpu->isa, DPK_S8, cpu->dot)};
    return DPK_OK;
}

static void cpu_free(struct dpk_backend *be) {
    struct dpk_cpu *cpu = (struct dpk_cpu *)be;
    if (!cpu) return;
    dpk_pool_free(cpu->pool);
    free(cpu);
}

/* The best level, or the one that `name` or the environment asks for. */
static int choose_isa(const char *name, int *isa, dpk_error *err) {
    *isa = dpk_isa_best();
    if (!name) name = getenv("DPK_ISA");
    if (!name || !*name) return DPK_OK;
    char built[80] = "";
    for (int i = 0; i < DPK_N_ISAS; i++) {
        if (!dpk_kernels_get(i)) continue;
        size_t n = strlen(built);
        snprintf(built + n, sizeof built - n, "%s%s", n ? ", " : "", dpk_isa_name(i));
        if (strcmp(name, dpk_isa_name(i)) != 0) continue;
        if (!dpk_isa_available(i)) {
            return dpk_error_set(err, DPK_EARG, "instruction set %s: this machine has up to %s",
                                 name, dpk_isa_name(*isa));
        }
        *isa = i;
        return DPK_OK;
    }
    return dpk_error_set(err, DPK_EARG, "instruction set %s: this build has %s", name, built);
}

/* A line of a file of Linux about the first core's cache; "" where there is none. */
static const char *read_cache_line(int index, const char *name, char line[32]) {
    char path[80];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
    FILE *f = fopen(path, "re");
    if (!f || !fgets(line, 32, f)) line[0] = 0;
    if (f) fclose(f);
    return line;
}

/* Size of the data cache of this level, or `otherwise` where the system does not tell (containers
 * and some virtual machines do not). */
static size_t cache_bytes(int level, size_t otherwise) {
    for (int i = 0; i < 8; i++) {
        char line[32];
        if (atoi(read_cache_line(i, "level", line)) != level) continue;
        if (read_cache_line(i, "type", line)[0] == 'I') continue; /* Instruction */
        size_t kib = strtoul(read_cache_line(i, "size", line), NULL, 10); /* "48K" */
        if (kib > 0 && kib < 1 << 20) return kib << 10;
    }
    return otherwise;
}

int dpk_cpu_create(struct dpk_backend **be, int n_threads, const char *isa, int act_dtype,
                   dpk_error *err) {
    const struct dpk_cpu_options o = {.n_threads = n_threads, .isa = isa, .act_dtype = act_dtype};
    return dpk_cpu_create_with(be, &o, err);
}

int dpk_cpu_create_with(struct dpk_backend **be, const struct dpk_cpu_options *o, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_cpu *cpu = NULL;
    *be = NULL;
    if (o->act_dtype != 0 && o->act_dtype != DPK_F32 && o->act_dtype != DPK_BF16) {
        DPK_FAIL(err, DPK_EARG, "activation type %d: want float32 or bfloat16", o->act_dtype);
    }
    if (!DPK_HAS_f32 && o->act_dtype == DPK_F32) {
        DPK_FAIL(err, DPK_EUNSUPPORTED, "activations of float32: this build is without f32");
    }
    if (o->n_threads < 0) {
        DPK_FAIL(err, DPK_EARG, "threads: %d, want 0 or more", o->n_threads);
    }
    cpu = calloc(1, sizeof *cpu);
    if (!cpu) DPK_FAIL(err, DPK_ENOMEM, "cpu backend: out of memory");
    DPK_TRY(choose_isa(o->isa, &cpu->isa, err));
    cpu->act_dtype = o->act_dtype;
    cpu->k = dpk_kernels_get(cpu->isa);
    cpu->dot = !o->no_dot && dpk_isa_has_dot(cpu->isa);
    cpu->winograd = !o->no_winograd;
    cpu->l2_bytes = cache_bytes(2, 512 << 10);
    DPK_TRY(dpk_pool_create(&cpu->pool, o->n_threads, err));
    int n = dpk_pool_workers(cpu->pool);
    snprintf(cpu->detail, sizeof cpu->detail, "%s, %d thread%s", dpk_isa_name(cpu->isa), n,
             n == 1 ? "" : "s");
    cpu->base = (struct dpk_backend){
        .name = "cpu",
        .detail = cpu->detail,
        .free = cpu_free,
        .act_dtype = cpu_act_dtype,
        .alloc = cpu_alloc,
        .release = cpu_release,
        .upload = cpu_copy,
        .download = cpu_copy,
        .attach = cpu_attach,
        .scratch_bytes = cpu_scratch_bytes,
        .in_place = cpu_in_place,
        .rows8_bytes = DPK_HAS_int8 ? cpu_rows8_bytes : NULL,
        .peaks = cpu_peaks,
        .rows_scratch = dpk_cpu_rows_scratch,
        .run_rows = dpk_cpu_run_rows,
        .run = cpu_run,
    };
    *be = &cpu->base;
    cpu = NULL;
done:
    if (cpu) cpu_free(&cpu->base);
    return rc;
}
