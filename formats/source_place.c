/* Where the members of an archive lie that are stored as they are.
 *
 * libarchive gives contents, not places, so the places are read from the formats' own records:
 * POSIX pax (ustar) headers, and PKWARE's APPNOTE for the zip directory. A place is only a guess
 * until the caller has compared it with what libarchive reads. */
#include "source_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int dpk_pread_all(int fd, void *dst, size_t n, uint64_t offset) {
    size_t got = 0;
    if (offset > INT64_MAX - n) return 0;
    while (got < n) {
        ssize_t r = pread(fd, (char *)dst + got, n - got, (off_t)(offset + got));
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) return 0;
        got += (size_t)r;
    }
    return 1;
}

/* A number of a tar header: octal text, or base 256 if the first byte's high bit is set. */
static int tar_number(const unsigned char *field, size_t n, uint64_t *out) {
    uint64_t v = 0;
    if (field[0] == 0x80) {
        for (size_t i = 1; i < n; i++) {
            if (v >> 55) return 0;
            v = v << 8 | field[i];
        }
    } else {
        size_t i = 0;
        while (i < n && field[i] == ' ') i++;
        for (; i < n && field[i] >= '0' && field[i] <= '7'; i++)
            v = v << 3 | (uint64_t)(field[i] - '0');
        if (i < n && field[i] != ' ' && field[i] != '\0') return 0;
    }
    *out = v;
    return 1;
}

static int tar_checksum_holds(const unsigned char *header) {
    uint64_t want, sum = 0;
    for (int i = 0; i < 512; i++) sum += i >= 148 && i < 156 ? ' ' : header[i];
    return tar_number(header + 148, 8, &want) && want == sum;
}

int64_t dpk_tar_place(int fd, int64_t header, uint64_t size) {
    unsigned char block[512];
    int extended = 0;
    if (header < 0) return -1;
    for (int i = 0; i < 16; i++) {
        uint64_t n;
        if (!dpk_pread_all(fd, block, sizeof block, (uint64_t)header)) return -1;
        if (!tar_checksum_holds(block) || !tar_number(block + 124, 12, &n)) return -1;
        header += 512;
        switch (block[156]) {
        case 'x':
        case 'g':
        case 'X':
        case 'L':
        case 'K': /* pax records, GNU long names: they come before the header they speak of */
            if (n > INT32_MAX) return -1;
            extended = 1;
            header += (int64_t)((n + 511) / 512 * 512);
            break;
        case '0':
        case '7':
        case '\0': /* a pax record may give the size in the header's stead */
            return n == size || extended ? header : -1;
        default:
            return -1;
        }
    }
    return -1;
}

/* ---- zip ------------------------------------------------------------------------------------ */

struct entry {
    const char *name; /* in the directory's own bytes; not terminated */
    size_t n_name;
    uint64_t size, header; /* of the local header, in the file */
};
struct dpk_zip {
    unsigned char *directory;
    struct entry *entries; /* sorted by name */
    size_t n;
};

