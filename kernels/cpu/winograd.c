/* Chunks, tasks and loops of Winograd convolution (contract and method: winograd.h). */
#include "winograd.h"

#include "gemm.h"

#include <string.h>

enum {
    SLAB = 64,        /* columns */
    CHUNK_STEP = 12,  /* chunks have a multiple of this many tiles */
    LEAST_CHUNK = 24, /* tiles */
    MOST_CHUNK = 96,
    INPUT_TILES = 6, /* of a task; divides CHUNK_STEP */
    AHEAD = 6,       /* tiles from the one whose memory is fetched to the one being finished */
    MOST_WHOLE_U = 12 << 20, /* bytes */
    MOST_HELD_U = 32 << 20,
    MOST_HELD_V = 16 << 20,
};

/* ---- Plan ----------------------------------------------------------------------------------- */

/* Steps between positions are this much over a multiple of 4 KiB, so that the 36 lines which a
 * transform touches together are not all in one set of the cache. */
static size_t skew(size_t n_bytes) { return dpk_round_up(n_bytes, 4096) + 320; }

static int clamp(int v, int lo, int hi) { return v > hi ? (hi > lo ? hi : lo) : v < lo ? lo : v; }

static int ceil_div(int a, int b) { return (a + b - 1) / b; }

static void plan_sizes(struct dpk_wino *w) {
    size_t chunk = (size_t)w->chunk, c = (size_t)w->c;
    w->row = dpk_round_up(c, 32);
    w->v_pos = skew(chunk * w->row * 2) / 2;
    w->v_size = DPK_WINO_POS * w->v_pos;
    w->v_scale_pos = (size_t)w->n_seg * chunk;
    w->v_scale_size = dpk_round_up(DPK_WINO_POS * w->v_scale_pos, 16);
    w->u_pos = skew(c * SLAB * 2) / 2;
    w->u_size = DPK_WINO_POS * w->u_pos;
    w->u_scale_size = DPK_WINO_POS * SLAB;
    w->m_pos = skew(chunk * SLAB * 4) / 4;
}

/* Tiles of a chunk: as many as leave M in L2, where there are enough for every worker. */
static void plan_chunks(struct dpk_wino *w, int most, int tasks) {
    int chunks = ceil_div(w->tiles, most);
    if (chunks < tasks) chunks = clamp(w->tiles / LEAST_CHUNK, chunks, tasks);
    w->chunk = ceil_div(ceil_div(w->tiles, chunks), CHUNK_STEP) * CHUNK_STEP;
    w->n_chunks = ceil_div(w->tiles, w->chunk);
    plan_sizes(w);
}

static size_t or_else(size_t limit, size_t usual) { return limit ? limit : usual; }

size_t dpk_wino_plan(const struct dpk_cpu *cpu, struct dpk_wino *w) {
    int workers = dpk_pool_workers(cpu->pool), tasks = workers == 1 ? 1 : 4 * workers;
    w->n_seg = ceil_div(w->c, DPK_WINO_SEGMENT);
    w->n_slabs = ceil_div(w->n, SLAB);
    w->hold = 0;
    w->group = w->n_slabs;
    plan_chunks(w, MOST_CHUNK / 2, tasks);
    size_t slab = w->u_size * 2 + w->u_scale_size * 4;
    if (slab * (size_t)w->n_slabs > or_else(w->most_whole_u, MOST_WHOLE_U)) {
        size_t most_u = or_else(w->most_held_u, MOST_HELD_U);
        size_t most_v = or_else(w->most_held_v, MOST_HELD_V);
        plan_chunks(w, MOST_CHUNK, tasks);
        w->hold = clamp((int)(most_v / (w->v_size * 2)), 1, w->n_chunks);
        w->group = clamp(ceil_div(tasks, w->hold), 1, (int)(most_u / slab));
        w->group = clamp(w->group, 1, w->n_slabs);
    }
    size_t chunk = w->v_size * 2 + w->v_scale_size * 4;
    w->shared_bytes =
        dpk_round_up(w->row * 2, 64) + slab * (size_t)w->group + chunk * (size_t)w->hold;
    w->worker_bytes = DPK_WINO_POS * (DPK_WINO_ROW + w->m_pos) * 4 + (w->hold ? 0 : chunk);
    return w->shared_bytes + w->worker_bytes * (size_t)workers;
}

