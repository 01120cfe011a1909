/* kernels_tpl.h - the body of every kernel, once, for the vectors and the precision in force.
 * kernels_table.h has their contracts; a vec_*.h comes before this file.
 *
 * The large ones share a pattern: a tile of slots (or rows) times two vectors of lanes has its sums
 * in registers over the whole inner dimension, and the values of a slot are broadcast. Tiles are
 * INLINE functions of constants, so that the compiler unrolls them and no sum leaves its register.
 * Rows are divided evenly among as few tiles as the registers allow. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "sets.h"

/* Rows of a tile: two vectors of sums for each, and room for operands. */
#define ROWS_MOST (VEC_REGISTERS == 32 ? 12 : 5)
#define PANEL 128

#ifdef REAL_IS_DOUBLE
#define MATH(name) name
#else
#define MATH(name) name##f
#endif

#ifndef VEC_LIBM
#include "elementary.h"
#endif

/* CASES(n, call) is call(n) with n as a constant. */
/* clang-format off */
#define CASE(rows, call) case rows: call(rows); break;
#define CASES_TO_5(call) CASE(1, call) CASE(2, call) CASE(3, call) CASE(4, call) CASE(5, call)
#define CASES_TO_12(call) CASES_TO_5(call) \
    CASE(6, call) CASE(7, call) CASE(8, call) CASE(9, call) \
    CASE(10, call) CASE(11, call) CASE(12, call)
/* clang-format on */
#if VEC_REGISTERS == 32
#define CASES(n, call) \
    switch (n) { CASES_TO_12(call) }
#else
#define CASES(n, call) \
    switch (n) { CASES_TO_5(call) }
#endif

/* Rows of the next tile when `left` rows remain: as even as possible. */
static inline size_t tile_rows(size_t left, size_t most) {
    const size_t tiles = (left + most - 1) / most;
    return (left + tiles - 1) / tiles;
}

/* How the sums of a product begin and end. */
typedef struct {
    int accumulate;    /* begin with the values of C, else */
    const real *bias;  /* with bias[row], or 0 if NULL; */
    const real *lanes; /* add lanes[lane] unless NULL; */
    int relu;          /* end with max(sum, 0) */
} ends;

INLINE void gemm_tile(const size_t rows, const size_t vectors, size_t k, const real *A,
                      size_t a_row, size_t a_col, const real *B, size_t ldb, real *C, size_t ldc,
                      const ends e, size_t first_row) {
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
    for (size_t p = 0; p < k; p++) {
        vec b[2];
        UNROLL_FOR (size_t v = 0; v < vectors; v++) b[v] = vec_load(B + p * ldb + v * VEC_WIDTH);
        UNROLL_FOR (size_t i = 0; i < rows; i++) {
            const vec a = vec_set(A[i * a_row + p * a_col]);
            UNROLL_FOR (size_t v = 0; v < vectors; v++) c[i][v] = vec_fma(a, b[v], c[i][v]);
        }
    }
    UNROLL_FOR (size_t i = 0; i < rows; i++)
        UNROLL_FOR (size_t v = 0; v < vectors; v++) /* in this order a NaN stays */
            vec_store(C + i * ldc + v * VEC_WIDTH, e.relu ? vec_max(vec_set(0), c[i][v]) : c[i][v]);
}

/* All rows of a strip of lanes. */
INLINE void gemm_strip(const size_t vectors, size_t m, size_t k, const real *A, size_t a_row,
                       size_t a_col, const real *B, size_t ldb, real *C, size_t ldc, const ends e) {
    for (size_t i = 0, rows; i < m; i += rows) {
        rows = tile_rows(m - i, ROWS_MOST);
#define CALL(r) \
    gemm_tile(r, vectors, k, A + i * a_row, a_row, a_col, B, ldb, C + i * ldc, ldc, e, i)
        CASES(rows, CALL)
#undef CALL
    }
}

/* In panels of the inner dimension, so that a strip of B stays in the L1 cache: its rows are ldb
 * apart and map to few of its sets. */
static void product(size_t m, size_t n, size_t k, const real *A, size_t a_row, size_t a_col,
                    const real *B, size_t ldb, real *C, size_t ldc, const ends all) {
    for (size_t p = 0, panel; p < k || p == 0; p += panel) {
        panel = k ? tile_rows(k - p, PANEL) : 0;
        const ends e = {p ? 1 : all.accumulate, all.bias, NULL, p + panel >= k && all.relu};
        size_t j = 0;
        for (; j + 2 * VEC_WIDTH <= n; j += 2 * VEC_WIDTH)
            gemm_strip(2, m, panel, A + p * a_col, a_row, a_col, B + p * ldb + j, ldb, C + j, ldc,
                       e);
        if (j < n)
            gemm_strip(1, m, panel, A + p * a_col, a_row, a_col, B + p * ldb + j, ldb, C + j, ldc,
                       e);
        if (!k) return;
    }
}

static void gemm(size_t m, size_t n, size_t k, const real *A, size_t a_row, size_t a_col,
                 const real *B, size_t ldb, real *C, size_t ldc, int accumulate) {
    const ends e = {accumulate, NULL, NULL, 0};
    product(m, n, k, A, a_row, a_col, B, ldb, C, ldc, e);
}

static void linear(size_t out, size_t n, size_t in, const real *W, size_t ldw, const real *b,
                   const real *X, size_t ldx, real *Y, size_t ldy, int relu) {
    const ends e = {0, b, NULL, relu};
    product(out, n, in, W, ldw, 1, X, ldx, Y, ldy, e);
}

