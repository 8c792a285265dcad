// What every kernel needs of a compiler: C++17 and, with OpenMP, a parallel loop served by the runtime in
// this process.
extern "C" int snn_fr_probe(int n, int threads)
{
    (void)threads;
    int sum = 0;
#ifdef _OPENMP
#pragma omp parallel for reduction(+ : sum) num_threads(threads) if (threads > 1)
#endif
    for (int i = 1; i <= n; ++i) {
        if constexpr (sizeof(int) >= 4) sum += i;
    }
    return sum;
}
