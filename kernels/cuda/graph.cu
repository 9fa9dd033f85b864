/* Lists of operators as CUDA graphs: captured when a list is seen for the first time, replayed ever
 * after.
 *
 * A list is known by a hash of all that its kernels' arguments are made of: the operators' records,
 * where operands, weights and scratch lie, and their shapes. Nothing else may change what an
 * operator queues, so that a graph stands for the list even after a plan was made anew, as long as
 * it was made for the same shapes and arena. Where weights lie on the device is the file's matter:
 * with another file, or the same attached anew, all graphs are forgotten. */
#include "backend_cuda.h"

enum { MAX_GRAPHS = 32 };

struct graph {
    uint64_t key[2];
    uint64_t used; /* when it was last used */
    cudaGraphExec_t exec;
};
struct dpk_cuda_graphs {
    struct graph at[MAX_GRAPHS];
    uint64_t clock;
};

/* Two sums of 64 bits (multiply and shift, as in SplitMix64), so that no two lists are confused. */
static void mix(uint64_t key[2], uint64_t v) {
    for (int i = 0; i < 2; i++) {
        uint64_t z = (key[i] ^ v) + (i ? 0x9e3779b97f4a7c15u : 0xc2b2ae3d27d4eb4fu);
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        key[i] = z ^ z >> 31;
    }
}

static void mix_pointer(uint64_t key[2], const void *p) { mix(key, (uint64_t)(uintptr_t)p); }

static void mix_tensor(uint64_t key[2], const struct dpk_tensor *t) {
    mix(key, (uint64_t)(uint32_t)t->shape.rank);
    if (!t->shape.rank) return;
    mix_pointer(key, t->data);
    mix(key, (uint64_t)(uint32_t)t->dtype << 32 | t->rows8);
    for (int i = 0; i < t->shape.rank; i++) mix(key, (uint64_t)(uint32_t)t->shape.dim[i]);
}

static void hash_list(uint64_t key[2], const struct dpk_call *calls, size_t n,
                      const struct dpk_loop *loop) {
    key[0] = key[1] = n;
    for (size_t i = 0; i < n; i++) {
        mix_pointer(key, calls[i].op);
        for (int k = 0; k < DPK_MAX_IN; k++) mix_tensor(key, &calls[i].in[k]);
        mix_tensor(key, &calls[i].out);
        for (int k = 0; k < DPK_MAX_WT; k++)
            mix_pointer(key, calls[i].wt[k].shape.rank ? calls[i].wt[k].data : NULL);
        mix_pointer(key, calls[i].scratch);
    }
    if (!loop) return;
    const void *pointers[] = {loop->rows,   loop->row,     loop->x,           loop->state,
                              loop->noise,  loop->ratio,   loop->latent,      loop->step,
                              loop->output, loop->repaint, loop->init_latent, loop->init_noise};
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) mix_pointer(key, pointers[i]);
    for (int i = 0; i < loop->n_gives; i++) {
        mix_pointer(key, loop->give[i].to);
        mix_pointer(key, loop->give[i].from);
        mix(key, loop->give[i].n_bytes);
    }
    uint32_t guidance[2];
    memcpy(&guidance[0], &loop->guidance, 4);
    memcpy(&guidance[1], &loop->rescale, 4);
    mix(key, (uint64_t)loop->one);
    mix(key, (uint64_t)(uint32_t)loop->n_images << 32 | (uint32_t)loop->channels);
    mix(key, (uint64_t)guidance[0] << 32 | guidance[1]);
    mix(key, (uint64_t)(uint32_t)loop->guided);
}

int dpk_cuda_graph_open(struct dpk_cuda *cuda, dpk_error *err) {
    cuda->graphs = (struct dpk_cuda_graphs *)calloc(1, sizeof *cuda->graphs);
    if (!cuda->graphs) DPK_FAIL(err, DPK_ENOMEM, "cuda backend: out of memory");
    return DPK_OK;
}

void dpk_cuda_graph_forget(struct dpk_cuda *cuda) {
    cudaStreamSynchronize(cuda->stream); /* one may still run */
    for (int i = 0; i < MAX_GRAPHS; i++) {
        if (cuda->graphs->at[i].exec) cudaGraphExecDestroy(cuda->graphs->at[i].exec);
        cuda->graphs->at[i].exec = NULL;
    }
}

void dpk_cuda_graph_close(struct dpk_cuda *cuda) {
    if (!cuda->graphs) return;
    dpk_cuda_graph_forget(cuda);
    free(cuda->graphs);
    cuda->graphs = NULL;
}

static int run_calls(struct dpk_cuda *cuda, const struct dpk_call *calls, size_t n,
                     const struct dpk_loop *loop, dpk_error *err) {
    if (loop) DPK_TRY(dpk_cuda_loop_before(cuda, loop, err));
    for (size_t i = 0; i < n; i++) DPK_TRY(dpk_cuda_run(cuda, &calls[i], err));
    if (loop) DPK_TRY(dpk_cuda_loop_after(cuda, loop, err));
    return DPK_OK;
}

/* A relaxed capture: a kernel that runs for the first time is loaded by the driver here, which may
 * allocate, as other sessions may meanwhile. Operators themselves only queue (cuda.h). */
static int capture(struct dpk_cuda *cuda, const struct dpk_call *calls, size_t n,
                   const struct dpk_loop *loop, cudaGraphExec_t *exec, dpk_error *err) {
    cudaGraph_t graph = NULL;
    DPK_CUDA_TRY(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeRelaxed), "capture",
                 err);
    int rc = run_calls(cuda, calls, n, loop, err);
    cudaError_t e = cudaStreamEndCapture(cuda->stream, &graph);
    if (rc == DPK_OK && e == cudaSuccess) e = cudaGraphInstantiate(exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (rc == DPK_OK && e != cudaSuccess) return dpk_cuda_fail(err, "graph", e);
    if (rc != DPK_OK) cudaGetLastError(); /* of the capture, which has no operator to blame */
    return rc;
}

static struct graph *find_graph(struct dpk_cuda_graphs *g, const uint64_t key[2]) {
    for (int i = 0; i < MAX_GRAPHS; i++)
        if (g->at[i].exec && !memcmp(g->at[i].key, key, sizeof g->at[i].key)) return &g->at[i];
    return NULL;
}

/* A free place, or that of the graph that was not used for longest. */
static struct graph *free_graph(struct dpk_cuda *cuda) {
    struct graph *old = &cuda->graphs->at[0];
    for (int i = 0; i < MAX_GRAPHS; i++) {
        struct graph *g = &cuda->graphs->at[i];
        if (!g->exec) return g;
        if (g->used < old->used) old = g;
    }
    cudaStreamSynchronize(cuda->stream); /* it may still run */
    cudaGraphExecDestroy(old->exec);
    old->exec = NULL;
    return old;
}

int dpk_cuda_graph_run(struct dpk_cuda *cuda, const struct dpk_call *calls, size_t n,
                       const struct dpk_loop *loop, dpk_error *err) {
    uint64_t key[2];
    hash_list(key, calls, n, loop);
    struct graph *g = find_graph(cuda->graphs, key);
    if (!g) {
        g = free_graph(cuda);
        for (size_t i = 0; i < n; i++) DPK_TRY(dpk_cuda_prepare(cuda, &calls[i], err));
        DPK_TRY(capture(cuda, calls, n, loop, &g->exec, err));
        memcpy(g->key, key, sizeof key);
    }
    g->used = ++cuda->graphs->clock;
    DPK_CUDA_TRY(cudaGraphLaunch(g->exec, cuda->stream), "graph", err);
    return DPK_OK;
}
