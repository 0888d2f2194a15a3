/* Faults between a process and its files: preloaded, it stands in for the calls of libc that read and write.

Only files whose path holds the text that gnncy_watch was given are touched. Every such call is counted; from the one
that gnncy_arm names, once or (negative times) always, it is cut short, interrupted, refused with an errno, delayed, or
the process is killed before it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, SHORT, INTERRUPT, REFUSE, DELAY, KILL };
enum { READS = 1, WRITES = 2, NAMES = 4 };  /* NAMES: sync, rename, unlink, reserve */

static char watched[512];
static int kind, classes, status, times;
static long at, count;
static const char *last = "";  /* of the calls that got a fault */

void gnncy_watch(const char *text) { strncpy(watched, text, sizeof watched - 1); }
void gnncy_arm(int what, int which, long from, int how_often, int with) {
    kind = NONE; __sync_synchronize();
    classes = which; at = from; times = how_often; status = with; count = 0;
    __sync_synchronize(); kind = what;
}
long gnncy_count(void) { return __atomic_load_n(&count, __ATOMIC_SEQ_CST); }

const char *gnncy_last(void) { return last; }

static int of_path(const char *path) { return watched[0] && path && strstr(path, watched) != NULL; }
static int of_fd(int fd) {
    char link[64], path[1024];
    if (!watched[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return of_path(path);
}

/* What happens to this call: 0 nothing, 1 cut short, -1 it fails with errno. */
static int fault(int which, const char *name) {
    if (kind == NONE || !(classes & which)) return 0;
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (now < at || (times >= 0 && now >= at + times)) return 0;
    last = name;
    switch (kind) {
    case SHORT: return 1;
    case INTERRUPT: if (now % 2) return 0; errno = EINTR; return -1;
    case REFUSE: errno = status; return -1;
    case DELAY: { struct timespec t = {0, status * 1000L}; nanosleep(&t, NULL); return 0; }
    case KILL: raise(SIGKILL); for (;;) pause();
    }
    return 0;
}

static size_t shortened(int fd, size_t n) {
    if (fcntl(fd, F_GETFL) & O_DIRECT) return n > 4096 ? 4096 : n;  /* as the kernel: whole sectors */
    return n > 1 ? 1 + n / 3 : n;
}

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })

#define POSITIONED(name, type, which)                                       \
ssize_t name(int fd, type *p, size_t n, off_t offset) {                     \
    int what = of_fd(fd) ? fault(which, __func__) : 0;                                \
    if (what < 0) return -1;                                                \
    return REAL(name)(fd, p, what ? shortened(fd, n) : n, offset);          \
}
POSITIONED(pread, void, READS)
POSITIONED(pread64, void, READS)
POSITIONED(pwrite, const void, WRITES)
POSITIONED(pwrite64, const void, WRITES)

#define SCATTERED(name)                                                     \
ssize_t name(int fd, const struct iovec *v, int n, off_t offset) {          \
    int what = of_fd(fd) ? fault(READS, __func__) : 0;                      \
    if (what < 0) return -1;                                                \
    if (what) return REAL(pread)(fd, v->iov_base, shortened(fd, v->iov_len), offset); \
    return REAL(name)(fd, v, n, offset);                                    \
}
SCATTERED(preadv)
SCATTERED(preadv64)

#define PLAIN(name, type, which)                                            \
ssize_t name(int fd, type *p, size_t n) {                                   \
    int what = of_fd(fd) ? fault(which, __func__) : 0;                                \
    if (what < 0) return -1;                                                \
    return REAL(name)(fd, p, what ? shortened(fd, n) : n);                  \
}
PLAIN(read, void, READS)
PLAIN(write, const void, WRITES)

#define OF_FD(name, which, params, ...)                                     \
int name params { if (of_fd(fd) && fault(which, __func__) < 0) return -1; return REAL(name)(__VA_ARGS__); }

int fsync(int fd) {  /* the disk of a test machine is not waited for */
    return of_fd(fd) ? fault(NAMES, __func__) < 0 ? -1 : 0 : REAL(fsync)(fd);
}
OF_FD(ftruncate, NAMES, (int fd, off_t n), fd, n)
OF_FD(ftruncate64, NAMES, (int fd, off_t n), fd, n)

#define RESERVE(name)                                                       \
int name(int fd, off_t offset, off_t n) {                                   \
    if (of_fd(fd) && fault(NAMES, __func__) < 0) return errno;                        \
    return REAL(name)(fd, offset, n);                                       \
}
RESERVE(posix_fallocate)
RESERVE(posix_fallocate64)

int rename(const char *from, const char *to) {
    if (of_path(to) && fault(NAMES, __func__) < 0) return -1;
    return REAL(rename)(from, to);
}
int mkdir(const char *path, mode_t mode) {
    if (of_path(path) && fault(NAMES, __func__) < 0) return -1;
    return REAL(mkdir)(path, mode);
}
int rmdir(const char *path) {
    if (of_path(path) && fault(NAMES, __func__) < 0) return -1;
    return REAL(rmdir)(path);
}
int unlinkat(int folder, const char *path, int flags) {
    if ((path[0] == '/' ? of_path(path) : of_fd(folder)) && fault(NAMES, __func__) < 0) return -1;
    return REAL(unlinkat)(folder, path, flags);
}
int unlink(const char *path) {
    if (of_path(path) && fault(NAMES, __func__) < 0) return -1;
    return REAL(unlink)(path);
}
