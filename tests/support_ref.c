/* The harness of the operator tests: see support_ref.h. */
#include "support_ref.h"

#include "../kernels/cpu/cpu.h"
#include "support_cuda.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POISON 1
#endif
#endif
#ifdef POISON
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

/* ---- Random numbers ------------------------------------------------------------------------- */

uint64_t ref_random(struct ref_rng *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double ref_normal(struct ref_rng *r) {
    double u = ((double)(ref_random(r) >> 11) + 0.5) * 0x1p-53;
    double v = ((double)(ref_random(r) >> 11) + 0.5) * 0x1p-53;
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

int ref_range(struct ref_rng *r, int lo, int hi) {
    return lo + (int)(ref_random(r) % (uint64_t)(hi - lo + 1));
}

/* ---- Guarded memory ------------------------------------------------------------------------- */

enum { GUARD = 256, NAN_BYTE = 0xff }; /* 0xffff.. is NaN as float32, bfloat16 and float16 */

void ref_buffer_open(struct ref_buffer *b, size_t n_bytes) {
    size_t total = GUARD + (n_bytes + 63) / 64 * 64 + GUARD;
    b->base = aligned_alloc(64, total);
    assert_non_null(b->base);
    memset(b->base, NAN_BYTE, total);
    b->data = (char *)b->base + GUARD;
    b->n_bytes = n_bytes;
    ASAN_POISON_MEMORY_REGION(b->base, GUARD);
    ASAN_POISON_MEMORY_REGION((char *)b->data + n_bytes, total - GUARD - n_bytes);
}

int ref_buffer_intact(const struct ref_buffer *b) {
    const unsigned char *p = b->base;
    size_t total = GUARD + (b->n_bytes + 63) / 64 * 64 + GUARD;
    ASAN_UNPOISON_MEMORY_REGION(b->base, total);
    int good = 1;
    for (size_t i = 0; i < total; i++) {
        if (i >= GUARD && i < GUARD + b->n_bytes) continue;
        good &= p[i] == NAN_BYTE;
    }
    ASAN_POISON_MEMORY_REGION(b->base, GUARD);
    ASAN_POISON_MEMORY_REGION((char *)b->data + b->n_bytes, total - GUARD - b->n_bytes);
    return good;
}

void ref_buffer_close(struct ref_buffer *b) {
    if (!b->base) return;
    ASAN_UNPOISON_MEMORY_REGION(b->base, GUARD + (b->n_bytes + 63) / 64 * 64 + GUARD);
    free(b->base);
    *b = (struct ref_buffer){0};
}

/* ---- Types ---------------------------------------------------------------------------------- */

static size_t elem_bytes(int dtype) { return dtype == DPK_F32 || dtype == DPK_I32 ? 4 : 2; }

/* Round to a significand of `bits` bits and exponents from `lowest` (of the last bit of
 * subnormals). */
static double round_bits(double v, int bits, int lowest) {
    int e;
    if (v == 0.0 || !isfinite(v)) return v;
    frexp(v, &e);
    int unit = e - bits > lowest ? e - bits : lowest;
    return ldexp(nearbyint(ldexp(v, -unit)), unit);
}

double ref_round(double v, int dtype) {
    if (dtype == DPK_BF16) return round_bits(v, 8, -133);
    if (dtype == DPK_F16) return round_bits(v, 11, -24);
    return dtype == DPK_F32 ? (double)(float)v : v;
}

static double get(const void *p, int dtype, size_t i) {
    if (dtype == DPK_I32) return ((const int32_t *)p)[i];
    if (dtype == DPK_F32) return (double)((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    if (dtype == DPK_BF16) {
        uint32_t u = (uint32_t)h << 16;
        float f;
        memcpy(&f, &u, 4);
        return (double)f;
    }
    int e = h >> 10 & 31, m = h & 0x3ff;
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

/* v is a finite value of the type. */
static void put(void *p, int dtype, size_t i, double v) {
    if (dtype == DPK_I32) {
        ((int32_t *)p)[i] = (int32_t)v;
    } else if (dtype == DPK_F32) {
        ((float *)p)[i] = (float)v;
    } else if (dtype == DPK_BF16) {
        float f = (float)v;
        uint32_t u;
        memcpy(&u, &f, 4);
        ((uint16_t *)p)[i] = (uint16_t)(u >> 16);
    } else {
        int e;
        double m = frexp(fabs(v), &e); /* v = m 2^e, 1/2 <= m < 1; normal from 2^-14 on */
        int h = v == 0.0  ? 0
                : e > -14 ? (e + 14) << 10 | ((int)ldexp(m, 11) & 0x3ff)
                          : (int)ldexp(m, e + 24);
        ((uint16_t *)p)[i] = (uint16_t)(h | (signbit(v) ? 0x8000 : 0));
    }
}

/* ---- Cases ---------------------------------------------------------------------------------- */

void ref_open(struct ref_case *c, uint64_t seed, int opcode, int dtype) {
    memset(c, 0, sizeof *c);
    c->rng.state = seed * 0x632be59bd9b4e019u + (uint64_t)opcode;
    c->op.opcode = (uint32_t)opcode;
    for (int i = 0; i < DPK_MAX_IN; i++) c->op.in[i] = DPK_NONE;
    for (int i = 0; i < DPK_MAX_WT; i++) c->op.wt[i] = DPK_NONE;
    c->dtype = dtype;
    c->call.op = &c->op;
}

void ref_close(struct ref_case *c) {
    for (int i = 0; i < DPK_MAX_IN; i++) free(c->in[i]);
    for (int i = 0; i < DPK_MAX_WT; i++) free(c->wt[i]);
    for (int i = 0; i < c->n_buffers; i++) ref_buffer_close(&c->buffer[i]);
}

struct dpk_shape ref_shape(int rank, ...) {
    struct dpk_shape s = {.rank = rank};
    va_list args;
    va_start(args, rank);
    for (int i = 0; i < rank; i++) s.dim[i] = va_arg(args, int);
    va_end(args);
    return s;
}

static size_t count(const struct dpk_shape *s) { return (size_t)dpk_shape_count(s); }

static void *store(struct ref_case *c, const double *values, size_t n, int dtype) {
    assert_true(c->n_buffers < REF_MAX_BUFFERS);
    struct ref_buffer *b = &c->buffer[c->n_buffers++];
    ref_buffer_open(b, n * elem_bytes(dtype));
    for (size_t i = 0; i < n; i++) put(b->data, dtype, i, values[i]);
    return b->data;
}

static double *draw(struct ref_case *c, size_t n, int dtype, double deviation, double mean) {
    double *v = malloc((n + 1) * sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < n; i++) v[i] = ref_round(mean + deviation * ref_normal(&c->rng), dtype);
    return v;
}

static void set_input(struct ref_case *c, size_t i, int dtype, struct dpk_shape s, double *values) {
    c->in[i] = values;
    c->op.in[i] = (uint32_t)i;
    c->call.in[i] =
        (struct dpk_tensor){.data = store(c, values, count(&s), dtype), .dtype = dtype, .shape = s};
}

void ref_in(struct ref_case *c, size_t i, struct dpk_shape s, double deviation, double mean) {
    set_input(c, i, c->dtype, s, draw(c, count(&s), c->dtype, deviation, mean));
}

void ref_in_f32(struct ref_case *c, size_t i, struct dpk_shape s, double deviation, double mean) {
    set_input(c, i, DPK_F32, s, draw(c, count(&s), DPK_F32, deviation, mean));
}

void ref_in_ids(struct ref_case *c, size_t i, struct dpk_shape s, int lo, int hi) {
    double *v = malloc((count(&s) + 1) * sizeof *v);
    assert_non_null(v);
    for (size_t j = 0; j < count(&s); j++) v[j] = ref_range(&c->rng, lo, hi);
    set_input(c, i, DPK_I32, s, v);
}

void ref_in_same(struct ref_case *c, size_t i, size_t as) {
    size_t n = count(&c->call.in[as].shape);
    c->in[i] = malloc((n + 1) * sizeof(double));
    assert_non_null(c->in[i]);
    memcpy(c->in[i], c->in[as], n * sizeof(double));
    c->op.in[i] = (uint32_t)as;
    c->call.in[i] = c->call.in[as];
}

static void set_weight(struct ref_case *c, size_t i, int dtype, struct dpk_shape s,
                       double *values) {
    c->wt[i] = values;
    c->op.wt[i] = (uint32_t)i;
    c->call.wt[i] = (struct dpk_weight){.data = store(c, values, count(&s), dtype),
                                        .dtype = dtype,
                                        .layout = DPK_LAYOUT_RAW,
                                        .shape = s};
}

void ref_vec(struct ref_case *c, size_t i, int n, double deviation, double mean) {
    set_weight(c, i, DPK_F32, ref_shape(1, n), draw(c, (size_t)n, DPK_F32, deviation, mean));
}

void ref_raw(struct ref_case *c, size_t i, int dtype, struct dpk_shape s, double deviation) {
    set_weight(c, i, dtype, s, draw(c, count(&s), dtype, deviation, 0.0));
}

void ref_set(struct ref_case *c, size_t input, size_t element, double value) {
    struct dpk_tensor *t = &c->call.in[input];
    for (size_t i = 0; i < DPK_MAX_IN; i++) {
        if (!c->in[i] || c->call.in[i].data != t->data) continue;
        c->in[i][element] = ref_round(value, t->dtype);
    }
    put(t->data, t->dtype, element, ref_round(value, t->dtype));
}

double ref_relative(const double *got, const double *want, size_t n) {
    double d = 0, w = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i])) return INFINITY;
        d += (got[i] - want[i]) * (got[i] - want[i]);
        w += want[i] * want[i];
    }
    return w > 0 ? sqrt(d / w) : d > 0 ? INFINITY : 0.0;
}

/* ---- Checks --------------------------------------------------------------------------------- */

static void infer_shape(struct ref_case *c) {
    struct dpk_shape in[DPK_MAX_IN], wt[DPK_MAX_WT];
    dpk_error err = {0};
    for (int i = 0; i < DPK_MAX_IN; i++) in[i] = c->call.in[i].shape;
    for (int i = 0; i < DPK_MAX_WT; i++) wt[i] = c->call.wt[i].shape;
    if (dpk_op_shape(&c->op, "", in, wt, &c->call.out.shape, &err) != DPK_OK) {
        fail_msg("%s", err.msg);
    }
    c->call.out.dtype = c->out_dtype ? c->out_dtype : c->dtype;
}

/* What a case runs on: the levels of the CPU, and the CUDA backend. */
enum { ON_CUDA = DPK_N_ISAS, N_LEVELS };

static bool level_available(int level) {
    return level == ON_CUDA ? support_cuda_available() : dpk_isa_available(level);
}

static const char *level_name(int level) { return level == ON_CUDA ? "cuda" : dpk_isa_name(level); }

/* A backend of the level. That of CUDA is kept: a device is slow to open. */
static struct dpk_backend *open_level(int level, int threads, int dtype) {
    static struct dpk_backend *kept[2];
    struct dpk_backend *be = NULL;
    dpk_error err;
    if (level == ON_CUDA) {
        struct dpk_backend **slot = &kept[dtype == DPK_BF16];
        if (!*slot) *slot = support_cuda_open(dtype);
        return *slot;
    }
    if (dpk_cpu_create(&be, threads, dpk_isa_name(level), dtype, &err)) fail_msg("%s", err.msg);
    return be;
}

static void close_level(int level, struct dpk_backend *be) {
    if (level != ON_CUDA) be->free(be);
}

/* One run into `out`; in_place: input number whose memory the result takes, or -1. */
static int run_once(struct ref_case *c, int level, int threads, int in_place,
                    struct ref_buffer *out, dpk_error *err) {
    struct dpk_backend *be = open_level(level, threads, c->dtype);
    struct ref_buffer scratch;
    struct dpk_call call = c->call, plan;
    plan = call;
    for (int i = 0; i < DPK_MAX_IN; i++) plan.in[i].data = NULL;
    for (int i = 0; i < DPK_MAX_WT; i++) plan.wt[i].data = NULL;
    plan.out.data = NULL;
    plan.scratch = NULL;
    ref_buffer_open(&scratch, be->scratch_bytes(be, &plan));
    ref_buffer_open(out, count(&call.out.shape) * elem_bytes(call.out.dtype));
    call.out.data = out->data;
    call.scratch = scratch.data;
    if (in_place >= 0) {
        memcpy(out->data, call.in[in_place].data, out->n_bytes);
        call.in[in_place].data = out->data;
    }
    int rc = be->run(be, &call, err);
    if (!ref_buffer_intact(&scratch)) fail_msg("%s: wrote beyond its scratch", be->detail);
    if (!ref_buffer_intact(out)) fail_msg("%s: wrote beyond its result", be->detail);
    ref_buffer_close(&scratch);
    close_level(level, be);
    return rc;
}

static bool may_be_in_place(const struct ref_case *c, int level, int i) {
    if (!c->in[i] || count(&c->call.in[i].shape) != count(&c->call.out.shape) ||
        c->call.in[i].dtype != c->call.out.dtype) {
        return false;
    }
    struct dpk_backend *be = open_level(level, 1, c->dtype);
    bool may = be->in_place(be, &c->call, i);
    close_level(level, be);
    return may;
}

static void check_operands(const struct ref_case *c, const char *isa) {
    for (int i = 0; i < c->n_buffers; i++) {
        if (!ref_buffer_intact(&c->buffer[i])) fail_msg("%s: wrote beyond an operand", isa);
    }
    for (int i = 0; i < DPK_MAX_IN; i++) {
        for (size_t j = 0; c->in[i] && j < count(&c->call.in[i].shape); j++) {
            if (get(c->call.in[i].data, c->call.in[i].dtype, j) != c->in[i][j]) {
                fail_msg("%s: changed input %d", isa, i);
            }
        }
    }
}

static void compare(const struct ref_case *c, const struct ref_buffer *out, const double *want,
                    double tolerance, const char *isa) {
    size_t n = count(&c->call.out.shape);
    double *got = malloc((n + 1) * sizeof *got);
    assert_non_null(got);
    for (size_t i = 0; i < n; i++) {
        got[i] = get(out->data, c->call.out.dtype, i);
        if (tolerance == 0.0 && got[i] != ref_round(want[i], c->call.out.dtype)) {
            fail_msg("%s: element %zu is %.9g, want %.9g", isa, i, got[i], want[i]);
        }
    }
    double relative = ref_relative(got, want, n);
    free(got);
    if (tolerance > 0.0 && !(relative <= tolerance)) {
        fail_msg("%s, %s: %s is off by %.3g, want at most %.3g", isa,
                 dpk_dtype_name(c->call.out.dtype), dpk_op_info_get(c->op.opcode)->name, relative,
                 tolerance);
    }
}

void ref_check(struct ref_case *c, ref_fn *reference, double tolerance) {
    dpk_error err = {0};
    infer_shape(c);
    double *want = malloc((count(&c->call.out.shape) + 1) * sizeof *want);
    assert_non_null(want);
    reference(c, &c->call.out.shape, want);
    for (int level = 0; level < N_LEVELS; level++) {
        struct ref_buffer out, again;
        const char *name = level_name(level);
        if (!level_available(level)) continue;
        if (run_once(c, level, 1, -1, &out, &err)) fail_msg("%s: %s", name, err.msg);
        check_operands(c, name);
        compare(c, &out, want, tolerance, name);
        for (int threads = 2; threads <= (level == ON_CUDA ? 2 : 3); threads++) {
            if (run_once(c, level, threads, -1, &again, &err)) fail_msg("%s: %s", name, err.msg);
            if (memcmp(out.data, again.data, out.n_bytes)) {
                fail_msg("%s: other bits with %s", name,
                         level == ON_CUDA ? "another order" : "more threads");
            }
            ref_buffer_close(&again);
        }
        for (int i = 0; i < DPK_MAX_IN; i++) {
            if (!may_be_in_place(c, level, i)) continue;
            if (run_once(c, level, 2, i, &again, &err)) fail_msg("%s: %s", name, err.msg);
            if (memcmp(out.data, again.data, out.n_bytes)) fail_msg("%s: differs in place", name);
            ref_buffer_close(&again);
        }
        ref_buffer_close(&out);
    }
    free(want);
}

void ref_check_fails(struct ref_case *c, int code) {
    infer_shape(c);
    for (int isa = 0; isa < DPK_N_ISAS; isa++) { /* a device's run cannot look at values */
        struct ref_buffer out;
        dpk_error err = {0};
        if (!dpk_isa_available(isa)) continue;
        assert_int_equal(run_once(c, isa, 2, -1, &out, &err), code);
        assert_int_equal(err.code, code);
        assert_true(err.msg[0] && !strchr(err.msg, '\n'));
        ref_buffer_close(&out);
    }
}
