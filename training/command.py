"""The command line: the trainings of the nodes, on one machine or several.

    python -m comfyui_ensemble.training TRAINER --data MANIFEST|puppets --model FILE --vae FILE ... --out FOLDER
    accelerate launch -m comfyui_ensemble.training TRAINER ...

`trainers` has what it can train.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .config import TrainingConfig, read_config, read_config_file
from .distributed import OneProcess, join_processes
from .errors import TrainingError
from .loop import train
from .terminal import TerminalReport
from .trainers import TRAINERS, Trainer
from .weights import check_name, save_weights

STOPPED = 130  # the exit code, as a shell has it after Ctrl+C


def find_trainer(name: str) -> Trainer:
    """The trainer of that name.

    Raises:
        TrainingError: there is none.
    """
    if name not in TRAINERS:
        raise TrainingError(f"there is no trainer '{name}'; choose one of: {', '.join(sorted(TRAINERS))}")
    return TRAINERS[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the training is finished, 2 when it cannot begin or go on, 130 when it was stopped."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not given or given[0] in ("-h", "--help"):
            _say(_usage())
            return 0 if given else 2
        trainer = find_trainer(given[0])
        chosen = _parser(given[0], trainer).parse_args(given[1:])
        config = read_config_file(chosen.config, partial(read_config, trainer.config))
        if chosen.save_as is not None:
            check_name(chosen.save_as)
        processes = join_processes(chosen.fsdp)  # before the host looks for its device
    except TrainingError as error:
        _say(f"{error}.")
        return 2
    try:
        return _train(trainer, chosen, config, processes)
    except TrainingError as error:
        if processes.rank == 0:
            _say(f"{error}.")
        return 2
    except KeyboardInterrupt:
        _say("Ended at once; the same command continues from the last checkpoint.")
        return STOPPED
    finally:
        processes.close()


def _train(trainer: Trainer, chosen: argparse.Namespace, config: TrainingConfig, processes: OneProcess) -> int:
    with stop_on_signals() as stopped:
        try:
            task, data = trainer.build(chosen, config)
        except (ValueError, OSError) as error:  # a model or a file that will not do
            raise TrainingError(str(error)) from None
        result = train(task, data, config, chosen.out, TerminalReport(), not chosen.fresh, stopped, processes)
    if processes.rank != 0:
        return 0 if result.finished else STOPPED
    if not result.finished:
        _say(f"Stopped after step {result.step}; the same command continues.")
        return STOPPED
    paths = save_weights(result.weights, config.run, True, lambda folder: chosen.out / "weights" / folder)
    if chosen.save_as is not None:
        paths += save_weights(result.weights, chosen.save_as)
    _say("\n".join(map(str, paths)))
    return 0


def _usage() -> str:
    lines = [f"  {name:<20} {TRAINERS[name].description}" for name in sorted(TRAINERS)]
    return "\n".join(["usage: python -m comfyui_ensemble.training TRAINER --help", "", "trainers:", *lines])


def _parser(name: str, trainer: Trainer) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python dev.py python -m comfyui_ensemble.training {name}", description=trainer.description
    )
    parser.add_argument("--config", type=Path, help="JSON file of settings; without one, the paper's")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder: checkpoints, log, pictures, weights")
    parser.add_argument("--save-as", help="also save the weights under this name into ComfyUI's models folders")
    parser.add_argument("--fresh", action="store_true", help="begin anew; what is in --out is moved aside there")
    parser.add_argument("--resume", action="store_false", dest="fresh", help="continue what is in --out (the default)")
    parser.add_argument(
        "--fsdp", action="store_true", help="in several processes: share the weights out instead of copying"
    )
    trainer.add_arguments(parser)
    return parser


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Whether somebody pressed Ctrl+C or ended the process kindly. A second time ends it at once."""
    event = threading.Event()

    def note(number: int, _frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
