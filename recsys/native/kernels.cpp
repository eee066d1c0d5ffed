// Small kernels, each with a PyTorch or NumPy form that gives the same result: first those of the decoder, then those over
// columns of numbers, for preparing data.
//
// prefix_attention: attention of beams over their own prefixes, reading each ancestor's row where it was written.
// Beam w of user b attends to one row per step: row ancestry[t][b, w] of the block that step t wrote (or row w for the
// newest block, or row 0 where a step wrote one row per user). Nothing is gathered, copied or masked.
//
// Blocks are the outputs of a fused query-key-value projection, [users, widths[t], 3 * heads * channels].
//
// quantise_rows, dequantise: what surrounds an int8 matrix product: float rows to int8 with one scale per row, and int32
// sums back to float in their own memory.
//
// gate_rows: the middle of a gated feed-forward layer, silu(gate) * value, row by row: what an element becomes depends on
// its own row alone, neither on how many rows there are nor on which thread computes it.
//
// norm_rows: rows divided by their root mean square, times a weight per channel.
//
// exp_sums: of every row the highest value, and sums of exp(value - highest) over neighbours. Scores are used up.
//
// delta_packed: whole numbers as Parquet's DELTA_BINARY_PACKED. insert_rows, compress_rows, gather_codes, rank_sorted,
// count_codes, count_windows: a column made of another one. find_repeats, count_open, mark_kept, mark_late: which rows of some users are
// kept. gap_codes, split_counts,
// distinct_targets: histories. same_pairs, gap_sessions, run_starts: neighbours. take_events, label_events: what each event of a run
// of users goes through, in one pass each. recsys/native/columns.py says what each is given.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "share.h"

namespace {

struct Task {
    const float* const* blocks;
    const int64_t* widths;
    const int64_t* const* ancestry;
    const float* bias;
    int64_t steps, beams, heads, channels;
    float scale;
    float* out;
};

void run(const Task& task, int64_t first_user, int64_t last_user) {
    const int64_t inner = task.heads * task.channels, row = 3 * inner;
    const int64_t newest = task.steps - 1;
    std::vector<const float*> rows(task.steps);
    std::vector<float> weights(task.steps);
    for (int64_t user = first_user; user < last_user; ++user) {
        for (int64_t beam = 0; beam < task.beams; ++beam) {
            for (int64_t t = 0; t < task.steps; ++t) {
                int64_t column = t == newest ? beam : task.ancestry[t][user * task.beams + beam];
                if (task.widths[t] == 1) column = 0;
                rows[t] = task.blocks[t] + (user * task.widths[t] + column) * row;
            }
            const float* query = rows[newest];
            float* result = task.out + (user * task.beams + beam) * inner;
            for (int64_t head = 0; head < task.heads; ++head) {
                const float* q = query + head * task.channels;
                float highest = -INFINITY;
                for (int64_t t = 0; t < task.steps; ++t) {
                    const float* key = rows[t] + inner + head * task.channels;
                    float dot = 0.0f;
                    for (int64_t c = 0; c < task.channels; ++c) dot += q[c] * key[c];
                    weights[t] = dot * task.scale + (task.bias ? task.bias[head * task.steps + t] : 0.0f);
                    highest = std::max(highest, weights[t]);
                }
                float total = 0.0f;
                for (int64_t t = 0; t < task.steps; ++t) total += weights[t] = std::exp(weights[t] - highest);
                float* mixed = result + head * task.channels;
                std::fill(mixed, mixed + task.channels, 0.0f);
                for (int64_t t = 0; t < task.steps; ++t) {
                    const float* value = rows[t] + 2 * inner + head * task.channels;
                    const float weight = weights[t] / total;
                    for (int64_t c = 0; c < task.channels; ++c) mixed[c] += weight * value[c];
                }
            }
        }
    }
}

// exp by 2^n e^r, |r| <= ln 2 / 2, and a polynomial of degree 6; relative error below 2e-7. A loop over it becomes vector
// instructions. NaN is not kept.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::nearbyint(x * 1.44269504f);
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
    return sum * power;
}

void gate_row(const float* __restrict up, int64_t channels, float* __restrict out) {
    for (int64_t c = 0; c < channels; ++c) out[c] = up[c] / (1.0f + exponential(-up[c])) * up[channels + c];
}

