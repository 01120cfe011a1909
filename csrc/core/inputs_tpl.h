/* inputs_tpl.h - from the inputs of one block to keys and values, and back.
 *
 *     Slot Attention   h = LN(x);                 k = W_k h, v = W_v h
 *     SMM, paper       h = MLP(LN(x)) or x;  h = LN(h) if norm_kv;   k = W_k h, v = h
 *     SMM, reference   h = MLP(LN(x)) or x;  h = LN(h);              k = W_k h, v = W_v h
 *     clustering       k = v = x
 *
 * Slot Attention's maps are linear and so are its uses of keys and values: q . (W_k h) = (W_k' q) . h and
 * sum_n w (W_v h) = W_v sum_n w h. With one head both maps are `folded` into the K slots' side, where they cost next to nothing,
 * and the passes over inputs see k = v = h.
 *
 * Going backward, a block is made again; of a call of moderate size, forward has saved both layers of its MLP and its keys. Through
 * several steps, its values are there already, and keys in any case. */

/* Linear maps of a block, X (channels, n): lanes beyond the real inputs hold finite values going forward and zeros going backward, so
 * that no sum needs to know of them. */

/* Y = W X + b    W (out,in), rows smm_spaced(in) apart, b (out) or NULL, X (in,n), Y (out,n); and the same through a ReLU */
static void SMM_T(linear_forward)(const KERNELS *k, size_t out, size_t in, size_t n, const real *W, const real *b, const real *X,
                                  real *Y)
{
    k->linear(out, n, in, W, smm_spaced(in), b, X, n, Y, n, 0);
}

static void SMM_T(linear_relu_forward)(const KERNELS *k, size_t out, size_t in, size_t n, const real *W, const real *b, const real *X,
                                       real *Y)
{
    k->linear(out, n, in, W, smm_spaced(in), b, X, n, Y, n, 1);
}

/* dX (+)= W' dY;  gW += dY X';  gb += sum of dY over lanes.
 *
 * `rows` is scratch of n * smm_spaced(pad(in)) elements: the product over lanes needs X with its channels side by side. dX, gW and
 * gb may be NULL. */
static void SMM_T(linear_backward)(const KERNELS *k, size_t out, size_t in, size_t n, const real *W, const real *X, const real *dY,
                                   real *dX, int accumulate, real *gW, real *gb, real *rows)
{
    const size_t inp = smm_pad(in), ld = smm_spaced(inp);
    if (dX) k->gemm(in, n, out, W, 1, smm_spaced(in), dY, n, dX, n, accumulate);
    if (gW) {
        k->transpose_out(n, in, inp, X, n, NULL, rows, ld);
        k->gemm(out, inp, n, dY, n, 1, rows, ld, gW, inp, 1);
    }
    if (gb) k->row_sums(out, n, dY, n, gb);
}

/* Scratch of one thread; channel-major arrays are (channels, SMM_BLOCK). */
typedef struct {
    real *x, *x_normed;         /* I */
    real *layers;               /* H + F: both layers of the MLP, where they are not saved */
    const real *hidden, *h;     /* H, after the ReLU; F: there, or in what forward saves */
    real *h_normed;             /* F */
    real *mean_x, *rstd_x, *mean_h, *rstd_h;
    const real *features;       /* F: what W_k is applied to: one of the above */
    real *v;                    /* D, where values have their own map */
    const real *values;         /* D: the values: v or features */
    real *d_wide, *d_features;  /* gradients: max(H, I, F), max(I, F, D) */
    real *rows;                 /* (SMM_BLOCK, widest): a block with its channels side by side */
    real *gamma, *d_gamma, *ratio; /* (heads * K, SMM_BLOCK) responsibilities and their gradients */
    real *lse;                  /* SMM_BLOCK */
    real *ones;                 /* SMM_BLOCK */
    real *discarded;            /* heads * K, sums that nobody reads */
    real *keys, *value_rows;    /* C; (SMM_BLOCK, Vp) where values are not kept, going forward */
    real *centred;              /* C: values minus the image's centre; backward */
    real *d_keys, *d_values;    /* C; backward */
} SMM_T(block);

/* One image's inputs: row i of the compacted image is row index[i] of x, or row i where there is no mask. */
typedef struct {
    const real *x;
    const uint16_t *x_bfloat16; /* or NULL: in place of x */
    const size_t *index;
    size_t n;
} SMM_T(rows_in);

/* n numbers of half the width of a float, of which they are the upper half. */
static void SMM_T(widen)(size_t n, const uint16_t *from, real *to)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        to[i] = value;
    }
}

