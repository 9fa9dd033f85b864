/* Weights on the device: one allocation for all, filled once and shared by the sessions of a model.
 *
 * The file is read through two pinned buffers in turn: while the device copies one and lays it out,
 * the host fills the other from the mapping. A piece is a row of whole panels; a kernel turns it
 * into the rows that struct dpk_cuda_weight describes, and float32, bfloat16 and float16 into the
 * session's type of activations, so that both operands of a product have one type. */
#include "backend_cuda.h"
#include "device.cuh"

enum { PIECE = 16 << 20, N_PIECES = 2, UNIT = 256 /* alignment of a weight */ };

struct dpk_cuda_weights {
    struct dpk_cuda_weights *next;
    int users, device, act_dtype;
    void *base;
    uint64_t bytes;
    struct dpk_cuda_weight *at; /* [n_tensors] of the file */
};

/* What happens to a tensor. */
struct layout {
    bool matrix, skipped; /* row sums of int8 weights: the products here need none */
    int dtype;            /* on the device */
    int bits;             /* of an element there */
    int64_t n_panels;
    uint64_t panel_bytes; /* in the file */
    uint64_t bytes;       /* on the device */
};

static int bits_of(int dtype) {
    return dtype == DPK_F32 || dtype == DPK_I32 ? 32
           : dtype == DPK_S8                    ? 8
           : dtype == DPK_S4                    ? 4
                                                : 16;
}

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* Fills w but for its pointers. */
static void lay_out(const struct dpk_tensor_record *t, int act_dtype, struct dpk_cuda_weight *w,
                    struct layout *l) {
    *w = dpk_cuda_weight();
    w->layout = (int32_t)t->layout;
    w->group = (int32_t)t->group;
    w->flags = t->flags;
    l->matrix = t->layout != DPK_LAYOUT_RAW;
    l->dtype = (int)t->dtype;
    l->bytes = t->bytes;
    if (l->matrix) {
        struct dpk_shape shape = dpk_tensor_shape(t);
        int g = dpk_panel_group((int)t->dtype);
        int64_t taps = shape.rank == 4 ? (int64_t)shape.dim[1] * shape.dim[2] : 1;
        int64_t c = shape.dim[shape.rank - 1];
        if (t->dtype != DPK_S8 && t->dtype != DPK_S4) l->dtype = act_dtype;
        l->bits = bits_of(l->dtype);
        l->n_panels = t->layout == DPK_LAYOUT_PANEL_GLU ? ((int64_t)shape.dim[0] / 2 + 7) / 8
                                                        : ((int64_t)shape.dim[0] + 15) / 16;
        l->panel_bytes = (uint64_t)(16 * taps * round_up(c, g) * bits_of((int)t->dtype) / 8);
        w->n_rows = (int32_t)(l->n_panels * 16);
        w->taps = (int32_t)taps;
        w->c = (int32_t)c;
        w->c_pad = (int32_t)round_up(c, 128 / l->bits);
        w->pitch = (int32_t)(taps * w->c_pad);
        l->bytes = (uint64_t)w->n_rows * (uint64_t)w->pitch * (uint64_t)l->bits / 8;
    }
    w->dtype = l->dtype;
}

/* ---- Laying out ---------------------------------------------------------------------------- */

/* Panels [n_panels][taps][g_pad/g][16][g] of S to rows [16 n_panels][taps][c_pad] of D: a thread
 * makes 16 bytes of a row, neighbours the same columns of the next. */
template <typename S, typename D> struct relayout {
    const S *from;
    D *to;
    int g, taps, c, c_src, c_pad; /* c_src: c rounded up to g */
    int64_t n;                    /* runs of W elements: 16 n_panels * taps * c_pad / W */
};

template <typename D, typename S> __device__ __forceinline__ D convert(S v) {
    return dpk_round<D>(dpk_float(v));
}
template <> __device__ __forceinline__ int8_t convert<int8_t, int8_t>(int8_t v) { return v; }

