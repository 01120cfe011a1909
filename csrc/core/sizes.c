/* sizes.c - everything that follows from a configuration and the sizes of a call. */
#include <string.h>

#include "core.h"

/* Where a parameter is applied and in how many parts, of those that the module has. */
static void place(smm_layout *l, const smm_sizes *s, size_t param) {
    switch (param) {
    case SMM_TO_K_WEIGHT:
    case SMM_TO_K_BIAS:
    case SMM_TO_V_WEIGHT:
    case SMM_TO_V_BIAS:
        l->of_slots = l->by_head = s->folded;
        l->recomputed = 1;
        l->out_parts = s->stack;
        break;
    case SMM_TO_Q_WEIGHT:
    case SMM_TO_Q_BIAS:
        l->of_slots = l->recomputed = 1;
        l->out_parts = s->stack;
        break;
    case SMM_COMBINE_HEADS_WEIGHT:
        l->of_slots = l->recomputed = 1;
        l->in_parts = s->stack;
        break;
    case SMM_COMBINE_HEADS_BIAS: l->of_slots = l->recomputed = 1; break;
    case SMM_NORM_SLOTS_WEIGHT:
    case SMM_NORM_SLOTS_BIAS:
        l->of_slots = 1;
        if (s->variance) l->out_parts = 2;
        break;
    case SMM_GRU_WEIGHT_IH:
        l->in_parts = s->combined ? 1 : s->stack;
        /* fall through */
    case SMM_GRU_WEIGHT_HH:
    case SMM_GRU_BIAS_IH:
    case SMM_GRU_BIAS_HH:
        l->of_slots = 1;
        l->out_parts = 3;
        break;
    case SMM_NORM_MLP_WEIGHT:
    case SMM_NORM_MLP_BIAS:
    case SMM_MLP_0_WEIGHT:
    case SMM_MLP_0_BIAS:
    case SMM_MLP_2_WEIGHT:
    case SMM_MLP_2_BIAS: l->of_slots = 1; break;
    case SMM_TO_OUT_WEIGHT:
    case SMM_TO_OUT_0_WEIGHT:
        l->of_slots = l->recomputed = 1;
        l->in_parts = 2;
        break;
    case SMM_TO_OUT_BIAS:
    case SMM_TO_OUT_0_BIAS:
    case SMM_TO_OUT_2_WEIGHT:
    case SMM_TO_OUT_2_BIAS: l->of_slots = l->recomputed = 1; break;
    default: break;
    }
}

/* Whether bfloat16 keeps a matrix of slots accurate: not what distances are measured from, nor the
 * output. */
static int may_narrow(const smm_sizes *s, size_t param) {
    switch (param) {
    case SMM_TO_Q_WEIGHT: return s->dot;
    case SMM_TO_OUT_WEIGHT:
    case SMM_TO_OUT_0_WEIGHT:
    case SMM_TO_OUT_2_WEIGHT: return 0;
    default: return 1;
    }
}

static smm_layout layout_of(const smm_sizes *s, size_t param) {
    size_t shape[2] = {0, 1};
    const int rank = smm_param_shape(s->cfg, param, shape);
    smm_layout l = {.rank = rank, .out = shape[0], .in = rank == 2 ? shape[1] : 1};
    l.out_parts = l.in_parts = 1;
    place(&l, s, param);
    l.narrow = s->bfloat16 && rank == 2 && may_narrow(s, param);
    l.outp = l.out_parts * smm_pad(l.out / l.out_parts);
    l.inp = l.in_parts * smm_pad(l.in / l.in_parts);
    l.ld = l.of_slots ? l.inp : smm_spaced(l.inp);
    l.size = rank == 2 ? l.out * l.ld : rank == 1 ? l.outp : 0;
    return l;
}

/* Chunks, segments and groups depend on the sizes of the call alone, never on threads: so do the
 * bits of the sums over them. */
