// The large products around the recurrence: C = A B (+ bias), for any strides of A and B, C row-major.
//
// Both operands are packed by panels into each thread's workspace: A in [step of depth][ROWS], B in
// [step of depth][COLUMNS]. A tile of ROWS x COLUMNS of C stays in registers over one block of the depth. Threads share
// out the rows of C, or its columns where there are more of those, so that little is packed twice.

#include "vectors.h"

enum { VECTORS = 4, COLUMNS = VECTORS * LANES, ROWS = ACCUMULATORS / VECTORS, DEPTH = 384, BLOCK_ROWS = 16 * ROWS };

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
    real *packed;        // null, or B as elman_pack_b leaves it: [block of depth][panel][DEPTH][COLUMNS]
    real *workspace;     // threads * (DEPTH * (BLOCK_ROWS + columns rounded up to COLUMNS))
    Parallel parallel;
    int (*thread_number)();
    int (*team_size)();
};

INLINE int64_t panels(int64_t columns) { return (columns + COLUMNS - 1) / COLUMNS; }

// [depth][ROWS], zero past the last row.
static void pack_a(const Product &p, real *to, int64_t row, int64_t rows, int64_t from, int64_t depth) {
    for (int64_t r0 = 0; r0 < rows; r0 += ROWS, to += DEPTH * ROWS) {
        const int64_t n = rows - r0 < ROWS ? rows - r0 : ROWS;
        const real *a = p.a + (row + r0) * p.a_row + from * p.a_depth;
        if (n < ROWS) memset(to, 0, sizeof(real) * depth * ROWS);
        if (p.a_row == 1)
            for (int64_t k = 0; k < depth; ++k) {
                if (n == ROWS) memcpy(to + k * ROWS, a + k * p.a_depth, ROWS * sizeof(real));
                else memcpy(to + k * ROWS, a + k * p.a_depth, n * sizeof(real));
            }
        else
            for (int64_t r = 0; r < n; ++r)
                for (int64_t k = 0; k < depth; ++k) to[k * ROWS + r] = a[r * p.a_row + k * p.a_depth];
    }
}

// Panels of [depth][COLUMNS], zero past the last column.
static void pack_b(const Product &p, real *to, int64_t first, int64_t last, int64_t from, int64_t depth) {
    for (int64_t c0 = first * COLUMNS; c0 < p.columns && c0 < last * COLUMNS; c0 += COLUMNS, to += DEPTH * COLUMNS) {
        const int64_t n = p.columns - c0 < COLUMNS ? p.columns - c0 : COLUMNS;
        const real *b = p.b + c0 * p.b_column + from * p.b_depth;
        if (n < COLUMNS) memset(to, 0, sizeof(real) * depth * COLUMNS);
        if (p.b_column == 1)
            for (int64_t k = 0; k < depth; ++k) memcpy(to + k * COLUMNS, b + k * p.b_depth, n * sizeof(real));
        else
            for (int64_t k0 = 0; k0 < depth; k0 += LANES) {  // a cache line of each column at a time
                const int64_t k1 = k0 + LANES < depth ? k0 + LANES : depth;
                for (int64_t c = 0; c < n; ++c)
                    for (int64_t k = k0; k < k1; ++k) to[k * COLUMNS + c] = b[c * p.b_column + k * p.b_depth];
            }
    }
}

INLINE void tile(const real *a, const real *b, int64_t depth, V (&acc)[ROWS][VECTORS]) {
    for (int64_t k = 0; k < depth; ++k, a += ROWS, b += COLUMNS) {
        V v[VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; ++i) v[i] = load(b + i * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const V x = splat(a[r]);
#pragma GCC unroll 8
            for (int i = 0; i < VECTORS; ++i) acc[r][i] += x * v[i];
        }
    }
}

// One tile of C over one block of the depth; `first` starts it from the bias, else it is added to.
static void tile_of_c(const Product &p, const real *a, const real *b, int64_t depth, int64_t row, int64_t rows,
                      int64_t column, bool first) {
    V acc[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < VECTORS; ++i) acc[r][i] = V{};
    tile(a, b, depth, acc);
    const int64_t columns = p.columns - column < COLUMNS ? p.columns - column : COLUMNS;
    if (columns == COLUMNS) {
        for (int64_t r = 0; r < rows; ++r) {
            real *c = p.c + (row + r) * p.c_row + column;
            const real *start = first ? (p.bias ? p.bias + column : 0) : c;
#pragma GCC unroll 8
            for (int i = 0; i < VECTORS; ++i) store(c + i * LANES, start ? load(start + i * LANES) + acc[r][i] : acc[r][i]);
        }
    } else {
        for (int64_t r = 0; r < rows; ++r) {
            real *c = p.c + (row + r) * p.c_row + column;
            const real *start = first ? (p.bias ? p.bias + column : 0) : c;
            for (int64_t j = 0; j < columns; ++j) c[j] = (start ? start[j] : 0) + acc[r][j / LANES][j % LANES];
        }
    }
}

