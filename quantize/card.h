/* One run of diffpak-quantize: decide, try, choose, measure, write. */
#ifndef DPK_CARD_H
#define DPK_CARD_H

#include "report.h"

struct dpk_card_options {
    const char *input, *output; /* output NULL: nothing is written */
    const struct dpk_scheme *scheme;
    const struct dpk_filter *filter;
    bool measure;       /* the whole model, for the report */
    double max_error;   /* of the latent; negative: any. Also makes it measure */
    bool sensitivity;   /* rank the layers */
    const char *budget; /* NULL, or as dpk_budget_parse takes it: rank and choose */
    struct dpk_measure_options how;
    int (*progress)(void *arg, uint64_t done, uint64_t total); /* of writing; as dpk_rewrite has */
    void *progress_arg;
};

/* What came of it. */
struct dpk_card {
    struct dpk_layers layers;
    struct dpk_report_subject subject; /* points into this struct */
    struct dpk_measure measure;
    struct dpk_alone alone;
    struct dpk_timed_shapes timed;
};

/* f: the input, open. If something is to be measured, the quantized model is written under a
 * temporary name first (beside the output, or without one in $TMPDIR or /tmp), run, and written
 * again with what was found in its metadata:
 *   quant.card.pictures   "2 of 128x128, 8 steps, EulerDiscreteScheduler"
 *   quant.card.latent_error, quant.card.psnr, quant.card.ssim
 *   quant.card.worst      layer with the largest output error, and that
 *   quant.budget          as it was asked for
 *   quant.auto.NNN        filter auto: a shape, its times, the decision; quant.auto.machine
 * Errors: DPK_EARG (the latent's error is over the limit: says both; a bad budget), and those of
 * dpk_rewrite and of measuring. After an error there is no output. */
int dpk_card_make(struct dpk_card *c, const struct dpk_file *f,
                  const struct dpk_card_options *options, dpk_error *err);
void dpk_card_free(struct dpk_card *c); /* also of a zeroed struct */

#endif
