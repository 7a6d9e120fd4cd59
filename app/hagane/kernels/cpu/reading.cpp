// Matrices on their way from a file: quantized, packed, searched for NaN and infinity. Tasks are
// blocks of 16 rows, so that the pool's threads read a file side by side.
#include <atomic>
#include <limits>

#include "dispatch.h"
#include "pool.h"

namespace hagane {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

void keep_least(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load(std::memory_order_relaxed);
  while (value < seen && !least.compare_exchange_weak(seen, value)) {}
}

int64_t found(const std::atomic<int64_t>& least) {
  const int64_t value = least.load();
  return value == kNone ? -1 : value;
}

template <class T>
bool finite(const T* row, int64_t count) {
  constexpr T kExponent = static_cast<T>(sizeof(T) == 4 ? 0x7f800000 : 0x7f80);
  constexpr T kMagnitude = static_cast<T>(sizeof(T) == 4 ? 0x7fffffff : 0x7fff);
  T largest = 0;  // bits of magnitudes
  for (int64_t i = 0; i < count; ++i) {
    const T bits = row[i] & kMagnitude;
    largest = bits > largest ? bits : largest;
  }
  return largest < kExponent;
}

// 32 codes of one output -> its `bits` units, one in each line (grouped.inc).
void pack_chunk(const uint32_t* fours, int bits, uint32_t* unit) {
  if (bits == 8) {
    for (int i = 0; i < 8; ++i) unit[16 * i] = fours[i];
    return;
  }
  const int high = bits - 4;
  for (int i = 0; i < 8; ++i) {
    unit[16 * (i / 2)] |= (fours[i] & 0x0f0f0f0fu) << (4 * (i % 2));
    if (high == 1) unit[64] |= ((fours[i] >> 4) & 0x01010101u) << i;
    if (high == 2) unit[64 + 16 * (i / 4)] |= ((fours[i] >> 4) & 0x03030303u) << (2 * (i % 4));
  }
}

}  // namespace

int64_t run_quantize(const Weights& w) {
  std::atomic<int64_t> bad{kNone};
  Pool::instance().run(ceil_div(w.out, 16), [&](int64_t block) {
    static thread_local Scratch scratch;
    const int64_t row = active_kernels()->quantize_block(w, block, scratch.get<std::byte>(w.in * 32 * 4));
    if (row >= 0) keep_least(bad, row);
  });
  return found(bad);
}

void run_pack(const std::byte* stored, int64_t rows, int64_t row_bytes, uint32_t* lines, int64_t units) {
  Pool::instance().run(ceil_div(rows, 16), [&](int64_t block) {
    const int64_t count = std::min<int64_t>(16, rows - 16 * block), whole = row_bytes / 4;
    const std::byte* from = stored + 16 * block * row_bytes;
    uint32_t* to = lines + block * units * 16;
    std::memset(to, 0, units * 64);
    for (int64_t u = 0; u < whole; ++u)
      for (int64_t r = 0; r < count; ++r) std::memcpy(to + 16 * u + r, from + r * row_bytes + 4 * u, 4);
    for (int64_t r = 0; row_bytes % 4 && r < count; ++r)
      std::memcpy(to + 16 * whole + r, from + r * row_bytes + 4 * whole, row_bytes % 4);
  });
}

void run_pack_grouped(const GroupedCodes& g) {
  const int64_t units = g.in / 32 * g.bits;
  Pool::instance().run(ceil_div(g.out, 16), [&](int64_t block) {
    const int64_t count = std::min<int64_t>(16, g.out - 16 * block);
    uint32_t* to = g.lines + block * units * 16;
    std::memset(to, 0, units * 64);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t chunk = 0; chunk < g.in / 32; ++chunk) {
        uint32_t fours[8];
        std::memcpy(fours, g.codes + (16 * block + r) * g.in + 32 * chunk, sizeof fours);
        pack_chunk(fours, g.bits, to + chunk * g.bits * 16 + r);
      }
  });
}

int64_t run_find_nonfinite(const Matrix& x, int64_t rows, int64_t columns) {
  std::atomic<int64_t> bad{kNone};
  const int64_t together = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, columns));
  Pool::instance().run(ceil_div(rows, together), [&](int64_t task) {
    for (int64_t r = task * together; r < std::min(rows, (task + 1) * together); ++r)
      if (!(x.dtype == DType::f32 ? finite(x.row<uint32_t>(r), columns) : finite(x.row<uint16_t>(r), columns)))
        return keep_least(bad, r);
  });
  return found(bad);
}

}  // namespace hagane
