// Quantization of matrices as they are read, and low-rank changes to products.
#include "weights.h"

namespace checks {
namespace {

// One adapter's change to a matrix of `form`, of two parts with ranks of their own.
struct RandomChange {
  static constexpr int64_t kRanks = 32, kIn = 128, kOut = 64;
  RandomWeight a;
  std::vector<uint32_t> lines;
  std::vector<int32_t> first_line, first_unit;
  std::vector<float> scale, gain;
  std::vector<double> b;  // [kOut][kRanks]
  LowRank change{};

  RandomChange(Random& random, const Form& form, bool with_gain)
      : a(random, form, kRanks, kIn), scale(kOut, 1.0f), gain(kOut), b(kOut * kRanks) {
    a.weight.bias = nullptr;
    const int64_t per_unit = form.format == Format::f32 ? 1 : form.format == Format::bf16 ? 2 : 4;
    const int64_t units = kRanks / 2 / per_unit, blocks = kOut / 16;
    for (int64_t block = 0; block < blocks; ++block) {
      first_line.push_back(static_cast<int32_t>(block * units));
      first_unit.push_back(static_cast<int32_t>(block < blocks / 2 ? 0 : units));
      for (int64_t u = 0; u < units; ++u)
        for (int64_t lane = 0; lane < 16; ++lane) lines.push_back(unit(random, form.format, 16 * block + lane, u + first_unit.back()));
    }
    first_line.push_back(static_cast<int32_t>(blocks * units));
    for (float& g : gain) g = static_cast<float>(0.1 * random.normal());
    change = {a.weight, lines.data(), first_line.data(), first_unit.data(), scale.data(), with_gain ? gain.data() : nullptr};
  }

  // The four bytes of unit `u` of an output.
  uint32_t unit(Random& random, Format format, int64_t out, int64_t u) {
    uint32_t bytes = 0;
    const int64_t per_unit = format == Format::f32 ? 1 : format == Format::bf16 ? 2 : 4;
    if (format == Format::int8) scale[out] = 0.001f * static_cast<float>(1 + out);
    for (int64_t i = 0; i < per_unit; ++i) {
      double& value = b[out * kRanks + u * per_unit + i];
      if (format == Format::f32) {
        const float wide = static_cast<float>(random.normal());
        std::memcpy(&bytes, &wide, sizeof bytes);
        value = wide;
      } else if (format == Format::bf16) {
        const bf16 narrow = to_bf16(static_cast<float>(random.normal()));
        bytes |= static_cast<uint32_t>(narrow) << (16 * i);
        value = exact(narrow);
      } else {
        const int64_t code = random.below(255) - 127;
        bytes |= static_cast<uint32_t>(static_cast<uint8_t>(code)) << (8 * i);
        value = static_cast<double>(code) * scale[out];
      }
    }
    return bytes;
  }
};

// Rows with one of two adapters, or none: W x + b (a x), with `gain` times W x in addition.
void check_change(Checks& c, Random& random, const Form& form, bool with_gain) {
  constexpr int64_t in = RandomChange::kIn, out = RandomChange::kOut, ranks = RandomChange::kRanks, rows = 21;
  const RandomWeight made(random, form, out, in);
  const RandomChange first(random, form, with_gain), second(random, form, with_gain);
  const RandomChange* changes[] = {&first, &second};
  const Bank bank{{&first.change, &second.change}};
  std::vector<int32_t> slots;
  for (int64_t r = 0; r < rows; ++r) slots.push_back(static_cast<int32_t>(r % 4) - (r % 4 > 1 ? 3 : 0));
  for (int32_t& slot : slots) slot = slot < -1 ? -1 : slot;
  std::vector<float> x = normals<float>(random, rows * in), result(rows * out), one(out);
  run_linear({&made.weight, matrix(x, in), rows, matrix(result, out), nullptr, &bank, slots.data()});
  const PreparedRows prepared(c.kernels, made.weight, matrix(x, in), rows);
  const bool codes = form.format == Format::int8;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> hidden(ranks);
    for (int64_t k = 0; slots[r] >= 0 && k < ranks; ++k)
      for (int64_t i = 0; i < in; ++i) hidden[k] += prepared.at(made.weight, r, i) * changes[slots[r]]->a.exact[k * in + i];
    double largest = 0;
    for (double h : hidden) largest = std::max(largest, std::fabs(h));
    for (int64_t o = 0; o < out; ++o) {
      double own = 0, added = 0, rounding = 1e-5;
      for (int64_t i = 0; i < in; ++i) own += prepared.at(made.weight, r, i) * made.exact[o * in + i];
      for (int64_t k = 0; slots[r] >= 0 && k < ranks; ++k) {
        added += hidden[k] * changes[slots[r]]->b[o * ranks + k];
        rounding += std::fabs(changes[slots[r]]->b[o * ranks + k]) * largest * (codes ? 0.5 / 127 : 3e-6);
      }
      if (slots[r] >= 0 && with_gain) added += own * changes[slots[r]]->gain[o];
      c.near(result[r * out + o], own + made.weight.bias[o] + added, rounding + 3e-5 * (1 + std::fabs(own) + std::fabs(added)));
    }
    run_linear({&made.weight, {&x[r * in], DType::f32, in}, 1, matrix(one, out), nullptr, &bank, &slots[r]});
    c.same(one.data(), &result[r * out], out, "bits depend on other rows");
  }
}

// Codes and scales of a random matrix, as they are stored or packed.
struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> scale;
  int64_t bad;

