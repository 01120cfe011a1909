/* slots_tpl.h - the slots' side: linear maps, the GRU and the residual MLP on rows X[slot][channel], forward then backward.
 *
 * Slots are few: in rows no lane is lost on them, and each weight is read once for all. A row is padded to SMM_LANES, part by part
 * (smm_layout), with zeros where a sum over it is taken. Several threads may have a share of the slots each; sums over all slots, as
 * gradients of biases are, are taken after that. */

/* Rows of X and dY that the gradient of one of the slots' weights still has to be summed over. An image has few slots: those of
 * several steps and images make one product. */
typedef struct {
    real *x, *dy;
    size_t rows, next; /* there; there once all threads are done with the step in progress */
    int summed;        /* whether the gradient has a sum so far; what it holds is nothing otherwise */
} SMM_T(pending);

/* A thread's share: `count` slots from `begin` on, of `all`; rows that a function takes are those of the share. */
typedef struct {
    size_t begin, count, all;
} SMM_T(share);

static SMM_T(share) SMM_T(share_of)(size_t all, size_t i, size_t shares)
{
    const size_t begin = smm_part(all, i, shares);
    const SMM_T(share) share = {begin, smm_part(all, i + 1, shares) - begin, all};
    return share;
}

/* What these functions share: kernels, packed parameters, and what is pending going backward. */
typedef struct {
    const KERNELS *k;
    const smm_sizes *s;
    const SMM_T(packed) *w;  /* one for each parameter */
    const real *ones;        /* see params */
    SMM_T(pending) *pending; /* one for each parameter; backward */
    int threads;             /* of one image */
} SMM_T(slots_side);

#define SMM_NO_PARAM SMM_PARAMS

/* Y = X W' + b, or what Y holds plus that; X rows (K, ldx), Y (K, ldy). */
static void SMM_T(slots_linear_forward)(const SMM_T(slots_side) *c, size_t weight, size_t bias, size_t K, const real *X, size_t ldx,
                                        real *Y, size_t ldy, int accumulate, int relu)
{
    const SMM_T(packed) *w = &c->w[weight];
    const smm_layout *l = &w->layout;
    const size_t in = l->in / l->in_parts, inp = smm_pad(in);
    const real *b = bias == SMM_NO_PARAM ? NULL : c->w[bias].row;
    for (size_t i = 0; i < l->in_parts; i++)
        c->k->rows_linear(K, l->outp, in, X + i * inp, ldx, w->to_out + i * in * l->outp, i ? NULL : b, Y, ldy, accumulate || i,
                          relu && i + 1 == l->in_parts);
}

/* dX (+)= dY W. */
static void SMM_T(slots_input_backward)(const SMM_T(slots_side) *c, size_t weight, size_t K, const real *dY, size_t ldy, real *dX,
                                        size_t ldx, int accumulate)
{
    const SMM_T(packed) *w = &c->w[weight];
    const smm_layout *l = &w->layout;
    const size_t out = l->out / l->out_parts, outp = smm_pad(out);
    for (size_t o = 0; o < l->out_parts; o++)
        c->k->rows_linear(K, l->inp, out, dY + o * outp, ldy, w->to_in + o * out * l->inp, NULL, dX, ldx, accumulate || o, 0);
}

/* Add what is pending of parameter i to its gradient: a part of its rows. */
static void SMM_T(flush_part)(const SMM_T(slots_side) *c, const SMM_T(grad_set) *g, size_t i, size_t part, size_t parts)
{
    const SMM_T(pending) *q = &c->pending[i];
    const smm_layout *l = &c->w[i].layout;
    const size_t out = l->out / l->out_parts, outp = smm_pad(out);
    const size_t begin = smm_part(out, part, parts), rows = smm_part(out, part + 1, parts) - begin;
    for (size_t o = 0; q->rows && o < l->out_parts; o++)
        c->k->gemm(rows, l->inp, q->rows, q->dy + o * outp + begin, 1, l->outp, q->x, l->inp, g->at[i] + (o * out + begin) * l->inp,
                   l->inp, q->summed);
}

#define FLUSH_PARTS 4

/* Add all that is pending to the gradients. */
static void SMM_T(flush_pending)(const SMM_T(slots_side) *c, const SMM_T(grad_set) *g)
{
    const size_t parts = c->threads > 1 ? FLUSH_PARTS : 1;
    SMM_PARALLEL(c->threads, SMM_PARAMS * parts, i, thread, SMM_T(flush_part)(c, g, i % SMM_PARAMS, i / SMM_PARAMS, parts));
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        SMM_T(pending) *q = &c->pending[i];
        q->summed |= q->rows > 0;
        q->rows = q->next = 0;
    }
}

/* The same at the end of a set, after which another begins. */
static void SMM_T(finish_pending)(const SMM_T(slots_side) *c, const SMM_T(grad_set) *g)
{
    SMM_T(flush_pending)(c, g);
    for (size_t i = 0; i < SMM_PARAMS; i++) c->pending[i].summed = 0;
}

