/* test_core.c - the public functions from plain C: gradients against central differences in double,
 * the same bits on any number of threads, errors that write nothing. `test_core quick` runs the
 * small cases alone, for valgrind. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

static unsigned long long state = 1234567;
static double uniform(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(state >> 11) / 4503599627370496.0 - 1;
}

static double *numbers(size_t count, double scale) {
    double *p = malloc((count ? count : 1) * sizeof *p);
    if (!p) exit(2);
    for (size_t i = 0; i < count; i++) p[i] = scale != 0 ? scale * uniform() : 0;
    return p;
}

typedef struct {
    smm_config config;
    smm_dims dims;
    double *params[SMM_PARAMS], *x, *mean, *log_std, *d_slots;
    size_t sizes[SMM_PARAMS], x_size, state_size, slots_size;
} problem;

static problem make_problem(smm_kind kind, int option, size_t B, size_t N, size_t K) {
    problem p;
    memset(&p, 0, sizeof p);
    state = 1234567; /* the same numbers for every instruction set, whatever was drawn before */
    const int vanilla = kind == SMM_KMEANS || kind == SMM_GAUSSIAN_MIXTURE;
    smm_config_init(&p.config, kind, 6);
    p.config.hidden_dim = 7;
    p.config.input_dim = vanilla ? 6 : 5;
    if (kind == SMM_SLOT_ATTENTION && option) p.config.heads = 2, p.config.qkv_bias = 1;
    if (kind == SMM_SLOT_MIXTURE && option)
        p.config.norm_kv = p.config.slot_norm = p.config.uniform_prior = 1,
        p.config.temperature = 0.4;
    p.dims.batch = B, p.dims.inputs = N, p.dims.slots = K, p.dims.iters = 2;
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        size_t shape[2] = {0, 1};
        const int rank = smm_param_shape(&p.config, i, shape);
        p.sizes[i] = rank ? shape[0] * (rank == 2 ? shape[1] : 1) : 0;
        p.params[i] = rank ? numbers(p.sizes[i], 0.5) : NULL;
    }
    p.x_size = B * N * p.config.input_dim, p.state_size = B * K * p.config.dim,
    p.slots_size = B * K * smm_slot_width(&p.config);
    p.x = numbers(p.x_size, 1), p.mean = numbers(p.state_size, 1),
    p.log_std = numbers(p.state_size, 0.3);
    p.d_slots = numbers(p.slots_size, 1);
    return p;
}

static void free_problem(problem *p) {
    for (size_t i = 0; i < SMM_PARAMS; i++) free(p->params[i]);
    free(p->x), free(p->mean), free(p->log_std), free(p->d_slots);
}

static int failures;
#define EXPECT(condition, ...)                  \
    do {                                        \
        if (!(condition)) {                     \
            failures++;                         \
            printf("FAIL line %d: ", __LINE__); \
            printf(__VA_ARGS__);                \
            printf("\n");                       \
        }                                       \
    } while (0)

static smm_status run(const problem *p, double *slots, double *saved, int threads) {
    const smm_inputs_f64 in = {.x = p->x, .mean = p->mean, .log_std = p->log_std};
    const smm_outputs_f64 out = {slots, NULL, NULL, NULL, NULL, NULL, saved, NULL};
    return smm_forward_f64(&p->config, &p->dims, (const double *const *)p->params, &in, &out,
                           threads, NULL);
}

static double loss(const problem *p) {
    double *slots = numbers(p->slots_size, 0), sum = 0;
    EXPECT(run(p, slots, NULL, 1) == SMM_OK, "forward");
    for (size_t i = 0; i < p->slots_size; i++) sum += slots[i] * p->d_slots[i];
    free(slots);
    return sum;
}

/* All gradients side by side: x, mean, log_std, parameters. */
static double *gradients(const problem *p, int threads, size_t *count) {
    size_t total = p->x_size + 2 * p->state_size;
    for (size_t i = 0; i < SMM_PARAMS; i++) total += p->sizes[i];
    double *g = numbers(total, 0), *slots = numbers(p->slots_size, 0);
    double *saved = numbers(smm_saved_size(&p->config, &p->dims), 0);
    const smm_inputs_f64 in = {.x = p->x, .mean = p->mean, .log_std = p->log_std};
    smm_gradients_f64 to = {g, g + p->x_size, g + p->x_size + p->state_size, {NULL}};
    double *at = g + p->x_size + 2 * p->state_size;
    for (size_t i = 0; i < SMM_PARAMS; at += p->sizes[i++]) to.params[i] = p->sizes[i] ? at : NULL;
    EXPECT(run(p, slots, saved, threads) == SMM_OK, "forward");
    EXPECT(smm_backward_f64(&p->config, &p->dims, (const double *const *)p->params, &in, saved,
                            p->d_slots, NULL, &to, threads, NULL) == SMM_OK,
           "backward");
    free(slots), free(saved);
    *count = total;
    return g;
}

