/* The file from a sealed builder. Threads make the bytes of the weights, a piece of about a
 * megabyte at a time, into a ring of buffers; the caller's thread writes them in order. So memory
 * is bounded by the ring whatever the model's size, and the bytes do not depend on the number of
 * threads. */
#include "builder_impl.h"

#include "../formats/fail.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 1 << 20, MAX_THREADS = 16, SLOTS_PER_THREAD = 2 };

/* ---- The front ------------------------------------------------------------------------------- */

static int add_tensors(const struct dpk_builder *b, struct dpk_writer *w, dpk_error *err) {
    int rc = DPK_OK;
    for (size_t i = 0; i < b->n_weights; i++) {
        const struct dpk_weight_plan *plan = dpk_builder_weight(b, i);
        const struct dpk_tensor_spec spec = {
            .name = plan->name,
            .source = plan->source,
            .dtype = plan->dtype,
            .layout = plan->layout,
            .shape = plan->shape,
            .scale = DPK_NONE,
            .colsum = DPK_NONE,
            .flags = plan->flags,
        };
        uint32_t index;
        DPK_TRY(dpk_writer_tensor(w, &spec, &index, err));
    }
done:
    return rc;
}

static int add_program(const struct dpk_builder *b, const struct dpk_prog *p, struct dpk_writer *w,
                       dpk_error *err) {
    int rc = DPK_OK;
    const uint32_t n_inputs = (uint32_t)p->n_inputs;
    struct dpk_value *values = calloc(p->n_inputs + p->n_ops + 1, sizeof *values);
    struct dpk_op *ops = calloc(p->n_ops + 1, sizeof *ops);
    if (!values || !ops) DPK_FAIL(err, DPK_ENOMEM, "out of memory for program %s", p->name);
    for (size_t i = 0; i < p->n_inputs; i++) {
        values[i] = p->inputs[i].value;
        DPK_TRY(dpk_writer_string(w, p->inputs[i].name, &values[i].name, err));
    }
    for (size_t i = 0; i < p->n_ops; i++) {
        const struct dpk_build_op *o = &p->ops[i];
        struct dpk_value *v = &values[n_inputs + i];
        v->type = (uint8_t)o->type;
        v->flags = o->output ? DPK_VALUE_OUTPUT : 0;
        DPK_TRY(dpk_writer_string(w, o->output ? o->output : "", &v->name, err));
        ops[i] = o->op;
        DPK_TRY(dpk_writer_string(w, o->name ? o->name : "", &ops[i].name, err));
        for (int k = 0; k < DPK_MAX_IN; k++) {
            const uint32_t in = o->op.in[k];
            if (in == DPK_NONE) continue;
            ops[i].in[k] = in >= DPK_BUILD_IS_INPUT ? in - DPK_BUILD_IS_INPUT : n_inputs + (in - 1);
        }
        for (int k = 0; k < DPK_MAX_WT; k++)
            if (ops[i].wt[k] != DPK_NONE) ops[i].wt[k] = b->weights[ops[i].wt[k]].number;
    }
    DPK_TRY(dpk_writer_program(w, p->name, values, n_inputs, ops, (uint32_t)p->n_ops, err));
done:
    free(values);
    free(ops);
    return rc;
}

static int add_front(const struct dpk_builder *b, struct dpk_writer *w, dpk_error *err) {
    int rc = DPK_OK;
    for (size_t i = 0; i < b->n_metas; i++)
        DPK_TRY(dpk_writer_pair(w, b->metas[i].key, b->metas[i].value, err));
    for (size_t i = 0; i < b->n_blobs; i++)
        DPK_TRY(dpk_writer_blob(w, b->blobs[i].name, b->blobs[i].kind, b->blobs[i].data,
                                b->blobs[i].n_bytes, err));
    DPK_TRY(add_tensors(b, w, err));
    for (const struct dpk_prog *p = b->programs; p; p = p->next) DPK_TRY(add_program(b, p, w, err));
done:
    return rc;
}

int dpk_builder_view(const struct dpk_builder *b, struct dpk_file *f, dpk_error *err) {
    struct dpk_writer *w = NULL;
    int rc = DPK_OK;
    *f = (struct dpk_file){.fd = -1};
    if (!b->sealed) DPK_FAIL(err, DPK_EARG, "the model's description is not complete");
    DPK_TRY(dpk_writer_create(&w, NULL, err));
    DPK_TRY(add_front(b, w, err));
    DPK_TRY(dpk_writer_view(w, f, err));
done:
    dpk_writer_free(w);
    return rc;
}

/* ---- The weights ----------------------------------------------------------------------------- */

/* A place in the sequence of pieces. */
struct cursor {
    size_t weight;
    uint64_t unit;
};
struct slot {
    uint32_t weight; /* number in the file */
    void *data;
    size_t n_bytes, room;
    bool ready;
    int rc;
    dpk_error err;
};
struct pipe {
    const struct dpk_builder *b;
    pthread_mutex_t lock;
    pthread_cond_t made, taken;
    struct cursor next;            /* the piece that is made next */
    uint64_t n_started, n_written; /* pieces; piece i has slot i % n_slots */
    bool stop;
    size_t n_slots;
    struct slot slots[MAX_THREADS * SLOTS_PER_THREAD];
};

