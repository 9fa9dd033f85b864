#include "tensors.h"

#include "fail.h"
#include "source_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { MAX_FILES = 4096, MAX_HEADERS = 512 << 20, PIECE = 64 << 10 };

struct file {
    char *name; /* in the source */
    struct dpk_stream stream;
    struct dpk_safetensors st; /* owns the tensors' names */
};
struct dpk_tensors {
    struct file *files;
    size_t n_files;
    struct dpk_tensor_info *infos; /* sorted by name */
    size_t n;
    char *variant;
    uint64_t hash;
};

/* Weight file names of diffusers and of transformers. */
static const char *const bases[2] = {"diffusion_pytorch_model", "model"};

static int tensors_new(struct dpk_tensors **tensors, size_t n_files, const char *variant,
                       dpk_error *err) {
    struct dpk_tensors *ts = calloc(1, sizeof *ts);
    *tensors = NULL;
    if (ts) ts->files = calloc(n_files, sizeof *ts->files);
    if (ts) ts->variant = strdup(variant);
    if (!ts || !ts->files || !ts->variant) {
        dpk_tensors_close(ts);
        return dpk_error_set(err, DPK_ENOMEM, "out of memory for %zu files", n_files);
    }
    *tensors = ts;
    return DPK_OK;
}

void dpk_tensors_close(struct dpk_tensors *ts) {
    if (!ts) return;
    for (size_t i = 0; i < ts->n_files; i++) {
        dpk_st_close(&ts->files[i].st);
        dpk_stream_close(&ts->files[i].stream);
        free(ts->files[i].name);
    }
    free(ts->files);
    free(ts->infos);
    free(ts->variant);
    free(ts);
}

/* Take a file, not yet read: its stream is moved in, also on failure. */
static int take_file(struct dpk_tensors *ts, const char *name, struct dpk_stream *stream,
                     dpk_error *err) {
    static const char lfs[] = "version https://git-lfs";
    struct file *f = &ts->files[ts->n_files++];
    char head[sizeof lfs - 1];
    int rc = DPK_OK;
    f->stream = *stream;
    memset(stream, 0, sizeof *stream);
    f->name = strdup(name);
    if (!f->name) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", name);
    if (f->stream.n_bytes >= sizeof head) {
        DPK_TRY(dpk_stream_read(&f->stream, 0, head, sizeof head, err));
        if (memcmp(head, lfs, sizeof head) == 0)
            DPK_FAIL(err, DPK_EFORMAT,
                     "%s: a Git LFS pointer, not the file itself: fetch it with git lfs pull",
                     f->stream.name);
        if (memcmp(head, "PK\3\4", 4) == 0 || dpk_is_bare_pickle((const unsigned char *)head))
            DPK_FAIL(err, DPK_EUNSUPPORTED, DPK_PICKLE_MESSAGE, f->stream.name);
    }
done:
    return rc;
}

static int add_file(struct dpk_tensors *ts, const char *name, struct dpk_stream *stream,
                    dpk_error *err) {
    int rc = take_file(ts, name, stream, err);
    struct file *f = &ts->files[ts->n_files - 1];
    return rc ? rc : dpk_st_open(&f->st, &f->stream, err);
}

static int compare_infos(const void *a, const void *b) {
    return strcmp(((const struct dpk_tensor_info *)a)->name,
                  ((const struct dpk_tensor_info *)b)->name);
}

