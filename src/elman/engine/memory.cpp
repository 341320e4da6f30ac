// Memory for tensors that goes back to a pool, not to the system, when the last tensor on it is gone. torch takes it by
// DLPack, a plain structure that says where a tensor is and how to give it back.

#include <stdlib.h>
#include <sys/mman.h>

#include "tensors.h"

enum { LINE = 64, PAGE = 4096, HUGE = 1 << 21 };

// Blocks from SMALLEST bytes on are mapped. Smaller ones are malloc's, but kept as well: a request of more than a kilobyte has
// malloc put together all small pieces that others have given back since the last one, which takes it 100 us behind torch's layers.
enum { SMALLEST = 1 << 17, LEAST = 9, SHARES = 8, CLASSES = (18 - LEAST) * SHARES };

enum : int64_t { POOLED = -1, ALONE = -2 };

struct Block {
    union {  // first, so that its address is the block's
        Managed managed;
        Versioned versioned;
    };
    int64_t bytes;    // mapped, or malloc's
    int64_t small;    // POOLED or ALONE where it is mapped, else its class: the memory lies behind the block itself
    char *start, *data;
    Block *next;
    int64_t shape[DIMENSIONS], strides[DIMENSIONS];
};

static char lock;
static Block *unused;  // the last used first, which is the likeliest to be in the cache
static int64_t kept, limit = 1 << 28, number;
static Block *small[CLASSES];
static int64_t kept_small, limit_small = 1 << 24;

static void enter() {
    while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE)) {}
}
static void leave() { __atomic_clear(&lock, __ATOMIC_RELEASE); }

static void release(Block *b) {
    munmap(b->start, b->bytes);
    free(b);
}

static void give_back(Block *b) {
    if (b->small >= 0) {
        enter();
        const bool keep = kept_small + b->bytes <= limit_small;
        if (keep) {
            b->next = small[b->small];
            small[b->small] = b;
            kept_small += b->bytes;
        }
        leave();
        if (!keep) free(b);
        return;
    }
    if (b->small == ALONE) return release(b);
    enter();
    b->next = unused;
    unused = b;
    kept += b->bytes;
    Block *gone = 0;
    if (kept > limit) {  // the oldest ones
        Block **last = &unused;
        for (int64_t sum = 0; *last && (sum += (*last)->bytes) <= limit;) last = &(*last)->next;
        gone = *last;
        *last = 0;
        for (Block *g = gone; g; g = g->next) kept -= g->bytes;
    }
    leave();
    while (gone) {
        Block *next = gone->next;
        release(gone);
        gone = next;
    }
}

static int log2_of(int64_t size) { return 63 - __builtin_clzll(size); }

// Sizes go up by an eighth of a power of two, so that blocks of about one size can serve in turn.
static int64_t size_class(int64_t size) {
    int64_t unit = ((int64_t)1 << log2_of(size)) / SHARES;
    if (unit < PAGE) unit = PAGE;
    return (size + unit - 1) / unit * unit;
}

static Block *take_small(int64_t size) {
    if (size < 1 << LEAST) size = 1 << LEAST;
    const int power = log2_of(size);
    const int64_t unit = ((int64_t)1 << power) / SHARES, units = (size + unit - 1) / unit;
    const int64_t number = (power - LEAST) * SHARES + units - SHARES;  // of the class
    enter();
    Block *b = small[number];
    if (b) {
        small[number] = b->next;
        kept_small -= b->bytes;
    }
    leave();
    if (b) return b;
    b = (Block *)malloc(units * unit);
    if (!b) return 0;
    b->bytes = units * unit;
    b->small = number;
    return b;
}

