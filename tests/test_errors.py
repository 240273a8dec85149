"""Errors carry an exit status, and offer the word that was meant."""

from __future__ import annotations

import pickle

import pytest

from vit_export import errors
from vit_export.errors import UsageError, VitExportError, nearest

TREE = [
    member
    for member in vars(errors).values()
    if isinstance(member, type) and issubclass(member, Exception)
]


def test_every_error_is_caught_by_the_base():
    """One `except` is enough for a user's program."""
    assert len(TREE) > 10
    assert all(issubclass(error, VitExportError) for error in TREE)


@pytest.mark.parametrize("error", TREE)
def test_only_a_request_that_cannot_be_met_exits_with_2(error):
    """Everything else failed on the way and exits with 1."""
    assert error.exit_code == (2 if issubclass(error, UsageError) else 1)


@pytest.mark.parametrize("error", TREE)
def test_every_error_is_named_in_the_tree_of_the_docstring(error):
    """The module's docstring is the overview."""
    assert error.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("word", "clause"),
    [
        ("bicubik", "; did you mean 'bicubic'?"),
        ("BILINEAR", "; did you mean 'bilinear'?"),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_the_nearest_known_word_is_offered_whatever_its_case(word, clause):
    """Nothing is offered where nothing comes near."""
    assert nearest(word, ["bicubic", "bilinear", "lanczos"]) == clause


def test_no_more_words_are_offered_than_asked_for():
    """The nearest come first."""
    known = [f"vit_base_patch{n}_224" for n in (16, 14, 32, 8)]
    clause = nearest("vit_base_patch16_22", known, most=2)
    assert clause.startswith("; did you mean 'vit_base_patch16_224' or ")
    assert clause.count(" or ") == 1


def test_known_words_may_come_from_a_generator():
    """They are looked through twice."""
    assert "lanczos" in nearest("LANCZOS", (word for word in ("lanczos",)))


def test_the_hint_stands_on_a_line_of_its_own():
    """The way out is found at a glance, also after a process boundary."""
    error = UsageError("opset 17: torch exports 18 to 25", hint="--opset 20")
    assert str(error) == "opset 17: torch exports 18 to 25\nhint: --opset 20"
    assert str(UsageError("plain")) == "plain"
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.message, copied.hint) == (error.message, error.hint)
