/* .dpk files: open, plan and run. The file is that of fuzz_dpk_file. Byte 0, bits 2 and 3: the
 * instruction set; bits 4 and 5: what to do with a model. Byte 1: sizes. */
#include "support_fuzz.h"

#include "../runtime/diffpak.h"
#include "../runtime/exec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_INPUTS = 32 };
#define MAX_ARENA ((uint64_t)16 << 20)
#define MAX_WORK 3e7 /* of a run: seconds, under sanitizers */

static const char *const isas[4] = {"ref", "avx2", "avx512", NULL};

/* ---- Programs by themselves ------------------------------------------------------------------ */

/* Inputs of a program with small numbers for sizes that are free. */
static size_t make_inputs(const struct dpk_file *f, const struct dpk_program *p, unsigned sizes,
                          struct dpk_plan_input *in, float *data, size_t n_data) {
    static const int32_t small[4][4] = {{1, 9, 4, 4}, {2, 9, 4, 6}, {1, 9, 6, 2}, {3, 1, 2, 8}};
    size_t n = 0;
    for (uint32_t i = 0; i < p->n_inputs && n < MAX_INPUTS; i++) {
        const struct dpk_value *v = &p->values[i];
        uint64_t count = 1;
        in[n] = (struct dpk_plan_input){.name = dpk_file_string(f, v->name), .data = data};
        in[n].dtype = v->type == DPK_VALUE_I32 ? DPK_I32 : DPK_F32;
        in[n].shape.rank = v->rank;
        for (int k = 0; k < v->rank; k++) {
            in[n].shape.dim[k] = v->dim[k] ? v->dim[k] : small[sizes & 3][k];
            if (count <= n_data) count *= (uint64_t)in[n].shape.dim[k];
        }
        if (count <= n_data) n++;
    }
    return n;
}

static bool affordable(const struct dpk_plan *plan) {
    double work = 0;
    for (uint32_t s = 0; s < plan->n_stages; s++)
        for (uint32_t i = 0; i < plan->stages[s].program->n_ops; i++)
            work += dpk_plan_work(&plan->stages[s].costs[i]);
    return plan->arena_bytes <= MAX_ARENA && work <= MAX_WORK;
}

static void run_stages(struct dpk_plan *plan, struct dpk_plan_input in[][MAX_INPUTS],
                       const size_t *n_in, float *out) {
    dpk_error err;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        const struct dpk_plan_stage *stage = &plan->stages[s];
        int rc = dpk_exec_give_all(plan, s, in[s], n_in[s], &err);
        fuzz_check_error(rc, &err);
        if (rc == DPK_OK) {
            rc = dpk_exec_run(plan, s, NULL, &err);
            fuzz_check_error(rc, &err);
        }
        if (rc != DPK_OK) return;
        for (uint32_t v = stage->program->n_inputs;
             v < stage->program->n_inputs + stage->program->n_ops; v++)
            if (stage->program->values[v].flags & DPK_VALUE_OUTPUT)
                fuzz_require(dpk_exec_take(plan, s, v, out, &err) == DPK_OK, "an output is taken");
    }
}

/* setup and step together, every other program alone. */
static void run_programs(const struct dpk_file *f, struct dpk_backend *be, unsigned sizes) {
    static float data[1 << 16]; /* ids 0 and 1, masks, small numbers */
    static float *out;
    if (!out) out = malloc(MAX_ARENA);
    for (size_t i = 0; i < sizeof data / sizeof *data; i++) {
        int32_t one = (int32_t)(i & 1);
        memcpy(&data[i], &one, 4);
    }
    for (uint32_t p = 0; p < f->n_programs; p++) {
        struct dpk_plan_input in[2][MAX_INPUTS];
        size_t n_in[2] = {0};
        struct dpk_plan plan;
        uint32_t stage;
        dpk_error err;
        const struct dpk_program *first = &f->programs[p];
        const struct dpk_program *then =
            strcmp(first->name, "setup") == 0 ? dpk_file_program(f, "step") : NULL;
        dpk_plan_init(&plan, be, f, dpk_plan_act_dtype(be, f));
        n_in[0] = make_inputs(f, first, sizes, in[0], data, sizeof data / sizeof *data);
        int rc = dpk_plan_add(&plan, first->name, in[0], n_in[0], -1, &stage, &err);
        fuzz_check_error(rc, &err);
        if (rc == DPK_OK && then) {
            n_in[1] = make_inputs(f, then, sizes, in[1], data, sizeof data / sizeof *data);
            rc = dpk_plan_add(&plan, "step", in[1], n_in[1], 0, &stage, &err);
            fuzz_check_error(rc, &err);
        }
        if (rc == DPK_OK) {
            rc = dpk_plan_place(&plan, &err);
            fuzz_check_error(rc, &err);
        }
        if (rc == DPK_OK && affordable(&plan)) {
            void *arena = be->alloc(be, plan.arena_bytes ? plan.arena_bytes : DPK_ALIGN);
            fuzz_require(arena && out, "memory");
            dpk_plan_bind(&plan, arena);
            run_stages(&plan, in, n_in, out);
            be->release(be, arena, plan.arena_bytes ? plan.arena_bytes : DPK_ALIGN);
        }
        dpk_plan_free(&plan);
    }
}

