/* inputs_tpl.h - inputs: from a block of them to keys and values, and back.
 *
 *     Slot Attention   h = LN(x);                 k = W_k h, v = W_v h
 *     SMM, paper       h = MLP(LN(x)) or x;  h = LN(h) if norm_kv;   k = W_k h, v = h
 *     SMM, reference   h = MLP(LN(x)) or x;  h = LN(h);              k = W_k h, v = W_v h or k
 *     clustering       k = v = x
 *
 * Slot Attention uses keys and values linearly: q . (W_k h) = (W_k' q) . h and
 * sum_n w (W_v h) = W_v sum_n w h. Where slots and heads are few both maps are `folded`: applied to
 * the K slots, so that the passes over inputs see k = v = h, and each head has rows of its own.
 *
 * Backward recomputes a block, but takes layers of the MLP and keys from the saved state where
 * forward has left them there. */
#ifndef SMM_INPUTS_TPL_H
#define SMM_INPUTS_TPL_H

#include "slots_tpl.h"

/* Linear maps of a block X (channels, SMM_BLOCK), of its first n lanes, a multiple of SMM_LANES.
 * Lanes beyond the real inputs hold finite values going forward and zeros going backward, so that
 * no sum needs to know of them. */

/* Y = W X + b, and a ReLU of that.  W (out,in), rows smm_spaced(in) apart, b (out) or NULL. */
static void linear_forward(const KERNELS *k, size_t out, size_t in, size_t n, const real *W,
                           const real *b, const real *X, real *Y, int relu) {
    k->linear(out, n, in, W, smm_spaced(in), b, X, SMM_BLOCK, Y, SMM_BLOCK, relu);
}

/* dX (+)= W' dY;  gW += dY X', rows ld apart.
 *
 * `rows` is scratch of n * ld elements: the product over lanes needs X with its channels side by
 * side. */
static void linear_backward(const KERNELS *k, size_t out, size_t in, size_t n, const real *W,
                            const real *X, const real *dY, real *dX, int accumulate, real *gW,
                            size_t ld, real *rows) {
    const size_t inp = smm_pad(in);
    k->gemm(in, n, out, W, 1, smm_spaced(in), dY, SMM_BLOCK, dX, SMM_BLOCK, accumulate);
    k->transpose_out(n, in, inp, X, SMM_BLOCK, NULL, rows, ld);
    k->gemm(out, inp, n, dY, SMM_BLOCK, 1, rows, ld, gW, ld, ACCUMULATE);
}

/* Zeros in the lanes of X (rows, SMM_BLOCK) from n on. */
static void clear_lanes(size_t rows, size_t n, real *X) {
    for (size_t r = 0; n < SMM_BLOCK && r < rows; r++)
        memset(X + r * SMM_BLOCK + n, 0, (SMM_BLOCK - n) * sizeof *X);
}

/* Blocks in bfloat16 that the product of a weight's gradient, dY X', waits for: it is read and
 * written once for all. */
#define PAIRS_WAITING (4 * SMM_BLOCK / 2)
typedef struct {
    uint32_t *tiles, *pairs; /* of dY (narrow_tiles) and X (narrow_turned) */
    size_t there;            /* pairs of lanes */
} waiting_product;

/* Scratch of one thread; channel-major arrays are (channels, SMM_BLOCK). */
typedef struct {
    real *x, *x_normed;            /* I */
    real *layers;                  /* H + F: both layers of the MLP, where they are not saved */
    const real *hidden, *h;        /* H, after the ReLU; F: in layers or in the saved state */
    real *h_normed;                /* F */
    const real *features;          /* F: what W_k is applied to, one of the above */
    real *mean_x, *rstd_x;         /* SMM_BLOCK: of the LayerNorm of x */
    real *mean_h, *rstd_h;         /* SMM_BLOCK: of h */
    real *keys;                    /* C */
    real *v;                       /* P, where values have a map of their own */
    const real *values;            /* C: v, features or keys */
    real *value_rows;              /* (SMM_BLOCK, Vp), where values are not cached going forward */
    real *density;                 /* (K, SMM_BLOCK): see likelihood_backward; backward */
    real *gamma, *d_gamma, *ratio; /* (heads K, SMM_BLOCK): responsibilities, their gradients */
    real *lse;                     /* SMM_BLOCK: log density */
    real *ones;                    /* SMM_BLOCK */
    real *discarded;               /* heads K: sums that nobody reads */
    real *rows;                    /* (SMM_BLOCK, widest): a block with its channels side by side */
    uint32_t *pairs;               /* widest / 2 + 1: a block in bfloat16, by pairs of channels */
    waiting_product waiting[SMM_PARAMS]; /* in bfloat16; backward */
    real *centred;             /* C: values minus the image's centre; backward, as the next */
    real *d_keys, *d_values;   /* C */
    real *d_wide, *d_features; /* max(H, I, F), max(I, F, D) */
} input_block;

