#include "safetensors.h"

#include "fail.h"
#include "json_scan.h"
#include "utf8.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const struct {
    char name[12];
    int bits;
} dtypes[DPK_ST_N_DTYPES] = {
    [DPK_ST_BOOL] = {"BOOL", 8},
    [DPK_ST_F4] = {"F4", 4},
    [DPK_ST_F6_E2M3] = {"F6_E2M3", 6},
    [DPK_ST_F6_E3M2] = {"F6_E3M2", 6},
    [DPK_ST_U8] = {"U8", 8},
    [DPK_ST_I8] = {"I8", 8},
    [DPK_ST_F8_E5M2] = {"F8_E5M2", 8},
    [DPK_ST_F8_E4M3] = {"F8_E4M3", 8},
    [DPK_ST_F8_E8M0] = {"F8_E8M0", 8},
    [DPK_ST_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [DPK_ST_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [DPK_ST_I16] = {"I16", 16},
    [DPK_ST_U16] = {"U16", 16},
    [DPK_ST_F16] = {"F16", 16},
    [DPK_ST_BF16] = {"BF16", 16},
    [DPK_ST_I32] = {"I32", 32},
    [DPK_ST_U32] = {"U32", 32},
    [DPK_ST_F32] = {"F32", 32},
    [DPK_ST_C64] = {"C64", 64},
    [DPK_ST_F64] = {"F64", 64},
    [DPK_ST_I64] = {"I64", 64},
    [DPK_ST_U64] = {"U64", 64},
};

const char *dpk_st_dtype_name(int dtype) {
    return dtype > 0 && dtype < DPK_ST_N_DTYPES ? dtypes[dtype].name : "?";
}

int dpk_st_dtype_bits(int dtype) {
    return dtype > 0 && dtype < DPK_ST_N_DTYPES ? dtypes[dtype].bits : 0;
}

/* The parser's state: arrays grow by doubling. */
struct parser {
    struct dpk_safetensors *st;
    struct dpk_json_scan scan;
    size_t cap_tensors, cap_meta;
    uint64_t buffer_bytes;
    int has_meta;
};

static void *grow(void *array, size_t *cap, size_t size) {
    size_t n = *cap ? *cap * 2 : 64;
    void *p = reallocarray(array, n, size);
    if (p) *cap = n;
    return p;
}

enum { MAX_NAME = 255 /* bytes; those of models have about 100 */ };

/* Names appear in messages of one line and in the .dpk file: not long, no control characters. */
static int check_name(const struct parser *p, const char *name, dpk_error *err) {
    if (strlen(name) > MAX_NAME)
        return dpk_error_set(err, DPK_EFORMAT,
                             "%s: tensor name of %zu bytes, want at most %d: %.64s...",
                             p->scan.name, strlen(name), MAX_NAME, name);
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return dpk_error_set(err, DPK_EFORMAT, "%s: tensor name with control character 0x%02x",
                                 p->scan.name, (unsigned char)*c);
    return DPK_OK;
}

static int parse_meta(struct parser *p, dpk_error *err) {
    struct dpk_safetensors *st = p->st;
    int rc = DPK_OK;
    if (p->has_meta) DPK_FAIL(err, DPK_EFORMAT, "%s: __metadata__ comes twice", p->scan.name);
    p->has_meta = 1;
    DPK_TRY(dpk_json_expect(&p->scan, '{', err));
    if (dpk_json_accept(&p->scan, '}')) goto done;
    do {
        struct dpk_st_pair pair = {NULL, NULL};
        DPK_TRY(dpk_json_string(&p->scan, &pair.key, err));
        DPK_TRY(dpk_json_expect(&p->scan, ':', err));
        DPK_TRY(dpk_json_string(&p->scan, &pair.value, err));
        if (st->n_meta == p->cap_meta) {
            void *grown = grow(st->meta, &p->cap_meta, sizeof *st->meta);
            if (!grown) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", p->scan.name);
            st->meta = grown;
        }
        st->meta[st->n_meta++] = pair;
    } while (dpk_json_accept(&p->scan, ','));
    DPK_TRY(dpk_json_expect(&p->scan, '}', err));
done:
    return rc;
}

static int parse_dtype(struct parser *p, struct dpk_st_tensor *t, dpk_error *err) {
    const char *text = "";
    int rc = DPK_OK;
    DPK_TRY(dpk_json_string(&p->scan, &text, err));
    for (t->dtype = 1; t->dtype < DPK_ST_N_DTYPES; t->dtype++)
        if (strcmp(text, dtypes[t->dtype].name) == 0) goto done;
    DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: tensor %s: dtype %.32s is not known", p->scan.name,
             t->name, text);
done:
    return rc;
}

static int parse_shape(struct parser *p, struct dpk_st_tensor *t, dpk_error *err) {
    int rc = DPK_OK;
    t->rank = 0;
    t->n_elements = 1;
    DPK_TRY(dpk_json_expect(&p->scan, '[', err));
    if (dpk_json_accept(&p->scan, ']')) goto done;
    do {
        uint64_t dim = 0;
        DPK_TRY(dpk_json_u64(&p->scan, &dim, err));
        if (t->rank == DPK_ST_MAX_RANK)
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: tensor %s: more than %d dimensions", p->scan.name,
                     t->name, (int)DPK_ST_MAX_RANK);
        if (__builtin_mul_overflow(t->n_elements, dim, &t->n_elements))
            DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s: shape's product is over 2^64", p->scan.name,
                     t->name);
        t->dim[t->rank++] = dim;
    } while (dpk_json_accept(&p->scan, ','));
    DPK_TRY(dpk_json_expect(&p->scan, ']', err));
