/* config_type.c - the type Config: a checked smm_config with its precision. */
#include "binding.h"

#include <string.h>

static PyObject *config_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"kind",
                            "gradient",
                            "dim",
                            "input_dim",
                            "hidden_dim",
                            "heads",
                            "qkv_bias",
                            "input_mlp",
                            "norm_kv",
                            "slot_norm",
                            "uniform_prior",
                            "reduce",
                            "recompute",
                            "temperature",
                            "scale",
                            "eps",
                            "tol",
                            "double_precision",
                            "bfloat16_inputs",
                            NULL};
    int kind, gradient, qkv_bias, input_mlp, norm_kv, slot_norm, uniform_prior, reduce, recompute,
        is_double, bfloat16_inputs;
    Py_ssize_t dim, input_dim, hidden_dim, heads;
    double temperature, scale, eps, tol;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "iinnnnpppppppddddpp:Config", names, &kind, &gradient, &dim, &input_dim,
            &hidden_dim, &heads, &qkv_bias, &input_mlp, &norm_kv, &slot_norm, &uniform_prior,
            &reduce, &recompute, &temperature, &scale, &eps, &tol, &is_double, &bfloat16_inputs))
        return NULL;
    config_object *self = (config_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    smm_config *c = &self->config;
    smm_config_init(c, (smm_kind)kind, dim > 0 ? (size_t)dim : 0);
    c->gradient = gradient;
    c->input_dim = input_dim > 0 ? (size_t)input_dim : 0;
    c->hidden_dim = hidden_dim > 0 ? (size_t)hidden_dim : 0;
    c->heads = heads > 0 ? (size_t)heads : 0;
    c->qkv_bias = qkv_bias, c->input_mlp = input_mlp, c->norm_kv = norm_kv,
    c->slot_norm = slot_norm;
    c->uniform_prior = uniform_prior, c->reduce = reduce, c->recompute = recompute;
    c->temperature = temperature, c->scale = scale, c->eps = eps, c->tol = tol;
    self->type = is_double ? NPY_FLOAT64 : NPY_FLOAT32;
    self->input_type = bfloat16_inputs ? NPY_UINT16 : self->type;
    const smm_status status = smm_config_check(c);
    if (status != SMM_OK) {
        raise_status(status, 0);
        Py_DECREF(self);
        return NULL;
    }
    size_t shape[2];
    for (size_t i = 0; i < SMM_PARAMS; i++)
        if (smm_param_shape(c, i, shape)) self->param[self->params++] = i;
    return (PyObject *)self;
}

static void config_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* [(name, shape), ...] in the order in which parameters are handed over. */
static PyObject *config_parameters(PyObject *object, PyObject *unused) {
    config_object *self = (config_object *)object;
    PyObject *list = PyList_New(0);
    (void)unused;
    for (Py_ssize_t i = 0; list && i < self->params; i++) {
        size_t shape[2];
        const int rank = smm_param_shape(&self->config, self->param[i], shape);
        const char *name = smm_param_name(self->param[i]);
        PyObject *item =
            rank == 1 ? Py_BuildValue("s(n)", name, (Py_ssize_t)shape[0])
                      : Py_BuildValue("s(nn)", name, (Py_ssize_t)shape[0], (Py_ssize_t)shape[1]);
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyMethodDef config_methods[] = {
    {"parameters", config_parameters, METH_NOARGS,
     "parameters() -> [(name, shape), ...] in the order that forward expects."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot config_slots[] = {
    {Py_tp_doc, "A checked configuration of the core (see smm_config in smm.h)."},
    {Py_tp_new, config_new},
    {Py_tp_dealloc, config_dealloc},
    {Py_tp_methods, config_methods},
    {0, NULL},
};

PyType_Spec config_spec = {"smm_py._core.Config", sizeof(config_object), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, config_slots};
