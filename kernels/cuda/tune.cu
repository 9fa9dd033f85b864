/* cuBLASLt and which of its algorithms runs a shape (contract: lt.h).
 *
 * The heuristic's first choice is there at once. Where measuring is allowed, prepare() times the
 * first N_CANDIDATES of the heuristic once for a shape, on its own memory, B out of L2 as weights
 * are in a model, and keeps the fastest in a text file of the user's cache directory
 * ($XDG_CACHE_HOME or ~/.cache, diffpak/cublaslt-<key>.txt; the key is of device, driver and
 * cuBLASLt version):
 *
 *     diffpak cublaslt 1 <device, driver, version>
 *     <product: 17 numbers> <algorithm: 16 digits, eight times>
 *
 * The file is a hint and never trusted: an algorithm is taken from it only if the heuristic offers
 * the very same one for the shape, so that the worst a wrong file does is a slower choice. Lines
 * that are not understood are left out; a file that cannot be read or written is as good as none.
 *
 * DPK_CUDA_TUNE=0 in the environment: no measuring and no file. Measuring never happens inside a
 * capture: prepare() is not called there, and run() only looks up. */
#include "lt.h"

#include "../../formats/atomic_file.h"

#include <inttypes.h>
#include <string>
#include <vector>

enum {
    N_CANDIDATES = 16,
    WARM = 2,
    RUNS = 8,
    ROUNDS = 3,
    MAX_FILE = 4 << 20,
    MAX_ENTRIES = 20000,
    ALGO_WORDS = 8,
    PRODUCT_NUMBERS = 17 /* of a line */
};

struct plan {
    struct dpk_lt_product key;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d; /* C's layout is D's */
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
};
struct entry {
    struct dpk_lt_product key;
    cublasLtMatmulAlgo_t algo;
};
struct dpk_cuda_tune {
    std::vector<plan> plans;
    std::vector<entry> entries; /* of the cache file, and measured since */
    std::string device, path;   /* empty: no file */
    bool measure, changed;
};
static_assert(sizeof(cublasLtMatmulAlgo_t) == ALGO_WORDS * 8, "as it stands in the file");

static int lt_fail(dpk_error *err, const char *what, cublasStatus_t s) {
    return dpk_error_set(err, DPK_EBACKEND, "cuda: cuBLASLt: %s failed with status %d", what,
                         (int)s);
}
#define LT_TRY(call, what)                                                                         \
    do {                                                                                           \
        cublasStatus_t lt_rc_ = (call);                                                            \
        if (lt_rc_ != CUBLAS_STATUS_SUCCESS) return lt_fail(err, what, lt_rc_);                    \
    } while (0)

static bool same(const struct dpk_lt_product &a, const struct dpk_lt_product &b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

/* ---- The file -------------------------------------------------------------------------------- */

static void put_product(std::string &line, const struct dpk_lt_product &p) {
    char text[400];
    uint32_t alpha;
    memcpy(&alpha, &p.alpha, 4);
    snprintf(text, sizeof text,
             "%" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64
             " %" PRId64 " %" PRId64 " %d %d %d %d %d %d %d %" PRIu32,
             p.m, p.n, p.k, p.lda, p.ldb, p.ldd, p.stride_a, p.stride_b, p.stride_d, p.batch,
             p.dtype, p.out_dtype, p.b_columns, p.add, p.bias, p.align, alpha);
    line += text;
}

/* Numbers and the algorithm of a line; false if it is anything else. */
static bool read_line(const std::string &line, entry *e) {
    int64_t v[PRODUCT_NUMBERS];
    const char *p = line.c_str();
    char *end;
    for (int64_t &each : v) {
        each = strtoll(p, &end, 10);
        if (end == p || *end != ' ' || each < 0) return false;
        p = end + 1;
    }
    for (int i = 0; i < ALGO_WORDS; i++) {
        if (strspn(p, "0123456789abcdef") != 16) return false;
        e->algo.data[i] = strtoull(p, &end, 16);
        if (*end != (i + 1 < ALGO_WORDS ? ' ' : '\0')) return false;
        p = end + 1;
    }
    for (int i = 9; i < PRODUCT_NUMBERS; i++)
        if (v[i] > (i + 1 < PRODUCT_NUMBERS ? INT32_MAX : UINT32_MAX)) return false;
    e->key = dpk_lt_product();
    e->key.m = v[0], e->key.n = v[1], e->key.k = v[2];
    e->key.lda = v[3], e->key.ldb = v[4], e->key.ldd = v[5];
    e->key.stride_a = v[6], e->key.stride_b = v[7], e->key.stride_d = v[8];
    e->key.batch = (int32_t)v[9];
    e->key.dtype = (int32_t)v[10], e->key.out_dtype = (int32_t)v[11];
    e->key.b_columns = (int32_t)v[12], e->key.add = (int32_t)v[13];
    e->key.bias = (int32_t)v[14], e->key.align = (int32_t)v[15];
    uint32_t alpha = (uint32_t)v[16];
    memcpy(&e->key.alpha, &alpha, 4);
    return true;
}

static std::string head_of(const struct dpk_cuda_tune *t) {
    return "diffpak cublaslt 1 " + t->device;
}

/* At most MAX_FILE bytes of a regular file, "" if there is none. */
static std::string read_text(const char *path) {
    std::string text;
    struct stat st;
    char piece[4096];
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return text;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= MAX_FILE)
        while ((n = read(fd, piece, sizeof piece)) > 0 && text.size() < MAX_FILE)
            text.append(piece, (size_t)n);
    close(fd);
    return text;
}

