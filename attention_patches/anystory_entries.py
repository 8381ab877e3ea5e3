"""What AnyStory's layers need to know of the subjects and of the background, computed once a run.

An entry is a subject or, the last of all, the background. The order of the cast must not matter, not even where two entries
claim a pixel equally, so subjects are worked on in an order that depends on what they hold alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .anystory_features import SubjectFeatures
from .anystory_injection import KeysValues
from .anystory_router import Probes
from .unet_layers import AttentionLayer


class Entries:
    """Keys, values and probes of every layer, each made when it is first needed, in the precision and place asked for.

    Attributes:
        order: indices of the features' subjects, in the order in which they are worked on.
        entry_of: for every subject in cast order, and last the background, the index of its entry.
    """

    def __init__(self, features: SubjectFeatures) -> None:
        self.features = features
        self.order = sorted(range(len(features.names)), key=self._content)
        self.entry_of = [self.order.index(subject) for subject in range(len(self.order))] + [len(self.order)]
        self._made: dict[tuple[Any, ...], Any] = {}

    def _content(self, subject: int) -> tuple[list[float], list[float]]:
        return self.features.router[subject].tolist(), self.features.tokens[subject, 0].tolist()

    def probes(self, layer: AttentionLayer, device: torch.device) -> Probes:
        """What a layer's router asks of every pixel."""
        router = self.features.network.model.routers[layer.name]

        def make() -> Probes:
            return router.probes(self.features.router[[*self.order, -1]].to(device, torch.float32))

        return self._once(("probes", layer, device), make)

    def subjects(self, layer: AttentionLayer, like: torch.Tensor) -> list[KeysValues]:
        """K_i and V_i of Eq. 5, in the precision and on the device of `like`."""
        matrices = self.features.network.model.injection.subject[layer.name]

        def make() -> list[KeysValues]:
            return [matrices(self.features.tokens[entry].to(like)) for entry in [*self.order, -1]]

        return self._once(("subjects", layer, like.dtype, like.device), make)

    def nobody(self, layer: AttentionLayer, like: torch.Tensor) -> KeysValues:
        """As above, of the zero image."""
        matrices = self.features.network.model.injection.subject[layer.name]
        return self._once(
            ("nobody", layer, like.dtype, like.device), lambda: matrices(self.features.null_tokens.to(like))
        )

    def references(self, layer: AttentionLayer, number: int, like: torch.Tensor) -> list[KeysValues | None]:
        """K_i and V_i of Eq. 6, from G^l of layer `number`; None for a background without a picture."""
        matrices = self.features.network.model.injection.reference[layer.name]
        hidden, behind = self.features.hidden[number], self.features.background_hidden

        def make() -> list[KeysValues | None]:
            assert hidden is not None  # the first layer alone has none
            of_background = behind[number] if behind is not None else None
            states = [*(hidden[subject] for subject in self.order), None if of_background is None else of_background[0]]
            return [None if state is None else matrices(state.to(like)) for state in states]

        return self._once(("references", layer, like.dtype, like.device), make)

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
