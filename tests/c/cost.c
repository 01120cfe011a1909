/* cost.c - a forward and a backward call of every kind of module in float32, for cost.py. */
#include <stdio.h>
#include <stdlib.h>

#include "smm.h"

#if defined(__clang__)
#define COMPILER "clang"
#define MAJOR __clang_major__
#else
#define COMPILER "gcc"
#define MAJOR __GNUC__
#endif

static unsigned long long state = 1234567;
static float *numbers(size_t count, float scale) {
    float *p = malloc(count * sizeof *p);
    if (!p) exit(2);
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        p[i] = scale * ((float)(state >> 40) / 8388608.f - 1);
    }
    return p;
}

static void run(smm_kind kind) {
    smm_config config;
    const smm_dims dims = {1, 300, 10, 2};
    const size_t D = 64, rows = dims.inputs * D, slots = dims.slots * D;
    smm_config_init(&config, kind, D);
    config.temperature = 0.125;
    float *params[SMM_PARAMS] = {NULL};
    smm_gradients_f32 grads = {
        .x = numbers(rows, 0), .mean = numbers(slots, 0), .log_std = numbers(slots, 0)};
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        size_t shape[2] = {0, 1};
        const int rank = smm_param_shape(&config, i, shape);
        if (!rank) continue;
        const size_t count = shape[0] * (rank == 2 ? shape[1] : 1);
        params[i] = numbers(count, 0.2f), grads.params[i] = numbers(count, 0);
    }
    float *mean = numbers(slots, 1), *log_std = numbers(slots, 0.3f),
          *saved = numbers(smm_saved_size(&config, &dims), 0);
    float *out = numbers(dims.slots * smm_slot_width(&config), 0),
          *d_slots = numbers(dims.slots * smm_slot_width(&config), 1);
    const smm_inputs_f32 in = {.x = numbers(rows, 1), .mean = mean, .log_std = log_std};
    const smm_outputs_f32 to = {.slots = out, .saved = saved};
    const smm_output_grads_f32 d = {.slots = d_slots};
    const float *const *const weights = (const float *const *)params;
    if (smm_forward_f32(&config, &dims, weights, &in, &to, NULL, NULL) != SMM_OK ||
        smm_backward_f32(&config, &dims, weights, &in, saved, &d, &grads, NULL, NULL) != SMM_OK)
        exit(1);
    for (size_t i = 0; i < SMM_PARAMS; i++) free(params[i]), free(grads.params[i]);
    free(mean), free(log_std), free(saved), free(out), free(d_slots), free((void *)(size_t)in.x);
    free(grads.x), free(grads.mean), free(grads.log_std);
}

int main(void) {
    printf("%s %d %s\n", COMPILER, MAJOR, smm_simd());
    for (int kind = 0; kind <= SMM_GAUSSIAN_MIXTURE; kind++) run((smm_kind)kind);
    return 0;
}
