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

// Bytes of the blocks that one row is multiplied by at once, at most: a few times as many should stay in a near cache, for what a
// step ends with the next one begins with.
enum { BLOCKS_AT_ONCE = 512 << 10 };

INLINE int64_t depth_of(const Context &c, const Group &g) {
    int64_t depth = 0;
    for (int s = 0; s < g.segment_count; ++s) depth += c.p[g.segments[s]] ? c.call->buffers[g.segments[s]].width : 0;
    return depth;
}

// Of a row of so many columns that is computed in the loop, those that this thread has computed itself, however wide the blocks
// were in which the threads shared out the units.
struct Columns { int64_t first, last; };
INLINE Columns own_columns(const Context &c, int64_t width) {
    if (c.own_of != width) {
        const uint32_t part = c.blocks_of, parts = c.block_parts;
        uint32_t first = 0, last = width;
        for (uint32_t units = LANES; units <= MOST_BLOCKS * LANES; units *= 2) {
            const uint32_t blocks = ((uint32_t)width + units - 1) / units;
            first = larger(first, blocks * part / parts * units);
            last = smaller(last, blocks * (part + 1) / parts * units);
        }
        c.own_of = width, c.own_first = first, c.own_last = larger(first, last);
    }
    return {c.own_first, c.own_last};
}

// Columns [begin, end) of a group's operand as stretches: `early` ones at the front of an array of `room`, `late` ones at its
// end. Where `apart`, late are those that other threads may still be writing, and half of this thread's own: that half comes
// last, and the next step begins with it, whose matrices are in the nearest cache then.
struct Found { int64_t early, late; };
INLINE Found find(const Context &c, const Group &g, int64_t row, int64_t begin, int64_t end, bool apart, Stretch *stretches,
                  int64_t room) {
    const Call &k = *c.call;
    Found found = {};
    auto each = [&](auto f) {
        int64_t start = 0;
        for (int s = 0; s < g.segment_count; ++s) {
            const int buffer = g.segments[s];
            const int64_t width = c.p[buffer] ? k.buffers[buffer].width : 0;
            const int64_t from = begin > start ? begin - start : 0, to = end - start < width ? end - start : width;
            auto stretch = [&](int64_t first, int64_t last, bool late) {
                if (first >= last) return;
                stretches[late ? room - ++found.late : found.early++] = {c.p[buffer] + row * c.s[buffer] + first, c.s[buffer],
                                                                         start + first, last - first};
            };
            const Columns own = apart && buffer != INPUT ? own_columns(c, width) : Columns{0, width};
            f(from, to, Columns{larger(own.first, from), smaller(own.last, to)}, stretch);
            start += width;
        }
    };
    if (apart) {
        int64_t all = 0, before = 0;
        each([&](int64_t, int64_t, Columns own, auto) { all += larger<int64_t>(own.last - own.first, 0); });
        each([&](int64_t, int64_t, Columns own, auto stretch) {
            const int64_t half = larger<int64_t>((all / 2 - before) / LANES * LANES, 0), middle = own.first + half;
            stretch(own.first, smaller(middle, own.last), c.odd);
            stretch(middle, own.last, !c.odd);
            before += larger<int64_t>(own.last - own.first, 0);
        });
        each([&](int64_t from, int64_t to, Columns own, auto stretch) {
            stretch(from, smaller(own.first, to), true);
            stretch(larger(own.last, from), to, true);
        });
    } else if (CLOCK >= 0 && g.transposed && k.runs)  // the gradients of units that are not due are zero
        each([&](int64_t from, int64_t to, Columns, auto stretch) {
            for (int64_t r = 0; r < k.runs; ++r)
                if (c.due >> r & 1) {
                    const int64_t first = k.clock[3 * r];
                    while (r + 1 < k.runs && (c.due >> (r + 1) & 1)) ++r;
                    stretch(larger(first, from), smaller(k.clock[3 * r + 1], to), false);
                }
        });
    else each([&](int64_t from, int64_t to, Columns, auto stretch) { stretch(from, to, false); });
    return found;
}

// Another thread has written these columns: all of their lines together.
INLINE void fetch(const Stretch *stretches, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t k = 0; k < stretches[i].count; k += 64 / sizeof(real))
                __builtin_prefetch(stretches[i].operand + r * stretches[i].stride + k);
}

#include "term_groups.h"

// Products are those of some rows and one block of units, over their whole depth or one of its pieces, or a group of rows by matrix
// tiles; or of one row and some blocks, for which threads that share out units begin with what they need not wait for (see `find`).
enum How { WHOLLY, BY_PIECES, BY_TERMS, OF_ROW };

