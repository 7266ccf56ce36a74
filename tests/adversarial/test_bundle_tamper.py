"""Sealed directories against somebody who may change them: every change is found and the changed file is named."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.export import verify
from tests.unit.export import sealed
from tests.unit.export.conftest import bundled, copied  # noqa: F401

KEYS = "keys.txt"


@pytest.fixture(autouse=True)
def _each_signature_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes get the same answer: the verifier's own function, asked once."""
    monkeypatch.setattr(verify, "mldsa44_accepts", asked_once)


asked_once = functools.lru_cache(maxsize=None)(verify.mldsa44_accepts)


def examine(root: Path, name: str = "bundle", pin: str | None = KEYS, state: str = "") -> verify.Examination:
    return verify.verify(str(root / name), [str(root / pin)] if pin else [], state)


def program(root: Path, *words: str, name: str = "bundle") -> subprocess.CompletedProcess[str]:
    """The file in the bundle as an auditor runs it: bare Python, nothing installed, from another directory."""
    command = [sys.executable, "-I", "-S", str(root / name / "verify.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env={}, check=False, timeout=120)


def files_of(bundle: Path) -> list[str]:
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())


def test_the_program_alone(copied: Path) -> None:  # noqa: F811
    fingerprint = hashlib.sha256((copied / KEYS).read_bytes()).hexdigest()
    grouped = [fingerprint[i : i + 4] for i in range(0, 64, 4)]
    for pin in ([str(copied / KEYS)], [fingerprint], [" ".join(grouped)], grouped):
        done = program(copied, "--trusted-key", *pin)
        assert (done.returncode, done.stderr) == (0, "")
        assert "intact" in done.stdout
    done = program(copied, "--json")
    assert done.returncode == 14
    assert json.loads(done.stdout)["pinned"] is False
    assert program(copied, "--trusted-key", "0" * 64).returncode == 8
    assert program(copied, "--trusted-key", "not", "a", "key").returncode == 2
    assert program(copied, "--trusted-key", "/nowhere").returncode == 2
    assert program(copied, "--trusted-key", str(copied / "bundle" / "ledger" / "keys.txt")).returncode == 2
    assert program(copied, "--state").returncode == 2
    (copied / "bundle" / "README.md").write_text("another\n")
    assert program(copied, "--trusted-key", fingerprint).returncode == 8


def test_every_changed_byte_is_found_and_its_file_named(
    copied: Path,  # noqa: F811
    stress_count: Callable[[int, int], int],
) -> None:
    bundle, drawn = copied / "bundle", random.Random(7)
    names = files_of(bundle)
    changed = stress_count(5, 600)
    for name in names:
        data = (bundle / name).read_bytes()
        places = {0, len(data) - 1, *(drawn.randrange(len(data)) for _ in range(changed))}
        for place in places:
            altered = bytearray(data)
            altered[place] ^= 1 << drawn.randrange(8)
            (bundle / name).write_bytes(altered)
            seen = examine(copied)
            assert seen.code == 8, (name, place)
            stem = name.rpartition(".")[0] if name.startswith("ledger/0") else name
            assert any(stem in f"{where} {why}" for where, why in seen.problems), (name, place, seen.problems)
        (bundle / name).write_bytes(data)
    assert examine(copied).code == 0


def test_truncated_removed_added_and_swapped_files(copied: Path) -> None:  # noqa: F811
    bundle = copied / "bundle"
    names = files_of(bundle)
    for position, name in enumerate(names):
        data = (bundle / name).read_bytes()
        other = names[position - 1]
        for altered in (None, b"", data[:-1], data + b"\n", (bundle / other).read_bytes()):
            if altered is None:
                (bundle / name).unlink()
            else:
                (bundle / name).write_bytes(altered)
            seen = examine(copied)
            assert seen.code == 8, (name, other)
        (bundle / name).write_bytes(data)
    for name in ("more.txt", "adapter/more.bin", "ledger/more.txt", "ledger/99999999.leaf", "ledger/consistency/1.txt"):
        (bundle / name).write_bytes(b"x")
        seen = examine(copied)
        assert seen.code == 8
        assert any(name[:15] in f"{where} {why}" for where, why in seen.problems)
        (bundle / name).unlink()
    (bundle / "empty").mkdir()
    assert examine(copied).code == 8
    (bundle / "empty").rmdir()
    (bundle / "README.md").rename(copied / "README.md")
    (bundle / "README.md").symlink_to(copied / "README.md")
    assert examine(copied).code == 8


def test_a_bundle_signed_anew_by_somebody_else(copied: Path, tmp_path: Path) -> None:  # noqa: F811
    sealed.make_bundle(tmp_path / "forger")
    forged = tmp_path / "forger"
    assert examine(forged).code == 0
    shutil.rmtree(copied / "bundle")
    shutil.copytree(forged / "bundle", copied / "bundle")
    seen = examine(copied)
    assert (seen.code, seen.problems[0][0]) == (8, "ledger/keys.txt")
    assert examine(copied, pin=None).code == 14


def test_one_of_two_keys_is_a_downgrade(copied: Path) -> None:  # noqa: F811
    head, keys = copied / "bundle" / "ledger" / "head.txt", copied / "bundle" / "ledger" / "keys.txt"
    lines, vkeys = head.read_text().splitlines(), keys.read_text().splitlines()
    for kept in (0, 1):
        head.write_text("\n".join([*lines[:4], lines[4 + kept]]) + "\n")
        assert examine(copied).code == 8
        keys.write_text(vkeys[kept] + "\n")
        assert examine(copied).code == 8
        keys.write_text("".join(f"{key}\n" for key in vkeys))


def reseal(root: Path, run_id: str, **facts: dict[str, object]) -> verify.Examination:
    """A home of its own whose keys are pinned, with a run whose entries say something else."""
    released = sealed.make_released(root / "released")
    with sealed.make_ledger(root / "home") as ledger:
        sealed.record_run(ledger, run_id, released, **facts)
        sealed.export(ledger, root, run_id)
        (root / KEYS).write_text("".join(f"{key}\n" for key in ledger.verifier_keys))
    return examine(root)


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        ("run_settled", {"attempts": 25}),
        ("run_settled", {"epsilon_charged": "8.1000"}),
        ("run_settled", {"epsilon_prv": "7.9952"}),
        ("run_settled", {"adapter_sha256": "0" * 64}),
        ("run_settled", {"noise_multiplier": "1.2"}),
        ("run_settled", {"attempts": "many"}),
        ("run_reserved", {"cap": "7.0"}),
        ("run_reserved", {"epsilon_before": "9.0"}),
        ("run_reserved", {"model_id": "another"}),
        ("run_started", {"dataset_id": "ds_0c"}),
        ("watermark_committed", {"commitment": "0" * 64}),
        ("watermark_embedded", {"released_sha256": "0" * 64}),
        ("watermark_embedded", {"certificate_sha256": "0" * 64}),
        ("watermark_embedded", {"score": "99.000"}),
        ("audit_selftest", {"passed": False}),
        ("evaluation_settled", {"epsilon_charged": "1.5"}),
        ("policy_activated", {"sha256": "0" * 64}),
    ],
)
def test_entries_that_contradict_each_other(tmp_path: Path, event: str, facts: dict[str, object]) -> None:
    # Where policy or model are others than the run names, its bundle cannot hold them: a part is missing.
    expected = 14 if event == "policy_activated" or "model_id" in facts else 8
    assert reseal(tmp_path, "run_1", **{event: facts}).code == expected


