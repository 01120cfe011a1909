/* sizes.c - everything that follows from a configuration and the sizes of a call. */
#include <string.h>

#include "core.h"

smm_layout smm_layout_of(const smm_config *c, size_t i)
{
    size_t shape[2] = {0, 1};
    const int rank = smm_param_shape(c, i, shape), gates = i >= SMM_GRU_WEIGHT_IH && i <= SMM_GRU_BIAS_HH;
    smm_layout l = {rank, shape[0], rank == 2 ? shape[1] : 1, 1, 1, 0, 0, 0};
    if (gates) l.out_parts = 3;
    if ((i == SMM_NORM_SLOTS_WEIGHT || i == SMM_NORM_SLOTS_BIAS) && smm_is_mixture(c)) l.out_parts = 2;
    if (i == SMM_TO_OUT_WEIGHT || i == SMM_TO_OUT_0_WEIGHT) l.in_parts = 2;
    l.outp = l.out_parts * smm_pad(l.out / l.out_parts);
    l.inp = l.in_parts * smm_pad(l.in / l.in_parts);
    l.size = rank == 2 ? l.out * l.inp : rank == 1 ? l.outp : 0;
    return l;
}

/* Elements of all parameter gradients of one group, roughly: what a group costs in memory. */
static size_t parameter_elements(const smm_config *c)
{
    size_t total = 1;
    for (size_t i = 0; i < SMM_PARAMS; i++) total += smm_layout_of(c, i).size;
    return total;
}

/* The numbers of chunks, segments and groups depend on the sizes of the call alone, never on threads: so do the bits. */
static void split_work(smm_sizes *s)
{
    s->blocks = (s->N + SMM_BLOCK - 1) / SMM_BLOCK;
    s->chunk_blocks = smm_max(2, (s->blocks + 31) / 32);
    s->chunks = (s->blocks + s->chunk_blocks - 1) / s->chunk_blocks;
    const size_t each = parameter_elements(s->cfg), budget = (size_t)1 << 22;
    const size_t most = smm_max(1, budget / each);
    s->segments = 1;
    if (s->B < 8) s->segments = smm_max(1, smm_min(smm_min(8, s->chunks / 2), most / s->B));
    s->groups = s->segments > 1 ? s->B * s->segments : smm_min(s->B, smm_min(16, smm_max(4, most)));
}

/* Elements of the layers of a block of inputs, which forward saves of a mixture with an MLP; see smm_saved_rule. */
enum { SMALL = 3 << 20, MOST_OF_SMALL = 64 << 20, MOST = 8 << 20 };

static size_t block_layers(const smm_sizes *s)
{
    return s->input_mlp && s->keep ? SMM_BLOCK * (s->H + s->F + s->C) : 0;
}

static int saves_layers(const smm_sizes *s)
{
    const size_t block = block_layers(s);
    if (!block) return 0;
    return s->B * s->blocks <= (s->blocks <= SMALL / block ? MOST_OF_SMALL : MOST) / block;
}

