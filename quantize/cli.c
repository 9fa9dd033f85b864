/* diffpak-quantize: the command line. */
#include "../convert/conversion.h"
#include "../formats/fail.h"
#include "../formats/tool.h"
#include "../runtime/session.h"
#include "card.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

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
    "  --dry-run              list every layer and what would happen to it; write no model.\n"
    "                         IN may be one that is not packed yet; of a folder its configs do\n"
    "  --json                 print JSON: the list with --dry-run, else the report\n"
    "  -q, --quiet            print nothing but errors and what was asked for\n"
    "  --help, --version\n"
    "\n"
    "Quality, measured by running the model before and after:\n"
    "  --report FILE          .html: a page with charts and pictures, .json: all numbers;\n"
    "                         up to four times\n"
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

static const struct dpk_tool tool = {.name = "diffpak-quantize", .help = help};

/* ---- Arguments ------------------------------------------------------------------------------- */

static bool ends_in(const char *s, const char *end) {
    const size_t n = strlen(s), m = strlen(end);
    return n > m && strcmp(s + n - m, end) == 0;
}

static int set_number(void *arg, const char *option, const char *value) {
    struct arguments *a = arg;
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
            return dpk_tool_usage(&tool, "%s %.40s: want a %snumber from %g to %g", option, value,
                                  numbers[i].whole ? "whole " : "", numbers[i].low,
                                  numbers[i].high);
        *numbers[i].to = v;
    }
    return DPK_TOOL_GOOD;
}

static int set_scheme(void *arg, const char *option, const char *value) {
    struct arguments *a = arg;
    dpk_error err;
    (void)option;
    if (dpk_scheme_parse(&a->scheme, value, &err) != DPK_OK)
        return dpk_tool_usage(&tool, "%s", err.msg);
    a->has_scheme = true;
    return DPK_TOOL_GOOD;
}

static int set_convention(void *arg, const char *option, const char *value) {
    static const int all[] = {DPK_CONVENTION_DIFFUSION_FAST, DPK_CONVENTION_TORCHAO};
    struct arguments *a = arg;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (strcmp(value, dpk_convention_name(all[i])) != 0) continue;
        a->scheme.convention = all[i];
        return DPK_TOOL_GOOD;
    }
    return dpk_tool_usage(&tool, "%s %s: want diffusion-fast or torchao", option, value);
}

static int add_report(void *arg, const char *option, const char *value) {
    struct arguments *a = arg;
    if (!ends_in(value, ".json") && !ends_in(value, ".html"))
        return dpk_tool_usage(&tool, "%s %s: want a name that ends in .json or .html", option,
                              value);
    if (a->n_reports == MAX_REPORTS)
        return dpk_tool_usage(&tool, "%s: %d at most", option, (int)MAX_REPORTS);
    a->report[a->n_reports++] = value;
    return DPK_TOOL_GOOD;
}

static int set_budget(void *arg, const char *option, const char *value) {
    struct arguments *a = arg;
    struct dpk_budget budget;
    dpk_error err;
    (void)option;
    if (dpk_budget_parse(&budget, value, &err) != DPK_OK)
        return dpk_tool_usage(&tool, "%s", err.msg);
    a->budget = value;
    return DPK_TOOL_GOOD;
}

/* Must the model be run? */
static bool measures(const struct arguments *a) {
    return a->n_reports || a->max_error >= 0 || a->sensitivity || a->budget;
}

