"""Journal and manifest of a batch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from comfyui_ensemble.batch.errors import BatchError
from comfyui_ensemble.batch.jobs import Job
from comfyui_ensemble.batch.journal import JournalError, read_journal
from comfyui_ensemble.batch.records import MANIFEST, batch_secret, check_free, open_records

JOBS = [Job(number, number + 1, {}) for number in range(4)]
PROMPT = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}}


def manifest(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / MANIFEST).read_text(encoding="utf-8").splitlines()]


def test_a_batch_is_continued_from_its_records(tmp_path: Path):
    assert batch_secret(tmp_path) is None
    with open_records(tmp_path, "plan", "secret") as records:
        for job in JOBS:
            records.send(job, "http://a", f"id {job.number}", PROMPT, {})
        records.note("failed", JOBS[1], reason="no")
        records.save(JOBS[3], [{"file": "3.png"}, {"file": "3_p2.png"}])
        records.save(JOBS[0], [{"file": "0.png"}])
        assert [row["file"] for row in manifest(tmp_path)] == ["3.png", "3_p2.png", "0.png"]
    sent = PROMPT | {}
    (prompt,) = (tmp_path / "_batch" / "prompts").iterdir()
    assert json.loads(prompt.read_text()) == sent and prompt.stem == hashlib.sha256(prompt.read_bytes()).hexdigest()

    (tmp_path / "sub").mkdir()
    left_over = tmp_path / "sub" / ".1.png.123.partial"  # by a process that was killed
    left_over.touch()
    with (tmp_path / "_batch" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"event":"saved","job":2,"ro')
    (tmp_path / MANIFEST).write_text("torn")
    with open_records(tmp_path, "plan", "another secret") as records:
        assert records.saved() == {0, 3} and list(records.under_way()) == [2]
        assert records.under_way()[2]["prompt_id"] == "id 2"
        assert [row["file"] for row in manifest(tmp_path)] == ["0.png", "3.png", "3_p2.png"]
    assert batch_secret(tmp_path) == "secret" and not left_over.exists()
    with pytest.raises(JournalError, match="belongs to other"), open_records(tmp_path, "other plan", "s"):
        pass


def test_two_commands_cannot_work_in_one_folder(tmp_path: Path):
    with (
        open_records(tmp_path, "plan", "s"),
        pytest.raises(JournalError, match="another run works in"),
        open_records(tmp_path, "plan", "s"),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_nothing_is_written_after_a_full_disk(tmp_path: Path):
    with open_records(tmp_path, "plan", "s") as records:
        (tmp_path / MANIFEST).unlink()
        os.symlink("/dev/full", tmp_path / MANIFEST)
        with pytest.raises(OSError) as raised:
            records.save(JOBS[0], [{"file": "0.png"}])
        assert raised.value.errno == errno.ENOSPC
        (tmp_path / MANIFEST).unlink()
        with pytest.raises(OSError):
            records.note("failed", JOBS[1], reason="no")
    events = read_journal(tmp_path / "_batch")
    assert [event["event"] for event in events] == ["start", "seeds", "saved"]


def test_files_that_are_there_already_are_not_written_over(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cat.jpg").touch()
    check_free(tmp_path, ["cat", "a/dog", "b/cat"])
    with pytest.raises(BatchError, match=r"cat.jpg is there already; choose another --out or --name"):
        check_free(tmp_path, ["dog", "a/cat"])
