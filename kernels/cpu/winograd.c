/* Chunks, tasks and loops of Winograd convolution (contract and method: winograd.h). */
#include "winograd.h"

#include <string.h>

enum {
    SLAB = 64,        /* filters */
    PANELS = 4,       /* of a slab */
    ROW = 6,          /* positions */
    CHUNK_STEP = 12,  /* chunks have a multiple of this many tiles */
    LEAST_CHUNK = 24, /* tiles */
    MOST_CHUNK = 48,  /* where a worker has V of its own; M is to stay in L2 */
    MOST_HELD_CHUNK = 264,
    INPUT_TILES = 6, /* of a task; divides CHUNK_STEP */
    AHEAD = 6,       /* tiles from the one whose memory is fetched to the one being finished */
    MOST_WHOLE_U = 8 << 20, /* bytes */
    MOST_HELD_V = 24 << 20,
};

/* ---- Plan ----------------------------------------------------------------------------------- */

/* Steps between positions are this much over a multiple of 4 KiB, so that the lines which a
 * transform touches together are not all in one set of the cache. */
static size_t skew(size_t n_bytes) { return dpk_round_up(n_bytes, 4096) + 320; }

static int clamp(int v, int lo, int hi) { return v > hi ? (hi > lo ? hi : lo) : v < lo ? lo : v; }

static int ceil_div(int a, int b) { return (a + b - 1) / b; }

static int round_up(int v, int to) { return ceil_div(v, to) * to; }

static size_t or_else(size_t limit, size_t usual) { return limit ? limit : usual; }

static size_t element(const struct dpk_wino *w) { return w->integers ? 2 : 4; }

/* Panels that dpk_gemm_columns widens at a time, and the bytes for n of them. */
static size_t strip_bytes(const struct dpk_wino *w, int n) {
    const struct dpk_gemm *g = w->weights;
    if (!g->strip_dtype) return 0;
    return dpk_round_up(g->tile_stride * (size_t)(n - 1) + dpk_gemm_columns_bytes(g), 64);
}

/* Floats for the scales of filters. */
static size_t filter_scales(const struct dpk_wino *w) {
    return w->integers ? (size_t)w->n_slabs * DPK_WINO_POS * SLAB : 0;
}

/* Chunks of at most `most` tiles, at least `least` of them where there are tiles enough. */
static void plan_chunks(struct dpk_wino *w, int most, int least) {
    size_t bytes = element(w);
    int chunks = ceil_div(w->tiles, most);
    if (chunks < least) chunks = clamp(w->tiles / LEAST_CHUNK, chunks, least);
    w->chunk = round_up(ceil_div(w->tiles, chunks), CHUNK_STEP);
    w->n_chunks = ceil_div(w->tiles, w->chunk);
    w->v_pos = skew((size_t)w->chunk * (size_t)w->segment * bytes) / bytes;
    w->v_seg = DPK_WINO_POS * w->v_pos;
    w->v_size = w->v_seg * (size_t)w->n_seg;
    w->scale_seg = w->integers ? (size_t)w->chunk * DPK_WINO_POS : 0;
    w->scale_size = dpk_round_up(w->scale_seg * (size_t)w->n_seg, 16);
    w->m_pos = skew((size_t)(w->chunk + DPK_MAX_MR) * SLAB * 4) / 4; /* tiles write whole */
}

