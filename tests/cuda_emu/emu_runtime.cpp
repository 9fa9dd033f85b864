/* The runtime's calls: memory, streams, events, graphs, and the log of them all.
 *
 * A stream is a list of things to do that grows until somebody waits for it. Under
 * AddressSanitizer, device memory is open only while such a list runs. */
#include "cuda_runtime.h"
#include "emu_impl.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define DPK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DPK_ASAN 1
#endif
#endif
#ifdef DPK_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

struct item {
    std::function<void()> run;
    struct CUevent_st *event; /* reached when this is done; or NULL */
};
struct CUstream_st {
    std::deque<item> queue;
    bool capturing;
    cudaStreamCaptureMode mode;
    struct CUgraph_st *graph; /* that a capture goes to */
};
struct CUevent_st {
    CUstream_st *stream; /* where it was recorded last; NULL: done */
    uint64_t waiting;    /* records that have not been reached */
    bool timed, recorded;
};
struct CUgraph_st {
    std::vector<std::function<void()>> nodes;
};
struct CUgraphExec_st {
    std::vector<std::function<void()>> nodes;
};
struct region {
    unsigned char *base, *data;
    size_t bytes, n_bytes; /* of all, of the data */
    bool pinned;           /* host memory */
};

static std::recursive_mutex lock;
static std::vector<region> regions;
static size_t in_use, memory_bytes = (size_t)4 << 30;
static int open_count;
static thread_local int n_capturing; /* of this thread; whatever the mode: the backend needs none */
static const char *next_name = "?";
static bool logging;
static std::deque<dpk_emu_entry> entries;
static std::vector<dpk_emu_entry> entries_flat;

#define LOCK std::lock_guard<std::recursive_mutex> hold(lock)

static void note(dpk_emu_kind kind, const char *name, size_t n_bytes) {
    if (logging) entries.push_back(dpk_emu_entry{kind, name, n_bytes});
}

void dpk_emu_log_start(void) {
    LOCK;
    logging = true;
    entries.clear();
}

size_t dpk_emu_log(const struct dpk_emu_entry **list) {
    LOCK;
    entries_flat.assign(entries.begin(), entries.end());
    *list = entries_flat.data();
    return entries_flat.size();
}

size_t dpk_emu_in_use(void) { return in_use; }
void dpk_emu_set_memory(size_t n_bytes) { memory_bytes = n_bytes; }
void dpk_emu_name(const char *name) { next_name = name; }

/* ---- Errors and the device ----------------------------------------------------------------- */

