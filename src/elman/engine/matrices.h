// A kernel's matrices: packed in the order in which it reads them, and whether they have changed.

#pragma once
#include "term_packing.h"

// The matrices of one group of a kernel's products, as `recurrence.h` reads them: [block][pass][depth][vector][LANES], zero
// past the last unit; the vectors of all passes are [unit block of the block][matrix]. Where `terms`, as matrix tiles read them, each
// vector by itself and each segment's depth filled up to a half of a tile's (see terms.h).
struct Packing {
    int64_t count, segments, unit_blocks, width, depth, transposed, terms, threads;
    const real *const *matrices;  // [segments, count]
    const int64_t *strides, *extents;  // a matrix is [width, extent], or transposed [extent, width]; the depth is all extents
    real *to;
    Pool pool;
};

#ifdef BY_BFLOAT16
INLINE int64_t halves_of(const Packing &p) {
    int64_t halves = 0;
    for (int64_t s = 0; s < p.segments; ++s) halves += halves_of(p.extents[s * p.count]);
    return halves;
}
static void pack_vector(const Packing &p, char *to, int64_t matrix, int64_t unit, int64_t present) {
    int64_t segment = 0, at = 0;
    auto half = [&](V (&v)[LANES]) {
        while (segment < p.segments && at >= p.extents[segment * p.count]) ++segment, at = 0;
        const int64_t m = (segment < p.segments ? segment : 0) * p.count + matrix, left = segment < p.segments ? p.extents[m] - at : 0;
        const Side side = {p.matrices[m], p.transposed ? 1 : p.strides[m], p.transposed ? p.strides[m] : 1};
        read_half(v, side, unit, present, at, left, false, 0);
        at += HALF;
    };
    for (int64_t b = 0, blocks = blocks_of_halves(halves_of(p)); b < blocks; ++b, to += VECTOR_BLOCK) {
        V x[LANES], y[LANES];
        half(x);
        half(y);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) store_terms(to + i * 64, TILE_BYTES, x[i], y[i]);
    }
}
#endif

static void pack_share(const Packing &p, int64_t thread, int64_t team) {
    const int64_t units = p.unit_blocks * LANES, blocks = (p.width + units - 1) / units;
    const int64_t all = p.unit_blocks * p.count, pass = pass_of(all);
    for (int64_t block = blocks * thread / team; block < blocks * (thread + 1) / team; ++block)
        for (int64_t v = 0; v < all; ++v) {
            const int64_t wide = all - v / pass * pass < pass ? all - v / pass * pass : pass, step = wide * LANES;
            real *to = p.to + ((block * all + v / pass * pass) * p.depth + v % pass) * LANES;
            const int64_t unit = block * units + v / p.count * LANES, left = p.width - unit;
            const int64_t present = left < 0 ? 0 : left < LANES ? left : LANES;
#ifdef BY_BFLOAT16
            if (p.terms) {
                char *from = (char *)p.to + (block * all + v) * blocks_of_halves(halves_of(p)) * VECTOR_BLOCK;
                pack_vector(p, from, v % p.count, unit, present);
                continue;
            }
#endif
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
