// How a job's work is shared out among torch's threads.

#pragma once
#include "vectors.h"

// torch's own functions; see `Parallel`.
struct Pool {
    Parallel parallel;
    int (*thread_number)();
    int (*team_size)();
};

// Runs SHARE(job, thread, team) on each thread; the runtime may give fewer than the job's `threads`.
template <class Job, void (*SHARE)(const Job &, int64_t, int64_t)> static void share_of(void *argument) {
    const Job &job = *(const Job *)argument;
    const bool alone = job.threads < 2;
    SHARE(job, alone ? 0 : job.pool.thread_number(), alone ? 1 : job.pool.team_size());
}
template <class Job, void (*SHARE)(const Job &, int64_t, int64_t)> static int shared_out(Job *job) {
    if (job->threads > 1) job->pool.parallel(share_of<Job, SHARE>, job, (unsigned)job->threads, 0);
    else share_of<Job, SHARE>(job);
    return 0;
}
