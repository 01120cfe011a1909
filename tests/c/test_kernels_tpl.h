/* test_kernels_tpl.h - the tests for one precision; included by test_kernels.c. */

/* Random numbers in [-1, 1), in a guarded buffer. */
static real *T(make)(size_t count) {
    real *p = take(count * sizeof *p);
    for (size_t i = 0; i < count; i++) p[i] = (real)uniform();
    return p;
}

static void T(check)(const char *set, const char *kernel, size_t a, size_t b, size_t c, double got,
                     double want, double magnitude) {
    const double bound = EPS * 4 * magnitude, error = fabs(got - want);
    if (!(error <= bound)) report(set, kernel, a, b, c, error, bound);
}

static void T(test_gemm)(const TABLE *k, size_t m, size_t n, size_t p, int accumulate) {
    const size_t ldb = n + 16, ldc = n + 16;
    real *A = T(make)(m * (p + 3)), *B = T(make)((p + 1) * ldb), *C = T(make)(m * ldc),
         *C0 = T(make)(m * ldc);
    for (int transposed = 0; transposed < 2; transposed++) {
        const size_t row = transposed ? 1 : p + 3, col = transposed ? m : 1;
        memcpy(C, C0, m * ldc * sizeof *C);
        k->gemm(m, n, p, A, row, col, B, ldb, C, ldc, accumulate);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < ldc; j++) {
                double sum = accumulate || j >= n ? (double)C0[i * ldc + j] : 0, size = fabs(sum);
                for (size_t q = 0; j < n && q < p; q++) {
                    const double t = (double)A[i * row + q * col] * (double)B[q * ldb + j];
                    sum += t, size += fabs(t);
                }
                T(check)(k->name, "gemm", m, n, p, (double)C[i * ldc + j], sum,
                         j < n ? size * (1 + (double)p / 8) : 0);
            }
    }
    for (int relu = 0; relu < 2; relu++) {
        const real *bias = accumulate ? C0 : NULL;
        memcpy(C, C0, m * ldc * sizeof *C);
        k->linear(m, n, p, A, p + 3, bias, B, ldb, C, ldc, relu);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < ldc; j++) {
                double sum = j >= n ? (double)C0[i * ldc + j]
                             : bias ? (double)bias[i]
                                    : 0,
                       size = fabs(sum);
                for (size_t q = 0; j < n && q < p; q++) {
                    const double t = (double)A[i * (p + 3) + q] * (double)B[q * ldb + j];
                    sum += t, size += fabs(t);
                }
                if (relu && j < n && sum < 0) sum = 0;
                T(check)(k->name, "linear", m, n, p, (double)C[i * ldc + j], sum,
                         j < n ? size * (1 + (double)p / 8) : 0);
            }
    }
    A[0] = (real)NAN;
    k->linear(m, n, p, A, p + 3, NULL, B, ldb, C, ldc, 1);
    if (p && C[0] == C[0]) report(k->name, "linear NaN", m, n, p, 1, 0);
    drop_all(k->name, "gemm");
}

/* W (p,width) in strips as the contract says: lane j is in strip j / SMM_STRIP. */
static void T(test_rows_linear)(const TABLE *k, size_t rows, size_t width, size_t p, int form) {
    const size_t ldx = p + 1, ldy = width + 16;
    real *X = T(make)(rows * ldx), *W = T(make)((p + 1) * width), *P = T(make)((p + 1) * width),
         *bias = T(make)(width);
    real *Y = T(make)(rows * ldy), *Y0 = T(make)(rows * ldy);
    const int accumulate = form & 1, relu = form & 2, biased = form & 4;
    for (size_t j = 0; j < width; j++) {
        const size_t begin = j / SMM_STRIP * SMM_STRIP,
                     ld = width - begin < SMM_STRIP ? width - begin : SMM_STRIP;
        for (size_t q = 0; q < p; q++) P[begin * p + q * ld + j - begin] = W[q * width + j];
    }
    memcpy(Y, Y0, rows * ldy * sizeof *Y);
    k->rows_linear(rows, width, p, X, ldx, P, biased ? bias : NULL, Y, ldy, accumulate, relu);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < ldy; j++) {
            double sum = accumulate || j >= width ? (double)Y0[i * ldy + j] : 0, size = fabs(sum);
            if (biased && j < width) sum += (double)bias[j], size += fabs((double)bias[j]);
            for (size_t q = 0; j < width && q < p; q++) {
                const double t = (double)X[i * ldx + q] * (double)W[q * width + j];
                sum += t, size += fabs(t);
            }
            if (relu && j < width && sum < 0) sum = 0;
            T(check)(k->name, "rows_linear", rows, width, p, (double)Y[i * ldy + j], sum,
                     j < width ? size * (1 + (double)p / 8) : 0);
        }
    X[0] = (real)NAN;
    k->rows_linear(rows, width, p, X, ldx, P, NULL, Y, ldy, 0, 1);
    if (p && Y[0] == Y[0]) report(k->name, "rows_linear NaN", rows, width, p, 1, 0);
    drop_all(k->name, "rows_linear");
}

