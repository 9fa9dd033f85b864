/* Runs a fuzz target without libFuzzer: replay_NAME [FILE|FOLDER]... replays files (default: those
 * of tests/corpus/NAME) as they are, then DPK_FUZZ_ROUNDS (default 200) mutations of each, the same
 * ones every time, but stops after ten seconds of that. Prints totals like a unit test. A hang is
 * an error after 60 seconds. */
#include "support_fuzz.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BYTES = 1 << 20 };

static char current[1200]; /* what runs now */

static void on_alarm(int number) {
    (void)number;
    ssize_t n = write(2, current, strlen(current));
    n += write(2, "\nERROR: it hangs\n", 17);
    (void)n;
    _exit(1);
}

/* Says which input it was; AddressSanitizer has said what happened. */
static void on_abort(int number) {
    ssize_t n = write(2, "ERROR: ", 7);
    n += write(2, current, strlen(current));
    n += write(2, "\n", 1);
    (void)n;
    signal(number, SIG_DFL);
}

static uint64_t random_state;
static uint64_t draw(void) { /* splitmix64 */
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A few changes: bytes, bits, words of interest, a piece removed, doubled or cut off. */
static size_t mutate(uint8_t *data, size_t n, size_t cap) {
    static const uint32_t words[] = {0,       1,          2,          0x7f,       0x80,
                                     0xff,    0x100,      0x7fff,     0x8000,     0xffff,
                                     0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 0x40000000};
    for (uint64_t k = draw() % 4 + 1; k > 0 && n > 0; k--) {
        size_t at = (size_t)(draw() % n), length = (size_t)(draw() % 16 + 1);
        if (length > n - at) length = n - at;
        switch (draw() % 7) {
        case 0:
            data[at] = (uint8_t)draw();
            break;
        case 1:
            data[at] ^= (uint8_t)(1u << draw() % 8);
            break;
        case 2: {
            uint32_t w = words[draw() % (sizeof words / sizeof *words)];
            memcpy(data + at, &w, length < 4 ? length : 4);
            break;
        }
        case 3:
            memmove(data + at, data + at + length, n - at - length);
            n -= length;
            break;
        case 4:
            if (n + length > cap) break;
            memmove(data + at + length, data + at, n - at);
            n += length;
            break;
        case 5:
            n = draw() % 4 ? n : at;
            break;
        default:
            for (size_t i = 0; i < length; i++) data[at + i] = (uint8_t)draw();
        }
    }
    return n;
}

static unsigned long n_files, n_runs;

static void run(const uint8_t *data, size_t n) {
    uint8_t *exact = malloc(n ? n : 1); /* so that a byte too far is seen */
    fuzz_require(exact != NULL, "memory");
    memcpy(exact, data, n);
    alarm(60);
    LLVMFuzzerTestOneInput(exact, n);
    alarm(0);
    free(exact);
    n_runs++;
}

enum { MAX_FILES = 1000, SECONDS = 10 };

static struct {
    char *path;
    uint8_t *data;
    size_t n;
} files[MAX_FILES];

static void add_file(const char *path) {
    if (n_files == MAX_FILES) return;
    files[n_files].path = strdup(path);
    files[n_files].data = fuzz_load(path, &files[n_files].n);
    n_files++;
}

static int not_dots(const struct dirent *d) { return d->d_name[0] != '.'; }

static void add(const char *path) {
    struct dirent **list;
    struct stat st;
    if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
        add_file(path);
        return;
    }
    int n = scandir(path, &list, not_dots, alphasort);
    for (int i = 0; i < n; i++) {
        char inner[1100];
        snprintf(inner, sizeof inner, "%s/%s", path, list[i]->d_name);
        add_file(inner);
        free(list[i]);
    }
    if (n >= 0) free(list);
}

/* Mutation `round` of each file, round after round until the time is over. */
static void run_mutations(unsigned rounds) {
    static uint8_t changed[MAX_BYTES];
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (unsigned round = 0; round < rounds; round++)
        for (size_t i = 0; i < n_files; i++) {
            const size_t n = files[i].n;
            if (n == 0 || n > sizeof changed) continue;
            snprintf(current, sizeof current, "%s, mutation %u", files[i].path, round);
            random_state = round + ((uint64_t)n << 32);
            memcpy(changed, files[i].data, n);
            run(changed, mutate(changed, n, sizeof changed));
            clock_gettime(CLOCK_MONOTONIC, &now);
            if (now.tv_sec - start.tv_sec >= SECONDS) return;
        }
}

int main(int argc, char **argv) {
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    const char *rounds = getenv("DPK_FUZZ_ROUNDS");
    char folder[600];
    snprintf(folder, sizeof folder, "tests/corpus/%s",
             strchr(name, '_') ? strchr(name, '_') + 1 : name);
    signal(SIGALRM, on_alarm);
    signal(SIGABRT, on_abort);
    if (argc == 1) add(folder);
    for (int i = 1; i < argc; i++) add(argv[i]);
    for (size_t i = 0; i < n_files; i++) {
        snprintf(current, sizeof current, "%s", files[i].path);
        run(files[i].data, files[i].n);
    }
    run_mutations(rounds ? (unsigned)strtoul(rounds, NULL, 10) : 200);
    for (size_t i = 0; i < n_files; i++) free(files[i].path), free(files[i].data);
    printf("%lu files, %lu inputs\n", n_files, n_runs);
    if (n_files) printf("[  PASSED  ] %lu test(s).\n", n_files);
    return n_files == 0;
}
