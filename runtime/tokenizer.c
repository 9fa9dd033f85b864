/* Opening a tokenizer blob, and encoding: special tokens first, what is between them by the model.
 * Special tokens are found as the tokenizers library's AddedVocabulary finds them. */
#include "tokenizer_impl.h"

#include "../formats/fail.h"
#include "../formats/utf8.h"

#include <stdlib.h>
#include <string.h>

/* ---- Sorted words
 * ----------------------------------------------------------------------------- */

static uint32_t word_length(const struct dpk_tok_words *w, uint32_t i) {
    return w->offset[i + 1] - w->offset[i];
}

static int compare_words(const struct dpk_tok_words *a, uint32_t i, const struct dpk_tok_words *b,
                         uint32_t k) {
    const uint32_t n = word_length(a, i), m = word_length(b, k);
    const int order = memcmp(a->text + a->offset[i], b->text + b->offset[k], n < m ? n : m);
    return order ? order : n < m ? -1 : n > m;
}

static int check_word(const struct dpk_tok_words *w, uint32_t i, const char *what, dpk_error *err) {
    const char *s = (const char *)w->text + w->offset[i];
    const uint32_t n = word_length(w, i);
    if (n == 0) return dpk_error_set(err, DPK_EFORMAT, "tokenizer: %s %u is empty", what, i);
    if (dpk_utf8_check(s, n) != n)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: %s %u is not UTF-8", what, i);
    if (i > 0 && compare_words(w, i - 1, w, i) >= 0)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: %s %u out of order", what, i);
    return DPK_OK;
}

/* Take n words whose contents begin at *at of the blob's text. */
static int open_words(struct dpk_tok_words *w, const uint8_t *records, uint32_t n,
                      const uint8_t *text, uint32_t text_bytes, uint32_t *at, const char *what,
                      dpk_error *err) {
    int rc = DPK_OK;
    uint32_t begin = *at;
    w->records = records;
    w->text = text + begin;
    w->n = n;
    w->offset = malloc(((size_t)n + 1) * sizeof *w->offset);
    if (!w->offset) DPK_FAIL(err, DPK_ENOMEM, "tokenizer: out of memory");
    w->offset[0] = 0;
    uint32_t byte = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t length = dpk_load32(records + 8 * (size_t)i) >> 24;
        if (length > text_bytes - *at)
            DPK_FAIL(err, DPK_EFORMAT, "tokenizer: %s %u ends outside the text", what, i);
        *at += length;
        w->offset[i + 1] = *at - begin;
        DPK_TRY(check_word(w, i, what, err));
        while (byte <= w->text[w->offset[i]]) w->first[byte++] = i;
    }
    while (byte <= 256) w->first[byte++] = n;
done:
    return rc;
}

uint32_t dpk_tok_match(const struct dpk_tok_words *w, const char *text, size_t n, size_t *length,
                       void (*each)(void *arg, uint32_t word, size_t length), void *arg) {
    uint32_t best = UINT32_MAX;
    if (n == 0) return best;
    /* Words lo .. hi begin with the first d bytes of the text. */
    uint32_t lo = w->first[(uint8_t)text[0]], hi = w->first[(uint8_t)text[0] + 1];
    for (size_t d = 1; lo < hi; d++) {
        if (word_length(w, lo) == d) {
            best = lo;
            *length = d;
            if (each) each(arg, lo, d);
            lo++;
        }
        if (d == n) break;
        const uint8_t c = (uint8_t)text[d];
        uint32_t a = lo, b = hi;
        while (a < b) { /* first whose byte is not below c */
            uint32_t mid = a + (b - a) / 2;
            if (w->text[w->offset[mid] + d] < c) a = mid + 1;
            else b = mid;
        }
        lo = a;
        b = hi;
        while (a < b) { /* first whose byte is above c */
            uint32_t mid = a + (b - a) / 2;
            if (w->text[w->offset[mid] + d] <= c) a = mid + 1;
            else b = mid;
        }
        hi = a;
    }
    return best;
}

/* Of two lists in order, none is in both. */
static int check_apart(const struct dpk_tok_words *a, const struct dpk_tok_words *b,
                       const char *what, dpk_error *err) {
    for (uint32_t i = 0, k = 0; i < a->n && k < b->n;) {
        const int order = compare_words(a, i, b, k);
        if (order == 0)
            return dpk_error_set(err, DPK_EFORMAT, "tokenizer: %s %u comes twice", what, i);
        if (order < 0) i++;
        else k++;
    }
    return DPK_OK;
}

/* ---- Opening
 * ---------------------------------------------------------------------------------- */

