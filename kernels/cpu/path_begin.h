// Opens the namespace and the instruction set of the path being compiled. Include it last, path_end.h at the end of the
// file. The target is set here and not on the command line, so that inline functions of other headers stay baseline
// code: the linker keeps one copy of each for the whole binary.
#if defined(MOECTL_CPU_PATH_avx512)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx2,fma,f16c,bmi2,prefer-vector-width=512")
namespace moectl::cpu_avx512 {
#else
namespace moectl::cpu_portable {
#endif
