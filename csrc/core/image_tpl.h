/* image_tpl.h - one image in progress: its memory, its rows and slots, and the maps at both ends of the iteration.
 *
 * Masked inputs and inactive slots are left out here, by lists of the real ones, so that everything further in sees none. */

/* State before a step, and what that step's M step found; arrays (D,Kp) channel-major, m (C,Kp); lanes beyond the slots are 0. */
typedef struct {
    real *mean, *log_std, *prior; /* prior: Kp */
    real *m, *variance;           /* weighted mean and variance about it; in the last record: variance is the module's output */
    real *sums;                   /* (heads, slots): sum of the responsibilities */
} SMM_T(record);

/* What a step needs of a state: queries and inverse standard deviations as rows (slots, Cp), logits' constants. */
typedef struct {
    real *cat, *normed, *norm_mean, *norm_rstd; /* (2D,Kp) [mean, log_std] and its LayerNorm */
    real *q_channels, *rho_channels;            /* (D,Kp) */
    real *q_folded;                             /* (C,Kp): W_k' q, or NULL */
    real *q, *scale, *shift;                    /* (Kp,Cp): query, e^{-log_std}, -q scale */
    real *base, *base_density;                  /* Kp: constants of the logits, and of log prior + log density */
    real mul;                                   /* factor of distances or products in the logits */
    int exact;                                  /* q scale is so large that x scale + shift would cancel */
    int about;                                  /* the same for second moments of keys, which square it */
} SMM_T(expectation);

typedef struct {
    const KERNELS *k;
    const smm_sizes *s;
    const real *const *p;
    int threads;
    SMM_T(block) *blocks;        /* scratch, one for each thread */
    SMM_T(rows_in) in;
    size_t *index, *active;      /* lists of real inputs and active slots */
    size_t slots, slot_count;    /* active slots; all slots */
    int masked_slots;
    real *keys;                  /* (blocks, C, SMM_BLOCK) if s->keep, or s->keep_backward going backward; so the next four */
    real *values;                /* minus `centre`: forward (blocks, SMM_BLOCK, Vp), backward (blocks, C, SMM_BLOCK) */
    real *d_keys, *d_values;     /* (blocks, C, SMM_BLOCK), backward */
    const real *saved;           /* backward: what forward has saved of the image */
    real *save;                  /* forward: where that goes; NULL where no backward pass follows */
    real *centre, *minus_centre; /* Cp: a point shared by all slots, amid the values; its negative: backward */
    real *value_sums;            /* 2 Vp: sums of values and of their squares */
    real *partials;              /* (chunks, partial) */
    size_t partial;
    real *point;                 /* (Kp,Vp) points of the slots that moments are taken about */
    real *m_rows, *variance_rows; /* (Kp,Vp) weighted mean and variance */
    int about_points;            /* the shared centre has proved too far from some slot */
    real *trace;                 /* records */
    size_t steps;                /* done: T, or fewer with a tolerance */
    SMM_T(expectation) e;
    SMM_T(update_scratch) u;
    real *full_mean, *full_log_std, *full_variance; /* (D,Kp) of all slots */
    real *initial_mean;                             /* (K,D) */
    real *out_hidden, *out_channels, *rows;         /* (2H,Kp), (2D,Kp), (Kp, widest) */
    /* backward */
    real *d_mean, *d_log_std, *d_prior, *dm, *d_state, *d_q, *d_ls; /* (D,Kp); d_prior Kp */
    real *mapped, *d_folded, *d_base;                /* folded: W_v m + b_v (D,Kp); gradient of m or q_folded (C,Kp); of base: Kp */
    real *d_cat, *d_out_hidden;                      /* (2D,Kp), (2H,Kp) */
    real *A, *E, *A_values, *E_values, *A_keys, *E_keys, *point_mean; /* (Kp,Cp) rows */
    real *a, *c;                                     /* heads * Kp: softmax_backward's constants */
    real *eps_A, *eps_E;                             /* Cp: the part of d_values that every input shares */
} SMM_T(image);

#define CARVE(count) ((real *)smm_carve(arena, (count), sizeof(real)))

