/* engine_f32.c - the core in float: the templates, read in the order in which data flows. */
#include <math.h>
#include <string.h>

#include "core.h"
#include "parallel.h"

#define real float
#define LOG logf
#define SMM_T(name) name##_f32
#define KERNELS smm_kernels_f32
#define KERNELS_GET smm_kernels_f32_get

#include "params_tpl.h"
#include "inputs_tpl.h"
#include "slots_tpl.h"
#include "image_tpl.h"
#include "forward_tpl.h"
#include "backward_tpl.h"
#include "engine_tpl.h"
