// Python tensors to pylum::Tensor through DLPack, and the checks every binding makes.
// Included by binding.cpp files only.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "common/execution.h"
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
// float32 or bfloat16; on CUDA also float16.
void expect_floating(const Tensor& t, const char* name);
void expect_cpu(const Tensor& t, const char* name);
// The first tensor of an op with a CUDA kernel: anywhere, but only where CUDA was built.
void expect_device(const Tensor& t, const char* name);
// The others stand where the first one does.
void expect_like(const Tensor& t, const char* name, const Tensor& first, const char* first_name);

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

// (threads, stream, errors), the last two as addresses: what run_on() of ops/_library.py gives.
template <>
struct type_caster<pylum::Execution> {
    PYBIND11_TYPE_CASTER(pylum::Execution, const_name("tuple[int, int, int]"));
    bool load(handle source, bool) {
        if (!isinstance<tuple>(source) || len(source) != 3) {
            return false;
        }
        const auto parts = reinterpret_borrow<tuple>(source);
        value.threads = parts[0].cast<int>();
        value.stream = reinterpret_cast<CUstream_st*>(parts[1].cast<uintptr_t>());
        value.errors = reinterpret_cast<int32_t*>(parts[2].cast<uintptr_t>());
        return true;
    }
};

}  // namespace pybind11::detail
