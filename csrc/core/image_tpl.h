/* image_tpl.h - one image in progress: its memory, its rows and slots, and the maps at both ends of the iteration.
 *
 * Masked inputs and inactive slots are left out here, by lists of the real ones, so that everything further in sees none. */

/* State before a step, and what that step's M step found; rows (K,Dp), m (K,Cp), whose pads and whose rows beyond the active slots
 * are 0. */
typedef struct {
    real *mean, *log_std, *prior; /* prior: K */
    real *m, *variance;           /* weighted mean and variance about it; in the last record: variance is the module's output */
    real *sums;                   /* (heads, slots): sum of the responsibilities */
} SMM_T(record);

/* What a step needs of a state: queries and inverse standard deviations as rows, logits' constants. */
typedef struct {
    real *cat, *normed, *norm_mean, *norm_rstd; /* (K,2Dp) [mean, log_std] and its LayerNorm; (K,Dp) where that is of the mean alone */
    real *q_rows;                               /* folded: (K,Dp) the query before W_k' is applied */
    real *q, *scale, *shift;                    /* (K,Cp): query, e^{-log_std}, -q scale */
    real *base, *base_density;                  /* K: constants of the logits, and of log prior + log density */
    real *largest;                              /* K: what is largest of |q scale| of some slots; 0 */
    real mul;                                   /* factor of distances or products in the logits */
    int exact;                                  /* q scale is so large that x scale + shift would cancel */
    int about;                                  /* the same for second moments of keys, which square it */
} SMM_T(expectation);

typedef struct {
    const KERNELS *k;
    const smm_sizes *s;
    const real *const *p;        /* the parameters, matrices of the inputs' side spaced */
    SMM_T(slots_side) side;
    int threads;
    SMM_T(block) *blocks;        /* scratch, one for each thread */
    SMM_T(rows_in) in;
    size_t *index, *active;      /* lists of real inputs and active slots */
    size_t slots;                /* active ones */
    int masked_slots;
    int keep;                    /* s->keep, or s->keep_backward going backward */
    real *keys;                  /* (blocks, C, SMM_BLOCK) if they are kept; so the next four */
    real *values;                /* minus `centre`: forward (blocks, SMM_BLOCK, Vp), backward (blocks, C, SMM_BLOCK) */
    real *d_keys, *d_values;     /* (blocks, C, SMM_BLOCK), backward */
    uint8_t *made;               /* blocks: whether that block of these is there yet */
    const real *saved;           /* backward: what forward has saved of the image */
    real *save;                  /* forward: where that goes; NULL where no backward pass follows */
    real *centre, *minus_centre; /* Cp: a point shared by all slots, amid the values; its negative: backward */
    real *value_sums;            /* 2 Vp: sums of values and of their squares */
    real *partials;              /* (chunks, partial) */
    size_t partial;
    real *point;                 /* (K,Vp) points of the slots that moments are taken about */
    int about_points;            /* the shared centre has proved too far from some slot */
    real *inexact;               /* K: whether it has in this step, of each slot; the same for values, going backward */
    real *trace;                 /* records */
    size_t steps;                /* done: T, or fewer with a tolerance */
    SMM_T(expectation) e;
    SMM_T(update_scratch) u;
    real *full_mean, *full_log_std, *full_variance; /* (K,Dp) of all slots */
    real *initial_mean;                             /* (K,D) */
    real *out_hidden, *out;                         /* (K, pad(2H)), (K,2Dp) */
    /* backward; rows of slots */
    real *d_mean, *d_log_std, *d_prior, *dm, *d_state, *d_q, *d_ls; /* (K,Dp); d_prior K */
    real *mapped, *d_folded, *d_base;                /* folded: W_v m + b_v (K,Dp); gradient of m or the folded query (K,Cp); of base: K */
    real *d_cat, *d_out_hidden;                      /* (K,2Dp), (K, pad(2H)) */
    real *A, *E, *A_values, *E_values, *A_keys, *E_keys, *point_mean; /* (K,Cp) */
    real *a, *c;                                     /* heads * K: softmax_backward's constants */
    real *eps_A, *eps_E;                             /* Cp: the part of d_values that every input shares */
} SMM_T(image);

