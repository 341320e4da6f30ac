// The time loop and the threads of every compiled cell. A generated file defines `real`, VECTOR_BYTES, and the parts of a
// cell, and includes this header.
//
// A step is a list of parts. A part computes, for blocks of units and tiles of rows, the products that feed it (in
// registers) and then the pointwise expressions on top.

#if defined(POINTWISE) && defined(__GNUC__) && !defined(__clang__)
// A kernel without products. The compiler mixes the operations of vectors side by side before it hands out registers, for
// the processor's queues of waiting operations are short; as far as registers go. (Others gain nothing by it.)
#pragma GCC optimize("schedule-insns", "sched-pressure")
#endif

#include "parts.h"

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
    __builtin_memcpy(to + first, from + first, (last - first) * sizeof(real));
}

// Before a step: where a row starts afresh, from the default or, where time runs backwards, from its initial state,
// copy all states to where the step reads them.
static void enter(Context &c, int64_t t) {
    const Call &k = *c.call;
    if (!may_enter(k)) return;
    wait(c);
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
    wait(c);
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
                    __builtin_memset(to + first, 0, (last - first) * sizeof(real));
                }
            }
    }
    synchronise(c);
}

// After a backward step: nothing flows back across a reset, but to a default that is learned.
static void cut(const Context &c, int64_t t) {
    const Call &k = *c.call;
    for (int64_t i = 0; i < k.carries; ++i) {
        int64_t handed = k.finals[3 * i] + 1;  // HANDED follows its CARRY
        real *total = c.p[k.finals[3 * i + 2]];
        int64_t width = k.buffers[handed].stride;
        int64_t first = width * c.blocks_of / c.block_parts, last = width * (c.blocks_of + 1) / c.block_parts;
        for (int64_t row = 0; row < c.rows; ++row)
            if (k.reset[k.offsets[t] + c.row_first + row]) {
                real *to = c.p[handed] + row * c.s[handed];
                for (int64_t i = first; total && i < last; ++i) total[i] += to[i];
                __builtin_memset(to + first, 0, (last - first) * sizeof(real));
            }
    }
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
    for (; unit + LANES <= units; unit += LANES) Part::template point<true, 1, 0, 0>(c, 0, unit, LANES, 0, 0, 0);
    if (unit < units) Part::template point<false, 1, 0, 0>(c, 0, unit, units - unit, 0, 0, 0);
}

static void once(const Context &c);
static void step(const Context &c);

static void work(void *argument) {
    Call &k = *(Call *)argument;
    Context c;
    c.call = &k;
    c.waits = false;
    c.arrivals = c.shape = 0;
    const int64_t team = k.threads > 1 ? k.team_size() : 1;
    // The runtime may give fewer threads than were asked for.
    c.thread = k.threads > 1 ? k.thread_number() : 0;
    int64_t before = 0;
    for (int64_t i = k.first; i < k.last; ++i) {
        const int64_t t = k.backward != k.reverse ? k.last - 1 - (i - k.first) : i, rows = k.batch_sizes[t];
        // Rows of one thread lie together, since writing lines beside another thread's is slow. So rows change hands
        // where their number does.
        if (i > k.first && rows != before && team > 1) {
            announce(k.meeting, c.thread, ++c.arrivals);
            await(k.meeting, team, c.thread, c.arrivals);
            c.waits = false;
        }
        if (rows != before) c.own_of = -1;
        before = rows;
        const bool split = team > 1 && rows <= k.split_rows;
        c.blocks_of = split ? c.thread : 0;
        c.block_parts = split ? team : 1;
        c.row_first = split ? 0 : rows * c.thread / team;
        c.rows = split ? rows : rows * (c.thread + 1) / team - c.row_first;
        c.time = t;
        c.odd = (i - k.first) & 1;
        c.down = SUMS == 0 && ((i - k.first + k.turn) & 1);
        c.following = i + 1 < k.last ? k.offsets[k.backward != k.reverse ? t - 1 : t + 1] - k.offsets[t] : 0;
        place(c, t);
        if (i == k.first) once(c);
        if (k.backward) begin_rows(c, t);
        enter(c, t);
        if (CLOCK >= 0) {
            wait(c);
            tick(c);
        }
        step(c);
        if (k.backward && k.reset) {
            synchronise(c);
            cut(c, t);
        }
        if (i + 1 < k.last) arrive(c);
    }
#ifdef BY_BFLOAT16
    if (c.shape) release_tiles();
#endif
}

EXPORT int elman_run(Call *call) {
    Arrivals arrivals[call->threads];
    call->meeting = nobody_yet(arrivals, call->threads);
    if (call->threads > 1) call->parallel(work, call, (unsigned)call->threads, 0);
    else work(call);
    return 0;
}
