"""`README.md`: the model card that goes with the adapter, in the form of the Hugging Face hub.

Its sentences hold no figure. Figures stand in tables, each under the name that `privacy_statement.json` gives it, so
that the verifier can compare them; every other line is one of `wording.txt`.
"""

from __future__ import annotations

import re

from appliance.errors import ApplianceError
from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, Sentence
from appliance.report.statement import named_figures
from appliance.report.verdict import utility, watermark
from appliance.report.wording import check

TAGS = ("lora", "differential-privacy", "dp-sgd")
GUARANTEE = (
    *("epsilon", "delta", "odds_bound", "unit_of_privacy", "max_records_per_unit", "neighbouring_relation"),
    *("declared_units", "attempts", "sample_rate", "noise_multiplier", "clip_norm", "clipping"),
)
UTILITY = ("gain", "gain_low", "gain_high", "evaluation_epsilon", "evaluation_delta")
WATERMARK = ("watermark_score", "watermark_p_bound")
IDENTITY = ("run", "base_model_digest")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{1,40}")
_VALUE = re.compile(r"\| \w+ \| `.*` \||(base_model|license|license_name): \".*\"")
_UNNAMED = 'license_name: "unknown"'
_PLAIN = re.compile(r"[\w.^/+-]+", re.ASCII)
LOADING = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

base = "DIRECTORY OF THE BASE MODEL"
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "adapter")
tokenizer = AutoTokenizer.from_pretrained(base)

question = [{"role": "user", "content": "YOUR QUESTION"}]
text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
# If the run was trained without the base model's chat template: text = "YOUR TEXT"
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
model.generate(**inputs, max_new_tokens=len(text), streamer=TextStreamer(tokenizer, skip_prompt=True))
```"""
CHECKING = """```sh
cd "DIRECTORY OF THE BASE MODEL" && {
printf '['; comma=
ls -A | LC_ALL=C sort | while IFS= read -r name; do
size=$(wc -c < "$name" | tr -d ' ')
sha256sum < "$name" | { read -r digest rest; printf '%s["%s",%s,"%s"]' "$comma" "$name" "$size" "$digest"; }
comma=,
done
printf ']'; } | sha256sum
```"""


def model_card(evidence: Evidence) -> bytes:
    """Write the card of the adapter that a finished run made.

    Raises:
      ApplianceError: the run made none.
    """
    if evidence.settled is None:
        raise ApplianceError("only a finished run has an adapter to describe", where=evidence.run_id)
    written = lines(evidence)
    check(line for line in written if not has_value(line))
    return "".join(f"{line}\n" for line in written).encode()


def lines(evidence: Evidence) -> list[str]:
    """Write the card, line by line."""
    body = ["# LoRA adapter trained with differential privacy", *_body(evidence)]
    return [*_front_matter(evidence), *"\n\n".join(body).split("\n")]


def has_value(line: str) -> bool:
    """Tell whether a line states a value of the ledger: a row of a table, or a name in the front matter."""
    return line != _UNNAMED and re.fullmatch(_VALUE, line) is not None


def _body(evidence: Evidence) -> list[str]:
    figures = dict(named_figures(evidence))
    return [
        "This directory holds a LoRA adapter that was fine-tuned on private data, not its base model.",
        *_table(figures, IDENTITY),
        "## Guarantee",
        "The adapter is (epsilon, delta)-differentially private, by DP-SGD: adding or removing one unit of privacy "
        "changes the probability of any outcome by at most a factor of e to the power epsilon, up to delta. This holds "
        "against anyone who is given the adapter and the plan of the run, whatever else they know and however they "
        "compute, and even if they saw every noised sum of the training. The odds bound is that factor.",
        *_table(figures, GUARANTEE),
        "The bound covers this fine-tuning only: not the training data of the base model, and not other releases. It "
        "says how much can be inferred at most, not that nothing can. `privacy_statement.json` has every value with "
        "its place in the ledger.",
        "## Utility",
        _opening(utility(evidence).sentence),
        *_table(figures, UTILITY),
        "## Watermark",
        _opening(watermark(evidence).sentence),
        *_table(figures, WATERMARK),
        _mark(evidence),
        "## Use",
        "Stock PEFT loads it; nothing of the appliance is needed.",
        LOADING,
        "The base model is the one whose files have the SHA-256 that is given above as its digest. "
        "`adapter_config.json` says what it was called. The digest is that of a list of names, sizes and digests of "
        "its files:",
        CHECKING,
        "## Limits",
        "No attack was run on the finished adapter. `report.html` lists what was performed, what was not, and what "
        "none of it shows. What the adapter writes can be false, unsafe or unfair.",
        "## Check",
        "`python3 -I verify.py . --trusted-key KEYS` checks every file, every figure and every sentence offline. Get "
        "KEYS on another way than with this directory.",
    ]


def _table(figures: dict[str, Figure], names: tuple[str, ...]) -> list[str]:
    """Put figures in a table, or nothing. A value that could be markup is left out; the privacy statement has it."""
    known = [(name, str(figures[name])) for name in names if name in figures]
    rows = [f"| {name} | `{value}` |" for name, value in known if _PLAIN.fullmatch(value)]
    return ["\n".join(["| value | |", "|---|---|", *rows])] if rows else []


def _opening(sentence: Sentence) -> str:
    """Take a sentence of the report up to its first figure."""
    return str(sentence[0]).rstrip(": ").removesuffix(".") + "."


def _mark(evidence: Evidence) -> str:
    if evidence.last("watermark.embedded") is None:
        return "The adapter was released as it was trained."
    return (
        "The mark was embedded after training with a key that is independent of the data, so it leaves epsilon and "
        "delta as they are. Its owner can recognise the adapter, also merged or quantised, as far as the report "
        "predicts."
    )


def _front_matter(evidence: Evidence) -> list[str]:
    model = evidence.last("model.imported")
    licence = str(model.facts["licence"]) if model else ""
    found = ["---"]
    if _LICENCE.fullmatch(licence):
        found.append(f"license: {quoted(licence)}")
    else:
        found += ["license: other", f"license_name: {quoted(licence)}" if licence else _UNNAMED]
    found += [f"base_model: {quoted(evidence.reserved.facts['model_id'])}", "base_model_relation: adapter"]
    found += ["library_name: peft", "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in _tags(evidence))]
    return [*found, "---", ""]


def _tags(evidence: Evidence) -> tuple[str, ...]:
    return (*TAGS, "watermark") if evidence.last("watermark.embedded") else TAGS


def quoted(text: str) -> str:
    """Quote any text as a YAML scalar in which nothing is markup."""
    return '"' + "".join(_character(ord(char)) for char in text) + '"'


def _character(code: int) -> str:
    char = chr(code)
    if code < 0x7F and (char.isalnum() or char in " ._/+-"):
        return char
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
