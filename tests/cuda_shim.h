// Runs a CUDA kernel on the CPU: the same source, by the host compiler. Threads of a block run one after another in
// random order. Where the source has barriers, every thread is a fiber that runs until its next barrier, and a
// barrier that not all threads reach is an error. Shared memory is poisoned when a block starts, and what is written
// just behind its end is an error. So is a misaligned access, and one that goes past the caches (__ldcs, __ldg, __stcs)
// and past the tensors. Speed, coalescing and memory order within a warp are not modelled.
#ifndef CUDA_SHIM_H
#define CUDA_SHIM_H

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("shim_shared")))
#define SNN_FR_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(shim::dynamic_shared())

struct dim3 {
    unsigned int x = 1, y = 1, z = 1;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

// what lies in the section of __shared__ variables, if there are any
extern "C" char __start_shim_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shim_shared[] __attribute__((weak, visibility("hidden")));

namespace shim {

enum Wait { RUNS, BLOCK, SYNC, SHUFFLE, BALLOT, DONE };
constexpr std::size_t STACK = std::size_t(256) << 10;
constexpr unsigned char POISON = 0xff;  // NaN in every floating-point type
constexpr std::size_t GUARD = 4096;     // bytes behind the shared memory of a block

// A vector that only grows: the standard one's header takes longer to compile than a kernel.
template <typename T>
struct Array {
    static_assert(std::is_trivially_copyable<T>::value, "items are moved as bytes");
    T* items = nullptr;
    std::size_t count = 0, room = 0;

    void resize(std::size_t n)
    {
        if (n > room) {
            items = static_cast<T*>(std::realloc(items, n * sizeof(T)));
            std::memset(items + room, 0, (n - room) * sizeof(T));
            room = n;
        }
        count = n;
    }
    std::size_t size() const { return count; }
    T* data() { return items; }
    T& operator[](std::size_t i) { return items[i]; }
    T* begin() { return items; }
    T* end() { return items + count; }
};

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    char* stack;
    bool started;
    dim3 thread;
    Wait wait;
    int line;  // of the barrier it waits at
    unsigned int mask;
    int source;  // the lane it reads
    std::uint64_t value, result;
};

struct Block {
    Array<Fiber> fibers;
    Array<int> order;
    Array<char> shared;
    jmp_buf scheduler;
    int current = -1;  // no fiber runs
    std::uint64_t random = 0x9e3779b97f4a7c15;
    void (*body)(const void*) = nullptr;
    const void* arguments = nullptr;
    const std::uintptr_t* ranges = nullptr;  // begin and end of each tensor
    int tensors = 0;
    char error[256] = "";
};
static Block block;

static inline void* dynamic_shared() { return block.shared.data(); }

[[noreturn]] static inline void fail(const char* what, long where)
{
    std::snprintf(block.error, sizeof block.error, "block (%u, %u, %u), thread (%u, %u, %u): %s (%ld)", blockIdx.x,
                  blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, what, where);
    _longjmp(block.scheduler, 1);
}

static inline void shuffle_order()
{
    for (std::size_t i = block.order.size(); i > 1; --i) {
        block.random ^= block.random << 13, block.random ^= block.random >> 7, block.random ^= block.random << 17;
        std::swap(block.order[i - 1], block.order[block.random % i]);
    }
}

static inline Fiber& wait(Wait kind, int line, unsigned int mask = 0xffffffff)
{
    if (block.current < 0) fail("a barrier in a source that was taken to have none, line", line);
    Fiber& fiber = block.fibers[block.current];
    fiber.wait = kind;
    fiber.line = line;
    fiber.mask = mask;
    if (!(mask >> (block.current & 31) & 1)) fail("the mask of a warp barrier leaves its own lane out, line", line);
    if (_setjmp(fiber.at) == 0) _longjmp(block.scheduler, 1);
    return fiber;
}

template <typename T>
static inline T exchange(T value, int source, unsigned int mask, int line)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
    Fiber& fiber = block.fibers[block.current < 0 ? 0 : block.current];
    std::memcpy(&fiber.value, &value, sizeof value);
    fiber.source = source;
    std::memcpy(&value, &wait(SHUFFLE, line, mask).result, sizeof value);
    return value;
}