static void load(struct dpk_cuda_tune *t) {
    std::string text = read_text(t->path.c_str());
    size_t at = 0, end = text.find('\n');
    if (end == std::string::npos || text.substr(0, end) != head_of(t)) return;
    while ((at = end + 1) < text.size() && t->entries.size() < MAX_ENTRIES) {
        entry e;
        end = text.find('\n', at);
        if (end == std::string::npos) return; /* cut short */
        if (read_line(text.substr(at, end - at), &e)) t->entries.push_back(e);
    }
}

static void save(const struct dpk_cuda_tune *t) {
    std::string text = head_of(t) + "\n";
    struct dpk_atomic_file f;
    for (const entry &e : t->entries) {
        char word[24];
        put_product(text, e.key);
        for (uint64_t w : e.algo.data) {
            snprintf(word, sizeof word, " %016" PRIx64, w);
            text += word;
        }
        text += '\n';
    }
    for (size_t slash = t->path.find('/', 1); slash != std::string::npos;
         slash = t->path.find('/', slash + 1))
        mkdir(t->path.substr(0, slash).c_str(), 0777);
    if (dpk_atomic_open(&f, t->path.c_str(), NULL) != DPK_OK) return;
    dpk_atomic_close(&f, dpk_atomic_write(&f, text.data(), text.size(), NULL), NULL);
}

/* Where the file of this device, driver and library is; "" if nobody says where. */
static std::string file_path(const std::string &device) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char name[64];
    uint64_t h = 14695981039346656037u; /* FNV-1a */
    for (unsigned char c : device) h = (h ^ c) * 1099511628211u;
    snprintf(name, sizeof name, "/diffpak/cublaslt-%016" PRIx64 ".txt", h);
    if (cache && cache[0] == '/') return std::string(cache) + name;
    if (home && home[0] == '/') return std::string(home) + "/.cache" + name;
    return "";
}

/* Times of an emulated device mean nothing: it measures only where a test says so. */
static bool may_measure(void) {
    const char *s = getenv("DPK_CUDA_TUNE");
#ifdef DPK_CUDA_EMU
    return s && strcmp(s, "0") != 0;
#else
    return !s || strcmp(s, "0") != 0;
#endif
}

void dpk_cuda_tune_open(struct dpk_cuda *cuda) {
    cudaDeviceProp p;
    int driver = 0;
    char text[400];
    struct dpk_cuda_tune *t = new dpk_cuda_tune();
    cuda->tune = t;
    t->measure = may_measure();
    if (!t->measure || cudaGetDeviceProperties(&p, cuda->device) != cudaSuccess) return;
    if (cudaDriverGetVersion(&driver) != cudaSuccess) return;
    snprintf(text, sizeof text, "%.250s, %d.%d, %d multiprocessors, driver %d, cublasLt %zu",
             p.name, p.major, p.minor, p.multiProcessorCount, driver, cublasLtGetVersion());
    t->device = text;
    t->path = file_path(t->device);
    if (!t->path.empty()) load(t);
}

