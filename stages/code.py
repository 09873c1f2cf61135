"""`python -m stages.code FOLDER MODULE ...`: a module with all that it imports → FOLDER/*.txt."""

import sys

from simple_llama.errors import one_line_errors
from simple_llama.files import atomic_write
from simple_llama.stage_code import listing


def main() -> None:
    with one_line_errors():
        folder, *entries = sys.argv[1:]
        for entry in entries:
            with atomic_write(f"{folder}/{entry}.txt") as file:
                file.write(listing(entry).encode())


if __name__ == "__main__":
    main()
