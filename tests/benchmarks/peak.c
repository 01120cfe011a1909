/* peak.c - FLOP/s of independent fused multiply-adds on one thread, in the widest vectors; with an
 * argument, of multiply-adds of bfloat16 pairs, or 0 without an instruction for them. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <time.h>

#define real float
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Twelve chains hide the latency of two units of four or five cycles. */
#define MEASURE(name, vec, width, set, fma, sum)                                              \
    static double name(void) {                                                                \
        double best = 0;                                                                      \
        for (int repeat = 0; repeat < 30; repeat++) {                                         \
            vec c[12];                                                                        \
            const vec a = set(1.000001f), b = set(1e-7f);                                     \
            for (int i = 0; i < 12; i++) c[i] = set((float)i);                                \
            const double begin = seconds();                                                   \
            for (int n = 0; n < 200000; n++)                                                  \
                _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) c[i] = fma(c[i], a, b); \
            const double rate = 200000.0 * 12 * 2 * width / (seconds() - begin);              \
            for (int i = 1; i < 12; i++) c[0] = fma(c[0], a, c[i]);                           \
            if (sum(c[0]) == 12345.f) printf("\n"); /* the result is used */                  \
            best = rate > best ? rate : best;                                                 \
        }                                                                                     \
        return best;                                                                          \
    }

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f")
MEASURE(peak_avx512, __m512, 16, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps)
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bf16")
#define dot_pairs(c, a, b) _mm512_dpbf16_ps((c), (__m512bh)(a), (__m512bh)(b))
MEASURE(peak_pairs, __m512, 32, _mm512_set1_ps, dot_pairs, _mm512_reduce_add_ps)
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
MEASURE(peak_avx2, __m256, 8, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32)
#pragma GCC pop_options
#endif

static float set_scalar(float a) { return a; }
static float fma_scalar(float a, float b, float c) { return a * b + c; }
static float sum_scalar(float a) { return a; }
MEASURE(peak_scalar, float, 1, set_scalar, fma_scalar, sum_scalar)

int main(int argc, char **argv) {
    double rate = 0;
    (void)argv;
#if defined(__x86_64__)
    if (argc > 1) {
        printf("%.4g\n", __builtin_cpu_supports("avx512bf16") ? peak_pairs() : 0);
        return 0;
    }
    if (__builtin_cpu_supports("avx512f")) rate = peak_avx512();
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) rate = peak_avx2();
#endif
    printf("%.4g\n", rate > 0 ? rate : peak_scalar());
    return 0;
}