/* Measured at 1280 to 1280 channels: a tile costs what 4.5 pixels cost the direct way, and U what
 * 55 do. Edges that do not fill their tiles count. */
bool dpk_wino_pays(struct dpk_wino *w) {
    w->tiles_y = ceil_div(w->out_h, 4);
    w->tiles_x = ceil_div(w->out_w, 4);
    int64_t tiles = (int64_t)w->images * w->tiles_y * w->tiles_x;
    int64_t pixels = (int64_t)w->images * w->out_h * w->out_w;
    if (w->c < 32 || w->c % 2 || pixels < 64 + 5 * tiles || tiles > INT32_MAX / 16) return false;
    w->tiles = (int)tiles;
    return true;
}

/* ---- Run ------------------------------------------------------------------------------------ */

struct job {
    const struct dpk_cpu *cpu;
    const struct dpk_wino *w;
    char *shared, *workers;
    const uint16_t *zeros;
    int16_t *u, *v;
    float *u_scale, *v_scale; /* v, v_scale: of the chunks that are kept */
    int chunk, slab;          /* first that is kept */
};

/* The memory of a worker: buffer, M, V. */
struct bench {
    float *buffer, *m;
    int16_t *v;
    float *v_scale;
};

static struct bench find_bench(const struct job *job, int worker) {
    const struct dpk_wino *w = job->w;
    struct bench b;
    b.buffer = (float *)(void *)(job->workers + (size_t)worker * w->worker_bytes);
    b.m = b.buffer + DPK_WINO_POS * DPK_WINO_ROW;
    b.v = (int16_t *)(void *)(b.m + DPK_WINO_POS * w->m_pos);
    b.v_scale = (float *)(void *)(b.v + w->v_size);
    return b;
}

struct place {
    int image, y, x; /* of the result */
};

static struct place find_tile(const struct dpk_wino *w, int tile) {
    int line = tile / w->tiles_x;
    return (struct place){line / w->tiles_y, line % w->tiles_y * 4, tile % w->tiles_x * 4};
}

static int source(int i, int n, int n_out) {
    return n == n_out ? i : (int)((int64_t)i * n / n_out);
}

/* The 36 pixels of a tile's input. */
static void find_pixels(const struct job *job, int tile, const uint16_t **pixel) {
    const struct dpk_wino *w = job->w;
    struct place at = find_tile(w, tile);
    for (int i = 0; i < 6; i++, pixel += 6) {
        int y = at.y - 1 + i;
        bool outside = y < 0 || y >= w->out_h;
        size_t line = (size_t)at.image * (size_t)w->h;
        if (!outside) line += (size_t)source(y, w->h, w->out_h);
        for (int j = 0; j < 6; j++) {
            int x = at.x - 1 + j;
            size_t column = (size_t)source(x, w->w, w->out_w);
            pixel[j] = outside || x < 0 || x >= w->out_w
                           ? job->zeros
                           : w->x + (line * (size_t)w->w + column) * (size_t)w->c;
        }
    }
}

/* Transform the input of tiles first .. first + n to rows t0 .. of a chunk's V. */
static void input_tiles(const struct job *job, int first, int n, int16_t *v, float *v_scale, int t0,
                        float *buffer) {
    const struct dpk_wino *w = job->w;
    const uint16_t *pixels[2][DPK_WINO_POS];
    find_pixels(job, first, pixels[0]);
    for (int i = 0; i < n; i++) {
        const uint16_t **now = pixels[i % 2], **next = pixels[1 - i % 2];
        if (first + i + 1 < w->tiles) find_pixels(job, first + i + 1, next);
        else next = now;
        for (int s = 0; s < w->n_seg; s++) {
            int begin = s * DPK_WINO_SEGMENT;
            struct dpk_wino_input in = {
                .pixel = now,
                .next = next,
                .first = begin,
                .n = w->c - begin < DPK_WINO_SEGMENT ? w->c - begin : DPK_WINO_SEGMENT,
                .v = v + (size_t)(t0 + i) * w->row + begin,
                .v_pos = w->v_pos,
                .scale = v_scale + s * w->chunk + t0 + i,
                .scale_pos = w->v_scale_pos,
                .buffer = buffer,
            };
            job->cpu->k->wino_input(&in);
        }
    }
}

