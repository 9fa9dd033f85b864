/* Container rules: programs, their values, and every operator against ops.def. */
#include "dpk_check.h"

#include "fail.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One program under examination. */
struct case_program {
    const struct dpk_check *c;
    const struct dpk_program *p;
};

/* dpk_check_name, of something of this program. */
static int check_name(const struct case_program *k, uint32_t name, const char *what, uint32_t i) {
    char place[80];
    if (dpk_check_name(k->c, name, what, i) == DPK_OK) return DPK_OK;
    snprintf(place, sizeof place, "program %.50s: %s", k->p->name, what);
    return dpk_check_name(k->c, name, place, i);
}

static int check_value(const struct case_program *k, uint32_t v) {
    const struct dpk_check *c = k->c;
    const struct dpk_program *p = k->p;
    const struct dpk_value *value = &p->values[v];
    const bool is_input = v < p->n_inputs, is_output = value->flags & DPK_VALUE_OUTPUT;
    int rc = DPK_OK;
    if (value->flags & ~DPK_VALUE_OUTPUT || (is_input && is_output))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: program %.50s: value %u: flags %#x%s", c->path, p->name,
                 v, value->flags, is_input ? " of an input" : "");
    if (value->zero[0] || value->zero[1])
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: program %.50s: value %u: reserved words are not zero",
                 c->path, p->name, v);
    if (value->type != DPK_VALUE_ACT && value->type != DPK_VALUE_F32 &&
        !(value->type == DPK_VALUE_I32 && is_input))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: program %.50s: value %u: type %u is %s", c->path,
                 p->name, v, value->type,
                 value->type == DPK_VALUE_I32 ? "no operator's result" : "unknown");
    if (is_input || is_output) DPK_TRY(check_name(k, value->name, "value", v));
    else if (value->name)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: program %.50s: value %u: name %u, want 0 (neither input nor output)", c->path,
                 p->name, v, value->name);
    bool dims = is_input ? value->rank >= 1 && value->rank <= DPK_MAX_RANK : value->rank == 0;
    for (int i = 0; i < DPK_MAX_RANK; i++)
        dims = dims && (i < value->rank ? value->dim[i] >= 0 : value->dim[i] == 0);
    if (!dims)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: program %.50s: value %u: rank %u [%d,%d,%d,%d]", c->path,
                 p->name, v, value->rank, value->dim[0], value->dim[1], value->dim[2],
                 value->dim[3]);
done:
    return rc;
}

static int check_values(const struct case_program *k) {
    const struct dpk_check *c = k->c;
    const struct dpk_program *p = k->p;
    const uint32_t n = p->n_inputs + p->n_ops;
    const char **names = malloc((size_t)n * sizeof *names);
    uint32_t n_names = 0;
    int rc = DPK_OK;
    if (!names) DPK_FAIL(c->err, DPK_ENOMEM, "%s: no memory for %u names", c->path, n);
    for (uint32_t v = 0; v < n; v++) {
        DPK_TRY(check_value(k, v));
        if (p->values[v].name) names[n_names++] = dpk_file_string(c->f, p->values[v].name);
    }
    if (p->n_outputs == 0 || p->n_outputs > DPK_MAX_BOUNDARY ||
        n_names - p->n_inputs != p->n_outputs)
        DPK_FAIL(
            c->err, DPK_EFORMAT,
            "%s: program %.50s: %u values are marked as outputs, its entry says %u of at most %d",
            c->path, p->name, n_names - p->n_inputs, p->n_outputs, DPK_MAX_BOUNDARY);
    rc = dpk_check_unique(c, names, n_names, "inputs or outputs of one program");
done:
    free(names);
    return rc;
}

/* ---- Operators ---- */

static const char *value_type_name(int type) {
    switch (type) {
    case DPK_VALUE_ACT:
        return "act";
    case DPK_VALUE_F32:
        return "f32";
    case DPK_VALUE_I32:
        return "i32";
    case DPK_VALUE_FLT:
        return "act or f32";
    default:
        return "?";
    }
}

static bool type_fits(int rule, uint8_t type) {
    if (rule == DPK_VALUE_FLT) return type == DPK_VALUE_ACT || type == DPK_VALUE_F32;
    return type == rule;
}

/* "program step: operator 12 (linear unet.x.to_q)" in front of every message. */
struct place {
    char s[384];
};
static struct place op_place(const struct case_program *k, uint32_t i) {
    const struct dpk_op *op = &k->p->ops[i];
    const struct dpk_op_info *info = dpk_op_info_get(op->opcode);
    const bool named = dpk_check_is_string(k->c, op->name) && op->name;
    struct place text;
    snprintf(text.s, sizeof text.s, "%s: program %.30s: operator %u (%s%s%.60s)", k->c->path,
             k->p->name, i, info ? info->name : "?", named ? " " : "",
             named ? dpk_file_string(k->c->f, op->name) : "");
    return text;
}
#define PLACE(k, i) (op_place(k, i).s)

