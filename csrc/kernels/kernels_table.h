/* kernels_table.h - the table of kernels for one precision; included by kernels.h with `real` and SMM_KERNELS defined.
 * Conventions in kernels.h. */
typedef struct {
    const char *name;

    /* C[i,j] (+)= sum_p A[i,p] B[p,j]      i < m, j < n, p < k.   k may be 0.
     * A is read element by element at A[i*a_row + p*a_col]; B and C by rows. accumulate 0 overwrites C. */
    void (*gemm)(size_t m, size_t n, size_t k, const real *A, size_t a_row, size_t a_col,
                 const real *B, size_t ldb, real *C, size_t ldc, int accumulate);

    /* Y = W X + b, and max(that, 0) if relu (a NaN stays).   W (out,in), read element by element, b (out) or NULL: 0, X (in,n),
     * Y (out,n); X is not Y. */
    void (*linear)(size_t out, size_t n, size_t in, const real *W, size_t ldw, const real *b,
                   const real *X, size_t ldx, real *Y, size_t ldy, int relu);

    /* Y[r,:] = sum_p X[r,p] P[p,:] + bias, and max(that, 0) if relu (a NaN stays); to what Y holds with accumulate.
     * r < rows, p < k, k may be 0; width lanes, a multiple of SMM_LANES; X is read element by element. P (k,width) lies in strips
     * of SMM_STRIP lanes, each (k,SMM_STRIP) by rows, the last one as wide as what is left. bias (width) or NULL: 0. */
    void (*rows_linear)(size_t rows, size_t width, size_t k, const real *X, size_t ldx,
                        const real *P, const real *bias, real *Y, size_t ldy, int accumulate,
                        int relu);

    /* out[k,i] = sum_d (scale[k,d] X[d,i] + shift[k,d])^2        squared distances, two operations per term.
     * scale and shift (K,D) have leading dimension ldp and are broadcast. */
    void (*sqdist)(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                   const real *shift, size_t ldp, real *out, size_t ldo);

    /* out[k,i] = sum_d ((X[d,i] - point[k,d]) scale[k,d])^2      the same where scale*point is large: no cancellation. */
    void (*sqdist_exact)(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                         const real *point, size_t ldp, real *out, size_t ldo);

    /* Softmax over the K rows, in place:  y[k,i] = mul L[k,i] + base[k];  L[k,i] = exp(y[k,i]) / sum_k exp(y[k,i]).
     * base may hold -INFINITY (the result is then exactly 0), not in every k. Lanes >= valid become 0; of several rows, lanes
     * where no y is above -1e37 (float64: -1e307) become NaN.
     * sums[k] += sum over valid lanes of the result. lse, if not NULL, gets log sum_k exp(y[k,i]) (0 in lanes >= valid). */
    void (*softmax)(size_t K, size_t n, size_t valid, real *L, size_t ldl, real mul,
                    const real *base, real *sums, real *lse);

    /* Responsibilities of the released code, in place:  e = exp(mul L[k,i]);  Z = sum_k (e + eps) prior[k];
     * L[k,i] = (e + eps) prior[k] / Z.  sums as above. ratio, if not NULL (ld ldl), gets e prior[k] / Z. mul <= 0, L >= 0. */
    void (*softmax_linear)(size_t K, size_t n, size_t valid, real *L, size_t ldl, real mul,
                           real eps, const real *prior, real *sums, real *ratio);

    /* Backward of either, in place over dgamma:  g = a[k] dgamma[k,i] + c[k];  dot = sum_k gamma[k,i] g[k,i];
     * dgamma[k,i] = factor[k,i] (g - dot), factor = gamma for softmax and ratio for softmax_linear.
     * sums[k] += sum over all lanes of the result (pad lanes have gamma = 0). */
    void (*softmax_backward)(size_t K, size_t n, const real *gamma, const real *factor,
                             real *dgamma, size_t ld, const real *a, const real *c, real *sums);

    /* m1[k,:] += sum_i G[k,i] V[i,:];  m2[k,:] += sum_i G[k,i] V[i,:]^2        i < rows (any number), width lanes.
     * G (K,rows) is broadcast, V (rows,width) row-major. */
    void (*moments)(size_t K, size_t rows, size_t width, const real *G, size_t ldg, const real *V,
                    size_t ldv, real *m1, real *m2, size_t ldm);

    /* The same about a point of each slot:  t = V[i,:] - point[k,:] (ld ldm);  m1 += G t;  m2 += G t^2. */
    void (*moments_about)(size_t K, size_t rows, size_t width, const real *G, size_t ldg,
                          const real *V, size_t ldv, const real *point, real *m1, real *m2,
                          size_t ldm);

    /* out[k,i] = sum_d (A[k,d] X[d,i] + E[k,d]) X[d,i];  A, E (ld ldp) broadcast. */
    void (*quad)(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *A,
                 const real *E, size_t ldp, real *out, size_t ldo);

    /* The same with t = X[d,i] - point[k,d] (ld ldp) in place of X. */
    void (*quad_about)(size_t K, size_t D, size_t n, const real *X, size_t ldx, const real *A,
                       const real *E, const real *point, size_t ldp, real *out, size_t ldo);

    /* out[d,i] += sum_k G[k,i] (A[k,d] X[d,i] + E[k,d]);  A, E (ld ldp) broadcast. */
    void (*spread)(size_t K, size_t D, size_t n, const real *G, size_t ldg, const real *X,
                   size_t ldx, const real *A, const real *E, size_t ldp, real *out, size_t ldo);

    /* The same with t = X[d,i] - point[k,d] (ld ldp) in place of X. */
    void (*spread_about)(size_t K, size_t D, size_t n, const real *G, size_t ldg, const real *X,
                         size_t ldx, const real *A, const real *E, const real *point, size_t ldp,
                         real *out, size_t ldo);

    /* LayerNorm of every lane over its D channels (channel-major):  Y[d,i] = (X[d,i] - mean[i]) rstd[i] gain[d] + bias[d],
     * rstd = 1 / sqrt(variance + eps), variance from the centred values. Y may be X. mean and rstd (n) are outputs. */
    void (*norm)(size_t D, size_t n, const real *X, size_t ldx, const real *gain, const real *bias,
                 real eps, real *Y, size_t ldy, real *mean, real *rstd);

    /* Its backward: dX[d,i] = rstd (g - mean_d g - xhat mean_d(g xhat)), g = dY[d,i] gain[d], xhat = (X - mean) rstd.
     * dX may be dY. dgain[d] += sum_i dY xhat;  dbias[d] += sum_i dY, over all n lanes (dY is 0 in pad lanes). */
    void (*norm_backward)(size_t D, size_t n, const real *X, size_t ldx, const real *gain,
                          const real *mean, const real *rstd, const real *dY, size_t ldy, real *dX,
                          size_t lddx, real *dgain, real *dbias);

    /* LayerNorm of each row over its channels, those lanes j < width where ones[j] is 1; elsewhere ones, X, gain and bias are 0, and
     * Y becomes 0. mean and rstd (rows) are outputs; otherwise as norm. */
    void (*norm_rows)(size_t rows, size_t width, size_t channels, const real *ones, const real *X,
                      size_t ldx, const real *gain, const real *bias, real eps, real *Y, size_t ldy,
                      real *mean, real *rstd);

    /* Its backward, as norm_backward: dX, and the sums over rows; dY, dX, dgain and dbias are 0 in lanes that are no channels. */
    void (*norm_rows_backward)(size_t rows, size_t width, size_t channels, const real *ones,
                               const real *X, size_t ldx, const real *gain, const real *mean,
                               const real *rstd, const real *dY, size_t ldy, real *dX, size_t lddx);
    void (*norm_rows_sums)(size_t rows, size_t width, const real *X, size_t ldx, const real *mean,
                           const real *rstd, const real *dY, size_t ldy, real *dgain, real *dbias);

    /* out[r] += sum_i X[r,i], r < rows, i < n. */
    void (*row_sums)(size_t rows, size_t n, const real *X, size_t ldx, real *out);

    /* out[j] += sum_r X[r,j], r < rows, j < width. */
    void (*column_sums)(size_t rows, size_t width, const real *X, size_t ldx, real *out);

    /* Y[d,i] = scale[d] X[d,i] + shift[d] (scale NULL: 1), d < D, i < n; accumulate 1 adds it to Y. Y may be X. */
    void (*affine)(size_t D, size_t n, const real *X, size_t ldx, const real *scale,
                   const real *shift, real *Y, size_t ldy, int accumulate);

    /* Y[i] += X[i] over n. */
    void (*add)(size_t n, const real *X, real *Y);

    /* dX[r,i] = X[r,i] > 0 ? dX[r,i] : 0 in place (X: what linear with relu gave). */
    void (*relu_backward)(size_t rows, size_t n, const real *X, size_t ldx, real *dX, size_t lddx);

    /* T[c,r] = A[r,c] (r < rows, c < cols), T's lanes rows..n-1 are set to 0. A's rows are read at A + r*lda, or, where index is
     * not NULL, at A + index[r]*lda; A has no alignment. */
    void (*transpose_in)(size_t rows, size_t cols, size_t n, const real *A, size_t lda,
                         const size_t *index, real *T, size_t ldt);

    /* A[r,c] = T[c,r] - shift[c] (shift NULL: 0), r < rows, c < cols; lanes cols..width-1 of A (r < rows) are set to 0.
     * A has no alignment. */
    void (*transpose_out)(size_t rows, size_t cols, size_t width, const real *T, size_t ldt,
                          const real *shift, real *A, size_t lda);

    /* A slot's weighted mean and the variance about it, in double, from moments m1 = sum_i g_i t, m2 = sum_i g_i t^2 (t about
     * point), sum = sum_i g_i, and values (2 width), the sums of all `count` values and of their squares; every weight is g_i + eps,
     * normalised:
     *     shift = (m1 + eps (values - count point)) / (sum + eps count);   mean = centre + point + shift;   point += shift
     *     variance = max(second moment about point - shift^2, 0)
     * Returns whether it is exact enough: shift^2 <= 16 (variance + floor) everywhere (NaN aside). */
    int (*mean_variance)(size_t width, double sum, double eps, double count, double floor,
                         const real *m1, const real *m2, const real *values, const real *centre,
                         real *point, real *mean, real *variance);

    /* From log standard deviations, in scale, and q (both (K,width)):  log_det[k] = sum_d scale;  scale = e^-scale, in place;
     * shift = -q scale. Returns the largest |shift| (a NaN aside). */
    real (*precision)(size_t K, size_t width, real *scale, const real *q, real *shift, size_t ld,
                      real *log_det);

    /* A GRU's cell from its products i and g (rows, 3 width; gates r, z, n in PyTorch's order) and the hidden state (ld ldh):
     * r = s(i_r + g_r), z = s(i_z + g_z), n = tanh(i_n + r g_n), h = n + z (hidden - n). kept (rows, 5 width) gets r, z, g_n, n, h. */
    void (*gru)(size_t rows, size_t width, const real *gates_in, const real *gates_hidden,
                const real *hidden, size_t ldh, real *kept);

    /* Its backward from d_h (rows, width): gradients of both products (rows, 3 width), and that of hidden but for what comes
     * through its product (rows, width). */
    void (*gru_backward)(size_t rows, size_t width, const real *kept, const real *hidden,
                         size_t ldh, const real *d_h, real *d_gates_in, real *d_gates_hidden,
                         real *d_hidden);

    /* Elementwise in place over n, relative error a few ulp; NaN stays NaN; exp overflows to +inf and
     * underflows to 0, log(0) = -inf, log of a negative number is NaN. */
    void (*exp)(size_t n, real *x);
    void (*log)(size_t n, real *x);
} SMM_KERNELS;