static void split_work(smm_sizes *s) {
    size_t each = 1; /* elements of all parameter gradients of a group, roughly */
    for (size_t i = 0; i < SMM_PARAMS; i++) each += s->layout[i].size;
    const size_t budget = (size_t)1 << 22, most = smm_max(1, budget / each);
    const size_t least = each > 2 * budget ? 2 : 4; /* sets as large take long to add up */
    s->blocks = (s->N + SMM_BLOCK - 1) / SMM_BLOCK;
    s->chunk_blocks = smm_max(2, (s->blocks + 31) / 32);
    s->chunks = (s->blocks + s->chunk_blocks - 1) / s->chunk_blocks;
    s->segments = 1;
    if (s->B < 8) s->segments = smm_max(1, smm_min(smm_min(8, s->chunks / 2), most / s->B));
    s->groups =
        s->segments > 1 ? s->B * s->segments : smm_min(s->B, smm_min(16, smm_max(least, most)));
}

/* Whether the map to values may come after the sum over inputs: its bias may where a slot's weights
 * sum to 1. */
static int values_fold(const smm_config *c) {
    return !c->qkv_bias || (c->update == SMM_UPDATE_MEAN && !c->eps_in_total);
}

static void choose_forms(smm_sizes *s, const smm_config *c) {
    s->reference = c->kind == SMM_SLOT_MIXTURE_REFERENCE;
    s->learned = smm_is_learned(c);
    s->variance = smm_is_mixture(c);
    s->dot = c->kind == SMM_SLOT_ATTENTION;
    s->input_mlp = s->learned && s->variance && c->input_mlp;
    s->input_norm = s->dot || s->input_mlp;
    s->norm_kv = s->reference || (c->kind == SMM_SLOT_MIXTURE && c->norm_kv);
    s->slot_norm = s->reference || (c->kind == SMM_SLOT_MIXTURE && c->slot_norm);
    s->norm_hidden = s->reference || (s->learned && c->norm_hidden);
    s->combined = s->dot && c->combine_heads;
    s->shared_values = s->reference && c->fair;
    s->update_masked = s->learned && c->update_masked;
    s->bfloat16 = s->learned && c->bfloat16;
    s->learned_prior = s->variance && (s->reference ? c->fair : !c->uniform_prior);
    /* Multiplications of an input: 2 T K heads I with the maps applied to slots, 2 I P + 2 T K P
     * without. T is taken as 2, so that the number of steps does not decide which roundings a step
     * has; with 3 steps the former is the faster up to there, forward and backward. */
    s->folded = s->dot && values_fold(c) &&
                2.0 * (double)s->K * ((double)(s->heads * s->I) - (double)s->P) <=
                    (double)s->I * (double)s->P;
    s->stack = s->folded ? s->heads : 1;
    s->split = s->heads / s->stack;
    s->own_values = (s->dot && !s->folded) || (s->reference && !c->fair);
}

static void pad_widths(smm_sizes *s) {
    s->F = s->input_mlp ? s->D : s->I;
    s->C = s->folded ? s->I : s->P;
    s->Ch = s->C / s->split;
    s->Dp = smm_pad(s->D), s->Ip = smm_pad(s->I), s->Hp = smm_pad(s->H), s->Fp = smm_pad(s->F);
    s->Cp = smm_pad(s->C), s->Chp = smm_pad(s->Ch), s->Vp = s->split * s->Chp;
    s->Qp = s->stack * smm_pad(s->P / s->stack), s->Mp = s->combined ? s->Dp : s->Qp;
}

/* Whether sizes of arrays overflow. */
static int overflows(const smm_sizes *s) {
    const size_t widest = smm_max(smm_max(s->I, s->H), 4 * smm_max(s->D, s->P)) + SMM_LANES;
    const size_t row = 8 * s->Dp + s->Hp + s->stack * s->Cp + s->Qp + 8;
    if (s->N > (size_t)-1 - SMM_BLOCK || smm_too_big(s->N + SMM_BLOCK, widest)) return 1;
    return smm_too_big(s->B, (s->N + SMM_BLOCK) * widest) || s->K > ((size_t)1 << 20) ||
           smm_too_big(s->K * s->heads, s->B) || smm_too_big(s->T + 2, s->B * s->K * row);
}

/* What is cached of an image: keys and values of large images are recomputed where that is little
 * work, or where the caller wants it. */
