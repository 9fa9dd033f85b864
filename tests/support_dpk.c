#include "support_dpk.h"

#include "../formats/dpk_check.h"
#include "../formats/fail.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint32_t support_random(uint64_t *state) { /* splitmix64, upper half */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

/* ---- A program under construction ---- */

enum { MAX_VALUES = 40, MAX_TENSORS = 100 };
struct builder {
    struct dpk_writer *w;
    dpk_error *err;
    int rc; /* first failure; everything after it does nothing */
    uint64_t random;
    struct dpk_value values[MAX_VALUES];
    struct dpk_op ops[MAX_VALUES];
    uint32_t n_inputs, n_ops;
    uint32_t n_tensors;
    uint64_t sizes[MAX_TENSORS]; /* bytes of each tensor */
};

static uint32_t string(struct builder *b, const char *s) {
    uint32_t offset = 0;
    if (b->rc == DPK_OK) b->rc = dpk_writer_string(b->w, s, &offset, b->err);
    return offset;
}

static uint32_t input(struct builder *b, const char *name, int type, struct dpk_shape shape) {
    struct dpk_value *v = &b->values[b->n_inputs];
    *v = (struct dpk_value){
        .name = string(b, name), .type = (uint8_t)type, .rank = (uint8_t)shape.rank};
    memcpy(v->dim, shape.dim, sizeof v->dim);
    return b->n_inputs++;
}

/* The next operator, all operands absent; its value's number is in *value. */
static struct dpk_op *op(struct builder *b, uint32_t opcode, const char *name, uint32_t *value) {
    struct dpk_op *o = &b->ops[b->n_ops];
    *o = (struct dpk_op){.opcode = opcode, .name = string(b, name)};
    for (int i = 0; i < DPK_MAX_IN; i++) o->in[i] = DPK_NONE;
    for (int i = 0; i < DPK_MAX_WT; i++) o->wt[i] = DPK_NONE;
    *value = b->n_inputs + b->n_ops++;
    b->values[*value] = (struct dpk_value){.type = DPK_VALUE_ACT};
    return o;
}

static void output(struct builder *b, uint32_t value, const char *name) {
    b->values[value].name = string(b, name);
    b->values[value].flags = DPK_VALUE_OUTPUT;
}

static void program(struct builder *b, const char *name) {
    if (b->rc == DPK_OK)
        b->rc = dpk_writer_program(b->w, name, b->values, b->n_inputs, b->ops, b->n_ops, b->err);
    b->n_inputs = b->n_ops = 0;
}

static uint32_t tensor_full(struct builder *b, int dtype, int layout, struct dpk_shape shape,
                            uint32_t scale, uint32_t colsum, uint32_t group, uint32_t flags) {
    char name[64], source[96];
    uint32_t index = DPK_NONE;
    snprintf(name, sizeof name, "net.layer.%u.weight", b->n_tensors);
    snprintf(source, sizeof source, "layers.%u.q layers.%u.k", b->n_tensors, b->n_tensors);
    const struct dpk_tensor_spec spec = {name,  source, dtype, layout, shape,
                                         scale, colsum, group, flags};
    if (b->rc == DPK_OK) b->rc = dpk_writer_tensor(b->w, &spec, &index, b->err);
    b->sizes[b->n_tensors++] = dpk_weight_bytes(dtype, layout, &shape);
    return index;
}
static uint32_t tensor(struct builder *b, int dtype, int layout, struct dpk_shape shape) {
    return tensor_full(b, dtype, layout, shape, DPK_NONE, DPK_NONE, 0, 0);
}
static uint32_t vec(struct builder *b, int32_t n) {
    return tensor(b, DPK_F32, DPK_LAYOUT_RAW, (struct dpk_shape){1, {n}});
}

#define SHAPE(...)                                                                                 \
    (struct dpk_shape) {                                                                           \
        sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), { __VA_ARGS__ }                        \
    }

