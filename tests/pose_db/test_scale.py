"""Collections: what is built is what was put in, however often it is killed; damage is noticed."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from comfyui_ensemble.batch.journal import JournalError, read_journal
from comfyui_ensemble.models_info.registry import BUNDLED_POSES, PACK_FOLDER, find_minilm
from comfyui_ensemble.pose_db.code_index import CodeIndex
from comfyui_ensemble.pose_db.collection import CollectionRetriever, is_collection, open_collection, open_retriever
from comfyui_ensemble.pose_db.collection_shards import shard_folder, shard_path
from comfyui_ensemble.pose_db.database import PoseDatabase, PoseDatabaseError, PoseEntry, load_database, save_database
from comfyui_ensemble.pose_db.factory_cli import main as factory
from comfyui_ensemble.pose_db.prompt_file import PromptFile, PromptFileError
from comfyui_ensemble.pose_db.retriever import PoseRetriever
from comfyui_ensemble.pose_db.scale import ScaleError, build_collection, shards_of
from comfyui_ensemble.pose_db.scale_cli import main
from comfyui_ensemble.pose_db.scale_measure import measure_collection
from comfyui_ensemble.pose_db.scale_sources import AuthoredPoses, Databases, part_of
from comfyui_ensemble.pose_db.scale_workers import WorkersLost, run_jobs

BUNDLED = PACK_FOLDER / "pose_db" / "data" / BUNDLED_POSES.name
ENTRIES, SHARD = 1500, 300
FLAT_LIMIT = 1000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first entries of the bundled database, as a database file."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_database(part_of(load_database(BUNDLED), 0, ENTRIES), path)
    return path


def build(small: Path, out: Path, workers: int = 1) -> Path:
    source = Databases((small,), SHARD)
    count = build_collection(out, source.digest(), shards_of(source, workers, str), workers, str, FLAT_LIMIT)
    assert count == ENTRIES
    return out


@pytest.fixture(scope="module")
def built(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(small, tmp_path_factory.mktemp("built") / "poses.safetensors")


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A collection that may be damaged."""
    shutil.copytree(built.parent, tmp_path / "copy")
    return tmp_path / "copy" / built.name


