/* The tensors of a component: which files are taken, shards, conversions to float. */
#include "../formats/tensors.h"
#include "support_files.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* A file with one byte tensor of each name; the bytes are the value. */
static void put_bytes(const char *path, const char *const *names, size_t n, uint8_t value) {
    char header[1000] = "{\"__metadata__\":{\"from\":\"";
    uint8_t data[16];
    size_t at = strlen(header);
    at += (size_t)snprintf(header + at, sizeof header - at, "%u\"}", value);
    for (size_t i = 0; i < n; i++)
        at +=
            (size_t)snprintf(header + at, sizeof header - at,
                             ",\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                             names[i], i, i + 1);
    snprintf(header + at, sizeof header - at, "}");
    memset(data, value, sizeof data);
    put_safetensors(path, header, data, n);
}

static void put_one(const char *path, const char *name, uint8_t value) {
    put_bytes(path, &name, 1, value);
}

static struct dpk_source *open_source(const char *path) {
    struct dpk_source *s = NULL;
    dpk_error err;
    if (dpk_source_open(&s, path, &err) != DPK_OK) fail_msg("%s", err.msg);
    return s;
}

/* Open, and the tensor `name` must hold the byte `value`. */
static void want_value(const char *dir, const char *variant, const char *name, uint8_t value,
                       const char *taken) {
    struct dpk_source *s = open_source(dir);
    struct dpk_tensors *ts = NULL;
    struct dpk_tensor_info *info;
    uint8_t got = 0;
    dpk_error err;
    if (dpk_tensors_open(&ts, s, "unet", variant, &err) != DPK_OK) fail_msg("%s", err.msg);
    info = dpk_tensors_find(ts, name);
    assert_non_null(info);
    assert_int_equal(dpk_tensors_read(ts, info, 0, &got, 1, &err), DPK_OK);
    assert_int_equal(got, value);
    assert_string_equal(dpk_tensors_variant(ts), taken);
    dpk_tensors_close(ts);
    dpk_source_close(s);
}

static void want_error(const char *dir, const char *variant, int code, const char *says) {
    struct dpk_source *s = open_source(dir);
    struct dpk_tensors *ts;
    dpk_error err = {0};
    int rc = dpk_tensors_open(&ts, s, "unet", variant, &err);
    if (rc != code || !strstr(err.msg, says) || strchr(err.msg, '\n'))
        fail_msg("code %d, want %d with \"%s\": %s", rc, code, says, err.msg);
    assert_null(ts);
    dpk_source_close(s);
}

/* Files come one after the other, each preferred to those before. */
static void test_which_file(void **state) {
    const char *dir = *state;
    want_error(dir, NULL, DPK_EFORMAT, "no weights");
    put_text(in_dir(dir, "unet/diffusion_pytorch_model.bin"), "PK");
    want_error(dir, NULL, DPK_EUNSUPPORTED, "weights_only=True");
    put_one(in_dir(dir, "unet/model-00001-of-00002.safetensors"), "a", 1);
    want_error(dir, NULL, DPK_EFORMAT, "no .safetensors.index.json");
    put_one(in_dir(dir, "unet/model.fp16-00001-of-00001.safetensors"), "a", 2);
    put_text(in_dir(dir, "unet/model.safetensors.index.fp16.json"),
             "{\"weight_map\":{\"a\":\"model.fp16-00001-of-00001.safetensors\"}}");
    want_value(dir, NULL, "a", 2, "fp16");
    put_one(in_dir(dir, "unet/diffusion_pytorch_model.fp16.safetensors"), "a", 3);
    want_value(dir, NULL, "a", 3, "fp16");
    put_one(in_dir(dir, "unet/diffusion_pytorch_model.non_ema.safetensors"), "a", 4);
    want_error(dir, NULL, DPK_EFORMAT, "fp16, non_ema");
    want_error(dir, "bf16", DPK_EFORMAT, "fp16, non_ema");
    want_value(dir, "fp16", "a", 3, "fp16");
    want_value(dir, "non_ema", "a", 4, "non_ema");
    put_text(in_dir(dir, "unet/model.safetensors.index.json"),
             "{\"metadata\":{\"total_size\":1},"
             "\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}");
    want_value(dir, NULL, "a", 1, "");
    want_value(dir, "bf16", "a", 1, ""); /* as diffusers: no such variant, the plain files */
    put_one(in_dir(dir, "unet/model.safetensors"), "a", 5);
    want_value(dir, "", "a", 5, "");
    put_one(in_dir(dir, "unet/diffusion_pytorch_model.safetensors"), "a", 6);
    want_value(dir, NULL, "a", 6, "");
    /* both there: transformers took the file before, diffusers takes the index */
    const char *index = in_dir(dir, "unet/diffusion_pytorch_model.safetensors.index.json");
    put_text(index, "{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}");
    want_value(dir, NULL, "a", 1, "");
    unlink(index);
    want_value(dir, "fp16", "a", 3, "fp16");
    want_error(dir, "../x", DPK_EARG, "variant");
    put_text(in_dir(dir, "unet/diffusion_pytorch_model.safetensors"),
             "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5135149760\n");
    want_error(dir, NULL, DPK_EFORMAT, "Git LFS");
}

static void test_shards(void **state) {
    static const char *const ab[] = {"a", "b"}, *const cd[] = {"c", "d"}, *const bcd[] = {"b", "c"};
    const char *dir = *state;
    const char *index = in_dir(dir, "unet/model.safetensors.index.json");
    const char *one = in_dir(dir, "unet/x-1.safetensors"),
               *two = in_dir(dir, "unet/x-2.safetensors");
    struct dpk_tensors *ts;
    struct dpk_source *s;
    dpk_error err;
    put_bytes(one, ab, 2, 1);
    put_bytes(two, cd, 2, 2);
    put_text(index, "{\"weight_map\":{\"a\":\"x-1.safetensors\",\"d\":\"x-2.safetensors\","
                    "\"b\":\"x-1.safetensors\",\"c\":\"x-2.safetensors\"}}");
    want_value(dir, NULL, "b", 1, "");
    want_value(dir, NULL, "d", 2, "");
    s = open_source(dir);
    assert_int_equal(dpk_tensors_open(&ts, s, "unet", NULL, &err), DPK_OK);
    assert_int_equal(dpk_tensors_n_files(ts), 2);
    assert_string_equal(dpk_tensors_file(ts, 1), "unet/x-2.safetensors");
    assert_int_equal(dpk_tensors_count(ts), 4);
    for (size_t i = 0; i < 4; i++)
        assert_string_equal(dpk_tensors_get(ts, i)->name, &"a\0b\0c\0d"[2 * i]);
    assert_null(dpk_tensors_find(ts, "e"));
    assert_string_equal(dpk_tensors_meta(ts, "from"), "1");
    dpk_tensors_close(ts);
    dpk_source_close(s);

    put_bytes(two, bcd, 2, 2);
    want_error(dir, NULL, DPK_EFORMAT, "tensor b is also in");
    put_one(two, "c", 2);
    want_error(dir, NULL, DPK_EFORMAT, "tensor d is to be in x-2.safetensors, found in no shard");
    put_text(index, "{\"weight_map\":{\"a\":\"x-1.safetensors\",\"c\":\"x-1.safetensors\","
                    "\"b\":\"x-2.safetensors\"}}");
    want_error(dir, NULL, DPK_EFORMAT, "tensor c is to be in x-1.safetensors, found in x-2");
    unlink(two);
    want_error(dir, NULL, DPK_EFORMAT, "shard unet/x-2.safetensors is missing");
    put_text(index, "{\"weight_map\":{\"a\":\"../x-1.safetensors\"}}");
    want_error(dir, NULL, DPK_EFORMAT, "want a file name");
    put_text(index, "{\"weight_map\":{\"a\":1}}");
    want_error(dir, NULL, DPK_EFORMAT, "want a file name");
    put_text(index, "{\"weight_map\":{}}");
    want_error(dir, NULL, DPK_EFORMAT, "weight_map");
    put_text(index, "[]");
    want_error(dir, NULL, DPK_EFORMAT, "weight_map");
    unlink(index);
    put_text(in_dir(dir, "unet/model.fp16.safetensors.index.json"),
             "{\"weight_map\":{\"a\":\"x-1.safetensors\"}}");
    want_value(dir, "fp16", "a", 1, "fp16");
    want_value(dir, NULL, "a", 1, "fp16");
}

/* A file that says it has a header of n bytes, all of them NUL: it takes no room on the disk. */
static void put_header(const char *path, uint64_t n) {
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(n >> 8 * i);
    put_file(path, length, sizeof length);
    assert_int_equal(truncate(path, (off_t)(n + sizeof length)), 0);
}

/* What all headers together may take, seen before the first of them is read. */
static void test_many_headers(void **state) {
    enum { LARGE = 100000000, TOTAL = 512 << 20, REST = TOTAL - 5 * (LARGE + 8) - 8 };
    const char *dir = *state;
    const char *index = in_dir(dir, "unet/model.safetensors.index.json");
    char path[600], *text = NULL;
    size_t n;
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/unet/b%d", dir, i);
        put_header(path, LARGE);
    }
    put_text(index, "{\"weight_map\":{\"0\":\"b0\",\"1\":\"b1\",\"2\":\"b2\","
                    "\"3\":\"b3\",\"4\":\"b4\",\"5\":\"a\"}}");
    put_header(in_dir(dir, "unet/a"), REST);
    want_error(dir, NULL, DPK_EFORMAT, "unet/a: the header does not begin with '{'");
    put_header(in_dir(dir, "unet/a"), REST + 1);
    want_error(dir, NULL, DPK_EFORMAT, "the headers of its files have over 536870912 bytes");

    FILE *f = open_memstream(&text, &n);
    fprintf(f, "{\"weight_map\":{\"0\":\"0\"");
    for (int i = 1; i <= 4096; i++) fprintf(f, ",\"%d\":\"%d\"", i, i);
    fprintf(f, "}}");
    fclose(f);
    put_text(index, text);
    want_error(dir, NULL, DPK_EFORMAT, "names 4097 files, at most 4096 are allowed");
    free(text);
}