static void use_file(const char *path, const char *isa, unsigned sizes) {
    struct dpk_file f;
    struct dpk_backend *be = NULL;
    dpk_error err;
    int rc = dpk_file_open(&f, path, &err);
    fuzz_check_error(rc, &err);
    if (rc != DPK_OK) return;
    fuzz_check_error(dpk_file_verify(&f, NULL, NULL, &err), &err);
    rc = dpk_cpu_create(&be, 1, isa, 0, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) {
        rc = be->attach(be, &f, DPK_F32, NULL, &err);
        fuzz_check_error(rc, &err);
        if (rc == DPK_OK) run_programs(&f, be, sizes);
        be->free(be);
    }
    dpk_file_close(&f);
}

/* ---- Models through the public interface ----------------------------------------------------- */

static void paint(dpk_session *session, unsigned sizes, unsigned what) {
    dpk_params p = dpk_params_default();
    dpk_info info;
    dpk_images *images = NULL;
    dpk_error err;
    const char *prompts[2] = {"a red circle", "blue"};
    p.prompts = prompts;
    p.n_prompts = 1 + (sizes & 1);
    p.steps = 1 + (sizes >> 1 & 1);
    if (!(sizes & 4)) p.width = p.height = 16;
    if (sizes & 8) p.guidance = 1;
    p.no_binning = (sizes & 16) != 0;
    if (sizes & 32) p.long_prompt = DPK_LONG_CHUNKS;
    if (sizes & 64) p.scheduler = "dpm++2m";
    int rc = dpk_session_plan(session, &p, &info, &err);
    fuzz_check_error(rc, &err);
    if (rc != DPK_OK || what == 1 || info.width > 64 || info.height > 64 || info.paint_width > 64 ||
        info.paint_height > 64 || info.n_calls > 2)
        return;
    rc = dpk_generate(session, &p, &images, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK)
        fuzz_require(images->n == p.n_prompts && images->width == info.width,
                     "pictures as planned");
    dpk_images_free(images);
}

static void use_model(const char *path, const char *isa, unsigned sizes, unsigned what) {
    dpk_model *model = NULL;
    dpk_session *session = NULL;
    dpk_timetable *table = NULL;
    dpk_error err;
    int rc = dpk_model_open(&model, path, &err);
    fuzz_check_error(rc, &err);
    if (rc != DPK_OK) return;
    rc = dpk_model_timetable(model, NULL, 1 + (sizes & 15), &table, &err);
    fuzz_check_error(rc, &err);
    dpk_timetable_free(table);
    dpk_session_options o = dpk_session_options_default();
    o.threads = 1;
    o.isa = isa;
    o.memory_limit = MAX_ARENA;
    rc = dpk_session_create(&session, model, &o, &err);
    fuzz_check_error(rc, &err);
    if (rc == DPK_OK) paint(session, sizes, what);
    dpk_session_free(session);
    dpk_model_free(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    struct fuzz_bytes in = {data, n_bytes};
    unsigned mode = (unsigned)fuzz_take(&in, 1), sizes = (unsigned)fuzz_take(&in, 1);
    unsigned what = mode >> 4 & 3;
    size_t n_file;
    uint8_t *file = fuzz_dpk_file(data, n_bytes, &n_file);
    if (!file) return 0;
    const char *isa = isas[mode >> 2 & 3], *path = fuzz_file(0, file, n_file);
    free(file);
    if ((mode & 3) < 2 || what == 0) use_file(path, isa, sizes);
    else use_model(path, isa, sizes, what);
    return 0;
}