static void T(test_distances)(const TABLE *k, size_t K, size_t D, size_t n) {
    const size_t ldp = D + 3, ldo = n + 16;
    real *X = T(make)(D * ldo), *P = T(make)(K * ldp), *Q = T(make)(K * ldp), *R = T(make)(K * ldp),
         *out = T(make)(K * ldo);
    for (int form = 0; form < 4; form++) {
        static const char *const names[] = {"sqdist", "sqdist_exact", "quad", "quad_about"};
        if (form == 0) k->sqdist(K, D, n, X, ldo, P, Q, ldp, out, ldo);
        if (form == 1) k->sqdist_exact(K, D, n, X, ldo, P, Q, ldp, out, ldo);
        if (form == 2) k->quad(K, D, n, X, ldo, P, Q, ldp, out, ldo);
        if (form == 3) k->quad_about(K, D, n, X, ldo, P, Q, R, ldp, out, ldo);
        for (size_t j = 0; j < K; j++)
            for (size_t i = 0; i < n; i++) {
                double sum = 0, size = 0;
                for (size_t d = 0; d < D; d++) {
                    const double x = (double)X[d * ldo + i], p = (double)P[j * ldp + d],
                                 q = (double)Q[j * ldp + d];
                    const double t = form == 0   ? p * x + q
                                     : form == 1 ? (x - q) * p
                                     : form == 2 ? x
                                                 : x - (double)R[j * ldp + d];
                    sum += form < 2 ? t * t : (p * t + q) * t;
                    size += 8; /* every factor is below 2 */
                }
                T(check)(k->name, names[form], K, D, n, (double)out[j * ldo + i], sum, size);
            }
    }
    drop_all(k->name, "distance");
}

static void T(test_moments)(const TABLE *k, size_t K, size_t rows, size_t width) {
    const size_t ldg = rows + 1, ld = width + 16;
    real *G = T(make)(K * ldg), *V = T(make)(rows * ld), *P = T(make)(K * ld),
         *m1 = T(make)(K * ld), *m2 = T(make)(K * ld);
    for (int about = 0; about < 2; about++) {
        memset(m1, 0, K * ld * sizeof *m1), memset(m2, 0, K * ld * sizeof *m2);
        if (about) k->moments_about(K, rows, width, G, ldg, V, ld, P, m1, m2, ld);
        else k->moments(K, rows, width, G, ldg, V, ld, m1, m2, ld);
        for (size_t j = 0; j < K; j++)
            for (size_t w = 0; w < width; w++) {
                double first = 0, second = 0;
                for (size_t i = 0; i < rows; i++) {
                    const double t = (double)V[i * ld + w] - (about ? (double)P[j * ld + w] : 0),
                                 g = (double)G[j * ldg + i];
                    first += g * t, second += g * t * t;
                }
                T(check)(k->name, "moments first", K, rows, width, (double)m1[j * ld + w], first,
                         2.0 * (double)rows);
                T(check)(k->name, "moments second", K, rows, width, (double)m2[j * ld + w], second,
                         4.0 * (double)rows);
            }
    }
    drop_all(k->name, "moments");
}

static void T(test_spread)(const TABLE *k, size_t K, size_t D, size_t n) {
    const size_t ldp = D + 3, ld = n + 16;
    real *G = T(make)(K * ld), *X = T(make)(D * ld), *A = T(make)(K * ldp), *E = T(make)(K * ldp),
         *P = T(make)(K * ldp);
    real *out = T(make)(D * ld);
    for (int about = 0; about < 2; about++) {
        memset(out, 0, D * ld * sizeof *out);
        if (about) k->spread_about(K, D, n, G, ld, X, ld, A, E, P, ldp, out, ld);
        else k->spread(K, D, n, G, ld, X, ld, A, E, ldp, out, ld);
        for (size_t d = 0; d < D; d++)
            for (size_t i = 0; i < n; i++) {
                double sum = 0;
                for (size_t j = 0; j < K; j++) {
                    const double t = (double)X[d * ld + i] - (about ? (double)P[j * ldp + d] : 0);
                    sum += (double)G[j * ld + i] *
                           ((double)A[j * ldp + d] * t + (double)E[j * ldp + d]);
                }
                T(check)(k->name, "spread", K, D, n, (double)out[d * ld + i], sum, 4.0 * (double)K);
            }
    }
    drop_all(k->name, "spread");
}

