// One complex pair of `diagonal_ssm` in vectors of WIDTH columns (a column is one channel of one batch entry), through
// time in groups of GROUP steps. With h the state before a group and K_l = Re sum_pairs C A^l (+ D for l = 0):
//
//     y_j = Re(C A^(j+1) h) + sum_{i <= j} K_(j-i) x_i        j = 0 .. GROUP-1
//     h  <- A^GROUP h + sum_j A^(GROUP-1-j) x_j
//
// Single steps would need a third more multiplications, and backward, where the same constants change roles, 40% more;
// and only one group, not one step, waits for the state before it.
#ifndef SNN_FR_SSM_PAIR_H
#define SNN_FR_SSM_PAIR_H

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
constexpr int GROUP = 4;   // the best even where its constants outnumber the registers
constexpr int BLOCK = 64;  // steps between checkpoints, as in cpp_provider.py

#define SNN_FR_INLINE_ALWAYS [[gnu::always_inline]] inline

typedef real vec __attribute__((vector_size(BYTES)));
typedef double wide __attribute__((vector_size(WIDTH * sizeof(double))));

struct Complex {
    vec re, im;
};
struct WideComplex {
    wide re, im;
};

template <typename complex>
SNN_FR_INLINE_ALWAYS complex times(const complex& a, const complex& b)
{
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// conj(a) b: how a gradient goes back through a product with a.
template <typename complex>
SNN_FR_INLINE_ALWAYS complex back(const complex& a, const complex& b)
{
    return {a.re * b.re + a.im * b.im, a.re * b.im - a.im * b.re};
}

SNN_FR_INLINE_ALWAYS void add(Complex& sum, const Complex& a, real factor = 1)
{
    sum.re += factor * a.re, sum.im += factor * a.im;
}

SNN_FR_INLINE_ALWAYS vec rounded(const wide& a) { return __builtin_convertvector(a, vec); }
SNN_FR_INLINE_ALWAYS Complex rounded(const WideComplex& a) { return {rounded(a.re), rounded(a.im)}; }

// The constants of a pair.
struct Pair {
    Complex power[GROUP];  // A^1 .. A^GROUP
    Complex emit[GROUP];   // C A^1 .. C A^GROUP
    // Relative error of (rounded A^GROUP)^(BLOCK / GROUP), taken off after every block: unlike the roundings of single
    // steps it would add up over a long sequence.
    Complex drift;
};

// dL/d of the constants of a pair.
struct Sums {
    Complex power[GROUP], emit[GROUP];
};

// The constants that follow from A and C, and the share of the pair in K_l. In double, for they are used often.
inline void tabulate(const WideComplex& A, const WideComplex& C, Pair& pair, wide (&taps)[GROUP])
{
    WideComplex power{wide{} + 1.0, wide{}}, emit = C;
    for (int j = 0; j < GROUP; ++j) {
        taps[j] += emit.re;
        power = times(power, A), emit = times(C, power);
        pair.power[j] = rounded(power), pair.emit[j] = rounded(emit);
    }
    const Complex& used = pair.power[GROUP - 1];
    const WideComplex kept{__builtin_convertvector(used.re, wide), __builtin_convertvector(used.im, wide)};
    const WideComplex lost = back(kept, {power.re - kept.re, power.im - kept.im});
    const wide square = kept.re * kept.re + kept.im * kept.im;
    const wide scale = square > 1e-30 ? double(BLOCK / GROUP) / square : wide{};  // a state that dies at once cannot drift
    pair.drift = rounded(WideComplex{lost.re * scale, lost.im * scale});
}

// dL/dA and dL/dC: through A^(j+1), through C A^(j+1), and through K_l, whose gradients are `taps`.
inline void differentiate(const Pair& pair, const Sums& sums, const vec (&taps)[GROUP], const Complex& C,
                          Complex& grad_A, Complex& grad_C)
{
    Complex by_A = sums.power[0], by_emit = sums.emit[0], by_C = back(pair.power[0], sums.emit[0]);
    by_C.re += taps[0];
    by_emit.re += taps[1];
    for (int j = 1; j < GROUP; ++j) {
        const Complex tap{taps[j], vec{}};
        add(by_C, back(pair.power[j], sums.emit[j]));
        add(by_C, back(pair.power[j - 1], tap));
        add(by_A, back(pair.power[j - 1], sums.power[j]), real(j + 1));
        add(by_emit, back(pair.power[j - 1], sums.emit[j]), real(j + 1));
        if (j > 1) add(by_emit, back(pair.power[j - 2], tap), real(j));
    }
    add(by_A, back(C, by_emit));
    grad_A = by_A, grad_C = by_C;
}

// ---- `count` groups of G steps: GROUP, or 1 for the last few steps of a sequence. In these loops the time goes:
// constants, states and sums are local variables, which become registers; rows are in the first-level cache.

template <int G>
SNN_FR_INLINE_ALWAYS void copy(const Complex* from, Complex (&to)[G])
{
#pragma GCC unroll 8
    for (int j = 0; j < G; ++j) to[j] = from[j];
}

template <int G>
SNN_FR_INLINE_ALWAYS void clear(Complex (&sums)[G])
{
#pragma GCC unroll 8
    for (int j = 0; j < G; ++j) sums[j] = {vec{}, vec{}};
}

// The state after a group; what depends on the state comes last.
template <int G>
SNN_FR_INLINE_ALWAYS Complex after(const Complex (&power)[G], const Complex& h, const vec* x)
{
    vec re = x[G - 1], im = vec{};
#pragma GCC unroll 8
    for (int j = 0; j < G - 1; ++j) re += power[G - 2 - j].re * x[j], im += power[G - 2 - j].im * x[j];
    re -= power[G - 1].im * h.im, im += power[G - 1].im * h.re;
    return {power[G - 1].re * h.re + re, power[G - 1].re * h.im + im};
}

template <int G>
SNN_FR_INLINE_ALWAYS void advance(const Pair& pair, int count, const vec* x, Complex& state, vec* y)
{
    Complex power[G], emit[G], h = state;
    copy(pair.power, power);
    copy(pair.emit, emit);
    for (int k = 0; k < count; ++k, x += G, y += G) {
#pragma GCC unroll 8
        for (int j = 0; j < G; ++j) y[j] += emit[j].re * h.re - emit[j].im * h.im;
        h = after(power, h, x);
    }
    state = h;
}

// The state before each group once more, and the gradients that need no adjoint.
template <int G>
SNN_FR_INLINE_ALWAYS void replay(const Pair& pair, int count, const vec* x, const vec* given, Complex& state,
                                 Complex* before, Sums& sums)
{
    Complex power[G], sum[G], h = state;
    copy(pair.power, power);
    clear(sum);
    for (int k = 0; k < count; ++k, x += G, given += G) {
        before[k] = h;
#pragma GCC unroll 8
        for (int j = 0; j < G; ++j) sum[j].re += given[j] * h.re, sum[j].im += given[j] * h.im;
        h = after(power, h, x);
    }
    for (int j = 0; j < G; ++j) sums.emit[j].re += sum[j].re, sums.emit[j].im -= sum[j].im;
    state = h;
}

// Takes dL/dh from after the last group to before the first.
template <int G>
SNN_FR_INLINE_ALWAYS void retreat(const Pair& pair, int count, const vec* x, const vec* given, const Complex* before,
                                  Complex& adjoint, vec* grad_x, Sums& sums)
{
    Complex power[G], emit[G], sum[G], q = adjoint;
    copy(pair.power, power);
    copy(pair.emit, emit);
    clear(sum);
    x += count * G, given += count * G, grad_x += count * G, before += count;
    for (int k = 0; k < count; ++k) {
        x -= G, given -= G, grad_x -= G, --before;
#pragma GCC unroll 8
        for (int j = 0; j < G - 1; ++j) {
            const int p = G - 2 - j;
            grad_x[j] += power[p].re * q.re + power[p].im * q.im;
            sum[p].re += q.re * x[j], sum[p].im += q.im * x[j];
        }
        grad_x[G - 1] += q.re;
        const Complex h = *before;
        sum[G - 1].re += q.re * h.re + q.im * h.im, sum[G - 1].im += q.im * h.re - q.re * h.im;
        vec re = emit[0].re * given[0], im = emit[0].im * given[0];
#pragma GCC unroll 8
        for (int j = 1; j < G; ++j) re += emit[j].re * given[j], im += emit[j].im * given[j];
        re += power[G - 1].im * q.im, im += power[G - 1].im * q.re;
        q = {power[G - 1].re * q.re + re, power[G - 1].re * q.im - im};
    }
    for (int j = 0; j < G; ++j) sums.power[j].re += sum[j].re, sums.power[j].im += sum[j].im;
    adjoint = q;
}

}  // namespace snn_fr

#endif
