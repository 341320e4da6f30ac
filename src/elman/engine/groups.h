// The products that feed a part of a step: groups of matrices that one loop over an operand multiplies by.

#include "buffers.h"

// Matrices that one loop over an operand multiplies by. The operand's columns are those of the buffers `segments` that are
// there, one after the other. Vector v of a block of units belongs to matrix v % count and to vector v / count of the
// block's units.
struct Group {
    int number, transposed, blocks, count, total;  // of `total` products of the part
    int segment_count;
    const int *segments;
    const int32_t *places;  // where among the part's products, [blocks, total], each vector belongs
    const int *given;       // null, or for each product with the input the buffer it is in if done before, else its bias
};

// Bytes of a group's matrices from which on no near cache holds them. While tiles of one block are computed, the next block's
// come nearer, a share of them with each tile: else its first tile waits for memory, which stands idle during the others.
enum { FAR = 2 << 20 };

INLINE int64_t depth_of(const Context &c, const Group &g) {
    int64_t depth = 0;
    for (int s = 0; s < g.segment_count; ++s) depth += c.p[g.segments[s]] ? c.call->buffers[g.segments[s]].width : 0;
    return depth;
}

// The products of some rows and one block, to `acc`, [rows, blocks, total], as far as there are units; where PIECES over one of
// the pieces of the depth.
template <bool PIECES> INLINE void multiply(const Context &c, const Group &g, V *acc, int64_t row, int64_t rows, int64_t block, int64_t units) {
    const Call &k = *c.call;
    const int64_t *range = k.ranges[g.number];
    const bool clocked = CLOCK >= 0 && g.transposed && k.runs;  // the gradients of units that are not due are zero
    const int64_t depth = depth_of(c, g);
    auto piece_at = [&](int64_t piece) { return PIECES ? depth * piece / c.pieces : depth * piece; };
    int64_t count = 0, begin = PIECES ? piece_at(c.piece) : 0, end = PIECES ? piece_at(c.piece + 1) : depth;
    if (range) begin = larger(begin, range[2 * block]), end = smaller(end, range[2 * block + 1]);
    Stretch stretches[g.segment_count * (clocked ? k.runs : 1)];
    int64_t start = 0;
    for (int s = 0; s < g.segment_count; ++s) {
        const int buffer = g.segments[s];
        const int64_t width = c.p[buffer] ? k.buffers[buffer].width : 0;
        const int64_t from = begin > start ? begin - start : 0, to = end - start < width ? end - start : width;
        auto stretch = [&](int64_t first, int64_t last) {
            if (first < last) stretches[count++] = {c.p[buffer] + row * c.s[buffer] + first, c.s[buffer], start + first, last - first};
        };
        if (!clocked) stretch(from, to);
        else
            for (int64_t r = 0; r < k.runs; ++r)
                if (c.due >> r & 1) {
                    const int64_t first = k.clock[3 * r];
                    while (r + 1 < k.runs && (c.due >> (r + 1) & 1)) ++r;
                    const int64_t last = k.clock[3 * r + 1];
                    stretch(first < from ? from : first, last < to ? last : to);
                }
        start += width;
    }
    const int64_t number = (units + g.blocks * LANES - 1) / (g.blocks * LANES);  // of blocks, of which this thread has
    const int64_t first_block = number * c.blocks_of / c.block_parts, last_block = number * (c.blocks_of + 1) / c.block_parts - 1;
    // Where threads share out the units, most of the operand comes from the other ones: all of its lines together.
    if (c.block_parts > 1 && block == (c.down ? last_block : first_block))
        for (int64_t i = 0; i < count; ++i)
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t k = 0; k < stretches[i].count; k += 64 / sizeof(real))
                    __builtin_prefetch(stretches[i].operand + r * stretches[i].stride + k);
    const int all = g.blocks * g.count, pass = pass_of(all), full = all / pass, apart = g.blocks * g.total;
    const int64_t vectors = ((units + LANES - 1) / LANES - block * g.blocks) * g.count;
    const int wanted = vectors < all ? (int)(vectors + pass - 1) / pass : full + (all % pass > 0);  // passes
    const int fitting = rows == 1 ? together_of(pass, 1) : rows == 2 ? together_of(pass, 2) : 1;
    const real *w = k.weights[g.number] + block * all * depth * LANES;
    const int64_t size = all * depth * (int64_t)VECTOR_BYTES;
    // What is wanted next. The next step, where it turns, begins with the block that this one ends with.
    const int64_t piece = PIECES && c.piece + 1 < c.pieces ? c.piece + 1 : 0;
    const int64_t next = piece ? block : c.down ? block - 1 : block < last_block || SUMS == 0 ? block + 1 : first_block;
    const bool tiles = rows >= FETCHING_ROWS && 2 * rows + 1 < c.rows;  // at least three: for two it costs more than it gives
    const bool far = tiles && size * number > FAR && first_block <= next && next <= last_block;
    auto tile = [&](int done, int wide, int together) {
        Next wanted = {};
        if (far) {
            const int64_t from = piece_at(piece), bytes = (piece_at(piece + 1) - from) * wide * VECTOR_BYTES;
            const real *panel = k.weights[g.number] + ((next * all + done) * depth + from * wide) * LANES;
            wanted.at = (const char *)panel + bytes * row / c.rows;
            wanted.advance = wide * (VECTOR_BYTES * rows / c.rows);
        }
        const Tile tile = k.tiles[tile_number(wide, (int)rows, together, far)];
        tile(acc, apart, g.places + done, stretches, count, w + done * depth * LANES, depth, &wanted, PIECES && c.piece);
    };
    for (int p = 0, together, passes = wanted < full ? wanted : full; p < passes; p += together) {
        together = fitting < passes - p ? fitting : passes - p;
        tile(p * pass, pass, together);
    }
    if (wanted > full) tile(full * pass, all % pass, 1);
}

// Products with the input that no other product is added to: done here where there are matrices, or read from where they
// have been done before the loop, with the biases added already.
template <bool PIECES>
INLINE void inputs(const Context &c, const Group &g, V *acc, int64_t row, int64_t rows, int64_t block, int64_t units) {
    const bool here = c.call->weights[g.number] != 0;
    if (here) multiply<PIECES>(c, g, acc, row, rows, block, units);
    if (PIECES && c.piece) return;
    for (int b = 0; b < g.blocks; ++b) {
        const int64_t unit = (block * g.blocks + b) * LANES, left = units - unit;
        if (left <= 0) break;
        for (int i = 0; i < g.count; ++i) {
            V *to = acc + g.places[b * g.count + i];
            const int from = g.given[i];
            if (here) {
                const V bias = left < LANES ? read<false>(c, from, 0, unit, left) : read<true>(c, from, 0, unit, left);
                for (int64_t r = 0; r < rows; ++r) to[r * g.blocks * g.total] += bias;
            } else if (left < LANES)
                for (int64_t r = 0; r < rows; ++r) to[r * g.blocks * g.total] = read<false>(c, from, row + r, unit, left);
            else
                for (int64_t r = 0; r < rows; ++r) to[r * g.blocks * g.total] = read<true>(c, from, row + r, unit, left);
        }
    }
}
