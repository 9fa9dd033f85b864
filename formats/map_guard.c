#include "map_guard.h"

#include "fail.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A free slot has n_bytes 0. Written under the lock, n_bytes last; the handler reads at any time, and
 * begin on both sides of n_bytes. */
struct dpk_guard {
    atomic_uintptr_t begin;
    atomic_size_t n_bytes;
    atomic_bool hit;
};
enum { MAX_GUARDS = 64 };

static struct dpk_guard guards[MAX_GUARDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool installed;
static uintptr_t page;
static struct sigaction before;

static void pass_on(int number, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else { /* the access is repeated, and ends the process as if nobody had been here */
        signal(number, SIG_DFL);
    }
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    const int saved = errno;
    const uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < MAX_GUARDS; i++) {
        uintptr_t begin;
        size_t n;
        do {
            begin = atomic_load(&guards[i].begin);
            n = atomic_load(&guards[i].n_bytes);
        } while (begin != atomic_load(&guards[i].begin));
        if (at - begin >= n) continue;
        void *map = mmap((void *)(at / page * page), page, PROT_READ,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (map == MAP_FAILED) break;
        atomic_store(&guards[i].hit, true);
        errno = saved;
        return;
    }
    errno = saved;
    pass_on(number, info, context);
}

static int install(dpk_error *err) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (installed) return DPK_OK;
    sigemptyset(&action.sa_mask);
    page = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (sigaction(SIGBUS, &action, &before))
        return dpk_error_set(err, DPK_EIO, "no handler for SIGBUS: %s", strerror(errno));
    installed = true;
    return DPK_OK;
}

int dpk_guard_create(struct dpk_guard **guard, void *map, size_t n_bytes, dpk_error *err) {
    int rc = DPK_OK;
    *guard = NULL;
    pthread_mutex_lock(&lock);
    DPK_TRY(install(err));
    for (int i = 0; i < MAX_GUARDS && !*guard; i++)
        if (!atomic_load(&guards[i].n_bytes)) *guard = &guards[i];
    if (!*guard) DPK_FAIL(err, DPK_ENOMEM, "over %d maps to guard", MAX_GUARDS);
    atomic_store(&(*guard)->hit, false);
    atomic_store(&(*guard)->begin, (uintptr_t)map);
    atomic_store(&(*guard)->n_bytes, n_bytes);
done:
    pthread_mutex_unlock(&lock);
    return rc;
}

void dpk_guard_free(struct dpk_guard *guard) {
    if (!guard) return;
    pthread_mutex_lock(&lock);
    atomic_store(&guard->n_bytes, 0);
    pthread_mutex_unlock(&lock);
}

bool dpk_guard_hit(const struct dpk_guard *guard) { return guard && atomic_load(&guard->hit); }