static void rows_linear(size_t rows, size_t width, size_t k, const real *X, size_t ldx,
                        const real *P, const real *bias, real *Y, size_t ldy, int accumulate,
                        int relu) {
    for (size_t j = 0; j < width; j += SMM_STRIP, P += k * SMM_STRIP) {
        const size_t ld = width - j < SMM_STRIP ? width - j : SMM_STRIP;
        for (size_t i = 0; i < ld; i += 2 * VEC_WIDTH) {
            const ends e = {accumulate, NULL, bias ? bias + j + i : NULL, relu};
            if (i + 2 * VEC_WIDTH <= ld)
                gemm_strip(2, rows, k, X, ldx, 1, P + i, ld, Y + j + i, ldy, e);
            else gemm_strip(1, rows, k, X, ldx, 1, P + i, ld, Y + j + i, ldy, e);
        }
    }
}

/* Sums over channels of a function of X[d,i] and two or three values of (k,d), which are broadcast:
 * the E step and its gradients. */
enum { SQDIST, SQDIST_EXACT, QUAD, QUAD_ABOUT };

INLINE void distance_tile(const int form, const size_t rows, const size_t vectors, size_t D,
                          const real *X, size_t ldx, const real *P, const real *Q, const real *R,
                          size_t ldp, real *out, size_t ldo) {
    vec sum[ROWS_MOST][2];
    UNROLL_FOR (size_t k = 0; k < rows; k++) sum[k][0] = sum[k][1] = vec_set(0);
    for (size_t d = 0; d < D; d++) {
        vec x[2];
        UNROLL_FOR (size_t v = 0; v < vectors; v++) x[v] = vec_load(X + d * ldx + v * VEC_WIDTH);
        UNROLL_FOR (size_t k = 0; k < rows; k++) {
            const vec p = vec_set(P[k * ldp + d]), q = vec_set(Q[k * ldp + d]);
            UNROLL_FOR (size_t v = 0; v < vectors; v++) {
                if (form == SQDIST) {
                    const vec t = vec_fma(x[v], p, q);
                    sum[k][v] = vec_fma(t, t, sum[k][v]);
                } else if (form == SQDIST_EXACT) {
                    const vec t = vec_mul(vec_sub(x[v], q), p);
                    sum[k][v] = vec_fma(t, t, sum[k][v]);
                } else {
                    const vec t = form == QUAD ? x[v] : vec_sub(x[v], vec_set(R[k * ldp + d]));
                    sum[k][v] = vec_fma(vec_fma(p, t, q), t, sum[k][v]);
                }
            }
        }
    }
    UNROLL_FOR (size_t k = 0; k < rows; k++)
        UNROLL_FOR (size_t v = 0; v < vectors; v++)
            vec_store(out + k * ldo + v * VEC_WIDTH, sum[k][v]);
}

INLINE void distance_strip(const int form, const size_t vectors, size_t K, size_t D, const real *X,
                           size_t ldx, const real *P, const real *Q, const real *R, size_t ldp,
                           real *out, size_t ldo) {
    for (size_t k = 0, rows; k < K; k += rows) {
        rows = tile_rows(K - k, ROWS_MOST);
#define CALL(r)                                                          \
    distance_tile(form, r, vectors, D, X, ldx, P + k * ldp, Q + k * ldp, \
                  form == QUAD_ABOUT ? R + k * ldp : R, ldp, out + k * ldo, ldo)
        CASES(rows, CALL)
#undef CALL
    }
}

INLINE void distances(const int form, size_t K, size_t D, size_t n, const real *X, size_t ldx,
                      const real *P, const real *Q, const real *R, size_t ldp, real *out,
                      size_t ldo) {
    size_t i = 0;
    for (; i + 2 * VEC_WIDTH <= n; i += 2 * VEC_WIDTH)
        distance_strip(form, 2, K, D, X + i, ldx, P, Q, R, ldp, out + i, ldo);
    if (i < n) distance_strip(form, 1, K, D, X + i, ldx, P, Q, R, ldp, out + i, ldo);
}

static void sqdist(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                   const real *shift, size_t ldp, real *out, size_t ldo) {
    distances(SQDIST, K, D, n, X, ldx, scale, shift, NULL, ldp, out, ldo);
}

static void sqdist_exact(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                         const real *point, size_t ldp, real *out, size_t ldo) {
    distances(SQDIST_EXACT, K, D, n, X, ldx, scale, point, NULL, ldp, out, ldo);
}

static void quad(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *A,
                 const real *E, size_t ldp, real *out, size_t ldo) {
    distances(QUAD, K, D, n, X, ldx, A, E, NULL, ldp, out, ldo);
}

static void quad_about(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *A,
                       const real *E, const real *point, size_t ldp, real *out, size_t ldo) {
    distances(QUAD_ABOUT, K, D, n, X, ldx, A, E, point, ldp, out, ldo);
}

/* Weighted sums of rows of V and of their squares, a vector of channels and a tile of slots at a
 * time. */
