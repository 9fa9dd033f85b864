/* Which layer every tensor of a LoRA file belongs to.
 *
 * Files name layers in several ways, some of which cannot be taken apart (dots became
 * underscores). So it is done the other way round: the names of all layers that the model has, in
 * every spelling, are put into a table, and what a key names is looked up. */
#include "builder.h"
#include "ldm.h"
#include "lora_impl.h"

#include "../formats/fail.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 1 << 16 };

/* A spelling of a layer's name. */
struct spelling {
    char *text; /* flattened; owned */
    int scope;
    size_t layer;
};
/* A layer of the model, and what the file that is being read has for it. */
struct layer {
    const struct dpk_component *component;
    const struct dpk_asked *target;
    struct dpk_tensor_info *part[DPK_LORA_N_KINDS];
    struct dpk_lora_key key; /* of one of them */
};

struct dpk_lora {
    struct spelling *spellings; /* sorted once complete */
    size_t n_spellings, room_spellings;
    struct layer *layers;
    size_t n_layers, room_layers;
    struct dpk_lora_delta **deltas; /* sorted by component, tensor and file */
    size_t n_deltas, room_deltas;
    struct dpk_tensors **files;
    size_t n_files, room_files;
};

static int no_memory(dpk_error *err) {
    return dpk_error_set(err, DPK_ENOMEM, "out of memory for a LoRA");
}

static bool room_for(void *array, size_t n, size_t *room, size_t element) {
    if (n < *room) return true;
    const size_t more = *room ? *room * 2 : 256;
    void *p;
    memcpy(&p, array, sizeof p);
    p = realloc(p, more * element);
    if (!p) return false;
    memcpy(array, &p, sizeof p);
    *room = more;
    return true;
}

int dpk_lora_create(struct dpk_lora **lora, dpk_error *err) {
    *lora = calloc(1, sizeof **lora);
    return *lora ? DPK_OK : no_memory(err);
}

void dpk_lora_free(struct dpk_lora *l) {
    if (!l) return;
    for (size_t i = 0; i < l->n_deltas; i++) {
        pthread_mutex_destroy(&l->deltas[i]->lock);
        free(l->deltas[i]->down);
        free(l->deltas[i]);
    }
    for (size_t i = 0; i < l->n_spellings; i++) free(l->spellings[i].text);
    for (size_t i = 0; i < l->n_files; i++) dpk_tensors_close(l->files[i]);
    free(l->files);
    free(l->deltas);
    free(l->spellings);
    free(l->layers);
    free(l);
}

/* ---- The table of names ---------------------------------------------------------------------- */

static int compare_spellings(const void *a, const void *b) {
    const struct spelling *x = a, *y = b;
    if (x->scope != y->scope) return x->scope < y->scope ? -1 : 1;
    return strcmp(x->text, y->text);
}

static int add_spelling(struct dpk_lora *l, const char *path, int scope, dpk_error *err) {
    char flat[512];
    if (!dpk_lora_flatten(path, strlen(path), flat)) return DPK_OK; /* no key is so long */
    if (!room_for(&l->spellings, l->n_spellings, &l->room_spellings, sizeof *l->spellings))
        return no_memory(err);
    char *text = strdup(flat);
    if (!text) return no_memory(err);
    l->spellings[l->n_spellings++] =
        (struct spelling){.text = text, .scope = scope, .layer = l->n_layers - 1};
    return DPK_OK;
}

static int add_layer(struct dpk_lora *l, const struct dpk_component *c, const struct dpk_asked *a,
                     dpk_error *err) {
    int rc = DPK_OK;
    static const char weight[] = ".weight", model[] = "text_model.";
    const int scope = dpk_lora_scope_of(c->prefix);
    const size_t n = strlen(a->name), m = sizeof weight - 1;
    struct dpk_place place;
    if (n <= m || strcmp(a->name + n - m, weight) != 0 || a->rank < 2) goto done;
    const struct dpk_name path = dpk_namef("%.*s", (int)(n - m), a->name);
    if (!room_for(&l->layers, l->n_layers, &l->room_layers, sizeof *l->layers))
        DPK_TRY(no_memory(err));
    l->layers[l->n_layers++] = (struct layer){.component = c, .target = a};
    DPK_TRY(add_spelling(l, path.s, scope, err));
    if (strcmp(c->prefix, "unet") == 0)
        for (int i = 0; dpk_ldm_unet(NULL, path.s, i, &place); i++)
            DPK_TRY(add_spelling(l, place.name, scope, err));
    if (strncmp(path.s, model, sizeof model - 1) == 0) /* as transformers 5 has it */
        DPK_TRY(add_spelling(l, path.s + sizeof model - 1, scope, err));
done:
    return rc;
}

