/* calls.c - forward and backward: parse, check, allocate, release the interpreter, call, raise. No mathematics. */
#include "binding.h"

#include <string.h>

/* What both calls are given, checked; pointers are borrowed from the arguments. */
typedef struct {
    config_object *config;
    smm_dims dims;
    const void *params[SMM_PARAMS];
    const void *x, *x_bfloat16, *state0, *state1, *indices, *mask, *slot_mask;
    int mixture;
} call_arguments;

static int parse_count(PyObject *object, const char *name, size_t *count) {
    const Py_ssize_t value = PyNumber_AsSsize_t(object, PyExc_OverflowError);
    if (value == -1 && PyErr_Occurred()) return -1;
    if (value < 1) {
        PyErr_Format(PyExc_ValueError, "%s must be at least 1, got %zd", name, value);
        return -1;
    }
    *count = (size_t)value;
    return 0;
}

static int parse_config(PyObject *module, PyObject *object, call_arguments *a) {
    module_state *state = PyModule_GetState(module);
    if (!PyObject_TypeCheck(object, state->config_type)) {
        PyErr_Format(PyExc_TypeError, "config must be a Config, got %s", Py_TYPE(object)->tp_name);
        return -1;
    }
    a->config = (config_object *)object;
    const smm_kind kind = a->config->config.kind;
    a->mixture = kind != SMM_SLOT_ATTENTION && kind != SMM_KMEANS;
    return 0;
}

static int parse_params(PyObject *object, call_arguments *a) {
    const config_object *c = a->config;
    memset(a->params, 0, sizeof a->params);
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != c->params) {
        PyErr_Format(PyExc_TypeError, "params must be a tuple of %zd arrays", c->params);
        return -1;
    }
    for (Py_ssize_t i = 0; i < c->params; i++) {
        size_t shape[2] = {0, 0};
        const int rank = smm_param_shape(&c->config, c->param[i], shape);
        const npy_intp wanted[2] = {(npy_intp)shape[0], (npy_intp)shape[1]};
        view v;
        if (checked_view(PyTuple_GET_ITEM(object, i), smm_param_name(c->param[i]), c->type, rank,
                         wanted, &v) < 0)
            return -1;
        a->params[c->param[i]] = v.data;
    }
    return 0;
}

/* The numbers of images and inputs, from x. */
static int parse_inputs(call_arguments *a, PyObject *x, PyObject *mask) {
    view v;
    const npy_intp x_shape[3] = {ANY, ANY, (npy_intp)a->config->config.input_dim};
    if (checked_view(x, "x", a->config->input_type, 3, x_shape, &v) < 0) return -1;
    const int narrow = a->config->input_type == NPY_UINT16;
    a->x = narrow ? NULL : v.data, a->x_bfloat16 = narrow ? v.data : NULL;
    a->dims.batch = v.shape[0], a->dims.inputs = v.shape[1];
    if (!a->dims.batch || !a->dims.inputs) {
        PyErr_Format(
            PyExc_ValueError,
            "x must hold at least one image of at least one input, got %zu images of %zu inputs",
            a->dims.batch, a->dims.inputs);
        return -1;
    }
    const npy_intp mask_shape[2] = {(npy_intp)a->dims.batch, (npy_intp)a->dims.inputs};
    if (optional_view(mask, "mask", NPY_BOOL, 2, mask_shape, &v) < 0) return -1;
    a->mask = v.data;
    return 0;
}

/* The number of slots, from whichever array gives the initial state. */
static int parse_states(call_arguments *a, PyObject *state0, PyObject *state1, PyObject *indices,
                        PyObject *slot_mask) {
    view v;
    const char *first = a->mixture ? "mean" : "slots";
    const int type = a->config->type;
    npy_intp shape[3] = {(npy_intp)a->dims.batch, ANY, (npy_intp)a->config->config.dim};
    if ((state0 == Py_None) == (indices == Py_None)) {
        PyErr_Format(PyExc_TypeError, "exactly one of %s and indices must be given", first);
        return -1;
    }
    if (indices != Py_None && checked_view(indices, "indices", NPY_INT64, 2, shape, &v) < 0)
        return -1;
    if (state0 != Py_None && checked_view(state0, first, type, 3, shape, &v) < 0) return -1;
    if (indices != Py_None) a->indices = v.data;
    else a->state0 = v.data;
    a->dims.slots = v.shape[1];
    if (!a->dims.slots) {
        PyErr_Format(PyExc_ValueError, "%s must hold at least one slot, got none",
                     a->indices ? "indices" : first);
        return -1;
    }
    shape[1] = (npy_intp)a->dims.slots;
    if (optional_view(slot_mask, "slot_mask", NPY_BOOL, 2, shape, &v) < 0) return -1;
    a->slot_mask = v.data;
    if (!a->mixture) return 0;
    if (checked_view(state1, "log_std", type, 3, shape, &v) < 0) return -1;
    a->state1 = v.data;
    return 0;
}