/* The value of a half by its definition, in exact double arithmetic. */
static float half_by_definition(unsigned h) {
    int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return (float)(h & 0x8000 ? -v : v);
}

/* All values of the 16-bit types, and doubles; read in windows that meet every edge of the pieces.
 * */
static void test_read_f32(void **state) {
    enum { N = 65536, N64 = 20000 };
    const char *path = in_dir(*state, "t.safetensors");
    size_t n_bytes = N * 2 * 2 + N64 * 8 + N * 4 + 8;
    uint8_t *data = calloc(1, n_bytes);
    float *want = malloc(4 * N * sizeof *want), *got = malloc((N + 2) * sizeof *got);
    static const char *const names[] = {"f16", "bf16", "f32", "f64"};
    static const size_t counts[] = {N, N, N, N64};
    struct dpk_tensors *ts;
    uint64_t seed = 5;
    dpk_error err;
    for (unsigned i = 0; i < N; i++) {
        uint16_t h = (uint16_t)i;
        uint32_t bits = i << 16, f32 = noise(&seed);
        memcpy(data + 2 * i, &h, 2);
        memcpy(data + 2 * N + 2 * i, &h, 2);
        memcpy(data + 4 * N + 4 * i, &f32, 4);
        want[i] = half_by_definition(i);
        memcpy(&want[N + i], &bits, 4);
        memcpy(&want[2 * N + i], &f32, 4);
    }
    for (size_t i = 0; i < N64; i++) {
        double v = ldexp((double)noise(&seed) / 3 - 7e8, (int)(noise(&seed) % 60) - 50);
        memcpy(data + 8 * N + 8 * i, &v, 8);
        want[3 * N + i] = (float)v;
    }
    put_safetensors(
        path,
        "{\"f16\":{\"dtype\":\"F16\",\"shape\":[256,256],\"data_offsets\":[0,131072]},"
        "\"bf16\":{\"dtype\":\"BF16\",\"shape\":[65536],\"data_offsets\":[131072,262144]},"
        "\"f32\":{\"dtype\":\"F32\",\"shape\":[65536],\"data_offsets\":[262144,524288]},"
        "\"f64\":{\"dtype\":\"F64\",\"shape\":[20000],\"data_offsets\":[524288,684288]},"
        "\"i64\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[684288,684296]}}",
        data, n_bytes);
    if (dpk_tensors_open_file(&ts, path, &err) != DPK_OK) fail_msg("%s", err.msg);
    for (size_t t = 0; t < 4; t++) {
        const struct dpk_tensor_info *info = dpk_tensors_find(ts, names[t]);
        for (int round = 0; round < 40; round++) {
            size_t first = round ? noise(&seed) % counts[t] : 0;
            size_t n = round ? noise(&seed) % (counts[t] - first + 1) : counts[t];
            got[0] = got[n + 1] = -77.5f;
            assert_int_equal(dpk_tensors_read_f32(ts, info, first, n, got + 1, &err), DPK_OK);
            for (size_t i = 0; i < n; i++) {
                const float *w = &want[t * N + first + i], *g = &got[1 + i];
                if (memcmp(w, g, 4) != 0 && !(isnan(*w) && isnan(*g)))
                    fail_msg("%s[%zu] is %a, want %a", names[t], first + i, *g, *w);
            }
            assert_true(got[0] == -77.5f && got[n + 1] == -77.5f);
        }
        assert_int_equal(dpk_tensors_read_f32(ts, info, 1, counts[t], got, &err), DPK_EARG);
        assert_int_equal(dpk_tensors_read_f32(ts, info, UINT64_MAX, 2, got, &err), DPK_EARG);
        assert_int_equal(dpk_tensors_read(ts, info, info->n_bytes, got, 1, &err), DPK_EARG);
        assert_int_equal(dpk_tensors_read(ts, info, info->n_bytes, got, 0, &err), DPK_OK);
        assert_int_equal(info->used, 0);
    }
    assert_int_equal(dpk_tensors_read_f32(ts, dpk_tensors_find(ts, "i64"), 0, 1, got, &err),
                     DPK_EUNSUPPORTED);
    assert_non_null(strstr(err.msg, "i64: dtype I64"));
    dpk_tensors_close(ts);
    free(data);
    free(want);
    free(got);
}

