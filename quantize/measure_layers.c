/* Output error of single layers: behind every operator of the unquantized model, the same operator
 * is run again on the same operands, with its own weight and with the quantized one. */
#include "measure_impl.h"

#include "../formats/fail.h"

#include <stdlib.h>
#include <string.h>

/* The call without its residual: that may share its bytes with the result, which is written by
 * now, and it would hide the layer's own output. */
static struct dpk_call bare(const struct dpk_call *call) {
    struct dpk_call c = *call;
    const size_t residual =
        c.op->opcode == DPK_OP_linear ? DPK_IN(linear, residual) : DPK_IN(conv2d, residual);
    c.in[residual] = (struct dpk_tensor){0};
    return c;
}

static struct dpk_call with_weight(const struct dpk_call *call, const struct dpk_call *of) {
    struct dpk_call c = *call;
    c.wt[0] = of->wt[0]; /* linear and conv2d have w first */
    return c;
}

static uint64_t result_bytes(const struct dpk_call *c) {
    return (uint64_t)dpk_shape_count(&c->out.shape) * (c->out.dtype == DPK_BF16 ? 2 : 4);
}

static bool is_probed(const struct dpk_probe *p, const struct dpk_plan *before, uint32_t stage,
                      uint32_t op, const struct dpk_call **after) {
    const struct dpk_op *o = &before->stages[stage].program->ops[op];
    const uint32_t weight = dpk_side_weight(o);
    if (weight == DPK_NONE || p->layer_of[weight] == DPK_NONE) return false;
    *after = &p->after->stages[stage].calls[op];
    return (*after)->wt[0].dtype == DPK_S8 || (*after)->wt[0].dtype == DPK_S4;
}

int dpk_probe_make(struct dpk_probe *p, const struct dpk_plan *before, const struct dpk_plan *after,
                   const uint32_t *layer_of, struct dpk_measure_layer *layer, dpk_error *err) {
    const struct dpk_backend *be = before->backend;
    uint64_t most = DPK_ALIGN, scratch = DPK_ALIGN;
    int rc = DPK_OK;
    *p = (struct dpk_probe){.after = after, .layer_of = layer_of, .layer = layer};
    for (uint32_t s = 0; s < before->n_stages; s++)
        for (uint32_t i = 0; i < before->stages[s].program->n_ops; i++) {
            const struct dpk_call *other;
            if (!is_probed(p, before, s, i, &other)) continue;
            const struct dpk_call a = bare(&before->stages[s].calls[i]), b = with_weight(&a, other);
            const uint64_t bytes = result_bytes(&a);
            const size_t need_a = be->scratch_bytes(be, &a), need_b = be->scratch_bytes(be, &b);
            if (bytes > most) most = bytes;
            if (need_a > scratch) scratch = need_a;
            if (need_b > scratch) scratch = need_b;
        }
    most = (most + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    scratch = (scratch + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    p->a = aligned_alloc(DPK_ALIGN, most);
    p->b = aligned_alloc(DPK_ALIGN, most);
    p->scratch = aligned_alloc(DPK_ALIGN, scratch);
    if (!p->a || !p->b || !p->scratch)
        DPK_FAIL(err, DPK_ENOMEM, "no memory to compare results of %llu bytes",
                 (unsigned long long)most);
done:
    return rc;
}

void dpk_probe_free(struct dpk_probe *p) {
    free(p->a);
    free(p->b);
    free(p->scratch);
    *p = (struct dpk_probe){0};
}

static int compare(struct dpk_probe *p, const struct dpk_plan *plan, const struct dpk_call *call,
                   const struct dpk_call *other, struct dpk_measure_layer *l) {
    struct dpk_call a = bare(call);
    a.scratch = p->scratch;
    struct dpk_call b = with_weight(&a, other);
    int rc = DPK_OK;
    a.out.data = p->a;
    b.out.data = p->b;
    DPK_TRY(plan->backend->run(plan->backend, &a, &p->err));
    DPK_TRY(plan->backend->run(plan->backend, &b, &p->err));
    const size_t n = (size_t)dpk_shape_count(&a.out.shape);
    dpk_quality_add_typed(a.out.dtype, p->a, p->b, n, &l->signal, &l->noise);
    l->uses++;
done:
    return rc;
}

int dpk_probe_after(void *arg, const struct dpk_plan *plan, uint32_t stage, uint32_t op,
                    double share) {
    struct dpk_probe *p = arg;
    const struct dpk_call *other;
    (void)share; /* plans of sessions with whole maps: 1 */
    if (!is_probed(p, plan, stage, op, &other)) return 0;
    const uint32_t weight = dpk_side_weight(&plan->stages[stage].program->ops[op]);
    p->rc = compare(p, plan, &plan->stages[stage].calls[op], other, &p->layer[p->layer_of[weight]]);
    return p->rc != DPK_OK;
}
