/* kernels_avx512_f32.c - the kernels for x86-64 with AVX512, in float. */
#include "kernels.h"
#include "sets.h"

#ifdef SMM_HAVE_AVX512
#include <math.h>
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
#endif
#define real float
#define SET_NAME "avx512"
#define TABLE_TYPE smm_kernels_f32
#define TABLE smm_table_avx512_f32
#include "vec_avx512.h"
#include "kernels_tpl.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
typedef int smm_no_avx512_f32; /* a translation unit may not be empty */
#endif
