/* bfloat16_tpl.h - products of bfloat16 factors with float sums. Included once for each set, where
 * a pair of products is two fused multiply-adds, the upper halves first, and once more with
 * SMM_NATIVE for processors that have an instruction for a pair. The results are the same, but for
 * sums that are denormal, which the instruction makes 0. */
#ifdef SMM_NATIVE
#define NAME(name) name##_native
#define vec_dot(a, b, c) vec_dot_native((a), (b), (c))
#else
#define NAME(name) name
#define vec_dot(a, b, c) \
    vec_fma(vec_lower(a), vec_lower(b), vec_fma(vec_upper(a), vec_upper(b), (c)))
#endif

#ifndef SMM_NATIVE
/* The nearest bfloat16, ties to even, in the upper half; a NaN stays one, and denormals are 0, as
 * they are to the instructions. */
static inline uint32_t rounded16(real x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t size = bits & 0x7fffffff, nearest = bits + 0x7fff + ((bits >> 16) & 1);
    if (size < 0x800000) return bits & 0x80000000;
    return (size > 0x7f800000 ? bits | 0x400000 : nearest) & 0xffff0000;
}

#define AT_ONCE 16 /* rows */

/* T[p][r] = X[r][p] of `rows` rows of pairs: at most AT_ONCE, at least a square of them. */
static void turn_pairs(size_t rows, size_t pairs, const uint32_t (*X)[PANEL], uint32_t *T,
                       size_t ldt) {
    size_t p = 0;
#ifdef VEC_MOVES_BITS
    for (; p + VEC_SQUARE <= pairs; p += VEC_SQUARE)
        for (size_t i = 0; i < rows; i += VEC_SQUARE) {
            const size_t r = i + VEC_SQUARE > rows ? rows - VEC_SQUARE : i; /* some rows twice */
            const real *row[VEC_SQUARE];
            UNROLL_FOR (size_t v = 0; v < VEC_SQUARE; v++) row[v] = (const real *)&X[r + v][p];
            vec_transpose(row, NULL, (real *)T + p * ldt + r, ldt);
        }
#endif
    for (; p < pairs; p++)
        for (size_t r = 0; r < rows; r++) T[p * ldt + r] = X[r][p];
}

#endif

static void NAME(narrow_rows)(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *Y,
                              size_t ldy) {
    for (size_t r = 0; r < rows; r++, X += ldx, Y += ldy) {
        size_t p = 0;
#ifdef SMM_NATIVE
        for (; p + VEC_WIDTH <= n / 2; p += VEC_WIDTH)
            vec_store_pairs(Y + p, vec_narrow_columns(X + 2 * p));
#endif
        for (; p < n / 2; p++) Y[p] = rounded16(X[2 * p]) >> 16 | rounded16(X[2 * p + 1]);
        if (n % 2) Y[n / 2] = rounded16(X[n - 1]) >> 16;
    }
}

static void NAME(narrow_row_pairs)(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *P,
                                   size_t ldp) {
    for (size_t r = 0; r < rows; r += 2, P += ldp) {
        const real *restrict one = X + r * ldx, *restrict other = one + ldx;
        uint32_t *restrict to = P;
        size_t i = 0;
#ifdef SMM_NATIVE
        for (; r + 1 < rows && i + VEC_WIDTH <= n; i += VEC_WIDTH)
            vec_store_pairs(to + i, vec_narrow_rows(one + i, other + i));
#endif
        if (r + 1 < rows)
            for (; i < n; i++) to[i] = rounded16(one[i]) >> 16 | rounded16(other[i]);
        else
            for (; i < n; i++) to[i] = rounded16(one[i]) >> 16;
    }
}

/* `rows` rows of n numbers as columns of pairs, with zeros up to `padded` columns. */
static void NAME(narrow_columns)(size_t rows, size_t padded, size_t n, const real *X, size_t ldx,
                                 uint32_t *T, size_t ldt) {
    uint32_t narrow[AT_ONCE][PANEL];
    const size_t pairs = (n + 1) / 2;
    memset(narrow[rows], 0, (padded - rows) * sizeof *narrow);
    for (size_t p = 0, panel; p < pairs; p += panel) {
        panel = tile_rows(pairs - p, PANEL);
        const size_t valid = p + panel < pairs ? 2 * panel : n - 2 * p;
        NAME(narrow_rows)(rows, valid, X + 2 * p, ldx, narrow[0], PANEL);
        turn_pairs(padded, panel, (const uint32_t (*)[PANEL])narrow, T + p * ldt, ldt);
    }
}

