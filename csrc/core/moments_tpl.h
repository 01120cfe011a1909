/* moments_tpl.h - the M step: weighted means and variances of the values, with their backward.
 *
 * With w = (gamma + eps) / S, S its sum over inputs, m the weighted mean, V the variance about it,
 * mu' the updated mean, Sigma = V + (m - mu')^2 + floor, A the gradient of Sigma, and t = v - mu':
 *
 *     d_w[n,k]     = sum_d A t^2 + dm t, plus a constant of k, which drops out below
 *     d_gamma      = (d_w - sum_n w d_w) / S + d_prior / N
 *     sum_n w d_w  = sum_d A (V + (m - mu')^2) + dm (m - mu')
 *     d_v[n]       = sum_k w (2 A t + dm)
 *
 * Slot Attention: d_w = dm . v, d_v = sum_k w dm. What its sum over inputs is divided by may be
 * S + eps, or a constant, which takes sum_n w d_w out of d_gamma. */
#ifndef SMM_MOMENTS_TPL_H
#define SMM_MOMENTS_TPL_H

#include "expectation_tpl.h"

static moment_sums moments_of(const image_state *im, size_t chunk) {
    const smm_sizes *s = im->s;
    const size_t rows = s->stack * s->K * s->Vp;
    moment_sums m = {.sums = im->moments.partials + chunk * im->moments.partial};
    m.extra = m.sums + smm_pad(s->heads * s->K);
    m.m1 = m.sums + im->moments.weights;
    m.m2 = s->dot ? NULL : m.m1 + rows;
    m.values = m.m1 + (s->dot ? 1 : 2) * rows;
    m.loglik = m.values + 2 * s->Vp;
    return m;
}

/* Add a block's moments to m: responsibilities gamma (heads, slots, SMM_BLOCK), values as rows. */
static void block_moments(const image_state *im, const real *gamma, const real *values,
                          size_t valid, const moment_sums *m) {
    const smm_sizes *s = im->s;
    const size_t K = im->slots, n = SMM_BLOCK, Vp = s->Vp;
    if (!s->variance)
        for (size_t i = 0; i < s->split; i++)
            im->k->gemm(s->stack * K, s->Chp, valid, gamma + i * K * n, n, 1, values + i * s->Chp,
                        Vp, m->m1 + i * s->Chp, Vp, ACCUMULATE);
    else if (im->moments.at_points)
        im->k->moments_about(K, valid, Vp, gamma, n, values, Vp, im->moments.point, m->m1, m->m2,
                             Vp);
    else im->k->moments(K, valid, Vp, gamma, n, values, Vp, m->m1, m->m2, Vp);
}

/* Sum the chunks' arrays, in their order, into the first chunk's: all but the slots' moments. */
static moment_sums sum_weights(const image_state *im) {
    const moment_sums total = moments_of(im, 0);
    for (size_t c = 1; c < image_chunks(im); c++) {
        const moment_sums m = moments_of(im, c);
        im->k->add(im->moments.weights, m.sums, total.sums);
        im->k->add(2 * im->s->Vp + SMM_LANES, m.values, total.values); /* and loglik */
    }
    return total;
}

/* And the moments of a share of the slots. */
static moment_sums sum_moments(const image_state *im, const slot_share *share) {
    const size_t first = share->begin * im->s->Vp, size = share->count * im->s->Vp;
    const moment_sums total = moments_of(im, 0);
    for (size_t c = 1; c < image_chunks(im); c++) {
        const moment_sums m = moments_of(im, c);
        for (size_t i = 0; i < im->s->stack; i++) {
            const size_t at = first + i * im->slots * im->s->Vp;
            im->k->add(size, m.m1 + at, total.m1 + at);
        }
        if (total.m2) im->k->add(size, m.m2 + first, total.m2 + first);
    }
    return total;
}

/* What a mean is multiplied by. */
static double mean_factor(const smm_sizes *s) {
    const int scaled = s->dot && s->cfg->update == SMM_UPDATE_SCALED_MEAN;
    return scaled ? (double)s->cfg->update_slots / (double)s->K : 1;
}

