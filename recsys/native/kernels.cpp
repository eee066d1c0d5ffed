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

#include <algorithm>
#include <cmath>
#include <cstdint>
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

}  // namespace

extern "C" void prefix_attention(const float* const* blocks, const int64_t* widths, const int64_t* const* ancestry,
                                 const float* bias, int64_t users, int64_t steps, int64_t beams, int64_t heads,
                                 int64_t channels, float scale, int64_t threads, float* out) {
    const Task task{blocks, widths, ancestry, bias, steps, beams, heads, channels, scale, out};
    threads = std::max<int64_t>(1, std::min(threads, users));
    std::vector<std::thread> others;
    for (int64_t n = 1; n < threads; ++n)
        others.emplace_back([&task, n, users, threads] { run(task, users * n / threads, users * (n + 1) / threads); });
    run(task, 0, users / threads);
    for (auto& other : others) other.join();
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
