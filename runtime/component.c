/* One component of a model on arrays from outside. */
#include "exec.h"
#include "session.h"

#include "../formats/fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INPUTS = 16 };

/* What a component is: one program, or setup and step. */
struct run {
    struct dpk_session *session;
    const char *component;
    struct dpk_plan plan;
    struct dpk_plan_input in[MAX_INPUTS];
    size_t n_in;
    uint32_t last; /* stage whose outputs are wanted */
    int32_t step_index;
};

static int add_input(struct run *r, const dpk_array *a, const char *name, dpk_error *err) {
    int rc = DPK_OK;
    if (r->n_in == MAX_INPUTS)
        DPK_FAIL(err, DPK_EARG, "%s: more than %d inputs", r->component, MAX_INPUTS);
    for (size_t i = 0; i < r->n_in; i++)
        if (!strcmp(r->in[i].name, name))
            DPK_FAIL(err, DPK_EARG, "%s: input %s is given twice", r->component, name);
    if (a->rank < 1 || a->rank > DPK_MAX_RANK)
        DPK_FAIL(err, DPK_EARG, "%s: input %s has %d dimensions, want 1 to %d", r->component, name,
                 a->rank, DPK_MAX_RANK);
    if (!a->data) DPK_FAIL(err, DPK_EARG, "%s: input %s has no data", r->component, name);
    struct dpk_plan_input *in = &r->in[r->n_in++];
    *in = (struct dpk_plan_input){.name = name, .dtype = a->type, .data = a->data};
    in->shape.rank = a->rank;
    memcpy(in->shape.dim, a->dim, (size_t)a->rank * sizeof *a->dim);
done:
    return rc;
}

/* Every given array must be an input of one of the stages. */
static int check_used(const struct run *r, const dpk_array *in, size_t n_in, dpk_error *err) {
    int rc = DPK_OK;
    for (size_t i = 0; i < n_in; i++) {
        bool used = false;
        const char *name = !strcmp(in[i].name, "timestep") ? "timesteps" : in[i].name;
        for (uint32_t s = 0; s < r->plan.n_stages; s++)
            used |= dpk_plan_find_input(&r->plan.stages[s], r->plan.file, name) != DPK_NONE;
        if (!used)
            DPK_FAIL(err, DPK_EARG, "%s: the model takes no input %s here", r->component,
                     in[i].name);
    }
done:
    return rc;
}

/* Add the stages. A shape rule that breaks is the fault of the inputs: a file is not trusted, but
 * its programs fit sizes that fit each other. */
static int add_stages(struct run *r, dpk_error *err) {
    int rc = DPK_OK;
    static const char *const two[2] = {"setup", "step"};
    bool denoise = !strcmp(r->component, "denoise");
    dpk_error why = {0};
    for (int i = 0; i < 1 + denoise; i++) {
        const char *program = denoise ? two[i] : r->component;
        if (!dpk_file_program(r->plan.file, program))
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: the model has no program %s", r->component,
                     program);
        rc = dpk_plan_add(&r->plan, program, r->in, r->n_in, i - 1, &r->last, &why);
        if (rc == DPK_EFORMAT)
            DPK_FAIL(err, DPK_EARG, "%s: the inputs do not fit the model: %.400s", r->component,
                     why.msg);
        if (rc) DPK_FAIL(err, rc, "%s%s", denoise ? "denoise: " : "", why.msg);
    }
done:
    return rc;
}

static int plan_run(struct run *r, const dpk_array *in, size_t n_in, dpk_error *err) {
    int rc = DPK_OK;
    dpk_plan_init(&r->plan, r->session->backend, &r->session->model->file, r->session->act_dtype);
    DPK_TRY(add_stages(r, err));
    DPK_TRY(check_used(r, in, n_in, err));
    DPK_TRY(dpk_session_fit(r->session, &r->plan, 0, err));
    dpk_session_page(r->session, &r->plan, DPK_NONE);
    DPK_TRY(dpk_session_take(r->session, &r->plan, 0, r->component, err));
done:
    return rc;
}

/* Outputs of the last stage, `batch` times their first dimension. */
static int make_outputs(const struct run *r, int32_t batch, dpk_arrays **out, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &r->plan.stages[r->last];
    const struct dpk_program *p = s->program;
    size_t n = 0;
    dpk_arrays *made = calloc(1, sizeof *made);
    if (!made) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for outputs", r->component);
    made->at = calloc(p->n_outputs + 1, sizeof *made->at);
    if (!made->at) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for outputs", r->component);
    for (uint32_t v = 0; v < p->n_inputs + p->n_ops && n < p->n_outputs; v++) {
        if (!(p->values[v].flags & DPK_VALUE_OUTPUT)) continue;
        const struct dpk_plan_value *value = &s->values[v];
        const char *name = dpk_file_string(r->plan.file, p->values[v].name);
        if (p->values[v].type != DPK_VALUE_F32)
            DPK_FAIL(err, DPK_EFORMAT, "%s: output %s is act, want f32", p->name, name);
        dpk_array *a = &made->at[n];
        *a = (dpk_array){.name = name, .type = value->dtype, .rank = value->shape.rank};
        memcpy(a->dim, value->shape.dim, sizeof a->dim);
        if (__builtin_mul_overflow(a->dim[0], batch, &a->dim[0]))
            DPK_FAIL(err, DPK_EARG, "%s: output %s has too many rows for %d of it", p->name, name,
                     batch);
        a->data = malloc(value->bytes * (size_t)batch);
        made->n = ++n;
        if (!a->data) DPK_FAIL(err, DPK_ENOMEM, "%s: no memory for output %s", p->name, name);
    }
    *out = made;
    made = NULL;
done:
    dpk_arrays_free(made);
    return rc;
}

