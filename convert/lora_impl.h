/* Inside of LoRA: keys (lora_keys.c), layers (lora.c), numbers (lora_merge.c). */
#ifndef DPK_LORA_IMPL_H
#define DPK_LORA_IMPL_H

#include "lora.h"

#include "../formats/config.h"

#include <pthread.h>

/* ---- Keys ------------------------------------------------------------------------------------ */

/* What a tensor of a file is to its layer. */
enum dpk_lora_kind {
    DPK_LORA_DOWN,
    DPK_LORA_UP,
    DPK_LORA_MID,
    DPK_LORA_ALPHA,
    DPK_LORA_MAGNITUDE, /* PEFT's: one number a row */
    DPK_LORA_DORA,      /* LyCORIS': one number a row or a column */
    DPK_LORA_N_KINDS
};
/* Which component a layer is of. */
enum dpk_lora_scope { DPK_LORA_DENOISER, DPK_LORA_TEXT, DPK_LORA_TEXT_2, DPK_LORA_NO_SCOPE };

struct dpk_lora_key {
    int scope, kind;
    bool adapter;     /* of PEFT's own files, whose settings are in adapter_config.json */
    const char *path; /* the layer, as the key has it, without component; in the key */
    size_t path_length;
    char layer[512]; /* the layer with '_' for '.', attention in today's names */
};
/* Take a tensor's name apart; false if it is none of the known forms. */
bool dpk_lora_parse_key(const char *name, struct dpk_lora_key *key);
/* enum dpk_lora_scope of a component's name. */
int dpk_lora_scope_of(const char *component);
/* The name of a layer with '_' for '.', into out (512 bytes); false if it is too long. */
bool dpk_lora_flatten(const char *path, size_t length, char *out);

/* PEFT's settings: of the file's metadata, or of adapter_config.json beside it. */
struct dpk_lora_settings {
    struct dpk_config config; /* json NULL: there are none */
    bool adapter;             /* keys without the component's name */
};
int dpk_lora_settings_open(struct dpk_lora_settings *s, const char *path,
                           const struct dpk_tensors *tensors, bool adapter, dpk_error *err);
/* alpha / rank of a layer, or what stands for it. */
int dpk_lora_settings_ratio(const struct dpk_lora_settings *s, const struct dpk_lora_key *key,
                            uint64_t rank, double *ratio, dpk_error *err);

/* ---- Changes --------------------------------------------------------------------------------- */

struct dpk_lora_delta {
    const struct dpk_component *component;
    const struct dpk_asked *target;
    size_t order; /* of its file */
    struct dpk_tensors *tensors;
    struct dpk_tensor_info *part[DPK_LORA_N_KINDS]; /* NULL: not there */
    double scale;                                   /* with alpha and rank */
    uint64_t rank, rows, row;                       /* row: elements of one */
    /* down [rank, row], with the core; there while rows are being read */
    pthread_mutex_t lock;
    float *down;
    int users;
    uint64_t n_read; /* rows so far */
};
/* Change rows; as dpk_lora_apply. */
int dpk_lora_delta_apply(struct dpk_lora_delta *d, uint64_t first, uint64_t count, float *w,
                         dpk_error *err);

#endif
