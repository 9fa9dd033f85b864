/* Products of the CUDA backend on the emulated device, below the operators: every kind of operand,
 * every tile and number of splits forced on shapes with tails, integers exact before the epilogue,
 * cuBLASLt's arguments, the cache of its algorithms. The operator tests run the same kernels as the
 * backend chooses them. */
#include "../kernels/cuda/linear.h"
#include "../kernels/cuda/lt.h"

#include "support_cuda_kernels.h"

/* ---- Cases ----------------------------------------------------------------------------------- */

struct weight_kind {
    const char *name;
    int dtype; /* DPK_F32 stands for the type of activations */
    int group;
    uint32_t flags;
};
static const weight_kind kinds[] = {
    {"float", DPK_F32, 0, 0},
    {"w8a8", DPK_S8, 0, DPK_TENSOR_DYNAMIC},
    {"w8a8 torchao", DPK_S8, 0, DPK_TENSOR_DYNAMIC | DPK_TENSOR_TORCHAO},
    {"s8", DPK_S8, 0, 0},
    {"s4", DPK_S4, 8, 0},
};
enum { N_KINDS = sizeof kinds / sizeof kinds[0] };

/* A linear, or a convolution; its operands in floats, as stored. */
struct product {
    bool conv;
    int images, rows, k, k2, n; /* rows of an image; conv: rows are out_h * out_w, k is C */
    int h, w, up_h, up_w, kh, kw, stride, pad;
    bool bias, image, residual, glu, upsample;
    int act, x_dtype, dtype;
    weight_kind kind;
    struct dpk_op op;
    struct dpk_call call;
    std::vector<float> x, x2, weight, b, temb, res, scale;
    std::vector<int8_t> q; /* of quantized weights */
};

static std::vector<float> give(struct product *p, size_t i, int dtype, std::vector<int> dims) {
    struct dpk_shape s = shape_of(dims);
    std::vector<float> v((size_t)dpk_shape_count(&s));
    for (float &each : v) each = rounded(draw_float(), dtype);
    std::vector<unsigned char> bytes = encoded(v, dtype);
    p->op.in[i] = (uint32_t)i;
    p->call.in[i].data = to_device(bytes.data(), bytes.size());
    p->call.in[i].dtype = dtype;
    p->call.in[i].shape = s;
    return v;
}

/* The weight as logical rows [N][taps][c], its device form in weights[0]. */
static void give_weight(struct product *p) {
    int taps = p->conv ? p->kh * p->kw : 1, c = p->k + p->k2, n = p->glu ? 2 * p->n : p->n;
    int dtype = p->kind.dtype == DPK_F32 ? p->dtype : p->kind.dtype;
    int bits = dtype == DPK_F32 ? 32 : dtype == DPK_BF16 ? 16 : dtype == DPK_S8 ? 8 : 4;
    int pad = 128 / bits, c_pad = (c + pad - 1) / pad * pad, pitch = taps * c_pad;
    int n_rows = p->glu ? 2 * ((p->n + 7) / 8 * 8) : (p->n + 15) / 16 * 16;
    size_t per_scale = dtype == DPK_S4 ? (size_t)p->kind.group : (size_t)(taps * c);
    bool quantized = dtype == DPK_S8 || dtype == DPK_S4;
    std::vector<float> rows((size_t)n_rows * (size_t)pitch);
    std::vector<unsigned char> bytes(rows.size() * (size_t)bits / 8);
    p->weight.resize((size_t)(n * taps * c));
    p->q.resize(p->weight.size());
    p->scale.resize(p->weight.size() / per_scale);
    for (float &s : p->scale) s = 1e-3f * (1.6f + draw_float());
    for (size_t i = 0; i < p->weight.size(); i++) {
        int extreme = draw(0, 9), lo = dtype == DPK_S4 ? -8 : -128, hi = dtype == DPK_S4 ? 7 : 127;
        p->q[i] = (int8_t)(extreme == 0 ? lo : extreme == 1 ? hi : draw(lo, hi));
        p->weight[i] = quantized ? (float)p->q[i] : rounded(draw_float(), dtype);
        if (dtype == DPK_S4) /* rounded where the product is one of bfloat16 */
            p->weight[i] = rounded((float)p->q[i] * p->scale[i / per_scale], p->x_dtype);
    }
    for (int r = 0; r < n_rows; r++) {
        int f = r / 16 * 8 + r % 8;
        int logical = !p->glu ? r : f >= p->n ? n : r % 16 < 8 ? f : p->n + f;
        if (logical >= n) continue;
        for (int tap = 0; tap < taps; tap++) {
            for (int i = 0; i < c; i++) {
                size_t from =
                    ((size_t)logical * (size_t)taps + (size_t)tap) * (size_t)c + (size_t)i;
                size_t to = (size_t)r * (size_t)pitch + (size_t)(tap * c_pad + i);
                __nv_bfloat16 rounded_weight(p->weight[from]);
                if (dtype == DPK_F32) memcpy(&bytes[to * 4], &p->weight[from], 4);
                if (dtype == DPK_BF16) memcpy(&bytes[to * 2], &rounded_weight, 2);
                if (dtype == DPK_S8) bytes[to] = (unsigned char)p->q[from];
                if (dtype == DPK_S4)
                    bytes[to / 2] |= (unsigned char)((p->q[from] & 15) << (to % 2 ? 4 : 0));
            }
        }
    }
    struct dpk_cuda_weight *w = &weights[0];
    *w = dpk_cuda_weight();
    w->data = to_device(bytes.data(), bytes.size());
    w->dtype = dtype;
    w->n_rows = n_rows, w->pitch = pitch, w->taps = taps, w->c = c, w->c_pad = c_pad;
    if (quantized) w->scale = (float *)to_device(p->scale.data(), p->scale.size() * 4);
    w->group = dtype == DPK_S4 ? p->kind.group : 0;
    w->flags = p->kind.flags;
    p->op.wt[0] = 0;
    p->call.wt[0].dtype = dtype;
    p->call.wt[0].flags = p->kind.flags;
    p->call.wt[0].group = w->group;
    p->call.wt[0].shape = p->conv ? shape_of({n, p->kh, p->kw, c}) : shape_of({n, c});
}

