/* Container rules: header, section table, strings, metadata, tokenizers, tensors. The order of the
 * checks is such that nothing is used before it was checked, and every check is linear in the size
 * of what it reads, but for sorting names. */
#include "dpk_check.h"

#include "fail.h"
#include "tokenizer_blob.h"
#include "utf8.h"

#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include "xxhash.h"

_Static_assert(sizeof(struct dpk_header) == 64, "record size");
_Static_assert(sizeof(struct dpk_section) == 32, "record size");
_Static_assert(sizeof(struct dpk_pair) == 8, "record size");
_Static_assert(sizeof(struct dpk_blob_entry) == 32, "record size");
_Static_assert(sizeof(struct dpk_program_entry) == 32, "record size");
_Static_assert(sizeof(struct dpk_value) == 32, "record size");
_Static_assert(sizeof(struct dpk_tensor_record) == 128, "record size");
_Static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "records are used as they are read");

static const char *section_name(uint32_t id) {
    static const char *const names[] = {"?",        "strings", "metadata", "tokenizers",
                                        "programs", "tensors", "weights"};
    return id <= DPK_N_SECTIONS ? names[id] : "?";
}

uint64_t dpk_table_sum(const uint8_t table[DPK_TABLE_BYTES]) {
    uint8_t copy[DPK_TABLE_BYTES];
    memcpy(copy, table, sizeof copy);
    memset(copy + offsetof(struct dpk_header, hash), 0, sizeof(uint64_t));
    return XXH3_64bits(copy, sizeof copy);
}

uint64_t dpk_bytes_sum(const void *data, size_t n_bytes) { return XXH3_64bits(data, n_bytes); }

uint64_t dpk_tensors_sum(const struct dpk_tensor_record *tensors, uint32_t n) {
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset(&state);
    for (uint32_t i = 0; i < n; i++) XXH3_64bits_update(&state, &tensors[i].hash, 8);
    return XXH3_64bits_digest(&state);
}

bool dpk_check_all_zero(const void *p, size_t n_bytes) {
    const uint8_t *bytes = p;
    for (size_t i = 0; i < n_bytes; i++)
        if (bytes[i]) return false;
    return true;
}

/* ---- Header and section table ---- */

static int check_section(const struct dpk_section *s, uint32_t i, uint64_t *end, const char *path,
                         dpk_error *err) {
    static const uint32_t record_bytes[DPK_N_SECTIONS] = {
        1, sizeof(struct dpk_pair), sizeof(struct dpk_blob_entry), sizeof(struct dpk_program_entry),
        sizeof(struct dpk_tensor_record)};
    const char *name = section_name(i + 1);
    const bool is_weights = i + 1 == DPK_SECTION_WEIGHTS;
    const uint64_t want = dpk_round_up(*end, is_weights ? DPK_WEIGHTS_ALIGN : DPK_ALIGN);
    const uint64_t records = (uint64_t)s->count * record_bytes[i];
    int rc = DPK_OK;
    if (s->id != i + 1)
        DPK_FAIL(err, DPK_EFORMAT, "%s: section %u has the id %u, want %u (%s)", path, i, s->id,
                 i + 1, name);
    if (s->offset != want)
        DPK_FAIL(err, DPK_EFORMAT, "%s: section %s: offset %" PRIu64 ", want %" PRIu64, path, name,
                 s->offset, want);
    if (s->bytes > UINT64_MAX / 2 - s->offset)
        DPK_FAIL(err, DPK_EFORMAT, "%s: section %s: %" PRIu64 " bytes at offset %" PRIu64, path,
                 name, s->bytes, s->offset);
    if (!is_weights && s->offset + s->bytes > DPK_MAX_FRONT)
        DPK_FAIL(err, DPK_EFORMAT, "%s: section %s: ends at %" PRIu64 ", want at most %" PRIu64,
                 path, name, s->offset + s->bytes, DPK_MAX_FRONT);
    if (is_weights && s->count)
        DPK_FAIL(err, DPK_EFORMAT, "%s: section weights: count %u, want 0", path, s->count);
    /* Metadata and tensors are records and nothing else; the others begin with records. */
    const bool exact = i + 1 == DPK_SECTION_METADATA || i + 1 == DPK_SECTION_TENSORS;
    if (!is_weights && (exact ? records != s->bytes : records > s->bytes))
        DPK_FAIL(err, DPK_EFORMAT, "%s: section %s: %" PRIu64 " bytes for a count of %u", path,
                 name, s->bytes, s->count);
    *end = s->offset + s->bytes;
done:
    return rc;
}

