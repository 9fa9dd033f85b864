/* diffpak-quantize: the command line. */
#include "../formats/fail.h"
#include "report.h"
#include "rewrite.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION "0.1.0"

enum { GOOD = 0, FAILED = 1, USAGE = 2 }; /* exit statuses */

static const char help[] =
    "diffpak-quantize IN.dpk -o OUT.dpk --scheme SCHEME [options]\n"
    "\n"
    "Writes a copy of a packed model with its weights in 8 or 4 bits.\n"
    "\n"
    "  -o, --output OUT.dpk   the file to write; it appears when it is complete\n"
    "  --scheme SCHEME        int8-dynamic: weights and, at run time, activations in 8 bits\n"
    "                         int8-weight: weights in 8 bits, a scale a row\n"
    "                         int4-weight[:GROUP]: weights in 4 bits, a scale for GROUP inputs\n"
    "                         (32, 64 or 128; default 64; less where it does not divide a layer)\n"
    "  --filter NAME|FILE     which layers: diffusion-fast (default), all, none, or a file\n"
    "  --convention NAME      rule of 8-bit scales: diffusion-fast (default) or torchao\n"
    "  --dry-run              list every layer and what would happen to it; write nothing\n"
    "  --report FILE.json     write what was done to each layer, and its error\n"
    "  --json                 print JSON: the list with --dry-run, else the report\n"
    "  -q, --quiet            print nothing but errors and what was asked for\n"
    "  --help, --version\n"
    "\n"
    "A filter file has one rule a line, the first that matches a layer decides; # is a comment:\n"
    "  skip unet.down_blocks.*.proj_in     a pattern of names (* and ?)\n"
    "  skip 640 1280                       a shape: inputs and outputs\n"
    "  skip *.to_kv in>=2048 rows<100      all of several; in, out, rows, "
    "kind=linear|conv1x1|conv\n"
    "  quantize unet.*                     signs: = != < <= > >= and % (a multiple of)\n"
    "  min_in_features 17                  skip layers with fewer inputs\n"
    "Layers that no rule matches are quantized; end with \"skip *\" for the opposite.\n"
    "\n"
    "Exit status: 0 good, 1 failed (one line says why), 2 wrong usage.\n";

struct arguments {
    const char *input, *output, *filter, *report;
    struct dpk_scheme scheme;
    bool has_scheme, dry_run, json, quiet;
};

static int usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int usage(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("diffpak-quantize: ", stderr);
    vfprintf(stderr, format, args);
    fputs(" (see diffpak-quantize --help)\n", stderr);
    va_end(args);
    return USAGE;
}

/* ---- Arguments ------------------------------------------------------------------------------- */

static int set_value(struct arguments *a, const char *option, const char *value) {
    dpk_error err;
    if (strcmp(option, "--scheme") == 0) {
        if (dpk_scheme_parse(&a->scheme, value, &err) != DPK_OK) return usage("%s", err.msg);
        a->has_scheme = true;
    } else if (strcmp(option, "--convention") == 0) {
        if (strcmp(value, "torchao") == 0) a->scheme.convention = DPK_CONVENTION_TORCHAO;
        else if (strcmp(value, "diffusion-fast") == 0)
            a->scheme.convention = DPK_CONVENTION_DIFFUSION_FAST;
        else return usage("--convention %s: want diffusion-fast or torchao", value);
    } else if (strcmp(option, "--filter") == 0) {
        a->filter = value;
    } else if (strcmp(option, "--report") == 0) {
        const size_t n = strlen(value);
        if (n < 6 || strcmp(value + n - 5, ".json") != 0)
            return usage("--report %s: want a name that ends in .json", value);
        a->report = value;
    } else {
        a->output = value;
    }
    return GOOD;
}

static bool *flag(struct arguments *a, const char *arg) {
    if (strcmp(arg, "--dry-run") == 0) return &a->dry_run;
    if (strcmp(arg, "--json") == 0) return &a->json;
    if (strcmp(arg, "-q") == 0 || strcmp(arg, "--quiet") == 0) return &a->quiet;
    return NULL;
}

/* The name of an option that takes a value, or NULL. *value is set if it stands in the same
 * argument ("--scheme=int8-weight"). */
