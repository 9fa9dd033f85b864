#include "cli_batch.h"

#include "../formats/atomic_file.h"
#include "../formats/json_scan.h"
#include "../formats/utf8.h"
#include "tokenizer_impl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- Reading the file --------------------------------------------------------------------- */

/* Set the option that a key names: value as JSON has it, a string already decoded. */
static int set_key(struct dpk_cli_line *line, const char *command, const char *key,
                   const char *value, bool is_string) {
    struct dpk_cli_option options[CLI_PICTURE_OPTIONS], *o = NULL;
    char name[32];
    bool is_true = !is_string && !strcmp(value, "true");
    bool is_false = !is_string && !strcmp(value, "false");
    dpk_cli_picture_options(&line->picture, options);
    snprintf(name, sizeof name, "--%s", key);
    for (char *c = name; *c; c++)
        if (*c == '_') *c = '-';
    for (size_t i = 0; i < CLI_N(options) && !o; i++)
        if (!strcmp(options[i].name, name)) o = &options[i];
    if (!o || strlen(key) + 3 > sizeof name)
        return dpk_cli_usage(command, "unknown key \"%.40s\"", key);
    if (!is_string && !strcmp(value, "null")) return CLI_GOOD;
    if (o->kind == CLI_FLAG) {
        if (!is_true && !is_false)
            return dpk_cli_usage(command, "%s %.40s: want true or false", key, value);
        *(bool *)o->to = is_true;
        return CLI_GOOD;
    }
    if (is_true || is_false || (!is_string && strchr("{[", value[0])))
        return dpk_cli_usage(command, "%s %.40s: want a text or a number", key, value);
    char *owned = strdup(value);
    if (!owned) return dpk_cli_usage(command, "no memory for a line");
    if (dpk_cli_append(command, &line->values, owned)) {
        free(owned);
        return CLI_FAILED;
    }
    return dpk_cli_set(command, o, owned);
}

/* One JSON object, which is consumed. */
static int read_object(struct dpk_cli_line *line, const char *command, char *text) {
    struct dpk_json_scan s = {.text = text, .n = strlen(text), .name = command};
    dpk_error err = {0};
    int rc = dpk_json_expect(&s, '{', &err), status = CLI_GOOD;
    bool empty = !rc && dpk_json_accept(&s, '}');
    while (!rc && !empty && !status) {
        const char *key = "", *value = "";
        rc = dpk_json_string(&s, &key, &err);
        if (!rc) rc = dpk_json_expect(&s, ':', &err);
        if (rc) break;
        dpk_json_space(&s);
        bool is_string = s.at < s.n && s.text[s.at] == '"';
        char *start = s.text + s.at, end = 0;
        rc = is_string ? dpk_json_string(&s, &value, &err) : dpk_json_skip_value(&s, 0, &err);
        if (rc) break;
        if (!is_string) { /* ended for the moment; its last byte stays to be read */
            value = start, end = s.text[s.at], s.text[s.at] = 0;
        }
        status = set_key(line, command, key, value, is_string);
        if (!is_string) s.text[s.at] = end;
        if (!dpk_json_accept(&s, ',')) break;
    }
    if (!rc && !status && !empty) rc = dpk_json_expect(&s, '}', &err);
    if (!rc && !status) rc = dpk_json_end(&s, &err);
    if (rc) {
        fprintf(stderr, "diffpak %s\n", err.msg);
        status = CLI_FAILED;
    }
    return status;
}

static int read_line(struct dpk_cli_line *line, const char *path, char *text,
                     const struct dpk_cli_picture *defaults) {
    char command[400];
    snprintf(command, sizeof command, "generate: %.300s line %u", path, line->number);
    line->picture = *defaults;
    line->picture.prompts = line->picture.seeds = (struct dpk_cli_list){0};
    size_t length = strlen(text);
    if (dpk_utf8_check(text, length) != length) return dpk_cli_usage(command, "not UTF-8");
    int status = text[0] == '{' ? read_object(line, command, text)
                                : set_key(line, command, "prompt", text, true);
    if (status) return CLI_FAILED;
    if (!line->picture.init && line->picture.strength == defaults->strength)
        line->picture.strength = -1; /* for the lines that have a picture to start from */
    if (!line->picture.seeds.n && defaults->seeds.n)
        status = dpk_cli_append(command, &line->picture.seeds, defaults->seeds.at[0]);
    if (!status && (line->picture.prompts.n > 1 || line->picture.seeds.n > 1))
        status = dpk_cli_usage(command, "%s twice, want one picture a line",
                               line->picture.seeds.n > 1 ? "seed" : "prompt");
    const dpk_params *p = &line->picture.params;
    const char *prompt = line->picture.prompts.n ? line->picture.prompts.at[0] : "";
    if (!status && (strlen(prompt) > DPK_TOK_MAX_TEXT ||
                    (p->negative && strlen(p->negative) > DPK_TOK_MAX_TEXT)))
        status = dpk_cli_usage(command, "a prompt above %d bytes", DPK_TOK_MAX_TEXT);
    if (!status) status = dpk_cli_picture_settle(&line->picture, command);
    return status ? CLI_FAILED : CLI_GOOD;
}

