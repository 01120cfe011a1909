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

/* The set whose results must have the same bits: plain multiply-adds and conversions. */
static const smm_kernels_f32 *plain_set(const smm_kernels_f32 *k) {
#ifdef SMM_HAVE_AVX512
    if (!strcmp(k->name, "avx512")) return &smm_table_avx512_f32;
#endif
    return k;
}

/* A product's result beside its definition, in doubles of the rounded factors. */
static void check_product16(const smm_kernels_f32 *k, const char *name, size_t m, size_t n,
                            size_t p, const float *A, const float *B, size_t ldb,
                            const float *start, const float *C, size_t ldc, int relu) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < ldc; j++) {
            double sum = (double)start[i * ldc + j], size = fabs(sum);
            for (size_t q = 0; j < n && q < p; q++) {
                const double t =
                    (double)nearest16(A[i * p + q]) * (double)nearest16(B[q * ldb + j]);
                sum += t, size += fabs(t);
            }
            if (relu && j < n && sum < 0) sum = 0;
            check_f32(k->name, name, m, n, p, (double)C[i * ldc + j], sum,
                      j < n ? size * (1 + (double)p / 8) : 0);
        }
}

static void test_product16(const smm_kernels_f32 *k, size_t m, size_t n, size_t p, int form) {
    const size_t lda = (p + 1) / 2 + 3, ldb = n + 16, ldc = n + 16;
    const size_t tiles = (m + SMM_TILE - 1) / SMM_TILE * SMM_TILE * lda;
    const int accumulate = form & 1, relu = form & 2;
    float *A = make_f32(m * p), *B = make_f32(p * ldb), *bias = make_f32(m);
    float *C = make_f32(m * ldc), *C0 = make_f32(m * ldc), *start = make_f32(m * ldc);
    uint32_t *a = take(tiles * sizeof *a), *b = take((p + 1) / 2 * ldb * sizeof *b);
    A[0] = 1 + 1.f / 256, A[m * p - 1] = 1 + 3.f / 256; /* ties: down to 1, and up */
    memcpy(C, C0, m * ldc * sizeof *C);
    for (size_t i = 0; i < m * ldc; i++)
        start[i] = accumulate || i % ldc >= n ? C0[i] : bias[i / ldc];
    k->narrow_tiles(m, p, A, p, a, lda);
    k->narrow_pairs(p, n, B, ldb, b, ldb);
    k->product16(m, n, p, a, lda, b, ldb, bias, C, ldc, accumulate, relu);
    check_product16(k, "product16", m, n, p, A, B, ldb, start, C, ldc, relu);
    float *other = make_f32(m * ldc);
    memcpy(other, C0, m * ldc * sizeof *other);
    plain_set(k)->product16(m, n, p, a, lda, b, ldb, bias, other, ldc, accumulate, relu);
    if (memcmp(C, other, m * ldc * sizeof *C)) report(k->name, "product16 bits", m, n, p, 1, 0);
    A[0] = NAN;
    k->narrow_tiles(1, 1, A, p, a, 1);
    k->product16(1, n, 1, a, 1, b, ldb, NULL, C, ldc, 0, 1);
    if (C[0] == C[0]) report(k->name, "product16 NaN", m, n, p, 1, 0);
    drop_all(k->name, "product16");
}

