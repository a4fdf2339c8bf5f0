// The four quantities of a token, and its draw, in two passes over a row of logits, or four with top-p; and diagnostics.
//
// The definitions are distribution.py's, noise.py's and diagnostics.py's; sums are float64 over blocks of float32.
#include <cfloat>
#include <functional>
#include <new>
#include <vector>

#include "vector.h"

namespace {

constexpr float UNDERFLOW_AT = -104.0f;  // exp_negative is 0 there
constexpr long BLOCK = 1024;             // logits summed in float32 before float64 takes over
constexpr int BINS = 2048;
constexpr float BINS_A_NAT = 64.0f;      // the last bin takes all beyond 32 nats below the top

struct Policy {
    double temperature, top_p;
    bool greedy() const { return temperature == 0; }
    bool truncates() const { return top_p < 1; }
    bool plain() const { return temperature == 1 && top_p == 1; }
    // Finite, so that the top's distance of 0 stays 0.
    float inverse_temperature() const { return greedy() ? 1.0f : float(std::min(1 / temperature, double(FLT_MAX))); }
};

// Sums of e**d and of e**d * d over a distribution, d <= 0 the nats below its top. What stands at the top is counted
// apart: log p of a nearly certain token is the small rest's logarithm, and a gradient hangs on its digits.
struct Sums {
    double tops = 0, rest = 0, moment = 0;
    v16 top_lanes{}, rest_lanes{}, moment_lanes{};

    void add(v16 e, v16 d) {
        top_lanes += d == 0 ? e : v16{};
        rest_lanes += d == 0 ? v16{} : e;
        moment_lanes += e * d;
    }
    void close_block() {
        tops += sum(top_lanes);
        rest += sum(rest_lanes);
        moment += sum(moment_lanes);
        top_lanes = rest_lanes = moment_lanes = v16{};
    }
    double mass() const { return tops + rest; }
    double log_mass() const { return std::log1p(tops - 1 + rest); }
    double entropy() const { return log_mass() - moment / mass(); }
};

struct Row {
    const float* z;
    long size;
    float top = -INFINITY;  // the largest logit; NaN if any is NaN, or +inf
    long argmax = 0;

    v16 at(long i) const {
        if (i + 16 <= size) return load(z + i);
        v16 v = splat(-INFINITY);
        std::memcpy(&v, z + i, (size - i) * sizeof(float));
        return v;
    }
    void find_top() {
        v16 most = splat(-INFINITY);
        i16v odd{};
        for (long i = 0; i < size; i += 16) {
            v16 v = at(i);
            odd |= v != v;
            most = larger(v, most);
        }
        top = largest(most);
        for (int i = 0; i < 16; i++)
            if (odd[i]) top = NAN;
        if (!std::isfinite(top)) top = NAN;
    }
    void find_argmax() { argmax = std::find(z, z + size, top) - z; }
    // Nats below the top of sixteen logits, and of one, after division by the temperature.
    v16 distance(long i, float by = 1.0f) const { return larger((at(i) - top) * by, splat(UNDERFLOW_AT)); }
    double distance_of(long id, double temperature) const { return (double(z[id]) - double(top)) / temperature; }
};

// --- noise: one number a vocabulary id, named by a stream -------------------------------------------------------------

static uint64_t splitmix(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}
static uint64_t stream_of(uint64_t row_key, uint64_t position) {
    return splitmix(row_key + (position + 1) * 0x9E3779B97F4A7C15u);
}

template <class U> static U high_word(U id, uint32_t low, uint32_t high) {
    U x = id * 0x9E3779B9u + low;
    x = (x ^ x >> 16) * 0x21F0AAADu;
    x = ((x ^ high) ^ (x ^ high) >> 15) * 0x735A2D97u;
    return x ^ x >> 15;
}
static uint32_t low_word(uint32_t word, uint32_t high) { return high_word<uint32_t>(word ^ 0x6A09E667u, high, word); }

// The id with the least log(exponential) - log(mass): an exponential race, the same draw as Gumbel-max.
struct Race {
    const Row& row;
    double temperature;
    uint32_t low, high;
    float bound = INFINITY;  // nobody whose exponential / mass is above it can win
    double best = INFINITY;
    long winner = -1;

    Race(const Row& row, double temperature, uint64_t stream)
        : row(row), temperature(temperature), low(uint32_t(stream)), high(uint32_t(stream >> 32)) {}

    void enter(long id) {
        uint32_t word = high_word<uint32_t>(uint32_t(id), low, high);
        double uniform = (double(word) * 0x1p32 + low_word(word, high) + 0.5) * 0x1p-64;
        double time = std::log(-std::log1p(-std::min(uniform, 1 - 0x1p-53))) - row.distance_of(id, temperature);
        if (time < best || (time == best && id < winner)) {
            best = time;
            winner = id;
            bound = float(std::exp(time)) * 1.00001f;
        }
    }
    // Sixteen ids from `first`, of these masses; an exponential is at least its uniform.
    void enter(long first, v16 mass) {
        u16v ids = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        u16v words = high_word<u16v>(ids + uint32_t(first), low, high);
        v16 least = __builtin_convertvector(words, v16) * 0x1p-32f;
        i16v may = (least < mass * bound) & (mass > 0);
#if defined(__AVX512F__)
        __mmask16 any = _mm512_movepi32_mask((__m512i)may);
        for (; any; any &= any - 1) enter(first + __builtin_ctz(any));
#else
        for (int i = 0; i < 16; i++)
            if (may[i]) enter(first + i);
#endif
    }
};

// --- the nucleus ------------------------------------------------------------------------------------------------------

// Mass by distance from the top: bin b holds the tokens at b / BINS_A_NAT nats and a little more.
struct Histogram {
    std::vector<double> mass;

