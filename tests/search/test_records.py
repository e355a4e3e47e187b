"""What a trial is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hksd.config.run import RunConfig
from hksd_search.study.records import label


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"terms": {"ce": {}, "kd": {}}}, "007 resnet8 w0.25 ce+kd"),
        ({"terms": {"ce": {}, "squeeze": {"depth": 3}, "adversarial": {}}}, "007 resnet8 w0.25 d3 ce+squeeze+adv"),
        ({"terms": {"ce": {}, "kd": {"weight": 0}}, "robust": {}, "prune": {}}, "007 resnet8 w0.25 ce robust prune"),
        ({"terms": {"kd": {}}, "data_free": {}}, "007 resnet8 w0.25 kd data_free"),
    ],
)
def test_a_trial_is_called_by_what_it_trains(
    sections: dict[str, Any], expected: str, make_config: Callable[..., RunConfig]
) -> None:
    assert label(7, make_config(**sections)) == expected
