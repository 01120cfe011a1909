/* state_tpl.h - one image in progress: its slots' states, what is cached of its inputs, scratch
 * memory.
 *
 * Masked inputs and inactive slots are left out here, by lists of the real ones: nothing further in
 * knows of masks. Rows of slots are (K,Dp), of keys' channels (K,Cp); their pads, and rows beyond
 * the active slots, are 0. */
#ifndef SMM_STATE_TPL_H
#define SMM_STATE_TPL_H

#include "inputs_tpl.h"

/* The state before a step, and what that step's M step found. */
typedef struct {
    real *mean, *log_std; /* (K,Dp) */
    real *prior;          /* K */
    real *m;        /* (stack, K, Cp): weighted mean; of a Gaussian mixture minus the centre */
    real *variance; /* (K,Dp): about m; of the last state: the module's output */
    real *sums;     /* (heads, slots): sums of the responsibilities */
} slot_state;

/* What the E step needs of a state: see queries_forward. */
typedef struct {
    real *cat, *normed; /* (K,2Dp): [mean, log_std] and its LayerNorm; Slot Attention (K,Dp) */
    real *norm_mean, *norm_rstd; /* K */
    real *q_rows;                /* folded: (K,Qp), the query before W_k' is applied */
    real *q;                     /* (stack, slots, Cp): query */
    real *scale, *shift;         /* (K,Cp): e^{-log_std}, -q scale */
    real *base;                  /* (heads, slots): constants of the logits */
    real *base_density;          /* K: of log prior + log density */
    real *largest;               /* K: the largest |q scale| of some slots; else 0 */
    real factor;                 /* of distances or products in the logits */
    int exact;                   /* q scale is so large that x scale + shift would cancel */
    int centred;                 /* the same of keys' second moments, which square it */
} e_step;

/* Scratch of an update of the slots, rows of K slots: see update_forward. */
typedef struct {
    real *gates_in, *gates_hidden; /* 3 Dp: W_ih m + b_ih, W_hh hidden + b_hh */
    real *gru;         /* 5 Dp: residuals of the kernel gru, whose output h comes last */
    int mlp;           /* whether this step has the MLP */
    real *hidden;      /* Hp: ReLU(W_1 LN(h) + b_1), or what a GELU is taken of */
    real *activated;   /* Hp: the GELU, then its gradient; else hidden */
    real *normed;      /* Dp: LN(h) */
    real *mean, *rstd; /* K: of the LayerNorm */
    real *d_gates_in, *d_gates_hidden, *d_hidden, *d_normed; /* gradients */
} update_work;

/* What is cached of the inputs between steps; channel-major blocks are (blocks, C, SMM_BLOCK). */
typedef struct {
    int on;
    real *keys;
    real *values; /* minus the centre: forward (blocks, SMM_BLOCK, Vp), backward channel-major */
    real *d_keys, *d_values; /* backward */
    uint8_t *made;           /* blocks: whether that one is there yet */
} input_cache;

/* What the M step sums over inputs: one for each chunk, and their sum in the first. */
typedef struct {
    real *sums;   /* (heads, slots): of responsibilities; backward R0, of the logits' gradients */
    real *extra;  /* slots: backward, what log prior gets beside R0; mixtures only */
    real *m1;     /* (stack, slots, Vp): first moments */
    real *m2;     /* (slots, Vp): second moments; not of Slot Attention */
    real *values; /* 2 Vp: sums of values and of their squares, in the first step */
    real *loglik; /* 1 */
} moment_sums;

/* The M step. Moments are centred at a point amid the values that all slots share; where that
 * proves too far from some slot, at a point of each slot. */
typedef struct {
    real *centre, *minus_centre; /* Cp: the shared point; its negative: backward */
    real *value_sums;            /* 2 Vp: of all values, centred, and of their squares */
    real *partials;              /* (chunks, partial): the arrays of moment_sums */
    size_t partial, weights;     /* elements of one; of its sums and extra */
    real *floor;                 /* Cp: what is added to every variance */
    real least_floor;            /* the least of it */
    int at_points;
    real *point;   /* (K,Vp) */
    real *inexact; /* K: whether the point proved too far in this step; backward: of values */
} moment_work;

