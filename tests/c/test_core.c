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
    double *params[SMM_PARAMS], *x, *mean, *log_std, *prior;
    smm_output_grads_f64 d;
    size_t sizes[SMM_PARAMS], x_size, state_size, slots_size, prior_size, attention_size;
} problem;

static int is_mixture(const problem *p) {
    return p->config.kind != SMM_SLOT_ATTENTION && p->config.kind != SMM_KMEANS;
}
static int has_likelihood(const problem *p) {
    return is_mixture(p) && p->config.kind != SMM_SLOT_MIXTURE_REFERENCE;
}

/* Sets of options, by kind. */
static const int option_sets[] = {[SMM_SLOT_ATTENTION] = 5,
                                  [SMM_SLOT_MIXTURE] = 3,
                                  [SMM_SLOT_MIXTURE_REFERENCE] = 3,
                                  [SMM_KMEANS] = 1,
                                  [SMM_GAUSSIAN_MIXTURE] = 2};

static void attention_options(smm_config *c, int option) {
    if (option == 1) c->heads = 2, c->qkv_bias = 1;
    if (option == 2) /* heads with rows of their own: W_k and W_v are applied to slots */
        c->heads = 2, c->qkv_dim = 24, c->qkv_bias = c->combine_heads = 1,
        c->joint_softmax = c->attention_sum = c->gelu = 1;
    if (option == 3) /* heads that are blocks of channels */
        c->heads = 3, c->qkv_dim = 9, c->combine_heads = c->norm_hidden = 1,
        c->update = SMM_UPDATE_CONSTANT, c->slot_mlp = SMM_MLP_NOT_LAST;
    if (option == 4)
        c->heads = 2, c->gru = 0, c->update = SMM_UPDATE_SCALED_MEAN, c->update_slots = 5,
        c->eps_in_total = 1, c->eps = 0.5, c->slot_mlp = SMM_MLP_NEVER;
}

static problem make_problem(smm_kind kind, int option, size_t B, size_t N, size_t K) {
    problem p;
    memset(&p, 0, sizeof p);
    state = 1234567; /* the same numbers for every instruction set, whatever was drawn before */
    const int vanilla = kind == SMM_KMEANS || kind == SMM_GAUSSIAN_MIXTURE;
    smm_config_init(&p.config, kind, 6);
    p.config.hidden_dim = 7;
    p.config.input_dim = vanilla ? 6 : 5;
    if (kind == SMM_SLOT_ATTENTION) attention_options(&p.config, option);
    if (kind == SMM_SLOT_MIXTURE && option)
        p.config.norm_kv = p.config.slot_norm = p.config.uniform_prior = 1,
        p.config.temperature = 0.4;
    if (kind == SMM_SLOT_MIXTURE && option == 2)
        p.config.gru = 0, p.config.norm_hidden = p.config.gelu = 1,
        p.config.slot_mlp = SMM_MLP_NOT_LAST;
    if (kind == SMM_SLOT_MIXTURE_REFERENCE && option) p.config.eps = 0.05;
    if (kind == SMM_SLOT_MIXTURE_REFERENCE && option == 2) p.config.fair = 1;
    if (kind == SMM_GAUSSIAN_MIXTURE && option) p.config.temperature = 0.4;
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
    p.prior_size = B * K, p.attention_size = B * N * K;
    p.prior = numbers(p.prior_size, 0.3);
    for (size_t i = 0; i < p.prior_size; i++) p.prior[i] += 0.5;
    p.d.slots = numbers(p.slots_size, 1), p.d.attention = numbers(p.attention_size, 1);
    if (is_mixture(&p))
        p.d.mean = numbers(p.state_size, 1), p.d.variance = numbers(p.state_size, 1),
        p.d.prior = numbers(p.prior_size, 1);
    if (has_likelihood(&p)) p.d.log_likelihood = numbers(B, 0.1);
    return p;
}

