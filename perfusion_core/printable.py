"""Makes external text safe for terminals and logs: it can neither control a terminal nor pass for one of the pack's own lines."""

import logging
from collections.abc import Mapping


def printable(text: str) -> str:
    r"""Return a text in one line, with every character that is not printable written as an escape such as `\x1b`.

    These are the control characters (C0, C1 and the ends of lines), characters that change the direction of text or cannot be seen,
    all spaces except the ordinary one, and halves of surrogate pairs, which no console can encode.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_record(record: logging.LogRecord) -> bool:
    """Make a record of the log printable; a filter for `logging`, which lets every record pass.

    Line ends in the message itself stay, since the pack wrote them; those in its arguments are escaped.
    """

    def safe(argument: object) -> object:
        return argument if isinstance(argument, int | float) else printable(str(argument))

    record.msg = "\n".join(printable(line) for line in str(record.msg).split("\n"))
    if isinstance(record.args, Mapping):
        record.args = {name: safe(each) for name, each in record.args.items()}
    elif record.args:
        record.args = tuple(safe(each) for each in record.args)
    return True
