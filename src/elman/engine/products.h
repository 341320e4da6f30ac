// The large products around the recurrence: C = A B (+ bias), for any strides of A and B, C row-major.
//
// B is packed by panels, [step of depth][COLUMNS], by all threads together, and A, unless its rows can be read as they
// are, by [step of depth][ROWS] into each thread's workspace. A tile of ROWS x COLUMNS of C stays in registers over one block of the
// depth. Threads share out the rows of C, or its columns where there are more of those, so that little is packed twice; or where
// C is small the depth.

#include "product_packing.h"

// Bytes of a thread's panels from which on no near cache holds them.
enum { MANY_PANELS = 2 << 20 };

// A vector of results and what they are added to; `left` of its numbers are there.
INLINE void put(real *to, const real *from, V v, int64_t left) {
    if (left >= LANES) store(to, from ? load(from) + v : v);
    else if (left > 0) store_part(to, from ? load_part(from, left) + v : v, left);
}

// A panel of B that is wanted next, row by row. The processor does not see it coming, since its rows lie far apart, or since it
// is read again only when the caches have been filled with others.
struct Expected {
    const real *from;
    int64_t stride, depth;
    const int64_t *chosen;  // null, or which rows
};
INLINE void fetch(const Expected &panel, int64_t k) {
    const real *b = panel.from + (panel.chosen ? panel.chosen[k] : k) * panel.stride;
    for (int i = 0; i < COLUMNS; i += LINE) __builtin_prefetch(b + i, 0, 2);
}

// The rows of a panel that a tile has come nearer, some with every FETCHED_STEPS of its depth: loads wait for many at once.
struct Share {
    const Expected *panel;
    int64_t first, last;
};

// What a tile does beside its rows of C.
struct Extra {
    bool ones, first_sums;  // whether the row behind the last one has B's column sums, and whether they start there
    const real *unpacked;   // null, or where B's panel lies, row by row: it is packed on the way
};

// One tile of C, NARROW vectors wide, over one block of the depth; `first` starts it from the bias, else it is added to.
// A's rows are `a_row` apart and their numbers `a_depth`.
template <int NARROW, bool PACKED, bool PACKING>
INLINE void tile_of_c(const Product &p, const real *a, int64_t a_row, real *b, int64_t depth, int64_t row,
                      int64_t rows, int64_t column, bool first, const Extra &extra, const Share &share) {
    real *const c = p.c + row * p.c_row + column;
    const real *rest[ROWS];
    V acc[ROWS][NARROW];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        rest[r] = PACKED ? a + r : a + (r < rows ? r : rows - 1) * a_row;
        if (r < rows)
            for (int i = 0; i < NARROW; ++i) __builtin_prefetch(c + r * p.c_row + i * LANES, 1);
#pragma GCC unroll 8
        for (int i = 0; i < NARROW; ++i) acc[r][i] = V{};
    }
    const real *unpacked = extra.unpacked;
    const int64_t stretch = share.first < share.last ? FETCHED_STEPS : depth;
    int64_t fetched = share.first, credit = 0;
    for (int64_t begun = 0; begun < depth; begun += stretch) {
        const int64_t until = depth - begun < stretch ? depth : begun + stretch;
        for (credit += (share.last - share.first) * (until - begun); credit >= depth; credit -= depth) fetch(*share.panel, fetched++);
        for (int64_t k = begun; k < until; ++k, b += COLUMNS) {
            V v[NARROW];
#pragma GCC unroll 8
            for (int i = 0; i < NARROW; ++i) v[i] = load((PACKING ? unpacked : b) + i * LANES);
            if (PACKING) {
                unpacked += p.b_depth;
#pragma GCC unroll 8
                for (int i = 0; i < NARROW; ++i) store(b + i * LANES, v[i]);
            }
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const V x = splat(PACKED ? a[k * ROWS + r] : rest[r][k]);
#pragma GCC unroll 8
                for (int i = 0; i < NARROW; ++i) acc[r][i] += x * v[i];
            }
        }
    }
    const int64_t columns = p.columns - column;
    const real *start = p.bias ? p.bias + column : 0;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        if (PACKED && r == rows && extra.ones) {
            real *to = p.column_sums + column;
#pragma GCC unroll 8
            for (int i = 0; i < NARROW; ++i)
                put(to + i * LANES, extra.first_sums ? 0 : to + i * LANES, acc[r][i], columns - i * LANES);
        }
        if (r >= rows) continue;
        real *to = c + r * p.c_row;
        const real *from = first ? start : to;
#pragma GCC unroll 8
        for (int i = 0; i < NARROW; ++i) put(to + i * LANES, from ? from + i * LANES : 0, acc[r][i], columns - i * LANES);
    }
}

