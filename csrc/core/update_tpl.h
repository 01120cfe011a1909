/* update_tpl.h - from weighted means and variances to the next state: heads' output map, GRU,
 * residual MLP, log standard deviations, prior; with their backward. */
#ifndef SMM_UPDATE_TPL_H
#define SMM_UPDATE_TPL_H

#include "moments_tpl.h"

#define SQRT_HALF 0.70710678118654752440
#define INV_SQRT_PI 0.56418958354775628695

static void update_norm(const slots_side *c, size_t K, const update_work *u) {
    const smm_sizes *s = c->s;
    c->k->norm_rows(K, s->Dp, s->D, c->ones, u->gru + 4 * s->Dp, 5 * s->Dp,
                    c->w[SMM_NORM_MLP_WEIGHT].row, c->w[SMM_NORM_MLP_BIAS].row,
                    (real)s->cfg->norm_eps, u->normed, s->Dp, u->mean, u->rstd);
}

/* The GELU of n numbers, x Phi(x), to y; and its backward, y *= Phi(x) + x phi(x). */
static void gelu_forward(size_t n, const real *x, real *y) {
    for (size_t i = 0; i < n; i++) y[i] = x[i] * (1 + ERF(x[i] * (real)SQRT_HALF)) / 2;
}
static void gelu_backward(const KERNELS *k, size_t n, const real *x, real *y, real *density) {
    for (size_t i = 0; i < n; i++) density[i] = -x[i] * x[i] / 2;
    k->exp(n, density);
    for (size_t i = 0; i < n; i++) {
        const real below = (1 + ERF(x[i] * (real)SQRT_HALF)) / 2;
        y[i] *= below + x[i] * density[i] * (real)(SQRT_HALF * INV_SQRT_PI);
    }
}

/* to (K, ldt) += m (K, Mp), whose columns may be in parts, one of each head. */
static void add_heads(const smm_sizes *s, size_t K, const real *m, real *to, size_t ldt) {
    const size_t parts = s->combined ? 1 : s->stack, dims = s->D / parts, padded = s->Mp / parts;
    for (size_t j = 0; j < K; j++)
        for (size_t d = 0; d < s->D; d++)
            to[j * ldt + d] += m[j * s->Mp + d / dims * padded + d % dims];
}

/* Its backward: dm = d. */
static void add_heads_backward(const smm_sizes *s, size_t K, const real *d, real *dm) {
    const size_t parts = s->combined ? 1 : s->stack, dims = s->D / parts, padded = s->Mp / parts;
    memset(dm, 0, K * s->Mp * sizeof *dm);
    for (size_t j = 0; j < K; j++)
        for (size_t c = 0; c < s->D; c++)
            dm[j * s->Mp + c / dims * padded + c % dims] = d[j * s->Dp + c];
}

/* h = GRU(m, hidden), or hidden + m, the last part of u->gru. */
static void gru_forward(const slots_side *c, size_t K, const real *m, const real *hidden,
                        size_t ldh, const update_work *u) {
    const size_t Dp = c->s->Dp;
    if (!c->s->cfg->gru) {
        memset(u->gru, 0, K * 5 * Dp * sizeof *u->gru);
        copy_rows(K, Dp, hidden, ldh, u->gru + 4 * Dp, 5 * Dp);
        add_heads(c->s, K, m, u->gru + 4 * Dp, 5 * Dp);
        return;
    }
    slots_linear_forward(c, SMM_GRU_WEIGHT_IH, SMM_GRU_BIAS_IH, K, m, c->s->Mp, u->gates_in, 3 * Dp,
                         OVERWRITE, NO_RELU);
    slots_linear_forward(c, SMM_GRU_WEIGHT_HH, SMM_GRU_BIAS_HH, K, hidden, ldh, u->gates_hidden,
                         3 * Dp, OVERWRITE, NO_RELU);
    c->k->gru(K, Dp, u->gates_in, u->gates_hidden, hidden, ldh, u->gru);
}

/* h = GRU(m, hidden); out = h + W_2 f(W_1 LN(h) + b_1) + b_2, f a ReLU or GELU. m (K,Mp), out
 * (K,Dp), hidden (K,ldh). */