static int run_row(const struct run *r, int32_t row, dpk_arrays *out, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_plan_stage *s = &r->plan.stages[r->last];
    const struct dpk_program *p = s->program;
    for (uint32_t i = 0; i <= r->last; i++) {
        DPK_TRY(dpk_exec_give_all(&r->plan, i, r->in, r->n_in, err));
        DPK_TRY(dpk_exec_run(&r->plan, i, NULL, err));
    }
    size_t n = 0;
    for (uint32_t v = 0; v < p->n_inputs + p->n_ops && n < out->n; v++) {
        if (!(p->values[v].flags & DPK_VALUE_OUTPUT)) continue;
        uint8_t *to = (uint8_t *)out->at[n++].data + (uint64_t)row * s->values[v].bytes;
        DPK_TRY(dpk_exec_take(&r->plan, r->last, v, to, err));
    }
done:
    return rc;
}

/* With timesteps that differ, each row runs alone: the setup program has no timestep per row. */
static int run_rows(struct run *r, const dpk_array *in, size_t n_in, int32_t batch,
                    dpk_arrays **out, dpk_error *err) {
    int rc = DPK_OK;
    dpk_arrays *made = NULL;
    for (size_t i = 0; i < r->n_in; i++) {
        struct dpk_shape *shape = &r->in[i].shape;
        if (r->in[i].data == &r->step_index) continue;
        if (shape->dim[0] != batch)
            DPK_FAIL(err, DPK_EARG, "denoise: %s has %d rows, timestep has %d", r->in[i].name,
                     shape->dim[0], batch);
        shape->dim[0] = 1;
    }
    DPK_TRY(plan_run(r, in, n_in, err));
    DPK_TRY(make_outputs(r, batch, &made, err));
    for (int32_t row = 0; row < batch; row++) {
        DPK_TRY(run_row(r, row, made, err));
        for (size_t i = 0; i < r->n_in; i++)
            if (r->in[i].data != &r->step_index)
                r->in[i].data =
                    (const uint8_t *)r->in[i].data + 4 * dpk_shape_count(&r->in[i].shape);
    }
    *out = made;
    made = NULL;
done:
    dpk_arrays_free(made);
    return rc;
}

/* Number of rows to run one by one, or 0 when all timesteps are equal (then one stands for all). */
static int32_t rows_to_run(struct run *r) {
    for (size_t i = 0; i < r->n_in; i++) {
        if (strcmp(r->in[i].name, "timesteps") || r->in[i].dtype != DPK_F32) continue;
        const float *t = r->in[i].data;
        for (int32_t k = 1; k < r->in[i].shape.dim[0]; k++)
            if (t[k] != t[0]) return r->in[i].shape.dim[0];
        r->in[i].shape.dim[0] = 1;
    }
    return 0;
}

int dpk_session_run(dpk_session *session, const char *component, const dpk_array *in, size_t n_in,
                    dpk_arrays **out, dpk_error *err) {
    int rc = DPK_OK;
    static const char *const known[] = {"text", "denoise", "decode", "encode"};
    struct run r = {.session = session, .component = component};
    dpk_arrays *made = NULL;
    bool ok = false, denoise = !strcmp(component, "denoise");
    *out = NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) ok |= !strcmp(component, known[i]);
    if (!ok)
        DPK_FAIL(err, DPK_EARG, "component %.40s, want text, denoise, decode or encode", component);
    for (size_t i = 0; i < n_in; i++) {
        bool is_time = denoise && !strcmp(in[i].name, "timestep");
        if (is_time && (in[i].rank != 1 || in[i].dim[0] < 1))
            DPK_FAIL(err, DPK_EARG, "denoise: timestep has %d dimensions, want [1] or [B]",
                     in[i].rank);
        DPK_TRY(add_input(&r, &in[i], is_time ? "timesteps" : in[i].name, err));
    }
    if (denoise) {
        dpk_array step = {"step", DPK_ARRAY_I32, 1, {1, 0, 0, 0}, &r.step_index};
        DPK_TRY(add_input(&r, &step, "step", err));
    }
    int32_t rows = denoise ? rows_to_run(&r) : 0;
    if (rows) {
        DPK_TRY(run_rows(&r, in, n_in, rows, out, err));
    } else {
        DPK_TRY(plan_run(&r, in, n_in, err));
        DPK_TRY(make_outputs(&r, 1, &made, err));
        DPK_TRY(run_row(&r, 0, made, err));
        *out = made;
        made = NULL;
    }
done:
    dpk_arrays_free(made);
    dpk_plan_free(&r.plan);
    return rc;
}

void dpk_arrays_free(dpk_arrays *arrays) {
    if (!arrays) return;
    for (size_t i = 0; arrays->at && i < arrays->n; i++) free(arrays->at[i].data);
    free(arrays->at);
    free(arrays);
}