    explicit Histogram(bool used) : mass(used ? BINS : 0) {}
    v16 tail{};  // what goes to the last bin

    static i16v bins(v16 d) {
        v16 at = d * -BINS_A_NAT, last = splat(BINS - 1);
        return __builtin_convertvector(at < last ? at : last, i16v);
    }
    void add(v16 e, v16 d) {
        if (!any(d * -BINS_A_NAT < splat(BINS - 1))) {
            tail += e;
            return;
        }
        float masses[16];
        int32_t at[16];
        i16v all = bins(d);
        store(masses, e);
        std::memcpy(at, &all, sizeof at);
        for (int i = 0; i < 16; i++) mass[at[i]] += masses[i];
    }
    void close() { mass[BINS - 1] += sum(tail); }
};

// The least logit of the nucleus: a token is kept if the mass of strictly more probable ones is at most top_p.
static float cut_of(const Row& row, const Histogram& histogram, double total, const Policy& policy) {
    double most = policy.top_p * total, before = 0;
    int crossing = 0;
    while (crossing < BINS && before + histogram.mass[crossing] <= most) before += histogram.mass[crossing++];
    if (crossing == BINS) return -INFINITY;
    float inverse = policy.inverse_temperature();
    std::vector<float> candidates;
    for (long i = 0; i < row.size; i += 16) {
        i16v in = Histogram::bins(row.distance(i, inverse)) == crossing;
        if (any(in))
            for (long j = 0; j < std::min(16L, row.size - i); j++)
                if (in[j]) candidates.push_back(row.z[i + j]);
    }
    std::sort(candidates.begin(), candidates.end(), std::greater<float>());
    float cut = INFINITY;
    for (size_t i = 0; i < candidates.size() && before <= most;) {
        cut = candidates[i];
        for (; i < candidates.size() && candidates[i] == cut; i++)
            before += std::exp((double(cut) - double(row.top)) / policy.temperature);
    }
    return cut;
}

// --- one row ----------------------------------------------------------------------------------------------------------

struct Task {
    Policy policy;
    bool draw, measure;
};

struct Outcome {
    Sums p, q;
    double whole = 0;  // mass of q's tokens and of those that it leaves out, in units of the top's
    float cut = -INFINITY;
    long drawn = -1;
};

static Outcome go_over(const Row& row, const Task& task, uint64_t stream) {
    const Policy& policy = task.policy;
    float inverse = policy.inverse_temperature();
    bool plain = policy.plain() || policy.greedy(), draw_now = task.draw && !policy.greedy() && !policy.truncates();
    Outcome out;
    Race race(row, policy.temperature, stream);
    bool truncates = policy.truncates() && !policy.greedy();
    Histogram histogram(truncates);
    for (long block = 0; block < row.size; block += BLOCK) {
        for (long i = block; i < std::min(row.size, block + BLOCK); i += 16) {
            v16 d = row.distance(i), e = exp_negative(d);
            if (task.measure) out.p.add(e, d);
            if (!plain) {
                if (inverse != 1.0f) {
                    d = row.distance(i, inverse);
                    e = exp_negative(d);
                }
                out.q.add(e, d);
                if (truncates) histogram.add(e, d);
            }
            if (draw_now) race.enter(i, e);
        }
        out.p.close_block();
        out.q.close_block();
    }
    if (policy.plain()) out.q = out.p;
    out.whole = out.q.mass();
    if (truncates) {
        histogram.close();
        out.cut = cut_of(row, histogram, out.q.mass(), policy);
        out.q = Sums();
        for (long block = 0; block < row.size; block += BLOCK) {
            for (long i = block; i < std::min(row.size, block + BLOCK); i += 16) {
                v16 d = row.distance(i, inverse);
                v16 e = row.at(i) >= out.cut ? exp_negative(d) : v16{};
                out.q.add(e, d);
                if (task.draw) race.enter(i, e);
            }
            out.q.close_block();
        }
    }
    out.drawn = policy.greedy() ? row.argmax : race.winner;
    return out;
}

static void measure_row(Row& row, const Task& task, uint64_t stream, int64_t* token, float* four) {
    const Policy& policy = task.policy;
    row.find_top();
    if (std::isnan(row.top)) {
        if (task.draw) *token = 0;
        for (int i = 0; i < 4; i++) four[i] = NAN;
        return;
    }
    if (policy.greedy()) row.find_argmax();
    Outcome out = go_over(row, task, stream);
    if (task.draw) *token = out.drawn;
    if (!task.measure) {
        std::fill(four, four + 4, 0.0f);
        return;
    }
    four[0] = float(row.distance_of(*token, 1) - out.p.log_mass());
    four[1] = float(out.p.entropy());
    if (policy.greedy()) {
        four[2] = *token == row.argmax ? 0.0f : -INFINITY;
        four[3] = 0;
    } else {
        bool kept = row.z[*token] >= out.cut;
        four[2] = kept ? float(row.distance_of(*token, policy.temperature) - out.q.log_mass()) : -INFINITY;
        four[3] = float(out.q.entropy());
    }
}

// --- diagnostics ------------------------------------------------------------------------------------------------------

// The k largest logits, falling; of equals the lowest ids, ascending.
struct Leaders {
    long k;
    float* values;
    int64_t* ids;
    long held = 0;

