/* smm.h - the Slot Mixture Module, Slot Attention, K-Means and Gaussian mixtures, forward and
 * backward, in C99.
 *
 * A module turns the N input vectors of an image into K slots by T steps of a learned clustering.
 * Arrays are row-major and contiguous, float (functions ending in _f32) or double (_f64).
 * Dimensions everywhere:
 *
 *     B images   N inputs of an image   K slots   D slot width (dim)   I input width (input_dim)
 *     H hidden width   P width of queries, keys and values (qkv_dim)   T steps
 *
 * Formulas: Slot Attention is Locatello et al. 2020, Algorithm 1; the Slot Mixture Module is
 * Kirilenko et al. 2024, Algorithm 1 (SMM_SLOT_MIXTURE), or the code its authors released
 * (SMM_SLOT_MIXTURE_REFERENCE). docs/math.md has them all.
 *
 * A call: fill smm_config (smm_config_init, then change fields), smm_dims, and a table of parameter
 * pointers; call smm_forward_f32. For gradients pass a buffer of smm_saved_size() elements to
 * forward and hand it to smm_backward_f32. Every argument is checked before anything is written.
 * Functions keep no state and may run in several threads at once; results do not depend on the
 * number of threads, to the bit. */
#ifndef SMM_H
#define SMM_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SMM_VERSION "0.1.0"

/* Number of the binary interface, and so of the shared library's name. It is raised when a compiled
 * program no longer fits: a struct has other fields, a constant another value, a function other
 * arguments. */
#define SMM_ABI 0

/* Before each function: what the shared library exports. A program that compiles the sources into a
 * library of its own, and exports none of it, defines it as nothing. */
#ifndef SMM_API
#define SMM_API __attribute__((visibility("default")))
#endif

/* The SMM_VERSION of the library that runs. */
SMM_API const char *smm_version(void);

#define SMM_STATUS_LIST(X)                                                          \
    X(SMM_OK, "ok")                                                                 \
    X(SMM_ERR_NULL, "a required pointer is NULL")                                   \
    X(SMM_ERR_DIMS, "a dimension is zero or the sizes overflow")                    \
    X(SMM_ERR_CONFIG, "the configuration has a field out of range")                 \
    X(SMM_ERR_NOMEM, "out of memory")                                               \
    X(SMM_ERR_INDEX, "an index of a starting input is outside the image or masked") \
    X(SMM_ERR_NO_INPUT, "an image has no real input: its mask is all zero")         \
    X(SMM_ERR_NO_SLOT, "an image has no active slot: its slot mask is all zero")    \
    X(SMM_ERR_STOPPED, "the caller has asked the call to stop")

typedef enum {
#define SMM_X(name, text) name,
    SMM_STATUS_LIST(SMM_X)
#undef SMM_X
} smm_status;

/* The text of a status; never NULL. */
SMM_API const char *smm_status_str(smm_status status);

typedef enum {
    SMM_SLOT_ATTENTION,
    SMM_SLOT_MIXTURE,           /* the paper's Algorithm 1 and its options */
    SMM_SLOT_MIXTURE_REFERENCE, /* the released code: T+1 steps, linear responsibilities */
    SMM_KMEANS,                 /* soft K-Means on the inputs themselves: no parameters, I = D */
    SMM_GAUSSIAN_MIXTURE        /* EM for a diagonal Gaussian mixture on the inputs: I = D */
} smm_kind;

typedef enum {
    SMM_GRADIENT_FULL, /* through all T steps */
    /* through the last step only (Chang et al. 2022); the initial state gets zeros */
    SMM_GRADIENT_IMPLICIT,
    /* implicit, and the final state's gradient goes to the initial state unchanged */
    SMM_GRADIENT_STRAIGHT_THROUGH,
    /* implicit, and the gradient of the state before the last step goes to the initial state
     * (Jia et al. 2023) */
    SMM_GRADIENT_BILEVEL
} smm_gradient;

