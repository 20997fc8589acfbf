"""The elements of one large JSON array, cut out of a file without ever holding it: at the top, or below one key.

Each element is given as it is spelled in the file, so that whoever parses it finds what the file says.
"""

import json
from collections.abc import Iterator
from typing import TextIO

_BLOCK = 1 << 20  # characters read at once
_BLANK = " \t\n\r"
_ENDS = (*_BLANK, ",", ":", "]", "}")  # what comes after a value that is all there


class NotRecords(ValueError):
    """The file is not what was asked for; the words for a person."""


class Reader:
    """A JSON text being read from a file, which must be open as text. position: of the file, in characters read."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode
        self.position = 0

    def elements(self, field: "str | None" = None) -> "Iterator[str]":
        """Yield the elements of the array that the file is, or that is below its key `field`. Raise NotRecords."""
        if field is not None:
            self._find(field)
        if self.peek() != "[":
            where = "at the top of the file" if field is None else f"in field {field!r}"
            raise NotRecords(f"{where} is no list of records")
        yield from self._array()
        if field is None and self.peek():
            raise NotRecords("there is more after the end of the list")

    def peek(self) -> str:
        """Return the next character that is not blank, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _find(self, field: str) -> None:
        """Stop at the value of a key of the object at the top."""
        seen = []
        for key in self._keys():
            if key == field:
                return
            seen.append(key)
            self._skip()
        raise NotRecords(f"it has no field {field!r}" + (f", but {', '.join(map(repr, seen[:10]))}" if seen else ""))

    def _keys(self) -> "Iterator[str]":
        """Yield the keys of an object; whoever takes one deals with its value."""
        self._take("{")
        while self.peek() != "}":
            key = json.loads(self._value())
            self._take(":")
            yield key
            if self.peek() != "}":
                self._take(",")
        self._take("}")

    def _array(self) -> "Iterator[str]":
        self._take("[")
        while self.peek() != "]":
            yield self._value()
            if self.peek() != "]":
                self._take(",")
                if self.peek() == "]":
                    raise NotRecords("a comma at the end of a list")
        self._take("]")

    def _skip(self) -> None:
        first = self.peek()
        if first == "[":
            for _ in self._array():
                pass
        elif first == "{":
            for _ in self._keys():
                self._skip()
        else:
            self._value()

    def _take(self, wanted: str) -> None:
        if self.peek() != wanted:
            raise NotRecords(
                f"{wanted!r} is expected where {self.peek() or 'the end of the file'!r} is: it is not JSON, or cut short"
            )
        self._at += 1

    def _value(self) -> str:
        """Return the next value as it is spelled. A number at the end of what is read may go on, and so may all else."""
        self.peek()
        while True:
            try:
                _, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise NotRecords(f"it is not JSON, or cut short: {error.msg}") from None
                continue
            except RecursionError:
                raise NotRecords("its values are nested too deep") from None
            if self._text[end : end + 1] in _ENDS or not self._more():
                value = self._text[self._at : end]
                self._at = end
                return value

    def _more(self) -> bool:
        """Read on, as much again as there is, so that one long value costs its own length and not the square of that."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        block = self._file.read(max(_BLOCK, len(rest)))
        self._ended = not block
        self.position += len(block)
        self._text, self._at = rest + block, 0
        return bool(block)
