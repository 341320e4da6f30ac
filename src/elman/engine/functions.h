// The functions of a vector that a cell's equations use: to a few units in the last place over the whole range, and for
// 0, infinities and NaN what the C library gives, but that no sigmoid is below its clamp. One source for every width of
// vectors; AVX-512 has instructions for some steps. No lane is computed alone, but sines and cosines of very large numbers.

#pragma once
#include "vectors.h"

const bool SINGLE = sizeof(real) == 4;
const integer MANTISSA = SINGLE ? 23 : 52, BIAS = SINGLE ? 127 : 1023;  // bits after the point; what stands for the exponent 0
const real infinity = (real)__builtin_inf();
const integer SIGN = (integer)((natural)1 << (sizeof(real) * 8 - 1));

INLINE Integers bits(V v) { return (Integers)v; }
INLINE bool any(Integers mask) {
#if defined(WIDE) || defined(MIDDLE) || defined(SLIM)
    return any_bit(mask);
#endif
    for (int i = 0; i < LANES; ++i)
        if (mask[i]) return true;
    return false;
}
template <class F> INLINE V lanewise(V v, F f) {
    for (int i = 0; i < LANES; ++i) v[i] = f(v[i]);
    return v;
}
// c[0] + c[1] x + c[2] x^2 …
template <int N> INLINE V polynomial(V x, const real (&c)[N]) {
    V y = splat(c[N - 1]);
#pragma GCC unroll 16
    for (int i = N - 2; i >= 0; --i) y = y * x + c[i];
    return y;
}

INLINE V upper(V a, V b) {  // b where either is NaN
#if defined(WIDE) || defined(MIDDLE) || defined(SLIM)
    return larger_of(a, b);
#endif
    return a > b ? a : b;
}
INLINE V lower(V a, V b) {
#if defined(WIDE) || defined(MIDDLE) || defined(SLIM)
    return smaller_of(a, b);
#endif
    return a < b ? a : b;
}
// Each of these gives NaN where an operand is NaN, as torch does.
INLINE V maximum(V a, V b) {
    const V larger = upper(a, b);
    return a != a ? a : larger;
}
INLINE V minimum(V a, V b) {
    const V smaller = lower(a, b);
    return a != a ? a : smaller;
}
INLINE V relu(V a) { return a <= (real)0 ? V{} : a; }
INLINE V abs(V a) { return (V)(bits(a) & ~SIGN); }
INLINE V signed_as(V a, V sign) { return (V)(bits(a) | (bits(sign) & SIGN)); }  // a is not negative

INLINE V sqrt(V v) {
#if defined(WIDE) || defined(MIDDLE) || defined(SLIM)
    return square_root(v);
#endif
    return lanewise(v, [](real x) { return (real)__builtin_sqrt(x); });
}
INLINE V rsqrt(V v) { return 1 / sqrt(v); }

// ---- integers among the numbers ---------------------------------------------------------------------------------

// x + MAGIC is rounded to an integer, which its last bits hold, for |x| below 2^(MANTISSA - 2).
const real MAGIC = SINGLE ? (real)12582912.0f : (real)6755399441055744.0;  // 1.5 * 2^MANTISSA

INLINE V floor(V x) {
#if defined(WIDE) || defined(MIDDLE)
    return down_to_integer(x);
#endif
    const real whole = SINGLE ? (real)0x1p23f : (real)0x1p52;  // numbers from here on are integers
    const V n = signed_as((abs(x) + whole) - whole, x);
    return abs(x) < whole ? (n > x ? n - 1 : n) : x;
}
// The remainder with the divisor's sign, exact for integers below 2^24 (2^53 in double).
INLINE V remainder(V a, V b) {
    V r = a - floor(a / b) * b;
    const V size = b < (real)0 ? -b : b;
    r = b < (real)0 ? -r : r;
    r = r < (real)0 ? r + size : r;
    r = r >= size ? r - size : r;
    return b < (real)0 ? -r : r;
}

// ---- exponentials -----------------------------------------------------------------------------------------------

INLINE V limited(V x, real high) { return lower(splat(high), x); }  // NaN stays
INLINE V clamped(V x, real low, real high) { return limited(upper(splat(low), x), high); }
INLINE V reciprocal(V x) {  // of finite numbers that are far from overflow and underflow
#if defined(WIDE) && !defined(QUICK_DIVISION)  // see build.py
    if constexpr (SINGLE) {
        const V r = near_reciprocal(x);
        return r + r * (1 - x * r);
    }
#endif
    return 1 / x;
}
INLINE V quotient(V a, V b) {  // as reciprocal
#if defined(WIDE) && !defined(QUICK_DIVISION)  // see build.py
    if constexpr (SINGLE) {
        const V r = near_reciprocal(b), y = a * r;
        return y + r * (a - b * y);
    }
#endif
    return a / b;
}

