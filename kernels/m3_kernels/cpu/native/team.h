/* Threads that share the items of a job. */
#ifndef M3_TEAM_H
#define M3_TEAM_H

#include <stdint.h>

/* The items of a job, numbered from 0; each is taken by one thread. */
struct items {
    int64_t next, count;
};

/* An item that nobody has taken; -1 if there is none left. */
static inline int64_t take(struct items *items) {
    const int64_t item = __atomic_fetch_add(&items->next, 1, __ATOMIC_RELAXED);
    return item < items->count ? item : -1;
}

/* Takes items until there is none left. */
typedef void (*work)(void *job, struct items *items);

/* Have at most `threads` threads, this one among them, do a job of `count` items; returns when all are done.
 *
 * The others sleep between jobs and are kept. Who wakes too late finds nothing left and is not waited for, so that a
 * machine with other things to do costs no more than the help. While another job has the team, this thread works alone.
 */
void share(work work, void *job, int64_t count, int threads);

#endif