int dpk_check_table(const uint8_t table[DPK_TABLE_BYTES], uint64_t file_bytes, const char *path,
                    dpk_error *err) {
    struct dpk_header h;
    struct dpk_section sections[DPK_N_SECTIONS];
    int rc = DPK_OK;
    memcpy(&h, table, sizeof h);
    memcpy(sections, table + sizeof h, sizeof sections);
    if (memcmp(h.magic, DPK_MAGIC, sizeof h.magic) != 0)
        DPK_FAIL(err, DPK_EFORMAT, "%s: not a .dpk file (%s)", path,
                 memcmp(h.magic, DPK_BUNDLE_MAGIC, 4)
                     ? "its first 8 bytes are others"
                     : "compressed by zstd: of a bundle, diffpak unbundle makes one");
    if (h.version != DPK_VERSION)
        DPK_FAIL(err, DPK_EFORMAT, "%s: format version %u, this program reads version %d", path,
                 h.version, DPK_VERSION);
    if (h.n_sections != DPK_N_SECTIONS)
        DPK_FAIL(err, DPK_EFORMAT, "%s: header: %u sections, want %d", path, h.n_sections,
                 DPK_N_SECTIONS);
    const uint64_t sum = dpk_table_sum(table);
    if (h.hash != sum)
        DPK_FAIL(err, DPK_EFORMAT,
                 "%s: header: the sum is %016" PRIx64 ", its bytes give %016" PRIx64, path, h.hash,
                 sum);
    if (!dpk_check_all_zero(h.zero, sizeof h.zero))
        DPK_FAIL(err, DPK_EFORMAT, "%s: header: reserved bytes are not zero", path);
    if (h.file_bytes != file_bytes)
        DPK_FAIL(err, DPK_EFORMAT,
                 "%s: the file has %" PRIu64 " bytes, its header says %" PRIu64 "%s", path,
                 file_bytes, h.file_bytes, file_bytes < h.file_bytes ? " (cut short?)" : "");
    uint64_t end = DPK_TABLE_BYTES;
    for (uint32_t i = 0; i < DPK_N_SECTIONS; i++)
        DPK_TRY(check_section(&sections[i], i, &end, path, err));
    if (end != file_bytes)
        DPK_FAIL(err, DPK_EFORMAT, "%s: the sections end at %" PRIu64 ", the file at %" PRIu64,
                 path, end, file_bytes);
done:
    return rc;
}

/* ---- Strings and names ---- */

static int check_strings(const struct dpk_check *c) {
    const struct dpk_section *s = &c->f->sections[DPK_SECTION_STRINGS - 1];
    const uint8_t *p = c->f->front + s->offset;
    uint64_t n_strings = 0;
    int rc = DPK_OK;
    if (s->bytes == 0 || p[0] != 0 || p[s->bytes - 1] != 0)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: section strings: want an empty string first and a zero byte last", c->path);
    for (uint64_t i = 0; i < s->bytes;) {
        const size_t len = dpk_utf8_length(p + i, (size_t)(s->bytes - i));
        if (len == 0)
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: section strings: no UTF-8 at byte %" PRIu64, c->path,
                     i);
        if (p[i] == 0) {
            if (i > 0 && p[i - 1] == 0)
                DPK_FAIL(c->err, DPK_EFORMAT,
                         "%s: section strings: a second empty string at byte %" PRIu64, c->path, i);
            n_strings++;
        }
        i += len;
    }
    if (n_strings != s->count)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: section strings: %" PRIu64 " strings, count says %u",
                 c->path, n_strings, s->count);
done:
    return rc;
}

