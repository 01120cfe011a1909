/* forward_tpl.h - one step: responsibilities, weighted moments, the update of the slots; and the forward pass of an image. */

#define LOG_2PI 1.8378770664093454836

/* Queries, inverse standard deviations and constants of the E step from a state, of slots [begin, begin + K).
 *
 * The squared distance is summed as (x scale + shift)^2, one operation less than ((x - q) scale)^2 and as exact while
 * |q scale| is small: its rounding error is |q scale| ulps of 1. */
static void SMM_T(expectation_rows)(SMM_T(image) *im, const SMM_T(record) *r, size_t begin, size_t K)
{
    const smm_sizes *s = im->s;
    const KERNELS *k = im->k;
    const SMM_T(slots_side) *side = &im->side;
    const SMM_T(expectation) e = SMM_T(expectation_of)(s, &im->e, begin);
    const size_t Dp = s->Dp, Cp = s->Cp;
    const real *q = r->mean + begin * Dp, *log_std = r->log_std + begin * Dp, *const gain = side->w[SMM_NORM_SLOTS_WEIGHT].row;
    const real *const bias = side->w[SMM_NORM_SLOTS_BIAS].row, eps = (real)s->cfg->norm_eps;
    size_t ld = Dp;
    if (s->dot) {
        k->norm_rows(K, Dp, s->D, side->ones, q, Dp, gain, bias, eps, e.normed, Dp, e.norm_mean, e.norm_rstd);
        q = e.normed;
    } else if (s->slot_norm) {
        ld = 2 * Dp;
        SMM_T(copy_rows)(K, Dp, q, Dp, e.cat, ld);
        SMM_T(copy_rows)(K, Dp, log_std, Dp, e.cat + Dp, ld);
        k->norm_rows(K, ld, 2 * s->D, side->ones, e.cat, ld, gain, bias, eps, e.normed, ld, e.norm_mean, e.norm_rstd);
        q = e.normed, log_std = e.normed + Dp;
    }
    real *const q_rows = s->folded ? e.q_rows : e.q;
    if (s->learned) SMM_T(slots_linear_forward)(side, SMM_TO_Q_WEIGHT, SMM_TO_Q_BIAS, K, q, ld, q_rows, Dp, 0, 0);
    else SMM_T(copy_rows)(K, Dp, q, ld, q_rows, Dp);
    memset(e.base, 0, K * sizeof *e.base);
    memset(e.largest, 0, K * sizeof *e.largest);
    if (s->folded) {
        SMM_T(slots_input_backward)(side, SMM_TO_K_WEIGHT, K, q_rows, Dp, e.q, Cp, 0);
        for (size_t j = 0; s->cfg->qkv_bias && j < K; j++)
            for (size_t d = 0; d < s->D; d++) e.base[j] += e.mul * im->p[SMM_TO_K_BIAS][d] * q_rows[j * Dp + d];
    }
    if (s->dot) return;
    if (s->reference) /* W_q without its bias */
        SMM_T(slots_linear_forward)(side, SMM_TO_Q_WEIGHT, SMM_NO_PARAM, K, log_std, ld, e.scale, Cp, 0, 0);
    else if (s->variance) SMM_T(copy_rows)(K, Dp, log_std, ld, e.scale, Cp);
    else memset(e.scale, 0, K * Cp * sizeof *e.scale);
    *e.largest = k->precision(K, Cp, e.scale, e.q, e.shift, Cp, e.base_density);
    for (size_t j = 0; s->variance && !s->reference && j < K; j++) {
        const real log_prior = LOG(r->prior[begin + j]), log_det = e.base_density[j];
        e.base[j] = log_prior - (real)s->cfg->temperature * log_det;
        e.base_density[j] = log_prior - log_det;
    }
}

/* What concerns all slots together, from what the rows have left. */
static void SMM_T(expectation_all)(SMM_T(image) *im)
{
    SMM_T(expectation) *e = &im->e;
    real largest = 0;
    for (size_t j = 0; j < im->slots; j++) largest = e->largest[j] > largest ? e->largest[j] : largest;
    e->exact = largest > 64;
    e->about = largest > 4;
}

static void SMM_T(expectation_forward)(SMM_T(image) *im, const SMM_T(record) *r)
{
    SMM_T(expectation_rows)(im, r, 0, im->slots);
    SMM_T(expectation_all)(im);
}