static uint32_t linear(struct builder *b, uint32_t x, int dtype, int32_t n, int32_t k,
                       uint32_t residual, int act) {
    uint32_t value;
    struct dpk_op *o = op(b, DPK_OP_linear, "net.linear", &value);
    o->in[DPK_IN(linear, x)] = x;
    o->in[DPK_IN(linear, residual)] = residual;
    o->wt[DPK_WT(linear, w)] = tensor(b, dtype, DPK_LAYOUT_PANEL, SHAPE(n, k));
    o->wt[DPK_WT(linear, b)] = vec(b, n);
    o->attr[0].i = act;
    return value;
}

static uint32_t cast(struct builder *b, uint32_t x, int type) {
    uint32_t value;
    struct dpk_op *o = op(b, DPK_OP_slice, "", &value);
    o->in[0] = x;
    o->attr[2].f = 1;
    o->attr[4].f = -INFINITY;
    o->attr[5].f = INFINITY;
    b->values[value].type = (uint8_t)type;
    return value;
}

/* ids [B,L], mask [B,L] to context [B,L,C], pooled [B,C]. C = 24 s: 3 heads of 8 s. */
static void text_program(struct builder *b, int s) {
    const int32_t c = 24 * s, vocabulary = 50 + (int32_t)(support_random(&b->random) % 20);
    const uint32_t ids = input(b, "ids", DPK_VALUE_I32, SHAPE(0, 9));
    const uint32_t mask = input(b, "mask", DPK_VALUE_I32, SHAPE(0, 9));
    uint32_t x, y, bias, qkv;
    struct dpk_op *o = op(b, DPK_OP_embedding, "text.embed", &x);
    o->in[0] = ids;
    o->wt[0] = tensor(b, DPK_F16, DPK_LAYOUT_RAW, SHAPE(vocabulary, c));
    o->wt[1] = tensor(b, DPK_BF16, DPK_LAYOUT_RAW, SHAPE(9, c));
    o = op(b, DPK_OP_relative_bias, "text.bias", &bias);
    o->in[0] = ids;
    o->wt[0] = tensor(b, DPK_F32, DPK_LAYOUT_RAW, SHAPE(32, 3));
    o->attr[0].i = 32;
    o->attr[1].i = 128;
    o = op(b, DPK_OP_layer_norm, "text.norm", &y);
    o->in[0] = x;
    o->wt[0] = vec(b, c);
    o->wt[1] = vec(b, c);
    o->attr[0].f = 1e-5f;
    qkv = linear(b, y, DPK_BF16, 3 * c, c, DPK_NONE, DPK_ACT_NONE);
    o = op(b, DPK_OP_attention, "text.attention", &y);
    for (int i = 0; i < 3; i++) o->in[i] = qkv, o->attr[2 + i].i = i * c;
    o->in[3] = mask;
    o->in[4] = bias;
    o->attr[0].i = 3;
    o->attr[1].i = 8 * s;
    o->attr[5].i = 1;
    x = linear(b, y, DPK_F16, c, c, x, DPK_ACT_QUICK_GELU);
    o = op(b, DPK_OP_linear, "text.glu", &y);
    o->in[0] = x;
    const int32_t f = 20 * s + (int32_t)(support_random(&b->random) % 7);
    o->wt[0] = tensor(b, DPK_F32, DPK_LAYOUT_PANEL_GLU, SHAPE(2 * f, c));
    o->wt[1] = vec(b, 2 * f);
    o->attr[0].i = DPK_ACT_GELU;
    o->attr[1].i = 1;
    x = linear(b, y, DPK_F32, c, f, x, DPK_ACT_NONE);
    o = op(b, DPK_OP_eos_pool, "text.pool", &y);
    o->in[0] = x;
    o->in[1] = ids;
    o->attr[0].i = -1;
    output(b, cast(b, x, DPK_VALUE_F32), "context");
    output(b, cast(b, y, DPK_VALUE_F32), "pooled");
    program(b, "text");
}

