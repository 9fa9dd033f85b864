/* NPY arrays (NumPy's format, versions 1 and 2), C order, little-endian. Needs libc only. */
#ifndef DPK_NPY_H
#define DPK_NPY_H

#include "dpk_error.h"

#include <stddef.h>
#include <stdint.h>

enum { DPK_NPY_MAX_RANK = 8 };
enum dpk_npy_type { DPK_NPY_F32 = 1, DPK_NPY_I32 = 2 };

struct dpk_npy {
    int type; /* enum dpk_npy_type */
    int rank; /* 0 .. DPK_NPY_MAX_RANK */
    size_t dim[DPK_NPY_MAX_RANK];
    size_t n;   /* elements */
    void *data; /* owned: float[n] or int32_t[n] */
};

/* Read a file as `type` (DPK_NPY_F32, DPK_NPY_I32, or 0 for what suits the file: floats as F32,
 * integers as I32). Files hold f4, f8, f2, i4 or i8; integers convert to F32 by rounding; to I32
 * only if each fits; floats never convert to I32. Fortran order with more than one dimension over 1
 * and big-endian files are DPK_EUNSUPPORTED. More than max_bytes of data (after conversion):
 * DPK_EARG. The data must end the file. */
int dpk_npy_read(struct dpk_npy *a, const char *path, int type, size_t max_bytes, dpk_error *err);
void dpk_npy_free(struct dpk_npy *a); /* also of a zeroed struct */

/* Write data [dim[0], ..., dim[rank-1]] as version 1, byte for byte as numpy.save does. The file
 * appears whole under its name or not at all (temporary file beside it, fsync, rename). */
int dpk_npy_write(const char *path, int type, int rank, const size_t *dim, const void *data,
                  dpk_error *err);

#endif
