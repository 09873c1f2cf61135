"""`python -m tests.crash --kills 50`: see campaign.py."""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.crash.campaign import Campaign


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="with enable_compilation")
    parser.add_argument("--lora", action="store_true", help="with adapters and their dropout")
    parser.add_argument("--nf4", action="store_true", help="these, on a base held in 4 bits")
    arguments = parser.parse_args()
    params: dict[str, object] = {}
    if arguments.compile:
        params |= {"enable_compilation": "true"}
    if arguments.lora or arguments.nf4:
        params |= {"lora_rank": 4, "lora_dropout": 0.1}
    if arguments.nf4:
        params |= {"lora_base": "nf4"}
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), arguments.seed, **params)
        outcome = campaign.run(arguments.kills)
    for moment in outcome.moments:
        print(f"  killed: {moment}")
    victims = Counter(moment.rpartition(", ")[2] for moment in outcome.moments)
    print(", ".join(f"{victim}: {count}" for victim, count in sorted(victims.items())))
    print("\n".join(outcome.faults))
    print(
        f"kills {outcome.kills}  survived {outcome.survived}  identical {outcome.identical}  "
        f"continued from a saved step {outcome.resumed}"
    )
    sys.exit(outcome.faults != [] or not outcome.kills == outcome.survived == outcome.identical)


if __name__ == "__main__":
    main()