const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorInvalidValue:
        return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
        return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
        return "cudaErrorNoDevice";
    case cudaErrorNotReady:
        return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported:
        return "cudaErrorStreamCaptureUnsupported";
    default:
        return "cudaErrorUnknown";
    }
}
const char *cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) {
    *version = getenv("DPK_EMU_NO_DRIVER") ? 0 : CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n) {
    *n = getenv("DPK_EMU_NO_DEVICE") ? 0 : 1;
    return *n ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device != 0) return cudaErrorInvalidDevice;
    *p = cudaDeviceProp();
    snprintf(p->name, sizeof p->name, "emulated");
    p->totalGlobalMem = memory_bytes;
    p->major = 8;
    p->minor = 0;
    p->multiProcessorCount = 4;
    p->l2CacheSize = 4 << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerBlockOptin = DPK_EMU_SHARED_OPTIN;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device) {
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e) return e;
    switch (attr) {
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    default:
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

/* ---- Memory -------------------------------------------------------------------------------- */

/* Device memory is poisoned while the host's code runs: the first 64 KiB of every allocation, which
 * is where a host that strays there looks first; and always what lies beyond its end. */
enum { SPACE = 256, POISONED = 64 << 10 };

static size_t poisoned_bytes(const region &r) {
    return r.n_bytes < (size_t)POISONED ? r.n_bytes : (size_t)POISONED;
}
static void open_memory(void) {
    if (open_count++ == 0)
        for (const region &r : regions)
            if (!r.pinned) ASAN_UNPOISON_MEMORY_REGION(r.data, poisoned_bytes(r));
}
static void close_memory(void) {
    if (--open_count == 0)
        for (const region &r : regions)
            if (!r.pinned) ASAN_POISON_MEMORY_REGION(r.data, poisoned_bytes(r));
}

static cudaError_t add_region(void **p, size_t n_bytes, bool pinned) {
    size_t padded = (n_bytes + SPACE - 1) / SPACE * SPACE + 2 * SPACE;
    if (n_bytes == 0) return cudaErrorInvalidValue;
    region r = {(unsigned char *)aligned_alloc(SPACE, padded), NULL, padded, n_bytes, pinned};
    if (!r.base) return cudaErrorMemoryAllocation;
    r.data = r.base + SPACE;
    memset(r.data, 0xff, n_bytes);
    ASAN_POISON_MEMORY_REGION(r.base, SPACE);
    ASAN_POISON_MEMORY_REGION(r.data + n_bytes, padded - SPACE - n_bytes);
    if (!pinned && !open_count) ASAN_POISON_MEMORY_REGION(r.data, poisoned_bytes(r));
    regions.push_back(r);
    *p = r.data;
    return cudaSuccess;
}

static cudaError_t drop_region(void *p, bool pinned) {
    if (!p) return cudaSuccess;
    for (size_t i = 0; i < regions.size(); i++) {
        if (regions[i].data != p || regions[i].pinned != pinned) continue;
        if (!pinned) in_use -= regions[i].n_bytes;
        ASAN_UNPOISON_MEMORY_REGION(regions[i].base, regions[i].bytes);
        free(regions[i].base);
        regions.erase(regions.begin() + (long)i);
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

static const region *find_region(const void *p) {
    const unsigned char *at = (const unsigned char *)p;
    for (const region &r : regions)
        if (at >= r.data && at < r.data + r.n_bytes) return &r;
    return NULL;
}

cudaError_t cudaMalloc(void **p, size_t n_bytes) {
    LOCK;
    note(DPK_EMU_ALLOC, "device", n_bytes);
    if (n_capturing) return cudaErrorStreamCaptureUnsupported;
    if (n_bytes > memory_bytes - in_use) return cudaErrorMemoryAllocation;
    cudaError_t e = add_region(p, n_bytes, false);
    if (!e) in_use += n_bytes;
    return e;
}
cudaError_t cudaFree(void *p) {
    LOCK;
    if (!p) return cudaSuccess;
    note(DPK_EMU_FREE, "device", 0);
    if (n_capturing) return cudaErrorStreamCaptureUnsupported;
    cudaDeviceSynchronize();
    return drop_region(p, false);
}
cudaError_t cudaHostAlloc(void **p, size_t n_bytes, unsigned) {
    LOCK;
    note(DPK_EMU_ALLOC, "pinned", n_bytes);
    if (n_capturing) return cudaErrorStreamCaptureUnsupported;
    return add_region(p, n_bytes, true);
}
cudaError_t cudaFreeHost(void *p) {
    LOCK;
    if (!p) return cudaSuccess;
    note(DPK_EMU_FREE, "pinned", 0);
    cudaDeviceSynchronize();
    return drop_region(p, true);
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    LOCK;
    *total = memory_bytes;
    *available = memory_bytes - in_use;
    return cudaSuccess;
}

/* ---- Streams ------------------------------------------------------------------------------- */

static std::vector<CUstream_st *> streams;
static CUstream_st default_stream;

static CUstream_st *stream_of(cudaStream_t s) { return s ? s : &default_stream; }

static void run_first(CUstream_st *s) {
    item i = std::move(s->queue.front());
    s->queue.pop_front();
    open_memory();
    i.run();
    close_memory();
    if (i.event) i.event->waiting--;
}

static void drain(CUstream_st *s) {
    open_memory();
    while (!s->queue.empty()) run_first(s);
    close_memory();
}

static void drain_to(CUevent_st *e) {
    while (e->waiting && e->stream && !e->stream->queue.empty()) run_first(e->stream);
}

static void enqueue(CUstream_st *s, std::function<void()> run) {
    if (s->capturing) s->graph->nodes.push_back(std::move(run));
    else s->queue.push_back(item{std::move(run), NULL});
}

/* What the driver knows of a kernel: it is loaded when it is launched for the first time. */
struct kernel_state {
    bool loaded;
    size_t most_shared; /* dynamic, 0: never set */
};
static std::map<const void *, kernel_state> kernels;

int dpk_emu_allow_shared(const void *kernel, int n_bytes) {
    LOCK;
    if (n_bytes < 0 || n_bytes > DPK_EMU_SHARED_OPTIN) return cudaErrorInvalidValue;
    kernels[kernel].most_shared = (size_t)n_bytes;
    return cudaSuccess;
}

int dpk_emu_enqueue(cudaStream_t stream, const void *kernel, dim3 grid, dim3 block, size_t shared,
                    const std::function<void()> &body) {
    LOCK;
    CUstream_st *s = stream_of(stream);
    kernel_state &k = kernels[kernel];
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    const size_t limit = k.most_shared ? DPK_EMU_SHARED_OPTIN : DPK_EMU_SHARED;
    std::shared_ptr<dpk_emu_launch> l(
        new dpk_emu_launch{next_name, grid, block, shared, limit, body});
    if (!threads || threads > 1024 || block.z > 64 || !grid.x || !grid.y || !grid.z ||
        grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u)
        return cudaErrorInvalidConfiguration;
    if (shared > (k.most_shared ? k.most_shared : (size_t)DPK_EMU_SHARED))
        return cudaErrorInvalidValue;
    /* Loading allocates, which other captures than relaxed ones do not let pass. */
    if (kernel && !k.loaded && s->capturing && s->mode != cudaStreamCaptureModeRelaxed)
        return cudaErrorStreamCaptureUnsupported;
    k.loaded = true;
    note(DPK_EMU_LAUNCH, next_name, 0);
    enqueue(s, [l] {
        note(DPK_EMU_RUN, l->name, 0);
        dpk_emu_run(l.get());
    });
    next_name = "?";
    return cudaSuccess;
}

static cudaError_t check_range(const void *p, size_t n_bytes, bool device) {
    const region *r = find_region(p);
    if (!device) return r && !r->pinned ? cudaErrorInvalidValue : cudaSuccess;
    if (!r || r->pinned) return cudaErrorInvalidValue;
    size_t left = r->n_bytes - (size_t)((const unsigned char *)p - r->data);
    return n_bytes <= left ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    LOCK;
    CUstream_st *s = stream_of(stream);
    bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    note(kind == cudaMemcpyHostToDevice   ? DPK_EMU_COPY_IN
         : kind == cudaMemcpyDeviceToHost ? DPK_EMU_COPY_OUT
                                          : DPK_EMU_COPY_DEVICE,
         "copy", n_bytes);
    if (!n_bytes) return cudaSuccess;
    if (!to && !from) return cudaErrorInvalidValue;
    if (check_range(dst, n_bytes, to) || check_range(src, n_bytes, from))
        return cudaErrorInvalidValue;
    const region *source = find_region(src);
    if (!from && !source) { /* pageable: the runtime has copied it when it returns */
        if (s->capturing) return cudaErrorStreamCaptureUnsupported;
        std::shared_ptr<std::string> kept(new std::string((const char *)src, n_bytes));
        enqueue(s, [dst, kept] { memcpy(dst, kept->data(), kept->size()); });
        return cudaSuccess;
    }
    enqueue(s, [dst, src, n_bytes] { memmove(dst, src, n_bytes); });
    /* To pageable memory the runtime waits. */
    if (kind == cudaMemcpyDeviceToHost && !find_region(dst)) {
        if (s->capturing) return cudaErrorStreamCaptureUnsupported;
        note(DPK_EMU_SYNC, "copy", 0);
        drain(s);
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind) {
    LOCK;
    cudaError_t e = cudaMemcpyAsync(dst, src, n_bytes, kind, NULL);
    return e ? e : cudaStreamSynchronize(NULL);
}
cudaError_t cudaMemsetAsync(void *dst, int value, size_t n_bytes, cudaStream_t s) {
    LOCK;
    note(DPK_EMU_SET, "set", n_bytes);
    if (!n_bytes) return cudaSuccess;
    if (check_range(dst, n_bytes, true)) return cudaErrorInvalidValue;
    enqueue(stream_of(s), [dst, value, n_bytes] { memset(dst, value, n_bytes); });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    LOCK;
    *s = new CUstream_st();
    streams.push_back(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    LOCK;
    if (!s) return cudaSuccess;
    drain(s);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s) streams.erase(streams.begin() + (long)i);
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    LOCK;
    CUstream_st *s = stream_of(stream);
    note(DPK_EMU_SYNC, "stream", 0);
    if (s->capturing) return cudaErrorStreamCaptureUnsupported;
    drain(s);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    LOCK;
    note(DPK_EMU_SYNC, "device", 0);
    if (n_capturing) return cudaErrorStreamCaptureUnsupported;
    drain(&default_stream);
    for (CUstream_st *s : streams) drain(s);
    return cudaSuccess;
}

/* ---- Events -------------------------------------------------------------------------------- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    LOCK;
    *e = new CUevent_st();
    (*e)->timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    LOCK;
    if (!e) return cudaSuccess;
    drain_to(e);
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream) {
    LOCK;
    CUstream_st *s = stream_of(stream);
    if (s->capturing) return cudaErrorStreamCaptureUnsupported;
    e->stream = s;
    e->waiting++;
    e->recorded = true;
    s->queue.push_back(item{[] {}, e});
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    LOCK;
    note(DPK_EMU_SYNC, "event", 0);
    if (n_capturing) return cudaErrorStreamCaptureUnsupported;
    drain_to(e);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    LOCK;
    return e->waiting ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    LOCK;
    for (const CUevent_st *e : {from, to}) {
        if (!e->timed || !e->recorded) return cudaErrorInvalidValue;
        if (e->waiting) return cudaErrorNotReady;
    }
    *ms = 1.0f; /* no clock: every algorithm is as fast as the next */
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    LOCK;
    if (stream_of(s)->capturing) return cudaErrorStreamCaptureUnsupported;
    stream_of(s)->queue.push_back(item{[e] { drain_to(e); }, NULL});
    return cudaSuccess;
}

/* ---- Graphs -------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
    LOCK;
    note(DPK_EMU_CAPTURE, "capture", 0);
    if (!s || s->capturing) return cudaErrorStreamCaptureUnsupported;
    s->capturing = true;
    s->mode = mode;
    s->graph = new CUgraph_st();
    n_capturing++;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    LOCK;
    if (!s || !s->capturing) return cudaErrorInvalidValue;
    s->capturing = false;
    n_capturing--;
    *graph = s->graph;
    s->graph = NULL;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    LOCK;
    *exec = new CUgraphExec_st{graph->nodes};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    LOCK;
    CUstream_st *s = stream_of(stream);
    note(DPK_EMU_GRAPH, "graph", exec->nodes.size());
    if (s->capturing) return cudaErrorStreamCaptureUnsupported;
    std::vector<std::function<void()>> nodes = exec->nodes;
    enqueue(s, [nodes] {
        for (const std::function<void()> &node : nodes) node();
    });
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
