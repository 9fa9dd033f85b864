/* The writer. The front is small and is built in memory twice: at `begin`, with the tensors' sums
 * still zero, where the reader's own rules check it before gigabytes are written; and at `finish`,
 * with the sums. In between the tensors stream to the disk through one buffer. */
#include "dpk.h"

#include "dpk_check.h"
#include "dpk_output.h"
#include "fail.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include "xxhash.h"

/* A growing array of bytes. */
struct bytes {
    uint8_t *p;
    size_t n, room;
};

static int bytes_add(struct bytes *b, const void *data, size_t n, dpk_error *err) {
    int rc = DPK_OK;
    if (n > SIZE_MAX / 4 - b->n) DPK_FAIL(err, DPK_ENOMEM, "no memory for %zu more bytes", n);
    if (b->n + n > b->room) {
        const size_t room = (b->n + n) * 2 + 256;
        uint8_t *p = realloc(b->p, room);
        if (!p) DPK_FAIL(err, DPK_ENOMEM, "no memory for %zu bytes", room);
        b->p = p;
        b->room = room;
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
done:
    return rc;
}

static int bytes_align(struct bytes *b, dpk_error *err) {
    static const uint8_t zeros[DPK_ALIGN];
    return bytes_add(b, zeros, (size_t)(dpk_round_up(b->n, DPK_ALIGN) - b->n), err);
}

enum state { COLLECTING, STREAMING, FINISHED };

struct dpk_writer {
    char *path;
    enum state state;
    struct dpk_output *out;

    struct bytes strings;
    uint32_t n_strings;
    uint32_t *slots; /* hash table of string offsets + 1, 0 empty; n_slots a power of two */
    uint32_t n_slots;

    struct bytes pairs;        /* struct dpk_pair[] */
    struct bytes blob_entries; /* struct dpk_blob_entry[]; offsets from the first blob */
    struct bytes blobs;
    struct bytes program_entries; /* struct dpk_program_entry[]; offsets from the first program */
    struct bytes programs;
    struct bytes tensors; /* struct dpk_tensor_record[] */
    uint64_t weights_bytes;

    struct bytes front;
    uint32_t tensor;   /* the one whose bytes come next */
    uint64_t tensor_n; /* bytes of it so far */
    XXH3_state_t *sum;
};

static struct dpk_tensor_record *tensor_records(const struct dpk_writer *w) {
    return (struct dpk_tensor_record *)(void *)w->tensors.p;
}
static uint32_t n_tensors(const struct dpk_writer *w) {
    return (uint32_t)(w->tensors.n / sizeof(struct dpk_tensor_record));
}

static int want_state(const struct dpk_writer *w, enum state state, const char *call,
                      dpk_error *err) {
    static const char *const names[] = {"before begin", "between begin and finish", "after finish"};
    if (w->state == state) return DPK_OK;
    return dpk_error_set(err, DPK_EARG, "%s: %s called %s, want %s", w->path, call, names[w->state],
                         names[state]);
}

/* ---- Collecting ---- */

int dpk_writer_create(struct dpk_writer **out, const char *path, dpk_error *err) {
    struct dpk_writer *w = NULL;
    const char *name = path ? path : "the model"; /* in messages */
    uint32_t offset;
    int rc = DPK_OK;
    *out = NULL;
    if (path) DPK_TRY(dpk_output_check(path, err));
    w = calloc(1, sizeof *w);
    if (!w) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for a writer", name);
    w->path = strdup(name);
    w->sum = XXH3_createState();
    if (!w->path || !w->sum) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for a writer", name);
    DPK_TRY(dpk_writer_string(w, "", &offset, err));
    *out = w;
    w = NULL;
done:
    dpk_writer_free(w);
    return rc;
}

void dpk_writer_free(struct dpk_writer *w) {
    if (!w) return;
    dpk_output_free(w->out);
    struct bytes *all[] = {&w->strings,         &w->pairs,    &w->blob_entries, &w->blobs,
                           &w->program_entries, &w->programs, &w->tensors,      &w->front};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->p);
    free(w->slots);
    XXH3_freeState(w->sum);
    free(w->path);
    free(w);
}

