"""What is sent before it is mutated. Requests are whole messages; `KEY` opens the router's door."""

import json
from typing import Final

KEY: Final = "fuzz-key"
GOOD, HOSTILE = "mock", "hostile"
_LONG: Final = 300_000


def post(body: bytes, *, path: str = "/v1/chat/completions", headers: str = "", key: str = KEY) -> bytes:
    """A request with this body and its true length."""
    head = f"POST {path} HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {key}\r\n{headers}"
    return head.encode("latin-1") + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*chunks: bytes, headers: str = "", trailer: bytes = b"", end: bytes = b"0\r\n") -> bytes:
    """The same in chunks; each is a whole chunk already."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {KEY}\r\n{headers}"
    return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + end + trailer + b"\r\n"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    """One chunk."""
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def chat(model: str = GOOD, **fields: object) -> bytes:
    """The body of a chat completion."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


COMPLETION: Final = json.dumps({"model": GOOD, "prompt": [1, 2, 3], "max_tokens": 4}).encode()
MESSAGE: Final = chat(max_tokens=8, system="s")

BODIES: Final[tuple[bytes, ...]] = (
    chat(),
    chat(stream=True),
    chat(stream=True, stream_options={"include_usage": False}),
    chat(HOSTILE),
    chat(HOSTILE, stream=True),
    chat(service_tier="priority", max_tokens=3, n=2, prompt_cache_key="s"),
    chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]),
    chat("nobody"),
    chat(max_tokens=-1),
    chat(n=0),
    chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x" * 400}}]}]),
    chat(messages=[{"role": "user", "content": "\ud83d\ude00\u0000é" * 20}]),
    COMPLETION,
    b"{}",
    b"",
    b"null",
    b"[]",
    b'"model"',
    b'{"model":"mock"',
    b'{"model":"mock","model":"hostile","messages":[]}',
    b'{"model":"mock","messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
    b'{"model":"mock","prompt":[' + b"1," * 40_000 + b"1]}",
    b'{"model":"mock","prompt":"' + b"\\u0000" * 20_000 + b'"}',
    b'{"model":"mock","prompt":1e400,"max_tokens":1e400}',
    b'{"model":"mock","max_tokens":' + b"9" * 5000 + b"}",
    b'{"model":"\xff\xfe","messages":[]}',
    b'{"model":"mo\x00ck","messages":[]}',
    b'\xef\xbb\xbf{"model":"mock","messages":[]}',
    b'{"model":"mock","stream":true,"stream_options":{"include_usage":false},"stream_options":null,"messages":[]}',
    b'{"model":"mock","stre\\u0061m":true,"stream_options":{"include_usage":false},"messages":[]}',
    b"{" + b'"k":1,' * 20_000 + b'"model":"mock","messages":[]}',
)

