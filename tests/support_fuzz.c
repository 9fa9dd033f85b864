#include "support_fuzz.h"

#include "../formats/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const char *fuzz_file(int slot, const void *data, size_t n_bytes) {
    static int fds[FUZZ_SLOTS];
    static char paths[FUZZ_SLOTS][32];
    if (fds[slot]) close(fds[slot]); /* a new one each time: nobody else may still map it */
    fds[slot] = memfd_create("fuzz", MFD_CLOEXEC);
    fuzz_require(fds[slot] > 0, "memfd_create");
    for (size_t at = 0; at < n_bytes;) {
        ssize_t n = write(fds[slot], (const char *)data + at, n_bytes - at);
        fuzz_require(n > 0, "write to memory");
        at += (size_t)n;
    }
    snprintf(paths[slot], sizeof paths[slot], "/proc/self/fd/%d", fds[slot]);
    return paths[slot];
}

uint8_t *fuzz_load(const char *path, size_t *n_bytes) {
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) {
        fprintf(stderr, "%s: cannot be read (run it from the root of the sources)\n", path);
        exit(2);
    }
    *n_bytes = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = malloc(*n_bytes + 1);
    fuzz_require(data && fread(data, 1, *n_bytes, f) == *n_bytes, path);
    data[*n_bytes] = 0;
    fclose(f);
    return data;
}

/* Of the numbers after a comma: a range ends with one, names and types have none. */
static size_t largest_number(const uint8_t *text, size_t n) {
    size_t largest = 0, number = 0;
    bool counts = false;
    for (size_t i = 0; i < n; i++) {
        const bool digit = text[i] >= '0' && text[i] <= '9';
        if (!digit && text[i] != ' ') counts = text[i] == ',';
        number = digit && counts ? number * 10 + text[i] - '0' : 0;
        if (number > 65536) number = 0;
        if (number > largest) largest = number;
    }
    return largest;
}

uint8_t *fuzz_safetensors(const uint8_t *header, size_t n, size_t *n_bytes) {
    const size_t buffer = largest_number(header, n);
    uint8_t *file = malloc(8 + n + buffer);
    fuzz_require(file != NULL, "memory");
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)n >> 8 * i);
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < buffer; i++) file[8 + n + i] = (uint8_t)(i % 2 ? 0x3c : i * 37);
    *n_bytes = 8 + n + buffer;
    return file;
}

void fuzz_require(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fuzz: does not hold: %s\n", what);
    abort();
}

void fuzz_check_error(int rc, const dpk_error *err) {
    if (rc == DPK_OK) return;
    if (getenv("DPK_FUZZ_SAY")) fprintf(stderr, "%s\n", err->msg);
    fuzz_require(rc > 0 && rc <= DPK_EBACKEND, "the return value is a status");
    fuzz_require(err->code == rc, "err.code is the return value");
    size_t n = strnlen(err->msg, sizeof err->msg);
    fuzz_require(n > 0 && n < sizeof err->msg, "a message that ends");
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)err->msg[i] < 0x20 || err->msg[i] == 0x7f) {
            fprintf(stderr, "fuzz: control character in: %s\n", err->msg);
            abort();
        }
    fuzz_require(dpk_utf8_check(err->msg, n) == n, "the message is UTF-8");
}

uint64_t fuzz_take(struct fuzz_bytes *b, int n_bytes) {
    uint64_t v = 0;
    for (int i = 0; i < n_bytes && b->n > 0; i++, b->at++, b->n--) v |= (uint64_t)*b->at << 8 * i;
    return v;
}

void fuzz_edit(uint8_t *file, const size_t *begin, int n_parts, struct fuzz_bytes *b) {
    while (b->n >= 8) {
        unsigned kind = (unsigned)fuzz_take(b, 1);
        size_t offset = (size_t)fuzz_take(b, 3);
        uint64_t value = (uint64_t)(int64_t)(int32_t)fuzz_take(b, 4), old = 0;
        int part = (int)(kind & 7) % n_parts;
        size_t width = (size_t)1 << (kind >> 3 & 3), size = begin[part + 1] - begin[part];
        if (size < width) continue;
        uint8_t *at = file + begin[part] + offset % (size / width) * width;
        memcpy(&old, at, width);
        switch (kind >> 5 & 3) {
        case 1:
            value += old;
            break;
        case 2:
            value ^= old;
            break;
        case 3:
            memmove(at, file + begin[part] + (size_t)(uint32_t)value % (size - width + 1), width);
            continue;
        default:
            break;
        }
        memcpy(at, &value, width);
    }
}