static inline int lane() { return block.current & 31; }

template <typename T>
static inline T shuffle(int line, unsigned int mask, T value, int source, int width = 32)
{
    return exchange(value, (lane() & ~(width - 1)) + (source & (width - 1)), mask, line);
}

template <typename T>
static inline T shuffle_up(int line, unsigned int mask, T value, unsigned int by, int width = 32)
{
    const int from = lane() - int(by);
    return exchange(value, from < (lane() & ~(width - 1)) ? lane() : from, mask, line);
}

template <typename T>
static inline T shuffle_down(int line, unsigned int mask, T value, unsigned int by, int width = 32)
{
    const int from = lane() + int(by);
    return exchange(value, from >= (lane() & ~(width - 1)) + width ? lane() : from, mask, line);
}

template <typename T>
static inline T shuffle_xor(int line, unsigned int mask, T value, int by, int width = 32)
{
    const int from = lane() ^ by;
    return exchange(value, from >= (lane() & ~(width - 1)) + width ? lane() : from, mask, line);
}

static inline unsigned int ballot(int line, unsigned int mask, bool vote)
{
    block.fibers[block.current < 0 ? 0 : block.current].value = vote;
    return static_cast<unsigned int>(wait(BALLOT, line, mask).result);
}

static inline void fiber_main()
{
    block.body(block.arguments);
    block.fibers[block.current].wait = DONE;
    _longjmp(block.scheduler, 1);
}

// Runs a thread to its next barrier or to its end.
static void resume(int i)
{
    Fiber& fiber = block.fibers[i];
    block.current = i;
    threadIdx = fiber.thread;
    if (_setjmp(block.scheduler) == 0) {
        if (fiber.started) _longjmp(fiber.at, 1);
        fiber.started = true;
        setcontext(&fiber.start);
    }
    block.current = -1;
}

// Lanes of a warp that wait for each other with one mask at one place go on, if they are all there.
static bool release_lanes(int i)
{
    Fiber& first = block.fibers[i];
    const int warp = i & ~31, n = int(block.fibers.size());
    unsigned int votes = 0;
    for (int l = 0; l < 32 && warp + l < n; ++l) {
        const Fiber& other = block.fibers[warp + l];
        if (!(first.mask >> l & 1)) continue;
        if (other.wait != first.wait || other.mask != first.mask || other.line != first.line) return false;
        votes |= unsigned(other.value != 0) << l;
    }
    for (int l = 0; l < 32 && warp + l < n; ++l) {
        Fiber& other = block.fibers[warp + l];
        if (!(first.mask >> l & 1)) continue;
        if (other.wait == BALLOT) other.result = votes;
        if (other.wait == SHUFFLE) {
            const bool there = warp + other.source < n && (first.mask >> other.source & 1);
            std::memset(&other.result, POISON, sizeof other.result);
            if (there) other.result = block.fibers[warp + other.source].value;
        }
    }
    for (int l = 0; l < 32 && warp + l < n; ++l)
        if (first.mask >> l & 1) block.fibers[warp + l].wait = RUNS;
    return true;
}

static bool release_block()
{
    for (const Fiber& fiber : block.fibers)
        if (fiber.wait != BLOCK || fiber.line != block.fibers[0].line) return false;
    for (Fiber& fiber : block.fibers) fiber.wait = RUNS;
    return true;
}

static void run_fibers()
{
    const int n = int(block.fibers.size());
    for (int i = 0; i < n; ++i) {
        Fiber& fiber = block.fibers[i];
        if (!fiber.stack) fiber.stack = static_cast<char*>(std::malloc(STACK));
        fiber.wait = RUNS;
        fiber.started = false;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack;
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, fiber_main, 0);
    }
    for (;;) {
        shuffle_order();
        for (int i : block.order) {
            if (block.fibers[i].wait == RUNS) resume(i);
            if (block.error[0]) return;
        }
        bool released = release_block();
        int waiting = -1;
        for (int i = 0; i < n; ++i) {
            const Wait kind = block.fibers[i].wait;
            if (kind == SYNC || kind == SHUFFLE || kind == BALLOT) released |= release_lanes(i);
            if (block.fibers[i].wait != RUNS && block.fibers[i].wait != DONE) waiting = i;
        }
        if (released) continue;
        if (waiting < 0) return;
        threadIdx = block.fibers[waiting].thread;
        if (_setjmp(block.scheduler) == 0)
            fail("waits at a barrier that others do not reach, line", block.fibers[waiting].line);
        return;
    }
}