/* What the sum over inputs is multiplied by for the weighted mean, from the sum of
 * responsibilities; 0 without any weight. */
static double mean_scale(const image_state *im, double sum) {
    const smm_config *c = im->s->cfg;
    const double count = (double)im->in.n;
    if (!im->s->dot) return 1 / (sum + weight_eps(im->s) * count);
    if (c->update == SMM_UPDATE_SUM) return 1;
    if (c->update == SMM_UPDATE_CONSTANT) return 1 / count;
    const double weight = sum + (c->eps_in_total ? c->eps : c->eps * count);
    return weight < (double)WEIGHT_LEAST ? 0 : mean_factor(im->s) / weight;
}

/* Whether that depends on the sum of responsibilities. */
static int scale_varies(const smm_sizes *s) {
    return !s->dot || s->cfg->update <= SMM_UPDATE_SCALED_MEAN;
}

/* Slot j's weighted mean, head by head, of kinds without variances. The eps of every weight enters
 * through the sums of all values. */
static void slot_mean(const image_state *im, const moment_sums *t, size_t j, real *means) {
    const smm_sizes *s = im->s;
    const double eps = weight_eps(s);
    for (size_t h = 0; h < s->heads; h++) {
        const double scale = mean_scale(im, (double)t->sums[h * im->slots + j]);
        const real *first = t->m1 + head_moments(im, h, j);
        const real *all = im->moments.value_sums + head_values(im, h);
        real *m = means + head_channels(im, h, j);
        for (size_t d = 0; d < s->Ch; d++) {
            const real centre = s->learned ? 0 : im->moments.centre[d];
            m[d] = (real)(centre + (first[d] + eps * all[d]) * scale);
        }
    }
}

/* Slot j's weighted mean and the variance about it, to r. Returns whether they are exact enough:
 * with moments centred at a point p, variance = m2/S - (m1/S)^2 loses digits where the mean is far
 * from p beside the spread. Then the means just found become the slots' points, and the caller sums
 * again. */
static int slot_moments(image_state *im, const slot_state *r, const moment_sums *t, size_t j) {
    const smm_sizes *s = im->s;
    const moment_work *w = &im->moments;
    const size_t Vp = s->Vp;
    real *m = r->m + j * s->Cp, *point = w->point + j * Vp;
    if (!w->at_points) memset(point, 0, Vp * sizeof *point);
    if (is_empty(im, t->sums, j)) {
        memcpy(m, r->mean + j * s->Dp, s->Dp * sizeof *m); /* C is D here */
        memset(r->variance + j * s->Dp, 0, s->Dp * sizeof *m);
        return 1;
    }
    if (!s->variance) {
        slot_mean(im, t, j, r->m);
        return 1;
    }
    return im->k->mean_variance(Vp, (double)t->sums[j], weight_eps(s), (double)im->in.n,
                                (double)w->least_floor, t->m1 + j * Vp, t->m2 + j * Vp,
                                w->value_sums, w->centre, point, m, r->variance + j * s->Dp);
}

/* A, the gradient of Sigma, and what Sigma gives to the gradient of the updated mean: of a share of
 * slots. */
static void variance_backward(image_state *im, const slot_state *r, const slot_state *next,
                              const slot_share *share) {
    const smm_sizes *s = im->s;
    backward_work *w = &im->back;
    memset(w->d_variance + share->begin * s->Cp, 0, share->count * s->Cp * sizeof(real));
    if (!s->variance) return;
    for (size_t j = share->begin; j < share->begin + share->count; j++) {
        if (is_empty(im, r->sums, j)) continue;
        for (size_t d = 0, i = j * s->Dp; d < s->Dp; d++, i++) { /* C is D here */
            const real shift = mean_shift(im, r, next, i);
            const real sigma = r->variance[i] + shift * shift + im->moments.floor[d];
            const real A = sigma > VARIANCE_LEAST ? w->d_log_std[i] / (2 * sigma) : 0;
            w->d_variance[i] = A;
            w->d_mean[i] -= 2 * A * shift;
        }
    }
}