/* Gather the tensors of all files into one sorted table. */
static int gather(struct dpk_tensors *ts, dpk_error *err) {
    int rc = DPK_OK;
    XXH3_state_t *hash = XXH3_createState();
    size_t n = 0;
    for (size_t f = 0; f < ts->n_files; f++) n += ts->files[f].st.n_tensors;
    ts->infos = calloc(n ? n : 1, sizeof *ts->infos);
    if (!ts->infos || !hash) DPK_FAIL(err, DPK_ENOMEM, "out of memory for %zu tensors", n);
    XXH3_64bits_reset(hash);
    for (size_t f = 0; f < ts->n_files; f++) {
        const struct dpk_safetensors *st = &ts->files[f].st;
        XXH3_64bits_update(hash, &st->hash, sizeof st->hash);
        for (size_t i = 0; i < st->n_tensors; i++) {
            const struct dpk_st_tensor *t = &st->tensors[i];
            struct dpk_tensor_info *info = &ts->infos[ts->n++];
            info->name = t->name;
            info->dtype = t->dtype;
            info->rank = t->rank;
            memcpy(info->dim, t->dim, sizeof info->dim);
            info->n_elements = t->n_elements;
            info->n_bytes = t->n_bytes;
            info->file = (uint32_t)f;
            info->offset = t->offset;
        }
    }
    ts->hash = XXH3_64bits_digest(hash);
    qsort(ts->infos, ts->n, sizeof *ts->infos, compare_infos);
    for (size_t i = 1; i < ts->n; i++)
        if (strcmp(ts->infos[i - 1].name, ts->infos[i].name) == 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s is also in %s",
                     ts->files[ts->infos[i].file].stream.name, ts->infos[i].name,
                     ts->files[ts->infos[i - 1].file].stream.name);
done:
    XXH3_freeState(hash);
    return rc;
}

/* source NULL: a file of the file system. */
static int open_single(struct dpk_tensors **tensors, struct dpk_source *source, const char *name,
                       const char *variant, dpk_error *err) {
    struct dpk_tensors *ts = NULL;
    struct dpk_stream stream = {0};
    int rc = DPK_OK;
    *tensors = NULL;
    DPK_TRY(source ? dpk_source_stream(source, name, &stream, err)
                   : dpk_stream_open(&stream, name, err));
    DPK_TRY(tensors_new(&ts, 1, variant, err));
    DPK_TRY(add_file(ts, name, &stream, err));
    DPK_TRY(gather(ts, err));
    *tensors = ts;
    ts = NULL;
done:
    dpk_stream_close(&stream);
    dpk_tensors_close(ts);
    return rc;
}

int dpk_tensors_open_file(struct dpk_tensors **tensors, const char *path, dpk_error *err) {
    return open_single(tensors, NULL, path, "", err);
}

int dpk_tensors_open_member(struct dpk_tensors **tensors, struct dpk_source *source,
                            const char *name, dpk_error *err) {
    return open_single(tensors, source, name, "", err);
}

/* ---- Shards -----------------------------------------------------------------------------------
 * */

static int compare_strings(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The files that an index names, sorted, each once. The names belong to the index. */
static int shard_names(const cJSON *map, const char *index, const char ***names, size_t *n,
                       dpk_error *err) {
    int rc = DPK_OK;
    const cJSON *item;
    size_t n_all = 0;
    const char **all;
    *n = 0;
    *names = NULL;
    cJSON_ArrayForEach(item, map) n_all++;
    if (!cJSON_IsObject(map) || n_all == 0)
        return dpk_error_set(err, DPK_EFORMAT, "%s: has no weight_map with keys", index);
    all = malloc(n_all * sizeof *all);
    if (!all) return dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", index);
    *names = all;
    n_all = 0;
    cJSON_ArrayForEach(item, map) {
        const char *s = cJSON_IsString(item) ? item->valuestring : "";
        if (s[0] == '\0' || s[0] == '.' || strchr(s, '/'))
            DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %.200s lies in \"%.100s\", want a file name",
                     index, item->string, s);
        all[n_all++] = s;
    }
    qsort(all, n_all, sizeof *all, compare_strings);
    for (size_t i = 0; i < n_all; i++)
        if (i == 0 || strcmp(all[*n - 1], all[i]) != 0) all[(*n)++] = all[i];
    if (*n > MAX_FILES)
        DPK_FAIL(err, DPK_EFORMAT, "%s: names %zu files, at most %d are allowed", index, *n,
                 (int)MAX_FILES);
done:
    return rc;
}

