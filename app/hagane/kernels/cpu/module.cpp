// The Python extension module: addresses and numbers in, nothing out. Shapes and dtypes are checked
// by app/hagane/kernels/native.py, the only caller.
#include "arguments.h"
#include "dispatch.h"
#include "pool.h"
#include "recording.h"

namespace {

using hagane::Arguments;
using hagane::Bank;
using hagane::DType;
using hagane::LowRank;
using hagane::Matrix;
using hagane::Recording;
using hagane::Weight;

constexpr const char* kWeight = "hagane.weight";
constexpr const char* kLowRank = "hagane.low_rank";
constexpr const char* kBank = "hagane.bank";
constexpr const char* kRecording = "hagane.recording";
Recording* recording = nullptr;  // the one being made

template <class Kernel>
PyObject* perform(const Kernel& kernel) {
  if (recording) recording->add(kernel);
  else kernel();
  Py_RETURN_NONE;
}

PyObject* perform_rows(hagane::RowWork work) {
  if (recording) recording->add(std::move(work));
  else hagane::run_rows(work);
  Py_RETURN_NONE;
}

void free_recording(PyObject* capsule) {
  delete static_cast<Recording*>(PyCapsule_GetPointer(capsule, kRecording));
}

// From now on nothing is run but recorded.
PyObject* record(PyObject*, PyObject* const*, Py_ssize_t) {
  delete recording;
  recording = new Recording;
  Py_RETURN_NONE;
}

// Ends the recording and returns it.
PyObject* recorded(PyObject*, PyObject* const*, Py_ssize_t) {
  if (!recording) {
    PyErr_SetString(PyExc_RuntimeError, "nothing is being recorded");
    return nullptr;
  }
  PyObject* capsule = PyCapsule_New(recording, kRecording, free_recording);
  recording = nullptr;
  return capsule;
}

PyObject* replay(PyObject*, PyObject* const* values, Py_ssize_t count) {
  auto* kernels = static_cast<Recording*>(count == 1 ? PyCapsule_GetPointer(values[0], kRecording) : nullptr);
  if (!kernels) return PyErr_Occurred() ? nullptr : PyErr_Format(PyExc_TypeError, "replay takes one recording");
  // Other threads may pack adapters meanwhile.
  Py_BEGIN_ALLOW_THREADS
  kernels->replay();
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

template <class T>
void free_capsule(PyObject* capsule) {
  delete static_cast<T*>(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)));
}

PyObject* make_weight(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  auto format = static_cast<hagane::Format>(in.integer());
  int64_t out = in.integer(), inputs = in.integer(), units = in.integer(), group = in.integer();
  auto* codes = in.address<const uint32_t>();
  auto* scale = in.address<const void>();
  auto* bias = in.address<const float>();
  auto* input_scale = in.address<const float>();
  if (!in.complete()) return nullptr;
  auto* weight = new Weight{format, out, inputs, units, group, codes, scale, bias, input_scale};
  return PyCapsule_New(weight, kWeight, free_capsule<Weight>);
}

PyObject* make_low_rank(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  const Weight* a = in.weight();
  auto* b = in.address<const uint32_t>();
  auto* first_line = in.address<const int32_t>();
  auto* first_unit = in.address<const int32_t>();
  auto* scale = in.address<const float>();
  if (!in.complete()) return nullptr;
  auto* change = new LowRank{*a, b, first_line, first_unit, scale};
  return PyCapsule_New(change, kLowRank, free_capsule<LowRank>);
}

PyObject* make_bank(PyObject*, PyObject* const*, Py_ssize_t) {
  return PyCapsule_New(new Bank, kBank, free_capsule<Bank>);
}

// place(bank, slot, change or None)
PyObject* place(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  Bank* bank = in.capsule<Bank>(kBank);
  size_t slot = static_cast<size_t>(in.integer());
  const LowRank* change = in.capsule<const LowRank>(kLowRank);
  if (!in.complete()) return nullptr;
  if (slot >= bank->slots.size()) bank->slots.resize(slot + 1);
  bank->slots[slot] = change;
  Py_RETURN_NONE;
}

PyObject* linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::LinearWork work{};
  work.weight = in.weight();
  work.x = in.matrix();
  work.rows = in.integer();
  work.out = in.matrix();
  work.residual = in.address<const void>();
  work.bank = in.capsule<const Bank>(kBank);
  work.slots = in.address<const int32_t>();
  if (!in.complete()) return nullptr;
  if (recording) recording->add(std::move(work));
  else hagane::run_linear(work);
  Py_RETURN_NONE;
}

