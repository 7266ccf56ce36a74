"""What each item of a benchmark scores, for the base and for every adapter; greater is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import ArtefactMissing
from appliance.evaluate.generation import Writer
from appliance.evaluate.losses import Meter
from appliance.evaluate.prompting import automatic_start, write_prompt

Scores = dict[str, dict[str, list[float]]]
"""By metric, then by variant."""
STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n@", "\n```", "\nassert", "\nfrom ", "\nimport ")
"""Where a function that was written ends: HumanEval's, and what small models go on with."""
_LONGEST = 2048  # tokens of one text


@dataclass(frozen=True, slots=True)
class _Row:
    ids: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def length(self) -> int:
        """Padded to a multiple of 8."""
        return -(-len(self.ids) // 8) * 8


@dataclass(frozen=True, slots=True)
class Measuring:
    """What a measurement needs.

    Attributes:
      names: of the variants, the base first.
      tokenizer: of the base.
      template: as the run has it.
      meter: measures losses.
      writer: writes text.
      most_tokens: that an answer may have.
    """

    names: tuple[str, ...]
    tokenizer: Any
    template: str
    meter: Meter
    writer: Writer
    most_tokens: int

    def log_likelihoods(self, texts: Sequence[str]) -> Scores:
        """Take the mean log-likelihood of each text, nat per token."""
        rows = [self._row(automatic_start(self.tokenizer), text) for text in texts]
        return {"log-likelihood": self._by_name(rows)}

    def choices(self, questions: Sequence[tuple[str, Sequence[str], int]]) -> Scores:
        """Say of each question whether the right answer has the greatest mean log-likelihood."""
        start = automatic_start(self.tokenizer)
        rows = [self._row(start + prompt, f" {choice}") for prompt, offered, _ in questions for choice in offered]
        found = self._by_name(rows)
        return {"accuracy": {name: list(_right(one, questions)) for name, one in found.items()}}

    def exact(self, questions: Sequence[tuple[str, str]]) -> Scores:
        """Say of each question whether what is written is the answer, but for blanks and case."""
        written = self._answers([prompt for prompt, _ in questions])
        wanted = [_normal(answer) for _, answer in questions]
        return {
            "exact match": {
                name: [float(_normal(text) == answer) for text, answer in zip(texts, wanted, strict=True)]
                for name, texts in written.items()
            }
        }

    def references(self, questions: Sequence[tuple[str, Sequence[str]]]) -> Scores:
        """Compare what is written with references, by ROUGE-L (F) and by sentence BLEU, both from 0 to 100."""
        rouge, bleu = _rouge(), _bleu()
        written = self._answers([prompt for prompt, _ in questions])
        return {
            metric: {
                name: [score(text, given) for text, (_, given) in zip(texts, questions, strict=True)]
                for name, texts in written.items()
            }
            for metric, score in (("rouge-l", rouge), ("bleu", bleu))
        }

    def functions(self, prompts: Sequence[str]) -> Iterator[tuple[int, str, str]]:
        """Write on behind each prompt with each variant: item, name, what was written."""
        for number, prompt in enumerate(prompts):
            ids = self.writer.encode(automatic_start(self.tokenizer) + prompt)
            for name in self.names:
                yield number, name, self.writer.write(self._adapter(name), ids, self.most_tokens, STOPS)

    def _answers(self, prompts: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in self.names}
        for prompt in prompts:
            ids = self.writer.encode(write_prompt(self.tokenizer, self.template, [("user", prompt)]))
            for name in self.names:
                found[name].append(self.writer.write(self._adapter(name), ids, self.most_tokens))
        return found

    def _adapter(self, name: str) -> str | None:
        return None if name == self.names[0] else name

    def _row(self, before: str, after: str) -> _Row:
        read = self.writer.encode(before)
        ids = [*read, *self.writer.encode(after)][: min(_LONGEST, self.writer.limit or _LONGEST)]
        first = max(1, min(len(read), len(ids) - 1))
        return _Row(tuple(ids), tuple(range(first - 1, len(ids) - 1)))

    def _by_name(self, rows: Sequence[_Row]) -> dict[str, list[float]]:
        losses = self.meter.measure(rows)
        return {name: [-float(loss) for loss in losses[:, column]] for column, name in enumerate(self.names)}


def _right(scores: Sequence[float], questions: Sequence[tuple[str, Sequence[str], int]]) -> Iterator[float]:
    place = 0
    for _, offered, answer in questions:
        own = scores[place : place + len(offered)]
        place += len(offered)
        yield float(max(range(len(own)), key=own.__getitem__) == answer)


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def _rouge() -> Callable[[str, Sequence[str]], float]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _missing() from None
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return lambda text, given: float(scorer.score_multi(list(given), text)["rougeL"].fmeasure) * 100


def _bleu() -> Callable[[str, Sequence[str]], float]:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise _missing() from None
    scorer = BLEU(effective_order=True)
    return lambda text, given: float(scorer.sentence_score(text, list(given)).score)


def _missing() -> ArtefactMissing:
    return ArtefactMissing("rouge-score or sacrebleu is not installed", hint="pip install 'appliance[evaluate]'")
