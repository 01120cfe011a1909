/* vec_scalar.h - "vectors" of one element in plain C, which run anywhere and define every wrapper.
 *
 * A comparison with a NaN is false; vec_max and vec_min then return their second argument. */
#include <math.h>
#include <string.h>

#include "sets.h"

typedef real vec;
#define VEC_WIDTH 1
#define VEC_REGISTERS 16
#define vec_set(a) (a)
#define vec_load(p) (*(p))               /* aligned to SMM_ALIGN at the start of a row */
#define vec_load_any(p) (*(p))           /* without alignment */
#define vec_prefetch(p, ahead) ((void)0) /* p[ahead], which need not exist, is wanted soon */
#define vec_store(p, a) ((void)(*(p) = (a)))
#define vec_store_any(p, a) ((void)(*(p) = (a)))
#define vec_add(a, b) ((a) + (b))
#define vec_sub(a, b) ((a) - (b))
#define vec_mul(a, b) ((a) * (b))
#define vec_div(a, b) ((a) / (b))
#define vec_max(a, b) ((a) > (b) ? (a) : (b))
#define vec_min(a, b) ((a) < (b) ? (a) : (b))
#define vec_fma(a, b, c) ((a) * (b) + (c)) /* rounded twice here, once in the other sets */
#define vec_greater(a, b, x, y) ((a) > (b) ? (x) : (y))
#define vec_all_within(a, low, high) ((a) >= (low) && (a) <= (high))
#define vec_sum(a) (a) /* over the elements, in a fixed order */

#ifndef REAL_IS_DOUBLE
/* Pairs of bfloat16 as bits of a float: such a vector from memory, and either half as a float. */
INLINE vec with_bits(uint32_t bits) {
    vec a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
INLINE uint32_t bits_of(vec a) {
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
#define vec_bits(p) with_bits(*(p))
#define vec_upper(a) with_bits(bits_of(a) & 0xffff0000)
#define vec_lower(a) with_bits(bits_of(a) << 16)
#endif

/* to[c * ld + r] = row[r][c] - shift[r] for a square of VEC_SQUARE rows, without alignment; shift
 * NULL is 0. */
#define VEC_SQUARE 1
INLINE void vec_transpose(const real *const row[VEC_SQUARE], const real *shift, real *to,
                          size_t ld) {
    (void)ld;
    *to = *row[0] - (shift ? *shift : 0);
}

#ifdef REAL_IS_DOUBLE
#define vec_sqrt(a) sqrt(a)
#define vec_exp(a) exp(a)
#define vec_log_normal(a) log(a)
#define vec_tanh(a) tanh(a)
#else
#define vec_sqrt(a) sqrtf(a)
#define vec_exp(a) expf(a)
#define vec_log_normal(a) logf(a)
#define vec_tanh(a) tanhf(a)
#endif

/* exp, log and tanh come from libm. The other sets take them from elementary.h, for which they have
 *     vec_round(a)                      the nearest integer;
 *     vec_scale2(a, n)                  a 2^n for an integer n, up to both ends of the range; or
 *     vec_power2(n)                     2^n for an integer n within the range of exponents;
 *     vec_exponent(a), vec_mantissa(a)  of a normal a = mantissa 2^exponent, 1 <= mantissa < 2. */
#define VEC_LIBM
