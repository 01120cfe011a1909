/* pass_tpl.h - passes over an image's inputs, block by block: E and M step of a chunk, and their
 * backward. */
#ifndef SMM_PASS_TPL_H
#define SMM_PASS_TPL_H

#include "update_tpl.h"

/* Block i, from the image's inputs. */
static block_source source_of(const image_state *im, size_t i) {
    const smm_sizes *s = im->s;
    const size_t at = s->saved_head + i * s->saved_block;
    const block_source f = {.k = im->k,
                            .s = s,
                            .p = im->p,
                            .w = im->side.w,
                            .in = &im->in,
                            .first = i * SMM_BLOCK,
                            .saved = im->saved && s->saved_block ? im->saved + at : NULL,
                            .save = im->save && s->saved_block ? im->save + at : NULL};
    return f;
}

/* Keys of block i, and its values in b. */
static const real *make_block(const image_state *im, size_t i, input_block *b) {
    const block_source f = source_of(im, i);
    return inputs_forward(&f, b,
                          im->cache.on ? im->cache.keys + i * im->s->C * SMM_BLOCK : b->keys);
}

/* Values of block i, in b, minus the centre, as rows (SMM_BLOCK, Vp). */
static void value_rows(const image_state *im, size_t i, const input_block *b, real *rows) {
    const smm_sizes *s = im->s;
    const size_t n = SMM_BLOCK, valid = smm_min(n, im->in.n - i * n);
    for (size_t h = 0; h < s->split; h++)
        im->k->transpose_out(valid, s->Ch, s->Chp, b->values + h * s->Ch * n, n,
                             im->moments.centre + h * s->Ch, rows + h * s->Chp, s->Vp);
}

/* Cache the values of block i, in b; backward, clear their gradients and the keys'. */
static void cache_values(const image_state *im, size_t i, const input_block *b) {
    const input_cache *cache = &im->cache;
    const size_t n = SMM_BLOCK, size = im->s->C * n, at = i * size;
    cache->made[i] = 1;
    if (!im->saved) {
        value_rows(im, i, b, cache->values + i * n * im->s->Vp);
        return;
    }
    if (cache->values != cache->keys)
        im->k->affine(im->s->C, n, b->values, n, NULL, im->moments.minus_centre, cache->values + at,
                      n, OVERWRITE);
    memset(cache->d_values + at, 0, size * sizeof(real));
    if (cache->d_keys != cache->d_values) memset(cache->d_keys + at, 0, size * sizeof(real));
}

/* Cached keys of block i, where keys_forward put them; the first pass makes them and the values. */
static const real *cached_block(const image_state *im, size_t i, input_block *b) {
    if (!im->cache.made[i]) {
        make_block(im, i, b);
        cache_values(im, i, b);
    }
    const block_source f = source_of(im, i);
    const real *saved = f.save ? f.save : f.saved;
    if (saved && aligned(saved + saved_keys_at(im->s))) return saved + saved_keys_at(im->s);
    return im->cache.keys + i * im->s->C * SMM_BLOCK;
}

/* The centre: the mean of the first block's values; 0 where a network takes means that are not
 * centred. Where values are cached, every thread makes the first block of its chunks meanwhile. */
static void find_centre(image_state *im) {
    const smm_sizes *s = im->s;
    const size_t n = SMM_BLOCK, valid = smm_min(n, im->in.n), chunks = image_chunks(im);
    const size_t parts = s->cache_forward ? smm_min((size_t)im->threads, chunks) : 1;
    const real *values;
    memset(im->moments.centre, 0, s->Cp * sizeof(real));
    if (s->learned && !s->variance) return;
    SMM_PARALLEL(parts, parts, i, thread,
                 make_block(im, chunk_begin(im, smm_part(chunks, i, parts)), &im->blocks[i]));
    values = im->blocks[0].values;
    for (size_t d = 0; d < s->D; d++) {
        real sum = 0;
        for (size_t j = 0; j < valid; j++) sum += values[d * n + j];
        im->moments.centre[d] = sum / (real)valid;
    }
    if (!s->cache_forward) return;
    for (size_t i = 0; i < parts; i++)
        cache_values(im, chunk_begin(im, smm_part(chunks, i, parts)), &im->blocks[i]);
}

