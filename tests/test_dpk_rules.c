/* Every rule of FORMAT.md: one change each to a valid file, with the sums made to fit again, must
 * be refused for its own reason, by the C reader and by the second reader (read_dpk.py). */
#include "support_dpk.h"

#include "../formats/dpk_check.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

/* Places in the front of a file in memory. */
static struct dpk_section *section(uint8_t *file, int id) {
    return (struct dpk_section *)(void *)(file + sizeof(struct dpk_header)) + (id - 1);
}
static void *record(uint8_t *file, int id, size_t offset) {
    return file + section(file, id)->offset + offset;
}
static struct dpk_tensor_record *tensor_of(uint8_t *file, uint32_t i) {
    return record(file, DPK_SECTION_TENSORS, i * sizeof(struct dpk_tensor_record));
}
static struct dpk_program_entry *entry_of(uint8_t *file, uint32_t i) {
    return record(file, DPK_SECTION_PROGRAMS, i * sizeof(struct dpk_program_entry));
}
static struct dpk_value *value_of(uint8_t *file, uint32_t program, uint32_t v) {
    return record(file, DPK_SECTION_PROGRAMS,
                  entry_of(file, program)->offset + v * sizeof(struct dpk_value));
}
/* The first operator of this kind, in any program. */
static struct dpk_op *op_of(uint8_t *file, uint32_t opcode) {
    for (uint32_t i = 0; i < section(file, DPK_SECTION_PROGRAMS)->count; i++) {
        const struct dpk_program_entry *e = entry_of(file, i);
        const size_t values = (e->n_inputs + e->n_ops) * sizeof(struct dpk_value);
        struct dpk_op *ops =
            record(file, DPK_SECTION_PROGRAMS, e->offset + dpk_round_up(values, DPK_ALIGN));
        for (uint32_t j = 0; j < e->n_ops; j++)
            if (ops[j].opcode == opcode) return &ops[j];
    }
    fail_msg("no operator %u", opcode);
    return NULL;
}
static struct dpk_tensor_record *tensor_of_type(uint8_t *file, uint32_t dtype) {
    for (uint32_t i = 0; i < section(file, DPK_SECTION_TENSORS)->count; i++)
        if (tensor_of(file, i)->dtype == dtype) return tensor_of(file, i);
    fail_msg("no tensor of type %u", dtype);
    return NULL;
}

#define HEADER ((struct dpk_header *)(void *)f)
#define SECTION(name) section(f, DPK_SECTION_##name)
#define OP(name) op_of(f, DPK_OP_##name)
#define TENSOR(i) tensor_of(f, i)
#define VALUE(program, v) value_of(f, program, v)
#define PAIRS ((struct dpk_pair *)record(f, DPK_SECTION_METADATA, 0))
#define BLOBS ((struct dpk_blob_entry *)record(f, DPK_SECTION_TOKENIZERS, 0))
#define STRINGS ((char *)record(f, DPK_SECTION_STRINGS, 0))
/* Padding between values and operators: the first program with an odd number of values. */
static uint8_t *op_padding(uint8_t *f) {
    for (uint32_t i = 0; i < SECTION(PROGRAMS)->count; i++) {
        const struct dpk_program_entry *e = entry_of(f, i);
        const size_t n = e->n_inputs + e->n_ops;
        if (n % 2) return record(f, DPK_SECTION_PROGRAMS, e->offset + n * 32);
    }
    fail_msg("no program with padding");
    return NULL;
}

/* One change, and a part of the message that it must give. A function returns the message of its
 * rule number `index`, having made the change, or NULL when it has no such rule. */
#define RULE(want, ...)                                                                            \
    if (i++ == index) {                                                                            \
        __VA_ARGS__;                                                                               \
        return want;                                                                               \
    }

