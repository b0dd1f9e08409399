#include "common/binding.h"

#include <vector>

#include "embedding_sequence/embedding_sequence.h"

namespace pylum::embedding_sequence {

static Table checked(const Tensor& table, const Tensor& indices, const std::string& table_name,
                     const std::string& indices_name, const Tensor& out) {
    const int64_t total = out.size(0);
    const char* name = table_name.c_str();
    expect_like(table, name, out, "tables[0]");
    expect_floating(table, name);
    expect(table.dims == 2 && table.last_contiguous(), name,
           "[rows, dim], last dimension contiguous", table);
    name = indices_name.c_str();
    expect_like(indices, name, out, "tables[0]");
    expect_dtype(indices, name, DType::kInt64);
    expect(indices.is_shape({total}), name, "[tokens = " + std::to_string(total) + "] int64",
           indices);
    return {.data = table.data,
            .dtype = table.dtype,
            .rows = table.size(0),
            .dim = table.size(1),
            .stride = table.stride(0),
            .indices = indices.as<int64_t>(),
            .indices_stride = indices.stride(0),
            .column = 0};
}

static void check_range(const Table& t, const std::string& table_name,
                        const std::string& indices_name, int64_t total) {
    for (int64_t n = 0; n < total; ++n) {
        const int64_t row = t.indices[n * t.indices_stride];
        if (row < 0 || row >= t.rows) {
            throw py::value_error(indices_name + " must be rows of " + table_name + " in [0, " +
                                  std::to_string(t.rows) + "), got " + std::to_string(row) +
                                  " at " + std::to_string(n));
        }
    }
}

static void forward_py(const std::vector<Tensor>& tables, const std::vector<Tensor>& indices,
                       const std::optional<Tensor>& position_table,
                       const std::optional<Tensor>& position_index, bool sum, const Tensor& out,
                       const Execution& on) {
    expect_device(out, "tables[0]");
    expect_floating(out, "dtype");
    std::vector<Table> rows;
    std::vector<std::string> names;
    int64_t column = 0;
    for (size_t t = 0; t < tables.size(); ++t) {
        names.push_back("[" + std::to_string(t) + "]");
        rows.push_back(
            checked(tables[t], indices[t], "tables" + names[t], "indices" + names[t], out));
        rows[t].column = sum ? 0 : column;
        column += rows[t].dim;
    }
    std::optional<Table> position;
    if (position_table) {
        position = checked(*position_table, *position_index, "positions[0]", "positions[1]", out);
    }
    if (out.cuda && sum && static_cast<int64_t>(tables.size()) > kMostTables) {
        throw py::value_error("tables must be at most " + std::to_string(kMostTables) +
                              " to be summed on cuda, got " + std::to_string(tables.size()));
    }
    bool good = true;
    const Params p{.tables = rows.data(),
                   .num_tables = static_cast<int64_t>(rows.size()),
                   .sum = sum,
                   .position = position ? &*position : nullptr,
                   .out = out.data,
                   .out_dtype = out.dtype,
                   .total = out.size(0),
                   .width = out.size(1),
                   .threads = on.threads,
                   .errors = on.errors,
                   .good = &good};
    {
        py::gil_scoped_release release;
        PYLUM_CALL(out, on, forward, p);
    }
    if (!good) {
        for (size_t t = 0; t < rows.size(); ++t) {
            check_range(rows[t], "tables" + names[t], "indices" + names[t], p.total);
        }
        check_range(*position, "positions[0]", "positions[1]", p.total);
    }
}

void register_op(py::module_& m) { m.def("embedding_sequence_forward", &forward_py); }

}  // namespace pylum::embedding_sequence
