/* calls.c - forward and backward: parse, check, allocate, release the interpreter, call, raise. */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include "binding.h"

#include <string.h>
#include <time.h>

/* Names of the arguments: those of both calls, then each call's own. The first POSITIONAL may be
 * given by position. */
/* clang-format off */
#define ARGUMENT_LIST(X)                                                                         \
    X(config) X(x) X(params) X(num_iters) X(mean) X(log_std) X(prior) X(indices) X(mask)         \
    X(slot_mask) X(var_floor) X(attention) X(history) X(state) X(save) X(saved) X(d_slots)       \
    X(d_mean) X(d_variance) X(d_prior) X(d_log_likelihood) X(d_attention)
#define OUTPUT_LIST(X)                                                                           \
    X(slots) X(mean) X(variance) X(prior) X(log_likelihood) X(attention) X(iterations) X(saved)  \
    X(state_mean) X(state_log_std) X(state_prior) X(step_log_likelihood) X(step_prior)           \
    X(step_movement)
#define OUTPUT_GRAD_LIST(X)                                                                      \
    X(slots) X(mean) X(variance) X(prior) X(log_likelihood) X(attention)
/* clang-format on */

enum {
#define SMM_X(name) ARG_##name,
    ARGUMENT_LIST(SMM_X)
#undef SMM_X
        ARGS,
    POSITIONAL = ARG_mean,
    COMMON = ARG_attention,
    BACKWARD = ARG_saved
};

enum {
#define SMM_X(name) OUT_##name,
    OUTPUT_LIST(SMM_X)
#undef SMM_X
        OUTS
};
enum { GRAD_x, GRAD_mean, GRAD_log_std, GRAD_prior, GRAD_params, GRADS };

#define SMM_X(name) {#name, NULL},
static PyStructSequence_Field output_fields[] = {OUTPUT_LIST(SMM_X){NULL, NULL}};
#undef SMM_X
static PyStructSequence_Field gradient_fields[] = {{"x", NULL},       {"mean", NULL},
                                                   {"log_std", NULL}, {"prior", NULL},
                                                   {"params", NULL},  {NULL, NULL}};

PyStructSequence_Desc outputs_desc = {
    "smm_py._core.Outputs", "What forward returns: arrays, or None for what was not computed.",
    output_fields, OUTS};
PyStructSequence_Desc gradients_desc = {"smm_py._core.Gradients", "What backward returns.",
                                        gradient_fields, GRADS};

/* What both calls are given, checked; pointers are borrowed from the arguments. */
typedef struct {
    PyObject *given[ARGS]; /* None where not given */
    config_object *config;
    smm_dims dims;
    const void *params[SMM_PARAMS];
    const void *x, *x_bfloat16, *mean, *log_std, *prior, *indices, *mask, *slot_mask, *var_floor;
    int mixture;
    struct timespec asked; /* when the interpreter was last asked for signals */
} call_arguments;

/* Place of a keyword among the common arguments and own[0] to own[1] - 1, or ARGS. The search
 * begins where the keyword is if keywords come in the table's order. */
static int find_argument(PyObject *keyword, int expected, const int own[2]) {
    static const char *const names[] = {
#define SMM_X(name) #name,
        ARGUMENT_LIST(SMM_X)
#undef SMM_X
    };
    for (int n = 0; n < ARGS; n++) {
        const int i = (expected + n) % ARGS;
        if ((i < COMMON || (i >= own[0] && i < own[1])) &&
            PyUnicode_CompareWithASCIIString(keyword, names[i]) == 0)
            return i;
    }
    return ARGS;
}

static int collect(PyObject *const *args, Py_ssize_t count, PyObject *keywords, const int own[2],
                   PyObject **given) {
    if (count > POSITIONAL) {
        PyErr_Format(PyExc_TypeError, "at most %d arguments by position, got %zd", POSITIONAL,
                     count);
        return -1;
    }
    for (int i = 0; i < ARGS; i++) given[i] = i < count ? args[i] : Py_None;
    const Py_ssize_t named = keywords ? PyTuple_Size(keywords) : 0;
    int at = (int)count - 1;
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *keyword = PyTuple_GetItem(keywords, i);
        at = find_argument(keyword, at + 1, own);
        if (at == ARGS || at < count) {
            PyErr_Format(PyExc_TypeError, "unknown or repeated argument %R", keyword);
            return -1;
        }
        given[at] = args[count + i];
    }
    return 0;
}

