/* vec_x86.h - the wrappers that both x86 sets share, in terms of VEC_OP; included by vec_avx2.h and
 * vec_avx512.h. vec_scalar.h defines the wrappers. */
#define vec_set(a) VEC_OP(set1)(a)
#define vec_load(p) VEC_OP(load)(p)
#define vec_load_any(p) VEC_OP(loadu)(p)
#define vec_prefetch(p, ahead) \
    _mm_prefetch((const char *)((uintptr_t)(p) + (ahead) * sizeof(real)), _MM_HINT_T1)
#define vec_store_any(p, a) VEC_OP(storeu)((p), (a))
#define vec_store(p, a) VEC_OP(store)((p), (a))
#define vec_add(a, b) VEC_OP(add)((a), (b))
#define vec_sub(a, b) VEC_OP(sub)((a), (b))
#define vec_mul(a, b) VEC_OP(mul)((a), (b))
#define vec_div(a, b) VEC_OP(div)((a), (b))
#define vec_sqrt(a) VEC_OP(sqrt)(a)
#define vec_max(a, b) VEC_OP(max)((a), (b))
#define vec_min(a, b) VEC_OP(min)((a), (b))
#define vec_fma(a, b, c) VEC_OP(fmadd)((a), (b), (c))

/* vec_transpose is in vectors of AVX for both. Two loads of half a vector save a stage of shuffles
 * each. Processors that split AVX-512 in two run two of these narrow shuffles at a time. */
#ifdef REAL_IS_DOUBLE
#define VEC_SQUARE 4
#define SQUARE_OP(name) _mm256_##name##_pd
#define square_pair(p, q) \
    _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(q), 1)
#else
#define VEC_SQUARE 8
#define SQUARE_OP(name) _mm256_##name##_ps
#define square_pair(p, q) \
    _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(q), 1)
#define square_low(a, b) \
    _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)))
#define square_high(a, b) \
    _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)))
#endif
#define square_store(p, a) \
    SQUARE_OP(storeu)((p), shift ? SQUARE_OP(sub)((a), SQUARE_OP(loadu)(shift)) : (a))

/* Intrinsics may read and write any type: pairs of bfloat16 as numbers too. */
#define VEC_MOVES_BITS

INLINE void vec_transpose(const real *const row[VEC_SQUARE], const real *shift, real *to,
                          size_t ld) {
#ifdef REAL_IS_DOUBLE
    for (int g = 0; g < 4; g += 2, to += 2 * ld) {
        const __m256d a = square_pair(row[0] + g, row[2] + g),
                      b = square_pair(row[1] + g, row[3] + g);
        square_store(to, _mm256_unpacklo_pd(a, b));
        square_store(to + ld, _mm256_unpackhi_pd(a, b));
    }
#else
    for (int g = 0; g < 8; g += 4, to += 4 * ld) {
        const __m256 a = square_pair(row[0] + g, row[4] + g),
                     b = square_pair(row[1] + g, row[5] + g);
        const __m256 c = square_pair(row[2] + g, row[6] + g),
                     d = square_pair(row[3] + g, row[7] + g);
        const __m256 ab = _mm256_unpacklo_ps(a, b), cd = _mm256_unpacklo_ps(c, d);
        const __m256 ab2 = _mm256_unpackhi_ps(a, b), cd2 = _mm256_unpackhi_ps(c, d);
        square_store(to, square_low(ab, cd));
        square_store(to + ld, square_high(ab, cd));
        square_store(to + 2 * ld, square_low(ab2, cd2));
        square_store(to + 3 * ld, square_high(ab2, cd2));
    }
#endif
}