/* What Slot Attention's sum over inputs is divided by (Krimmel et al. 2024). */
typedef enum {
    SMM_UPDATE_MEAN,        /* the slot's weight: a mean */
    SMM_UPDATE_SCALED_MEAN, /* a mean, times update_slots / K */
    SMM_UPDATE_CONSTANT,    /* the number of inputs */
    SMM_UPDATE_SUM          /* nothing */
} smm_update;

/* In which steps the slots have their residual MLP. */
typedef enum {
    SMM_MLP_ALWAYS,
    SMM_MLP_NOT_LAST, /* in all but the last */
    SMM_MLP_NEVER
} smm_slot_mlp;

/* Every option that a configuration holds besides its kind: X(type, name, default, least, most,
 * text).
 *
 * A default of 0 that lies below `least` stands for one that follows from dim: see smm_config_init.
 * "Positive" has DBL_MIN for its least. Which kinds an option concerns is said in its text; the
 * others ignore it. */
#define SMM_OPTION_LIST(X)                                                                       \
    X(size_t, dim, 0, 1, SMM_WIDTH_MOST, "D, width of a slot's mean")                            \
    X(size_t, input_dim, 0, 1, SMM_WIDTH_MOST, "I, width of an input")                           \
    X(size_t, hidden_dim, 128, 1, SMM_WIDTH_MOST,                                                \
      "H, hidden width of both MLPs (2H in the reference variant's output MLP)")                 \
    X(size_t, heads, 1, 1, SMM_WIDTH_MOST,                                                       \
      "Slot Attention: heads, a divisor of P, each with a softmax over slots of its own")        \
    X(size_t, qkv_dim, 0, 1, SMM_WIDTH_MOST,                                                     \
      "Slot Attention: P, width of queries, keys and values, all heads together")                \
    X(int, combine_heads, 0, 0, 1,                                                               \
      "Slot Attention: a linear map from width P to D after the heads")                          \
    X(int, joint_softmax, 0, 0, 1, "Slot Attention: one softmax over all slots of all heads")    \
    X(int, attention_sum, 0, 0, 1,                                                               \
      "Slot Attention: the attention put out is the sum over heads, not their mean")             \
    X(int, update, SMM_UPDATE_MEAN, 0, SMM_UPDATE_SUM, "Slot Attention: one of smm_update")      \
    X(size_t, update_slots, 1, 1, (size_t)1 << 20,                                               \
      "Slot Attention: slots in training, for SMM_UPDATE_SCALED_MEAN")                           \
    X(int, gradient, SMM_GRADIENT_FULL, 0, SMM_GRADIENT_BILEVEL, "one of smm_gradient")          \
    X(int, gru, 1, 0, 1,                                                                         \
      "slots are updated by a GRU; without it the weighted mean is added to the hidden state")   \
    X(int, norm_hidden, 0, 0, 1,                                                                 \
      "the GRU's hidden state is LN(slots) (reference: always; paper: with slot_norm)")          \
    X(int, slot_mlp, SMM_MLP_ALWAYS, 0, SMM_MLP_NEVER, "one of smm_slot_mlp")                    \
    X(int, gelu, 0, 0, 1, "the slots' MLP has a GELU in place of the ReLU")                      \
    X(int, update_masked, 0, 0, 1,                                                               \
      "masked slots, to which no input is assigned, are updated as others; else they stay")      \
    X(int, fair, 0, 0, 1,                                                                        \
      "reference variant: values are the keys, and the prior the mean responsibility, whose "    \
      "gradient SMM_GRADIENT_IMPLICIT takes through all steps")                                  \
    X(int, qkv_bias, 0, 0, 1, "Slot Attention, mixtures: the maps to q, k and v have biases")    \
    X(int, input_mlp, 1, 0, 1, "mixtures: h = MLP(LN(x)); without it h = x")                     \
    X(int, norm_kv, 0, 0, 1, "paper variant: keys and values from LN(h) (reference: always)")    \
    X(int, slot_norm, 0, 0, 1,                                                                   \
      "paper variant: query and log std from LN([mean, log_std]) (reference: always)")           \
    X(int, uniform_prior, 0, 0, 1, "paper variant, Gaussian mixture: the prior stays 1/K")       \
    X(int, reduce, 1, 0, 1,                                                                      \
      "mixtures with parameters: slots are a map of [mean, variance] to width D; else (B,K,2D)") \
    X(int, bfloat16, 0, 0, 1,                                                                    \
      "float modules: products of linear maps, but for a mixture's queries and the output, and " \
      "of their gradients have bfloat16 factors and float sums")                                 \
    X(int, recompute, 0, 0, 1,                                                                   \
      "keys and values are recomputed in every step: memory does not grow with N")               \
    X(double, temperature, 1, DBL_MIN, DBL_MAX,                                                  \
      "paper variant, Gaussian mixture: factor of the log density in the responsibilities")      \
    X(double, scale, 0, DBL_MIN, DBL_MAX,                                                        \
      "factor of the logits (Slot Attention, K-Means) or distances (reference)")                 \
    X(double, eps, 1e-8, 0, DBL_MAX,                                                             \
      "added to the responsibilities before they are normalised over inputs")                    \
    X(int, eps_in_total, 0, 0, 1,                                                                \
      "eps is added to their sum alone; masses of 0 then give a mean of 0")                      \
    X(double, var_floor, 1e-4, 0, DBL_MAX,                                                       \
      "paper variant, Gaussian mixture: added to every variance")                                \
    X(double, norm_eps, 1e-5, DBL_MIN, DBL_MAX, "added to the variance in every LayerNorm")      \
    X(double, tol, 0, 0, DBL_MAX,                                                                \
      "an image whose slots all moved at most this far takes one more step; 0: all T steps")

