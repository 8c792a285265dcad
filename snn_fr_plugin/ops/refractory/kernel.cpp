// `fixed_refractory` on the CPU. Forward: threads share out tiles of columns (neurons); a tile runs through time row by
// row, with its counters in the first-level cache. Backward has no order in time: tiles of columns and SPAN steps.
#include "../host.h"
#include "../lif/step.h"
#include "../pages.h"

namespace snn_fr {
namespace {

constexpr index TILE = 512;          // columns: a dozen rows of this length fit into the first-level cache
constexpr index SPAN = 1024;         // as in cpp_provider.py
constexpr index AHEAD = 4;           // rows to prefetch
constexpr index PER_THREAD = 16384;  // elements below which another thread does not pay

enum Scheme { ABSOLUTE, WINDOW, STRIDED, ONSET };  // as in arguments.py

// Field by field as in arguments.py.
struct Arguments {
    index steps, neurons;
    double alpha;
    int period, scheme, inclusive, kind, threads;
    int threshold_stride;  // 0: one value for all neurons
    const io* drive;
    const real* threshold;
    const int* state;

    io* spikes;
    unsigned char* is_open;
    int* final_state;

    const io* grad_spikes;
    const unsigned char* was_open;
    io* grad_drive;
    real* grad_threshold;  // [spans, neurons], to be summed over spans; null if not asked for
};

struct alignas(64) Scratch {
    real threshold[TILE], drive[TILE], given[TILE], out[TILE], sums[TILE];
    io spikes[TILE];
    int state[TILE];
    unsigned char is_open[TILE];
};
thread_local Scratch scratch;

// ---- rows: plain loops over local pointers, which compilers vectorise

inline void mark(float& spike, int fired) { spike = float(fired); }
inline void mark(double& spike, int fired) { spike = fired; }
inline void mark(float16& spike, int fired) { spike.bits = std::uint16_t(-fired & 0x3c00); }
inline void mark(bfloat16& spike, int fired) { spike.bits = std::uint16_t(-fired & 0x3f80); }

// Conditions are numbers, 0 or 1, and choosing is bitwise: what a compiler makes a jump of, it does not vectorise.
inline int choose(int condition, int yes, int no) { return (yes & -condition) | (no & (condition - 1)); }

template <int SCHEME, bool INCLUSIVE>
[[gnu::noinline]] void gate_row(int n, int period, const real* __restrict drive, const real* __restrict threshold,
                                int* __restrict state, io* __restrict spikes, unsigned char* __restrict is_open)
{
    for (int i = 0; i < n; ++i) {
        const int left = state[i], waited = left > 0 ? left - 1 : 0;
        const int candidate = INCLUSIVE ? drive[i] >= threshold[i] : drive[i] > threshold[i];
        int open = left == 0, fired = candidate & open;
        if constexpr (SCHEME == ABSOLUTE) state[i] = choose(fired, period, waited);
        if constexpr (SCHEME == ONSET) state[i] = choose(candidate, period, waited);
        if constexpr (SCHEME == STRIDED) state[i] = choose(open, period, left - 1);
        if constexpr (SCHEME == WINDOW) {
            const int before = left & 1, now = before | candidate, next = (left | 1) + 1 + now;
            state[i] = choose(left >> 1 == period, 0, next);
            open = before ^ 1, fired = now ^ before;
        }
        mark(spikes[i], fired);
        is_open[i] = static_cast<unsigned char>(open);
    }
}

template <int KIND>
[[gnu::noinline]] void grad_row(int n, Surrogate<real> by, const real* __restrict drive,
                                const real* __restrict threshold, const unsigned char* __restrict is_open,
                                const real* __restrict given, real* __restrict grad, real* __restrict sums)
{
    by.kind = KIND;
    for (int i = 0; i < n; ++i) {
        const real slope = derivative(by, drive[i] - threshold[i]) * real(is_open[i]);
        grad[i] = given[i] * slope;
        sums[i] -= grad[i];
    }
}

typedef void GateRow(int, int, const real*, const real*, int*, io*, unsigned char*);
typedef void GradRow(int, Surrogate<real>, const real*, const real*, const unsigned char*, const real*, real*, real*);

template <bool INCLUSIVE>
GateRow* gate_row_of(int scheme)
{
    static GateRow* const rows[] = {gate_row<ABSOLUTE, INCLUSIVE>, gate_row<WINDOW, INCLUSIVE>,
                                    gate_row<STRIDED, INCLUSIVE>, gate_row<ONSET, INCLUSIVE>};
    return rows[scheme];
}

GradRow* grad_row_of(int kind)
{
    static GradRow* const rows[] = {
        grad_row<ATAN>,      grad_row<SIGMOID>,   grad_row<FAST_SIGMOID>, grad_row<SUPER_SPIKE>,
        grad_row<TRIANGLE>,  grad_row<RECTANGLE>, grad_row<SOFT_SIGN>,    grad_row<ERF>,
        grad_row<PIECEWISE_QUADRATIC>, grad_row<PIECEWISE_EXP>, grad_row<STRAIGHT_THROUGH>,
    };
    return rows[kind];
}

// ---- tiles

void load_threshold(const Arguments& a, index first, int n, Scratch& s)
{
    for (int i = 0; i < n; ++i) s.threshold[i] = a.threshold[a.threshold_stride ? first + i : 0];
}

[[gnu::noinline]] void forward_tile(const Arguments& a, index first, int n, bool stream, Scratch& s)
{
    GateRow* const gate_row = a.inclusive ? gate_row_of<true>(a.scheme) : gate_row_of<false>(a.scheme);
    load_threshold(a, first, n, s);
    std::memcpy(s.state, a.state + first, n * sizeof(int));
    for (index t = 0; t < a.steps; ++t) {
        const index at = t * a.neurons + first;
        if (t + AHEAD < a.steps) prefetch_row(a.drive + at + AHEAD * a.neurons, n);
        const real* drive = read_row(a.drive + at, s.drive, n);
        if (stream) {
            gate_row(n, a.period, drive, s.threshold, s.state, s.spikes, s.is_open);
            copy_bytes(a.spikes + at, s.spikes, n * sizeof(io), stream);
            copy_bytes(a.is_open + at, s.is_open, n, stream);
        } else {
            gate_row(n, a.period, drive, s.threshold, s.state, a.spikes + at, a.is_open + at);
        }
    }
    std::memcpy(a.final_state + first, s.state, n * sizeof(int));
    if (stream) finish_streaming();
}

[[gnu::noinline]] void backward_tile(const Arguments& a, index span, index first, int n, bool stream, Scratch& s)
{
    GradRow* const grad_row = grad_row_of(a.kind);
    const Surrogate<real> by = surrogate<real>(a.kind, a.alpha);
    const index begin = span * SPAN, end = begin + SPAN < a.steps ? begin + SPAN : a.steps;
    load_threshold(a, first, n, s);
    for (int i = 0; i < n; ++i) s.sums[i] = 0;
    for (index t = begin; t < end; ++t) {
        const index at = t * a.neurons + first;
        if (t + AHEAD < end) {
            prefetch_row(a.drive + at + AHEAD * a.neurons, n);
            prefetch_row(a.grad_spikes + at + AHEAD * a.neurons, n);
            prefetch_row(a.was_open + at + AHEAD * a.neurons, n);
        }
        const real* drive = read_row(a.drive + at, s.drive, n);
        const real* given = read_row(a.grad_spikes + at, s.given, n);
        real* grad = begin_row(a.grad_drive + at, s.out, stream);
        grad_row(n, by, drive, s.threshold, a.was_open + at, given, grad, s.sums);
        end_row(a.grad_drive + at, grad, n, stream);
    }
    if (a.grad_threshold) std::memcpy(a.grad_threshold + span * a.neurons + first, s.sums, n * sizeof(real));
    if (stream) finish_streaming();
}

// ---- calls

// Tiles of whole cache lines, as many for every thread.
struct Tiles {
    index threads, count, width;
    bool stream;