size_t dpk_wino_plan(const struct dpk_cpu *cpu, struct dpk_wino *w) {
    int workers = dpk_pool_workers(cpu->pool), tasks = workers == 1 ? 1 : 4 * workers;
    int step = w->integers ? 32 : 16;
    size_t bytes = element(w), zeros = dpk_round_up((size_t)w->c * 4, 64);
    w->n_seg = ceil_div(w->c, DPK_WINO_SEGMENT);
    w->segment = round_up(ceil_div(w->c, w->n_seg), step);
    w->n_seg = ceil_div(w->c, w->segment);
    w->n_slabs = ceil_div(w->n, SLAB);
    w->hold = 0;
    w->u_pos = skew((size_t)w->c * SLAB * bytes) / bytes;
    w->u_size = DPK_WINO_POS * w->u_pos;
    w->shared_bytes = zeros + filter_scales(w) * 4;
    size_t whole = w->u_size * bytes * (size_t)w->n_slabs;
    if (whole <= or_else(w->most_whole_u, MOST_WHOLE_U)) {
        plan_chunks(w, MOST_CHUNK, tasks);
        w->shared_bytes += whole;
        w->worker_bytes = w->v_size * bytes + w->scale_size * 4 + strip_bytes(w, 1);
    } else {
        size_t most_v = or_else(w->most_held_v, MOST_HELD_V);
        size_t tile_v = DPK_WINO_POS * (size_t)(w->n_seg * w->segment) * bytes;
        int least =
            ceil_div(tasks, w->n_slabs); /* chunks at a time, for every worker to have one */
        int most = (int)(most_v / tile_v) / least;
        plan_chunks(w, clamp(most, LEAST_CHUNK, MOST_HELD_CHUNK), least);
        size_t v = w->v_size * bytes + w->scale_size * 4;
        int held = clamp((int)(most_v / v), 1, w->n_chunks);
        w->hold = ceil_div(w->n_chunks, ceil_div(w->n_chunks, held));
        w->u_pos = skew((size_t)w->segment * SLAB * bytes) / bytes;
        w->u_size = ROW * w->u_pos;
        w->shared_bytes += v * (size_t)w->hold;
        w->worker_bytes = w->u_size * bytes + strip_bytes(w, PANELS);
    }
    w->worker_bytes += (w->integers ? DPK_WINO_POS * DPK_WINO_ROW * 4 : 0);
    w->worker_bytes = dpk_round_up(w->worker_bytes + DPK_WINO_POS * w->m_pos * 4, 64);
    w->shared_bytes = dpk_round_up(w->shared_bytes, 64);
    return w->shared_bytes + w->worker_bytes * (size_t)workers;
}

/* Measured at 1280 to 1280 channels: a tile costs what 5 pixels cost the direct way with products
 * of the same type, and U what 48 do, of integers 96. Edges that do not fill their tiles count. */
bool dpk_wino_pays(struct dpk_wino *w) {
    w->tiles_y = ceil_div(w->out_h, 4);
    w->tiles_x = ceil_div(w->out_w, 4);
    int64_t tiles = (int64_t)w->images * w->tiles_y * w->tiles_x;
    int64_t pixels = (int64_t)w->images * w->out_h * w->out_w;
    double cost = (double)(w->integers ? 96 : 48) + 5 * (double)tiles;
    if (w->c < 32 || w->c % 2 || tiles > INT32_MAX / 16) return false;
    w->tiles = (int)tiles;
    return (double)pixels >= (w->direct_gain > 0 ? w->direct_gain : 1) * cost;
}

void dpk_wino_rows(struct dpk_wino *w, const struct dpk_rows *rows) {
    int64_t image = rows->first / w->out_h, y = rows->first % w->out_h;
    w->first_tile = (int)((image * w->tiles_y + y / 4) * w->tiles_x);
    w->tiles = ceil_div((int)(rows->end - rows->first), 4) * w->tiles_x;
}

/* ---- Run ------------------------------------------------------------------------------------ */

struct job {
    const struct dpk_cpu *cpu;
    const struct dpk_wino *w;
    const char *zeros;
    float *filters; /* scales of filters: [slab][position][SLAB] */
    char *u;        /* whole, or NULL */
    char *v;        /* of the chunks that are kept: each V and its scales */
    size_t v_bytes;
    char *workers;
    int chunk; /* first that is kept */
};

/* The memory of a worker. */
struct bench {
    float *m, *buffer;
    char *u, *v, *strip;
};

static struct bench find_bench(const struct job *job, int worker) {
    const struct dpk_wino *w = job->w;
    struct bench b;
    b.m = (float *)(void *)(job->workers + (size_t)worker * w->worker_bytes);
    b.buffer = b.m + DPK_WINO_POS * w->m_pos;
    b.u = b.v = (char *)(b.buffer + (w->integers ? DPK_WINO_POS * DPK_WINO_ROW : 0));
    b.strip = b.u + (w->hold ? w->u_size * element(w) : job->v_bytes);
    return b;
}