/* Softmax with its log-sum, its backward pass, and the linear form: with a slot without prior, far
 * distances, and pad lanes. */
static void T(test_softmax)(const TABLE *k, size_t K, size_t n, size_t valid) {
    real *L = T(make)(K * n), *y = T(make)(K * n), *r = T(make)(K * n), *d = T(make)(K * n),
         *base = T(make)(K), *sums = T(make)(K);
    real *lse = T(make)(n), *a = T(make)(K), *c = T(make)(K);
    for (size_t i = 0; i < K * n; i++) L[i] = (real)(i % 7 == 3 ? 5e3 : 30 * (uniform() + 1));
    if (K > 1) base[K / 2] = -INFINITY;
    memcpy(y, L, K * n * sizeof *y);
    memset(sums, 0, K * sizeof *sums);
    k->softmax(K, n, valid, y, n, (real)-0.5, base, sums, lse);
    for (size_t i = 0; i < n; i++) {
        double most = -INFINITY, z = 0;
        for (size_t j = 0; j < K; j++)
            most = fmax(most, -0.5 * (double)L[j * n + i] + (double)base[j]);
        for (size_t j = 0; j < K; j++)
            z += exp(-0.5 * (double)L[j * n + i] + (double)base[j] - most);
        for (size_t j = 0; j < K; j++) {
            const double logit = -0.5 * (double)L[j * n + i] + (double)base[j] - most,
                         want = i < valid ? exp(logit) / z : 0;
            const double slack = fmin(-logit, 1e3); /* the logit itself is rounded */
            T(check)(k->name, "softmax", K, n, valid, (double)y[j * n + i], want,
                     want * (4 + slack + fabs(most)) + 1e-36);
            if (K > 1 && j == K / 2 && y[j * n + i] != 0)
                report(k->name, "softmax zero", K, n, valid, (double)y[j * n + i], 0);
        }
        T(check)(k->name, "lse", K, n, valid, (double)lse[i], i < valid ? most + log(z) : 0,
                 i < valid ? 4 + fabs(most) : 0);
    }
    for (size_t j = 0; j < K; j++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += (double)y[j * n + i];
        T(check)(k->name, "softmax sums", K, n, valid, (double)sums[j], sum, (double)n);
    }
    for (size_t i = 0; i < K * n; i++) r[i] = d[i];
    memset(sums, 0, K * sizeof *sums);
    k->softmax_backward(K, n, y, y, r, n, a, c, sums);
    for (size_t i = 0; i < n; i++) {
        double dot = 0;
        for (size_t j = 0; j < K; j++)
            dot += (double)y[j * n + i] * ((double)a[j] * (double)d[j * n + i] + (double)c[j]);
        for (size_t j = 0; j < K; j++) {
            const double g = (double)a[j] * (double)d[j * n + i] + (double)c[j];
            T(check)(k->name, "softmax_backward", K, n, valid, (double)r[j * n + i],
                     (double)y[j * n + i] * (g - dot), 8);
        }
    }
    for (size_t j = 0; j < K; j++) base[j] = (real)(0.5 + fabs((double)a[j]));
    for (size_t i = 0; i < K * n; i++) y[i] = L[i] / 8;
    memcpy(L, y, K * n * sizeof *y);
    memset(sums, 0, K * sizeof *sums);
    k->softmax_linear(K, n, valid, y, n, (real)-0.25, (real)1e-8, base, sums, r);
    for (size_t i = 0; i < n; i++) {
        double z = 0;
        for (size_t j = 0; j < K; j++)
            z += (exp(-0.25 * (double)L[j * n + i]) + (double)(real)1e-8) * (double)base[j];
        for (size_t j = 0; j < K; j++) {
            const double e = exp(-0.25 * (double)L[j * n + i]), p = (double)base[j] / z;
            const double want = i < valid ? (e + (double)(real)1e-8) * p : 0,
                         slack = 8 + 0.25 * (double)L[j * n + i];
            T(check)(k->name, "softmax_linear", K, n, valid, (double)y[j * n + i], want,
                     fabs(want) * fmin(slack, 200));
            T(check)(k->name, "ratio", K, n, valid, (double)r[j * n + i], i < valid ? e * p : 0,
                     e * p * fmin(slack, 200) + 1e-30);
        }
    }
    drop_all(k->name, "softmax");
}

