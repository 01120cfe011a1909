/* threads.c - how many threads a call may use. The host program's OpenMP settings are neither read
 * nor changed. */
#define _POSIX_C_SOURCE 200809L
#ifdef __linux__
#define _GNU_SOURCE
#include <sched.h>
#endif
#include "binding.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

/* Written by set_num_threads and in a forked child; ints suffice, as old and new are both valid. */
static volatile int wanted = 1;
static volatile int forked;

/* A forked child has no threads of its parent, on which its OpenMP may wait: it uses one alone. */
static void in_child(void) { forked = 1; }

static int processors(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

int threads_init(void) {
    const char *text = getenv("OMP_NUM_THREADS");
    const long asked = text ? strtol(text, NULL, 10) : 0;
    wanted = asked > 0 && asked <= 4096 ? (int)asked : processors();
    static int registered;
    if (!registered && pthread_atfork(NULL, NULL, in_child) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    registered = 1;
    return 0;
}

int threads_now(void) { return forked ? 1 : wanted; }

PyObject *set_num_threads(PyObject *module, PyObject *count) {
    (void)module;
    if (!PyIndex_Check(count) || PyBool_Check(count) || PyArray_Check(count)) {
        raise_type(count, "n must be an int");
        return NULL;
    }
    int overflow;
    PyObject *index = PyNumber_Index(count);
    if (!index) return NULL;
    const long n = PyLong_AsLongAndOverflow(index, &overflow);
    Py_DECREF(index);
    if (overflow || n < 1 || n > 4096) {
        PyErr_Format(PyExc_ValueError, "n must be from 1 to 4096, got %R", count);
        return NULL;
    }
    wanted = (int)n;
    Py_RETURN_NONE;
}

PyObject *get_num_threads(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong(threads_now());
}
