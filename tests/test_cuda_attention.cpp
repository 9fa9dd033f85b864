/* Attention of the CUDA backend on the emulated device: every head size that has a kernel of its
 * own and those between, lengths with tails, views into fused buffers, masks, biases, causal,
 * logits that overflow, long heads in pieces; each against double precision. */
#include "support_cuda_kernels.h"

enum { MASK = 1, BIAS = 2, CAUSAL = 4, FUSED = 8, SCALE = 16 };

struct attention {
    int images, lq, lk, heads, d, what, dtype;
    float size; /* of the logits' operands */
    struct dpk_op op;
    struct dpk_call call;
    std::vector<float> q, k, v, bias;
    std::vector<int32_t> mask;
    int cq, ck, cv; /* channels of a row */
};

static std::vector<float> give(struct attention *t, size_t i, std::vector<int> dims, float size) {
    struct dpk_shape s = shape_of(dims);
    std::vector<float> v((size_t)dpk_shape_count(&s));
    for (float &each : v) each = rounded(draw_float() * size, t->dtype);
    std::vector<unsigned char> bytes = encoded(v, t->dtype);
    t->op.in[i] = (uint32_t)i;
    t->call.in[i].data = to_device(bytes.data(), bytes.size());
    t->call.in[i].dtype = t->dtype;
    t->call.in[i].shape = s;
    return v;
}

static void open_attention(struct attention *t) {
    struct dpk_attention_attrs *a = (struct dpk_attention_attrs *)(void *)t->op.attr;
    int n = t->heads * t->d;
    t->op = dpk_op();
    t->call = dpk_call();
    t->call.op = &t->op;
    t->op.opcode = DPK_OP_attention;
    for (uint32_t &i : t->op.in) i = DPK_NONE;
    for (uint32_t &i : t->op.wt) i = DPK_NONE;
    a->heads = t->heads, a->head_dim = t->d;
    a->causal = (t->what & CAUSAL) != 0;
    a->scale = t->what & SCALE ? 0.37f : 0.0f;
    if (t->what & FUSED) {
        t->lq = t->lk;
        t->cq = t->ck = t->cv = 3 * n;
        t->q = t->k = t->v = give(t, 0, {t->images, t->lk, 3 * n}, t->size);
        t->call.in[1] = t->call.in[2] = t->call.in[0];
        a->k_off = n, a->v_off = 2 * n;
    } else {
        bool odd = draw(0, 3) == 0; /* else 16-byte accesses reach everything, if d lets them */
        a->q_off = odd ? draw(0, 5) : 8 * draw(0, 2);
        a->k_off = odd ? draw(0, 5) : 8 * draw(0, 2);
        a->v_off = odd ? draw(0, 5) : 8 * draw(0, 2);
        t->cq = n + a->q_off + (odd ? draw(0, 3) : 8);
        t->ck = n + a->k_off + (odd ? draw(0, 3) : 8);
        t->cv = n + a->v_off + (odd ? draw(0, 3) : 0);
        t->q = give(t, 0, {t->images, t->lq, t->cq}, t->size);
        t->k = give(t, 1, {t->images, t->lk, t->ck}, t->size);
        t->v = give(t, 2, {t->images, t->lk, t->cv}, 1);
    }
    if (t->what & MASK) {
        size_t count = (size_t)(t->images * t->lk);
        t->mask.resize(count);
        for (int32_t &each : t->mask) each = draw(0, 2);
        if (draw(0, 1))
            std::fill(t->mask.begin(), t->mask.begin() + t->lk, 0); /* an image of none */
        struct dpk_tensor *m = &t->call.in[DPK_IN(attention, mask)];
        m->data = to_device(t->mask.data(), count * 4);
        m->dtype = DPK_I32;
        m->shape = shape_of({t->images, t->lk});
    }
    if (t->what & BIAS) t->bias = give(t, DPK_IN(attention, bias), {t->heads, t->lq, t->lk}, 1);
    t->call.out.shape = shape_of({t->images, t->lq, n});
    t->call.out.dtype = t->dtype;
}