static void see_id(struct dpk_tokenizer *t, uint32_t id) {
    if (id != UINT32_MAX && id >= t->id_limit) t->id_limit = id + 1;
}

static int check_header(const struct dpk_tok_header *h, uint32_t kind, dpk_error *err) {
    const bool t5 = kind == DPK_TOKENIZER_T5;
    if (kind != DPK_TOKENIZER_CLIP && !t5)
        return dpk_error_set(err, DPK_EUNSUPPORTED, "tokenizer: kind %u is not known", kind);
    if (h->magic != DPK_TOK_MAGIC)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: magic number is %08x, want %08x",
                             h->magic, DPK_TOK_MAGIC);
    if (h->version != DPK_TOK_VERSION)
        return dpk_error_set(err, DPK_EUNSUPPORTED, "tokenizer: version %u, want %d", h->version,
                             DPK_TOK_VERSION);
    if (h->kind != kind)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: kind %u, the table says %u", h->kind,
                             kind);
    if (h->flags & ~(uint32_t)DPK_TOK_LOWER_STRIP)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: flags %08x, bits are not known",
                             h->flags);
    if (h->max_length < 2 || h->max_length > DPK_TOK_MAX_LENGTH)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: maximum length %u, want 2..%d",
                             h->max_length, DPK_TOK_MAX_LENGTH);
    const bool start = h->start_id <= DPK_TOK_MAX_ID || h->start_id == UINT32_MAX;
    const bool unknown = t5 ? h->unknown_id <= DPK_TOK_MAX_ID : h->unknown_id == UINT32_MAX;
    if (!start || !unknown || h->end_id > DPK_TOK_MAX_ID || h->pad_id > DPK_TOK_MAX_ID)
        return dpk_error_set(err, DPK_EFORMAT,
                             "tokenizer: start id %u, end id %u, padding id %u, unknown id %u out "
                             "of range",
                             h->start_id, h->end_id, h->pad_id, h->unknown_id);
    if (t5 ? h->n_entries == 0 || h->charsmap_bytes == 0 : h->charsmap_bytes != 0)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: %u entries, charsmap of %u bytes",
                             h->n_entries, h->charsmap_bytes);
    return DPK_OK;
}

/* The next section: n records of size bytes. */
static int take(const uint8_t **at, size_t *left, uint32_t n, size_t size, const char *what,
                const uint8_t **out, dpk_error *err) {
    const uint64_t bytes = ((uint64_t)n * size + 3) & ~UINT64_C(3);
    if (bytes > *left)
        return dpk_error_set(err, DPK_EFORMAT, "tokenizer: %s need %llu bytes, %zu are left", what,
                             (unsigned long long)bytes, *left);
    for (uint64_t i = (uint64_t)n * size; i < bytes; i++)
        if ((*at)[i])
            return dpk_error_set(err, DPK_EFORMAT, "tokenizer: padding after %s is not zero", what);
    *out = *at;
    *at += bytes;
    *left -= bytes;
    return DPK_OK;
}

static int open_unicode(struct dpk_tokenizer *t, const uint8_t **at, size_t *left, dpk_error *err) {
    struct dpk_unicode *u = &t->unicode;
    int rc = DPK_OK;
    u->n_runs = t->h.n_runs;
    u->n_lower = t->h.n_lower;
    u->n_decompositions = t->h.n_decompositions;
    DPK_TRY(take(at, left, u->n_runs, 8, "character classes", &u->runs, err));
    DPK_TRY(take(at, left, u->n_lower, 8, "lower case entries", &u->lower, err));
    DPK_TRY(take(at, left, u->n_decompositions, 12, "decompositions", &u->decompositions, err));
    for (uint32_t i = 0; i < u->n_decompositions; i++)
        u->n_compositions += dpk_load32(u->decompositions + 12 * (size_t)i) >> 31;
    DPK_TRY(take(at, left, u->n_compositions, 4, "compositions", &u->compositions, err));
    rc = dpk_unicode_check(u, err);
done:
    return rc;
}

static int open_specials(struct dpk_tokenizer *t, const uint8_t *records, const uint8_t *text,
                         uint32_t *at, dpk_error *err) {
    int rc = DPK_OK;
    uint32_t n_raw = 0;
    for (uint32_t i = 0; i < t->h.n_specials; i++) {
        const uint32_t flags = dpk_load32(records + 8 * (size_t)i + 4);
        const bool normalized = flags & DPK_TOK_NORMALIZED;
        if (flags > 15 || (!normalized && n_raw != i))
            DPK_FAIL(err, DPK_EFORMAT, "tokenizer: special token %u has flags %u", i, flags);
        n_raw += !normalized;
        see_id(t, dpk_load32(records + 8 * (size_t)i) & DPK_TOK_MAX_ID);
    }
    DPK_TRY(open_words(&t->special[0], records, n_raw, text, t->h.text_bytes, at, "special token",
                       err));
    DPK_TRY(open_words(&t->special[1], records + 8 * (size_t)n_raw, t->h.n_specials - n_raw, text,
                       t->h.text_bytes, at, "normalised special token", err));
    rc = check_apart(&t->special[0], &t->special[1], "special token", err);
done:
    return rc;
}

