// Sampling against a full sort in float64; argmax, the heaviest tokens and restricted rows.
#include <algorithm>
#include <numeric>

#include "checks.h"

namespace checks {
namespace {

struct Cut {
  double top_p = 1, min_p = 0;
  int64_t top_k = 0;
};

// The probability mass below the token's place lies at `point`, but for the rounding of float32.
void check_sample(Checks& c, Random& random, int64_t vocab, double spread, double temperature, const Cut& cut) {
  auto logits = normals<float>(random, vocab, spread);
  const double point = random.uniform();
  int64_t token = -1;
  c.kernels.sample({logits.data(), 1, vocab, vocab, 1, &temperature, &cut.top_p, &cut.min_p, &point, &cut.top_k, &token}, 0);
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (float v : logits) p.push_back(std::exp((v - top) / temperature));
  const double all = std::accumulate(p.begin(), p.end(), 0.0);
  std::vector<int64_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  const bool filtered = cut.top_p < 1 || cut.min_p > 0 || (cut.top_k > 0 && cut.top_k < vocab);
  if (filtered) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p[a] > p[b]; });
    double before = 0;
    size_t kept = 0;
    for (; kept < order.size(); before += p[order[kept++]])
      if (kept && (before >= cut.top_p * all || p[order[kept]] < cut.min_p || (cut.top_k && static_cast<int64_t>(kept) >= cut.top_k))) break;
    order.resize(kept);
  }
  double mass = 0, below = -1;
  for (int64_t t : order) {
    if (t == token) below = mass;
    mass += p[t];
  }
  c.holds(below >= 0, "a token that was cut");
  const double edge = 1e-5 * mass + p[order.back()];
  c.holds(below - edge <= point * mass && point * mass <= below + p[token] + edge, "another token's place");
}

void check_argmax(Checks& c, Random& random, int64_t vocab) {
  std::vector<float> logits(vocab);
  for (float& v : logits) v = static_cast<float>(random.below(7));
  for (float last : {3.0f, NAN, INFINITY, -INFINITY}) {
    logits.back() = last;
    int64_t token = -1;
    bool finite = false;
    c.kernels.argmax({logits.data(), 1, vocab, vocab, &token, &finite}, 0);
    const bool wanted = vocab == 1 ? last == 3.0f : last == 3.0f || last == -INFINITY;
    c.holds(finite == wanted, "finite");
    const int64_t best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    if (wanted) c.holds(token == best, "not the first of the largest");
  }
}

void check_heaviest(Checks& c, Random& random, int64_t vocab) {
  constexpr int64_t kCount = 8;
  const auto logits = normals<float>(random, 2 * vocab, 3);
  const int64_t source = 1;
  const double temperature = 0.7;
  int64_t tokens[kCount];
  float weights[kCount];
  double total = 0;
  c.kernels.heaviest({logits.data(), 2, vocab, vocab, kCount, &source, &temperature, tokens, weights, &total}, 0);
  const float* row = &logits[vocab];
  const double top = *std::max_element(row, row + vocab);
  std::vector<double> p;
  for (int64_t i = 0; i < vocab; ++i) p.push_back(std::exp((row[i] - top) / temperature));
  c.near(total, std::accumulate(p.begin(), p.end(), 0.0), 1e-5 * total);
  std::vector<int64_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p[a] > p[b]; });
  for (int64_t i = 0; i < kCount; ++i) {
    const bool kept = i < vocab && p[order[i]] >= 1e-3;
    c.holds(tokens[i] == (kept ? order[i] : -1), "another token");
    c.near(weights[i], kept ? p[order[i]] : 0, 1e-5);
  }
}

void check_restricted(Checks& c, Random& random, int64_t vocab) {
  const auto logits = normals<float>(random, 3 * vocab);
  std::vector<uint8_t> allowed(ceil_div(vocab, 8));
  for (uint8_t& byte : allowed) byte = static_cast<uint8_t>(random.below(256));
  const int64_t source = 2;
  std::vector<float> out(vocab);
  c.kernels.restrict_row({logits.data(), 3, vocab, vocab, &source, allowed.data(), out.data()}, 0);
  for (int64_t i = 0; i < vocab; ++i)
    c.holds(out[i] == ((allowed[i / 8] >> (i % 8)) & 1 ? logits[2 * vocab + i] : -INFINITY), "another logit");
}

}  // namespace

void check_sampling(Checks& c) {
  Random random(8);
  const Cut cuts[] = {{}, {.top_p = 0.9}, {.top_p = 0.3}, {.min_p = 0.1}, {.top_k = 7}, {.top_p = 0.95, .min_p = 0.01, .top_k = 40}};
  for (int64_t vocab : {1, 15, 16, 17, 1000, 5000}) {
    c.begin("sample");
    for (double spread : {0.0, 1.0, 5.0, 40.0})
      for (double temperature : {0.2, 1.0, 1.7})
        for (const Cut& cut : cuts) check_sample(c, random, vocab, spread, temperature, cut);
    c.begin("argmax");
    check_argmax(c, random, vocab);
    c.begin("heaviest");
    check_heaviest(c, random, vocab);
    c.begin("restrict_row");
    check_restricted(c, random, vocab);
  }
}

}  // namespace checks
