/* layers_tpl.h - linear maps, the GRU and the residual MLP on channel-major arrays X[channel][lane], forward then backward.
 *
 * Lanes are inputs of a block or slots of an image; there are n of them (a multiple of the kernels' vectors). Lanes beyond the
 * real ones hold finite values going forward and zeros going backward, so that no sum needs to know of them. Backward functions
 * accumulate into parameter gradients. Included with `real`, KERNELS (the table's type) and SMM_T defined. */

/* Gradients of one group: a pointer for each parameter, matrices with padded rows. A NULL table skips them all. */
typedef struct {
    real *at[SMM_PARAMS];
} SMM_T(grad_set);

/* Y = W X + b    W (out,in), b (out) or NULL, X (in,n), Y (out,n); and the same through a ReLU */
static void SMM_T(linear_forward)(const KERNELS *k, size_t out, size_t in, size_t n, const real *W, const real *b, const real *X,
                                  real *Y)
{
    k->linear(out, n, in, W, b, X, n, Y, n, 0);
}

static void SMM_T(linear_relu_forward)(const KERNELS *k, size_t out, size_t in, size_t n, const real *W, const real *b, const real *X,
                                       real *Y)
{
    k->linear(out, n, in, W, b, X, n, Y, n, 1);
}

/* dX (+)= W' dY;  gW += dY X';  gb += sum of dY over lanes.
 *
 * `rows` is scratch of n * pad(in) elements: the product over lanes needs X with its channels side by side. dX, gW and gb may
 * be NULL. */
static void SMM_T(linear_backward)(const KERNELS *k, size_t out, size_t in, size_t n, const real *W, const real *X, const real *dY,
                                   real *dX, int accumulate, real *gW, real *gb, real *rows)
{
    const size_t inp = smm_pad(in);
    if (dX) k->gemm(in, n, out, W, 1, in, dY, n, dX, n, accumulate);
    if (gW) {
        k->transpose_out(n, in, inp, X, n, NULL, rows, inp);
        k->gemm(out, inp, n, dY, n, 1, rows, inp, gW, inp, 1);
    }
    if (gb) k->row_sums(out, n, dY, n, gb);
}

/* Lanes of X and dY, as rows, that the gradient of one of the slots' weights still has to be summed over. An image has few slots:
 * those of several steps and images make one product. */
typedef struct {
    real *x, *dy;
    size_t rows;
} SMM_T(pending);

/* Scratch of one slot update; every array (channels, Kp). */
typedef struct {
    real *gates_in, *gates_hidden; /* 3D: W_ih m + b_ih, W_hh h + b_hh; forward leaves r, z in the first 2D rows of gates_in */
    real *candidate;               /* D: n */
    real *h;                       /* D: the GRU's output */
    real *normed, *hidden;         /* D: LN(h); H: ReLU(W_1 LN(h) + b_1) */
    real *mean, *rstd;             /* Kp: of the LayerNorm */
    real *d_gates_in, *d_gates_hidden, *d_hidden, *d_h; /* the same for gradients */
    SMM_T(pending) *pending;       /* one for each parameter; backward */
} SMM_T(update_scratch);

/* Add what is pending to the gradients. */
static void SMM_T(flush_pending)(const KERNELS *k, const smm_sizes *s, SMM_T(pending) *pending, const SMM_T(grad_set) *g)
{
    size_t shape[2];
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        SMM_T(pending) *q = &pending[i];
        if (!q->rows || !smm_param_shape(s->cfg, i, shape)) continue;
        const size_t outp = smm_pad(shape[0]), inp = smm_pad(shape[1]);
        k->gemm(shape[0], inp, q->rows, q->dy, 1, outp, q->x, inp, g->at[i], inp, 1);
        q->rows = 0;
    }
}

/* gW += dY X' over slots, left pending. */
static void SMM_T(slots_weight_backward)(const KERNELS *k, const smm_sizes *s, SMM_T(pending) *pending, size_t weight, const real *X,
                                         const real *dY, const SMM_T(grad_set) *g)
{
    SMM_T(pending) *q = &pending[weight];
    size_t shape[2];
    smm_param_shape(s->cfg, weight, shape);
    const size_t out = shape[0], in = shape[1], outp = smm_pad(out), inp = smm_pad(in), n = s->Kp;
    if (q->rows + s->K > s->pending_rows) SMM_T(flush_pending)(k, s, pending, g);
    k->transpose_out(s->K, in, inp, X, n, NULL, q->x + q->rows * inp, inp);
    k->transpose_out(s->K, out, outp, dY, n, NULL, q->dy + q->rows * outp, outp);
    q->rows += s->K;
}