static void check_differences(const problem *p, const char *what) {
    size_t count;
    double *g = gradients(p, 1, &count), *grad = g, scale = 0;
    double *arrays[3 + SMM_PARAMS] = {p->x, p->mean, p->log_std};
    size_t sizes[3 + SMM_PARAMS] = {p->x_size, p->state_size, p->state_size};
    const int mixture = p->config.kind != SMM_SLOT_ATTENTION && p->config.kind != SMM_KMEANS;
    memcpy(arrays + 3, p->params, sizeof p->params), memcpy(sizes + 3, p->sizes, sizeof p->sizes);
    for (size_t i = 0; i < count; i++) scale = fmax(scale, fabs(g[i]));
    for (size_t a = 0; a < 3 + SMM_PARAMS; grad += sizes[a++])
        for (size_t i = 0; i < sizes[a] && (a != 2 || mixture); i += 1 + sizes[a] / 12) {
            const double
                kept = arrays[a][i],
                h = 1e-5; /* of fourth order; small, as a ReLU may change sides within 2 h */
            double difference = 0;
            for (int step = -2; step <= 2; step++) {
                static const double weight[] = {1, -8, 0, 8, -1};
                arrays[a][i] = kept + step * h;
                difference += step ? weight[step + 2] / 12 * loss(p) : 0;
            }
            arrays[a][i] = kept;
            const double error = fabs(difference / h - grad[i]) / scale;
            EXPECT(error < 1e-8, "%s: array %zu element %zu: error %g", what, a, i, error);
        }
    free(g);
}

static void check_threads(const problem *p, const char *what) {
    size_t count;
    double *one = gradients(p, 1, &count);
    for (int threads = 2; threads <= 5; threads++) {
        double *more = gradients(p, threads, &count);
        const int mixture = p->config.kind != SMM_SLOT_ATTENTION && p->config.kind != SMM_KMEANS;
        if (!mixture)
            memcpy(more + p->x_size + p->state_size, one + p->x_size + p->state_size,
                   p->state_size * sizeof *one);
        EXPECT(!memcmp(one, more, count * sizeof *one), "%s: %d threads give other bits", what,
               threads);
        free(more);
    }
    free(one);
}

/* Whatever the buffer held before, also where a tolerance leaves steps out. */
static void check_saved(problem *p, const char *what) {
    p->dims.iters = 4, p->config.tol = 100, p->config.gradient = SMM_GRADIENT_FULL;
    const size_t size = smm_saved_size(&p->config, &p->dims);
    double *slots = numbers(p->slots_size, 0), *one = numbers(size, 0), *other = numbers(size, 0);
    memset(other, 0x55, size * sizeof *other);
    EXPECT(run(p, slots, one, 1) == SMM_OK && run(p, slots, other, 2) == SMM_OK, "forward");
    EXPECT(!memcmp(one, other, size * sizeof *one),
           "%s: what is saved depends on what the buffer held", what);
    free(slots), free(one), free(other);
}