/* Header, sections, strings, metadata, tokenizers. */
static const char *break_frame(uint8_t *f, int index) {
    int i = 0;
    RULE("not a .dpk", HEADER->magic[1] ^= 1);
    RULE("version 2", HEADER->version = 2);
    RULE("5 sections", HEADER->n_sections = 5);
    RULE("reserved", HEADER->zero[3] = 1);
    RULE("its header says", HEADER->file_bytes += 1);
    RULE("id 9", SECTION(TENSORS)->id = 9);
    RULE("section metadata: offset", SECTION(METADATA)->offset += 64);
    RULE("section strings: offset", SECTION(STRINGS)->offset = UINT64_MAX - 63);
    RULE("section weights: offset", SECTION(WEIGHTS)->offset += 64);
    RULE("section weights:", SECTION(WEIGHTS)->bytes = UINT64_MAX);
    RULE("sections end at", SECTION(WEIGHTS)->bytes -= 1);
    RULE("count 1, want 0", SECTION(WEIGHTS)->count = 1);
    RULE("section metadata:", SECTION(METADATA)->count += 1);
    RULE("section tensors:", SECTION(TENSORS)->count = UINT32_MAX);
    RULE("section tokenizers:", SECTION(TOKENIZERS)->count = UINT32_MAX);
    RULE("section programs:", SECTION(PROGRAMS)->count = UINT32_MAX);
    RULE("want at most", SECTION(STRINGS)->bytes = (uint64_t)1 << 40);
    RULE("padding before section", f[SECTION(METADATA)->offset - 1] = 1);
    RULE("padding before section weights", f[SECTION(WEIGHTS)->offset - 1] = 1);
    RULE("empty string first", STRINGS[0] = 'a');
    RULE("zero byte last", STRINGS[SECTION(STRINGS)->bytes - 1] = 'a');
    RULE("no UTF-8", STRINGS[1] = (char)0xc0);
    RULE("no UTF-8", memcpy(STRINGS + 1, "\xed\xa0\x80", 3));
    RULE("no UTF-8", memcpy(STRINGS + 1, "\xf4\x90\x80\x80", 4));
    RULE("no UTF-8", memcpy(STRINGS + 1, "\xe0\x9f\xbf", 3));
    RULE("second empty", STRINGS[1] = 0);
    RULE("strings, count says", SECTION(STRINGS)->count -= 1);
    RULE("control character", STRINGS[TENSOR(2)->name + 1] = '\n');
    RULE("where no string begins", PAIRS[1].key += 1);
    RULE("where no string begins", PAIRS[1].key = UINT32_MAX);
    RULE("where no string begins", PAIRS[0].value += 1);
    RULE("0 bytes", PAIRS[0].key = 0);
    RULE("want rising keys", PAIRS[2].key = PAIRS[1].key);
    RULE("want rising keys", PAIRS[2].key = PAIRS[0].key);
    RULE("kind 3", BLOBS[0].kind = 3);
    RULE("two tokenizers", BLOBS[1].name = BLOBS[0].name);
    RULE("tokenizer tokenizer_2", BLOBS[1].offset -= 64);
    RULE("tokenizer tokenizer_2", BLOBS[1].offset = UINT64_MAX - 63);
    RULE("tokenizer tokenizer_2", BLOBS[1].bytes = UINT64_MAX);
    RULE("tokenizer tokenizer_2", BLOBS[1].bytes = 0);
    RULE("the last one ends", BLOBS[1].bytes -= 1);
    RULE("reserved", BLOBS[0].zero = 1);
    RULE("reserved", f[SECTION(TOKENIZERS)->offset + 64 + 333] = 1);
    return NULL;
}