// log 2 in two parts: the first ends in zeros, so that n times it is exact.
const real LN2_HEAD = SINGLE ? (real)0.693145751953125f : (real)6.93147180369123816490e-01;
const real LN2_TAIL = SINGLE ? (real)1.42860677000e-06f : (real)1.90821492927058770002e-10;

// exp(A x) = 2^n e^(A r), |A r| <= ln(2)/2, for A = 1, -1 or 2: gives e^(A r) - 1, so that small x keep their precision, and n,
// with BIASES times BIAS added, in the last bits of `shifted`.
template <int A, int BIASES> INLINE V exp_part(V x, V &shifted) {
    const real magic = MAGIC + BIASES * BIAS;
    shifted = x * (real)(A * 1.44269504088896340736) + magic;
    const V n = shifted - magic;
    V r = x - n * (LN2_HEAD / A);
    r -= n * (LN2_TAIL / A);
    auto series = [&](const auto &c) {
        constexpr int N = sizeof(c) / sizeof(c[0]);
        real power = (real)__builtin_powi(A, N);
        V y = splat(c[N - 1] * power);
#pragma GCC unroll 16
        for (int i = N - 2; i >= 0; --i) y = y * r + c[i] * (power /= A);
        return r * y;
    };
    if constexpr (SINGLE) {  // fitted to the least relative error of e^r - 1, which is 1.8e-8
        const real c[] = {1, (real)0.4999999701976776, (real)0.1666654348373413, (real)0.04166720062494278, (real)0.008366595953702927, (real)0.0013882507337257266};
        return series(c);
    } else {  // Taylor coefficients 1/k! from k = 1
        const real c[] = {1, (real)0.5, (real)(1 / 6.0), (real)(1 / 24.0), (real)(1 / 120.0), (real)(1 / 720.0), (real)(1 / 5040.0),
                          (real)(1 / 40320.0), (real)(1 / 362880.0), (real)(1 / 3628800.0), (real)(1 / 39916800.0),
                          (real)(1 / 479001600.0), (real)(1 / 6227020800.0)};
        return series(c);
    }
}
// 2^n of n + BIAS in the last bits, where that is a normal number.
INLINE V power_of_two(V shifted) { return (V)(bits(shifted) << MANTISSA); }
// x * 2^n of n + 2 BIAS in the last bits: in two halves, so that neither power overflows.
INLINE V scaled(V x, V shifted) {
    const Integers half = bits(shifted) >> 1;
    return x * (V)(half << MANTISSA) * (V)((bits(shifted) - half) << MANTISSA);
}
INLINE V exp(V x) {  // beyond the clamp it is 0 or infinite
    V n, part = exp_part<1, 2>(clamped(x, SINGLE ? -104 : -746, SINGLE ? 90 : 711), n);
    return scaled(1 + part, n);
}
INLINE V expm1(V x) {  // beyond the clamp it is -1 within an epsilon, or infinite
    // Half of the power of two, which does not overflow, and 2 (p s/2 + (s/2 - 1/2)) for the whole.
    V n, part = exp_part<1, 1>(clamped(x, SINGLE ? -20 : -40, SINGLE ? 89 : 710), n);
    const V half = power_of_two(n - 1);
    return 2 * (half * part + (half - (real)0.5));
}
INLINE V sigmoid(V x) {  // beyond the clamp it is 1 within an epsilon, or so near 0
    V n, part = exp_part<-1, 1>(clamped(x, SINGLE ? -87 : -700, SINGLE ? 40 : 80), n);
    return reciprocal(1 + power_of_two(n) * (1 + part));
}
INLINE V tanh(V x) {  // of q = e^(2|x|) - 1 it is q / (q + 2), which is most exact near 1; beyond the clamp it is 1 within an epsilon
    V n, part = exp_part<2, 1>(limited(abs(x), SINGLE ? 10 : 20), n);
    const V scale = power_of_two(n), q = scale * part + (scale - 1);
    return signed_as(quotient(q, q + 2), x);
}

// ---- logarithms -------------------------------------------------------------------------------------------------