/* The result for a query and a head; *size: the largest magnitude of a value. */
static std::vector<double> reference(const struct attention *t, int image, int i, int head) {
    const struct dpk_attention_attrs *a = DPK_ATTRS(attention, &t->op);
    std::vector<double> s((size_t)t->lk), out((size_t)t->d);
    double top = -INFINITY, sum = 0, scale = 1 / sqrt((double)t->d);
    if (a->scale > 0) scale = (double)a->scale;
    for (int j = 0; j < t->lk; j++) {
        const float *q = &t->q[(size_t)(image * t->lq + i) * (size_t)t->cq];
        const float *k = &t->k[(size_t)(image * t->lk + j) * (size_t)t->ck];
        double x = 0;
        for (int c = 0; c < t->d; c++)
            x += (double)q[a->q_off + head * t->d + c] * (double)k[a->k_off + head * t->d + c];
        x *= scale;
        if (t->what & BIAS) x += (double)t->bias[(size_t)((head * t->lq + i) * t->lk + j)];
        if ((a->causal && j > i) || (t->what & MASK && !t->mask[(size_t)(image * t->lk + j)]))
            x = -INFINITY;
        s[(size_t)j] = x;
        top = fmax(top, x);
    }
    for (double &x : s) sum += x = top > -INFINITY ? exp(x - top) : 0;
    for (int j = 0; j < t->lk && sum > 0; j++)
        for (int c = 0; c < t->d; c++)
            out[(size_t)c] += s[(size_t)j] / sum *
                              (double)t->v[(size_t)(image * t->lk + j) * (size_t)t->cv +
                                           (size_t)(a->v_off + head * t->d + c)];
    return out;
}

static void run(struct attention *t) {
    dpk_error err = {};
    int n = t->heads * t->d;
    t->call.out.data = device((size_t)(t->images * t->lq * n) * bytes_of(t->dtype));
    t->call.scratch = device(dpk_cuda_scratch_attention(&cuda, &t->call));
    if (dpk_cuda_prepare_attention(&cuda, &t->call, &err) ||
        dpk_cuda_run_attention(&cuda, &t->call, &err))
        fail_msg("%s", err.msg);
}

static void check(struct attention *t) {
    int n = t->heads * t->d;
    char text[200];
    snprintf(text, sizeof text, "%s images %d queries %d keys %d heads %d of %d, options %d",
             dpk_dtype_name(t->dtype), t->images, t->lq, t->lk, t->heads, t->d, t->what);
    run(t);
    std::vector<float> got = decoded(t->call.out.data, (size_t)(t->images * t->lq * n), t->dtype);
    double distance = 0, length = 0;
    for (int image = 0; image < t->images; image++)
        for (int i = 0; i < t->lq; i++)
            for (int h = 0; h < t->heads; h++) {
                std::vector<double> want = reference(t, image, i, h);
                for (int c = 0; c < t->d; c++) {
                    float v = got[(size_t)((image * t->lq + i) * n + h * t->d + c)];
                    double off = (double)v - want[(size_t)c];
                    /* no single value far off, whatever the others are */
                    if (!(fabs(off) <= (t->dtype == DPK_BF16 ? 3e-2 : 1e-4)))
                        fail_msg("%s: image %d query %d head %d channel %d is %.9g, want %.9g",
                                 text, image, i, h, c, (double)v, want[(size_t)c]);
                    distance += off * off;
                    length += want[(size_t)c] * want[(size_t)c];
                }
            }
    double relative = length > 0 ? sqrt(distance / length) : sqrt(distance);
    if (!(relative <= (t->dtype == DPK_BF16 ? 5e-3 : 1e-5)))
        fail_msg("%s: off by %.3g", text, relative);
    forget();
}

