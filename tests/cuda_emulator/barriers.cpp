// Where threads wait for each other: a block, some of its warps, a warpgroup, the lanes of a warp.
#include "fibers.h"
#include "memory.h"

namespace emulator {

void block_barrier(const Place& place) {
    const Outside outside;
    Fiber& f = s.fibers[s.current];
    f.state = State::kBarrier;
    f.place = place;
    leave();
}

bool block_or(bool predicate, const Place& place) {
    // Barriers take the two slots in turn; the one that opens a slot's barrier clears the other.
    const int slot = s.barriers % 2;
    s.predicates[slot] = s.predicates[slot] || predicate;
    block_barrier(place);
    return s.predicates[slot];
}

void named_barrier(int number, int threads, const Place& place) {
    const Outside outside;
    if (number < 1 || number > 15 || threads < 1 || threads % kWarp != 0 ||
        threads > static_cast<int>(s.fibers.size())) {
        fail_at("a named barrier has a number of 1 to 15 and whole warps of the block,", place);
    }
    Fiber& own = s.fibers[s.current];
    own.place = place;
    own.number = number;
    own.threads = threads;
    own.state = State::kNamed;
    std::vector<int> here;
    for (size_t i = 0; i < s.fibers.size(); ++i) {
        const Fiber& f = s.fibers[i];
        if (f.state == State::kNamed && f.number == number) {
            here.push_back(static_cast<int>(i));
            if (f.threads != threads) {
                fail("threads expect another number of threads at a named barrier" + waiting());
            }
        }
    }
    if (static_cast<int>(here.size()) < threads) {
        leave();
        return;
    }
    meet(here);
    for (const int i : here) {
        s.fibers[i].state = State::kReady;
    }
}

void phase_wait(const void* barrier, unsigned parity, const Place& place) {
    const Outside outside;
    begin_phase_wait(barrier, place);
    if (!phase_ended(barrier, parity)) {
        Fiber& own = s.fibers[s.current];
        own.place = place;
        own.barrier = barrier;
        own.parity = parity;
        own.state = State::kPhase;
        leave();
    }
    learn_phase(barrier);
}

void warpgroup_meet(void (*done)(int first_thread), const Place& place) {
    const int first = s.current / kGroup * kGroup;
    Fiber& own = s.fibers[s.current];
    own.place = place;
    own.state = State::kGroup;
    if (first + kGroup > static_cast<int>(s.fibers.size())) {
        fail_at("a warpgroup has 128 threads,", place);
    }
    for (int i = first; i < first + kGroup; ++i) {
        const Fiber& f = s.fibers[i];
        if (f.state != State::kGroup) {
            leave();
            return;
        }
        if (f.place.line() != place.line()) {
            fail("threads of a warpgroup meet in different operations" + waiting());
        }
    }
    done(first);
    for (int i = first; i < first + kGroup; ++i) {
        s.fibers[i].state = State::kReady;
    }
}

void warp_operation(unsigned mask, WarpOperation run, void* argument, const Place& place) {
    const Outside outside;
    const int first = s.current / kWarp * kWarp;
    Fiber& own = s.fibers[s.current];
    if (!(mask >> lane() & 1)) {
        fail("a thread is not in the mask of the warp operation it takes part in at " +
             describe(place));
    }
    own.place = place;
    own.mask = mask;
    own.run = run;
    own.argument = argument;
    own.state = State::kWarp;
    void* arguments[kWarp] = {};
    for (int i = 0; i < kWarp; ++i) {
        if (!(mask >> i & 1)) {
            continue;
        }
        if (first + i >= static_cast<int>(s.fibers.size())) {
            fail("the mask of a warp operation names a thread past the block at " +
                 describe(place));
        }
        const Fiber& f = s.fibers[first + i];
        if (f.state != State::kWarp) {
            leave();
            return;
        }
        if (f.mask != mask || f.run != run || f.place.line() != place.line()) {
            fail("threads of a warp meet in different operations" + waiting());
        }
        arguments[i] = f.argument;
    }
    run(arguments);
    next_warp_epoch(s.current / kWarp);
    for (int i = 0; i < kWarp; ++i) {
        if (mask >> i & 1) {
            s.fibers[first + i].state = State::kReady;
        }
    }
}

}  // namespace emulator