/* Rows from `first` on, in n <= SMM_BLOCK lanes, to `to`. */
static void SMM_T(inputs_read)(const KERNELS *k, const smm_sizes *s, const SMM_T(rows_in) *in, size_t first, size_t n, SMM_T(block) *b,
                               real *to)
{
    const size_t valid = smm_min(n, in->n - first), *index = in->index ? in->index + first : NULL;
    if (!in->x_bfloat16) {
        k->transpose_in(valid, s->I, n, index ? in->x : in->x + first * s->I, s->I, index, to, n);
        return;
    }
    for (size_t i = 0; i < valid; i++)
        SMM_T(widen)(s->I, in->x_bfloat16 + (index ? index[i] : first + i) * s->I, b->rows + i * s->I);
    k->transpose_in(valid, s->I, n, b->rows, s->I, NULL, to, n);
}

/* What is saved is the caller's memory: the kernels work in it where it is aligned as they need it. */
static int SMM_T(direct)(const real *saved) { return (uintptr_t)saved % SMM_ALIGN == 0; }

/* Both layers of the MLP of b->x_normed, to b->hidden and b->h: as forward has left them in `saved`, or made, to stand in `save`;
 * either may be NULL. */
static void SMM_T(inputs_mlp)(const KERNELS *k, const smm_sizes *s, const real *const *p, size_t n, SMM_T(block) *b, const real *saved,
                              real *save)
{
    const size_t count = (s->H + s->F) * n;
    real *layers = save && SMM_T(direct)(save) ? save : b->layers;
    b->hidden = saved && SMM_T(direct)(saved) ? saved : layers;
    b->h = b->hidden + s->H * n;
    if (saved) {
        if (b->hidden != saved) memcpy(layers, saved, count * sizeof *layers);
        return;
    }
    SMM_T(linear_relu_forward)(k, s->H, s->I, n, p[SMM_MLP_INPUT_0_WEIGHT], p[SMM_MLP_INPUT_0_BIAS], b->x_normed, layers);
    SMM_T(linear_forward)(k, s->F, s->H, n, p[SMM_MLP_INPUT_2_WEIGHT], p[SMM_MLP_INPUT_2_BIAS], layers, layers + s->H * n);
    if (save && layers != save) memcpy(save, layers, count * sizeof *save);
}

/* Rows from `first` on, in n <= SMM_BLOCK lanes, to b->features, what keys and values are computed from; saved, save: see
 * inputs_mlp. `keys`: where features stand that are keys themselves, or NULL. */
static void SMM_T(inputs_features)(const KERNELS *k, const smm_sizes *s, const real *const *p, const SMM_T(rows_in) *in, size_t first,
                                   size_t n, SMM_T(block) *b, const real *saved, real *save, real *keys)
{
    const real eps = (real)s->cfg->norm_eps;
    real *x = keys && !s->learned ? keys : b->x, *normed = keys && s->folded ? keys : b->x_normed;
    SMM_T(inputs_read)(k, s, in, first, n, b, x);
    b->features = x;
    if (s->input_norm) {
        k->norm(s->I, n, b->x, n, p[SMM_NORM_INPUT_WEIGHT], p[SMM_NORM_INPUT_BIAS], eps, normed, n, b->mean_x, b->rstd_x);
        b->features = normed;
    }
    if (s->input_mlp) {
        SMM_T(inputs_mlp)(k, s, p, n, b, saved, save);
        b->features = b->h;
    }
    if (s->norm_kv) {
        k->norm(s->F, n, b->features, n, p[SMM_NORM_KV_WEIGHT], p[SMM_NORM_KV_BIAS], eps, b->h_normed, n, b->mean_h, b->rstd_h);
        b->features = b->h_normed;
    }
}

/* Where the keys of a saved block stand: after the layers of its MLP. */
static size_t SMM_T(saved_keys)(const smm_sizes *s) { return SMM_BLOCK * (s->H + s->F); }

