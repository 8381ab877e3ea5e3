"""The pack's own socket types; poses travel as the host's POSE_KEYPOINT."""

from comfy_api.latest import io

CAST = io.Custom("ENSEMBLE_CAST")
DSM = io.Custom("ENSEMBLE_DSM")
LAYOUT = io.Custom("ENSEMBLE_LAYOUT")
POSE_DB = io.Custom("ENSEMBLE_POSE_DB")
POSE = io.Custom("POSE_KEYPOINT")
