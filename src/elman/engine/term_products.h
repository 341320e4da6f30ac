// The large products by matrix tiles: see terms.h, and products.h, which includes this, for what a product is.
//
// B is packed by panels of two vectors of columns, A by groups of 32 rows, a block of the depth at a time. Threads share out rows,
// and pack B together, or columns, and pack what they need.

#include "term_packing.h"

#ifdef BY_BFLOAT16
// A thread has so many rows' blocks of A at once, which its second level holds beside some panels of B. Few rows have a block of
// the depth less deep, so that one pass over B's panels serves all of them.
enum { PANEL = 2 * LANES, PANEL_BLOCK = 2 * VECTOR_BLOCK, GROUP_BLOCK = GROUP_ROWS * ROW_BLOCK, TERM_BLOCKS = 32, FEW_BLOCKS = 16,
       ROWS_AHEAD = 6, TERM_ROWS = 4 * GROUP_ROWS, FEW_TERM_ROWS = TERM_ROWS * TERM_BLOCKS / FEW_BLOCKS };

INLINE int64_t term_panels(int64_t columns) { return (columns + PANEL - 1) / PANEL; }
INLINE int64_t blocks_of(int64_t depth) { return blocks_of_halves(halves_of(depth)); }
// Steps of the depth that are taken together, so many blocks or fewer: about equally many each time.
INLINE int64_t term_depth(int64_t depth, int64_t most) {
    const int64_t times = larger<int64_t>((blocks_of(depth) + most - 1) / most, 1);
    return larger<int64_t>((blocks_of(depth) + times - 1) / times, 1) * BLOCK_STEPS;
}
// Numbers of room that a thread needs for A, and all of them for B.
INLINE int64_t term_room_for_a() { return TERM_ROWS / GROUP_ROWS * TERM_BLOCKS * GROUP_BLOCK / sizeof(real); }
INLINE int64_t term_room_for_panel() { return TERM_BLOCKS * PANEL_BLOCK / sizeof(real); }
INLINE int64_t term_room_for_b(int64_t columns, int64_t threads) {
    return larger(term_panels(columns), threads) * term_room_for_panel();
}

// Some rows of A over a block of the depth, and where `sums` these rows' sums.
static void pack_left(const Product &p, char *to, int64_t row, int64_t rows, int64_t from, int64_t depth, V *sums) {
    const Side a = {p.a, p.a_row, p.a_depth};
    const int64_t blocks = blocks_of(depth), tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    auto tile = [&](int64_t t, int64_t b) {
        const int64_t group = t / 2, of_group = tiles - 2 * group < 2 ? 1 : 2, term = of_group * TILE_BYTES;
        char *at = to + group * blocks * GROUP_BLOCK + b * TERMS * term + t % 2 * TILE_BYTES;
        pack_terms(at, term, a, row + t * TILE_ROWS, rows - t * TILE_ROWS, from + b * BLOCK_STEPS, depth - b * BLOCK_STEPS, true,
                   sums ? sums + t : 0);
    };
    if (p.a_row == 1)  // rows lie side by side: so they are read
        for (int64_t b = 0; b < blocks; ++b)
            for (int64_t t = 0; t < tiles; ++t) tile(t, b);
    else
        for (int64_t t = 0; t < tiles; ++t)
            for (int64_t b = 0; b < blocks; ++b) tile(t, b);
}

// A piece of a panel of B: a vector's block of the depth; where `sums`, the sums of its columns are added.
INLINE void pack_piece(const Product &p, char *panel, int64_t number, int64_t v, int64_t b, int64_t from, int64_t depth, V *sums) {
    const int64_t column = number * PANEL + v * LANES;
    char *to = panel + (v * blocks_of(depth) + b) * VECTOR_BLOCK;
    pack_terms(to, TILE_BYTES, {p.b, p.b_column, p.b_depth}, column, p.columns - column, from + b * BLOCK_STEPS,
               depth - b * BLOCK_STEPS, false, sums ? sums + v : 0);
}

// Panels of B over a block of the depth, `apart` bytes apart; where `sums`, the sums of their columns are added.
static void pack_right(const Product &p, char *to, int64_t apart, int64_t first, int64_t last, int64_t from, int64_t depth, V *sums) {
    const int64_t blocks = blocks_of(depth);
    auto panel = [&](int64_t i, int64_t b) {
        for (int64_t v = 0; v < 2; ++v)
            pack_piece(p, to + (i - first) * apart, i, v, b, from, depth, sums ? sums + 2 * (i - first) : 0);
    };
    if (p.b_column == 1)
        for (int64_t b = 0; b < blocks; ++b)
            for (int64_t i = first; i < last; ++i) panel(i, b);
    else
        for (int64_t i = first; i < last; ++i)
            for (int64_t b = 0; b < blocks; ++b) panel(i, b);
}