// The products of `several` rows or blocks, to `acc`, [rows, blocks, total], as far as there are units.
template <How HOW>
INLINE void multiply(const Context &c, const Group &g, V *acc, int64_t row, int64_t several, int64_t block, int64_t units) {
    const Call &k = *c.call;
#ifdef BY_BFLOAT16
    if constexpr (HOW == BY_TERMS) return multiply_terms(c, g, acc, row, block, units);
#endif
    const bool by_pieces = HOW == BY_PIECES, shared = HOW == OF_ROW && CLOCK < 0 && c.block_parts > 1;
    const bool apart = shared && (g.segment_count > 1 || g.segments[0] != INPUT);
    const int64_t rows = HOW == OF_ROW ? 1 : several, *range = k.ranges[g.number];
    const int all = g.blocks * g.count, pass = pass_of(all), full = all / pass, stride = g.blocks * g.total;
    const int64_t depth = depth_of(c, g);
    int fitting = HOW == OF_ROW ? together_of(pass, 1) : rows == 2 ? together_of(pass, 2) : 1;
    while (HOW == OF_ROW && fitting > 1 && fitting * pass * depth * VECTOR_BYTES > BLOCKS_AT_ONCE) --fitting;
    const int64_t room = g.segment_count * (CLOCK < 0 ? 4 : larger<int64_t>(k.runs, 1));
    Stretch stretches[room];
    auto piece_at = [&](int64_t piece) { return by_pieces ? depth * piece / c.pieces : depth * piece; };
    const int64_t number = (units + g.blocks * LANES - 1) / (g.blocks * LANES);  // of blocks, of which this thread has
    const int64_t first_block = number * c.blocks_of / c.block_parts, last_block = number * (c.blocks_of + 1) / c.block_parts - 1;
    // Passes of blocks one after the other are alike where no block has a smaller one, or columns of its own.
    const int64_t alike = shared && all % pass == 0 && !range ? several : 1, turns = HOW == OF_ROW && alike == 1 ? several : 1;
    const int64_t begin = by_pieces ? piece_at(c.piece) : 0, end = by_pieces ? piece_at(c.piece + 1) : depth;
    auto between = [&](int64_t first, int64_t last) { return find(c, g, row, first, last, apart, stretches, room); };
    Found found = range ? Found{} : between(begin, end);
    for (int64_t turn = 0; turn < turns; ++turn) {
        const int64_t at = c.down ? turns - 1 - turn : turn, here = block + at;
        if (range) found = between(larger(begin, range[2 * here]), smaller(end, range[2 * here + 1]));
        const bool is_first = here == (c.down ? last_block : first_block);
        if (HOW != OF_ROW && c.block_parts > 1 && is_first) fetch(stretches, found.early, rows);
        const int64_t vectors = ((units + LANES - 1) / LANES - here * g.blocks) * g.count;
        const int64_t wanted = smaller((vectors + pass - 1) / pass, alike * full + (all % pass > 0));  // passes
        const real *w = k.weights[g.number] + here * all * depth * LANES;
        // What is wanted next. The next step, where it turns, begins with the block that this one ends with.
        const int64_t size = all * depth * (int64_t)VECTOR_BYTES, piece = by_pieces && c.piece + 1 < c.pieces ? c.piece + 1 : 0;
        const int64_t next = piece ? here : c.down ? here - 1 : here < last_block || SUMS == 0 ? here + 1 : first_block;
        const bool tiles = rows >= FETCHING_ROWS && 2 * rows + 1 < c.rows;  // at least three: for two it costs too much
        const bool far = tiles && size * number > FAR && first_block <= next && next <= last_block;
        auto tile = [&](int64_t done, int wide, int together) {
            Next wanted = {};
            if (far) {
                const int64_t from = piece_at(piece), bytes = (piece_at(piece + 1) - from) * wide * VECTOR_BYTES;
                const real *panel = k.weights[g.number] + ((next * all + done) * depth + from * wide) * LANES;
                wanted.at = (const char *)panel + bytes * row / c.rows;
                wanted.advance = wide * (VECTOR_BYTES * rows / c.rows);
            }
            const Tile tile = k.tiles[tile_number(wide, (int)rows, together, far)];
            const int32_t *places = g.places + done % all;
            const real *matrix = w + done * depth * LANES;
            V *to = acc + (at + done / all) * stride;
            tile(to, stride, places, stretches, found.early, matrix, depth, &wanted, by_pieces && c.piece);
            if (!apart || !found.late) return;
            const Stretch *late = stretches + room - found.late;
            if (wait(c)) fetch(late, found.late, 1);
            tile(to, stride, places, late, found.late, matrix, depth, &wanted, true);
        };
        const int64_t passes = smaller(wanted, alike * full), tiles_of_passes = (passes + fitting - 1) / fitting;
        for (int64_t i = 0; i < tiles_of_passes; ++i) {
            const int64_t p = (HOW == OF_ROW && c.down ? tiles_of_passes - 1 - i : i) * fitting;
            tile(p * pass, pass, (int)smaller<int64_t>(fitting, passes - p));
        }
        if (wanted > alike * full) tile(full * pass, all % pass, 1);
    }
}

// Products with the input that no other product is added to: done here where there are matrices, or read from where they
// have been done before the loop, with the biases added already.
template <How HOW>
INLINE void inputs(const Context &c, const Group &g, V *acc, int64_t row, int64_t several, int64_t block, int64_t units) {
    const bool here = c.call->weights[g.number] != 0;
    if (here) multiply<HOW>(c, g, acc, row, several, block, units);
    if (HOW == BY_PIECES && c.piece) return;
    const int64_t rows = HOW == OF_ROW ? 1 : several, blocks = HOW == OF_ROW ? several * g.blocks : g.blocks;
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t unit = (block * g.blocks + b) * LANES, left = units - unit;
        if (left <= 0) break;
        for (int i = 0; i < g.count; ++i) {
            V *to = acc + b / g.blocks * g.blocks * g.total + g.places[b % g.blocks * g.count + i];
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