void norm_row(const float* __restrict x, const float* __restrict weight, int64_t channels, float eps, float* __restrict out) {
    float squares = 0.0f;
    for (int64_t c = 0; c < channels; ++c) squares += x[c] * x[c];
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(channels) + eps);
    for (int64_t c = 0; c < channels; ++c) out[c] = x[c] * factor * weight[c];
}

// The highest number of a row; what is no number is passed over. One running maximum per lane, as a single one, whose order
// the compiler has to keep, would be a chain of comparisons each waiting for the last.
float highest_of(const float* __restrict x, int64_t columns) {
    constexpr int64_t lanes = 64;
    float most[lanes];
    std::fill(most, most + lanes, std::numeric_limits<float>::lowest());
    int64_t c = 0;
    for (; c + lanes <= columns; c += lanes)
        for (int64_t n = 0; n < lanes; ++n) most[n] = x[c + n] > most[n] ? x[c + n] : most[n];
    for (; c < columns; ++c) most[0] = x[c] > most[0] ? x[c] : most[0];
    return *std::max_element(most, most + lanes);
}

// What is no number stays none; what is 87 and more below the highest counts 0.
void exp_row(float* __restrict x, int64_t columns, float highest) {
    for (int64_t c = 0; c < columns; ++c) {
        const float below = x[c] - highest;
        const float mass = below < -87.0f ? 0.0f : exponential(below);
        x[c] = below == below ? mass : below;
    }
}

// delta_packed: whole numbers as Parquet's DELTA_BINARY_PACKED, blocks of 128 differences in 4 miniblocks.

inline uint8_t* put_varint(uint8_t* out, uint64_t number) {
    for (; number > 0x7F; number >>= 7) *out++ = static_cast<uint8_t>(number | 0x80);
    *out++ = static_cast<uint8_t>(number);
    return out;
}

inline uint64_t zigzag(int64_t number) { return static_cast<uint64_t>(number) << 1 ^ static_cast<uint64_t>(number >> 63); }

inline int bit_length(uint64_t number) { return number ? 64 - __builtin_clzll(number) : 0; }

// 32 numbers of so many bits each, the lowest first: whole words of 32 bits. Held has room for a number behind 31 bits.
template <typename Held, typename Unsigned>
uint8_t* pack_bits(const Unsigned* values, int width, uint8_t* out) {
    Held held = 0;
    int bits = 0;
    for (int n = 0; n < 32; ++n) {
        held |= static_cast<Held>(values[n]) << bits;
        bits += width;
        for (; bits >= 32; bits -= 32, held >>= 32, out += 4) {
            const uint32_t low = static_cast<uint32_t>(held);
            std::memcpy(out, &low, 4);
        }
    }
    return out;
}

// Values that lie in several parts, one behind the other.
template <typename Given>
struct Parts {
    const void* const* parts;
    const int64_t* sizes;
    int64_t part = 0, done = 0;  // of that part
    Given room[129] = {};  // the value before, and values of two parts

    // The next values, in a row, the one before them in front: where they lie, or copied together where a part ends.
    const Given* next(int64_t count) {
        if (done && done + count <= sizes[part]) {
            done += count;
            return static_cast<const Given*>(parts[part]) + done - count;
        }
        if (done) room[0] = static_cast<const Given*>(parts[part])[done - 1];
        for (int64_t n = 1; n <= count; ++n) {
            while (done == sizes[part]) ++part, done = 0;
            room[n] = static_cast<const Given*>(parts[part])[done++];
        }
        return room + 1;
    }
};

