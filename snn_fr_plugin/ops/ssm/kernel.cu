// `diagonal_ssm` on a GPU. A column (a channel of a batch entry) has LANES_EACH threads of a warp, with PAIRS complex pairs
// each, and `slices` such warps where it has more pairs than that. Rows of x come into shared memory block by block of BLOCK
// steps; each thread takes its pairs through them in registers (see pair.h); what the pairs add to a step is summed by
// shuffles that leave every lane with steps of its own, and goes out with what the step owes to its own group alone.
// Forward writes the states before every block but the first; backward goes through the blocks from the last and
// replays each from there.
//
// Where columns are too few to fill a GPU, the sequence is cut into spans, all computed at once:
//
//     ends      the state after each span but the last, as if it began at rest (the first: with the state that is given)
//     starts    the same for dL/dh, in reverse
//     scan      from these the true ones, span after span
//     forward, backward    each span from there
//
// Nothing depends on the order in which blocks run.
#include "columns.h"

namespace snn_fr {

// ---- forward

// COUNT groups of G steps; what their steps gain from the states goes to `sums`, if there is such.
template <int G, int COUNT, bool SPEAKS>
SNN_FR_INLINE void advance(const Pair (&pairs)[PAIRS], Complex (&h)[PAIRS], const real* x, real* sums, int lane)
{
    real y[COUNT * G] = {};
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
        real rows[G];
        take<G>(x + k * G, rows);
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            if (SPEAKS) speak<G>(pairs[p].emit, h[p], y + k * G);
            h[p] = after<G>(pairs[p].power, h[p], rows);
        }
    }
    if (SPEAKS) bring_together(y, lane, sums);
}

template <bool SPEAKS>
SNN_FR_INLINE void advance_block(const Pair (&pairs)[PAIRS], const Shared& shared, Complex (&h)[PAIRS], const real* x,
                                 real* sums, int lane, int count)
{
    constexpr int LONG = STRETCH * GROUP;
    int t = 0;
#pragma unroll 1
    for (; t + LONG <= count; t += LONG) advance<GROUP, STRETCH, SPEAKS>(pairs, h, x + t, sums + t, lane);
#pragma unroll 1
    for (; t + GROUP <= count; t += GROUP) advance<GROUP, 1, SPEAKS>(pairs, h, x + t, sums + t, lane);
#pragma unroll 1
    for (; t < count; ++t) advance<1, 1, SPEAKS>(pairs, h, x + t, sums + t, lane);
    if (count == BLOCK)
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) add(h[p], times(shared.drift(p), h[p]));
}

SNN_FR_INLINE int steps_from(index start, index end) { return int(end - start < BLOCK ? end - start : BLOCK); }

// The state before a span; in reverse, dL/dh after it.
SNN_FR_INLINE Complex entry(const Arguments& a, const Place& place, const real* given, index before, int p)
{
    if (p >= place.mine) return {};
    const index at = place.at(a, p);
    return before > 0 ? load(a.entries, (before - 1) * a.columns * a.pairs + at) : load(given, at);
}

template <bool SPEAKS>
SNN_FR_INLINE void forward(const Arguments& a, real* memory)
{
    const Place place(a);
    const Shared shared(memory, place);
    real* const rows = shared.rest;                    // [columns][STRIDE]
    real* const sums = rows + place.columns * STRIDE;  // [slices][columns][STRIDE]
    Pair pairs[PAIRS];
    tabulate_all(a, place, shared, pairs);
    const index span = blockIdx.y, end = (span + 1) * a.span < a.steps ? (span + 1) * a.span : a.steps;
    Complex h[PAIRS];
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) h[p] = SPEAKS || span == 0 ? entry(a, place, a.state, span, p) : Complex{};
    Ahead ahead;
    send_for(a, place, a.x, span * a.span, steps_from(span * a.span, end), ahead);