struct place {
    int image, y, x; /* of the result */
};

static struct place find_tile(const struct dpk_wino *w, int tile) {
    int line = (tile += w->first_tile) / w->tiles_x;
    return (struct place){line / w->tiles_y, line % w->tiles_y * 4, tile % w->tiles_x * 4};
}

static int source(int i, int n, int n_out) {
    return n == n_out ? i : (int)((int64_t)i * n / n_out);
}

/* The 36 pixels of a tile's input. */
static void find_pixels(const struct job *job, int tile, const void **pixel) {
    const struct dpk_wino *w = job->w;
    const size_t bytes = (size_t)w->c * dpk_dtype_bytes(w->dtype);
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
                           : (const char *)w->x + (line * (size_t)w->w + column) * bytes;
        }
    }
}

/* Transform the input of tiles first .. first + n to rows t0 .. of a chunk's V. */
static void input_tiles(const struct job *job, int first, int n, char *v, int t0, float *buffer) {
    const struct dpk_wino *w = job->w;
    const struct dpk_kernels *k = job->cpu->k;
    dpk_wino_input_fn *transform = w->integers ? k->wino_input : k->wino_input_f32;
    float *scales = (float *)(void *)(v + w->v_size * element(w));
    const void *pixels[2][DPK_WINO_POS];
    find_pixels(job, first, pixels[0]);
    for (int i = 0; i < n; i++) {
        const void **now = pixels[i % 2], **next = pixels[1 - i % 2];
        if (first + i + 1 < w->tiles) find_pixels(job, first + i + 1, next);
        else next = now;
        for (int s = 0; s < w->n_seg; s++) {
            size_t at = (size_t)s * w->v_seg + (size_t)(t0 + i) * (size_t)w->segment;
            int begin = s * w->segment;
            struct dpk_wino_input in = {
                .pixel = now,
                .next = next,
                .dtype = w->dtype,
                .first = begin,
                .n = w->c - begin < w->segment ? w->c - begin : w->segment,
                .v = v + at * element(w),
                .v_pos = w->v_pos,
                .scale = scales + (size_t)s * w->scale_seg + t0 + i,
                .scale_pos = (size_t)w->chunk,
                .buffer = buffer,
            };
            transform(&in);
        }
    }
}

/* ---- Weights -------------------------------------------------------------------------------- */

/* A panel as the transforms take it. */
struct panel {
    struct dpk_gemm_columns columns;
    struct dpk_wino_weights weights;
};

/* Panel `panel`, widened to strip where it is not of floats. */
static void open_panel(const struct job *job, int panel, char *strip, struct panel *p) {
    const struct dpk_wino *w = job->w;
    const struct dpk_gemm *g = w->weights;
    float *slab = job->filters + (size_t)(panel / PANELS) * DPK_WINO_POS * SLAB;
    dpk_gemm_columns(g, panel, 1, strip, &p->columns);
    p->weights = (struct dpk_wino_weights){
        .panel = p->columns.b,
        .dtype = g->strip_dtype ? g->strip_dtype : g->w->dtype,
        .gain = p->columns.scaled ? p->columns.scale : NULL,
        .tap = g->c_padded * 16,
        .c = w->c,
        .segment = w->segment,
        .scale = slab + panel % PANELS * 16,
        .scale_pos = SLAB,
    };
}

/* Row `row` of the positions of channels first .. first + n to u. */
static void make_row(const struct job *job, const struct panel *p, int row, int first, int n,
                     char *u, size_t u_pos) {
    struct dpk_wino_weights weights = p->weights;
    weights.row = row;
    weights.first = first;
    weights.n = n;
    weights.u = u;
    weights.u_pos = u_pos;
    if (job->w->integers) job->cpu->k->wino_weights(&weights);
    else job->cpu->k->wino_weights_f32(&weights);
}

