// One complex pair of `diagonal_ssm`, through time in groups of GROUP steps: written once, run by kernel.cpp in vectors of
// columns (a column is one channel of one batch entry) and by kernel.cu in threads. With h the state before a group and
// K_l = Re sum_pairs C A^l (+ D for l = 0):
//
//     y_j = Re(C A^(j+1) h) + sum_{i <= j} K_(j-i) x_i        j = 0 .. GROUP-1
//     h  <- A^GROUP h + sum_j A^(GROUP-1-j) x_j
//
// Single steps would need a third more multiplications, and backward, where the same constants change roles, 40% more;
// and only one group, not one step, waits for the state before it.
//
// Who includes this has defined `vec`, what is computed at once; `wide`, the same in double; `rounded` and `widened`,
// from one to the other and back; and SNN_FR_PAIR and SNN_FR_UNROLL, how functions and loops are to be expanded.
#ifndef SNN_FR_SSM_PAIR_H
#define SNN_FR_SSM_PAIR_H

namespace snn_fr {

constexpr int GROUP = 4;   // the best even where its constants outnumber the registers
constexpr int BLOCK = 64;  // steps between checkpoints, as in the providers

struct Complex {
    vec re, im;
};
struct WideComplex {
    wide re, im;
};

template <typename complex>
SNN_FR_PAIR complex times(const complex& a, const complex& b)
{
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// conj(a) b: how a gradient goes back through a product with a.
template <typename complex>
SNN_FR_PAIR complex back(const complex& a, const complex& b)
{
    return {a.re * b.re + a.im * b.im, a.re * b.im - a.im * b.re};
}

SNN_FR_PAIR void add(Complex& sum, const Complex& a, real factor = 1)
{
    sum.re += factor * a.re, sum.im += factor * a.im;
}

SNN_FR_PAIR Complex rounded(const WideComplex& a) { return {rounded(a.re), rounded(a.im)}; }
SNN_FR_PAIR WideComplex widened(const Complex& a) { return {widened(a.re), widened(a.im)}; }

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
SNN_FR_PAIR void tabulate(const WideComplex& A, const WideComplex& C, Pair& pair, wide (&taps)[GROUP])
{
    WideComplex power{wide{} + 1.0, wide{}}, emit = C;
    SNN_FR_UNROLL
    for (int j = 0; j < GROUP; ++j) {
        taps[j] += emit.re;
        power = times(power, A), emit = times(C, power);
        pair.power[j] = rounded(power), pair.emit[j] = rounded(emit);
    }
    const WideComplex kept = widened(pair.power[GROUP - 1]);
    const WideComplex lost = back(kept, {power.re - kept.re, power.im - kept.im});
    const wide square = kept.re * kept.re + kept.im * kept.im;
    const wide scale = square > 1e-30 ? double(BLOCK / GROUP) / square : wide{};  // a state that dies at once cannot drift
    pair.drift = rounded(WideComplex{lost.re * scale, lost.im * scale});
}

// dL/dA and dL/dC: through A^(j+1), through C A^(j+1), and through K_l, whose gradients are `taps`.
SNN_FR_PAIR void differentiate(const Pair& pair, const Sums& sums, const vec (&taps)[GROUP], const Complex& C,
                               Complex& grad_A, Complex& grad_C)
{
    Complex by_A = sums.power[0], by_emit = sums.emit[0], by_C = back(pair.power[0], sums.emit[0]);
    by_C.re += taps[0];
    by_emit.re += taps[1];
    SNN_FR_UNROLL
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

// ---- one group of G steps: GROUP, or 1 for the last few of a sequence

// The state after a group; what depends on the state comes last.
template <int G>
SNN_FR_PAIR Complex after(const Complex* power, const Complex& h, const vec* x)
{
    vec re = x[G - 1], im = vec{};
    SNN_FR_UNROLL
    for (int j = 0; j < G - 1; ++j) re += power[G - 2 - j].re * x[j], im += power[G - 2 - j].im * x[j];
    re -= power[G - 1].im * h.im, im += power[G - 1].im * h.re;
    return {power[G - 1].re * h.re + re, power[G - 1].re * h.im + im};
}

// What the state before a group adds to its outputs.
template <int G>
SNN_FR_PAIR void speak(const Complex* emit, const Complex& h, vec* y)
{
    SNN_FR_UNROLL
    for (int j = 0; j < G; ++j) y[j] += emit[j].re * h.re - emit[j].im * h.im;
}

// dL/dh before a group, from that after it.
template <int G>
SNN_FR_PAIR Complex before(const Complex* power, const Complex* emit, const Complex& q, const vec* given)
{
    vec re = emit[0].re * given[0], im = emit[0].im * given[0];
    SNN_FR_UNROLL
    for (int j = 1; j < G; ++j) re += emit[j].re * given[j], im += emit[j].im * given[j];
    re += power[G - 1].im * q.im, im += power[G - 1].im * q.re;
    return {power[G - 1].re * q.re + re, power[G - 1].re * q.im - im};
}

// The gradients in `speak`; h is the state before the group.
template <int G>
SNN_FR_PAIR void learn_emit(const Complex& h, const vec* given, Complex* sum)
{
    SNN_FR_UNROLL
    for (int j = 0; j < G; ++j) sum[j].re += given[j] * h.re, sum[j].im -= given[j] * h.im;
}

// The gradients in `after`; h is the state before the group, q is dL/dh after it.
template <int G>
SNN_FR_PAIR void learn_power(const Complex* power, const Complex& h, const Complex& q, const vec* x, vec* grad_x,
                             Complex* sum)
{
    SNN_FR_UNROLL
    for (int j = 0; j < G - 1; ++j) {
        const int p = G - 2 - j;
        grad_x[j] += power[p].re * q.re + power[p].im * q.im;
        sum[p].re += q.re * x[j], sum[p].im += q.im * x[j];
    }
    grad_x[G - 1] += q.re;
    sum[G - 1].re += q.re * h.re + q.im * h.im, sum[G - 1].im += q.im * h.re - q.re * h.im;
}

}  // namespace snn_fr

#endif
