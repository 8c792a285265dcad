// What forward.cu and backward.cu share: neurons, tiles of rows, and checkpoints of the state.
#ifndef SNN_FR_LIF_NEURONS_H
#define SNN_FR_LIF_NEURONS_H

#include "../device.h"
#include "arguments.h"
#include "step.h"

namespace snn_fr {

constexpr int CHARGE = SNN_FR_CHARGE, RESET = SNN_FR_RESET;  // numbers of step.h
constexpr int THREADS = 64;                                  // of a block, as in cupy_provider.py
constexpr int GROUP = 8;                                     // steps that are worked on together
constexpr int FEW = 4;                                       // the same, where no group is whole
static_assert(CHUNK % GROUP == 0 && GROUP % FEW == 0, "a chunk is made of whole groups");

SNN_FR_INLINE index first_neuron() { return (blockIdx.x * index(THREADS) + threadIdx.x) * LANES; }

SNN_FR_INLINE Rules<real> rules_of(const Arguments& a)
{
    return {a.period, mask<real>(a.integrate != 0), mask<real>(a.inclusive != 0), mask<real>(a.attached != 0),
            real(a.v_reset)};
}

// Here all neurons have one value, or each has its own.
SNN_FR_INLINE real value_of(const real* parameter, index values, index i) { return parameter[values == 1 ? 0 : i]; }

SNN_FR_INLINE Neuron<real> neuron(const Arguments& a, const Rules<real>& rules, index i)
{
    const real decay = value_of(a.decay, a.decay_values, i);
    const real threshold = value_of(a.threshold, a.threshold_values, i);
    return {decay, 1 / decay, threshold, value_of(a.magnitude, a.magnitude_values, i), spared(threshold, rules)};
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

}  // namespace snn_fr

#endif