static int parse_config(PyObject *module, PyObject *object, call_arguments *a) {
    module_state *state = PyModule_GetState(module);
    if (!PyObject_TypeCheck(object, state->config_type)) {
        raise_type(object, "config must be a Config");
        return -1;
    }
    a->config = (config_object *)object;
    const smm_kind kind = a->config->config.kind;
    a->mixture = kind != SMM_SLOT_ATTENTION && kind != SMM_KMEANS;
    return 0;
}

static int parse_params(PyObject *object, call_arguments *a) {
    const config_object *c = a->config;
    if (!PyTuple_Check(object) || PyTuple_Size(object) != c->params) {
        PyErr_Format(PyExc_TypeError, "params must be a tuple of %zd arrays", c->params);
        return -1;
    }
    for (Py_ssize_t i = 0; i < c->params; i++) {
        size_t shape[2] = {0, 0};
        const int rank = smm_param_shape(&c->config, c->param[i], shape);
        const npy_intp wanted[2] = {(npy_intp)shape[0], (npy_intp)shape[1]};
        view v;
        if (checked_view(PyTuple_GetItem(object, i), smm_param_name(c->param[i]), c->type, rank,
                         wanted, &v) < 0)
            return -1;
        a->params[c->param[i]] = v.data;
    }
    return 0;
}

/* The numbers of images and inputs, from x. */
static int parse_inputs(call_arguments *a) {
    view v;
    const npy_intp x_shape[3] = {ANY, ANY, (npy_intp)a->config->config.input_dim};
    if (checked_view(a->given[ARG_x], "x", a->config->input_type, 3, x_shape, &v) < 0) return -1;
    const int narrow = a->config->input_type == NPY_UINT16;
    a->x = narrow ? NULL : v.data, a->x_bfloat16 = narrow ? v.data : NULL;
    a->dims.batch = v.shape[0], a->dims.inputs = v.shape[1];
    if (!a->dims.inputs) {
        PyErr_SetString(PyExc_ValueError, "x must hold at least one input of each image, got none");
        return -1;
    }
    const npy_intp mask_shape[2] = {(npy_intp)a->dims.batch, (npy_intp)a->dims.inputs};
    if (optional_view(a->given[ARG_mask], "mask", NPY_BOOL, 2, mask_shape, &v) < 0) return -1;
    a->mask = v.data;
    return 0;
}

/* The number of slots, from whichever array gives the initial state. */
static int parse_states(call_arguments *a) {
    view v;
    PyObject *mean = a->given[ARG_mean], *indices = a->given[ARG_indices];
    const char *first = a->mixture ? "mean" : "slots";
    const int type = a->config->type;
    npy_intp shape[3] = {(npy_intp)a->dims.batch, ANY, (npy_intp)a->config->config.dim};
    if ((mean == Py_None) == (indices == Py_None)) {
        PyErr_Format(PyExc_TypeError, "exactly one of %s and indices must be given", first);
        return -1;
    }
    if (indices != Py_None) {
        if (checked_view(indices, "indices", NPY_INT64, 2, shape, &v) < 0) return -1;
        a->indices = v.data;
    } else {
        if (checked_view(mean, first, type, 3, shape, &v) < 0) return -1;
        a->mean = v.data;
    }
    a->dims.slots = v.shape[1];
    if (!a->dims.slots) {
        PyErr_Format(PyExc_ValueError, "%s must hold at least one slot, got none",
                     a->indices ? "indices" : first);
        return -1;
    }
    shape[1] = (npy_intp)a->dims.slots;
    if (optional_view(a->given[ARG_slot_mask], "slot_mask", NPY_BOOL, 2, shape, &v) < 0) return -1;
    a->slot_mask = v.data;
    if (!a->mixture) return 0;
    if (checked_view(a->given[ARG_log_std], "log_std", type, 3, shape, &v) < 0) return -1;
    a->log_std = v.data;
    if (optional_view(a->given[ARG_prior], "prior", type, 2, shape, &v) < 0) return -1;
    a->prior = v.data;
    shape[1] = shape[2];
    if (optional_view(a->given[ARG_var_floor], "var_floor", type, 2, shape, &v) < 0) return -1;
    a->var_floor = v.data;
    return 0;
}