PyObject* rms_norm(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  Matrix x = in.matrix();
  auto* weight = in.address<const void>();
  float eps = in.real();
  int64_t rows = in.integer(), features = in.integer();
  Matrix out = in.matrix();
  if (!in.complete()) return nullptr;
  return perform_rows(hagane::rms_norm_rows(x, weight, eps, rows, features, out));
}

PyObject* silu_and_mul(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  Matrix x = in.matrix();
  int64_t rows = in.integer(), features = in.integer();
  Matrix out = in.matrix();
  if (!in.complete()) return nullptr;
  return perform_rows(hagane::silu_and_mul_rows(x, rows, features, out));
}

PyObject* embed(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  const Weight* weight = in.weight();
  auto* ids = in.address<const int64_t>();
  int64_t rows = in.integer();
  Matrix out = in.matrix();
  if (!in.complete()) return nullptr;
  return perform([=] { hagane::run_embed(*weight, ids, rows, out); });
}

hagane::Rotary rotary_arguments(Arguments& in) {
  hagane::Rotary r{};
  r.qkv = in.matrix();
  r.cos = in.address<const float>();
  r.sin = in.address<const float>();
  r.q_norm = in.address<const void>();
  r.k_norm = in.address<const void>();
  r.center = in.address<const float>();
  r.eps = in.real();
  r.tokens = in.integer();
  r.heads = in.integer();
  r.kv_heads = in.integer();
  r.head_dim = in.integer();
  return r;
}

PyObject* rotary(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::Rotary r = rotary_arguments(in);
  if (!in.complete()) return nullptr;
  return perform_rows(hagane::rotary_rows(r));
}

PyObject* gather(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  Matrix x = in.matrix();
  auto* indices = in.address<const int64_t>();
  int64_t rows = in.integer(), features = in.integer();
  Matrix out = in.matrix();
  if (!in.complete()) return nullptr;
  return perform([=] { hagane::run_gather(x, indices, rows, features, out); });
}

PyObject* angles(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::Angles a{};
  a.positions = in.address<const int64_t>();
  a.frequencies = in.address<const float>();
  a.magnitude = in.real();
  a.tokens = in.integer();
  a.count = in.integer();
  a.cos = in.address<float>();
  a.sin = in.address<float>();
  if (!in.complete()) return nullptr;
  return perform([=] { hagane::run_angles(a); });
}

PyObject* store(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::Store s{};
  s.k = in.matrix();
  s.v = in.matrix();
  s.cache_dtype = in.dtype();
  s.keys = in.address<void>();
  s.values = in.address<void>();
  s.slots = in.address<const int64_t>();
  s.tokens = in.integer();
  s.kv_heads = in.integer();
  s.head_dim = in.integer();
  s.block_size = in.integer();
  if (!in.complete()) return nullptr;
  return perform_rows(hagane::store_rows(s));
}

// What an attention reads.
void read_cache(Arguments& in, hagane::Attention& a) {
  a.cache_dtype = in.dtype();
  a.keys = in.address<void>();
  a.values = in.address<void>();
  a.kv_heads = in.integer();
  a.head_dim = in.integer();
  a.block_size = in.integer();
  a.block_tables = in.address<const int32_t>();
  a.table_stride = in.integer();
  a.context_lengths = in.address<const int32_t>();
  a.sequences = in.integer();
}

PyObject* attention(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::Attention a{};
  a.q = in.matrix();
  a.out = in.matrix();
  read_cache(in, a);
  a.heads = in.integer();
  a.query_starts = in.address<const int32_t>();
  a.window = in.integer();
  a.scale = in.real();
  if (!in.complete()) return nullptr;
  return perform([=] { hagane::run_attention(a); });
}

PyObject* fetch(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::Attention a{};
  read_cache(in, a);
  if (!in.complete()) return nullptr;
  return perform([=] { hagane::run_fetch(a); });
}

PyObject* draw(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::Draw d{};
  d.logits = in.address<const float>();
  d.rows = in.integer();
  d.vocab = in.integer();
  d.stride = in.integer();
  d.temperature = in.address<const double>();
  d.top_p = in.address<const double>();
  d.min_p = in.address<const double>();
  d.uniform = in.address<const double>();
  d.top_k = in.address<const int64_t>();
  d.tokens = in.address<int64_t>();
  if (!in.complete()) return nullptr;
  return perform([=] { hagane::run_draw(d); });
}

