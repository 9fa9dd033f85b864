/* PNG files, as they are and with the sums of their chunks repaired. */
#include "support_fuzz.h"

#include "../formats/png.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static uint32_t big(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void repair(uint8_t *png, size_t n) {
    for (size_t at = 8; n >= 12 && at <= n - 12;) {
        size_t length = big(png + at);
        if (length > n - 12 - at) return;
        uint32_t crc = (uint32_t)crc32(0, png + at + 4, (uInt)length + 4);
        for (int i = 0; i < 4; i++)
            png[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
        at += 12 + length;
    }
}

static void read_png(const uint8_t *data, size_t n_bytes) {
    struct dpk_png png = {0};
    dpk_error err;
    int rc = dpk_png_read(&png, fuzz_file(0, data, n_bytes), 1 << 14, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) {
        volatile uint8_t sum = 0;
        for (size_t i = 0; i < (size_t)png.width * png.height * 3; i++) sum ^= png.rgb[i];
        (void)sum;
        for (size_t i = 0; i < png.n_texts; i++)
            fuzz_require(strlen(png.texts[i].key) > 0 && png.texts[i].value, "a key and a text");
        dpk_png_find(&png, "prompt");
    } else {
        fuzz_require(!png.rgb && !png.n_texts, "nothing is left of a file that was refused");
    }
    dpk_png_free(&png);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    read_png(data, n_bytes);
    uint8_t *repaired = malloc(n_bytes + 1);
    if (!repaired) return 0;
    memcpy(repaired, data, n_bytes);
    repair(repaired, n_bytes);
    if (memcmp(repaired, data, n_bytes) != 0) read_png(repaired, n_bytes);
    free(repaired);
    return 0;
}