/* Squared distances of one block's keys, in units of the standard deviations, to out (slots, SMM_BLOCK). */
static void SMM_T(distances)(const SMM_T(image) *im, const real *keys, real *out)
{
    const SMM_T(expectation) *e = &im->e;
    const size_t n = SMM_BLOCK, Cp = im->s->Cp;
    if (e->exact) im->k->sqdist_exact(im->slots, im->s->C, n, keys, n, e->scale, e->q, Cp, out, n);
    else im->k->sqdist(im->slots, im->s->C, n, keys, n, e->scale, e->shift, Cp, out, n);
}

/* gamma (heads, slots, SMM_BLOCK) of one block; adds to sums (heads, slots). */
static void SMM_T(responsibilities)(const SMM_T(image) *im, const SMM_T(record) *r, const real *keys, size_t valid, real *gamma,
                                    real *sums, real *ratio)
{
    const smm_sizes *s = im->s;
    const KERNELS *k = im->k;
    const SMM_T(expectation) *e = &im->e;
    const size_t K = im->slots, n = SMM_BLOCK, Cp = s->Cp;
    if (s->dot) {
        for (size_t h = 0; h < s->heads; h++) {
            real *g = gamma + h * K * n;
            k->gemm(K, n, s->Ch, e->q + h * s->Ch, Cp, 1, keys + h * s->Ch * n, n, g, n, 0);
            k->softmax(K, n, valid, g, n, e->mul, e->base, sums + h * K, NULL);
        }
        return;
    }
    SMM_T(distances)(im, keys, gamma);
    if (s->reference) k->softmax_linear(K, n, valid, gamma, n, e->mul, (real)s->cfg->eps, r->prior, sums, ratio);
    else k->softmax(K, n, valid, gamma, n, e->mul, e->base, sums, NULL);
}

/* attention[row, slot] = mean over heads of gamma, for the block's rows. */
static void SMM_T(write_attention)(const SMM_T(image) *im, const real *gamma, size_t first, size_t valid, const size_t *index,
                                   real *attention)
{
    const size_t K = im->slots, n = SMM_BLOCK, heads = im->s->heads;
    for (size_t i = 0; i < valid; i++) {
        real *row = attention + (index ? index[first + i] : first + i) * im->s->K;
        for (size_t j = 0; j < K; j++) {
            real sum = 0;
            for (size_t h = 0; h < heads; h++) sum += gamma[(h * K + j) * n + i];
            row[im->active[j]] = sum / (real)heads;
        }
    }
}

/* The same, of a mixture's last step, where the temperature has a say in responsibilities alone. Returns the block's
 * log-likelihood: log sum_k prior_k N_k, over its inputs. */
static real SMM_T(likelihood)(const SMM_T(image) *im, const real *keys, size_t valid, real *gamma, real *sums, SMM_T(block) *b)
{
    const smm_sizes *s = im->s;
    const SMM_T(expectation) *e = &im->e;
    const size_t K = im->slots, n = SMM_BLOCK;
    const int tempered = s->cfg->temperature != 1;
    SMM_T(distances)(im, keys, gamma);
    if (tempered) {
        memcpy(b->d_gamma, gamma, K * n * sizeof *gamma);
        im->k->softmax(K, n, valid, b->d_gamma, n, (real)-0.5, e->base_density, b->discarded, b->lse);
    }
    im->k->softmax(K, n, valid, gamma, n, e->mul, e->base, sums, tempered ? NULL : b->lse);
    real sum = 0;
    for (size_t i = 0; i < valid; i++) sum += b->lse[i];
    return sum - (real)valid * (real)(0.5 * LOG_2PI) * (real)s->D;
}

/* What the M step sums over inputs; one such array for each chunk, and their sum in the first. */
typedef struct {
    real *sums;     /* (heads, slots) */
    real *m1, *m2;  /* (slots, Vp): about the shared centre, or about im->point; Slot Attention has no m2 */
    real *values;   /* 2 Vp: sums of values and of their squares, in the first step */
    real *loglik;   /* 1 */
} SMM_T(moments);