template <typename Given, typename Signed, typename Unsigned>
int64_t delta_pack(const void* const* parts, const int64_t* sizes, int64_t count, uint8_t* out) {
    uint8_t* const begin = out;
    Parts<Given> left{parts, sizes};
    out = put_varint(put_varint(put_varint(out, 128), 4), count);
    out = put_varint(out, count ? zigzag(*left.next(1)) : 0);
    Unsigned beyond[128];
    for (int64_t first = 1; first < count; first += 128) {
        const int64_t here = std::min<int64_t>(128, count - first);
        const Given* const values = left.next(here);
        Signed least = std::numeric_limits<Signed>::max();
        for (int64_t n = 0; n < here; ++n) {
            beyond[n] = static_cast<Unsigned>(values[n]) - static_cast<Unsigned>(values[n - 1]);
            least = std::min(least, static_cast<Signed>(beyond[n]));
        }
        for (int64_t n = 0; n < here; ++n) beyond[n] -= static_cast<Unsigned>(least);
        std::fill(beyond + here, beyond + 128, Unsigned{0});
        out = put_varint(out, zigzag(least));
        uint8_t* const widths = out;
        out += 4;
        for (int64_t small = 0; small < 4; ++small) {
            Unsigned any = 0;
            for (int n = 0; n < 32; ++n) any |= beyond[32 * small + n];
            widths[small] = static_cast<uint8_t>(bit_length(any));
            const Unsigned* const part = beyond + 32 * small;
            if (any == 1) {  // most numbers that ascend are the one before, or the next
                uint32_t word = 0;
                for (int n = 0; n < 32; ++n) word |= static_cast<uint32_t>(part[n]) << n;
                std::memcpy(out, &word, 4);
                out += 4;
                continue;
            }
            if (any) out = widths[small] > 32 ? pack_bits<unsigned __int128>(part, widths[small], out)
                                              : pack_bits<uint64_t>(part, widths[small], out);
        }
    }
    return out - begin;
}

// Rows of one size: copies are moves of whole words, whatever the type is.
template <typename Word>
void insert(const Word* old, int64_t count, const int64_t* at, const Word* fresh, int64_t added, Word* out) {
    int64_t done = 0;
    for (int64_t n = 0; n < added; ++n) {
        out = std::copy(old + done, old + at[n], out);
        done = at[n];
        *out++ = fresh[n];
    }
    std::copy(old + done, old + count, out);
}

template <typename Word>
int64_t compress(const Word* values, const uint8_t* keep, int64_t count, Word* out) {
    int64_t kept = 0;
    for (int64_t n = 0; n < count; ++n) {  // a branch would be guessed wrongly; what is written too much is written over
        out[kept] = values[n];
        kept += keep[n];
    }
    return kept;
}

inline uint8_t gap_code(int64_t gap_us) {
    const int64_t seconds = gap_us / 1000000;
    return static_cast<uint8_t>(seconds ? std::min(2 + 63 - __builtin_clzll(seconds), 31) : 1);
}

// The same of a gap from 0 on, below 2^52, without a branch, so that it is made of several at once.
inline int64_t gap_code_of_double(int64_t gap_us) {
    int64_t seconds = static_cast<int64_t>(static_cast<double>(gap_us) * 1e-6);  // or one beside
    const int64_t left = gap_us - seconds * 1000000;
    seconds += (left >= 1000000) - (left < 0);
    const double known = static_cast<double>(seconds);
    const int64_t exponent = (__builtin_bit_cast(int64_t, known) >> 52) - 1023;
    return seconds ? std::min<int64_t>(2 + exponent, 31) : 1;
}

// Kept rows of a run of users, under the numbers of the users and items that are kept.
template <typename Stored>
int64_t take(const int64_t* __restrict starts, int64_t users, const int32_t* __restrict item, const Stored* __restrict time,
             int64_t scale, const uint8_t* __restrict keep, const int32_t* __restrict item_number,
             int32_t* __restrict out_user, int32_t* __restrict out_item, int64_t* __restrict out_time,
             uint8_t* __restrict used) {
    int64_t kept = 0;
    int32_t number = 0;
    for (int64_t user = 0; user < users; ++user) {
        const int64_t before = kept;
        for (int64_t n = starts[user]; n < starts[user + 1]; ++n) {  // what is written too much is written over
            out_user[kept] = number;
            out_item[kept] = item_number[item[n]];
            if (time) out_time[kept] = static_cast<int64_t>(time[n]) * scale;
            kept += keep ? keep[n] : 1;
        }
        used[user] = kept > before;
        number += kept > before;
    }
    return kept;
}

// Rows whose user and item stay, and the times of those of them that are not before an instant.
template <typename Stored>
int64_t mark(const int64_t* starts, int64_t users, const int32_t* item, const uint8_t* user_stays, const uint8_t* item_stays,
             const Stored* time, int64_t since, uint8_t* keep, Stored* late, int64_t* count) {
    int64_t kept = 0, found = 0;
    for (int64_t user = 0; user < users; ++user) {
        const uint8_t stays = user_stays[user];
        for (int64_t n = starts[user]; n < starts[user + 1]; ++n) {  // what is written too much is written over
            const uint8_t both = stays & item_stays[item[n]];
            keep[n] = both;
            kept += both;
            late[found] = time[n];
            found += both & (static_cast<int64_t>(time[n]) >= since);
        }
    }
    *count = found;
    return kept;
}