// Sums of lines, of which so many exist, to those that are there unless `first`.
static void put_sums(real *to, const V *sums, int64_t lines, bool first) {
    for (int64_t i = 0; i < lines; i += LANES) put(to + i, first ? 0 : to + i, sums[i / LANES], lines - i);
}

// The panel of B that is wanted next, over `depth` steps from `from` on: it is packed while tiles multiply, a step and a few
// instructions at a time, for a processor looks ahead over few products of tiles.
struct Coming {
    char *to;
    int64_t number, from, depth, pieces, done, step, credit;
    const real *x;
    char *at;
    V sums[2];
};
INLINE void find_piece(const Product &p, Coming &next) {
    const int64_t v = next.done % 2, b = next.done / 2;
    next.step = 0;
    next.x = p.b + (next.from + b * BLOCK_STEPS) * p.b_depth + next.number * PANEL + v * LANES;
    next.at = next.to + (v * blocks_of(next.depth) + b) * VECTOR_BLOCK;
}
// Whether its numbers may be taken as they lie.
INLINE bool in_steps(const Product &p, const Coming &next) {
    return next.pieces && p.b_column == 1 && next.depth % BLOCK_STEPS == 0 && (next.number + 1) * PANEL <= p.columns;
}
INLINE void pack_step(const Product &p, Coming &next) {
    const V x = load(next.x), y = load(next.x + HALF * p.b_depth);
    store_terms(next.at, TILE_BYTES, x, y);
    next.sums[next.done & 1] += x + y;
    next.x += p.b_depth, next.at += 64;
    if (++next.step == HALF) ++next.done, find_piece(p, next);
}
static void pack_rest(const Product &p, Coming &next) {
    while (next.step) pack_step(p, next);
    for (; next.done < next.pieces; ++next.done)
        pack_piece(p, next.to, next.number, next.done % 2, next.done / 2, next.from, next.depth, p.column_sums ? next.sums : 0);
}

// Some rows of C in one panel over a block of the depth; see `panel_of_c`. A group's sums go to C while the next group's are formed.
template <bool PACKING>
static void term_panel(const Product &p, const char *a, const char *b, int64_t blocks, int64_t row, int64_t rows, int64_t column,
                       bool first, int64_t &shape, Coming &next) {
    alignas(64) real found[2][GROUP_ROWS][PANEL];
    const int64_t vectors = p.columns - column > LANES ? 2 : 1, groups = (rows + GROUP_ROWS - 1) / GROUP_ROWS;
    const char *const right[] = {b, b + blocks * VECTOR_BLOCK};
    const real *bias = p.bias ? p.bias + column : 0;
    auto put_rows = [&](int64_t g, int64_t from, int64_t until) {
        real *c = p.c + (row + g * GROUP_ROWS + from) * p.c_row + column;
        for (int64_t r = from; r < until; ++r, c += p.c_row)
            for (int64_t i = 0; i < vectors; ++i) {
                const real *start = !first ? c + i * LANES : bias ? bias + i * LANES : 0;
                put(c + i * LANES, start, load(found[g % 2][r] + i * LANES), p.columns - column - i * LANES);
            }
    };
    const int64_t slots = 6 * blocks * groups, wanted_steps = PACKING && in_steps(p, next) ? next.pieces * HALF : 0;
    auto rows_of_group = [&](int64_t g) { return smaller<int64_t>(rows - g * GROUP_ROWS, GROUP_ROWS); };
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t n = rows_of_group(g), tiles = n > TILE_ROWS ? 2 : 1;
        char *const to[] = {(char *)found[g % 2][0], (char *)(found[g % 2][0] + LANES)};
        if (shape != tiles) shape_tiles(shape = tiles, TILE_ROWS);
        int64_t done = 0, wanted = 0;
        sum_tiles_of(tiles, vectors, to, sizeof found[0][0], a + g * blocks * GROUP_BLOCK, TILE_ROWS, right, blocks,
                     [&](int64_t block) {
                         if (g == 0) return;
                         const int64_t until = GROUP_ROWS * block / blocks;
                         const real *c = p.c + (row + (g - 1) * GROUP_ROWS) * p.c_row + column;
                         for (; wanted < GROUP_ROWS && wanted < until + ROWS_AHEAD; ++wanted)
                             for (int64_t i = 0; i < vectors; ++i) __builtin_prefetch(c + wanted * p.c_row + i * LANES, 1);
                         put_rows(g - 1, done, until);
                         done = until;
                     },
                     [&] {
                         if constexpr (PACKING)
                             for (next.credit += wanted_steps; next.credit >= slots && next.done < next.pieces; next.credit -= slots)
                                 pack_step(p, next);
                     });
        if (g && blocks == 0) put_rows(g - 1, 0, GROUP_ROWS);
    }
    put_rows(groups - 1, 0, rows_of_group(groups - 1));
}

