/* test_kernels.c - every kernel of every set against double sums in plain order, at every remainder; run by `make check`.
 *
 * An error is bounded by a few roundings of the sum of magnitudes, the bound that any order of summation keeps. Buffers have
 * guard zones whose bytes must not change. */
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
