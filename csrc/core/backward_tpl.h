/* backward_tpl.h - one step backward, and the backward pass of an image.
 *
 * Responsibilities are computed again from the step's saved state. With m the weighted mean, V the variance about it, mu' the
 * updated mean, Sigma = V + (m - mu')^2 + floor, A = dSigma, and t = v - mu':
 *
 *     dw[n,k]    = sum_d A t^2 + dm t + constant of k      the constant falls out with the mean over n below
 *     dgamma     = (dw - sum_n w dw) / S + dprior' / N     sum_n w dw = sum_d A (V + (m - mu')^2) + dm (m - mu')
 *     dlogits    = gamma (dgamma - sum_k gamma dgamma)
 *     dk[n]      = sum_k dlogits 2 mul scale^2 (k - q),    mul the factor of squared distances in the logits (negative)
 *     dv[n]      = sum_k w (2 A t + dm)
 *     dq         = -2 mul scale^2 R1,  dlog_std = -2 mul scale^2 R2 - temperature R0,  R_i = sum_n dlogits (k - q)^i
 *
 * Slot Attention: dw = dm . v, dk = sum_k dlogits scale q, dq = scale sum_n dlogits k. */

/* From gradients of the folded query and base (im->d_folded, im->d_base) to those of q (im->d_q) and W_k. */
static void SMM_T(folded_backward)(SMM_T(image) *im, const SMM_T(share) *share)
{
    const smm_sizes *s = im->s;
    const size_t Dp = s->Dp, K = share->count, begin = share->begin;
    const real *d_folded = im->d_folded + begin * s->Cp;
    real *d_q = im->d_q + begin * Dp;
    SMM_T(slots_linear_forward)(&im->side, SMM_TO_K_WEIGHT, SMM_NO_PARAM, K, d_folded, s->Cp, d_q, Dp, 0, 0);
    SMM_T(slots_weight_backward)(&im->side, SMM_TO_K_WEIGHT, share, d_folded, s->Cp, im->e.q_rows + begin * Dp, Dp);
    for (size_t j = 0; s->cfg->qkv_bias && j < K; j++)
        for (size_t d = 0; d < s->D; d++) d_q[j * Dp + d] += im->d_base[begin + j] * im->p[SMM_TO_K_BIAS][d];
}

/* Gradients of what W_q is applied to, rows (K, ld): those of the LayerNorm before it, or the state's own. */
static real *SMM_T(d_query_rows)(const SMM_T(image) *im, size_t begin, size_t *ld)
{
    const smm_sizes *s = im->s;
    *ld = s->slot_norm ? 2 * s->Dp : s->Dp;
    return (s->dot || s->slot_norm ? im->d_cat : im->d_state) + begin * *ld;
}

/* From gradients of queries and log standard deviations (im->d_q, im->d_ls) to those of the state, added to im->d_state (of the
 * GRU's hidden state so far) and im->d_log_std (overwritten), of a share of the slots; gradients of weights are left pending. */