/* The outputs, rows of all K slots, inactive ones among them. */
typedef struct {
    real *mean, *log_std, *variance; /* (K,Dp); backward, later: gradients of the initial state */
    real *initial_mean;              /* (K,D) */
    real *d_prior;                   /* K: backward: of the last state, active slots */
    real *hidden, *mapped;           /* (K, pad(2H)), (K,2Dp) */
} output_work;

/* Backward's scratch, rows of slots. */
typedef struct {
    real *d_mean, *d_log_std,
        *d_prior;               /* of the state: after the step, then before it; d_prior K */
    real *d_state;              /* of the GRU's hidden state, then of the mean */
    real *dm;                   /* (K,Qp): of the weighted means of all heads */
    real *d_combined;           /* and of their output map, which the update takes */
    real *d_variance;           /* (K,Cp): of the variance, A in docs/math.md */
    real *d_folded;             /* (stack, slots, Cp): folded: of m, then of the query */
    real *d_q;                  /* (K,Qp): of the query */
    real *d_ls;                 /* of the log standard deviation */
    real *d_base;               /* (heads, slots): folded: of base */
    real *d_cat, *d_out_hidden; /* (K,2Dp): of e.cat or e.normed; (K, pad(2H)) */
    /* Constants of the pass over inputs: coefficients of quadratics in values and keys, (stack,
     * slots, Cp). */
    real *linear;                    /* d_gamma from values: d_variance t^2 + linear t */
    real *value_slope, *value_const; /* d_values: sum_k gamma (slope t + const) */
    real *key_slope, *key_const;     /* d_keys: sum_k d_logits (slope t + const) */
    real *point;                     /* the slots' means, minus the centre */
    real *a, *c;                     /* heads K: softmax_backward's constants */
    real *eps_slope, *eps_const;     /* Cp: what the eps of every weight gives each input's value */
} backward_work;

typedef struct {
    const KERNELS *k;
    const smm_sizes *s;
    const real *const *p; /* parameters, matrices of the inputs spaced */
    slots_side side;
    int threads;
    input_block *blocks; /* scratch, one for each thread */
    const smm_run *run;  /* whom the calling thread asks whether to stop; NULL in other threads */
    int *stopped;        /* of the call */

    input_rows in;
    size_t *index, *active; /* lists of real inputs and active slots */
    uint8_t *unassigned; /* of those, whether no input is assigned; or NULL: masked, but updated */
    size_t slots;        /* active ones */
    size_t assigned;     /* of those, to which inputs are assigned */
    size_t steps;        /* done: T, or fewer with a tolerance */

    real *states;      /* (s->states, s->state) */
    real *save;        /* forward: where the saved state goes; NULL where no backward follows */
    const real *saved; /* backward: the saved state */

    e_step e;
    moment_work moments;
    update_work u;
    real *mapped;   /* folded: (K,Qp), W_v m + b_v */
    real *combined; /* heads with an output map: (K,Dp), that of mapped or m */
    output_work out;
    input_cache cache;
    backward_work back;
} image_state;

static void layout_waiting(waiting_product *q, const smm_layout *l, smm_arena *arena) {
    const int waits = l->narrow && !l->of_slots;
    const size_t rows = waits ? tiles_size(l->out, 2 * PAIRS_WAITING) : 0;
    q->tiles = smm_carve(arena, rows, sizeof *q->tiles);
    q->pairs = smm_carve(arena, waits ? PAIRS_WAITING * l->ld : 0, sizeof *q->pairs);
    q->there = 0;
}

