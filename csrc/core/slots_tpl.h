/* slots_tpl.h - linear maps of slots, rows X[slot][channel], each with its backward.
 *
 * Slots are few: as rows, no lane is lost on them, and each weight is read once for all. A row is
 * padded to SMM_LANES, part by part (smm_layout), with zeros wherever a sum over it is taken.
 * Threads may have a share of the slots each; sums over all slots, as gradients of biases are, are
 * taken after that. */
#ifndef SMM_SLOTS_TPL_H
#define SMM_SLOTS_TPL_H

#include "params_tpl.h"

/* Rows of X and dY that a weight's gradient has yet to be summed over. An image has few slots: the
 * rows of several steps and images make one product. */
typedef struct {
    real *x, *dy;
    uint32_t *pairs, *tiles; /* both in bfloat16, where their product is of that: flush_pending */
    size_t rows;             /* there */
    size_t next;             /* there once all threads are done with the step in progress */
    int summed;              /* whether the gradient holds a sum already; else it is overwritten */
} pending_product;

/* A thread's share of the slots: `count` from `begin` on, of `all`. Rows that a function takes
 * beside a share are those of the share alone. */
typedef struct {
    size_t begin, count, all;
} slot_share;

static slot_share share_of(size_t all, size_t i, size_t shares) {
    const size_t begin = smm_part(all, i, shares);
    const slot_share share = {begin, smm_part(all, i + 1, shares) - begin, all};
    return share;
}

/* What the slots' functions share. */
typedef struct {
    const KERNELS *k;
    const smm_sizes *s;
    const packed_param *w;    /* one for each parameter */
    const real *ones;         /* see packed_params */
    pending_product *pending; /* one for each parameter; backward */
    int threads;              /* of one image */
} slots_side;

#define NO_PARAM SMM_PARAMS

/* What becomes of a result. */
enum { OVERWRITE = 0, ACCUMULATE = 1 };
enum { NO_RELU = 0, RELU = 1 };

/* Y (+)= X P' + b, and a ReLU of that, of the part of P that has k rows and `width` lanes. */
static void strips_product(const slots_side *c, size_t rows, size_t width, size_t k, const real *X,
                           size_t ldx, const strips *P, size_t part, const real *b, real *Y,
                           size_t ldy, int accumulate, int relu) {
    if (P->pairs)
        c->k->rows_product16(rows, width, k, X, ldx, P->pairs + part * (smm_even(k) / 2) * width, b,
                             Y, ldy, accumulate, relu);
    else
        c->k->rows_linear(rows, width, k, X, ldx, P->plain + part * k * width, b, Y, ldy,
                          accumulate, relu);
}

/* Y (+)= X W' + b, and a ReLU of that; X rows (K, ldx), Y (K, ldy). */
static void slots_linear_forward(const slots_side *c, size_t weight, size_t bias, size_t K,
                                 const real *X, size_t ldx, real *Y, size_t ldy, int accumulate,
                                 int relu) {
    const packed_param *w = &c->w[weight];
    const smm_layout *l = &w->layout;
    const size_t in = l->in / l->in_parts, inp = smm_pad(in);
    const real *b = bias == NO_PARAM ? NULL : c->w[bias].row;
    for (size_t i = 0; i < l->in_parts; i++)
        strips_product(c, K, l->outp, in, X + i * inp, ldx, &w->to_out, i, i ? NULL : b, Y, ldy,
                       accumulate || i, relu && i + 1 == l->in_parts);
}

/* dX (+)= dY W. */
static void slots_input_backward(const slots_side *c, size_t weight, size_t K, const real *dY,
                                 size_t ldy, real *dX, size_t ldx, int accumulate) {
    const packed_param *w = &c->w[weight];
    const smm_layout *l = &w->layout;
    const size_t out = l->out / l->out_parts, outp = smm_pad(out);
    for (size_t o = 0; o < l->out_parts; o++)
        strips_product(c, K, l->inp, out, dY + o * outp, ldy, &w->to_in, o, NULL, dX, ldx,
                       accumulate || o, NO_RELU);
}

/* A map that each head has of its own, of K rows of each: head h's part of Y's columns is its rows
 * of X, `stride` further on than those of the head before, times its rows of W', plus b. */
static void heads_forward(const slots_side *c, size_t weight, size_t bias, size_t K, const real *X,
                          size_t ldx, size_t stride, real *Y, size_t ldy) {
    const packed_param *w = &c->w[weight];
    const smm_layout *l = &w->layout;
    const size_t outp = l->outp / l->out_parts;
    const real *b = bias == NO_PARAM ? NULL : c->w[bias].row;
    for (size_t h = 0; h < l->out_parts; h++)
        strips_product(c, K, outp, l->in, X + h * stride, ldx, &w->to_out, h,
                       b ? b + h * outp : NULL, Y + h * outp, ldy, OVERWRITE, NO_RELU);
}

/* dX = dY W of each head. */
static void heads_input_backward(const slots_side *c, size_t weight, size_t K, const real *dY,
                                 size_t ldy, real *dX, size_t ldx, size_t stride) {
    const packed_param *w = &c->w[weight];
    const smm_layout *l = &w->layout;
    const size_t out = l->out / l->out_parts, outp = smm_pad(out);
    for (size_t h = 0; h < l->out_parts; h++)
        strips_product(c, K, l->inp, out, dY + h * outp, ldy, &w->to_in, h, NULL, dX + h * stride,
                       ldx, OVERWRITE, NO_RELU);
}

/* Rows of X that each slot has in a map's product: one for each head, or one. */
static size_t input_rows_of(const smm_layout *l) { return l->by_head ? l->out_parts : 1; }

