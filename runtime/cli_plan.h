/* Plans for `inspect` and `bench`: those of a text-to-image job, and one of the encoder, which no
 * such job runs. */
#ifndef DPK_CLI_PLAN_H
#define DPK_CLI_PLAN_H

#include "job.h"

struct dpk_cli_plan {
    struct dpk_job job;
    struct dpk_plan encode; /* n_stages 0 unless asked for */
    struct dpk_plan_input image[1];
};

/* program: NULL, or the one of interest ("encode" is planned only when it is). */
int dpk_cli_plan_make(struct dpk_cli_plan *plan, dpk_session *session, const dpk_params *params,
                      const char *program, dpk_error *err);
void dpk_cli_plan_free(struct dpk_cli_plan *plan); /* also of a zeroed struct */

/* The stage that runs this program; NULL if none does. */
const struct dpk_plan_stage *dpk_cli_plan_stage(const struct dpk_cli_plan *plan,
                                                const char *program);

/* What a stage needs at once, and how it gets by with that. */
struct dpk_cli_memory {
    uint64_t alive_bytes; /* most at one time, with what other stages keep then */
    uint32_t n_parts;     /* that go a few rows at a time */
    int32_t rows;         /* the fewest of them; 0 without such parts */
    double again;         /* work done more often than once, as a share of all the stage's */
};
struct dpk_cli_memory dpk_cli_stage_memory(const struct dpk_plan *plan,
                                           const struct dpk_plan_stage *stage);

/* Bytes that such a run takes with the least memory limit that can be met. */
int dpk_cli_plan_least(dpk_session *session, const dpk_params *params, uint64_t *n_bytes,
                       dpk_error *err);

struct dpk_cost dpk_cli_stage_cost(const struct dpk_plan_stage *stage);
const struct dpk_file *dpk_cli_model_file(const dpk_model *model);

#endif
