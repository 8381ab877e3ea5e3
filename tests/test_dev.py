"""dev.py: a set-up that is interrupted, repeated or run twice at once ends in one whole environment. No mocks."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from devtools.console import Problem
from devtools.environment import environment_key, interpreter, prepare_environment
from devtools.host import Pin, unpack, verify
from devtools.locks import read_json, write_json
from devtools.server import ComfyServer, accepted, host_of_this_process, port_is_free
from devtools.workspace import link, prepare_workspace

REPOSITORY = Path(__file__).resolve().parent.parent
SET_UP = """
import sys
from pathlib import Path
from devtools import environment
environment.PAUSE_SECONDS = 0
try:
    print(environment.prepare_environment(Path(sys.argv[1]), Path(sys.argv[2]), "pin").python)
except environment.Problem as problem:
    sys.exit(str(problem))
"""
HOLD_LOCK = """
import sys, time
from pathlib import Path
from devtools.locks import exclusive
with exclusive(Path(sys.argv[1]), lambda: print("waiting", flush=True)):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def python(*arguments: str | Path) -> subprocess.Popen[str]:
    """A Python process whose output can be read."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def dev(*arguments: str, **variables: str | Path) -> tuple[int, str, str]:
    """Run dev.py as a person does: status, output, messages."""
    environ = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, REPOSITORY / "dev.py", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    """A requirements file with one package, a wheel beside it."""
    wheel = tmp_path / "ensemble_probe-1.0-py3-none-any.whl"
    info = "ensemble_probe-1.0.dist-info"
    files = {
        "ensemble_probe.py": "ANSWER = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: ensemble-probe\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_digest(text)},{len(text)}" for name, text in files.items()]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,"])}.items():
            archive.writestr(name, text)
    file = tmp_path / "requirements.txt"
    file.write_text(wheel.as_uri() + "\n")
    return file


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """A tar archive with these files and symbolic links."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return path


def _answer(environment: str) -> str:
    done = subprocess.run(
        [environment, "-c", "import ensemble_probe as p; print(p.ANSWER)"], capture_output=True, text=True
    )
    return done.stdout.strip()


# The command line


def test_help_lists_every_command_and_each_has_its_own():
    status, output, _ = dev("--help")
    assert status == 0
    for command in ("demo", "test", "serve", "bench", "python"):
        assert f"\n  {command} " in output
        assert dev(command, "--help")[1].startswith(f"usage: python dev.py {command}")


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (("dance",), {}, "There is no command dance; the commands are demo, test, serve, bench, python."),
        (("demo",), {"COMFYUI_PATH": "/no/such/place"}, "COMFYUI_PATH is /no/such/place, which is no ComfyUI folder"),
        (("demo", "now"), {}, "demo takes no arguments, not now."),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path, arguments, variables, sentence):
    status, output, messages = dev(*arguments, **{"COMFYUI_ENSEMBLE_CACHE": tmp_path, **variables})
    assert (status, output) == (2, "")
    assert messages.startswith(sentence)
    assert messages.count("\n") == 1


def test_nothing_is_installed_into_the_users_python(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "theirs"], check=True)
    bare = interpreter(tmp_path / "theirs")
    status, _, messages = dev(
        "demo",
        COMFYUI_ENSEMBLE_CACHE=tmp_path / "cache",
        COMFYUI_PATH=host_of_this_process(),
        COMFYUI_PYTHON=bare,
    )
    assert status == 2
    assert f'install them with: "{bare}" -m pip install torch faiss-cpu' in messages
    assert not (tmp_path / "cache" / "environments").exists()


