/* smm_typed.h - the part of the interface that depends on the precision. Included by smm.h alone, once for float and once for
 * double, with `real` and SMM_T (which adds _f32 or _f64 to a name) defined. */

/* What a call reads. */
typedef struct {
    const real *x;       /* (B,N,I) */
    const real *mean;    /* (B,K,D) initial slots or means; NULL where `indices` is given */
    const real *log_std; /* (B,K,D) initial log standard deviations; mixtures only */
    const int64_t *
        indices; /* (B,K) or NULL: means start at these rows of h (Slot Attention: of v; clustering: of x), as constants */
    const uint8_t *mask;      /* (B,N) or NULL: nonzero where the input is real */
    const uint8_t *slot_mask; /* (B,K) or NULL: nonzero where the slot is active */
    const uint16_t *
        x_bfloat16; /* (B,N,I) in place of x: bfloat16 (the upper half of a float), read as reals; or NULL */
} SMM_T(smm_inputs);

/* What forward writes; every pointer but slots may be NULL. */
typedef struct {
    real *slots;    /* (B,K,W), W = smm_slot_width */
    real *mean;     /* (B,K,D) mixtures: the last means */
    real *variance; /* (B,K,D) mixtures */
    real *prior;    /* (B,K) mixtures */
    real *
        log_likelihood; /* (B) paper variant and Gaussian mixture: sum_n log sum_k prior_k N_k at the last E step */
    real *
        attention; /* (B,N,K) the last step's responsibilities, of masked inputs too; mean over heads */
    real *saved; /* smm_saved_size elements, for backward */
    int64_t *
        iterations; /* (B) steps done: T, or fewer with config.tol, where an image's movement in a step is the largest, over its
                             active slots, of the root mean square over channels of the change of the mean (Slot Attention: slot) */
} SMM_T(smm_outputs);

/* What backward writes (it overwrites; it does not accumulate); each may be NULL. */
typedef struct {
    real *x;                  /* (B,N,I) */
    real *mean;               /* (B,K,D) gradient of the initial slots or means */
    real *log_std;            /* (B,K,D) */
    real *params[SMM_PARAMS]; /* shapes of the parameters */
} SMM_T(smm_gradients);

/* Run T steps. On an error that one image caused, *image (if not NULL) is its index.
 * threads: at most so many; 0 and 1 mean one. A NaN in an image stays in that image's outputs. */
smm_status SMM_T(smm_forward)(const smm_config *config, const smm_dims *dims,
                              const real *const params[SMM_PARAMS], const SMM_T(smm_inputs) * in,
                              const SMM_T(smm_outputs) * out, int threads, size_t *image);

/* Gradients of sum(slots * d_slots) + sum(attention * d_attention), with the arguments that forward had.
 *   saved        what forward wrote
 *   d_slots      (B,K,W)
 *   d_attention  (B,N,K) or NULL; masked inputs get no gradient from it
 * Without straight-through or full gradients, grads->mean gets zeros. */
smm_status SMM_T(smm_backward)(const smm_config *config, const smm_dims *dims,
                               const real *const params[SMM_PARAMS], const SMM_T(smm_inputs) * in,
                               const real *saved, const real *d_slots, const real *d_attention,
                               const SMM_T(smm_gradients) * grads, int threads, size_t *image);
