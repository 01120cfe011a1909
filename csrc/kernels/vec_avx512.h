/* vec_avx512.h - vectors of AVX-512F, in the precision that REAL_IS_DOUBLE chooses. vec_scalar.h
 * defines the wrappers. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include "sets.h"

/* Everything from here to the end of kernels_tpl.h is compiled for these instructions. */
#define VEC_TARGET
#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
#endif

#ifdef REAL_IS_DOUBLE
typedef __m512d vec;
#define VEC_OP(name) _mm512_##name##_pd
#define VEC_WIDTH 8
#define vec_greater(a, b, x, y) \
    _mm512_mask_blend_pd(_mm512_cmp_pd_mask((a), (b), _CMP_GT_OQ), (y), (x))
#define vec_all_within(a, low, high)                                                               \
    ((_mm512_cmp_pd_mask((a), (low), _CMP_GE_OQ) & _mm512_cmp_pd_mask((a), (high), _CMP_LE_OQ)) == \
     0xff)
#else
typedef __m512 vec;
#define VEC_OP(name) _mm512_##name##_ps
#define VEC_WIDTH 16
#define vec_greater(a, b, x, y) \
    _mm512_mask_blend_ps(_mm512_cmp_ps_mask((a), (b), _CMP_GT_OQ), (y), (x))
#define vec_all_within(a, low, high)                                                               \
    ((_mm512_cmp_ps_mask((a), (low), _CMP_GE_OQ) & _mm512_cmp_ps_mask((a), (high), _CMP_LE_OQ)) == \
     0xffff)
/* needs AVX512_BF16 */
#define vec_dot_native(a, b, c) _mm512_dpbf16_ps((c), (__m512bh)(a), (__m512bh)(b))
/* Pairs of 2 VEC_WIDTH columns of a row, or of VEC_WIDTH of two rows. */
#define vec_narrow_columns(x) \
    (__m512i) _mm512_cvtne2ps_pbh(_mm512_loadu_ps((x) + VEC_WIDTH), _mm512_loadu_ps(x))
#define vec_narrow_half(x) _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x)))
#define vec_narrow_rows(one, other) \
    _mm512_or_si512(vec_narrow_half(one), _mm512_slli_epi32(vec_narrow_half(other), 16))
#define vec_store_pairs(p, a) _mm512_storeu_si512((p), (a))
#define vec_bits(p) _mm512_castsi512_ps(_mm512_load_si512(p))
#define vec_upper(a) \
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(-65536)))
#define vec_lower(a) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 16))
#endif
#define VEC_REGISTERS 32
#define vec_sum(a) VEC_OP(reduce_add)(a)
#define vec_round(a) VEC_OP(roundscale)((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define vec_scale2(a, n) VEC_OP(scalef)((a), (n))
#define vec_exponent(a) VEC_OP(getexp)(a)
#define vec_mantissa(a) VEC_OP(getmant)((a), _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src)

#include "vec_x86.h"
