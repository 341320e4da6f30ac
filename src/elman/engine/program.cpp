// Runs a program, and the small jobs that programs have beside kernels and products; see program.py.

#include <string.h>
#include <time.h>

#include "crews.h"
#include "tensors.h"

enum : int64_t { OFFSET_BITS = 44, ZERO_OFFSET = (int64_t)1 << 43, TOTAL = -((int64_t)1 << 41), STEPS = -((int64_t)1 << 40) };

struct Program {
    const int64_t *words;      // of all jobs; addresses are relative
    int64_t count;
    const int64_t *addresses;  // where among the words addresses stand
    int64_t address_count;
    const int64_t *counts;     // where words stand that say TOTAL or STEPS
    int64_t count_count;
    const int64_t *jobs;       // of each a function, and where among the words its argument starts
    int64_t job_count;
    const int64_t *regions;    // where each begins
    int64_t *copy;             // [count]: memory for the words as they run
    int64_t *spent;            // null, or [job_count]: receives nanoseconds
    int64_t total, steps;      // of the batch
};
enum : int64_t { SCRATCH = 1, WORDS = 2 };  // regions

static int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

static void run(const Program &p) {
    memcpy(p.copy, p.words, p.count * sizeof(int64_t));
    for (int64_t i = 0; i < p.address_count; ++i) {
        int64_t &word = p.copy[p.addresses[i]];
        if (word) word = p.regions[word >> OFFSET_BITS] + (word & (2 * ZERO_OFFSET - 1)) - ZERO_OFFSET;
    }
    for (int64_t i = 0; i < p.count_count; ++i) {
        int64_t &word = p.copy[p.counts[i]];
        word = word == STEPS ? p.steps : p.total;
    }
    for (int64_t i = 0; i < p.job_count; ++i) {
        const int64_t start = p.spent ? now() : 0;
        ((int (*)(void *))p.jobs[2 * i])(p.copy + p.jobs[2 * i + 1]);
        if (p.spent) p.spent[i] = now() - start;
    }
}

// Programs that are run at once, each by its own threads; see crews.h.
struct Abreast {
    int64_t threads;
    Pool pool;
    int64_t count;
    const Program *programs;
    Crew *crews;
    Count *done;
};
static void abreast(const Abreast &j, int64_t thread, int64_t team) {
    by_crews(j.count, j.crews, j.done, thread, team, [&](int64_t i) { run(j.programs[i]); });
}
static void run_abreast(int64_t threads, const Pool &pool, int64_t count, const Program *programs) {
    Crew crews[count];
    Count done[threads];
    memset(crews, 0, sizeof(crews));
    memset(done, 0, sizeof(done));
    Abreast job = {threads, pool, count, programs, crews, done};
    shared_out<Abreast, abreast>(&job);
}

struct Place { int64_t region, tensor, front; };    // which tensor of a run begins so many bytes behind a region's start
struct Behind { int64_t region, source, bytes; };   // a region that begins behind so many bytes for each row of another
struct Written {
    Program program;  // but for what differs from run to run
    int64_t region_count;
    const int64_t *regions;  // of constants, where they begin
    int64_t place_count;
    const Place *places;
    int64_t behind_count;
    const Behind *behind;
    int64_t scratch_before_words, scratch;  // bytes
    int64_t *spent;  // [job_count]
};
struct Runs {
    int64_t threads;  // of programs that run abreast, else 0
    Pool pool;
    int64_t count;
    const Written *programs;
    const Torch *torch;
    char *(*scratch)(int64_t size);        // null, or see memory.cpp
    Object *all_of, *filled;               // what gives scratch memory otherwise, and whether it has to
    Object *globals, *spent, *none, *took; // `took` is called behind a run unless globals[spent] is none
};

