// A kernel source and an entry for each of its kernels: built by cuda_on_cpu.py with SHIM_SOURCE, the path of the
// source in quotes, SHIM_KERNELS, an X(name) for each kernel, and SHIM_FIBERS, whether there are barriers.
#include "cuda_shim.h"
#include SHIM_SOURCE

namespace shim {
template <typename Arguments>
static Arguments parameter(void (*)(Arguments), const void* arguments)
{
    return *static_cast<const Arguments*>(arguments);
}
}  // namespace shim

#define X(name)                                                                                                   \
    extern "C" const char* shim_##name(const void* arguments, const std::uintptr_t* ranges, int tensors,          \
                                       const unsigned int* grid, const unsigned int* threads, std::size_t shared) \
    {                                                                                                             \
        return shim::launch(                                                                                      \
            &snn_fr::name, [](const void* a) { snn_fr::name(shim::parameter(&snn_fr::name, a)); }, arguments,     \
            ranges, tensors, grid, threads, shared, SHIM_FIBERS);                                                 \
    }
SHIM_KERNELS
