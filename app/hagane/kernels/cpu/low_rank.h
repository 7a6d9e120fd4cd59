// How the low-rank changes to one linear layer's rows are shared out to the pool's threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops.h"
#include "pool.h"

namespace hagane {

// Rows of one task: they reuse its factor from the cache.
constexpr int64_t kGroupRows = 32;
// Up to this many rows, a layer takes as long as reading its weights.
constexpr int64_t kRowsThatWaitForMemory = 4;
// The terms to add to all rows of some blocks of outputs: written by one pass, read by the next.
constexpr int64_t kBytesOfChanges = 131072;

// The rows of one call by their changes, and their inputs next to each other, as `a` wants them.
class ChangedRows {
 public:
  // `slots` [rows] says whose change in `bank` each row has, -1 for none. `bytes` is the distance of
  // prepared rows.
  void group(const Bank& bank, const int32_t* slots, int64_t rows, int64_t bytes) {
    order_.clear();
    groups_.clear();
    position_.assign(rows, -1);
    ranks_ = 0;
    gains_ = false;
    for (int64_t row = 0; row < rows; ++row)
      if (bank.of(slots[row])) order_.push_back(static_cast<int32_t>(row));
    changed_ = static_cast<int64_t>(order_.size());
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return slots[a] < slots[b]; });
    for (int64_t i = 0; i < changed_; ++i) position_[order_[i]] = static_cast<int32_t>(i);
    for (int64_t row = 0; row < rows; ++row)
      if (position_[row] < 0) order_.push_back(static_cast<int32_t>(row));
    for (int64_t first = 0, last; first < changed_; first = last) {
      for (last = first + 1; last < changed_ && last < first + kGroupRows; ++last)
        if (slots[order_[last]] != slots[order_[first]]) break;
      const LowRank* change = bank.of(slots[order_[first]]);
      groups_.push_back({change, order_.data() + first, last - first, first});
      ranks_ = std::max(ranks_, change->a.out);
      gains_ |= change->gain != nullptr;
    }
    bytes_ = bytes;
    // Whole tiles may be read, of which the last rows are nobody's.
    const int64_t padded = changed_ + 16;
    inputs_ = input_scratch_.get<std::byte>(padded * bytes);
    scale_ = scale_scratch_.get<float>(padded);
    offsets_ = offset_scratch_.get<int32_t>(padded);
    hidden_ = {values_scratch_.get<float>(padded * ranks_), code_scratch_.get<int8_t>(padded * ranks_),
               factor_scratch_.get<float>(padded * ranks_ / 16),
               sum_scratch_.get<int32_t>(padded * ranks_ / 4), ranks_};
  }

  bool any() const { return changed_ > 0; }

  // Takes over a row that the matrix has prepared for itself. Allowed for several rows at once.
  void take(const Weight& weight, const Prepared& x, int64_t row) {
    const int64_t at = position_[row];
    if (at < 0) return;
    std::memcpy(inputs_ + at * bytes_, static_cast<const std::byte*>(x.rows) + row * bytes_, bytes_);
    if (weight.format == Format::grouped) return take_grouped(weight, x, row, at);
    if (weight.format != Format::int8 && weight.format != Format::int4) return;
    scale_[at] = x.scale[row];
    if (weight.format == Format::int8) {
      offsets_[at] = x.offsets[row];
      return;
    }
    // int4 takes 8 times each group's inputs off again, int8 128 times all of them.
    const int32_t* offsets = x.offsets + row * weight.groups();
    int32_t sum = 0;
    for (int64_t g = 0; g < weight.groups(); ++g) sum += offsets[g];
    offsets_[at] = 16 * sum;
  }

  // a x of all rows, by the linear kernels; `stride` is of prepared rows, in elements.
  void shrink(const Kernels& kernels, int64_t stride) {
    tasks_.clear();
    for (const Group& group : groups_)
      for (int64_t block = 0; block < group.change->a.blocks(); ++block) tasks_.push_back({&group, block});
    Pool::instance().run(static_cast<int64_t>(tasks_.size()), [&](int64_t index) {
      const auto& [group, block] = tasks_[index];
      const int64_t at = group->first;
      const Matrix hidden{hidden_.values + at * ranks_, DType::f32, ranks_};
      const Prepared x{inputs_ + at * bytes_, group->count, stride, scale_ + at, offsets_ + at};
      kernels.linear({group->change->a, x, hidden, nullptr}, block, block + 1);
      if (group->change->a.format == Format::int8)
        for (int64_t row = at; row < at + group->count; ++row) quantize(row, block);
    });
  }

  // The outputs of blocks [first, last), so many at a time that their changes stay in the cache.
  void multiply(const Kernels& kernels, const Linear& call, int64_t first, int64_t last) const {
    static thread_local Scratch scratch;
    const Changes changes{groups_.data(), static_cast<int64_t>(groups_.size()),
                          order_.data() + changed_, call.x.count - changed_, call.x.count, hidden_};
    const int64_t row_bytes = 64 * call.x.count;
    // Even, as kernels take two blocks at a time.
    const int64_t most = std::max<int64_t>(2, kBytesOfChanges / row_bytes / 2 * 2);
    for (int64_t block = first, end; block < last; block = end) {
      end = std::min(last, block + most);
      float* added = scratch.get<float>((end - block) * row_bytes / 4);
      kernels.expand(changes, block, end, added);
      Linear part = call;
      part.added = added;
      part.added_first = block;
      // Many rows wait for arithmetic: memory brings the next factors meanwhile, a few lines at a time.
      for (int64_t pair = block; pair < end; pair += 2) {
        if (call.x.count > kRowsThatWaitForMemory) fetch(pair + end - block, call.weight.blocks());
        if (gains_) amplify(kernels, call, pair, std::min(end, pair + 2), added + (pair - block) * row_bytes / 4);
        kernels.linear(part, pair, std::min(end, pair + 2));
      }
    }
  }

 private:
  struct Task {
    const Group* group;
    int64_t block;
  };

  // Adds gain * W x to the terms of blocks [first, last). The result is computed twice: the second time
  // its weights are in the cache, and the other rows keep their bits.
  void amplify(const Kernels& kernels, const Linear& call, int64_t first, int64_t last, float* added) const {
    static thread_local Scratch scratch;
    const int64_t stride = 16 * (last - first);
    float* own = scratch.get<float>((call.x.count + 16) * stride);
    kernels.linear({call.weight, call.x, {own - 16 * first, DType::f32, stride}, nullptr}, first, last);
    const float* bias = call.weight.bias;
    for (const Group& group : groups_) {
      const float* gain = group.change->gain;
      if (!gain) continue;
      for (int64_t i = 0; i < group.count; ++i)
        for (int64_t block = first; block < last; ++block) {
          const int64_t row = group.rows[i], outputs = std::min<int64_t>(16, call.weight.out - 16 * block);
          const float* result = own + row * stride + 16 * (block - first);
          float* target = added + 16 * ((block - first) * call.x.count + row);
          for (int64_t lane = 0; lane < outputs; ++lane) {
            const int64_t output = 16 * block + lane;
            target[lane] += gain[output] * (result[lane] - (bias ? bias[output] : 0.0f));
          }
        }
    }
  }

  // A factor's inputs have one scale a row: codes of the smaller scales are made coarser.
  void take_grouped(const Weight& weight, const Prepared& x, int64_t row, int64_t at) {
    const float* scales = x.scale + row * weight.input_scales();
    float largest = 0.0f;
    bool finite = true;
    for (int64_t chunk = 0; chunk < weight.input_scales(); ++chunk) {
      largest = std::max(largest, scales[chunk]);
      finite &= scales[chunk] <= 3.0e38f;
    }
    scale_[at] = finite ? largest : std::nanf("");
    const int8_t* prepared = static_cast<const int8_t*>(x.rows) + row * x.stride;
    int8_t* codes = reinterpret_cast<int8_t*>(inputs_ + at * bytes_);
    int32_t sum = 0;
    for (int64_t i = 0; i < weight.in; ++i) {
      const float ratio = finite && largest > 0.0f ? scales[i / 32] / largest : 0.0f;
      const auto code = static_cast<int8_t>(std::lrint(static_cast<float>(prepared[i]) * ratio));
      codes[weight.order ? weight.order[i] : i] = code;
      sum += code;
    }
    offsets_[at] = -128 * sum;
  }

  // Prefetch the operands of `expand` for two blocks of outputs into the second level of the cache.
  void fetch(int64_t block, int64_t blocks) const {
    const int64_t end = std::min(blocks, block + 2);
    if (block >= end) return;
    for (const Group& group : groups_)
      for (const uint32_t* line = group.change->lines(block); line < group.change->lines(end); line += 16)
        __builtin_prefetch(line, 0, 2);
  }

  // Symmetric codes in [-127, 127] for 16 ranks of a row.
  void quantize(int64_t row, int64_t block) const {
    const float* values = hidden_.values + row * ranks_ + 16 * block;
    int8_t* codes = hidden_.codes + row * ranks_ + 16 * block;
    float largest = 0.0f;
    for (int i = 0; i < 16; ++i) largest = std::max(largest, std::fabs(values[i]));
    bool finite = true;
    for (int i = 0; i < 16; ++i) finite &= std::fabs(values[i]) <= 3.0e38f;
    const float inverse = finite && largest > 1e-30f ? 127.0f / largest : 0.0f;
    // A NaN stays NaN.
    hidden_.scale[(row * ranks_) / 16 + block] = finite ? largest / 127.0f : std::nanf("");
    for (int unit = 0; unit < 4; ++unit) {
      int32_t sum = 0;
      for (int i = 4 * unit; i < 4 * unit + 4; ++i) {
        codes[i] = finite ? static_cast<int8_t>(std::lrint(values[i] * inverse)) : int8_t{0};
        sum += codes[i];
      }
      hidden_.unit_sums[(row * ranks_) / 4 + 4 * block + unit] = sum;
    }
  }

  std::vector<int32_t> order_, position_;  // changed rows by group, then the others; its inverse
  std::vector<Group> groups_;
  std::vector<Task> tasks_;
  int64_t changed_ = 0, ranks_ = 0, bytes_ = 0;
  bool gains_ = false;
  Scratch input_scratch_, scale_scratch_, offset_scratch_;
  Scratch values_scratch_, code_scratch_, factor_scratch_, sum_scratch_;
  std::byte* inputs_ = nullptr;
  float* scale_ = nullptr;
  int32_t* offsets_ = nullptr;
  Hidden hidden_{};
};

}  // namespace hagane
