/* Finding and opening the library of a backend. It stays in memory once it is there: the driver's
 * threads outlive the sessions. */
#include "plugin.h"

#include "../formats/fail.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY "libdiffpak-cuda.so"

/* `up` and the library's name after the folder of the file that this code lies in. */
static bool path_near(const char *up, char *path, size_t size) {
    Dl_info info;
    static const char here = 0;
    if (!dladdr(&here, &info) || !info.dli_fname) return false;
    const char *slash = strrchr(info.dli_fname, '/');
    int folder = slash ? (int)(slash - info.dli_fname) + 1 : 0;
    int n = snprintf(path, size, "%.*s%s" LIBRARY, folder, info.dli_fname, up);
    return n > 0 && (size_t)n < size && access(path, F_OK) == 0;
}

static int find_library(char *path, size_t size, dpk_error *err) {
    const char *asked = getenv("DPK_CUDA_PLUGIN");
    if (asked && *asked) {
        if ((size_t)snprintf(path, size, "%s", asked) >= size)
            return dpk_error_set(err, DPK_EARG,
                                 "DPK_CUDA_PLUGIN: a path of %zu bytes, want below "
                                 "%zu",
                                 strlen(asked), size);
    } else if (!path_near("", path, size) && !path_near("../lib/", path, size)) {
        snprintf(path, size, LIBRARY);
    }
    return DPK_OK;
}

int dpk_plugin_open(struct dpk_backend **be, int act_dtype, dpk_error *err) {
    int rc = DPK_OK;
    char path[4096];
    void *library = NULL;
    *be = NULL;
    DPK_TRY(find_library(path, sizeof path, err));
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library) {
        const char *why = dlerror();
        DPK_FAIL(err, DPK_EUNSUPPORTED, "backend cuda: %.400s", why ? why : path);
    }
    const struct dpk_plugin *plugin = dlsym(library, "dpk_plugin");
    if (!plugin) DPK_FAIL(err, DPK_EUNSUPPORTED, "backend cuda: %.300s is no plugin", path);
    if (plugin->version != DPK_PLUGIN_VERSION)
        DPK_FAIL(err, DPK_EUNSUPPORTED, "backend cuda: %.300s has version %u, want %u", path,
                 plugin->version, DPK_PLUGIN_VERSION);
    DPK_TRY(plugin->create(be, act_dtype, err));
done:
    if (library) dlclose(library);
    return rc;
}
