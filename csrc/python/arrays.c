/* arrays.c - every check of an array argument and every message about one. */
#include "binding.h"

#include <stdarg.h>
#include <string.h>

void raise_type(PyObject *object, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    PyObject *wanted = PyUnicode_FromFormatV(format, arguments);
    va_end(arguments);
    PyObject *type = PyType_GetName(Py_TYPE(object));
    if (wanted && type) PyErr_Format(PyExc_TypeError, "%U, got %U", wanted, type);
    Py_XDECREF(wanted);
    Py_XDECREF(type);
}

static const char *type_name(int type) {
    switch (type) {
    case NPY_FLOAT32: return "float32";
    case NPY_FLOAT64: return "float64";
    case NPY_INT64: return "int64";
    case NPY_UINT16: return "uint16";
    default: return "bool";
    }
}

/* "(B, 3, 64)": dimensions that may be anything are shown as "any". */
static PyObject *shape_text(int rank, const npy_intp *shape) {
    PyObject *text = PyUnicode_FromString("(");
    for (int i = 0; i < rank && text; i++) {
        const char *after = i + 1 < rank ? ", " : rank == 1 ? "," : "";
        PyObject *part = shape[i] == ANY
                             ? PyUnicode_FromFormat("any%s", after)
                             : PyUnicode_FromFormat("%zd%s", (Py_ssize_t)shape[i], after);
        PyUnicode_AppendAndDel(&text, part);
    }
    if (text) PyUnicode_AppendAndDel(&text, PyUnicode_FromString(")"));
    return text;
}

static void raise_shape(const char *name, int rank, const npy_intp *shape, int given_rank,
                        const npy_intp *given) {
    PyObject *wanted = shape_text(rank, shape), *came = shape_text(given_rank, given);
    if (wanted && came)
        PyErr_Format(PyExc_ValueError, "%s must have shape %U, got %U", name, wanted, came);
    Py_XDECREF(wanted);
    Py_XDECREF(came);
}

static int check_shape(const char *name, int rank, const npy_intp *shape, int given_rank,
                       const npy_intp *given, view *v) {
    int fits = given_rank == rank;
    for (int i = 0; fits && i < rank; i++) {
        fits = shape[i] == ANY || given[i] == shape[i];
        v->shape[i] = (size_t)given[i];
    }
    if (!fits) raise_shape(name, rank, shape, given_rank, given);
    return fits ? 0 : -1;
}

/* (address, shape) */
static int described_view(PyObject *pair, const char *name, int rank, const npy_intp *shape,
                          view *v) {
    npy_intp given[NPY_MAXDIMS];
    PyObject *sizes = PyTuple_Size(pair) == 2 ? PyTuple_GetItem(pair, 1) : NULL;
    if (!sizes || !PyTuple_Check(sizes) || PyTuple_Size(sizes) > NPY_MAXDIMS) {
        PyErr_Format(PyExc_TypeError, "%s must be an array or (address, shape)", name);
        return -1;
    }
    const int given_rank = (int)PyTuple_Size(sizes);
    int negative = 0;
    for (int i = 0; i < given_rank; i++)
        negative |= (given[i] = PyLong_AsSsize_t(PyTuple_GetItem(sizes, i))) < 0;
    v->data = PyLong_AsVoidPtr(PyTuple_GetItem(pair, 0));
    if (PyErr_Occurred()) return -1;
    if (negative) {
        PyErr_Format(PyExc_ValueError, "%s must have no negative size, got %R", name, sizes);
        return -1;
    }
    return check_shape(name, rank, shape, given_rank, given, v);
}

int checked_view(PyObject *object, const char *name, int type, int rank, const npy_intp *shape,
                 view *v) {
    if (PyTuple_Check(object)) return described_view(object, name, rank, shape, v);
    if (!PyArray_Check(object)) {
        raise_type(object, "%s must be a %s array", name, type_name(type));
        return -1;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_TYPE(array) != type || !PyArray_ISNOTSWAPPED(array)) {
        PyErr_Format(PyExc_TypeError, "%s must be a %s array, got an array of %S", name,
                     type_name(type), (PyObject *)PyArray_DESCR(array));
        return -1;
    }
    if (check_shape(name, rank, shape, PyArray_NDIM(array), PyArray_DIMS(array), v) < 0) return -1;
    if (!PyArray_IS_C_CONTIGUOUS(array) || !PyArray_ISALIGNED(array)) {
        PyErr_Format(PyExc_ValueError, "%s must be C-contiguous and aligned", name);
        return -1;
    }
    v->data = PyArray_DATA(array);
    return 0;
}

int optional_view(PyObject *object, const char *name, int type, int rank, const npy_intp *shape,
                  view *v) {
    v->data = NULL;
    return object == Py_None ? 0 : checked_view(object, name, type, rank, shape, v);
}

PyObject *first_nonfinite(PyObject *module, PyObject *object) {
    (void)module;
    const int type = PyArray_Check(object) ? PyArray_TYPE((PyArrayObject *)object) : -1;
    if ((type != NPY_FLOAT32 && type != NPY_FLOAT64 && type != NPY_UINT16) ||
        !PyArray_ISCARRAY_RO((PyArrayObject *)object)) {
        PyErr_SetString(PyExc_TypeError,
                        "array must be a contiguous array of float32, float64 or uint16");
        return NULL;
    }
    const size_t n = (size_t)PyArray_SIZE((PyArrayObject *)object);
    const void *numbers = PyArray_DATA((PyArrayObject *)object);
    const int bits = type == NPY_UINT16 ? 16 : type == NPY_FLOAT32 ? 32 : 64;
    size_t found;
    Py_BEGIN_ALLOW_THREADS;
    found = smm_first_nonfinite(bits, numbers, n, threads_now());
    Py_END_ALLOW_THREADS;
    return PyLong_FromSsize_t(found < n ? (Py_ssize_t)found : -1);
}

void raise_status(smm_status status, size_t image) {
    switch (status) {
    case SMM_OK: return;
    case SMM_ERR_STOPPED: return; /* a signal handler has raised */
    case SMM_ERR_NOMEM: PyErr_NoMemory(); return;
    case SMM_ERR_NO_INPUT:
        PyErr_Format(PyExc_ValueError,
                     "mask must leave every image a real input, got none in image %zu", image);
        return;
    case SMM_ERR_NO_SLOT:
        PyErr_Format(PyExc_ValueError,
                     "slot_mask must leave every image an active slot, got none in image %zu",
                     image);
        return;
    case SMM_ERR_INDEX:
        PyErr_Format(PyExc_ValueError,
                     "indices must be those of real inputs, got another in image %zu", image);
        return;
    default: PyErr_SetString(PyExc_ValueError, smm_status_str(status));
    }
}
