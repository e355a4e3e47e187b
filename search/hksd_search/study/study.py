"""The study of a search as its driver has it: opened, begun with what is known and wished for, brought into order."""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Sequence
from pathlib import Path

import optuna
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from hksd.files import write_atomically
from hksd_search.study.records import ACCURACY, STUDY_FILE, STUDY_NAME, mend_journal, open_storage
from hksd_search.study.storage import StudyStorage

WISHES = "wishes"  # attribute of the study: draws that come before those of the sampler


def open_study(folder: Path, objectives: Sequence[str]) -> tuple[optuna.Study, StudyStorage]:
    """The study in the folder of a search, made where there is none, for the one process that writes it.

    Args:
        folder: folder of the search; holds the journal.
        objectives: the first is maximised, the others are minimised.

    Raises:
        UserError: the journal cannot be read or written, or is none.
    """
    mend_journal(folder)
    storage = open_storage(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
            load_if_exists=True,
            directions=["maximize", *["minimize"] * (len(objectives) - 1)],
        )
        study.set_metric_names(list(objectives))
    return study, storage


def mend(study: optuna.Study, storage: StudyStorage) -> None:
    """Bring a study into order whose process may have died at any write: nothing is running afterwards.

    What was refused or replaced but not yet told is told; what was running waits again, and was admitted if it has a
    status.
    """
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get("facts", {}).get("replaces"): trial.number for trial in trials}
    for trial in trials:
        status = trial.user_attrs.get("status")
        if trial.state != TrialState.RUNNING:
            continue
        if trial.number in replaced:
            storage.set_trial_user_attr(trial._trial_id, "reason", replaced_by(replaced[trial.number]))
            storage.set_trial_user_attr(trial._trial_id, "status", "pruned")
            study.tell(trial.number, state=TrialState.PRUNED)
        elif status in ("rejected", "duplicate"):
            study.tell(trial.number, state=TrialState.PRUNED)
        elif status is not None:
            wait_again(storage, trial._trial_id)
        else:
            storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def note_accuracy(study: optuna.Study, storage: StudyStorage, trial_id: int, epoch: int, accuracy: float) -> None:
    """Write down the accuracy of a trial after an epoch; another one that is there is replaced."""
    if len(study.directions) > 1:  # one attribute an epoch: one with all would be written anew each time
        storage.set_trial_user_attr(trial_id, f"{ACCURACY}{epoch}", accuracy)
    elif storage.get_trial(trial_id).intermediate_values.get(epoch) != accuracy:  # a process may have died meanwhile
        storage.set_trial_intermediate_value(trial_id, epoch, accuracy)


def wait_again(storage: StudyStorage, trial_id: int) -> None:
    """Let a trial that ran wait to be handed out again."""
    storage.set_trial_user_attr(trial_id, "status", "interrupted")
    storage.set_trial_state_values(trial_id, TrialState.WAITING)


def reopen(folder: Path, numbers: Container[int]) -> None:
    """Let complete trials wait again, in the journal itself, since Optuna opens no trial that has ended.

    For the one process that may write the study, before it opens it.

    Args:
        folder: folder of the search.
        numbers: of the trials; a study of ours is the only one in its journal, and numbers its trials from 0.
    """
    lines: list[str] = []
    for line in (folder / STUDY_FILE).read_text().splitlines():
        log = json.loads(line)
        if (
            log["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES
            and log["state"] == TrialState.COMPLETE
            and log["trial_id"] in numbers
        ):
            own = {key: log[key] for key in ("worker_id", "trial_id")}
            status = {"op_code": int(JournalOperation.SET_TRIAL_USER_ATTR), "user_attr": {"status": "interrupted"}}
            state = {"op_code": log["op_code"], "state": int(TrialState.WAITING), "values": None}
            lines += [json.dumps(status | own), json.dumps(state | own)]
        else:
            lines.append(line)
    write_atomically(folder / STUDY_FILE, "".join(f"{line}\n" for line in lines).encode())


def replaced_by(number: int) -> str:
    """The reason of a trial whose place a fork took."""
    return f"replaced by trial {number}"
