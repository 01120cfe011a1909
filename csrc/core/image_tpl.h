/* image_tpl.h - the two loops: the steps of one image forward, and backward. */
#ifndef SMM_IMAGE_TPL_H
#define SMM_IMAGE_TPL_H

#include "output_tpl.h"

/* Shares of the slots for several threads: of four at least, as each thread reads all weights. */
static size_t slot_shares(const image_state *im) {
    const smm_sizes *s = im->s;
    const size_t work = im->slots * s->D * (9 * s->D + 2 * s->H);
    if (im->threads < 2 || !s->learned || work < 1 << 18) return 1;
    return smm_min((size_t)im->threads, (im->slots + 3) / 4);
}

/* From the chunks' sums to the next state of a share of the slots, and on to the queries of the
 * step that follows, unless this is the last. */
static void share_forward(image_state *im, const slot_state *r, const slot_state *next,
                          slot_share share, int last) {
    const moment_sums total = sum_moments(im, &share);
    for (size_t j = share.begin; j < share.begin + share.count; j++)
        im->moments.inexact[j] = (real)!slot_moments(im, r, &total, j);
    state_forward(im, r, next, &share);
    if (!last) queries_forward(im, next, share.begin, share.count);
}

/* Whether a step has the slots' MLP. */
static int has_mlp(const smm_sizes *s, int last) {
    const int when = s->cfg->slot_mlp;
    return when == SMM_MLP_ALWAYS || (when == SMM_MLP_NOT_LAST && !last);
}

/* One try at a step. Returns whether the moments are exact enough, or the call is to stop. */
static int try_step(image_state *im, const slot_state *r, const slot_state *next,
                    forward_pass *pass) {
    const smm_sizes *s = im->s;
    const size_t shares = slot_shares(im);
    SMM_PARALLEL(im->threads, image_chunks(im), c, thread, chunk_forward(im, r, c, thread, pass));
    if (has_stopped(im, 0)) return 1;
    const moment_sums total = sum_weights(im);
    memcpy(r->sums, total.sums, s->heads * im->slots * sizeof(real));
    im->u.mlp = has_mlp(s, pass->last);
    if (pass->first) memcpy(im->moments.value_sums, total.values, 2 * s->Vp * sizeof(real));
    pass->likelihood = *total.loglik;
    SMM_PARALLEL(shares, shares, i, thread,
                 share_forward(im, r, next, share_of(im->slots, i, shares), pass->last));
    int exact = 1;
    for (size_t j = 0; j < im->slots; j++) exact &= im->moments.inexact[j] == 0;
    return exact;
}

/* Step im->steps, from state r, whose queries are there, to `next`, whose queries are made unless
 * it is the last. Where the shared centre proves too far, moments are centred at the slots' points
 * from then on. */
static void step_forward(image_state *im, const slot_state *r, const slot_state *next,
                         forward_pass *pass) {
    const smm_sizes *s = im->s;
    for (int tries = 1; !try_step(im, r, next, pass) && tries < 3; tries++) {
        im->moments.at_points = 1;
        queries_forward(im, r, 0, im->slots);
        finish_queries(im);
    }
    if (!pass->last) finish_queries(im);
    if (im->save && s->learned && (pass->last || s->steps_back == s->T))
        update_save(s, im->slots, &im->u, im->save + saved_update_at(s, im->steps));
}

/* How far a step has moved an image: see smm_forward_f32. NaN where a slot is. */
static double movement(const image_state *im, const slot_state *r, const slot_state *next) {
    const size_t D = im->s->D, Dp = im->s->Dp;
    double largest = 0;
    for (size_t j = 0; j < im->slots; j++) {
        double sum = 0;
        if (!is_assigned(im, j)) continue;
        for (size_t d = 0; d < D; d++) {
            const double moved = (double)next->mean[j * Dp + d] - (double)r->mean[j * Dp + d];
            sum += moved * moved;
        }
        if (!(sum <= largest)) largest = sum;
    }
    return sqrt(largest / (double)D);
}

/* States, centre and number of steps, to the saved state; zeros for updates of steps not taken. */
static void save_image(const image_state *im, real *saved) {
    const smm_sizes *s = im->s;
    const size_t state = s->state;
    const int swapped = s->states != s->T + 1 && im->steps % 2 == 0; /* see state_before */
    if (swapped) {
        memcpy(saved, im->states + state, state * sizeof *saved);
        memcpy(saved + state, im->states, state * sizeof *saved);
    } else {
        memcpy(saved, im->states, s->states * state * sizeof *saved);
    }
    real *centre = saved + s->states * state;
    memcpy(centre, im->moments.centre, s->Cp * sizeof *saved);
    memset(centre + s->Cp, 0, SMM_LANES * sizeof *saved);
    centre[s->Cp] = (real)im->steps;
    for (size_t t = im->steps; t < s->steps_back; t++)
        memset(saved + saved_update_at(s, t), 0, s->update * sizeof *saved);
}