INLINE void moments_tile(const int about, const size_t slots, size_t rows, const real *G,
                         size_t ldg, const real *V, size_t ldv, const real *point, real *m1,
                         real *m2, size_t ldm) {
    vec first[ROWS_MOST], second[ROWS_MOST];
    UNROLL_FOR (size_t k = 0; k < slots; k++) first[k] = second[k] = vec_set(0);
    for (size_t i = 0; i < rows; i++) {
        const vec v = vec_load(V + i * ldv), square = vec_mul(v, v);
        UNROLL_FOR (size_t k = 0; k < slots; k++) {
            const vec g = vec_set(G[k * ldg + i]);
            if (about) {
                const vec t = vec_sub(v, vec_load(point + k * ldm)), gt = vec_mul(g, t);
                first[k] = vec_add(first[k], gt);
                second[k] = vec_fma(gt, t, second[k]);
            } else {
                first[k] = vec_fma(g, v, first[k]);
                second[k] = vec_fma(g, square, second[k]);
            }
        }
    }
    UNROLL_FOR (size_t k = 0; k < slots; k++) {
        vec_store(m1 + k * ldm, vec_add(vec_load(m1 + k * ldm), first[k]));
        vec_store(m2 + k * ldm, vec_add(vec_load(m2 + k * ldm), second[k]));
    }
}

INLINE void moments_all(const int about, size_t K, size_t rows, size_t width, const real *G,
                        size_t ldg, const real *V, size_t ldv, const real *point, real *m1,
                        real *m2, size_t ldm) {
    for (size_t j = 0; j < width; j += VEC_WIDTH)
        for (size_t k = 0, slots; k < K; k += slots) {
            slots = tile_rows(K - k, ROWS_MOST);
#define CALL(r)                                                \
    moments_tile(about, r, rows, G + k * ldg, ldg, V + j, ldv, \
                 about ? point + k * ldm + j : point, m1 + k * ldm + j, m2 + k * ldm + j, ldm)
            CASES(slots, CALL)
#undef CALL
        }
}

static void moments(size_t K, size_t rows, size_t width, const real *G, size_t ldg, const real *V,
                    size_t ldv, real *m1, real *m2, size_t ldm) {
    moments_all(0, K, rows, width, G, ldg, V, ldv, NULL, m1, m2, ldm);
}

static void moments_about(size_t K, size_t rows, size_t width, const real *G, size_t ldg,
                          const real *V, size_t ldv, const real *point, real *m1, real *m2,
                          size_t ldm) {
    moments_all(1, K, rows, width, G, ldg, V, ldv, point, m1, m2, ldm);
}

/* Gradients of inputs: sums over slots, a few channels and two vectors of lanes at a time. */
INLINE void spread_tile(const int about, const size_t channels, const size_t vectors, size_t K,
                        const real *G, size_t ldg, const real *X, size_t ldx, const real *A,
                        const real *E, const real *point, size_t ldp, real *out, size_t ldo) {
    vec x[4][2], sum[4][2];
    UNROLL_FOR (size_t d = 0; d < channels; d++)
        UNROLL_FOR (size_t v = 0; v < vectors; v++) {
            x[d][v] = vec_load(X + d * ldx + v * VEC_WIDTH);
            sum[d][v] = vec_load(out + d * ldo + v * VEC_WIDTH);
        }
    for (size_t k = 0; k < K; k++) {
        vec g[2];
        UNROLL_FOR (size_t v = 0; v < vectors; v++) g[v] = vec_load(G + k * ldg + v * VEC_WIDTH);
        UNROLL_FOR (size_t d = 0; d < channels; d++) {
            const vec a = vec_set(A[k * ldp + d]), e = vec_set(E[k * ldp + d]);
            UNROLL_FOR (size_t v = 0; v < vectors; v++) {
                const vec t = about ? vec_sub(x[d][v], vec_set(point[k * ldp + d])) : x[d][v];
                sum[d][v] = vec_fma(g[v], vec_fma(a, t, e), sum[d][v]);
            }
        }
    }
    UNROLL_FOR (size_t d = 0; d < channels; d++)
        UNROLL_FOR (size_t v = 0; v < vectors; v++)
            vec_store(out + d * ldo + v * VEC_WIDTH, sum[d][v]);
}

INLINE void spread_strip(const int about, const size_t vectors, size_t K, size_t D, const real *G,
                         size_t ldg, const real *X, size_t ldx, const real *A, const real *E,
                         const real *point, size_t ldp, real *out, size_t ldo) {
#define TILE(c)                                                               \
    spread_tile(about, c, vectors, K, G, ldg, X + d * ldx, ldx, A + d, E + d, \
                about ? point + d : point, ldp, out + d * ldo, ldo)
    size_t d = 0;
    if (VEC_REGISTERS == 32)
        for (; d + 4 <= D; d += 4) TILE(4);
    for (; d + 2 <= D; d += 2) TILE(2);
    if (d < D) TILE(1);
#undef TILE
}

INLINE void spread_all(const int about, size_t K, size_t D, size_t n, const real *G, size_t ldg,
                       const real *X, size_t ldx, const real *A, const real *E, const real *point,
                       size_t ldp, real *out, size_t ldo) {
    size_t i = 0;
    for (; i + 2 * VEC_WIDTH <= n; i += 2 * VEC_WIDTH)
        spread_strip(about, 2, K, D, G + i, ldg, X + i, ldx, A, E, point, ldp, out + i, ldo);
    if (i < n) spread_strip(about, 1, K, D, G + i, ldg, X + i, ldx, A, E, point, ldp, out + i, ldo);
}

static void spread(size_t K, size_t D, size_t n, const real *G, size_t ldg, const real *X,
                   size_t ldx, const real *A, const real *E, size_t ldp, real *out, size_t ldo) {
    spread_all(0, K, D, n, G, ldg, X, ldx, A, E, NULL, ldp, out, ldo);
}

static void spread_about(size_t K, size_t D, size_t n, const real *G, size_t ldg, const real *X,
                         size_t ldx, const real *A, const real *E, const real *point, size_t ldp,
                         real *out, size_t ldo) {
    spread_all(1, K, D, n, G, ldg, X, ldx, A, E, point, ldp, out, ldo);
}