/* The slot of `s`, or the empty one where it belongs. */
static uint32_t *find_slot(const struct dpk_writer *w, const char *s) {
    uint32_t i = (uint32_t)XXH3_64bits(s, strlen(s));
    for (;; i++) {
        uint32_t *slot = &w->slots[i & (w->n_slots - 1)];
        if (!*slot || strcmp((const char *)w->strings.p + (*slot - 1), s) == 0) return slot;
    }
}

static int grow_slots(struct dpk_writer *w, dpk_error *err) {
    uint32_t *old = w->slots;
    const uint32_t n_old = w->n_slots;
    int rc = DPK_OK;
    if ((uint64_t)w->n_strings * 2 < n_old) goto done;
    const uint32_t n_new = n_old ? n_old * 2 : 1024; /* at most 2^30 strings by the front's limit */
    uint32_t *slots = calloc(n_new, sizeof *slots);
    if (!slots) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for %u strings", w->path, n_new);
    w->slots = slots;
    w->n_slots = n_new;
    for (uint32_t i = 0; i < n_old; i++)
        if (old[i]) *find_slot(w, (const char *)w->strings.p + (old[i] - 1)) = old[i];
    free(old);
done:
    return rc;
}

int dpk_writer_string(struct dpk_writer *w, const char *s, uint32_t *offset, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(want_state(w, COLLECTING, "dpk_writer_string", err));
    DPK_TRY(grow_slots(w, err));
    uint32_t *slot = find_slot(w, s);
    if (!*slot) {
        const size_t n = strlen(s) + 1;
        if (n > DPK_MAX_FRONT - w->strings.n)
            DPK_FAIL(err, DPK_EARG, "%s: more than %" PRIu64 " bytes of strings", w->path,
                     DPK_MAX_FRONT);
        const uint32_t at = (uint32_t)w->strings.n;
        DPK_TRY(bytes_add(&w->strings, s, n, err));
        w->n_strings++;
        *slot = at + 1;
    }
    *offset = *slot - 1;
done:
    return rc;
}

int dpk_writer_pair(struct dpk_writer *w, const char *key, const char *value, dpk_error *err) {
    struct dpk_pair pair;
    int rc = DPK_OK;
    DPK_TRY(dpk_writer_string(w, key, &pair.key, err));
    DPK_TRY(dpk_writer_string(w, value, &pair.value, err));
    DPK_TRY(bytes_add(&w->pairs, &pair, sizeof pair, err));
done:
    return rc;
}

int dpk_writer_blob(struct dpk_writer *w, const char *name, uint32_t kind, const void *data,
                    size_t n_bytes, dpk_error *err) {
    struct dpk_blob_entry e = {.kind = kind, .bytes = n_bytes};
    int rc = DPK_OK;
    DPK_TRY(dpk_writer_string(w, name, &e.name, err));
    DPK_TRY(bytes_align(&w->blobs, err));
    e.offset = w->blobs.n;
    DPK_TRY(bytes_add(&w->blobs, data, n_bytes, err));
    DPK_TRY(bytes_add(&w->blob_entries, &e, sizeof e, err));
done:
    return rc;
}

int dpk_writer_tensor(struct dpk_writer *w, const struct dpk_tensor_spec *spec, uint32_t *index,
                      dpk_error *err) {
    struct dpk_tensor_record t = {.dtype = (uint32_t)spec->dtype,
                                  .layout = (uint32_t)spec->layout,
                                  .rank = (uint32_t)spec->shape.rank,
                                  .scale = spec->scale,
                                  .colsum = spec->colsum,
                                  .group = spec->group,
                                  .flags = spec->flags};
    int rc = DPK_OK;
    DPK_TRY(dpk_writer_string(w, spec->name, &t.name, err));
    DPK_TRY(dpk_writer_string(w, spec->source, &t.source, err));
    t.bytes = dpk_weight_bytes(spec->dtype, spec->layout, &spec->shape);
    if (t.bytes == 0)
        DPK_FAIL(err, DPK_EARG, "tensor %.200s: no %s of %s with rank %d and %d rows", spec->name,
                 dpk_layout_name(spec->layout), dpk_dtype_name(spec->dtype), spec->shape.rank,
                 spec->shape.dim[0]);
    for (int i = 0; i < spec->shape.rank; i++) t.dim[i] = spec->shape.dim[i];
    t.offset = dpk_round_up(w->weights_bytes, DPK_ALIGN);
    if (t.offset > UINT64_MAX / 4) /* and a tensor is below 2^52 bytes */
        DPK_FAIL(err, DPK_EARG, "tensor %.200s: the weights are too large", spec->name);
    if (w->tensors.n > DPK_MAX_FRONT)
        DPK_FAIL(err, DPK_EARG, "tensor %.200s: too many tensors", spec->name);
    *index = n_tensors(w);
    DPK_TRY(bytes_add(&w->tensors, &t, sizeof t, err));
    w->weights_bytes = t.offset + t.bytes;
done:
    return rc;
}

