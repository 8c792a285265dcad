// `lif` on a GPU: a thread takes SNN_FR_LANES neurons through time, none waits for another. Rows are read in groups, of
// which several are on their way while one is computed: a ring in registers. Steps that make no whole group come a few
// at a time. The state is written every CHUNK steps, for the backward.
#include "neurons.h"

namespace snn_fr {

constexpr int AHEAD = sizeof(real) == 8 ? 8 : RESET == ZERO_LATER ? 16 : 32;  // rows in the ring, as registers allow

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
    pack ring[AHEAD / GROUP][GROUP];  // what is on its way
    const io* const x = a.x + i;
#pragma unroll
    for (int g = 0; g < AHEAD / GROUP; ++g)
        if ((g + 1) * GROUP <= a.steps) fetch(ring[g], x + g * GROUP * a.neurons, a.neurons);
    index t = 0, at = i;
    const auto group = [&](int g) {
        pack now[GROUP];
        copy(now, ring[g]);
        if (t + AHEAD + GROUP <= a.steps) fetch(ring[g], x + (t + AHEAD) * a.neurons, a.neurons);
        save(a, c, t, i);
#pragma unroll
        for (int j = 0; j < GROUP; ++j, at += a.neurons) fire<WRITTEN>(a, c, membrane, now[j], at);
        t += GROUP;
    };
#pragma unroll 1
    while (t + AHEAD <= a.steps)
#pragma unroll
        for (int g = 0; g < AHEAD / GROUP; ++g) group(g);
#pragma unroll
    for (int g = 0; g < AHEAD / GROUP - 1; ++g)
        if (t + GROUP <= a.steps) group(g);
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

}  // namespace snn_fr
