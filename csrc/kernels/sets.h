/* sets.h - which sets of kernels this build holds; whether the machine runs them is found out in dispatch.c. */
#ifndef SMM_SETS_H
#define SMM_SETS_H

#include "kernels.h"

/* of what is to be a part of its caller, whose constants it is unrolled by */
#define INLINE static inline __attribute__((always_inline))

#define SMM_HAVE_SCALAR 1
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SMM_HAVE_AVX2 1
#define SMM_HAVE_AVX512 1
#endif
#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define SMM_HAVE_NEON 1
#endif

extern const smm_kernels_f32 smm_table_scalar_f32, smm_table_avx2_f32, smm_table_avx512_f32,
    smm_table_neon_f32;
extern const smm_kernels_f64 smm_table_scalar_f64, smm_table_avx2_f64, smm_table_avx512_f64,
    smm_table_neon_f64;

#endif
