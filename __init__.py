"""ComfyUI-Ensemble: many subjects, each with its own identity and its own pose, in one picture."""

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


def comfy_entrypoint():
    """What ComfyUI calls to get the pack's nodes (V3 extension)."""
    # Imported here so that `comfyui_ensemble.pose_db` and `comfyui_ensemble.training` are usable without the host's node API.
    from .nodes.extension import EnsembleExtension

    return EnsembleExtension()
