"""Messages like one that was read before: recognized only where the parser would have read the same."""

import pytest

from m3_router.http.alike import AnswersAlike, RequestsAlike
from m3_router.http.messages import Answer, Start
from m3_router.http.wire import REQUEST_ENDS_HERE, RESPONSE_ENDS_HERE, Head

HEAD = b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: %b\r\nX: 1\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ndate: %b\r\ncontent-length: %b\r\nX-Other: o\r\nx-m3-input-tokens: %b\r\n\r\n%b"


def requests_alike() -> RequestsAlike:
    start = Start(b"POST", b"/a", [], Head([], REQUEST_ENDS_HERE), is_http_1_0=False, keep_alive=True)
    alike = RequestsAlike.learn(HEAD % b"5" + b"hello", start)
    assert alike is not None
    return alike


def answers_alike() -> AnswersAlike:
    headers = [(b"date", b"a"), (b"content-length", b"2"), (b"X-Other", b"o"), (b"x-m3-input-tokens", b"7")]
    head = ANSWER % (b"a", b"2", b"7", b"")
    alike = AnswersAlike.learn(head, headers, Answer(200, Head(headers, RESPONSE_ENDS_HERE)))
    assert alike is not None
    return alike


@pytest.mark.parametrize("body", [b"", b"hello", b"x" * 12_345])
def test_a_request_of_another_length_is_like_it(body: bytes) -> None:
    assert requests_alike().body(HEAD % str(len(body)).encode() + body) == body


@pytest.mark.parametrize(
    "data",
    [
        HEAD % b"5" + b"hell",
        HEAD % b"5" + b"hello!",
        HEAD % b"+5" + b"hello",
        HEAD % b"5 " + b"hello",
        HEAD % b"5, 5" + b"hello",
        HEAD % b"" + b"",
        HEAD % b"0x5" + b"hello",
        HEAD % b"\xd9\xa5" + b"hello",
        HEAD % b"0000000000005" + b"hello",
        (HEAD % b"5").replace(b"X: 1", b"X: 2") + b"hello",
        (HEAD % b"5").replace(b"X: 1", b"Transfer-Encoding: chunked") + b"hello",
        (HEAD % b"5").replace(b"\r\nX", b"\nX") + b"hello",
        (HEAD % b"5").replace(b"\r\nX", b"\r\nContent-Length: 3\r\nX") + b"hello",
    ],
)
def test_whatever_else_differs_is_for_the_parser(data: bytes) -> None:
    assert requests_alike().body(data) is None


@pytest.mark.parametrize(
    "data", [HEAD % b"5" + b"hell", b"POST /a HTTP/1.1\r\nHost: r\r\n\r\n", HEAD % b"0" + HEAD % b"0", b"POST"]
)
def test_nothing_is_learned_from_what_is_not_one_whole_request(data: bytes) -> None:
    start = Start(b"POST", b"/a", [], Head([], REQUEST_ENDS_HERE), is_http_1_0=False, keep_alive=True)
    assert RequestsAlike.learn(data, start) is None


def test_an_answer_of_another_time_length_and_count_is_like_it() -> None:
    read = answers_alike().read(ANSWER % (b"Sat, 21 Nov", b"5", b"12345", b"hello"))
    assert read is not None
    answer, body = read
    assert (answer.status, body) == (200, b"hello")
    assert answer.head.known == {b"content-length": b"2", b"x-m3-input-tokens": b"12345"}
    assert answer.head.forward == b"date: Sat, 21 Nov\r\nX-Other: o\r\n"


@pytest.mark.parametrize("name", [b"request-id", b"x-request-id"])
def test_an_answer_to_another_request_is_like_it(name: bytes) -> None:
    headers = [(name, b"r-1"), (b"content-length", b"2")]
    head = b"HTTP/1.1 200 OK\r\n%b: %b\r\ncontent-length: %d\r\n\r\n"
    alike = AnswersAlike.learn(head % (name, b"r-1", 2), headers, Answer(200, Head(headers, RESPONSE_ENDS_HERE)))
    assert alike is not None
    read = alike.read(head % (name, b"r-22", 5) + b"hello")
    assert read is not None
    answer, body = read
    assert (answer.head.known[name], answer.head.forward, body) == (b"r-22", b"", b"hello")


@pytest.mark.parametrize(
    "data",
    [
        ANSWER % (b"a", b"5", b"7", b"hell"),
        ANSWER % (b"a", b"5", b"7", b"hello!"),
        ANSWER % (b"a\r\ntransfer-encoding: chunked", b"5", b"7", b"hello"),
        ANSWER % (b"a\x00", b"5", b"7", b"hello"),
        ANSWER % (b"", b"5", b"7", b"hello"),
        (ANSWER % (b"a", b"5", b"7", b"hello")).replace(b"200", b"204"),
        (ANSWER % (b"a", b"5", b"7", b"hello")).replace(b"X-Other: o", b"connection: close"),
    ],
)
def test_an_answer_that_differs_elsewhere_is_for_the_parser(data: bytes) -> None:
    assert answers_alike().read(data) is None


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (304, [(b"content-length", b"0")]),
        (200, [(b"transfer-encoding", b"chunked")]),
        (200, [(b"content-length", b"0"), (b"connection", b"close")]),
        (200, []),
    ],
)
def test_an_answer_whose_end_depends_on_more_is_not_learned(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    head = b"HTTP/1.1 %d\r\n" % status + b"".join(b"%b: %b\r\n" % pair for pair in headers) + b"\r\n"
    assert AnswersAlike.learn(head, headers, Answer(status, Head(headers, RESPONSE_ENDS_HERE))) is None
