// What a call of a module looks like, and whether the tensors of one are as they were; see calls.py.

#include <string.h>

#include "tensors.h"

// Whether a tensor requires gradients; -1 with an exception where it does not say.
static int requires_grad(Object *tensor, Object *name) {
    Object *const answer = PyObject_GetAttr(tensor, name);
    if (!answer) return -1;
    const int is = PyObject_IsTrue(answer);
    Py_DecRef(answer);
    return is;
}

struct Surroundings {
    const Torch *torch;
    Object *requires_grad;                        // the attribute's name
    Object *any_autocast, *autocast, *grad, *threads, *modes, *tracing, *transform, *hooks;  // functions
    Object *forward_mode, *level;                 // a module, and the name of what is at least 0 in forward mode
    Object *none, *cpu, *no;                      // None, and what `autocast` and `hooks` are given
    Object *tensor, *sees_operations;             // torch's class, and whether one of another class takes each operation itself
};

// Whether a function gives None.
static bool none(const Surroundings &s, Object *function, Object *argument) {
    Object *const answer = PyObject_CallFunctionObjArgs(function, argument, nullptr);
    if (!answer) PyErr_Clear();
    else Py_DecRef(answer);
    return answer == s.none;
}
// Whether a function says so of an object.
static bool says(Object *function, Object *argument) {
    Object *const answer = PyObject_CallFunctionObjArgs(function, argument, nullptr);
    const bool is = !answer || PyObject_IsTrue(answer);
    if (answer) Py_DecRef(answer);
    else PyErr_Clear();
    return is;
}
// A number that an object is; `failed` where it is none.
static int64_t number(Object *answer, int64_t failed) {
    const int64_t found = answer ? PyLong_AsLong(answer) : failed;
    if (answer) Py_DecRef(answer);
    if (!answer || found == -1) PyErr_Clear();
    return found;
}
// Whether a tensor is of a class that takes each operation itself.
static bool sees_operations(const Surroundings &s, Object *tensor) {
    Object *const type = PyObject_Type(tensor);
    Py_DecRef(type);
    return type != s.tensor && says(s.sees_operations, tensor);
}

// function(engine, kind, rows, dimensions, input, *states): bytes that are equal for calls of one form, or None where torch follows
// single operations, or a tensor is of another sort. Where `rows` is not 0, of the input's shape only the last size counts.
static Object *form_of(Object *self, Object *const *given, intptr_t count) {
    enum { ENGINE, KIND, ROWS, WANTED, INPUT, STATES };
    const Surroundings &s = found_by<const Surroundings>(self);
    const int64_t rows = PyLong_AsLong(given[ROWS]);
    const bool grad = said(s.grad, true);
    Object *const level = PyObject_GetAttr(s.forward_mode, s.level);
    if (number(level, 0) >= 0 || number(PyObject_CallFunctionObjArgs(s.modes, nullptr), 1) || said(s.tracing, true) ||
        !none(s, s.transform, nullptr) || (grad && !none(s, s.hooks, s.no)) ||
        (said(s.any_autocast, true) && says(s.autocast, s.cpu)) || sees_operations(s, given[INPUT]))
        return none_of(s.none);
    Seen seen;
    if (!look(*s.torch, given[INPUT], seen)) {
        PyErr_Clear();
        return none_of(s.none);
    }
    if (seen.device != CPU || seen.dimensions != PyLong_AsLong(given[WANTED])) return none_of(s.none);
    int64_t key[8 + 2 * DIMENSIONS] = {};
    key[0] = PyLong_AsLong(given[KIND]);
    key[1] = rows;
    key[2] = grad;
    key[3] = number(PyObject_CallFunctionObjArgs(s.threads, nullptr), 0);
    key[4] = seen.code;
    key[5] = seen.bits;
    key[6] = count;
    for (intptr_t k = INPUT; grad && k < count; ++k) {
        const int wanted = requires_grad(given[k], s.requires_grad);
        if (wanted < 0) {
            PyErr_Clear();
            return none_of(s.none);
        }
        key[7] = 2 * key[7] + wanted;
    }
    for (int64_t d = rows ? seen.dimensions - 1 : 0; d < seen.dimensions; ++d) {
        key[8 + d] = seen.shape[d];
        if (!rows) key[8 + DIMENSIONS + d] = seen.strides[d];
    }
    Object *const bytes = PyBytes_FromStringAndSize((const char *)key, sizeof(key));
    Object *const both = bytes ? PyTuple_Pack(2, bytes, given[ENGINE]) : nullptr;
    if (bytes) Py_DecRef(bytes);
    return both;
}
static Method form = {"form", form_of, FASTCALL, nullptr};
EXPORT Object *elman_form(Surroundings *job, Object *held) { return builtin_of(&form, job, held); }

struct Expected {
    Object *name;
    int64_t requires_grad;
    Like like;
};
struct Fitting {
    const Torch *torch;
    Object *requires_grad, *type, *none;
    int64_t parameter_count;
    const Expected *parameters;
    int64_t state_count;
    const Like *states;
};

// function(parameters, *states): the list of those parameters of a dictionary that are expected, or None where one of them, or of
// the states that are given, is not as expected.
static Object *fitting(Object *self, Object *const *given, intptr_t count) {
    const Fitting &f = found_by<const Fitting>(self);
    if (count != 1 && count != 1 + f.state_count) return none_of(f.none);
    Seen seen;
    for (intptr_t k = 1; k < count; ++k) {
        if (!look(*f.torch, given[k], seen)) PyErr_Clear();
        else if (is_like(seen, f.states[k - 1])) continue;
        return none_of(f.none);
    }
    Object *const list = PyList_New(f.parameter_count);
    if (!list) return nullptr;
    for (int64_t k = 0; k < f.parameter_count; ++k) {
        const Expected &e = f.parameters[k];
        Object *const parameter = PyDict_GetItem(given[0], e.name);  // borrowed
        Object *const type = parameter ? PyObject_Type(parameter) : nullptr;
        if (type) Py_DecRef(type);
        if (type != f.type || !look(*f.torch, parameter, seen) || !is_like(seen, e.like) ||
            requires_grad(parameter, f.requires_grad) != e.requires_grad) {
            PyErr_Clear();
            Py_DecRef(list);
            return none_of(f.none);
        }
        Py_IncRef(parameter);
        PyList_SetItem(list, k, parameter);
    }
    return list;
}
static Method fits = {"fitting", fitting, FASTCALL, nullptr};
EXPORT Object *elman_fitting(Fitting *job, Object *held) { return builtin_of(&fits, job, held); }