// log(x) + c, where c is what rounding took from x, by x.
INLINE V log_and(V x, V c) {
    const real least = SINGLE ? (real)0x1p-126f : (real)0x1p-1022, lift = SINGLE ? (real)0x1p25f : (real)0x1p54;
    const integer half_root = SINGLE ? (integer)0x3f3504f3 : (integer)0x3fe6a09e667f3bcd;  // the bits of sqrt(1/2)
    // x = 2^n m with m from sqrt(1/2) to sqrt(2)
    const Integers subnormal = x < least;
    const Integers above = bits(subnormal ? x * lift : x) - half_root + ((integer)BIAS << MANTISSA);
    const V m = (V)((above & (((integer)1 << MANTISSA) - 1)) + half_root);
    const V biased = (V)((Integers)((Naturals)above >> MANTISSA) + bits(splat(MAGIC))) - MAGIC;
    const V n = biased - (subnormal ? splat((real)(BIAS + (SINGLE ? 25 : 54))) : splat((real)BIAS));
    // log(1 + f) = 2 artanh(s) = 2 s + 2/3 s^3 + 2/5 s^5 … with s = f / (2 + f), and 2 s = f - s f.
    const V f = m - 1, s = quotient(f, 2 + f), z = s * s;
    V rest;
    if constexpr (SINGLE) {
        const real k[] = {(real)(2 / 3.0), (real)(2 / 5.0), (real)(2 / 7.0), (real)(2 / 9.0)};
        rest = z * polynomial(z, k);
    } else {
        const real k[] = {(real)(2 / 3.0), (real)(2 / 5.0), (real)(2 / 7.0), (real)(2 / 9.0), (real)(2 / 11.0),
                          (real)(2 / 13.0), (real)(2 / 15.0), (real)(2 / 17.0), (real)(2 / 19.0), (real)(2 / 21.0)};
        rest = z * polynomial(z, k);
    }
    const V y = n * LN2_HEAD + (f - (s * (f - rest) - (n * LN2_TAIL + c)));
    const V outside = x == (real)0 ? splat(-infinity) : x < (real)0 ? splat((real)__builtin_nan("")) : x;
    return (x > (real)0) & (x < infinity) ? y : outside;
}
INLINE V log(V x) { return log_and(x, V{}); }
INLINE V log1p(V x) {
    const V whole = 1 + x;
    return log_and(whole, (x - (whole - 1)) / whole);
}

// ---- sine and cosine --------------------------------------------------------------------------------------------

// The sine of x and a number of quarter turns, for |x| up to NEAR.
const real NEAR = SINGLE ? (real)800 : (real)1.6e6;
INLINE V sine(V x, integer turns) {
    // n quarter turns less, pi/2 in four parts: n times each but the last is exact.
    const V shifted = x * (real)0.63661977236758134308 + MAGIC, n = shifted - MAGIC;
    V r = x - n * (SINGLE ? (real)0x1.921cp0f : (real)0x1.921fb544p0);
    r -= n * (SINGLE ? (real)0x1.daap-15f : (real)0x1.0b4611a6p-34);
    r -= n * (SINGLE ? (real)0x1.10b4p-30f : (real)0x1.3198a2ep-69);
    r -= n * (SINGLE ? (real)0x1.84698ap-48f : (real)0x1.b839a252049c1p-104);
    const V z = r * r;
    V odd, even;  // the Taylor series of sine and cosine behind their first two terms, divided by r^3 and r^4
    if constexpr (SINGLE) {
        const real k[] = {(real)(-1 / 6.0), (real)(1 / 120.0), (real)(-1 / 5040.0), (real)(1 / 362880.0)};
        const real l[] = {(real)(1 / 24.0), (real)(-1 / 720.0), (real)(1 / 40320.0), (real)(-1 / 3628800.0)};
        odd = polynomial(z, k), even = polynomial(z, l);
    } else {
        const real k[] = {(real)(-1 / 6.0), (real)(1 / 120.0), (real)(-1 / 5040.0), (real)(1 / 362880.0),
                          (real)(-1 / 39916800.0), (real)(1 / 6227020800.0), (real)(-1 / 1307674368000.0), (real)(1 / 355687428096000.0)};
        const real l[] = {(real)(1 / 24.0), (real)(-1 / 720.0), (real)(1 / 40320.0), (real)(-1 / 3628800.0),
                          (real)(1 / 479001600.0), (real)(-1 / 87178291200.0), (real)(1 / 20922789888000.0)};
        odd = polynomial(z, k), even = polynomial(z, l);
    }
    const Integers quarter = bits(shifted) + turns;
    const V y = (quarter & 1) != 0 ? 1 - (z * (real)0.5 - z * z * even) : r + r * z * odd;
    return (V)(bits(y) ^ ((quarter & 2) << (sizeof(real) * 8 - 2)));
}
INLINE V sin(V x) {
    if (any(abs(x) > NEAR)) return lanewise(x, [](real v) { return (real)__builtin_sin(v); });
    return sine(x, 0);
}
INLINE V cos(V x) {
    if (any(abs(x) > NEAR)) return lanewise(x, [](real v) { return (real)__builtin_cos(v); });
    return sine(x, 1);
}
