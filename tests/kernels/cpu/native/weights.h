// Random weight matrices of every format: packed as ops.h draws them, and their exact values.
#pragma once

#include "checks.h"
#include "dispatch.h"

namespace checks {

struct Form {
  const char* name;
  Format format;
  int64_t group = 0;     // of int4 and grouped
  int64_t rotation = 0;  // of int8 and int4
  int bits = 0, zero = 0;
  bool minimum = false, ordered = false, input_scale = false;
};

// Inputs of all forms are multiples of 128.
inline constexpr Form kForms[] = {
    {.name = "f32", .format = Format::f32},
    {.name = "bf16", .format = Format::bf16},
    {.name = "int8", .format = Format::int8},
    {.name = "int8 of rotated inputs", .format = Format::int8, .rotation = 128},
    {.name = "int8 of scaled inputs", .format = Format::int8, .input_scale = true},
    {.name = "int4 by 32", .format = Format::int4, .group = 32},
    {.name = "int4 by 64, rotated", .format = Format::int4, .group = 64, .rotation = 32},
    {.name = "int4 by 128", .format = Format::int4, .group = 128},
    {.name = "4 bits by 32", .format = Format::grouped, .group = 32, .bits = 4, .zero = 8},
    {.name = "4 bits with minima", .format = Format::grouped, .group = 16, .bits = 4, .minimum = true},
    {.name = "5 bits", .format = Format::grouped, .group = 32, .bits = 5, .zero = 16},
    {.name = "5 bits, ordered", .format = Format::grouped, .group = 32, .bits = 5, .minimum = true, .ordered = true},
    {.name = "6 bits by 16", .format = Format::grouped, .group = 16, .bits = 6, .zero = 32},
    {.name = "6 bits by 32", .format = Format::grouped, .group = 32, .bits = 6, .minimum = true},
    {.name = "8 bits", .format = Format::grouped, .group = 32, .bits = 8, .zero = 128},
    {.name = "8 bits by 16", .format = Format::grouped, .group = 16, .bits = 8, .zero = 3, .minimum = true},
};

struct RandomWeight {
  Weight weight{};
  // [out][in] as they multiply prepared inputs: in the order of codes, rotated.
  std::vector<double> exact;

  RandomWeight(Random& random, const Form& form, int64_t out, int64_t in);
  RandomWeight(const RandomWeight&) = delete;

 private:
  void fill_floats(Random& random);
  void fill_codes(Random& random, const Form& form);
  void fill_groups(Random& random, const Form& form);
  void pack(const void* stored, int64_t row_bytes, int64_t units);

  std::vector<uint32_t> lines_;
  std::vector<float> scale_, bias_, input_scale_;
  std::vector<bf16> group_scale_;
  std::vector<f16> half_scale_, minimum_;
  std::vector<int32_t> order_;
};

// Prepared rows of one call, and what their codes stand for.
struct PreparedRows {
  std::vector<std::byte> rows;
  std::vector<float> scale;
  std::vector<int32_t> offsets;
  Prepared prepared;

  PreparedRows(const Kernels& kernels, const Weight& weight, const Matrix& x, int64_t count);
  double at(const Weight& weight, int64_t row, int64_t input) const;
};

}  // namespace checks