smm_status smm_sizes_init(smm_sizes *s, const smm_config *c, const smm_dims *dims)
{
    memset(s, 0, sizeof *s);
    if (!c || !dims) return SMM_ERR_NULL;
    smm_status status = smm_config_check(c);
    if (status != SMM_OK) return status;
    if (!dims->batch || !dims->inputs || !dims->slots || !dims->iters) return SMM_ERR_DIMS;
    s->cfg = c;
    s->B = dims->batch, s->N = dims->inputs, s->K = dims->slots;
    s->reference = c->kind == SMM_SLOT_MIXTURE_REFERENCE;
    s->learned = smm_is_learned(c);
    s->variance = smm_is_mixture(c);
    s->dot = c->kind == SMM_SLOT_ATTENTION;
    s->input_mlp = s->learned && s->variance && c->input_mlp;
    s->input_norm = s->dot || s->input_mlp;
    s->norm_kv = s->reference || (c->kind == SMM_SLOT_MIXTURE && c->norm_kv);
    s->slot_norm = s->reference || (c->kind == SMM_SLOT_MIXTURE && c->slot_norm);
    if (dims->iters >= (size_t)1 << 20) return SMM_ERR_DIMS; /* a count of steps is saved as a real */
    s->T = dims->iters + (size_t)s->reference;
    s->D = c->dim, s->I = c->input_dim, s->H = c->hidden_dim, s->W = smm_slot_width(c);
    s->F = s->input_mlp ? s->D : s->I;
    s->heads = c->heads;
    /* multiplications of an input: 2 T K I with the maps on the slots' side, 2 I D + 2 T K D without; T taken as 4, so that it
       is not the number of steps that decides which roundings a step has */
    s->folded = s->dot && s->heads == 1 && (s->I <= s->D || 4 * s->K * (s->I - s->D) <= s->I * s->D);
    s->own_values = (s->dot && !s->folded) || s->reference;
    s->C = s->folded ? s->I : s->D, s->Ch = s->C / s->heads;
    s->Dp = smm_pad(s->D), s->Ip = smm_pad(s->I), s->Hp = smm_pad(s->H), s->Fp = smm_pad(s->F);
    s->Cp = smm_pad(s->C), s->Chp = smm_pad(s->Ch), s->Vp = s->heads * s->Chp;
    const size_t widest = smm_max(smm_max(s->I, s->H), 4 * s->D) + SMM_LANES;
    if (s->N > (size_t)-1 - SMM_BLOCK || smm_too_big(s->N + SMM_BLOCK, widest) || smm_too_big(s->B, (s->N + SMM_BLOCK) * widest))
        return SMM_ERR_DIMS;
    if (s->K > ((size_t)1 << 20) || smm_too_big(s->K * s->heads, s->B) || smm_too_big(s->T + 2, s->B * s->K * (8 * s->Dp + s->Hp + s->Cp + 8)))
        return SMM_ERR_DIMS;
    split_work(s);
    s->steps_back = c->gradient == SMM_GRADIENT_FULL ? s->T : 1;
    /* Keys and values of large images are made again where that is little work, or where the caller wants it. */
    const size_t rows = s->blocks * SMM_BLOCK, most = (size_t)6 << 20;
    const int cheap = s->folded || !s->learned;
    s->keep = !c->recompute && (!cheap || rows * (s->C + s->Vp) <= most);
    s->keep_backward = s->steps_back > 1 && !c->recompute && (!cheap || rows * 4 * s->C <= most);
    s->saved_block = saves_layers(s) ? block_layers(s) : 0;
    s->pending_rows = smm_max(128, 2 * s->K);
    s->records = s->steps_back + 1;
    s->record = (3 * s->Dp + s->Cp) * s->K + smm_pad(s->K) + smm_pad(s->heads * s->K);
    s->update = s->learned ? (5 * s->Dp + s->Hp) * s->K : 0;
    s->saved_head = s->records * s->record + s->Cp + SMM_LANES + s->steps_back * s->update;
    s->saved_image = s->saved_head + s->blocks * s->saved_block;
    if (smm_too_big(s->records * s->B, s->record + s->update + s->Cp)) return SMM_ERR_DIMS;
    return SMM_OK;
}

size_t smm_saved_size(const smm_config *config, const smm_dims *dims)
{
    smm_sizes s;
    return smm_sizes_init(&s, config, dims) == SMM_OK ? s.B * s.saved_image : 0;
}

smm_saved_rule smm_saved_rule_of(const smm_config *config, size_t slots, size_t iters)
{
    const smm_saved_rule nothing = {0, 0, 0, 0, 0, 0};
    const smm_dims dims = {1, 1, slots, iters};
    smm_sizes s;
    if (smm_sizes_init(&s, config, &dims) != SMM_OK) return nothing;
    const smm_saved_rule rule = {s.saved_head, block_layers(&s), SMM_BLOCK, SMALL, MOST_OF_SMALL, MOST};
    return rule;
}
