/* arrays.c - every check of an array argument and every message about one. */
#include "binding.h"

static const char *type_name(int type)
{
    switch (type) {
    case NPY_FLOAT32: return "float32";
    case NPY_FLOAT64: return "float64";
    case NPY_INT64: return "int64";
    default: return "bool";
    }
}

/* "(B, 3, 64)": dimensions that may be anything are shown as "any". */
static PyObject *shape_text(int rank, const npy_intp *shape)
{
    PyObject *text = PyUnicode_FromString("(");
    for (int i = 0; i < rank && text; i++) {
        PyObject *part = shape[i] == ANY ? PyUnicode_FromFormat("%s%s", "any", i + 1 < rank ? ", " : rank == 1 ? "," : "")
                                         : PyUnicode_FromFormat("%zd%s", (Py_ssize_t)shape[i], i + 1 < rank ? ", " : rank == 1 ? "," : "");
        PyUnicode_AppendAndDel(&text, part);
    }
    if (text) PyUnicode_AppendAndDel(&text, PyUnicode_FromString(")"));
    return text;
}

static void raise_shape(const char *name, int rank, const npy_intp *shape, PyArrayObject *array)
{
    PyObject *wanted = shape_text(rank, shape), *came = shape_text(PyArray_NDIM(array), PyArray_DIMS(array));
    if (wanted && came) PyErr_Format(PyExc_ValueError, "%s must have shape %U, got %U", name, wanted, came);
    Py_XDECREF(wanted);
    Py_XDECREF(came);
}

PyArrayObject *checked_array(PyObject *object, const char *name, int type, int rank, const npy_intp *shape)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be a %s array, got %s", name, type_name(type), Py_TYPE(object)->tp_name);
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_TYPE(array) != type || !PyArray_ISNOTSWAPPED(array)) {
        PyErr_Format(PyExc_TypeError, "%s must be a %s array, got an array of %S", name, type_name(type),
                     (PyObject *)PyArray_DESCR(array));
        return NULL;
    }
    int fits = PyArray_NDIM(array) == rank;
    for (int i = 0; fits && i < rank; i++) fits = shape[i] == ANY || PyArray_DIM(array, i) == shape[i];
    if (!fits) {
        raise_shape(name, rank, shape, array);
        return NULL;
    }
    if (!PyArray_IS_C_CONTIGUOUS(array) || !PyArray_ISALIGNED(array)) {
        PyErr_Format(PyExc_ValueError, "%s must be C-contiguous and aligned", name);
        return NULL;
    }
    return array;
}

PyArrayObject *optional_array(PyObject *object, const char *name, int type, int rank, const npy_intp *shape, int *ok)
{
    *ok = 1;
    if (object == Py_None) return NULL;
    PyArrayObject *array = checked_array(object, name, type, rank, shape);
    *ok = array != NULL;
    return array;
}

void raise_status(smm_status status, size_t image)
{
    switch (status) {
    case SMM_OK: return;
    case SMM_ERR_NOMEM: PyErr_NoMemory(); return;
    case SMM_ERR_NO_INPUT:
        PyErr_Format(PyExc_ValueError, "mask must leave every image a real input, got none in image %zu", image);
        return;
    case SMM_ERR_NO_SLOT:
        PyErr_Format(PyExc_ValueError, "slot_mask must leave every image an active slot, got none in image %zu", image);
        return;
    case SMM_ERR_INDEX:
        PyErr_Format(PyExc_ValueError, "indices must be those of real inputs, got another in image %zu", image);
        return;
    default: PyErr_SetString(PyExc_ValueError, smm_status_str(status));
    }
}