static SMM_T(moments) SMM_T(moments_of)(const SMM_T(image) *im, size_t chunk)
{
    const smm_sizes *s = im->s;
    real *at = im->partials + chunk * im->partial;
    SMM_T(moments) m = {at, at + smm_pad(s->heads * s->K), NULL, NULL, NULL};
    m.m2 = s->dot ? NULL : m.m1 + s->K * s->Vp;
    m.values = m.m1 + (s->dot ? 1 : 2) * s->K * s->Vp;
    m.loglik = m.values + 2 * s->Vp;
    return m;
}

/* Blocks of the image, chunks of blocks, blocks [begin, end) of a chunk. */
static size_t SMM_T(image_blocks)(const SMM_T(image) *im) { return (im->in.n + SMM_BLOCK - 1) / SMM_BLOCK; }
static size_t SMM_T(image_chunks)(const SMM_T(image) *im)
{
    return (SMM_T(image_blocks)(im) + im->s->chunk_blocks - 1) / im->s->chunk_blocks;
}
static size_t SMM_T(chunk_begin)(const SMM_T(image) *im, size_t chunk)
{
    return smm_min(chunk * im->s->chunk_blocks, SMM_T(image_blocks)(im));
}

/* Where the layers of block i's MLP and its keys are saved for backward, or NULL; and, going backward, what forward has saved there. */
static real *SMM_T(save_block)(const SMM_T(image) *im, size_t i)
{
    return im->save && im->s->saved_block ? im->save + im->s->saved_head + i * im->s->saved_block : NULL;
}

static const real *SMM_T(saved_block)(const SMM_T(image) *im, size_t i)
{
    return im->saved && im->s->saved_block ? im->saved + im->s->saved_head + i * im->s->saved_block : NULL;
}

/* Keys of block i that are kept: where inputs_forward has said. */
static const real *SMM_T(kept_keys)(const SMM_T(image) *im, size_t i)
{
    const real *save = SMM_T(save_block)(im, i), *saved = save ? save : SMM_T(saved_block)(im, i);
    if (saved && SMM_T(direct)(saved + SMM_T(saved_keys)(im->s))) return saved + SMM_T(saved_keys)(im->s);
    return im->keys + i * im->s->C * SMM_BLOCK;
}

/* Values of block i, which stand in b, minus the centre, as rows (SMM_BLOCK, Vp). */
static void SMM_T(value_rows)(const SMM_T(image) *im, size_t i, const SMM_T(block) *b, real *rows)
{
    const smm_sizes *s = im->s;
    const size_t n = SMM_BLOCK, valid = smm_min(n, im->in.n - i * n);
    for (size_t h = 0; h < s->heads; h++)
        im->k->transpose_out(valid, s->Ch, s->Chp, b->values + h * s->Ch * n, n, im->centre + h * s->Ch, rows + h * s->Chp, s->Vp);
}

/* Keys of block i, and its values in `b`. */
static const real *SMM_T(make_block)(const SMM_T(image) *im, size_t i, SMM_T(block) *b)
{
    const size_t n = SMM_BLOCK;
    return SMM_T(inputs_forward)(im->k, im->s, im->p, &im->in, i * n, n, b, SMM_T(saved_block)(im, i), SMM_T(save_block)(im, i),
                                 im->keep ? im->keys + i * im->s->C * n : b->keys);
}

/* Its values to those that are kept: as rows, or, going backward (`channels`), as channels, and zeros in place of the gradients. */
static void SMM_T(keep_values)(const SMM_T(image) *im, size_t i, const SMM_T(block) *b, int channels)
{
    const size_t n = SMM_BLOCK, size = im->s->C * n, at = i * size;
    im->made[i] = 1;
    if (!channels) {
        SMM_T(value_rows)(im, i, b, im->values + i * n * im->s->Vp);
        return;
    }
    if (im->values != im->keys) im->k->affine(im->s->C, n, b->values, n, NULL, im->minus_centre, im->values + at, n, 0);
    memset(im->d_values + at, 0, size * sizeof *im->d_values);
    if (im->d_keys != im->d_values) memset(im->d_keys + at, 0, size * sizeof *im->d_keys);
}

