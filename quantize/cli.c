/* diffpak-quantize: the command line. */
#include "../formats/fail.h"
#include "../runtime/session.h"
#include "card.h"

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
    "  --filter NAME|FILE     which layers: diffusion-fast (default), all, none, auto (those that\n"
    "                         get faster by a tenth on this machine), or a file\n"
    "  --convs                k x k convolutions as well, where the filter has them\n"
    "  --convention NAME      rule of 8-bit scales: diffusion-fast (default) or torchao\n"
    "  --dry-run              list every layer and what would happen to it; write nothing\n"
    "  --json                 print JSON: the list with --dry-run, else the report\n"
    "  -q, --quiet            print nothing but errors and what was asked for\n"
    "  --help, --version\n"
    "\n"
    "Quality, measured by running the model before and after:\n"
    "  --report FILE          .html: a page with charts and pictures, .json: all numbers;\n"
    "                         may be given twice\n"
    "  --max-error X          write nothing if the final latent's relative error is above X\n"
    "  --sensitivity          try each layer alone and rank them\n"
    "  --budget SIZE|DB       rank, then choose from the filter's layers: 500MB, as few as make\n"
    "                         the file that small; 30dB, as many as keep the picture that good\n"
    "  --prompts N|FILE       built-in prompts (1 to 8, default 2), or a file of one a line\n"
    "  --steps N              of the sampler, default 8\n"
    "  --size N               pixels of the longer side; default the model's, at most 512\n"
    "  --threads N            default one a core\n"
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

enum { MAX_REPORTS = 4 };
struct arguments {
    const char *input, *output, *filter, *budget, *prompts;
    const char *report[MAX_REPORTS];
    int n_reports;
    struct dpk_scheme scheme;
    double max_error, steps, size, threads;
    bool has_scheme, dry_run, json, quiet, sensitivity;
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

static bool ends_in(const char *s, const char *end) {
    const size_t n = strlen(s), m = strlen(end);
    return n > m && strcmp(s + n - m, end) == 0;
}

static int set_number(struct arguments *a, const char *option, const char *value) {
    const struct {
        const char *name;
        double *to, low, high;
        bool whole;
    } numbers[] = {{"--max-error", &a->max_error, 0, 1e9, false},
                   {"--steps", &a->steps, 1, 1000, true},
                   {"--size", &a->size, 8, 4096, true},
                   {"--threads", &a->threads, 1, 4096, true}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(option, numbers[i].name) != 0) continue;
        double v;
        const char *end = dpk_parse_number(value, &v);
        if (!end || *end || !(v >= numbers[i].low && v <= numbers[i].high) ||
            (numbers[i].whole && v != (double)(int64_t)v))
            return usage("%s %.40s: want a %snumber from %g to %g", option, value,
                         numbers[i].whole ? "whole " : "", numbers[i].low, numbers[i].high);
        *numbers[i].to = v;
    }
    return GOOD;
}

static int set_value(struct arguments *a, const char *option, const char *value) {
    struct dpk_budget budget;
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
        if (!ends_in(value, ".json") && !ends_in(value, ".html"))
            return usage("--report %s: want a name that ends in .json or .html", value);
        if (a->n_reports == MAX_REPORTS) return usage("--report: %d at most", (int)MAX_REPORTS);
        a->report[a->n_reports++] = value;
    } else if (strcmp(option, "--budget") == 0) {
        if (dpk_budget_parse(&budget, value, &err) != DPK_OK) return usage("%s", err.msg);
        a->budget = value;
    } else if (strcmp(option, "--prompts") == 0) {
        a->prompts = value;
    } else if (strcmp(option, "-o") == 0 || strcmp(option, "--output") == 0) {
        a->output = value;
    } else {
        return set_number(a, option, value);
    }
    return GOOD;
}

static bool *flag(struct arguments *a, const char *arg) {
    if (strcmp(arg, "--dry-run") == 0) return &a->dry_run;
    if (strcmp(arg, "--json") == 0) return &a->json;
    if (strcmp(arg, "--convs") == 0) return &a->scheme.convs;
    if (strcmp(arg, "--sensitivity") == 0) return &a->sensitivity;
    if (strcmp(arg, "-q") == 0 || strcmp(arg, "--quiet") == 0) return &a->quiet;
    return NULL;
}

/* The name of an option that takes a value, or NULL. *value is set if it stands in the same
 * argument ("--scheme=int8-weight"). */
