// The parts of a compiled cell's step: the products that feed them, and the pointwise expressions on top.

#include "groups.h"

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

// The same for some rows and vectors of the first of these streams.
template <class Part, int STREAMS, int VECTORS> INLINE void fetch_rows(const Context &c, int64_t row, int64_t rows, int64_t unit) {
#pragma GCC unroll 16
    for (int i = 0; i < STREAMS; ++i) {
        const int64_t stride = c.s[Part::stream[i]];
        if (!stride) continue;  // the same for all rows, or absent
        const real *p = c.p[Part::stream[i]] + row * stride + unit;
        for (int64_t r = 0; r < rows; ++r, p += stride)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v += 64 / VECTOR_BYTES)
                i < Part::reads ? __builtin_prefetch(p + v * LANES, 0, 2) : __builtin_prefetch(p + v * LANES, 1, 2);
    }
}

// The expressions of up to STRIP vectors of a row, or of all where there are no stages; gives the end. A single whole vector is
// treated as one that is not whole where parts have products or are many: it is a third of what is compiled.
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

// The products of several rows or blocks, to `acc`, with their streams on their way meanwhile; see `multiply`.
template <class Part, How HOW>
static void products_of(const Context &c, V *acc, int64_t row, int64_t several, int64_t block, int64_t units) {
    enum { BLOCK = Part::blocks * LANES, SUMMED = Part::blocks * Part::count };
    const int64_t rows = HOW == OF_ROW ? 1 : several, blocks = HOW == OF_ROW ? several : 1;
    const bool begins = HOW != BY_PIECES || c.piece == 0;
    for (int64_t i = 0; HOW != BY_TERMS && begins && Part::streams && i < blocks; ++i) {
        const int64_t first = (block + i) * BLOCK;
        if (BLOCK * sizeof(real) >= 64 || first * sizeof(real) % 64 == 0)
            fetch_rows<Part, Part::streams, Part::blocks>(c, row, rows, first);
    }
    if (Part::transposes || CLOCK < 0) return Part::template multiply_all<HOW>(c, acc, row, several, block, units);
    for (int64_t i = 0; i < blocks; ++i, acc += SUMMED)
        if (due(c, (block + i) * BLOCK, (block + i + 1) * BLOCK))
            Part::template multiply_all<HOW>(c, acc, row, HOW == OF_ROW ? 1 : several, block + i, units);
        else if (begins) __builtin_memset(acc, 0, rows * SUMMED * sizeof(V));
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
    products_of<Part, WHOLLY>(c, acc, row, rows, block, units);
    points_of_block<Part>(c, row, rows, block, units, acc);
}

// The bytes of the matrices of one block of units, those of the group that has most.
template <class Part> INLINE int64_t panel_bytes(const Context &c) {
    int64_t most = 0;
    for (const Group *const *each = Part::groups; *each; ++each) {
        const Group &g = **each;
        most = larger(most, depth_of(c, g) * g.blocks * g.count * VECTOR_BYTES);
    }
    return most;
}

// A part for several tiles of rows, where a block's matrices and those of the next one, which come nearer meanwhile, would push
// each other out of the near cache: one piece of their depth for all tiles, then the next piece.
enum { SUMS_AT_ONCE = 1024 };
template <class Part>
static __attribute__((noinline)) void tiles_by_pieces(const Context &given, int64_t first, int64_t last, int64_t units,
                                                      int64_t pieces) {
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
                each([&](int64_t row, int64_t rows, V *to) { products_of<Part, BY_PIECES>(c, to, row, rows, block, units); });
            each([&](int64_t row, int64_t rows, V *sums) { points_of_block<Part>(c, row, rows, block, units, sums); });
        }
    }
}

#ifdef BY_BFLOAT16
// The expressions of a tile, some rows of a vector at a time, while matrix tiles form the next tile's sums. With each piece come the
// numbers that the same one of the next tile is about: all at once they would be in the way of matrices.
template <class Part> struct Points : Pieces {
    // Where a block is one vector of units, it has several gates to compute; there it repays to fetch what is only written, too.
    enum { ONE_VECTOR = Part::blocks == 1, PIECE_ROWS = ONE_VECTOR ? 2 : 4, FETCHED = ONE_VECTOR ? int(Part::streams) : int(Part::reads) };
    const Context &c;
    int64_t row, rows, first_block, units;
    int64_t next_row, next_rows, next_block;
    const V *acc;
    Points(const Context &c, int64_t units) : Pieces{run_some, 0, 1, 0, 0}, c(c), units(units) {}
    static void run_some(const Pieces &pieces, int64_t first, int64_t last) {
        const Points &p = static_cast<const Points &>(pieces);
        enum { SUMMED = Part::blocks * Part::count };
        for (int64_t i = first; i < last; ++i) {
            const int64_t b = i % Part::blocks, r = i / Part::blocks * PIECE_ROWS;
            const int64_t next = (p.next_block * Part::blocks + b) * LANES, unit = (p.first_block * Part::blocks + b) * LANES;
            if (r < p.next_rows && next < p.units)
                fetch_rows<Part, FETCHED, 1>(p.c, p.next_row + r, smaller<int64_t>(p.next_rows - r, PIECE_ROWS), next);
            if (unit < p.units)
                points_of<Part>(p.c, p.row + r, smaller<int64_t>(p.rows - r, PIECE_ROWS), unit, p.units,
                                p.acc + r * SUMMED + b * Part::count, SUMMED);
        }
    }
    void begin(int64_t from, int64_t several, int64_t block, const V *sums) {
        row = from, rows = several, first_block = block, acc = sums, done = 0;
        pieces = (rows + PIECE_ROWS - 1) / PIECE_ROWS * Part::blocks;
    }
    void finish() { run_pieces(*this, pieces); }
};

