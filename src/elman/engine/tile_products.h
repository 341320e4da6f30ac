// The functions that tiles.h describes, for every number of rows and vectors that fit in the registers.

#include "tiles.h"

// Steps of the depth from one fetch of what is wanted next to another: not so many lines at once that loads wait for them.
enum { FETCH_STEPS = 32 };

template <int PASS, int ROWS, int TOGETHER, bool FETCHING>
static void tile(V *to, int64_t apart, const int32_t *places, const Stretch *stretches, int64_t count, const real *weights,
                 int64_t depth, const Next *next) {
    V sum[ROWS][TOGETHER * PASS];
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int i = 0; i < TOGETHER * PASS; ++i) sum[r][i] = V{};
    const char *at = FETCHING ? next->at : 0, *nearer = at;
    for (const Stretch *s = stretches; s < stretches + count; ++s) {
        const real *a = s->operand, *end = a + s->count, *w = weights + s->first * (PASS * LANES);
        const int64_t stride = s->stride;
        while (a < end) {
            const real *until = FETCHING && end - a > FETCH_STEPS ? a + FETCH_STEPS : end;
            if (FETCHING)
                for (nearer += next->advance * (until - a); at < nearer; at += 64) __builtin_prefetch(at, 0, 2);  // to the second level
            for (; a < until; ++a, w += PASS * LANES) {
                V b[TOGETHER * PASS];
#pragma GCC unroll 32
                for (int i = 0; i < TOGETHER * PASS; ++i) {
                    V v = load(w + i / PASS * depth * (PASS * LANES) + i % PASS * LANES);
                    if (ROWS > 1) KEEP(v);
                    b[i] = v;
                }
#pragma GCC unroll 32
                for (int r = 0; r < ROWS; ++r) {
                    const V v = splat(a[r * stride]);
#pragma GCC unroll 32
                    for (int i = 0; i < TOGETHER * PASS; ++i) sum[r][i] += v * b[i];
                }
            }
        }
    }
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int i = 0; i < TOGETHER * PASS; ++i) to[r * apart + places[i]] = sum[r][i];
}

template <int N> constexpr Tile tile_of() {
    constexpr int together = N % MOST_TOGETHER + 1, rows = N / MOST_TOGETHER % MOST_ROWS + 1;
    constexpr int pass = N / MOST_TOGETHER / MOST_ROWS % MOST_PASS + 1;
    constexpr bool fetching = N >= TILES / 2;
    constexpr bool there = rows <= rows_of(pass) && together <= together_of(pass, rows);
    if constexpr (there && (!fetching || rows >= FETCHING_ROWS)) return tile<pass, rows, together, fetching>;
    return nullptr;
}
template <int... N> static const Tile *tiles_of(Indices<N...>) {
    static const Tile found[] = {tile_of<N>()...};
    return found;
}
EXPORT const Tile *elman_tiles() { return tiles_of(Counted<TILES>::Type{}); }