static void SMM_T(expectation_backward)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(share) *share)
{
    const smm_sizes *s = im->s;
    const KERNELS *k = im->k;
    const SMM_T(slots_side) *side = &im->side;
    const SMM_T(expectation) e = SMM_T(expectation_of)(s, &im->e, share->begin);
    const size_t Dp = s->Dp, K = share->count, at = share->begin * Dp;
    const int normed = s->dot || s->slot_norm;
    const real *const gain = side->w[SMM_NORM_SLOTS_WEIGHT].row, *d_q = im->d_q + at, *d_ls = im->d_ls + at;
    size_t ld;
    real *d_in = SMM_T(d_query_rows)(im, share->begin, &ld), *d_state = im->d_state + at, *d_log_std = im->d_log_std + at;
    real *d_second = s->slot_norm ? d_in + Dp : d_log_std; /* of the log standard deviations, normed or not */
    const SMM_T(share) first = {share->begin, K, (s->reference ? 2 : 1) * share->all}, second = {share->all + share->begin, K, 0};
    if (s->folded) SMM_T(folded_backward)(im, share);
    if (s->learned)
        SMM_T(slots_linear_backward)(side, SMM_TO_Q_WEIGHT, &first, normed ? e.normed : r->mean + at, ld, d_q, Dp, d_in, ld, !normed);
    else k->add(K * Dp, d_q, d_in);
    if (s->reference) { /* W_q alone, without its bias, is applied to log standard deviations too */
        SMM_T(slots_input_backward)(side, SMM_TO_Q_WEIGHT, K, d_ls, Dp, d_second, ld, 0);
        SMM_T(slots_weight_backward)(side, SMM_TO_Q_WEIGHT, &second, e.normed + Dp, ld, d_ls, Dp);
    } else if (s->variance)
        SMM_T(copy_rows)(K, Dp, d_ls, Dp, d_second, ld);
    real *d_x = e.normed; /* which nobody reads any more */
    if (s->dot) {
        k->norm_rows_backward(K, Dp, s->D, side->ones, r->mean + at, Dp, gain, e.norm_mean, e.norm_rstd, d_in, Dp, d_x, Dp);
        k->add(K * Dp, d_x, d_state);
    } else if (s->slot_norm) {
        if (s->reference) /* the GRU's hidden state was the normalised mean */
            for (size_t j = 0; j < K; j++) k->add(Dp, d_state + j * Dp, d_in + j * ld);
        k->norm_rows_backward(K, ld, 2 * s->D, side->ones, e.cat, ld, gain, e.norm_mean, e.norm_rstd, d_in, ld, d_x, ld);
        if (s->reference) SMM_T(copy_rows)(K, Dp, d_x, ld, d_state, Dp);
        for (size_t j = 0; !s->reference && j < K; j++) k->add(Dp, d_x + j * ld, d_state + j * Dp);
        SMM_T(copy_rows)(K, Dp, d_x + Dp, ld, d_log_std, Dp);
    }
}

/* Gradients of the vectors in it, from what it has left of all slots. */
static void SMM_T(expectation_sums)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(grad_set) *g)
{
    const smm_sizes *s = im->s;
    const SMM_T(expectation) *e = &im->e;
    const size_t Dp = s->Dp, K = im->slots;
    size_t ld;
    const real *d_in = SMM_T(d_query_rows)(im, 0, &ld);
    SMM_T(slots_bias_backward)(&im->side, SMM_TO_Q_BIAS, K, im->d_q, Dp, g);
    if (s->dot || s->slot_norm)
        im->k->norm_rows_sums(K, ld, s->dot ? r->mean : e->cat, ld, e->norm_mean, e->norm_rstd, d_in, ld, g->at[SMM_NORM_SLOTS_WEIGHT],
                              g->at[SMM_NORM_SLOTS_BIAS]);
    for (size_t j = 0; s->folded && s->cfg->qkv_bias && j < K; j++)
        for (size_t d = 0; d < s->D; d++) g->at[SMM_TO_K_BIAS][d] += im->d_base[j] * e->q_rows[j * Dp + d];
}

/* dSigma (rows im->A), and what Sigma's centre adds to the gradient of the updated mean, of a share of the slots. */
static void SMM_T(variance_backward)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next, const SMM_T(share) *share)
{
    const smm_sizes *s = im->s;
    const real floor = (real)(s->reference ? s->cfg->eps : s->cfg->var_floor);
    const size_t end = share->begin + share->count;
    memset(im->A + share->begin * s->Cp, 0, share->count * s->Cp * sizeof *im->A);
    for (size_t i = share->begin * s->Dp; s->variance && i < end * s->Dp; i++) { /* C is D here */
        const real shift = r->m[i] - next->mean[i], A = im->d_log_std[i] / (2 * (r->variance[i] + shift * shift + floor));
        im->A[i] = A;
        im->d_mean[i] -= 2 * A * shift;
    }
}

