/* expectation_tpl.h - the E step: queries, distances or products, responsibilities; each with its
 * backward.
 *
 * With s = e^{-log_std}, the squared distance is sum_d ((k - q) s)^2. It is summed as (k s +
 * shift)^2, shift = -q s: one operation less, and as exact while |q s| is small, as its rounding
 * error is |q s| ulps of 1. Beyond that, e->exact, the difference comes first. */
#ifndef SMM_EXPECTATION_TPL_H
#define SMM_EXPECTATION_TPL_H

#include <math.h>

#include "state_tpl.h"

#define LOG_2PI 1.8378770664093454836

/* Factor of distances or products in the logits. */
static real logit_factor(const smm_sizes *s) {
    if (s->dot) return (real)s->cfg->scale;
    if (s->variance && !s->reference) return (real)(-0.5 * s->cfg->temperature);
    return -(real)s->cfg->scale;
}

/* What W_q is applied to, of slots [begin, begin + K): the LayerNorm of the mean, or of [mean,
 * log_std], or the mean itself; *log_std in the same rows, *ld apart. */
static const real *query_inputs(image_state *im, const slot_state *r, const e_step *e, size_t begin,
                                size_t K, const real **log_std, size_t *ld) {
    const smm_sizes *s = im->s;
    const slots_side *side = &im->side;
    const size_t Dp = s->Dp, width = 2 * Dp;
    const real *const gain = side->w[SMM_NORM_SLOTS_WEIGHT].row, eps = (real)s->cfg->norm_eps;
    const real *const bias = side->w[SMM_NORM_SLOTS_BIAS].row, *mean = r->mean + begin * Dp;
    *log_std = r->log_std + begin * Dp;
    *ld = Dp;
    if (s->dot) {
        im->k->norm_rows(K, Dp, s->D, side->ones, mean, Dp, gain, bias, eps, e->normed, Dp,
                         e->norm_mean, e->norm_rstd);
        return e->normed;
    }
    if (!s->slot_norm) return mean;
    copy_rows(K, Dp, mean, Dp, e->cat, width);
    copy_rows(K, Dp, *log_std, Dp, e->cat + Dp, width);
    im->k->norm_rows(K, width, 2 * s->D, side->ones, e->cat, width, gain, bias, eps, e->normed,
                     width, e->norm_mean, e->norm_rstd);
    *log_std = e->normed + Dp;
    *ld = width;
    return e->normed;
}

/* Folded: from the queries of W_q to those that meet inputs, W_k' q of each head, and base = factor
 * b_k . q. */
static void fold_queries(image_state *im, const e_step *e, size_t K) {
    const smm_sizes *s = im->s;
    const size_t dims = s->P / s->heads, padded = s->Qp / s->heads;
    heads_input_backward(&im->side, SMM_TO_K_WEIGHT, K, e->q_rows, s->Qp, e->q, s->Cp,
                         head_stride(im));
    if (!s->cfg->qkv_bias) return;
    for (size_t h = 0; h < s->heads; h++) {
        const real *bias = im->p[SMM_TO_K_BIAS] + h * dims, *q = e->q_rows + h * padded;
        for (size_t j = 0; j < K; j++, q += s->Qp)
            for (size_t d = 0; d < dims; d++)
                e->base[h * im->slots + j] += e->factor * bias[d] * q[d];
    }
}

/* Inverse standard deviations, shifts and constants of the logits, of slots [begin, begin + K). */
static void precisions_forward(image_state *im, const slot_state *r, const e_step *e, size_t begin,
                               size_t K, const real *log_std, size_t ld) {
    const smm_sizes *s = im->s;
    const size_t Cp = s->Cp;
    if (s->reference) /* W_q without its bias */
        slots_linear_forward(&im->side, SMM_TO_Q_WEIGHT, NO_PARAM, K, log_std, ld, e->scale, Cp,
                             OVERWRITE, NO_RELU);
    else if (s->variance) copy_rows(K, s->Dp, log_std, ld, e->scale, Cp);
    else memset(e->scale, 0, K * Cp * sizeof *e->scale);
    *e->largest = im->k->precision(K, Cp, e->scale, e->q, e->shift, Cp, e->base_density);
    if (!s->variance || s->reference) return;
    for (size_t j = 0; j < K; j++) {
        const real log_prior = LOG(r->prior[begin + j]), log_det = e->base_density[j];
        e->base[j] = log_prior - (real)s->cfg->temperature * log_det;
        e->base_density[j] = log_prior - log_det;
    }
}