static int make_table(struct dpk_lora *l, const struct dpk_component *components, int n,
                      dpk_error *err) {
    int rc = DPK_OK;
    if (l->n_layers > 0) goto done;
    for (int i = 0; i < n; i++) {
        if (dpk_lora_scope_of(components[i].prefix) == DPK_LORA_NO_SCOPE) continue;
        for (uint64_t k = 0; k < components[i].n_tensors; k++)
            DPK_TRY(add_layer(l, &components[i], &components[i].asked[k], err));
    }
    qsort(l->spellings, l->n_spellings, sizeof *l->spellings, compare_spellings);
done:
    return rc;
}

static struct layer *find_layer(const struct dpk_lora *l, const struct dpk_lora_key *key) {
    char text[sizeof key->layer];
    memcpy(text, key->layer, sizeof text);
    const struct spelling want = {.text = text, .scope = key->scope};
    const struct spelling *s = l->n_spellings ? bsearch(&want, l->spellings, l->n_spellings,
                                                        sizeof want, compare_spellings)
                                              : NULL;
    return s ? &l->layers[s->layer] : NULL;
}

/* ---- Whose file it is ------------------------------------------------------------------------ */

static bool is_context_key(const char *layer) {
    static const char end[] = "attn2_to_k";
    const size_t n = strlen(layer), m = sizeof end - 1;
    return n >= m && strcmp(layer + n - m, end) == 0;
}

static const char *base_of(uint64_t width) {
    return width == 768    ? " (Stable Diffusion 1.x)"
           : width == 1024 ? " (Stable Diffusion 2.x)"
           : width == 2048 ? " (SDXL)"
           : width == 1152 ? " (PixArt)"
                           : "";
}

/* The width of the prompt's vectors tells base models apart, whatever the layers are called. */
static int check_base(const struct dpk_lora *l, struct dpk_tensors *tensors, const char *path,
                      dpk_error *err) {
    uint64_t ours = 0, theirs = 0;
    struct dpk_lora_key key;
    for (size_t i = 0; i < l->n_spellings && !ours; i++)
        if (l->spellings[i].scope == DPK_LORA_DENOISER && is_context_key(l->spellings[i].text))
            ours = l->layers[l->spellings[i].layer].target->dim[1];
    for (size_t i = 0; i < dpk_tensors_count(tensors) && !theirs; i++) {
        const struct dpk_tensor_info *t = dpk_tensors_get(tensors, i);
        if (dpk_lora_parse_key(t->name, &key) && key.kind == DPK_LORA_DOWN &&
            key.scope == DPK_LORA_DENOISER && is_context_key(key.layer) && t->rank >= 2)
            theirs = t->dim[1];
    }
    if (!ours || !theirs || ours == theirs) return DPK_OK;
    return dpk_error_set(err, DPK_EARG,
                         "%s: made for another base model: its cross-attention takes prompts of "
                         "width %llu%s, this model's of %llu%s",
                         path, (unsigned long long)theirs, base_of(theirs),
                         (unsigned long long)ours, base_of(ours));
}

/* Keys that match nothing; down and up count as one, as only a layer's name is shown. */
struct unknown {
    char list[300];
    char last[512];
    size_t n, at;
    bool more;
};