/* Rows of constants for the pass over inputs, of a share of the slots. Values are taken about the shared centre, or, with `about`, about
 * the slots' means; returns whether some slot needs that. */
static int SMM_T(pass_rows)(const SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next, const SMM_T(share) *share, int about)
{
    const smm_sizes *s = im->s;
    const SMM_T(expectation) *e = &im->e;
    const real eps = (real)(s->reference ? 0 : s->cfg->eps), count = (real)im->in.n, mul = e->mul;
    const real *restrict centre = im->centre;
    int far = 0;
    for (size_t j = share->begin; j < share->begin + share->count; j++) {
        const size_t at = j * s->Cp;
        const real *restrict dm = (s->folded ? im->d_folded : im->dm) + at, *restrict A = im->A + at, *restrict q = e->q + at;
        const real *restrict m = r->m + at, *restrict scale = e->scale + at;
        real *restrict E = im->E + at, *restrict A_values = im->A_values + at, *restrict E_values = im->E_values + at;
        real *restrict A_keys = im->A_keys + at, *restrict E_keys = im->E_keys + at, *restrict mean = im->point_mean + at;
        for (size_t h = 0; h < s->heads; h++) {
            const real S = im->a[h * im->slots + j] = 1 / (r->sums[h * im->slots + j] + eps * count);
            const size_t begin = h * s->Ch, end = begin + s->Ch;
            real sum = 0; /* sum_n w dw */
            for (size_t d = begin; !s->variance && d < end; d++) {
                E[d] = dm[d], A_values[d] = 0, E_values[d] = dm[d] * S;
                sum += dm[d] * (m[d] - centre[d]);
            }
            if (s->variance) {
                const real *restrict after = next->mean + at, *restrict variance = r->variance + at;
                for (size_t d = 0; d < end; d++) {
                    mean[d] = after[d] - centre[d];
                    E[d] = about ? dm[d] : dm[d] - 2 * A[d] * mean[d];
                    A_values[d] = 2 * A[d] * S, E_values[d] = E[d] * S;
                }
                for (size_t d = 0; d < end; d++) {
                    const real own = m[d] - centre[d], shift = about ? m[d] - after[d] : own, moved = own - mean[d];
                    sum += A[d] * (variance[d] + shift * shift) + E[d] * shift;
                    far |= mean[d] * mean[d] + own * own > 16 * (variance[d] + moved * moved);
                }
            }
            im->c[h * im->slots + j] = -sum * S;
        }
        for (size_t d = 0; d < s->C; d++) {
            A_keys[d] = s->dot ? q[d] * mul : 2 * mul * scale[d] * scale[d];
            E_keys[d] = s->dot ? 0 : -A_keys[d] * q[d];
        }
        if (s->variance && !s->reference && !s->cfg->uniform_prior) im->c[j] += im->d_prior[j] / count;
    }
    return far;
}

/* What follows from the constants of all slots; returns whether values are taken about the slots' means. */
static int SMM_T(pass_constants)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next)
{
    const smm_sizes *s = im->s;
    const size_t K = im->slots, Cp = s->Cp;
    const real eps = (real)(s->reference ? 0 : s->cfg->eps);
    const SMM_T(share) all = SMM_T(share_of)(K, 0, 1);
    int about = 0;
    for (size_t j = 0; j < K; j++) about |= im->inexact[j] != 0;
    if (about) SMM_T(pass_rows)(im, r, next, &all, 1);
    if (im->e.about) memset(im->E_keys, 0, K * Cp * sizeof *im->E_keys); /* keys are taken about the queries */
    for (size_t i = 0; i < K; i++)
        for (size_t d = 0; d < s->C; d++) {
            const size_t at = i * Cp + d;
            im->eps_A[d] += eps * im->A_values[at];
            im->eps_E[d] += eps * (im->E_values[at] - (about ? im->A_values[at] * im->point_mean[at] : 0));
        }
    return about;
}

