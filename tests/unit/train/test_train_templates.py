"""Which conversations a chat template carries, and that what is supervised is what the model would have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from appliance.errors import DataInvalid
from appliance.evaluate.prompting import write_prompt
from appliance.jobs.record import Record
from appliance.jobs.train import TrainSpec
from appliance.train.encode import Encoder
from appliance.train.templates import SHAPES, ChatTemplate, probe

TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}" + ASK
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS + ASK
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }}</s>{% endif %}{% endfor %}"
)
EVERY_WAY = (
    "{% for i in range(10 ** 10) %}{% endfor %}",
    "{{ 1 // 0 }}",
    "{{ 'a' * (2 ** 70) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ messages[0].content.frob() }}",
    "{% for %}",
)
SHOUTING = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}\n{% endfor %}"

CARRIED = {
    "plain": (TURNS + ASK, set(SHAPES)),
    "drops earlier reasoning": (THINKING, set(SHAPES)),
    "refuses system messages": (NO_SYSTEM, set(SHAPES) - {"a system message"}),
    "demands alternation": (ALTERNATING, {"one turn", "several turns"}),
    "rewrites contents": (SHOUTING, set()),
}


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("name", CARRIED)
def test_the_probe_says_what_a_template_carries(name: str, tokenizer: Any) -> None:
    tokenizer.chat_template, expected = CARRIED[name]
    assert {shape for shape, carries in probe(tokenizer).items() if carries} == expected


@pytest.mark.parametrize("source", EVERY_WAY)
def test_a_template_that_fails_in_any_way_carries_nothing(source: str, tokenizer: Any) -> None:
    """A loop of ten thousand million ended an import as an internal error."""
    tokenizer.chat_template = source
    assert not any(probe(tokenizer).values())
    with pytest.raises(DataInvalid, match="refuses this conversation"):
        write_prompt(tokenizer, "base", (("user", "Hello."),))


def test_no_template_is_not_probed(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    assert probe(tokenizer) == {}


@pytest.mark.parametrize("name", CARRIED)
def test_the_pieces_are_the_text_of_the_template(name: str, tokenizer: Any) -> None:
    tokenizer.chat_template, expected = CARRIED[name]
    for shape in expected:
        pieces = ChatTemplate(tokenizer).fill(SHAPES[shape])
        messages = [{"role": role, "content": text} for role, text in SHAPES[shape]]
        assert "".join(text for text, _ in pieces or ()) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_of_rewritten_turns_the_answers_are_supervised_and_nothing_else(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    pieces = ChatTemplate(tokenizer).fill(SHAPES["several turns"])
    trained = [text for text, supervised in pieces or () if supervised and text]
    assert trained == ["It is.", "<|im_end|>\n", "<think>\n\n</think>\n\n", "A little.", "<|im_end|>\n"]
    assert ChatTemplate(tokenizer).fill((*SHAPES["several turns"], ("user", "Thank you."))) is not None


QWEN3 = (  # as published, without tools
    "{%- set ns = namespace(last=0) %}{% for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role != 'assistant' %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- else %}"
    "{%- set content = m.content %}{%- set reasoning = '' %}{%- if '</think>' in m.content %}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{%- set reasoning = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or reasoning) %}{{- '<|im_start|>' + m.role + '\\n<think>\\n' + "
    "reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}"
    "{{- '<|im_start|>' + m.role + '\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
REASONED = (
    ("user", "Is it cold?"),
    ("assistant", "<think>\nI look.\n</think>\n\nIt is."),
    ("user", "And windy?"),
    ("assistant", "<think>Again.</think>A little."),
)


@pytest.mark.parametrize("source", [QWEN3, THINKING.replace("m['content']", "m['content'].split('</think>')[-1]")])
def test_reasoning_that_the_template_drops_from_earlier_answers_drops_no_record(source: str, tokenizer: Any) -> None:
    tokenizer.chat_template = source
    messages = [{"role": role, "content": text} for role, text in REASONED]
    pieces = ChatTemplate(tokenizer).fill(REASONED)
    assert pieces is not None
    assert "".join(text for text, _ in pieces) == tokenizer.apply_chat_template(messages, tokenize=False)
    trained = "".join(text for text, supervised in pieces if supervised)
    last = "<think>\nAgain.\n</think>\n\n" if source == QWEN3 else "<think>\n\n</think>\n\n"
    assert trained.replace("It is.", "", 1).lstrip("\n") == f"<|im_end|>\n{last}A little.<|im_end|>\n"
    asked = ChatTemplate(tokenizer).fill((*REASONED, ("user", "Thank you.")))
    assert [t.strip() for t, supervised in asked or () if supervised and "." in t] == ["It is.", "A little."]


def test_what_stands_before_a_first_answer_is_not_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = TURNS + ASK
    pieces = ChatTemplate(tokenizer).fill(SHAPES["an answer first"])
    trained = [text for text, supervised in pieces or () if supervised]
    assert trained == ["Good morning.<|im_end|>\n", "It is.<|im_end|>\n"]


@pytest.mark.parametrize(("source", "learned"), [("base", False), ("fallback", True), ("none", True)])
def test_what_a_template_does_not_carry_is_learned_from_only_if_that_is_asked_for(
    source: Any, learned: bool, tokenizer: Any
) -> None:
    tokenizer.chat_template = NO_SYSTEM
    encoder = Encoder(tokenizer, TrainSpec(lr=1e-3, max_tokens=96, template=source))
    made = encoder.encode(Record(unit="u", kind="chat", parts=SHAPES["a system message"]))
    assert bool(made.positions) is learned
    assert ("<|im_start|>" in tokenizer.decode(made.ids)) is False
    carried = encoder.encode(Record(unit="u", kind="chat", parts=SHAPES["one turn"]))
    assert ("<|im_start|>" in tokenizer.decode(carried.ids)) is (source != "none")
