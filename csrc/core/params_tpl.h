/* params_tpl.h - parameters as products read them, made once a call; gradients of a group. Included with `real`, KERNELS (the table's
 * type) and SMM_T defined. */

#define CARVE(count) ((real *)smm_carve(arena, (count), sizeof(real)))

/* Gradients of one group: a pointer for each parameter, as smm_layout has it. A NULL entry skips it. */
typedef struct {
    real *at[SMM_PARAMS];
} SMM_T(grad_set);

/* A parameter as the call's products read it, in forms that are NULL where the call does not need them. */
typedef struct {
    smm_layout layout;
    real *to_out; /* a matrix of the slots' side in strips (rows_linear): W', for Y = X W', part by part of the inputs */
    real *to_in;  /* the same of W, for dX = dY W, part by part of the outputs */
    real *row;    /* a vector of the slots' side, padded */
    real *spaced; /* a matrix of the inputs' side with its rows smm_spaced(in) apart, where they are not in any case */
} SMM_T(packed);

/* All parameters of a call. */
typedef struct {
    SMM_T(packed) *packed;
    const real **plain; /* as the caller has them, or spaced */
    real *ones;         /* (2 Dp): 1 in the lanes of channels, in two parts */
} SMM_T(params);

/* Y[j,:] = X[j,:], rows of `width` lanes. */
static void SMM_T(copy_rows)(size_t rows, size_t width, const real *X, size_t ldx, real *Y, size_t ldy)
{
    for (size_t j = 0; j < rows; j++) memcpy(Y + j * ldy, X + j * ldx, width * sizeof *Y);
}

/* Weights are packed in shares of their lanes, so that several threads have equal work. */
#define PACK_SHARES 4

/* Strips of W' of parameter l, W (out,in): one share. */
static void SMM_T(pack_to_out)(const KERNELS *k, const smm_layout *l, const real *W, real *to, size_t share)
{
    const size_t in = l->in / l->in_parts, out = l->out / l->out_parts, outp = smm_pad(out);
    for (size_t part = 0; part < l->in_parts; part++, to += in * l->outp)
        for (size_t lane = share * SMM_LANES; lane < l->outp; lane += PACK_SHARES * SMM_LANES) {
            const size_t o = lane / outp * out + lane % outp, valid = smm_min(SMM_LANES, out - lane % outp);
            const size_t strip = lane / SMM_STRIP * SMM_STRIP, ld = smm_min(SMM_STRIP, l->outp - strip);
            k->transpose_in(valid, in, SMM_LANES, W + o * l->in + part * in, l->in, NULL, to + strip * in + lane - strip, ld);
        }
}

/* Strips of W: one share. */
static void SMM_T(pack_to_in)(const smm_layout *l, const real *W, real *to, size_t share)
{
    const size_t in = l->in / l->in_parts, inp = smm_pad(in), out = l->out / l->out_parts;
    for (size_t part = 0; part < l->out_parts; part++, to += out * l->inp)
        for (size_t lane = share * SMM_LANES; lane < l->inp; lane += PACK_SHARES * SMM_LANES) {
            const size_t i = lane / inp * in + lane % inp, valid = smm_min(SMM_LANES, in - lane % inp);
            const size_t strip = lane / SMM_STRIP * SMM_STRIP, ld = smm_min(SMM_STRIP, l->inp - strip);
            for (size_t p = 0; p < out; p++) {
                real *at = to + strip * out + p * ld + lane - strip;
                const real *from = W + (part * out + p) * l->in + i;
                if (valid == SMM_LANES) {
                    memcpy(at, from, SMM_LANES * sizeof *at); /* a size that the compiler knows */
                    continue;
                }
                memcpy(at, from, valid * sizeof *at);
                memset(at + valid, 0, (SMM_LANES - valid) * sizeof *at);
            }
        }
}