done:
    return rc;
}

/* data_offsets: [begin, end) within the buffer; kept as offset and n_bytes, relative for now. */
static int parse_offsets(struct parser *p, struct dpk_st_tensor *t, dpk_error *err) {
    uint64_t begin = 0, end = 0;
    int rc = DPK_OK;
    DPK_TRY(dpk_json_expect(&p->scan, '[', err));
    DPK_TRY(dpk_json_u64(&p->scan, &begin, err));
    DPK_TRY(dpk_json_expect(&p->scan, ',', err));
    DPK_TRY(dpk_json_u64(&p->scan, &end, err));
    DPK_TRY(dpk_json_expect(&p->scan, ']', err));
    if (begin > end || end > p->buffer_bytes)
        DPK_FAIL(err, DPK_EFORMAT,
                 "%s: tensor %s: data_offsets [%llu, %llu], the file has %llu bytes of data",
                 p->scan.name, t->name, (unsigned long long)begin, (unsigned long long)end,
                 (unsigned long long)p->buffer_bytes);
    t->offset = begin;
    t->n_bytes = end - begin;
done:
    return rc;
}

/* The shape says as many bytes as the offsets. */
static int check_size(const struct parser *p, const struct dpk_st_tensor *t, dpk_error *err) {
    uint64_t bits = 0;
    if (__builtin_mul_overflow(t->n_elements, (uint64_t)dtypes[t->dtype].bits, &bits))
        return dpk_error_set(err, DPK_EFORMAT, "%s: tensor %s: more than 2^64 bits", p->scan.name,
                             t->name);
    if (bits % 8 != 0 || bits / 8 != t->n_bytes)
        return dpk_error_set(err, DPK_EFORMAT,
                             "%s: tensor %s: %llu bytes of data, its shape wants %llu elements of "
                             "%d bits (%s)",
                             p->scan.name, t->name, (unsigned long long)t->n_bytes,
                             (unsigned long long)t->n_elements, dtypes[t->dtype].bits,
                             dtypes[t->dtype].name);
    return DPK_OK;
}