/* What the E step needs of a state, of slots [begin, begin + K). */
static void queries_forward(image_state *im, const slot_state *r, size_t begin, size_t K) {
    const smm_sizes *s = im->s;
    const e_step e = e_step_of(s, &im->e, begin);
    const real *log_std;
    size_t ld;
    const real *in = query_inputs(im, r, &e, begin, K, &log_std, &ld);
    real *const q = s->folded ? e.q_rows : e.q;
    if (s->learned)
        slots_linear_forward(&im->side, SMM_TO_Q_WEIGHT, SMM_TO_Q_BIAS, K, in, ld, q, s->Qp,
                             OVERWRITE, NO_RELU);
    else copy_rows(K, s->Dp, in, ld, q, s->Dp);
    for (size_t h = 0; h < s->heads; h++)
        for (size_t j = 0; j < K; j++)
            e.base[h * im->slots + j] = is_assigned(im, begin + j) ? 0 : -INFINITY;
    memset(e.largest, 0, K * sizeof *e.largest);
    if (s->folded) fold_queries(im, &e, K);
    if (!s->dot) precisions_forward(im, r, &e, begin, K, log_std, ld);
}

/* What concerns all slots together, from what queries_forward has left. */
static void finish_queries(image_state *im) {
    e_step *e = &im->e;
    real largest = 0;
    for (size_t j = 0; j < im->slots; j++)
        largest = e->largest[j] > largest ? e->largest[j] : largest;
    e->exact = largest > 64;
    e->centred = largest > 4;
}

/* Gradient of query_inputs, rows *ld apart: back.d_cat before a LayerNorm, else the state's. */
static real *d_query_inputs(const image_state *im, size_t begin, size_t *ld) {
    const smm_sizes *s = im->s;
    *ld = s->slot_norm ? 2 * s->Dp : s->Dp;
    return (s->dot || s->slot_norm ? im->back.d_cat : im->back.d_state) + begin * *ld;
}

/* Backward of fold_queries: from back.d_folded and d_base to back.d_q and the gradient of W_k. */
static void unfold_queries(image_state *im, const slot_share *share) {
    const smm_sizes *s = im->s;
    const size_t dims = s->P / s->heads, padded = s->Qp / s->heads;
    const size_t K = share->count, begin = share->begin;
    const real *d_folded = im->back.d_folded + begin * s->Cp;
    real *d_q = im->back.d_q + begin * s->Qp;
    heads_forward(&im->side, SMM_TO_K_WEIGHT, NO_PARAM, K, d_folded, s->Cp, head_stride(im), d_q,
                  s->Qp);
    heads_weight_backward(&im->side, SMM_TO_K_WEIGHT, share, d_folded, s->Cp, head_stride(im),
                          im->e.q_rows + begin * s->Qp, s->Qp);
    if (!s->cfg->qkv_bias) return;
    for (size_t h = 0; h < s->heads; h++) {
        const real *d_base = im->back.d_base + h * im->slots + begin;
        const real *bias = im->p[SMM_TO_K_BIAS] + h * dims;
        for (size_t j = 0; j < K; j++)
            for (size_t d = 0; d < dims; d++)
                d_q[j * s->Qp + h * padded + d] += d_base[j] * bias[d];
    }
}

/* Backward of query_inputs: from d_in to the state, added to d_state and, with [mean, log_std], to
 * d_log_std (overwritten). */
