"""Laws of what is shown of a stranger's text: it stays text, on one line, in every kind of document."""

import re

from hypothesis import given
from hypothesis import strategies as st

from robustdistiller.errors import code, markdown, printable

STRANGE = st.text(st.sampled_from("a1 .-<>[]|`\\\n\r\t\x1b\x07\u202e\udc80&é"), max_size=30)


@given(STRANGE)
def test_any_text_is_shown_on_one_line(text):
    for shown in (printable(text), markdown(text), code(text)):
        assert shown.isprintable() and len(shown.splitlines()) <= 1
    assert printable(printable(text)) == printable(text)


@given(STRANGE)
def test_no_markup_comes_of_it_in_markdown(text):
    shown = markdown(text)
    assert not re.search(r"[<>]", shown)
    assert not re.search(r"(?<!\\)(\\\\)*[`\[\]|]", shown)  # each is behind an odd number of backslashes
    assert "`" not in code(text)