static int parse_tensor(struct parser *p, const char *name, dpk_error *err) {
    static const char *const fields[3] = {"dtype", "shape", "data_offsets"};
    static int (*const parse[3])(struct parser *, struct dpk_st_tensor *,
                                 dpk_error *) = {parse_dtype, parse_shape, parse_offsets};
    struct dpk_safetensors *st = p->st;
    struct dpk_st_tensor t = {.name = name};
    unsigned seen = 0;
    int rc = DPK_OK;
    DPK_TRY(check_name(p, name, err));
    DPK_TRY(dpk_json_expect(&p->scan, '{', err));
    do {
        const char *key = "";
        int f = 0;
        DPK_TRY(dpk_json_string(&p->scan, &key, err));
        while (f < 3 && strcmp(key, fields[f]) != 0) f++;
        if (f == 3 || (seen & 1u << f))
            DPK_FAIL(err, DPK_EFORMAT,
                     "%s: tensor %s: key %.32s, want dtype, shape and data_offsets once each",
                     p->scan.name, name, check_name(p, key, NULL) == DPK_OK ? key : "?");
        seen |= 1u << f;
        DPK_TRY(dpk_json_expect(&p->scan, ':', err));
        DPK_TRY(parse[f](p, &t, err));
    } while (dpk_json_accept(&p->scan, ','));
    DPK_TRY(dpk_json_expect(&p->scan, '}', err));
    for (int f = 0; f < 3; f++)
        if (!(seen & 1u << f))
            DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s has no %s", p->scan.name, name, fields[f]);
    DPK_TRY(check_size(p, &t, err));
    if (st->n_tensors == p->cap_tensors) {
        void *grown = grow(st->tensors, &p->cap_tensors, sizeof *st->tensors);
        if (!grown) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", p->scan.name);
        st->tensors = grown;
    }
    st->tensors[st->n_tensors++] = t;
done:
    return rc;
}

static int parse_header(struct parser *p, dpk_error *err) {
    int rc = DPK_OK;
    if (p->scan.text[0] != '{')
        DPK_FAIL(err, DPK_EFORMAT, "%s: the header does not begin with '{'", p->scan.name);
    DPK_TRY(dpk_json_expect(&p->scan, '{', err));
    if (!dpk_json_accept(&p->scan, '}')) {
        do {
            const char *key = "";
            DPK_TRY(dpk_json_string(&p->scan, &key, err));
            DPK_TRY(dpk_json_expect(&p->scan, ':', err));
            if (strcmp(key, "__metadata__") == 0) DPK_TRY(parse_meta(p, err));
            else DPK_TRY(parse_tensor(p, key, err));
        } while (dpk_json_accept(&p->scan, ','));
        DPK_TRY(dpk_json_expect(&p->scan, '}', err));
    }
    DPK_TRY(dpk_json_end(&p->scan, err));
done:
    return rc;
}

/* By offset; empty tensors before what begins at their place, and those by name. */
static int compare_offsets(const void *a, const void *b) {
    const struct dpk_st_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->n_bytes != y->n_bytes) return x->n_bytes < y->n_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_names(const void *a, const void *b, void *tensors) {
    const struct dpk_st_tensor *t = tensors;
    return strcmp(t[*(const uint32_t *)a].name, t[*(const uint32_t *)b].name);
}

static int compare_pairs(const void *a, const void *b) {
    return strcmp(((const struct dpk_st_pair *)a)->key, ((const struct dpk_st_pair *)b)->key);
}

