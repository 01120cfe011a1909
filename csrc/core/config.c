/* config.c - configurations, sizes, parameter shapes, statuses: everything that is the same for both precisions. */
#include <math.h>
#include <string.h>

#include "core.h"

const char *smm_status_str(smm_status status)
{
    static const char *const text[] = {
#define SMM_X(name, text) text,
        SMM_STATUS_LIST(SMM_X)
#undef SMM_X
    };
    size_t i = (size_t)status;
    return i < sizeof text / sizeof *text ? text[i] : "unknown status";
}

const char *smm_param_name(size_t i)
{
    static const char *const names[] = {
#define SMM_X(name, text) text,
        SMM_PARAM_LIST(SMM_X)
#undef SMM_X
    };
    return i < SMM_PARAMS ? names[i] : NULL;
}

const char *smm_simd(void) { return smm_simd_chosen(); }
int smm_simd_set(const char *name) { return smm_simd_select(name); }
const char *smm_simd_list(size_t i, int *supported) { return smm_simd_built(i, supported); }

int smm_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

void smm_config_init(smm_config *config, smm_kind kind, size_t dim)
{
    memset(config, 0, sizeof *config);
    config->kind = kind;
    config->gradient = SMM_GRADIENT_FULL;
    config->dim = config->input_dim = dim;
    config->hidden_dim = 128;
    config->heads = 1;
    config->input_mlp = config->reduce = 1;
    config->temperature = 1;
    config->scale = dim ? 1 / sqrt((double)dim) : 1;
    config->eps = 1e-8;
    config->var_floor = 1e-4;
    config->norm_eps = 1e-5;
}

static int is_mixture(const smm_config *c)
{
    return c->kind == SMM_SLOT_MIXTURE || c->kind == SMM_SLOT_MIXTURE_REFERENCE || c->kind == SMM_GAUSSIAN_MIXTURE;
}

static int is_learned(const smm_config *c) { return c->kind != SMM_KMEANS && c->kind != SMM_GAUSSIAN_MIXTURE; }

static int positive(double v) { return isfinite(v) && v > 0; }

smm_status smm_config_check(const smm_config *c)
{
    if (!c) return SMM_ERR_NULL;
    const size_t most = (size_t)1 << 24;
    if ((int)c->kind < 0 || c->kind > SMM_GAUSSIAN_MIXTURE) return SMM_ERR_CONFIG;
    if ((int)c->gradient < 0 || c->gradient > SMM_GRADIENT_STRAIGHT_THROUGH) return SMM_ERR_CONFIG;
    if (!c->dim || !c->input_dim || !c->hidden_dim || !c->heads) return SMM_ERR_CONFIG;
    if (c->dim > most || c->input_dim > most || c->hidden_dim > most) return SMM_ERR_CONFIG;
    if (c->dim % c->heads || (c->heads > 1 && c->kind != SMM_SLOT_ATTENTION)) return SMM_ERR_CONFIG;
    if (!positive(c->temperature) || !positive(c->scale) || !positive(c->eps) || !positive(c->norm_eps)) return SMM_ERR_CONFIG;
    if (!isfinite(c->var_floor) || c->var_floor < 0 || !isfinite(c->tol) || c->tol < 0) return SMM_ERR_CONFIG;
    int bare = !is_learned(c) || (c->kind == SMM_SLOT_MIXTURE && !c->input_mlp);
    if (bare && c->input_dim != c->dim) return SMM_ERR_CONFIG;
    for (size_t i = 0; i < sizeof c->reserved / sizeof *c->reserved; i++)
        if (c->reserved[i] != 0) return SMM_ERR_CONFIG;
    return SMM_OK;
}

size_t smm_slot_width(const smm_config *c)
{
    int reduced = !is_mixture(c) || (is_learned(c) && c->reduce);
    return reduced ? c->dim : 2 * c->dim;
}

static int vector_of(size_t shape[2], int present, size_t n)
{
    shape[0] = n;
    return present ? 1 : 0;
}

static int matrix_of(size_t shape[2], int present, size_t rows, size_t cols)
{
    shape[0] = rows;
    shape[1] = cols;
    return present ? 2 : 0;
}

