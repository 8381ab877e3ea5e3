"""From any folder of pictures to training data: captions, boxes, masks, poses, references, same-subject pairs, manifests.

    python -m comfyui_ensemble.training.construction FOLDER --out FOLDER ...

Every step keeps a journal of its own, so a run that is killed goes on where it was.

Source: ASTRA, section 3.1.2; One-for-All, the appendix on its data; AnyStory, section 3.4.
"""