/* What the pass over inputs of one step needs besides im. */
typedef struct {
    const SMM_T(record) *r;
    const real *d_attention; /* (N,K) or NULL */
    int about;               /* values are taken about the slots' means */
    int inputs;              /* the pass goes on to the inputs: the step that backward ends with, or every one, if nothing is kept */
    int add;                 /* what goes to the inputs is added to what other steps gave */
} SMM_T(pass);

/* d_gamma of one block from d_attention, then through the softmax to the logits. */
static void SMM_T(logits_backward)(const SMM_T(image) *im, size_t first, size_t valid, SMM_T(block) *b, const real *d_attention,
                                   real *sums)
{
    const smm_sizes *s = im->s;
    const size_t K = im->slots, n = SMM_BLOCK;
    const real *factor = s->reference ? b->ratio : b->gamma;
    for (size_t i = 0; d_attention && i < valid; i++) {
        const real *row = d_attention + (im->in.index ? im->in.index[first + i] : first + i) * s->K;
        for (size_t j = 0; j < s->heads * K; j++) /* softmax_backward multiplies by a */
            b->d_gamma[j * n + i] += row[im->active[j % K]] / ((real)s->heads * im->a[j]);
    }
    for (size_t h = 0; h < s->heads; h++)
        im->k->softmax_backward(K, n, b->gamma + h * K * n, factor + h * K * n, b->d_gamma + h * K * n, n, im->a + h * K,
                                im->c + h * K, sums + h * K);
}

/* One block of inputs: from keys and centred values to d_keys and d_values (accumulated), and sums R0, R1, R2 to m. */
static void SMM_T(block_backward)(const SMM_T(image) *im, const SMM_T(pass) *pass, size_t i, const real *keys, const real *values,
                                  real *d_keys, real *d_values, const SMM_T(moments) *m, SMM_T(block) *b)
{
    const smm_sizes *s = im->s;
    const KERNELS *k = im->k;
    const SMM_T(expectation) *e = &im->e;
    const size_t K = im->slots, n = SMM_BLOCK, D = s->D, Cp = s->Cp, Ch = s->Ch, Vp = s->Vp, valid = smm_min(n, im->in.n - i * n);
    SMM_T(responsibilities)(im, pass->r, keys, valid, b->gamma, b->discarded, b->ratio);
    if (!s->variance)
        for (size_t h = 0; h < s->heads; h++)
            k->gemm(K, n, Ch, im->E + h * Ch, Cp, 1, values + h * Ch * n, n, b->d_gamma + h * K * n, n, 0);
    else if (pass->about) k->quad_about(K, D, n, values, n, im->A, im->E, im->point_mean, Cp, b->d_gamma, n);
    else k->quad(K, D, n, values, n, im->A, im->E, Cp, b->d_gamma, n);
    SMM_T(logits_backward)(im, i * n, valid, b, pass->d_attention, m->sums);

    if (!s->variance)
        for (size_t h = 0; h < s->heads; h++)
            k->gemm(Ch, n, K, im->E_values + h * Ch, 1, Cp, b->gamma + h * K * n, n, d_values + h * Ch * n, n, 1);
    else if (pass->about)
        k->spread_about(K, D, n, b->gamma, n, values, n, im->A_values, im->E_values, im->point_mean, Cp, d_values, n);
    else k->spread(K, D, n, b->gamma, n, values, n, im->A_values, im->E_values, Cp, d_values, n);

    for (size_t h = 0; h < s->heads; h++)
        k->transpose_out(valid, Ch, s->Chp, keys + h * Ch * n, n, NULL, b->rows + h * s->Chp, Vp);
    if (s->dot)
        for (size_t h = 0; h < s->heads; h++) {
            const real *dl = b->d_gamma + h * K * n;
            k->gemm(Ch, n, K, im->A_keys + h * Ch, 1, Cp, dl, n, d_keys + h * Ch * n, n, 1);
            k->gemm(K, s->Chp, valid, dl, n, 1, b->rows + h * s->Chp, Vp, m->m1 + h * s->Chp, Vp, 1);
        }
    else if (e->about) {
        k->spread_about(K, D, n, b->d_gamma, n, keys, n, im->A_keys, im->E_keys, e->q, Cp, d_keys, n);
        k->moments_about(K, valid, Vp, b->d_gamma, n, b->rows, Vp, e->q, m->m1, m->m2, Vp);
    } else {
        k->spread(K, D, n, b->d_gamma, n, keys, n, im->A_keys, im->E_keys, Cp, d_keys, n);
        k->moments(K, valid, Vp, b->d_gamma, n, b->rows, Vp, m->m1, m->m2, Vp);
    }
}

