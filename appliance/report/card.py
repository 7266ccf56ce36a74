"""`README.md`: the model card that goes with the adapter, in the form of the Hugging Face hub."""

from __future__ import annotations

import re

from appliance.errors import ApplianceError
from appliance.report.blocks import say, words
from appliance.report.evidence import Evidence
from appliance.report.figures import Sentence, fact
from appliance.report.guarantee import guarantee_sentence, odds
from appliance.report.verdict import utility, watermark

TAGS = ("lora", "differential-privacy", "dp-sgd")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{1,40}")
_LOADING = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = "DIRECTORY OF THE BASE MODEL"
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "adapter")
tokenizer = AutoTokenizer.from_pretrained(base)
```"""


def model_card(evidence: Evidence) -> bytes:
    """Write the card of the adapter that a finished run made.

    Raises:
      ApplianceError: the run made none.
    """
    if evidence.settled is None:
        raise ApplianceError("only a finished run has an adapter to describe", where=evidence.run_id)
    parts = [_front_matter(evidence), "# LoRA adapter trained with differential privacy", *_body(evidence)]
    return ("\n\n".join(parts) + "\n").encode()


def _body(evidence: Evidence) -> list[str]:
    reserved = evidence.reserved
    return [
        _text(
            say(
                *("Run ", fact(reserved, "/run_id"), " fine-tuned the base model ", fact(reserved, "/model_id")),
                " on private data. This directory holds the adapter, not the base model.",
            )
        ),
        "## Guarantee",
        _text(guarantee_sentence(evidence)),
        *_odds(evidence),
        "The bound covers this fine-tuning only: not the training data of the base model, and not other "
        "releases. It says "
        "how much can be inferred at most, not that nothing can. `privacy_statement.json` has every value with "
        "its place "
        "in the ledger.",
        "## Utility",
        _text(utility(evidence).sentence),
        "## Watermark",
        _text(watermark(evidence).sentence),
        _text(_mark(evidence)),
        "## Use",
        "Stock PEFT loads it; nothing of the appliance is needed.",
        _LOADING,
        _text(_base(evidence)),
        "## Limits",
        "No attack was run on the finished adapter. `report.html` lists what was performed, what was not, and "
        "what none of "
        "it shows. What the adapter writes can be false, unsafe or unfair.",
        "## Check",
        "`python verify.py . --trusted-key KEYS` checks every file and every figure offline. Get KEYS on another "
        "way than "
        "with this directory.",
    ]


def _odds(evidence: Evidence) -> list[str]:
    bound = odds(evidence.settled) if evidence.settled else None
    if bound is None:
        return []
    end = ", up to delta."
    return [_text(say("Whoever asks whether one unit was in the data can multiply their odds by at most ", bound, end))]


def _mark(evidence: Evidence) -> Sentence:
    if evidence.last("watermark.embedded") is None:
        return words("The adapter was released as it was trained.")
    return words(
        "The mark was embedded after training with a key that is independent of the data, so it leaves epsilon "
        "and delta as "
        "they are. Its owner can recognise the adapter, also merged or quantised, as far as the report predicts."
    )


def _base(evidence: Evidence) -> Sentence:
    model = evidence.last("model.imported")
    if model is None:
        return words("Use the base model that the run names.")
    return say("The base model is the one whose files have the SHA-256 ", fact(model, "/sha256"), ".")


def _front_matter(evidence: Evidence) -> str:
    model = evidence.last("model.imported")
    licence = str(model.facts["licence"]) if model else ""
    lines = ["---"]
    if _LICENCE.fullmatch(licence.lower()):
        lines.append(f"license: {quoted(licence.lower())}")
    else:
        lines += ["license: other", f"license_name: {quoted(licence or 'unknown')}"]
    lines += [f"base_model: {quoted(evidence.reserved.facts['model_id'])}", "base_model_relation: adapter"]
    lines += ["library_name: peft", "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in _tags(evidence))]
    return "\n".join([*lines, "---"])


def _tags(evidence: Evidence) -> tuple[str, ...]:
    return (*TAGS, "watermark") if evidence.last("watermark.embedded") else TAGS


def quoted(text: str) -> str:
    """Any text as a double-quoted YAML scalar of printable ASCII."""
    return '"' + "".join(_character(ord(char)) for char in text) + '"'


def _character(code: int) -> str:
    char = chr(code)
    if 0x20 <= code < 0x7F and char not in '"\\':
        return char
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _text(sentence: Sentence) -> str:
    """Write a sentence as Markdown: values of the ledger in code spans, where nothing is markup."""
    return "".join(part if isinstance(part, str) else code_span(str(part)) for part in sentence)


def code_span(text: str) -> str:
    """Any text as a Markdown code span: fenced by more backticks than it holds, on one line (CommonMark 6.1)."""
    line = "".join(char if char.isprintable() else " " for char in text)
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line or ' '}{pad}{fence}"