def contents(out: Path) -> dict[str, str]:
    """Digests of all files but the journal, whose order may differ."""
    files = [out, *shard_folder(out).rglob("*")]
    return {
        str(file.relative_to(out.parent)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and not file.name.startswith("journal.")
    }


def test_every_entry_is_what_it_was(small: Path, built: Path):
    database, collection = load_database(small), open_collection(built)
    assert len(collection) == len(database) == len(collection.prompts)
    assert list(collection.prompts) == database.prompts and list(collection.tags) == database.tags
    assert collection.prompts[-1] == database.prompts[-1] and collection.prompts[3:5] == database.prompts[3:5]
    for entry in range(0, ENTRIES, 37):
        assert collection.frame(entry) == database.frame(entry)
        assert np.array_equal(collection.people(entry), database.people(entry))
    np.testing.assert_allclose(np.concatenate(list(collection.shards.blocks())), database.embeddings, atol=1e-3)
    with pytest.raises(IndexError):
        collection.prompts[ENTRIES]


def test_a_search_finds_what_the_database_finds(small: Path, built: Path):
    retriever = open_retriever(built, find_minilm())
    assert isinstance(retriever, CollectionRetriever) and isinstance(retriever._index, CodeIndex)
    plain = open_retriever(small, find_minilm())
    assert type(plain) is PoseRetriever
    prompts = [load_database(small).prompts[entry] for entry in range(7, ENTRIES, 150)]
    prompts = [f"a photo of {prompt} in the evening" for prompt in prompts]
    alike = 0
    for found, wanted in zip(retriever.search_all(prompts, 5), plain.search_all(prompts, 5), strict=True):
        scores = {match.entry: match.score for match in wanted}
        assert found[0].entry == wanted[0].entry
        assert found[0].score == pytest.approx(wanted[0].score, abs=1e-3)
        alike += len(scores.keys() & {match.entry for match in found})
    assert alike >= 0.9 * 5 * len(prompts)


def test_what_is_opened_is_mapped_and_only_what_is_asked_for(built: Path):
    collection = open_collection(built)
    assert collection.shards._mapped == {}
    index: Any = collection.index
    assert isinstance(index.lists.codes, np.memmap) and not index.lists.codes.flags.writeable
    index.search(np.eye(384, dtype=np.float32)[0], 1)
    assert all(isinstance(shard.embeddings, np.memmap) for shard in collection.shards._mapped.values())


def test_neither_workers_nor_kills_change_a_byte(small: Path, built: Path, tmp_path: Path):
    assert contents(build(small, tmp_path / "two" / "poses.safetensors", workers=2)) == contents(built)
    out = tmp_path / "killed" / "poses.safetensors"
    for wanted in ("000002.poses", "quantizer.safetensors", "000002.codes"):
        _kill_when_there(small, out, wanted)
    with (shard_folder(out) / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"event":"shard","numb')  # as a kill within a write leaves it
    (shard_folder(out) / ".000005.poses.1.partial").write_bytes(b"half")
    before = read_journal(shard_folder(out))
    build(small, out)
    assert contents(out) == contents(built)
    events = read_journal(shard_folder(out))
    assert events[: len(before)] == before
    assert sorted(event["number"] for event in events[1:]) == list(range(ENTRIES // SHARD))
    written = out.stat().st_mtime_ns
    build(small, out)  # nothing is left to do
    assert out.stat().st_mtime_ns == written and read_journal(shard_folder(out)) == events


RUN = f"""
import sys
from pathlib import Path
from comfyui_ensemble.pose_db.scale import build_collection, shards_of
from comfyui_ensemble.pose_db.scale_sources import Databases
source = Databases((Path(sys.argv[1]),), {SHARD})
build_collection(Path(sys.argv[2]), source.digest(), shards_of(source, 1, str), 1, str, {FLAT_LIMIT})
"""


def _kill_when_there(small: Path, out: Path, name: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", RUN, str(small), str(out)])
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(f"*/**/{name}")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()


def test_a_shard_that_was_lost_is_made_again(small: Path, built: Path, copied: Path):
    shard_path(shard_folder(copied), 2).unlink()
    copied.unlink()
    build(small, copied)
    assert contents(copied) == contents(built)


def test_other_work_is_not_continued(small: Path, copied: Path, tmp_path: Path):
    other = Databases((small,), SHARD + 1)
    make = shards_of(other, 1, str)
    with pytest.raises(ScaleError, match=r"poses\.safetensors is there and another run made it; choose another name"):
        build_collection(copied, other.digest(), make, 1, str)
    copied.unlink()
    with pytest.raises(JournalError, match="belongs to other prompts"):
        build_collection(copied, other.digest(), make, 1, str)
    database = tmp_path / "small.safetensors"
    shutil.copy(small, database)
    with pytest.raises(ScaleError, match="is there and another run made it"):
        build_collection(database, other.digest(), make, 1, str)
    assert database.read_bytes() == small.read_bytes()


def test_small_collections_compare_all(small: Path, tmp_path: Path):
    out = tmp_path / "flat.safetensors"
    source = Databases((small, small), 700)
    assert build_collection(out, source.digest(), shards_of(source, 1, str), 1, str) == 2 * ENTRIES
    assert out.stat().st_size < 10_000
    found = CollectionRetriever(open_collection(out), find_minilm()).search("a woman waving", 4)
    assert abs(found[0].entry - found[1].entry) == ENTRIES and found[0].score == found[1].score


@pytest.mark.parametrize(
    ("damage", "sentence"),
    {
        "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
        "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
        "changed": (lambda path: _flip(path), "is damaged"),
        "older": (lambda path: _rewrite(path, version="0"), "format version 0, this pack reads 1"),
    }.values(),
)
def test_a_damaged_collection_is_refused(copied: Path, damage, sentence: str):
    damage(copied)
    with pytest.raises(PoseDatabaseError, match=sentence):
        open_collection(copied)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-len(data) // 3] ^= 1
    path.write_bytes(data)


def _rewrite(path: Path, **changes: str) -> None:
    tensors = load_file(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]["pose_collection"])
    save_file(tensors, path, metadata={"pose_collection": json.dumps(header | changes)})


def test_damaged_shards_are_noticed(copied: Path):
    collection = open_collection(copied)
    collection.shards.check()
    first, second = (shard_path(shard_folder(copied), number) for number in (0, 1))
    whole = first.read_bytes()
    first.write_bytes(whole[:-100])
    with pytest.raises(PoseDatabaseError, match=r"the shard 000000\.poses of the collection cannot be read"):
        open_collection(copied).frame(0)
    first.write_bytes(second.read_bytes())
    with pytest.raises(PoseDatabaseError, match="is not the one that the collection was made of"):
        open_collection(copied).frame(0)
    first.write_bytes(whole)
    _flip(first)
    with pytest.raises(PoseDatabaseError, match=r"damaged|made for other entries"):
        open_collection(copied).shards.check()
    first.unlink()
    with pytest.raises(PoseDatabaseError, match="cannot be read"):
        open_collection(copied).frame(0)
    assert collection.frame(ENTRIES - 1)["people"]  # the others are as they were


def test_a_collection_is_not_copied_or_grown_in_memory(built: Path, tmp_path: Path):
    retriever = open_retriever(built, find_minilm())
    with pytest.raises(PoseDatabaseError, match="is a collection, which this cannot add to"):
        retriever.extended([PoseEntry("a man", np.zeros((1, 18, 3)), (64, 64))])
    with pytest.raises(PoseDatabaseError, match="is a collection, which is not changed or copied here"):
        save_database(retriever.database, tmp_path / "copy.safetensors")
    assert not (tmp_path / "copy.safetensors").exists()


def test_the_bundled_database_is_read_as_ever():
    before = hashlib.sha256(BUNDLED.read_bytes()).hexdigest()
    assert not is_collection(BUNDLED)
    retriever = open_retriever(BUNDLED, find_minilm())
    assert type(retriever) is PoseRetriever and isinstance(retriever.database, PoseDatabase)
    assert hashlib.sha256(BUNDLED.read_bytes()).hexdigest() == before


def test_authored_shards_begin_as_the_bundled_database():
    source = AuthoredPoses(3, 0, None)
    bundled = load_database(BUNDLED)
    for number in (0, 200, source.count() - 1):
        shard = source.make(number)
        mine = [entry for entry, tag in enumerate(bundled.tags) if tag["action"] == shard.name]
        assert shard.prompts[: len(mine)] == [bundled.prompts[entry] for entry in mine]
        for row, entry in enumerate(mine):
            assert np.array_equal(shard.people(row), bundled.people(entry))
        assert len(set(shard.prompts)) == len(shard.prompts) > 2 * len(mine)
        assert {tag["round"] for tag in shard.tags} == {0, 1, 2}
    assert AuthoredPoses(4, 0, None).digest() != source.digest() != AuthoredPoses(3, 1, None).digest()


WORK = """
import os
import time
from pathlib import Path

def die_once(marker, number):
    if number == 3 and not marker.exists():
        marker.touch()
        os._exit(9)
    return number * number

def die(number):
    os._exit(9)

def fail(number):
    raise ValueError(f"number {number} cannot be made")

def wait_long(folder, number):
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that worker processes can import."""
    (tmp_path / "scale_test_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("scale_test_work")
    del sys.modules["scale_test_work"]


def test_a_lost_worker_is_replaced(work: ModuleType, tmp_path: Path):
    found = dict(run_jobs(partial(work.die_once, tmp_path / "died"), range(12), 2))
    assert (tmp_path / "died").exists() and found == {number: number * number for number in range(12)}


def test_workers_end_with_the_run(work: ModuleType, tmp_path: Path):
    run = (
        "from comfyui_ensemble.pose_db.scale_workers import run_jobs; import scale_test_work, functools, pathlib, sys\n"
    )
    run += "if __name__ == '__main__':\n"
    run += " list(run_jobs(functools.partial(scale_test_work.wait_long, pathlib.Path(sys.argv[1])), range(2), 2))"
    (tmp_path / "run.py").write_text(run)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, tmp_path / "run.py", tmp_path]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    while any(psutil.pid_exists(number) for number in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_that_always_end_are_given_up(work: ModuleType):
    with pytest.raises(WorkersLost, match="use fewer workers"):
        list(run_jobs(work.die, range(4), 2))
    with pytest.raises(ValueError, match="cannot be made"):
        list(run_jobs(work.fail, range(4), 2))


def test_measuring(tmp_path: Path):
    """Two processes search what was built; on Linux they share its pages."""
    found = measure_collection(3000, tmp_path, 1, str, FLAT_LIMIT)
    assert found["recall_at_1"] >= 0.99 and found["recall_at_10"] >= 0.95
    assert found["index_bytes"] < 0.4 * found["shard_bytes"] and found["lists_read"] < found["lists"]
    if sys.platform == "linux":
        for memory in found["memory_mib"]:
            assert 0 < memory["mapped_pss"] < 0.7 * memory["mapped_rss"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_prompts_are_read_shard_by_shard(tmp_path: Path, suffix: str):
    texts = [f"a man {word} ü" for word in ("waving", "running", "sitting", "jumping", "lying")]
    lines = texts if suffix == ".txt" else [json.dumps({"prompt": text, "tags": {"n": text}}) for text in texts]
    path = tmp_path / f"prompts{suffix}"
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n  \n", encoding="utf-8")
    prompts = PromptFile(path, 2)
    assert (len(prompts), prompts.entries) == (3, 5)
    found = [prompts.prompts(number) for number in range(3)]
    assert [len(shard) for shard in found] == [2, 2, 1]
    assert [variation.prompt for shard in found for variation in shard] == texts
    assert found[2][0].tags == ({} if suffix == ".txt" else {"n": texts[4]})
    assert PromptFile(path, 3).digest != prompts.digest


def test_systematic_variations_are_such_a_file(tmp_path: Path):
    axes = {"actions": ["a man waving", "a man running"], "environments": ["in a park", "on a beach"], "cameras": []}
    (tmp_path / "axes.json").write_text(json.dumps(axes), encoding="utf-8")
    out = tmp_path / "prompts.jsonl"
    assert factory(["variations", str(tmp_path / "axes.json"), "--count", "2", "--out", str(out)]) == 0
    found = PromptFile(out, 3).prompts(1)
    assert PromptFile(out, 3).entries == 4 and [one.tags["action"] for one in found] == ["a man running"]
    assert found[0].prompt.startswith("a man running ")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b" \n", "a.txt holds no prompt"),
        ("a.txt", b"a man\n\xff\xfe\n", "line 2 of a.txt is not a prompt; write text in UTF-8 a line"),
        ("a.jsonl", b'{"prompt": "x"}\n{"text": "x"}\n', 'line 2 of a.jsonl is not a prompt; write {"prompt"'),
        ("a.jsonl", b'{"prompt": ""}\n', "line 1 of a.jsonl"),
        ("a.jsonl", b"[1]\n", "line 1 of a.jsonl"),
    ],
)
def test_bad_prompts(tmp_path: Path, name: str, content: bytes, sentence: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptFileError) as caught:
        PromptFile(tmp_path / name, 2)
    assert sentence in str(caught.value)


def test_the_command(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "poses.safetensors"
    assert main(["databases", str(small), "--out", str(out), "--workers", "1"]) == 0
    assert f"collection: {out} ({ENTRIES} entries)" in capsys.readouterr().out
    assert main(["search", str(out), "a woman waving", "--count", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["check", str(out)]) == 0
    assert f"1 shards, {ENTRIES} entries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["authored", "--rounds", "0", "--out", "x.safetensors"], "--rounds is 0; one is the least."),
        (["databases", "none.safetensors", "--out", "x.bin"], "--out is x.bin; end it with .safetensors"),
        (["databases", "none.safetensors", "--out", "x.safetensors"], "No such file"),
        (["search", "none.safetensors", "a man"], "the pose collection none.safetensors cannot be read"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, sentence, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().out
    assert sentence in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
