// Fresh memory, page by page.
#ifndef SNN_FR_PAGES_H
#define SNN_FR_PAGES_H

#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace snn_fr {

// Asks for huge pages behind a large output that is about to be written. The C library takes large blocks fresh from
// the system, and a fault for every 4 KiB of them costs more than the kernels do.
static inline void expect_writes(void* output, std::size_t bytes)
{
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t HUGE_PAGE = std::uintptr_t(2) << 20;
    if (bytes < 2 * HUGE_PAGE) return;
    const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(output);
    const std::uintptr_t first = (begin + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const std::uintptr_t last = (begin + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)output, (void)bytes;
#endif
}

}  // namespace snn_fr

#endif