static void setup_program(struct builder *b, int s) {
    const int32_t c = 24 * s;
    const uint32_t pooled = input(b, "pooled", DPK_VALUE_F32, SHAPE(0, c));
    const uint32_t timesteps = input(b, "timesteps", DPK_VALUE_F32, SHAPE(0));
    uint32_t t, y;
    const uint32_t p = cast(b, pooled, DPK_VALUE_ACT);
    struct dpk_op *o = op(b, DPK_OP_sinusoid, "", &t);
    o->in[0] = timesteps;
    o->attr[0].i = 16;
    o->attr[1].i = 1;
    o->attr[3].f = 10000;
    t = linear(b, t, DPK_F32, c, 16, DPK_NONE, DPK_ACT_SILU);
    o = op(b, DPK_OP_outer_add, "time", &y);
    o->in[0] = t;
    o->in[1] = p;
    output(b, y, "temb");
    program(b, "setup");
}

static uint32_t conv(struct builder *b, uint32_t x, int dtype, int32_t n, int32_t k, int32_t c,
                     uint32_t temb) {
    uint32_t value;
    struct dpk_op *o = op(b, DPK_OP_conv2d, "net.conv", &value);
    o->in[DPK_IN(conv2d, x)] = x;
    o->in[DPK_IN(conv2d, temb)] = temb;
    o->wt[DPK_WT(conv2d, w)] = tensor(b, dtype, DPK_LAYOUT_PANEL, SHAPE(n, k, k, c));
    o->wt[DPK_WT(conv2d, b)] = vec(b, n);
    o->attr[0].i = 1;
    for (int i = 1; i <= 4; i++) o->attr[i].i = k / 2;
    return value;
}

/* latent [B,h,w,4] (even), step [1], temb [T,B,C] to noise [B,h,w,4]. */
static void step_program(struct builder *b, int s) {
    const int32_t c = 24 * s;
    const uint32_t latent = input(b, "latent", DPK_VALUE_F32, SHAPE(0, 0, 0, 4));
    const uint32_t index = input(b, "step", DPK_VALUE_I32, SHAPE(1));
    const uint32_t temb = input(b, "temb", DPK_VALUE_ACT, SHAPE(0, 0, c));
    uint32_t t, skip, x, y;
    struct dpk_op *o = op(b, DPK_OP_select, "", &t);
    o->in[0] = temb;
    o->in[1] = index;
    x = cast(b, latent, DPK_VALUE_ACT);
    skip = conv(b, x, DPK_BF16, c, 3, 4, t);
    x = conv(b, skip, DPK_F32, c, 3, c, DPK_NONE);
    b->ops[b->n_ops - 1].attr[0].i = 2; /* stride */
    o = op(b, DPK_OP_pos_embed_2d, "", &y);
    o->in[0] = x;
    o->attr[0].i = 16;
    o->attr[1].f = 1;
    x = conv(b, y, DPK_F16, c, 3, c, DPK_NONE);
    o = &b->ops[b->n_ops - 1];
    o->in[DPK_IN(conv2d, like)] = skip;
    o->attr[5].i = 1;
    o = op(b, DPK_OP_group_norm, "norm", &y);
    o->in[0] = x;
    o->in[1] = skip;
    o->wt[0] = vec(b, 2 * c);
    o->wt[1] = vec(b, 2 * c);
    o->attr[0].i = 6;
    o->attr[1].f = 1e-6f;
    o->attr[2].i = DPK_ACT_SILU;
    x = linear(b, y, DPK_F32, c, 2 * c, skip, DPK_ACT_NONE);
    o = op(b, DPK_OP_add, "", &y);
    o->in[0] = x;
    o->wt[0] = vec(b, c);
    o = op(b, DPK_OP_concat, "", &x);
    o->in[0] = y;
    o->in[1] = skip;
    x = conv(b, x, DPK_BF16, 4, 3, 2 * c, DPK_NONE);
    output(b, cast(b, x, DPK_VALUE_F32), "noise");
    program(b, "step");
}