/* "folder/name", or "name" in the root; NULL: no memory. */
static char *join(const char *folder, const char *name) {
    char *full = NULL;
    if (asprintf(&full, "%s%s%s", folder, folder[0] ? "/" : "", name) < 0) return NULL;
    return full;
}

/* Add the memory that reading a file's header will take, by its first bytes. None is added for a
 * length that dpk_st_open refuses before it takes any. */
static int add_header_room(const struct dpk_stream *in, uint64_t *room, dpk_error *err) {
    unsigned char length[8];
    uint64_t n = 0;
    if (in->n_bytes < 8) return DPK_OK;
    const int rc = dpk_stream_read(in, 0, length, 8, err);
    for (int i = 0; rc == DPK_OK && i < 8; i++) n |= (uint64_t)length[i] << 8 * i;
    if (n <= DPK_ST_MAX_HEADER && n <= in->n_bytes - 8) *room += n + 8;
    return rc;
}

static int open_shards(struct dpk_tensors **tensors, struct dpk_source *source, const char *folder,
                       const char *index, const char *variant, dpk_error *err) {
    struct dpk_tensors *ts = NULL;
    struct dpk_stream stream = {0};
    const char **names = NULL;
    const cJSON *map, *item;
    cJSON *json = NULL;
    char *full = NULL;
    size_t n = 0;
    uint64_t header_bytes = 0;
    int rc = DPK_OK;
    *tensors = NULL;
    DPK_TRY(dpk_source_json(source, index, &json, err));
    map = cJSON_GetObjectItemCaseSensitive(json, "weight_map");
    DPK_TRY(shard_names(map, index, &names, &n, err));
    DPK_TRY(tensors_new(&ts, n, variant, err));
    for (size_t i = 0; i < n; i++) {
        free(full);
        full = join(folder, names[i]);
        if (!full) DPK_FAIL(err, DPK_ENOMEM, "%s: out of memory", index);
        if (!dpk_source_has(source, full))
            DPK_FAIL(err, DPK_EFORMAT, "%s: shard %s is missing, %s names it",
                     dpk_source_path(source), full, index);
        DPK_TRY(dpk_source_stream(source, full, &stream, err));
        DPK_TRY(take_file(ts, full, &stream, err));
        DPK_TRY(add_header_room(&ts->files[i].stream, &header_bytes, err));
        if (header_bytes > MAX_HEADERS)
            DPK_FAIL(err, DPK_EFORMAT, "%s: the headers of its files have over %d bytes", index,
                     (int)MAX_HEADERS);
    }
    for (size_t i = 0; i < n; i++)
        DPK_TRY(dpk_st_open(&ts->files[i].st, &ts->files[i].stream, err));
    DPK_TRY(gather(ts, err));
    cJSON_ArrayForEach(item, map) {
        const struct dpk_tensor_info *info = dpk_tensors_find(ts, item->string);
        const char *file = info ? strrchr(ts->files[info->file].name, '/') : NULL;
        if (info) file = file ? file + 1 : ts->files[info->file].name;
        if (!info || strcmp(file, item->valuestring) != 0)
            DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %.200s is to be in %.100s, found in %.100s",
                     index, item->string, item->valuestring, info ? file : "no shard");
    }
    *tensors = ts;
    ts = NULL;
done:
    dpk_stream_close(&stream);
    dpk_tensors_close(ts);
    free(full);
    free(names);
    cJSON_Delete(json);
    return rc;
}

/* ---- Which files ------------------------------------------------------------------------------
 * */

/* Where weights may be, in the order in which they are looked for: base, `before`, ".variant",
 * `after`. Of an index and a single file diffusers takes the index, transformers the file. */
