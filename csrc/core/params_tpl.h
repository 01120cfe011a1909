/* params_tpl.h - parameters as products read them, packed once a call; gradients of a group.
 *
 * Templates are included by engine_f32.c and engine_f64.c with these defined: real; LOG, its
 * logarithm, ERF, its error function; KERNELS and KERNELS_GET, its table of kernels. */
#ifndef SMM_PARAMS_TPL_H
#define SMM_PARAMS_TPL_H

#include <string.h>

#include "core.h"
#include "parallel.h"

/* No variance is less: its inverse and the squares of distances in its units stay finite. */
#define VARIANCE_LEAST ((real)(sizeof(real) == sizeof(float) ? 1e-24 : 1e-200))

/* A slot of less weight has none: its inverse, times gradients, stays finite. */
#define WEIGHT_LEAST ((real)(sizeof(real) == sizeof(float) ? 1e-30 : 1e-290))

#define CARVE(count) ((real *)smm_carve(arena, (count), sizeof(real)))

/* Gradients of one group: a pointer for each parameter, laid out by smm_layout; NULL skips it. */
typedef struct {
    real *at[SMM_PARAMS];
} grad_set;

/* A parameter as the call's products read it, in forms that are NULL where the call needs none. */
typedef struct {
    smm_layout layout;
    real *
        to_out; /* of slots: W' in strips (rows_linear), for Y = X W', part by part of the inputs */
    real *to_in;  /* of slots: W in strips, for dX = dY W, part by part of the outputs */
    real *row;    /* a vector of slots, padded */
    real *spaced; /* of inputs: rows smm_spaced(in) apart, where they are not already */
    uint16_t *narrow, *narrow_turned; /* of inputs, in bfloat16: W and, for dX = W' dY, W' */
} packed_param;

/* All parameters of a call. */
typedef struct {
    packed_param *packed;
    const real **plain; /* as the caller has them, or spaced */
    real *ones;         /* (2 Dp): 1 in the lanes of channels, in two parts */
} packed_params;

/* Y[j,:] = X[j,:], rows of `width` lanes. */
static void copy_rows(size_t rows, size_t width, const real *X, size_t ldx, real *Y, size_t ldy) {
    for (size_t j = 0; j < rows; j++) memcpy(Y + j * ldy, X + j * ldx, width * sizeof *Y);
}

/* Weights are packed in shares of their lanes, so that threads have equal work. */
#define PACK_SHARES 4

/* Strips of W' of a parameter W (out,in), by head of each head's outputs: one share. */
static void pack_to_out(const KERNELS *k, const smm_layout *l, const real *W, real *to,
                        size_t share) {
    const size_t in = l->in / l->in_parts, out = l->out / l->out_parts, outp = smm_pad(out);
    const size_t product = l->by_head ? outp : l->outp; /* lanes of one */
    for (size_t part = 0; part < l->in_parts; part++, to += in * l->outp)
        for (size_t lane = share * SMM_LANES; lane < l->outp; lane += PACK_SHARES * SMM_LANES) {
            const size_t first = lane % outp, valid = smm_min(SMM_LANES, out - first);
            const size_t strip = lane % product / SMM_STRIP * SMM_STRIP;
            const size_t at = lane - lane % product + strip;
            const real *from = W + (lane / outp * out + first) * l->in + part * in;
            k->transpose_in(valid, in, SMM_LANES, from, l->in, NULL, to + at * in + lane - at,
                            smm_min(SMM_STRIP, product - strip));
        }
}

/* rows x SMM_LANES elements, of which `valid` a row are there and the others 0. */
static void copy_lanes(size_t rows, size_t valid, const real *X, size_t ldx, real *Y, size_t ldy) {
    for (size_t p = 0; p < rows; p++, X += ldx, Y += ldy) {
        if (valid == SMM_LANES) {
            memcpy(Y, X, SMM_LANES * sizeof *Y); /* a size that the compiler knows */
            continue;
        }
        memcpy(Y, X, valid * sizeof *Y);
        memset(Y + valid, 0, (SMM_LANES - valid) * sizeof *Y);
    }
}

/* Strips of W: one share. */
static void pack_to_in(const smm_layout *l, const real *W, real *to, size_t share) {
    const size_t in = l->in / l->in_parts, inp = smm_pad(in), out = l->out / l->out_parts;
    for (size_t part = 0; part < l->out_parts; part++, to += out * l->inp)
        for (size_t lane = share * SMM_LANES; lane < l->inp; lane += PACK_SHARES * SMM_LANES) {
            const size_t first = lane % inp, strip = lane / SMM_STRIP * SMM_STRIP;
            const real *from = W + part * out * l->in + lane / inp * in + first;
            copy_lanes(out, smm_min(SMM_LANES, in - first), from, l->in,
                       to + strip * out + lane - strip, smm_min(SMM_STRIP, l->inp - strip));
        }
}

