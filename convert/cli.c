/* diffpak-convert: the command line. */
#include "conversion.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { GOOD = 0, FAILED = 1, USAGE = 2 }; /* exit statuses */

static const char help[] =
    "diffpak-convert SOURCE -o OUT.dpk [options]\n"
    "\n"
    "Packs a text-to-image model for diffpak. SOURCE is a folder in diffusers layout, a tar or "
    "zip\n"
    "archive of one (read in place), or a checkpoint in one .safetensors file.\n"
    "\n"
    "  -o, --output OUT.dpk   the file to write; it appears when it is complete\n"
    "  --dtype TYPE           bf16 (default), f16 or f32: type of the matrices\n"
    "  --variant NAME         take files such as model.NAME.safetensors, where there are any\n"
    "  --vae DIR              take the autoencoder from this folder or file\n"
    "  --lora FILE[:SCALE]    merge a LoRA, with this strength (default 1); may be repeated\n"
    "  --lora-partial         leave out tensors of LoRA files that match no layer\n"
    "  --config DIR           of a checkpoint: folder (diffusers layout) with its tokenizers, and\n"
    "                         with configs where those of the base model do not fit\n"
    "  --ema                  of a checkpoint: take the running averages of the weights\n"
    "  --random-weights SEED  draw the weights; SOURCE needs only its configs and tokenizers\n"
    "  -q, --quiet            print nothing but errors\n"
    "  --json                 print the summary as JSON\n"
    "  --help, --version\n"
    "\n"
    "Exit status: 0 good, 1 failed (one line says why), 2 wrong usage.\n";

enum { MAX_LORAS = 64 };

struct arguments {
    struct dpk_convert_options convert;
    struct dpk_lora_file loras[MAX_LORAS];
    char *lora_paths[MAX_LORAS];
    bool lora_partial;
    const char *output;
    bool quiet, json;
};

static int usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int usage(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("diffpak-convert: ", stderr);
    vfprintf(stderr, format, args);
    fputs(" (see diffpak-convert --help)\n", stderr);
    va_end(args);
    return USAGE;
}

static int set_dtype(struct arguments *a, const char *value) {
    static const int types[] = {DPK_BF16, DPK_F16, DPK_F32};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(value, dpk_dtype_name(types[i])) == 0) return a->convert.dtype = types[i], GOOD;
    return usage("--dtype %s: want bf16, f16 or f32", value);
}

static int set_seed(struct arguments *a, const char *value) {
    char *end;
    errno = 0;
    a->convert.seed = strtoull(value, &end, 0);
    a->convert.random = true;
    if (value[0] >= '0' && value[0] <= '9' && !*end && errno == 0) return GOOD;
    return usage("--random-weights %s: want a whole number", value);
}

/* FILE or FILE:SCALE; a colon that no number follows belongs to the name. */
static int add_lora(struct arguments *a, const char *value) {
    const int i = a->convert.n_loras;
    const char *colon = strrchr(value, ':');
    char *end;
    if (i == MAX_LORAS) return usage("--lora: more than %d", MAX_LORAS);
    char *path = strdup(value);
    if (!path) return usage("out of memory");
    a->lora_paths[i] = path;
    a->loras[i] = (struct dpk_lora_file){.path = path, .scale = 1.0};
    a->convert.n_loras = i + 1;
    if (!colon || !colon[1] || strspn(colon + 1, "+-.0123456789eE") != strlen(colon + 1))
        return GOOD;
    a->loras[i].scale = strtod(colon + 1, &end);
    if (*end || !isfinite(a->loras[i].scale))
        return usage("--lora %s: want FILE or FILE:SCALE", value);
    path[colon - value] = 0;
    return GOOD;
}

static int set_value(struct arguments *a, const char *option, const char *value) {
    if (strcmp(option, "--lora") == 0) return add_lora(a, value);
    if (strcmp(option, "--dtype") == 0) return set_dtype(a, value);
    if (strcmp(option, "--random-weights") == 0) return set_seed(a, value);
    if (strcmp(option, "--variant") == 0) a->convert.variant = value;
    else if (strcmp(option, "--vae") == 0) a->convert.vae = value;
    else if (strcmp(option, "--config") == 0) a->convert.configs = value;
    else a->output = value;
    return GOOD;
}

/* The name of an option that takes a value, or NULL. *value is set if it stands in the same
 * argument ("--dtype=f16"). */
static const char *valued_option(const char *arg, const char **value) {
    static const char *const names[] = {"-o",    "--output", "--dtype",  "--variant",
                                        "--vae", "--lora",   "--config", "--random-weights",
                                        NULL};
    *value = NULL;
    for (int i = 0; names[i]; i++) {
        const size_t n = strlen(names[i]);
        if (strncmp(arg, names[i], n) != 0) continue;
        if (arg[n] == '=' && i > 0) *value = arg + n + 1;
        if (!arg[n] || *value) return names[i];
    }
    return NULL;
}