REQUESTS: Final[tuple[bytes, ...]] = (
    *(post(body) for body in BODIES),
    post(MESSAGE, path="/v1/messages", headers="anthropic-version: 2023-06-01\r\n"),
    post(chat(stream=True, max_tokens=8), path="/v1/messages"),
    post(chat(HOSTILE, stream=True, max_tokens=8), path="/v1/messages"),
    post(MESSAGE, path="/v1/messages/count_tokens"),
    post(json.dumps({"model": GOOD, "input": "hi", "stream": True}).encode(), path="/v1/responses"),
    post(json.dumps({"model": HOSTILE, "input": "hi", "stream": True}).encode(), path="/v1/responses"),
    post(json.dumps({"model": GOOD, "input": ["a", "b"]}).encode(), path="/v1/embeddings"),
    post(COMPLETION, path="/tokenize"),
    post(COMPLETION, path="/v1/completions?a=%00&b=%zz"),
    post(chat(), key="wrong"),
    post(chat(), headers="X-API-Key: fuzz-key\r\n"),
    post(chat(), headers="Expect: 100-continue\r\n"),
    post(chat(), headers="Expect: something else\r\n"),
    post(chat(), headers="Connection: close\r\n"),
    post(chat(), headers="Connection: X-M3-Tenant, close\r\nX-M3-Tenant: root\r\n"),
    post(chat(), headers="Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n"),
    post(chat(), headers="X-M3-Max-Cost-USD: 0.000000001\r\n"),
    post(chat(), headers="X-M3-Max-Context-Tier: wide\r\n"),
    post(chat(), headers="traceparent: 00-zz-zz-01\r\nX-Session-Id: \xff\xfe\r\nX-Request-Id: \x01\r\n"),
    post(chat(), headers="traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"),
    # lengths that lie
    post(chat()).replace(b"Content-Length: ", b"Content-Length: 1"),
    post(chat()).replace(b"Content-Length: ", b"Content-Length: +"),
    post(chat()).replace(b"Content-Length: ", b"Content-Length: -"),
    post(chat()).replace(b"Content-Length: ", b"Content-Length: 0x"),
    post(chat()).replace(b"Content-Length: ", b"Content-Length: 99999999999999999999"),
    post(chat()).replace(b"Content-Length", b"Content-Length: 3\r\nContent-Length"),
    post(chat()).replace(b"Content-Length", b"Content-Length : 3\r\nX"),
    post(chat(), headers="Transfer-Encoding: chunked\r\n"),
    post(chat()).replace(b"Content-Length", b"X-Length"),
    # chunks
    chunked(chunk(COMPLETION)),
    chunked(*(chunk(COMPLETION[i : i + 1]) for i in range(len(COMPLETION)))),
    chunked(chunk(COMPLETION, b';a="b"; c=d')),
    chunked(chunk(COMPLETION, b";" + b"x" * 70_000)),
    chunked(chunk(COMPLETION), trailer=b"X-Trailer: t\r\nContent-Length: 4\r\n"),
    chunked(chunk(COMPLETION), trailer=b"X: y\r\n" * 20_000),
    chunked(b"ffffffffffffffff\r\nabc\r\n"),
    chunked(b"7fffffffffffffff\r\nabc\r\n"),
    chunked(b"-1\r\nabc\r\n"),
    chunked(b"0x5\r\nabcde\r\n"),
    chunked(b"5 \r\nabcde\r\n", b"5\nabcde\n"),
    chunked(chunk(COMPLETION), headers="Transfer-Encoding: identity\r\n"),
    chunked(chunk(COMPLETION), end=b"00000000000000000000\r\n"),
    chunked(chunk(COMPLETION)).replace(b"chunked", b"gzip, chunked"),
    chunked(chunk(COMPLETION)).replace(b"chunked", b"\x0bchunked"),
    # heads
    b"GET /v1/models HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer fuzz-key\r\n\r\n",
    b"GET http://r/v1/models HTTP/1.1\r\nHost: elsewhere\r\nAuthorization: Bearer fuzz-key\r\n\r\n",
    b"GET http://r HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: r\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: r\r\n\r\n",
    b"CONNECT r:443 HTTP/1.1\r\nHost: r\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /v1/models\r\n\r\n",
    b"GET /v1/models HTTP/1.0\r\n\r\n",
    b"GET /v1/models HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /v1/models HTTP/9.9\r\nHost: r\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: r\r\nHost: s\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: r\r\nX: a\r\n b\r\n\tc\r\n\r\n",
    b"GET /v1/models HTTP/1.1\nHost: r\n\n",
    b"GET /v1/models HTTP/1.1\rHost: r\r\r",
    b"GET /v1/models HTTP/1.1\r\nHost: r\r\nX: \x00\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: r\r\n: empty\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: r\r\nBad Name: x\r\n\r\n",
    b"GET /" + b"a" * _LONG + b" HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: r\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: r\r\nX: " + b"y" * _LONG + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"\r\n" * 1000,
    b"\r\n" * 2000 + b"GET /v1/models HTTP/1.1\r\nHost: r\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"SSH-2.0-x\r\n",
    bytes(range(256)) * 4,
    b"\x00" * 4096,
    post(b"").replace(b"Content-Length: 0", b"Content-Length: 1000000000") + b"{" * 1000,
    # pipelines
    post(chat()) * 3,
    b"GET /v1/models HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer fuzz-key\r\n\r\n" * 500,
    post(chat(stream=True)) + b"GET /v1/models HTTP/1.1\r\nHost: r\r\n\r\n",
    post(chat()) + b"garbage\r\n\r\n",
    post(chat(HOSTILE)) + post(chat()) + post(chat(HOSTILE, stream=True)),
)

_JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_SSE_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_ANSWER: Final = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}},
    }
).encode()

EVENTS: Final[tuple[bytes, ...]] = (
    b'data: {"id":"1","choices":[{"index":0,"delta":{"content":" a"}}]}\n\n',
    b'data: {"id":"1","choices":[{"index":0,"delta":{"content":" a"}}]}\r\n\r\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":-3,"completion_tokens":1e99}}\n\n',
    b'data: {"choices":[{"delta":{}}],"usage":null}\n\n',
    b'data: {"choices":[{"delta":{"content":"\\"usage\\": {"}}]}\n\n',
    b'data: {"error":{"message":"no"}}\n\n',
    b"data: [DONE]\n\n",
    b"data:[DONE]\r\n\r\n",
    b": comment\n\n",
    b"\n\n\n",
    b"\n\r\n",
    b"event: message_start\ndata: "
    b'{"type":"message_start","message":{"usage":{"input_tokens":3,"cache_read_input_tokens":1}}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":5}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":3,'
    b'"output_tokens":2}}}\n\n',
    b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"m"}}\n\n',
    b"data: \xff\xfe\x00\n\n",
    b"data: " + b"x" * 5000 + b"\n\n",
    b'data: {\ndata: "usage":{"prompt_tokens":1,"completion_tokens":1},\ndata: "choices":[]}\n\n',
    b"data: " + b'{"usage":' * 1000 + b"\n\n",
    b"retry: 1\nid: 2\n\n",
)

ANSWERS: Final[tuple[bytes, ...]] = (
    _JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(_ANSWER) + _ANSWER,
    _JSON_HEAD + b"Content-Length: %d\r\nX-M3-Input-Tokens: 9999999999999999999999\r\n\r\n" % len(_ANSWER) + _ANSWER,
    _JSON_HEAD + b"Content-Length: 5\r\n\r\n" + _ANSWER,
    _JSON_HEAD + b"Content-Length: 500000\r\n\r\n" + _ANSWER,
    _JSON_HEAD + b"Connection: close\r\n\r\n" + _ANSWER,
    _JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(_ANSWER) + b"0\r\n\r\n",
    _JSON_HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunk(_ANSWER) + b"0\r\n\r\n",
    _JSON_HEAD + b"Content-Length: 2\r\nX: a\r\n b\r\n\r\n{}",
    _JSON_HEAD + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
    _JSON_HEAD + b"Content-Length: 2\r\nSet-Cookie: a\r\nContent-Type: text/html\r\n\r\n{}",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + _JSON_HEAD + b"Content-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: x\r\n\r\n",
    b"HTTP/1.1 429 No\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 999 \r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 000 x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nto the end",
    b"not HTTP at all\r\n\r\n",
    b"\x00\xff" * 100,
    b"",
    _SSE_HEAD + b"".join(chunk(event) for event in EVENTS[:3]) + chunk(EVENTS[7]) + b"0\r\n\r\n",
    _SSE_HEAD + b"".join(chunk(event) for event in EVENTS) + b"0\r\n\r\n",
    _SSE_HEAD + b"".join(chunk(event[:7]) + chunk(event[7:]) for event in EVENTS if len(event) > 8) + b"0\r\n\r\n",
    _SSE_HEAD + chunk(EVENTS[0]) + b"zz\r\n",
    _SSE_HEAD + chunk(EVENTS[0]) * 2000,
    _SSE_HEAD + chunk(b"data: " + b"x" * 100_000) * 15 + b"0\r\n\r\n",
    _SSE_HEAD + chunk(b"".join(event for event in EVENTS if event.startswith(b"event: "))) + b"0\r\n\r\n",
    _SSE_HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"") + b"".join(EVENTS),
)