/* One image's inputs: input i is row index[i] of x, or row i where there is no mask. */
typedef struct {
    const real *x;
    const uint16_t *x_bfloat16; /* or NULL: in place of x */
    const size_t *index;
    size_t n;
} input_rows;

/* n bfloat16 numbers, the upper halves of floats. */
static void widen(size_t n, const uint16_t *from, real *to) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        to[i] = value;
    }
}

/* What a block is computed from. */
typedef struct {
    const KERNELS *k;
    const smm_sizes *s;
    const real *const *p;  /* parameters, matrices of the inputs spaced */
    const packed_param *w; /* one for each parameter */
    const input_rows *in;
    size_t first;      /* rows from `first` on */
    const real *saved; /* layers and keys in the saved state, or NULL: backward */
    real *save;        /* where they go, or NULL: forward */
} block_source;

/* Lanes that a map has to compute. */
static size_t lanes_there(const block_source *f) {
    return smm_min(SMM_BLOCK, smm_pad(f->in->n - f->first));
}

static const real *bias_of(const block_source *f, size_t bias) {
    return f->s->cfg->qkv_bias ? f->p[bias] : NULL;
}

/* Y = W X + b, and a ReLU of that, of the map of `weight`. */
static void map_forward(const block_source *f, input_block *b, size_t weight, const real *bias,
                        const real *X, real *Y, int relu) {
    const packed_param *w = &f->w[weight];
    const size_t out = w->layout.out, in = w->layout.in, n = lanes_there(f), ld = SMM_BLOCK;
    clear_lanes(out, n, Y);
    if (!w->tiles) {
        linear_forward(f->k, out, in, n, f->p[weight], bias, X, Y, relu);
        return;
    }
    f->k->narrow_pairs(in, n, X, ld, b->pairs, n);
    f->k->product16(out, n, in, w->tiles, smm_even(in) / 2, b->pairs, n, bias, Y, ld, OVERWRITE,
                    relu);
}

/* The rows, to `to`. */
static void inputs_read(const block_source *f, input_block *b, real *to) {
    const input_rows *in = f->in;
    const size_t I = f->s->I, valid = smm_min(SMM_BLOCK, in->n - f->first);
    const size_t *index = in->index ? in->index + f->first : NULL;
    if (!in->x_bfloat16) {
        const real *x = index ? in->x : in->x + f->first * I;
        f->k->transpose_in(valid, I, SMM_BLOCK, x, I, index, to, SMM_BLOCK);
        return;
    }
    for (size_t i = 0; i < valid; i++)
        widen(I, in->x_bfloat16 + (index ? index[i] : f->first + i) * I, b->rows + i * I);
    f->k->transpose_in(valid, I, SMM_BLOCK, b->rows, I, NULL, to, SMM_BLOCK);
}

/* The saved state is the caller's memory: kernels work in it where it is aligned for them. */
static int aligned(const real *saved) { return (uintptr_t)saved % SMM_ALIGN == 0; }

/* Both layers of the MLP of b->x_normed, to b->hidden and b->h. */
static void inputs_mlp(const block_source *f, input_block *b) {
    const smm_sizes *s = f->s;
    const size_t n = SMM_BLOCK, count = (s->H + s->F) * n;
    real *layers = f->save && aligned(f->save) ? f->save : b->layers;
    b->hidden = f->saved && aligned(f->saved) ? f->saved : layers;
    b->h = b->hidden + s->H * n;
    if (f->saved) {
        if (b->hidden != f->saved) memcpy(layers, f->saved, count * sizeof *layers);
        return;
    }
    map_forward(f, b, SMM_MLP_INPUT_0_WEIGHT, f->p[SMM_MLP_INPUT_0_BIAS], b->x_normed, layers,
                RELU);
    map_forward(f, b, SMM_MLP_INPUT_2_WEIGHT, f->p[SMM_MLP_INPUT_2_BIAS], layers, layers + s->H * n,
                NO_RELU);
    if (f->save && layers != f->save) memcpy(f->save, layers, count * sizeof *layers);
}

