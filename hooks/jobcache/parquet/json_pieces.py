"""Read the elements of a large JSON array, at the top of a file or in one field, without holding the file in memory.

Each element is returned as the text that stands in the file, so that the program that parses it gets the original spelling.
"""

import json
from collections.abc import Iterator
from typing import Optional, TextIO

_BLOCK = 1 << 20  # characters read at once
_BLANK = " \t\n\r"
_AFTER_VALUE = (*_BLANK, ",", ":", "]", "}")  # characters that can follow a complete value


class NotRecords(ValueError):
    """The file has no such array, or is not JSON; the message is for a person."""


class Reader:
    """A JSON text that is read from a file opened as text. position: characters read from the file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode
        self.position = 0

    def elements(self, field: Optional[str] = None) -> Iterator[str]:
        """Yield the elements of the array at the top of the file, or in the field `field`. Raise NotRecords."""
        if field is not None:
            self._go_to(field)
        if self.peek() != "[":
            place = "the top of the file" if field is None else f"field {field!r}"
            raise NotRecords(f"{place} is not a list of records")
        yield from self._array()
        if field is None and self.peek():
            raise NotRecords("unexpected text after the end of the list")

    def peek(self) -> str:
        """Return the next character that is not blank, "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def _go_to(self, field: str) -> None:
        """Read up to the value of a key of the object at the top. Raise NotRecords."""
        others = []
        for key in self._keys():
            if key == field:
                return
            others.append(key)
            self._skip_value()
        raise NotRecords(f"no field {field!r}" + (f", but {', '.join(map(repr, others[:10]))}" if others else ""))

    def _keys(self) -> Iterator[str]:
        """Yield the keys of an object. The caller reads the value of each key before it takes the next."""
        self._expect("{")
        while self.peek() != "}":
            key = json.loads(self._value())
            self._expect(":")
            yield key
            if self.peek() != "}":
                self._expect(",")
        self._expect("}")

    def _array(self) -> Iterator[str]:
        """Yield the elements of an array."""
        self._expect("[")
        while self.peek() != "]":
            yield self._value()
            if self.peek() != "]":
                self._expect(",")
                if self.peek() == "]":
                    raise NotRecords("a comma at the end of a list")
        self._expect("]")

    def _skip_value(self) -> None:
        first = self.peek()
        if first == "[":
            for _ in self._array():
                pass
        elif first == "{":
            for _ in self._keys():
                self._skip_value()
        else:
            self._value()

    def _expect(self, wanted: str) -> None:
        """Read past the character `wanted`. Raise NotRecords if another one follows."""
        if self.peek() != wanted:
            found = self.peek() or "the end of the file"
            raise NotRecords(f"expected {wanted!r}, found {found!r}: the file is not JSON, or is cut short")
        self._at += 1

    def _value(self) -> str:
        """Return the text of the next value. Read on while it may be incomplete: a number can continue in the next block."""
        self.peek()
        while True:
            try:
                _, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._read_more():
                    raise NotRecords(f"the file is not JSON, or is cut short: {error.msg}") from None
                continue
            except RecursionError:
                raise NotRecords("the values are nested too deeply") from None
            if self._text[end : end + 1] in _AFTER_VALUE or not self._read_more():
                value = self._text[self._at : end]
                self._at = end
                return value

    def _read_more(self) -> bool:
        """Read the next block; return False at the end of the file.

        A block is as long as the unread text, so that the cost of one long value is linear in its length, not quadratic.
        """
        if self._ended:
            return False
        rest = self._text[self._at :]
        block = self._file.read(max(_BLOCK, len(rest)))
        self._ended = not block
        self.position += len(block)
        self._text, self._at = rest + block, 0
        return bool(block)