/* The pass of a step that others follow, over one chunk: keys, values and their gradients stay in memory. */
static void SMM_T(chunk_backward)(const SMM_T(image) *im, const SMM_T(pass) *pass, size_t chunk, SMM_T(block) *b)
{
    const SMM_T(moments) m = SMM_T(moments_of)(im, chunk);
    memset(m.sums, 0, im->partial * sizeof *m.sums);
    for (size_t i = SMM_T(chunk_begin)(im, chunk); i < SMM_T(chunk_begin)(im, chunk + 1); i++) {
        const size_t at = i * im->s->C * SMM_BLOCK;
        const real *keys = SMM_T(kept_block)(im, i, b, 1);
        SMM_T(block_backward)(im, pass, i, keys, im->values + at, im->d_keys + at, im->d_values + at, &m, b);
    }
}

/* d_values += what the eps of every weight gives them, in lanes of real inputs. */
static void SMM_T(eps_backward)(const SMM_T(image) *im, size_t valid, const real *values, real *d_values)
{
    const size_t n = SMM_BLOCK, C = im->s->C;
    im->k->affine(C, n, values, n, im->eps_A, im->eps_E, d_values, n, 1);
    for (size_t d = 0; valid < n && d < C; d++) memset(d_values + d * n + valid, 0, (n - valid) * sizeof *d_values);
}

/* The pass of the step that backward ends with, over one segment's chunks, and on from keys and values to the inputs and the
 * parameters of their side, block by block: where this step is the only one, nothing of the inputs' size is kept. The first segment's
 * set of gradients is the slots' too, and clear already. */
static void SMM_T(segment_backward)(const SMM_T(image) *im, const SMM_T(pass) *pass, size_t segment, SMM_T(block) *b,
                                    const SMM_T(grad_set) *g, real *dx)
{
    const smm_sizes *s = im->s;
    const size_t n = SMM_BLOCK, size = s->C * n, chunks = SMM_T(image_chunks)(im);
    const size_t begin = smm_part(chunks, segment, s->segments), end = smm_part(chunks, segment + 1, s->segments);
    if (segment && !pass->add) SMM_T(clear_set)(s, g);
    for (size_t c = begin; c < end; c++) {
        const SMM_T(moments) m = SMM_T(moments_of)(im, c);
        memset(m.sums, 0, im->partial * sizeof *m.sums);
        for (size_t i = SMM_T(chunk_begin)(im, c); i < SMM_T(chunk_begin)(im, c + 1); i++) {
            const real *keys, *values = s->folded ? b->keys : b->centred;
            real *d_values = b->d_values, *d_keys = s->folded ? d_values : b->d_keys;
            if (s->keep_backward) {
                const int made = im->made[i];
                keys = SMM_T(kept_block)(im, i, b, 1), values = im->values + i * size;
                d_keys = im->d_keys + i * size, d_values = im->d_values + i * size;
                if (made && s->learned) SMM_T(inputs_features)(im->k, s, im->p, &im->in, i * n, n, b, SMM_T(saved_block)(im, i), NULL, NULL);
            } else {
                keys = SMM_T(make_block)(im, i, b);
                if (!s->folded) im->k->affine(s->C, n, b->values, n, NULL, im->minus_centre, b->centred, n, 0);
                memset(d_keys, 0, size * sizeof *d_keys);
                memset(d_values, 0, size * sizeof *d_values);
            }
            SMM_T(block_backward)(im, pass, i, keys, values, d_keys, d_values, &m, b);
            SMM_T(eps_backward)(im, smm_min(n, im->in.n - i * n), values, d_values);
            SMM_T(inputs_backward)(im->k, s, im->p, &im->in, i * n, b, d_keys, d_values, g, dx, pass->add);
        }
    }
}

