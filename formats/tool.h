/* What the command lines of diffpak-convert and diffpak-quantize share: arguments, exit statuses,
 * progress, interruption. */
#ifndef DPK_TOOL_H
#define DPK_TOOL_H

#include <stdbool.h>
#include <stddef.h>

enum { DPK_TOOL_GOOD = 0, DPK_TOOL_FAILED = 1, DPK_TOOL_USAGE = 2 }; /* exit statuses */

/* An option does one of three things. */
struct dpk_tool_option {
    const char *name, *letter; /* "--output", "-o" or NULL */
    bool *flag;                /* set to true, takes no value */
    const char **text;         /* set to the value, borrowed */
    /* Gets the value; returns DPK_TOOL_GOOD, or what dpk_tool_usage returned. */
    int (*set)(void *arg, const char *option, const char *value);
    void *arg;
};

struct dpk_tool {
    const char *name, *help;
};

/* One line on standard error: "NAME: ... (see NAME --help)". Returns DPK_TOOL_USAGE. */
int dpk_tool_usage(const struct dpk_tool *tool, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Set the options; *operand gets the one argument that is none, or NULL. `--name=value` is taken,
 * and `--` ends the options. *done: help or version was asked for and is printed. Returns
 * DPK_TOOL_GOOD or DPK_TOOL_USAGE. */
int dpk_tool_parse(const struct dpk_tool *tool, const struct dpk_tool_option *options,
                   size_t n_options, int argc, char **argv, const char **operand, bool *done);

/* A line of progress on standard error, if that is a terminal and `quiet` is not asked for. */
struct dpk_tool_bar {
    bool on, shown;
    int percent;
    char what[160];
};
struct dpk_tool_bar dpk_tool_bar_make(bool quiet);
void dpk_tool_bar_show(struct dpk_tool_bar *bar, const char *what, double fraction);
void dpk_tool_bar_clear(struct dpk_tool_bar *bar);

/* From now on an interrupt only makes dpk_tool_interrupted true; a second Ctrl-C ends the program. */
void dpk_tool_catch_signals(void);
/* From now on a limit of file sizes is an error of write(). */
void dpk_tool_expect_full_files(void);
bool dpk_tool_interrupted(void);

/* The program's last words: its exit status, which is a failure if standard output could not be
 * written. */
int dpk_tool_finish(const struct dpk_tool *tool, int status);

#endif
