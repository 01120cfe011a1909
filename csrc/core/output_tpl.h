/* output_tpl.h - both ends of the iteration: the initial state and the outputs, with their
 * backward. */
#ifndef SMM_OUTPUT_TPL_H
#define SMM_OUTPUT_TPL_H

#include "pass_tpl.h"

/* Values of some rows of the inputs, as initial means of slots from `first` on, to
 * out.initial_mean. */
static void means_at_inputs(image_state *im, const int64_t *indices, size_t first, size_t count) {
    const smm_sizes *s = im->s;
    input_block *b = &im->blocks[0];
    size_t index[SMM_BLOCK];
    for (size_t j = 0; j < count; j++) index[j] = (size_t)indices[first + j];
    const input_rows rows = {im->in.x, im->in.x_bfloat16, index, count};
    const block_source f = {im->k, s, im->p, im->side.w, &rows, 0, NULL, NULL};
    inputs_forward(&f, b, b->keys);
    if (s->folded) {
        linear_forward(im->k, s->P, s->C, lanes_there(&f), im->p[SMM_TO_V_WEIGHT],
                       bias_of(&f, SMM_TO_V_BIAS), b->features, b->v, NO_RELU);
        b->values = b->v;
    }
    for (size_t j = 0; j < count; j++)
        for (size_t d = 0; d < s->D; d++)
            im->out.initial_mean[(first + j) * s->D + d] = b->values[d * SMM_BLOCK + j];
}

/* The initial means (K,D), active or not: the caller's, or the values of some rows. */
static const real *initial_means(image_state *im, const call_inputs *in, size_t b) {
    const size_t K = im->s->K;
    if (!in->indices) return in->mean + b * K * im->s->D;
    for (size_t first = 0; first < K; first += SMM_BLOCK)
        means_at_inputs(im, in->indices + b * K, first, smm_min(SMM_BLOCK, K - first));
    return im->out.initial_mean;
}

/* The state before the first step. The indices have been checked. */
static void initial_state(image_state *im, const call_inputs *in, size_t b, const slot_state *r) {
    const smm_sizes *s = im->s;
    memset(im->states, 0, s->states * s->state * sizeof(real)); /* the saved state's every bit */
    slots_in(im, initial_means(im, in, b), r->mean);
    if (s->variance) slots_in(im, in->log_std + b * s->K * s->D, r->log_std);
    for (size_t j = 0; j < im->slots; j++) {
        const real prior = in->prior ? in->prior[b * s->K + im->active[j]] : 1 / (real)im->assigned;
        r->prior[j] = is_assigned(im, j) ? prior : 0;
    }
}

/* Gradient of an initial array (K,D), to the caller's `to`, or nowhere if NULL: the active slots'
 * from X (K,Dp), unless NULL; the others' from `full` (K,Dp), or 0. */
static void write_initial(image_state *im, const real *X, const real *full, real *to) {
    const size_t D = im->s->D, Dp = im->s->Dp, K = im->s->K;
    if (!to) return;
    if (full) copy_rows(K, D, full, Dp, to, D);
    else memset(to, 0, K * D * sizeof *to);
    if (!X) return;
    for (size_t j = 0; j < im->slots; j++)
        memcpy(to + im->active[j] * D, X + j * Dp, D * sizeof *to);
}

/* The gradient of the initial state; out.mean and out.log_std hold the final state's gradient. */
static void initial_backward(image_state *im, const call_inputs *in, size_t b,
                             const call_grads *grads) {
    const smm_sizes *s = im->s;
    const size_t at = b * s->K * s->D;
    const int mode = s->cfg->gradient, implicit = mode == SMM_GRADIENT_IMPLICIT;
    const int full = mode == SMM_GRADIENT_FULL || mode == SMM_GRADIENT_BILEVEL || s->shared_values;
    real *d_mean = grads->mean ? grads->mean + at : NULL;
    real *d_log_std = s->variance && grads->log_std ? grads->log_std + at : NULL;
    if (d_mean && in->indices) memset(d_mean, 0, s->K * s->D * sizeof *d_mean);
    else write_initial(im, full ? im->back.d_mean : NULL, implicit ? NULL : im->out.mean, d_mean);
    write_initial(im, full ? im->back.d_log_std : NULL, implicit ? NULL : im->out.log_std,
                  d_log_std);
    if (!s->variance || !grads->prior) return;
    real *d_prior = grads->prior + b * s->K;
    memset(d_prior, 0, s->K * sizeof *d_prior);
    for (size_t j = 0; j < im->slots && (full || !implicit); j++)
        if (is_assigned(im, j))
            d_prior[im->active[j]] = full ? im->back.d_prior[j] : im->out.d_prior[j];
}