static void check_errors(void) {
    problem p = make_problem(SMM_SLOT_MIXTURE, 0, 1, 3, 2);
    double slots[12] = {7, 7};
    const int64_t indices[2] = {0, 3};
    const uint8_t none[3] = {0, 0, 0};
    size_t image = 99;
    smm_inputs_f64 in = {.x = p.x, .log_std = p.log_std, .indices = indices};
    const smm_outputs_f64 out = {slots, NULL, NULL, NULL, NULL, NULL, NULL, NULL};
    const double *const *params = (const double *const *)p.params;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, 1, &image) == SMM_ERR_INDEX &&
               image == 0,
           "index");
    in.indices = NULL;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, 1, NULL) == SMM_ERR_NULL,
           "no start");
    in.mean = p.mean, in.mask = none;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, 1, NULL) == SMM_ERR_NO_INPUT,
           "no input");
    in.mask = NULL, in.slot_mask = none;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, 1, NULL) == SMM_ERR_NO_SLOT,
           "no slot");
    in.slot_mask = NULL, p.dims.iters = 0;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, 1, NULL) == SMM_ERR_DIMS,
           "no step");
    p.dims.iters = 1, p.dims.inputs = (size_t)-1 / 64;
    EXPECT(smm_saved_size(&p.config, &p.dims) == 0, "sizes overflow");
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, 1, NULL) == SMM_ERR_DIMS,
           "sizes overflow");
    for (size_t few = 0; few < 70; few++) { /* sums of sizes that wrap round */
        p.dims.inputs = (size_t)-1 - few;
        EXPECT(smm_saved_size(&p.config, &p.dims) == 0, "inputs wrap");
    }
    p.dims.inputs = 3, p.dims.iters = (size_t)-1,
    p.config.kind = SMM_SLOT_MIXTURE_REFERENCE; /* which adds a step */
    EXPECT(smm_saved_size(&p.config, &p.dims) == 0, "steps wrap");
    p.dims.iters = 1, p.config.kind = SMM_SLOT_MIXTURE, p.config.reduce = 2;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, 1, NULL) == SMM_ERR_CONFIG,
           "a flag that is neither 0 nor 1");
    EXPECT(slots[0] == 7 && slots[1] == 7, "something was written");
    EXPECT(!strcmp(smm_status_str(SMM_OK), "ok") && smm_status_str((smm_status)99) != NULL,
           "status text");
    free_problem(&p);
}

static void check_finite(void) {
    double x[3] = {1, 2, NAN};
    EXPECT(smm_first_nonfinite(64, x, 3, 2) == 2 && smm_first_nonfinite(64, x, 2, 2) == 2,
           "the first NaN");
    EXPECT(smm_first_nonfinite(0, x, 3, 2) == (size_t)-1 &&
               smm_first_nonfinite(80, x, 3, 1) == (size_t)-1,
           "no such numbers");
}

/* Two blocks are cached for later calls: the largest that are not too large. Two blocks in use are
 * never the same. */
static void check_memory(void) {
    char *small = smm_alloc(5000), *middle = smm_alloc(3000000), *large = smm_alloc(9000000),
         *again;
    EXPECT(small && middle && large && small != middle && middle != large,
           "two users share a block");
    EXPECT((uintptr_t)small % SMM_SAVED_ALIGN == 0 && (uintptr_t)middle % SMM_SAVED_ALIGN == 0,
           "alignment");
    memset(small, 1, 5000), memset(middle, 1, 3000000), memset(large, 1, 9000000);
    smm_free(large), smm_free(small), smm_free(middle);
    again = smm_alloc(2000000);
    EXPECT(again == middle, "not the smallest block that is large enough");
    EXPECT(smm_alloc(8000000) == large, "the larger block is not kept");
    memset(again, 1, 2000000), memset(large, 1, 8000000);
    smm_free(again), smm_free(large), smm_free(NULL);
    large = smm_alloc(SMM_CACHED_MOST + 1);
    EXPECT(large, "a block too large to keep");
    large[SMM_CACHED_MOST] = 1;
    smm_free(large);
    again = smm_alloc(2000000);
    EXPECT(again == middle, "the blocks before it are not kept");
    smm_free(again);
    EXPECT(!smm_alloc((size_t)-1 - 100), "more than there is");
}

int main(int argc, char **argv) {
    const int quick = argc > 1 && !strcmp(argv[1], "quick");
    static const char *const names[] = {"slot attention", "slot mixture", "reference", "k-means",
                                        "gaussian mixture"};
    for (int kind = 0; kind <= SMM_GAUSSIAN_MIXTURE; kind++)
        for (int option = 0; option < 2; option++) {
            problem p = make_problem((smm_kind)kind, option, 2, quick ? 5 : 67, 3);
            check_differences(&p, names[kind]);
            check_threads(&p, names[kind]);
            check_saved(&p, names[kind]);
            free_problem(&p);
            if (quick) continue;
            p = make_problem((smm_kind)kind, option, 1, 1500, 3);
            check_threads(&p, names[kind]);
            free_problem(&p);
            p = make_problem((smm_kind)kind, option, 9, 130, 5);
            check_threads(&p, names[kind]);
            free_problem(&p);
        }
    check_errors();
    check_memory();
    check_finite();
    printf("%s\n", failures ? "FAILED" : "core ok");
    return failures != 0;
}
