"""`python -m autobatch lint`: the linter's command line."""

from __future__ import annotations

import argparse
import io
import json
import os
import pathlib
import sys
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator

from autobatch.lint.finder import find
from autobatch.lint.findings import CODES, Finding

_CLEAN, _FOUND, _FAILED = 0, 1, 2
_DESCRIPTION = """
Finds where a lazy value would be misread: what Python does not ask an object, such as `is None`.
It exits with 1 if it found something (and, with --fix, could not mend it), with 2 if a file could
not be read.
"""
_EPILOG = "codes:\n" + "\n".join(f"  {code}  {why}" for code, why in CODES.items())


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of `python -m autobatch`."""
    parser = commands.add_parser(
        "lint",
        help="find where a lazy value would be misread",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a directory")
    parser.add_argument("--fix", action="store_true", help="rewrite what is safe; needs libcst")
    parser.add_argument(
        "--client",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that is a client as well, such as `storage` or `cache.client`; repeatable",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        choices=CODES,
        metavar="CODE",
        help="do not look for this; repeatable",
    )
    parser.add_argument("--format", choices=_FORMATS, default="text", help="of what is printed")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Lint, print what was found, and return the exit status."""
    fix: Callable[..., str] | None = None
    if options.fix:
        try:
            from autobatch.lint.fixing import fix as fixed  # noqa: PLC0415  # libcst is an extra
        except ImportError as error:
            _complain(f'--fix needs libcst ({error}): pip install "redis-autobatch[lint]"')
            return _FAILED
        fix = fixed
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name or a text may not be in its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    found: list[tuple[str, Finding]] = []
    status = _CLEAN
    for path in dict.fromkeys(_files(options.paths)):
        try:
            with warnings.catch_warnings():  # such as of an invalid escape sequence
                warnings.simplefilter("ignore")
                findings = _lint(path, options, fix)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            _complain(f"{path}: {type(error).__name__}: {error}")
            status = _FAILED
            continue
        found += [(str(path), f) for f in findings if f.code not in options.ignore]
    for line in _FORMATS[options.format](found):
        print(line)  # noqa: T201
    return status or (_FOUND if found else _CLEAN)


def _lint(
    path: pathlib.Path, options: argparse.Namespace, fix: Callable[..., str] | None
) -> list[Finding]:
    if path.suffix == ".ipynb":  # JSON is often Python, too
        raise ValueError("a notebook is no module: export it as one")
    # Line ends stay as they are: a file is rewritten byte by byte, but for what is mended.
    with path.open("rb") as file:
        encoding, _ = tokenize.detect_encoding(file.readline)
    source = path.read_bytes().decode(encoding)
    if fix is not None:
        fixed = fix(source, options.client, options.ignore)
        if fixed != source:
            path.write_bytes(fixed.encode(encoding))
        source = fixed
    return find(source, names=options.client)


def _files(paths: Iterable[str]) -> Iterator[pathlib.Path]:
    """Return the files that are named, and the modules in directories that are."""
    for name in paths:
        path = pathlib.Path(name)
        if not path.is_dir():
            yield path
            continue
        for folder, folders, files in os.walk(path):
            # Neither hidden ones nor virtual environments are a project's own code.
            folders[:] = sorted(
                inside
                for inside in folders
                if not inside.startswith(".")
                and inside not in {"__pycache__", "node_modules"}
                and not pathlib.Path(folder, inside, "pyvenv.cfg").exists()
            )
            modules = [pathlib.Path(folder, file) for file in sorted(files) if file[-3:] == ".py"]
            # Nor can everything that is named so be read: a pipe, a link to nowhere.
            yield from (module for module in modules if module.is_file())


def _text(found: list[tuple[str, Finding]]) -> Iterator[str]:
    for path, f in found:
        yield f"{path}:{f.line}:{f.column}: {f.code} {f.message}"


def _json(found: list[tuple[str, Finding]]) -> Iterator[str]:
    rows = [
        {
            "path": path,
            "line": f.line,
            "column": f.column,
            "code": f.code,
            "message": f.message,
            "fixable": bool(f.targets),
        }
        for path, f in found
    ]
    yield json.dumps(rows, indent=2)


def _github(found: list[tuple[str, Finding]]) -> Iterator[str]:
    for path, f in found:
        place = f"file={_escaped(path)},line={f.line},col={f.column},title={f.code}"
        yield f"::error {place}::{_escaped(f.message)}"


def _escaped(text: str) -> str:
    for character, code in [("%", "%25"), ("\r", "%0D"), ("\n", "%0A")]:
        text = text.replace(character, code)
    return text


def _complain(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201


_FORMATS = {"text": _text, "json": _json, "github": _github}