static void layout_block(input_block *b, const smm_sizes *s, int backward, smm_arena *arena) {
    const size_t n = SMM_BLOCK, gammas = s->heads * s->K;
    const size_t widest =
        smm_max(smm_max(s->Ip, s->Hp), smm_max(s->Vp, smm_max(s->Cp, s->Fp))) + SMM_LANES;
    b->x = CARVE(s->I * n), b->x_normed = CARVE(s->I * n);
    b->layers = s->input_mlp ? CARVE((s->H + s->F) * n) : NULL;
    b->h_normed = s->norm_kv ? CARVE(s->F * n) : NULL;
    b->mean_x = CARVE(n), b->rstd_x = CARVE(n), b->mean_h = CARVE(n), b->rstd_h = CARVE(n);
    b->keys = CARVE(s->C * n);
    b->v = s->own_values || s->folded ? CARVE(s->P * n) : NULL;
    b->gamma = CARVE(gammas * n), b->d_gamma = CARVE(gammas * n);
    b->lse = CARVE(n), b->ones = CARVE(n), b->discarded = CARVE(gammas);
    b->rows = CARVE(widest * n);
    const size_t factors = s->bfloat16 ? (widest + 1) * n : 0;
    b->pairs = smm_carve(arena, factors / 2, sizeof *b->pairs);
    if (!backward) {
        b->value_rows = s->cache_forward ? NULL : CARVE(s->Vp * n);
        return;
    }
    for (size_t i = 0; i < SMM_PARAMS; i++) layout_waiting(&b->waiting[i], &s->layout[i], arena);
    b->ratio = s->reference ? CARVE(s->K * n) : NULL;
    b->density = s->variance ? CARVE(s->K * n) : NULL;
    b->centred = CARVE(s->C * n), b->d_keys = CARVE(s->C * n), b->d_values = CARVE(s->C * n);
    b->d_wide = CARVE(widest * n), b->d_features = CARVE(widest * n);
}

static void layout_e_step(e_step *e, const smm_sizes *s, smm_arena *arena) {
    const size_t K = s->K, c = K * s->Dp, r = K * s->Cp;
    e->cat = CARVE(2 * c), e->normed = CARVE(2 * c);
    e->norm_mean = CARVE(K), e->norm_rstd = CARVE(K);
    e->q_rows = s->folded ? CARVE(K * s->Qp) : NULL;
    e->q = CARVE(s->stack * r), e->scale = CARVE(r), e->shift = CARVE(r);
    e->base = CARVE(s->heads * K), e->base_density = CARVE(K), e->largest = CARVE(K);
}

static void layout_moments(moment_work *m, const smm_sizes *s, smm_arena *arena) {
    const size_t rows = (s->dot ? s->stack : 2) * s->K + 2;
    m->centre = CARVE(s->Cp), m->minus_centre = CARVE(s->Cp), m->value_sums = CARVE(2 * s->Vp);
    m->weights = smm_pad(s->heads * s->K) + (s->variance ? smm_pad(s->K) : 0);
    m->partial = m->weights + rows * s->Vp + SMM_LANES;
    m->partials = CARVE(s->chunks * m->partial);
    m->point = CARVE(s->K * s->Vp), m->inexact = CARVE(s->K), m->floor = CARVE(s->Cp);
}

static void layout_update(update_work *u, const smm_sizes *s, smm_arena *arena) {
    const size_t c = s->K * s->Dp, h = s->K * s->Hp;
    u->gates_in = CARVE(3 * c), u->gates_hidden = CARVE(3 * c), u->gru = CARVE(5 * c);
    u->normed = CARVE(c), u->hidden = CARVE(h), u->mean = CARVE(s->K), u->rstd = CARVE(s->K);
    u->activated = s->cfg->gelu ? CARVE(h) : u->hidden;
    u->d_gates_in = CARVE(3 * c), u->d_gates_hidden = CARVE(3 * c);
    u->d_hidden = CARVE(h), u->d_normed = CARVE(c);
}

static void layout_output(output_work *out, const smm_sizes *s, smm_arena *arena) {
    const size_t c = s->K * s->Dp;
    out->mean = CARVE(c), out->log_std = CARVE(c), out->variance = CARVE(c);
    out->initial_mean = CARVE(s->K * s->D), out->d_prior = CARVE(s->K);
    out->hidden = CARVE(s->K * smm_pad(2 * s->H)), out->mapped = CARVE(2 * c);
}

