/* Stages of a plan: shapes of every value, operators with their operands resolved. */
#include "plan.h"

#include "../formats/fail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void dpk_plan_init(struct dpk_plan *plan, struct dpk_backend *backend, const struct dpk_file *file,
                   int32_t act_dtype) {
    *plan = (struct dpk_plan){.backend = backend, .file = file, .act_dtype = act_dtype};
}

static void free_stage(struct dpk_plan_stage *s) {
    free(s->values);
    free(s->calls);
    free(s->scratch);
    free(s->scratch_bytes);
    free(s->checks);
    free(s->costs);
    free(s->parts);
    free(s->reader);
}

void dpk_plan_free(struct dpk_plan *plan) {
    for (uint32_t i = 0; i < plan->n_stages; i++) free_stage(&plan->stages[i]);
    free(plan->blocks);
    free(plan->live);
    *plan = (struct dpk_plan){0};
}

char *dpk_plan_shape_text(const struct dpk_shape *shape, char *out, size_t size) {
    size_t n = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < shape->rank && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, i ? ",%d" : "%d", (int)shape->dim[i]);
    if (n < size) snprintf(out + n, size - n, "]");
    return out;
}

uint32_t dpk_plan_find_input(const struct dpk_plan_stage *stage, const struct dpk_file *file,
                             const char *name) {
    for (uint32_t i = 0; i < stage->program->n_inputs; i++)
        if (!strcmp(dpk_file_string(file, stage->program->values[i].name), name)) return i;
    return DPK_NONE;
}

uint32_t dpk_plan_find_output(const struct dpk_plan_stage *stage, const struct dpk_file *file,
                              const char *name) {
    const struct dpk_program *p = stage->program;
    for (uint32_t i = 0; i < p->n_inputs + p->n_ops; i++)
        if ((p->values[i].flags & DPK_VALUE_OUTPUT) &&
            !strcmp(dpk_file_string(file, p->values[i].name), name))
            return i;
    return DPK_NONE;
}

int32_t dpk_plan_act_dtype(const struct dpk_backend *backend, const struct dpk_file *file) {
    uint64_t bytes[DPK_F16 + 1] = {0};
    for (uint32_t i = 0; i < file->n_tensors; i++) {
        const struct dpk_tensor_record *t = &file->tensors[i];
        if (t->layout != DPK_LAYOUT_RAW && t->dtype >= DPK_F32 && t->dtype <= DPK_F16)
            bytes[t->dtype] += t->bytes;
    }
    int most = DPK_F32;
    for (int d = DPK_F32; d <= DPK_F16; d++)
        if (bytes[d] > bytes[most]) most = d;
    if (bytes[most] == 0) { /* all of them quantized: what they were before */
        const char *before = dpk_file_meta(file, "convert.dtype");
        if (before && !strcmp(before, "bf16")) most = DPK_BF16;
    }
    return backend->act_dtype(backend, most);
}

static int32_t value_dtype(const struct dpk_plan *plan, int type) {
    return type == DPK_VALUE_I32 ? DPK_I32 : type == DPK_VALUE_F32 ? DPK_F32 : plan->act_dtype;
}

static void set_shape(struct dpk_plan_value *v, const struct dpk_shape *shape, int32_t dtype) {
    v->shape = *shape;
    v->dtype = dtype;
    v->bytes = (uint64_t)dpk_shape_count(shape) * (dtype == DPK_BF16 ? 2 : 4);
    v->block = DPK_NONE;
}

/* Dimensions of an input from outside: what dpk_op_shape may rely on. */
static bool shape_is_sound(const struct dpk_shape *s) {
    if (s->rank < 1 || s->rank > DPK_MAX_RANK) return false;
    int64_t count = 1;
    for (int i = 0; i < s->rank; i++) {
        if (s->dim[i] < 1) return false;
        count *= s->dim[i]; /* below 2^40 times below 2^31: no overflow */
        if (count >= (int64_t)1 << 40) return false;
    }
    return true;
}