bool dpk_check_is_string(const struct dpk_check *c, uint32_t offset) {
    if (offset >= c->f->sections[DPK_SECTION_STRINGS - 1].bytes) return false;
    return offset == 0 || c->f->strings[offset - 1] == 0;
}

int dpk_check_name(const struct dpk_check *c, uint32_t offset, const char *what, uint32_t index) {
    int rc = DPK_OK;
    if (!dpk_check_is_string(c, offset))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: %s %u: name at %u, where no string begins", c->path,
                 what, index, offset);
    const char *s = c->f->strings + offset;
    size_t n = 0;
    for (size_t length; n <= DPK_MAX_NAME && s[n]; n += length) {
        const uint8_t *at = (const uint8_t *)s + n;
        length = dpk_utf8_length(at, strnlen(s + n, 4)); /* not 0: the strings are UTF-8 */
        if (dpk_utf8_is_control(at, length))
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: %s %u: control character at byte %zu of its name",
                     c->path, what, index, n);
    }
    if (n == 0 || n > DPK_MAX_NAME)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: %s %u: its name has %s, want 1 to %d bytes", c->path,
                 what, index, n ? "more" : "0 bytes", DPK_MAX_NAME);
done:
    return rc;
}

/* Equal pointers need no comparison, so that many records of one long name cost nothing. */
static int compare_names(const void *a, const void *b) {
    const char *x = *(const char *const *)a, *y = *(const char *const *)b;
    return x == y ? 0 : strcmp(x, y);
}

int dpk_check_unique(const struct dpk_check *c, const char **names, size_t n, const char *what) {
    if (n < 2) return DPK_OK;
    qsort(names, n, sizeof *names, compare_names);
    for (size_t i = 1; i < n; i++)
        if (compare_names(&names[i - 1], &names[i]) == 0)
            return dpk_error_set(c->err, DPK_EFORMAT, "%s: two %s are called %.200s", c->path, what,
                                 names[i]);
    return DPK_OK;
}

/* ---- Metadata and tokenizers ---- */

static int check_metadata(const struct dpk_check *c) {
    const struct dpk_file *f = c->f;
    int rc = DPK_OK;
    for (uint32_t i = 0; i < f->n_pairs; i++) {
        const struct dpk_pair *p = &f->pairs[i];
        DPK_TRY(dpk_check_name(c, p->key, "metadata key", i));
        if (!dpk_check_is_string(c, p->value))
            DPK_FAIL(c->err, DPK_EFORMAT,
                     "%s: metadata %.100s: value at %u, where no string begins", c->path,
                     dpk_file_string(f, p->key), p->value);
        if (i > 0 &&
            strcmp(dpk_file_string(f, f->pairs[i - 1].key), dpk_file_string(f, p->key)) >= 0)
            DPK_FAIL(c->err, DPK_EFORMAT,
                     "%s: metadata %.100s comes after %.100s: want rising keys", c->path,
                     dpk_file_string(f, p->key), dpk_file_string(f, f->pairs[i - 1].key));
    }
done:
    return rc;
}