static void add_unknown(struct unknown *u, const char *name) {
    char layer[sizeof u->last];
    struct dpk_lora_key key;
    if (dpk_lora_parse_key(name, &key))
        snprintf(layer, sizeof layer, "%.*s", (int)(key.path + key.path_length - name), name);
    else snprintf(layer, sizeof layer, "%s", name);
    u->n++;
    if (strcmp(layer, u->last) == 0) return;
    snprintf(u->last, sizeof u->last, "%s", layer);
    const size_t n = strlen(layer) + (u->at ? 2 : 0);
    if (u->more || u->at + n >= sizeof u->list) {
        u->more = true;
        return;
    }
    u->at +=
        (size_t)snprintf(u->list + u->at, sizeof u->list - u->at, "%s%s", u->at ? ", " : "", layer);
}

/* Sort the file's tensors into the layers. */
static int sort_tensors(struct dpk_lora *l, struct dpk_tensors *tensors, struct dpk_lora_file *file,
                        bool *adapter, dpk_error *err) {
    int rc = DPK_OK;
    struct unknown unknown = {.n = 0};
    struct dpk_lora_key key;
    const size_t n = dpk_tensors_count(tensors);
    *adapter = false;
    for (size_t i = 0; i < l->n_layers; i++) memset(l->layers[i].part, 0, sizeof l->layers->part);
    for (size_t i = 0; i < n; i++) {
        struct dpk_tensor_info *t = dpk_tensors_get(tensors, i);
        struct layer *layer = NULL;
        if (dpk_lora_parse_key(t->name, &key)) layer = find_layer(l, &key);
        if (!layer) {
            add_unknown(&unknown, t->name);
            continue;
        }
        if (layer->part[key.kind])
            DPK_FAIL(err, DPK_EFORMAT, "%s: %s and %s are for the same layer", file->path,
                     layer->part[key.kind]->name, t->name);
        layer->part[key.kind] = t;
        layer->key = key;
        *adapter |= key.adapter;
    }
    file->n_ignored = unknown.n;
    if (unknown.n == n)
        DPK_FAIL(err, DPK_EARG, "%s: none of its %zu tensors is for a layer of this model: %s%s",
                 file->path, n, unknown.list, unknown.more ? ", ..." : "");
    if (unknown.n && !file->partial)
        DPK_FAIL(err, DPK_EARG,
                 "%s: %zu of %zu tensors match no layer of this model (--lora-partial leaves them "
                 "out): %s%s",
                 file->path, unknown.n, n, unknown.list, unknown.more ? ", ..." : "");
done:
    return rc;
}

/* ---- Layers ---------------------------------------------------------------------------------- */

static bool ones_from(const struct dpk_tensor_info *t, int i) {
    for (; i < t->rank; i++)
        if (t->dim[i] != 1) return false;
    return true;
}

/* down [rank, C, kh, kw] or, with a core [rank, rank, kh, kw] or for a matrix, [rank, C]. */
static bool down_fits(const struct layer *y, uint64_t rank) {
    const struct dpk_tensor_info *down = y->part[DPK_LORA_DOWN], *mid = y->part[DPK_LORA_MID];
    const struct dpk_asked *a = y->target;
    if (down->rank < 2 || down->dim[0] != rank || down->dim[1] != a->dim[1]) return false;
    if (mid) {
        return a->rank == 4 && mid->rank == 4 && mid->dim[0] == rank && mid->dim[1] == rank &&
               mid->dim[2] == a->dim[2] && mid->dim[3] == a->dim[3] && ones_from(down, 2);
    }
    if (a->rank == 2 || down->rank == 2)
        return ones_from(down, 2) && (a->rank == 2 || (a->dim[2] == 1 && a->dim[3] == 1));
    return down->rank == 4 && down->dim[2] == a->dim[2] && down->dim[3] == a->dim[3];
}

static bool is_float(const struct dpk_tensor_info *t) {
    return t->dtype == DPK_ST_F32 || t->dtype == DPK_ST_F16 || t->dtype == DPK_ST_BF16 ||
           t->dtype == DPK_ST_F64;
}