static void free_problem(problem *p) {
    for (size_t i = 0; i < SMM_PARAMS; i++) free(p->params[i]);
    free(p->x), free(p->mean), free(p->log_std), free(p->prior);
    const double *d[] = {p->d.slots, p->d.mean,           p->d.variance,
                         p->d.prior, p->d.log_likelihood, p->d.attention};
    for (size_t i = 0; i < sizeof d / sizeof *d; i++) free((double *)d[i]);
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

static smm_inputs_f64 inputs_of(const problem *p) {
    const smm_inputs_f64 in = {
        .x = p->x, .mean = p->mean, .log_std = p->log_std, .prior = p->prior};
    return in;
}

static smm_status run(const problem *p, const smm_outputs_f64 *out, int threads) {
    const smm_inputs_f64 in = inputs_of(p);
    const smm_run how = {.threads = threads};
    return smm_forward_f64(&p->config, &p->dims, (const double *const *)p->params, &in, out, &how,
                           NULL);
}

static double dot(size_t n, const double *a, const double *b) {
    double sum = 0;
    for (size_t i = 0; b && i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Sum of all outputs times their gradients. */
static double loss(const problem *p) {
    const size_t B = p->dims.batch;
    const smm_outputs_f64 out = {.slots = numbers(p->slots_size, 0),
                                 .mean = numbers(p->state_size, 0),
                                 .variance = numbers(p->state_size, 0),
                                 .prior = numbers(p->prior_size, 0),
                                 .log_likelihood = numbers(B, 0),
                                 .attention = numbers(p->attention_size, 0)};
    EXPECT(run(p, &out, 1) == SMM_OK, "forward");
    const double sum = dot(p->slots_size, out.slots, p->d.slots) +
                       dot(p->state_size, out.mean, p->d.mean) +
                       dot(p->state_size, out.variance, p->d.variance) +
                       dot(p->prior_size, out.prior, p->d.prior) +
                       dot(B, out.log_likelihood, p->d.log_likelihood) +
                       dot(p->attention_size, out.attention, p->d.attention);
    free(out.slots), free(out.mean), free(out.variance);
    free(out.prior), free(out.log_likelihood), free(out.attention);
    return sum;
}

/* All gradients side by side: x, mean, log_std, prior, parameters. */
static double *gradients(const problem *p, int threads, size_t *count) {
    size_t total = p->x_size + 2 * p->state_size + p->prior_size;
    for (size_t i = 0; i < SMM_PARAMS; i++) total += p->sizes[i];
    double *g = numbers(total, 0), *slots = numbers(p->slots_size, 0);
    double *saved = numbers(smm_saved_size(&p->config, &p->dims), 0);
    const smm_inputs_f64 in = inputs_of(p);
    const smm_outputs_f64 out = {.slots = slots, .saved = saved};
    const smm_run how = {.threads = threads};
    smm_gradients_f64 to = {.x = g, .mean = g + p->x_size};
    to.log_std = to.mean + p->state_size, to.prior = to.log_std + p->state_size;
    double *at = to.prior + p->prior_size;
    for (size_t i = 0; i < SMM_PARAMS; at += p->sizes[i++]) to.params[i] = p->sizes[i] ? at : NULL;
    EXPECT(run(p, &out, threads) == SMM_OK, "forward");
    EXPECT(smm_backward_f64(&p->config, &p->dims, (const double *const *)p->params, &in, saved,
                            &p->d, &to, &how, NULL) == SMM_OK,
           "backward");
    free(slots), free(saved);
    *count = total;
    return g;
}

static void check_differences(const problem *p, const char *what) {
    size_t count;
    double *g = gradients(p, 1, &count), *grad = g, scale = 0;
    double *arrays[4 + SMM_PARAMS] = {p->x, p->mean, p->log_std, p->prior};
    size_t sizes[4 + SMM_PARAMS] = {p->x_size, p->state_size, p->state_size, p->prior_size};
    memcpy(arrays + 4, p->params, sizeof p->params), memcpy(sizes + 4, p->sizes, sizeof p->sizes);
    for (size_t i = 0; i < count; i++) scale = fmax(scale, fabs(g[i]));
    for (size_t a = 0; a < 4 + SMM_PARAMS; grad += sizes[a++]) {
        if ((a == 2 || a == 3) && !is_mixture(p)) continue;
        for (size_t i = 0; i < sizes[a]; i += 1 + sizes[a] / 12) {
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
    }
    free(g);
}

static void check_threads(const problem *p, const char *what) {
    size_t count;
    double *one = gradients(p, 1, &count);
    for (int threads = 2; threads <= 5; threads++) {
        double *more = gradients(p, threads, &count);
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
    const smm_outputs_f64 to_one = {.slots = slots, .saved = one};
    const smm_outputs_f64 to_other = {.slots = slots, .saved = other};
    EXPECT(run(p, &to_one, 1) == SMM_OK && run(p, &to_other, 2) == SMM_OK, "forward");
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
    const smm_outputs_f64 out = {.slots = slots};
    const double *const *params = (const double *const *)p.params;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, NULL, &image) == SMM_ERR_INDEX &&
               image == 0,
           "index");
    in.indices = NULL;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, NULL, NULL) == SMM_ERR_NULL,
           "no start");
    in.mean = p.mean, in.mask = none;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, NULL, NULL) == SMM_ERR_NO_INPUT,
           "no input");
    in.mask = NULL, in.slot_mask = none;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, NULL, NULL) == SMM_ERR_NO_SLOT,
           "no slot");
    in.slot_mask = NULL, p.dims.iters = 0;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, NULL, NULL) == SMM_ERR_DIMS,
           "no step");
    p.dims.iters = 1, p.dims.inputs = (size_t)-1 / 64;
    EXPECT(smm_saved_size(&p.config, &p.dims) == 0, "sizes overflow");
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, NULL, NULL) == SMM_ERR_DIMS,
           "sizes overflow");
    for (size_t few = 0; few < 70; few++) { /* sums of sizes that wrap round */
        p.dims.inputs = (size_t)-1 - few;
        EXPECT(smm_saved_size(&p.config, &p.dims) == 0, "inputs wrap");
    }
    p.dims.inputs = 3, p.dims.iters = (size_t)-1,
    p.config.kind = SMM_SLOT_MIXTURE_REFERENCE; /* which adds a step */
    EXPECT(smm_saved_size(&p.config, &p.dims) == 0, "steps wrap");
    p.dims.iters = 1, p.config.kind = SMM_SLOT_MIXTURE, p.config.reduce = 2;
    EXPECT(smm_forward_f64(&p.config, &p.dims, params, &in, &out, NULL, NULL) == SMM_ERR_CONFIG,
           "a flag that is neither 0 nor 1");
    EXPECT(slots[0] == 7 && slots[1] == 7, "something was written");
    EXPECT(!strcmp(smm_status_str(SMM_OK), "ok") && smm_status_str((smm_status)99) != NULL,
           "status text");
    free_problem(&p);
}