static void NAME(narrow_row_tiles)(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *T,
                                   size_t ldt) {
    for (size_t r = 0; r < rows; r += SMM_TILE) {
        const size_t there = rows - r < SMM_TILE ? rows - r : SMM_TILE;
        NAME(narrow_columns)(there, SMM_TILE, n, X + r * ldx, ldx, T + r * ldt, SMM_TILE);
    }
}

static void NAME(narrow_turned_rows)(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *T,
                                     size_t ldt) {
    for (size_t r = 0; r < rows; r += AT_ONCE) {
        const size_t there = rows - r < AT_ONCE ? rows - r : AT_ONCE;
        NAME(narrow_columns)(there, AT_ONCE, n, X + r * ldx, ldx, T + r, ldt);
    }
}

#ifndef ROWS_KEPT
#define ROWS_KEPT 240 /* of A, whose panel of them stays in the L2 cache for all strips of B */
#endif

INLINE void NAME(product16_tile)(const size_t rows, const size_t vectors, size_t pairs,
                                 const uint32_t *A, const uint32_t *B, size_t ldb, real *C,
                                 size_t ldc, const ends e, size_t first_row) {
    vec c[ROWS_MOST][2];
    UNROLL_FOR (size_t i = 0; i < rows; i++) {
        const vec bias = vec_set(e.bias ? e.bias[first_row + i] : 0);
        UNROLL_FOR (size_t v = 0; v < vectors; v++) {
            c[i][v] = e.accumulate ? vec_load(C + i * ldc + v * VEC_WIDTH) : bias;
            if (e.accumulate)
                vec_prefetch(C + i * ldc + v * VEC_WIDTH, rows * ldc); /* the next tile's */
            if (e.lanes) c[i][v] = vec_add(c[i][v], vec_load(e.lanes + v * VEC_WIDTH));
        }
    }
    for (size_t p = 0; p < pairs; p++, A += SMM_TILE) {
        vec b[2];
        UNROLL_FOR (size_t v = 0; v < vectors; v++) b[v] = vec_bits(B + p * ldb + v * VEC_WIDTH);
        vec_prefetch(A, pairs * SMM_TILE);
        UNROLL_FOR (size_t i = 0; i < rows; i++) {
            real pair;
            memcpy(&pair, A + i, sizeof pair);
            const vec a = vec_set(pair);
            UNROLL_FOR (size_t v = 0; v < vectors; v++) c[i][v] = vec_dot(a, b[v], c[i][v]);
        }
    }
    UNROLL_FOR (size_t i = 0; i < rows; i++)
        UNROLL_FOR (size_t v = 0; v < vectors; v++) /* in this order a NaN stays */
            vec_store(C + i * ldc + v * VEC_WIDTH, e.relu ? vec_max(vec_set(0), c[i][v]) : c[i][v]);
}

/* A strip of lanes; `ld` from a tile of A to the next. */
INLINE void NAME(product16_lanes)(const size_t vectors, size_t m, size_t pairs, const uint32_t *A,
                                  size_t ld, const uint32_t *B, size_t ldb, real *C, size_t ldc,
                                  const ends e) {
    for (size_t i = 0, rows; i < m; i += rows) {
        const size_t at = i % SMM_TILE;
        const size_t left = m - i < SMM_TILE - at ? m - i : SMM_TILE - at;
        rows = tile_rows(left, ROWS_MOST);
#define CALL(r)                                                                                   \
    NAME(product16_tile)(r, vectors, pairs, A + i / SMM_TILE * ld + at, B, ldb, C + i * ldc, ldc, \
                         e, i)
        CASES(rows, CALL)
#undef CALL
    }
}

