// Candidates shared by all queries, bfloat16 on AVX512-BF16 and AMX: the three products of
// shared.cpp in pairs, of depth in logits, of candidates in d_queries, of queries in d_items.
// Exponentials are rounded to bfloat16 for the gradients only; the target's own part is float32.
//
// A task takes its queries through the candidates group by group: what was summed before a group is
// moved to the largest logit so far. d_items follows strip by strip, its weights moved likewise.
#include "sampled_softmax/cpu/pair_items.h"
#include "sampled_softmax/cpu/pair_queries.h"

namespace pylum::sampled_softmax::PYLUM_ISA {

void forward_shared(const Params& p) {
    const QueryPass queries(p);
    const ItemPass items(p);
    const PairLayout& at = items.at;
    parallel_for(at.panels, p.threads, [&](int64_t panel) { queries.pack(panel); });
    float* sums = p.workspace + (p.negatives ? at.d_rows : at.table);
    if (p.d_items) {
        memset(sums, 0, p.candidates() * at.width * sizeof(float));
    }
    for (int64_t first = 0; first < p.num_queries; first += at.strip) {
        const int64_t left = p.num_queries - first;
        const int64_t count = left < at.strip ? left : at.strip;
        for_workers((count + kPairRows - 1) / kPairRows, at.workers,
                    [&](int64_t task, int64_t worker) {
                        [[maybe_unused]] const PairRegisters registers;
                        const int64_t begin = task * kPairRows, rest = count - begin;
                        queries.run(first, begin, rest < kPairRows ? rest : kPairRows,
                                    queries.work(worker));
                    });
        if (p.d_items) {
            for_workers(at.groups, at.workers, [&](int64_t group, int64_t worker) {
                [[maybe_unused]] const PairRegisters registers;
                float* weighted = p.workspace + at.weighted + worker * at.strip / 2 * at.width;
                items.add_strip_of(first, count, group, weighted, sums);
            });
        }
    }
    if (p.d_items) {
        const int64_t ranges = p.threads > 1 ? 2 * p.threads : 1;
        parallel_for(ranges, p.threads, [&](int64_t range) {
            items.finish(p.num_items * range / ranges, p.num_items * (range + 1) / ranges);
        });
    }
}

}  // namespace pylum::sampled_softmax::PYLUM_ISA