static int parse(int argc, char **argv, struct arguments *a) {
    bool options = true;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value;
        if (!options || arg[0] != '-' || !arg[1]) {
            if (a->convert.source) return usage("one argument too many: %s", arg);
            a->convert.source = arg;
        } else if (strcmp(arg, "--") == 0) {
            options = false;
        } else if (strcmp(arg, "-q") == 0 || strcmp(arg, "--quiet") == 0) {
            a->quiet = true;
        } else if (strcmp(arg, "--json") == 0) {
            a->json = true;
        } else if (strcmp(arg, "--ema") == 0) {
            a->convert.ema = true;
        } else if (strcmp(arg, "--lora-partial") == 0) {
            a->lora_partial = true;
        } else {
            const char *option = valued_option(arg, &value);
            if (!option) return usage("unknown option %s", arg);
            if (!value && i + 1 == argc) return usage("%s needs a value", arg);
            if (set_value(a, option, value ? value : argv[++i]) != GOOD) return USAGE;
        }
    }
    if (!a->convert.source) return usage("SOURCE is missing");
    if (!a->output) return usage("-o OUT.dpk is missing");
    for (int i = 0; i < a->convert.n_loras; i++) a->loras[i].partial = a->lora_partial;
    a->convert.loras = a->loras;
    return GOOD;
}

/* ---- Progress -------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct bar {
    bool on;
    int shown; /* thousandths */
    double started;
};

static int show_progress(void *arg, uint64_t done, uint64_t total) {
    enum { WIDTH = 40 };
    struct bar *bar = arg;
    const int now = (int)((double)done * 1000.0 / (double)total);
    if (bar->on && now != bar->shown) {
        const double s = seconds() - bar->started;
        const double mb_per_s = s > 0 ? (double)done / 1e6 / s : 0.0;
        char line[WIDTH + 1];
        memset(line, '.', WIDTH);
        memset(line, '#', (size_t)(now * WIDTH / 1000));
        line[WIDTH] = 0;
        bar->shown = now;
        fprintf(stderr, "\r[%s] %3d %%  %7.1f MB  %6.0f MB/s", line, now / 10, (double)done / 1e6,
                mb_per_s);
        fflush(stderr);
    }
    return interrupted;
}

/* ---- Summary --------------------------------------------------------------------------------- */

static void print_json_string(const char *s) {
    putchar('"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') printf("\\%c", *s);
        else if ((unsigned char)*s < 0x20) printf("\\u%04x", (unsigned)*s);
        else putchar(*s);
    }
    putchar('"');
}

static void print_summary(const struct arguments *a, const struct dpk_conversion *c, double s) {
    const struct dpk_builder *b = dpk_conversion_builder(c);
    const struct dpk_component *part;
    struct stat st;
    const double bytes = stat(a->output, &st) == 0 ? (double)st.st_size : 0.0;
    const double rate = s > 0 ? bytes / 1e6 / s : 0.0;
    if (!a->json) {
        printf("%s: %.1f MB, %s, %zu tensors, %zu operators, %.1f s, %.0f MB/s\n", a->output,
               bytes / 1e6, dpk_dtype_name(a->convert.dtype), dpk_builder_n_weights(b),
               dpk_builder_n_ops(b), s, rate);
        return;
    }
    printf("{\"output\":");
    print_json_string(a->output);
    printf(",\"bytes\":%.0f,\"dtype\":\"%s\",\"tensors\":%zu,\"operators\":%zu,\"seconds\":%.3f,"
           "\"mb_per_s\":%.1f,\"parameters\":{",
           bytes, dpk_dtype_name(a->convert.dtype), dpk_builder_n_weights(b), dpk_builder_n_ops(b),
           s, rate);
    for (int i = 0; (part = dpk_conversion_component(c, i)); i++)
        printf("%s\"%s\":%" PRIu64, i ? "," : "", part->prefix, part->n_params);
    printf("}}\n");
}

static int convert(const struct arguments *a) {
    struct dpk_conversion *c = NULL;
    dpk_error err;
    struct bar bar = {.on = !a->quiet && isatty(2), .shown = -1, .started = seconds()};
    int rc = dpk_conversion_open(&c, &a->convert, &err);
    if (rc == DPK_OK)
        rc = dpk_builder_write(dpk_conversion_builder(c), a->output, 0, show_progress, &bar, &err);
    if (bar.shown >= 0) fprintf(stderr, "\r\x1b[K");
    if (rc != DPK_OK) fprintf(stderr, "diffpak-convert: %s\n", err.msg);
    else if (!a->quiet || a->json) print_summary(a, c, seconds() - bar.started);
    dpk_conversion_close(c);
    return rc == DPK_OK ? GOOD : FAILED;
}

int main(int argc, char **argv) {
    struct arguments a = {.convert = {.dtype = DPK_BF16}};
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(help, stdout);
            return GOOD;
        }
        if (strcmp(argv[i], "--version") == 0) {
            printf("diffpak-convert %s\n", DPK_CONVERT_VERSION);
            return GOOD;
        }
    }
    int status = parse(argc, argv, &a);
    if (status != GOOD) goto done;
    const struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a size limit is an error of write() */
    status = convert(&a);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fputs("diffpak-convert: standard output could not be written\n", stderr);
        status = FAILED;
    }
done:
    for (int i = 0; i < a.convert.n_loras; i++) free(a.lora_paths[i]);
    return status;
}
