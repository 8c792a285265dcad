// `fixed_refractory` on a GPU.
//
// With many neurons a thread takes one of them through time (`forward`). With few, all of time is worked on at once, in
// chunks of 32 steps, whose candidates are the bits of a word:
//
//     pack    the word of every chunk
//     tabulate  absolute only: a span of chunks as a map from the state before it to the state after it
//     chain   the state before every chunk; through maps for the spans before its own, then chunk by chunk
//     emit    spikes and gate of every chunk from its word and the state before it
//
// Both ways are exact: each goes through the states of the same automaton. The backward has no order in time.
#include "../device.h"
#include "../lif/step.h"

namespace snn_fr {

constexpr int CHUNK = 32;  // steps, as in cupy_provider.py; the bits of a word
#if __CUDA_ARCH__ >= 1000
constexpr int TILE = 8;
#else
constexpr int TILE = 16;   // rows of which a thread has the loads in flight while it works on as many others
#endif
constexpr int ROWS = 8;    // the same, backward, where a row is three loads

enum Scheme { ABSOLUTE, WINDOW, STRIDED, ONSET };  // as in arguments.py

// Field by field as in arguments.py and cupy_provider.py.
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

    index span;            // steps; forward whole chunks
    int* words;            // [chunks, neurons]
    unsigned char* exits;  // [spans - 1, period + 1, neurons]
    int* entries;          // [chunks, neurons]
};

SNN_FR_INLINE index count_of(index steps, index size) { return (steps + size - 1) / size; }
SNN_FR_INLINE index smaller(index a, index b) { return a < b ? a : b; }

// The neuron of this thread; what is parallel over time lies along the other dimensions of the grid.
SNN_FR_INLINE index this_neuron() { return index(blockIdx.x) * blockDim.x + threadIdx.x; }

SNN_FR_INLINE real threshold_of(const Arguments& a, index neuron)
{
    return a.threshold[a.threshold_stride ? neuron : 0];
}

SNN_FR_INLINE bool crosses(const Arguments& a, io drive, real threshold)
{
    const real value = widen(drive);
    return value > threshold || (a.inclusive && value == threshold);
}

SNN_FR_INLINE io spike_of(bool fired)
{
    io spike;
    narrow(fired ? real(1) : real(0), spike);
    return spike;
}

// COUNT rows from `start` on, or as many as there are before `end`.
template <int COUNT, typename element>
SNN_FR_INLINE void read_rows(const element* from, index neurons, index start, index end, element (&rows)[COUNT])
{
    from += start * neurons;
    if (start + COUNT <= end) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) rows[i] = read_once(from + i * neurons);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            if (start + i < end) rows[i] = read_once(from + i * neurons);
    }
}

// ---- the automaton

struct Gate {
    bool open, fired;
};

// One step.
template <int SCHEME>
SNN_FR_INLINE Gate pass(bool candidate, int period, int& state)
{
    const int left = state, waited = left > 0 ? left - 1 : 0;
    const bool open = SCHEME == WINDOW ? !(left & 1) : left == 0, fired = candidate && open;
    if constexpr (SCHEME == ABSOLUTE) state = fired ? period : waited;
    if constexpr (SCHEME == ONSET) state = candidate ? period : waited;
    if constexpr (SCHEME == STRIDED) state = open ? period : left - 1;
    if constexpr (SCHEME == WINDOW) state = left >> 1 == period ? 0 : (left | 1) + 1 + ((left & 1) | int(candidate));
    return {open, fired};
}

// The state after the CHUNK steps of a word.
template <int SCHEME>
SNN_FR_INLINE int cross(unsigned int word, int period, int state)
{
    if constexpr (SCHEME == ABSOLUTE) {
        while ((unsigned int)state < CHUNK) {  // from one spike to the first step that is open again
            const unsigned int rest = word >> state;
            if (!rest) return 0;
            state += __ffs(int(rest)) + period;
        }
        return state - CHUNK;
    }
    if constexpr (SCHEME == ONSET) {
        const int left = word ? period - __clz(int(word)) : state - CHUNK;
        return left > 0 ? left : 0;
    }
    if constexpr (SCHEME == STRIDED) {
        const int late = CHUNK - state;  // steps since the first sampling instant
        return late <= 0 ? -late : (period + 1 - late % (period + 1)) % (period + 1);
    }
    if constexpr (SCHEME == WINDOW) {
        const int position = (state >> 1) + CHUNK, since = position % (period + 1);
        if (position <= period) return 2 * position + ((state & 1) | int(word != 0));
        return 2 * since + int(since && word >> (CHUNK - since));
    }
    return state;
}

