// Row-wise operations against their formulas in float64.
#include "checks.h"

namespace checks {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double activated(double x, Activation::Kind kind) {
  switch (kind) {
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    default: return std::min(x, 7.0) * sigmoid(1.702 * std::min(x, 7.0));
  }
}

template <class T>
void check_norms(Checks& c, Random& random, int64_t features) {
  c.begin("row_norm");
  for (bool centered : {false, true})
    for (bool more : {false, true}) {
      auto x = normals<T>(random, features, 3), weight = normals<T>(random, features), extra = normals<T>(random, features);
      std::vector<T> out(features);
      const float offset = more && !centered ? 1.0f : 0.0f;
      c.kernels.row_norm({matrix(x, features), matrix(out, features), weight.data(), centered && more ? extra.data() : nullptr,
                          !centered && more ? extra.data() : nullptr, 1e-5f, offset, centered, 1, features}, 0);
      double mean = 0, square = 0;
      for (T v : x) mean += centered ? exact(v) / static_cast<double>(features) : 0;
      for (T v : x) square += (exact(v) - mean) * (exact(v) - mean) / static_cast<double>(features);
      std::vector<double> wanted;
      for (int64_t i = 0; i < features; ++i)
        wanted.push_back((exact(x[i]) - mean) / std::sqrt(square + 1e-5) * (exact(weight[i]) + offset) + (more ? exact(extra[i]) : 0));
      c.near(out, wanted);
    }
}

template <class T>
void check_activations(Checks& c, Random& random, int64_t features) {
  c.begin("activate");
  auto x = normals<T>(random, 2 * features, 5);
  std::vector<T> out(features);
  for (auto kind : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::clamped})
    for (bool gated : {false, true}) {
      c.kernels.activate({matrix(x, 2 * features), matrix(out, features), kind, gated, 1, features}, 0);
      std::vector<double> wanted;
      for (int64_t i = 0; i < features; ++i) {
        const double up = exact(x[features + i]);
        const double factor = !gated ? 1 : kind == Activation::clamped ? 1 + std::clamp(up, -7.0, 7.0) : up;
        wanted.push_back(activated(exact(x[i]), kind) * factor);
      }
      c.near(out, wanted);
    }
  c.begin("silu_and_mul");
  c.kernels.silu_and_mul(matrix(x, 2 * features), features, matrix(out, features), 0);
  std::vector<double> wanted;
  for (int64_t i = 0; i < features; ++i) wanted.push_back(activated(exact(x[i]), Activation::silu) * exact(x[features + i]));
  c.near(out, wanted);
}

template <class T>
void check_sums(Checks& c, Random& random, int64_t features) {
  auto x = normals<T>(random, features), residual = normals<T>(random, features);
  std::vector<T> out(features);
  c.begin("scaled_add");
  for (const void* added : {static_cast<const void*>(nullptr), static_cast<const void*>(residual.data())}) {
    c.kernels.scaled_add({matrix(x, features), matrix(out, features), added, 0.7f, 1, features}, 0);
    std::vector<double> wanted;
    for (int64_t i = 0; i < features; ++i) wanted.push_back(exact(x[i]) * 0.7f + (added ? exact(residual[i]) : 0));
    c.near(out, wanted);
  }
  c.begin("mix");
  const auto results = normals<float>(random, 4 * features);
  const int32_t slots[] = {3, -1, 0};
  const float weights[] = {0.5f, 9.0f, 0.25f};
  c.kernels.mix({results.data(), slots, weights, 1, 3, features, matrix(out, features), residual.data()}, 0);
  std::vector<double> wanted;
  for (int64_t i = 0; i < features; ++i)
    wanted.push_back(0.5 * results[3 * features + i] + 0.25 * results[i] + exact(residual[i]));
  c.near(out, wanted);
  c.begin("gate_rows");
  const float score = 0.4f;
  c.kernels.gate_rows({matrix(x, features), matrix(out, features), &score, 1, features}, 0);
  for (int64_t i = 0; i < features; ++i) wanted[i] = exact(x[i]) * sigmoid(0.4);
  c.near(out, wanted);
}