/* gW += dY' X, left pending. The rows of each head follow those of the one before, `stride` further
 * on. */
static void heads_weight_backward(const slots_side *c, size_t weight, const slot_share *share,
                                  const real *X, size_t ldx, size_t stride, const real *dY,
                                  size_t ldy) {
    pending_product *q = &c->pending[weight];
    const smm_layout *l = &c->w[weight].layout;
    const size_t first = q->rows + share->begin, heads = input_rows_of(l), ld = heads * l->inp;
    for (size_t h = 0; h < heads; h++)
        copy_rows(share->count, l->inp, X + h * stride, ldx, q->x + first * ld + h * l->inp, ld);
    copy_rows(share->count, l->outp, dY, ldy, q->dy + first * l->outp, l->outp);
    if (share->begin == 0) q->next = q->rows + share->all;
}

/* Both: dX (+)= dY W, and the gradient of W left pending. */
static void slots_linear_backward(const slots_side *c, size_t weight, const slot_share *share,
                                  const real *X, size_t ldx, const real *dY, size_t ldy, real *dX,
                                  size_t lddx, int accumulate) {
    slots_input_backward(c, weight, share->count, dY, ldy, dX, lddx, accumulate);
    heads_weight_backward(c, weight, share, X, ldx, 0, dY, ldy);
}

/* And the gradient of b, over all K slots. */
static void slots_bias_backward(const slots_side *c, size_t bias, size_t K, const real *dY,
                                size_t ldy, const grad_set *g) {
    if (g->at[bias]) c->k->column_sums(K, c->w[bias].layout.outp, dY, ldy, g->at[bias]);
}

/* What is pending of a parameter in bfloat16: X, and dY' part by part. */
static void narrow_pending(const slots_side *c, size_t param) {
    const pending_product *q = &c->pending[param];
    const smm_layout *l = &c->w[param].layout;
    const size_t out = l->out / l->out_parts, outp = smm_pad(out);
    const size_t width = input_rows_of(l) * l->inp;
    if (!q->rows || !q->pairs) return;
    c->k->narrow_pairs(q->rows, width, q->x, width, q->pairs, width);
    for (size_t o = 0; o < l->out_parts; o++)
        for (size_t r = 0; r < out; r += SMM_TILE)
            copy_pairs(c->k, q->rows, smm_min(SMM_TILE, out - r), q->dy + o * outp + r, l->outp,
                       q->tiles + tiles_size(outp, q->rows) * o + tiles_size(r, q->rows), SMM_TILE,
                       SMM_TILE);
}

/* Add what is pending of a parameter to its gradient: a part of the gradient's rows. */
static void flush_part(const slots_side *c, const grad_set *g, size_t param, size_t part,
                       size_t parts) {
    const pending_product *q = &c->pending[param];
    const smm_layout *l = &c->w[param].layout;
    const size_t out = l->out / l->out_parts, outp = smm_pad(out);
    const size_t tiles = (out + SMM_TILE - 1) / SMM_TILE;
    const size_t begin = smm_part(tiles, part, parts) * SMM_TILE;
    const size_t end = smm_min(smm_part(tiles, part + 1, parts) * SMM_TILE, out);
    const size_t ld = input_rows_of(l) * l->inp, stride = l->by_head ? l->inp : 0;
    if (!q->rows || begin >= end) return;
    for (size_t o = 0; o < l->out_parts; o++) {
        real *to = g->at[param] + (o * out + begin) * l->inp;
        if (q->pairs)
            c->k->product16(end - begin, l->inp, q->rows,
                            q->tiles + tiles_size(outp, q->rows) * o + tiles_size(begin, q->rows),
                            smm_even(q->rows) / 2, q->pairs + o * stride, ld, NULL, to, l->inp,
                            q->summed, NO_RELU);
        else
            c->k->gemm(end - begin, l->inp, q->rows, q->dy + o * outp + begin, 1, l->outp,
                       q->x + o * stride, ld, to, l->inp, q->summed);
    }
}

#define FLUSH_PARTS 4

/* Add all that is pending to the gradients. */
static void flush_pending(const slots_side *c, const grad_set *g) {
    const size_t parts = c->threads > 1 ? FLUSH_PARTS : 1;
    SMM_PARALLEL(c->threads, SMM_PARAMS, i, thread, narrow_pending(c, i));
    SMM_PARALLEL(c->threads, SMM_PARAMS * parts, i, thread,
                 flush_part(c, g, i % SMM_PARAMS, i / SMM_PARAMS, parts));
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        pending_product *q = &c->pending[i];
        q->summed |= q->rows > 0;
        q->rows = q->next = 0;
    }
}

/* The same at the end of a set, after which another begins. A matrix that nothing was pending of,
 * as the output's without a gradient of the slots, gets zeros. */
static void finish_pending(const slots_side *c, const grad_set *g) {
    flush_pending(c, g);
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const smm_layout *l = &c->w[i].layout;
        if (g->at[i] && l->rank == 2 && l->of_slots && !c->pending[i].summed)
            memset(g->at[i], 0, l->size * sizeof(real));
        c->pending[i].summed = 0;
    }
}

/* Make room for what a step of `slots` slots leaves pending: at most twice as many rows of a
 * weight. */
static void reserve_pending(const slots_side *c, size_t slots, const grad_set *g) {
    int full = 0;
    for (size_t i = 0; i < SMM_PARAMS; i++)
        full |= c->pending[i].rows + 2 * slots > c->s->pending_rows;
    if (full) flush_pending(c, g);
}

/* What all shares have left pending counts from now on. */
static void commit_pending(const slots_side *c) {
    for (size_t i = 0; i < SMM_PARAMS; i++) c->pending[i].rows = c->pending[i].next;
}

#endif
