// The pairs of pair.h in vectors of WIDTH columns, as wide as the processor has them, through many groups of steps.
#ifndef SNN_FR_SSM_VECTORS_H
#define SNN_FR_SSM_VECTORS_H

#include "../host.h"

namespace snn_fr {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int WIDTH = BYTES / sizeof(real);

#define SNN_FR_PAIR [[gnu::always_inline]] inline
#define SNN_FR_UNROLL _Pragma("GCC unroll 8")

typedef real vec __attribute__((vector_size(BYTES)));
typedef double wide __attribute__((vector_size(WIDTH * sizeof(double))));

SNN_FR_PAIR vec rounded(const wide& a) { return __builtin_convertvector(a, vec); }
SNN_FR_PAIR wide widened(const vec& a) { return __builtin_convertvector(a, wide); }

}  // namespace snn_fr

#include "pair.h"

namespace snn_fr {

// ---- `count` groups of G steps. In these loops the time goes: constants, states and sums are local variables, which
// become registers; rows are in the first-level cache.

template <int G>
SNN_FR_PAIR void copy(const Complex* from, Complex (&to)[G])
{
    SNN_FR_UNROLL
    for (int j = 0; j < G; ++j) to[j] = from[j];
}

template <int G>
SNN_FR_PAIR void clear(Complex (&sums)[G])
{
    SNN_FR_UNROLL
    for (int j = 0; j < G; ++j) sums[j] = {vec{}, vec{}};
}

template <int G>
SNN_FR_PAIR void advance(const Pair& pair, int count, const vec* x, Complex& state, vec* y)
{
    Complex power[G], emit[G], h = state;
    copy(pair.power, power);
    copy(pair.emit, emit);
    for (int k = 0; k < count; ++k, x += G, y += G) {
        speak<G>(emit, h, y);
        h = after<G>(power, h, x);
    }
    state = h;
}

// The state before each group once more, and the gradients that need no adjoint.
template <int G>
SNN_FR_PAIR void replay(const Pair& pair, int count, const vec* x, const vec* given, Complex& state, Complex* states,
                        Sums& sums)
{
    Complex power[G], sum[G], h = state;
    copy(pair.power, power);
    clear(sum);
    for (int k = 0; k < count; ++k, x += G, given += G) {
        states[k] = h;
        learn_emit<G>(h, given, sum);
        h = after<G>(power, h, x);
    }
    for (int j = 0; j < G; ++j) add(sums.emit[j], sum[j]);
    state = h;
}

// Takes dL/dh from after the last group to before the first; `states` are those before each group.
template <int G>
SNN_FR_PAIR void retreat(const Pair& pair, int count, const vec* x, const vec* given, const Complex* states,
                         Complex& adjoint, vec* grad_x, Sums& sums)
{
    Complex power[G], emit[G], sum[G], q = adjoint;
    copy(pair.power, power);
    copy(pair.emit, emit);
    clear(sum);
    x += count * G, given += count * G, grad_x += count * G, states += count;
    for (int k = 0; k < count; ++k) {
        x -= G, given -= G, grad_x -= G, --states;
        learn_power<G>(power, *states, q, x, grad_x, sum);
        q = before<G>(power, emit, q, given);
    }
    for (int j = 0; j < G; ++j) add(sums.power[j], sum[j]);
    adjoint = q;
}

}  // namespace snn_fr

#endif
