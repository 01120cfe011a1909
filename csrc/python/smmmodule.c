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
    const char *text = PyUnicode_AsUTF8(name);
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

#define FAST(f) ((PyCFunction)(void (*)(void))(f))
static PyMethodDef methods[] = {
    {"forward", FAST(forward), METH_FASTCALL,
     "forward(config, x, params, state0, state1, indices, mask, slot_mask, num_iters, attention, "
     "save)\n"
     "-> (slots, mean, variance, prior, log_likelihood, attention, iterations, saved); see "
     "smm_forward in smm.h"},
    {"backward", FAST(backward), METH_FASTCALL,
     "backward(config, x, params, state0, state1, indices, mask, slot_mask, num_iters, saved, "
     "d_slots, d_attention)\n"
     "-> (dx, d_state0, d_state1, d_params); see smm_backward in smm.h"},
    {"saved_size", FAST(saved_size), METH_FASTCALL,
     "saved_size(config, B, N, K, num_iters) -> elements of `saved`"},
    {"first_nonfinite", first_nonfinite, METH_O,
     "first_nonfinite(array) -> flat index of the first infinity or NaN of a contiguous array of "
     "floats, or -1"},
    {"set_num_threads", set_num_threads, METH_O,
     "set_num_threads(n)\n--\n\nUse at most n threads (1 to 4096) in every later call.\n\n"
     "Results do not depend on it. Threads of other libraries are not touched. Where the system "
     "refuses OpenMP\n"
     "so many, OpenMP ends the process."},
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
    if (!state->config_type || PyModule_AddType(module, state->config_type) < 0) return -1;
    smm_config any;
    smm_config_init(&any, SMM_SLOT_MIXTURE, 1);
    const smm_saved_rule rule = smm_saved_rule_of(&any, 1, 1);
    if (PyModule_AddIntConstant(module, "SAVED_MOST", (long)rule.most) < 0 ||
        PyModule_AddIntConstant(module, "SAVED_IMAGE", (long)rule.small) < 0 ||
        PyModule_AddIntConstant(module, "SAVED_BATCH", (long)rule.most_of_small) < 0)
        return -1;
    return PyModule_AddStringConstant(module, "__version__", SMM_VERSION);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->config_type);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->config_type);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters,
     Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* NumPy is not either */
#endif
#if PY_VERSION_HEX >= 0x030d0000
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
