/* kernels_scalar_f32.c - the kernels for any machine, in float. */
#include "sets.h"

#define real float
#define SET_NAME "scalar"
#define TABLE_TYPE smm_kernels_f32
#define TABLE smm_table_scalar_f32
#include "vec_scalar.h"
#include "kernels_tpl.h"
