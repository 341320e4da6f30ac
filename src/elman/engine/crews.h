// Threads of a team that do several things at once: each of them is a crew's, and whatever it shares out it shares out among
// that crew. The first thread of a crew does the thing; the others wait for shares of it.

#pragma once
#include "pool.h"

struct alignas(128) Count { int64_t number; };

// Until it is so many.
INLINE void wait_for(const Count &count, int64_t number) {
    for (int looks = 0; __atomic_load_n(&count.number, __ATOMIC_ACQUIRE) < number;) wait_a_little(looks);
}

struct Crew {
    int64_t size, at_work;   // threads, and those of them that have a share of the work
    Count given;             // how many shares of work there have been
    void (*share)(void *);   // the last one; null: there are no more
    void *argument;
    Count *done;             // [size]: how many each thread has done
};

static thread_local Crew *crew;      // that the thread is in
static thread_local int place;       // of the thread in it

INLINE void give(Crew &c, void (*share)(void *), void *argument) {
    c.share = share;
    c.argument = argument;
    __atomic_store_n(&c.given.number, c.given.number + 1, __ATOMIC_RELEASE);
}

// What a crew's jobs have in place of the functions of torch's pool.
static void crew_parallel(void (*share)(void *), void *argument, unsigned threads, unsigned) {
    Crew &c = *crew;
    c.at_work = threads < c.size ? threads : c.size;
    give(c, share, argument);
    share(argument);
    for (int64_t i = 1; i < c.size; ++i) wait_for(c.done[i], c.given.number);
}
static int crew_number() { return place; }
static int crew_size() { return (int)crew->at_work; }

// Does f(number) for each number below `count`, at once as far as there are threads; `crews` and `done` are the team's, with
// room for as many crews and threads, all zero.
template <class F> static void by_crews(int64_t count, Crew *crews, Count *done, int64_t thread, int64_t team, F f) {
    const int64_t at_once = count < team ? count : team, size = team / at_once, number = thread / size;
    if (number >= at_once) return;  // one of those that are left over
    Crew &c = crews[number];
    crew = &c;
    place = (int)(thread % size);
    if (place == 0) {
        c.size = size;
        c.done = done + number * size;
        for (int64_t i = number; i < count; i += at_once) f(i);
        give(c, 0, 0);
        return;
    }
    for (int64_t next = 1;; ++next) {
        wait_for(c.given, next);
        if (!c.share) return;
        if (place < c.at_work) c.share(c.argument);
        __atomic_store_n(&c.done[place].number, next, __ATOMIC_RELEASE);
    }
}
