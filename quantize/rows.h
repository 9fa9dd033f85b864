/* Rows of every weight's matrix product, from the programs and the model's defaults. */
#ifndef DPK_ROWS_H
#define DPK_ROWS_H

#include "../formats/dpk.h"

/* rows [f->n_tensors]: for each weight of a linear, the rows of its input; of a convolution, its
 * output pixels; for the largest of its uses, when a picture of the model's default size is made
 * with `batch` rows of the network (2: guidance; decoding is one picture at a time). 0 for other
 * tensors and where inputs of a program are not known.
 * Errors: DPK_EFORMAT (a shape rule is broken, bad metadata), DPK_ENOMEM. */
int dpk_rows_infer(const struct dpk_file *f, int32_t batch, uint64_t *rows, dpk_error *err);

#endif