static void choose_caches(smm_sizes *s) {
    const size_t rows = s->blocks * SMM_BLOCK, most = (size_t)6 << 20;
    const int cheap = s->folded || !s->learned, may = !s->cfg->recompute;
    s->cache_forward = may && (!cheap || rows * (s->C + s->Vp) <= most);
    s->cache_backward = may && s->steps_back > 1 && (!cheap || rows * 4 * s->C <= most);
}

/* The limits of smm_saved_rule. */
enum { SMALL = 3 << 20, MOST_OF_SMALL = 64 << 20, MOST = 8 << 20 };

/* Up to how many elements an image's layers are small: those of wide maps always, as each takes so
 * many multiplications that saving it is the faster for any number of inputs. */
static size_t small_image(const smm_sizes *s) {
    const double work = (double)(s->H * (s->I + s->F) + s->F * s->P);
    return work > 256 * (double)(s->H + s->F + s->C) ? (size_t)-1 >> 1 : SMALL;
}

/* Elements of a block's layers that backward would have to recompute. */
static size_t block_layers(const smm_sizes *s) {
    return s->input_mlp && s->cache_forward ? SMM_BLOCK * (s->H + s->F + s->C) : 0;
}

static void lay_out_saved(smm_sizes *s) {
    const size_t block = block_layers(s);
    const size_t most = block && s->blocks <= small_image(s) / block ? MOST_OF_SMALL : MOST;
    s->states = s->steps_back + 1;
    s->state = (3 * s->Dp + s->stack * s->Cp) * s->K + smm_pad(s->K) + smm_pad(s->heads * s->K);
    s->update = s->learned ? (5 * s->Dp + s->Hp) * s->K : 0;
    s->saved_head = s->states * s->state + s->Cp + SMM_LANES + s->steps_back * s->update;
    s->saved_block = block && s->B * s->blocks <= most / block ? block : 0;
    s->saved_image = s->saved_head + s->blocks * s->saved_block;
}

smm_status smm_sizes_init(smm_sizes *s, const smm_config *c, const smm_dims *dims) {
    memset(s, 0, sizeof *s);
    if (!c || !dims) return SMM_ERR_NULL;
    const smm_status status = smm_config_check(c);
    if (status != SMM_OK) return status;
    if (!dims->batch || !dims->inputs || !dims->slots || !dims->iters) return SMM_ERR_DIMS;
    if (dims->iters >= (size_t)1 << 20) return SMM_ERR_DIMS; /* the number is saved as a real */
    s->cfg = c;
    s->B = dims->batch, s->N = dims->inputs, s->K = dims->slots;
    s->D = c->dim, s->I = c->input_dim, s->H = c->hidden_dim, s->heads = c->heads;
    s->P = smm_qkv_width(c);
    s->W = smm_slot_width(c);
    choose_forms(s, c);
    s->T = dims->iters + (size_t)s->reference;
    pad_widths(s);
    if (overflows(s)) return SMM_ERR_DIMS;
    s->steps_back = c->gradient == SMM_GRADIENT_FULL || s->shared_values ? s->T : 1;
    s->pending_rows = smm_max(128, 2 * s->K);
    for (size_t i = 0; i < SMM_PARAMS; i++) s->layout[i] = layout_of(s, i);
    split_work(s);
    choose_caches(s);
    lay_out_saved(s);
    return smm_too_big(s->states * s->B, s->state + s->update + s->Cp) ? SMM_ERR_DIMS : SMM_OK;
}

size_t smm_saved_size(const smm_config *config, const smm_dims *dims) {
    smm_sizes s;
    return smm_sizes_init(&s, config, dims) == SMM_OK ? s.B * s.saved_image : 0;
}

smm_saved_rule smm_saved_rule_of(const smm_config *config, size_t slots, size_t iters) {
    const smm_dims one = {1, 1, slots, iters};
    smm_saved_rule rule = {0, 0, 0, 0, 0, 0};
    smm_sizes s;
    if (smm_sizes_init(&s, config, &one) != SMM_OK) return rule;
    rule.image = s.saved_head, rule.block = block_layers(&s), rule.inputs = SMM_BLOCK;
    rule.small = small_image(&s), rule.most_of_small = MOST_OF_SMALL, rule.most = MOST;
    return rule;
}
