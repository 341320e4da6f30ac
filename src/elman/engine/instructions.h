// The few processor instructions that the compiler's vectors have no operator for. <immintrin.h> has them too, but reading
// it takes longer than compiling a kernel. Elsewhere each has an equivalent in plain C++, in functions.h and vectors.h.
//
// WIDE: AVX-512; MIDDLE: AVX2, 32 bytes; SLIM: SSE2, 16 bytes. In AT&T's order the result stands last.

#if VECTOR_BYTES == 64
#define WIDE
#elif VECTOR_BYTES == 32 && defined(__AVX2__)
#define MIDDLE
#elif VECTOR_BYTES == 16 && defined(__SSE2__) && !defined(__AVX__)
#define SLIM
#endif

// An instruction for single and double precision, by its name without the last letter.
#define BY_TYPE(name, operands, ...) \
    if constexpr (sizeof(real) == 4) asm(name "s " operands : __VA_ARGS__); \
    else asm(name "d " operands : __VA_ARGS__)
#define OF_ONE(function, name, operands) \
    INLINE V function(V a) { V r; BY_TYPE(name, operands, "=v"(r) : "v"(a)); return r; }
#define OF_TWO(function, name) \
    INLINE V function(V a, V b) { V r; BY_TYPE(name, "%2, %1, %0", "=v"(r) : "v"(a), "v"(b)); return r; }

// A vector's memory, of which an instruction may leave a part alone.
#define MEMORY(p) (*(real(*)[VECTOR_BYTES / sizeof(real)])(p))

#if defined(WIDE) || defined(MIDDLE)
OF_TWO(larger_of, "vmaxp")  // b where either is NaN
OF_TWO(smaller_of, "vminp")
OF_ONE(square_root, "vsqrtp", "%1, %0")
#elif defined(SLIM)
INLINE V larger_of(V a, V b) { BY_TYPE("maxp", "%1, %0", "+x"(a) : "x"(b)); return a; }
INLINE V smaller_of(V a, V b) { BY_TYPE("minp", "%1, %0", "+x"(a) : "x"(b)); return a; }
INLINE V square_root(V a) { V r; BY_TYPE("sqrtp", "%1, %0", "=x"(r) : "x"(a)); return r; }
#endif

#ifdef WIDE
OF_ONE(down_to_integer, "vrndscalep", "$9, %1, %0")
OF_ONE(near_reciprocal, "vrcp14p", "%1, %0")      // to 14 bits
INLINE bool any_bit(Integers v) {
    uint16_t lanes;
    if constexpr (sizeof(real) == 4) asm("vptestmd %1, %1, %0" : "=Yk"(lanes) : "v"(v));
    else asm("vptestmq %1, %1, %0" : "=Yk"(lanes) : "v"(v));
    return sizeof(real) == 4 ? lanes : lanes & 255;
}
INLINE V load_lanes(const real *p, int64_t n) {  // zero behind them
    V v;
    BY_TYPE("vmovup", "%1, %0%{%2%}%{z%}", "=v"(v) : "m"(MEMORY(p)), "Yk"((uint16_t)((1u << n) - 1)));
    return v;
}
INLINE void store_lanes(real *p, V v, int64_t n) {
    BY_TYPE("vmovup", "%1, %0%{%2%}", "+m"(MEMORY(p)) : "v"(v), "Yk"((uint16_t)((1u << n) - 1)));
}
#elif defined(MIDDLE)
INLINE V down_to_integer(V a) {  // which knows sixteen registers alone, where the processor has 32 too
    V r;
    BY_TYPE("vroundp", "$9, %1, %0", "=x"(r) : "x"(a));
    return r;
}
INLINE bool any_bit(Integers v) {
    bool found;
    asm("vptest %1, %1" : "=@ccnz"(found) : "x"(v));
    return found;
}
INLINE V load_lanes(const real *p, int64_t n) {
    V v;
    BY_TYPE("vmaskmovp", "%1, %2, %0", "=x"(v) : "m"(MEMORY(p)), "x"(first_lanes(n)));
    return v;
}
INLINE void store_lanes(real *p, V v, int64_t n) {
    BY_TYPE("vmaskmovp", "%1, %2, %0", "+m"(MEMORY(p)) : "x"(v), "x"(first_lanes(n)));
}
#elif defined(SLIM)
INLINE bool any_bit(Integers v) {
    int bytes;
    asm("pmovmskb %1, %0" : "=r"(bytes) : "x"(v));
    return bytes;
}
#endif