/* Constants of slot j's head h for the pass over inputs, without variances; returns sum_n w d_w, or
 * 0 where what the sum is divided by is a constant. S: mean_scale, or 0. */
static real mean_constants(image_state *im, const slot_state *r, size_t j, size_t h, real S) {
    const smm_sizes *s = im->s;
    const size_t at = head_channels(im, h, j);
    const real *restrict dm = (s->folded ? im->back.d_folded : im->back.dm) + at;
    const real *restrict centre = im->moments.centre, *restrict m = r->m + at;
    real *restrict linear = im->back.linear + at;
    real *restrict slope = im->back.value_slope + at, *restrict constant =
                                                          im->back.value_const + at;
    real sum = 0;
    for (size_t d = 0; d < s->Ch; d++) {
        linear[d] = S > 0 ? dm[d] : 0, slope[d] = 0, constant[d] = dm[d] * S;
        sum += dm[d] * (m[d] - centre[d]);
    }
    return scale_varies(s) ? sum / (real)mean_factor(s) : 0;
}

/* The same with variances. Values are centred at the shared point or, with at_means, at the slots'
 * means; *far is set where slot j needs the latter. */
static real variance_constants(image_state *im, const slot_state *r, const slot_state *next,
                               size_t j, real S, int at_means, int *far) {
    const smm_sizes *s = im->s;
    const size_t at = j * s->Cp, D = s->D;
    const int learned = s->learned;
    const real *restrict dm = im->back.dm + at, *restrict A = im->back.d_variance + at;
    const real *restrict centre = im->moments.centre, *restrict m = r->m + at;
    const real *restrict after = next->mean + at, *restrict variance = r->variance + at;
    real *restrict linear = im->back.linear + at, *restrict mean = im->back.point + at;
    real *restrict slope = im->back.value_slope + at, *restrict constant =
                                                          im->back.value_const + at;
    real sum = 0;
    for (size_t d = 0; d < D; d++) {
        mean[d] = learned ? after[d] - centre[d] : m[d];
        linear[d] = at_means ? dm[d] : dm[d] - 2 * A[d] * mean[d];
        slope[d] = 2 * A[d] * S, constant[d] = linear[d] * S;
    }
    for (size_t d = 0; d < D; d++) {
        const real own = learned ? m[d] - centre[d] : m[d];
        const real moved = own - mean[d], about = learned ? m[d] - after[d] : 0;
        const real shift = at_means ? about : own;
        sum += A[d] * (variance[d] + shift * shift) + linear[d] * shift;
        *far |= mean[d] * mean[d] + own * own > 16 * (variance[d] + moved * moved);
    }
    return sum;
}

/* Constants of row j of the queries for the gradients of the keys. */
static void key_constants(image_state *im, size_t j) {
    const smm_sizes *s = im->s;
    const e_step *e = &im->e;
    const size_t at = j * s->Cp;
    if (s->dot) {
        for (size_t d = 0; d < s->C; d++) im->back.key_slope[at + d] = e->q[at + d] * e->factor;
        memset(im->back.key_const + at, 0, s->C * sizeof(real));
        return;
    }
    const real *restrict q = e->q + at, *restrict scale = e->scale + at;
    real *restrict slope = im->back.key_slope + at, *restrict constant = im->back.key_const + at;
    for (size_t d = 0; d < s->C; d++) {
        slope[d] = 2 * e->factor * scale[d] * scale[d];
        constant[d] = -slope[d] * q[d];
    }
}

/* Constants of a share of the slots for the pass over inputs. Returns whether some slot's values
 * have to be centred at its mean. */
static int pass_rows(image_state *im, const slot_state *r, const slot_state *next,
                     const slot_share *share, int at_means) {
    const smm_sizes *s = im->s;
    int far = 0;
    for (size_t j = share->begin; j < share->begin + share->count; j++) {
        for (size_t h = 0; h < s->heads; h++) {
            const size_t i = h * im->slots + j;
            const int empty = is_empty(im, r->sums, j); /* all is 0 then */
            const real S = empty ? 1 : (real)mean_scale(im, (double)r->sums[i]);
            const real sum = s->variance ? variance_constants(im, r, next, j, S, at_means, &far)
                                         : mean_constants(im, r, j, h, S);
            im->back.a[i] = S > 0 ? S : 1;
            im->back.c[i] = -sum * S;
        }
        for (size_t i = 0; i < s->stack; i++) key_constants(im, i * im->slots + j);
        if (s->learned_prior) im->back.c[j] += im->back.d_prior[j] / (real)im->in.n;
    }
    return far;
}

