"""`model chat`: ask a run's model something. Nothing of it is recorded, and no private record is opened.

What is asked and answered exists in this process, in its pipes and in the sandboxed worker. It is in no job, no result,
no event and no file. An adapter is a differentially private release, so an answer tells no more than it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from appliance.flows import gpus, launch
from appliance.flows.home import Home
from appliance.flows.passing import passing_directory
from appliance.flows.subject import Subject, find_subject
from appliance.jobs import exchange
from appliance.jobs.chat import ChatJob, ChatResult
from appliance.jobs.exchange import Exchange
from appliance.jobs.variants import BASE

Prompt = str | Literal[True] | None
"""What is asked; True begins a new conversation, None ends the chat."""


class Asker(Protocol):
    """Who asks, and sees the answers."""

    def begin(self, names: tuple[str, ...]) -> None:
        """Learn that the model is there, and who answers."""

    def ask(self) -> tuple[Prompt] | None:
        """Ask something; None while nothing is said yet. It must not wait: an interrupt would not be heard."""

    def show(self, name: str, piece: str) -> None:
        """See a piece of an answer; an empty one ends it."""

    def end_turn(self) -> None:
        """Learn that all have answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How answers are written: tokens at most, and a temperature, at which 0 takes the likeliest token."""

    most_tokens: int = 256
    temperature: float = 0.0


def chat(home: Home, run_id: str, asker: Asker, manner: Manner) -> None:
    """Let somebody talk to the base, the adapter and the marked adapter of a run side by side.

    Raises:
      PolicyDenied: the run has not finished.
      IntegrityError: model or adapter are not those that the ledger records.
    """
    with home.reader() as ledger:
        found = find_subject(ledger, home, run_id)
    gpus.require(found.job.engine, processes=1)
    with passing_directory(home, "chat") as run_dir, exchange.opened() as pipes:
        run_dir.write_job(_job(found, manner))
        talk = _Talk(pipes, asker, (BASE, *found.names))
        with launch.supervising(run_dir):
            launch.run_worker(run_dir, ChatResult, watch=talk.go_on, pipes=pipes)


def _job(found: Subject, manner: Manner) -> ChatJob:
    return ChatJob(
        **found.variants(),
        isolation=found.job.isolation,
        most_tokens=manner.most_tokens,
        temperature=manner.temperature,
    )


class _Talk:
    """The turns: the worker says null when it listens, and pieces of answers in between."""

    def __init__(self, pipes: Exchange, asker: Asker, names: tuple[str, ...]) -> None:
        self._pipes, self._asker, self._names = pipes, asker, names
        self._listens = self._began = False

    def go_on(self) -> None:
        for message in self._pipes.said():
            if message is None:
                self._listen()
            else:
                self._asker.show(*message)
        if self._listens and (said := self._asker.ask()) is not None:
            self._pipes.say(said[0])
            self._listens = False

    def _listen(self) -> None:
        self._listens = True
        if self._began:
            self._asker.end_turn()
        else:
            self._began = True
            self._asker.begin(self._names)