static int parse_call(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *keywords,
                      const int own[2], call_arguments *a) {
    memset(a, 0, sizeof *a);
    clock_gettime(CLOCK_MONOTONIC, &a->asked);
    if (collect(args, count, keywords, own, a->given) < 0 ||
        parse_config(module, a->given[ARG_config], a) < 0 || parse_inputs(a) < 0 ||
        parse_params(a->given[ARG_params], a) < 0 || parse_states(a) < 0)
        return -1;
    const Py_ssize_t iters = PyNumber_AsSsize_t(a->given[ARG_num_iters], PyExc_OverflowError);
    if (iters < 1 && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "num_iters must be at least 1, got %zd", iters);
    a->dims.iters = (size_t)iters;
    return iters < 1 ? -1 : 0;
}

static PyObject *new_array(int type, int rank, size_t d0, size_t d1, size_t d2) {
    npy_intp shape[3] = {(npy_intp)d0, (npy_intp)d1, (npy_intp)d2};
    return PyArray_SimpleNew(rank, shape, type);
}

static size_t bytes_of(int type, size_t count) {
    return count * (type == NPY_FLOAT32 ? sizeof(float) : sizeof(double));
}

/* Memory of the core, which goes back to it with the last array that shows it. */
static void free_memory(PyObject *capsule) { smm_free(PyCapsule_GetPointer(capsule, NULL)); }
static PyObject *new_memory(size_t bytes) {
    void *memory = smm_alloc(bytes);
    if (!memory) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(memory, NULL, free_memory);
    if (!capsule) smm_free(memory);
    return capsule;
}

/* An array in such memory, `at` bytes from its beginning. */
static PyObject *array_in(PyObject *memory, size_t at, int type, int rank, size_t d0, size_t d1,
                          size_t d2) {
    npy_intp shape[3] = {(npy_intp)d0, (npy_intp)d1, (npy_intp)d2};
    char *first = PyCapsule_GetPointer(memory, NULL);
    PyObject *array = PyArray_SimpleNewFromData(rank, shape, type, first + at);
    if (!array) return NULL;
    Py_INCREF(memory);
    if (PyArray_SetBaseObject((PyArrayObject *)array, memory) < 0)
        Py_CLEAR(array); /* takes the reference in any case */
    return array;
}

/* Arrays of so many bytes are in the core's memory, whose pages later calls find there. */
#define LARGE ((size_t)1 << 20)
#define ALIGN 64 /* bytes between which such arrays begin */

static PyObject *new_saved(int type, size_t count) {
    PyObject *memory = new_memory(bytes_of(type, count));
    PyObject *array = memory ? array_in(memory, 0, type, 1, count, 0, 0) : NULL;
    Py_XDECREF(memory);
    return array;
}

static PyObject *new_large(int type, size_t d0, size_t d1, size_t d2) {
    const size_t bytes = bytes_of(type, d0 * d1 * d2);
    if (bytes < LARGE) return new_array(type, 3, d0, d1, d2);
    PyObject *memory = new_memory(bytes);
    PyObject *array = memory ? array_in(memory, 0, type, 3, d0, d1, d2) : NULL;
    Py_XDECREF(memory);
    return array;
}

static void *data(PyObject *array) { return array ? PyArray_DATA((PyArrayObject *)array) : NULL; }