/* a + b steps are a, and then b from the state that they lead to; the history has them all. */
static void check_state(const problem *given, const char *what) {
    problem p = *given;
    const size_t c = p.state_size, k = p.prior_size, B = p.dims.batch;
    double *slots = numbers(p.slots_size, 0), *again = numbers(p.slots_size, 0);
    double *start = numbers(2 * c + k, 0), *likelihood = numbers(5 * B, 0);
    double *prior = numbers(5 * k, 0), *moved = numbers(5 * B, 0), *last = numbers(B, 1);
    const smm_outputs_f64 whole = {.slots = slots,
                                   .log_likelihood = last,
                                   .step_log_likelihood = likelihood,
                                   .step_prior = prior,
                                   .step_movement = moved};
    const smm_outputs_f64 first = {.slots = again,
                                   .state_mean = start,
                                   .state_log_std = start + c,
                                   .state_prior = start + 2 * c};
    p.dims.iters = 5;
    EXPECT(run(&p, &whole, 1) == SMM_OK, "forward");
    for (size_t b = 0; b < B; b++)
        EXPECT((!is_mixture(&p) || last[b] == (has_likelihood(&p) ? likelihood[5 * b + 4] : 0)) &&
                   moved[5 * b + 4] > 0,
               "%s: the last step of the history", what);
    p.dims.iters = 2;
    EXPECT(run(&p, &first, 1) == SMM_OK, "forward");
    p.dims.iters = 3, p.mean = start, p.log_std = start + c, p.prior = start + 2 * c;
    const smm_outputs_f64 rest = {.slots = again};
    EXPECT(run(&p, &rest, 1) == SMM_OK, "forward");
    double error = 0;
    for (size_t i = 0; i < p.slots_size; i++) error = fmax(error, fabs(slots[i] - again[i]));
    if (p.config.slot_mlp != SMM_MLP_NOT_LAST) /* which asks for the last step of a call */
        EXPECT(error < 1e-13, "%s: 2 + 3 steps are not 5: %g", what, error);
    free(slots), free(again), free(start), free(likelihood), free(prior), free(moved), free(last);
}