#define SMM_WIDTH_MOST ((size_t)1 << 24)

/* What a module is. */
typedef struct {
    smm_kind kind;
#define SMM_X(type, name, value, least, most, text) type name;
    SMM_OPTION_LIST(SMM_X)
#undef SMM_X
} smm_config;

/* Fill a configuration with the defaults of the table; I = D = P = dim and scale = D^-1/2. */
SMM_API void smm_config_init(smm_config *config, smm_kind kind, size_t dim);

/* Set one option by name: SMM_OK, SMM_ERR_NULL, or SMM_ERR_CONFIG where there is no such option or
 * its value is out of range. For bindings and files; C programs assign to the fields. */
SMM_API smm_status smm_config_set(smm_config *config, const char *name, double value);

/* Name of option i, or NULL past the last; *text, unless NULL, is what it is. */
SMM_API const char *smm_option_name(size_t i, const char **text);

/* Sizes of one call. */
typedef struct {
    size_t batch;  /* B */
    size_t inputs; /* N */
    size_t slots;  /* K */
    size_t iters;  /* T, at least 1; at most, where config.tol > 0 */
} smm_dims;

/* Every parameter any kind has: name in the tables of pointers, name in files. Linear weights are
 * (out, in); the GRU's three gates r, z, n are stacked as PyTorch's GRUCell does. */