static void T(test_norm)(const TABLE *k, size_t D, size_t n) {
    real *X = T(make)(D * n), *Y = T(make)(D * n), *dY = T(make)(D * n), *dX = T(make)(D * n),
         *gain = T(make)(D), *bias = T(make)(D);
    real *mean = T(make)(n), *rstd = T(make)(n), *dgain = T(make)(D), *dbias = T(make)(D);
    memset(dgain, 0, D * sizeof *dgain), memset(dbias, 0, D * sizeof *dbias);
    k->norm(D, n, X, n, gain, bias, (real)1e-2, Y, n, mean, rstd);
    k->norm_backward(D, n, X, n, gain, mean, rstd, dY, n, dX, n, dgain, dbias);
    for (size_t i = 0; i < n; i++) {
        double m = 0, v = 0, s1 = 0, s2 = 0;
        for (size_t d = 0; d < D; d++) m += (double)X[d * n + i] / (double)D;
        for (size_t d = 0; d < D; d++) v += pow((double)X[d * n + i] - m, 2) / (double)D;
        const double r = 1 / sqrt(v + (double)(real)1e-2);
        for (size_t d = 0; d < D; d++) {
            const double x = ((double)X[d * n + i] - m) * r,
                         g = (double)dY[d * n + i] * (double)gain[d];
            s1 += g / (double)D, s2 += g * x / (double)D;
            T(check)(k->name, "norm", D, n, 0, (double)Y[d * n + i],
                     x * (double)gain[d] + (double)bias[d], 4 * r * r * r + 8);
        }
        for (size_t d = 0; d < D; d++) {
            const double x = ((double)X[d * n + i] - m) * r,
                         g = (double)dY[d * n + i] * (double)gain[d];
            T(check)(k->name, "norm_backward", D, n, 0, (double)dX[d * n + i],
                     r * (g - s1 - x * s2), 16 * pow(r, 4) + 16);
        }
    }
    for (size_t d = 0; d < D; d++) {
        double g = 0, b = 0;
        for (size_t i = 0; i < n; i++) {
            g += (double)dY[d * n + i] * ((double)X[d * n + i] - (double)mean[i]) * (double)rstd[i];
            b += (double)dY[d * n + i];
        }
        T(check)(k->name, "dgain", D, n, 0, (double)dgain[d], g, 40 * (double)n);
        T(check)(k->name, "dbias", D, n, 0, (double)dbias[d], b, (double)n);
    }
    drop_all(k->name, "norm");
}

/* Rows of two parts of D channels each, padded. */
/* Channels that are all equal, as in a blank part of a picture, give the bias: the rounding of
 * their mean is not taken for a deviation. */
static void T(test_norm_equal)(const TABLE *k, size_t D) {
    const size_t n = SMM_LANES, w = (D + n - 1) / n * n;
    real *X = T(make)(w * n), *Y = T(make)(w * n), *gain = T(make)(w), *bias = T(make)(w);
    real *ones = T(make)(w), *mean = T(make)(n), *rstd = T(make)(n);
    for (size_t i = 0; i < w * n; i++) X[i] = (real)1234.567;
    k->norm(D, n, X, n, gain, bias, (real)1e-5, Y, n, mean, rstd);
    for (size_t i = 0; i < D * n; i++)
        T(check)(k->name, "norm of equal channels", D, i, 0, (double)Y[i], (double)bias[i / n], 4);
    for (size_t j = 0; j < w; j++) ones[j] = j < D, X[j] *= ones[j], gain[j] *= ones[j];
    k->norm_rows(1, w, D, ones, X, w, gain, bias, (real)1e-5, Y, w, mean, rstd);
    for (size_t j = 0; j < D; j++)
        T(check)(k->name, "norm_rows of equal channels", D, j, 0, (double)Y[j], (double)bias[j], 4);
    drop_all(k->name, "norm of equal channels");
}