/* Whether a signal handler has raised; the interpreter is asked twenty times a second. */
static int asked_to_stop(void *argument) {
    struct timespec now, *last = argument;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const double waited =
        (double)(now.tv_sec - last->tv_sec) + 1e-9 * (double)(now.tv_nsec - last->tv_nsec);
    if (waited < 0.05) return 0;
    *last = now;
    const PyGILState_STATE gil = PyGILState_Ensure();
    const int stop = PyErr_CheckSignals() < 0;
    PyGILState_Release(gil);
    return stop;
}

static smm_run how_to_run(call_arguments *a) {
    return (smm_run){threads_now(), asked_to_stop, &a->asked};
}

/* The two calls of the core in one precision. */
#define DEFINE_CALLS(T, real)                                                                      \
    static smm_inputs_##T inputs_##T(const call_arguments *a) {                                    \
        return (smm_inputs_##T){.x = a->x,                                                         \
                                .mean = a->mean,                                                   \
                                .log_std = a->log_std,                                             \
                                .prior = a->prior,                                                 \
                                .indices = a->indices,                                             \
                                .mask = a->mask,                                                   \
                                .slot_mask = a->slot_mask,                                         \
                                .x_bfloat16 = a->x_bfloat16,                                       \
                                .var_floor = a->var_floor};                                        \
    }                                                                                              \
    static smm_status forward_##T(call_arguments *a, PyObject *const *out, size_t *image) {        \
        const smm_inputs_##T in = inputs_##T(a);                                                   \
        const smm_run run = how_to_run(a);                                                         \
        const smm_outputs_##T to = {OUTPUT_LIST(OUTPUT_DATA)};                                     \
        return smm_forward_##T(&a->config->config, &a->dims, (const real *const *)a->params, &in,  \
                               &to, &run, image);                                                  \
    }                                                                                              \
    static smm_status backward_##T(call_arguments *a, const view *v, PyObject *const *out,         \
                                   void *const *params, size_t *image) {                           \
        const smm_inputs_##T in = inputs_##T(a);                                                   \
        const smm_run run = how_to_run(a);                                                         \
        const smm_output_grads_##T d = {OUTPUT_GRAD_LIST(GRAD_DATA)};                              \
        smm_gradients_##T to = {.x = data(out[GRAD_x]),                                            \
                                .mean = data(out[GRAD_mean]),                                      \
                                .log_std = data(out[GRAD_log_std]),                                \
                                .prior = data(out[GRAD_prior])};                                   \
        memcpy(to.params, params, sizeof to.params);                                               \
        return smm_backward_##T(&a->config->config, &a->dims, (const real *const *)a->params, &in, \
                                v[ARG_saved].data, &d, &to, &run, image);                          \
    }
#define OUTPUT_DATA(name) .name = data(out[OUT_##name]),
#define GRAD_DATA(name) .name = v[ARG_d_##name].data,
DEFINE_CALLS(f32, float)
DEFINE_CALLS(f64, double)

/* The result with its items, None in place of NULL, or NULL and an error; takes the references. */
static PyObject *finish(PyTypeObject *type, PyObject **items, int count, int made,
                        smm_status status, size_t image) {
    if (made && status != SMM_OK) raise_status(status, image);
    PyObject *result = made && status == SMM_OK ? PyStructSequence_New(type) : NULL;
    for (int i = 0; i < count; i++) {
        if (result) PyStructSequence_SetItem(result, i, items[i] ? items[i] : Py_NewRef(Py_None));
        else Py_XDECREF(items[i]);
    }
    return result;
}