/* Room for what a step of `slots` slots leaves pending: twice as many rows of a weight at most. */
static void SMM_T(reserve_pending)(const SMM_T(slots_side) *c, size_t slots, const SMM_T(grad_set) *g)
{
    int full = 0;
    for (size_t i = 0; i < SMM_PARAMS; i++) full |= c->pending[i].rows + 2 * slots > c->s->pending_rows;
    if (full) SMM_T(flush_pending)(c, g);
}

/* What all shares have left pending counts from now on. */
static void SMM_T(commit_pending)(const SMM_T(slots_side) *c)
{
    for (size_t i = 0; i < SMM_PARAMS; i++) c->pending[i].rows = c->pending[i].next;
}

/* gW += dY' X, left pending. */
static void SMM_T(slots_weight_backward)(const SMM_T(slots_side) *c, size_t weight, const SMM_T(share) *share, const real *X, size_t ldx,
                                         const real *dY, size_t ldy)
{
    SMM_T(pending) *q = &c->pending[weight];
    const smm_layout *l = &c->w[weight].layout;
    const size_t first = q->rows + share->begin;
    SMM_T(copy_rows)(share->count, l->inp, X, ldx, q->x + first * l->inp, l->inp);
    SMM_T(copy_rows)(share->count, l->outp, dY, ldy, q->dy + first * l->outp, l->outp);
    if (share->begin == 0) q->next = q->rows + share->all;
}

/* Backward of slots_linear_forward: dX, and the gradient of W left pending. */
static void SMM_T(slots_linear_backward)(const SMM_T(slots_side) *c, size_t weight, const SMM_T(share) *share, const real *X, size_t ldx,
                                         const real *dY, size_t ldy, real *dX, size_t lddx, int accumulate)
{
    SMM_T(slots_input_backward)(c, weight, share->count, dY, ldy, dX, lddx, accumulate);
    SMM_T(slots_weight_backward)(c, weight, share, X, ldx, dY, ldy);
}

/* And the gradient of b, of all K slots. */
static void SMM_T(slots_bias_backward)(const SMM_T(slots_side) *c, size_t bias, size_t K, const real *dY, size_t ldy,
                                       const SMM_T(grad_set) *g)
{
    if (g->at[bias]) c->k->column_sums(K, c->w[bias].layout.outp, dY, ldy, g->at[bias]);
}

/* Scratch of one slot update; rows of K slots. */
typedef struct {
    real *gates_in, *gates_hidden; /* 3 Dp: W_ih m + b_ih, W_hh hidden + b_hh */
    real *kept;                    /* 5 Dp: what the kernel gru keeps; h, the GRU's output, is its last part */
    real *hidden;                  /* Hp: ReLU(W_1 LN(h) + b_1); these two are what backward needs, one after the other */
    real *normed;                  /* Dp: LN(h) */
    real *mean, *rstd;             /* K: of the LayerNorm */
    real *d_gates_in, *d_gates_hidden, *d_hidden, *d_normed; /* their gradients */
} SMM_T(update_scratch);

/* That of slots from j on. */
static SMM_T(update_scratch) SMM_T(update_of)(const smm_sizes *s, const SMM_T(update_scratch) *all, size_t j)
{
    SMM_T(update_scratch) u = *all;
    const size_t c = j * s->Dp, h = j * s->Hp;
    u.gates_in += 3 * c, u.gates_hidden += 3 * c, u.kept += 5 * c, u.hidden += h, u.normed += c, u.mean += j, u.rstd += j;
    u.d_gates_in += 3 * c, u.d_gates_hidden += 3 * c, u.d_hidden += h, u.d_normed += c;
    return u;
}

static void SMM_T(norm_update)(const SMM_T(slots_side) *c, size_t K, const SMM_T(update_scratch) *u)
{
    const smm_sizes *s = c->s;
    c->k->norm_rows(K, s->Dp, s->D, c->ones, u->kept + 4 * s->Dp, 5 * s->Dp, c->w[SMM_NORM_MLP_WEIGHT].row,
                    c->w[SMM_NORM_MLP_BIAS].row, (real)s->cfg->norm_eps, u->normed, s->Dp, u->mean, u->rstd);
}

