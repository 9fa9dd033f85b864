/* Whole files: which layers real models have, what quantizing changes in a file and what not, and
 * what is refused. */
#include "../convert/conversion.h"
#include "../formats/dpk_check.h"
#include "../formats/source.h"
#include "../quantize/panel.h"
#include "../quantize/report.h"
#include "../quantize/rewrite.h"
#include "support_dpk.h"
#include "support_files.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define CHECK(call)                                                                                \
    do {                                                                                           \
        if ((call) != DPK_OK) fail_msg("%s: %s", #call, err.msg);                                  \
    } while (0)

static struct dpk_conversion *open_source(const char *source, int dtype, bool random) {
    const struct dpk_convert_options options = {
        .source = source, .dtype = dtype, .random = random, .seed = 7};
    struct dpk_conversion *c;
    dpk_error err;
    CHECK(dpk_conversion_open(&c, &options, &err));
    return c;
}

static void convert(const char *source, int dtype, const char *path) {
    struct dpk_conversion *c = open_source(source, dtype, false);
    dpk_error err;
    CHECK(dpk_builder_write(dpk_conversion_builder(c), path, 1, NULL, NULL, &err));
    dpk_conversion_close(c);
}

static struct dpk_scheme scheme_of(const char *text, int convention, bool convs) {
    struct dpk_scheme s = {.convention = convention, .convs = convs};
    dpk_error err;
    CHECK(dpk_scheme_parse(&s, text, &err));
    return s;
}

/* ---- Layers of real models ------------------------------------------------------------------- */

static const struct dpk_layer *find_layer(const struct dpk_layers *l, const char *name) {
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->layer[i].name, name) == 0) return &l->layer[i];
    return NULL;
}

/* Every row [name, in, out, .., quantized] of a golden list is a layer of that kind, and no other
 * layer of the component is. */
static void check_list(const struct dpk_layers *l, const cJSON *list, const char *component,
                       int kind) {
    const size_t n_prefix = strlen(component);
    int n = 0;
    const cJSON *row;
    cJSON_ArrayForEach(row, list) {
        char name[256];
        snprintf(name, sizeof name, "%s%s", component, cJSON_GetArrayItem(row, 0)->valuestring);
        const struct dpk_layer *layer = find_layer(l, name);
        if (!layer) fail_msg("no layer %s", name);
        assert_int_equal(layer->kind, kind);
        assert_int_equal(layer->in, cJSON_GetArrayItem(row, 1)->valueint);
        assert_int_equal(layer->out, cJSON_GetArrayItem(row, 2)->valueint);
        const bool swapped = cJSON_IsTrue(cJSON_GetArrayItem(row, 4));
        const bool want = kind == DPK_LAYER_LINEAR
                              ? swapped
                              : swapped && !(layer->in == 256 && layer->out == 128);
        if (layer->quantized != want) fail_msg("%s: %s", name, layer->reason);
        if (layer->rows == 0) fail_msg("%s: its rows are unknown", name);
        n++;
    }
    for (size_t i = 0; i < l->n; i++)
        if (strncmp(l->layer[i].name, component, n_prefix) == 0 && l->layer[i].kind == kind) n--;
    assert_int_equal(n, 0);
}

static void check_rows(const struct dpk_layers *l, const char *name, uint64_t rows) {
    const struct dpk_layer *layer = find_layer(l, name);
    if (!layer) fail_msg("no layer %s", name);
    if (layer->rows != rows)
        fail_msg("%s: %llu rows, want %llu", name, (unsigned long long)layer->rows,
                 (unsigned long long)rows);
}

