// What a large product is given, and its operands packed in the order in which tiles read them; see products.h.

#pragma once
#include "transposition.h"

enum { VECTORS = ABREAST, COLUMNS = VECTORS * LANES, ROWS = ACCUMULATORS / VECTORS,
       DEPTH = REGISTERS == 32 ? 3072 / sizeof(real) : 384, MOST_DEPTH = REGISTERS == 32 ? int(DEPTH) : DEPTH * 3 / 2,
       BLOCK_ROWS = 16 * ROWS, FEW_ROWS = (256 + ROWS - 1) / ROWS * ROWS, LINE = 64 / sizeof(real), AHEAD = 8, FETCHED_STEPS = 16 };

struct Product {
    int64_t rows, columns, depth, threads;
    const real *a;
    int64_t a_row, a_depth;  // strides in elements
    const real *b;
    int64_t b_depth, b_column;
    real *c;
    int64_t c_row;
    const real *bias;    // [columns] or null
    int64_t add;         // whether the product is added to what C holds
    int64_t add_sums;    // whether sums are added to what is there
    real *packed;        // null, or B as elman_pack_b leaves it: [block of depth][panel][step of depth][COLUMNS]
    real *sums;          // null, or [rows]: receives the sums of A's rows
    real *column_sums;   // null, or [columns]: receives the sums of B's columns
    const int64_t *chosen;  // null, or the steps of A's and B's depth that are taken, `depth` of them
    real *workspace;     // as many numbers as elman_workspace says
    Pool pool;
    Arrivals *meeting;
};

INLINE int64_t step_of(const Product &p, int64_t k) { return p.chosen ? p.chosen[k] : k; }
INLINE int64_t panels(int64_t columns) { return (columns + COLUMNS - 1) / COLUMNS; }

// Steps of the depth that are taken together: blocks of about equal size, about DEPTH and MOST_DEPTH at most.
INLINE int64_t block_depth(int64_t depth) {
    const int64_t blocks = (depth - MOST_DEPTH + 2 * DEPTH - 1) / DEPTH;
    return blocks < 2 ? MOST_DEPTH : (depth + blocks * LANES - 1) / (blocks * LANES) * LANES;
}

// Numbers from one of A's packed tiles to the next: a line more than they have, or where the depth is a power of two all would
// fall on the same sets of the cache.
INLINE int64_t tile_size(int64_t depth) { return depth * ROWS + LINE; }

// Whether the sums of B's columns come from the product itself: the last tile of packed rows has room for a row of ones.
INLINE bool sums_by_ones(const Product &p, bool packed_rows) { return p.column_sums && packed_rows && p.rows % ROWS; }

// Tiles of [depth][ROWS]. Past the last row is zero; where `ones`, and A's last row is among these, ones follow it.
static void pack_a(const Product &p, real *to, int64_t row, int64_t rows, int64_t from, int64_t depth, bool ones) {
    const int64_t whole = rows / ROWS, tile = tile_size(depth);
    // Eight numbers are copied sooner than ROWS, but need room: the next step's, which are written later, and A's next ones.
    const int64_t wide = row + whole * ROWS + 8 - ROWS <= p.rows ? whole : whole - 1;
    const real last = ones && row + rows == p.rows;
    for (int64_t k = 0; k < depth; ++k) {
        const real *a = p.a + row * p.a_row + step_of(p, from + k) * p.a_depth;
        real *t = to + k * ROWS;
        if (p.a_row == 1 && k + AHEAD < depth)
            for (int64_t i = 0; i < rows; i += LANES)
                __builtin_prefetch(p.a + row * p.a_row + step_of(p, from + k + AHEAD) * p.a_depth + i);
        if (p.a_row == 1) {
            int64_t i = 0;
            if (k + 1 < depth)
#pragma GCC unroll 8
                for (; i < wide; ++i) __builtin_memcpy(t + i * tile, a + i * ROWS, 8 * sizeof(real));
            for (; i < whole; ++i) __builtin_memcpy(t + i * tile, a + i * ROWS, ROWS * sizeof(real));
        } else
            for (int64_t i = 0; i < whole; ++i)
                for (int r = 0; r < ROWS; ++r) t[i * tile + r] = a[(i * ROWS + r) * p.a_row];
        if (whole * ROWS < rows)
#pragma GCC unroll 8
            for (int64_t r = 0; r < ROWS; ++r)
                t[whole * tile + r] = whole * ROWS + r < rows ? a[(whole * ROWS + r) * p.a_row] : whole * ROWS + r == rows ? last : 0;
    }
}