static void query_inputs_backward(image_state *im, const slot_state *r, const e_step *e, size_t at,
                                  size_t K, real *d_in, size_t ld, real *d_state, real *d_log_std) {
    const smm_sizes *s = im->s;
    const KERNELS *k = im->k;
    const size_t Dp = s->Dp;
    const real *const gain = im->side.w[SMM_NORM_SLOTS_WEIGHT].row, *ones = im->side.ones;
    real *d_x = e->normed; /* nobody reads it any more */
    if (s->norm_hidden)    /* of the GRU's hidden state */
        for (size_t j = 0; j < K; j++) k->add(Dp, d_state + j * Dp, d_in + j * ld);
    if (s->dot)
        k->norm_rows_backward(K, Dp, s->D, ones, r->mean + at, Dp, gain, e->norm_mean, e->norm_rstd,
                              d_in, Dp, d_x, Dp);
    else
        k->norm_rows_backward(K, ld, 2 * s->D, ones, e->cat, ld, gain, e->norm_mean, e->norm_rstd,
                              d_in, ld, d_x, ld);
    if (s->norm_hidden) copy_rows(K, Dp, d_x, ld, d_state, Dp);
    else
        for (size_t j = 0; j < K; j++) k->add(Dp, d_x + j * ld, d_state + j * Dp);
    if (!s->dot) copy_rows(K, Dp, d_x + Dp, ld, d_log_std, Dp);
}

/* Backward of queries_forward, of a share of the slots: from back.d_q and back.d_ls to the state's,
 * added to back.d_state (of the GRU's hidden state so far) and overwriting back.d_log_std. */
static void queries_backward(image_state *im, const slot_state *r, const slot_share *share) {
    const smm_sizes *s = im->s;
    const slots_side *side = &im->side;
    const e_step e = e_step_of(s, &im->e, share->begin);
    const size_t Dp = s->Dp, K = share->count, at = share->begin * Dp;
    const int normed = s->dot || s->slot_norm;
    const real *d_q = im->back.d_q + share->begin * s->Qp, *d_ls = im->back.d_ls + at;
    real *d_state = im->back.d_state + at, *d_log_std = im->back.d_log_std + at;
    size_t ld;
    real *d_in = d_query_inputs(im, share->begin, &ld),
         *d_second = s->slot_norm ? d_in + Dp : d_log_std;
    /* the reference applies W_q to means and, without its bias, to log standard deviations */
    const slot_share first = {share->begin, K, (s->reference ? 2 : 1) * share->all};
    const slot_share second = {share->all + share->begin, K, 0};
    if (s->folded) unfold_queries(im, share);
    if (s->learned)
        slots_linear_backward(side, SMM_TO_Q_WEIGHT, &first, normed ? e.normed : r->mean + at, ld,
                              d_q, s->Qp, d_in, ld, normed ? OVERWRITE : ACCUMULATE);
    else im->k->add(K * Dp, d_q, d_in);
    if (s->reference)
        slots_linear_backward(side, SMM_TO_Q_WEIGHT, &second, e.normed + Dp, ld, d_ls, Dp, d_second,
                              ld, OVERWRITE);
    else if (s->variance) copy_rows(K, Dp, d_ls, Dp, d_second, ld);
    if (normed) query_inputs_backward(im, r, &e, at, K, d_in, ld, d_state, d_log_std);
}

/* Gradients of vectors, which are sums over all slots, from what queries_backward has left. */
static void queries_sums(image_state *im, const slot_state *r, const grad_set *g) {
    const smm_sizes *s = im->s;
    const e_step *e = &im->e;
    const size_t K = im->slots;
    size_t ld;
    const real *d_in = d_query_inputs(im, 0, &ld);
    slots_bias_backward(&im->side, SMM_TO_Q_BIAS, K, im->back.d_q, s->Qp, g);
    if (s->dot || s->slot_norm)
        im->k->norm_rows_sums(K, ld, s->dot ? r->mean : e->cat, ld, e->norm_mean, e->norm_rstd,
                              d_in, ld, g->at[SMM_NORM_SLOTS_WEIGHT], g->at[SMM_NORM_SLOTS_BIAS]);
    if (!s->folded || !s->cfg->qkv_bias) return;
    for (size_t h = 0, padded = s->Qp / s->heads; h < s->heads; h++)
        for (size_t j = 0; j < K; j++)
            for (size_t d = h * padded; d < (h + 1) * padded; d++)
                g->at[SMM_TO_K_BIAS][d] += im->back.d_base[h * K + j] * e->q_rows[j * s->Qp + d];
}

