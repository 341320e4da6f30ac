// Vectors of `real`, as wide as VECTOR_BYTES says. The file that includes this defines both.

#include <math.h>
#include <stdint.h>
#include <string.h>

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

// LANES in a vector; ACCUMULATORS that fit in registers beside what they are made of.
enum { LANES = VECTOR_BYTES / sizeof(real), ACCUMULATORS = VECTOR_BYTES == 64 ? 24 : 12 };

INLINE V splat(real v) { return v - V{}; }
INLINE V load(const real *p) { return *(const Loose *)p; }
INLINE void store(real *p, V v) { *(Loose *)p = v; }

#if VECTOR_BYTES == 64 || defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

// The first n < LANES numbers; what lies behind them is neither read nor written.
INLINE V load_part(const real *p, int64_t n) {
#if VECTOR_BYTES == 64
    const unsigned mask = (1u << n) - 1;
    if constexpr (sizeof(real) == 4) return (V)_mm512_maskz_loadu_ps((__mmask16)mask, p);
    else return (V)_mm512_maskz_loadu_pd((__mmask8)mask, p);
#endif
    V v = V{};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
}
INLINE void store_part(real *p, V v, int64_t n) {
#if VECTOR_BYTES == 64
    const unsigned mask = (1u << n) - 1;
    if constexpr (sizeof(real) == 4) return _mm512_mask_storeu_ps(p, (__mmask16)mask, (__m512)v);
    else return _mm512_mask_storeu_pd(p, (__mmask8)mask, (__m512d)v);
#endif
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

template <int... J> struct Indices {};
template <int N, int... J> struct Counted : Counted<N - 1, N - 1, J...> {};
template <int... J> struct Counted<0, J...> { typedef Indices<J...> Type; };
typedef Counted<LANES>::Type AllLanes;

// Runs a function on every thread of a team, as GOMP_parallel does.
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

// Where the threads of a team wait for each other; zero at the start.
struct Meeting {
    volatile int32_t arrived, generation;  // Python sees both as one int64 number
};
static void meet(Meeting &m, int64_t team) {
    const int32_t generation = __atomic_load_n(&m.generation, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&m.arrived, 1, __ATOMIC_ACQ_REL) == team) {
        m.arrived = 0;
        __atomic_store_n(&m.generation, generation + 1, __ATOMIC_RELEASE);
    } else {
        while (__atomic_load_n(&m.generation, __ATOMIC_ACQUIRE) == generation) relax();
    }
}
