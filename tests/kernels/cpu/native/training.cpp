// Gradients against their formulas in float64.
#include "checks.h"
#include "dispatch.h"

namespace checks {
namespace {

struct NormGradients {
  std::vector<double> x, weight;
};

// Of y = x / rms(x) * weight.
NormGradients norm_gradients(const std::vector<double>& grad, const std::vector<double>& x, const std::vector<double>& weight, double eps) {
  const double size = static_cast<double>(x.size());
  double square = 0, product = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    square += x[i] * x[i];
    product += x[i] * grad[i] * weight[i];
  }
  const double scale = 1 / std::sqrt(square / size + eps);
  NormGradients found;
  for (size_t i = 0; i < x.size(); ++i) {
    found.x.push_back(grad[i] * weight[i] * scale - x[i] * scale * scale * scale * product / size);
    found.weight.push_back(grad[i] * x[i] * scale);
  }
  return found;
}

template <class T>
void check_row_gradients(Checks& c, Random& random, int64_t features) {
  auto grad = normals<T>(random, features), x = normals<T>(random, 2 * features), weight = normals<T>(random, features);
  std::vector<T> out(2 * features);
  c.begin("rms_norm_backward");
  c.kernels.rms_norm_backward(matrix(grad, features), matrix(x, features), weight.data(), 1e-5f, features, matrix(out, features), 0);
  const std::vector<T> row(x.begin(), x.begin() + features);
  c.near(std::vector<T>(out.begin(), out.begin() + features), norm_gradients(exact(grad), exact(row), exact(weight), 1e-5).x);
  c.begin("silu_and_mul_backward");
  c.kernels.silu_and_mul_backward(matrix(grad, features), matrix(x, 2 * features), features, matrix(out, 2 * features), 0);
  std::vector<double> wanted(2 * features);
  for (int64_t i = 0; i < features; ++i) {
    const double g = exact(x[i]), u = exact(x[features + i]), s = 1 / (1 + std::exp(-g)), d = exact(grad[i]);
    wanted[i] = d * u * s * (1 + g * (1 - s));
    wanted[features + i] = d * g * s;
  }
  c.near(out, wanted);
}

template <class T>
void check_rotary_gradients(Checks& c, Random& random, int64_t dim) {
  c.begin("rotary_backward");
  const int64_t heads = 2, kv_heads = 1, width = (heads + 2 * kv_heads) * dim, half = dim / 2;
  auto grad = normals<T>(random, width), before = normals<T>(random, width), norm = normals<T>(random, dim);
  const auto after = grad;
  const auto cos = normals<float>(random, half), sin = normals<float>(random, half);
  const Rotary r{matrix(grad, width), cos.data(), sin.data(), norm.data(), norm.data(), nullptr, 1e-6f, 0, 1, heads, kv_heads,
                 dim, dim, false, false};
  c.kernels.rotary_backward(r, matrix(before, width), 0);
  for (int64_t h = 0; h < heads + kv_heads; ++h) {
    std::vector<double> turned(dim);
    for (int64_t i = 0; i < half; ++i) {
      const double a = exact(after[h * dim + i]), b = exact(after[h * dim + half + i]);
      turned[i] = a * cos[i] + b * sin[i];
      turned[half + i] = b * cos[i] - a * sin[i];
    }
    const std::vector<T> x(&before[h * dim], &before[h * dim] + dim), found(&grad[h * dim], &grad[h * dim] + dim);
    c.near(found, norm_gradients(turned, exact(x), exact(norm), 1e-6).x, 4);
  }
}

template <class T>
void check_scores(Checks& c, Random& random, int64_t vocab) {
  c.begin("token_score");
  auto logits = normals<T>(random, vocab, 3);
  const auto before = exact(logits);
  const int64_t target = random.below(vocab);
  float logprob = 0;
  bool first = false;
  c.kernels.token_score({matrix(logits, vocab), &target, 1, vocab, &logprob, &first, true}, 0);
  const double top = *std::max_element(before.begin(), before.end());
  double sum = 0;
  for (double v : before) sum += std::exp(v - top);
  c.near(logprob, before[target] - top - std::log(sum), 2e-5 * (1 + std::fabs(before[target] - top)));
  c.holds(first == (before[target] == top), "whether it is the likeliest");
  std::vector<double> wanted;
  for (int64_t i = 0; i < vocab; ++i) wanted.push_back((i == target) - std::exp(before[i] - top) / sum);
  c.near(logits, wanted);
}

template <class T>
void check_norm_with_weights(Checks& c, Random& random, int64_t features) {
  const int64_t rows = 150;
  auto x = normals<float>(random, rows * features), weight = normals<float>(random, features);
  auto grad = normals<T>(random, rows * features);
  std::vector<T> out(rows * features);
  std::vector<float> grad_x(rows * features), parts(ceil_div(rows, NormBackward::kRows) * features), grad_weight(features);
  run_norm_backward({matrix(grad, features), x.data(), weight.data(), 1e-5f, rows, features, grad_x.data(), parts.data(), grad_weight.data()});
  std::vector<double> sums(features), wanted_x, wanted;
  for (int64_t r = 0; r < rows; ++r) {
    c.kernels.norm({x.data(), weight.data(), 1e-5f, rows, features, matrix(out, features)}, r);
    const std::vector<float> row(&x[r * features], &x[r * features] + features);
    const std::vector<T> row_grad(&grad[r * features], &grad[r * features] + features);
    const auto found = norm_gradients(exact(row_grad), exact(row), exact(weight), 1e-5);
    double square = 0;
    for (float v : row) square += static_cast<double>(v) * v / static_cast<double>(features);
    for (int64_t i = 0; i < features; ++i) {
      sums[i] += found.weight[i];
      wanted_x.push_back(found.x[i]);
      wanted.push_back(row[i] / std::sqrt(square + 1e-5) * weight[i]);
    }
  }
  c.begin("norm");
  c.near(out, wanted);
  c.begin("norm_backward");
  c.near(grad_x, wanted_x);
  c.near(grad_weight, sums, 5);
}

template <class T>
void check_softmax(Checks& c, Random& random, int64_t window) {
  c.begin("causal_softmax");
  const int64_t keys = 50, offset = 20, queries = 30;
  for (int64_t row : {0, 7, 29}) {
    auto scores = normals<T>(random, queries * keys), gradients = normals<T>(random, queries * keys);
    const auto before = exact(scores), before_gradients = exact(gradients);
    c.kernels.causal_softmax({matrix(scores, keys), gradients.data(), queries, keys, queries, offset, window, 0.3f}, row);
    const int64_t end = offset + row + 1, first = window ? std::max<int64_t>(0, end - window) : 0;
    double sum = 0, mean = 0;
    for (int64_t i = first; i < end; ++i) sum += std::exp(0.3f * before[row * keys + i]);
    auto share = [&](int64_t i) { return i >= first && i < end ? std::exp(0.3f * before[row * keys + i]) / sum : 0.0; };
    for (int64_t i = 0; i < keys; ++i) mean += share(i) * before_gradients[row * keys + i];
    for (int64_t i = 0; i < keys; ++i) {
      c.near(exact(scores[row * keys + i]), share(i), slack<T>());
      c.near(exact(gradients[row * keys + i]), share(i) * (before_gradients[row * keys + i] - mean) * 0.3f, slack<T>());
    }
  }
}

template <class T>
void check_all(Checks& c) {
  Random random(9);
  for (int64_t features : {16, 30, 128, 1000}) {
    check_row_gradients<T>(c, random, features);
    check_scores<T>(c, random, features);
    check_norm_with_weights<T>(c, random, features);
  }
  for (int64_t dim : {8, 40, 64, 128}) check_rotary_gradients<T>(c, random, dim);
  for (int64_t window : {0, 16}) check_softmax<T>(c, random, window);
}

}  // namespace

void check_training(Checks& c) {
  check_all<float>(c);
  check_all<bf16>(c);
}

}  // namespace checks
