#include "npy.h"

#include "atomic_file.h"
#include "fail.h"

#include <limits.h>

enum { PIECE = 64 << 10, MAX_HEADER = 64 << 10 };

/* Element types of files. */
enum { F2, F4, F8, I4, I8, N_KINDS };
static const struct {
    char descr[4];
    int bytes;
} kinds[N_KINDS] = {{"<f2", 2}, {"<f4", 4}, {"<f8", 8}, {"<i4", 4}, {"<i8", 8}};

/* ---- The header: a Python dict literal ----------------------------------------------------------
 * */

struct header {
    int kind, fortran, rank;
    size_t dim[DPK_NPY_MAX_RANK], n;
};

static void skip_spaces(const char **p) { *p += strspn(*p, " \t\n"); }

static int accept(const char **p, const char *word) {
    size_t n = strlen(word);
    skip_spaces(p);
    if (strncmp(*p, word, n) != 0) return 0;
    *p += n;
    return 1;
}

/* A string in either kind of quotes, without escapes. */
static int parse_string(const char **p, char *out, size_t out_bytes) {
    const char *end;
    skip_spaces(p);
    end = **p == '\'' || **p == '"' ? strchr(*p + 1, **p) : NULL;
    if (!end || (size_t)(end - *p) > out_bytes) return 0;
    memcpy(out, *p + 1, (size_t)(end - *p - 1));
    out[end - *p - 1] = '\0';
    *p = end + 1;
    return 1;
}

/* "()", "(3,)", "(3, 4)" or "(3, 4,)". */
static int parse_shape(const char **p, struct header *h) {
    int comma = 1;
    h->rank = 0;
    h->n = 1;
    if (!accept(p, "(")) return 0;
    while (!accept(p, ")")) {
        size_t v = 0;
        if (!comma || **p < '0' || **p > '9' || h->rank == DPK_NPY_MAX_RANK) return 0;
        for (; **p >= '0' && **p <= '9'; ++*p)
            if (__builtin_mul_overflow(v, 10, &v) ||
                __builtin_add_overflow(v, (size_t)(**p - '0'), &v))
                return 0;
        if (__builtin_mul_overflow(h->n, v, &h->n)) return 0;
        h->dim[h->rank++] = v;
        comma = accept(p, ",");
    }
    return !(h->rank == 1 && !comma); /* "(3)" is a number */
}

static int parse_header(struct header *h, const char *text, const char *path, dpk_error *err) {
    const char *p = text;
    char key[16], descr[16];
    unsigned seen = 0;
    int rc = DPK_OK, comma = 1;
    if (!accept(&p, "{")) goto bad;
    while (!accept(&p, "}")) {
        unsigned bit;
        if (!comma || !parse_string(&p, key, sizeof key) || !accept(&p, ":")) goto bad;
        if (strcmp(key, "descr") == 0) {
            bit = 1;
            if (!parse_string(&p, descr, sizeof descr)) goto bad;
            for (h->kind = 0; h->kind < N_KINDS; h->kind++)
                if (strcmp(descr, kinds[h->kind].descr) == 0) break;
            if (h->kind == N_KINDS)
                DPK_FAIL(err, DPK_EUNSUPPORTED,
                         "%s: elements of type \"%s\", want <f4, <f8, <f2, <i4 or <i8", path,
                         descr);
        } else if (strcmp(key, "fortran_order") == 0) {
            bit = 2;
            h->fortran = accept(&p, "True");
            if (!h->fortran && !accept(&p, "False")) goto bad;
        } else if (strcmp(key, "shape") == 0) {
            bit = 4;
            if (!parse_shape(&p, h)) goto bad;
        } else {
            goto bad;
        }
        if (seen & bit) goto bad;
        seen |= bit;
        comma = accept(&p, ",");
    }
    skip_spaces(&p);
    if (seen == 7 && *p == '\0') goto done;
bad:
    DPK_FAIL(err, DPK_EFORMAT, "%s: NPY header not understood at \"%.24s\"", path,
             *p >= ' ' ? p : "");
done:
    return rc;
}

/* ---- Reading ------------------------------------------------------------------------------------
 * */

