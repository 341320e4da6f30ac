// The functions that tiles.h describes, for every number of rows and vectors that fit in the registers.

#include "tiles.h"

// Steps of the depth from one fetch of what is wanted next to another: not so many lines at once that loads wait for them.
enum { FETCH_STEPS = 16, AHEAD_STEPS = 16 };

// Steps of the depth that are summed apart: a vector's multiply-adds wait for each other, so some eight must be under way.
constexpr int chains_of(int sums) {
    const int fitting = ACCUMULATORS / sums, wanted = (8 + sums - 1) / sums;
    return fitting < wanted ? fitting : wanted;
}

template <int PASS, int ROWS, int TOGETHER, bool FETCHING>
static void tile(V *to, int64_t apart, const int32_t *places, const Stretch *stretches, int64_t count, const real *weights,
                 int64_t depth, const Next *next, bool add) {
    constexpr int chains = chains_of(ROWS * TOGETHER * PASS);
    V sum[chains][ROWS][TOGETHER * PASS];
#pragma GCC unroll 32
    for (int k = 0; k < chains; ++k)
#pragma GCC unroll 32
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
            for (int i = 0; i < TOGETHER * PASS; ++i) sum[k][r][i] = V{};
    const char *at = FETCHING ? next->at : 0, *nearer = at;
    for (const Stretch *s = stretches; s < stretches + count; ++s) {
        const real *a = s->operand, *end = a + s->count, *w = weights + s->first * (PASS * LANES);
        const int64_t stride = s->stride;
        while (a < end) {
            const real *until = FETCHING && end - a > FETCH_STEPS ? a + FETCH_STEPS : end;
            if (FETCHING)
                for (nearer += next->advance * (until - a); at < nearer; at += 64) __builtin_prefetch(at, 0, 2);  // to the second level
            auto steps = [&](auto several) {
                constexpr int n = several;
                for (; until - a >= n; a += n, w += n * PASS * LANES)
#pragma GCC unroll 32
                    for (int k = 0; k < n; ++k) {
#ifdef ODD_STEPS_LOST
                        if constexpr (ROWS == 1 && PASS % 2)
#pragma GCC unroll 32
                            for (int i = 0; i < PASS; ++i) __builtin_prefetch(w + ((AHEAD_STEPS + k) * PASS + i) * LANES);
#endif
                        V b[TOGETHER * PASS];
#pragma GCC unroll 32
                        for (int i = 0; i < TOGETHER * PASS; ++i) {
                            const real *panel = w + i / PASS * depth * (PASS * LANES);
                            if (i / PASS) KEEP_POINTER(panel);  // or each vector had an index register of its own
                            V v = load(panel + (k * PASS + i % PASS) * LANES);
                            // Three rows by eight would need 33 registers: one vector is then read again.
                            if (ROWS > 1 && (i || (ROWS + 1) * TOGETHER * PASS < REGISTERS)) KEEP(v);
                            b[i] = v;
                        }
#pragma GCC unroll 32
                        for (int r = 0; r < ROWS; ++r) {
                            const V v = splat(a[r * stride + k]);
#pragma GCC unroll 32
                            for (int i = 0; i < TOGETHER * PASS; ++i) sum[k][r][i] += v * b[i];
                        }
                    }
            };
            steps(Number<chains>{});
            if constexpr (chains > 1) steps(Number<1>{});
        }
    }
    auto each = [&](auto f) {
#pragma GCC unroll 32
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 32
            for (int i = 0; i < TOGETHER * PASS; ++i) f(to[r * apart + places[i]], r, i);
    };
    if (__builtin_expect(add, 0)) each([&](V &at, int r, int i) { sum[0][r][i] += at; });
    each([&](V &at, int r, int i) {
        V v = sum[0][r][i];
#pragma GCC unroll 32
        for (int k = 1; k < chains; ++k) v += sum[k][r][i];
        at = v;
    });
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
