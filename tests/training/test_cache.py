"""Encodings that are made once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from comfyui_ensemble.training import cache as cache_module
from comfyui_ensemble.training.cache import EncodedCache

Tensors = dict[str, torch.Tensor]


def encoding(seed: int = 0, size: int = 64) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(1, 4, size, generator=generator)
    return {"latent": latent, "half": latent[0, :2].to(torch.bfloat16).T, "spans": torch.arange(6).reshape(3, 2)}


def never() -> Tensors:
    raise AssertionError("it was to be found, not made")


def same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_encoding_is_made_once_and_kept_in_memory():
    cache = EncodedCache("vae")
    made = cache("a", encoding)
    assert cache("a", never) is made
    assert same(cache("b", lambda: encoding(1)), encoding(1))
    assert cache.made == 2


def test_a_folder_outlives_the_run(tmp_path: Path):
    EncodedCache("vae", tmp_path)("a", encoding)
    assert same(EncodedCache("vae", tmp_path)("a", never), encoding())


def test_another_encoder_is_another_encoding(tmp_path: Path):
    EncodedCache("vae", tmp_path)("a", encoding)
    assert same(EncodedCache("another vae", tmp_path)("a", lambda: encoding(1)), encoding(1))
    assert same(EncodedCache("vae", tmp_path)("a", never), encoding())


def test_views_of_one_tensor_are_kept_as_they_are(tmp_path: Path):
    whole = torch.arange(12.0).reshape(3, 4)
    EncodedCache("vae", tmp_path)("a", lambda: {"whole": whole, "part": whole[:, 1:3], "one": torch.tensor(3.0)})
    found = EncodedCache("vae", tmp_path)("a", never)
    assert same(found, {"whole": whole, "part": whole[:, 1:3], "one": torch.tensor(3.0)})


def test_memory_is_bounded_and_the_least_used_goes_first():
    one = encoding()
    size = sum(value.numel() * value.element_size() for value in one.values())
    cache = EncodedCache("vae", memory=3 * size)
    for key in "abc":
        cache(key, encoding)
    cache("a", never)  # now b is the one used longest ago
    cache("d", encoding)
    for key in "acd":
        cache(key, never)
    cache("b", encoding)
    assert cache.made == 5


def test_what_is_larger_than_the_memory_is_read_from_the_folder(tmp_path: Path):
    cache = EncodedCache("vae", tmp_path, memory=0)
    cache("a", encoding)
    assert same(cache("a", never), encoding())


def corrupt_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def corrupt_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)


def corrupt_empty(path: Path) -> None:
    path.write_bytes(b"")


def corrupt_noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def corrupt_list(path: Path) -> None:
    path.write_bytes((2).to_bytes(8, "little") + b"[]")


@pytest.mark.parametrize("corrupt", [corrupt_cut, corrupt_flip, corrupt_empty, corrupt_noise, corrupt_list])
def test_a_damaged_file_is_made_again_and_mended(tmp_path: Path, corrupt: Callable[[Path], None]):
    EncodedCache("vae", tmp_path)("a", encoding)
    (path,) = files(tmp_path)
    corrupt(path)
    cache = EncodedCache("vae", tmp_path)
    assert same(cache("a", encoding), encoding()) and cache.made == 1
    assert same(EncodedCache("vae", tmp_path)("a", never), encoding())


def test_every_flipped_bit_is_noticed(tmp_path: Path):
    small: Tensors = {"x": torch.arange(3, dtype=torch.uint8)}
    EncodedCache("vae", tmp_path)("a", lambda: small)
    (path,) = files(tmp_path)
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 3):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert same(EncodedCache("vae", tmp_path)("a", lambda: dict(small)), small)


def test_a_file_under_another_name_is_not_believed(tmp_path: Path):
    cache = EncodedCache("vae", tmp_path)
    cache("a", encoding)
    (first,) = files(tmp_path)
    cache("b", lambda: encoding(1))
    (second,) = set(files(tmp_path)) - {first}
    second.write_bytes(first.read_bytes())
    assert same(EncodedCache("vae", tmp_path)("b", lambda: encoding(1)), encoding(1))


def test_a_full_disk_leaves_nothing_behind_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = EncodedCache("vae", tmp_path)
    assert same(cache("a", encoding), encoding())
    assert files(tmp_path) == []
    monkeypatch.undo()
    cache("b", encoding)
    assert files(tmp_path) == []  # it did not try again
    assert same(cache("a", never), encoding())


def test_an_error_while_encoding_is_raised_and_kept_nowhere(tmp_path: Path):
    cache = EncodedCache("vae", tmp_path)

    def fails() -> Tensors:
        raise ValueError("the encoder does not like it")

    with pytest.raises(ValueError, match="does not like it"):
        cache("a", fails)
    assert files(tmp_path) == []
    assert same(cache("a", encoding), encoding())


@pytest.mark.parametrize("memory", [cache_module.MEMORY, 0])
def test_many_threads_make_each_encoding_once(tmp_path: Path, memory: int):
    cache = EncodedCache("vae", tmp_path, memory)
    running: list[str] = []
    twice, wrong = [], []

    def ask(start: int) -> None:
        for number in range(24):
            key = str((start + number) % 8)

            def make(key: str = key) -> Tensors:
                if key in running:
                    twice.append(key)
                running.append(key)
                time.sleep(0.002)
                running.remove(key)
                return encoding(int(key))

            if not same(cache(key, make), encoding(int(key))):
                wrong.append(key)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not twice and not wrong
    assert cache.made == 8
    assert not list(tmp_path.rglob("*.partial"))
