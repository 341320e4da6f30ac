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
INLINE int64_t groups_of(int64_t rows) { return (rows + GROUP_ROWS - 1) / GROUP_ROWS; }
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

// Where sixteen of some rows of A have their terms over a block of the depth, and the bytes from term to term.
struct Place { int64_t at, term; };
INLINE Place place_of(int64_t rows, int64_t blocks, int64_t tile, int64_t b) {
    const int64_t group = tile / 2, of_group = rows - group * GROUP_ROWS > TILE_ROWS ? 2 : 1, term = of_group * TILE_BYTES;
    return {group * blocks * GROUP_BLOCK + b * TERMS * term + tile % 2 * TILE_BYTES, term};
}

// From a block of the depth of some lines to what is packed behind it: the next block, or the first one of the lines that follow.
INLINE int64_t ahead_of(int64_t b, int64_t blocks, int64_t step, int64_t lines) {
    return b + 1 < blocks ? BLOCK_STEPS * step : lines - b * BLOCK_STEPS * step;
}

// Some rows of A over a block of the depth, and where `sums` these rows' sums.
INLINE void pack_tile(const Product &p, char *to, int64_t row, int64_t rows, int64_t tile, int64_t b, int64_t from, int64_t depth,
                      V *sums) {
    const Place place = place_of(rows, blocks_of(depth), tile, b);
    pack_terms(to + place.at, place.term, {p.a, p.a_row, p.a_depth}, row + tile * TILE_ROWS, rows - tile * TILE_ROWS,
               from + b * BLOCK_STEPS, depth - b * BLOCK_STEPS, true, sums ? sums + tile : 0);
}
static void pack_left(const Product &p, char *to, int64_t row, int64_t rows, int64_t from, int64_t depth, V *sums) {
    const int64_t blocks = blocks_of(depth), tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    if (p.a_row == 1)  // rows lie side by side: so they are read
        for (int64_t b = 0; b < blocks; ++b)
            for (int64_t t = 0; t < tiles; ++t) pack_tile(p, to, row, rows, t, b, from, depth, sums);
    else
        for (int64_t t = 0; t < tiles; ++t)
            for (int64_t b = 0; b < blocks; ++b) pack_tile(p, to, row, rows, t, b, from, depth, sums);
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

// What is wanted next, a panel of B or some rows of A, over `depth` steps from `from` on. What of it may be taken as it lies is packed
// while tiles multiply, two vectors and a few instructions at a time: a processor looks ahead over few products of tiles.
enum What { NOTHING, A_PANEL, SOME_ROWS };
struct Coming {
    char *to;
    int64_t first, rows, from, depth;  // the panel's number, or the first row and how many
    int64_t pieces, slots;             // 16 such steps each; how often there is time for some, 0: nothing is wanted
    int64_t done, step, credit;
    const real *x;                     // the next step's first vector, and where its terms go
    char *at;
    int64_t ahead;                     // from there to what will be wanted a block of the depth later
    V sums[2];
};
template <What WHAT> INLINE void find_piece(const Product &p, Coming &next) {
    const int64_t whole = next.depth / BLOCK_STEPS, blocks = blocks_of(next.depth);
    next.step = 0;
    if (WHAT == SOME_ROWS) {
        const int64_t tile = next.done / whole, b = next.done % whole;
        next.x = p.a + (next.first + tile * TILE_ROWS) * p.a_row + next.from + b * BLOCK_STEPS;
        next.at = next.to + place_of(next.rows, blocks, tile, b).at;
        next.ahead = ahead_of(b, whole, 1, TILE_ROWS * p.a_row);
    } else {
        const int64_t v = next.done % 2, b = next.done / 2;
        next.x = p.b + (next.from + b * BLOCK_STEPS) * p.b_depth + next.first * PANEL + v * LANES;
        next.at = next.to + (v * blocks + b) * VECTOR_BLOCK;
        next.ahead = ahead_of(b, whole, p.b_depth, PANEL);
    }
}
template <What WHAT> static void begin_coming(const Product &p, Coming &next) {
    const int64_t whole = next.depth / BLOCK_STEPS;
    if (WHAT == SOME_ROWS) next.pieces = whole * (next.rows / GROUP_ROWS * 2);
    else next.pieces = p.b_column == 1 && (next.first + 1) * PANEL <= p.columns ? 2 * whole : 0;
    if (next.pieces) find_piece<WHAT>(p, next);
}
template <What WHAT> INLINE void pack_step(const Product &p, Coming &next) {
    const real *const second = next.x + (WHAT == SOME_ROWS ? HALF : HALF * p.b_depth);
    const V x = load(next.x), y = load(second);
    __builtin_prefetch(next.x + next.ahead, 0, 2), __builtin_prefetch(second + next.ahead, 0, 2);
    store_terms(next.at, WHAT == SOME_ROWS ? 2 * TILE_BYTES : TILE_BYTES, x, y);
    if (WHAT == A_PANEL) next.sums[next.done & 1] += x + y;
    next.x += WHAT == SOME_ROWS ? p.a_row : p.b_depth, next.at += 64;
    if (++next.step == HALF && ++next.done < next.pieces) find_piece<WHAT>(p, next);
}
template <What WHAT> static void pack_rest(const Product &p, Coming &next) {
    while (next.done < next.pieces) pack_step<WHAT>(p, next);
    const int64_t blocks = blocks_of(next.depth);
    if (WHAT == SOME_ROWS) {
        const int64_t whole = next.depth / BLOCK_STEPS, tiles = next.rows / GROUP_ROWS * 2;
        for (int64_t tile = 0; tile * TILE_ROWS < next.rows; ++tile)
            for (int64_t b = tile < tiles ? whole : 0; b < blocks; ++b)
                pack_tile(p, next.to, next.first, next.rows, tile, b, next.from, next.depth, 0);
    } else
        for (int64_t i = next.pieces; i < 2 * blocks; ++i)
            pack_piece(p, next.to, next.first, i % 2, i / 2, next.from, next.depth, p.column_sums ? next.sums : 0);
}

// Sums of a group of rows in one panel that are yet to go to C: they do so while tiles form the next ones.
struct Going {
    alignas(64) real sums[2][GROUP_ROWS][PANEL];
    int64_t turn, rows, done, columns;
    real *c;
    const real *bias;
    bool first;
};
INLINE void put_row(const Product &p, Going &g) {
    const real *sums = g.sums[g.turn][g.done];
    V x = load(sums), y = load(sums + LANES);
    if (!g.first) x += load(g.c), y += load(g.c + LANES);
    else if (g.bias) x += load(g.bias), y += load(g.bias + LANES);
    store(g.c, x), store(g.c + LANES, y);
    const real *ahead = g.c + ROWS_AHEAD * p.c_row;
    __builtin_prefetch(ahead, 1), __builtin_prefetch(ahead + LANES, 1);
    ++g.done, g.c += p.c_row;
}
static void put_rest(const Product &p, Going &g) {
    for (; g.done < g.rows; ++g.done, g.c += p.c_row)
        for (int64_t i = 0; i < PANEL && i < g.columns; i += LANES) {
            const real *start = !g.first ? g.c + i : g.bias ? g.bias + i : 0;
            put(g.c + i, start, load(g.sums[g.turn][g.done] + i), g.columns - i);
        }
}

// Some rows of C in one panel over a block of the depth; see `panel_of_c`. While sums are formed those of the group before go to C, a
// row at a time, and what is coming is packed.
template <What WHAT>
static void term_panel(const Product &p, const char *a, const char *b, int64_t blocks, int64_t row, int64_t rows, int64_t column,
                       bool first, int64_t &shape, Coming &next, Going &going) {
    const int64_t vectors = p.columns - column > LANES ? 2 : 1, groups = groups_of(rows);
    const char *const right[] = {b, b + blocks * VECTOR_BLOCK};
    const int64_t steps = next.pieces * HALF, times = next.slots, every = larger<int64_t>(BETWEEN * blocks / GROUP_ROWS, 1);
    for (int64_t g = 0; g < groups; ++g, row += GROUP_ROWS, rows -= GROUP_ROWS) {
        const int64_t tiles = rows > TILE_ROWS ? 2 : 1, turn = !going.turn;
        char *const to[] = {(char *)going.sums[turn][0], (char *)(going.sums[turn][0] + LANES)};
        if (shape != tiles) shape_tiles(shape = tiles, TILE_ROWS);
        const int64_t waiting = going.columns >= PANEL ? going.rows : 0;
        int64_t left = every;
        sum_tiles_of(tiles, vectors, to, sizeof going.sums[0][0], a + g * blocks * GROUP_BLOCK, TILE_ROWS, right, blocks,
                     [](int64_t) {},
                     [&] {
                         if (going.done < waiting && --left == 0) put_row(p, going), left = every;
                         if constexpr (WHAT != NOTHING)
                             for (next.credit += steps; next.credit >= times && next.done < next.pieces; next.credit -= times)
                                 pack_step<WHAT>(p, next);
                     });
        put_rest(p, going);
        going.turn = turn, going.rows = smaller<int64_t>(rows, GROUP_ROWS), going.done = 0, going.columns = p.columns - column;
        going.c = p.c + row * p.c_row + column, going.bias = p.bias ? p.bias + column : 0, going.first = first;
    }
}

// A thread's share. `packed_a` and `own` are its own room, the latter for one panel, `packed_b` is room for all panels.
static void multiply_terms(const Product &p, int64_t thread, int64_t team, real *packed_a, real *packed_b, real *own) {
    const int64_t groups = groups_of(p.rows), all = term_panels(p.columns);
    const bool few = !p.packed && p.rows <= FEW_TERM_ROWS;
    const bool by_columns = team == 1 || (p.columns >= p.rows && all >= 2 * team);
    const int64_t first = by_columns ? all * thread / team : 0, last = by_columns ? all * (thread + 1) / team : all;
    const int64_t begin = by_columns ? 0 : groups * thread / team * GROUP_ROWS;
    const int64_t end = by_columns ? p.rows : smaller(groups * (thread + 1) / team * GROUP_ROWS, p.rows);
    // Where each thread packs panels of B itself it packs the next one while tiles multiply by this one. Where rows are few it
    // uses a panel once, and has room for two at a time. Else it packs the next rows of A if they may be taken as they lie: half as
    // much of the depth at once, so that there is room for twice as many rows.
    const bool packing = by_columns && !p.packed, once = packing && few, ahead = !packing && p.a_depth == 1 && !p.sums;
    const int64_t most = term_depth(p.depth, few || ahead || p.packed ? FEW_BLOCKS : TERM_BLOCKS);
    const int64_t at_once = few ? FEW_TERM_ROWS : TERM_ROWS;
    int64_t shape = 0;
    Coming next = {};
    Going going;
    going.turn = going.rows = going.done = going.columns = 0;
    auto put_column_sums = [&](int64_t panel, const V *sums, int64_t count, bool fresh) {
        if (p.column_sums) put_sums(p.column_sums + panel * PANEL, sums, smaller(count * PANEL, p.columns - panel * PANEL), fresh);
    };
    auto begin_panel = [&](int64_t panel, int64_t k) {
        const int64_t depth = smaller(p.depth - k, most), place = once ? next.to == (char *)own : panel;
        char *to = (char *)(once ? own : packed_b) + place * blocks_of(most) * PANEL_BLOCK;
        next = {to, panel, 0, k, depth, 0, BETWEEN * blocks_of(depth) * groups_of(smaller(end - begin, at_once))};
        begin_coming<A_PANEL>(p, next);
    };
    auto begin_rows = [&](char *to, int64_t row, int64_t k) {
        const int64_t depth = smaller(p.depth - k, most), slots = BETWEEN * blocks_of(depth) * groups_of(at_once) * (last - first);
        next = {to, row, smaller(end - row, at_once), k, depth, 0, slots};
        begin_coming<SOME_ROWS>(p, next);
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
            const char *a = (char *)packed_a;
            if (ahead && block > begin) pack_rest<SOME_ROWS>(p, next), a = next.to;
            else if (last > first || p.sums) pack_left(p, (char *)packed_a, block, rows, k, depth, p.sums ? sums : 0);
            if (p.sums && first == 0) put_sums(p.sums + block, sums, rows, fresh_sums);
            if (ahead) {
                next.pieces = next.done = 0;
                char *other = (char *)packed_a + (a == (char *)packed_a) * at_once / GROUP_ROWS * blocks_of(most) * GROUP_BLOCK;
                if (last > first && block + at_once < end) begin_rows(other, block + at_once, k);
            }
            for (int64_t i = first; i < last; ++i) {
                const char *panel = b + i * stride;
                if (packing && block == begin) {
                    if (!next.slots) begin_panel(i, k);
                    pack_rest<A_PANEL>(p, next);
                    put_column_sums(i, next.sums, 1, fresh_sums);
                    panel = next.to;
                    if (i + 1 < last) begin_panel(i + 1, k);
                    else if (once && k + most < p.depth) begin_panel(first, k + most);
                    else next.slots = next.pieces = next.done = 0;
                }
                auto panel_of_c = [&](auto what) {
                    term_panel<(What)(int)what>(p, a, panel, blocks, block, rows, i * PANEL, fresh, shape, next, going);
                };
                if (next.done == next.pieces) panel_of_c(Number<NOTHING>{});
                else if (packing) panel_of_c(Number<A_PANEL>{});
                else panel_of_c(Number<SOME_ROWS>{});
            }
        }
    }
    put_rest(p, going);
    if (shape) release_tiles();
}

// B once for many products; see `pack_b_share`.
static void pack_terms_share(const Product &p, int64_t thread, int64_t team) {
    const int64_t all = term_panels(p.columns), first = all * thread / team, last = all * (thread + 1) / team;
    for (int64_t k = 0, most = term_depth(p.depth, FEW_BLOCKS); k < p.depth; k += most) {
        const int64_t depth = smaller(p.depth - k, most), apart = blocks_of(depth) * PANEL_BLOCK;
        pack_right(p, (char *)p.packed + k / BLOCK_STEPS * all * PANEL_BLOCK + first * apart, apart, first, last, k, depth, 0);
    }
}
#endif
