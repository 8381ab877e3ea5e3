"""Subjects and the cast sheet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comfyui_ensemble.nodes.cast import CATEGORIES, MAX_SUBJECTS, Cast, EnsembleCastSheet, EnsembleSubject
from comfyui_ensemble.nodes.contact_sheet import OUTLINE, wrap
from comfyui_ensemble.nodes.errors import InputError


def add(cast: Cast | None = None, **changes) -> Cast:
    inputs = {"image": torch.rand(1, 40, 30, 3), "name": "alice", "description": "a woman", "category": "person"}
    return EnsembleSubject.execute(**(inputs | changes), cast=cast).args[0]


def test_chain_keeps_the_order_and_leaves_the_earlier_cast_alone():
    first = add(name=" alice ")
    second = add(first, name="bruno", category="animal", description=" a dog\n")
    assert [subject.name for subject in second.subjects] == ["alice", "bruno"]
    assert second.subjects[1].description == "a dog"
    assert len(first.subjects) == 1


def test_alpha_channel_is_the_mask():
    picture = torch.rand(1, 8, 6, 4)
    subject = add(image=picture).subjects[0]
    assert torch.equal(subject.image, picture[..., :3])
    assert subject.mask is not None and torch.equal(subject.mask, picture[..., 3])


def test_a_given_mask_goes_before_alpha_and_may_lack_the_batch_axis():
    mask = torch.ones(8, 6)
    subject = add(image=torch.rand(1, 8, 6, 4), mask=mask).subjects[0]
    assert subject.mask is not None and torch.equal(subject.mask, mask[None])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "  "}, "Subject, name: it is empty; give the subject a short name."),
        ({"category": "hairdo"}, "Subject, category: 'hairdo' is unknown; choose one of person, face"),
        ({"image": torch.rand(3, 8, 8, 3)}, "Subject, image: it holds 3 pictures; pick one with Image From Batch."),
        ({"mask": torch.ones(1, 64, 64)}, "it is 1 of 64 x 64 pixels, the picture is 30 x 40;"),
        ({"mask": torch.ones(2, 40, 30)}, "it is 2 of 30 x 40 pixels"),
        ({"mask": torch.zeros(1, 40, 30)}, "Subject, mask: it is empty; paint the subject white"),
    ],
)
def test_bad_input_is_one_sentence(changes, message):
    with pytest.raises(InputError) as caught:
        add(**changes)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_name_twice_is_refused():
    with pytest.raises(InputError, match="the cast already has a 'alice'; choose another name"):
        add(add())


def test_a_full_cast_is_refused():
    cast = None
    for number in range(MAX_SUBJECTS):
        cast = add(cast, name=str(number))
    with pytest.raises(InputError, match="it is full at 32 subjects"):
        add(cast, name="one more")


def test_validation_names_the_unknown_category_before_the_run():
    assert EnsembleSubject.validate_inputs(category="bag") is True
    assert "is unknown" in str(EnsembleSubject.validate_inputs(category="hairdo"))
    assert EnsembleSubject.validate_inputs() is True


def test_every_category_is_offered():
    assert [add(category=category).subjects[0].category for category in CATEGORIES] == list(CATEGORIES)


def test_sheet_shows_every_subject_and_the_mask_outline():
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    cast = add(image=torch.zeros(1, 64, 64, 3), mask=mask)
    cast = add(cast, name="bruno", image=torch.ones(1, 20, 90, 3), description="one very long description " * 20)
    cast = add(cast, name="李雷", image=torch.full((1, 90, 20, 3), 0.5))
    sheet = EnsembleCastSheet.execute(cast).args[0]
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3 and sheet.dtype == torch.float32
    assert float(sheet.min()) >= 0 and float(sheet.max()) <= 1
    outline = (sheet[0].numpy() * 255).round().astype(np.uint8) == OUTLINE
    rows, columns = np.nonzero(outline.all(-1))
    assert 120 < np.ptp(rows) < 136 and 120 < np.ptp(columns) < 136  # a 128-pixel square in a 256-pixel tile


def test_wrapping_keeps_every_word():
    text = "a woman in a red coat with a very large umbrella and two small dogs"
    assert " ".join(wrap(text, 3)) == text
    assert len(wrap(text * 5, 3)) == 3
