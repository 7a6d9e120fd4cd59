// The Python extension module. Its only caller is app/hagane/kernels/cpu/extension.py.
#include "arguments.h"
#include "calls.h"
#include "pool.h"

namespace hagane {

Recording* recording = nullptr;

namespace {

constexpr const char* kRecording = "hagane.recording";

void free_recording(PyObject* capsule) {
  delete static_cast<Recording*>(PyCapsule_GetPointer(capsule, kRecording));
}

// From now on nothing is run but recorded.
PyObject* record(PyObject*, PyObject* const*, Py_ssize_t, PyObject*) {
  delete recording;
  recording = new Recording;
  Py_RETURN_NONE;
}

// Ends the recording and returns it.
PyObject* recorded(PyObject*, PyObject* const*, Py_ssize_t, PyObject*) {
  if (!recording) {
    PyErr_SetString(PyExc_RuntimeError, "nothing is being recorded");
    return nullptr;
  }
  PyObject* capsule = PyCapsule_New(recording, kRecording, free_recording);
  recording = nullptr;
  return capsule;
}

PyObject* replay(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  auto* kernels = in.capsule<Recording>("recording", kRecording);
  if (!in.complete()) return nullptr;
  // Other threads may pack adapters meanwhile.
  Py_BEGIN_ALLOW_THREADS
  kernels->replay();
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

// select(name or None) -> the name of the instruction set from now on, or None if it is not here.
PyObject* select(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  PyObject* wanted = in.object("name");
  if (!in.complete()) return nullptr;
  const char* name = wanted == Py_None ? nullptr : PyUnicode_AsUTF8(wanted);
  if (PyErr_Occurred()) return nullptr;
  const Kernels* found = find_kernels(name);
  if (!found) Py_RETURN_NONE;
  use_kernels(found);
  return PyUnicode_FromString(found->name);
}

// start(cores): one thread for each, the caller's among them.
PyObject* start(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  PyObject* given = in.object("cores");
  if (!in.complete()) return nullptr;
  PyObject* sequence = PySequence_Fast(given, "cores must be a sequence of integers");
  if (!sequence) return nullptr;
  std::vector<int> cores;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(sequence); ++i)
    cores.push_back(static_cast<int>(PyLong_AsLong(PySequence_Fast_GET_ITEM(sequence, i))));
  Py_DECREF(sequence);
  if (PyErr_Occurred()) return nullptr;
  Pool::instance().start(cores);
  Py_RETURN_NONE;
}

// borrow(threads) -> whether the OpenMP runtime's threads do the work from now on.
PyObject* borrow(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  Arguments in(values, count, names);
  const int threads = static_cast<int>(in.integer("threads"));
  if (!in.complete()) return nullptr;
  return PyBool_FromLong(Pool::instance().borrow(threads));
}

PyMethodDef methods[] = {HAGANE_METHOD("select", select),     HAGANE_METHOD("start", start),
                         HAGANE_METHOD("borrow", borrow),     HAGANE_METHOD("record", record),
                         HAGANE_METHOD("recorded", recorded), HAGANE_METHOD("replay", replay),
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "Hagane's CPU kernels.", -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace hagane

PyMODINIT_FUNC PyInit__cpu() {
  using namespace hagane;
  if (!import_dtypes()) return nullptr;
  PyObject* module = PyModule_Create(&definition);
  for (PyMethodDef* more : {weight_methods, serving_methods, expert_methods, training_methods, pretraining_methods})
    if (module && PyModule_AddFunctions(module, more)) Py_CLEAR(module);
  return module;
}