static int check_shapes(const struct layer *y, const char *path, uint64_t *rank, dpk_error *err) {
    int rc = DPK_OK;
    char a[64], b[64], c[64];
    struct dpk_tensor_info *const *part = y->part;
    const struct dpk_tensor_info *down = part[DPK_LORA_DOWN], *up = part[DPK_LORA_UP];
    const struct dpk_tensor_info *dora = part[DPK_LORA_DORA], *length = part[DPK_LORA_MAGNITUDE];
    const char *layer = y->target->name;
    struct dpk_tensor_info target = {.rank = y->target->rank};
    memcpy(target.dim, y->target->dim, sizeof y->target->dim);
    dpk_tensor_shape_text(&target, c, sizeof c);
    if (!down || !up)
        DPK_FAIL(err, DPK_EFORMAT, "%s: layer %.*s has no %s", path, (int)y->key.path_length,
                 y->key.path, down ? "up" : "down");
    for (int i = 0; i < DPK_LORA_N_KINDS; i++)
        if (part[i] && i != DPK_LORA_ALPHA && !is_float(part[i]))
            DPK_FAIL(err, DPK_EUNSUPPORTED, "%s: tensor %s is %s, wanted F32, F16, BF16 or F64",
                     path, part[i]->name, dpk_st_dtype_name(part[i]->dtype));
    *rank = up->rank >= 2 ? up->dim[1] : 0;
    if (*rank < 1 || *rank > MAX_RANK || up->dim[0] != target.dim[0] || !ones_from(up, 2) ||
        !down_fits(y, *rank))
        DPK_FAIL(err, DPK_EARG,
                 "%s: made for another base model: down %s and up %s do not make %s.%s %s (%s)",
                 path, dpk_tensor_shape_text(down, a, sizeof a),
                 dpk_tensor_shape_text(up, b, sizeof b), y->component->prefix, layer, c,
                 down->name);
    if ((length && length->n_elements != target.dim[0]) || (length && dora))
        DPK_FAIL(err, DPK_EFORMAT, "%s: tensor %s is %s, wanted a number a row of %s", path,
                 length->name, dpk_tensor_shape_text(length, a, sizeof a), c);
    if (dora && (dora->n_elements != target.dim[0] || dora->dim[0] != target.dim[0]))
        DPK_FAIL(err, DPK_EUNSUPPORTED,
                 "%s: tensor %s is %s, supported: DoRA over the rows of %s, a number each", path,
                 dora->name, dpk_tensor_shape_text(dora, a, sizeof a), c);
done:
    return rc;
}

static int read_alpha(struct dpk_tensors *tensors, const struct dpk_tensor_info *t,
                      const char *path, double *alpha, dpk_error *err) {
    int rc = DPK_OK;
    float value = 0.0f;
    int64_t whole = 0;
    if (t->n_elements != 1) DPK_FAIL(err, DPK_EFORMAT, "%s: %s is no number", path, t->name);
    if (t->dtype == DPK_ST_I64) {
        DPK_TRY(dpk_tensors_read(tensors, t, 0, &whole, sizeof whole, err));
        *alpha = (double)whole;
        goto done;
    }
    DPK_TRY(dpk_tensors_read_f32(tensors, t, 0, 1, &value, err));
    if (!isfinite(value)) DPK_FAIL(err, DPK_EFORMAT, "%s: %s is %g", path, t->name, (double)value);
    *alpha = (double)value;
done:
    return rc;
}

static int add_delta(struct dpk_lora *l, const struct layer *y, struct dpk_tensors *tensors,
                     const struct dpk_lora_settings *settings, const struct dpk_lora_file *file,
                     dpk_error *err) {
    int rc = DPK_OK;
    uint64_t rank = 0;
    double ratio = 1.0, alpha = 0.0;
    struct dpk_lora_delta *d;
    DPK_TRY(check_shapes(y, file->path, &rank, err));
    if (y->part[DPK_LORA_ALPHA]) {
        DPK_TRY(read_alpha(tensors, y->part[DPK_LORA_ALPHA], file->path, &alpha, err));
        ratio = alpha / (double)rank;
    } else {
        DPK_TRY(dpk_lora_settings_ratio(settings, &y->key, rank, &ratio, err));
    }
    if (!room_for(&l->deltas, l->n_deltas, &l->room_deltas, sizeof(struct dpk_lora_delta *)) ||
        !(d = calloc(1, sizeof *d)))
        DPK_TRY(no_memory(err));
    *d = (struct dpk_lora_delta){.component = y->component,
                                 .target = y->target,
                                 .order = l->n_files,
                                 .tensors = tensors,
                                 .scale = file->scale * ratio,
                                 .rank = rank,
                                 .rows = y->target->dim[0],
                                 .row = 1};
    for (int i = 1; i < y->target->rank; i++) d->row *= y->target->dim[i];
    memcpy(d->part, y->part, sizeof d->part);
    pthread_mutex_init(&d->lock, NULL);
    l->deltas[l->n_deltas++] = d;
done:
    return rc;
}