// A number per item that outlives a call: what a call marks is above all that was marked before it, so that nothing is cleared.
class Marks {
  public:
    // The first of so many marks that nobody used before.
    int64_t reserved(int64_t count) {
        const int64_t first = next_;
        next_ += count;
        return first;
    }
    int64_t& of(int32_t item) {
        const size_t at = static_cast<size_t>(item);
        if (at >= met_.size()) met_.resize(2 * at + 1, -1);
        return met_[at];
    }

  private:
    std::vector<int64_t> met_;
    int64_t next_ = 0;
};

// Rows with user, item and time of an earlier row, that row, and the first one with user and time.
template <typename Stored>
int64_t repeats(const int64_t* starts, int64_t users, const int32_t* item, const Stored* time, int64_t* rows, int64_t* into,
                int64_t* ties) {
    static thread_local Marks marks;  // the latest row that was the first of its item and time
    const int64_t before = marks.reserved(users ? starts[users] : 0);
    int64_t found = 0;
    for (int64_t user = 0; user < users; ++user) {
        int64_t tie = starts[user];
        for (int64_t n = starts[user] + 1; n < starts[user + 1]; ++n) {
            if (time[n] != time[n - 1]) {
                tie = n;
                continue;
            }
            if (tie == n - 1) marks.of(item[tie]) = before + tie;
            int64_t& first = marks.of(item[n]);
            if (first < before + tie) {
                first = before + n;
                continue;
            }
            rows[found] = n;
            into[found] = first - before;
            ties[found++] = tie;
        }
    }
    return found;
}

// Items of a window, each once, in the order of their first event; returns how many.
int64_t distinct(const int32_t* items, int64_t count, Marks& marks, int64_t mark, int32_t* out) {
    int64_t found = 0;
    if (count > 32)
        for (int64_t n = 0; n < count; ++n) {
            int64_t& met = marks.of(items[n]);
            if (met == mark) continue;
            met = mark;
            out[found++] = items[n];
        }
    else
        for (int64_t n = 0; n < count; ++n)
            if (std::find(out, out + found, items[n]) == out + found) out[found++] = items[n];
    return found;
}

}  // namespace

extern "C" void prefix_attention(const float* const* blocks, const int64_t* widths, const int64_t* const* ancestry,
                                 const float* bias, int64_t users, int64_t steps, int64_t beams, int64_t heads,
                                 int64_t channels, float scale, int64_t threads, float* out) {
    const Task task{blocks, widths, ancestry, bias, steps, beams, heads, channels, scale, out};
    share(users, threads, [&task](int64_t first, int64_t last) { run(task, first, last); });
}

extern "C" void quantise_rows(const float* values, int64_t rows, int64_t columns, int8_t* quantised, float* scales) {
    for (int64_t row = 0; row < rows; ++row) {
        const float* source = values + row * columns;
        int8_t* target = quantised + row * columns;
        float highest = 0.0f;
        for (int64_t c = 0; c < columns; ++c) highest = std::max(highest, std::fabs(source[c]));
        scales[row] = highest / 127.0f;
        const float factor = highest > 0.0f ? 127.0f / highest : 0.0f;
        for (int64_t c = 0; c < columns; ++c) target[c] = static_cast<int8_t>(std::nearbyint(source[c] * factor));
    }
}

extern "C" void dequantise(int32_t* sums, int64_t rows, int64_t columns, const float* row_scales, const float* column_scales) {
    float* out = reinterpret_cast<float*>(sums);
    for (int64_t row = 0; row < rows; ++row) {
        const float scale = row_scales[row];
        for (int64_t c = 0; c < columns; ++c) {
            const int32_t sum = sums[row * columns + c];
            out[row * columns + c] = static_cast<float>(sum) * scale * column_scales[c];
        }
    }
}

extern "C" void gate_rows(const float* up, int64_t rows, int64_t channels, int64_t threads, float* out) {
    share(rows, threads, [=](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) gate_row(up + 2 * row * channels, channels, out + row * channels);
    });
}

