// Work shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

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
