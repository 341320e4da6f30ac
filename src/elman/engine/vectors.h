// Vectors of `real`, as wide as VECTOR_BYTES says. The file that includes this defines both.

#pragma once
#include <sched.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

typedef real V __attribute__((vector_size(VECTOR_BYTES)));
typedef real Loose __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef __typeof__(V{} < V{}) Integers;  // as wide as `real`
template <int BYTES> struct Whole { typedef int32_t Signed; typedef uint32_t Unsigned; };
template <> struct Whole<8> { typedef int64_t Signed; typedef uint64_t Unsigned; };
typedef Whole<sizeof(real)>::Signed integer;
typedef Whole<sizeof(real)>::Unsigned natural;
typedef natural Naturals __attribute__((vector_size(VECTOR_BYTES)));

// LANES in a vector; ACCUMULATORS that fit in registers beside what they are made of; and so many vectors of a row ABREAST
// that tiles of ACCUMULATORS are about as high as wide: 6 x 4 in 32 registers, 6 x 2 in 16.
enum { LANES = VECTOR_BYTES / sizeof(real), REGISTERS = VECTOR_BYTES == 64 ? 32 : 16, ACCUMULATORS = REGISTERS * 3 / 4,
       ABREAST = REGISTERS / 8 };

// A kernel computes `all` vectors of a row in passes over its operand, each of so many of them, the last perhaps of fewer.
// Sixteen registers hold 6 x 2 accumulators or 4 x 3.
enum { MOST_PASS = REGISTERS == 32 ? 8 : 3 };
template <class N> constexpr N larger(N a, N b) { return a > b ? a : b; }
template <class N> constexpr N smaller(N a, N b) { return a < b ? a : b; }
constexpr int pass_of(int all) {
    const int passes = (all + MOST_PASS - 1) / MOST_PASS;
    return all <= MOST_PASS ? all : REGISTERS == 32 ? (all + passes - 1) / passes : all % 2 ? 3 : 2;
}

// Has the compiler keep a vector in a register, and not read it again wherever it is used.
#if defined(__x86_64__) || defined(__i386__)
#define KEEP(v) asm("" : "+v"(v))
#else
#define KEEP(v) (void)v
#endif
#define KEEP_POINTER(p) asm("" : "+r"(p))

INLINE V splat(real v) { return v - V{}; }
INLINE V load(const real *p) { return *(const Loose *)p; }
INLINE void store(real *p, V v) { *(Loose *)p = v; }

template <int N> struct Number { constexpr operator int() const { return N; } };
template <int... J> struct Indices {};
template <int N, int... J> struct Counted : Counted<N - 1, N - 1, J...> {};
template <int... J> struct Counted<0, J...> { typedef Indices<J...> Type; };
typedef Counted<LANES>::Type AllLanes;

// All bits of the first n lanes.
template <int... J> INLINE Integers counting(Indices<J...>) { return Integers{J...}; }
INLINE Integers first_lanes(int64_t n) { return counting(AllLanes{}) < (Integers{} + (integer)n); }

#include "instructions.h"

// The first n < LANES numbers; what lies behind them is neither read nor written.
INLINE V load_part(const real *p, int64_t n) {
#if defined(WIDE) || defined(MIDDLE)
    return load_lanes(p, n);
#endif
    V v = V{};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
}
INLINE void store_part(real *p, V v, int64_t n) {
#if defined(WIDE) || defined(MIDDLE)
    return store_lanes(p, v, n);
#endif
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// Runs a function on every thread of a team, as GOMP_parallel does.
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

// Between two looks at what another thread is to do. Where there are more threads than cores to run them, that one may need this
// one's core.
enum { PATIENCE = 1 << 11 };
INLINE void wait_a_little(int &looks) {
    if (looks < PATIENCE) ++looks, relax();
    else sched_yield();
}

// Where the threads of a team wait for each other: how often each has come, on lines of its own, so that the others see it
// after one trip of a line.
struct alignas(128) Arrivals { volatile int32_t count; };
INLINE Arrivals *nobody_yet(Arrivals *all, int64_t threads) {
    return (Arrivals *)__builtin_memset(all, 0, threads * sizeof(Arrivals));
}
INLINE void announce(Arrivals *all, int64_t thread, int32_t count) {
    __atomic_store_n(&all[thread].count, count, __ATOMIC_RELEASE);
}
static void await(const Arrivals *all, int64_t team, int64_t thread, int32_t count) {
    int looks = 0;
    for (int64_t i = 0; i < team; ++i)
        while (i != thread && __atomic_load_n(&all[i].count, __ATOMIC_ACQUIRE) - count < 0) wait_a_little(looks);
}
static void meet(Arrivals *all, int64_t thread, int64_t team) {
    const int32_t count = all[thread].count + 1;
    announce(all, thread, count);
    await(all, team, thread, count);
}