static int check_inputs(const struct case_program *k, uint32_t i, const struct dpk_op_info *info) {
    const struct dpk_op *op = &k->p->ops[i];
    dpk_error *err = k->c->err;
    const uint32_t own = k->p->n_inputs + i;
    int rc = DPK_OK;
    for (int j = 0; j < DPK_MAX_IN; j++) {
        const uint32_t v = op->in[j];
        if (v == DPK_NONE) continue; /* a missing one is dpk_op_check's to report */
        if (j >= info->n_in)
            DPK_FAIL(err, DPK_EFORMAT, "%s: input %d is %u, it has only %d", PLACE(k, i), j, v,
                     info->n_in);
        if (v >= own)
            DPK_FAIL(err, DPK_EFORMAT, "%s: input %s is value %u, its own is %u", PLACE(k, i),
                     info->in[j].name, v, own);
        if (!type_fits(info->in[j].type, k->p->values[v].type))
            DPK_FAIL(err, DPK_EFORMAT, "%s: input %s is %s, want %s", PLACE(k, i), info->in[j].name,
                     value_type_name(k->p->values[v].type), value_type_name(info->in[j].type));
    }
    const uint8_t type = k->p->values[own].type;
    if (type != DPK_VALUE_ACT && op->opcode != DPK_OP_slice)
        DPK_FAIL(err, DPK_EFORMAT, "%s: the result is %s, want act", PLACE(k, i),
                 value_type_name(type));
done:
    return rc;
}

static bool is_float(uint32_t dtype) {
    return dtype == DPK_F32 || dtype == DPK_BF16 || dtype == DPK_F16;
}

/* Layout and type of a weight: what a kernel may rely on. */
static bool weight_fits(const struct dpk_op *op, int rule, const struct dpk_tensor_record *t) {
    const bool glu = op->opcode == DPK_OP_linear && DPK_ATTRS(linear, op)->glu == 1;
    switch (rule) {
    case DPK_LAYOUT_PANEL:
        return t->layout == (glu ? DPK_LAYOUT_PANEL_GLU : DPK_LAYOUT_PANEL) && t->dtype != DPK_I32;
    case DPK_LAYOUT_RAW:
        return t->layout == DPK_LAYOUT_RAW && is_float(t->dtype);
    case DPK_LAYOUT_VEC:
        return t->layout == DPK_LAYOUT_RAW && t->dtype == DPK_F32 && t->rank == 1;
    default:
        return false;
    }
}

static int check_weights(const struct case_program *k, uint32_t i, const struct dpk_op_info *info,
                         struct dpk_shape shapes[DPK_MAX_WT]) {
    const struct dpk_file *f = k->c->f;
    const struct dpk_op *op = &k->p->ops[i];
    dpk_error *err = k->c->err;
    int rc = DPK_OK;
    for (int j = 0; j < DPK_MAX_WT; j++) {
        const uint32_t w = op->wt[j];
        shapes[j] = (struct dpk_shape){0};
        if (w == DPK_NONE) continue;
        if (j >= info->n_wt)
            DPK_FAIL(err, DPK_EFORMAT, "%s: weight %d is %u, it has only %d", PLACE(k, i), j, w,
                     info->n_wt);
        if (w >= f->n_tensors)
            DPK_FAIL(err, DPK_EFORMAT, "%s: weight %s is tensor %u of %u", PLACE(k, i),
                     info->wt[j].name, w, f->n_tensors);
        const struct dpk_tensor_record *t = &f->tensors[w];
        if (!weight_fits(op, info->wt[j].type, t))
            DPK_FAIL(err, DPK_EFORMAT, "%s: weight %s (%.60s) is %s %s of rank %u, want %s",
                     PLACE(k, i), info->wt[j].name, dpk_file_string(f, t->name),
                     dpk_dtype_name((int)t->dtype), dpk_layout_name((int)t->layout), t->rank,
                     dpk_layout_name(info->wt[j].type));
        shapes[j] = dpk_tensor_shape(t);
    }
done:
    return rc;
}

