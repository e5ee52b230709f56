/* The Python module: addresses and sizes in, nothing out. The interpreter's lock is released while it computes. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "levels.h"
#include "operations.h"

#define ADDRESS(type, number) ((type)(uintptr_t)(number))

struct level {
    const char *name;
    const struct operations *operations;
};

/* The levels that there are, the best one first. */
static const struct level levels[] = {
#ifdef HAS_LEVELS
    {"v4", &operations_v4},
    {"v3", &operations_v3},
#endif
    {"base", &operations_base},
};

static const struct operations *operations;

static int is_supported(const char *level) {
#ifdef HAS_LEVELS
    if (!strcmp(level, "v4")) return __builtin_cpu_supports("x86-64-v4");
    if (!strcmp(level, "v3")) return __builtin_cpu_supports("x86-64-v3");
#endif
    return !strcmp(level, "base");
}

/* By its name, or the best one; NULL if this processor has it not. */
static const struct level *find_level(const char *name) {
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++)
        if ((!name || !strcmp(name, levels[i].name)) && is_supported(levels[i].name)) return &levels[i];
    return NULL;
}

static PyObject *outcome(int is_done) {
    if (!is_done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_attend(PyObject *module, PyObject *args) {
    Py_ssize_t q, keys, values, out, runs, table, blocks, n[8];
    int element, threads, is_done;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnnnnnnnii:attend", &q, &keys, &values, &out, &runs, &table, &blocks, &n[0],
                          &n[1], &n[2], &n[3], &n[4], &n[5], &n[6], &n[7], &element, &threads))
        return NULL;
    const struct attention job = {
        ADDRESS(const float *, q), ADDRESS(const void *, keys), ADDRESS(const void *, values), ADDRESS(float *, out),
        ADDRESS(const int64_t *, runs), ADDRESS(const int64_t *, table), ADDRESS(const int32_t *, blocks),
        n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], (enum element)element};
    Py_BEGIN_ALLOW_THREADS
    is_done = operations->attend(&job, threads);
    Py_END_ALLOW_THREADS
    return outcome(is_done);
}

static PyObject *py_score_blocks(PyObject *module, PyObject *args) {
    Py_ssize_t queries, keys, pages, scores, n[4];
    int element, threads, is_done;
    if (!PyArg_ParseTuple(args, "nnnnnnnnii:score_blocks", &queries, &keys, &pages, &scores, &n[0], &n[1], &n[2], &n[3],
                          &element, &threads))
        return NULL;
    const struct scoring job = {ADDRESS(const float *, queries), ADDRESS(const void *, keys),
                                ADDRESS(const int64_t *, pages), ADDRESS(float *, scores),
                                n[0], n[1], n[2], n[3], (enum element)element};
    Py_BEGIN_ALLOW_THREADS
    is_done = operations->score_blocks(&job, threads);
    Py_END_ALLOW_THREADS
    return outcome(is_done);
}

static PyObject *py_gemma_rms_norm(PyObject *module, PyObject *args) {
    Py_ssize_t x, weight, out, rows, width;
    float eps;
    int threads;
    if (!PyArg_ParseTuple(args, "nnnnnfi:gemma_rms_norm", &x, &weight, &out, &rows, &width, &eps, &threads))
        return NULL;
    const struct norm job = {ADDRESS(const float *, x), ADDRESS(const float *, weight), ADDRESS(float *, out), rows,
                             width, eps};
    Py_BEGIN_ALLOW_THREADS
    operations->gemma_rms_norm(&job, threads);
    Py_END_ALLOW_THREADS
    return outcome(1);
}

static PyObject *py_qk_norm_rope_insert(PyObject *module, PyObject *args) {
    Py_ssize_t packed, scales, cos, sin, slots, q, index_q, keys, values, index_keys, n[5];
    int element, index_element, threads;
    float eps;
    if (!PyArg_ParseTuple(args, "nnnnnnnnnnnnnnniifi:qk_norm_rope_insert", &packed, &scales, &cos, &sin, &slots, &q,
                          &index_q, &keys, &values, &index_keys, &n[0], &n[1], &n[2], &n[3], &n[4], &element,
                          &index_element, &eps, &threads))
        return NULL;
    const struct insertion job = {ADDRESS(const float *, packed), ADDRESS(const float *, scales),
                                  ADDRESS(const float *, cos), ADDRESS(const float *, sin),
                                  ADDRESS(const int64_t *, slots), ADDRESS(float *, q), ADDRESS(float *, index_q),
                                  ADDRESS(void *, keys), ADDRESS(void *, values), ADDRESS(void *, index_keys),
                                  n[0], n[1], n[2], n[3], n[4], (enum element)element, (enum element)index_element,
                                  eps};
    Py_BEGIN_ALLOW_THREADS
    operations->qk_norm_rope_insert(&job, threads);
    Py_END_ALLOW_THREADS
    return outcome(1);
}

