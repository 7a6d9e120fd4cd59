// Types shared by every kernel.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

namespace hagane {

using bf16 = uint16_t;
struct f16 {
  uint16_t bits;
};

enum class DType : int { f32 = 0, bf16 = 1, int8 = 2 };

inline float to_float(float value) { return value; }

inline float to_float(bf16 value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Of a finite number. Exponents differ by 112; a product moves subnormal ones along.
inline float to_float(f16 value) {
  uint32_t bits = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof magnitude);
  return value.bits & 0x8000 ? magnitude * -0x1p112f : magnitude * 0x1p112f;
}

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<bf16>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline void put(float* target, float value) { *target = value; }
inline void put(bf16* target, float value) { *target = to_bf16(value); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Memory of one thread that is kept between calls and only ever grows.
class Scratch {
 public:
  template <class T>
  T* get(int64_t count) {
    size_t bytes = round_up(count * static_cast<int64_t>(sizeof(T)), 64) + 64;
    if (bytes > size_) {
      memory_.reset(static_cast<std::byte*>(std::aligned_alloc(64, round_up(bytes, 4096))));
      size_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
};

}  // namespace hagane
