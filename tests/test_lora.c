/* LoRA: merged weights against those of diffusers and against plain sums in double precision, for
 * every naming and form of files; whatever rows are read, and by how many threads; the outputs of
 * merged models; what is refused. */
#include "support_files.h"
#include "support_golden.h"
#include "support_tensors.h"

#include "../convert/conversion.h"
#include "../convert/lora.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Against diffusers ----------------------------------------------------------------------- */

static const struct golden {
    const char *name, *model, *file;
    size_t n_layers; /* of lora.json */
    const char *component, *weight, *component_2, *weight_2;
} goldens[] = {
    {"sdxl_peft", "tests/data/tiny-sdxl", "pytorch_lora_weights", 122, "unet",
     "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k", "text_encoder_2",
     "text_model.encoder.layers.3.self_attn.v_proj"},
    {"sdxl_kohya", "tests/data/tiny-sdxl", "sdxl_kohya", 130, "unet",
     "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k", "text_encoder_2",
     "text_model.encoder.layers.3.self_attn.v_proj"},
    {"sdxl_dora", "tests/data/tiny-sdxl", "pytorch_lora_weights", 51, "unet",
     "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k", "unet",
     "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v"},
    {"sd15_old", "tests/data/tiny-sd15", "pytorch_lora_weights", 78, "unet",
     "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v", "text_encoder",
     "text_model.encoder.layers.2.self_attn.v_proj"},
    {"sd15_kohya_conv", "tests/data/tiny-sd15", "sd15_kohya_conv", 99, "unet",
     "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "text_encoder",
     "text_model.encoder.layers.2.self_attn.v_proj"},
};
enum { N_GOLDENS = sizeof goldens / sizeof *goldens };

static const char *file_of(const struct golden *g) {
    static char path[256];
    snprintf(path, sizeof path, "tests/data/lora/%s/%s.safetensors", g->name, g->file);
    return path;
}

/* The part of a plan that is the tensor NAME, *first being its first row. */
static const struct dpk_weight_plan *find_plan(const struct dpk_builder *b, const char *component,
                                               const char *name, uint64_t *first) {
    for (size_t i = 0; i < dpk_builder_n_weights(b); i++) {
        const struct dpk_weight_plan *w = dpk_builder_weight(b, i);
        if (strcmp(w->from->prefix, component) != 0) continue;
        for (int k = 0; k < w->n_parts; k++)
            if (strcmp(w->part[k].name, name) == 0) {
                *first = (uint64_t)k * (uint64_t)(w->shape.dim[0] / w->n_parts);
                return w;
            }
    }
    fail_msg("no weight %s", name);
    return NULL;
}

static void check_weight(const struct dpk_builder *b, struct dpk_tensors *t, const struct golden *g,
                         const char *component, const char *weight) {
    char key[256], name[256];
    uint64_t first = 0;
    dpk_error err;
    snprintf(key, sizeof key, "%s.weight.%s.%s", g->name, component, weight);
    snprintf(name, sizeof name, "%s.weight", weight);
    const struct dpk_weight_plan *w = find_plan(b, component, name, &first);
    dpk_array want = golden_array(t, key, -1, 0);
    const size_t n = golden_count(&want);
    float *got = malloc(n * sizeof *got);
    assert_non_null(got);
    if (dpk_weight_read_rows(w, first, (uint64_t)want.dim[0], got, &err)) fail_msg("%s", err.msg);
    const double error = golden_relative(got, want.data, n);
    if (!(error <= 1e-6)) fail_msg("%s: %g", key, error);
    free(got);
    golden_free(&want);
}

