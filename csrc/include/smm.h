/* smm.h - the Slot Mixture Module, Slot Attention, K-Means and Gaussian mixtures, forward and backward, in C99.
 *
 * A module turns the N input vectors of an image into K slots by T steps of a learned clustering. Arrays are row-major and
 * contiguous, float (functions ending in _f32) or double (_f64). Dimensions everywhere:
 *
 *     B images   N inputs of an image   K slots   D slot width (dim)   I input width (input_dim)   H hidden width   T steps
 *
 * Formulas: Slot Attention is Locatello et al. 2020, Algorithm 1; the Slot Mixture Module is Kirilenko et al. 2024,
 * Algorithm 1 (SMM_SLOT_MIXTURE), or the code its authors released (SMM_SLOT_MIXTURE_REFERENCE). docs/math.md has them all.
 *
 * A call: fill smm_config (smm_config_init, then change fields), smm_dims, and a table of parameter pointers; call
 * smm_forward_f32. For gradients pass a buffer of smm_saved_size() elements to forward and hand it to smm_backward_f32.
 * Every argument is checked before anything is written. Functions keep no state and may run in several threads at once;
 * results do not depend on the number of threads, to the bit. */
#ifndef SMM_H
#define SMM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SMM_VERSION "0.1.0"

#define SMM_STATUS_LIST(X)                                                          \
    X(SMM_OK, "ok")                                                                 \
    X(SMM_ERR_NULL, "a required pointer is NULL")                                   \
    X(SMM_ERR_DIMS, "a dimension is zero or the sizes overflow")                    \
    X(SMM_ERR_CONFIG, "the configuration has a field out of range")                 \
    X(SMM_ERR_NOMEM, "out of memory")                                               \
    X(SMM_ERR_INDEX, "an index of a starting input is outside the image or masked") \
    X(SMM_ERR_NO_INPUT, "an image has no real input: its mask is all zero")         \
    X(SMM_ERR_NO_SLOT, "an image has no active slot: its slot mask is all zero")

typedef enum {
#define SMM_X(name, text) name,
    SMM_STATUS_LIST(SMM_X)
#undef SMM_X
} smm_status;

/* The text of a status; never NULL. */
const char *smm_status_str(smm_status status);

typedef enum {
    SMM_SLOT_ATTENTION,
    SMM_SLOT_MIXTURE,           /* the paper's Algorithm 1 and its options */
    SMM_SLOT_MIXTURE_REFERENCE, /* the released code: T+1 steps, linear responsibilities */
    SMM_KMEANS,                 /* soft K-Means on the inputs themselves: no parameters, I = D */
    SMM_GAUSSIAN_MIXTURE /* EM for a diagonal Gaussian mixture on the inputs themselves: no parameters, I = D */
} smm_kind;

typedef enum {
    SMM_GRADIENT_FULL, /* through all T steps */
    SMM_GRADIENT_IMPLICIT, /* through the last step only (Chang et al. 2022); the initial state's gradient is zero */
    SMM_GRADIENT_STRAIGHT_THROUGH /* implicit, and the final state's gradient goes to the initial state unchanged */
} smm_gradient;

