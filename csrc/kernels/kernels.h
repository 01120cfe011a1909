/* kernels.h - the arithmetic of the core: one table of functions for each instruction set and
 * precision.
 *
 * Conventions, for every entry:
 *  - Matrices are row-major with a leading dimension ("ld", in elements). A row's elements are its
 *    "lanes".
 *  - A count of lanes, n or width, is a multiple of SMM_LANES, so that no kernel has a remainder
 *    loop over lanes. Any other count (rows, slots, channels, the inner dimension of a product) is
 *    any number >= 1, or 0 where an entry says so.
 *  - Rows that are loaded or stored as vectors start at multiples of a vector, and their ld is such
 *    a multiple. Arrays that are read element by element (broadcast) need no alignment.
 *  - Outputs do not overlap inputs unless an entry says "in place".
 *  - The order of a sum depends on the sizes alone.
 *  - No entry allocates, fails, starts a thread or has state.
 *
 * Dimensions: K slots; D channels; n lanes, the inputs of one block in channel-major arrays, where
 * X[d*ldx + i] is channel d of input i; width lanes in arrays with a row for each slot or input. */
#ifndef SMM_KERNELS_H
#define SMM_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define SMM_LANES 16 /* elements: a multiple of every set's vectors */
#define SMM_TILE 12  /* rows of a tile of a matrix packed for product16 */
#define SMM_STRIP 32 /* lanes of a strip of a matrix packed for rows_linear */
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

/* The table in use: the set that the environment variable SMM_SIMD names, if this machine runs it,
 * else the best one. It is chosen at the first call of any function below; call one before starting
 * threads. */
const smm_kernels_f32 *smm_kernels_f32_get(void);
const smm_kernels_f64 *smm_kernels_f64_get(void);

/* Name of the chosen set: "scalar", "avx2", "avx512" or "neon". */
const char *smm_simd_chosen(void);

/* Name of the i-th set that was built, weakest first, or NULL past the last. *supported says
 * whether this machine runs it. */
const char *smm_simd_built(size_t i, int *supported);

/* Choose a set by name; NULL or "" is the best. Returns 0, or -1 if the set is unknown, not built
 * or not supported, and then changes nothing. Not to be called while another thread computes. */
int smm_simd_select(const char *name);

#endif
