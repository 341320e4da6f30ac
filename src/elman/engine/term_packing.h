// Matrices as terms, packed as matrix tiles read them; see terms.h.

#pragma once
#include "terms.h"
#include "transposition.h"

#ifdef BY_BFLOAT16
// One side of a product: lines are rows of the left matrix or columns of the right one.
struct Side {
    const real *p;
    int64_t line, depth;  // elements from one line to the next, and from one step of the depth to the next
    const real *at(int64_t l, int64_t k) const { return p + l * line + k * depth; }
};

INLINE void turn(V (&v)[LANES]) {
#if defined(__clang__) || __GNUC__ >= 12
    exchange<1>(v);
#else
    real from[LANES][LANES], to[LANES][LANES];
    __builtin_memcpy(from, v, sizeof from);
    transpose(to[0], LANES, from[0], LANES, LANES, LANES);
    __builtin_memcpy(v, to, sizeof to);
#endif
}

// Some lines and steps, zero behind them: v[step][line], or where `by_line` v[line][step]. Where `sums`, each line's sum is added.
static __attribute__((noinline)) void read_half(V (&v)[LANES], const Side &s, int64_t line, int64_t lines, int64_t k, int64_t steps,
                                                bool by_line, V *sums) {
    bool is_by_line = s.depth == 1 && s.line != 1;
    const int64_t rows = is_by_line ? lines : steps, lanes = is_by_line ? steps : lines;
    const bool side_by_side = is_by_line || s.line == 1;
    if (side_by_side && rows >= LANES && lanes >= LANES) {
        const real *p = s.at(line, k);
        const int64_t stride = is_by_line ? s.line : s.depth;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) v[i] = load(p + i * stride);
    } else
        for (int64_t i = 0; i < LANES; ++i) {
            v[i] = V{};
            if (i >= rows || lanes <= 0) continue;
            if (side_by_side) {
                const real *p = is_by_line ? s.at(line + i, k) : s.at(line, k + i);
                v[i] = lanes >= LANES ? load(p) : load_part(p, lanes);
            } else
                for (int64_t j = 0; j < lanes && j < LANES; ++j) v[i][j] = *s.at(line + j, k + i);
        }
    if (is_by_line && (sums || !by_line)) turn(v), is_by_line = false;
    if (sums) {
        V sum = v[0];
#pragma GCC unroll 16
        for (int i = 1; i < LANES; ++i) sum += v[i];
        *sums += sum;
    }
    if (by_line != is_by_line) turn(v);
}

// Sixteen lines over some steps of the depth as tiles of terms, where `by_line` of the left side, else of the right one.
INLINE void pack_terms(char *to, int64_t apart, const Side &s, int64_t line, int64_t lines, int64_t k, int64_t steps, bool by_line,
                       V *sums) {
    const bool as_it_lies = by_line ? s.depth == 1 : s.line == 1;
    if (as_it_lies && !sums && lines >= LANES && steps >= BLOCK_STEPS) {
        const real *p = s.at(line, k), *q = s.at(line, k + HALF);
        const int64_t stride = by_line ? s.line : s.depth;
        for (int i = 0; i < LANES; ++i, p += stride, q += stride) store_terms(to + i * 64, apart, load(p), load(q));
        return;
    }
    V x[LANES], y[LANES];
    read_half(x, s, line, lines, k, steps, by_line, sums);
    read_half(y, s, line, lines, k + HALF, steps - HALF, by_line, sums);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) store_terms(to + i * 64, apart, x[i], y[i]);
}
#endif