/* The committed models: fp16 twins alone, shards, and the same from archives, tensor for tensor. */
static void test_real_models(void **state) {
    static const char *const parts[][2] = {{"tests/data/tiny-sd15", "unet"},
                                           {"tests/data/tiny-sd15", "text_encoder"},
                                           {"tests/data/tiny-pixart", "transformer"},
                                           {"tests/data/tiny-pixart", "text_encoder"}};
    static const char *const kinds[][4] = {{"a.tar", "tar", "none", NULL},
                                           {"b.tar.zst", "tar", "zstd", NULL},
                                           {"c.zip", "zip", "none", "compression=deflate"}};
    for (size_t p = 0; p < 4; p++)
        for (size_t k = 0; k < 3; k++) {
            const char *path = in_dir(*state, kinds[k][0]);
            struct dpk_source *folder = open_source(parts[p][0]), *packed;
            struct dpk_tensors *a, *b;
            dpk_error err;
            put_archive(path, kinds[k][1], kinds[k][2], kinds[k][3], parts[p][0], "some-model/");
            packed = open_source(path);
            if (dpk_tensors_open(&a, folder, parts[p][1], NULL, &err) != DPK_OK ||
                dpk_tensors_open(&b, packed, parts[p][1], NULL, &err) != DPK_OK)
                fail_msg("%s", err.msg);
            assert_string_equal(dpk_tensors_variant(a), p < 2 ? "fp16" : "");
            assert_int_equal(dpk_tensors_n_files(a), p < 2 ? 1 : 2);
            assert_int_equal(dpk_tensors_count(a), dpk_tensors_count(b));
            assert_true(dpk_tensors_count(a) > 10 && dpk_tensors_hash(a) == dpk_tensors_hash(b));
            for (size_t i = 0; i < dpk_tensors_count(a); i++) {
                struct dpk_tensor_info *x = dpk_tensors_get(a, i), *y = dpk_tensors_get(b, i);
                uint8_t *u = malloc(x->n_bytes + 1), *v = malloc(x->n_bytes + 1);
                assert_string_equal(x->name, y->name);
                assert_int_equal(x->n_bytes, y->n_bytes);
                assert_memory_equal(x->dim, y->dim, sizeof x->dim);
                assert_int_equal(dpk_tensors_read(a, x, 0, u, x->n_bytes, &err), DPK_OK);
                assert_int_equal(dpk_tensors_read(b, y, 0, v, x->n_bytes, &err), DPK_OK);
                assert_memory_equal(u, v, x->n_bytes);
                free(u);
                free(v);
            }
            dpk_tensors_close(a);
            dpk_tensors_close(b);
            dpk_source_close(folder);
            dpk_source_close(packed);
        }
}