/* linear_backward of slots, with parameters `weight` and `bias` (of which g may have none): gW is left pending. */
static void SMM_T(slots_linear_backward)(const KERNELS *k, const smm_sizes *s, const real *const *p, SMM_T(pending) *pending,
                                         size_t weight, size_t bias, const real *X, const real *dY, real *dX, int accumulate,
                                         const SMM_T(grad_set) *g)
{
    size_t shape[2];
    smm_param_shape(s->cfg, weight, shape);
    k->gemm(shape[1], s->Kp, shape[0], p[weight], 1, shape[1], dY, s->Kp, dX, s->Kp, accumulate);
    SMM_T(slots_weight_backward)(k, s, pending, weight, X, dY, g);
    if (g->at[bias]) k->row_sums(shape[0], s->Kp, dY, s->Kp, g->at[bias]);
}

/* GRU (PyTorch's gate order r, z, n):  r = s(i_r + g_r), z = s(i_z + g_z), n = tanh(i_n + r g_n), h = (1-z) n + z hidden,
 * with i = W_ih m + b_ih and g = W_hh hidden + b_hh. m, hidden, u->h: (D,Kp). */
static void SMM_T(gru_forward)(const KERNELS *k, const smm_sizes *s, const real *const *p, const real *m, const real *hidden,
                               const SMM_T(update_scratch) *u)
{
    const size_t D = s->D, n = s->Kp, c = D * n;
    SMM_T(linear_forward)(k, 3 * D, D, n, p[SMM_GRU_WEIGHT_IH], p[SMM_GRU_BIAS_IH], m, u->gates_in);
    SMM_T(linear_forward)(k, 3 * D, D, n, p[SMM_GRU_WEIGHT_HH], p[SMM_GRU_BIAS_HH], hidden, u->gates_hidden);
    k->add(2 * c, u->gates_hidden, u->gates_in);
    k->sigmoid(2 * c, u->gates_in);
    const real *r = u->gates_in, *z = r + c, *i_n = z + c, *g_n = u->gates_hidden + 2 * c;
    for (size_t i = 0; i < c; i++) u->candidate[i] = i_n[i] + r[i] * g_n[i];
    k->tanh(c, u->candidate);
    for (size_t i = 0; i < c; i++) u->h[i] = u->candidate[i] + z[i] * (hidden[i] - u->candidate[i]);
}

/* From d_h (in u->d_h): dm and d_hidden (both overwritten), parameter gradients. After gru_forward with the same arguments. */
static void SMM_T(gru_backward)(const KERNELS *k, const smm_sizes *s, const real *const *p, const real *m, const real *hidden,
                                const SMM_T(update_scratch) *u, real *dm, real *d_hidden, const SMM_T(grad_set) *g)
{
    const size_t D = s->D, n = s->Kp, c = D * n;
    const real *r = u->gates_in, *z = r + c, *g_n = u->gates_hidden + 2 * c;
    real *dr = u->d_gates_in, *dz = dr + c, *dn = dz + c, *dg_n = u->d_gates_hidden + 2 * c;
    for (size_t i = 0; i < c; i++) {
        const real dh = u->d_h[i], nn = u->candidate[i];
        dn[i] = dh * (1 - z[i]) * (1 - nn * nn);
        dz[i] = dh * (hidden[i] - nn) * z[i] * (1 - z[i]);
        dr[i] = dn[i] * g_n[i] * r[i] * (1 - r[i]);
        dg_n[i] = dn[i] * r[i];
        d_hidden[i] = dh * z[i];
    }
    memcpy(u->d_gates_hidden, dr, 2 * c * sizeof *dr);
    SMM_T(slots_linear_backward)(k, s, p, u->pending, SMM_GRU_WEIGHT_IH, SMM_GRU_BIAS_IH, m, u->d_gates_in, dm, 0, g);
    SMM_T(slots_linear_backward)(k, s, p, u->pending, SMM_GRU_WEIGHT_HH, SMM_GRU_BIAS_HH, hidden, u->d_gates_hidden, d_hidden, 1, g);
}

