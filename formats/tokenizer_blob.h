/* Kinds of tokenizer blobs in a .dpk. Their bytes are specified in FORMAT.md; packed by convert/, read by runtime/. */
#ifndef DPK_TOKENIZER_BLOB_H
#define DPK_TOKENIZER_BLOB_H
enum dpk_tokenizer_kind {
    DPK_TOKENIZER_CLIP = 1, /* byte-level BPE with word ends */
    DPK_TOKENIZER_T5 = 2,   /* SentencePiece unigram */
};
#endif