  Quantized(std::vector<float>& rows, int64_t out, int64_t in, int64_t group, int64_t rotation, bool packed) {
    const int64_t padded = round_up(out, 16), units = round_up(ceil_div(in, group ? 8 : 4), 16);
    codes.assign(padded * units * 4, 0);
    scale.assign(padded * (group ? in / group : 1), 0.0f);
    Weights w{.parts = {{matrix(rows, in), 0}}, .out = out, .in = in, .rounding = DType::f32, .group = group,
              .rotation = rotation, .packed = packed, .units = packed ? units : 0, .codes = codes.data(), .scale = scale.data()};
    bad = run_quantize(w);
  }
};

void check_quantized(Checks& c, Random& random, int64_t group, int64_t rotation) {
  const int64_t out = 37, in = 128;
  std::vector<float> rows = normals<float>(random, out * in);
  for (bool packed : {false, true}) {
    const Quantized found(rows, out, in, group, rotation, packed);
    use_kernels(generic_kernels());
    const Quantized expected(rows, out, in, group, rotation, packed);
    use_kernels(&c.kernels);
    c.holds(found.bad == -1 && found.codes == expected.codes, "other codes");
    c.same(found.scale.data(), expected.scale.data(), static_cast<int64_t>(found.scale.size()), "other scales");
    if (group || packed || rotation) continue;
    for (int64_t i = 0; i < out * in; ++i)
      c.near(static_cast<int8_t>(found.codes[i]) * found.scale[i / in], rows[i], 0.501 * found.scale[i / in]);
  }
  rows[30 * in + 3] = NAN;
  c.holds(Quantized(rows, out, in, group, rotation, true).bad == 30, "NaN is not found");
}

}  // namespace

void check_changes(Checks& c) {
  for (const Form& form : {kForms[0], kForms[1], kForms[2]})
    for (bool gain : {false, true}) {
      Random random(2);
      c.begin(std::string("low-rank changes to ") + form.name);
      check_change(c, random, form, gain);
    }
}

void check_quantizing(Checks& c) {
  Random random(3);
  c.begin("quantizing");
  for (int64_t group : {0, 32, 64, 128})
    for (int64_t rotation : {0, 32}) check_quantized(c, random, group, rotation);
}

}  // namespace checks