static void T(test_norm_rows)(const TABLE *k, size_t K, size_t D) {
    const size_t Dp = (D + 15) / 16 * 16, w = 2 * Dp, C = 2 * D, ld = w + 16;
    real *X = T(make)(K * ld), *Y = T(make)(K * ld), *dY = T(make)(K * ld), *dX = T(make)(K * ld),
         *gain = T(make)(w), *bias = T(make)(w);
    real *mean = T(make)(K), *rstd = T(make)(K), *dgain = T(make)(w), *dbias = T(make)(w),
         *ones = T(make)(w), *sums = T(make)(w);
    memset(dgain, 0, w * sizeof *dgain), memset(dbias, 0, w * sizeof *dbias),
        memset(sums, 0, w * sizeof *sums);
    for (size_t j = 0; j < w; j++) {
        ones[j] = j % Dp < D;
        gain[j] *= ones[j], bias[j] *= ones[j];
        for (size_t i = 0; i < K; i++) X[i * ld + j] *= ones[j], dY[i * ld + j] *= ones[j];
    }
    k->norm_rows(K, w, C, ones, X, ld, gain, bias, (real)1e-2, Y, ld, mean, rstd);
    k->norm_rows_backward(K, w, C, ones, X, ld, gain, mean, rstd, dY, ld, dX, ld);
    k->norm_rows_sums(K, w, X, ld, mean, rstd, dY, ld, dgain, dbias);
    k->column_sums(K, w, dY, ld, sums);
    for (size_t i = 0; i < K; i++) {
        double m = 0, v = 0, s1 = 0, s2 = 0;
        for (size_t j = 0; j < w; j++) m += (double)X[i * ld + j] / (double)C;
        for (size_t j = 0; j < w; j++)
            v += (double)ones[j] * pow((double)X[i * ld + j] - m, 2) / (double)C;
        const double r = 1 / sqrt(v + (double)(real)1e-2);
        for (size_t j = 0; j < w; j++) {
            const double x = (double)ones[j] * ((double)X[i * ld + j] - m) * r,
                         g = (double)dY[i * ld + j] * (double)gain[j];
            s1 += g / (double)C, s2 += g * x / (double)C;
            T(check)(k->name, "norm_rows", K, D, j, (double)Y[i * ld + j],
                     x * (double)gain[j] + (double)bias[j], ones[j] * (4 * r * r * r + 8));
        }
        for (size_t j = 0; j < w; j++) {
            const double x = ((double)X[i * ld + j] - m) * r,
                         g = (double)dY[i * ld + j] * (double)gain[j];
            const double want = (double)ones[j] * r * (g - s1 - x * s2);
            T(check)(k->name, "norm_rows_backward", K, D, j, (double)dX[i * ld + j], want,
                     ones[j] * (16 * pow(r, 4) + 16));
        }
    }
    for (size_t j = 0; j < w; j++) {
        double g = 0, b = 0;
        for (size_t i = 0; i < K; i++) {
            g += (double)dY[i * ld + j] * ((double)X[i * ld + j] - (double)mean[i]) *
                 (double)rstd[i];
            b += (double)dY[i * ld + j];
        }
        T(check)(k->name, "dgain of rows", K, D, j, (double)dgain[j], g, 40 * (double)K);
        T(check)(k->name, "dbias of rows", K, D, j, (double)dbias[j], b, (double)K);
        T(check)(k->name, "column_sums", K, D, j, (double)sums[j], b, (double)K);
    }
    drop_all(k->name, "norm_rows");
}

static double T(sigmoid_of)(double x) { return 1 / (1 + exp(-x)); }

/* The cell against its formulas, its backward pass against their derivatives. Gates go from tiny to
 * saturated. */
