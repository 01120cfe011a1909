/* refuse.c - malloc and its kin of glibc, some of whose calls fail: to be loaded before it. */
#include <stddef.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void __libc_free(void *);

static __thread long to_come = -1; /* calls of this thread before those that fail; -1: none fail */
static __thread long to_fail, failed;
static long blocks; /* handed out and not given back */

static int refused(void) {
    if (to_come < 0) return 0;
    if (to_come) {
        to_come--;
        return 0;
    }
    failed++;
    if (--to_fail <= 0) to_come = -1;
    return 1;
}

static void *handed(void *memory) {
    if (memory) __atomic_add_fetch(&blocks, 1, __ATOMIC_RELAXED);
    return memory;
}

void *malloc(size_t n) { return refused() ? NULL : handed(__libc_malloc(n)); }
void *calloc(size_t n, size_t size) { return refused() ? NULL : handed(__libc_calloc(n, size)); }
void *realloc(void *memory, size_t n) {
    if (refused()) return NULL;
    void *to = __libc_realloc(memory, n);
    return memory ? to : handed(to);
}
void free(void *memory) {
    if (memory) __atomic_sub_fetch(&blocks, 1, __ATOMIC_RELAXED);
    __libc_free(memory);
}

/* The n-th call from now on fails, and `more` after it. */
void refuse(long n, long more);
void refuse(long n, long more) { failed = 0, to_fail = 1 + more, to_come = n; }

/* No further call fails; how many have. */
long relent(void);
long relent(void) {
    to_come = -1;
    return failed;
}

long blocks_now(void);
long blocks_now(void) { return __atomic_load_n(&blocks, __ATOMIC_RELAXED); }
