// The parts of a compiled cell's step: where they find their numbers, the products that feed them, and the pointwise
// expressions on top. Buffers are row-major, one row after the other; the last vector of a row whose width is not a
// multiple of LANES is read and written in part.

#include "functions.h"
#include "draws.h"
#include "tiles.h"

// How a buffer's row for batch row b at step t is found.
enum Kind {
    STEP,     // [N, *]: packed like the input; caller's or result's rows of this step
    PREVIOUS, // [B + N, *]: a state's sequence with the initial state first; the row before the step. Where time runs
              // backwards [N + B, *], the initial state last
    NEXT,     // the same buffer; the row after the step
    ENTERED,  // as PREVIOUS, or where some rows may start afresh, a scratch [B, *] for the steps at which they do
    CARRY,    // [2, B, *]: gradient of a state handed back in time; read this step
    HANDED,   // the same buffer; written for the step before
    BATCH,    // [B, *]: scratch
    UNITS,    // [*]: per-unit values, the same for all rows
    TOTALS,   // [threads, *]: per-unit totals over rows, and what is computed before the first step; one for each thread
    ABSENT,   // not given: reads as zero
};

struct Buffer {
    real *base;
    int64_t stride;  // elements from row to row
    int64_t kind;
    int64_t width;   // units in use
};

struct Call {
    int64_t steps, batch, threads, backward;
    int64_t split_rows;          // at steps of so many rows or fewer, threads share out the units instead of the rows
    int64_t first, last;         // the steps to run, of all `steps`
    int64_t reverse;             // whether time runs from each row's last step to its first
    const int64_t *batch_sizes;  // [steps]
    const int64_t *offsets;      // [steps]: packed row at which a step starts
    const uint8_t *reset;        // [N] or null
    Buffer *buffers;
    const real **weights;        // packed matrices, one for each group of products
    const int64_t **ranges;      // for each group: null, or begin and end of the non-zero columns of each block
    real *sums;                  // [sums, threads, batch, LANES]: partial row sums
    int64_t states;              // triples (previous, entered, initial) for resets
    const int64_t *entering;     // [states, 3]: buffers PREVIOUS, ENTERED, and UNITS with the default
    int64_t carries;             // triples (carry, final gradient, gradient of the default)
    const int64_t *finals;       // [carries, 3]: buffers CARRY, BATCH, and TOTALS or ABSENT
    const Draw *draws;           // the random choices
    int64_t runs;                // of units with one period each; 0: all units are due at every step
    const int64_t *clock;        // [runs, 3]: first unit, end, period
    const Tile *tiles;           // see tiles.h
    Parallel parallel;
    int (*thread_number)();
    int (*team_size)();
    Arrivals *meeting;
    int64_t turn;                // how many steps are taken to have been before the first: see Context::down
    int64_t piece_bytes;         // see tiles_by_pieces
};

// ---- one thread's view of a step --------------------------------------------------------------------------------

struct Context {
    Call *call;
    int64_t thread, rows, blocks_of, block_parts;  // rows of this thread; which share of the unit blocks it takes
    int64_t row_first;                             // batch row of local row 0
    real *p[BUFFERS];
    int64_t s[BUFFERS];
    int64_t time;                                  // the step, of all
    int64_t following;                             // rows from this step's first to the next one's, about
    bool down;     // whether blocks of units are taken from the last to the first, so that a step begins with the matrices
                   // that the one before it has left in the near caches
    int64_t piece, pieces;  // which part of their depth products are summed over, of how many
    uint64_t due;  // of a clock's runs of units, those that are due at this step in any of this thread's rows
};

// Whether any of some units is due. CLOCK is the buffer of the step index where the cell has a clock, else negative.
INLINE bool due(const Context &c, int64_t first, int64_t end) {
    if (CLOCK < 0 || c.call->runs == 0) return true;
    for (int64_t r = 0; r < c.call->runs; ++r) {
        const int64_t *run = c.call->clock + 3 * r;
        if ((c.due >> r & 1) && run[0] < end && first < run[1]) return true;
    }
    return false;
}

