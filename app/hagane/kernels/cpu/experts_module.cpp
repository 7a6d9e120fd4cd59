// Products with several matrices: mixtures of experts, and heads with one each, as methods of the extension module.
#include "calls.h"

namespace hagane {
namespace {

constexpr const char* kExperts = "hagane.experts";

void free_experts(PyObject* capsule) {
  delete static_cast<Experts*>(PyCapsule_GetPointer(capsule, kExperts));
}

// The weights in a sequence; empty with an exception set if one is none.
std::vector<const Weight*> weights_in(PyObject* given) {
  std::vector<const Weight*> weights;
  PyObject* sequence = given ? PySequence_Fast(given, "not a sequence of weights") : nullptr;
  if (!sequence) return weights;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(sequence) && !PyErr_Occurred(); ++i)
    weights.push_back(static_cast<const Weight*>(PyCapsule_GetPointer(PySequence_Fast_GET_ITEM(sequence, i), kWeight)));
  Py_DECREF(sequence);
  return weights;
}

// Whether the same prepared rows fit all of them.
bool alike(const std::vector<const Weight*>& weights) {
  for (const Weight* w : weights) {
    const Weight& first = *weights[0];
    const bool same_shape = w->out == first.out && w->in == first.in && w->units == first.units;
    if (!same_shape || w->format != first.format || w->group != first.group || w->rotation != first.rotation) return false;
    if (w->input_scale) return false;
  }
  return !weights.empty();
}

PyObject* make_experts(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Experts experts{weights_in(in.object("gate_up")), weights_in(in.object("down"))};
  if (!in.complete()) return nullptr;
  in.expect(experts.gate_up.size() == experts.down.size() && alike(experts.gate_up) && alike(experts.down),
            "experts must be alike");
  if (!in.complete()) return nullptr;
  in.expect(experts.gate_up[0]->in == experts.down[0]->out, "gate_up and down");
  if (!in.complete()) return nullptr;
  return PyCapsule_New(new Experts(std::move(experts)), kExperts, free_experts);
}

PyObject* head_products(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  HeadsWork work{};
  work.weights = weights_in(in.object("weights"));
  Rows x = in.rows("x"), out = in.rows("out");
  if (!in.complete()) return nullptr;
  in.expect(alike(work.weights), "matrices must be alike");
  if (!in.complete()) return nullptr;
  const Weight& first = *work.weights[0];
  const int64_t heads = static_cast<int64_t>(work.weights.size());
  in.expect(first.format == Format::f32 || first.format == Format::bf16, "matrices must be unquantized");
  in.expect(x.rows == out.rows && x.dtype == out.dtype && x.dtype != DType::int8, "x and out");
  work.x = x;
  work.out = out;
  work.rows = x.rows;
  work.width = x.columns / heads;
  work.room = out.columns / heads;
  in.expect(work.width * heads == x.columns && work.room * heads == out.columns, "heads of x and out");
  in.expect(first.in <= work.width && first.out <= work.room, "a head's features and its matrix");
  if (!in.complete()) return nullptr;
  return perform([=] { run_heads(work); });
}

PyObject* mix_experts(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  const Experts* experts = in.capsule<Experts>("experts", kExperts);
  in.expect(experts != nullptr, "experts");
  Rows x = in.rows("x"), out = in.rows("out");
  in.expect(same_shape(x, out) && x.dtype == out.dtype && x.dtype != DType::int8, "x and out");
  ExpertsWork work{};
  work.experts = experts;
  work.x = x;
  work.out = out;
  work.rows = x.rows;
  work.chosen = in.integer("chosen");
  work.numbers = in.array<const int32_t>("numbers", x.rows * work.chosen);
  work.weights = in.array<const float>("weights", x.rows * work.chosen);
  work.residual = in.optional_array_like("residual", x.dtype, x.rows * x.columns);
  work.kind = static_cast<Activation::Kind>(in.integer("kind"));
  work.gated = in.integer("gated") != 0;
  if (!in.complete()) return nullptr;
  const Weight &gate_up = *experts->gate_up[0], &down = *experts->down[0];
  in.expect(x.columns == gate_up.in && gate_up.out == (work.gated ? 2 : 1) * down.in, "x and the experts");
  if (!in.complete()) return nullptr;
  return perform([=] { run_experts(work); });
}

PyObject* route(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows logits = in.rows("logits");
  in.expect(logits.dtype == DType::f32, "logits must be float32");
  Routing r{};
  r.logits = static_cast<const float*>(logits.data);
  r.rows = logits.rows;
  r.experts = logits.columns;
  r.stride = logits.stride;
  r.correction = in.optional_array<const float>("correction", r.experts);
  r.chosen = in.integer("chosen");
  r.sigmoid = in.integer("sigmoid") != 0;
  r.normalised = in.integer("normalised") != 0;
  r.floor = in.real("floor");
  r.scale = in.real("scale");
  r.groups = in.integer("groups");
  r.chosen_groups = in.integer("chosen_groups");
  r.group_best = in.integer("group_best");
  in.expect(r.groups > 0 && r.experts % r.groups == 0 && r.chosen_groups > 0 && r.chosen_groups <= r.groups, "groups");
  in.expect(r.chosen > 0 && r.groups > 0 && r.chosen <= r.experts / r.groups * r.chosen_groups, "chosen");
  r.numbers = in.array<int32_t>("numbers", r.rows * r.chosen);
  r.weights = in.array<float>("weights", r.rows * r.chosen);
  if (!in.complete()) return nullptr;
  return perform_rows(routing_rows(r));
}

PyObject* route_sparsely(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows logits = in.rows("logits");
  in.expect(logits.dtype == DType::f32, "logits must be float32");
  Routing r{};
  r.logits = static_cast<const float*>(logits.data);
  r.rows = logits.rows;
  r.experts = logits.columns;
  r.stride = logits.stride;
  r.chosen = in.integer("chosen");
  r.jitter = in.real("jitter");
  r.scale = in.real("scale");
  in.expect(r.chosen > 0 && r.chosen <= r.experts, "chosen");
  r.numbers = in.array<int32_t>("numbers", r.rows * r.chosen);
  r.weights = in.array<float>("weights", r.rows * r.chosen);
  if (!in.complete()) return nullptr;
  return perform_rows(sparse_routing_rows(r));
}

PyObject* gate_rows(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows x = in.rows("x"), out = in.rows("out");
  in.expect(same_shape(x, out) && x.dtype == out.dtype && x.dtype != DType::int8, "x and out");
  GatedRows g{};
  g.x = x;
  g.out = out;
  g.rows = x.rows;
  g.features = x.columns;
  g.scores = in.array<const float>("scores", x.rows);
  if (!in.complete()) return nullptr;
  return perform_rows(gated_rows(g));
}

}  // namespace

PyMethodDef expert_methods[] = {HAGANE_METHOD("experts", make_experts), HAGANE_METHOD("mix_experts", mix_experts),
                                HAGANE_METHOD("route", route), HAGANE_METHOD("route_sparsely", route_sparsely),
                                HAGANE_METHOD("gate_rows", gate_rows), HAGANE_METHOD("head_products", head_products),
                                {nullptr, nullptr, 0, nullptr}};

}  // namespace hagane