/* Its backward. */
static void restore_image(image_state *im, const real *saved) {
    const smm_sizes *s = im->s;
    const real *centre = saved + s->states * s->state, done = centre[s->Cp];
    im->saved = saved;
    memcpy(im->states, saved, s->states * s->state * sizeof *saved);
    memcpy(im->moments.centre, centre, s->Cp * sizeof *saved);
    for (size_t d = 0; d < s->Cp; d++) im->moments.minus_centre[d] = -centre[d];
    im->steps = done >= 1 && done <= (real)s->T ? (size_t)done : s->T;
}

/* Write what step t has found of image b; after an image's last step, for those not taken. */
static void write_history(const image_state *im, const call_outputs *out, size_t b, size_t t,
                          const slot_state *next, real likelihood, double moved) {
    const smm_sizes *s = im->s;
    const size_t T = s->T - (size_t)s->reference, at = b * T + t;
    if (t >= T) return;
    if (out->step_movement) out->step_movement[at] = (real)moved;
    if (!s->variance) return;
    if (out->step_log_likelihood) out->step_log_likelihood[at] = likelihood;
    prior_out(im, next->prior, out->step_prior ? out->step_prior + at * s->K : NULL);
}

/* The steps of image b, from its first state. */
static void steps_forward(image_state *im, const call_outputs *out, size_t b, forward_pass *pass) {
    const smm_sizes *s = im->s;
    const int watched = s->cfg->tol > 0 || out->step_movement;
    double moved = 0;
    int settled = 0;
    for (im->steps = 0; !pass->last && !has_stopped(im, 0); im->steps++) {
        const slot_state r = state_before(im, im->steps), next = state_before(im, im->steps + 1);
        pass->first = im->steps == 0;
        pass->last = settled || im->steps + 1 == s->T;
        step_forward(im, &r, &next, pass);
        if (watched) moved = movement(im, &r, &next);
        settled = s->cfg->tol > 0 && moved <= s->cfg->tol;
        if (!pass->last || !s->reference) /* whose extra step is left out */
            write_history(im, out, b, im->steps, &next, pass->likelihood, moved);
    }
    if (has_stopped(im, 0)) return;
    const size_t counted = im->steps - (size_t)s->reference;
    const slot_state last = state_before(im, counted);
    for (size_t t = counted; t < s->T; t++)
        write_history(im, out, b, t, &last, pass->likelihood, 0);
}

/* The whole forward pass of image b. */
static void image_forward(image_state *im, const call_inputs *in, const call_outputs *out,
                          size_t b) {
    const smm_sizes *s = im->s;
    forward_pass pass = {.likelihoods = out->step_log_likelihood != NULL,
                         .attention = out->attention ? out->attention + b * s->N * s->K : NULL};
    open_image(im, in, b);
    im->save = out->saved ? out->saved + b * s->saved_image : NULL;
    find_centre(im);
    const slot_state initial = state_before(im, 0);
    initial_state(im, in, b, &initial);
    if (pass.attention) memset(pass.attention, 0, s->N * s->K * sizeof(real));
    queries_forward(im, &initial, 0, im->slots);
    finish_queries(im);
    steps_forward(im, out, b, &pass);
    if (has_stopped(im, 0)) return;
    const slot_state before = state_before(im, im->steps - 1), last = state_before(im, im->steps);
    if (s->variance) memcpy(last.variance, im->out.variance, im->slots * s->Dp * sizeof(real));
    final_state(im, in, b, &last);
    write_outputs(im, out, b, &last);
    if (im->save) save_image(im, im->save);
    if (out->log_likelihood && s->variance) out->log_likelihood[b] = pass.likelihood;
    if (out->iterations) out->iterations[b] = (int64_t)(im->steps - (size_t)s->reference);
    if (pass.attention && in->mask)
        masked_attention(im, &before, in->mask + b * s->N, pass.attention);
    if (s->reference) final_state(im, in, b, &before); /* the extra step leads to no further one */
    write_state(im, out, b, s->reference ? &before : &last);
}

/* Step t of a share of the slots, from the gradient of the state after it to the constants of the
 * pass over inputs. */
