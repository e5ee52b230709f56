/* One team a process, made when it is first needed. See team.h. */
#include "team.h"

#include <pthread.h>
#include <stddef.h>
#include <unistd.h>

#define MOST_HELPERS 63

static struct {
    pthread_mutex_t lock;
    pthread_cond_t has_job, is_left;
    int is_busy;          /* a job has the team */
    int helpers;          /* threads that there are */
    pid_t process;        /* that they are of: a fork has none of them */
    work work;            /* of the job that may be joined; NULL if there is none */
    void *job;
    struct items *items;
    int places;           /* for so many more helpers */
    int inside;           /* helpers at work */
} team = {.lock = PTHREAD_MUTEX_INITIALIZER, .has_job = PTHREAD_COND_INITIALIZER, .is_left = PTHREAD_COND_INITIALIZER};

static void *help(void *nothing) {
    (void)nothing;
    pthread_mutex_lock(&team.lock);
    for (;;) {
        while (!team.work || team.places == 0) pthread_cond_wait(&team.has_job, &team.lock);
        const work work = team.work;
        void *job = team.job;
        struct items *items = team.items;
        team.places--;
        team.inside++;
        pthread_mutex_unlock(&team.lock);
        work(job, items);
        pthread_mutex_lock(&team.lock);
        if (--team.inside == 0) pthread_cond_signal(&team.is_left);
    }
    return NULL;
}

/* With the lock held: as many helpers as are wanted, or as can be had. */
static void hire(int wanted) {
    if (team.process != getpid()) team.helpers = 0, team.process = getpid();
    for (pthread_t thread; team.helpers < wanted && pthread_create(&thread, NULL, help, NULL) == 0; team.helpers++)
        pthread_detach(thread);
}

void share(work work, void *job, int64_t count, int threads) {
    struct items items = {0, count};
    int helpers = threads - 1 < count - 1 ? threads - 1 : (int)count - 1;
    helpers = helpers < MOST_HELPERS ? helpers : MOST_HELPERS;
    int is_ours = 0;
    if (helpers > 0) {
        pthread_mutex_lock(&team.lock);
        if (!team.is_busy) {
            hire(helpers);
            is_ours = team.is_busy = 1;
            team.work = work, team.job = job, team.items = &items, team.places = helpers;
            pthread_cond_broadcast(&team.has_job);
        }
        pthread_mutex_unlock(&team.lock);
    }
    work(job, &items);
    if (!is_ours) return;
    pthread_mutex_lock(&team.lock);
    team.work = NULL; /* nobody joins any more */
    while (team.inside > 0) pthread_cond_wait(&team.is_left, &team.lock);
    team.is_busy = 0;
    pthread_mutex_unlock(&team.lock);
}
