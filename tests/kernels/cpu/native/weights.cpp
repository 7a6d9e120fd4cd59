#include "weights.h"

#include <algorithm>

namespace checks {
namespace {

f16 to_half(double value) {
  const float size = static_cast<float>(std::fabs(value)) * 0x1p-112f;
  uint32_t bits;
  std::memcpy(&bits, &size, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x1000) >> 13 | (value < 0 ? 0x8000 : 0))};
}

}  // namespace

RandomWeight::RandomWeight(Random& random, const Form& form, int64_t out, int64_t in) : exact(out * in) {
  weight.format = form.format;
  weight.out = out;
  weight.in = in;
  weight.group = form.group;
  weight.rotation = form.rotation;
  weight.bits = form.bits;
  weight.zero = form.zero;
  bias_ = normals<float>(random, round_up(out, 16));
  weight.bias = bias_.data();
  if (form.format == Format::f32 || form.format == Format::bf16) fill_floats(random);
  else if (form.format == Format::grouped) fill_groups(random, form);
  else fill_codes(random, form);
}

void RandomWeight::pack(const void* stored, int64_t row_bytes, int64_t units) {
  lines_.assign(weight.blocks() * 16 * units, 0);
  run_pack(static_cast<const std::byte*>(stored), weight.out, row_bytes, lines_.data(), units);
  weight.units = units;
  weight.codes = lines_.data();
}

void RandomWeight::fill_floats(Random& random) {
  const int64_t in = weight.in, count = weight.out * in;
  if (weight.format == Format::f32) {
    const auto values = normals<float>(random, count);
    exact = checks::exact(values);
    return pack(values.data(), 4 * in, in);
  }
  const auto values = normals<bf16>(random, count);
  exact = checks::exact(values);
  pack(values.data(), 2 * in, round_up(in / 2, 16));
}

// int8 [out][in], or int4 whose bytes hold inputs i and i + 4 of eight.
void RandomWeight::fill_codes(Random& random, const Form& form) {
  const bool half = weight.format == Format::int4;
  const int64_t out = weight.out, in = weight.in, length = half ? weight.group : in, groups = in / length;
  std::vector<uint8_t> stored(out * in / (half ? 2 : 1));
  scale_.assign(round_up(out, 16), 0.0f);
  group_scale_.assign(round_up(out, 16) * groups, 0);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i) {
      const int64_t group = i / length, code = half ? random.below(16) - 8 : random.below(255) - 127;
      bf16& coarse = group_scale_[(o / 16 * groups + group) * 16 + o % 16];
      if (i % length == 0) {
        scale_[o] = static_cast<float>(0.01 * random.normal());
        coarse = to_bf16(scale_[o]);
        if (o % 16 == 3 && i == 0) scale_[o] = 1e-20f, coarse = to_bf16(1e-20f);
      }
      exact[o * in + i] = static_cast<double>(code) * (half ? checks::exact(coarse) : scale_[o]);
      if (half) stored[o * in / 2 + i / 8 * 4 + i % 4] |= static_cast<uint8_t>((code + 8) << (i % 8 < 4 ? 0 : 4));
      else stored[o * in + i] = static_cast<uint8_t>(code);
    }
  if (half) pack(stored.data(), in / 2, in / 8);
  else pack(stored.data(), in, round_up(in / 4, 16));
  weight.scale = half ? static_cast<const void*>(group_scale_.data()) : scale_.data();
  if (!form.input_scale) return;
  for (int64_t i = 0; i < in; ++i) input_scale_.push_back(static_cast<float>(0.5 + random.uniform()));
  weight.input_scale = input_scale_.data();
}

void RandomWeight::fill_groups(Random& random, const Form& form) {
  const int64_t out = weight.out, in = weight.in, groups = in / form.group;
  std::vector<uint8_t> codes(out * in);
  half_scale_.assign(round_up(out, 16) * groups, f16{0});
  minimum_ = half_scale_;
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i) {
      const int64_t at = (o / 16 * groups + i / form.group) * 16 + o % 16;
      if (i % form.group == 0) {
        half_scale_[at] = to_half(o == 1 ? 3e-7 : 0.02 * random.normal());  // one of them subnormal
        if (form.minimum) minimum_[at] = to_half(random.normal());
      }
      const int64_t code = i < 4 ? (i % 2 ? (1 << form.bits) - 1 : 0) : random.below(1 << form.bits);
      codes[o * in + i] = static_cast<uint8_t>(code);
      exact[o * in + i] = static_cast<double>(code - form.zero) * checks::exact(half_scale_[at]) + checks::exact(minimum_[at]);
    }
  weight.units = in / 32 * form.bits;
  lines_.assign(weight.blocks() * 16 * weight.units, 0);
  run_pack_grouped({codes.data(), out, in, form.bits, lines_.data()});
  weight.codes = lines_.data();
  weight.scale = half_scale_.data();
  weight.minimum = form.minimum ? minimum_.data() : nullptr;
  if (!form.ordered) return;
  for (int32_t i = 0; i < in; ++i) order_.push_back(i);
  for (int64_t i = in - 1; i > 0; --i) std::swap(order_[i], order_[random.below(i + 1)]);
  weight.order = order_.data();
}

PreparedRows::PreparedRows(const Kernels& kernels, const Weight& weight, const Matrix& x, int64_t count) {
  const int64_t stride = weight.padded_inputs() + 64 / weight.input_bytes(), padded = round_up(count, 16);
  rows.assign(padded * stride * weight.input_bytes(), std::byte{0});
  scale.assign(padded * weight.input_scales(), 0.0f);
  offsets.assign(padded * weight.input_sums(), 0);
  for (int64_t r = 0; r < count; ++r) kernels.prepare(weight, x, r, rows.data(), stride, scale.data(), offsets.data());
  prepared = {rows.data(), count, stride, scale.data(), offsets.data()};
}

double PreparedRows::at(const Weight& weight, int64_t row, int64_t input) const {
  const int64_t place = row * prepared.stride + input;
  if (weight.format == Format::f32) return static_cast<const float*>(prepared.rows)[place];
  if (weight.format == Format::bf16) return exact(static_cast<const bf16*>(prepared.rows)[place]);
  const int64_t chunk = weight.format == Format::grouped ? input / 32 : 0;
  return static_cast<const int8_t*>(prepared.rows)[place] * static_cast<double>(scale[row * weight.input_scales() + chunk]);
}

}  // namespace checks