/* Tasks: the scales of a panel; where U is made as a whole, it too. */
static void weight_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_wino *w = job->w;
    struct panel p;
    open_panel(job, task, find_bench(job, worker).strip, &p);
    if (w->integers) job->cpu->k->wino_scales(&p.weights);
    if (w->hold) return;
    size_t at = (size_t)(task / PANELS) * w->u_size + (size_t)(task % PANELS * 16) * (size_t)w->c;
    for (int row = 0; row < ROW; row++, at += ROW * w->u_pos) {
        make_row(job, &p, row, 0, w->c, job->u + at * element(w), w->u_pos);
    }
}

/* ---- Products ------------------------------------------------------------------------------- */

/* What is multiplied: rows of V, panels of U, at one position and one segment. */
struct product {
    const char *v, *u;
    const float *scale; /* of the rows of V */
    float *m;
    size_t b_stride; /* of u: elements from panel to panel */
    int rows, panels, k;
    bool add;
};

/* Memory is fetched ahead of a tile: its part of M, and of V the rows of the next tile (a fifth of
 * the time of large maps: the caches see six short streams in a page, and make nothing of it). */
static void fetch_m(const float *m, int rows, int columns) {
    for (int i = 0; i < rows; i++) {
        for (int c = 0; c < columns; c += 16) __builtin_prefetch(m + i * SLAB + c, 1);
    }
}
static void fetch_rows(const char *v, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(v + i, 0, 2);
}

static void multiply_s16(const struct job *job, const struct product *x) {
    const struct dpk_tile_s16_kernel *tile = &job->cpu->k->tile_s16;
    const bool far = job->w->hold; /* V and M are not in L2 */
    const size_t segment = (size_t)job->w->segment, block = (size_t)tile->mr * segment * 2;
    struct dpk_tile_s16 t = {
        .a_stride = segment, .k = x->k, .add = x->add, .b_stride = x->b_stride, .c_stride = SLAB};
    for (int r = 0; r < x->panels; r += tile->np) {
        t.n_panels = x->panels - r < tile->np ? x->panels - r : tile->np;
        t.b = (const int16_t *)(const void *)x->u + (size_t)r * x->b_stride;
        for (int row = 0; row < x->rows; row += tile->mr) {
            const char *v = x->v + (size_t)row * segment * 2;
            t.rows = x->rows - row < tile->mr ? x->rows - row : tile->mr;
            t.a = (const int16_t *)(const void *)v;
            t.c = x->m + row * SLAB + r * 16;
            t.scale = x->scale + row;
            if (far) fetch_m(t.c, t.rows, 16 * t.n_panels);
            if (far && r == 0) fetch_rows(v + block, block);
            tile->fn(&t);
        }
    }
}

static void multiply_f32(const struct job *job, const struct product *x) {
    const struct dpk_tile_kernel *tile = dpk_cpu_tile(job->cpu->isa, DPK_F32, DPK_F32);
    const bool far = job->w->hold;
    const size_t row_bytes = (size_t)job->w->segment * 4, block = (size_t)tile->mr * row_bytes;
    const void *a[DPK_MAX_MR];
    float ones[DPK_MAX_MR];
    _Alignas(64) float sums[DPK_MAX_MR * SLAB];
    struct dpk_tile t = {
        .a = a, .k_len = &x->k, .n_seg = 1, .b_stride = x->b_stride * 4, .c_stride = SLAB};
    for (int i = 0; i < DPK_MAX_MR; i++) ones[i] = 1.0f;
    for (int r = 0; r < x->panels; r += tile->np) {
        t.n_panels = x->panels - r < tile->np ? x->panels - r : tile->np;
        t.b = x->u + (size_t)r * t.b_stride;
        for (int row = 0; row < x->rows; row += tile->mr) {
            int rows = x->rows - row < tile->mr ? x->rows - row : tile->mr;
            const char *v = x->v + (size_t)row * row_bytes;
            float *m = x->m + row * SLAB + r * 16;
            for (int i = 0; i < tile->mr; i++) {
                a[i] = v + (size_t)(i < rows ? i : rows - 1) * row_bytes;
            }
            t.c = x->add ? sums : m;
            if (far) fetch_m(m, rows, 16 * t.n_panels);
            if (far && r == 0) fetch_rows(v + block, block);
            tile->fn(&t);
            if (x->add) {
                job->cpu->k->attn_rescale(m, SLAB, sums, SLAB, rows, 16 * t.n_panels, ones);
            }
        }
    }
}