/* Keys of block i that are kept; the first pass makes them, and the values beside them. */
static const real *SMM_T(kept_block)(const SMM_T(image) *im, size_t i, SMM_T(block) *b, int channels)
{
    if (!im->made[i]) {
        SMM_T(make_block)(im, i, b);
        SMM_T(keep_values)(im, i, b, channels);
    }
    return SMM_T(kept_keys)(im, i);
}

/* E and M step of one chunk. `first` asks for the sums of values, `last` for the log-likelihood, attention (N,K) for the
 * responsibilities. */
static void SMM_T(step_chunk)(const SMM_T(image) *im, const SMM_T(record) *r, size_t chunk, SMM_T(block) *b, int first, int last,
                              real *attention)
{
    const smm_sizes *s = im->s;
    const size_t K = im->slots, n = SMM_BLOCK, Vp = s->Vp;
    const SMM_T(moments) m = SMM_T(moments_of)(im, chunk);
    memset(m.sums, 0, im->partial * sizeof *m.sums);
    const int likelihood = last && s->variance && !s->reference;
    for (size_t i = SMM_T(chunk_begin)(im, chunk); i < SMM_T(chunk_begin)(im, chunk + 1); i++) {
        const size_t valid = smm_min(n, im->in.n - i * n);
        const real *keys = b->keys, *values = b->value_rows;
        real *gamma = b->gamma;
        if (s->keep) {
            keys = SMM_T(kept_block)(im, i, b, 0), values = im->values + i * n * Vp;
        } else {
            keys = SMM_T(make_block)(im, i, b);
            SMM_T(value_rows)(im, i, b, b->value_rows);
        }
        if (first) im->k->moments(1, valid, Vp, b->ones, n, values, Vp, m.values, m.values + Vp, Vp);
        if (likelihood) *m.loglik += SMM_T(likelihood)(im, keys, valid, gamma, m.sums, b);
        else SMM_T(responsibilities)(im, r, keys, valid, gamma, m.sums, NULL);
        if (last && attention) SMM_T(write_attention)(im, gamma, i * n, valid, im->in.index, attention);
        if (!s->variance)
            for (size_t h = 0; h < s->heads; h++)
                im->k->gemm(K, s->Chp, valid, gamma + h * K * n, n, 1, values + h * s->Chp, Vp, m.m1 + h * s->Chp, Vp, 1);
        else if (im->about_points)
            im->k->moments_about(K, valid, Vp, gamma, n, values, Vp, im->point, m.m1, m.m2, Vp);
        else
            im->k->moments(K, valid, Vp, gamma, n, values, Vp, m.m1, m.m2, Vp);
    }
}

/* Chunks' sums, added up in their order in the first chunk's: what is not of a slot's channels, which all slots need; and the moments
 * of slots [begin, begin + K). */
static SMM_T(moments) SMM_T(sum_weights)(const SMM_T(image) *im)
{
    const SMM_T(moments) total = SMM_T(moments_of)(im, 0);
    for (size_t c = 1; c < SMM_T(image_chunks)(im); c++) {
        const SMM_T(moments) m = SMM_T(moments_of)(im, c);
        im->k->add(smm_pad(im->s->heads * im->s->K), m.sums, total.sums);
        im->k->add(2 * im->s->Vp + SMM_LANES, m.values, total.values); /* and the log-likelihood */
    }
    return total;
}

static void SMM_T(sum_moments)(const SMM_T(image) *im, size_t begin, size_t K)
{
    const size_t first = begin * im->s->Vp, size = K * im->s->Vp;
    const SMM_T(moments) total = SMM_T(moments_of)(im, 0);
    for (size_t c = 1; c < SMM_T(image_chunks)(im); c++) {
        const SMM_T(moments) m = SMM_T(moments_of)(im, c);
        im->k->add(size, m.m1 + first, total.m1 + first);
        if (total.m2) im->k->add(size, m.m2 + first, total.m2 + first);
    }
}

/* Weighted mean of slot j and variance about it, to r->m and r->variance; returns whether they are exact enough.
 *
 * With moments about a point p, variance = m2/S - (m1/S)^2 loses digits where the mean is far from p beside the spread: then
 * the means just found become the slots' points and the caller sums again. The eps that every weight gets enters through the
 * sums of all values. */