/* Either pass over all chunks, on several threads if there are; one that goes on to the inputs has a set of parameter gradients
 * and a share of the chunks for each segment. */
static void SMM_T(inputs_pass)(SMM_T(image) *im, const SMM_T(pass) *pass, const SMM_T(grad_set) *sets, real *dx)
{
    if (pass->inputs)
        SMM_PARALLEL(im->threads, im->s->segments, i, thread,
                     SMM_T(segment_backward)(im, pass, i, &im->blocks[thread], &sets[i], dx));
    else SMM_PARALLEL(im->threads, SMM_T(image_chunks)(im), i, thread, SMM_T(chunk_backward)(im, pass, i, &im->blocks[thread]));
}

/* From sums R0, R1, R2 over the image to im->d_q, im->d_ls, im->d_prior, of a share of the slots. */
static void SMM_T(query_gradients)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(share) *share)
{
    const smm_sizes *s = im->s;
    const SMM_T(expectation) *e = &im->e;
    const SMM_T(moments) total = SMM_T(moments_of)(im, 0), *t = &total;
    const size_t K = share->count, begin = share->begin, Cp = s->Cp;
    const real factor = s->dot ? e->mul : -2 * e->mul, temperature = s->reference ? 0 : (real)s->cfg->temperature;
    real *d_q = s->folded ? im->d_folded : im->d_q;
    memset(d_q + begin * Cp, 0, K * Cp * sizeof *d_q);
    memset(im->d_ls + begin * s->Dp, 0, K * s->Dp * sizeof *im->d_ls);
    for (size_t j = begin; j < begin + K; j++) {
        for (size_t h = 0; s->dot && h < s->heads; h++)
            for (size_t d = 0; d < s->Ch; d++) d_q[j * Cp + h * s->Ch + d] = factor * t->m1[j * s->Vp + h * s->Chp + d];
        for (size_t d = 0; !s->dot && d < s->C; d++) {
            const size_t v = j * s->Vp + d, at = j * Cp + d;
            const real R0 = t->sums[j], q = e->q[at];
            real R1 = t->m1[v], R2 = t->m2[v];
            if (!e->about) {
                R2 -= q * (2 * R1 - q * R0);
                R1 -= q * R0;
            }
            const real weight = factor * e->scale[at] * e->scale[at];
            d_q[at] = weight * R1;
            if (s->variance) im->d_ls[at] = weight * R2 - temperature * R0;
        }
        if (s->folded) im->d_base[j] = e->mul * t->sums[j];
        im->d_prior[j] = s->variance && r->prior[j] > 0 ? t->sums[j] / r->prior[j] : 0;
    }
}

/* Step t of a share of the slots, from the gradient of the state after it to those of the weighted means (im->dm, or im->d_folded) and
 * variances (im->A). */
static void SMM_T(moments_backward)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next, size_t t,
                                    const SMM_T(share) share)
{
    const smm_sizes *s = im->s;
    const size_t at = share.begin * s->Dp, size = share.count * s->Dp;
    real *dm = im->dm + at, *d_mean = im->d_mean + at, *d_state = im->d_state + at;
    SMM_T(expectation_rows)(im, r, share.begin, share.count);
    SMM_T(variance_backward)(im, r, next, &share);
    if (!s->learned) {
        memcpy(dm, d_mean, size * sizeof *dm);
        memset(d_state, 0, size * sizeof *d_state);
        return;
    }
    size_t ldh;
    const real *hidden = SMM_T(hidden_state)(im, r, share.begin, &ldh), *m = SMM_T(mapped_means)(im, r, share.begin, share.count);
    const SMM_T(update_scratch) u = SMM_T(update_of)(s, &im->u, share.begin);
    SMM_T(update_backward)(&im->side, &share, im->saved + SMM_T(saved_update)(s, t), m, hidden, ldh, &u, d_mean, dm, d_state);
    if (s->folded)
        SMM_T(slots_linear_backward)(&im->side, SMM_TO_V_WEIGHT, &share, r->m + share.begin * s->Cp, s->Cp, dm, s->Dp,
                                     im->d_folded + share.begin * s->Cp, s->Cp, 0);
}

