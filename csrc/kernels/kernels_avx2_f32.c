/* kernels_avx2_f32.c - the kernels for x86-64 with AVX2, in float. */
#include "sets.h"

#ifdef SMM_HAVE_AVX2
#define real float
#define SET_NAME "avx2"
#define TABLE_TYPE smm_kernels_f32
#define TABLE smm_table_avx2_f32
#include "vec_avx2.h"
#include "kernels_tpl.h"
#else
typedef int smm_no_avx2_f32; /* a translation unit may not be empty */
#endif
