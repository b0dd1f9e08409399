// pylum's bindings of the ops that have kernels for AMX, on emulated tiles.
#include <pybind11/pybind11.h>

#include "common/cpu/tiles.h"
#include "emulator.h"

namespace py = pybind11;

namespace pylum {
#define PYLUM_ROOM(room)              \
    namespace room {                  \
    void register_op(py::module_& m); \
    }
#include "rooms.inc"
#undef PYLUM_ROOM
}  // namespace pylum

// One product of tiles of the given shapes: [a_rows, depth] by [depth / 2, columns] pairs.
static void multiply(uintptr_t a, uintptr_t b, uintptr_t c, int rows, int depth, int columns) {
    pylum::TileShapes shapes{};
    shapes.palette = 1;
    const int shape[3][2] = {{rows, 4 * columns}, {rows, 2 * depth}, {depth / 2, 4 * columns}};
    for (int tile = 0; tile < 3; ++tile) {
        shapes.rows[tile] = static_cast<uint8_t>(shape[tile][0]);
        shapes.row_bytes[tile] = static_cast<uint16_t>(shape[tile][1]);
    }
    pylum::configure_tiles(shapes);
    pylum::load_tile<0>(reinterpret_cast<const void*>(c), 4 * columns);
    pylum::load_tile<1>(reinterpret_cast<const void*>(a), 2 * depth);
    pylum::load_tile<2>(reinterpret_cast<const void*>(b), 4 * columns);
    pylum::multiply_tiles<0, 1, 2>();
    pylum::store_tile<0>(reinterpret_cast<void*>(c), 4 * columns);
    pylum::release_tiles();
}

// Instructions in an order that faults.
static void misuse(const std::string& how) {
    pylum::TileShapes shapes{};
    shapes.palette = how == "palette" ? 2 : 1;
    shapes.rows[0] = shapes.rows[1] = 16;
    shapes.row_bytes[0] = shapes.row_bytes[1] = how == "shape" ? 128 : 64;
    if (how != "unconfigured") {
        pylum::configure_tiles(shapes);
    }
    if (how == "nested") {
        pylum::configure_tiles(shapes);
    }
    if (how == "unconfigured") {
        pylum::zero_tile<0>();
    } else if (how == "rows") {
        pylum::zero_tile<2>();
    } else if (how == "same") {
        pylum::multiply_tiles<0, 1, 1>();
    }
    pylum::release_tiles();
}

PYBIND11_MODULE(_amx_emulated, m) {
    m.def("multiply", &multiply);
    m.def("misuse", &misuse);
    m.def("take_fault", &amx_emulator::take_fault);
    m.def("take_counts", [] {
        const amx_emulator::Counts counts = amx_emulator::take_counts();
        return py::make_tuple(counts.products, counts.loads, counts.stores);
    });
#define PYLUM_ROOM(room) pylum::room::register_op(m);
#include "rooms.inc"
}