/* The lines of the residual and of the result that finish_tile will touch. */
static void prefetch_tile(const struct job *job, int tile, int slab) {
    const struct dpk_wino *w = job->w;
    struct place at = find_tile(w, tile);
    size_t n = (size_t)w->n, n0 = (size_t)slab * SLAB;
    for (int r = 0; r < 4 && at.y + r < w->out_h; r++) {
        size_t line = (size_t)at.image * (size_t)w->out_h + (size_t)(at.y + r);
        for (int s = 0; s < 4 && at.x + s < w->out_w; s++) {
            size_t first = (line * (size_t)w->out_w + (size_t)(at.x + s)) * n + n0;
            for (size_t k = 0; k < SLAB && n0 + k < n; k += 32) {
                __builtin_prefetch(w->out + first + k, 1);
                if (w->residual) __builtin_prefetch(w->residual + first + k);
            }
        }
    }
}

/* Multiply a chunk of `tiles` tiles from `first` on with a slab, and finish its part of the
 * result. */
static void multiply(const struct job *job, int first, int tiles, const int16_t *v,
                     const float *v_scale, int slab, float *m) {
    const struct dpk_wino *w = job->w;
    const struct dpk_tile_s16_kernel *tile = &job->cpu->k->tile_s16;
    size_t kept = (size_t)(slab - job->slab), n0 = (size_t)slab * SLAB;
    int columns = w->n - slab * SLAB < SLAB ? w->n - slab * SLAB : SLAB;
    int panels = ceil_div(columns, 16);
    struct dpk_tile_s16 t = {
        .a_stride = w->row,
        .k = w->c,
        .segment = DPK_WINO_SEGMENT,
        .b_stride = (size_t)w->c * 16,
        .c_stride = SLAB,
        .scale_seg = (size_t)w->chunk,
    };
    for (size_t p = 0; p < DPK_WINO_POS; p++) {
        for (int r = 0; r < panels; r += tile->np) {
            t.n_panels = panels - r < tile->np ? panels - r : tile->np;
            t.b = job->u + kept * w->u_size + p * w->u_pos + (size_t)r * t.b_stride;
            for (int row = 0; row < tiles; row += tile->mr) {
                t.rows = tiles - row < tile->mr ? tiles - row : tile->mr;
                t.a = v + p * w->v_pos + (size_t)row * w->row;
                t.c = m + p * w->m_pos + (size_t)row * SLAB + (size_t)r * 16;
                t.scale = v_scale + p * w->v_scale_pos + row;
                tile->fn(&t);
            }
        }
    }
    for (int i = 0; i < AHEAD && i < tiles; i++) prefetch_tile(job, first + i, slab);
    struct dpk_wino_output o = {
        .scale = job->u_scale + kept * w->u_scale_size,
        .m_pos = w->m_pos,
        .scale_pos = SLAB,
        .m_tile = SLAB,
        .n = columns,
        .act = w->act,
        .bias = w->bias ? w->bias + n0 : NULL,
        .pixel = (size_t)w->n,
        .line = (size_t)w->out_w * (size_t)w->n,
    };
    for (int i = 0; i < tiles; i++) {
        struct place at = find_tile(w, first + i);
        size_t line = (size_t)at.image * (size_t)w->out_h + (size_t)at.y;
        size_t begin = (line * (size_t)w->out_w + (size_t)at.x) * (size_t)w->n + n0;
        if (i + AHEAD < tiles) prefetch_tile(job, first + i + AHEAD, slab);
        o.m = m + (size_t)i * SLAB;
        o.rows = w->out_h - at.y < 4 ? w->out_h - at.y : 4;
        o.columns = w->out_w - at.x < 4 ? w->out_w - at.x : 4;
        o.temb = w->temb ? w->temb + (size_t)at.image * w->temb_stride + n0 : NULL;
        o.residual = w->residual ? w->residual + begin : NULL;
        o.out = w->out + begin;
        job->cpu->k->wino_output(&o);
    }
}

static int tiles_of(const struct dpk_wino *w, int chunk) {
    int left = w->tiles - chunk * w->chunk;
    return left < w->chunk ? left : w->chunk;
}