static void T(test_gru)(const TABLE *k, size_t K, size_t w, double size) {
    const size_t ldh = w + 16;
    real *in = T(make)(K * 3 * w), *hid = T(make)(K * 3 * w), *hidden = T(make)(K * ldh),
         *saved = T(make)(K * 5 * w);
    real *dh = T(make)(K * w), *d_in = T(make)(K * 3 * w), *d_hid = T(make)(K * 3 * w),
         *d_hidden = T(make)(K * w);
    for (size_t i = 0; i < K * 3 * w; i++) in[i] *= (real)size, hid[i] *= (real)size;
    k->gru(K, w, in, hid, hidden, ldh, saved);
    k->gru_backward(K, w, saved, hidden, ldh, dh, d_in, d_hid, d_hidden);
    for (size_t i = 0; i < K; i++)
        for (size_t j = 0; j < w; j++) {
            const real *a = in + i * 3 * w + j, *g = hid + i * 3 * w + j,
                       *at = saved + i * 5 * w + j;
            const double r = T(sigmoid_of)((double)(real)(a[0] + g[0])),
                         z = T(sigmoid_of)((double)(real)(a[w] + g[w]));
            const double g_n = (double)g[2 * w], c = (double)a[2 * w] + (double)at[0] * g_n,
                         n = tanh(c);
            const double x = (double)hidden[i * ldh + j], h = (1 - z) * n + z * x,
                         d = (double)dh[i * w + j];
            const double slack = 4 * (fabs((double)a[2 * w]) + fabs(g_n)) *
                                 (1 - n * n); /* the argument is rounded */
            T(check)(k->name, "gru r", K, w, j, (double)at[0], r,
                     r * 1.5 + 1e-30); /* subnormal: absolutely */
            T(check)(k->name, "gru z", K, w, j, (double)at[w], z, z * 1.5 + 1e-30);
            T(check)(k->name, "gru g_n", K, w, j, (double)at[2 * w], g_n, 0);
            T(check)(k->name, "gru n", K, w, j, (double)at[3 * w], n, fabs(n) * 1.5 + slack);
            T(check)(k->name, "gru h", K, w, j, (double)at[4 * w], h, 8 + slack);
            const double R = (double)at[0], Z = (double)at[w], N = (double)at[3 * w],
                         dn = d * (1 - Z) * (1 - N * N);
            const double want[] = {dn * g_n * R * (1 - R), d * (x - N) * Z * (1 - Z), dn},
                         bound = 8 * fabs(d) * (1 + fabs(g_n));
            for (size_t q = 0; q < 3; q++) {
                T(check)(k->name, "gru_backward in", K, w, q, (double)d_in[(3 * i + q) * w + j],
                         want[q], bound);
                T(check)(k->name, "gru_backward hidden", K, w, q,
                         (double)d_hid[(3 * i + q) * w + j], q < 2 ? want[q] : dn * R, bound);
            }
            T(check)(k->name, "gru_backward state", K, w, j, (double)d_hidden[i * w + j], d * Z,
                     fabs(d));
        }
    in[0] = (real)NAN;
    k->gru(K, w, in, hid, hidden, ldh, saved);
    if (saved[0] == saved[0] || saved[4 * w] == saved[4 * w])
        report(k->name, "gru NaN", K, w, 0, 1, 0);
    drop_all(k->name, "gru");
}

/* Mean and variance by their definitions, from moments of 40 weighted numbers for each lane, which
 * are centred at a point of the lane. */
static void T(test_mean_variance)(const TABLE *k, size_t w) {
    enum { COUNT = 40 };
    const double eps = 0.25;
    real *m1 = T(make)(w), *m2 = T(make)(w), *values = T(make)(2 * w), *centre = T(make)(w),
         *point = T(make)(w), *mean = T(make)(w);
    real *variance = T(make)(w), *x = T(make)(COUNT * w), *p = T(make)(w);
    double g[COUNT], sum = 0;
    for (size_t i = 0; i < COUNT; i++) sum += g[i] = uniform() + 1.5;
    memcpy(p, point, w * sizeof *p);
    for (size_t j = 0; j < w; j++) {
        double a = 0, b = 0, c = 0, d = 0;
        for (size_t i = 0; i < COUNT; i++) {
            const double v = (double)x[i * w + j], t = v - (double)point[j];
            a += g[i] * t, b += g[i] * t * t, c += v, d += v * v;
        }
        m1[j] = (real)a, m2[j] = (real)b, values[j] = (real)c, values[w + j] = (real)d;
    }
    if (!k->mean_variance(w, sum, eps, COUNT, 1e-6, m1, m2, values, centre, point, mean, variance))
        report(k->name, "mean_variance near", w, 0, 0, 1, 0);
    for (size_t j = 0; j < w; j++) {
        double m = 0, v = 0;
        for (size_t i = 0; i < COUNT; i++)
            m += (g[i] + eps) * (double)x[i * w + j] / (sum + eps * COUNT);
        for (size_t i = 0; i < COUNT; i++)
            v += (g[i] + eps) * pow((double)x[i * w + j] - m, 2) / (sum + eps * COUNT);
        T(check)(k->name, "mean_variance mean", w, j, 0, (double)mean[j], (double)centre[j] + m, 4);
        T(check)(k->name, "mean_variance variance", w, j, 0, (double)variance[j], v, 8);
        T(check)(k->name, "mean_variance point", w, j, 0, (double)point[j], m, 4);
    }
    m1[w - 1] = (real)(100 * sum), m2[w - 1] = (real)(1e4 * sum); /* all 100 from its point */
    memcpy(point, p, w * sizeof *p);
    if (k->mean_variance(w, sum, 0, COUNT, 1e-6, m1, m2, values, centre, point, mean, variance))
        report(k->name, "mean_variance far", w, 0, 0, 1, 0);
    if (!(variance[w - 1] >= 0))
        report(k->name, "mean_variance negative", w, 0, 0, (double)variance[w - 1], 0);
    m1[0] = (real)NAN;
    k->mean_variance(w, sum, 0, COUNT, 1e-6, m1, m2, values, centre, point, mean, variance);
    if (mean[0] == mean[0] || variance[0] == variance[0])
        report(k->name, "mean_variance NaN", w, 0, 0, 1, 0);
    drop_all(k->name, "mean_variance");
}