static void share_state_backward(image_state *im, const slot_state *r, const slot_state *next,
                                 size_t t, slot_share share) {
    queries_forward(im, r, share.begin, share.count);
    state_backward(im, r, next, t, &share);
    const int far = pass_rows(im, r, next, &share, 0);
    for (size_t j = share.begin; j < share.begin + share.count; j++)
        im->moments.inexact[j] = (real)far;
}

/* And from the chunks' sums to the gradient of the state before the step. */
static void share_queries_backward(image_state *im, const slot_state *r, slot_share share) {
    const size_t at = share.begin * im->s->Dp;
    const moment_sums total = sum_moments(im, &share);
    query_sums_backward(im, r, &total, &share);
    queries_backward(im, r, &share);
    memcpy(im->back.d_mean + at, im->back.d_state + at, share.count * im->s->Dp * sizeof(real));
}

/* What a call of backward was given. */
typedef struct {
    const call_inputs *in;
    const real *saved;
    const call_output_grads *d;
    const call_grads *grads;
} backward_arguments;

/* Step t backward: back.d_mean, d_log_std and d_prior go from the state after the step to the state
 * before it. The last pass over inputs (where nothing is cached: each) goes on to them: to dx, and
 * to the sets of parameter gradients, of which there is one for each segment; the slots' side has
 * the first. */
static void step_backward(image_state *im, size_t t, int last, const grad_set *sets,
                          const backward_arguments *a, size_t b) {
    const smm_sizes *s = im->s;
    const size_t K = im->slots, shares = slot_shares(im);
    const int first = t + 1 == im->steps, cached = s->cache_backward;
    const slot_state r = saved_state_before(im, t), next = saved_state_before(im, t + 1);
    reserve_pending(&im->side, K, &sets[0]);
    im->u.mlp = has_mlp(s, first);
    SMM_PARALLEL(shares, shares, i, thread,
                 share_state_backward(im, &r, &next, t, share_of(K, i, shares)));
    finish_queries(im);
    state_sums(im, &sets[0]);
    if (first || !cached) { /* without a cache each step hands on its own */
        memset(im->back.eps_slope, 0, s->Cp * sizeof(real));
        memset(im->back.eps_const, 0, s->Cp * sizeof(real));
    }
    const real *d_attention = a->d->attention ? a->d->attention + b * s->N * s->K : NULL;
    const int likelihood = first && a->d->log_likelihood && s->variance && !s->reference;
    const backward_pass pass = {.r = &r,
                                .d_attention = first ? d_attention : NULL,
                                .d_likelihood = likelihood ? a->d->log_likelihood[b] : 0,
                                .prior = s->learned_prior || (last && a->grads->prior != NULL),
                                .at_means = finish_pass_rows(im, &r, &next),
                                .to_inputs = last || !cached,
                                .add = !first && !cached};
    inputs_pass(im, &pass, sets, a->grads->x ? a->grads->x + b * s->N * s->I : NULL);
    if (has_stopped(im, 0)) return;
    sum_weights(im);
    SMM_PARALLEL(shares, shares, i, thread, share_queries_backward(im, &r, share_of(K, i, shares)));
    if (s->learned) queries_sums(im, &r, &sets[0]);
    commit_pending(&im->side);
}

/* The whole backward pass of image b; sets: one for each segment. */
static void image_backward(image_state *im, const backward_arguments *a, const grad_set *sets,
                           size_t b) {
    const smm_sizes *s = im->s;
    if (has_stopped(im, 0)) return;
    open_image(im, a->in, b);
    if (a->grads->x && a->in->mask)
        memset(a->grads->x + b * s->N * s->I, 0, s->N * s->I * sizeof(real));
    restore_image(im, a->saved + b * s->saved_image);
    const size_t steps = smm_min(s->steps_back, im->steps);
    const slot_state last = saved_state_before(im, im->steps);
    final_state(im, a->in, b, &last);
    final_backward(im, a->d, b, &sets[0]);
    for (size_t i = 0; i < steps; i++) {
        step_backward(im, im->steps - 1 - i, i + 1 == steps, sets, a, b);
        if (i == 0 && s->shared_values && s->cfg->gradient != SMM_GRADIENT_FULL) {
            /* to the last step the state is a constant, but for its prior */
            memset(im->back.d_mean, 0, im->slots * s->Dp * sizeof(real));
            memset(im->back.d_log_std, 0, im->slots * s->Dp * sizeof(real));
        }
    }
    initial_backward(im, a->in, b, a->grads);
}

#endif