@pytest.mark.parametrize("safe_path", ["", "1"], ids=["as Python 3.10", "Python 3.11 and newer"])
@pytest.mark.parametrize("kind", ["-c", "-m"])
def test_the_checkout_never_hides_the_hosts_modules(tmp_path, kind, safe_path):
    code = "import importlib.util, sys; print(importlib.util.find_spec('nodes').origin, *sys.argv[1:])"
    (tmp_path / "ensemble_probe.py").write_text(code)
    paths = os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])
    what = code if kind == "-c" else "ensemble_probe"
    done = subprocess.run(
        [sys.executable, REPOSITORY / "devtools" / "safe_path.py", kind, what, "one", "--two"],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": safe_path},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{host_of_this_process() / 'nodes.py'} one --two\n"


# The environment


def test_the_key_follows_what_the_environment_is_made_of(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_bytes(b"six==1.16.0\n")
    key = environment_key(file, "host")
    assert environment_key(file, "another host") != key
    file.write_bytes(b"six==1.16.0\r\n")
    assert environment_key(file, "host") == key, "the line ends of a Windows checkout"
    file.write_bytes(b"six==1.17.0\n")
    assert environment_key(file, "host") != key


def test_two_set_ups_at_once_make_one_environment(tmp_path, requirements, monkeypatch):
    cache = tmp_path / "cache"
    both = [python("-c", SET_UP, cache, requirements) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert sum("waiting for it" in messages for _, messages in results) == 1
    assert len([folder for folder in (cache / "environments").iterdir() if folder.is_dir()]) == 1
    assert _answer(results[0][0].strip()) == "42"

    def refuse(*command: object, **_: object) -> None:
        raise AssertionError(f"a prepared environment is only looked up, not asked or installed: {command}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    again = prepare_environment(cache, requirements, "pin")
    assert str(again.python) == results[0][0].strip()


def test_a_killed_set_up_is_never_taken_for_a_whole_one(tmp_path, requirements):
    cache = tmp_path / "cache"
    process = python("-c", SET_UP, cache, requirements)
    while not list((cache / "environments").glob("*/pyvenv.cfg")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (half,) = (cache / "environments").iterdir()
    assert half.is_dir(), "there is a folder, and no marker that names it"

    output, messages = python("-c", SET_UP, cache, requirements).communicate(timeout=120)
    assert "waiting" not in messages, "the lock of a killed process is free"
    assert _answer(output.strip()) == "42"
    assert not half.exists()


def test_a_failed_install_leaves_no_environment(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("./no-such-package-1.0-py3-none-any.whl\n")
    process = python("-c", SET_UP, tmp_path / "cache", file)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 1
    assert messages.count("trying again") == 2
    assert "pip did not succeed in 3 attempts" in messages.splitlines()[-1]
    assert "Traceback" not in messages
    assert not list((tmp_path / "cache" / "environments").glob("*.json"))


def test_a_lock_is_waited_for_and_dies_with_its_holder(tmp_path):
    holder = python("-c", HOLD_LOCK, tmp_path / "lock", "60")
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    second = python("-c", HOLD_LOCK, tmp_path / "lock", "0")
    assert second.stdout is not None and second.stdout.readline() == "waiting\n"
    holder.kill()
    assert second.communicate(timeout=20)[0] == "held\n"
    holder.communicate()


def test_half_a_record_counts_as_none(tmp_path):
    file = tmp_path / "record.json"
    write_json(file, {"folder": "x"})
    assert read_json(file) == {"folder": "x"}
    file.write_text(file.read_text()[:5])
    assert read_json(file) == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


# The host


def test_an_archive_with_another_hash_is_refused_and_removed(tmp_path):
    archive = _archive(tmp_path / "host.tar.gz", {"a/b/main.py": b""})
    pin = Pin("host", "1.0", hashlib.sha256(archive.read_bytes()).hexdigest(), "a/b", "1.0")
    verify(archive, pin.sha256)
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(
        Problem, match=r"^host\.tar\.gz has the sha256 \w+ instead of \w+; it was removed and nothing used\.$"
    ):
        verify(archive, pin.sha256)
    assert not archive.exists()


def test_only_the_hosts_folder_is_unpacked(tmp_path):
    members = {
        "p/vendor/ComfyUI/main.py": b"1",
        "p/vendor/ComfyUI/comfy/a.py": b"2",
        "p/vendor/other.py": b"3",
        "p/x": b"4",
    }
    archive = _archive(tmp_path / "host.tar.gz", members, {"p/vendor/ComfyUI/link": "/etc/passwd"})
    unpack(archive, "p/vendor/ComfyUI", tmp_path / "hosts" / "one")
    files = sorted(path.relative_to(tmp_path / "hosts").as_posix() for path in (tmp_path / "hosts").rglob("*"))
    assert files == ["one", "one/comfy", "one/comfy/a.py", "one/main.py"]


@pytest.mark.parametrize("name", ["p/host/../../../evil", "p/host/..\\..\\evil", "p/host/C:/evil"])
def test_a_path_out_of_the_folder_is_refused_and_nothing_stays(tmp_path, name):
    archive = _archive(tmp_path / "host.tar.gz", {"p/host/main.py": b"", name: b"evil"})
    with pytest.raises(Problem, match="unsafe path"):
        unpack(archive, "p/host", tmp_path / "a" / "b" / "hosts")
    assert not list((tmp_path / "a" / "b").iterdir())
    assert not list(tmp_path.rglob("*evil*"))


# The workspace and the server


def test_a_link_follows_a_checkout_that_moved(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    place = tmp_path / "links" / "pack"
    link(place, tmp_path / "old")
    (tmp_path / "old").rmdir()
    link(place, tmp_path / "new")
    assert place.samefile(tmp_path / "new")
    link(place, tmp_path / "new")


def test_the_pack_has_one_name(tmp_path):
    workspace = prepare_workspace(tmp_path, REPOSITORY)
    assert [entry.name for entry in workspace.custom_nodes.iterdir()] == ["comfyui_ensemble"]
    assert (workspace.custom_nodes / "comfyui_ensemble").samefile(REPOSITORY)


def test_a_taken_port_is_seen():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)


def test_a_workflow_of_which_outputs_were_dropped_counts_as_refused():
    errors = [{"message": "Value not in list", "details": "unet_name"}]
    answer = {"prompt_id": "1", "node_errors": {"3": {"class_type": "UNETLoader", "errors": errors}}}
    with pytest.raises(Problem, match=r"UNETLoader: Value not in list \(unet_name\)"):
        accepted(200, answer)
    assert accepted(200, {"prompt_id": "1", "node_errors": {}}) == "1"


def test_a_server_that_does_not_start_shows_its_last_words(tmp_path):
    server = ComfyServer(data=tmp_path / "data", models=tmp_path / "models", arguments=["--no-such-option"])
    with pytest.raises(Problem, match="unrecognized arguments: --no-such-option"):
        server.start()
    assert server.process is None
