// Scores of items made from vectors: what they promise below every node of a prefix index (product_sums), and the scores
// themselves (add_products).
//
// A score is the product of a user's query with an item's vector. Leaves are taken in their order, some at a time; their
// scores lie with users side by side, so that one instruction serves as many users as a vector register holds, stay in the
// first cache, and are summed there. No matrix of all scores is made. A product is summed channel by channel and a node's sum
// leaf by leaf, whoever else is in the batch and whichever thread does it.
//
// Leaves that are forbidden, to a segment of users or to one user, have the score -inf.

// Sums keep their order here, whatever the flags say.
#if defined(__clang__)
#pragma clang fp reassociate(off)
#else
#pragma GCC optimize("no-associative-math")
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "share.h"

namespace {

// Floats of a register, and leaves whose sums for 4, 2 and 1 registers of users fit into all registers together.
#if defined(__AVX512F__)
constexpr int lanes = 16, tile_of_4 = 6, tile_of_2 = 12, tile_of_1 = 24;
#elif defined(__AVX2__)
constexpr int lanes = 8, tile_of_4 = 3, tile_of_2 = 6, tile_of_1 = 12;
#else
constexpr int lanes = 4, tile_of_4 = 6, tile_of_2 = 12, tile_of_1 = 24;
#endif
constexpr int64_t together = 96;  // leaves; with 64 users 24 KB
constexpr float lowest = std::numeric_limits<float>::lowest();

typedef float Register __attribute__((vector_size(4 * lanes)));

// exp of a number that is 0 at most, by 2^n e^r, |r| <= ln 2 / 2, and a polynomial of degree 6; 0 from 87 below on.
inline float mass(float below) {
    const float x = std::max(below, -87.0f), n = std::nearbyint(x * 1.44269504f);
    float r = std::fma(n, -0.693359375f, x);
    r = std::fma(n, 2.12194440e-4f, r);
    float sum = std::fma(1.9875691500e-4f, r, 1.3981999507e-3f);
    sum = std::fma(sum, r, 8.3334519073e-3f);
    sum = std::fma(sum, r, 4.1665795894e-2f);
    sum = std::fma(sum, r, 1.6666665459e-1f);
    sum = std::fma(sum, r, 5.0000001201e-1f);
    sum = std::fma(sum, r * r, r + 1.0f);
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    const float found = below < -87.0f ? 0.0f : sum * power;
    return below == below ? found : below;  // what is no number stays none
}

struct Rules {
    const uint8_t* alive;    // [segments, leaves], or null
    const int64_t* segment;  // of each user, or null: all in the first
    const int64_t* closed_leaf;
    const int64_t* closed_user;  // pairs in the order of their leaves
    int64_t closed, leaves;
};

struct Sums {
    const float* vectors;  // [leaves, width]
    int64_t width;
    const int64_t* first;  // [ranges + 1]
    int64_t ranges;
    float* highest;  // [users, ranges]
    float* total;    // [users, ranges]
};

// Scores of some leaves, [leaves, R * lanes], from queries [width, R * lanes]; added to what is there if so asked.
template <int R, int Tile>
void scores(const float* query, const float* vectors, int64_t width, int64_t leaves, bool add, float* out) {
    int64_t leaf = 0;
    const auto some = [&](auto size) {
        constexpr int count = decltype(size)::value;
        Register sum[count][R] = {};
        const float* row = vectors + leaf * width;
        if (add)
            for (int n = 0; n < count; ++n)
                for (int r = 0; r < R; ++r) std::memcpy(&sum[n][r], out + ((leaf + n) * R + r) * lanes, sizeof sum[n][r]);
        for (int64_t d = 0; d < width; ++d) {
            Register asked[R];
            for (int r = 0; r < R; ++r) std::memcpy(&asked[r], query + (d * R + r) * lanes, sizeof asked[r]);
            for (int n = 0; n < count; ++n) {
                const float x = row[n * width + d];
                for (int r = 0; r < R; ++r) sum[n][r] += asked[r] * x;
            }
        }
        for (int n = 0; n < count; ++n)
            for (int r = 0; r < R; ++r) std::memcpy(out + ((leaf + n) * R + r) * lanes, &sum[n][r], sizeof sum[n][r]);
        leaf += count;
    };
    while (leaf + Tile <= leaves) some(std::integral_constant<int, Tile>{});
    while (leaf < leaves) some(std::integral_constant<int, 1>{});
}

// Writes -inf into the scores [end - begin, side] of users from first_user on.
void forbid(const Rules& rules, int64_t first_user, int64_t users, int64_t begin, int64_t end, int64_t side, int64_t& pair,
            float* score) {
    if (rules.alive != nullptr)
        for (int64_t user = 0; user < users; ++user) {
            const int64_t segment = rules.segment == nullptr ? 0 : rules.segment[first_user + user];
            const uint8_t* alive = rules.alive + segment * rules.leaves;
            for (int64_t leaf = begin; leaf < end; ++leaf)
                if (!alive[leaf]) score[(leaf - begin) * side + user] = -INFINITY;
        }
    for (; pair < rules.closed && rules.closed_leaf[pair] < end; ++pair) {
        const int64_t user = rules.closed_user[pair] - first_user;
        if (user >= 0 && user < users) score[(rules.closed_leaf[pair] - begin) * side + user] = -INFINITY;
    }
}

// The ranges [begin, end) for up to R * lanes users.
template <int R, int Tile>
void sum_ranges(const Sums& sums, const Rules& rules, const float* query, int64_t first_user, int64_t users, int64_t begin,
                int64_t end) {
    constexpr int64_t side = R * lanes;
    std::vector<float> held(together * side);
    float most[side], sum[side], now[side];
    const auto afresh = [&] {
        std::fill(most, most + side, lowest);
        std::fill(sum, sum + side, 0.0f);
    };
    afresh();
    int64_t range = begin, at = sums.first[begin];
    int64_t pair = std::lower_bound(rules.closed_leaf, rules.closed_leaf + rules.closed, at) - rules.closed_leaf;
    while (at < sums.first[end]) {
        // the same leaves together whichever range a thread begins with
        const int64_t stop = std::min((at / together + 1) * together, sums.first[end]);
        scores<R, Tile>(query, sums.vectors + at * sums.width, sums.width, stop - at, false, held.data());
        forbid(rules, first_user, users, at, stop, side, pair, held.data());
        for (int64_t leaf = at; leaf < stop;) {
            const int64_t upto = std::min(stop, sums.first[range + 1]);
            const float* __restrict score = held.data() + (leaf - at) * side;
            std::memcpy(now, most, sizeof now);
            for (int64_t n = 0; n < upto - leaf; ++n)
                for (int64_t u = 0; u < side; ++u) now[u] = score[n * side + u] > now[u] ? score[n * side + u] : now[u];
            for (int64_t u = 0; u < side; ++u) sum[u] *= mass(most[u] - now[u]);
            for (int64_t n = 0; n < upto - leaf; ++n)
                for (int64_t u = 0; u < side; ++u) sum[u] += mass(score[n * side + u] - now[u]);
            std::memcpy(most, now, sizeof most);
            leaf = upto;
            if (leaf < sums.first[range + 1]) continue;
            for (int64_t u = 0; u < users; ++u) {
                sums.highest[(first_user + u) * sums.ranges + range] = most[u];
                sums.total[(first_user + u) * sums.ranges + range] = sum[u];
            }
            afresh();
            ++range;
        }
        at = stop;
    }
}

// Queries of some users side by side, [width, side], the last ones zero.
std::vector<float> side_by_side(const float* queries, int64_t users, int64_t width, int64_t side) {
    std::vector<float> query(width * side, 0.0f);
    for (int64_t user = 0; user < users; ++user)
        for (int64_t d = 0; d < width; ++d) query[d * side + user] = queries[user * width + d];
    return query;
}

// Registers for so many users: 4 at most.
inline int64_t registers_for(int64_t users) { return users > 2 * lanes ? 4 : users > lanes ? 2 : 1; }

// Products that are summed: of each, queries [users, width] and vectors [items, width].
struct Terms {
    const float* const* queries;
    const float* const* vectors;
    const int64_t* width;
    int64_t count;
};

// Adds the summed products of items [begin, end) to the rows of up to R * lanes users.
template <int R, int Tile>
void add_scores(const Terms& terms, const std::vector<std::vector<float>>& queries, int64_t users, int64_t begin, int64_t end,
                int64_t items, float* out) {
    constexpr int64_t side = R * lanes;
    std::vector<float> held(together * side);
    for (int64_t at = begin; at < end; at += together) {
        const int64_t count = std::min(together, end - at);
        for (int64_t term = 0; term < terms.count; ++term)
            scores<R, Tile>(queries[term].data(), terms.vectors[term] + at * terms.width[term], terms.width[term], count,
                            term > 0, held.data());
        for (int64_t user = 0; user < users; ++user) {
            float* __restrict row = out + user * items + at;
            const float* __restrict score = held.data() + user;
            for (int64_t n = 0; n < count; ++n) row[n] += score[n * side];
        }
    }
}

}  // namespace