int dpk_writer_program(struct dpk_writer *w, const char *name, const struct dpk_value *values,
                       uint32_t n_inputs, const struct dpk_op *ops, uint32_t n_ops,
                       dpk_error *err) {
    struct dpk_program_entry e = {.n_inputs = n_inputs, .n_ops = n_ops};
    const uint64_t n_values = (uint64_t)n_inputs + n_ops;
    int rc = DPK_OK;
    if (n_values > DPK_MAX_FRONT / sizeof(struct dpk_value))
        DPK_FAIL(err, DPK_EARG, "program %.200s: %" PRIu64 " values are too many", name, n_values);
    for (uint64_t i = 0; i < n_values; i++) e.n_outputs += values[i].flags & DPK_VALUE_OUTPUT;
    DPK_TRY(dpk_writer_string(w, name, &e.name, err));
    DPK_TRY(bytes_align(&w->programs, err));
    e.offset = w->programs.n;
    DPK_TRY(bytes_add(&w->programs, values, (size_t)n_values * sizeof *values, err));
    DPK_TRY(bytes_align(&w->programs, err));
    DPK_TRY(bytes_add(&w->programs, ops, n_ops * sizeof *ops, err));
    e.bytes = w->programs.n - e.offset;
    DPK_TRY(bytes_add(&w->program_entries, &e, sizeof e, err));
done:
    return rc;
}

/* ---- The front ---- */

/* qsort has no argument of ours, and keys are offsets: sort an array of pointers beside them. */
struct sortable_pair {
    const char *key;
    struct dpk_pair pair;
};
static int compare_pairs(const void *a, const void *b) {
    return strcmp(((const struct sortable_pair *)a)->key, ((const struct sortable_pair *)b)->key);
}

static int sort_pairs(struct dpk_writer *w, dpk_error *err) {
    struct dpk_pair *pairs = (struct dpk_pair *)(void *)w->pairs.p;
    const size_t n = w->pairs.n / sizeof *pairs;
    struct sortable_pair *sorted = NULL;
    int rc = DPK_OK;
    if (n < 2) goto done;
    sorted = malloc(n * sizeof *sorted);
    if (!sorted) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for %zu pairs", w->path, n);
    for (size_t i = 0; i < n; i++) {
        sorted[i].key = (const char *)w->strings.p + pairs[i].key;
        sorted[i].pair = pairs[i];
    }
    qsort(sorted, n, sizeof *sorted, compare_pairs);
    for (size_t i = 0; i < n; i++) {
        pairs[i] = sorted[i].pair;
        if (i > 0 && strcmp(sorted[i - 1].key, sorted[i].key) == 0)
            DPK_FAIL(err, DPK_EARG, "%s: two values for the metadata key %.200s", w->path,
                     sorted[i].key);
    }
done:
    free(sorted);
    return rc;
}

