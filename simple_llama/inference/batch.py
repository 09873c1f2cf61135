"""`simple-llama generate`: replies to many prompts, in batches."""

import codecs
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from tqdm import tqdm

from simple_llama.data.tool_calls import parse_reply
from simple_llama.errors import InputError
from simple_llama.files import atomic_write
from simple_llama.inference.replies import GenerationSettings, Replier, checked_text, load_replier
from simple_llama.inference.requests import Request, read_requests, read_tool_file, with_tools
from simple_llama.inference.terminal import printable
from simple_llama.model.generation import generate
from simple_llama.pipeline import check_outside_outs

BATCHES_AHEAD = 16
"""Batches of prompts that are read at once and sorted by length, so that little is padding."""


def generate_replies(
    *,
    model: str,
    prompt_format: str,
    prompts: Sequence[str],
    file: str | None,
    tools: str | None,
    out: str | None,
    batch_size: int,
    device: str,
    settings: GenerationSettings,
) -> None:
    """Answer the prompts, or those of a file, as JSONL to `out` or to standard output.

    To standard output, the reply to a single prompt is plain text. Raises InputError.
    """
    if bool(prompts) == bool(file):
        raise InputError("wanted --prompt TEXT, once or several times, or --file FILE")
    if batch_size < 1:
        raise InputError(f"--batch-size: got {batch_size}, wanted 1 or more")
    if out is not None:
        check_outside_outs(out)
    offered = [] if tools is None else read_tool_file(tools)
    replier = load_replier(model, device, prompt_format=prompt_format)
    system = replier.tokenizer.system_prompt

    def requests() -> Iterator[Request]:
        found = _from_arguments(prompts) if file is None else read_requests(file, system)
        for request in found:
            yield with_tools(request, offered, system)

    for request in requests():
        _prompt(replier, request)  # a faulty one is found before it can cost replies
    records = answer(replier, requests(), batch_size, settings)
    if out is not None:
        _write(records, out)
    elif len(prompts) == 1:
        _show(*(record["reply"] for record in records))
    else:
        # JSON is UTF-8 or ASCII, whatever the terminal's encoding is
        escaped = codecs.lookup(sys.stdout.encoding).name != "utf-8"
        for record in records:
            _show(_line(record, escaped=escaped))


def _from_arguments(prompts: Sequence[str]) -> list[Request]:
    for prompt in prompts:
        if not checked_text("--prompt", prompt).strip():
            raise InputError("--prompt: an empty text")
    return [
        Request(
            id=f"prompt[{place}]", messages=[{"role": "user", "content": prompt}], reference=None
        )
        for place, prompt in enumerate(prompts)
    ]


def answer(
    replier: Replier, requests: Iterable[Request], batch_size: int, settings: GenerationSettings
) -> Iterator[dict[str, Any]]:
    """Yield a record for each request, in order.

    A record has id, prompt, reply, complete (whether the reply ended by itself), the tool calls in
    it, and the reference if the request has one. Sampled replies depend on the batch size. Greedy
    ones do not, except where rounding decides between two tokens. Raises InputError.
    """
    generator = settings.generator()
    waiting = iter(requests)
    while chunk := list(islice(waiting, batch_size * BATCHES_AHEAD)):
        prompts = [_prompt(replier, request) for request in chunk]
        order = sorted(range(len(chunk)), key=lambda place: -len(prompts[place]))
        replies: dict[int, list[int]] = {}
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            said = generate(
                replier.model,
                [prompts[place] for place in places],
                max_new_tokens=settings.max_tokens,
                stop_ids=replier.tokenizer.stop_ids,
                temperature=settings.temperature,
                top_p=settings.top_p,
                generator=generator,
            )
            replies |= dict(zip(places, said, strict=True))
        for place, request in enumerate(chunk):
            room = replier.max_length - len(prompts[place])
            record: dict[str, Any] = {
                "id": request.id,
                "prompt": request.messages[-1]["content"],
                "reply": replier.tokenizer.decode(replies[place]),
                "complete": len(replies[place]) < min(settings.max_tokens, room),
            }
            if replier.tokenizer.shows_calls and (
                calls := parse_reply(record["reply"]).get("tool_calls")
            ):
                record["tool_calls"] = [call["function"] for call in calls]
            if request.reference is not None:
                record["reference"] = request.reference
            yield record


def _prompt(replier: Replier, request: Request) -> list[int]:
    try:
        prompt = replier.tokenizer.prompt(request.messages)
    except InputError as error:
        raise InputError(f"{request.id}: {error}") from None
    if len(prompt) >= replier.max_length:
        raise InputError(
            f"{request.id}: a prompt of {len(prompt)} tokens, the model has positions for "
            f"{replier.max_length}"
        )
    return prompt


def _write(records: Iterator[dict[str, Any]], out: str) -> None:
    with atomic_write(out) as target, closing(tqdm(records, unit=" replies", disable=None)) as each:
        for record in each:
            target.write(f"{_line(record)}\n".encode())


def _line(record: dict[str, Any], *, escaped: bool = False) -> str:
    return json.dumps(record, ensure_ascii=escaped)


def _show(text: str) -> None:
    print(printable(text) if sys.stdout.isatty() else text, flush=True)