static void try_case(uint64_t seed, int dtype, std::vector<int> sizes, int what, float size) {
    struct attention t = {};
    state = seed;
    dpk_emu_shuffle(seed);
    t.dtype = dtype;
    t.images = sizes[0], t.lq = sizes[1], t.lk = sizes[2], t.heads = sizes[3], t.d = sizes[4];
    t.what = what;
    t.size = size;
    open_attention(&t);
    check(&t);
}

static void test_head_sizes(void **) {
    static const int sizes[] = {1,  3,  8,  16, 17, 32,  33,  40,  48,  56, 64,
                                65, 72, 80, 88, 96, 100, 127, 128, 136, 160};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int dtype : {(int)DPK_BF16, (int)DPK_F32})
            try_case(i, dtype, {1 + (int)(i % 2), 19 + 7 * (int)i, 35 + 9 * (int)i, 2, sizes[i]}, 0,
                     1);
}

static void test_lengths(void **) {
    static const int lengths[][2] = {{1, 1},     {1, 77},   {5, 2},   {64, 64},  {128, 128},
                                     {129, 127}, {200, 63}, {65, 65}, {131, 300}};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int d : {40, 64, 80, 160})
            try_case(100 + i, DPK_BF16, {2, lengths[i][0], lengths[i][1], 1, d}, 0, 1);
}

static void test_options(void **) {
    static const int sizes[] = {24, 72, 192};
    for (int what = 0; what < 32; what++)
        for (int dtype : {(int)DPK_BF16, (int)DPK_F32})
            try_case(200 + (uint64_t)what, dtype,
                     {2, 3 + what * 37 % 150, 17 + what * 61 % 150, 2, sizes[what % 3]}, what, 1);
    try_case(300, DPK_BF16, {1, 77, 77, 12, 64}, CAUSAL | FUSED, 1);
}

/* Long heads: pieces of queries, the last one shorter. */
static void test_long_heads(void **) {
    try_case(400, DPK_BF16, {1, 200, 270, 1, 512}, 0, 1);
    try_case(401, DPK_BF16, {2, 70, 33, 1, 168}, 0, 1);
    try_case(402, DPK_BF16, {1, 20, 30, 2, 165}, 0, 1); /* nothing is aligned */
    try_case(403, DPK_F32, {1, 30, 50, 1, 512}, 0, 1);
    try_case(404, DPK_F32, {1, 5, 40, 1, 1500}, 0, 1);
}

/* Logits of hundreds; the largest key takes all. */
static void test_large_logits(void **) {
    for (int d : {16, 64, 160}) try_case(500, DPK_BF16, {1, 40, 300, 2, d}, 0, 9);
    try_case(501, DPK_F32, {1, 40, 300, 2, 16}, 0, 9);
}

/* Products that overflow: whatever the weights, they are finite, so that equal values come out. */
static void test_overflow(void **) {
    for (int what : {0, (int)MASK, (int)CAUSAL}) {
        for (int d : {18, 64, 200}) {
            for (int dtype : {(int)DPK_BF16, (int)DPK_F32}) {
                struct attention t = {};
                state = 600;
                t.dtype = dtype, t.what = what;
                t.images = 1, t.lq = 70, t.lk = 140, t.heads = 1, t.d = d, t.size = 1e26f;
                open_attention(&t);
                std::vector<float> ones((size_t)(t.lk * t.cv), 1.0f);
                std::vector<unsigned char> bytes = encoded(ones, dtype);
                t.call.in[2].data = to_device(bytes.data(), bytes.size());
                run(&t);
                for (float v : decoded(t.call.out.data, (size_t)(t.lq * d), dtype))
                    if (v != 0.0f && fabsf(v - 1.0f) > 1e-2f)
                        fail_msg("options %d, d %d: %g, want 1 (or 0)", what, d, (double)v);
                forget();
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head_sizes),   cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_options),      cmocka_unit_test(test_long_heads),
        cmocka_unit_test(test_large_logits), cmocka_unit_test(test_overflow),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
