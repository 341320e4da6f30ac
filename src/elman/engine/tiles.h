// Products of a tile: some rows of an operand times the packed weights of some vectors of units, summed in registers. The
// same for all cells: they are compiled once (tile_products.h), and a cell's kernel calls them by the table `Call.tiles`.

#pragma once
#include "vectors.h"

// Columns of an operand, `first` to `first + count` of the depth, and the elements from one of its rows to the next.
struct Stretch {
    const real *operand;
    int64_t stride, first, count;
};

// What is wanted next and lies far away: `advance` bytes more of it come nearer with each step of the depth.
struct Next {
    const char *at;
    int64_t advance;
};

// to[row * apart + places[i]] = the sum over stretches of operand[row][k] * weights[i / pass][k][i % pass], for so many passes
// whose weights are `depth` steps long; where `add`, it is added to what is there. `next` is read by those alone that fetch, of
// FETCHING_ROWS rows or more.
typedef void (*Tile)(V *to, int64_t apart, const int32_t *places, const Stretch *stretches, int64_t count, const real *weights,
                     int64_t depth, const Next *next, bool add);

enum { MOST_ROWS = 8, FETCHING_ROWS = 3, MOST_TOGETHER = 4, TILES = 2 * MOST_PASS * MOST_ROWS * MOST_TOGETHER };

constexpr int rows_of(int pass) { return ACCUMULATORS / pass > MOST_ROWS ? MOST_ROWS : ACCUMULATORS / pass; }

// How many passes are done at once where rows are few, for the multiply-adds of one vector wait for each other. For one row
// weights need no registers; passes may be those of several blocks. Else a pass of half of MOST_PASS vectors or fewer is the
// only one of its group, or the last.
constexpr int together_of(int pass, int rows) {
    const bool alone = pass == 1 || 2 * pass <= MOST_PASS || rows > 2;
    const int fitting = rows == 1 ? REGISTERS / 2 / pass : alone ? 1 : (REGISTERS - 1) / (pass * (rows + 1));
    return fitting < 1 ? 1 : fitting < MOST_TOGETHER ? fitting : MOST_TOGETHER;
}
constexpr int tile_number(int pass, int rows, int together, bool fetching) {
    return (((fetching ? MOST_PASS : 0) + pass - 1) * MOST_ROWS + rows - 1) * MOST_TOGETHER + together - 1;
}
