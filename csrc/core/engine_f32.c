/* engine_f32.c - the core in float: the templates, and the public calls by name. */
#include "core.h"

typedef float real;
typedef smm_kernels_f32 KERNELS;
#define LOG logf
#define ERF erff
#define KERNELS_GET smm_kernels_f32_get

typedef smm_inputs_f32 call_inputs;
typedef smm_outputs_f32 call_outputs;
typedef smm_output_grads_f32 call_output_grads;
typedef smm_gradients_f32 call_grads;

#include "engine_tpl.h"

smm_status smm_forward_f32(const smm_config *config, const smm_dims *dims,
                           const float *const params[SMM_PARAMS], const smm_inputs_f32 *in,
                           const smm_outputs_f32 *out, const smm_run *run, size_t *image) {
    return run_forward(config, dims, params, in, out, run, image);
}

smm_status smm_backward_f32(const smm_config *config, const smm_dims *dims,
                            const float *const params[SMM_PARAMS], const smm_inputs_f32 *in,
                            const float *saved, const smm_output_grads_f32 *d_out,
                            const smm_gradients_f32 *grads, const smm_run *run, size_t *image) {
    const backward_arguments a = {in, saved, d_out, grads};
    return run_backward(config, dims, params, &a, run, image);
}
