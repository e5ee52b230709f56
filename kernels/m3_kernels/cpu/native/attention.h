/* Attention over pages, in place: a run of queries at a time, in one of three ways.
 *
 *     queries that see all before them     side by side over all blocks (queries.h)
 *     many queries that chose              block by block (gathered.h)
 *     a single query                       its heads side by side, or if they are few, their elements (few_heads.h)
 */
#ifndef M3_ATTENTION_H
#define M3_ATTENTION_H

#include "gathered.h"

#define GATHER 4 /* from so many queries of a run on, blocks gather */

/* Consecutive queries of a run, at most TOGETHER panels of them, over all blocks up to their own. */
static void attend_context(const struct attention *job, struct room *room, const int64_t *run, int64_t group,
                           int64_t first, int64_t count) {
    const int heads = (int)(job->heads / job->groups), a_panel = PANEL * LANES / heads;
    const int panels = (int)((count + a_panel - 1) / a_panel);
    const int vectors = vectors_for(count * heads), lanes = vectors * LANES;
    const int64_t *pages = job->page_table + run[2] * job->page_stride, B = job->block_tokens;
    const int64_t position = run[3] + first, last = position + count - 1;
    for (int number = 0; number < panels; number++) begin(&room->panels[number], lanes, job->width);
    for (int64_t query = 0; query < count; query++)
        put_query(job, &room->panels[query / a_panel], run[0] + first + query, group, (int)(query % a_panel) * heads,
                  lanes);
    for (int64_t id = 0; id * B <= last; id++) {
        struct block block = block_of(job, room, pages, id, group, tokens_in(job, id, last));
        for (int64_t number = 0; number < panels; number++) {
            struct queries *panel = &room->panels[number];
            const int64_t place = position + number * a_panel - id * B; /* of the panel's first query, in the block */
            block.is_whole = place + 1 >= block.tokens;
            for (int lane = 0; !block.is_whole && lane < a_panel * heads; lane++)
                panel->last[lane] = (int32_t)(place + lane / heads);
            visit_any(panel, room->shares, block, (int)job->width, vectors);
        }
    }
    for (int64_t query = 0; query < count; query++)
        take_result(job, &room->panels[query / a_panel], run[0] + first + query, group, (int)(query % a_panel) * heads,
                    lanes);
}

/* A single query over all blocks up to its own, or those that it chose. */
static void attend_single(const struct attention *job, struct room *room, const int64_t *run, int64_t group,
                          int64_t query) {
    const int heads = (int)(job->heads / job->groups), width = (int)job->width;
    const int is_few = heads <= MOST_FEW && width % LANES == 0;
    const int vectors = vectors_for(heads), lanes = vectors * LANES, fours = (heads + HEADS - 1) / HEADS;
    const int64_t *pages = job->page_table + run[2] * job->page_stride, row = run[0] + query, position = run[3] + query;
    const int32_t *chosen = run[4] ? job->blocks + (group * job->tokens + row) * job->chosen : NULL;
    const int64_t count = chosen ? job->chosen : position / job->block_tokens + 1;
    struct queries *panel = room->panels;
    if (is_few)
        begin_few(job, &room->few, row, group);
    else {
        begin(panel, lanes, width);
        put_query(job, panel, row, group, 0, lanes);
    }
    for (int64_t number = 0; number < count; number++) {
        const int64_t id = chosen ? chosen[number] : number;
        const struct block block = block_of(job, room, pages, id, group, tokens_in(job, id, position));
        if (is_few)
            for (int four = 0; four < fours; four++) visit_few(&room->few, four, room->shares, &block, width);
        else
            visit_any(panel, room->shares, block, width, vectors);
    }
    if (is_few)
        take_few(job, &room->few, row, group);
    else
        take_result(job, panel, row, group, 0, lanes);
}

struct attending {
    const struct attention *job;
    int has_failed;
};

/* An item is a run as one group sees it. */
static void attend_some(void *argument, struct items *items) {
    struct attending *attending = argument;
    const struct attention *job = attending->job;
    const int64_t most = TOGETHER * (PANEL * LANES / (job->heads / job->groups));
    struct room room;
    if (!allocate_room(&room, job)) {
        attending->has_failed = 1;
        return;
    }
    for (int64_t item; (item = take(items)) >= 0;) {
        const int64_t *run = job->runs + item / job->groups * 5, group = item % job->groups;
        if (run[1] == 1 || (run[4] && run[1] < GATHER))
            for (int64_t query = 0; query < run[1]; query++) attend_single(job, &room, run, group, query);
        else if (!run[4])
            for (int64_t first = 0; first < run[1]; first += most)
                attend_context(job, &room, run, group, first, run[1] - first < most ? run[1] - first : most);
        else if (!attend_gathered(job, &room, run, group))
            attending->has_failed = 1;
    }
    free(room.memory);
}

static int attend(const struct attention *job, int threads) {
    struct attending attending = {job, 0};
    share(attend_some, &attending, job->run_count * job->groups, threads);
    return !attending.has_failed;
}

#endif
