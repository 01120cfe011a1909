/* engine_tpl.h - the public calls: check, reserve memory, share the images among threads, add up parameter gradients. */

/* Memory of a call: `workers` images in progress, scratch for every thread, gradient sets. */
typedef struct {
    SMM_T(image) *images;
    SMM_T(block) *blocks;
    SMM_T(grad_set) *sets;
    SMM_T(params) params;
    size_t workers;
    int inner; /* threads of one image: its blocks are shared; 1: each thread has images of its own */
    void *memory;
} SMM_T(call);

static smm_status SMM_T(check_images)(const smm_sizes *s, const SMM_T(smm_inputs) *in, size_t *image)
{
    size_t ignored;
    if (!image) image = &ignored;
    for (size_t b = 0; b < s->B; b++) {
        *image = b;
        size_t inputs = !in->mask, slots = !in->slot_mask;
        for (size_t i = 0; in->mask && i < s->N; i++) inputs += in->mask[b * s->N + i] != 0;
        for (size_t j = 0; in->slot_mask && j < s->K; j++) slots += in->slot_mask[b * s->K + j] != 0;
        if (!inputs) return SMM_ERR_NO_INPUT;
        if (!slots) return SMM_ERR_NO_SLOT;
        for (size_t j = 0; in->indices && j < s->K; j++) {
            const int64_t row = in->indices[b * s->K + j];
            if (row < 0 || (uint64_t)row >= s->N || (in->mask && !in->mask[b * s->N + (size_t)row])) return SMM_ERR_INDEX;
        }
    }
    return SMM_OK;
}

static smm_status SMM_T(check_call)(smm_sizes *s, const smm_config *config, const smm_dims *dims, const real *const *params,
                                    const SMM_T(smm_inputs) *in, size_t *image)
{
    const smm_status status = smm_sizes_init(s, config, dims);
    size_t shape[2];
    if (status != SMM_OK) return status;
    const double factors[] = {config->temperature, config->scale, config->eps, config->norm_eps};
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++) /* in double, the configuration is checked */
        if ((real)factors[i] <= 0 || isinf((real)factors[i])) return SMM_ERR_CONFIG;
    if (!in || (!in->x && !in->x_bfloat16) || (!in->mean && !in->indices) || (s->variance && !in->log_std)) return SMM_ERR_NULL;
    for (size_t i = 0; i < SMM_PARAMS; i++)
        if (smm_param_shape(config, i, shape) && (!params || !params[i])) return SMM_ERR_NULL;
    return SMM_T(check_images)(s, in, image);
}

/* Of an image's segments the first has a place for every parameter's gradient, the others for those of the inputs' side alone. */
static void SMM_T(layout_sets)(SMM_T(call) *call, const smm_sizes *s, smm_arena *arena)
{
    for (size_t g = 0; g < s->groups; g++)
        for (size_t i = 0; i < SMM_PARAMS; i++) {
            const size_t size = g % s->segments && SMM_T(of_slots)(s, i) ? 0 : smm_layout_of(s->cfg, i).size;
            real *at = size ? CARVE(size) : NULL;
            if (call->sets) call->sets[g].at[i] = at;
        }
}

static void SMM_T(layout_call)(SMM_T(call) *call, const smm_sizes *s, int threads, int masked, int backward, smm_arena *arena)
{
    call->images = smm_carve(arena, call->workers, sizeof *call->images);
    call->blocks = smm_carve(arena, (size_t)threads, sizeof *call->blocks);
    call->sets = backward ? smm_carve(arena, s->groups, sizeof *call->sets) : NULL;
    for (size_t i = 0; i < call->workers; i++) {
        SMM_T(image) image = {0};
        SMM_T(layout_image)(&image, s, masked, backward, arena);
        if (call->images) call->images[i] = image;
    }
    for (int i = 0; i < threads; i++) {
        SMM_T(block) block = {0};
        SMM_T(layout_block)(&block, s, backward, arena);
        if (call->blocks) call->blocks[i] = block;
    }
    SMM_T(layout_params)(&call->params, s, backward, arena);
    if (backward) SMM_T(layout_sets)(call, s, arena);
}

