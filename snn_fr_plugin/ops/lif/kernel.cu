// `lif` on a GPU: a thread takes SNN_FR_LANES neurons through time. What it reads comes in tiles of steps, the next
// one on its way while one is computed; steps that make no whole tile come a few at a time. Forward writes a
// checkpoint of the state every CHUNK steps; backward takes the chunks from the last, replays each from its checkpoint
// with its membranes in shared memory, where a thread has a column to itself, and runs it in reverse. No thread waits
// for another, and a neuron is computed in one order.
//
// SNN_FR_CHARGE and SNN_FR_RESET are numbers of step.h, SNN_FR_TILE the steps of a tile of the forward.
//
// Compiled for GPUs, and run on a CPU (tests/cuda_shim.h); not yet run on a GPU.
#include "../device.h"
#include "arguments.h"
#include "step.h"

namespace snn_fr {

constexpr int CHARGE = SNN_FR_CHARGE, RESET = SNN_FR_RESET;
constexpr int THREADS = 64;        // of a block, as in cupy_provider.py
constexpr int TILE = SNN_FR_TILE;  // steps of a tile of the forward
constexpr int FEW = 4;             // steps that are read together where no tile is whole
static_assert(CHUNK % TILE == 0, "a chunk is made of whole tiles");

SNN_FR_INLINE index first_neuron() { return (blockIdx.x * index(THREADS) + threadIdx.x) * LANES; }

SNN_FR_INLINE Rules<real> rules_of(const Arguments& a)
{
    return {a.period, mask<real>(a.integrate != 0), mask<real>(a.inclusive != 0), mask<real>(a.attached != 0),
            real(a.v_reset)};
}

SNN_FR_INLINE Neuron<real> neuron(const Arguments& a, const Rules<real>& rules, index i)
{
    const real decay = a.decay[i * a.decay_stride], threshold = a.threshold[i * a.threshold_stride];
    return {decay, 1 / decay, threshold, a.magnitude[i * a.magnitude_stride], spared(threshold, rules)};
}

// The neurons of a thread and their state.
struct Cells {
    Rules<real> rules;
    Neuron<real> cell[LANES];
    real v[LANES];
    int left[LANES];
};

SNN_FR_INLINE Cells cells(const Arguments& a, index i)
{
    Cells c;
    c.rules = rules_of(a);
#pragma unroll
    for (int l = 0; l < LANES; ++l) {
        c.cell[l] = neuron(a, c.rules, i + l);
        c.v[l] = a.v0[i + l];
        c.left[l] = a.refractory0[i + l];
    }
    return c;
}

// N rows; those from `rows` on are zeros.
template <int N>
SNN_FR_INLINE void fetch(pack (&tile)[N], const io* from, index stride)
{
#pragma unroll
    for (int j = 0; j < N; ++j) tile[j] = read_pack(from + j * stride);
}

template <int N>
SNN_FR_INLINE void fetch(pack (&tile)[N], const io* from, index stride, index rows)
{
#pragma unroll
    for (int j = 0; j < N; ++j) tile[j] = j < rows ? read_pack(from + j * stride) : pack();
}

template <int N>
SNN_FR_INLINE void copy(pack (&to)[N], const pack (&from)[N])
{
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = from[j];
}

// The state before step CHUNK * chunk, chunk > 0: a row of v, and one of counters, which keep their bits in a float.
SNN_FR_INLINE real* checkpoint(const Arguments& a, index chunk, index i)
{
    return a.checkpoints + (2 * chunk - 2) * a.neurons + i;
}

template <typename number>
SNN_FR_INLINE void write_count(number* to, int left)
{
    if constexpr (sizeof(number) == sizeof(int))
        write_once(reinterpret_cast<int*>(to), left);
    else
        write_once(to, number(left));
}

template <typename number>
SNN_FR_INLINE int read_count(const number* from)
{
    if constexpr (sizeof(number) == sizeof(int))
        return read_once(reinterpret_cast<const int*>(from));
    else
        return int(read_once(from));
}

// ---- forward

// What is written beside the spikes, and the state at its checkpoints: nothing; the membrane v; or everything that is
// asked for. Where an input can be ignored, all of it is in the last.
enum Written { SPIKES, MEMBRANE, EVERYTHING };

template <int WRITTEN>
SNN_FR_INLINE void fire(const Arguments& a, Cells& c, real* membrane, pack x, index at)
{
    real spikes[LANES];
#pragma unroll
    for (int l = 0; l < LANES; ++l) {
        const Step<real> step = advance<CHARGE, RESET>(lane_of(x, l), c.cell[l], c.rules, c.v[l], c.left[l]);
        spikes[l] = keep(step.fired, real(1));
        if (WRITTEN == MEMBRANE) write_once(membrane + at + l, c.v[l]);
        if (WRITTEN != EVERYTHING) continue;
        if (a.membrane) write_once(a.membrane + at + l, c.v[l]);
        if (a.charged) write_once(a.charged + at + l, step.h);
        if (a.is_open) write_once(a.is_open + at + l, static_cast<unsigned char>(step.open));
    }
    write_pack(a.spikes + at, spikes);
}

SNN_FR_INLINE void save(const Arguments& a, const Cells& c, index t, index i)
{
    if (!a.checkpoints || t == 0 || t % CHUNK != 0) return;
    real* const row = checkpoint(a, t / CHUNK, i);
#pragma unroll
    for (int l = 0; l < LANES; ++l) {
        write_once(row + l, c.v[l]);
        write_count(row + a.neurons + l, c.left[l]);
    }
}

template <int WRITTEN>
SNN_FR_INLINE void forward(const Arguments& a)
{
    const index i = first_neuron();
    if (i >= a.neurons) return;
    Cells c = cells(a, i);
    if (WRITTEN != EVERYTHING) c.rules.integrate = mask<real>(true);
    real* const membrane = a.membrane ? a.membrane : a.charged;  // the same, where no reset comes at once
    index t = 0, at = i;
    if (a.steps >= TILE) {
        pack now[TILE], next[TILE];
        fetch(next, a.x + i, a.neurons);
#pragma unroll 1
        for (; t + TILE <= a.steps; t += TILE) {
            copy(now, next);
            if (t + 2 * TILE <= a.steps) fetch(next, a.x + at + TILE * a.neurons, a.neurons);
            save(a, c, t, i);
#pragma unroll
            for (int j = 0; j < TILE; ++j, at += a.neurons) fire<WRITTEN>(a, c, membrane, now[j], at);
        }
    }
#pragma unroll 1
    for (; t < a.steps; t += FEW) {
        pack now[FEW];
        fetch(now, a.x + at, a.neurons, a.steps - t);
        save(a, c, t, i);
#pragma unroll
        for (int j = 0; j < FEW; ++j, at += a.neurons)
            if (t + j < a.steps) fire<WRITTEN>(a, c, membrane, now[j], at);
    }
#pragma unroll
    for (int l = 0; l < LANES; ++l) {
        a.v[i + l] = c.v[l];
        a.refractory[i + l] = c.left[l] > 0 ? c.left[l] : 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 8) snn_fr_lif_forward(const __grid_constant__ Arguments a)
{
    forward<SPIKES>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, 8) snn_fr_lif_forward_membrane(const __grid_constant__ Arguments a)
{
    forward<MEMBRANE>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, 8) snn_fr_lif_forward_full(const __grid_constant__ Arguments a)
{
    forward<EVERYTHING>(a);
}

// ---- backward

#ifdef SNN_FR_GROUP
template<bool FULL> constexpr int GROUP = FULL ? 8 : SNN_FR_GROUP;
#else
// Steps of a tile of the backward, as registers allow, and steps whose slopes are found together.
template <bool FULL>
constexpr int GROUP = sizeof(real) == 8 ? 8 : FULL || LANES == 2 ? 16 : 32;
#endif
constexpr int BATCH = 8;

// What a thread remembers of a chunk: numbers in its column of shared memory, by step and lane; conditions in words, a
// bit a step.
constexpr bool KEEPS_H = RESET == ZERO;
typedef real Rows[CHUNK * LANES][THREADS];

template <int KIND, int N>
SNN_FR_INLINE void slopes_of(Surrogate<real> by, real (&distance)[N])
{
    by.kind = KIND;
#pragma unroll
    for (int j = 0; j < N; ++j) distance[j] = derivative(by, distance[j]);
}

// What the surrogate makes of distances from the threshold, in their place. Kinds with one formula share a loop.
template <int N>
SNN_FR_INLINE void slopes(const Surrogate<real>& by, real (&distance)[N])
{
    switch (by.kind) {
        case ATAN: return slopes_of<ATAN>(by, distance);
        case SIGMOID: return slopes_of<SIGMOID>(by, distance);
        case FAST_SIGMOID:
        case SUPER_SPIKE:
        case SOFT_SIGN: return slopes_of<SOFT_SIGN>(by, distance);
        case TRIANGLE:
        case PIECEWISE_QUADRATIC: return slopes_of<TRIANGLE>(by, distance);
        case RECTANGLE: return slopes_of<RECTANGLE>(by, distance);
        case ERF: return slopes_of<ERF>(by, distance);
        case PIECEWISE_EXP: return slopes_of<PIECEWISE_EXP>(by, distance);
        case STRAIGHT_THROUGH: return slopes_of<STRAIGHT_THROUGH>(by, distance);
        default: return slopes_of<-1>(by, distance);
    }
}

// One chunk in the backward. FULL: everything that retreat() calls so. Otherwise there is a cotangent of the spikes
// alone, gradients of x and v are wanted alone, and every input was integrated.
template <bool FULL>
struct Reverse {
    const Arguments& a;
    const Surrogate<real> by;
    Cells c;
    Rows &slope, &h, &from;
    unsigned int open[LANES], fired[LANES], pending[LANES];
    real carry[LANES];
    Neuron<real> sum[LANES];

    __device__ __forceinline__ void begin(index start, index i)
    {
#pragma unroll
        for (int l = 0; l < LANES; ++l) {
            const real* const row = checkpoint(a, start / CHUNK, i + l);
            c.v[l] = start > 0 ? read_once(row) : a.v0[i + l];
            c.left[l] = start > 0 ? read_count(row + a.neurons) : a.refractory0[i + l];
            open[l] = fired[l] = pending[l] = 0;
        }
    }

    // Steps first, first + 1, ... of the chunk; those from `count` on are none.
    template <int N, bool ALL>
    __device__ __forceinline__ void replay(const pack* x, int first, int count = N)
    {
        real distance[N * LANES];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const unsigned int here = 1u << (first + j);
#pragma unroll
            for (int l = 0; l < LANES; ++l) {
                const int row = (first + j) * LANES + l;
                if (!ALL && j >= count) {
                    distance[j * LANES + l] = 0;
                    continue;
                }
                const Step<real> step = advance<CHARGE, RESET>(lane_of(x[j], l), c.cell[l], c.rules, c.v[l], c.left[l]);
                open[l] |= step.open ? here : 0;
                fired[l] |= step.fired ? here : 0;
                pending[l] |= step.pending ? here : 0;
                distance[j * LANES + l] = step.h - c.cell[l].threshold;
                if (KEEPS_H) h[row][threadIdx.x] = step.h;
                if (FULL) from[row][threadIdx.x] = step.from;
            }
        }
        slopes(by, distance);
#pragma unroll
        for (int j = 0; j < N * LANES; ++j) slope[first * LANES + j][threadIdx.x] = distance[j];
    }

    __device__ __forceinline__ void retreat(pack cotangent, int j, index at)
    {
        real grad[LANES];
#pragma unroll
        for (int l = 0; l < LANES; ++l) {
            const int row = j * LANES + l;
            Step<real> step{0, 0, bit(open[l], j), bit(fired[l], j), bit(pending[l], j)};
            if (KEEPS_H) step.h = h[row][threadIdx.x];
            Outputs<real> given{lane_of(cotangent, l), 0, 0};
            real x = 0;
            if constexpr (FULL) {
                step.from = from[row][threadIdx.x];
                if (a.grad_membrane) given.membrane = read_once(a.grad_membrane + at + l);
                if (a.grad_charged) given.charged = read_once(a.grad_charged + at + l);
                if (CHARGE == TAU_INPUT && a.grad_decay) x = widen(a.x[at + l]);
            }
            const real by_h = keep(step.open, slope[row][threadIdx.x]);
            grad[l] = snn_fr::retreat<CHARGE, RESET, FULL>(step, by_h, x, given, c.cell[l], c.rules, carry[l], sum[l]);
        }
        write_pack(a.grad_x + at, grad);
    }

    static __device__ __forceinline__ bool bit(unsigned int word, int j) { return word >> j & 1; }
};

// Cotangents of the spikes; zeros where there are none.
template <bool FULL, int N>
SNN_FR_INLINE void fetch_given(const Arguments& a, pack (&tile)[N], index at, index rows = N)
{
    if (FULL && !a.grad_spikes) {
#pragma unroll
        for (int j = 0; j < N; ++j) tile[j] = pack();
        return;
    }
    fetch(tile, a.grad_spikes + at, a.neurons, rows);
}

template <bool FULL>
SNN_FR_INLINE void backward(const Arguments& a, Rows& slope, Rows& h, Rows& from)
{
    const index i = first_neuron();
    if (i >= a.neurons) return;
    Reverse<FULL> r{a, surrogate<real>(a.kind, a.alpha), cells(a, i), slope, h, from, {}, {}, {}, {}, {}};
#pragma unroll
    for (int l = 0; l < LANES; ++l) r.carry[l] = a.grad_v ? a.grad_v[i + l] : real(0);
    if (!FULL) r.c.rules.integrate = mask<real>(true);

    constexpr int GROUP = snn_fr::GROUP<FULL>;
    pack next[GROUP];
    const int rest = int(a.steps % CHUNK);
    if (!rest && a.steps > 0) fetch(next, a.x + (a.steps - CHUNK) * a.neurons + i, a.neurons);
    index start = a.steps - rest;
    if (rest) {  // the last chunk, where it is not whole
        const index here = start * a.neurons + i;
        r.begin(start, i);
#pragma unroll 1
        for (int g = 0; g < rest; g += FEW) {
            pack now[FEW];
            fetch(now, a.x + here + g * a.neurons, a.neurons, rest - g);
            r.template replay<FEW, false>(now, g, rest - g);
        }
        if (start > 0) fetch(next, a.x + here - CHUNK * a.neurons, a.neurons);
#pragma unroll 1
        for (int g = (rest - 1) / FEW * FEW; g >= 0; g -= FEW) {
            pack now[FEW];
            fetch_given<FULL>(a, now, here + g * a.neurons, rest - g);
#pragma unroll
            for (int j = FEW - 1; j >= 0; --j)
                if (g + j < rest) r.retreat(now[j], g + j, here + (g + j) * a.neurons);
        }
    }
#pragma unroll 1
    for (start -= CHUNK; start >= 0; start -= CHUNK) {
        const index here = start * a.neurons + i;
        pack now[GROUP];
        r.begin(start, i);
#pragma unroll 1
        for (int g = 0; g < CHUNK; g += GROUP) {
            copy(now, next);
            if (g + GROUP < CHUNK)
                fetch(next, a.x + here + (g + GROUP) * a.neurons, a.neurons);
            else  // the last cotangents come after the last inputs
                fetch_given<FULL>(a, next, here + g * a.neurons);
#pragma unroll
            for (int j = 0; j < GROUP; j += BATCH) r.template replay<BATCH, true>(now + j, g + j);
        }
#pragma unroll 1
        for (int g = CHUNK - GROUP; g >= 0; g -= GROUP) {
            copy(now, next);
            if (g > 0)
                fetch_given<FULL>(a, next, here + (g - GROUP) * a.neurons);
            else if (start > 0)
                fetch(next, a.x + here - CHUNK * a.neurons, a.neurons);
#pragma unroll
            for (int j = GROUP - 1; j >= 0; --j) r.retreat(now[j], g + j, here + (g + j) * a.neurons);
        }
    }
#pragma unroll
    for (int l = 0; l < LANES; ++l) {
        a.grad_v0[i + l] = r.carry[l];
        if (FULL && a.grad_decay) a.grad_decay[i + l] = r.sum[l].decay;
        if (FULL && a.grad_threshold) a.grad_threshold[i + l] = r.sum[l].threshold;
        if (FULL && a.grad_magnitude) a.grad_magnitude[i + l] = r.sum[l].magnitude;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 8) snn_fr_lif_backward(const __grid_constant__ Arguments a)
{
    __shared__ Rows rows[KEEPS_H ? 2 : 1];
    backward<false>(a, rows[0], rows[KEEPS_H ? 1 : 0], rows[0]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 8) snn_fr_lif_backward_full(const __grid_constant__ Arguments a)
{
    __shared__ Rows rows[KEEPS_H ? 3 : 2];
    backward<true>(a, rows[0], rows[KEEPS_H ? 2 : 1], rows[1]);
}

}  // namespace snn_fr