extern "C" void norm_rows(const float* x, const float* weight, int64_t rows, int64_t channels, float eps, int64_t threads,
                          float* out) {
    share(rows, threads, [=](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            norm_row(x + row * channels, weight, channels, eps, out + row * channels);
    });
}

extern "C" void exp_sums(float* scores, int64_t rows, int64_t columns, const int64_t* first, int64_t ranges, float* highest,
                         float* sums) {
    for (int64_t row = 0; row < rows; ++row) {
        float* x = scores + row * columns;
        const float most = highest[row] = highest_of(x, columns);
        exp_row(x, columns, most);
        for (int64_t n = 0; n < ranges; ++n) {
            float sum = 0.0f;
            for (int64_t c = first[n] - first[0]; c < first[n + 1] - first[0]; ++c) sum += x[c];
            sums[row * ranges + n] = sum;
        }
    }
}

extern "C" int64_t delta_packed(const void* const* parts, const int64_t* sizes, int64_t kind, int64_t count, uint8_t* out) {
    if (kind == 0) return delta_pack<int8_t, int32_t, uint32_t>(parts, sizes, count, out);
    if (kind == 1) return delta_pack<uint8_t, int32_t, uint32_t>(parts, sizes, count, out);
    if (kind == 2) return delta_pack<int32_t, int32_t, uint32_t>(parts, sizes, count, out);
    return delta_pack<int64_t, int64_t, uint64_t>(parts, sizes, count, out);
}

extern "C" void insert_rows(const void* old, int64_t count, const int64_t* at, const void* fresh, int64_t added, int64_t size,
                            void* out) {
#define INSERT(Word) insert(static_cast<const Word*>(old), count, at, static_cast<const Word*>(fresh), added, static_cast<Word*>(out))
    if (size == 1) INSERT(uint8_t);
    if (size == 4) INSERT(uint32_t);
    if (size == 8) INSERT(uint64_t);
#undef INSERT
}

extern "C" int64_t compress_rows(const void* values, int64_t size, const uint8_t* keep, int64_t count, void* out) {
#define COMPRESS(Word) compress(static_cast<const Word*>(values), keep, count, static_cast<Word*>(out))
    return size == 1 ? COMPRESS(uint8_t) : size == 4 ? COMPRESS(uint32_t) : COMPRESS(uint64_t);
#undef COMPRESS
}

extern "C" void gather_codes(const int32_t* table, const int32_t* codes, int64_t count, int32_t* out) {
    for (int64_t n = 0; n < count; ++n) out[n] = codes[n] < 0 ? codes[n] : table[codes[n]];
}

extern "C" int64_t rank_sorted(const int32_t* codes, int64_t count, int32_t* out, uint8_t* used) {
    int32_t rank = -1, last = -1;
    for (int64_t n = 0; n < count; ++n) {
        if (codes[n] != last) {
            ++rank;
            last = codes[n];
            used[last] = 1;
        }
        out[n] = rank;
    }
    return rank + 1;
}

extern "C" void count_codes(const int32_t* codes, const uint8_t* keep, int64_t count, int64_t* counts) {
    if (keep)
        for (int64_t n = 0; n < count; ++n) counts[codes[n]] += keep[n];
    else
        for (int64_t n = 0; n < count; ++n) ++counts[codes[n]];
}

extern "C" void count_windows(const int64_t* start, const int64_t* end, int64_t users, const int32_t* item, int64_t* counts) {
    for (int64_t user = 0; user < users; ++user)
        for (int64_t n = start[user]; n < end[user]; ++n) ++counts[item[n]];
}

extern "C" int64_t count_open(const int64_t* starts, int64_t users, const int32_t* item, const uint8_t* counts,
                              const uint8_t* sure_user, const uint8_t* sure_item, int64_t first, int64_t* user_events,
                              int64_t* item_events, int32_t* open_users, int32_t* open_items) {
    int64_t open = 0;
    for (int64_t user = 0; user < users; ++user) {
        const bool sure = sure_user[user];
        int64_t own = 0;  // in a register: the compiler cannot know that item_events does not hold this user's count
        for (int64_t n = starts[user]; n < starts[user + 1]; ++n) {
            if (counts && !counts[n]) continue;
            const int32_t what = item[n];
            ++own;
            if (sure && sure_item[what]) continue;
            item_events[what] += !sure_item[what];
            open_users[open] = static_cast<int32_t>(first + user);
            open_items[open++] = what;
        }
        user_events[user] += own;
    }
    return open;
}

