/* kernels_avx2_f64.c - the kernels for x86-64 with AVX2, in double. */
#include "sets.h"

#ifdef SMM_HAVE_AVX2
#define real double
#define REAL_IS_DOUBLE
#define SET_NAME "avx2"
#define TABLE_TYPE smm_kernels_f64
#define TABLE smm_table_avx2_f64
#include "vec_avx2.h"
#include "kernels_tpl.h"
#else
typedef int smm_no_avx2_f64; /* a translation unit may not be empty */
#endif
