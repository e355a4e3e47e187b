"""`hksd import-study`: an Optuna study that another program made, as a search that others can start from."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hksd_search.commands.options import DEFAULT_RUNS, Json, Overrides, Runs, changes, search_name, text
from hksd_search.commands.output import Output

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from hksd_search.space.space import Space

EXAMPLE = "`hksd import-study sqlite:///old.db quickstart --as old`, then `hksd search quickstart --warm-start old`"
SHOWN = 12  # names that an error lists


def import_study(
    storage: Annotated[str, typer.Argument(metavar="STORAGE", help="sqlite:///FILE, a database, or a journal file.")],
    space: Annotated[str, typer.Argument(metavar="SPACE", help="Name of a shipped space, or a path.")],
    name: Annotated[str, typer.Option("--as", parser=search_name, metavar="NAME", help="Name of the search to write.")],
    study: Annotated[
        str | None, typer.Option(parser=text, metavar="NAME", help="Which study, where the storage has several.")
    ] = None,
    overrides: Overrides = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Read the finished trials of an Optuna study, so that a search can start from the best of them."""
    from hksd_search.space import space as spaces

    output = Output(as_json)
    found = convert(storage, spaces.load(space, changes(overrides)), runs, name, study)

    def show(out: Console) -> None:
        out.print(f"{found.trials} trials of the study {found.study} with {', '.join(found.used)}", highlight=False)
        if found.unused:
            out.print(f"not in the space, left out: {', '.join(found.unused)}", highlight=False)
        out.print(f"start from the best of them with `hksd search {space} --warm-start {name}`", highlight=False)

    output.give({**found.__dict__, "folder": str(found.folder)}, show)


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    Attributes:
        folder: the folder that others warm-start from.
        study: name of the study.
        trials: number of finished trials that were taken.
        used: parameters of the space that the study has.
        unused: parameters of the study that the space does not have.
    """

    folder: Path
    study: str
    trials: int
    used: list[str]
    unused: list[str]


def convert(url: str, space: Space, runs: Path, name: str, study_name: str | None = None) -> Imported:
    """Write the finished trials of a study as the search `name`; parameters are matched by their names.

    Args:
        url: storage of the study: sqlite:///FILE or another database, or the path of a journal file.
        space: the space whose parameters are looked for.
        runs: folder of all searches.
        name: name of the search to write.
        study_name: which study, where there are several.

    Raises:
        UserError: no such storage or study, several and none named, no finished trial, no parameter in common, or
            `name` is taken.
    """
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    from hksd.errors import UserError
    from hksd_search.session import SPACE_FILE, choose_folder, locked, resolved, write
    from hksd_search.space.parameters import parameters
    from hksd_search.study.reading import FACTS_FILE

    folder = choose_folder(space, runs, name, resume=False)
    study = _load(url, study_name)
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if not complete:
        raise UserError(f"{url}: the study '{study.study_name}' has no finished trial")
    mine = set(parameters(space))
    theirs = {key for trial in complete for key in trial.params}
    if not mine & theirs:
        raise UserError(
            f"{url}: no parameter of the study '{study.study_name}' ({_listed(theirs)}) has the name of one of "
            f"{space.source} ({_listed(mine)})"
        )
    rises = study.directions[0] == StudyDirection.MAXIMIZE
    trials = [found for trial in complete if (found := _taken(space, trial, mine, rises)) is not None]
    if not trials:
        raise UserError(f"{url}: no trial of the study '{study.study_name}' makes a valid run of {space.source}")
    with locked(folder):
        write(folder / SPACE_FILE, resolved(space))
        _save(folder, trials)
        facts = {"name": name, "space": space.name, "trials_are": "imported", "study": study.study_name}
        write(folder / FACTS_FILE, json.dumps(facts, indent=1))
    return Imported(folder, study.study_name, len(trials), sorted(mine & theirs), sorted(theirs - mine))


def _load(url: str, name: str | None) -> Study:
    import optuna

    from hksd.errors import UserError, unknown

    storage, known = _opened(url)
    if name is None and len(known) > 1:
        raise UserError(f"{url}: has several studies; choose one with --study ({', '.join(known)})")
    if not known:
        raise UserError(f"{url}: has no study")
    if name is not None and name not in known:
        raise UserError(f"{url}: {unknown('study', name, known)}")
    return optuna.load_study(study_name=name or known[0], storage=storage)


def _opened(url: str) -> tuple[BaseStorage, list[str]]:
    """A storage that exists, which is left as it is, and the names of its studies."""
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    from hksd.errors import UserError
    from hksd.files import expanded

    scheme, separator, place = url.partition("://")
    file = expanded(place.removeprefix("/").partition("?")[0] if separator else url, "STORAGE")
    if (not separator or scheme.startswith("sqlite")) and not file.is_file():
        raise UserError(f"{file}: no such file (a storage is sqlite:///FILE or another database, or a journal file)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            journal = None if separator else JournalStorage(JournalFileBackend(str(file)))
            storage = journal or RDBStorage(url, skip_table_creation=True)
            return storage, optuna.get_all_study_names(storage)
    except Exception as error:  # whatever a database driver raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{url.rpartition('@')[2]}: cannot be read as an Optuna storage: {lines[0]}") from error


def _taken(space: Space, trial: FrozenTrial, mine: set[str], rises: bool) -> FrozenTrial | None:
    """A finished trial as one of this space; what it does not say stands at the middle of the ranges."""
    from hksd.config.run import config_hash
    from hksd_search.space.nearest import point
    from hksd_search.strategy.warm_start import imported

    drawn = point(space, {key: value for key, value in trial.params.items() if key in mine})
    if drawn is None:
        return None
    value = trial.values[0] if rises else -trial.values[0]
    return imported(space, drawn, [value], digest=config_hash(drawn[1]), costs={}, epoch=0)


def _save(folder: Path, trials: list[FrozenTrial]) -> None:
    import optuna

    from hksd_search.study.records import STUDY_NAME, open_storage

    storage = open_storage(folder)
    with storage.together():
        study = optuna.create_study(storage=storage, study_name=STUDY_NAME, direction="maximize")
        study.add_trials(trials)


def _listed(names: set[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more
