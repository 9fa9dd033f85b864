/* Messages, progress bar and JSON of the `diffpak` program. */
#include "cli.h"

#include "../formats/atomic_file.h"

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int dpk_cli_fail(const dpk_error *err) {
    fprintf(stderr, "diffpak: %s\n", err->msg);
    return CLI_FAILED;
}

int dpk_cli_usage(const char *command, const char *format, ...) {
    dpk_error err; /* makes one clean line of what arguments and files say */
    char text[sizeof err.msg];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    dpk_error_set(&err, DPK_EARG, "%s: %s", command, text);
    fprintf(stderr, "diffpak %s (see diffpak --help)\n", err.msg);
    return CLI_USAGE;
}

int dpk_cli_flush(void) {
    if (!fflush(stdout) && !ferror(stdout)) return CLI_GOOD;
    fprintf(stderr, "diffpak: standard output could not be written\n");
    return CLI_FAILED;
}

double dpk_cli_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int dpk_cli_check_output(const char *path, dpk_error *err) {
    enum { TEMPORARY = 32 }; /* bytes that the name grows by while it is written */
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char *folder = slash ? strndup(path, (size_t)(name - path)) : strdup(".");
    struct stat st;
    int rc = DPK_OK;
    if (!folder) DPK_FAIL(err, DPK_ENOMEM, "no memory for a path");
    if (!*name) DPK_FAIL(err, DPK_EIO, "'%.300s': cannot write: not the name of a file", path);
    if (strlen(name) > NAME_MAX - TEMPORARY)
        DPK_FAIL(err, DPK_EIO, "%.300s: cannot write: a name of %zu bytes, want at most %d", path,
                 strlen(name), NAME_MAX - TEMPORARY);
    const bool exists = stat(path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode))
        DPK_FAIL(err, DPK_EIO, "%.300s: cannot write: it is a folder", path);
    /* An open file, a pipe or a device is written to, all else is made anew. */
    if (dpk_atomic_descriptor(path) >= 0) goto done;
    if (exists && !S_ISREG(st.st_mode) ? access(path, W_OK) : access(folder, W_OK | X_OK))
        DPK_FAIL(err, DPK_EIO, "%.300s: cannot write there: %s", path, strerror(errno));
    DPK_TRY(dpk_atomic_check(path, err));
done:
    free(folder);
    return rc;
}

int dpk_cli_open_model(dpk_model **model, const char *path, bool no_mmap, dpk_error *err) {
    dpk_model_options options = dpk_model_options_default();
    options.in_memory = no_mmap;
    options.guard = 1;
    return dpk_model_open_with(model, path, &options, err);
}

/* ---- Progress ----------------------------------------------------------------------------- */

void dpk_cli_bar_start(struct dpk_cli_bar *bar, bool quiet) {
    *bar = (struct dpk_cli_bar){!quiet && isatty(2), -1, dpk_cli_seconds()};
}

void dpk_cli_bar_show(struct dpk_cli_bar *bar, const char *what, double fraction) {
    enum { WIDTH = 40 };
    int thousandths = (int)(fraction * 1000);
    if (!bar->on || thousandths == bar->shown) return;
    bar->shown = thousandths;
    int full = thousandths * WIDTH / 1000;
    char line[WIDTH + 1];
    memset(line, '.', WIDTH);
    memset(line, '#', (size_t)full);
    line[WIDTH] = 0;
    fprintf(stderr, "\r[%s] %3d %%  %-18s %6.1f s", line, thousandths / 10, what,
            dpk_cli_seconds() - bar->started);
    fflush(stderr);
}

void dpk_cli_bar_end(struct dpk_cli_bar *bar) {
    if (bar->on && bar->shown >= 0) fprintf(stderr, "\r\x1b[K");
    bar->on = false;
}

/* ---- JSON --------------------------------------------------------------------------------- */

static void put_string(FILE *to, const char *s) {
    fputc('"', to);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') fprintf(to, "\\%c", c);
        else if (c < 0x20) fprintf(to, "\\u%04x", c);
        else fputc(c, to);
    }
    fputc('"', to);
}

static void put_key(struct dpk_cli_json *j, const char *key) {
    if (j->comma) fputc(',', j->to);
    j->comma = true;
    if (!key) return;
    put_string(j->to, key);
    fputc(':', j->to);
}

void dpk_cli_json_open(struct dpk_cli_json *j, const char *key, char bracket) {
    put_key(j, key);
    fputc(bracket, j->to);
    j->comma = false;
}

void dpk_cli_json_close(struct dpk_cli_json *j, char bracket) {
    fputc(bracket, j->to);
    j->comma = true;
}

void dpk_cli_json_text(struct dpk_cli_json *j, const char *key, const char *value) {
    put_key(j, key);
    put_string(j->to, value);
}

void dpk_cli_json_number(struct dpk_cli_json *j, const char *key, double value) {
    put_key(j, key);
    if (isfinite(value)) fprintf(j->to, "%.17g", value);
    else fputs("null", j->to);
}

void dpk_cli_json_line(struct dpk_cli_json *j) { fputc('\n', j->to); }