static int SMM_T(slot_moments)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(moments) *t, size_t j, int about)
{
    const smm_sizes *s = im->s;
    const size_t Vp = s->Vp;
    const double eps = s->reference ? 0 : s->cfg->eps, count = (double)im->in.n;
    const double floor = s->reference ? s->cfg->eps : s->cfg->var_floor;
    const real *m1 = t->m1 + j * Vp, *sums = im->value_sums;
    real *m = r->m + j * s->Cp, *point = im->point + j * Vp;
    if (!s->variance) {
        for (size_t h = 0; h < s->heads; h++) {
            const double scale = 1 / ((double)t->sums[h * im->slots + j] + eps * count);
            const real *first = m1 + h * s->Chp, *all = sums + h * s->Chp;
            for (size_t d = 0, at = h * s->Ch; d < s->Ch; d++, at++)
                m[at] = (real)((s->learned ? 0 : im->centre[at]) + (first[d] + eps * all[d]) * scale);
        }
        return 1;
    }
    if (!about) memset(point, 0, Vp * sizeof *point);
    return im->k->mean_variance(Vp, (double)t->sums[j], eps, count, floor, m1, t->m2 + j * Vp, sums, im->centre, point, m,
                                r->variance + j * s->Dp);
}

/* The weighted means that the GRU gets, of slots [begin, begin + K): those of the record, or W_v m + b_v where W_v is folded. */
static const real *SMM_T(mapped_means)(SMM_T(image) *im, const SMM_T(record) *r, size_t begin, size_t K)
{
    const smm_sizes *s = im->s;
    if (!s->folded) return r->m + begin * s->Dp;
    real *mapped = im->mapped + begin * s->Dp;
    SMM_T(slots_linear_forward)(&im->side, SMM_TO_V_WEIGHT, SMM_TO_V_BIAS, K, r->m + begin * s->Cp, s->Cp, mapped, s->Dp, 0, 0);
    return mapped;
}

/* The hidden state that the GRU gets of slots from `begin` on, and the distance of its rows. */
static const real *SMM_T(hidden_state)(const SMM_T(image) *im, const SMM_T(record) *r, size_t begin, size_t *ldh)
{
    *ldh = im->s->reference ? 2 * im->s->Dp : im->s->Dp;
    return (im->s->reference ? im->e.normed : r->mean) + begin * *ldh;
}

/* From what the pass over inputs has found to the state after the step, of slots [begin, begin + K). */
static void SMM_T(state_rows)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next, size_t begin, size_t K)
{
    const smm_sizes *s = im->s;
    const size_t D = s->D, Dp = s->Dp, first = begin * Dp, end = (begin + K) * Dp;
    if (s->learned) {
        size_t ldh;
        const real *hidden = SMM_T(hidden_state)(im, r, begin, &ldh);
        const SMM_T(update_scratch) u = SMM_T(update_of)(s, &im->u, begin);
        SMM_T(update_forward)(&im->side, K, SMM_T(mapped_means)(im, r, begin, K), hidden, ldh, &u, next->mean + first);
    } else {
        memcpy(next->mean + first, r->m + first, K * Dp * sizeof *r->m);
    }
    if (!s->variance) return;
    const real floor = (real)(s->reference ? s->cfg->eps : s->cfg->var_floor);
    for (size_t i = first; i < end; i++) {
        const real shift = r->m[i] - next->mean[i];
        im->full_variance[i] = next->log_std[i] = r->variance[i] + shift * shift + floor;
    }
    im->k->log(K * Dp, next->log_std + first);
    for (size_t i = first; i < end; i++) next->log_std[i] /= 2;
    for (size_t j = begin; j < begin + K; j++) {
        memset(next->log_std + j * Dp + D, 0, (Dp - D) * sizeof *next->log_std);
        next->prior[j] = s->reference ? (real)(1 / ((double)im->slots + s->cfg->eps))
                         : s->cfg->uniform_prior ? 1 / (real)im->slots : r->sums[j] / (real)im->in.n;
    }
}

/* Shares of the slots that several threads work on: of four at least, for fewer do not make up for a thread's reading all weights. */
static size_t SMM_T(slot_shares)(const SMM_T(image) *im)
{
    const smm_sizes *s = im->s;
    if (im->threads < 2 || !s->learned || im->slots * s->D * (9 * s->D + 2 * s->H) < 1 << 18) return 1;
    return smm_min((size_t)im->threads, (im->slots + 3) / 4);
}

