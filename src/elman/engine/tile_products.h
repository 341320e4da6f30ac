// The functions that tiles.h describes, for every number of rows and vectors that fit in the registers.

#include "tiles.h"

template <int PASS, int ROWS, int TOGETHER>
static void tile(V *to, int64_t apart, const int32_t *places, const Stretch *stretches, int64_t count, const real *weights, int64_t depth) {
    V sum[ROWS][TOGETHER * PASS];
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int i = 0; i < TOGETHER * PASS; ++i) sum[r][i] = V{};
    for (const Stretch *s = stretches; s < stretches + count; ++s) {
        const real *a = s->operand, *end = a + s->count, *w = weights + s->first * (PASS * LANES);
        const int64_t stride = s->stride;
        for (; a < end; ++a, w += PASS * LANES) {
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
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
        for (int i = 0; i < TOGETHER * PASS; ++i) to[r * apart + places[i]] = sum[r][i];
}

template <int N> constexpr Tile tile_of() {
    constexpr int together = N % MOST_TOGETHER + 1, rows = N / MOST_TOGETHER % MOST_ROWS + 1, pass = N / MOST_TOGETHER / MOST_ROWS + 1;
    if constexpr (rows <= rows_of(pass) && together <= together_of(pass, rows)) return tile<pass, rows, together>;
    return nullptr;
}
template <int... N> static const Tile *tiles_of(Indices<N...>) {
    static const Tile found[] = {tile_of<N>()...};
    return found;
}
EXPORT const Tile *elman_tiles() { return tiles_of(Counted<TILES>::Type{}); }