static void update_forward(const slots_side *c, size_t K, const real *m, const real *hidden,
                           size_t ldh, const update_work *u, real *out) {
    const size_t Dp = c->s->Dp, Hp = c->s->Hp;
    gru_forward(c, K, m, hidden, ldh, u);
    copy_rows(K, Dp, u->gru + 4 * Dp, 5 * Dp, out, Dp);
    if (!u->mlp) {
        memset(u->hidden, 0, K * Hp * sizeof *u->hidden); /* of the saved state */
        return;
    }
    update_norm(c, K, u);
    slots_linear_forward(c, SMM_MLP_0_WEIGHT, SMM_MLP_0_BIAS, K, u->normed, Dp, u->hidden, Hp,
                         OVERWRITE, !c->s->cfg->gelu);
    if (c->s->cfg->gelu) gelu_forward(K * Hp, u->hidden, u->activated);
    slots_linear_forward(c, SMM_MLP_2_WEIGHT, SMM_MLP_2_BIAS, K, u->activated, Hp, out, Dp,
                         ACCUMULATE, NO_RELU);
}

/* Where the residuals of the update after step t are in the saved state: at the end of its head, of
 * every step or of the last alone. */
static size_t saved_update_at(const smm_sizes *s, size_t t) {
    return s->saved_head - (s->steps_back == s->T ? s->T - t : 1) * s->update;
}

/* The residuals of an update of K slots, zeros for the others: backward recomputes no product. */
static void update_save(const smm_sizes *s, size_t K, const update_work *u, real *saved) {
    const size_t gru = 5 * s->Dp;
    memcpy(saved, u->gru, K * gru * sizeof *saved);
    memset(saved + K * gru, 0, (s->K - K) * gru * sizeof *saved);
    saved += s->K * gru;
    memcpy(saved, u->hidden, K * s->Hp * sizeof *saved);
    memset(saved + K * s->Hp, 0, (s->K - K) * s->Hp * sizeof *saved);
}

/* Backward of the MLP of h, of a share of the slots: d_h = d_out + what passes through it. */
static void mlp_backward(const slots_side *c, const slot_share *share, const update_work *u,
                         const real *d_out, real *d_h) {
    const smm_sizes *s = c->s;
    const size_t Dp = s->Dp, Hp = s->Hp, K = share->count;
    update_norm(c, K, u);
    if (s->cfg->gelu) gelu_forward(K * Hp, u->hidden, u->activated);
    slots_linear_backward(c, SMM_MLP_2_WEIGHT, share, u->activated, Hp, d_out, Dp, u->d_hidden, Hp,
                          OVERWRITE);
    if (s->cfg->gelu) gelu_backward(c->k, K * Hp, u->hidden, u->d_hidden, u->activated);
    else c->k->relu_backward(K, Hp, u->hidden, Hp, u->d_hidden, Hp);
    slots_linear_backward(c, SMM_MLP_0_WEIGHT, share, u->normed, Dp, u->d_hidden, Hp, u->d_normed,
                          Dp, OVERWRITE);
    c->k->norm_rows_backward(K, Dp, s->D, c->ones, u->gru + 4 * Dp, 5 * Dp,
                             c->w[SMM_NORM_MLP_WEIGHT].row, u->mean, u->rstd, u->d_normed, Dp, d_h,
                             Dp);
    c->k->add(K * Dp, d_out, d_h);
}

/* Backward of update_forward, of a share of the slots: from d_out and the residuals of all slots to
 * dm and d_hidden (overwritten); gradients of weights are left pending. Rows are (count,Dp), but
 * for m, dm and hidden. */
static void update_backward(const slots_side *c, const slot_share *share, const real *saved,
                            const real *m, const real *hidden, size_t ldh, const update_work *u,
                            const real *d_out, real *dm, real *d_hidden) {
    const smm_sizes *s = c->s;
    const size_t Dp = s->Dp, Hp = s->Hp, Mp = s->Mp, K = share->count;
    real *d_h = u->normed; /* which nobody reads then */
    memcpy(u->gru, saved + share->begin * 5 * Dp, K * 5 * Dp * sizeof *saved);
    memcpy(u->hidden, saved + s->K * 5 * Dp + share->begin * Hp, K * Hp * sizeof *saved);
    if (u->mlp) mlp_backward(c, share, u, d_out, d_h);
    else memcpy(d_h, d_out, K * Dp * sizeof *d_h);
    if (!s->cfg->gru) {
        memcpy(d_hidden, d_h, K * Dp * sizeof *d_h);
        add_heads_backward(s, K, d_h, dm);
        return;
    }
    c->k->gru_backward(K, Dp, u->gru, hidden, ldh, d_h, u->d_gates_in, u->d_gates_hidden, d_hidden);
    slots_linear_backward(c, SMM_GRU_WEIGHT_IH, share, m, Mp, u->d_gates_in, 3 * Dp, dm, Mp,
                          OVERWRITE);
    slots_linear_backward(c, SMM_GRU_WEIGHT_HH, share, hidden, ldh, u->d_gates_hidden, 3 * Dp,
                          d_hidden, Dp, ACCUMULATE);
}