static int check_op(const struct case_program *k, uint32_t i) {
    const struct dpk_check *c = k->c;
    const struct dpk_op *op = &k->p->ops[i];
    const struct dpk_op_info *info = dpk_op_info_get(op->opcode);
    struct dpk_shape shapes[DPK_MAX_WT];
    dpk_error why = {0};
    int rc = DPK_OK;
    if (!info) DPK_FAIL(c->err, DPK_EFORMAT, "%s: opcode %u is unknown", PLACE(k, i), op->opcode);
    if (op->name) DPK_TRY(check_name(k, op->name, "operator", i));
    if (!dpk_check_all_zero(op->zero, sizeof op->zero))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: reserved words are not zero", PLACE(k, i));
    for (int j = info->n_attr; j < DPK_MAX_ATTR; j++)
        if (op->attr[j].i)
            DPK_FAIL(c->err, DPK_EFORMAT, "%s: attribute word %d is %d, it has only %d",
                     PLACE(k, i), j, op->attr[j].i, info->n_attr);
    DPK_TRY(check_inputs(k, i, info));
    DPK_TRY(check_weights(k, i, info, shapes));
    rc = dpk_op_check(op, dpk_file_string(c->f, op->name), shapes, &why);
    if (rc != DPK_OK)
        DPK_FAIL(c->err, rc, "%s: program %.30s: operator %u: %s", c->path, k->p->name, i, why.msg);
done:
    return rc;
}

/* ---- Entries ---- */

/* Entry i, which begins where `*end` rounded up says; the records it has are set in `p`. */
static int check_entry(const struct dpk_check *c, uint32_t i, uint64_t *end,
                       struct dpk_program *p) {
    const struct dpk_section *s = &c->f->sections[DPK_SECTION_PROGRAMS - 1];
    const uint8_t *base = c->f->front + s->offset;
    const struct dpk_program_entry *e = (const struct dpk_program_entry *)(const void *)base + i;
    const uint64_t want = dpk_round_up(*end, DPK_ALIGN);
    const uint64_t n_values = (uint64_t)e->n_inputs + e->n_ops;
    const uint64_t value_bytes = n_values * sizeof(struct dpk_value);
    const uint64_t ops_offset = dpk_round_up(value_bytes, DPK_ALIGN);
    const uint64_t bytes = ops_offset + (uint64_t)e->n_ops * sizeof(struct dpk_op);
    int rc = DPK_OK;
    DPK_TRY(dpk_check_name(c, e->name, "program", i));
    p->name = dpk_file_string(c->f, e->name);
    if (e->n_inputs == 0 || e->n_inputs > DPK_MAX_BOUNDARY || e->n_ops == 0)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: program %.50s: %u inputs and %u operators, want some, at most %d inputs",
                 c->path, p->name, e->n_inputs, e->n_ops, DPK_MAX_BOUNDARY);
    if (e->bytes != bytes)
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: program %.50s: %" PRIu64 " bytes, want %" PRIu64,
                 c->path, p->name, e->bytes, bytes);
    if (e->offset != want || e->offset > s->bytes || bytes > s->bytes - e->offset)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: program %.50s: %" PRIu64 " bytes at %" PRIu64 ", want offset %" PRIu64
                 " in a section of %" PRIu64,
                 c->path, p->name, bytes, e->offset, want, s->bytes);
    if (!dpk_check_all_zero(base + *end, (size_t)(want - *end)) ||
        !dpk_check_all_zero(base + e->offset + value_bytes, (size_t)(ops_offset - value_bytes)))
        DPK_FAIL(c->err, DPK_EFORMAT, "%s: program %.50s: its padding is not zero", c->path,
                 p->name);
    p->n_inputs = e->n_inputs;
    p->n_ops = e->n_ops;
    p->n_outputs = e->n_outputs;
    p->values = (const void *)(base + e->offset);
    p->ops = (const void *)(base + e->offset + ops_offset);
    *end = e->offset + bytes;
done:
    return rc;
}

int dpk_check_programs(const struct dpk_check *c) {
    struct dpk_file *f = c->f;
    const uint64_t section_bytes = f->sections[DPK_SECTION_PROGRAMS - 1].bytes;
    uint64_t end = (uint64_t)f->n_programs * sizeof(struct dpk_program_entry);
    const char **names = NULL;
    int rc = DPK_OK;
    if (f->n_programs) {
        f->programs = calloc(f->n_programs, sizeof *f->programs);
        names = malloc(f->n_programs * sizeof *names);
        if (!f->programs || !names)
            DPK_FAIL(c->err, DPK_ENOMEM, "%s: no memory for %u programs", c->path, f->n_programs);
    }
    for (uint32_t i = 0; i < f->n_programs; i++) {
        const struct case_program k = {c, &f->programs[i]};
        DPK_TRY(check_entry(c, i, &end, &f->programs[i]));
        names[i] = f->programs[i].name;
        DPK_TRY(check_values(&k));
        for (uint32_t j = 0; j < k.p->n_ops; j++) DPK_TRY(check_op(&k, j));
    }
    if (end != section_bytes)
        DPK_FAIL(c->err, DPK_EFORMAT,
                 "%s: section programs: %" PRIu64 " bytes, the last one ends at %" PRIu64, c->path,
                 section_bytes, end);
    rc = dpk_check_unique(c, names, f->n_programs, "programs");
done:
    free(names);
    return rc;
}