static void SMM_T(layout_block)(SMM_T(block) *b, const smm_sizes *s, int backward, smm_arena *arena)
{
    const size_t n = SMM_BLOCK, widest = smm_max(smm_max(s->Ip, s->Hp), smm_max(s->Vp, s->Fp)) + SMM_LANES;
    b->x = CARVE(s->I * n), b->x_normed = CARVE(s->I * n);
    b->layers = s->input_mlp ? CARVE((s->H + s->F) * n) : NULL;
    b->h_normed = s->norm_kv ? CARVE(s->F * n) : NULL;
    b->mean_x = CARVE(n), b->rstd_x = CARVE(n), b->mean_h = CARVE(n), b->rstd_h = CARVE(n);
    b->v = s->own_values || s->folded ? CARVE(s->D * n) : NULL;
    b->gamma = CARVE(s->heads * s->K * n), b->d_gamma = CARVE(s->heads * s->K * n);
    b->lse = CARVE(n), b->ones = CARVE(n), b->discarded = CARVE(s->heads * s->K);
    b->rows = CARVE(widest * n), b->keys = CARVE(s->C * n);
    b->ratio = backward && s->reference ? CARVE(s->K * n) : NULL;
    b->d_wide = backward ? CARVE(widest * n) : NULL;
    b->d_features = backward ? CARVE(widest * n) : NULL;
    b->value_rows = backward || s->keep ? NULL : CARVE(s->Vp * n);
    b->centred = backward ? CARVE(s->C * n) : NULL;
    b->d_keys = backward ? CARVE(s->C * n) : NULL;
    b->d_values = backward ? CARVE(s->C * n) : NULL;
}

static void SMM_T(layout_update)(SMM_T(update_scratch) *u, const smm_sizes *s, smm_arena *arena)
{
    const size_t c = s->K * s->Dp, h = s->K * s->Hp;
    u->gates_in = CARVE(3 * c), u->gates_hidden = CARVE(3 * c), u->kept = CARVE(5 * c);
    u->normed = CARVE(c), u->hidden = CARVE(h), u->mean = CARVE(s->K), u->rstd = CARVE(s->K);
    u->d_gates_in = CARVE(3 * c), u->d_gates_hidden = CARVE(3 * c), u->d_hidden = CARVE(h), u->d_normed = CARVE(c);
}

static void SMM_T(layout_expectation)(SMM_T(expectation) *e, const smm_sizes *s, smm_arena *arena)
{
    const size_t c = s->K * s->Dp, r = s->K * s->Cp;
    e->cat = CARVE(2 * c), e->normed = CARVE(2 * c), e->norm_mean = CARVE(s->K), e->norm_rstd = CARVE(s->K);
    e->q_rows = s->folded ? CARVE(c) : NULL;
    e->q = CARVE(r), e->scale = CARVE(r), e->shift = CARVE(r), e->base = CARVE(s->K), e->base_density = CARVE(s->K);
    e->largest = CARVE(s->K);
    e->mul = s->dot ? (real)s->cfg->scale : s->variance && !s->reference ? (real)(-0.5 * s->cfg->temperature) : -(real)s->cfg->scale;
}

/* That of slots from j on. */
static SMM_T(expectation) SMM_T(expectation_of)(const smm_sizes *s, const SMM_T(expectation) *all, size_t j)
{
    SMM_T(expectation) e = *all;
    const size_t ld = s->dot ? s->Dp : 2 * s->Dp;
    e.cat += j * ld, e.normed += j * ld, e.norm_mean += j, e.norm_rstd += j;
    if (s->folded) e.q_rows += j * s->Dp;
    e.q += j * s->Cp, e.scale += j * s->Cp, e.shift += j * s->Cp, e.base += j, e.base_density += j, e.largest += j;
    return e;
}

