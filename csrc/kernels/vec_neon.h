/* vec_neon.h - vectors of AArch64's Advanced SIMD, in the precision that REAL_IS_DOUBLE chooses.
 * vec_scalar.h defines the wrappers. */
#include <arm_neon.h>
#include <stdint.h>

#include "sets.h"

#ifdef REAL_IS_DOUBLE
typedef float64x2_t vec;
#define VEC_OP(name) name##q_f64
#define VEC_WIDTH 2
#define vec_set(a) vdupq_n_f64(a)
#define vec_power2(n) \
    vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(vcvtnq_s64_f64(n), vdupq_n_s64(1023)), 52))
#define vec_exponent(a)                                                                       \
    vcvtq_f64_s64(vsubq_s64(vreinterpretq_s64_u64(vshrq_n_u64(vreinterpretq_u64_f64(a), 52)), \
                            vdupq_n_s64(1023)))
#define vec_mantissa(a)                                                                 \
    vreinterpretq_f64_u64(                                                              \
        vorrq_u64(vandq_u64(vreinterpretq_u64_f64(a), vdupq_n_u64(0x000fffffffffffff)), \
                  vdupq_n_u64(0x3ff0000000000000)))
#define vec_all_within(a, low, high) \
    (vminvq_u32(                     \
         vreinterpretq_u32_u64(vandq_u64(vcgeq_f64((a), (low)), vcleq_f64((a), (high))))) != 0)
#define vec_sum(a) vaddvq_f64(a)
#else
typedef float32x4_t vec;
#define VEC_OP(name) name##q_f32
#define VEC_WIDTH 4
#define vec_set(a) vdupq_n_f32(a)
#define vec_power2(n) \
    vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23))
#define vec_exponent(a)                                                                       \
    vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_f32(a), 23)), \
                            vdupq_n_s32(127)))
#define vec_mantissa(a)                                                                           \
    vreinterpretq_f32_u32(vorrq_u32(vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0x007fffff)), \
                                    vdupq_n_u32(0x3f800000)))
#define vec_all_within(a, low, high) \
    (vminvq_u32(vandq_u32(vcgeq_f32((a), (low)), vcleq_f32((a), (high)))) != 0)
#define vec_sum(a) vaddvq_f32(a)
#define vec_bits(p) vreinterpretq_f32_u32(vld1q_u32(p))
#define vec_upper(a) \
    vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0xffff0000)))
#define vec_lower(a) vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 16))
#endif
#define VEC_REGISTERS 32
#define vec_load(p) VEC_OP(vld1)(p)
#define vec_load_any(p) VEC_OP(vld1)(p)
#define vec_prefetch(p, ahead) \
    __builtin_prefetch((const char *)((uintptr_t)(p) + (ahead) * sizeof(real)))
#define vec_store_any(p, a) VEC_OP(vst1)((p), (a))
#define vec_store(p, a) VEC_OP(vst1)((p), (a))
#define vec_add(a, b) VEC_OP(vadd)((a), (b))
#define vec_sub(a, b) VEC_OP(vsub)((a), (b))
#define vec_mul(a, b) VEC_OP(vmul)((a), (b))
#define vec_div(a, b) VEC_OP(vdiv)((a), (b))
#define vec_sqrt(a) VEC_OP(vsqrt)(a)
#define vec_greater(a, b, x, y) VEC_OP(vbsl)(VEC_OP(vcgt)((a), (b)), (x), (y))
#define vec_max(a, b) vec_greater((a), (b), (a), (b))
#define vec_min(a, b) vec_greater((b), (a), (a), (b))
#define vec_fma(a, b, c) VEC_OP(vfma)((c), (a), (b))
#define vec_round(a) VEC_OP(vrndn)(a)

#define VEC_SQUARE VEC_WIDTH
INLINE void vec_transpose(const real *const row[VEC_SQUARE], const real *shift, real *to,
                          size_t ld) {
    const vec by = shift ? vec_load_any(shift) : vec_set(0), a = vec_load_any(row[0]),
              b = vec_load_any(row[1]);
#ifdef REAL_IS_DOUBLE
    const vec out[] = {vzip1q_f64(a, b), vzip2q_f64(a, b)};
#else
    const vec c = vec_load_any(row[2]), d = vec_load_any(row[3]);
    const vec ac = vzip1q_f32(a, c), bd = vzip1q_f32(b, d), ac2 = vzip2q_f32(a, c),
              bd2 = vzip2q_f32(b, d);
    const vec out[] = {vzip1q_f32(ac, bd), vzip2q_f32(ac, bd), vzip1q_f32(ac2, bd2),
                       vzip2q_f32(ac2, bd2)};
#endif
    for (int i = 0; i < VEC_SQUARE; i++)
        vec_store_any(to + (size_t)i * ld, shift ? vec_sub(out[i], by) : out[i]);
}
