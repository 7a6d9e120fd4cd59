// Packed matrices and low-rank changes to them, as methods of the extension module.
#include "calls.h"

namespace hagane {
namespace {

constexpr const char* kLowRank = "hagane.low_rank";
constexpr const char* kBank = "hagane.bank";

template <class T>
void free_capsule(PyObject* capsule) {
  delete static_cast<T*>(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)));
}

PyObject* make_weight(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Weight w{};
  w.format = static_cast<Format>(in.integer("format"));
  w.out = in.integer("out_features");
  w.in = in.integer("in_features");
  w.units = in.integer("units");
  w.group = in.integer("group");
  const int64_t padded = 16 * w.blocks();
  const bool grouped = w.format == Format::grouped;
  in.expect(!grouped || w.group == 16 || w.group == 32, "group must be 16 or 32");
  in.expect(!grouped || w.in % 32 == 0, "in_features must be a multiple of 32");
  in.expect((w.format != Format::int4 && !grouped) || (w.group > 0 && w.in % w.group == 0), "group must divide in_features");
  w.codes = in.array<const uint32_t>("codes", padded * w.units);
  switch (w.format) {
    case Format::int8: w.scale = in.array<const float>("scale", padded); break;
    case Format::int4: w.scale = in.array<const bf16>("scale", padded * (w.group ? w.groups() : 0)); break;
    case Format::grouped: w.scale = in.array<const f16>("scale", padded * (w.group ? w.groups() : 0)); break;
    default: w.scale = in.optional_array<const float>("scale", 0);
  }
  w.bias = in.optional_array<const float>("bias", padded);
  w.input_scale = in.optional_array<const float>("input_scale", w.in);
  w.rotation = in.integer("rotation");
  in.expect(w.rotation >= 0 && (w.rotation & (w.rotation - 1)) == 0 && (!w.rotation || w.in % w.rotation == 0),
            "rotation must be a power of two that divides in_features");
  w.bits = static_cast<int32_t>(in.integer("bits"));
  w.zero = static_cast<int32_t>(in.integer("zero"));
  w.minimum = in.optional_array<const f16>("minimum", grouped && w.group ? padded * w.groups() : 0);
  in.expect(!grouped || w.bits == 4 || w.bits == 5 || w.bits == 6 || w.bits == 8, "bits must be 4, 5, 6 or 8");
  in.expect(!grouped || (w.units == w.in / 32 * w.bits && w.zero >= 0 && w.zero < 256), "units or zero");
  in.expect(!grouped || (!w.rotation && !w.input_scale), "grouped codes take inputs as they are");
  if (!in.complete()) return nullptr;
  return PyCapsule_New(new Weight(w), kWeight, free_capsule<Weight>);
}

// Inputs are taken in another order, which must stay where it is as long as the weight.
PyObject* order_inputs(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Weight* weight = in.capsule<Weight>("weight", kWeight);
  in.expect(weight && weight->format == Format::grouped, "only grouped codes have an order");
  auto* order = in.array<const int32_t>("order", weight ? weight->in : 0);
  for (int64_t i = 0; order && i < weight->in; ++i)
    in.expect(order[i] >= 0 && order[i] < weight->in, "order names inputs");
  if (!in.complete()) return nullptr;
  weight->order = order;
  Py_RETURN_NONE;
}

PyObject* make_low_rank(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  const Weight* a = in.weight("a");
  auto* b = in.array<const uint32_t>("b", -1);
  auto* first_line = in.array<const int32_t>("first_line", -1);
  auto* first_unit = in.array<const int32_t>("first_unit", -1);
  auto* scale = in.optional_array<const float>("scale", -1);
  if (!in.complete()) return nullptr;
  return PyCapsule_New(new LowRank{*a, b, first_line, first_unit, scale, nullptr}, kLowRank,
                       free_capsule<LowRank>);
}

// `gain` must stay where it is as long as the change.
PyObject* set_gain(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  LowRank* change = in.capsule<LowRank>("change", kLowRank);
  in.expect(change != nullptr, "a gain needs a change");
  auto* gain = in.array<const float>("gain", -1);
  if (!in.complete()) return nullptr;
  change->gain = gain;
  Py_RETURN_NONE;
}

PyObject* make_bank(PyObject*, PyObject* const*, Py_ssize_t, PyObject*) {
  return PyCapsule_New(new Bank, kBank, free_capsule<Bank>);
}

// None empties the slot.
PyObject* place(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Bank* bank = in.capsule<Bank>("bank", kBank);
  size_t slot = static_cast<size_t>(in.integer("slot"));
  const LowRank* change = in.capsule<const LowRank>("change", kLowRank);
  in.expect(bank != nullptr, "place needs a bank");
  if (!in.complete()) return nullptr;
  if (slot >= bank->slots.size()) bank->slots.resize(slot + 1);
  bank->slots[slot] = change;
  Py_RETURN_NONE;
}

constexpr const char* kPartNames[] = {"part0", "part1", "part2", "part3"};
constexpr int64_t kMostParts = 4;