/* Squared distances of a block's keys, in units of the standard deviations, to out (slots,
 * SMM_BLOCK). */
static void distances(const image_state *im, const real *keys, real *out) {
    const e_step *e = &im->e;
    const size_t n = SMM_BLOCK, K = im->slots, C = im->s->C, Cp = im->s->Cp;
    if (e->exact) im->k->sqdist_exact(K, C, n, keys, n, e->scale, e->q, Cp, out, n);
    else im->k->sqdist(K, C, n, keys, n, e->scale, e->shift, Cp, out, n);
}

/* gamma (heads, slots, SMM_BLOCK) of a block; adds to sums (heads, slots). ratio: see
 * softmax_linear. */
static void responsibilities(const image_state *im, const slot_state *r, const real *keys,
                             size_t valid, real *gamma, real *sums, real *ratio) {
    const smm_sizes *s = im->s;
    const KERNELS *k = im->k;
    const e_step *e = &im->e;
    const size_t K = im->slots, n = SMM_BLOCK;
    if (s->dot) {
        const size_t rows = s->cfg->joint_softmax ? s->heads * K : K;
        for (size_t i = 0; i < s->split; i++)
            k->gemm(s->stack * K, n, s->Ch, e->q + i * s->Ch, s->Cp, 1, keys + i * s->Ch * n, n,
                    gamma + i * K * n, n, OVERWRITE);
        for (size_t j = 0; j < s->heads * K; j += rows)
            k->softmax(rows, n, valid, gamma + j * n, n, e->factor, e->base + j, sums + j, NULL);
        return;
    }
    distances(im, keys, gamma);
    if (s->reference)
        k->softmax_linear(K, n, valid, gamma, n, e->factor, (real)s->cfg->eps, r->prior, sums,
                          ratio);
    else k->softmax(K, n, valid, gamma, n, e->factor, e->base, sums, NULL);
}

/* The same, and the block's log-likelihood, log sum_k prior_k N_k over its inputs: of the last
 * step. The temperature has a say in responsibilities alone. */
static real responsibilities_and_likelihood(const image_state *im, const real *keys, size_t valid,
                                            real *gamma, real *sums, input_block *b) {
    const smm_sizes *s = im->s;
    const e_step *e = &im->e;
    const size_t K = im->slots, n = SMM_BLOCK;
    const int tempered = s->cfg->temperature != 1;
    distances(im, keys, gamma);
    if (tempered) {
        memcpy(b->d_gamma, gamma, K * n * sizeof *gamma);
        im->k->softmax(K, n, valid, b->d_gamma, n, (real)-0.5, e->base_density, b->discarded,
                       b->lse);
    }
    im->k->softmax(K, n, valid, gamma, n, e->factor, e->base, sums, tempered ? NULL : b->lse);
    real sum = 0;
    for (size_t i = 0; i < valid; i++) sum += b->lse[i];
    return sum - (real)valid * (real)(0.5 * LOG_2PI) * (real)s->D;
}

/* What the sum over heads is divided by for the attention. */
static real attention_heads(const smm_sizes *s) {
    return s->cfg->attention_sum ? 1 : (real)s->heads;
}

/* attention[row, slot] = mean or sum over heads of gamma, for the block's rows. */
static void write_attention(const image_state *im, const real *gamma, size_t first, size_t valid,
                            const size_t *index, real *attention) {
    const size_t K = im->slots, n = SMM_BLOCK, heads = im->s->heads;
    for (size_t i = 0; i < valid; i++) {
        real *row = attention + (index ? index[first + i] : first + i) * im->s->K;
        for (size_t j = 0; j < K; j++) {
            real sum = 0;
            for (size_t h = 0; h < heads; h++) sum += gamma[(h * K + j) * n + i];
            row[im->active[j]] = sum / attention_heads(im->s);
        }
    }
}

/* Backward of write_attention: adds d_attention to b->d_gamma, divided by back.a, as
 * softmax_backward multiplies by it. */
