// Operations that are run at once, or added to the recording that is being made.
#pragma once

#include "arguments.h"
#include "recording.h"

namespace hagane {

extern Recording* recording;  // the one being made, or null

template <class Kernel>
PyObject* perform(const Kernel& kernel) {
  if (recording) recording->add(kernel);
  else kernel();
  Py_RETURN_NONE;
}

inline PyObject* perform_rows(RowWork work) {
  if (recording) recording->add(std::move(work));
  else run_rows(work);
  Py_RETURN_NONE;
}

inline bool same_shape(const Rows& a, const Rows& b) { return a.rows == b.rows && a.columns == b.columns; }

// qkv rows, cosines and sines, and norms of queries and keys (both or neither), of one rotation.
inline Rotary rotary_arguments(Arguments& in) {
  Rows qkv = in.rows("qkv");
  Rotary r{};
  r.qkv = qkv;
  r.tokens = qkv.rows;
  r.heads = in.integer("heads");
  r.kv_heads = in.integer("kv_heads");
  const int64_t heads = r.heads + 2 * r.kv_heads;
  r.head_dim = heads > 0 ? qkv.columns / heads : 0;
  in.expect(heads > 0 && r.head_dim * heads == qkv.columns && r.head_dim % 2 == 0, "qkv and its heads");
  r.rotated = in.integer("rotated");
  in.expect(r.rotated >= 0 && r.rotated <= r.head_dim && r.rotated % 2 == 0, "rotated");
  r.interleaved = in.integer("interleaved") != 0;
  r.whole = in.integer("whole") != 0;
  r.cos = in.optional_array<const float>("cos", qkv.rows * (r.rotated / 2));
  r.sin = in.optional_array<const float>("sin", qkv.rows * (r.rotated / 2));
  in.expect(!r.rotated || (r.cos && r.sin), "cos and sin");
  r.q_norm = in.optional_array_like("q_norm", qkv.dtype, r.head_dim * (r.whole ? r.heads : 1));
  r.k_norm = in.optional_array_like("k_norm", qkv.dtype, r.head_dim * (r.whole ? r.kv_heads : 1));
  in.expect(!r.q_norm == !r.k_norm, "q_norm without k_norm");
  r.center = in.optional_array<const float>("center", r.kv_heads * r.head_dim);
  r.eps = in.real("eps");
  r.offset = in.real("offset");
  return r;
}

}  // namespace hagane
