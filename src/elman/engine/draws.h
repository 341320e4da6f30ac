// Random choices from a counter, so that a mask can be had again at any place without being kept: Threefry-2x32 with 13
// rounds (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), the fewest with which it
// passes BigCrush. Additions, rotations and exclusive ors of 32-bit words alone: the same on every
// processor and in `draws.py`, bit for bit. The file that includes this has included vectors.h.

typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef int32_t WordMask __attribute__((vector_size(LANES * 4)));

template <class W> INLINE W rotated(W x, int by) { return (x << by) | (x >> (32 - by)); }

// The counter (a, b) encrypted with a key, in place.
template <class W> INLINE void threefry(uint32_t key0, uint32_t key1, W &a, W &b) {
    const uint32_t key[] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDAu};
    const int by[] = {13, 15, 26, 6, 17, 29, 16, 24};
    a += key[0];
    b += key[1];
#pragma GCC unroll 16
    for (uint32_t round = 0; round < 13; ++round) {
        a += b;
        b = rotated(b, by[round % 8]) ^ a;
        if (round % 4 < 3) continue;
        const uint32_t group = round / 4 + 1;
        a += key[group % 3];
        b += key[(group + 1) % 3] + group;
    }
}

// One random choice for each unit of each row, at each step or (`moving` 0) once for all steps.
struct Draw {
    const int64_t *rows;  // [rows, 3]: a row's key, two words, and the number of the run's first step
    int64_t moving;       // whether each step chooses afresh
    int64_t threshold;    // chosen are the words below it: the probability times 2^32
};

// Whether the units from `unit` on of a row are chosen, at step t of the run.
INLINE WordMask chosen(const Draw &d, int64_t row, int64_t t, int64_t unit) {
    const int64_t *key = d.rows + 3 * row;
    static const uint32_t lanes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Words a = (uint32_t)(d.moving ? key[2] + t : 0) - Words{}, b;
    __builtin_memcpy(&b, lanes, sizeof b);
    b += (uint32_t)unit;
    threefry((uint32_t)key[0], (uint32_t)key[1], a, b);
    return a < (uint32_t)d.threshold;
}