static int open_tables(struct dpk_tokenizer *t, const uint8_t *at, size_t left, dpk_error *err) {
    const uint8_t *specials, *entries, *text, *charsmap;
    const bool t5 = t->h.kind == DPK_TOKENIZER_T5;
    uint32_t text_at = 0;
    int rc = DPK_OK;
    DPK_TRY(open_unicode(t, &at, &left, err));
    DPK_TRY(take(&at, &left, t->h.n_specials, 8, "special tokens", &specials, err));
    if (!t5) DPK_TRY(take(&at, &left, 512, 4, "byte ids", &t->byte_ids, err));
    DPK_TRY(take(&at, &left, t->h.n_entries, t5 ? 8 : 12, "entries", &entries, err));
    DPK_TRY(take(&at, &left, t->h.text_bytes, 1, "texts", &text, err));
    DPK_TRY(take(&at, &left, t->h.charsmap_bytes, 1, "charsmap", &charsmap, err));
    if (left) DPK_FAIL(err, DPK_EFORMAT, "tokenizer: %zu bytes after the last table", left);
    DPK_TRY(open_specials(t, specials, text, &text_at, err));
    if (t5) {
        DPK_TRY(open_words(&t->pieces, entries, t->h.n_entries, text, t->h.text_bytes, &text_at,
                           "piece", err));
        for (uint32_t i = 0; i < t->pieces.n; i++) see_id(t, dpk_tok_id(&t->pieces, i));
        t->charsmap_trie = charsmap;
        DPK_TRY(dpk_unigram_open(t, err));
    } else {
        t->merges = entries;
        for (uint32_t i = 0; i < 512; i++) {
            uint32_t id = dpk_load32(t->byte_ids + 4 * (size_t)i);
            if (id > DPK_TOK_MAX_ID)
                DPK_FAIL(err, DPK_EFORMAT, "tokenizer: byte %u has id %u", i, id);
            see_id(t, id);
        }
        for (uint32_t i = 0; i < t->h.n_entries; i++) {
            uint32_t id = dpk_load32(t->merges + 12 * (size_t)i + 8);
            if (id > DPK_TOK_MAX_ID)
                DPK_FAIL(err, DPK_EFORMAT, "tokenizer: merge %u has id %u", i, id);
            see_id(t, id);
        }
        DPK_TRY(dpk_bpe_open(t, err));
    }
    if (text_at != t->h.text_bytes)
        DPK_FAIL(err, DPK_EFORMAT, "tokenizer: %u of %u bytes of text are used", text_at,
                 t->h.text_bytes);
done:
    return rc;
}

int dpk_tokenizer_open(struct dpk_tokenizer **out, uint32_t kind, const void *blob, size_t n_bytes,
                       dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_tokenizer *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t) DPK_FAIL(err, DPK_ENOMEM, "tokenizer: out of memory");
    if (n_bytes < sizeof t->h)
        DPK_FAIL(err, DPK_EFORMAT, "tokenizer: %zu bytes, the header has %zu", n_bytes,
                 sizeof t->h);
    memcpy(&t->h, blob, sizeof t->h);
    DPK_TRY(check_header(&t->h, kind, err));
    see_id(t, t->h.start_id);
    see_id(t, t->h.end_id);
    see_id(t, t->h.pad_id);
    see_id(t, t->h.unknown_id);
    DPK_TRY(open_tables(t, (const uint8_t *)blob + sizeof t->h, n_bytes - sizeof t->h, err));
    *out = t;
    t = NULL;
done:
    dpk_tokenizer_free(t);
    return rc;
}

void dpk_tokenizer_free(struct dpk_tokenizer *t) {
    if (!t) return;
    free(t->special[0].offset);
    free(t->special[1].offset);
    free(t->pieces.offset);
    free(t->merge_table);
    free(t);
}

size_t dpk_tokenizer_max_length(const struct dpk_tokenizer *t) { return t->h.max_length; }
uint32_t dpk_tokenizer_id_limit(const struct dpk_tokenizer *t) { return t->id_limit; }

/* ---- Encoding
 * --------------------------------------------------------------------------------- */

