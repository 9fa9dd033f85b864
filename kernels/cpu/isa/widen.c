/* Rows of bfloat16 to float32. */
#include "isa.h"
#include "vec.h"

void DPK_LEVEL_FN(widen)(float *dst, const uint16_t *src, size_t n) {
    size_t i = 0;
    for (; i + VF_N <= n; i += VF_N) vf_store(dst + i, vf_load_bf16(src + i));
    if (i < n) vf_storen(dst + i, vf_loadn_bf16(src + i, (int)(n - i)), (int)(n - i));
}