template <typename S, typename D> __global__ void relayout_kernel(struct relayout<S, D> job) {
    constexpr int W = 16 / (int)sizeof(D);
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < job.n; i += stride) {
        const int runs = job.c_pad / W;
        const int row = (int)(i % 16), run = (int)(i / 16 % runs);
        const int tap = (int)(i / 16 / runs % job.taps);
        const int64_t panel = i / 16 / runs / job.taps;
        const S *from = job.from + (panel * job.taps + tap) * job.c_src * 16;
        dpk_vec<D, W> out;
#pragma unroll
        for (int j = 0; j < W; j++) {
            const int k = run * W + j;
            out.v[j] =
                k < job.c ? convert<D, S>(from[(k / job.g * 16 + row) * job.g + k % job.g]) : D(0);
        }
        D *to = job.to + ((panel * 16 + row) * job.taps + tap) * job.c_pad + run * W;
        *reinterpret_cast<dpk_vec<D, W> *>(to) = out;
    }
}

template <typename S, typename D>
static cudaError_t launch_relayout(struct dpk_cuda *cuda, const void *from, void *to, int g,
                                   const struct dpk_cuda_weight *w, int64_t n_panels, int pack) {
    struct relayout<S, D> job;
    job.from = (const S *)from;
    job.to = (D *)to;
    job.g = g;
    job.taps = w->taps;
    job.c = w->c / pack;
    job.c_src = (int)round_up(job.c, g);
    job.c_pad = w->c_pad / pack;
    job.n = n_panels * 16 * w->taps * (job.c_pad / (16 / (int)sizeof(D)));
    unsigned blocks = dpk_cuda_blocks(job.n, 256);
    if (blocks > (unsigned)cuda->n_sm * 16) blocks = (unsigned)cuda->n_sm * 16;
    return DPK_LAUNCH((relayout_kernel<S, D>), blocks, 256, 0, cuda->stream, job);
}

template <typename D>
static cudaError_t relayout_to(struct dpk_cuda *cuda, int dtype, const void *from, void *to,
                               const struct dpk_cuda_weight *w, int64_t n) {
    const int g = dpk_panel_group(dtype);
    if (dtype == DPK_F32) return launch_relayout<float, D>(cuda, from, to, g, w, n, 1);
    if (dtype == DPK_BF16) return launch_relayout<dpk_bf16, D>(cuda, from, to, g, w, n, 1);
    return launch_relayout<__half, D>(cuda, from, to, g, w, n, 1);
}

static cudaError_t relayout_any(struct dpk_cuda *cuda, int dtype, const void *from, void *to,
                                const struct dpk_cuda_weight *w, int64_t n_panels) {
    if (dtype == DPK_S8) return launch_relayout<int8_t, int8_t>(cuda, from, to, 4, w, n_panels, 1);
    /* s4: bytes of two, whose number of channels is a multiple of 8 */
    if (dtype == DPK_S4) return launch_relayout<int8_t, int8_t>(cuda, from, to, 4, w, n_panels, 2);
    if (w->dtype == DPK_F32) return relayout_to<float>(cuda, dtype, from, to, w, n_panels);
    return relayout_to<dpk_bf16>(cuda, dtype, from, to, w, n_panels);
}

/* ---- Copying ------------------------------------------------------------------------------- */

struct staging {
    uint64_t bytes;
    void *host[N_PIECES], *device[N_PIECES];
    cudaEvent_t free[N_PIECES];
    unsigned next;
};

static void close_staging(struct staging *s) {
    for (int i = 0; i < N_PIECES; i++) {
        cudaFreeHost(s->host[i]);
        cudaFree(s->device[i]);
        if (s->free[i]) cudaEventDestroy(s->free[i]);
    }
}