/* What a pass forward is asked for besides moments. */
typedef struct {
    int first;       /* the sums of values */
    int last;        /* the log-likelihood and the attention */
    int likelihoods; /* the log-likelihood of every step */
    real *attention; /* (N,K), or NULL */
    real likelihood; /* what it found */
} forward_pass;

/* E and M step of one chunk, to its moment_sums. */
static void chunk_forward(const image_state *im, const slot_state *r, size_t chunk, size_t thread,
                          const forward_pass *pass) {
    input_block *b = &im->blocks[thread];
    const smm_sizes *s = im->s;
    const size_t n = SMM_BLOCK, Vp = s->Vp;
    const moment_sums m = moments_of(im, chunk);
    const int asked = pass->last || pass->likelihoods;
    if (has_stopped(im, thread)) return;
    const int likelihood = asked && s->variance && !s->reference;
    memset(m.sums, 0, im->moments.partial * sizeof(real));
    for (size_t i = chunk_begin(im, chunk); i < chunk_begin(im, chunk + 1); i++) {
        const size_t valid = smm_min(n, im->in.n - i * n);
        const real *keys = im->cache.on ? cached_block(im, i, b) : make_block(im, i, b);
        const real *values = im->cache.on ? im->cache.values + i * n * Vp : b->value_rows;
        if (!im->cache.on) value_rows(im, i, b, b->value_rows);
        if (pass->first)
            im->k->moments(1, valid, Vp, b->ones, n, values, Vp, m.values, m.values + Vp, Vp);
        if (likelihood)
            *m.loglik += responsibilities_and_likelihood(im, keys, valid, b->gamma, m.sums, b);
        else responsibilities(im, r, keys, valid, b->gamma, m.sums, NULL);
        if (pass->last && pass->attention)
            write_attention(im, b->gamma, i * n, valid, im->in.index, pass->attention);
        block_moments(im, b->gamma, values, valid, &m);
    }
}

/* Attention of masked inputs, which no sum sees: their keys against the last step's queries. */
static void masked_attention(image_state *im, const slot_state *r, const uint8_t *mask,
                             real *attention) {
    const smm_sizes *s = im->s;
    input_block *b = &im->blocks[0];
    size_t rows[SMM_BLOCK], count = 0;
    for (size_t i = 0; i <= s->N; i++) {
        if (i < s->N && !mask[i]) rows[count++] = i;
        if (!count || (count < SMM_BLOCK && i < s->N)) continue;
        const input_rows in = {im->in.x, im->in.x_bfloat16, rows, count};
        const block_source f = {im->k, s, im->p, im->side.w, &in, 0, NULL, NULL};
        inputs_forward(&f, b, b->keys);
        responsibilities(im, r, b->keys, count, b->gamma, b->discarded, NULL);
        write_attention(im, b->gamma, 0, count, rows, attention);
        count = 0;
    }
}

/* What a pass backward needs besides im. */
typedef struct {
    const slot_state *r;
    const real *d_attention; /* (N,K) or NULL */
    real d_likelihood;       /* 0 but of the last step */
    int prior;               /* the gradient of the prior before the step is asked for */
    int at_means;            /* values are centred at the slots' means */
    int to_inputs; /* the pass goes on to the inputs: the last, or, where nothing is cached, each */
    int add;       /* to what other passes gave the inputs */
} backward_pass;

/* One block: from keys and centred values to d_keys and d_values (added to), and sums R0, R1, R2 to
 * m. Responsibilities are recomputed. */
static void block_backward(const image_state *im, const backward_pass *pass, size_t i,
                           const real *keys, const real *values, real *d_keys, real *d_values,
                           const moment_sums *m, input_block *b) {
    const size_t valid = smm_min(SMM_BLOCK, im->in.n - i * SMM_BLOCK);
    responsibilities(im, pass->r, keys, valid, b->gamma, b->discarded, b->ratio);
    weights_backward(im, values, pass->at_means, b);
    if (pass->d_attention) attention_backward(im, i * SMM_BLOCK, valid, b, pass->d_attention);
    if (im->s->reference && pass->prior) linear_prior_backward(im, valid, m, b);
    logits_backward(im, b, m->sums);
    if (pass->d_likelihood != 0) likelihood_backward(im, keys, valid, pass->d_likelihood, m, b);
    values_backward(im, values, pass->at_means, d_values, b);
    keys_backward(im, keys, valid, d_keys, m, b);
}

