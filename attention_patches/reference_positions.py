"""Where the references of a FLUX call stand: the one hook through which every mechanism places them.

Attention finds a token by its position id (t, y, x). Several mechanisms may place the references of one layout on one
model: a role belongs to the mechanism with the higher precedence, whatever the order in which they were applied. The
placements that hold for a conditioning are found where a run begins, by the layout that the conditioning carries (see
`LAYOUT_KEY`) or, where references were added by another pack's node, by their sizes. They travel with the conditioning,
so that one call may hold several with references of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .carried import CONDRows, Entry, entries_of, take_along
from .flux_call import FluxCall, note_flux_calls
from .layout import LAYOUT_KEY, Grid, Layout, Role, token_grid
from .position_ids import scale_ids

KEY = "ensemble_positions"


@dataclass(frozen=True)
class Placement(ABC):
    """How one mechanism places the references of one layout.

    Attributes:
        NAME: what messages call the mechanism.
        PRECEDENCE: for every role, how strong the mechanism's claim to it is.
    """

    NAME: ClassVar[str]
    PRECEDENCE: ClassVar[Mapping[Role, int]]

    layout: Layout

    @abstractmethod
    def describes(self, layout: Layout) -> bool:
        """Whether references of this layout, which has the same sizes, would be placed rightly."""

    @abstractmethod
    def reference_ids(self, canvas: Grid, roles: Collection[Role], device: torch.device) -> list[torch.Tensor]:
        """Ids (h * w, 3) of every reference of the layout, then of the copies that `copies` asks for.

        Args:
            roles: those that this mechanism places; the ids of others are not used.

        Raises:
            ValueError: they cannot be placed on a picture of this size; one sentence.
        """

    def copies(self) -> tuple[int, ...]:
        """Which references the model is to be given once more, after all of them."""
        return ()

    def text_ids(self, entry: Entry) -> torch.Tensor | None:
        """Ids (L, 3) of a conditioning's text tokens, with t = 0 for those to be left alone; None to leave all alone."""
        return None


@dataclass(frozen=True)
class Ids:
    """Ids (t, y, x) as a call of one size and device wants them.

    Attributes:
        references: (tokens, 3), of all references and copies.
        text: which tokens of the text are placed, (L, 1) bool, and where, (L, 3); None where all are left alone.
    """

    references: torch.Tensor
    text: tuple[torch.Tensor, torch.Tensor] | None


@dataclass(frozen=True, eq=False)
class Positions:
    """What places the references, and the text, of one conditioning in one run.

    Attributes:
        placements: of its layout; never empty, one of a kind.
        text: ids (L, 3) as in `Placement.text_ids`.
    """

    placements: tuple[Placement, ...]
    text: torch.Tensor | None = None
    _made: dict[Any, Ids] = field(default_factory=dict, init=False, repr=False)

    def claimant(self, role: Role) -> Placement:
        """The mechanism that places the references of a role."""
        return max(self.placements, key=lambda placement: placement.PRECEDENCE[role])

    def ids(self, canvas: Grid, device: torch.device, rope_options: Mapping[str, float] | None) -> Ids:
        """The ids for a call; made once a run, because every step asks for the same."""
        key = (canvas, device, rope_options and tuple(sorted(rope_options.items())))
        if key not in self._made:
            references = scale_ids(self.reference_ids(canvas, device), rope_options)
            text = None if self.text is None else self.text.to(device)
            placed = None if text is None else (text[:, :1] != 0, scale_ids(text, rope_options))
            self._made[key] = Ids(references, placed)
        return self._made[key]

    def reference_ids(self, canvas: Grid, device: torch.device) -> torch.Tensor:
        """Ids (tokens, 3) of all references and copies, each from the mechanism that its role belongs to."""
        subject, pose = self.claimant("subject"), self.claimant("pose")
        if subject is pose:
            return torch.cat(subject.reference_ids(canvas, ("subject", "pose"), device))
        ids = subject.reference_ids(canvas, ("subject",), device)
        of_pose = pose.reference_ids(canvas, ("pose",), device)
        for index, reference in enumerate(pose.layout.references):
            if reference.role == "pose":
                ids[index] = of_pose[index]
        return torch.cat(ids)