// The state after chunks [chunk, end); if asked for, `entries` gets the state before each.
template <int SCHEME>
SNN_FR_INLINE int walk(const Arguments& a, index neuron, index chunk, index end, int state, int* entries)
{
    for (; chunk < end; chunk += ROWS) {
        int words[ROWS];
        read_rows<ROWS>(a.words + neuron, a.neurons, chunk, end, words);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            if (chunk + i >= end) break;
            if (entries) entries[(chunk + i) * a.neurons + neuron] = state;
            state = cross<SCHEME>((unsigned int)words[i], a.period, state);
        }
    }
    return state;
}

// ---- one neuron after the other

template <int SCHEME, bool WHOLE>
SNN_FR_INLINE void advance(const Arguments& a, const io (&rows)[TILE], real threshold, index start, index neuron,
                           int& state)
{
    io* spikes = a.spikes + start * a.neurons + neuron;
    unsigned char* is_open = a.is_open + start * a.neurons + neuron;
#pragma unroll
    for (int i = 0; i < TILE; ++i) {
        if (!WHOLE && start + i >= a.steps) break;
        const Gate gate = pass<SCHEME>(crosses(a, rows[i], threshold), a.period, state);
        write_once(spikes + i * a.neurons, spike_of(gate.fired));
        write_once(is_open + i * a.neurons, (unsigned char)gate.open);
    }
}

template <int SCHEME>
SNN_FR_INLINE void run(const Arguments& a, index neuron)
{
    const real threshold = threshold_of(a, neuron);
    const io* drive = a.drive + neuron;
    int state = a.state[neuron];
    io ahead[TILE];
    read_rows<TILE>(drive, a.neurons, 0, a.steps, ahead);
    for (index start = 0; start < a.steps; start += TILE) {
        io rows[TILE];
#pragma unroll
        for (int i = 0; i < TILE; ++i) rows[i] = ahead[i];
        read_rows<TILE>(drive, a.neurons, start + TILE, a.steps, ahead);
        if (start + TILE <= a.steps)
            advance<SCHEME, true>(a, rows, threshold, start, neuron, state);
        else
            advance<SCHEME, false>(a, rows, threshold, start, neuron, state);
    }
    a.final_state[neuron] = state;
}

// ---- chunk by chunk

template <int SCHEME>
SNN_FR_INLINE void chain(const Arguments& a, index neuron, index span)
{
    const index length = a.span / CHUNK, chunks = count_of(a.steps, CHUNK);
    int state = a.state[neuron];
    for (index s = 0; s < span; ++s) {
        if ((unsigned int)state <= (unsigned int)a.period)
            state = a.exits[(s * (a.period + 1) + state) * a.neurons + neuron];
        else  // left by a call with a longer period
            state = walk<SCHEME>(a, neuron, s * length, (s + 1) * length, state, nullptr);
    }
    walk<SCHEME>(a, neuron, span * length, smaller((span + 1) * length, chunks), state, a.entries);
}

template <int SCHEME>
SNN_FR_INLINE void emit(const Arguments& a, index neuron, index chunk)
{
    const index start = chunk * CHUNK;
    const unsigned int word = a.words[chunk * a.neurons + neuron];
    const int count = int(smaller(CHUNK, a.steps - start));
    io* spikes = a.spikes + start * a.neurons + neuron;
    unsigned char* is_open = a.is_open + start * a.neurons + neuron;
    int state = a.entries[chunk * a.neurons + neuron];
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
        const Gate gate = pass<SCHEME>(word >> i & 1, a.period, state);
        write_once(spikes + i * a.neurons, spike_of(gate.fired));
        write_once(is_open + i * a.neurons, (unsigned char)gate.open);
    }
    if (start + count == a.steps) a.final_state[neuron] = state;
}

