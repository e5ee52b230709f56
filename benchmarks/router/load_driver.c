/* A closed-loop HTTP/1.1 client for chat completions, one epoll thread.
 *
 *   load_driver -p PORT -c CONNECTIONS -d SECONDS [-k KEY] [-b PROMPT_BYTES] [-S -m TOKENS]
 *
 * Each connection sends its next request when the answer to the last one is complete; no two prompts of a run begin
 * alike. -S streams. Prints one JSON line: requests, errors, requests and events per second, events that came and that
 * should have come, and percentiles in microseconds of latency and time to the first event. An error is an answer whose
 * status is not 200, a stream with fewer events than tokens, or a connection that is lost. Loopback alone. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 65536, EVENTS = 256, GRACE_SECONDS = 15 };

typedef struct {
    uint32_t *values;
    size_t length, capacity;
} samples;

typedef struct {
    int fd, is_busy, has_head, is_chunked, status, events;
    size_t need, chunk_at, scan_at, out_offset;
    uint64_t sent_us;
    char *in;
    size_t in_length, in_capacity;
} connection;

static int port, is_stream, epoll_fd;
static char *request;
static size_t request_length, number_at;
static int tokens = 16;
static uint64_t finished, errors, events, expected_events, number;
static char first_error[160];
static samples latency_us, first_event_us;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void add(samples *s, uint64_t value) {
    if (s->length == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 65536;
        s->values = realloc(s->values, s->capacity * sizeof *s->values);
    }
    s->values[s->length++] = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void print(const char *name, samples *s) {
    qsort(s->values, s->length, sizeof *s->values, compare);
    uint32_t p50 = s->length ? s->values[(s->length - 1) / 2] : 0;
    uint32_t p99 = s->length ? s->values[(size_t)((double)(s->length - 1) * .99)] : 0;
    printf(",\"%s\":{\"p50\":%u,\"p99\":%u}", name, p50, p99);
}

static void note_error(const char *what, const char *detail, size_t length) {
    errors++;
    if (*first_error) return;
    snprintf(first_error, sizeof first_error, "%s: %.*s", what, (int)(length > 100 ? 100 : length), detail);
    for (char *at = first_error; *at; at++)
        if (*at < ' ' || *at == '"' || *at == '\\' || *at & 0x80) *at = ' ';
}

static void make_request(size_t prompt_bytes, const char *key) {
    static const char words[] = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor ";
    char *body = malloc(prompt_bytes + 512);
    size_t n = (size_t)sprintf(body, "{\"model\":\"mock\",\"max_tokens\":%d,%s\"messages\":[{\"role\":\"user\",\"content\":\"", tokens,
                               is_stream ? "\"stream\":true,\"stream_options\":{\"include_usage\":true}," : "");
    size_t number_in_body = n;
    n += (size_t)sprintf(body + n, "%010d ", 0);
    for (size_t i = 0; i < prompt_bytes; i++) body[n++] = words[i % (sizeof words - 1)];
    n += (size_t)sprintf(body + n, "\"}]}");
    request = malloc(n + 1024);
    request_length = (size_t)sprintf(request,
                                     "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                                     "%s%.256s%sContent-Length: %zu\r\n\r\n",
                                     port, *key ? "Authorization: Bearer " : "", key, *key ? "\r\n" : "", n);
    number_at = request_length + number_in_body;
    memcpy(request + request_length, body, n);
    request_length += n;
    free(body);
}

static int dial(connection *c) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (c->fd >= 0) close(c->fd);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&address, sizeof address)) {
        close(c->fd);
        c->fd = -1;
        return -1;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void fail(connection *c) {
    note_error(c->has_head ? "lost in the answer" : "lost before the answer", "", 0);
    c->is_busy = 0;
    dial(c);
}

static void push(connection *c) {
    while (c->out_offset < request_length) {
        ssize_t n = send(c->fd, request + c->out_offset, request_length - c->out_offset, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            fail(c);
            return;
        }
        c->out_offset += (size_t)n;
    }
    struct epoll_event e = {.events = EPOLLIN | (c->out_offset < request_length ? EPOLLOUT : 0), .data.ptr = c};
    if (c->out_offset < request_length || request_length > READ_BYTES) epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static void fire(connection *c) {
    c->is_busy = 1;
    c->has_head = c->is_chunked = c->events = 0;
    c->need = c->in_length = c->out_offset = 0;
    /* Written into what all connections send: one that is in the middle of sending has passed this place already. */
    char digits[11];
    snprintf(digits, sizeof digits, "%010lu", ++number);
    memcpy(request + number_at, digits, 10);
    c->sent_us = now_us();
    push(c);
}

static void take_head(connection *c) {
    char *end = memmem(c->in, c->in_length, "\r\n\r\n", 4), *found;
    if (!end) return;
    c->has_head = 1;
    c->status = atoi(c->in + 9);
    *end = 0;
    c->chunk_at = c->scan_at = (size_t)(end + 4 - c->in);
    if (strcasestr(c->in, "\r\ntransfer-encoding: chunked")) c->is_chunked = 1;
    else if ((found = strcasestr(c->in, "\r\ncontent-length:"))) c->need = c->chunk_at + strtoul(found + 17, 0, 10);
    *end = '\r';
}