/* What a module is. Zero in `reserved`. */
typedef struct {
    smm_kind kind;
    smm_gradient gradient;
    size_t dim;        /* D */
    size_t input_dim;  /* I */
    size_t hidden_dim; /* H, of both MLPs (2H in the reference variant's output MLP) */
    size_t
        heads; /* Slot Attention: heads, a divisor of D; each has its own softmax over slots. Else 1 */
    int qkv_bias;  /* Slot Attention and mixtures: q, k and v have biases */
    int input_mlp; /* mixtures: h = MLP(LN(x)); without it h = x */
    int norm_kv; /* paper variant: h = LN(h) before it serves as key's input and value (always in the reference) */
    int slot_norm; /* paper variant: query and log standard deviation from LN([mean, log_std]) (always in the reference) */
    int uniform_prior; /* paper variant: prior stays 1/K */
    int reduce; /* mixtures with parameters: slots = [mean, variance] W_o' + b_o, (B,K,D); else (B,K,2D) */
    int recompute; /* keys and values are made again in every step, not kept: memory of a call does not grow with N */
    double
        temperature; /* factor of the log density in the responsibilities (paper variant, Gaussian mixture) */
    double scale;     /* factor of the logits (Slot Attention, K-Means) or distances (reference) */
    double eps;       /* added to the weights before they are normalised over inputs */
    double var_floor; /* added to every variance (paper variant, Gaussian mixture) */
    double norm_eps;  /* of every LayerNorm */
    double
        tol; /* an image that moves no more than this in a step does one more, its last; 0: all T steps. See smm_typed.h */
    double reserved[7];
} smm_config;

/* Defaults: gradient full, I = D = dim, H = 128, heads 1, input_mlp 1, reduce 1, temperature 1, scale D^-1/2, eps 1e-8,
 * var_floor 1e-4, norm_eps 1e-5, tol 0, every other option off. */
void smm_config_init(smm_config *config, smm_kind kind, size_t dim);

/* Sizes of one call. */
typedef struct {
    size_t batch;  /* B */
    size_t inputs; /* N */
    size_t slots;  /* K */
    size_t iters;  /* T, at least 1; at most, where config.tol > 0 */
} smm_dims;

/* Every parameter any kind has: name in the tables of pointers, name in files. Linear weights are (out, in); the GRU's three
 * gates r, z, n are stacked as PyTorch's GRUCell does. */
#define SMM_PARAM_LIST(X)                           \
    X(SMM_NORM_INPUT_WEIGHT, "norm_input.weight")   \
    X(SMM_NORM_INPUT_BIAS, "norm_input.bias")       \
    X(SMM_MLP_INPUT_0_WEIGHT, "mlp_input.0.weight") \
    X(SMM_MLP_INPUT_0_BIAS, "mlp_input.0.bias")     \
    X(SMM_MLP_INPUT_2_WEIGHT, "mlp_input.2.weight") \
    X(SMM_MLP_INPUT_2_BIAS, "mlp_input.2.bias")     \
    X(SMM_NORM_KV_WEIGHT, "norm_kv.weight")         \
    X(SMM_NORM_KV_BIAS, "norm_kv.bias")             \
    X(SMM_TO_Q_WEIGHT, "to_q.weight")               \
    X(SMM_TO_Q_BIAS, "to_q.bias")                   \
    X(SMM_TO_K_WEIGHT, "to_k.weight")               \
    X(SMM_TO_K_BIAS, "to_k.bias")                   \
    X(SMM_TO_V_WEIGHT, "to_v.weight")               \
    X(SMM_TO_V_BIAS, "to_v.bias")                   \
    X(SMM_NORM_SLOTS_WEIGHT, "norm_slots.weight")   \
    X(SMM_NORM_SLOTS_BIAS, "norm_slots.bias")       \
    X(SMM_GRU_WEIGHT_IH, "gru.weight_ih")           \
    X(SMM_GRU_WEIGHT_HH, "gru.weight_hh")           \
    X(SMM_GRU_BIAS_IH, "gru.bias_ih")               \
    X(SMM_GRU_BIAS_HH, "gru.bias_hh")               \
    X(SMM_NORM_MLP_WEIGHT, "norm_mlp.weight")       \
    X(SMM_NORM_MLP_BIAS, "norm_mlp.bias")           \
    X(SMM_MLP_0_WEIGHT, "mlp.0.weight")             \
    X(SMM_MLP_0_BIAS, "mlp.0.bias")                 \
    X(SMM_MLP_2_WEIGHT, "mlp.2.weight")             \
    X(SMM_MLP_2_BIAS, "mlp.2.bias")                 \
    X(SMM_TO_OUT_WEIGHT, "to_out.weight")           \
    X(SMM_TO_OUT_BIAS, "to_out.bias")               \
    X(SMM_TO_OUT_0_WEIGHT, "to_out.0.weight")       \
    X(SMM_TO_OUT_0_BIAS, "to_out.0.bias")           \
    X(SMM_TO_OUT_2_WEIGHT, "to_out.2.weight")       \
    X(SMM_TO_OUT_2_BIAS, "to_out.2.bias")