/* Whether slots are a map of the state. */
static int has_output_map(const smm_sizes *s) { return s->variance && s->W == s->D; }

/* slots (K,W), unless NULL: [mean, variance] W_o' + b_o (paper), MLP_o([mean, log_std])
 * (reference), [mean, variance], or the means. What the map takes is left in e.cat, (K,2Dp), for
 * backward. */
static void output_forward(image_state *im, real *slots) {
    const smm_sizes *s = im->s;
    const slots_side *side = &im->side;
    const size_t K = s->K, Dp = s->Dp, Op = smm_pad(2 * s->H);
    const int logs = s->reference && s->cfg->reduce, map = has_output_map(s);
    output_work *out = &im->out;
    real *cat = im->e.cat;
    copy_rows(K, Dp, out->mean, Dp, cat, 2 * Dp);
    if (s->variance) copy_rows(K, Dp, logs ? out->log_std : out->variance, Dp, cat + Dp, 2 * Dp);
    if (map && s->reference) {
        slots_linear_forward(side, SMM_TO_OUT_0_WEIGHT, SMM_TO_OUT_0_BIAS, K, cat, 2 * Dp,
                             out->hidden, Op, OVERWRITE, RELU);
        slots_linear_forward(side, SMM_TO_OUT_2_WEIGHT, SMM_TO_OUT_2_BIAS, K, out->hidden, Op,
                             out->mapped, Dp, OVERWRITE, NO_RELU);
    } else if (map) {
        slots_linear_forward(side, SMM_TO_OUT_WEIGHT, SMM_TO_OUT_BIAS, K, cat, 2 * Dp, out->mapped,
                             Dp, OVERWRITE, NO_RELU);
    }
    if (!slots) return;
    if (map) slots_out(s, out->mapped, Dp, 1, slots);
    else slots_out(s, cat, 2 * Dp, s->W / s->D, slots);
}

/* From the map's output dy (K,Dp) to back.d_cat. */
static void output_map_backward(image_state *im, const real *dy, const grad_set *g) {
    const smm_sizes *s = im->s;
    const slots_side *side = &im->side;
    const size_t K = s->K, Dp = s->Dp, Op = smm_pad(2 * s->H);
    const slot_share all = share_of(K, 0, 1);
    const real *cat = im->e.cat, *hidden = im->out.hidden;
    real *d_cat = im->back.d_cat, *d_hidden = im->back.d_out_hidden;
    if (!s->reference) {
        slots_linear_backward(side, SMM_TO_OUT_WEIGHT, &all, cat, 2 * Dp, dy, Dp, d_cat, 2 * Dp,
                              OVERWRITE);
        slots_bias_backward(side, SMM_TO_OUT_BIAS, K, dy, Dp, g);
        return;
    }
    slots_linear_backward(side, SMM_TO_OUT_2_WEIGHT, &all, hidden, Op, dy, Dp, d_hidden, Op,
                          OVERWRITE);
    slots_bias_backward(side, SMM_TO_OUT_2_BIAS, K, dy, Dp, g);
    im->k->relu_backward(K, Op, hidden, Op, d_hidden, Op);
    slots_linear_backward(side, SMM_TO_OUT_0_WEIGHT, &all, cat, 2 * Dp, d_hidden, Op, d_cat, 2 * Dp,
                          OVERWRITE);
    slots_bias_backward(side, SMM_TO_OUT_0_BIAS, K, d_hidden, Op, g);
}

/* From d_slots (K,W) to back.d_cat, gradients of mean and log_std, (K,2Dp) of all slots. */
static void slots_backward(image_state *im, const real *d_slots, const grad_set *g) {
    const smm_sizes *s = im->s;
    const size_t K = s->K, Dp = s->Dp;
    const int map = has_output_map(s);
    real *d_cat = im->back.d_cat, *dy = map ? im->out.mapped : d_cat;
    const size_t ld = map ? Dp : 2 * Dp;
    reserve_pending(&im->side, K, g);
    output_forward(im, NULL);
    memset(dy, 0, K * ld * sizeof *dy);
    for (size_t i = 0; i < s->W / s->D; i++)
        copy_rows(K, s->D, d_slots + i * s->D, s->W, dy + i * Dp, ld);
    if (map) output_map_backward(im, dy, g);
    commit_pending(&im->side);
    if (!s->variance || (map && s->reference)) return;
    for (size_t j = 0; j < K; j++) /* from variance to log_std */
        for (size_t d = 0; d < Dp; d++)
            d_cat[j * 2 * Dp + Dp + d] *= 2 * im->out.variance[j * Dp + d];
}