static void open_product(struct product *p) {
    int n_b = p->glu ? 2 * p->n : p->n;
    p->op = dpk_op();
    p->call = dpk_call();
    p->call.op = &p->op;
    p->op.opcode = p->conv ? DPK_OP_conv2d : DPK_OP_linear;
    for (uint32_t &i : p->op.in) i = DPK_NONE;
    for (uint32_t &i : p->op.wt) i = DPK_NONE;
    if (p->conv) {
        struct dpk_conv2d_attrs *a = (struct dpk_conv2d_attrs *)(void *)p->op.attr;
        a->stride = p->stride, a->act = p->act, a->upsample = p->upsample;
        a->pad_top = a->pad_left = a->pad_bottom = a->pad_right = p->pad;
        p->x = give(p, 0, p->x_dtype, {p->images, p->h, p->w, p->k});
        if (p->up_h != 2 * p->h || p->up_w != 2 * p->w)
            give(p, DPK_IN(conv2d, like), p->dtype, {p->images, p->up_h, p->up_w, 1});
        p->call.out.shape = shape_of({p->images, (p->up_h + 2 * p->pad - p->kh) / p->stride + 1,
                                      (p->up_w + 2 * p->pad - p->kw) / p->stride + 1, p->n});
        if (!p->upsample) p->call.in[DPK_IN(conv2d, like)].shape.rank = 0;
        p->rows = p->call.out.shape.dim[1] * p->call.out.shape.dim[2];
        if (p->image) p->temb = give(p, DPK_IN(conv2d, temb), p->dtype, {p->images, p->n});
        if (p->residual)
            p->res = give(p, DPK_IN(conv2d, residual), p->dtype,
                          {p->images, p->call.out.shape.dim[1], p->call.out.shape.dim[2], p->n});
    } else {
        struct dpk_linear_attrs *a = (struct dpk_linear_attrs *)(void *)p->op.attr;
        a->act = p->act, a->glu = p->glu, a->gate_off = p->image ? 1 : 0;
        p->x = give(p, 0, p->x_dtype, {p->images, p->rows, p->k});
        if (p->k2) p->x2 = give(p, DPK_IN(linear, x2), p->x_dtype, {p->images, p->rows, p->k2});
        p->call.out.shape = shape_of({p->images, p->rows, p->n});
        if (p->image) p->temb = give(p, DPK_IN(linear, gate), p->dtype, {p->images, p->n + 2});
        if (p->residual)
            p->res = give(p, DPK_IN(linear, residual), p->dtype, {p->images, p->rows, p->n});
    }
    give_weight(p);
    if (p->bias) {
        p->b.resize((size_t)n_b);
        for (float &each : p->b) each = draw_float();
        weights[1] = dpk_cuda_weight();
        weights[1].data = to_device(p->b.data(), p->b.size() * 4);
        p->op.wt[1] = 1;
        p->call.wt[1].shape = shape_of({n_b});
    }
    p->call.out.dtype = p->dtype;
}

