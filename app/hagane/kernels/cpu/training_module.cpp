// The backward passes of frozen layers and attention of training, as methods of the extension module.
#include "calls.h"

namespace hagane {
namespace {

PyObject* rms_norm_backward(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows grad = in.rows("grad"), x = in.rows("x");
  void* weight = in.array_like("weight", x.dtype, x.columns);
  float eps = in.real("eps");
  Rows out = in.rows("out");
  in.expect(same_shape(grad, x) && same_shape(x, out) && grad.dtype == x.dtype && x.dtype == out.dtype,
            "grad, x and out");
  if (!in.complete()) return nullptr;
  run_rms_norm_backward(grad, x, weight, eps, x.rows, x.columns, out);
  Py_RETURN_NONE;
}

PyObject* silu_and_mul_backward(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows grad = in.rows("grad"), gate_up = in.rows("gate_up"), out = in.rows("out");
  in.expect(same_shape(gate_up, out) && grad.rows == out.rows && 2 * grad.columns == out.columns &&
                grad.dtype == gate_up.dtype && grad.dtype == out.dtype,
            "grad, gate_up and out");
  if (!in.complete()) return nullptr;
  run_silu_and_mul_backward(grad, gate_up, grad.rows, grad.columns, out);
  Py_RETURN_NONE;
}

// In place: `qkv` holds the gradients of the results.
PyObject* apply_rope_backward(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rotary r = rotary_arguments(in);
  Rows before = in.rows("before");
  in.expect(before.rows == r.tokens && before.dtype == r.qkv.dtype, "qkv and before");
  in.expect(r.plain(), "only whole heads turn backwards");
  if (!in.complete()) return nullptr;
  run_rotary_backward(r, before);
  Py_RETURN_NONE;
}

PyObject* token_scores(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows logits = in.rows("logits");
  TokenScores t{};
  t.logits = logits;
  t.rows = logits.rows;
  t.vocab = logits.columns;
  t.targets = in.array<const int64_t>("targets", t.rows);
  t.logprobs = in.array<float>("logprobs", t.rows);
  t.first = in.array<bool>("first", t.rows);
  t.gradients = in.integer("gradients") != 0;
  if (!in.complete()) return nullptr;
  run_token_scores(t);
  Py_RETURN_NONE;
}

SequenceAttention sequence_arguments(Arguments& in) {
  SequenceAttention a{};
  Rows q = in.rows("q"), k = in.rows("k"), v = in.rows("v"), out = in.rows("out");
  in.expect(same_shape(q, out) && same_shape(k, v) && q.rows == k.rows && q.inner == k.inner && k.inner == v.inner,
            "q, k, v and out");
  in.expect(q.dtype == DType::bf16 && k.dtype == DType::bf16 && v.dtype == DType::bf16 && out.dtype == DType::bf16,
            "attention of sequences is in bfloat16");
  a.q = q;
  a.k = k;
  a.v = v;
  a.out = out;
  a.head_dim = q.inner;
  a.heads = q.inner ? q.columns / q.inner : 0;
  a.kv_heads = k.inner ? k.columns / k.inner : 0;
  a.sequences = in.integer("sequences");
  a.starts = in.array<const int64_t>("starts", a.sequences + 1);
  a.window = in.integer("window");
  a.scale = in.real("scale");
  return a;
}

PyObject* sequence_attention(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  SequenceAttention a = sequence_arguments(in);
  if (!in.complete()) return nullptr;
  run_sequence_attention(a, false);
  Py_RETURN_NONE;
}

PyObject* sequence_attention_backward(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  SequenceAttention a = sequence_arguments(in);
  Rows grad_q = in.rows("grad_q"), grad_k = in.rows("grad_k"), grad_v = in.rows("grad_v");
  in.expect(grad_q.dtype == DType::bf16 && grad_k.dtype == DType::bf16 && grad_v.dtype == DType::bf16 &&
                same_shape(grad_k, grad_v) && grad_q.rows == grad_k.rows,
            "gradients of q, k and v");
  a.grad_q = grad_q;
  a.grad_k = grad_k;
  a.grad_v = grad_v;
  if (!in.complete()) return nullptr;
  run_sequence_attention(a, true);
  Py_RETURN_NONE;
}

}  // namespace

PyMethodDef training_methods[] = {
    HAGANE_METHOD("rms_norm_backward", rms_norm_backward),
    HAGANE_METHOD("silu_and_mul_backward", silu_and_mul_backward),
    HAGANE_METHOD("apply_rope_backward", apply_rope_backward),
    HAGANE_METHOD("token_scores", token_scores),
    HAGANE_METHOD("sequence_attention", sequence_attention),
    HAGANE_METHOD("sequence_attention_backward", sequence_attention_backward),
    {nullptr, nullptr, 0, nullptr}};

}  // namespace hagane