/* W, and W', in bfloat16: one share. */
static void pack_narrow(const KERNELS *k, const smm_layout *l, const real *W, uint16_t *to,
                        size_t share) {
    const size_t begin = smm_part(l->out, share, PACK_SHARES),
                 end = smm_part(l->out, share + 1, PACK_SHARES), ld = smm_even(l->in);
    if (begin < end) k->narrow(end - begin, l->in, W + begin * l->in, l->in, to + begin * ld, ld);
}
static void pack_narrow_turned(const KERNELS *k, const smm_layout *l, const real *W, uint16_t *to,
                               size_t share) {
    const size_t ld = smm_even(l->out);
    uint16_t rows[2][SMM_LANES];
    for (size_t c = share * SMM_LANES; c < l->in; c += PACK_SHARES * SMM_LANES) {
        const size_t valid = smm_min(SMM_LANES, l->in - c);
        for (size_t o = 0; o < ld; o += 2) {
            memset(rows, 0, sizeof rows);
            k->narrow(smm_min(2, l->out - o), valid, W + o * l->in + c, l->in, rows[0], SMM_LANES);
            for (size_t i = 0; i < valid; i++)
                to[(c + i) * ld + o] = rows[0][i], to[(c + i) * ld + o + 1] = rows[1][i];
        }
    }
}

static void pack_row(const smm_layout *l, const real *vector, real *to) {
    const size_t part = l->out / l->out_parts;
    memset(to, 0, l->outp * sizeof *to);
    copy_rows(l->out_parts, part, vector, part, to, smm_pad(part));
}

/* Zeros in a set; but not in matrices of slots, which are overwritten before they are added to. */
static void clear_set(const smm_sizes *s, const grad_set *set) {
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const smm_layout l = s->layout[i];
        const int overwritten = l.rank == 2 && l.of_slots;
        if (set->at[i] && !overwritten) memset(set->at[i], 0, l.size * sizeof(real));
    }
}

/* Forward applies W' of the slots' matrices, backward W, and W' where it recomputes. A folded W_k
 * is applied the other way round. A folded W_v is applied to inputs too, where means start at
 * those. */
static packed_param layout_param(const smm_sizes *s, size_t i, int backward, smm_arena *arena) {
    const smm_layout l = s->layout[i];
    const int matrix = l.rank == 2, of_inputs = !l.of_slots || i == SMM_TO_V_WEIGHT;
    packed_param w = {l, NULL, NULL, NULL, NULL, NULL, NULL};
    if (matrix && l.of_slots) {
        if (!backward || l.recomputed) w.to_out = CARVE(l.in * l.outp);
        if (backward || i == SMM_TO_K_WEIGHT) w.to_in = CARVE(l.out * l.inp);
    }
    if (l.rank == 1 && l.of_slots) w.row = CARVE(l.outp);
    if (matrix && !l.of_slots && s->bfloat16) {
        w.narrow = smm_carve(arena, l.out * smm_even(l.in), sizeof *w.narrow);
        if (backward) w.narrow_turned = smm_carve(arena, l.in * smm_even(l.out), sizeof *w.narrow);
        return w;
    }
    if (matrix && of_inputs && smm_spaced(l.in) != l.in) w.spaced = CARVE(l.out * smm_spaced(l.in));
    return w;
}

static void layout_params(packed_params *p, const smm_sizes *s, int backward, smm_arena *arena) {
    p->packed = smm_carve(arena, SMM_PARAMS, sizeof *p->packed);
    p->plain = smm_carve(arena, SMM_PARAMS, sizeof *p->plain);
    p->ones = CARVE(2 * s->Dp);
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const packed_param w = layout_param(s, i, backward, arena);
        if (p->packed) p->packed[i] = w;
    }
}

/* One share of a parameter, from the caller's `given`. */
static void pack_share(const packed_params *p, const KERNELS *k, size_t i, const real *given,
                       size_t share) {
    const packed_param *w = &p->packed[i];
    const smm_layout *l = &w->layout;
    if (w->to_out) pack_to_out(k, l, given, w->to_out, share);
    if (w->to_in) pack_to_in(l, given, w->to_in, share);
    if (w->narrow) pack_narrow(k, l, given, w->narrow, share);
    if (w->narrow_turned) pack_narrow_turned(k, l, given, w->narrow_turned, share);
    if (share) return;
    if (w->row) pack_row(l, given, w->row);
    if (w->spaced) copy_rows(l->out, l->in, given, l->in, w->spaced, smm_spaced(l->in));
    p->plain[i] = w->spaced ? w->spaced : l->rank ? given : NULL;
}

/* All, from the caller's `params`, NULL for clustering. */
static void pack(const packed_params *p, const smm_sizes *s, const real *const *params,
                 int threads) {
    const KERNELS *k = KERNELS_GET();
    for (size_t d = 0; d < 2 * s->Dp; d++) p->ones[d] = d % s->Dp < s->D;
    SMM_PARALLEL(threads, SMM_PARAMS * PACK_SHARES, task, thread,
                 pack_share(p, k, task % SMM_PARAMS, params ? params[task % SMM_PARAMS] : NULL,
                            task / SMM_PARAMS));
}

#endif
