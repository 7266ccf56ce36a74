"""A chat: no key and no private record; what is asked and answered goes through a pipe and is kept nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from appliance.jobs.chat import ChatJob, ChatResult
from appliance.jobs.exchange import Exchanged
from appliance.jobs.rundir import RunDir
from appliance.jobs.variants import BASE
from appliance.worker import confinement
from appliance.worker.variants import Opened, enter, open_variants

if TYPE_CHECKING:
    from appliance.evaluate.prompting import Said

JOB = ChatJob


def run(job: ChatJob, run_dir: RunDir) -> ChatResult:
    """Answer until the supervisor says null. It says a prompt, or true to begin a new conversation."""
    exchange = Exchanged.inherited()
    isolation = enter(job, run_dir)
    talk = _Talk(job, open_variants(job))
    exchange.say(None)
    while (prompt := exchange.hear()) is not None:
        if prompt is True:
            talk = talk.anew()
        else:
            for name, piece in talk.answer(str(prompt)):
                exchange.say([name, piece])
        exchange.say(None)
    return ChatResult(run_id=job.run_id, isolation=isolation, libraries=confinement.libraries())


class _Talk:
    """One conversation with each variant; they hear the same and remember their own answers."""

    def __init__(self, job: ChatJob, opened: Opened) -> None:
        from appliance.evaluate.generation import drawing
        from appliance.evaluate.prompting import takes_turns

        self._job, self._opened, self._writer = job, opened, opened.writer()
        self._choose = drawing(job.temperature)
        self._remembers = takes_turns(opened.tokenizer, job.train.template)
        self._said: dict[str, list[Said]] = {name: [] for name in (BASE, *job.adapters)}

    def anew(self) -> _Talk:
        """Forget what was said."""
        return _Talk(self._job, self._opened)

    def answer(self, prompt: str) -> Iterator[tuple[str, str]]:
        """Let the variants answer, a piece of each in turn; an empty piece ends an answer."""
        writing = {name: self._begin(name, prompt) for name in self._said}
        while writing:
            for name, pieces in list(writing.items()):
                piece = next(pieces, "")
                if not piece:
                    del writing[name]
                yield name, piece

    def _begin(self, name: str, prompt: str) -> Iterator[str]:
        from appliance.evaluate.prompting import write_prompt

        said = self._said[name]
        said.append(("user", prompt))
        text = write_prompt(self._opened.tokenizer, self._job.train.template, said)
        ids = self._writer.encode(text)
        adapter = None if name == BASE else name
        return self._keep(said, self._writer.pieces(adapter, ids, self._job.most_tokens, self._choose))

    def _keep(self, said: list[Said], pieces: Iterator[str]) -> Iterator[str]:
        text = ""
        for piece in pieces:
            text += piece
            yield piece
        if self._remembers:
            said.append(("assistant", text))
        else:
            said.clear()
