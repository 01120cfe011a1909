/* binding.h - what the files of the extension share. */
#ifndef SMM_BINDING_H
#define SMM_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL smm_ARRAY_API
#ifndef SMM_IMPORTS_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "smm.h"

/* A checked configuration, its precision, and which parameters the module has. Immutable. */
typedef struct {
    PyObject_HEAD smm_config config;
    int type;                 /* NPY_FLOAT32 or NPY_FLOAT64 */
    int input_type;           /* of x: the same, or NPY_UINT16, which holds bfloat16 */
    Py_ssize_t params;        /* how many parameters the module has */
    size_t param[SMM_PARAMS]; /* which they are */
} config_object;

typedef struct {
    PyTypeObject *config_type, *outputs_type, *gradients_type;
} module_state;

extern PyType_Spec config_spec;
extern PyStructSequence_Desc outputs_desc, gradients_desc;

/* Any dimension, in a wanted shape. */
#define ANY ((npy_intp) - 1)

/* Memory of an argument, borrowed. data is NULL for None. */
typedef struct {
    void *data;
    size_t shape[3];
} view;

/* `object` is a C-contiguous, aligned, native array of the given type and shape; or a tuple
 * (address, shape) of such memory, whose type its maker vouches for: making an array of a tensor
 * takes longer than a small call. 0, or -1 and a TypeError or ValueError that names the argument.
 * Nothing is converted. */
int checked_view(PyObject *object, const char *name, int type, int rank, const npy_intp *shape,
                 view *v);

/* The same, or None. */
int optional_view(PyObject *object, const char *name, int type, int rank, const npy_intp *shape,
                  view *v);

/* first_nonfinite(array): flat index of the first infinity or NaN of a contiguous array of float32,
 * float64, or uint16 as bfloat16; or -1. */
PyObject *first_nonfinite(PyObject *module, PyObject *object);

/* Raise a TypeError: the message, and what came in place of what it asks for. */
void raise_type(PyObject *object, const char *format, ...);

/* Raise for a status other than SMM_OK. */
void raise_status(smm_status status, size_t image);

/* Threads of the next call: what set_num_threads said, but 1 in a forked child. */
int threads_now(void);
int threads_init(void);
PyObject *set_num_threads(PyObject *module, PyObject *count);
PyObject *get_num_threads(PyObject *module, PyObject *unused);

PyObject *forward(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *keywords);
PyObject *backward(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *keywords);
PyObject *saved_size(PyObject *module, PyObject *args);
PyObject *saved_rule(PyObject *module, PyObject *args);

#endif