extern "C" int64_t mark_kept(const int64_t* starts, int64_t users, const int32_t* item, const uint8_t* user_stays,
                             const uint8_t* item_stays, uint8_t* keep) {
    int64_t kept = 0;
    for (int64_t user = 0; user < users; ++user) {
        const uint8_t stays = user_stays[user];
        for (int64_t n = starts[user]; n < starts[user + 1]; ++n) kept += keep[n] = stays & item_stays[item[n]];
    }
    return kept;
}

extern "C" int64_t mark_late(const int64_t* starts, int64_t users, const int32_t* item, const uint8_t* user_stays,
                             const uint8_t* item_stays, const void* time, int64_t size, int64_t since, uint8_t* keep, void* late,
                             int64_t* count) {
#define MARK(Stored) mark(starts, users, item, user_stays, item_stays, static_cast<const Stored*>(time), since, keep, static_cast<Stored*>(late), count)
    return size == 4 ? MARK(uint32_t) : MARK(int64_t);
#undef MARK
}

extern "C" int64_t find_repeats(const int64_t* starts, int64_t users, const int32_t* item, const void* time, int64_t size,
                                int64_t* rows, int64_t* into, int64_t* ties) {
#define REPEATS(Stored) repeats(starts, users, item, static_cast<const Stored*>(time), rows, into, ties)
    return size == 4 ? REPEATS(uint32_t) : REPEATS(int64_t);
#undef REPEATS
}

extern "C" void gap_codes(const int32_t* user, const int64_t* time, int64_t count, int64_t last_user, int64_t last_time,
                          uint8_t* out) {
    for (int64_t n = 0; n < count; ++n) {
        const bool known = user[n] == last_user && time[n] >= last_time && last_time >= 0;
        out[n] = known ? gap_code(time[n] - last_time) : 0;
        last_user = user[n];
        last_time = time[n];
    }
}

extern "C" void same_pairs(const int32_t* user, const int64_t* time, int64_t count, uint8_t* same) {
    if (count) same[0] = 0;
    for (int64_t n = 1; n < count; ++n) same[n] = (user[n] == user[n - 1]) & (time[n] == time[n - 1]);
}

extern "C" void gap_sessions(const int32_t* user, const int8_t* split, const int64_t* time, int64_t count, int64_t longest,
                             int32_t* session) {
    int32_t number = 0;
    if (count) session[0] = 0;
    for (int64_t n = 1; n < count; ++n) {
        number += (user[n] != user[n - 1]) | (split[n] != split[n - 1]) | (time[n] - time[n - 1] > longest);
        session[n] = number;
    }
}

extern "C" int64_t take_events(const int64_t* starts, int64_t users, const int32_t* item, const void* time, int64_t size,
                               int64_t scale, const uint8_t* keep, const int32_t* item_number, int32_t* out_user,
                               int32_t* out_item, int64_t* out_time, uint8_t* used) {
#define TAKE(Stored) take(starts, users, item, static_cast<const Stored*>(time), scale, keep, item_number, out_user, out_item, out_time, used)
    return size == 4 ? TAKE(uint32_t) : TAKE(int64_t);
#undef TAKE
}

