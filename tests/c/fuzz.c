/* fuzz.c - a target of libFuzzer over the public calls, for Clang: make fuzz.
 *
 * An input draws a call: kind, options, sizes, arrays, masks, what is asked for, or one mistake.
 * Every array lies between guard zones. What must hold is said in the functions named check_. A
 * property that does not ends the process, after a line that tells the case. At the end the numbers
 * of calls, and of calls whose memory was refused, go to stderr. */
#define _GNU_SOURCE
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sanitizer/asan_interface.h>

#include "smm.h"

/* ---- What an input decides: its bytes, and numbers that follow from all of them. */

static const uint8_t *bytes;
static size_t bytes_left;
static uint64_t state;

static uint64_t number(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static size_t pick(size_t n) {
    if (!bytes_left) return (size_t)(number() >> 20) % n;
    bytes_left--;
    return *bytes++ % n;
}

static int one_in(size_t n) { return pick(n) == n - 1; }

static double uniform(void) { return (double)(number() >> 11) / 4503599627370496.0 - 1; }

static void open_input(const uint8_t *data, size_t size) {
    bytes = data, bytes_left = size;
    state = 1469598103934665603u;
    for (size_t i = 0; i < size; i++) state = (state ^ data[i]) * 1099511628211u;
    state += state == 0;
}

/* ---- Failures, allocations that fail, arrays between guard zones. */

static unsigned long long calls, faults;
static char about[400]; /* the case */

static void fail(const char *text, ...) {
    va_list arguments;
    va_start(arguments, text);
    fprintf(stderr, "\nPROPERTY: ");
    vfprintf(stderr, text, arguments);
    fprintf(stderr, "\nCASE: %s\n", about);
    va_end(arguments);
    abort();
}

static int refuse_memory; /* every malloc of this program fails */
void *__real_malloc(size_t bytes_wanted);
void *__wrap_malloc(size_t bytes_wanted);
void *__wrap_malloc(size_t bytes_wanted) {
    return refuse_memory ? NULL : __real_malloc(bytes_wanted);
}

enum { GUARD = 64, ARRAYS = 2048, GUARD_BYTE = 0xC3 };
typedef struct {
    uint8_t *base, *at;
    size_t bytes, whole;
} array;
static array arrays[ARRAYS];
static size_t array_count;

static void poison(const array *a) {
    __asan_poison_memory_region(a->base, (size_t)(a->at - a->base));
    __asan_poison_memory_region(a->at + a->bytes, a->whole - a->bytes - (size_t)(a->at - a->base));
}

/* n bytes of value `fill`, `offset` bytes behind a multiple of 64. */
static void *new_array(size_t n, size_t offset, int fill) {
    if (array_count == ARRAYS) fail("too many arrays");
    array *a = &arrays[array_count++];
    a->bytes = n, a->whole = n + offset + 2 * GUARD;
    void *base = NULL;
    if (posix_memalign(&base, 64, a->whole)) abort();
    a->base = base, a->at = a->base + GUARD + offset;
    memset(a->base, GUARD_BYTE, a->whole);
    memset(a->at, fill, n);
    poison(a);
    return a->at;
}

static void check_guard(const array *a, size_t begin, size_t end) {
    for (size_t j = begin; j < end; j++)
        if (a->base[j] != GUARD_BYTE)
            fail("a guard zone was written, of an array of %zu bytes", a->bytes);
}

static void check_guards(void) {
    for (size_t i = 0; i < array_count; i++) {
        const array *a = &arrays[i];
        const size_t front = (size_t)(a->at - a->base);
        __asan_unpoison_memory_region(a->base, a->whole);
        check_guard(a, 0, front);
        check_guard(a, front + a->bytes, a->whole);
        poison(a);
    }
}

static void free_arrays(size_t from) {
    while (array_count > from) {
        const array *a = &arrays[--array_count];
        __asan_unpoison_memory_region(a->base, a->whole);
        free(a->base);
    }
}

/* ---- A call. Structures of pointers are tables here, so that both precisions share the code. */

enum { X, MEAN, LOG_STD, PRIOR, INDICES, MASK, SLOT_MASK, X_BFLOAT16, VAR_FLOOR, INPUTS };
enum {
    SLOTS,
    OUT_MEAN,
    VARIANCE,
    OUT_PRIOR,
    LOG_LIKELIHOOD,
    ATTENTION,
    GRADED,
    SAVED = GRADED,
    ITERATIONS,
    STATE_MEAN,
    STATE_LOG_STD,
    STATE_PRIOR,
    STEP_LOG_LIKELIHOOD,
    STEP_PRIOR,
    STEP_MOVEMENT,
    OUTPUTS
};
enum { PARAMS = PRIOR + 1, GRADIENTS = PARAMS + SMM_PARAMS };

typedef struct {
    smm_config config;
    smm_dims dims;
    size_t real; /* sizeof(float) or sizeof(double) */
    int mixture, ordinary;
    void *params[SMM_PARAMS], *in[INPUTS], *d[GRADED];
    size_t out_size[OUTPUTS], grad_size[GRADIENTS]; /* elements; 0 where not asked for */
    size_t whole_out[OUTPUTS], whole_grad[GRADIENTS];
} problem;

#define SAME_LAYOUT(type, pointers) \
    typedef char type##_is_a_table[sizeof(type) == (pointers) * sizeof(void *) ? 1 : -1]
SAME_LAYOUT(smm_inputs_f32, INPUTS);
SAME_LAYOUT(smm_inputs_f64, INPUTS);
SAME_LAYOUT(smm_outputs_f32, OUTPUTS);
SAME_LAYOUT(smm_outputs_f64, OUTPUTS);
SAME_LAYOUT(smm_output_grads_f32, GRADED);
SAME_LAYOUT(smm_output_grads_f64, GRADED);
SAME_LAYOUT(smm_gradients_f32, GRADIENTS);
SAME_LAYOUT(smm_gradients_f64, GRADIENTS);

/* A table of pointers as a structure; NULL where there is no table. */
#define AS(type, name, table)                               \
    type name##_of;                                         \
    if (table) memcpy(&name##_of, table, sizeof name##_of); \
    const type *name = (table) ? &name##_of : NULL

#define DEFINE_CALLS(T, number_type)                                                               \
    static smm_status forward_##T(                                                                 \
        const problem *p, const smm_config *config, const smm_dims *dims, void *const *params,     \
        void *const *in_table, void *const *out_table, const smm_run *run, size_t *image) {        \
        AS(smm_inputs_##T, in, in_table);                                                          \
        AS(smm_outputs_##T, out, out_table);                                                       \
        (void)p;                                                                                   \
        return smm_forward_##T(config, dims, (const number_type *const *)params, in, out, run,     \
                               image);                                                             \
    }                                                                                              \
    static smm_status backward_##T(const problem *p, const smm_config *config,                     \
                                   const smm_dims *dims, void *const *params,                      \
                                   void *const *in_table, const void *saved, void *const *d_table, \
                                   void *const *grad_table, const smm_run *run, size_t *image) {   \
        AS(smm_inputs_##T, in, in_table);                                                          \
        AS(smm_output_grads_##T, d, d_table);                                                      \
        AS(smm_gradients_##T, grads, grad_table);                                                  \
        (void)p;                                                                                   \
        return smm_backward_##T(config, dims, (const number_type *const *)params, in, saved, d,    \
                                grads, run, image);                                                \
    }
DEFINE_CALLS(f32, float)
DEFINE_CALLS(f64, double)

static void set(const problem *p, void *to, size_t i, double value) {
    if (p->real == sizeof(float)) ((float *)to)[i] = (float)value;
    else ((double *)to)[i] = value;
}

static double get(const problem *p, const void *from, size_t i) {
    return p->real == sizeof(float) ? (double)((const float *)from)[i] : ((const double *)from)[i];
}

static size_t bytes_of(const problem *p, size_t output) {
    return output == ITERATIONS ? sizeof(int64_t) : p->real;
}

/* ---- Drawing a problem. */

static const double odd[] = {0,     -0.0, 1e-40, -1e-310,  1e30,     -1e30,
                             1e-20, 3e38, -3e38, 1e300,    INFINITY, -INFINITY,
                             NAN,   1,    -1,    1.5e-154, 7e18,     2.2250738585072014e-308};
enum { ODD = sizeof odd / sizeof *odd };

static void *numbers(problem *p, size_t n, double scale, double shift) {
    static const double factors[] = {1, 0.1, 3, 0};
    void *to = new_array(n * p->real, p->real * pick(4), 0);
    const int strange = one_in(12);
    const double factor = scale * factors[pick(16) < 12 ? 0 : pick(4)];
    for (size_t i = 0; i < n; i++) set(p, to, i, shift + factor * uniform());
    for (size_t i = 0; strange && i < 1 + n / 8 && n; i++)
        set(p, to, number() % n, odd[number() % ODD]);
    if (strange && n) p->ordinary = 0;
    return to;
}

/* Where numbers are ordinary, at least 0.01. */
static void *above_zero(const problem *p, void *to, size_t n) {
    for (size_t i = 0; p->ordinary && i < n; i++) set(p, to, i, 0.01 + fabs(get(p, to, i)));
    return to;
}

static double among(const double *values, size_t n) { return values[pick(n)]; }

/* Options of the slots' side, and heads. */
static void draw_slots(smm_config *c) {
    c->gru = (int)pick(2), c->slot_mlp = (int)pick(3), c->gelu = (int)pick(2);
    c->norm_hidden = c->kind == SMM_SLOT_MIXTURE ? c->slot_norm && pick(2) : (int)pick(2);
    c->update_masked = c->kind != SMM_SLOT_MIXTURE_REFERENCE && pick(2);
    if (c->kind == SMM_SLOT_MIXTURE_REFERENCE && c->gradient <= SMM_GRADIENT_IMPLICIT)
        c->fair = (int)pick(2);
    if (c->kind != SMM_SLOT_ATTENTION) return;
    if (pick(2)) c->qkv_dim = 1 + pick(one_in(8) ? 60 : 12);
    c->heads = 1 + pick(4);
    while (c->qkv_dim % c->heads) c->heads--;
    c->combine_heads = pick(2) || (!c->gru && c->qkv_dim != c->dim);
    c->joint_softmax = (int)pick(2), c->attention_sum = (int)pick(2);
    c->update = (int)pick(4), c->update_slots = 1 + pick(9), c->eps_in_total = (int)pick(2);
}

static void draw_config(problem *p) {
    static const double temperatures[] = {1, 0.1, 0.5, 2}, scales[] = {0.3, 1, 0.05},
                        epses[] = {1e-8, 1e-3, 0, 0.1}, floors[] = {1e-4, 0, 1e-2, 1},
                        norms[] = {1e-5, 1e-3, 0.1}, tols[] = {0, 1e-3, 0.1, 100};
    const smm_kind kind = (smm_kind)pick(SMM_GAUSSIAN_MIXTURE + 1);
    const int wide = one_in(16);
    smm_config *c = &p->config;
    smm_config_init(c, kind, 1 + pick(wide ? 40 : 10));
    p->mixture = kind != SMM_SLOT_ATTENTION && kind != SMM_KMEANS;
    const int learned = kind <= SMM_SLOT_MIXTURE_REFERENCE;
    c->hidden_dim = 1 + pick(wide ? 40 : 10);
    c->gradient = (int)pick(4);
    c->qkv_bias = (int)pick(2), c->input_mlp = !one_in(4), c->norm_kv = (int)pick(2);
    c->slot_norm = (int)pick(2), c->uniform_prior = (int)pick(2), c->reduce = (int)pick(2);
    c->recompute = one_in(4);
    c->bfloat16 = p->real == sizeof(float) && one_in(4);
    if (learned && (kind != SMM_SLOT_MIXTURE || c->input_mlp) && pick(2))
        c->input_dim = 1 + pick(wide ? 40 : 10);
    if (one_in(3)) draw_slots(c);
    if (one_in(3)) c->temperature = among(temperatures, 4);
    if (one_in(3)) c->scale = among(scales, 3);
    if (pick(2)) c->eps = among(epses, 4);
    if (learned && p->mixture && c->eps == 0) c->eps = 1e-8;
    if (one_in(3)) c->var_floor = among(floors, 4);
    if (one_in(4)) c->norm_eps = among(norms, 3);
    if (one_in(3)) c->tol = among(tols, 4);
    if (one_in(16)) {
        double *const options[] = {&c->temperature, &c->scale,    &c->eps,
                                   &c->var_floor,   &c->norm_eps, &c->tol};
        *options[pick(6)] = odd[pick(ODD)];
        p->ordinary = 0;
    }
}

/* Flags (B, n), a nonzero one at least in each image. */
static uint8_t *draw_mask(size_t B, size_t n) {
    uint8_t *mask = new_array(B * n, pick(4), 0);
    for (size_t b = 0; b < B; b++) {
        for (size_t i = 0; i < n; i++) mask[b * n + i] = number() % 3 ? (uint8_t)(number() | 1) : 0;
        mask[b * n + number() % n] |= 1;
    }
    return mask;
}

static void draw_inputs(problem *p) {
    const size_t B = p->dims.batch, N = p->dims.inputs, K = p->dims.slots, D = p->config.dim;
    const size_t I = p->config.input_dim;
    if (one_in(4)) p->in[MASK] = draw_mask(B, N);
    if (one_in(4)) p->in[SLOT_MASK] = draw_mask(B, K);
    p->in[X] = numbers(p, B * N * I, 1, one_in(8) ? 100 : 0);
    if (one_in(4)) {
        uint16_t *x = new_array(B * N * I * sizeof *x, 2 * pick(4), 0);
        for (size_t i = 0; i < B * N * I; i++) {
            const float value = (float)get(p, p->in[X], i);
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            x[i] = (uint16_t)(bits >> 16);
        }
        p->in[X_BFLOAT16] = x, p->in[X] = NULL;
    }
    if (one_in(3) && (p->mixture || p->config.qkv_dim == D)) {
        int64_t *indices = p->in[INDICES] = new_array(B * K * sizeof *indices, 0, 0);
        const uint8_t *mask = p->in[MASK];
        for (size_t i = 0; i < B * K; i++) do
                indices[i] = (int64_t)(number() % N);
            while (mask && !mask[i / K * N + (size_t)indices[i]]);
    }
    if (!p->in[INDICES] || one_in(8)) p->in[MEAN] = numbers(p, B * K * D, 1, 0);
    if (p->mixture || one_in(8)) p->in[LOG_STD] = numbers(p, B * K * D, 0.5, 0);
    if (p->mixture && one_in(3)) {
        void *prior = p->in[PRIOR] = above_zero(p, numbers(p, B * K, 0.45, 0.5), B * K);
        for (size_t i = 0; i < B * K && one_in(4); i++) {
            set(p, prior, number() % (B * K), 0);
            p->ordinary = 0; /* no active slot may be left */
        }
    }
    if (p->config.kind == SMM_GAUSSIAN_MIXTURE && one_in(3))
        p->in[VAR_FLOOR] = above_zero(p, numbers(p, B * D, 0.05, 0.06), B * D);
}

static void draw_sizes(problem *p) {
    const size_t B = p->dims.batch, N = p->dims.inputs, K = p->dims.slots, T = p->dims.iters;
    const size_t D = p->config.dim, c = B * K * D;
    const size_t out[OUTPUTS] = {B * K * smm_slot_width(&p->config),
                                 c,
                                 c,
                                 B * K,
                                 B,
                                 B * N * K,
                                 smm_saved_size(&p->config, &p->dims),
                                 B,
                                 c,
                                 c,
                                 B * K,
                                 B * T,
                                 B * T * K,
                                 B * T};
    memcpy(p->whole_out, out, sizeof out);
    const size_t grad[PARAMS] = {B * N * p->config.input_dim, c, c, B * K};
    memcpy(p->whole_grad, grad, sizeof grad);
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        size_t shape[2] = {0, 1};
        const int rank = smm_param_shape(&p->config, i, shape);
        const size_t size = rank ? shape[0] * (rank == 2 ? shape[1] : 1) : 0;
        p->whole_grad[PARAMS + i] = size;
        if (size) p->params[i] = numbers(p, size, 0.5, rank == 1 && one_in(2) ? 1 : 0);
    }
    const int all = one_in(3);
    for (size_t i = 0; i < OUTPUTS; i++)
        p->out_size[i] = i == SLOTS || all || (i == SAVED ? pick(4) : pick(2)) ? out[i] : 0;
    const int all_grads = (int)pick(2);
    for (size_t i = 0; i < GRADIENTS; i++)
        p->grad_size[i] = all_grads || pick(2) ? p->whole_grad[i] : 0;
    for (size_t i = 0; i < GRADED; i++)
        if (pick(2)) p->d[i] = numbers(p, out[i], 1, 0);
}

static void draw_problem(problem *p) {
    memset(p, 0, sizeof *p);
    p->real = pick(2) ? sizeof(float) : sizeof(double);
    p->ordinary = 1;
    draw_config(p);
    const int large = one_in(64); /* several threads have work */
    p->dims.batch = one_in(24) ? 0 : 1 + pick(4);
    p->dims.inputs = large ? 100 + pick(250) : one_in(12) ? 1 + pick(140) : 1 + pick(12);
    p->dims.slots = one_in(32) ? 1 + pick(70) : 1 + pick(5);
    p->dims.iters = 1 + pick(one_in(4) ? 4 : 2);
    if (large) p->config.hidden_dim = 30 + pick(40);
    draw_inputs(p);
    draw_sizes(p);
    const smm_config *c = &p->config;
    snprintf(about, sizeof about,
             "%s kind %d %s B %zu N %zu K %zu T %zu D %zu I %zu H %zu heads %zu gradient %d "
             "temperature %g scale %g eps %g var_floor %g norm_eps %g tol %g recompute %d "
             "mask %d slot_mask %d indices %d prior %d d %d%d%d%d%d%d ordinary %d",
             p->real == sizeof(float) ? "f32" : "f64", (int)c->kind, smm_simd(), p->dims.batch,
             p->dims.inputs, p->dims.slots, p->dims.iters, c->dim, c->input_dim, c->hidden_dim,
             c->heads, c->gradient, c->temperature, c->scale, c->eps, c->var_floor, c->norm_eps,
             c->tol, c->recompute, p->in[MASK] != NULL, p->in[SLOT_MASK] != NULL,
             p->in[INDICES] != NULL, p->in[PRIOR] != NULL, p->d[0] != NULL, p->d[1] != NULL,
             p->d[2] != NULL, p->d[3] != NULL, p->d[4] != NULL, p->d[5] != NULL, p->ordinary);
}

/* ---- Calling. */

enum { FIRST = 0x5A, SECOND = 0xA7 }; /* what arrays hold before a call */

typedef struct {
    void *out[OUTPUTS], *grad[GRADIENTS];
} results;

/* Whether output i is one that this kind has. */
static int has_output(const problem *p, size_t i) {
    const int plain = i == SLOTS || i == ATTENTION || i == SAVED || i == ITERATIONS ||
                      i == STATE_MEAN || i == STEP_MOVEMENT;
    return plain || p->mixture;
}

static int has_gradient(const problem *p, size_t i) {
    return i == X || i == MEAN || i >= PARAMS || p->mixture;
}

static smm_status forward(const problem *p, results *r, int fill, const smm_run *run) {
    for (size_t i = 0; i < OUTPUTS; i++) {
        const size_t at =
            i == SAVED ? p->real * (pick(2) ? 0 : pick(16)) : bytes_of(p, i) * pick(4);
        r->out[i] = p->out_size[i] || (i == SLOTS)
                        ? new_array(p->out_size[i] * bytes_of(p, i), at, fill)
                        : NULL;
    }
    calls++;
    const smm_status status = (p->real == sizeof(float) ? forward_f32 : forward_f64)(
        p, &p->config, &p->dims, p->params, p->in, r->out, run, NULL);
    check_guards();
    return status;
}

static smm_status backward(const problem *p, results *r, const void *saved, int fill,
                           const smm_run *run) {
    for (size_t i = 0; i < GRADIENTS; i++)
        r->grad[i] =
            p->grad_size[i] ? new_array(p->grad_size[i] * p->real, p->real * pick(4), fill) : NULL;
    calls++;
    const smm_status status = (p->real == sizeof(float) ? backward_f32 : backward_f64)(
        p, &p->config, &p->dims, p->params, p->in, saved, p->d, r->grad, run, NULL);
    check_guards();
    return status;
}

static void check_untouched(const void *at, size_t n, int fill, const char *what, size_t i) {
    for (size_t j = 0; j < n; j++)
        if (((const uint8_t *)at)[j] != fill) fail("%s %zu was written before an error", what, i);
}

static void check_nothing_written(const problem *p, const results *r, int fill) {
    for (size_t i = 0; i < OUTPUTS; i++)
        if (r->out[i])
            check_untouched(r->out[i], p->out_size[i] * bytes_of(p, i), fill, "output", i);
    for (size_t i = 0; i < GRADIENTS; i++)
        if (r->grad[i]) check_untouched(r->grad[i], p->grad_size[i] * p->real, fill, "gradient", i);
}

/* Elements first to first + n are the same bits, or NaN both. */
static void check_same(const problem *p, const void *a, const void *b, size_t first, size_t n,
                       size_t size, const char *what, size_t i) {
    const uint8_t *one = (const uint8_t *)a + first * size,
                  *other = (const uint8_t *)b + first * size;
    if (!memcmp(one, other, n * size)) return;
    for (size_t j = 0; j < n; j++) {
        if (!memcmp(one + j * size, other + j * size, size)) continue;
        const double left = get(p, one, j), right = get(p, other, j);
        if (size != p->real || !isnan(left) || !isnan(right))
            fail("%s %zu: element %zu of %zu is %.17g and %.17g", what, i, j, n, left, right);
    }
}

static void check_same_outputs(const problem *p, const results *a, const results *b,
                               const char *what) {
    for (size_t i = 0; i < OUTPUTS; i++)
        if (p->out_size[i] && has_output(p, i) && !(i == SAVED && p->in[MASK]))
            check_same(p, a->out[i], b->out[i], 0, p->out_size[i], bytes_of(p, i), what, i);
}

static void check_same_gradients(const problem *p, const results *a, const results *b,
                                 const char *what) {
    for (size_t i = 0; i < GRADIENTS; i++)
        if (p->grad_size[i] && has_gradient(p, i))
            check_same(p, a->grad[i], b->grad[i], 0, p->grad_size[i], p->real, what, i);
}

static void check_finite(const problem *p, const results *r) {
    for (size_t i = 0; i < OUTPUTS; i++)
        for (size_t j = 0;
             i != SAVED && i != ITERATIONS && r->out[i] && has_output(p, i) && j < p->out_size[i];
             j++)
            if (!isfinite(get(p, r->out[i], j)))
                fail("output %zu of ordinary input: element %zu is %g", i, j, get(p, r->out[i], j));
    for (size_t i = 0; i < GRADIENTS; i++)
        for (size_t j = 0; r->grad[i] && has_gradient(p, i) && j < p->grad_size[i]; j++)
            if (!isfinite(get(p, r->grad[i], j)))
                fail("gradient %zu of ordinary input: element %zu is %g", i, j,
                     get(p, r->grad[i], j));
}

/* ---- Properties. */

/* The rule of the saved state's size, as smm.h has it. */
static void check_rule(const problem *p) {
    const smm_saved_rule r = smm_saved_rule_of(&p->config, p->dims.slots, p->dims.iters);
    const size_t B = p->dims.batch, size = smm_saved_size(&p->config, &p->dims);
    if (!size || !r.inputs) return;
    const size_t layers = (p->dims.inputs + r.inputs - 1) / r.inputs * r.block;
    const size_t most = layers <= r.small ? r.most_of_small : r.most;
    const size_t ruled = B * (r.image + (B * layers <= most ? layers : 0));
    if (ruled != size) fail("the rule says %zu elements, smm_saved_size %zu", ruled, size);
}

static smm_run several(void) {
    static const int threads[] = {3, 2, 5, 64};
    return (smm_run){.threads = threads[pick(4)]};
}

static int stop_after(void *count) { return --*(int *)count < 0; }

/* Two calls, stopped somewhere, and with no memory. */
static void check_interrupted(const problem *p, const void *saved) {
    results r = {{NULL}, {NULL}};
    int left = (int)pick(4);
    smm_run run = several();
    if (pick(2)) {
        run.stop = stop_after, run.stop_argument = &left;
        const smm_status status =
            saved ? backward(p, &r, saved, FIRST, &run) : forward(p, &r, FIRST, &run);
        if (status != SMM_OK && status != SMM_ERR_STOPPED) fail("stopped: status %d", (int)status);
        if (status == SMM_OK && left < 0) fail("a call that is asked to stop went on");
        return;
    }
    smm_trim();
    refuse_memory = 1, faults++;
    const smm_status status =
        saved ? backward(p, &r, saved, FIRST, &run) : forward(p, &r, FIRST, &run);
    refuse_memory = 0;
    if (status != SMM_ERR_NOMEM && p->dims.batch) fail("no memory: status %d", (int)status);
    if (p->dims.batch) check_nothing_written(p, &r, FIRST);
}

/* NaN in image `bad` of the inputs leaves the results of the others as they were. */
static void check_image_alone(const problem *given, const results *clean, const void *saved) {
    problem p = *given;
    results r = {{NULL}, {NULL}};
    const size_t B = p.dims.batch, bad = number() % B, size = p.whole_grad[X];
    const smm_run one = {1, NULL, NULL};
    if (p.in[X]) {
        void *x = new_array(size * p.real, 0, 0);
        memcpy(x, p.in[X], size * p.real);
        set(&p, x, bad * size / B + number() % (size / B), pick(2) ? NAN : INFINITY);
        p.in[X] = x;
    } else {
        uint16_t *x = new_array(size * sizeof *x, 0, 0);
        memcpy(x, p.in[X_BFLOAT16], size * sizeof *x);
        x[bad * size / B + number() % (size / B)] = 0x7FC0;
        p.in[X_BFLOAT16] = x;
    }
    if (forward(&p, &r, FIRST, &one) != SMM_OK) fail("NaN: forward fails");
    for (size_t i = 0; i < OUTPUTS; i++)
        for (size_t b = 0; p.out_size[i] && has_output(&p, i) && b < B; b++)
            if (b != bad)
                check_same(&p, clean->out[i], r.out[i], b * p.out_size[i] / B, p.out_size[i] / B,
                           bytes_of(&p, i), "NaN in another image, output", i);
    if (!saved) return;
    if (backward(&p, &r, r.out[SAVED], FIRST, &one) != SMM_OK) fail("NaN: backward fails");
    for (size_t i = 0; i < PARAMS; i++)
        for (size_t b = 0; p.grad_size[i] && has_gradient(&p, i) && b < B; b++)
            if (b != bad)
                check_same(&p, clean->grad[i], r.grad[i], b * p.grad_size[i] / B,
                           p.grad_size[i] / B, p.real, "NaN in another image, gradient", i);
}

/* bfloat16 inputs give what their values give. */
static void check_widened(const problem *given, const results *narrow) {
    problem p = *given;
    results r = {{NULL}, {NULL}};
    const smm_run one = {1, NULL, NULL};
    void *x = new_array(p.whole_grad[X] * p.real, 0, 0);
    for (size_t i = 0; i < p.whole_grad[X]; i++) {
        const uint32_t bits = (uint32_t)((const uint16_t *)p.in[X_BFLOAT16])[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        set(&p, x, i, (double)value);
    }
    p.in[X] = x, p.in[X_BFLOAT16] = NULL;
    if (forward(&p, &r, SECOND, &one) != SMM_OK) fail("widened: forward fails");
    check_same_outputs(&p, narrow, &r, "bfloat16, output");
}

/* A saved state that is not what forward wrote: any numbers, but no other memory. */
static void check_wrong_saved(const problem *p, const void *saved) {
    results r = {{NULL}, {NULL}};
    const size_t n = p->out_size[SAVED];
    void *wrong = new_array(n * p->real, 0, 0);
    memcpy(wrong, saved, n * p->real);
    for (size_t i = 0; i < 1 + n / 16; i++)
        set(p, wrong, number() % n, pick(2) ? odd[number() % ODD] : 1e6 * uniform());
    const smm_run run = several();
    if (backward(p, &r, wrong, FIRST, &run) != SMM_OK) fail("wrong saved state: an error");
}

static void check_backward(const problem *p, results *first) {
    const smm_run one = {1, NULL, NULL}, more = several();
    const void *saved = first->out[SAVED];
    results r = {{NULL}, {NULL}};
    int any = 0;
    for (size_t i = 0; i < GRADED; i++) any |= p->d[i] != NULL;
    smm_status status = backward(p, first, saved, FIRST, &one);
    if (!any && p->dims.batch) {
        if (status != SMM_ERR_NULL) fail("no gradient of an output: status %d", (int)status);
        for (size_t i = 0; i < GRADIENTS; i++)
            if (first->grad[i])
                check_untouched(first->grad[i], p->grad_size[i] * p->real, FIRST, "gradient", i);
        return;
    }
    if (status != SMM_OK) fail("backward: status %d", (int)status);
    status = backward(p, &r, saved, SECOND, &more);
    if (status != SMM_OK) fail("backward, %d threads: status %d", more.threads, (int)status);
    check_same_gradients(p, first, &r, "backward again or on more threads, gradient");
    if (p->ordinary) check_finite(p, first);
    if (!p->dims.batch) {
        for (size_t i = PARAMS; i < GRADIENTS; i++)
            for (size_t j = 0; j < p->grad_size[i]; j++)
                if (get(p, first->grad[i], j) != 0) fail("a gradient of no image");
        return;
    }
    if (one_in(6)) check_interrupted(p, saved);
    if (one_in(16)) check_wrong_saved(p, saved);
}

static void check_calls(const problem *p) {
    const smm_run one = {1, NULL, NULL}, more = several();
    results first = {{NULL}, {NULL}}, r = {{NULL}, {NULL}};
    const size_t B = p->dims.batch;
    check_rule(p);
    smm_status status = forward(p, &first, FIRST, pick(2) ? NULL : &one);
    if (status == SMM_ERR_CONFIG && !p->ordinary) {
        check_nothing_written(p, &first, FIRST);
        return;
    }
    if (status != SMM_OK) fail("forward: status %d, %s", (int)status, smm_status_str(status));
    status = forward(p, &r, SECOND, &more);
    if (status != SMM_OK) fail("forward, %d threads: status %d", more.threads, (int)status);
    check_same_outputs(p, &first, &r, "forward again or on more threads, output");
    if (p->ordinary) check_finite(p, &first);
    if (B && one_in(6)) check_interrupted(p, NULL);
    if (B && p->in[X_BFLOAT16] && pick(2)) check_widened(p, &first);
    const int saved = p->out_size[SAVED] || !B;
    if (saved) check_backward(p, &first);
    int any = 0;
    for (size_t i = 0; i < GRADED; i++) any |= p->d[i] != NULL;
    if (B > 1 && one_in(4)) check_image_alone(p, &first, saved && any ? first.out[SAVED] : NULL);
}

/* ---- Mistakes: each has its status, and nothing is written. */

enum mistake {
    NO_CONFIG,
    NO_DIMS,
    NO_INPUTS,
    NO_X,
    NO_START,
    NO_LOG_STD,
    NO_PARAMS,
    NO_PARAM,
    NO_OUT,
    NO_SLOTS,
    ZERO_N,
    ZERO_K,
    ZERO_T,
    MANY_T,
    MANY_K,
    MANY_N,
    MANY_B,
    HEADS,
    FLAG,
    NO_DIM,
    KIND,
    GRADIENT,
    NEGATIVE_EPS,
    NAN_FLOOR,
    INFINITE_SCALE,
    BAD_INDEX,
    EMPTY_MASK,
    EMPTY_SLOT_MASK,
    NO_SAVED,
    NO_D,
    NO_GRADS,
    MISTAKES
};

static void check_mistake(problem *p) {
    const enum mistake m = (enum mistake)pick(MISTAKES);
    const size_t B = p->dims.batch, N = p->dims.inputs, K = p->dims.slots;
    const int learned = p->config.kind <= SMM_SLOT_MIXTURE_REFERENCE;
    const int of_backward = m >= NO_SAVED || (m != NO_OUT && m != NO_SLOTS && pick(2));
    smm_status wanted = m <= NO_SLOTS || m >= NO_SAVED ? SMM_ERR_NULL
                        : m <= MANY_B                  ? SMM_ERR_DIMS
                        : m <= INFINITE_SCALE          ? SMM_ERR_CONFIG
                        : m == BAD_INDEX               ? SMM_ERR_INDEX
                        : m == EMPTY_MASK              ? SMM_ERR_NO_INPUT
                                                       : SMM_ERR_NO_SLOT;
    size_t image = 0, bad = 0;
    results r = {{NULL}, {NULL}};
    if (!B || !p->ordinary || (m == BAD_INDEX && p->config.qkv_dim != p->config.dim)) return;
    bad = number() % B;
    for (size_t i = 0; i < OUTPUTS; i++)
        r.out[i] = new_array(p->whole_out[i] * bytes_of(p, i), 0, FIRST);
    for (size_t i = 0; i < GRADIENTS; i++)
        r.grad[i] = new_array(p->whole_grad[i] * p->real, 0, FIRST);
    memcpy(p->out_size, p->whole_out, sizeof p->out_size);
    memcpy(p->grad_size, p->whole_grad, sizeof p->grad_size);
    const void *saved = new_array(p->whole_out[SAVED] * p->real, 0, 0);
    if (!p->d[SLOTS]) p->d[SLOTS] = numbers(p, p->whole_out[SLOTS], 1, 0);
    smm_config *c = &p->config, *config = m == NO_CONFIG ? NULL : c;
    smm_dims *dims = m == NO_DIMS ? NULL : &p->dims;
    void **in = m == NO_INPUTS ? NULL : p->in, **out = m == NO_OUT ? NULL : r.out;
    void **params = m == NO_PARAMS && learned ? NULL : p->params;
    void **d = m == NO_D ? NULL : p->d, **grads = m == NO_GRADS ? NULL : r.grad;
    switch (m) {
    case NO_X: p->in[X] = p->in[X_BFLOAT16] = NULL; break;
    case NO_START: p->in[MEAN] = p->in[INDICES] = NULL; break;
    case NO_LOG_STD: p->in[LOG_STD] = NULL; break;
    case NO_PARAM: p->params[SMM_TO_Q_WEIGHT] = NULL; break;
    case NO_SLOTS: r.out[SLOTS] = NULL; break;
    case ZERO_N: p->dims.inputs = 0; break;
    case ZERO_K: p->dims.slots = 0; break;
    case ZERO_T: p->dims.iters = 0; break;
    case MANY_T: p->dims.iters = ((size_t)1 << 20) + pick(3); break;
    case MANY_K: p->dims.slots = ((size_t)1 << 20) + 1 + pick(3); break;
    case MANY_N: p->dims.inputs = ((size_t)-1 >> pick(7)) - pick(200); break;
    case MANY_B: p->dims.batch = ((size_t)-1 >> pick(7)) - pick(200); break;
    case HEADS: c->heads = pick(2) ? 0 : c->qkv_dim + 1; break;
    case FLAG: c->reduce = pick(2) ? 2 : -1; break;
    case NO_DIM: c->dim = pick(2) ? 0 : SMM_WIDTH_MOST + 1; break;
    case KIND: c->kind = (smm_kind)(SMM_GAUSSIAN_MIXTURE + 1 + (int)pick(100)); break;
    case GRADIENT: c->gradient = pick(2) ? 4 : -1; break;
    case NEGATIVE_EPS: c->eps = -1e-9; break;
    case NAN_FLOOR: c->var_floor = NAN; break;
    case INFINITE_SCALE: c->scale = INFINITY; break;
    case BAD_INDEX: {
        const int64_t wrong[] = {-1, (int64_t)N, INT64_MIN, INT64_MAX};
        int64_t *indices = p->in[INDICES] = new_array(B * K * sizeof *indices, 0, 0);
        const uint8_t *mask = p->in[MASK];
        for (size_t i = 0; i < B * K; i++)
            while (mask && !mask[i / K * N + (size_t)indices[i]]) indices[i]++;
        indices[bad * K + number() % K] = wrong[pick(4)];
        break;
    }
    case EMPTY_MASK:
        p->in[INDICES] = NULL;
        if (!p->in[MEAN]) p->in[MEAN] = numbers(p, B * K * c->dim, 1, 0);
        p->in[MASK] = draw_mask(B, N);
        memset((uint8_t *)p->in[MASK] + bad * N, 0, N);
        break;
    case EMPTY_SLOT_MASK:
        p->in[SLOT_MASK] = draw_mask(B, K);
        memset((uint8_t *)p->in[SLOT_MASK] + bad * K, 0, K);
        break;
    default: break;
    }
    if (((m == NO_PARAMS || m == NO_PARAM) && !learned) || (m == NO_LOG_STD && !p->mixture)) return;
    if (m == NO_SAVED) saved = NULL;
    const smm_run run = several();
    calls++;
    const int narrow = p->real == sizeof(float);
    const smm_status status =
        of_backward
            ? (narrow ? backward_f32 : backward_f64)(p, config, dims, params, in, saved, d, grads,
                                                     &run, &image)
            : (narrow ? forward_f32 : forward_f64)(p, config, dims, params, in, out, &run, &image);
    check_guards();
    if (status != wanted)
        fail("mistake %d: status %d (%s), expected %d", (int)m, (int)status, smm_status_str(status),
             (int)wanted);
    if (m >= BAD_INDEX && m <= EMPTY_SLOT_MASK && image != bad)
        fail("mistake %d: image %zu, expected %zu", (int)m, image, bad);
    check_nothing_written(p, &r, FIRST);
    smm_saved_size(config, dims);
}

/* Options by name, and the search for what is not finite. */
static void check_small_calls(void) {
    smm_config c;
    const char *text = NULL, *name = smm_option_name(pick(32), &text);
    const double value = pick(2) ? odd[pick(ODD)] : (double)pick(300) - 3;
    smm_config_init(&c, (smm_kind)pick(5), 1 + pick(64));
    const smm_status status = smm_config_set(&c, name, value);
    if (status != SMM_OK && status != SMM_ERR_CONFIG && !(status == SMM_ERR_NULL && !name))
        fail("smm_config_set: status %d", (int)status);
    const size_t n = pick(200) + (one_in(8) ? 2000 : 0), at = n ? number() % n : 0;
    float *narrow = new_array(n * sizeof *narrow, 4 * pick(2), 0);
    double *wide = new_array(n * sizeof *wide, 0, 0);
    const int there = n && pick(2);
    if (there) narrow[at] = -INFINITY, wide[at] = NAN;
    if (smm_first_nonfinite(32, narrow, n, 2) != (there ? at : n) ||
        smm_first_nonfinite(64, wide, n, 2) != (there ? at : n))
        fail("smm_first_nonfinite, %zu of %zu", at, n);
    calls += 3;
}

/* ---- The target. */

static void tell(void) { fprintf(stderr, "calls: %llu\nfaults: %llu\n", calls, faults); }

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    atexit(tell);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *sets[8];
    static size_t count;
    const char *name;
    int supported;
    for (size_t i = 0; !sets[0] && (name = smm_simd_list(i, &supported)); i++)
        if (supported) sets[count++] = name;
    problem p;
    open_input(data, size);
    if (smm_simd_set(sets[count > 1 && pick(5) ? 1 + pick(count - 1) : 0])) fail("smm_simd_set");
    draw_problem(&p);
    if (one_in(5)) check_mistake(&p);
    else check_calls(&p);
    if (one_in(32)) check_small_calls();
    if (one_in(64)) smm_trim();
    free_arrays(0);
    return 0;
}
