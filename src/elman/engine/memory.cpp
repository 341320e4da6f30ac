// Memory for tensors that goes back to a pool, not to the system, when the last tensor on it is gone. torch takes it by
// DLPack, a plain structure that says where a tensor is and how to give it back.

#include <stdlib.h>
#include <sys/mman.h>

#include "builtin.h"

enum { CPU = 1, DIMENSIONS = 4, LINE = 64, PAGE = 4096, HUGE = 1 << 21 };

// Blocks from SMALLEST bytes on are mapped. Smaller ones are malloc's, but kept as well: a request of more than a kilobyte has
// malloc put together all small pieces that others have given back since the last one, which takes it 100 us behind torch's layers.
enum { SMALLEST = 1 << 17, LEAST = 9, SHARES = 8, CLASSES = (18 - LEAST) * SHARES };

struct Managed {  // DLManagedTensor
    void *data;
    int32_t device, device_number, dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
    void *context;
    void (*deleter)(Managed *);
};

struct Block {
    Managed managed;  // first, so that its address is the block's
    int64_t bytes;    // mapped, or malloc's
    int64_t small;    // -1 where it is mapped, else its class: the memory lies behind the block itself
    char *start;
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

static void give_back(Managed *managed) {
    Block *b = (Block *)managed;
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

static Block *take(int64_t size) {
    if (size < SMALLEST) {
        Block *b = take_small(sizeof(Block) + LINE + size);
        if (!b) return 0;
        b->managed.data = (void *)(((uintptr_t)(b + 1) + LINE - 1) / LINE * LINE);
        return b;
    }
    const int64_t bytes = size_class(size + PAGE);
    enter();
    Block **place = &unused;
    while (*place && (*place)->bytes != bytes) place = &(*place)->next;
    Block *b = *place;
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
        b->small = -1;
    }
    // Blocks start at different places of a page: equal ones would fall on the same sets of the cache.
    b->managed.data = b->start + count * 832 % PAGE;
    return b;
}

// `count` tensors, uninitialised. Of each `wanted` has the number of dimensions, DIMENSIONS sizes, of which the last ones
// may be missing and those below zero are -1 - size more than `rows`, and how many numbers there are in front of the tensor and
// behind it, in memory that lives as long as it does; `made` receives the addresses. False where there is no memory; then nothing is made.
static bool make(int64_t count, const int64_t *wanted, int64_t rows, int64_t code, int64_t bits, Managed **made) {
    for (int64_t i = 0; i < count; ++i, wanted += 1 + DIMENSIONS + 2) {
        const int64_t front = wanted[1 + DIMENSIONS], behind = wanted[2 + DIMENSIONS];
        auto size = [&](int64_t d) { return wanted[1 + d] < 0 ? rows - 1 - wanted[1 + d] : wanted[1 + d]; };
        int64_t numbers = 1;
        for (int64_t d = 0; d < wanted[0]; ++d) numbers *= size(d);
        Block *b = take((front + numbers + behind) * (bits / 8));
        if (!b) {
            while (i--) give_back(made[i]);
            return false;
        }
        int64_t stride = 1;
        for (int64_t d = wanted[0]; d--;) {
            b->shape[d] = size(d);
            b->strides[d] = stride;
            stride *= size(d);
        }
        Managed &m = b->managed;
        m.data = (char *)m.data + front * (bits / 8);
        m.device = CPU;
        m.device_number = 0;
        m.dimensions = (int32_t)wanted[0];
        m.code = (uint8_t)code;
        m.bits = (uint8_t)bits;
        m.lanes = 1;
        m.shape = b->shape;
        m.strides = b->strides;
        m.offset = 0;
        m.context = 0;
        m.deleter = give_back;
        made[i] = &m;
    }
    return true;
}

struct Tensors {
    int64_t count;
    const int64_t *wanted;
    int64_t code, bits;
    Object *convert;  // what makes a tensor of a capsule
};

// function(rows): a list of the tensors, or 0 where there is no memory.
static Object *tensors_of(Object *self, Object *const *given, intptr_t) {
    const Tensors &t = *(const Tensors *)PyLong_AsVoidPtr(self);
    Managed *made[t.count];
    if (!make(t.count, t.wanted, (int64_t)PyLong_AsVoidPtr(given[0]), t.code, t.bits, made)) return PyLong_FromLong(0);
    Object *const list = PyList_New(t.count);
    for (int64_t i = 0; i < t.count; ++i) {
        Object *const capsule = list ? PyCapsule_New(made[i], "dltensor", nullptr) : nullptr;
        Object *const tensor = capsule ? PyObject_CallFunctionObjArgs(t.convert, capsule, nullptr) : nullptr;
        // An interrupt may come behind the conversion: then the tensor is gone, and has given its memory back itself. torch renames
        // what it takes.
        const bool taken = capsule && !PyCapsule_IsValid(capsule, "dltensor");
        if (capsule) Py_DecRef(capsule);
        if (tensor) {
            PyList_SetItem(list, i, tensor);
            continue;
        }
        for (i += taken; i < t.count; ++i) give_back(made[i]);
        if (list) Py_DecRef(list);
        return nullptr;  // with an exception
    }
    return list;
}
static Method tensors = {"tensors", tensors_of, FASTCALL, nullptr};

// `job` has to stay where it is.
EXPORT Object *elman_tensors(Tensors *job) { return builtin_of(&tensors, job); }
