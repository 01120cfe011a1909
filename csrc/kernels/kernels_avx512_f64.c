/* kernels_avx512_f64.c - the kernels for x86-64 with AVX-512, in double. */
#include "sets.h"

#ifdef SMM_HAVE_AVX512
#define real double
#define REAL_IS_DOUBLE
#define SET_NAME "avx512"
#define TABLE_TYPE smm_kernels_f64
#define TABLE smm_table_avx512_f64
#include "vec_avx512.h"
#include "kernels_tpl.h"
#else
typedef int smm_no_avx512_f64; /* a translation unit may not be empty */
#endif
