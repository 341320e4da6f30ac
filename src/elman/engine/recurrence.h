// The time loop, the tiles and the threads of every compiled cell. A generated file defines `real`, VECTOR_BYTES, and
// the parts of a cell, and includes this header.
//
// A step is a list of parts. A part computes, for blocks of units and tiles of rows, the products that feed it (in
// registers) and then the pointwise expressions on top. Buffers are row-major, one row after the other; the last vector
// of a row whose width is not a multiple of LANES is read and written in part.

#include "functions.h"
#include "draws.h"

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
    Parallel parallel;
    int (*thread_number)();
    int (*team_size)();
    Meeting meeting;
};

// ---- one thread's view of a step --------------------------------------------------------------------------------

struct Context {
    Call *call;
    int64_t thread, rows, blocks_of, block_parts;  // rows of this thread; which share of the unit blocks it takes
    int64_t row_first;                             // batch row of local row 0
    real *p[BUFFERS];
    int64_t s[BUFFERS];
    int64_t time;                                  // the step, of all
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
    if (!WHOLE)
        for (int64_t i = left; i < LANES; ++i) v[i] = 0;
    real *p = sum_at(c, index, c.thread, row);
    store(p, load(p) + v);
}
INLINE V read_sum(const Context &c, int index, int64_t row) {
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

// acc[r][n * PASS + i] += sum over k of operand[r][k] * w[n][k][i], for TOGETHER passes whose weights are `apart` elements apart
template <int ROWS, int PASS, int TOGETHER>
INLINE void multiply(V (&acc)[ROWS][TOGETHER * PASS], const real *operand, int64_t stride, const real *w, int64_t apart,
                     int64_t k, int64_t end) {
    w += k * (PASS * LANES);
    for (; k < end; ++k, w += PASS * LANES) {
        V b[TOGETHER * PASS];
#pragma GCC unroll 32
        for (int i = 0; i < TOGETHER * PASS; ++i) {
            V v = load(w + i / PASS * apart + i % PASS * LANES);
            if (ROWS > 1) KEEP(v);
            b[i] = v;
        }
#pragma GCC unroll 32
        for (int r = 0; r < ROWS; ++r) {
            V a = splat(operand[r * stride + k]);
#pragma GCC unroll 32
            for (int i = 0; i < TOGETHER * PASS; ++i) acc[r][i] += a * b[i];
        }
    }
}

// A group of products in passes over its operand, from one of their vectors on. A segment of the operand is `width`
// columns of a buffer; the weights' rows follow the segments. Vector v belongs to matrix v % COUNT and to unit block v / COUNT.
template <int FROM, int ROWS, int BLOCKS, int TRANSPOSED, int TOTAL, int FIRST, int COUNT, int GROUP, int... SEGMENTS>
INLINE void passes(const Context &c, V (&acc)[ROWS][BLOCKS * TOTAL], int64_t row, int64_t block, int64_t depth) {
    constexpr int all = BLOCKS * COUNT, pass = pass_of(all), left = all - FROM, wide = left < pass ? left : pass;
    // Rows are few: several passes at once, for the multiply-adds of one vector wait for each other.
    constexpr int fitting = (REGISTERS - 1) / (wide * (ROWS + 1)), most = left / wide;
    constexpr int together = fitting < 2 ? 1 : fitting < most ? fitting : most;
    const int segments[] = {SEGMENTS...};
    const int64_t apart = depth * wide * LANES;
    const real *w = c.call->weights[GROUP] + (block * all + FROM) * depth * LANES;
    const int64_t *range = c.call->ranges[GROUP];
    const int64_t begin = range ? range[2 * block] : 0, end = range ? range[2 * block + 1] : depth;
    int64_t start = 0;
    V sum[ROWS][together * wide];
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int i = 0; i < together * wide; ++i) sum[r][i] = V{};
    for (int s : segments) {
        int64_t width = c.call->buffers[s].width;
        int64_t from = begin > start ? begin - start : 0, to = end - start < width ? end - start : width;
        auto part = [&](int64_t k, int64_t end) {
            multiply<ROWS, wide, together>(sum, c.p[s] + row * c.s[s], c.s[s], w + start * (wide * LANES), apart, k, end);
        };
        if (CLOCK < 0 || !TRANSPOSED || c.call->runs == 0) {
            if (from < to) part(from, to);
        } else {  // the gradients of units that are not due are zero
            const int64_t *run = c.call->clock;
            for (int64_t r = 0; r < c.call->runs; ++r)
                if (c.due >> r & 1) {
                    int64_t k = run[3 * r];
                    while (r + 1 < c.call->runs && (c.due >> (r + 1) & 1)) ++r;
                    const int64_t end = run[3 * r + 1];
                    if (k < from) k = from;
                    if (k < end && k < to) part(k, end < to ? end : to);
                }
        }
        start += width;
    }
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int i = 0; i < together * wide; ++i) acc[r][(FROM + i) / COUNT * TOTAL + FIRST + (FROM + i) % COUNT] = sum[r][i];
    constexpr int next = FROM + together * wide;
    if constexpr (next < all)
        passes<next, ROWS, BLOCKS, TRANSPOSED, TOTAL, FIRST, COUNT, GROUP, SEGMENTS...>(c, acc, row, block, depth);
}

