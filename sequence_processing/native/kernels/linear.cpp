// y = x W^T for weights as nn.Linear holds them: nothing is packed, so nothing can be stale.
//
// Each output is one chain of sums over k and one fixed tree, whatever the tile it is computed in: a row's result does
// not depend on the rows beside it, nor on the number of threads. Products of bfloat16 are summed in float32 and come
// out in float32.
#include <type_traits>

#include "vector.h"

namespace {

constexpr long ROWS = 4, COLUMNS = 6;  // accumulators of a tile: 24 of 32 registers
constexpr long ROW_BLOCK = 256;       // rows of x that stay in the second-level cache

// x is rounded to bfloat16 before a product with bfloat16, as torch does.
#if defined(__AVX512BF16__)
typedef bf16 panel_of_bf16;
static inline v16 multiply_add(v16 sum, const bf16* x, const bf16* w) {
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(x), (__m512bh)_mm512_loadu_si512(w));
}
#else
typedef float panel_of_bf16;
#endif
static inline v16 multiply_add(v16 sum, const float* x, const float* w) { return sum + load(x) * load(w); }
#if !defined(__AVX512BF16__)
static inline v16 multiply_add(v16 sum, const float* x, const bf16* w) { return sum + load(x) * load(w); }
#endif

template <class W> struct panel_of { typedef float type; static constexpr long step = 16; };
template <> struct panel_of<bf16> {
    typedef panel_of_bf16 type;
    static constexpr long step = sizeof(panel_of_bf16) == 2 ? 32 : 16;
};

#if defined(__AVX512F__)
// Sums of sixteen vectors at once: 45 instructions in place of sixteen reductions.
static inline void sums(const v16* v, float* out) {
    __m512 b[8], c[4], d[2];
    for (int i = 0; i < 8; i++) {
        __m512 x = (__m512)v[2 * i], y = (__m512)v[2 * i + 1];
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xEE));
    }
    for (int i = 0; i < 4; i++) {
        __m512 x = b[2 * i], y = b[2 * i + 1];
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xDD));
    }
    for (int i = 0; i < 2; i++) {
        __m512 x = c[2 * i], y = c[2 * i + 1];
        d[i] = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    }
    __m512d x = _mm512_castps_pd(d[0]), y = _mm512_castps_pd(d[1]);
    __m512 e = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_ps(out, _mm512_permutexvar_ps(order, e));
}
#else
static inline void sums(const v16* v, float* out) {
    for (int i = 0; i < 16; i++) out[i] = sum(v[i]);
}
#endif

struct Shape {
    long rows, inputs, outputs;  // M, K, N
};

struct Output {
    float* y;
    long stride;
    float scale;
    bool add;  // to what stands in y
};

constexpr int LINE = 8;  // floats that a row of a tile's results takes

