// Where the backward pass sums what the rows of one sequence and key head add to.
#pragma once

#include "attention/attention.h"
#include "attention/cpu/turns.h"

namespace pylum::attention {
namespace {

constexpr float kLog2e = 1.44269504f;

struct Gradients {
    float* dk;           // [keys of the sequence, padded(head_dim)]
    float* dv;           // [keys of the sequence, padded(value_dim)]
    double* dpositions;  // of the bias's tables, where there is one
    double* dtimes;
    Turn turn;  // to add to dk and dv
};

}  // namespace
}  // namespace pylum::attention