/* The end of either softmax: L[k,:] *= factor, and sums[k] += the sum over lanes. */
static void scale_rows(size_t K, size_t n, real *L, size_t ldl, const real *factor, real *sums) {
    for (size_t k = 0; k < K; k++) {
        vec sum = vec_set(0);
        for (size_t i = 0; i < n; i += VEC_WIDTH) {
            const vec y = vec_mul(vec_load(L + k * ldl + i), vec_load(factor + i));
            vec_store(L + k * ldl + i, y);
            sum = vec_add(sum, y);
        }
        sums[k] += vec_sum(sum);
    }
}

#define STRIP 64 /* lanes whose denominators are held at a time */
typedef union {  /* aligned for vectors */
    real at[STRIP];
    vec align[STRIP / VEC_WIDTH];
} strip;

/* Sums over slots are taken in parts of this many, as a single one of a million terms would be off
 * in its third digit. END_PART adds the part that ends at k. */
#define PART 256
#define END_PART(k, K, part, sum)                           \
    if (((k) & (PART - 1)) == PART - 1 || (k) + 1 == (K)) { \
        sum = vec_add(sum, part);                           \
        part = vec_set(0);                                  \
    }

static void softmax(size_t K, size_t n, size_t valid, real *L, size_t ldl, real mul,
                    const real *base, real *sums, real *lse) {
    /* An overflow must not become inf - inf. If all rows overflow, the result is NaN. */
    const vec lowest = vec_set(-(real)(sizeof(real) == 8 ? 1e307 : 1e37)), factor = vec_set(mul);
    for (size_t j = 0; j < n; j += STRIP) {
        strip z;
        const size_t lanes = n - j < STRIP ? n - j : STRIP, real_lanes = valid > j ? valid - j : 0;
        for (size_t i = 0; i < lanes; i += VEC_WIDTH) {
            real *column = L + j + i;
            vec most = lowest, sum = vec_set(0), part = sum;
            for (size_t k = 0; k < K; k++) {
                const vec y =
                    vec_max(lowest, vec_fma(factor, vec_load(column + k * ldl), vec_set(base[k])));
                vec_store(column + k * ldl, y);
                most = vec_max(y, most);
            }
            for (size_t k = 0; k < K; k++) {
                const vec y = vec_exp(vec_sub(vec_load(column + k * ldl), most));
                vec_store(column + k * ldl, y);
                part = vec_add(part, y);
                END_PART(k, K, part, sum)
            }
            if (lse)
                vec_store(lse + j + i, vec_add(most, vec_add(vec_log_normal(sum),
                                                             vec_sub(sum, sum)))); /* NaN stays */
            const vec inverse = vec_div(vec_set(1), sum);
            vec_store(z.at + i,
                      K == 1 ? inverse : vec_greater(most, lowest, inverse, vec_set((real)NAN)));
        }
        for (size_t i = real_lanes; i < lanes; i++) {
            z.at[i] = 0;
            if (lse) lse[j + i] = 0;
        }
        scale_rows(K, lanes, L + j, ldl, z.at, sums);
    }
}

static void softmax_linear(size_t K, size_t n, size_t valid, real *L, size_t ldl, real mul,
                           real eps, const real *prior, real *sums, real *ratio) {
    for (size_t j = 0; j < n; j += STRIP) {
        strip z;
        const size_t lanes = n - j < STRIP ? n - j : STRIP, real_lanes = valid > j ? valid - j : 0;
        for (size_t i = 0; i < lanes; i += VEC_WIDTH) {
            vec sum = vec_set(0), part = sum;
            for (size_t k = 0; k < K; k++) {
                real *at = L + k * ldl + j + i;
                const vec e =
                    vec_mul(vec_exp(vec_mul(vec_set(mul), vec_load(at))), vec_set(prior[k]));
                if (ratio) vec_store(ratio + k * ldl + j + i, e);
                const vec y = vec_add(e, vec_set(eps * prior[k]));
                vec_store(at, y);
                part = vec_add(part, y);
                END_PART(k, K, part, sum)
            }
            vec_store(z.at + i, vec_div(vec_set(1), sum));
        }
        for (size_t i = real_lanes; i < lanes; i++) z.at[i] = 0;
        scale_rows(K, lanes, L + j, ldl, z.at, sums);
        for (size_t k = 0; ratio && k < K; k++)
            for (size_t i = 0; i < lanes; i += VEC_WIDTH) {
                real *at = ratio + k * ldl + j + i;
                vec_store(at, vec_mul(vec_load(at), vec_load(z.at + i)));
            }
    }
}

static void softmax_backward(size_t K, size_t n, const real *gamma, const real *factor,
                             real *dgamma, size_t ld, const real *a, const real *c, real *sums) {
    for (size_t j = 0; j < n; j += STRIP) {
        strip dots;
        const size_t lanes = n - j < STRIP ? n - j : STRIP;
        for (size_t i = 0; i < lanes; i += VEC_WIDTH) {
            vec dot = vec_set(0), part = dot;
            for (size_t k = 0; k < K; k++) {
                const size_t at = k * ld + j + i;
                const vec g = vec_fma(vec_set(a[k]), vec_load(dgamma + at), vec_set(c[k]));
                vec_store(dgamma + at, g);
                part = vec_fma(vec_load(gamma + at), g, part);
                END_PART(k, K, part, dot)
            }
            vec_store(dots.at + i, dot);
        }
        for (size_t k = 0; k < K; k++) {
            vec sum = vec_set(0);
            for (size_t i = 0; i < lanes; i += VEC_WIDTH) {
                const size_t at = k * ld + j + i;
                const vec y = vec_mul(vec_load(factor + at),
                                      vec_sub(vec_load(dgamma + at), vec_load(dots.at + i)));
                vec_store(dgamma + at, y);
                sum = vec_add(sum, y);
            }
            sums[k] += vec_sum(sum);
        }
    }
}

