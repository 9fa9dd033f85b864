/* Tokenizers of model folders, packed and opened. */
#ifndef SUPPORT_TOKENS_H
#define SUPPORT_TOKENS_H

#include "../convert/pack_tokenizer.h"
#include "../runtime/tokenizer.h"

struct folder { /* a tokenizer folder's files */
    struct dpk_pack_tokenizer src;
    void *data[8];
    int n;
};
/* Read all there are. */
void folder_open(struct folder *f, uint32_t kind, const char *path, uint32_t max_length);
void folder_close(struct folder *f);

struct packed {
    void *blob;
    size_t n_bytes;
    struct dpk_tokenizer *t;
};
/* Pack and open; fails the test if it cannot. lower: lower_strip. */
struct packed pack_folder(uint32_t kind, const char *path, uint32_t max_length, bool lower);
void packed_free(struct packed *p);

#endif
