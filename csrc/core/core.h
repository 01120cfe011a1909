/* core.h - what the files of the core share, whatever the precision: derived sizes and the arena that scratch memory comes from. */
#ifndef SMM_CORE_H
#define SMM_CORE_H

#include "kernels.h"
#include "smm.h"

#define SMM_BLOCK 64 /* inputs that are worked on together, lanes of the channel-major arrays */

/* Everything that follows from a configuration and the sizes of a call. Names as in smm.h; a trailing p means padded to SMM_LANES. */
typedef struct {
    const smm_config *cfg;
    size_t B, N, K, T;          /* T counts the reference variant's extra step */
    size_t D, I, H, F, W;       /* F: width of h, the vectors that keys are computed from; W: of an output slot */
    size_t Dp, Ip, Hp, Fp;
    size_t C, Cp;               /* channels of keys and values as the passes over inputs see them */
    size_t heads, Ch, Chp, Vp;  /* channels of a head; Vp = heads * Chp, the width of a row of values */
    size_t blocks, chunk_blocks, chunks; /* of an image: sums over its inputs are taken per chunk, then over chunks */
    size_t segments, groups;    /* parameter gradients are summed per group of images or per segment of an image, then over groups */
    size_t steps_back;          /* steps that backward goes through */
    int keep, keep_backward;    /* keys and values (backward: and their gradients) of an image are kept from step to step */
    size_t saved_block;         /* elements that forward saves of a block of inputs: both layers of their MLP and keys, or none */
    size_t pending_rows;        /* slots that the gradients of the slots' weights are summed over at a time, at most */
    size_t records;             /* states kept of an image: before each step that backward visits, and the last */
    size_t record;              /* elements of one state */
    size_t update;              /* elements that forward saves of a step's update of the slots */
    size_t saved_head;          /* elements that forward saves of an image before its blocks: records, centre, number of steps, updates */
    size_t saved_image;         /* and with them */
    int dot, variance, learned, reference; /* logits are products; slots have variances; there are parameters; the variant */
    int own_values;             /* v = W_v h rather than h itself */
    int folded;                 /* Slot Attention: W_k and W_v are applied to slots, not inputs; see inputs_tpl.h */
    int input_mlp, input_norm, norm_kv, slot_norm;
} smm_sizes;

/* Whether slots have variances; whether there are parameters. */
static inline int smm_is_mixture(const smm_config *c)
{
    return c->kind == SMM_SLOT_MIXTURE || c->kind == SMM_SLOT_MIXTURE_REFERENCE || c->kind == SMM_GAUSSIAN_MIXTURE;
}

static inline int smm_is_learned(const smm_config *c) { return c->kind != SMM_KMEANS && c->kind != SMM_GAUSSIAN_MIXTURE; }

/* Fill *s. SMM_OK, or SMM_ERR_CONFIG or SMM_ERR_DIMS. */
smm_status smm_sizes_init(smm_sizes *s, const smm_config *config, const smm_dims *dims);

static inline size_t smm_pad(size_t n) { return (n + SMM_LANES - 1) / SMM_LANES * SMM_LANES; }
/* Distance of a matrix's rows, in elements, as the products of inputs read it: a multiple of 1 or 2 KiB would put them all into a few
 * sets of the first cache. */
static inline size_t smm_spaced(size_t cols) { return cols % 256 ? cols : cols + SMM_LANES; }
static inline size_t smm_min(size_t a, size_t b) { return a < b ? a : b; }
/* Whether a b elements are more than any array holds. */
static inline int smm_too_big(size_t a, size_t b) { return b && a > ((size_t)-1 >> 8) / b; }
static inline size_t smm_max(size_t a, size_t b) { return a > b ? a : b; }

/* How a parameter's inputs and outputs lie in rows of slots, and so in its gradient while that is summed up: in equal parts (gates;
 * mean and log standard deviation), each padded. */
typedef struct {
    int rank;         /* 0: the module has no such parameter; 1: `out` numbers; 2: (out, in) */
    size_t out, in;   /* in: 1 of a vector */
    size_t out_parts, in_parts;
    size_t outp, inp; /* width of a row: parts times the padded part */
    size_t size;      /* elements of the gradient: (out,inp) or (outp); 0 of rank 0 */
} smm_layout;

smm_layout smm_layout_of(const smm_config *config, size_t param);

/* An arena measures when base is NULL and hands out aligned pieces when it is not: the same layout function does both. */
typedef struct {
    char *base;
    size_t used;
    int overflow; /* a size did not fit size_t */
} smm_arena;

/* count elements of the given size, aligned to SMM_ALIGN; NULL while measuring. */
void *smm_carve(smm_arena *arena, size_t count, size_t size);

#endif
