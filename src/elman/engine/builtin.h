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
Object *PyList_New(intptr_t size);
int PyList_SetItem(Object *list, intptr_t index, Object *item);
Object *PyCapsule_New(void *address, const char *name, void (*destructor)(Object *));
int PyCapsule_IsValid(Object *capsule, const char *name);
Object *PyObject_CallFunctionObjArgs(Object *function, ...);
void *PyEval_SaveThread();
void PyEval_RestoreThread(void *thread);
void Py_DecRef(Object *object);
}
enum { FASTCALL = 0x80 };

// A builtin function, whose self is an address.
static inline Object *builtin_of(Method *method, void *address) {
    Object *const number = PyLong_FromVoidPtr(address), *const function = PyCFunction_NewEx(method, number, nullptr);
    Py_DecRef(number);
    return function;
}