static const struct real_model {
    const char *config, *golden, *component;
    int n_quantized, n_linears;
    struct {
        const char *layer;
        uint64_t rows;
    } rows[5];
} real_models[] = {
    {"sdxl-base-1.0",
     "sdxl unet",
     "unet.",
     397,
     533,
     {{"unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_qkv", 2 * 32 * 32},
      {"unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", 2 * 64 * 64},
      {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_kv", 2 * 77},
      {"unet.add_embedding.linear_1", 2},
      {"text_encoder.text_model.encoder.layers.0.mlp.fc1", 2 * 77}}},
    {"ssd-1b",
     "ssd-1b unet",
     "unet.",
     188,
     278,
     {{"unet.up_blocks.0.attentions.0.proj_out", 2 * 32 * 32}}},
    {"sd-v1-5",
     "sd15 unet",
     "unet.",
     106,
     136,
     {{"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_qkv", 2 * 64 * 64},
      {"unet.down_blocks.0.attentions.0.proj_in", 2 * 64 * 64},
      {"vae.decoder.up_blocks.3.resnets.0.conv_shortcut", 512 * 512}}},
    {"pixart-xl-2-1024-ms",
     "pixart transformer",
     "transformer.",
     206,
     206,
     {{"transformer.transformer_blocks.0.attn1.to_qkv", 2 * 64 * 64},
      {"transformer.transformer_blocks.27.attn2.to_kv", 2 * 120},
      {"transformer.proj_out", 2 * 64 * 64},
      {"vae.decoder.mid_block.attentions.0.to_qkv", 128 * 128}}},
};

static void check_real_model(const struct real_model *m, const cJSON *golden) {
    char source[128];
    struct dpk_file f;
    struct dpk_filter *filter;
    struct dpk_layers l;
    dpk_error err;
    const struct dpk_scheme scheme = scheme_of("int8-dynamic", 0, false);
    snprintf(source, sizeof source, "tests/data/configs/%s", m->config);
    struct dpk_conversion *c = open_source(source, DPK_BF16, true);
    CHECK(dpk_builder_view(dpk_conversion_builder(c), &f, &err));
    assert_null(f.weights);
    CHECK(dpk_filter_open(&filter, "diffusion-fast", &err));
    CHECK(dpk_layers_make(&l, &f, "view.dpk", &scheme, filter, &err));

    const cJSON *models = cJSON_GetObjectItem(golden, "models");
    const cJSON *net = cJSON_GetObjectItem(models, m->golden);
    const cJSON *vae = cJSON_GetObjectItem(models, "vae");
    assert_non_null(net);
    check_list(&l, cJSON_GetObjectItem(net, "linears"), m->component, DPK_LAYER_LINEAR);
    check_list(&l, cJSON_GetObjectItem(net, "convs_1x1"), m->component, DPK_LAYER_CONV1X1);
    check_list(&l, cJSON_GetObjectItem(vae, "linears"), "vae.", DPK_LAYER_LINEAR);
    check_list(&l, cJSON_GetObjectItem(vae, "convs_1x1"), "vae.", DPK_LAYER_CONV1X1);
    int quantized = 0, linears = 0;
    for (size_t i = 0; i < l.n; i++) {
        const struct dpk_layer *layer = &l.layer[i];
        if (strncmp(layer->name, "vae.decoder.", 12) == 0) assert_false(layer->quantized);
        if (strncmp(layer->name, m->component, strlen(m->component)) != 0) continue;
        linears += layer->kind == DPK_LAYER_LINEAR;
        quantized += layer->kind == DPK_LAYER_LINEAR && layer->quantized;
    }
    assert_int_equal(quantized, m->n_quantized);
    assert_int_equal(linears, m->n_linears);
    for (int i = 0; i < 5 && m->rows[i].layer; i++)
        check_rows(&l, m->rows[i].layer, m->rows[i].rows);
    dpk_layers_free(&l);
    dpk_filter_free(filter);
    dpk_file_close(&f);
    dpk_conversion_close(c);
}

static void test_real_models(void **state) {
    size_t n;
    uint8_t *text = get_file("tests/data/golden/quant_layers.json", &n);
    cJSON *golden;
    dpk_error err;
    (void)state;
    CHECK(dpk_json_parse(&golden, "quant_layers.json", (char *)text, n, &err));
    for (size_t i = 0; i < sizeof real_models / sizeof *real_models; i++)
        check_real_model(&real_models[i], golden);
    cJSON_Delete(golden);
    free(text);
}

/* ---- What becomes of a file ------------------------------------------------------------------ */

static const struct dpk_tensor_record *find_tensor(const struct dpk_file *f, const char *name) {
    for (uint32_t i = 0; i < f->n_tensors; i++)
        if (strcmp(dpk_file_string(f, f->tensors[i].name), name) == 0) return &f->tensors[i];
    return NULL;
}

/* All rows of a panel tensor, in logical order: floats, or integers. */
static void *read_rows(const struct dpk_file *f, const struct dpk_tensor_record *t,
                       struct dpk_panels *p) {
    const struct dpk_shape shape = dpk_tensor_shape(t);
    assert_true(dpk_panels_make(p, (int)t->dtype, (int)t->layout, &shape));
    const bool integers = t->dtype == DPK_S8 || t->dtype == DPK_S4;
    const size_t k = (size_t)p->k, row_bytes = k * (integers ? 1 : sizeof(float));
    uint8_t *panel = malloc(16 * row_bytes), *all = malloc((size_t)p->rows * row_bytes);
    for (uint64_t i = 0; i < p->count; i++) {
        const uint8_t *src = f->weights + t->offset + i * p->bytes;
        if (integers) dpk_panels_integers(p, src, (int8_t *)panel);
        else dpk_panels_unpack(p, src, (float *)(void *)panel);
        for (int r = 0; r < 16; r++) {
            const int64_t row = dpk_panels_row(p, i, r);
            if (row >= 0)
                memcpy(all + (size_t)row * row_bytes, panel + (size_t)r * row_bytes, row_bytes);
        }
    }
    free(panel);
    return all;
}

static void check_quantized(const struct dpk_file *a, const struct dpk_tensor_record *ta,
                            const struct dpk_file *b, const struct dpk_tensor_record *tb,
                            const struct dpk_scheme *scheme, const struct dpk_layer *l) {
    const bool s4 = scheme->kind == DPK_SCHEME_INT4_WEIGHT;
    const bool dynamic = scheme->kind == DPK_SCHEME_INT8_DYNAMIC;
    struct dpk_panels pa, pb;
    float *w = read_rows(a, ta, &pa);
    int8_t *q = read_rows(b, tb, &pb), *want = malloc((size_t)pa.k);
    const size_t k = (size_t)pa.k;
    assert_int_equal(tb->dtype, s4 ? DPK_S4 : DPK_S8);
    assert_int_equal(tb->layout, ta->layout);
    uint32_t flags = ta->flags;
    if (dynamic) flags |= DPK_TENSOR_DYNAMIC;
    if (dynamic && scheme->convention == DPK_CONVENTION_TORCHAO) flags |= DPK_TENSOR_TORCHAO;
    assert_int_equal(tb->flags, flags);
    assert_int_equal(tb->group, l->group);
    if (s4) assert_true(l->group >= 32 && l->group <= scheme->group && l->in % l->group == 0);
    const size_t group = s4 ? tb->group : k;
    const float *scale = (const void *)(b->weights + b->tensors[tb->scale].offset);
    const int32_t *sums = s4 ? NULL : (const void *)(b->weights + b->tensors[tb->colsum].offset);
    float *scales = malloc(k * sizeof *scales);
    for (size_t row = 0; row < pa.rows; row++) {
        if (s4) dpk_quantize_row_s4(w + row * k, k, group, want, scales);
        else dpk_quantize_row_s8(scheme->convention, (int)ta->dtype, w + row * k, k, want, scales);
        assert_memory_equal(q + row * k, want, k);
        assert_memory_equal(scale + row * (k / group), scales, k / group * sizeof *scales);
        int32_t sum = 0;
        for (size_t i = 0; i < k; i++) {
            sum += want[i];
            const double e = w[row * k + i] - (double)want[i] * scales[i / group];
            /* A scale rounded to bf16 may clip a little more than half a step. */
            assert_true(fabs(e) <= 0.8 * scales[i / group]);
        }
        if (sums) assert_int_equal(sums[row], sum);
    }
    free(w), free(q), free(want), free(scales);
}

/* Programs are equal but for the numbers of tensors, which name the same ones. */
static void check_programs(const struct dpk_file *a, const struct dpk_file *b) {
    assert_int_equal(a->n_programs, b->n_programs);
    for (uint32_t p = 0; p < a->n_programs; p++) {
        const struct dpk_program *x = &a->programs[p], *y = &b->programs[p];
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->n_inputs, y->n_inputs);
        assert_int_equal(x->n_ops, y->n_ops);
        for (uint32_t v = 0; v < x->n_inputs + x->n_ops; v++) {
            struct dpk_value u = y->values[v];
            assert_string_equal(dpk_file_string(a, x->values[v].name), dpk_file_string(b, u.name));
            u.name = x->values[v].name;
            assert_memory_equal(&u, &x->values[v], sizeof u);
        }
        for (uint32_t i = 0; i < x->n_ops; i++) {
            struct dpk_op o = y->ops[i];
            assert_string_equal(dpk_file_string(a, x->ops[i].name), dpk_file_string(b, o.name));
            o.name = x->ops[i].name;
            for (int j = 0; j < DPK_MAX_WT; j++) {
                const uint32_t wa = x->ops[i].wt[j], wb = o.wt[j];
                assert_true((wa == DPK_NONE) == (wb == DPK_NONE));
                if (wa != DPK_NONE)
                    assert_string_equal(dpk_file_string(a, a->tensors[wa].name),
                                        dpk_file_string(b, b->tensors[wb].name));
                o.wt[j] = wa;
            }
            assert_memory_equal(&o, &x->ops[i], sizeof o);
        }
    }
}

