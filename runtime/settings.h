/* The numbers that a model's metadata has for its pictures (FORMAT.md, keys pipeline.*), their defaults and limits. */
#ifndef DPK_SETTINGS_H
#define DPK_SETTINGS_H

#include "../formats/dpk.h"

enum { DPK_JOB_MAX_PIXELS = 32768 }; /* of a side of a picture */

struct dpk_settings {
    double width, height; /* pixels of the usual picture */
    double vae_scale;     /* pixels of a latent's element, in both directions */
    double size_multiple; /* of width and height; of vae_scale */
    double latent_channels;
    double steps, guidance; /* unless asked for others */
    double scaling_factor;  /* latent = factor x mean of the encoder */
};

/* All but guidance and scaling_factor are whole. Errors: DPK_EFORMAT (a key that is there is no
 * number, or none within its limits; size_multiple is no multiple of vae_scale). */
int dpk_settings_read(const struct dpk_file *file, struct dpk_settings *settings, dpk_error *err);

/* A decimal number in the C locale, whatever the program's own is. Returns what follows it, or NULL
 * if there is none. */
const char *dpk_parse_number(const char *text, double *out);

#endif