/* ---- Reference ------------------------------------------------------------------------------- */

/* Row m of A, taps and channels in the weight's order. */
static std::vector<float> row_of(const struct product *p, int m) {
    std::vector<float> row;
    if (!p->conv) {
        for (int i = 0; i < p->k; i++) row.push_back(p->x[(size_t)(m * p->k + i)]);
        for (int i = 0; i < p->k2; i++) row.push_back(p->x2[(size_t)(m * p->k2 + i)]);
        return row;
    }
    int out_w = p->call.out.shape.dim[2], image = m / p->rows;
    int y0 = m % p->rows / out_w * p->stride - p->pad, x0 = m % out_w * p->stride - p->pad;
    for (int ky = 0; ky < p->kh; ky++)
        for (int kx = 0; kx < p->kw; kx++)
            for (int c = 0; c < p->k; c++) {
                int y = y0 + ky, x = x0 + kx;
                bool in = y >= 0 && y < p->up_h && x >= 0 && x < p->up_w;
                size_t at =
                    (size_t)((image * p->h + y * p->h / p->up_h) * p->w + x * p->w / p->up_w);
                row.push_back(in ? p->x[at * (size_t)p->k + (size_t)c] : 0.0f);
            }
    return row;
}

/* The integers of a row and its scale, by the rules of dpk.h. */
static float quantize(const struct product *p, std::vector<float> *row) {
    bool torchao = p->kind.flags & DPK_TENSOR_TORCHAO;
    float top = 0, scale;
    for (float v : *row) top = fmaxf(top, fabsf(v));
    scale =
        torchao ? fmaxf(rounded(top / 127.5f, p->x_dtype), 0x1p-23f) : fmaxf(top, 1e-5f) / 127.0f;
    for (float &v : *row) {
        float q = nearbyintf(torchao ? v * (1.0f / scale) : v / scale);
        v = q > 127 ? 127 : q < -128 ? -128 : q;
    }
    return scale;
}