static const struct {
    int base;
    const char *before, *after;
    int is_index;
} places[] = {
    {0, ".safetensors.index", ".json", 1}, {0, "", ".safetensors.index.json", 1},
    {0, "", ".safetensors", 0},            {1, "", ".safetensors", 0},
    {1, ".safetensors.index", ".json", 1}, {1, "", ".safetensors.index.json", 1},
};

/* The file of a variant ("" for none) to open, or NULL. */
static int choose(const struct dpk_source *source, const char *folder, const char *variant,
                  char **chosen, int *is_index, dpk_error *err) {
    char name[192];
    *chosen = NULL;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(name, sizeof name, "%s%s%s%s%s", bases[places[i].base], places[i].before,
                 variant[0] ? "." : "", variant, places[i].after);
        char *full = join(folder, name);
        if (!full) return dpk_error_set(err, DPK_ENOMEM, "%s: out of memory", folder);
        if (dpk_source_has(source, full)) {
            *chosen = full;
            *is_index = places[i].is_index;
            return DPK_OK;
        }
        free(full);
    }
    return DPK_OK;
}

/* What stands between prefix and suffix in name, if it can be a variant. */
static int between(const char *name, const char *prefix, const char *suffix, char *out,
                   size_t out_bytes) {
    size_t n = strlen(name), n_prefix = strlen(prefix), n_suffix = strlen(suffix);
    if (n <= n_prefix + n_suffix || strncmp(name, prefix, n_prefix) != 0 ||
        strcmp(name + n - n_suffix, suffix) != 0)
        return 0;
    n -= n_prefix + n_suffix;
    if (n >= out_bytes || memchr(name + n_prefix, '.', n)) return 0;
    memcpy(out, name + n_prefix, n);
    out[n] = '\0';
    return strstr(out, "-of-") == NULL; /* not a shard */
}

static int variant_of(const char *name, char *out, size_t out_bytes) {
    char dot[64], index[64];
    for (int b = 0; b < 2; b++) {
        snprintf(dot, sizeof dot, "%s.", bases[b]);
        snprintf(index, sizeof index, "%s.safetensors.index.", bases[b]);
        if (between(name, dot, ".safetensors", out, out_bytes) ||
            between(name, dot, ".safetensors.index.json", out, out_bytes) ||
            between(name, index, ".json", out, out_bytes))
            return strcmp(out, "safetensors") != 0;
    }
    return 0;
}

static int has_suffix(const char *name, const char *suffix) {
    size_t n = strlen(name), n_suffix = strlen(suffix);
    return n >= n_suffix && strcmp(name + n - n_suffix, suffix) == 0;
}

/* No file without variant is there: the only variant goes to `only`, or an error says what was
 * found. */
static int only_variant(const struct dpk_source *source, const char *folder, char *only,
                        size_t only_bytes, dpk_error *err) {
    char **names = NULL, found[64], all[200] = "";
    const char *pickle = NULL, *shard = NULL;
    size_t n = 0, n_variants = 0;
    int rc = DPK_OK;
    DPK_TRY(dpk_source_list(source, folder, &names, &n, err));
    for (size_t i = 0; i < n; i++) {
        if (has_suffix(names[i], ".bin") || has_suffix(names[i], ".ckpt") ||
            has_suffix(names[i], ".pth") || has_suffix(names[i], ".pt"))
            pickle = names[i];
        if (has_suffix(names[i], ".safetensors") && strstr(names[i], "-of-")) shard = names[i];
        if (!variant_of(names[i], found, sizeof found)) continue;
        if (n_variants && strcmp(found, only) == 0) continue;
        snprintf(only, only_bytes, "%s", found);
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", n_variants ? ", " : "",
                 found);
        n_variants++;
    }
    if (n_variants == 1) goto done;
    if (n_variants > 1)
        DPK_FAIL(err, DPK_EFORMAT, "%s/%s: has only the variants %s: say which one",
                 dpk_source_path(source), folder, all);
    if (shard)
        DPK_FAIL(err, DPK_EFORMAT, "%s/%s: the shard %s is there, but no .safetensors.index.json",
                 dpk_source_path(source), folder, shard);
    if (pickle) {
        char path[128];
        snprintf(path, sizeof path, "%.60s/%.60s", folder[0] ? folder : ".", pickle);
        DPK_FAIL(err, DPK_EUNSUPPORTED, DPK_PICKLE_MESSAGE, path);
    }
    DPK_FAIL(err, DPK_EFORMAT, "%s/%s: no weights, want %s.safetensors or %s.safetensors",
             dpk_source_path(source), folder, bases[0], bases[1]);