static void run_threads()
{
    if (_setjmp(block.scheduler) != 0) return;
    shuffle_order();
    for (int i : block.order) {
        threadIdx = block.fibers[i].thread;
        block.body(block.arguments);
    }
}

// All blocks of a grid. Returns what went wrong, or null.
template <typename Arguments>
static const char* launch(void (*)(Arguments), void (*body)(const void*), const void* arguments, const std::uintptr_t* ranges,
                          int tensors, const unsigned int* grid, const unsigned int* threads, std::size_t shared,
                          bool fibers)
{
    static_assert(std::is_trivially_copyable<Arguments>::value, "arguments are passed by value");
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads[0], threads[1], threads[2]};
    block.body = body;
    block.arguments = arguments;
    block.ranges = ranges;
    block.tensors = tensors;
    block.current = -1;
    block.error[0] = 0;
    block.fibers.resize(std::size_t(threads[0]) * threads[1] * threads[2]);
    block.order.resize(block.fibers.size());
    block.shared.resize(shared + GUARD);
    for (std::size_t i = 0; i < block.fibers.size(); ++i) {
        block.order[i] = int(i);
        block.fibers[i].thread = {unsigned(i % threads[0]), unsigned(i / threads[0] % threads[1]),
                                  unsigned(i / threads[0] / threads[1])};
    }
    for (unsigned int z = 0; z < grid[2]; ++z)
        for (unsigned int y = 0; y < grid[1]; ++y)
            for (unsigned int x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, z};
                std::memset(block.shared.data(), POISON, block.shared.size());
                if (__start_shim_shared) std::memset(__start_shim_shared, POISON, __stop_shim_shared - __start_shim_shared);
                fibers ? run_fibers() : run_threads();
                for (std::size_t i = shared; i < block.shared.size() && !block.error[0]; ++i)
                    if ((unsigned char)block.shared[i] != POISON)
                        std::snprintf(block.error, sizeof block.error, "block (%u, %u, %u) wrote beyond its shared memory",
                                      x, y, z);
                if (block.error[0]) return block.error;
            }
    return nullptr;
}

// Reads and writes past the cache are of tensors alone.
template <typename T>
static inline T* checked(T* address)
{
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(address);
    if (first % sizeof(T)) fail("a misaligned access of bytes", long(sizeof(T)));
    for (int i = 0; i < block.tensors; ++i)
        if (first >= block.ranges[2 * i] && first + sizeof(T) <= block.ranges[2 * i + 1]) return address;
    fail("an access outside of all tensors, of bytes", long(sizeof(T)));
}

}  // namespace shim

#define __syncthreads() (void)shim::wait(shim::BLOCK, __LINE__)
#define __syncwarp(...) (void)shim::wait(shim::SYNC, __LINE__, ##__VA_ARGS__)
#define __shfl_sync(...) shim::shuffle(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) shim::shuffle_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) shim::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) shim::shuffle_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, vote) shim::ballot(__LINE__, mask, (vote) != 0)
#define __any_sync(mask, vote) int(__ballot_sync(mask, vote) != 0)
#define __all_sync(mask, vote) int(__ballot_sync(mask, !(vote)) == 0)

template <typename T>
static inline T __ldcs(const T* from)
{
    return *shim::checked(from);
}
template <typename T>
static inline T __ldg(const T* from)
{
    return *shim::checked(from);
}
template <typename T>
static inline void __stcs(T* to, T value)
{
    *shim::checked(to) = value;
}

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

static inline int __popc(unsigned int x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

template <typename T>
static inline T min(T a, T b)
{
    return b < a ? b : a;
}
template <typename T>
static inline T max(T a, T b)
{
    return a < b ? b : a;
}

#endif
