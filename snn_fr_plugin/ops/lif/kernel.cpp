// `lif` on the CPU. Threads share out tiles of columns (neurons). Within a tile, work goes strip by strip: a
// few cache lines of columns times a few steps, with the state in registers. Forward writes a checkpoint of
// the state every CHUNK steps; backward takes the chunks from the last, replays each from its checkpoint, and
// runs it in reverse. A neuron is computed in one order whatever the threads and tiles: results do not depend
// on them.
#include "../host.h"
#include "../pages.h"
#include "arguments.h"
#include "step.h"

#include <algorithm>
#include <memory>

namespace snn_fr {
namespace {

constexpr int CHARGE = SNN_FR_CHARGE;      // a number of step.h: one library for all would take long to compile
constexpr int STRIP = 256 / sizeof(real);  // columns computed together, the trip count of the inner loops
constexpr int GROUP = 4;                   // steps computed together
constexpr int AHEAD = 24;                  // rows that the backward prefetches before their turn
constexpr int TILE = 1024;                 // most columns a thread takes at once: a row is about a page
constexpr index PER_THREAD = 16384;        // elements below which another thread does not pay

// Rows of a tile: the parameters of its neurons, and what is carried from step to step.
struct alignas(64) Columns {
    real decay[TILE], rate[TILE], threshold[TILE], magnitude[TILE];
    real v[TILE];
    int left[TILE];
    real carry[TILE], decay_sum[TILE], threshold_sum[TILE], magnitude_sum[TILE];
};

// Rows of a strip, one for every step of a chunk: the state before each (and after the last), the charged
// membrane, spikes, and what the surrogate sees, which its slope then replaces; and rows on their way from and
// to memory.
struct alignas(64) Steps {
    real v[CHUNK + 1][STRIP], h[CHUNK][STRIP], spikes[CHUNK][STRIP], slope[CHUNK][STRIP];
    int left[CHUNK + 1][STRIP];
    real in[GROUP][STRIP], out[GROUP][STRIP], x[GROUP][STRIP], membrane[STRIP], charged[STRIP], zero[STRIP];
};

struct Scratch {
    Columns columns;
    Steps steps;
};
thread_local Scratch thread_scratch;

// ---- strips: the loops in which the time goes. Not inlined, so that each exists once and its pointers are
// known not to overlap; the trip count is a constant, so that compilers vectorise without a remainder.

inline Neuron<real> neuron(const Columns& c, int i, const Rules<real>& rules)
{
    return {c.decay[i], c.rate[i], c.threshold[i], c.magnitude[i], spared(c.threshold[i], rules)};
}

// A constant here takes the gate out of the chain of operations from one membrane to the next.
template <bool INTEGRATE>
inline Rules<real> with_integrate(Rules<real> rules)
{
    rules.integrate = mask<real>(INTEGRATE);
    return rules;
}

// GROUP steps from the strip at column `at`, of which only the spikes and the last state are kept; TRACE: the
// membranes too.
template <int RESET, bool INTEGRATE, bool TRACE>
[[gnu::noinline]] void fire_strip(const Rules<real>& shared, const Columns& c, int at, const real* const* x,
                                  real* __restrict v, int* __restrict left, real* __restrict s0,
                                  real* __restrict s1, real* __restrict s2, real* __restrict s3,
                                  real* __restrict m0, real* __restrict m1, real* __restrict m2,
                                  real* __restrict m3)
{
    const Rules<real> rules = with_integrate<INTEGRATE>(shared);
    const real *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
    for (int i = 0; i < STRIP; ++i) {
        const Neuron<real> cell = neuron(c, at + i, rules);
        real v_i = v[i];
        int left_i = left[i];
        s0[i] = keep(advance<CHARGE, RESET>(x0[i], cell, rules, v_i, left_i).fired, real(1));
        if constexpr (TRACE) m0[i] = v_i;
        s1[i] = keep(advance<CHARGE, RESET>(x1[i], cell, rules, v_i, left_i).fired, real(1));
        if constexpr (TRACE) m1[i] = v_i;
        s2[i] = keep(advance<CHARGE, RESET>(x2[i], cell, rules, v_i, left_i).fired, real(1));
        if constexpr (TRACE) m2[i] = v_i;
        s3[i] = keep(advance<CHARGE, RESET>(x3[i], cell, rules, v_i, left_i).fired, real(1));
        if constexpr (TRACE) m3[i] = v_i;
        v[i] = v_i;
        left[i] = left_i;
    }
}

// Whether the backward needs the state before each step, or only that after the last.
constexpr bool keeps_states(int reset, bool all) { return all || resets_later(reset); }

// What the surrogate sees: the distance from the threshold, or all ones where the gate is closed.
inline real seen(const Step<real>& step, const Neuron<real>& cell)
{
    Bits<real> distance;
    distance.value = step.h - cell.threshold;
    distance.bits |= ~step.open;
    return distance.value;
}

// GROUP steps, of which is kept, in rows one after another, what the surrogate sees and what else the backward
// needs: where a reset comes at once, the charged membrane and the spikes. ALL: everything.
template <int RESET, bool INTEGRATE, bool ALL>
[[gnu::noinline]] void replay_strip(const Rules<real>& shared, const Columns& c, int at, const real* const* x,
                                    const real* __restrict v, const int* __restrict left,
                                    real* __restrict next_v, int* __restrict next_left, real* __restrict h,
                                    real* __restrict spikes, real* __restrict slope)
{
    constexpr bool STATES = keeps_states(RESET, ALL);
    const Rules<real> rules = with_integrate<INTEGRATE>(shared);
    const real *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
    for (int i = 0; i < STRIP; ++i) {
        const Neuron<real> cell = neuron(c, at + i, rules);
        real v_i = v[i];
        int left_i = left[i];
        const real x_i[GROUP] = {x0[i], x1[i], x2[i], x3[i]};
        for (int j = 0; j < GROUP; ++j) {
            const int k = i + j * STRIP;
            const Step<real> step = advance<CHARGE, RESET>(x_i[j], cell, rules, v_i, left_i);
            slope[k] = seen(step, cell);
            if constexpr (ALL || RESET == ZERO) h[k] = step.h;
            if constexpr (ALL || resets_at_once(RESET)) spikes[k] = keep(step.fired, real(1));
            if constexpr (STATES) next_v[k] = v_i;
            if constexpr (STATES) next_left[k] = left_i;
        }
        if constexpr (!STATES) next_v[i] = v_i;
        if constexpr (!STATES) next_left[i] = left_i;
    }
}

// What the surrogate has seen in consecutive rows, replaced by ds/dh.
template <int KIND>
[[gnu::noinline]] void slope_strip(int rows, Surrogate<real> by, real* slope)
{
    by.kind = KIND;
    for (; rows > 0; --rows, slope += STRIP)
        for (int i = 0; i < STRIP; ++i) {
            Bits<real> seen;
            seen.value = slope[i];
            slope[i] = keep(mask<real>(seen.bits != -1), derivative(by, seen.value));
        }
}

// What the backward has found out about one step, from rows of the replay.
template <int RESET, bool ALL>
inline Step<real> recall(const Neuron<real>& cell, const Rules<real>& rules, const real* v, const int* left,
                         const real* h, const real* spike)
{
    Step<real> step{};
    if constexpr (keeps_states(RESET, ALL)) step = enter<RESET>(cell, rules, *v, *left);
    if constexpr (RESET == ZERO) step.h = *h;
    if constexpr (resets_at_once(RESET)) step.fired = mask<real>(*spike != 0);
    return step;
}

// GROUP steps in reverse, from a cotangent of the spikes, where every input was integrated: the gradients of x
// and v. LEARN: those of the parameters too, for which the replay has kept everything.
template <int RESET, bool LEARN>
[[gnu::noinline]] void retreat_strip(const Rules<real>& shared, const Columns& c, int at,
                                     const real* __restrict v, const int* __restrict left,
                                     const real* __restrict h, const real* __restrict spikes,
                                     const real* __restrict slope, const real* const* x,
                                     const real* const* given, real* __restrict carry,
                                     real* __restrict decay_sum, real* __restrict threshold_sum,
                                     real* __restrict magnitude_sum, real* __restrict g0, real* __restrict g1,
                                     real* __restrict g2, real* __restrict g3)
{
    constexpr bool READS_X = LEARN && CHARGE == TAU_INPUT;
    const Rules<real> rules = with_integrate<true>(shared);
    const real *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
    const real *s0 = given[0], *s1 = given[1], *s2 = given[2], *s3 = given[3];
    for (int i = 0; i < STRIP; ++i) {
        const Neuron<real> cell = neuron(c, at + i, rules);
        Neuron<real> sum{};
        if constexpr (LEARN) sum = {decay_sum[i], 0, threshold_sum[i], magnitude_sum[i], 0};
        real carry_i = carry[i];
        const real given_i[GROUP] = {s0[i], s1[i], s2[i], s3[i]};
        real x_i[GROUP] = {}, grad_i[GROUP];
        if constexpr (READS_X) x_i[0] = x0[i], x_i[1] = x1[i], x_i[2] = x2[i], x_i[3] = x3[i];
        for (int j = GROUP - 1; j >= 0; --j) {
            const int k = i + j * STRIP;
            const Step<real> step = recall<RESET, LEARN>(cell, rules, v + k, left + k, h + k, spikes + k);
            grad_i[j] = retreat<CHARGE, RESET, LEARN>(step, slope[k], x_i[j], {given_i[j], 0, 0}, cell, rules,
                                                      carry_i, sum);
        }
        carry[i] = carry_i;
        g0[i] = grad_i[0];
        g1[i] = grad_i[1];
        g2[i] = grad_i[2];
        g3[i] = grad_i[3];
        if constexpr (LEARN) {
            decay_sum[i] = sum.decay;
            threshold_sum[i] = sum.threshold;
            magnitude_sum[i] = sum.magnitude;
        }
    }
}

// One step in reverse, with everything.
template <int RESET>
[[gnu::noinline]] void retreat_strip_full(const Rules<real>& shared, const Columns& c, int at,
                                          const real* __restrict v, const int* __restrict left,
                                          const real* __restrict h, const real* __restrict spikes,
                                          const real* __restrict slope, const real* __restrict x,
                                          const real* __restrict by_spike, const real* __restrict by_membrane,
                                          const real* __restrict by_charged, real* __restrict carry,
                                          real* __restrict decay_sum, real* __restrict threshold_sum,
                                          real* __restrict magnitude_sum, real* __restrict grad)
{
    const Rules<real> rules = shared;
    for (int i = 0; i < STRIP; ++i) {
        const Neuron<real> cell = neuron(c, at + i, rules);
        const Step<real> step = recall<RESET, true>(cell, rules, v + i, left + i, h + i, spikes + i);
        Neuron<real> sum{decay_sum[i], 0, threshold_sum[i], magnitude_sum[i], 0};
        real carry_i = carry[i];
        grad[i] = retreat<CHARGE, RESET, true>(
            step, slope[i], x[i], {by_spike[i], by_membrane[i], by_charged[i]}, cell, rules, carry_i, sum);
        carry[i] = carry_i;
        decay_sum[i] = sum.decay;
        threshold_sum[i] = sum.threshold;
        magnitude_sum[i] = sum.magnitude;
    }
}

// The loops for a reset; the first of two where inputs are ignored, the second where they are integrated.
struct Strips {
    decltype(&fire_strip<NONE, true, false>) fire[2], trace;
    decltype(&replay_strip<NONE, true, false>) replay, replay_all[2];
    decltype(&retreat_strip<NONE, false>) retreat, learn;
    decltype(&retreat_strip_full<NONE>) retreat_full;
};

template <int RESET>
constexpr Strips strips{{fire_strip<RESET, false, false>, fire_strip<RESET, true, false>},
                        fire_strip<RESET, true, true>,
                        replay_strip<RESET, true, false>,
                        {replay_strip<RESET, false, true>, replay_strip<RESET, true, true>},
                        retreat_strip<RESET, false>,
                        retreat_strip<RESET, true>,
                        retreat_strip_full<RESET>};

const Strips& strips_of(int reset)
{
    static const Strips* const all[] = {&strips<NONE>, &strips<SUBTRACT>, &strips<ZERO>, &strips<SUBTRACT_LATER>,
                                        &strips<ZERO_LATER>};
    return *all[reset];
}

typedef decltype(&slope_strip<ATAN>) SlopeStrip;

SlopeStrip slope_strip_of(int kind)
{
    static const SlopeStrip all[] = {
        slope_strip<ATAN>,
        slope_strip<SIGMOID>,
        slope_strip<FAST_SIGMOID>,
        slope_strip<SUPER_SPIKE>,
        slope_strip<TRIANGLE>,
        slope_strip<RECTANGLE>,
        slope_strip<SOFT_SIGN>,
        slope_strip<ERF>,
        slope_strip<PIECEWISE_QUADRATIC>,
        slope_strip<PIECEWISE_EXP>,
        slope_strip<STRAIGHT_THROUGH>,
    };
    return kind < 0 ? slope_strip<-1> : all[kind];
}

// ---- rows between memory and strips; the last strip of a row may be narrower than STRIP

// n elements as a row of STRIP: where they lie if nothing needs to be done, else in `buffer`.
template <typename element>
inline const real* enter_row(const element* row, real* buffer, int n)
{
    const real* found = read_row(row, buffer, n);
    if (n == STRIP) return found;
    if (found != buffer) std::memcpy(buffer, found, n * sizeof(real));
    for (int i = n; i < STRIP; ++i) buffer[i] = 0;
    return buffer;
}

index whole_strips(index n) { return (n + STRIP - 1) / STRIP * STRIP; }

// What n neurons from `first` on have, of `many` values that repeat.
void load_row(real* row, int n, const real* values, index many, index first)
{
    if (many == 1) std::fill_n(row, n, *values);
    for (index i = many == 1 ? n : 0, at = first % many; i < n; at = 0) {
        const index rest = n - i, run = many - at < rest ? many - at : rest;
        std::memcpy(row + i, values + at, run * sizeof(real));
        i += run;
    }
    for (int i = n; i < whole_strips(n); ++i) row[i] = 1;
}

void load_columns(const Arguments& a, index first, int n, Columns& c)
{
    load_row(c.decay, n, a.decay, a.decay_values, first);
    load_row(c.threshold, n, a.threshold, a.threshold_values, first);
    load_row(c.magnitude, n, a.magnitude, a.magnitude_values, first);
    load_row(c.v, n, a.v0, a.neurons, first);
    std::memcpy(c.left, a.refractory0 + first, n * sizeof(int));
}

Rules<real> rules_of(const Arguments& a)
{
    return {a.period, mask<real>(a.integrate != 0), mask<real>(a.inclusive != 0), mask<real>(a.attached != 0),
            real(a.v_reset)};
}

// The state before step CHUNK * chunk, chunk > 0: a row of v, and one of counters, which keep their bits in a
// float.
inline real* checkpoint(const Arguments& a, index chunk, index first)
{
    return a.checkpoints + (2 * chunk - 2) * a.neurons + first;
}

void save_state(const Arguments& a, index chunk, index first, int n, const real* v, const int* left)
{
    real* row = checkpoint(a, chunk, first);
    std::memcpy(row, v, n * sizeof(real));
    row += a.neurons;
    if constexpr (sizeof(real) == sizeof(int))
        std::memcpy(row, left, n * sizeof(int));
    else
        for (int i = 0; i < n; ++i) row[i] = left[i];
}

inline void load_state(const Arguments& a, index chunk, index first, int n, real* v, int* left)
{
    const real* row = checkpoint(a, chunk, first);
    std::memcpy(v, row, n * sizeof(real));
    row += a.neurons;
    if constexpr (sizeof(real) == sizeof(int))
        std::memcpy(left, row, n * sizeof(int));
    else
        for (int i = 0; i < n; ++i) left[i] = int(row[i]);
}

// ---- tiles

// What all strips of a tile share.
struct Tile {
    const Arguments& a;
    index first;  // column
    bool stream;
    Rules<real> rules;
    const Strips& strips;
    Surrogate<real> by;
    Columns& columns;
    Steps& steps;
};

// `count` steps from t of the strip at column `at` of the tile; `width` is STRIP but in the last strip of a
// row. `trace`: where the membranes go, if anywhere; `keep_steps`: it takes more than the loop that writes them and
// the spikes.
inline void forward_strip(const Tile& tile, index t, int count, int at, int width, real* trace, bool keep_steps)
{
    const Arguments& a = tile.a;
    Columns& c = tile.columns;
    Steps& s = tile.steps;
    const index here = t * a.neurons + tile.first + at;
    const index ahead = t + 2 * GROUP <= a.steps ? GROUP * a.neurons : 0;
    const real* x[GROUP];
    for (int j = 0; j < GROUP; ++j) {
        const io* row = a.x + here + (j < count ? j : 0) * a.neurons;
        x[j] = enter_row(row, s.in[j], width);
        prefetch_row(row + ahead, width);
    }
    if (count == GROUP && !keep_steps) {
        const bool aside = tile.stream || width < STRIP;
        real *spikes[GROUP], *membrane[GROUP];
        for (int j = 0; j < GROUP; ++j) {
            const index row = here + j * a.neurons;
            spikes[j] = begin_row(a.spikes + row, s.out[j], aside);
            membrane[j] = trace ? begin_row(trace + row, s.h[j], aside) : nullptr;
        }
        const auto fire = trace ? tile.strips.trace : tile.strips.fire[a.integrate];
        fire(tile.rules, c, at, x, c.v + at, c.left + at, spikes[0], spikes[1], spikes[2], spikes[3],
             membrane[0], membrane[1], membrane[2], membrane[3]);
        for (int j = 0; j < GROUP; ++j) {
            const index row = here + j * a.neurons;
            end_row(a.spikes + row, spikes[j], width, tile.stream);
            if (trace) end_row(trace + row, membrane[j], width, tile.stream);
        }
        return;
    }
    tile.strips.replay_all[a.integrate](tile.rules, c, at, x, c.v + at, c.left + at, s.v[1], s.left[1], s.h[0],
                                        s.spikes[0], s.slope[0]);
    const int* left = c.left + at;
    for (int j = 0; j < count; ++j) {
        const index row = here + j * a.neurons;
        const std::size_t bytes = width * sizeof(real);
        end_row(a.spikes + row, s.spikes[j], width, tile.stream);
        if (a.membrane) copy_bytes(a.membrane + row, s.v[j + 1], bytes, tile.stream);
        if (a.charged) copy_bytes(a.charged + row, s.h[j], bytes, tile.stream);
        if (a.is_open)
            for (int i = 0; i < width; ++i) a.is_open[row + i] = left[i] <= 0;
        left = s.left[j + 1];
    }
    std::memcpy(c.v + at, s.v[count], sizeof s.v[0]);
    std::memcpy(c.left + at, s.left[count], sizeof s.left[0]);
}

void forward_tile(const Tile& tile, int n)
{
    const Arguments& a = tile.a;
    Columns& c = tile.columns;
    // where no reset comes in the step of its spike, the charged membrane is the membrane
    real* const trace = resets_at_once(a.reset) ? a.membrane : a.charged;
    const real* const other = resets_at_once(a.reset) ? a.charged : a.membrane;
    const bool keep_steps = a.is_open || other || (trace && !a.integrate);
    for (index t = 0; t < a.steps; t += GROUP) {
        const int count = int(a.steps - t < GROUP ? a.steps - t : GROUP);
        if (a.checkpoints && t > 0 && t % CHUNK == 0) save_state(a, t / CHUNK, tile.first, n, c.v, c.left);
        int at = 0;
        for (; at + STRIP <= n; at += STRIP) forward_strip(tile, t, count, at, STRIP, trace, keep_steps);
        if (at < n) forward_strip(tile, t, count, at, n - at, trace, keep_steps);
    }
    std::memcpy(a.v + tile.first, c.v, n * sizeof(real));
    for (int i = 0; i < n; ++i) a.refractory[tile.first + i] = c.left[i] > 0 ? c.left[i] : 0;
}

// How much of the adjoint a call needs: EVERYTHING, or where the spikes alone have a cotangent and every input was
// integrated, the gradients of the PARAMETERS, or those of the INPUT and the initial state alone.
enum Scope { INPUT, PARAMETERS, EVERYTHING };

// `count` steps from `start` in reverse; the strip to come after this one lies `next` elements on, and what is
// prefetched last is its.
inline void backward_strip(const Tile& tile, index start, int count, int at, int width, index next, Scope scope)
{
    const Arguments& a = tile.a;
    Columns& c = tile.columns;
    Steps& s = tile.steps;
    const index here = start * a.neurons + tile.first + at;
    const index ahead = AHEAD * a.neurons, rows = count * a.neurons;
    if (start == 0) {
        std::memcpy(s.v[0], c.v + at, sizeof s.v[0]);
        std::memcpy(s.left[0], c.left + at, sizeof s.left[0]);
    } else {
        load_state(a, start / CHUNK, tile.first + at, width, s.v[0], s.left[0]);
        const index following = next > 0 ? start / CHUNK : start / CHUNK - 1;
        if (following > 0) {
            const real* const row = checkpoint(a, following, tile.first + (next > 0 ? at + STRIP : 0));
            prefetch_row(row, width);
            prefetch_row(row + a.neurons, width);
        }
    }
    const bool all = scope != INPUT || count % GROUP != 0;  // steps that make no whole group go the full way
    const auto replay = all ? tile.strips.replay_all[a.integrate] : tile.strips.replay;
    const bool states = keeps_states(a.reset, all);
    for (int j = 0; j < count; j += GROUP) {
        const real* x[GROUP];
        for (int k = 0; k < GROUP; ++k) {
            const io* row = a.x + here + (j + k < count ? j + k : j) * a.neurons;
            x[k] = enter_row(row, s.in[k], width);
            prefetch_row(row + (j + AHEAD < count ? ahead : next ? next + ahead - rows : 0), width);
        }
        const int from = states ? j : j / GROUP % 2, to = states ? j + 1 : 1 - from;
        replay(tile.rules, c, at, x, s.v[from], s.left[from], s.v[to], s.left[to], s.h[j], s.spikes[j],
               s.slope[j]);
    }
    slope_strip_of(a.kind)(count, tile.by, s.slope[0]);

    int j = count;
    const bool needs_x = CHARGE == TAU_INPUT && a.grad_decay;
    for (; j >= GROUP && scope != EVERYTHING; j -= GROUP) {
        const int k = j - GROUP;
        const real *given[GROUP], *x[GROUP];
        real* grad[GROUP];
        for (int i = 0; i < GROUP; ++i) {
            const index row = here + (k + i) * a.neurons;
            given[i] = enter_row(a.grad_spikes + row, s.in[i], width);
            x[i] = needs_x ? enter_row(a.x + row, s.x[i], width) : s.zero;
            grad[i] = begin_row(a.grad_x + row, s.out[i], tile.stream || width < STRIP);
            const index later = row + (k >= AHEAD ? -ahead : next ? next - ahead + rows : 0);
            prefetch_row(a.grad_spikes + later, width);
            if (!tile.stream) prefetch_row<WRITE>(a.grad_x + later, width);
        }
        const auto retreat = scope == INPUT ? tile.strips.retreat : tile.strips.learn;
        retreat(tile.rules, c, at, s.v[k], s.left[k], s.h[k], s.spikes[k], s.slope[k], x, given, c.carry + at,
                c.decay_sum + at, c.threshold_sum + at, c.magnitude_sum + at, grad[0], grad[1], grad[2], grad[3]);
        for (int i = 0; i < GROUP; ++i)
            end_row(a.grad_x + here + (k + i) * a.neurons, grad[i], width, tile.stream);
    }
    while (j-- > 0) {
        const index row = here + j * a.neurons;
        tile.strips.retreat_full(
            tile.rules, c, at, s.v[j], s.left[j], s.h[j], s.spikes[j], s.slope[j],
            needs_x ? enter_row(a.x + row, s.x[0], width) : s.zero,
            a.grad_spikes ? enter_row(a.grad_spikes + row, s.in[0], width) : s.zero,
            a.grad_membrane ? enter_row(a.grad_membrane + row, s.membrane, width) : s.zero,
            a.grad_charged ? enter_row(a.grad_charged + row, s.charged, width) : s.zero, c.carry + at,
            c.decay_sum + at, c.threshold_sum + at, c.magnitude_sum + at, s.out[0]);
        end_row(a.grad_x + row, s.out[0], width, tile.stream);
    }
}

void backward_tile(const Tile& tile, int n)
{
    const Arguments& a = tile.a;
    Columns& c = tile.columns;
    Scope scope = a.grad_decay || a.grad_threshold || a.grad_magnitude ? PARAMETERS : INPUT;
    if (!a.grad_spikes || a.grad_membrane || a.grad_charged || !a.integrate) scope = EVERYTHING;
    for (int i = 0; i < whole_strips(n); ++i) {
        c.rate[i] = 1 / c.decay[i];
        c.carry[i] = a.grad_v && i < n ? a.grad_v[tile.first + i] : real(0);
        c.decay_sum[i] = c.threshold_sum[i] = c.magnitude_sum[i] = 0;
    }
    for (index start = (a.steps - 1) / CHUNK * CHUNK; a.steps > 0 && start >= 0; start -= CHUNK) {
        const int count = int(a.steps - start < CHUNK ? a.steps - start : CHUNK);
        for (int at = 0; at < n; at += STRIP) {
            const int rest = n - at;
            const index next = rest > STRIP ? STRIP : start > 0 ? -CHUNK * a.neurons - at : 0;
            if (rest >= STRIP)
                backward_strip(tile, start, count, at, STRIP, next, scope);
            else
                backward_strip(tile, start, count, at, rest, next, scope);
        }
    }
    std::memcpy(a.grad_v0 + tile.first, c.carry, n * sizeof(real));
    if (a.grad_decay) std::memcpy(a.grad_decay + tile.first, c.decay_sum, n * sizeof(real));
    if (a.grad_threshold) std::memcpy(a.grad_threshold + tile.first, c.threshold_sum, n * sizeof(real));
    if (a.grad_magnitude) std::memcpy(a.grad_magnitude + tile.first, c.magnitude_sum, n * sizeof(real));
}

void run(void (*pass)(const Tile&, int), const Arguments& a)
{
    const index elements = a.steps * a.neurons, useful = 1 + elements / PER_THREAD;
    const index threads = a.threads < useful ? a.threads : useful;
    // as many tiles for every thread, of whole strips
    index tiles = (a.neurons + TILE - 1) / TILE;
    tiles = (tiles + threads - 1) / threads * threads;
    const index width = tiles ? whole_strips((a.neurons + tiles - 1) / tiles) : 0;
    const bool stream = elements * index(sizeof(io)) >= STREAM_FROM;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(threads)) if (threads > 1)
#endif
    for (index i = 0; i < tiles; ++i) {
        const index first = i * width, rest = a.neurons - first;
        if (rest <= 0) continue;
        const int n = int(rest < width ? rest : width);
        Scratch& scratch = thread_scratch;
        load_columns(a, first, n, scratch.columns);
        pass({a, first, stream, rules_of(a), strips_of(a.reset), surrogate<real>(a.kind, a.alpha), scratch.columns,
              scratch.steps},
             n);
        if (stream) finish_streaming();
    }
}

// The gradient of a parameter, of which the tiles write a number for every neuron. Where neurons share values,
// they write it aside, and what belongs to one value is summed in double, in the order of the neurons.
class Gradient {
public:
    Gradient(real*& row, index values, index neurons) : sums(row), values(values), neurons(neurons)
    {
        if (!row || values == neurons) return;
        aside.reset(new real[neurons]);
        row = aside.get();
    }