/* Whether each thread has images of its own: where there are enough, unless a mixture's keys and values that are kept from step to step,
 * backward their gradients too, are so many that they hardly fit the last cache: then all threads take one image together. */
static int SMM_T(by_image)(const smm_sizes *s, int threads, int backward)
{
    if (threads < 2 || s->B < (size_t)threads) return 0;
    const int kept = s->input_mlp && (backward ? s->keep_backward : s->keep);
    const size_t size = s->blocks * SMM_BLOCK * s->C * (backward ? 4 : 2) * sizeof(real), shares = backward ? s->segments : s->chunks;
    return !kept || size < (size_t)8 << 20 || (shares % (size_t)threads && shares < 8 * (size_t)threads);
}

/* Memory for a call of at most `threads` threads: shared out over images, or over one image's blocks and slots. */
static smm_status SMM_T(open_call)(SMM_T(call) *call, const smm_sizes *s, const real *const *params, int threads, int masked,
                                   int backward)
{
    memset(call, 0, sizeof *call);
    const int outer = SMM_T(by_image)(s, threads, backward);
    call->workers = outer ? (size_t)threads : 1;
    call->inner = outer ? 1 : threads;
    smm_arena arena = {NULL, 0, 0};
    SMM_T(layout_call)(call, s, threads, masked, backward, &arena);
    if (arena.overflow) return SMM_ERR_DIMS;
    call->memory = arena.base = smm_alloc(arena.used);
    if (!arena.base) return SMM_ERR_NOMEM;
    arena.used = 0;
    SMM_T(layout_call)(call, s, threads, masked, backward, &arena);
    for (int i = 0; i < threads; i++)
        for (size_t j = 0; j < SMM_BLOCK; j++) call->blocks[i].ones[j] = 1;
    SMM_T(pack)(&call->params, s, params, threads);
    for (size_t i = 0; i < call->workers; i++) {
        SMM_T(image) *im = &call->images[i];
        im->k = KERNELS_GET(), im->s = s, im->p = call->params.plain, im->threads = call->inner, im->blocks = &call->blocks[i];
        im->side.k = im->k, im->side.s = s, im->side.w = call->params.packed, im->side.ones = call->params.ones;
        im->side.threads = call->inner;
    }
    return SMM_OK;
}

/* More threads than there is work for cost time only, and so does waking them for a few microseconds of work: multiplications
 * of one parallel region, roughly (all images share one; an image has one for its inputs and one for each step). */
static int SMM_T(useful_threads)(const smm_sizes *s, int threads, int backward)
{
    if (threads < 2) return 1;
    const int outer = SMM_T(by_image)(s, threads, backward);
    const double mlp = s->input_mlp ? (double)(s->H * (s->I + s->F)) : 0, maps = s->learned && !s->folded ? (double)(s->F * s->D) : 0;
    const double image = (double)s->N * (mlp + maps + 4.0 * (double)(s->K * s->D * s->T));
    if ((outer ? (double)s->B * image : image / (double)(s->T + 1)) < 1 << 16) return 1;
    return (int)smm_min((size_t)threads, outer ? s->B : s->chunks);
}

smm_status SMM_T(smm_forward)(const smm_config *config, const smm_dims *dims, const real *const params[SMM_PARAMS],
                              const SMM_T(smm_inputs) *in, const SMM_T(smm_outputs) *out, int threads, size_t *image)
{
    smm_sizes s;
    SMM_T(call) call;
    smm_status status = SMM_T(check_call)(&s, config, dims, params, in, image);
    if (status != SMM_OK) return status;
    if (!out || !out->slots) return SMM_ERR_NULL;
    threads = SMM_T(useful_threads)(&s, threads, 0);
    status = SMM_T(open_call)(&call, &s, params, threads, in->mask != NULL, 0);
    if (status != SMM_OK) return status;
    SMM_PARALLEL(call.workers, s.B, b, worker, SMM_T(image_forward)(&call.images[worker], in, out, b));
    smm_free(call.memory);
    return SMM_OK;
}

/* Tasks that the sums of parameters' gradients are shared out as: a few rows each, which lie side by side in a set. */
typedef struct {
    smm_layout layout[SMM_PARAMS];
    size_t first[SMM_PARAMS + 1]; /* each parameter's, counted on */
} SMM_T(set_tasks);