def sealed_with(root: Path, name: str, documents: dict[str, bytes]) -> verify.Examination:
    """A bundle that the holder of the keys made with other documents: the manifest agrees with them."""
    released = sealed.make_released(root / "released")
    with sealed.make_ledger(root / "home") as ledger:
        sealed.record_run(ledger, "run_1", released)
        made, size = sealed.make_documents(ledger, "run_1", released)
        changed = {**made, **{path: change(made[path]) for path, change in documents.items()}}  # type: ignore[operator]
        sealed.export(ledger, root, "run_1", name, documents=changed, tree_sizes=[size])
        (root / KEYS).write_text("".join(f"{key}\n" for key in ledger.verifier_keys))
    return examine(root, name)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("report.json", b'"value":"7.9951"', b'"value":"6.9951"'),
        ("report.json", b'"tree_size":11', b'"tree_size":10'),
        ("report.json", b'"run_id":"run_1"', b'"run_id":"run_2"'),
        ("report.json", b'{"figures"', b'{ "figures"'),
        ("privacy_statement.json", b'"value":"7.9951"', b'"value":"6.9951"'),
        ("report.html", b">7.9951<", b">6.9951<"),
        ("report.html", b'value="7.9951"', b'value="6.9951"'),
        ("report.html", b'value="7.9951">7.9951<', b'value="6.9951">6.9951<'),
        ("report.html", b"/epsilon_charged", b"/epsilon_rdp"),
        ("report.html", b'data-entry="7"', b'data-entry="999"'),
        ("report.html", b'value="11">11<', b'value="12">12<'),
        ("report.html", b"</p>", b"<script>1</script></p>"),
        ("report.html", b"<p>", b'<p onclick="1">'),
        ("report.html", b"</data>", b"<b></b></data>"),
        ("watermark_certificate.json", b'"63.100"', b'"73.100"'),
    ],
)
def test_documents_that_say_something_else(tmp_path: Path, path: str, old: bytes, new: bytes) -> None:
    found = []

    def change(data: bytes) -> bytes:
        found.append(data.replace(old, new, 1) != data)
        return data.replace(old, new, 1)

    seen = sealed_with(tmp_path, "bundle", {path: change})  # type: ignore[dict-item]
    assert found == [True]
    assert seen.code == 8
    assert path in seen.problems[0][0]


