#include "dpk.h"

#include "dpk_check.h"
#include "fail.h"
#include "map_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include "xxhash.h"

/* All n bytes at this offset, or an error. */
enum { MAX_SHOWN = 200 }; /* bytes of a path in messages */

static int read_all(int fd, uint8_t *p, size_t n, uint64_t offset, const char *path,
                    dpk_error *err) {
    int rc = DPK_OK;
    while (n > 0) {
        const ssize_t got = pread(fd, p, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) DPK_FAIL(err, DPK_EIO, "%s: cannot read: %s", path, strerror(errno));
        if (got == 0)
            DPK_FAIL(err, DPK_EIO, "%s: ended at byte %" PRIu64 " while it was read", path, offset);
        p += got;
        n -= (size_t)got;
        offset += (uint64_t)got;
    }
done:
    return rc;
}

/* The file up to the weights, in private memory, its header and section table checked. */
static int read_front(struct dpk_file *f, const char *path, dpk_error *err) {
    _Alignas(8) uint8_t table[DPK_TABLE_BYTES];
    int rc = DPK_OK;
    const size_t n_head = f->file_bytes < sizeof table ? (size_t)f->file_bytes : sizeof table;
    memset(table, 0, sizeof table);
    DPK_TRY(read_all(f->fd, table, n_head, 0, path, err));
    if (n_head < sizeof table) {
        const bool ours = n_head >= 8 && memcmp(table, DPK_MAGIC, 8) == 0;
        DPK_FAIL(err, DPK_EFORMAT, "%s: %zu bytes, want at least %zu%s", path, n_head, sizeof table,
                 ours ? " (cut short?)" : ": not a .dpk file");
    }
    DPK_TRY(dpk_check_table(table, f->file_bytes, path, err));

    const struct dpk_section *sections = (const void *)(table + sizeof(struct dpk_header));
    /* At most DPK_MAX_FRONT and a page, and no more than the file has; a multiple of 4096. */
    const size_t n_front = (size_t)sections[DPK_SECTION_WEIGHTS - 1].offset;
    f->front = aligned_alloc(DPK_ALIGN, n_front);
    if (!f->front) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for %zu bytes", path, n_front);
    /* The checked copy of the table is kept: the file may have changed meanwhile. */
    memcpy(f->front, table, sizeof table);
    DPK_TRY(
        read_all(f->fd, f->front + sizeof table, n_front - sizeof table, sizeof table, path, err));
done:
    return rc;
}

static int map_weights(struct dpk_file *f, const char *path, dpk_error *err) {
    const struct dpk_section *s = &f->sections[DPK_SECTION_WEIGHTS - 1];
    int rc = DPK_OK;
    if (s->bytes == 0) goto done;
    /* A page may be larger than the section's alignment. */
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t start = s->offset / page * page, n = s->offset - start + s->bytes;
    if (n > SIZE_MAX)
        DPK_FAIL(err, DPK_ENOMEM, "%s: %" PRIu64 " bytes of weights do not fit into memory", path,
                 s->bytes);
    const bool in_memory = f->flags & DPK_OPEN_IN_MEMORY;
    void *map = in_memory ? mmap(NULL, (size_t)n, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                          : mmap(NULL, (size_t)n, PROT_READ, MAP_SHARED, f->fd, (off_t)start);
    if (map == MAP_FAILED)
        DPK_FAIL(err, in_memory ? DPK_ENOMEM : DPK_EIO, "%s: cannot map %" PRIu64 " bytes: %s",
                 path, n, strerror(errno));
    f->map = map;
    f->map_bytes = (size_t)n;
    f->weights = (const uint8_t *)map + (s->offset - start);
    if (in_memory) DPK_TRY(read_all(f->fd, map, (size_t)n, start, path, err));
    else if (f->flags & DPK_OPEN_GUARDED)
        DPK_TRY(dpk_guard_create(&f->guard, map, (size_t)(n + page - 1) / page * page, err));
done:
    return rc;
}

int dpk_file_open(struct dpk_file *f, const char *path, dpk_error *err) {
    return dpk_file_open_with(f, path, 0, err);
}

int dpk_file_open_with(struct dpk_file *f, const char *file, unsigned flags, dpk_error *err) {
    struct stat st;
    int rc = DPK_OK;
    /* The end of a long path: messages have to hold the rule as well. */
    const size_t n_path = strlen(file);
    char path[MAX_SHOWN + 1];
    snprintf(path, sizeof path, "%s%s", n_path > MAX_SHOWN ? "..." : "",
             n_path > MAX_SHOWN ? file + n_path - (MAX_SHOWN - 3) : file);
    *f = (struct dpk_file){.fd = -1, .flags = flags};
    /* O_NONBLOCK: a pipe is an error below, not something to wait for. */
    f->fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f->fd < 0 || fstat(f->fd, &st) != 0)
        DPK_FAIL(err, DPK_EIO, "%s: cannot open: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        DPK_FAIL(err, DPK_EIO, "%s: is %s, want a .dpk file", path,
                 S_ISDIR(st.st_mode) ? "a folder" : "not a regular file");
    f->file_bytes = (uint64_t)st.st_size;
    DPK_TRY(read_front(f, path, err));
    DPK_TRY(dpk_check_front(f, path, err));
    DPK_TRY(map_weights(f, path, err));
done:
    if (rc != DPK_OK) {
        if (f->fd >= 0) close(f->fd);
        f->fd = -1;
        dpk_file_close(f);
    }
    return rc;
}