static int add_section(struct dpk_writer *w, struct dpk_section *s, uint32_t id, uint64_t count,
                       const struct bytes *records, const struct bytes *rest, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(bytes_align(&w->front, err));
    s->id = id;
    s->count = (uint32_t)count;
    s->offset = w->front.n;
    DPK_TRY(bytes_add(&w->front, records->p, records->n, err));
    if (rest && rest->n) {
        DPK_TRY(bytes_align(&w->front, err)); /* a section begins aligned, so this is within it */
        DPK_TRY(bytes_add(&w->front, rest->p, rest->n, err));
    }
    s->bytes = w->front.n - s->offset;
    s->hash = dpk_bytes_sum(w->front.p + s->offset, (size_t)s->bytes);
done:
    return rc;
}

/* The whole file up to the weights, from what was collected and the tensors' sums as they are. */
static int build_front(struct dpk_writer *w, dpk_error *err) {
    static const uint8_t zeros[DPK_WEIGHTS_ALIGN];
    struct dpk_header h = {.version = DPK_VERSION, .n_sections = DPK_N_SECTIONS};
    struct dpk_section s[DPK_N_SECTIONS] = {{0}};
    const struct bytes *blob_entries = &w->blob_entries, *program_entries = &w->program_entries;
    int rc = DPK_OK;
    memcpy(h.magic, DPK_MAGIC, sizeof h.magic);
    w->front.n = 0;
    DPK_TRY(bytes_add(&w->front, zeros, DPK_TABLE_BYTES, err));
    DPK_TRY(add_section(w, &s[0], DPK_SECTION_STRINGS, w->n_strings, &w->strings, NULL, err));
    DPK_TRY(add_section(w, &s[1], DPK_SECTION_METADATA, w->pairs.n / sizeof(struct dpk_pair),
                        &w->pairs, NULL, err));
    DPK_TRY(add_section(w, &s[2], DPK_SECTION_TOKENIZERS,
                        blob_entries->n / sizeof(struct dpk_blob_entry), blob_entries, &w->blobs,
                        err));
    DPK_TRY(add_section(w, &s[3], DPK_SECTION_PROGRAMS,
                        program_entries->n / sizeof(struct dpk_program_entry), program_entries,
                        &w->programs, err));
    DPK_TRY(add_section(w, &s[4], DPK_SECTION_TENSORS, n_tensors(w), &w->tensors, NULL, err));
    const uint64_t weights = dpk_round_up(w->front.n, DPK_WEIGHTS_ALIGN);
    DPK_TRY(bytes_add(&w->front, zeros, (size_t)(weights - w->front.n), err));
    s[5] = (struct dpk_section){.id = DPK_SECTION_WEIGHTS,
                                .offset = weights,
                                .bytes = w->weights_bytes,
                                .hash = dpk_tensors_sum(tensor_records(w), n_tensors(w))};
    h.file_bytes = weights + w->weights_bytes;
    memcpy(w->front.p, &h, sizeof h);
    memcpy(w->front.p + sizeof h, s, sizeof s);
    h.hash = dpk_table_sum(w->front.p);
    memcpy(w->front.p, &h, sizeof h);
done:
    return rc;
}

/* Entries were collected with offsets from the first blob or program, which come after them. */
static void place_entries(struct dpk_writer *w) {
    struct dpk_blob_entry *blobs = (struct dpk_blob_entry *)(void *)w->blob_entries.p;
    struct dpk_program_entry *programs = (struct dpk_program_entry *)(void *)w->program_entries.p;
    const uint64_t blob_base = dpk_round_up(w->blob_entries.n, DPK_ALIGN);
    const uint64_t program_base = dpk_round_up(w->program_entries.n, DPK_ALIGN);
    for (size_t i = 0; i < w->blob_entries.n / sizeof *blobs; i++) blobs[i].offset += blob_base;
    for (size_t i = 0; i < w->program_entries.n / sizeof *programs; i++)
        programs[i].offset += program_base;
}

/* What is about to be written, seen by the reader. */
static int view_front(const struct dpk_writer *w, struct dpk_file *f, dpk_error *err) {
    struct dpk_header h;
    int rc = DPK_OK;
    memcpy(&h, w->front.p, sizeof h);
    *f = (struct dpk_file){.fd = -1, .file_bytes = h.file_bytes};
    DPK_TRY(dpk_check_table(w->front.p, h.file_bytes, w->path, err));
    f->front = aligned_alloc(DPK_ALIGN, w->front.n);
    if (!f->front) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for %zu bytes", w->path, w->front.n);
    memcpy(f->front, w->front.p, w->front.n);
    DPK_TRY(dpk_check_front(f, w->path, err));
done:
    if (rc != DPK_OK) dpk_file_close(f);
    return rc;
}

