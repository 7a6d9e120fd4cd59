// The operations of pretraining as methods of the extension module. Shapes and dtypes are checked by
// app/hagane/kernels/pretraining.py, the only caller.
#include "arguments.h"
#include "dispatch.h"

namespace hagane {
namespace {

PyObject* norm(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  Norm n{};
  n.x = in.address<const float>();
  n.weight = in.address<const float>();
  n.eps = in.real();
  n.rows = in.integer();
  n.features = in.integer();
  n.out = in.matrix();
  if (!in.complete()) return nullptr;
  run_norm(n);
  Py_RETURN_NONE;
}

PyObject* norm_backward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  NormBackward n{};
  n.grad = in.matrix();
  n.x = in.address<const float>();
  n.weight = in.address<const float>();
  n.eps = in.real();
  n.rows = in.integer();
  n.features = in.integer();
  n.out = in.address<float>();
  n.parts = in.address<float>();
  n.weights = in.address<float>();
  if (!in.complete()) return nullptr;
  run_norm_backward(n);
  Py_RETURN_NONE;
}

PyObject* causal_softmax(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  CausalSoftmax s{};
  s.scores = in.matrix();
  s.slopes = in.address<void>();
  s.rows = in.integer();
  s.keys = in.integer();
  s.queries = in.integer();
  s.offset = in.integer();
  s.window = in.integer();
  s.scale = in.real();
  if (!in.complete()) return nullptr;
  run_causal_softmax(s);
  Py_RETURN_NONE;
}

}  // namespace

#define METHOD(name) \
  {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(name)), METH_FASTCALL, nullptr}
PyMethodDef pretraining_methods[] = {METHOD(norm), METHOD(norm_backward), METHOD(causal_softmax),
                                     {nullptr, nullptr, 0, nullptr}};
#undef METHOD

}  // namespace hagane