void check_softcap(Checks& c, Random& random) {
  c.begin("softcap");
  for (float cap : {0.0f, 30.0f}) {
    auto logits = normals<float>(random, 77, 40);
    const auto before = logits;
    c.kernels.softcap({logits.data(), 1, 77, 77, 0.5f, cap}, 0);
    std::vector<double> wanted;
    for (float v : before) wanted.push_back(cap != 0 ? 30 * std::tanh(v * 0.5 / 30) : v * 0.5);
    c.near(logits, wanted);
  }
}

// A head of `dim` features after norm and rotation, less the center.
std::vector<double> turned(std::vector<double> x, const Rotary& r, const std::vector<double>& norm, const float* center) {
  const int64_t dim = static_cast<int64_t>(x.size()), half = r.rotated / 2;
  double square = 0;
  for (double v : x) square += v * v / static_cast<double>(dim);
  for (int64_t i = 0; !norm.empty() && i < dim; ++i) x[i] *= (norm[i] + r.offset) / std::sqrt(square + r.eps);
  for (int64_t i = 0; i < half; ++i) {
    double& first = x[r.interleaved ? 2 * i : i];
    double& second = x[r.interleaved ? 2 * i + 1 : i + half];
    const double a = first, b = second;
    first = a * r.cos[i] - b * r.sin[i];
    second = b * r.cos[i] + a * r.sin[i];
  }
  for (int64_t i = 0; center && i < dim; ++i) x[i] -= center[i];
  return x;
}

template <class T>
void check_rotary(Checks& c, Random& random, int64_t dim, int64_t rotated, bool interleaved, bool normed, bool centered) {
  const int64_t heads = 3, kv_heads = 2, width = (heads + 2 * kv_heads) * dim;
  auto qkv = normals<T>(random, width);
  const auto before = qkv;
  auto q_norm = normals<T>(random, dim), k_norm = normals<T>(random, dim);
  const auto center = normals<float>(random, kv_heads * dim);
  std::vector<float> cos, sin;
  for (int64_t i = 0; i < rotated / 2; ++i) {
    const double angle = 6 * random.uniform();
    cos.push_back(static_cast<float>(std::cos(angle)));
    sin.push_back(static_cast<float>(std::sin(angle)));
  }
  Rotary r{matrix(qkv, width), cos.data(), sin.data(), normed ? q_norm.data() : nullptr, normed ? k_norm.data() : nullptr,
           centered ? center.data() : nullptr, 1e-6f, normed ? 1.0f : 0.0f, 1, heads, kv_heads, dim, rotated, interleaved, false};
  c.kernels.rotary(r, 0);
  for (int64_t h = 0; h < heads + kv_heads; ++h) {
    const std::vector<double> head(exact(std::vector<T>(&before[h * dim], &before[h * dim] + dim)));
    const auto norm = normed ? exact(h < heads ? q_norm : k_norm) : std::vector<double>{};
    const float* own_center = centered && h >= heads ? &center[(h - heads) * dim] : nullptr;
    c.near(std::vector<T>(&qkv[h * dim], &qkv[h * dim] + dim), turned(head, r, norm, own_center), 3);
  }
  c.same(&qkv[(heads + kv_heads) * dim], &before[(heads + kv_heads) * dim], kv_heads * dim, "values moved");
}

