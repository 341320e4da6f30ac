// A kernel's matrices: packed in the order in which it reads them, and whether they have changed.

#pragma once
#include "transposition.h"

// The matrices of one group of a kernel's products, as `recurrence.h` reads them: [block][pass][depth][vector][LANES], zero
// past the last unit; the vectors of all passes are [unit block of the block][matrix].
struct Packing {
    int64_t count, segments, unit_blocks, width, depth, transposed, threads;
    const real *const *matrices;  // [segments, count]
    const int64_t *strides, *extents;  // a matrix is [width, extent], or transposed [extent, width]; the depth is all extents
    real *to;
    Pool pool;
};

static void pack_share(const Packing &p, int64_t thread, int64_t team) {
    const int64_t units = p.unit_blocks * LANES, blocks = (p.width + units - 1) / units;
    const int64_t all = p.unit_blocks * p.count, pass = pass_of(all);
    for (int64_t block = blocks * thread / team; block < blocks * (thread + 1) / team; ++block)
        for (int64_t v = 0; v < all; ++v) {
            const int64_t wide = all - v / pass * pass < pass ? all - v / pass * pass : pass, step = wide * LANES;
            real *to = p.to + ((block * all + v / pass * pass) * p.depth + v % pass) * LANES;
            const int64_t unit = block * units + v / p.count * LANES, left = p.width - unit;
            const int64_t present = left < 0 ? 0 : left < LANES ? left : LANES;
            if (p.transposed) {
                for (int64_t m = 0; m < p.segments; ++m)
                    for (int64_t row = 0; row < p.extents[m]; ++row, to += step) {
                        const real *from = p.matrices[m] + row * p.strides[m] + unit;
                        store(to, present == LANES ? load(from) : present ? load_part(from, present) : V{});
                    }
            } else
                for (int64_t m = v % p.count; m < p.segments * p.count; to += p.extents[m] * step, m += p.count)
                    transpose(to, step, p.matrices[m] + unit * p.strides[m], p.strides[m], present, p.extents[m]);
        }
}

EXPORT int elman_pack(Packing *packing) {
    return shared_out<Packing, pack_share>(packing);
}
EXPORT int elman_lanes() { return LANES; }

// A number that changes, almost surely, when one of some numbers spread over each of several tensors does.
EXPORT uint64_t elman_sample(const int64_t *tensors, int64_t count, int64_t samples) {
    uint64_t found = 14695981039346656037ull;  // FNV-1a, by words
    for (int64_t i = 0; i < count; ++i) {
        const real *p = (const real *)tensors[2 * i];
        const int64_t n = tensors[2 * i + 1], step = n < samples ? 1 : n / samples;
        for (int64_t k = 0; k < n; k += step) {
            uint64_t bits = 0;
            __builtin_memcpy(&bits, p + k, sizeof(real));
            found = (found ^ bits) * 1099511628211ull;
        }
    }
    return found;
}