static void layout_cache(input_cache *cache, const smm_sizes *s, int backward, smm_arena *arena) {
    cache->on = backward ? s->cache_backward : s->cache_forward;
    const size_t rows = cache->on ? s->blocks * SMM_BLOCK : 0;
    cache->keys = CARVE(rows * s->C);
    cache->made = smm_carve(arena, s->blocks, sizeof *cache->made);
    if (!backward) {
        cache->values = CARVE(rows * s->Vp);
        return;
    }
    cache->values = s->folded ? cache->keys : CARVE(rows * s->C);
    cache->d_keys = CARVE(rows * s->C);
    cache->d_values = s->folded ? cache->d_keys : CARVE(rows * s->C);
}

static void layout_backward(backward_work *b, const smm_sizes *s, smm_arena *arena) {
    const size_t K = s->K, c = K * s->Dp, r = s->stack * K * s->Cp, heads = s->heads * K;
    b->d_mean = CARVE(c), b->d_log_std = CARVE(c), b->d_prior = CARVE(K);
    b->d_state = CARVE(c), b->dm = CARVE(K * s->Qp), b->d_variance = CARVE(K * s->Cp);
    b->d_combined = s->combined ? CARVE(c) : NULL;
    b->d_folded = s->folded ? CARVE(r) : NULL, b->d_base = s->folded ? CARVE(heads) : NULL;
    b->d_q = CARVE(K * s->Qp), b->d_ls = CARVE(c);
    b->d_cat = CARVE(2 * c), b->d_out_hidden = CARVE(K * smm_pad(2 * s->H));
    b->linear = CARVE(r), b->value_slope = CARVE(r), b->value_const = CARVE(r);
    b->key_slope = CARVE(r), b->key_const = CARVE(r), b->point = CARVE(r);
    b->a = CARVE(heads), b->c = CARVE(heads);
    b->eps_slope = CARVE(s->Cp), b->eps_const = CARVE(s->Cp);
}

static void layout_pending(slots_side *side, const smm_sizes *s, smm_arena *arena) {
    side->pending = smm_carve(arena, SMM_PARAMS, sizeof *side->pending);
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const smm_layout l = s->layout[i];
        pending_product q = {0};
        if (l.rank == 2 && l.of_slots) {
            q.x = CARVE(s->pending_rows * input_rows_of(&l) * l.inp);
            q.dy = CARVE(s->pending_rows * l.outp);
            const size_t pairs = l.narrow ? smm_even(s->pending_rows) / 2 : 0;
            q.pairs = smm_carve(arena, pairs * input_rows_of(&l) * l.inp, sizeof *q.pairs);
            const size_t padded = l.out_parts * tiles_size(l.outp / l.out_parts, s->pending_rows);
            q.tiles = smm_carve(arena, l.narrow ? padded : 0, sizeof *q.tiles);
            if (!l.narrow) q.pairs = q.tiles = NULL;
        }
        if (side->pending) side->pending[i] = q;
    }
}

static void layout_image(image_state *im, const smm_sizes *s, int masked, int backward,
                         smm_arena *arena) {
    im->index = masked ? smm_carve(arena, s->N, sizeof *im->index) : NULL;
    im->active = smm_carve(arena, s->K, sizeof *im->active);
    im->unassigned = s->update_masked ? smm_carve(arena, s->K, sizeof *im->unassigned) : NULL;
    im->states = CARVE(s->states * s->state);
    im->mapped = s->folded ? CARVE(s->K * s->Qp) : NULL;
    im->combined = s->combined ? CARVE(s->K * s->Dp) : NULL;
    layout_e_step(&im->e, s, arena);
    layout_moments(&im->moments, s, arena);
    layout_update(&im->u, s, arena);
    layout_output(&im->out, s, arena);
    layout_cache(&im->cache, s, backward, arena);
    if (!backward) return;
    layout_backward(&im->back, s, arena);
    layout_pending(&im->side, s, arena);
}