#pragma unroll 1
    for (index start = span * a.span; start < end; start += BLOCK) {
        const int count = steps_from(start, end);
        bring_in(a, place, a.x, start, count, ahead, rows);
        if (start + BLOCK < end) send_for(a, place, a.x, start + BLOCK, steps_from(start + BLOCK, end), ahead);
        __syncthreads();
        if (SPEAKS && start > 0)
#pragma unroll
            for (int p = 0; p < PAIRS; ++p)
                if (p < place.mine) store(a.checkpoints, (start / BLOCK - 1) * a.columns * a.pairs + place.at(a, p), h[p]);
        const real* const x = rows + (place.row & (place.columns - 1)) * STRIDE;
        advance_block<SPEAKS>(pairs, shared, h, x, sums + place.row * STRIDE, place.lane, count);
        __syncthreads();
        if (!SPEAKS) continue;
        const int apart = int(blockDim.x) >> place.shift, grouped = count / GROUP * GROUP;
        const real *const row = rows + place.carried * STRIDE, *const taps = shared.taps + place.carried * GROUP;
        if (place.carries)
#pragma unroll 1
            for (int t = threadIdx.x >> place.shift; t < count; t += apart) {
                const int earlier = t < grouped ? t % GROUP : 0;
                real y = over_slices(a, place, sums, t) + taps[0] * row[t];
#pragma unroll
                for (int l = 1; l < GROUP; ++l)
                    if (l <= earlier) y += taps[l] * row[t - l];
                bring_out(y, a.y + (start + t) * a.columns + place.first + place.carried);
            }
        __syncthreads();
    }
    const bool final = SPEAKS && span == a.spans - 1;
#pragma unroll
    for (int p = 0; p < PAIRS; ++p)
        if (p < place.mine && (final || !SPEAKS))
            store(SPEAKS ? a.last : a.ends, (SPEAKS ? 0 : span * a.columns * a.pairs) + place.at(a, p), h[p]);
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) snn_fr_ssm_forward(const __grid_constant__ Arguments a)
{
    SNN_FR_DYNAMIC_SHARED(real, memory);
    forward<true>(a, memory);
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) snn_fr_ssm_ends(const __grid_constant__ Arguments a)
{
    SNN_FR_DYNAMIC_SHARED(real, memory);
    forward<false>(a, memory);
}

// A thread takes a pair of a column from span to span, in place.
extern "C" __global__ void __launch_bounds__(128) snn_fr_ssm_scan(const __grid_constant__ Arguments a)
{
    const index i = blockIdx.x * index(blockDim.x) + threadIdx.x, each = a.columns * a.pairs;
    if (i >= each) return;
    WideComplex power = widened(load(a.A, i / a.pairs % a.channels * a.pairs + i % a.pairs));
    if (a.backwards) power.im = -power.im;
    for (index steps = 1; steps < a.span; steps *= 2) power = times(power, power);
    WideComplex state{};
#pragma unroll 4
    for (index s = 0; s < a.spans - 1; ++s) {
        const WideComplex end = widened(load(a.ends, s * each + i)), carried = times(power, state);
        state = {carried.re + end.re, carried.im + end.im};
        store(a.ends, s * each + i, rounded(state));
    }
}

// ---- backward

// A group of G steps once more: the states before it into its slot, and the gradients that need no adjoint.
template <int G>
SNN_FR_INLINE void replay(const Pair (&pairs)[PAIRS], Complex (&h)[PAIRS], const real* x, const real* given,
                          Complex* slot, Sums (&sums)[PAIRS])
{
    real rows[G], cotangents[G];
    take<G>(x, rows);
    take<G>(given, cotangents);
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
        slot[p * blockDim.x] = h[p];
        learn_emit<G>(h[p], cotangents, sums[p].emit);
        h[p] = after<G>(pairs[p].power, h[p], rows);
    }
}

// Adds the sums of a replay to those that wait.
SNN_FR_INLINE void lay_down(Sums (&sums)[PAIRS], Complex* waiting)
{
#pragma unroll
    for (int i = 0; i < PAIRS * GROUP; ++i) {
        Complex& sum = sums[i / GROUP].emit[i % GROUP];
        add(waiting[i * blockDim.x], sum);
        sum = {};
    }
}

// Takes dL/dh from after a group of G steps to before it. LEARNS: with gradients of what it meets on its way.
template <int G, bool LEARNS>
SNN_FR_INLINE void retreat(const Pair (&pairs)[PAIRS], Complex (&q)[PAIRS], const real* x, const real* given,
                           const Complex* slot, Sums (&sums)[PAIRS], real* grads, int lane)
{
    real rows[G], cotangents[G], grad_x[G] = {};
    if (LEARNS) take<G>(x, rows);
    take<G>(given, cotangents);
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
        if (LEARNS) learn_power<G>(pairs[p].power, slot[p * blockDim.x], q[p], rows, grad_x, sums[p].power);
        q[p] = before<G>(pairs[p].power, pairs[p].emit, q[p], cotangents);
    }
    if (LEARNS) bring_together(grad_x, lane, grads);
}