/* From the chunks' sums to the state after the step for the i-th of `shares` shares of the slots, and on to the expectation of the
 * next step, unless this is the last. */
static void SMM_T(share_forward)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next, size_t i, size_t shares, int last)
{
    const SMM_T(share) share = SMM_T(share_of)(im->slots, i, shares);
    const SMM_T(moments) total = SMM_T(moments_of)(im, 0);
    SMM_T(sum_moments)(im, share.begin, share.count);
    for (size_t j = share.begin; j < share.begin + share.count; j++)
        im->inexact[j] = (real)!SMM_T(slot_moments)(im, r, &total, j, im->about_points);
    SMM_T(state_rows)(im, r, next, share.begin, share.count);
    if (!last) SMM_T(expectation_rows)(im, next, share.begin, share.count);
}

/* One try at a step: the pass over inputs, every chunk on several threads if there are, and what follows for the slots. Returns whether
 * moments about the points they were taken about are exact enough. */
static int SMM_T(try_step)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next, int last, real *attention, real *loglik)
{
    const smm_sizes *s = im->s;
    const int first = im->steps == 0;
    const size_t shares = SMM_T(slot_shares)(im);
    SMM_PARALLEL(im->threads, SMM_T(image_chunks)(im), c, thread,
                 SMM_T(step_chunk)(im, r, c, &im->blocks[thread], first, last, attention));
    const SMM_T(moments) total = SMM_T(sum_weights)(im);
    memcpy(r->sums, total.sums, s->heads * im->slots * sizeof *r->sums);
    if (first) memcpy(im->value_sums, total.values, 2 * s->Vp * sizeof *im->value_sums);
    if (last && loglik) *loglik = *total.loglik;
    SMM_PARALLEL(shares, shares, i, thread, SMM_T(share_forward)(im, r, next, i, shares, last));
    int exact = 1;
    for (size_t j = 0; j < im->slots; j++) exact &= im->inexact[j] == 0;
    return exact;
}

/* Step im->steps, from record `r`, whose expectation has been made, to record `next`, whose expectation is made unless it is the
 * last. Where the points proved bad, every slot has its own from then on. */
static void SMM_T(step_forward)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next, int last, real *attention,
                                real *loglik)
{
    const smm_sizes *s = im->s;
    for (int tries = 1; !SMM_T(try_step)(im, r, next, last, attention, loglik) && tries < 3; tries++) {
        im->about_points = 1;
        SMM_T(expectation_forward)(im, r);
    }
    if (!last) SMM_T(expectation_all)(im);
    if (im->save && s->learned && (last || s->steps_back == s->T))
        SMM_T(update_save)(s, im->slots, &im->u, im->save + SMM_T(saved_update)(s, im->steps));
}

/* The centre: the mean of the first block's values; 0 where a network takes means that are not about it. Where keys and values are
 * kept, every thread makes the first block of its share of the chunks meanwhile. */
static void SMM_T(find_centre)(SMM_T(image) *im)
{
    const smm_sizes *s = im->s;
    const size_t n = SMM_BLOCK, valid = smm_min(n, im->in.n), chunks = SMM_T(image_chunks)(im);
    const size_t parts = s->keep ? smm_min((size_t)im->threads, chunks) : 1;
    const SMM_T(block) *first = &im->blocks[0];
    memset(im->centre, 0, s->Cp * sizeof *im->centre);
    if (s->learned && !s->variance) return;
    SMM_PARALLEL(parts, parts, i, thread,
                 SMM_T(make_block)(im, SMM_T(chunk_begin)(im, smm_part(chunks, i, parts)), &im->blocks[i]));
    for (size_t d = 0; d < s->D; d++) {
        real sum = 0;
        for (size_t j = 0; j < valid; j++) sum += first->values[d * n + j];
        im->centre[d] = sum / (real)valid;
    }
    for (size_t i = 0; s->keep && i < parts; i++)
        SMM_T(keep_values)(im, SMM_T(chunk_begin)(im, smm_part(chunks, i, parts)), &im->blocks[i], 0);
}

