// Types of elements, and conversions between them in C++ for any processor. One of SNN_FR_FLOAT32, SNN_FR_FLOAT64,
// SNN_FR_FLOAT16 and SNN_FR_BFLOAT16 is defined.
#ifndef SNN_FR_ELEMENT_H
#define SNN_FR_ELEMENT_H

#include <cstdint>
#include <cstring>

namespace snn_fr {

typedef std::int64_t index;

struct float16 {
    std::uint16_t bits;
};
struct bfloat16 {
    std::uint16_t bits;
};

// `io` is the type of inputs and outputs, `real` that of the state and of all arithmetic.
#if defined(SNN_FR_FLOAT64)
typedef double io;
typedef double real;
#elif defined(SNN_FR_FLOAT16)
typedef float16 io;
typedef float real;
#elif defined(SNN_FR_BFLOAT16)
typedef bfloat16 io;
typedef float real;
#else
typedef float io;
typedef float real;
#endif

static inline std::uint32_t bits_of(float x)
{
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(std::uint32_t bits)
{
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float widen(bfloat16 x) { return float_of(std::uint32_t(x.bits) << 16); }

// Written without branches: compilers would keep them, and not vectorise.
static inline std::uint32_t select(bool condition, std::uint32_t yes, std::uint32_t no)
{
    const std::uint32_t mask = -std::uint32_t(condition);
    return (yes & mask) | (no & ~mask);
}

static inline float widen(float16 x)
{
    const std::uint32_t magnitude = std::uint32_t(x.bits & 0x7fff) << 13;
    const std::uint32_t normal = magnitude + 0x38000000;  // the exponent's bias goes from 15 to 127
    const std::uint32_t subnormal = bits_of(float_of(magnitude + 0x38800000) - float_of(0x38800000));
    const std::uint32_t finite = select(magnitude < 0x00800000, subnormal, normal);
    const std::uint32_t value = select(magnitude < 0x0f800000, finite, magnitude | 0x7f800000);
    return float_of(value | (std::uint32_t(x.bits & 0x8000) << 16));
}

// To the nearest, ties to even.
static inline void narrow(float x, bfloat16& out)
{
    const std::uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = std::uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

static inline void narrow(float x, float16& out)
{
    const std::uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
    const std::uint32_t normal = (magnitude - 0x38000000 + 0x0fff + ((magnitude >> 13) & 1)) >> 13;
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // ulp(0.5) is 2^-24
    const std::uint32_t finite = select(magnitude < 0x38800000, subnormal, normal);
    const std::uint32_t large = select(magnitude > 0x7f800000, 0x7e00, 0x7c00);
    out.bits = std::uint16_t(select(magnitude < 0x47800000, finite, large) | ((bits >> 16) & 0x8000));
}

}  // namespace snn_fr

#endif