static int open_staging(struct dpk_cuda *cuda, struct staging *s, dpk_error *err) {
    for (int i = 0; i < N_PIECES; i++) {
        DPK_CUDA_TRY(cudaHostAlloc(&s->host[i], s->bytes, cudaHostAllocDefault), "pinned memory",
                     err);
        DPK_CUDA_TRY(cudaMalloc(&s->device[i], s->bytes), "memory to upload through", err);
        DPK_CUDA_TRY(cudaEventCreateWithFlags(&s->free[i], cudaEventDisableTiming), "event", err);
        DPK_CUDA_TRY(cudaEventRecord(s->free[i], cuda->stream), "event", err);
    }
    return DPK_OK;
}

/* One piece: bytes of the file to the device, then laid out at `to`. */
static int upload_piece(struct dpk_cuda *cuda, struct staging *s, const struct dpk_tensor_record *t,
                        const struct layout *l, const struct dpk_cuda_weight *w,
                        const uint8_t *from, uint64_t bytes, void *to, dpk_error *err) {
    const unsigned i = s->next++ % N_PIECES;
    DPK_CUDA_TRY(cudaEventSynchronize(s->free[i]), "upload", err);
    memcpy(s->host[i], from, bytes);
    void *first = l->matrix ? s->device[i] : to;
    DPK_CUDA_TRY(cudaMemcpyAsync(first, s->host[i], bytes, cudaMemcpyHostToDevice, cuda->stream),
                 "upload", err);
    if (l->matrix)
        DPK_CUDA_TRY(
            relayout_any(cuda, (int)t->dtype, first, to, w, (int64_t)(bytes / l->panel_bytes)),
            "laying out of weights", err);
    DPK_CUDA_TRY(cudaEventRecord(s->free[i], cuda->stream), "upload", err);
    return DPK_OK;
}

static int upload_tensor(struct dpk_cuda *cuda, struct staging *s, const struct dpk_file *file,
                         const struct dpk_tensor_record *t, const struct layout *l,
                         const struct dpk_cuda_weight *w, dpk_error *err) {
    const uint8_t *from = file->weights + t->offset;
    uint8_t *to = (uint8_t *)w->data;
    uint64_t each = s->bytes, to_each = s->bytes;
    if (l->matrix) {
        uint64_t panels = s->bytes / l->panel_bytes;
        each = panels * l->panel_bytes;
        to_each = panels * (l->bytes / (uint64_t)l->n_panels);
    }
    for (uint64_t at = 0; at < t->bytes; at += each, to += to_each)
        DPK_TRY(upload_piece(cuda, s, t, l, w, from + at,
                             t->bytes - at < each ? t->bytes - at : each, to, err));
    return DPK_OK;
}

/* ---- All of a file ------------------------------------------------------------------------- */

static int upload_all(struct dpk_cuda *cuda, const struct dpk_file *file, struct layout *l,
                      struct dpk_cuda_weights *w, struct staging *s, dpk_error *err) {
    for (uint32_t i = 0; i < file->n_tensors; i++)
        if (file->tensors[i].colsum != DPK_NONE) l[file->tensors[i].colsum].skipped = true;
    uint64_t most = 0, panel = 0;
    for (uint32_t i = 0; i < file->n_tensors; i++) {
        lay_out(&file->tensors[i], w->act_dtype, &w->at[i], &l[i]);
        if (l[i].skipped) continue;
        if (l[i].panel_bytes > panel) panel = l[i].panel_bytes;
        if (file->tensors[i].bytes > most) most = file->tensors[i].bytes;
        w->bytes += (l[i].bytes + UNIT - 1) / UNIT * UNIT;
    }
    if (w->bytes == 0) return DPK_OK;
    s->bytes = most < (uint64_t)PIECE ? most : (uint64_t)PIECE;
    if (s->bytes < panel) s->bytes = panel;
    cudaError_t e = cudaMalloc(&w->base, w->bytes);
    if (e == cudaErrorMemoryAllocation)
        DPK_FAIL(err, DPK_ENOMEM, "cuda: no device memory for %llu bytes of weights",
                 (unsigned long long)w->bytes);
    DPK_CUDA_TRY(e, "memory for weights", err);
    uint64_t at = 0;
    for (uint32_t i = 0; i < file->n_tensors; i++) {
        if (l[i].skipped) continue;
        w->at[i].data = (uint8_t *)w->base + at;
        at += (l[i].bytes + UNIT - 1) / UNIT * UNIT;
    }
    for (uint32_t i = 0; i < file->n_tensors; i++)
        if (file->tensors[i].scale != DPK_NONE)
            w->at[i].scale = (const float *)w->at[file->tensors[i].scale].data;
    DPK_TRY(open_staging(cuda, s, err));
    for (uint32_t i = 0; i < file->n_tensors; i++)
        if (!l[i].skipped)
            DPK_TRY(upload_tensor(cuda, s, file, &file->tensors[i], &l[i], &w->at[i], err));
    DPK_CUDA_TRY(cudaStreamSynchronize(cuda->stream), "upload", err);
    return DPK_OK;
}

