// What a compiled cell's kernel is given, and one thread's view of a step: where buffers are and what is read and written there.
// Buffers are row-major, one row after the other; the last vector of a row whose width is not a multiple of LANES is read and
// written in part.

#include "functions.h"
#include "draws.h"
#include "terms.h"

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
    char *const *terms;          // null, or for each group null or room for its operand's terms: see term_groups.h
};

// What is done while matrix tiles multiply, a piece of it with each block of the depth.
struct Pieces {
    void (*run)(const Pieces &, int64_t first, int64_t last);
    int64_t pieces, blocks, block, done;
};
INLINE void run_pieces(Pieces &p, int64_t until) {
    if (p.done < until) p.run(p, p.done, until), p.done = until;
}

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
    bool odd;      // whether this is the second, fourth ... step of a run
    mutable int64_t own_of, own_first, own_last;  // see `own_columns`
    mutable int32_t arrivals;                     // see `arrive`
    mutable bool waits;
    mutable int64_t shape;                        // of the processor's matrix tiles, 0: none
    Pieces *meanwhile;                            // while these multiply
};

// Where threads share out the units of a step, each says when it is done with a part: so often has it. Before it reads what
// others have written, or writes what they may be reading, it waits until all have come as far. It counts for itself, since to
// read a line that the others look at takes a trip of that line.
INLINE void arrive(const Context &c) {
    if (c.block_parts < 2) return;
    announce(c.call->meeting, c.thread, ++c.arrivals);
    c.waits = true;
}
// Whether this thread had yet to wait.
INLINE bool wait(const Context &c) {
    if (!c.waits) return false;
    await(c.call->meeting, c.block_parts, c.thread, c.arrivals);
    c.waits = false;
    return true;
}
INLINE void synchronise(const Context &c) {
    arrive(c);
    wait(c);
}

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
