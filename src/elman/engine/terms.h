// Products of float32 numbers by the processor's matrix tiles (AMX), which multiply bfloat16 numbers and add up in float32.
//
// A float32 number is the sum of three bfloat16 terms, to its last bit: each has 8 bits of the 24. Of the nine products of two
// numbers' terms six are added up; the other three are below 2^-23 of the whole product together. Errors of sums come out at half
// of those of float32 multiply-adds (docs/engine.md). Two things differ: tiles take what is below 2^-126 for zero, so
// numbers below 2^-110 lose bits; and what is infinite, or rounds to it, gives NaN.
//
// Tiles have up to 16 rows of 64 bytes, 16 sums or 32 terms. A block of the depth is 32 steps: step k of its first half shares
// a word with step k + 16. The left operand is packed by groups of up to 32 rows, [block][term][tile][row of it][word]; the right
// one by vectors, [block][term][step k][unit].

#pragma once
#include "tiles.h"

#if defined(MATRIX_TILES) && (__GNUC__ >= 11 || defined(__clang__))
#define BY_BFLOAT16

enum { TERMS = 3, TILE_BYTES = 1024, TILE_ROWS = 16, GROUP_ROWS = 2 * TILE_ROWS, HALF = 16, BLOCK_STEPS = 2 * HALF,
       VECTOR_BLOCK = TERMS * TILE_BYTES, ROW_BLOCK = TERMS * 64 };  // bytes of a block of a vector, and of a row

INLINE int64_t blocks_of_halves(int64_t halves) { return (halves + 1) / 2; }
INLINE int64_t halves_of(int64_t depth) { return (depth + HALF - 1) / HALF; }

// Rows in groups of about equal size, and a group's in one tile or two.
struct Height {
    int64_t groups, tiles, rows;  // rows of each tile
    int64_t of_group() const { return tiles * rows; }
};
INLINE Height height_of(int64_t rows) {
    const int64_t groups = (rows + GROUP_ROWS - 1) / GROUP_ROWS, each = groups ? (rows + groups - 1) / groups : 0;
    const int64_t tiles = each > TILE_ROWS ? 2 : 1;
    return {groups, tiles, (each + tiles - 1) / tiles};
}

// The terms of some lanes at two steps that share words.
INLINE void store_terms(char *to, int64_t apart, V x, V y) {
    const natural upper = 0xffff0000u;
#pragma GCC unroll 2
    for (int i = 0; i < TERMS - 1; ++i, to += apart) {
        const Naturals a = ((Naturals)x + 0x8000u) & upper, b = ((Naturals)y + 0x8000u) & upper;
        *(Naturals *)to = a >> 16 | b;
        x -= (V)a;
        y -= (V)b;
    }
    *(Naturals *)to = (Naturals)x >> 16 | ((Naturals)y & upper);
}

// ---- the processor's tiles --------------------------------------------------------------------------------------
// 0 to 3 hold sums. With rows in two tiles 4 and 5 hold terms of the left operand, 6 and 7 of two vectors; with one 4 to 6 hold
// the rows' three terms and 7 those of a vector.

INLINE void shape_tiles(int64_t tiles, int64_t rows) {
    struct alignas(64) { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {1};
    for (int i = 0; i < 8; ++i) {
        shape.bytes[i] = 64;
        shape.rows[i] = i < (tiles == 2 ? 6 : 7) ? (uint8_t)rows : TILE_ROWS;
    }
    asm volatile("ldtilecfg %0" : : "m"(shape));
}
INLINE void release_tiles() { asm volatile("tilerelease"); }

template <int N> INLINE void clear_tile(Number<N>) { asm volatile("tilezero %%tmm%c0" : : "i"(N)); }
template <int N> INLINE void load_tile(Number<N>, const char *p, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(N), "r"(p), "r"(stride) : "memory");
}
template <int N> INLINE void store_tile(Number<N>, char *p, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(N), "r"(p), "r"(stride) : "memory");
}
template <int SUMS, int LEFT, int RIGHT> INLINE void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(LEFT), "i"(RIGHT));
}

struct Nothing { void operator()() const {} };