static void free_weights(struct dpk_cuda_weights *w) {
    cudaFree(w->base);
    free(w->at);
    free(w);
}

static int make_weights(struct dpk_cuda *cuda, const struct dpk_file *file,
                        struct dpk_cuda_weights **out, dpk_error *err) {
    struct staging s = {};
    struct layout *l = (struct layout *)calloc(file->n_tensors + 1u, sizeof *l);
    struct dpk_cuda_weights *w = (struct dpk_cuda_weights *)calloc(1, sizeof *w);
    if (w) w->at = (struct dpk_cuda_weight *)calloc(file->n_tensors + 1u, sizeof *w->at);
    int rc = DPK_OK;
    if (!l || !w || !w->at) {
        rc = dpk_error_set(err, DPK_ENOMEM, "cuda: no memory for %u tensors", file->n_tensors);
    } else {
        w->users = 1;
        w->device = cuda->device;
        w->act_dtype = cuda->act_dtype;
        rc = upload_all(cuda, file, l, w, &s, err);
        if (rc) cudaStreamSynchronize(cuda->stream); /* what is still on its way */
    }
    close_staging(&s);
    free(l);
    if (rc == DPK_OK) *out = w;
    else if (w) free_weights(w);
    return rc;
}

int dpk_cuda_attach(struct dpk_cuda *cuda, const struct dpk_file *file, struct dpk_share *share,
                    dpk_error *err) {
    dpk_cuda_graph_forget(cuda);
    dpk_cuda_detach(cuda);
    pthread_mutex_lock(&share->lock);
    struct dpk_cuda_weights *w = (struct dpk_cuda_weights *)share->first;
    while (w && (w->device != cuda->device || w->act_dtype != cuda->act_dtype)) w = w->next;
    int rc = DPK_OK;
    if (w) {
        w->users++;
    } else {
        rc = make_weights(cuda, file, &w, err);
        if (rc == DPK_OK) {
            w->next = (struct dpk_cuda_weights *)share->first;
            share->first = w;
        }
    }
    pthread_mutex_unlock(&share->lock);
    if (rc == DPK_OK) {
        cuda->weights = w;
        cuda->share = share;
    }
    return rc;
}

void dpk_cuda_detach(struct dpk_cuda *cuda) {
    struct dpk_cuda_weights *w = cuda->weights;
    if (!w) return;
    pthread_mutex_lock(&cuda->share->lock);
    if (--w->users == 0) {
        struct dpk_cuda_weights **at = (struct dpk_cuda_weights **)&cuda->share->first;
        while (*at != w) at = &(*at)->next;
        *at = w->next;
        free_weights(w);
    }
    pthread_mutex_unlock(&cuda->share->lock);
    cuda->weights = NULL;
}

uint64_t dpk_cuda_weight_bytes(const struct dpk_cuda *cuda) {
    return cuda->weights ? cuda->weights->bytes : 0;
}

const struct dpk_cuda_weight *dpk_cuda_find_weight(const struct dpk_cuda *cuda,
                                                   const struct dpk_call *call, size_t i) {
    return &cuda->weights->at[call->op->wt[i]];
}
