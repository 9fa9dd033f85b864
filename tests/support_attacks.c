#include "support_attacks.h"

#include "../formats/dpk_check.h"
#include "../runtime/diffpak.h"
#include "support_dpk.h"
#include "support_fuzz.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static struct dpk_program_entry *last_entry(uint8_t *f) {
    return entry_of(f, SECTION(PROGRAMS)->count - 1);
}
static uint32_t count_zeros(uint8_t *f) {
    uint32_t n = 0;
    for (uint64_t i = 0; i < SECTION(STRINGS)->bytes; i++) n += STRINGS[i] == 0;
    return n;
}
#define CLIP ((struct support_clip *)record(f, DPK_SECTION_TOKENIZERS, BLOBS[0].offset))
#define T5 ((struct support_t5 *)record(f, DPK_SECTION_TOKENIZERS, BLOBS[1].offset))

/* Makes change number `index`; false: there are not so many. */
static bool change(uint8_t *f, int index, struct attack *attack) {
    int i = 0;
#define ATTACK(text, ...)                                                                          \
    if (i++ == index) {                                                                            \
        __VA_ARGS__;                                                                               \
        *attack = (struct attack){#__VA_ARGS__, text};                                             \
        return true;                                                                               \
    }
#include "attacks/frame.def"
#include "attacks/operators.def"
#include "attacks/programs.def"
#include "attacks/tensors.def"
#include "attacks/tokenizers.def"
    return false;
}

uint8_t *attack_make(int index, const uint8_t *good, size_t n_bytes, struct attack *attack) {
    uint8_t *f = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    if (!f) abort();
    memcpy(f, good, n_bytes);
    if (!change(f, index, attack)) {
        free(f);
        return NULL;
    }
    support_dpk_repair(f, n_bytes);
    return f;
}

int attack_verdict(const uint8_t *file, size_t n_bytes, char message[1024]) {
    dpk_model *model = NULL;
    dpk_error err = {0};
    int rc = dpk_model_open(&model, fuzz_file(0, file, n_bytes), &err);
    if (rc == DPK_OK) rc = dpk_model_verify(model, NULL, NULL, &err);
    dpk_model_free(model);
    snprintf(message, 1024, "%s", rc == DPK_OK ? "accepted" : err.msg);
    return rc;
}
