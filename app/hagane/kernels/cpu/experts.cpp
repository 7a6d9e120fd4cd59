// Mixtures of experts: rows are sorted by expert, and each expert in use multiplies its own rows alone.
#include <cmath>

#include "dispatch.h"
#include "tasks.h"

namespace hagane {
namespace {

// What the experts' products read, [slots]: a slot is a row of one expert, which has its slots side by side.
struct SlotInputs {
  const Weight& weight;
  int64_t stride;
  std::byte* rows;
  float* scale;
  int32_t* offsets;

  int64_t bytes() const { return stride * weight.input_bytes(); }
  // For that expert's weight, which may take its inputs in an order of its own.
  void prepare(const Weight& own, const Matrix& x, int64_t row, int64_t slot) const {
    const int64_t item = x.dtype == DType::f32 ? 4 : 2;
    const Matrix one{static_cast<std::byte*>(x.data) + row * x.stride * item, x.dtype, x.stride};
    active_kernels()->prepare(own, one, 0, rows + slot * bytes(), stride, scale + slot * weight.input_scales(),
                              offsets + slot * weight.input_sums());
  }
  void copy(int64_t from, int64_t to) const {
    const int64_t scales = weight.input_scales(), sums = weight.input_sums();
    std::memcpy(rows + to * bytes(), rows + from * bytes(), bytes());
    std::memcpy(scale + to * scales, scale + from * scales, scales * sizeof(float));
    std::memcpy(offsets + to * sums, offsets + from * sums, sums * sizeof(int32_t));
  }
  Prepared from(int64_t slot, int64_t count) const {
    return {rows + slot * bytes(), count, stride, scale + slot * weight.input_scales(),
            offsets + slot * weight.input_sums()};
  }
};

// Memory of the calling thread that is kept between calls.
struct Memory {
  struct Inputs {
    Scratch rows, scale, offsets;

    SlotInputs get(const Weight& weight, int64_t slots) {
      // Tiles read sixteen rows, of which the last are nobody's.
      const int64_t padded = slots + 16, stride = input_stride(weight), row = stride * weight.input_bytes();
      SlotInputs in{weight, stride, rows.get<std::byte>(padded * row),
                    scale.get<float>(padded * weight.input_scales()),
                    offsets.get<int32_t>(padded * weight.input_sums())};
      std::memset(in.rows + slots * row, 0, 16 * row);
      return in;
    }
  };

  Inputs outer, inner;
  Scratch starts, slots, owners, gate_up, activated, results;
  std::vector<int64_t> ends;
};

// Outputs [first, last) blocks of the rows of one expert.
struct Task {
  int64_t expert, first, last;
};

// Where each expert's slots begin, [experts + 1], the slot of every row and choice, [rows, chosen], and the
// expert of every slot.
struct Order {
  int32_t *starts, *slots, *owners;
  int64_t experts;