/* What backward needs of an update, (5 D + H, Kp), to what is saved or back: products with weights are not made again. */
static void SMM_T(update_save)(const smm_sizes *s, const SMM_T(update_scratch) *u, real *saved)
{
    const size_t c = s->D * s->Kp;
    memcpy(saved, u->gates_in, 2 * c * sizeof *saved);
    memcpy(saved + 2 * c, u->gates_hidden + 2 * c, c * sizeof *saved);
    memcpy(saved + 3 * c, u->candidate, c * sizeof *saved);
    memcpy(saved + 4 * c, u->h, c * sizeof *saved);
    memcpy(saved + 5 * c, u->hidden, s->H * s->Kp * sizeof *saved);
}

static void SMM_T(update_restore)(const KERNELS *k, const smm_sizes *s, const real *const *p, const real *saved,
                                  const SMM_T(update_scratch) *u)
{
    const size_t D = s->D, n = s->Kp, c = D * n;
    memcpy(u->gates_in, saved, 2 * c * sizeof *saved);
    memcpy(u->gates_hidden + 2 * c, saved + 2 * c, c * sizeof *saved);
    memcpy(u->candidate, saved + 3 * c, c * sizeof *saved);
    memcpy(u->h, saved + 4 * c, c * sizeof *saved);
    memcpy(u->hidden, saved + 5 * c, s->H * n * sizeof *saved);
    k->norm(D, n, u->h, n, p[SMM_NORM_MLP_WEIGHT], p[SMM_NORM_MLP_BIAS], (real)s->cfg->norm_eps, u->normed, n, u->mean, u->rstd);
}

/* The update of slots:  h = GRU(m, hidden);  out = h + W_2 ReLU(W_1 LN(h) + b_1) + b_2.   All (D,Kp). */
static void SMM_T(update_forward)(const KERNELS *k, const smm_sizes *s, const real *const *p, const real *m, const real *hidden,
                                  const SMM_T(update_scratch) *u, real *out)
{
    const size_t D = s->D, H = s->H, n = s->Kp;
    SMM_T(gru_forward)(k, s, p, m, hidden, u);
    k->norm(D, n, u->h, n, p[SMM_NORM_MLP_WEIGHT], p[SMM_NORM_MLP_BIAS], (real)s->cfg->norm_eps, u->normed, n, u->mean, u->rstd);
    SMM_T(linear_relu_forward)(k, H, D, n, p[SMM_MLP_0_WEIGHT], p[SMM_MLP_0_BIAS], u->normed, u->hidden);
    SMM_T(linear_forward)(k, D, H, n, p[SMM_MLP_2_WEIGHT], p[SMM_MLP_2_BIAS], u->hidden, out);
    k->add(D * n, u->h, out);
}

/* From d_out: dm, d_hidden (overwritten) and parameter gradients; `saved`: what update_save has left. */
static void SMM_T(update_backward)(const KERNELS *k, const smm_sizes *s, const real *const *p, const real *saved, const real *m,
                                   const real *hidden, const SMM_T(update_scratch) *u, const real *d_out, real *dm, real *d_hidden,
                                   const SMM_T(grad_set) *g)
{
    const size_t D = s->D, H = s->H, n = s->Kp;
    SMM_T(update_restore)(k, s, p, saved, u);
    SMM_T(slots_linear_backward)(k, s, p, u->pending, SMM_MLP_2_WEIGHT, SMM_MLP_2_BIAS, u->hidden, d_out, u->d_hidden, 0, g);
    k->relu_backward(H, n, u->hidden, n, u->d_hidden, n);
    SMM_T(slots_linear_backward)(k, s, p, u->pending, SMM_MLP_0_WEIGHT, SMM_MLP_0_BIAS, u->normed, u->d_hidden, u->d_h, 0, g);
    k->norm_backward(D, n, u->h, n, p[SMM_NORM_MLP_WEIGHT], u->mean, u->rstd, u->d_h, n, u->d_h, n, g->at[SMM_NORM_MLP_WEIGHT],
                     g->at[SMM_NORM_MLP_BIAS]);
    k->add(D * n, d_out, u->d_h);
    SMM_T(gru_backward)(k, s, p, m, hidden, u, dm, d_hidden, g);
}
