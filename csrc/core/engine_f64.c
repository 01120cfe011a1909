/* engine_f64.c - the core in double: the templates, and the public calls by name. */
#include "core.h"

typedef double real;
typedef smm_kernels_f64 KERNELS;
#define LOG log
#define ERF erf
#define KERNELS_GET smm_kernels_f64_get

typedef smm_inputs_f64 call_inputs;
typedef smm_outputs_f64 call_outputs;
typedef smm_output_grads_f64 call_output_grads;
typedef smm_gradients_f64 call_grads;

#include "engine_tpl.h"

smm_status smm_forward_f64(const smm_config *config, const smm_dims *dims,
                           const double *const params[SMM_PARAMS], const smm_inputs_f64 *in,
                           const smm_outputs_f64 *out, const smm_run *run, size_t *image) {
    return run_forward(config, dims, params, in, out, run, image);
}

smm_status smm_backward_f64(const smm_config *config, const smm_dims *dims,
                            const double *const params[SMM_PARAMS], const smm_inputs_f64 *in,
                            const double *saved, const smm_output_grads_f64 *d_out,
                            const smm_gradients_f64 *grads, const smm_run *run, size_t *image) {
    const backward_arguments a = {in, saved, d_out, grads};
    return run_backward(config, dims, params, &a, run, image);
}
