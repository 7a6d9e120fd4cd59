// How work is cut into tasks for the pool's threads.
#pragma once

#include <algorithm>

#include "ops.h"
#include "pool.h"

namespace hagane {

// Less than this many bytes of work is done before another thread has woken up.
constexpr int64_t kBytesWorthATask = 16384;
constexpr int64_t kTasksPerThread = 8;
// Rows of inputs whose distance is a power of two would share a few lines of the cache.
constexpr int64_t kBytesBetweenRows = 64;

// The distance of a weight's prepared rows, in elements.
inline int64_t input_stride(const Weight& weight) {
  return weight.padded_inputs() + kBytesBetweenRows / weight.input_bytes();
}

// Calls fn(index) for every index, in chunks that are worth handing to a thread.
template <class F>
void split(int64_t count, int64_t bytes_each, const F& fn) {
  Pool& pool = Pool::instance();
  int64_t least = ceil_div(kBytesWorthATask, std::max<int64_t>(bytes_each, 1));
  int64_t chunk = std::max(least, ceil_div(count, pool.threads() * kTasksPerThread));
  pool.run(ceil_div(count, chunk), [&](int64_t task) {
    int64_t end = std::min(count, (task + 1) * chunk);
    for (int64_t i = task * chunk; i < end; ++i) fn(i);
  });
}

}  // namespace hagane
