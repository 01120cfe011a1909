/* bench_kernels.c - the roofline of every kernel of the chosen set in float32, on data in cache, as
 * a Markdown table: operations, bytes read and written, operations a byte, GFLOP/s. `make bench`.
 * */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels.h"

enum { LANES = 64, MOST = 256 };
#define ALIGNED __attribute__((aligned(64)))
static float X[MOST * LANES] ALIGNED, V[LANES * MOST] ALIGNED, G[64 * LANES] ALIGNED,
    L[64 * LANES] ALIGNED;
static float P[64 * MOST] ALIGNED, Q[64 * MOST] ALIGNED, R[64 * MOST] ALIGNED,
    m1[64 * MOST] ALIGNED, m2[64 * MOST] ALIGNED;
static float out[MOST * MOST] ALIGNED, vec[MOST] ALIGNED, sums[MOST] ALIGNED;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* the machine may be shared */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define BENCH(name, flops, numbers, call)                                               \
    do {                                                                                \
        double best = 1e9;                                                              \
        for (int round = 0; round < 60; round++) {                                      \
            const double begin = seconds();                                             \
            for (int i = 0; i < 50; i++) call;                                          \
            const double taken = (seconds() - begin) / 50;                              \
            best = taken < best ? taken : best;                                         \
        }                                                                               \
        const double work = (double)(flops), bytes = 4.0 * (double)(numbers);           \
        printf("| %s | %.0f | %.1f | %.1f | %.2f | %.1f |\n", name, work, bytes / 1024, \
               work / bytes, 1e6 * best, 1e-9 * work / best);                           \
    } while (0)

static void bench(const smm_kernels_f32 *k, size_t K, size_t D) {
    const size_t n = LANES, w = (D + 15) / 16 * 16, nkd = n * K * D;
    for (size_t i = 0; i < sizeof L / sizeof *L; i++) G[i] = L[i] = (float)(rand() % 97) / 97;
    for (size_t i = 0; i < sizeof X / sizeof *X; i++) X[i] = V[i] = (float)(rand() % 97) / 97;
    for (size_t i = 0; i < 64 * MOST; i++) P[i] = Q[i] = R[i] = 1e-3f * (float)(rand() % 97);
    printf("\nK = %zu, D = %zu:\n\n| kernel | FLOPs | KiB | FLOPs a byte | us | GFLOP/s |\n| --- | "
           "--- | --- | --- | --- | --- |\n",
           K, D);
    BENCH("sqdist (2 operations)", 4 * nkd, n * D + 2 * K * D + n * K,
          k->sqdist(K, D, n, X, n, P, Q, w, L, n));
    BENCH("sqdist_exact (2 counted)", 4 * nkd, n * D + 2 * K * D + n * K,
          k->sqdist_exact(K, D, n, X, n, P, Q, w, L, n));
    BENCH("quad", 4 * nkd, n * D + 2 * K * D + n * K, k->quad(K, D, n, X, n, P, Q, w, L, n));
    BENCH("quad_about", 4 * nkd, n * D + 3 * K * D + n * K,
          k->quad_about(K, D, n, X, n, P, Q, R, w, L, n));
    BENCH("spread", 4 * nkd, n * K + 3 * n * D + 2 * K * D,
          k->spread(K, D, n, G, n, X, n, P, Q, w, out, n));
    BENCH("spread_about", 4 * nkd, n * K + 3 * n * D + 3 * K * D,
          k->spread_about(K, D, n, G, n, X, n, P, Q, R, w, out, n));
    BENCH("moments", 4 * nkd, n * K + n * D + 4 * K * D,
          k->moments(K, n, w, G, n, V, w, m1, m2, w));
    BENCH("moments_about (2 counted)", 4 * nkd, n * K + n * D + 5 * K * D,
          k->moments_about(K, n, w, G, n, V, w, P, m1, m2, w));
    BENCH("softmax (20 a term)", 20 * n * K, 2 * n * K,
          k->softmax(K, n, n, L, n, -0.5f, P, sums, NULL));
    BENCH("softmax_backward (6 a term)", 6 * n * K, 4 * n * K,
          k->softmax_backward(K, n, G, G, L, n, P, Q, sums));
    BENCH("gemm D x D x 64 (projection)", 2 * n * D * D, D * D + 2 * n * D,
          k->gemm(D, n, D, P, D, 1, X, n, out, n, 0));
    BENCH("gemm transposed", 2 * n * D * D, D * D + 2 * n * D,
          k->gemm(D, n, D, P, 1, D, X, n, out, n, 0));
    BENCH("gemm D x D over 64 (weights)", 2 * n * D * D, 2 * n * D + 2 * D * D,
          k->gemm(D, w, n, X, n, 1, V, w, out, w, 1));
    BENCH("gemm K x 64 x D (logits)", 2 * nkd, K * D + n * D + n * K,
          k->gemm(K, n, D, P, w, 1, X, n, L, n, 0));
    BENCH("gemm K x D over 64 (sums)", 2 * nkd, n * K + n * D + 2 * K * D,
          k->gemm(K, w, n, G, n, 1, V, w, m1, w, 1));
    BENCH("norm (8 a term)", 8 * n * D, 2 * n * D,
          k->norm(D, n, X, n, P, Q, 1e-5f, out, n, vec, sums));
    BENCH("norm_backward (14 a term)", 14 * n * D, 3 * n * D,
          k->norm_backward(D, n, X, n, P, vec, sums, V, n, out, n, m1, m2));
    BENCH("transpose_in (1 a term)", n * D, 2 * n * D,
          k->transpose_in(n, D, n, V, D, NULL, out, n));
    BENCH("transpose_out (1 a term)", n * D, 2 * n * D,
          k->transpose_out(n, D, w, X, n, NULL, out, w));
    BENCH("rows_linear (D x D)", 2 * K * w * D, w * D + K * D + K * w,
          k->rows_linear(K, w, D, V, w, out, NULL, m1, w, 0, 0));
    BENCH("gru (1 a term)", K * w, 12 * K * w, k->gru(K, w, P, Q, V, w, out));
}

int main(void) {
    const smm_kernels_f32 *k = smm_kernels_f32_get();
    printf("%s\n", k->name);
    bench(k, 10, 64);
    bench(k, 12, 192);
    bench(k, 13, 33);
    return 0;
}
