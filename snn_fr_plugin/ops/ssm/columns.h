// How the threads of a CUDA block share columns, their pairs and their rows; see kernel.cu.
#ifndef SNN_FR_SSM_COLUMNS_H
#define SNN_FR_SSM_COLUMNS_H

#include "../device.h"

namespace snn_fr {

typedef real vec;
typedef double wide;

SNN_FR_INLINE vec rounded(wide a) { return vec(a); }
SNN_FR_INLINE wide widened(vec a) { return wide(a); }

}  // namespace snn_fr

#define SNN_FR_PAIR SNN_FR_INLINE
#define SNN_FR_UNROLL _Pragma("unroll")
#include "pair.h"

namespace snn_fr {

constexpr int LANES_EACH = SNN_FR_LANES_EACH;          // threads of a warp for a column; a power of two
constexpr int PAIRS = SNN_FR_PAIRS;                    // of a thread: what its registers hold
constexpr int STRETCH = sizeof(real) == 4 ? 4 : 2;     // groups between two sums over lanes, forward
constexpr int STRIDE = BLOCK + 4;                      // of a row in shared memory: columns in different banks
// States of a pair that are kept for a block: before each of up to 15 groups and each of up to 3 steps left over; or
// before each of 16 groups.
constexpr int SLOTS = BLOCK / GROUP + GROUP - 2;
constexpr int THREADS = sizeof(real) == 4 ? 128 : 256;  // of a block, at most
constexpr int FORWARD_BLOCKS = 640 / THREADS, BACKWARD_BLOCKS = 512 / THREADS;  // that registers allow on a processor
constexpr bool WAITS = sizeof(real) == 8;  // sums of a replay do so in shared memory: registers are short
constexpr unsigned int WARP = 0xffffffff;

// Field by field as in cupy_provider.py. Complex numbers are interleaved. A pointer is null where there is nothing to
// read or to write.
struct Arguments {
    index steps, columns, channels, pairs;
    index span, spans;  // steps of a span, a multiple of BLOCK; their number
    int slices, backwards;
    const io* x;
    const real *A, *C, *D, *state;
    const real* entries;  // [spans - 1, columns, pairs], what `scan` made of `ends`
    const real* saved;    // [blocks - 1, columns, pairs], the states before all blocks but the first
    const io* grad_y;
    const real* grad_last;

    real* ends;  // [spans - 1, columns, pairs]
    real* checkpoints;
    io* y;
    real* last;
    io* grad_x;
    real* grad_state;
    real *grad_A, *grad_C, *grad_D;  // [spans, columns, ...], to be summed over spans and batch
};

SNN_FR_INLINE Complex load(const real* from, index at)
{
    return from ? Complex{from[2 * at], from[2 * at + 1]} : Complex{};
}

SNN_FR_INLINE void store(real* to, index at, const Complex& value)
{
    if (to) to[2 * at] = value.re, to[2 * at + 1] = value.im;
}

// Where a thread stands: which pairs of which column it computes, and which column it brings in and out.
struct Place {
    int lane, row;       // of the column; a row is a slice of a column
    int columns, shift;  // columns of the block, and their logarithm
    index first;         // of them
    index column, pair;  // the thread's column, and the first of its pairs
    int mine;            // how many of its pairs there are
    int carried;         // column of the block that it brings in and out
    bool carries;

    __device__ __forceinline__ Place(const Arguments& a)
        : lane(threadIdx.x % LANES_EACH), row(threadIdx.x / LANES_EACH)
    {
        columns = int(blockDim.x) / (LANES_EACH * a.slices);
        shift = 31 - __clz(columns);
        first = index(blockIdx.x) * columns;
        column = first + (row & (columns - 1));
        pair = index(row >> shift) * PAIRS * LANES_EACH + lane;
        mine = 0;
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) mine += column < a.columns && pair + p * LANES_EACH < a.pairs;
        carried = threadIdx.x & (columns - 1);
        carries = first + carried < a.columns;
    }
    // Of pair p in a tensor [columns, pairs].
    __device__ __forceinline__ index at(const Arguments& a, int p) const
    {
        return column * a.pairs + pair + p * LANES_EACH;
    }
};

// ---- constants and shared memory

// What is needed once a block lies in shared memory, and leaves the registers to the loops.
struct Shared {
    real* taps;       // [columns][GROUP], K_l
    Complex* drifts;  // [PAIRS], those of a thread blockDim.x apart
    real* rest;

    __device__ __forceinline__ Shared(real* shared, const Place& place) : taps(shared)
    {
        drifts = reinterpret_cast<Complex*>(taps + place.columns * GROUP) + threadIdx.x;
        rest = reinterpret_cast<real*>(drifts - threadIdx.x + PAIRS * blockDim.x);
    }
    __device__ __forceinline__ const Complex& drift(int p) const { return drifts[p * blockDim.x]; }
};

SNN_FR_INLINE WideComplex matrix(const Arguments& a, const Place& place, const real* from, int p)
{
    if (p >= place.mine) return {};
    return widened(load(from, place.column % a.channels * a.pairs + place.pair + p * LANES_EACH));
}