/* A line without its end, white space around it and, in the first, a byte order mark. */
static char *trim(char *text, size_t length, bool first) {
    const size_t mark = first ? dpk_utf8_mark(text) : 0;
    text += mark, length -= mark;
    while (length && strchr(" \t\r\n", text[length - 1])) text[--length] = 0;
    return text + strspn(text, " \t");
}

static int read_lines(struct dpk_cli_batch *b, FILE *file, const struct dpk_cli_picture *defaults,
                      const char *command) {
    char *buffer = NULL;
    size_t size = 0;
    ssize_t got;
    int status = CLI_GOOD;
    for (unsigned number = 1; !status && (got = getline(&buffer, &size, file)) >= 0; number++) {
        if (memchr(buffer, 0, (size_t)got))
            status = dpk_cli_usage(command, "%s line %u: a NUL byte", b->path, number);
        char *text = trim(buffer, (size_t)got, number == 1);
        if (status || !*text || b->n_pictures++ % b->n_shards != b->shard - 1) continue;
        struct dpk_cli_line *grown = realloc(b->lines, (b->n + 1) * sizeof *grown);
        if (!grown) {
            status = dpk_cli_usage(command, "%s: no memory for %zu lines", b->path, b->n + 1);
            continue;
        }
        b->lines = grown;
        b->lines[b->n] = (struct dpk_cli_line){.number = number, .index = b->n_pictures};
        status = read_line(&b->lines[b->n++], b->path, text, defaults);
    }
    if (!status && ferror(file)) {
        fprintf(stderr, "diffpak: %s: cannot read: %s\n", b->path, strerror(errno));
        status = CLI_FAILED;
    }
    free(buffer);
    return status == CLI_USAGE ? CLI_FAILED : status;
}

/* ---- Shards ------------------------------------------------------------------------------- */

/* A variable that is not set, or empty, leaves *out as it is; false if it is no number. */
static bool env_number(const char *name, uint64_t *out, bool *set) {
    const char *text = getenv(name);
    *set = text && *text;
    return !*set || dpk_cli_u64(text, out);
}

/* The place of this task in a Slurm job array (sbatch(1), --array), 1/1 outside of one. */
static int shard_of_slurm(struct dpk_cli_batch *b, const char *command) {
    uint64_t id = 0, count = 0, least = 0, step = 1;
    bool in_array, counted, set;
    b->shard = b->n_shards = 1;
    bool good = env_number("SLURM_ARRAY_TASK_ID", &id, &in_array);
    good = env_number("SLURM_ARRAY_TASK_COUNT", &count, &counted) && good;
    good = env_number("SLURM_ARRAY_TASK_MIN", &least, &set) && good;
    good = env_number("SLURM_ARRAY_TASK_STEP", &step, &set) && good;
    if (!in_array) return CLI_GOOD;
    if (!good || !counted || !step)
        return dpk_cli_usage(command, "SLURM_ARRAY_TASK_ID is set, but _COUNT, _MIN or _STEP of it "
                                      "is no number: give --shard I/N");
    if (id < least || (id - least) % step || (id - least) / step >= count || count > INT32_MAX)
        return dpk_cli_usage(command,
                             "task %" PRIu64 " of %" PRIu64 " from %" PRIu64
                             ": want an array without gaps, or --shard I/N",
                             id, count, least);
    b->shard = (uint32_t)((id - least) / step) + 1;
    b->n_shards = (uint32_t)count;
    return CLI_GOOD;
}

static int read_shard(struct dpk_cli_batch *b, const char *text, const char *command) {
    uint64_t i, n;
    char digits[16];
    size_t length = strcspn(text, "/");
    bool good = length && length < sizeof digits && text[length];
    if (good) {
        memcpy(digits, text, length);
        digits[length] = 0;
        good = dpk_cli_u64(digits, &i) && dpk_cli_u64(text + length + 1, &n) && i >= 1 && i <= n &&
               n <= INT32_MAX;
    }
    if (!good) return dpk_cli_usage(command, "--shard %s: want I/N with I of 1 to N", text);
    b->shard = (uint32_t)i, b->n_shards = (uint32_t)n;
    return CLI_GOOD;
}

int dpk_cli_batch_read(struct dpk_cli_batch *b, const char *path, const char *shard,
                       const struct dpk_cli_picture *defaults, const char *command) {
    b->path = path;
    int status = shard ? read_shard(b, shard, command) : shard_of_slurm(b, command);
    if (status) return status;
    FILE *file = fopen(path, "re");
    if (!file) {
        fprintf(stderr, "diffpak: %s: cannot open: %s\n", path, strerror(errno));
        return CLI_FAILED;
    }
    status = read_lines(b, file, defaults, command);
    fclose(file);
    if (!status && !b->n_pictures) {
        fprintf(stderr, "diffpak: %s: no prompt in it\n", path);
        status = CLI_FAILED;
    }
    return status;
}

void dpk_cli_batch_free(struct dpk_cli_batch *b) {
    for (size_t i = 0; i < b->n; i++) {
        struct dpk_cli_line *line = &b->lines[i];
        dpk_cli_picture_free(&line->picture);
        for (uint32_t k = 0; k < line->values.n; k++) free((char *)line->values.at[k]);
        free(line->values.at);
    }
    free(b->lines);
    *b = (struct dpk_cli_batch){0};
}
