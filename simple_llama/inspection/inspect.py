"""`simple-llama inspect`: on a terminal, in a pipe or as a page."""

import os
import shutil
import sys

from simple_llama.inspection.selection import TOKENS, example_of_id, first_examples
from simple_llama.pages.writing import check_page_path, write_page


def inspect(
    split: str | None, number: int, wanted: str | None, html: str | None, model: str | None = None
) -> str:
    """Return the text to print.

    html: a file to write as a page instead; the text then only names it. model: a model's folder,
    for the loss of each token. Raises InputError.
    """
    if html is not None:
        check_page_path(html)
    losses = None
    if model is not None:
        from simple_llama.inspection.losses import token_losses

        losses = token_losses(model, TOKENS / "tokenizer")
    if wanted is None:
        inspection = first_examples(split or "train", number, losses)
    else:
        inspection = example_of_id(wanted, split, losses)
    if html is not None:
        from simple_llama.inspection.page import render as page

        write_page(html, page(inspection))
        return f"wrote {html}"
    from simple_llama.inspection.terminal import render

    # https://no-color.org
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = shutil.get_terminal_size((100, 24)).columns
    return render(inspection, width=width, colour=colour, encoding=sys.stdout.encoding)