static int stop_after(void *count) { return --*(int *)count < 0; }

/* A call that is asked to stop says so, and the next one is right. */
static void check_stop(const problem *p, const char *what) {
    size_t count;
    double *slots = numbers(p->slots_size, 0), *before = gradients(p, 1, &count);
    double *saved = numbers(smm_saved_size(&p->config, &p->dims), 0);
    double *x = numbers(p->x_size, 0);
    const smm_inputs_f64 in = inputs_of(p);
    const smm_outputs_f64 out = {.slots = slots, .saved = saved};
    const smm_gradients_f64 to = {.x = x};
    const double *const *params = (const double *const *)p->params;
    EXPECT(run(p, &out, 1) == SMM_OK, "forward");
    for (int asked = 0; asked < 3; asked++)
        for (int threads = 1; threads < 4; threads += 2) {
            int left = asked;
            const smm_run how = {threads, stop_after, &left};
            EXPECT(smm_forward_f64(&p->config, &p->dims, params, &in, &out, &how, NULL) ==
                       SMM_ERR_STOPPED,
                   "%s: forward goes on", what);
            left = asked;
            EXPECT(smm_backward_f64(&p->config, &p->dims, params, &in, saved, &p->d, &to, &how,
                                    NULL) == SMM_ERR_STOPPED,
                   "%s: backward goes on", what);
        }
    double *after = gradients(p, 1, &count);
    EXPECT(!memcmp(before, after, count * sizeof *before), "%s: after a stopped call", what);
    free(slots), free(saved), free(x), free(before), free(after);
}

/* No image: nothing to do, and gradients of zero. */
static void check_empty(const problem *given, const char *what) {
    problem p = *given;
    size_t count = 0;
    p.dims.batch = 0, p.x_size = p.state_size = p.prior_size = p.slots_size = 0;
    double *g = gradients(&p, 1, &count);
    for (size_t i = 0; i < count; i++) EXPECT(g[i] == 0, "%s: a gradient of no image", what);
    free(g);
}

/* Without a gradient of the slots, the output map has one of zeros, whatever its memory held. */
static void check_without_slots(const problem *given, const char *what) {
    problem p = *given;
    size_t count;
    p.d.slots = NULL;
    for (size_t bytes = (size_t)1 << 12; bytes <= (size_t)1 << 24; bytes *= 2) {
        void *memory = smm_alloc(bytes); /* a call's, where it is about as much as that needs */
        if (memory) memset(memory, 0x5A, bytes);
        smm_trim(), smm_free(memory);
        double *g = gradients(&p, 1, &count), *at = g + count;
        for (size_t j = SMM_PARAMS; j-- > SMM_TO_OUT_WEIGHT;) at -= p.sizes[j];
        for (; at < g + count; at++)
            EXPECT(*at == 0, "%s: gradient of the output map %g", what, *at);
        free(g);
    }
    smm_trim();
}

