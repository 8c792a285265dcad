// What the CUDA kernels share apart from their equations: element types, and elements that enter and leave memory.
// One of SNN_FR_FLOAT32, SNN_FR_FLOAT64, SNN_FR_FLOAT16 and SNN_FR_BFLOAT16 is defined. NVRTC has no headers of its
// own, so on a device nothing is included; where a host compiler reads this (tests/cuda_shim.h), types and
// conversions are those of the CPU kernels.
#ifndef SNN_FR_DEVICE_H
#define SNN_FR_DEVICE_H

#ifndef __CUDACC__
#include "element.h"
#endif

#define SNN_FR_INLINE static __device__ __forceinline__
#define SNN_FR_PREDICATES
#define SNN_FR_QUOTIENT(a, b) snn_fr::quotient(a, b)

// Dynamic shared memory of a kernel, as an array of `type`.
#ifndef SNN_FR_DYNAMIC_SHARED
#define SNN_FR_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

namespace snn_fr {

#ifdef __CUDACC__

typedef long long index;

struct float16 {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
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

SNN_FR_INLINE float widen(float16 x)
{
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

SNN_FR_INLINE float widen(bfloat16 x) { return __uint_as_float((unsigned int)(x.bits) << 16); }

// To the nearest, ties to even.
SNN_FR_INLINE void narrow(float x, float16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }

SNN_FR_INLINE void narrow(float x, bfloat16& out)
{
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
    const unsigned int bits = __float_as_uint(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = (unsigned short)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded);
#endif
}

#endif

// a / b for b >= 1, within two units in the last place: an exact one takes some twenty instructions, and branches.
SNN_FR_INLINE float quotient(float a, float b)
{
#ifdef __CUDACC__
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    return a * inverse;
#else
    return a / b;
#endif
}
SNN_FR_INLINE double quotient(double a, double b) { return a / b; }

SNN_FR_INLINE float widen(float x) { return x; }
SNN_FR_INLINE double widen(double x) { return x; }
SNN_FR_INLINE void narrow(float x, float& out) { out = x; }
SNN_FR_INLINE void narrow(double x, double& out) { out = x; }

// Elements that are read or written once, and need not stay in a cache.
SNN_FR_INLINE float read_once(const float* from) { return __ldcs(from); }
SNN_FR_INLINE double read_once(const double* from) { return __ldcs(from); }
SNN_FR_INLINE int read_once(const int* from) { return __ldcs(from); }
SNN_FR_INLINE unsigned char read_once(const unsigned char* from) { return __ldcs(from); }
SNN_FR_INLINE float16 read_once(const float16* from) { return {__ldcs(&from->bits)}; }
SNN_FR_INLINE bfloat16 read_once(const bfloat16* from) { return {__ldcs(&from->bits)}; }

SNN_FR_INLINE void write_once(float* to, float x) { __stcs(to, x); }
SNN_FR_INLINE void write_once(double* to, double x) { __stcs(to, x); }
SNN_FR_INLINE void write_once(int* to, int x) { __stcs(to, x); }
SNN_FR_INLINE void write_once(unsigned char* to, unsigned char x) { __stcs(to, x); }
SNN_FR_INLINE void write_once(float16* to, float16 x) { __stcs(&to->bits, x.bits); }
SNN_FR_INLINE void write_once(bfloat16* to, bfloat16 x) { __stcs(&to->bits, x.bits); }

// What a thread reads and writes at once: SNN_FR_LANES neighbours, 1 or, in half precision, 2. They stay packed
// until they are needed, so that what is on its way from memory takes as few registers as can be.
#ifndef SNN_FR_LANES
#define SNN_FR_LANES 1
#endif
constexpr int LANES = SNN_FR_LANES;

#if SNN_FR_LANES == 2
typedef unsigned int pack;

SNN_FR_INLINE pack read_pack(const io* from) { return __ldcs(reinterpret_cast<const pack*>(from)); }

SNN_FR_INLINE real lane_of(pack both, int lane)
{
    io x;
    x.bits = static_cast<unsigned short>(both >> 16 * lane);
    return widen(x);
}

SNN_FR_INLINE void write_pack(io* to, const real (&lanes)[LANES])
{
    io low, high;
    narrow(lanes[0], low);
    narrow(lanes[1], high);
    __stcs(reinterpret_cast<pack*>(to), pack(low.bits) | pack(high.bits) << 16);
}
#else
typedef io pack;

SNN_FR_INLINE pack read_pack(const io* from) { return read_once(from); }

SNN_FR_INLINE real lane_of(pack x, int) { return widen(x); }

SNN_FR_INLINE void write_pack(io* to, const real (&lanes)[LANES])
{
    io x;
    narrow(lanes[0], x);
    write_once(to, x);
}
#endif

}  // namespace snn_fr

#endif
