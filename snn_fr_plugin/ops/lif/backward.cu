// The backward of `lif` on a GPU. A thread takes a neuron from the last chunk of CHUNK steps to the first: each is replayed
// from its checkpoint, with slopes in shared memory, where a thread has a column to itself, and run in reverse. No
// thread waits for another. The next tile of rows is on its way while one is computed. (Two neurons a thread, in half
// precision, were slower; so was a ring of groups as in forward.cu: what waits for shared memory waits for rows too.)
#include "neurons.h"

namespace snn_fr {

static_assert(LANES == 1, "a thread takes one neuron");

// Rows of a tile: two of them are what registers hold.
SNN_FR_INLINE constexpr int tile(bool full)
{
    if (sizeof(real) == 8 || (full && CHARGE != BETA)) return 8;
#if __CUDA_ARCH__ >= 1000
    return 16;
#else
    return full || (sizeof(io) == 2 && resets_later(RESET)) ? 16 : CHUNK;
#endif
}

// What a thread remembers of a chunk: numbers in its column of shared memory; conditions in words, a bit a step.
constexpr bool KEEPS_H = RESET == ZERO;
typedef real Rows[CHUNK][THREADS];

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

// One chunk. FULL: everything that retreat() calls so. Otherwise there is a cotangent of the spikes alone, gradients of x
// and v are wanted alone, and every input was integrated.
template <bool FULL>
struct Reverse {
    const Arguments& a;
    const Surrogate<real> by;
    Rows &slope, &h, &from;
    const index i;
    Rules<real> rules;
    Neuron<real> cell, sum;
    real v, carry;
    int left;
    unsigned int open, fired, pending;

    __device__ __forceinline__ Reverse(const Arguments& a, index i, Rows& slope, Rows& h, Rows& from)
        : a(a), by(surrogate<real>(a.kind, a.alpha)), slope(slope), h(h), from(from), i(i), rules(rules_of(a)), sum{}
    {
        if (!FULL) rules.integrate = mask<real>(true);
        cell = neuron(a, rules, i);
        carry = a.grad_v ? a.grad_v[i] : real(0);
    }

    __device__ __forceinline__ void begin(index start)
    {
        const real* const row = checkpoint(a, start / CHUNK, i);
        v = start > 0 ? read_once(row) : a.v0[i];
        left = start > 0 ? read_count(row + a.neurons) : a.refractory0[i];
        open = fired = pending = 0;
    }

    // Steps first, first + 1, ... of the chunk; those from `count` on are none.
    template <int N>
    __device__ __forceinline__ void replay(const io* x, int first, int count = N)
    {
        real distance[N] = {};
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (j >= count) break;
            const unsigned int here = 1u << (first + j);
            const Step<real> step = advance<CHARGE, RESET>(widen(x[j]), cell, rules, v, left);
            open |= step.open ? here : 0;
            fired |= step.fired ? here : 0;
            pending |= step.pending ? here : 0;
            distance[j] = step.h - cell.threshold;
            if (KEEPS_H) h[first + j][threadIdx.x] = step.h;
            if (FULL) from[first + j][threadIdx.x] = step.from;
        }
        slopes(by, distance);
#pragma unroll
        for (int j = 0; j < N; ++j) slope[first + j][threadIdx.x] = distance[j];
    }

    __device__ __forceinline__ void retreat(io cotangent, int j, index at)
    {
        Step<real> step{0, 0, bit(open, j), bit(fired, j), bit(pending, j)};
        if (KEEPS_H) step.h = h[j][threadIdx.x];
        Outputs<real> given{widen(cotangent), 0, 0};
        real x = 0;
        if constexpr (FULL) {
            step.from = from[j][threadIdx.x];
            if (a.grad_membrane) given.membrane = read_once(a.grad_membrane + at);
            if (a.grad_charged) given.charged = read_once(a.grad_charged + at);
            if (CHARGE == TAU_INPUT && a.grad_decay) x = widen(a.x[at]);
        }
        const real by_h = keep(step.open, slope[j][threadIdx.x]);
        io grad;
        narrow(snn_fr::retreat<CHARGE, RESET, FULL>(step, by_h, x, given, cell, rules, carry, sum), grad);
        write_once(a.grad_x + at, grad);
    }

    static __device__ __forceinline__ bool bit(unsigned int word, int j) { return word >> j & 1; }
};

// Cotangents of the spikes; zeros where there are none.
template <bool FULL, int N>
SNN_FR_INLINE void fetch_given(const Arguments& a, io (&tile)[N], index at, index rows = N)
{
    if (FULL && !a.grad_spikes) {
#pragma unroll
        for (int j = 0; j < N; ++j) tile[j] = io();
        return;
    }
    fetch(tile, a.grad_spikes + at, a.neurons, rows);
}

template <bool FULL>
SNN_FR_INLINE void backward(const Arguments& a, Rows& slope, Rows& h, Rows& from)
{
    const index i = first_neuron();
    if (i >= a.neurons) return;
    Reverse<FULL> r(a, i, slope, h, from);
    constexpr int TILE = tile(FULL);
    io next[TILE];
    const int rest = int(a.steps % CHUNK);
    if (!rest && a.steps > 0) fetch(next, a.x + (a.steps - CHUNK) * a.neurons + i, a.neurons);
    index start = a.steps - rest;
    if (rest) {  // the last chunk, where it is not whole
        const index here = start * a.neurons + i;
        r.begin(start);
#pragma unroll 1
        for (int g = 0; g < rest; g += FEW) {
            io now[FEW];
            fetch(now, a.x + here + g * a.neurons, a.neurons, rest - g);
            r.template replay<FEW>(now, g, rest - g);
        }
        if (start > 0) fetch(next, a.x + here - CHUNK * a.neurons, a.neurons);
#pragma unroll 1
        for (int g = (rest - 1) / FEW * FEW; g >= 0; g -= FEW) {
            io now[FEW];
            fetch_given<FULL>(a, now, here + g * a.neurons, rest - g);
#pragma unroll
            for (int j = FEW - 1; j >= 0; --j)
                if (g + j < rest) r.retreat(now[j], g + j, here + (g + j) * a.neurons);
        }
    }
#pragma unroll 1
    for (start -= CHUNK; start >= 0; start -= CHUNK) {
        const index here = start * a.neurons + i;
        io now[TILE];
        r.begin(start);
#pragma unroll 1
        for (int g = 0; g < CHUNK; g += TILE) {
            copy(now, next);
            if (g + TILE < CHUNK)
                fetch(next, a.x + here + (g + TILE) * a.neurons, a.neurons);
            else  // the last cotangents come after the last inputs
                fetch_given<FULL>(a, next, here + g * a.neurons);
#pragma unroll
            for (int j = 0; j < TILE; j += GROUP) r.template replay<GROUP>(now + j, g + j);
        }
#pragma unroll 1
        for (int g = CHUNK - TILE; g >= 0; g -= TILE) {
            copy(now, next);
            if (g > 0)
                fetch_given<FULL>(a, next, here + (g - TILE) * a.neurons);
            else if (start > 0)
                fetch(next, a.x + here - CHUNK * a.neurons, a.neurons);
#pragma unroll
            for (int j = TILE - 1; j >= 0; --j) r.retreat(now[j], g + j, here + (g + j) * a.neurons);
        }
    }
    a.grad_v0[i] = r.carry;
    if (FULL && a.grad_decay) a.grad_decay[i] = r.sum.decay;
    if (FULL && a.grad_threshold) a.grad_threshold[i] = r.sum.threshold;
    if (FULL && a.grad_magnitude) a.grad_magnitude[i] = r.sum.magnitude;
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