/* Quantized weights, modulation, a gate, unpatchify. */
static void decode_program(struct builder *b, int s) {
    const int32_t c = 24 * s, n = 12;
    const uint32_t latent = input(b, "latent", DPK_VALUE_F32, SHAPE(0, 0, 0, c));
    const uint32_t mod = input(b, "mod", DPK_VALUE_ACT, SHAPE(1, 3 * c));
    uint32_t x = cast(b, latent, DPK_VALUE_ACT), y;
    struct dpk_op *o = op(b, DPK_OP_layer_norm, "", &y);
    o->in[0] = x;
    o->in[1] = mod;
    o->attr[0].f = 1e-6f;
    o->attr[2].i = c;
    o->attr[3].i = 2 * c;
    uint32_t scale = vec(b, c);
    const uint32_t colsum = tensor(b, DPK_I32, DPK_LAYOUT_RAW, SHAPE(c));
    o = op(b, DPK_OP_linear, "quantized", &x);
    o->in[0] = y;
    o->in[DPK_IN(linear, gate)] = mod;
    o->attr[2].i = c;
    o->wt[0] = tensor_full(b, DPK_S8, DPK_LAYOUT_PANEL, SHAPE(c, c), scale, colsum, 0,
                           DPK_TENSOR_DYNAMIC | DPK_TENSOR_CONV1X1);
    scale = tensor(b, DPK_F32, DPK_LAYOUT_RAW, SHAPE(n, c / 8));
    o = op(b, DPK_OP_linear, "quantized.4", &y);
    o->in[0] = x;
    o->wt[0] = tensor_full(b, DPK_S4, DPK_LAYOUT_PANEL, SHAPE(n, c), scale, DPK_NONE, 8, 0);
    o = op(b, DPK_OP_unpatchify, "", &x);
    o->in[0] = y;
    o->attr[0].i = 2;
    output(b, cast(b, x, DPK_VALUE_F32), "image");
    program(b, "decode");
}

/* ---- The file ---- */

static int put_tensors(struct builder *b) {
    int rc = DPK_OK;
    uint8_t *data = NULL;
    for (uint32_t i = 0; i < b->n_tensors; i++) {
        const size_t n = (size_t)b->sizes[i];
        data = realloc(data, n);
        for (size_t j = 0; j < n; j++) data[j] = (uint8_t)support_random(&b->random);
        for (size_t at = 0; at < n;) { /* in pieces of any size */
            const size_t piece = 1 + support_random(&b->random) % n;
            const size_t m = piece < n - at ? piece : n - at;
            DPK_TRY(dpk_writer_put(b->w, i, data + at, m, b->err));
            at += m;
        }
    }
done:
    free(data);
    return rc;
}

enum { LENGTH = 1 << 24 }; /* of a token's content, beside its id */

static const struct support_clip clip_blob = {
    {DPK_TOK_MAGIC, DPK_TOK_VERSION, DPK_TOKENIZER_CLIP, 0, 9, 0, 1, 1, UINT32_MAX, 2, 2, 2, 2, 2,
     4, 0},
    {{0, DPK_TOK_LETTER, 0, 0, 0}, {0x3000, DPK_TOK_SPACE, 0, 0, 0}},
    {{'A', 'a'}, {'B', 'b'}},
    {{0xc0 | DPK_TOK_COMPOSES, 'A', 0x300}, {0xc1, 'B', 0}},
    {0},
    {{1 | 2 * LENGTH, 0}, {3 | 2 * LENGTH, DPK_TOK_NORMALIZED}},
    {0},
    {{2, 3, 4}, {4, 5, 6}},
    "<>ab"};

static const struct support_t5 t5_blob = {{DPK_TOK_MAGIC, DPK_TOK_VERSION, DPK_TOKENIZER_T5, 0, 9,
                                           UINT32_MAX, 1, 0, 2, 1, 0, 0, 1, 2, 4, 12},
                                          {{0, 0, 0, 0, 0}},
                                          {{3 | 1 * LENGTH, 0}},
                                          {{4 | 1 * LENGTH, -1}, {5 | 2 * LENGTH, -2.5f}},
                                          "<abc",
                                          4,
                                          {0},
                                          "abc"};

