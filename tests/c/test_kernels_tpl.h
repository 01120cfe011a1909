/* test_kernels_tpl.h - the tests for one precision; included by test_kernels.c. */

/* count elements at SMM_ALIGN between guard zones. */
static real *T(make)(size_t count)
{
    char *block = NULL;
    const size_t bytes = (count * sizeof(real) + SMM_ALIGN - 1) / SMM_ALIGN * SMM_ALIGN;
    block = malloc(bytes + 2 * GUARD + SMM_ALIGN + sizeof(void *));
    if (!block) exit(2);
    char *at = (char *)(((uintptr_t)block + sizeof(void *) + GUARD + SMM_ALIGN - 1) / SMM_ALIGN * SMM_ALIGN);
    memset(at - GUARD, 0x5a, GUARD);
    memset(at + bytes, 0x5a, GUARD);
    memcpy(at - GUARD, &block, sizeof block);
    for (size_t i = 0; i < bytes / sizeof(real); i++) ((real *)(void *)at)[i] = (real)uniform();
    return (real *)(void *)at;
}

static void T(drop)(real *p, size_t count, const char *set, const char *kernel)
{
    char *at = (char *)p, *block;
    const size_t bytes = (count * sizeof(real) + SMM_ALIGN - 1) / SMM_ALIGN * SMM_ALIGN;
    memcpy(&block, at - GUARD, sizeof block);
    for (size_t i = sizeof block; i < GUARD; i++)
        if (at[-GUARD + (ptrdiff_t)i] != 0x5a) report(set, kernel, i, 0, 0, 1, 0);
    for (size_t i = 0; i < GUARD; i++)
        if (at[bytes + i] != 0x5a) report(set, kernel, i, 0, 0, 1, 0);
    free(block);
}

static void T(check)(const char *set, const char *kernel, size_t a, size_t b, size_t c, double got, double want, double magnitude)
{
    const double bound = EPS * 4 * magnitude, error = fabs(got - want);
    if (!(error <= bound)) report(set, kernel, a, b, c, error, bound);
}

static void T(test_gemm)(const TABLE *k, size_t m, size_t n, size_t p, int accumulate)
{
    const size_t ldb = n + 16, ldc = n + 16;
    real *A = T(make)(m * (p + 3)), *B = T(make)((p + 1) * ldb), *C = T(make)(m * ldc), *C0 = T(make)(m * ldc);
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
                T(check)(k->name, "gemm", m, n, p, (double)C[i * ldc + j], sum, j < n ? size * (1 + (double)p / 8) : 0);
            }
    }
    for (int relu = 0; relu < 2; relu++) {
        const real *bias = accumulate ? C0 : NULL;
        memcpy(C, C0, m * ldc * sizeof *C);
        k->linear(m, n, p, A, bias, B, ldb, C, ldc, relu);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < ldc; j++) {
                double sum = j >= n ? (double)C0[i * ldc + j] : bias ? (double)bias[i] : 0, size = fabs(sum);
                for (size_t q = 0; j < n && q < p; q++) {
                    const double t = (double)A[i * p + q] * (double)B[q * ldb + j];
                    sum += t, size += fabs(t);
                }
                if (relu && j < n && sum < 0) sum = 0;
                T(check)(k->name, "linear", m, n, p, (double)C[i * ldc + j], sum, j < n ? size * (1 + (double)p / 8) : 0);
            }
    }
    A[0] = (real)NAN;
    k->linear(m, n, p, A, NULL, B, ldb, C, ldc, 1);
    if (p && C[0] == C[0]) report(k->name, "linear NaN", m, n, p, 1, 0);
    T(drop)(A, m * (p + 3), k->name, "gemm"), T(drop)(B, (p + 1) * ldb, k->name, "gemm");
    T(drop)(C, m * ldc, k->name, "gemm"), T(drop)(C0, m * ldc, k->name, "gemm");
}

