"""Every benchmark, each in a process of its own: python -m benchmarks"""

import subprocess
import sys
from pathlib import Path


def main() -> None:
    modules = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    failed = [
        name
        for name in modules
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