// A tile as narrow as the columns that are left.
template <int NARROW, bool PACKED>
INLINE void narrowed(int64_t vectors, const Product &p, const real *a, real *b, int64_t depth, int64_t row, int64_t rows,
                     int64_t column, bool first, const Extra &extra, const Share &share) {
    if constexpr (NARROW > 1)
        if (vectors < NARROW)
            return narrowed<NARROW - 1, PACKED>(vectors, p, a, b, depth, row, rows, column, first, extra, share);
    tile_of_c<NARROW, PACKED, false>(p, a, p.a_row, b, depth, row, rows, column, first, extra, share);
}

// `b` is a panel as pack_b leaves it, or, where `extra.unpacked`, room for it.
template <bool PACKED>
static void panel_of_c(const Product &p, const real *a, real *b, int64_t depth, int64_t row, int64_t rows,
                       int64_t column, bool first, Extra extra, const Expected &next = {}) {
    const int64_t vectors = (p.columns - column + LANES - 1) / LANES;
    extra.ones &= row + rows == p.rows;
    for (int64_t r = 0; r < rows; r += ROWS) {
        const int64_t after = r + ROWS < rows ? r + ROWS : rows;
        const Share share = {&next, next.depth * r / rows, next.depth * after / rows};
        const real *from = PACKED ? a + r / ROWS * tile_size(depth) : a + r * p.a_row;
        const int64_t n = rows - r < ROWS ? rows - r : ROWS;
        if (r == 0 && extra.unpacked)
            tile_of_c<VECTORS, PACKED, true>(p, from, p.a_row, b, depth, row, n, column, first, extra, share);
        else narrowed<VECTORS, PACKED>(vectors, p, from, b, depth, row + r, n, column, first, extra, share);
    }
}

#include "term_products.h"

// Numbers of room: of a thread for A's rows, of a thread for a panel of B, and for B's panels over a block of the depth, at least one
// for each thread.
#ifdef BY_BFLOAT16
// The fewest rows, columns and steps of a product by matrix tiles. Where steps are chosen, there are many small products.
enum { FEWEST_LINES = 16, FEWEST_STEPS = 48 };
INLINE bool by_tiles(int64_t columns, int64_t depth) { return columns >= FEWEST_LINES && depth >= FEWEST_STEPS; }
INLINE bool by_tiles(const Product &p) {
    return by_tiles(p.columns, p.depth) && !p.chosen && (p.packed || p.rows >= FEWEST_LINES);
}
INLINE int64_t room_for_a() { return larger<int64_t>(FEW_ROWS / ROWS * tile_size(MOST_DEPTH), term_room_for_a()); }
INLINE int64_t room_for_panel() { return larger<int64_t>(MOST_DEPTH * COLUMNS, term_room_for_panel()); }
INLINE int64_t room_for_b(int64_t columns, int64_t threads) {
    return larger(larger(panels(columns), threads) * MOST_DEPTH * COLUMNS, larger(term_panels(columns), threads) * term_room_for_panel());
}
#else
INLINE bool by_tiles(const Product &) { return false; }
INLINE int64_t room_for_a() { return FEW_ROWS / ROWS * tile_size(MOST_DEPTH); }
INLINE int64_t room_for_panel() { return MOST_DEPTH * COLUMNS; }
INLINE int64_t room_for_b(int64_t columns, int64_t threads) { return larger(panels(columns), threads) * room_for_panel(); }
static void multiply_terms(const Product &, int64_t, int64_t, real *, real *, real *) {}
static void pack_terms_share(const Product &, int64_t, int64_t) {}
#endif