enum {
#define SMM_X(name, text) name,
    SMM_PARAM_LIST(SMM_X)
#undef SMM_X
        SMM_PARAMS /* how many there are */
};

/* Name of parameter i < SMM_PARAMS in files, for example "to_q.weight". */
const char *smm_param_name(size_t i);

/* Shape of parameter i under a valid configuration: returns its rank (1 or 2) and fills shape[0..rank-1], or returns 0 where
 * this module has no such parameter (its pointer is then ignored). */
int smm_param_shape(const smm_config *config, size_t i, size_t shape[2]);

/* Width of a slot in the output: D, or 2D for [mean, variance]. */
size_t smm_slot_width(const smm_config *config);

/* SMM_OK, or what is wrong with a configuration. */
smm_status smm_config_check(const smm_config *config);

/* Elements of the buffer that forward fills for backward; 0 if the arguments are invalid. It holds states, whose size does not
 * depend on N, and both layers of the inputs' MLP and the keys, from which backward takes them, unless config.recompute is set
 * or these are too many: B ceil(N / 64) 64 (H + 2 D) elements, at most SMM_SAVED_MOST, or, where no image has more than SMM_SAVED_IMAGE,
 * SMM_SAVED_BATCH. */
#define SMM_SAVED_MOST ((size_t)8 << 20)
#define SMM_SAVED_IMAGE ((size_t)3 << 20)
#define SMM_SAVED_BATCH ((size_t)64 << 20)
#define SMM_SAVED_ALIGN \
    64 /* bytes: where `saved` starts at a multiple of it, they are not copied; anywhere else is as right */
size_t smm_saved_size(const smm_config *config, const smm_dims *dims);

/* Memory of `bytes`, not cleared, at a multiple of SMM_SAVED_ALIGN, for what forward saves or anything else; NULL if there is none.
 * The system makes fresh pages of it one by one, which can take as long as the work in them: of what is given back, the two largest
 * blocks of at most SMM_KEPT_MOST bytes each stay for later calls, whose scratch memory comes from here too. Any thread may call
 * either function; memory == NULL is nothing to free. */
#define SMM_KEPT_MOST ((size_t)64 << 20)
void *smm_alloc(size_t bytes);
void smm_free(void *memory);

/* The set of vector instructions in use ("scalar", "avx2", "avx512", "neon"), chosen at the first call, or by the environment
 * variable SMM_SIMD (the best one, where that names none that is built and runs here: see smm_simd); whether the library
 * was built with OpenMP. */
const char *smm_simd(void);
int smm_simd_set(
    const char
        *name); /* 0, or -1 if unknown or not supported here; not while another thread computes */
const char *smm_simd_list(size_t i, int *supported); /* i-th set built, or NULL */
int smm_openmp(void);

/* Index of the first infinity or NaN among n numbers of `bits` bits (16: bfloat16; 32: float; 64: double), or n; (size_t)-1
 * for other `bits`. At most `threads` threads look. The calls below do not: what such a number touches is then NaN in their results. */
size_t smm_first_nonfinite(int bits, const void *numbers, size_t n, int threads);

/* Arrays that a call reads; see smm_typed.h for their shapes. */
#define real float
#define SMM_T(name) name##_f32
#include "smm_typed.h"
#undef real
#undef SMM_T
#define real double
#define SMM_T(name) name##_f64
#include "smm_typed.h"
#undef real
#undef SMM_T

#ifdef __cplusplus
}
#endif
#endif