void dpk_tok_emit(struct dpk_tok_run_state *r, uint32_t id) {
    if (r->n < r->cap) r->ids[r->n] = (int32_t)id;
    r->n++;
}

void *dpk_tok_scratch(struct dpk_tok_run_state *r, size_t n_bytes) {
    if (n_bytes > r->nodes_bytes) {
        free(r->nodes);
        r->nodes = malloc(n_bytes);
        r->nodes_bytes = r->nodes ? n_bytes : 0;
        if (!r->nodes) r->failed = true;
    }
    return r->nodes;
}

static int class_after(const struct dpk_tokenizer *t, const char *text, size_t n, size_t at) {
    size_t length;
    if (at >= n) return 0;
    return dpk_unicode_class(&t->unicode, dpk_utf8_decode(text + at, n - at, &length));
}

static size_t char_before(const char *text, size_t at) {
    do at--;
    while (at > 0 && ((uint8_t)text[at] & 0xc0) == 0x80);
    return at;
}

/* The special tokens of one kind in a text, and what is between them, from left to right. */
struct splitter {
    const struct dpk_tokenizer *t;
    const struct dpk_tok_words *words;
    const char *text;
    size_t n;
    size_t done;  /* given out so far */
    size_t scan;  /* where the next special token may begin */
    bool pending; /* the token at start .. stop has been found and not yet given out */
    size_t start, stop;
    uint32_t id;
};

/* Does the token at start .. stop count there? Widens it by the white space that it takes. */
static bool accept(struct splitter *s, uint32_t word) {
    const struct dpk_tokenizer *t = s->t;
    const uint32_t flags = dpk_load32(s->words->records + 8 * (size_t)word + 4);
    if (flags & DPK_TOK_SINGLE_WORD) {
        size_t before = s->start ? char_before(s->text, s->start) : 0;
        if (s->start && class_after(t, s->text, s->n, before) & DPK_TOK_WORD) return false;
        if (class_after(t, s->text, s->n, s->stop) & DPK_TOK_WORD) return false;
    }
    while (flags & DPK_TOK_LSTRIP && s->start > s->done) {
        size_t before = char_before(s->text, s->start);
        if (!(class_after(t, s->text, s->n, before) & DPK_TOK_SPACE)) break;
        s->start = before;
    }
    while (flags & DPK_TOK_RSTRIP && class_after(t, s->text, s->n, s->stop) & DPK_TOK_SPACE) {
        size_t length;
        dpk_utf8_decode(s->text + s->stop, s->n - s->stop, &length);
        s->stop += length;
    }
    s->id = dpk_tok_id(s->words, word);
    return true;
}

static bool find_special(struct splitter *s) {
    while (s->words->n && s->scan < s->n) {
        size_t length = 0;
        uint32_t word =
            dpk_tok_match(s->words, s->text + s->scan, s->n - s->scan, &length, NULL, NULL);
        if (word == UINT32_MAX) {
            s->scan++;
            continue;
        }
        s->start = s->scan;
        s->stop = s->scan = s->scan + length;
        if (accept(s, word)) return true;
    }
    return false;
}

/* The next part: text (*n bytes at *part) or, with *n = 0, the token *id. false at the end. */
static bool split(struct splitter *s, const char **part, size_t *n, uint32_t *id) {
    if (!s->pending) s->pending = find_special(s);
    const size_t end = s->pending ? s->start : s->n;
    if (s->done < end) {
        *part = s->text + s->done;
        *n = end - s->done;
        s->done = end;
        return true;
    }
    if (!s->pending) return false;
    s->pending = false;
    s->done = s->stop;
    *n = 0;
    *id = s->id;
    return true;
}

static void encode_part(struct dpk_tok_run_state *r, const char *text, size_t n) {
    const bool t5 = r->t->h.kind == DPK_TOKENIZER_T5;
    struct dpk_bytes normal = {0};
    if (t5) dpk_unigram_normalize(r, text, n, &normal);
    else dpk_bpe_normalize(r, text, n, &normal);
    struct splitter s = {.t = r->t, .words = &r->t->special[1], .text = normal.v, .n = normal.n};
    const char *part;
    size_t length;
    uint32_t id;
    while (!r->failed && !normal.failed && split(&s, &part, &length, &id)) {
        if (length == 0) dpk_tok_emit(r, id);
        else if (t5) dpk_unigram_encode(r, part, length);
        else dpk_bpe_encode(r, part, length);
    }
    r->failed = r->failed || normal.failed;
    dpk_bytes_free(&normal);
}