/* Units of the piece at the cursor; moves the cursor. False at the end. */
static bool next_piece(struct pipe *p, struct cursor *at, uint64_t *n_units) {
    if (p->next.weight >= p->b->n_weights) return false;
    const struct dpk_weight_units u = dpk_weight_units(dpk_builder_weight(p->b, p->next.weight));
    uint64_t n = PIECE_BYTES / u.unit_bytes;
    if (n == 0) n = 1;
    if (n > u.n_units - p->next.unit) n = u.n_units - p->next.unit;
    *at = p->next;
    *n_units = n;
    p->next.unit += n;
    if (p->next.unit == u.n_units) p->next = (struct cursor){p->next.weight + 1, 0};
    return true;
}

static void make_piece(const struct pipe *p, struct slot *s, struct cursor at, uint64_t n,
                       struct dpk_pack_scratch *scratch) {
    const struct dpk_weight_plan *w = dpk_builder_weight(p->b, at.weight);
    const uint64_t bytes = n * dpk_weight_units(w).unit_bytes;
    s->weight = (uint32_t)at.weight;
    s->n_bytes = (size_t)bytes;
    if (s->room < bytes) {
        free(s->data);
        s->data = malloc((size_t)bytes);
        s->room = s->data ? (size_t)bytes : 0;
    }
    if (!s->data) s->rc = dpk_error_set(&s->err, DPK_ENOMEM, "out of memory for %s", w->name);
    else s->rc = dpk_weight_pack(w, at.unit, n, s->data, scratch, &s->err);
}

static void *work(void *arg) {
    struct pipe *p = arg;
    struct dpk_pack_scratch scratch = {0};
    struct cursor at;
    uint64_t n;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stop && p->n_started >= p->n_written + p->n_slots)
            pthread_cond_wait(&p->taken, &p->lock);
        if (p->stop || !next_piece(p, &at, &n)) break;
        struct slot *s = &p->slots[p->n_started++ % p->n_slots];
        pthread_mutex_unlock(&p->lock);
        make_piece(p, s, at, n, &scratch);
        pthread_mutex_lock(&p->lock);
        s->ready = true;
        pthread_cond_broadcast(&p->made);
    }
    pthread_mutex_unlock(&p->lock);
    dpk_pack_scratch_free(&scratch);
    return NULL;
}

/* Write pieces in order until all bytes are out. */
static int write_pieces(struct pipe *p, struct dpk_writer *w, dpk_build_progress *progress,
                        void *arg, dpk_error *err) {
    int rc = DPK_OK;
    uint64_t done_bytes = 0;
    const uint64_t total = p->b->weight_bytes;
    while (done_bytes < total) {
        struct slot *s = &p->slots[p->n_written % p->n_slots];
        pthread_mutex_lock(&p->lock);
        while (!s->ready) pthread_cond_wait(&p->made, &p->lock);
        pthread_mutex_unlock(&p->lock);
        if (s->rc != DPK_OK) DPK_FAIL(err, s->rc, "%s", s->err.msg);
        DPK_TRY(dpk_writer_put(w, s->weight, s->data, s->n_bytes, err));
        done_bytes += s->n_bytes;
        pthread_mutex_lock(&p->lock);
        s->ready = false;
        p->n_written++;
        pthread_cond_broadcast(&p->taken);
        pthread_mutex_unlock(&p->lock);
        if (progress && progress(arg, done_bytes, total))
            DPK_FAIL(err, DPK_ECANCELLED, "stopped after %llu of %llu bytes",
                     (unsigned long long)done_bytes, (unsigned long long)total);
    }
done:
    return rc;
}

static int n_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    return CPU_COUNT(&set);
}

static int write_weights(const struct dpk_builder *b, struct dpk_writer *w, int threads,
                         dpk_build_progress *progress, void *arg, dpk_error *err) {
    int rc = DPK_OK, n = 0;
    pthread_t ids[MAX_THREADS];
    if (threads <= 0) threads = n_cores();
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    struct pipe *p = calloc(1, sizeof *p);
    if (!p) return dpk_error_set(err, DPK_ENOMEM, "out of memory for the weights' buffers");
    p->b = b;
    p->n_slots = (size_t)threads * SLOTS_PER_THREAD;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->made, NULL);
    pthread_cond_init(&p->taken, NULL);
    while (n < threads && pthread_create(&ids[n], NULL, work, p) == 0) n++;
    if (n == 0) DPK_FAIL(err, DPK_ENOMEM, "cannot start a thread");
    DPK_TRY(write_pieces(p, w, progress, arg, err));
done:
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->taken);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < n; i++) pthread_join(ids[i], NULL);
    for (size_t i = 0; i < p->n_slots; i++) free(p->slots[i].data);
    pthread_cond_destroy(&p->taken);
    pthread_cond_destroy(&p->made);
    pthread_mutex_destroy(&p->lock);
    free(p);
    return rc;
}

int dpk_builder_write(const struct dpk_builder *b, const char *path, int threads,
                      dpk_build_progress *progress, void *arg, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_writer *w = NULL;
    if (!b->sealed) DPK_FAIL(err, DPK_EARG, "%s: the model's description is not complete", path);
    DPK_TRY(dpk_writer_create(&w, path, err));
    DPK_TRY(add_front(b, w, err));
    DPK_TRY(dpk_writer_begin(w, err));
    DPK_TRY(write_weights(b, w, threads, progress, arg, err));
    DPK_TRY(dpk_writer_finish(w, err));
done:
    dpk_writer_free(w);
    return rc;
}