// Memory from the system, or null. A huge page begins at a multiple of its size, so from there on.
static char *map(int64_t bytes) {
    const int64_t room = bytes < HUGE ? 0 : HUGE;
    char *start = (char *)mmap(0, bytes + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return 0;
    const int64_t before = room ? -(uintptr_t)start % HUGE : 0, behind = room - before;
    if (before) munmap(start, before);
    if (behind) munmap(start + before + bytes, behind);
#ifdef MADV_HUGEPAGE
    if (room) madvise(start + before, bytes, MADV_HUGEPAGE);
#endif
    return start + before;
}

// Memory for a tensor; where it is not `pooled` and is mapped, it is fresh and goes back to the system.
static Block *take(int64_t size, bool pooled) {
    if (size < SMALLEST) {
        Block *b = take_small(sizeof(Block) + LINE + size);
        if (!b) return 0;
        b->data = (char *)(((uintptr_t)(b + 1) + LINE - 1) / LINE * LINE);
        return b;
    }
    const int64_t bytes = size_class(size + PAGE);
    enter();
    Block **place = &unused;
    while (*place && (*place)->bytes != bytes) place = &(*place)->next;
    Block *b = pooled ? *place : nullptr;
    if (b) {
        *place = b->next;
        kept -= bytes;
    }
    const int64_t count = number++;
    leave();
    if (!b) {
        b = (Block *)malloc(sizeof(Block));
        if (!b) return 0;
        char *start = map(bytes);
        if (!start) {
            free(b);
            return 0;
        }
        b->start = start;
        b->bytes = bytes;
        b->small = pooled ? POOLED : ALONE;
    }
    // Blocks start at different places of a page: equal ones would fall on the same sets of the cache.
    b->data = b->start + count * 832 % PAGE;
    return b;
}

static void released(Managed *tensor) { give_back((Block *)tensor); }
static void released(Versioned *tensor) { give_back((Block *)tensor); }

struct Tensors {
    int64_t count;
    const int64_t *wanted;  // see `make`
    int64_t code, bits, pooled;
    const Torch *torch;
    Object *filled, *fill;  // whether fresh memory is to be filled, and what fills a list of tensors
};

// Blocks for tensors. Of each `wanted` has the number of dimensions, DIMENSIONS sizes, of which the last ones may be missing and
// those below zero are -1 - size more than `rows`, and how many numbers there are in front of the tensor and behind it, in memory
// that lives as long as it does. The bytes of one for which there is no memory, or 0; then nothing is made.
static int64_t make(const Tensors &t, int64_t rows, Block **made) {
    const int64_t *wanted = t.wanted;
    for (int64_t i = 0; i < t.count; ++i, wanted += 1 + DIMENSIONS + 2) {
        const int64_t front = wanted[1 + DIMENSIONS], behind = wanted[2 + DIMENSIONS], size = t.bits / 8;
        int64_t shape[DIMENSIONS], numbers = 1;
        for (int64_t d = 0; d < wanted[0]; ++d) {
            shape[d] = wanted[1 + d] < 0 ? rows - 1 - wanted[1 + d] : wanted[1 + d];
            numbers *= shape[d];
        }
        Block *const b = take((front + numbers + behind) * size, t.pooled);
        if (!b) {
            while (i--) give_back(made[i]);
            return (front + numbers + behind) * size;
        }
        for (int64_t d = wanted[0], stride = 1; d--;) {
            b->shape[d] = shape[d];
            b->strides[d] = stride;
            stride *= shape[d];
        }
        const Described described = {b->data + front * size, CPU, 0, (int32_t)wanted[0], (uint8_t)t.code, (uint8_t)t.bits, 1,
                                     b->shape, b->strides, 0};
        if (t.torch->exchange) b->versioned = {1, 0, nullptr, released, 0, described};
        else b->managed = {described, nullptr, released};
        made[i] = b;
    }
    return 0;
}

// torch's tensor on a block, which it gives back; null with an exception, then `taken` says whether it has done so or will.
static Object *tensor_on(Block *b, const Torch &torch, bool &taken) {
    Object *tensor = nullptr;
    taken = true;
    if (torch.exchange) return torch.exchange->object_of(&b->versioned, &tensor) ? nullptr : tensor;
    Object *const capsule = PyCapsule_New(&b->managed, "dltensor", nullptr);
    if (capsule) tensor = PyObject_CallFunctionObjArgs(torch.to_tensor, capsule, nullptr);
    // An interrupt may come behind the conversion: then the tensor is gone. torch renames what it takes.
    taken = capsule && !PyCapsule_IsValid(capsule, "dltensor");
    if (capsule) Py_DecRef(capsule);
    return tensor;
}

// function(rows): a list of the tensors.
static Object *tensors_of(Object *self, Object *const *given, intptr_t count) {
    const Tensors &t = found_by<const Tensors>(self);
    Block *made[t.count];
    const int64_t missing = make(t, count ? (int64_t)PyLong_AsVoidPtr(given[0]) : 1, made);
    if (missing) return PyErr_Format(PyExc_MemoryError, "no memory for %lld bytes", (long long)missing);
    Object *const list = PyList_New(t.count);
    for (int64_t i = 0; i < t.count; ++i) {
        bool taken = false;
        Object *const tensor = list ? tensor_on(made[i], *t.torch, taken) : nullptr;
        if (tensor) {
            PyList_SetItem(list, i, tensor);
            continue;
        }
        for (i += taken; i < t.count; ++i) give_back(made[i]);
        if (list) Py_DecRef(list);
        return nullptr;  // with an exception
    }
    if (!list || !said(t.filled, true)) return list;
    Object *const done = PyObject_CallFunctionObjArgs(t.fill, list, nullptr);
    Py_DecRef(done ? done : list);
    return done ? list : nullptr;
}
static Method tensors = {"tensors", tensors_of, FASTCALL, nullptr};

EXPORT Object *elman_tensors(Tensors *job, Object *held) { return builtin_of(&tensors, job, held); }

// The calling thread's scratch memory, as far as a run may have all of it without asking memory.py. It is of one thread of Python's:
// to a thread that other code has started, Python gives another one at each call, and what was the last one's is gone.
static thread_local char *scratch;
static thread_local int64_t scratch_room;
static thread_local uint64_t scratch_of;
EXPORT void elman_scratch_is(char *start, int64_t room) {
    scratch = start;
    scratch_room = room;
    scratch_of = PyThreadState_GetID(PyThreadState_Get());
}
EXPORT char *elman_scratch(int64_t size) {
    return size <= scratch_room && scratch_of == PyThreadState_GetID(PyThreadState_Get()) ? scratch : nullptr;
}
