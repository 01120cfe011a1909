/* test_kernels.c - every kernel of every set against double sums in plain order, at every
 * remainder; run by `make check`.
 *
 * An error is bounded by a few roundings of the sum of magnitudes, a bound that holds for any order
 * of summation. Buffers have guard zones whose bytes must not change. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

static unsigned long long state = 88172645463325252ull;
static double uniform(void) /* in [-1, 1) */
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(state >> 11) / 4503599627370496.0 - 1;
}

static int failures;
static void report(const char *set, const char *kernel, size_t a, size_t b, size_t c, double error,
                   double bound) {
    if (failures++ < 20)
        printf("FAIL %s %s sizes %zu %zu %zu: error %g over bound %g\n", set, kernel, a, b, c,
               error, bound);
}

#define GUARD 64
static struct {
    char *block, *at;
    size_t bytes;
} buffers[24];
static size_t buffer_count;

/* A buffer at SMM_ALIGN between guard zones, until drop_all. */
static void *take(size_t bytes) {
    const size_t all = (bytes + SMM_ALIGN - 1) / SMM_ALIGN * SMM_ALIGN;
    char *block = malloc(all + 2 * GUARD + SMM_ALIGN);
    if (!block || buffer_count == sizeof buffers / sizeof *buffers) exit(2);
    const uintptr_t first = (uintptr_t)block + GUARD + SMM_ALIGN - 1;
    char *at = block + (first / SMM_ALIGN * SMM_ALIGN - (uintptr_t)block);
    memset(at - GUARD, 0x5a, all + 2 * GUARD);
    buffers[buffer_count].block = block, buffers[buffer_count].at = at;
    buffers[buffer_count++].bytes = bytes;
    return at;
}

/* Ends a kernel's test: frees all buffers, whose guard zones must be as they were. */
static void drop_all(const char *set, const char *kernel) {
    while (buffer_count--) {
        const char *at = buffers[buffer_count].at, *end = at + buffers[buffer_count].bytes;
        for (size_t i = 0; i < GUARD; i++)
            if (at[(ptrdiff_t)i - GUARD] != 0x5a || end[i] != 0x5a)
                report(set, kernel, buffer_count, i, 0, 1, 0);
        free(buffers[buffer_count].block);
    }
    buffer_count = 0;
}

#define real float
#define T(name) name##_f32
#define EPS 1.2e-7
#define TABLE smm_kernels_f32
#include "test_kernels_tpl.h"
#undef real
#undef T
#undef EPS
#undef TABLE
#define real double
#define T(name) name##_f64
#define EPS 2.3e-16
#define TABLE smm_kernels_f64
#include "test_kernels_tpl.h"

int main(void) {
    int supported;
    const char *name;
    for (size_t i = 0; (name = smm_simd_built(i, &supported)); i++) {
        if (!supported) {
            printf("%-8s not on this machine\n", name);
            continue;
        }
        if (smm_simd_select(name) != 0 || strcmp(smm_simd_chosen(), name))
            report(name, "select", 0, 0, 0, 1, 0);
        const int before = failures;
        test_all_f32(smm_kernels_f32_get());
        test_all_f64(smm_kernels_f64_get());
        printf("%-8s %s\n", name, failures == before ? "ok" : "FAILED");
    }
    if (smm_simd_select("no such set") != -1) report("-", "select", 0, 0, 0, 1, 0);
    printf("%s\n", failures ? "FAILED" : "all kernels ok");
    return failures != 0;
}
