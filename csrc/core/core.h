/* core.h - what the files of the core share, whatever the precision: sizes that follow from a call,
 * parameters' layouts, and the arena that scratch memory comes from. */
#ifndef SMM_CORE_H
#define SMM_CORE_H

#include "kernels.h"
#include "smm.h"

#define SMM_BLOCK 64 /* inputs that are worked on together: lanes of channel-major arrays */

/* How a parameter's inputs and outputs lie in rows of slots, and so in its gradient while that is
 * summed: in equal parts (gates; mean and log standard deviation), each padded. */
typedef struct {
    int rank;       /* 0: the module has no such parameter; 1: `out` numbers; 2: (out, in) */
    int of_slots;   /* it is applied to slots, not to inputs */
    int by_head;    /* each part of its outputs, a head's, is of inputs of its own */
    int recomputed; /* backward recomputes what it gives */
    int narrow;     /* its products are of bfloat16 factors */
    size_t out, in; /* in: 1 of a vector */
    size_t out_parts, in_parts;
    size_t outp, inp; /* width of a row: parts times the padded part */
    size_t ld;        /* of the gradient of a matrix, from a row to the next: at least inp */
    size_t size;      /* elements of the gradient: (out,ld) or (outp); 0 of rank 0 */
} smm_layout;

/* Everything that follows from a configuration and the sizes of a call. Names are those of smm.h; a
 * trailing p means padded to SMM_LANES. */
typedef struct {
    const smm_config *cfg;
    size_t B, N, K, T; /* T counts the reference variant's extra step */
    size_t D, I, H, F; /* F: width of h, the vectors that keys are computed from */
    size_t W;          /* of an output slot */
    size_t P;          /* of queries, and of keys and values where they are maps of the inputs */
    size_t Dp, Ip, Hp, Fp;
    size_t Qp, Mp; /* rows of queries of all heads; of what the update of the slots takes */
    size_t C, Cp;  /* channels of keys and values in the passes over inputs */
    /* In the passes over inputs heads are blocks of channels, or each has rows of its own, with all
     * channels: heads = split * stack, and one of them is 1. */
    size_t heads, split, stack;
    size_t Ch, Chp, Vp; /* channels of a block; Vp = split * Chp, a row of values */

    int dot;       /* logits are products (Slot Attention), not distances */
    int variance;  /* slots have variances */
    int learned;   /* there are parameters */
    int reference; /* the reference variant */
    int input_mlp, input_norm, norm_kv, slot_norm;
    int own_values;    /* v = W_v h rather than h itself */
    int shared_values; /* v = k */
    int folded;        /* Slot Attention: W_k and W_v are applied to slots, see inputs_tpl.h */
    int combined;      /* heads have an output map */
    int norm_hidden;   /* the GRU's hidden state is normalised */
    int learned_prior; /* the prior is the mean responsibility */
    int update_masked; /* masked slots, to which no input is assigned, are updated */
    int bfloat16;      /* factors of products over inputs */

    size_t blocks, chunk_blocks, chunks; /* sums over inputs are taken per chunk of blocks */
    size_t segments;                     /* of an image, each with parameter gradients of its own */
    size_t groups;     /* of images or segments, whose parameter gradients are added up in order */
    size_t steps_back; /* steps that backward goes through */
    size_t pending_rows;               /* most rows that a product of weight gradients waits for */
    int cache_forward, cache_backward; /* an image's keys and values (backward: and gradients) */

    size_t states, state; /* slot states saved of an image; elements of one */
    size_t update;        /* elements saved of a step's update of the slots */
    size_t saved_head;    /* elements saved of an image before its blocks: states, centre, number
                             of steps, updates */
    size_t saved_block;   /* elements saved of a block: layers of the inputs' MLP and keys, or 0 */
    size_t saved_image;   /* elements saved of an image */

    smm_layout layout[SMM_PARAMS];
} smm_sizes;

/* Fill *s. SMM_OK, or SMM_ERR_NULL, SMM_ERR_CONFIG or SMM_ERR_DIMS. */
smm_status smm_sizes_init(smm_sizes *s, const smm_config *config, const smm_dims *dims);

/* Whether slots have variances; whether there are parameters. */
static inline int smm_is_mixture(const smm_config *c) {
    return c->kind != SMM_SLOT_ATTENTION && c->kind != SMM_KMEANS;
}
static inline int smm_is_learned(const smm_config *c) {
    return c->kind != SMM_KMEANS && c->kind != SMM_GAUSSIAN_MIXTURE;
}

/* P, channels of queries, keys and values; and what the update takes: those, or D behind
 * combine_heads. */
size_t smm_qkv_width(const smm_config *c);
size_t smm_update_width(const smm_config *c);

static inline size_t smm_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t smm_max(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t smm_even(size_t n) { return n + n % 2; }
static inline size_t smm_pad(size_t n) { return (n + SMM_LANES - 1) / SMM_LANES * SMM_LANES; }

/* Whether a b elements are more than any array holds. */
static inline int smm_too_big(size_t a, size_t b) { return b && a > ((size_t)-1 >> 8) / b; }

/* Leading dimension of the inputs' matrices: rows a multiple of 1 KiB apart would share a few sets
 * of the L1 cache. */
static inline size_t smm_spaced(size_t cols) { return cols % 256 ? cols : cols + SMM_LANES; }

/* An arena measures when base is NULL and hands out aligned pieces when it is not: the same layout
 * function does both. */
typedef struct {
    char *base;
    size_t used;
    int overflow; /* a size did not fit size_t */
} smm_arena;

/* count elements of the given size, aligned to SMM_ALIGN; NULL while measuring. */
void *smm_carve(smm_arena *arena, size_t count, size_t size);

#endif
