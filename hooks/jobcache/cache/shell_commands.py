"""The simple commands of a shell script, as far as they are certain without running it.

No shell: what this reader does not know is Odd. Its caller then has to assume anything.
"""

_KEYWORDS = ("if", "then", "elif", "else", "fi", "for", "while", "until", "do", "done", "select", "{", "}", "!", "time")
_OPENING = ("if", "for", "while", "until", "select", "{")
_CLOSING = ("fi", "done", "}")
_LEFT_WHOLE = ("for", "select")  # the words after these are no command
_UNKNOWN = ("case", "function", "coproc", "esac")
_DEEPEST = 20  # substitutions


class Odd(Exception):
    """The text at `at` cannot be read."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at


class Command:
    """words: as written, with quotes. plain: it surely runs, in the script's own process. at: its place in the text.

    document: the text of its here-documents.
    """

    __slots__ = ("words", "plain", "at", "document")

    def __init__(self, at: int) -> None:
        self.words: "list[str]" = []
        self.plain = True
        self.at = at
        self.document = ""


def read(text: str, end: int) -> "list[Command]":
    """Return the commands that begin before `end`, in the order of the text; those within $(…) before their command.

    Keywords are no words of a command. Raise Odd.
    """
    reader = _Reader(text, end)
    try:
        reader.run()
    except RecursionError:
        raise Odd(reader.at) from None
    return reader.commands


class _Reader:
    def __init__(self, text: str, end: int) -> None:
        self.text = text
        self.end = end
        self.at = 0
        self.depth = 0  # of compound commands
        self.commands: "list[Command]" = []
        self.command = Command(0)
        self.joined = False  # to the command before it, by && or || or |
        # Of here-documents that begin on the next line: last line, whether tabs before it count not, command.
        self.documents: "list[tuple[str, bool, Command]]" = []
        self.nested = 0  # the number of substitutions around the text

    def run(self) -> None:
        text = self.text
        while self.at < len(text):
            ch = text[self.at]
            if ch in " \t":
                self.at += 1
            elif text.startswith("\\\n", self.at):
                self.at += 2
            elif ch == "#":
                while self.at < len(text) and text[self.at] != "\n":
                    self.at += 1
            elif ch in "\n;&|":
                self._separate()
                if ch == "\n":
                    self._take_documents()
                    if self.at >= self.end and not self.joined:
                        return
            elif ch in "()":
                self._function()
            else:
                self._word()
        if self.documents:
            raise Odd(self.at)
        self._finish(plain=True)

    # ---- commands

    def _separate(self) -> None:
        """Read the operator after a command."""
        operator = self.text[self.at]
        if self.text.startswith((";;", "|&", ";&"), self.at):
            raise Odd(self.at)
        if self.text.startswith(("&&", "||"), self.at):
            operator *= 2
        self.at += len(operator)
        had_words = bool(self.command.words)
        self._finish(plain=operator not in ("|", "&"))
        if operator in ("&&", "||", "|"):
            self.joined = True
        elif operator != "\n" or had_words:  # an empty line after && is no end
            self.joined = False

    def _finish(self, plain: bool) -> None:
        command = self.command
        command.plain = plain and not self.joined and self.depth == 0
        while command.words and command.words[0] in _KEYWORDS:
            word = command.words.pop(0)
            command.plain = False
            if word in _OPENING:
                self.depth += 1
            elif word in _CLOSING:
                self.depth -= 1
            if word in _LEFT_WHOLE:
                command.words.insert(0, ":")
        if self.depth < 0 or (command.words and command.words[0] in _UNKNOWN):
            raise Odd(command.at)
        if command.words:
            self.commands.append(command)
        self.command = Command(self.at)

    def _function(self) -> None:
        """Read `()` and blanks, up to the `{` of a function. Brackets also begin a subshell, and end a pattern of `case`: Odd."""
        begin = self.at
        self.at += 2
        while self.text[self.at : self.at + 1] in (" ", "\t", "\n"):
            self.at += 1
        if len(self.command.words) != 1 or not self.text.startswith("()", begin) or not self.text.startswith("{", self.at):
            raise Odd(begin)
        self.command.words.clear()

    # ---- words

    def _word(self) -> None:
        text, begin = self.text, self.at
        if not self.command.words:
            self.command.at = begin
        while self.at < len(text) and text[self.at] not in " \t\n;&|)":
            ch = text[self.at]
            if ch == "(":
                if text[self.at - 1] != "=":
                    break
                self._array()
                continue
            if ch in "<>":
                if self.at > begin and not text[begin : self.at].isdigit():
                    break
                self._redirect(begin)
                return
            self._piece(ch)
        self.command.words.append(text[begin : self.at])

    def _piece(self, ch: str) -> None:
        """Read a character, or all that it begins: quotes, a substitution."""
        text = self.text
        if ch == "\\":
            self.at += 2
        elif ch == "'":
            self.at = self._find("'", self.at + 1)
        elif ch == '"':
            self._double_quotes()
        elif ch == "`":
            begin = self.at + 1
            self.at = self._find("`", begin)
            inner = text[begin : self.at - 1]
            if "\\" in inner:
                raise Odd(begin)
            self._nest(inner)
        elif text.startswith("$'", self.at) or text.startswith('$"', self.at) or text.startswith("$[", self.at):
            raise Odd(self.at)
        elif text.startswith("$((", self.at):
            begin = self.at
            self.at = self._find("))", self.at + 3)
            if "\n" in text[begin : self.at] or "(" in text[begin + 3 : self.at]:
                raise Odd(begin)
        elif text.startswith("$(", self.at):
            self._substitution()
        elif text.startswith("${", self.at):
            self._parameter()
        else:
            self.at += 1

    def _find(self, what: str, begin: int) -> int:
        """Return the place after the next `what`."""
        found = self.text.find(what, begin)
        if found < 0:
            raise Odd(begin)
        return found + len(what)

    def _double_quotes(self) -> None:
        begin = self.at
        self.at += 1
        while self.at < len(self.text):
            ch = self.text[self.at]
            if ch == '"':
                self.at += 1
                return
            if ch in "\\`" or (ch == "$" and self.text[self.at + 1 : self.at + 2] in ("(", "{", "[")):
                self._piece(ch)
            else:
                self.at += 1
        raise Odd(begin)

    def _array(self) -> None:
        """Read (…) after NAME=."""
        begin = self.at
        self.at += 1
        while self.at < len(self.text):
            ch = self.text[self.at]
            if ch == ")":
                self.at += 1
                return
            if ch in "(#<>;&|":
                raise Odd(begin)
            self._piece(ch)
        raise Odd(begin)

    def _parameter(self) -> None:
        """Read ${…}."""
        begin = self.at
        self.at += 2
        while self.at < len(self.text):
            ch = self.text[self.at]
            if ch == "}":
                self.at += 1
                return
            if ch in "\n'":
                raise Odd(begin)
            self._piece(ch)
        raise Odd(begin)

    def _substitution(self) -> None:
        """Read $(…)."""
        begin = self.at = self.at + 2
        depth = 1
        while self.at < len(self.text):
            ch = self.text[self.at]
            if ch == "#" or self.text.startswith("<<", self.at):
                raise Odd(self.at)  # a comment can contain a bracket, and so can a here-document
            if ch in "()":
                depth += 1 if ch == "(" else -1
                self.at += 1
                if depth == 0:
                    self._nest(self.text[begin : self.at - 1])
                    return
            elif ch in "'\"\\":
                self._piece(ch)
            elif self.text.startswith("${", self.at):
                self._parameter()
            else:
                self.at += 1
        raise Odd(begin)

    def _nest(self, inner: str) -> None:
        """Add the commands in `inner`, which run in a process of their own."""
        reader = _Reader(inner, len(inner))
        reader.nested = self.nested + 1
        if reader.nested > _DEEPEST:
            raise Odd(self.at)
        try:
            reader.run()
        except Odd:
            raise Odd(self.at) from None
        for command in reader.commands:
            command.plain = False
            command.at = self.at
        self.commands += reader.commands

    # ---- redirections

    def _redirect(self, begin: int) -> None:
        """Read a redirection: one word, from its operator to its file. A here-document follows on the next line."""
        text = self.text
        if text.startswith(("<(", ">("), self.at):
            raise Odd(self.at)
        is_document = text.startswith("<<", self.at) and not text.startswith("<<<", self.at)
        has_tabs = text.startswith("<<-", self.at)
        while self.at < len(text) and text[self.at] in "<>&|-":
            self.at += 1
        while self.at < len(text) and text[self.at] in " \t":
            self.at += 1
        target = self.at
        while self.at < len(text) and text[self.at] not in " \t\n;&|()<>":
            self._piece(text[self.at])
        self.command.words.append(text[begin : self.at])
        if is_document:
            word = text[target : self.at]
            bare = word[1:-1] if len(word) > 2 and word[0] == word[-1] and word[0] in "'\"" else word
            if not bare or not bare.replace("_", "a").isalnum():
                raise Odd(target)
            self.documents.append((bare, has_tabs, self.command))

    def _take_documents(self) -> None:
        """Read the here-documents whose text begins at this line."""
        for end, has_tabs, command in self.documents:
            lines: "list[str]" = []
            while True:
                if self.at >= len(self.text):
                    raise Odd(self.at)
                line = self._line()
                if (line.lstrip("\t") if has_tabs else line) == end:
                    break
                lines.append(line)
            command.document += "\n".join(lines) + "\n"
        self.documents = []

    def _line(self) -> str:
        end = self.text.find("\n", self.at)
        end = len(self.text) if end < 0 else end
        line, self.at = self.text[self.at : end], end + 1
        return line