// Results of MR rows and NR columns, x and w at their first elements; row i starts at out[i * LINE].
template <int MR, int NR, class X, class W>
static inline __attribute__((always_inline)) void tile(const X* x, const W* w, long inputs, float* out) {
    constexpr long step = panel_of<W>::step;
    constexpr int size = (MR * LINE + 15) / 16 * 16;
    v16 a[size] = {};
    long whole = inputs / step * step;
    for (long k = 0; k < whole; k += step)
#pragma GCC unroll 4
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 6
            for (int j = 0; j < NR; j++)
                a[i * LINE + j] = multiply_add(a[i * LINE + j], x + i * inputs + k, w + j * inputs + k);
    if (long rest = inputs - whole) {
        X xs[MR][step] = {};
        W ws[NR][step] = {};
        for (int i = 0; i < MR; i++) std::memcpy(xs[i], x + i * inputs + whole, rest * sizeof(X));
        for (int j = 0; j < NR; j++) std::memcpy(ws[j], w + j * inputs + whole, rest * sizeof(W));
#pragma GCC unroll 4
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 6
            for (int j = 0; j < NR; j++) a[i * LINE + j] = multiply_add(a[i * LINE + j], xs[i], ws[j]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < size; i += 16) sums(a + i, out + i);
}

template <int MR, int NR, class X, class W>
static inline void put_tile(const X* x, const W* w, const float* bias, long inputs, const Output& to, float* y) {
    float out[(MR * LINE + 15) / 16 * 16];
    tile<MR, NR>(x, w, inputs, out);
#pragma GCC unroll 4
    for (int i = 0; i < MR; i++) {
        float line[NR];
        for (int j = 0; j < NR; j++) line[j] = out[i * LINE + j] * to.scale + bias[j];
        if (to.add)
            for (int j = 0; j < NR; j++) line[j] += y[i * to.stride + j];
        std::memcpy(y + i * to.stride, line, sizeof line);
    }
}

// Columns n to n + NR of rows `from` to `end`.
template <int NR, class X, class W>
static void put_rows(
    const X* x, const W* w, const W* bias, long inputs, const Output& to, long from, long end, long n
) {
    float offsets[NR] = {};
    if (bias)
        for (int j = 0; j < NR; j++) offsets[j] = widen(bias[n + j]);
    w += n * inputs;
    const char *next = (const char*)(w + NR * inputs), *last = next + NR * inputs * sizeof(W);
    long portion = ((last - next) * ROWS / (end - from) + 63) / 64 * 64;  // a tile's share of the next weights
    auto put = [&](auto rows, long m) {
        for (const char* stop = std::min(last, next + portion); next < stop; next += 64) __builtin_prefetch(next, 0, 2);
        put_tile<decltype(rows)::value, NR>(x + m * inputs, w, offsets, inputs, to, to.y + m * to.stride + n);
    };
    long m = from;
    for (; m + ROWS <= end; m += ROWS) put(std::integral_constant<int, ROWS>(), m);
    switch (end - m) {
        case 3: put(std::integral_constant<int, 3>(), m); break;
        case 2: put(std::integral_constant<int, 2>(), m); break;
        case 1: put(std::integral_constant<int, 1>(), m); break;
    }
}

template <class W>
static void product(
    const float* x, void* panel, const W* w, const W* bias, const Shape& s, const Output& to, int threads
) {
    typedef typename panel_of<W>::type X;
    const X* rows = (const X*)x;
    long share = (s.outputs + threads - 1) / threads;
    share = (share + COLUMNS - 1) / COLUMNS * COLUMNS;
#pragma omp parallel num_threads(threads)
    {
        if (sizeof(W) != sizeof(float)) {
#pragma omp for schedule(static)
            for (long m = 0; m < s.rows; m++)
                for (long i = m * s.inputs; i < (m + 1) * s.inputs; i++) put_rounded(x[i], (X*)panel + i);
#pragma omp single
            rows = (const X*)panel;
        }
#pragma omp for schedule(static)
        for (int t = 0; t < threads; t++) {
            long first = t * share, last = std::min(s.outputs, first + share);
            for (long m = 0; m < s.rows; m += ROW_BLOCK) {
                long end = std::min(s.rows, m + ROW_BLOCK), n = first;
                for (; n + COLUMNS <= last; n += COLUMNS) put_rows<COLUMNS>(rows, w, bias, s.inputs, to, m, end, n);
                for (; n < last; n++) put_rows<1>(rows, w, bias, s.inputs, to, m, end, n);
            }
        }
    }
}

}  // namespace

// x [rows, inputs] and y [rows, stride] are float32; w [outputs, inputs] and bias [outputs] (or null) are float32 or,
// if `half`, bfloat16. y = x w^T * scale + bias, added to y if `add`. panel has room for a copy of x.
extern "C" void linear(
    const float* x, void* panel, const void* w, const void* bias, float* y, long rows, long inputs, long outputs,
    long stride, float scale, int add, int half, int threads
) {
    Shape s{rows, inputs, outputs};
    Output to{y, stride, scale, add != 0};
    if (half)
        product(x, panel, (const bf16*)w, (const bf16*)bias, s, to, threads);
    else
        product(x, panel, (const float*)w, (const float*)bias, s, to, threads);
}