static int check_input(const char *program, const char *name, const struct dpk_value *value,
                       const struct dpk_shape *got, dpk_error *err) {
    int rc = DPK_OK;
    struct dpk_shape want = {.rank = value->rank};
    memcpy(want.dim, value->dim, sizeof want.dim);
    bool fits = shape_is_sound(got) && got->rank == want.rank;
    for (int i = 0; fits && i < want.rank; i++)
        fits = want.dim[i] == 0 || want.dim[i] == got->dim[i];
    if (!fits) {
        char a[64], b[64];
        DPK_FAIL(err, DPK_EARG, "%s: input %s is %s, the model takes %s (0: any size)", program,
                 name, dpk_plan_shape_text(got, a, sizeof a),
                 dpk_plan_shape_text(&want, b, sizeof b));
    }
done:
    return rc;
}

static int resolve_inputs(struct dpk_plan *plan, struct dpk_plan_stage *s,
                          const struct dpk_plan_input *inputs, size_t n_inputs, int from,
                          dpk_error *err) {
    int rc = DPK_OK;
    const char *program = s->program->name;
    for (uint32_t i = 0; i < s->program->n_inputs; i++) {
        const struct dpk_value *value = &s->program->values[i];
        const char *name = dpk_file_string(plan->file, value->name);
        struct dpk_plan_value *v = &s->values[i];
        int32_t dtype = value_dtype(plan, value->type);
        const struct dpk_plan_stage *source = from >= 0 ? &plan->stages[from] : NULL;
        uint32_t output = source ? dpk_plan_find_output(source, plan->file, name) : DPK_NONE;
        if (output != DPK_NONE) {
            const struct dpk_plan_value *o = &source->values[output];
            DPK_TRY(check_input(program, name, value, &o->shape, err));
            if (o->dtype != dtype)
                DPK_FAIL(err, DPK_EFORMAT, "%s: input %s is %s, program %s makes it as %s", program,
                         name, dpk_dtype_name(dtype), source->program->name,
                         dpk_dtype_name(o->dtype));
            set_shape(v, &o->shape, dtype);
            v->from_stage = true;
            v->source = output;
            continue;
        }
        const struct dpk_plan_input *given = NULL;
        for (size_t k = 0; k < n_inputs && !given; k++)
            if (!strcmp(inputs[k].name, name)) given = &inputs[k];
        if (!given) DPK_FAIL(err, DPK_EARG, "%s: input %s is missing", program, name);
        if (value->type == DPK_VALUE_ACT)
            DPK_FAIL(err, DPK_EFORMAT, "%s: input %s is for another program to make, but none does",
                     program, name);
        if (given->dtype != dtype)
            DPK_FAIL(err, DPK_EARG, "%s: input %s is %s, the model takes %s", program, name,
                     dpk_dtype_name(given->dtype), dpk_dtype_name(dtype));
        DPK_TRY(check_input(program, name, value, &given->shape, err));
        set_shape(v, &given->shape, dtype);
    }
done:
    return rc;
}

static void resolve_weight(const struct dpk_file *file, uint32_t index, struct dpk_weight *w) {
    const struct dpk_tensor_record *t = &file->tensors[index];
    *w = (struct dpk_weight){.data = file->weights + t->offset,
                             .dtype = (int32_t)t->dtype,
                             .layout = (int32_t)t->layout,
                             .shape = dpk_tensor_shape(t),
                             .group = (int32_t)t->group,
                             .flags = t->flags};
    if (t->scale != DPK_NONE)
        w->scale = (const float *)(const void *)(file->weights + file->tensors[t->scale].offset);
    if (t->colsum != DPK_NONE)
        w->colsum =
            (const int32_t *)(const void *)(file->weights + file->tensors[t->colsum].offset);
}

double dpk_plan_work(const struct dpk_cost *cost) {
    return cost->flops + 8 * cost->bytes; /* some eight operations go by in the time of a byte */
}

/* Operators that pick rows by numbers from the host: remember the range. */
static void note_checks(struct dpk_plan_stage *s, const struct dpk_op *op) {
    uint32_t input = DPK_NONE;
    int32_t limit = 0;
    const struct dpk_call *call = &s->calls[op - s->program->ops];
    if (op->opcode == DPK_OP_embedding) {
        input = op->in[DPK_IN(embedding, ids)];
        limit = call->wt[DPK_WT(embedding, table)].shape.dim[0];
    } else if (op->opcode == DPK_OP_select) {
        input = op->in[DPK_IN(select, index)];
        limit = call->in[DPK_IN(select, x)].shape.dim[0];
    }
    /* No operator makes integers, so the numbers are always an input. */
    if (input >= s->program->n_inputs) return;
    for (uint32_t i = 0; i < s->n_checks; i++) {
        if (s->checks[i].input != input) continue;
        if (limit < s->checks[i].limit) s->checks[i].limit = limit;
        return;
    }
    s->checks[s->n_checks++] = (struct dpk_plan_check){input, limit};
}

