// Sixteen floats at a time, in the compiler's own vector types: one source for every instruction set that it knows.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16v __attribute__((vector_size(64)));
typedef uint32_t u16v __attribute__((vector_size(64)));
typedef uint16_t h16v __attribute__((vector_size(32)));

struct bf16 { uint16_t bits; };

static inline v16 splat(float x) { return v16{} + x; }
static inline v16 load(const float* p) { v16 v; std::memcpy(&v, p, sizeof v); return v; }
static inline v16 load(const bf16* p) {
    h16v half;
    std::memcpy(&half, p, sizeof half);
    return (v16)(__builtin_convertvector(half, u16v) << 16);
}
static inline void store(float* p, v16 v) { std::memcpy(p, &v, sizeof v); }

static inline float widen(float x) { return x; }
static inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
static inline void narrow(float x, float* to) { *to = x; }
static inline void narrow(float x, bf16* to) {  // to nearest, ties to even; a NaN stays one
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    to->bits = std::isnan(x) ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

// The nearest bfloat16, kept in either type.
static inline void put_rounded(float x, bf16* to) { narrow(x, to); }
static inline void put_rounded(float x, float* to) {
    bf16 near;
    narrow(x, &near);
    *to = widen(near);
}

// Always the same tree, so that a sum does not depend on where its row stands.
static inline float sum(v16 v) {
    float a[16];
    store(a, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) a[i] += a[i + width];
    return a[0];
}
static inline v16 larger(v16 a, v16 b) { return a > b ? a : b; }
static inline bool any(i16v lanes) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes);
#else
    for (int i = 0; i < 16; i++)
        if (lanes[i]) return true;
    return false;
#endif
}
static inline float largest(v16 v) {
    float a[16];
    store(a, v);
    return *std::max_element(a, a + 16);
}

// e**x for x <= 0, within 2 units in the last place (Cephes' expf); 0 below -87.
static inline v16 exp_negative(v16 x) {
    v16 low = splat(-87.0f), in = larger(x, low);
    v16 n = __builtin_convertvector(__builtin_convertvector(in * 1.44269504088896341f - 0.5f, i16v), v16);
    v16 r = in - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    v16 y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    v16 power = (v16)((__builtin_convertvector(n, i16v) + 127) << 23);
    return x > low ? y * power : v16{};
}
