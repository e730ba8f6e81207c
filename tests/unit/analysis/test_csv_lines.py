"""CSV cells: texts that a spreadsheet would run, and numbers that begin like them."""

import csv
import io

from fedh2l_mpi.analysis.csv_lines import CsvLines


def test_no_text_is_a_formula_and_numbers_stay_numbers():
    runs = ["=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "=1,2"]
    stay = ["mlp", "-0.5", "+1e-3", "-", "-inf", "a=b", "", "0+1+2"]
    numbers = [-0.5, -3, 1e-9, float("-inf")]
    text = io.StringIO(newline="")
    CsvLines(text).write([runs, stay, numbers, ["\x1b[2J=", "two\nlines"]])
    assert list(csv.reader(io.StringIO(text.getvalue()))) == [
        [f"'{cell}" for cell in runs],
        stay,
        ["-0.5", "-3", "1e-09", "-inf"],
        ["\\x1b[2J=", "two\nlines"],
    ]
