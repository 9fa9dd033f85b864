/* diffpak-convert: the command line. */
#include "../formats/tool.h"
#include "conversion.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

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

static const struct dpk_tool tool = {.name = "diffpak-convert", .help = help};

static int set_dtype(void *arg, const char *option, const char *value) {
    struct arguments *a = arg;
    static const int types[] = {DPK_BF16, DPK_F16, DPK_F32};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(value, dpk_dtype_name(types[i])) == 0)
            return a->convert.dtype = types[i], DPK_TOOL_GOOD;
    return dpk_tool_usage(&tool, "%s %s: want bf16, f16 or f32", option, value);
}

static int set_seed(void *arg, const char *option, const char *value) {
    struct arguments *a = arg;
    char *end;
    errno = 0;
    a->convert.seed = strtoull(value, &end, 0);
    a->convert.random = true;
    if (value[0] >= '0' && value[0] <= '9' && !*end && errno == 0) return DPK_TOOL_GOOD;
    return dpk_tool_usage(&tool, "%s %s: want a whole number", option, value);
}

/* FILE or FILE:SCALE; a colon that no number follows belongs to the name. */
static int add_lora(void *arg, const char *option, const char *value) {
    struct arguments *a = arg;
    const int i = a->convert.n_loras;
    const char *colon = strrchr(value, ':');
    char *end;
    if (i == MAX_LORAS) return dpk_tool_usage(&tool, "%s: more than %d", option, MAX_LORAS);
    char *path = strdup(value);
    if (!path) return dpk_tool_usage(&tool, "out of memory");
    a->lora_paths[i] = path;
    a->loras[i] = (struct dpk_lora_file){.path = path, .scale = 1.0};
    a->convert.n_loras = i + 1;
    if (!colon || !colon[1] || strspn(colon + 1, "+-.0123456789eE") != strlen(colon + 1))
        return DPK_TOOL_GOOD;
    a->loras[i].scale = strtod(colon + 1, &end);
    if (*end || !isfinite(a->loras[i].scale))
        return dpk_tool_usage(&tool, "%s %s: want FILE or FILE:SCALE", option, value);
    path[colon - value] = 0;
    return DPK_TOOL_GOOD;
}

static int parse(int argc, char **argv, struct arguments *a, bool *done) {
    const struct dpk_tool_option options[] = {
        {.name = "--output", .letter = "-o", .text = &a->output},
        {.name = "--dtype", .set = set_dtype, .arg = a},
        {.name = "--variant", .text = &a->convert.variant},
        {.name = "--vae", .text = &a->convert.vae},
        {.name = "--lora", .set = add_lora, .arg = a},
        {.name = "--lora-partial", .flag = &a->lora_partial},
        {.name = "--config", .text = &a->convert.configs},
        {.name = "--ema", .flag = &a->convert.ema},
        {.name = "--random-weights", .set = set_seed, .arg = a},
        {.name = "--quiet", .letter = "-q", .flag = &a->quiet},
        {.name = "--json", .flag = &a->json},
    };
    const int status = dpk_tool_parse(&tool, options, sizeof options / sizeof *options, argc, argv,
                                      &a->convert.source, done);
    if (status != DPK_TOOL_GOOD || *done) return status;
    if (!a->convert.source) return dpk_tool_usage(&tool, "SOURCE is missing");
    if (!a->output) return dpk_tool_usage(&tool, "-o OUT.dpk is missing");
    for (int i = 0; i < a->convert.n_loras; i++) a->loras[i].partial = a->lora_partial;
    a->convert.loras = a->loras;
    return DPK_TOOL_GOOD;
}

/* ---- Progress -------------------------------------------------------------------------------- */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct progress {
    struct dpk_tool_bar bar;
    double started;
};

static int show_progress(void *arg, uint64_t done, uint64_t total) {
    struct progress *p = arg;
    const double s = seconds() - p->started, mb = (double)done / 1e6;
    char what[96];
    snprintf(what, sizeof what, "converting, %.1f of %.1f MB, %.0f MB/s", mb, (double)total / 1e6,
             s > 0 ? mb / s : 0.0);
    /* A line a percent: the rest of the line changes with every piece. */
    const double fraction = total ? (double)done / (double)total : 1.0;
    if ((int)(fraction * 100) != p->bar.percent) dpk_tool_bar_show(&p->bar, what, fraction);
    return dpk_tool_interrupted();
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
    struct progress p = {dpk_tool_bar_make(a->quiet), seconds()};
    int rc = dpk_conversion_open(&c, &a->convert, &err);
    dpk_tool_catch_signals(); /* now there will be a file to remove */
    if (rc == DPK_OK)
        rc = dpk_builder_write(dpk_conversion_builder(c), a->output, 0, show_progress, &p, &err);
    dpk_tool_bar_clear(&p.bar);
    if (rc != DPK_OK) fprintf(stderr, "diffpak-convert: %s\n", err.msg);
    else if (!a->quiet || a->json) print_summary(a, c, seconds() - p.started);
    dpk_conversion_close(c);
    return rc == DPK_OK ? DPK_TOOL_GOOD : DPK_TOOL_FAILED;
}

int main(int argc, char **argv) {
    struct arguments a = {.convert = {.dtype = DPK_BF16}};
    bool done;
    int status = parse(argc, argv, &a, &done);
    dpk_tool_expect_full_files();
    if (status == DPK_TOOL_GOOD && !done) status = convert(&a);
    for (int i = 0; i < a.convert.n_loras; i++) free(a.lora_paths[i]);
    return dpk_tool_finish(&tool, status);
}