    void enter(long id, float z) {
        if (held == k && !(z > values[k - 1])) return;
        long at = held < k ? held++ : k - 1;
        for (; at > 0 && z > values[at - 1]; at--) {
            values[at] = values[at - 1];
            ids[at] = ids[at - 1];
        }
        values[at] = z;
        ids[at] = id;
    }
    void enter_all(const Row& row) {
        for (long i = 0; i < row.size; i += 16) {
            if (held == k && !any(row.at(i) > splat(values[k - 1]))) continue;
            for (long j = i; j < std::min(row.size, i + 16); j++) enter(j, row.z[j]);
        }
    }
};

// Sum of f(e, x) over q's tokens, e their masses in units of the top's and x <= 0 their logits less the top's.
template <class F> static double sum_over(const Row& row, float cut, float inverse, F f) {
    double total = 0;
    for (long block = 0; block < row.size; block += BLOCK) {
        v16 lanes{};
        for (long i = block; i < std::min(row.size, block + BLOCK); i += 16) {
            v16 z = row.at(i), e = z >= cut ? exp_negative(row.distance(i, inverse)) : v16{};
            lanes += f(e, larger(z - row.top, splat(-1e15f)));  // a banned token's mass is 0, and 0 * inf were none
        }
        total += sum(lanes);
    }
    return total;
}

// log of the sum of e**z; kept mass, collision probability, mean and variance of the logits, only if `of_q`.
static void diagnose_row(Row& row, const Policy& policy, bool of_q, double* five) {
    row.find_top();
    if (std::isnan(row.top)) {
        std::fill(five, five + 5, NAN);
        return;
    }
    Outcome out = go_over(row, Task{of_q ? policy : Policy{1, 1}, false, true}, 0);
    five[0] = double(row.top) + out.p.log_mass();
    if (!of_q) return;
    if (policy.greedy()) {
        double all_on_the_top[] = {1, 1, double(row.top), 0};
        std::copy(all_on_the_top, all_on_the_top + 4, five + 1);
        return;
    }
    double mass = out.q.mass();
    float inverse = policy.inverse_temperature();
    double mean = sum_over(row, out.cut, inverse, [](v16 e, v16 x) { return e * x; }) / mass;
    float center = float(mean);
    five[1] = std::min(1.0, mass / out.whole);
    five[2] = sum_over(row, out.cut, inverse, [](v16 e, v16) { return e * e; }) / (mass * mass);
    five[3] = double(row.top) + mean;
    five[4] = sum_over(row, out.cut, inverse, [=](v16 e, v16 x) { return e * (x - center) * (x - center); }) / mass;
}

}  // namespace

// logits float32 [rows, size]; tokens [rows] are drawn by (row key, position) if `draw`, else given; quantities [rows, 4]:
// log p, entropy of p, log q, entropy of q, in nats, NaN where logits are not finite; zeros if not `measure`.
// Returns 1 if memory ran out, and else 0: no exception may leave a parallel region.
extern "C" int sample_rows(
    const float* logits, long rows, long size, double temperature, double top_p, const int64_t* keys,
    const int64_t* positions, int draw, int measure, int64_t* tokens, float* quantities, int threads
) {
    Task task{{temperature, top_p}, draw != 0, measure != 0};
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(| : failed)
    for (long m = 0; m < rows; m++) {
        Row row{logits + m * size, size};
        uint64_t stream = draw ? stream_of(uint64_t(keys[m]), uint64_t(positions[m])) : 0;
        try {
            measure_row(row, task, stream, tokens + m, quantities + 4 * m);
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    }
    return failed;
}

// numbers [rows, 5] as `diagnose_row` has them, those of q if `of_q`; the k largest logits [rows, k] and their ids.
// Returns 1 if memory ran out, and else 0.
extern "C" int diagnose_rows(
    const float* logits, long rows, long size, double temperature, double top_p, int of_q, long k, double* numbers,
    float* top_values, int64_t* top_ids, int threads
) {
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(| : failed)
    for (long m = 0; m < rows; m++) {
        Row row{logits + m * size, size};
        try {
            diagnose_row(row, Policy{temperature, top_p}, of_q != 0, numbers + 5 * m);
            if (k > 0) Leaders{k, top_values + k * m, top_ids + k * m}.enter_all(row);
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    }
    return failed;
}