/* A chunk of `tiles` tiles times a slab, to M. */
static void multiply(const struct job *job, const char *v, int tiles, int slab,
                     const struct bench *b) {
    const struct dpk_wino *w = job->w;
    const size_t bytes = element(w);
    const float *scales = (const float *)(const void *)(v + w->v_size * bytes);
    int panels = ceil_div(w->n, 16) - slab * PANELS;
    struct panel open[PANELS];
    struct product x = {.rows = tiles, .panels = panels < PANELS ? panels : PANELS};
    for (int r = 0; w->hold && r < x.panels; r++) {
        char *strip = b->strip + (size_t)r * w->weights->tile_stride;
        open_panel(job, slab * PANELS + r, strip, &open[r]);
        if (w->integers && w->n_chunks == 1) job->cpu->k->wino_scales(&open[r].weights);
    }
    for (int i = 0; i < w->n_seg * ROW; i++) {
        int row = i % ROW, s = i / ROW, first = s * w->segment;
        x.k = w->c - first < w->segment ? w->c - first : w->segment;
        x.add = s > 0;
        x.b_stride = 16 * (size_t)(w->hold ? x.k : w->c);
        for (int r = 0; w->hold && r < x.panels; r++) {
            char *u = b->u + (size_t)r * x.b_stride * bytes;
            make_row(job, &open[r], row, first, x.k, u, w->u_pos);
        }
        for (int j = 0; j < ROW; j++) {
            size_t p = (size_t)(ROW * row + j), at = (size_t)j * w->u_pos;
            if (!w->hold) at = (size_t)slab * w->u_size + p * w->u_pos + (size_t)first * 16;
            x.u = (w->hold ? b->u : job->u) + at * bytes;
            x.v = v + ((size_t)s * w->v_seg + p * w->v_pos) * bytes;
            x.scale = scales + (size_t)s * w->scale_seg + p * (size_t)w->chunk;
            x.m = b->m + p * w->m_pos;
            if (w->integers) multiply_s16(job, &x);
            else multiply_f32(job, &x);
        }
    }
}

/* ---- Results -------------------------------------------------------------------------------- */

/* The lines of the residual and of the result that a tile touches. */
static void prefetch_tile(const struct job *job, int tile, int slab) {
    const struct dpk_wino *w = job->w;
    const size_t bytes = dpk_dtype_bytes(w->dtype);
    struct place at = find_tile(w, tile);
    size_t n = (size_t)w->n, n0 = (size_t)slab * SLAB;
    size_t end = n - n0 < SLAB ? n - n0 : SLAB;
    for (int r = 0; r < 4 && at.y + r < w->out_h; r++) {
        size_t line = (size_t)at.image * (size_t)w->out_h + (size_t)(at.y + r);
        for (int s = 0; s < 4 && at.x + s < w->out_w; s++) {
            size_t first = (line * (size_t)w->out_w + (size_t)(at.x + s)) * n + n0;
            for (size_t k = 0; k < end * bytes; k += 64) {
                __builtin_prefetch((char *)w->out + first * bytes + k, 1);
                if (w->residual) __builtin_prefetch((const char *)w->residual + first * bytes + k);
            }
        }
    }
}

/* Element i of an array of w's type, NULL of none. */
static const void *element_at(const struct dpk_wino *w, const void *array, size_t i) {
    return array ? (const char *)array + i * dpk_dtype_bytes(w->dtype) : NULL;
}