/* The arguments that both calls begin with, args[0] to args[8]. */
static int parse_call(PyObject *module, PyObject *const *args, call_arguments *a) {
    if (parse_config(module, args[0], a) < 0 || parse_inputs(a, args[1], args[6]) < 0 ||
        parse_params(args[2], a) < 0 || parse_states(a, args[3], args[4], args[5], args[7]) < 0)
        return -1;
    return parse_count(args[8], "num_iters", &a->dims.iters);
}

static PyObject *new_array(int type, int rank, size_t d0, size_t d1, size_t d2) {
    npy_intp shape[3] = {(npy_intp)d0, (npy_intp)d1, (npy_intp)d2};
    return PyArray_SimpleNew(rank, shape, type);
}

/* The memory of a vector, which the core takes back with the last array that shows it. */
static void free_memory(PyObject *capsule) { smm_free(PyCapsule_GetPointer(capsule, NULL)); }

/* A vector in memory of the core's. */
static PyObject *new_saved(int type, size_t count) {
    void *memory = smm_alloc(count * (type == NPY_FLOAT32 ? sizeof(float) : sizeof(double)));
    if (!memory) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(memory, NULL, free_memory);
    if (!capsule) {
        smm_free(memory);
        return NULL;
    }
    npy_intp shape[1] = {(npy_intp)count};
    PyObject *array = PyArray_SimpleNewFromData(1, shape, type, memory);
    if (!array) Py_DECREF(capsule);
    else if (PyArray_SetBaseObject((PyArrayObject *)array, capsule) < 0)
        Py_CLEAR(array); /* takes the capsule in any case */
    return array;
}

static void *data(PyObject *array) { return array ? PyArray_DATA((PyArrayObject *)array) : NULL; }

/* Replace NULL by None, so that PyTuple_Pack's arguments are all objects. */
static PyObject *or_none(PyObject *object) {
    if (object) return object;
    Py_RETURN_NONE;
}

static smm_status run_forward(const call_arguments *a, PyObject *const *out, size_t *image) {
    smm_status status;
    const int threads = threads_now();
    if (a->config->type == NPY_FLOAT32) {
        const smm_inputs_f32 in = {a->x,    a->state0,    a->state1,    a->indices,
                                   a->mask, a->slot_mask, a->x_bfloat16};
        const smm_outputs_f32 to = {data(out[0]), data(out[1]), data(out[2]), data(out[3]),
                                    data(out[4]), data(out[5]), data(out[7]), data(out[6])};
        Py_BEGIN_ALLOW_THREADS status =
            smm_forward_f32(&a->config->config, &a->dims, (const float *const *)a->params, &in, &to,
                            threads, image);
        Py_END_ALLOW_THREADS
    } else {
        const smm_inputs_f64 in = {a->x,    a->state0,    a->state1,    a->indices,
                                   a->mask, a->slot_mask, a->x_bfloat16};
        const smm_outputs_f64 to = {data(out[0]), data(out[1]), data(out[2]), data(out[3]),
                                    data(out[4]), data(out[5]), data(out[7]), data(out[6])};
        Py_BEGIN_ALLOW_THREADS status =
            smm_forward_f64(&a->config->config, &a->dims, (const double *const *)a->params, &in,
                            &to, threads, image);
        Py_END_ALLOW_THREADS
    }
    return status;
}

PyObject *forward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    call_arguments a = {0};
    PyObject *out[8] = {NULL}, *result = NULL; /* saved comes last */
    size_t image = 0;
    if (count != 11) {
        PyErr_Format(PyExc_TypeError, "forward takes 11 arguments, got %zd", count);
        return NULL;
    }
    if (parse_call(module, args, &a) < 0) return NULL;
    const int attention = PyObject_IsTrue(args[9]), save = PyObject_IsTrue(args[10]);
    if (attention < 0 || save < 0) return NULL;

    const smm_config *c = &a.config->config;
    const size_t B = a.dims.batch, N = a.dims.inputs, K = a.dims.slots, D = c->dim;
    const int type = a.config->type;
    const size_t saved = smm_saved_size(c, &a.dims);
    if (!saved) {
        raise_status(SMM_ERR_DIMS, 0);
        return NULL;
    }
    if (!(out[0] = new_array(type, 3, B, K, smm_slot_width(c)))) goto done;
    if (a.mixture &&
        (!(out[1] = new_array(type, 3, B, K, D)) || !(out[2] = new_array(type, 3, B, K, D)) ||
         !(out[3] = new_array(type, 2, B, K, 0))))
        goto done;
    if (a.mixture && c->kind != SMM_SLOT_MIXTURE_REFERENCE &&
        !(out[4] = new_array(type, 1, B, 0, 0)))
        goto done;
    if (attention && !(out[5] = new_array(type, 3, B, N, K))) goto done;
    if (!(out[6] = new_array(NPY_INT64, 1, B, 0, 0))) goto done;
    if (save && !(out[7] = new_saved(type, saved))) goto done;
    const smm_status status = run_forward(&a, out, &image);
    if (status != SMM_OK) {
        raise_status(status, image);
        goto done;
    }
    for (int i = 0; i < 8; i++) out[i] = or_none(out[i]);
    result = PyTuple_Pack(8, out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7]);
