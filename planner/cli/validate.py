"""`planner validate`: how far predictions are from measured deployments, and the calibration."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from planner.cli import Verbosity

if TYPE_CHECKING:
    from planner.fidelity.silicon import Silicon
    from planner.perf.constants import Constants

REPORT: Final = Path("reports/fidelity.md")
SHOWN: Final = 2
"""Sections of the report that are printed: the goals and all methods side by side."""
ALT: Final = {
    "predicted.png": "Predicted against measured TPOT and TTFT of model families left out",
    "errors.png": "Predicted over measured TPOT by model family, GPU and engine left out",
}
"""What the pictures show, for those who do not see them."""


@click.command(short_help="Measure the accuracy of predictions; refit the constants.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=REPORT,
    show_default=True,
    metavar="FILE",
    help="Report to write; its pictures go into a folder of the same name beside it.",
)
@click.option("--aic", is_flag=True, help="Also run AIConfigurator on the same rows; minutes.")
@click.option(
    "--refit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Fit the constants anew, write them to FILE, and validate with them.",
)
@click.option(
    "--sample",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="CSV",
    help="Another copy of silicon_sample.csv than the installed one.",
)
@click.pass_obj
def validate(
    verbosity: Verbosity | None,
    out: Path,
    aic: bool,
    refit: Path | None,
    sample: Path | None,
) -> int:
    """Reproduce the accuracy of the performance model on measured deployments.

    Predicts every screened row of NVIDIA's published measurements with the constants as shipped
    and with constants that have not seen its model family, its GPU or its engine; beside them
    stand a pure roofline, textbook constants and, with --aic, AIConfigurator. Needs

    \b
      pip install 'llm-fleet-planner[validate]'

    \b
    Examples:
      planner validate
      planner validate --aic --out reports/fidelity.md
      planner validate --refit constants.yaml

    Goals and methods go to stdout, the whole report to FILE; without --aic it has nothing of
    AIConfigurator. Exit codes: 0 done; 2 wrong usage or input; 4 failure.
    """  # noqa: D301
    from dataclasses import replace

    from planner.atomic import make_folder, write_bytes, write_text
    from planner.fidelity.silicon import read_sample, screened
    from planner.fidelity.study import run_study
    from planner.perf.constants import load_constants
    from planner.report.fidelity import fidelity_document
    from planner.report.fidelity_plots import errors_png, predicted_png
    from planner.report.markdown import render
    from planner.report.terminal import print_document

    if not out.suffix or refit == out:
        raise click.UsageError("--out must be a file name with a suffix, another than --refit's")
    tell = _Told(verbosity is not None and verbosity.quiet)
    rows, version = read_sample(sample)
    data, screening = screened(rows, version)
    folder = out.with_suffix("")
    make_folder(folder)
    constants = load_constants() if refit is None else _refitted(data, refit, tell)
    rival = None
    if aic:
        from planner.fidelity.rival import predict_rival

        rival = predict_rival(data, tell)
    study = run_study(data, screening, rows, constants, rival, tell)
    pictures = {"predicted.png": predicted_png(study), "errors.png": errors_png(study)}
    for name, content in pictures.items():
        write_bytes(folder / name, content)
    document = fidelity_document(study)
    links = "".join(f"![{ALT[name]}]({folder.name}/{name})\n\n" for name in pictures)
    title, rest = render(document).split("\n\n## ", 1)
    write_text(out, f"{title}\n\n{links}## {rest}")
    print_document(replace(document, sections=document.sections[:SHOWN]), sys.stdout)
    tell(f"wrote {out} and {len(pictures)} pictures in {folder}")
    return 0


def _refitted(data: Silicon, path: Path, tell: _Told) -> Constants:
    """Constants fitted on `data`, written to `path` and read back as a user would get them."""
    import yaml

    from planner import resources
    from planner.atomic import write_text
    from planner.fidelity.constants_file import constants_text
    from planner.fidelity.study import refit
    from planner.perf.constants import constants_from_mapping, load_constants

    fitted, errors = refit(data, load_constants(), tell)
    text = constants_text(resources.read_text("constants.yaml"), data, fitted, errors)
    write_text(path, text)
    tell(f"wrote {path}")
    return constants_from_mapping(yaml.safe_load(text))


class _Told:
    """Says on stderr what is going on, with the seconds since the start; nothing under -q."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._started = time.monotonic()

    def __call__(self, message: str) -> None:
        if not self._quiet:
            click.echo(f"{time.monotonic() - self._started:6.1f} s  {message}", err=True)
