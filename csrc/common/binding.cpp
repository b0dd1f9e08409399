#include "common/binding.h"

#include "third_party/dlpack.h"

namespace pylum {

static Tensor from_dltensor(const DLTensor& d) {
    Tensor t;
    if (d.ndim > kMaxDims) {
        throw py::value_error("tensors have at most 6 dimensions here, got " +
                              std::to_string(d.ndim));
    }
    if (d.device.device_type == kDLCUDA) {
        t.cuda = true;
        t.device = d.device.device_id;
    } else if (d.device.device_type != kDLCPU && d.device.device_type != kDLCUDAHost) {
        throw py::value_error("tensors must be on cpu or cuda, got DLPack device type " +
                              std::to_string(d.device.device_type));
    }
    const auto code = d.dtype.code;
    const auto bits = d.dtype.bits;
    if (code == kDLFloat && bits == 32) {
        t.dtype = DType::kFloat32;
    } else if (code == kDLBfloat && bits == 16) {
        t.dtype = DType::kBFloat16;
    } else if (code == kDLFloat && bits == 16) {
        t.dtype = DType::kFloat16;
    } else if (code == kDLFloat && bits == 64) {
        t.dtype = DType::kFloat64;
    } else if (code == kDLInt && bits == 64) {
        t.dtype = DType::kInt64;
    } else if (code == kDLInt && bits == 32) {
        t.dtype = DType::kInt32;
    } else if (code == kDLBool) {
        t.dtype = DType::kBool;
    } else {
        throw py::type_error(
            "tensors must be float32, bfloat16, float16, float64, int64, int32 or bool, got "
            "DLPack dtype code " +
            std::to_string(code) + " with " + std::to_string(bits) + " bits");
    }
    t.dims = d.ndim;
    int64_t dense = 1;
    for (int i = d.ndim - 1; i >= 0; --i) {
        t.sizes[i] = d.shape[i];
        t.strides[i] = d.strides ? d.strides[i] : dense;
        dense *= d.shape[i];
    }
    t.data = static_cast<char*>(d.data) + d.byte_offset;
    if (d.data == nullptr && t.numel() > 0) {
        throw py::value_error(
            "a tensor has no memory: fake and meta tensors cannot be computed on");
    }
    return t;
}

// The C exchange API where the type offers it (0.1 us a tensor), __dlpack__() where not.
Tensor view(py::handle object) {
    static PyTypeObject* cached_type = nullptr;
    static const DLPackExchangeAPI* cached_api = nullptr;
    PyTypeObject* type = Py_TYPE(object.ptr());
    if (type != cached_type) {
        py::handle type_object(reinterpret_cast<PyObject*>(type));
        for (const char* name : {"__dlpack_c_exchange_api__", "__c_dlpack_exchange_api__"}) {
            if (py::hasattr(type_object, name)) {
                py::object capsule = type_object.attr(name);
                void* api = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
                if (!api) {
                    PyErr_Clear();
                    continue;
                }
                cached_type = type;
                cached_api = static_cast<const DLPackExchangeAPI*>(api);
                break;
            }
        }
    }
    if (type == cached_type && cached_api->dltensor_from_py_object_no_sync) {
        DLTensor d;
        if (cached_api->dltensor_from_py_object_no_sync(object.ptr(), &d) != 0) {
            throw py::error_already_set();
        }
        return from_dltensor(d);
    }
    if (!py::hasattr(object, "__dlpack__")) {
        throw py::type_error("expected a tensor, got " +
                             std::string(py::str(py::type::of(object))));
    }
    // What has gradients exports nothing: torch before 2.10, the one whose tensors come here.
    const bool recorded = py::getattr(object, "requires_grad", py::bool_(false)).cast<bool>();
    py::capsule capsule = (recorded ? object.attr("detach")() : object).attr("__dlpack__")();
    void* managed = PyCapsule_GetPointer(capsule.ptr(), "dltensor");
    if (!managed) {
        throw py::error_already_set();
    }
    return from_dltensor(static_cast<DLManagedTensor*>(managed)->dl_tensor);
}

void fail_value(const char* name, const std::string& wanted, const Tensor& got) {
    throw py::value_error(std::string(name) + " must be " + wanted + ", got " + describe(got));
}

void fail_type(const char* name, const std::string& wanted, const Tensor& got) {
    throw py::type_error(std::string(name) + " must be " + wanted + ", got " + describe(got));
}

void expect(bool ok, const char* name, const char* wanted, const Tensor& got) {
    if (!ok) {
        fail_value(name, wanted, got);
    }
}

void expect(bool ok, const char* name, const std::string& wanted, const Tensor& got) {
    expect(ok, name, wanted.c_str(), got);
}

void expect_dtype(const Tensor& t, const char* name, DType wanted) {
    if (t.dtype != wanted) {
        fail_type(name, dtype_name(wanted), t);
    }
}

void expect_floating(const Tensor& t, const char* name) {
    const bool half = t.cuda && t.dtype == DType::kFloat16;
    if (t.dtype != DType::kFloat32 && t.dtype != DType::kBFloat16 && !half) {
        fail_type(name, t.cuda ? "float32, bfloat16 or float16" : "float32 or bfloat16", t);
    }
}

void expect_cpu(const Tensor& t, const char* name) {
    if (t.cuda) {
        fail_value(name, "on cpu", t);
    }
}

void expect_device([[maybe_unused]] const Tensor& t, [[maybe_unused]] const char* name) {
#ifndef PYLUM_CUDA
    if (t.cuda) {
        fail_value(name, "on cpu, as this pylum was built without CUDA", t);
    }
#endif
}

void expect_like(const Tensor& t, const char* name, const Tensor& first, const char* first_name) {
    if (t.cuda != first.cuda || (t.cuda && t.device != first.device)) {
        const std::string device = first.cuda ? "cuda:" + std::to_string(first.device) : "cpu";
        fail_value(name, "on " + device + " like " + first_name, t);
    }
}

}  // namespace pylum
