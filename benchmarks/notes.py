"""Why a number is not reached, by the beginning of its row; shown only where it is not."""

__all__ = ["WHY", "why"]

WHY: dict[str, str] = {}


def why(what: str) -> str:
    """The note on a row that is not reached, empty where nobody has written one."""
    return next((note for beginning, note in WHY.items() if what.startswith(beginning)), "")
