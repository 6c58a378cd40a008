// Closes the namespace (and the target options) that path_begin.h opened; included last in each kernels/cpu/*.cpp.
#if defined(MOECTL_CPU_PATH_avx512)
}  // namespace moectl::cpu_avx512
#pragma GCC pop_options
#else
}  // namespace moectl::cpu_portable
#endif