template <int ROWS, int BLOCKS, int TRANSPOSED, int TOTAL, int FIRST, int COUNT, int GROUP, int... SEGMENTS>
INLINE void products(const Context &c, V (&acc)[ROWS][BLOCKS * TOTAL], int64_t row, int64_t block) {
    const int segments[] = {SEGMENTS...};
    int64_t depth = 0;
    for (int s : segments) depth += c.call->buffers[s].width;
    passes<0, ROWS, BLOCKS, TRANSPOSED, TOTAL, FIRST, COUNT, GROUP, SEGMENTS...>(c, acc, row, block, depth);
}

// The products with the input: done here where there are matrices, or read from where they have been done before the loop.
// BUFFERS_OF are those and the biases, one after the other; the former have the biases added already.
template <int ROWS, int BLOCKS, int TOTAL, int FIRST, int COUNT, int GROUP, int RAW, int... BUFFERS_OF>
INLINE void inputs(const Context &c, V (&acc)[ROWS][BLOCKS * TOTAL], int64_t row, int64_t block, int64_t units) {
    const int buffers[] = {BUFFERS_OF...};
    const bool here = c.call->weights[GROUP] != 0;
    if (here) products<ROWS, BLOCKS, 0, TOTAL, FIRST, COUNT, GROUP, RAW>(c, acc, row, block);
    for (int b = 0; b < BLOCKS; ++b) {
        const int64_t unit = (block * BLOCKS + b) * LANES, left = units - unit;
        if (left <= 0) break;
        for (int i = 0; i < COUNT; ++i)
            for (int r = 0; r < ROWS; ++r) {
                V &to = acc[r][b * TOTAL + FIRST + i];
                const int from = buffers[2 * i + here];
                if (here) to += left < LANES ? read_if<false>(c, from, 0, unit, left) : read_if<true>(c, from, 0, unit, left);
                else to = left < LANES ? read<false>(c, from, row + r, unit, left) : read<true>(c, from, row + r, unit, left);
            }
    }
}

// Has the products with the input that were done before the loop come nearer, while other products are computed.
template <int ROWS, int BLOCKS, int GROUP, int... BUFFERS_OF> INLINE void expect(const Context &c, int64_t row, int64_t block) {
    if (c.call->weights[GROUP]) return;
    const int buffers[] = {BUFFERS_OF...};
    for (int from : buffers)
        for (int r = 0; r < ROWS; ++r)
            for (int b = 0; b < BLOCKS; b += 64 / VECTOR_BYTES)
                __builtin_prefetch(c.p[from] + (row + r) * c.s[from] + (block * BLOCKS + b) * LANES);
}

