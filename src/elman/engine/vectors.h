// Vectors of `real`, as wide as VECTOR_BYTES says. The file that includes this defines both.

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

typedef real V __attribute__((vector_size(VECTOR_BYTES)));
typedef real Loose __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
typedef __typeof__(V{} < V{}) Integers;  // as wide as `real`

// LANES in a vector; ACCUMULATORS that fit in registers beside what they are made of.
enum { LANES = VECTOR_BYTES / sizeof(real), ACCUMULATORS = VECTOR_BYTES == 64 ? 24 : 12 };

INLINE V splat(real v) { return v - V{}; }
INLINE V load(const real *p) { return *(const Loose *)p; }
INLINE void store(real *p, V v) { *(Loose *)p = v; }

template <int... J> struct Indices {};
template <int N, int... J> struct Counted : Counted<N - 1, N - 1, J...> {};
template <int... J> struct Counted<0, J...> { typedef Indices<J...> Type; };
typedef Counted<LANES>::Type AllLanes;

// Runs a function on every thread of a team, as GOMP_parallel does.
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