static int check_tokenizers(const struct dpk_check *c) {
    const struct dpk_file *f = c->f;
    const struct dpk_section *s = &f->sections[DPK_SECTION_TOKENIZERS - 1];
    const uint8_t *base = f->front + s->offset;
    uint64_t end = (uint64_t)f->n_tokenizers * sizeof(struct dpk_blob_entry);
    const char **names = NULL;
    int rc = DPK_OK;
    if (f->n_tokenizers && !(names = malloc(f->n_tokenizers * sizeof *names)))
        DPK_FAIL(c->err, DPK_ENOMEM, "%s: no memory for %u names", c->path, f->n_tokenizers);
    for (uint32_t i = 0; i < f->n_tokenizers; i++) {
        const struct dpk_blob_entry *b = &f->tokenizers[i];
        const uint64_t want = dpk_round_up(end, DPK_ALIGN);
        DPK_TRY(dpk_check_name(c, b->name, "tokenizer", i));
        names[i] = dpk_file_string(f, b->name);
        if (b->kind != DPK_TOKENIZER_CLIP && b->kind != DPK_TOKENIZER_T5)
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: tokenizer %.100s: kind %u is unknown", c->path,
                     names[i], b->kind);
        if (b->offset != want || b->bytes == 0 || b->offset > s->bytes ||
            b->bytes > s->bytes - b->offset)
            DPK_FAIL(c->err, DPK_EFORMAT,
                     "%s: tokenizer %.100s: %" PRIu64 " bytes at %" PRIu64
                     ", want at least 1 at %" PRIu64 " of %" PRIu64,
                     c->path, names[i], b->bytes, b->offset, want, s->bytes);
        if (b->zero || !dpk_check_all_zero(base + end, (size_t)(want - end)))
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: tokenizer %.100s: reserved bytes are not zero",
                     c->path, names[i]);
        end = b->offset + b->bytes;
    }
    if (end != s->bytes)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: section tokenizers: %" PRIu64 " bytes, the last one ends at %" PRIu64,
                 c->path, s->bytes, end);
    rc = dpk_check_unique(c, names, f->n_tokenizers, "tokenizers");
done:
    free(names);
    return rc;
}

/* ---- Tensors ---- */

/* Tensor `index`, the `role` of tensor t: raw, of this type, [rows] or [rows, columns]. */
static int check_companion(const struct dpk_check *c, const struct dpk_tensor_record *t,
                           const char *role, uint32_t index, uint32_t dtype, int32_t columns) {
    const char *name = dpk_file_string(c->f, t->name);
    int rc = DPK_OK;
    if (index >= c->f->n_tensors)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: %s is tensor %u of %u", c->path, name,
                 role, index, c->f->n_tensors);
    const struct dpk_tensor_record *o = &c->f->tensors[index];
    const uint32_t rank = columns ? 2 : 1;
    if (o->dtype != dtype || o->layout != DPK_LAYOUT_RAW || o->rank != rank ||
        o->dim[0] != t->dim[0] || o->dim[1] != columns)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: tensor %.100s: %s (tensor %u) is %s %s rank %u [%d,%d], want %s raw rank %u "
                 "[%d,%d]",
                 c->path, name, role, index, dpk_dtype_name((int)o->dtype),
                 dpk_layout_name((int)o->layout), o->rank, o->dim[0], o->dim[1],
                 dpk_dtype_name((int)dtype), rank, t->dim[0], columns);
done:
    return rc;
}

static int check_flags(const struct dpk_check *c, const struct dpk_tensor_record *t) {
    const char *name = dpk_file_string(c->f, t->name);
    int rc = DPK_OK;
    if (t->flags & ~(uint32_t)(DPK_TENSOR_CONV1X1 | DPK_TENSOR_DYNAMIC | DPK_TENSOR_TORCHAO))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: flags %#x are unknown", c->path, name,
                 t->flags);
    if (t->flags & DPK_TENSOR_CONV1X1 && (t->layout != DPK_LAYOUT_PANEL || t->rank != 2))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: %s of rank %u as a 1x1 convolution",
                 c->path, name, dpk_layout_name((int)t->layout), t->rank);
    if (t->flags & DPK_TENSOR_DYNAMIC && t->dtype != DPK_S8)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: dynamic quantization with %s, want s8",
                 c->path, name, dpk_dtype_name((int)t->dtype));
    if (t->flags & DPK_TENSOR_TORCHAO && !(t->flags & DPK_TENSOR_DYNAMIC))
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: tensor %.100s: a rule of dynamic quantization without it", c->path, name);
done:
    return rc;
}