    explicit Tiles(const Arguments& a)
    {
        const index elements = a.steps * a.neurons, useful = 1 + elements / PER_THREAD;
        threads = a.threads < useful ? a.threads : useful;
        count = ((a.neurons + TILE - 1) / TILE + threads - 1) / threads * threads;
        width = count ? ((a.neurons + count - 1) / count + 63) / 64 * 64 : 0;
        stream = elements * index(sizeof(io)) >= STREAM_FROM;
    }
};

}  // namespace

extern "C" void snn_fr_refractory_forward(const Arguments* a)
{
    const Tiles tiles(*a);
    expect_writes(a->spikes, a->steps * a->neurons * sizeof(io));
    expect_writes(a->is_open, a->steps * a->neurons);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(tiles.threads)) if (tiles.threads > 1)
#endif
    for (index i = 0; i < tiles.count; ++i) {
        const index first = i * tiles.width, rest = a->neurons - first;
        if (rest > 0) forward_tile(*a, first, int(rest < tiles.width ? rest : tiles.width), tiles.stream, scratch);
    }
}

extern "C" void snn_fr_refractory_backward(const Arguments* a)
{
    const Tiles tiles(*a);
    const index spans = (a->steps + SPAN - 1) / SPAN;
    expect_writes(a->grad_drive, a->steps * a->neurons * sizeof(io));
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(tiles.threads)) if (tiles.threads > 1)
#endif
    for (index i = 0; i < spans * tiles.count; ++i) {
        const index first = i % tiles.count * tiles.width, rest = a->neurons - first;
        if (rest > 0)
            backward_tile(*a, i / tiles.count, first, int(rest < tiles.width ? rest : tiles.width), tiles.stream, scratch);
    }
}

}  // namespace snn_fr
