"""What the user typed -> which search goes on, and with how many trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd.errors import UserError
from hksd_search.session import SPACE_FILE, space_and_name

Make = Callable[..., Any]


@pytest.fixture
def runs(tmp_path: Path, space_text: Make) -> Path:
    """A folder with the search `first` of 12 trials."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / SPACE_FILE).write_text(space_text(search={"trials": 12}))
    return tmp_path


def test_a_search_goes_on_by_its_name_with_the_space_that_it_has(runs: Path) -> None:
    space, name = space_and_name("first", None, runs, [], going_on=True, extend=0)
    assert (name, space.search.trials) == ("first", 12)


def test_an_extension_adds_to_the_trials_that_the_search_has(runs: Path, space_text: Make) -> None:
    assert space_and_name("first", None, runs, [], going_on=True, extend=20)[0].search.trials == 32
    (runs / "space.yaml").write_text(space_text(search={"trials": 5}))
    space, name = space_and_name(str(runs / "space.yaml"), "first", runs, [], going_on=True, extend=20)
    assert (name, space.search.trials) == ("first", 32), "not to those of the file"


def test_an_unknown_search_is_told_with_the_nearest_and_all_there_are(runs: Path) -> None:
    with pytest.raises(UserError, match=r"no search to go on with; did you mean 'first'\? \(there are: first\)"):
        space_and_name("frist", None, runs, [], going_on=True, extend=0)


def test_a_file_alone_does_not_say_which_search_goes_on(runs: Path) -> None:
    with pytest.raises(UserError, match="which search goes on"):
        space_and_name(str(runs / "first" / SPACE_FILE), None, runs, [], going_on=True, extend=0)