/* The tensor table. */
static const char *break_tensors(uint8_t *f, int index) {
    int i = 0;
    RULE("two tensors", TENSOR(3)->name = TENSOR(7)->name);
    RULE("0 bytes", TENSOR(3)->name = 0);
    RULE("source at", TENSOR(3)->source += 1);
    RULE("type 7", TENSOR(3)->dtype = 7);
    RULE("type 0", TENSOR(3)->dtype = 0);
    RULE("layout 3", TENSOR(3)->layout = 3);
    RULE("rank 5", TENSOR(3)->rank = 5);
    RULE("rank 0", TENSOR(3)->rank = 0);
    RULE("is not a shape", TENSOR(3)->rank = UINT32_MAX);
    RULE("is not a shape", TENSOR(3)->dim[3] = 1);
    RULE("is not a shape", TENSOR(3)->dim[0] = -24);
    RULE("is not a shape", TENSOR(0)->dim[0] = INT32_MAX; TENSOR(0)->dim[1] = INT32_MAX);
    RULE("no panel of i32", TENSOR(0)->layout = 1; TENSOR(0)->dtype = DPK_I32);
    RULE("no panel_glu of", tensor_of_type(f, DPK_S8)->layout = 2;
         tensor_of_type(f, DPK_S8)->dim[0] -= 1);
    RULE("bytes, want", TENSOR(3)->dim[0] += 1);
    RULE("bytes, want", TENSOR(3)->bytes += 1);
    RULE("want offset", TENSOR(3)->offset += 64);
    RULE("want offset", TENSOR(0)->offset = UINT64_MAX - 63);
    RULE("reserved", TENSOR(3)->zero[12] = 1);
    RULE("a scale for", TENSOR(3)->scale = 0);
    RULE("a colsum for", TENSOR(3)->colsum = 0);
    RULE("group 8 for", TENSOR(3)->group = 8);
    RULE("for panels only", tensor_of_type(f, DPK_S8)->layout = 0;
         tensor_of_type(f, DPK_S8)->flags = 0);
    RULE("scale is tensor", tensor_of_type(f, DPK_S8)->scale = DPK_NONE);
    RULE("colsum is tensor", tensor_of_type(f, DPK_S8)->colsum = DPK_NONE);
    RULE("colsum (tensor 0)", tensor_of_type(f, DPK_S8)->colsum = 0);
    RULE("scale (tensor 0)", tensor_of_type(f, DPK_S4)->scale = 0);
    RULE("a multiple of 8", tensor_of_type(f, DPK_S4)->group = 7);
    RULE("a multiple of 8", tensor_of_type(f, DPK_S4)->group = 0);
    return NULL;
}

/* Programs, values, operators as records. */
static const char *break_programs(uint8_t *f, int index) {
    int i = 0;
    RULE("two programs", entry_of(f, 1)->name = entry_of(f, 0)->name);
    RULE("want some", entry_of(f, 1)->n_ops = 0);
    RULE("want some", entry_of(f, 1)->n_inputs = 0);
    RULE("program setup: ", entry_of(f, 1)->n_ops = UINT32_MAX);
    RULE("program setup: ", entry_of(f, 1)->bytes += 64);
    RULE("want offset", entry_of(f, 1)->offset += 64);
    RULE("want offset", entry_of(f, 1)->offset = UINT64_MAX - 63);
    RULE("marked as outputs", entry_of(f, 1)->n_outputs += 1);
    RULE("marked as outputs", entry_of(f, 0)->n_outputs = 0);
    RULE("flags 0x2", VALUE(0, 0)->flags = 2);
    RULE("of an input", VALUE(0, 0)->flags = 1);
    RULE("value 0: reserved", VALUE(0, 0)->zero[1] = 1);
    RULE("type 4", VALUE(0, 0)->type = 4);
    RULE("no operator's result", VALUE(0, 2)->type = DPK_VALUE_I32);
    RULE("0 bytes", VALUE(0, 0)->name = 0);
    RULE("two inputs or outputs", VALUE(0, 1)->name = VALUE(0, 0)->name);
    RULE("value 0: rank 0", VALUE(0, 0)->rank = 0);
    RULE("value 0: rank 5", VALUE(0, 0)->rank = 5);
    RULE("value 0: rank 2", VALUE(0, 0)->dim[1] = -1);
    RULE("value 0: rank 2", VALUE(0, 0)->dim[2] = 1);
    RULE("value 2: rank 1", VALUE(0, 2)->rank = 1);
    RULE("padding is not zero", op_padding(f)[0] = 1);
    RULE("opcode 17", OP(linear)->opcode = DPK_N_OPCODES);
    RULE("opcode 0", OP(linear)->opcode = 0);
    RULE("where no string begins", OP(linear)->name += 1);
    RULE("reserved", OP(linear)->zero[3] = 1);
    RULE("attribute word 3", OP(linear)->attr[3].i = 1);
    RULE("input 1 is 0", OP(embedding)->in[1] = 0);
    RULE("input ids is missing", OP(embedding)->in[0] = DPK_NONE);
    RULE("its own is", OP(embedding)->in[0] = 2);
    RULE("input x is i32, want act", OP(linear)->in[0] = 0);
    RULE("input t is act", OP(sinusoid)->in[0] = 2);
    RULE("the result is f32", VALUE(0, 2)->type = DPK_VALUE_F32);
    RULE("weight 2 is 0", OP(embedding)->wt[2] = 0);
    RULE("weight table is missing", OP(embedding)->wt[0] = DPK_NONE);
    RULE("weight table is tensor", OP(embedding)->wt[0] = SECTION(TENSORS)->count);
    RULE("want raw", OP(embedding)->wt[0] = OP(linear)->wt[0]);
    RULE("want panel", OP(linear)->wt[0] = OP(embedding)->wt[0]);
    RULE("want vec", OP(linear)->wt[1] = OP(embedding)->wt[0]);
    RULE("want panel", OP(linear)->attr[1].i = 1);
    RULE("glu is 2", OP(linear)->attr[1].i = 2);
    RULE("act is 5", OP(linear)->attr[0].i = DPK_N_ACTS);
    return NULL;
}

