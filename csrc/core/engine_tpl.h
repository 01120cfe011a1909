/* engine_tpl.h - the public calls: checks, memory, threads, sums of parameter gradients. */
#ifndef SMM_ENGINE_TPL_H
#define SMM_ENGINE_TPL_H

#include "image_tpl.h"

/* Memory of a call. */
typedef struct {
    image_state *images; /* one for each worker: an image in progress */
    size_t workers;      /* threads with images of their own, or 1 that shares each with all */
    input_block *blocks; /* one for each thread */
    grad_set *sets;      /* backward: one for each group */
    packed_params params;
    call_inputs in; /* the caller's, but masks and indices: copies, which no one else can change */
    int stopped;
    void *memory;
} call_memory;

/* A copy of n elements of `size` bytes, or NULL of NULL. */
static const void *copy_of(const void *from, size_t n, size_t size, smm_arena *arena) {
    void *to = from ? smm_carve(arena, n, size) : NULL;
    return to ? memcpy(to, from, n * size) : NULL;
}

static void copy_inputs(call_memory *call, const smm_sizes *s, const call_inputs *in,
                        smm_arena *arena) {
    call->in = *in;
    call->in.mask = copy_of(in->mask, s->B * s->N, sizeof *in->mask, arena);
    call->in.slot_mask = copy_of(in->slot_mask, s->B * s->K, sizeof *in->slot_mask, arena);
    call->in.indices = copy_of(in->indices, s->B * s->K, sizeof *in->indices, arena);
}

static int any(const uint8_t *flags, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (flags[i]) return 1;
    return 0;
}

/* Image b: a real input, an active slot, and indices of real inputs. */
static smm_status check_image(const smm_sizes *s, const call_inputs *in, size_t b) {
    const uint8_t *mask = in->mask ? in->mask + b * s->N : NULL;
    const uint8_t *slot_mask = in->slot_mask ? in->slot_mask + b * s->K : NULL;
    const int64_t *indices = in->indices ? in->indices + b * s->K : NULL;
    if (mask && !any(mask, s->N)) return SMM_ERR_NO_INPUT;
    if (slot_mask && !any(slot_mask, s->K)) return SMM_ERR_NO_SLOT;
    if (!indices) return SMM_OK;
    for (size_t j = 0; j < s->K; j++) {
        const int64_t row = indices[j];
        if (row < 0 || (uint64_t)row >= s->N || (mask && !mask[row])) return SMM_ERR_INDEX;
    }
    return SMM_OK;
}

static smm_status check_images(const smm_sizes *s, const call_inputs *in, size_t *image) {
    smm_status status = SMM_OK;
    for (size_t b = 0; b < s->B && status == SMM_OK; b++) {
        status = check_image(s, in, b);
        if (image) *image = b;
    }
    return status;
}

/* Whether the options are numbers of this precision too: they were checked in double. */
static int options_fit(const smm_config *c) {
    if (c->bfloat16 && sizeof(real) != sizeof(float)) return 0;
    const double factors[] = {c->temperature, c->scale, c->eps, c->norm_eps, c->var_floor};
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++)
        if ((factors[i] > 0 && (real)factors[i] <= 0) || isinf((real)factors[i])) return 0;
    return 1;
}

static smm_status check_call(const smm_sizes *s, const real *const *params, const call_inputs *in) {
    size_t shape[2];
    if (!options_fit(s->cfg)) return SMM_ERR_CONFIG;
    if (!in || (!in->x && !in->x_bfloat16) || (!in->mean && !in->indices)) return SMM_ERR_NULL;
    if (s->variance && !in->log_std) return SMM_ERR_NULL;
    if (s->dot && in->indices && s->P != s->D)
        return SMM_ERR_CONFIG; /* slots that start at values */
    for (size_t i = 0; i < SMM_PARAMS; i++)
        if (smm_param_shape(s->cfg, i, shape) && (!params || !params[i])) return SMM_ERR_NULL;
    return SMM_OK;
}

/* Of an image's segments the first has a place for every parameter's gradient, the others for those
 * of the inputs' side alone. */
static void layout_sets(call_memory *call, const smm_sizes *s, smm_arena *arena) {
    call->sets = smm_carve(arena, s->groups, sizeof *call->sets);
    for (size_t g = 0; g < s->groups; g++)
        for (size_t i = 0; i < SMM_PARAMS; i++) {
            const smm_layout l = s->layout[i];
            const size_t size = g % s->segments && l.of_slots ? 0 : l.size;
            real *at = size ? CARVE(size) : NULL;
            if (call->sets) call->sets[g].at[i] = at;
        }
}

