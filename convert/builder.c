#include "builder_impl.h"

#include "../formats/fail.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct dpk_name dpk_namef(const char *format, ...) {
    struct dpk_name n;
    va_list args;
    va_start(args, format);
    /* A longer name is cut; no tensor has it then, which is an error that shows it. */
    vsnprintf(n.s, sizeof n.s, format, args);
    va_end(args);
    return n;
}

int dpk_builder_fail(struct dpk_builder *b, int code, const char *format, ...) {
    if (b->rc != DPK_OK) return b->rc;
    char text[sizeof b->err.msg];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    b->rc = dpk_error_set(&b->err, code, "%s", text);
    return b->rc;
}

static int out_of_memory(struct dpk_builder *b) {
    return dpk_builder_fail(b, DPK_ENOMEM, "out of memory for the model's description");
}

/* Make room for one more element; false after an error. */
static bool room_for(struct dpk_builder *b, void *array, size_t n, size_t *room, size_t element) {
    if (n < *room) return true;
    const size_t more = *room ? *room * 2 : 64;
    void *old, *p;
    memcpy(&old, array, sizeof old);
    p = more > SIZE_MAX / element ? NULL : realloc(old, more * element);
    if (!p) return out_of_memory(b), false;
    memcpy(array, &p, sizeof p);
    *room = more;
    return true;
}

static char *copy(struct dpk_builder *b, const char *s) {
    char *p = strdup(s);
    if (!p) out_of_memory(b);
    return p;
}

int dpk_builder_create(struct dpk_builder **out, int dtype, dpk_error *err) {
    struct dpk_builder *b = calloc(1, sizeof *b);
    *out = b;
    if (!b) return dpk_error_set(err, DPK_ENOMEM, "out of memory for the model's description");
    b->dtype = dtype;
    b->dummy.b = b;
    return DPK_OK;
}

static void program_free(struct dpk_prog *p) {
    for (size_t i = 0; i < p->n_inputs; i++) free(p->inputs[i].name);
    for (size_t i = 0; i < p->n_ops; i++) free(p->ops[i].name), free(p->ops[i].output);
    free(p->inputs);
    free(p->ops);
    free(p->name);
}

void dpk_builder_free(struct dpk_builder *b) {
    if (!b) return;
    for (struct dpk_prog *p = b->programs, *next; p; p = next) {
        next = p->next;
        program_free(p);
        free(p);
    }
    program_free(&b->dummy);
    for (size_t i = 0; i < b->n_weights; i++) dpk_weight_plan_free(&b->weights[i]);
    for (size_t i = 0; i < b->n_metas; i++) free(b->metas[i].key), free(b->metas[i].value);
    for (size_t i = 0; i < b->n_blobs; i++) free(b->blobs[i].name), free(b->blobs[i].data);
    free(b->weights);
    free(b->slots);
    free(b->order);
    free(b->metas);
    free(b->blobs);
    free(b);
}

int dpk_builder_status(const struct dpk_builder *b, dpk_error *err) {
    if (b->rc == DPK_OK) return DPK_OK;
    return dpk_error_set(err, b->rc, "%s", b->err.msg);
}

/* ---- Programs -------------------------------------------------------------------------------- */

struct dpk_prog *dpk_build_program(struct dpk_builder *b, const char *name) {
    struct dpk_prog *p = calloc(1, sizeof *p), **end = &b->programs;
    if (p) p->name = copy(b, name);
    if (!p || !p->name) {
        free(p);
        out_of_memory(b);
        return &b->dummy;
    }
    p->b = b;
    while (*end) end = &(*end)->next;
    *end = p;
    return p;
}

void dpk_build_component(struct dpk_prog *p, struct dpk_component *component) {
    p->component = component;
}

uint32_t dpk_build_input(struct dpk_prog *p, const char *name, int type, int rank,
                         const int32_t *dim) {
    struct dpk_builder *b = p->b;
    if (b->rc != DPK_OK) return 0;
    for (size_t i = 0; i < p->n_inputs; i++)
        if (strcmp(p->inputs[i].name, name) == 0) return DPK_BUILD_IS_INPUT + (uint32_t)i;
    if (!room_for(b, &p->inputs, p->n_inputs, &p->room_inputs, sizeof *p->inputs)) return 0;
    struct dpk_build_input *in = &p->inputs[p->n_inputs];
    memset(in, 0, sizeof *in);
    if (!(in->name = copy(b, name))) return 0;
    in->value.type = (uint8_t)type;
    in->value.rank = (uint8_t)rank;
    for (int i = 0; i < rank; i++) in->value.dim[i] = dim[i];
    return DPK_BUILD_IS_INPUT + (uint32_t)p->n_inputs++;
}

void dpk_build_output(struct dpk_prog *p, const char *name, uint32_t value) {
    struct dpk_builder *b = p->b;
    if (b->rc != DPK_OK) return;
    if (value == 0 || value > p->n_ops || p->ops[value - 1].output) {
        dpk_builder_fail(b, DPK_EUNSUPPORTED, "program %s: output %s is not a new value", p->name,
                         name);
        return;
    }
    p->ops[value - 1].output = copy(b, name);
}

