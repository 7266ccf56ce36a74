"""Messages through pipes: whole, in order, null among them; and what happens when one side is gone."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from appliance.errors import IntegrityError, Interrupted
from appliance.jobs import exchange, pipes
from appliance.jobs.exchange import Exchanged

MESSAGES = [None, True, "prompt", ["base", "piece"], {"a": [1.5]}, "x" * 60_000]


def test_messages_arrive_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with exchange.opened() as ends:
        monkeypatch.setenv(exchange.VARIABLE, ends.environment()[exchange.VARIABLE])
        worker = Exchanged.inherited()
        for message in MESSAGES[:-1]:
            worker.say(message)
            ends.say(message)
        assert list(ends.said()) == MESSAGES[:-1]
        assert [worker.hear() for _ in MESSAGES[:-1]] == MESSAGES[:-1]
        worker.say(MESSAGES[-1])
        assert list(ends.said()) == MESSAGES[-1:]
        assert list(ends.said()) == []


def test_a_side_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(exchange.VARIABLE, raising=False)
    with pytest.raises(Interrupted):
        Exchanged.inherited()
    with exchange.opened() as ends:
        worker = Exchanged(*map(os.dup, ends.inherited))
        ends.hand_over()
        os.close(worker._writes)
        assert list(ends.said()) == []
        os.close(ends.writes)
        ends.writes = -1
        with pytest.raises(Interrupted, match="gone"):
            worker.hear()
        os.close(worker._reads)


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{]"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with exchange.opened() as ends:
        os.write(ends.inherited[1], data)
        with pytest.raises(IntegrityError, match="no message"):
            list(ends.said())


@pytest.mark.timeout(60)
def test_a_worker_that_never_stops_talking_holds_nobody_up_and_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_LONGEST", 1 << 20)
    with exchange.opened() as ends:
        talker = os.dup(ends.inherited[1])
        ends.hand_over()
        thread = threading.Thread(target=_talk, args=(talker,))
        thread.start()
        for _ in range(3):
            ends.wait(60.0)  # until something is said
            said = list(ends.said())
            assert 0 < 6 * len(said) < (1 << 20) + pipes._MOST + (1 << 17)  # bytes that were held at once
    thread.join()  # the supervisor's end is closed: whoever talks is told


def _talk(descriptor: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        while True:
            os.write(descriptor, b"\x00\x00\x00\x02{}" * 10_000)
    os.close(descriptor)
