// Attention of training as methods of the extension module. Shapes and dtypes are checked by
// app/hagane/kernels/training.py, the only caller.
#include "arguments.h"
#include "dispatch.h"

namespace hagane {
namespace {

SequenceAttention sequence_arguments(Arguments& in) {
  SequenceAttention a{};
  a.q = in.matrix();
  a.k = in.matrix();
  a.v = in.matrix();
  a.out = in.matrix();
  a.starts = in.address<const int64_t>();
  a.sequences = in.integer();
  a.heads = in.integer();
  a.kv_heads = in.integer();
  a.head_dim = in.integer();
  a.window = in.integer();
  a.scale = in.real();
  return a;
}

PyObject* sequence_attention(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  SequenceAttention a = sequence_arguments(in);
  if (!in.complete()) return nullptr;
  run_sequence_attention(a, false);
  Py_RETURN_NONE;
}

PyObject* sequence_attention_backward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  SequenceAttention a = sequence_arguments(in);
  a.grad_q = in.matrix();
  a.grad_k = in.matrix();
  a.grad_v = in.matrix();
  if (!in.complete()) return nullptr;
  run_sequence_attention(a, true);
  Py_RETURN_NONE;
}

}  // namespace

#define METHOD(name) \
  {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(name)), METH_FASTCALL, nullptr}
PyMethodDef training_methods[] = {METHOD(sequence_attention), METHOD(sequence_attention_backward),
                                  {nullptr, nullptr, 0, nullptr}};
#undef METHOD

}  // namespace hagane