// The pointwise expressions of a part, `point`, are statements for N vectors side by side, of one row or (DOWN) of as many
// rows, so that the processor has several chains of operations to work on: it looks no further ahead than one or two long
// ones. More than two would not fit in the registers.
enum { TOGETHER = 2 };
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
    int64_t r = 0;
    if (WHOLE)
        for (; r + TOGETHER <= rows; r += TOGETHER)
            Part::template point<true, TOGETHER, 1>(c, row + r, unit, LANES, acc + r * stride, stride);
    for (; r < rows; ++r) Part::template point<WHOLE, 1, 0>(c, row + r, unit, left, acc + r * stride, stride);
}
template <class Part>
INLINE void points_of(const Context &c, int64_t row, int64_t rows, int64_t unit, int64_t units, const V *acc, int64_t stride) {
    if (unit + LANES <= units) points<Part, true>(c, row, rows, unit, LANES, acc, stride);
    else points<Part, false>(c, row, rows, unit, units - unit, acc, stride);
}

template <class Part, int ROWS> static void tile(const Context &c, int64_t row, int64_t block, int64_t units) {
    V acc[ROWS][Part::blocks * Part::count];
    const int64_t first = block * Part::blocks * LANES;
    if (Part::transposes || due(c, first, first + Part::blocks * LANES)) Part::template multiply_all<ROWS>(c, acc, row, block, units);
    else memset(acc, 0, sizeof(acc));
    for (int b = 0; b < Part::blocks; ++b) {
        const int64_t unit = (block * Part::blocks + b) * LANES;
        if (unit < units) points_of<Part>(c, row, ROWS, unit, units, &acc[0][b * Part::count], Part::blocks * Part::count);
    }
}

template <class Part, int ROWS> static void tile_of(const Context &c, int64_t rows, int64_t row, int64_t block, int64_t units) {
    if (rows == ROWS) return tile<Part, ROWS>(c, row, block, units);
    if constexpr (ROWS > 1) tile_of<Part, ROWS - 1>(c, rows, row, block, units);
}

// The same for a part without products, over all rows and a stretch of units.
template <class Part> static __attribute__((noinline)) void rows_of_points(const Context &given, int64_t first, int64_t last) {
    const Context c = given;  // a copy that no write can reach, so that addresses are computed once for a row
    for (int64_t row = 0; row < c.rows; ++row) {
        int64_t unit = first;
        for (; unit + TOGETHER * LANES <= last; unit += TOGETHER * LANES)
            Part::template point<true, TOGETHER, 0>(c, row, unit, LANES, 0, 0);
        for (; unit + LANES <= last; unit += LANES) Part::template point<true, 1, 0>(c, row, unit, LANES, 0, 0);
        if (unit < last) Part::template point<false, 1, 0>(c, row, unit, last - unit, 0, 0);
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
        constexpr int fitting = ACCUMULATORS / Part::widest;
        constexpr int most = fitting < 1 ? 1 : fitting > 8 ? 8 : fitting;
        const int64_t tiles = (c.rows + most - 1) / most;
        for (int64_t block = first; block < last; ++block)
            for (int64_t t = 0; t < tiles; ++t) {
                int64_t from = c.rows * t / tiles, to = c.rows * (t + 1) / tiles;
                tile_of<Part, most>(c, to - from, from, block, units);
            }
    }
}

// ---- the loop over time -----------------------------------------------------------------------------------------

INLINE void synchronise(const Context &c) {
    if (c.block_parts > 1) meet(c.call->meeting, c.block_parts);
}

// Rows of a state's sequence; see PREVIOUS.
INLINE int64_t initial_row(const Call &k) { return k.reverse ? k.offsets[k.steps - 1] + k.batch_sizes[k.steps - 1] : 0; }
INLINE int64_t row_after(const Call &k, int64_t t) { return k.offsets[t] + (k.reverse ? 0 : k.batch); }
INLINE int64_t row_before(const Call &k, int64_t t) {
    const bool begins = t == (k.reverse ? k.steps - 1 : 0);
    return begins ? initial_row(k) : row_after(k, k.reverse ? t + 1 : t - 1);
}
// Whether states pass through a scratch at some steps.
INLINE bool may_enter(const Call &k) { return k.reset || (k.reverse && k.batch_sizes[k.steps - 1] < k.batch); }