/* The rows, to b->features. `keys`: where features that are the keys themselves go, or NULL. */
static void features_forward(const block_source *f, input_block *b, real *keys) {
    const smm_sizes *s = f->s;
    const size_t n = SMM_BLOCK;
    const real eps = (real)s->cfg->norm_eps;
    real *x = keys && !s->learned ? keys : b->x, *normed = keys && s->folded ? keys : b->x_normed;
    inputs_read(f, b, x);
    b->features = x;
    if (s->input_norm) {
        f->k->norm(s->I, n, b->x, n, f->p[SMM_NORM_INPUT_WEIGHT], f->p[SMM_NORM_INPUT_BIAS], eps,
                   normed, n, b->mean_x, b->rstd_x);
        b->features = normed;
    }
    if (s->input_mlp) {
        inputs_mlp(f, b);
        b->features = b->h;
    }
    if (s->norm_kv) {
        f->k->norm(s->F, n, b->features, n, f->p[SMM_NORM_KV_WEIGHT], f->p[SMM_NORM_KV_BIAS], eps,
                   b->h_normed, n, b->mean_h, b->rstd_h);
        b->features = b->h_normed;
    }
}

/* Where a saved block's keys are: after the layers of its MLP. */
static size_t saved_keys_at(const smm_sizes *s) { return SMM_BLOCK * (s->H + s->F); }

/* Keys from b->features. Returns them: in `keys`, or in the saved state where kernels can work. */
static const real *keys_forward(const block_source *f, input_block *b, real *keys) {
    const smm_sizes *s = f->s;
    const size_t n = SMM_BLOCK;
    if (f->saved) {
        const real *saved = f->saved + saved_keys_at(s);
        if (aligned(saved)) return saved;
        memcpy(keys, saved, s->C * n * sizeof *keys);
        return keys;
    }
    real *save = f->save ? f->save + saved_keys_at(s) : NULL;
    real *to = save && aligned(save) ? save : keys;
    if (s->learned && !s->folded)
        map_forward(f, b, SMM_TO_K_WEIGHT, bias_of(f, SMM_TO_K_BIAS), b->features, to, NO_RELU);
    if (save && to != save) memcpy(save, to, s->C * n * sizeof *save);
    return to;
}

/* The rows, to b->features, b->values (C,n) and the keys, which are returned. */
static const real *inputs_forward(const block_source *f, input_block *b, real *keys) {
    const smm_sizes *s = f->s;
    features_forward(f, b, keys);
    b->values = b->features;
    if (s->own_values) {
        map_forward(f, b, SMM_TO_V_WEIGHT, bias_of(f, SMM_TO_V_BIAS), b->features, b->v, NO_RELU);
        b->values = b->v;
    }
    const real *made = keys_forward(f, b, keys);
    if (s->shared_values) b->values = made;
    return made;
}

/* dx (N,I) of the rows from d (I,n), added with `add`. */
static void inputs_write(const block_source *f, input_block *b, const real *d, real *dx, int add) {
    const smm_sizes *s = f->s;
    const input_rows *in = f->in;
    const size_t n = SMM_BLOCK, valid = smm_min(n, in->n - f->first);
    if (!in->index && s->I == s->Ip && !add) {
        f->k->transpose_out(valid, s->I, s->I, d, n, NULL, dx + f->first * s->I, s->I);
        return;
    }
    f->k->transpose_out(valid, s->I, s->Ip, d, n, NULL, b->rows, s->Ip);
    for (size_t i = 0; i < valid; i++) {
        const real *from = b->rows + i * s->Ip;
        real *to = dx + (in->index ? in->index[f->first + i] : f->first + i) * s->I;
        for (size_t c = 0; c < s->I; c++) to[c] = from[c] + (add ? to[c] : 0);
    }
}

/* Add what is waiting to the gradient of W. */
static void add_waiting(const KERNELS *k, const packed_param *w, waiting_product *q, real *gW) {
    const smm_layout *l = &w->layout;
    k->product16(l->out, l->inp, 2 * q->there, q->tiles, PAIRS_WAITING, q->pairs, l->ld, NULL, gW,
                 l->ld, ACCUMULATE, NO_RELU);
    q->there = 0;
}

