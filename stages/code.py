"""`python -m stages.code FOLDER MODULE ...`: lists the code of each module → FOLDER/MODULE.txt."""

import sys

from simple_llama.errors import one_line_errors
from simple_llama.files import atomic_write
from simple_llama.stage_code import list_code


def main() -> None:
    with one_line_errors():
        folder, *entries = sys.argv[1:]
        for entry in entries:
            with atomic_write(f"{folder}/{entry}.txt") as file:
                file.write(list_code(entry).encode())


if __name__ == "__main__":
    main()