// C where it has few rows, the panels `first` to `last`: each is used while it is in the nearest cache, and the next one fetched
// meanwhile. `own` has room for one.
static void multiply_few(const Product &p, int64_t first, int64_t last, real *packed_a, real *own) {
    const bool as_it_is = p.a_depth == 1 && !p.chosen, by_ones = sums_by_ones(p, !as_it_is);
    const int64_t most = block_depth(p.depth);
    auto panel_at = [&](int64_t panel, int64_t k) {
        const int64_t left = p.depth - k;
        const real *from = p.b + panel * COLUMNS + (p.chosen ? 0 : k * p.b_depth);
        return Expected{from, p.b_depth, left < most ? left : most, p.chosen ? p.chosen + k : 0};
    };
    for (int64_t k = 0; k < p.depth || k == 0; k += most) {
        const int64_t depth = p.depth - k < most ? p.depth - k : most;
        const bool fresh = k == 0 && !p.add, summed = p.column_sums && !by_ones;
        Extra extra = {by_ones, k == 0 && !p.add_sums, 0};
        if (!as_it_is) pack_a(p, packed_a, 0, p.rows, k, depth, by_ones);
        for (int64_t panel = first; panel < last; ++panel) {
            const bool whole = p.b_column == 1 && !p.chosen && (panel + 1) * COLUMNS <= p.columns && !summed;
            extra.unpacked = whole ? p.b + k * p.b_depth + panel * COLUMNS : 0;
            if (!whole) pack_b(p, own, 0, panel, panel + 1, k, depth);
            if (summed) add_columns(p, own, 0, panel, panel + 1, depth, extra.first_sums);
            const Expected next = p.b_column != 1 ? Expected{} : panel + 1 < last ? panel_at(panel + 1, k) : panel_at(first, k + depth);
            if (as_it_is) panel_of_c<false>(p, p.a + k, own, depth, 0, p.rows, panel * COLUMNS, fresh, extra, next);
            else panel_of_c<true>(p, packed_a, own, depth, 0, p.rows, panel * COLUMNS, fresh, extra, next);
        }
        if (p.sums && first == 0) add_rows(p, as_it_is ? 0 : packed_a, 0, p.rows, k, depth, k == 0 && !p.add_sums);
    }
}

// C where it is small and the depth is large: each thread takes a part of the depth, and all but the first sum it up apart.
enum { SMALL = 1 << 18, DEEP = 256, SMALL_ROWS = 256 };  // numbers of all threads at most, steps of the depth for each of them at least
INLINE int64_t whole_row(int64_t columns) { return panels(columns) * COLUMNS; }
INLINE int64_t part_size(int64_t rows, int64_t columns) { return (rows + 1) * whole_row(columns) + FEW_ROWS; }
// Rows below zero are many, whose number is not known yet; A's rows are then read as they are, and C is not shared out so.
INLINE bool is_small(int64_t rows, int64_t columns, int64_t threads) {
    return 0 <= rows && rows <= SMALL_ROWS && rows * whole_row(columns) * threads <= SMALL;
}
static void multiply_deep(const Product &p, int64_t thread, int64_t team, real *packed_a, real *own, real *parts) {
    Product q = p;
    const int64_t all = panels(p.columns), begin = p.depth * thread / team, row_size = whole_row(p.columns);
    q.depth = p.depth * (thread + 1) / team - begin;
    if (p.chosen) q.chosen += begin;
    else q.a += begin * p.a_depth, q.b += begin * p.b_depth;
    auto part = [&](int64_t i) { return parts + (i - 1) * part_size(p.rows, p.columns); };
    auto row_sums = [&](int64_t i) { return part(i) + (p.rows + 1) * row_size; };
    if (thread) {
        q.c = part(thread), q.c_row = row_size, q.add = q.add_sums = 0, q.bias = 0;
        if (p.column_sums) q.column_sums = part(thread) + p.rows * row_size;
        if (p.sums) q.sums = row_sums(thread);
    }
    if (by_tiles(p)) multiply_terms(q, 0, 1, packed_a, own, own);
    else multiply_few(q, 0, all, packed_a, own);
    meet(p.meeting, thread, team);
    const int64_t rows = p.rows + (p.column_sums != 0);  // the last of which is the columns' sums
    for (int64_t row = rows * thread / team; row < rows * (thread + 1) / team; ++row) {
        real *to = row < p.rows ? p.c + row * p.c_row : p.column_sums;
        for (int64_t column = 0; column < p.columns; column += LANES) {
            V sum = load(part(1) + row * row_size + column);
            for (int64_t i = 2; i < team; ++i) sum += load(part(i) + row * row_size + column);
            put(to + column, to + column, sum, p.columns - column);
        }
    }
    if (p.sums && thread == 0)
        for (int64_t i = 1; i < team; ++i)
            for (int64_t row = 0; row < p.rows; ++row) p.sums[row] += row_sums(i)[row];
}