uint32_t dpk_builder_add(struct dpk_prog *p, const char *name, int type, const struct dpk_op *op) {
    struct dpk_builder *b = p->b;
    if (b->rc != DPK_OK) return 0;
    if (!room_for(b, &p->ops, p->n_ops, &p->room_ops, sizeof *p->ops)) return 0;
    struct dpk_build_op *o = &p->ops[p->n_ops];
    memset(o, 0, sizeof *o);
    o->op = *op;
    o->type = type;
    for (int i = 0; i < DPK_MAX_IN; i++)
        if (o->op.in[i] == 0) o->op.in[i] = DPK_NONE;
    if (name && p->component) {
        if (asprintf(&o->name, "%s.%s", p->component->prefix, name) < 0) {
            o->name = NULL;
            out_of_memory(b);
            return 0;
        }
    }
    return (uint32_t)++p->n_ops;
}

/* ---- Weights --------------------------------------------------------------------------------- */

static uint64_t name_hash(const char *s) { /* FNV-1a */
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (; *s; s++) h = (h ^ (unsigned char)*s) * UINT64_C(0x100000001b3);
    return h;
}

/* The slot of a name: its own, or the empty one where it belongs. */
static size_t slot_of(const struct dpk_builder *b, const char *name) {
    size_t i = (size_t)name_hash(name) & (b->n_slots - 1);
    while (b->slots[i] && strcmp(b->weights[b->slots[i] - 1].name, name) != 0)
        i = (i + 1) & (b->n_slots - 1);
    return i;
}

static bool grow_slots(struct dpk_builder *b) {
    if (b->n_slots > 2 * (b->n_weights + 1)) return true;
    free(b->slots);
    b->n_slots = b->n_slots ? b->n_slots * 2 : 256;
    b->slots = calloc(b->n_slots, sizeof *b->slots);
    if (!b->slots) return b->n_slots = 0, out_of_memory(b), false;
    for (size_t i = 0; i < b->n_weights; i++)
        b->slots[slot_of(b, b->weights[i].name)] = (uint32_t)i + 1;
    return true;
}

uint32_t dpk_builder_want(struct dpk_prog *p, const struct dpk_weight_want *want) {
    struct dpk_builder *b = p->b;
    if (b->rc != DPK_OK) return DPK_NONE;
    if (!room_for(b, &b->weights, b->n_weights, &b->room_weights, sizeof *b->weights) ||
        !grow_slots(b))
        return DPK_NONE;
    const struct dpk_name name =
        dpk_namef("%s.%s%s%s", p->component->prefix, want->layer, want->suffix ? "." : "",
                  want->suffix ? want->suffix : "");
    const size_t slot = slot_of(b, name.s);
    if (b->slots[slot]) return b->slots[slot] - 1;
    b->rc = dpk_weight_plan_make(&b->weights[b->n_weights], p->component, want, &b->err);
    if (b->rc != DPK_OK) return DPK_NONE;
    b->slots[slot] = (uint32_t)++b->n_weights;
    return (uint32_t)b->n_weights - 1;
}

size_t dpk_builder_n_weights(const struct dpk_builder *b) { return b->n_weights; }

const struct dpk_weight_plan *dpk_builder_weight(const struct dpk_builder *b, size_t i) {
    return &b->weights[b->order[i]];
}

size_t dpk_builder_n_ops(const struct dpk_builder *b) {
    size_t n = 0;
    for (const struct dpk_prog *p = b->programs; p; p = p->next) n += p->n_ops;
    return n;
}

/* ---- Metadata and blobs ---------------------------------------------------------------------- */

void dpk_builder_meta(struct dpk_builder *b, const char *key, const char *format, ...) {
    if (b->rc != DPK_OK) return;
    if (!room_for(b, &b->metas, b->n_metas, &b->room_metas, sizeof *b->metas)) return;
    struct dpk_build_meta *m = &b->metas[b->n_metas];
    va_list args;
    va_start(args, format);
    const int n = vasprintf(&m->value, format, args);
    va_end(args);
    if (n < 0) {
        out_of_memory(b);
        return;
    }
    m->key = copy(b, key);
    if (m->key) b->n_metas++;
    else free(m->value);
}

const char *dpk_builder_meta_get(const struct dpk_builder *b, const char *key) {
    for (size_t i = 0; i < b->n_metas; i++)
        if (strcmp(b->metas[i].key, key) == 0) return b->metas[i].value;
    return NULL;
}

void dpk_builder_blob(struct dpk_builder *b, const char *name, uint32_t kind, void *data,
                      size_t n_bytes) {
    char *own = NULL;
    if (b->rc != DPK_OK || !room_for(b, &b->blobs, b->n_blobs, &b->room_blobs, sizeof *b->blobs) ||
        !(own = copy(b, name))) {
        free(data);
        return;
    }
    b->blobs[b->n_blobs++] =
        (struct dpk_build_blob){.name = own, .kind = kind, .data = data, .n_bytes = n_bytes};
}
