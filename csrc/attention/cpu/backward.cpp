// One task per sequence and key head, cut into pieces of rows that add to its dk and dv in a fixed
// order. Tasks that are large beside a worker's share are taken piece by piece by several workers,
// the others whole; no sum and no bit depends on which. dk and dv of a task are summed in float32
// in a slot of the workspace.
#include "attention/cpu/backward_pairs.h"
#include "attention/cpu/backward_strip.h"
#include "common/parallel.h"

namespace pylum::attention::PYLUM_ISA {
namespace {

// Rows of a piece: of one section and query head, which go through the keys together.
#ifdef __AVX512BF16__
constexpr int64_t kPieceRows = kTaskRows;
#else
constexpr int64_t kPieceRows = kStripRows;
#endif

int64_t sections(int64_t rows) { return (rows + kPieceRows - 1) / kPieceRows; }

// out[row] = factor * sums[row], out being rows [kv_heads, dim] of T.
template <typename T>
void write_rows(const float* sums, float factor, int64_t rows, int64_t dim, int64_t out_row,
                T* out) {
    for (int64_t row = 0; row < rows; ++row) {
        for_vectors(dim, [&](int64_t d, int n) {
            store_lanes(out + row * out_row + d,
                        load_lanes(sums + row * padded(dim) + d, n) * factor, n);
        });
    }
}

// Its pieces: the history's sections and then the targets', of each all query heads.
struct Task {
    Task(const BackwardParams& params, int64_t number)
        : b(params),
          sequence(params.order[number / params.in.kv_heads]),
          s(params.in.batch.sequences[sequence]),
          kv_head(number % params.in.kv_heads),
          group(params.in.heads / params.in.kv_heads) {}

    int64_t pieces() const { return (sections(s.history) + sections(s.targets)) * group; }
    // About the pairs of row and key.
    double cost() const {
        const double rows = static_cast<double>(s.history);
        return rows * rows / 2 + rows * static_cast<double>(s.targets);
    }

    Gradients sums(float* workspace) const {
        return {.dk = workspace,
                .dv = workspace + (s.history + s.targets) * padded(b.in.head_dim),
                .dpositions = nullptr,
                .dtimes = nullptr,
                .turn = {}};
    }
    void begin(float* workspace) const {
        memset(workspace, 0,
               sizeof(float) * (s.history + s.targets) *
                   (padded(b.in.head_dim) + padded(b.in.value_dim)));
    }

    // Adds what the rows of a piece give and writes their dq.
    void run(int64_t piece, const Gradients& to) const {
        const int64_t n = piece / group, head = kv_head * group + piece % group;
        const bool targets = n >= sections(s.history);
        const int64_t first = (targets ? n - sections(s.history) : n) * kPieceRows;
        const int64_t left = (targets ? s.targets : s.history) - first;
        const Section rows{.sequence = static_cast<int32_t>(sequence),
                           .rows = static_cast<int32_t>(left < kPieceRows ? left : kPieceRows),
                           .first = first,
                           .targets = targets};
#ifdef PYLUM_TILES
        const TileRegisters tiles;
#endif
#ifdef __AVX512BF16__
        PairSection(b, sequence, kv_head).run(rows, head, to);
#else
        b.in.dtype == DType::kFloat32 ? run_strip<float>(b, rows, kv_head, head, to)
                                      : run_strip<bfloat16>(b, rows, kv_head, head, to);
#endif
    }

    void end(const Gradients& from) const {
        b.in.dtype == DType::kFloat32 ? write<float>(from) : write<bfloat16>(from);
    }

    template <typename T>
    void write(const Gradients& from) const {
        const AttentionInputs& p = b.in;
        const int64_t keys = s.history + s.targets, first = s.first_row * p.kv_heads + kv_head;
        write_rows(from.dk, BlockOf<T>::kPairs ? p.scale : 1.0f, keys, p.head_dim,
                   p.kv_heads * p.head_dim, static_cast<T*>(b.dk) + first * p.head_dim);
        write_rows(from.dv, 1.0f, keys, p.value_dim, p.kv_heads * p.value_dim,
                   static_cast<T*>(b.dv) + first * p.value_dim);
    }