PyObject* greatest(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::Greatest g{};
  g.logits = in.address<const float>();
  g.rows = in.integer();
  g.vocab = in.integer();
  g.stride = in.integer();
  g.tokens = in.address<int64_t>();
  g.finite = in.address<bool>();
  if (!in.complete()) return nullptr;
  return perform([=] { hagane::run_greatest(g); });
}

PyObject* rms_norm_backward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  Matrix grad = in.matrix(), x = in.matrix();
  auto* weight = in.address<const void>();
  float eps = in.real();
  int64_t rows = in.integer(), features = in.integer();
  Matrix out = in.matrix();
  if (!in.complete()) return nullptr;
  hagane::run_rms_norm_backward(grad, x, weight, eps, rows, features, out);
  Py_RETURN_NONE;
}

PyObject* silu_and_mul_backward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  Matrix grad = in.matrix(), gate_up = in.matrix();
  int64_t rows = in.integer(), features = in.integer();
  Matrix out = in.matrix();
  if (!in.complete()) return nullptr;
  hagane::run_silu_and_mul_backward(grad, gate_up, rows, features, out);
  Py_RETURN_NONE;
}

PyObject* rotary_backward(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::Rotary r = rotary_arguments(in);
  Matrix before = in.matrix();
  if (!in.complete()) return nullptr;
  hagane::run_rotary_backward(r, before);
  Py_RETURN_NONE;
}

PyObject* token_scores(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  hagane::TokenScores t{};
  t.logits = in.matrix();
  t.targets = in.address<const int64_t>();
  t.rows = in.integer();
  t.vocab = in.integer();
  t.logprobs = in.address<float>();
  t.first = in.address<bool>();
  t.slopes = in.integer() != 0;
  if (!in.complete()) return nullptr;
  hagane::run_token_scores(t);
  Py_RETURN_NONE;
}

// select(name or None) -> the name of the instruction set from now on, or None if it is not here.
PyObject* select(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  PyObject* wanted = in.object();
  if (!in.complete()) return nullptr;
  const char* name = wanted == Py_None ? nullptr : PyUnicode_AsUTF8(wanted);
  if (PyErr_Occurred()) return nullptr;
  const hagane::Kernels* found = hagane::find_kernels(name);
  if (!found) Py_RETURN_NONE;
  hagane::use_kernels(found);
  return PyUnicode_FromString(found->name);
}

// start(cores): one thread for each, the caller's among them.
PyObject* start(PyObject*, PyObject* const* values, Py_ssize_t count) {
  std::vector<int> cores;
  for (Py_ssize_t i = 0; i < count; ++i) cores.push_back(static_cast<int>(PyLong_AsLong(values[i])));
  if (PyErr_Occurred()) return nullptr;
  hagane::Pool::instance().start(cores);
  Py_RETURN_NONE;
}

// borrow(threads) -> whether the OpenMP runtime's threads do the work from now on.
PyObject* borrow(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  const int threads = static_cast<int>(in.integer());
  if (!in.complete()) return nullptr;
  return PyBool_FromLong(hagane::Pool::instance().borrow(threads));
}

#define METHOD(name, function) \
  {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, nullptr}
PyMethodDef methods[] = {
    METHOD("weight", make_weight), METHOD("linear", linear),
    METHOD("rms_norm", rms_norm),  METHOD("silu_and_mul", silu_and_mul),
    METHOD("embed", embed),        METHOD("rotary", rotary),
    METHOD("store", store),        METHOD("attention", attention),
    METHOD("draw", draw),          METHOD("select", select),
    METHOD("start", start),        METHOD("angles", angles),
    METHOD("gather", gather),      METHOD("fetch", fetch),
    METHOD("record", record),      METHOD("recorded", recorded),
    METHOD("replay", replay),      METHOD("greatest", greatest),
    METHOD("bank", make_bank),     METHOD("low_rank", make_low_rank),
    METHOD("place", place),        METHOD("borrow", borrow),
    METHOD("rms_norm_backward", rms_norm_backward),
    METHOD("silu_and_mul_backward", silu_and_mul_backward),
    METHOD("rotary_backward", rotary_backward),
    METHOD("token_scores", token_scores),
    {nullptr, nullptr, 0, nullptr}};
#undef METHOD

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "Hagane's CPU kernels.", -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() {
  PyObject* module = PyModule_Create(&definition);
  for (PyMethodDef* more : {hagane::training_methods, hagane::pretraining_methods})
    if (module && PyModule_AddFunctions(module, more)) Py_CLEAR(module);
  return module;
}