/* Gradients of vectors, which are sums over all K slots, from what update_backward has left. */
static void update_sums(const slots_side *c, size_t K, const update_work *u, const real *d_out,
                        const grad_set *g) {
    const size_t Dp = c->s->Dp;
    if (u->mlp) {
        slots_bias_backward(c, SMM_MLP_2_BIAS, K, d_out, Dp, g);
        slots_bias_backward(c, SMM_MLP_0_BIAS, K, u->d_hidden, c->s->Hp, g);
        c->k->norm_rows_sums(K, Dp, u->gru + 4 * Dp, 5 * Dp, u->mean, u->rstd, u->d_normed, Dp,
                             g->at[SMM_NORM_MLP_WEIGHT], g->at[SMM_NORM_MLP_BIAS]);
    }
    slots_bias_backward(c, SMM_GRU_BIAS_IH, K, u->d_gates_in, 3 * Dp, g);
    slots_bias_backward(c, SMM_GRU_BIAS_HH, K, u->d_gates_hidden, 3 * Dp, g);
}

/* The means of all heads, of a share of slots: r->m, or W_v m + b_v where W_v is folded. */
static const real *mapped_means(image_state *im, const slot_state *r, const slot_share *share) {
    const smm_sizes *s = im->s;
    if (!s->folded) return r->m + share->begin * s->Cp;
    real *mapped = im->mapped + share->begin * s->Qp;
    heads_forward(&im->side, SMM_TO_V_WEIGHT, SMM_TO_V_BIAS, share->count,
                  r->m + share->begin * s->Cp, s->Cp, head_stride(im), mapped, s->Qp);
    return mapped;
}

/* What the update takes: these, or their output map. */
static const real *combined_means(image_state *im, const slot_share *share, const real *mapped) {
    const smm_sizes *s = im->s;
    if (!s->combined) return mapped;
    real *combined = im->combined + share->begin * s->Dp;
    slots_linear_forward(&im->side, SMM_COMBINE_HEADS_WEIGHT, SMM_COMBINE_HEADS_BIAS, share->count,
                         mapped, s->Qp, combined, s->Dp, OVERWRITE, NO_RELU);
    return combined;
}

/* The hidden state that the GRU takes of slots from `begin` on, rows *ldh apart. */
static const real *hidden_state(const image_state *im, const slot_state *r, size_t begin,
                                size_t *ldh) {
    *ldh = im->s->norm_hidden && !im->s->dot ? 2 * im->s->Dp : im->s->Dp;
    return (im->s->norm_hidden ? im->e.normed : r->mean) + begin * *ldh;
}

static real next_prior(const image_state *im, const slot_state *r, size_t j) {
    if (im->s->learned_prior) return r->sums[j] / (real)im->in.n;
    if (!is_assigned(im, j)) return 0;
    if (im->s->reference) return (real)(1 / ((double)im->assigned + im->s->cfg->eps));
    return 1 / (real)im->assigned;
}

/* An empty slot's standard deviations stay what they were. */
static void keep_spread(image_state *im, const real *before, real *log_std, real *variance) {
    const size_t Dp = im->s->Dp;
    memcpy(log_std, before, Dp * sizeof *log_std);
    for (size_t d = 0; d < Dp; d++) variance[d] = 2 * log_std[d];
    im->k->exp(Dp, variance);
}

