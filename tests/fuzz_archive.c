/* Archives of models: tar (its headers' sums repaired if the first byte is odd) and zip, through
 * libarchive; every name listed, every file read. */
#include "support_fuzz.h"

#include "../formats/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 4, MAX_READ = 1 << 18 };

/* ustar: the header's bytes added up, those of the sum as spaces; in octal at 148. */
static void repair_tar(uint8_t *tar, size_t n) {
    for (size_t at = 0; n >= 512 && at <= n - 512; at += 512) {
        unsigned sum = 0;
        if (memcmp(tar + at + 257, "ustar", 5) != 0) continue;
        memset(tar + at + 148, ' ', 8);
        for (int i = 0; i < 512; i++) sum += tar[at + (size_t)i];
        char text[8];
        snprintf(text, sizeof text, "%06o", sum & 0777777);
        memcpy(tar + at + 148, text, 7);
    }
}

static void visit(struct dpk_source *s, const char *folder, int depth) {
    char **names = NULL;
    size_t n = 0;
    dpk_error err;
    int rc = dpk_source_list(s, folder, &names, &n, &err);
    fuzz_check_error(rc, &err);
    for (size_t i = 0; rc == DPK_OK && i < n; i++) {
        size_t length = strlen(names[i]), full = strlen(folder) + length + 2;
        char *path = malloc(full), *data = NULL;
        size_t n_bytes;
        if (!path) break;
        snprintf(path, full, "%s%s%s", folder, *folder ? "/" : "", names[i]);
        if (length && names[i][length - 1] == '/') {
            path[strlen(path) - 1] = 0;
            if (depth < MAX_DEPTH) visit(s, path, depth + 1);
        } else {
            fuzz_require(dpk_source_has(s, path), "a listed file is there");
            int got = dpk_source_read(s, path, MAX_READ, &data, &n_bytes, &err);
            fuzz_check_error(got, &err);
            fuzz_require(got != DPK_OK || data[n_bytes] == 0, "a zero after the end");
            free(data);
        }
        free(path);
    }
    if (rc == DPK_OK) dpk_source_list_free(names, n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    struct dpk_source *s = NULL;
    dpk_error err;
    if (n_bytes == 0) return 0;
    uint8_t *copy = malloc(n_bytes);
    if (!copy) return 0;
    memcpy(copy, data + 1, n_bytes - 1);
    if (data[0] & 1) repair_tar(copy, n_bytes - 1);
    int rc = dpk_source_open(&s, fuzz_file(0, copy, n_bytes - 1), &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) {
        cJSON *json = NULL;
        visit(s, "", 0);
        rc = dpk_source_json(s, "model_index.json", &json, &err);
        fuzz_check_error(rc, &err);
        cJSON_Delete(json);
    }
    dpk_source_close(s);
    free(copy);
    return 0;
}