static uint64_t get(const unsigned char *p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static int compare_bytes(const char *a, size_t n_a, const char *b, size_t n_b) {
    size_t n = n_a < n_b ? n_a : n_b;
    int order = n ? memcmp(a, b, n) : 0;
    return order ? order : (n_a > n_b) - (n_a < n_b);
}

static int compare_entries(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    return compare_bytes(x->name, x->n_name, y->name, y->n_name);
}

/* The end record (APPNOTE 4.3.16), behind a comment of up to 64 KiB, and its zip64 form (4.3.14).
 * */
static int find_directory(int fd, uint64_t n_bytes, uint64_t *offset, uint64_t *size,
                          uint64_t *count) {
    enum { END = 22, LOCATOR = 20, END64 = 56 };
    size_t n = n_bytes < 65535 + END + LOCATOR ? (size_t)n_bytes : 65535 + END + LOCATOR;
    unsigned char *tail = malloc(n ? n : 1), end64[END64];
    int found = 0;
    if (!tail || n < END || !dpk_pread_all(fd, tail, n, n_bytes - n)) goto done;
    for (size_t at = n - END + 1; at-- > 0 && !found;) {
        const unsigned char *p = tail + at;
        if (get(p, 4) != 0x06054b50 || get(p + 20, 2) != n - at - END) continue;
        found = 1;
        *count = get(p + 10, 2);
        *size = get(p + 12, 4);
        *offset = get(p + 16, 4);
        if (at < LOCATOR || get(p - LOCATOR, 4) != 0x07064b50) break;
        found =
            dpk_pread_all(fd, end64, END64, get(p - LOCATOR + 8, 8)) && get(end64, 4) == 0x06064b50;
        *count = get(end64 + 32, 8);
        *size = get(end64 + 40, 8);
        *offset = get(end64 + 48, 8);
    }
done:
    free(tail);
    return found;
}

/* The zip64 extra field (4.5.3) holds, in this order, those of the three that are all ones. */
static int read_zip64(const unsigned char *extra, size_t n, uint64_t *size, uint64_t *packed,
                      uint64_t *header) {
    uint64_t *want[3] = {size, packed, header};
    for (size_t at = 0; at + 4 <= n;) {
        size_t id = get(extra + at, 2), length = get(extra + at + 2, 2);
        at += 4;
        if (length > n - at) return 0;
        for (int i = 0; id == 1 && i < 3; i++) {
            if (*want[i] != UINT32_MAX) continue;
            if (length < 8) return 0;
            *want[i] = get(extra + at, 8);
            at += 8;
            length -= 8;
        }
        if (id == 1) return 1;
        at += length;
    }
    return *size != UINT32_MAX && *packed != UINT32_MAX && *header != UINT32_MAX;
}

struct dpk_zip *dpk_zip_open(int fd, uint64_t n_bytes) {
    enum { CENTRAL = 46, ENCRYPTED = 1 };
    uint64_t offset = 0, size = 0, count = 0, at = 0;
    struct dpk_zip *zip = calloc(1, sizeof *zip);
    int good = 0;
    if (!zip || !find_directory(fd, n_bytes, &offset, &size, &count)) goto done;
    if (size > (64u << 20) || count > size / CENTRAL || offset > n_bytes) goto done;
    zip->directory = malloc(size ? size : 1);
    zip->entries = calloc(count ? count : 1, sizeof *zip->entries);
    if (!zip->directory || !zip->entries || !dpk_pread_all(fd, zip->directory, size, offset))
        goto done;
    for (uint64_t i = 0; i < count; i++) {
        const unsigned char *p = zip->directory + at;
        if (size - at < CENTRAL || get(p, 4) != 0x02014b50) goto done;
        size_t n_name = get(p + 28, 2), n_extra = get(p + 30, 2), n_note = get(p + 32, 2);
        uint64_t packed = get(p + 20, 4), plain = get(p + 24, 4), header = get(p + 42, 4);
        if (size - at < CENTRAL + n_name + n_extra + n_note) goto done;
        if (get(p + 10, 2) == 0 && !(get(p + 8, 2) & ENCRYPTED) &&
            read_zip64(p + CENTRAL + n_name, n_extra, &plain, &packed, &header) && plain == packed)
            zip->entries[zip->n++] =
                (struct entry){(const char *)p + CENTRAL, n_name, plain, header};
        at += CENTRAL + n_name + n_extra + n_note;
    }
    qsort(zip->entries, zip->n, sizeof *zip->entries, compare_entries);
    good = 1;
done:
    if (!good) {
        dpk_zip_close(zip);
        zip = NULL;
    }
    return zip;
}

void dpk_zip_close(struct dpk_zip *zip) {
    if (!zip) return;
    free(zip->directory);
    free(zip->entries);
    free(zip);
}

/* The local header (4.3.7) repeats the name and has an extra field of its own length. */
int64_t dpk_zip_place(const struct dpk_zip *zip, int fd, const char *name, uint64_t size) {
    enum { LOCAL = 30 };
    struct entry want = {.name = name, .n_name = strlen(name)};
    unsigned char local[LOCAL];
    char *local_name;
    const struct entry *e;
    int64_t place = -1;
    if (!zip || zip->n == 0) return -1;
    e = bsearch(&want, zip->entries, zip->n, sizeof want, compare_entries);
    if (!e || e->size != size || e->header > INT64_MAX / 2) return -1;
    if (!dpk_pread_all(fd, local, LOCAL, e->header) || get(local, 4) != 0x04034b50) return -1;
    if (get(local + 8, 2) != 0 || get(local + 26, 2) != e->n_name) return -1;
    local_name = malloc(e->n_name ? e->n_name : 1);
    if (local_name && dpk_pread_all(fd, local_name, e->n_name, e->header + LOCAL) &&
        memcmp(local_name, name, e->n_name) == 0)
        place = (int64_t)(e->header + LOCAL + e->n_name + get(local + 28, 2));
    free(local_name);
    return place;
}