// Point the buffers at step t, for this thread's rows.
static void place(Context &c, int64_t t) {
    const Call &k = *c.call;
    const int64_t before = row_before(k, t), here = k.offsets[t];
    for (int i = 0; i < BUFFERS; ++i) {
        const Buffer &b = k.buffers[i];
        int64_t row = 0;
        switch (b.kind) {
            case STEP: row = here; break;
            case PREVIOUS: row = before; break;
            case ENTERED: row = may_enter(k) ? 0 : before; break;
            case NEXT: row = row_after(k, t); break;
            case CARRY: row = (t & 1) * k.batch; break;
            case HANDED: row = (~t & 1) * k.batch; break;
            case TOTALS: row = c.thread; break;
        }
        const bool rows = b.kind != UNITS && b.kind != TOTALS;
        c.p[i] = b.kind == ABSENT ? 0 : b.base + (row + (rows ? c.row_first : 0)) * b.stride;
        c.s[i] = rows ? b.stride : 0;
    }
}

// A share of [0, width) for threads that split units; all of it for those that split rows.
INLINE void copy_units(const Context &c, real *to, const real *from, int64_t width) {
    int64_t first = width * c.blocks_of / c.block_parts, last = width * (c.blocks_of + 1) / c.block_parts;
    memcpy(to + first, from + first, (last - first) * sizeof(real));
}

// Before a step: where a row starts afresh, from the default or, where time runs backwards, from its initial state,
// copy all states to where the step reads them.
static void enter(Context &c, int64_t t) {
    const Call &k = *c.call;
    if (!may_enter(k)) return;
    // Rows from this one on were not there at the step before.
    const int64_t old = k.reverse && t + 1 < k.steps ? k.batch_sizes[t + 1] : k.batch;
    const uint8_t *reset = k.reset ? k.reset + k.offsets[t] : 0;
    bool any = k.batch_sizes[t] > old;
    for (int64_t row = 0; reset && row < c.rows; ++row) any |= reset[c.row_first + row] != 0;
    for (int64_t i = 0; i < k.states; ++i) {
        const int64_t from = k.entering[3 * i], to = k.entering[3 * i + 1], otherwise = k.entering[3 * i + 2];
        if (!any) {
            c.p[to] = c.p[from];
            c.s[to] = c.s[from];
            continue;
        }
        const Buffer &b = k.buffers[from];
        for (int64_t row = 0; row < c.rows; ++row) {
            const int64_t number = c.row_first + row;
            const real *source = c.p[from] + row * c.s[from];
            if (number >= old) source = b.base + (initial_row(k) + number) * b.stride;
            if (reset && reset[number]) source = c.p[otherwise];
            copy_units(c, c.p[to] + row * c.s[to], source, b.width);
        }
    }
    if (any) synchronise(c);
}

// Before a backward step: rows whose last step in the order of time this is start from the gradient of their final state.
static void begin_rows(const Context &c, int64_t t) {
    const Call &k = *c.call;
    const int64_t ends = k.reverse ? 0 : k.steps - 1;
    const int64_t later = t == ends ? 0 : k.reverse ? k.batch : k.batch_sizes[t + 1];
    if (later >= k.batch_sizes[t]) return;
    for (int64_t i = 0; i < k.carries; ++i) {
        int64_t carry = k.finals[3 * i], final = k.finals[3 * i + 1];
        for (int64_t row = 0; row < c.rows; ++row)
            if (c.row_first + row >= later) {
                real *to = c.p[carry] + row * c.s[carry];
                const real *from = c.p[final] ? c.p[final] + row * c.s[final] : 0;
                int64_t width = k.buffers[carry].stride;
                if (from) copy_units(c, to, from, width);
                else {
                    int64_t first = width * c.blocks_of / c.block_parts, last = width * (c.blocks_of + 1) / c.block_parts;
                    memset(to + first, 0, (last - first) * sizeof(real));
                }
            }
    }
    synchronise(c);
}

