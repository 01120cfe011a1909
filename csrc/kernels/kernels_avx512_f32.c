/* kernels_avx512_f32.c - the kernels for x86-64 with AVX-512, in float. */
#include "sets.h"

#ifdef SMM_HAVE_AVX512
#define real float
#define SET_NAME "avx512"
#define TABLE_TYPE smm_kernels_f32
#define TABLE smm_table_avx512_f32
#include "vec_avx512.h"
#include "kernels_tpl.h"
#else
typedef int smm_no_avx512_f32; /* a translation unit may not be empty */
#endif