// facts: events with user and time of the one before, and the least and the largest time that is not below 0. lengths: sessions
// by the bits of their number of events. Some thousand events at a time: what has no memory of the event before in vectors.
extern "C" int64_t label_events(const int32_t* __restrict user, const int64_t* __restrict time, int64_t count,
                                int64_t valid_from, int64_t test_from, int64_t longest, int64_t users,
                                int8_t* __restrict split, int32_t* __restrict session, int64_t* __restrict starts,
                                uint8_t* __restrict gap, int64_t* __restrict split_counts, int64_t* __restrict lengths,
                                int64_t* __restrict facts) {
    constexpr int64_t block = 2048;
    int64_t pause[block];
    int32_t code[block];
    uint8_t new_session[block], new_run[block];
    int64_t number = -1, run_start = 0, ties = 0, most = -1;
    uint64_t least = std::numeric_limits<int64_t>::max();  // read without a sign, what is below 0 is the largest
    for (int64_t start = 0; start < count; start += block) {
        const int64_t here = std::min(block, count - start);
        const int32_t* const who = user + start;
        const int64_t* const when = time + start;
        int8_t* const part = split + start;
        for (int64_t n = 0; n < here; ++n) {
            part[n] = static_cast<int8_t>((when[n] >= valid_from) + (when[n] >= test_from));
            least = std::min(least, static_cast<uint64_t>(when[n]));
            most = std::max(most, when[n]);
        }
        // of the block's first event, the one before lies in another block, or is none
        const bool after = start > 0 && who[-1] == who[0];
        pause[0] = after ? when[0] - when[-1] : -1;
        new_run[0] = !after || part[-1] != part[0];
        ties += after && pause[0] == 0;
        code[0] = after && when[-1] >= 0 && pause[0] >= 0;
        for (int64_t n = 1; n < here; ++n) {
            const bool same = who[n] == who[n - 1];
            pause[n] = when[n] - when[n - 1];
            new_run[n] = !same | (part[n] != part[n - 1]);
            ties += same & (pause[n] == 0);
            code[n] = same & (when[n - 1] >= 0) & (pause[n] >= 0);
        }
        for (int64_t n = 0; n < here; ++n) new_session[n] = new_run[n] | (pause[n] > longest);
        for (int64_t n = 0; n < here; ++n) gap[start + n] = static_cast<uint8_t>(code[n] ? gap_code_of_double(pause[n]) : 0);
        for (int64_t n = 0; n < here; ++n) {
            const int64_t at = start + n;
            if (new_run[n]) {
                if (at) split_counts[split[at - 1] * users + user[at - 1]] += at - run_start;
                run_start = at;
            }
            starts[number + 1] = at;  // what is no start is written over
            number += new_session[n];
            session[at] = static_cast<int32_t>(number);
        }
    }
    if (count) split_counts[split[count - 1] * users + user[count - 1]] += count - run_start;
    starts[number + 1] = count;
    int64_t single = 0;
    for (int64_t n = 0; n <= number; ++n) {
        const int64_t length = starts[n + 1] - starts[n];
        if (length == 1)
            ++single;
        else
            ++lengths[bit_length(length)];
    }
    lengths[1] += single;
    facts[0] = ties;
    facts[1] = static_cast<int64_t>(least);
    facts[2] = most;
    return number + 1;
}

// 1 where all times are whole seconds that fit four bytes. The product is exact to far less than half a second where they fit,
// and where it is not the time differs from its seconds.
extern "C" int64_t whole_seconds(const int64_t* time, int64_t count, uint32_t* seconds) {
    constexpr int64_t block = 4096, second = 1000000, limit = int64_t{1} << 32;
    for (int64_t start = 0; start < count; start += block) {  // to stop early
        int64_t wrong = 0;
        for (int64_t n = start; n < std::min(start + block, count); ++n) {
            const int64_t whole = static_cast<int64_t>(static_cast<double>(time[n]) * 1e-6 + 0.5);
            wrong |= (whole * second != time[n]) | (whole < 0) | (whole >= limit);
            seconds[n] = static_cast<uint32_t>(whole);
        }
        if (wrong) return 0;
    }
    return 1;
}

extern "C" void run_starts(const int32_t* codes, int64_t count, int64_t* starts) {
    for (int64_t n = 0; n < count; ++n)
        if (n == 0 || codes[n] != codes[n - 1]) *starts++ = n;
    *starts = count;
}

extern "C" void split_counts(const int32_t* user, const int8_t* split, int64_t count, int64_t users, int64_t* counts) {
    for (int64_t n = 0; n < count; ++n) ++counts[split[n] * users + user[n]];
}

extern "C" int64_t distinct_targets(const int64_t* start, const int64_t* end, int64_t users, const int32_t* item,
                                    int64_t* sizes, int32_t* out) {
    static thread_local Marks marks;
    const int64_t before = marks.reserved(users);
    int64_t total = 0;
    for (int64_t user = 0; user < users; ++user) {
        sizes[user] = distinct(item + start[user], end[user] - start[user], marks, before + user, out + total);
        total += sizes[user];
    }
    return total;
}