static int read_exactly(int fd, void *dst, size_t n, const char *path, dpk_error *err) {
    size_t got = 0;
    while (got < n) {
        ssize_t r = read(fd, (char *)dst + got, n - got);
        if (r < 0 && errno == EINTR) continue;
        if (r < 0) return dpk_error_set(err, DPK_EIO, "%s: cannot read: %s", path, strerror(errno));
        if (r == 0) return dpk_error_set(err, DPK_EFORMAT, "%s: NPY file ends early", path);
        got += (size_t)r;
    }
    return DPK_OK;
}

/* Magic, version, length, dict. *n_front gets the bytes before the data. */
static int read_header(int fd, struct header *h, size_t *n_front, const char *path,
                       dpk_error *err) {
    unsigned char front[12];
    char *text = NULL;
    size_t n = 0, n_length;
    int rc = DPK_OK;
    DPK_TRY(read_exactly(fd, front, 8, path, err));
    if (memcmp(front, "\x93NUMPY", 6) != 0) DPK_FAIL(err, DPK_EFORMAT, "%s: not an NPY file", path);
    if ((front[6] != 1 && front[6] != 2) || front[7] != 0)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: NPY version %d.%d, want 1.0 or 2.0", path, front[6],
                 front[7]);
    n_length = front[6] == 1 ? 2 : 4;
    DPK_TRY(read_exactly(fd, front + 8, n_length, path, err));
    for (size_t i = 0; i < n_length; i++) n |= (size_t)front[8 + i] << 8 * i;
    if (n > MAX_HEADER)
        DPK_FAIL(err, DPK_EFORMAT, "%s: NPY header of %zu bytes, at most %d are allowed", path, n,
                 (int)MAX_HEADER);
    text = malloc(n + 1);
    if (!text) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    DPK_TRY(read_exactly(fd, text, n, path, err));
    text[n] = '\0';
    if (strlen(text) != n) DPK_FAIL(err, DPK_EFORMAT, "%s: NUL in the NPY header", path);
    DPK_TRY(parse_header(h, text, path, err));
    *n_front = 8 + n_length + n;
done:
    free(text);
    return rc;
}

union piece {
    unsigned char bytes[PIECE];
    uint16_t f2[PIECE / 2];
    float f4[PIECE / 4];
    double f8[PIECE / 8];
    int32_t i4[PIECE / 4];
    int64_t i8[PIECE / 8];
};