// function(total, steps, tensors): of the batch, and a list.
static Object *run_all(Object *self, Object *const *given, intptr_t) {
    const Runs &r = found_by<const Runs>(self);
    const int64_t total = (int64_t)PyLong_AsVoidPtr(given[0]), steps = (int64_t)PyLong_AsVoidPtr(given[1]);
    int64_t size = 0, region_count = 0;
    for (int64_t i = 0; i < r.count; ++i) {
        size += r.programs[i].scratch;
        region_count += r.programs[i].region_count;
    }
    char *scratch = r.scratch && !said(r.filled, true) ? r.scratch(size) : nullptr;
    if (!scratch) {
        Object *const wanted = PyLong_FromVoidPtr((void *)size), *const address = PyObject_CallFunctionObjArgs(r.all_of, wanted, nullptr);
        Py_DecRef(wanted);
        if (!address) return nullptr;
        scratch = (char *)PyLong_AsVoidPtr(address);
        Py_DecRef(address);
    }
    const bool timed = PyDict_GetItem(r.globals, r.spent) != r.none;
    Program programs[r.count];
    int64_t regions[region_count], *next = regions;
    for (int64_t i = 0; i < r.count; ++i) {
        const Written &w = r.programs[i];
        memcpy(next, w.regions, w.region_count * sizeof(int64_t));
        for (int64_t k = 0; k < w.place_count; ++k) {
            const Place &place = w.places[k];
            Seen seen;
            if (!look(*r.torch, PyList_GetItem(given[2], place.tensor), seen)) return nullptr;
            if (seen.device != CPU) return PyErr_Format(PyExc_ValueError, "a tensor that kernels should read is not on the CPU");
            next[place.region] = (int64_t)(seen.data - place.front);
        }
        for (int64_t k = 0; k < w.behind_count; ++k)
            next[w.behind[k].region] = next[w.behind[k].source] + total * w.behind[k].bytes;
        next[SCRATCH] = (int64_t)scratch;
        next[WORDS] = (int64_t)(scratch + w.scratch_before_words);
        programs[i] = w.program;
        programs[i].regions = next;
        programs[i].copy = (int64_t *)next[WORDS];
        programs[i].spent = timed ? w.spent : nullptr;
        programs[i].total = total;
        programs[i].steps = steps;
        scratch += w.scratch;
        next += w.region_count;
    }
    void *const thread = PyEval_SaveThread();  // other threads of Python's may run meanwhile
    if (r.threads) run_abreast(r.threads, r.pool, r.count, programs);
    else
        for (int64_t i = 0; i < r.count; ++i) run(programs[i]);
    PyEval_RestoreThread(thread);
    return timed ? PyObject_CallFunctionObjArgs(r.took, nullptr) : PyLong_FromLong(0);
}
static Method runs = {"run", run_all, FASTCALL, nullptr};
EXPORT Object *elman_runs(Runs *job, Object *held) { return builtin_of(&runs, job, held); }

// What the jobs of such programs call to share out their work.
EXPORT Pool elman_crew = {crew_parallel, crew_number, crew_size};

struct Copy {
    char *to;
    const char *from;
    int64_t bytes;
};
EXPORT int elman_copy(const Copy *job) {
    memcpy(job->to, job->from, job->bytes);
    return 0;
}

struct Fill {
    real *to;
    int64_t count;
    double value;
};
EXPORT int elman_fill(const Fill *job) {
    if (job->value == 0) memset(job->to, 0, job->count * sizeof(real));
    else
        for (int64_t i = 0; i < job->count; ++i) job->to[i] = (real)job->value;
    return 0;
}

// How a batch is packed: rows sorted by length, step after step.
struct Packing {
    int64_t steps, batch;
    const int64_t *sizes;    // [steps]: rows at each step
    const int64_t *offsets;  // [steps]: the packed row at which a step starts
};

// Where one of the caller's rows stands: the packed row that it is in, its first step there, and how many it has.
struct Sequence { int64_t row, start, length; };
INLINE int64_t entry_of(const Packing &p, const Sequence &s, int64_t t) { return p.offsets[s.start + t] + s.row; }

// The states before some steps, one after the other, out of a state's sequence. That has the initial state first, or
// where time runs backwards, last.
struct Before {
    int64_t threads;
    Pool pool;
    Packing packing;
    int64_t first, last, reverse, width;
    const real *sequence;
    const uint8_t *reset;   // null, or [N]: where a row starts afresh
    const real *otherwise;  // [width]: from this
    real *to;
};
static void before(const Before &j, int64_t thread, int64_t team) {
    const Packing &p = j.packing;
    const int64_t w = j.width, count = j.last - j.first;
    for (int64_t t = j.first + count * thread / team; t < j.first + count * (thread + 1) / team; ++t) {
        const int64_t rows = p.sizes[t], end = p.offsets[p.steps - 1] + p.sizes[p.steps - 1];
        real *to = j.to + (p.offsets[t] - p.offsets[j.first]) * w;
        if (!j.reverse) {
            const int64_t from = t ? p.batch + p.offsets[t - 1] : 0;
            memcpy(to, j.sequence + from * w, rows * w * sizeof(real));
        } else {
            const int64_t later = t + 1 < p.steps ? p.sizes[t + 1] : 0;
            if (later) memcpy(to, j.sequence + p.offsets[t + 1] * w, later * w * sizeof(real));
            memcpy(to + later * w, j.sequence + (end + later) * w, (rows - later) * w * sizeof(real));
        }
        for (int64_t row = 0; j.reset && row < rows; ++row)
            if (j.reset[p.offsets[t] + row]) memcpy(to + row * w, j.otherwise, w * sizeof(real));
    }
}
EXPORT int elman_before(Before *job) { return shared_out<Before, before>(job); }