// quantize(parts, rounding, group, units, codes, scale) -> the first row with NaN or an infinity, or -1.
PyObject* quantize(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  const int64_t parts = in.integer("count");
  in.expect(parts > 0 && parts <= kMostParts, "number of parts");
  Weights w{};
  for (int64_t p = 0; p < parts && !PyErr_Occurred(); ++p) {
    Rows rows = in.rows(kPartNames[p]);
    in.expect(rows.dtype != DType::int8 && (!p || rows.columns == w.in), "parts are floats of one width");
    w.in = rows.columns;
    w.parts.push_back({rows, w.out});
    w.out += rows.rows;
  }
  w.rounding = in.integer("bf16") ? DType::bf16 : DType::f32;
  w.group = in.integer("group");
  w.rotation = in.integer("rotation");
  in.expect(w.rotation >= 0 && (w.rotation & (w.rotation - 1)) == 0 && (!w.rotation || w.in % w.rotation == 0), "rotation");
  w.units = in.integer("units");
  w.packed = w.units != 0;
  in.expect(w.group == 0 || w.group == 32 || w.group == 64 || w.group == 128, "group");
  in.expect(w.group == 0 || w.in % w.group == 0, "group must divide the inputs");
  const int64_t padded = round_up(w.out, 16), groups = w.group ? w.in / w.group : 1;
  if (w.packed) {
    in.expect(w.units >= ceil_div(w.in, w.group ? 8 : 4), "units");
    w.codes = in.array<uint32_t>("codes", padded * w.units);
  } else if (w.group) {
    w.codes = in.array<uint8_t>("codes", w.out * w.in / 2);
  } else {
    w.codes = in.array<int8_t>("codes", w.out * w.in);
  }
  const int64_t scales = (w.packed ? padded : w.out) * groups;
  w.scale = w.group ? static_cast<void*>(in.array<bf16>("scale", scales)) : in.array<float>("scale", scales);
  if (!in.complete()) return nullptr;
  int64_t bad = 0;
  Py_BEGIN_ALLOW_THREADS
  bad = run_quantize(w);
  Py_END_ALLOW_THREADS
  return PyLong_FromLongLong(bad);
}

PyObject* pack(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  const int64_t rows = in.integer("count"), row_bytes = in.integer("row_bytes"), units = in.integer("units");
  auto* stored = static_cast<const std::byte*>(in.bytes("rows", -1));
  in.expect(units >= ceil_div(row_bytes, 4), "units");
  auto* lines = in.array<uint32_t>("lines", round_up(rows, 16) * units);
  if (!in.complete()) return nullptr;
  Py_BEGIN_ALLOW_THREADS
  run_pack(stored, rows, row_bytes, lines, units);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

PyObject* pack_grouped(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  GroupedCodes g{};
  g.out = in.integer("out_features");
  g.in = in.integer("in_features");
  g.bits = static_cast<int>(in.integer("bits"));
  in.expect(g.out > 0 && g.in > 0 && g.in % 32 == 0, "in_features must be a multiple of 32");
  in.expect(g.bits == 4 || g.bits == 5 || g.bits == 6 || g.bits == 8, "bits must be 4, 5, 6 or 8");
  g.codes = in.array<const uint8_t>("codes", g.out * g.in);
  g.lines = in.array<uint32_t>("lines", round_up(g.out, 16) * (g.in / 32) * g.bits);
  if (!in.complete()) return nullptr;
  Py_BEGIN_ALLOW_THREADS
  run_pack_grouped(g);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

PyObject* find_nonfinite(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  Rows x = in.rows("x");
  in.expect(x.dtype != DType::int8, "x must be floats");
  if (!in.complete()) return nullptr;
  int64_t bad = 0;
  Py_BEGIN_ALLOW_THREADS
  bad = run_find_nonfinite(x, x.rows, x.columns);
  Py_END_ALLOW_THREADS
  return PyLong_FromLongLong(bad);
}

PyObject* linear(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  LinearWork work{};
  work.weight = in.weight("weight");
  Rows x = in.rows("x"), out = in.rows("out");
  in.expect(work.weight && x.columns == work.weight->in && out.rows == x.rows && out.columns == work.weight->out,
            "x and out, or the weight");
  in.expect(x.dtype != DType::int8 && out.dtype != DType::int8, "x and out must be floats");
  work.x = x;
  work.rows = x.rows;
  work.out = out;
  work.residual = in.optional_array_like("residual", out.dtype, out.rows * out.columns);
  work.bank = in.capsule<const Bank>("bank", kBank);
  work.slots = in.optional_array<const int32_t>("slots", x.rows);
  in.expect(!work.bank == !work.slots, "a bank without slots");
  if (!in.complete()) return nullptr;
  if (recording) recording->add(std::move(work));
  else run_linear(work);
  Py_RETURN_NONE;
}

PyObject* embed(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  const Weight* weight = in.weight("weight");
  Rows out{};
  auto* ids = in.array<const int64_t>("ids", -1);
  out = in.rows("out");
  in.expect(weight && out.columns == weight->in, "out and the weight");
  if (!in.complete()) return nullptr;
  return perform([=] { run_embed(*weight, ids, out.rows, out); });
}

}  // namespace

PyMethodDef weight_methods[] = {HAGANE_METHOD("weight", make_weight),
                                HAGANE_METHOD("order_inputs", order_inputs),
                                HAGANE_METHOD("low_rank", make_low_rank),
                                HAGANE_METHOD("set_gain", set_gain),
                                HAGANE_METHOD("bank", make_bank),
                                HAGANE_METHOD("place", place),
                                HAGANE_METHOD("quantize", quantize),
                                HAGANE_METHOD("pack", pack),
                                HAGANE_METHOD("pack_grouped", pack_grouped),
                                HAGANE_METHOD("find_nonfinite", find_nonfinite),
                                HAGANE_METHOD("linear", linear),
                                HAGANE_METHOD("embed", embed),
                                {nullptr, nullptr, 0, nullptr}};

}  // namespace hagane
