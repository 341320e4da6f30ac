// What is used of Python's stable interface, whose headers need not be installed, to make builtin functions: between small jobs a
// call by ctypes takes as long as much of a job.

#pragma once
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

struct Object;
struct Method {
    const char *name;
    Object *(*function)(Object *self, Object *const *given, intptr_t count);
    int flags;
    const char *help;
};
extern "C" {
Object *PyCFunction_NewEx(Method *method, Object *self, Object *module);
Object *PyLong_FromVoidPtr(void *address);
void *PyLong_AsVoidPtr(Object *number);
Object *PyLong_FromLong(long number);
long PyLong_AsLong(Object *number);
Object *PyBytes_FromStringAndSize(const char *bytes, intptr_t size);
Object *PyObject_GetAttr(Object *object, Object *name);
Object *PyObject_Type(Object *object);
Object *PyList_New(intptr_t size);
int PyList_SetItem(Object *list, intptr_t index, Object *item);
Object *PyList_GetItem(Object *list, intptr_t index);
Object *PyTuple_Pack(intptr_t size, ...);
Object *PyDict_GetItem(Object *dict, Object *key);
Object *PyTuple_GetItem(Object *tuple, intptr_t index);
Object *PyCapsule_New(void *address, const char *name, void (*destructor)(Object *));
int PyCapsule_IsValid(Object *capsule, const char *name);
void *PyCapsule_GetPointer(Object *capsule, const char *name);
Object *PyObject_CallFunctionObjArgs(Object *function, ...);
int PyObject_IsTrue(Object *object);
Object *PyErr_Format(Object *kind, const char *text, ...);
void PyErr_Clear();
extern Object *PyExc_MemoryError, *PyExc_ValueError;
void *PyThreadState_Get();
uint64_t PyThreadState_GetID(void *thread);
void *PyEval_SaveThread();
void PyEval_RestoreThread(void *thread);
void Py_IncRef(Object *object);
void Py_DecRef(Object *object);
}
enum { FASTCALL = 0x80 };

// A builtin function that finds what it reads at an address, and holds what is there.
static inline Object *builtin_of(Method *method, void *address, Object *held) {
    Object *const number = PyLong_FromVoidPtr(address), *const self = PyTuple_Pack(2, number, held);
    Object *const function = PyCFunction_NewEx(method, self, nullptr);
    Py_DecRef(number);
    Py_DecRef(self);
    return function;
}
template <class T> static inline T &found_by(Object *self) { return *(T *)PyLong_AsVoidPtr(PyTuple_GetItem(self, 0)); }

// Whether a function of no arguments says so; `failed` where it raises an exception.
static inline bool said(Object *function, bool failed) {
    Object *const answer = PyObject_CallFunctionObjArgs(function, nullptr);
    if (!answer) {
        PyErr_Clear();
        return failed;
    }
    const bool is = PyObject_IsTrue(answer) == 1;
    Py_DecRef(answer);
    return is;
}

// A new reference to None, of which the stable interface has no function.
static inline Object *none_of(Object *none) {
    Py_IncRef(none);
    return none;
}