#define SNN_FR_BY_SCHEME(function, ...)                        \
    switch (a.scheme) {                                        \
        case ABSOLUTE: function<ABSOLUTE>(__VA_ARGS__); break; \
        case WINDOW: function<WINDOW>(__VA_ARGS__); break;     \
        case STRIDED: function<STRIDED>(__VA_ARGS__); break;   \
        default: function<ONSET>(__VA_ARGS__);                 \
    }

extern "C" __global__ void __launch_bounds__(128) snn_fr_refractory_forward(const __grid_constant__ Arguments a)
{
    const index neuron = this_neuron();
    if (neuron >= a.neurons) return;
    SNN_FR_BY_SCHEME(run, a, neuron)
}

extern "C" __global__ void __launch_bounds__(128) snn_fr_refractory_pack(const __grid_constant__ Arguments a)
{
    const index neuron = this_neuron();
    if (neuron >= a.neurons) return;
    const real threshold = threshold_of(a, neuron);
    for (index chunk = blockIdx.y; chunk * CHUNK < a.steps; chunk += gridDim.y) {
        const index start = chunk * CHUNK;
        io rows[CHUNK];
        read_rows<CHUNK>(a.drive + neuron, a.neurons, start, a.steps, rows);
        unsigned int word = 0;
#pragma unroll
        for (int i = 0; i < CHUNK; ++i)
            if (start + i < a.steps) word |= (unsigned int)crosses(a, rows[i], threshold) << i;
        a.words[chunk * a.neurons + neuron] = int(word);
    }
}

// One state of the map of one span: block (., state, span).
extern "C" __global__ void __launch_bounds__(128) snn_fr_refractory_tabulate(const __grid_constant__ Arguments a)
{
    const index neuron = this_neuron(), length = a.span / CHUNK, spans = count_of(a.steps, a.span);
    if (neuron >= a.neurons) return;
    for (index span = blockIdx.z; span < spans - 1; span += gridDim.z) {
        const int state = walk<ABSOLUTE>(a, neuron, span * length, (span + 1) * length, int(blockIdx.y), nullptr);
        a.exits[(span * gridDim.y + blockIdx.y) * a.neurons + neuron] = (unsigned char)state;
    }
}

extern "C" __global__ void __launch_bounds__(128) snn_fr_refractory_chain(const __grid_constant__ Arguments a)
{
    const index neuron = this_neuron();
    if (neuron >= a.neurons) return;
    for (index span = blockIdx.y; span * a.span < a.steps; span += gridDim.y) SNN_FR_BY_SCHEME(chain, a, neuron, span)
}

extern "C" __global__ void __launch_bounds__(128) snn_fr_refractory_emit(const __grid_constant__ Arguments a)
{
    const index neuron = this_neuron();
    if (neuron >= a.neurons) return;
    for (index chunk = blockIdx.y; chunk * CHUNK < a.steps; chunk += gridDim.y)
        SNN_FR_BY_SCHEME(emit, a, neuron, chunk)
}

extern "C" __global__ void __launch_bounds__(128) snn_fr_refractory_backward(const __grid_constant__ Arguments a)
{
    const index neuron = this_neuron();
    if (neuron >= a.neurons) return;
    const real threshold = threshold_of(a, neuron);
    const Surrogate<real> by = surrogate<real>(a.kind, a.alpha);
    for (index span = blockIdx.y; span * a.span < a.steps; span += gridDim.y) {
        const index end = smaller((span + 1) * a.span, a.steps);
        real sum = 0;
        for (index start = span * a.span; start < end; start += ROWS) {
            io drive[ROWS], given[ROWS];
            unsigned char open[ROWS];
            read_rows<ROWS>(a.drive + neuron, a.neurons, start, end, drive);
            read_rows<ROWS>(a.grad_spikes + neuron, a.neurons, start, end, given);
            read_rows<ROWS>(a.was_open + neuron, a.neurons, start, end, open);
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                if (start + i >= end) break;
                const real slope = derivative(by, widen(drive[i]) - threshold) * real(open[i]);
                const real grad = widen(given[i]) * slope;
                sum -= grad;
                io rounded;
                narrow(grad, rounded);
                write_once(a.grad_drive + (start + i) * a.neurons + neuron, rounded);
            }
        }
        if (a.grad_threshold) a.grad_threshold[span * a.neurons + neuron] = sum;
    }
}

}  // namespace snn_fr
