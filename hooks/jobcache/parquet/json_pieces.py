"""Read the elements of a large JSON array, at the top of a file or in one field, without holding the file in memory.

Each element is returned as the text that stands in the file, so that the program that parses it gets the original spelling.
"""

import json
import re
from collections.abc import Iterator
from typing import Optional, TextIO

_BLOCK = 1 << 20  # characters read at once
_BLANK = " \t\n\r"
_AFTER_VALUE = (*_BLANK, ",", ":", "]", "}")  # characters that can follow a complete value
_NEXT_ELEMENT = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=[^ \t\n\r\]])")
_LONGEST_TOKEN = 16  # characters before the end of a text in which a cut can cause an error: literals, escapes, exponents

# Raw control characters in strings are accepted, as `datasets` accepts them in arrays.
DECODER = json.JSONDecoder(strict=False)


class NotRecords(ValueError):
    """The file has no such array, or is not JSON; the message is for a person."""


class FieldAgain(Exception):
    """The file has the field once more, after the elements that were read. The last field of a name is the valid one."""


class Reader:
    """A JSON text that is read from a file opened as text. position: characters read from the file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._line = 1  # of the first character of the text
        self._column = 1
        self.position = 0

    def elements(self, field: Optional[str] = None, skip: int = 0) -> Iterator[str]:
        """Yield the elements of the array at the top of the file, or in the field `field`, and read the file to its end.

        skip: fields of that name to pass over. Raise NotRecords, FieldAgain.
        """
        if field is None:
            if self.peek() != "[":
                raise NotRecords("the top of the file is not a list of records")
            yield from self._array()
        else:
            yield from self._field(field, skip)
        if self.peek():
            raise NotRecords(f"unexpected text after the end, {self._place(self._at)}")

    def peek(self) -> str:
        """Return the next character that is not blank, "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def _field(self, field: str, skip: int) -> Iterator[str]:
        """Yield the elements of a field of the object at the top. Raise NotRecords, FieldAgain."""
        others = []
        found = 0
        for key in self._keys():
            if key != field:
                others.append(key)
                self._skip_value()
                continue
            found += 1
            if found <= skip:
                self._skip_value()
            elif found > skip + 1:
                raise FieldAgain
            elif self.peek() == "{":
                yield from self._columns(field)
            elif self.peek() == "[":
                yield from self._array()
            else:
                raise NotRecords(f"field {field!r} is not a list of records")
        if not found:
            raise NotRecords(f"no field {field!r}" + (f", but {', '.join(map(repr, others[:10]))}" if others else ""))

    def _columns(self, field: str) -> Iterator[str]:
        """Yield the records of an object of columns, each a list. The object is held in memory. Raise NotRecords."""
        columns = DECODER.decode(self._value())
        if not all(isinstance(column, list) for column in columns.values()) or len(set(map(len, columns.values()))) != 1:
            raise NotRecords(f"field {field!r} is neither a list of records nor an object of lists of one length")
        for row in zip(*columns.values()):
            yield json.dumps(dict(zip(columns, row)))

    def _keys(self) -> Iterator[str]:
        """Yield the keys of an object. The caller reads the value of each key before it takes the next."""
        self._expect("{")
        while self.peek() != "}":
            if self.peek() != '"':
                self._expect('"')
            key = DECODER.decode(self._value())
            self._expect(":")
            yield key
            if self.peek() != "}":
                self._expect(",")
                if self.peek() == "}":
                    raise NotRecords(f"a comma at the end of an object, {self._place(self._at)}")
        self._expect("}")

    def _array(self) -> Iterator[str]:
        """Yield the elements of an array."""
        self._expect("[")
        while self.peek() != "]":
            yield self._value()
            between = _NEXT_ELEMENT.match(self._text, self._at)
            if between:
                self._at = between.end()
            elif self.peek() != "]":
                self._expect(",")
                if self.peek() == "]":
                    raise NotRecords(f"a comma at the end of a list, {self._place(self._at)}")
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
        found = self.peek()
        if found != wanted:
            if not found:
                raise NotRecords(f"the file is cut short: expected {wanted!r}, {self._place(self._at)}")
            raise NotRecords(f"the file is not JSON: expected {wanted!r}, found {found!r}, {self._place(self._at)}")
        self._at += 1

    def _value(self) -> str:
        """Return the text of the next value. Read on while it may be incomplete: a number can continue in the next block."""
        self.peek()
        while True:
            try:
                _, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                may_be_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_TOKEN
                if may_be_cut and self._read_more():
                    continue
                problem = "is not JSON, or is cut short" if may_be_cut else "is not JSON"
                raise NotRecords(f"the file {problem}: {error.msg}, {self._place(error.pos)}") from None
            except RecursionError:
                raise NotRecords(f"the values are nested too deeply, {self._place(self._at)}") from None
            except ValueError as error:  # a number of thousands of digits
                raise NotRecords(f"{error}, {self._place(self._at)}") from None
            if self._text[end : end + 1] in _AFTER_VALUE or not self._read_more():
                value = self._text[self._at : end]
                self._at = end
                return value

    def _place(self, at: int) -> str:
        """Return the line and the column of a character of the text."""
        line, column = self._line_and_column(min(at, len(self._text)))
        return f"line {line:,} column {column:,}"

    def _line_and_column(self, at: int) -> tuple[int, int]:
        last = self._text.rfind("\n", 0, at)
        return self._line + self._text.count("\n", 0, at), at - last if last >= 0 else self._column + at

    def _read_more(self) -> bool:
        """Read the next block; return False at the end of the file.

        A block is as long as the unread text, so that the cost of one long value is linear in its length, not quadratic.
        """
        if self._ended:
            return False
        rest = self._text[self._at :]
        self._line, self._column = self._line_and_column(self._at)
        block = self._file.read(max(_BLOCK, len(rest)))
        self._ended = not block
        self.position += len(block)
        self._text, self._at = rest + block, 0
        return bool(block)
