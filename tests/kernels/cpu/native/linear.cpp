// The matrix products, what prepares their inputs, embeddings, quantization, and low-rank changes.
#include "weights.h"

namespace checks {
namespace {

// Sylvester's matrix, in blocks, in float64.
std::vector<double> rotated(std::vector<double> x, int64_t block) {
  for (size_t first = 0; block && first < x.size(); first += block)
    for (int64_t stride = 1; stride < block; stride *= 2)
      for (int64_t i = 0; i < block; ++i) {
        if (i & stride) continue;
        double &low = x[first + i], &high = x[first + i + stride];
        const double sum = (low + high) / std::sqrt(2.0), difference = (low - high) / std::sqrt(2.0);
        low = sum, high = difference;
      }
  return x;
}

// Codes stand for the row: within half a step, and a little for rounding.
template <class T>
void check_prepared(Checks& c, const Weight& w, const PreparedRows& rows, const T* x, int64_t row) {
  std::vector<double> wanted;
  for (int64_t i = 0; i < w.in; ++i)
    wanted.push_back(exact(x[w.order ? w.order[i] : i]) * (w.input_scale ? w.input_scale[i] : 1.0));
  wanted = rotated(wanted, w.rotation);
  const bool codes = w.input_bytes() == 1;
  for (int64_t i = 0; i < w.in; ++i) {
    const int64_t chunk = w.format == Format::grouped ? i / 32 : 0;
    const double step = codes ? rows.scale[row * w.input_scales() + chunk] : 0;
    const double rounding = w.format == Format::bf16 ? 0.004 * std::fabs(wanted[i]) : 1e-6;
    c.near(rows.at(w, row, i), wanted[i], 0.501 * step + rounding);
  }
}

template <class Out>
void check_products(Checks& c, const RandomWeight& random, const PreparedRows& rows, Random& numbers) {
  const Weight& w = random.weight;
  const int64_t count = rows.prepared.count, stride = w.out + 3;
  std::vector<Out> out(count * stride), residual = normals<Out>(numbers, count * stride), one(stride);
  c.kernels.linear({w, rows.prepared, matrix(out, stride), residual.data()}, 0, w.blocks());
  for (int64_t r = 0; r < count; ++r)
    for (int64_t o = 0; o < w.out; ++o) {
      double sum = w.bias[o] + exact(residual[r * stride + o]), size = 1 + std::fabs(sum);
      for (int64_t i = 0; i < w.in; ++i) {
        const double product = rows.at(w, r, i) * random.exact[o * w.in + i];
        sum += product;
        size += std::fabs(product);
      }
      c.near(exact(out[r * stride + o]), sum, 3e-6 * size + (sizeof(Out) == 2 ? 0.005 * std::fabs(sum) : 0));
    }
  // A row alone, and block by block, has the same bits.
  for (int64_t r = 0; r < count; ++r) {
    Prepared alone = rows.prepared;
    alone.rows = rows.rows.data() + r * alone.stride * w.input_bytes();
    alone.count = 1;
    alone.scale += r * w.input_scales();
    alone.offsets += r * w.input_sums();
    for (int64_t block = 0; block < w.blocks(); ++block)
      c.kernels.linear({w, alone, matrix(one, stride), residual.data() + r * stride}, block, block + 1);
    c.same(one.data(), &out[r * stride], w.out, "bits depend on other rows");
  }
}

// Codes of the inputs and sums of integers are exact: they, and so the products, are those of the generic set.
template <class In>
void check_like_generic(Checks& c, const Weight& w, const Matrix& x, const PreparedRows& rows) {
  const Kernels& generic = *generic_kernels();
  const PreparedRows plain(generic, w, x, rows.prepared.count);
  std::vector<float> found(rows.prepared.count * w.out), expected = found;
  c.kernels.linear({w, rows.prepared, matrix(found, w.out), nullptr}, 0, w.blocks());
  generic.linear({w, rows.prepared, matrix(expected, w.out), nullptr}, 0, w.blocks());
  if (w.format == Format::f32 || w.format == Format::bf16) return;
  c.holds(plain.rows == rows.rows && plain.offsets == rows.offsets && plain.scale == rows.scale, "other inputs");
  for (size_t i = 0; i < found.size(); ++i) c.near(found[i], expected[i], 1e-6 * (1 + std::fabs(expected[i])));
}

template <class In>
void check_form(Checks& c, Random& random, const Form& form, int64_t out, int64_t in, int64_t count) {
  const RandomWeight made(random, form, out, in);
  const Weight& w = made.weight;
  std::vector<In> x = normals<In>(random, count * (in + 5));
  for (int64_t r = 0; r < count; ++r) put(&x[r * (in + 5) + 7], static_cast<float>(60 * random.normal()));  // outliers
  if (count > 2) std::fill_n(&x[2 * (in + 5)], in, In{0});
  const Matrix m = matrix(x, in + 5);
  const PreparedRows rows(c.kernels, w, m, count);
  for (int64_t r = 0; r < count; ++r) check_prepared(c, w, rows, m.row<In>(r), r);
  check_products<In>(c, made, rows, random);
  check_like_generic<In>(c, w, m, rows);
}

template <class T>
void check_embedding(Checks& c, Random& random, const Form& form) {
  if (form.format == Format::int4) return;
  const RandomWeight made(random, form, 37, 128);
  const Weight& w = made.weight;
  std::vector<T> row(128);
  const int64_t ids[] = {0, 36, 17};
  for (int64_t id : ids) {
    c.kernels.embed(w, &id, matrix(row, 128), 0);
    const std::vector<double> weights(&made.exact[id * 128], &made.exact[id * 128] + 128);
    const std::vector<double> wanted = rotated(weights, w.rotation);
    for (int64_t i = 0; i < 128; ++i) c.near(exact(row[w.order ? w.order[i] : i]), wanted[i], slack<T>() * (1 + std::fabs(wanted[i])));
  }
}

// Rows with NaN or an infinity, and of zeros and huge values.
void check_odd_rows(Checks& c, Random& random, const Form& form) {
  const RandomWeight made(random, form, 20, 128);
  std::vector<float> x = normals<float>(random, 6 * 128), clean(6 * 20), out = clean;
  auto multiply = [&](std::vector<float>& result) {
    const PreparedRows rows(c.kernels, made.weight, matrix(x, 128), 6);
    c.kernels.linear({made.weight, rows.prepared, matrix(result, 20), nullptr}, 0, 2);
  };
  multiply(clean);
  x[128 + 5] = NAN;
  x[4 * 128 + 9] = INFINITY;
  multiply(out);
  for (int64_t r = 0; r < 6; ++r)
    for (int64_t o = 0; o < 20; ++o)
      if (r == 1 || r == 4) c.holds(!std::isfinite(out[r * 20 + o]) || made.exact[o * 128 + 9] == 0, "no trace of NaN");
      else c.same(&out[r * 20 + o], &clean[r * 20 + o], 1, "NaN of another row");
}

}  // namespace

void check_linear(Checks& c) {
  for (const Form& form : kForms) {
    Random random(1);
    c.begin(std::string("linear, ") + form.name);
    for (int64_t count : {1, 2, 3, 4, 5, 7, 9, 17}) {
      check_form<float>(c, random, form, count % 2 ? 37 : 64, 128 * (1 + count % 3), count);
      check_form<bf16>(c, random, form, count % 2 ? 16 : 9, 256, count);
    }
    check_odd_rows(c, random, form);
    c.begin(std::string("embedding, ") + form.name);
    check_embedding<float>(c, random, form);
    check_embedding<bf16>(c, random, form);
  }
}

}  // namespace checks