static void check_rest(const struct dpk_file *a, const struct dpk_file *b, const char *scheme) {
    char sum[20];
    for (uint32_t i = 0; i < a->n_pairs; i++) {
        const char *value = dpk_file_meta(b, dpk_file_string(a, a->pairs[i].key));
        assert_non_null(value);
        assert_string_equal(value, dpk_file_string(a, a->pairs[i].value));
    }
    const bool s4 = strncmp(scheme, "int4", 4) == 0;
    assert_int_equal(b->n_pairs, a->n_pairs + (s4 ? 5 : 6));
    assert_string_equal(dpk_file_meta(b, "quant.scheme"), scheme);
    assert_string_equal(dpk_file_meta(b, "quant.filter"), "all");
    snprintf(sum, sizeof sum, "%016llx", (unsigned long long)dpk_file_sum(a));
    assert_string_equal(dpk_file_meta(b, "quant.source_sum"), sum);
    assert_int_equal(a->n_tokenizers, b->n_tokenizers);
    for (uint32_t i = 0; i < a->n_tokenizers; i++) {
        size_t na, nb;
        const void *x = dpk_file_blob(a, i, &na), *y = dpk_file_blob(b, i, &nb);
        assert_int_equal(na, nb);
        assert_memory_equal(x, y, na);
        assert_int_equal(a->tokenizers[i].kind, b->tokenizers[i].kind);
    }
}

