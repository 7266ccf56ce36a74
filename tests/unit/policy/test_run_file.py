"""run.yaml: rendering explains every key, and the values that other rooms take from it."""

from __future__ import annotations

import pytest

from appliance.errors import ConfigInvalid
from appliance.jobs.plan import UnitOfPrivacy
from appliance.policy import run_file
from appliance.policy.run_file import BaseChoice, DataChoice, PrivacyChoice, RunFile, TemplateChoice, TrainChoice

UNIT = UnitOfPrivacy(kind="subject", key="patient_id", max_records=4)
RUN = RunFile(
    name="claims-v3",
    base=BaseChoice(id="smollm2-135m", sha256="a" * 64),
    data=(DataChoice(id="ds_1", unit=UNIT),),
    template=TemplateChoice(from_="none", train_on="all"),
    train=TrainChoice(steps=40, expected_batch_size=64),
    privacy=PrivacyChoice(epsilon=4, delta=1e-6),
)


def test_every_key_stands_under_its_explanation() -> None:
    lines = run_file.render(RUN).splitlines()
    keys = [n for n, line in enumerate(lines) if line and not line.lstrip().startswith("#")]
    assert len(keys) == 36
    assert all(lines[n - 1].lstrip().startswith("# ") for n in keys if "- id" not in lines[n])
    assert max(map(len, lines)) <= 120


def test_round_trip_and_minimal_file() -> None:
    assert run_file.parse(run_file.render(RUN).encode(), "run.yaml") == RUN
    text = f"""
schema: 1
name: small
base: {{id: m, sha256: {"b" * 64}}}
data: [{{id: d}}]
train: {{epochs: 2, expected_batch_size: 64}}
privacy: {{epsilon: 8}}
"""
    small = run_file.parse(text.encode(), "run.yaml")
    assert (small.delta, small.privacy.accountant, small.dataset.unit) == (None, "pld", None)
    assert small.steps(600) == 19  # 2 x 600 / 64 = 18.75
    assert run_file.parse(run_file.render(small).encode(), "run.yaml") == small


def test_values_for_other_rooms() -> None:
    assert RUN.steps(600) == 40
    assert RUN.delta == 1e-6
    spec = RUN.train_spec
    assert (spec.template, spec.train_on, spec.lr, spec.max_tokens, spec.init_seed) == ("none", "all", 5e-4, 512, 7)


WRONG = [
    ("  epsilon: 4.0", "  epsilom: 4.0", "unknown key 'epsilom'", "did you mean 'epsilon'?"),
    ("  steps: 40", "  steps: 40\n  epochs: 1", "not both", ""),
    ("  steps: 40\n", "\n", "not both", ""),
    ("  - id: ds_1", "  - id: ds_2\n  - id: ds_1", "at most 1 item", ""),
    ("  delta: 1e-06", "  delta: 1.5", "less than 1", ""),
    ("  delta: 1e-06", "  delta: some", "'auto' or input should be a valid number", ""),
    ("      kind: subject", "      kid: subject", "unknown key 'kid'", "did you mean 'kind'?"),
    ("  accountant: pld", "  noise_seed: 7", "unknown key 'noise_seed'", ""),
    ("  lr: 0.0005", "  lr: 1.0e+308", "less than or equal to 10", ""),
    ("  alpha: 16.0", "  alpha: 1.0e+308", "'lora.alpha' is more than 1000 times 'lora.r'", ""),
    ("  from: base", "  from_: base", "unknown key 'from_'", "did you mean 'from'?"),
]


@pytest.mark.parametrize(("old", "new", "message", "hint"), WRONG)
def test_errors(old: str, new: str, message: str, hint: str) -> None:
    text = run_file.render(RUN).replace("from: none", "from: base")
    assert old in text
    with pytest.raises(ConfigInvalid) as caught:
        run_file.parse(text.replace(old, new, 1).encode(), "run.yaml")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.where.startswith("run.yaml:")


CURRICULUM = """
curriculum:
  - {name: basics, ratio: 0.3, units: 200, expected_batch_size: 20, where: {field: lang, in: [python, rust]}}
  - {ratio: 0.5}
  - {ratio: 0.2}
"""


def test_a_curriculum_is_read_explained_and_read_again() -> None:
    text = run_file.render(RUN) + CURRICULUM
    run = run_file.parse(text.encode(), "run.yaml")
    assert [phase.ratio for phase in run.curriculum] == [0.3, 0.5, 0.2]
    where = run.curriculum[0].where
    assert where is not None
    assert (where.field, where.values) == ("lang", ("python", "rust"))
    again = run_file.render(run)
    assert run_file.parse(again.encode(), "run.yaml") == run
    assert "# train on the records whose field has one of these values" in again


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("units: 200, ", "", "needs 'units'"),
        ("ratio: 0.3", "ratio: 1.3", "less than or equal to 1"),
        ("name: basics", "name: phase-2", "same name"),
        ("in: [python, rust]", "in: []", "at least 1 item"),
        ("in: [python, rust]", "quantile: 0.5", "unknown key 'quantile'"),
    ],
)
def test_a_curriculum_that_cannot_be(old: str, new: str, message: str) -> None:
    text = run_file.render(RUN) + CURRICULUM.replace(old, new)
    with pytest.raises(ConfigInvalid) as caught:
        run_file.parse(text.encode(), "run.yaml")
    assert message in caught.value.message


GATES = """
gates:
  int8: {max_loss: 0.5}
  q8_0: {max_loss: 0}
"""


def test_gates_are_read_explained_and_read_again() -> None:
    assert "gates" not in run_file.render(RUN)
    run = run_file.parse((run_file.render(RUN) + GATES).encode(), "run.yaml")
    assert run.gates.max_losses() == {"int8": 0.5, "q8_0": 0.0}
    again = run_file.render(run)
    assert run_file.parse(again.encode(), "run.yaml") == run
    assert "# of int8; a format that is not named here has no gate\n  int8:\n" in again
    assert "# percentage points of accuracy" in again
    assert max(map(len, again.splitlines())) <= 120


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("int8:", "int4:", "unknown key 'int4'"),
        ("max_loss: 0.5", "max_los: 0.5", "unknown key 'max_los'"),
        ("max_loss: 0.5", "max_loss: -1", "greater than or equal to 0"),
        ("max_loss: 0.5", "max_loss: .nan", ""),
        ("{max_loss: 0.5}", "{}", "'max_loss'"),
    ],
)
def test_gates_that_cannot_be(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        run_file.parse((run_file.render(RUN) + GATES.replace(old, new, 1)).encode(), "run.yaml")
    assert message in caught.value.message
