// A checked view of a tensor's memory: what a DLPack tensor says, copied, and nothing owned.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

namespace pylum {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kInt64, kInt32, kBool };

constexpr int kMaxDims = 6;

struct Tensor {
    void* data = nullptr;
    int dims = 0;
    int64_t sizes[kMaxDims] = {};
    int64_t strides[kMaxDims] = {};  // in elements
    DType dtype = DType::kFloat32;
    bool cuda = false;
    int device = 0;

    int64_t size(int i) const { return sizes[i < 0 ? i + dims : i]; }
    int64_t stride(int i) const { return strides[i < 0 ? i + dims : i]; }
    template <typename T>
    T* as() const {
        return static_cast<T*>(data);
    }
    int64_t numel() const {
        int64_t n = 1;
        for (int i = 0; i < dims; ++i) {
            n *= sizes[i];
        }
        return n;
    }
    // Every index of every dimension is where a contiguous tensor would have it.
    bool contiguous() const {
        if (numel() == 0) {
            return true;
        }
        int64_t expected = 1;
        for (int i = dims - 1; i >= 0; --i) {
            if (sizes[i] != 1 && strides[i] != expected) {
                return false;
            }
            expected *= sizes[i];
        }
        return true;
    }
    bool last_contiguous() const { return dims == 0 || size(-1) <= 1 || stride(-1) == 1; }
    bool is_shape(std::initializer_list<int64_t> wanted) const {
        if (dims != static_cast<int>(wanted.size())) {
            return false;
        }
        int i = 0;
        for (int64_t n : wanted) {
            if (sizes[i++] != n) {
                return false;
            }
        }
        return true;
    }
};

const char* dtype_name(DType dtype);

// "[3, 4] int32 on cuda:0", with strides where the tensor is not contiguous.
std::string describe(const Tensor& t);

}  // namespace pylum