/* Python's text.lower().strip() */
static void lower_strip(struct dpk_tok_run_state *r, const char *text, size_t n,
                        struct dpk_bytes *out) {
    const struct dpk_unicode *u = &r->t->unicode;
    r->codes.n = r->more.n = 0;
    dpk_codes_add_utf8(&r->codes, text, n);
    dpk_unicode_lower_text(u, r->codes.v, r->codes.n, &r->more);
    size_t begin = 0, end = r->more.n;
    while (begin < end && dpk_unicode_class(u, r->more.v[begin]) & DPK_TOK_STRIP) begin++;
    while (end > begin && dpk_unicode_class(u, r->more.v[end - 1]) & DPK_TOK_STRIP) end--;
    for (size_t i = begin; i < end; i++) dpk_bytes_add_code(out, r->more.v[i]);
    r->failed = r->failed || r->codes.failed || r->more.failed || out->failed;
}

static void encode_text(struct dpk_tok_run_state *r, const char *text, size_t n) {
    struct dpk_bytes lower = {0};
    if (r->t->h.flags & DPK_TOK_LOWER_STRIP) {
        lower_strip(r, text, n, &lower);
        text = lower.v;
        n = lower.n;
    }
    struct splitter s = {.t = r->t, .words = &r->t->special[0], .text = text, .n = n};
    const char *part;
    size_t length;
    uint32_t id;
    while (!r->failed && split(&s, &part, &length, &id)) {
        if (length == 0) dpk_tok_emit(r, id);
        else encode_part(r, part, length);
    }
    dpk_bytes_free(&lower);
}

/* Encode, after a first token if there is one (else UINT32_MAX). *n_tokens counts it too. */
static int encode(const struct dpk_tokenizer *t, uint32_t first, const char *utf8, size_t n_bytes,
                  int32_t *ids, size_t cap, size_t *n_tokens, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_tok_run_state r = {.t = t, .ids = ids, .cap = cap};
    if (n_bytes > DPK_TOK_MAX_TEXT)
        DPK_FAIL(err, DPK_EARG, "prompt: %zu bytes, want at most %d", n_bytes, DPK_TOK_MAX_TEXT);
    const size_t valid = n_bytes ? dpk_utf8_check(utf8, n_bytes) : 0;
    if (valid != n_bytes)
        DPK_FAIL(err, DPK_EARG, "prompt: byte %zu (0x%02x) is not UTF-8", valid,
                 (unsigned)(uint8_t)utf8[valid]);
    if (first != UINT32_MAX) dpk_tok_emit(&r, first);
    encode_text(&r, utf8, n_bytes);
    if (r.failed) DPK_FAIL(err, DPK_ENOMEM, "prompt: out of memory for its tokens");
    *n_tokens = r.n;
done:
    free(r.nodes);
    dpk_codes_free(&r.codes);
    dpk_codes_free(&r.more);
    dpk_bytes_free(&r.word);
    return rc;
}

/* End token and padding after `kept` ids. */
static size_t end_row(const struct dpk_tokenizer *t, size_t kept, int32_t *ids) {
    ids[kept++] = (int32_t)t->h.end_id;
    for (size_t i = kept; i < t->h.max_length; i++) ids[i] = (int32_t)t->h.pad_id;
    return kept;
}

int dpk_tokenizer_encode(const struct dpk_tokenizer *t, const char *utf8, size_t n_bytes,
                         int32_t *ids, int32_t *mask, size_t *n_tokens, dpk_error *err) {
    int rc = DPK_OK;
    /* The end token's place stays free. */
    const size_t length = t->h.max_length, cap = length - 1;
    size_t n;
    DPK_TRY(encode(t, t->h.start_id, utf8, n_bytes, ids, cap, &n, err));
    const size_t kept = end_row(t, n < cap ? n : cap, ids);
    for (size_t i = 0; mask && i < length; i++) mask[i] = i < kept;
    if (n_tokens) *n_tokens = n + 1;
done:
    return rc;
}

int dpk_tokenizer_ids(const struct dpk_tokenizer *t, const char *utf8, size_t n_bytes, int32_t *ids,
                      size_t cap, size_t *n_tokens, dpk_error *err) {
    return encode(t, UINT32_MAX, utf8, n_bytes, ids, cap, n_tokens, err);
}

size_t dpk_tokenizer_row(const struct dpk_tokenizer *t, const int32_t *tokens, size_t n,
                         int32_t *ids) {
    const size_t begin = t->h.start_id != UINT32_MAX;
    if (begin) ids[0] = (int32_t)t->h.start_id;
    if (n) memcpy(ids + begin, tokens, n * sizeof *ids);
    end_row(t, begin + n, ids);
    return begin;
}