static void test_rows16(const smm_kernels_f32 *k, size_t m, size_t n, size_t p, int form) {
    const size_t ldb = n + 16, ldc = n + 16, pairs = (p + 1) / 2;
    const int accumulate = form & 1, relu = form & 2;
    float *X = make_f32(m * p), *B = make_f32(p * ldb), *bias = make_f32(n);
    float *Y = make_f32(m * ldc), *Y0 = make_f32(m * ldc), *start = make_f32(m * ldc);
    uint32_t *b = take(pairs * n * sizeof *b);
    memcpy(Y, Y0, m * ldc * sizeof *Y);
    for (size_t i = 0; i < m * ldc; i++) {
        start[i] = accumulate || i % ldc >= n ? Y0[i] : 0;
        if (i % ldc < n) start[i] += bias[i % ldc];
    }
    for (size_t j = 0; j < n; j += SMM_STRIP) {
        const size_t width = n - j < SMM_STRIP ? n - j : SMM_STRIP;
        k->narrow_pairs(p, width, B + j, ldb, b + j * pairs, width);
    }
    k->rows_product16(m, n, p, X, p, b, bias, Y, ldc, accumulate, relu);
    check_product16(k, "rows_product16", m, n, p, X, B, ldb, start, Y, ldc, relu);
    float *other = make_f32(m * ldc);
    memcpy(other, Y0, m * ldc * sizeof *other);
    plain_set(k)->rows_product16(m, n, p, X, p, b, bias, other, ldc, accumulate, relu);
    if (memcmp(Y, other, m * ldc * sizeof *Y))
        report(k->name, "rows_product16 bits", m, n, p, 1, 0);
    drop_all(k->name, "rows_product16");
}

/* One pair of bfloat16, from the definition. */
static uint32_t pair16(float lower, float upper) {
    uint32_t low, high;
    const float below = nearest16(lower), above = nearest16(upper);
    memcpy(&low, &below, sizeof low), memcpy(&high, &above, sizeof high);
    return low >> 16 | high;
}

/* Every way of laying out pairs of X (m,n), and what stands beyond them. */
static void test_pairs(const smm_kernels_f32 *k, size_t m, size_t n) {
    const size_t columns = (n + 1) / 2, rows = (m + 1) / 2, ldt = columns + 2;
    const size_t padded = (m + 15) / 16 * 16;
    const size_t tiled = (m + SMM_TILE - 1) / SMM_TILE * SMM_TILE;
    float *X = make_f32(m * n);
    uint32_t *across = take(m * columns * sizeof *across), *down = take(rows * n * sizeof *down);
    uint32_t *turned = take(columns * padded * sizeof *turned);
    uint32_t *tiles = take(tiled * ldt * sizeof *tiles);
    X[0] = 1e-39f, X[m * n - 1] = -1e-39f; /* denormals */
    k->narrow(m, n, X, n, across, columns);
    k->narrow_pairs(m, n, X, n, down, n);
    k->narrow_turned(m, n, X, n, turned, padded);
    k->narrow_tiles(m, n, X, n, tiles, ldt);
    X[0] = 0, X[m * n - 1] = -0.f;
    for (size_t r = 0; r < padded || r < tiled; r++)
        for (size_t p = 0; p < columns; p++) {
            const float upper = r < m && 2 * p + 1 < n ? X[r * n + 2 * p + 1] : 0;
            const uint32_t want = r < m ? pair16(X[r * n + 2 * p], upper) : 0;
            const size_t tile = r / SMM_TILE * ldt * SMM_TILE + p * SMM_TILE + r % SMM_TILE;
            if ((r < m && across[r * columns + p] != want) ||
                (r < padded && turned[p * padded + r] != want) ||
                (r < tiled && tiles[tile] != want))
                report(k->name, "pairs of columns", m, n, r, 1, 0);
        }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i++) {
            const float upper = 2 * r + 1 < m ? X[(2 * r + 1) * n + i] : 0;
            if (down[r * n + i] != pair16(X[2 * r * n + i], upper))
                report(k->name, "pairs of rows", m, n, r, 1, 0);
        }
    drop_all(k->name, "pairs");
}

static void test_narrow(const smm_kernels_f32 *k) {
    for (size_t m = 1; m <= 26; m++)
        for (size_t n = 16; n <= 64; n += 16)
            for (size_t p = 1; p <= 19; p += m % 2 ? 1 : 6) {
                test_product16(k, m, n, p, (int)((p + m) % 4));
                test_rows16(k, m, n, p, (int)((p + m) % 4));
            }
    test_product16(k, 13, 48, 601, 3); /* several panels */
    test_product16(k, 250, 16, 5, 2);  /* more rows than are kept */
    test_rows16(k, 61, 80, 601, 3);
    for (size_t m = 1; m <= 33; m++)
        for (size_t n = 1; n <= 70; n += 3) test_pairs(k, m, n);
    test_pairs(k, 14, 600);
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
