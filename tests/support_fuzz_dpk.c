/* The files that inputs of fuzz_dpk.c stand for. */
#include "support_dpk.h"
#include "support_fuzz.h"

#include "../convert/conversion.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_BASES = 3, N_SECTIONS = DPK_N_SECTIONS };

struct base {
    uint8_t *file;
    size_t n_bytes, begin[N_SECTIONS + 2];
};

static void make_model(const char *source, const char *path) {
    struct dpk_conversion *c = NULL;
    dpk_error err;
    const struct dpk_convert_options options = {.source = source, .dtype = DPK_BF16};
    int rc = dpk_conversion_open(&c, &options, &err);
    if (!rc) rc = dpk_builder_write(dpk_conversion_builder(c), path, 1, NULL, NULL, &err);
    if (rc) fprintf(stderr, "%s\n", err.msg), exit(2);
    dpk_conversion_close(c);
}

static void make_bases(struct base *bases) {
    dpk_error err;
    char *folder = support_folder_make(), path[600];
    for (int i = 0; i < N_BASES; i++) {
        struct base *b = &bases[i];
        snprintf(path, sizeof path, "%s/base.dpk", folder);
        if (i == 0)
            fuzz_require(support_dpk_write(path, 1, 1, &err) == DPK_OK, "a file is written");
        else make_model(i == 1 ? "tests/data/tiny-sd15" : "tests/data/tiny-pixart", path);
        b->file = support_file_read(path, &b->n_bytes);
        b->begin[1] = sizeof(struct dpk_header) + N_SECTIONS * sizeof(struct dpk_section);
        for (int s = 1; s < N_SECTIONS; s++) {
            const struct dpk_section *table = (const void *)(b->file + sizeof(struct dpk_header));
            b->begin[s + 1] = (size_t)table[s].offset;
        }
        b->begin[N_SECTIONS + 1] = b->n_bytes;
    }
    support_folder_remove(folder);
}

uint8_t *fuzz_dpk_file(const uint8_t *data, size_t n_bytes, size_t *n_file) {
    static struct base bases[N_BASES];
    if (!bases[0].file) make_bases(bases);
    struct fuzz_bytes in = {data, n_bytes};
    const unsigned mode = (unsigned)fuzz_take(&in, 1);
    fuzz_take(&in, 1); /* sizes */
    const struct base *b = mode & 3 ? &bases[(mode & 3) - 1] : NULL;
    *n_file = b ? b->n_bytes : in.n;
    uint8_t *file = aligned_alloc(64, (*n_file + 64) / 64 * 64);
    if (!file) return NULL;
    memcpy(file, b ? b->file : in.at, *n_file);
    if (b) fuzz_edit(file, b->begin, N_SECTIONS + 1, &in);
    if (b && !(mode & 0x80)) support_dpk_repair(file, *n_file);
    return file;
}
