// The operations of serving between matrix products, as methods of the extension module.
#include "calls.h"

namespace hagane {
namespace {

PyObject* row_norm(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows x = in.rows("x"), out = in.rows("out");
  in.expect(same_shape(x, out) && x.dtype == out.dtype, "x and out");
  RowNorm n{};
  n.x = x;
  n.out = out;
  n.rows = x.rows;
  n.features = x.columns;
  n.weight = in.array_like("weight", x.dtype, x.columns);
  n.bias = in.optional_array_like("bias", x.dtype, x.columns);
  n.residual = in.optional_array_like("residual", x.dtype, x.rows * x.columns);
  n.eps = in.real("eps");
  n.offset = in.real("offset");
  n.centered = in.integer("centered") != 0;
  if (!in.complete()) return nullptr;
  return perform_rows(norm_rows(n));
}

PyObject* activate(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows x = in.rows("x"), out = in.rows("out");
  Activation a{};
  a.x = x;
  a.out = out;
  a.rows = out.rows;
  a.features = out.columns;
  a.kind = static_cast<Activation::Kind>(in.integer("kind"));
  a.gated = in.integer("gated") != 0;
  in.expect(x.rows == out.rows && x.columns == (a.gated ? 2 : 1) * out.columns && x.dtype == out.dtype,
            "x and out");
  if (!in.complete()) return nullptr;
  return perform_rows(activation_rows(a));
}

PyObject* scaled_add(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows x = in.rows("x"), out = in.rows("out");
  in.expect(same_shape(x, out) && x.dtype == out.dtype, "x and out");
  ScaledAdd s{};
  s.x = x;
  s.out = out;
  s.rows = x.rows;
  s.features = x.columns;
  s.residual = in.optional_array_like("residual", x.dtype, x.rows * x.columns);
  s.factor = in.real("factor");
  if (!in.complete()) return nullptr;
  return perform_rows(scaled_add_rows(s));
}

PyObject* softcap(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows logits = in.rows("logits");
  in.expect(logits.dtype == DType::f32, "logits must be float32");
  Softcap s{};
  s.logits = static_cast<float*>(logits.data);
  s.rows = logits.rows;
  s.vocab = logits.columns;
  s.stride = logits.stride;
  s.scale = in.real("scale");
  s.cap = in.real("cap");
  if (!in.complete()) return nullptr;
  return perform([=] { run_softcap(s); });
}

PyObject* silu_and_mul(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows x = in.rows("gate_up"), out = in.rows("out");
  in.expect(x.rows == out.rows && x.columns == 2 * out.columns && x.dtype == out.dtype, "gate_up and out");
  if (!in.complete()) return nullptr;
  return perform_rows(silu_and_mul_rows(x, out.rows, out.columns, out));
}

PyObject* apply_rope(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rotary r = rotary_arguments(in);
  if (!in.complete()) return nullptr;
  return perform_rows(rotary_rows(r));
}

PyObject* rope_tables(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows cos = in.rows("cos"), sin = in.rows("sin");
  in.expect(same_shape(cos, sin) && cos.dtype == DType::f32 && sin.dtype == DType::f32, "cos and sin");
  RopeTables a{};
  a.cos = static_cast<float*>(cos.data);
  a.sin = static_cast<float*>(sin.data);
  a.tokens = cos.rows;
  a.count = cos.columns;
  a.positions = in.array<const int64_t>("positions", a.tokens);
  a.frequencies = in.array<const float>("frequencies", a.count);
  a.magnitude = in.real("magnitude");
  if (!in.complete()) return nullptr;
  return perform([=] { run_rope_tables(a); });
}

PyObject* gather(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows x = in.rows("x"), out = in.rows("out");
  auto* indices = in.array<const int64_t>("rows", out.rows);
  in.expect(x.columns == out.columns && x.dtype == out.dtype, "x and out");
  if (!in.complete()) return nullptr;
  return perform([=] { run_gather(x, indices, out.rows, out.columns, out); });
}

PyObject* latent_heads(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows q = in.rows("q"), kv = in.rows("kv"), shared = in.rows("shared"), k = in.rows("k"), v = in.rows("v");
  in.expect(same_shape(q, k) && same_shape(q, v) && kv.rows == q.rows && shared.rows == q.rows, "q, kv and shared");
  for (const Rows* rows : {&kv, &shared, &k, &v}) in.expect(rows->dtype == q.dtype, "one dtype");
  in.expect(q.dtype != DType::int8, "q");
  LatentHeads l{};
  l.q = q;
  l.kv = kv;
  l.shared = shared;
  l.k = k;
  l.v = v;
  l.tokens = q.rows;
  l.heads = std::max<int64_t>(1, in.integer("heads"));
  l.interleaved = in.integer("interleaved") != 0;
  l.rotated = shared.columns;
  l.plain = q.columns / l.heads - l.rotated;
  l.values = kv.columns / l.heads - l.plain;
  in.expect(l.rotated % 2 == 0 && l.plain >= 0 && l.values >= 0 && l.values <= l.plain + l.rotated, "q and kv");
  in.expect(l.heads * (l.plain + l.rotated) == q.columns && l.heads * (l.plain + l.values) == kv.columns, "heads");
  l.cos = in.array<const float>("cos", q.rows * (l.rotated / 2));
  l.sin = in.array<const float>("sin", q.rows * (l.rotated / 2));
  if (!in.complete()) return nullptr;
  return perform_rows(latent_rows(l));
}

PyObject* latent_keys(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows q = in.rows("q"), latent = in.rows("latent"), shared = in.rows("shared"), wide = in.rows("wide"), k = in.rows("k");
  for (const Rows* rows : {&latent, &shared, &wide, &k})
    in.expect(rows->dtype == q.dtype && rows->rows == q.rows, "one dtype, a row for each token");
  in.expect(q.dtype != DType::int8, "q");
  LatentKeys l{};
  l.q = q;
  l.latent = latent;
  l.shared = shared;
  l.wide = wide;
  l.k = k;
  l.tokens = q.rows;
  l.heads = std::max<int64_t>(1, in.integer("heads"));
  l.interleaved = in.integer("interleaved") != 0;
  l.rotated = shared.columns;
  l.rank = latent.columns;
  l.plain = q.columns / l.heads - l.rotated;
  in.expect(l.rotated % 2 == 0 && l.plain >= 0 && l.heads * (l.plain + l.rotated) == q.columns, "q and its heads");
  in.expect(l.heads * (l.rank + l.rotated) == wide.columns && l.rank + l.rotated == k.columns, "wide and k");
  l.cos = in.array<const float>("cos", q.rows * (l.rotated / 2));
  l.sin = in.array<const float>("sin", q.rows * (l.rotated / 2));
  if (!in.complete()) return nullptr;
  return perform_rows(latent_key_rows(l));
}

PyObject* narrow_heads(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows x = in.rows("x"), out = in.rows("out");
  in.expect(x.rows == out.rows && x.dtype == out.dtype && x.dtype != DType::int8, "x and out");
  NarrowHeads n{};
  n.x = x;
  n.out = out;
  n.tokens = x.rows;
  n.heads = std::max<int64_t>(1, in.integer("heads"));
  in.expect(x.columns % n.heads == 0 && out.columns % n.heads == 0 && out.columns <= x.columns, "heads");
  if (!in.complete()) return nullptr;
  n.width = x.columns / n.heads;
  n.features = out.columns / n.heads;
  return perform_rows(narrow_rows(n));
}

PyObject* store(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows k = in.rows("k"), v = in.rows("v"), key_cache = in.rows("keys"), value_cache = in.rows("values");
  const bool separate = value_cache.columns > 0;
  in.expect(k.rows == v.rows && k.dtype == v.dtype && v.inner <= k.inner, "k and v");
  in.expect(!separate || (same_shape(k, v) && k.inner == v.inner), "k and v");
  in.expect(key_cache.dtype == value_cache.dtype, "keys and values of the cache");
  Store s{};
  s.k = k;
  s.v = v;
  s.cache_dtype = key_cache.dtype;
  s.keys = key_cache.data;
  s.values = separate ? value_cache.data : nullptr;
  s.tokens = k.rows;
  s.head_dim = k.inner;
  s.value_dim = v.inner;
  s.kv_heads = k.inner ? k.columns / k.inner : 0;
  s.slots = in.array<const int64_t>("slots", k.rows);
  s.block_size = in.integer("block_size");
  if (!in.complete()) return nullptr;
  return perform_rows(store_rows(s));
}

// The blocks of a cache that an attention reads.
void read_cache(Arguments& in, Attention& a) {
  Rows keys = in.rows("keys"), values = in.rows("values");
  in.expect(keys.dtype == values.dtype, "keys and values of the cache");
  a.cache_dtype = keys.dtype;
  a.keys = keys.data;
  a.values = values.columns ? values.data : nullptr;
  a.kv_heads = in.integer("kv_heads");
  a.head_dim = in.integer("head_dim");
  a.block_size = in.integer("block_size");
  a.sequences = in.integer("sequences");
  a.block_tables = in.table<const int32_t>("block_tables", a.sequences, &a.table_stride);
  a.context_lengths = in.array<const int32_t>("context_lengths", a.sequences);
}

PyObject* attend(Arguments in, bool with_sinks) {
  Rows q = in.rows("q"), out = in.rows("out");
  in.expect(q.rows == out.rows && q.dtype == out.dtype, "q and out");
  Attention a{};
  a.q = q;
  a.out = out;
  read_cache(in, a);
  in.expect(q.inner == a.head_dim && a.head_dim > 0, "q and head_dim");
  a.heads = a.head_dim > 0 ? q.columns / a.head_dim : 0;
  a.value_dim = a.heads > 0 ? out.columns / a.heads : 0;
  in.expect(a.heads * a.value_dim == out.columns && a.value_dim <= a.head_dim, "out and its heads");
  in.expect(!a.values || a.value_dim == a.head_dim, "out and the values of the cache");
  a.query_starts = in.array<const int32_t>("query_starts", a.sequences + 1);
  a.window = in.integer("window");
  a.scale = in.real("scale");
  a.cap = in.real("cap");
  if (with_sinks) a.sinks = in.array<const float>("sinks", a.heads);
  if (!in.complete()) return nullptr;
  return perform([=] { run_attention(a); });
}

PyObject* paged_attention(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  return attend(Arguments(values, count, names), false);
}

PyObject* sink_attention(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  return attend(Arguments(values, count, names), true);
}

PyObject* prefetch(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Attention a{};
  read_cache(in, a);
  if (!in.complete()) return nullptr;
  return perform([=] { run_prefetch(a); });
}

PyObject* sample(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows logits = in.rows("logits");
  in.expect(logits.dtype == DType::f32, "logits must be float32");
  Sampling d{};
  d.logits = static_cast<const float*>(logits.data);
  d.rows = logits.rows;
  d.vocab = logits.columns;
  d.stride = logits.stride;
  d.temperature = in.array<const double>("temperature", d.rows);
  d.top_p = in.array<const double>("top_p", d.rows);
  d.min_p = in.array<const double>("min_p", d.rows);
  d.uniform = in.array<const double>("uniform", d.rows);
  d.top_k = in.array<const int64_t>("top_k", d.rows);
  d.draws = in.integer("draws");
  d.tokens = in.array<int64_t>("tokens", d.rows * d.draws);
  if (!in.complete()) return nullptr;
  return perform([=] { run_sample(d); });
}

PyObject* argmax(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows logits = in.rows("logits");
  in.expect(logits.dtype == DType::f32, "logits must be float32");
  Argmax g{};
  g.logits = static_cast<const float*>(logits.data);
  g.rows = logits.rows;
  g.vocab = logits.columns;
  g.stride = logits.stride;
  g.tokens = in.array<int64_t>("tokens", g.rows);
  g.finite = in.array<bool>("finite", g.rows);
  if (!in.complete()) return nullptr;
  return perform([=] { run_argmax(g); });
}

// The rows of logits that a call names.
const int64_t* read_sources(Arguments& in, const Rows& logits, int64_t count) {
  const int64_t* sources = in.array<const int64_t>("sources", count);
  for (int64_t row = 0; sources && row < count; ++row)
    in.expect(sources[row] >= 0 && sources[row] < logits.rows, "sources must be rows of logits");
  return sources;
}

PyObject* heaviest(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows logits = in.rows("logits");
  in.expect(logits.dtype == DType::f32, "logits must be float32");
  Heaviest h{};
  h.logits = static_cast<const float*>(logits.data);
  h.vocab = logits.columns;
  h.stride = logits.stride;
  h.rows = in.integer("rows");
  h.count = in.integer("count");
  h.sources = read_sources(in, logits, h.rows);
  h.temperature = in.array<const double>("temperature", h.rows);
  h.tokens = in.array<int64_t>("tokens", h.rows * h.count);
  h.weights = in.array<float>("weights", h.rows * h.count);
  h.totals = in.array<double>("totals", h.rows);
  if (!in.complete()) return nullptr;
  return perform([=] { run_heaviest(h); });
}

PyObject* restrict(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows logits = in.rows("logits"), out = in.rows("out");
  in.expect(logits.dtype == DType::f32 && out.dtype == DType::f32, "logits and out must be float32");
  in.expect(out.columns == logits.columns && out.stride == out.columns, "out must be like logits");
  Restriction r{};
  r.logits = static_cast<const float*>(logits.data);
  r.out = static_cast<float*>(out.data);
  r.rows = out.rows;
  r.vocab = logits.columns;
  r.stride = logits.stride;
  r.sources = read_sources(in, logits, r.rows);
  r.allowed = in.array<const uint8_t>("allowed", r.rows * ceil_div(r.vocab, 8));
  if (!in.complete()) return nullptr;
  return perform([=] { run_restrict(r); });
}

}  // namespace

PyMethodDef serving_methods[] = {
    HAGANE_METHOD("row_norm", row_norm),       HAGANE_METHOD("silu_and_mul", silu_and_mul),
    HAGANE_METHOD("activate", activate),       HAGANE_METHOD("scaled_add", scaled_add),
    HAGANE_METHOD("softcap", softcap),
    HAGANE_METHOD("apply_rope", apply_rope),   HAGANE_METHOD("rope_tables", rope_tables),
    HAGANE_METHOD("gather", gather),           HAGANE_METHOD("store", store),
    HAGANE_METHOD("latent_heads", latent_heads), HAGANE_METHOD("latent_keys", latent_keys), HAGANE_METHOD("narrow_heads", narrow_heads),
    HAGANE_METHOD("paged_attention", paged_attention), HAGANE_METHOD("sink_attention", sink_attention),
    HAGANE_METHOD("prefetch", prefetch),
    HAGANE_METHOD("sample", sample),           HAGANE_METHOD("argmax", argmax),
    HAGANE_METHOD("heaviest", heaviest),       HAGANE_METHOD("restrict", restrict),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace hagane