/* Quantize everything in `in` to `out` and compare the two files. */
static void check_rewrite(const char *in, const char *out, const struct dpk_scheme *scheme) {
    struct dpk_file a, b;
    struct dpk_filter *filter;
    struct dpk_layers l;
    char text[32];
    dpk_error err;
    CHECK(dpk_filter_open(&filter, "all", &err));
    const struct dpk_rewrite_options options = {.scheme = scheme,
                                                .filter_id = dpk_filter_id(filter)};
    CHECK(dpk_file_open(&a, in, &err));
    CHECK(dpk_layers_make(&l, &a, in, scheme, filter, &err));
    CHECK(dpk_rewrite(&a, out, &l, &options, &err));
    CHECK(dpk_file_open(&b, out, &err));
    CHECK(dpk_file_verify(&b, NULL, NULL, &err));
    check_programs(&a, &b);
    check_rest(&a, &b, dpk_scheme_text(scheme, text));
    size_t seen = 0, n_new = 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < a.n_tensors; i++) {
        const struct dpk_tensor_record *ta = &a.tensors[i];
        const struct dpk_tensor_record *tb = find_tensor(&b, dpk_file_string(&a, ta->name));
        assert_non_null(tb);
        assert_string_equal(dpk_file_string(&a, ta->source), dpk_file_string(&b, tb->source));
        const struct dpk_layer *layer =
            seen < l.n && l.layer[seen].tensor == i ? &l.layer[seen++] : NULL;
        if (layer && layer->quantized) {
            check_quantized(&a, ta, &b, tb, scheme, layer);
            bytes = tb->bytes + b.tensors[tb->scale].bytes;
            if (tb->colsum != DPK_NONE) bytes += b.tensors[tb->colsum].bytes;
            assert_int_equal(bytes, layer->bytes_after);
            assert_true(dpk_sqnr_db(layer->signal, layer->noise) > (layer->group ? 14 : 30));
            n_new += tb->colsum == DPK_NONE ? 1 : 2;
        } else {
            assert_int_equal(ta->dtype, tb->dtype);
            assert_int_equal(ta->flags, tb->flags);
            assert_int_equal(ta->bytes, tb->bytes);
            assert_memory_equal(a.weights + ta->offset, b.weights + tb->offset, ta->bytes);
        }
    }
    assert_int_equal(seen, l.n);
    assert_int_equal(b.n_tensors, a.n_tensors + n_new);
    assert_true(l.n_quantized > l.n / 4);
    dpk_file_close(&b);
    dpk_file_close(&a);
    dpk_layers_free(&l);
    dpk_filter_free(filter);
}

