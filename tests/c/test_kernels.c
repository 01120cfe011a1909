/* test_kernels.c - every kernel of every set against double sums in plain order, at every
 * remainder; run by `make check`.
 *
 * An error is bounded by a few roundings of the sum of magnitudes, a bound that holds for any order
 * of summation. Buffers have guard zones whose bytes must not change. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sets.h"

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

/* The nearest bfloat16, from the definition: of both neighbours, or of two as near the even one. */
static float nearest16(float x) {
    uint32_t low, high;
    float below, above;
    memcpy(&low, &x, sizeof low);
    low &= 0xffff0000, high = low + 0x10000;
    memcpy(&below, &low, sizeof below), memcpy(&above, &high, sizeof above);
    const double down = fabs((double)x - (double)below), up = fabs((double)above - (double)x);
    return down < up || (down == up && !(low & 0x10000)) ? below : above;
}

static void test_products16(const smm_kernels_f32 *k, size_t m, size_t n, size_t p, int form) {
    const size_t lda = p + p % 2 + 2, ldb = n + 16, ldc = n + 16;
    const int accumulate = form & 1, relu = form & 2;
    float *A = make_f32(m * p), *B = make_f32(p * ldb), *bias = make_f32(m);
    float *C = make_f32(m * ldc), *C0 = make_f32(m * ldc);
    uint16_t *a = take(m * lda * sizeof *a);
    uint32_t *b = take((p + 1) / 2 * ldb * sizeof *b);
    A[0] = 1 + 1.f / 256, A[m * p - 1] = 1 + 3.f / 256; /* ties: down to 1, and up */
    memcpy(C, C0, m * ldc * sizeof *C);
    k->narrow(m, p, A, p, a, lda);
    k->narrow_pairs(p, n, B, ldb, b, ldb);
    k->product16(m, n, p, a, lda, b, ldb, bias, C, ldc, accumulate, relu);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < ldc; j++) {
            double sum = j >= n || accumulate ? (double)C0[i * ldc + j] : (double)bias[i];
            double size = fabs(sum);
            for (size_t q = 0; j < n && q < p; q++) {
                const double t =
                    (double)nearest16(A[i * p + q]) * (double)nearest16(B[q * ldb + j]);
                sum += t, size += fabs(t);
            }
            if (relu && j < n && sum < 0) sum = 0;
            check_f32(k->name, "product16", m, n, p, (double)C[i * ldc + j], sum,
                      j < n ? size * (1 + (double)p / 8) : 0);
        }
    float *other = make_f32(m * ldc); /* the same bits by plain multiply-adds */
    memcpy(other, C0, m * ldc * sizeof *other);
#ifdef SMM_HAVE_AVX512
    if (!strcmp(k->name, "avx512")) k = &smm_table_avx512_f32;
#endif
    k->product16(m, n, p, a, lda, b, ldb, bias, other, ldc, accumulate, relu);
    if (memcmp(C, other, m * ldc * sizeof *C)) report(k->name, "product16 bits", m, n, p, 1, 0);
    A[0] = NAN;
    k->narrow(1, 1, A, p, a, lda);
    k->product16(1, n, 1, a, lda, b, ldb, NULL, C, ldc, 0, 1);
    if (C[0] == C[0]) report(k->name, "product16 NaN", m, n, p, 1, 0);
    drop_all(k->name, "product16");
}

static void test_narrow(const smm_kernels_f32 *k) {
    for (size_t m = 1; m <= 26; m++)
        for (size_t n = 16; n <= 64; n += 16)
            for (size_t p = 1; p <= 19; p += m % 2 ? 1 : 6)
                test_products16(k, m, n, p, (int)((p + m) % 4));
    test_products16(k, 13, 48, 601, 3); /* several panels */
}

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
        test_narrow(smm_kernels_f32_get());
        test_all_f64(smm_kernels_f64_get());
        printf("%-8s %s\n", name, failures == before ? "ok" : "FAILED");
    }
    if (smm_simd_select("no such set") != -1) report("-", "select", 0, 0, 0, 1, 0);
    printf("%s\n", failures ? "FAILED" : "all kernels ok");
    return failures != 0;
}
