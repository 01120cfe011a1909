/* kernels_table.h - the table of kernels for one precision; included by kernels.h with `real` and
 * SMM_KERNELS defined. Conventions in kernels.h. */
typedef struct {
    const char *name;

    /* C[i,j] (+)= sum_p A[i,p] B[p,j],   i < m, j < n, p < k; k may be 0.
     * A is read element by element at A[i*a_row + p*a_col], B and C by rows.
     * accumulate 0 overwrites C. */
    void (*gemm)(size_t m, size_t n, size_t k, const real *A, size_t a_row, size_t a_col,
                 const real *B, size_t ldb, real *C, size_t ldc, int accumulate);

    /* Y = W X + b;  with relu, max(Y, 0), where a NaN stays.
     * W (out,in) is read element by element; b (out), or NULL for 0; X (in,n); Y (out,n), not X. */
    void (*linear)(size_t out, size_t n, size_t in, const real *W, size_t ldw, const real *b,
                   const real *X, size_t ldx, real *Y, size_t ldy, int relu);

    /* Y[r,:] (+)= sum_p X[r,p] P[p,:] + bias,   r < rows, p < k; k may be 0.
     * With relu, max(Y, 0), where a NaN stays. accumulate 0 overwrites Y.
     * X is read element by element; bias (width), or NULL for 0. P (k,width) is packed in strips of
     * SMM_STRIP lanes, each (k,SMM_STRIP) row-major; the last strip may be narrower. */
    void (*rows_linear)(size_t rows, size_t width, size_t k, const real *X, size_t ldx,
                        const real *P, const real *bias, real *Y, size_t ldy, int accumulate,
                        int relu);

    /* Squared distances, two operations per term:
     *     out[k,i] = sum_d (scale[k,d] X[d,i] + shift[k,d])^2.
     * scale and shift (K,D) have leading dimension ldp and are broadcast. */
    void (*sqdist)(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                   const real *shift, size_t ldp, real *out, size_t ldo);

    /* The same without cancellation where scale*point is large, three operations per term:
     *     out[k,i] = sum_d ((X[d,i] - point[k,d]) scale[k,d])^2. */
    void (*sqdist_exact)(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                         const real *point, size_t ldp, real *out, size_t ldo);

    /* Softmax over the K rows, in place:
     *     y[k,i] = mul L[k,i] + base[k];   L[k,i] = exp(y[k,i]) / sum_k exp(y[k,i]).
     * base may hold -INFINITY, which makes the result exactly 0, but not for every k. With K > 1, a
     * lane where no y exceeds -1e37 (float64: -1e307) becomes NaN. Lanes >= valid become 0.
     * sums[k] += the sum of the result over valid lanes. lse, unless NULL, gets
     * log sum_k exp(y[k,i]), and 0 in lanes >= valid. */
    void (*softmax)(size_t K, size_t n, size_t valid, real *L, size_t ldl, real mul,
                    const real *base, real *sums, real *lse);

    /* Responsibilities of the released code, in place, for mul <= 0 and L >= 0:
     *     e[k,i] = exp(mul L[k,i]);   Z[i] = sum_k (e[k,i] + eps) prior[k];
     *     L[k,i] = (e[k,i] + eps) prior[k] / Z[i].
     * sums as above. ratio (ld ldl), unless NULL, gets e[k,i] prior[k] / Z[i]. */
    void (*softmax_linear)(size_t K, size_t n, size_t valid, real *L, size_t ldl, real mul,
                           real eps, const real *prior, real *sums, real *ratio);

    /* Backward of either, in place:
     *     g[k,i] = a[k] dgamma[k,i] + c[k];   dot[i] = sum_k gamma[k,i] g[k,i];
     *     dgamma[k,i] = factor[k,i] (g[k,i] - dot[i]).
     * factor is gamma for softmax and ratio for softmax_linear.
     * sums[k] += the sum of the result over all lanes (pad lanes have gamma = 0). */
    void (*softmax_backward)(size_t K, size_t n, const real *gamma, const real *factor,
                             real *dgamma, size_t ld, const real *a, const real *c, real *sums);

    /* m1[k,:] += sum_i G[k,i] V[i,:];   m2[k,:] += sum_i G[k,i] V[i,:]^2;   i < rows.
     * G (K,rows) is broadcast; V (rows,width) is row-major. */
    void (*moments)(size_t K, size_t rows, size_t width, const real *G, size_t ldg, const real *V,
                    size_t ldv, real *m1, real *m2, size_t ldm);

    /* The same centred at a point of each slot: V[i,:] - point[k,:] (ld ldm) in place of V[i,:]. */
    void (*moments_about)(size_t K, size_t rows, size_t width, const real *G, size_t ldg,
                          const real *V, size_t ldv, const real *point, real *m1, real *m2,
                          size_t ldm);

    /* out[k,i] = sum_d (A[k,d] X[d,i] + E[k,d]) X[d,i];  A, E (ld ldp) broadcast. */
    void (*quad)(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *A,
                 const real *E, size_t ldp, real *out, size_t ldo);

    /* The same centred at a point of each slot: X[d,i] - point[k,d] (ld ldp) in place of X[d,i]. */
    void (*quad_about)(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *A,
                       const real *E, const real *point, size_t ldp, real *out, size_t ldo);

    /* out[d,i] += sum_k G[k,i] (A[k,d] X[d,i] + E[k,d]);  A, E (ld ldp) broadcast. */
    void (*spread)(size_t K, size_t D, size_t n, const real *G, size_t ldg, const real *X,
                   size_t ldx, const real *A, const real *E, size_t ldp, real *out, size_t ldo);

    /* The same centred at a point of each slot: X[d,i] - point[k,d] (ld ldp) in place of X[d,i]. */
    void (*spread_about)(size_t K, size_t D, size_t n, const real *G, size_t ldg, const real *X,
                         size_t ldx, const real *A, const real *E, const real *point, size_t ldp,
                         real *out, size_t ldo);

    /* LayerNorm of every lane over its D channels (channel-major):
     *     Y[d,i] = (X[d,i] - mean[i]) rstd[i] gain[d] + bias[d],   rstd = 1 / sqrt(variance + eps),
     * the variance from the centred values. Y may be X. mean and rstd (n) are outputs. */
    void (*norm)(size_t D, size_t n, const real *X, size_t ldx, const real *gain, const real *bias,
                 real eps, real *Y, size_t ldy, real *mean, real *rstd);

    /* Its backward:
     *     g = dY[d,i] gain[d];   xhat = (X - mean) rstd;
     *     dX[d,i] = rstd (g - mean_d(g) - xhat mean_d(g xhat));
     *     dgain[d] += sum_i dY xhat;   dbias[d] += sum_i dY.
     * Sums are over all n lanes (dY is 0 in pad lanes). dX may be dY. */
    void (*norm_backward)(size_t D, size_t n, const real *X, size_t ldx, const real *gain,
                          const real *mean, const real *rstd, const real *dY, size_t ldy, real *dX,
                          size_t lddx, real *dgain, real *dbias);

    /* LayerNorm of each row over its channels: the lanes j < width where ones[j] is 1. In the other
     * lanes ones, X, gain and bias are 0, and Y becomes 0. mean and rstd (rows) are outputs. */
    void (*norm_rows)(size_t rows, size_t width, size_t channels, const real *ones, const real *X,
                      size_t ldx, const real *gain, const real *bias, real eps, real *Y, size_t ldy,
                      real *mean, real *rstd);

    /* Its backward in two parts, as norm_backward: dX; and the sums over rows, dgain and dbias.
     * dY, dX, dgain and dbias are 0 in lanes that are no channels. */
    void (*norm_rows_backward)(size_t rows, size_t width, size_t channels, const real *ones,
                               const real *X, size_t ldx, const real *gain, const real *mean,
                               const real *rstd, const real *dY, size_t ldy, real *dX, size_t lddx);
    void (*norm_rows_sums)(size_t rows, size_t width, const real *X, size_t ldx, const real *mean,
                           const real *rstd, const real *dY, size_t ldy, real *dgain, real *dbias);

    /* out[r] += sum_i X[r,i], r < rows, i < n. */
    void (*row_sums)(size_t rows, size_t n, const real *X, size_t ldx, real *out);

    /* out[j] += sum_r X[r,j], r < rows, j < width. */
    void (*column_sums)(size_t rows, size_t width, const real *X, size_t ldx, real *out);

    /* Y[d,i] (+)= scale[d] X[d,i] + shift[d],   d < D, i < n; scale NULL is 1. accumulate 0
     * overwrites Y. Y may be X. */
    void (*affine)(size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                   const real *shift, real *Y, size_t ldy, int accumulate);

    /* Y[i] += X[i] over n. */
    void (*add)(size_t n, const real *X, real *Y);

    /* dX[r,i] = X[r,i] > 0 ? dX[r,i] : 0, in place; X is the result of linear with relu. */
    void (*relu_backward)(size_t rows, size_t n, const real *X, size_t ldx, real *dX, size_t lddx);

    /* T[c,r] = A[r,c], r < rows, c < cols; T's lanes rows..n-1 become 0.
     * Row r of A is at A + r*lda, or at A + index[r]*lda unless index is NULL; A needs no
     * alignment. */
    void (*transpose_in)(size_t rows, size_t cols, size_t n, const real *A, size_t lda,
                         const size_t *index, real *T, size_t ldt);

    /* A[r,c] = T[c,r] - shift[c], r < rows, c < cols; shift NULL is 0. A's lanes cols..width-1
     * become 0. A needs no alignment. */
    void (*transpose_out)(size_t rows, size_t cols, size_t width, const real *T, size_t ldt,
                          const real *shift, real *A, size_t lda);

    /* A slot's weighted mean and variance, computed in double, with weights g_i + eps, normalised.
     * From m1 = sum_i g_i t_i and m2 = sum_i g_i t_i^2, where t is centred at point,
     * sum = sum_i g_i, and values (2 width): the sums of all `count` values and of their squares.
     *     shift = (m1 + eps (values - count point)) / (sum + eps count);
     *     mean = centre + point + shift;   point += shift;
     *     variance = max(second moment about the old point - shift^2, 0).
     * Returns whether that is accurate: shift^2 <= 16 (variance + floor) everywhere (NaN aside). */
    int (*mean_variance)(size_t width, double sum, double eps, double count, double floor,
                         const real *m1, const real *m2, const real *values, const real *centre,
                         real *point, real *mean, real *variance);

    /* scale (K,width) holds log standard deviations and is overwritten:
     *     log_det[k] = sum_d scale[k,d];   scale = exp(-scale);   shift = -q scale.
     * Returns the largest |shift| (NaN aside). */
    real (*precision)(size_t K, size_t width, real *scale, const real *q, real *shift, size_t ld,
                      real *log_det);

    /* A GRU cell from its products i and g (rows, 3 width), with the gates r, z, n in PyTorch's
     * order, and the hidden state (ld ldh); s is the sigmoid:
     *     r = s(i_r + g_r);   z = s(i_z + g_z);   n = tanh(i_n + r g_n);   h = n + z (hidden - n).
     * saved (rows, 5 width) gets r, z, g_n, n, h. */
    void (*gru)(size_t rows, size_t width, const real *gates_in, const real *gates_hidden,
                const real *hidden, size_t ldh, real *saved);

    /* Its backward from d_h (rows, width): the gradients of both products (rows, 3 width), and that
     * part of the gradient of hidden (rows, width) which does not pass through a product. */
    void (*gru_backward)(size_t rows, size_t width, const real *saved, const real *hidden,
                         size_t ldh, const real *d_h, real *d_gates_in, real *d_gates_hidden,
                         real *d_hidden);

    /* Of float alone: X (rows,n) rounded to bfloat16, ties to even, two columns at a time: Y[r,i/2]
     * has X[r,i] in its lower half, X[r,i+1] in the upper; a column that is missing is 0. */
    void (*narrow)(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *Y, size_t ldy);

    /* The same of two rows at a time, Y[r/2,i]. */
    void (*narrow_pairs)(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *Y, size_t ldy);

    /* As narrow, turned: T[i/2,r]. Rows are padded with zeros to a multiple of 16. */
    void (*narrow_turned)(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *T,
                          size_t ldt);

    /* The same in tiles of SMM_TILE rows, each (n/2,SMM_TILE) row-major, with zeros for rows that
     * are missing. From a tile to the next there is room for ldt pairs of each row. */
    void (*narrow_tiles)(size_t rows, size_t n, const real *X, size_t ldx, uint32_t *T, size_t ldt);

    /* C[i,j] (+)= sum_p A[i,p] B[p,j] + bias[i],   i < m, j < n, p < k, of bfloat16 factors,
     * summed in float. A (m,k) is what narrow_tiles gives, lda its ldt; B (k,n) what narrow_pairs
     * gives. bias: NULL for 0; with relu, max(C, 0). accumulate 0 overwrites C, 1 ignores bias.
     */
    void (*product16)(size_t m, size_t n, size_t k, const uint32_t *A, size_t lda,
                      const uint32_t *B, size_t ldb, const real *bias, real *C, size_t ldc,
                      int accumulate, int relu);

    /* Y[r,:] (+)= sum_p X[r,p] P[p,:] + bias, as rows_linear, of X rounded to bfloat16, summed in
     * float. P is packed in strips too, each (k/2,SMM_STRIP), of pairs of rows as narrow_pairs
     * makes them. accumulate 1 adds bias too. */
    void (*rows_product16)(size_t rows, size_t width, size_t k, const real *X, size_t ldx,
                           const uint32_t *P, const real *bias, real *Y, size_t ldy, int accumulate,
                           int relu);

    /* Elementwise in place over n, with a relative error of a few ulp. NaN stays NaN; exp overflows
     * to +inf and underflows to 0; log(0) is -inf, the log of a negative number NaN. */
    void (*exp)(size_t n, real *x);
    void (*log)(size_t n, real *x);
} SMM_KERNELS;
