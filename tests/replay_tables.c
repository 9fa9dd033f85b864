/* Fuzz targets are linked with this between the tokenizers' packing and its tables of Unicode, which
 * depend on nothing but what is wanted and take longer than all the rest: each is made once. */
#include "support_fuzz.h"

#include "../convert/pack_tokenizer_impl.h"

enum { MAX_TABLES = 4 };

struct tables {
    struct dpk_pack_unicode want;
    struct dpk_tok_header h;
    struct dpk_pack_bytes bytes;
};

int __real_dpk_pack_unicode_tables(const struct dpk_pack_unicode *want, struct dpk_tok_header *h,
                                   struct dpk_pack_bytes *out, dpk_error *err);
int __wrap_dpk_pack_unicode_tables(const struct dpk_pack_unicode *want, struct dpk_tok_header *h,
                                   struct dpk_pack_bytes *out, dpk_error *err);

static bool same(const struct dpk_pack_unicode *a, const struct dpk_pack_unicode *b) {
    return a->classes == b->classes && a->combining == b->combining && a->clusters == b->clusters &&
           a->lower == b->lower && a->decompositions == b->decompositions;
}

int __wrap_dpk_pack_unicode_tables(const struct dpk_pack_unicode *want, struct dpk_tok_header *h,
                                   struct dpk_pack_bytes *out, dpk_error *err) {
    static struct tables made[MAX_TABLES];
    static int n;
    int i = 0;
    while (i < n && !same(&made[i].want, want)) i++;
    struct tables *t = &made[i];
    if (i == n) {
        fuzz_require(n++ < MAX_TABLES, "few kinds of tables");
        t->want = *want;
        fuzz_require(__real_dpk_pack_unicode_tables(want, &t->h, &t->bytes, err) == DPK_OK, "made");
    }
    h->n_runs = t->h.n_runs;
    h->n_lower = t->h.n_lower;
    h->n_decompositions = t->h.n_decompositions;
    return dpk_pack_put(out, t->bytes.v, t->bytes.n, err);
}
