"""The pack's own socket types; poses travel as the host's POSE_KEYPOINT."""

from comfy_api.latest import io

ANYSTORY = io.Custom("ENSEMBLE_ANYSTORY")
APPEARANCE = io.Custom("ENSEMBLE_APPEARANCE")
CAST = io.Custom("ENSEMBLE_CAST")
DAM = io.Custom("ENSEMBLE_DAM")
DATA = io.Custom("ENSEMBLE_DATA")
DSM = io.Custom("ENSEMBLE_DSM")
INSPECTION = io.Custom("ENSEMBLE_INSPECTION")
LAYOUT = io.Custom("ENSEMBLE_LAYOUT")
POSE_DB = io.Custom("ENSEMBLE_POSE_DB")
POSE = io.Custom("POSE_KEYPOINT")
ROUTING = io.Custom("ENSEMBLE_ROUTING")
SAM = io.Custom("ENSEMBLE_SAM")
SUBJECT_FEATURES = io.Custom("ENSEMBLE_SUBJECT_FEATURES")
WEIGHTS = io.Custom("ENSEMBLE_WEIGHTS")
