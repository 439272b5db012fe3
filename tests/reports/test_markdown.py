"""Tables in Markdown."""

import pytest

from poise_jax.reports import markdown


def test_a_table_escapes_what_would_end_a_cell():
  text = markdown.table(["size", "answer"], [[1, "a|b"], [2.5, "c\nd"]])
  assert text.splitlines() == [
    "| size | answer |",
    "| --- | --- |",
    "| 1 | a\\|b |",
    "| 2.5 | c<br>d |",
  ]


def test_a_row_of_another_length_is_an_error():
  with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
    markdown.table(["a", "b"], [["1"]])