static void layout_call(call_memory *call, const smm_sizes *s, const call_inputs *in, int threads,
                        int backward, smm_arena *arena) {
    copy_inputs(call, s, in, arena);
    call->images = smm_carve(arena, call->workers, sizeof *call->images);
    call->blocks = smm_carve(arena, (size_t)threads, sizeof *call->blocks);
    for (size_t i = 0; i < call->workers; i++) {
        image_state image = {0};
        layout_image(&image, s, in->mask != NULL, backward, arena);
        if (call->images) call->images[i] = image;
    }
    for (int i = 0; i < threads; i++) {
        input_block block = {0};
        layout_block(&block, s, backward, arena);
        if (call->blocks) call->blocks[i] = block;
    }
    layout_params(&call->params, s, backward, arena);
    if (backward) layout_sets(call, s, arena);
}

/* Whether each thread has images of its own: where there are enough, unless what is cached of a
 * mixture's image hardly fits the last level of cache. Then all threads take one image together. */
static int by_image(const smm_sizes *s, int threads, int backward) {
    if (threads < 2 || s->B < (size_t)threads) return 0;
    const int cached = s->input_mlp && (backward ? s->cache_backward : s->cache_forward);
    const size_t size = s->blocks * SMM_BLOCK * s->C * (backward ? 4 : 2) * sizeof(real);
    const size_t shares = backward ? s->segments : s->chunks, count = (size_t)threads;
    return !cached || size < (size_t)8 << 20 || (shares % count && shares < 8 * count);
}

/* Threads that there is work for. Waking one costs as much as the multiplications of a small
 * parallel region: all images share one, or each has one for its inputs and one for each step. */
static int useful_threads(const smm_sizes *s, int threads, int backward) {
    if (threads < 2) return 1;
    const int outer = by_image(s, threads, backward);
    const double mlp = s->input_mlp ? (double)(s->H * (s->I + s->F)) : 0;
    const double maps = s->learned && !s->folded ? (double)(s->F * s->D) : 0;
    const double image = (double)s->N * (mlp + maps + 4.0 * (double)(s->K * s->D * s->T));
    if ((outer ? (double)s->B * image : image / (double)(s->T + 1)) < 1 << 16) return 1;
    return (int)smm_min((size_t)threads, outer ? s->B : s->chunks);
}

static void open_worker(call_memory *call, const smm_sizes *s, const smm_run *run, size_t worker,
                        int threads) {
    image_state *im = &call->images[worker];
    im->k = im->side.k = KERNELS_GET();
    im->s = im->side.s = s;
    im->p = call->params.plain;
    im->threads = im->side.threads = threads;
    im->blocks = &call->blocks[worker];
    im->side.w = call->params.packed;
    im->side.ones = call->params.ones;
    im->e.factor = logit_factor(s);
    im->run = worker == 0 ? run : NULL;
    im->stopped = &call->stopped;
}

/* Memory for a call of that many threads, shared out over images or over one image's blocks and
 * slots. */
static smm_status open_call(call_memory *call, const smm_sizes *s, const real *const *params,
                            const call_inputs *in, const smm_run *run, size_t *image, int threads,
                            int backward) {
    const int outer = by_image(s, threads, backward);
    smm_arena arena = {NULL, 0, 0};
    memset(call, 0, sizeof *call);
    call->workers = outer ? (size_t)threads : 1;
    layout_call(call, s, in, threads, backward, &arena);
    if (arena.overflow) return SMM_ERR_DIMS;
    call->memory = arena.base = smm_alloc(arena.used);
    if (!arena.base) return SMM_ERR_NOMEM;
    arena.used = 0;
    layout_call(call, s, in, threads, backward, &arena);
    const smm_status status = check_images(s, &call->in, image);
    if (status != SMM_OK) {
        smm_free(call->memory);
        return status;
    }
    for (int i = 0; i < threads; i++)
        for (size_t j = 0; j < SMM_BLOCK; j++) call->blocks[i].ones[j] = 1;
    pack(&call->params, s, params, threads);
    for (size_t i = 0; i < call->workers; i++) open_worker(call, s, run, i, outer ? 1 : threads);
    return SMM_OK;
}

/* The sizes of a call of one image in place of none: what there is to check is checked all the
 * same. */
static smm_dims at_least_one(const smm_dims *dims) {
    smm_dims some = *dims;
    some.batch += some.batch == 0;
    return some;
}

static smm_status close_call(call_memory *call) {
    smm_free(call->memory);
    return call->stopped ? SMM_ERR_STOPPED : SMM_OK;
}

/* smm_forward_f32 and smm_forward_f64. */
static smm_status run_forward(const smm_config *config, const smm_dims *dims,
                              const real *const *params, const call_inputs *in,
                              const call_outputs *out, const smm_run *run, size_t *image) {
    smm_sizes s;
    call_memory call;
    if (!dims) return SMM_ERR_NULL;
    const smm_dims some = at_least_one(dims);
    smm_status status = smm_sizes_init(&s, config, &some);
    if (status != SMM_OK || !dims->batch) return status;
    status = check_call(&s, params, in);
    if (status != SMM_OK) return status;
    if (!out || !out->slots) return SMM_ERR_NULL;
    const int threads = useful_threads(&s, run ? run->threads : 1, 0);
    status = open_call(&call, &s, params, in, run, image, threads, 0);
    if (status != SMM_OK) return status;
    SMM_PARALLEL(call.workers, s.B, b, worker,
                 image_forward(&call.images[worker], &call.in, out, b));
    return close_call(&call);
}