  Order(const ExpertsWork& work, Memory& memory) : experts(static_cast<int64_t>(work.experts->down.size())) {
    const int64_t count = work.rows * work.chosen;
    starts = memory.starts.get<int32_t>(experts + 1);
    slots = memory.slots.get<int32_t>(count);
    owners = memory.owners.get<int32_t>(count);
    std::fill_n(starts, experts + 1, 0);
    auto known = [&](int64_t i) { return work.numbers[i] >= 0 && work.numbers[i] < experts; };
    for (int64_t i = 0; i < count; ++i)
      if (known(i)) ++starts[work.numbers[i] + 1];
    for (int64_t e = 0; e < experts; ++e) starts[e + 1] += starts[e];
    memory.ends.assign(starts, starts + experts);
    for (int64_t i = 0; i < count; ++i) {
      slots[i] = known(i) ? static_cast<int32_t>(memory.ends[work.numbers[i]]++) : -1;
      if (known(i)) owners[slots[i]] = work.numbers[i];
    }
  }
  int64_t rows(int64_t expert) const { return starts[expert + 1] - starts[expert]; }
  int64_t total() const { return starts[experts]; }
};

// x times the weights of each expert in use, into the rows of `out`.
void multiply(const Order& order, const std::vector<const Weight*>& weights, const SlotInputs& in, const Matrix& out) {
  static thread_local std::vector<Task> tasks;
  tasks.clear();
  // A pass over the weights costs their bytes; further rows cost arithmetic on top.
  auto block_cost = [&](int64_t e) { return weights[e]->units * 64 * std::max<int64_t>(1, order.rows(e) / 4); };
  int64_t cost = 0;
  for (int64_t e = 0; e < order.experts; ++e)
    if (order.rows(e)) cost += block_cost(e) * weights[e]->blocks();
  Pool& pool = Pool::instance();
  const int64_t wanted = std::max(kBytesWorthATask, ceil_div(cost, pool.threads() * kTasksPerThread));
  for (int64_t e = 0; e < order.experts; ++e) {
    if (!order.rows(e)) continue;
    const int64_t blocks = weights[e]->blocks();
    const int64_t parts = std::clamp<int64_t>(ceil_div(block_cost(e) * blocks, wanted), 1, blocks);
    for (int64_t p = 0; p < parts; ++p) tasks.push_back({e, blocks * p / parts, blocks * (p + 1) / parts});
  }
  // A thread-local vector would be another one inside the workers.
  const Task* const all = tasks.data();
  const int64_t item = out.dtype == DType::f32 ? 4 : 2;
  pool.run(static_cast<int64_t>(tasks.size()), [&, all](int64_t index) {
    const Task& task = all[index];
    const int64_t start = order.starts[task.expert];
    std::byte* const target = static_cast<std::byte*>(out.data) + start * out.stride * item;
    const Linear call{*weights[task.expert], in.from(start, order.rows(task.expert)), {target, out.dtype, out.stride}, nullptr};
    active_kernels()->linear(call, task.first, task.last);
  });
}

// Of one row: its scores, and which experts it cannot choose (any more).
struct Choice {
  std::vector<float> scores, ranked;
  std::vector<char> taken;
};

// The best that is not taken, of [first, last); NaN is never better.
int64_t best(const Choice& c, int64_t first, int64_t last) {
  int64_t found = -1;
  for (int64_t e = first; e < last; ++e)
    if (!c.taken[e] && (found < 0 || c.ranked[e] > c.ranked[found])) found = e;
  return found;
}

void score(const Routing& r, const float* logits, Choice& c) {
  c.scores.assign(logits, logits + r.experts);
  if (r.sigmoid) {
    for (float& s : c.scores) s = 1.0f / (1.0f + std::exp(-s));
  } else {
    const float most = *std::max_element(c.scores.begin(), c.scores.end());
    float sum = 0;
    for (float& s : c.scores) sum += s = std::exp(s - most);
    for (float& s : c.scores) s /= sum;
  }
  c.ranked = c.scores;
  if (r.correction)
    for (int64_t e = 0; e < r.experts; ++e) c.ranked[e] += r.correction[e];
}

// Takes the experts of all groups but the best.
void keep_groups(const Routing& r, Choice& c) {
  const int64_t size = r.experts / r.groups;
  static thread_local std::vector<float> sums;
  sums.assign(r.groups, 0.0f);
  for (int64_t g = 0; g < r.groups; ++g) {
    for (int64_t i = 0; i < std::min(r.group_best, size); ++i) {
      const int64_t e = best(c, g * size, (g + 1) * size);
      sums[g] += c.ranked[e];
      c.taken[e] = 1;
    }
  }
  std::fill(c.taken.begin(), c.taken.end(), 1);
  for (int64_t i = 0; i < r.chosen_groups; ++i) {
    int64_t found = -1;
    for (int64_t g = 0; g < r.groups; ++g)
      if (c.taken[g * size] && (found < 0 || sums[g] > sums[found])) found = g;
    std::fill_n(c.taken.begin() + found * size, size, 0);
  }
}

// One expert after the other: its weight is its share among those left whose logits are within
// 2 * jitter of it, relative to themselves.
void route_sparsely(const Routing& r, int64_t row) {
  static thread_local Choice c;
  const float* logits = r.logits + row * r.stride;
  c.ranked.assign(logits, logits + r.experts);
  c.taken.assign(r.experts, 0);
  for (int64_t k = 0; k < r.chosen; ++k) {
    const int64_t e = best(c, 0, r.experts);
    const float most = logits[e];
    float sum = 0;
    for (int64_t i = 0; i < r.experts; ++i) {
      const bool far = (most - logits[i]) / std::max(std::fabs(logits[i]), most) > 2 * r.jitter;
      if (!c.taken[i] && !far) sum += std::exp(logits[i] - most);
    }
    c.taken[e] = 1;
    r.numbers[row * r.chosen + k] = static_cast<int32_t>(e);
    r.weights[row * r.chosen + k] = r.scale / sum;
  }
}

void route(const Routing& r, int64_t row) {
  static thread_local Choice choice;
  score(r, r.logits + row * r.stride, choice);
  choice.taken.assign(r.experts, 0);
  if (r.groups > 1) keep_groups(r, choice);
  int32_t* numbers = r.numbers + row * r.chosen;
  float* weights = r.weights + row * r.chosen;
  float sum = 0;
  for (int64_t k = 0; k < r.chosen; ++k) {
    const int64_t e = best(choice, 0, r.experts);
    choice.taken[e] = 1;
    numbers[k] = static_cast<int32_t>(e);
    sum += weights[k] = choice.scores[e];
  }
  const float factor = r.normalised ? r.scale / std::max(sum, r.floor) : r.scale;
  for (int64_t k = 0; k < r.chosen; ++k) weights[k] *= factor;
}

}  // namespace

RowWork routing_rows(const Routing& r) {
  return {r.rows, r.experts * 64, {[=](int64_t row) { route(r, row); }}};
}

RowWork sparse_routing_rows(const Routing& r) {
  return {r.rows, r.experts * 128, {[=](int64_t row) { route_sparsely(r, row); }}};
}

RowWork gated_rows(const GatedRows& g) {
  return {g.rows, g.features * 4, {[=](int64_t row) { active_kernels()->gate_rows(g, row); }}};
}

void run_experts(const ExpertsWork& work) {
  static thread_local Memory memory;
  const Experts& experts = *work.experts;
  const Order order(work, memory);
  const Weight &wide = *experts.gate_up[0], &down = *experts.down[0];
  const int64_t slots = order.total(), item = work.x.dtype == DType::f32 ? 4 : 2;
  const SlotInputs outer = memory.outer.get(wide, slots), inner = memory.inner.get(down, slots);
  split(work.rows, wide.in * 4, [&](int64_t row) {
    int64_t first = -1;
    for (int64_t i = row * work.chosen; i < (row + 1) * work.chosen; ++i) {
      const int32_t slot = order.slots[i];
      if (slot < 0) continue;
      const Weight& own = *experts.gate_up[order.owners[slot]];
      if (first >= 0 && !own.order) {
        outer.copy(first, slot);
      } else {
        outer.prepare(own, work.x, row, slot);
        first = own.order ? -1 : slot;
      }
    }
  });
  const Matrix gate_up{memory.gate_up.get<std::byte>(slots * wide.out * item), work.x.dtype, wide.out};
  multiply(order, experts.gate_up, outer, gate_up);
  const Matrix activated{memory.activated.get<std::byte>(slots * down.in * item), work.x.dtype, down.in};
  const Activation activation{gate_up, activated, work.kind, work.gated, slots, down.in};
  split(slots, down.in * 12, [&](int64_t slot) {
    active_kernels()->activate(activation, slot);
    inner.prepare(*experts.down[order.owners[slot]], activated, slot, slot);
  });
  float* results = memory.results.get<float>(slots * down.out);
  multiply(order, experts.down, inner, {results, DType::f32, down.out});
  const Mixture mixture{results, order.slots, work.weights, work.rows, work.chosen, down.out, work.out, work.residual};
  split(work.rows, down.out * 4 * work.chosen, [&](int64_t row) { active_kernels()->mix(mixture, row); });
}

}  // namespace hagane