static void SMM_T(layout_block)(SMM_T(block) *b, const smm_sizes *s, int backward, smm_arena *arena)
{
    const size_t n = SMM_BLOCK, widest = smm_max(smm_max(s->Ip, s->Hp), smm_max(s->Vp, s->Fp));
    b->x = CARVE(s->I * n), b->x_normed = CARVE(s->I * n);
    b->hidden = s->input_mlp ? CARVE(s->H * n) : NULL;
    b->h = s->input_mlp ? CARVE(s->F * n) : NULL;
    b->h_normed = s->norm_kv ? CARVE(s->F * n) : NULL;
    b->mean_x = CARVE(n), b->rstd_x = CARVE(n), b->mean_h = CARVE(n), b->rstd_h = CARVE(n);
    b->v = s->own_values || s->folded ? CARVE(s->D * n) : NULL;
    b->gamma = CARVE(s->heads * s->Kp * n), b->d_gamma = CARVE(s->heads * s->Kp * n);
    b->lse = CARVE(n), b->ones = CARVE(n), b->discarded = CARVE(s->heads * s->Kp);
    b->rows = CARVE(widest * n), b->keys = CARVE(s->C * n);
    b->ratio = backward && s->reference ? CARVE(s->Kp * n) : NULL;
    b->d_wide = backward ? CARVE(widest * n) : NULL;
    b->d_features = backward ? CARVE(widest * n) : NULL;
    b->value_rows = backward || s->keep ? NULL : CARVE(s->Vp * n);
    b->centred = backward ? CARVE(s->C * n) : NULL;
    b->d_keys = backward ? CARVE(s->C * n) : NULL;
    b->d_values = backward ? CARVE(s->C * n) : NULL;
}

static void SMM_T(layout_update)(SMM_T(update_scratch) *u, const smm_sizes *s, smm_arena *arena)
{
    const size_t c = s->D * s->Kp;
    u->gates_in = CARVE(3 * c), u->gates_hidden = CARVE(3 * c), u->candidate = CARVE(c), u->h = CARVE(c);
    u->normed = CARVE(c), u->hidden = CARVE(s->H * s->Kp), u->mean = CARVE(s->Kp), u->rstd = CARVE(s->Kp);
    u->d_gates_in = CARVE(3 * c), u->d_gates_hidden = CARVE(3 * c), u->d_hidden = CARVE(s->H * s->Kp), u->d_h = CARVE(c);
}

static void SMM_T(layout_expectation)(SMM_T(expectation) *e, const smm_sizes *s, smm_arena *arena)
{
    const size_t c = s->D * s->Kp, r = s->Kp * s->Cp;
    e->cat = CARVE(2 * c), e->normed = CARVE(2 * c), e->norm_mean = CARVE(s->Kp), e->norm_rstd = CARVE(s->Kp);
    e->q_channels = CARVE(c), e->rho_channels = CARVE(c), e->q_folded = s->folded ? CARVE(s->C * s->Kp) : NULL;
    e->q = CARVE(r), e->scale = CARVE(r), e->shift = CARVE(r), e->base = CARVE(s->Kp), e->base_density = CARVE(s->Kp);
}

static void SMM_T(layout_backward)(SMM_T(image) *im, const smm_sizes *s, smm_arena *arena)
{
    const size_t c = s->D * s->Kp, r = s->Kp * s->Cp, cached = s->keep_backward ? s->blocks * s->C * SMM_BLOCK : 0;
    im->minus_centre = CARVE(s->Cp);
    im->d_keys = CARVE(cached), im->d_values = s->folded ? im->d_keys : CARVE(cached);
    im->d_mean = CARVE(c), im->d_log_std = CARVE(c), im->d_prior = CARVE(s->Kp), im->dm = CARVE(c), im->d_state = CARVE(c);
    im->d_q = CARVE(c), im->d_ls = CARVE(c), im->d_cat = CARVE(2 * c);
    im->d_folded = s->folded ? CARVE(s->C * s->Kp) : NULL, im->d_base = s->folded ? CARVE(s->Kp) : NULL;
    im->d_out_hidden = CARVE(2 * s->H * s->Kp);
    im->u.pending = smm_carve(arena, SMM_PARAMS, sizeof *im->u.pending);
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        size_t shape[2];
        const int slots = i == SMM_TO_Q_WEIGHT || i >= SMM_NORM_SLOTS_WEIGHT || (s->folded && i >= SMM_TO_K_WEIGHT);
        const int matrix = smm_param_shape(s->cfg, i, shape) == 2;
        SMM_T(pending) q = {NULL, NULL, 0};
        if (slots && matrix) q.x = CARVE(s->pending_rows * smm_pad(shape[1])), q.dy = CARVE(s->pending_rows * smm_pad(shape[0]));
        if (im->u.pending) im->u.pending[i] = q;
    }
    im->A = CARVE(r), im->E = CARVE(r), im->A_values = CARVE(r), im->E_values = CARVE(r), im->A_keys = CARVE(r);
    im->E_keys = CARVE(r), im->point_mean = CARVE(r);
    im->a = CARVE(s->heads * s->Kp), im->c = CARVE(s->heads * s->Kp), im->eps_A = CARVE(s->Cp), im->eps_E = CARVE(s->Cp);
}

