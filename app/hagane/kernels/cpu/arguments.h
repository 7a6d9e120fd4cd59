// How the Python extension module reads a call's arguments.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ops.h"

namespace hagane {

// The positional arguments of one call, read one after the other.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t count) : values_(values), count_(count) {}

  int64_t integer() { return index_ < count_ ? PyLong_AsLongLong(values_[index_++]) : missing(); }
  float real() { return static_cast<float>(index_ < count_ ? PyFloat_AsDouble(values_[index_++]) : missing()); }
  template <class T>
  T* address() { return reinterpret_cast<T*>(integer()); }
  DType dtype() { return static_cast<DType>(integer()); }
  Matrix matrix() {
    void* data = address<void>();
    DType type = dtype();
    return {data, type, integer()};
  }
  const Weight* weight() { return capsule<const Weight>("hagane.weight"); }
  // None is null.
  template <class T>
  T* capsule(const char* name) {
    PyObject* value = object();
    if (!value || value == Py_None) return nullptr;
    return static_cast<T*>(PyCapsule_GetPointer(value, name));
  }
  PyObject* object() { return index_ < count_ ? values_[index_++] : (missing(), nullptr); }

  bool complete() {
    if (PyErr_Occurred()) return false;
    if (index_ == count_) return true;
    PyErr_SetString(PyExc_TypeError, "too many arguments");
    return false;
  }

 private:
  int64_t missing() {
    PyErr_SetString(PyExc_TypeError, "too few arguments");
    return 0;
  }

  PyObject* const* values_;
  Py_ssize_t count_, index_ = 0;
};

// The operations of training and of pretraining, for the module's table of methods.
extern PyMethodDef training_methods[], pretraining_methods[];

}  // namespace hagane