class PositionsPatch:
    """Writes the ids of reference tokens, and of the text that describes them; all else of a call is left as it is."""

    def __init__(self, placements: Sequence[Placement]) -> None:
        self.placements = tuple(placements)

    def hand_over(self, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """OUTER_SAMPLE wrapper: every conditioning of this run takes along what places its references."""
        for entry in entries_of(executor.class_obj):
            positions = self._positions(entry) if entry.get("reference_latents") else None
            if positions is not None:
                latents = entry["reference_latents"]
                again = positions.claimant("subject").copies()
                entry["reference_latents"] = [*latents, *(latents[index] for index in again)]
            take_along(entry, KEY, CONDRows([positions]))
        return executor(*args, **kwargs)

    def _positions(self, entry: Entry) -> Positions:
        grids = tuple(map(token_grid, entry["reference_latents"]))
        layout: Layout | None = entry.get(LAYOUT_KEY)
        if layout is not None and layout.grids != grids:
            layout = None  # another node added or exchanged references
        positions = self._fitting(layout or grids)
        return Positions(positions.placements, positions.claimant("subject").text_ids(entry))

    def _fitting(self, layout: Layout | tuple[Grid, ...]) -> Positions:
        """The placements of a layout, or of references whose sizes alone are known; of each kind the last one."""
        grids = layout.grids if isinstance(layout, Layout) else layout
        fitting = {
            type(placement): placement
            for placement in self.placements
            if placement.layout.grids == grids and not (isinstance(layout, Layout) and not placement.describes(layout))
        }
        if not fitting:
            raise ValueError(_mismatch(self.placements[-1], layout))
        return Positions(tuple(fitting.values()))

    def post_input(self, args: dict[str, Any]) -> dict[str, Any]:
        """`post_input` patch: give the tokens of every row of the call their ids."""
        options = args["transformer_options"]
        call = FluxCall.of(options)
        if not call.references:
            return args
        rows = call.carried.get(KEY)
        # img_ids: (B, canvas + reference tokens, axes), txt_ids: (B, L, axes)
        img_ids, txt_ids = args["img_ids"].clone(), args["txt_ids"].clone()
        if rows is None:  # called by something else than a sampler
            rows = [self._fitting(call.references)] * len(img_ids)
        first, rope_options = call.canvas[0] * call.canvas[1], options.get("rope_options")
        for number, positions in enumerate(rows):
            ids = positions.ids(call.canvas, img_ids.device, rope_options)
            img_ids[number, first:, :3] = ids.references
            if ids.text is not None:
                described, places = ids.text
                _check_length(len(places), txt_ids.shape[1])
                txt_ids[number, :, :3] = torch.where(described, places, txt_ids[number, :, :3])
        return {**args, "img_ids": img_ids, "txt_ids": txt_ids}


def place(model: ModelPatcher, placement: Placement) -> ModelPatcher:
    """A clone of `model` with one more placement, which replaces an earlier one of its kind for the same references."""
    patched = model.clone()
    earlier = model.get_attachment(KEY)
    held = [other for other in (earlier.placements if earlier else ()) if not _replaces(placement, other)]
    patch = PositionsPatch([*held, placement])
    if earlier is not None:
        patches = patched.model_options["transformer_options"]["patches"]
        patches["post_input"] = [other for other in patches["post_input"] if other != earlier.post_input]
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patched.set_attachments(KEY, patch)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch.hand_over)
    patched.set_model_post_input_patch(patch.post_input)
    note_flux_calls(patched)
    return patched


def _replaces(placement: Placement, other: Placement) -> bool:
    same_sizes = placement.layout.grids == other.layout.grids
    return type(placement) is type(other) and same_sizes and placement.describes(other.layout)


def _check_length(placed: int, given: int) -> None:
    if placed != given:
        raise ValueError(
            f"Positions: this model pads the prompt from {placed} to {given} tokens, so that the words of the descriptions"
            " cannot be found again."
        )


def _mismatch(placement: Placement, given: Layout | tuple[Grid, ...]) -> str:
    described = placement.layout
    if isinstance(given, Layout) and given.grids == described.grids:
        has, describes = _spell_names(given), _spell_names(described)
    else:
        has = f"{spell_grids(given.grids if isinstance(given, Layout) else given)} tokens"
        describes = spell_grids(described.grids)
    return (
        f"{placement.NAME}: the sampler's conditioning carries references of {has}, the connected layout describes"
        f" {describes}; connect the layout of the same Reference Latents node."
    )


def spell_grids(grids: Sequence[Grid]) -> str:
    """Sizes in words."""
    return ", ".join(f"{height} x {width}" for height, width in grids) or "no"


def _spell_names(layout: Layout) -> str:
    return ", ".join(f"{entry.name} ({entry.category})" if entry.name else entry.role for entry in layout.references)