/* LayerNorm over channels, `vectors` vectors of lanes at a time to hide the latency of their sums.
 * */
INLINE void norm_lanes(const size_t vectors, size_t D, const real *X, size_t ldx, const real *gain,
                       const real *bias, real eps, real *Y, size_t ldy, real *mean, real *rstd) {
    const vec count = vec_set(1 / (real)D);
    const vec zero = vec_set(0);
    vec m[4], c[4], s[4];
    UNROLL_FOR (size_t v = 0; v < vectors; v++) m[v] = c[v] = s[v] = zero;
    for (size_t d = 0; d < D; d++)
        UNROLL_FOR (size_t v = 0; v < vectors; v++)
            m[v] = vec_add(m[v], vec_load(X + d * ldx + v * VEC_WIDTH));
    UNROLL_FOR (size_t v = 0; v < vectors; v++) m[v] = vec_mul(m[v], count);
    for (size_t d = 0; d < D; d++)
        UNROLL_FOR (size_t v = 0; v < vectors; v++) {
            const vec t = vec_sub(vec_load(X + d * ldx + v * VEC_WIDTH), m[v]);
            c[v] = vec_add(c[v], t);
            s[v] = vec_fma(t, t, s[v]);
        }
    UNROLL_FOR (size_t v = 0; v < vectors; v++) {
        /* c is what the mean's own rounding left: of equal channels, all that there is. */
        s[v] = vec_max(zero, vec_sub(s[v], vec_mul(c[v], vec_mul(c[v], count))));
        c[v] = vec_mul(c[v], count);
        /* A variance that overflowed gives NaN by inf - inf, not numbers that look right. */
        s[v] = vec_add(vec_div(vec_set(1), vec_sqrt(vec_fma(s[v], count, vec_set(eps)))),
                       vec_sub(s[v], s[v]));
        vec_store(mean + v * VEC_WIDTH, vec_add(m[v], c[v]));
        vec_store(rstd + v * VEC_WIDTH, s[v]);
    }
    for (size_t d = 0; d < D; d++) {
        const vec g = vec_set(gain[d]), b = vec_set(bias[d]);
        UNROLL_FOR (size_t v = 0; v < vectors; v++) {
            const vec t = vec_sub(vec_load(X + d * ldx + v * VEC_WIDTH), m[v]);
            const vec x = vec_mul(vec_sub(t, c[v]), s[v]);
            vec_store(Y + d * ldy + v * VEC_WIDTH, vec_fma(x, g, b));
        }
    }
}

static void norm(size_t D, size_t n, const real *X, size_t ldx, const real *gain, const real *bias,
                 real eps, real *Y, size_t ldy, real *mean, real *rstd) {
    size_t i = 0;
    for (; i + 4 * VEC_WIDTH <= n; i += 4 * VEC_WIDTH)
        norm_lanes(4, D, X + i, ldx, gain, bias, eps, Y + i, ldy, mean + i, rstd + i);
    for (; i < n; i += VEC_WIDTH)
        norm_lanes(1, D, X + i, ldx, gain, bias, eps, Y + i, ldy, mean + i, rstd + i);
}

static void norm_backward(size_t D, size_t n, const real *X, size_t ldx, const real *gain,
                          const real *mean, const real *rstd, const real *dY, size_t ldy, real *dX,
                          size_t lddx, real *dgain, real *dbias) {
    const vec count = vec_set(1 / (real)D);
    for (size_t d = 0; d < D; d++) {
        vec g = vec_set(0), b = vec_set(0);
        for (size_t i = 0; i < n; i += VEC_WIDTH) {
            const vec dy = vec_load(dY + d * ldy + i);
            const vec x =
                vec_mul(vec_sub(vec_load(X + d * ldx + i), vec_load(mean + i)), vec_load(rstd + i));
            g = vec_fma(dy, x, g);
            b = vec_add(b, dy);
        }
        dgain[d] += vec_sum(g);
        dbias[d] += vec_sum(b);
    }
    for (size_t i = 0; i < n; i += VEC_WIDTH) {
        const vec m = vec_load(mean + i), r = vec_load(rstd + i);
        vec s1 = vec_set(0), s2 = vec_set(0);
        for (size_t d = 0; d < D; d++) {
            const vec g = vec_mul(vec_load(dY + d * ldy + i), vec_set(gain[d]));
            const vec x = vec_mul(vec_sub(vec_load(X + d * ldx + i), m), r);
            s1 = vec_add(s1, g);
            s2 = vec_fma(g, x, s2);
        }
        s1 = vec_mul(s1, count), s2 = vec_mul(s2, count);
        for (size_t d = 0; d < D; d++) {
            const vec g = vec_mul(vec_load(dY + d * ldy + i), vec_set(gain[d]));
            const vec x = vec_mul(vec_sub(vec_load(X + d * ldx + i), m), r);
            vec_store(dX + d * lddx + i, vec_mul(r, vec_sub(vec_sub(g, s1), vec_mul(x, s2))));
        }
    }
}