/* What ops.def says about attributes and shapes of weights. */
static const char *break_operators(uint8_t *f, int index) {
    int i = 0;
    RULE("act is -1", OP(linear)->attr[0].i = -1);
    RULE("without a gate", OP(linear)->attr[2].i = 1);
    RULE("gate_off is -1", OP(linear)->attr[2].i = -1);
    RULE("b is", OP(linear)->wt[1] = OP(layer_norm)->wt[0]);
    RULE("want rank 4", OP(conv2d)->wt[0] = OP(linear)->wt[0]);
    RULE("pad_left is 3", OP(conv2d)->attr[2].i = 3);
    RULE("stride is 0", OP(conv2d)->attr[0].i = 0);
    RULE("without upsample", OP(conv2d)->in[3] = 3);
    RULE("do not divide", OP(group_norm)->attr[0].i = 7);
    RULE("eps is not a number", OP(group_norm)->attr[1].f = NAN);
    RULE("eps is inf", OP(group_norm)->attr[1].f = INFINITY);
    RULE("eps is 0", OP(layer_norm)->attr[0].f = 0);
    RULE("beta is given", OP(layer_norm)->attr[1].i = 1);
    RULE("without mod", OP(layer_norm)->attr[2].i = 1);
    RULE("heads is 0", OP(attention)->attr[0].i = 0);
    RULE("k_off is -8", OP(attention)->attr[3].i = -8);
    RULE("too many", OP(attention)->attr[0].i = 1 << 30);
    RULE("scale is -1", OP(attention)->attr[6].f = -1);
    RULE("eos_id is -2", OP(eos_pool)->attr[0].i = -2);
    RULE("dim is 15", OP(sinusoid)->attr[0].i = 15);
    RULE("freq_shift is 8", OP(sinusoid)->attr[2].f = 8);
    RULE("max_period is 0", OP(sinusoid)->attr[3].f = 0);
    RULE("lo is 1", OP(slice)->attr[4].f = 1; OP(slice)->attr[5].f = 0);
    RULE("off is -1", OP(slice)->attr[0].i = -1);
    RULE("mul is", OP(slice)->attr[2].f = INFINITY);
    RULE("either c or table", OP(add)->wt[0] = DPK_NONE);
    RULE("either c or table", OP(add)->in[1] = OP(add)->in[0]);
    RULE("base is 0", OP(pos_embed_2d)->attr[0].i = 0);
    RULE("patch is -1", OP(unpatchify)->attr[0].i = -1);
    RULE("buckets is 31", OP(relative_bias)->attr[0].i = 31);
    RULE("buckets is 16", OP(relative_bias)->attr[0].i = 16);
    RULE("max_distance is 8", OP(relative_bias)->attr[1].i = 8);
    return NULL;
}