static int declare(struct builder *b, int scale) {
    struct support_clip clip = clip_blob;
    for (uint32_t i = 0; i < 512; i++) clip.byte_ids[i] = 2 + support_random(&b->random) % 40;
    static const char *const pairs[][2] = {
        {"model.name", "test \xc3\xa9\xe2\x82\xac\xf0\x9f\x8e\xa8"},
        {"convert.dtype", "bf16"},
        {"scheduler.beta_start", "0.00085"},
        {"licence", "line one\nline two\n"},
        {"pipeline.steps", "20"},
        {"empty", ""}};
    int rc = DPK_OK;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        DPK_TRY(dpk_writer_pair(b->w, pairs[i][0], pairs[i][1], b->err));
    DPK_TRY(dpk_writer_blob(b->w, "tokenizer", DPK_TOKENIZER_CLIP, &clip, sizeof clip, b->err));
    DPK_TRY(
        dpk_writer_blob(b->w, "tokenizer_2", DPK_TOKENIZER_T5, &t5_blob, sizeof t5_blob, b->err));
    text_program(b, scale);
    setup_program(b, scale);
    step_program(b, scale);
    decode_program(b, scale);
    rc = b->rc;
done:
    return rc;
}

int support_dpk_write(const char *path, uint32_t seed, int scale, dpk_error *err) {
    struct builder *b = calloc(1, sizeof *b);
    int rc = DPK_OK;
    if (!b) return dpk_error_set(err, DPK_ENOMEM, "no memory");
    b->random = seed;
    b->err = err;
    DPK_TRY(dpk_writer_create(&b->w, path, err));
    DPK_TRY(declare(b, scale));
    DPK_TRY(dpk_writer_begin(b->w, err));
    DPK_TRY(put_tensors(b));
    DPK_TRY(dpk_writer_finish(b->w, err));
done:
    dpk_writer_free(b->w);
    free(b);
    return rc;
}

void support_dpk_repair(uint8_t *file, size_t n_bytes) {
    struct dpk_section s[DPK_N_SECTIONS];
    memcpy(s, file + sizeof(struct dpk_header), sizeof s);
    for (int i = 0; i < DPK_N_SECTIONS; i++) {
        if (s[i].offset > n_bytes || s[i].bytes > n_bytes - s[i].offset) continue;
        if (i + 1 != DPK_SECTION_WEIGHTS)
            s[i].hash = dpk_bytes_sum(file + s[i].offset, (size_t)s[i].bytes);
        else if (s[i - 1].offset % 8 == 0 && s[i - 1].offset <= n_bytes &&
                 s[i - 1].bytes <= n_bytes - s[i - 1].offset)
            s[i].hash = dpk_tensors_sum((const void *)(file + s[i - 1].offset),
                                        (uint32_t)(s[i - 1].bytes / 128));
    }
    memcpy(file + sizeof(struct dpk_header), s, sizeof s);
    const uint64_t sum = dpk_table_sum(file);
    memcpy(file + offsetof(struct dpk_header, hash), &sum, sizeof sum);
}

/* ---- Files and folders ---- */

uint8_t *support_file_read(const char *path, size_t *n_bytes) {
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0) abort();
    *n_bytes = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = aligned_alloc(64, (*n_bytes + 64) / 64 * 64);
    if (!data || fread(data, 1, *n_bytes, f) != *n_bytes) abort();
    fclose(f);
    return data;
}

void support_file_write(const char *path, const void *data, size_t n_bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n_bytes, f) != n_bytes || fclose(f) != 0) abort();
}

char *support_folder_make(void) {
    const char *base = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/diffpak-test-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(path)) abort();
    return strdup(path);
}

void support_folder_remove(char *folder) {
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        unlink(path);
    }
    if (d) closedir(d);
    rmdir(folder);
    free(folder);
}

int support_dpk_check(const uint8_t *file, size_t n_bytes, dpk_error *err) {
    struct dpk_file f = {.fd = -1, .file_bytes = n_bytes};
    struct dpk_section weights;
    int rc = DPK_OK;
    DPK_TRY(dpk_check_table(file, n_bytes, "memory", err));
    memcpy(&weights, file + sizeof(struct dpk_header) + 5 * sizeof weights, sizeof weights);
    f.front = aligned_alloc(DPK_ALIGN, (size_t)weights.offset); /* tight, for the sanitizer */
    if (!f.front) DPK_FAIL(err, DPK_ENOMEM, "no memory for a front");
    memcpy(f.front, file, (size_t)weights.offset); /* within the file: the table was checked */
    DPK_TRY(dpk_check_front(&f, "memory", err));
done:
    dpk_file_close(&f);
    return rc;
}