static void test_weights(void **state) {
    struct dpk_tensors *t;
    dpk_error err;
    (void)state;
    if (dpk_tensors_open_file(&t, "tests/data/golden/lora.safetensors", &err))
        fail_msg("%s", err.msg);
    for (const struct golden *g = goldens; g < goldens + N_GOLDENS; g++) {
        const struct dpk_lora_file file = {.path = file_of(g), .scale = 0.7};
        const struct dpk_convert_options o = {
            .source = g->model, .dtype = DPK_F32, .loras = &file, .n_loras = 1};
        struct dpk_conversion *c;
        char number[32];
        if (dpk_conversion_open(&c, &o, &err)) fail_msg("%s", err.msg);
        const struct dpk_builder *b = dpk_conversion_builder(c);
        check_weight(b, t, g, g->component, g->weight);
        check_weight(b, t, g, g->component_2, g->weight_2);
        snprintf(number, sizeof number, "%zu", g->n_layers);
        assert_string_equal(dpk_builder_meta_get(b, "convert.lora.0.layers"), number);
        assert_string_equal(dpk_builder_meta_get(b, "convert.lora.0.scale"), "0.7");
        assert_string_equal(dpk_builder_meta_get(b, "convert.lora.0.file"),
                            strrchr(file.path, '/') + 1);
        assert_null(dpk_builder_meta_get(b, "convert.lora.0.ignored_tensors"));
        assert_null(dpk_builder_meta_get(b, "convert.lora.1.file"));
        dpk_conversion_close(c);
    }
    dpk_tensors_close(t);
}

static void check_output(dpk_session *s, const char *program, const dpk_array *in, size_t n,
                         const char *name, struct dpk_tensors *goldens_of, const char *key,
                         int nhwc) {
    dpk_arrays *out = NULL;
    dpk_error err;
    if (dpk_session_run(s, program, in, n, &out, &err)) fail_msg("%s: %s", key, err.msg);
    dpk_array want = golden_array(goldens_of, key, -1, nhwc);
    for (size_t i = 0; i < out->n; i++) {
        if (strcmp(out->at[i].name, name) != 0) continue;
        assert_int_equal(golden_count(&out->at[i]), golden_count(&want));
        const double error = golden_relative(out->at[i].data, want.data, golden_count(&want));
        printf("%s: %.2e\n", key, error);
        if (!(error <= 1e-4)) fail_msg("%s: %g", key, error);
        golden_free(&want);
        dpk_arrays_free(out);
        return;
    }
    fail_msg("%s: no output %s", key, name);
}

/* The first row of a batch. */
static dpk_array first_of(struct dpk_tensors *t, const char *key, const char *name) {
    dpk_array a = golden_array(t, key, 0, 0);
    memmove(a.dim + 1, a.dim, (size_t)a.rank * sizeof *a.dim);
    a.dim[0] = 1;
    a.rank++;
    a.name = name;
    return a;
}

static void test_outputs(void **state) {
    struct dpk_tensors *t, *base;
    dpk_error err;
    (void)state;
    if (dpk_tensors_open_file(&t, "tests/data/golden/lora.safetensors", &err))
        fail_msg("%s", err.msg);
    for (const struct golden *g = goldens; g < goldens + N_GOLDENS; g++) {
        char options[512], name[64], path[256], key[128];
        const int xl = strstr(g->model, "sdxl") != NULL;
        dpk_session *s = NULL;
        snprintf(options, sizeof options, "--dtype f32 --lora %s:0.7", file_of(g));
        snprintf(name, sizeof name, "lora-%s", g->name);
        snprintf(path, sizeof path, "tests/data/golden/%s.safetensors", strrchr(g->model, '/') + 1);
        dpk_model *model = golden_model(name, g->model, options);
        if (dpk_tensors_open_file(&base, path, &err) || dpk_session_create(&s, model, NULL, &err))
            fail_msg("%s", err.msg);
        dpk_array text[2] = {first_of(base, "text.ids", "ids")};
        if (xl) text[1] = first_of(base, "text.ids_2", "ids_2");
        snprintf(key, sizeof key, "%s.text_embeds", g->name);
        check_output(s, "text", text, xl ? 2 : 1, "context", t, key, 0);
        snprintf(key, sizeof key, "%s.pooled", g->name);
        if (xl) check_output(s, "text", text, 2, "pooled", t, key, 0);
        dpk_array in[5] = {golden_array(base, "net.a.sample", -1, 1),
                           golden_array(base, "net.a.context", -1, 0)};
        float timestep = 401.0f;
        const dpk_array at = {
            .name = "timestep", .type = DPK_ARRAY_F32, .rank = 1, .dim = {1}, .data = &timestep};
        in[0].name = "latent", in[1].name = "context", in[2] = at;
        if (xl) {
            in[3] = golden_array(base, "net.a.pooled", -1, 0), in[3].name = "pooled";
            in[4] = golden_array(base, "net.a.time_ids", -1, 0), in[4].name = "time_ids";
        }
        snprintf(key, sizeof key, "%s.net_out", g->name);
        check_output(s, "denoise", in, xl ? 5 : 3, "noise", t, key, 1);
        for (int i = 0; i < 5; i++)
            if (i < 2 || (xl && i > 2)) golden_free(&in[i]);
        for (int i = 0; i <= xl; i++) golden_free(&text[i]);
        dpk_session_free(s);
        dpk_model_free(model);
        dpk_tensors_close(base);
    }
    dpk_tensors_close(t);
}

