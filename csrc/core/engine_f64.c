/* engine_f64.c - the core in double: the templates, read in the order in which data flows. */
#include <math.h>
#include <string.h>

#include "core.h"
#include "parallel.h"

#define real double
#define LOG log
#define SMM_T(name) name##_f64
#define KERNELS smm_kernels_f64
#define KERNELS_GET smm_kernels_f64_get

#include "params_tpl.h"
#include "inputs_tpl.h"
#include "slots_tpl.h"
#include "image_tpl.h"
#include "forward_tpl.h"
#include "backward_tpl.h"
#include "engine_tpl.h"