static void norm_rows(size_t rows, size_t width, size_t channels, const real *ones, const real *X,
                      size_t ldx, const real *gain, const real *bias, real eps, real *Y, size_t ldy,
                      real *mean, real *rstd) {
    const real count = 1 / (real)channels;
    for (size_t k = 0; k < rows; k++) {
        vec sum = vec_set(0), rest = vec_set(0), squares = vec_set(0);
        for (size_t j = 0; j < width; j += VEC_WIDTH) sum = vec_add(sum, vec_load(X + k * ldx + j));
        const real m = vec_sum(sum) * count;
        for (size_t j = 0; j < width; j += VEC_WIDTH) {
            const vec t =
                vec_mul(vec_sub(vec_load(X + k * ldx + j), vec_set(m)), vec_load(ones + j));
            rest = vec_add(rest, t);
            squares = vec_fma(t, t, squares);
        }
        const real left = vec_sum(rest), c = left * count; /* as in norm_lanes; so the next two */
        real s = vec_sum(squares) - left * c;
        s = s < 0 ? 0 : s;
        const real r = 1 / MATH(sqrt)(s * count + eps) + (s - s);
        for (size_t j = 0; j < width; j += VEC_WIDTH) {
            const vec t = vec_sub(vec_load(X + k * ldx + j), vec_set(m));
            const vec x = vec_mul(vec_sub(t, vec_set(c)), vec_set(r));
            vec_store(Y + k * ldy + j, vec_fma(x, vec_load(gain + j), vec_load(bias + j)));
        }
        mean[k] = m + c, rstd[k] = r;
    }
}

static void norm_rows_backward(size_t rows, size_t width, size_t channels, const real *ones,
                               const real *X, size_t ldx, const real *gain, const real *mean,
                               const real *rstd, const real *dY, size_t ldy, real *dX,
                               size_t lddx) {
    const real count = 1 / (real)channels;
    for (size_t k = 0; k < rows; k++) {
        const vec m = vec_set(mean[k]), r = vec_set(rstd[k]);
        vec s1 = vec_set(0), s2 = vec_set(0);
        for (size_t j = 0; j < width; j += VEC_WIDTH) {
            const vec g = vec_mul(vec_load(dY + k * ldy + j), vec_load(gain + j));
            const vec x = vec_mul(vec_sub(vec_load(X + k * ldx + j), m), r);
            s1 = vec_add(s1, g);
            s2 = vec_fma(g, x, s2);
        }
        s1 = vec_set(vec_sum(s1) * count), s2 = vec_set(vec_sum(s2) * count);
        for (size_t j = 0; j < width; j += VEC_WIDTH) {
            const vec g = vec_mul(vec_load(dY + k * ldy + j), vec_load(gain + j));
            const vec x = vec_mul(vec_sub(vec_load(X + k * ldx + j), m), r);
            vec_store(dX + k * lddx + j, vec_mul(vec_mul(r, vec_load(ones + j)),
                                                 vec_sub(vec_sub(g, s1), vec_mul(x, s2))));
        }
    }
}

static void norm_rows_sums(size_t rows, size_t width, const real *X, size_t ldx, const real *mean,
                           const real *rstd, const real *dY, size_t ldy, real *dgain, real *dbias) {
    for (size_t j = 0; j < width; j += VEC_WIDTH) {
        vec g = vec_load(dgain + j), b = vec_load(dbias + j);
        for (size_t k = 0; k < rows; k++) {
            const vec dy = vec_load(dY + k * ldy + j);
            const vec x =
                vec_mul(vec_sub(vec_load(X + k * ldx + j), vec_set(mean[k])), vec_set(rstd[k]));
            g = vec_fma(dy, x, g);
            b = vec_add(b, dy);
        }
        vec_store(dgain + j, g);
        vec_store(dbias + j, b);
    }
}

static void column_sums(size_t rows, size_t width, const real *X, size_t ldx, real *out) {
    for (size_t j = 0; j < width; j += VEC_WIDTH) {
        vec sum = vec_load(out + j);
        for (size_t r = 0; r < rows; r++) sum = vec_add(sum, vec_load(X + r * ldx + j));
        vec_store(out + j, sum);
    }
}

static void row_sums(size_t rows, size_t n, const real *X, size_t ldx, real *out) {
    for (size_t r = 0; r < rows; r++) {
        vec sum = vec_set(0);
        for (size_t i = 0; i < n; i += VEC_WIDTH) sum = vec_add(sum, vec_load(X + r * ldx + i));
        out[r] += vec_sum(sum);
    }
}

static void affine(size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                   const real *shift, real *Y, size_t ldy, int accumulate) {
    for (size_t d = 0; d < D; d++) {
        const vec a = vec_set(scale ? scale[d] : 1), b = vec_set(shift[d]);
        for (size_t i = 0; i < n; i += VEC_WIDTH) {
            const vec y = vec_fma(a, vec_load(X + d * ldx + i), b);
            vec_store(Y + d * ldy + i, accumulate ? vec_add(vec_load(Y + d * ldy + i), y) : y);
        }
    }
}

static void add(size_t n, const real *X, real *Y) {
    for (size_t i = 0; i < n; i += VEC_WIDTH)
        vec_store(Y + i, vec_add(vec_load(Y + i), vec_load(X + i)));
}

static void relu_backward(size_t rows, size_t n, const real *X, size_t ldx, real *dX, size_t lddx) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i += VEC_WIDTH) {
            real *at = dX + r * lddx + i;
            vec_store(at,
                      vec_greater(vec_load(X + r * ldx + i), vec_set(0), vec_load(at), vec_set(0)));
        }
}

/* All squares of SMM_LANES rows before the next columns, so that a line of the L1 cache is read and
 * written once. */
