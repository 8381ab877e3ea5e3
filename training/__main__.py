"""``python -m comfyui_ensemble.training``: see `command`."""

from .command import main
from .distributed import end_process

if __name__ == "__main__":
    end_process(main())