/* The same, and on to the constants of the pass over inputs. */
static void SMM_T(share_update_backward)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(record) *next, size_t t,
                                         const SMM_T(share) share)
{
    SMM_T(moments_backward)(im, r, next, t, share);
    const int far = SMM_T(pass_rows)(im, r, next, &share, 0);
    for (size_t j = share.begin; j < share.begin + share.count; j++) im->inexact[j] = (real)far;
}

/* The same from what the chunks' passes over inputs have found to the gradient of the state before the step. */
static void SMM_T(share_query_backward)(SMM_T(image) *im, const SMM_T(record) *r, const SMM_T(share) share)
{
    const size_t Dp = im->s->Dp;
    SMM_T(sum_moments)(im, share.begin, share.count);
    SMM_T(query_gradients)(im, r, &share);
    SMM_T(expectation_backward)(im, r, &share);
    SMM_T(copy_rows)(share.count, Dp, im->d_state + share.begin * Dp, Dp, im->d_mean + share.begin * Dp, Dp);
}

/* Step t backward: im->d_mean, d_log_std, d_prior go from the state after the step to the state before it. The pass that is last
 * (with nothing kept: every one) goes on to the inputs: dx, and parameter gradients to a set for each segment; the slots' side has
 * the first. */
static void SMM_T(step_backward)(SMM_T(image) *im, size_t t, int last, const SMM_T(grad_set) *sets, const real *d_attention, real *dx)
{
    const smm_sizes *s = im->s;
    const size_t K = im->slots, shares = SMM_T(slot_shares)(im);
    const int first = t + 1 == im->steps;
    const SMM_T(record) before = SMM_T(saved_record_of)(im, t), after = SMM_T(saved_record_of)(im, t + 1);
    const SMM_T(record) *r = &before, *next = &after;
    SMM_T(reserve_pending)(&im->side, K, &sets[0]);
    SMM_PARALLEL(shares, shares, i, thread, SMM_T(share_update_backward)(im, r, next, t, SMM_T(share_of)(K, i, shares)));
    SMM_T(expectation_all)(im);
    if (s->learned) SMM_T(update_sums)(&im->side, K, &im->u, im->d_mean, &sets[0]);
    if (s->folded) SMM_T(slots_bias_backward)(&im->side, SMM_TO_V_BIAS, K, im->dm, s->Dp, &sets[0]);
    if (first || !s->keep_backward) { /* where nothing is kept, each step hands on its own share of what every input gets */
        memset(im->eps_A, 0, s->Cp * sizeof *im->eps_A);
        memset(im->eps_E, 0, s->Cp * sizeof *im->eps_E);
    }
    const int about = SMM_T(pass_constants)(im, r, next);
    const SMM_T(pass) pass = {r, first ? d_attention : NULL, about, last || !s->keep_backward, !first && !s->keep_backward};
    SMM_T(inputs_pass)(im, &pass, sets, dx);
    SMM_T(sum_weights)(im);
    SMM_PARALLEL(shares, shares, i, thread, SMM_T(share_query_backward)(im, r, SMM_T(share_of)(K, i, shares)));
    if (s->learned) SMM_T(expectation_sums)(im, r, &sets[0]);
    SMM_T(commit_pending)(&im->side);
}

