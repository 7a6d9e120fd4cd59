"""Results of runs of evals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hagane.store.answers.evals import Eval, EvalItem, EvalRun
from hagane.store.paging import Paging
from hagane.store.store import Store, StoreAddress


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    url = request.getfixturevalue("postgres").url() if request.param == "postgres" else None
    opened = Store.open(StoreAddress(tmp_path / "data", url))
    yield opened
    opened.close()


def test_of_two_results_of_an_item_the_first_is_kept(store):
    """A server that has lost a run may still answer what it had begun."""
    evals = store.answers.evals
    made = Eval(name="e", data_source_config={}, testing_criteria=[])
    run = EvalRun(eval=made.id, name="r", model="tiny", data_source={})
    evals.add(made)
    evals.add_run(run)
    item = EvalItem(run=run.id, number=0, status="pass", item={}, sample={}, results=[])
    evals.add_item(item)
    evals.add_item(replace(item, id="outputitem_other", status="fail"))
    assert evals.items(run.id, Paging()).items == [item]