void dpk_cuda_tune_close(struct dpk_cuda *cuda) {
    struct dpk_cuda_tune *t = cuda->tune;
    if (!t) return;
    if (t->changed && !t->path.empty()) save(t);
    for (const plan &p : t->plans) {
        cublasLtMatmulDescDestroy(p.desc);
        cublasLtMatrixLayoutDestroy(p.a);
        cublasLtMatrixLayoutDestroy(p.b);
        cublasLtMatrixLayoutDestroy(p.d);
    }
    delete t;
    cuda->tune = NULL;
}

/* ---- Descriptions ---------------------------------------------------------------------------- */

static cudaDataType lt_type(int dtype) {
    switch (dtype) {
    case DPK_F32:
        return CUDA_R_32F;
    case DPK_S8:
        return CUDA_R_8I;
    case DPK_I32:
        return CUDA_R_32I;
    default:
        return CUDA_R_16BF;
    }
}

static int make_layout(cublasLtMatrixLayout_t *layout, int dtype, int64_t rows, int64_t cols,
                       int64_t ld, int32_t batch, int64_t stride, dpk_error *err) {
    LT_TRY(cublasLtMatrixLayoutCreate(layout, lt_type(dtype), (uint64_t)rows, (uint64_t)cols, ld),
           "a layout");
    if (batch == 1) return DPK_OK;
    LT_TRY(cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                            sizeof batch),
           "a layout");
    LT_TRY(cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                            &stride, sizeof stride),
           "a layout");
    return DPK_OK;
}

/* Column-major, what we call B is the first operand and our D is transposed. On failure what was
 * made is in *p. */
static int describe(const struct dpk_cuda *cuda, const struct dpk_lt_product *q, plan *p,
                    dpk_error *err) {
    cublasOperation_t ta = q->b_columns ? CUBLAS_OP_N : CUBLAS_OP_T, tb = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = q->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    cublasLtMatmulDescAttributes_t attr = CUBLASLT_MATMUL_DESC_TRANSA;
    *p = plan();
    p->key = *q;
    const bool integers = q->dtype == DPK_S8;
    LT_TRY(cublasLtMatmulDescCreate(&p->desc, integers ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                    integers ? CUDA_R_32I : CUDA_R_32F),
           "a description");
    LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, attr, &ta, sizeof ta), "a description");
    attr = CUBLASLT_MATMUL_DESC_TRANSB;
    LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, attr, &tb, sizeof tb), "a description");
    attr = CUBLASLT_MATMUL_DESC_EPILOGUE;
    LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, attr, &epilogue, sizeof epilogue),
           "a description");
    if (q->bias) { /* the heuristic looks at the pointer's alignment */
        attr = CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, attr, &cuda->workspace, sizeof(void *)),
               "a description");
    }
    DPK_TRY(make_layout(&p->a, q->dtype, q->b_columns ? q->n : q->k, q->b_columns ? q->k : q->n,
                        q->ldb, q->batch, q->stride_b, err));
    DPK_TRY(make_layout(&p->b, q->dtype, q->k, q->m, q->lda, q->batch, q->stride_a, err));
    return make_layout(&p->d, q->out_dtype, q->n, q->m, q->ldd, q->batch, q->stride_d, err);
}

