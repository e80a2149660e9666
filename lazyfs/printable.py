"""Foreign text on its way to people: names, messages, annotations, whatever others wrote.

A terminal obeys control characters, a log takes a newline for the end of a record, and marks of
writing direction show a text in another order than it has.  So all text that others wrote goes
through ``printable`` before it is shown or logged.  JSON needs none of this: it escapes by itself.
"""


def printable(text: str | bytes, limit: int | None = None) -> str:
    r"""Return *text* on one line, with an escape for all that Unicode does not call printable.

    That is control characters (C0, C1, delete), line and paragraph separators, marks of direction
    and other invisible characters, blanks other than the space, characters that are not assigned
    yet, and bytes that are not UTF-8: ``\n``, ``\x1b``, ``\u202e``, ``\U000e0001``.  What is longer
    than *limit* characters ends with an ellipsis.  Made to be read, not to be parsed: a backslash
    stands for itself.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="surrogateescape")
    if limit is not None and len(text) > limit:
        # Escapes only make it longer: what is behind need not be looked at.
        return _cut(printable(text[:limit]), limit, is_whole=False)
    if not text.isprintable():
        text = "".join([each if each.isprintable() else _escape(each) for each in text])
    return text if limit is None else _cut(text, limit, is_whole=True)


def _cut(text: str, limit: int, *, is_whole: bool) -> str:
    return text if is_whole and len(text) <= limit else text[: limit - 1] + "…"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text, as names of files may have
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
