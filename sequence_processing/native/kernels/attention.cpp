// Attention of single tokens over paged keys and values. Prompts are stored once and shared by their samples.
//
// A page holds PAGE tokens of every layer: keys as [kv head][width / 2][PAGE][2] (float32: [kv head][width][PAGE]), so
// that PAGE scores are summed side by side, then values as [kv head][PAGE][width]. A sequence's pages are its prompt's,
// the last of which may be part full, and then its own. A token's arithmetic is the same whether it is prefilled,
// decoded or scored.
#include <omp.h>

#include "vector.h"

namespace {

constexpr long PAGE = 16, MOST_HEADS = 7;

struct Pages {
    void* const* slabs;  // each of `slab_pages` pages of every layer
    long slab_pages, layers, layer, kv_heads, width;

    template <class T> T* keys(long page, long kv) const {
        return (T*)slabs[page / slab_pages] + (((page % slab_pages) * layers + layer) * 2 * kv_heads + kv) * PAGE * width;
    }
    template <class T> T* values(long page, long kv) const { return keys<T>(page, kv) + kv_heads * PAGE * width; }
};

#if defined(__AVX512BF16__)
typedef bf16 query_of_bf16;
static inline v16 add_scores(v16 scores, const bf16* query, const bf16* keys) {
    int32_t pair;
    std::memcpy(&pair, query, sizeof pair);
    return (v16)_mm512_dpbf16_ps((__m512)scores, (__m512bh)_mm512_loadu_si512(keys), (__m512bh)_mm512_set1_epi32(pair));
}
#else
typedef float query_of_bf16;
static inline v16 add_scores(v16 scores, const float* query, const bf16* keys) {
    u16v pairs;
    std::memcpy(&pairs, keys, sizeof pairs);
    return scores + (v16)(pairs << 16) * query[0] + (v16)(pairs & 0xFFFF0000u) * query[1];
}
#endif
static inline v16 add_scores(v16 scores, const float* query, const float* keys) {
    // float32 keys stand as [width][PAGE]: no pairing is needed.
    return scores + load(keys) * query[0] + load(keys + PAGE) * query[1];
}
template <class T> struct query_of { typedef float type; };
template <> struct query_of<bf16> { typedef query_of_bf16 type; };

static inline void put_key(float x, float* page, long i, long slot) { page[i * PAGE + slot] = x; }
static inline void put_key(float x, bf16* page, long i, long slot) {
    narrow(x, page + (i / 2) * 2 * PAGE + 2 * slot + i % 2);
}

template <int HEADS, class Q, class T>
static void score_page(const Q* queries, const T* keys, long width, float* scores, long room) {
    v16 s[HEADS] = {};
    for (long i = 0; i < width; i += 2)
#pragma GCC unroll 8
        for (int h = 0; h < HEADS; h++) s[h] = add_scores(s[h], queries + h * width + i, keys + i * PAGE);
#pragma GCC unroll 8
    for (int h = 0; h < HEADS; h++) store(scores + h * room, s[h]);
}

// out[h][i] += sum over the page's `count` tokens of weights[h][token] * values[token][i], for VECTORS * 16 of i.
template <int HEADS, int VECTORS, class T>
static void add_values(const float* weights, long room, const T* values, long count, long width, float* out) {
    v16 a[HEADS][VECTORS];
#pragma GCC unroll 8
    for (int h = 0; h < HEADS; h++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) a[h][v] = load(out + h * width + 16 * v);
    for (long t = 0; t < count; t++) {
        v16 value[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) value[v] = load(values + t * width + 16 * v);
#pragma GCC unroll 8
        for (int h = 0; h < HEADS; h++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) a[h][v] += value[v] * weights[h * room + t];
    }
#pragma GCC unroll 8
    for (int h = 0; h < HEADS; h++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(out + h * width + 16 * v, a[h][v]);
}

struct Keys {
    const int32_t* table;
    long prefix, own;  // keys in the prompt's pages, and in its own

    long prefix_pages() const { return (prefix + PAGE - 1) / PAGE; }
    long pages() const { return prefix_pages() + (own + PAGE - 1) / PAGE; }
    long in_page(long p) const {
        return p < prefix_pages() ? std::min(PAGE, prefix - p * PAGE)
                                  : std::min(PAGE, own - (p - prefix_pages()) * PAGE);
    }
};

// HEADS query heads that share one kv head, for one token.
template <int HEADS, class T>
static void attend(const float* q, float* out, const Pages& pages, long kv, const Keys& keys, float scale, float* work) {
    typedef typename query_of<T>::type Q;
    long width = pages.width, room = keys.pages() * PAGE;
    float* scores = work;
    Q* queries = (Q*)(work + HEADS * room);
    for (long i = 0; i < HEADS * width; i++) {
        if (sizeof(T) != sizeof(float))
            put_rounded(q[i], queries + i);
        else
            narrow(q[i], queries + i);
    }
    for (long p = 0; p < keys.pages(); p++)
        score_page<HEADS>(queries, pages.keys<T>(keys.table[p], kv), width, scores + p * PAGE, room);
    float total[HEADS];
    for (int h = 0; h < HEADS; h++) {
        float* s = scores + h * room;
        for (long p = 0; p < keys.pages(); p++)
            for (long t = keys.in_page(p); t < PAGE; t++) s[p * PAGE + t] = -INFINITY;
        v16 top = splat(-INFINITY), all{};
        for (long i = 0; i < room; i += 16) top = larger(load(s + i), top);
        v16 shift = splat(largest(top));
        for (long i = 0; i < room; i += 16) {
            v16 e = exp_negative((load(s + i) - shift) * scale);
            store(s + i, e);
            all += e;
        }
        total[h] = sum(all);
    }
    std::memset(out, 0, HEADS * width * sizeof(float));
    for (long p = 0; p < keys.pages(); p++) {
        const T* values = pages.values<T>(keys.table[p], kv);
        const float* weights = scores + p * PAGE;
        long count = keys.in_page(p), i = 0;
        for (; i + 64 <= width; i += 64) add_values<HEADS, 4>(weights, room, values + i, count, width, out + i);
        for (; i + 16 <= width; i += 16) add_values<HEADS, 1>(weights, room, values + i, count, width, out + i);
        for (; i < width; i++)
            for (int h = 0; h < HEADS; h++)
                for (long t = 0; t < count; t++)
                    out[h * width + i] += weights[h * room + t] * widen(values[t * width + i]);
    }
    for (int h = 0; h < HEADS; h++)
        for (long i = 0; i < width; i++) out[h * width + i] /= total[h];
}

template <class T>
static void attend_group(
    const float* q, float* out, const Pages& pages, long kv, const Keys& keys, long heads, float scale, float* work
) {
    long parts = (heads + MOST_HEADS - 1) / MOST_HEADS, size = (heads + parts - 1) / parts;
    for (long h = 0; h < heads; h += size) {
        const float* from = q + h * pages.width;
        float* to = out + h * pages.width;
        switch (std::min(size, heads - h)) {
            case 1: attend<1, T>(from, to, pages, kv, keys, scale, work); break;
            case 2: attend<2, T>(from, to, pages, kv, keys, scale, work); break;
            case 3: attend<3, T>(from, to, pages, kv, keys, scale, work); break;
            case 4: attend<4, T>(from, to, pages, kv, keys, scale, work); break;
            case 5: attend<5, T>(from, to, pages, kv, keys, scale, work); break;
            case 6: attend<6, T>(from, to, pages, kv, keys, scale, work); break;
            case 7: attend<7, T>(from, to, pages, kv, keys, scale, work); break;
        }
    }
}

template <class T> static void put_token(const float* k, const float* v, const Pages& pages, long slot) {
    for (long kv = 0; kv < pages.kv_heads; kv++) {
        T *keys = pages.keys<T>(slot / PAGE, kv), *values = pages.values<T>(slot / PAGE, kv) + slot % PAGE * pages.width;
        for (long i = 0; i < pages.width; i++) {
            put_key(k[kv * pages.width + i], keys, i, slot % PAGE);
            narrow(v[kv * pages.width + i], values + i);
        }
    }
}

}  // namespace

// Stores key and value of each token, k and v float32 [rows, stride], at its slot (page * PAGE + place).
extern "C" void put_tokens(
    const float* k, const float* v, void* const* slabs, long slab_pages, long layers, long layer, long kv_heads,
    long width, const int64_t* slots, long rows, long stride, int half, int threads
) {
    Pages pages{slabs, slab_pages, layers, layer, kv_heads, width};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long m = 0; m < rows; m++) {
        if (half)
            put_token<bf16>(k + m * stride, v + m * stride, pages, slots[m]);
        else
            put_token<float>(k + m * stride, v + m * stride, pages, slots[m]);
    }
}

