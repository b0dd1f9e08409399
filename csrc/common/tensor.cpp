#include "common/tensor.h"

namespace pylum {

const char* dtype_name(DType dtype) {
    switch (dtype) {
        case DType::kFloat32:
            return "float32";
        case DType::kBFloat16:
            return "bfloat16";
        case DType::kFloat16:
            return "float16";
        case DType::kFloat64:
            return "float64";
        case DType::kInt64:
            return "int64";
        case DType::kInt32:
            return "int32";
        case DType::kBool:
            return "bool";
    }
    return "unknown";
}

std::string describe(const Tensor& t) {
    auto list = [&](const int64_t* v) {
        std::string s = "[";
        for (int i = 0; i < t.dims; ++i) {
            s += (i ? ", " : "") + std::to_string(v[i]);
        }
        return s + "]";
    };
    std::string s = list(t.sizes) + " " + dtype_name(t.dtype) + " on " +
                    (t.cuda ? "cuda:" + std::to_string(t.device) : std::string("cpu"));
    return t.contiguous() ? s : s + " with strides " + list(t.strides);
}

}  // namespace pylum
