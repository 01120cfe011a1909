/* sets.h - which sets of kernels are built, and what their source files share. dispatch.c finds out
 * which of them this machine runs. */
#ifndef SMM_SETS_H
#define SMM_SETS_H

#include "kernels.h"

#ifndef __GNUC__
#error "the kernels need GCC or Clang"
#endif

/* A function of compile-time constants, unrolled by them: always a part of its caller. */
#define INLINE static inline __attribute__((always_inline))
/* A loop that is unrolled, for constant bounds. */
#define UNROLL_FOR _Pragma("GCC unroll 16") for

#ifdef __x86_64__
#define SMM_HAVE_AVX2
#define SMM_HAVE_AVX512
#endif
#ifdef __aarch64__
#define SMM_HAVE_NEON
#endif

extern const smm_kernels_f32 smm_table_scalar_f32, smm_table_avx2_f32, smm_table_avx512_f32,
    smm_table_avx512_bf16_f32, smm_table_neon_f32;
extern const smm_kernels_f64 smm_table_scalar_f64, smm_table_avx2_f64, smm_table_avx512_f64,
    smm_table_neon_f64;

#endif