/* ---- A model of a few layers ----------------------------------------------------------------- */

enum { ROWS = 11, IN = 37, CONV_IN = 5, TAPS = 6, RANK = 3 };
#define LINEAR "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
#define CONV "down_blocks.0.resnets.0.conv1"
#define TEXT "text_model.encoder.layers.0.self_attn.q_proj"

struct small {
    struct dpk_component c[2];
};

static void ask(struct dpk_component *c, const char *layer, int rank, uint64_t n, uint64_t k,
                uint64_t kh, uint64_t kw) {
    struct dpk_weight_part part;
    const uint64_t dim[4] = {n, k, kh, kw};
    char name[256];
    dpk_error err;
    snprintf(name, sizeof name, "%s.weight", layer);
    if (dpk_component_want(c, name, rank, dim, &part, &err)) fail_msg("%s", err.msg);
}

/* Components without tensors: only what is added to them counts. */
static struct small *small_model(void) {
    struct small *m = calloc(1, sizeof *m);
    assert_non_null(m);
    strcpy(m->c[0].prefix, "unet");
    strcpy(m->c[1].prefix, "text_encoder");
    ask(&m->c[0], LINEAR, 2, ROWS, IN, 0, 0);
    ask(&m->c[0], CONV, 4, ROWS, CONV_IN, 2, 3);
    ask(&m->c[0], "norm", 1, ROWS, 0, 0, 0);
    ask(&m->c[1], TEXT, 2, ROWS, IN, 0, 0);
    return m;
}
static void small_free(struct small *m) {
    dpk_component_close(&m->c[0]);
    dpk_component_close(&m->c[1]);
    free(m);
}

static int try_file(struct small *m, struct dpk_lora *l, const char *path, double scale,
                    bool partial, dpk_error *err) {
    struct dpk_lora_file file = {.path = path, .scale = scale, .partial = partial};
    return dpk_lora_add_file(l, &file, m->c, 2, err);
}

static struct dpk_lora *merged(struct small *m, const char *path, double scale) {
    struct dpk_lora *l;
    dpk_error err;
    if (dpk_lora_create(&l, &err) || try_file(m, l, path, scale, false, &err))
        fail_msg("%s", err.msg);
    return l;
}

/* w += scale * up down, in double. */
static void add_plain(double *w, const float *up, const float *down, int row, int rank,
                      double scale) {
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < row; k++)
            for (int j = 0; j < rank; j++)
                w[i * row + k] += scale * (double)up[i * rank + j] * (double)down[j * row + k];
}

static void check_rows(const struct dpk_lora *l, const struct dpk_component *c, const char *layer,
                       const float *start, const double *want, int row) {
    char name[256];
    dpk_error err;
    snprintf(name, sizeof name, "%s.weight", layer);
    for (int piece = 1; piece <= ROWS; piece += 2) { /* some leave a remainder */
        float w[ROWS * IN];
        memcpy(w, start, (size_t)(ROWS * row) * sizeof *w);
        for (int r = 0; r < ROWS; r += piece) {
            const int n = ROWS - r < piece ? ROWS - r : piece;
            if (dpk_lora_apply(l, c, name, (uint64_t)r, (uint64_t)n, (size_t)row, w + r * row,
                               &err))
                fail_msg("%s", err.msg);
        }
        for (int i = 0; i < ROWS * row; i++)
            if (!(fabs((double)w[i] - want[i]) <= 2e-6 * (1.0 + fabs(want[i]))))
                fail_msg("%s: piece %d, value %d: %g, wanted %g", layer, piece, i, (double)w[i],
                         want[i]);
    }
}

