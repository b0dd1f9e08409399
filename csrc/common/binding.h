// Python tensors to pylum::Tensor through DLPack, and the checks every binding makes.
// Included by binding.cpp files only.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "common/tensor.h"

namespace pylum {

namespace py = pybind11;

// The view borrows: the caller's Python object keeps the memory alive during the call.
Tensor view(py::handle object);

[[noreturn]] void fail_value(const char* name, const std::string& wanted, const Tensor& got);
[[noreturn]] void fail_type(const char* name, const std::string& wanted, const Tensor& got);

// expect(ok, "offsets", "[batch + 1] int64 on cpu", offsets)
void expect(bool ok, const char* name, const char* wanted, const Tensor& got);
void expect(bool ok, const char* name, const std::string& wanted, const Tensor& got);
void expect_dtype(const Tensor& t, const char* name, DType wanted);
void expect_floating(const Tensor& t, const char* name);
void expect_cpu(const Tensor& t, const char* name);

}  // namespace pylum

namespace pybind11::detail {

template <>
struct type_caster<pylum::Tensor> {
    PYBIND11_TYPE_CASTER(pylum::Tensor, const_name("Tensor"));
    bool load(handle source, bool) {
        if (source.is_none()) {
            return false;
        }
        value = pylum::view(source);
        return true;
    }
};

}  // namespace pybind11::detail
