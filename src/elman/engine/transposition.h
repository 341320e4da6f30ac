// Transposition, as many vectors as have lanes at a time in registers.

#pragma once
#include "pool.h"

#if defined(__clang__) || __GNUC__ >= 12  // which have __builtin_shufflevector
template <int S, int... J> INLINE V lower(V a, V b, Indices<J...>) {
    return __builtin_shufflevector(a, b, (J & S ? LANES + J - S : J)...);
}
template <int S, int... J> INLINE V upper(V a, V b, Indices<J...>) {
    return __builtin_shufflevector(a, b, (J & S ? LANES + J : J + S)...);
}
template <int S> INLINE void exchange(V (&v)[LANES]) {
    if constexpr (S < LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i)
            if (!(i & S)) {
                const V a = v[i], b = v[i + S];
                v[i] = lower<S>(a, b, AllLanes{});
                v[i + S] = upper<S>(a, b, AllLanes{});
            }
        exchange<2 * S>(v);
    }
}
#endif

// Rows of a matrix, `n` <= LANES of which exist, to `depth` vectors that are `step` elements apart, zero past the last row.
static void transpose(real *to, int64_t step, const real *from, int64_t stride, int64_t n, int64_t depth) {
    int64_t k = 0;
#if defined(__clang__) || __GNUC__ >= 12
    V v[LANES];
    for (; k + LANES <= depth; k += LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) v[i] = i < n ? load(from + i * stride + k) : V{};
        exchange<1>(v);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) store(to + (k + i) * step, v[i]);
    }
    if (depth - k > 1) {
        for (int i = 0; i < LANES; ++i) v[i] = i < n ? load_part(from + i * stride + k, depth - k) : V{};
        exchange<1>(v);
        for (int64_t i = 0; k + i < depth; ++i) store(to + (k + i) * step, v[i]);
        return;
    }
#endif
    for (; k < depth; ++k)
        for (int64_t i = 0; i < LANES; ++i) to[k * step + i] = i < n ? from[i * stride + k] : 0;
}

// To [columns, rows] from [rows, columns].
struct Transposition {
    int64_t rows, columns, threads;
    const real *from;
    int64_t from_row;  // strides in elements
    real *to;
    int64_t to_row;
    Pool pool;
};
static void transpose_share(const Transposition &j, int64_t thread, int64_t team) {
    const int64_t strips = (j.rows + LANES - 1) / LANES;
    for (int64_t row = strips * thread / team * LANES; row < strips * (thread + 1) / team * LANES; row += LANES) {
        const real *from = j.from + row * j.from_row;
        real *to = j.to + row;
        if (row + LANES <= j.rows) transpose(to, j.to_row, from, j.from_row, LANES, j.columns);
        else
            for (int64_t c = 0; c < j.columns; ++c)
                for (int64_t i = 0; row + i < j.rows; ++i) to[c * j.to_row + i] = from[i * j.from_row + c];
    }
}
EXPORT int elman_transpose(Transposition *job) {
    return shared_out<Transposition, transpose_share>(job);
}