static PyObject *py_swiglu_clamped(PyObject *module, PyObject *args) {
    Py_ssize_t gate_up, out, rows, width;
    float alpha, limit;
    int threads;
    if (!PyArg_ParseTuple(args, "nnnnffi:swiglu_clamped", &gate_up, &out, &rows, &width, &alpha, &limit, &threads))
        return NULL;
    const struct activation job = {ADDRESS(const float *, gate_up), ADDRESS(float *, out), rows, width, alpha, limit};
    Py_BEGIN_ALLOW_THREADS
    operations->swiglu_clamped(&job, threads);
    Py_END_ALLOW_THREADS
    return outcome(1);
}

static PyObject *py_linear(PyObject *module, PyObject *args) {
    Py_ssize_t x, matrix, out, rows, width, outputs;
    int element, threads, is_done;
    if (!PyArg_ParseTuple(args, "nnnnnnii:linear", &x, &matrix, &out, &rows, &width, &outputs, &element, &threads))
        return NULL;
    const struct product job = {ADDRESS(const float *, x), ADDRESS(const void *, matrix), ADDRESS(float *, out),
                                rows, width, outputs, (enum element)element};
    Py_BEGIN_ALLOW_THREADS
    is_done = operations->linear(&job, threads);
    Py_END_ALLOW_THREADS
    return outcome(is_done);
}

static PyObject *py_run_experts(PyObject *module, PyObject *args) {
    Py_ssize_t x, ends, gate_up, down, out, n[4];
    int element, threads, is_done;
    float alpha, limit;
    if (!PyArg_ParseTuple(args, "nnnnnnnnniffi:run_experts", &x, &ends, &gate_up, &down, &out, &n[0], &n[1], &n[2],
                          &n[3], &element, &alpha, &limit, &threads))
        return NULL;
    const struct experts job = {ADDRESS(const float *, x), ADDRESS(const int32_t *, ends),
                                ADDRESS(const void *, gate_up), ADDRESS(const void *, down), ADDRESS(float *, out),
                                n[0], n[1], n[2], n[3], (enum element)element, alpha, limit};
    Py_BEGIN_ALLOW_THREADS
    is_done = operations->run_experts(&job, threads);
    Py_END_ALLOW_THREADS
    return outcome(is_done);
}

/* Take the loops of another level from now on: of tests, which compare them. False if this processor has it not. */
static PyObject *py_use(PyObject *module, PyObject *args) {
    const char *level;
    if (!PyArg_ParseTuple(args, "s:use", &level)) return NULL;
    const struct level *found = find_level(level);
    if (found) operations = found->operations;
    return PyBool_FromLong(found != NULL);
}

static PyMethodDef methods[] = {
    {"use", py_use, METH_VARARGS, NULL},
    {"attend", py_attend, METH_VARARGS, NULL},
    {"score_blocks", py_score_blocks, METH_VARARGS, NULL},
    {"gemma_rms_norm", py_gemma_rms_norm, METH_VARARGS, NULL},
    {"qk_norm_rope_insert", py_qk_norm_rope_insert, METH_VARARGS, NULL},
    {"swiglu_clamped", py_swiglu_clamped, METH_VARARGS, NULL},
    {"linear", py_linear, METH_VARARGS, NULL},
    {"run_experts", py_run_experts, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    const struct level *best = find_level(NULL); /* base is everywhere */
    operations = best->operations;
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
    if (PyModule_AddStringConstant(module, "LEVEL", best->name) < 0 || PyModule_AddIntMacro(module, MOST_HEADS) < 0 ||
        PyModule_AddIntMacro(module, MOST_WIDTH) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