/* Clustering without eps: a slot that gets no weight keeps its state; without a floor, finite
 * numbers. */
static void check_plain(smm_kind kind) {
    double x[4] = {0, 1, 9999, 9998}, slots[6], prior[3], g[4];
    const double mean[3] = {0, 9999, -1e9}, log_std[3] = {0, 0, 0}, d[6] = {1, 1, 1, 1, 1, 1};
    smm_config config;
    smm_config_init(&config, kind, 1);
    config.eps = config.var_floor = 0, config.scale = 1;
    smm_dims dims = {1, 4, 3, 50};
    const smm_inputs_f64 in = {.x = x, .mean = mean, .log_std = log_std};
    double *saved = numbers(smm_saved_size(&config, &dims), 0);
    const smm_outputs_f64 out = {.slots = slots, .prior = prior, .saved = saved};
    const smm_output_grads_f64 d_out = {.slots = d};
    const smm_gradients_f64 to = {.x = g};
    const size_t step = kind == SMM_KMEANS ? 1 : 2;
    EXPECT(smm_forward_f64(&config, &dims, NULL, &in, &out, NULL, NULL) == SMM_OK, "forward");
    EXPECT(fabs(slots[0] - 0.5) < 1e-12 && fabs(slots[step] - 9998.5) < 1e-9 &&
               slots[2 * step] == -1e9,
           "kind %d: clusters %g %g %g", (int)kind, slots[0], slots[step], slots[2 * step]);
    EXPECT(smm_backward_f64(&config, &dims, NULL, &in, saved, &d_out, &to, NULL, NULL) == SMM_OK,
           "backward");
    for (int i = 0; i < 4; i++)
        EXPECT(fabs(g[i] - 0.5) < (step == 1 ? 1e-9 : 2), "kind %d: gradient %g", (int)kind, g[i]);
    dims.slots = 2; /* as many slots as points: variances of zero */
    x[1] = x[0], x[3] = x[2];
    EXPECT(smm_forward_f64(&config, &dims, NULL, &in, &out, NULL, NULL) == SMM_OK, "forward");
    EXPECT(slots[0] == 0 && slots[step] == 9999 && (step == 1 || slots[1] < 1e-9), "kind %d: K = N",
           (int)kind);
    EXPECT(smm_backward_f64(&config, &dims, NULL, &in, saved, &d_out, &to, NULL, NULL) == SMM_OK,
           "backward");
    for (int i = 0; i < 4; i++) EXPECT(isfinite(g[i]), "kind %d: gradient %g", (int)kind, g[i]);
    free(saved);
}

/* A slot whose weight is so small that its inverse would be infinite: finite numbers. */
static void check_faint(smm_kind kind) {
    double slots[4], saved[4096], g[1];
    const double x[1] = {0}, log_std[2] = {0, 0}, d[4] = {1, 1, 1, 1};
    smm_config config;
    smm_config_init(&config, kind, 1);
    config.eps = 0, config.scale = 0.5;
    const smm_dims dims = {1, 1, 2, 2};
    EXPECT(smm_saved_size(&config, &dims) <= 4096, "saved state");
    for (double far = 36; far < 40; far += 0.01) { /* weights of exp(-far^2 / 2) */
        const double mean[2] = {0, far};
        const smm_inputs_f64 in = {.x = x, .mean = mean, .log_std = log_std};
        const smm_outputs_f64 out = {.slots = slots, .saved = saved};
        const smm_output_grads_f64 d_out = {.slots = d};
        const smm_gradients_f64 to = {.x = g};
        EXPECT(smm_forward_f64(&config, &dims, NULL, &in, &out, NULL, NULL) == SMM_OK, "forward");
        EXPECT(smm_backward_f64(&config, &dims, NULL, &in, saved, &d_out, &to, NULL, NULL) ==
                   SMM_OK,
               "backward");
        for (size_t i = 0; i < 2 * smm_slot_width(&config); i++)
            EXPECT(isfinite(slots[i]), "kind %d, %g away: slots[%zu] is %g", (int)kind, far, i,
                   slots[i]);
        EXPECT(isfinite(g[0]), "kind %d, %g away: gradient %g", (int)kind, far, g[0]);
    }
}