/* The heuristic's algorithms that are usable, best first. */
static int candidates(const struct dpk_cuda *cuda, const plan *p, int n,
                      std::vector<cublasLtMatmulHeuristicResult_t> *out, dpk_error *err) {
    static const cublasLtMatmulPreferenceAttributes_t aligns[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulHeuristicResult_t results[N_CANDIDATES];
    cublasLtMatmulPreference_t pref;
    uint64_t workspace = cuda->workspace_bytes;
    uint32_t align = p->key.align ? (uint32_t)p->key.align : 16;
    int found = 0;
    LT_TRY(cublasLtMatmulPreferenceCreate(&pref), "a preference");
    cublasStatus_t s = cublasLtMatmulPreferenceSetAttribute(
        pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    for (cublasLtMatmulPreferenceAttributes_t attr : aligns)
        if (!s) s = cublasLtMatmulPreferenceSetAttribute(pref, attr, &align, sizeof align);
    if (!s)
        s = cublasLtMatmulAlgoGetHeuristic(cuda->lt, p->desc, p->a, p->b, p->d, p->d, pref, n,
                                           results, &found);
    cublasLtMatmulPreferenceDestroy(pref);
    for (int i = 0; !s && i < found; i++) {
        if (results[i].state || results[i].workspaceSize > cuda->workspace_bytes) continue;
        out->push_back(results[i]);
    }
    if (!s && !out->empty()) return DPK_OK;
    return dpk_error_set(err, DPK_EBACKEND,
                         "cuda: cuBLASLt has no algorithm for %" PRId64 " x %" PRId64 " x %" PRId64
                         " of %s (status %d)",
                         p->key.m, p->key.n, p->key.k, dpk_dtype_name(p->key.dtype), (int)s);
}

static cublasStatus_t matmul(const struct dpk_cuda *cuda, const plan *p, const void *a,
                             const void *b, const void *c, void *d) {
    static const int32_t one = 1, zero = 0;
    const float alpha = p->key.alpha, beta = p->key.add ? 1.0f : 0.0f;
    const bool integers = p->key.dtype == DPK_S8;
    return cublasLtMatmul(cuda->lt, p->desc, integers ? (const void *)&one : &alpha, b, p->a, a,
                          p->b, integers ? (const void *)&zero : &beta, p->key.add ? c : d, p->d, d,
                          p->d, &p->algo, cuda->workspace, cuda->workspace_bytes, cuda->stream);
}

/* ---- Measuring ------------------------------------------------------------------------------- */

struct bench {
    char *memory;
    size_t a, d, b_bytes, copies; /* A and D lie behind the copies of B */
    cudaEvent_t from, to;
};

static size_t operand_bytes(int64_t rows, int64_t ld, int64_t stride, int32_t batch, int dtype) {
    int64_t n = batch > 1 && stride * (batch - 1) > 0 ? stride * (batch - 1) : 0;
    const int64_t size = dtype == DPK_S8 ? 1 : dtype == DPK_BF16 ? 2 : 4;
    return (size_t)((n + rows * ld) * size + 255) / 256 * 256;
}

static bool open_bench(const struct dpk_cuda *cuda, const struct dpk_lt_product *q, bench *t) {
    *t = bench();
    size_t a = operand_bytes(q->m, q->lda, q->stride_a, q->batch, q->dtype);
    size_t d = operand_bytes(q->m, q->ldd, q->stride_d, q->batch, q->out_dtype);
    t->b_bytes = operand_bytes(q->b_columns ? q->k : q->n, q->ldb, q->stride_b, q->batch, q->dtype);
    t->copies = 2 * (size_t)cuda->l2_bytes / t->b_bytes + 1;
    if (t->copies > 16) t->copies = 16;
    t->a = t->copies * t->b_bytes;
    t->d = t->a + a;
    size_t n_bytes = t->d + d;
    if (cudaMalloc((void **)&t->memory, n_bytes) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    /* Small numbers of either type. */
    return cudaMemsetAsync(t->memory, 0x3c, n_bytes, cuda->stream) == cudaSuccess &&
           cudaEventCreateWithFlags(&t->from, 0) == cudaSuccess &&
           cudaEventCreateWithFlags(&t->to, 0) == cudaSuccess;
}

static void close_bench(bench *t) {
    if (t->from) cudaEventDestroy(t->from);
    if (t->to) cudaEventDestroy(t->to);
    cudaFree(t->memory);
}

/* Least time of RUNS products in ROUNDS, in ms; infinite if they cannot be run. */
static float time_plan(const struct dpk_cuda *cuda, const plan *p, const bench *t) {
    float least = INFINITY;
    size_t next = 0;
    for (int round = 0; round < ROUNDS; round++) {
        float ms;
        for (int i = -WARM; i < RUNS; i++) {
            if (i == 0 && cudaEventRecord(t->from, cuda->stream) != cudaSuccess) return INFINITY;
            const char *b = t->memory + next++ % t->copies * t->b_bytes;
            char *d = t->memory + t->d;
            if (matmul(cuda, p, t->memory + t->a, b, d, d)) return INFINITY;
        }
        if (cudaEventRecord(t->to, cuda->stream) != cudaSuccess ||
            cudaEventSynchronize(t->to) != cudaSuccess ||
            cudaEventElapsedTime(&ms, t->from, t->to) != cudaSuccess)
            return INFINITY;
        if (ms < least) least = ms;
    }
    return least;
}

/* False: nothing could be measured (no memory for it, say), and the choice stays. */
static bool measure(const struct dpk_cuda *cuda, plan *p,
                    const std::vector<cublasLtMatmulHeuristicResult_t> &all) {
    bench t;
    float least = INFINITY;
    cublasLtMatmulAlgo_t best = p->algo;
    if (open_bench(cuda, &p->key, &t)) {
        for (const cublasLtMatmulHeuristicResult_t &each : all) {
            p->algo = each.algo;
            float ms = time_plan(cuda, p, &t);
            if (ms >= least) continue;
            least = ms;
            best = each.algo;
        }
    }
    close_bench(&t);
    cudaGetLastError(); /* of candidates that failed */
    p->algo = best;
    return least < INFINITY;
}

/* ---- Plans ----------------------------------------------------------------------------------- */

static const plan *find_plan(const struct dpk_cuda *cuda, const struct dpk_lt_product *q) {
    for (const plan &p : cuda->tune->plans)
        if (same(p.key, *q)) return &p;
    return NULL;
}

static void choose(const struct dpk_cuda *cuda, plan *p,
                   const std::vector<cublasLtMatmulHeuristicResult_t> &all) {
    struct dpk_cuda_tune *t = cuda->tune;
    p->algo = all[0].algo;
    if (all.size() == 1) return;
    for (const entry &e : t->entries) {
        if (!same(e.key, p->key)) continue;
        for (const cublasLtMatmulHeuristicResult_t &each : all) {
            if (memcmp(&each.algo, &e.algo, sizeof e.algo) != 0) continue;
            p->algo = each.algo;
            return;
        }
    }
    if (!measure(cuda, p, all)) return;
    for (size_t i = t->entries.size(); i-- > 0;)
        if (same(t->entries[i].key, p->key)) t->entries.erase(t->entries.begin() + (long)i);
    t->entries.push_back({p->key, p->algo});
    t->changed = true;
}

/* may_measure: outside of captures. */
static int make_plan(const struct dpk_cuda *cuda, const struct dpk_lt_product *q, bool may_measure,
                     dpk_error *err) {
    std::vector<cublasLtMatmulHeuristicResult_t> all;
    plan p;
    int rc = describe(cuda, q, &p, err);
    bool measured = may_measure && cuda->tune->measure;
    if (rc == DPK_OK) rc = candidates(cuda, &p, measured ? N_CANDIDATES : 1, &all, err);
    if (rc == DPK_OK) {
        p.algo = all[0].algo;
        if (measured) choose(cuda, &p, all);
    }
    if (rc == DPK_OK) {
        cuda->tune->plans.push_back(p);
        return DPK_OK;
    }
    if (p.desc) cublasLtMatmulDescDestroy(p.desc);
    if (p.a) cublasLtMatrixLayoutDestroy(p.a);
    if (p.b) cublasLtMatrixLayoutDestroy(p.b);
    if (p.d) cublasLtMatrixLayoutDestroy(p.d);
    return rc;
}

int dpk_lt_prepare(struct dpk_cuda *cuda, const struct dpk_lt_product *p, dpk_error *err) {
    return find_plan(cuda, p) ? DPK_OK : make_plan(cuda, p, true, err);
}

int dpk_lt_run(struct dpk_cuda *cuda, const struct dpk_lt_product *q, const void *a, const void *b,
               const void *c, void *d, const float *bias, dpk_error *err) {
    if (!find_plan(cuda, q)) DPK_TRY(make_plan(cuda, q, false, err));
    const plan *p = find_plan(cuda, q);
    if (q->bias) {
        LT_TRY(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                              sizeof bias),
               "a bias");
    }
    LT_TRY(matmul(cuda, p, a, b, c, d), "a product");
    return DPK_OK;
}