static void T(test_distances)(const TABLE *k, size_t K, size_t D, size_t n)
{
    const size_t ldp = D + 3, ldo = n + 16;
    real *X = T(make)(D * ldo), *P = T(make)(K * ldp), *Q = T(make)(K * ldp), *R = T(make)(K * ldp), *out = T(make)(K * ldo);
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
                    const double x = (double)X[d * ldo + i], p = (double)P[j * ldp + d], q = (double)Q[j * ldp + d];
                    const double t = form == 0 ? p * x + q : form == 1 ? (x - q) * p : form == 2 ? x : x - (double)R[j * ldp + d];
                    sum += form < 2 ? t * t : (p * t + q) * t;
                    size += 8; /* every factor is below 2 */
                }
                T(check)(k->name, names[form], K, D, n, (double)out[j * ldo + i], sum, size);
            }
    }
    T(drop)(X, D * ldo, k->name, "distance"), T(drop)(P, K * ldp, k->name, "distance"), T(drop)(Q, K * ldp, k->name, "distance");
    T(drop)(R, K * ldp, k->name, "distance"), T(drop)(out, K * ldo, k->name, "distance");
}

static void T(test_moments)(const TABLE *k, size_t K, size_t rows, size_t width)
{
    const size_t ldg = rows + 1, ld = width + 16;
    real *G = T(make)(K * ldg), *V = T(make)(rows * ld), *P = T(make)(K * ld), *m1 = T(make)(K * ld), *m2 = T(make)(K * ld);
    for (int about = 0; about < 2; about++) {
        memset(m1, 0, K * ld * sizeof *m1), memset(m2, 0, K * ld * sizeof *m2);
        if (about) k->moments_about(K, rows, width, G, ldg, V, ld, P, m1, m2, ld);
        else k->moments(K, rows, width, G, ldg, V, ld, m1, m2, ld);
        for (size_t j = 0; j < K; j++)
            for (size_t w = 0; w < width; w++) {
                double first = 0, second = 0;
                for (size_t i = 0; i < rows; i++) {
                    const double t = (double)V[i * ld + w] - (about ? (double)P[j * ld + w] : 0), g = (double)G[j * ldg + i];
                    first += g * t, second += g * t * t;
                }
                T(check)(k->name, "moments first", K, rows, width, (double)m1[j * ld + w], first, 2.0 * (double)rows);
                T(check)(k->name, "moments second", K, rows, width, (double)m2[j * ld + w], second, 4.0 * (double)rows);
            }
    }
    T(drop)(G, K * ldg, k->name, "moments"), T(drop)(V, rows * ld, k->name, "moments"), T(drop)(P, K * ld, k->name, "moments");
    T(drop)(m1, K * ld, k->name, "moments"), T(drop)(m2, K * ld, k->name, "moments");
}

static void T(test_spread)(const TABLE *k, size_t K, size_t D, size_t n)
{
    const size_t ldp = D + 3, ld = n + 16;
    real *G = T(make)(K * ld), *X = T(make)(D * ld), *A = T(make)(K * ldp), *E = T(make)(K * ldp), *P = T(make)(K * ldp);
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
                    sum += (double)G[j * ld + i] * ((double)A[j * ldp + d] * t + (double)E[j * ldp + d]);
                }
                T(check)(k->name, "spread", K, D, n, (double)out[d * ld + i], sum, 4.0 * (double)K);
            }
    }
    T(drop)(G, K * ld, k->name, "spread"), T(drop)(X, D * ld, k->name, "spread"), T(drop)(A, K * ldp, k->name, "spread");
    T(drop)(E, K * ldp, k->name, "spread"), T(drop)(P, K * ldp, k->name, "spread"), T(drop)(out, D * ld, k->name, "spread");
}

