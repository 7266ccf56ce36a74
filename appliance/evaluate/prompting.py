"""What a model is asked, as text: through its chat template where the run was trained with it, plain where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.errors import DataInvalid

Said = tuple[str, str]
"""Role and text."""


def takes_turns(tokenizer: Any, template: str) -> bool:
    """Tell whether a run with this template learned conversations; else it is asked one thing at a time."""
    return template != "none" and bool(tokenizer.chat_template)


def write_prompt(tokenizer: Any, template: str, said: Sequence[Said]) -> str:
    """Write a conversation up to where the model's answer begins.

    Args:
      tokenizer: of the base.
      template: as the run has it.
      said: the turns; without a chat template only the last one counts.

    Raises:
      DataInvalid: the template refuses it.
    """
    if not takes_turns(tokenizer, template):
        return automatic_start(tokenizer) + said[-1][1]
    messages = [{"role": role, "content": text} for role, text in said]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a template is a stranger's program and fails in every way
        raise DataInvalid("the model's chat template refuses this conversation") from None


def automatic_start(tokenizer: Any) -> str:
    """Find the token that the tokenizer puts before a text by itself, or nothing."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else ""
