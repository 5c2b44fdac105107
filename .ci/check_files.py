"""Check the named files: below 1 MB, one newline at the end of text, YAML and TOML that can be read."""

import sys
import tomllib
from pathlib import Path

import yaml

LIMIT = 1_000_000  # bytes
TEXT = {".cff", ".cfg", ".csv", ".md", ".py", ".svg", ".toml", ".txt", ".yaml", ".yml"}


def problems(path: Path) -> list[str]:
    """Say what is wrong with one file, one line each."""
    found = []
    content = path.read_bytes()
    if len(content) > LIMIT:
        found.append(f"{path}: {len(content)} bytes, at most {LIMIT}")
    if (
        path.suffix in TEXT
        and content
        and (not content.endswith(b"\n") or content.endswith(b"\n\n"))
    ):
        found.append(f"{path}: needs exactly one newline at its end")

    try:
        if path.suffix in {".yaml", ".yml", ".cff"}:
            yaml.safe_load(content)
        elif path.suffix == ".toml":
            tomllib.loads(content.decode())
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        found.append(f"{path}: {error}")
    return found


if __name__ == "__main__":
    report = [line for name in sys.argv[1:] for line in problems(Path(name))]
    sys.exit("\n".join(report) or None)