/* The same, and on to keys and b->values (C,n). Returns the keys: in `keys`, or in what is saved where a kernel can read them there. */
static const real *SMM_T(inputs_forward)(const KERNELS *k, const smm_sizes *s, const real *const *p, const SMM_T(rows_in) *in,
                                         size_t first, size_t n, SMM_T(block) *b, const real *saved, real *save, real *keys)
{
    SMM_T(inputs_features)(k, s, p, in, first, n, b, saved, save, keys);
    const real *const bias_k = s->cfg->qkv_bias ? p[SMM_TO_K_BIAS] : NULL, *const bias_v = s->cfg->qkv_bias ? p[SMM_TO_V_BIAS] : NULL;
    b->values = b->features;
    if (s->own_values) {
        SMM_T(linear_forward)(k, s->D, s->F, n, p[SMM_TO_V_WEIGHT], bias_v, b->features, b->v);
        b->values = b->v;
    }
    if (saved) {
        saved += SMM_T(saved_keys)(s);
        if (SMM_T(direct)(saved)) return saved;
        memcpy(keys, saved, s->C * n * sizeof *keys);
        return keys;
    }
    if (save) save += SMM_T(saved_keys)(s);
    real *to = save && SMM_T(direct)(save) ? save : keys;
    if (s->learned && !s->folded) SMM_T(linear_forward)(k, s->D, s->F, n, p[SMM_TO_K_WEIGHT], bias_k, b->features, to);
    if (save && to != save) memcpy(save, to, s->C * n * sizeof *save);
    return to;
}

/* From d_keys and d_values (C, SMM_BLOCK; zero in lanes beyond the real inputs; d_values is overwritten; folded: d_values is the
 * gradient of both) to parameter gradients and, where dx is not NULL, rows of dx (N,I). Follows inputs_features of the same block. */
static void SMM_T(inputs_backward)(const KERNELS *k, const smm_sizes *s, const real *const *p, const SMM_T(rows_in) *in, size_t first,
                                   SMM_T(block) *b, const real *d_keys, real *d_values, const SMM_T(grad_set) *g, real *dx, int add)
{
    const size_t n = SMM_BLOCK, valid = smm_min(n, in->n - first);
    real *d = d_values; /* gradient of the features, which are the values themselves, */
    if (s->own_values) { /* or have their own map */
        d = b->d_features;
        SMM_T(linear_backward)(k, s->D, s->F, n, p[SMM_TO_V_WEIGHT], b->features, d_values, d, 0, g->at[SMM_TO_V_WEIGHT],
                               g->at[SMM_TO_V_BIAS], b->rows);
    }
    if (s->learned && !s->folded)
        SMM_T(linear_backward)(k, s->D, s->F, n, p[SMM_TO_K_WEIGHT], b->features, d_keys, d, 1, g->at[SMM_TO_K_WEIGHT],
                               g->at[SMM_TO_K_BIAS], b->rows);
    if (!s->learned) k->add(s->D * n, d_keys, d);
    if (s->norm_kv) {
        const real *h = s->input_mlp ? b->h : b->x;
        k->norm_backward(s->F, n, h, n, p[SMM_NORM_KV_WEIGHT], b->mean_h, b->rstd_h, d, n, d, n, g->at[SMM_NORM_KV_WEIGHT],
                         g->at[SMM_NORM_KV_BIAS]);
    }
    if (s->input_mlp) {
        SMM_T(linear_backward)(k, s->F, s->H, n, p[SMM_MLP_INPUT_2_WEIGHT], b->hidden, d, b->d_wide, 0,
                               g->at[SMM_MLP_INPUT_2_WEIGHT], g->at[SMM_MLP_INPUT_2_BIAS], b->rows);
        k->relu_backward(s->H, n, b->hidden, n, b->d_wide, n);
        d = b->d_features;
        SMM_T(linear_backward)(k, s->H, s->I, n, p[SMM_MLP_INPUT_0_WEIGHT], b->x_normed, b->d_wide, d, 0,
                               g->at[SMM_MLP_INPUT_0_WEIGHT], g->at[SMM_MLP_INPUT_0_BIAS], b->rows);
    }
    if (s->input_norm)
        k->norm_backward(s->I, n, b->x, n, p[SMM_NORM_INPUT_WEIGHT], b->mean_x, b->rstd_x, d, n, d, n,
                         g->at[SMM_NORM_INPUT_WEIGHT], g->at[SMM_NORM_INPUT_BIAS]);
    if (!dx) return;
    if (!in->index && s->I == s->Ip && !add) {
        k->transpose_out(valid, s->I, s->I, d, n, NULL, dx + first * s->I, s->I);
        return;
    }
    k->transpose_out(valid, s->I, s->Ip, d, n, NULL, b->rows, s->Ip);
    for (size_t i = 0; i < valid; i++) {
        const size_t row = in->index ? in->index[first + i] : first + i;
        for (size_t c = 0; c < s->I; c++) dx[row * s->I + c] = b->rows[i * s->Ip + c] + (add ? dx[row * s->I + c] : 0);
    }
}
