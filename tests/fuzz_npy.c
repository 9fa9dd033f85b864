/* NPY files, read as what they are, as floats and as integers. */
#include "support_fuzz.h"

#include "../formats/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    const char *path = fuzz_file(0, data, n_bytes);
    for (int type = 0; type <= DPK_NPY_I32; type++) {
        struct dpk_npy a = {0};
        dpk_error err;
        int rc = dpk_npy_read(&a, path, type, 1 << 20, &err);
        fuzz_check_error(rc, &err);
        size_t n = 1;
        for (int i = 0; rc == DPK_OK && i < a.rank; i++) n *= a.dim[i];
        fuzz_require(rc != DPK_OK || (n == a.n && n <= 1 << 18), "the shape is that of the data");
        fuzz_require(rc != DPK_OK || type == 0 || a.type == type, "the type asked for");
        volatile uint8_t sum = 0; /* every byte is there */
        for (size_t i = 0; rc == DPK_OK && i < a.n * 4; i++) sum ^= ((const uint8_t *)a.data)[i];
        (void)sum;
        dpk_npy_free(&a);
    }
    return 0;
}