static void transpose_in(size_t rows, size_t cols, size_t n, const real *A, size_t lda,
                         const size_t *index, real *T, size_t ldt) {
    const size_t ahead = index ? 0 : n * lda; /* the next n rows are wanted soon */
    for (size_t r0 = 0; r0 < n; r0 += SMM_LANES) {
        const real *row[SMM_LANES] = {NULL};
        const size_t there = rows > r0 ? rows - r0 < SMM_LANES ? rows - r0 : SMM_LANES : 0;
        const size_t squares = there == SMM_LANES ? cols - cols % VEC_SQUARE : 0;
        for (size_t i = 0; i < there; i++) row[i] = A + (index ? index[r0 + i] : r0 + i) * lda;
        for (size_t c = 0; c < squares; c += VEC_SQUARE)
            for (size_t r = 0; r < SMM_LANES; r += VEC_SQUARE) {
                const real *at[VEC_SQUARE];
                UNROLL_FOR (size_t i = 0; i < VEC_SQUARE; i++) {
                    at[i] = row[r + i] + c;
                    if (ahead && c % VEC_WIDTH == 0) vec_prefetch(at[i], ahead);
                }
                vec_transpose(at, NULL, T + c * ldt + r0 + r, ldt);
            }
        for (size_t c = squares; c < cols; c++)
            for (size_t i = 0; i < SMM_LANES; i++) T[c * ldt + r0 + i] = i < there ? row[i][c] : 0;
    }
}

INLINE void transpose_out_rows(const int shifted, size_t rows, size_t cols, const real *T,
                               size_t ldt, const real *shift, real *A, size_t lda) {
    const size_t squares = rows == SMM_LANES ? cols - cols % VEC_SQUARE : 0;
    for (size_t c = 0; c < squares; c += VEC_SQUARE)
        for (size_t r = 0; r < SMM_LANES; r += VEC_SQUARE) {
            const real *row[VEC_SQUARE];
            UNROLL_FOR (size_t i = 0; i < VEC_SQUARE; i++) row[i] = T + (c + i) * ldt + r;
            vec_transpose(row, shifted ? shift + c : NULL, A + r * lda + c, lda);
        }
    for (size_t c = squares; c < cols; c++)
        for (size_t i = 0; i < rows; i++)
            A[i * lda + c] = T[c * ldt + i] - (shifted ? shift[c] : 0);
}

static void transpose_out(size_t rows, size_t cols, size_t width, const real *T, size_t ldt,
                          const real *shift, real *A, size_t lda) {
    for (size_t r = 0; r < rows; r += SMM_LANES, T += SMM_LANES, A += SMM_LANES * lda) {
        const size_t high = rows - r < SMM_LANES ? rows - r : SMM_LANES;
        for (size_t i = 0; cols < width && i < high; i++)
            for (size_t c = cols / VEC_WIDTH * VEC_WIDTH; c < width; c += VEC_WIDTH)
                vec_store_any(A + i * lda + c, vec_set(0));
        if (shift) transpose_out_rows(1, high, cols, T, ldt, shift, A, lda);
        else transpose_out_rows(0, high, cols, T, ldt, NULL, A, lda);
    }
}

static void exp_array(size_t n, real *x) {
    for (size_t i = 0; i < n; i += VEC_WIDTH) vec_store(x + i, vec_exp(vec_load(x + i)));
}

static real precision(size_t K, size_t width, real *scale, const real *q, real *shift, size_t ld,
                      real *log_det) {
    const vec zero = vec_set(0);
    union {
        vec align;
        real at[VEC_WIDTH];
    } most;
    most.align = zero;
    for (size_t k = 0; k < K; k++) {
        vec sum = zero;
        for (size_t d = k * ld; d < k * ld + width; d += VEC_WIDTH) {
            const vec log_std = vec_load(scale + d), s = vec_exp(vec_sub(zero, log_std)),
                      t = vec_mul(vec_load(q + d), s);
            sum = vec_add(sum, log_std);
            vec_store(scale + d, s);
            vec_store(shift + d, vec_sub(zero, t));
            most.align = vec_max(vec_max(t, vec_sub(zero, t)), most.align);
        }
        log_det[k] = vec_sum(sum);
    }
    real largest = 0;
    for (size_t i = 0; i < VEC_WIDTH; i++) largest = most.at[i] > largest ? most.at[i] : largest;
    return largest;
}

static int mean_variance(size_t width, double sum, double eps, double count, double floor,
                         const real *restrict m1, const real *restrict m2,
                         const real *restrict values, const real *restrict centre,
                         real *restrict point, real *restrict mean, real *restrict variance) {
    const real *restrict squares = values + width;
    const double scale = 1 / (sum + eps * count);
    const vec zero = vec_set(0);
    vec most = zero;
    for (size_t first = 0; first < width; first += STRIP) {
        strip excess; /* no branch and no sum, so that the compiler makes vectors of the doubles */
        const size_t end = first + (width - first < STRIP ? width - first : STRIP);
        for (size_t j = first; j < end; j++) {
            const double p = (double)point[j],
                         shift = ((double)m1[j] + eps * ((double)values[j] - count * p)) * scale;
            const double second =
                ((double)m2[j] +
                 eps * ((double)squares[j] - 2 * p * (double)values[j] + count * p * p)) *
                scale;
            const double var = second - shift * shift;
            mean[j] = (real)((double)centre[j] + p + shift);
            variance[j] = (real)var;
            point[j] = (real)(p + shift);
            excess.at[j - first] = (real)(shift * shift - 16 * (var + floor));
        }
        for (size_t j = first; j < end; j += VEC_WIDTH) {
            vec_store(variance + j,
                      vec_max(zero, vec_load(variance + j))); /* in this order a NaN stays */
            most = vec_max(vec_load(excess.at + (j - first)), most);
        }
    }
    return !(vec_sum(most) > 0);
}

