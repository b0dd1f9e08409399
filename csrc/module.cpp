// pylum._C: raw kernels, private to the package. One register line per room.
#include <pybind11/pybind11.h>

#include "common/cpu_features.h"
#ifdef PYLUM_CUDA
#include "common/cuda/device.h"
#endif

namespace py = pybind11;

namespace pylum {
namespace append_pages {
void register_op(py::module_& m);
}
namespace attention {
void register_op(py::module_& m);
}
namespace prefix_attention {
void register_op(py::module_& m);
}
namespace query_layer {
void register_op(py::module_& m);
}
namespace dot_interaction {
void register_op(py::module_& m);
}
namespace embedding_bag {
void register_op(py::module_& m);
}
namespace embedding_sequence {
void register_op(py::module_& m);
}
namespace row_wise {
void register_op(py::module_& m);
}
namespace sampled_softmax {
void register_op(py::module_& m);
}
namespace linear {
void register_op(py::module_& m);
}
namespace multiply_adds {
void register_op(py::module_& m);
}
namespace residual_norm {
void register_op(py::module_& m);
}
namespace rotary {
void register_op(py::module_& m);
}
namespace swiglu {
void register_op(py::module_& m);
}
namespace topk {
void register_op(py::module_& m);
}

static py::dict build_info() {
    py::dict info;
    info["compiler"] = __VERSION__;
#ifdef _OPENMP
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    info["isa"] = isa_name(isa());
    info["isa_best"] = isa_name(best_isa());
    info["amx_missing"] = amx_missing();
#ifdef PYLUM_CUDA
    info["cuda_built"] = true;
    info["cuda_runtime"] = cuda::runtime_version();
    info["cuda_architectures"] = cuda::architectures();
    info["cuda_devices"] = cuda::device_count();
#else
    info["cuda_built"] = false;
#endif
    return info;
}

}  // namespace pylum

PYBIND11_MODULE(_C, m) {
    m.def("build_info", &pylum::build_info);
    pylum::append_pages::register_op(m);
    pylum::attention::register_op(m);
    pylum::prefix_attention::register_op(m);
    pylum::query_layer::register_op(m);
    pylum::dot_interaction::register_op(m);
    pylum::embedding_bag::register_op(m);
    pylum::embedding_sequence::register_op(m);
    pylum::row_wise::register_op(m);
    pylum::sampled_softmax::register_op(m);
    pylum::linear::register_op(m);
    pylum::multiply_adds::register_op(m);
    pylum::residual_norm::register_op(m);
    pylum::rotary::register_op(m);
    pylum::swiglu::register_op(m);
    pylum::topk::register_op(m);
}