/* A pass that others follow, over one chunk: keys, values and their gradients stay cached. */
static void chunk_backward(const image_state *im, const backward_pass *pass, size_t chunk,
                           size_t thread) {
    const moment_sums m = moments_of(im, chunk);
    const input_cache *cache = &im->cache;
    input_block *b = &im->blocks[thread];
    if (has_stopped(im, thread)) return;
    memset(m.sums, 0, im->moments.partial * sizeof(real));
    for (size_t i = chunk_begin(im, chunk); i < chunk_begin(im, chunk + 1); i++) {
        const size_t at = i * im->s->C * SMM_BLOCK;
        const real *keys = cached_block(im, i, b);
        block_backward(im, pass, i, keys, cache->values + at, cache->d_keys + at,
                       cache->d_values + at, &m, b);
    }
}

/* A pass that goes on to the inputs and the parameters of their side, over one block. Where it is
 * the only one, nothing of the inputs' size is cached. */
static void block_to_inputs(const image_state *im, const backward_pass *pass, size_t i,
                            const moment_sums *m, input_block *b, const grad_set *g, real *dx) {
    const smm_sizes *s = im->s;
    const input_cache *cache = &im->cache;
    const size_t n = SMM_BLOCK, size = s->C * n, at = i * size;
    const block_source f = source_of(im, i);
    const real *keys, *values = s->folded ? b->keys : b->centred;
    real *d_values = b->d_values, *d_keys = s->folded ? d_values : b->d_keys;
    if (cache->on) {
        const int made = cache->made[i];
        keys = cached_block(im, i, b), values = cache->values + at;
        d_keys = cache->d_keys + at, d_values = cache->d_values + at;
        if (made && s->learned) features_forward(&f, b, NULL);
    } else {
        keys = make_block(im, i, b);
        if (!s->folded)
            im->k->affine(s->C, n, b->values, n, NULL, im->moments.minus_centre, b->centred, n,
                          OVERWRITE);
        memset(d_keys, 0, size * sizeof *d_keys);
        memset(d_values, 0, size * sizeof *d_values);
    }
    block_backward(im, pass, i, keys, values, d_keys, d_values, m, b);
    eps_backward(im, smm_min(n, im->in.n - i * n), values, d_values);
    inputs_backward(&f, b, d_keys, d_values, g, dx, pass->add);
}

/* The same over one segment's chunks. The first segment's set of gradients is the slots' too, and
 * clear already. */
static void segment_backward(const image_state *im, const backward_pass *pass, size_t segment,
                             size_t thread, const grad_set *g, real *dx) {
    const smm_sizes *s = im->s;
    const size_t chunks = image_chunks(im), begin = smm_part(chunks, segment, s->segments);
    if (segment && !pass->add) clear_set(s, g);
    for (size_t c = begin; c < smm_part(chunks, segment + 1, s->segments); c++) {
        const moment_sums m = moments_of(im, c);
        if (has_stopped(im, thread)) return;
        memset(m.sums, 0, im->moments.partial * sizeof(real));
        for (size_t i = chunk_begin(im, c); i < chunk_begin(im, c + 1); i++)
            block_to_inputs(im, pass, i, &m, &im->blocks[thread], g, dx);
    }
    finish_waiting(im->k, im->side.w, &im->blocks[thread], g);
}

/* Either pass over all chunks; one that goes on to the inputs has a set of parameter gradients and
 * a share of the chunks for each segment. */
static void inputs_pass(image_state *im, const backward_pass *pass, const grad_set *sets,
                        real *dx) {
    if (pass->to_inputs)
        SMM_PARALLEL(im->threads, im->s->segments, i, thread,
                     segment_backward(im, pass, i, thread, &sets[i], dx));
    else
        SMM_PARALLEL(im->threads, image_chunks(im), i, thread, chunk_backward(im, pass, i, thread));
}

#endif