/* Attention of masked inputs, which no sum ever sees: their keys against the last step's queries. */
static void SMM_T(masked_attention)(SMM_T(image) *im, const SMM_T(record) *r, const uint8_t *mask, real *attention)
{
    const smm_sizes *s = im->s;
    SMM_T(block) *b = &im->blocks[0];
    size_t rows[SMM_BLOCK], count = 0;
    for (size_t i = 0; i <= s->N; i++) {
        if (i < s->N && !mask[i]) rows[count++] = i;
        if (!count || (count < SMM_BLOCK && i < s->N)) continue;
        const SMM_T(rows_in) in = {im->in.x, im->in.x_bfloat16, rows, count};
        SMM_T(inputs_forward)(im->k, s, im->p, &in, 0, SMM_BLOCK, b, NULL, NULL, b->keys);
        SMM_T(responsibilities)(im, r, b->keys, count, b->gamma, b->discarded, NULL);
        SMM_T(write_attention)(im, b->gamma, 0, count, rows, attention);
        count = 0;
    }
}

/* The initial means (K,D), active or not: the caller's, or the values of some rows. */
static const real *SMM_T(initial_means)(SMM_T(image) *im, const SMM_T(smm_inputs) *in, size_t b)
{
    const smm_sizes *s = im->s;
    if (!in->indices) return in->mean + b * s->K * s->D;
    for (size_t first = 0; first < s->K; first += SMM_BLOCK) {
        SMM_T(block) *block = &im->blocks[0];
        size_t index[SMM_BLOCK];
        const size_t count = smm_min(SMM_BLOCK, s->K - first), n = smm_pad(count);
        for (size_t j = 0; j < count; j++) index[j] = (size_t)in->indices[b * s->K + first + j];
        const SMM_T(rows_in) rows = {im->in.x, im->in.x_bfloat16, index, count};
        SMM_T(inputs_forward)(im->k, s, im->p, &rows, 0, n, block, NULL, NULL, block->keys);
        if (s->folded) {
            SMM_T(linear_forward)(im->k, s->D, s->C, n, im->p[SMM_TO_V_WEIGHT], s->cfg->qkv_bias ? im->p[SMM_TO_V_BIAS] : NULL,
                                  block->features, block->v);
            block->values = block->v;
        }
        for (size_t j = 0; j < count; j++)
            for (size_t d = 0; d < s->D; d++) im->initial_mean[(first + j) * s->D + d] = block->values[d * n + j];
    }
    return im->initial_mean;
}

/* The state before the first step. The indices have been checked. */
static void SMM_T(initial_state)(SMM_T(image) *im, const SMM_T(smm_inputs) *in, size_t b, const SMM_T(record) *r)
{
    memset(im->trace, 0, im->s->records * im->s->record * sizeof *im->trace); /* what is saved is the same in every bit */
    SMM_T(slots_in)(im, SMM_T(initial_means)(im, in, b), r->mean);
    if (im->s->variance) SMM_T(slots_in)(im, in->log_std + b * im->s->K * im->s->D, r->log_std);
    for (size_t j = 0; j < im->slots; j++) r->prior[j] = 1 / (real)im->slots;
}

/* The last state over all slots, in full_mean, full_log_std, full_variance: inactive slots show their initial state. */
static void SMM_T(full_state)(SMM_T(image) *im, const SMM_T(smm_inputs) *in, size_t b, const SMM_T(record) *last)
{
    const smm_sizes *s = im->s;
    const size_t Dp = s->Dp, c = s->K * Dp;
    const real *mean = im->masked_slots ? SMM_T(initial_means)(im, in, b) : NULL;
    SMM_T(scatter_slots)(im, last->mean, mean, im->full_mean);
    if (!s->variance) return;
    SMM_T(scatter_slots)(im, last->log_std, im->masked_slots ? in->log_std + b * s->K * s->D : NULL, im->full_log_std);
    for (size_t i = 0; i < c; i++) im->full_variance[i] = 2 * im->full_log_std[i];
    im->k->exp(c, im->full_variance);
    for (size_t j = 0; j < im->slots; j++)
        memcpy(im->full_variance + im->active[j] * Dp, last->variance + j * Dp, Dp * sizeof *im->full_variance);
}

