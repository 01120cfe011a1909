/* kernels.h - the arithmetic that the core is made of: one table of functions for each instruction set and precision.
 *
 * Conventions, for every entry:
 *  - matrices are row-major with a leading dimension ("ld", in elements); a row's elements are the "lanes";
 *  - a count of lanes, called n or width, is a multiple of SMM_LANES, so that no kernel has a remainder loop over lanes. All other
 *    counts (rows, slots, channels, the inner dimension of a product) are any number >= 1 (0 where said);
 *  - rows that a kernel loads or stores as vectors start at multiples of a vector and so does their ld; arrays read element by
 *    element (broadcast) need no alignment;
 *  - outputs do not overlap inputs unless an argument is said to be in place;
 *  - sums are taken in an order that depends on the arguments' sizes alone;
 *  - no entry allocates, fails, starts a thread or keeps state.
 *
 * Names of the dimensions: K slots, D channels, n lanes (inputs of one block in channel-major arrays: X[d*ldx + i] is channel d of
 * input i), width lanes of rows, one row for each slot or input. This header is included once; smm_kernels_f32 and smm_kernels_f64
 * come from kernels_table.h. */
#ifndef SMM_KERNELS_H
#define SMM_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define SMM_LANES 16 /* elements: a multiple of every set's vectors */
#define SMM_STRIP 32 /* lanes that stand together in a matrix packed for rows_linear */
#define SMM_ALIGN 64 /* bytes */

#define real float
#define SMM_KERNELS smm_kernels_f32
#include "kernels_table.h"
#undef real
#undef SMM_KERNELS
#define real double
#define SMM_KERNELS smm_kernels_f64
#include "kernels_table.h"
#undef real
#undef SMM_KERNELS

/* The table in use: the best set that this machine runs, or the one that the environment variable SMM_SIMD names. Chosen at
 * the first call of any of these functions (call one before starting threads). */
const smm_kernels_f32 *smm_kernels_f32_get(void);
const smm_kernels_f64 *smm_kernels_f64_get(void);

/* Name of the chosen set: "scalar", "avx2", "avx512" or "neon". */
const char *smm_simd_chosen(void);

/* Name of the i-th set that was built, weakest first, or NULL past the last; *supported says whether this machine runs it. */
const char *smm_simd_built(size_t i, int *supported);

/* Choose a set by name (NULL or "": the best). Returns 0, or -1 if it is unknown, not built or not supported, and then
 * changes nothing. Not to be called while another thread computes. */
int smm_simd_select(const char *name);

#endif
