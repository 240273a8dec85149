"""How logits become scores: an option, the checkpoint, or the outputs decide."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from vit_export.errors import UsageError
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import choose_activation, load_source, record_golden
from vit_export.progress import silent


@pytest.mark.parametrize(
    ("last", "asked", "activation", "note"),
    [
        (nn.Identity(), None, "softmax", ""),
        (nn.Softmax(1), None, "none", "seems to end in a softmax"),
        (nn.Sigmoid(), None, "none", "seems to end in a sigmoid"),
        (nn.ReLU(), None, "softmax", ""),
        (nn.Softmax(1), "softmax", "softmax", ""),
    ],
)
def test_a_module_that_ends_in_a_softmax_or_sigmoid_is_recognised(last, asked, activation, note):
    """A second softmax would flatten its probabilities; an activation that is asked for is kept."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 5), last)
    loaded = load_source(module, settings=ExportSettings(overrides={"img_size": 8}))
    chosen, notes = choose_activation(loaded, record_golden(loaded, None, silent), asked)
    assert chosen == activation
    assert note in "".join(notes)
    assert bool(notes) == bool(note)


def test_the_activation_of_a_checkpoint_is_kept_and_noted(make_model):
    """A multi-label checkpoint of Hugging Face has sigmoids."""
    loaded = dataclasses.replace(load_source(make_model(depth=1)), activation="sigmoid")
    golden = record_golden(loaded, None, silent)
    activation, notes = choose_activation(loaded, golden, None)
    assert activation == "sigmoid"
    assert "sigmoid" in notes[0]
    assert choose_activation(loaded, golden, "none") == ("none", ())


def test_an_unknown_activation_is_refused():
    """With the nearest one."""
    with pytest.raises(UsageError, match="did you mean 'softmax'"):
        ExportSettings(activation="softmx")
