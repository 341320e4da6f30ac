// The products of a step by matrix tiles: see terms.h. Before a part each thread makes terms of the rows of its operands for itself:
// where threads share out units, lines that go from one to another cost more than the arithmetic.

#ifdef BY_BFLOAT16
INLINE int64_t term_blocks(const Context &c, const Group &g) {
    int64_t halves = 0;
    for (int s = 0; s < g.segment_count; ++s) halves += c.p[g.segments[s]] ? halves_of(c.call->buffers[g.segments[s]].width) : 0;
    return blocks_of_halves(halves);
}

// Where this thread's rows are: it may fill up its groups' tiles.
INLINE char *operand_terms(const Context &c, const Group &g, int64_t blocks) {
    return c.call->terms[g.number] + c.thread * (c.call->batch + c.call->batch / 8 + GROUP_ROWS) * blocks * ROW_BLOCK;
}

static __attribute__((noinline)) void make_terms(const Context &c, const Group &g, const Height &height) {
    const int64_t blocks = term_blocks(c, g), of_group = height.of_group(), term = of_group * 64;
    char *const base = operand_terms(c, g, blocks);
    for (int64_t row = 0; row < c.rows; ++row) {
        char *to = base + row / of_group * blocks * TERMS * term + row % of_group * 64;
        int64_t segment = -1, at = 0, width = 0;
        const real *from = 0;
        auto half = [&] {
            while (at >= width && ++segment < g.segment_count) {
                const int buffer = g.segments[segment];
                at = 0, from = c.p[buffer] + row * c.s[buffer], width = c.p[buffer] ? c.call->buffers[buffer].width : 0;
            }
            const int64_t left = width - at;
            const V v = left >= LANES ? load(from + at) : left > 0 ? load_part(from + at, left) : V{};
            at += HALF;
            return v;
        };
        for (int64_t b = 0; b < blocks; ++b, to += TERMS * term) {
            const V x = half(), y = half();
            store_terms(to, term, x, y);
        }
    }
}

// Blocks of the depth outside of which all products with a block of units are zero, since its matrices have no weights there, or
// units are not due, whose gradients are zero.
struct Blocks { int64_t first, last; };
static Blocks blocks_in_use(const Context &c, const Group &g, int64_t block, int64_t blocks) {
    const int64_t *range = c.call->ranges[g.number];
    const bool by_clock = CLOCK >= 0 && g.transposed && c.call->runs;
    if (!range && !by_clock) return {0, blocks};
    int64_t first = blocks, last = 0, column = 0, half = 0;
    auto use = [&](int64_t begin, int64_t end) {  // columns of the present segment
        if (begin >= end) return;
        first = smaller(first, (half + begin / HALF) / 2);
        last = larger(last, blocks_of_halves(half + halves_of(end)));
    };
    for (int s = 0; s < g.segment_count; ++s) {
        const int64_t width = c.p[g.segments[s]] ? c.call->buffers[g.segments[s]].width : 0;
        const int64_t begin = range ? larger<int64_t>(range[2 * block] - column, 0) : 0;
        const int64_t end = range ? smaller(range[2 * block + 1] - column, width) : width;
        if (!by_clock) use(begin, end);
        for (int64_t r = 0; by_clock && r < c.call->runs; ++r)
            if (c.due >> r & 1) use(larger(begin, c.call->clock[3 * r]), smaller(end, c.call->clock[3 * r + 1]));
        column += width, half += halves_of(width);
    }
    return {first, larger(first, last)};
}

INLINE int64_t present_vectors(const Group &g, int64_t block, int64_t units) {
    return smaller<int64_t>(((units + LANES - 1) / LANES - block * g.blocks) * g.count, g.blocks * g.count);
}
// How many blocks of the depth `multiply_terms` goes through at most.
INLINE int64_t term_steps(const Context &c, const Group &g, const Height &height, int64_t block, int64_t units) {
    const int64_t most = wide_of(height.tiles);
    return (present_vectors(g, block, units) + most - 1) / most * term_blocks(c, g);
}

// The products of a group of rows and one block of units; see `multiply`.
static void multiply_terms(const Context &c, const Group &g, V *acc, int64_t row, int64_t block, int64_t units) {
    const Call &k = *c.call;
    const Height height = height_of(c.rows);
    const int64_t all = g.blocks * g.count, blocks = term_blocks(c, g), size = blocks * VECTOR_BLOCK;
    const int64_t present = present_vectors(g, block, units);
    const int64_t most = wide_of(height.tiles);
    const Blocks used = blocks_in_use(c, g, block, blocks);
    const char *const matrices = (const char *)k.weights[g.number] + block * all * size + used.first * VECTOR_BLOCK;
    const char *const left = operand_terms(c, g, blocks) + (row * blocks + used.first * height.of_group()) * ROW_BLOCK;
    Pieces &pieces = *c.meanwhile;
    for (int64_t v = 0; v < present; v += most) {
        const int64_t wide = smaller(present - v, most);
        char *to[4];
        const char *right[4];
        for (int64_t i = 0; i < wide; ++i) to[i] = (char *)(acc + g.places[v + i]), right[i] = matrices + (v + i) * size;
        sum_tiles_of(height.tiles, wide, to, g.blocks * g.total * sizeof(V), left, height.rows, right, used.last - used.first,
                     [&](int64_t) { run_pieces(pieces, pieces.pieces * ++pieces.block / pieces.blocks); });
    }
}
#endif
