// The operations of pretraining as methods of the extension module.
#include "calls.h"

namespace hagane {
namespace {

PyObject* norm(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows out = in.rows("out");
  Norm n{};
  n.out = out;
  n.rows = out.rows;
  n.features = out.columns;
  n.x = in.array<const float>("x", n.rows * n.features);
  n.weight = in.array<const float>("weight", n.features);
  n.eps = in.real("eps");
  if (!in.complete()) return nullptr;
  run_norm(n);
  Py_RETURN_NONE;
}

PyObject* norm_backward(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows grad = in.rows("grad");
  NormBackward n{};
  n.grad = grad;
  n.rows = grad.rows;
  n.features = grad.columns;
  n.x = in.array<const float>("x", n.rows * n.features);
  n.weight = in.array<const float>("weight", n.features);
  n.eps = in.real("eps");
  n.out = in.array<float>("out", n.rows * n.features);
  n.parts = in.array<float>("parts", ceil_div(n.rows, NormBackward::kRows) * n.features);
  n.weights = in.array<float>("weights", n.features);
  if (!in.complete()) return nullptr;
  run_norm_backward(n);
  Py_RETURN_NONE;
}

PyObject* causal_softmax(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows scores = in.rows("scores");
  CausalSoftmax s{};
  s.scores = scores;
  s.rows = scores.rows;
  s.keys = scores.columns;
  s.gradients = in.optional_array_like("gradients", scores.dtype, s.rows * s.keys);
  s.queries = in.integer("queries");
  s.offset = in.integer("offset");
  s.window = in.integer("window");
  s.scale = in.real("scale");
  if (!in.complete()) return nullptr;
  run_causal_softmax(s);
  Py_RETURN_NONE;
}

}  // namespace

PyMethodDef pretraining_methods[] = {HAGANE_METHOD("norm", norm),
                                     HAGANE_METHOD("norm_backward", norm_backward),
                                     HAGANE_METHOD("causal_softmax", causal_softmax),
                                     {nullptr, nullptr, 0, nullptr}};

}  // namespace hagane