#define SMM_PARAM_LIST(X)                               \
    X(SMM_NORM_INPUT_WEIGHT, "norm_input.weight")       \
    X(SMM_NORM_INPUT_BIAS, "norm_input.bias")           \
    X(SMM_MLP_INPUT_0_WEIGHT, "mlp_input.0.weight")     \
    X(SMM_MLP_INPUT_0_BIAS, "mlp_input.0.bias")         \
    X(SMM_MLP_INPUT_2_WEIGHT, "mlp_input.2.weight")     \
    X(SMM_MLP_INPUT_2_BIAS, "mlp_input.2.bias")         \
    X(SMM_NORM_KV_WEIGHT, "norm_kv.weight")             \
    X(SMM_NORM_KV_BIAS, "norm_kv.bias")                 \
    X(SMM_TO_Q_WEIGHT, "to_q.weight")                   \
    X(SMM_TO_Q_BIAS, "to_q.bias")                       \
    X(SMM_TO_K_WEIGHT, "to_k.weight")                   \
    X(SMM_TO_K_BIAS, "to_k.bias")                       \
    X(SMM_TO_V_WEIGHT, "to_v.weight")                   \
    X(SMM_TO_V_BIAS, "to_v.bias")                       \
    X(SMM_NORM_SLOTS_WEIGHT, "norm_slots.weight")       \
    X(SMM_NORM_SLOTS_BIAS, "norm_slots.bias")           \
    X(SMM_COMBINE_HEADS_WEIGHT, "combine_heads.weight") \
    X(SMM_COMBINE_HEADS_BIAS, "combine_heads.bias")     \
    X(SMM_GRU_WEIGHT_IH, "gru.weight_ih")               \
    X(SMM_GRU_WEIGHT_HH, "gru.weight_hh")               \
    X(SMM_GRU_BIAS_IH, "gru.bias_ih")                   \
    X(SMM_GRU_BIAS_HH, "gru.bias_hh")                   \
    X(SMM_NORM_MLP_WEIGHT, "norm_mlp.weight")           \
    X(SMM_NORM_MLP_BIAS, "norm_mlp.bias")               \
    X(SMM_MLP_0_WEIGHT, "mlp.0.weight")                 \
    X(SMM_MLP_0_BIAS, "mlp.0.bias")                     \
    X(SMM_MLP_2_WEIGHT, "mlp.2.weight")                 \
    X(SMM_MLP_2_BIAS, "mlp.2.bias")                     \
    X(SMM_TO_OUT_WEIGHT, "to_out.weight")               \
    X(SMM_TO_OUT_BIAS, "to_out.bias")                   \
    X(SMM_TO_OUT_0_WEIGHT, "to_out.0.weight")           \
    X(SMM_TO_OUT_0_BIAS, "to_out.0.bias")               \
    X(SMM_TO_OUT_2_WEIGHT, "to_out.2.weight")           \
    X(SMM_TO_OUT_2_BIAS, "to_out.2.bias")

enum {
#define SMM_X(name, text) name,
    SMM_PARAM_LIST(SMM_X)
#undef SMM_X
        SMM_PARAMS /* how many there are */
};

/* Name of parameter i < SMM_PARAMS in files, for example "to_q.weight". */
SMM_API const char *smm_param_name(size_t i);

/* Shape of parameter i under a valid configuration: returns its rank (1 or 2) and fills
 * shape[0..rank-1], or returns 0 where this module has no such parameter (its pointer is then
 * ignored). */
SMM_API int smm_param_shape(const smm_config *config, size_t i, size_t shape[2]);

/* Width of a slot in the output: D, or 2D for [mean, variance]. */
SMM_API size_t smm_slot_width(const smm_config *config);

/* SMM_OK, or what is wrong with a configuration. */
SMM_API smm_status smm_config_check(const smm_config *config);

/* Elements of the saved state, which forward fills for backward; 0 if the arguments are invalid. At
 * a multiple of SMM_SAVED_ALIGN bytes it is worked on in place; elsewhere it is copied. */
#define SMM_SAVED_ALIGN 64
SMM_API size_t smm_saved_size(const smm_config *config, const smm_dims *dims);

/* The rule of smm_saved_size, for callers to whom B and N are symbols, as in graphs of dynamic
 * shapes:
 *
 *     layers = (N + inputs - 1) / inputs * block
 *     size = B * (image + (B * layers <= (layers <= small ? most_of_small : most) ? layers : 0))
 *
 * An image's states take `image` elements. Its layers, from which backward need not recompute, are
 * those of the inputs' MLP and the keys; `block` is 0 where none are saved (no MLP, or
 * config.recompute). All are 0 if the arguments are invalid. */
typedef struct {
    size_t image, block, inputs, small, most_of_small, most;
} smm_saved_rule;
SMM_API smm_saved_rule smm_saved_rule_of(const smm_config *config, size_t slots, size_t iters);

