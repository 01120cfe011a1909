/* elementary.h - exp, log and tanh of vectors, to a few units in the last place; included by
 * kernels_tpl.h with the vec_* of a set in force.
 *
 * exp: x = n log 2 + r with |r| <= log(2)/2, and the Taylor series in r.
 * log: x = 2^n m with sqrt(1/2) < m <= sqrt(2), and the series of 2 atanh((m - 1) / (m + 1)).
 * tanh: below 0.625 a rational function (double) or a polynomial (float) with the coefficients of
 *     Cephes (S. Moshier, tanh.c and tanhf.c), else 1 - 2 / (e^2x + 1). */
#include "sets.h"

#ifdef REAL_IS_DOUBLE
#define EXP_LOW (-745.2)
#define EXP_HIGH 709.8
#define LN2_HIGH 0x1.62e42fefa3800p-1
#define LN2_LOW 0x1.ef35793c76730p-45
#define NORMAL_LOW 0x1p-1022
#define NORMAL_HIGH 0x1.fffffffffffffp1023
#define EXP_TERMS 14
#define LOG_TERMS 12
#else
#define EXP_LOW (-104.0f)
#define EXP_HIGH 89.0f
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW (-0x1.bd0106p-13f)
#define NORMAL_LOW 0x1p-126f
#define NORMAL_HIGH 0x1.fffffep127f
#define EXP_TERMS 8
#define LOG_TERMS 6
#endif

#ifdef vec_power2 /* in two halves, which are correct at both ends of the range of exponents */
static inline vec vec_scale2(vec a, vec n) {
    const vec half = vec_round(vec_mul(n, vec_set((real)0.5)));
    return vec_mul(vec_mul(a, vec_power2(half)), vec_power2(vec_sub(n, half)));
}
#endif

static inline vec vec_exp(vec x) {
    static const double inverse_factorial[] = {1,
                                               1,
                                               1.0 / 2,
                                               1.0 / 6,
                                               1.0 / 24,
                                               1.0 / 120,
                                               1.0 / 720,
                                               1.0 / 5040,
                                               1.0 / 40320,
                                               1.0 / 362880,
                                               1.0 / 3628800,
                                               1.0 / 39916800,
                                               1.0 / 479001600,
                                               1.0 / 6227020800};
    x = vec_min(vec_set(EXP_HIGH), vec_max(vec_set(EXP_LOW), x)); /* in this order a NaN stays */
    const vec n = vec_round(vec_mul(x, vec_set((real)1.44269504088896340736)));
    const vec r = vec_fma(n, vec_set(-LN2_LOW), vec_fma(n, vec_set(-LN2_HIGH), x));
    vec p = vec_set((real)inverse_factorial[EXP_TERMS - 1]);
    UNROLL_FOR (int i = EXP_TERMS - 2; i >= 0; i--)
        p = vec_fma(p, r, vec_set((real)inverse_factorial[i]));
    return vec_scale2(p, n);
}

/* For normal x > 0. */
static inline vec vec_log_normal(vec x) {
    const vec root = vec_set((real)1.41421356237309504880), half = vec_set((real)0.5),
              one = vec_set(1);
    vec m = vec_mantissa(x), n = vec_exponent(x);
    n = vec_greater(m, root, vec_add(n, one), n);
    m = vec_greater(m, root, vec_mul(m, half), m);
    const vec s = vec_div(vec_sub(m, one), vec_add(m, one)), z = vec_mul(s, s);
    vec p = vec_set((real)(2.0 / (2 * LOG_TERMS - 1)));
    UNROLL_FOR (int i = LOG_TERMS - 2; i >= 1; i--)
        p = vec_fma(p, z, vec_set((real)(2.0 / (2 * i + 1))));
    const vec tail = vec_mul(vec_mul(s, z), p); /* log m = 2 s + tail */
    return vec_fma(n, vec_set(LN2_HIGH),
                   vec_fma(vec_set(2), s, vec_fma(n, vec_set(LN2_LOW), tail)));
}

static inline vec vec_tanh(vec x) {
    const vec z = vec_mul(x, x), magnitude = vec_max(vec_sub(vec_set(0), x), x), one = vec_set(1),
              two = vec_set(2);
#ifdef REAL_IS_DOUBLE
    vec p =
        vec_fma(vec_fma(vec_set(-9.64399179425052238628e-1), z, vec_set(-9.92877231001918586564e1)),
                z, vec_set(-1.61468768441708447952e3));
    const vec q = vec_fma(vec_fma(vec_add(z, vec_set(1.12811678491632931402e2)), z,
                                  vec_set(2.23548839060100448583e3)),
                          z, vec_set(4.84406305325125486048e3));
    p = vec_div(p, q);
#else
    vec p = vec_fma(vec_set(-5.70498872745e-3f), z, vec_set(2.06390887954e-2f));
    p = vec_fma(p, z, vec_set(-5.37397155531e-2f));
    p = vec_fma(p, z, vec_set(1.33314422036e-1f));
    p = vec_fma(p, z, vec_set(-3.33332819422e-1f));
#endif
    const vec near_zero = vec_fma(vec_mul(x, z), p, x);
    vec far = vec_sub(one, vec_div(two, vec_add(vec_exp(vec_mul(two, magnitude)), one)));
    far = vec_greater(vec_set(0), x, vec_sub(vec_set(0), far), far);
    return vec_greater(magnitude, vec_set((real)0.625), far, near_zero);
}
