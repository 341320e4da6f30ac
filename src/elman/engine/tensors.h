// How compiled code reads torch's tensors, and makes some: by DLPack's functions in C where torch has them (from 2.10 on), else by its
// capsules, which is slower. See tensors.py.

#pragma once
#include "builtin.h"

enum { CPU = 1, DIMENSIONS = 4 };

struct Described {  // DLTensor
    void *data;
    int32_t device, device_number, dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
};
struct Managed {  // DLManagedTensor
    Described tensor;
    void *context;
    void (*deleter)(Managed *);
};
struct Versioned {  // DLManagedTensorVersioned
    uint32_t major, minor;
    void *context;
    void (*deleter)(Versioned *);
    uint64_t flags;
    Described tensor;
};
struct Exchange {  // DLPackExchangeAPI
    uint32_t major, minor;
    void *before;
    void *allocate, *managed_of;
    int (*object_of)(Versioned *tensor, Object **object);
    int (*described)(Object *object, Described *tensor);
};

// What there is of torch.
struct Torch {
    const Exchange *exchange;        // or null
    Object *to_capsule, *to_tensor;  // its functions between tensors and capsules
};

// A tensor, as far as it is looked at.
struct Seen {
    char *data;
    int64_t device, dimensions, code, bits;
    int64_t shape[DIMENSIONS], strides[DIMENSIONS];  // numbers
};

static inline void see(const Described &t, Seen &seen) {
    seen.data = (char *)t.data + t.offset;
    seen.device = t.device;
    seen.dimensions = t.dimensions;
    seen.code = t.code;
    seen.bits = t.bits;
    for (int64_t d = 0; d < t.dimensions && d < DIMENSIONS; ++d) {
        seen.shape[d] = t.shape[d];
        seen.strides[d] = t.strides[d];
    }
}

// False with an exception where it cannot be read.
static inline bool look(const Torch &torch, Object *tensor, Seen &seen) {
    if (torch.exchange) {
        Described t;
        if (torch.exchange->described(tensor, &t)) return false;
        see(t, seen);
        return true;
    }
    Object *const capsule = PyObject_CallFunctionObjArgs(torch.to_capsule, tensor, nullptr);
    if (!capsule) return false;
    see(((const Managed *)PyCapsule_GetPointer(capsule, "dltensor"))->tensor, seen);
    Py_DecRef(capsule);
    return true;
}

// As torch's `is_contiguous`.
static inline bool contiguous(const Seen &seen) {
    int64_t stride = 1;
    bool is = true;
    for (int64_t d = seen.dimensions; d--;) {
        if (seen.shape[d] == 0) return true;
        if (seen.shape[d] != 1) {
            is = is && seen.strides[d] == stride;
            stride *= seen.shape[d];
        }
    }
    return is;
}

// What a tensor on the CPU, contiguous, has to be.
struct Like { int64_t code, bits, dimensions, shape[DIMENSIONS]; };
static inline int64_t numbers_of(const Like &like) {
    int64_t n = 1;
    for (int64_t d = 0; d < like.dimensions; ++d) n *= like.shape[d];
    return n;
}
static inline bool is_like(const Seen &seen, const Like &like) {
    if (seen.device != CPU || seen.code != like.code || seen.bits != like.bits || seen.dimensions != like.dimensions) return false;
    for (int64_t d = 0; d < like.dimensions; ++d)
        if (seen.shape[d] != like.shape[d]) return false;
    return contiguous(seen) && (seen.data || numbers_of(like) == 0);  // those that only stand for others have no numbers
}
