// Threads for CPU kernels. Everything here is local to its file: one weak symbol compiled with
// AVX-512 flags would be shared with, and crash, the base kernels of older machines.
#pragma once

#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace pylum {

// True in a child forked after the parent ran a team of threads: libgomp would hang there.
bool in_forked_child();

namespace {

// f(i) for i in [0, n), each i on one thread, in any order. Results must not depend on threads.
template <typename F>
inline void parallel_for(int64_t n, int threads, const F& f) {
#ifdef _OPENMP
    if (threads > 1 && n > 1 && !in_forked_child()) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int64_t i = 0; i < n; ++i) {
            f(i);
        }
        return;
    }
#endif
    (void)threads;
    for (int64_t i = 0; i < n; ++i) {
        f(i);
    }
}

// f(i, worker) for i in [0, n), begun in order; a worker takes one i at a time, so it may have
// memory of its own.
template <typename F>
inline void for_workers(int64_t n, int64_t workers, const F& f) {
    int64_t next = 0;
    parallel_for(workers < n ? workers : n, static_cast<int>(workers), [&](int64_t worker) {
        for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < n;) {
            f(i, worker);
        }
    });
}

}  // namespace

}  // namespace pylum