// A part by matrix tiles, all rows.
template <class Part>
static __attribute__((noinline)) void tiles_by_terms(const Context &given, int64_t first, int64_t last, int64_t units) {
    enum { SUMMED = Part::blocks * Part::count };
    V acc[2][GROUP_ROWS * SUMMED];
    Context c = given;
    Points<Part> points(given, units);
    c.meanwhile = &points;
    const Height height = height_of(c.rows);
    for (const Group *const *each = Part::groups; *each; ++each)
        if (c.call->terms[(*each)->number]) make_terms(c, **each, height);
    const int64_t shape = height.tiles * GROUP_ROWS + height.rows;
    if (height.groups && c.shape != shape) shape_tiles(height.tiles, height.rows), given.shape = shape;
    bool odd = false;
    for (int64_t i = first; i < last; ++i) {
        const int64_t block = c.down ? first + last - 1 - i : i;
        int64_t steps = 0;
        for (const Group *const *each = Part::groups; *each; ++each)
            if (c.call->terms[(*each)->number]) steps += term_steps(c, **each, height, block, units);
        for (int64_t row = 0; row < c.rows; row += height.of_group(), odd = !odd) {
            const int64_t rows = smaller(height.of_group(), c.rows - row);
            points.next_row = row, points.next_rows = rows, points.next_block = block;
            points.block = 0, points.blocks = larger<int64_t>(steps, 1);
            products_of<Part, BY_TERMS>(c, acc[odd], row, rows, block, units);
            points.finish();
            points.begin(row, rows, block, acc[odd]);
        }
    }
    points.next_rows = 0;
    points.finish();
}
#endif

// A part for one row: the products of several blocks, so that the matrices do not stand still while expressions, each of which
// waits for the one before it, are computed; then these, for two vectors side by side.
template <class Part> static void tiles_of_row(const Context &c, int64_t first, int64_t last, int64_t units) {
    enum { SUMMED = Part::blocks * Part::count, AT_ONCE = SUMMED < 64 ? 64 / SUMMED : 1 };
    V acc[AT_ONCE * SUMMED];
    const int64_t times = (last - first + AT_ONCE - 1) / AT_ONCE;
    for (int64_t i = 0; i < times; ++i) {
        const int64_t from = first + (c.down ? times - 1 - i : i) * AT_ONCE, end = smaller<int64_t>(from + AT_ONCE, last);
        products_of<Part, OF_ROW>(c, acc, 0, end - from, from, units);
        wait(c);
        const int64_t start = from * Part::blocks * LANES, present = smaller(end * Part::blocks * LANES, units);
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
    const bool of_row = Part::count > 0 && !Part::single && c.rows == 1 && !c.call->terms;
    if (!of_row || SUMS > 0 || CLOCK >= 0) wait(c);
    const int64_t units = c.call->buffers[Part::domain_buffer].width;
    const int64_t block_units = Part::blocks * LANES, blocks = (units + block_units - 1) / block_units;
    const int64_t first = blocks * c.blocks_of / c.block_parts, last = blocks * (c.blocks_of + 1) / c.block_parts;
    for (int i = 0; i < Part::sums; ++i)
        for (int64_t row = 0; row < c.rows; ++row) store(sum_at(c, Part::first_sum + i, c.thread, row), V{});
    if constexpr (Part::count == 0) {
        const int64_t end = last * block_units;
        rows_of_points<Part>(c, first * block_units, end < units ? end : units);
    } else {
#ifdef BY_BFLOAT16
        if (c.call->terms) return tiles_by_terms<Part>(c, first, last, units);
#endif
        if (of_row) {
            tiles_of_row<Part>(c, first, last, units);
            wait(c);  // if it has no blocks
            return;
        }
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