static void test_bare_folder(void **state) {
    struct dpk_source *s = open_source("tests/data/tiny-vae-fp16-fix");
    struct dpk_tensors *ts;
    dpk_error err;
    (void)state;
    assert_int_equal(dpk_tensors_open(&ts, s, "", NULL, &err), DPK_OK);
    assert_non_null(dpk_tensors_find(ts, "decoder.conv_in.weight"));
    dpk_tensors_close(ts);
    dpk_source_close(s);
    s = open_source("tests/data/single/tiny-sdxl.safetensors");
    assert_int_equal(dpk_tensors_open(&ts, s, "unet", NULL, &err), DPK_EARG);
    assert_int_equal(dpk_tensors_open_member(&ts, s, "", &err), DPK_OK);
    assert_non_null(dpk_tensors_find(ts, "model.diffusion_model.out.2.weight"));
    dpk_tensors_close(ts);
    dpk_source_close(s);
    assert_int_equal(dpk_tensors_open_file(
                         &ts, "tests/data/lora/sdxl_peft/pytorch_lora_weights.safetensors", &err),
                     DPK_OK);
    assert_non_null(strstr(dpk_tensors_meta(ts, "lora_adapter_metadata"), "unet.lora_alpha"));
    dpk_tensors_close(ts);
    assert_int_equal(dpk_tensors_open_file(&ts, "tests/data/none", &err), DPK_EIO);
}

