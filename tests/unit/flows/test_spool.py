"""A spool of degraded answers, whole and damaged on purpose: what the ledger is told, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from appliance.errors import IntegrityError
from appliance.events.serving import ServingDegraded, ServingEnded, ServingStarted
from appliance.files import locked
from appliance.flows.desk import Desk
from appliance.flows.serving import collect, start
from appliance.jobs.job import Job
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import SPOOL, EngineSpec, ServeJob
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.serve.spool import Spool
from tests.builders import desk_at
from tests.events import facts_of

SERVING = "serving_1"
IDS = [f"cmpl-{number:024x}" for number in range(6)]


@pytest.fixture
def desk(ledger: Ledger, actor: Actor, tmp_path: Path) -> Desk:
    """A desk whose last gateway was killed after six degraded answers."""
    desk = desk_at(ledger, actor, tmp_path)
    stated = facts_of(ServingStarted.type, serving_id=SERVING, run_id="run_1")
    desk.record(ServingStarted.of(stated))
    directory = desk.home.servings / SERVING
    directory.mkdir(parents=True)
    spool = Spool(directory / SPOOL)
    for one in IDS:
        spool.note(one, "fallback", "fallback", ("primary: refused",))
    spool.close()
    return desk


def told(desk: Desk) -> list[str]:
    entries = desk.ledger.entries(ServingDegraded, subject=SERVING)
    return [answer["id"] for entry in entries for answer in entry.leaf["facts"]["answers"]]


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def spill(path: Path) -> None:
    whole = lines(path)
    path.write_bytes(b"".join([*whole[:3], b"\xff\x00 garbage\n", *whole[4:]]))


def drop(path: Path) -> None:
    whole = lines(path)
    path.write_bytes(b"".join([*whole[:2], *whole[3:]]))


def speak(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(IDS[1].encode(), b"what patient 7 has asked"))


def replace(path: Path) -> None:
    path.write_text("a letter that somebody saved here")


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def nest(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "kept"), [(tear, 5), (spill, 3), (drop, 2), (speak, 1), (replace, 0), (link, 0), (nest, 0)]
)
def test_a_damaged_spool_is_set_aside_and_blocks_nothing(desk: Desk, damage: Callable[[Path], None], kept: int) -> None:
    path = desk.home.servings / SERVING / SPOOL
    damage(path)
    data = path.read_bytes() if path.is_file() else None
    (ended,) = collect.settle(desk)
    assert told(desk) == IDS[:kept]
    assert (ended.ended, ended.run_id, ended.damaged_line) == ("killed", "run_1", kept)
    (entry,) = desk.ledger.entries(ServingEnded, subject=SERVING)
    assert entry.leaf["facts"]["damaged_sha256"] == ended.damaged_sha256
    assert "patient" not in str([one.leaf for one in desk.ledger.entries()])
    there = desk.home.set_aside / SERVING / SPOOL
    assert there.is_symlink() or there.is_dir() or there.read_bytes() == data
    assert collect.settle(desk) == [], "the next start finds nothing to settle"


def test_damage_behind_what_the_ledger_has_tells_nothing_twice(desk: Desk) -> None:
    run_dir = RunDir(desk.home.servings / SERVING)
    collect.collect(desk, run_dir, "run_1")
    spill(run_dir.path / SPOOL)
    with pytest.raises(IntegrityError, match="altered"):
        collect.collect(desk, run_dir, "run_1")
    (ended,) = collect.settle(desk)
    assert told(desk) == IDS
    assert ended.damaged_line == 3


def test_a_line_that_is_being_written_is_no_damage_while_the_gateway_runs(desk: Desk) -> None:
    run_dir = RunDir(desk.home.servings / SERVING)
    whole = (run_dir.path / SPOOL).read_bytes()
    tear(run_dir.path / SPOOL)
    collect.collect(desk, run_dir, "run_1")
    assert told(desk) == IDS[:5]
    (run_dir.path / SPOOL).write_bytes(whole)
    (ended,) = collect.settle(desk)
    assert told(desk) == IDS
    assert ended.damaged_sha256 is None
    assert not desk.home.set_aside.exists()
    assert not run_dir.path.exists()


def test_what_is_no_serving_is_left_alone(desk: Desk) -> None:
    servings = desk.home.servings
    (servings / "serving_note").write_text("a foreign file")
    (servings / "mine").mkdir()
    (servings / "serving_unknown").mkdir()  # killed before the ledger knew of it
    (servings / SERVING / "job.json").write_text("{")
    (ended,) = collect.settle(desk)
    assert ended.serving_id == SERVING
    assert told(desk) == IDS, "a damaged job takes no answers with it"
    assert sorted(path.name for path in servings.iterdir()) == ["mine", "serving_note"]


@pytest.mark.parametrize("torn", [b"", b'{"number":6,"at'])
def test_a_serving_ends_once_though_it_was_killed_before_its_directory_was_cleared(
    desk: Desk, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = desk.home.servings / SERVING
    with (directory / SPOOL).open("ab") as file:
        file.write(torn)
    with monkeypatch.context() as patch:
        patch.setattr(collect, "_clear", killed)
        with pytest.raises(InterruptedError):
            collect.settle(desk)
    assert directory.exists()
    assert collect.settle(desk) == []
    assert len(list(desk.ledger.entries(ServingEnded, subject=SERVING))) == 1
    assert not directory.exists()
    assert (desk.home.set_aside / SERVING).exists() == bool(torn)


def killed(*_: object) -> None:
    raise InterruptedError


def test_a_serving_that_is_being_started_is_not_taken_for_a_dead_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another `serve start` looks for those of killed ones right when the directory of this one is there."""
    engine = EngineSpec(name="primary", kind="command", model="/nowhere", model_sha256="1" * 64, command=("true",))
    job = ServeJob(run_id="run_1", serving_id="serving_2", model="notes", engines=(engine,), clients="")
    real, looks = RunDir.write_job, []

    def look() -> None:
        with locked(desk.home.servings):
            collect.settle(desk)

    def write_job(self: RunDir, job: Job) -> str:
        looks.append(Thread(target=look))
        looks[0].start()
        looks[0].join(0.3)
        return real(self, job)

    monkeypatch.setattr(RunDir, "write_job", write_job)
    with start._directory(desk.home, job) as run_dir:
        looks[0].join()
        assert run_dir.job.exists()
        assert [path.name for path in desk.home.servings.iterdir()] == ["serving_2"]
