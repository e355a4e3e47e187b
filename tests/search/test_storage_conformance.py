"""Optuna's own tests of a storage, on that of a study."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase

from hksd_search.study.records import open_storage
from hksd_search.study.storage import StudyStorage


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return open_storage(tmp_path)


class TestStudyStorage(StorageTestCase):  # type: ignore[misc]
    """All that Optuna asks of a storage but pickling, which is refused."""

    @pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_pickle_storage(self, storage: StudyStorage, duplicate: Callable[[StudyStorage], object]) -> None:
        storage.create_new_study([StudyDirection.MINIMIZE])
        with pytest.raises(TypeError, match=r"belongs to one process .*open_storage"):
            duplicate(storage)


def test_a_storage_that_is_opened_again_holds_the_same_study(storage: StudyStorage, tmp_path: Path) -> None:
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "search")
    storage.set_study_system_attr(study, "key", "value")
    trial = storage.get_trial(storage.create_new_trial(study))
    again = open_storage(tmp_path)
    assert again.get_study_id_from_name("search") == study
    assert again.get_study_system_attrs(study) == {"key": "value"}
    assert again.get_all_trials(study) == [trial]