static void log_array(size_t n, real *x) {
#ifdef VEC_LIBM
    for (size_t i = 0; i < n; i++) x[i] = MATH(log)(x[i]);
#else
    for (size_t i = 0; i < n; i += VEC_WIDTH) {
        const vec v = vec_load(x + i);
        if (vec_all_within(v, vec_set(NORMAL_LOW), vec_set(NORMAL_HIGH)))
            vec_store(x + i, vec_log_normal(v));
        else
            for (size_t j = i; j < i + VEC_WIDTH; j++) x[j] = MATH(log)(x[j]);
    }
#endif
}

INLINE vec vec_sigmoid(vec x) {
    return vec_div(vec_set(1), vec_add(vec_set(1), vec_exp(vec_sub(vec_set(0), x))));
}

static void gru(size_t rows, size_t width, const real *gates_in, const real *gates_hidden,
                const real *hidden, size_t ldh, real *saved) {
    for (size_t k = 0; k < rows; k++)
        for (size_t j = 0; j < width; j += VEC_WIDTH) {
            const real *i = gates_in + k * 3 * width + j, *g = gates_hidden + k * 3 * width + j;
            real *to = saved + k * 5 * width + j;
            const vec r = vec_sigmoid(vec_add(vec_load(i), vec_load(g)));
            const vec z = vec_sigmoid(vec_add(vec_load(i + width), vec_load(g + width))),
                      g_n = vec_load(g + 2 * width);
            const vec n = vec_tanh(vec_fma(r, g_n, vec_load(i + 2 * width)));
            vec_store(to, r);
            vec_store(to + width, z);
            vec_store(to + 2 * width, g_n);
            vec_store(to + 3 * width, n);
            vec_store(to + 4 * width, vec_fma(z, vec_sub(vec_load(hidden + k * ldh + j), n), n));
        }
}

static void gru_backward(size_t rows, size_t width, const real *saved, const real *hidden,
                         size_t ldh, const real *d_h, real *d_gates_in, real *d_gates_hidden,
                         real *d_hidden) {
    const vec one = vec_set(1);
    for (size_t k = 0; k < rows; k++)
        for (size_t j = 0; j < width; j += VEC_WIDTH) {
            const real *at = saved + k * 5 * width + j;
            real *di = d_gates_in + k * 3 * width + j, *dg = d_gates_hidden + k * 3 * width + j;
            const vec r = vec_load(at), z = vec_load(at + width), g_n = vec_load(at + 2 * width),
                      n = vec_load(at + 3 * width);
            const vec dh = vec_load(d_h + k * width + j), rest = vec_mul(dh, vec_sub(one, z));
            const vec dn = vec_mul(rest, vec_sub(one, vec_mul(n, n)));
            const vec dz = vec_mul(vec_mul(rest, z), vec_sub(vec_load(hidden + k * ldh + j), n));
            const vec dr = vec_mul(vec_mul(dn, g_n), vec_mul(r, vec_sub(one, r)));
            vec_store(di, dr);
            vec_store(di + width, dz);
            vec_store(di + 2 * width, dn);
            vec_store(dg, dr);
            vec_store(dg + width, dz);
            vec_store(dg + 2 * width, vec_mul(dn, r));
            vec_store(d_hidden + k * width + j, vec_mul(dh, z));
        }
}

#ifdef REAL_IS_DOUBLE
#define OF_PAIRS(suffix) .narrow = NULL
#else
#define OF_PAIRS(suffix)                                                                   \
    .narrow = narrow_rows##suffix, .narrow_pairs = narrow_row_pairs##suffix,               \
    .narrow_turned = narrow_turned_rows##suffix, .narrow_tiles = narrow_row_tiles##suffix, \
    .product16 = bfloat16_product##suffix, .rows_product16 = bfloat16_rows##suffix
#include "bfloat16_tpl.h"
#endif

/* clang-format off */
#define TABLE_OF(suffix) { \
    .name = SET_NAME, \
    .gemm = gemm, \
    .linear = linear, \
    .rows_linear = rows_linear, \
    .sqdist = sqdist, \
    .sqdist_exact = sqdist_exact, \
    .softmax = softmax, \
    .softmax_linear = softmax_linear, \
    .softmax_backward = softmax_backward, \
    .moments = moments, \
    .moments_about = moments_about, \
    .quad = quad, \
    .quad_about = quad_about, \
    .spread = spread, \
    .spread_about = spread_about, \
    .norm = norm, \
    .norm_backward = norm_backward, \
    .norm_rows = norm_rows, \
    .norm_rows_backward = norm_rows_backward, \
    .norm_rows_sums = norm_rows_sums, \
    .row_sums = row_sums, \
    .column_sums = column_sums, \
    .affine = affine, \
    .add = add, \
    .relu_backward = relu_backward, \
    .transpose_in = transpose_in, \
    .transpose_out = transpose_out, \
    .mean_variance = mean_variance, \
    .precision = precision, \
    .gru = gru, \
    .gru_backward = gru_backward, \
    .exp = exp_array, \
    .log = log_array, \
    OF_PAIRS(suffix), \
}
/* clang-format on */

const TABLE_TYPE TABLE = TABLE_OF();

#if defined(__clang__) && defined(VEC_TARGET)
#pragma clang attribute pop
#endif