// A thread's share. `packed_a` and `own` are its own room, the latter for one panel, `packed_b` is room for all panels.
static void multiply_terms(const Product &p, int64_t thread, int64_t team, real *packed_a, real *packed_b, real *own) {
    const int64_t groups = (p.rows + GROUP_ROWS - 1) / GROUP_ROWS, all = term_panels(p.columns);
    const bool few = !p.packed && p.rows <= FEW_TERM_ROWS;
    const int64_t most = term_depth(p.depth, few ? FEW_BLOCKS : TERM_BLOCKS), at_once = few ? FEW_TERM_ROWS : TERM_ROWS;
    const bool by_columns = team == 1 || (p.columns >= p.rows && all >= 2 * team);
    const int64_t first = by_columns ? all * thread / team : 0, last = by_columns ? all * (thread + 1) / team : all;
    const int64_t begin = by_columns ? 0 : groups * thread / team * GROUP_ROWS;
    const int64_t end = by_columns ? p.rows : smaller(groups * (thread + 1) / team * GROUP_ROWS, p.rows);
    // Where each thread packs panels of B itself it packs the next one while tiles multiply by this one. Where rows are few it
    // uses a panel once, and has room for two at a time.
    const bool packing = by_columns && !p.packed, once = packing && few;
    int64_t shape = 0;
    Coming next = {};
    auto put_column_sums = [&](int64_t panel, const V *sums, int64_t count, bool fresh) {
        if (p.column_sums) put_sums(p.column_sums + panel * PANEL, sums, smaller(count * PANEL, p.columns - panel * PANEL), fresh);
    };
    auto begin_panel = [&](int64_t panel, int64_t k) {
        const int64_t depth = smaller(p.depth - k, most), place = once ? next.to == (char *)own : panel;
        next = {(char *)(once ? own : packed_b) + place * blocks_of(most) * PANEL_BLOCK, panel, k, depth, 2 * blocks_of(depth)};
        find_piece(p, next);
    };
    for (int64_t k = 0; k < p.depth || k == 0; k += most) {
        const int64_t depth = smaller(p.depth - k, most), blocks = blocks_of(depth), apart = blocks * PANEL_BLOCK;
        const bool fresh = k == 0 && !p.add, fresh_sums = k == 0 && !p.add_sums;
        // In the workspace a panel keeps its place from block to block: threads need not be at the same one.
        char *b = p.packed ? (char *)p.packed + k / BLOCK_STEPS * all * PANEL_BLOCK : (char *)packed_b;
        const int64_t stride = p.packed ? apart : blocks_of(most) * PANEL_BLOCK;
        if (!by_columns && !p.packed) {
            if (k) meet(p.meeting, thread, team);
            for (int64_t i = all * thread / team, end = all * (thread + 1) / team; i < end; i += 8) {
                const int64_t until = smaller<int64_t>(i + 8, end);
                V sums[16] = {};
                pack_right(p, b + i * stride, stride, i, until, k, depth, p.column_sums ? sums : 0);
                put_column_sums(i, sums, until - i, fresh_sums);
            }
            meet(p.meeting, thread, team);
        }
        for (int64_t block = begin; block < end; block += at_once) {
            const int64_t rows = smaller(end - block, at_once);
            V sums[FEW_TERM_ROWS / LANES] = {};
            if (last > first || p.sums) pack_left(p, (char *)packed_a, block, rows, k, depth, p.sums ? sums : 0);
            if (p.sums && first == 0) put_sums(p.sums + block, sums, rows, fresh_sums);
            for (int64_t i = first; i < last; ++i) {
                const char *panel = b + i * stride;
                if (packing && block == begin) {
                    if (!next.pieces) begin_panel(i, k);
                    pack_rest(p, next);
                    put_column_sums(i, next.sums, 1, fresh_sums);
                    panel = next.to;
                    if (i + 1 < last) begin_panel(i + 1, k);
                    else if (once && k + most < p.depth) begin_panel(first, k + most);
                    else next.pieces = next.done = 0;
                }
                if (next.pieces) term_panel<true>(p, (char *)packed_a, panel, blocks, block, rows, i * PANEL, fresh, shape, next);
                else term_panel<false>(p, (char *)packed_a, panel, blocks, block, rows, i * PANEL, fresh, shape, next);
            }
        }
    }
    if (shape) release_tiles();
}

// B once for many products; see `pack_b_share`.
static void pack_terms_share(const Product &p, int64_t thread, int64_t team) {
    const int64_t all = term_panels(p.columns), first = all * thread / team, last = all * (thread + 1) / team;
    for (int64_t k = 0, most = term_depth(p.depth, TERM_BLOCKS); k < p.depth; k += most) {
        const int64_t depth = smaller(p.depth - k, most), apart = blocks_of(depth) * PANEL_BLOCK;
        pack_right(p, (char *)p.packed + k / BLOCK_STEPS * all * PANEL_BLOCK + first * apart, apart, first, last, k, depth, 0);
    }
}
#endif