/* Arrays for what forward is asked for; 0 with an error. */
static int make_outputs(const call_arguments *a, const int *asked, size_t saved, PyObject **out) {
    const smm_config *c = &a->config->config;
    const size_t B = a->dims.batch, N = a->dims.inputs, K = a->dims.slots, D = c->dim;
    const size_t T = a->dims.iters;
    const int type = a->config->type, mixture = a->mixture;
    const int likelihood = mixture && c->kind != SMM_SLOT_MIXTURE_REFERENCE;
    const int history = asked[ARG_history], state = asked[ARG_state];
    const int same =
        c->kind != SMM_SLOT_MIXTURE_REFERENCE; /* the state's mean and prior as mean, prior */
#define MAKE(name, wanted, array) (!(wanted) || (out[OUT_##name] = array))
    return MAKE(slots, 1, new_array(type, 3, B, K, smm_slot_width(c))) &&
           MAKE(mean, mixture, new_array(type, 3, B, K, D)) &&
           MAKE(variance, mixture, new_array(type, 3, B, K, D)) &&
           MAKE(prior, mixture, new_array(type, 2, B, K, 0)) &&
           MAKE(log_likelihood, likelihood, new_array(type, 1, B, 0, 0)) &&
           MAKE(attention, asked[ARG_attention], new_array(type, 3, B, N, K)) &&
           MAKE(iterations, 1, new_array(NPY_INT64, 1, B, 0, 0)) &&
           MAKE(state_mean, state && !same, new_array(type, 3, B, K, D)) &&
           MAKE(state_log_std, state && mixture, new_array(type, 3, B, K, D)) &&
           MAKE(state_prior, state && !same, new_array(type, 2, B, K, 0)) &&
           MAKE(step_log_likelihood, history && likelihood, new_array(type, 2, B, T, 0)) &&
           MAKE(step_prior, history && mixture, new_array(type, 3, B, T, K)) &&
           MAKE(step_movement, history, new_array(type, 2, B, T, 0)) &&
           MAKE(saved, asked[ARG_save], new_saved(type, saved));
#undef MAKE
}

PyObject *forward(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *keywords) {
    static const int own[2] = {COMMON, BACKWARD};
    call_arguments a;
    if (parse_call(module, args, count, keywords, own, &a) < 0) return NULL;
    int asked[ARGS] = {0};
    for (int i = COMMON; i < BACKWARD; i++)
        if ((asked[i] = PyObject_IsTrue(a.given[i])) < 0) return NULL;
    const size_t saved = smm_saved_size(&a.config->config, &a.dims);
    if (!saved && a.dims.batch) {
        raise_status(SMM_ERR_DIMS, 0);
        return NULL;
    }
    PyObject *out[OUTS] = {NULL};
    size_t image = 0;
    smm_status status = SMM_OK;
    const int made = make_outputs(&a, asked, saved, out);
    if (made) {
        const int narrow = a.config->type == NPY_FLOAT32;
        Py_BEGIN_ALLOW_THREADS;
        status = narrow ? forward_f32(&a, out, &image) : forward_f64(&a, out, &image);
        Py_END_ALLOW_THREADS;
    }
    return finish(((module_state *)PyModule_GetState(module))->outputs_type, out, OUTS, made,
                  status, image);
}

/* Rank, shape and bytes of the i-th gradient. */
static int gradient_shape(const config_object *c, Py_ssize_t i, size_t shape[2], size_t *bytes) {
    shape[1] = 1;
    const int rank = smm_param_shape(&c->config, c->param[i], shape);
    *bytes = (bytes_of(c->type, shape[0] * shape[1]) + ALIGN - 1) / ALIGN * ALIGN;
    return rank;
}

/* Arrays for the gradients of all parameters, as a tuple; their pointers in `to`. */
static PyObject *new_gradients(const config_object *c, void **to) {
    size_t shape[2], bytes, all = 0, at = 0;
    for (Py_ssize_t i = 0; i < c->params; i++) gradient_shape(c, i, shape, &bytes), all += bytes;
    PyObject *memory = all < LARGE ? NULL : new_memory(all), *tuple = NULL;
    if (memory || all < LARGE) tuple = PyTuple_New(c->params);
    for (Py_ssize_t i = 0; tuple && i < c->params; i++, at += bytes) {
        const int rank = gradient_shape(c, i, shape, &bytes);
        PyObject *array = memory ? array_in(memory, at, c->type, rank, shape[0], shape[1], 0)
                                 : new_array(c->type, rank, shape[0], shape[1], 0);
        if (!array) {
            Py_CLEAR(tuple);
            break;
        }
        to[c->param[i]] = data(array);
        PyTuple_SetItem(tuple, i, array);
    }
    Py_XDECREF(memory);
    return tuple;
}