    const BackwardParams& b;
    const int64_t sequence;
    const Sequence& s;
    const int64_t kv_head, group;
};

// Shares that the work of a worker should have at least, so that all end together.
constexpr double kShares = 4.0;
// What a task's state says besides its slot.
constexpr int64_t kWaiting = 0, kDone = -1;

// Hands out whole tasks and pieces, in order: a piece that waits for another does so for one that a
// worker has begun.
class Schedule {
  public:
    explicit Schedule(const BackwardParams& params)
        : b(params),
          tasks(params.in.batch.batch * params.in.kv_heads),
          // Tables' gradients are summed in copies, each in a fixed order. Few tasks have several
          // each, which their pieces take in turn; else tasks take turns.
          copies(tasks <= kBiasCopies / 2 && tasks > 0 ? kBiasCopies / tasks : 1),
          slots(params.control),
          states(slots + params.slots),
          marks(states + tasks) {
        double total = 0.0;
        for (int64_t t = 0; t < tasks; ++t) {
            total += Task(b, t).cost();
        }
        const bool may_cut = b.in.threads > 1 && (!b.dbias || copies > 1);
        for (; may_cut && cut < tasks; ++cut) {
            if (Task(b, cut).cost() * kShares * b.in.threads <= total) {
                break;
            }
            cut_pieces += Task(b, cut).pieces();
        }
    }

    void run() {
        const int64_t items = cut_pieces + tasks - cut;
        const int64_t workers = b.in.threads < items ? b.in.threads : items;
        int64_t next = 0;
        parallel_for(workers, static_cast<int>(workers), [&](int64_t) {
            int64_t number = 0, first = 0;  // the first cut task not behind, its first piece
            for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < items;) {
                if (i >= cut_pieces) {
                    run_whole(cut + i - cut_pieces);
                    continue;
                }
                while (i >= first + Task(b, number).pieces()) {
                    first += Task(b, number++).pieces();
                }
                run_piece(number, i - first, i);
            }
        });
    }

  private:
    // There is one: as many tasks are begun and not done as workers at most.
    int64_t take_slot() {
        for (int64_t slot = 0;; slot = (slot + 1) % b.slots) {
            if (__atomic_exchange_n(slots + slot, 1, __ATOMIC_ACQUIRE) == 0) {
                return slot;
            }
        }
    }
    float* workspace(int64_t slot) const { return b.workspace + slot * b.slot_floats; }
    int64_t state(int64_t number) const {
        return __atomic_load_n(states + number, __ATOMIC_ACQUIRE);
    }
    int64_t* mark(int64_t piece) const { return marks + piece * kMarkWords; }

    void add_bias_sums(int64_t number, int64_t piece, Gradients& to) const {
        if (b.dbias) {
            const RelativeBias& bias = b.in.bias;
            const int64_t copy =
                copies > 1 ? number * copies + piece % copies : number % kBiasCopies;
            to.dpositions = b.dbias + copy * bias_entries(bias);
            to.dtimes = to.dpositions + (bias.positions ? 2 * bias.length - 1 : 0);
        }
    }

    void end(const Task& task, int64_t number, int64_t slot, const Gradients& to) {
        task.end(to);
        __atomic_store_n(slots + slot, 0, __ATOMIC_RELEASE);
        __atomic_store_n(states + number, kDone, __ATOMIC_RELEASE);
    }

    void run_whole(int64_t number) {
        const Task task(b, number);
        if (b.dbias && copies == 1 && number >= kBiasCopies) {
            wait_until([&] { return state(number - kBiasCopies) == kDone; });
        }
        const int64_t slot = take_slot(), pieces = task.pieces();
        task.begin(workspace(slot));
        Gradients to = task.sums(workspace(slot));
        for (int64_t piece = 0; piece < pieces; ++piece) {
            add_bias_sums(number, piece, to);
            task.run(piece, to);
        }
        end(task, number, slot, to);
    }

    // `i` counts the pieces of all cut tasks.
    void run_piece(int64_t number, int64_t piece, int64_t i) {
        const Task task(b, number);
        if (piece == 0) {
            const int64_t slot = take_slot();
            task.begin(workspace(slot));
            __atomic_store_n(states + number, slot + 1, __ATOMIC_RELEASE);
        }
        wait_until([&] { return state(number) != kWaiting; });
        const int64_t slot = state(number) - 1;
        Gradients to = task.sums(workspace(slot));
        to.turn = {.before = piece > 0 ? mark(i - 1) : nullptr, .own = mark(i)};
        if (b.dbias && piece >= copies) {
            Turn{.before = mark(i - copies)}.wait(kAllKeys);
        }
        add_bias_sums(number, piece, to);
        task.run(piece, to);
        if (piece + 1 == task.pieces()) {
            end(task, number, slot, to);
        }
    }

    const BackwardParams& b;
    const int64_t tasks, copies;
    int64_t cut = 0, cut_pieces = 0;  // tasks, the first ones, and their pieces
    int64_t *const slots, *const states, *const marks;
};

}  // namespace

void backward(const BackwardParams& b) { Schedule(b).run(); }

}  // namespace pylum::attention::PYLUM_ISA