/* What follows from the constants of all slots. Returns whether values are centred at the slots'
 * means. */
static int finish_pass_rows(image_state *im, const slot_state *r, const slot_state *next) {
    const smm_sizes *s = im->s;
    backward_work *w = &im->back;
    const size_t K = im->slots, Cp = s->Cp;
    const real eps = (real)weight_eps(s);
    const slot_share all = share_of(K, 0, 1);
    int at_means = 0;
    for (size_t j = 0; j < K; j++) at_means |= im->moments.inexact[j] != 0;
    if (at_means) pass_rows(im, r, next, &all, 1);
    if (im->e.centred) memset(w->key_const, 0, K * Cp * sizeof(real)); /* keys: at the queries */
    for (size_t j = 0; j < s->stack * K; j++)
        for (size_t d = 0; d < s->C; d++) {
            const size_t at = j * Cp + d;
            const real moved = at_means ? w->value_slope[at] * w->point[at] : 0;
            w->eps_slope[d] += eps * w->value_slope[at];
            w->eps_const[d] += eps * (w->value_const[at] - moved);
        }
    return at_means;
}

/* d_w of a block, from its values (C, SMM_BLOCK), to b->d_gamma. */
static void weights_backward(const image_state *im, const real *values, int at_means,
                             input_block *b) {
    const smm_sizes *s = im->s;
    const backward_work *w = &im->back;
    const size_t K = im->slots, n = SMM_BLOCK, Cp = s->Cp, Ch = s->Ch;
    if (!s->variance)
        for (size_t i = 0; i < s->split; i++)
            im->k->gemm(s->stack * K, n, Ch, w->linear + i * Ch, Cp, 1, values + i * Ch * n, n,
                        b->d_gamma + i * K * n, n, OVERWRITE);
    else if (at_means)
        im->k->quad_about(K, s->D, n, values, n, w->d_variance, w->linear, w->point, Cp, b->d_gamma,
                          n);
    else im->k->quad(K, s->D, n, values, n, w->d_variance, w->linear, Cp, b->d_gamma, n);
}

/* d_values (C, SMM_BLOCK) += sum_k w (2 A t + dm), but for the eps of the weights. */
static void values_backward(const image_state *im, const real *values, int at_means, real *d_values,
                            const input_block *b) {
    const smm_sizes *s = im->s;
    const backward_work *w = &im->back;
    const size_t K = im->slots, n = SMM_BLOCK, Cp = s->Cp, Ch = s->Ch;
    if (!s->variance)
        for (size_t i = 0; i < s->split; i++)
            im->k->gemm(Ch, n, s->stack * K, w->value_const + i * Ch, 1, Cp, b->gamma + i * K * n,
                        n, d_values + i * Ch * n, n, ACCUMULATE);
    else if (at_means)
        im->k->spread_about(K, s->D, n, b->gamma, n, values, n, w->value_slope, w->value_const,
                            w->point, Cp, d_values, n);
    else
        im->k->spread(K, s->D, n, b->gamma, n, values, n, w->value_slope, w->value_const, Cp,
                      d_values, n);
}

/* What the eps of every weight gives them, in lanes of real inputs. */
static void eps_backward(const image_state *im, size_t valid, const real *values, real *d_values) {
    const size_t n = SMM_BLOCK, C = im->s->C;
    im->k->affine(C, n, values, n, im->back.eps_slope, im->back.eps_const, d_values, n, ACCUMULATE);
    if (valid == n) return;
    for (size_t d = 0; d < C; d++)
        memset(d_values + d * n + valid, 0, (n - valid) * sizeof *d_values);
}

#endif
