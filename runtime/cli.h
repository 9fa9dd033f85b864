/* What the commands of the `diffpak` program share. */
#ifndef DPK_CLI_H
#define DPK_CLI_H

#include "diffpak.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { CLI_GOOD = 0, CLI_FAILED = 1, CLI_USAGE = 2 }; /* exit statuses */

/* ---- Commands: argv[0] is the command's name. Each returns an exit status. ------------------- */
int dpk_cli_generate(int argc, char **argv);
int dpk_cli_inspect(int argc, char **argv);
int dpk_cli_verify(int argc, char **argv);
int dpk_cli_run(int argc, char **argv);
int dpk_cli_tokens(int argc, char **argv);
int dpk_cli_schedule(int argc, char **argv);
int dpk_cli_noise(int argc, char **argv);
int dpk_cli_bench(int argc, char **argv);
int dpk_cli_bundle(int argc, char **argv);
int dpk_cli_unbundle(int argc, char **argv);

/* ---- Options -------------------------------------------------------------------------------- */
enum dpk_cli_kind {
    CLI_FLAG,  /* bool: present */
    CLI_TEXT,  /* const char *: the argument, borrowed */
    CLI_COUNT, /* uint32_t: a whole number from 1 */
    CLI_REAL,  /* float: a finite number, not negative */
    CLI_EXACT, /* double: the same */
    CLI_BYTES, /* uint64_t: a whole number, with K, M or G behind it of 2^10, 2^20, 2^30 */
    CLI_LIST,  /* struct dpk_cli_list: may repeat */
};
struct dpk_cli_list {
    const char **at; /* [n], owned */
    uint32_t n;
};
struct dpk_cli_option {
    const char *name;   /* "--steps" */
    const char *letter; /* "-p", or NULL */
    enum dpk_cli_kind kind;
    void *to;
};

/* Set options from the arguments and collect the others, exactly n_positional of them (named in
 * `names`, for messages). Returns CLI_GOOD, or prints one line and returns CLI_USAGE, or CLI_FAILED
 * where there is no memory. */
int dpk_cli_parse(int argc, char **argv, const struct dpk_cli_option *options, size_t n_options,
                  const char *const *names, const char **positional, size_t n_positional);
/* As above, with a list of further positional arguments. */
int dpk_cli_parse_rest(int argc, char **argv, const struct dpk_cli_option *options,
                       size_t n_options, const char *const *names, const char **positional,
                       size_t n_positional, struct dpk_cli_list *rest);
/* What one option does with its argument (NULL for a flag); append a text, borrowed, to a list.
 * Both return as dpk_cli_parse does, the line beginning with `command`. */
int dpk_cli_set(const char *command, const struct dpk_cli_option *option, const char *value);
int dpk_cli_append(const char *command, struct dpk_cli_list *list, const char *text);
/* Find out before the work whether a file can be written: no folder, a name that the system takes,
 * in a folder to write to, not in place of a packed model. */
int dpk_cli_check_output(const char *path, dpk_error *err);
/* The model of a command that computes: guarded against a file that is cut short meanwhile. */
int dpk_cli_open_model(dpk_model **model, const char *path, bool no_mmap, dpk_error *err);
#define CLI_N(array) (sizeof(array) / sizeof *(array))

/* A whole number of 64 bits, decimal or 0x...; false if it is not one. */
bool dpk_cli_u64(const char *text, uint64_t *out);
/* "a,b,c": numbers from 1; returns how many, or 0 if something is wrong or there are over max. */
size_t dpk_cli_sizes(const char *text, size_t *out, size_t max);

/* ---- Messages: one line on standard error, "diffpak: ..." ------------------------------------ */
int dpk_cli_fail(const dpk_error *err); /* returns CLI_FAILED */
int dpk_cli_usage(const char *command, const char *format, ...)
    __attribute__((format(printf, 2, 3))); /* returns CLI_USAGE */

/* A bar on a terminal; nothing elsewhere. */
struct dpk_cli_bar {
    bool on;
    int shown;      /* thousandths */
    double started; /* seconds */
};
void dpk_cli_bar_start(struct dpk_cli_bar *bar, bool quiet);
void dpk_cli_bar_show(struct dpk_cli_bar *bar, const char *what, double fraction);
void dpk_cli_bar_end(struct dpk_cli_bar *bar);

double dpk_cli_seconds(void); /* a clock that only goes forward */

/* ---- JSON: values one after the other, commas by themselves ---------------------------------- */
struct dpk_cli_json {
    FILE *to;
    bool comma; /* a value came before on this level */
};
void dpk_cli_json_open(struct dpk_cli_json *j, const char *key, char bracket); /* key may be NULL */
void dpk_cli_json_close(struct dpk_cli_json *j, char bracket);
void dpk_cli_json_text(struct dpk_cli_json *j, const char *key, const char *value);
void dpk_cli_json_number(struct dpk_cli_json *j, const char *key, double value); /* 17 digits */
void dpk_cli_json_line(struct dpk_cli_json *j); /* a line break, for people */

/* Flush standard output; CLI_FAILED with a message if anything was not written. */
int dpk_cli_flush(void);

#endif