static void multiply_share(void *argument) {
    const Product &p = *(const Product *)argument;
    const int64_t team = p.threads > 1 ? p.team_size() : 1, thread = p.threads > 1 ? p.thread_number() : 0;
    const int64_t tiles = (p.rows + ROWS - 1) / ROWS, all = panels(p.columns);
    const bool by_columns = p.columns >= p.rows && all >= 2 * team;
    const int64_t first = by_columns ? all * thread / team : 0, last = by_columns ? all * (thread + 1) / team : all;
    const int64_t begin = by_columns ? 0 : tiles * thread / team * ROWS;
    const int64_t limit = by_columns ? p.rows : tiles * (thread + 1) / team * ROWS;
    const int64_t end = limit < p.rows ? limit : p.rows;
    if (begin >= end || first >= last) return;
    real *packed_a = p.workspace + thread * DEPTH * (BLOCK_ROWS + (p.packed ? 0 : all) * COLUMNS);
    real *packed_b = packed_a + DEPTH * BLOCK_ROWS;
    for (int64_t k = 0; k < p.depth || k == 0; k += DEPTH) {
        const int64_t depth = p.depth - k < DEPTH ? p.depth - k : DEPTH;
        const real *b = packed_b - first * DEPTH * COLUMNS;
        if (p.packed) b = p.packed + k * all * COLUMNS;
        else pack_b(p, packed_b, first, last, k, depth);
        for (int64_t block = begin; block < end; block += BLOCK_ROWS) {
            const int64_t rows = end - block < BLOCK_ROWS ? end - block : BLOCK_ROWS;
            pack_a(p, packed_a, block, rows, k, depth);
            for (int64_t panel = first; panel < last; ++panel)
                for (int64_t r = 0; r < rows; r += ROWS)
                    tile_of_c(p, packed_a + r * DEPTH, b + panel * DEPTH * COLUMNS, depth, block + r,
                              rows - r < ROWS ? rows - r : ROWS, panel * COLUMNS, k == 0 && !p.add);
        }
    }
}

// B once for many products.
static void pack_b_share(void *argument) {
    const Product &p = *(const Product *)argument;
    const int64_t team = p.threads > 1 ? p.team_size() : 1, thread = p.threads > 1 ? p.thread_number() : 0;
    const int64_t all = panels(p.columns), first = all * thread / team, last = all * (thread + 1) / team;
    for (int64_t k = 0; k < p.depth; k += DEPTH)
        pack_b(p, p.packed + (k * all + first * DEPTH) * COLUMNS, first, last, k, p.depth - k < DEPTH ? p.depth - k : DEPTH);
}

EXPORT int elman_pack_b(Product *product) {
    if (product->threads > 1) product->parallel(pack_b_share, product, (unsigned)product->threads, 0);
    else pack_b_share(product);
    return 0;
}
EXPORT int64_t elman_packed_size(int64_t depth, int64_t columns) {
    return (depth + DEPTH - 1) / DEPTH * DEPTH * panels(columns) * COLUMNS;
}
EXPORT int elman_multiply(Product *product) {
    if (product->threads > 1) product->parallel(multiply_share, product, (unsigned)product->threads, 0);
    else multiply_share(product);
    return 0;
}
// The matrices of one group of a kernel's products, as `recurrence.h` reads them:
// [block][depth][unit block of it][matrix][LANES], zero past the last unit.
struct Packing {
    int64_t count, unit_blocks, width, depth, transposed, threads;
    const real *const *matrices;  // [width, depth] each; transposed: [rows, width] each, the depth being all rows
    const int64_t *strides, *rows;
    real *to;
    Parallel parallel;
    int (*thread_number)();
    int (*team_size)();
};

// LANES rows of a matrix, of which `n` exist, to [depth] vectors that are `step` elements apart.
static void transpose(real *to, int64_t step, const real *from, int64_t stride, int64_t n, int64_t depth) {
    for (int64_t k0 = 0; k0 < depth; k0 += LANES) {
        const int64_t k1 = k0 + LANES < depth ? k0 + LANES : depth;
        for (int64_t l = 0; l < LANES; ++l)
            for (int64_t k = k0; k < k1; ++k) to[k * step + l] = l < n ? from[l * stride + k] : 0;
    }
}

static void pack_share(void *argument) {
    const Packing &p = *(const Packing *)argument;
    const int64_t team = p.threads > 1 ? p.team_size() : 1, thread = p.threads > 1 ? p.thread_number() : 0;
    const int64_t units = p.unit_blocks * LANES, blocks = (p.width + units - 1) / units;
    const int64_t step = units * (p.transposed ? 1 : p.count);
    for (int64_t block = blocks * thread / team; block < blocks * (thread + 1) / team; ++block) {
        real *to = p.to + block * p.depth * step;
        const int64_t unit = block * units, present = p.width - unit < units ? p.width - unit : units;
        if (p.transposed) {
            for (int64_t m = 0; m < p.count; ++m)
                for (int64_t row = 0; row < p.rows[m]; ++row, to += step) {
                    memcpy(to, p.matrices[m] + row * p.strides[m] + unit, present * sizeof(real));
                    for (int64_t i = present; i < units; ++i) to[i] = 0;
                }
        } else
            for (int64_t b = 0; b < p.unit_blocks; ++b)
                for (int64_t m = 0; m < p.count; ++m) {
                    const int64_t left = present - b * LANES, n = left < 0 ? 0 : left < LANES ? left : LANES;
                    transpose(to + (b * p.count + m) * LANES, step, p.matrices[m] + (unit + b * LANES) * p.strides[m],
                              p.strides[m], n, p.depth);
                }
    }
}

EXPORT int elman_pack(Packing *packing) {
    if (packing->threads > 1) packing->parallel(pack_share, packing, (unsigned)packing->threads, 0);
    else pack_share(packing);
    return 0;
}
EXPORT int elman_lanes() { return LANES; }
EXPORT int64_t elman_workspace(int64_t columns) { return DEPTH * (BLOCK_ROWS + panels(columns) * COLUMNS); }
