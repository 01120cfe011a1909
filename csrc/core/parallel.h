/* parallel.h - the only place that knows OpenMP. The number of threads is always an argument: the host program's own OpenMP
 * settings are neither read nor changed, and one thread never enters a team (a forked child of a process that has had one
 * would wait for threads that it has not got). A loop whose body opens teams stands in no region, not even one of a single
 * thread: OpenMP makes the threads of nested teams anew each time, a hundred microseconds and more. */
#ifndef SMM_PARALLEL_H
#define SMM_PARALLEL_H

#ifdef _OPENMP
#include <omp.h>
#define SMM_PRAGMA(text) _Pragma(#text)
#define SMM_PARALLEL_FOR(threads) SMM_PRAGMA(omp parallel for schedule(static, 1) num_threads(threads) if ((threads) > 1))
#define SMM_THREAD ((size_t)omp_get_thread_num())
#else
#define SMM_PARALLEL_FOR(threads) (void)(threads);
#define SMM_THREAD ((size_t)0)
#endif

#endif
