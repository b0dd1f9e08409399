// pylum's bindings with CUDA, its kernels on the emulator. Tensors of the host come as the
// device's: wrapped in HostAsCuda, whose DLPack says so.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "engines.h"
#include "third_party/dlpack.h"

namespace py = pybind11;

namespace pylum {
#define PYLUM_ROOM(room)              \
    namespace room {                  \
    void register_op(py::module_& m); \
    }
#include "rooms.inc"
#undef PYLUM_ROOM
}  // namespace pylum

namespace planted {
void run(const std::string& name, bool bug, uintptr_t data, int64_t size);
void tile_product(const std::string& name, bool half, int count, bool transposed, bool registers,
                  uintptr_t a, uintptr_t b, uintptr_t out, const std::array<int64_t, 5>& of_b,
                  int head, int first);
}  // namespace planted

namespace golden {
void run(const std::string& name, const uint32_t* in, uint32_t* out, int64_t cases);
}

namespace {

struct HostAsCuda {
    uintptr_t data;
    std::vector<int64_t> shape, strides;
    int code, bits;

    py::capsule dlpack() {
        auto* managed = new DLManagedTensor{};
        managed->dl_tensor.data = reinterpret_cast<void*>(data);
        managed->dl_tensor.device = {kDLCUDA, 0};
        managed->dl_tensor.ndim = static_cast<int>(shape.size());
        managed->dl_tensor.dtype = {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
        managed->dl_tensor.shape = shape.data();
        managed->dl_tensor.strides = strides.data();
        return py::capsule(managed, "dltensor", [](PyObject* capsule) {
            delete static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
        });
    }
};

}  // namespace

PYBIND11_MODULE(_emulated, m) {
    py::class_<HostAsCuda>(m, "HostAsCuda")
        .def(py::init([](uintptr_t data, std::vector<int64_t> shape, std::vector<int64_t> strides,
                         int code, int bits) {
            return HostAsCuda{data, std::move(shape), std::move(strides), code, bits};
        }))
        .def("__dlpack__", &HostAsCuda::dlpack);
    m.def("add_memory", [](uintptr_t at, size_t bytes, const std::string& name) {
        emulator::add_memory(reinterpret_cast<const void*>(at), bytes, name);
    });
    m.def("clear_memory", &emulator::clear_memory);
    m.def("set_backwards", [](bool on) { emulator::backwards = on; });
    m.def("planted", &planted::run);
    m.def("set_sm90", [](bool on) { emulator::sm90 = on; });
    m.def("copied_tiles", [] { return emulator::copied_tiles; });
    m.def("tile_product", &planted::tile_product);
    m.def("golden", [](const std::string& name, uintptr_t in, uintptr_t out, int64_t cases) {
        golden::run(name, reinterpret_cast<const uint32_t*>(in), reinterpret_cast<uint32_t*>(out),
                    cases);
    });
#define PYLUM_ROOM(room) pylum::room::register_op(m);
#include "rooms.inc"
}
