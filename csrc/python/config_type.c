/* config_type.c - the type Config: a checked smm_config with its precision. */
#include "binding.h"

/* Set the options that a dict has by their names in smm.h. */
static int set_options(smm_config *config, PyObject *options) {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(options, &at, &key, &value)) {
        const char *name = PyUnicode_AsUTF8AndSize(key, NULL);
        const double number = name ? PyFloat_AsDouble(value) : -1;
        if (PyErr_Occurred()) return -1;
        if (smm_config_set(config, name, number) != SMM_OK) {
            PyErr_Format(PyExc_ValueError, "%s must be an option in its range (see smm.h), got %R",
                         name, value);
            return -1;
        }
    }
    return 0;
}

static PyObject *config_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"kind", "options", "double_precision", "bfloat16_inputs", NULL};
    int kind, is_double = 0, bfloat16_inputs = 0;
    PyObject *options;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO!|pp:Config", names, &kind, &PyDict_Type,
                                     &options, &is_double, &bfloat16_inputs))
        return NULL;
    config_object *self = (config_object *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    smm_config *c = &self->config;
    smm_config_init(c, (smm_kind)kind, 0);
    self->type = is_double ? NPY_FLOAT64 : NPY_FLOAT32;
    self->input_type = bfloat16_inputs ? NPY_UINT16 : self->type;
    const int known = set_options(c, options) == 0;
    const smm_status status = known ? smm_config_check(c) : SMM_OK;
    if (!known || status != SMM_OK) {
        if (known) raise_status(status, 0);
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
    PyObject_Free(self);
    Py_DECREF(type);
}

/* {name: shape} in the order in which parameters are handed over. */
static PyObject *config_parameters(PyObject *object, PyObject *unused) {
    config_object *self = (config_object *)object;
    PyObject *shapes = PyDict_New();
    (void)unused;
    for (Py_ssize_t i = 0; shapes && i < self->params; i++) {
        size_t n[2];
        const int rank = smm_param_shape(&self->config, self->param[i], n);
        PyObject *shape = Py_BuildValue(rank == 1 ? "(n)" : "(nn)", n[0], n[1]);
        if (!shape || PyDict_SetItemString(shapes, smm_param_name(self->param[i]), shape) < 0)
            Py_CLEAR(shapes);
        Py_XDECREF(shape);
    }
    return shapes;
}

static PyMethodDef config_methods[] = {
    {"parameters", config_parameters, METH_NOARGS,
     "parameters() -> {name: shape} in the order that forward expects."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot config_slots[] = {
    {Py_tp_doc,
     "Config(kind, options, double_precision=False, bfloat16_inputs=False)\n--\n\n"
     "A checked configuration of the core: one of KINDS, and a dict of OPTIONS' names to "
     "numbers."},
    {Py_tp_new, config_new},
    {Py_tp_dealloc, config_dealloc},
    {Py_tp_methods, config_methods},
    {0, NULL},
};

PyType_Spec config_spec = {"smm_py._core.Config", sizeof(config_object), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, config_slots};