static int check_quantization(const struct dpk_check *c, const struct dpk_tensor_record *t) {
    const char *name = dpk_file_string(c->f, t->name);
    const bool s8 = t->dtype == DPK_S8, s4 = t->dtype == DPK_S4;
    int rc = DPK_OK;
    if ((s8 || s4) && t->layout == DPK_LAYOUT_RAW)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: %s is for panels only", c->path, name,
                 dpk_dtype_name((int)t->dtype));
    if (!s8 && !s4 && t->scale != DPK_NONE)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: a scale for %s", c->path, name,
                 dpk_dtype_name((int)t->dtype));
    if (!s8 && t->colsum != DPK_NONE)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: a colsum for %s", c->path, name,
                 dpk_dtype_name((int)t->dtype));
    if (!s4 && t->group)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: group %u for %s, want 0", c->path, name,
                 t->group, dpk_dtype_name((int)t->dtype));
    if (s8) {
        DPK_TRY(check_companion(c, t, "scale", t->scale, DPK_F32, 0));
        DPK_TRY(check_companion(c, t, "colsum", t->colsum, DPK_I32, 0));
    }
    if (s4) {
        const int32_t channels = t->dim[t->rank - 1]; /* no group spans two taps of a kernel */
        int64_t k = 1;                                /* values of a row; below 2^40 */
        for (uint32_t i = 1; i < t->rank; i++) k *= t->dim[i];
        if (t->group == 0 || t->group % 8 || (uint32_t)channels % t->group)
            DPK_FAIL(c->err, DPK_EFORMAT,
                     "%s: tensor %.100s: group %u, want a multiple of 8 that divides %d channels",
                     c->path, name, t->group, channels);
        if (k / t->group > INT32_MAX)
            DPK_FAIL(c->err, DPK_EFORMAT,
                     "%s: tensor %.100s: %" PRId64 " groups a row, want below 2^31", c->path, name,
                     k / t->group);
        DPK_TRY(check_companion(c, t, "scale", t->scale, DPK_F32, (int32_t)(k / t->group)));
    }
done:
    return rc;
}

/* Tensor i by itself; *end is where the one before it ended. */
static int check_tensor(const struct dpk_check *c, uint32_t i, uint64_t *end) {
    const struct dpk_file *f = c->f;
    const struct dpk_tensor_record *t = &f->tensors[i];
    const uint64_t weights = f->sections[DPK_SECTION_WEIGHTS - 1].bytes;
    const uint64_t want = dpk_round_up(*end, DPK_ALIGN);
    int rc = DPK_OK;
    DPK_TRY(dpk_check_name(c, t->name, "tensor", i));
    const char *name = dpk_file_string(f, t->name);
    if (!dpk_check_is_string(c, t->source))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: source at %u, where no string begins",
                 c->path, name, t->source);
    if (t->dtype < DPK_F32 || t->dtype > DPK_I32)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: type %u is unknown", c->path, name,
                 t->dtype);
    if (t->layout > DPK_LAYOUT_PANEL_GLU)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: layout %u is unknown", c->path, name,
                 t->layout);
    const struct dpk_shape shape = dpk_tensor_shape(t);
    const int64_t count = t->rank <= DPK_MAX_RANK ? dpk_shape_count(&shape) : 0;
    bool tail = true;
    for (uint32_t k = t->rank; k < DPK_MAX_RANK; k++) tail = tail && t->dim[k] == 0;
    if (count == 0 || !tail)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: rank %u [%d,%d,%d,%d] is not a shape",
                 c->path, name, t->rank, t->dim[0], t->dim[1], t->dim[2], t->dim[3]);
    const uint64_t bytes = dpk_weight_bytes((int)t->dtype, (int)t->layout, &shape);
    if (bytes == 0)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: no %s of %s with rank %u and %d rows",
                 c->path, name, dpk_layout_name((int)t->layout), dpk_dtype_name((int)t->dtype),
                 t->rank, t->dim[0]);
    if (t->bytes != bytes)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: %" PRIu64 " bytes, want %" PRIu64,
                 c->path, name, t->bytes, bytes);
    if (t->offset != want || t->offset > weights || bytes > weights - t->offset)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: tensor %.100s: %" PRIu64 " bytes at %" PRIu64 ", want offset %" PRIu64
                 " in a section of %" PRIu64,
                 c->path, name, bytes, t->offset, want, weights);
    DPK_TRY(check_flags(c, t));
    if (!dpk_check_all_zero(t->zero, sizeof t->zero))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: tensor %.100s: reserved words are not zero", c->path,
                 name);
    *end = t->offset + bytes;
