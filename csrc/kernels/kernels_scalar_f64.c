/* kernels_scalar_f64.c - the kernels for any machine, in double. */
#include "sets.h"

#define real double
#define REAL_IS_DOUBLE
#define SET_NAME "scalar"
#define TABLE_TYPE smm_kernels_f64
#define TABLE smm_table_scalar_f64
#include "vec_scalar.h"
#include "kernels_tpl.h"