/* Variances about the updated means, to log_std and out.variance; and the prior. */
static void spreads_forward(image_state *im, const slot_state *r, const slot_state *next,
                            const slot_share *share) {
    const smm_sizes *s = im->s;
    const size_t D = s->D, Dp = s->Dp;
    for (size_t j = share->begin; j < share->begin + share->count; j++) {
        const real *v = r->variance + j * Dp;
        real *log_std = next->log_std + j * Dp, *variance = im->out.variance + j * Dp;
        for (size_t d = 0; d < Dp; d++) {
            const real shift = mean_shift(im, r, next, j * Dp + d);
            const real sigma = v[d] + shift * shift + im->moments.floor[d];
            variance[d] = log_std[d] = sigma > VARIANCE_LEAST ? sigma : VARIANCE_LEAST;
        }
        im->k->log(Dp, log_std);
        for (size_t d = 0; d < Dp; d++) log_std[d] /= 2;
        if (is_empty(im, r->sums, j)) keep_spread(im, r->log_std + j * Dp, log_std, variance);
        memset(log_std + D, 0, (Dp - D) * sizeof(real));
        next->prior[j] = next_prior(im, r, j);
    }
}

/* The next state of a share of the slots. */
static void state_forward(image_state *im, const slot_state *r, const slot_state *next,
                          const slot_share *share) {
    const smm_sizes *s = im->s;
    const size_t first = share->begin * s->Dp;
    if (s->learned) {
        size_t ldh;
        const real *hidden = hidden_state(im, r, share->begin, &ldh);
        const update_work u = update_of(s, &im->u, share->begin);
        const real *m = combined_means(im, share, mapped_means(im, r, share));
        update_forward(&im->side, share->count, m, hidden, ldh, &u, next->mean + first);
    } else {
        memcpy(next->mean + first, r->m + first, share->count * s->Dp * sizeof(real));
        if (s->variance) /* C is D here */
            memcpy(r->m + first, im->moments.point + first, share->count * s->Dp * sizeof(real));
    }
    if (s->variance) spreads_forward(im, r, next, share);
}

/* Backward of state_forward of step t: to gradients of the weighted means (back.dm, d_folded), of
 * the variances (d_variance) and of the GRU's hidden state (d_state). */
static void state_backward(image_state *im, const slot_state *r, const slot_state *next, size_t t,
                           const slot_share *share) {
    const smm_sizes *s = im->s;
    const size_t at = share->begin * s->Dp, size = share->count * s->Dp;
    real *dm = im->back.dm + share->begin * s->Qp;
    real *d_mean = im->back.d_mean + at, *d_state = im->back.d_state + at;
    variance_backward(im, r, next, share);
    if (!s->learned) {
        memcpy(dm, d_mean, size * sizeof *dm);
        memset(d_state, 0, size * sizeof *d_state);
        for (size_t j = 0; j < share->count; j++)
            if (is_empty(im, r->sums, share->begin + j)) { /* it kept its mean */
                memcpy(d_state + j * s->Dp, d_mean + j * s->Dp, s->Dp * sizeof *dm);
                memset(dm + j * s->Dp, 0, s->Dp * sizeof *dm);
            }
        return;
    }
    size_t ldh;
    const real *hidden = hidden_state(im, r, share->begin, &ldh);
    const real *mapped = mapped_means(im, r, share), *m = combined_means(im, share, mapped);
    const update_work u = update_of(s, &im->u, share->begin);
    real *d_combined = s->combined ? im->back.d_combined + at : dm;
    update_backward(&im->side, share, im->saved + saved_update_at(s, t), m, hidden, ldh, &u, d_mean,
                    d_combined, d_state);
    if (s->combined)
        slots_linear_backward(&im->side, SMM_COMBINE_HEADS_WEIGHT, share, mapped, s->Qp, d_combined,
                              s->Dp, dm, s->Qp, OVERWRITE);
    if (!s->folded) return;
    const size_t first = share->begin * s->Cp;
    heads_input_backward(&im->side, SMM_TO_V_WEIGHT, share->count, dm, s->Qp,
                         im->back.d_folded + first, s->Cp, head_stride(im));
    heads_weight_backward(&im->side, SMM_TO_V_WEIGHT, share, r->m + first, s->Cp, head_stride(im),
                          dm, s->Qp);
}

/* Gradients of vectors, which are sums over all slots. */
static void state_sums(image_state *im, const grad_set *g) {
    if (im->s->learned) update_sums(&im->side, im->slots, &im->u, im->back.d_mean, g);
    if (im->s->combined)
        slots_bias_backward(&im->side, SMM_COMBINE_HEADS_BIAS, im->slots, im->back.d_combined,
                            im->s->Dp, g);
    if (im->s->folded)
        slots_bias_backward(&im->side, SMM_TO_V_BIAS, im->slots, im->back.dm, im->s->Qp, g);
}

#endif
