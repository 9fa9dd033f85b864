/* Inside of the public handles. */
#ifndef DPK_SESSION_H
#define DPK_SESSION_H

#include "diffpak.h"
#include "plan.h"
#include "sampler.h"
#include "settings.h"
#include "tokenizer.h"

enum { DPK_MAX_TOKENIZERS = 4 };

struct dpk_model {
    struct dpk_file file;
    uint32_t n_tokenizers;
    struct dpk_tokenizer *tokenizers[DPK_MAX_TOKENIZERS]; /* as in the file */
    struct dpk_share *share;                              /* of its sessions */
};

struct dpk_session {
    const struct dpk_model *model;
    struct dpk_backend *backend;
    int32_t act_dtype;
    uint64_t memory_limit; /* 0: none */
    bool whole_maps;       /* plans where no operator runs a few rows at a time */
    void *arena;           /* kept between runs; grows when a plan needs more */
    uint64_t arena_bytes;
    void *loop; /* what dpk_session_take_loop took */
    uint64_t loop_bytes;
    char description[320];
};

/* Number of the tokenizer of this name, or -1. */
int dpk_model_find_tokenizer(const struct dpk_model *model, const char *name);

/* The sampler's table from the scheduler keys of the metadata, for the last strength * steps of the
 * steps (not 0). */
int dpk_model_schedule(const struct dpk_model *model, const char *scheduler, uint32_t steps,
                       double strength, struct dpk_schedule **schedule, dpk_error *err);

/* With a memory limit, on the CPU: mark all stages of the plan but `often` (DPK_NONE: none) as ones
 * whose weights are let go of behind each operator. */
void dpk_session_page(const struct dpk_session *session, struct dpk_plan *plan, uint32_t often);

/* After the stages were added: place everything such that arena and host_bytes are within the
 * limit, if that can be (dpk_session_take says if not). Errors: DPK_ENOMEM. */
int dpk_session_fit(const struct dpk_session *session, struct dpk_plan *plan, uint64_t host_bytes,
                    dpk_error *err);

/* Check the plan's arena and host_bytes against the limit, take the arena, bind the plan to it.
 * Errors: DPK_ENOMEM. what: "generate 1024x1024", for the message. */
int dpk_session_take(struct dpk_session *session, struct dpk_plan *plan, uint64_t host_bytes,
                     const char *what, dpk_error *err);

/* Give the arena back; the next dpk_session_take takes another. */
void dpk_session_release(struct dpk_session *session);
/* Memory of the device beside the arena, kept between runs too. Errors: DPK_ENOMEM. */
int dpk_session_take_loop(struct dpk_session *session, uint64_t n_bytes, dpk_error *err);

#endif