// The sums of A's rows over a block of the depth, to those of the blocks before unless `first`. `packed` are A's tiles, or
// null where A's rows are read as they are.
static void add_rows(const Product &p, const real *packed, int64_t row, int64_t rows, int64_t from, int64_t depth, bool first) {
    for (int64_t r0 = 0; r0 < rows; r0 += ROWS) {
        real found[ROWS] = {};
        int64_t k = 0;
        if (packed) {  // LANES steps of the depth fill ROWS vectors
            const real *a = packed + r0 / ROWS * tile_size(depth);
            V sum[ROWS] = {};
            for (; k + LANES <= depth; k += LANES)
                for (int i = 0; i < ROWS; ++i) sum[i] += load(a + k * ROWS + i * LANES);
            for (int i = 0; i < ROWS * LANES; ++i) found[i % ROWS] += sum[i / LANES][i % LANES];
            for (; k < depth; ++k)
                for (int r = 0; r < ROWS; ++r) found[r] += a[k * ROWS + r];
        } else
            for (int r = 0; r < ROWS && r0 + r < rows; ++r)
                for (k = 0; k < depth; ++k) found[r] += p.a[(row + r0 + r) * p.a_row + (from + k) * p.a_depth];
        for (int r = 0; r < ROWS && r0 + r < rows; ++r) {
            real &to = p.sums[row + r0 + r];
            to = first ? found[r] : to + found[r];
        }
    }
}

// Panels of [depth][COLUMNS], zero past the last column, that are `apart` elements apart.
static void pack_b(const Product &p, real *to, int64_t apart, int64_t first, int64_t last, int64_t from, int64_t depth) {
    for (int64_t c0 = first * COLUMNS; c0 < p.columns && c0 < last * COLUMNS; c0 += COLUMNS, to += apart) {
        const int64_t n = p.columns - c0 < COLUMNS ? p.columns - c0 : COLUMNS;
        const real *b = p.b + c0 * p.b_column;
        auto at = [&](int64_t k) { return b + step_of(p, from + k) * p.b_depth; };
        if (p.b_column == 1 && n == COLUMNS)
            for (int64_t k = 0; k < depth; ++k) __builtin_memcpy(to + k * COLUMNS, at(k), sizeof(real) * COLUMNS);
        else if (p.b_column == 1)
            for (int64_t k = 0; k < depth; ++k) {
                __builtin_memcpy(to + k * COLUMNS, at(k), n * sizeof(real));
                __builtin_memset(to + k * COLUMNS + n, 0, (COLUMNS - n) * sizeof(real));
            }
        else if (p.b_depth == 1 && !p.chosen)
            for (int64_t c = 0; c < COLUMNS; c += LANES)
                transpose(to + c, COLUMNS, at(0) + c * p.b_column, p.b_column, n - c, depth);
        else
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t c = 0; c < COLUMNS; ++c) to[k * COLUMNS + c] = c < n ? at(k)[c * p.b_column] : 0;
    }
}

// The sums of B's columns over a block of the depth, from its panels, to those of the blocks before unless `first`.
static void add_columns(const Product &p, const real *from, int64_t apart, int64_t first_panel, int64_t last, int64_t depth,
                        bool first) {
    for (int64_t c0 = first_panel * COLUMNS; c0 < last * COLUMNS; c0 += COLUMNS, from += apart) {
        V sum[VECTORS] = {};
        for (int64_t k = 0; k < depth; ++k)
            for (int i = 0; i < VECTORS; ++i) sum[i] += load(from + k * COLUMNS + i * LANES);
        for (int i = 0; i < VECTORS; ++i) {
            real *to = p.column_sums + c0 + i * LANES;
            const int64_t left = p.columns - c0 - i * LANES;
            if (left >= LANES) store(to, first ? sum[i] : sum[i] + load(to));
            else if (left > 0) store_part(to, first ? sum[i] : sum[i] + load_part(to, left), left);
        }
    }
}
