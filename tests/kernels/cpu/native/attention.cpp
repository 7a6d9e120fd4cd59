// Attention over paged caches of floats, bf16 and int8, as `store` fills them.
#include <functional>

#include "checks.h"
#include "dispatch.h"

namespace checks {
namespace {

struct Shape {
  int64_t heads, kv_heads, dim, window;
  bool sinks;
  float cap;
  int64_t shared = 0;  // features of keys that are the values, which are not stored

  int64_t value_dim() const { return shared ? shared : dim; }
};

constexpr Shape kShapes[] = {
    {4, 4, 16, 0, false, 0},  {6, 2, 64, 0, false, 0},  {6, 2, 64, 20, true, 0}, {8, 1, 128, 0, true, 0},
    {8, 1, 128, 64, false, 0}, {2, 2, 8, 1, false, 0}, {3, 1, 40, 100, false, 0}, {4, 2, 96, 0, false, 25},
    {8, 1, 96, 0, false, 0, 64}, {6, 2, 40, 20, true, 0, 24}, {16, 1, 288, 0, false, 0, 256},
};

// Two sequences of one layer: their queries, keys and values, and a cache with all keys in it.
template <class Q>
struct Sequences {
  static constexpr int64_t kBlock = 32, kBlocks = 16;
  const Shape& shape;
  DType cells;
  std::vector<int32_t> lengths{150, 37}, starts{0, 150, 187}, table;
  std::vector<Q> q, k, v;
  std::vector<uint64_t> keys, values;
  std::vector<float> sinks;

  Sequences(Random& random, const Shape& shape, DType cells, const Kernels& kernels) : shape(shape), cells(cells) {
    const int64_t tokens = starts.back(), width = shape.kv_heads * shape.dim;
    q = normals<Q>(random, tokens * shape.heads * shape.dim, 0.7);
    k = normals<Q>(random, tokens * width);
    v = shape.shared ? k : normals<Q>(random, tokens * width);
    sinks = normals<float>(random, shape.heads);
    for (int32_t i = 0; i < 2 * 8; ++i) table.push_back((5 * i + 3) % kBlocks);
    // What earlier sequences left behind is not zero.
    const int64_t padded = round_up(shape.dim, 16);
    keys.assign(kBlocks * shape.kv_heads * kBlock * (padded + 4) / 2, ~uint64_t{0});
    values = keys;
    std::vector<int64_t> slots;
    for (int64_t s = 0; s < 2; ++s)
      for (int64_t p = 0; p < lengths[s]; ++p) slots.push_back(table[8 * s + p / kBlock] * kBlock + p % kBlock);
    const Store store{matrix(k, width), matrix(v, width), cells, keys.data(), stored_values(), slots.data(), tokens,
                      shape.kv_heads, shape.dim, kBlock, shape.value_dim()};
    for (int64_t t = 0; t < tokens; ++t) kernels.store(store, t);
  }

  void* stored_values() { return shape.shared ? nullptr : values.data(); }

  Attention attention(std::vector<Q>& queries, std::vector<Q>& out, const std::vector<int32_t>& query_starts) {
    const int64_t width = shape.heads * shape.dim;
    return {matrix(queries, width), matrix(out, shape.heads * shape.value_dim()), cells, keys.data(), stored_values(), shape.heads, shape.kv_heads,
            shape.dim, kBlock, table.data(), 8, query_starts.data(), lengths.data(), 2, shape.window,
            1.0f / std::sqrt(static_cast<float>(shape.dim)), shape.cap, shape.sinks ? sinks.data() : nullptr, shape.value_dim()};
  }

  // One head of one query, in float64.
  std::vector<double> expected(int64_t s, int64_t position, int64_t head) const {
    const int64_t dim = shape.dim, values = shape.value_dim(), kv = head / (shape.heads / shape.kv_heads), width = shape.kv_heads * dim;
    const Q* query = &q[((starts[s] + position) * shape.heads + head) * dim];
    std::vector<double> weights, out(values);
    double total = shape.sinks ? std::exp(static_cast<double>(sinks[head])) : 0;
    const int64_t first = shape.window ? std::max<int64_t>(0, position - shape.window + 1) : 0;
    for (int64_t p = first; p <= position; ++p) {
      double score = 0;
      for (int64_t d = 0; d < dim; ++d) score += exact(query[d]) * exact(k[(starts[s] + p) * width + kv * dim + d]);
      score /= std::sqrt(static_cast<double>(dim));
      if (shape.cap != 0) score = shape.cap * std::tanh(score / shape.cap);
      total += std::exp(score);
      for (int64_t d = 0; d < values; ++d) out[d] += std::exp(score) * exact(v[(starts[s] + p) * width + kv * dim + d]);
    }
    for (double& o : out) o /= total;
    return out;
  }
};

// Prefill against float64, and decode against prefill: the same bits.
template <class Q>
void check_shape(Checks& c, Random& random, const Shape& shape, DType cells) {
  Sequences<Q> sequences(random, shape, cells, c.kernels);
  const int64_t width = shape.heads * shape.dim, wide = shape.heads * shape.value_dim();
  std::vector<Q> out(sequences.starts.back() * wide), last(2 * wide), queries;
  run_attention(sequences.attention(sequences.q, out, sequences.starts));
  const double rounding = cells == DType::int8 ? 0.03 : cells == DType::bf16 || sizeof(Q) == 2 ? 0.02 : 2e-5;
  for (int64_t s = 0; s < 2; ++s)
    for (int64_t p = 0; p < sequences.lengths[s]; p += p % 3 + 1)
      for (int64_t h = 0; h < shape.heads; ++h) {
        const auto wanted = sequences.expected(s, p, h);
        for (int64_t d = 0; d < shape.value_dim(); ++d)
          c.near(exact(out[(sequences.starts[s] + p) * wide + h * shape.value_dim() + d]), wanted[d], rounding * (1 + std::fabs(wanted[d])));
      }
  for (int64_t s : {1, 2}) {
    const Q* row = &sequences.q[(sequences.starts[s] - 1) * width];
    queries.insert(queries.end(), row, row + width);
  }
  const std::vector<int32_t> alone{0, 1, 2};
  run_attention(sequences.attention(queries, last, alone));
  for (int64_t s : {0, 1})
    c.same(&last[s * wide], &out[(sequences.starts[s + 1] - 1) * wide], wide, "bits depend on other queries");
}

}  // namespace

void check_attention(Checks& c) {
  Random random(7);
  for (const Shape& shape : kShapes) {
    const std::string of = " cells, head of " + std::to_string(shape.dim);
    c.begin("attention, float" + of);
    check_shape<float>(c, random, shape, DType::f32);
    c.begin("attention, bf16" + of);
    check_shape<bf16>(c, random, shape, DType::bf16);
    check_shape<float>(c, random, shape, DType::bf16);
    c.begin("attention, int8" + of);
    check_shape<bf16>(c, random, shape, DType::int8);
    check_shape<float>(c, random, shape, DType::int8);
  }
}

}  // namespace checks
