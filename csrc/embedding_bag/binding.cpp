#include "common/binding.h"

#include <vector>

#include "embedding_bag/embedding_bag.h"

namespace pylum::embedding_bag {

static void check_offsets(const Tensor& offsets, const std::string& name, int64_t batch,
                          int64_t lookups, const Tensor& out) {
    expect_like(offsets, name.c_str(), out, "tables[0]");
    expect_dtype(offsets, name.c_str(), DType::kInt64);
    expect(offsets.is_shape({batch + 1}) && offsets.contiguous(), name.c_str(),
           "[batch + 1 = " + std::to_string(batch + 1) + "] int64, contiguous", offsets);
    if (offsets.cuda) {
        return;
    }
    const int64_t* o = offsets.as<int64_t>();
    if (o[0] != 0 || o[batch] != lookups) {
        throw py::value_error(name + " must run from 0 to " + std::to_string(lookups) + ", got " +
                              std::to_string(o[0]) + " to " + std::to_string(o[batch]));
    }
    for (int64_t b = 0; b < batch; ++b) {
        if (o[b] > o[b + 1]) {
            throw py::value_error(name + " must be non-decreasing, got " + std::to_string(o[b]) +
                                  " before " + std::to_string(o[b + 1]));
        }
    }
}

static void forward_py(const std::vector<Tensor>& tables, const std::vector<Tensor>& indices,
                       const std::vector<Tensor>& offsets, bool mean, const Tensor& out,
                       const Execution& on) {
    expect_device(out, "tables[0]");
    std::vector<Table> bags;
    int64_t column = 0;
    for (size_t t = 0; t < tables.size(); ++t) {
        const std::string at = "[" + std::to_string(t) + "]";
        const std::string table_name = "tables" + at, indices_name = "indices" + at;
        expect_like(tables[t], table_name.c_str(), out, "tables[0]");
        expect_floating(tables[t], table_name.c_str());
        expect(tables[t].dims == 2 && tables[t].last_contiguous(), table_name.c_str(),
               "[rows, dim], last dimension contiguous", tables[t]);
        expect_like(indices[t], indices_name.c_str(), out, "tables[0]");
        expect_dtype(indices[t], indices_name.c_str(), DType::kInt64);
        expect(indices[t].dims == 1, indices_name.c_str(), "[lookups] int64", indices[t]);
        check_offsets(offsets[t], "offsets" + at, out.size(0), indices[t].size(0), out);
        bags.push_back({.data = tables[t].data,
                        .dtype = tables[t].dtype,
                        .rows = tables[t].size(0),
                        .dim = tables[t].size(1),
                        .stride = tables[t].stride(0),
                        .indices = indices[t].as<int64_t>(),
                        .offsets = offsets[t].as<int64_t>(),
                        .lookups = indices[t].size(0),
                        .indices_stride = indices[t].stride(0),
                        .column = column});
        column += bags[t].dim;
    }
    bool good = true;
    const Params p{.tables = bags.data(),
                   .num_tables = static_cast<int64_t>(bags.size()),
                   .batch = out.size(0),
                   .width = out.size(1),
                   .mean = mean,
                   .out = out.data,
                   .out_dtype = out.dtype,
                   .threads = on.threads,
                   .errors = on.errors,
                   .good = &good};
    {
        py::gil_scoped_release release;
        PYLUM_CALL(out, on, forward, p);
    }
    for (size_t t = 0; !good && t < bags.size(); ++t) {
        for (int64_t n = 0; n < indices[t].size(0); ++n) {
            const int64_t row = bags[t].indices[n * bags[t].indices_stride];
            if (row < 0 || row >= bags[t].rows) {
                const std::string at = "[" + std::to_string(t) + "]";
                throw py::value_error("indices" + at + " must be rows of tables" + at + " in [0, " +
                                      std::to_string(bags[t].rows) + "), got " +
                                      std::to_string(row) + " at " + std::to_string(n));
            }
        }
    }
}

void register_op(py::module_& m) { m.def("embedding_bag_forward", &forward_py); }

}  // namespace pylum::embedding_bag