/* Memory of `bytes` bytes, not cleared, aligned to SMM_SAVED_ALIGN; NULL if there is none. Any
 * thread may call these functions.
 *
 * Fresh pages can take as long as the work in them, so smm_free caches the SMM_CACHED largest
 * blocks of at most SMM_CACHED_MOST bytes for later calls of the library, whose scratch memory
 * comes from here too. smm_trim gives cached blocks back to the system and returns their bytes. */
#define SMM_CACHED 6
#define SMM_CACHED_MOST ((size_t)256 << 20)
SMM_API void *smm_alloc(size_t bytes);
SMM_API void smm_free(void *memory); /* NULL: nothing to free */
SMM_API size_t smm_trim(void);

/* The set of vector instructions in use ("scalar", "avx2", "avx512", "neon"): the best that runs
 * here, or the one that the environment variable SMM_SIMD names at the first call. */
SMM_API const char *smm_simd(void);

/* Choose a set by name: 0, or -1 if it is unknown or not supported here. Not while another thread
 * computes. */
SMM_API int smm_simd_set(const char *name);

/* Name of the i-th set built, weakest first, or NULL past the last; whether it runs here. */
SMM_API const char *smm_simd_list(size_t i, int *supported);

/* Whether the library was built with OpenMP. */
SMM_API int smm_openmp(void);

/* Index of the first infinity or NaN among n numbers of `bits` bits (16: bfloat16; 32: float; 64:
 * double), or n; (size_t)-1 for other `bits`. At most `threads` threads look. The calls below do
 * not: what such a number touches is then NaN in their results. */
SMM_API size_t smm_first_nonfinite(int bits, const void *numbers, size_t n, int threads);

/* What a call reads. The initial state is mean (or indices), and for mixtures log_std and prior. */
typedef struct {
    const float *x;           /* (B,N,I) */
    const float *mean;        /* (B,K,D) slots or means; NULL where `indices` is given */
    const float *log_std;     /* (B,K,D) log standard deviations; mixtures only */
    const float *prior;       /* (B,K) mixtures, at least 0; NULL: uniform over the active slots */
    const int64_t *indices;   /* (B,K) or NULL: see smm_forward_f32 */
    const uint8_t *mask;      /* (B,N) or NULL: nonzero where the input is real */
    const uint8_t *slot_mask; /* (B,K) or NULL: nonzero where the slot is active */
    const uint16_t *x_bfloat16; /* (B,N,I) in place of x, or NULL: upper halves of floats */
    const float
        *var_floor; /* (B,D) or NULL: of each image, beside config.var_floor; Gaussian mixture */
} smm_inputs_f32;

/* What forward writes; every pointer but slots may be NULL. */
typedef struct {
    float *slots;          /* (B,K,W), W = smm_slot_width */
    float *mean;           /* (B,K,D) mixtures: the last means */
    float *variance;       /* (B,K,D) mixtures */
    float *prior;          /* (B,K) mixtures */
    float *log_likelihood; /* (B) see below; mixtures but the reference */
    float *attention; /* (B,N,K) responsibilities of the last step; masked inputs have theirs too */
    float *saved;     /* smm_saved_size elements, for backward */
    int64_t *iterations; /* (B) steps done: T, or fewer with config.tol */
    float *
        state_mean; /* (B,K,D) the state that a further call goes on from, as smm_inputs takes it */
    float *state_log_std;       /* (B,K,D) mixtures */
    float *state_prior;         /* (B,K) mixtures */
    float *step_log_likelihood; /* (B,T) of every step: see smm_forward_f32 */
    float *step_prior;          /* (B,T,K) */
    float *step_movement;       /* (B,T) */
} smm_outputs_f32;

/* Gradients of the outputs, shaped as they are; each may be NULL, at least one is given. */
typedef struct {
    const float *slots, *mean, *variance, *prior, *log_likelihood,
        *attention; /* masked inputs get nothing from that of attention */
} smm_output_grads_f32;

/* What backward writes (it overwrites); each may be NULL. */
typedef struct {
    float *x;       /* (B,N,I) */
    float *mean;    /* (B,K,D) of the initial slots or means; zeros where they started at inputs */
    float *log_std; /* (B,K,D) of the initial log standard deviations */
    float *prior;   /* (B,K) of the initial prior */
    float *params[SMM_PARAMS]; /* shapes of the parameters */
} smm_gradients_f32;