static void T(test_copies)(const TABLE *k, size_t rows, size_t cols) {
    const size_t n = (rows + 15) / 16 * 16, width = (cols + 15) / 16 * 16;
    real *A = T(make)(2 * rows * cols), *X = T(make)(cols * n), *back = T(make)(n * width),
         *shift = T(make)(width);
    size_t index[128];
    for (size_t i = 0; i < rows; i++) index[i] = 2 * rows - 1 - 2 * i;
    for (int gather = 0; gather < 2; gather++) {
        k->transpose_in(rows, cols, n, A, cols, gather ? index : NULL, X, n);
        k->transpose_out(rows, cols, width, X, n, gather ? shift : NULL, back, width);
        for (size_t r = 0; r < n; r++)
            for (size_t c = 0; c < cols; c++) {
                const real want = r < rows ? A[(gather ? index[r] : r) * cols + c] : 0;
                if (X[c * n + r] != want) report(k->name, "transpose_in", rows, cols, n, 1, 0);
                if (r < rows && back[r * width + c] != want - (gather ? shift[c] : 0))
                    report(k->name, "transpose_out", rows, cols, n, 1, 0);
            }
        for (size_t r = 0; r < rows; r++)
            for (size_t c = cols; c < width; c++)
                if (back[r * width + c] != 0)
                    report(k->name, "transpose_out pad", rows, cols, n, 1, 0);
    }
    real *sums = T(make)(cols), *copy = T(make)(cols * n);
    memset(sums, 0, cols * sizeof *sums);
    k->row_sums(cols, n, X, n, sums);
    for (size_t c = 0; c < cols; c++) {
        double sum = 0;
        for (size_t r = 0; r < n; r++) sum += (double)X[c * n + r];
        T(check)(k->name, "row_sums", cols, n, 0, (double)sums[c], sum, (double)n);
    }
    for (int form = 0; form < 4;
         form++) { /* shifted, or scaled and shifted; written over what was there, or added */
        memcpy(copy, X, cols * n * sizeof *copy);
        k->affine(cols, n, X, n, form & 2 ? shift : NULL, sums, copy, n, form & 1);
        for (size_t i = 0; i < cols * n; i++) {
            const double x = (double)X[i], y = form & 2 ? (double)shift[i / n] * x : x,
                         add = (double)sums[i / n], old = form & 1 ? x : 0;
            T(check)(k->name, "affine", cols, n, i, (double)copy[i], y + add + old,
                     fabs(y) + fabs(add) + fabs(old));
        }
    }
    memcpy(copy, X, cols * n * sizeof *copy);
    k->add(cols * n, X, copy);
    for (size_t i = 0; i < cols * n; i++) {
        if (copy[i] != 2 * X[i]) report(k->name, "add", cols, n, i, 1, 0);
        copy[i] = X[i] > 0 ? X[i] : 0;
    }
    k->relu_backward(cols, n, copy, n, X, n);
    for (size_t i = 1; i < cols * n; i++)
        if ((X[i] != 0) != (copy[i] > 0)) report(k->name, "relu_backward", cols, n, i, 1, 0);
    drop_all(k->name, "copies");
}

static void T(test_precision)(const TABLE *k, size_t K, size_t width) {
    real *log_std = T(make)(K * width), *scale = T(make)(K * width), *q = T(make)(K * width),
         *shift = T(make)(K * width);
    real *log_det = T(make)(K);
    memcpy(scale, log_std, K * width * sizeof *scale);
    const real largest = k->precision(K, width, scale, q, shift, width, log_det);
    double most = 0;
    for (size_t j = 0; j < K; j++) {
        double sum = 0, size = 0;
        for (size_t i = j * width; i < (j + 1) * width; i++) {
            const double s = exp(-(double)log_std[i]), t = -(double)q[i] * s;
            T(check)(k->name, "precision scale", K, width, i, (double)scale[i], s, 1.5 * s);
            T(check)(k->name, "precision shift", K, width, i, (double)shift[i], t, 2 * fabs(t));
            sum += (double)log_std[i], size += fabs((double)log_std[i]);
            most = fmax(most, fabs((double)shift[i]));
        }
        T(check)(k->name, "precision log_det", K, width, j, (double)log_det[j], sum, size);
    }
    if ((double)largest != most)
        report(k->name, "precision largest", K, width, 0, (double)largest, most);
    drop_all(k->name, "precision");
}

