/* What the files of measuring share. Others use measure.h. */
#ifndef DPK_MEASURE_IMPL_H
#define DPK_MEASURE_IMPL_H

#include "measure.h"

#include "../runtime/job.h"

/* ---- measure_quality.c --------------------------------------------------------------------- */

/* Sums over n values: *signal += a^2, *noise += (b - a)^2. */
void dpk_quality_add(const float *a, const float *b, size_t n, double *signal, double *noise);
/* The same of n values of DPK_F32 or DPK_BF16. */
void dpk_quality_add_typed(int dtype, const void *a, const void *b, size_t n, double *signal,
                           double *noise);
/* Mean square difference of two pictures [n], 0..255. */
double dpk_quality_mse(const uint8_t *a, const uint8_t *b, size_t n);
/* Peak signal to noise ratio for values from 0 to peak. */
double dpk_quality_psnr(double mse, double peak);
/* Structural similarity of the luma of two pictures [h,w,3] (Wang, Bovik, Sheikh, Simoncelli 2004):
 * Gaussian windows of 11 x 11 (sigma 1.5), those that lie wholly inside; of smaller pictures the
 * largest odd window that fits. Errors: DPK_ENOMEM. */
int dpk_quality_ssim(const uint8_t *a, const uint8_t *b, uint32_t w, uint32_t h, double *ssim,
                     dpk_error *err);

/* ---- measure.c ----------------------------------------------------------------------------- */

/* A file and the session that runs it. */
struct dpk_side {
    dpk_model *model;
    dpk_session *session;
};
int dpk_side_open(struct dpk_side *s, const char *path, int threads, dpk_error *err);
void dpk_side_close(struct dpk_side *s); /* also of a zeroed struct */

/* The two files must run the same operators. Errors: DPK_EARG. */
int dpk_side_check_pair(const struct dpk_side *before, const struct dpk_side *after,
                        dpk_error *err);
/* A run of one prompt with the options' steps and size; one picture. */
int dpk_side_params(const struct dpk_side *s, const struct dpk_measure_options *options,
                    uint32_t prompt, dpk_params *params, dpk_error *err);
/* The tensor of the operator's quantizable weight, or DPK_NONE. */
uint32_t dpk_side_weight(const struct dpk_op *op);
double dpk_side_seconds(void);
/* Layers by the tensor they are: [n_tensors], DPK_NONE where none. NULL: no memory. */
uint32_t *dpk_side_layer_of(const struct dpk_file *f, const struct dpk_layers *layers);

/* ---- measure_layers.c ---------------------------------------------------------------------- */

/* Compares old and new weight of each operator behind a running job. */
struct dpk_probe {
    const struct dpk_plan *after; /* the same stages, planned on the quantized file */
    const uint32_t *layer_of;
    struct dpk_measure_layer *layer;
    void *a, *b, *scratch; /* owned: two results and the operators' scratch */
    dpk_error err;         /* why the hook stopped the run, if it did */
    int rc;
};
int dpk_probe_make(struct dpk_probe *p, const struct dpk_plan *before, const struct dpk_plan *after,
                   const uint32_t *layer_of, struct dpk_measure_layer *layer, dpk_error *err);
void dpk_probe_free(struct dpk_probe *p);
/* For struct dpk_exec_hook; arg is the probe. */
int dpk_probe_after(void *arg, const struct dpk_plan *plan, uint32_t stage, uint32_t op,
                    double share);

#endif
