"""How numbers and names are read from text that anybody may have written. On the hot path: nothing is imported here."""

_NAME_MAX = 255
_UINT32_MAX = 2**32 - 1  # Slurm's job ids are uint32_t


def number(text: str, most: int = _UINT32_MAX) -> "int | None":
    """Return the positive decimal number that `text` spells canonically (no sign, no leading zero), else None."""
    if not text or len(text) > 19 or not text.isascii() or not text.isdigit() or text[0] == "0":
        return None
    value = int(text)
    return value if value <= most else None


def natural(text: str, most: int = _UINT32_MAX) -> "int | None":
    """Return the number 0, 1, 2 … that `text` spells canonically, else None."""
    return 0 if text == "0" else number(text, most)


def component(text: str) -> bool:
    """Whether `text` can stand in one path component: not empty, no slash, no control character, not `.` or `..`."""
    if not text or text in (".", "..") or len(text) > _NAME_MAX or "/" in text:
        return False
    return not any(ch < " " or ch == "\x7f" for ch in text)
