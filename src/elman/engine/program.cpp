// Runs a program, and the small jobs that programs have beside kernels and products; see program.py.

#include <stdint.h>
#include <string.h>
#include <time.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

enum : int64_t { OFFSET_BITS = 44, ZERO_OFFSET = (int64_t)1 << 43 };

struct Program {
    const int64_t *words;      // of all jobs; addresses are relative
    int64_t count;
    const int64_t *addresses;  // where among the words addresses stand
    int64_t address_count;
    const int64_t *jobs;       // of each a function, and where among the words its argument starts
    int64_t job_count;
    const int64_t *regions;    // where each begins
    int64_t *copy;             // [count]: memory for the words as they run
    int64_t *spent;            // null, or [job_count]: receives nanoseconds
};

static int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

EXPORT int elman_program(const Program *program) {
    const Program &p = *program;
    memcpy(p.copy, p.words, p.count * sizeof(int64_t));
    for (int64_t i = 0; i < p.address_count; ++i) {
        int64_t &word = p.copy[p.addresses[i]];
        if (word) word = p.regions[word >> OFFSET_BITS] + (word & (2 * ZERO_OFFSET - 1)) - ZERO_OFFSET;
    }
    for (int64_t i = 0; i < p.job_count; ++i) {
        const int64_t start = p.spent ? now() : 0;
        ((int (*)(void *))p.jobs[2 * i])(p.copy + p.jobs[2 * i + 1]);
        if (p.spent) p.spent[i] = now() - start;
    }
    return 0;
}

struct Copy {
    char *to;
    const char *from;
    int64_t bytes;
};
EXPORT int elman_copy(const Copy *job) {
    memcpy(job->to, job->from, job->bytes);
    return 0;
}

struct Fill {
    real *to;
    int64_t count;
    double value;
};
EXPORT int elman_fill(const Fill *job) {
    if (job->value == 0) memset(job->to, 0, job->count * sizeof(real));
    else
        for (int64_t i = 0; i < job->count; ++i) job->to[i] = (real)job->value;
    return 0;
}

// Rows of a matrix by their numbers, one after the other.
struct Gather {
    int64_t count, width, threads;
    const real *from;        // rows of `width`
    const int64_t *numbers;  // [count]; negative: `otherwise`
    const real *otherwise;   // [width]
    real *to;                // [count, width]
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread_number)();
    int (*team_size)();
};
static void gather_share(void *argument) {
    const Gather &g = *(const Gather *)argument;
    const int64_t team = g.threads > 1 ? g.team_size() : 1, thread = g.threads > 1 ? g.thread_number() : 0;
    for (int64_t i = g.count * thread / team; i < g.count * (thread + 1) / team; ++i) {
        const real *row = g.numbers[i] < 0 ? g.otherwise : g.from + g.numbers[i] * g.width;
        memcpy(g.to + i * g.width, row, g.width * sizeof(real));
    }
}
EXPORT int elman_gather(Gather *job) {
    if (job->threads > 1) job->parallel(gather_share, job, (unsigned)job->threads, 0);
    else gather_share(job);
    return 0;
}