// A vector of a row; unless WHOLE, only `left` of its units are there.
template <bool WHOLE> INLINE V read(const Context &c, int buffer, int64_t row, int64_t unit, int64_t left) {
    const real *p = c.p[buffer] + row * c.s[buffer] + unit;
    return WHOLE ? load(p) : load_part(p, left);
}
INLINE V read_one(const Context &c, int buffer, int64_t row) { return splat(c.p[buffer][row * c.s[buffer]]); }
template <bool WHOLE> INLINE V read_if(const Context &c, int buffer, int64_t row, int64_t unit, int64_t left) {
    return c.p[buffer] ? read<WHOLE>(c, buffer, row, unit, left) : V{};
}
template <bool WHOLE> INLINE void write(const Context &c, int buffer, int64_t row, int64_t unit, int64_t left, V v) {
    real *p = c.p[buffer] + row * c.s[buffer] + unit;
    WHOLE ? store(p, v) : store_part(p, v, left);
}
template <bool WHOLE> INLINE void total(const Context &c, int buffer, int64_t unit, int64_t left, V v) {
    real *p = c.p[buffer] + unit;
    WHOLE ? store(p, load(p) + v) : store_part(p, load_part(p, left) + v, left);
}
INLINE real *sum_at(const Context &c, int sum, int64_t thread, int64_t row) {
    const Call &k = *c.call;
    return k.sums + ((sum * k.threads + thread) * k.batch + c.row_first + row) * LANES;
}
template <bool WHOLE> INLINE void sum(const Context &c, int index, int64_t row, int64_t left, V v) {
    if (!WHOLE) v = (V)((Integers)v & first_lanes(left));
    real *p = sum_at(c, index, c.thread, row);
    store(p, load(p) + v);
}
// Not inline, since a part may read eight of them and does so once a row.
static __attribute__((noinline)) V read_sum(const Context &c, int index, int64_t row) {
    V v = load(sum_at(c, index, c.block_parts > 1 ? 0 : c.thread, row));
    for (int64_t i = 1; i < c.block_parts; ++i) v += load(sum_at(c, index, i, row));
    real s = 0;
    for (int i = 0; i < LANES; ++i) s += v[i];
    return splat(s);
}

INLINE Integers draw(const Context &c, int number, int64_t row, int64_t unit) {
    return __builtin_convertvector(chosen(c.call->draws[number], c.row_first + row, c.time, unit), Integers);
}

INLINE Integers draw_one(const Context &c, int number, int64_t row) { return draw(c, number, row, 0)[0] - Integers{}; }

