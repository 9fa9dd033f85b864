/* Arguments of the `diffpak` program. */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool dpk_cli_u64(const char *text, uint64_t *out) {
    char *end;
    if (text[0] < '0' || text[0] > '9') return false; /* strtoull takes spaces and signs */
    errno = 0;
    *out = strtoull(text, &end, text[0] == '0' && (text[1] | 32) == 'x' ? 16 : 10);
    return !errno && !*end;
}

size_t dpk_cli_sizes(const char *text, size_t *out, size_t max) {
    size_t n = 0;
    for (;;) {
        size_t length = strcspn(text, ",");
        char digits[24];
        uint64_t value;
        if (n == max || length >= sizeof digits) return 0;
        memcpy(digits, text, length);
        digits[length] = 0;
        if (!dpk_cli_u64(digits, &value) || !value || value > INT32_MAX) return 0;
        out[n++] = (size_t)value;
        if (!text[length]) return n;
        text += length + 1;
    }
}

int dpk_cli_append(const char *command, struct dpk_cli_list *list, const char *value) {
    const char **grown = realloc(list->at, (list->n + 1) * sizeof *grown);
    if (!grown) {
        fprintf(stderr, "diffpak %s: no memory for the arguments\n", command);
        return CLI_FAILED;
    }
    list->at = grown;
    list->at[list->n++] = value;
    return CLI_GOOD;
}

static bool read_real(const char *text, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && isfinite(*out) && *out >= 0;
}

static bool read_bytes(const char *text, uint64_t *out) {
    static const char units[] = "KMG";
    char digits[32];
    size_t n = strlen(text);
    const char *unit = n ? strchr(units, text[n - 1] & ~32) : NULL;
    if (!unit || !*unit) return dpk_cli_u64(text, out);
    if (n > sizeof digits) return false;
    memcpy(digits, text, n - 1);
    digits[n - 1] = 0;
    int shift = 10 * (int)(unit - units + 1);
    if (!dpk_cli_u64(digits, out) || *out > UINT64_MAX >> shift) return false;
    *out <<= shift;
    return true;
}

int dpk_cli_set(const char *command, const struct dpk_cli_option *o, const char *value) {
    uint64_t whole;
    double real;
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->to = true;
        return CLI_GOOD;
    case CLI_TEXT:
        *(const char **)o->to = value;
        return CLI_GOOD;
    case CLI_LIST:
        return dpk_cli_append(command, o->to, value);
    case CLI_COUNT:
        if (!dpk_cli_u64(value, &whole) || whole < 1 || whole > INT32_MAX)
            return dpk_cli_usage(command, "%s %s: want a whole number from 1 to %d", o->name, value,
                                 INT32_MAX);
        *(uint32_t *)o->to = (uint32_t)whole;
        return CLI_GOOD;
    case CLI_REAL:
        if (!read_real(value, &real) || !isfinite((float)real))
            return dpk_cli_usage(command, "%s %s: want a number from 0", o->name, value);
        *(float *)o->to = (float)real;
        return CLI_GOOD;
    case CLI_EXACT:
        if (!read_real(value, o->to))
            return dpk_cli_usage(command, "%s %s: want a number from 0", o->name, value);
        return CLI_GOOD;
    case CLI_BYTES:
        if (!read_bytes(value, o->to))
            return dpk_cli_usage(command, "%s %s: want bytes, as 3000000, 512M or 4G", o->name,
                                 value);
        return CLI_GOOD;
    }
    return CLI_USAGE;
}

/* The option that an argument names, and its value if that stands in the same argument. */
static const struct dpk_cli_option *find_option(const struct dpk_cli_option *options, size_t n,
                                                const char *arg, const char **value) {
    *value = NULL;
    for (size_t i = 0; i < n; i++) {
        const struct dpk_cli_option *o = &options[i];
        size_t length = strlen(o->name);
        if (o->letter && !strcmp(arg, o->letter)) return o;
        if (strncmp(arg, o->name, length)) continue;
        if (!arg[length]) return o;
        if (arg[length] == '=' && o->kind != CLI_FLAG) {
            *value = arg + length + 1;
            return o;
        }
    }
    return NULL;
}

int dpk_cli_parse_rest(int argc, char **argv, const struct dpk_cli_option *options,
                       size_t n_options, const char *const *names, const char **positional,
                       size_t n_positional, struct dpk_cli_list *rest) {
    const char *command = argv[0];
    size_t n = 0;
    int status;
    bool only_positional = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value;
        if (only_positional || arg[0] != '-' || !arg[1]) {
            if (n < n_positional) positional[n++] = arg;
            else if (!rest) return dpk_cli_usage(command, "one argument too many: %s", arg);
            else if ((status = dpk_cli_append(command, rest, arg))) return status;
            continue;
        }
        if (!strcmp(arg, "--")) {
            only_positional = true;
            continue;
        }
        const struct dpk_cli_option *o = find_option(options, n_options, arg, &value);
        if (!o) return dpk_cli_usage(command, "unknown option %s", arg);
        if (o->kind != CLI_FLAG && !value) {
            if (i + 1 == argc) return dpk_cli_usage(command, "%s needs a value", arg);
            value = argv[++i];
        }
        if ((status = dpk_cli_set(command, o, value))) return status;
    }
    if (n < n_positional) return dpk_cli_usage(command, "%s is missing", names[n]);
    return CLI_GOOD;
}

int dpk_cli_parse(int argc, char **argv, const struct dpk_cli_option *options, size_t n_options,
                  const char *const *names, const char **positional, size_t n_positional) {
    return dpk_cli_parse_rest(argc, argv, options, n_options, names, positional, n_positional,
                              NULL);
}
