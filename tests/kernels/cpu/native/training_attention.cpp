// Attention of whole sequences for training, and its gradients, against float64.
#include "checks.h"
#include "dispatch.h"

namespace checks {
namespace {

constexpr int64_t kHeads = 4, kKvHeads = 2;

struct Expected {
  std::vector<double> out, q, k, v;
};

// One head of one sequence: rows [first, last) of what has `heads` heads of `dim` features.
struct Head {
  int64_t first, last, head, kv_head, dim, window;

  int64_t query(int64_t token) const { return ((first + token) * kHeads + head) * dim; }
  int64_t key(int64_t token) const { return ((first + token) * kKvHeads + kv_head) * dim; }
  int64_t begin(int64_t token) const { return window ? std::max<int64_t>(0, token - window + 1) : 0; }
};

using Values = std::vector<double>;

// The probabilities of one query's keys, from `begin` on.
Values shares_of(const Head& h, int64_t token, const Values& q, const Values& k, double scale) {
  Values shares;
  double sum = 0;
  for (int64_t p = h.begin(token); p <= token; ++p) {
    double score = 0;
    for (int64_t d = 0; d < h.dim; ++d) score += q[h.query(token) + d] * k[h.key(p) + d];
    shares.push_back(std::exp(score * scale));
    sum += shares.back();
  }
  for (double& share : shares) share /= sum;
  return shares;
}

void add_head(const Head& h, const Values& q, const Values& k, const Values& v, const Values& grad, double scale, Expected& e) {
  for (int64_t token = 0; token < h.last - h.first; ++token) {
    const Values shares = shares_of(h, token, q, k, scale);
    Values pulls;
    double mean = 0;
    for (size_t i = 0; i < shares.size(); ++i) {
      const int64_t p = h.begin(token) + static_cast<int64_t>(i);
      double pull = 0;
      for (int64_t d = 0; d < h.dim; ++d) {
        e.out[h.query(token) + d] += shares[i] * v[h.key(p) + d];
        e.v[h.key(p) + d] += shares[i] * grad[h.query(token) + d];
        pull += grad[h.query(token) + d] * v[h.key(p) + d];
      }
      pulls.push_back(pull);
      mean += shares[i] * pull;
    }
    for (size_t i = 0; i < shares.size(); ++i) {
      const int64_t p = h.begin(token) + static_cast<int64_t>(i);
      const double slope = shares[i] * (pulls[i] - mean) * scale;
      for (int64_t d = 0; d < h.dim; ++d) {
        e.q[h.query(token) + d] += slope * k[h.key(p) + d];
        e.k[h.key(p) + d] += slope * q[h.query(token) + d];
      }
    }
  }
}

void check_shape(Checks& c, Random& random, int64_t dim, int64_t window) {
  const std::vector<int64_t> starts{0, 90, 107};
  const int64_t tokens = starts.back(), wide = kHeads * dim, narrow = kKvHeads * dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  auto q = normals<bf16>(random, tokens * wide), k = normals<bf16>(random, tokens * narrow), v = normals<bf16>(random, tokens * narrow);
  auto grad = normals<bf16>(random, tokens * wide);
  std::vector<bf16> out(q.size()), grad_q(q.size()), grad_k(k.size()), grad_v(v.size());
  Expected expected{Values(q.size()), Values(q.size()), Values(k.size()), Values(v.size())};
  for (size_t s = 0; s + 1 < starts.size(); ++s)
    for (int64_t h = 0; h < kHeads; ++h)
      add_head({starts[s], starts[s + 1], h, h / (kHeads / kKvHeads), dim, window}, exact(q), exact(k), exact(v), exact(grad), scale, expected);
  SequenceAttention a{matrix(q, wide), matrix(k, narrow), matrix(v, narrow), matrix(out, wide), {}, {}, {}, starts.data(), 2,
                      kHeads, kKvHeads, dim, window, scale};
  run_sequence_attention(a, false);
  c.near(out, expected.out, 3);
  a.out = matrix(grad, wide);
  a.grad_q = matrix(grad_q, wide), a.grad_k = matrix(grad_k, narrow), a.grad_v = matrix(grad_v, narrow);
  run_sequence_attention(a, true);
  c.near(grad_q, expected.q, 5);
  c.near(grad_k, expected.k, 5);
  c.near(grad_v, expected.v, 5);
}

}  // namespace

void check_training_attention(Checks& c) {
  Random random(10);
  c.begin("sequence_attention");
  for (int64_t dim : {16, 40, 64, 128})
    for (int64_t window : {0, 33}) check_shape(c, random, dim, window);
}

}  // namespace checks
