/* What fuzz targets (tests/fuzz_*.c) share. A target defines LLVMFuzzerTestOneInput; it is linked
 * with libFuzzer (`make fuzz`) or with tests/replay.c, which replays tests/corpus/ and mutations of
 * it. */
#ifndef SUPPORT_FUZZ_H
#define SUPPORT_FUZZ_H

#include "../formats/dpk_error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

/* The bytes as a file in memory: a path to open, valid until the next call with the same slot. */
enum { FUZZ_SLOTS = 2 };
const char *fuzz_file(int slot, const void *data, size_t n_bytes);

/* A whole file of the repository; ends the process if it is not there. */
uint8_t *fuzz_load(const char *path, size_t *n_bytes);

/* A safetensors file from a text that is to be its header: the length before it fits, the buffer
 * after it has as many bytes as the largest number after a comma says (up to 64 KiB), which are
 * finite numbers of any type. malloc'ed, the caller frees it. */
uint8_t *fuzz_safetensors(const uint8_t *header, size_t n, size_t *n_bytes);

/* The .dpk file that an input of fuzz_dpk.c stands for, to be freed. Byte 0, low 2 bits: 0 the rest
 * (but for byte 1) is the file; else a valid file is edited (fuzz_edit: part 0 is header and section
 * table, parts 1 to 6 the sections) and its sums are repaired, unless bit 7 is set: 1 small programs
 * of every operator, 2 a small SD 1.5, 3 a small PixArt. */
uint8_t *fuzz_dpk_file(const uint8_t *data, size_t n_bytes, size_t *n_file);

/* What every call must keep: the code in the error is the one returned, the message is one line,
 * not empty, of UTF-8 without control characters. Ends the process otherwise. Prints the message
 * if DPK_FUZZ_SAY is in the environment: how far does a corpus get? */
void fuzz_check_error(int rc, const dpk_error *err);
void fuzz_require(bool holds, const char *what);

/* Bytes of the input, taken from the front; zeros after the end. */
struct fuzz_bytes {
    const uint8_t *at;
    size_t n;
};
uint64_t fuzz_take(struct fuzz_bytes *b, int n_bytes);

/* Edits of a valid file: the rest of the input is records of 8 bytes
 *     u8 part (low 3 bits), width 1 2 4 8 (2 bits), action set add xor copy (2 bits)
 *     u24 offset within the part, s32 value
 * where part p is [begin[p], begin[p + 1]), n_parts at most 8, copy takes its bytes from `value`
 * within the part. Offsets count in widths, and wrap. */
void fuzz_edit(uint8_t *file, const size_t *begin, int n_parts, struct fuzz_bytes *b);

#endif