// q float32 [rows, stride] with `heads` heads for each kv head, out [rows, kv_heads * heads * width]. Token m sees
// prefix[m] keys in the first pages of its sequence's table [sequences, table_width], then own[m] keys in the next.
// work has room for MOST_HEADS * (PAGE * table_width + width) floats a thread.
extern "C" void attention(
    const float* q, float* out, void* const* slabs, long slab_pages, long layers, long layer, long kv_heads, long width,
    const int32_t* tables, long table_width, const int64_t* sequences, const int64_t* prefix, const int64_t* own,
    long rows, long stride, long heads, float scale, float* work, int half, int threads
) {
    Pages pages{slabs, slab_pages, layers, layer, kv_heads, width};
    long room = MOST_HEADS * (PAGE * table_width + width);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
    for (long i = 0; i < rows * kv_heads; i++) {
        long m = i / kv_heads, kv = i % kv_heads, group = heads * width;
        Keys keys{tables + sequences[m] * table_width, prefix[m], own[m]};
        const float* from = q + m * stride + kv * group;
        float* to = out + i * group;
        float* mine = work + omp_get_thread_num() * room;
        if (half)
            attend_group<bf16>(from, to, pages, kv, keys, heads, scale, mine);
        else
            attend_group<float>(from, to, pages, kv, keys, heads, scale, mine);
    }
}