/* A screen and a half: one line for each parameter is the clearest form of the table. */
int smm_param_shape(const smm_config *c, size_t i, size_t shape[2])
{
    const int learned = is_learned(c), mixture = is_mixture(c) && learned, reference = c->kind == SMM_SLOT_MIXTURE_REFERENCE;
    const int mlp = mixture && c->input_mlp, values = learned && (!mixture || reference), bias = learned && c->qkv_bias;
    const int norm_kv = mixture && (c->norm_kv || reference), norm_slots = learned && (!mixture || c->slot_norm || reference);
    const size_t D = c->dim, H = c->hidden_dim, I = c->input_dim, F = mlp ? D : I;
    switch (i) {
    case SMM_NORM_INPUT_WEIGHT: case SMM_NORM_INPUT_BIAS: return vector_of(shape, learned && (!mixture || mlp), I);
    case SMM_MLP_INPUT_0_WEIGHT: return matrix_of(shape, mlp, H, I);
    case SMM_MLP_INPUT_0_BIAS: return vector_of(shape, mlp, H);
    case SMM_MLP_INPUT_2_WEIGHT: return matrix_of(shape, mlp, D, H);
    case SMM_MLP_INPUT_2_BIAS: return vector_of(shape, mlp, D);
    case SMM_NORM_KV_WEIGHT: case SMM_NORM_KV_BIAS: return vector_of(shape, norm_kv, F);
    case SMM_TO_Q_WEIGHT: return matrix_of(shape, learned, D, D);
    case SMM_TO_Q_BIAS: case SMM_TO_K_BIAS: return vector_of(shape, bias, D);
    case SMM_TO_K_WEIGHT: return matrix_of(shape, learned, D, F);
    case SMM_TO_V_WEIGHT: return matrix_of(shape, values, D, F);
    case SMM_TO_V_BIAS: return vector_of(shape, values && bias, D);
    case SMM_NORM_SLOTS_WEIGHT: case SMM_NORM_SLOTS_BIAS: return vector_of(shape, norm_slots, mixture ? 2 * D : D);
    case SMM_GRU_WEIGHT_IH: case SMM_GRU_WEIGHT_HH: return matrix_of(shape, learned, 3 * D, D);
    case SMM_GRU_BIAS_IH: case SMM_GRU_BIAS_HH: return vector_of(shape, learned, 3 * D);
    case SMM_NORM_MLP_WEIGHT: case SMM_NORM_MLP_BIAS: case SMM_MLP_2_BIAS: return vector_of(shape, learned, D);
    case SMM_MLP_0_WEIGHT: return matrix_of(shape, learned, H, D);
    case SMM_MLP_0_BIAS: return vector_of(shape, learned, H);
    case SMM_MLP_2_WEIGHT: return matrix_of(shape, learned, D, H);
    case SMM_TO_OUT_WEIGHT: return matrix_of(shape, mixture && !reference && c->reduce, D, 2 * D);
    case SMM_TO_OUT_BIAS: return vector_of(shape, mixture && !reference && c->reduce, D);
    case SMM_TO_OUT_0_WEIGHT: return matrix_of(shape, reference && c->reduce, 2 * H, 2 * D);
    case SMM_TO_OUT_0_BIAS: return vector_of(shape, reference && c->reduce, 2 * H);
    case SMM_TO_OUT_2_WEIGHT: return matrix_of(shape, reference && c->reduce, D, 2 * H);
    case SMM_TO_OUT_2_BIAS: return vector_of(shape, reference && c->reduce, D);
    default: return 0;
    }
}

smm_layout smm_layout_of(const smm_config *c, size_t i)
{
    size_t shape[2] = {0, 1};
    const int rank = smm_param_shape(c, i, shape), gates = i >= SMM_GRU_WEIGHT_IH && i <= SMM_GRU_BIAS_HH;
    smm_layout l = {rank, shape[0], rank == 2 ? shape[1] : 1, 1, 1, 0, 0, 0};
    if (gates) l.out_parts = 3;
    if ((i == SMM_NORM_SLOTS_WEIGHT || i == SMM_NORM_SLOTS_BIAS) && is_mixture(c)) l.out_parts = 2;
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
    s->learned = is_learned(c);
    s->variance = is_mixture(c);
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
    const size_t layers = s->H + s->F + s->C, saved_most = rows <= SMM_SAVED_IMAGE / layers ? SMM_SAVED_BATCH : SMM_SAVED_MOST;
    s->saved_block = s->input_mlp && s->keep && s->B * rows <= saved_most / layers ? SMM_BLOCK * layers : 0;
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