/* The same, compiled once for both numbers of vectors. */
static void NAME(product16_strip)(size_t vectors, size_t m, size_t pairs, const uint32_t *A,
                                  size_t ld, const uint32_t *B, size_t ldb, real *C, size_t ldc,
                                  const ends e) {
    if (vectors == 2) NAME(product16_lanes)(2, m, pairs, A, ld, B, ldb, C, ldc, e);
    else NAME(product16_lanes)(1, m, pairs, A, ld, B, ldb, C, ldc, e);
}

/* m rows of C, from row `first` on; A begins there. */
static void NAME(product16_rows)(size_t first, size_t m, size_t n, size_t pairs, const uint32_t *A,
                                 size_t ld, const uint32_t *B, size_t ldb, real *C, size_t ldc,
                                 ends e) {
    size_t j = 0;
    if (e.bias) e.bias += first;
    C += first * ldc;
    for (; j + 2 * VEC_WIDTH <= n; j += 2 * VEC_WIDTH)
        NAME(product16_strip)(2, m, pairs, A, ld, B + j, ldb, C + j, ldc, e);
    if (j < n) NAME(product16_strip)(1, m, pairs, A, ld, B + j, ldb, C + j, ldc, e);
}

static void NAME(bfloat16_product)(size_t m, size_t n, size_t k, const uint32_t *A, size_t lda,
                                   const uint32_t *B, size_t ldb, const real *bias, real *C,
                                   size_t ldc, int accumulate, int relu) {
    const size_t pairs = (k + 1) / 2, ld = lda * SMM_TILE;
    for (size_t p = 0, panel; p < pairs; p += panel) {
        panel = tile_rows(pairs - p, PANEL);
        const ends e = {p ? 1 : accumulate, bias, NULL, p + panel >= pairs && relu};
        for (size_t i = 0; i < m; i += ROWS_KEPT) {
            const size_t rows = m - i < ROWS_KEPT ? m - i : ROWS_KEPT;
            const uint32_t *from = A + i * lda + p * SMM_TILE;
            NAME(product16_rows)(i, rows, n, panel, from, ld, B + p * ldb, ldb, C, ldc, e);
        }
    }
}

/* A strip of P is read once for as many rows. */
static void NAME(rows_strips16)(size_t rows, size_t width, size_t k, const real *X, size_t ldx,
                                const uint32_t *P, const real *bias, real *Y, size_t ldy,
                                int accumulate, int relu) {
    uint32_t tiles[4 * SMM_TILE * PANEL];
    const size_t pairs = (k + 1) / 2;
    for (size_t p = 0, panel; p < pairs; p += panel) {
        panel = tile_rows(pairs - p, PANEL);
        const size_t valid = p + panel < pairs ? 2 * panel : k - 2 * p, ld = panel * SMM_TILE;
        NAME(narrow_row_tiles)(rows, valid, X + 2 * p, ldx, tiles, panel);
        for (size_t j = 0; j < width; j += 2 * VEC_WIDTH) {
            const size_t first = j / SMM_STRIP * SMM_STRIP;
            const size_t ldp = width - first < SMM_STRIP ? width - first : SMM_STRIP;
            const uint32_t *from = P + first * pairs + p * ldp + j - first;
            const ends e = {p ? 1 : accumulate, NULL, p || !bias ? NULL : bias + j,
                            p + panel >= pairs && relu};
            if (j + 2 * VEC_WIDTH <= width)
                NAME(product16_strip)(2, rows, panel, tiles, ld, from, ldp, Y + j, ldy, e);
            else NAME(product16_strip)(1, rows, panel, tiles, ld, from, ldp, Y + j, ldy, e);
        }
    }
}

static void NAME(bfloat16_rows)(size_t rows, size_t width, size_t k, const real *X, size_t ldx,
                                const uint32_t *P, const real *bias, real *Y, size_t ldy,
                                int accumulate, int relu) {
    for (size_t i = 0, some; i < rows; i += some) {
        some = tile_rows(rows - i, 4 * SMM_TILE);
        NAME(rows_strips16)(some, width, k, X + i * ldx, ldx, P, bias, Y + i * ldy, ldy, accumulate,
                            relu);
    }
}

#undef NAME
#undef vec_dot