static void count_events(connection *c) {
    char *at = c->in + c->scan_at, *end = c->in + c->in_length;
    int found = 0;
    while ((at = memmem(at, (size_t)(end - at), "data: ", 6))) {
        found++;
        at += 6;
        c->scan_at = (size_t)(at - c->in);
    }
    size_t keep = c->in_length > 5 ? c->in_length - 5 : 0; /* the name may be cut by the end of this read */
    if (c->scan_at < keep) c->scan_at = keep;
    if (found && !c->events) add(&first_event_us, now_us() - c->sent_us);
    c->events += found;
    events += (uint64_t)found;
}

static int is_complete(connection *c) {
    if (!c->is_chunked) return c->has_head && c->in_length >= c->need;
    for (;;) { /* `chunk_at` stays at the first chunk that is not all here */
        char *chunk = c->in + c->chunk_at;
        size_t left = c->in_length - c->chunk_at;
        char *line_end = memmem(chunk, left, "\r\n", 2);
        if (!line_end) return 0;
        size_t length = strtoul(chunk, 0, 16), whole = (size_t)(line_end + 2 - chunk) + length + 2;
        if (left < whole) return 0;
        if (!length) return 1;
        c->chunk_at += whole;
    }
}

static void receive(connection *c) {
    for (;;) {
        if (c->in_capacity < c->in_length + READ_BYTES + 1) {
            c->in_capacity = 2 * c->in_capacity + READ_BYTES + 1;
            c->in = realloc(c->in, c->in_capacity);
        }
        ssize_t n = recv(c->fd, c->in + c->in_length, c->in_capacity - c->in_length - 1, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            if (c->is_busy) fail(c);
            else dial(c);
            return;
        }
        c->in_length += (size_t)n;
        c->in[c->in_length] = 0;
        if (!c->has_head) take_head(c);
        if (!c->has_head) continue;
        if (is_stream) count_events(c);
        if (is_complete(c)) {
            if (is_stream) expected_events += (uint64_t)tokens;
            if (c->status != 200) {
                note_error("status", c->in + 9, c->in_length - 9);
            } else if (is_stream && c->events < tokens) {
                note_error("a stream ended early", "", 0);
            } else {
                finished++;
                add(&latency_us, now_us() - c->sent_us);
            }
            c->is_busy = 0;
            return;
        }
    }
}

int main(int argc, char **argv) {
    int count = 1;
    const char *key = "";
    double seconds = 5;
    size_t prompt_bytes = 256;
    for (int option; (option = getopt(argc, argv, "p:c:d:k:b:m:S")) != -1;) {
        if (option == 'p') port = atoi(optarg);
        else if (option == 'c') count = atoi(optarg);
        else if (option == 'd') seconds = atof(optarg);
        else if (option == 'k') key = optarg;
        else if (option == 'b') prompt_bytes = strtoul(optarg, 0, 10);
        else if (option == 'm') tokens = atoi(optarg);
        else if (option == 'S') is_stream = 1;
        else return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(0);
    make_request(prompt_bytes, key);
    connection *all = calloc((size_t)count, sizeof *all);
    for (int i = 0; i < count; i++) {
        all[i].fd = -1;
        if (dial(&all[i])) {
            perror("connect");
            return 1;
        }
    }
    uint64_t begin = now_us(), stop = begin + (uint64_t)(seconds * 1e6), give_up = stop + GRACE_SECONDS * 1000000ull;
    struct epoll_event ready[EVENTS];
    for (;;) {
        uint64_t now = now_us();
        int busy = 0;
        for (int i = 0; i < count; i++) {
            if (!all[i].is_busy && now < stop && (all[i].fd >= 0 || !dial(&all[i]))) fire(&all[i]);
            busy += all[i].is_busy;
        }
        if (now >= stop && !busy) break;
        if (now >= give_up) {
            for (int i = 0; i < count; i++)
                if (all[i].is_busy) note_error("no end within the grace time", "", 0);
            break;
        }
        int n = epoll_wait(epoll_fd, ready, EVENTS, 200);
        for (int i = 0; i < n; i++) {
            connection *c = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT) push(c);
            if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        }
    }
    double elapsed = (double)(now_us() - begin) / 1e6;
    printf("{\"requests\":%lu,\"errors\":%lu,\"first_error\":\"%s\",\"seconds\":%.3f,\"requests_per_second\":%.1f,\"events_per_second\":%.1f,"
           "\"events\":%lu,\"expected_events\":%lu",
           finished, errors, first_error, elapsed, (double)finished / elapsed, (double)events / elapsed, events, expected_events);
    print("latency_us", &latency_us);
    print("first_event_us", &first_event_us);
    printf("}\n");
    return 0;
}
