/* Elements of a cache as floats. */
#ifndef M3_ELEMENTS_H
#define M3_ELEMENTS_H

#include "operations.h"
#include "simd.h"
#include "team.h"

#include <math.h>
#include <string.h>

typedef uint16_t halves_anywhere __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(64)));

static inline int bytes_of(enum element element) { return element == FLOAT32 ? 4 : element == BFLOAT16 ? 2 : 1; }

/* e4m3 without infinities: sign, 4 bits of exponent with bias 7, 3 of fraction; all ones is not a number. */
static inline float float_of_e4m3(uint8_t bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    const float size = (bits & 127) == 127 ? __builtin_nanf("")
                       : exponent          ? __builtin_ldexpf((float)(8 + fraction), exponent - 10)
                                           : __builtin_ldexpf((float)fraction, -9);
    return bits & 128 ? -size : size;
}

/* Values of all 256 bit patterns. */
static void fill_e4m3(float table[256]) {
    for (int bits = 0; bits < 256; bits++) table[bits] = float_of_e4m3((uint8_t)bits);
}

/* `count` elements from number `at` on, as floats. */
INLINE void widen(const void *from, int64_t at, int count, enum element element, const float *e4m3, float *out) {
    int i = 0;
    if (element == FLOAT8_E4M3)
        for (; i < count; i++) out[i] = e4m3[((const uint8_t *)from)[at + i]];
    for (; i + LANES <= count; i += LANES) { /* a bfloat16 is the upper half of a float */
        const words wide = __builtin_convertvector(*(const halves_anywhere *)((const uint16_t *)from + at + i), words);
        store(out + i, (floats)(wide << 16));
    }
    for (; i < count; i++) {
        const uint32_t wide = (uint32_t)((const uint16_t *)from)[at + i] << 16;
        memcpy(out + i, &wide, sizeof wide);
    }
}

/* The nearest bfloat16, ties to even. */
INLINE uint16_t bfloat16_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value != value ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* The nearest e4m3, ties to even; what exceeds the type's range is cut to its ends. */
INLINE uint8_t e4m3_of(float value) {
    uint32_t bits;
    const float size = fminf(fabsf(value), 448.0f);
    const uint8_t sign = signbit(value) ? 128 : 0;
    if (value != value) return sign | 127;
    if (size < 0.015625f) return sign | (uint8_t)rintf(size * 512.0f); /* below 2^-6 steps are of 2^-9 */
    memcpy(&bits, &size, sizeof bits);
    bits += 0x7FFFF + (bits >> 20 & 1);
    return sign | (uint8_t)((bits >> 20) - ((127 - 7) << 3));
}

#endif
