// Steps of prepared layers, one above the other, as builtin functions of Python's; see stepping.py.

#include <string.h>

#include "builtin.h"

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
};
struct Steps {
    int64_t layer_count, entry_count, odd, taken;
    const Layer *layers;
    const Place *places;  // [layers, entries]
    const Entry *entries;
};

// A step from one state to the next; the first entry is also the output. Other threads of Python's may run meanwhile.
static Object *step(const Steps &s, char *input, char *output, char *const *before, char *const *after) {
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
    return PyLong_FromLong(0);
}
static Object *from_own(Object *self, Object *const *given, intptr_t) {
    Steps &s = found_by<Steps>(self);
    char *states[2 * s.entry_count];
    for (int64_t e = 0; e < s.entry_count; ++e) {
        states[e] = s.entries[e].own[s.odd];
        states[s.entry_count + e] = s.entries[e].own[1 - s.odd];
    }
    s.odd = 1 - s.odd;
    s.taken = 1;
    return step(s, (char *)PyLong_AsVoidPtr(given[0]), (char *)PyLong_AsVoidPtr(given[1]), states, states + s.entry_count);
}
static Object *from_given(Object *self, Object *const *given, intptr_t count) {
    const Steps &s = found_by<const Steps>(self);
    char *addresses[count];
    for (intptr_t i = 0; i < count; ++i) addresses[i] = (char *)PyLong_AsVoidPtr(given[i]);
    return step(s, addresses[0], addresses[1], addresses + 2, addresses + 2 + s.entry_count);
}
static Method own = {"step", from_own, FASTCALL, nullptr}, others = {"step", from_given, FASTCALL, nullptr};

// function(input, output): a step from the own state to the next. function(input, output, *before, *after): from the given state
// to where the next is wanted. All are addresses.
EXPORT Object *elman_stepping(Steps *steps, int64_t of_own, Object *held) {
    return builtin_of(of_own ? &own : &others, steps, held);
}
