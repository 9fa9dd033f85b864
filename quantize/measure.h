/* Quality and speed of a quantized file against the file it was made from: both are run by the
 * runtime on the same prompts and seeds. What is compared with what:
 *
 *   layers    every operator whose weight was quantized is run twice on the activations of the
 *             unquantized model, with the old and with the new weight, and without its residual
 *   latents   the sampler's last latent of two whole runs
 *   pictures  the decoded pictures of these runs, 8 bits a channel
 *   time      the network's fastest call in these runs, on this machine
 *
 * Everything but the time depends on the files, the options and the instruction set alone. */
#ifndef DPK_MEASURE_H
#define DPK_MEASURE_H

#include "layers.h"

enum { DPK_MEASURE_MAX_PROMPTS = 64 };

/* Called often; what: "unquantized, prompt 1 of 2, step 3 of 8". Non-zero stops: DPK_ECANCELLED. */
typedef int dpk_measure_progress(void *arg, const char *what, double fraction);

/* spec: how many of the built-in prompts ("1" .. "8"), or a file of them, one a line.
 * Errors: DPK_EARG, DPK_EIO, DPK_ENOMEM. */
struct dpk_prompts {
    uint32_t n;
    const char *at[DPK_MEASURE_MAX_PROMPTS];
    char *text; /* owned */
};
int dpk_prompts_open(struct dpk_prompts *p, const char *spec, dpk_error *err);
void dpk_prompts_free(struct dpk_prompts *p); /* also of a zeroed struct */

struct dpk_measure_options {
    const char *const *prompts; /* [n_prompts], one picture each, seeds 0, 1, ... */
    uint32_t n_prompts;
    uint32_t steps;                 /* of the sampler */
    uint32_t size;                  /* pixels of the longer side; 0: the model's own, at most 512 */
    int threads;                    /* 0: one a core */
    dpk_measure_progress *progress; /* or NULL */
    void *progress_arg;
};

struct dpk_measure_layer { /* zeros: not quantized, or no run used it */
    uint32_t uses;
    double signal, noise; /* sums of squares: of outputs, and of their differences */
};
struct dpk_measure_picture {
    const char *prompt; /* borrowed from the options */
    uint64_t seed;
    uint8_t *before, *after; /* [height,width,3] */
    double latent_error;     /* |after - before| / |before| */
    double psnr, ssim;       /* dB (INFINITY: equal); Wang et al. 2004 on luma, up to 1 */
};
struct dpk_measure {
    uint32_t width, height, steps;
    uint32_t n_pictures;
    struct dpk_measure_picture *picture;
    size_t n_layers;
    struct dpk_measure_layer *layer; /* [n_layers], as in struct dpk_layers */
    double latent_error;             /* of all latents together */
    double psnr;                     /* of all pixels together */
    double ssim;                     /* mean */
    double step_before, step_after;  /* seconds */
    char machine[160];               /* "cpu, avx512bf16, 2 threads, bf16 activations" */
    char scheduler[64];
};

/* before, after: the paths of the two files. layers: those of the first, with the decisions that
 * made the second.
 * Errors: of the runtime, and DPK_EARG (the files do not belong together, options out of range). */
int dpk_measure_files(struct dpk_measure *m, const char *before, const char *after,
                      const struct dpk_layers *layers, const struct dpk_measure_options *options,
                      dpk_error *err);
void dpk_measure_free(struct dpk_measure *m); /* also of a zeroed struct */

/* Relative output error of layer i and its share of the sum of these over all layers: both 0 where
 * nothing was measured. Shares compare layers whose outputs differ in size. */
double dpk_measure_layer_error(const struct dpk_measure *m, size_t i);
double dpk_measure_layer_share(const struct dpk_measure *m, size_t i);

/* ---- Layers alone -------------------------------------------------------------------------- */

/* A layer, or layers that are alike (names that differ in numbers only, equal shapes) where the
 * model has too many to try each. */
struct dpk_alone_unit {
    const char *name; /* of its first layer */
    size_t n_layers;
    uint64_t bytes_saved;
    double error;  /* mean square error of the picture (-1 .. 1) with this quantized alone */
    uint32_t rank; /* 0: costs least quality a byte saved */
};
struct dpk_alone {
    size_t n_units, n_layers;
    struct dpk_alone_unit *unit; /* in the order of the layers */
    uint32_t *unit_of;           /* [n_layers] DPK_NONE: the layer is not quantized */
    uint32_t *order;             /* [n_units] units by rank */
    uint32_t runs;               /* of the model, that this took */
};

/* What a choice must hold. */
struct dpk_budget {
    double psnr_db; /* of the picture against the unquantized one; 0: does not matter */
    uint64_t bytes; /* of the file; 0: does not matter */
};
/* "30dB", "500MB", "1.5GB", "12345" (bytes). Errors: DPK_EARG. */
int dpk_budget_parse(struct dpk_budget *b, const char *text, dpk_error *err);

/* Quantize every unit alone, and rank. With a budget, choose: with dB, as many units in the order
 * of their ranks as keep the picture that good (tried, not predicted); with bytes, as few as make
 * the file that small (DPK_EARG if all are not enough). Layers that are not chosen are set to be
 * left alone: decisions, reasons and sizes of `layers` change. file_bytes: size of `after`.
 * The first prompt of the options is painted. */
int dpk_alone_measure(struct dpk_alone *a, const char *before, const char *after,
                      struct dpk_layers *layers, const struct dpk_budget *budget,
                      uint64_t file_bytes, const struct dpk_measure_options *options,
                      dpk_error *err);
void dpk_alone_free(struct dpk_alone *a);              /* also of a zeroed struct */
double dpk_alone_psnr(const struct dpk_alone_unit *u); /* of u->error; INFINITY: no difference */

/* ---- Shapes -------------------------------------------------------------------------------- */

/* One distinct call of the model's programs with a weight that could be quantized. */
struct dpk_timed_shape {
    int kind;        /* enum dpk_layer_kind */
    int64_t in, out; /* of the operator: kernels of convolutions count in `in` */
    int64_t rows;
    bool glu;
    size_t n_layers;
    double before, after; /* seconds, the fastest of several runs */
    bool quantize;
    char text[160]; /* all of this for people */
};
struct dpk_timed_shapes {
    size_t n;
    struct dpk_timed_shape *shape;
    char machine[160];
};
/* Time every distinct call at the model's default size, with guidance, with the weights of the file
 * and with quantized ones, and decide: a layer stays quantized only if its call gets faster by a
 * tenth or more. Decisions, reasons and sizes of `layers` change; reasons live as long as *t. */
int dpk_measure_shapes(struct dpk_timed_shapes *t, const char *path, struct dpk_layers *layers,
                       const struct dpk_scheme *scheme, const struct dpk_measure_options *options,
                       dpk_error *err);
void dpk_timed_shapes_free(struct dpk_timed_shapes *t); /* also of a zeroed struct */

#endif