done:
    return rc;
}

static int check_tensors(const struct dpk_check *c) {
    const struct dpk_file *f = c->f;
    const uint64_t weights = f->sections[DPK_SECTION_WEIGHTS - 1].bytes;
    const uint64_t want_sum = dpk_tensors_sum(f->tensors, f->n_tensors);
    const char **names = NULL;
    uint64_t end = 0;
    int rc = DPK_OK;
    if (f->n_tensors && !(names = malloc(f->n_tensors * sizeof *names)))
        DPK_FAIL(c->err, DPK_ENOMEM, "%s: no memory for %u names", c->path, f->n_tensors);
    for (uint32_t i = 0; i < f->n_tensors; i++) {
        DPK_TRY(check_tensor(c, i, &end));
        names[i] = dpk_file_string(f, f->tensors[i].name);
    }
    if (end != weights)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: section weights: %" PRIu64 " bytes, the tensors end at %" PRIu64, c->path,
                 weights, end);
    for (uint32_t i = 0; i < f->n_tensors; i++) DPK_TRY(check_quantization(c, &f->tensors[i]));
    if (f->sections[DPK_SECTION_WEIGHTS - 1].hash != want_sum)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: section weights: the sum is %016" PRIx64
                 ", the tensors' sums give %016" PRIx64,
                 c->path, f->sections[DPK_SECTION_WEIGHTS - 1].hash, want_sum);
    rc = dpk_check_unique(c, names, f->n_tensors, "tensors");
done:
    free(names);
    return rc;
}

/* ---- All of it ---- */

/* Sums of the sections before the weights, and the zeros between them. */
static int check_sections(const struct dpk_check *c) {
    const struct dpk_file *f = c->f;
    uint64_t end = DPK_TABLE_BYTES;
    int rc = DPK_OK;
    for (uint32_t i = 0; i < DPK_N_SECTIONS; i++) {
        const struct dpk_section *s = &f->sections[i];
        const char *name = section_name(s->id);
        if (!dpk_check_all_zero(f->front + end, (size_t)(s->offset - end)))
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: the padding before section %s is not zero", c->path,
                     name);
        if (s->id == DPK_SECTION_WEIGHTS) break;
        const uint64_t sum = dpk_bytes_sum(f->front + s->offset, (size_t)s->bytes);
        if (s->hash != sum)
            DPK_FAIL(c->err, DPK_EFORMAT,
                     "%s: section %s: the sum is %016" PRIx64 ", its bytes give %016" PRIx64,
                     c->path, name, s->hash, sum);
        end = s->offset + s->bytes;
    }
done:
    return rc;
}

int dpk_check_front(struct dpk_file *f, const char *path, dpk_error *err) {
    const struct dpk_check c = {f, path, err};
    const struct dpk_section *s = (const void *)(f->front + sizeof(struct dpk_header));
    int rc = DPK_OK;
    f->sections = s;
    DPK_TRY(check_sections(&c));
    f->strings = (const char *)f->front + s[DPK_SECTION_STRINGS - 1].offset;
    f->pairs = (const void *)(f->front + s[DPK_SECTION_METADATA - 1].offset);
    f->tokenizers = (const void *)(f->front + s[DPK_SECTION_TOKENIZERS - 1].offset);
    f->tensors = (const void *)(f->front + s[DPK_SECTION_TENSORS - 1].offset);
    f->n_pairs = s[DPK_SECTION_METADATA - 1].count;
    f->n_tokenizers = s[DPK_SECTION_TOKENIZERS - 1].count;
    f->n_programs = s[DPK_SECTION_PROGRAMS - 1].count;
    f->n_tensors = s[DPK_SECTION_TENSORS - 1].count;
    f->weights_bytes = s[DPK_SECTION_WEIGHTS - 1].bytes;
    DPK_TRY(check_strings(&c));
    DPK_TRY(check_metadata(&c));
    DPK_TRY(check_tokenizers(&c));
    DPK_TRY(check_tensors(&c));
    DPK_TRY(dpk_check_programs(&c));
done:
    return rc;
}
