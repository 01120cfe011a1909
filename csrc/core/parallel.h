/* parallel.h - the only place that knows OpenMP. The number of threads is always an argument: the host program's own OpenMP
 * settings are neither read nor changed, and one thread never enters a team: a forked child of a process that has had one
 * would wait for threads that it has not got, a team of one costs as much as a small product, and where it stands around other
 * teams, OpenMP makes their threads anew each time, a hundred microseconds and more. */
#ifndef SMM_PARALLEL_H
#define SMM_PARALLEL_H

#include <stddef.h>

#ifdef _OPENMP
#include <omp.h>
#define SMM_PRAGMA(text) _Pragma(#text)
#define SMM_TEAM(threads) SMM_PRAGMA(omp parallel for schedule(static, 1) num_threads(threads))
#define SMM_THREAD ((size_t)omp_get_thread_num())
#else
#define SMM_TEAM(threads)
#define SMM_THREAD ((size_t)0)
#endif

/* call, for each i < tasks; in it, `thread` < threads is the number of the thread that is at work. */
#define SMM_PARALLEL(threads, tasks, i, thread, call)                        \
    do {                                                                     \
        const ptrdiff_t smm_tasks = (ptrdiff_t)(tasks);                      \
        const int smm_threads = (int)(threads);                              \
        if (smm_threads > 1) {                                               \
            SMM_TEAM(smm_threads)                                            \
            for (ptrdiff_t smm_task = 0; smm_task < smm_tasks; smm_task++) { \
                const size_t i = (size_t)smm_task, thread = SMM_THREAD;      \
                (void)thread;                                                \
                call;                                                        \
            }                                                                \
        } else {                                                             \
            for (ptrdiff_t smm_task = 0; smm_task < smm_tasks; smm_task++) { \
                const size_t i = (size_t)smm_task, thread = 0;               \
                (void)thread;                                                \
                call;                                                        \
            }                                                                \
        }                                                                    \
    } while (0)

#endif
