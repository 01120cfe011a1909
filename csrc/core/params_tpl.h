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

/* A matrix in strips (rows_linear), or in strips of pairs in bfloat16 (rows_product16). */
typedef struct {
    real *plain;
    uint32_t *pairs;
} strips;

/* A parameter as the call's products read it, in forms that are NULL where the call needs none. */
typedef struct {
    smm_layout layout;
    strips to_out;            /* of slots: W', for Y = X W', part by part of the inputs */
    strips to_in;             /* of slots: W, for dX = dY W, part by part of the outputs */
    real *row;                /* a vector of slots, padded */
    real *spaced;             /* of inputs: rows smm_spaced(in) apart, where they are not already */
    uint32_t *narrow;         /* of slots, in bfloat16: W in pairs of inputs, part by part */
    uint32_t *tiles, *turned; /* of inputs, in bfloat16 (narrow_tiles): W and, for dX = W' dY, W' */
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

/* Strips of W' of a parameter W (out,in), by head of each head's outputs: one share. Those of pairs
 * are strips of the narrow W, whose pairs are numbers to them. */
static void pack_to_out(const KERNELS *k, const packed_param *w, const real *W, size_t share) {
    const smm_layout *l = &w->layout;
    const size_t in = l->in / l->in_parts, out = l->out / l->out_parts, outp = smm_pad(out);
    const size_t product = l->by_head ? outp : l->outp; /* lanes of one */
    const size_t cols = w->to_out.pairs ? smm_even(in) / 2 : in, ld = cols * l->in_parts;
    real *to = w->to_out.pairs ? (real *)w->to_out.pairs : w->to_out.plain;
    for (size_t part = 0; part < l->in_parts; part++, to += cols * l->outp)
        for (size_t lane = share * SMM_LANES; lane < l->outp; lane += PACK_SHARES * SMM_LANES) {
            const size_t first = lane % outp, valid = smm_min(SMM_LANES, out - first);
            const size_t strip = lane % product / SMM_STRIP * SMM_STRIP;
            const size_t at = lane - lane % product + strip, row = lane / outp * out + first;
            const real *from = W + row * l->in + part * in;
            if (w->to_out.pairs) {
                uint32_t *narrow = w->narrow + row * ld + part * cols;
                k->narrow(valid, in, from, l->in, narrow, ld);
                from = (const real *)narrow;
            }
            k->transpose_in(valid, cols, SMM_LANES, from, ld, NULL, to + at * cols + lane - at,
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

/* The same of pairs of rows, in bfloat16, of `lanes` lanes. */
static void copy_pairs(const KERNELS *k, size_t rows, size_t valid, const real *X, size_t ldx,
                       uint32_t *Y, size_t ldy, size_t lanes) {
    k->narrow_pairs(rows, valid, X, ldx, Y, ldy);
    for (size_t p = 0; valid < lanes && p < smm_even(rows) / 2; p++)
        memset(Y + p * ldy + valid, 0, (lanes - valid) * sizeof *Y);
}

/* Strips of W: one share. */
static void pack_to_in(const KERNELS *k, const packed_param *w, const real *W, size_t share) {
    const smm_layout *l = &w->layout;
    const size_t in = l->in / l->in_parts, inp = smm_pad(in), out = l->out / l->out_parts;
    const size_t rows = w->to_in.pairs ? smm_even(out) / 2 : out;
    for (size_t part = 0; part < l->out_parts; part++)
        for (size_t lane = share * SMM_LANES; lane < l->inp; lane += PACK_SHARES * SMM_LANES) {
            const size_t first = lane % inp, strip = lane / SMM_STRIP * SMM_STRIP;
            const size_t to = (part * l->inp + strip) * rows + lane - strip;
            const size_t valid = smm_min(SMM_LANES, in - first);
            const size_t ld = smm_min(SMM_STRIP, l->inp - strip);
            const real *from = W + part * out * l->in + lane / inp * in + first;
            if (w->to_in.pairs)
                copy_pairs(k, out, valid, from, l->in, w->to_in.pairs + to, ld, SMM_LANES);
            else copy_lanes(out, valid, from, l->in, w->to_in.plain + to, ld);
        }
}

/* Tiles of n rows of k numbers, in pairs. */
static size_t tiles_size(size_t n, size_t k) {
    return (n + SMM_TILE - 1) / SMM_TILE * SMM_TILE * (smm_even(k) / 2);
}

/* Tiles of W, and of W': one share. */
static void pack_tiles(const KERNELS *k, const smm_layout *l, const real *W, uint32_t *to,
                       size_t share) {
    for (size_t r = share * SMM_TILE; r < l->out; r += PACK_SHARES * SMM_TILE)
        k->narrow_tiles(smm_min(SMM_TILE, l->out - r), l->in, W + r * l->in, l->in,
                        to + tiles_size(r, l->in), smm_even(l->in) / 2);
}
static void pack_turned(const KERNELS *k, const smm_layout *l, const real *W, uint32_t *to,
                        size_t share) {
    for (size_t c = share * SMM_TILE; c < l->in; c += PACK_SHARES * SMM_TILE)
        copy_pairs(k, l->out, smm_min(SMM_TILE, l->in - c), W + c, l->in,
                   to + tiles_size(c, l->out), SMM_TILE, SMM_TILE);
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

/* Pairs of `rows` rows in parts. */
static size_t paired(size_t parts, size_t rows) { return parts * (smm_even(rows / parts) / 2); }

static strips layout_strips(size_t parts, size_t rows, size_t width, int narrow, smm_arena *arena) {
    strips p = {NULL, NULL};
    if (narrow) p.pairs = smm_carve(arena, paired(parts, rows) * width, sizeof *p.pairs);
    else p.plain = CARVE(rows * width);
    return p;
}

/* Forward applies W' of the slots' matrices, backward W, and W' where it recomputes. A folded W_k
 * is applied the other way round. A folded W_v is applied to inputs too, where means start at
 * those. */
static packed_param layout_param(const smm_sizes *s, size_t i, int backward, smm_arena *arena) {
    const smm_layout l = s->layout[i];
    const int matrix = l.rank == 2, of_inputs = !l.of_slots || i == SMM_TO_V_WEIGHT;
    packed_param w = {.layout = l};
    if (matrix && l.of_slots) {
        const int out = !backward || l.recomputed, narrow = out && l.narrow;
        if (out) w.to_out = layout_strips(l.in_parts, l.in, l.outp, l.narrow, arena);
        if (backward || i == SMM_TO_K_WEIGHT)
            w.to_in = layout_strips(l.out_parts, l.out, l.inp, l.narrow, arena);
        if (narrow) w.narrow = smm_carve(arena, l.out * paired(l.in_parts, l.in), sizeof *w.narrow);
    }
    if (l.rank == 1 && l.of_slots) w.row = CARVE(l.outp);
    if (!l.of_slots && l.narrow) {
        w.tiles = smm_carve(arena, tiles_size(l.out, l.in), sizeof *w.tiles);
        if (backward) w.turned = smm_carve(arena, tiles_size(l.in, l.out), sizeof *w.turned);
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
    if (w->to_out.plain || w->to_out.pairs) pack_to_out(k, w, given, share);
    if (w->to_in.plain || w->to_in.pairs) pack_to_in(k, w, given, share);
    if (w->tiles) pack_tiles(k, l, given, w->tiles, share);
    if (w->turned) pack_turned(k, l, given, w->turned, share);
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
