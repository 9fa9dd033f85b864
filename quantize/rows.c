#include "rows.h"

#include "../formats/fail.h"
#include "../formats/tokenizer_blob.h"
#include "../runtime/settings.h"

#include <stdlib.h>
#include <string.h>

/* Boundary values by name: what the host gives, and what earlier programs made. Names are the
 * file's or constants. */
struct known {
    const char *name;
    struct dpk_shape shape;
};
struct inference {
    const struct dpk_file *f;
    struct known *known;
    size_t n_known, cap;
    uint64_t *rows;
    dpk_error *err;
};

static int learn(struct inference *k, const char *name, struct dpk_shape shape) {
    int rc = DPK_OK;
    size_t i = 0;
    while (i < k->n_known && strcmp(k->known[i].name, name) != 0) i++;
    if (i == k->cap) {
        const size_t cap = k->cap * 2 + 32;
        struct known *p = realloc(k->known, cap * sizeof *p);
        if (!p) DPK_FAIL(k->err, DPK_ENOMEM, "no memory for the shapes of %zu values", cap);
        k->known = p;
        k->cap = cap;
    }
    if (i == k->n_known) k->n_known++;
    k->known[i] = (struct known){name, shape};
done:
    return rc;
}

static const struct dpk_shape *recall(const struct inference *k, const char *name) {
    for (size_t i = 0; i < k->n_known; i++)
        if (strcmp(k->known[i].name, name) == 0) return &k->known[i].shape;
    return NULL;
}

/* Shape of a program's input; dimensions that the file fixes win. False: unknown. */
static bool input_shape(const struct inference *k, const struct dpk_value *v,
                        struct dpk_shape *shape) {
    const struct dpk_shape *s = recall(k, dpk_file_string(k->f, v->name));
    if (!s || s->rank != v->rank) return false;
    *shape = *s;
    for (int i = 0; i < v->rank; i++)
        if (v->dim[i]) shape->dim[i] = v->dim[i];
    return true;
}

static void note_rows(const struct inference *k, const struct dpk_op *op,
                      const struct dpk_shape in[DPK_MAX_IN], const struct dpk_shape *out) {
    const bool linear = op->opcode == DPK_OP_linear;
    if (!linear && op->opcode != DPK_OP_conv2d) return;
    /* A convolution's rows are its pixels: all but the channels of what it makes. */
    const struct dpk_shape *s = linear ? &in[DPK_IN(linear, x)] : out;
    const uint64_t n = (uint64_t)(dpk_shape_count(s) / s->dim[s->rank - 1]);
    uint64_t *rows = &k->rows[op->wt[linear ? DPK_WT(linear, w) : DPK_WT(conv2d, w)]];
    if (n > *rows) *rows = n;
}

/* A program that takes something unknown is passed over. */
static int infer_program(struct inference *k, const char *name) {
    const struct dpk_program *p = dpk_file_program(k->f, name);
    struct dpk_shape *shapes = NULL;
    int rc = DPK_OK;
    if (!p) goto done;
    shapes = calloc((size_t)p->n_inputs + p->n_ops, sizeof *shapes);
    if (!shapes) DPK_FAIL(k->err, DPK_ENOMEM, "program %s: no memory for its shapes", name);
    for (uint32_t i = 0; i < p->n_inputs; i++)
        if (!input_shape(k, &p->values[i], &shapes[i])) goto done;
    for (uint32_t i = 0; i < p->n_ops; i++) {
        const struct dpk_op *op = &p->ops[i];
        const uint32_t own = p->n_inputs + i;
        struct dpk_shape in[DPK_MAX_IN] = {{0}}, wt[DPK_MAX_WT] = {{0}};
        for (int j = 0; j < DPK_MAX_IN; j++)
            if (op->in[j] != DPK_NONE) in[j] = shapes[op->in[j]];
        for (int j = 0; j < DPK_MAX_WT; j++)
            if (op->wt[j] != DPK_NONE) wt[j] = dpk_tensor_shape(&k->f->tensors[op->wt[j]]);
        DPK_TRY(dpk_op_shape(op, dpk_file_string(k->f, op->name), in, wt, &shapes[own], k->err));
        note_rows(k, op, in, &shapes[own]);
        if (p->values[own].flags & DPK_VALUE_OUTPUT)
            DPK_TRY(learn(k, dpk_file_string(k->f, p->values[own].name), shapes[own]));
    }
done:
    free(shapes);
    return rc;
}

/* Ids of a prompt, as a tokenizer's blob says. */
static int32_t prompt_length(const struct dpk_file *f) {
    struct dpk_tok_header h;
    size_t n_bytes;
    const void *blob = f->n_tokenizers ? dpk_file_blob(f, 0, &n_bytes) : NULL;
    if (!blob || n_bytes < sizeof h) return 77;
    memcpy(&h, blob, sizeof h);
    return h.max_length >= 1 && h.max_length <= DPK_TOK_MAX_LENGTH ? (int32_t)h.max_length : 77;
}

#define SHAPE(...)                                                                                 \
    (struct dpk_shape) {                                                                           \
        (int32_t)(sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)), { __VA_ARGS__ }             \
    }

int dpk_rows_infer(const struct dpk_file *f, int32_t batch, uint64_t *rows, dpk_error *err) {
    struct inference k = {.f = f, .rows = rows, .err = err};
    struct dpk_settings set;
    const int32_t length = prompt_length(f);
    int rc = DPK_OK;
    memset(rows, 0, f->n_tensors * sizeof *rows);
    DPK_TRY(dpk_settings_read(f, &set, err));
    const int32_t width = (int32_t)set.width, height = (int32_t)set.height;
    const int32_t scale = (int32_t)set.vae_scale, channels = (int32_t)set.latent_channels;
    const int32_t h = height / scale > 0 ? height / scale : 1;
    const int32_t w = width / scale > 0 ? width / scale : 1;

    DPK_TRY(learn(&k, "ids", SHAPE(batch, length)));
    DPK_TRY(learn(&k, "ids_2", SHAPE(batch, length)));
    DPK_TRY(learn(&k, "mask", SHAPE(batch, length)));
    DPK_TRY(infer_program(&k, "text"));
    DPK_TRY(learn(&k, "time_ids", SHAPE(batch, 6)));
    DPK_TRY(learn(&k, "resolution", SHAPE(batch, 2)));
    DPK_TRY(learn(&k, "aspect_ratio", SHAPE(batch, 1)));
    DPK_TRY(learn(&k, "timesteps", SHAPE((int32_t)set.steps)));
    DPK_TRY(infer_program(&k, "setup"));
    DPK_TRY(learn(&k, "latent", SHAPE(batch, h, w, channels)));
    DPK_TRY(learn(&k, "step", SHAPE(1)));
    DPK_TRY(infer_program(&k, "step"));
    DPK_TRY(learn(&k, "latent", SHAPE(1, h, w, channels)));
    DPK_TRY(infer_program(&k, "decode"));
    DPK_TRY(learn(&k, "image", SHAPE(1, h * scale, w * scale, 3)));
    DPK_TRY(infer_program(&k, "encode"));
done:
    free(k.known);
    return rc;
}