/* Write the outputs of image b from its last state. */
static void SMM_T(write_outputs)(SMM_T(image) *im, const SMM_T(smm_outputs) *out, size_t b, const SMM_T(record) *last)
{
    const smm_sizes *s = im->s;
    const size_t at = b * s->K * s->D;
    SMM_T(output_forward)(im, out->slots + b * s->K * s->W);
    if (!s->variance) return;
    if (out->mean) SMM_T(slots_out)(s, im->full_mean, s->Dp, 1, out->mean + at);
    if (out->variance) SMM_T(slots_out)(s, im->full_variance, s->Dp, 1, out->variance + at);
    if (!out->prior) return;
    memset(out->prior + b * s->K, 0, s->K * sizeof *out->prior);
    for (size_t j = 0; j < im->slots; j++) out->prior[b * s->K + im->active[j]] = last->prior[j];
}

/* Whether a step has moved an image by no more than the tolerance: see smm_typed.h. */
static int SMM_T(settled)(const SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next)
{
    const size_t D = im->s->D, Dp = im->s->Dp;
    const double tol = im->s->cfg->tol;
    if (tol == 0) return 0;
    for (size_t j = 0; j < im->slots; j++) {
        double sum = 0;
        for (size_t d = 0; d < D; d++) {
            const double moved = (double)next->mean[j * Dp + d] - (double)r->mean[j * Dp + d];
            sum += moved * moved;
        }
        if (!(sum <= tol * tol * (double)D)) return 0;
    }
    return 1;
}

/* Records, centre and number of steps, for backward, which finds 0 where a step was not taken. */
static void SMM_T(save_image)(const SMM_T(image) *im, real *saved)
{
    const smm_sizes *s = im->s;
    const size_t swapped = s->records != s->T + 1 && im->steps % 2 == 0; /* the state before the last step is in record 1 */
    if (!swapped) memcpy(saved, im->trace, s->records * s->record * sizeof *saved);
    for (size_t i = 0; swapped && i < 2; i++) memcpy(saved + i * s->record, im->trace + (1 - i) * s->record, s->record * sizeof *saved);
    real *centre = saved + s->records * s->record;
    memcpy(centre, im->centre, s->Cp * sizeof *saved);
    memset(centre + s->Cp, 0, SMM_LANES * sizeof *saved);
    centre[s->Cp] = (real)im->steps;
    for (size_t t = im->steps; t < s->steps_back; t++) memset(saved + SMM_T(saved_update)(s, t), 0, s->update * sizeof *saved);
}

/* The whole forward pass of image b. */
static void SMM_T(image_forward)(SMM_T(image) *im, const SMM_T(smm_inputs) *in, const SMM_T(smm_outputs) *out, size_t b)
{
    const smm_sizes *s = im->s;
    real *attention = out->attention ? out->attention + b * s->N * s->K : NULL;
    SMM_T(open_image)(im, in, b);
    im->save = out->saved ? out->saved + b * s->saved_image : NULL;
    SMM_T(find_centre)(im);
    const SMM_T(record) first = SMM_T(record_of)(im, 0);
    SMM_T(initial_state)(im, in, b, &first);
    if (attention) memset(attention, 0, s->N * s->K * sizeof *attention);
    im->steps = 0;
    SMM_T(expectation_forward)(im, &first);
    for (int last = 0, settled = 0; !last; im->steps++) {
        const SMM_T(record) r = SMM_T(record_of)(im, im->steps), next = SMM_T(record_of)(im, im->steps + 1);
        last = settled || im->steps + 1 == s->T;
        SMM_T(step_forward)(im, &r, &next, last, attention, out->log_likelihood ? out->log_likelihood + b : NULL);
        settled = SMM_T(settled)(im, &r, &next);
    }
    const SMM_T(record) before = SMM_T(record_of)(im, im->steps - 1), last = SMM_T(record_of)(im, im->steps);
    if (s->variance) memcpy(last.variance, im->full_variance, im->slots * s->Dp * sizeof *last.variance);
    SMM_T(full_state)(im, in, b, &last);
    SMM_T(write_outputs)(im, out, b, &last);
    if (im->save) SMM_T(save_image)(im, im->save);
    if (out->iterations) out->iterations[b] = (int64_t)(im->steps - (size_t)s->reference);
    if (attention && in->mask) SMM_T(masked_attention)(im, &before, in->mask + b * s->N, attention);
}