#define SET_ROWS 16

/* Sum of one task's rows over the sets, in their order, into the caller's array. */
static void SMM_T(add_set_rows)(const smm_sizes *s, const SMM_T(set_tasks) *tasks, const SMM_T(grad_set) *sets,
                                const SMM_T(smm_gradients) *grads, size_t task)
{
    size_t i = 0;
    while (tasks->first[i + 1] <= task) i++;
    const smm_layout *l = &tasks->layout[i];
    const size_t begin = (task - tasks->first[i]) * SET_ROWS, end = l->rank == 2 ? smm_min(begin + SET_ROWS, l->out) : 1;
    const size_t parts = l->rank == 2 ? l->in_parts : l->out_parts;
    const size_t part = (l->rank == 2 ? l->in : l->out) / parts, padded = smm_pad(part);
    for (size_t g = 0; g < s->groups; g++)
        for (size_t j = begin * parts; sets[g].at[i] && j < end * parts; j++) {
            const real *from = sets[g].at[i] + j * padded;
            real *to = grads->params[i] + j * part;
            for (size_t c = 0; c < part; c++) to[c] = g ? to[c] + from[c] : from[c];
        }
}

static void SMM_T(add_sets)(const smm_sizes *s, const SMM_T(grad_set) *sets, const SMM_T(smm_gradients) *grads, int threads)
{
    SMM_T(set_tasks) tasks;
    size_t count = 0;
    for (size_t i = 0; i < SMM_PARAMS; i++) {
        const smm_layout *l = &tasks.layout[i];
        tasks.layout[i] = smm_layout_of(s->cfg, i);
        tasks.first[i] = count;
        if (l->rank && grads->params[i]) count += l->rank == 2 ? (l->out + SET_ROWS - 1) / SET_ROWS : 1;
    }
    tasks.first[SMM_PARAMS] = count;
    SMM_PARALLEL(threads, count, task, thread, SMM_T(add_set_rows)(s, &tasks, sets, grads, task));
}

/* What a call of backward was given, for its units. */
typedef struct {
    const SMM_T(smm_inputs) *in;
    const real *saved, *d_slots, *d_attention;
    const SMM_T(smm_gradients) *grads;
} SMM_T(backward_arguments);

/* The u-th of `units` shares of the images, whose gradients are summed in sets of their own: one, or one for each segment of the only
 * image. */
static void SMM_T(unit_backward)(const SMM_T(call) *call, const smm_sizes *s, SMM_T(image) *im, const SMM_T(backward_arguments) *a,
                                 size_t u, size_t units)
{
    const size_t begin = smm_part(s->B, u, units), end = smm_part(s->B, u + 1, units);
    const SMM_T(grad_set) *sets = &call->sets[u * s->segments];
    SMM_T(clear_set)(s, sets);
    for (size_t b = begin; b < end; b++)
        SMM_T(image_backward)(im, a->in, a->saved, a->d_slots, a->d_attention, a->grads, sets, b);
    SMM_T(finish_pending)(&im->side, sets);
}

smm_status SMM_T(smm_backward)(const smm_config *config, const smm_dims *dims, const real *const params[SMM_PARAMS],
                               const SMM_T(smm_inputs) *in, const real *saved, const real *d_slots, const real *d_attention,
                               const SMM_T(smm_gradients) *grads, int threads, size_t *image)
{
    smm_sizes s;
    SMM_T(call) call;
    smm_status status = SMM_T(check_call)(&s, config, dims, params, in, image);
    if (status != SMM_OK) return status;
    if (!saved || !d_slots || !grads) return SMM_ERR_NULL;
    threads = SMM_T(useful_threads)(&s, threads, 1);
    status = SMM_T(open_call)(&call, &s, params, threads, in->mask != NULL, 1);
    if (status != SMM_OK) return status;
    const SMM_T(backward_arguments) a = {in, saved, d_slots, d_attention, grads};
    const size_t units = s.segments > 1 ? s.B : s.groups;
    SMM_PARALLEL(call.workers, units, u, worker, SMM_T(unit_backward)(&call, &s, &call.images[worker], &a, u, units));
    SMM_T(add_sets)(&s, call.sets, grads, threads);
    smm_free(call.memory);
    return SMM_OK;
}