/* PyTorch's two file formats, given where safetensors are wanted. */
static void test_pickles(void **state) {
    static const char *const heads[] = {"\x80\x02\x8a\x0al\xfc\x9c"
                                        "F",
                                        "PK\x03\x04----"};
    const char *path = in_dir(*state, "model.ckpt");
    for (size_t i = 0; i < 2; i++) {
        char file[64] = "";
        struct dpk_tensors *ts;
        struct dpk_source *s;
        dpk_error err = {0};
        memcpy(file, heads[i], 8);
        put_file(path, file, sizeof file);
        assert_int_equal(dpk_tensors_open_file(&ts, path, &err), DPK_EUNSUPPORTED);
        assert_non_null(strstr(err.msg, "OUT.safetensors"));
        assert_int_equal(dpk_source_open(&s, path, &err), DPK_EUNSUPPORTED);
    }
}

static void test_shape_text(void **state) {
    struct dpk_tensor_info info = {.rank = 4, .dim = {320, 4, 3, 3}};
    char buf[64], small[8];
    (void)state;
    assert_string_equal(dpk_tensor_shape_text(&info, buf, sizeof buf), "[320, 4, 3, 3]");
    assert_string_equal(dpk_tensor_shape_text(&info, small, sizeof small), "[320, 4");
    info.rank = 0;
    assert_string_equal(dpk_tensor_shape_text(&info, buf, sizeof buf), "[]");
}

#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        SCRATCH(test_which_file),           SCRATCH(test_shards),
        SCRATCH(test_many_headers),         SCRATCH(test_read_f32),
        SCRATCH(test_real_models),          SCRATCH(test_pickles),
        cmocka_unit_test(test_bare_folder), cmocka_unit_test(test_shape_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