static void start_from(float *start, double *want, int n) {
    uint64_t seed = 99;
    for (int i = 0; i < n; i++) {
        start[i] = (float)noise(&seed) / 2147483648.0f - 1.0f;
        want[i] = (double)start[i];
    }
}

/* The same linear layer in all namings, with what each says of the strength. */
static void test_namings(void **state) {
    static const struct {
        const char *down, *up, *alpha, *metadata;
        double ratio;
        int text;
    } all[] = {
        {"unet." LINEAR ".lora_A.weight", "unet." LINEAR ".lora_B.weight", NULL, NULL, 1, 0},
        {"unet." LINEAR ".lora_A.default.weight", "unet." LINEAR ".lora_B.default.weight", NULL,
         "{\\\"unet.lora_alpha\\\":6,\\\"unet.r\\\":3}", 2, 0},
        {"unet." LINEAR ".lora_A.weight", "unet." LINEAR ".lora_B.weight", NULL,
         "{\\\"unet.lora_alpha\\\":6,\\\"unet.use_rslora\\\":true}", 3.4641016151377544, 0},
        {"unet." LINEAR ".lora_A.weight", "unet." LINEAR ".lora_B.weight", NULL,
         "{\\\"unet.lora_alpha\\\":6,\\\"unet.alpha_pattern\\\":{\\\"attn2.to_out.0\\\":5,"
         "\\\"attn1.to_out.0\\\":12}}",
         4, 0},
        {"unet." LINEAR ".lora_A.weight", "unet." LINEAR ".lora_B.weight", NULL,
         "{\\\"text_encoder.lora_alpha\\\":6}", 1, 0},
        {LINEAR ".lora.down.weight", LINEAR ".lora.up.weight", NULL, NULL, 1, 0},
        {"unet." LINEAR ".lora.down.weight", "unet." LINEAR ".lora.up.weight", NULL, NULL, 1, 0},
        {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
         "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
         NULL, NULL, 1, 0},
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down."
         "weight",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha", NULL,
         0.5, 0},
        {"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
         "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
         "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0.alpha", NULL, 0.5, 0},
        {"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.lora_A.weight",
         "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.lora_B.weight", NULL,
         NULL, 1, 0},
        {"text_encoder." TEXT ".lora_linear_layer.down.weight",
         "text_encoder." TEXT ".lora_linear_layer.up.weight", NULL, NULL, 1, 1},
        {"text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight",
         "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight", NULL, NULL, 1,
         1},
        {"text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight",
         "text_encoder.encoder.layers.0.self_attn.q_proj.lora_B.weight", NULL, NULL, 1, 1},
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
         "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
         "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha", NULL, 0.5, 1},
        {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
         "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", NULL, NULL, 1, 1},
    };
    const char *path = in_dir(*state, "l.safetensors");
    struct small *m = small_model();
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        uint64_t seed = 7 + i;
        float start[ROWS * IN], up[ROWS * RANK], down[RANK * IN];
        double want[ROWS * IN];
        struct tensor_file *f = tensor_file_new();
        memcpy(down, TENSOR_FILE_NOISE(f, &seed, all[i].down, RANK, IN), sizeof down);
        memcpy(up, TENSOR_FILE_NOISE(f, &seed, all[i].up, ROWS, RANK), sizeof up);
        if (all[i].alpha) *TENSOR_FILE_ADD(f, all[i].alpha, 1) = 1.5f;
        if (all[i].metadata) tensor_file_meta(f, "lora_adapter_metadata", all[i].metadata);
        tensor_file_write(f, path);
        struct dpk_lora *l = merged(m, path, -0.6);
        start_from(start, want, ROWS * IN);
        const struct dpk_component *c = &m->c[all[i].text];
        const struct dpk_component *other = &m->c[!all[i].text];
        check_rows(l, other, all[i].text ? LINEAR : TEXT, start, want, IN); /* left alone */
        add_plain(want, up, down, IN, RANK, -0.6 * all[i].ratio);
        check_rows(l, c, all[i].text ? TEXT : LINEAR, start, want, IN);
        dpk_lora_free(l);
    }
    small_free(m);
}

