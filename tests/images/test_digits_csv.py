"""Digits as CSV: rows are read, bad rows are listed, predictions are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import DataError, OutputError
from vit_export.images.digits_csv import read_digits, write_predictions

GREY = Preprocess(size=(2, 2), crop_pct=1.0, mean=(0.5,), std=(0.5,), color="L")
PIXELS = "pixel0,pixel1,pixel2,pixel3"


def write(path: Path, *lines: str, header: str = f"label,{PIXELS}") -> Path:
    """Write a CSV file of these lines."""
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """Return the error message for a file."""
    with pytest.raises(DataError) as caught:
        read_digits(path, GREY, labelled=True)
    return str(caught.value)


def test_rows_become_images_with_their_labels(tmp_path: Path) -> None:
    """Pixels row by row; there are ten labels even where a digit is missing."""
    data = read_digits(write(tmp_path / "d.csv", "7,0,1,2,255", "0,9,8,7,6"), GREY)
    assert data.targets.tolist() == [7, 0]
    assert data.images[..., 0].tolist() == [[[0, 1], [2, 255]], [[9, 8], [7, 6]]]
    assert data.labels == tuple("0123456789")


def test_digits_are_converted_to_the_size_and_colour_of_the_model(tmp_path: Path) -> None:
    """So that any variant can be trained on them."""
    path = write(tmp_path / "d.csv", "7,9,9,9,9")
    rgb = Preprocess(size=(6, 6), crop_pct=1.0)
    data = read_digits(path, rgb)
    assert data.images.shape == (1, 6, 6, 3)
    assert set(data.images.ravel().tolist()) == {9}


@pytest.mark.parametrize("text", ['"label",pixel0\r\n"3",17\r\n\r\n', "\ufefflabel,pixel0\n3,17"])
def test_files_of_spreadsheets_are_read(tmp_path: Path, text: str) -> None:
    """Quotes, Windows line ends, a blank last line, a byte order mark, no last line end."""
    path = tmp_path / "d.csv"
    path.write_bytes(text.encode())
    one = Preprocess(size=(1, 1), crop_pct=1.0, mean=(0.5,), std=(0.5,), color="L")
    data = read_digits(path, one)
    assert (data.targets.tolist(), data.images.ravel().tolist()) == ([3], [17])


def test_one_error_lists_bad_rows_by_line_and_reason(tmp_path: Path) -> None:
    """Line numbers as an editor shows them."""
    message = refusal(
        write(
            tmp_path / "d.csv",
            "1,2,3,4,5",
            "1,2,3,4",
            "1,2,3,4,5,6",
            "1,2,x,4,5",
            "1,2,3,4.0,5",
            "1,2,3,4,256",
            "1,-2,3,4,5",
            "10,2,3,4,5",
            "1,2,3," + "4" * 5000 + ",5",
            "999,2,3,4,5",
            ",2,3,4,5",
        )
    )
    assert "10 of 11 rows are bad" in message
    assert [line.strip() for line in message.splitlines()[1:-1]] == [
        "line 3: 4 columns, expected 5",
        "line 4: 6 columns, expected 5",
        "line 5: pixel1 is 'x', expected an integer from 0 to 255",
        "line 6: pixel2 is '4.0', expected an integer from 0 to 255",
        "line 7: pixel3 is '256', expected an integer from 0 to 255",
        "line 8: pixel0 is '-2', expected an integer from 0 to 255",
        "line 9: label is '10', expected an integer from 0 to 9",
        "line 10: pixel2 is '44444444444444444444', expected an integer from 0 to 255",
        "line 11: label is '999', expected an integer from 0 to 9",
        "line 12: label is '', expected an integer from 0 to 9",
    ]


def test_spaces_around_the_names_of_columns_change_nothing(tmp_path: Path) -> None:
    """A label above 9 is still a bad row."""
    header = f" label , {PIXELS}"
    data = read_digits(write(tmp_path / "d.csv", "7,0,1,2,255", header=header), GREY)
    assert data.targets.tolist() == [7]
    message = refusal(write(tmp_path / "bad.csv", "10,0,1,2,255", header=header))
    assert "label is '10', expected an integer from 0 to 9" in message


def test_only_ten_bad_rows_are_listed(tmp_path: Path) -> None:
    """The rest is counted."""
    message = refusal(write(tmp_path / "d.csv", *["1"] * 13))
    assert message.count("line ") == 10
    assert "... and 3 more" in message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("7,0,0,0,1", "first line is '7,0,0"),
        (f"digit,{PIXELS}", "first line is 'digit,pixel0"),
        ("label,pixel1,pixel0,pixel2,pixel3", "first line is 'label,pixel1"),
        ("label,pixel0,pixel1,pixel2", "as a square image has"),
        ("label", "as a square image has"),
        (PIXELS, "can be predicted, but not trained on"),
        ("", "first line is ''"),
    ],
)
def test_another_header_is_refused(tmp_path: Path, header: str, words: str) -> None:
    """Without a header, or with columns in another order, training would be wrong."""
    assert words in refusal(write(tmp_path / "d.csv", "1,2,3,4,5", header=header))


def test_files_without_rows_of_text_are_refused(tmp_path: Path) -> None:
    """Empty, binary, absent."""
    assert "no rows" in refusal(write(tmp_path / "empty.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff\x00")
    assert "as CSV text" in refusal(tmp_path / "binary.csv")
    assert "no such CSV file" in refusal(tmp_path / "absent.csv")


def test_a_test_file_has_no_labels(tmp_path: Path) -> None:
    """Its rows keep their order; a file with labels is refused."""
    path = write(tmp_path / "test.csv", "0,1,2,3", "4,5,6,7", header=PIXELS)
    data = read_digits(path, GREY)
    assert data.labels == ()
    assert data.images.reshape(2, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError, match="it is a training file"):
        read_digits(write(tmp_path / "d.csv", "1,2,3,4,5"), GREY, labelled=False)


def test_predictions_are_counted_from_one(tmp_path: Path) -> None:
    """In the format of the competition."""
    path = tmp_path / "submission.csv"
    write_predictions(path, np.array([7, 0, 9]))
    assert path.read_text() == "ImageId,Label\n1,7\n2,0\n3,9\n"


def test_predictions_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    """The message names the missing folder."""
    with pytest.raises(OutputError, match="nowhere"):
        write_predictions(tmp_path / "nowhere" / "s.csv", np.array([1]))
