"""Two real llama.cpp processes, primary and fallback, asked by the official client and by curl."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from appliance.jobs.job import IsolationSpec
from appliance.jobs.serve import EngineSpec, Health, Limits
from tests.filtered import FILTER, without_sockets_but
from tests.unit.serve.conftest import ASK, KEY, Running, Starter, llama

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def llamas(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory):
    """A gateway over two llama.cpp servers of a tiny model, on loopback."""
    starter = Starter(tmp_path_factory.mktemp("llamas"))
    health = Health(first_token_s=60.0, next_token_s=60.0, probe_s=0.3)
    yield starter(llama("primary", tiny_gguf), llama("fallback", tiny_gguf, slots=4), health=health)
    starter.end()


def test_the_official_client(llamas: Running) -> None:
    client = llamas.openai()
    assert [model.id for model in client.models.list()] == ["notes"]
    answer = client.chat.completions.create(model="notes", messages=MESSAGES, max_tokens=6, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 6
    stream = client.chat.completions.create(
        model="notes", messages=MESSAGES, max_tokens=6, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    found = list(stream)
    text = "".join(choice.delta.content or "" for chunk in found for choice in chunk.choices)
    assert text == answer.choices[0].message.content
    assert found[-1].usage == answer.usage
    assert {chunk.id for chunk in found} == {found[0].id}
    plain = client.completions.create(model="notes", prompt="hello", max_tokens=4, temperature=0)
    parts = client.completions.create(model="notes", prompt="hello", max_tokens=4, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == plain.choices[0].text
    with pytest.raises(openai.NotFoundError, match="there is notes"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="longer than the model's context"):
        client.chat.completions.create(model="notes", messages=[{"role": "user", "content": "x" * 3000}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{llamas.address}/v1", api_key="no", max_retries=0).models.list()


def test_curl(llamas: Running) -> None:
    def curl(*words: str) -> str:
        command = ["curl", "-sS", "-H", f"Authorization: Bearer {KEY}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert '"id":"notes"' in curl(f"{llamas.address}/v1/models")
    asked = '{"model": "notes", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": true}'
    said = curl("-N", "-i", f"{llamas.address}/v1/chat/completions", "-d", asked)
    assert "x-engine: primary" in said
    assert said.rstrip().endswith("data: [DONE]")


def test_the_fallback_takes_over_from_a_killed_engine_in_the_midst(llamas: Running) -> None:
    before = llamas.pid("primary")
    os.kill(before, signal.SIGKILL)
    answers = [llamas.ask() for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].headers["x-engine"] == "fallback"
    assert llamas.pid("primary", before)
    assert llamas.ask().headers["x-engine"] == "primary"


def test_engines_have_no_network_and_do_not_answer_others(llamas: Running) -> None:
    for name in ("primary", "fallback"):
        pid = llamas.pid(name)
        assert llamas.engine(name).network == "loopback"
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"HF_HUB_OFFLINE=1" in environment


def test_transformers_as_the_last_resort(start: Starter, tiny_model_dir: Path) -> None:
    spec = EngineSpec(name="primary", kind="transformers", model=str(tiny_model_dir), model_sha256="1" * 64, slots=1)
    running = start(spec, health=Health(first_token_s=20.0))
    client = running.openai()
    asked = {"model": "notes", "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    answer = client.chat.completions.create(**asked)
    text = "".join(part.choices[0].delta.content or "" for part in client.chat.completions.create(**asked, stream=True))
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens > 5) == (text, True)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**asked, seed=7)
    with pytest.raises(openai.BadRequestError, match="longer than the model's context"):
        client.chat.completions.create(**asked | {"messages": [{"role": "user", "content": "x" * 3000}]})


@pytest.mark.model
def test_a_real_engine_stops_when_its_client_goes_away(start: Starter, smollm2_gguf: Path) -> None:
    one_place = llama("primary", smollm2_gguf, slots=1, context=4096)
    running = start(one_place, health=Health(first_token_s=120.0))
    took: list[float] = []
    while not took or (min(took) >= 5.0 and len(took) < 3):  # a busy machine may spoil a round, not three
        with running.client() as client, client.stream("POST", "/v1/completions", json=long()) as stream:
            next(stream.iter_raw())
        began = time.monotonic()
        assert running.ask(max_tokens=1).status_code == 200
        took.append(time.monotonic() - began)
    assert min(took) < 5.0, "its one place was still taken"
    running.wait(lambda: running.state().left == len(took))


def long() -> dict[str, object]:
    return {"model": "notes", "prompt": "Once upon a time", "max_tokens": 3000, "temperature": 0, "stream": True}


def test_a_thousand_connections_at_once(start: Starter, stress_count: Callable[[int, int], int]) -> None:
    many = stress_count(1000, 4000)
    running = start(limits=Limits(connections=8192, queue=8192), health=Health(first_token_s=60.0))

    body = json.dumps(ASK).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
    asked = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    place = urlsplit(running.address)

    async def ask_all() -> list[bytes]:
        opened = await asyncio.gather(*(asyncio.open_connection(place.hostname, place.port) for _ in range(many)))
        for _, writer in opened:
            writer.write(asked)
        answers = [await reader.read() for reader, _ in opened]
        for _, writer in opened:
            writer.close()
        return answers

    answers = asyncio.run(ask_all())
    assert all(answer.startswith(b"HTTP/1.1 200") and b"x-engine: primary" in answer for answer in answers)
    assert running.spool() == []


def test_a_unix_socket_is_only_for_its_owner(start: Starter, tmp_path: Path) -> None:
    path = tmp_path / "s"
    running = start(socket=str(path))
    assert running.address == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o600, "unless its group is named"
    command = ["curl", "-sS", "--unix-socket", str(path), "-H", f"Authorization: Bearer {KEY}", "http://x/v1/models"]
    assert '"id":"notes"' in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (tmp_path / "second").mkdir()
    second = Starter(tmp_path / "second")
    with pytest.raises(AssertionError, match="somebody listens there already"):
        second(socket=str(path))
    second.end()
    running.end()
    assert not path.exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is written for x86-64: not run")
def test_an_engine_that_can_open_no_socket_of_a_network_needs_no_namespace(
    start: Starter, tiny_gguf: Path, tmp_path: Path
) -> None:
    """As in the appliance's unit, which gives no namespaces either; the group of the socket's directory may connect."""
    place = tmp_path / "run"
    place.mkdir()
    os.chown(place, -1, os.getgid())
    place.chmod(0o2750)
    filtered = (*NO_NAMESPACES, sys.executable, "-c", FILTER)
    running = start(
        llama("primary", tiny_gguf), prefix=filtered, isolation=IsolationSpec(network="required"),
        socket=str(place / "s"), for_group=True,
    )  # fmt: skip
    assert running.engine("primary").network == "none"
    assert (place / "s").stat().st_mode & 0o777 == 0o660
    command = ["curl", "-sS", "--unix-socket", str(place / "s"), "-H", f"Authorization: Bearer {KEY}"]
    asked = [*command, "http://x/v1/chat/completions", "-d", json.dumps(ASK)]
    assert '"choices"' in subprocess.run(asked, capture_output=True, text=True, check=True).stdout


NO_NAMESPACES = ("unshare", "-rn", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "--")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is written for x86-64: not run")
def test_one_family_of_sockets_that_is_left_is_a_network(start: Starter, tiny_gguf: Path, tmp_path: Path) -> None:
    filtered = (*NO_NAMESPACES, sys.executable, "-c", without_sockets_but(socket.AF_NETLINK))
    required = IsolationSpec(network="required")
    engine, listens = llama("primary", tiny_gguf), str(tmp_path / "s")
    running = start(engine, prefix=filtered, isolation=required, socket=listens, wait=False)
    running.wait(lambda: running.engine("primary").network != "")
    assert running.engine("primary").network == "refused"


@pytest.mark.parametrize("wanted", ["required", "preferred"])
def test_an_engine_keeps_the_network_only_where_that_is_allowed(start: Starter, tiny_gguf: Path, wanted: str) -> None:
    if subprocess.run([*NO_NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces cannot be limited here: not run")
    isolation = IsolationSpec.model_validate({"network": wanted})
    running = start(llama("primary", tiny_gguf), prefix=NO_NAMESPACES, isolation=isolation, wait=False)
    running.wait(lambda: running.engine("primary").network != "")
    assert running.engine("primary").network == ("refused" if wanted == "required" else "host")
    if wanted == "preferred":
        running.wait(lambda: running.engine("primary").well)
    assert IsolationSpec().network == "required", "nothing is allowed unless somebody says so"


def test_vllm(start: Starter, request: pytest.FixtureRequest) -> None:
    """vLLM takes 2.9 GB and minutes: only under --stress, where APPLIANCE_VLLM names the Python of its environment."""
    python = os.environ.get("APPLIANCE_VLLM")
    if not python or not request.config.getoption("--stress"):
        pytest.skip("no vLLM here: not run")
    model = str(request.getfixturevalue("smollm2_dir"))
    small = ("--gpu-memory-utilization", "0.2", "--enforce-eager")  # of the machine's memory, on a CPU
    command = (python, "-m", "vllm.entrypoints.openai.api_server", *small)
    spec = EngineSpec(
        name="primary", kind="vllm", model=model, model_sha256="1" * 64, command=command, context=512
    )  # fmt: skip
    running = start(spec, health=Health(first_token_s=60.0), wait=False)
    running.wait(lambda: running.engine("primary").well, 600.0)
    client = running.openai()
    asked = {"model": "notes", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    answer = client.chat.completions.create(**asked)
    parts = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == answer.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="longer than the model's context"):
        client.chat.completions.create(**asked | {"messages": [{"role": "user", "content": "word " * 3000}]})
