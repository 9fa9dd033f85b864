/* Files of `generate --prompts`. Byte 0: the shard; the rest is the file. What is wrong is said in
 * one line, what is right in none. */
#include "support_fuzz.h"

#include "../formats/utf8.h"
#include "../runtime/cli_batch.h"

#include <stdlib.h>
#include <string.h>

/* dpk_cli_batch_read, what it prints into *said, to be freed. */
static int read_quietly(struct dpk_cli_batch *b, const char *path, const char *shard,
                        const struct dpk_cli_picture *defaults, char **said) {
    FILE *terminal = stderr;
    size_t n;
    stderr = open_memstream(said, &n);
    if (!stderr) abort();
    int status = dpk_cli_batch_read(b, path, shard, defaults, "generate");
    fclose(stderr);
    stderr = terminal;
    return status;
}

static void check_message(int status, const char *said) {
    const size_t n = strlen(said);
    if (status == CLI_GOOD) {
        fuzz_require(n == 0, "nothing is said of a good file");
        return;
    }
    fuzz_require(n > 1 && said[n - 1] == '\n' && dpk_utf8_check(said, n) == n, "a line of UTF-8");
    for (size_t i = 0; i + 1 < n; i++)
        fuzz_require((unsigned char)said[i] >= 0x20 && said[i] != 0x7f, "no control characters");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *const shards[] = {NULL, "1/1", "1/2", "2/2", "3/2", "0/1", "7", "2/3"};
    struct fuzz_bytes in = {data, n_bytes};
    const char *shard = shards[fuzz_take(&in, 1) & 7];
    struct dpk_cli_picture defaults = dpk_cli_picture_default();
    struct dpk_cli_batch b = {0};
    char *said = NULL;
    int status = read_quietly(&b, fuzz_file(0, in.at, in.n), shard, &defaults, &said);
    check_message(status, said);
    for (size_t i = 0; status == CLI_GOOD && i < b.n; i++) {
        const struct dpk_cli_line *line = &b.lines[i];
        fuzz_require(line->index >= 1 && line->index <= b.n_pictures, "its number of all");
        fuzz_require(line->index % b.n_shards == b.shard % b.n_shards, "a picture of this shard");
        fuzz_require(line->picture.prompts.n <= 1 && line->picture.seeds.n <= 1, "one picture");
    }
    dpk_cli_batch_free(&b);
    dpk_cli_picture_free(&defaults);
    free(said);
    return 0;
}
