/* cluster.c - smm.h from plain C: fit a Gaussian mixture to points of three clusters, then run a
 * slot mixture forward and backward. */
#include <stdio.h>
#include <stdlib.h>

#include "smm.h"

enum { N = 300, K = 3, D = 2 };

static double uniform(void) { return rand() / (RAND_MAX + 1.0) - 0.5; }

static int fit_mixture(const double *points) {
    static const int64_t starts[K] = {0, 1, 2}; /* one point of each cluster */
    static const double log_std[K * D];         /* all zero: standard deviation 1 */
    double slots[K * 2 * D], prior[K], log_likelihood[1];
    smm_config config;
    smm_config_init(&config, SMM_GAUSSIAN_MIXTURE, D);
    const smm_dims dims = {1, N, K, 20};
    const smm_inputs_f64 in = {.x = points, .log_std = log_std, .indices = starts};
    const smm_outputs_f64 out = {.slots = slots, .prior = prior, .log_likelihood = log_likelihood};
    const smm_status status = smm_forward_f64(&config, &dims, NULL, &in, &out, NULL, NULL);
    if (status != SMM_OK) {
        fprintf(stderr, "%s\n", smm_status_str(status));
        return 1;
    }
    for (int k = 0; k < K; k++)
        printf("cluster at (%5.2f, %5.2f), variance (%.3f, %.3f), share %.2f\n", slots[4 * k],
               slots[4 * k + 1], slots[4 * k + 2], slots[4 * k + 3], prior[k]);
    printf("log likelihood %.1f\n", *log_likelihood);
    return 0;
}

/* A slot mixture with random weights, and the gradient of the sum of its slots. */
static int differentiate(const double *points) {
    smm_config config;
    smm_config_init(&config, SMM_SLOT_MIXTURE, 8);
    config.input_dim = D;
    const smm_dims dims = {1, N, K, 3};
    const double *params[SMM_PARAMS] = {NULL};
    size_t shape[2];
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const int rank = smm_param_shape(&config, i, shape);
        const size_t size = rank == 2 ? shape[0] * shape[1] : shape[0];
        double *p = rank ? malloc(size * sizeof *p) : NULL;
        for (size_t j = 0; rank && j < size; j++) p[j] = uniform();
        params[i] = p;
    }
    double mean[K * 8], log_std[K * 8] = {0}, slots[K * 8], d_slots[K * 8],
                                    *dx = malloc(N * D * sizeof *dx);
    double *saved = malloc(smm_saved_size(&config, &dims) * sizeof *saved);
    for (int i = 0; i < K * 8; i++) mean[i] = uniform(), d_slots[i] = 1;
    const smm_inputs_f64 in = {.x = points, .mean = mean, .log_std = log_std};
    const smm_outputs_f64 out = {.slots = slots, .saved = saved};
    const smm_output_grads_f64 d_out = {.slots = d_slots};
    const smm_gradients_f64 grads = {.x = dx};
    smm_status status = smm_forward_f64(&config, &dims, params, &in, &out, NULL, NULL);
    if (status == SMM_OK)
        status = smm_backward_f64(&config, &dims, params, &in, saved, &d_out, &grads, NULL, NULL);
    printf("slot mixture: %s; first slot starts with %.3f, its gradient at the first point is "
           "(%.3f, %.3f)\n",
           smm_status_str(status), slots[0], dx[0], dx[1]);
    for (size_t i = 0; i < SMM_PARAMS; i++) free((void *)params[i]);
    free(dx), free(saved);
    return status != SMM_OK;
}

int main(void) {
    static const double centres[K][D] = {{-3, 0}, {0, 3}, {3, 0}};
    double points[N * D];
    for (int i = 0; i < N; i++)
        for (int d = 0; d < D; d++) points[i * D + d] = centres[i % K][d] + uniform();
    return fit_mixture(points) || differentiate(points);
}