/* Tasks: one panel of the slabs that are kept. */
static void weight_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_wino *w = job->w;
    size_t kept = (size_t)task / (SLAB / 16), panel = (size_t)task % (SLAB / 16);
    size_t c = (size_t)w->c;
    struct dpk_wino_weights u = {
        .panel = w->panels + ((size_t)job->slab * (SLAB / 16) + (size_t)task) * 9 * 16 * c,
        .c = w->c,
        .u = job->u + kept * w->u_size + panel * 16 * c,
        .u_pos = w->u_pos,
        .scale = job->u_scale + kept * w->u_scale_size + panel * 16,
        .scale_pos = SLAB,
    };
    (void)worker;
    job->cpu->k->wino_weights(&u);
}

static void make_weights(const struct job *job, int slabs) {
    int panels = ceil_div(job->w->n, 16) - job->slab * (SLAB / 16);
    int tasks = slabs * (SLAB / 16) < panels ? slabs * (SLAB / 16) : panels;
    dpk_pool_run(job->cpu->pool, tasks, weight_task, (void *)(uintptr_t)job);
}

/* Tasks: a chunk from input to result. */
static void chunk_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_wino *w = job->w;
    struct bench b = find_bench(job, worker);
    int first = task * w->chunk, tiles = tiles_of(w, task);
    input_tiles(job, first, tiles, b.v, b.v_scale, 0, b.buffer);
    for (int slab = 0; slab < w->n_slabs; slab++) {
        multiply(job, first, tiles, b.v, b.v_scale, slab, b.m);
    }
}

/* Tasks: some tiles of the chunks that are kept; chunk is a multiple of them. */
static void input_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_wino *w = job->w;
    int t = task * INPUT_TILES, first = job->chunk * w->chunk + t;
    size_t kept = (size_t)(t / w->chunk);
    int tiles = w->tiles - first < INPUT_TILES ? w->tiles - first : INPUT_TILES;
    input_tiles(job, first, tiles, job->v + kept * w->v_size, job->v_scale + kept * w->v_scale_size,
                t % w->chunk, find_bench(job, worker).buffer);
}

/* Tasks: a slab that is kept with a chunk that is kept; slabs change slowest. */
static void product_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_wino *w = job->w;
    int chunks = w->n_chunks - job->chunk < w->hold ? w->n_chunks - job->chunk : w->hold;
    int kept = task % chunks, chunk = job->chunk + kept;
    multiply(job, chunk * w->chunk, tiles_of(w, chunk), job->v + (size_t)kept * w->v_size,
             job->v_scale + (size_t)kept * w->v_scale_size, job->slab + task / chunks,
             find_bench(job, worker).m);
}

void dpk_wino_run(struct dpk_cpu *cpu, const struct dpk_wino *w, void *scratch) {
    struct job job = {.cpu = cpu, .w = w, .shared = scratch};
    size_t zero_bytes = dpk_round_up(w->row * 2, 64);
    memset(scratch, 0, zero_bytes);
    job.zeros = scratch;
    job.u_scale = (float *)(void *)(job.shared + zero_bytes);
    job.v_scale = job.u_scale + w->u_scale_size * (size_t)w->group;
    job.u = (int16_t *)(void *)(job.v_scale + w->v_scale_size * (size_t)w->hold);
    job.v = job.u + w->u_size * (size_t)w->group;
    job.workers = job.shared + w->shared_bytes;
    if (!w->hold) {
        make_weights(&job, w->n_slabs);
        dpk_pool_run(cpu->pool, w->n_chunks, chunk_task, &job);
        return;
    }
    for (job.chunk = 0; job.chunk < w->n_chunks; job.chunk += w->hold) {
        int chunks = w->n_chunks - job.chunk < w->hold ? w->n_chunks - job.chunk : w->hold;
        int left = w->tiles - job.chunk * w->chunk;
        int tiles = left < chunks * w->chunk ? left : chunks * w->chunk;
        dpk_pool_run(cpu->pool, ceil_div(tiles, INPUT_TILES), input_task, &job);
        for (job.slab = 0; job.slab < w->n_slabs; job.slab += w->group) {
            int slabs = w->n_slabs - job.slab < w->group ? w->n_slabs - job.slab : w->group;
            make_weights(&job, slabs);
            dpk_pool_run(cpu->pool, slabs * chunks, product_task, &job);
        }
    }
}
