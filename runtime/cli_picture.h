/* A picture that a command line, or a line of a file of prompts, asks for. */
#ifndef DPK_CLI_PICTURE_H
#define DPK_CLI_PICTURE_H

#include "cli.h"

#include "../formats/png.h"

enum { CLI_PICTURE_OPTIONS = 17, CLI_PICTURE_TEXTS = 24 };

/* What to paint, as given. All strings are borrowed. */
struct dpk_cli_picture {
    const char *rng, *long_prompt, *latents, *init, *mask;
    struct dpk_cli_list prompts, seeds;
    bool no_binning, weights;
    double strength; /* below 0: not given */
    dpk_params params;
};

/* The inputs of a picture, read. */
struct dpk_cli_inputs {
    uint64_t *seeds; /* [picture.seeds.n] */
    float *latents;
    struct dpk_png init;
    struct dpk_png mask; /* its rgb begins with one byte a pixel, grey */
};

/* The key and value pairs that a PNG file says about how it was made, in a fixed order: the same
 * inputs give the same pairs, other inputs others. */
struct dpk_cli_texts {
    struct dpk_png_text at[CLI_PICTURE_TEXTS];
    size_t n;
    char numbers[CLI_PICTURE_TEXTS][32]; /* what values point to */
};

struct dpk_cli_picture dpk_cli_picture_default(void);
void dpk_cli_picture_free(struct dpk_cli_picture *picture);

/* Options that set fields of the picture, into options[CLI_PICTURE_OPTIONS]. */
void dpk_cli_picture_options(struct dpk_cli_picture *picture, struct dpk_cli_option *options);

/* After the options: check them against each other and fill in params, but for the inputs. Prints
 * one line, beginning with `command`, if something is wrong. Returns CLI_GOOD or CLI_USAGE. */
int dpk_cli_picture_settle(struct dpk_cli_picture *picture, const char *command);

/* Read seeds and pictures to start from into in (zeroed before) and point params at them; plan the
 * run into *info; read the latents, whose shape the plan knows. The inputs must live as long as
 * params is used, and be freed also after an error. */
int dpk_cli_picture_read(struct dpk_cli_picture *picture, struct dpk_cli_inputs *in,
                         dpk_session *session, dpk_info *info, dpk_error *err);
void dpk_cli_inputs_free(struct dpk_cli_inputs *in);

/* What to write into picture `index` of info->n_images. Values point into the arguments. */
void dpk_cli_picture_describe(const struct dpk_cli_picture *picture,
                              const struct dpk_cli_inputs *in, const dpk_model *model,
                              const char *model_path, const dpk_info *info, uint32_t index,
                              struct dpk_cli_texts *texts);

#endif