/* Sort, find keys that come twice, and see that the tensors cover the buffer exactly. */
static int check_all(struct parser *p, dpk_error *err) {
    struct dpk_safetensors *st = p->st;
    uint64_t at = 0;
    int rc = DPK_OK;
    if (st->n_meta) qsort(st->meta, st->n_meta, sizeof *st->meta, compare_pairs);
    for (size_t i = 1; i < st->n_meta; i++)
        if (strcmp(st->meta[i - 1].key, st->meta[i].key) == 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: a key of __metadata__ comes twice", p->scan.name);
    if (st->n_tensors) qsort(st->tensors, st->n_tensors, sizeof *st->tensors, compare_offsets);
    st->by_name = malloc((st->n_tensors ? st->n_tensors : 1) * sizeof *st->by_name);
    if (!st->by_name) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", p->scan.name);
    for (size_t i = 0; i < st->n_tensors; i++) st->by_name[i] = (uint32_t)i;
    qsort_r(st->by_name, st->n_tensors, sizeof *st->by_name, compare_names, st->tensors);
    for (size_t i = 1; i < st->n_tensors; i++) {
        const char *name = st->tensors[st->by_name[i]].name;
        if (strcmp(st->tensors[st->by_name[i - 1]].name, name) == 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s comes twice", p->scan.name, name);
    }
    for (size_t i = 0; i < st->n_tensors; i++) {
        struct dpk_st_tensor *t = &st->tensors[i];
        if (t->offset != at)
            DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s begins at %llu, want %llu: %s", p->scan.name,
                     t->name, (unsigned long long)t->offset, (unsigned long long)at,
                     t->offset > at ? "a hole before it" : "it overlaps another");
        at += t->n_bytes;
        t->offset += st->header_bytes;
    }
    if (at != p->buffer_bytes)
        DPK_FAIL(err, DPK_EFORMAT, "%s: the tensors take %llu bytes, the file has %llu of data",
                 p->scan.name, (unsigned long long)at, (unsigned long long)p->buffer_bytes);
done:
    return rc;
}

int dpk_st_open(struct dpk_safetensors *st, const struct dpk_stream *in, dpk_error *err) {
    struct parser p = {.st = st, .scan = {.name = in->name}};
    unsigned char length[8];
    uint64_t n = 0;
    size_t valid;
    int rc = DPK_OK;
    memset(st, 0, sizeof *st);
    if (in->n_bytes < 8)
        DPK_FAIL(err, DPK_EFORMAT, "%s: %llu bytes, too short for a safetensors file", in->name,
                 (unsigned long long)in->n_bytes);
    DPK_TRY(dpk_stream_read(in, 0, length, 8, err));
    for (int i = 0; i < 8; i++) n |= (uint64_t)length[i] << 8 * i;
    if (n > DPK_ST_MAX_HEADER)
        DPK_FAIL(err, DPK_EFORMAT,
                 "%s: not a safetensors file: header of %llu bytes, at most %llu are allowed",
                 in->name, (unsigned long long)n, (unsigned long long)DPK_ST_MAX_HEADER);
    if (n < 2 || n > in->n_bytes - 8)
        DPK_FAIL(err, DPK_EFORMAT, "%s: header of %llu bytes in a file of %llu", in->name,
                 (unsigned long long)n, (unsigned long long)in->n_bytes);
    st->header_bytes = n + 8;
    p.buffer_bytes = in->n_bytes - st->header_bytes;
    st->text = malloc(n + 8);
    if (!st->text)
        DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory for a header of %llu bytes", in->name,
                 (unsigned long long)n);
    DPK_TRY(dpk_stream_read(in, 0, st->text, n + 8, err));
    if (memcmp(st->text, length, 8) != 0)
        DPK_FAIL(err, DPK_EIO, "%s: changes while it is read", in->name);
    st->hash = XXH3_64bits(st->text, n + 8);
    p.scan.text = st->text + 8;
    p.scan.n = n;
    valid = dpk_utf8_check(p.scan.text, n);
    if (valid < n)
        DPK_FAIL(err, DPK_EFORMAT, "%s: byte %zu of the header is not UTF-8", in->name, valid);
    DPK_TRY(parse_header(&p, err));
    DPK_TRY(check_all(&p, err));
done:
    if (rc != DPK_OK) dpk_st_close(st);
    return rc;
}

void dpk_st_close(struct dpk_safetensors *st) {
    free(st->tensors);
    free(st->meta);
    free(st->text);
    free(st->by_name);
    memset(st, 0, sizeof *st);
}

const struct dpk_st_tensor *dpk_st_find(const struct dpk_safetensors *st, const char *name) {
    size_t low = 0, high = st->n_tensors;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct dpk_st_tensor *t = &st->tensors[st->by_name[mid]];
        int order = strcmp(name, t->name);
        if (order == 0) return t;
        if (order < 0) high = mid;
        else low = mid + 1;
    }
    return NULL;
}

const char *dpk_st_meta(const struct dpk_safetensors *st, const char *key) {
    struct dpk_st_pair want = {key, NULL};
    const struct dpk_st_pair *found =
        st->n_meta ? bsearch(&want, st->meta, st->n_meta, sizeof want, compare_pairs) : NULL;
    return found ? found->value : NULL;
}