static int compare_place(const struct dpk_lora_delta *d, const char *component, const char *name) {
    const int c = strcmp(d->component->prefix, component);
    return c ? c : strcmp(d->target->name, name);
}

static int compare_deltas(const void *a, const void *b) {
    const struct dpk_lora_delta *x = *(struct dpk_lora_delta *const *)a,
                                *y = *(struct dpk_lora_delta *const *)b;
    const int c = compare_place(x, y->component->prefix, y->target->name);
    if (c) return c;
    return x->order < y->order ? -1 : x->order > y->order;
}

int dpk_lora_add_file(struct dpk_lora *l, struct dpk_lora_file *file,
                      const struct dpk_component *components, int n_components, dpk_error *err) {
    int rc = DPK_OK;
    bool adapter;
    struct dpk_lora_settings settings = {.adapter = false};
    struct dpk_tensors *tensors = NULL;
    if (!isfinite(file->scale)) DPK_FAIL(err, DPK_EARG, "%s: the scale is no number", file->path);
    if (!room_for(&l->files, l->n_files, &l->room_files, sizeof *l->files)) DPK_TRY(no_memory(err));
    DPK_TRY(make_table(l, components, n_components, err));
    DPK_TRY(dpk_tensors_open_file(&tensors, file->path, err));
    DPK_TRY(check_base(l, tensors, file->path, err));
    DPK_TRY(sort_tensors(l, tensors, file, &adapter, err));
    DPK_TRY(dpk_lora_settings_open(&settings, file->path, tensors, adapter, err));
    file->n_layers = 0;
    file->hash = dpk_tensors_hash(tensors);
    for (size_t i = 0; i < l->n_layers; i++) {
        const struct layer *y = &l->layers[i];
        bool any = false;
        for (int k = 0; k < DPK_LORA_N_KINDS; k++) any |= y->part[k] != NULL;
        if (!any) continue;
        DPK_TRY(add_delta(l, y, tensors, &settings, file, err));
        file->n_layers++;
    }
    qsort(l->deltas, l->n_deltas, sizeof *l->deltas, compare_deltas);
done:
    /* deltas that were made before a failure refer to the tensors */
    if (tensors) l->files[l->n_files++] = tensors;
    dpk_config_close(&settings.config);
    return rc;
}

int dpk_lora_apply(const struct dpk_lora *l, const struct dpk_component *component,
                   const char *name, uint64_t first, uint64_t count, size_t row, float *w,
                   dpk_error *err) {
    int rc = DPK_OK;
    size_t low = 0, high = l->n_deltas;
    while (low < high) {
        const size_t mid = low + (high - low) / 2;
        if (compare_place(l->deltas[mid], component->prefix, name) < 0) low = mid + 1;
        else high = mid;
    }
    for (; low < l->n_deltas && compare_place(l->deltas[low], component->prefix, name) == 0;
         low++) {
        struct dpk_lora_delta *d = l->deltas[low];
        if (d->row != row || first > d->rows || count > d->rows - first)
            DPK_FAIL(err, DPK_EARG, "%s: rows %llu to %llu of %zu values, it has %llu of %llu",
                     name, (unsigned long long)first, (unsigned long long)(first + count), row,
                     (unsigned long long)d->rows, (unsigned long long)d->row);
        DPK_TRY(dpk_lora_delta_apply(d, first, count, w, err));
    }
done:
    return rc;
}