/* The sums of parameter gradients are shared out as tasks of a few rows, side by side in a set. */
typedef struct {
    size_t first[SMM_PARAMS + 1]; /* each parameter's first task */
} set_tasks;

#define SET_ROWS 16

/* Sum of one task's rows over the sets, in their order, to the caller's array. */
static void add_set_rows(const smm_sizes *s, const set_tasks *tasks, const grad_set *sets,
                         const call_grads *grads, size_t task) {
    size_t i = 0;
    while (tasks->first[i + 1] <= task) i++;
    const smm_layout *l = &s->layout[i];
    const int matrix = l->rank == 2;
    const size_t begin = (task - tasks->first[i]) * SET_ROWS;
    const size_t end = matrix ? smm_min(begin + SET_ROWS, l->out) : 1;
    const size_t parts = matrix ? l->in_parts : l->out_parts;
    const size_t part = (matrix ? l->in : l->out) / parts, padded = smm_pad(part);
    for (size_t g = 0; g < s->groups; g++) {
        if (!sets[g].at[i]) continue;
        for (size_t j = begin * parts; j < end * parts; j++) {
            const real *from = sets[g].at[i] + j / parts * l->ld + j % parts * padded;
            real *to = grads->params[i] + j * part;
            for (size_t c = 0; c < part; c++) to[c] = g ? to[c] + from[c] : from[c];
        }
    }
}

static void add_sets(const smm_sizes *s, const grad_set *sets, const call_grads *grads,
                     int threads) {
    set_tasks tasks;
    size_t count = 0;
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const smm_layout *l = &s->layout[i];
        tasks.first[i] = count;
        if (!l->rank || !grads->params[i]) continue;
        count += l->rank == 2 ? (l->out + SET_ROWS - 1) / SET_ROWS : 1;
    }
    tasks.first[SMM_PARAMS] = count;
    SMM_PARALLEL(threads, count, task, thread, add_set_rows(s, &tasks, sets, grads, task));
}

/* The u-th of `units` shares of the images, with sets of gradients of their own: one, or one for
 * each segment of the only image. */
static void unit_backward(const call_memory *call, const smm_sizes *s, image_state *im,
                          const backward_arguments *a, size_t u, size_t units) {
    const size_t end = smm_part(s->B, u + 1, units);
    const grad_set *sets = &call->sets[u * s->segments];
    clear_set(s, sets);
    for (size_t b = smm_part(s->B, u, units); b < end; b++) image_backward(im, a, sets, b);
    finish_pending(&im->side, sets);
}

/* Of no image: zeros. */
static void clear_grads(const smm_sizes *s, const call_grads *grads) {
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const smm_layout l = s->layout[i];
        if (l.rank && grads->params[i]) memset(grads->params[i], 0, l.out * l.in * sizeof(real));
    }
}

static int any_grad(const call_output_grads *d) {
    return d->slots || d->mean || d->variance || d->prior || d->log_likelihood || d->attention;
}

/* smm_backward_f32 and smm_backward_f64. */
static smm_status run_backward(const smm_config *config, const smm_dims *dims,
                               const real *const *params, const backward_arguments *given,
                               const smm_run *run, size_t *image) {
    smm_sizes s;
    call_memory call;
    if (!dims) return SMM_ERR_NULL;
    const smm_dims some = at_least_one(dims);
    smm_status status = smm_sizes_init(&s, config, &some);
    if (status != SMM_OK) return status;
    if (!given->grads) return SMM_ERR_NULL;
    if (!dims->batch) {
        clear_grads(&s, given->grads);
        return SMM_OK;
    }
    status = check_call(&s, params, given->in);
    if (status != SMM_OK) return status;
    if (!given->saved || !given->d || !any_grad(given->d)) return SMM_ERR_NULL;
    const int threads = useful_threads(&s, run ? run->threads : 1, 1);
    status = open_call(&call, &s, params, given->in, run, image, threads, 1);
    if (status != SMM_OK) return status;
    const backward_arguments a = {&call.in, given->saved, given->d, given->grads};
    const size_t units = s.segments > 1 ? s.B : s.groups;
    SMM_PARALLEL(call.workers, units, u, worker,
                 unit_backward(&call, &s, &call.images[worker], &a, u, units));
    if (!call.stopped) add_sets(&s, call.sets, given->grads, threads);
    return close_call(&call);
}

#endif