static void SMM_T(pack_row)(const smm_layout *l, const real *vector, real *to)
{
    const size_t part = l->out / l->out_parts, padded = smm_pad(part);
    memset(to, 0, l->outp * sizeof *to);
    SMM_T(copy_rows)(l->out_parts, part, vector, part, to, padded);
}

/* Whether parameter i is applied to slots. */
static int SMM_T(of_slots)(const smm_sizes *s, size_t i)
{
    return i == SMM_TO_Q_WEIGHT || i == SMM_TO_Q_BIAS || i >= SMM_NORM_SLOTS_WEIGHT || (s->folded && i >= SMM_TO_K_WEIGHT);
}

/* Zeros, in the places that the set has; but matrices of the slots' side are written before they are added to. */
static void SMM_T(clear_set)(const smm_sizes *s, const SMM_T(grad_set) *set)
{
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const smm_layout l = smm_layout_of(s->cfg, i);
        if (set->at[i] && (l.rank == 1 || !SMM_T(of_slots)(s, i))) memset(set->at[i], 0, l.size * sizeof(real));
    }
}

/* Of the slots' matrices, forward takes W' and backward W; but backward makes queries, folded means and outputs again, and a folded
 * W_k is applied the other way round. */
static void SMM_T(layout_params)(SMM_T(params) *p, const smm_sizes *s, int backward, smm_arena *arena)
{
    p->packed = smm_carve(arena, SMM_PARAMS, sizeof *p->packed);
    p->plain = smm_carve(arena, SMM_PARAMS, sizeof *p->plain);
    p->ones = CARVE(2 * s->Dp);
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const int again = i < SMM_NORM_SLOTS_WEIGHT || i >= SMM_TO_OUT_WEIGHT;
        const smm_layout l = smm_layout_of(s->cfg, i);
        const int matrix = l.rank == 2 && SMM_T(of_slots)(s, i), vector = l.rank == 1 && SMM_T(of_slots)(s, i);
        SMM_T(packed) w = {l, NULL, NULL, NULL, NULL};
        if (matrix && (!backward || again)) w.to_out = CARVE(l.in * l.outp);
        if (matrix && (backward || i == SMM_TO_K_WEIGHT)) w.to_in = CARVE(l.out * l.inp);
        if (vector) w.row = CARVE(l.outp);
        const int of_inputs = l.rank == 2 && (!matrix || i == SMM_TO_V_WEIGHT); /* where means start at inputs, a folded W_v too */
        if (of_inputs && smm_spaced(l.in) != l.in) w.spaced = CARVE(l.out * smm_spaced(l.in));
        if (p->packed) p->packed[i] = w;
    }
}

/* One share of a parameter, from the caller's `given`. */
static void SMM_T(pack_share)(const SMM_T(params) *p, const KERNELS *k, size_t i, const real *given, size_t share)
{
    const SMM_T(packed) *w = &p->packed[i];
    const smm_layout *l = &w->layout;
    if (w->to_out) SMM_T(pack_to_out)(k, l, given, w->to_out, share);
    if (w->to_in) SMM_T(pack_to_in)(l, given, w->to_in, share);
    if (share) return;
    if (w->row) SMM_T(pack_row)(l, given, w->row);
    if (w->spaced) SMM_T(copy_rows)(l->out, l->in, given, l->in, w->spaced, smm_spaced(l->in));
    p->plain[i] = w->spaced ? w->spaced : l->rank ? given : NULL;
}

/* All, from the caller's, of which clustering has none. */
static void SMM_T(pack)(const SMM_T(params) *p, const smm_sizes *s, const real *const *params, int threads)
{
    const KERNELS *k = KERNELS_GET();
    for (size_t d = 0; d < 2 * s->Dp; d++) p->ones[d] = d % s->Dp < s->D;
    SMM_PARALLEL(threads, SMM_PARAMS * PACK_SHARES, task, thread,
                 SMM_T(pack_share)(p, k, task % SMM_PARAMS, params ? params[task % SMM_PARAMS] : NULL, task / SMM_PARAMS));
}
