/* Files that keep every sum but not their sense: operands, attributes, weights, shapes and metadata
 * of a real model exchanged at random. Opening, planning and painting must end in a picture or in
 * one line of error; a sanitized build, where the executor forbids every byte of the arena that the
 * running operator has no business with, sees each stray access. */
#include "support_dpk.h"
#include "support_golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROUNDS = 500 };

struct damage {
    uint8_t *file;
    const struct dpk_section *sections;
    uint64_t seed;
};

static uint32_t pick(struct damage *d, uint32_t n) { return support_random(&d->seed) % n; }

static const struct dpk_section *section(const struct damage *d, int id) {
    return &d->sections[id - 1];
}

/* A digit of some metadata value, or of any other string. */
static void change_digit(struct damage *d) {
    const struct dpk_section *s = section(d, DPK_SECTION_STRINGS);
    for (int attempt = 0; attempt < 4000; attempt++) {
        uint8_t *c = d->file + s->offset + pick(d, (uint32_t)s->bytes);
        if (*c < '0' || *c > '9') continue;
        *c = (uint8_t)('0' + pick(d, 10));
        return;
    }
}

static void change_operator(struct damage *d) {
    static const int32_t numbers[] = {0, 1, 2, 3, 4, 8, -1, 16, 77, 1000};
    const struct dpk_section *s = section(d, DPK_SECTION_PROGRAMS);
    const struct dpk_program_entry *programs = (const void *)(d->file + s->offset);
    const struct dpk_program_entry *p = &programs[pick(d, s->count)];
    uint32_t n_values = p->n_inputs + p->n_ops, index = pick(d, p->n_ops);
    struct dpk_value *values = (void *)(d->file + s->offset + p->offset);
    size_t ops_at = (n_values * sizeof *values + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    struct dpk_op *op = (struct dpk_op *)(void *)((uint8_t *)values + ops_at) + index;
    uint32_t k = pick(d, DPK_MAX_IN), v = pick(d, n_values);
    switch (pick(d, 6)) {
    case 0:
    case 1: /* another operand */
        if (op->in[k % 3] != DPK_NONE) op->in[k % 3] = pick(d, p->n_inputs + index);
        break;
    case 2: /* one more or one less */
        op->in[k] = op->in[k] == DPK_NONE ? pick(d, p->n_inputs + index) : DPK_NONE;
        break;
    case 3:
        op->attr[k].i = numbers[pick(d, 10)];
        break;
    case 4:
        if (op->wt[k % 2] != DPK_NONE)
            op->wt[k % 2] = pick(d, section(d, DPK_SECTION_TENSORS)->count);
        break;
    case 5:
        if (v >= p->n_inputs) values[v].type = (uint8_t)(1 + pick(d, 2));
        else values[v].dim[k % 3] = values[v].dim[k % 3] ? 0 : (int32_t)pick(d, 80);
        break;
    }
}

static void check_error(int rc, const dpk_error *err) {
    assert_int_equal(rc, err->code);
    assert_true(err->msg[0] && !strchr(err->msg, '\n'));
}

static void run_component(dpk_session *s, const char *name, const dpk_array *in, size_t n) {
    dpk_error err = {0};
    dpk_arrays *out = NULL;
    int rc = dpk_session_run(s, name, in, n, &out, &err);
    if (rc) check_error(rc, &err);
    dpk_arrays_free(out);
}

/* Returns 1 if it painted. */
static int paint(dpk_model *model) {
    static float latent[4 * 6 * 4], image[16 * 32 * 3];
    static int32_t ids[77];
    const dpk_array text[2] = {{"ids", DPK_ARRAY_I32, 2, {1, 77}, ids},
                               {"ids_2", DPK_ARRAY_I32, 2, {1, 77}, ids}};
    const dpk_array decode = {"latent", DPK_ARRAY_F32, 4, {1, 4, 6, 4}, latent};
    const dpk_array encode = {"image", DPK_ARRAY_F32, 4, {1, 16, 32, 3}, image};
    const char *prompt = "a red circle";
    dpk_error err = {0};
    dpk_session *s = NULL;
    dpk_images *images = NULL;
    dpk_session_options o = dpk_session_options_default();
    o.threads = 1, o.memory_limit = 1u << 28;
    assert_int_equal(dpk_session_create(&s, model, &o, &err), DPK_OK);
    dpk_params p = dpk_params_default();
    p.prompts = &prompt, p.steps = 2, p.width = 16, p.height = 32;
    p.no_binning = true; /* the table's sizes are the real model's */
    int rc = dpk_generate(s, &p, &images, &err);
    if (rc) check_error(rc, &err);
    run_component(s, "text", text, 2);
    run_component(s, "decode", &decode, 1);
    run_component(s, "encode", &encode, 1);
    dpk_images_free(images), dpk_session_free(s);
    return !rc;
}

static void damage_model(const char *name, const char *source, uint64_t seed) {
    char path[512];
    size_t n_bytes;
    int opened = 0, painted = 0;
    dpk_model_free(golden_model(name, source, "--dtype bf16"));
    snprintf(path, sizeof path, "tests/%s.dpk", name);
    uint8_t *good = support_file_read(golden_build_path(path), &n_bytes);
    struct damage d = {malloc(n_bytes), NULL, seed};
    assert_non_null(d.file);
    d.sections = (const void *)(d.file + sizeof(struct dpk_header));
    snprintf(path, sizeof path, "%s", golden_build_path("tests/hostile.dpk"));
    for (int round = 0; round < ROUNDS; round++) {
        dpk_error err = {0};
        dpk_model *model = NULL;
        memcpy(d.file, good, n_bytes);
        for (uint32_t k = 1 + pick(&d, 3); k > 0; k--)
            if (pick(&d, 8)) change_operator(&d);
            else change_digit(&d);
        support_dpk_repair(d.file, n_bytes);
        support_file_write(path, d.file, n_bytes);
        int rc = dpk_model_open(&model, path, &err);
        if (rc) {
            check_error(rc, &err);
            continue;
        }
        opened++;
        painted += paint(model);
        dpk_model_free(model);
    }
    printf("%s: of %d damaged files %d opened, %d painted\n", name, ROUNDS, opened, painted);
    assert_true(opened > ROUNDS / 5 && opened < ROUNDS && painted > ROUNDS / 10);
    remove(path);
    free(d.file), free(good);
}

static void test_damaged_unet(void **state) {
    (void)state;
    damage_model("hostile-sdxl", "tests/data/tiny-sdxl", 5);
}

static void test_damaged_transformer(void **state) {
    (void)state;
    damage_model("hostile-pixart", "tests/data/tiny-pixart", 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damaged_unet),
        cmocka_unit_test(test_damaged_transformer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
