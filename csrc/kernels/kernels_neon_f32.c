/* kernels_neon_f32.c - the kernels for AArch64, in float. */
#include "sets.h"

#ifdef SMM_HAVE_NEON
#define real float
#define SET_NAME "neon"
#define TABLE_TYPE smm_kernels_f32
#define TABLE smm_table_neon_f32
#include "vec_neon.h"
#include "kernels_tpl.h"
#else
typedef int smm_no_neon_f32; /* a translation unit may not be empty */
#endif
