/* kernels_neon_f64.c - the kernels for AArch64, in double. */
#include "sets.h"

#ifdef SMM_HAVE_NEON
#define real double
#define REAL_IS_DOUBLE
#define SET_NAME "neon"
#define TABLE_TYPE smm_kernels_f64
#define TABLE smm_table_neon_f64
#include "vec_neon.h"
#include "kernels_tpl.h"
#else
typedef int smm_no_neon_f64; /* a translation unit may not be empty */
#endif