static void test_rewrite(void **state) {
    static const struct {
        const char *source;
        int dtype;
    } models[] = {{"models/shapes-xl", DPK_BF16},
                  {"tests/data/tiny-sd15", DPK_F16},
                  {"tests/data/tiny-pixart", DPK_F32}};
    const struct dpk_scheme schemes[] = {
        scheme_of("int8-dynamic", DPK_CONVENTION_DIFFUSION_FAST, true),
        scheme_of("int8-dynamic", DPK_CONVENTION_TORCHAO, false),
        scheme_of("int8-weight", DPK_CONVENTION_TORCHAO, false),
        scheme_of("int4-weight:32", 0, false),
        scheme_of("int4-weight:128", 0, true),
    };
    const char *in = in_dir(*state, "in.dpk"), *out = in_dir(*state, "out.dpk");
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        convert(models[m].source, models[m].dtype, in);
        for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
            /* Tiny layers have fewer inputs than a group of int4 has values. */
            if (schemes[i].group && m != 0) continue;
            check_rewrite(in, out, &schemes[i]);
        }
    }
}

static int run(const char *in, const char *out, int threads,
               int (*progress)(void *, uint64_t, uint64_t), void *arg, dpk_error *err) {
    const struct dpk_scheme scheme = scheme_of("int8-dynamic", 0, false);
    struct dpk_file f;
    struct dpk_filter *filter;
    struct dpk_layers l = {0};
    int rc = dpk_filter_open(&filter, "diffusion-fast", err);
    if (rc == DPK_OK) rc = dpk_file_open(&f, in, err);
    if (rc != DPK_OK) fail_msg("%s", err->msg);
    const struct dpk_rewrite_options options = {.scheme = &scheme,
                                                .filter_id = dpk_filter_id(filter),
                                                .progress = progress,
                                                .progress_arg = arg,
                                                .threads = threads};
    rc = dpk_layers_make(&l, &f, in, &scheme, filter, err);
    if (rc == DPK_OK) rc = dpk_rewrite(&f, out, &l, &options, err);
    dpk_layers_free(&l);
    dpk_filter_free(filter);
    dpk_file_close(&f);
    return rc;
}

