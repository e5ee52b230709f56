/* A mock engine: answers the OpenAI completions API and computes nothing.
 *
 * One epoll thread, so that it is faster and steadier than anything put in front of it.
 *
 *   mock_engine -p PORT [-t FIRST_TOKEN_US] [-i NEXT_TOKEN_US] [-b BYTES_PER_TOKEN]
 *
 * POST of completions: 16 tokens as JSON, or with "stream":true as server-sent events, one HTTP chunk per token.
 * `max_tokens` sets their number; the prompt has a token for each so many bytes of the body (5). POST /tokenize: ids for
 * as many tokens; other POSTs are not found. GET: what routers ask engines about themselves, else {}. Listens on
 * loopback alone. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DEFAULT_TOKENS = 16, READ_BYTES = 65536, EVENTS = 256 };

typedef struct {
    char *bytes;
    size_t length, capacity;
} buffer;

typedef struct {
    int fd, is_busy, is_stream, tokens, sent, heap_index, waits_to_write;
    size_t input_tokens;
    uint64_t due_us;
    buffer in, out;
    size_t out_offset;
} connection;

static uint64_t first_token_us, next_token_us;
static size_t bytes_per_token = 5;
static int epoll_fd;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---- timers: a binary heap by due time, each connection knowing its index ---- */

static connection **heap;
static int heap_length, heap_capacity;

static void heap_set(int index, connection *c) {
    heap[index] = c;
    c->heap_index = index;
}

static void heap_up(int index) {
    connection *c = heap[index];
    for (; index && heap[(index - 1) / 2]->due_us > c->due_us; index = (index - 1) / 2) heap_set(index, heap[(index - 1) / 2]);
    heap_set(index, c);
}

static void heap_down(int index) {
    connection *c = heap[index];
    for (;;) {
        int child = 2 * index + 1;
        if (child >= heap_length) break;
        if (child + 1 < heap_length && heap[child + 1]->due_us < heap[child]->due_us) child++;
        if (heap[child]->due_us >= c->due_us) break;
        heap_set(index, heap[child]);
        index = child;
    }
    heap_set(index, c);
}

static void heap_push(connection *c) {
    if (heap_length == heap_capacity) {
        heap_capacity = heap_capacity ? 2 * heap_capacity : 256;
        heap = realloc(heap, (size_t)heap_capacity * sizeof *heap);
    }
    heap_set(heap_length, c);
    heap_up(heap_length++);
}

static void heap_remove(connection *c) {
    int index = c->heap_index;
    if (index < 0) return;
    c->heap_index = -1;
    if (--heap_length == index) return;
    heap_set(index, heap[heap_length]);
    heap_up(index);
    heap_down(heap[index]->heap_index);
}

/* ---- bytes ---- */

static void reserve(buffer *b, size_t more) {
    if (b->length + more <= b->capacity) return;
    b->capacity = (b->length + more) * 2;
    b->bytes = realloc(b->bytes, b->capacity);
}

static void put(connection *c, const char *bytes, size_t length) {
    reserve(&c->out, length);
    memcpy(c->out.bytes + c->out.length, bytes, length);
    c->out.length += length;
}

static void put_text(connection *c, const char *text) { put(c, text, strlen(text)); }

static void put_event(connection *c, const char *event) {
    char head[16];
    snprintf(head, sizeof head, "%zx\r\n", strlen(event));
    put_text(c, head);
    put_text(c, event);
    put_text(c, "\r\n");
}

static void put_json(connection *c, const char *status, const char *json) {
    char head[128];
    snprintf(head, sizeof head, "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", status, strlen(json));
    put_text(c, head);
    put_text(c, json);
}

static void drop(connection *c) {
    heap_remove(c);
    close(c->fd);
    free(c->in.bytes);
    free(c->out.bytes);
    free(c);
}

static int flush(connection *c) { /* returns -1 if the connection was dropped */
    while (c->out_offset < c->out.length) {
        ssize_t n = write(c->fd, c->out.bytes + c->out_offset, c->out.length - c->out_offset);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            drop(c);
            return -1;
        }
        c->out_offset += (size_t)n;
    }
    int waits = c->out_offset < c->out.length;
    if (!waits) c->out.length = c->out_offset = 0;
    if (waits != c->waits_to_write) {
        struct epoll_event e = {.events = EPOLLIN | (waits ? EPOLLOUT : 0), .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
        c->waits_to_write = waits;
    }
    return 0;
}

/* ---- answers ---- */