static const char *valued_option(const char *arg, const char **value) {
    static const char *const names[] = {"-o",       "--output",     "--scheme",
                                        "--filter", "--convention", "--report"};
    *value = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
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
            if (a->input) return usage("one argument too many: %s", arg);
            a->input = arg;
        } else if (strcmp(arg, "--") == 0) {
            options = false;
        } else if (flag(a, arg)) {
            *flag(a, arg) = true;
        } else {
            const char *option = valued_option(arg, &value);
            if (!option) return usage("unknown option %s", arg);
            if (!value && i + 1 == argc) return usage("%s needs a value", arg);
            if (set_value(a, option, value ? value : argv[++i]) != GOOD) return USAGE;
        }
    }
    if (!a->input) return usage("IN.dpk is missing");
    if (!a->output && !a->dry_run) return usage("-o OUT.dpk is missing");
    if (!a->has_scheme && !a->dry_run) return usage("--scheme is missing");
    return GOOD;
}

/* ---- Progress -------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

struct bar {
    bool on;
    int shown; /* percent */
};

static int show_progress(void *arg, uint64_t done, uint64_t total) {
    struct bar *bar = arg;
    const int now = total ? (int)((double)done * 100.0 / (double)total) : 100;
    if (bar->on && now != bar->shown) {
        bar->shown = now;
        fprintf(stderr, "\rquantizing %3d %%  %8.1f of %.1f MB", now, (double)done / 1e6,
                (double)total / 1e6);
        fflush(stderr);
    }
    return interrupted;
}

/* ---- The work -------------------------------------------------------------------------------- */

static void print_results(const struct arguments *a, const struct dpk_report_subject *subject,
                          const struct dpk_layers *layers) {
    if (a->dry_run && a->json) dpk_report_decisions(stdout, layers);
    else if (a->dry_run) dpk_report_table(stdout, layers);
    else if (a->json) dpk_report_json(stdout, subject, layers);
    else if (!a->quiet) dpk_report_summary(stdout, subject, layers);
}

static int run(const struct arguments *a, const struct dpk_file *f, const struct dpk_filter *filter,
               dpk_error *err) {
    struct dpk_layers layers = {0};
    struct bar bar = {.on = !a->quiet && isatty(2), .shown = -1};
    const struct dpk_rewrite_options options = {&a->scheme, dpk_filter_id(filter), show_progress,
                                                &bar};
    struct dpk_report_subject subject = {.source_path = a->input,
                                         .source_sum = dpk_file_sum(f),
                                         .model = dpk_file_meta(f, "model.name"),
                                         .scheme = &a->scheme,
                                         .filter_id = options.filter_id,
                                         .file_before = f->file_bytes};
    struct stat st;
    int rc = DPK_OK;
    DPK_TRY(dpk_layers_make(&layers, f, a->input, &a->scheme, filter, err));
    if (!a->dry_run || a->report) {
        rc = dpk_rewrite(f, a->dry_run ? NULL : a->output, &layers, &options, err);
        if (bar.shown >= 0) fputs("\r\x1b[K", stderr);
        if (rc != DPK_OK) goto done;
    }
    if (!a->dry_run && stat(a->output, &st) == 0) subject.file_after = (uint64_t)st.st_size;
    if (a->report) DPK_TRY(dpk_report_write_json(a->report, &subject, &layers, err));
    print_results(a, &subject, &layers);
done:
    dpk_layers_free(&layers);
    return rc;
}

static int quantize(const struct arguments *a) {
    struct dpk_file f = {0};
    struct dpk_filter *filter = NULL;
    dpk_error err;
    int rc = DPK_OK;
    DPK_TRY(dpk_filter_open(&filter, a->filter, &err));
    DPK_TRY(dpk_file_open(&f, a->input, &err));
    DPK_TRY(run(a, &f, filter, &err));
done:
    if (rc != DPK_OK) fprintf(stderr, "diffpak-quantize: %s\n", err.msg);
    dpk_filter_free(filter);
    dpk_file_close(&f);
    return rc == DPK_OK ? GOOD : FAILED;
}

int main(int argc, char **argv) {
    struct arguments a = {.filter = "diffusion-fast"};
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(help, stdout);
            return GOOD;
        }
        if (strcmp(argv[i], "--version") == 0) {
            puts("diffpak-quantize " VERSION);
            return GOOD;
        }
    }
    if (parse(argc, argv, &a) != GOOD) return USAGE;
    const struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a size limit is an error of write() */
    const int status = quantize(&a);
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    fputs("diffpak-quantize: standard output could not be written\n", stderr);
    return FAILED;
}
