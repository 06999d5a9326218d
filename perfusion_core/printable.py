"""Text from outside on its way to a terminal or a log: nothing in it may steer a terminal or pass for a line of ours."""

import logging
from collections.abc import Mapping


def printable(text: str) -> str:
    r"""Return a text in one line, with every character that is not printable written as an escape such as `\x1b`.

    These are the control characters (C0, C1 and the ends of lines), characters that change the direction of text or cannot be seen,
    all spaces but the usual one, and halves of surrogate pairs, which no console can encode.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_record(record: logging.LogRecord) -> bool:
    """Make a record of the log printable; a filter for `logging`, which lets every record pass.

    Line ends of the message itself stay, since they are ours; those of its arguments become escapes.
    """

    def safe(argument: object) -> object:
        return argument if isinstance(argument, int | float) else printable(str(argument))

    record.msg = "\n".join(printable(line) for line in str(record.msg).split("\n"))
    if isinstance(record.args, Mapping):
        record.args = {name: safe(each) for name, each in record.args.items()}
    elif record.args:
        record.args = tuple(safe(each) for each in record.args)
    return True
