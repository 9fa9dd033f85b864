#include "support_cuda.h"

#include "../runtime/plugin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool on_gpu(void) {
    const char *where = getenv("DPK_TEST_CUDA");
    return where && !strcmp(where, "gpu");
}

/* ../lib/NAME from the folder of this program. */
static bool library_path(char *path, size_t size) {
    char self[3072];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return false;
    self[n] = 0;
    char *slash = strrchr(self, '/');
    if (!slash) return false;
    *slash = 0;
    snprintf(path, size, "%s/../lib/libdiffpak-cuda%s.so", self, on_gpu() ? "" : "-emu");
    return access(path, R_OK) == 0;
}

bool support_cuda_available(void) {
    static bool asked, there;
    char path[4096];
    if (asked) return there;
    asked = true;
    there = library_path(path, sizeof path);
    if (there) setenv("DPK_CUDA_PLUGIN", path, 1);
    else print_error("no CUDA plugin for tests here: its part is left out\n");
    return there;
}

void *support_cuda_symbol(const char *name) {
    char path[4096];
    if (on_gpu() || !library_path(path, sizeof path)) return NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) fail_msg("%s", dlerror());
    void *symbol = dlsym(library, name);
    dlclose(library);
    return symbol;
}

/* ---- A backend for operands of the host ---------------------------------------------------- */

enum { MAX_TENSORS = 2 * DPK_MAX_WT };
struct wrapped {
    struct dpk_backend base;
    struct dpk_backend *device;
    struct dpk_share share;
    int act_dtype;
    uint64_t seed;
};

static uint64_t dense_bytes(int dtype, const struct dpk_shape *shape) {
    uint64_t n = (uint64_t)dpk_shape_count(shape);
    return dtype == DPK_F32 || dtype == DPK_I32 ? 4 * n : 2 * n;
}

/* The call's weights as the tensors of a file; `bytes` is its section of weights. */
struct little_file {
    struct dpk_file file;
    struct dpk_tensor_record tensors[MAX_TENSORS];
    uint8_t *bytes;
};

static uint64_t add_tensor(struct little_file *f, int i, const void *data, uint64_t n_bytes) {
    uint64_t at = f->file.weights_bytes;
    f->file.weights_bytes = at + (n_bytes + DPK_ALIGN - 1) / DPK_ALIGN * DPK_ALIGN;
    f->bytes = realloc(f->bytes, f->file.weights_bytes);
    assert_non_null(f->bytes);
    memset(f->bytes + at, 0, f->file.weights_bytes - at);
    memcpy(f->bytes + at, data, n_bytes);
    f->tensors[i].offset = at;
    f->tensors[i].bytes = n_bytes;
    return at;
}

static void describe(struct dpk_tensor_record *t, int dtype, int layout,
                     const struct dpk_shape *shape) {
    t->dtype = (uint32_t)dtype;
    t->layout = (uint32_t)layout;
    t->rank = (uint32_t)shape->rank;
    memcpy(t->dim, shape->dim, sizeof t->dim);
    t->scale = t->colsum = DPK_NONE;
}

static void make_file(struct little_file *f, const struct dpk_call *call) {
    memset(f, 0, sizeof *f);
    const struct dpk_shape one = {1, {1, 0, 0, 0}};
    const uint32_t nothing = 0;
    for (int i = 0; i < MAX_TENSORS; i++) {
        describe(&f->tensors[i], DPK_F32, DPK_LAYOUT_RAW, &one);
        const struct dpk_weight *w = i < DPK_MAX_WT ? &call->wt[i] : NULL;
        if (!w || !w->shape.rank) {
            if (i < DPK_MAX_WT) add_tensor(f, i, &nothing, 4);
            continue;
        }
        describe(&f->tensors[i], w->dtype, w->layout, &w->shape);
        f->tensors[i].flags = w->flags;
        f->tensors[i].group = (uint32_t)w->group;
        add_tensor(f, i, w->data,
                   w->layout == DPK_LAYOUT_RAW ? dense_bytes(w->dtype, &w->shape)
                                               : dpk_weight_bytes(w->dtype, w->layout, &w->shape));
    }
    for (int i = 0; i < DPK_MAX_WT; i++) {
        const struct dpk_weight *w = &call->wt[i];
        struct dpk_shape shape = one;
        if (!w->shape.rank || !w->scale) {
            add_tensor(f, DPK_MAX_WT + i, &nothing, 4);
            continue;
        }
        shape.dim[0] = w->shape.dim[0];
        if (w->group) shape.dim[0] = (int32_t)(dpk_shape_count(&w->shape) / (int64_t)w->group);
        describe(&f->tensors[DPK_MAX_WT + i], DPK_F32, DPK_LAYOUT_RAW, &shape);
        add_tensor(f, DPK_MAX_WT + i, w->scale, dense_bytes(DPK_F32, &shape));
        f->tensors[i].scale = (uint32_t)(DPK_MAX_WT + i);
    }
    f->file.n_tensors = MAX_TENSORS;
    f->file.tensors = f->tensors;
    f->file.weights = f->bytes;
}