static int resolve_op(struct dpk_plan *plan, struct dpk_plan_stage *s, uint32_t index,
                      dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_op *op = &s->program->ops[index];
    struct dpk_call *call = &s->calls[index];
    struct dpk_shape in[DPK_MAX_IN] = {{0}}, wt[DPK_MAX_WT] = {{0}}, out;
    uint64_t wt_bytes[DPK_MAX_WT] = {0};
    call->op = op;
    for (int k = 0; k < DPK_MAX_IN; k++) {
        if (op->in[k] == DPK_NONE) continue;
        const struct dpk_plan_value *v = &s->values[op->in[k]];
        in[k] = v->shape;
        call->in[k] = (struct dpk_tensor){.dtype = v->dtype, .shape = v->shape};
    }
    for (int k = 0; k < DPK_MAX_WT; k++) {
        if (op->wt[k] == DPK_NONE) continue;
        resolve_weight(plan->file, op->wt[k], &call->wt[k]);
        wt[k] = call->wt[k].shape;
        wt_bytes[k] = plan->file->tensors[op->wt[k]].bytes;
    }
    DPK_TRY(dpk_op_shape(op, dpk_file_string(plan->file, op->name), in, wt, &out, err));
    uint32_t number = s->program->n_inputs + index;
    set_shape(&s->values[number], &out, value_dtype(plan, s->program->values[number].type));
    call->out = (struct dpk_tensor){.dtype = s->values[number].dtype, .shape = out};
    s->costs[index] = dpk_op_cost(op, in, wt, &out, plan->act_dtype == DPK_BF16 ? 2 : 4, wt_bytes);
    s->work += dpk_plan_work(&s->costs[index]);
    note_checks(s, op);
done:
    return rc;
}

/* The rule by which operand k of a call would be quantized, were it not: the flags of w where the
 * operand is x of a linear with a dynamically quantized weight. 0: read as numbers. */
static uint32_t rows8_rule(const struct dpk_call *call, size_t k) {
    const struct dpk_weight *w = &call->wt[DPK_WT(linear, w)];
    if (call->op->opcode != DPK_OP_linear || k != DPK_IN(linear, x) ||
        call->op->in[DPK_IN(linear, x2)] != DPK_NONE || w->dtype != DPK_S8 ||
        !(w->flags & DPK_TENSOR_DYNAMIC))
        return 0;
    return w->flags & (DPK_TENSOR_DYNAMIC | DPK_TENSOR_TORCHAO);
}

/* Values of which every reader would quantize the same rows by the same rule: made so, where the
 * backend can. */
static int choose_rows8(struct dpk_plan *plan, struct dpk_plan_stage *s, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_program *p = s->program;
    const struct dpk_backend *be = plan->backend;
    uint32_t *rule = NULL; /* of the readers of a value so far: 0 none yet, DPK_NONE they differ */
    if (!be->rows8_bytes) goto done;
    rule = calloc(p->n_inputs + p->n_ops + 1, sizeof *rule);
    if (!rule) DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u operators", p->n_ops);
    for (uint32_t i = 0; i < p->n_ops; i++)
        for (size_t k = 0; k < DPK_MAX_IN; k++) {
            uint32_t v = p->ops[i].in[k], r = rows8_rule(&s->calls[i], k);
            if (v == DPK_NONE) continue;
            rule[v] = r == 0 || (rule[v] && rule[v] != r) ? DPK_NONE : r;
        }
    for (uint32_t i = 0; i < p->n_ops; i++) {
        struct dpk_call *call = &s->calls[i];
        uint32_t v = p->n_inputs + i, x = p->ops[i].in[DPK_IN(linear, x)];
        if (x != DPK_NONE && x >= p->n_inputs)
            call->in[DPK_IN(linear, x)].rows8 = s->calls[x - p->n_inputs].out.rows8;
        if (rule[v] == 0 || rule[v] == DPK_NONE || p->values[v].flags & DPK_VALUE_OUTPUT) continue;
        call->out.rows8 = rule[v];
        uint64_t bytes = be->rows8_bytes(be, call);
        if (bytes) s->values[v].bytes = bytes;
        else call->out.rows8 = 0;
    }
done:
    free(rule);
    return rc;
}