done:
    dpk_source_list_free(names, n);
    return rc;
}

int dpk_tensors_open(struct dpk_tensors **tensors, struct dpk_source *source, const char *folder,
                     const char *variant, dpk_error *err) {
    char *chosen = NULL, only[64] = "";
    int is_index = 0, rc = DPK_OK;
    *tensors = NULL;
    if (!variant) variant = "";
    if (dpk_source_kind(source) == DPK_SOURCE_FILE)
        DPK_FAIL(err, DPK_EARG, "%s: one file, want a model folder with %s",
                 dpk_source_path(source), folder);
    if (strlen(variant) >= sizeof only || strpbrk(variant, "/."))
        DPK_FAIL(err, DPK_EARG, "variant \"%.80s\": want a word such as fp16", variant);
    DPK_TRY(choose(source, folder, variant, &chosen, &is_index, err));
    if (!chosen && variant[0]) {
        variant = "";
        DPK_TRY(choose(source, folder, variant, &chosen, &is_index, err));
    }
    if (!chosen) {
        DPK_TRY(only_variant(source, folder, only, sizeof only, err));
        variant = only;
        DPK_TRY(choose(source, folder, variant, &chosen, &is_index, err));
        if (!chosen)
            DPK_FAIL(err, DPK_EFORMAT, "%s/%s: changes while it is read", dpk_source_path(source),
                     folder);
    }
    rc = is_index ? open_shards(tensors, source, folder, chosen, variant, err)
                  : open_single(tensors, source, chosen, variant, err);
done:
    free(chosen);
    return rc;
}

/* ---- Access -----------------------------------------------------------------------------------
 * */

size_t dpk_tensors_count(const struct dpk_tensors *ts) { return ts->n; }

struct dpk_tensor_info *dpk_tensors_get(struct dpk_tensors *ts, size_t i) {
    return &ts->infos[i];
}

struct dpk_tensor_info *dpk_tensors_find(struct dpk_tensors *ts, const char *name) {
    struct dpk_tensor_info want = {.name = name};
    return ts->n ? bsearch(&want, ts->infos, ts->n, sizeof want, compare_infos) : NULL;
}

const char *dpk_tensors_meta(const struct dpk_tensors *ts, const char *key) {
    const char *value = NULL;
    for (size_t f = 0; f < ts->n_files && !value; f++) value = dpk_st_meta(&ts->files[f].st, key);
    return value;
}

const char *dpk_tensors_variant(const struct dpk_tensors *ts) { return ts->variant; }

size_t dpk_tensors_n_files(const struct dpk_tensors *ts) { return ts->n_files; }

const char *dpk_tensors_file(const struct dpk_tensors *ts, size_t file) {
    return ts->files[file].name;
}

uint64_t dpk_tensors_hash(const struct dpk_tensors *ts) { return ts->hash; }

int dpk_tensors_read(const struct dpk_tensors *ts, const struct dpk_tensor_info *info,
                     uint64_t offset, void *dst, size_t n_bytes, dpk_error *err) {
    if (offset > info->n_bytes || n_bytes > info->n_bytes - offset)
        return dpk_error_set(err, DPK_EARG, "tensor %s: %zu bytes at %llu, it has %llu", info->name,
                             n_bytes, (unsigned long long)offset,
                             (unsigned long long)info->n_bytes);
    return dpk_stream_read(&ts->files[info->file].stream, info->offset + offset, dst, n_bytes, err);
}