// ---- products ---------------------------------------------------------------------------------------------------

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
            wanted.at = (const char *)(k.weights[g.number] + ((next * all + done) * depth + from * wide) * LANES) + bytes * row / c.rows;
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
template <bool PIECES> INLINE void inputs(const Context &c, const Group &g, V *acc, int64_t row, int64_t rows, int64_t block, int64_t units) {
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

// ---- parts ------------------------------------------------------------------------------------------------------

// The pointwise expressions of a part, `point`, are statements for N vectors side by side, of one row or (DOWN) of as many
// rows, so that the processor has several chains of operations to work on: it looks no further ahead than one or two long
// ones. More than two would not fit in the registers.
//
// Where one function's value goes into another one, the expressions come in stages, each for several vectors before the next one,
// with what a later stage reads kept meanwhile: else the processor would wait for the first function (see compiler/stages.py).
enum { TOGETHER = 2 };
template <class Part, int STAGE = 0, class F> INLINE void by_stage(F f) {
    f(Number<STAGE>{});
    if constexpr (STAGE + 1 < Part::stages) by_stage<Part, STAGE + 1>(f);
}
#define EACH _Pragma("GCC unroll 8") for (int k = 0; k < N; ++k)
#define IN_ROWS (DOWN ? N : 1)
#define EACH_ROW _Pragma("GCC unroll 8") for (int k = 0; k < IN_ROWS; ++k)
#define ROW row + k * DOWN
#define UNIT unit + k * (1 - DOWN) * LANES
#define AT ROW, UNIT

// The pointwise expressions for some rows and one vector of units; apart from the products, so that it is compiled once.
template <class Part, bool WHOLE>
static __attribute__((noinline, noclone)) void points(const Context &c, int64_t row, int64_t rows, int64_t unit, int64_t left,
                                             const V *acc, int64_t stride) {
    V keep[MOST_ROWS * Part::kept + 1];
    by_stage<Part>([&](auto number) {
        constexpr int stage = number;
        int64_t r = 0;
        if (WHOLE)
            for (; r + TOGETHER <= rows; r += TOGETHER)
                Part::template point<true, TOGETHER, 1, stage>(c, row + r, unit, LANES, acc + r * stride, stride, keep + r * Part::kept);
        for (; r < rows; ++r)
            Part::template point<WHOLE, 1, 0, stage>(c, row + r, unit, left, acc + r * stride, stride, keep + r * Part::kept);
    });
}
template <class Part>
INLINE void points_of(const Context &c, int64_t row, int64_t rows, int64_t unit, int64_t units, const V *acc, int64_t stride) {
    if (unit + LANES <= units) points<Part, true>(c, row, rows, unit, LANES, acc, stride);
    else points<Part, false>(c, row, rows, unit, units - unit, acc, stride);
}

// Where the numbers of a row are that a part reads or writes of each step once. They can be fetched before they are wanted:
// the processor does not see them coming, since a row is short and lies far from the one before it.
template <class Part> INLINE void streams_of(const Context &c, int64_t row, const real **streams) {
#pragma GCC unroll 16
    for (int i = 0; i < Part::streams; ++i) {
        const int buffer = Part::stream[i];
        streams[i] = c.p[buffer] ? c.p[buffer] + row * c.s[buffer] : (const real *)streams;
    }
}
template <class Part> INLINE void fetch(const real *const *streams, int64_t unit, int vectors) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v += 64 / VECTOR_BYTES)
#pragma GCC unroll 16
        for (int i = 0; i < Part::streams; ++i) {
            const real *p = streams[i] + unit + v * LANES;
            i < Part::reads ? __builtin_prefetch(p, 0, 2) : __builtin_prefetch(p, 1, 2);  // to the second level: matrices fill the first
        }
}

// The same for some rows and a block of units.
template <class Part> INLINE void fetch_rows(const Context &c, int64_t row, int64_t rows, int64_t unit) {
#pragma GCC unroll 16
    for (int i = 0; i < Part::streams; ++i) {
        const int64_t stride = c.s[Part::stream[i]];
        if (!stride) continue;  // the same for all rows, or absent
        const real *p = c.p[Part::stream[i]] + row * stride + unit;
        for (int64_t r = 0; r < rows; ++r, p += stride)
#pragma GCC unroll 8
            for (int v = 0; v < Part::blocks; v += 64 / VECTOR_BYTES)
                i < Part::reads ? __builtin_prefetch(p + v * LANES, 0, 2) : __builtin_prefetch(p + v * LANES, 1, 2);
    }
}

