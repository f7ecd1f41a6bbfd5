"""Names of files that others wrote, as places on this machine."""

from pathlib import Path


def below(folder: Path, name: str) -> Path:
    """Where a file of that name belongs below a folder.

    Raises:
        ValueError: The name leads out of the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the file name {name!r} leads out of its folder")
    return path