/* A half's bits as those of a float: the exponent is moved by a product, which also normalises
 * subnormals (F. Giesen, "half to float done quickly"); infinities and NaNs get the full exponent.
 * */
static float half_to_float(uint16_t h) {
    const uint32_t scale_bits = (127 + 112) << 23, top_bits = (127 + 16) << 23;
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float f, scale, top;
    memcpy(&scale, &scale_bits, 4);
    memcpy(&top, &top_bits, 4);
    memcpy(&f, &bits, 4);
    f *= scale;
    memcpy(&bits, &f, 4);
    bits |= f >= top ? 255u << 23 : 0;
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&f, &bits, 4);
    return f;
}

/* A piece of a tensor as stored. */
union piece {
    uint16_t half[PIECE / 2];
    double wide[PIECE / 8];
};

static void convert_piece(int dtype, const union piece *from, size_t n, float *to) {
    if (dtype == DPK_ST_F64) {
        for (size_t i = 0; i < n; i++) to[i] = (float)from->wide[i];
    } else if (dtype == DPK_ST_BF16) {
        for (size_t i = 0; i < n; i++) {
            uint32_t bits = (uint32_t)from->half[i] << 16;
            memcpy(&to[i], &bits, 4);
        }
    } else {
        /* Blocks of a fixed length are what gcc -O2 makes vectors of. */
        size_t i = 0;
        for (; i + 32 <= n; i += 32)
            for (size_t k = 0; k < 32; k++) to[i + k] = half_to_float(from->half[i + k]);
        for (; i < n; i++) to[i] = half_to_float(from->half[i]);
    }
}

int dpk_tensors_read_f32(const struct dpk_tensors *ts, const struct dpk_tensor_info *info,
                         uint64_t first, size_t n, float *dst, dpk_error *err) {
    union piece piece;
    size_t size = (size_t)dpk_st_dtype_bits(info->dtype) / 8;
    int rc = DPK_OK;
    if (info->dtype != DPK_ST_F32 && info->dtype != DPK_ST_F16 && info->dtype != DPK_ST_BF16 &&
        info->dtype != DPK_ST_F64)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "tensor %s: dtype %s, want F32, F16, BF16 or F64",
                 info->name, dpk_st_dtype_name(info->dtype));
    if (first > info->n_elements || n > info->n_elements - first)
        DPK_FAIL(err, DPK_EARG, "tensor %s: %zu elements at %llu, it has %llu", info->name, n,
                 (unsigned long long)first, (unsigned long long)info->n_elements);
    if (info->dtype == DPK_ST_F32) {
        rc = dpk_tensors_read(ts, info, first * 4, dst, n * 4, err);
        goto done;
    }
    while (n > 0) {
        size_t count = n < PIECE / size ? n : PIECE / size;
        DPK_TRY(dpk_tensors_read(ts, info, first * size, &piece, count * size, err));
        convert_piece(info->dtype, &piece, count, dst);
        dst += count;
        first += count;
        n -= count;
    }
done:
    return rc;
}

const char *dpk_tensor_shape_text(const struct dpk_tensor_info *info, char *buf, size_t buf_bytes) {
    size_t at = 0;
    if (buf_bytes == 0) return buf;
    buf[0] = '\0';
    for (int i = 0; i <= info->rank && at < buf_bytes; i++) {
        int n = i < info->rank ? snprintf(buf + at, buf_bytes - at, "%s%llu", i ? ", " : "[",
                                          (unsigned long long)info->dim[i])
                               : snprintf(buf + at, buf_bytes - at, info->rank ? "]" : "[]");
        at += n > 0 ? (size_t)n : 0;
    }
    return buf;
}