static void attention_backward(const image_state *im, size_t first, size_t valid, input_block *b,
                               const real *d_attention) {
    const smm_sizes *s = im->s;
    const size_t K = im->slots, n = SMM_BLOCK, *index = im->in.index;
    for (size_t i = 0; i < valid; i++) {
        const real *row = d_attention + (index ? index[first + i] : first + i) * s->K;
        for (size_t j = 0; j < s->heads * K; j++)
            b->d_gamma[j * n + i] += row[im->active[j % K]] / (attention_heads(s) * im->back.a[j]);
    }
}

/* From b->d_gamma to gradients of the logits, in place; adds to sums (heads, slots). */
static void logits_backward(const image_state *im, input_block *b, real *sums) {
    const size_t K = im->slots, n = SMM_BLOCK;
    const real *factor = im->s->reference ? b->ratio : b->gamma;
    const size_t all = im->s->heads * K, rows = im->s->cfg->joint_softmax ? all : K;
    for (size_t j = 0; j < all; j += rows)
        im->k->softmax_backward(rows, n, b->gamma + j * n, factor + j * n, b->d_gamma + j * n, n,
                                im->back.a + j, im->back.c + j, sums + j);
}

/* What the log-likelihood's gradient g gives to the logits, in b->d_gamma, and to sums and extra.
 * With rho the responsibilities of the density alone, distances get -g rho / 2 and log prior -
 * log_det gets g rho. In terms of logits, whose temperature scales both, that is g rho /
 * temperature, and what log prior lacks goes to `extra`. Without a temperature rho is gamma. */
static void likelihood_backward(const image_state *im, const real *keys, size_t valid, real g,
                                const moment_sums *m, input_block *b) {
    const size_t K = im->slots, n = SMM_BLOCK;
    const real temperature = (real)im->s->cfg->temperature, scaled = g / temperature;
    const real *rho = b->gamma;
    if (temperature != 1) {
        rho = b->density;
        distances(im, keys, b->density);
        im->k->softmax(K, n, valid, b->density, n, (real)-0.5, im->e.base_density, b->discarded,
                       NULL);
    }
    for (size_t k = 0; k < K; k++) {
        real sum = 0;
        for (size_t i = 0; i < valid; i++) {
            b->d_gamma[k * n + i] += scaled * rho[k * n + i];
            sum += rho[k * n + i];
        }
        m->sums[k] += scaled * sum;
        m->extra[k] += (g - scaled) * sum;
    }
}

/* The reference variant's logits leave out log prior, whose gradient is gamma (g - dot): see
 * softmax_backward. What it is more than theirs goes to `extra`. To be called before that. */
static void linear_prior_backward(const image_state *im, size_t valid, const moment_sums *m,
                                  const input_block *b) {
    const size_t K = im->slots, n = SMM_BLOCK;
    const real *a = im->back.a, *c = im->back.c;
    for (size_t i = 0; i < valid; i++) {
        real dot = 0;
        for (size_t k = 0; k < K; k++)
            dot += b->gamma[k * n + i] * (a[k] * b->d_gamma[k * n + i] + c[k]);
        for (size_t k = 0; k < K; k++)
            m->extra[k] += (b->gamma[k * n + i] - b->ratio[k * n + i]) *
                           (a[k] * b->d_gamma[k * n + i] + c[k] - dot);
    }
}

/* From gradients of the logits, in b->d_gamma, to those of the keys (added), and the sums R1 and R2
 * that query_sums_backward needs (added to m). */
