/* `diffpak generate --prompts`: a file of pictures to paint, one a line.
 *
 * A line is a prompt, or a JSON object whose keys are generate's options without their dashes
 * ({"prompt": "a cat", "seed": 3, "width": 512, "guidance_rescale": 0.7, "no_binning": true});
 * what a line does not say is as the command line says. Empty lines are passed over.
 *
 * Picture number i, counted from 1, is FOLDER/0000i.png whatever the shards. A file that is there
 * and says of itself that it was made from the same inputs is kept: so a run that was stopped goes
 * on where it was. FOLDER/manifest.jsonl (with shards manifest-1-of-4.jsonl, ...) lists the
 * finished pictures of the run with all inputs. */
#ifndef DPK_CLI_BATCH_H
#define DPK_CLI_BATCH_H

#include "cli_picture.h"

struct dpk_cli_line {
    unsigned number;            /* in the file, from 1 */
    uint32_t index;             /* of its picture, from 1 */
    struct dpk_cli_list values; /* owned, and each of them: what strings of picture point to */
    struct dpk_cli_picture picture;
};
struct dpk_cli_batch {
    struct dpk_cli_line *lines; /* [n], owned; this shard's */
    size_t n;
    uint32_t n_pictures;      /* of all shards */
    uint32_t shard, n_shards; /* shard is of 1 .. n_shards */
    const char *path;         /* of the file; borrowed */
};

/* Read and check a whole file of prompts. shard: "I/N", I of 1 .. N, every N-th line from the I-th
 * on; or NULL: as SLURM_ARRAY_TASK_ID and its companions say, or 1/1. defaults is borrowed for as
 * long as the batch lives. Prints one line if something is wrong. Returns an exit status. */
int dpk_cli_batch_read(struct dpk_cli_batch *batch, const char *path, const char *shard,
                       const struct dpk_cli_picture *defaults, const char *command);
void dpk_cli_batch_free(struct dpk_cli_batch *batch);

/* Plan every picture, then paint what is not there yet, then write the manifest (also after an
 * error: of what is finished). Makes the folder if need be. */
int dpk_cli_batch_paint(struct dpk_cli_batch *batch, const char *model_path, const dpk_model *model,
                        dpk_session *session, const char *folder, bool quiet, dpk_error *err);

#endif