/* How a call runs. */
typedef struct {
    int threads;         /* at most so many; 0 and 1 mean one */
    int (*stop)(void *); /* NULL, or asked by the calling thread now and then; nonzero: stop */
    void *stop_argument;
} smm_run;

/* Run T steps.
 *   params   a pointer for each parameter that smm_param_shape gives a rank; others are ignored.
 *            May be NULL for clustering
 *   in       the inputs and the initial state. With `indices`, slot k of image b starts at row
 *            indices[b,k] of h (Slot Attention: of v; clustering: of x), taken as a constant
 *   out      the outputs
 *   run      NULL: one thread, never stopped
 *   image    unless NULL: set to the index of the image that caused an error
 *
 * log_likelihood is sum_n log sum_k prior_k N_k at the last E step. An image's movement in a step
 * is the largest, over its active slots, of the root mean square over channels of the change of the
 * mean (Slot Attention: of the slot). step_log_likelihood, step_prior and step_movement hold every
 * step's; after the last of an image that stopped early (config.tol) the former two repeat, and it
 * does not move. The reference variant has no likelihood, and its extra step is left out.
 *
 * A NaN in an image stays in that image's outputs. With B = 0 nothing is done. Masks and indices
 * are copied before they are checked. Where the call is stopped, the status is SMM_ERR_STOPPED and
 * what `out` holds is of no use. */
SMM_API smm_status smm_forward_f32(const smm_config *config, const smm_dims *dims,
                                   const float *const params[SMM_PARAMS], const smm_inputs_f32 *in,
                                   const smm_outputs_f32 *out, const smm_run *run, size_t *image);

/* Gradients of the sum of outputs times d_out, with the arguments that forward had.
 *   saved    what forward wrote
 *   grads    the gradients; those of the initial state are zeros with SMM_GRADIENT_IMPLICIT. With
 *            B = 0, those of the parameters are zeros */
SMM_API smm_status smm_backward_f32(const smm_config *config, const smm_dims *dims,
                                    const float *const params[SMM_PARAMS], const smm_inputs_f32 *in,
                                    const float *saved, const smm_output_grads_f32 *d_out,
                                    const smm_gradients_f32 *grads, const smm_run *run,
                                    size_t *image);

/* The same in double. */
typedef struct {
    const double *x;
    const double *mean;
    const double *log_std;
    const double *prior;
    const int64_t *indices;
    const uint8_t *mask;
    const uint8_t *slot_mask;
    const uint16_t *x_bfloat16;
    const double *var_floor;
} smm_inputs_f64;

typedef struct {
    double *slots;
    double *mean;
    double *variance;
    double *prior;
    double *log_likelihood;
    double *attention;
    double *saved;
    int64_t *iterations;
    double *state_mean;
    double *state_log_std;
    double *state_prior;
    double *step_log_likelihood;
    double *step_prior;
    double *step_movement;
} smm_outputs_f64;

typedef struct {
    const double *slots, *mean, *variance, *prior, *log_likelihood, *attention;
} smm_output_grads_f64;

typedef struct {
    double *x;
    double *mean;
    double *log_std;
    double *prior;
    double *params[SMM_PARAMS];
} smm_gradients_f64;

SMM_API smm_status smm_forward_f64(const smm_config *config, const smm_dims *dims,
                                   const double *const params[SMM_PARAMS], const smm_inputs_f64 *in,
                                   const smm_outputs_f64 *out, const smm_run *run, size_t *image);

SMM_API smm_status smm_backward_f64(const smm_config *config, const smm_dims *dims,
                                    const double *const params[SMM_PARAMS],
                                    const smm_inputs_f64 *in, const double *saved,
                                    const smm_output_grads_f64 *d_out,
                                    const smm_gradients_f64 *grads, const smm_run *run,
                                    size_t *image);

#ifdef __cplusplus
}
#endif
#endif