/* Softmax with its log-sum, its backward pass, and the linear form; a slot without prior, far distances, pad lanes. */
static void T(test_softmax)(const TABLE *k, size_t K, size_t n, size_t valid)
{
    real *L = T(make)(K * n), *y = T(make)(K * n), *r = T(make)(K * n), *d = T(make)(K * n), *base = T(make)(K), *sums = T(make)(K);
    real *lse = T(make)(n), *a = T(make)(K), *c = T(make)(K);
    for (size_t i = 0; i < K * n; i++) L[i] = (real)(i % 7 == 3 ? 5e3 : 30 * (uniform() + 1));
    if (K > 1) base[K / 2] = -INFINITY;
    memcpy(y, L, K * n * sizeof *y);
    memset(sums, 0, K * sizeof *sums);
    k->softmax(K, n, valid, y, n, (real)-0.5, base, sums, lse);
    for (size_t i = 0; i < n; i++) {
        double most = -INFINITY, z = 0;
        for (size_t j = 0; j < K; j++) most = fmax(most, -0.5 * (double)L[j * n + i] + (double)base[j]);
        for (size_t j = 0; j < K; j++) z += exp(-0.5 * (double)L[j * n + i] + (double)base[j] - most);
        for (size_t j = 0; j < K; j++) {
            const double logit = -0.5 * (double)L[j * n + i] + (double)base[j] - most, want = i < valid ? exp(logit) / z : 0;
            const double slack = fmin(-logit, 1e3); /* the logit itself is rounded */
            T(check)(k->name, "softmax", K, n, valid, (double)y[j * n + i], want, want * (4 + slack + fabs(most)) + 1e-36);
            if (K > 1 && j == K / 2 && y[j * n + i] != 0) report(k->name, "softmax zero", K, n, valid, (double)y[j * n + i], 0);
        }
        T(check)(k->name, "lse", K, n, valid, (double)lse[i], i < valid ? most + log(z) : 0, i < valid ? 4 + fabs(most) : 0);
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
        for (size_t j = 0; j < K; j++) dot += (double)y[j * n + i] * ((double)a[j] * (double)d[j * n + i] + (double)c[j]);
        for (size_t j = 0; j < K; j++) {
            const double g = (double)a[j] * (double)d[j * n + i] + (double)c[j];
            T(check)(k->name, "softmax_backward", K, n, valid, (double)r[j * n + i], (double)y[j * n + i] * (g - dot), 8);
        }
    }
    for (size_t j = 0; j < K; j++) base[j] = (real)(0.5 + fabs((double)a[j]));
    for (size_t i = 0; i < K * n; i++) y[i] = L[i] / 8;
    memcpy(L, y, K * n * sizeof *y);
    memset(sums, 0, K * sizeof *sums);
    k->softmax_linear(K, n, valid, y, n, (real)-0.25, (real)1e-8, base, sums, r);
    for (size_t i = 0; i < n; i++) {
        double z = 0;
        for (size_t j = 0; j < K; j++) z += (exp(-0.25 * (double)L[j * n + i]) + (double)(real)1e-8) * (double)base[j];
        for (size_t j = 0; j < K; j++) {
            const double e = exp(-0.25 * (double)L[j * n + i]), p = (double)base[j] / z;
            const double want = i < valid ? (e + (double)(real)1e-8) * p : 0, slack = 8 + 0.25 * (double)L[j * n + i];
            T(check)(k->name, "softmax_linear", K, n, valid, (double)y[j * n + i], want, fabs(want) * fmin(slack, 200));
            T(check)(k->name, "ratio", K, n, valid, (double)r[j * n + i], i < valid ? e * p : 0, e * p * fmin(slack, 200) + 1e-30);
        }
    }
    T(drop)(L, K * n, k->name, "softmax"), T(drop)(y, K * n, k->name, "softmax"), T(drop)(r, K * n, k->name, "softmax");
    T(drop)(d, K * n, k->name, "softmax"), T(drop)(base, K, k->name, "softmax"), T(drop)(sums, K, k->name, "softmax");
    T(drop)(lse, n, k->name, "softmax"), T(drop)(a, K, k->name, "softmax"), T(drop)(c, K, k->name, "softmax");
}