static void keys_backward(const image_state *im, const real *keys, size_t valid, real *d_keys,
                          const moment_sums *m, input_block *b) {
    const smm_sizes *s = im->s;
    const KERNELS *k = im->k;
    const backward_work *w = &im->back;
    const size_t K = im->slots, n = SMM_BLOCK, Cp = s->Cp, Ch = s->Ch, Vp = s->Vp;
    for (size_t i = 0; i < s->split; i++)
        k->transpose_out(valid, Ch, s->Chp, keys + i * Ch * n, n, NULL, b->rows + i * s->Chp, Vp);
    if (s->dot) {
        for (size_t i = 0; i < s->split; i++) {
            const real *d_logits = b->d_gamma + i * K * n;
            k->gemm(Ch, n, s->stack * K, w->key_slope + i * Ch, 1, Cp, d_logits, n,
                    d_keys + i * Ch * n, n, ACCUMULATE);
            k->gemm(s->stack * K, s->Chp, valid, d_logits, n, 1, b->rows + i * s->Chp, Vp,
                    m->m1 + i * s->Chp, Vp, ACCUMULATE);
        }
    } else if (im->e.centred) {
        k->spread_about(K, s->D, n, b->d_gamma, n, keys, n, w->key_slope, w->key_const, im->e.q, Cp,
                        d_keys, n);
        k->moments_about(K, valid, Vp, b->d_gamma, n, b->rows, Vp, im->e.q, m->m1, m->m2, Vp);
    } else {
        k->spread(K, s->D, n, b->d_gamma, n, keys, n, w->key_slope, w->key_const, Cp, d_keys, n);
        k->moments(K, valid, Vp, b->d_gamma, n, b->rows, Vp, m->m1, m->m2, Vp);
    }
}

/* Slot Attention: gradient of slot j's query from R1. */
static void product_sums_backward(image_state *im, const moment_sums *t, size_t j, real *d_q) {
    const smm_sizes *s = im->s;
    for (size_t h = 0; h < s->heads; h++) {
        const real *R1 = t->m1 + head_moments(im, h, j);
        real *to = d_q + head_channels(im, h, j);
        for (size_t d = 0; d < s->Ch; d++) to[d] = im->e.factor * R1[d];
    }
    for (size_t i = j; s->folded && i < s->heads * im->slots; i += im->slots)
        im->back.d_base[i] = im->e.factor * t->sums[i];
}

/* Others: gradients of slot j's query and log standard deviation from R0, R1, R2. `kept`: the
 * gradient of standard deviations that the step did not change, or NULL. */
static void distance_sums_backward(image_state *im, const moment_sums *t, size_t j, real *d_q,
                                   real *d_ls, const real *kept) {
    const smm_sizes *s = im->s;
    const e_step *e = &im->e;
    const real factor = -2 * e->factor, R0 = t->sums[j];
    const real temperature = s->reference ? 0 : (real)s->cfg->temperature;
    for (size_t d = 0; d < s->C; d++) {
        const real q = e->q[j * s->Cp + d], scale = e->scale[j * s->Cp + d];
        real R1 = t->m1[j * s->Vp + d], R2 = t->m2[j * s->Vp + d];
        if (!e->centred) {
            R2 -= q * (2 * R1 - q * R0);
            R1 -= q * R0;
        }
        const real weight = factor * scale * scale;
        d_q[d] = weight * R1;
        if (s->variance) d_ls[d] = weight * R2 - temperature * R0;
        if (s->variance && kept) d_ls[d] += kept[d];
    }
}

/* From the image's sums R0, R1, R2 to back.d_q (folded: d_folded), d_ls and d_prior, of a share of
 * slots. */
static void query_sums_backward(image_state *im, const slot_state *r, const moment_sums *total,
                                const slot_share *share) {
    const smm_sizes *s = im->s;
    const size_t begin = share->begin, K = share->count;
    real *d_q = s->folded ? im->back.d_folded : im->back.d_q;
    for (size_t i = 0; i < s->stack; i++)
        memset(d_q + i * head_stride(im) + begin * s->Cp, 0, K * s->Cp * sizeof *d_q);
    memset(im->back.d_ls + begin * s->Dp, 0, K * s->Dp * sizeof *d_q);
    for (size_t j = begin; j < begin + K; j++) {
        const real prior = s->variance ? r->prior[j] : 0,
                   *d_log_std = im->back.d_log_std + j * s->Dp;
        if (s->dot) product_sums_backward(im, total, j, d_q);
        else
            distance_sums_backward(im, total, j, d_q + j * s->Cp, im->back.d_ls + j * s->Dp,
                                   is_empty(im, r->sums, j) ? d_log_std : NULL);
        im->back.d_prior[j] = prior > 0 ? (total->sums[j] + total->extra[j]) / prior : 0;
    }
}

#endif