/* Settings of PEFT's own adapters are in a file beside. */
static void test_adapter(void **state) {
    const char *path = in_dir(*state, "adapter_model.safetensors");
    struct small *m = small_model();
    struct dpk_lora *l;
    uint64_t seed = 3;
    float start[ROWS * IN], up[ROWS * RANK], down[RANK * IN];
    double want[ROWS * IN];
    dpk_error err;
    struct tensor_file *f = tensor_file_new();
    memcpy(down, TENSOR_FILE_NOISE(f, &seed, "base_model.model." LINEAR ".lora_A.weight", RANK, IN),
           sizeof down);
    memcpy(up, TENSOR_FILE_NOISE(f, &seed, "base_model.model." LINEAR ".lora_B.weight", ROWS, RANK),
           sizeof up);
    tensor_file_write(f, path);
    assert_int_equal(dpk_lora_create(&l, &err), DPK_OK);
    assert_int_equal(try_file(m, l, path, 1, false, &err), DPK_EFORMAT);
    assert_non_null(strstr(err.msg, "adapter_config.json"));
    dpk_lora_free(l);
    put_text(in_dir(*state, "adapter_config.json"), "{\"lora_alpha\": 6, \"r\": 3}");
    l = merged(m, path, 1);
    start_from(start, want, ROWS * IN);
    add_plain(want, up, down, IN, RANK, 2);
    check_rows(l, &m->c[0], LINEAR, start, want, IN);
    dpk_lora_free(l);
    small_free(m);
}

/* Convolutions, plain and with a Tucker core. */
static void test_convolutions(void **state) {
    enum { ROW = CONV_IN * TAPS };
    const char *path = in_dir(*state, "c.safetensors");
    struct small *m = small_model();
    for (int core = 0; core < 2; core++) {
        uint64_t seed = 11;
        float start[ROWS * ROW], full[RANK * ROW] = {0};
        double want[ROWS * ROW];
        const char *layer = "lora_unet_down_blocks_0_resnets_0_conv1";
        char name[3][128];
        static const char *const ends[] = {"lora_up.weight", "lora_down.weight", "lora_mid.weight"};
        for (int i = 0; i < 3; i++) snprintf(name[i], sizeof name[i], "%s.%s", layer, ends[i]);
        struct tensor_file *f = tensor_file_new();
        float *up = TENSOR_FILE_NOISE(f, &seed, name[0], ROWS, RANK, 1, 1);
        if (core) {
            const float *down = TENSOR_FILE_NOISE(f, &seed, name[1], RANK, CONV_IN, 1, 1);
            const float *mid = TENSOR_FILE_NOISE(f, &seed, name[2], RANK, RANK, 2, 3);
            for (int i = 0; i < RANK; i++)
                for (int c = 0; c < CONV_IN; c++)
                    for (int t = 0; t < TAPS; t++)
                        for (int j = 0; j < RANK; j++)
                            full[i * ROW + c * TAPS + t] +=
                                mid[(i * RANK + j) * TAPS + t] * down[j * CONV_IN + c];
        } else {
            memcpy(full, TENSOR_FILE_NOISE(f, &seed, name[1], RANK, CONV_IN, 2, 3), sizeof full);
        }
        start_from(start, want, ROWS * ROW);
        add_plain(want, up, full, ROW, RANK, 1);
        tensor_file_write(f, path);
        struct dpk_lora *l = merged(m, path, 1);
        check_rows(l, &m->c[0], CONV, start, want, ROW);
        dpk_lora_free(l);
    }
    small_free(m);
}