// The constants of the thread's pairs; `rest` has room for GROUP doubles a row.
SNN_FR_INLINE void tabulate_all(const Arguments& a, const Place& place, const Shared& shared, Pair (&pairs)[PAIRS])
{
    wide taps[GROUP] = {}, *const parts = reinterpret_cast<wide*>(shared.rest);
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
        tabulate(matrix(a, place, a.A, p), matrix(a, place, a.C, p), pairs[p], taps);
        shared.drifts[p * blockDim.x] = pairs[p].drift;
    }
#pragma unroll
    for (int j = 0; j < GROUP; ++j) {
#pragma unroll
        for (int by = LANES_EACH / 2; by > 0; by /= 2) taps[j] += __shfl_xor_sync(WARP, taps[j], by);
        if (place.lane == 0) parts[place.row * GROUP + j] = taps[j];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < place.columns * GROUP; i += blockDim.x) {
        const index column = place.first + i / GROUP;
        wide sum = a.D && i % GROUP == 0 && column < a.columns ? a.D[column % a.channels] : real(0);
        for (int s = 0; s < a.slices; ++s) sum += parts[s * place.columns * GROUP + i];
        shared.taps[i] = rounded(sum);
    }
    __syncthreads();
}

// ---- rows in shared memory: [column][step], with step 0 the first of the block

// Rows of a block on their way from memory to there, in registers: those of a thread, or as many as it can spare.
constexpr int SPARED = sizeof(real) == 4 ? 4 : 2;
constexpr int AHEAD = BLOCK / LANES_EACH < SPARED ? BLOCK / LANES_EACH : SPARED;
typedef io Ahead[AHEAD];

SNN_FR_INLINE void send_for(const Arguments& a, const Place& place, const io* from, index start, int count, Ahead& ahead)
{
    if (!from || !place.carries) return;
    from += start * a.columns + place.first + place.carried;
    const int apart = int(blockDim.x) >> place.shift, first = threadIdx.x >> place.shift;
#pragma unroll
    for (int k = 0; k < AHEAD; ++k)
        if (first + k * apart < count) ahead[k] = read_once(from + (first + k * apart) * a.columns);
}

// Rows that have been sent for, and the others.
SNN_FR_INLINE void bring_in(const Arguments& a, const Place& place, const io* from, index start, int count,
                            const Ahead& ahead, real* rows)
{
    if (!from) return;
    from += start * a.columns + place.first + place.carried;
    rows += place.carried * STRIDE;
    const int apart = int(blockDim.x) >> place.shift, first = threadIdx.x >> place.shift;
#pragma unroll
    for (int k = 0; k < AHEAD; ++k)
        if (first + k * apart < count) rows[first + k * apart] = place.carries ? widen(ahead[k]) : real(0);
#pragma unroll 4
    for (int t = first + AHEAD * apart; t < count; t += apart)
        rows[t] = place.carries ? widen(read_once(from + t * a.columns)) : real(0);
}

struct alignas(16) Quad {
    real of[GROUP];
};

template <int G>
SNN_FR_INLINE void take(const real* from, real (&to)[G])
{
    if constexpr (G == GROUP) {
        const Quad all = *reinterpret_cast<const Quad*>(from);
#pragma unroll
        for (int j = 0; j < G; ++j) to[j] = all.of[j];
    } else {
        to[0] = from[0];
    }
}

// Sums over the lanes of a column: as long as a thread has several values, it gives half of them away at each exchange,
// and is left with those from the returned one on.
template <int BY, int KEPT, int N>
SNN_FR_INLINE int exchange(real (&value)[N], int lane, int first)
{
    if constexpr (BY == 0) return first;
    else if constexpr (KEPT == 1) {
        value[0] += __shfl_xor_sync(WARP, value[0], BY);
        return exchange<BY / 2, 1>(value, lane, first);
    } else {
        constexpr int HALF = KEPT / 2;
        const bool upper = lane & BY;
#pragma unroll
        for (int i = 0; i < HALF; ++i) {
            const real given = upper ? value[i] : value[i + HALF], kept = upper ? value[i + HALF] : value[i];
            value[i] = kept + __shfl_xor_sync(WARP, given, BY);
        }
        return exchange<BY / 2, HALF>(value, lane, first + (upper ? HALF : 0));
    }
}

template <int N>
SNN_FR_INLINE void bring_together(real (&value)[N], int lane, real* to)
{
    constexpr int KEPT = N > LANES_EACH ? N / LANES_EACH : 1;
    constexpr int COPIES = LANES_EACH > N ? LANES_EACH / N : 1;
    const int first = exchange<LANES_EACH / 2, N>(value, lane, 0);
    if (lane % COPIES == 0)
#pragma unroll
        for (int i = 0; i < KEPT; ++i) to[first + i] = value[i];
}

// Sums over the slices of a step of the carried column.
SNN_FR_INLINE real over_slices(const Arguments& a, const Place& place, const real* sums, int t)
{
    real sum = 0;
#pragma unroll 1
    for (int s = 0; s < a.slices; ++s) sum += sums[(s * place.columns + place.carried) * STRIDE + t];
    return sum;
}

SNN_FR_INLINE void bring_out(real value, io* to)
{
    io out;
    narrow(value, out);
    write_once(to, out);
}

}  // namespace snn_fr

#endif