static int answer(connection *c) { /* the answer, or the next token of it; returns -1 if the connection was dropped */
    char text[1024];
    if (!c->is_stream) {
        snprintf(text, sizeof text,
                 "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
                 "\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog and then rests.\"},"
                 "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":%d,\"total_tokens\":%zu}}",
                 c->input_tokens, c->tokens, c->input_tokens + (size_t)c->tokens);
        c->is_busy = 0;
        put_json(c, "200 OK", text);
        return flush(c);
    }
    if (!c->sent) put_text(c, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    snprintf(text, sizeof text,
             "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock\",\"choices\":"
             "[{\"index\":0,\"delta\":{\"content\":\" token%d\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
             c->sent);
    put_event(c, text);
    if (++c->sent < c->tokens) {
        uint64_t now = now_us();
        c->due_us += next_token_us;
        if (c->due_us + 200000 < now) c->due_us = now; /* far behind: do not catch up in a burst */
        heap_push(c);
        return flush(c);
    }
    snprintf(text, sizeof text,
             "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"model\":\"mock\",\"choices\":[],\"usage\":"
             "{\"prompt_tokens\":%zu,\"completion_tokens\":%d,\"total_tokens\":%zu}}\n\n",
             c->input_tokens, c->sent, c->input_tokens + (size_t)c->sent);
    put_event(c, text);
    put_event(c, "data: [DONE]\n\n");
    put_text(c, "0\r\n\r\n");
    c->is_busy = 0;
    return flush(c);
}

static size_t content_length(const char *head, const char *end) {
    for (const char *line = head; line && line < end; line = memmem(line, (size_t)(end - line), "\r\n", 2), line = line ? line + 2 : line)
        if (!strncasecmp(line, "content-length:", 15)) return strtoul(line + 15, 0, 10);
    return 0;
}

static void tokenize(connection *c, const char *body, size_t length) {
    size_t count = length / bytes_per_token;
    char *json = malloc(count * 6 + 96), *at = json + sprintf(json, "{\"count\":%zu,\"max_model_len\":1048576,\"tokens\":[", count);
    for (size_t i = 0; i < count; i++)
        at += sprintf(at, "%s%d", i ? "," : "", (unsigned char)body[i * bytes_per_token] * 257 % 50000);
    strcpy(at, "]}");
    put_json(c, "200 OK", json);
    free(json);
}

static const char *about(const char *request) { /* what routers ask before they send anything */
    if (!strncmp(request, "GET /v1/models", 14))
        return "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"mock\","
               "\"root\":\"mock\",\"parent\":null,\"max_model_len\":1048576}]}";
    if (!strncmp(request, "GET /get_", 9) || !strncmp(request, "GET /server_info", 16) || !strncmp(request, "GET /model_info", 15) ||
        !strncmp(request, "GET /version", 12))
        return "{\"version\":\"0.0\",\"model_path\":\"mock\",\"model_id\":\"mock\",\"served_model_name\":\"mock\",\"tokenizer_path\":\"\","
               "\"is_generation\":true,\"dp_size\":1,\"tp_size\":1,\"max_total_tokens\":1048576}";
    return "{}";
}

static int take_request(connection *c) { /* returns 1 if a whole request was taken from the input */
    if (c->is_busy || c->in.length < 4) return 0;
    char *end = memmem(c->in.bytes, c->in.length, "\r\n\r\n", 4);
    if (!end) return 0;
    char *body = end + 4;
    size_t length = content_length(c->in.bytes, end), used = (size_t)(body - c->in.bytes) + length;
    if (c->in.length < used) return 0;
    if (!strncmp(c->in.bytes, "POST /tokenize", 14)) {
        tokenize(c, body, length);
    } else if (!strncmp(c->in.bytes, "POST", 4) && !memmem(c->in.bytes, (size_t)(end - c->in.bytes), "completions HTTP", 16)) {
        put_json(c, "404 Not Found", "{\"error\":{\"message\":\"not here\"}}");
    } else if (!strncmp(c->in.bytes, "POST", 4)) {
        char *found = memmem(body, length, "\"stream\":true", 13);
        c->is_busy = 1;
        c->sent = 0;
        c->is_stream = found != 0;
        found = memmem(body, length, "\"max_tokens\":", 13);
        c->tokens = found && atoi(found + 13) > 0 ? atoi(found + 13) : DEFAULT_TOKENS;
        c->input_tokens = length / bytes_per_token;
        c->due_us = now_us() + first_token_us;
    } else {
        put_json(c, "200 OK", about(c->in.bytes));
    }
    memmove(c->in.bytes, c->in.bytes + used, c->in.length - used);
    c->in.length -= used;
    return 1;
}

static int take_requests(connection *c) { /* returns -1 if the connection was dropped */
    while (take_request(c)) {
        if (!c->is_busy) continue;
        if (!first_token_us) {
            if (answer(c)) return -1;
        } else {
            heap_push(c);
        }
    }
    return flush(c);
}

static int read_all(connection *c) { /* returns -1 if the client is gone */
    for (;;) {
        reserve(&c->in, READ_BYTES + 1);
        ssize_t n = read(c->fd, c->in.bytes + c->in.length, c->in.capacity - c->in.length - 1);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) return -1;
        c->in.length += (size_t)n;
        c->in.bytes[c->in.length] = 0;
        if (n < READ_BYTES / 2) return 0;
    }
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->heap_index = -1;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

int main(int argc, char **argv) {
    int port = 0, one = 1;
    for (int option; (option = getopt(argc, argv, "p:t:i:b:")) != -1;) {
        if (option == 'p') port = atoi(optarg);
        else if (option == 't') first_token_us = strtoull(optarg, 0, 10);
        else if (option == 'i') next_token_us = strtoull(optarg, 0, 10);
        else if (option == 'b') bytes_per_token = strtoull(optarg, 0, 10);
        else return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) {
        perror("listen");
        return 1;
    }
    epoll_fd = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = 0}, events[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        uint64_t now = now_us();
        while (heap_length && heap[0]->due_us <= now) {
            connection *c = heap[0];
            heap_remove(c);
            answer(c);
        }
        uint64_t wait = heap_length ? heap[0]->due_us - now : 0;
        struct timespec timeout = {(time_t)(wait / 1000000), (long)(wait % 1000000) * 1000};
        int n = epoll_pwait2(epoll_fd, events, EVENTS, heap_length ? &timeout : 0, 0);
        for (int i = 0; i < n; i++) {
            connection *c = events[i].data.ptr;
            if (!c) {
                accept_all(listener);
                continue;
            }
            if (events[i].events & EPOLLOUT && flush(c)) continue;
            if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            if (read_all(c)) drop(c);
            else take_requests(c);
        }
    }
}