static void T(test_norm)(const TABLE *k, size_t D, size_t n)
{
    real *X = T(make)(D * n), *Y = T(make)(D * n), *dY = T(make)(D * n), *dX = T(make)(D * n), *gain = T(make)(D), *bias = T(make)(D);
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
            const double x = ((double)X[d * n + i] - m) * r, g = (double)dY[d * n + i] * (double)gain[d];
            s1 += g / (double)D, s2 += g * x / (double)D;
            T(check)(k->name, "norm", D, n, 0, (double)Y[d * n + i], x * (double)gain[d] + (double)bias[d], 4 * r * r * r + 8);
        }
        for (size_t d = 0; d < D; d++) {
            const double x = ((double)X[d * n + i] - m) * r, g = (double)dY[d * n + i] * (double)gain[d];
            T(check)(k->name, "norm_backward", D, n, 0, (double)dX[d * n + i], r * (g - s1 - x * s2), 16 * pow(r, 4) + 16);
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
    T(drop)(X, D * n, k->name, "norm"), T(drop)(Y, D * n, k->name, "norm"), T(drop)(dY, D * n, k->name, "norm");
    T(drop)(dX, D * n, k->name, "norm"), T(drop)(gain, D, k->name, "norm"), T(drop)(bias, D, k->name, "norm");
    T(drop)(mean, n, k->name, "norm"), T(drop)(rstd, n, k->name, "norm"), T(drop)(dgain, D, k->name, "norm");
    T(drop)(dbias, D, k->name, "norm");
}