    void sum() const
    {
        constexpr index WIDTH = 128;
        if (!aside) return;
        for (index first = 0; first < values; first += WIDTH) {
            const index width = values - first < WIDTH ? values - first : WIDTH;
            double total[WIDTH] = {};
            for (index at = first; at < neurons; at += values)
                for (index i = 0; i < width; ++i) total[i] += aside[at + i];
            for (index i = 0; i < width; ++i) sums[first + i] = real(total[i]);
        }
    }

private:
    real* sums;
    index values, neurons;
    std::unique_ptr<real[]> aside;
};

}  // namespace

extern "C" void snn_fr_lif_forward(const Arguments* a)
{
    const index elements = a->steps * a->neurons;
    expect_writes(a->spikes, elements * sizeof(io));
    if (a->membrane) expect_writes(a->membrane, elements * sizeof(real));
    if (a->charged) expect_writes(a->charged, elements * sizeof(real));
    if (a->checkpoints) expect_writes(a->checkpoints, (a->steps - 1) / CHUNK * 2 * a->neurons * sizeof(real));
    run(forward_tile, *a);
}

extern "C" void snn_fr_lif_backward(const Arguments* given)
{
    Arguments a = *given;
    const Gradient decay(a.grad_decay, a.decay_values, a.neurons);
    const Gradient threshold(a.grad_threshold, a.threshold_values, a.neurons);
    const Gradient magnitude(a.grad_magnitude, a.magnitude_values, a.neurons);
    expect_writes(a.grad_x, a.steps * a.neurons * sizeof(io));
    run(backward_tile, a);
    decay.sum();
    threshold.sum();
    magnitude.sum();
}

}  // namespace snn_fr
