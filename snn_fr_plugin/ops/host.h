// What the CPU kernels share apart from their equations: rows that enter and leave memory.
#ifndef SNN_FR_HOST_H
#define SNN_FR_HOST_H

#include "element.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace snn_fr {

// Bytes of output from which stores bypass the cache.
constexpr index STREAM_FROM = index(16) << 20;

// The first elements of a row by an instruction made for it, and how many they are.
static inline int widen_groups(const bfloat16*, float*, int) { return 0; }
static inline int narrow_groups(const float*, bfloat16*, int) { return 0; }

static inline int widen_groups(const float16* from, float* to, int n)
{
    int i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i,
                         _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    (void)from, (void)to, (void)n;
    return i;
}

static inline int narrow_groups(const float* from, float16* to, int n)
{
    int i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    (void)from, (void)to, (void)n;
    return i;
}

// Row of n elements as `real`: where it lies if it needs no conversion, else in `buffer`.
static inline const real* read_row(const real* row, real*, int) { return row; }

template <typename half>
static inline const real* read_row(const half* __restrict row, real* __restrict buffer, int n)
{
    int i = widen_groups(row, buffer, n);
    for (; i < n; ++i) buffer[i] = widen(row[i]);
    return buffer;
}

// Copies bytes; with `stream`, whole cache lines go to memory without entering the cache. A thread that has
// streamed calls `finish_streaming` before it ends.
static inline void copy_bytes(void* to, const void* from, std::size_t bytes, bool stream)
{
#if defined(__SSE2__)
    if (stream) {
        char* out = static_cast<char*>(to);
        const char* in = static_cast<const char*>(from);
        std::size_t head = -reinterpret_cast<std::uintptr_t>(out) & 63;
        if (head > bytes) head = bytes;
        if (head) std::memcpy(out, in, head);
        out += head, in += head, bytes -= head;
        for (; bytes >= 64; out += 64, in += 64, bytes -= 64) {
#if defined(__AVX512F__)
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out), _mm512_loadu_si512(in));
#elif defined(__AVX__)
            const __m256i* line = reinterpret_cast<const __m256i*>(in);
            _mm256_stream_si256(reinterpret_cast<__m256i*>(out), _mm256_loadu_si256(line));
            _mm256_stream_si256(reinterpret_cast<__m256i*>(out) + 1, _mm256_loadu_si256(line + 1));
#else
            const __m128i* line = reinterpret_cast<const __m128i*>(in);
            for (int i = 0; i < 4; ++i)
                _mm_stream_si128(reinterpret_cast<__m128i*>(out) + i, _mm_loadu_si128(line + i));
#endif
        }
        if (bytes) std::memcpy(out, in, bytes);
        return;
    }
#endif
    (void)stream;
    std::memcpy(to, from, bytes);
}

static inline void finish_streaming()
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Where to compute a row of output: in its place, or in `buffer` if it is to be converted or streamed.
static inline real* begin_row(real* row, real* buffer, bool stream) { return stream ? buffer : row; }

template <typename half>
static inline real* begin_row(half*, real* buffer, bool)
{
    return buffer;
}

// Brings a row computed where `begin_row` said to its place.
static inline void end_row(real* row, const real* computed, int n, bool stream)
{
    if (computed != row) copy_bytes(row, computed, n * sizeof(real), stream);
}

template <typename half>
static inline void end_row(half* row, const real* __restrict computed, int n, bool stream)
{
    half line[64];
    for (int start = 0; start < n; start += 64) {
        const int count = n - start < 64 ? n - start : 64;
        int i = narrow_groups(computed + start, line, count);
        for (; i < count; ++i) narrow(computed[start + i], line[i]);
        copy_bytes(row + start, line, count * sizeof(half), stream);
    }
}

enum Use { READ, WRITE };

// Into the second-level cache: the first is full of what is being worked on.
template <Use USE = READ, typename element>
static inline void prefetch_row(const element* row, int n)
{
    const char* bytes = reinterpret_cast<const char*>(row);
    for (std::size_t i = 0; i < n * sizeof(element); i += 64) __builtin_prefetch(bytes + i, USE, 2);
}

}  // namespace snn_fr

#endif
