// How the Python extension module reads a call's arguments: by name, tensors with their dtype and shape.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ops.h"

namespace hagane {

// A tensor of torch, as Python's attributes describe it. Strides are in elements.
struct Tensor {
  static constexpr int kMostDims = 4;

  void* data = nullptr;
  int dtype = -1;  // an index of `tensor_dtypes`
  int64_t dims = 0, sizes[kMostDims] = {}, strides[kMostDims] = {};

  int64_t count(int64_t first_dim = 0) const {
    int64_t product = 1;
    for (int64_t d = first_dim; d < dims; ++d) product *= sizes[d];
    return product;
  }
  // Whether the elements from `first_dim` on lie side by side.
  bool contiguous(int64_t first_dim = 0) const {
    int64_t expected = 1;
    for (int64_t d = dims - 1; d >= first_dim; expected *= sizes[d--])
      if (sizes[d] > 1 && strides[d] != expected) return false;
    return true;
  }
};

// Rows [sizes[0], ...] of which each is in one piece; `inner` is the size of the last dimension.
struct Rows : Matrix {
  int64_t rows = 0, columns = 0, inner = 0;
};

// The keyword arguments of one call, read one after the other in the order of the wrapper
// (extension.py). A wrong name, dtype or shape raises, and the call does not run: what is read after
// that is null or 0, and `complete` is false.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t positional, PyObject* names);

  int64_t integer(const char* name);
  float real(const char* name);
  PyObject* object(const char* name);
  // A tensor of float32, bfloat16 or int8.
  Rows rows(const char* name);
  // As many elements side by side as `count` says; -1 is any number.
  template <class T>
  T* array(const char* name, int64_t count);
  // The same, or None, which is null.
  template <class T>
  T* optional_array(const char* name, int64_t count);
  // Elements of the dtype of `like`, or None.
  void* optional_array_like(const char* name, DType like, int64_t count);
  void* array_like(const char* name, DType like, int64_t count);
  // A matrix of T: its first element, with the distance of rows in `stride`.
  template <class T>
  T* table(const char* name, int64_t rows, int64_t* stride);
  // A tensor in one piece, of any dtype, or None.
  void* bytes(const char* name, int64_t count);
  const Weight* weight(const char* name);
  // None is null.
  template <class T>
  T* capsule(const char* name, const char* kind) {
    PyObject* value = object(name);
    if (!value || value == Py_None) return nullptr;
    return static_cast<T*>(PyCapsule_GetPointer(value, kind));
  }

  // Raises ValueError unless `holds`.
  void expect(bool holds, const char* message);
  bool complete();

 private:
  PyObject* next(const char* name);
  bool read(const char* name, Tensor* tensor);
  void* typed(const char* name, int dtype, int64_t count, bool optional);
  bool is_dtype(const char* name, const Tensor& tensor, int dtype);

  PyObject* const* values_;
  PyObject* names_;
  Py_ssize_t count_, index_ = 0;
};

// Looks up torch's dtypes; false with an exception set if torch cannot be imported.
bool import_dtypes();

template <class T>
struct DTypeOf;  // the index of a type in `tensor_dtypes` (arguments.cpp)
template <> struct DTypeOf<float> { static constexpr int value = 0; };
template <> struct DTypeOf<bf16> { static constexpr int value = 1; };
template <> struct DTypeOf<int8_t> { static constexpr int value = 2; };
template <> struct DTypeOf<double> { static constexpr int value = 3; };
template <> struct DTypeOf<int32_t> { static constexpr int value = 4; };
template <> struct DTypeOf<int64_t> { static constexpr int value = 5; };
template <> struct DTypeOf<bool> { static constexpr int value = 6; };
template <> struct DTypeOf<uint8_t> { static constexpr int value = 7; };
template <> struct DTypeOf<f16> { static constexpr int value = 8; };
template <> struct DTypeOf<uint32_t> { static constexpr int value = 4; };  // units of packed codes

template <class T>
T* Arguments::array(const char* name, int64_t count) {
  return static_cast<T*>(typed(name, DTypeOf<std::remove_const_t<T>>::value, count, false));
}

template <class T>
T* Arguments::optional_array(const char* name, int64_t count) {
  return static_cast<T*>(typed(name, DTypeOf<std::remove_const_t<T>>::value, count, true));
}

template <class T>
T* Arguments::table(const char* name, int64_t rows, int64_t* stride) {
  Tensor tensor;
  *stride = 0;
  if (!read(name, &tensor) || !is_dtype(name, tensor, DTypeOf<std::remove_const_t<T>>::value)) return nullptr;
  expect(tensor.dims == 2 && tensor.sizes[0] == rows && tensor.contiguous(1), name);
  *stride = tensor.strides[0];
  return static_cast<T*>(tensor.data);
}

constexpr const char* kWeight = "hagane.weight";

// Methods of the extension module by area, for its table.
extern PyMethodDef serving_methods[], expert_methods[], weight_methods[], training_methods[], pretraining_methods[];

#define HAGANE_METHOD(name, function)                                            \
  {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)),      \
   METH_FASTCALL | METH_KEYWORDS, nullptr}

}  // namespace hagane
