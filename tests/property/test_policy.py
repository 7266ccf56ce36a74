"""parse(render(x)) == x for every run file, and no bytes make the parser fail in any other way than ConfigInvalid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import ConfigInvalid
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import UnitOfPrivacy
from appliance.policy import policy, run_file, shipped, yaml
from appliance.policy.run_file import BaseChoice, DataChoice, PrivacyChoice, RunFile, TemplateChoice, TrainChoice

WORDS = st.one_of(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.sampled_from(["true", "null", "1", "1e5", "0x1", "no", "1.5", "2024-01-01", "1_000"]),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
SCALES = st.floats(min_value=0, max_value=run_file.LARGEST_SCALE, exclude_min=True)
COUNTS = st.integers(1, 10**15)
UNITS = st.builds(UnitOfPrivacy, kind=st.sampled_from(["record", "subject"]), key=st.none() | TEXTS, max_records=COUNTS)
DELTAS = st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True)


@st.composite
def run_files(draw: Callable[..., object]) -> RunFile:
    length = draw(st.fixed_dictionaries({"steps": COUNTS}) | st.fixed_dictionaries({"epochs": POSITIVE}))
    train = st.builds(
        TrainChoice,
        expected_batch_size=COUNTS,
        max_tokens=COUNTS,
        lr=st.floats(min_value=0, max_value=10, exclude_min=True),
        init_seed=st.integers(0, 10**15),
        spare_steps=st.integers(0, 1000),
        **{key: st.just(value) for key, value in length.items()},
    )
    targets = st.sampled_from(["all-linear", "attention"]) | st.lists(TEXTS, min_size=1, max_size=4).map(tuple)
    return draw(
        st.builds(
            RunFile,
            name=WORDS,
            base=st.builds(BaseChoice, id=WORDS, sha256=DIGESTS),
            data=st.tuples(st.builds(DataChoice, id=WORDS, unit=st.none() | UNITS)),
            template=st.builds(
                TemplateChoice, from_=st.sampled_from(["base", "none"]), train_on=st.sampled_from(["completion", "all"])
            ),
            lora=st.builds(LoraSpec, r=COUNTS, alpha=SCALES, targets=targets),
            train=train,
            privacy=st.builds(
                PrivacyChoice,
                epsilon=POSITIVE,
                delta=st.just("auto") | DELTAS,
                max_grad_norm=POSITIVE,
                clipping=st.sampled_from(["fixed", "normalised"]),
            ),
        )
    )


def test_render_then_parse_is_identity(stress_count: Callable[[int, int], int]) -> None:
    @settings(max_examples=stress_count(80, 3000), deadline=None)
    @given(run_files())
    def check(run: RunFile) -> None:
        assert run_file.parse(run_file.render(run).encode(), "run.yaml") == run

    check()


def test_scalars_survive(stress_count: Callable[[int, int], int]) -> None:
    numbers = st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)

    @settings(max_examples=stress_count(300, 20_000), deadline=None)
    @given(TEXTS | numbers | st.booleans())
    def check(value: str | int | float) -> None:
        read = yaml.load(f"a: {yaml.scalar(value)}\n".encode(), "f").value["a"]
        assert (type(read), read) == (type(value), value)

    check()


def test_half_a_surrogate_pair_is_not_written() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        yaml.scalar("\ud800")


def test_damaged_files_raise_only_config_invalid(stress_count: Callable[[int, int], int]) -> None:
    good = shipped.read("default")
    pieces = st.sampled_from([b"&a ", b"*a", b"!!x", b"? ", b": ", b"\t", b"\x00", b"---\n", b'"\\U99999999"', b"[{"])

    @settings(max_examples=stress_count(200, 3000), deadline=None)
    @given(st.integers(0, len(good)), st.integers(0, 40), pieces | st.binary(max_size=8))
    def check(at: int, length: int, piece: bytes) -> None:
        with contextlib.suppress(ConfigInvalid):
            policy.parse(good[:at] + piece + good[at + length :], "p")

    check()