/* The part of slots from j on. */
static e_step e_step_of(const smm_sizes *s, const e_step *all, size_t j) {
    e_step e = *all;
    const size_t ld = s->dot ? s->Dp : 2 * s->Dp, r = j * s->Cp;
    e.cat += j * ld, e.normed += j * ld, e.norm_mean += j, e.norm_rstd += j;
    if (s->folded) e.q_rows += j * s->Qp;
    e.q += r, e.scale += r, e.shift += r, e.base += j, e.base_density += j, e.largest += j;
    return e;
}

static update_work update_of(const smm_sizes *s, const update_work *all, size_t j) {
    update_work u = *all;
    const size_t c = j * s->Dp, h = j * s->Hp;
    u.gates_in += 3 * c, u.gates_hidden += 3 * c, u.gru += 5 * c;
    u.hidden += h, u.activated += h, u.normed += c, u.mean += j, u.rstd += j;
    u.d_gates_in += 3 * c, u.d_gates_hidden += 3 * c, u.d_hidden += h, u.d_normed += c;
    return u;
}

/* What is added to every weight, and to every variance. */
static double weight_eps(const smm_sizes *s) {
    const int mean = s->cfg->update <= SMM_UPDATE_SCALED_MEAN && !s->cfg->eps_in_total;
    return s->reference || (s->dot && !mean) ? 0 : s->cfg->eps;
}
static double variance_floor(const smm_sizes *s) {
    return s->reference ? s->cfg->eps : s->cfg->var_floor;
}

static slot_state state_at(const image_state *im, size_t i) {
    const size_t K = im->s->K, c = K * im->s->Dp;
    real *at = im->states + i * im->s->state;
    real *m = at + 3 * c, *prior = m + im->s->stack * K * im->s->Cp;
    const slot_state r = {.mean = at,
                          .log_std = at + c,
                          .variance = at + 2 * c,
                          .m = m,
                          .prior = prior,
                          .sums = prior + smm_pad(K)};
    return r;
}

/* The state before step t (t = steps: the last). Where only the last step's two states are saved,
 * they alternate going forward, and are the first and second in the saved state. */
static slot_state state_before(const image_state *im, size_t t) {
    return state_at(im, im->s->states == im->s->T + 1 ? t : t % 2);
}
static slot_state saved_state_before(const image_state *im, size_t t) {
    return state_at(im, im->s->states == im->s->T + 1 ? t : t + 1 - im->steps);
}

/* Blocks of the image, chunks of blocks, and where a chunk's blocks begin. */
static size_t image_blocks(const image_state *im) { return (im->in.n + SMM_BLOCK - 1) / SMM_BLOCK; }
static size_t image_chunks(const image_state *im) {
    return (image_blocks(im) + im->s->chunk_blocks - 1) / im->s->chunk_blocks;
}
static size_t chunk_begin(const image_state *im, size_t chunk) {
    return smm_min(chunk * im->s->chunk_blocks, image_blocks(im));
}

/* Distance of the updated mean from the weighted one, at i of their rows. Of a Gaussian mixture
 * they are the same, and r->m holds the digits that rounding takes from a mean at an offset. */
static real mean_shift(const image_state *im, const slot_state *r, const slot_state *next,
                       size_t i) {
    return im->s->learned ? r->m[i] - next->mean[i] : 0;
}

/* From one head's rows to the next's, where each has rows of its own. */
static size_t head_stride(const image_state *im) { return im->slots * im->s->Cp; }

/* Where head h of slot j begins: in rows of channels (stack, slots, Cp), in moments (stack, slots,
 * Vp) and in a row of values. */
static size_t head_channels(const image_state *im, size_t h, size_t j) {
    return im->s->folded ? (h * im->slots + j) * im->s->Cp : j * im->s->Cp + h * im->s->Ch;
}
static size_t head_moments(const image_state *im, size_t h, size_t j) {
    return im->s->folded ? (h * im->slots + j) * im->s->Vp : j * im->s->Vp + h * im->s->Chp;
}
static size_t head_values(const image_state *im, size_t h) {
    return im->s->folded ? 0 : h * im->s->Chp;
}

/* Whether inputs are assigned to active slot j. */
static int is_assigned(const image_state *im, size_t j) {
    return !im->unassigned || !im->unassigned[j];
}