static void T(test_elementary)(const TABLE *k) {
    static const char *const names[] = {"exp", "log"};
    void (*const kernel[])(size_t, real *) = {k->exp, k->log};
    double (*const exact[])(double) = {exp, log};
    const double range[] = {sizeof(real) == 4 ? 85 : 700, 60};
    enum { COUNT = 4096 };
    real *x = T(make)(COUNT), *y = T(make)(COUNT);
    for (int f = 0; f < 2; f++) {
        for (size_t i = 0; i < COUNT; i++) {
            const double u = uniform();
            x[i] = (real)(f == 1 ? exp(u * range[f]) : i % 2 ? u * range[f] : u * u * u);
        }
        memcpy(y, x, COUNT * sizeof *y);
        kernel[f](COUNT, y);
        for (size_t i = 0; i < COUNT; i++) {
            const double want = exact[f]((double)x[i]);
            T(check)(k->name, names[f], i, 0, 0, (double)y[i], want,
                     fabs(want) * 1.5 + (f == 1 ? 1e-3 * fabs((double)x[i] - 1) : 0));
        }
        for (size_t i = 0; i < 16; i++) y[i] = (real)NAN;
        kernel[f](16, y);
        if (y[3] == y[3]) report(k->name, names[f], 0, 0, 0, 1, 0);
    }
    for (size_t i = 0; i < 16; i++) y[i] = (real)(i % 2 ? 1e4 : -1e4);
    k->exp(16, y);
    if (y[0] != 0 || !isinf(y[1])) report(k->name, "exp limits", 0, 0, 0, (double)y[0], 0);
    memset(y, 0, 16 * sizeof *y);
    y[1] = -1;
    k->log(16, y);
    if (!isinf(y[0]) || y[1] == y[1]) report(k->name, "log limits", 0, 0, 0, (double)y[0], 0);
    drop_all(k->name, "elementary");
}

static void T(test_all)(const TABLE *k) {
    for (size_t m = 1; m <= 26; m++)
        for (size_t n = 16; n <= 64; n += 16)
            for (size_t p = 0; p <= 19; p += m % 2 ? 1 : 6) T(test_gemm)(k, m, n, p, (int)(p % 2));
    for (size_t p = 100; p <= 400; p += 60)
        T(test_gemm)(k, 13, 48, p, p % 40 == 0); /* several panels */
    for (size_t K = 1; K <= 26; K++)
        for (size_t D = 1; D <= 33; D += K % 3 ? 8 : 1) {
            T(test_distances)(k, K, D, 16 + 16 * (D % 4));
            T(test_spread)(k, K, D, 16 + 16 * (K % 4));
        }
    for (size_t K = 1; K <= 26; K++)
        for (size_t rows = 1; rows <= 64; rows += K % 5 ? 21 : 1)
            T(test_moments)(k, K, rows, 16 + 16 * (K % 3));
    for (size_t K = 1; K <= 13; K++)
        for (size_t n = 16; n <= 96; n += 16)
            for (size_t valid = n - 16; valid <= n; valid += 3) T(test_softmax)(k, K, n, valid);
    for (size_t D = 1; D <= 35; D++) {
        T(test_norm_equal)(k, D);
        T(test_norm)(k, D, 16 + 16 * (D % 5));
        T(test_norm_rows)(k, 1 + D % 13, D);
    }
    for (size_t rows = 1; rows <= 26; rows++)
        for (size_t width = 16; width <= 80; width += 16)
            for (size_t p = 0; p <= 19; p += rows % 2 ? 1 : 6)
                T(test_rows_linear)(k, rows, width, p, (int)((p + rows + width / 16) % 8));
    for (size_t K = 1; K <= 5; K++)
        for (int e = -3; e <= 3; e++) T(test_gru)(k, K, 16 * (1 + K % 3), pow(4, e));
    for (size_t w = 16; w <= 160; w += 48) T(test_mean_variance)(k, w);
    for (size_t rows = 1; rows <= 64; rows += 3)
        for (size_t cols = 1; cols <= 40; cols += 1 + rows % 4) T(test_copies)(k, rows, cols);
    for (size_t K = 1; K <= 13; K++) T(test_precision)(k, K, 16 + 16 * (K % 3));
    T(test_elementary)(k);
}
