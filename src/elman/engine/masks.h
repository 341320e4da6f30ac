// Masks and keys of random choices as arrays; `draws.py` describes them and calls these.

#include "vectors.h"
#include "draws.h"

// The table of some rows: [count, 3], each row's key and the step that step 0 counts as.
struct Keys {
    int64_t seed, stream, place, count, start, first;
    const int64_t *numbers;  // [count]: the caller's number of each row, or null where they count on from `first`
    int64_t *table;
};

EXPORT void elman_keys(const Keys *k) {
    uint32_t a = (uint32_t)k->stream, b = (uint32_t)k->place;
    threefry((uint32_t)k->seed, (uint32_t)(k->seed >> 32), a, b);
    for (int64_t i = 0; i < k->count; ++i) {
        const int64_t number = k->numbers ? k->numbers[i] : k->first + i;
        uint32_t c = (uint32_t)number, d = (uint32_t)(number >> 32);
        threefry(a, b, c, d);
        k->table[3 * i] = c;
        k->table[3 * i + 1] = d;
        k->table[3 * i + 2] = k->start;
    }
}

// [N, width] of a packed sequence: values[0] where a unit is chosen, else values[1]; times `x` where there is one.
struct Mask {
    Draw draw;
    int64_t steps, width, threads;
    const int64_t *batch_sizes, *offsets;  // [steps]
    const real *values;
    const real *x;  // [N, width] or null
    real *y;        // [N, width]
    real *once;     // [batch, width]: where choices are the same at all steps, what row's are, computed at its first
    Parallel parallel;
    int (*thread_number)();
    int (*team_size)();
    Keys keys;  // of the rows, where their table is yet to be made; else its count is 0
};

// One row of it: what `values` gives for each vector of units, times x where there is one.
template <class Values> INLINE void fill_row(real *y, const real *x, int64_t width, Values values) {
    int64_t unit = 0;
    for (; unit + LANES <= width; unit += LANES) {
        const V v = values(unit, LANES);
        store(y + unit, x ? v * load(x + unit) : v);
    }
    if (const int64_t left = width - unit; left > 0) {
        const V v = values(unit, left);
        store_part(y + unit, x ? v * load_part(x + unit, left) : v, left);
    }
}

static void fill(void *argument) {
    const Mask &m = *(const Mask *)argument;
    const int64_t thread = m.threads > 1 ? m.thread_number() : 0, team = m.threads > 1 ? m.team_size() : 1;
    const V yes = splat(m.values[0]), no = splat(m.values[1]);
    const int64_t batch = m.batch_sizes[0], first = batch * thread / team, last = batch * (thread + 1) / team;
    const int64_t width = m.width;
    const Draw draw = m.draw;
    for (int64_t t = 0; t < m.steps; ++t)
        for (int64_t row = first; row < last && row < m.batch_sizes[t]; ++row) {
            const int64_t start = (m.offsets[t] + row) * width;
            const real *x = m.x ? m.x + start : 0;
            real *y = m.y + start, *once = m.once ? m.once + row * width : 0;
            if (once && t) {
                fill_row(y, x, width, [=](int64_t unit, int64_t left) {
                    return left < LANES ? load_part(once + unit, left) : load(once + unit);
                });
                continue;
            }
            fill_row(y, x, width, [=](int64_t unit, int64_t left) {
                const V v = __builtin_convertvector(chosen(draw, row, t, unit), Integers) ? yes : no;
                if (once) left < LANES ? store_part(once + unit, v, left) : store(once + unit, v);
                return v;
            });
        }
}

EXPORT void elman_mask(Mask *m) {
    if (m->keys.count) elman_keys(&m->keys);
    if (m->threads > 1) m->parallel(fill, m, (unsigned)m->threads, 0);
    else fill(m);
}