static double act_of(int act, double x) {
    switch (act) {
    case DPK_ACT_SILU:
        return x / (1 + exp(-x));
    case DPK_ACT_GELU:
        return 0.5 * x * erfc(-x / sqrt(2.0));
    case DPK_ACT_GELU_TANH:
        return x / (1 + exp(-2 * sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case DPK_ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    default:
        return x;
    }
}

struct value {
    double v, size;
};
static struct value dot(const struct product *p, const std::vector<float> &row, float scale,
                        int n) {
    struct value s = {0, 0};
    const float *w = &p->weight[(size_t)n * row.size()];
    for (size_t i = 0; i < row.size(); i++) {
        s.v += (double)row[i] * (double)w[i];
        s.size += fabs((double)row[i] * (double)w[i]);
    }
    if (p->kind.dtype == DPK_S8) {
        double by = (double)scale * (double)p->scale[(size_t)n];
        if (p->kind.flags) s.size = fabs(s.v); /* integers are exact */
        s.v *= by, s.size *= by;
    }
    if (p->bias) s.v += (double)p->b[(size_t)n], s.size += fabs((double)p->b[(size_t)n]);
    return s;
}

static void check(struct product *p, const void *out, const char *what) {
    size_t count = (size_t)dpk_shape_count(&p->call.out.shape);
    std::vector<float> got = decoded(out, count, p->dtype);
    for (int m = 0; m < p->images * p->rows; m++) {
        std::vector<float> row = row_of(p, m);
        float scale = p->kind.flags ? quantize(p, &row) : 1.0f;
        int image = m / p->rows;
        for (int j = 0; j < p->n; j++) {
            size_t at = (size_t)m * (size_t)p->n + (size_t)j;
            struct value s = dot(p, row, scale, j);
            if (p->conv && p->image) {
                double t = (double)p->temb[(size_t)(image * p->n + j)];
                s.v += t, s.size += fabs(t);
            }
            if (p->glu) {
                struct value g = dot(p, row, scale, p->n + j);
                double a = act_of(p->act, g.v);
                s.size = s.size * fabs(a) + fabs(s.v) * 1.2 * g.size;
                s.v *= a;
            } else if (p->act) {
                s.v = act_of(p->act, s.v), s.size *= 1.2;
            }
            if (!p->conv && p->image) {
                double g = (double)p->temb[(size_t)(image * (p->n + 2) + 1 + j)];
                s.v *= g, s.size *= fabs(g);
            }
            if (p->residual) s.v += (double)p->res[at], s.size += fabs((double)p->res[at]);
            float v = got[at];
            double tolerance = 4e-6 * s.size + 1e-12;
            if (p->dtype == DPK_BF16) tolerance += fabs(s.v) * 0x1.02p-8;
            if (!(fabs((double)v - s.v) <= tolerance))
                fail_msg("%s: row %d column %d is %.9g, want %.9g within %.2g", what, m, j,
                         (double)v, s.v, tolerance);
        }
    }
}

static std::string describe(const struct product *p) {
    char text[300];
    snprintf(text, sizeof text,
             "%s %s %s images %d rows %d k %d+%d n %d map %dx%d up %dx%d kernel %dx%d stride %d "
             "pad %d act %d%s%s%s%s",
             p->conv ? "conv2d" : "linear", p->kind.name, dpk_dtype_name(p->x_dtype), p->images,
             p->rows, p->k, p->k2, p->n, p->h, p->w, p->up_h, p->up_w, p->kh, p->kw, p->stride,
             p->pad, p->act, p->glu ? " glu" : "", p->bias ? " bias" : "", p->image ? " image" : "",
             p->residual ? " residual" : "");
    return text;
}

/* As the operator runs it; in place of the residual too. */
static void run_product(struct product *p) {
    dpk_error err = {};
    std::string what = describe(p);
    open_product(p);
    struct dpk_call *call = &p->call;
    size_t (*scratch)(const struct dpk_cuda *, const struct dpk_call *) =
        p->conv ? dpk_cuda_scratch_conv2d : dpk_cuda_scratch_linear;
    call->out.data = device((size_t)dpk_shape_count(&call->out.shape) * bytes_of(p->dtype));
    call->scratch = device(scratch(&cuda, call));
    int rc =
        p->conv ? dpk_cuda_run_conv2d(&cuda, call, &err) : dpk_cuda_run_linear(&cuda, call, &err);
    if (rc != DPK_OK) fail_msg("%s: %s", what.c_str(), err.msg);
    check(p, call->out.data, what.c_str());
    size_t residual = p->conv ? DPK_IN(conv2d, residual) : DPK_IN(linear, residual);
    if (p->residual) {
        call->out.data = call->in[residual].data;
        rc = p->conv ? dpk_cuda_run_conv2d(&cuda, call, &err)
                     : dpk_cuda_run_linear(&cuda, call, &err);
        assert_int_equal(rc, DPK_OK);
        check(p, call->out.data, (what + ", in place").c_str());
    }
    forget();
}

static struct product draw_linear(int kind) {
    struct product p = {};
    p.kind = kinds[kind];
    p.images = draw(1, 3), p.rows = draw(1, 40);
    p.k = draw(0, 1) ? 8 * draw(1, 20) : draw(1, 90);
    if (draw(0, 2) == 0) p.k2 = draw(0, 1) ? 8 * draw(1, 6) : draw(1, 40);
    if (p.kind.group) { /* divides K */
        p.k2 = draw(0, 1) ? 0 : 24;
        p.k = p.kind.group * draw(1, 12);
    }
    p.n = draw(0, 1) ? 8 * draw(1, 20) : draw(1, 150);
    p.bias = draw(0, 1), p.image = draw(0, 2) == 0, p.residual = draw(0, 1);
    p.glu = draw(0, 2) == 0;
    p.act = draw(0, 1) ? 0 : draw(0, DPK_N_ACTS - 1);
    p.x_dtype = p.dtype = draw(0, 1) ? DPK_BF16 : DPK_F32;
    return p;
}

static void test_linears(void **) {
    for (int kind = 0; kind < N_KINDS; kind++) {
        for (int i = 0; i < 60; i++) {
            state = (uint64_t)(kind * 1000 + i);
            dpk_emu_shuffle(state);
            struct product p = draw_linear(kind);
            cuda.sm = draw(0, 1) ? 80 : 90;
            run_product(&p);
        }
    }
}

static struct product draw_conv(int kind) {
    struct product p = {};
    p.conv = true;
    p.kind = kinds[kind];
    p.images = draw(1, 2), p.h = draw(1, 9), p.w = draw(1, 9);
    p.k = draw(0, 1) ? 8 * draw(1, 9) : draw(1, 40);
    if (p.kind.group) p.k = p.kind.group * draw(1, 6);
    p.n = draw(1, 80);
    p.kh = draw(1, 3), p.kw = draw(1, 3);
    p.stride = draw(1, 2);
    p.pad = draw(0, (p.kh < p.kw ? p.kh : p.kw) - 1);
    p.upsample = draw(0, 2) == 0;
    p.up_h = p.upsample ? 2 * p.h : p.h, p.up_w = p.upsample ? 2 * p.w : p.w;
    if (p.upsample && draw(0, 1)) p.up_h = p.h + draw(0, p.h + 1), p.up_w = p.w + draw(0, p.w + 1);
    if (p.up_h + 2 * p.pad < p.kh || p.up_w + 2 * p.pad < p.kw) p.kh = p.kw = 1, p.pad = 0;
    p.bias = draw(0, 1), p.image = draw(0, 1), p.residual = draw(0, 1);
    p.act = draw(0, 1) ? DPK_ACT_NONE : DPK_ACT_SILU;
    p.x_dtype = p.dtype = draw(0, 2) ? DPK_BF16 : DPK_F32;
    if (draw(0, 4) == 0) p.x_dtype = DPK_F32; /* the first convolution of a bfloat16 model */
    return p;
}

static void test_convolutions(void **) {
    for (int kind = 0; kind < N_KINDS; kind++) {
        for (int i = 0; i < 60; i++) {
            state = (uint64_t)(kind * 1000 + i + 500);
            dpk_emu_shuffle(state);
            struct product p = draw_conv(kind);
            run_product(&p);
        }
    }
}

/* Shapes with tails at every tile, on devices whose sizes make the choice fall on each of them,
 * whole and with K split. */
static void test_tiles(void **) {
    static const int sizes[][3] = {{300, 330, 96},  {129, 321, 640}, {260, 140, 800},
                                   {70, 130, 1000}, {64, 64, 3000},  {257, 161, 72},
                                   {125, 120, 4000}};
    static const int devices[] = {1, 4, 132};
    bool seen[DPK_N_TILES][2] = {};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int n_sm : devices) {
            int kind = draw(0, 2); /* float, and W8A8 by both rules */
            struct product p = {};
            state = i * 10 + (uint64_t)n_sm;
            dpk_emu_shuffle(state);
            p.kind = kinds[kind];
            p.conv = i == 1 || i == 2;
            p.images = 1, p.rows = sizes[i][0], p.n = sizes[i][1], p.k = sizes[i][2];
            p.h = p.w = p.up_h = p.up_w = 11, p.kh = p.kw = 3, p.stride = p.pad = 1;
            p.images = p.conv ? (p.rows + 120) / 121 : 1;
            if (p.conv) p.k = (p.k / 9 + 7) / 8 * 8;
            p.bias = p.residual = true;
            p.glu = !p.conv && i % 2;
            p.x_dtype = p.dtype = DPK_BF16;
            cuda.sm = 80;
            cuda.n_sm = n_sm;
            int n_w = p.glu ? 2 * ((p.n + 7) / 8 * 8) : (p.n + 15) / 16 * 16;
            int k = (p.conv ? 9 : 1) * ((p.k + 15) / 16 * 16) * (kind ? 1 : 2);
            int m = p.conv ? p.images * 121 : p.rows;
            dpk_gemm_plan plan = dpk_gemm_choose(n_sm, m, n_w, (k + 63) / 64, DPK_TILES_ALL);
            seen[plan.tile][plan.splits > 1] = true;
            run_product(&p);
        }
    }
    cuda.n_sm = 4;
    for (int tile = 0; tile < DPK_N_TILES; tile++)
        for (int split = 0; split < 2; split++)
            if (!seen[tile][split]) fail_msg("tile %d, split %d: no case", tile, split);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linears),
        cmocka_unit_test(test_convolutions),
        cmocka_unit_test(test_tiles),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