// Sums of HIGH x ACROSS tiles: to[v] is where the first row's sums of vector v go, `stride` bytes from row to row. Tiles leave most
// of a processor's other units idle: `meanwhile` is called behind each block of the depth with its number, from one on, and what it
// does costs little.
//
// Where rows are in two tiles, `between` is called behind each product of a vector's terms and the rows': BETWEEN times in a block.
//
// A tile's products wait for each other, so four sums must be under way: where there are two tiles or one, each is two sums.
enum { BETWEEN = 6 };
template <int HIGH, int ACROSS, class Meanwhile, class Between = Nothing>
static void sum_tiles(char *const *to, int64_t stride, const char *left, int64_t rows, const char *const *right, int64_t blocks,
                      const Meanwhile &meanwhile, const Between &between = {}) {
    static_assert(HIGH * ACROSS <= 4, "four tiles hold sums");
    enum { APART = HIGH * ACROSS <= 2 ? HIGH * ACROSS : 0 };  // from a tile to that of its second sum
    const int64_t tile = rows * 64, term = HIGH * tile;
    auto sums = [&](auto each) {
        each(Number<0>{}, to[0]);
        if constexpr (HIGH == 2 && ACROSS == 1) each(Number<1>{}, to[0] + rows * stride);
        if constexpr (ACROSS > 1) each(Number<1>{}, to[1]);
        if constexpr (ACROSS > 2) each(Number<2>{}, to[2]);
        if constexpr (ACROSS > 3) each(Number<3>{}, to[3]);
        if constexpr (HIGH == 2 && ACROSS == 2) {
            each(Number<2>{}, to[0] + rows * stride);
            each(Number<3>{}, to[1] + rows * stride);
        }
    };
    sums([&](auto n, char *) { clear_tile(n); });
    if (APART) sums([&](auto n, char *) { clear_tile(Number<n + APART>{}); });
    int64_t b = 0;
    for (int64_t block = 0; block < blocks; ++block, left += TERMS * term, b += VECTOR_BLOCK) {
        if constexpr (HIGH == 2) {
            auto rows_of = [&](int64_t i) {
                load_tile(Number<4>{}, left + i * term, 64);
                load_tile(Number<5>{}, left + i * term + tile, 64);
            };
            auto vectors_of = [&](int64_t i) {
                load_tile(Number<6>{}, right[0] + b + i * TILE_BYTES, 64);
                if constexpr (ACROSS > 1) load_tile(Number<7>{}, right[1] + b + i * TILE_BYTES, 64);
            };
            auto multiply_by = [&](auto second) {
                constexpr int n = second ? APART : 0;
                multiply_tiles<n, 4, 6>();
                if constexpr (ACROSS > 1) multiply_tiles<1, 4, 7>();
                multiply_tiles<n + ACROSS, 5, 6>();
                if constexpr (ACROSS > 1) multiply_tiles<3, 5, 7>();
                between();
            };
            rows_of(2), vectors_of(0), multiply_by(Number<0>{});
            rows_of(1), multiply_by(Number<1>{});
            vectors_of(1), multiply_by(Number<0>{});
            rows_of(0), multiply_by(Number<1>{});
            vectors_of(2), multiply_by(Number<0>{});
            vectors_of(0), multiply_by(Number<1>{});
        } else {
            load_tile(Number<4>{}, left, 64);
            load_tile(Number<5>{}, left + term, 64);
            load_tile(Number<6>{}, left + 2 * term, 64);
            auto each = [&](auto i) {  // a term of each vector, times the terms of rows that count with it
                auto vector = [&](auto v) {
                    if constexpr (v < ACROSS) {
                        load_tile(Number<7>{}, right[v] + b + i * TILE_BYTES, 64);
                        if constexpr (i == 0) multiply_tiles<v, 6, 7>();
                        if constexpr (i < 2) multiply_tiles<v + APART, 5, 7>();
                        multiply_tiles<v + (i == 2 ? APART : 0), 4, 7>();
                    }
                };
                vector(Number<0>{}), vector(Number<1>{}), vector(Number<2>{}), vector(Number<3>{});
            };
            each(Number<0>{}), each(Number<1>{}), each(Number<2>{});
        }
        meanwhile(block + 1);
    }
    sums([&](auto n, char *p) { store_tile(n, p, stride); });
    if constexpr (APART) {
        alignas(64) real second[TILE_ROWS][LANES];
        sums([&](auto n, char *p) {
            store_tile(Number<n + APART>{}, (char *)second, 64);
            for (int64_t r = 0; r < rows; ++r, p += stride) store((real *)p, load((real *)p) + load(second[r]));
        });
    }
}

// How many vectors are done at once.
INLINE int64_t wide_of(int64_t tiles) { return 4 / tiles; }
template <class Meanwhile, class Between = Nothing>
INLINE void sum_tiles_of(int64_t tiles, int64_t across, char *const *to, int64_t stride, const char *left, int64_t rows,
                         const char *const *right, int64_t blocks, const Meanwhile &meanwhile, const Between &between = {}) {
    switch (4 * (tiles - 1) + across) {
        case 1: return sum_tiles<1, 1>(to, stride, left, rows, right, blocks, meanwhile, between);
        case 2: return sum_tiles<1, 2>(to, stride, left, rows, right, blocks, meanwhile, between);
        case 3: return sum_tiles<1, 3>(to, stride, left, rows, right, blocks, meanwhile, between);
        case 4: return sum_tiles<1, 4>(to, stride, left, rows, right, blocks, meanwhile, between);
        case 5: return sum_tiles<2, 1>(to, stride, left, rows, right, blocks, meanwhile, between);
        case 6: return sum_tiles<2, 2>(to, stride, left, rows, right, blocks, meanwhile, between);
    }
}
#endif