static const char *valued_option(const char *arg, const char **value) {
    static const char *const names[] = {"-o",           "--output",    "--scheme", "--filter",
                                        "--convention", "--report",    "--budget", "--prompts",
                                        "--steps",      "--max-error", "--size",   "--threads"};
    *value = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const size_t n = strlen(names[i]);
        if (strncmp(arg, names[i], n) != 0) continue;
        if (arg[n] == '=' && i > 0) *value = arg + n + 1;
        if (!arg[n] || *value) return names[i];
    }
    return NULL;
}

/* Must the model be run? */
static bool measures(const struct arguments *a) {
    return a->n_reports || a->max_error >= 0 || a->sensitivity || a->budget;
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
    if (!a->has_scheme && (!a->dry_run || measures(a))) return usage("--scheme is missing");
    return GOOD;
}

/* ---- Progress -------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

struct bar {
    bool on, shown;
    int percent;
    char what[160];
};

static void show(struct bar *bar, const char *what, int percent) {
    if (!bar->on || (percent == bar->percent && strcmp(what, bar->what) == 0)) return;
    fprintf(stderr, "\r\x1b[K%3d %%  %s", percent, what);
    fflush(stderr);
    snprintf(bar->what, sizeof bar->what, "%s", what);
    bar->percent = percent;
    bar->shown = true;
}

static int show_writing(void *arg, uint64_t done, uint64_t total) {
    char what[64];
    snprintf(what, sizeof what, "quantizing, %.1f of %.1f MB", (double)done / 1e6,
             (double)total / 1e6);
    show(arg, what, total ? (int)((double)done * 100.0 / (double)total) : 100);
    return interrupted;
}

static int show_measuring(void *arg, const char *what, double fraction) {
    show(arg, what, (int)(fraction * 100));
    return interrupted;
}

/* ---- The work -------------------------------------------------------------------------------- */

static void print_results(const struct arguments *a, const struct dpk_card *c) {
    if (a->dry_run && a->json) dpk_report_decisions(stdout, &c->layers);
    else if (a->dry_run) {
        dpk_report_table(stdout, &c->layers);
        dpk_card_text(stdout, &c->subject, &c->layers);
    } else if (a->json) dpk_report_json(stdout, &c->subject, &c->layers);
    else if (!a->quiet) dpk_report_summary(stdout, &c->subject, &c->layers);
}

static int run(const struct arguments *a, const struct dpk_file *f, const struct dpk_filter *filter,
               const struct dpk_prompts *prompts, dpk_error *err) {
    struct dpk_card card = {0};
    struct bar bar = {.on = !a->quiet && isatty(2), .percent = -1};
    const struct dpk_card_options options = {.input = a->input,
                                             .output = a->dry_run ? NULL : a->output,
                                             .scheme = &a->scheme,
                                             .filter = filter,
                                             .measure = a->n_reports > 0,
                                             .max_error = a->max_error,
                                             .sensitivity = a->sensitivity,
                                             .budget = a->budget,
                                             .how = {.prompts = prompts->at,
                                                     .n_prompts = prompts->n,
                                                     .steps = (uint32_t)a->steps,
                                                     .size = (uint32_t)a->size,
                                                     .threads = (int)a->threads,
                                                     .progress = show_measuring,
                                                     .progress_arg = &bar},
                                             .progress = show_writing,
                                             .progress_arg = &bar};
    int rc = dpk_card_make(&card, f, &options, err);
    if (bar.shown) fputs("\r\x1b[K", stderr);
    if (rc != DPK_OK) goto done;
    for (int i = 0; i < a->n_reports; i++)
        DPK_TRY(dpk_report_write(a->report[i], &card.subject, &card.layers, err));
    print_results(a, &card);
done:
    dpk_card_free(&card);
    return rc;
}

static int quantize(const struct arguments *a) {
    struct dpk_file f = {0};
    struct dpk_filter *filter = NULL;
    struct dpk_prompts prompts = {0};
    dpk_error err;
    int rc = DPK_OK;
    DPK_TRY(dpk_filter_open(&filter, a->filter, &err));
    DPK_TRY(dpk_prompts_open(&prompts, a->prompts, &err));
    DPK_TRY(dpk_file_open(&f, a->input, &err));
    DPK_TRY(run(a, &f, filter, &prompts, &err));
done:
    if (rc != DPK_OK) fprintf(stderr, "diffpak-quantize: %s\n", err.msg);
    dpk_filter_free(filter);
    dpk_prompts_free(&prompts);
    dpk_file_close(&f);
    return rc == DPK_OK ? GOOD : FAILED;
}

int main(int argc, char **argv) {
    struct arguments a = {.filter = "diffusion-fast", .prompts = "2", .steps = 8, .max_error = -1};
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