static void multiply_share(const Product &p, int64_t thread, int64_t team) {
    const int64_t tiles = (p.rows + ROWS - 1) / ROWS, all = panels(p.columns);
    const bool by_columns = p.columns >= p.rows && all >= 2 * team;
    const int64_t first = by_columns ? all * thread / team : 0, last = by_columns ? all * (thread + 1) / team : all;
    const int64_t begin = by_columns ? 0 : tiles * thread / team * ROWS;
    const int64_t limit = by_columns ? p.rows : tiles * (thread + 1) / team * ROWS;
    const int64_t end = limit < p.rows ? limit : p.rows;
    real *packed_a = p.workspace + thread * room_for_a();
    real *packed_b = p.workspace + p.threads * room_for_a(), *own = packed_b + thread * room_for_panel();
    const bool as_it_is = p.a_depth == 1 && !p.chosen;
    const bool by_ones = sums_by_ones(p, !as_it_is && !p.packed);
    const bool deep = team > 1 && p.depth >= DEEP * team && p.b_column == 1 && is_small(p.rows, p.columns, p.threads);
    if (deep && !as_it_is && !p.packed)
        return multiply_deep(p, thread, team, packed_a, own, packed_b + room_for_b(p.columns, p.threads));
    if (by_tiles(p)) return multiply_terms(p, thread, team, packed_a, packed_b, own);
    if (by_columns && !p.packed && (as_it_is || p.rows <= FEW_ROWS)) return multiply_few(p, first, last, packed_a, own);
    const int64_t most = block_depth(p.depth);
    for (int64_t k = 0; k < p.depth || k == 0; k += most) {
        const int64_t depth = p.depth - k < most ? p.depth - k : most;
        const bool fresh = k == 0 && !p.add;
        const Extra extra = {by_ones, k == 0 && !p.add_sums, 0};
        real *b = p.packed ? p.packed + k * all * COLUMNS : packed_b;
        // In the workspace a panel keeps its place from block to block: threads need not be at the same one.
        const int64_t apart = (p.packed ? depth : most) * COLUMNS;
        if (!p.packed) {
            const int64_t mine = by_columns ? first : all * thread / team, end = by_columns ? last : all * (thread + 1) / team;
            if (!by_columns && team > 1 && k) meet(p.meeting, thread, team);
            real *own = packed_b + mine * apart;
            pack_b(p, own, apart, mine, end, k, depth);
            if (p.column_sums && !by_ones) add_columns(p, own, apart, mine, end, depth, extra.first_sums);
            if (!by_columns && team > 1) meet(p.meeting, thread, team);
        }
        const bool far = (last - first) * apart * (int64_t)sizeof(real) > MANY_PANELS;
        for (int64_t block = begin; block < end; block += BLOCK_ROWS) {
            const int64_t rows = end - block < BLOCK_ROWS ? end - block : BLOCK_ROWS;
            if (!as_it_is && (last > first || p.sums)) pack_a(p, packed_a, block, rows, k, depth, by_ones);
            if (p.sums && first == 0)
                add_rows(p, as_it_is ? 0 : packed_a, block, rows, k, depth, k == 0 && !p.add_sums);
            for (int64_t panel = first; panel < last; ++panel) {
                real *from = b + panel * apart;
                const Expected next = far ? Expected{b + (panel + 1 < last ? panel + 1 : first) * apart, COLUMNS, depth, 0} : Expected{};
                if (as_it_is)
                    panel_of_c<false>(p, p.a + block * p.a_row + k, from, depth, block, rows, panel * COLUMNS, fresh, extra, next);
                else panel_of_c<true>(p, packed_a, from, depth, block, rows, panel * COLUMNS, fresh, extra, next);
            }
        }
    }
}

// B once for many products.
static void pack_b_share(const Product &p, int64_t thread, int64_t team) {
    if (by_tiles(p)) return pack_terms_share(p, thread, team);
    const int64_t all = panels(p.columns), first = all * thread / team, last = all * (thread + 1) / team;
    const int64_t most = block_depth(p.depth);
    for (int64_t k = 0; k < p.depth; k += most) {
        const int64_t depth = p.depth - k < most ? p.depth - k : most;
        pack_b(p, p.packed + (k * all + first * depth) * COLUMNS, depth * COLUMNS, first, last, k, depth);
    }
}

// Whether there are products by matrix tiles.
EXPORT int elman_tiles_matrices() {
#ifdef BY_BFLOAT16
    return 1;
#endif
    return 0;
}
EXPORT int elman_pack_b(Product *product) {
    return shared_out<Product, pack_b_share>(product);
}
EXPORT int64_t elman_packed_size(int64_t depth, int64_t columns) {
#ifdef BY_BFLOAT16
    if (by_tiles(columns, depth)) return blocks_of(depth) * term_panels(columns) * PANEL_BLOCK / sizeof(real);
#endif
    return depth * panels(columns) * COLUMNS;
}
EXPORT int elman_multiply(Product *product) {
    Arrivals arrivals[product->threads];
    product->meeting = nobody_yet(arrivals, product->threads);
    return shared_out<Product, multiply_share>(product);
}
EXPORT int64_t elman_workspace(int64_t rows, int64_t columns, int64_t threads) {
    const int64_t parts = is_small(rows, columns, threads) ? (threads - 1) * part_size(rows, columns) : 0;
    return threads * room_for_a() + room_for_b(columns, threads) + parts;
}
