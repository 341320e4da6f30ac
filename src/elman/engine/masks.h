// Masks and keys of random choices as arrays; `draws.py` describes them and calls these.

#include "vectors.h"
#include "draws.h"

// The table of some rows: [count, 3], each row's key and the step that step 0 counts as.
struct Keys {
    int64_t seed, stream, place, count, start;
    const int64_t *numbers;  // [count]: the caller's number of each row
    int64_t *table;
};

EXPORT void elman_keys(const Keys *k) {
    uint32_t a = (uint32_t)k->stream, b = (uint32_t)k->place;
    threefry((uint32_t)k->seed, (uint32_t)(k->seed >> 32), a, b);
    for (int64_t i = 0; i < k->count; ++i) {
        uint32_t c = (uint32_t)k->numbers[i], d = (uint32_t)(k->numbers[i] >> 32);
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
};

static void fill(void *argument) {
    const Mask &m = *(const Mask *)argument;
    const int64_t thread = m.threads > 1 ? m.thread_number() : 0, team = m.threads > 1 ? m.team_size() : 1;
    const V yes = splat(m.values[0]), no = splat(m.values[1]);
    const int64_t batch = m.batch_sizes[0], first = batch * thread / team, last = batch * (thread + 1) / team;
    for (int64_t t = 0; t < m.steps; ++t)
        for (int64_t row = first; row < last && row < m.batch_sizes[t]; ++row) {
            const int64_t start = (m.offsets[t] + row) * m.width;
            for (int64_t unit = 0; unit < m.width; unit += LANES) {
                const int64_t left = m.width - unit, at = start + unit;
                real *once = m.once ? m.once + row * m.width + unit : 0;
                V v;
                if (once && t) v = left < LANES ? load_part(once, left) : load(once);
                else v = __builtin_convertvector(chosen(m.draw, row, t, unit), Integers) ? yes : no;
                if (left < LANES) {
                    if (once) store_part(once, v, left);
                    store_part(m.y + at, m.x ? v * load_part(m.x + at, left) : v, left);
                } else {
                    if (once) store(once, v);
                    store(m.y + at, m.x ? v * load(m.x + at) : v);
                }
            }
        }
}

EXPORT void elman_mask(Mask *m) {
    if (m->threads > 1) m->parallel(fill, m, (unsigned)m->threads, 0);
    else fill(m);
}