static const char *(*const breakers[])(uint8_t *f, int index) = {break_frame, break_tensors,
                                                                 break_programs, break_operators};
enum { N_BREAKERS = sizeof breakers / sizeof *breakers };

/* The rules on memory, as dpk_file_open runs them. */
static int check_memory(const uint8_t *file, size_t n, dpk_error *err) {
    struct dpk_file f = {.fd = -1, .file_bytes = n};
    int rc = dpk_check_table(file, n, "memory", err);
    if (rc == DPK_OK) {
        struct dpk_section weights;
        memcpy(&weights, file + sizeof(struct dpk_header) + 5 * sizeof weights, sizeof weights);
        f.front = aligned_alloc(DPK_ALIGN, (size_t)weights.offset); /* tight, for the sanitizer */
        memcpy(f.front, file, (size_t)weights.offset);
        rc = dpk_check_front(&f, "memory", err);
    }
    dpk_file_close(&f);
    return rc;
}

static uint8_t *good;
static size_t n_good;
static char *folder;

static int setup(void **state) {
    (void)state;
    char path[600];
    dpk_error err;
    folder = support_folder_make();
    snprintf(path, sizeof path, "%s/good.dpk", folder);
    if (support_dpk_write(path, 21, 2, &err) != DPK_OK) return -1;
    good = support_file_read(path, &n_good);
    return check_memory(good, n_good, &err);
}
static int teardown(void **state) {
    (void)state;
    free(good);
    support_folder_remove(folder);
    return 0;
}

/* The good file with one rule broken and every sum right, to be freed; NULL: no such rule. */
static uint8_t *broken(int breaker, int index, const char **want) {
    uint8_t *f = aligned_alloc(64, (n_good + 63) / 64 * 64);
    memcpy(f, good, n_good);
    *want = breakers[breaker](f, index);
    if (!*want) {
        free(f);
        return NULL;
    }
    support_dpk_repair(f, n_good);
    return f;
}

static void test_every_rule(void **state) {
    (void)state;
    int n_wrong = 0, n_rules = 0;
    for (int b = 0; b < N_BREAKERS; b++) {
        const char *want;
        for (uint8_t *f; (f = broken(b, n_rules, &want)); n_rules++) {
            dpk_error err = {0};
            const int rc = check_memory(f, n_good, &err);
            if (rc != DPK_EFORMAT || !strstr(err.msg, want)) {
                print_error("rule %d of group %d: want \"%s\", got %d %s\n", n_rules, b, want, rc,
                            err.msg);
                n_wrong++;
            }
            free(f);
        }
        assert_true(n_rules > 5);
        n_rules = 0;
    }
    assert_int_equal(n_wrong, 0);
}

/* Any byte of the front changed and every sum repaired: accepted or refused, but never a crash. The
 * many values tried are what a fuzzer's first minutes would try. */
static void test_random_changes(void **state) {
    (void)state;
    static const uint32_t interesting[] = {0,          1,          0x7fffffff, 0x80000000,
                                           0xffffffff, 0xfffffffe, 0x10000,    64};
    uint64_t random = 3;
    dpk_error err;
    const size_t front = (size_t)section(good, DPK_SECTION_WEIGHTS)->offset;
    uint8_t *f = aligned_alloc(64, (n_good + 63) / 64 * 64);
    int n_accepted = 0;
    for (int i = 0; i < 20000; i++) {
        memcpy(f, good, n_good);
        for (uint32_t n = 1 + support_random(&random) % 3; n-- > 0;) {
            const size_t at = support_random(&random) % (front / 4) * 4;
            uint32_t v = support_random(&random);
            if (v % 4) v = interesting[v / 4 % 8];
            memcpy(f + at, &v, sizeof v);
        }
        support_dpk_repair(f, n_good);
        n_accepted += check_memory(f, n_good, &err) == DPK_OK;
    }
    assert_true(n_accepted < 20000);
    free(f);
}

/* ---- The second reader ---- */

static FILE *second_reader(const char *arguments) {
    char command[1200];
    snprintf(command, sizeof command, "python3 tests/read_dpk.py %s", arguments);
    return popen(command, "r");
}

