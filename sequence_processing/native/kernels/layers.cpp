// What stands between the products of a decoder layer: norms, rotary positions, the gated activation.
#include "vector.h"

namespace {

template <class W>
static void norm_row(const float* x, const W* weight, float* y, long width, float epsilon) {
    v16 squares{};
    long i = 0;
    for (; i + 16 <= width; i += 16) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < width; i++) total += x[i] * x[i];
    float scale = 1.0f / std::sqrt(total / width + epsilon);
    for (i = 0; i < width; i++) y[i] = widen(weight[i]) * (x[i] * scale);
}

}  // namespace

// Root-mean-square norm (Zhang, Sennrich 2019) of x [rows, width]; y may be x.
extern "C" void rms_norm(
    const float* x, const void* weight, float* y, long rows, long width, float epsilon, int half, int threads
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long m = 0; m < rows; m++) {
        if (half)
            norm_row(x + m * width, (const bf16*)weight, y + m * width, width, epsilon);
        else
            norm_row(x + m * width, (const float*)weight, y + m * width, width, epsilon);
    }
}

// Rotary positions (Su et al. 2021), halves of a head paired as transformers does: x [rows, heads, width], in place.
// cosines and sines [positions, width].
extern "C" void rotate(
    float* x, const float* cosines, const float* sines, const int32_t* positions, long rows, long stride, long heads,
    long width, int threads
) {
    long half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long m = 0; m < rows; m++) {
        const float *c = cosines + positions[m] * width, *s = sines + positions[m] * width;
        for (long h = 0; h < heads; h++) {
            float* a = x + m * stride + h * width;
            for (long i = 0; i < half; i++) {
                float low = a[i], high = a[i + half];
                a[i] = low * c[i] - high * s[i];
                a[i + half] = high * c[i + half] + low * s[i + half];
            }
        }
    }
}

// silu(gate) * up for gate_up [rows, 2 * width], gate first; y [rows, width].
extern "C" void gated_silu(const float* gate_up, float* y, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long m = 0; m < rows; m++) {
        const float *gate = gate_up + 2 * m * width, *up = gate + width;
        for (long i = 0; i < width; i += 16) {
            bool whole = i + 16 <= width;
            size_t bytes = (whole ? 16 : width - i) * sizeof(float);
            v16 g{}, u{};
            if (whole) {
                g = load(gate + i);
                u = load(up + i);
            } else {
                std::memcpy(&g, gate + i, bytes);
                std::memcpy(&u, up + i, bytes);
            }
            v16 e = exp_negative(-(g < 0 ? -g : g));  // e**-|g|, so that nothing overflows
            v16 out = g * ((g < 0 ? e : splat(1.0f)) / (1.0f + e)) * u;
            if (whole)
                store(y + m * width + i, out);
            else
                std::memcpy(y + m * width + i, &out, bytes);
        }
    }
}
