#include "tool.h"

#include "fail.h"

#include "version.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- Arguments ------------------------------------------------------------------------------- */

int dpk_tool_usage(const struct dpk_tool *tool, const char *format, ...) {
    dpk_error err; /* makes one clean line of what arguments say */
    char text[sizeof err.msg];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    dpk_error_set(&err, DPK_EARG, "%s", text);
    fprintf(stderr, "%s: %s (see %s --help)\n", tool->name, err.msg, tool->name);
    return DPK_TOOL_USAGE;
}

/* The option that an argument names. *value is set if it stands in the same argument. */
static const struct dpk_tool_option *find_option(const struct dpk_tool_option *options, size_t n,
                                                 const char *arg, const char **value) {
    *value = NULL;
    for (size_t i = 0; i < n; i++) {
        const struct dpk_tool_option *o = &options[i];
        const size_t length = strlen(o->name);
        if (o->letter && strcmp(arg, o->letter) == 0) return o;
        if (strncmp(arg, o->name, length) != 0) continue;
        if (arg[length] == '=' && !o->flag) *value = arg + length + 1;
        if (!arg[length] || *value) return o;
    }
    return NULL;
}

/* Help and version are given whatever else is there. */
static bool answer(const struct dpk_tool *tool, int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const bool help = strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
        if (help) fputs(tool->help, stdout);
        else if (strcmp(argv[i], "--version") == 0)
            printf("%s %s\n", tool->name, DPK_PROJECT_VERSION);
        else continue;
        return true;
    }
    return false;
}

int dpk_tool_parse(const struct dpk_tool *tool, const struct dpk_tool_option *options,
                   size_t n_options, int argc, char **argv, const char **operand, bool *done) {
    bool only_operands = false;
    *operand = NULL;
    *done = answer(tool, argc, argv);
    for (int i = 1; i < argc && !*done; i++) {
        const char *arg = argv[i], *value;
        if (only_operands || arg[0] != '-' || !arg[1]) {
            if (*operand) return dpk_tool_usage(tool, "one argument too many: %s", arg);
            *operand = arg;
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            only_operands = true;
            continue;
        }
        const struct dpk_tool_option *o = find_option(options, n_options, arg, &value);
        if (!o) return dpk_tool_usage(tool, "unknown option %s", arg);
        if (o->flag) {
            *o->flag = true;
            continue;
        }
        if (!value && i + 1 == argc) return dpk_tool_usage(tool, "%s needs a value", arg);
        if (!value) value = argv[++i];
        if (o->text) *o->text = value;
        else if (o->set(o->arg, o->name, value) != DPK_TOOL_GOOD) return DPK_TOOL_USAGE;
    }
    return DPK_TOOL_GOOD;
}

/* ---- Progress -------------------------------------------------------------------------------- */

struct dpk_tool_bar dpk_tool_bar_make(bool quiet) {
    return (struct dpk_tool_bar){.on = !quiet && isatty(2), .percent = -1};
}

void dpk_tool_bar_show(struct dpk_tool_bar *bar, const char *what, double fraction) {
    const int percent = (int)(fraction * 100);
    if (!bar->on || (percent == bar->percent && strcmp(what, bar->what) == 0)) return;
    fprintf(stderr, "\r\x1b[K%3d %%  %s", percent, what);
    fflush(stderr);
    snprintf(bar->what, sizeof bar->what, "%s", what);
    bar->percent = percent;
    bar->shown = true;
}

void dpk_tool_bar_clear(struct dpk_tool_bar *bar) {
    if (bar->shown) fputs("\r\x1b[K", stderr);
    bar->shown = false;
}

static volatile sig_atomic_t interrupted;

/* A second Ctrl-C is impatience; other signals come twice by themselves (timeout(1), terminals). */
static void on_signal(int number) {
    if (interrupted && number == SIGINT) {
        signal(number, SIG_DFL);
        raise(number); /* when this returns */
    }
    interrupted = 1;
}

void dpk_tool_catch_signals(void) {
    static const int caught[] = {SIGINT, SIGTERM, SIGHUP};
    const struct sigaction action = {.sa_handler = on_signal};
    struct sigaction before;
    for (size_t i = 0; i < sizeof caught / sizeof *caught; i++)
        /* nohup, and shells for what they run behind, have them ignored: so it stays */
        if (sigaction(caught[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(caught[i], &action, NULL);
}

void dpk_tool_expect_full_files(void) { signal(SIGXFSZ, SIG_IGN); }

bool dpk_tool_interrupted(void) { return interrupted; }

int dpk_tool_finish(const struct dpk_tool *tool, int status) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    fprintf(stderr, "%s: standard output could not be written\n", tool->name);
    return DPK_TOOL_FAILED;
}