/* The saved state and the gradients of the outputs. */
static int parse_gradients(const call_arguments *a, view *v) {
    const smm_config *c = &a->config->config;
    const npy_intp B = (npy_intp)a->dims.batch, N = (npy_intp)a->dims.inputs;
    const npy_intp K = (npy_intp)a->dims.slots, D = (npy_intp)c->dim;
    const npy_intp saved[1] = {(npy_intp)smm_saved_size(c, &a->dims)};
    const npy_intp slots[3] = {B, K, (npy_intp)smm_slot_width(c)}, state[3] = {B, K, D};
    const npy_intp attention[3] = {B, N, K};
    const int type = a->config->type;
#define VIEW(name, rank, shape) \
    optional_view(a->given[ARG_##name], #name, type, rank, shape, &v[ARG_##name])
    if (checked_view(a->given[ARG_saved], "saved", type, 1, saved, &v[ARG_saved]) < 0) return -1;
    return VIEW(d_slots, 3, slots) < 0 || VIEW(d_mean, 3, state) < 0 ||
                   VIEW(d_variance, 3, state) < 0 || VIEW(d_prior, 2, state) < 0 ||
                   VIEW(d_log_likelihood, 1, state) < 0 || VIEW(d_attention, 3, attention) < 0
               ? -1
               : 0;
#undef VIEW
}

PyObject *backward(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *keywords) {
    static const int own[2] = {BACKWARD, ARGS};
    call_arguments a;
    if (parse_call(module, args, count, keywords, own, &a) < 0) return NULL;
    const smm_config *c = &a.config->config;
    const size_t B = a.dims.batch, N = a.dims.inputs, K = a.dims.slots, D = c->dim;
    const int type = a.config->type;
    view v[ARGS];
    if (parse_gradients(&a, v) < 0) return NULL;

    PyObject *out[GRADS] = {NULL};
    void *params[SMM_PARAMS] = {NULL};
    size_t image = 0;
    smm_status status = SMM_OK;
    const int made = (out[GRAD_x] = new_large(type, B, N, c->input_dim)) &&
                     (!a.mean || (out[GRAD_mean] = new_array(type, 3, B, K, D))) &&
                     (!a.log_std || (out[GRAD_log_std] = new_array(type, 3, B, K, D))) &&
                     (!a.prior || (out[GRAD_prior] = new_array(type, 2, B, K, 0))) &&
                     (out[GRAD_params] = new_gradients(a.config, params));
    if (made) {
        Py_BEGIN_ALLOW_THREADS;
        status = type == NPY_FLOAT32 ? backward_f32(&a, v, out, params, &image)
                                     : backward_f64(&a, v, out, params, &image);
        Py_END_ALLOW_THREADS;
    }
    return finish(((module_state *)PyModule_GetState(module))->gradients_type, out, GRADS, made,
                  status, image);
}

PyObject *saved_size(PyObject *module, PyObject *args) {
    config_object *config;
    Py_ssize_t B, N, K, T;
    PyTypeObject *type = ((module_state *)PyModule_GetState(module))->config_type;
    if (!PyArg_ParseTuple(args, "O!nnnn:saved_size", type, &config, &B, &N, &K, &T)) return NULL;
    const smm_dims dims = {(size_t)B, (size_t)N, (size_t)K, (size_t)T};
    return PyLong_FromSize_t(smm_saved_size(&config->config, &dims));
}

PyObject *saved_rule(PyObject *module, PyObject *args) {
    config_object *config;
    Py_ssize_t K, T;
    PyTypeObject *type = ((module_state *)PyModule_GetState(module))->config_type;
    if (!PyArg_ParseTuple(args, "O!nn:saved_rule", type, &config, &K, &T)) return NULL;
    const smm_saved_rule r = smm_saved_rule_of(&config->config, (size_t)K, (size_t)T);
    return Py_BuildValue("{snsnsnsnsnsn}", "image", r.image, "block", r.block, "inputs", r.inputs,
                         "small", r.small, "most_of_small", r.most_of_small, "most", r.most);
}