// After a backward step: nothing flows back across a reset, but to a default that is learned.
static void cut(const Context &c, int64_t t) {
    const Call &k = *c.call;
    if (!k.reset) return;
    for (int64_t i = 0; i < k.carries; ++i) {
        int64_t handed = k.finals[3 * i] + 1;  // HANDED follows its CARRY
        real *total = c.p[k.finals[3 * i + 2]];
        int64_t width = k.buffers[handed].stride;
        int64_t first = width * c.blocks_of / c.block_parts, last = width * (c.blocks_of + 1) / c.block_parts;
        for (int64_t row = 0; row < c.rows; ++row)
            if (k.reset[k.offsets[t] + c.row_first + row]) {
                real *to = c.p[handed] + row * c.s[handed];
                for (int64_t i = first; total && i < last; ++i) total[i] += to[i];
                memset(to + first, 0, (last - first) * sizeof(real));
            }
    }
    synchronise(c);
}

// Before a step of a cell with a clock, once its states have entered.
static void tick(Context &c) {
    const int64_t clock = CLOCK < 0 ? 0 : CLOCK;
    int64_t last = -1;
    c.due = 0;
    for (int64_t row = 0; row < c.rows; ++row) {
        const int64_t now = (int64_t)c.p[clock][row * c.s[clock]];
        if (now == last) continue;
        last = now;
        for (int64_t r = 0; r < c.call->runs; ++r)
            if (now % c.call->clock[3 * r + 2] == 0) c.due |= (uint64_t)1 << r;
    }
}

// Per-unit values that are the same at all steps, which each thread computes for itself.
template <class Part> static __attribute__((noinline)) void over_units(const Context &given) {
    const Context c = given;
    const int64_t units = c.call->buffers[Part::domain_buffer].width;
    int64_t unit = 0;
    for (; unit + LANES <= units; unit += LANES) Part::template point<true, 1, 0>(c, 0, unit, LANES, 0, 0);
    if (unit < units) Part::template point<false, 1, 0>(c, 0, unit, units - unit, 0, 0);
}

static void once(const Context &c);
static void step(const Context &c);

static void work(void *argument) {
    Call &k = *(Call *)argument;
    Context c;
    c.call = &k;
    const int64_t team = k.threads > 1 ? k.team_size() : 1;
    // The runtime may give fewer threads than were asked for.
    c.thread = k.threads > 1 ? k.thread_number() : 0;
    int64_t before = 0;
    for (int64_t i = k.first; i < k.last; ++i) {
        const int64_t t = k.backward != k.reverse ? k.last - 1 - (i - k.first) : i, rows = k.batch_sizes[t];
        // Rows of one thread lie together, since writing lines beside another thread's is slow. So rows change hands
        // where their number does.
        if (i > k.first && rows != before && team > 1) meet(k.meeting, team);
        before = rows;
        const bool split = team > 1 && rows <= k.split_rows;
        c.blocks_of = split ? c.thread : 0;
        c.block_parts = split ? team : 1;
        c.row_first = split ? 0 : rows * c.thread / team;
        c.rows = split ? rows : rows * (c.thread + 1) / team - c.row_first;
        c.time = t;
        place(c, t);
        if (i == k.first) once(c);
        if (k.backward) begin_rows(c, t);
        enter(c, t);
        if (CLOCK >= 0) tick(c);
        step(c);
        if (k.backward) cut(c, t);
    }
}

EXPORT int elman_run(Call *call) {
    call->meeting.arrived = call->meeting.generation = 0;
    if (call->threads > 1) call->parallel(work, call, (unsigned)call->threads, 0);
    else work(call);
    return 0;
}
