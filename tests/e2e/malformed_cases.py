"""What nobody should send, as tables: bodies in JSON, and requests as bytes. malformed_test.py sends them all."""

import json

GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
BODY = json.dumps({"text": "Hello", "sampling_params": {"temperature": 0, "max_new_tokens": 1}}).encode()
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


def sampling(**parameters):
    return {"text": "Hello", "sampling_params": parameters}


def in_sampling(text):
    return b'{"text": "a", "sampling_params": {' + text + b"}}"


# What it is; method and path; body (bytes are sent as they are); accepted statuses. All want a message in JSON.
BODIES = [
    ("trailing comma", "POST", GENERATE, b'{"text": "a",}', {400}),
    ("single quotes", "POST", GENERATE, b"{'text': 'a'}", {400}),
    ("a comment", "POST", GENERATE, b'{"text": "a" /* b */}', {400}),
    ("a lone quote", "POST", GENERATE, b'"', {400}),
    ("UTF-16", "POST", GENERATE, '{"text": "a"}'.encode("utf-16"), {400}),
    ("an overlong character", "POST", GENERATE, b'{"text": "\xc0\xaf"}', {400}),
    ("a surrogate in UTF-8", "POST", GENERATE, b'{"text": "\xed\xa0\x80"}', {400}),
    ("a character beyond Unicode", "POST", GENERATE, b'{"text": "\xf4\x90\x80\x80"}', {400}),
    ("half a character", "POST", GENERATE, b'{"text": "\xe2\x82"}', {400}),
    ("an unknown escape", "POST", GENERATE, b'{"text": "\\x41"}', {400}),
    ("a line break in a string", "POST", GENERATE, b'{"text": "a\nb"}', {400}),
    ("a zero byte in a string", "POST", GENERATE, b'{"text": "a\x00b"}', {400}),
    ("a string without an end", "POST", GENERATE, b'{"text": "a', {400}),
    ("a number with a leading zero", "POST", GENERATE, in_sampling(b'"max_new_tokens": 01'), {400}),
    ("a number with a plus", "POST", GENERATE, in_sampling(b'"max_new_tokens": +1'), {400}),
    ("a hexadecimal number", "POST", GENERATE, in_sampling(b'"max_new_tokens": 0x10'), {400}),
    ("a number without digits behind its point", "POST", GENERATE, in_sampling(b'"temperature": 1.'), {400}),
    ("minus infinity", "POST", GENERATE, in_sampling(b'"temperature": -Infinity'), {400}),
    ("tokens beyond 64 bits", "POST", GENERATE, in_sampling(b'"max_new_tokens": 18446744073709551617'), {400}),
    ("tokens beyond 32 bits", "POST", GENERATE, in_sampling(b'"max_new_tokens": 4294967297'), {400}),
    ("a fractional length", "POST", GENERATE, in_sampling(b'"max_new_tokens": 1.5'), {400}),
    ("NaN as text", "POST", GENERATE, in_sampling(b'"temperature": "NaN"'), {400}),
    ("an id at 2^31", "POST", GENERATE, b'{"input_ids": [2147483648]}', {400}),
    ("an id at -2^63", "POST", GENERATE, b'{"input_ids": [-9223372036854775808]}', {400}),
    ("ids three deep", "POST", GENERATE, {"input_ids": [[[5]]]}, {400}),
    ("objects nested deeply", "POST", GENERATE, b'{"a":' * 50000, {400}),
    ("nesting among sampling parameters", "POST", GENERATE, in_sampling(b'"stop": ' + b"[" * 3000), {400}),
    ("a huge top_logprobs_num", "POST", GENERATE,
     {"text": "a", "return_logprob": True, "top_logprobs_num": 1 << 30}, {400}),
    ("log-probabilities beyond the vocabulary", "POST", GENERATE,
     {"text": "a", "return_logprob": True, "token_ids_logprob": [1 << 30]}, {400}),
    ("a stop id beyond the vocabulary", "POST", GENERATE, sampling(stop_token_ids=[1 << 30]), {400}),
    ("streaming as a list", "POST", GENERATE, {"text": "a", "stream": [True]}, {400}),
    ("a rid that is an object", "POST", GENERATE, {"text": "a", "rid": {"a": 1}}, {400}),
    ("a completion of invalid UTF-8", "POST", COMPLETIONS, b'{"prompt": "\xff"}', {400}),
    ("a completion with NaN", "POST", COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', {400}),
    ("a completion nested deeply", "POST", COMPLETIONS, b'{"prompt": ' + b"[" * 100000, {400}),
    ("a completion of negative ids", "POST", COMPLETIONS, {"prompt": [-1]}, {400}),
    ("a completion with n above its bound", "POST", COMPLETIONS, {"prompt": "a", "n": 1 << 31}, {400}),
    ("a completion with too many logprobs", "POST", COMPLETIONS, {"prompt": "a", "logprobs": 1 << 31}, {400}),
    ("messages as an object", "POST", CHAT, {"messages": {"role": "user"}}, {400}),
    ("a message that is a string", "POST", CHAT, {"messages": ["hello"]}, {400}),
    ("a message nested deeply", "POST", CHAT, b'{"messages": ' + b"[" * 100000, {400}),
    ("a message of half a surrogate", "POST", CHAT, b'{"messages": [{"role": "user", "content": "\\udfff"}]}', {400}),
    ("an image", "POST", CHAT,
     {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
     {400}),
    ("chat with infinity", "POST", CHAT, b'{"messages": [{"role": "user", "content": "a"}], "top_p": 1e999}', {400}),
    ("text to tokenize that is a number", "POST", TOKENIZE, {"prompt": 5}, {400}),
    ("nothing to tokenize", "POST", TOKENIZE, b"", {400}),
    ("ids to detokenize that are texts", "POST", DETOKENIZE, {"tokens": ["a"]}, {400}),
    ("ids to detokenize beyond 64 bits", "POST", DETOKENIZE, b'{"tokens": [99999999999999999999]}', {400}),
    ("a path out of the tree", "GET", "/../../etc/passwd", None, {404}),
    ("an encoded path out of the tree", "GET", "/v1/%2e%2e/%2e%2e/etc/passwd", None, {404}),
    ("a path with an encoded zero", "GET", "/health%00x", None, {404}),
    ("a model card out of the tree", "GET", "/v1/models/..%2f..%2fetc%2fpasswd", None, {404}),
]

# Bodies for servers only: a router splices fields of its own, or does not have the endpoint.
SERVER_BODIES = [
    ("a room below 0", "POST", GENERATE, {"text": "a", "bootstrap_room": -1}, {400}),
    ("a room beyond 63 bits", "POST", GENERATE, b'{"text": "a", "bootstrap_room": 9223372036854775808}', {400}),
    ("a room that is a word", "POST", GENERATE, {"text": "a", "bootstrap_room": "lounge"}, {400}),
    ("a bootstrap port beyond 16 bits", "POST", GENERATE, {"text": "a", "bootstrap_port": 65536}, {400}),
    ("a bootstrap port below 0", "POST", GENERATE, {"text": "a", "bootstrap_port": -1}, {400}),
    ("a bootstrap host that is a number", "POST", GENERATE, {"text": "a", "bootstrap_host": 5}, {400}),
    ("a bootstrap host with a line break", "POST", GENERATE, {"text": "a", "bootstrap_host": "a\nb"}, {400}),
    ("a bootstrap host of 1 MB", "POST", GENERATE, {"text": "a", "bootstrap_host": "a" * (1 << 20)}, {400}),
    ("more rooms than prompts", "POST", GENERATE, {"text": ["a", "b"], "bootstrap_room": [1, 2, 3]}, {400}),
    ("sleep below 0", "POST", "/slow_down", {"forward_sleep_time": -1}, {400}),
    ("sleep for ever", "POST", "/slow_down", b'{"forward_sleep_time": 1e999}', {400}),
    ("sleep for NaN", "POST", "/slow_down", b'{"forward_sleep_time": NaN}', {400}),
    ("a sleep that is a word", "POST", "/slow_down", {"forward_sleep_time": "long"}, {400}),
    ("a hold for fewer than no requests", "POST", "/hold_admission", {"running_requests": -5}, {400}),
    ("a profile prefix out of its directory", "POST", "/start_profile", {"profile_prefix": "../../etc/x"}, {400}),
    ("a profile prefix with a zero", "POST", "/start_profile", b'{"profile_prefix": "a\\u0000b"}', {400}),
    ("a profile into a device", "POST", "/start_profile", {"output_dir": "/dev/null/x"}, {400}),
    ("a profile into the kernel", "POST", "/start_profile", {"output_dir": "/proc/self/x"}, {400}),
    ("a profile directory with a zero", "POST", "/start_profile", b'{"output_dir": "/tmp/a\\u0000b"}', {400}),
    ("a profile of no steps", "POST", "/start_profile", {"num_steps": 0}, {400}),
    ("a profile of 2^63 steps", "POST", "/start_profile", b'{"num_steps": 9223372036854775808}', {400}),
    ("an abort that is a list", "POST", "/abort_request", b"[]", {400}),
]


def post(headers, body=b""):
    return b"POST /generate HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + body


def get(headers):
    return b"GET /health HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"


def chunked(chunks):
    return post(b"Transfer-Encoding: chunked\r\n", chunks)


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: " + str(len(BODY)).encode() + b"\r\n"

# What it is; the bytes; accepted statuses. There is one answer at most, and the connection is closed behind it.
REQUESTS = [
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    ("no version", b"GET /health\r\n\r\n", {400}),
    ("another version", b"GET /health HTTP/3.7\r\nHost: x\r\n\r\n", {400}),
    ("a version in small letters", b"GET /health http/1.1\r\nHost: x\r\n\r\n", {400}),
    ("no method", b" /health HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("a method of odd characters", b"G(T /health HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("a space in the target", b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("a control byte in the target", b"GET /a\x01 HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("a zero byte in the target", b"GET /a\x00 HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("no target", b"GET  HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
    ("a target of 100 KB", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {431}),
    ("no host", b"GET /health HTTP/1.1\r\n\r\n", {400}),
    ("two hosts", get(b"Host: y\r\n"), {400}),
    ("bare line feeds", b"GET /health HTTP/1.1\nHost: x\n\n", {400}),
    ("a bare line feed in a header", get(b"X: a\nY: b\r\n"), {400}),
    ("a bare carriage return in a header", get(b"X: a\rb\r\n"), {400}),
    ("a zero byte in a header", get(b"X: a\x00b\r\n"), {400}),
    ("a space before the colon", get(b"X : a\r\n"), {400}),
    ("no colon", get(b"X a\r\n"), {400}),
    ("a header without a name", get(b": a\r\n"), {400}),
    ("odd characters in a header's name", get(b"X(a): b\r\n"), {400}),
    ("a folded header", get(b"X: a\r\n b\r\n"), {400}),
    ("a header folded by a tab", get(b"X: a\r\n\tb\r\n"), {400}),
    ("a fold behind the request line", b"GET /health HTTP/1.1\r\n Host: x\r\n\r\n", {400}),
    ("a header of 1 MB", get(b"X: " + b"a" * (1 << 20) + b"\r\n"), {431}),
    ("20,000 headers", get(b"X: a\r\n" * 20000), {431}),
    ("a header's name of 100 KB", get(b"X" * 100000 + b": a\r\n"), {431}),
    ("two lengths", post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"abcde") + SMUGGLED, {400}),
    ("two equal lengths", post(LENGTH + LENGTH, BODY) + SMUGGLED, {400}),
    ("a list of lengths", post(b"Content-Length: 5, 5\r\n", b"abcde") + SMUGGLED, {400}),
    ("a negative length", post(b"Content-Length: -5\r\n"), {400}),
    ("a length with a plus", post(b"Content-Length: +5\r\n", b"abcde"), {400}),
    ("a hexadecimal length", post(b"Content-Length: 0x5\r\n", b"abcde"), {400}),
    ("an empty length", post(b"Content-Length:\r\n", b"abcde"), {400}),
    ("a length of words", post(b"Content-Length: five\r\n", b"abcde"), {400}),
    ("a length beyond 64 bits", post(b"Content-Length: 99999999999999999999999\r\n"), {400}),
    ("a length of 2 GB", post(b"Content-Length: 2000000000\r\n"), {413}),
    ("a length of 2^63", post(b"Content-Length: 9223372036854775808\r\n"), {413}),
    ("length, then chunks", post(b"Content-Length: 37\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED), {400}),
    ("chunks, then length", post(CHUNKED + b"Content-Length: 3\r\n", b"0\r\n\r\n" + SMUGGLED), {400}),
    ("two transfer encodings", post(CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"), {400, 501}),
    ("chunked twice", post(CHUNKED + CHUNKED, b"0\r\n\r\n"), {400, 501}),
    ("a list of transfer encodings", post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), {501}),
    ("chunked, but not last", post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"), {501}),
    ("almost chunked", post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), {501}),
    ("chunked behind a vertical tab", post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), {400, 501}),
    ("chunked in quotes", post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"), {501}),
    ("identity", post(b"Transfer-Encoding: identity\r\n" + LENGTH, BODY), {400, 501}),
    ("chunks in HTTP/1.0", b"POST /generate HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
    ("a chunk size of words", chunked(b"zz\r\nabc\r\n0\r\n\r\n"), {400}),
    ("no chunk size", chunked(b"\r\nabc\r\n0\r\n\r\n"), {400}),
    ("a negative chunk size", chunked(b"-1\r\nabc\r\n0\r\n\r\n"), {400}),
    ("a chunk size with 0x", chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), {400}),
    ("a chunk size beyond 64 bits", chunked(b"1FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"), {400, 413}),
    ("a chunk size of 2^64 - 1", chunked(b"FFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"), {400, 413}),
    ("a chunk size of 2 GB", chunked(b"77359400\r\nabc"), {413}),
    ("a chunk longer than its size", chunked(b"3\r\nabcdef\r\n0\r\n\r\n"), {400}),
    ("a chunk behind a bare line feed", chunked(b"3\nabc\r\n0\r\n\r\n"), {400}),
    ("a chunk extension of 1 MB", chunked(b"3;x=" + b"a" * (1 << 20) + b"\r\nabc\r\n0\r\n\r\n"), {400}),
    ("a chunk size line of 1 MB", chunked(b"0" * (1 << 20) + b"3\r\nabc\r\n0\r\n\r\n"), {400, 413}),
    ("trailers of 1 MB", chunked(b"0\r\n" + b"X: a\r\n" * 170000 + b"\r\n"), {400}),
    ("a trailer without a colon", chunked(b"0\r\nX a\r\n\r\n"), {400}),
    ("an expectation that nobody knows", post(b"Expect: the-worst\r\n" + LENGTH, BODY), {417}),
]