static void check_finite(void) {
    double x[3] = {1, 2, NAN};
    EXPECT(smm_first_nonfinite(64, x, 3, 2) == 2 && smm_first_nonfinite(64, x, 2, 2) == 2,
           "the first NaN");
    EXPECT(smm_first_nonfinite(0, x, 3, 2) == (size_t)-1 &&
               smm_first_nonfinite(80, x, 3, 1) == (size_t)-1,
           "no such numbers");
}

/* SMM_CACHED blocks are cached for later calls: the largest that are not too large. Two blocks in
 * use are never the same. */
static void check_memory(void) {
    char *small = smm_alloc(5000), *middle = smm_alloc(3000000), *large = smm_alloc(9000000),
         *others[SMM_CACHED - 2], *again;
    for (size_t i = 0; i < SMM_CACHED - 2; i++) {
        others[i] = smm_alloc(30000000 + 1000 * i);
        EXPECT(others[i], "a block");
    }
    EXPECT(small && middle && large && small != middle && middle != large,
           "two users share a block");
    EXPECT((uintptr_t)small % SMM_SAVED_ALIGN == 0 && (uintptr_t)middle % SMM_SAVED_ALIGN == 0,
           "alignment");
    memset(small, 1, 5000), memset(middle, 1, 3000000), memset(large, 1, 9000000);
    for (size_t i = 0; i < SMM_CACHED - 2; i++) smm_free(others[i]);
    smm_free(large), smm_free(small), smm_free(middle);
    small = smm_alloc(2000);
    again = smm_alloc(2500000);
    EXPECT(again == middle, "a large block for little memory, or not the smallest large enough");
    smm_free(small);
    EXPECT(smm_alloc(8000000) == large, "the larger block is not kept");
    memset(again, 1, 2500000), memset(large, 1, 8000000);
    smm_free(again), smm_free(large), smm_free(NULL);
    large = smm_alloc(SMM_CACHED_MOST + 1);
    EXPECT(large, "a block too large to keep");
    large[SMM_CACHED_MOST] = 1;
    smm_free(large);
    again = smm_alloc(2500000);
    EXPECT(again == middle, "the blocks before it are not kept");
    smm_free(again);
    EXPECT(!smm_alloc((size_t)-1 - 100), "more than there is");
}

int main(int argc, char **argv) {
    const int quick = argc > 1 && !strcmp(argv[1], "quick");
    static const char *const names[] = {"slot attention", "slot mixture", "reference", "k-means",
                                        "gaussian mixture"};
    for (int kind = 0; kind <= SMM_GAUSSIAN_MIXTURE; kind++)
        for (int option = 0; option < option_sets[kind]; option++) {
            problem p = make_problem((smm_kind)kind, option, 2, quick ? 5 : 67, 3);
            check_differences(&p, names[kind]);
            check_threads(&p, names[kind]);
            check_state(&p, names[kind]);
            check_stop(&p, names[kind]);
            check_empty(&p, names[kind]);
            check_without_slots(&p, names[kind]);
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
    check_faint(SMM_KMEANS);
    check_faint(SMM_GAUSSIAN_MIXTURE);
    check_plain(SMM_KMEANS);
    check_plain(SMM_GAUSSIAN_MIXTURE);
    printf("%s\n", failures ? "FAILED" : "core ok");
    return failures != 0;
}