static void test_second_reader_refuses(void **state) {
    (void)state;
    if (system("python3 -c '' 2>/dev/null") != 0) skip();
    /* All broken files one after the other in one file, each with its size before it. */
    char path[600], line[700];
    snprintf(path, sizeof path, "%s/batch", folder);
    FILE *out = fopen(path, "wb");
    int n = 0;
    for (int b = -1; b < N_BREAKERS; b++) {
        const char *want = "";
        for (int index = 0; b >= 0 || index < 1; index++) {
            uint8_t *f = b < 0 ? good : broken(b, index, &want);
            if (!f) break;
            const uint64_t size = n_good;
            assert_int_equal(fwrite(&size, 8, 1, out), 1);
            assert_int_equal(fwrite(f, 1, n_good, out), n_good);
            if (f != good) free(f);
            n++;
        }
    }
    assert_int_equal(fclose(out), 0);
    snprintf(line, sizeof line, "--batch %s", path);
    FILE *in = second_reader(line);
    int i = 0, n_wrong = 0;
    for (; fgets(line, sizeof line, in); i++) {
        const bool refused = strncmp(line, "refused: ", 9) == 0;
        if (refused == (i > 0)) continue;
        print_error("file %d: %s", i, line);
        n_wrong++;
    }
    assert_int_equal(pclose(in), 0);
    assert_int_equal(i, n);
    assert_int_equal(n_wrong, 0);
}

/* Both readers give the same verdict on random changes. */
static void test_second_reader_agrees(void **state) {
    (void)state;
    if (system("python3 -c '' 2>/dev/null") != 0) skip();
    enum { N = 1500 };
    static bool accepted[N];
    uint64_t random = 8;
    char path[600], line[700];
    dpk_error err;
    const size_t front = (size_t)section(good, DPK_SECTION_WEIGHTS)->offset;
    uint8_t *f = aligned_alloc(64, (n_good + 63) / 64 * 64);
    snprintf(path, sizeof path, "%s/batch", folder);
    FILE *out = fopen(path, "wb");
    for (int i = 0; i < N; i++) {
        memcpy(f, good, n_good);
        const size_t at = support_random(&random) % (front / 4) * 4;
        const uint32_t v = support_random(&random) % 5;
        memcpy(f + at, &v, sizeof v);
        support_dpk_repair(f, n_good);
        accepted[i] = check_memory(f, n_good, &err) == DPK_OK;
        const uint64_t size = n_good;
        assert_int_equal(fwrite(&size, 8, 1, out), 1);
        assert_int_equal(fwrite(f, 1, n_good, out), n_good);
    }
    assert_int_equal(fclose(out), 0);
    free(f);
    snprintf(line, sizeof line, "--batch %s", path);
    FILE *in = second_reader(line);
    int i = 0, n_wrong = 0, n_accepted = 0;
    for (; i < N && fgets(line, sizeof line, in); i++) {
        n_accepted += accepted[i];
        if ((strncmp(line, "accepted", 8) == 0) == accepted[i]) continue;
        print_error("file %d: the C reader %s, the second: %s", i,
                    accepted[i] ? "accepts" : "refuses", line);
        n_wrong++;
    }
    assert_int_equal(pclose(in), 0);
    assert_int_equal(i, N);
    assert_int_equal(n_wrong, 0);
    assert_true(n_accepted > 0 && n_accepted < N);
}

/* One element of a panel as it lies in the file; *at moves on. */
static double next_element(const uint8_t **at, uint32_t dtype) {
    uint32_t bits = 0;
    float f;
    const size_t n = dtype == DPK_S8 ? 1 : dtype == DPK_BF16 ? 2 : 4;
    memcpy((uint8_t *)&bits + (dtype == DPK_BF16 ? 2 : 0), *at, n);
    memcpy(&f, &bits, sizeof f);
    *at += n;
    return dtype == DPK_S8 ? (int8_t)bits : (double)f;
}

/* Walk the array [panel][k / g][16][g] of a tensor in the order of its bytes, and put every element
 * that exists where it belongs in `rows` [rows][taps][c]. Returns the end of the bytes. */