static void SMM_T(layout_image)(SMM_T(image) *im, const smm_sizes *s, int masked, int backward, smm_arena *arena)
{
    const size_t c = s->D * s->Kp;
    im->index = masked ? smm_carve(arena, s->N, sizeof(size_t)) : NULL;
    im->active = smm_carve(arena, s->K, sizeof(size_t));
    const size_t cached = (backward ? s->keep_backward : s->keep) ? s->blocks * SMM_BLOCK : 0;
    im->keys = CARVE(cached * s->C), im->values = backward && s->folded ? im->keys : CARVE(cached * (backward ? s->C : s->Vp));
    im->mapped = s->folded ? CARVE(c) : NULL;
    im->centre = CARVE(s->Cp), im->value_sums = CARVE(2 * s->Vp);
    im->partial = smm_pad(s->heads * s->Kp) + 2 * (s->Kp + 1) * s->Vp + SMM_LANES;
    im->partials = CARVE(s->chunks * im->partial);
    im->point = CARVE(s->Kp * s->Vp), im->m_rows = CARVE(s->Kp * s->Vp), im->variance_rows = CARVE(s->Kp * s->Vp);
    im->trace = CARVE(s->records * s->record);
    SMM_T(layout_expectation)(&im->e, s, arena);
    SMM_T(layout_update)(&im->u, s, arena);
    im->full_mean = CARVE(c), im->full_log_std = CARVE(c), im->full_variance = CARVE(c);
    im->initial_mean = CARVE(s->K * s->D);
    im->out_hidden = CARVE(2 * s->H * s->Kp), im->out_channels = CARVE(2 * c);
    im->rows = CARVE(s->Kp * smm_max(smm_pad(2 * s->D), s->Vp));
    if (backward) SMM_T(layout_backward)(im, s, arena);
}

static SMM_T(record) SMM_T(record_at)(const SMM_T(image) *im, size_t i)
{
    const size_t c = im->s->D * im->s->Kp;
    real *at = im->trace + i * im->s->record;
    real *m = at + 3 * c, *prior = m + im->s->C * im->s->Kp;
    SMM_T(record) r = {at, at + c, prior, m, at + 2 * c, prior + im->s->Kp};
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
    return s->records * s->record + s->Cp + 1 + (s->steps_back == s->T ? t : 0) * s->update;
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
    im->slots = 0, im->slot_count = s->K;
    for (size_t j = 0; j < s->K; j++)
        if (!in->slot_mask || in->slot_mask[b * s->K + j]) im->active[im->slots++] = j;
    im->masked_slots = im->slots < s->K;
    im->about_points = 0;
}

/* X[d,j] = A[active[j],d]: rows (K,cols) of the caller to channels; lanes beyond the slots are 0. */
static void SMM_T(slots_in)(const SMM_T(image) *im, const real *A, size_t cols, real *X)
{
    const size_t n = im->s->Kp;
    im->k->transpose_in(im->slots, cols, n, A, cols, im->active, X, n);
}

/* A[j,d] = X[d,j] for all K slots. */
static void SMM_T(slots_out)(const SMM_T(image) *im, const real *X, size_t cols, real *A)
{
    const size_t ld = smm_pad(cols);
    im->k->transpose_out(im->slot_count, cols, ld, X, im->s->Kp, NULL, im->rows, ld);
    for (size_t j = 0; j < im->slot_count; j++) memcpy(A + j * cols, im->rows + j * ld, cols * sizeof *A);
}