static void SMM_T(layout_backward)(SMM_T(image) *im, const smm_sizes *s, smm_arena *arena)
{
    const size_t c = s->K * s->Dp, r = s->K * s->Cp, cached = s->keep_backward ? s->blocks * s->C * SMM_BLOCK : 0;
    im->minus_centre = CARVE(s->Cp);
    im->d_keys = CARVE(cached), im->d_values = s->folded ? im->d_keys : CARVE(cached);
    im->d_mean = CARVE(c), im->d_log_std = CARVE(c), im->d_prior = CARVE(s->K), im->dm = CARVE(c), im->d_state = CARVE(c);
    im->d_q = CARVE(c), im->d_ls = CARVE(c), im->d_cat = CARVE(2 * c);
    im->d_folded = s->folded ? CARVE(r) : NULL, im->d_base = s->folded ? CARVE(s->K) : NULL;
    im->d_out_hidden = CARVE(s->K * smm_pad(2 * s->H));
    im->side.pending = smm_carve(arena, SMM_PARAMS, sizeof *im->side.pending);
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const smm_layout l = smm_layout_of(s->cfg, i);
        SMM_T(pending) q = {NULL, NULL, 0, 0, 0};
        if (l.rank == 2 && SMM_T(of_slots)(s, i)) q.x = CARVE(s->pending_rows * l.inp), q.dy = CARVE(s->pending_rows * l.outp);
        if (im->side.pending) im->side.pending[i] = q;
    }
    im->A = CARVE(r), im->E = CARVE(r), im->A_values = CARVE(r), im->E_values = CARVE(r), im->A_keys = CARVE(r);
    im->E_keys = CARVE(r), im->point_mean = CARVE(r);
    im->a = CARVE(s->heads * s->K), im->c = CARVE(s->heads * s->K), im->eps_A = CARVE(s->Cp), im->eps_E = CARVE(s->Cp);
}

static void SMM_T(layout_image)(SMM_T(image) *im, const smm_sizes *s, int masked, int backward, smm_arena *arena)
{
    const size_t c = s->K * s->Dp;
    im->index = masked ? smm_carve(arena, s->N, sizeof(size_t)) : NULL;
    im->active = smm_carve(arena, s->K, sizeof(size_t));
    im->keep = backward ? s->keep_backward : s->keep;
    const size_t cached = im->keep ? s->blocks * SMM_BLOCK : 0;
    im->keys = CARVE(cached * s->C), im->values = backward && s->folded ? im->keys : CARVE(cached * (backward ? s->C : s->Vp));
    im->mapped = s->folded ? CARVE(c) : NULL;
    im->centre = CARVE(s->Cp), im->value_sums = CARVE(2 * s->Vp);
    im->partial = smm_pad(s->heads * s->K) + ((s->dot ? 1 : 2) * s->K + 2) * s->Vp + SMM_LANES;
    im->partials = CARVE(s->chunks * im->partial);
    im->point = CARVE(s->K * s->Vp), im->inexact = CARVE(s->K);
    im->trace = CARVE(s->records * s->record);
    SMM_T(layout_expectation)(&im->e, s, arena);
    SMM_T(layout_update)(&im->u, s, arena);
    im->full_mean = CARVE(c), im->full_log_std = CARVE(c), im->full_variance = CARVE(c);
    im->initial_mean = CARVE(s->K * s->D);
    im->out_hidden = CARVE(s->K * smm_pad(2 * s->H)), im->out = CARVE(2 * c);
    im->made = smm_carve(arena, s->blocks, sizeof *im->made);
    if (backward) SMM_T(layout_backward)(im, s, arena);
}

static SMM_T(record) SMM_T(record_at)(const SMM_T(image) *im, size_t i)
{
    const size_t K = im->s->K, c = K * im->s->Dp;
    real *at = im->trace + i * im->s->record;
    real *m = at + 3 * c, *prior = m + K * im->s->Cp;
    SMM_T(record) r = {at, at + c, prior, m, at + 2 * c, prior + smm_pad(K)};
    return r;
}