static void test_deterministic(void **state) {
    const char *in = in_dir(*state, "in.dpk"), *a = in_dir(*state, "a.dpk");
    const char *b = in_dir(*state, "b.dpk");
    size_t na, nb;
    dpk_error err;
    convert("models/shapes-xl", DPK_BF16, in);
    CHECK(run(in, a, 1, NULL, NULL, &err));
    CHECK(run(in, b, 3, NULL, NULL, &err));
    uint8_t *x = get_file(a, &na), *y = get_file(b, &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(x, y, na);
    free(y);
    /* Over the file that it reads. */
    CHECK(run(in, in, 2, NULL, NULL, &err));
    y = get_file(in, &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(x, y, na);
    free(x);
    free(y);
}

/* ---- What is refused ------------------------------------------------------------------------- */

static void refuse(const char *in, const char *out, int code, const char *message) {
    dpk_error err = {0};
    assert_int_equal(run(in, out, 0, NULL, NULL, &err), code);
    if (!strstr(err.msg, message)) fail_msg("\"%s\" is not in \"%s\"", message, err.msg);
    assert_int_not_equal(access(out, F_OK), 0);
}

/* A program of one linear, unet.x, whose weights [20,24] are `value` at [17,5]. */
static void write_linear(const char *path, float value) {
    struct dpk_writer *w;
    uint32_t index, name;
    dpk_error err;
    float rows[2 * 24 * 16] = {0};
    const struct dpk_tensor_spec spec = {
        "unet.x.weight", "x.weight", DPK_F32, DPK_LAYOUT_PANEL, {2, {20, 24}}, DPK_NONE,
        DPK_NONE,        0,          0};
    struct dpk_value values[2] = {{.type = DPK_VALUE_ACT, .rank = 2, .dim = {0, 24}},
                                  {.type = DPK_VALUE_ACT, .flags = DPK_VALUE_OUTPUT}};
    struct dpk_op op = {.opcode = DPK_OP_linear};
    for (int i = 0; i < DPK_MAX_IN; i++) op.in[i] = i ? DPK_NONE : 0;
    for (int i = 0; i < DPK_MAX_WT; i++) op.wt[i] = i ? DPK_NONE : 0;
    rows[(1 * 24 + 5) * 16 + 1] = value;
    CHECK(dpk_writer_create(&w, path, &err));
    CHECK(dpk_writer_tensor(w, &spec, &index, &err));
    CHECK(dpk_writer_string(w, "x", &values[0].name, &err));
    CHECK(dpk_writer_string(w, "y", &values[1].name, &err));
    CHECK(dpk_writer_string(w, "unet.x", &name, &err));
    op.name = name;
    CHECK(dpk_writer_program(w, "step", values, 1, &op, 1, &err));
    CHECK(dpk_writer_begin(w, &err));
    CHECK(dpk_writer_put(w, index, rows, sizeof rows, &err));
    CHECK(dpk_writer_finish(w, &err));
    dpk_writer_free(w);
}

static int stop_in_the_middle(void *arg, uint64_t done, uint64_t total) {
    int *calls = arg;
    assert_true(done <= total);
    ++*calls;
    return done > total / 2;
}

static void test_refused(void **state) {
    const char *in = in_dir(*state, "in.dpk"), *out = in_dir(*state, "out.dpk");
    const char *once = in_dir(*state, "once.dpk");
    dpk_error err;
    int calls = 0;
    convert("models/shapes-xl", DPK_BF16, in);
    CHECK(run(in, once, 0, NULL, NULL, &err));
    refuse(once, out, DPK_EARG, "quantized already (int8-dynamic)");
    CHECK(support_dpk_write(once, 3, 1, &err)); /* with s8 and s4, but without the metadata */
    refuse(once, out, DPK_EARG, "is quantized already (tensor net.layer.");

    write_linear(once, 3);
    CHECK(run(once, out, 0, NULL, NULL, &err));
    unlink(out);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        write_linear(once, bad[i]);
        refuse(once, out, DPK_EFORMAT, "tensor unet.x.weight: row 17 has a value that is not");
    }

    assert_int_equal(run(in, out, 0, stop_in_the_middle, &calls, &err), DPK_ECANCELLED);
    assert_true(calls > 1);
    assert_int_not_equal(access(out, F_OK), 0);

    const char *nowhere = in_dir(*state, "missing/out.dpk");
    refuse(in, nowhere, DPK_EIO, "missing");

    /* Any damaged weight, quantized or copied, is found and named. */
    struct dpk_file f;
    CHECK(dpk_file_open(&f, in, &err));
    size_t n;
    uint8_t *bytes = get_file(in, &n);
    const uint64_t weights = f.sections[DPK_SECTION_WEIGHTS - 1].offset;
    for (uint32_t i = 0; i < f.n_tensors; i += 37) {
        const uint64_t at = weights + f.tensors[i].offset + f.tensors[i].bytes / 2;
        bytes[at] ^= 4;
        put_file(once, bytes, n);
        refuse(once, out, DPK_EFORMAT, dpk_file_string(&f, f.tensors[i].name));
        bytes[at] ^= 4;
    }
    free(bytes);
    dpk_file_close(&f);
}

/* ---- Reports --------------------------------------------------------------------------------- */

static void test_report(void **state) {
    const char *in = in_dir(*state, "in.dpk"), *path = in_dir(*state, "report.json");
    const struct dpk_scheme scheme = scheme_of("int8-weight", DPK_CONVENTION_TORCHAO, false);
    struct dpk_file f;
    struct dpk_filter *filter;
    struct dpk_layers l;
    dpk_error err;
    convert("models/shapes-xl", DPK_BF16, in);
    put_text(in_dir(*state, "rules"), "skip *\"no\\such\"*\nskip vae.*\n");
    CHECK(dpk_filter_open(&filter, in_dir(*state, "rules"), &err));
    CHECK(dpk_file_open(&f, in, &err));
    CHECK(dpk_layers_make(&l, &f, in, &scheme, filter, &err));
    const struct dpk_rewrite_options options = {.scheme = &scheme,
                                                .filter_id = dpk_filter_id(filter)};
    CHECK(dpk_rewrite(&f, NULL, &l, &options, &err)); /* errors alone, no file */
    const struct dpk_report_subject subject = {.source_path = "a \"b\\c\xff.dpk",
                                               .source_sum = dpk_file_sum(&f),
                                               .scheme = &scheme,
                                               .filter_id = dpk_filter_id(filter),
                                               .file_before = f.file_bytes};
    struct dpk_atomic_file file;
    CHECK(dpk_atomic_open(&file, path, &err));
    CHECK(dpk_report_write(&file, &subject, &l, &err));
    CHECK(dpk_atomic_close(&file, DPK_OK, &err));
    size_t n;
    cJSON *json;
    uint8_t *text = get_file(path, &n);
    CHECK(dpk_json_parse(&json, "report", (char *)text, n, &err));
    assert_string_equal(cJSON_GetObjectItem(json, "source")->valuestring,
                        "a \"b\\c\xef\xbf\xbd.dpk");
    const cJSON *layers = cJSON_GetObjectItem(json, "layers");
    assert_int_equal(cJSON_GetArraySize(layers), l.n);
    double share = 0;
    for (size_t i = 0; i < l.n; i++) {
        const cJSON *row = cJSON_GetArrayItem(layers, (int)i);
        const cJSON *db = cJSON_GetObjectItem(row, "sqnr_db");
        assert_string_equal(cJSON_GetObjectItem(row, "name")->valuestring, l.layer[i].name);
        assert_int_equal((bool)cJSON_IsTrue(cJSON_GetObjectItem(row, "quantized")),
                         l.layer[i].quantized);
        assert_true((db != NULL) == l.layer[i].quantized);
        assert_true(l.layer[i].quantized != (strncmp(l.layer[i].name, "vae.", 4) == 0));
        if (!db) continue;
        assert_true(db->valuedouble > 35 && db->valuedouble < 55);
        share += cJSON_GetObjectItem(row, "share_of_error")->valuedouble;
    }
    assert_true(fabs(share - 1) < 1e-4);
    const struct dpk_report_totals t = dpk_report_sum(&l);
    assert_true(t.bits > 8 && t.bits < 12 && t.worst && t.sqnr_db > 35);
    assert_true(dpk_sqnr_db(t.worst->signal, t.worst->noise) <= t.sqnr_db);
    cJSON_Delete(json);
    free(text);
    /* What became a model in the meantime is left alone. */
    const char *late = in_dir(*state, "late.json");
    CHECK(dpk_atomic_open(&file, late, &err));
    convert("tests/data/tiny-sd15", DPK_BF16, late);
    assert_int_equal(dpk_atomic_close(&file, DPK_OK, &err), DPK_EIO);
    assert_true(dpk_atomic_is_model(late));
    dpk_layers_free(&l);
    dpk_file_close(&f);
    dpk_filter_free(filter);
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real_models), WITH_FOLDER(test_rewrite),
        WITH_FOLDER(test_deterministic),    WITH_FOLDER(test_refused),
        WITH_FOLDER(test_report),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