static const uint8_t *walk_panels(const struct dpk_tensor_record *t, const uint8_t *at,
                                  double *values) {
    const size_t g = (size_t)dpk_panel_group((int)t->dtype);
    const bool glu = t->layout == DPK_LAYOUT_PANEL_GLU;
    const size_t rows = (size_t)t->dim[0], c = (size_t)t->dim[t->rank - 1];
    const size_t taps = t->rank == 4 ? (size_t)t->dim[1] * (size_t)t->dim[2] : 1;
    const size_t n_panels = glu ? (rows / 2 + 7) / 8 : (rows + 15) / 16;
    for (size_t p = 0; p < n_panels; p++)
        for (size_t tap = 0; tap < taps; tap++)
            for (size_t first = 0; first < c; first += g)
                for (size_t slot = 0; slot < 16; slot++)
                    for (size_t channel = first; channel < first + g; channel++) {
                        const size_t half = glu ? rows / 2 : rows;
                        const size_t row = glu ? p * 8 + slot % 8 : p * 16 + slot;
                        const size_t n = row + (glu && slot >= 8 ? half : 0);
                        const double value = next_element(&at, t->dtype);
                        if (row < half && channel < c)
                            values[(n * taps + tap) * c + channel] = value;
                    }
    return at;
}

/* Both readers find the same logical values in panels: here by walking the array of FORMAT.md,
 * there by its index formula. */
static void test_second_reader_unpacks(void **state) {
    (void)state;
    if (system("python3 -c '' 2>/dev/null") != 0) skip();
    char path[600], line[700];
    const uint32_t n_tensors = section(good, DPK_SECTION_TENSORS)->count;
    const uint8_t *weights = good + section(good, DPK_SECTION_WEIGHTS)->offset;
    unsigned seen = 0; /* kinds of tensors */
    snprintf(path, sizeof path, "%s/good.dpk", folder);
    for (uint32_t i = 0; i < n_tensors; i++) {
        const struct dpk_tensor_record *t = tensor_of(good, i);
        if (t->layout == DPK_LAYOUT_RAW || t->dtype == DPK_F16 || t->dtype == DPK_S4) continue;
        const struct dpk_shape shape = dpk_tensor_shape(t);
        const size_t n = (size_t)dpk_shape_count(&shape);
        double *want = calloc(n, sizeof *want);
        assert_true(walk_panels(t, weights + t->offset, want) == weights + t->offset + t->bytes);
        snprintf(line, sizeof line, "%s --unpack %s", path,
                 (const char *)record(good, DPK_SECTION_STRINGS, t->name));
        FILE *in = second_reader(line);
        for (size_t j = 0; j < n; j++) {
            double got;
            if (fscanf(in, "%lf", &got) != 1) fail_msg("tensor %u: only %zu values", i, j);
            if (got != want[j] && !(isnan(got) && isnan(want[j])))
                fail_msg("tensor %u, value %zu: %g, want %g", i, j, got, want[j]);
        }
        assert_int_equal(fgetc(in), '\n');
        assert_int_equal(fgetc(in), EOF);
        assert_int_equal(pclose(in), 0);
        free(want);
        seen |= 1u << (t->dtype + (t->rank == 4 ? 8 : t->layout == DPK_LAYOUT_PANEL_GLU ? 16 : 0));
    }
    /* Linears of f32, bf16, s8; convolutions of f32, bf16; a glu of f32. */
    assert_int_equal(seen, 0x12 + 4 + 0x600 + 0x20000);
}

/* The operators' chapter of FORMAT.md is that of ops.def. */
static void test_specification_is_current(void **state) {
    (void)state;
    if (system("python3 -c '' 2>/dev/null") != 0) skip();
    assert_int_equal(system("python3 tests/format_table.py --check"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_rule),
        cmocka_unit_test(test_random_changes),
        cmocka_unit_test(test_second_reader_refuses),
        cmocka_unit_test(test_second_reader_agrees),
        cmocka_unit_test(test_second_reader_unpacks),
        cmocka_unit_test(test_specification_is_current),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