template <bool LEARNS>
SNN_FR_INLINE void retreat_block(const Pair (&pairs)[PAIRS], const Shared& shared, Complex (&q)[PAIRS], const real* x,
                                 const real* given, const Complex* slots, Sums (&sums)[PAIRS], real* grads, int lane,
                                 int count)
{
    const int groups = count / GROUP, apart = PAIRS * int(blockDim.x);
    if (count == BLOCK)
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) add(q[p], back(shared.drift(p), q[p]));
    const Complex* slot = slots + (count - groups * (GROUP - 1)) * apart;
#pragma unroll 1
    for (int t = count - 1; t >= groups * GROUP; --t)
        retreat<1, LEARNS>(pairs, q, x + t, given + t, slot -= apart, sums, grads + t, lane);
#pragma unroll 1
    for (int t = (groups - 1) * GROUP; t >= 0; t -= GROUP)
        retreat<GROUP, LEARNS>(pairs, q, x + t, given + t, slot -= apart, sums, grads + t, lane);
}

// dL/dK_l of the groups, and of the steps left over, that fall to a lane.
SNN_FR_INLINE void learn_taps(const real* x, const real* given, int lane, int count, real* all)
{
    real sums[GROUP] = {};
    const int grouped = count / GROUP * GROUP;
#pragma unroll 1
    for (int t = lane * GROUP; t < grouped; t += LANES_EACH * GROUP) {
        real rows[GROUP], cotangents[GROUP];
        take<GROUP>(x + t, rows);
        take<GROUP>(given + t, cotangents);
#pragma unroll
        for (int l = 0; l < GROUP; ++l)
#pragma unroll
            for (int j = l; j < GROUP; ++j) sums[l] += cotangents[j] * rows[j - l];
    }
#pragma unroll 1
    for (int t = grouped + lane; t < count; t += LANES_EACH) sums[0] += given[t] * x[t];
#pragma unroll
    for (int l = 0; l < GROUP; ++l) all[l * blockDim.x + threadIdx.x] += sums[l];
}

template <bool LEARNS>
SNN_FR_INLINE void backward(const Arguments& a, real* memory)
{
    const Place place(a);
    const Shared shared(memory, place);
    real* const given = shared.rest;                                   // [columns][STRIDE]
    real* const rows = given + place.columns * STRIDE;                 // the same
    real* const grads = rows + place.columns * STRIDE;                 // [slices][columns][STRIDE]
    real* const taps_sums = grads + blockDim.x / LANES_EACH * STRIDE;  // [GROUP], dL/dK_l, as the drifts
    Complex* const slots = reinterpret_cast<Complex*>(taps_sums + GROUP * blockDim.x) + threadIdx.x;
    Complex* const waiting = slots + SLOTS * PAIRS * blockDim.x;       // [PAIRS][GROUP]
    Pair pairs[PAIRS];
    tabulate_all(a, place, shared, pairs);
    if (!a.grad_y)
        for (int i = threadIdx.x; i < place.columns * STRIDE; i += blockDim.x) given[i] = 0;

    const index span = LEARNS ? index(blockIdx.y) : index(blockIdx.y) + 1;  // nothing comes before the first
    const index begin = span * a.span, end = begin + a.span < a.steps ? begin + a.span : a.steps, later = a.spans - 1 - span;
    Complex q[PAIRS];
    Sums sums[PAIRS];
#pragma unroll
    for (int l = 0; l < GROUP; ++l) taps_sums[l * blockDim.x + threadIdx.x] = 0;
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
        q[p] = LEARNS || later == 0 ? entry(a, place, a.grad_last, later, p) : Complex{};
        sums[p] = {};
        if (LEARNS && WAITS)
#pragma unroll
            for (int j = 0; j < GROUP; ++j) waiting[(p * GROUP + j) * blockDim.x] = {};
    }
    const int offset = (place.row & (place.columns - 1)) * STRIDE;
    const real *const x = rows + offset, *const cotangents = given + offset;
    real* const grads_here = grads + place.row * STRIDE;
    const index blocks = (end - begin + BLOCK - 1) / BLOCK;
    Ahead x_ahead, given_ahead;
    const auto send = [&](index start) {
        if (LEARNS) send_for(a, place, a.x, start, steps_from(start, end), x_ahead);
        send_for(a, place, a.grad_y, start, steps_from(start, end), given_ahead);
    };
    if (blocks > 0) send(begin + (blocks - 1) * BLOCK);