// The expressions of up to STRIP vectors of a row, or of all where there are no stages; gives the end. A single whole vector is treated as one that is not whole where parts have
// products or are many: it is a third of what is compiled.
enum { STRIP = 8, FEW_PARTS = 6 };
template <class Part>
INLINE int64_t strip_of_points(const Context &c, int64_t row, int64_t first, int64_t last, const V *acc, const real *const *streams) {
    V keep[STRIP * Part::kept + 1];
    const int64_t end = Part::stages == 1 || last - first < STRIP * LANES ? last : first + STRIP * LANES;
    by_stage<Part>([&](auto number) {
        constexpr int stage = number;
        int64_t unit = first;
        const V *sums = acc;
        V *kept = keep;
        auto vectors = [&](auto several) {
            constexpr int n = several;
            for (; unit + n * LANES <= end; unit += n * LANES, sums += n * Part::count, kept += n * Part::kept) {
                if (stage == 0 && streams) fetch<Part>(streams, unit, n);
                Part::template point<true, n, 0, stage>(c, row, unit, LANES, sums, Part::count, kept);
            }
        };
        if constexpr (!Part::single) vectors(Number<TOGETHER>{});
        if constexpr (!Part::single && Part::count == 0 && PARTS <= FEW_PARTS) vectors(Number<1>{});
        for (; unit < end; unit += LANES, sums += Part::count, kept += Part::kept)
            Part::template point<false, 1, 0, stage>(c, row, unit, end - unit < LANES ? end - unit : LANES, sums, Part::count, kept);
    });
    return end;
}

// The products of some rows and one block, to `acc`, with a row's streams on their way meanwhile; see `multiply`.
template <class Part, bool PIECES>
static void products_of(const Context &c, V *acc, int64_t row, int64_t rows, int64_t block, int64_t units) {
    const int64_t first = block * Part::blocks * LANES;
    const bool begins = !PIECES || c.piece == 0;
    if (begins && Part::streams && (Part::blocks * VECTOR_BYTES >= 64 || first * sizeof(real) % 64 == 0)) fetch_rows<Part>(c, row, rows, first);
    if (Part::transposes || due(c, first, first + Part::blocks * LANES)) Part::template multiply_all<PIECES>(c, acc, row, rows, block, units);
    else if (begins) __builtin_memset(acc, 0, rows * Part::blocks * Part::count * sizeof(V));
}

// The expressions of some rows and one block of units.
template <class Part>
INLINE void points_of_block(const Context &c, int64_t row, int64_t rows, int64_t block, int64_t units, const V *acc) {
    for (int b = 0; b < Part::blocks; ++b) {
        const int64_t unit = (block * Part::blocks + b) * LANES;
        if (unit < units) points_of<Part>(c, row, rows, unit, units, acc + b * Part::count, Part::blocks * Part::count);
    }
}

// A part for some rows and one block of units.
template <class Part> static void tile(const Context &c, int64_t row, int64_t rows, int64_t block, int64_t units) {
    V acc[MOST_ROWS * Part::blocks * Part::count];
    products_of<Part, false>(c, acc, row, rows, block, units);
    points_of_block<Part>(c, row, rows, block, units, acc);
}

// The bytes of the matrices of one block of units, those of the group that has most.
template <class Part> INLINE int64_t panel_bytes(const Context &c) {
    int64_t most = 0;
    for (const Group *const *g = Part::groups; *g; ++g) most = larger(most, depth_of(c, **g) * (*g)->blocks * (*g)->count * VECTOR_BYTES);
    return most;
}

// A part for several tiles of rows, where the matrices of a block would push each other out of the near cache from one tile to
// the next: a piece of their depth for all tiles, then the next one.
enum { SUMS_AT_ONCE = 1024 };
template <class Part>
static __attribute__((noinline)) void tiles_by_pieces(const Context &given, int64_t first, int64_t last, int64_t units, int64_t pieces) {
    enum { SUMMED = Part::blocks * Part::count, MOST = rows_of(Part::widest), ROWS = larger(SUMS_AT_ONCE / SUMMED, MOST) };
    V acc[ROWS * SUMMED];
    Context c = given;
    c.pieces = pieces;
    for (int64_t shares = (given.rows + ROWS - 1) / ROWS, share = 0; share < shares; ++share) {
        const int64_t begun = given.rows * share / shares;
        c.rows = given.rows * (share + 1) / shares - begun;
        c.row_first = given.row_first + begun;
        for (int i = 0; i < BUFFERS; ++i) c.p[i] = given.p[i] + begun * c.s[i];
        const int64_t tiles = (c.rows + MOST - 1) / MOST;
        auto each = [&](auto f) {
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t row = c.rows * t / tiles;
                f(row, c.rows * (t + 1) / tiles - row, acc + row * SUMMED);
            }
        };
        for (int64_t i = first; i < last; ++i) {
            const int64_t block = c.down ? first + last - 1 - i : i;
            for (c.piece = 0; c.piece < pieces; ++c.piece)
                each([&](int64_t row, int64_t rows, V *to) { products_of<Part, true>(c, to, row, rows, block, units); });
            each([&](int64_t row, int64_t rows, V *sums) { points_of_block<Part>(c, row, rows, block, units, sums); });
        }
    }
}

