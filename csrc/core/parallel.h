/* parallel.h - the only place that knows OpenMP. The number of threads is always an argument: the
 * host program's own OpenMP settings are neither read nor changed, and one thread never enters a
 * team: a forked child of a process that has had one would wait for threads that it has not got, a
 * team of one costs as much as a small product, and where it stands around other teams, OpenMP
 * makes their threads anew each time, a hundred microseconds and more. */
#ifndef SMM_PARALLEL_H
#define SMM_PARALLEL_H

#include <stddef.h>

#ifdef _OPENMP
#include <omp.h>
#define SMM_PRAGMA(text) _Pragma(#text)
#define SMM_TEAM(threads) SMM_PRAGMA(omp parallel num_threads(threads))
#define SMM_THREAD ((size_t)omp_get_thread_num())
#define SMM_THREADS ((size_t)omp_get_num_threads())
#else
#define SMM_TEAM(threads)
#define SMM_THREAD ((size_t)0)
#define SMM_THREADS ((size_t)1)
#endif

/* Where the tasks of part i of `parts` begin. */
static inline size_t smm_part(size_t tasks, size_t i, size_t parts) { return tasks * i / parts; }

/* call, for each i < tasks; in it, `thread` < threads is the number of the thread that is at work.
 * A thread's tasks lie side by side: over the same tasks, what it has left in its caches in one
 * region is there in the next. */
#define SMM_PARALLEL(threads, tasks, i, thread, call)                                             \
    do {                                                                                          \
        const size_t smm_tasks = (tasks);                                                         \
        const int smm_threads = (int)(threads);                                                   \
        if (smm_threads > 1) {                                                                    \
            SMM_TEAM(smm_threads) {                                                               \
                const size_t thread = SMM_THREAD,                                                 \
                             smm_end = smm_part(smm_tasks, thread + 1, SMM_THREADS);              \
                for (size_t i = smm_part(smm_tasks, thread, SMM_THREADS); i < smm_end; i++) call; \
            }                                                                                     \
        } else {                                                                                  \
            const size_t thread = 0;                                                              \
            (void)thread;                                                                         \
            for (size_t i = 0; i < smm_tasks; i++) call;                                          \
        }                                                                                         \
    } while (0)

#endif