/* DoRA in both spellings; two files one after the other. */
static void test_dora(void **state) {
    const char *path = in_dir(*state, "d.safetensors"), *second = in_dir(*state, "e.safetensors");
    static const char *const names[][3] = {
        {"unet." LINEAR ".lora_A.weight", "unet." LINEAR ".lora_B.weight",
         "unet." LINEAR ".lora_magnitude_vector"},
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down."
         "weight",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.dora_scale"}};
    struct small *m = small_model();
    for (int i = 0; i < 2; i++) {
        uint64_t seed = 5;
        float start[ROWS * IN];
        double want[ROWS * IN];
        struct tensor_file *f = tensor_file_new(), *g = tensor_file_new();
        const float *down = TENSOR_FILE_NOISE(f, &seed, names[i][0], RANK, IN);
        const float *up = TENSOR_FILE_NOISE(f, &seed, names[i][1], ROWS, RANK);
        const float *length = i ? TENSOR_FILE_NOISE(f, &seed, names[i][2], ROWS, 1)
                                : TENSOR_FILE_NOISE(f, &seed, names[i][2], ROWS);
        const float *down_2 = TENSOR_FILE_NOISE(g, &seed, names[0][0], 1, IN);
        const float *up_2 = TENSOR_FILE_NOISE(g, &seed, names[0][1], ROWS, 1);
        start_from(start, want, ROWS * IN);
        memset(start + 2 * IN, 0, IN * sizeof *start); /* a row of zeros, and one that becomes so */
        for (int k = 0; k < IN; k++) want[2 * IN + k] = 0;
        memset((float *)(uintptr_t)(up + 2 * RANK), 0, RANK * sizeof *up);
        add_plain(want, up, down, IN, RANK, 0.25);
        for (int r = 0; r < ROWS; r++) {
            double norm = 0;
            for (int k = 0; k < IN; k++) norm += want[r * IN + k] * want[r * IN + k];
            for (int k = 0; k < IN && norm > 0; k++)
                want[r * IN + k] *= (double)length[r] / sqrt(norm);
        }
        add_plain(want, up_2, down_2, IN, 1, 2);
        tensor_file_write(f, path);
        tensor_file_write(g, second);
        struct dpk_lora *l = merged(m, path, 0.25);
        dpk_error err;
        if (try_file(m, l, second, 2, false, &err)) fail_msg("%s", err.msg);
        check_rows(l, &m->c[0], LINEAR, start, want, IN);
        dpk_lora_free(l);
    }
    small_free(m);
}

/* ---- Threads --------------------------------------------------------------------------------- */

struct job {
    const struct dpk_lora *lora;
    const struct dpk_component *c;
    float *w;
    int first, step, rc;
};

static void *apply_some(void *arg) {
    struct job *j = arg;
    for (int round = 0; round < 50; round++)
        for (int r = j->first; r < ROWS; r += j->step)
            j->rc |= dpk_lora_apply(j->lora, j->c, LINEAR ".weight", (uint64_t)r, 1, IN,
                                    j->w + r * IN, NULL);
    return NULL;
}

static void test_threads(void **state) {
    enum { N = 4 };
    const char *path = in_dir(*state, "t.safetensors");
    struct small *m = small_model();
    uint64_t seed = 21;
    float w[ROWS * IN] = {0}, alone[ROWS * IN] = {0};
    struct tensor_file *f = tensor_file_new();
    TENSOR_FILE_NOISE(f, &seed, "unet." LINEAR ".lora_A.weight", RANK, IN);
    TENSOR_FILE_NOISE(f, &seed, "unet." LINEAR ".lora_B.weight", ROWS, RANK);
    tensor_file_write(f, path);
    struct dpk_lora *l = merged(m, path, 1);
    pthread_t ids[N];
    struct job jobs[N];
    for (int i = 0; i < N; i++) {
        jobs[i] = (struct job){l, &m->c[0], w, i, N, 0};
        assert_int_equal(pthread_create(&ids[i], NULL, apply_some, &jobs[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(ids[i], NULL);
        assert_int_equal(jobs[i].rc, DPK_OK);
    }
    struct job one = {l, &m->c[0], alone, 0, 1, 0};
    apply_some(&one);
    assert_memory_equal(w, alone, sizeof w);
    dpk_lora_free(l);
    small_free(m);
}

/* ---- Refused --------------------------------------------------------------------------------- */

struct bad {
    const char *down, *up, *other;
    uint64_t down_dim[2], up_dim[2], other_n;
    int code;
    const char *text;
};
#define A "unet." LINEAR ".lora_A.weight"
#define B "unet." LINEAR ".lora_B.weight"

static void test_refused(void **state) {
    static const struct bad all[] = {
        {A,
         B,
         "unet.nowhere.lora_A.weight",
         {RANK, IN},
         {ROWS, RANK},
         1,
         DPK_EARG,
         "1 of 3 tensors match no layer of this model (--lora-partial leaves them out): "
         "unet.nowhere"},
        {A, B, "unet." LINEAR ".hada_w1_a", {RANK, IN}, {ROWS, RANK}, 1, DPK_EARG, "hada_w1_a"},
        {"unet.a.lora_A.weight",
         "unet.a.lora_B.weight",
         "unet.b.lora_A.weight",
         {1, 1},
         {1, 1},
         1,
         DPK_EARG,
         "none of its 3 tensors is for a layer of this model: unet.a, unet.b"},
        {A,
         "text_encoder." TEXT ".lora_B.weight",
         NULL,
         {RANK, IN},
         {ROWS, RANK},
         0,
         DPK_EFORMAT,
         "has no up"},
        {A,
         B,
         "unet." LINEAR ".lora_down.weight",
         {RANK, IN},
         {ROWS, RANK},
         1,
         DPK_EFORMAT,
         "for the same layer"},
        {A,
         B,
         NULL,
         {RANK, IN - 1},
         {ROWS, RANK},
         0,
         DPK_EARG,
         "made for another base model: down [3, 36] and up [11, 3] do not make unet."},
        {A, B, NULL, {RANK, IN}, {ROWS + 1, RANK}, 0, DPK_EARG, "made for another base model"},
        {A, B, NULL, {RANK, IN}, {ROWS, RANK + 1}, 0, DPK_EARG, "made for another base model"},
        {A,
         B,
         "unet." LINEAR ".lora_magnitude_vector",
         {RANK, IN},
         {ROWS, RANK},
         ROWS - 1,
         DPK_EFORMAT,
         "wanted a number a row"},
        {A,
         B,
         "unet." LINEAR ".dora_scale",
         {RANK, IN},
         {ROWS, RANK},
         IN,
         DPK_EUNSUPPORTED,
         "DoRA over the rows"},
        {A, B, "unet." LINEAR ".alpha", {RANK, IN}, {ROWS, RANK}, 2, DPK_EFORMAT, "no number"},
    };
    const char *path = in_dir(*state, "r.safetensors");
    struct small *m = small_model();
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct dpk_lora *l;
        dpk_error err = {.code = 0};
        struct tensor_file *f = tensor_file_new();
        tensor_file_add(f, all[i].down, 2, all[i].down_dim);
        tensor_file_add(f, all[i].up, 2, all[i].up_dim);
        if (all[i].other) TENSOR_FILE_ADD(f, all[i].other, all[i].other_n);
        tensor_file_write(f, path);
        assert_int_equal(dpk_lora_create(&l, &err), DPK_OK);
        const int rc = try_file(m, l, path, 1, false, &err);
        if (rc != all[i].code || !strstr(err.msg, all[i].text))
            fail_msg("case %zu: %d %s, wanted %d %s", i, rc, err.msg, all[i].code, all[i].text);
        /* what matches nothing may be left out, unless that is all */
        if (strstr(err.msg, "--lora-partial") != NULL) {
            if (try_file(m, l, path, 1, true, &err)) fail_msg("%s", err.msg);
        } else {
            assert_int_not_equal(try_file(m, l, path, 1, true, &err), DPK_OK);
        }
        dpk_lora_free(l);
    }
    small_free(m);
}

/* Values that are not finite are told from the model's own. */
static void test_not_finite(void **state) {
    static const char *const names[] = {A, B, "unet." LINEAR ".lora_magnitude_vector",
                                        "unet." LINEAR ".alpha"};
    const char *path = in_dir(*state, "n.safetensors");
    struct small *m = small_model();
    for (int i = 0; i < 4; i++) {
        float w[ROWS * IN] = {0};
        struct dpk_lora *l;
        dpk_error err = {.code = 0};
        struct tensor_file *f = tensor_file_new();
        TENSOR_FILE_ADD(f, A, RANK, IN)[0] = i == 0 ? NAN : 1;
        TENSOR_FILE_ADD(f, B, ROWS, RANK)[0] = i == 1 ? INFINITY : 1;
        TENSOR_FILE_ADD(f, names[2], ROWS)[0] = i == 2 ? NAN : 1;
        TENSOR_FILE_ADD(f, names[3], 1)[0] = i == 3 ? INFINITY : 1;
        tensor_file_write(f, path);
        assert_int_equal(dpk_lora_create(&l, &err), DPK_OK);
        int rc = try_file(m, l, path, 1, false, &err);
        if (i < 3) {
            assert_int_equal(rc, DPK_OK);
            rc = dpk_lora_apply(l, &m->c[0], LINEAR ".weight", 0, ROWS, IN, w, &err);
        }
        assert_int_equal(rc, DPK_EFORMAT);
        assert_non_null(strstr(err.msg, names[i]));
        dpk_lora_free(l);
    }
    small_free(m);
}

static void refuse_model(const char *model, const char *lora, bool partial, const char *text) {
    const struct dpk_lora_file file = {.path = lora, .scale = 1, .partial = partial};
    const struct dpk_convert_options o = {
        .source = model, .dtype = DPK_F32, .loras = &file, .n_loras = 1};
    struct dpk_conversion *c;
    dpk_error err = {.code = 0};
    if (dpk_conversion_open(&c, &o, &err) == DPK_OK || !strstr(err.msg, text))
        fail_msg("%s on %s: %s, wanted %s", lora, model, err.msg, text);
}

/* Files of one model on another. */
static void test_other_model(void **state) {
    const char *peft = "tests/data/lora/sdxl_peft/pytorch_lora_weights.safetensors";
    const char *kohya = "tests/data/lora/sdxl_kohya/sdxl_kohya.safetensors";
    (void)state;
    for (int partial = 0; partial < 2; partial++) {
        refuse_model("tests/data/tiny-sd15", peft, partial,
                     "made for another base model: its cross-attention takes prompts of width 40, "
                     "this model's of 24");
        refuse_model("tests/data/tiny-sd15", kohya, partial, "made for another base model");
        refuse_model("tests/data/tiny-pixart", peft, partial, "made for another base model");
    }
    refuse_model("tests/data/tiny-ssd1b", kohya, false,
                 "match no layer of this model (--lora-partial leaves them out): lora_unet_");
    refuse_model("tests/data/tiny-sdxl", "tests/data/lora/nowhere.safetensors", false, "nowhere");
}

/* The real widths have names. */
static void test_base_names(void **state) {
    const char *path = in_dir(*state, "b.safetensors");
    struct dpk_component c = {.prefix = "unet"};
    struct dpk_lora_file file = {.path = path, .scale = 1};
    struct dpk_lora *l;
    dpk_error err;
    ask(&c, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 2, 4, 768, 0, 0);
    struct tensor_file *f = tensor_file_new();
    TENSOR_FILE_ADD(f, "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k.lora_down.weight",
                    1, 2048);
    tensor_file_write(f, path);
    assert_int_equal(dpk_lora_create(&l, &err), DPK_OK);
    assert_int_equal(dpk_lora_add_file(l, &file, &c, 1, &err), DPK_EARG);
    assert_non_null(strstr(err.msg, "2048 (SDXL), this model's of 768 (Stable Diffusion 1.x)"));
    dpk_lora_free(l);
    dpk_component_close(&c);
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights),
        WITH_FOLDER(test_namings),
        WITH_FOLDER(test_adapter),
        WITH_FOLDER(test_convolutions),
        WITH_FOLDER(test_dora),
        WITH_FOLDER(test_threads),
        WITH_FOLDER(test_refused),
        WITH_FOLDER(test_not_finite),
        cmocka_unit_test(test_other_model),
        WITH_FOLDER(test_base_names),
        cmocka_unit_test(test_outputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