#pragma unroll 1
    for (index start = begin + (blocks - 1) * BLOCK; start >= begin; start -= BLOCK) {
        const int count = steps_from(start, end), groups = count / GROUP;
        Complex h[PAIRS] = {};
        if (LEARNS)
#pragma unroll
            for (int p = 0; p < PAIRS; ++p) {
                if (p >= place.mine) continue;
                const index at = place.at(a, p);
                h[p] = start > 0 ? load(a.saved, (start / BLOCK - 1) * a.columns * a.pairs + at) : load(a.state, at);
            }
        if (LEARNS) bring_in(a, place, a.x, start, count, x_ahead, rows);
        bring_in(a, place, a.grad_y, start, count, given_ahead, given);
        if (start > begin) send(start - BLOCK);
        __syncthreads();
        if (LEARNS) {
            Complex* slot = slots;
#pragma unroll 1
            for (int t = 0; t < groups * GROUP; t += GROUP, slot += PAIRS * blockDim.x)
                replay<GROUP>(pairs, h, x + t, cotangents + t, slot, sums);
#pragma unroll 1
            for (int t = groups * GROUP; t < count; ++t, slot += PAIRS * blockDim.x)
                replay<1>(pairs, h, x + t, cotangents + t, slot, sums);
            learn_taps(x, cotangents, place.lane, count, taps_sums);
            if (WAITS) lay_down(sums, waiting);
        }
        retreat_block<LEARNS>(pairs, shared, q, x, cotangents, slots, sums, grads_here, place.lane, count);
        __syncthreads();
        if (!LEARNS) continue;
        const int apart = int(blockDim.x) >> place.shift;
        const real *const row = given + place.carried * STRIDE, *const taps = shared.taps + place.carried * GROUP;
        if (place.carries)
#pragma unroll 1
            for (int t = threadIdx.x >> place.shift; t < count; t += apart) {
                const int others = t < groups * GROUP ? GROUP - 1 - t % GROUP : 0;  // later steps of its group
                real grad = over_slices(a, place, grads, t) + taps[0] * row[t];
#pragma unroll
                for (int l = 1; l < GROUP; ++l)
                    if (l <= others) grad += taps[l] * row[t + l];
                bring_out(grad, a.grad_x + (start + t) * a.columns + place.first + place.carried);
            }
        __syncthreads();
    }

    real grad_taps[GROUP] = {};
    if (LEARNS) {
#pragma unroll
        for (int l = 0; l < GROUP; ++l) {
            grad_taps[l] = taps_sums[l * blockDim.x + threadIdx.x];
#pragma unroll
            for (int by = LANES_EACH / 2; by > 0; by /= 2) grad_taps[l] += __shfl_xor_sync(WARP, grad_taps[l], by);
        }
        if (a.grad_D && place.pair == 0 && place.column < a.columns) a.grad_D[span * a.columns + place.column] = grad_taps[0];
    }
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
        if (p >= place.mine) continue;
        const index at = place.at(a, p);
        if (!LEARNS) {
            store(a.ends, later * a.columns * a.pairs + at, q[p]);
            continue;
        }
        if (span == 0) store(a.grad_state, at, q[p]);
        if (WAITS)
#pragma unroll
            for (int j = 0; j < GROUP; ++j) sums[p].emit[j] = waiting[(p * GROUP + j) * blockDim.x];
        const Complex C = rounded(matrix(a, place, a.C, p));
        Complex grad_A, grad_C;
        differentiate(pairs[p], sums[p], grad_taps, C, grad_A, grad_C);
        store(a.grad_A, span * a.columns * a.pairs + at, grad_A);
        store(a.grad_C, span * a.columns * a.pairs + at, grad_C);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) snn_fr_ssm_backward(const __grid_constant__ Arguments a)
{
    SNN_FR_DYNAMIC_SHARED(real, memory);
    backward<true>(a, memory);
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) snn_fr_ssm_starts(const __grid_constant__ Arguments a)
{
    SNN_FR_DYNAMIC_SHARED(real, memory);
    backward<false>(a, memory);
}

}  // namespace snn_fr