/* The update of slots:  h = GRU(m, hidden);  out = h + W_2 ReLU(W_1 LN(h) + b_1) + b_2.   m, out (K,Dp), hidden (K,ldh). */
static void SMM_T(update_forward)(const SMM_T(slots_side) *c, size_t K, const real *m, const real *hidden, size_t ldh,
                                  const SMM_T(update_scratch) *u, real *out)
{
    const size_t Dp = c->s->Dp, Hp = c->s->Hp;
    SMM_T(slots_linear_forward)(c, SMM_GRU_WEIGHT_IH, SMM_GRU_BIAS_IH, K, m, Dp, u->gates_in, 3 * Dp, 0, 0);
    SMM_T(slots_linear_forward)(c, SMM_GRU_WEIGHT_HH, SMM_GRU_BIAS_HH, K, hidden, ldh, u->gates_hidden, 3 * Dp, 0, 0);
    c->k->gru(K, Dp, u->gates_in, u->gates_hidden, hidden, ldh, u->kept);
    SMM_T(norm_update)(c, K, u);
    SMM_T(slots_linear_forward)(c, SMM_MLP_0_WEIGHT, SMM_MLP_0_BIAS, K, u->normed, Dp, u->hidden, Hp, 0, 1);
    SMM_T(copy_rows)(K, Dp, u->kept + 4 * Dp, 5 * Dp, out, Dp);
    SMM_T(slots_linear_forward)(c, SMM_MLP_2_WEIGHT, SMM_MLP_2_BIAS, K, u->hidden, Hp, out, Dp, 1, 0);
}

/* What backward needs of an update of K slots, to what is saved (zeros for the others); its products with weights are not made
 * again. */
static void SMM_T(update_save)(const smm_sizes *s, size_t K, const SMM_T(update_scratch) *u, real *saved)
{
    const size_t kept = 5 * s->Dp;
    memcpy(saved, u->kept, K * kept * sizeof *saved);
    memset(saved + K * kept, 0, (s->K - K) * kept * sizeof *saved);
    saved += s->K * kept;
    memcpy(saved, u->hidden, K * s->Hp * sizeof *saved);
    memset(saved + K * s->Hp, 0, (s->K - K) * s->Hp * sizeof *saved);
}

/* From d_out: dm and d_hidden (overwritten), and gradients of weights left pending; `saved`: what update_save has left, of all slots.
 * Rows are those of the share, in u too; all but hidden (count,Dp). */
static void SMM_T(update_backward)(const SMM_T(slots_side) *c, const SMM_T(share) *share, const real *saved, const real *m,
                                   const real *hidden, size_t ldh, const SMM_T(update_scratch) *u, const real *d_out, real *dm,
                                   real *d_hidden)
{
    const smm_sizes *s = c->s;
    const size_t Dp = s->Dp, Hp = s->Hp, K = share->count;
    memcpy(u->kept, saved + share->begin * 5 * Dp, K * 5 * Dp * sizeof *saved);
    memcpy(u->hidden, saved + s->K * 5 * Dp + share->begin * Hp, K * Hp * sizeof *saved);
    SMM_T(norm_update)(c, K, u);
    SMM_T(slots_linear_backward)(c, SMM_MLP_2_WEIGHT, share, u->hidden, Hp, d_out, Dp, u->d_hidden, Hp, 0);
    c->k->relu_backward(K, Hp, u->hidden, Hp, u->d_hidden, Hp);
    SMM_T(slots_linear_backward)(c, SMM_MLP_0_WEIGHT, share, u->normed, Dp, u->d_hidden, Hp, u->d_normed, Dp, 0);
    real *d_h = u->normed; /* which nobody reads any more */
    c->k->norm_rows_backward(K, Dp, s->D, c->ones, u->kept + 4 * Dp, 5 * Dp, c->w[SMM_NORM_MLP_WEIGHT].row, u->mean, u->rstd, u->d_normed,
                             Dp, d_h, Dp);
    c->k->add(K * Dp, d_out, d_h);
    c->k->gru_backward(K, Dp, u->kept, hidden, ldh, d_h, u->d_gates_in, u->d_gates_hidden, d_hidden);
    SMM_T(slots_linear_backward)(c, SMM_GRU_WEIGHT_IH, share, m, Dp, u->d_gates_in, 3 * Dp, dm, Dp, 0);
    SMM_T(slots_linear_backward)(c, SMM_GRU_WEIGHT_HH, share, hidden, ldh, u->d_gates_hidden, 3 * Dp, d_hidden, Dp, 1);
}

/* Gradients of the update's vectors, from what update_backward has left of all K slots. */
static void SMM_T(update_sums)(const SMM_T(slots_side) *c, size_t K, const SMM_T(update_scratch) *u, const real *d_out,
                               const SMM_T(grad_set) *g)
{
    const size_t Dp = c->s->Dp;
    SMM_T(slots_bias_backward)(c, SMM_MLP_2_BIAS, K, d_out, Dp, g);
    SMM_T(slots_bias_backward)(c, SMM_MLP_0_BIAS, K, u->d_hidden, c->s->Hp, g);
    c->k->norm_rows_sums(K, Dp, u->kept + 4 * Dp, 5 * Dp, u->mean, u->rstd, u->d_normed, Dp, g->at[SMM_NORM_MLP_WEIGHT],
                         g->at[SMM_NORM_MLP_BIAS]);
    SMM_T(slots_bias_backward)(c, SMM_GRU_BIAS_IH, K, u->d_gates_in, 3 * Dp, g);
    SMM_T(slots_bias_backward)(c, SMM_GRU_BIAS_HH, K, u->d_gates_hidden, 3 * Dp, g);
}