template <class T>
void check_latent(Checks& c, Random& random, bool interleaved) {
  c.begin("latent_heads");
  const int64_t heads = 3, plain = 24, rotated = 8, values = 16, width = plain + rotated;
  auto q = normals<T>(random, heads * width), kv = normals<T>(random, heads * (plain + values)), shared = normals<T>(random, rotated);
  const auto before = q;
  const auto cos = normals<float>(random, rotated / 2), sin = normals<float>(random, rotated / 2);
  std::vector<T> k(heads * width), v(heads * width), narrow(heads * values);
  c.kernels.latent_heads({matrix(q, heads * width), matrix(kv, heads * (plain + values)), matrix(shared, rotated), cos.data(), sin.data(),
                          matrix(k, heads * width), matrix(v, heads * width), 1, heads, plain, rotated, values, interleaved}, 0);
  Rotary r{};
  r.cos = cos.data(), r.sin = sin.data(), r.rotated = rotated, r.interleaved = interleaved;
  for (int64_t h = 0; h < heads; ++h) {
    const T *query = &q[h * width], *key = &k[h * width], *value = &v[h * width], *source = &kv[h * (plain + values)];
    c.same(query, &before[h * width], plain, "plain part of a query");
    const std::vector<T> end(&before[h * width + plain], &before[h * width] + width);
    c.near(std::vector<T>(query + plain, query + width), turned(exact(end), r, {}, nullptr), 3);
    c.same(key, source, plain, "plain part of a key");
    c.near(std::vector<T>(key + plain, key + width), turned(exact(shared), r, {}, nullptr), 3);
    c.same(value, source + plain, values, "values");
    for (int64_t i = values; i < width; ++i) c.holds(value[i] == 0, "padding of values");
  }
  c.begin("latent_keys");
  const int64_t rank = 20, longer = rank + rotated;
  auto latent = normals<T>(random, rank), source = before;
  auto room = normals<T>(random, heads * longer);
  const auto beginnings = room;
  std::vector<T> joint(longer);
  c.kernels.latent_keys({matrix(source, heads * width), matrix(latent, rank), matrix(shared, rotated), cos.data(), sin.data(),
                         matrix(room, heads * longer), matrix(joint, longer), 1, heads, plain, rotated, rank, interleaved}, 0);
  for (int64_t h = 0; h < heads; ++h) {
    c.same(&room[h * longer], &beginnings[h * longer], rank, "room before the end of a query");
    const T* end = &room[h * longer + rank];
    const std::vector<T> turning(&before[h * width + plain], &before[h * width] + width);
    c.near(std::vector<T>(end, end + rotated), turned(exact(turning), r, {}, nullptr), 3);
  }
  c.same(joint.data(), latent.data(), rank, "latent part of a key");
  c.same(&joint[rank], &k[plain], rotated, "shared part of a key");
  c.begin("narrow_heads");
  c.kernels.narrow_heads({matrix(v, heads * width), matrix(narrow, heads * values), 1, heads, width, values}, 0);
  for (int64_t h = 0; h < heads; ++h) c.same(&narrow[h * values], &v[h * width], values, "narrowed");
}

template <class T>
void check_all_rows(Checks& c) {
  Random random(4);
  for (int64_t features : {16, 30, 128, 1000}) {
    check_norms<T>(c, random, features);
    check_activations<T>(c, random, features);
    check_sums<T>(c, random, features);
  }
}

template <class T>
void check_all_heads(Checks& c) {
  Random random(5);
  c.begin("rotary");
  for (int64_t dim : {8, 64, 96, 128})
    for (bool normed : {false, true})
      for (bool centered : {false, true}) {
        check_rotary<T>(c, random, dim, dim, false, normed, centered);
        check_rotary<T>(c, random, dim, dim, true, normed, centered);
        check_rotary<T>(c, random, dim, dim / 2, false, normed, centered);
      }
  check_latent<T>(c, random, false);
  check_latent<T>(c, random, true);
}

}  // namespace

void check_rows(Checks& c) {
  check_all_rows<float>(c);
  check_all_rows<bf16>(c);
  Random random(6);
  check_softcap(c, random);
}

void check_heads(Checks& c) {
  check_all_heads<float>(c);
  check_all_heads<bf16>(c);
}

}  // namespace checks