// Of each sequence what belongs to its last step in the order of time, [count, width] in the caller's order, or [batch, width] in
// packed order.
enum Source : int64_t {
    SEQUENCE,  // of a state, with the initial state first
    CARRIED,   // [2, batch, width], by the parity of lengths
    STANDING,  // of a state where time runs backwards, or [batch, width]
};
struct Ends {
    Packing packing;
    Source source;
    int64_t width;
    const real *from;
    real *to;
    int64_t count;
    const Sequence *sequences;
    int64_t ordered;
};
EXPORT int elman_ends(const Ends *job) {
    const Ends &j = *job;
    const Packing &p = j.packing;
    for (int64_t i = 0; i < j.count; ++i) {
        const Sequence &s = j.sequences[i];
        const int64_t from = j.source == SEQUENCE  ? p.batch + entry_of(p, s, s.length - 1)
                             : j.source == CARRIED ? s.length % 2 * p.batch + s.row
                                                   : entry_of(p, s, 0);
        memcpy(j.to + (j.ordered ? i : s.row) * j.width, j.from + from * j.width, j.width * sizeof(real));
    }
    return 0;
}

// Between a padded batch, [T, count, *], and its packed rows.
struct Rows {
    int64_t threads;
    Pool pool;
    Packing packing;
    int64_t bytes;         // of a row
    int64_t padded_steps;  // T, or 0 for those of the longest; steps past a row's length are passed over, or zero
    int64_t count;
    const Sequence *sequences;  // null, or [count]; without all have all steps
    char *padded;
    int64_t step_stride, row_stride;  // bytes
    char *packed;
    int64_t unpack;
    const char *more;      // null, or as `packed`: to be added on the way back
};
static void add_rows(real *to, const real *a, const real *b, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(a + i) + load(b + i));
    if (i < count) store_part(to + i, load_part(a + i, count - i) + load_part(b + i, count - i), count - i);
}
static void rows(const Rows &j, int64_t thread, int64_t team) {
    const Packing &p = j.packing;
    auto sequence = [&](int64_t row) { return j.sequences ? j.sequences[row] : Sequence{row, 0, p.steps}; };
    int64_t copied = 0, longest = 0;
    for (int64_t row = 0; row < j.count; ++row) {
        const int64_t length = sequence(row).length;
        copied += length;
        longest = longest < length ? length : longest;
    }
    // A row that is copied takes as long as two that are made zero; each thread has steps that lie together.
    const int64_t steps = j.padded_steps ? j.padded_steps : longest, each = j.unpack ? j.count : 0, all = copied + steps * each;
    const int64_t begin = all * thread / team, end = all * (thread + 1) / team;
    int64_t before = 0;
    for (int64_t t = 0; t < steps && (before < end || thread + 1 == team); ++t) {
        const bool mine = before >= begin;
        before += each;
        for (int64_t row = 0; row < j.count; ++row) {
            const Sequence s = sequence(row);
            before += t < s.length;
            if (!mine) continue;
            char *padded = j.padded + t * j.step_stride + row * j.row_stride;
            if (t >= s.length) {
                if (j.unpack) memset(padded, 0, j.bytes);
                continue;
            }
            const int64_t at = entry_of(p, s, t) * j.bytes;
            char *packed = j.packed + at;
            if (j.more)
                add_rows((real *)padded, (const real *)packed, (const real *)(j.more + at), j.bytes / (int64_t)sizeof(real));
            else if (j.unpack) memcpy(padded, packed, j.bytes);
            else memcpy(packed, padded, j.bytes);
        }
    }
}
EXPORT int elman_rows(Rows *job) { return shared_out<Rows, rows>(job); }