static void *to_device(struct dpk_backend *be, const void *data, uint64_t n_bytes) {
    dpk_error err;
    void *p = be->alloc(be, n_bytes);
    assert_non_null(p);
    if (data && be->upload(be, p, data, n_bytes, &err)) fail_msg("%s", err.msg);
    return p;
}

/* Quantized rows have as many bytes whoever makes them. */
static uint64_t tensor_bytes(struct dpk_backend *be, const struct dpk_tensor *t) {
    static const struct dpk_op norm = {.opcode = DPK_OP_layer_norm};
    struct dpk_call call = {.op = &norm, .out = *t};
    return t->rows8 ? be->rows8_bytes(be, &call) : dense_bytes(t->dtype, &t->shape);
}

/* The device's copy of the call; two operands that are one on the host are one there. */
static void carry(struct dpk_backend *be, const struct dpk_call *host, struct dpk_call *call) {
    for (int i = 0; i < DPK_MAX_IN; i++) {
        const struct dpk_tensor *t = &host->in[i];
        if (!t->shape.rank) continue;
        call->in[i].data = NULL;
        for (int k = 0; k < i; k++)
            if (host->in[k].data == t->data) call->in[i].data = call->in[k].data;
        if (!call->in[i].data) call->in[i].data = to_device(be, t->data, tensor_bytes(be, t));
        if (host->out.data == t->data) call->out.data = call->in[i].data;
    }
    if (call->out.data == host->out.data)
        call->out.data = to_device(be, NULL, tensor_bytes(be, &host->out));
}

static void drop(struct dpk_backend *be, struct dpk_call *call) {
    bool in_place = false;
    for (int i = 0; i < DPK_MAX_IN; i++) {
        void *p = call->in[i].shape.rank ? call->in[i].data : NULL;
        for (int k = 0; k < i; k++)
            if (call->in[k].data == p) p = NULL;
        in_place |= p && p == call->out.data;
        if (p) be->release(be, p, 0);
    }
    if (!in_place) be->release(be, call->out.data, 0);
    if (call->scratch) be->release(be, call->scratch, 0);
}

static int wrapped_run(struct dpk_backend *be, const struct dpk_call *host, dpk_error *err) {
    struct wrapped *w = (struct wrapped *)be;
    struct dpk_backend *device = w->device;
    void (*shuffle)(uint64_t) = NULL;
    *(void **)&shuffle = support_cuda_symbol("dpk_emu_shuffle");
    if (shuffle) shuffle(++w->seed);
    struct little_file f;
    struct dpk_call call = *host, plan;
    struct dpk_op op = *host->op;
    for (uint32_t i = 0; i < DPK_MAX_WT; i++)
        if (call.wt[i].shape.rank) op.wt[i] = i;
    call.op = &op;
    make_file(&f, host);
    plan = call;
    for (int i = 0; i < DPK_MAX_IN; i++) plan.in[i].data = NULL;
    plan.out.data = plan.scratch = NULL;
    const size_t scratch = device->scratch_bytes(device, &plan);
    int rc = device->attach(device, &f.file, w->act_dtype, &w->share, err);
    if (rc == DPK_OK) {
        carry(device, host, &call);
        call.scratch = scratch ? to_device(device, NULL, scratch) : NULL;
        rc = device->run(device, &call, err);
        if (rc == DPK_OK)
            rc = device->download(device, host->out.data, call.out.data,
                                  tensor_bytes(device, &call.out), err);
        drop(device, &call);
    }
    free(f.bytes);
    return rc;
}

static bool wrapped_in_place(const struct dpk_backend *be, const struct dpk_call *call, int i) {
    const struct wrapped *w = (const struct wrapped *)be;
    return w->device->in_place(w->device, call, i);
}

static uint64_t wrapped_rows8_bytes(const struct dpk_backend *be, const struct dpk_call *call) {
    const struct wrapped *w = (const struct wrapped *)be;
    return w->device->rows8_bytes(w->device, call);
}

static size_t wrapped_scratch(const struct dpk_backend *be, const struct dpk_call *call) {
    (void)be, (void)call;
    return 0;
}

static void wrapped_free(struct dpk_backend *be) {
    struct wrapped *w = (struct wrapped *)be;
    w->device->free(w->device);
    pthread_mutex_destroy(&w->share.lock);
    free(w);
}

struct dpk_backend *support_cuda_open(int act_dtype) {
    dpk_error err;
    if (!support_cuda_available()) return NULL;
    struct wrapped *w = calloc(1, sizeof *w);
    assert_non_null(w);
    if (dpk_plugin_open(&w->device, act_dtype, &err)) fail_msg("%s", err.msg);
    pthread_mutex_init(&w->share.lock, NULL);
    w->act_dtype = act_dtype;
    w->base = (struct dpk_backend){.name = "cuda",
                                   .detail = w->device->detail,
                                   .free = wrapped_free,
                                   .scratch_bytes = wrapped_scratch,
                                   .in_place = wrapped_in_place,
                                   .rows8_bytes = wrapped_rows8_bytes,
                                   .run = wrapped_run};
    return &w->base;
}
