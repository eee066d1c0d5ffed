// Small kernels of the decoder, each with a PyTorch form beside it that gives the same result.
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

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

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

// Runs part(first, last) over equal shares of [0, size), one per thread.
template <typename Part>
void share(int64_t size, int64_t threads, const Part& part) {
    threads = std::max<int64_t>(1, std::min(threads, size));
    std::vector<std::thread> others;
    for (int64_t n = 1; n < threads; ++n)
        others.emplace_back([&part, n, size, threads] { part(size * n / threads, size * (n + 1) / threads); });
    part(0, size / threads);
    for (auto& other : others) other.join();
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
