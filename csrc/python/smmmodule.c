/* smmmodule.c - the module smm_py._core: its table of functions and how it is set up. */
#define SMM_IMPORTS_ARRAY
#include "binding.h"

#include <stdlib.h>

static PyObject *simd(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    PyObject *sets = PyDict_New();
    int supported;
    const char *name;
    for (size_t i = 0; sets && (name = smm_simd_list(i, &supported)); i++)
        if (PyDict_SetItemString(sets, name, supported ? Py_True : Py_False) < 0) Py_CLEAR(sets);
    return sets ? Py_BuildValue("sNi", smm_simd(), sets, smm_openmp()) : NULL;
}

static PyObject *select_simd(PyObject *module, PyObject *name) {
    (void)module;
    const char *text = PyUnicode_AsUTF8AndSize(name, NULL);
    if (!text) return NULL;
    if (smm_simd_set(text) < 0) {
        PyErr_Format(
            PyExc_ValueError,
            "SMM_SIMD must name a set of instructions that this build and machine have, got %R",
            name);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *trim(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromSize_t(smm_trim());
}

#define FUNCTION(f) ((PyCFunction)(void (*)(void))(f))
static PyMethodDef methods[] = {
    {"forward", FUNCTION(forward), METH_FASTCALL | METH_KEYWORDS,
     "forward(config, x, params, num_iters, *, mean=None, log_std=None, indices=None, mask=None,\n"
     "        slot_mask=None, attention=False, save=False) -> Outputs; see smm_forward_f32 in "
     "smm.h"},
    {"backward", FUNCTION(backward), METH_FASTCALL | METH_KEYWORDS,
     "backward(config, x, params, num_iters, *, mean=None, log_std=None, indices=None, mask=None,\n"
     "         slot_mask=None, saved, d_slots, d_attention=None) -> Gradients; see "
     "smm_backward_f32 in smm.h"},
    {"saved_size", saved_size, METH_VARARGS,
     "saved_size(config, B, N, K, num_iters) -> elements of the saved state"},
    {"saved_rule", saved_rule, METH_VARARGS,
     "saved_rule(config, K, num_iters) -> dict of the numbers of smm_saved_rule in smm.h"},
    {"trim", trim, METH_NOARGS,
     "trim()\n--\n\nGive the memory that is cached for later calls back to the system.\n\n"
     "Returns\n-------\nint\n    Bytes given back: at most 512 MiB.\n"},
    {"first_nonfinite", first_nonfinite, METH_O,
     "first_nonfinite(array) -> flat index of the first infinity or NaN of a contiguous array of "
     "floats, or -1"},
    {"set_num_threads", set_num_threads, METH_O,
     "set_num_threads(n)\n--\n\nUse at most n threads (1 to 4096) in every later call.\n\n"
     "Results do not depend on it. Threads of other libraries are not touched. If the system "
     "cannot\n"
     "start that many threads, OpenMP ends the process."},
    {"get_num_threads", get_num_threads, METH_NOARGS,
     "get_num_threads()\n--\n\nThreads that the next call may use: OMP_NUM_THREADS at import, else "
     "the processors\n"
     "that this process may run on; 1 in a forked child."},
    {"simd", simd, METH_NOARGS,
     "simd() -> (chosen set, {set built: supported here}, built with OpenMP)"},
    {"select_simd", select_simd, METH_O,
     "select_simd(name): choose a set; not while another thread computes"},
    {NULL, NULL, 0, NULL},
};

/* A constant of the module; takes the reference. */
static int add(PyObject *module, const char *name, PyObject *value) {
    const int status = PyModule_AddObjectRef(module, name, value);
    Py_XDECREF(value);
    return status;
}

static PyObject *kinds(void) {
    return Py_BuildValue("{sisisisisi}", "slot_attention", SMM_SLOT_ATTENTION, "slot_mixture",
                         SMM_SLOT_MIXTURE, "slot_mixture_reference", SMM_SLOT_MIXTURE_REFERENCE,
                         "kmeans", SMM_KMEANS, "gaussian_mixture", SMM_GAUSSIAN_MIXTURE);
}

static PyObject *gradients(void) {
    return Py_BuildValue("{sisisisi}", "full", SMM_GRADIENT_FULL, "implicit", SMM_GRADIENT_IMPLICIT,
                         "straight-through", SMM_GRADIENT_STRAIGHT_THROUGH, "bilevel",
                         SMM_GRADIENT_BILEVEL);
}

/* Names of the options of smm.h. */
static PyObject *options(void) {
    PyObject *names = PyFrozenSet_New(NULL);
    const char *name;
    for (size_t i = 0; names && (name = smm_option_name(i, NULL)); i++) {
        PyObject *text = PyUnicode_FromString(name);
        if (!text || PySet_Add(names, text) < 0) Py_CLEAR(names);
        Py_XDECREF(text);
    }
    return names;
}

static int module_exec(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    if (PyArray_ImportNumPyAPI() < 0 || threads_init() < 0) return -1;
    const char *asked = getenv("SMM_SIMD");
    if (asked && *asked && smm_simd_set(asked) < 0) {
        PyErr_Format(
            PyExc_ValueError,
            "SMM_SIMD must name a set of instructions that this build and machine have, got '%s'",
            asked);
        return -1;
    }
    smm_simd(); /* choose now, while there is one thread */
    state->config_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &config_spec, NULL);
    state->outputs_type = PyStructSequence_NewType(&outputs_desc);
    state->gradients_type = PyStructSequence_NewType(&gradients_desc);
    if (!state->config_type || !state->outputs_type || !state->gradients_type ||
        PyModule_AddType(module, state->config_type) < 0 ||
        PyModule_AddType(module, state->outputs_type) < 0 ||
        PyModule_AddType(module, state->gradients_type) < 0 || add(module, "KINDS", kinds()) < 0 ||
        add(module, "GRADIENTS", gradients()) < 0 || add(module, "OPTIONS", options()) < 0 ||
        PyModule_AddIntConstant(module, "WIDTH_MOST", (long)SMM_WIDTH_MOST) < 0)
        return -1;
    return PyModule_AddStringConstant(module, "__version__", SMM_VERSION);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->config_type);
    Py_VISIT(state->outputs_type);
    Py_VISIT(state->gradients_type);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->config_type);
    Py_CLEAR(state->outputs_type);
    Py_CLEAR(state->gradients_type);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifndef Py_LIMITED_API /* free-threaded; the stable ABI of 3.11 knows neither of these */
    {Py_mod_multiple_interpreters,
     Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* NumPy is not either */
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "smm_py._core",
    .m_doc = "The C core on NumPy arrays, unwrapped: arguments are checked, nothing is converted. "
             "In place of an array there may be\n"
             "(address, shape) of contiguous memory whose type the caller vouches for.",
    .m_size = sizeof(module_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
