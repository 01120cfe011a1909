/* kernels_avx512_f32.c - the kernels for x86-64 with AVX-512, in float. */
#include "sets.h"

#ifdef SMM_HAVE_AVX512
#define real float
#define SET_NAME "avx512"
#define TABLE_TYPE smm_kernels_f32
#define TABLE smm_table_avx512_f32
#include "vec_avx512.h"
#include "kernels_tpl.h"

/* With AVX512_BF16, whose instructions multiply pairs of bfloat16: another kernel of products. */
#define SMM_NATIVE
#ifdef __clang__
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16")
#endif
#include "bfloat16_tpl.h"
#ifdef __clang__
#pragma clang attribute pop
#endif

const smm_kernels_f32 smm_table_avx512_bf16_f32 = TABLE_OF(_native);
#else
typedef int smm_no_avx512_f32; /* a translation unit may not be empty */
#endif
