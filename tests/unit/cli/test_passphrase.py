"""The passphrase on its way in: whose file it may be, how it is asked for on a terminal, and that it is wiped."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from appliance.cli.passphrase import VARIABLE, passphrase
from appliance.errors import IsolationViolated, UsageError

SECRET = b"correct horse battery staple"
ASKS = """
from appliance.cli.passphrase import passphrase
import sys, typer
try:
    with passphrase(None, new=sys.argv[1] == "new") as secret:
        print(bytes(secret).hex())
except typer.Abort:
    print("given up")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_bytes(SECRET + b"\r\n")
    return path


def read(path: Path | None, *, new: bool = False) -> bytes:
    with passphrase(path, new=new) as secret:
        return bytes(secret)


# --- a file ---------------------------------------------------------------------------------------------------------


def test_it_is_what_the_file_holds_without_the_end_of_the_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(file) == SECRET
    monkeypatch.setenv(VARIABLE, str(file))
    assert read(None) == SECRET


def test_it_is_wiped_whatever_happens(file: Path) -> None:
    with passphrase(file) as secret:
        assert secret == SECRET
    assert secret == bytes(len(SECRET))
    with pytest.raises(ZeroDivisionError), passphrase(file) as secret:
        raise ZeroDivisionError
    assert secret == bytes(len(SECRET))


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o666, 0o440])
def test_a_file_that_others_may_open_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(IsolationViolated) as caught:
        read(file)
    assert f"chmod 600 {file}" in caught.value.hint
    file.chmod(mode & 0o700)
    assert read(file) == SECRET


def test_a_link_is_judged_by_what_it_leads_to(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    assert read(tmp_path / "link") == SECRET
    file.chmod(0o644)
    with pytest.raises(IsolationViolated):
        read(tmp_path / "link")


def test_a_file_of_another_user_is_refused(file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root: not run")
    os.chown(file, 65534, 65534)
    with pytest.raises(IsolationViolated):
        read(file)


def test_a_pipe_will_do(file: Path) -> None:
    ready, told = os.pipe()
    os.write(told, SECRET + b"\n")
    os.close(told)
    try:
        assert read(Path(f"/dev/fd/{ready}")) == SECRET
    finally:
        os.close(ready)


def test_what_cannot_be_read_or_is_too_long_or_too_short_is_refused(file: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        tmp_path.chmod(0o700)
        with pytest.raises(UsageError, match="cannot read a passphrase"):
            read(path)
    file.write_bytes(b"x" * 4095)
    assert len(read(file)) == 4095
    file.write_bytes(b"x" * 4096)
    with pytest.raises(UsageError, match="at most 4095 bytes"):
        read(file)
    file.write_text("\u00e9" * 11)
    assert read(file)
    with pytest.raises(UsageError, match="at least 12 characters"):
        read(file, new=True)
    file.write_text("\u00e9" * 12)
    assert read(file, new=True)


# --- a terminal -----------------------------------------------------------------------------------------------------


def converse(*answers: bytes, new: bool = False) -> tuple[str, bytes]:
    """Answer the questions on a terminal; what the process said at the end, and all that the terminal showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ASKS, "new" if new else "old"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True
    ) as asker:
        shown = b""
        for answer in answers:
            question = shown.count(b": ") + 1
            while shown.count(b": ") < question:
                shown += os.read(ours, 1000)
            while termios.tcgetattr(theirs)[3] & termios.ECHO:  # it is asked before the echo is off
                pass
            os.write(ours, answer)
        said = asker.communicate(timeout=60)[0].decode().strip()
    assert termios.tcgetattr(theirs)[3] & termios.ECHO
    os.close(theirs)
    while True:
        try:
            shown += os.read(ours, 1000)
        except OSError:
            break
    os.close(ours)
    return said, shown


def test_it_is_asked_for_and_not_shown() -> None:
    said, shown = converse(SECRET + b"\n")
    assert bytes.fromhex(said) == SECRET
    assert b"passphrase: " in shown
    assert b"correct" not in shown


def test_a_new_one_is_asked_for_until_two_are_the_same() -> None:
    said, shown = converse(SECRET + b"\n", b"another one\n", SECRET + b"\n", SECRET + b"\n", new=True)
    assert bytes.fromhex(said) == SECRET
    assert shown.count(b"not the same") == 1


def test_nothing_gives_up() -> None:
    assert converse(b"\n")[0] == "given up"
    assert converse(b"\x04")[0] == "given up"


def test_without_a_terminal_and_a_file_there_is_no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    done = subprocess.run(
        [sys.executable, "-c", ASKS, "old"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert "--passphrase-file" in done.stderr
