/* Model folders. Byte 0 chooses a model and one of its JSON or text files (configs, shard index,
 * tokenizer files), bit 7 drawn weights; the rest is what that file says instead. Then the whole
 * model is opened for conversion: recognised, read, planned. */
#include "support_fuzz.h"

#include "../convert/conversion.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const files[][2] = {
    {"tiny-sd15", "model_index.json"},
    {"tiny-sd15", "unet/config.json"},
    {"tiny-sd15", "vae/config.json"},
    {"tiny-sd15", "text_encoder/config.json"},
    {"tiny-sd15", "scheduler/scheduler_config.json"},
    {"tiny-sd15", "tokenizer/vocab.json"},
    {"tiny-sd15", "tokenizer/merges.txt"},
    {"tiny-sd15", "tokenizer/tokenizer_config.json"},
    {"tiny-sd15", "tokenizer/special_tokens_map.json"},
    {"tiny-sdxl", "model_index.json"},
    {"tiny-sdxl", "unet/config.json"},
    {"tiny-sdxl", "text_encoder_2/config.json"},
    {"tiny-pixart", "model_index.json"},
    {"tiny-pixart", "transformer/config.json"},
    {"tiny-pixart", "transformer/diffusion_pytorch_model.safetensors.index.json"},
    {"tiny-pixart", "text_encoder/config.json"},
    {"tiny-pixart", "text_encoder/model.safetensors.index.json"},
    {"tiny-pixart", "tokenizer/added_tokens.json"},
    {"tiny-pixart", "tokenizer/spiece.model"},
};
enum { N_FILES = sizeof files / sizeof *files };

static char root[64];

static void remove_root(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    if (system(command)) perror(root);
}

/* A copy of each model, of links, but for the file to change. */
static void make_folders(void) {
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(root, sizeof root, "%s/diffpak-fuzz-XXXXXX", base);
    fuzz_require(mkdtemp(root) != NULL, root);
    atexit(remove_root);
    for (int i = 0; i < N_FILES; i++) {
        char command[600];
        snprintf(command, sizeof command, "cp -rs \"$PWD/tests/data/%s\" '%s/%d' && rm '%s/%d/%s'",
                 files[i][0], root, i, root, i, files[i][1]);
        fuzz_require(system(command) == 0, command);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes == 0) return 0;
    if (!root[0]) make_folders();
    int which = (data[0] & 0x7f) % N_FILES;
    char path[256], folder[128];
    snprintf(folder, sizeof folder, "%s/%d", root, which);
    snprintf(path, sizeof path, "%s/%s", folder, files[which][1]);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    fuzz_require(fd >= 0 && write(fd, data + 1, n_bytes - 1) == (ssize_t)n_bytes - 1, path);
    close(fd);
    struct dpk_conversion *c = NULL;
    dpk_error err;
    const struct dpk_convert_options options = {
        .source = folder, .dtype = DPK_BF16, .random = (data[0] & 0x80) != 0, .seed = 1};
    int rc = dpk_conversion_open(&c, &options, &err);
    fuzz_check_error(rc, &err);
    dpk_conversion_close(c);
    return 0;
}