def test_a_leaf_of_another_run_is_not_taken(tmp_path: Path) -> None:
    released = sealed.make_released(tmp_path / "released")
    with sealed.make_ledger(tmp_path / "home") as ledger:
        sealed.record_run(ledger, "run_1", released)
        first = [event.index for event in sealed.run_events(ledger, "run_1")]
        sealed.record_run(ledger, "run_2", released)
        sealed.export(ledger, tmp_path, "run_1", "mixed", entries=[*first, first[-1] + 3])
        (tmp_path / KEYS).write_text("".join(f"{key}\n" for key in ledger.verifier_keys))
        assert examine(tmp_path, "mixed").code == 8
        missing = [index for index in first if index != 5]
        sealed.export(ledger, tmp_path, "run_1", "partial", entries=missing)
        assert (seen := examine(tmp_path, "partial")).code == 14
        assert seen.missing == ["audit.selftest"]


def test_memory_notices_rollback_fork_and_gap(tmp_path: Path) -> None:
    released, state = sealed.make_released(tmp_path / "released"), tmp_path / "seen.json"
    with sealed.make_ledger(tmp_path / "home") as ledger:
        (tmp_path / KEYS).write_text("".join(f"{key}\n" for key in ledger.verifier_keys))
        sealed.record_run(ledger, "run_1", released)
        sealed.export(ledger, tmp_path, "run_1", "older")
        shutil.copytree(tmp_path / "home", tmp_path / "twin" / "home")
        sealed.export(ledger, tmp_path, "run_1", "newer")
        sealed.export(ledger, tmp_path, "run_1", "newest")
    assert examine(tmp_path, "older", state=str(state)).code == 0
    assert examine(tmp_path, "newer", state=str(state)).code == 0
    assert examine(tmp_path, "newest", state=str(state)).code == 0
    before = state.read_bytes()
    seen = examine(tmp_path, "older", state=str(state))
    assert seen.code == 15
    assert state.read_bytes() == before
    assert examine(tmp_path, "newest", pin=None, state=str(state)).code == 14
    state.unlink()
    twin = tmp_path / "twin"
    shutil.copytree(tmp_path / "released", twin / "released")
    shutil.copy(tmp_path / KEYS, twin / KEYS)
    config = sealed.config_of(twin / "home")
    with sealed.Ledger.open(config, clock=sealed.Ticks(sealed.START + timedelta(days=1))) as fork:
        sealed.export(fork, twin, "run_1", "forked")
        sealed.record_run(fork, "run_2", released)
        sealed.export(fork, twin, "run_2", "further")
    sizes = [json.loads((root / name / "manifest.json").read_bytes())["earlier"] for root, name in later(tmp_path)]
    assert len({max(size) for size in sizes}) > 2  # heads of several sizes
    for first, second in permutations(later(tmp_path), 2):
        state.unlink(missing_ok=True)
        assert examine(*first, state=str(state)).code == 0
        before = state.read_bytes()
        seen = examine(*second, state=str(state))
        if first[0] == second[0]:
            assert seen.code in (0, 15)
        else:  # the heads that each of them proves tell the histories apart
            assert seen.code == 8
            assert "FORK" in seen.problems[0][1]
            assert state.read_bytes() == before


