// What the checks of the kernels share: random values, exact values, and a count of what did not hold.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "ops.h"

namespace checks {

using namespace hagane;

// Numbers of a seeded generator (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t mixed = state_ += 0x9E3779B97F4A7C15;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
    return mixed ^ (mixed >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  int64_t below(int64_t count) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(count)); }
  double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }

 private:
  uint64_t state_;
};

template <class T>
constexpr DType dtype_of() {
  return std::is_same_v<T, float> ? DType::f32 : std::is_same_v<T, bf16> ? DType::bf16 : DType::int8;
}

template <class T>
std::vector<T> normals(Random& random, int64_t count, double size = 1) {
  std::vector<T> values(count);
  for (T& value : values) put(&value, static_cast<float>(size * random.normal()));
  return values;
}

template <class T>
double exact(T value) { return to_float(value); }

template <class T>
std::vector<double> exact(const std::vector<T>& values) {
  std::vector<double> wide;
  for (T value : values) wide.push_back(exact(value));
  return wide;
}

template <class T>
Matrix matrix(std::vector<T>& values, int64_t stride) { return {values.data(), dtype_of<T>(), stride}; }

// Of a result in T that was computed in float.
template <class T>
constexpr double slack() { return std::is_same_v<T, float> ? 2e-5 : 0.006; }

// The checks of one instruction set.
class Checks {
 public:
  explicit Checks(const Kernels& kernels) : kernels(kernels) {}

  void begin(const std::string& what) { what_ = what; }
  void holds(bool condition, const char* detail) {
    ++count;
    if (!condition) fail(detail);
  }
  void near(double found, double expected, double allowed) {
    ++count;
    if (std::fabs(found - expected) <= allowed) return;
    fail((std::to_string(found) + " instead of " + std::to_string(expected)).c_str());
  }
  // Within the rounding of T and of float sums, relative to the sizes of results.
  template <class T>
  void near(const std::vector<T>& found, const std::vector<double>& expected, double times = 1) {
    for (size_t i = 0; i < expected.size(); ++i)
      near(exact(found[i]), expected[i], times * slack<T>() * (1 + std::fabs(expected[i])));
  }
  template <class T>
  void same(const T* found, const T* expected, int64_t count_of_values, const char* detail) {
    holds(!std::memcmp(found, expected, count_of_values * sizeof(T)), detail);
  }

  const Kernels& kernels;
  int64_t count = 0, failures = 0;

 private:
  void fail(const char* detail) {
    if (++failures <= 20) std::printf("%s: %s: %s\n", kernels.name, what_.c_str(), detail);
  }

  std::string what_;
};

void check_linear(Checks&);
void check_changes(Checks&);
void check_quantizing(Checks&);
void check_rows(Checks&);
void check_heads(Checks&);
void check_attention(Checks&);
void check_sampling(Checks&);
void check_training(Checks&);
void check_training_attention(Checks&);

}  // namespace checks