/* All of it. */
static void finish_waiting(const KERNELS *k, const packed_param *w, input_block *b,
                           const grad_set *g) {
    for (size_t i = 0; i < SMM_PARAMS; i++)
        if (b->waiting[i].there) add_waiting(k, &w[i], &b->waiting[i], g->at[i]);
}

/* Backward of map_forward: dX (+)= W' dY, and the gradients of `weight` and `bias` in g. */
static void map_backward(const block_source *f, input_block *b, size_t weight, size_t bias,
                         const real *X, const real *dY, real *dX, int accumulate,
                         const grad_set *g) {
    const packed_param *w = &f->w[weight];
    const size_t out = w->layout.out, in = w->layout.in, n = lanes_there(f), ld = w->layout.ld;
    if (!accumulate) clear_lanes(in, n, dX);
    if (g->at[bias]) f->k->row_sums(out, n, dY, SMM_BLOCK, g->at[bias]);
    if (!w->tiles) {
        linear_backward(f->k, out, in, n, f->p[weight], X, dY, dX, accumulate, g->at[weight], ld,
                        b->rows);
        return;
    }
    f->k->narrow_pairs(out, n, dY, SMM_BLOCK, b->pairs, n);
    f->k->product16(in, n, out, w->turned, smm_even(out) / 2, b->pairs, n, NULL, dX, SMM_BLOCK,
                    accumulate, NO_RELU);
    waiting_product *q = &b->waiting[weight];
    f->k->narrow_turned(in, n, X, SMM_BLOCK, q->pairs + q->there * ld, ld);
    f->k->narrow_tiles(out, n, dY, SMM_BLOCK, q->tiles + q->there * SMM_TILE, PAIRS_WAITING);
    q->there += n / 2;
    if (q->there > PAIRS_WAITING - SMM_BLOCK / 2) add_waiting(f->k, w, q, g->at[weight]);
}

/* Backward of inputs_forward, whose results are in b: from d_keys and d_values (C,n) to gradients
 * of parameters and, unless dx is NULL, to dx. Both are zero in lanes beyond the real inputs, and
 * overwritten; folded: d_values is the gradient of both. */
static void inputs_backward(const block_source *f, input_block *b, real *d_keys, real *d_values,
                            const grad_set *g, real *dx, int add) {
    const smm_sizes *s = f->s;
    const size_t n = SMM_BLOCK;
    const int mapped = s->own_values || s->shared_values;
    real *d = mapped ? b->d_features : d_values; /* of the features, or values, which they are */
    if (s->own_values)
        map_backward(f, b, SMM_TO_V_WEIGHT, SMM_TO_V_BIAS, b->features, d_values, d, OVERWRITE, g);
    if (s->shared_values) f->k->add(s->C * n, d_values, d_keys);
    if (s->learned && !s->folded)
        map_backward(f, b, SMM_TO_K_WEIGHT, SMM_TO_K_BIAS, b->features, d_keys, d,
                     !s->shared_values, g);
    if (!s->learned) f->k->add(s->D * n, d_keys, d);
    if (s->norm_kv)
        f->k->norm_backward(s->F, n, s->input_mlp ? b->h : b->x, n, f->p[SMM_NORM_KV_WEIGHT],
                            b->mean_h, b->rstd_h, d, n, d, n, g->at[SMM_NORM_KV_WEIGHT],
                            g->at[SMM_NORM_KV_BIAS]);
    if (s->input_mlp) {
        map_backward(f, b, SMM_MLP_INPUT_2_WEIGHT, SMM_MLP_INPUT_2_BIAS, b->hidden, d, b->d_wide,
                     OVERWRITE, g);
        f->k->relu_backward(s->H, n, b->hidden, n, b->d_wide, n);
        d = b->d_features;
        map_backward(f, b, SMM_MLP_INPUT_0_WEIGHT, SMM_MLP_INPUT_0_BIAS, b->x_normed, b->d_wide, d,
                     OVERWRITE, g);
    }
    if (s->input_norm)
        f->k->norm_backward(s->I, n, b->x, n, f->p[SMM_NORM_INPUT_WEIGHT], b->mean_x, b->rstd_x, d,
                            n, d, n, g->at[SMM_NORM_INPUT_WEIGHT], g->at[SMM_NORM_INPUT_BIAS]);
    if (dx) inputs_write(f, b, d, dx, add);
}

#endif