// A part for one row: the products of several blocks, so that the matrices do not stand still while expressions, each of which
// waits for the one before it, are computed; then these, for two vectors side by side.
template <class Part> static void tiles_of_row(const Context &c, int64_t first, int64_t last, int64_t units) {
    enum { SUMMED = Part::blocks * Part::count, AT_ONCE = SUMMED < 64 ? 64 / SUMMED : 1 };
    V acc[AT_ONCE * SUMMED];
    for (int64_t done = first, n; done < last; done += n) {
        n = last - done < AT_ONCE ? last - done : AT_ONCE;
        const int64_t from = c.down ? first + last - done - n : done, end = (from + n) * Part::blocks * LANES;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t at = c.down ? n - 1 - i : i;
            products_of<Part, false>(c, acc + at * SUMMED, 0, 1, from + at, units);
        }
        const int64_t present = end < units ? end : units;
        const int64_t start = from * Part::blocks * LANES;
        for (int64_t unit = start; unit < present;)
            unit = strip_of_points<Part>(c, 0, unit, present, acc + (unit - start) / LANES * Part::count, 0);
    }
}

// The same for a part without products, over all rows and a stretch of units.
template <class Part> static __attribute__((noinline)) void rows_of_points(const Context &given, int64_t first, int64_t last) {
    const Context c = given;  // a copy that no write can reach, so that addresses are computed once for a row
    for (int64_t row = 0; row < c.rows; ++row) {
        const real *streams[Part::streams + 1];
        streams_of<Part>(c, row + 1 < c.rows ? row + 1 : c.following, streams);
        for (int64_t unit = first; unit < last;) unit = strip_of_points<Part>(c, row, unit, last, 0, streams);
    }
}

template <class Part> static void run_part(const Context &c) {
    const int64_t units = c.call->buffers[Part::domain_buffer].width;
    const int64_t block_units = Part::blocks * LANES, blocks = (units + block_units - 1) / block_units;
    const int64_t first = blocks * c.blocks_of / c.block_parts, last = blocks * (c.blocks_of + 1) / c.block_parts;
    for (int i = 0; i < Part::sums; ++i)
        for (int64_t row = 0; row < c.rows; ++row) store(sum_at(c, Part::first_sum + i, c.thread, row), V{});
    if constexpr (Part::count == 0) {
        const int64_t end = last * block_units;
        rows_of_points<Part>(c, first * block_units, end < units ? end : units);
    } else {
        if (!Part::single && c.rows == 1) return tiles_of_row<Part>(c, first, last, units);
        constexpr int most = rows_of(Part::widest);
        const int64_t tiles = (c.rows + most - 1) / most, pieces = (panel_bytes<Part>(c) - 1) / c.call->piece_bytes + 1;
        if (tiles > 1 && pieces > 1) return tiles_by_pieces<Part>(c, first, last, units, pieces);
        for (int64_t i = first; i < last; ++i)
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t from = c.rows * t / tiles, to = c.rows * (t + 1) / tiles;
                tile<Part>(c, from, to - from, c.down ? first + last - 1 - i : i, units);
            }
    }
}