extern "C" void add_products(const float* const* queries, const float* const* vectors, const int64_t* width, int64_t count,
                             int64_t users, int64_t items, int64_t threads, float* out) {
    const Terms terms{queries, vectors, width, count};
    for (int64_t from = 0; from < users; from += 4 * lanes) {
        const int64_t some = std::min<int64_t>(users - from, 4 * lanes), registers = registers_for(some);
        std::vector<std::vector<float>> query;
        for (int64_t term = 0; term < count; ++term)
            query.push_back(side_by_side(queries[term] + from * width[term], some, width[term], registers * lanes));
        float* rows = out + from * items;
        share(items, threads, [&](int64_t begin, int64_t end) {
            if (registers == 4) add_scores<4, tile_of_4>(terms, query, some, begin, end, items, rows);
            else if (registers == 2) add_scores<2, tile_of_2>(terms, query, some, begin, end, items, rows);
            else add_scores<1, tile_of_1>(terms, query, some, begin, end, items, rows);
        });
    }
}

extern "C" void product_sums(const float* queries, int64_t users, const float* vectors, int64_t width, const int64_t* first,
                             int64_t ranges, const uint8_t* alive, const int64_t* segment, const int64_t* closed_leaf,
                             const int64_t* closed_user, int64_t closed, int64_t threads, float* highest, float* total) {
    const Sums sums{vectors, width, first, ranges, highest, total};
    const Rules rules{alive, segment, closed_leaf, closed_user, closed, first[ranges]};
    for (int64_t from = 0; from < users; from += 4 * lanes) {
        const int64_t count = std::min<int64_t>(users - from, 4 * lanes), registers = registers_for(count);
        const std::vector<float> query = side_by_side(queries + from * width, count, width, registers * lanes);
        share(ranges, threads, [&](int64_t begin, int64_t end) {
            if (registers == 4) sum_ranges<4, tile_of_4>(sums, rules, query.data(), from, count, begin, end);
            else if (registers == 2) sum_ranges<2, tile_of_2>(sums, rules, query.data(), from, count, begin, end);
            else sum_ranges<1, tile_of_1>(sums, rules, query.data(), from, count, begin, end);
        });
    }
}
