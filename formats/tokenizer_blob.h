/* Tokenizer blobs of a .dpk as they stand in the file (FORMAT.md, "Tokenizer blobs", specifies
 * them). Packed by convert/, read by runtime/. Everything is little-endian and need not be
 * aligned. */
#ifndef DPK_TOKENIZER_BLOB_H
#define DPK_TOKENIZER_BLOB_H

#include <stdint.h>

enum dpk_tokenizer_kind {
    DPK_TOKENIZER_CLIP = 1, /* byte-level BPE with word ends */
    DPK_TOKENIZER_T5 = 2,   /* SentencePiece unigram */
};

enum {
    DPK_TOK_MAGIC = 0x4b4f5444, /* "DTOK" */
    DPK_TOK_VERSION = 1,
    DPK_TOK_MAX_LENGTH = 65536,    /* ids of a prompt */
    DPK_TOK_MAX_ID = 0xffffff,     /* ids have 24 bits */
    DPK_TOK_MAX_PIECE = 255,       /* bytes of a piece or special token */
    DPK_TOK_MAX_MAPPING = 64,      /* bytes that the charsmap makes of one entry */
    DPK_TOK_MAX_DECOMPOSITION = 4, /* steps of a full canonical decomposition */
};

/* The sections follow the header in the order of their counts, without gaps; text and charsmap are
 * padded with zero bytes to a multiple of 4. */
struct dpk_tok_header {
    uint32_t magic, version, kind;
    uint32_t flags;      /* enum dpk_tok_flags */
    uint32_t max_length; /* 2 .. DPK_TOK_MAX_LENGTH */
    uint32_t start_id;   /* first id of every prompt; UINT32_MAX: none */
    uint32_t end_id;     /* last one */
    uint32_t pad_id;
    uint32_t unknown_id;       /* T5; CLIP: UINT32_MAX */
    uint32_t n_runs;           /* struct dpk_tok_run */
    uint32_t n_lower;          /* struct dpk_tok_lower */
    uint32_t n_decompositions; /* struct dpk_tok_decomposition, then as many uint32_t as compose:
                                  their numbers sorted by (first, second) */
    uint32_t n_specials;       /* struct dpk_tok_special */
    uint32_t n_entries;        /* CLIP: 256 + 256 byte ids (uint32_t), then struct dpk_tok_merge
                            T5: struct dpk_tok_piece */
    uint32_t text_bytes;     /* contents of the specials, then of the pieces, one after the other */
    uint32_t charsmap_bytes; /* T5: precompiled_charsmap of spiece.model */
};

enum dpk_tok_flags {
    DPK_TOK_LOWER_STRIP = 1, /* Python's text.lower().strip() comes first */
};

/* Properties of the code points from `start` up to the next run's start. */
struct dpk_tok_run {
    uint32_t start;
    uint8_t flags;     /* enum dpk_tok_class */
    uint8_t cluster;   /* enum dpk_tok_cluster */
    uint8_t combining; /* canonical combining class */
    uint8_t zero;
};
enum dpk_tok_class {
    DPK_TOK_LETTER = 1,     /* general category L* */
    DPK_TOK_NUMBER = 2,     /* N* */
    DPK_TOK_SPACE = 4,      /* White_Space */
    DPK_TOK_WORD = 8,       /* \w: Alphabetic, M*, Nd, Pc, Join_Control */
    DPK_TOK_CASED = 16,     /* Cased */
    DPK_TOK_IGNORABLE = 32, /* Case_Ignorable */
    DPK_TOK_STRIP = 64,     /* Python's str.isspace */
};
/* Grapheme_Cluster_Break (UAX 29), with Extended_Pictographic. */
enum dpk_tok_cluster {
    DPK_TOK_OTHER,
    DPK_TOK_CR,
    DPK_TOK_LF,
    DPK_TOK_CONTROL,
    DPK_TOK_EXTEND,
    DPK_TOK_ZWJ,
    DPK_TOK_PREPEND,
    DPK_TOK_SPACING,
    DPK_TOK_HANGUL_L,
    DPK_TOK_HANGUL_V,
    DPK_TOK_HANGUL_T,
    DPK_TOK_HANGUL_S, /* syllables: LV where (code - U+AC00) % 28 is 0, else LVT */
    DPK_TOK_REGIONAL,
    DPK_TOK_PICTOGRAPHIC,
    DPK_TOK_N_CLUSTERS
};

/* Simple lower case; U+0130 becomes U+0069 U+0307 without an entry. Sorted by code. */
struct dpk_tok_lower {
    uint32_t code, lower;
};

/* One step of a canonical decomposition; Hangul syllables have none. Sorted by code. */
struct dpk_tok_decomposition {
    uint32_t code;          /* with DPK_TOK_COMPOSES: first and second compose to it */
    uint32_t first, second; /* second 0: a singleton */
};
#define DPK_TOK_COMPOSES UINT32_C(0x80000000)

/* A token that is found in the text before anything else. Sorted: those matched in the raw text
 * first, then those matched in the normalised text, each group by content (bytewise). */
struct dpk_tok_special {
    uint32_t id_length; /* id, and the content's length in bytes in the upper 8 bits */
    uint32_t flags;     /* enum dpk_tok_special_flags */
};
enum dpk_tok_special_flags {
    DPK_TOK_SINGLE_WORD = 1, /* only where no word character is beside it */
    DPK_TOK_LSTRIP = 2,      /* takes the white space before it */
    DPK_TOK_RSTRIP = 4,      /* and after it */
    DPK_TOK_NORMALIZED = 8,
};

/* Rank of a merge is its number. */
struct dpk_tok_merge {
    uint32_t left, right, result;
};

/* Sorted by content (bytewise). */
struct dpk_tok_piece {
    uint32_t id_length; /* as in dpk_tok_special */
    float score;
};

#endif
