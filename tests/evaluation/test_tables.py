"""Tables say what must not be overlooked."""

from io import StringIO

from rich.console import Console
from tests.evaluation.conftest import carried_out, plan

from optserve.wire.evaluations import EvaluationResult
from optserve_server.evaluation.documents import document
from optserve_server.evaluation.tables import tables

FALLING = {"family": "bowl", "parameters": {"curvature": 0.0, "slope": 1.0}}  # lower at any rate, without end
ROUND = {"family": "bowl", "parameters": {"curvature": 2.0}}


def printed(result: EvaluationResult) -> str:
    console = Console(file=StringIO(), width=120)
    for table in tables(result):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_best_rate_at_the_edge_is_told_in_every_form() -> None:
    few = carried_out(plan(FALLING, ROUND, baselines=["sgd"], steps=2))
    assert printed(few).count(", the edge") == 1
    assert document(few).count("*) |") == 1
    many = carried_out(plan(FALLING, *[{**ROUND, "weight": 1.0 + k} for k in range(6)], baselines=["sgd"], steps=2))
    (row,) = [line for line in printed(many).partition("edge of their grid")[2].splitlines() if "bowl:" in line]
    assert row.split() == ["bowl:curvature=0.0,slope=1.0", "2", "sgd", "2.15e+05", "27"]
    assert "edge of their grid" not in printed(carried_out(plan(*[ROUND] * 7, baselines=["sgd"], steps=2)))


def test_a_table_of_few_tasks_has_held_out_losses_where_there_are_any() -> None:
    iris = {"family": "logistic-regression", "parameters": {"data": "iris", "rows": 4}}
    assert "held out" in printed(carried_out(plan(iris))).partition("Ranking")[0]
    assert "held out" not in printed(carried_out(plan("bowl"))).partition("Ranking")[0]
