/* config.c - kinds, options, parameters' names and shapes, texts: what a configuration says. */
#include <math.h>
#include <string.h>

#include "core.h"

const char *smm_version(void) { return SMM_VERSION; }

const char *smm_status_str(smm_status status) {
    static const char *const text[] = {
#define SMM_X(name, text) text,
        SMM_STATUS_LIST(SMM_X)
#undef SMM_X
    };
    size_t i = (size_t)status;
    return i < sizeof text / sizeof *text ? text[i] : "unknown status";
}

const char *smm_param_name(size_t i) {
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

int smm_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* The table of options as data. */
typedef struct {
    const char *name, *text;
    size_t at; /* of the field in smm_config */
    enum { TYPE_size_t, TYPE_int, TYPE_double } type;
    double value, least, most;
} option;

static const option options[] = {
#define SMM_X(type, name, value, least, most, text)                                          \
    {#name,         text,          offsetof(smm_config, name), TYPE_##type, (double)(value), \
     (double)least, (double)(most)},
    SMM_OPTION_LIST(SMM_X)
#undef SMM_X
};
#define OPTIONS (sizeof options / sizeof *options)

const char *smm_option_name(size_t i, const char **text) {
    if (i >= OPTIONS) return NULL;
    if (text) *text = options[i].text;
    return options[i].name;
}

static double value_of(const smm_config *c, const option *o) {
    const char *at = (const char *)c + o->at;
    if (o->type == TYPE_size_t) return (double)*(const size_t *)at;
    return o->type == TYPE_int ? *(const int *)at : *(const double *)at;
}

static void set(smm_config *c, const option *o, double value) {
    char *at = (char *)c + o->at;
    if (o->type == TYPE_size_t) *(size_t *)at = (size_t)value;
    else if (o->type == TYPE_int) *(int *)at = (int)value;
    else *(double *)at = value;
}

static int in_range(const option *o, double value) { return value >= o->least && value <= o->most; }

void smm_config_init(smm_config *c, smm_kind kind, size_t dim) {
    memset(c, 0, sizeof *c);
    c->kind = kind;
    for (size_t i = 0; i < OPTIONS; i++) set(c, &options[i], options[i].value);
    c->dim = c->input_dim = c->qkv_dim = dim;
    c->scale = dim ? 1 / sqrt((double)dim) : 1;
}

smm_status smm_config_set(smm_config *config, const char *name, double value) {
    if (!config || !name) return SMM_ERR_NULL;
    for (size_t i = 0; i < OPTIONS; i++) {
        const option *o = &options[i];
        if (strcmp(name, o->name)) continue;
        const int whole = o->type == TYPE_double || value == floor(value);
        if (!whole || !in_range(o, value)) return SMM_ERR_CONFIG;
        set(config, o, value);
        return SMM_OK;
    }
    return SMM_ERR_CONFIG;
}

size_t smm_qkv_width(const smm_config *c) {
    return c->kind == SMM_SLOT_ATTENTION ? c->qkv_dim : c->dim;
}

size_t smm_update_width(const smm_config *c) {
    return c->kind == SMM_SLOT_ATTENTION && !c->combine_heads ? c->qkv_dim : c->dim;
}

/* What options of the slots' side ask of each other. */
static int slots_fit(const smm_config *c) {
    const int mixture = c->kind == SMM_SLOT_MIXTURE;
    if (c->kind != SMM_SLOT_ATTENTION && c->heads > 1) return 0;
    if (smm_qkv_width(c) % c->heads) return 0;
    if (smm_is_learned(c) && !c->gru && smm_update_width(c) != c->dim) return 0;
    if (mixture && c->norm_hidden && !c->slot_norm) return 0;
    if (c->kind != SMM_SLOT_MIXTURE_REFERENCE) return 1;
    return !c->update_masked && (!c->fair || c->gradient <= SMM_GRADIENT_IMPLICIT);
}

smm_status smm_config_check(const smm_config *c) {
    if (!c) return SMM_ERR_NULL;
    if ((int)c->kind < 0 || c->kind > SMM_GAUSSIAN_MIXTURE) return SMM_ERR_CONFIG;
    for (size_t i = 0; i < OPTIONS; i++)
        if (!in_range(&options[i], value_of(c, &options[i]))) return SMM_ERR_CONFIG;
    if (smm_is_mixture(c) && smm_is_learned(c) && !(c->eps > 0))
        return SMM_ERR_CONFIG; /* a slot may get no weight */
    if (!slots_fit(c)) return SMM_ERR_CONFIG;
    const int bare = !smm_is_learned(c) || (c->kind == SMM_SLOT_MIXTURE && !c->input_mlp);
    return bare && c->input_dim != c->dim ? SMM_ERR_CONFIG : SMM_OK;
}

size_t smm_slot_width(const smm_config *c) {
    int reduced = !smm_is_mixture(c) || (smm_is_learned(c) && c->reduce);
    return reduced ? c->dim : 2 * c->dim;
}

static int vector_of(size_t shape[2], int present, size_t n) {
    shape[0] = n;
    return present ? 1 : 0;
}

static int matrix_of(size_t shape[2], int present, size_t rows, size_t cols) {
    shape[0] = rows;
    shape[1] = cols;
    return present ? 2 : 0;
}

/* A screen and a half: one line for each parameter is the clearest form of the table. */
int smm_param_shape(const smm_config *c, size_t i, size_t shape[2]) {
    const int learned = smm_is_learned(c), mixture = smm_is_mixture(c) && learned,
              reference = c->kind == SMM_SLOT_MIXTURE_REFERENCE;
    const int mlp = mixture && c->input_mlp, bias = learned && c->qkv_bias,
              values = learned && (!mixture || (reference && !c->fair)),
              combine = learned && !mixture && c->combine_heads;
    const int gru = learned && c->gru, slot_mlp = learned && c->slot_mlp != SMM_MLP_NEVER;
    const int norm_kv = mixture && (c->norm_kv || reference),
              norm_slots = learned && (!mixture || c->slot_norm || reference);
    const size_t D = c->dim, H = c->hidden_dim, I = c->input_dim, F = mlp ? D : I,
                 P = smm_qkv_width(c);
    switch (i) {
    case SMM_NORM_INPUT_WEIGHT:
    case SMM_NORM_INPUT_BIAS: return vector_of(shape, learned && (!mixture || mlp), I);
    case SMM_MLP_INPUT_0_WEIGHT: return matrix_of(shape, mlp, H, I);
    case SMM_MLP_INPUT_0_BIAS: return vector_of(shape, mlp, H);
    case SMM_MLP_INPUT_2_WEIGHT: return matrix_of(shape, mlp, D, H);
    case SMM_MLP_INPUT_2_BIAS: return vector_of(shape, mlp, D);
    case SMM_NORM_KV_WEIGHT:
    case SMM_NORM_KV_BIAS: return vector_of(shape, norm_kv, F);
    case SMM_TO_Q_WEIGHT: return matrix_of(shape, learned, P, D);
    case SMM_TO_Q_BIAS:
    case SMM_TO_K_BIAS: return vector_of(shape, bias, P);
    case SMM_TO_K_WEIGHT: return matrix_of(shape, learned, P, F);
    case SMM_TO_V_WEIGHT: return matrix_of(shape, values, P, F);
    case SMM_TO_V_BIAS: return vector_of(shape, values && bias, P);
    case SMM_COMBINE_HEADS_WEIGHT: return matrix_of(shape, combine, D, P);
    case SMM_COMBINE_HEADS_BIAS: return vector_of(shape, combine, D);
    case SMM_NORM_SLOTS_WEIGHT:
    case SMM_NORM_SLOTS_BIAS: return vector_of(shape, norm_slots, mixture ? 2 * D : D);
    case SMM_GRU_WEIGHT_IH: return matrix_of(shape, gru, 3 * D, smm_update_width(c));
    case SMM_GRU_WEIGHT_HH: return matrix_of(shape, gru, 3 * D, D);
    case SMM_GRU_BIAS_IH:
    case SMM_GRU_BIAS_HH: return vector_of(shape, gru, 3 * D);
    case SMM_NORM_MLP_WEIGHT:
    case SMM_NORM_MLP_BIAS:
    case SMM_MLP_2_BIAS: return vector_of(shape, slot_mlp, D);
    case SMM_MLP_0_WEIGHT: return matrix_of(shape, slot_mlp, H, D);
    case SMM_MLP_0_BIAS: return vector_of(shape, slot_mlp, H);
    case SMM_MLP_2_WEIGHT: return matrix_of(shape, slot_mlp, D, H);
    case SMM_TO_OUT_WEIGHT: return matrix_of(shape, mixture && !reference && c->reduce, D, 2 * D);
    case SMM_TO_OUT_BIAS: return vector_of(shape, mixture && !reference && c->reduce, D);
    case SMM_TO_OUT_0_WEIGHT: return matrix_of(shape, reference && c->reduce, 2 * H, 2 * D);
    case SMM_TO_OUT_0_BIAS: return vector_of(shape, reference && c->reduce, 2 * H);
    case SMM_TO_OUT_2_WEIGHT: return matrix_of(shape, reference && c->reduce, D, 2 * H);
    case SMM_TO_OUT_2_BIAS: return vector_of(shape, reference && c->reduce, D);
    default: return 0;
    }
}