int dpk_file_check_whole(const struct dpk_file *f, dpk_error *err) {
    struct stat st;
    if (!f->guard) return DPK_OK;
    /* What is left of the page that a file ends in reads as zeros, without a signal. */
    const bool as_long = fstat(f->fd, &st) == 0 && (uint64_t)st.st_size >= f->file_bytes;
    if (as_long && !dpk_guard_hit(f->guard)) return DPK_OK;
    return dpk_error_set(err, DPK_EIO,
                         "the model file lost bytes of its weights while they were in use");
}

void dpk_file_close(struct dpk_file *f) {
    dpk_guard_free(f->guard);
    if (f->map) munmap(f->map, f->map_bytes);
    /* A zeroed struct has descriptor 0, which is not ours; an open file always has its front. */
    if (f->front && f->fd >= 0) close(f->fd);
    free(f->front);
    free(f->programs);
    *f = (struct dpk_file){0};
}

/* ---- Verification ---- */

struct verifier {
    const struct dpk_file *f;
    uint8_t *buffer;
    uint64_t done;
    int (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    dpk_error *err;
};
enum { VERIFY_PIECE = 1 << 20 };

static int verify_read(struct verifier *v, uint64_t offset, size_t n) {
    const uint64_t base = v->f->sections[DPK_SECTION_WEIGHTS - 1].offset;
    int rc = DPK_OK;
    DPK_TRY(read_all(v->f->fd, v->buffer, n, base + offset, "weights", v->err));
    v->done += n;
    if (v->progress && v->progress(v->arg, v->done, v->f->weights_bytes))
        DPK_FAIL(v->err, DPK_ECANCELLED, "verification was stopped at byte %" PRIu64 " of %" PRIu64,
                 v->done, v->f->weights_bytes);
done:
    return rc;
}

static int verify_tensor(struct verifier *v, const struct dpk_tensor_record *t,
                         uint64_t gap_start) {
    const char *name = dpk_file_string(v->f, t->name);
    XXH3_state_t state;
    int rc = DPK_OK;
    if (t->offset > gap_start) { /* below DPK_ALIGN bytes */
        DPK_TRY(verify_read(v, gap_start, (size_t)(t->offset - gap_start)));
        if (!dpk_check_all_zero(v->buffer, (size_t)(t->offset - gap_start)))
            DPK_FAIL(v->err, DPK_EFORMAT, "the padding before tensor %.100s is not zero", name);
    }
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset(&state);
    for (uint64_t at = 0; at < t->bytes;) {
        const uint64_t left = t->bytes - at;
        const size_t n = left < VERIFY_PIECE ? (size_t)left : VERIFY_PIECE;
        DPK_TRY(verify_read(v, t->offset + at, n));
        XXH3_64bits_update(&state, v->buffer, n);
        at += n;
    }
    const uint64_t sum = XXH3_64bits_digest(&state);
    if (sum != t->hash)
        DPK_FAIL(v->err, DPK_EFORMAT,
                 "tensor %.100s: the sum is %016" PRIx64 ", its bytes give %016" PRIx64, name,
                 t->hash, sum);
done:
    return rc;
}

int dpk_file_verify(const struct dpk_file *f,
                    int (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                    dpk_error *err) {
    struct verifier v = {f, malloc(VERIFY_PIECE), 0, progress, arg, err};
    uint64_t end = 0;
    int rc = DPK_OK;
    if (!v.buffer) DPK_FAIL(err, DPK_ENOMEM, "no memory to verify with");
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        DPK_TRY(verify_tensor(&v, &f->tensors[i], end));
        end = f->tensors[i].offset + f->tensors[i].bytes;
    }
done:
    free(v.buffer);
    return rc;
}

/* ---- Looking things up ---- */

const char *dpk_file_meta(const struct dpk_file *f, const char *key) {
    uint32_t lo = 0, hi = f->n_pairs;
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        const int order = strcmp(dpk_file_string(f, f->pairs[mid].key), key);
        if (order == 0) return dpk_file_string(f, f->pairs[mid].value);
        if (order < 0) lo = mid + 1;
        else hi = mid;
    }
    return NULL;
}

const struct dpk_program *dpk_file_program(const struct dpk_file *f, const char *name) {
    for (uint32_t i = 0; i < f->n_programs; i++)
        if (strcmp(f->programs[i].name, name) == 0) return &f->programs[i];
    return NULL;
}

const void *dpk_file_blob(const struct dpk_file *f, uint32_t tokenizer, size_t *n_bytes) {
    const struct dpk_blob_entry *b = &f->tokenizers[tokenizer];
    *n_bytes = (size_t)b->bytes;
    return f->front + f->sections[DPK_SECTION_TOKENIZERS - 1].offset + b->offset;
}

struct dpk_shape dpk_tensor_shape(const struct dpk_tensor_record *t) {
    /* An unchecked rank may be anything; one above 4 becomes one that is no shape. */
    struct dpk_shape s = {.rank = t->rank <= DPK_MAX_RANK ? (int32_t)t->rank : -1};
    memcpy(s.dim, t->dim, sizeof s.dim);
    return s;
}

uint64_t dpk_file_sum(const struct dpk_file *f) {
    return ((const struct dpk_header *)(const void *)f->front)->hash;
}
