/* vec_avx2.h - vectors of AVX2 with FMA, in the precision that REAL_IS_DOUBLE chooses. vec_scalar.h
 * defines the wrappers. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "sets.h"

/* Everything from here to the end of kernels_tpl.h is compiled for these instructions. */
#define VEC_TARGET
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#ifdef REAL_IS_DOUBLE
typedef __m256d vec;
#define VEC_OP(name) _mm256_##name##_pd
#define VEC_WIDTH 4
#define VEC_ALL 0xf
/* 2^n for an integer n in range: n + 1.5 2^52 has n in its low bits */
#define vec_power2(n)                                                                       \
    _mm256_castsi256_pd(_mm256_slli_epi64(                                                  \
        _mm256_add_epi64(_mm256_castpd_si256(_mm256_add_pd((n), _mm256_set1_pd(0x1.8p52))), \
                         _mm256_set1_epi64x(1023)),                                         \
        52))
/* the biased exponent beside the bits of 2^52 is the number 2^52 + exponent */
#define vec_exponent(a)                                                                    \
    _mm256_sub_pd(                                                                         \
        _mm256_castsi256_pd(_mm256_or_si256(_mm256_srli_epi64(_mm256_castpd_si256(a), 52), \
                                            _mm256_castpd_si256(_mm256_set1_pd(0x1p52)))), \
        _mm256_set1_pd(0x1p52 + 1023))
#define vec_mantissa(a)                                                                           \
    _mm256_or_pd(_mm256_and_pd((a), _mm256_castsi256_pd(_mm256_set1_epi64x(0x000fffffffffffff))), \
                 _mm256_set1_pd(1))
#else
typedef __m256 vec;
#define VEC_OP(name) _mm256_##name##_ps
#define VEC_WIDTH 8
#define VEC_ALL 0xff
#define vec_power2(n)    \
    _mm256_castsi256_ps( \
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23))
#define vec_exponent(a) \
    _mm256_cvtepi32_ps( \
        _mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(a), 23), _mm256_set1_epi32(127)))
#define vec_mantissa(a)                                                                  \
    _mm256_or_ps(_mm256_and_ps((a), _mm256_castsi256_ps(_mm256_set1_epi32(0x007fffff))), \
                 _mm256_set1_ps(1))
#define vec_bits(p) _mm256_castsi256_ps(_mm256_load_si256((const __m256i *)(const void *)(p)))
#define vec_upper(a) _mm256_and_ps((a), _mm256_castsi256_ps(_mm256_set1_epi32(-65536)))
#define vec_lower(a) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16))
#endif
#define VEC_REGISTERS 16
#define vec_greater(a, b, x, y) VEC_OP(blendv)((y), (x), VEC_OP(cmp)((a), (b), _CMP_GT_OQ))
#define vec_all_within(a, low, high)                                   \
    (VEC_OP(movemask)(VEC_OP(and)(VEC_OP(cmp)((a), (low), _CMP_GE_OQ), \
                                  VEC_OP(cmp)((a), (high), _CMP_LE_OQ))) == VEC_ALL)
#define vec_round(a) VEC_OP(round)((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

#include "vec_x86.h"

static inline real vec_sum(vec a) {
    real t[VEC_WIDTH];
    VEC_OP(storeu)(t, a);
    for (int w = VEC_WIDTH / 2; w; w /= 2)
        for (int i = 0; i < w; i++) t[i] += t[i + w];
    return t[0];
}