/* The last state over all slots, to im->out: inactive slots show their initial state. */
static void final_state(image_state *im, const call_inputs *in, size_t b, const slot_state *last) {
    const smm_sizes *s = im->s;
    const size_t Dp = s->Dp, count = s->K * Dp;
    const int inactive = im->slots < s->K;
    output_work *out = &im->out;
    scatter_slots(im, last->mean, inactive ? initial_means(im, in, b) : NULL, out->mean);
    if (!s->variance) return;
    scatter_slots(im, last->log_std, inactive ? in->log_std + b * s->K * s->D : NULL, out->log_std);
    for (size_t i = 0; i < count; i++) out->variance[i] = 2 * out->log_std[i];
    im->k->exp(count, out->variance);
    for (size_t j = 0; j < im->slots; j++)
        memcpy(out->variance + im->active[j] * Dp, last->variance + j * Dp, Dp * sizeof(real));
}

/* Backward of write_outputs and final_state, of image b: the last state's gradient, of the active
 * slots in im->back, of all in im->out. */
static void final_backward(image_state *im, const call_output_grads *d, size_t b,
                           const grad_set *g) {
    const smm_sizes *s = im->s;
    const size_t K = s->K, D = s->D, Dp = s->Dp, at = b * K * D;
    backward_work *w = &im->back;
    output_work *out = &im->out;
    if (d->slots) slots_backward(im, d->slots + b * K * s->W, g);
    else memset(w->d_cat, 0, K * 2 * Dp * sizeof(real));
    for (size_t j = 0; j < K && s->variance; j++) {
        real *d_cat = w->d_cat + j * 2 * Dp;
        for (size_t c = 0; c < D && d->mean; c++) d_cat[c] += d->mean[at + j * D + c];
        for (size_t c = 0; c < D && d->variance; c++)
            d_cat[Dp + c] += 2 * out->variance[j * Dp + c] * d->variance[at + j * D + c];
    }
    for (size_t j = 0; j < im->slots; j++) {
        const real *d_cat = w->d_cat + im->active[j] * 2 * Dp;
        memcpy(w->d_mean + j * Dp, d_cat, Dp * sizeof *d_cat);
        if (s->variance) memcpy(w->d_log_std + j * Dp, d_cat + Dp, Dp * sizeof *d_cat);
        out->d_prior[j] = w->d_prior[j] = d->prior ? d->prior[b * K + im->active[j]] : 0;
    }
    copy_rows(K, Dp, w->d_cat, 2 * Dp, out->mean, Dp);
    copy_rows(K, Dp, w->d_cat + Dp, 2 * Dp, out->log_std, Dp);
}

/* prior (K) of all slots, 0 of inactive ones, or nothing if NULL. */
static void prior_out(const image_state *im, const real *from, real *prior) {
    if (!prior) return;
    memset(prior, 0, im->s->K * sizeof *prior);
    for (size_t j = 0; j < im->slots; j++) prior[im->active[j]] = from[j];
}

/* Write the outputs of image b from its last state, in im->out. */
static void write_outputs(image_state *im, const call_outputs *out, size_t b,
                          const slot_state *last) {
    const smm_sizes *s = im->s;
    const size_t at = b * s->K * s->D;
    output_forward(im, out->slots + b * s->K * s->W);
    if (!s->variance) return;
    if (out->mean) slots_out(s, im->out.mean, s->Dp, 1, out->mean + at);
    if (out->variance) slots_out(s, im->out.variance, s->Dp, 1, out->variance + at);
    prior_out(im, last->prior, out->prior ? out->prior + b * s->K : NULL);
}

/* Write the state that a further call goes on from, in im->out. */
static void write_state(image_state *im, const call_outputs *out, size_t b, const slot_state *r) {
    const smm_sizes *s = im->s;
    const size_t at = b * s->K * s->D;
    if (out->state_mean) slots_out(s, im->out.mean, s->Dp, 1, out->state_mean + at);
    if (!s->variance) return;
    if (out->state_log_std) slots_out(s, im->out.log_std, s->Dp, 1, out->state_log_std + at);
    prior_out(im, r->prior, out->state_prior ? out->state_prior + b * s->K : NULL);
}

#endif