/* Where the state before step t stands (t = steps: the last state): in its place, or, where only the last step is kept, alternating
 * going forward, and in records 0 and 1 where they are saved. */
static SMM_T(record) SMM_T(record_of)(const SMM_T(image) *im, size_t t)
{
    return SMM_T(record_at)(im, im->s->records == im->s->T + 1 ? t : t % 2);
}

static SMM_T(record) SMM_T(saved_record_of)(const SMM_T(image) *im, size_t t)
{
    return SMM_T(record_at)(im, im->s->records == im->s->T + 1 ? t : t + 1 - im->steps);
}

/* Where the update after step t stands in what is saved of an image: only the last one's, or each in its place. */
static size_t SMM_T(saved_update)(const smm_sizes *s, size_t t)
{
    return s->saved_head - (s->steps_back == s->T ? s->T - t : 1) * s->update; /* they are the last part of the head */
}

/* The real inputs and active slots of image b. */
static void SMM_T(open_image)(SMM_T(image) *im, const SMM_T(smm_inputs) *in, size_t b)
{
    const smm_sizes *s = im->s;
    im->in.x = in->x_bfloat16 ? NULL : in->x + b * s->N * s->I;
    im->in.x_bfloat16 = in->x_bfloat16 ? in->x_bfloat16 + b * s->N * s->I : NULL;
    im->in.index = NULL, im->in.n = s->N;
    if (in->mask) {
        im->in.n = 0;
        for (size_t i = 0; i < s->N; i++)
            if (in->mask[b * s->N + i]) im->index[im->in.n++] = i;
        im->in.index = im->index;
    }
    im->slots = 0;
    for (size_t j = 0; j < s->K; j++)
        if (!in->slot_mask || in->slot_mask[b * s->K + j]) im->active[im->slots++] = j;
    im->masked_slots = im->slots < s->K;
    im->about_points = 0;
    memset(im->made, 0, s->blocks * sizeof *im->made);
}

/* X[j,:] = A[active[j],:]: rows (K,D) of the caller, padded. */
static void SMM_T(slots_in)(const SMM_T(image) *im, const real *A, real *X)
{
    const size_t D = im->s->D, Dp = im->s->Dp;
    for (size_t j = 0; j < im->slots; j++) {
        memcpy(X + j * Dp, A + im->active[j] * D, D * sizeof *X);
        memset(X + j * Dp + D, 0, (Dp - D) * sizeof *X);
    }
}

/* A (K, parts D) = X, rows of all K slots in `parts` parts, ld apart. */
static void SMM_T(slots_out)(const smm_sizes *s, const real *X, size_t ld, size_t parts, real *A)
{
    for (size_t i = 0; i < parts; i++) SMM_T(copy_rows)(s->K, s->D, X + i * s->Dp, ld, A + i * s->D, parts * s->D);
}

/* full (K,Dp) = initial value in inactive slots, X in active ones;  X (K,Dp) of the active slots, initial (K,D) or NULL: 0. */
static void SMM_T(scatter_slots)(const SMM_T(image) *im, const real *X, const real *initial, real *full)
{
    const size_t D = im->s->D, Dp = im->s->Dp, K = im->s->K;
    memset(full, 0, K * Dp * sizeof *full);
    if (initial) SMM_T(copy_rows)(K, D, initial, D, full, Dp);
    for (size_t j = 0; j < im->slots; j++) memcpy(full + im->active[j] * Dp, X + j * Dp, Dp * sizeof *full);
}

/* slots = [mean, variance] W_o' + b_o (paper), MLP_o([mean, log_std]) (reference), [mean, variance] or the means themselves.
 * cat (K,2Dp) is left in e.cat for the backward pass. */