/* M of tiles first .. first + tiles to a slab of the result. */
static void finish(const struct job *job, int first, int tiles, int slab, const float *m) {
    const struct dpk_wino *w = job->w;
    size_t n0 = (size_t)slab * SLAB;
    for (int i = 0; i < AHEAD && i < tiles; i++) prefetch_tile(job, first + i, slab);
    struct dpk_wino_output o = {
        .scale = w->integers ? job->filters + (size_t)slab * DPK_WINO_POS * SLAB : NULL,
        .m_pos = w->m_pos,
        .scale_pos = SLAB,
        .m_tile = SLAB,
        .n = w->n - slab * SLAB < SLAB ? w->n - slab * SLAB : SLAB,
        .act = w->act,
        .dtype = w->dtype,
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
        o.temb = element_at(w, w->temb, (size_t)at.image * w->temb_stride + n0);
        o.residual = element_at(w, w->residual, begin);
        o.out = (char *)w->out + begin * dpk_dtype_bytes(w->dtype);
        job->cpu->k->wino_output(&o);
    }
}

/* ---- Tasks ---------------------------------------------------------------------------------- */

static int tiles_of(const struct dpk_wino *w, int chunk) {
    int left = w->tiles - chunk * w->chunk;
    return left < w->chunk ? left : w->chunk;
}

/* Tasks: a chunk from input to result. */
static void chunk_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_wino *w = job->w;
    struct bench b = find_bench(job, worker);
    int first = task * w->chunk, tiles = tiles_of(w, task);
    input_tiles(job, first, tiles, b.v, 0, b.buffer);
    for (int slab = 0; slab < w->n_slabs; slab++) {
        multiply(job, b.v, tiles, slab, &b);
        finish(job, first, tiles, slab, b.m);
    }
}

/* Tasks: some tiles of the chunks that are kept; chunk is a multiple of them. */
static void input_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_wino *w = job->w;
    int t = task * INPUT_TILES, first = job->chunk * w->chunk + t;
    int tiles = w->tiles - first < INPUT_TILES ? w->tiles - first : INPUT_TILES;
    input_tiles(job, first, tiles, job->v + (size_t)(t / w->chunk) * job->v_bytes, t % w->chunk,
                find_bench(job, worker).buffer);
}

/* Chunks from job->chunk on that are kept. */
static int kept_chunks(const struct job *job) {
    int left = job->w->n_chunks - job->chunk;
    return left < job->w->hold ? left : job->w->hold;
}

/* Tasks: a slab with a chunk that is kept; slabs change slowest. */
static void product_task(void *arg, int task, int worker) {
    const struct job *job = arg;
    const struct dpk_wino *w = job->w;
    struct bench b = find_bench(job, worker);
    int kept = task % kept_chunks(job), slab = task / kept_chunks(job), chunk = job->chunk + kept;
    multiply(job, job->v + (size_t)kept * job->v_bytes, tiles_of(w, chunk), slab, &b);
    finish(job, chunk * w->chunk, tiles_of(w, chunk), slab, b.m);
}

void dpk_wino_run(struct dpk_cpu *cpu, const struct dpk_wino *w, void *scratch) {
    struct job job = {.cpu = cpu, .w = w, .zeros = scratch};
    size_t zeros = dpk_round_up((size_t)w->c * 4, 64);
    memset(scratch, 0, zeros);
    job.filters = (float *)(void *)((char *)scratch + zeros);
    job.u = job.v = (char *)(job.filters + filter_scales(w));
    job.v_bytes = w->v_size * element(w) + w->scale_size * 4;
    job.workers = (char *)scratch + w->shared_bytes;
    if (!w->hold || (w->integers && w->n_chunks > 1)) {
        dpk_pool_run(cpu->pool, ceil_div(w->n, 16), weight_task, &job);
    }
    if (!w->hold) {
        dpk_pool_run(cpu->pool, w->n_chunks, chunk_task, &job);
        return;
    }
    for (; job.chunk < w->n_chunks; job.chunk += w->hold) {
        int chunks = kept_chunks(&job), left = w->tiles - job.chunk * w->chunk;
        int tiles = left < chunks * w->chunk ? left : chunks * w->chunk;
        dpk_pool_run(cpu->pool, ceil_div(tiles, INPUT_TILES), input_task, &job);
        dpk_pool_run(cpu->pool, w->n_slabs * chunks, product_task, &job);
    }
}
