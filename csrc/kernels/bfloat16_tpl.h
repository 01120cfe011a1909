/* bfloat16_tpl.h - products of bfloat16 factors with float sums. Included once for each set, where
 * a pair of products is two fused multiply-adds, the upper halves first, and once more with
 * SMM_NATIVE for processors that have an instruction for a pair. The results are the same. */
#ifdef SMM_NATIVE
#define NAME(name) name##_native
#define vec_dot(a, b, c) vec_dot_native((a), (b), (c))
#else
#define NAME(name) name
#define vec_dot(a, b, c) \
    vec_fma(vec_lower(a), vec_lower(b), vec_fma(vec_upper(a), vec_upper(b), (c)))
#endif

INLINE void NAME(product16_tile)(const size_t rows, const size_t vectors, size_t pairs,
                                 const uint16_t *A, size_t lda, const uint32_t *B, size_t ldb,
                                 real *C, size_t ldc, const ends e, size_t first_row) {
    vec c[ROWS_MOST][2];
    UNROLL_FOR (size_t i = 0; i < rows; i++) {
        const vec bias = vec_set(e.bias ? e.bias[first_row + i] : 0);
        UNROLL_FOR (size_t v = 0; v < vectors; v++)
            c[i][v] = e.accumulate ? vec_load(C + i * ldc + v * VEC_WIDTH) : bias;
    }
    for (size_t p = 0; p < pairs; p++) {
        vec b[2];
        UNROLL_FOR (size_t v = 0; v < vectors; v++) b[v] = vec_bits(B + p * ldb + v * VEC_WIDTH);
        UNROLL_FOR (size_t i = 0; i < rows; i++) {
            real pair;
            memcpy(&pair, A + i * lda + 2 * p, sizeof pair);
            const vec a = vec_set(pair);
            UNROLL_FOR (size_t v = 0; v < vectors; v++) c[i][v] = vec_dot(a, b[v], c[i][v]);
        }
    }
    UNROLL_FOR (size_t i = 0; i < rows; i++)
        UNROLL_FOR (size_t v = 0; v < vectors; v++) /* in this order a NaN stays */
            vec_store(C + i * ldc + v * VEC_WIDTH, e.relu ? vec_max(vec_set(0), c[i][v]) : c[i][v]);
}

INLINE void NAME(product16_strip)(const size_t vectors, size_t m, size_t pairs, const uint16_t *A,
                                  size_t lda, const uint32_t *B, size_t ldb, real *C, size_t ldc,
                                  const ends e) {
    for (size_t i = 0, rows; i < m; i += rows) {
        rows = tile_rows(m - i, ROWS_MOST);
#define CALL(r) \
    NAME(product16_tile)(r, vectors, pairs, A + i * lda, lda, B, ldb, C + i * ldc, ldc, e, i)
        CASES(rows, CALL)
#undef CALL
    }
}

static void NAME(bfloat16_product)(size_t m, size_t n, size_t k, const uint16_t *A, size_t lda,
                                   const uint32_t *B, size_t ldb, const real *bias, real *C,
                                   size_t ldc, int accumulate, int relu) {
    const size_t pairs = (k + 1) / 2;
    for (size_t p = 0, panel; p < pairs; p += panel) {
        panel = tile_rows(pairs - p, PANEL);
        const ends e = {p ? 1 : accumulate, bias, NULL, p + panel >= pairs && relu};
        size_t j = 0;
        for (; j + 2 * VEC_WIDTH <= n; j += 2 * VEC_WIDTH)
            NAME(product16_strip)(2, m, panel, A + 2 * p, lda, B + p * ldb + j, ldb, C + j, ldc, e);
        if (j < n)
            NAME(product16_strip)(1, m, panel, A + 2 * p, lda, B + p * ldb + j, ldb, C + j, ldc, e);
    }
}

#ifndef SMM_NATIVE
/* The nearest bfloat16, ties to even, in the upper half; a NaN stays one. */
static inline uint32_t rounded16(real x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t nearest = bits + 0x7fff + ((bits >> 16) & 1);
    return ((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : nearest) & 0xffff0000;
}

static void narrow_rows(size_t rows, size_t n, const real *X, size_t ldx, uint16_t *Y, size_t ldy) {
    for (size_t r = 0; r < rows; r++, X += ldx, Y += ldy) {
        for (size_t i = 0; i < n; i++) Y[i] = (uint16_t)(rounded16(X[i]) >> 16);
        if (n % 2) Y[n] = 0;
    }
}

static void narrow_row_pairs(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *P,
                             size_t ldp) {
    for (size_t r = 0; r < rows; r += 2, P += ldp) {
        const real *restrict one = X + r * ldx, *restrict other = one + ldx;
        uint32_t *restrict to = P;
        if (r + 1 < rows)
            for (size_t i = 0; i < n; i++) to[i] = rounded16(one[i]) >> 16 | rounded16(other[i]);
        else
            for (size_t i = 0; i < n; i++) to[i] = rounded16(one[i]) >> 16;
    }
}
#endif

#undef NAME
#undef vec_dot