def later(root: Path) -> list[tuple[Path, str]]:
    return [(root, "newer"), (root, "newest"), (root / "twin", "forked"), (root / "twin", "further")]


def test_a_newer_directory_without_a_proof_is_not_intact(tmp_path: Path) -> None:
    """Nothing shows that it continues what was seen, and nothing that it does not."""
    state = tmp_path / "seen.json"
    released = sealed.make_released(tmp_path / "released")
    with sealed.make_ledger(tmp_path / "home") as ledger:
        (tmp_path / KEYS).write_text("".join(f"{key}\n" for key in ledger.verifier_keys))
        sealed.record_run(ledger, "run_1", released)
        shutil.copytree(tmp_path / "home", tmp_path / "twin" / "home")
        sealed.export(ledger, tmp_path, "run_1", "one")
    twin = tmp_path / "twin"
    shutil.copytree(tmp_path / "released", twin / "released")
    shutil.copy(tmp_path / KEYS, twin / KEYS)
    with sealed.Ledger.open(sealed.config_of(twin / "home"), clock=sealed.Ticks()) as fork:
        sealed.record_run(fork, "run_2", released)
        sealed.export(fork, twin, "run_2", "other")
    assert examine(tmp_path, "one", state=str(state)).code == 0
    assert examine(twin, "other", state=str(state)).code == 15


def test_two_heads_of_one_size_are_a_fork(copied: Path) -> None:  # noqa: F811
    state = copied / "seen.json"
    assert examine(copied, state=str(state)).code == 0
    known = json.loads(state.read_bytes())
    origin, seen = next(iter(known.items()))
    other = seen["note"].replace(seen["note"].splitlines()[2], "A" * 43 + "=")
    known[origin] = {**seen, "root": "00" * 32, "note": other}
    state.write_text(verify.canonical(known) + "\n")
    found = examine(copied, state=str(state))
    assert found.code == 8
    assert "FORK" in found.problems[0][1]
    assert other in found.problems[0][1]
    assert seen["note"] in found.problems[0][1]


def test_a_damaged_state_file_is_refused_and_kept(copied: Path) -> None:  # noqa: F811
    state = copied / "seen.json"
    assert examine(copied, state=str(state)).code == 0
    good = state.read_bytes()
    for damaged in (b"", b"[]\n", b"{}", b'{"a":1}\n', good[:-3], good.replace(b'"size":', b'"sise":'), b"\xff"):
        state.write_bytes(damaged)
        assert program(copied, "--trusted-key", str(copied / KEYS), "--state", str(state)).returncode == 2
        assert state.read_bytes() == damaged
    with pytest.raises(verify.CannotRun):
        examine(copied, state=str(copied / "bundle" / "seen.json"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_input_ends_in_anything_but_a_verdict(copied: Path, data: st.DataObject) -> None:  # noqa: F811
    bundle = copied / "bundle"
    name = data.draw(st.sampled_from(files_of(bundle)))
    good = (bundle / name).read_bytes()
    lines = good.split(b"\n")
    altered = data.draw(
        st.one_of(
            st.binary(max_size=300),
            st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
            st.just(b"[" * 50_000),
            st.just(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
            st.just(b"9" * 60_000),
            st.permutations(lines[:40]).map(b"\n".join),
        )
    )
    (bundle / name).write_bytes(altered)
    assert examine(copied).code == (0 if altered == good else 8)
    (bundle / name).write_bytes(good)


def test_the_file_is_what_it_claims_to_be() -> None:
    source = Path(verify.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    assert len(source.splitlines()) <= 1000
    assert max(len(line) for line in source.splitlines()) <= 120
    assert not re.search("fmt: (off|skip)|C901", source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert max(node.end_lineno - node.lineno + 1 for node in functions) <= 40  # type: ignore[operator]
    assert [node.name for node in functions if not ast.get_docstring(node) and node.name != "__init__"] == []
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert modules <= sys.stdlib_module_names
    assert not modules & {"socket", "urllib", "http", "subprocess", "ctypes", "pickle"}
