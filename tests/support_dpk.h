/* A small random .dpk file for tests: every operator, every layout, every weight type. */
#ifndef SUPPORT_DPK_H
#define SUPPORT_DPK_H

#include "../formats/dpk.h"
#include "../formats/tokenizer_blob.h"

/* Write the file at `path`; contents and sizes depend on the seed alone. `scale` multiplies the
 * sizes of the weights. */
int support_dpk_write(const char *path, uint32_t seed, int scale, dpk_error *err);

/* Its tokenizers, which have a record or two of each kind. */
struct support_clip {
    struct dpk_tok_header h;
    struct dpk_tok_run runs[2];
    struct dpk_tok_lower lower[2];
    struct dpk_tok_decomposition decompositions[2];
    uint32_t compositions[1];
    struct dpk_tok_special specials[2];
    uint32_t byte_ids[512];
    struct dpk_tok_merge merges[2];
    char text[4];
};
struct support_t5 {
    struct dpk_tok_header h;
    struct dpk_tok_run runs[1];
    struct dpk_tok_special specials[1];
    struct dpk_tok_piece pieces[2];
    char text[4];
    uint32_t trie_bytes, trie[1]; /* the character map */
    char strings[4];
};

/* A whole file in memory, to be freed; aborts the test if it cannot be read. */
uint8_t *support_file_read(const char *path, size_t *n_bytes);
void support_file_write(const char *path, const void *data, size_t n_bytes);

/* A fresh folder under the build tree's (or the system's) temporary folder; remove with the
 * second. */
char *support_folder_make(void);
void support_folder_remove(char *folder);

/* After a change in the front of a file in memory: make every sum fit again. The sections' offsets
 * and sizes must still lie within the file. */
void support_dpk_repair(uint8_t *file, size_t n_bytes);

/* The rules on memory, as dpk_file_open runs them on the front of a file. */
int support_dpk_check(const uint8_t *file, size_t n_bytes, dpk_error *err);

uint32_t support_random(uint64_t *state); /* any 32 bits */

#endif
