#include "arguments.h"

namespace hagane {
namespace {

constexpr const char* kDTypeNames[] = {"float32", "bfloat16", "int8", "float64", "int32", "int64", "bool", "uint8", "float16"};
constexpr int kDTypes = sizeof kDTypeNames / sizeof *kDTypeNames;
PyObject* tensor_dtypes[kDTypes];  // torch's, by the same index
PyObject *data_ptr_name, *stride_name, *shape_name, *dtype_name;

// Sizes or strides, out of a tuple of integers.
bool read_tuple(PyObject* tuple, int64_t* values) {
  if (!tuple) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) values[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
  Py_DECREF(tuple);
  return !PyErr_Occurred();
}

}  // namespace

bool import_dtypes() {
  PyObject* torch = PyImport_ImportModule("torch");
  if (!torch) return false;
  for (int i = 0; i < kDTypes; ++i) tensor_dtypes[i] = PyObject_GetAttrString(torch, kDTypeNames[i]);
  Py_DECREF(torch);
  data_ptr_name = PyUnicode_InternFromString("data_ptr");
  stride_name = PyUnicode_InternFromString("stride");
  shape_name = PyUnicode_InternFromString("shape");
  dtype_name = PyUnicode_InternFromString("dtype");
  return !PyErr_Occurred();
}

Arguments::Arguments(PyObject* const* values, Py_ssize_t positional, PyObject* names)
    : values_(values), names_(names), count_(names ? PyTuple_GET_SIZE(names) : 0) {
  if (positional) PyErr_SetString(PyExc_TypeError, "arguments are given by name");
}

PyObject* Arguments::next(const char* name) {
  if (PyErr_Occurred()) return nullptr;
  if (index_ >= count_) return PyErr_Format(PyExc_TypeError, "argument %s is missing", name);
  PyObject* given = PyTuple_GET_ITEM(names_, index_);
  if (PyUnicode_CompareWithASCIIString(given, name))
    return PyErr_Format(PyExc_TypeError, "expected argument %s, got %U", name, given);
  return values_[index_++];
}

int64_t Arguments::integer(const char* name) {
  PyObject* value = next(name);
  return value ? PyLong_AsLongLong(value) : 0;
}

float Arguments::real(const char* name) {
  PyObject* value = next(name);
  return value ? static_cast<float>(PyFloat_AsDouble(value)) : 0.0f;
}

PyObject* Arguments::object(const char* name) { return next(name); }

bool Arguments::read(const char* name, Tensor* tensor) {
  PyObject* value = next(name);
  if (!value) return false;
  PyObject* dtype = PyObject_GetAttr(value, dtype_name);
  if (!dtype) return false;
  for (int i = 0; i < kDTypes; ++i)
    if (tensor_dtypes[i] == dtype) tensor->dtype = i;
  Py_DECREF(dtype);
  PyObject* shape = PyObject_GetAttr(value, shape_name);
  if (!shape) return false;
  tensor->dims = PyTuple_GET_SIZE(shape);
  if (tensor->dims > Tensor::kMostDims) {
    Py_DECREF(shape);
    PyErr_Format(PyExc_ValueError, "%s has too many dimensions", name);
    return false;
  }
  if (!read_tuple(shape, tensor->sizes)) return false;
  if (!read_tuple(PyObject_CallMethodNoArgs(value, stride_name), tensor->strides)) return false;
  PyObject* address = PyObject_CallMethodNoArgs(value, data_ptr_name);
  if (!address) return false;
  tensor->data = PyLong_AsVoidPtr(address);
  Py_DECREF(address);
  return !PyErr_Occurred();
}

bool Arguments::is_dtype(const char* name, const Tensor& tensor, int dtype) {
  if (tensor.dtype == dtype) return true;
  PyErr_Format(PyExc_TypeError, "%s is %s, not %s", name, tensor.dtype < 0 ? "of an unknown dtype" : kDTypeNames[tensor.dtype],
               kDTypeNames[dtype]);
  return false;
}

Rows Arguments::rows(const char* name) {
  Tensor tensor;
  Rows rows{};
  if (!read(name, &tensor)) return rows;
  if (tensor.dtype < 0 || tensor.dtype > 2) {
    PyErr_Format(PyExc_TypeError, "%s is not float32, bfloat16 or int8", name);
    return rows;
  }
  if (tensor.dims < 1 || !tensor.contiguous(1)) {
    PyErr_Format(PyExc_ValueError, "each row of %s must be in one piece", name);
    return rows;
  }
  rows.data = tensor.data;
  rows.dtype = static_cast<DType>(tensor.dtype);
  rows.stride = tensor.strides[0];
  rows.rows = tensor.sizes[0];
  rows.columns = tensor.count(1);
  rows.inner = tensor.sizes[tensor.dims - 1];
  return rows;
}

void* Arguments::typed(const char* name, int dtype, int64_t count, bool optional) {
  Tensor tensor;
  if (optional && index_ < count_ && values_[index_] == Py_None) return next(name), nullptr;
  if (!read(name, &tensor) || (dtype >= 0 && !is_dtype(name, tensor, dtype))) return nullptr;
  if (!tensor.contiguous() || (count >= 0 && tensor.count() != count)) {
    PyErr_Format(PyExc_ValueError, "%s must be in one piece, of %lld elements: it has %lld", name,
                 static_cast<long long>(count), static_cast<long long>(tensor.count()));
    return nullptr;
  }
  return tensor.data;
}

void* Arguments::array_like(const char* name, DType like, int64_t count) {
  return typed(name, static_cast<int>(like), count, false);
}

void* Arguments::optional_array_like(const char* name, DType like, int64_t count) {
  return typed(name, static_cast<int>(like), count, true);
}

void* Arguments::bytes(const char* name, int64_t count) { return typed(name, -1, count, true); }

const Weight* Arguments::weight(const char* name) {
  PyObject* value = next(name);
  return value ? static_cast<const Weight*>(PyCapsule_GetPointer(value, kWeight)) : nullptr;
}

void Arguments::expect(bool holds, const char* message) {
  if (!holds && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "shapes or dtypes do not fit: %s", message);
}

bool Arguments::complete() {
  if (PyErr_Occurred()) return false;
  if (index_ == count_) return true;
  PyErr_SetString(PyExc_TypeError, "too many arguments");
  return false;
}

}  // namespace hagane
