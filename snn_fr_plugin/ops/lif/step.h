// One time step of `lif` and its adjoint, written once: kernel.cpp vectorises it over neurons, a CUDA kernel
// runs it in a thread. So it includes nothing, and decides everything that differs between neurons without a
// branch. `real` is float or double; every operation is rounded on its own. A processor may bring what it does
// better: SNN_FR_INLINE, a qualifier for functions; SNN_FR_PREDICATES, conditions that are no numbers;
// SNN_FR_QUOTIENT(a, b), for slopes, which need not be exact.
#ifndef SNN_FR_LIF_STEP_H
#define SNN_FR_LIF_STEP_H

#ifndef SNN_FR_INLINE
#define SNN_FR_INLINE static inline
#endif
#ifndef SNN_FR_QUOTIENT
#define SNN_FR_QUOTIENT(a, b) ((a) / (b))
#endif

namespace snn_fr {

enum Charge { BETA, TAU_INPUT, TAU };
enum Reset { NONE, SUBTRACT, ZERO, SUBTRACT_LATER, ZERO_LATER };

// In the order of surrogate.KINDS. Any other number is a surrogate evaluated elsewhere: no slope here.
enum Kind {
    ATAN,
    SIGMOID,
    FAST_SIGMOID,
    SUPER_SPIKE,
    TRIANGLE,
    RECTANGLE,
    SOFT_SIGN,
    ERF,
    PIECEWISE_QUADRATIC,
    PIECEWISE_EXP,
    STRAIGHT_THROUGH
};

template <typename real>
struct Word;
template <>
struct Word<float> {
    typedef int type;
};
template <>
struct Word<double> {
    typedef long long type;
};

template <typename real>
union Bits {
    real value;
    typename Word<real>::type bits;
};

#ifdef SNN_FR_PREDICATES

template <typename real>
using Mask = bool;

template <typename real>
SNN_FR_INLINE bool mask(bool condition)
{
    return condition;
}

template <typename real>
SNN_FR_INLINE bool unless(bool condition)
{
    return !condition;
}

template <typename real>
SNN_FR_INLINE real choose(bool condition, real yes, real no)
{
    return condition ? yes : no;
}

template <typename real>
SNN_FR_INLINE real keep(bool condition, real value)
{
    return condition ? value : real(0);
}

template <typename real>
SNN_FR_INLINE int count(bool condition, int yes, int no)
{
    return condition ? yes : no;
}

// Whether the gate is open.
template <typename real>
SNN_FR_INLINE bool opens(int left)
{
    return left <= 0;
}

#else

// Conditions are words of all ones or all zeros, and choosing is bitwise: a step is then a straight line of
// operations, which every compiler vectorises. (Conditional expressions become jumps before the vectoriser
// sees them.)
template <typename real>
using Mask = typename Word<real>::type;

template <typename real>
SNN_FR_INLINE Mask<real> mask(bool condition)
{
    return -Mask<real>(condition);
}

template <typename real>
SNN_FR_INLINE Mask<real> unless(Mask<real> condition)
{
    return ~condition;
}

template <typename real>
SNN_FR_INLINE real choose(Mask<real> condition, real yes, real no)
{
    Bits<real> a, b;
    a.value = yes;
    b.value = no;
    a.bits = (a.bits & condition) | (b.bits & ~condition);
    return a.value;
}

template <typename real>
SNN_FR_INLINE real keep(Mask<real> condition, real value)
{
    Bits<real> a;
    a.value = value;
    a.bits &= condition;
    return a.value;
}

template <typename real>
SNN_FR_INLINE int count(Mask<real> condition, int yes, int no)
{
    const int chosen = int(condition);
    return (yes & chosen) | (no & ~chosen);
}

// Whether the gate is open, that is left <= 0: the sign of left - 1.
template <typename real>
SNN_FR_INLINE Mask<real> opens(int left)
{
    return (left - 1) >> 31;
}

#endif

// What all neurons of a call share.
template <typename real>
struct Rules {
    int period;
    Mask<real> integrate;  // the input is integrated while refractory
    Mask<real> inclusive;  // a membrane at the threshold fires
    Mask<real> attached;   // the reset carries the gradient of its spike
    real v_reset;
};

template <typename real>
struct Neuron {
    real decay;  // beta or tau
    real rate;   // 1 / decay
    real threshold;
    real magnitude;
    real spared;  // the value at the threshold or above it that does not fire, if any
};

// `inclusive` is applied by choosing what not to be equal to: NaN equals nothing.
template <typename real>
SNN_FR_INLINE real spared(real threshold, const Rules<real>& rules)
{
    return choose(rules.inclusive, real(0) / real(0), threshold);
}

template <typename real>
struct Step {
    real from;  // the membrane that is charged: v[t-1], unless a delayed reset has replaced it
    real h;     // the charged membrane
    Mask<real> open, fired;
    Mask<real> pending;  // a delayed reset lands in this step
};

SNN_FR_INLINE constexpr bool resets_at_once(int reset) { return reset == SUBTRACT || reset == ZERO; }
SNN_FR_INLINE constexpr bool resets_later(int reset)
{
    return reset == SUBTRACT_LATER || reset == ZERO_LATER;
}

template <typename real>
SNN_FR_INLINE Mask<real> crosses(real v, const Neuron<real>& cell)
{
    return mask<real>((v >= cell.threshold) & (v != cell.spared));
}

// What the state before a step decides.
template <int RESET, typename real>
SNN_FR_INLINE Step<real> enter(const Neuron<real>& cell, const Rules<real>& rules, real v, int left)
{
    Step<real> step{v, v, opens<real>(left), 0, 0};
    if constexpr (resets_later(RESET)) {
        const Mask<real> timed = mask<real>(rules.period > 0);
        step.pending = (timed & mask<real>(left == rules.period)) | (unless<real>(timed) & crosses(v, cell));
    }
    if constexpr (RESET == ZERO_LATER) step.from = choose(step.pending, rules.v_reset, v);
    return step;
}

// Takes v and the steps left blocked from t - 1 to t.
template <int CHARGE, int RESET, typename real>
SNN_FR_INLINE Step<real> advance(real x, const Neuron<real>& cell, const Rules<real>& rules, real& v,
                                 int& left)
{
    Step<real> step = enter<RESET>(cell, rules, v, left);
    real charged;
    if constexpr (CHARGE == BETA)
        charged = cell.decay * step.from + x;
    else if constexpr (CHARGE == TAU_INPUT)
        charged = step.from + (x - (step.from - rules.v_reset)) / cell.decay;
    else
        charged = step.from - (step.from - rules.v_reset) / cell.decay + x;
    step.h = choose(step.open | rules.integrate, charged, step.from);
    if constexpr (RESET == SUBTRACT_LATER) step.h = choose(step.pending, step.h - cell.magnitude, step.h);

    step.fired = crosses(step.h, cell) & step.open;
    v = step.h;
    if constexpr (RESET == SUBTRACT) v = choose(step.fired, step.h - cell.magnitude, step.h);
    if constexpr (RESET == ZERO) v = choose(step.fired, rules.v_reset, step.h);
    const int next = left - 1, waited = next > 0 ? next : 0;
    left = count<real>(step.fired, rules.period, waited);
    return step;
}

// Cotangents of what a step gives out.
template <typename real>
struct Outputs {
    real spike;
    real membrane;
    real charged;
};

// Takes dL/dv from t to t - 1 (`carry`) and returns dL/dx_t. `slope` is ds_t/dh_t, zero where the gate is
// closed. FULL: heeds all of `given`, not the spike's alone, and inputs that were ignored, and adds to `sum`,
// the gradients of the parameters.
template <int CHARGE, int RESET, bool FULL, typename real>
SNN_FR_INLINE real retreat(const Step<real>& step, real slope, real x, const Outputs<real>& given,
                           const Neuron<real>& cell, const Rules<real>& rules, real& carry, Neuron<real>& sum)
{
    real into_v = carry;
    if constexpr (FULL) into_v = into_v + given.membrane;
    real into_spike = given.spike, kept = into_v;
    if constexpr (RESET == SUBTRACT) into_spike = given.spike - keep(rules.attached, into_v * cell.magnitude);
    if constexpr (RESET == ZERO) {
        into_spike = given.spike + keep(rules.attached, into_v * (rules.v_reset - step.h));
        kept = keep(unless<real>(step.fired), into_v);
    }
    const real by_spike = into_spike * slope;
    real into_h = kept + by_spike;
    if constexpr (FULL) {
        into_h = into_h + given.charged;
        sum.threshold = sum.threshold - by_spike;
        if constexpr (RESET == SUBTRACT) sum.magnitude = sum.magnitude - keep(step.fired, into_v);
        if constexpr (RESET == SUBTRACT_LATER) sum.magnitude = sum.magnitude - keep(step.pending, into_h);
    }

    const Mask<real> listened = FULL ? Mask<real>(step.open | rules.integrate) : mask<real>(true);
    const real into_charge = keep(listened, into_h);
    real into_x = into_charge, through;
    if constexpr (CHARGE == BETA) {
        through = into_charge * cell.decay;
        if constexpr (FULL) sum.decay = sum.decay + into_charge * step.from;
    } else {
        const real scaled = into_charge * cell.rate;
        through = into_charge - scaled;
        if constexpr (CHARGE == TAU_INPUT) into_x = scaled;
        if constexpr (FULL) {
            const real leak = step.from - rules.v_reset;
            sum.decay = sum.decay + scaled * cell.rate * (CHARGE == TAU_INPUT ? leak - x : leak);
        }
    }
    carry = choose(listened, through, into_h);
    if constexpr (RESET == ZERO_LATER) carry = keep(unless<real>(step.pending), carry);
    return into_x;
}

// A surrogate with its constants worked out.
template <typename real>
struct Surrogate {
    int kind;
    real scale;
    real steepness;
};

template <typename real>
SNN_FR_INLINE Surrogate<real> surrogate(int kind, double alpha)
{
    const double pi = 3.14159265358979323846, root_pi = 1.77245385090551602730;
    double scale = 1, steepness = 1;
    switch (kind) {
        case ATAN: scale = alpha / 2, steepness = pi / 2 * alpha; break;
        case SIGMOID: scale = alpha, steepness = alpha; break;
        case FAST_SIGMOID: steepness = alpha; break;
        case SUPER_SPIKE: scale = alpha; break;
        case RECTANGLE: scale = alpha, steepness = 1 / (2 * alpha); break;
        case SOFT_SIGN: scale = alpha / 2, steepness = alpha; break;
        case ERF: scale = alpha / root_pi, steepness = alpha; break;
        case PIECEWISE_QUADRATIC: scale = alpha, steepness = alpha * alpha; break;
        case PIECEWISE_EXP: scale = alpha / 2, steepness = alpha; break;
        default: break;
    }
    return {kind, real(scale), real(steepness)};
}

// exp(x) for x <= 0: x = n log 2 + r with |r| <= log(2) / 2, a Taylor polynomial in r, and 2^n put together
// from its bits. Adding `round` rounds to a whole number and leaves it in the lowest bits.
SNN_FR_INLINE float exp_negative(float x)
{
    const float round = 12582912.0f;
    Bits<float> shifted, power;
    shifted.value = x * 1.44269504f + round;
    const float n = shifted.value - round;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    power.bits = (shifted.bits - 0x4b400000 + 127) << 23;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return keep(mask<float>(!(x < -87.0f)), p * power.value);
}

SNN_FR_INLINE double exp_negative(double x)
{
    const double round = 6755399441055744.0;
    Bits<double> shifted, power;
    shifted.value = x * 1.4426950408889634 + round;
    const double n = shifted.value - round;
    const double r = (x - n * 6.93147180369123816490e-1) - n * 1.90821492927058770002e-10;
    power.bits = (shifted.bits - 0x4338000000000000 + 1023) << 52;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    return keep(mask<double>(!(x < -708.0)), p * power.value);
}

// Surrogate derivative at x, the distance from the threshold.
template <typename real>
SNN_FR_INLINE real derivative(const Surrogate<real>& by, real x)
{
    const real distance = x < 0 ? -x : x;
    switch (by.kind) {
        case ATAN: {
            const real z = by.steepness * x;
            return SNN_FR_QUOTIENT(by.scale, 1 + z * z);
        }
        case SIGMOID: {
            const real e = exp_negative(-(by.steepness * distance));
            return SNN_FR_QUOTIENT(by.scale * e, (1 + e) * (1 + e));
        }
        case FAST_SIGMOID:
        case SUPER_SPIKE:
        case SOFT_SIGN: {
            const real z = 1 + by.steepness * distance;
            return SNN_FR_QUOTIENT(by.scale, z * z);
        }
        case TRIANGLE:
        case PIECEWISE_QUADRATIC: {
            const real height = by.scale - by.steepness * distance;
            return height < 0 ? real(0) : height;
        }
        case RECTANGLE: return distance < by.steepness ? by.scale : real(0);
        case ERF: {
            const real z = by.steepness * x;
            return by.scale * exp_negative(-(z * z));
        }
        case PIECEWISE_EXP: return by.scale * exp_negative(-(by.steepness * distance));
        case STRAIGHT_THROUGH: return 1;
        default: return 0;
    }
}

}  // namespace snn_fr

#endif