/* The value of a half: 1.m 2^(e-15), subnormals m 2^-24 (IEEE 754). */
static float half_value(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, m = h & 1023, bits;
    float f;
    if (exponent == 0) {
        f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | m << 13;
    memcpy(&f, &bits, 4);
    return f;
}

static void to_floats(int kind, const union piece *from, size_t n, float *to) {
    for (size_t i = 0; i < n; i++) {
        switch (kind) {
        case F2:
            to[i] = half_value(from->f2[i]);
            break;
        case F4:
            to[i] = from->f4[i];
            break;
        case F8:
            to[i] = (float)from->f8[i];
            break;
        case I4:
            to[i] = (float)from->i4[i];
            break;
        default:
            to[i] = (float)from->i8[i];
        }
    }
}

static int to_ints(int kind, const union piece *from, size_t n, int32_t *to, const char *path,
                   dpk_error *err) {
    for (size_t i = 0; i < n; i++) {
        int64_t v = kind == I4 ? from->i4[i] : from->i8[i];
        if (v < INT32_MIN || v > INT32_MAX)
            return dpk_error_set(err, DPK_EFORMAT, "%s: element %lld does not fit in 32 bits", path,
                                 (long long)v);
        to[i] = (int32_t)v;
    }
    return DPK_OK;
}

static int read_data(int fd, const struct header *h, struct dpk_npy *a, const char *path,
                     dpk_error *err) {
    size_t size = (size_t)kinds[h->kind].bytes;
    int rc = DPK_OK;
    union piece *piece = malloc(sizeof *piece);
    if (!piece) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", path);
    for (size_t at = 0; at < h->n;) {
        size_t n = h->n - at < PIECE / size ? h->n - at : PIECE / size;
        DPK_TRY(read_exactly(fd, piece, n * size, path, err));
        if (a->type == DPK_NPY_F32) to_floats(h->kind, piece, n, (float *)a->data + at);
        else DPK_TRY(to_ints(h->kind, piece, n, (int32_t *)a->data + at, path, err));
        at += n;
    }
done:
    free(piece);
    return rc;
}

int dpk_npy_read(struct dpk_npy *a, const char *path, int type, size_t max_bytes, dpk_error *err) {
    struct header h = {0};
    struct stat st;
    size_t n_front = 0, n_bytes, n_wide = 0;
    int rc = DPK_OK, fd;
    memset(a, 0, sizeof *a);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) DPK_FAIL(err, DPK_EIO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        DPK_FAIL(err, DPK_EIO, "%s: not a regular file", path);
    DPK_TRY(read_header(fd, &h, &n_front, path, err));
    for (int i = 0; i < h.rank; i++) n_wide += h.dim[i] > 1;
    if (h.fortran && n_wide > 1)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: array in Fortran order, want C order", path);
    if (__builtin_mul_overflow(h.n, (size_t)kinds[h.kind].bytes, &n_bytes) ||
        n_bytes != (uint64_t)st.st_size - n_front)
        DPK_FAIL(err, DPK_EFORMAT, "%s: %zu elements of %d bytes, but %llu bytes of data", path,
                 h.n, kinds[h.kind].bytes, (unsigned long long)st.st_size - n_front);
    a->type = type ? type : h.kind <= F8 ? DPK_NPY_F32 : DPK_NPY_I32;
    if (a->type == DPK_NPY_I32 && h.kind <= F8)
        DPK_FAIL(err, DPK_EARG, "%s: elements of type %s, want integers", path,
                 kinds[h.kind].descr);
    if (h.n > max_bytes / 4)
        DPK_FAIL(err, DPK_EARG, "%s: %zu elements, at most %zu are allowed", path, h.n,
                 max_bytes / 4);
    a->data = malloc(h.n ? h.n * 4 : 1);
    if (!a->data) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory for %zu elements", path, h.n);
    DPK_TRY(read_data(fd, &h, a, path, err));
    a->rank = h.rank;
    memcpy(a->dim, h.dim, sizeof h.dim);
    a->n = h.n;
done:
    if (fd >= 0) close(fd);
    if (rc != DPK_OK) dpk_npy_free(a);
    return rc;
}

void dpk_npy_free(struct dpk_npy *a) {
    free(a->data);
    memset(a, 0, sizeof *a);
}

/* ---- Writing ------------------------------------------------------------------------------------
 * */

/* numpy.lib.format leaves room for the first dimension to grow to 21 digits, then pads to 64. */
static size_t make_header(char *out, size_t out_bytes, int type, int rank, const size_t *dim) {
    size_t at = 10, pad = 0;
    at += (size_t)snprintf(out + at, out_bytes - at,
                           "{'descr': '%s', 'fortran_order': False, 'shape': (",
                           type == DPK_NPY_F32 ? "<f4" : "<i4");
    for (int i = 0; i < rank; i++)
        at += (size_t)snprintf(out + at, out_bytes - at, "%s%zu%s", i ? ", " : "", dim[i],
                               rank == 1 ? "," : "");
    at += (size_t)snprintf(out + at, out_bytes - at, "), }");
    if (rank > 0) pad = 21 - (size_t)snprintf(NULL, 0, "%zu", dim[0]);
    pad += 64 - (at + pad + 1) % 64;
    memset(out + at, ' ', pad);
    at += pad;
    out[at++] = '\n';
    memcpy(out, "\x93NUMPY\x01", 8); /* with the version's 0 */
    out[8] = (char)((at - 10) & 255);
    out[9] = (char)((at - 10) >> 8);
    return at;
}

int dpk_npy_write(const char *path, int type, int rank, const size_t *dim, const void *data,
                  dpk_error *err) {
    struct dpk_atomic_file f = {.fd = -1};
    char header[512];
    size_t n = 4;
    int rc = DPK_OK;
    if ((type != DPK_NPY_F32 && type != DPK_NPY_I32) || rank < 0 || rank > DPK_NPY_MAX_RANK)
        DPK_FAIL(err, DPK_EARG, "%s: NPY array of type %d and rank %d", path, type, rank);
    for (int i = 0; i < rank; i++)
        if (__builtin_mul_overflow(n, dim[i], &n))
            DPK_FAIL(err, DPK_EARG, "%s: NPY array over 2^64 bytes", path);
    DPK_TRY(dpk_atomic_open(&f, path, err));
    DPK_TRY(dpk_atomic_write(&f, header, make_header(header, sizeof header, type, rank, dim), err));
    DPK_TRY(dpk_atomic_write(&f, data, n, err));
done:
    return dpk_atomic_close(&f, rc, err);
}
