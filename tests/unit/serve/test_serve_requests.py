"""What clients send, well or badly: every error is OpenAI's error object, and no word of a request is in it."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from appliance.jobs.serve import Limits
from tests.unit.serve.conftest import ASK, KEY, QUICK, Running, Starter, write_clients

SECRET = "quokka-7391"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WRONG: list[tuple[str, Any, int, str]] = [
    (CHAT, b"{", 400, "invalid_json"),
    (CHAT, b"[]", 400, "invalid_json"),
    (CHAT, b'{"model": "notes", "x": NaN}', 400, "invalid_json"),
    (CHAT, b"\xff\xfe", 400, "invalid_json"),
    (CHAT, b"[" * 100_000, 400, "invalid_json"),
    (CHAT, {"messages": ASK["messages"]}, 400, "missing_required_parameter"),
    (CHAT, ASK | {"model": "gpt-4"}, 404, "model_not_found"),
    (CHAT, ASK | {"messages": SECRET}, 400, "invalid_request"),
    (CHAT, ASK | {"messages": []}, 400, "invalid_request"),
    (CHAT, ASK | {"messages": [{"role": SECRET, "content": "x"}]}, 400, "invalid_request"),
    (CHAT, ASK | {"messages": [{"role": "user", "content": 7}]}, 400, "invalid_request"),
    (CHAT, ASK | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
     400, "invalid_request"),
    (CHAT, ASK | {"max_tokens": 0}, 400, "invalid_value"),
    (CHAT, ASK | {"max_tokens": 10**9}, 400, "invalid_value"),
    (CHAT, ASK | {"max_tokens": True}, 400, "invalid_value"),
    (CHAT, ASK | {"temperature": 3}, 400, "invalid_value"),
    (CHAT, ASK | {"n": 2}, 400, "invalid_value"),
    (CHAT, ASK | {"stream": "yes"}, 400, "invalid_request"),
    (CHAT, ASK | {"lora": [{"id": 0, "scale": 0}]}, 400, "unknown_parameter"),
    (CHAT, ASK | {"id_slot": 1}, 400, "unknown_parameter"),
    (CHAT, ASK | {SECRET + "!": 1}, 400, "unknown_parameter"),
    (TEXT, {"model": "notes"}, 400, "invalid_request"),
    (TEXT, {"model": "notes", "prompt": [SECRET]}, 400, "invalid_request"),
    (TEXT, {"model": "notes", "prompt": "x", "messages": 1, "tools": []}, 400, "unknown_parameter"),
    ("/v1/embeddings", {"model": "notes"}, 404, "unknown_url"),
]  # fmt: skip


def test_what_is_wrong_gets_an_error_object(calm: Running) -> None:
    asked = calm.said("primary")
    with calm.client() as client:
        for url, body, status, code in WRONG:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = client.post(url, content=data)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code), (url, body if len(data) < 200 else "")
            assert set(error) == {"message", "type", "param", "code"}
            assert SECRET not in answer.text
    assert calm.said("primary") == asked, "an engine saw a request that is wrong"


def test_a_request_that_is_too_long_for_the_model_or_for_us(start: Starter) -> None:
    # Without questions of its own, two of which would take the engine out that refuses everything.
    running = start(limits=Limits(body_bytes=2000), health=QUICK.model_copy(update={"probe_s": 600.0}))
    with running.client() as client:
        answer = client.post(CHAT, json=ASK | {"messages": [{"role": "user", "content": "x" * 3000}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        answer = client.post(CHAT, content=(b"x" * 500 for _ in range(5)))  # chunked: no length is announced
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    running.set("primary", "400")
    answer = running.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert running.said("fallback") == [], "what is the request's fault is not tried again"


def test_without_a_key_nothing_is_told(calm: Running) -> None:
    for key in ("x", "sk-wrong", KEY + "x", KEY[:-1]):
        with calm.client(key) as client:
            for answer in (client.get("/v1/models"), client.post(CHAT, json=ASK), client.get("/v1/nothing")):
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
                assert "notes" not in answer.text
    with calm.client() as client:
        assert client.get("/v1/models/notes").json()["appliance"]["run"] == "run_1"
        assert client.get("/v1/models/other").status_code == 404
        assert client.get("/health", headers={"authorization": ""}).json() == {"status": "ok"}


def test_a_client_that_asks_too_often_waits_and_one_that_is_revoked_is_out(start: Starter) -> None:
    running = start(per_minute=3)
    answers = [running.ask() for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
    write_clients(running.directory / "clients.json", 100)
    assert running.ask().status_code == 200
    (running.directory / "clients.json").write_text('{"schema": "appliance.clients/1", "clients": []}')
    assert running.ask().status_code == 401
    (running.directory / "clients.json").write_text("{")
    assert running.ask().status_code == 401


def test_what_the_engine_says_of_a_request_is_not_passed_on(calm: Running) -> None:
    calm.set("primary", "500")
    assert "SECRET" not in calm.ask().text


def connect(running: Running) -> socket.socket:
    place = urlsplit(running.address)
    return socket.create_connection((place.hostname, place.port))


def test_whoever_dawdles_is_hung_up_on(start: Starter) -> None:
    running = start(limits=Limits(header_s=2.0, body_s=2.0))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
    trickles = [(time.monotonic(), connect(running)) for _ in range(50)]
    for place in range(8):
        for began, one in trickles:
            try:
                one.sendall(head[place : place + 1])
            except OSError:
                assert time.monotonic() - began >= 2.0
        time.sleep(0.3)
        assert running.ask().status_code == 200, "others are answered meanwhile"
    for _, one in trickles:
        one.settimeout(60)
        with suppress(ConnectionResetError):
            assert one.recv(100) == b""
        one.close()
    with connect(running) as slow:
        slow.sendall(head + f"authorization: Bearer {KEY}\r\ncontent-length: 100\r\n\r\n{{".encode())
        slow.settimeout(60)
        assert b"408" in slow.recv(1000).split(b"\r\n")[0]


def test_a_second_request_on_a_connection_may_not_dawdle_either(start: Starter) -> None:
    running = start(limits=Limits(header_s=2.0))
    with connect(running) as one:
        one.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        one.settimeout(60)
        said = b""
        while not said.endswith(b"}"):
            piece = one.recv(1000)
            assert piece, "it was hung up on"
            said += piece
        one.sendall(b"GET /hea")
        assert one.recv(100) == b""


def test_an_engine_stops_when_its_client_goes_away(calm: Running) -> None:
    calm.set("primary", "endless")
    for stream in (True, False):
        asked, gone = (calm.said("primary").count(word) for word in ("asked", "gone"))
        with connect(calm) as one:
            body = json.dumps(ASK | {"stream": stream}).encode()
            head = (
                f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            one.sendall(head.encode() + body)
            calm.wait(lambda asked=asked: calm.said("primary").count("asked") > asked)
        calm.wait(lambda gone=gone: calm.said("primary").count("gone") > gone)
    assert calm.spool() == []


def test_nothing_of_a_request_is_written_anywhere(calm: Running) -> None:
    calm.ask(messages=[{"role": "user", "content": SECRET}])
    calm.ask(messages=[{"role": "user", "content": SECRET}], model=SECRET)
    calm.set("primary", "garbage")
    calm.ask(messages=[{"role": "user", "content": SECRET}])
    time.sleep(0.3)
    for path in calm.directory.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # the state is written under another name first
            assert SECRET.encode() not in path.read_bytes(), path
    assert (calm.directory / "printed").read_bytes() == b""