static void SMM_T(output_forward)(SMM_T(image) *im, real *slots)
{
    const smm_sizes *s = im->s;
    const size_t K = s->K, Dp = s->Dp, Op = smm_pad(2 * s->H);
    const SMM_T(slots_side) *side = &im->side;
    real *cat = im->e.cat;
    SMM_T(copy_rows)(K, Dp, im->full_mean, Dp, cat, 2 * Dp);
    if (s->variance) SMM_T(copy_rows)(K, Dp, s->reference && s->cfg->reduce ? im->full_log_std : im->full_variance, Dp, cat + Dp, 2 * Dp);
    if (s->W == s->D && s->reference) {
        SMM_T(slots_linear_forward)(side, SMM_TO_OUT_0_WEIGHT, SMM_TO_OUT_0_BIAS, K, cat, 2 * Dp, im->out_hidden, Op, 0, 1);
        SMM_T(slots_linear_forward)(side, SMM_TO_OUT_2_WEIGHT, SMM_TO_OUT_2_BIAS, K, im->out_hidden, Op, im->out, Dp, 0, 0);
    } else if (s->W == s->D && s->variance) {
        SMM_T(slots_linear_forward)(side, SMM_TO_OUT_WEIGHT, SMM_TO_OUT_BIAS, K, cat, 2 * Dp, im->out, Dp, 0, 0);
    } else {
        if (slots) SMM_T(slots_out)(s, cat, 2 * Dp, s->W / s->D, slots);
        return;
    }
    if (slots) SMM_T(slots_out)(s, im->out, Dp, 1, slots);
}

/* From d_slots (K,W) to d_cat = gradients of mean and of log_std, (K,2Dp) over all slots. */
static void SMM_T(output_backward)(SMM_T(image) *im, const real *d_slots, const SMM_T(grad_set) *g)
{
    const smm_sizes *s = im->s;
    const size_t K = s->K, Dp = s->Dp, Op = smm_pad(2 * s->H), parts = s->W / s->D;
    const SMM_T(slots_side) *side = &im->side;
    const int mapped = s->W == s->D && s->variance;
    real *cat = im->e.cat, *d_cat = im->d_cat, *dy = mapped ? im->out : d_cat;
    const size_t ld = mapped ? Dp : 2 * Dp;
    const SMM_T(share) all = SMM_T(share_of)(K, 0, 1);
    SMM_T(reserve_pending)(side, K, g);
    SMM_T(output_forward)(im, NULL);
    memset(dy, 0, K * ld * sizeof *dy);
    for (size_t i = 0; i < parts; i++) SMM_T(copy_rows)(K, s->D, d_slots + i * s->D, s->W, dy + i * Dp, ld);
    if (mapped && s->reference) {
        SMM_T(slots_linear_backward)(side, SMM_TO_OUT_2_WEIGHT, &all, im->out_hidden, Op, dy, Dp, im->d_out_hidden, Op, 0);
        SMM_T(slots_bias_backward)(side, SMM_TO_OUT_2_BIAS, K, dy, Dp, g);
        im->k->relu_backward(K, Op, im->out_hidden, Op, im->d_out_hidden, Op);
        SMM_T(slots_linear_backward)(side, SMM_TO_OUT_0_WEIGHT, &all, cat, 2 * Dp, im->d_out_hidden, Op, d_cat, 2 * Dp, 0);
        SMM_T(slots_bias_backward)(side, SMM_TO_OUT_0_BIAS, K, im->d_out_hidden, Op, g);
    } else if (mapped) {
        SMM_T(slots_linear_backward)(side, SMM_TO_OUT_WEIGHT, &all, cat, 2 * Dp, dy, Dp, d_cat, 2 * Dp, 0);
        SMM_T(slots_bias_backward)(side, SMM_TO_OUT_BIAS, K, dy, Dp, g);
    }
    SMM_T(commit_pending)(side);
    if (mapped && s->reference) return;
    for (size_t j = 0; s->variance && j < K; j++)
        for (size_t d = 0; d < Dp; d++) d_cat[j * 2 * Dp + Dp + d] *= 2 * im->full_variance[j * Dp + d];
}
