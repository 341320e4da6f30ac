// Steps of prepared layers, one above the other, as builtin functions of Python's, and whether what they were prepared from has
// changed; see stepping.py.

#include <string.h>

#include "tensors.h"

struct Layer {
    int (*run)(void *);
    void *call;
    int64_t *turn;   // of the call: turned at each step
    char **inputs[2];  // where the address of what it reads goes
};
struct Place { char **old_state, **new_state; };  // where an entry's addresses go
struct Entry {
    int64_t bytes;   // of a layer
    char *own[2];    // the state of all layers, [layers, B, width], at even steps and at odd ones; or null
    char *start;     // the default state
    Like like;
};
struct Steps {
    int64_t layer_count, entry_count, odd, taken;
    const Layer *layers;
    const Place *places;  // [layers, entries]
    const Entry *entries;
    const Torch *torch;
    Object *make, *none;  // what makes a list of an output and the entries of a state, or of an output alone
    Like input;
};

// A step from one state to the next; the first entry is also the output. Other threads of Python's may run meanwhile.
static void step(const Steps &s, char *input, char *output, char *const *before, char *const *after) {
    void *const thread = PyEval_SaveThread();
    for (int64_t k = 0; k < s.layer_count; ++k) {
        const Layer &layer = s.layers[k];
        for (char **place : layer.inputs) *place = input;
        for (int64_t e = 0; e < s.entry_count; ++e) {
            const Place &place = s.places[k * s.entry_count + e];
            *place.old_state = before[e] + k * s.entries[e].bytes;
            *place.new_state = after[e] + k * s.entries[e].bytes;
        }
        layer.run(layer.call);
        *layer.turn ^= 1;
        input = after[0] + k * s.entries[0].bytes;
    }
    memcpy(output, input, s.entries[0].bytes);
    PyEval_RestoreThread(thread);
}

// The places of tensors, or false where one is not as it has to be.
static bool places_of(const Torch &torch, Object *const *tensors, int64_t count, const Like &first, const Entry *others, char **places) {
    Seen seen;
    for (int64_t i = 0; i < count; ++i) {
        if (!look(torch, tensors[i], seen)) {
            PyErr_Clear();
            return false;
        }
        if (!is_like(seen, i ? others[i - 1].like : first)) return false;
        places[i] = seen.data;
    }
    return true;
}
// A list of what a step makes, and their places; null with an exception.
static Object *made_by(const Steps &s, int64_t count, char **places) {
    Object *const made = PyObject_CallFunctionObjArgs(s.make, nullptr);
    Seen seen;
    for (int64_t i = 0; made && i < count; ++i) {
        if (!look(*s.torch, PyList_GetItem(made, i), seen)) {
            Py_DecRef(made);
            return nullptr;
        }
        places[i] = seen.data;
    }
    return made;
}

static Object *from_own(Object *self, Object *const *given, intptr_t) {
    Steps &s = found_by<Steps>(self);
    char *input, *output, *states[2 * s.entry_count];
    if (!places_of(*s.torch, given, 1, s.input, nullptr, &input)) return none_of(s.none);
    Object *const made = made_by(s, 1, &output);
    if (!made) return nullptr;
    for (int64_t e = 0; e < s.entry_count; ++e) {
        states[e] = s.entries[e].own[s.odd];
        states[s.entry_count + e] = s.entries[e].own[1 - s.odd];
    }
    s.odd = 1 - s.odd;
    s.taken = 1;
    step(s, input, output, states, states + s.entry_count);
    Object *const tensor = PyList_GetItem(made, 0);
    Py_IncRef(tensor);
    Py_DecRef(made);
    return tensor;
}
static Object *from_given(Object *self, Object *const *given, intptr_t count) {
    const Steps &s = found_by<const Steps>(self);
    char *places[1 + s.entry_count], *results[1 + s.entry_count];
    if ((count != 1 && count != 1 + s.entry_count) || !places_of(*s.torch, given, count, s.input, s.entries, places))
        return none_of(s.none);
    for (int64_t e = 0; count == 1 && e < s.entry_count; ++e) places[1 + e] = s.entries[e].start;
    Object *const made = made_by(s, 1 + s.entry_count, results);
    if (made) step(s, places[0], results[0], places + 1, results + 1);
    return made;
}
static Method own = {"step", from_own, FASTCALL, nullptr}, others = {"step", from_given, FASTCALL, nullptr};

// function(input): the output of a step from the own state to the next. function(input, *state): a list of the output of a step from
// that state, or from the default one, and the entries of the next. None where a tensor is not as it has to be.
EXPORT Object *elman_stepping(Steps *steps, int64_t of_own, Object *held) {
    return builtin_of(of_own ? &own : &others, steps, held);
}

struct Parameter {
    Object *name;
    Like like;
    int64_t data, version;
};
struct Parameters {
    const Torch *torch;
    Object *version;  // the name of what counts changes
    int64_t count, samples;
    const Parameter *parameters;
    uint64_t sample;
};

// Some numbers spread over each parameter: calls f(where, bytes) for each.
template <class F> static void for_some(const Parameters &p, F f) {
    for (int64_t i = 0; i < p.count; ++i) {
        const Parameter &one = p.parameters[i];
        const int64_t n = numbers_of(one.like), bytes = one.like.bits / 8, apart = n < p.samples ? 1 : n / p.samples;
        for (int64_t k = 0; k < n; k += apart) f((const char *)one.data + k * bytes, bytes);
    }
}
// A number that changes, almost surely, when one of these does.
static uint64_t sample_of(const Parameters &p) {
    uint64_t found = 14695981039346656037ull;  // FNV-1a, by words
    for_some(p, [&](const char *number, int64_t bytes) {
        uint64_t bits = 0;
        memcpy(&bits, number, bytes);
        found = (found ^ bits) * 1099511628211ull;
    });
    return found;
}
static bool is_as_it_was(const Parameters &p, Object *all, const Parameter &one) {
    Seen seen;
    Object *const parameter = PyDict_GetItem(all, one.name);
    if (!parameter || !look(*p.torch, parameter, seen) || !is_like(seen, one.like) || (int64_t)seen.data != one.data) return false;
    Object *const version = PyObject_GetAttr(parameter, p.version);
    const bool same = version && PyLong_AsLong(version) == one.version;
    if (version) Py_DecRef(version);
    return same;
}

// function(parameters): 1 where those of a dictionary are as they were, else 0.
static Object *unchanged(Object *self, Object *const *given, intptr_t) {
    const Parameters &p = found_by<const Parameters>(self);
    for_some(p, [](const char *number, int64_t) { __builtin_prefetch(number); });  // they come from far, meanwhile
    for (int64_t i = 0; i < p.count; ++i)
        if (!is_as_it_was(p, given[0], p.parameters[i])) {
            PyErr_Clear();
            return PyLong_FromLong(0);
        }
    return PyLong_FromLong(sample_of(p) == p.sample);
}
static Method are = {"unchanged", unchanged, FASTCALL, nullptr};
EXPORT Object *elman_unchanged(Parameters *job, Object *held) {
    job->sample = sample_of(*job);
    return builtin_of(&are, job, held);
}