/* full = initial value in inactive slots, X in active ones;  X (D,Kp) of the active slots, initial (K,D) or NULL: 0. */
static void SMM_T(scatter_slots)(const SMM_T(image) *im, const real *X, const real *initial, real *full)
{
    const size_t D = im->s->D, n = im->s->Kp;
    for (size_t d = 0; d < D; d++) {
        for (size_t j = 0; j < n; j++) full[d * n + j] = initial && j < im->slot_count ? initial[j * D + d] : 0;
        for (size_t j = 0; j < im->slots; j++) full[d * n + im->active[j]] = X[d * n + j];
    }
}

/* slots = [mean, variance] W_o' + b_o (paper), MLP_o([mean, log_std]) (reference), [mean, variance] or the means themselves.
 * cat (2D,Kp) is left in e.cat for the backward pass. */
static void SMM_T(output_forward)(SMM_T(image) *im, real *slots)
{
    const smm_sizes *s = im->s;
    const size_t c = s->D * s->Kp;
    real *cat = im->e.cat;
    memcpy(cat, im->full_mean, c * sizeof *cat);
    if (s->variance) memcpy(cat + c, s->reference && s->cfg->reduce ? im->full_log_std : im->full_variance, c * sizeof *cat);
    if (s->W == s->D && s->reference) {
        SMM_T(linear_relu_forward)(im->k, 2 * s->H, 2 * s->D, s->Kp, im->p[SMM_TO_OUT_0_WEIGHT], im->p[SMM_TO_OUT_0_BIAS], cat,
                                   im->out_hidden);
        SMM_T(linear_forward)(im->k, s->D, 2 * s->H, s->Kp, im->p[SMM_TO_OUT_2_WEIGHT], im->p[SMM_TO_OUT_2_BIAS],
                              im->out_hidden, im->out_channels);
    } else if (s->W == s->D && s->variance) {
        SMM_T(linear_forward)(im->k, s->D, 2 * s->D, s->Kp, im->p[SMM_TO_OUT_WEIGHT], im->p[SMM_TO_OUT_BIAS], cat,
                              im->out_channels);
    } else {
        memcpy(im->out_channels, cat, s->W * s->Kp * sizeof *cat);
    }
    if (slots) SMM_T(slots_out)(im, im->out_channels, s->W, slots);
}

/* From d_slots (K,W) to d_cat = gradients of mean and of log_std, (2D,Kp) over all slots. */
static void SMM_T(output_backward)(SMM_T(image) *im, const real *d_slots, const SMM_T(grad_set) *g)
{
    const smm_sizes *s = im->s;
    const size_t c = s->D * s->Kp, n = s->Kp;
    real *dy = im->out_channels, *cat = im->e.cat, *d_cat = im->d_cat;
    SMM_T(output_forward)(im, NULL);
    im->k->transpose_in(s->K, s->W, n, d_slots, s->W, NULL, dy, n);
    if (s->W == s->D && s->reference) {
        SMM_T(slots_linear_backward)(im->k, s, im->p, im->u.pending, SMM_TO_OUT_2_WEIGHT, SMM_TO_OUT_2_BIAS, im->out_hidden, dy,
                                     im->d_out_hidden, 0, g);
        im->k->relu_backward(2 * s->H, n, im->out_hidden, n, im->d_out_hidden, n);
        SMM_T(slots_linear_backward)(im->k, s, im->p, im->u.pending, SMM_TO_OUT_0_WEIGHT, SMM_TO_OUT_0_BIAS, cat, im->d_out_hidden,
                                     d_cat, 0, g);
        return;
    }
    if (s->W == s->D && s->variance)
        SMM_T(slots_linear_backward)(im->k, s, im->p, im->u.pending, SMM_TO_OUT_WEIGHT, SMM_TO_OUT_BIAS, cat, dy, d_cat, 0, g);
    else
        memcpy(d_cat, dy, s->W * n * sizeof *d_cat);
    if (s->variance)
        for (size_t i = 0; i < c; i++) d_cat[c + i] *= 2 * im->full_variance[i];
}