static void T(test_copies)(const TABLE *k, size_t rows, size_t cols)
{
    const size_t n = (rows + 15) / 16 * 16, width = (cols + 15) / 16 * 16;
    real *A = T(make)(2 * rows * cols), *X = T(make)(cols * n), *back = T(make)(n * width), *shift = T(make)(width);
    size_t index[128];
    for (size_t i = 0; i < rows; i++) index[i] = 2 * rows - 1 - 2 * i;
    for (int gather = 0; gather < 2; gather++) {
        k->transpose_in(rows, cols, n, A, cols, gather ? index : NULL, X, n);
        k->transpose_out(rows, cols, width, X, n, gather ? shift : NULL, back, width);
        for (size_t r = 0; r < n; r++)
            for (size_t c = 0; c < cols; c++) {
                const real want = r < rows ? A[(gather ? index[r] : r) * cols + c] : 0;
                if (X[c * n + r] != want) report(k->name, "transpose_in", rows, cols, n, 1, 0);
                if (r < rows && back[r * width + c] != want - (gather ? shift[c] : 0)) report(k->name, "transpose_out", rows, cols, n, 1, 0);
            }
        for (size_t r = 0; r < rows; r++)
            for (size_t c = cols; c < width; c++)
                if (back[r * width + c] != 0) report(k->name, "transpose_out pad", rows, cols, n, 1, 0);
    }
    real *sums = T(make)(cols), *copy = T(make)(cols * n);
    memset(sums, 0, cols * sizeof *sums);
    k->row_sums(cols, n, X, n, sums);
    for (size_t c = 0; c < cols; c++) {
        double sum = 0;
        for (size_t r = 0; r < n; r++) sum += (double)X[c * n + r];
        T(check)(k->name, "row_sums", cols, n, 0, (double)sums[c], sum, (double)n);
    }
    for (int form = 0; form < 4; form++) { /* shifted, or scaled and shifted; written over what was there, or added */
        memcpy(copy, X, cols * n * sizeof *copy);
        k->affine(cols, n, X, n, form & 2 ? shift : NULL, sums, copy, n, form & 1);
        for (size_t i = 0; i < cols * n; i++) {
            const double x = (double)X[i], y = form & 2 ? (double)shift[i / n] * x : x, add = (double)sums[i / n], old = form & 1 ? x : 0;
            T(check)(k->name, "affine", cols, n, i, (double)copy[i], y + add + old, fabs(y) + fabs(add) + fabs(old));
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
    T(drop)(A, 2 * rows * cols, k->name, "copies"), T(drop)(X, cols * n, k->name, "copies"), T(drop)(back, n * width, k->name, "copies");
    T(drop)(shift, width, k->name, "copies"), T(drop)(sums, cols, k->name, "copies"), T(drop)(copy, cols * n, k->name, "copies");
}

static void T(test_precision)(const TABLE *k, size_t K, size_t width)
{
    real *log_std = T(make)(K * width), *scale = T(make)(K * width), *q = T(make)(K * width), *shift = T(make)(K * width);
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
    if ((double)largest != most) report(k->name, "precision largest", K, width, 0, (double)largest, most);
    T(drop)(log_std, K * width, k->name, "precision"), T(drop)(scale, K * width, k->name, "precision");
    T(drop)(q, K * width, k->name, "precision"), T(drop)(shift, K * width, k->name, "precision");
    T(drop)(log_det, K, k->name, "precision");
}

static double T(sigmoid_of)(double x) { return 1 / (1 + exp(-x)); }

static void T(test_elementary)(const TABLE *k)
{
    static const char *const names[] = {"exp", "log", "sigmoid", "tanh"};
    void (*const kernel[])(size_t, real *) = {k->exp, k->log, k->sigmoid, k->tanh};
    double (*const exact[])(double) = {exp, log, T(sigmoid_of), tanh};
    const double range[] = {sizeof(real) == 4 ? 85 : 700, 60, 30, 12};
    enum { COUNT = 4096 };
    real *x = T(make)(COUNT), *y = T(make)(COUNT);
    for (int f = 0; f < 4; f++) {
        for (size_t i = 0; i < COUNT; i++) {
            const double u = uniform();
            x[i] = (real)(f == 1 ? exp(u * range[f]) : i % 2 ? u * range[f] : u * u * u);
        }
        memcpy(y, x, COUNT * sizeof *y);
        kernel[f](COUNT, y);
        for (size_t i = 0; i < COUNT; i++) {
            const double want = exact[f]((double)x[i]);
            T(check)(k->name, names[f], i, 0, 0, (double)y[i], want, fabs(want) * 1.5 + (f == 1 ? 1e-3 * fabs((double)x[i] - 1) : 0));
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
    T(drop)(x, COUNT, k->name, "elementary"), T(drop)(y, COUNT, k->name, "elementary");
}

static void T(test_all)(const TABLE *k)
{
    for (size_t m = 1; m <= 26; m++)
        for (size_t n = k->lanes; n <= 64; n += n < 16 ? k->lanes : 16) /* few lanes: slots */
            for (size_t p = 0; p <= 19; p += m % 2 ? 1 : 6) T(test_gemm)(k, m, n, p, (int)(p % 2));
    for (size_t p = 100; p <= 400; p += 60) T(test_gemm)(k, 13, 48, p, p % 40 == 0); /* several panels */
    for (size_t K = 1; K <= 26; K++)
        for (size_t D = 1; D <= 33; D += K % 3 ? 8 : 1) {
            T(test_distances)(k, K, D, 16 + 16 * (D % 4));
            T(test_spread)(k, K, D, 16 + 16 * (K % 4));
        }
    for (size_t K = 1; K <= 26; K++)
        for (size_t rows = 1; rows <= 64; rows += K % 5 ? 21 : 1) T(test_moments)(k, K, rows, 16 + 16 * (K % 3));
    for (size_t K = 1; K <= 13; K++)
        for (size_t n = 16; n <= 96; n += 16)
            for (size_t valid = n - 16; valid <= n; valid += 3) T(test_softmax)(k, K, n, valid);
    for (size_t D = 1; D <= 35; D++) T(test_norm)(k, D, 16 + 16 * (D % 5)), T(test_norm)(k, D, k->lanes);
    for (size_t rows = 1; rows <= 64; rows += 3)
        for (size_t cols = 1; cols <= 40; cols += 1 + rows % 4) T(test_copies)(k, rows, cols);
    for (size_t K = 1; K <= 13; K++) T(test_precision)(k, K, 16 + 16 * (K % 3));
    T(test_elementary)(k);
}