int dpk_writer_view(struct dpk_writer *w, struct dpk_file *f, dpk_error *err) {
    int rc = DPK_OK;
    *f = (struct dpk_file){.fd = -1};
    DPK_TRY(want_state(w, COLLECTING, "dpk_writer_view", err));
    w->state = STREAMING; /* no second try: the entries are placed now */
    DPK_TRY(sort_pairs(w, err));
    place_entries(w);
    DPK_TRY(build_front(w, err));
    DPK_TRY(view_front(w, f, err));
done:
    return rc;
}

/* ---- Streaming ---- */

int dpk_writer_begin(struct dpk_writer *w, dpk_error *err) {
    struct dpk_file view;
    int rc = DPK_OK;
    DPK_TRY(want_state(w, COLLECTING, "dpk_writer_begin", err));
    DPK_TRY(dpk_writer_view(w, &view, err));
    dpk_file_close(&view);
    DPK_TRY(dpk_output_create(&w->out, w->path, w->front.n + w->weights_bytes, w->front.n, err));
    XXH3_64bits_reset(w->sum);
done:
    return rc;
}

int dpk_writer_put(struct dpk_writer *w, uint32_t index, const void *data, size_t n_bytes,
                   dpk_error *err) {
    static const uint8_t zeros[DPK_ALIGN];
    int rc = DPK_OK;
    DPK_TRY(want_state(w, STREAMING, "dpk_writer_put", err));
    if (!w->out) DPK_FAIL(err, DPK_EARG, "%s: dpk_writer_put after a failed begin", w->path);
    if (index != w->tensor || index >= n_tensors(w))
        DPK_FAIL(err, DPK_EARG, "%s: bytes for tensor %u, want tensor %u of %u", w->path, index,
                 w->tensor, n_tensors(w));
    struct dpk_tensor_record *t = &tensor_records(w)[index];
    if (n_bytes > t->bytes - w->tensor_n)
        DPK_FAIL(err, DPK_EARG, "%s: tensor %.200s: %" PRIu64 " bytes and %zu more, want %" PRIu64,
                 w->path, (const char *)w->strings.p + t->name, w->tensor_n, n_bytes, t->bytes);
    if (n_bytes == 0) goto done;
    if (w->tensor_n == 0 && index > 0) {
        const uint64_t end = t[-1].offset + t[-1].bytes;
        DPK_TRY(dpk_output_put(w->out, zeros, (size_t)(t->offset - end), err));
    }
    XXH3_64bits_update(w->sum, data, n_bytes);
    DPK_TRY(dpk_output_put(w->out, data, n_bytes, err));
    w->tensor_n += n_bytes;
    if (w->tensor_n == t->bytes) {
        t->hash = XXH3_64bits_digest(w->sum);
        XXH3_64bits_reset(w->sum);
        w->tensor++;
        w->tensor_n = 0;
    }
done:
    return rc;
}

int dpk_writer_finish(struct dpk_writer *w, dpk_error *err) {
    int rc = DPK_OK;
    DPK_TRY(want_state(w, STREAMING, "dpk_writer_finish", err));
    if (!w->out) DPK_FAIL(err, DPK_EARG, "%s: dpk_writer_finish after a failed begin", w->path);
    if (w->tensor != n_tensors(w)) {
        const struct dpk_tensor_record *t = &tensor_records(w)[w->tensor];
        DPK_FAIL(err, DPK_EARG, "%s: tensor %.200s has %" PRIu64 " of its %" PRIu64 " bytes",
                 w->path, (const char *)w->strings.p + t->name, w->tensor_n, t->bytes);
    }
    w->state = FINISHED;
    DPK_TRY(build_front(w, err));
    DPK_TRY(dpk_output_finish(w->out, w->front.p, w->front.n, err));
done:
    return rc;
}
