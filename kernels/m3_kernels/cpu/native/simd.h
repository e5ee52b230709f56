/* Sixteen floats at a time: what the compiled operations are written in.
 *
 * Vector types of GCC and clang: one source for AVX-512, AVX2, SSE2 and NEON.
 */
#ifndef M3_SIMD_H
#define M3_SIMD_H

#include <stdint.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16") /* a loop over registers */

typedef float floats __attribute__((vector_size(64)));
typedef float floats_anywhere __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(64)));
typedef int32_t ints_anywhere __attribute__((vector_size(64), aligned(4), may_alias));

INLINE floats load(const float *at) { return *(const floats_anywhere *)at; }

INLINE ints load_ints(const int32_t *at) { return *(const ints_anywhere *)at; }

INLINE void store(float *at, floats values) { *(floats_anywhere *)at = values; }

INLINE floats all(float value) { return value - (floats){0}; }

INLINE floats pick(ints mask, floats where_set, floats elsewhere) {
    return (floats)((mask & (ints)where_set) | (~mask & (ints)elsewhere));
}

INLINE floats larger(floats a, floats b) { return pick(a > b, a, b); }

INLINE floats smaller(floats a, floats b) { return pick(a < b, a, b); }

/* 2^x, to 2 ulp; 0 below -126. The fraction is in [-1/2, 1/2]: the Taylor series of 2^x ends at 1e-8 there. */
INLINE floats exp2_of(floats x) {
    const floats shift = all(12582912.0f); /* 1.5 x 2^23: adding it leaves no room for a fraction */
    const ints is_normal = x >= -126.0f;
    x = smaller(larger(x, all(-126.0f)), all(127.0f));
    const floats whole = (x + shift) - shift, f = x - whole;
    floats series = all(1.5403530e-4f);
    series = series * f + 1.3333558e-3f;
    series = series * f + 9.6181291e-3f;
    series = series * f + 5.5504109e-2f;
    series = series * f + 2.4022651e-1f;
    series = series * f + 6.9314718e-1f;
    series = series * f + 1.0f;
    const ints power = (__builtin_convertvector(whole, ints) + 127) << 23;
    return (floats)(is_normal & (ints)(series * (floats)power));
}

#define LOG2_E 1.44269504f

INLINE floats sigmoid_of(floats x) { return 1.0f / (1.0f + exp2_of(x * -LOG2_E)); }

INLINE float sum_of(floats x) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

#endif