/* Whether slot j has no weight to speak of, as can be in clustering with eps = 0: it keeps its
 * state then. */
static int is_empty(const image_state *im, const real *sums, size_t j) {
    return !im->s->learned && sums[j] < WEIGHT_LEAST && weight_eps(im->s) == 0;
}

/* Whether the call has been asked to stop; the calling thread asks. */
static int has_stopped(const image_state *im, size_t thread) {
    const smm_run *run = thread == 0 ? im->run : NULL;
    if (run && run->stop && run->stop(run->stop_argument))
        __atomic_store_n(im->stopped, 1, __ATOMIC_RELAXED);
    return __atomic_load_n(im->stopped, __ATOMIC_RELAXED);
}

/* What is added to every variance of the image: of the configuration, and the image's `own` or
 * NULL. */
static void open_floor(image_state *im, const real *own) {
    const double base = variance_floor(im->s);
    moment_work *m = &im->moments;
    for (size_t d = 0; d < im->s->Cp; d++)
        m->floor[d] = (real)(base + (own && d < im->s->D ? (double)own[d] : 0));
    m->least_floor = m->floor[0];
    for (size_t d = 1; d < im->s->D; d++)
        m->least_floor = m->floor[d] < m->least_floor ? m->floor[d] : m->least_floor;
}

/* The real inputs and active slots of image b. */
static void open_image(image_state *im, const call_inputs *in, size_t b) {
    const smm_sizes *s = im->s;
    const uint8_t *mask = in->mask ? in->mask + b * s->N : NULL;
    const uint8_t *slot_mask = in->slot_mask ? in->slot_mask + b * s->K : NULL;
    im->in.x = in->x_bfloat16 ? NULL : in->x + b * s->N * s->I;
    im->in.x_bfloat16 = in->x_bfloat16 ? in->x_bfloat16 + b * s->N * s->I : NULL;
    im->in.index = mask ? im->index : NULL;
    im->in.n = mask ? 0 : s->N;
    if (mask)
        for (size_t i = 0; i < s->N; i++)
            if (mask[i]) im->index[im->in.n++] = i;
    im->slots = im->assigned = 0;
    for (size_t j = 0; j < s->K; j++) {
        const int active = !slot_mask || slot_mask[j];
        im->assigned += (size_t)active;
        if (im->unassigned) im->unassigned[j] = !active;
        if (active || im->unassigned) im->active[im->slots++] = j;
    }
    im->moments.at_points = 0;
    open_floor(im, in->var_floor ? in->var_floor + b * s->D : NULL);
    memset(im->cache.made, 0, s->blocks * sizeof *im->cache.made);
}

/* X[j,:] = A[active[j],:]: rows (K,D) of the caller, padded. */
static void slots_in(const image_state *im, const real *A, real *X) {
    const size_t D = im->s->D, Dp = im->s->Dp;
    for (size_t j = 0; j < im->slots; j++) {
        memcpy(X + j * Dp, A + im->active[j] * D, D * sizeof *X);
        memset(X + j * Dp + D, 0, (Dp - D) * sizeof *X);
    }
}

/* A (K, parts D) = X, rows of all K slots in `parts` parts. */
static void slots_out(const smm_sizes *s, const real *X, size_t ld, size_t parts, real *A) {
    for (size_t i = 0; i < parts; i++)
        copy_rows(s->K, s->D, X + i * s->Dp, ld, A + i * s->D, parts * s->D);
}

/* full (K,Dp) = X in active slots, `initial` (K,D; NULL: 0) in inactive ones. */
static void scatter_slots(const image_state *im, const real *X, const real *initial, real *full) {
    const size_t D = im->s->D, Dp = im->s->Dp, K = im->s->K;
    memset(full, 0, K * Dp * sizeof *full);
    if (initial) copy_rows(K, D, initial, D, full, Dp);
    for (size_t j = 0; j < im->slots; j++)
        memcpy(full + im->active[j] * Dp, X + j * Dp, Dp * sizeof *full);
}

#endif
