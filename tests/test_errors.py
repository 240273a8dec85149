"""Errors carry an exit status, and offer the word that was meant."""

from __future__ import annotations

import pickle

import pytest

from vit_export import errors
from vit_export.errors import UsageError, VitExportError, check_known, nearest, with_article

TREE = [
    member
    for member in vars(errors).values()
    if isinstance(member, type)
    and issubclass(member, Exception)
    and not issubclass(member, Warning)
]


def test_every_error_is_caught_by_the_base():
    assert len(TREE) > 10
    assert all(issubclass(error, VitExportError) for error in TREE)


@pytest.mark.parametrize("error", TREE)
def test_only_usage_errors_exit_with_2(error):
    assert error.exit_code == (2 if issubclass(error, UsageError) else 1)


@pytest.mark.parametrize(
    ("word", "clause"),
    [
        ("bicubik", "; did you mean 'bicubic'?"),
        ("BILINEAR", "; did you mean 'bilinear'?"),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_the_nearest_known_word_is_suggested_in_any_case(word, clause):
    assert nearest(word, ["bicubic", "bilinear", "lanczos"]) == clause


def test_at_most_three_words_are_suggested():
    known = [f"vit_base_patch{n}_224" for n in (16, 14, 32, 8)]
    clause = nearest("vit_base_patch16_22", known)
    assert clause.startswith("; did you mean 'vit_base_patch16_224' or ")
    assert clause.count(" or ") == 2


def test_known_words_may_come_from_a_generator():
    assert "lanczos" in nearest("LANCZOS", (word for word in ("lanczos",)))


def test_an_unknown_value_is_refused_with_the_known_ones():
    check_known("color", "red", ["red", "blue"])
    with pytest.raises(
        UsageError, match=r"unknown color 're'; did you mean 'red'\? \(known: red, "
    ):
        check_known("color", "re", ["red", "blue"])


def test_the_hint_is_on_its_own_line():
    error = UsageError("opset 17: torch exports 18 to 25", hint="--opset 20")
    assert str(error) == "opset 17: torch exports 18 to 25\nhint: --opset 20"
    assert str(UsageError("plain")) == "plain"
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.message, copied.hint) == (error.message, error.hint)


@pytest.mark.parametrize("found", ["a list", "an int", "an ndarray", "an OrderedDict"])
def test_the_article_fits_the_noun(found):
    assert with_article(found.split()[1]) == found
