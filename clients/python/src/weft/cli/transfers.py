"""`weft adapters push`, `pull`, `import`, `provenance` and `compare`: adapters brought, taken along and looked into."""

from pathlib import Path
from typing import Any

import click

from weft.cli.columns import VERSIONS
from weft.cli.commands import Command, Session, duration, session_of
from weft.cli.output import details, plain, say, show_item, show_json, size, table
from weft.cli.references import name_alone, version_of


@click.command(cls=Command)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name", type=name_alone)
@click.option("--base-model", help="Which base it is for, where its own files do not tell.")
@click.option("--timeout", type=duration, help="How long to wait; then the exit status is 124.")
@session_of
def push(session: Session, folder: Path, name: str, base_model: str | None, timeout: int | None) -> None:
    """Make the PEFT adapter in FOLDER a version of NAME.

    NAME is registered where it is new.
    """
    from openai import omit

    from weft.cli.progress import shown

    with shown(session, f"Upload {folder.name}") as tell:
        made = session.client.adapters.push(
            folder, name, base_model=base_model or omit, on_progress=tell, timeout=timeout
        )
    show_item(session, made, VERSIONS)


@click.command(cls=Command)
@click.argument("reference")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--merged", is_flag=True, help="Merged into the base's weights instead of as PEFT loads it.")
@click.option("--timeout", type=duration, help="How long to wait; then the exit status is 124.")
@session_of
def pull(session: Session, reference: str, folder: Path, merged: bool, timeout: int | None) -> None:
    """Take REFERENCE along, into the new FOLDER."""
    from weft.cli.progress import shown

    with shown(session, f"Download {reference}") as tell:
        files = session.client.adapters.pull(
            reference, folder, format="merged" if merged else "peft", on_progress=tell, timeout=timeout
        )
    if session.json:
        show_json([{"path": str(file), "bytes": file.stat().st_size} for file in files])
    else:
        table(("FILE", "SIZE"), [(file, size(file.stat().st_size)) for file in files])


@click.command("import", cls=Command)
@click.argument("name", type=name_alone)
@click.argument("source", metavar="S3_URL")
@click.option("--base-model", help="Which base it is for, where its own files do not tell.")
@click.option("--timeout", type=duration, help="How long to wait; then the exit status is 124.")
@session_of
def import_(session: Session, name: str, source: str, base_model: str | None, timeout: int | None) -> None:
    """Make the PEFT adapter at S3_URL a version of NAME.

    As in `weft adapters import support-bot s3://bucket/folder`. NAME is registered where it is new. `push` does the
    same with a folder here.
    """
    from openai import omit

    adapters = session.client.adapters
    begun = adapters.imports.create(adapter=name, source=source, base_model=base_model or omit)
    try:
        done = adapters.imports.wait(begun.id, timeout=timeout)
    except KeyboardInterrupt:
        say(session, f"The import goes on; see weft adapters versions {name}")
        raise
    assert done.version is not None
    show_item(session, adapters.versions.retrieve(name, done.version), VERSIONS)


@click.command(cls=Command)
@click.argument("reference")
@click.argument("number", required=False, metavar="[VERSION]")
@session_of
def provenance(session: Session, reference: str, number: str | None) -> None:
    """Show what REFERENCE was made of."""
    name, known = version_of(session, reference if number is None else f"{reference}@v{number.removeprefix('v')}")
    found = plain(session.client.adapters.versions.provenance(name, known))
    if session.json:
        show_json(found)
    else:
        details({path: value for path, value in flattened(found) if path != "object" and value is not None})


@click.command(cls=Command)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("-p", "--prompt", "prompts", multiple=True, help="May be given again; else the lines of standard input.")
@click.option("--file", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A prompt a line.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@click.option("--system", help="What the models are told first.")
@session_of
def compare(session: Session, first: str, second: str, path: Path | None, **asked: Any) -> None:
    """Show the greedy answers of models A and B side by side.

    Prompts are given as --prompt, or one on each line of --file or of standard input; a line of a training file is
    asked up to its last answer, which is shown too.
    """
    from weft.cli.comparing import compared

    compared(session, (first, second), path, **asked)


def flattened(value: Any, path: str = "") -> list[tuple[str, object]]:
    """`job.seed` and such, with its value."""
    if not isinstance(value, dict):
        return [(path, ", ".join(map(str, value)) if isinstance(value, list) else value)]  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
    inside: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    return [pair for name, field in inside.items() for pair in flattened(field, f"{path}.{name}" if path else name)]


COMMANDS = (push, pull, import_, provenance, compare)
