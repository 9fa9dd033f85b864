/* The numbers of LoRA. */
#include "lora_impl.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 32 };

/* n elements from `first` on; what is not finite is an error here, where it can be told from the
 * model's own. */
static int read_finite(const struct dpk_lora_delta *d, int kind, uint64_t first, size_t n,
                       float *dst, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_tensor_info *info = d->part[kind];
    DPK_TRY(dpk_tensors_read_f32(d->tensors, info, first, n, dst, err));
    for (size_t i = 0; i < n; i++)
        if (!isfinite(dst[i]))
            DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s: %g at element %llu, wanted finite numbers",
                     dpk_tensors_file(d->tensors, 0), info->name, (double)dst[i],
                     (unsigned long long)(first + i));
done:
    return rc;
}

/* Tucker: down[i, c, t] = sum over j of mid[i, j, t] flat[j, c]. */
static int add_core(struct dpk_lora_delta *d, dpk_error *err) {
    int rc = DPK_OK;
    const size_t rank = (size_t)d->rank;
    const size_t taps = (size_t)(d->part[DPK_LORA_MID]->n_elements / (d->rank * d->rank));
    const size_t c = (size_t)d->row / taps;
    float *mid = malloc(rank * rank * taps * sizeof *mid);
    float *flat = malloc(rank * c * sizeof *flat);
    if (!mid || !flat) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", d->target->name);
    DPK_TRY(read_finite(d, DPK_LORA_MID, 0, rank * rank * taps, mid, err));
    DPK_TRY(read_finite(d, DPK_LORA_DOWN, 0, rank * c, flat, err));
    for (size_t i = 0; i < rank; i++)
        for (size_t k = 0; k < c; k++)
            for (size_t t = 0; t < taps; t++) {
                float sum = 0.0f;
                for (size_t j = 0; j < rank; j++)
                    sum += mid[(i * rank + j) * taps + t] * flat[j * c + k];
                d->down[(i * c + k) * taps + t] = sum;
            }
done:
    free(mid);
    free(flat);
    return rc;
}

/* Begin to use d->down. */
static int acquire(struct dpk_lora_delta *d, dpk_error *err) {
    int rc = DPK_OK;
    pthread_mutex_lock(&d->lock);
    if (!d->down) {
        const size_t n = (size_t)(d->rank * d->row);
        d->down = malloc(n * sizeof *d->down);
        if (!d->down) DPK_FAIL(err, DPK_ENOMEM, "out of memory for a LoRA of %s", d->target->name);
        DPK_TRY(d->part[DPK_LORA_MID] ? add_core(d, err)
                                      : read_finite(d, DPK_LORA_DOWN, 0, n, d->down, err));
    }
    d->users++;
done:
    if (rc != DPK_OK) free(d->down), d->down = NULL;
    pthread_mutex_unlock(&d->lock);
    return rc;
}

/* When all rows were read it is not needed any more: so there is never more of it than of layers
 * that are being read. */
static void release(struct dpk_lora_delta *d, uint64_t count) {
    pthread_mutex_lock(&d->lock);
    d->users--;
    d->n_read += count;
    if (d->users == 0 && d->n_read >= d->rows) {
        free(d->down);
        d->down = NULL;
        d->n_read = 0;
    }
    pthread_mutex_unlock(&d->lock);
}

/* w [n, row] += s up [n, rank] down [rank, row]. A block of columns at a time: that much of down
 * stays in the cache for all rows, and gcc -O2 makes vectors of loops of fixed length. */
static void add_product(float *restrict w, const float *restrict up, const float *restrict down,
                        size_t n, size_t rank, size_t row, float s) {
    size_t c = 0;
    for (; c + BLOCK <= row; c += BLOCK)
        for (size_t i = 0; i < n; i++) {
            float sum[BLOCK] = {0};
            for (size_t j = 0; j < rank; j++) {
                const float u = up[i * rank + j];
                const float *from = down + j * row + c;
                for (size_t k = 0; k < BLOCK; k++) sum[k] += u * from[k];
            }
            float *to = w + i * row + c;
            for (size_t k = 0; k < BLOCK; k++) to[k] += s * sum[k];
        }
    for (; c < row; c++)
        for (size_t i = 0; i < n; i++) {
            float sum = 0.0f;
            for (size_t j = 0; j < rank; j++) sum += up[i * rank + j] * down[j * row + c];
            w[i * row + c] += s * sum;
        }
}

/* DoRA: each row gets the length that was trained for it. A row of zeros has no direction. */
static void set_lengths(float *w, const float *lengths, size_t n, size_t row) {
    for (size_t i = 0; i < n; i++) {
        double norm = 0.0;
        for (size_t k = 0; k < row; k++) norm += (double)w[i * row + k] * (double)w[i * row + k];
        const double factor = norm > 0.0 ? (double)lengths[i] / sqrt(norm) : 0.0;
        for (size_t k = 0; k < row; k++) w[i * row + k] = (float)(factor * (double)w[i * row + k]);
    }
}

int dpk_lora_delta_apply(struct dpk_lora_delta *d, uint64_t first, uint64_t count, float *w,
                         dpk_error *err) {
    int rc = DPK_OK;
    bool acquired = false;
    const int length = d->part[DPK_LORA_MAGNITUDE] ? DPK_LORA_MAGNITUDE : DPK_LORA_DORA;
    float *up = malloc((size_t)(count * (d->rank + 1)) * sizeof *up), *lengths;
    if (!up) DPK_FAIL(err, DPK_ENOMEM, "out of memory for a LoRA of %s", d->target->name);
    lengths = up + count * d->rank;
    DPK_TRY(acquire(d, err));
    acquired = true;
    DPK_TRY(read_finite(d, DPK_LORA_UP, first * d->rank, (size_t)(count * d->rank), up, err));
    add_product(w, up, d->down, (size_t)count, (size_t)d->rank, (size_t)d->row, (float)d->scale);
    if (d->part[length]) {
        DPK_TRY(read_finite(d, length, first, (size_t)count, lengths, err));
        set_lengths(w, lengths, (size_t)count, (size_t)d->row);
    }
done:
    if (acquired) release(d, count);
    free(up);
    return rc;
}