static void find_readers(struct dpk_plan_stage *s) {
    const struct dpk_program *p = s->program;
    for (uint32_t v = 0; v < p->n_inputs + p->n_ops; v++) s->reader[v] = DPK_NONE;
    for (uint32_t i = 0; i < p->n_ops; i++)
        for (int k = 0; k < DPK_MAX_IN; k++)
            if (p->ops[i].in[k] != DPK_NONE) s->reader[p->ops[i].in[k]] = i;
    for (uint32_t v = 0; v < p->n_inputs + p->n_ops; v++)
        if (p->values[v].flags & DPK_VALUE_OUTPUT) s->reader[v] = p->n_ops;
}

int dpk_plan_add(struct dpk_plan *plan, const char *program, const struct dpk_plan_input *inputs,
                 size_t n_inputs, int from, uint32_t *stage, dpk_error *err) {
    int rc = DPK_OK;
    const struct dpk_program *p = dpk_file_program(plan->file, program);
    if (!p) DPK_FAIL(err, DPK_EFORMAT, "the model has no program %s", program);
    if (plan->n_stages == DPK_PLAN_MAX_STAGES)
        DPK_FAIL(err, DPK_EARG, "a plan has at most %d stages", DPK_PLAN_MAX_STAGES);
    struct dpk_plan_stage *s = &plan->stages[plan->n_stages++]; /* dpk_plan_free frees it */
    *s = (struct dpk_plan_stage){.program = p, .from = from};
    s->values = calloc(p->n_inputs + p->n_ops + 1, sizeof *s->values);
    s->calls = calloc(p->n_ops + 1, sizeof *s->calls);
    s->scratch = calloc(p->n_ops + 1, sizeof *s->scratch);
    s->scratch_bytes = calloc(p->n_ops + 1, sizeof *s->scratch_bytes);
    s->checks = calloc(p->n_inputs + 1, sizeof *s->checks);
    s->costs = calloc(p->n_ops + 1, sizeof *s->costs);
    s->parts = calloc(p->n_ops + 1, sizeof *s->parts);
    s->reader = malloc((p->n_inputs + p->n_ops + 1) * sizeof *s->reader);
    if (!s->parts || !s->reader || !s->values || !s->calls || !s->scratch || !s->scratch_bytes ||
        !s->checks || !s->costs)
        DPK_FAIL(err, DPK_ENOMEM, "plan: no memory for %u operators", p->n_ops);
    s->begin = plan->n_stages > 1 ? s[-1].end + 1 : 0;
    s->end = s->begin + p->n_ops + 1;
    DPK_TRY(resolve_inputs(plan, s, inputs, n_inputs, from, err));
    for (uint32_t i = 0; i < p->n_ops; i++) DPK_TRY(resolve_op(plan, s, i, err));
    DPK_TRY(choose_rows8(plan, s, err));
    find_readers(s);
    dpk_plan_cut(plan, s);
    *stage = plan->n_stages - 1;
done:
    return rc;
}

void dpk_plan_bind(struct dpk_plan *plan, void *arena) {
    uint8_t *base = plan->arena = arena;
    for (uint32_t i = 0; i < plan->n_stages; i++) {
        struct dpk_plan_stage *s = &plan->stages[i];
        const struct dpk_program *p = s->program;
        for (uint32_t k = 0; k < p->n_ops; k++) {
            struct dpk_call *call = &s->calls[k];
            for (int j = 0; j < DPK_MAX_IN; j++)
                if (p->ops[k].in[j] != DPK_NONE)
                    call->in[j].data = base + plan->blocks[s->values[p->ops[k].in[j]].block].offset;
            call->out.data = base + plan->blocks[s->values[p->n_inputs + k].block].offset;
            call->scratch =
                s->scratch[k] == DPK_NONE ? NULL : base + plan->blocks[s->scratch[k]].offset;
        }
    }
}
