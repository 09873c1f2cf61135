"""Writing a page to the file that a user named."""

from pathlib import Path

from simple_llama.errors import InputError
from simple_llama.files import HTML, atomic_write, read_head
from simple_llama.pipeline import check_outside_outs


def check_page_path(path: str) -> None:
    """Raise InputError where a page would overwrite a folder, an out of the pipeline, or a file
    that is not a page."""
    check_outside_outs(path)
    if Path(path).is_dir():
        raise InputError(f"{path}: a folder, wanted a file to write the page to")
    if Path(path).is_file() and not read_head(path).lstrip().lower().startswith(HTML):
        raise InputError(f"{path}: exists and is not a page, wanted another file")


def write_page(path: str, page: str) -> None:
    """Write a page, whole or not at all. Raises InputError as check_page_path does."""
    check_page_path(path)
    with atomic_write(path) as file:
        file.write(page.encode())