static bool is_same_file(const char *a, const char *b) {
    struct stat s, t;
    return stat(a, &s) == 0 && stat(b, &t) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

static int parse(int argc, char **argv, struct arguments *a, bool *done) {
    const struct dpk_tool_option options[] = {
        {.name = "--output", .letter = "-o", .text = &a->output},
        {.name = "--scheme", .set = set_scheme, .arg = a},
        {.name = "--filter", .text = &a->filter},
        {.name = "--convs", .flag = &a->scheme.convs},
        {.name = "--convention", .set = set_convention, .arg = a},
        {.name = "--dry-run", .flag = &a->dry_run},
        {.name = "--json", .flag = &a->json},
        {.name = "--quiet", .letter = "-q", .flag = &a->quiet},
        {.name = "--report", .set = add_report, .arg = a},
        {.name = "--max-error", .set = set_number, .arg = a},
        {.name = "--sensitivity", .flag = &a->sensitivity},
        {.name = "--budget", .set = set_budget, .arg = a},
        {.name = "--prompts", .text = &a->prompts},
        {.name = "--steps", .set = set_number, .arg = a},
        {.name = "--size", .set = set_number, .arg = a},
        {.name = "--threads", .set = set_number, .arg = a},
    };
    const int status = dpk_tool_parse(&tool, options, sizeof options / sizeof *options, argc, argv,
                                      &a->input, done);
    if (status != DPK_TOOL_GOOD || *done) return status;
    if (!a->input) return dpk_tool_usage(&tool, "IN.dpk is missing");
    if (!a->output && !a->dry_run) return dpk_tool_usage(&tool, "-o OUT.dpk is missing");
    if (!a->has_scheme && (!a->dry_run || measures(a)))
        return dpk_tool_usage(&tool, "--scheme is missing");
    if (a->output && is_same_file(a->input, a->output))
        return dpk_tool_usage(&tool, "-o %s: is the input, which is needed to quantize otherwise",
                              a->output);
    for (int i = 0; i < a->n_reports && a->output; i++)
        if (strcmp(a->report[i], a->output) == 0)
            return dpk_tool_usage(&tool, "--report %s: is the output, too", a->output);
    return DPK_TOOL_GOOD;
}

/* ---- Progress -------------------------------------------------------------------------------- */

static int show_writing(void *arg, uint64_t done, uint64_t total) {
    char what[64];
    snprintf(what, sizeof what, "quantizing, %.1f of %.1f MB", (double)done / 1e6,
             (double)total / 1e6);
    dpk_tool_bar_show(arg, what, total ? (double)done / (double)total : 1.0);
    return dpk_tool_interrupted();
}

static int show_measuring(void *arg, const char *what, double fraction) {
    dpk_tool_bar_show(arg, what, fraction);
    return dpk_tool_interrupted();
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

/* The file that is to be quantized, or with --dry-run one that is not there yet: its weights are not
 * needed then. */
struct input {
    struct dpk_file file;
    struct dpk_conversion *conversion;
};

/* A packed file, its tokenizers checked too: they go into the new file as they are. */
static int open_packed(struct dpk_file *file, const char *path, dpk_error *err) {
    int rc = DPK_OK;
    dpk_model *model = NULL;
    DPK_TRY(dpk_model_open(&model, path, err));
    DPK_TRY(dpk_file_open(file, path, err));
done:
    dpk_model_free(model);
    return rc;
}

static int open_input(struct input *in, const struct arguments *a, dpk_error *err) {
    struct stat st;
    if (!a->dry_run || stat(a->input, &st) != 0 || dpk_atomic_is_model(a->input))
        return open_packed(&in->file, a->input, err);
    const bool of_weights = measures(a) || strcmp(a->filter, "auto") == 0;
    const struct dpk_convert_options options = {
        .source = a->input, .dtype = DPK_BF16, .random = S_ISDIR(st.st_mode)};
    int rc = DPK_OK;
    if (of_weights)
        DPK_FAIL(err, DPK_EARG, "%s: is not packed, there is nothing to measure or to time",
                 a->input);
    DPK_TRY(dpk_conversion_open(&in->conversion, &options, err));
    DPK_TRY(dpk_builder_view(dpk_conversion_builder(in->conversion), &in->file, err));
done:
    return rc;
}

static void close_input(struct input *in) {
    dpk_file_close(&in->file);
    dpk_conversion_close(in->conversion);
}

static int run(const struct arguments *a, const struct dpk_file *f, const struct dpk_filter *filter,
               const struct dpk_prompts *prompts, dpk_error *err) {
    struct dpk_card card = {0};
    struct dpk_atomic_file reports[MAX_REPORTS];
    struct dpk_tool_bar bar = dpk_tool_bar_make(a->quiet);
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
    int n = 0, rc = DPK_OK;
    /* Before all that takes time: what cannot be written should be known now. */
    for (; n < a->n_reports; n++) DPK_TRY(dpk_atomic_open(&reports[n], a->report[n], err));
    rc = dpk_card_make(&card, f, &options, err);
    dpk_tool_bar_clear(&bar);
    for (int i = 0; i < n && rc == DPK_OK; i++)
        rc = dpk_report_write(&reports[i], &card.subject, &card.layers, err);
done:
    for (int i = 0; i < n; i++) rc = dpk_atomic_close(&reports[i], rc, err);
    if (rc == DPK_OK) print_results(a, &card);
    dpk_card_free(&card);
    return rc;
}

static int quantize(const struct arguments *a) {
    struct input in = {.file = {.fd = -1}};
    struct dpk_filter *filter = NULL;
    struct dpk_prompts prompts = {0};
    dpk_error err;
    int rc = DPK_OK;
    DPK_TRY(dpk_filter_open(&filter, a->filter, &err));
    DPK_TRY(dpk_prompts_open(&prompts, a->prompts, &err));
    DPK_TRY(open_input(&in, a, &err));
    DPK_TRY(run(a, &in.file, filter, &prompts, &err));
done:
    if (rc != DPK_OK) fprintf(stderr, "diffpak-quantize: %s\n", err.msg);
    dpk_filter_free(filter);
    dpk_prompts_free(&prompts);
    close_input(&in);
    return rc == DPK_OK ? DPK_TOOL_GOOD : DPK_TOOL_FAILED;
}

int main(int argc, char **argv) {
    struct arguments a = {.filter = "diffusion-fast", .prompts = "2", .steps = 8, .max_error = -1};
    bool done;
    int status = parse(argc, argv, &a, &done);
    if (status == DPK_TOOL_GOOD && !done) {
        dpk_tool_expect_full_files();
        dpk_tool_catch_signals();
        status = quantize(&a);
    }
    return dpk_tool_finish(&tool, status);
}
