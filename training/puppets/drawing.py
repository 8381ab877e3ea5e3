"""One puppet in one pose, as marks from far to near."""

from __future__ import annotations

import numpy as np

from .bags import bag_before, bag_behind
from .canvas import Mark
from .clothes import arm, legs, neck, trunk
from .figure import figure
from .head import head_marks
from .identity import Puppet


def puppet_marks(puppet: Puppet, body: np.ndarray, size: float | None = None) -> list[Mark]:
    """`puppet` on keypoints `body` (18, 3) in pixels; `size` is its stature in pixels where that is known already."""
    shape = figure(puppet, body, size)
    behind, head = head_marks(puppet, shape)
    marks = [*bag_behind(puppet, shape), *behind]
    for side in (0, 1):
        if shape.hidden_arm[side]:
            marks += arm(puppet, shape, side)
    marks += [*legs(puppet, shape), *neck(puppet, shape), *trunk(puppet, shape)]
    before = bag_before(puppet, shape)
    marks += [*before, *head] if shape.back else [*head, *before]
    for side in (0, 1):
        if not shape.hidden_arm[side]:
            marks += arm(puppet, shape, side)
    return marks