/* Gradient of all K slots' initial values: the active ones' from X (K,Dp, compact), inactive ones' from full (or 0), to the
 * caller's (K,D). */
static void SMM_T(write_initial)(SMM_T(image) *im, const real *X, const real *full, real *to)
{
    const size_t D = im->s->D, Dp = im->s->Dp, K = im->s->K;
    if (!to) return;
    if (full) SMM_T(copy_rows)(K, D, full, Dp, to, D);
    else memset(to, 0, K * D * sizeof *to);
    for (size_t j = 0; X && j < im->slots; j++) memcpy(to + im->active[j] * D, X + j * Dp, D * sizeof *to);
}

/* Gradients that enter through the outputs; fills d_mean, d_log_std of the active slots from im->d_cat (all slots). */
static void SMM_T(gather_slots)(SMM_T(image) *im)
{
    const smm_sizes *s = im->s;
    const size_t Dp = s->Dp;
    memset(im->d_prior, 0, s->K * sizeof *im->d_prior);
    for (size_t j = 0; j < im->slots; j++) {
        const real *d_cat = im->d_cat + im->active[j] * 2 * Dp;
        memcpy(im->d_mean + j * Dp, d_cat, Dp * sizeof *d_cat);
        if (s->variance) memcpy(im->d_log_std + j * Dp, d_cat + Dp, Dp * sizeof *d_cat);
    }
}

/* The whole backward pass of image b; sets: one for each segment; dx (N,I) or NULL. */
static void SMM_T(image_backward)(SMM_T(image) *im, const SMM_T(smm_inputs) *in, const real *saved, const real *d_slots,
                                  const real *d_attention, const SMM_T(smm_gradients) *grads, const SMM_T(grad_set) *sets, size_t b)
{
    const smm_sizes *s = im->s;
    const size_t Dp = s->Dp, at = b * s->K * s->D;
    real *dx = grads->x ? grads->x + b * s->N * s->I : NULL;
    saved += b * s->saved_image;
    SMM_T(open_image)(im, in, b);
    if (dx && in->mask) memset(dx, 0, s->N * s->I * sizeof *dx);
    memcpy(im->trace, saved, s->records * s->record * sizeof *saved);
    const real *centre = saved + s->records * s->record, done = centre[s->Cp];
    memcpy(im->centre, centre, s->Cp * sizeof *saved);
    im->saved = saved;
    im->steps = done >= 1 && done <= (real)s->T ? (size_t)done : s->T;
    const size_t steps = smm_min(s->steps_back, im->steps);
    for (size_t d = 0; d < s->D; d++) im->minus_centre[d] = -im->centre[d];
    const SMM_T(record) final = SMM_T(saved_record_of)(im, im->steps);
    SMM_T(full_state)(im, in, b, &final);
    SMM_T(output_backward)(im, d_slots + b * s->K * s->W, &sets[0]);
    SMM_T(gather_slots)(im);
    SMM_T(copy_rows)(s->K, Dp, im->d_cat, 2 * Dp, im->full_mean, Dp); /* from here on: the gradients that inactive slots pass through */
    SMM_T(copy_rows)(s->K, Dp, im->d_cat + Dp, 2 * Dp, im->full_log_std, Dp);
    for (size_t i = 0; i < steps; i++)
        SMM_T(step_backward)(im, im->steps - 1 - i, i + 1 == steps, sets, d_attention ? d_attention + b * s->N * s->K : NULL, dx);
    real *d_mean = in->indices || !grads->mean ? NULL : grads->mean + at;
    real *d_log_std = s->variance && grads->log_std ? grads->log_std + at : NULL;
    const int full = s->cfg->gradient == SMM_GRADIENT_FULL, none = s->cfg->gradient == SMM_GRADIENT_IMPLICIT;
    SMM_T(write_initial)(im, full ? im->d_mean : NULL, none ? NULL : im->full_mean, d_mean);
    SMM_T(write_initial)(im, full ? im->d_log_std : NULL, none ? NULL : im->full_log_std, d_log_std);
}