done:
    for (int i = 0; i < 8; i++) Py_XDECREF(out[i]);
    return result;
}

/* Arrays for the gradients of all parameters, as a tuple; their pointers in `to`. */
static PyObject *new_gradients(const config_object *c, void **to) {
    PyObject *tuple = PyTuple_New(c->params);
    for (Py_ssize_t i = 0; tuple && i < c->params; i++) {
        size_t shape[2] = {0, 0};
        const int rank = smm_param_shape(&c->config, c->param[i], shape);
        PyObject *array = new_array(c->type, rank, shape[0], shape[1], 0);
        if (!array) {
            Py_CLEAR(tuple);
            break;
        }
        to[c->param[i]] = data(array);
        PyTuple_SET_ITEM(tuple, i, array);
    }
    return tuple;
}

static smm_status run_backward(const call_arguments *a, const void *saved, const void *d_slots,
                               const void *d_attention, PyObject *const *out, void *const *params,
                               size_t *image) {
    smm_status status;
    const int threads = threads_now();
    if (a->config->type == NPY_FLOAT32) {
        const smm_inputs_f32 in = {a->x,    a->state0,    a->state1,    a->indices,
                                   a->mask, a->slot_mask, a->x_bfloat16};
        smm_gradients_f32 to = {data(out[0]), data(out[1]), data(out[2]), {NULL}};
        memcpy(to.params, params, sizeof to.params);
        Py_BEGIN_ALLOW_THREADS status =
            smm_backward_f32(&a->config->config, &a->dims, (const float *const *)a->params, &in,
                             saved, d_slots, d_attention, &to, threads, image);
        Py_END_ALLOW_THREADS
    } else {
        const smm_inputs_f64 in = {a->x,    a->state0,    a->state1,    a->indices,
                                   a->mask, a->slot_mask, a->x_bfloat16};
        smm_gradients_f64 to = {data(out[0]), data(out[1]), data(out[2]), {NULL}};
        memcpy(to.params, params, sizeof to.params);
        Py_BEGIN_ALLOW_THREADS status =
            smm_backward_f64(&a->config->config, &a->dims, (const double *const *)a->params, &in,
                             saved, d_slots, d_attention, &to, threads, image);
        Py_END_ALLOW_THREADS
    }
    return status;
}

PyObject *backward(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    call_arguments a = {0};
    PyObject *out[4] = {NULL}, *result = NULL;
    void *params[SMM_PARAMS] = {NULL};
    size_t image = 0;
    if (count != 12) {
        PyErr_Format(PyExc_TypeError, "backward takes 12 arguments, got %zd", count);
        return NULL;
    }
    if (parse_call(module, args, &a) < 0) return NULL;
    const smm_config *c = &a.config->config;
    const size_t B = a.dims.batch, N = a.dims.inputs, K = a.dims.slots, D = c->dim;
    const int type = a.config->type;
    const npy_intp saved_shape[1] = {(npy_intp)smm_saved_size(c, &a.dims)};
    const npy_intp slots_shape[3] = {(npy_intp)B, (npy_intp)K, (npy_intp)smm_slot_width(c)};
    const npy_intp attention_shape[3] = {(npy_intp)B, (npy_intp)N, (npy_intp)K};
    view saved, d_slots, d_attention;
    if (checked_view(args[9], "saved", type, 1, saved_shape, &saved) < 0 ||
        checked_view(args[10], "d_slots", type, 3, slots_shape, &d_slots) < 0 ||
        optional_view(args[11], "d_attention", type, 3, attention_shape, &d_attention) < 0)
        return NULL;

    if (!(out[0] = new_array(type, 3, B, N, c->input_dim))) goto done;
    if (a.state0 && !(out[1] = new_array(type, 3, B, K, D))) goto done;
    if (a.state1 && !(out[2] = new_array(type, 3, B, K, D))) goto done;
    if (!(out[3] = new_gradients(a.config, params))) goto done;
    const smm_status status =
        run_backward(&a, saved.data, d_slots.data, d_attention.data, out, params, &image);
    if (status != SMM_OK) {
        raise_status(status, image);
        goto done;
    }
    for (int i = 0; i < 4; i++) out[i] = or_none(out[i]);
    result = PyTuple_Pack(4, out[0], out[1], out[2], out[3]);
done:
    for (int i = 0; i < 4; i++) Py_XDECREF(out[i]);
    return result;
}

PyObject *saved_size(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    call_arguments a = {0};
    if (count != 5) {
        PyErr_Format(PyExc_TypeError, "saved_size takes 5 arguments, got %zd", count);
        return NULL;
    }
    if (parse_config(module, args[0], &a) < 0 || parse_count(args[1], "B", &a.dims.batch) < 0 ||
        parse_count(args[2], "N", &a.dims.inputs) < 0 ||
        parse_count(args[3], "K", &a.dims.slots) < 0 ||
        parse_count(args[4], "num_iters", &a.dims.iters) < 0)
        return NULL;
    return PyLong_FromSize_t(smm_saved_size(&a.config->config, &a.dims));
}
